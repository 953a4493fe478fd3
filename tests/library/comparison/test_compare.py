"""Comparison: every number against numpy, and the contents of tables, JSON and figures."""

import csv
import io
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import registry
from forms import changed, each, made
from forms import curve as made_curve
from PIL import Image

import unrolled as ur
from unrolled import analytic, dictionaries, layers, problems, theory
from unrolled._base.text import latex, markdown
from unrolled.comparison import (
    QUANTILES,
    ChainComparison,
    Comparison,
    Divergence,
    DivergenceWarning,
    Proved,
    _inputs,
    _measure,
    _promises,
    compare,
)
from unrolled.comparison._costs import _count
from unrolled.pursuit import _by_name

M, N, DEPTH, LAM = 12, 24, 4, 0.05
# Sums of some hundred terms, compiled differently, through four steps.
ROUNDING = 1e4 * np.finfo(float).eps

LISTA, LISTA_CP, ALISTA = layers.lista(DEPTH), layers.lista_cp(DEPTH), layers.alista(DEPTH)


@pytest.fixture(scope="module")
def problem():
    """D, Y, X with a little noise; the last code is zero."""
    D = dictionaries.gaussian(jax.random.key(1), M, N)
    X = problems.exact_sparse(jax.random.key(2), (30, N), 2).at[-1].set(0)
    noise = 0.01 * jax.random.normal(jax.random.key(3), (30, M))
    return D, problems.synthesize(D, X) + noise, X


@pytest.fixture(scope="module")
def methods(problem):
    """Families with and without weights, tied, untied and unstacked, some of the same form."""
    D = problem[0]
    start = {
        name: layer.init(jax.random.key(0), D)
        for name, layer in {"cp": LISTA_CP, "lista": LISTA, "al": ALISTA}.items()
    }
    moved = jax.tree.map(lambda leaf: 1.1 * leaf, start["cp"])
    noise = 0.1 * jax.random.normal(jax.random.key(4), (N, N))
    shaken = start["lista"]._replace(
        shared=start["lista"].shared._replace(S=start["lista"].shared.S + noise)
    )
    steps = start["al"].steps._replace(gamma=jnp.asarray([1.0, 0.5, 0.25, 2.0]))
    untied = layers.lista_cp(DEPTH, tied=False)
    return {
        "ISTA": (layers.ista(DEPTH), analytic.ista(D, LAM, DEPTH)),
        "LISTA-CP": (LISTA_CP, start["cp"]),
        "LISTA-CP, learned": (LISTA_CP, moved),
        "LISTA": (LISTA, start["lista"]),
        "LISTA, learned": (LISTA, shaken),
        "ALISTA": (ALISTA, start["al"]),
        "ALISTA, learned": (ALISTA, start["al"]._replace(steps=steps)),
        "untied": (untied, layers.unstack(untied.init(jax.random.key(0), D))),
    }


@pytest.fixture(scope="module")
def result(methods, problem):
    return compare(methods, *problem)


@pytest.mark.slow
def test_curves_against_direct_computation(result, methods, problem):
    D, Y, X = problem
    for name in ("LISTA-CP", "ALISTA, learned", "untied"):
        layer, params = methods[name]
        curve, X = result[name].curve, np.asarray(X)
        codes = np.asarray(
            jax.jit(jax.vmap(layer.iterates, (None, None, 0), out_axes=1))(params, D, Y)
        )
        error, energy = ((codes - X) ** 2).sum(2), (X**2).sum(1)
        with np.errstate(divide="ignore"):
            decibels = 10 * np.log10(error / np.where(energy > 0, energy, np.nan))
        chosen, true = codes != 0, X != 0
        hits = (chosen & true).sum(2)
        with np.errstate(invalid="ignore"):
            precision, recall = hits / chosen.sum(2), hits / true.sum(1)
        expected = {
            "nmse": 10 * np.log10(error.sum(1) / energy.sum()),
            "mean_nmse": np.nanmean(decibels, 1),
            "failure_rate": 1 - (error <= 0.01 * energy).mean(1),
            "precision": np.nanmean(precision, 1),
            "recall": np.nanmean(recall, 1),
            "false_positives": (chosen & ~true).sum(2).mean(1),
            "largest_l1": np.abs(codes - X).sum(2).max(1),
        }
        for field, value in expected.items():
            # JAX takes the mean of booleans in float32.
            rtol = 1e-7 if field == "failure_rate" else 1e-9
            np.testing.assert_allclose(
                getattr(curve, field), value, rtol, atol=ROUNDING, err_msg=f"{name} {field}"
            )
        # The zero code has an infinite error in decibels where its estimate is not zero.
        per_signal = np.where(np.isnan(decibels), np.where(error > 0, np.inf, np.nan), decibels)
        quantiles = np.nanquantile(per_signal, QUANTILES, axis=1).T
        np.testing.assert_allclose(curve.quantiles, quantiles, rtol=1e-9, atol=ROUNDING)
        assert curve.gap is None
    assert 0 < result["ALISTA, learned"].curve.recall[-1] <= 1


@pytest.mark.slow
def test_thresholds_are_means_per_step(result, methods):
    assert set(each(result, "thresholds")) == set(methods)
    theta = np.asarray(methods["LISTA-CP, learned"][1].steps.theta)
    np.testing.assert_array_equal(result["LISTA-CP, learned"].thresholds, theta)
    layer, params = LISTA_CP, methods["LISTA-CP"][1]
    per_atom = jnp.linspace(0, 1, DEPTH * N).reshape(DEPTH, N)
    D = dictionaries.gaussian(jax.random.key(1), M, N)
    found = compare(
        {"a": (layer, params._replace(steps=params.steps._replace(theta=per_atom)))},
        D,
        D.T,
        jnp.eye(N),
    )
    np.testing.assert_allclose(found["a"].thresholds, np.asarray(per_atom).mean(1), rtol=ROUNDING)


def test_the_reference_is_the_first_earlier_method_of_the_same_form(result):
    expected = {
        "LISTA-CP, learned": "LISTA-CP",
        "LISTA, learned": "LISTA",
        "ALISTA, learned": "ALISTA",
    }
    assert (
        each(result, "reference") == expected == {n: expected[n] for n in each(result, "changes")}
    )


def test_codes_that_are_not_finite_diverge_where_no_codes_are_known():
    unknown = Divergence(2, "its codes are not finite")
    for last, found in ((1.0, None), (np.nan, unknown)):
        curve = SimpleNamespace(nmse=np.zeros(2), gap=None, largest_l1=np.array([1.0, last]))
        assert _measure.divergence(curve, None, known=False) == found


