"""One line per method: a name and how it is built. A new line gets the whole conformance suite.

A test sees to it that every family, dictionary, activation and solver of the library has a line.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import unrolled as ur

# Every family of the library as it comes, and lines of its own for options that matter or that it
# needs. Each is called as `build(depth, **options)`.
LAYERS = {
    name: family
    for name, family in ur.layers.FAMILIES.items()
    if family.__module__.startswith("unrolled.")
}
LAYERS |= {
    "ista, elu": partial(ur.layers.ista, activation=ur.activations.elu(0.5)),
    "fista, silu": partial(ur.layers.fista, activation="silu"),
    "lista, untied": partial(ur.layers.lista, tied=False),
    "lista_cp, untied": partial(ur.layers.lista_cp, tied=False),
    "lista_cp, gelu": partial(
        ur.layers.lista_cp, activation=ur.activations.scale(ur.activations.gelu, 8.0)
    ),
    "lista_cp, guard": partial(ur.layers.lista_cp, guard=0.1),
    "lista_cp, nonnegative": partial(ur.layers.lista_cp, nonnegative=True),
    "alista, support": partial(ur.layers.alista, support=(0.1, 0.3)),
    "alista, support, leaky_relu": partial(
        ur.layers.alista, support=(0.2, 0.2), activation=ur.activations.leaky_relu(0.1)
    ),
    "bcd": partial(ur.layers.bcd, block=4),
    # No magnitude of the suite is so near to this part of the largest that rounding decides.
    "alista_rt": partial(ur.layers.alista_rt, ratio=0.6),
    "alista_at, onsager": partial(ur.layers.alista_at, onsager=True, support=(0.1, 0.3)),
    # Noise is assumed: these signals have no sparse codes, and none would be taken.
    "vamp_bg": partial(ur.layers.vamp_bg, noise_ratio=0.3),
    "vamp_bg, em": partial(ur.layers.vamp_bg, em=True, noise_ratio=0.01, damping=0.1),
    "lista_ss": partial(ur.layers.lista_ss, support=(0.1, 0.3)),
    "lista_cpss": partial(ur.layers.lista_cpss, support=(0.1, 0.3), tied=False),
    "glista": partial(ur.layers.glista, gain=0.5, support=(0.1, 0.3)),
    "tista": partial(ur.layers.tista, noise=0.01),
    "liht": partial(ur.layers.liht, sparsity=3),
    "sae": partial(ur.layers.sae, sparsity=3),
    "sae, all": ur.layers.sae,
    "na_alista": partial(ur.layers.na_alista, units=3, threshold=0.3),
}

# The lines whose codes are never negative.
NONNEGATIVE = {"lista_cp, nonnegative", "sae", "sae, all"}

# The first line of each family.
FAMILIES = {}
for _build in LAYERS.values():
    FAMILIES.setdefault(_build(1).family, _build)

# Most cases of these families are slow tests. All cases of another family, which is new, run by
# default, until its name comes into this list.
ESTABLISHED = """
ada_lista alista alista_at alista_rt bcd fista glista hyperlista ista lamp lamp_bg lfista lfista_cp
liht lista lista_cp lista_cpss lista_ss na_alista robust_alista step_lista tilista tista vamp_bg
""".split()
NEW_FAMILIES = set(FAMILIES).difference(ESTABLISHED)

# Each is called without arguments. `MONOTONE` names those that never fall.
ACTIVATIONS = {
    **{name: partial(ur.activations.by_name, name) for name in ur.activations.NAMED},
    "scaled silu": lambda: ur.activations.scale(ur.activations.silu, 5.0),
    "composed elu": lambda: ur.activations.compose(ur.activations.elu(0.9), 3),
    "scaled composition": lambda: ur.activations.scale(
        ur.activations.compose(ur.activations.celu(0.5), 2), 3.0
    ),
    "sum of sigmoids": lambda: ur.activations.sigmoid_sum(0.5, 200.0),
    "sum of tanh": lambda: ur.activations.tanh_sum(0.5, 200.0),
}
MONOTONE = {
    "relu",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "softplus",
    "composed elu",
    "scaled composition",
    "sum of sigmoids",
    "sum of tanh",
}


def _filters(*shape):
    return np.random.default_rng(0).normal(size=shape)


def _unit(seed, m, d):
    """Unit columns, drawn by numpy, which compiles nothing."""
    D = np.random.default_rng([seed, m, d]).normal(size=(m, d))
    return jax.device_put(D / np.linalg.norm(D, axis=0))


def _columns(p, d):
    """Sparse columns: the atoms of `Sparse`."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(p, d)) * (rng.uniform(size=(p, d)) < 0.3)


