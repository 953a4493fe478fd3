"""The matrix of inputs: every line of the registry, in every way to run it.

Faults of shape and type raise the same error eagerly and inside of jit, vmap and grad. The terminal
shows how many cases were tried. What is right gives one answer however it is run: with many steps,
with many signals, and with signals on several devices.
"""

import functools
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry

import unrolled as ur

SLOW = pytest.mark.slow

M, N, K = 5, 8, 3
D = np.random.default_rng(1).normal(size=(M, N))
D /= np.linalg.norm(D, axis=0)
Y = np.random.default_rng(0).normal(size=(4, M))
y = Y[0]


def eager(f, *arrays):
    return f(*arrays)


def jitted(f, *arrays):
    return jax.jit(f)(*arrays)


def vmapped(f, *arrays):
    return jax.vmap(f)(*(np.stack([a, a]) for a in arrays))


def differentiated(f, *arrays):
    floating = [i for i, a in enumerate(arrays) if jnp.issubdtype(jnp.result_type(a), jnp.floating)]
    return jax.grad(lambda *arrays: jnp.sum(f(*arrays)), argnums=floating)(*arrays)


MODES = (eager, jitted, vmapped, differentiated)


@functools.cache
def params_of(name, depth=K):
    return jax.jit(registry.LAYERS[name](depth).init)(jax.random.key(0), D)


@functools.cache
def blank(name):
    """Params of zeros: a fault of D or y is found before they count."""
    params = jax.eval_shape(registry.LAYERS[name](K).init, jax.random.key(0), D)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)


def layer(name, D, y):
    return registry.LAYERS[name](K).apply(blank(name), D, y)


def solver(name, D, y):
    return registry.SOLVERS[name](D, y, 0.1).x


ENTRIES = {
    **{f"layers: {name}": partial(layer, name) for name in registry.LAYERS},
    # A batch has faults of its own, which its tests list.
    **{
        f"solvers: {name}": partial(solver, name)
        for name in registry.SOLVERS
        if name != "lasso_batch"
    },
}

# The dictionary, the signal, the error and what it says. In all modes but the first the signal is
# traced; in a mode of their own so is the dictionary.
FAULTS = {
    "1 scalar signal": (D, y[0], ValueError, r"y has shape \(\); y must have shape \(5,\)"),
    "1 signal of rank 3": (D, np.ones((2, 2, M)), ValueError, r"\(5,\).*use jax\.vmap"),
    "1 dictionary of rank 1": (D[:, 0], y, ValueError, r"D has shape \(5,\); expected \(m, d\)"),
    "1 dictionary of rank 3": (np.ones((2, M, N)), y, ValueError, r"expected \(m, d\)"),
    "2 batch of signals": (D, np.ones((7, M)), ValueError, "jax.vmap over the rows"),
    "2 batch in columns": (D, np.ones((M, 7)), ValueError, "in_axes=1 over the columns"),
    "3 signal too long": (D, np.ones(M + 1), ValueError, r"\(5, 8\) but y has shape \(6,\)"),
    "3 empty signal": (D, np.ones(0), ValueError, r"\(5, 8\) but y has shape \(0,\)"),
    "5 dictionary transposed": (D.T, y, ValueError, r"Did you pass D\.T\?"),
    "7 no rows": (D[:0], y[:0], ValueError, "at least one row and one column"),
    "7 no columns": (D[:, :0], y, ValueError, "at least one row and one column"),
    "12 complex signal": (D, y * 1j, TypeError, "y is complex128; expected real numbers"),
    "12 complex dictionary": (D * 1j, y, TypeError, "D is complex128; expected real numbers"),
    "14 nan dictionary": (D * np.nan, y, ValueError, "D has NaN or infinite entries"),
    "14 infinite dictionary": (D + np.inf, y, ValueError, "D has NaN or infinite entries"),
}
KNOWN = ("14 nan dictionary", "14 infinite dictionary")  # values, which a traced D does not show


# All lines share the door: some of different forms are tried in every mode by default.
SOME = [f"layers: {name}" for name in ("ista", "lista", "lista_cp", "alista", "hyperlista")]
SOME += ["solvers: threshold"]
WAYS = [
    pytest.param(
        entry,
        mode,
        marks=[] if mode is eager or entry in SOME else [SLOW],
        id=f"{entry}, {mode.__name__}",
    )
    for entry in ENTRIES
    for mode in MODES
]


@pytest.mark.few(3)
@pytest.mark.parametrize("entry, mode", WAYS)
def test_faults_of_operands(entry, mode, record_property):
    f, count = ENTRIES[entry], 0
    for name, (bad_D, bad_y, error, message) in FAULTS.items():
        cases = [(partial(f, bad_D), bad_y)]
        cases += [] if name in KNOWN or mode is eager else [(lambda D, y=bad_y: f(D, y), bad_D)]
        for g, x in cases:
            if mode is differentiated and np.iscomplexobj(x):
                continue  # jax.grad itself refuses it
            with pytest.raises(error, match=message):
                mode(g, x)
            count += 1
    record_property("matrix", count)


