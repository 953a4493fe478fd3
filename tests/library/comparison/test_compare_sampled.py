"""What `compare` says by a sample of the class, by proofs of single codes, by exact solvers, and by
prediction.
"""

import functools
import importlib.machinery
import json
import math
import re
import sys
import time
import types

import jax
import numpy as np
import pytest
from forms import each

import unrolled as ur
from unrolled import pursuit, theory
from unrolled.comparison import (
    Cost,
    DivergenceWarning,
    Predicted,
    Proved,
    _promises,
    compare,
)
from unrolled.training import Candidate

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
    assert set(each(found, "sampled")) == {
        "ISTA",
        "FISTA",
    }  # fixed codes are of their own signals alone
    worst = found["ISTA"].sampled
    assert (worst.signals, worst.drawn) == (15_000, True)
    assert worst.decibels >= found["ISTA"].curve.quantiles[-1, -1]
    said = r"\| error of 99.9 % of the class: at most -?\d+\.\d dB "
    said += r"\(15,000 draws, confidence 1 - 1e-6\) \|"
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
    assert set(each(found, "sampled")) == {"ISTA", "FISTA", "LAMP"}
    bound = found["FISTA"].sampled
    assert (bound.signals, bound.drawn, bound.decibels) == (64, True, math.inf)
    assert bound.needed == theory.signals_needed(1e-3, 1 - 1e-6, at_once=3)
    assert f"no bound, {bound.needed - 64:,} signals are missing (64 draws" in bound.text()


@pytest.mark.parametrize("g", [1, 3])
def test_codes_are_drawn_in_parts(g):
    """All entries of a part are drawn or none, as often as in the sample (5 deviations)."""
    joint, n, p = ur.dictionaries.Joint(D, g), 400, 0.1
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.random((64, 30)) < p, g, 1) * rng.normal(size=(64, 30 * g))
    signals = ur.problems.synthesize(joint, codes)
    drawn = np.asarray(_promises.drawn(joint, signals, jax.numpy.asarray(codes), n)[1])
    on = drawn.reshape(n, 30, g) != 0
    assert (on.all(2) == on.any(2)).all()
    share = (codes != 0).mean()
    assert abs(on.mean() - share) < 5 * math.sqrt(share * (1 - share) / (n * 30))


@pytest.mark.slow
def test_held_out_signals():
    bound = compare(METHODS, D, Y, X, sampled=(Y[:9], X[:9]))["FISTA"].sampled
    assert (bound.signals, bound.drawn, bound.decibels) == (9, False, math.inf)
    missing = bound.needed - 9
    assert f"no bound, {missing:,} signals are missing (9 held-out signals" in bound.text()


def test_certified_codes_are_a_column():
    found = told()
    expected = theory.certify_code(D, Y, np.asarray(X), finish=0).certified(Y).mean()
    assert found["right"].certified == pytest.approx(expected) and expected > 0.5
    assert "| certified codes, % |" in found.table(all=True).splitlines()[0]
    assert found.table("records")[3]["certified"] == found["right"].certified
    plain = compare({"right": X}, D, Y, X)
    assert plain["right"].certified is None
    assert not {"certified codes, %", "seconds", "products"} & set(
        plain.table(all=True).split(" | ")
    )


def test_held_out_signals_are_taken_as_they_are():
    pair = Y[:9], X[:9]
    assert all(np.array_equal(*arrays) for arrays in zip(_promises.held_out(D, Y, X, pair), pair))


@pytest.mark.slow
def test_certified_codes_are_those_of_least_squares():
    """A search from the codes of four steps would find the right ones of many signals."""
    codes = jax.vmap(LAYER.apply, (None, None, 0))(METHODS["ISTA"][1], D, Y)
    searched = theory.certify_code(D, Y, codes).certified(Y).mean()
    assert told()["ISTA"].certified < searched