def _conv(*shape, signal, **options):
    return ur.dictionaries.Conv(_filters(*shape), signal, **options)


def _functions(kind, A):
    """The products of a matrix, by JAX or by numpy, which runs on the host."""
    products = {
        "jax": (
            lambda x: jnp.asarray(A, x.dtype) @ x,
            lambda r: jnp.asarray(A.conj().T, r.dtype) @ r,
        ),
        "numpy": (partial(np.dot, A), partial(np.dot, A.conj().T)),
    }
    return ur.dictionaries.from_functions(*products[kind], A.shape, complex=A.dtype.kind == "c")


def _complex(seed, m, d):
    return np.asarray(_unit(seed, m, d)) + 0.5j * np.asarray(_unit(seed + 1, m, d))


# Each is called without arguments. One of each class comes first: the tests that run few by default
# have these.
DICTIONARIES = {
    "gaussian": lambda: _unit(0, 6, 10),
    "conv, valid": lambda: _conv(2, 1, 3, signal=8),
    "conv, transposed": lambda: _conv(2, 1, 3, signal=8).T,
    "composed": lambda: ur.dictionaries.Composed(_unit(0, 5, 7), _unit(1, 7, 9)),
    "concatenated, conv": lambda: ur.dictionaries.Concatenated(np.eye(8), _conv(2, 1, 3, signal=8)),
    "sparse, conv": lambda: ur.dictionaries.Sparse(_conv(2, 1, 3, signal=8), _columns(12, 10)),
    "masked, conv": lambda: ur.dictionaries.Masked(
        _conv(2, 1, 3, signal=8), np.array([1, 0, 1, 1, 0.5, 0, 1, 1])
    ),
    "functions": lambda: _functions("jax", np.asarray(_unit(0, 6, 10))),
    "functions, numpy": lambda: _functions("numpy", np.asarray(_unit(0, 6, 10))),
    "complex": lambda: ur.dictionaries.Complex(_unit(0, 3, 5), _unit(1, 3, 5) / 2),
    "joint": lambda: ur.dictionaries.Joint(_unit(0, 3, 5), 3),
    "grouped": lambda: ur.dictionaries.Grouped(
        _unit(0, 6, 10), [0, 0, 1, 1, 1, 2, 2, 3, 4, 4], weights=1
    ),
    "fourier": lambda: ur.dictionaries.fourier((2, 3)),
    "coils": lambda: ur.dictionaries.coils(_complex(0, 2, 3)),
    "wavelet": lambda: ur.dictionaries.wavelet((4, 2), "db2", 1),
    "coils, some frequencies, wavelets": lambda: (
        ur.dictionaries.fourier((2, 4), np.arange(4) != 1, axes=(1,))
        @ ur.dictionaries.coils(_complex(0, 2, 4))
        @ ur.dictionaries.wavelet((4,), "haar", 2)
    ),
    "tall": lambda: _unit(0, 7, 4),
    "one atom": lambda: _unit(0, 1, 1),
    "dct": lambda: ur.dictionaries.dct(6, 9),
    "identity_hadamard": lambda: ur.dictionaries.identity_hadamard(8),
    "paley": lambda: ur.dictionaries.paley(13),
    "transversal": lambda: ur.dictionaries.transversal(jax.random.key(0), 2, 5, 12),
    "ill_conditioned": lambda: ur.dictionaries.ill_conditioned(jax.random.key(0), 6, 10, 50.0),
    "conv, valid, stride 2": lambda: _conv(3, 2, 2, signal=6, stride=2),
    "conv, circular": lambda: _conv(2, 1, 3, signal=7, boundary="circular"),
    "conv, circular, stride 2": lambda: _conv(4, 1, 3, signal=7, stride=2, boundary="circular"),
    "conv, circular, long kernel": lambda: _conv(2, 1, 7, signal=5, boundary="circular"),
    "conv, zero, stride 3": lambda: _conv(3, 2, 3, signal=6, stride=3, boundary="zero"),
    "conv 2-D, valid": lambda: _conv(3, 1, 2, 2, signal=(3, 4)),
    "conv 2-D, circular, stride 1 and 2": lambda: _conv(
        2, 1, 2, 3, signal=(3, 4), stride=(1, 2), boundary="circular"
    ),
    "conv 2-D, zero, stride 2": lambda: _conv(4, 1, 2, 2, signal=(3, 4), stride=2, boundary="zero"),
    "conv, valid, dilation 2": lambda: _conv(2, 2, 3, signal=9, stride=2, dilation=2),
    "conv 2-D, circular, dilation 1 and 2": lambda: _conv(
        2, 1, 2, 3, signal=(3, 6), dilation=(1, 2), boundary="circular"
    ),
    "conv, rescaled": lambda: ur.dictionaries.Rescaled(
        _conv(2, 1, 3, signal=6), jnp.linspace(0.5, 1.5, 8)
    ),
    "composed, conv": lambda: ur.dictionaries.Composed(_conv(2, 1, 3, signal=8), _unit(1, 12, 15)),
    "concatenated": lambda: ur.dictionaries.Concatenated(_unit(0, 6, 4), _unit(1, 6, 5)),
    "with identity": lambda: ur.dictionaries.WithIdentity(_unit(0, 6, 4)),
    "with identity, conv, dilation 2": lambda: ur.dictionaries.WithIdentity(
        _conv(2, 2, 3, signal=7, boundary="circular", dilation=2)
    ),
    "sparse": lambda: ur.dictionaries.Sparse(_unit(0, 6, 8), _columns(8, 12)),
    "masked": lambda: ur.dictionaries.Masked(_unit(0, 6, 10), np.arange(6) != 2),
    "masked, functions": lambda: ur.dictionaries.Masked(
        _functions("jax", np.asarray(_unit(0, 6, 10))), np.arange(6) != 2
    ),
    "joint, complex": lambda: ur.dictionaries.Joint(
        ur.dictionaries.Complex(_unit(0, 3, 5), _unit(1, 3, 5)), 2
    ),
    "functions, complex": lambda: _functions("jax", _complex(0, 3, 5)),
    "functions, numpy, complex": lambda: _functions("numpy", _complex(0, 3, 5)),
    "complex, conv": lambda: ur.dictionaries.Complex(
        _conv(2, 1, 3, signal=5), _conv(2, 1, 3, signal=5) / 2
    ),
    "composed, complex first": lambda: ur.dictionaries.Composed(
        ur.dictionaries.Complex.of(_complex(0, 3, 4)), _conv(1, 1, 2, signal=4)
    ),
    "composed, complex last": lambda: ur.dictionaries.Composed(
        _unit(2, 3, 4), ur.dictionaries.Complex.of(_complex(0, 4, 5))
    ),
    "concatenated, complex": lambda: ur.dictionaries.Concatenated(
        _unit(2, 3, 2), ur.dictionaries.Complex.of(_complex(0, 3, 4))
    ),
    "masked, complex": lambda: ur.dictionaries.Masked(
        ur.dictionaries.Complex(_unit(0, 3, 5), _unit(1, 3, 5)), np.array([1.0, 0.0, 0.5])
    ),
    "joint, conv": lambda: ur.dictionaries.Joint(_conv(2, 1, 3, signal=5), 2),
    "nested": lambda: ur.dictionaries.Concatenated(
        ur.dictionaries.Composed(
            _conv(2, 1, 3, signal=8), ur.dictionaries.Sparse(_unit(1, 12, 9), _columns(9, 7))
        ),
        _conv(1, 1, 2, signal=8, boundary="circular"),
    ),
}

