"""The types say what functions take: the examples of the pages pass mypy, also with numpy."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from test_docs import README, ROOT, blocks
from test_pages import RUN

IMPORTS = "import jax, optax\nimport jax.numpy as jnp\nimport numpy as np\nimport unrolled as ur\n"
USERS = ROOT / "tests" / "types_of_users.py"
MISSING = ("onnxruntime",)  # packages of examples that are not installed


def programs():
    """The examples of each page as one program; those of the README share no names."""
    for path in RUN:
        parts = blocks(path)
        for i, source in enumerate(parts if path == README else ["\n".join(parts)]):
            yield f"{path.stem.replace('-', '_')}_{i}", IMPORTS + source


CALLS_WITH_NUMPY = """
rng = np.random.default_rng(0)
D = rng.normal(size=(8, 12)).astype("float32")
D /= np.linalg.norm(D, axis=0)
X = (rng.normal(size=(48, 12)) * (rng.random((48, 12)) < 0.2)).astype("float32")
Y = X @ D.T
layer, network = ur.alista(3), ur.dsc([ur.lista_cp(2), ur.lista_cp(2)])
params = layer.init(None, D)
code = layer.apply(params, D, Y[0])
network.apply(network.init(0, (D, X.T)), [D, X.T], Y[0])
ur.analytic.calibrate(layer, ur.analytic.alista(D, depth=3, sparsity=1, bound=1.0), D, Y, X)
ur.training.prepare("lista_cp", D, Y, X, depth=2).params
ur.compare({"own": (layer, params), "codes": X}, D, Y, X).table()
solved = ur.pursuit.lasso(D, Y[0], lam=0.1)
solved.x.at[0].set(1.0)
ur.pursuit.omp_batch(D, Y, 2).x.sum()
ur.pursuit.layered_basis_pursuit((D, X.T), Y[0], (0.1, 0.1)).xs[0].sum()
ur.pursuit.duality_gap(D, Y[0], X[0], 0.1)
ur.theory.coherence(D, D).mu_W.item()
ur.theory.certify(layer, params, D, sparsity=1, bound=1.0).holds
ur.dictionary_learning.ksvd(Y, 12, sparsity=1, sweeps=1, start=D, key=0).D.shape
ur.dictionaries.normalize(D)[0].at[0].get()
ur.metrics.nmse(X, X) + ur.metrics.psnr(Y, Y) + ur.metrics.kkt_violation(D, Y[0], X[0], 0.1)
ur.problems.add_noise(0, ur.problems.synthesize(D, X), 20.0)
ur.nnx.Module(layer, params, D)(Y)
ur.app.studies.dictionary_report(D).text()
ur.layers.StepAndThreshold(gamma=0.5, theta=np.ones(3))
"""


@pytest.mark.slow
def test_the_calls_with_numpy_run(float32_by_default):
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the theory holds for none of these codes
        exec(compile(IMPORTS + CALLS_WITH_NUMPY, "calls with numpy", "exec"), names)
    assert names["code"].shape == (12,) and names["code"].dtype == np.float32
    assert names["solved"].converged and names["solved"].x.dtype == np.float32


def mypy(*arguments):
    """What mypy prints. Without mypy, which the extra dev has, the test fails."""
    from mypy import api

    said, errors, _ = api.run(list(map(str, arguments)))
    assert not errors
    return said


@pytest.mark.slow
def test_mypy_knows_the_types_that_users_see():
    assert "no issues" in mypy("--strict", "--follow-imports=silent", USERS)


@pytest.mark.slow
def test_pyright_knows_the_types_that_users_see():
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(USERS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "0 errors" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_examples_and_calls_with_numpy_pass_mypy(tmp_path):
    sources = dict(programs()) | {"calls_with_numpy": IMPORTS + CALLS_WITH_NUMPY}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    said = mypy(f"--config-file={ROOT / 'pyproject.toml'}", tmp_path)
    lines = [line for line in said.splitlines() if ": error:" in line]
    assert [line for line in lines if not any(f'"{name}"' in line for name in MISSING)] == []
    assert f"(checked {len(sources)} source files)" in said or "no issues" in said