def test_a_rate_is_predicted_without_noise_for_matrices_and_steps_that_it_covers():
    law, D = SimpleNamespace(probability=0.1, noise=0.0), np.zeros((20, 40))
    conv = dictionaries.Conv(np.ones((2, 1, 3)), 20, boundary="circular")
    noisy = SimpleNamespace(probability=0.1, noise=1.0)
    for layer, given, drawn in (
        (layers.lamp(2), D, noisy),
        (layers.lamp(2), conv, law),
        (layers.lista(2), D, law),
        (layers.lamp(2), D.T, law),
    ):
        assert _promises._rate(layer, None, given, drawn) is None
    assert _promises._rate(layers.lamp(2), None, D, law) < 0


def test_every_row_of_the_guarantees_has_a_cell_for_each_column(result):
    without = {n: of.replace(guarantee=None) for n, of in result.methods.items()}
    for of in (result, result.replace(methods=without)):
        columns, rows = of._guarantees()
        assert [row[0] for row in rows] == list(result.methods)
        assert {len(row) for row in rows} == {len(columns)}


def test_a_named_reference(methods, problem):
    names = ("LISTA-CP", "LISTA-CP, learned", "LISTA")
    found = compare(
        {name: methods[name] for name in names}, *problem, reference="LISTA-CP, learned"
    )
    assert each(found, "reference") == {"LISTA-CP": "LISTA-CP, learned"}
    # The start is 1 / 1.1 times the reference.
    assert all(
        c.distance == pytest.approx(1 - 1 / 1.1, rel=ROUNDING) for c in found["LISTA-CP"].changes
    )


def test_changes_against_direct_computation(result, methods):
    scaled = {c.leaf: c for c in result["LISTA-CP, learned"].changes}
    assert (
        set(scaled) == {"W", "theta"}
        and len(scaled["W"].per_step) == 1
        and len(scaled["theta"].per_step) == DEPTH
    )
    for change in scaled.values():
        assert change.distance == pytest.approx(0.1, rel=ROUNDING)
        np.testing.assert_allclose(change.per_step, 0.1, rtol=ROUNDING)
    shaken = {c.leaf: c for c in result["LISTA, learned"].changes}
    before, after = (np.asarray(methods[name][1].shared.S) for name in ("LISTA", "LISTA, learned"))
    distance = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert shaken["S"].distance == pytest.approx(distance, rel=ROUNDING)
    assert shaken["B"].distance == 0 and shaken["theta"].distance == 0
    gamma = {c.leaf: c for c in result["ALISTA, learned"].changes}["gamma"]
    before, after = (
        np.asarray(methods[name][1].steps.gamma) for name in ("ALISTA", "ALISTA, learned")
    )
    moved = np.abs(after - before)
    np.testing.assert_allclose(gamma.per_step, moved / np.abs(before), rtol=ROUNDING)
    whole = np.linalg.norm(moved) / np.linalg.norm(before)
    assert gamma.distance == pytest.approx(whole, rel=ROUNDING)


def weights_by_hand(W, D):
    """The least, mean and largest w_i . d_i, mu_W and rms at a unit diagonal, largest product."""
    products = np.asarray(W).T @ np.asarray(D)
    diagonal, off = np.diag(products), ~np.eye(N, dtype=bool)
    scaled = (products / diagonal[:, None])[off]
    ends = diagonal.min(), diagonal.mean(), diagonal.max()
    sizes = np.abs(scaled).max(), np.sqrt((scaled**2).mean()), np.abs(products[off]).max()
    return (*ends, *sizes)


def test_couplings_against_dense_algebra(result, methods, problem):
    D = problem[0]
    assert set(each(result, "coupling")) == set(methods)
    W = {
        "ISTA": D / float(ur.dictionaries.spectral_norm(D)) ** 2,
        "LISTA-CP": methods["LISTA-CP"][1].shared.W,
        "LISTA": methods["LISTA"][1].shared.B,
        "untied": methods["untied"][1].steps[2].W,
    }
    for name, matrix in W.items():
        c = result[name].coupling
        assert len(c.mu_W) == (DEPTH if name in ("ISTA", "untied") else 1)
        found = [column[-1] for column in jax.tree.leaves(c)[:6]]
        np.testing.assert_allclose(found, weights_by_hand(matrix, D), rtol=ROUNDING)
    learned, gammas = result["ALISTA, learned"].coupling, (1.0, 0.5, 0.25, 2.0)
    for k, gamma in enumerate(gammas):
        found = [column[k] for column in jax.tree.leaves(learned)[:6]]
        expected = weights_by_hand(gamma * methods["ALISTA"][1].shared.W, D)
        np.testing.assert_allclose(found, expected, rtol=ROUNDING)


@pytest.mark.slow
def test_the_couplings_of_every_family(problem):
    """One row a step, or one where all steps have the same weights, as without own params."""
    D, key = problem[0], jax.random.key(0)
    made = {name: build(2) for name, build in registry.FAMILIES.items()}
    made = {name: (layer, layer.init(key, D)) for name, layer in made.items()}
    couplings = each(compare(made, *problem), "coupling")
    assert set(couplings) == {n for n, (layer, _) in made.items() if layer.weights is not None}
    for name, coupling in couplings.items():
        layer, params = made[name]
        steps = layers.unstack(params).steps or (None,)
        for k, p in enumerate(steps[: len(coupling.mu_W)]):
            W, gamma, _ = layer.weights(params.shared, p, D)
            W = dictionaries.dense(W) * (1 if gamma is None else gamma)
            found = [column[k] for column in jax.tree.leaves(coupling)[:6]]
            np.testing.assert_allclose(found, weights_by_hand(W, D), rtol=ROUNDING)


def test_the_coupling_mismatch(result, methods, problem):
    """It is 0 if built in, rounding for LISTA at its start, and the distance of a moved S."""
    for name in ("LISTA-CP", "LISTA-CP, learned", "ALISTA, learned", "untied"):
        np.testing.assert_array_equal(result[name].coupling.mismatch, 0)
    assert result["LISTA"].coupling.mismatch.max() < ROUNDING
    B, S = (np.asarray(leaf) for leaf in methods["LISTA, learned"][1].shared)
    distance = np.linalg.norm(S - np.eye(N) + B.T @ np.asarray(problem[0])) / np.linalg.norm(S)
    assert distance > 0.1
    np.testing.assert_allclose(result["LISTA, learned"].coupling.mismatch, distance, rtol=ROUNDING)
    D, layer = problem[0], layers.lfista(DEPTH)
    momentum = compare({"LFISTA": (layer, layer.init(None, D))}, *problem)["LFISTA"].coupling
    assert momentum.mismatch.max() < ROUNDING  # FISTA has the fixed points of ISTA