# Those that are plain arrays.
ARRAYS = "gaussian", "tall", "one atom", "dct", "identity_hadamard", "paley", "transversal"
ARRAYS += ("ill_conditioned",)


def _alone(solve):
    """A solver of batches for one signal."""

    @functools.wraps(solve)
    def run(D, y, *arguments, **options):
        return jax.tree.map(lambda v: v[0], solve(D, y[None], *arguments, **options))

    return run


# Each is called without arguments, and returns a network and its dictionaries.
NETWORKS = {
    "res_csc": lambda: (
        ur.networks.res_csc(2, lam=0.02),
        tuple(_unit(j, *shape) / 2 for j, shape in enumerate([(6, 8), (8, 10), (10, 8)])),
    ),
    "msd_csc": lambda: (
        ur.networks.msd_csc(2, lam=0.02),
        ur.networks.mixed_scale(0, 6, growth=1, depth=2, dilations=(1, 2)),
    ),
    "deconvolutional": lambda: (
        ur.networks.deconvolutional(2, lam=0.02, p=0.8),
        (_unit(4, 6, 8), _unit(5, 8, 10)),  # with no code at a jump of its threshold
    ),
    "dsc": lambda: (
        ur.dsc([ur.lista_cp(2, lam=0.02), ur.layers.ista(3, lam=0.01)]),
        (_unit(0, 6, 8), _unit(1, 8, 10)),
    ),
    "ml_lista": lambda: (
        ur.networks.ml_lista(2, lam=0.02),
        (_unit(0, 6, 8), _unit(1, 8, 10) / 2),
    ),
}

