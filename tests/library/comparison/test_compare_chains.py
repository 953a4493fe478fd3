"""Networks compared: every layer of a chain as if it were compared alone."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import each

import unrolled as ur
from unrolled import analytic, dictionaries, layers, problems, theory
from unrolled.comparison import ChainComparison, DivergenceWarning, Guarantee, _promises, compare
from unrolled.comparison._promises import guarantees
from unrolled.comparison._weights import coupling

LAM = 0.05
# Sums of some hundred terms, compiled differently, through nine steps.
ROUNDING = 1e5 * np.finfo(float).eps
LAYERS = (layers.lista_cp(3), layers.lista(2))
CHAIN = ur.dsc(LAYERS)


@pytest.fixture(scope="module")
def problem():
    """Ds, Y, Xs with a sparse second dictionary, so that all codes are sparse."""
    keys = jax.random.split(jax.random.key(1), 3)
    eye = jnp.eye(24)
    Ds = dictionaries.gaussian(keys[0], 12, 24), jnp.concatenate([eye, eye[:, :4]], 1)
    X_2 = problems.exact_sparse(keys[1], (30, 28), 1)
    X_1 = problems.synthesize(Ds[1], X_2)
    noise = 0.01 * jax.random.normal(keys[2], (30, 12))
    return Ds, problems.synthesize(Ds[0], X_1) + noise, (X_1, X_2)


@pytest.fixture(scope="module")
def methods(problem):
    start = CHAIN.init(None, problem[0])
    moved = jax.tree.map(lambda leaf: 1.01 * leaf, start)
    return {"start": (CHAIN, start), "moved": (CHAIN, moved)}


@pytest.fixture(scope="module")
def result(methods, problem):
    return compare(methods, *problem, lam=LAM)


@pytest.mark.slow
def test_the_numbers_of_a_layer_are_those_of_its_codes(result, methods, problem):
    assert isinstance(result, ChainComparison) and len(result.layers) == 2
    Ds, Y, Xs = problem
    run = jax.jit(jax.vmap(CHAIN.iterates, (None, None, 0), out_axes=1))
    for name, (_, params) in methods.items():
        paths = run(params, Ds, Y)
        for layer, p, D, path, X, found in zip(LAYERS, params, Ds, paths, Xs, result.layers):
            curve, X = found[name].curve, np.asarray(X)
            error = np.asarray(path) - X
            nmse = 10 * np.log10((error**2).sum((1, 2)) / (X**2).sum())
            np.testing.assert_allclose(curve.nmse, nmse, rtol=1e-9, atol=ROUNDING)
            largest = np.abs(error).sum(2).max(1)
            np.testing.assert_allclose(curve.largest_l1, largest, rtol=1e-9, atol=ROUNDING)
            wrong = ((np.asarray(path) != 0) & (X == 0)).sum(2).mean(1)
            np.testing.assert_allclose(curve.false_positives, wrong, rtol=1e-9)
            assert len(curve.nmse) == layer.depth
            expected = coupling(layer.weights, p, D)
            assert found[name].coupling == expected
            np.testing.assert_array_equal(found[name].thresholds, p.steps.theta)
    for found in result.layers:
        assert each(found, "reference") == {"moved": "start"}
        for change in found["moved"].changes:
            assert change.distance == pytest.approx(0.01, rel=1e-9)


@pytest.mark.slow
def test_the_gap_of_a_layer_is_to_the_lasso_of_the_true_code_before_it(result, methods, problem):
    Ds, Y, Xs = problem
    network, params = methods["start"]
    codes = jax.jit(jax.vmap(network.apply, (None, None, 0)))(params, Ds, Y)
    for D, signals, x, found in zip(Ds, (Y, *Xs), codes, result.layers):
        fista = partial(ur.pursuit.fista, D, lam=LAM, tol=1e-9, max_steps=5000)
        solved = jax.jit(jax.vmap(fista))(signals).x

        def objective(x, D=D, signals=signals):
            squares = ((np.asarray(signals) - np.asarray(x) @ np.asarray(D).T) ** 2).sum()
            return squares / 2 + LAM * np.abs(x).sum()

        least = objective(solved)
        gap = (objective(x) - least) / least
        # FISTA stops at a duality gap of 1e-6 of the energy, below 20 times the objective.
        assert found["start"].curve.gap[-1] == pytest.approx(gap, abs=4e-5)


@pytest.mark.slow
def test_tables_and_json_have_every_layer(result, methods):
    names = list(methods)
    tables = result.table(), result.parameters_table(), result.guarantees_table()
    for table, solvers in zip(tables, (["exact"], [], [])):  # solvers have errors alone
        head, rule, *rows = table.split("\n")
        assert head.startswith("| layer | method |")
        cells = [[cell.strip() for cell in row.split("|")[1:3]] for row in rows]
        assert cells == [[str(j), name] for j in (1, 2) for name in names + solvers]
        assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    held = json.loads(result.to_json())["layers"]
    for part, found in zip(held, result.layers, strict=True):
        assert part["methods"]["moved"]["curve"]["nmse"] == found["moved"].curve.nmse.tolist()


def test_the_figure_has_a_column_per_layer(result):
    grid = np.asarray(result.plot().axes, dtype=object).reshape(6, 2)
    for j, found in enumerate(result.layers):
        assert grid[0, j].get_title().startswith(f"Layer {j + 1}\nDistance to the true codes")
        for line, of in zip(grid[0, j].get_lines(), found.methods.values(), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), of.curve.nmse)
        assert [axes.get_title() for axes in grid[1:, j]] == [
            axes.get_title() for axes in grid[1:, 0]
        ]


@pytest.mark.slow
def test_ml_lista_is_compared(problem):
    """All of its codes change at every step; B and I - gamma D'D stand in for W and S."""
    Ds, Y, Xs = problem
    network = ur.networks.ml_lista(3)
    params = network.init(None, Ds)
    found = compare({"ml": (network, params)}, Ds, Y, Xs)
    codes = jax.jit(jax.vmap(network.iterates, (None, None, 0), out_axes=1))(params, Ds, Y)
    for path, X, p, part in zip(codes, Xs, params, found.layers):
        error = ((np.asarray(path) - np.asarray(X)) ** 2).sum((1, 2)) / (np.asarray(X) ** 2).sum()
        nmse = part["ml"].curve.nmse
        np.testing.assert_allclose(nmse, 10 * np.log10(error), rtol=1e-9, atol=ROUNDING)
        np.testing.assert_array_equal(part["ml"].thresholds, p.steps.theta)
        assert part["ml"].coupling.mismatch.max() < ROUNDING  # ML-ISTA is coupled
        assert part["ml"].guarantee is None