@pytest.mark.slow
def test_the_gap_to_the_lasso_optimum(problem):
    D, Y, X = problem
    long = layers.fista(300)
    found = compare(
        {
            "ISTA": (layers.ista(DEPTH), analytic.ista(D, LAM, DEPTH)),
            "FISTA": (long, analytic.ista(D, LAM, 300)),
        },
        D,
        Y,
        X,
        lam=LAM,
    )
    ista, fista = found["ISTA"].curve.gap, found["FISTA"].curve.gap
    # The optimum is known to a duality gap of 1e-6 of the energy of a signal, which is below 20
    # times the objective.
    assert ista.shape == (DEPTH,) and (np.diff(ista) < 0).all() and ista[-1] > 1e-3
    assert fista.shape == (300,) and fista.min() > -2e-5 and abs(fista[-1]) < 2e-5
    codes = np.asarray(jax.vmap(long.apply, (None, None, 0))(analytic.ista(D, LAM, 300), D, Y))

    def objective(x):
        return ((np.asarray(Y) - x @ np.asarray(D).T) ** 2).sum(1) / 2 + LAM * np.abs(x).sum(1)

    first = np.asarray(
        jax.vmap(layers.ista(1).apply, (None, None, 0))(analytic.ista(D, LAM, 1), D, Y)
    )
    expected = (objective(first) - objective(codes)).sum() / objective(codes).sum()
    assert ista[0] == pytest.approx(expected, abs=4e-5)
    assert "(F - F*) / F*" in found.table() and f"{ista[-1]:.2e}" in found.table()


@pytest.mark.slow
@pytest.mark.parametrize("k", [(-70, -70), (0, -70), (40, -30)])
def test_gaps_have_no_scale(problem, k):
    """F is divided by 2^(2 b), which leaves the range of float32 before the signals do."""
    D, Y, X = (np.asarray(v, np.float32) for v in problem)
    a, b = k
    layer = layers.ista(DEPTH)
    codes = jax.vmap(layer.apply, (None, None, 0))(analytic.ista(D, LAM, DEPTH), D, Y)
    methods = {"codes": codes, "none": 0 * codes}
    exact = compare(methods, D, Y, X, lam=LAM)
    scaled = (np.ldexp(v, n) for v, n in ((D, a), (Y, b), (X, b - a)))
    moved = {name: jnp.ldexp(x, b - a) for name, x in methods.items()}
    found = compare(moved, *scaled, lam=np.ldexp(LAM, a + b))
    for name in methods:
        assert found[name].curve.gap == exact[name].curve.gap > 1e-3


def test_no_codes_are_better_than_the_optimum(problem):
    """Atoms that nearly depend: 3,000 steps of FISTA do not get to the optimum."""
    D, Y, _ = (np.asarray(v, np.float32) for v in problem)
    D, lam = D[:, :1] + np.float32(0.01) * D, 1e-4
    codes = ur.pursuit.lasso_batch(D, Y, lam, tol=1e-9).x
    found = compare({"optimal": codes}, D, Y, codes, lam=lam)
    # The same objectives, but for the rounding of the units.
    assert abs(found["optimal"].curve.gap[-1]) <= 8 * 2.0**-23 and not found.uncertified


@pytest.mark.slow
def test_an_optimum_without_a_certificate_is_told(problem, monkeypatch):
    D, Y, X = problem
    methods = {"ISTA": (layers.ista(DEPTH), analytic.ista(D, LAM, DEPTH))}
    exact = compare(methods, D, Y[1:], X[1:], lam=LAM)["ISTA"].curve.gap

    def spoilt(*arguments, **options):
        found = ur.pursuit.lasso_batch(*arguments, **options)
        return found.replace(converged=found.converged.at[0].set(False))

    monkeypatch.setattr(_inputs, "lasso_optima", spoilt)
    with pytest.warns(UserWarning, match="compare: 1 signal is not in the gaps: no duality gap"):
        found = compare(methods, D, Y, X, lam=LAM)
    assert found.uncertified == 1 and "no duality gap certifies F*" in found.table()
    # F* is that of codes in float32, which a batch of another size may round differently.
    assert found["ISTA"].curve.gap == pytest.approx(exact, rel=1e-6)


@pytest.mark.slow
def test_a_dictionary_too_large_for_its_gram_matrix_is_solved_by_fista(problem, monkeypatch):
    D, Y, X = problem
    methods = {"ISTA": (layers.ista(DEPTH), analytic.ista(D, LAM, DEPTH))}
    exact = compare(methods, D, Y, X, lam=LAM)
    monkeypatch.setattr(_by_name, "_LARGEST", 10)
    found = compare(methods, D, Y, X, lam=LAM)
    # FISTA stops at a duality gap of 1e-6 of the energy, below 20 times the objective.
    assert found["ISTA"].curve.gap == pytest.approx(exact["ISTA"].curve.gap, abs=4e-5)
    monkeypatch.setattr(_by_name, "_MAX_STEPS", 10)
    with pytest.warns(UserWarning, match="compare: 29 signals are not in the gaps"):
        found = compare(methods, D, Y[:-1], X[:-1], lam=LAM)
    assert np.isnan(found["ISTA"].curve.gap).all()  # the last one has the code 0


@pytest.mark.slow
def test_a_zero_signal_leaves_the_gap_finite(problem):
    """A flat patch of a picture has one: its optimum is 0, where every method starts."""
    D, Y, X = problem
    methods = {"ISTA": (layers.ista(DEPTH), analytic.ista(D, LAM, DEPTH))}
    gap = compare(methods, D, Y.at[0].set(0), X.at[0].set(0), lam=LAM)["ISTA"].curve.gap
    assert np.isfinite(gap).all() and (gap > 0).all()


def test_json_holds_everything_without_nan(result):
    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    held = json.loads(result.to_json(), parse_constant=refuse)
    assert set(held) == set(Comparison._fields)
    assert list(held["methods"]) == list(result.methods)
    assert held["methods"]["ALISTA"]["curve"]["nmse"] == result["ALISTA"].curve.nmse.tolist()
    assert held["methods"]["LISTA, learned"]["changes"][1]["leaf"] == "S"
    assert held["methods"]["LISTA, learned"]["reference"] == "LISTA"


