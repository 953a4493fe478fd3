"""The recorder of a training: numbers against dense algebra, what it sees first and last, families,
figures and errors.
"""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrolled as ur
from unrolled.compare import evolution
from unrolled.compare._coupling import coupling
from unrolled.training import Record

M, N, DEPTH = 8, 12, 3
# Sums of some dozens of terms in another order.
ROUNDING = 1e3 * np.finfo(float).eps
D = ur.dictionaries.gaussian(jax.random.key(1), M, N)


def record(step):
    return Record(step, 0.5 - 0.1 * step, 0.4 - 0.1 * step, 0.0)


def watched(*trees, D=D, **options):
    """A recorder that saw these params, one after the other."""
    watch = evolution(D, **options)
    for step, params in enumerate(trees):
        watch(record(step), params)
    return watch


def shaken(params, scale=0.1):
    """Params that all differ from each other, step by step."""
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + scale * rng.uniform(size=leaf.shape)), params
    )


def by_hand(W, S=None):
    """The fields of a `Coupling` at one step, from dense matrices."""
    G = np.asarray(W).T @ np.asarray(ur.dictionaries.dense(D))
    diagonal, off = np.diag(G), G[~np.eye(N, dtype=bool)]
    mismatch = 0 if S is None else np.linalg.norm(S - (np.eye(N) - G)) / np.linalg.norm(S)
    return (
        diagonal.min(),
        diagonal.mean(),
        diagonal.max(),
        np.abs(off).max(),
        np.sqrt((off**2).mean()),
        mismatch,
    )


def assert_rows(found, expected):
    np.testing.assert_allclose(np.stack(found, 1), np.asarray(expected), rtol=1e-9, atol=ROUNDING)


@pytest.fixture(scope="module")
def lista():
    """Untied LISTA: matrices without a coupling."""
    return shaken(ur.lista(DEPTH, tied=False).init(None, D))


@pytest.fixture(scope="module")
def trained():
    """A short training of LISTA-CP, tied: the recorder, the start and the result."""
    layer = ur.lista_cp(DEPTH)
    start = layer.init(None, D)
    watch = evolution(
        D, prediction=ur.theory.schedule(0.2, 1.0, sparsity=2, bound=1.0, depth=DEPTH)
    )
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
    (look,) = watched(lista).looks
    assert_rows(look.coupling, [by_hand(B, S) for B, S in zip(*map(np.asarray, lista.steps[:2]))])
    assert (look.coupling.mismatch > 0.01).all()
    np.testing.assert_array_equal(look.theta, lista.steps.theta)


def test_unstacked_steps_give_the_same_look(lista):
    looks = watched(lista, ur.layers.unstack(lista)).looks
    np.testing.assert_array_equal(looks[0].coupling, looks[1].coupling)
    np.testing.assert_array_equal(looks[0].theta, looks[1].theta)


def test_one_step_size_or_one_per_atom_stands_in_the_weights():
    params = ur.alista(DEPTH).init(None, D)
    scalars = jnp.asarray([1.0, 0.5, 2.0])
    per_atom = jnp.asarray(np.outer(scalars, np.linspace(0.5, 1.5, N)))
    for gamma in (scalars, per_atom):
        (look,) = watched(params._replace(steps=params.steps._replace(gamma=gamma))).looks
        assert_rows(
            look.coupling, [by_hand(np.asarray(params.shared.W) * np.asarray(g)) for g in gamma]
        )


def test_in_lfista_the_two_matrices_on_the_codes_are_coupled_together():
    """FISTA meets the coupling at every step, whatever its momentum."""
    params = ur.layers.lfista(DEPTH).init(None, D)
    p = shaken(params).steps
    first, last = watched(params, ur.layers.Unrolled(None, p)).looks
    assert first.coupling.mismatch.max() < ROUNDING
    assert_rows(last.coupling, [by_hand(p.B[k], p.S[k] + p.M[k]) for k in range(DEPTH)])