def test_predictions_stand_beside_the_median():
    found = told()
    predicted, median = found["LAMP"].predicted, found["LAMP"].curve.quantiles[:, 1]
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
    assert json.loads(found.to_json())["methods"]["LAMP"]["predicted"]["rate"] == pytest.approx(
        predicted.rate
    )
    # In the figure: a row more, circles for what is predicted, and a line of the slope of the rate.
    panel = found.plot().axes[6]
    circles = [line for line in panel.lines if line.get_fillstyle() == "none"]
    np.testing.assert_allclose([line.get_ydata() for line in circles], [predicted.nmse])
    dotted = [line.get_ydata() for line in panel.lines if line.get_linestyle() == ":"]
    slopes = np.concatenate([np.diff(line) for line in dotted])
    assert np.any(np.isclose(slopes, predicted.rate)) and np.any(
        np.isclose(slopes, found["ISTA"].predicted.rate)
    )


def test_what_has_no_prediction_says_why():
    found = each(told(), "predicted")
    assert set(found) == {"ISTA", "FISTA", "LAMP"}
    unknown = "none is known for this family and its options"
    assert found["FISTA"] == Predicted(None, None, unknown)
    # One step of ISTA on a support is I - D_S'D_S / L; its rate is that of the last weights.
    rng = np.random.default_rng(0)
    s, A = round(30 * float((X != 0).mean())), np.asarray(D, float)
    gamma = float(METHODS["ISTA"][1].steps.gamma[-1])
    supports = [rng.permutation(30)[:s] for _ in range(5)]
    radii = [np.abs(np.linalg.eigvalsh(np.eye(s) - gamma * A[:, S].T @ A[:, S])) for S in supports]
    expected = 20 * math.log10(np.median([np.max(r) for r in radii]))
    assert found["ISTA"].rate == pytest.approx(expected, rel=1e-4)
    assert told()["LAMP"].predicted.remark == ""


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
    assert all(p.nmse is None and p.rate is None for p in each(found, "predicted").values())
    for name, words in {"tista": "divergence", "trained": "differs from", "em": "noise"}.items():
        assert words in found[name].predicted.remark
        assert found[name].predicted.remark in found.predictions_table()
    bad = ur.dictionaries.ill_conditioned(0, 20, 30, 50.0)
    with pytest.warns(DivergenceWarning):
        found = compare({"LAMP": (LAMP, LAMP.init(None, bad))}, bad, X @ bad.T, X, predict=True)
    assert "iid Gaussian" in found["LAMP"].predicted.remark and found["LAMP"].predicted.rate is None


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sampled=0), "sampled must be at least 1"),
        (dict(sampled=(Y,)), "sampled has 1 entries; expected"),
        (dict(sampled=(Y, X[:3])), rf"Y has shape \({len(Y)}, .* and X \(3, "),
    ],
)
def test_a_class_that_cannot_be_sampled_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compare({"codes": X}, D, Y, X, **options)


def certified_problem():
    """A dictionary, layers with params, and signals of codes with 1 to 6 nonzeros."""
    D, layer, taking = ur.dictionaries.identity_hadamard(16), ur.alista(12), ur.layers.alista_rt(12)
    params = ur.analytic.alista(D, depth=12, sparsity=2, bound=1.0)
    X = np.concatenate([ur.problems.bounded(s, (10, 32), s, 1.0) for s in (1, 2, 6)])
    methods = {"analytic": (layer, params), "taking": (taking, taking.init(None, D)), **METHODS}
    fista = ur.layers.fista(4)
    methods = {**methods, "FISTA": (fista, fista.init(None, D))}
    methods["ISTA"] = LAYER, LAYER.init(None, D)
    return D, methods, np.asarray(ur.problems.synthesize(D, X)), X