@pytest.mark.slow
def test_guarantees_of_a_chain_are_those_of_the_theory():
    """The error of each layer adds to the noise of the next."""
    D_1 = dictionaries.identity_hadamard(16)
    D_2 = jnp.eye(32)
    options = dict(depths=(12, 3), sparsities=(2, 2), bounds=(1.0, 1.0))
    params = analytic.dsc((D_1, D_2), **options)
    blocks = layers.lista_cp(12), layers.lista_cp(3)
    network = ur.dsc(blocks)
    X = problems.bounded(jax.random.key(0), (30, 32), 2, 1.0)
    Y = problems.synthesize(D_1, X)
    given = dict(sparsity=(2, 2), bound=(1.0, 1.0), noise=(0.0, 0.0))
    found = compare({"dsc": (network, params)}, (D_1, D_2), Y, (X, X), **given)
    expected = theory.certify(network, params, (D_1, D_2), **given)
    for part, certificate in zip(found.layers, expected):
        held = part["dsc"].guarantee
        assert (held.sparsity, held.bound, held.noise) == (2, 1.0, 0.0) and certificate.holds
        np.testing.assert_array_equal(held.certificate.error, certificate.error)
        assert (part["dsc"].curve.largest_l1 <= certificate.error[1:]).all()


def test_layers_from_the_first_without_a_certificate_on_have_no_guarantee(result, methods, problem):
    assert [set(each(part, "guarantee")) for part in result.layers] == [set(methods), set()]
    Ds = (*problem[0], np.eye(28))
    network = ur.dsc((*LAYERS, layers.lista_cp(1)))
    found = guarantees(network, network.init(None, Ds), Ds, lambda j, D: (1, 1.0, 0.0))
    assert [guarantee is None for guarantee in found] == [False, True, True]


