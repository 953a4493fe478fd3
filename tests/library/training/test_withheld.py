"""Training on measured entries alone: what a layer sees, and what its loss compares."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrolled as ur
from unrolled import dictionaries as ud
from unrolled import training

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
D = RNG.normal(size=(12, 20)) / 12**0.5
Y = RNG.normal(size=(9, 12))
KNOWN = RNG.random((9, 12)) < 0.8


def test_a_layer_sees_a_part_of_the_known_entries_and_the_loss_has_the_rest():
    sample = training.withholding(D, np.where(KNOWN, Y, np.nan), mask=KNOWN, batch=200)
    y, rest, Ds = sample(KEY)
    seen, withheld = np.asarray(Ds.mask) == 1, np.asarray(rest.known)
    whole = np.where(KNOWN, Y, 0)
    rows = [int(np.argmin(np.abs(whole - row).sum(1))) for row in np.asarray(y + rest.Y)]
    np.testing.assert_array_equal(y + rest.Y, whole[rows])
    np.testing.assert_array_equal(seen | withheld, KNOWN[rows])
    assert not (seen & withheld).any() and set(rows) == set(range(9))
    np.testing.assert_array_equal(y, np.where(seen, whole[rows], 0))
    assert abs(withheld.sum() / KNOWN[rows].sum() - 0.4) < 0.05  # 1,900 draws: 4.4 deviations
    assert Ds.base.shape == D.shape  # stored once


def test_the_loss_is_the_error_of_the_withheld_entries():
    y, rest, Ds = training.withholding(D, Y, share=0.3, batch=5)(KEY)
    codes = RNG.normal(size=(2, 5, 20))
    error = np.where(rest.known, codes[-1] @ D.T - (y + rest.Y), 0)
    loss = training.withheld(codes, rest, Ds, y)
    np.testing.assert_allclose(loss, (error**2).sum() / 10, rtol=1e-13)


def test_numbers_of_a_complex_entry_stay_together_and_a_caller_may_draw():
    """Two coils see the same four frequencies; the caller withholds a frequency from both."""
    maps = RNG.normal(size=(2, 4)) + 1j * RNG.normal(size=(2, 4))
    A = ud.fourier((2, 4), axes=(1,)) @ ud.coils(maps)
    signals = np.stack([ud.from_pairs(A @ ud.to_pairs(x)) for x in (3 + 1j) * np.eye(4)])
    y, rest, _ = training.withholding(A, signals, batch=50)(KEY)
    pairs = np.asarray(rest.known).reshape(50, 8, 2)
    assert (pairs[..., 0] == pairs[..., 1]).all() and 0 < pairs.mean() < 1

    def seen(key):
        return jnp.tile(jax.random.bernoulli(key, 0.5, (4,)), 2)

    y, rest, _ = training.withholding(A, signals, seen=seen, batch=50)(KEY)
    pairs = np.asarray(rest.known).reshape(50, 2, 4, 2)
    assert (pairs == pairs[:, :1, :, :1]).all() and 0.3 < pairs.mean() < 0.7
    layer = ur.layers.fista(2, lam=0.2)
    sample = training.withholding(A, signals, batch=3)
    start, adam = layer.init(None, A), optax.adam(0.01)
    fit = ur.fit(layer, start, A, sample, loss=training.withheld, optimizer=adam, steps=2, key=0)
    assert fit.history.records[-1].validation < fit.history.records[0].validation


def test_withheld_entries_train_thresholds_without_codes_or_complete_signals():
    """The trained thresholds explain complete signals better than those of the start."""
    A = ud.gaussian(1, 24, 32)
    Y, X = ur.problems.sampler(A, batch=300, probability=0.06)(KEY)
    known = np.random.default_rng(1).random(Y.shape) < 0.75
    layer, sample = ur.layers.fista(12, lam=0.3), training.withholding(A, Y, mask=known)
    start, adam = layer.init(None, A), optax.adam(0.03)
    fit = ur.fit(layer, start, A, sample, loss=training.withheld, optimizer=adam, steps=60, key=0)

    def error(params):
        masked = jax.vmap(lambda mask, y: layer.apply(params, ud.Masked(A, mask), mask * y))
        return float(ur.metrics.nmse(masked(known.astype(Y.dtype), Y), X))

    assert error(fit.best) < error(start) - 3  # dB


@pytest.mark.filterwarnings("ignore:fit")  # codes of noise
def test_a_batch_of_the_sampler_is_the_validation_of_complex_codes():
    A, layer = ud.Complex.of(D[:, :8] + 1j * D[:, 8:16]), ur.layers.fista(2, lam=0.5)
    sample = training.withholding(A, (Y + 1j * Y[::-1]), batch=4)
    batch, start = sample(KEY), layer.init(None, A)
    how = dict(loss=training.withheld, optimizer=optax.adam(0.01), steps=2, key=0, progress=False)
    fit = ur.fit(layer, start, A, sample, validation=batch, **how)
    y, rest, Ds = batch
    codes = jax.vmap(lambda mask, y: layer.apply(start, ud.Masked._of(A, mask), y))(Ds.mask, y)
    loss = training.withheld(codes[None], rest, Ds, y)
    np.testing.assert_allclose(fit.history.records[0].validation, loss, rtol=1e-6)


def test_signals_are_in_the_dtype_of_the_dictionary():
    """Measurements are often stored in float16; a step computes in float32 or better."""
    y, rest, Ds = training.withholding(D.astype("float32"), Y.astype("float16"), batch=2)(KEY)
    assert y.dtype == rest.Y.dtype == Ds.mask.dtype == np.float32


FAULTS = {
    "share is 1; expected a number between 0 and 1": lambda: training.withholding(D, Y, share=1.0),
    r"mask has dtype float64; expected bool": lambda: training.withholding(D, Y, mask=Y),
    r"seen returns float64 of shape \(12,\); expected bool of shape \(12,\)": lambda: (
        training.withholding(D, Y, seen=lambda key: jnp.ones(12))
    ),
    r"Y has shape \(12, 9\); expected \(signals, 12\); the signals seem": lambda: (
        training.withholding(D, Y.T)
    ),
    "X is NoneType; expected the batch of a sampler": lambda: training.withheld(
        np.zeros((1, 2, 20)), None, D, Y[:2]
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_told(message):
    with pytest.raises((TypeError, ValueError), match=message):
        FAULTS[message]()