def test_the_share_of_codes_that_theory_proves_stands_in_the_table():
    """Those of `certify_signals` and `certify_supports`, each with the noise of its signal."""
    D, methods, Y, X = certified_problem()
    found = compare({**methods, "codes": X}, D, Y, X)
    noise = np.abs(Y.astype(float) - X @ np.asarray(D, float).T).sum(1)
    expected = theory.certify_signals(*methods["analytic"], D, X, noise=noise).proved
    assert found["analytic"].proved == Proved(expected.mean(), 30, "")
    assert 0.3 < expected.mean() < 1
    supports = [np.argsort(X == 0, axis=1, kind="stable")[i : i + 10, :s] for i, s in SIZES]
    of = [theory.certify_supports(D, D, S) for S in supports]  # W = D in closed form here
    right = np.concatenate([(s.ratio <= 0.95) & (s.contraction < 1) for s in of])
    assert found["taking"].proved.share == right.mean() and right.any()
    assert found["FISTA"].proved.share is None and found["codes"].proved is None
    assert "| proved codes, % |" in found.table().splitlines()[0]
    shares = [record["proved"] for record in found.table("records")]
    assert shares[:2] == [expected.mean(), right.mean()] and shares[3:] == [None, None]
    assert f"| {found['analytic'].proved.text()} |" in found.guarantees_table()
    assert "Not covered signal by signal: FISTA: a step of fista" in found.guarantees_table()


SIZES = ((0, 1), (10, 2), (20, 6))


def test_what_no_method_proves_is_a_sentence():
    """Noise hides small nonzeros, and the steps of `alista_rt` do not know it."""
    D, methods, Y, X = certified_problem()
    found = compare(methods, D, Y, X, noise=1.0)
    assert {of.share for of in each(found, "proved").values()} == {0.0, None}
    assert "proved" not in found.table().splitlines()[0]
    assert found.table().endswith("none of the first 30 codes for any of these params.")
    assert (
        compare({"FISTA": methods["FISTA"]}, D, Y, lam=0.1)["FISTA"].proved is None
    )  # of LASSO codes


def test_thresholds_below_the_least_prove_no_code():
    D, methods, Y, X = certified_problem()
    layer, params = methods["analytic"]
    lower = params._replace(steps=params.steps._replace(theta=params.steps.theta / 100))
    found = compare({"lower": (layer, lower), "analytic": (layer, params)}, D, Y, X)
    assert found["lower"].proved.share == 0 < found["analytic"].proved.share


def test_only_the_first_codes_are_proved(monkeypatch):
    """As many as keep the products with |W'D| few."""
    D, methods, Y, X = certified_problem()
    monkeypatch.setattr(_promises, "_MOST_PRODUCTS", 7 * 12 * 32**2 + 1)
    found = compare({"analytic": methods["analytic"]}, D, Y[::-1], X[::-1])
    assert found["analytic"].proved.text() == "0 of 7"  # those with six nonzeros


def test_codes_of_a_chain_are_proved_layer_by_layer():
    D, layer = ur.dictionaries.identity_hadamard(8).astype("f4"), ur.alista(6)
    Ds, chain = (D, np.eye(16, dtype="f4")), ur.dsc([layer, ur.alista(6)])
    params = tuple(ur.analytic.alista(A, depth=6, sparsity=1, bound=1.0) for A in Ds)
    X = np.asarray(ur.problems.bounded(0, (20, 16), 1, 1.0), "f4")
    found = compare({"chain": (chain, params)}, Ds, ur.problems.synthesize(D, X), (X, X))
    Y = np.asarray(ur.problems.synthesize(D, X), float)
    noise = np.abs(Y - X.astype(float) @ np.asarray(D, float).T)
    expected = theory.certify_signals(chain, params, Ds, (X, X), noise=(noise.sum(1), 0.0))
    shares = [of["chain"].proved.share for of in found.layers]
    assert shares == [of.proved.mean() for of in expected] and shares[0] > 0.5


# Exact solvers


def lars(codes):
    """A module in the place of SPAMS, whose codes are given, for lam = 0.1 in any units."""
    from scipy.sparse import csc_matrix

    def lasso(signals, atoms, lambda1, mode):
        times = signals.shape[1] // 64  # of the signals, to time it
        assert (signals.shape, atoms.shape, mode) == ((20, 64 * times), (20, 30), 2)
        a = np.linalg.norm(atoms) / np.linalg.norm(D)
        b = np.linalg.norm(signals[:, :64]) / np.linalg.norm(Y)
        assert lambda1 == pytest.approx(0.1 * a * b)
        return csc_matrix(np.tile(codes, (times, 1)).T * b / a)

    module = types.ModuleType("spams")
    module.__spec__ = importlib.machinery.ModuleSpec("spams", None)
    module.lasso = lasso
    return module


