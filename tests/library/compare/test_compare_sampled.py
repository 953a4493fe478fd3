"""What `compare` says by a sample of the class, by proofs of single codes, and by prediction."""

import functools
import json
import math
import re

import jax
import numpy as np
import pytest

import unrolled as ur
from unrolled import theory
from unrolled.compare import DivergenceWarning, compare

pytestmark = pytest.mark.usefixtures("float32_by_default")

with jax.enable_x64(False):
    D = ur.dictionaries.gaussian(0, 20, 30)
    Y, X = ur.problems.sampler(D, 64, probability=0.1)(1)
    LAYER, FISTA, LAMP = ur.layers.ista(4), ur.layers.fista(4), ur.layers.lamp(4)
    METHODS = {
        "ISTA": (LAYER, LAYER.init(None, D)),
        "FISTA": (FISTA, FISTA.init(None, D)),
    }


@functools.cache
def told():
    """Everything that can be asked of the methods, of codes, and of one that passes messages."""
    options = dict(sampled=64, certify=True, predict=True)  # as many draws as signals: one program
    return compare({**METHODS, "LAMP": (LAMP, LAMP.init(None, D)), "right": X}, D, Y, X, **options)


@pytest.mark.slow
def test_a_drawn_sample_bounds_the_errors_of_every_layer():
    found = compare({**METHODS, "codes": X}, D, Y, X, sampled=15_000)
    assert set(found.sampled) == {"ISTA", "FISTA"}  # fixed codes are of their own signals alone
    worst = found.sampled["ISTA"]
    assert (worst.signals, worst.drawn) == (15_000, True)
    assert worst.decibels >= found.curves["ISTA"].quantiles[-1, -1]
    said = r"\| 99.9 % of the class: at most -?\d+\.\d dB \(15,000 draws, confidence 1 - 1e-6\) \|"
    assert re.search(said, found.guarantees_table())
    # Fresh draws of the class keep it: 1e-3 of 4,000, and four standard deviations.
    fresh_Y, fresh_X = ur.problems.sampler(D, 4000, probability=0.1)(5)
    codes = jax.vmap(LAYER.apply, (None, None, 0))(METHODS["ISTA"][1], D, fresh_Y)
    nonzero = (fresh_X != 0).any(1)
    errors = ur.metrics.signal_nmse(codes, fresh_X)[nonzero]
    assert int((errors > worst.decibels).sum()) <= 4 + 4 * 2


@pytest.mark.slow
def test_a_sample_that_is_too_small():
    found = told()
    assert set(found.sampled) == {"ISTA", "FISTA", "LAMP"}
    bound = found.sampled["FISTA"]
    assert (bound.signals, bound.drawn, bound.decibels) == (64, True, math.inf)
    assert bound.needed == theory.signals_needed(1e-3, 1 - 1e-6, at_once=3)
    assert f"no bound, {bound.needed - 64:,} signals are missing (64 draws" in bound.text()


@pytest.mark.slow
def test_held_out_signals():
    bound = compare(METHODS, D, Y, X, sampled=(Y[:9], X[:9])).sampled["FISTA"]
    assert (bound.signals, bound.drawn, bound.decibels) == (9, False, math.inf)
    missing = bound.needed - 9
    assert f"no bound, {missing:,} signals are missing (9 held-out signals" in bound.text()


def test_certified_codes_are_a_column():
    found = told()
    expected = theory.certify_code(D, Y, np.asarray(X), finish=0).certified(Y).mean()
    assert found.certified["right"] == pytest.approx(expected) and expected > 0.5
    assert "| certified codes, % |" in found.table().splitlines()[0]
    assert found.table("records")[3]["certified"] == found.certified["right"]
    plain = compare({"right": X}, D, Y, X)
    assert plain.certified is None
    assert not {"certified codes, %", "seconds", "products"} & set(plain.table().split(" | "))


@pytest.mark.slow
def test_certified_codes_are_those_of_least_squares():
    """A search from the codes of four steps would find the right ones of many signals."""
    codes = jax.vmap(LAYER.apply, (None, None, 0))(METHODS["ISTA"][1], D, Y)
    searched = theory.certify_code(D, Y, codes).certified(Y).mean()
    assert told().certified["ISTA"] < searched