def test_json_turns_what_is_not_finite_into_null(problem):
    """Zero codes have no NMSE in decibels; codes that are not zero are worse than the zero code."""
    D, Y, X = problem
    methods = {"ISTA": (layers.ista(DEPTH), analytic.ista(D, LAM, DEPTH))}
    with pytest.warns(DivergenceWarning, match="ISTA diverges: its error is not finite from step"):
        found = compare(methods, D, Y, 0 * X)
    assert not np.isfinite(found["ISTA"].curve.nmse).any()
    assert json.loads(found.to_json())["methods"]["ISTA"]["curve"]["nmse"] == [None] * DEPTH


def test_a_bar_in_a_name_is_no_column(result):
    renamed = result.replace(methods={"a|b": result["ALISTA"]})
    head, _, row = renamed.table().split("\n")[:3]
    assert row.startswith(r"| a\|b | ")
    assert len(re.split(r"(?<!\\)\|", row)) == len(head.split("|"))


def test_tables_have_a_row_per_method(result, methods):
    for table in (result.table(all=True), result.parameters_table()):
        header, rule, *rows = table.split("\n")
        assert [row.split("|")[1].strip() for row in rows] == list(methods)
        assert {line.count("|") for line in (header, rule, *rows)} == {header.count("|")}
    curve = result["ALISTA"].curve
    rows = result.table(all=True).split("\n")
    (row,) = [row for row in rows if row.startswith("| ALISTA |")]
    low, median, high = (f"{q:.1f}" for q in curve.quantiles[-1])
    errors = f"| {curve.nmse[-1]:.1f} | {curve.mean_nmse[-1]:.1f} | {low} | {median} | {high} | "
    errors += f"{curve.failure_rate[-1]:.1%} |"
    assert f"| {DEPTH} {errors}" in row
    assert "| gamma " in result.parameters_table() or ", theta " in result.parameters_table()


