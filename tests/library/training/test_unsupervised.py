"""Signals without codes: the recipe that trains for them, and the advice whether to train."""

import contextlib
import functools
import re
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrolled as ur
from unrolled.pursuit import default_lam
from unrolled.training import (
    Candidate,
    Recommendation,
    _candidates,
    _recommend,
    _unsupervised,
    recommend,
    unsupervised,
)
from unrolled.training._recommend import RULES, _coherence

M, N, K, LAM = 12, 20, 3, 0.1
rng = np.random.default_rng(0)
D = rng.normal(size=(M, N)).astype("f")
D /= np.linalg.norm(D, axis=0)
X = (rng.normal(size=(640, N)) * (rng.random((640, N)) < 0.3)).astype("f")
Y = X @ D.T + 0.02 * rng.normal(size=(640, M)).astype("f")
Y, UNSEEN = Y[:600], Y[600:]


def objectives(layer, params, D=D, Y=UNSEEN, lam=LAM):
    codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y)
    return np.asarray(jax.vmap(ur.pursuit.lasso_objective, (None, 0, 0, None))(D, Y, codes, lam))


def relative(layer, params, Y=Y[-60:]):
    """F / F(0) of the signals held back."""
    return objectives(layer, params, Y=Y) / (Y**2).sum(1) * 2


# From the numbers of FISTA to weights


CONV = ur.dictionaries.Conv(jnp.asarray(rng.normal(size=(2, 1, 3)).astype("f")), (6,))


@pytest.mark.parametrize("D", [D, CONV], ids=["dense", "Conv"])
@pytest.mark.parametrize("of_atoms", [False, True], ids=["one threshold", "thresholds of atoms"])
def test_lfista_cp_from_fista_takes_the_steps_of_fista(D, of_atoms):
    """At random step sizes and thresholds; W = gamma D is rounded where FISTA rounds gamma D'r."""
    few, layer = ur.layers.fista(K), ur.layers.lfista_cp(K, lam=0.0)
    gamma, theta = rng.uniform(0.05, 0.2, (2, K)).astype("f")
    theta = np.broadcast_to(theta[:, None], (K, D.shape[1])) if of_atoms else theta
    params = few.init(None, D)
    params = params._replace(steps=params.steps._replace(gamma=gamma, theta=jnp.asarray(theta)))
    y = rng.normal(size=D.shape[0]).astype("f")
    start = layer.from_fista(params, D)
    layer.check(start, D)
    # The last code of lfista_cp is its best one: the steps are compared by their states.
    state = layer.run(start, D, y)[0].last
    np.testing.assert_allclose(state, few.apply(params, D, y), atol=3e-6)
    again = layer.from_fista(ur.layers.unstack(params), D)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(start)))


def test_from_fista_refuses_params_of_another_depth():
    with pytest.raises(ValueError, match="fista"):
        ur.layers.lfista_cp(K).from_fista(ur.layers.fista(K + 1).init(None, D), D)


# The recipe


QUICK = dict(key=0, steps=120, progress=False)


@pytest.fixture(scope="module")
def trained():
    """The fit of each family that was asked for, `None` by default."""
    return functools.cache(lambda family=None: unsupervised(D, Y, LAM, K, family=family, **QUICK))


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["bcd", "lfista_cp", "fista"])
def test_the_recipe_chooses_by_signals_held_back(trained, family):
    """Of the runs, the one that comes last made `best`; the rate is that of the best trial."""
    fit = trained(None if family == "bcd" else family)  # bcd is the default for a matrix
    guard = LAM if family == "fista" else None
    assert fit.model == ur.layers.FAMILIES[family](K, lam=LAM, guard=guard)
    *trials, last = fit.tried
    assert (last.family, last.steps) == (family, 120)
    assert last.validation == fit.judged["best"] == min(each.validation for each in fit.tried)
    if family == "lfista_cp":
        assert {each.family for each in trials} == {"fista"} and last.start == "fista"
    else:
        assert {(each.family, each.start) for each in fit.tried} == {(family, "init")}
        assert last.rate == min(trials, key=lambda trial: trial.validation).rate
    held_back = relative(fit.model, fit.best).mean()
    assert held_back == pytest.approx(fit.judged["best"], rel=1e-5)
    assert fit.judged["best"] < fit.judged["first"]
    rise = relative(fit.model, fit.best) - relative(fit.model, fit.model.init(None, D))
    assert fit.raised == np.mean(rise > 1e-3) and "of the signals worse" in repr(fit)


@pytest.mark.parametrize(
    ("signals", "worse", "rise", "accepted"),
    [(99, 1, 0.1, True), (99, 2, 0.1, False), (300, 3, 0.1, True), (300, 4, 0.1, False)]
    + [(300, 300, 9e-4, False), (2, 1, 0.2, False)],  # the mean rises
)
def test_a_run_may_make_one_signal_in_a_hundred_worse_and_raise_no_quantile(
    signals, worse, rise, accepted
):
    """All other signals gain 0.01 F(0)."""
    before = np.full(signals, 0.5)
    after = before + np.where(np.arange(signals) < worse, rise, -0.01)
    judge = _unsupervised._Judge(before, np.full(signals, 0.1))
    assert judge.accepts(after) == accepted
    assert judge.raised(after) == (worse / signals if rise > 1e-3 else 0)


FEWER = X * (np.random.default_rng(1).random(X.shape) < 0.3)  # 2 nonzeros in a code instead of 6
FEWER = (FEWER[FEWER.any(1)] @ D.T).astype("f")


