"""The l1 penalty on features: its value, its gradient, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled.training import sparse_feature_penalty


@pytest.fixture
def features():
    draw = np.random.default_rng(0).normal
    return {"conv2": draw(size=(3, 4, 4, 2)), "conv1": np.maximum(draw(size=(3, 7)), 0)}


WEIGHTS = {"conv1": 0.3, "conv2": 2.0}


def test_it_is_the_mean_over_the_batch_of_the_norm_over_the_elements_of_a_sample(features):
    def expected(name):
        x = features[name]
        return np.mean([np.abs(sample).sum() / sample.size for sample in x])

    # Sums of at most 96 terms of one sign, in float64.
    close = pytest.approx
    total = expected("conv1") + expected("conv2")
    assert float(sparse_feature_penalty(features)) == close(total, rel=1e-13)
    weighted = 0.3 * expected("conv1") + 2 * expected("conv2")
    assert float(sparse_feature_penalty(features, WEIGHTS)) == close(weighted, rel=1e-13)
    order = features["conv1"], features["conv2"]
    for weights in ([0.3, 2.0], (0.3, 2.0), np.array([0.3, 2.0]), jnp.array([0.3, 2.0])):
        assert float(sparse_feature_penalty(order, weights)) == close(weighted, rel=1e-13)
    twice = {name: np.concatenate([x, x]) for name, x in features.items()}
    assert float(sparse_feature_penalty(twice)) == close(total, rel=1e-13)  # of a mean sample


def test_the_gradient_is_the_weighted_sign_over_the_number_of_elements(features):
    features = jax.tree.map(jnp.asarray, features)
    assert (features["conv1"] == 0).any()  # where it is 0
    value, gradient = jax.jit(jax.value_and_grad(sparse_feature_penalty))(features, WEIGHTS)
    for name, x in features.items():
        expected = WEIGHTS[name] * np.sign(x) / x.size
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-14, atol=0)
    assert float(value) == pytest.approx(
        float(sparse_feature_penalty(features, WEIGHTS)), rel=1e-13
    )


def test_weights_may_be_traced_and_dtypes_may_differ():
    by_weight = jax.grad(lambda w: sparse_feature_penalty([jnp.full((2, 3), -4.0)], [w]))
    assert float(by_weight(0.5)) == 4
    features = [jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 5), jnp.float32)]
    penalty = jax.jit(sparse_feature_penalty)(features, jnp.array([1.0, 3.0], jnp.float32))
    assert penalty.dtype == jnp.float32 and float(penalty) == 4
    # 2^17 halves: their sum is no float16, their mean is one.
    assert float(sparse_feature_penalty([jnp.full((2, 2**17), 0.5, jnp.float16)])) == 0.5
    assert np.isnan(sparse_feature_penalty([jnp.full((1, 2), jnp.nan)]))


@pytest.mark.parametrize(
    "features, error, message",
    [
        ({}, ValueError, "there are no features"),
        ((), ValueError, "there are no features"),
        (jnp.ones((2, 2)), TypeError, r"a dict or a sequence of arrays, got ArrayImpl; try \[x\]"),
        ("conv1", TypeError, "a dict or a sequence of arrays, got str"),
        ({"a": jnp.ones(3)}, ValueError, r"features\['a'\] has shape \(3,\); expected \(N, ...\)"),
        ([jnp.ones(())], ValueError, r"features\[0\] has shape \(\)"),
        ([jnp.ones((0, 3))], ValueError, r"features\[0\] has shape \(0, 3\)"),
        ([jnp.ones((2, 3)), jnp.ones((3, 3))], ValueError, r"several sizes, \{0: 2, 1: 3\}"),
        ([jnp.ones((2, 3), int)], TypeError, r"features\[0\] is int64"),
        ([np.ones((2, 3), bool)], TypeError, r"features\[0\] is bool"),
        ({"a": jnp.ones((2, 3), complex)}, TypeError, r"features\['a'\] is complex128"),
        ([[[1.0, 2.0]]], TypeError, r"features\[0\] is list; expected an array"),
    ],
)
def test_features_that_are_refused(features, error, message):
    with pytest.raises(error, match=f"sparse_feature_penalty: .*{message}"):
        sparse_feature_penalty(features)


@pytest.mark.parametrize(
    "weights, error, message",
    [
        ({"conv1": 1.0}, ValueError, r"for \['conv1'\], features are \['conv2', 'conv1'\]"),
        ({**WEIGHTS, "fc": 1.0}, ValueError, r"for \['conv1', 'conv2', 'fc'\], features"),
        ({**WEIGHTS, "conv1": -1e-3}, ValueError, r"weights\['conv1'\] must be non-negative"),
        ({**WEIGHTS, "conv1": np.nan}, ValueError, r"weights\['conv1'\] must be .* not NaN"),
        ({**WEIGHTS, "conv1": np.inf}, ValueError, r"weights\['conv1'\] has NaN or infinite"),
        ({**WEIGHTS, "conv1": np.ones(2)}, ValueError, r"weights\['conv1'\] has shape \(2,\)"),
        ([1.0, 1.0], TypeError, "features are a dict and weights a list"),
        (0.5, TypeError, "features are a dict and weights a float"),
    ],
)
def test_weights_that_are_refused(features, weights, error, message):
    with pytest.raises(error, match=f"sparse_feature_penalty: .*{message}"):
        sparse_feature_penalty(features, weights)


def test_weights_of_a_sequence_that_are_refused(features):
    for weights in ([1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match=r"features are \[0, 1\]; expected one"):
            sparse_feature_penalty(list(features.values()), weights)
    for weights in (0.5, np.ones((2, 2))):
        with pytest.raises(ValueError, match="expected one a layer"):
            sparse_feature_penalty(list(features.values()), weights)
    with pytest.raises(TypeError, match="features are a list and weights a dict"):
        sparse_feature_penalty(list(features.values()), {0: 1.0, 1: 1.0})