@pytest.mark.slow
def test_the_figure_draws_every_method(result, methods, tmp_path):
    figure = result.plot()
    error = figure.axes[0]
    assert [line.get_label() for line in error.get_lines()] == list(methods)
    for line, of in zip(error.get_lines(), result.methods.values()):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, DEPTH + 1))
        np.testing.assert_array_equal(line.get_ydata(), of.curve.nmse)
    counts = [len(axes.get_lines()) for axes in figure.axes]
    assert counts == [len(methods)] * 5 + [len(each(result, "coupling"))]
    figure.savefig(tmp_path / "figure.png", dpi=40)
    with Image.open(tmp_path / "figure.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 1


@pytest.mark.slow
def test_codes_stand_for_themselves(methods, problem):
    """Their numbers are those of the last step of the layer that found them."""
    D, Y, X = problem
    layer, params = methods["LISTA-CP"]
    codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
    found = compare({"layer": (layer, params), "codes": codes}, D, Y, X, lam=LAM)
    for a, b in zip(*map(jax.tree.leaves, (found["layer"].curve, found["codes"].curve))):
        assert b.shape == (1, *a.shape[1:])
        np.testing.assert_allclose(b[0], a[-1], rtol=1e-4, atol=1e-4)
    assert set(each(found, "given")) == {"codes"} and found["codes"].thresholds is None
    assert found.table().splitlines()[3].startswith("| codes |  | ")
    json.loads(found.to_json())
    lines = {line.get_label(): line for line in found.plot().axes[0].lines}
    assert len(set(lines["codes"].get_ydata())) == 1 and len(lines["codes"].get_xdata()) == DEPTH
    only = compare({"a": np.asarray(codes), "b": 0 * codes}, D, Y, X)
    assert [*each(only, "given")] == ["a", "b"] and [*each(only, "silent")] == ["b"]
    assert not each(only, "changes")
    with pytest.raises(ValueError, match=r"'codes' has codes of \[\(29, 24\)\]; expected"):
        compare({"codes": codes[1:]}, D, Y, X)


@pytest.mark.few(1)
@pytest.mark.parametrize("known", [True, False])
def test_a_mask_compares_on_the_known_entries_of_each_signal(methods, problem, known):
    D, Y, X = problem
    masks = np.random.default_rng(0).random(Y.shape) < 0.7
    some = {name: methods[name] for name in ("ISTA", "LISTA-CP")}
    seen, Y = np.where(masks, Y, np.nan), np.asarray(Y)
    result = compare(some, D, seen, X if known else None, lam=LAM, mask=masks)
    matrix, optimal = np.asarray(D), ur.pursuit.lasso_batch(D, seen, LAM, mask=masks, tol=1e-12).x
    assert result.uncertified == 0 and not each(result, "guarantee") and not each(result, "proved")

    def objective(X):
        of_residual = np.sum((masks * (Y - X @ matrix.T)) ** 2) / 2
        return of_residual + LAM * np.abs(X).sum()

    least = objective(np.asarray(optimal))
    for name, (layer, params) in some.items():
        own = jax.vmap(dictionaries.Masked, (None, 0))(D, masks)
        found = np.asarray(jax.vmap(layer.apply, (None, 0, 0))(params, own, np.where(masks, Y, 0)))
        curve = result[name].curve
        assert curve.gap[-1] == pytest.approx(objective(found) / least - 1, rel=1e-5)
        left = masks * (Y - found @ matrix.T)
        size = np.linalg.norm(np.where(masks, Y, 0))
        assert curve.residual[-1] == pytest.approx(np.linalg.norm(left) / size, rel=1e-8)
        assert np.isnan(curve.psnr).all()
    assert result.exact["exact"].curve.gap == 0


def test_a_full_mask_compares_as_none_does(methods, problem):
    plain = compare({"ISTA": methods["ISTA"]}, *problem, lam=LAM)["ISTA"].curve
    full = compare({"ISTA": methods["ISTA"]}, *problem, lam=LAM, mask=np.ones(M, bool))
    np.testing.assert_allclose(full["ISTA"].curve.nmse, plain.nmse, rtol=1e-9)
    np.testing.assert_allclose(full["ISTA"].curve.gap, plain.gap, rtol=1e-6)


def test_what_does_not_fit_is_refused(methods, problem):
    D, Y, X = problem
    layer, params = methods["ISTA"]
    pursued = jax.eval_shape(lambda y: ur.pursuit.omp(D, y, sparsity=2), Y[0])
    record = jax.tree.map(lambda leaf: np.zeros(leaf.shape), pursued)
    chain, shapes = (ur.dsc([layer]), (params,)), r"expected \(batch, 12\) and \(batch, 24\)"
    joint = ur.dictionaries.Joint(D, 2)
    by_name, spoilt = "methods must be a dict by name", np.where(np.arange(12) == 3, np.nan, Y)
    for error, words, changes in (
        (ValueError, "at least one method, got none", dict(methods={})),
        (ValueError, "unknown reference 'FISTA'; expected one of x", dict(reference="FISTA")),
        (ValueError, shapes, dict(Y=X, X=Y)),
        (ValueError, shapes, dict(X=X[1:])),
        (ValueError, shapes, dict(Y=Y[0], X=X[0])),
        (ValueError, shapes, dict(Y=Y[:0], X=X[:0])),
        (ValueError, shapes, dict(X=X[:, 1:])),
        (
            ValueError,
            "'x': .* the layer has depth 5",
            dict(methods={"x": (layers.ista(5), params)}),
        ),
        (TypeError, "'x': ista: params must be Unrolled.*got int", dict(methods={"x": (layer, 3)})),
        (TypeError, "begins with the class ista", dict(methods={"x": (layers.ista, params)})),
        (TypeError, "'x' is an ista; expected .layer, params.", dict(methods={"x": layer})),
        (
            *(TypeError, "'x' is a pair that begins with an Unrolled; expected .layer, params."),
            dict(methods={"x": (params, layer)}),
        ),
        (
            TypeError,
            "'x' is a Pursuit; .*, or codes; try its .x",
            dict(methods={"x": record}),
        ),
        (TypeError, "the codes of 'x' is complex128", dict(methods={"x": np.asarray(X) * 1j})),
        (TypeError, r"D is complex128; .*Complex.of\(D\)", dict(D=np.asarray(D) * 1j)),
        (ValueError, "compare: codes of Joint .* without certify", dict(D=joint, certify=True)),
        (TypeError, by_name, dict(methods=[(layer, params)])),
        (TypeError, by_name, dict(methods={1: (layer, params)})),
        (
            *(TypeError, "'one' is a layer and 'chain' a network.*compare them"),
            dict(methods={"one": (layer, params), "chain": chain}),
        ),
        (ValueError, "compare: Y or X has NaN", dict(Y=spoilt)),
        (ValueError, r"mask has shape \(3,\); expected \(12,\) or", dict(mask=np.ones(3, bool))),
        (TypeError, "mask has dtype float64; expected bool", dict(mask=np.ones(12))),
        (ValueError, "mask is for layers", dict(mask=np.ones(12, bool), certify=True)),
        (ValueError, "lam must be non-negative", dict(lam=-1.0)),
        (ValueError, "without codes lam must be positive, got 0", dict(X=None, lam=0.0)),
        (ValueError, "all signals are zero", dict(X=None, Y=0 * Y)),
        (ValueError, r"Y has NaN or infinite entries \(in rows 0, 1", dict(X=None, Y=spoilt)),
        (ValueError, "predict need known codes", dict(X=None, predict=True)),
    ):
        with pytest.raises(error, match=words):
            compare(**dict(methods={"x": (layer, params)}, D=D, Y=Y, X=X) | changes)


# The results of a training


def trained(problem, layer, D, **options):
    _, Y, X = problem
    return ur.fit(
        *(layer, layer.init(None, D), D, lambda key: (Y, X)),
        **dict(optimizer=optax.sgd(1e-3), steps=2, key=0, validation=(Y, X)),
        **options,
    )


@pytest.mark.slow
def test_the_result_of_a_training_is_a_method(problem):
    """Its best params run with the dictionary that was learned with them."""
    D, Y, X = problem
    fit = trained(problem, ALISTA, D, learn_dictionary=True)
    assert fit.model is ALISTA and not np.array_equal(fit.D, D)
    found, expected = compare({"a": fit}, D, Y, X), compare({"a": (ALISTA, fit.best)}, fit.D, Y, X)
    np.testing.assert_array_equal(found["a"].curve.nmse, expected["a"].curve.nmse)
    assert found["a"].coupling == expected["a"].coupling
    with pytest.raises(ValueError, match=r"'a' was trained with D of \[\(12, 24\)\]; expected"):
        compare({"a": fit}, jnp.eye(12), Y, Y)


# Guarantees


def certified(depth=6):
    """A dictionary and params that theory certifies for s = 2, and the same params "learned"."""
    D, layer = dictionaries.identity_hadamard(16), layers.alista(depth)
    params = analytic.alista(D, depth=depth, sparsity=2, bound=1.0)
    lower = params._replace(steps=params.steps._replace(theta=params.steps.theta / 2))
    return D, {"analytic": (layer, params), "learned": (layer, lower)}


def test_guarantees_are_those_of_the_theory():
    """For the class of the sample by default, or for the class that is given."""
    D, methods = certified()
    X = problems.bounded(jax.random.key(0), (40, 32), 2, 1.0)
    Y = problems.synthesize(D, X)
    found = compare(methods, D, Y, X)
    noise = np.abs(np.asarray(Y) - np.asarray(X) @ np.asarray(D).T).sum(1).max()
    for name, (layer, params) in methods.items():
        held = found[name].guarantee
        assert (held.sparsity, held.bound) == (2, float(jnp.abs(X).max()))
        assert held.noise == pytest.approx(noise, abs=1e-14)
        options = dict(sparsity=held.sparsity, bound=held.bound, noise=held.noise)
        expected = theory.certify(layer, params, D, **options)
        np.testing.assert_array_equal(held.certificate.error, expected.error)
        # The sample is of the class: the theorem bounds every error of it.
        assert (found[name].curve.largest_l1 <= expected.error[1:]).all()
    given = compare(methods, D, Y, X, sparsity=3, bound=0.5, noise=0.1)["learned"].guarantee
    assert (given.sparsity, given.bound, given.noise) == (3, 0.5, 0.1)


def test_a_learned_dictionary_has_a_noise_of_its_own():
    """What it does not synthesise of the signals is noise to its theorem."""
    D, methods = certified()
    X = problems.bounded(jax.random.key(0), (40, 32), 2, 1.0)
    Y = problems.synthesize(D, X)
    layer, params = methods["analytic"]
    other, _ = dictionaries.normalize(D + 0.01 * jax.random.normal(jax.random.key(1), D.shape))
    learned = ur.training.Fit(params, params, other, None, layer)
    found = compare({"analytic": (layer, params), "learned": learned}, D, Y, X)
    for name, own in {"analytic": D, "learned": other}.items():
        noise = np.abs(np.asarray(Y) - np.asarray(X) @ np.asarray(own).T).sum(1).max()
        assert found[name].guarantee.noise == pytest.approx(noise, abs=1e-14)


def test_the_table_shows_what_training_did_to_the_guarantee():
    D, methods = certified()
    X = problems.bounded(jax.random.key(0), (40, 32), 2, 1.0)
    methods["LISTA"] = (layers.lista(2), layers.lista(2).init(None, D))
    found = compare(methods, D, problems.synthesize(D, X), X, sparsity=2, bound=1.0, noise=0.0)
    head, _, *rows = found.guarantees_table().partition("\n\n")[0].split("\n")
    assert "guaranteed l1 error | steps without false positives | largest s" in head
    analytic_row, learned, without = ([c.strip() for c in row.split("|")[1:-1]] for row in rows)
    certificate = found["analytic"].guarantee.certificate
    assert analytic_row[:5] == ["analytic", "2", "1", "0", "2"]
    assert analytic_row[5:7] == [f"{certificate.error[-1]:.2e}", "6 of 6"]
    assert learned[5:7] == ["none", "0 of 6"] and int(learned[7]) < int(analytic_row[7])
    assert without == ["LISTA", *[""] * 8]
    assert head.endswith("| first codes that are proved |") and analytic_row[8].endswith(" of 40")


def test_params_that_are_not_finite_have_no_guarantee(problem):
    D, Y, X = problem
    params = LISTA_CP.init(None, D)
    broken = params._replace(
        steps=params.steps._replace(theta=params.steps.theta.at[1].set(jnp.inf))
    )
    assert compare({"broken": (LISTA_CP, broken)}, D, Y, X)["broken"].guarantee is None


# Divergence


def test_a_method_that_ends_worse_than_the_zero_code_is_marked(problem):
    """In a field, in the table and by one warning; a large step size diverges."""
    D, Y, X = problem
    params = LISTA_CP.init(None, D)
    far = params._replace(shared=params.shared._replace(W=4 * params.shared.W))
    methods = {"good": (LISTA_CP, params), "bad": (LISTA_CP, far)}
    with pytest.warns(
        DivergenceWarning, match="^compare: bad diverges: its codes are worse than zero"
    ) as caught:
        found = compare(methods, D, Y, X)
    assert len(caught) == 1 and set(each(found, "diverged")) == {"bad"}
    nmse = found["bad"].curve.nmse
    step = found["bad"].diverged.step
    assert (nmse[step - 1 :] > 0).all() and (step == 1 or nmse[step - 2] <= 0)
    (row,) = [line for line in found.table().split("\n") if line.startswith("| bad")]
    assert f"| {nmse[-1]:.1f} (diverges) |" in row
    note = f"bad diverges: its codes are worse than zero codes: their NMSE is {nmse[-1]:.6g} dB"
    assert found.table().split("\n\n")[1].startswith(note)
    assert json.loads(found.to_json())["methods"]["bad"]["diverged"]["step"] == step


def test_codes_that_are_not_finite_diverge(problem):
    D, Y, X = problem
    params = LISTA_CP.init(None, D)
    broken = params._replace(shared=params.shared._replace(W=params.shared.W * 1e200))
    with pytest.warns(DivergenceWarning, match="x diverges: its error is not finite from step"):
        found = compare({"x": (LISTA_CP, broken)}, D, Y, X)
    assert found["x"].diverged.step <= DEPTH


def test_an_objective_above_that_of_the_zero_code_diverges(problem):
    """The codes are near the true ones, but lam is so large that the zero code is optimal."""
    D, Y, X = problem
    methods = {"ISTA": (layers.ista(DEPTH), analytic.ista(D, LAM, DEPTH))}
    with pytest.warns(
        DivergenceWarning, match=r"worse than zero codes: their \(F - F\*\) / F\* is"
    ):
        found = compare(methods, D, Y, X, lam=100.0)
    assert found["ISTA"].curve.nmse[-1] < 0 and set(each(found, "diverged")) == {"ISTA"}


def test_codes_no_worse_than_zero_are_not_marked(problem):
    """The zero code itself, and codes without any error."""
    D, Y, X = problem
    silent = LISTA_CP.init(None, D)
    silent = silent._replace(steps=silent.steps._replace(theta=1e3 * silent.steps.theta))
    found = compare({"quiet": (LISTA_CP, silent)}, D, Y, X)
    assert not each(found, "diverged") and [*each(found, "silent")] == ["quiet"]
    assert found.table().endswith("\n\nThese methods return only zeros: quiet.")
    for lam in (None, LAM):
        exact = compare({"exact": (LISTA_CP, silent)}, D, 0 * Y, 0 * X, lam=lam)
        assert not each(exact, "diverged") and not each(exact, "silent")
    assert exact["exact"].curve.gap.tolist() == [0.0] * DEPTH


# Without codes


@pytest.fixture(scope="module")
def unknown(methods, problem):
    D, Y, _ = problem
    given = {name: methods[name] for name in ("ISTA", "LISTA-CP")}
    given["few"] = ur.pursuit.omp_batch(D, Y, 1).x
    return given, compare(given, D, Y, lam=LAM)


def test_the_share_of_signals_worse_than_zero(problem):
    """By the error of the code, and where codes are not known by the objective."""
    D, Y, X = problem
    turned = X.at[::10].mul(-1)  # twice as far as zero; the last code, 0, is as far
    assert compare({"turned": turned}, D, Y, X)["turned"].curve.worse[-1] == 3 / 30
    found = compare({"turned": turned}, D, Y, lam=LAM)["turned"].curve.worse[-1]
    objective = jax.vmap(ur.pursuit.lasso_objective, (None, 0, 0, None))
    F, zero = (np.asarray(objective(D, Y, codes, LAM)) for codes in (turned, 0 * X))
    assert found == np.mean(zero * (1 + 1e-5) < F) > 0


def test_a_cell_without_a_certified_optimum_is_empty(problem, monkeypatch):
    D, Y, X = problem

    def spoilt(*arguments, **options):
        found = ur.pursuit.lasso_batch(*arguments, **options)
        return found.replace(converged=np.zeros_like(found.converged))

    monkeypatch.setattr(_inputs, "lasso_optima", spoilt)
    with pytest.warns(UserWarning, match="30 signals are not in the gaps"):
        found = compare({"codes": X}, D, Y, lam=LAM)
    columns, _, row = (line.split(" | ") for line in found.table(all=True).splitlines()[:3])
    cells = dict(zip(columns, row))
    assert cells["(F - F*) / F*"].strip() == cells["worse than zero"].strip() == ""
    assert "nan" not in found.table(all=True) and found.why == "No method was judged."


def test_without_codes_the_objective_judges(unknown, problem):
    """The codes of the LASSO stand for the true ones: its gaps and curves are those with them."""
    given, found = unknown
    D, Y, _ = problem
    optimum = ur.pursuit.lasso_batch(D, Y, LAM, tol=1e-9)
    assert optimum.converged.all() and not found.known and found.lam == LAM
    expected = compare(given, D, Y, optimum.x, lam=LAM)
    for name, curve in each(found, "curve").items():
        np.testing.assert_allclose(curve.gap, expected[name].curve.gap, rtol=1e-9)
        np.testing.assert_allclose(curve.nmse, expected[name].curve.nmse, rtol=1e-9)
    columns = found.table().splitlines()[0]
    assert "(F - F*) / F*" in columns and "NMSE" not in columns


def test_thresholds_of_bcd_are_products_with_its_step_sizes(problem):
    D, Y, _ = problem
    layer = ur.layers.bcd(2, lam=0.3)
    params = layer.init(None, D)
    found = ur.compare({"bcd": (layer, params)}, D, Y, lam=0.3)["bcd"].thresholds
    assert type(found) is np.ndarray  # a report writes it as JSON
    np.testing.assert_allclose(found, [0.3 * np.mean(params.shared.size)] * 2, rtol=1e-6)


@pytest.mark.parametrize(("atoms", "expected"), [(48, 12), (20, 17)])
def test_products_with_all_blocks_of_a_dictionary_are_one_product(atoms, expected):
    """With zeros in the last block: 32 columns take 1.6 times the product with 20 atoms."""
    D, layer = np.random.default_rng(0).normal(size=(12, atoms)), ur.layers.bcd(4, block=16)
    assert ur.comparison.products(layer, layer.init(None, D), D, D[:, 0]) == expected


def test_the_result_of_a_method_is_found_by_its_name(unknown):
    """Methods first, then exact solvers; quantiles of the gaps stand next to the ratio of sums."""
    _, found = unknown
    assert found["ISTA"] is found.methods["ISTA"] and found["exact"] is found.exact["exact"]
    best = min(found.methods, key=lambda name: found[name].curve.gap[-1])
    assert found.why.startswith(f"{best} has the smallest gap ")
    with pytest.raises(KeyError, match="unknown method 'ISTB'; expected one of ISTA, .*ISTA"):
        found["ISTB"]


def test_quantiles_of_gaps_are_those_of_single_signals(unknown, problem):
    given, found = unknown
    D, Y, _ = problem
    layer, params = given["ISTA"]
    codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
    objective = jax.vmap(ur.pursuit.lasso_objective, (None, 0, 0, None))
    optimum = ur.pursuit.lasso_batch(D, Y, LAM, tol=1e-12).x
    F, least = (np.asarray(objective(D, Y, X, LAM)) for X in (codes, optimum))
    expected = np.quantile(F / least - 1, QUANTILES)
    np.testing.assert_allclose(found["ISTA"].curve.gap_quantiles[-1], expected, rtol=1e-5)
    record = found.table("records")[0]
    assert [record[f"{word}_gap"] for word in ("low", "median", "high")] == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("layer", [ur.layers.vamp_bg(16), ur.layers.tista(16)])
def test_products_without_the_code_are_made_once(layer):
    """y U, or the matrix of a Conv for its energy; a step makes two products."""
    D = ur.dictionaries.Conv(np.random.default_rng(0).normal(size=(2, 1, 3)), 8)
    A = ur.dictionaries.dense(D)
    D = D if layer.family == "tista" else A
    assert ur.comparison.products(layer, layer.init(None, A), D, np.ones(D.shape[0])) == 33


def test_what_codes_rebuild_and_cost(unknown, problem):
    given, found = unknown
    D, Y, _ = (np.asarray(A) for A in problem)
    layer, params = given["ISTA"]
    codes = np.asarray(jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y))
    errors, curve = codes @ D.T - Y, found["ISTA"].curve
    residual = np.sqrt((errors**2).sum((1, 2)) / (Y**2).sum())
    np.testing.assert_allclose(curve.residual, residual, rtol=1e-9)
    psnr = 10 * np.log10((Y.max() - Y.min()) ** 2 / (errors**2).mean((1, 2)))
    np.testing.assert_allclose(curve.psnr, psnr, rtol=1e-9)
    np.testing.assert_allclose(curve.nonzeros, (codes != 0).sum(2).mean(1))
    cost = found["ISTA"].cost
    assert cost.products == 2 * DEPTH and 0 < cost.seconds < 60  # D x and D'r a step
    assert set(each(found, "cost")) == {"ISTA", "LISTA-CP"}
    row = next(line for line in found.table(all=True).splitlines() if line.startswith("| ISTA"))
    assert f"| {residual[-1]:.4f} | {psnr[-1]:.2f} |" in row and row.endswith("| 8 |")


