"""The traceable functions of theory under jit, vmap and grad, in their dtypes; the others in JAX's
float32. Gradients of weights and coherences are those of finite differences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from trees import same

from unrolled import dictionaries, theory

D = oracles.unit(oracles.normal(0, 6, 10))
OTHER = oracles.unit(np.repeat(oracles.normal(1, 6, 5), 2, 1))
TAPS, OTHERS = oracles.normal(2, 2, 1, 3), oracles.normal(3, 2, 1, 3)


def bank(filters):
    return dictionaries.normalize(dictionaries.Conv(filters, 8, boundary="circular"))[0]


TRACEABLE = {
    "mutual_coherence": theory.mutual_coherence,
    "coherence": lambda D: theory.coherence(D, D),
    "atom_coherence": lambda D: theory.atom_coherence(D, D),
    "babel": lambda D: theory.babel(D, 3),
    "diagonal": lambda D: theory.diagonal(D, D),
    "frobenius_weights": theory.frobenius_weights,
    "frobenius_weights, ridge": lambda D: theory.frobenius_weights(D, 0.3),
    "spectral_radius": lambda D: theory.spectral_radius(D, D),
    "pseudo_inverse": theory.pseudo_inverse,
    "generalized_coherence": theory.generalized_coherence,
    "its maximum": lambda D: theory.generalized_coherence(D, only_maximum=True, atoms=[0, 5]).upper,
    "recover_on_supports": lambda D: theory.recover_on_supports(D[:, 0], [D], [[0, 4, 7]]),
}


@pytest.mark.few(6)
@pytest.mark.parametrize("name", TRACEABLE)
def test_what_is_traceable_is_the_same_under_jit_and_row_by_row_under_vmap(name):
    stack = np.stack([D, OTHER])
    rows = jax.jit(jax.vmap(TRACEABLE[name]))(stack)
    # A batch multiplies in another order; linear programs are solved one by one on the host.
    close = 0 if name in ("generalized_coherence", "its maximum") else 1e-12
    for k, one in enumerate(stack):
        for ours, row in zip(jax.tree.leaves(TRACEABLE[name](one)), jax.tree.leaves(rows)):
            np.testing.assert_allclose(ours, row[k], rtol=close, atol=close)


@pytest.mark.parametrize("name", TRACEABLE)
def test_results_have_the_dtype_of_the_dictionary(name):
    for kind in (np.float32, jnp.bfloat16):
        found = jax.eval_shape(TRACEABLE[name], jax.ShapeDtypeStruct(D.shape, kind))
        floats = [leaf for leaf in jax.tree.leaves(found) if leaf.dtype.kind not in "bi"]
        assert floats and {leaf.dtype for leaf in floats} == {np.dtype(kind)}


GRADIENTS = {  # of numbers in arrays
    "frobenius_weights": (theory.frobenius_weights, D),
    "frobenius_weights, ridge": (lambda ridge: theory.frobenius_weights(D, ridge[0]), np.ones(1)),
    "frobenius_weights, D of a ridge": (lambda D: theory.frobenius_weights(D, 0.2), D),
    "frobenius_weights, Conv": (lambda taps: theory.frobenius_weights(bank(taps)).filters, TAPS),
    "babel": (lambda X: theory.babel(dictionaries.normalize(X)[0], 3), 3 * D),
    "generalized_coherence": (
        lambda D: theory.generalized_coherence(D, 1e-13).per_atom_upper, D
    ),
    "its maximum": (
        lambda X: theory.generalized_coherence(dictionaries.normalize(X)[0], 1e-13).upper, 3 * D
    ),
    "its lower bound": (
        lambda X: theory.generalized_coherence(dictionaries.normalize(X)[0], 1e-13).lower, 3 * D
    ),
    "its maximum, Conv": (
        lambda taps: theory.generalized_coherence(bank(taps), 1e-13).upper, TAPS
    ),
}  # fmt: skip


@pytest.mark.few(6)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_finite_differences(name):
    """h^2 = 1e-10 times third derivatives of order 1e2; the coherence is smooth at a vertex."""
    function, x = GRADIENTS[name]
    rng, h = np.random.default_rng(6), 1e-5
    direction = rng.normal(size=x.shape)
    weight = rng.normal(size=jax.eval_shape(function, x).shape)
    value = jax.jit(jax.value_and_grad(lambda x: jnp.sum(function(x) * weight)))
    slope = np.vdot(value(x)[1], direction)
    numeric = (value(x + h * direction)[0] - value(x - h * direction)[0]) / (2 * h)
    assert slope == pytest.approx(float(numeric), rel=1e-6, abs=1e-7)


@pytest.mark.slow
def test_convolutions_have_the_same_coherence_under_jit_and_vmap():
    D, other = bank(TAPS), bank(OTHERS)
    eager, jitted = theory.generalized_coherence(D), jax.jit(theory.generalized_coherence)(D)
    assert isinstance(eager.W, dictionaries.Conv) and eager.W.shape == D.shape
    assert same(jax.tree.leaves(eager), jax.tree.leaves(jitted))
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), D, other)
    batch = jax.vmap(theory.generalized_coherence)(stack)
    assert batch.upper[0] == eager.upper and batch.per_atom_upper.shape == (2, D.shape[1])


HOST = {
    "uniqueness": lambda D: theory.uniqueness([D], [1]).bounds,
    "stability": lambda D: theory.stability([D], [1], 0.1, 0.1).delta,
    "is_feasible": lambda D: theory.is_feasible(D[:, 0], [D], [np.eye(10)[0]], [1], 0.0).residuals,
}


@pytest.mark.parametrize("name", HOST)
def test_host_functions_answer_in_float64_for_atoms_of_float32_also_where_jax_has_no_other(name):
    expected = HOST[name](D)
    for x64 in (True, False):
        with jax.enable_x64(x64):
            found = HOST[name](D.astype(np.float32))
        assert found.dtype == np.float64 and found == pytest.approx(expected, rel=1e-5, abs=1e-7)
