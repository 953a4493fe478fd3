"""The recorder of a training: its numbers against dense algebra, its tables, figure and errors."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrolled as ur
from unrolled.comparison import evolution
from unrolled.training import Record

M, N, DEPTH = 8, 12, 3
# Sums of some dozens of terms in another order.
ROUNDING = 1e3 * np.finfo(float).eps
D = ur.dictionaries.gaussian(jax.random.key(1), M, N)


def record(step):
    return Record(step, 0.5 - 0.1 * step, 0.4 - 0.1 * step, 0.0)


def watched(layer, *trees, D=D, **options):
    """A recorder that has measured these params of a layer, one after the other."""
    watch = evolution(layer, D, **options)
    for step, params in enumerate(trees):
        watch(record(step), params)
    return watch


def shaken(params, scale=0.1):
    """Params that all differ from each other, step by step."""
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + scale * rng.uniform(size=leaf.shape)), params
    )


def by_hand(W, S=None, D=D):
    """The fields of a `Coupling` at one step, from dense matrices."""
    G = np.asarray(W).T @ np.asarray(ur.dictionaries.dense(D))
    eye = np.eye(len(G))
    mismatch = 0 if S is None else np.linalg.norm(S - (eye - G)) / np.linalg.norm(S)
    return (*of_products(G), mismatch)


def of_products(G):
    """The fields of a `Coupling` but the last, from W'D."""
    diagonal, off = np.diag(G), ~np.eye(len(G), dtype=bool)
    scaled = (G / diagonal[:, None])[off]
    ends = diagonal.min(), diagonal.mean(), diagonal.max()
    return *ends, np.abs(scaled).max(), np.sqrt((scaled**2).mean()), np.abs(G[off]).max()


def assert_rows(found, expected):
    np.testing.assert_allclose(
        np.stack(jax.tree.leaves(found), 1), np.asarray(expected), rtol=1e-9, atol=ROUNDING
    )


LISTA = ur.lista(DEPTH, tied=False)
CHAIN = ur.dsc([LISTA, ur.lista_cp(2)])
CHAIN_Ds = D, ur.dictionaries.gaussian(jax.random.key(2), N, N + 2)


@pytest.fixture(scope="module")
def lista():
    """Params of untied LISTA: matrices without a coupling."""
    return shaken(LISTA.init(None, D))


@pytest.fixture(scope="module")
def trained():
    """A short training of LISTA-CP, tied: the recorder, the start and the result."""
    layer = ur.lista_cp(DEPTH)
    start = layer.init(None, D)
    prediction = ur.theory.schedule(0.2, 1.0, sparsity=2, bound=1.0, depth=DEPTH)
    watch = evolution(layer, D, prediction=prediction)
    options = dict(
        optimizer=optax.adam(1e-2),
        steps=5,
        evaluate_every=2,
        key=jax.random.key(0),
        callbacks=[watch],
    )
    return watch, start, ur.fit(layer, start, D, ur.problems.sampler(D, 4), **options)


# Numbers


def test_uncoupled_matrices_of_every_step_against_dense_algebra(lista):
    (found,) = watched(LISTA, lista).evaluations
    assert_rows(found.coupling, [by_hand(B, S) for B, S in zip(*map(np.asarray, lista.steps[:2]))])
    assert (found.coupling.mismatch > 0.01).all()
    np.testing.assert_array_equal(found.theta, lista.steps.theta)


def test_unstacked_steps_give_the_same_evaluation(lista):
    one, other = watched(LISTA, lista, ur.layers.unstack(lista)).evaluations
    np.testing.assert_array_equal(one.coupling, other.coupling)
    np.testing.assert_array_equal(one.theta, other.theta)


@pytest.mark.slow
def test_one_step_size_or_one_per_atom_stands_in_the_weights():
    layer = ur.alista(DEPTH)
    params = layer.init(None, D)
    scalars = jnp.asarray([1.0, 0.5, 2.0])
    per_atom = jnp.asarray(np.outer(scalars, np.linspace(0.5, 1.5, N)))
    for gamma in (scalars, per_atom):
        moved = params._replace(steps=params.steps._replace(gamma=gamma))
        (found,) = watched(layer, moved).evaluations
        W = np.asarray(params.shared.W)
        assert_rows(found.coupling, [by_hand(W * np.asarray(g)) for g in gamma])


def test_in_lfista_the_two_matrices_on_the_codes_are_coupled_together():
    """FISTA meets the coupling at every step, whatever its momentum."""
    layer = ur.layers.lfista(DEPTH)
    params = layer.init(None, D)
    p = shaken(params).steps
    first, last = watched(layer, params, ur.layers.Unrolled(None, p)).evaluations
    assert first.coupling.mismatch.max() < ROUNDING
    assert_rows(last.coupling, [by_hand(p.B[k], p.S[k] + p.M[k]) for k in range(DEPTH)])