# The pursuits with a penalty, each called as `solve(D, y, lam, **options)`. The threshold is that
# of the LASSO where D is orthonormal.
SOLVERS = {
    "threshold": ur.pursuit.threshold,
    "ista": ur.pursuit.ista,
    "fista": ur.pursuit.fista,
    "fista, no restart": partial(ur.pursuit.fista, restart=False),
    "half_quadratic": ur.pursuit.half_quadratic,
    "lasso": ur.pursuit.lasso,
    "lasso_batch": _alone(ur.pursuit.lasso_batch),
}

# Every pursuit for one signal, each called as `solve(D, y)`.
PURSUITS = {
    "lasso": partial(ur.pursuit.lasso, lam=0.1),
    "omp": partial(ur.pursuit.omp, sparsity=3),
    "omp_batch": partial(_alone(ur.pursuit.omp_batch), sparsity=3),
    "bpdn": partial(ur.pursuit.bpdn, eps=0.3),
    "lasso_path": partial(ur.pursuit.lasso_path, ratio=np.array([0.9, 0.5, 0.2])),
    "omp, tol": partial(ur.pursuit.omp, tol=0.3),
    "omp, least squares": partial(ur.pursuit.omp, sparsity=3, selection="least_squares"),
    "lasso, elastic and nonnegative": partial(ur.pursuit.lasso, lam=0.1, l2=0.1, nonnegative=True),
    "lasso, ratio": partial(ur.pursuit.lasso, ratio=0.2),
    "basis_pursuit": ur.pursuit.basis_pursuit,
    "threshold": partial(ur.pursuit.threshold, theta=0.1),
    "half_quadratic, p = 1/2": partial(ur.pursuit.half_quadratic, lam=0.1, p=0.5),
}
PURSUITS |= {
    name: partial(solve, lam=0.1) for name, solve in SOLVERS.items() if name != "threshold"
}
