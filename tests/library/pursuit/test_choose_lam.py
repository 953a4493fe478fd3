"""The choice of lam: SURE is unbiased, residuals meet the noise, held-out errors are recomputed."""

import jax
import numpy as np
import pytest
from faults import rows
from oracles import normal, unit
from sklearn.linear_model import Lasso

import unrolled as ur
from unrolled import dictionaries, pursuit

M, N, BATCH, NOISE = 16, 24, 12, 0.2
D = unit(normal(0, M, N))
CODES = normal(1, BATCH, N) * (np.random.default_rng(2).random((BATCH, N)) < 0.1)
CLEAN = CODES @ D.T
Y = CLEAN + NOISE * normal(3, BATCH, M)
LAMS = np.geomspace(1, 0.05, 5)
KNOWN = np.random.default_rng(4).random((BATCH, M)) < 0.8


def codes(lam, signals=Y, **options):
    return np.asarray(pursuit.lasso_batch(D, signals, lam, tol=1e-10, **options).x)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_sure_is_an_unbiased_estimate_of_the_squared_error(nonnegative):
    """Over 400 draws of the noise of one signal, at five penalties, within 4 standard errors."""
    draws = CLEAN[1] + NOISE * normal(8, 400, M)
    options = {"nonnegative": nonnegative}
    choice = ur.choose_lam(D, draws, noise=NOISE, among=LAMS, each=True, **options)
    for lam, estimates in zip(LAMS, choice.curve.T, strict=True):
        truth = ((codes(lam, draws, **options) @ D.T - CLEAN[1]) ** 2).mean(1)
        excess = estimates - truth
        assert abs(excess.mean()) <= 4 * excess.std() / np.sqrt(len(draws))


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["complex", "joint"])
def test_the_degrees_of_freedom_of_parts_are_the_trace_of_the_derivative(kind):
    """By differences of the estimates D x, entry by entry, in pairs or in flat signals."""
    complex_ = dictionaries.Complex.of(unit(normal(4, 6, 8) + 1j * normal(5, 6, 8)))
    A = complex_ if kind == "complex" else dictionaries.Joint(unit(normal(6, 6, 8)), 2)
    matrix, y, lam, h = np.asarray(dictionaries.dense(A)), normal(7, A.shape[0]), 0.9, 1e-5
    choice = ur.choose_lam(A, y[None], noise=NOISE, among=[lam])
    moved = np.concatenate([y + h * np.eye(len(y)), y - h * np.eye(len(y)), y[None]])
    fits = np.asarray(pursuit.lasso_batch(A, moved, lam, tol=1e-13).x) @ matrix.T
    df = np.trace(fits[: len(y)] - fits[len(y) : -1]) / (2 * h)
    numbers, squares = 2 if kind == "complex" else 1, ((y - fits[-1]) ** 2).sum()
    sure = squares + NOISE**2 * (2 * df - len(y)) / numbers
    assert choice.curve == pytest.approx([sure / (len(y) / numbers)], rel=1e-4)
    assert df > 1 and choice.nonzeros < df < 2 * choice.nonzeros


@pytest.mark.parametrize("each", [False, True])
def test_the_residual_is_that_of_the_noise(each):
    choice = ur.choose_lam(D, Y, noise=NOISE, by="discrepancy", each=each, mask=KNOWN)
    R = np.where(KNOWN, Y - codes(choice.lam, mask=KNOWN) @ D.T, 0)
    axis = 1 if each else None
    ratio = (R**2).sum(axis) / (NOISE**2 * KNOWN.sum(axis))
    assert ratio[choice.inside] == pytest.approx(1, rel=1e-5) and choice.inside.mean() > 0.5
    if each:  # a signal that is all noise has the code 0, others keep the least penalty
        largest = choice.lam[:, 0] == choice.lams[:, 0]
        assert ((ratio < 1) == largest)[~choice.inside].all() and (~choice.inside).any()


def test_codes_of_the_discrepancy_are_those_of_bpdn():
    choice = ur.choose_lam(D, Y[:2], noise=NOISE, by="discrepancy", each=True)
    for y, x in zip(Y[:2], codes(choice.lam, Y[:2])):
        other = pursuit.bpdn(D, y, NOISE * np.sqrt(M), tol=1e-8).x
        assert x == pytest.approx(np.asarray(other), abs=1e-4)


@pytest.mark.parametrize("mask", [None, KNOWN])
def test_held_out_errors_are_those_of_scikit_learn(mask):
    """Each part of the entries is predicted by a model of the other entries."""
    choice = ur.choose_lam(D, Y, share=0.25, among=LAMS, mask=mask, key=5)
    known = np.ones((BATCH, M), bool) if mask is None else mask
    part_of = np.asarray(jax.random.permutation(jax.random.key(5), M)) % 4
    for lam, error in zip(LAMS, choice.curve, strict=True):
        total = 0.0
        for part in range(4):
            for y, own in zip(Y, known):
                fitted, held = own & (part_of != part), own & (part_of == part)
                alpha = lam * np.sqrt(3 / 4) / fitted.sum()
                model = Lasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=10**5)
                total += ((y - D @ model.fit(D[fitted], y[fitted]).coef_)[held] ** 2).sum()
        assert error == pytest.approx(total / known.sum(), rel=1e-6)
    assert choice.lam == LAMS[choice.curve.argmin()]