class _silent(ur.layers.ista):
    """ISTA that does not say which weights act."""

    weights = None


def test_thresholds_per_atom_are_averaged_and_families_without_weights_give_only_them():
    layer = _silent(DEPTH)
    params = layer.init(None, D)
    theta = jnp.linspace(0, 1, DEPTH * N).reshape(DEPTH, N)
    watch = watched(layer, params, params._replace(steps=params.steps._replace(theta=theta)))
    assert [found.coupling for found in watch.evaluations] == [None, None]
    np.testing.assert_allclose(
        watch.series("theta"), [params.steps.theta, theta.mean(1)], rtol=ROUNDING
    )
    with pytest.raises(ValueError, match="this family has no mu_W"):
        watch.series("mu_W")
    assert "| 0 | 0.4 | " in watch.table() and watch.steps_table().count("\n") == 1 + DEPTH
    assert len([axes for axes in watch.plot().axes if axes.get_lines()]) == 2


def test_a_family_without_thresholds_gives_its_couplings():
    """Step-LISTA: W = gamma_k D, with the thresholds gamma_k lam."""
    layer = ur.layers.step_lista(DEPTH)
    params = layer.init(None, D)
    watch = watched(layer, params)
    assert watch.evaluations[0].theta is None and "| 0 | 0.4 |" in watch.table()
    gammas = np.asarray(params.steps.gamma)
    assert_rows(watch.evaluations[0].coupling, [by_hand(gamma * D) for gamma in gammas])
    with pytest.raises(ValueError, match="this family has no theta"):
        watch.series("theta")


@pytest.mark.slow
def test_a_family_without_weights_or_thresholds_gives_the_loss():
    layer = ur.layers.na_alista(DEPTH, units=2)
    watch = watched(layer, layer.init(jax.random.key(0), D))
    first = watch.evaluations[0]
    assert first.theta is first.coupling is None and "| 0 | 0.4 |" in watch.table()
    for field in ("theta", "mismatch"):
        with pytest.raises(ValueError, match=f"this family has no {field}"):
            watch.series(field)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_convolutional_dictionary_is_measured_by_its_filters(tied):
    """Its diagonal and mu_W are those of the dense matrices.

    With long filters on a circle the root mean square is too.
    """
    filters = np.random.default_rng(0).normal(size=(2, 1, 5))
    C, _ = ur.dictionaries.normalize(ur.dictionaries.Conv(filters, 6, boundary="circular"))
    layer = ur.lista_cp(DEPTH, tied=tied)
    (found,) = watched(layer, layer.init(None, C), D=C).evaluations
    A = np.asarray(ur.dictionaries.dense(C))
    G = A.T @ A / np.linalg.norm(A, 2) ** 2
    expected = (*of_products(G), 0)
    # The norm that init divides by is known to 32 eps times its square.
    np.testing.assert_allclose(
        np.stack(jax.tree.leaves(found.coupling), 1),
        [expected] * (1 if tied else DEPTH),
        rtol=1e-12,
        atol=ROUNDING,
    )


def test_weights_that_are_not_finite_are_seen():
    layer = ur.lista_cp(DEPTH)
    params = layer.init(None, D)
    params = params._replace(shared=params.shared._replace(W=params.shared.W.at[0, 0].set(jnp.nan)))
    watch = watched(layer, params)
    assert np.isnan(jax.tree.leaves(watch.evaluations[0].coupling)[:6]).all()
    assert json.loads(watch.to_json())["evaluations"][0]["coupling"]["mu_W"] == [None]


# A training


@pytest.mark.slow
def test_the_first_evaluation_is_the_start_and_the_last_the_result(trained):
    watch, start, fitted = trained
    assert [at.step for at in watch.evaluations] == [0, 2, 4, 5] == list(watch.series("step"))
    np.testing.assert_array_equal(
        watch.series("validation"), [r.validation for r in fitted.history.records]
    )
    for at, params in ((watch.evaluations[0], start), (watch.evaluations[-1], fitted.params)):
        np.testing.assert_allclose(at.theta, params.steps.theta, rtol=ROUNDING)
        assert_rows(at.coupling, [by_hand(params.shared.W)])
    assert watch.evaluations[0].coupling.mu_W != watch.evaluations[-1].coupling.mu_W


def test_the_contraction_of_theory_at_each_evaluation(trained):
    watch, start, fitted = trained
    low, _, high, *_, largest, _ = by_hand(fitted.params.shared.W)
    assert watch.contraction(2)[-1, 0] == pytest.approx(
        3 * largest + max(abs(1 - low), abs(1 - high)), rel=1e-9
    )
    W = ur.analytic.frobenius_weights(D)
    params = ur.analytic.lista_cp(D, W=W, depth=DEPTH, sparsity=1, bound=1.0)
    _, schedule = ur.analytic.block_schedule(D, W, depth=DEPTH, sparsity=1, bound=1.0)
    # The schedule rounds mu_W up by 1e-9.
    found = watched(ur.lista_cp(DEPTH), params).contraction(1)
    assert found[0, 0] == pytest.approx(schedule.contraction, rel=1e-8)