@pytest.mark.parametrize(
    ("D", "Y", "reason", "runs"),
    [(D, FEWER, "each run makes more", 5), (np.eye(M, dtype="f"), Y, "is within 1e-05", 1)],
    ids=["worse", "at the optimum"],
)
def test_training_that_gains_nothing_returns_the_untrained_layer_and_says_so(D, Y, reason, runs):
    """Of 53 signals held back, each of four runs makes 2 to 4 worse; the mean gap falls."""
    with pytest.warns(UserWarning, match=f"training gains nothing: .*{reason}") as told:
        fit = unsupervised(D, Y, LAM, K, family="fista", **(QUICK | {"steps": 100}))
    assert len(told) == 1 and len(fit.tried) == runs
    assert (fit.tried[-1].steps, fit.raised) == (0, 0)
    assert all(each.validation < fit.judged["first"] for each in fit.tried[:-1])
    chex.assert_trees_all_equal(fit.best, fit.model.init(None, D))


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["bcd", "lfista_cp"])
def test_the_recipe_comes_nearer_on_unseen_signals_than_fista_and_never_above_zero(trained, family):
    few, zero = ur.layers.fista(K, lam=LAM), (UNSEEN**2).sum(1) / 2
    fit = trained(None if family == "bcd" else family)
    F = objectives(fit.model, fit.best)
    assert F.mean() < objectives(few, few.init(None, D)).mean()
    assert (F <= zero * (1 + 1e-6)).all()


def test_a_trial_with_a_smaller_loss_than_the_last_run_is_the_result(trained, monkeypatch):
    """The last run stays at its start: it takes no step, as if all of its steps had gone wrong."""
    run_stages, (*trials, _) = _unsupervised.run_stages, trained().tried

    def without_steps(*arguments):
        *others, steps, stages, config, loop = arguments
        return run_stages(*others, 0, stages, config, loop)

    monkeypatch.setattr(_unsupervised, "run_stages", without_steps)
    fit = unsupervised(D, Y, LAM, K, callbacks=[lambda record, params: None], **QUICK)
    *others, last = fit.tried
    assert last == min(trials, key=lambda trial: trial.validation) and {*trials} == {
        *others[1:],
        last,
    }
    assert last.validation == fit.judged["best"] < min(each.validation for each in others)
    assert others[0].validation == trained().judged["first"]
    assert fit.history.records[-1].step == 100


def test_the_best_trial_is_the_last_run_unless_something_must_see_that_run(trained, monkeypatch):
    """Bit for bit; `seconds` has the time of all runs, and one bar counts their steps."""
    quick, shown, bar = QUICK | {"steps": 80}, [], _unsupervised.bar
    once = unsupervised(D, Y, LAM, K, **quick)

    @contextlib.contextmanager
    def counted(steps, progress):
        shown.append(steps)
        with bar(steps, progress):
            yield lambda record, params: shown.append(record.step)

    monkeypatch.setattr(_unsupervised, "bar", counted)
    records = []
    again = unsupervised(D, Y, LAM, K, callbacks=[lambda r, _: records.append(r)], **quick)
    chex.assert_trees_all_equal(again.best, once.best)
    assert again.tried == once.tried and len(once.tried) == 3  # the last run repeats a trial
    assert [record.step for record in records] == [0, 50, 80]
    assert shown == [4 * 80] + 4 * [0, 50, 80]
    assert _unsupervised.run_lengths(ur.lfista_cp(K), 2000) == [100] * 4 + [500, 2000]
    assert _unsupervised.run_lengths(ur.layers.bcd(K), 2000) == [100] * 3 + [2000]
    assert again.seconds > again.history.records[-1].seconds > 0


@pytest.mark.slow
def test_signals_of_unequal_size_count_alike_if_the_loss_is_relative():
    """Each loss is smaller for the run that minimises it."""
    sizes, lam = np.where(np.arange(600) % 2, 8, 0.5)[:, None].astype("f"), 0.05
    large, unseen = sizes * Y, sizes[:40] * UNSEEN
    zero = np.sum(unseen**2, 1) / 2
    values, shares = {}, {}
    for relative in (False, True):
        fit = unsupervised(D, large, lam, K, key=0, steps=200, relative=relative)
        found = objectives(fit.model, fit.best, Y=unseen, lam=lam)
        values[relative], shares[relative] = found.mean(), (found / zero).mean()
        assert relative == (fit.judged["zero"] == pytest.approx(1))
    assert values[False] < values[True] and shares[True] < shares[False]


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["bcd", "lfista_cp"])
def test_units_scale_the_params_and_nothing_else(trained, family):
    """Powers of two change no rounding: D times 1/8, and signals and lam times 2^10."""
    atom, signal = 2.0**-3, 2.0**10
    whole = trained(None if family == "bcd" else family)
    scaled = D * atom, Y * signal, LAM * signal * atom
    again = unsupervised(*scaled, K, family=family, **QUICK)
    params, expected = again.best, whole.best
    if family == "bcd":
        np.testing.assert_array_equal(params.shared.rank, expected.shared.rank)
        np.testing.assert_allclose(params.shared.size * atom**2, expected.shared.size, rtol=1e-5)
        np.testing.assert_allclose(params.steps.gamma, expected.steps.gamma, rtol=1e-5)
        theta = signal * atom  # theta is in units of lam
    else:
        np.testing.assert_allclose(params.steps.W * atom, expected.steps.W, atol=1e-6)
        theta = signal / atom
    np.testing.assert_allclose(params.steps.theta / theta, expected.steps.theta, atol=1e-6)
    np.testing.assert_allclose(params.steps.beta, expected.steps.beta, atol=1e-6)
    assert again.judged["best"] == pytest.approx(whole.judged["best"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "at"), [("bcd", (0, 20)), ("lfista_cp", (0, 20))])
