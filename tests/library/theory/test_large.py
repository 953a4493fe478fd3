"""Large dictionaries: no array of d^2 entries, and the values of the whole matrix of products."""

import math
import os
import re
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import AS_USERS
from jax.extend.core import jaxprs_in_params

import unrolled as ur
from unrolled.pursuit import _multilayer
from unrolled.theory import _atom_programs, _codes, _coherence, _convergence, _uniqueness
from unrolled.theory._coherence import row_excess, row_maxima

M, MANY = 4, 5000  # more atoms than a matrix of all products is made for
LARGE = jax.ShapeDtypeStruct((M, MANY), np.float64)


def sizes(jaxpr):
    """The number of entries of every value of a program, of its inner ones too."""
    for equation in jaxpr.eqns:
        yield from (math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


@pytest.mark.parametrize(
    "function",
    [
        lambda W, D: ur.theory.frobenius_weights(D, 0.1),
        lambda W, D: ur.theory.mutual_coherence(D),
        ur.theory.coherence,
        ur.theory.atom_coherence,
        ur.theory.spectral_radius,
        _convergence.atom_products,  # of certify
        lambda W, D: _coherence.product_sizes(W, D, np.dtype("float32")),  # of rounding_guard
        lambda W, D: ur.theory.babel(D, 5),
        lambda W, D: ur.theory.pseudo_inverse(D),
        ur.theory.diagonal,
    ],
)
def test_no_array_has_an_entry_for_each_pair_of_atoms(function):
    traced = jax.make_jaxpr(function)(LARGE, LARGE)
    assert max(sizes(traced.jaxpr)) < MANY**2 / 4


@pytest.mark.slow
def test_tiles_hold_the_values_of_the_whole_matrix():
    """Sizes that do not divide by the side of a tile; sums of m products, in another order."""
    D = ur.dictionaries.gaussian(0, 8, 700)
    W = ur.theory.frobenius_weights(D)
    products, own = np.abs(np.asarray(W).T @ np.asarray(D)), np.abs(np.asarray(D).T @ np.asarray(D))
    np.testing.assert_allclose(row_maxima(W, D, diagonal=True), products.max(1), rtol=1e-14)
    np.fill_diagonal(products, 0)
    np.testing.assert_allclose(row_maxima(W, D), products.max(1), rtol=1e-14)
    np.fill_diagonal(own, 0)
    expected = np.maximum(own - 0.8, 0).sum(1)
    np.testing.assert_allclose(row_excess(D, jnp.asarray(0.8)), expected, atol=1e-12)


@pytest.mark.parametrize("of_W, of_D", [(1, 1), (1e30, 1e30), (1e-30, 1e-30), (1e-30, 1e30)])
def test_the_largest_product_of_many_atoms_is_that_of_float64_from_above(of_W, of_D, monkeypatch):
    """m + 2 roundings of float32, and as much again that it is enlarged by, at any amplitude."""
    monkeypatch.setattr(_coherence, "BLOCK", 1)
    m, rng = 6, np.random.default_rng(0)
    D = rng.normal(size=(m, 31)).astype(np.float32)
    W = rng.normal(size=(m, 31)).astype(np.float32)
    D[0], W[1] = 1e-7 * D[0], 1e-7 * W[1]  # rows of which one holds what the other multiplies
    D[2], W[2] = 1e7 * D[2], 0
    W, D = of_W * W, of_D * D
    eps = float(np.finfo(np.float32).eps)
    exact = (np.abs(W).T.astype(float) @ np.abs(D)).max()
    W, D = W.astype(float), D.astype(float)
    ratio = float(_coherence.product_sizes(W, D, np.dtype("float32"))[1]) / exact
    assert 1 <= ratio <= 1 + 2 * (m + 2) * eps


def test_the_guard_of_many_atoms_multiplies_in_their_dtype():
    """In float64 it takes twice as long."""
    traced = jax.make_jaxpr(lambda W, D: _coherence.product_sizes(W, D, np.dtype("float32")))(
        LARGE, LARGE
    )
    products = re.findall(r"(\w+)\[[\d,]+\] = dot_general", str(traced))
    assert products and set(products) == {"f32"}


def test_products_beside_the_largest_may_vanish_but_not_the_largest():
    """In float32 the entries of two rows of three are zero or infinite, and one product is all."""
    W, D = np.diag([1e-300, 1e200, 0.0]), np.diag([1e200, 1e-280, 1e300])
    found = _coherence._largest_product(W, jnp.asarray(D), np.dtype("float32"))
    np.testing.assert_allclose(found, 1e-80, rtol=2 * 5 * 2.0**-23)


@pytest.mark.few(1)
@pytest.mark.parametrize("s", [9, 10_000])
def test_the_babel_function_of_many_atoms_sorts_few(s):
    D = ur.dictionaries.gaussian(1, 8, 1030)  # 1030^2 is more than are all sorted
    sizes = np.abs(np.asarray(D).T @ np.asarray(D))
    np.fill_diagonal(sizes, 0)
    expected = np.sort(sizes, 1)[:, len(sizes) - min(s, len(sizes)) :].sum(1).max()
    np.testing.assert_allclose(ur.theory.babel(D, s), expected, rtol=1e-13)


@pytest.mark.slow
def test_the_gradient_of_the_babel_function_is_that_of_its_atom():
    """The sum of the 5 largest, of which a difference quotient has an error of about h^2."""
    D = ur.dictionaries.gaussian(2, 4, 1030)
    step = 1e-6 * jax.random.normal(jax.random.key(0), D.shape)
    slope = jnp.sum(jax.grad(lambda D: _coherence._largest_row(D, 5))(D) * step)
    quotient = (_coherence._largest_row(D + step, 5) - _coherence._largest_row(D - step, 5)) / 2
    np.testing.assert_allclose(slope, quotient, rtol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("boundary", ["valid", "circular"])
def test_filters_on_large_pictures_have_the_babel_function_of_small_ones(boundary):
    """From a picture on which all shifts of an atom fit, it does not depend on its size."""
    filters = jax.random.normal(jax.random.key(1), (3, 1, 3, 2))
    small, large = (
        ur.dictionaries.normalize(ur.dictionaries.Conv(filters, shape, boundary=boundary))[0]
        for shape in ((7, 6), (512, 512))
    )
    A = np.asarray(ur.dictionaries.dense(small))
    products = np.abs(A.T @ A)
    np.fill_diagonal(products, 0)
    expected = np.sort(products, 1)[:, -6:].sum(1).max()
    np.testing.assert_allclose(ur.theory.babel(large, 6), expected, rtol=1e-13)


def test_the_pseudo_inverse_keeps_what_many_atoms_hold():
    """1 % of the largest singular value is no rounding, for however many atoms."""
    d = 60_000
    rows = np.stack([np.ones(d), 1e-2 * np.sign(np.sin(np.arange(d)))]).astype(np.float32)
    D = jnp.asarray(rows)
    identity = np.asarray(D, float) @ np.asarray(ur.theory.pseudo_inverse(D), float)
    np.testing.assert_allclose(identity, np.eye(2), atol=1e-3)


def test_programs_of_few_atoms_take_memory_for_few():
    """A quarter of what the products of all pairs take."""
    D = ur.dictionaries.gaussian(0, 4, 3000)
    tracemalloc.start()
    found = ur.theory.generalized_coherence(D, atoms=[0, 7])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.holds and peak < 8 * 3000**2 / 4


def test_singular_values_of_few_columns_take_memory_for_few():
    """A quarter of what a square of all rows takes."""
    A, K = (jax.ShapeDtypeStruct((rows, 3), np.float64) for rows in (3000, 0))
    compiled = jax.jit(_uniqueness.singular_values).lower(A, K).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 3000**2 / 4


@pytest.mark.slow
def test_supports_in_large_pictures_take_memory_for_one_atom(monkeypatch):
    """Half of what their atoms as columns of an identity take; the same factor by both ways."""
    filters = jax.random.normal(jax.random.key(0), (4, 1, 3, 3))
    D = ur.dictionaries.normalize(ur.dictionaries.Conv(filters, (130, 130)))[0]
    k = 300  # above 2**24 entries of k atoms

    def root(D, atoms):
        return _codes._support(_codes._system(D), atoms, jnp.ones(atoms.shape, bool)).root

    compiled = jax.jit(root).lower(D, jnp.arange(k)[None]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * k * D.shape[1] / 2
    atoms = jnp.asarray([[5, 6, 700, 30_000]])
    whole = root(D, atoms)
    monkeypatch.setattr(_codes, "BLOCK", 0)
    np.testing.assert_allclose(root(D, atoms), whole, rtol=1e-12, atol=1e-13)


def test_atoms_that_others_do_not_span_are_found_without_the_products_of_all():
    """Leverages 1, 1 - t^2 about, and far from 1; against the products of all pairs."""
    rng = np.random.default_rng(0)
    A = np.zeros((6, 12))
    A[:4, :10], A[4, 10], A[5, 11] = rng.normal(size=(4, 10)), 1, 1
    for t in (0, 1e-14, 1e-9, 1e-3):
        A[0, 11] = t
        Q = np.linalg.svd(A, full_matrices=False)[2]
        ties = np.abs(Q.T @ Q)
        np.fill_diagonal(ties, 0)
        ties = np.linalg.norm(ties, axis=0)
        alone, nearly = _atom_programs._independent(Q)
        assert alone[10] and alone.sum() + nearly.sum() in (1, 2)
        np.testing.assert_array_equal(alone, ties < _atom_programs.ROUNDING)
        between = (ties >= _atom_programs.ROUNDING) & (ties < _atom_programs._NEARLY_INDEPENDENT)
        np.testing.assert_array_equal(nearly, between)


def pair_among(d, half):
    """Two atoms at the angle 2 half, of singular values 1 : tan(half), and d small ones."""
    pair = np.array([[np.cos(half)] * 2, [np.sin(half), -np.sin(half)]], np.float32)
    D = np.hstack([pair, np.tile(np.float32([[1e-3], [0]]), d)])
    return jnp.asarray(D), jnp.asarray(pair.sum(1) + 0.1 * pair[:, 0])


@pytest.mark.slow
def test_the_derivative_of_basis_pursuit_keeps_what_many_atoms_hold():
    """Two atoms at 4 degrees, of singular values 1 : 0.035: 28 eps, and the solver's error."""
    D, y = pair_among(60_000, np.deg2rad(2))
    code, slope = jax.jvp(lambda y: ur.pursuit.basis_pursuit(D, y).x, (y,), (D[:, 0] - D[:, 1],))
    np.testing.assert_allclose(code[:2], [1.1, 1.0], atol=1e-4)
    np.testing.assert_allclose(slope[:2], [1, -1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["holistic", "ml_basis_pursuit"])
def test_the_codes_of_a_wide_layer_are_those_of_its_support(name):
    """A singular value of 2e-4 is no rounding, which moves the code by 6e-8 / 2e-4."""
    D, y = pair_among(300, 2e-4)
    if name == "holistic":
        code = ur.pursuit.holistic((D,), y, lam=0.001, zeros=()).xs[0]
    else:
        code = ur.pursuit.ml_basis_pursuit((D,), y, (0.001,)).xs[0]
    np.testing.assert_allclose(code[:2], [1.1, 1.0], atol=2e-3)
    assert not np.any(code[2:])


@pytest.mark.slow
def test_zeros_between_wide_layers_all_hold():
    """Two rows of 20,000 at an angle of 1e-3, of d eps = 4e-7 and n eps = 2e-3."""
    B = np.zeros((20_000, 3), np.float32)
    B[:2] = [[1, 1e-3, 0], [1, -1e-3, 0]]
    N, pseudo = _multilayer.null_space(jnp.asarray(B))
    np.testing.assert_allclose(jnp.abs(N).sum(1), [0, 0, 1], atol=1e-3)
    np.testing.assert_allclose(pseudo @ B, np.diag([1, 1, 0]), atol=1e-3)


@pytest.mark.slow
def test_the_spectrum_of_many_atoms_is_whole():
    """The same numbers in float64 cut nothing either; 60,000 eps is 7e-3."""
    halves = 2e-3 * np.sign(np.sin(np.arange(60_000)))
    D = np.stack([np.cos(halves), np.sin(halves)]).astype(np.float32)
    assert np.all(ur.layers.vamp_bg(1, noise_ratio=0.1).init(None, jnp.asarray(D)).shared[0].s > 0)
    small, wide = (
        ur.theory.state_evolution(ur.layers.lamp(3), A, probability=1e-4).nmse
        for A in (D, D.astype(float))
    )
    np.testing.assert_allclose(small, wide, atol=1e-3)


def test_steps_far_from_the_identity_are_measured_on_the_rows_of_weights_and_atoms(monkeypatch):
    D = ur.dictionaries.gaussian(3, 5, 40)
    W = ur.theory.frobenius_weights(D)
    whole = ur.theory.sequence_bound(W, D, 4)
    monkeypatch.setattr(_coherence, "BLOCK", 0)
    np.testing.assert_allclose(ur.theory.sequence_bound(W, D, 4), whole, rtol=1e-12)


MEASURED = """
import jax, numpy as np
import unrolled as ur
D = ur.dictionaries.gaussian(0, 64, 12_000)
ur.theory.babel(D, 10)
ur.analytic.lista_cp(D, depth=2, sparsity=1, bound=1.0)
layer = ur.alista(2)
ur.theory.certify(layer, layer.init(None, D), D, sparsity=1, bound=1.0)
# The maximum of this program alone: what getrusage has is also that of the process that began it.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_twelve_thousand_atoms_fit_into_700_megabytes():
    """Their products alone would take 576 MB in float32 and 1.15 GB in float64."""
    environment = os.environ | AS_USERS | {"JAX_PLATFORMS": "cpu"}
    code = (sys.executable, "-W", "ignore", "-c", MEASURED)
    done = subprocess.run(code, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 700