def test_series_over_the_evaluations(trained, lista):
    watch = trained[0]
    assert watch.series("theta").shape == (4, DEPTH) and watch.series("mu_W").shape == (4, 1)
    assert watched(LISTA, lista, lista).series("mismatch").shape == (2, DEPTH)
    with pytest.raises(ValueError, match="unknown field 'coupling'; expected one of step, loss"):
        watch.series("coupling")


def test_tables_have_a_row_per_evaluation_or_step_and_theory_beside_them(trained, lista):
    watch = trained[0]
    header, rule, *rows = watch.table().split("\n")
    assert [row.split("|")[1].strip() for row in rows] == ["0", "2", "4", "5", "theory"]
    assert {row.count("|") for row in (header, rule, *rows)} == {8}
    predicted = watch.prediction.theta
    assert f"{predicted[0]:.4g} to {predicted[-1]:.4g} | 1 |" in rows[-1]
    assert f"{watch.evaluations[-1].coupling.mu_W[0]:.4f}" in rows[-2]
    for found, columns in ((watch, 7), (watched(LISTA, lista), 6)):
        header, rule, *rows = found.steps_table().split("\n")
        assert len(rows) == DEPTH
        assert {row.count("|") for row in (header, rule, *rows)} == {columns + 1}
    theta = watch.series("theta")[:, 1]
    assert f"| 2 | {theta[0]:.4g} -> {theta[-1]:.4g} |" in watch.steps_table()


def test_json_holds_every_evaluation_and_the_prediction(trained):
    watch = trained[0]
    held = json.loads(watch.to_json())
    first, *_, last = held["evaluations"]
    assert [at["step"] for at in held["evaluations"]] == [0, 2, 4, 5] and first["loss"] is None
    expected = watch.evaluations[-1].coupling.off_diagonal
    assert last["coupling"]["off_diagonal"] == expected.tolist()
    assert held["prediction"]["theta"] == watch.prediction.theta.tolist()
    layer = ur.layers.ista(1)
    alone = watched(layer, layer.init(None, D))
    assert json.loads(alone.to_json())["prediction"] is None


@pytest.mark.slow
def test_the_figure_has_a_line_per_step_and_dashes_for_theory(trained, lista, tmp_path):
    watch = trained[0]
    axes = [a for a in watch.plot().axes if a.get_lines()]
    solid = [[line for line in a.get_lines() if line.get_linestyle() == "-"] for a in axes]
    assert [len(lines) for lines in solid] == [1, DEPTH, 1, 1, 1]
    assert [len(a.get_lines()) - len(lines) for a, lines in zip(axes, solid)] == [0, DEPTH, 1, 0, 0]
    np.testing.assert_array_equal(solid[1][-1].get_ydata(), watch.series("theta")[:, -1])
    np.testing.assert_array_equal(solid[3][0].get_xdata(), [0, 2, 4, 5])
    figure = watched(LISTA, lista, lista, prediction=watch.prediction).plot()
    assert [len(a.get_lines()) for a in figure.axes if a.get_lines()] == [
        1,
        2 * DEPTH,
        DEPTH + 1,
        DEPTH,
        DEPTH,
        DEPTH + 1,
    ]
    figure.savefig(tmp_path / "figure.png", dpi=30)


# What is refused


