"""Large dictionaries: seconds and memory of theory, analytic params and training.

    python benchmarks/scale.py large [--atoms 100000] [--picture 512]
    python benchmarks/scale.py atoms [--atoms 100000]

`large` calls the functions of theory and analytic, each in a process of its own, on a float32
dictionary of 64 rows and on 16 filters on a picture. Memory is the peak of RssAnon: mapped pages
of libraries are not ours. On a busy machine the wall time says little: the seconds of both cores
stand beside it. `atoms` trains LISTA-CP and its D on four forced devices that share the atoms, and
on one: bytes of the arrays on each device at an evaluation, and how far the losses are
apart.
"""

import argparse
import json
import math
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


def atoms(count: int) -> dict[str, dict]:
    """Some steps on one device, and on four that share the atoms."""
    alone, split = (
        _process(["trained", "--atoms", str(count), "--devices", str(n)], n) for n in (1, 4)
    )
    losses = [row.pop("losses", [1.0]) for row in (alone, split)]
    apart = max(abs(a - b) / abs(a) for a, b in zip(*losses))
    rows = {"1 device": alone, "4 devices": split, "apart": {"losses, relative": f"{apart:.1e}"}}
    for name, row in rows.items():
        print(f"64 x {count}, {name:12}{row}", flush=True)
    return rows


def trained(count: int, devices: int, steps: int = 4) -> dict:
    """Some steps of a training in this process, on so many devices."""
    import jax
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    import unrolled as ur

    mesh = jax.make_mesh((1, devices), ("data", "atoms"))
    columns = NamedSharding(mesh, PartitionSpec(None, "atoms"))
    D = jax.device_put(ur.dictionaries.gaussian(0, 64, count), columns)
    layer, held = ur.lista_cp(3), []
    start = layer.init(None, D)
    params = jax.tree.map(
        lambda leaf: jax.device_put(leaf, columns) if leaf.ndim > 1 else leaf, start
    )
    del start
    sample = ur.problems.sampler(D, 16, probability=1e-4)

    def watch(record, params):
        on_mesh = [x for x in jax.live_arrays() if isinstance(x.sharding, NamedSharding)]
        numbers = [x for x in on_mesh if x.dtype.name == "float32"]
        held.append(sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in numbers))

    how = dict(optimizer=optax.adam(1e-6), steps=steps, key=0, learn_dictionary=True, mesh=mesh)
    checked = sample(jax.random.key(1))
    found = ur.fit(layer, params, D, sample, validation=checked, callbacks=[watch], **how)
    W = found.params.shared.W
    return {
        "W, MB a device": round(4e-6 * math.prod(W.sharding.shard_shape(W.shape)), 1),
        "arrays on the mesh, MB a device": round(max(held) / 1e6, 1),
        "losses": found.history.loss.tolist(),
    }


def _process(arguments: list[str], devices: int = 1) -> dict:
    """What a process of this script prints last, as JSON; its last words where it fails."""
    command = [sys.executable, str(HERE / "scale.py"), *arguments]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": (done.stderr.splitlines() or [str(done.returncode)])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the rows, and write them as JSON with --output."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("large", "atoms", "one", "trained"))
    parser.add_argument("name", nargs="?", help="of one function")
    parser.add_argument("--atoms", type=int, default=100_000)
    parser.add_argument("--picture", type=int, default=512)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.what == "one":
        print(json.dumps(one(given.name, given.atoms, given.picture)))
        return
    if given.what == "trained":
        print(json.dumps(trained(given.atoms, given.devices)))
        return
    if given.what == "atoms":
        rows = atoms(given.atoms)
    else:
        rows = large(given.atoms, given.picture, [given.name] if given.name else list(CALLS))
    if given.output:
        from _measure import save

        save(given.output, {given.what: rows})


if __name__ == "__main__":
    main()