@pytest.mark.slow
def test_a_pursuit_of_another_problem_does_not_diverge(problem):
    """Codes that reproduce their signals, where the LASSO has a large weight."""
    D, Y, _ = problem
    few = ur.pursuit.omp_batch(D, Y, 8).x
    found = compare({"few": few, "ISTA": (layers.ista(2), analytic.ista(D, 1, 2))}, D, Y, lam=1)
    zero = compare({"zero": 0 * few}, D, Y, lam=1)
    assert found["few"].curve.gap[-1] > zero["zero"].curve.gap[-1] and not each(found, "diverged")
    with pytest.warns(DivergenceWarning, match="few diverges: its codes are not finite"):
        compare({"few": few * np.nan}, D, Y, lam=0.5)


@pytest.mark.slow
def test_a_layer_above_zero_codes_diverges_without_codes(problem):
    D, Y, _ = problem
    layer = layers.ista(3)
    params = layer.init(None, D)
    wild = params._replace(steps=params.steps._replace(gamma=10 * params.steps.gamma))
    with pytest.warns(
        DivergenceWarning,
        match="wild diverges: its codes are worse than zero codes: their .F - F.. / F. is",
    ):
        found = compare({"wild": (layer, wild)}, D, Y, lam=LAM)
    assert "wild (diverges)" in found.table()