PREDICTION = types.SimpleNamespace(theta=np.ones(DEPTH + 1))
# A call with untied LISTA's params, the error, the essential words of the message.
FAULTS = [
    (lambda p: evolution(D, D), TypeError, "a Layer or a Network first, got ArrayImpl"),
    (lambda p: evolution(ur.dsc([LISTA]), D), ValueError, "Ds is one dictionary"),
    (lambda p: evolution(CHAIN, (D,)), ValueError, "2 dictionaries, one per layer of the .* got 1"),
    (
        lambda p: evolution(CHAIN, CHAIN_Ds, prediction=PREDICTION),
        *(ValueError, "expected 2 predictions, one per layer of the network, got one"),
    ),
    (lambda p: evolution(CHAIN, CHAIN_Ds)(record(0), p), TypeError, "params must be Unrolled"),
    (lambda p: evolution(LISTA, (D, D)), TypeError, "one dictionary for a layer, got several"),
    (lambda p: evolution(LISTA, D[0]), ValueError, "expected"),
    (
        lambda p: evolution(LISTA, D, prediction=0.1),
        *(TypeError, "must have thresholds `theta`, got float"),
    ),
    (lambda p: watched(LISTA, (p, p)), TypeError, r"for a network try evolution\(network, Ds\)"),
    (
        lambda p: watched(LISTA, p, D=D[:, 1:]),
        *(ValueError, r"B has shape \(8, 12\).*expected one of \[\(8, 11\)\]"),
    ),
    (lambda p: watched(ur.alista(DEPTH), p), TypeError, "another family"),
    (
        lambda p: watched(ur.lista(DEPTH + 1, tied=False), p),
        *(ValueError, "params have .3. steps but the layer has depth 4"),
    ),
    (
        lambda p: watched(LISTA, p, prediction=PREDICTION),
        *(ValueError, "prediction has 4 steps but the params have 3"),
    ),
    (lambda p: evolution(LISTA, D).table(), ValueError, "no evaluation yet"),
    (lambda p: evolution(LISTA, D).steps_table(), ValueError, "no evaluation yet"),
    (lambda p: evolution(LISTA, D).to_json(), ValueError, "no evaluation yet"),
    (lambda p: evolution(LISTA, D).plot(), ValueError, "no evaluation yet"),
    (lambda p: evolution(CHAIN, CHAIN_Ds).plot(), ValueError, "no evaluation yet"),
]


@pytest.mark.parametrize("call, error, words", FAULTS)
def test_faults_are_refused(lista, call, error, words):
    with pytest.raises(error, match=words):
        call(lista)


# Networks


def test_a_network_is_watched_layer_by_layer(lista):
    """Every layer has the evaluations of a recorder of its own, tables and JSON included."""
    trees = [(lista, CHAIN.layers[1].init(None, CHAIN_Ds[1]))]
    trees.append(tuple(map(shaken, trees[0])))
    schedules = [
        ur.theory.schedule(0.01, 1.0, sparsity=1, bound=1.0, depth=layer.depth)
        for layer in CHAIN.layers
    ]
    watch = watched(CHAIN, *trees, D=CHAIN_Ds, prediction=schedules)
    alone = [
        watched(layer, *params, D=D, prediction=schedule)
        for layer, params, D, schedule in zip(CHAIN.layers, zip(*trees), CHAIN_Ds, schedules)
    ]
    for part, expected in zip(watch.layers, alone, strict=True):
        for ours, theirs in zip(part.evaluations, expected.evaluations, strict=True):
            np.testing.assert_array_equal(ours.theta, theirs.theta)
            assert_rows(ours.coupling, np.stack(jax.tree.leaves(theirs.coupling), 1))
    for table in ("table", "steps_table"):
        parts = [f"Layer {j}\n\n{getattr(w, table)()}" for j, w in enumerate(alone, start=1)]
        assert getattr(watch, table)() == "\n\n".join(parts)
    held = json.loads(watch.to_json())["layers"]
    assert held == [json.loads(part.to_json()) for part in alone]


def test_the_figure_of_a_network_has_a_column_per_layer(lista):
    params = (lista, CHAIN.layers[1].init(None, CHAIN_Ds[1]))
    watch = watched(CHAIN, params, params, D=CHAIN_Ds)
    figure = watch.plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["Layer 1\nValidation loss", "Layer 2\nValidation loss"]
    assert titles[2:4] == ["Mean threshold"] * 2
    lines = [len(axes.get_lines()) for axes in figure.axes[2:4]]
    assert lines == [DEPTH, CHAIN.layers[1].depth]


@pytest.mark.slow
def test_the_layers_of_ml_lista_are_watched_too():
    """At its start B = D / L and gamma = 1 / L: W'D = D'D / L, and S is I - W'D."""
    network = ur.networks.ml_lista(DEPTH)
    watch = watched(network, network.init(None, CHAIN_Ds), D=CHAIN_Ds)
    for part, D in zip(watch.layers, CHAIN_Ds):
        found = part.evaluations[0]
        expected = by_hand(D / float(ur.dictionaries.spectral_norm(D)) ** 2, D=D)
        assert_rows(found.coupling, [expected] * len(found.coupling.mu_W))
        assert len(found.theta) == DEPTH


@pytest.mark.slow
def test_training_of_a_network_fills_its_recorder():
    network, Ds = ur.dsc([ur.lista_cp(1), ur.layers.ista(2)]), CHAIN_Ds
    watch = evolution(network, Ds)

    def sample(key):
        X = jax.random.normal(key, (4, Ds[1].shape[1]), D.dtype)
        return X @ (Ds[0] @ Ds[1]).T, X

    options = dict(optimizer=optax.sgd(1e-3), steps=1, key=0, callbacks=[watch])
    assert ur.fit(network, network.init(None, Ds), Ds, sample, **options).model is network
    assert [len(layer.evaluations) for layer in watch.layers] == [2, 2]