@pytest.mark.slow
def test_divergence_names_the_layer(methods, problem):
    network, params = methods["start"]
    last = params[1]._replace(shared=params[1].shared._replace(B=1e3 * params[1].shared.B))
    far = {"far": (network, (params[0], last))}
    with pytest.warns(DivergenceWarning, match="compare: Layer 2: far diverges"):
        found = compare(far, *problem)
    assert [set(each(part, "diverged")) for part in found.layers] == [set(), {"far"}]
    note = found.table().split("\n\n")[1]
    assert (
        note.startswith("Layer 2: far diverges: its codes are worse than zero codes")
        and "(diverges)" in found.table()
    )


def test_the_training_of_a_network_is_a_method(methods, problem):
    Ds, _, _ = problem
    network, params = methods["start"]
    fit = ur.training.Fit(None, params, Ds, None, network)
    found = compare({"fit": fit, "same": (network, fit.best)}, *problem)
    for part in found.layers:
        np.testing.assert_array_equal(part["fit"].curve.nmse, part["same"].curve.nmse)


@pytest.mark.slow
def test_codes_of_a_chain_stand_for_themselves(methods, problem):
    Ds, Y, Xs = problem
    name, (network, params) = next(iter(methods.items()))
    codes = jax.vmap(network.apply, (None, None, 0))(params, Ds, Y)
    found = compare({name: (network, params), "codes": codes}, Ds, Y, Xs)
    for layer in found.layers:
        a, b = layer[name].curve, layer["codes"].curve
        np.testing.assert_allclose(b.nmse, a.nmse[-1:], atol=1e-4)
    with pytest.raises(TypeError, match="is a layer and 'codes' a network"):
        compare({"one": codes[0], "codes": codes}, Ds, Y, Xs)


def test_what_does_not_fit_a_chain_is_refused(methods, problem):
    Ds, Y, Xs = problem
    short = {"x": (ur.dsc(LAYERS[:1]), methods["start"][1][:1])}
    for words, changes in (
        ("Ds is one dictionary", dict(D=Ds[0])),
        ("codes of all 2 layers, got an array of shape .30, 28.", dict(X=Xs[-1])),
        ("codes of all 2 layers, got 1", dict(X=Xs[:1])),
        (r"expected \(batch, 24\) and \(batch, 28\)", dict(X=(Xs[0], Xs[0]))),
        ("expected a tuple of 1 Ds, one per layer, got 2", dict(methods=short)),
        ("expected 2 values of sparsity, one per layer, got 2", dict(sparsity=2)),
        (r"expected 2 values of lam, one per layer, got \(0.1,", dict(lam=(0.1,))),
        ("sampled, certify and predict are for layers", dict(certify=True)),
    ):
        with pytest.raises(ValueError, match=words):
            compare(**dict(methods=methods, D=Ds, Y=Y, X=Xs) | changes)


def test_without_codes_every_layer_has_the_lasso_of_the_codes_before(methods, problem):
    Ds, Y, _ = problem
    name, method = "start", methods["start"]
    found = compare({name: method}, Ds, Y, lam=[0.05, 0.02])
    first = ur.pursuit.lasso_batch(Ds[0], Y, 0.05, tol=1e-9).x
    second = ur.pursuit.lasso_batch(Ds[1], first, 0.02, tol=1e-9).x
    expected = compare({name: method}, Ds, Y, (first, second), lam=[0.05, 0.02])
    for ours, other in zip(found.layers, expected.layers):
        np.testing.assert_allclose(ours[name].curve.gap, other[name].curve.gap, rtol=1e-6)
    assert [layer.known for layer in found.layers] == [False, False]


def test_layers_after_one_without_a_certificate_have_none_either(monkeypatch):
    monkeypatch.setattr(_promises.theory, "certify", lambda *_, **__: ["certificate"])
    chain, of = ur.dsc((layers.lista_cp(1), layers.lista(1), layers.lista_cp(1))), (2, 1.0, 0.1)
    first, *rest = guarantees(chain, (np.ones(1),) * 3, (None,) * 3, lambda j, D: of)
    assert first == Guarantee(*of, "certificate") and rest == [None, None]