def test_lam_is_chosen_and_told(problem):
    D, Y, _ = (np.asarray(A) for A in problem)
    method = {"ISTA": (layers.ista(2), analytic.ista(jnp.asarray(D), LAM, 2))}
    found = compare(method, D, Y)
    lam = np.quantile(np.abs(Y @ D).max(1), 0.9) / 10
    assert found.lam == pytest.approx(lam, rel=1e-12)
    assert f"lam = {lam:.4g}, a tenth of the lam at which nine codes in ten are 0." in found.table()
    with pytest.warns(DivergenceWarning):  # the thresholds are of another lam
        told = compare(method, D, Y, lam=1e3).notes()
    assert "lam = 1000 gives all signals the code 0; try a smaller lam." in told


# Forms of a table


def test_a_table_as_latex_csv_and_records(unknown):
    _, found = unknown
    records = found.table("records")
    assert [record["method"] for record in records] == [*found.methods, *found.exact]
    first = records[0]
    assert first["gap"] == found["ISTA"].curve.gap[-1] and "nmse" not in first
    assert records[2]["K"] is None and records[2]["products"] is None
    rows = list(csv.DictReader(io.StringIO(found.table("csv"))))
    assert [float(row["residual"]) for row in rows] == [record["residual"] for record in records]
    # Beside ISTA, which the first method is, and beside zero codes.
    assert first["ista_gap"] == pytest.approx(first["gap"], rel=ROUNDING)
    assert {record["zero_gap"] for record in records} == {found.ista_gap[0]}
    assert records[1]["ista_gap"] is not None and records[2]["ista_gap"] is None
    lines = found.table("latex").splitlines()
    assert lines[0].startswith(r"\begin{tabular}{lrrr") and lines[1] == r"\toprule"
    assert lines[2].startswith(r"method & (F - F*) / F* & gap (median) & ")
    assert "few &  & " in found.table("latex", ["K", "gap"])
    with pytest.raises(ValueError, match="unknown form 'html'; expected one of markdown, latex, "):
        found.table("html")


