"""What `compare` says by an independent sample of the class, and by proofs of single codes."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrolled as ur
from unrolled import theory
from unrolled.compare import compare

pytestmark = pytest.mark.usefixtures("quick_compilation", "float32_by_default")

with jax.enable_x64(False):
    D = ur.dictionaries.gaussian(0, 20, 30)
    Y, X = ur.problems.sampler(D, 64, probability=0.1)(1)
    LAYER, FISTA = ur.layers.ista(4), ur.layers.fista(4)
    METHODS = {
        "ISTA": (LAYER, LAYER.init(None, D)),
        "FISTA": (FISTA, FISTA.init(None, D)),
    }


def test_a_drawn_sample_bounds_the_errors_of_every_layer():
    found = compare({**METHODS, "codes": X}, D, Y, X, sampled=15_000)
    assert set(found.sampled) == {"ISTA", "FISTA"}  # fixed codes are of their own signals alone
    worst = found.sampled["ISTA"]
    assert (worst.signals, worst.drawn) == (15_000, True)
    assert worst.needed == theory.signals_needed(1e-3, 1 - 1e-6, at_once=2)
    assert worst.decibels >= found.curves["ISTA"].quantiles[-1, -1]
    said = r"\| 99.9 % of the class: at most -?\d+\.\d dB \(15,000 draws, confidence 1 - 1e-6\) \|"
    assert re.search(said, found.guarantees_table())
    # Fresh draws of the class keep it: 1e-3 of 4,000, and four standard deviations.
    fresh_Y, fresh_X = ur.problems.sampler(D, 4000, probability=0.1)(5)
    codes = jax.vmap(LAYER.apply, (None, None, 0))(METHODS["ISTA"][1], D, fresh_Y)
    nonzero = (fresh_X != 0).any(1)
    errors = ur.metrics.signal_nmse(codes, fresh_X)[nonzero]
    assert int((errors > worst.decibels).sum()) <= 4 + 4 * 2


def test_held_out_signals_and_a_sample_that_is_too_small():
    found = compare(METHODS, D, Y, X, sampled=(Y[:9], X[:9]))
    bound = found.sampled["FISTA"]
    assert (bound.signals, bound.drawn, bound.decibels) == (9, False, math.inf)
    missing = bound.needed - 9
    assert f"no bound, {missing:,} signals are missing (9 held-out signals" in bound.text()


def test_certified_codes_are_a_column():
    right = np.asarray(X)
    found = compare({"ISTA": METHODS["ISTA"], "right": jnp.asarray(right)}, D, Y, X, certify=True)
    expected = theory.certify_code(D, Y, right, finish=0).certified(Y).mean()
    assert found.certified["right"] == pytest.approx(expected) and expected > 0.5
    # A search from the codes of four steps would find the right ones of many signals.
    codes = jax.vmap(LAYER.apply, (None, None, 0))(METHODS["ISTA"][1], D, Y)
    searched = theory.certify_code(D, Y, codes).certified(Y).mean()
    assert found.certified["ISTA"] < searched
    assert "| certified codes, % |" in found.table().splitlines()[0]
    assert found.table("records")[1]["certified"] == found.certified["right"]
    plain = compare({"right": jnp.asarray(right)}, D, Y, X)
    assert plain.certified is None and "certified" not in plain.table()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sampled=0), "sampled must be at least 1"),
        (dict(sampled=(Y,)), "sampled has 1 entries; expected"),
        (dict(sampled=(Y, X[:3])), "Y has shape"),
    ],
)
def test_faults(options, message):
    with pytest.raises(ValueError, match=message):
        compare({"codes": X}, D, Y, X, **options)


def test_networks_have_neither():
    network = ur.dsc([LAYER])
    methods = {"one": (network, network.init(None, (D,)))}
    with pytest.raises(ValueError, match="sampled and certify are for layers"):
        compare(methods, (D,), Y, (X,), certify=True)