def test_exact_solvers_have_rows_with_their_gap_and_cost(monkeypatch):
    """The gap of the codes that all others are measured from is 0; of SPAMS it is measured."""
    optimum = np.asarray(ur.pursuit.lasso_batch(D, Y, 0.1).x)
    monkeypatch.setitem(sys.modules, "spams", lars(0.9 * optimum))
    found = compare(METHODS, D, Y, lam=0.1)
    *_, exact, spams = found.table("records")
    assert (exact["method"], exact["gap"], exact["K"]) == ("exact", 0.0, None)
    assert spams["method"] == "SPAMS LARS" and spams["gap"] > 1e-4
    rebuilt = np.linalg.norm(Y - optimum @ np.asarray(D).T) / np.linalg.norm(Y)
    assert exact["residual"] == pytest.approx(rebuilt, rel=1e-5)
    assert exact["nonzeros"] == pytest.approx((optimum != 0).sum(1).mean(), rel=1e-6)
    for record in (exact, spams):
        assert record["microseconds"] == pytest.approx(1e6 * record["seconds"] / 64)
    assert found.table().splitlines()[0].count("microseconds per signal") == 1
    known = compare(METHODS, D, Y, X, lam=0.1)
    assert known.table("records")[2]["nmse"] == pytest.approx(
        float(ur.metrics.nmse(optimum, X)), abs=1e-3
    )
    assert compare(METHODS, D, Y, X).exact == {}  # nothing was solved


def test_another_module_called_spams_has_no_row(monkeypatch):
    """A folder of that name is a module without anything."""
    module = types.ModuleType("spams")
    module.__spec__ = importlib.machinery.ModuleSpec("spams", None)
    monkeypatch.setitem(sys.modules, "spams", module)
    assert [*pursuit.lasso_solvers([np.eye(2)])] == ["exact"]


def priced(network, exact, trained=None, spread=1.0, gap=0.0):
    """A comparison in which FISTA and an exact solver take given seconds for 64 signals."""
    found = unknown()
    cost = found["FISTA"].cost.replace(seconds=network, spread=spread)
    fista = found["FISTA"].replace(cost=cost, trained=trained)
    curve = found["exact"].curve.replace(gap=np.full(1, gap))
    solver = found["exact"].replace(curve=curve, cost=Cost(exact, None, 1.0))
    return found.replace(methods=found.methods | {"FISTA": fista}, exact={"exact": solver})


@pytest.mark.parametrize(
    "costs, verdict",
    [
        (dict(trained=2.0), "; the training is repaid after 2,000 signals."),
        ({}, "Untrained FISTA with 4 steps takes 16 microseconds and ends at a mean gap"),
        (dict(network=65e-3, exact=1e-3, trained=2.0), "; the training is never repaid."),
        (dict(spread=1.6), "timings of untrained FISTA with 4 steps differ by a factor of 1.6"),
    ],
)
def test_a_sentence_says_after_how_many_signals_a_training_is_repaid(costs, verdict):
    """N = seconds of training / (exact - network, seconds per signal), here of 64 signals."""
    costs = dict(network=1e-3, exact=65e-3) | costs
    found = priced(**costs)
    told = f"Exact codes (lasso_batch) take {_us(costs['exact'])} microseconds per signal."
    assert found.payoff().startswith(told) and verdict in found.payoff()
    assert ("After 2 s of training" in found.payoff()) == ("trained" in costs)
    assert found.notes()[-1] == found.payoff()
    assert found.replace(known=True).payoff() == found.replace(exact={}).payoff() == ""