def test_predictions_stand_beside_the_median():
    found = told()
    predicted, median = found.predicted["LAMP"], found.curves["LAMP"].quantiles[:, 1]
    of = [float((X != 0).mean()), float((X**2).sum()) / int((X != 0).sum())]
    options = dict(probability=of[0], variance=of[1], params=LAMP.init(None, D))
    expected = theory.state_evolution(LAMP, D, **options)
    np.testing.assert_allclose(predicted.nmse, expected.nmse[1:], atol=1e-4)
    rate = theory.local_rate(20, 30, round(30 * of[0]), weights="dictionary").accelerated
    assert predicted.rate == pytest.approx(20 * math.log10(rate))
    row = found.predictions_table().splitlines()[4]
    assert f" {median[-1]:.1f} / {predicted.nmse[-1]:.1f} | {predicted.rate:.1f} |  |" in row
    record = found.table("records")[2]
    assert record["median_nmse"] == pytest.approx(median[-1])
    assert record["predicted_nmse"] == pytest.approx(predicted.nmse[-1])
    assert json.loads(found.to_json())["predicted"]["LAMP"]["rate"] == pytest.approx(predicted.rate)
    # In the figure: a row more, circles for what is predicted, and a line of the slope of the rate.
    panel = found.plot().axes[6]
    circles = [line for line in panel.lines if line.get_fillstyle() == "none"]
    np.testing.assert_allclose([line.get_ydata() for line in circles], [predicted.nmse])
    dotted = [line.get_ydata() for line in panel.lines if line.get_linestyle() == ":"]
    slopes = np.concatenate([np.diff(line) for line in dotted])
    assert np.any(np.isclose(slopes, predicted.rate)) and np.any(
        np.isclose(slopes, found.predicted["ISTA"].rate)
    )


def test_what_has_no_prediction_says_why():
    found = told().predicted
    assert set(found) == {"ISTA", "FISTA", "LAMP"}
    assert found["FISTA"] == (None, None, "none is known for this family and its options")
    # One step of ISTA on a support is I - D_S'D_S / L; its rate is that of the last weights.
    rng = np.random.default_rng(0)
    s, A = round(30 * float((X != 0).mean())), np.asarray(D, float)
    gamma = float(METHODS["ISTA"][1].steps.gamma[-1])
    supports = [rng.permutation(30)[:s] for _ in range(5)]
    radii = [np.abs(np.linalg.eigvalsh(np.eye(s) - gamma * A[:, S].T @ A[:, S])) for S in supports]
    expected = 20 * math.log10(np.median([np.max(r) for r in radii]))
    assert found["ISTA"].rate == pytest.approx(expected, rel=1e-4)
    assert told().predicted["LAMP"].remark == ""


@pytest.mark.slow
def test_predictions_that_do_not_hold_are_left_out():
    tista, at = ur.layers.tista(4), ur.layers.alista_at(4, onsager=True)
    trained = at.init(None, D)
    W = trained.shared._replace(W=1.1 * trained.shared.W)
    noisy = Y + 0.05 * jax.random.normal(jax.random.key(3), Y.shape)
    methods = {
        "tista": (tista, tista.init(None, D)),
        "trained": (at, trained._replace(shared=W)),
        "em": (em := ur.layers.vamp_bg(4, em=True), em.init(None, D)),
    }
    found = compare(methods, D, noisy, X, predict=True)
    assert all(p.nmse is None and p.rate is None for p in found.predicted.values())
    for name, words in {"tista": "divergence", "trained": "not that of", "em": "noise"}.items():
        assert words in found.predicted[name].remark
        assert found.predicted[name].remark in found.predictions_table()
    bad = ur.dictionaries.ill_conditioned(0, 20, 30, 50.0)
    with pytest.warns(DivergenceWarning):
        found = compare({"LAMP": (LAMP, LAMP.init(None, bad))}, bad, X @ bad.T, X, predict=True)
    assert "iid Gaussian" in found.predicted["LAMP"].remark and found.predicted["LAMP"].rate is None


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sampled=0), "sampled must be at least 1"),
        (dict(sampled=(Y,)), "sampled has 1 entries; expected"),
        (dict(sampled=(Y, X[:3])), "Y has shape"),
    ],
)
def test_a_class_that_cannot_be_sampled_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compare({"codes": X}, D, Y, X, **options)
