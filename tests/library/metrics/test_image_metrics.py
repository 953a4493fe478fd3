"""Scores of masks and measures of sparsity, against numpy and by hand."""

import jax
import numpy as np
import pytest

from unrolled import metrics
from unrolled.metrics import sparsity

SCORES = ("pixel_accuracy", "mean_class_precision", "mean_class_accuracy", "mean_iou")
NAN = np.nan

# Masks


def oracle(name, predicted, truth, empty):
    """The formulas of the paper for one image, from counts in Python integers."""
    cells = {(p, t): int(((predicted == p) & (truth == t)).sum()) for p in (0, 1) for t in (0, 1)}
    tp, tn, fp, fn = cells[1, 1], cells[0, 0], cells[1, 0], cells[0, 1]
    shares = {
        "pixel_accuracy": [(tp + tn, tp + tn + fp + fn)],
        "mean_class_precision": [(tp, tp + fp), (tn, tn + fn)],
        "mean_class_accuracy": [(tp, tp + fn), (tn, tn + fp)],
        "mean_iou": [(tp, tp + fp + fn), (tn, tn + fp + fn)],
    }[name]
    return np.mean([part / whole if whole else empty for part, whole in shares])


@pytest.mark.parametrize(
    "predicted, truth, expected",
    [
        ([[1, 1], [0, 0]], [[1, 0], [0, 0]], (3 / 4, (1 / 2 + 1) / 2, (1 + 2 / 3) / 2, 7 / 12)),
        ([[1, 0], [0, 0]], [[1, 0], [0, 0]], (1, 1, 1, 1)),
        ([[0, 1], [1, 1]], [[1, 0], [0, 0]], (0, 0, 0, 0)),
        ([[0, 0], [0, 0]], [[1, 0], [0, 0]], (3 / 4, NAN, 1 / 2, 3 / 8)),  # nothing predicted
        ([[1, 0], [0, 0]], [[0, 0], [0, 0]], (3 / 4, 1 / 2, NAN, 3 / 8)),  # no object
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]], (1, NAN, NAN, NAN)),
        ([[1, 1], [1, 1]], [[1, 1], [1, 1]], (1, NAN, NAN, NAN)),  # no background
    ],
)
def test_masks_of_four_pixels_by_hand(predicted, truth, expected):
    for name, score in zip(SCORES, expected):
        found = getattr(metrics, name)(np.array([predicted]), np.array([truth]))
        np.testing.assert_allclose(found, [score], rtol=1e-15, err_msg=name)


def test_the_printed_mpa_is_a_precision_and_not_the_usual_accuracy():
    """TP = 10, TN = 980, FP = 90 and FN = 0: 0.55 and 0.958."""
    truth = np.repeat([True, False], [10, 1070])[None]
    predicted = np.repeat([True, False], [100, 980])[None]
    precision = metrics.mean_class_precision(predicted, truth)
    accuracy = metrics.mean_class_accuracy(predicted, truth)
    np.testing.assert_allclose(precision, [(0.1 + 1) / 2], rtol=1e-15)
    np.testing.assert_allclose(accuracy, [(1 + 980 / 1070) / 2], rtol=1e-15)


@pytest.fixture
def masks():
    """Five images: three random ones, one without an object, one without a prediction."""
    rng = np.random.default_rng(0)
    predicted, truth = rng.uniform(size=(2, 5, 7, 6)) < 0.3
    truth[3] = predicted[4] = False
    return predicted, truth


@pytest.mark.parametrize("name", SCORES)
def test_scores_by_image_and_pooled_are_those_of_counts(masks, name):
    predicted, truth = masks
    score = jax.jit(getattr(metrics, name), static_argnames="pooled")
    for empty in (NAN, 1.0, 0.25):
        found = score(predicted, truth, empty=empty)
        expected = [oracle(name, p, t, empty) for p, t in zip(predicted, truth)]
        assert found.shape == (5,)
        np.testing.assert_allclose(found, expected, rtol=1e-14)
    pooled = score(predicted, truth, pooled=True)
    assert pooled.shape == ()
    np.testing.assert_allclose(pooled, oracle(name, predicted, truth, NAN), rtol=1e-14)
    default = getattr(metrics, name)(predicted, truth)
    np.testing.assert_allclose(default, score(predicted, truth, empty=NAN), rtol=1e-15)


def test_bools_integers_and_probabilities_are_masks(masks):
    predicted, truth = masks
    expected = metrics.mean_iou(predicted, truth)
    for dtype in (np.uint8, np.int32, np.float32, np.float64):
        given = predicted.astype(dtype), truth.astype(dtype)
        np.testing.assert_array_equal(metrics.mean_iou(*given), expected)
    # 0.5 is not above 0.5.
    probabilities = np.where(predicted, np.float32(0.51), np.float32(0.5))
    np.testing.assert_array_equal(metrics.mean_iou(probabilities, truth), expected)