def test_thresholds_per_atom_are_averaged_and_families_without_weights_give_them_alone():
    params = ur.layers.ista(DEPTH).init(None, D)
    theta = jnp.linspace(0, 1, DEPTH * N).reshape(DEPTH, N)
    watch = watched(params, params._replace(steps=params.steps._replace(theta=theta)))
    assert [look.coupling for look in watch.looks] == [None, None]
    np.testing.assert_allclose(
        watch.series("theta"), [params.steps.theta, theta.mean(1)], rtol=ROUNDING
    )
    with pytest.raises(ValueError, match="this family has no mu_W"):
        watch.series("mu_W")
    assert "| 0 | 0.4 | " in watch.table() and watch.steps_table().count("\n") == 1 + DEPTH
    assert len([axes for axes in watch.plot().axes if axes.get_lines()]) == 2


def test_a_family_without_weights_or_thresholds_gives_the_loss():
    watch = watched(ur.layers.step_lista(DEPTH).init(None, D))
    assert watch.looks[0][-2:] == (None, None) and "| 0 | 0.4 |" in watch.table()
    with pytest.raises(ValueError, match="this family has no theta"):
        watch.series("theta")


@pytest.mark.parametrize("tied", [True, False])
def test_a_convolutional_dictionary_is_measured_by_its_filters(tied):
    """Its diagonal and mu_W are those of the dense matrices, and with long filters on a circle the
    root mean square too.
    """
    filters = np.random.default_rng(0).normal(size=(2, 1, 5))
    C, _ = ur.dictionaries.normalize(ur.dictionaries.Conv(filters, 6, boundary="circular"))
    params = ur.lista_cp(DEPTH, tied=tied).init(None, C)
    (look,) = watched(params, D=C).looks
    A = np.asarray(ur.dictionaries.dense(C))
    G = A.T @ A / np.linalg.norm(A, 2) ** 2
    diagonal, off = np.diag(G), G[~np.eye(len(G), dtype=bool)]
    expected = (
        diagonal.min(),
        diagonal.mean(),
        diagonal.max(),
        np.abs(off).max(),
        np.sqrt((off**2).mean()),
        0,
    )
    # The norm that init divides by is known to 32 eps times its square.
    np.testing.assert_allclose(
        np.stack(look.coupling, 1), [expected] * (1 if tied else DEPTH), rtol=1e-12, atol=ROUNDING
    )


def test_weights_that_are_not_finite_are_seen():
    params = ur.lista_cp(DEPTH).init(None, D)
    params = params._replace(shared=params.shared._replace(W=params.shared.W.at[0, 0].set(jnp.nan)))
    watch = watched(params)
    assert np.isnan([watch.looks[0].coupling[i] for i in range(5)]).all()
    assert json.loads(watch.to_json())["looks"][0]["coupling"]["mu_W"] == [None]


# A training


def test_the_first_look_is_the_start_and_the_last_the_result(trained):
    watch, start, fitted = trained
    assert [look.step for look in watch.looks] == [0, 2, 4, 5] == list(watch.series("step"))
    np.testing.assert_array_equal(
        watch.series("validation"), [r.validation for r in fitted.history.records]
    )
    for look, params in ((watch.looks[0], start), (watch.looks[-1], fitted.params)):
        np.testing.assert_allclose(look.theta, params.steps.theta, rtol=ROUNDING)
        assert_rows(look.coupling, [by_hand(params.shared.W)])
    assert watch.looks[0].coupling.mu_W != watch.looks[-1].coupling.mu_W


def test_the_contraction_of_theory_at_each_look(trained):
    watch, start, fitted = trained
    low, _, high, mu, *_ = by_hand(fitted.params.shared.W)
    assert watch.contraction(2)[-1, 0] == pytest.approx(
        3 * mu + max(abs(1 - low), abs(1 - high)), rel=1e-9
    )
    W = ur.analytic.frobenius_weights(D)
    params = ur.analytic.lista_cp(D, W=W, depth=DEPTH, sparsity=1, bound=1.0)
    _, schedule = ur.analytic.block_schedule(D, W, depth=DEPTH, sparsity=1, bound=1.0)
    # The schedule rounds mu_W up by 1e-9.
    assert watched(params).contraction(1)[0, 0] == pytest.approx(schedule.contraction, rel=1e-8)