def test_the_verdict_of_a_trained_network_knows_untrained_layers():
    """An untrained layer that is as near repays no training, whatever exact codes cost."""

    def row(method, K, microseconds, mean, training=0.0):
        return Candidate(method, K, microseconds, mean, mean, mean, 1.0, training)

    exact, network = row("lasso_batch", None, 100.0, 1e-9), row("learned", None, 20.0, 1e-3, 4.0)
    found = unknown()
    alone = found.replace(rows=(exact, network, row("bcd", 8, 10.0, 1e-2))).payoff()
    assert "No untrained layer that costs less" in alone and "after 50,000 signals" in alone
    slower = found.replace(rows=(exact, network, row("bcd", 16, 30.0, 5e-4))).payoff()
    assert "bcd with 16 steps takes 30" in slower and "after 400,000 signals" in slower
    rival = found.replace(rows=(exact, network, row("bcd", 8, 10.0, 5e-4))).payoff()
    assert "bcd with 8 steps takes 10" in rival and "never repaid" in rival


def test_signals_that_training_made_worse_are_told():
    found = priced(1e-3, 65e-3, trained=2.0)
    for share, told in ((0.05, False), (0.22, True)):
        fista = found["FISTA"].replace(raised=share)
        words = found.replace(methods=found.methods | {"FISTA": fista}).payoff()
        assert ("Training raised the objective of 22 % of the signals" in words) == told


@pytest.mark.slow
def test_the_share_of_raised_objectives_is_counted_signal_by_signal():
    D, lam = ur.dictionaries.gaussian(0, 12, 20), 0.1
    sizes = np.exp(np.random.default_rng(0).normal(size=(200, 1)))
    Y = np.asarray(ur.sampler(D, 200)(jax.random.key(1))[0]) * sizes.astype(D.dtype)
    fit = ur.training.unsupervised(D, Y, lam, depth=4, steps=100, key=0)
    layer = ur.layers.bcd(4, lam=lam)

    def objectives(params):
        X = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
        return jax.vmap(ur.pursuit.lasso_objective, (None, 0, 0, None))(D, Y, X, lam)

    after, before = objectives(fit.best), objectives(layer.init(None, D))
    raised = ur.compare({"bcd": fit}, D, Y, lam=lam)["bcd"].raised
    assert raised == pytest.approx(float((after > before).mean()), abs=1 / 200) and raised > 0


def test_a_solver_that_is_not_exact_gives_no_verdict():
    """Its codes are cheap because they are not optimal."""
    assert priced(1e-3, 65e-3, gap=1e-6).payoff() and not priced(1e-3, 65e-3, gap=1e-4).payoff()


def test_calls_are_timed_in_turns_by_cpu_time():
    """Time asleep costs nothing; the repeats of a call that varies disagree."""
    order, durations = [], iter([0, *[0.02, 0.05] * 9])

    def spin(name, seconds):
        order.append(name)
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    found = pursuit.in_turns(
        {
            "steady": lambda: spin("steady", 0.02),
            "asleep": lambda: (spin("asleep", 0.02), time.sleep(0.01)),
            "varies": lambda: spin("varies", next(durations)),
        }
    )
    assert order[:3] == order[3:6] == ["steady", "asleep", "varies"]
    assert found["steady"].seconds == pytest.approx(0.02, rel=0.2)
    assert found["asleep"].seconds == pytest.approx(0.02, rel=0.2)
    assert found["varies"].spread > pursuit.MOST_SPREAD


def _us(seconds):
    return f"{1e6 * seconds / 64:,.0f}"


@functools.cache
def unknown():
    return compare(METHODS, D, Y, lam=0.1)


def test_a_fit_tells_how_long_its_training_took():
    import optax

    fit = ur.fit(
        LAYER,
        METHODS["ISTA"][1],
        D,
        Y,
        optimizer=optax.sgd(1e-3),
        steps=2,
        key=0,
        loss=ur.training.lasso_loss(0.1),
        progress=False,
    )
    found = compare({"learned": fit, "FISTA": METHODS["FISTA"]}, D, Y, lam=0.1)
    assert each(found, "trained") == {"learned": fit.seconds}
    assert fit.seconds == fit.history.records[-1].seconds > 0
    assert found["learned"].untrained == pytest.approx(unknown()["ISTA"].curve.gap[-1])
    assert "s of training, learned takes " in found.payoff()  # FISTA has no training