@pytest.mark.parametrize(
    "predicted, truth, message",
    [
        (np.full((1, 2, 2), 2), np.ones((1, 2, 2)), "predicted has the value 2; expected 0 and 1"),
        (np.full((1, 2, 2), -0.1), np.ones((1, 2, 2)), "value -0.1; expected probabilities"),
        (np.full((1, 2, 2), 3.0), np.ones((1, 2, 2)), "try jax.nn.sigmoid of logits"),
        (np.full((1, 2, 2), NAN), np.ones((1, 2, 2)), "predicted has the value nan"),
        (np.ones((1, 2, 2)), np.full((1, 2, 2), 255), "truth has the value 255; expected 0 and 1"),
        (np.ones((1, 2, 2)), np.full((1, 2, 2), 0.5), "truth has the value 0.5; expected 0 and 1"),
    ],
)
def test_values_that_are_no_mask_are_refused_and_nan_under_jit(predicted, truth, message):
    for name in SCORES:
        score = getattr(metrics, name)
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            score(predicted, truth)
    good = np.ones((1, 2, 2), predicted.dtype), np.ones((1, 2, 2), truth.dtype)
    both = (np.concatenate(pair) for pair in zip((predicted, truth), good))
    found = jax.jit(metrics.pixel_accuracy)(*both)
    np.testing.assert_array_equal(found, [NAN, 1])  # the other image is not touched


def test_shapes_of_masks_that_are_refused():
    for predicted, truth, message in (
        (np.ones((1, 2, 2, 1)), np.ones((1, 2, 2)), "expected equal ones"),
        (np.ones(4), np.ones(4), r"expected \(n, ...\)"),
        (np.ones((0, 2, 2)), np.ones((0, 2, 2)), r"masks have shape \(0, 2, 2\)"),
    ):
        for name in SCORES:
            with pytest.raises(ValueError, match=f"{name}: .*{message}"):
                getattr(metrics, name)(predicted, truth)
    huge = jax.ShapeDtypeStruct((2**11, 2**10, 2**10), bool)
    with pytest.raises(ValueError, match="below 2.31 pixels"):
        jax.eval_shape(metrics.mean_iou, huge, huge)


# Sparsity


def numbers(of):
    return np.array([of.zeros, of.below, of.hoyer])


def test_sparsity_is_the_mean_of_what_numpy_finds_for_each_sample():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 5, 2)) * (rng.uniform(size=(4, 3, 5, 2)) < 0.5)
    rows = np.abs(x.reshape(4, 30))
    norms = rows.sum(1) / np.sqrt((rows**2).sum(1))
    expected = (
        (rows == 0).mean(),
        np.mean([(row <= 0.1 * row.max()).mean() for row in rows]),
        np.mean((np.sqrt(30) - norms) / (np.sqrt(30) - 1)),
    )
    found = numbers(jax.jit(sparsity)(x, 0.1))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert expected[0] < expected[1] < 1
    np.testing.assert_allclose(numbers(sparsity(x, 0.1)), found, rtol=1e-15)
    of = sparsity(x, 0.0)
    assert of.zeros == of.below
    # No measure depends on the scale of a sample, also where its square leaves the range.
    scales = np.array([1e-200, 1.0, 1e3, 1e200])[:, None, None, None]
    np.testing.assert_allclose(numbers(sparsity(scales * x, 0.1)), found, rtol=1e-13)


@pytest.mark.parametrize(
    "sample, expected",
    [
        ([0.0, 0.0, 0.0, 0.0], (1, 1, 1)),
        ([0.0, -2.0, 0.0, 0.0], (3 / 4, 3 / 4, 1)),
        ([1.0, -1.0, 1.0, 1.0], (0, 0, 0)),
        ([1.0, 1e-2, 1.1e-2, 1e-4], (0, 2 / 4, (2 - 1.0211 / np.sqrt(1.00022101)) / 1)),
    ],
)
def test_sparsity_by_hand(sample, expected):
    np.testing.assert_allclose(numbers(sparsity(np.array([sample]))), expected, atol=1e-15)


def test_activations_without_zeros_are_judged_by_the_share_that_is_small():
    v = 8 * jax.random.normal(jax.random.key(0), (2, 1000))
    relu, mish = sparsity(jax.nn.relu(v)), sparsity(jax.nn.mish(v))
    assert relu.zeros > 0.4 and mish.zeros == 0
    assert abs(relu.below - mish.below) < 0.15


def test_sparsity_of_what_is_not_finite_is_unknown():
    for bad in (np.nan, np.inf):
        x = np.ones((2, 5000), np.float32)
        x[1, 100] = bad
        assert all(np.isnan(numbers(f(x))).all() for f in (sparsity, jax.jit(sparsity)))


def test_what_sparsity_refuses():
    for shape in ((3,), (0, 3), (3, 0), (3, 1), ()):
        with pytest.raises(ValueError, match=r"sparsity: x has shape .*; expected \(N, ...\)"):
            sparsity(np.ones(shape))
    for fraction in (-0.1, np.nan, 1.5):
        with pytest.raises(ValueError, match="sparsity: fraction must be"):
            sparsity(np.ones((2, 3)), fraction)
    with pytest.raises(TypeError, match="sparsity: x is complex128"):
        sparsity(np.ones((2, 3), complex))
