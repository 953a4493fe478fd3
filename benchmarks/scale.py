"""Large dictionaries: seconds and memory of theory and analytic params.

    python benchmarks/scale.py large [--atoms 100000] [--picture 512]

`large` calls the functions of theory and analytic, each in a process of its own, on a float32
dictionary of 64 rows and on 16 filters on a picture. Memory is the peak of RssAnon: mapped pages
of libraries are not ours. On a busy machine the wall time says little: the seconds of both cores
stand beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
CALLS = {
    "column_norms": lambda ur, D, W: ur.dictionaries.column_norms(D),
    "spectral_norm": lambda ur, D, W: ur.dictionaries.spectral_norm(D),
    "frobenius_weights": lambda ur, D, W: ur.theory.frobenius_weights(D),
    "spectral_radius": lambda ur, D, W: ur.theory.spectral_radius(W, D),
    "mutual_coherence": lambda ur, D, W: ur.theory.mutual_coherence(D),
    "coherence": lambda ur, D, W: ur.theory.coherence(W, D),
    "atom_coherence": lambda ur, D, W: ur.theory.atom_coherence(W, D),
    "babel": lambda ur, D, W: ur.theory.babel(D, 10),
    "rounding_guard": lambda ur, D, W: ur.theory.rounding_guard(W, D, sparsity=2, bound=1.0),
    "error_gain": lambda ur, D, W: ur.theory.error_gain(W, sparsity=10),
    "noise_gain": lambda ur, D, W: ur.theory.noise_gain(W),
    "support_rate": lambda ur, D, W: ur.theory.support_rate(W, D, list(range(0, 5000, 500))),
    "certify": lambda ur, D, W: ur.theory.certify(
        ur.alista(8), ur.alista(8).init(None, D), D, sparsity=1, bound=1.0
    ),
    "uniqueness": lambda ur, D, W: ur.theory.uniqueness([D], [1]),
    "stability": lambda ur, D, W: ur.theory.stability([D], [1], 0.0, 0.1),
    "objective_bound": lambda ur, D, W: ur.theory.objective_bound(D, 0.1, sparsity=2, gamma=0.5),
    "code_bound": lambda ur, D, W: ur.theory.code_bound(W, D, D[:, 0], sparsity=1),
    "certify_code": lambda ur, D, W: ur.theory.certify_code(D, 2 * D[:, 3], _one(ur, D)),
    "sequence_bound": lambda ur, D, W: ur.theory.sequence_bound(W, D, 4),
    "oracle_errors": lambda ur, D, W: ur.theory.oracle_errors([D], [[1, 500, 4000]]),
    "layered_thresholds": lambda ur, D, W: ur.theory.layered_thresholds(
        [D], sparsities=[1], bounds=1.0
    ),
    "analytic.ista": lambda ur, D, W: ur.analytic.ista(D, 0.1, 8),
    "analytic.certify": lambda ur, D, W: ur.analytic.certify(D),
    "analytic.lista_cp": lambda ur, D, W: ur.analytic.lista_cp(
        D, depth=8, sparsity=1, bound=1.0, W=W
    ),
    "analytic.hyperlista": lambda ur, D, W: ur.analytic.hyperlista(D),
    "state_evolution": lambda ur, D, W: ur.theory.state_evolution(
        ur.layers.lamp(4), D, probability=1e-4
    ),
}
DENSE = {"code_bound", "certify_code", "sequence_bound", "state_evolution"}  # not of filters


def _one(ur, D):
    import numpy as np

    return 2.0 * (np.arange(D.shape[1]) == 3)


def one(name: str, atoms: int, picture: int) -> dict:
    """A call in this process: its seconds, and how far its memory rose over that of the start."""
    import warnings

    import jax

    import unrolled as ur

    warnings.simplefilter("ignore")
    if picture:
        filters = jax.random.normal(jax.random.key(0), (16, 1, 7, 7))
        D = ur.dictionaries.normalize(ur.dictionaries.Conv(filters, (picture, picture)))[0]
    else:
        D = ur.dictionaries.gaussian(0, 64, atoms)
    W = ur.theory.frobenius_weights(D)
    peak, over = [_anonymous()], threading.Event()

    def watch():
        while not over.wait(0.02):
            peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, spent = time.perf_counter(), time.process_time()
    try:
        jax.block_until_ready(CALLS[name](ur, D, W))
    finally:
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        over.set()
        watcher.join()
    return {"wall s": round(seconds, 1), "cpu s": round(cpu, 1), "GB": round(peak[0] / 1e6, 2)}


def _anonymous() -> int:
    """RssAnon of this process, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


def large(atoms: int, picture: int, names: list[str]) -> dict[str, dict]:
    """Every function on both dictionaries."""
    found: dict[str, dict] = {}
    for name in names:
        for what, side in ((f"64 x {atoms}", 0), (f"16 filters, {picture}^2", picture)):
            if side and name in DENSE:
                continue
            row = _process(["one", name, "--atoms", str(atoms), "--picture", str(side)])
            found[f"{name}, {what}"] = row
            print(f"{name:24}{what:24}{row}", flush=True)
    return found


def _process(arguments: list[str]) -> dict:
    """What a process of this script prints last, as JSON; its last words where it fails."""
    command = [sys.executable, str(HERE / "scale.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        return {"failed": (done.stderr.splitlines() or [str(done.returncode)])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the rows, and write them as JSON with --output."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("large", "one"))
    parser.add_argument("name", nargs="?", help="of one function")
    parser.add_argument("--atoms", type=int, default=100_000)
    parser.add_argument("--picture", type=int, default=512)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.what == "one":
        print(json.dumps(one(given.name, given.atoms, given.picture)))
        return
    rows = large(given.atoms, given.picture, [given.name] if given.name else list(CALLS))
    if given.output:
        from _measure import save

        save(given.output, {"large": rows})


if __name__ == "__main__":
    main()