@pytest.mark.parametrize("options", [{"noise": NOISE}, {"share": 0.2}, {}])
def test_the_choice_is_near_the_best_penalty(options):
    """Its error is at most 1.5 times the least error, and it lies between the ends of the path."""
    choice = ur.choose_lam(D, Y, **options)
    errors = [((codes(lam) @ D.T - CLEAN) ** 2).mean() for lam in choice.lams]
    assert choice.inside and choice.converged
    assert errors[int(np.flatnonzero(choice.lams == choice.lam)[0])] <= 1.5 * min(errors)
    assert len(choice.lams) == len(choice.curve) == len(choice.nonzeros)


@pytest.mark.parametrize("each", [False, True])
def test_generalised_cross_validation_is_its_formula(each):
    choice = ur.choose_lam(D, Y, among=LAMS, each=each)
    for k, lam in enumerate(LAMS):
        X = codes(lam)
        S, df = ((Y - X @ D.T) ** 2).mean(1), (X != 0).mean(1) * N / M
        S, df = (S, df) if each else (S.mean(), df.mean())
        assert choice.curve.T[k] == pytest.approx(S / (1 - df) ** 2)


def test_a_lam_for_each_signal_has_the_form_that_lasso_batch_takes():
    choice = ur.choose_lam(D, Y, noise=NOISE, each=True)
    assert choice.lam.shape == (BATCH, 1) and codes(choice.lam).shape == (BATCH, N)
    alone = ur.choose_lam(D, Y[3:4], noise=NOISE)
    assert choice.lam[3] == pytest.approx(alone.lam, rel=1e-12)
    best = choice.curve.min(1, initial=np.inf, where=np.isfinite(choice.curve))
    at = np.isclose(choice.lams, choice.lam, rtol=1e-12)
    assert (choice.curve[at] == best).all()


def test_the_units_of_the_signals_are_those_of_lam():
    choice = ur.choose_lam(D, Y, noise=NOISE)
    for unit_ in (2.0**-300, 2.0**300):
        scaled = ur.choose_lam(D, unit_ * Y, noise=unit_ * NOISE)
        assert scaled.lam == unit_ * choice.lam and (scaled.nonzeros == choice.nonzeros).all()


def test_masks_structured_dictionaries_and_single_signals_are_taken():
    torn = np.where(KNOWN, Y, np.nan)
    whole = ur.choose_lam(D, torn, noise=NOISE, mask=KNOWN)
    zeros = ur.choose_lam(D, np.where(KNOWN, Y, 0), noise=NOISE, mask=KNOWN)
    assert whole.lam == zeros.lam and whole.inside
    row = KNOWN[0]
    masked = ur.choose_lam(dictionaries.Masked(D, row), np.where(row, Y, 0), noise=NOISE)
    assert masked.lam == pytest.approx(ur.choose_lam(D, Y, noise=NOISE, mask=row).lam)
    bank = dictionaries.Conv(normal(9, 2, 1, 3), M, boundary="circular")
    conv = ur.choose_lam(bank, Y.reshape(BATCH, *bank.signal_grid), share=0.25)
    dense = ur.choose_lam(dictionaries.dense(bank), Y, share=0.25)
    assert conv.lam == pytest.approx(dense.lam) and conv.curve == pytest.approx(dense.curve)


def test_the_figure_marks_the_choice(tmp_path):
    for each in (False, True):
        fig = ur.choose_lam(D, Y, noise=NOISE, each=each).plot()
        assert [panel.get_ylabel() for panel in fig.axes] == ["SURE per entry", "nonzeros per code"]
        assert len(fig.axes[0].lines) == (4 if each else 2)


test_refusals = rows(
    (
        lambda: ur.choose_lam(D, Y, by="aic"),
        "by must be one of 'sure', 'gcv', 'discrepancy', 'held out'",
    ),
    (lambda: ur.choose_lam(D, Y, by="sure"), "the rule 'sure' takes noise; got noise=None"),
    (lambda: ur.choose_lam(D, Y, noise=1.0, share=0.1), "the rule 'sure' takes noise; got noise=1"),
    (lambda: ur.choose_lam(D, Y, by="gcv", noise=1.0), "'gcv' takes neither noise nor share"),
    (lambda: ur.choose_lam(D, Y, noise=0.0), "noise must be positive and finite, got 0.0"),
    (lambda: ur.choose_lam(D, Y, share=0.6), "share must be above 0 and at most 1/2, got 0.6"),
    (lambda: ur.choose_lam(D, Y, among=[0.1, 0.0]), "among must be positive and finite numbers"),
    (lambda: ur.choose_lam(D, 0 * Y), "all signals are zero"),
    (lambda: ur.choose_lam(D, Y[:, 1:]), "Y has shape .12, 15.; expected"),
    (lambda: ur.choose_lam(D, np.where(KNOWN, Y, np.inf)), "Y has NaN or infinite"),
    (lambda: ur.choose_lam(D, Y, mask=1.0 * KNOWN), TypeError, "mask has dtype float64"),
    (
        lambda: ur.choose_lam(dictionaries.Joint(D, 2), np.stack([Y, Y], 2), nonnegative=True),
        "parts of 2 entries have no sign",
    ),
    (lambda: jax.jit(lambda Y: ur.choose_lam(D, Y).lam)(Y), TypeError, "traced"),
)