def test_series_over_the_looks(trained, lista):
    watch = trained[0]
    assert watch.series("theta").shape == (4, DEPTH) and watch.series("mu_W").shape == (4, 1)
    assert watched(lista, lista).series("mismatch").shape == (2, DEPTH)
    with pytest.raises(ValueError, match="unknown field 'coupling'; expected one of step, loss"):
        watch.series("coupling")


def test_tables_have_a_row_per_look_or_step_and_theory_beside_them(trained, lista):
    watch = trained[0]
    header, rule, *rows = watch.table().split("\n")
    assert [row.split("|")[1].strip() for row in rows] == ["0", "2", "4", "5", "theory"]
    assert {row.count("|") for row in (header, rule, *rows)} == {8}
    predicted = watch.prediction.theta
    assert f"{predicted[0]:.4g} to {predicted[-1]:.4g} | 1 |" in rows[-1]
    assert f"{watch.looks[-1].coupling.mu_W[0]:.4f}" in rows[-2]
    for found, columns in ((watch, 7), (watched(lista), 6)):
        header, rule, *rows = found.steps_table().split("\n")
        assert len(rows) == DEPTH and {row.count("|") for row in (header, rule, *rows)} == {
            columns + 1
        }
    theta = watch.series("theta")[:, 1]
    assert f"| 2 | {theta[0]:.4g} -> {theta[-1]:.4g} |" in watch.steps_table()


def test_json_holds_every_look_and_the_prediction(trained):
    watch = trained[0]
    held = json.loads(watch.to_json())
    assert [look["step"] for look in held["looks"]] == [0, 2, 4, 5] and held["looks"][0][
        "loss"
    ] is None
    np.testing.assert_array_equal(
        held["looks"][-1]["coupling"]["off_diagonal"], watch.looks[-1].coupling.off_diagonal
    )
    assert held["prediction"]["theta"] == watch.prediction.theta.tolist()
    assert json.loads(watched(ur.layers.ista(1).init(None, D)).to_json())["prediction"] is None


def test_the_figure_has_a_line_per_step_and_dashes_for_theory(trained, lista, tmp_path):
    watch = trained[0]
    axes = [a for a in watch.plot().axes if a.get_lines()]
    solid = [[line for line in a.get_lines() if line.get_linestyle() == "-"] for a in axes]
    assert [len(lines) for lines in solid] == [1, DEPTH, 1, 1, 1]
    assert [len(a.get_lines()) - len(lines) for a, lines in zip(axes, solid)] == [0, DEPTH, 1, 0, 0]
    np.testing.assert_array_equal(solid[1][-1].get_ydata(), watch.series("theta")[:, -1])
    np.testing.assert_array_equal(solid[3][0].get_xdata(), [0, 2, 4, 5])
    figure = watched(lista, lista, prediction=watch.prediction).plot()
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


def test_what_does_not_fit_is_refused(lista):
    with pytest.raises(
        TypeError, match="one dictionary, got a tuple; make a recorder for each block"
    ):
        evolution((D, D))
    with pytest.raises(ValueError, match="expected"):
        evolution(D[0])
    with pytest.raises(TypeError, match="must have thresholds `theta`, got float"):
        evolution(D, prediction=0.1)
    with pytest.raises(TypeError, match="of a network watch one block"):
        watched((lista, lista))
    with pytest.raises(ValueError, match=r"B has shape \(8, 12\) but D has shape \(8, 11\)"):
        watched(lista, D=D[:, 1:])
    prediction = types.SimpleNamespace(theta=np.ones(DEPTH + 1))
    with pytest.raises(ValueError, match="prediction has 4 steps but the params have 3"):
        watched(lista, prediction=prediction)
    for method in ("table", "steps_table", "to_json", "plot"):
        with pytest.raises(ValueError, match="nothing was seen yet"):
            getattr(evolution(D), method)()


def test_a_block_of_a_network_is_watched_through_its_params(lista):
    watch = evolution(D)
    (lambda record, params: watch(record, params[1]))(record(0), (None, lista))
    assert_rows(watch.looks[0].coupling, np.stack(coupling(lista, D), 1))