def test_a_table_has_the_columns_that_are_asked_for():
    """In their order, in every form, with one column per layer of a network."""
    one = made({"good": made_curve(0.1), "bad": made_curve(2.0)})
    one = changed(one, "bad", diverged=Divergence(1, ""))
    asked = ["nonzeros", "mean_nmse", "largest_l1"]
    for found in (one, ChainComparison((one, one))):
        head = ["layer"] * (found is not one) + ["method"]
        records, full = found.table("records", asked), found.table("records")
        assert [list(record) for record in records] == [[*head, *asked]] * len(full)
        assert records == [{f: record[f] for f in (*head, *asked)} for record in full]
        assert found.table("csv", asked).splitlines()[0] == ",".join([*head, *asked])
        assert found.table("latex", asked).startswith(
            r"\begin{tabular}{" + "lrrrr"[: len(head) + 3]
        )
        titles = found.table("markdown", asked).splitlines()[0]
        assert titles == f"| {' | '.join(head)} | nonzeros | NMSE dB (mean) | largest l1 |"
    assert "| bad (diverges) |" in one.table("markdown", asked)
    assert re.search(r"\| bad \| \S+ \(diverges\) \|", one.table("markdown", ["nmse"]))
    for wrong, error, match in (
        (["nmsw"], ValueError, "unknown column 'nmsw'; expected one of K, nmse, .*mean 'nmse'"),
        (["diverges"], ValueError, "unknown column 'diverges'"),
        ("nmse", TypeError, r"must be a list of names, got 'nmse'; try columns=\['nmse'\]"),
        (3, TypeError, "must be a list of names, got 3"),
    ):
        with pytest.raises(error, match=f"table: .*{match}"):
            one.table(columns=wrong)


def test_all_layers_have_the_columns_of_the_table():
    """Also if theory proves codes of one layer alone."""
    one = made({"good": made_curve(0.1)})
    parts = [changed(one, "good", proved=Proved(share, 10)) for share in (0.0, 0.5)]
    for order in (parts, parts[::-1]):
        table = ChainComparison(tuple(order)).table().splitlines()[:4]
        rows = [row.strip("| ").split(" | ") for row in table]
        at = rows[0].index("proved codes, %")
        assert {len(row) for row in (rows[0], *rows[2:])} == {len(rows[0])}
        assert sorted(float(row[at]) for row in rows[2:]) == [0.0, 50.0]


def test_marks_of_latex_are_escaped():
    text = latex(["a_1 & 50 %"], [["x^2 {y}"]])
    assert r"a\_1 \& 50 \% \\" in text and r"x\textasciicircum{}2 \{y\} \\" in text


def test_tables_are_html_in_jupyter():
    shown = markdown(["name", "a < b"], [["x|y", "1"]], ["Not <b>."])._repr_html_()
    assert re.findall("<t[hd]>(.*?)</t[hd]>", shown) == ["name", "a &lt; b", "x|y", "1"]
    assert shown.count("<tr>") == 2 and shown.endswith("<p>Not &lt;b&gt;.</p>")


@pytest.mark.slow
def test_a_result_is_a_table_in_jupyter(result):
    rows = re.findall("<tr><td>(.*?)</td>", result._repr_html_())
    assert rows == [record["method"] for record in result.table("records")]


@pytest.mark.slow
def test_results_are_shown_on_one_screen(result, unknown, problem):
    D, Y, X = problem
    layer = layers.ista(2)
    options = dict(optimizer=optax.sgd(1e-3), steps=2, key=0)
    fit = ur.fit(layer, layer.init(None, D), D, (Y, X), **options)
    for shown in (repr(result), repr(unknown[1]), repr(fit)):
        assert len(shown.splitlines()) <= 24 and "Array(" not in shown
        assert len(shown) < 2500
    assert "ISTA" in repr(result) and "validation loss" in repr(fit)


@pytest.mark.slow
def test_quantiles_of_exact_codes_are_numbers():
    """The error of an exact code is -inf dB; -300 stands for it, as in the mean."""
    D = dictionaries.identity_hadamard(16)
    Y, X = (np.asarray(part) for part in problems.sampler(D, 64)(0))
    half = np.where(np.arange(64)[:, None] < 40, X, 0.9 * X)
    curves = each(compare({"all": X, "most": half, "none": 0.9 * X}, D, Y, X), "curve")
    for name, median in {"all": -300, "most": -300, "none": -20}.items():
        assert np.isfinite(curves[name].quantiles).all()
        assert curves[name].quantiles[..., 1] == pytest.approx(median, abs=1e-6)


def test_products_of_blocks_of_rows_in_a_scan_are_parts_of_a_product():
    D = np.ones((4, 6))

    def model(x):
        def step(x, _):
            r = jax.lax.map(lambda rows: rows @ x, D.reshape(2, 2, 6)).ravel()  # two blocks
            return x - r @ D, None

        return jax.lax.scan(step, x, length=3)[0]

    assert _count(jax.make_jaxpr(model)(np.ones(6)).jaxpr, D.size, 0) == 6
