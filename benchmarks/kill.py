"""SIGKILL at random moments of a training that saves after every step.

    python benchmarks/kill.py [kills]

The script starts a training, kills it and restarts it in the same folder until it finishes. Then it
begins another one, until there were `kills` kills (200 by default). After every kill it reads and
checks all saved steps. It counts steps that were lost or damaged, and finished runs that differ
from an uninterrupted one.
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
from unrolled.training import DamagedError, Steps

STEPS = 40


def train(folder: str | None):
    """The training; it prints its step at every evaluation."""
    D = ur.dictionaries.gaussian(jax.random.key(0), 64, 128)
    layer = ur.lista_cp(4, tied=False)
    options = dict(optimizer=optax.adam(1e-3), steps=STEPS, key=1, evaluate_every=1, progress=False)
    sample = ur.problems.sampler(D, 32)
    told = [lambda record, params: print(record.step, flush=True)]
    where = None if folder is None else ur.training.Checkpoint(folder, every=1)
    return ur.fit(
        layer, layer.init(None, D), D, sample, checkpoint=where, callbacks=told, **options
    )


def bits(fit) -> str:
    """The sha256 of everything that a training returns, except the seconds."""
    leaves = [
        np.asarray(leaf).tobytes()
        for leaf in jax.tree.leaves((fit.params, fit.best, fit.D, fit.history.loss))
    ]
    records = [repr(record._replace(seconds=0.0)).encode() for record in fit.history.records]
    return hashlib.sha256(b"".join(leaves + records)).hexdigest()


def start(folder: str) -> subprocess.Popen:
    """A training in its own process; all of them share one compilation cache."""
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(folder).parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, __file__, "--train", folder]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | compiled)


def killed_after(folder: str, seconds: float) -> tuple[bool, int]:
    """Kill a training `seconds` after its first step.

    Returns whether it was still running, and the last step that it printed.
    """
    process, told = start(folder), 0
    while told == 0 and (line := process.stdout.readline()):
        told = int(line) if line.strip().isdigit() else STEPS
    time.sleep(seconds)
    process.kill()
    rest, _ = process.communicate()
    return process.returncode != 0, max(
        [told, *(int(line) for line in rest.splitlines() if line.isdigit())]
    )


def unreadable(folder: Path) -> list[int]:
    steps, bad = Steps(folder), []
    for step in steps.all():
        try:
            steps.load(step, steps.manifest(step))
        except DamagedError:
            bad.append(step)
    steps.close()
    return bad


def torture(kills: int) -> dict:
    rng, found = (
        np.random.default_rng(0),
        dict(kills=0, in_a_save=0, runs=0, different=0, unreadable=0, most_lost=0),
    )
    began, expected = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as name:
        while found["kills"] < kills:
            folder, running = Path(name) / f"run{found['runs']}", True
            while running and found["kills"] < kills:
                running, told = killed_after(str(folder), rng.uniform(0, 1))
                found["kills"] += running
                found["in_a_save"] += running and any(
                    "orbax-checkpoint-tmp" in path.name for path in folder.iterdir()
                )
                found["unreadable"] += len(unreadable(folder))
                saved = max(
                    (int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0
                )
                found["most_lost"] = max(found["most_lost"], told - saved)
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
