"""Kill a training run, which saves after every step, with SIGKILL at random moments.

    python benchmarks/kill.py [kills]

The script starts a training run, kills it and restarts it in the same folder until the run
finishes. Then the script begins another run, until the number of kills is `kills` (200 by default).
After every kill the script reads and checks all saved steps. It counts the steps that were lost or
damaged, and the finished runs that differ from an uninterrupted run.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _measure
import jax
import numpy as np
import optax

import unrolled as ur

STEPS = 40


def train(folder: str | None) -> ur.training.Fit:
    """Train, and print the step at every evaluation."""
    D = ur.dictionaries.gaussian(jax.random.key(0), 64, 128)
    layer = ur.lista_cp(4, tied=False)
    options = dict(optimizer=optax.adam(1e-3), steps=STEPS, key=1, evaluate_every=1, progress=False)
    sample = ur.problems.sampler(D, 32)
    told = [lambda record, params: print(record.step, flush=True)]
    where = None if folder is None else ur.training.Checkpoint(folder, every=1)
    return ur.fit(
        layer, layer.init(None, D), D, sample, checkpoint=where, callbacks=told, **options
    )


def bits(fit: ur.training.Fit) -> str:
    """The sha256 of all results of a training run, except the seconds."""
    leaves = jax.tree.leaves((fit.params, fit.best, fit.D, fit.history.loss))
    leaves = [np.asarray(leaf).tobytes() for leaf in leaves]
    records = [repr(record.replace(seconds=0.0)).encode() for record in fit.history.records]
    return hashlib.sha256(b"".join(leaves + records)).hexdigest()


def start(folder: str) -> subprocess.Popen:
    """Start a training run in its own process; all runs share one compilation cache."""
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(folder).parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, __file__, "--train", folder]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | compiled)


def killed_after(folder: str, seconds: float) -> tuple[bool, int]:
    """Kill a training run `seconds` after its first step.

    Returns whether the run was unfinished, and the last step that the run printed.
    """
    process, told = start(folder), 0
    while told == 0 and (line := process.stdout.readline()):
        told = int(line) if line.strip().isdigit() else STEPS
    time.sleep(seconds)
    process.kill()
    rest, _ = process.communicate()
    printed = [int(line) for line in rest.splitlines() if line.isdigit()]
    return process.returncode != 0, max([told, *printed])


def saved(folder: Path) -> list[int]:
    """The steps that are saved in a folder."""
    return sorted(int(path.stem) for path in folder.glob("*.npz"))


def unreadable(folder: Path) -> list[int]:
    """The saved steps that differ from the written steps."""
    bad = []
    for step in saved(folder):
        try:
            ur.training.restore(folder, step=step)
        except ur.training.CheckpointError:
            bad.append(step)
    return bad


def torture(kills: int) -> dict[str, float]:
    """Kill training runs, and count the lost and damaged steps."""
    names = ("kills", "runs", "different", "unreadable", "most_lost")
    rng, found = np.random.default_rng(0), dict.fromkeys(names, 0)
    began, expected = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as name:
        while found["kills"] < kills:
            folder, running = Path(name) / f"run{found['runs']}", True
            while running and found["kills"] < kills:
                running, told = killed_after(str(folder), rng.uniform(0, 1))
                found["kills"] += running
                found["unreadable"] += len(unreadable(folder))
                last_saved = max(saved(folder), default=0)
                found["most_lost"] = max(found["most_lost"], told - last_saved)
            last = start(str(folder)).communicate()[0].split()[-1]
            expected = expected or bits(train(None))
            found["runs"] += 1
            found["different"] += last != expected
    return found | {"seconds": round(time.perf_counter() - began, 1)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        print(bits(train(sys.argv[2])))
    else:
        result = torture(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
        _measure.save(Path(__file__).with_suffix(".json"), result)
