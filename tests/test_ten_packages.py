"""The library with jax, jaxlib, optax, numba and their dependencies, and without other packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

WORKS = """
import without_extras
import jax, numpy as np, optax, unrolled as ur
from unrolled.app.cli import main

D = ur.gaussian(0, 8, 16)
sample = ur.sampler(D, 16, probability=0.1)
Y, X = sample(1)
layer = ur.lista_cp(2, lam=0.05)
params = layer.init(None, D)
fit = ur.fit(layer, params, D, sample, optimizer=optax.adam(1e-3), steps=2, key=0)
np.save("D.npy", D)
np.save("Y.npy", Y)
EYE = np.eye(16, dtype=np.float32)
network = ur.dsc([layer, layer])
operations = [
    lambda: ur.lasso(D, Y[0], 0.1),
    lambda: ur.omp(D, Y[0], 2),
    lambda: ur.pursuit.lasso_batch(D, Y, 0.1),
    lambda: ur.pursuit.omp_batch(D, Y, 2),
    lambda: ur.pursuit.basis_pursuit(D, Y[0]),
    lambda: jax.vmap(layer.apply, (None, None, 0))(params, D, Y),
    lambda: ur.calibrate(layer, params, D, Y, X),
    lambda: (ur.save("weights.npz", fit), ur.load("weights.npz")),
    lambda: ur.certify(layer, params, D, sparsity=1, bound=1.0),
    lambda: ur.theory.minimax_weights(D),
    lambda: ur.dictionary_learning.ksvd(Y, 10, sparsity=2, sweeps=1),
    lambda: network.apply((params, layer.init(None, EYE)), (D, EYE), Y[0]),
    lambda: ur.compare({"layer": (layer, params)}, D, Y, X).table(),
    lambda: ur.metrics.nmse(X, X + 1),
    lambda: [main(words.split()) for words in (
        "certify D.npy", "doctor",
        "encode Y.npy --method lasso_batch --lam 0.1 --dictionary D.npy --output X.npy",
    )],
]
for i, operation in enumerate(operations):
    result = operation()
    assert i != 14 or result == [0, 0, 0], result
print(len(operations), "work")
"""
BASE = "try pip install . in the clone"
REFUSED = {
    "ur.fit(layer, params, D, sample, optimizer=optax.adam(1e-3), key=0, steps=2, progress=True)": (
        f"fit(progress=True): needs rich, not installed; {BASE}"
    ),
    "ur.compare({'layer': (layer, params)}, D, Y, X).plot()": (
        f"plots: needs matplotlib, not installed; {BASE}"
    ),
    "ur.nnx": f"unrolled.nnx: needs flax, not installed; {BASE}",
    "ur.vision.models": f"unrolled.vision.models: needs flax, not installed; {BASE}",
    "ur.vision.datasets.digits()": (
        "the digits: needs scikit-learn, not installed; try pip install '.[data]' in the clone"
    ),
    "ur.sklearn": "unrolled.sklearn: needs scikit-learn, not installed; try pip install '.[data]'",
    "ur.export.save('x.zip', layer, params, D)": (
        "needs flatbuffers, not installed; try pip install '.[export]' in the clone"
    ),
    "run('compare')": f"compare: needs matplotlib, not installed; {BASE}",
    "run('learn', 'Y.npy', '--atoms', '4')": f"learn: needs matplotlib, not installed; {BASE}",
}
REFUSES = """
from unrolled.app import commands
import argparse

def run(name, *words):
    parser = argparse.ArgumentParser()
    added = parser.add_subparsers()
    for add in commands.COMMANDS:
        add(added)
    arguments = parser.parse_args([name, *words])
    arguments.run(arguments)

for call, message in refused.items():
    try:
        eval(call)
    except ImportError as error:
        assert message in str(error), (call, str(error))
    else:
        raise AssertionError(call)
print(len(refused), "refused")
"""


@pytest.mark.slow
def test_fifteen_operations_work_and_the_others_say_what_they_need(tmp_path):
    code = f"{WORKS}\nrefused = {REFUSED!r}\n{REFUSES}"
    path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "15 work" in done.stdout and f"{len(REFUSED)} refused" in done.stdout