def test_a_run_that_was_stopped_resumes_bit_for_bit(family, at, tmp_path):
    options = dict(key=0, steps=40, family=family, evaluate_every=10, progress=False)
    whole = unsupervised(D, Y, LAM, K, checkpoint=tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    def stop(record, params):
        if (record.stage, record.step) == at:
            raise Stop

    with pytest.raises(Stop):
        unsupervised(D, Y, LAM, K, checkpoint=tmp_path / "stopped", callbacks=[stop], **options)
    resumed = unsupervised(D, Y, LAM, K, checkpoint=tmp_path / "stopped", **options)
    assert all(map(np.array_equal, jax.tree.leaves(resumed.best), jax.tree.leaves(whole.best)))
    assert resumed.tried == whole.tried
    with pytest.raises(ur.training.CheckpointError, match="steps"):
        unsupervised(D, Y, LAM, K, checkpoint=tmp_path / "stopped", **(options | {"steps": 80}))


def test_a_structured_dictionary_trains_lfista_cp_by_default_and_bcd_on_request():
    signals = rng.normal(size=(40, CONV.shape[0])).astype("f")
    options = dict(depth=2, key=0, steps=2, progress=False)
    fit = unsupervised(CONV, signals, LAM, **options)
    assert fit.model == ur.layers.lfista_cp(2, lam=LAM)
    asked = unsupervised(CONV, signals, LAM, family="bcd", **options)
    of_matrix = unsupervised(ur.dictionaries.dense(CONV), signals, LAM, **options)
    assert asked.model == of_matrix.model == ur.layers.bcd(2, lam=LAM)
    leaves = zip(jax.tree.leaves(asked.best), jax.tree.leaves(of_matrix.best))
    assert all(np.allclose(one, other, rtol=1e-4) for one, other in leaves)


@pytest.mark.few(1)
@pytest.mark.parametrize("family", [None, "bcd"])
def test_a_mask_trains_on_the_known_entries_alone(family):
    """The loss held back is that of D and y with zeros at the entries which are not known."""
    known = np.random.default_rng(1).random(Y.shape) < 0.7
    missing, options = np.where(known, Y, np.nan), dict(key=0, steps=20, progress=False)
    fit = unsupervised(D, missing, LAM, K, mask=known, family=family, **options)
    assert fit.model.family == (family or "lfista_cp")
    each = known[-60:, :, None] * D, (known * Y)[-60:]
    codes = jax.jit(jax.vmap(fit.model.apply, (None, 0, 0)))(fit.best, *each)
    F = jax.vmap(ur.pursuit.lasso_objective, (0, 0, 0, None))(*each, codes, LAM)
    zero = np.sum(each[1] ** 2, 1) / 2
    assert np.mean(F / zero) == pytest.approx(fit.judged["best"], rel=1e-5)
    assert fit.judged["best"] < min(fit.judged["ista"], fit.judged["zero"])


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (dict(lam=-0.1), ValueError, "lam"),
        (dict(lam=np.ones(N)), TypeError, "lam must be a number"),
        (dict(depth=0), ValueError, "depth"),
        (dict(steps=-1), ValueError, "steps"),
        (dict(Y=Y.T), ValueError, "try Y.T"),
        (dict(Y=Y[:1]), ValueError, "one signal"),
        (dict(Y=0 * Y), ValueError, "zero"),
        (dict(reduction="ring"), ValueError, "reduction"),
        (dict(family="bdc"), ValueError, "unknown family 'bdc'; expected one of bcd, .*'bcd'"),
        (dict(family="lista"), ValueError, "unknown family 'lista'"),
        (dict(family=bool), TypeError, "family"),
        (
            dict(D=ur.dictionaries.Complex.of(D + 1j), Y=Y + 1j, family="bcd"),
            ValueError,
            "unsupervised: .*try family='lfista_cp'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_recipe_refuses(changes, error, match):
    arguments = dict(D=D, Y=Y, lam=LAM, key=0) | changes
    with pytest.raises(error, match=match):
        unsupervised(**arguments)


def test_fit_warns_of_fista_without_a_guard():
    few = ur.layers.fista(K, lam=LAM)
    options = dict(optimizer=optax.sgd(1e-4), steps=1, key=0, progress=False)
    with pytest.warns(UserWarning, match=re.escape("fit: fista has no guard")):
        ur.fit(few, few.init(None, D), D, Y, loss=ur.training.lasso_loss(LAM), **options)
    guarded = ur.layers.fista(K, lam=LAM, guard=LAM)
    ur.fit(guarded, few.init(None, D), D, Y, loss=ur.training.lasso_loss(LAM), **options)


# The advice


def candidate(method, K, microseconds, mean, spread=1.0):
    return Candidate(method, K, microseconds, mean, mean / 2, 5 * mean, spread)


EXACT = candidate("lasso_batch", None, 100.0, 1e-9)
ROWS = (
    EXACT,
    candidate("fista", 8, 10.0, 0.1),
    candidate("fista", 16, 20.0, 0.02),
    candidate("bcd", 8, 25.0, 0.03),
    candidate("bcd", 16, 45.0, 5e-3),
    candidate("bcd", 32, 85.0, 5e-4),
)


@pytest.fixture
def priced(monkeypatch):
    """Costs of the caller instead of measured ones: a function of rows and seconds of training."""

    def price(rows=ROWS, seconds=4.0):
        monkeypatch.setattr(_recommend, "measured", lambda sample, gap: rows)
        monkeypatch.setattr(_candidates, "seconds_of_training", lambda *args: seconds)

    price()
    return price


LASSO = "ur.pursuit.lasso_batch(D, Y, 0.1)"


@pytest.mark.parametrize(
    ("gap", "signals", "shown", "why"),
    [
        (1e-3, 10_000, "ur.layers.bcd(32).encode(D, Y)", "ends at a mean gap"),
        (1e-3, 200_000, "TRAIN(depth=16, steps=300)", "repaid after 100,000 signals"),
        (1e-2, 10_000, "ur.layers.bcd(16).encode(D, Y)", "bcd with 16 steps takes 45"),
        (1e-2, 10**6, "TRAIN(depth=8, steps=300)", "25 microseconds instead of 45"),
        (5e-2, 10**9, "ur.layers.fista(16).encode(D, Y)", "no gain from training"),
        (1e-5, 10**9, LASSO, "No untrained layer that costs less"),
        (1e-8, 10, LASSO[:-1] + ", tol=1e-08)", "no gain from training"),
    ],
)
def test_the_cheapest_method_within_the_gap_is_chosen_training_included(
    priced, gap, signals, shown, why
):
    """4 s of training save 40 or 20 microseconds a signal: 100,000 or 200,000 signals repay it."""
    advice = recommend(D, Y[:20], lam=0.1, gap=gap, signals=signals)
    of_training = "ur.training.unsupervised(D, Y, 0.1, key=0, "
    assert repr(advice) == shown.replace("TRAIN(", of_training)
    assert why in advice.why and advice.rows == ROWS and "not sure" not in advice.why


@pytest.mark.parametrize(
    ("signals", "method", "seconds"), [(10_000, "fista", "0.1 s"), (40_000, "lasso_batch", "0.34")]
)
def test_the_choice_is_made_at_the_number_of_signals(priced, signals, method, seconds):
    """A fixed cost of 0.3 s is repaid after 0.3 s / (10 - 1) us = 33,333 signals."""
    exact = EXACT.replace(microseconds=1.0, fixed=0.3)
    priced((exact, candidate("fista", 8, 10.0, 1e-4)))
    advice = recommend(D, Y[:20], lam=0.1, signals=signals)
    assert advice.method == method and "take 0.3 s + 1 microseconds per signal" in advice.why
    assert f"{signals:,} signals should take {seconds}" in advice.why


def test_a_cost_is_that_of_a_call_and_that_of_each_signal(monkeypatch):
    """Timings of 0.25 s and 10 us for each signal give these numbers back; initial params add."""

    def timed(calls):
        sizes = {name: len(call()) for name, call in calls.items()}
        return {
            name: types.SimpleNamespace(seconds=0.25 + 1e-5 * n, spread=1.0)
            for name, n in sizes.items()
        }

    monkeypatch.setattr(_candidates, "in_turns", timed)
    sample = _candidates.Sample.of(jnp.asarray(D), Y[:40], LAM, None)
    exact, *layers = _candidates.measured(sample, 1e-2)
    assert [row.microseconds for row in (exact, *layers)] == pytest.approx([10] * (1 + len(layers)))
    assert exact.fixed == pytest.approx(0.25) and exact.seconds(10**6) == pytest.approx(10.25)
    assert len(layers) > 1 and all(row.fixed > exact.fixed for row in layers)


def test_a_gap_that_the_dtype_cannot_prove_is_told(priced):
    """`tol` is compared with 4 eps: 5e-7 in float32, 4e-3 in float16, 9e-16 in float64."""
    assert "converged" not in recommend(D, Y[:20], lam=0.1, gap=1e-5).why
    assert "float32 leaves duality gaps of up to about 5e-07" in (
        recommend(D, Y[:20], lam=0.1, gap=1e-8).why
    )
    half = (np.asarray(v, np.float16) for v in (D, Y[:20]))
    assert (
        "float16 leaves duality gaps of up to about 4e-03"
        in recommend(*half, lam=0.1, gap=1e-5).why
    )
    with jax.enable_x64(True):
        wide = (np.asarray(v, np.float64) for v in (D, Y[:20]))
        assert "converged" not in recommend(*wide, lam=0.1, gap=1e-8).why


def test_timings_that_disagree_and_codes_without_a_certificate_are_told(priced):
    priced((EXACT, candidate("fista", 8, 10.0, 1e-4, spread=1.7)))
    advice = recommend(D, Y[:20], lam=0.1)
    assert "not sure" in advice.why and "fista with 8 steps differ by a factor of 1.7" in advice.why
    priced((EXACT, candidate("fista", 8, 10.0, np.inf)))
    assert recommend(D, Y[:20], lam=0.1).method == "lasso_batch"
    rival = candidate("SPAMS LARS", None, 1.0, 1e-9)  # a row, but no code of the library
    priced((EXACT, rival))
    assert recommend(D, Y[:20], lam=0.1).method == "lasso_batch"


def test_the_guard_of_a_trained_fista_is_part_of_its_time(priced, monkeypatch):
    """With a mask, `fista` is trained with a guard: 20 signals take 600 us, not 20 times 10 us."""
    timing = types.SimpleNamespace(seconds=600e-6)
    monkeypatch.setattr(_candidates, "in_turns", lambda calls: dict.fromkeys(calls, timing))
    priced((EXACT, candidate("fista", 8, 10.0, 0.1), candidate("fista", 16, 80.0, 1e-4)))
    advice = recommend(D, Y[:20], lam=0.1, mask=np.ones(M, bool), signals=10**9)
    assert advice.method == "fista" and "take 30 microseconds instead of 80" in advice.why


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["bcd", "lfista_cp"])
def test_a_predicted_training_names_its_family_unless_it_is_the_usual_one(name, masked):
    known = np.ones((2, M), bool) if masked else None
    sample = _candidates.Sample.of(jnp.asarray(D), Y[:2], 0.1, known, name)
    options = _candidates.options_of(candidate(name, 4, 1.0, 0.1), sample)
    usual = "lfista_cp" if masked else "bcd"
    assert options.pop("family", usual) == name and options == {"depth": 4, "steps": 300}


def test_the_gaps_of_signals_without_a_certificate_do_not_count():
    sample = _candidates.Sample.of(jnp.asarray(D), Y[:3], 0.1, None)
    np.testing.assert_allclose(sample.gaps(sample.codes), 0, atol=1e-6)
    unknown = sample._replace(best=sample.best * [1, np.nan, 1])
    assert unknown.gaps(sample.codes).shape == (2,)
    assert np.isinf(sample._replace(best=np.full(3, np.nan)).gaps(sample.codes)).all()


@functools.cache
def measured_advice():
    return recommend(D, Y[:40], lam=0.1, gap=1e-2, signals=10)


def test_the_recommended_row_is_the_cheapest_within_the_gap():
    """By the rows that the advice returns; its gaps are those of an independent computation."""
    advice = measured_advice()
    within = [row for row in advice.rows if row.mean <= 1e-2]
    best = min(within, key=lambda row: row.seconds(10))
    assert (advice.method, getattr(advice.layer, "depth", None)) == (best.method, best.K)
    exact = np.asarray(ur.pursuit.lasso_batch(D.astype(float), Y[:40].astype(float), 0.1).x, float)

    def objective(X):
        return ((Y[:40] - X @ D.T.astype(float)) ** 2).sum(1) / 2 + 0.1 * np.abs(X).sum(1)

    for row in advice.rows[1:]:
        layer = ur.layers.FAMILIES[row.method](row.K, lam=0.1)
        gaps = objective(np.asarray(layer.encode(D, Y[:40]), float)) / objective(exact) - 1
        told = row.mean, row.median, row.worst
        assert told == pytest.approx((gaps.mean(), np.median(gaps), gaps.max()), rel=0.02, abs=3e-6)
    assert {row.method for row in advice.rows} == {"lasso_batch", "fista", "bcd"}
    # No more steps where the gap is far below the wanted one.
    last = [row for row in advice.rows if row.method == "fista"]
    assert all(row.mean > 1e-3 for row in last[:-1])


def test_the_code_of_an_advice_is_what_its_fit_runs():
    advice = measured_advice()
    shown, ran = eval(repr(advice), {"ur": ur, "D": D, "Y": Y[:40]}), advice.fit()
    assert jax.tree.all(jax.tree.map(np.array_equal, shown, ran))


def test_the_table_and_the_figure_have_the_rows():
    advice = measured_advice()
    assert advice.table("records") == [row.asdict() for row in advice.rows]
    assert advice.table().splitlines()[0].startswith("| method | K | microseconds | mean |")
    assert advice.table().endswith(advice.why)
    points = [line.get_xydata()[:, 0].tolist() for line in advice.plot().axes[0].lines]
    assert sum(points[:-1], []) == [row.microseconds for row in advice.rows]


def test_the_seconds_of_training_count_all_steps_of_the_recipe(monkeypatch):
    """With a clock of one second a reading: building, then five steps in a second."""
    ticks = iter(range(9))
    monkeypatch.setattr(_unsupervised, "clock", lambda: lambda: float(next(ticks)))
    signals = ur.training.Signals.of(D, Y, 0)
    layer = _unsupervised.trained_layer("bcd", 2, 0.1)
    assert _unsupervised.seconds_of_training(layer, signals, 0.1, 300) == 1 + (3 * 100 + 300) / 5


@pytest.mark.parametrize("kind", ["mask", "Conv", "Complex", "Joint"])
@pytest.mark.slow
def test_every_kind_of_signals_has_an_answer(kind):
    """The gaps are those of codes that fit the known entries; the code of the advice runs."""
    A, signals, mask, lam = D, Y[:9], None, 0.1
    if kind == "mask":
        mask = MASK[:9]
        signals = np.where(mask, signals, np.nan)
    elif kind == "Conv":
        A, signals = CONV, rng.normal(size=(9, CONV.shape[0])).astype("f")
    elif kind == "Complex":
        A = ur.dictionaries.Complex.of((D + 1j * D[::-1]).astype("c8"))
        signals = (signals + 1j * signals[:, ::-1]).astype("c8")
    else:
        A, signals = ur.dictionaries.Joint(jnp.asarray(D), 2), np.stack([signals] * 2, -1)
    advice = recommend(A, signals, lam=lam, gap=1e-2, signals=10, mask=mask)
    assert advice.rows[0].mean < 1e-4 and {row.method for row in advice.rows[1:]} == {"fista"}
    assert all(0 <= row.median <= row.worst < 10 for row in advice.rows)
    names = {"ur": ur, "D": A, "Y": signals, "mask": mask}
    shown, ran = eval(repr(advice), names), advice.fit()
    assert jax.tree.all(jax.tree.map(np.array_equal, shown, ran))
    codes = np.asarray(getattr(ran, "x", ran))
    assert np.isfinite(codes).all() and codes.any() and len(codes) == 9


KNOWN = rng.normal(size=(RULES.fewest_pairs, N)) * (rng.random((RULES.fewest_pairs, N)) < 0.1)
KNOWN = KNOWN.astype("f")


def test_codes_in_parts_have_an_exact_solver_and_where_they_are_known_a_family(priced):
    """The codes that `fit` returns have the form of the signals."""
    C = rng.normal(size=(2, 12, 20))
    A = (C[0] + 1j * C[1]) / np.linalg.norm(C, axis=(0, 1))
    priced((EXACT,))
    X = rng.normal(size=(RULES.fewest_pairs, 20, 2)) @ [1, 1j] * (rng.random((1000, 20)) < 0.1)
    D, X = ur.dictionaries.Complex.of(A.astype("c8")), X.astype("c8")
    Y = (X @ A.T).astype("c8")
    advice = recommend(D, Y[:9], signals=10**6)
    nonzeros = (np.asarray(advice.fit().x) != 0).sum(1).mean()
    assert advice.method == "lasso_batch" and f"{nonzeros:.1f} parts are not 0" in advice.case
    assert advice.fit().x.dtype == np.complex64
    assert recommend(D, ur.dictionaries.to_pairs(Y[:9])).lam == advice.lam
    # Of complex noise a real number has half of the variance; |D_i'n| is below this in most draws.
    noise = (rng.normal(size=(500, 12, 2)) @ [0.1, 0.1j]) @ A.conj()
    silent = recommend(D, Y[:9], noise=0.1 * 2**0.5).lam
    assert 0.9 < np.mean(np.abs(noise).max(1) < silent) and silent < 1.5 * np.abs(noise).max()
    known = recommend(D, Y, X)
    assert known.method == "alista" and "complex codes" in known.why
    assert known.case.startswith("The codes are known. A code has 20 parts of 2 real")
    start = ur.training.prepare(known.method, D, Y, X, depth=2)
    flat = [ur.dictionaries.to_pairs(Z) for Z in (Y, X)]
    assert start.nmse == ur.training.prepare(known.method, D, *flat, depth=2).nmse < -3


@pytest.mark.parametrize(
    ("noise", "coherent", "family"),
    [(0.0, False, "tista"), (0.05, False, "vamp_bg"), (0.0, True, "alista_at")],
)
def test_where_codes_are_known_the_noise_and_the_atoms_choose_a_family(noise, coherent, family):
    atoms = D.copy()
    if coherent:
        atoms[:, 1] = atoms[:, 0]
    signals = KNOWN @ atoms.T + noise * rng.normal(size=(len(KNOWN), M)).astype("f")
    advice = recommend(atoms, signals, KNOWN)
    assert advice.method == family and "codes are known. A code has 2" in advice.case
    assert repr(advice).startswith(f"ur.training.by_recipe('{family}', D, (Y, X), key=0")
    # What is told of the noise counts more than what the sample shows.
    if not coherent:
        assert recommend(atoms, signals, KNOWN, noise=0.05).method == "vamp_bg"


def test_with_known_codes_a_lam_gives_the_error_of_the_lasso_that_they_compete_with():
    """On as many signals as fit() has to beat; the method stays that for known codes."""
    signals = KNOWN @ D.T
    plain, advice = recommend(D, signals, KNOWN), recommend(D, signals, KNOWN, lam=0.2)
    rows = np.unique(np.linspace(0, KNOWN.any(1).sum() - 1, 256).astype(int))
    rows = np.flatnonzero(KNOWN.any(1))[rows]
    errors = np.asarray(ur.pursuit.lasso_batch(D, signals[rows], 0.2).x, float) - KNOWN[rows]
    nmse = 10 * np.log10((errors**2).sum() / (KNOWN[rows].astype(float) ** 2).sum())
    assert "On 256 of your signals, the exact codes of the LASSO with lam = 0.2" in advice.why
    assert f"have an NMSE of {nmse:.1f} dB" in advice.why and "LASSO with lam" not in plain.why
    assert "use ur.pursuit.lasso_batch(D, Y, 0.2) instead" in advice.why and nmse < -1
    assert (plain.lam, advice.lam) == (None, 0.2) and repr(plain) == repr(advice)
    assert "12,345 signals to code" in recommend(D, signals, KNOWN, signals=12_345).case
    tiny = [1e-150 * np.float64(array) for array in (signals, KNOWN)]
    assert f"have an NMSE of {nmse:.1f} dB" in recommend(np.float64(D), *tiny, lam=2e-151).why


@pytest.mark.parametrize("known", [False, True], ids=["signals", "codes"])
def test_zero_atoms_are_named_once_and_change_nothing_else(priced, known):
    """lam of the noise, coherence and method are those of the dictionary without these atoms."""
    priced((EXACT,))
    dead = np.insert(D, [3, 7], 0, axis=1)
    codes = (KNOWN, np.insert(KNOWN, [3, 7], 0, axis=1)) if known else (None, None)
    signals = KNOWN[: None if known else 20] @ D.T
    whole, advice = (
        recommend(A, signals, Z, noise=0.1) for A, Z in zip((D, dead), codes, strict=True)
    )
    told = " Atoms [3, 8] are zero, and no method chooses them."
    assert advice.case.count(told) == 1 and "are zero" not in whole.case
    coherence = f"coherence {_coherence(D)[0]:.2f};"
    assert coherence in advice.case and coherence in whole.case
    assert (advice.method, advice.lam) == (whole.method, whole.lam)
    if not known:
        masked = recommend(dead, signals, noise=0.1, mask=np.ones(M, bool))
        assert masked.lam == advice.lam and not np.asarray(advice.fit().x)[:, [3, 8]].any()


def test_codes_of_few_signals_are_not_enough_to_train_for(priced):
    priced((EXACT,))
    advice = recommend(D, Y[:40], X[:40])
    assert advice.method == "lasso_batch"
    assert "codes of only 40 signals are known, too few to train on" in advice.case


def test_the_advice_says_what_it_saw(priced):
    priced((EXACT,))
    advice = recommend(np.abs(D), np.abs(X[:50]) @ np.abs(D).T, lam=0.01, signals=10**6)
    exact = ur.pursuit.lasso_batch(np.abs(D), np.abs(X[:50]) @ np.abs(D).T, 0.01).x
    assert f"{(np.asarray(exact) != 0).sum(1).mean():.1f} nonzeros on average" in advice.case
    assert f"D is {M} x {N}" in advice.case and "1,000,000 signals" in advice.case
    assert "The codes are not known." in advice.case and "The noise is not" in advice.case


def test_lam_is_that_given_or_of_the_noise_or_of_the_signals(priced):
    priced((EXACT,))
    of_signals = float(f"{default_lam(D, Y):.3g}")
    of_noise = 0.02 * np.sqrt(2 * np.log(N))
    assert recommend(D, Y).lam == of_signals
    given = recommend(D, Y, lam=1 / 3)  # to the last digit
    assert given.lam == 1 / 3 and repr(given) == f"ur.pursuit.lasso_batch(D, Y, {1 / 3})"
    assert recommend(D, Y, noise=0.02).lam == pytest.approx(of_noise, rel=5e-3)
    assert recommend(D[:, :1], Y, noise=0.02).lam > 0
    for scale in (1e-100, 1e100):  # whose square leaves the range, of D'y
        scaled = default_lam(scale * np.float64(D), scale * np.float64(Y)) / scale / scale
        assert scaled == pytest.approx(default_lam(D, Y), rel=1e-12)


MASK = np.random.default_rng(1).random(Y.shape) < 0.7


def test_with_a_mask_the_numbers_are_those_of_the_known_entries(priced):
    """Whatever stands at the others; the code of the advice makes what `fit` returns."""
    priced((EXACT,))
    torn = np.where(MASK, Y, np.nan)
    advice = recommend(D, torn, mask=MASK)
    seen = np.where(MASK, Y, 0)
    assert advice.lam == float(f"{default_lam(D, seen):.3g}") and not np.isnan(advice.data[1]).any()
    rows = np.unique(np.linspace(0, len(Y) - 1, 256).astype(int))
    exact = ur.pursuit.lasso_batch(D, Y[rows], advice.lam, mask=MASK[rows]).x
    assert f"{(np.asarray(exact) != 0).sum(1).mean():.1f} nonzeros on average" in advice.case
    assert f"12 entries; {(~MASK).sum(1).mean():.1f} of them are missing on average" in advice.case
    assert "key=0, mask=mask) instead" in advice.why
    assert repr(advice) == f"ur.pursuit.lasso_batch(D, Y, {advice.lam!r}, mask=mask)"
    shown = eval(repr(advice), {"ur": ur, "D": D, "Y": torn, "mask": MASK})
    np.testing.assert_array_equal(shown.x, advice.fit().x)
    np.testing.assert_array_equal(advice.fit().x[rows], exact)
    other = recommend(D, np.where(MASK, Y, 1e30).astype("f"), mask=MASK)
    assert (other.case, other.why, repr(other)) == (advice.case, advice.why, repr(advice))


def test_one_mask_of_all_signals_is_that_mask_for_each(priced):
    priced((EXACT,))
    one = MASK[0]
    shared, each = (
        recommend(D, Y, noise=0.02, mask=mask) for mask in (one, np.tile(one, (600, 1)))
    )
    assert (shared.case, shared.why, shared.lam) == (each.case, each.why, each.lam)
    norms = np.linalg.norm(D[one], axis=0)  # with all entries, these are 1
    assert shared.lam == pytest.approx(0.02 * np.sqrt(2 * np.log(N)) * norms.mean(), rel=5e-3)
    rows = np.unique(np.linspace(0, len(Y) - 1, 256).astype(int))
    norms = np.mean([np.linalg.norm(D[known], axis=0).mean() for known in MASK[rows]])
    several = recommend(D, Y, noise=0.02, mask=MASK).lam
    assert several == pytest.approx(0.02 * np.sqrt(2 * np.log(N)) * norms, rel=5e-3)
    far = recommend(1e-200 * np.float64(D), np.float64(Y), noise=0.02, mask=MASK).lam
    assert far == pytest.approx(1e-200 * several, rel=1e-2, abs=0)


def test_known_codes_with_a_mask_have_a_solver_of_the_lasso(priced):
    priced((EXACT,))
    advice = recommend(D, KNOWN @ D.T, KNOWN, lam=LAM, mask=MASK[0])
    assert advice.method == "lasso_batch" and advice.case.startswith("The codes are known.")
    assert "pass mask=mask to ur.fit, because training.by_recipe does not" in advice.why
    assert advice.data[2] is None and advice.fit().converged.all()


@pytest.mark.slow
def test_a_complex_signal_may_miss_entries(priced):
    priced((EXACT,))
    A = (rng.normal(size=(12, 20, 2)) @ [1, 1j]) / 5
    signals = (rng.normal(size=(9, 12, 2)) @ [1, 1j]).astype("c8")
    mask = np.arange(12) != rng.integers(0, 12, (9, 1))
    torn = np.where(mask, signals, np.nan)
    advice = recommend(ur.dictionaries.Complex.of(A.astype("c8")), torn, mask=mask)
    assert "24 real numbers; 2.0 of them are missing on average" in advice.case
    found = np.asarray(advice.fit().x)
    for y, known, code in zip(signals, mask, found):
        own = ur.dictionaries.Complex.of(A[known].astype("c8"))
        expected = ur.pursuit.lasso_batch(own, y[None, known], advice.lam).x[0]
        np.testing.assert_allclose(code, expected, atol=1e-3)  # both have a gap of 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bcd", "fista", "fista, masked", "vamp_bg"])
def test_the_fit_of_an_advice_trains(method, monkeypatch):
    """With fewer steps; what is trained is what the code says."""
    if method == "vamp_bg":
        noisy = KNOWN @ D.T + 0.05 * rng.normal(size=(len(KNOWN), M)).astype("f")
        made = recommend(D, noisy, KNOWN).fit(key=1)
        assert made.fit.model.family == "vamp_bg" and made.nmse < made.start.ista
        return
    mask = MASK if "masked" in method else None
    family, options = method.partition(",")[0], {"depth": 4, "steps": 30}
    options |= {"family": "fista"} if family == "fista" else {}
    signals = Y if mask is None else np.where(mask, Y, np.nan)
    advice = Recommendation("", family, "", LAM, (D, signals, None, mask), options)
    fit = advice.fit(key=1)
    assert fit.model.family == family and fit.judged["best"] < fit.judged["ista"]
    told = "".join(f", {name}={value!r}" for name, value in options.items())
    assert repr(advice).endswith(f"key=0{told})") == (mask is None)
    again = unsupervised(D, signals, LAM, key=1, progress=False, mask=mask, **options)
    assert again.judged == fit.judged


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (dict(Y=Y.T), ValueError, "recommend: .*try Y.T"),
        (dict(Y=0 * Y), ValueError, "zero"),
        (dict(Y=np.where(np.arange(M) == 1, np.nan, Y)), ValueError, "NaN"),
        (dict(lam=-1.0), ValueError, "recommend: lam"),
        (dict(noise=-1.0), ValueError, "recommend: noise"),
        (dict(signals=-1), ValueError, "recommend: signals"),
        (dict(gap=0.0), ValueError, "recommend: gap must be positive and finite, got 0"),
        (dict(gap=np.nan), ValueError, "recommend: gap"),
        (dict(gap="no"), TypeError, "recommend: gap"),
        (dict(signals=1.5), TypeError, "recommend: signals"),
        (dict(X=KNOWN[:, :3]), ValueError, "recommend"),
        (dict(X=X[:600, :3]), ValueError, r"and X \(600, 3\); expected \(batch, 12\) and"),
        (dict(mask=1 * MASK), TypeError, "recommend: mask has dtype int64; expected bool"),
        (dict(mask=MASK[:9]), ValueError, r"recommend: mask has shape \(9, 12\); expected \(12,\)"),
        (dict(mask=MASK & False), ValueError, "recommend: the mask marks no entry"),
        (dict(Y=Y.T, mask=MASK.T), ValueError, "recommend: .*try Y.T"),
        (dict(Y=np.where(MASK, np.nan, Y), mask=MASK), ValueError, "recommend: Y has NaN"),
        (dict(X=[[1.0], [2.0, 3.0]]), TypeError, "recommend: X is not a numeric array"),
        (
            *(dict(D=ur.dictionaries.Complex.of(D + 1j), Y=Y), ValueError),
            r"expected \(signals, 24\); signals of a Complex have 2 numbers in each entry",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_advice_refuses(changes, error, match):
    with pytest.raises(error, match=match):
        recommend(**(dict(D=D, Y=Y) | changes))


def test_both_are_where_their_names_are_pinned():
    assert ur.recommend is recommend and isinstance(recommend, types.FunctionType)


def test_the_expected_coherence_is_near_that_of_a_gaussian_dictionary():
    D = np.random.default_rng(0).normal(size=(400, 600))
    found, expected = _coherence(D / np.linalg.norm(D, axis=0))
    assert found == pytest.approx(expected, rel=0.15)


@jax.numpy_dtype_promotion("standard")
def test_steps_fall_along_a_cosine_in_the_units_of_the_params():
    optimizer = _unsupervised._optimizer(2.0, 8.0)
    *state, _ = optimizer.init(1.0)
    state, moves = (*state, _unsupervised._falling(0.1, 4)), []
    for _ in range(4):
        move, state = optimizer.update(jnp.float32(3.0), state)
        moves.append(float(move))
    assert moves == pytest.approx(-0.2 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2, rel=1e-4)
