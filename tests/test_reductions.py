"""A NaN in a long array reaches the result of every public reduction.

XLA's maximum on a CPU loses it from some thousand entries on, alone and fused with a sum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrolled as ur
from unrolled._base import numbers
from unrolled.theory._stability import _measured_weights

N = 5000
_V = np.ones(N, np.float32)
_V[100] = np.nan
ONES = np.ones(N, np.float32)
EYE = ur.dictionaries.Conv(np.ones((1, 1, 1), np.float32), N, boundary="circular")
WIDE = np.stack([ONES, 2 * ONES])  # (2, N)


# Each is called with an array (N,) and must not give a number without NaN.
REDUCTIONS = {
    "nmse": lambda v: ur.metrics.nmse(v[None], ONES[None]),
    "signal_nmse": lambda v: ur.metrics.signal_nmse(v[None], ONES[None]),
    "mean_nmse": lambda v: ur.metrics.mean_nmse(v[None], ONES[None]),
    "mean_nmse, of a code": lambda v: ur.metrics.mean_nmse(ONES[None], v[None]),
    "support_scores": lambda v: ur.metrics.support_scores(v[None], ONES[None]),
    "support_scores, of a code": lambda v: ur.metrics.support_scores(ONES[None], v[None]),
    "psnr": lambda v: ur.metrics.psnr(v, ONES),
    "ssim": lambda v: ur.metrics.ssim(jnp.tile(v, (11, 11)), jnp.tile(ONES, (11, 11))),
    "sparsity": lambda v: ur.metrics.sparsity(v[None]),
    "sparse_feature_penalty": lambda v: ur.training.sparse_feature_penalty([v[None]]),
    "kkt_violation, y": lambda v: ur.metrics.kkt_violation(EYE, v, 0 * ONES, 0.5),
    "kkt_violation, x": lambda v: ur.metrics.kkt_violation(EYE, ONES, v, 0.5),
    "duality_gap, y": lambda v: ur.pursuit.duality_gap(EYE, v, 0 * ONES, jnp.float32(0.5)),
    "duality_gap, x": lambda v: ur.pursuit.duality_gap(EYE, ONES, v, jnp.float32(0.5)),
    "lasso_objective": lambda v: ur.pursuit.lasso_objective(EYE, ONES, v, jnp.float32(0.5)),
    "ista": lambda v: ur.pursuit.ista(EYE, v, 0.5, max_steps=10).gap,
    "fista": lambda v: ur.pursuit.fista(EYE, v, 0.5, max_steps=10).residual,
    "threshold": lambda v: ur.pursuit.threshold(EYE, v, 0.5).gap,
    "lam_max": lambda v: ur.pursuit.lam_max(EYE, v),
    "lam_max, nonnegative": lambda v: ur.pursuit.lam_max(EYE, v, nonnegative=True),
    "lasso": lambda v: ur.pursuit.lasso(EYE, v, 0.5, max_steps=10).residual,
    "lasso, nonnegative": lambda v: (
        ur.pursuit.lasso(EYE, v, 0.5, max_steps=10, nonnegative=True).residual
    ),
    "omp": lambda v: ur.pursuit.omp(EYE, v, sparsity=1).residual,
    "add_noise": lambda v: ur.problems.add_noise(0, v[None], 9.0),
    "loss": lambda v: ur.training.supervised(v[None, None], ONES[None], EYE, ONES[None]),
    "loss of the LASSO": lambda v: ur.training.lasso_loss(0.5)(
        v[None, None], None, EYE, ONES[None]
    ),
    "largest": lambda v: numbers.largest(v),
    "largest, by row": lambda v: numbers.largest(jnp.stack([v, v]), 1),
    "norm": lambda v: numbers.norm(v),
    "at_least": lambda v: numbers.at_least(v, 0.0).sum(),
    "kth_largest": lambda v: ur.activations.kth_largest(v, 1),
    "duality_gap, lam": lambda v: ur.pursuit.duality_gap(EYE, ONES, ONES, v),
    "ista, lam": lambda v: traced(ur.pursuit.ista, v, max_steps=10).gap,
    "codes of a layer": lambda v: ur.layers.ista(2).apply(STEPS, EYE, v),
}
STEPS = ur.layers.Unrolled(None, ur.layers.StepAndThreshold(*np.full((2, 2), 0.1, np.float32)))
# These refuse a known NaN in D; a traced one must reach the result.
OF_DICTIONARIES = {
    "column_norms": lambda v: ur.dictionaries.column_norms(v[:, None]),
    "column_norms of a Conv": lambda v: ur.dictionaries.column_norms(_conv(v)),
    "spectral_norm": lambda v: ur.dictionaries.spectral_norm(v[None]),
    "spectral_norm of a Conv": lambda v: ur.dictionaries.spectral_norm(_conv(v)),
    "normalized": lambda v: ur.dictionaries.normalized(v[:, None]),
    "mutual_coherence": lambda v: ur.theory.mutual_coherence(WIDE * v),
    "mutual_coherence of a Conv": lambda v: ur.theory.mutual_coherence(_conv(v)),
    "weights_coherence": lambda v: ur.theory.weights_coherence(WIDE * v, WIDE),
    "babel": lambda v: ur.theory.babel(jnp.stack([v, 0 * ONES]), 1),
    "diagonal": lambda v: ur.theory.diagonal(v[:, None], v[:, None]),
    "atom_coherence": lambda v: ur.theory.atom_coherence(v[:, None] * np.eye(1, 2), SPARSE),
    "weights of a stability": lambda v: _measured_weights(v[:, None] * np.eye(1, 2), SPARSE),
}
SPARSE = np.eye(N, 2, dtype=np.float32)


# Each maps an array to one of its shape; the sum is what XLA fuses them with.
MAPS = {
    **{f"activations.{name}": ur.activations.by_name(name) for name in ur.activations.NAMED},
    "jax.nn.relu, by name": ur.activations.by_name(jax.nn.relu),
    "shrink": lambda v: ur.shrink(v, 0.5),
    "shrink, many thresholds": lambda v: ur.shrink(v, 0.5 * ONES),
    "shrink, elu": lambda v: ur.shrink(v, 0.5, ur.activations.elu(0.5)),
    "soft_threshold": lambda v: ur.soft_threshold(v, 0.5),
    "hard_threshold": lambda v: ur.activations.hard_threshold(v, 0.5),
    "firm_threshold": lambda v: ur.activations.firm_threshold(v, 0.5, 2.0),
    "nonnegative_threshold": lambda v: ur.activations.nonnegative_threshold(v, 0.5),
    "select_support": lambda v: ur.activations.select_support(v, 0.5, 0.1),
    "keep_largest": lambda v: ur.layers.keep_largest(v, 3),
}


def traced(solve, lam, **options):
    return jax.jit(lambda lam: solve(EYE, ONES, lam, **options))(lam)


def _conv(v):
    return ur.dictionaries.Conv(jnp.stack([v, ONES])[:, None], N + 2)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def has_nan(f, v):
    return all(np.isnan(np.asarray(leaf)).any() for leaf in jax.tree.leaves(f(v)))


def test_what_all_this_is_about():
    """Once XLA keeps NaN, the helper can go."""
    if jax.default_backend() == "cpu":
        assert not np.isnan(jnp.max(jnp.asarray(_V)))


def test_the_larger_of_a_number_and_a_floor():
    x = np.float32([-1, 0.5, 2, np.nan])
    np.testing.assert_array_equal(
        numbers.at_least(jnp.asarray(x), 1.0), np.float32([1, 1, 2, np.nan])
    )


@pytest.mark.few(2)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_nan_reaches_the_result(name):
    f = REDUCTIONS[name]
    assert not has_nan(f, jnp.asarray(0.9 * ONES))
    assert has_nan(f, jnp.asarray(_V))
    assert has_nan(jax.jit(f), jnp.asarray(_V))
    assert has_nan(jax.jit(lambda v: f(v * 2 - 1)), jnp.asarray(_V))


@pytest.mark.slow
def test_a_nan_goes_through_every_map():
    """Alone, and fused with what makes its argument and with a sum of its result."""

    def alone(v):
        return {name: f(v) for name, f in MAPS.items()}

    def fused(v):
        return {name: jnp.sum(f(2 * v - 1)) for name, f in MAPS.items()}

    pair = jnp.stack([_V, _V])
    for run, v in ((alone, _V), (jax.jit(alone), _V), (jax.jit(jax.vmap(fused)), pair)):
        for name, found in run(jnp.asarray(v)).items():
            assert np.isnan(found).any(), name


@pytest.mark.slow
def test_relu_and_celu_are_those_of_jax():
    v = jnp.linspace(-3, 3, 601)
    for ours, theirs in ((ur.activations.relu, jax.nn.relu), (ur.activations.celu(), jax.nn.celu)):
        np.testing.assert_array_equal(ours(v), theirs(v))
        slopes = [jax.vmap(jax.grad(f))(v) for f in (ours, theirs)]
        np.testing.assert_allclose(*slopes, rtol=1e-6)
    assert jax.grad(ur.activations.relu)(0.0) == 0 and jax.grad(ur.activations.celu())(0.0) == 1


@pytest.mark.few(4)
@pytest.mark.parametrize("name", OF_DICTIONARIES)
def test_a_nan_in_a_traced_dictionary_reaches_the_result(name):
    f = jax.jit(OF_DICTIONARIES[name])
    assert not has_nan(f, jnp.asarray(ONES))
    assert has_nan(f, jnp.asarray(_V))


def test_the_guard_refuses_weights_with_nan():
    D = jnp.asarray(WIDE)
    with pytest.raises(ValueError, match="rounding_guard: W has NaN or infinite entries"):
        ur.theory.rounding_guard(D * _V, D, sparsity=1, bound=1.0)


@pytest.mark.slow
def test_a_solver_does_not_call_nan_converged():
    for solve in (ur.pursuit.ista, ur.pursuit.fista, ur.pursuit.threshold):
        assert not solve(EYE, _V, 0.5).converged


def test_a_failed_signal_counts():
    assert ur.metrics.failure_rate(_V[None], ONES[None]) == 1
    assert jax.jit(ur.metrics.failure_rate)(_V[None], ONES[None]) == 1