PRODUCTS = {
    "code too long": (lambda D, x: D @ jnp.append(x, x[0]), ValueError, "D @ x"),
    "code of rank 0": (lambda D, x: D @ x[0], ValueError, "D @ x"),
    "code of rank 3": (lambda D, x: D @ jnp.ones((D.shape[1], 2, 2)) * x[0], ValueError, "D @ x"),
    "signal too short": (lambda D, x: x[:0] @ D, ValueError, "r @ D"),
    "signal of rank 0": (lambda D, x: x[0] @ D, ValueError, "r @ D"),
    "a factor per atom": (lambda D, x: (D * x) @ x, ValueError, "c D: c has shape"),
    "a dictionary": (lambda D, x: (D @ D) * x, ValueError, "Composed: D_1 has|c D: c has shape"),
}
STRUCTURED = [name for name in registry.DICTIONARIES if name not in registry.ARRAYS]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in STRUCTURED[::6] else [SLOW]) for k in STRUCTURED]
)
def test_faults_of_products(kind, record_property):
    D = registry.DICTIONARIES[kind]()
    assert isinstance(D, ur.dictionaries.Structured)
    for f, error, message in PRODUCTS.values():
        for mode in MODES:
            with pytest.raises(error, match=message):
                mode(partial(f, D), np.ones(D.shape[1]))
    record_property("matrix", len(PRODUCTS) * len(MODES))


@pytest.mark.slow
def test_faults_of_activations(record_property):
    count = 0
    for build in registry.ACTIVATIONS.values():
        rho = build()
        thresholds = (ur.shrink, ur.activations.nonnegative_threshold)
        for f in (rho, *(lambda x, f=f, rho=rho: f(x, 0.1, rho) for f in thresholds)):
            for mode in (eager, jitted, vmapped):
                with pytest.raises(TypeError, match="is complex128; expected real numbers"):
                    mode(f, y * 1j)
                count += 1
        for f in thresholds:
            for theta in (-0.1, np.nan):
                for mode in MODES:
                    with pytest.raises(ValueError, match="theta must be non-negative"):
                        mode(lambda x, f=f, rho=rho, theta=theta: f(x, theta, rho), y)
                    count += 1
        for what in (None, "abc", {}):
            with pytest.raises(TypeError, match="is not a numeric array"):
                rho(what)
            count += 1
    record_property("matrix", count)


# Sizes and devices: one of each way to loop, of which one by default.
LOOPS = "hyperlista", "lista", "lista_cp", "alista", "lamp", "na_alista", "ada_lista"


def by_default(default):
    return [pytest.param(n, marks=[] if n == default else [SLOW]) for n in LOOPS]


@pytest.mark.parametrize("name", by_default("lista_cp"))
def test_a_thousand_steps(name):
    """Compiled as one step is, and finite; the last code is that of ten times a hundred steps."""
    layer, params = registry.LAYERS[name](1000), params_of(name, 1000)
    path = jax.jit(layer.iterates)(params, D, y)
    assert path.shape == (1000, N) and np.isfinite(path).all()
    np.testing.assert_allclose(jax.jit(layer.apply)(params, D, y), path[-1], rtol=1e-12)
    if name in ("lista", "lista_cp"):  # which start as ISTA, for lam = 0.1
        optimum = jax.jit(partial(ur.pursuit.fista, tol=1e-13))(D, y, 0.1).x
        np.testing.assert_allclose(path[-1], optimum, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", by_default("alista"))
def test_a_hundred_thousand_signals(name):
    layer, params = registry.LAYERS[name](K), params_of(name)
    many = np.random.default_rng(1).normal(size=(100_000, M))
    codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, many)
    assert codes.shape == (100_000, N) and np.isfinite(codes).all()
    one = jax.jit(layer.apply)
    for i in (0, 1, 54_321, 99_999):
        np.testing.assert_allclose(codes[i], one(params, D, many[i]), rtol=1e-9, atol=1e-12)


# Runs with eight devices; they must be asked for before JAX starts.
SHARDED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
sys.path.insert(0, sys.argv[1])
import registry, unrolled as ur

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
D = ur.dictionaries.gaussian(0, 5, 8)
Y = np.random.default_rng(0).normal(size=(64, 5))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
for name, build in registry.LAYERS.items():
    layer = build(3)
    params = layer.init(0, D)
    codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    there = jax.device_put((params, D), whole), jax.device_put(Y, split)
    program = codes.lower(*there[0], there[1]).compile()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in program.as_text(), (name, collective)
    X = program(*there[0], there[1])
    assert X.sharding.is_equivalent_to(split, X.ndim), name
    np.testing.assert_allclose(X, codes(params, D, Y), rtol=1e-9, atol=1e-12, err_msg=name)
print(len(jax.devices()))
"""


@pytest.mark.slow
def test_signals_on_several_devices():
    """The codes are those of one device, and no device waits for another."""
    command = [sys.executable, "-c", SHARDED, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8"
