"""Training: losses against numpy, and what `fit` promises of params, history and failures."""

import json
import pickle
import re
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_training import Damped, families, families_of_a_user
from trees import same

from unrolled import analytic, dictionaries, layers, networks, nnx, problems, training
from unrolled._base.threads import in_thread
from unrolled.training import NonFiniteError, Trained, _loop, fit

M, N, DEPTH, BATCH = 10, 20, 4, 16
EPS = np.finfo(np.float64).eps
# A sum of some hundred terms in another order, through a few products: far below 1e4 roundings.
ROUNDING = 1e4 * EPS

FAMILIES = families(DEPTH, support=(0.05, 0.1))
LASSO = training.lasso_loss(0.1)
LOSSES = {
    "log_nmse": training.log_nmse,
    "lasso": LASSO,
    "reconstruction": training.reconstruction,
    "deep": training.deep(training.supervised),
    "deep lasso": training.deep(LASSO, np.arange(1.0, DEPTH + 1)),
}


@pytest.fixture(scope="module")
def D():
    return dictionaries.gaussian(jax.random.key(1), M, N)


@pytest.fixture(scope="module")
def sample(D):
    return problems.sampler(D, BATCH, probability=0.1)


def run(layer, D, sample, params=None, *, steps=20, key=0, optimizer=None, **options):
    """`fit` with the usual choices; params default to `init`."""
    params = layer.init(jax.random.key(9), D) if params is None else params
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    if "validation" not in options:
        options["validation"] = sample(jax.random.key(8))
    return fit(
        layer,
        params,
        D,
        sample,
        optimizer=optimizer,
        steps=steps,
        key=jax.random.key(key),
        **options,
    )


def told_once(match, *arguments, **options):
    """The `Fit` of a run that warns exactly once, at the line that called `fit`."""
    with pytest.warns(UserWarning, match=match) as told:
        found = run(*arguments, **options)
    assert [warning.filename for warning in told] == [__file__]
    return found


def nan_at(sample, step, key=0):
    """The same sampler, but NaN in the signals of one step of a training with this key."""
    poisoned = jax.random.key_data(jax.random.fold_in(jax.random.key(key), step))

    def poison(key):
        Y, X = sample(key)
        return jnp.where(jnp.all(jax.random.key_data(key) == poisoned), jnp.nan, Y), X

    return poison


# Losses


@pytest.fixture(scope="module")
def batch():
    """codes of a layer and of a network, true codes, dictionaries and signals, all random."""
    rng = np.random.default_rng(0)
    D = (rng.normal(size=(4, 7)), rng.normal(size=(7, 5)))
    codes = rng.normal(size=(3, 6, 7))
    blocks = (rng.normal(size=(6, 7)), rng.normal(size=(6, 5)))
    X = (rng.normal(size=(6, 7)), rng.normal(size=(6, 5)))
    return jax.tree.map(jnp.asarray, (D, codes, blocks, X, rng.normal(size=(6, 4))))


def lasso_by_hand(D, Y, X, lam):
    Y, X, D = np.asarray(Y), np.asarray(X), np.asarray(D)
    return (((Y - X @ D.T) ** 2).sum(1) / 2 + lam * np.abs(X).sum(1)).mean()


def half_mean_square(A, B):
    return ((np.asarray(A) - np.asarray(B)) ** 2).sum(1).mean() / 2


@pytest.mark.parametrize("b", [-90, -60, 60, 90])
def test_log_nmse_has_no_scale(b):
    """Its squares alone would leave the range of float32."""
    X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    codes = X + np.float32(0.1) * X[::-1]

    def value(codes, X):
        return training.log_nmse(codes[None], X, None, None)

    expected, slope = jax.value_and_grad(value)(codes, X)
    found, scaled = jax.value_and_grad(value)(np.ldexp(codes, b), np.ldexp(X, b))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_array_equal(np.ldexp(scaled, b), slope)


def test_losses_of_a_layer(batch):
    D, codes, _, X, Y = batch
    D, X, last = D[0], X[0], np.asarray(codes[-1])
    ratio = ((last - np.asarray(X)) ** 2).sum() / (np.asarray(X) ** 2).sum()
    expected = {
        training.supervised: half_mean_square(last, X),
        training.log_nmse: np.log(ratio),
        training.lasso_loss(0.3): lasso_by_hand(D, Y, last, 0.3),
        training.reconstruction: half_mean_square(Y, last @ np.asarray(D).T),
    }
    for loss, value in expected.items():
        assert float(loss(codes, X, D, Y)) == pytest.approx(value, rel=ROUNDING)


def test_a_relative_lasso_loss_is_the_mean_share_of_the_objectives_of_zero_codes(batch):
    D, codes, _, X, Y = batch
    Y = jnp.concatenate([Y[:-1], jnp.zeros_like(Y[:1])])
    last, loss = np.array(codes[-1]), training.lasso_loss(0.3, relative=True)
    last[-1] = 0  # of the zero signal, which counts 0
    rows = zip(np.asarray(Y[:-1]), last)
    shares = [lasso_by_hand(D[0], y[None], x[None], 0.3) / (y @ y / 2) for y, x in rows]
    value = float(loss(jnp.asarray(last)[None], X, D[0], Y))
    assert value == pytest.approx(sum(shares) / len(Y), rel=ROUNDING)
    scaled = training.lasso_loss(8 * 0.3, relative=True)(8 * last[None], X, D[0], 8 * Y)
    assert float(scaled) == pytest.approx(value, rel=ROUNDING)


def test_losses_of_a_network(batch):
    D, _, codes, X, Y = batch
    whole = np.asarray(codes[-1]) @ np.asarray(D[1]).T @ np.asarray(D[0]).T
    assert float(training.supervised(codes, X, D, Y)) == pytest.approx(
        half_mean_square(codes[1], X[1]), rel=ROUNDING
    )
    assert float(training.supervised(codes, X[1], D, Y)) == float(
        training.supervised(codes, X, D, Y)
    )
    lasso = lasso_by_hand(D[0], Y, codes[0], 0.3) + lasso_by_hand(D[1], codes[0], codes[1], 0.3)
    assert float(training.lasso_loss(0.3)(codes, None, D, Y)) == pytest.approx(lasso, rel=ROUNDING)
    assert float(training.reconstruction(codes, None, D, Y)) == pytest.approx(
        half_mean_square(Y, whole), rel=ROUNDING
    )


@pytest.mark.parametrize("weights", [None, (0.5, 0.0, 2.0)])
def test_deep_supervision_of_a_layer(batch, weights):
    D, codes, _, X, Y = batch
    w = np.full(3, 1 / 3) if weights is None else np.asarray(weights)
    expected = sum(wk * half_mean_square(x, X[0]) for wk, x in zip(w, codes))
    assert float(
        training.deep(training.supervised, weights)(codes, X[0], D[0], Y)
    ) == pytest.approx(expected, rel=ROUNDING)


def test_deep_supervision_of_a_network(batch):
    D, _, codes, X, Y = batch
    each = [half_mean_square(x, target) for x, target in zip(codes, X)]
    assert float(training.deep(training.supervised)(codes, X, D, Y)) == pytest.approx(
        np.mean(each), rel=ROUNDING
    )
    weighted = training.deep(training.supervised, (3.0, 1.0))(codes, X, D, Y)
    assert float(weighted) == pytest.approx(3 * each[0] + each[1], rel=ROUNDING)


def test_losses_say_which_codes_they_see_and_their_lam(batch):
    """By `of_last` training stores the last code alone; by `lam` a run is judged beside ISTA."""
    D, codes, _, X, Y = batch
    lasso = training.lasso_loss(0.3)
    for loss in (training.supervised, training.log_nmse, training.reconstruction, lasso):
        assert loss.of_last and loss(codes, X[0], D[0], Y) == loss(codes[-1:], X[0], D[0], Y)
    assert not getattr(training.deep(lasso), "of_last", False)
    assert lasso.lam == training.deep(lasso).lam == 0.3


def test_a_loss_made_again_compiles_nothing_and_one_that_was_pickled_is_the_same(batch, compiled):
    D, codes, _, X, Y = batch
    D, X, Y, codes = D[0][:, :-1], X[0][:, :-1], Y + 1, codes[..., :-1]  # new shapes
    makers = [
        lambda: training.lasso_loss(0.3),
        lambda: training.deep(training.supervised),
        lambda: training.deep(training.supervised, (0.5, 0.0, 2.0)),
    ]
    for make in makers:
        value = make()(codes, X, D, Y)
        compiled.clear()
        again = make()(codes, X, D, Y)
        assert not compiled and again == value
        assert pickle.loads(pickle.dumps(make()))(codes, X, D, Y) == value


# What training does


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_training_lowers_the_validation_loss_of_every_family(name, D, sample):
    found = run(FAMILIES[name], D, sample, steps=40)
    start, end = found.history.records[0].validation, found.history.records[-1].validation
    assert end < 0.95 * start
    assert found.history.loss.shape == (40,)
    chex.assert_tree_all_finite(found.params)


@pytest.mark.slow
def test_a_family_of_a_user_trains_and_its_thresholds_stay_non_negative(D, sample):
    """The role of a field counts, not its name."""
    with families_of_a_user() as (damped_ista, _):
        layer = damped_ista(DEPTH, support=(0.05, 0.1))
        found = run(layer, D, sample, steps=40)
        start, end = found.history.records[0].validation, found.history.records[-1].validation
        assert end < 0.95 * start
        params = layer.init(None, D)
        params = params._replace(steps=params.steps._replace(tau=jnp.full(DEPTH, 0.03)))
        moved = run(
            layer,
            D,
            sample,
            params,
            steps=1,
            optimizer=optax.adam(0.1),
            loss=lambda codes, X, D, Y: -jnp.sum(codes[-1] ** 2),  # lower thresholds
            trainable=layers.Unrolled(False, Damped(False, True, False)),
        ).params.steps
        # From 0.03 to -0.07, which acts as 0.07.
        assert np.isclose(moved.tau, 0.07, atol=1e-6).any() and (np.asarray(moved.tau) >= 0).all()
        assert type(moved) is Damped


@pytest.mark.slow
@pytest.mark.parametrize("of", [LASSO, training.log_nmse, training.supervised])
def test_a_loss_that_sees_the_last_code_trains_as_one_of_all(of, D, sample):
    """Also without codes; ISTA, beside which a run is judged, has all its codes."""
    trained = {}
    for K in (DEPTH, 1):  # of which the loss sees the codes
        shapes = []

        def seeing(codes, X, D, Y, shapes=shapes):
            shapes.append(codes.shape)
            return of(codes, X, D, Y)

        def drawn(key):
            Y, X = sample(key)
            return Y, None if of is LASSO else X

        seeing.of_last = K == 1
        trained[K] = run(FAMILIES["lista_cp"], D, drawn, steps=2, loss=seeing).params
        assert set(shapes) == {(K, BATCH, N), (DEPTH, BATCH, N)}
    chex.assert_trees_all_close(trained[1], trained[DEPTH], rtol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_training_lowers_every_loss(name, D, sample):
    found = run(FAMILIES["lista_cp"], D, sample, steps=40, loss=LOSSES[name])
    assert found.history.records[-1].validation < found.history.records[0].validation


@pytest.mark.slow
def test_the_loss_of_a_step_is_that_of_its_batch(D, sample):
    layer = FAMILIES["alista"]
    params, key = layer.init(jax.random.key(9), D), jax.random.key(0)
    found = run(layer, D, sample, params, steps=1)
    Y, X = sample(jax.random.fold_in(key, 0))
    codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
    assert found.history.loss[0] == pytest.approx(half_mean_square(codes, X), rel=ROUNDING)


@pytest.mark.slow
def test_a_run_is_a_function_of_its_key(D, sample):
    """An integer seed is the typed key of that seed."""
    layer = FAMILIES["lista_cp"]
    params, validation = layer.init(jax.random.key(9), D), sample(jax.random.key(8))
    first, second, other = (
        fit(
            layer,
            params,
            D,
            sample,
            optimizer=optax.adam(1e-2),
            steps=10,
            key=key,
            validation=validation,
        )
        for key in (jax.random.key(3), 3, 4)
    )
    assert same(
        (first.params, first.best, first.history.loss),
        (second.params, second.best, second.history.loss),
    )
    assert not same(first.params, other.params)


@pytest.mark.slow
def test_the_step_is_traced_once(D, sample):
    traces = []
    for steps in (3, 30):
        count = [0]

        def counted(key, count=count):
            count[0] += 1
            return sample(key)

        run(FAMILIES["ista"], D, counted, steps=steps, evaluate_every=2, validation=None)
        traces.append(count[0])
    assert traces == [2, 2]  # the step and the validation batches


def test_best_has_the_smallest_validation_loss(D, sample):
    """The rate grows a hundredfold half way: the best params are not the last ones."""
    layer, rate = FAMILIES["lista_cp"], optax.piecewise_constant_schedule(1e-2, {15: 100.0})
    Y, X = sample(jax.random.key(5))
    params, held = layer.init(jax.random.key(9), D), []
    found = told_once(
        "Training diverged",
        layer,
        D,
        sample,
        params,
        steps=30,
        optimizer=optax.adam(rate),
        validation=(Y, X),
        evaluate_every=1,
        callbacks=[lambda record, p: held.append(jax.tree.map(np.asarray, p))],
    )
    values = [record.validation for record in found.history.records]
    assert len(values) == 31 and min(values) < 0.9 * values[0] and min(values) < 0.9 * values[-1]
    assert same(found.best, held[int(np.argmin(values))])
    codes = jax.vmap(layer.apply, (None, None, 0))(found.best, D, Y)
    assert min(values) == pytest.approx(half_mean_square(codes, X), rel=ROUNDING)


def test_a_training_that_only_harms_ends_by_its_patience_and_its_start_is_best(D, sample):
    """At a rate of 10 every evaluation is worse than the start."""
    layer = FAMILIES["ista"]
    params = layer.init(jax.random.key(9), D)
    options = dict(steps=50, evaluate_every=2, optimizer=optax.adam(10.0), patience=5)
    match = "fit: training made nothing better: .* at the start, which is `best`. Try a smaller"
    found = told_once(match, layer, D, sample, params, progress=False, **options)
    assert [record.step for record in found.history.records] == [0, 2, 4, 6]
    assert found.history.loss.shape == (6,)
    values = [record.validation for record in found.history.records]
    assert min(values[1:]) > values[0]
    assert same(found.best, params) and found.worsened


@pytest.mark.slow
def test_thresholds_stay_non_negative(D, sample):
    """The first step of Adam moves theta by the rate of 1, from 0.9 to -0.1, which acts as 0.1."""
    seen, layer = [], layers.alista(DEPTH)
    found = run(
        layer,
        D,
        sample,
        layer.from_theory(analytic.frobenius_weights(D), jnp.full(DEPTH, 0.9)),
        steps=8,
        optimizer=optax.adam(1.0),
        evaluate_every=1,
        callbacks=[lambda record, p: seen.append(np.asarray(p.steps.theta))],
    )
    assert np.isclose(seen[1], 0.1, atol=1e-6).any()  # Adam's eps in the denominator
    assert all(
        (theta >= 0).all() for theta in [*seen, found.params.steps.theta, found.best.steps.theta]
    )


@pytest.mark.slow
def test_a_threshold_at_zero_moves(D, sample):
    layer = layers.alista(DEPTH, theta=0.0)
    found = run(layer, D, sample, steps=1, optimizer=optax.sgd(1e-2))
    assert (np.asarray(found.params.steps.theta) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("learn", [False, True])
def test_fixed_weights_stay_bit_for_bit(D, sample, learn):
    layer = FAMILIES["alista"]
    params = layer.init(jax.random.key(9), D)
    decay = optax.adamw(1e-2, weight_decay=0.5)
    found = run(layer, D, sample, params, steps=10, optimizer=decay, learn_dictionary=learn)
    assert same(found.D, D) is not learn
    assert same(found.params.shared, params.shared) and same(found.best.shared, params.shared)
    assert not same(found.params.steps, params.steps)


@pytest.mark.slow
def test_what_was_passed_in_is_not_consumed(D, sample):
    layer = FAMILIES["lista_cp"]
    params = layer.init(jax.random.key(9), D)
    before = jax.tree.map(lambda leaf: np.array(leaf), (params, D))
    found = run(layer, D, sample, params, steps=5, learn_dictionary=True)
    assert same((params, D), before)
    chex.assert_tree_all_finite(
        (layer.apply(params, D, D[:, 0]), layer.apply(found.params, found.D, D[:, 0]))
    )


@pytest.mark.slow
def test_training_the_unstacked_form_is_the_same_training(D, sample):
    layer = FAMILIES["lista_cp untied"]
    params = layer.init(jax.random.key(9), D)
    stacked = run(layer, D, sample, params, optimizer=optax.sgd(1e-2))
    loose = run(layer, D, sample, layers.unstack(params), optimizer=optax.sgd(1e-2))
    assert type(loose.params.steps) is tuple and len(loose.params.steps) == DEPTH
    # The same products, compiled differently, over 20 steps.
    chex.assert_trees_all_close(
        layers.stack(loose.params), stacked.params, rtol=0, atol=100 * ROUNDING
    )


def test_no_steps_return_the_start(D, sample):
    layer = FAMILIES["lista_cp"]
    params = layer.init(jax.random.key(9), D)
    found = run(layer, D, sample, params, steps=0)
    assert same(found.params, params) and same(found.best, params) and same(found.D, D)
    (record,) = found.history.records
    assert record.step == 0 and np.isnan(record.loss) and record.validation > 0
    assert found.history.loss.shape == (0,)


@pytest.mark.slow
def test_training_in_float32():
    with jax.enable_x64(False):
        D = dictionaries.gaussian(jax.random.key(1), M, N)
        found = run(FAMILIES["lista_cp"], D, problems.sampler(D, BATCH), learn_dictionary=True)
        assert {leaf.dtype for leaf in jax.tree.leaves((found.params, found.best, found.D))} == {
            np.dtype("float32")
        }
        assert found.history.records[-1].validation < found.history.records[0].validation


# Learned dictionaries


def perturbed(key, D, size):
    """D with noise on every leaf, its atoms scaled back to norm 1."""
    noisy = jax.tree.map(lambda leaf: leaf + size * jax.random.normal(key, leaf.shape), D)
    return dictionaries.normalize(noisy)[0]


def assert_unit_atoms(D):
    # A norm over at most 10 entries and one division.
    np.testing.assert_allclose(np.asarray(dictionaries.column_norms(D)), 1, atol=16 * EPS)


@pytest.mark.slow
def test_learning_a_dense_dictionary(D, sample):
    start, layer = perturbed(jax.random.key(2), D, 0.1), FAMILIES["ista"]
    given = run(layer, start, sample, steps=60)
    learned = run(layer, start, sample, steps=60, learn_dictionary=True)
    assert min(r.validation for r in learned.history.records) < 0.95 * min(
        r.validation for r in given.history.records
    )
    assert np.linalg.norm(learned.D - D) < 0.95 * np.linalg.norm(start - D)
    assert_unit_atoms(learned.D)


@pytest.mark.slow
def test_learning_a_convolutional_dictionary():
    D = dictionaries.normalize(
        dictionaries.Conv(np.random.default_rng(0).normal(size=(3, 1, 4)), M)
    )[0]
    start = perturbed(jax.random.key(2), D, 0.2)
    found = run(
        FAMILIES["lista_cp"],
        start,
        problems.sampler(D, BATCH),
        loss=LASSO,
        learn_dictionary=True,
        steps=30,
    )
    assert found.history.records[-1].validation < found.history.records[0].validation
    assert isinstance(found.D, dictionaries.Conv) and not same(found.D, start)
    assert_unit_atoms(found.D)


@pytest.fixture(scope="module")
def chain(D):
    """A network of two layers, its dictionaries, and a sampler with the codes of both."""
    Ds = (D, dictionaries.gaussian(jax.random.key(3), N, 12))

    def sample(key):
        X = problems.exact_sparse(key, (BATCH, 12), 1)
        first = problems.synthesize(Ds[1], X)
        return problems.synthesize(Ds[0], first), (first, X)

    return networks.dsc((layers.lista_cp(DEPTH), layers.ista(3))), Ds, sample


@pytest.mark.slow
@pytest.mark.parametrize("learn", [False, True])
def test_training_a_network(chain, learn):
    network, Ds, sample = chain
    found = run(
        network,
        Ds,
        sample,
        loss=training.deep(training.supervised),
        learn_dictionary=learn,
        steps=30,
    )
    assert found.history.records[-1].validation < 0.95 * found.history.records[0].validation
    assert type(found.D) is tuple
    for Dj, given in zip(found.D, Ds):
        assert_unit_atoms(Dj)
        assert same(Dj, given) is not learn


# Non-finite numbers


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 6])
def test_a_nan_stops_the_training_at_its_step(D, sample, step):
    layer, reached = FAMILIES["lista_cp"], []
    with pytest.raises(
        NonFiniteError, match=rf"training stopped at step {step}:.*codes\[0\]"
    ) as caught:
        run(
            layer,
            D,
            nan_at(sample, step),
            steps=20,
            evaluate_every=5,
            callbacks=[lambda r, p: reached.append(r.step)],
        )
    stopped = caught.value.fit
    chex.assert_tree_all_finite((stopped.params, stopped.best, stopped.D))
    assert reached == [k for k in (0, 5, 10, 15) if k <= step]
    # The steps before the bad one are kept: the params are those of a training of just so many
    # steps.
    assert same(stopped.params, run(layer, D, sample, steps=step).params)
    assert np.isnan(stopped.history.loss[step]) and np.isfinite(stopped.history.loss[:step]).all()


@pytest.mark.slow
def test_a_loss_that_becomes_nan_stops_the_training(D, sample):
    def loss(codes, X, D, Y):
        return jnp.where(jnp.max(jnp.abs(Y)) > 1e6, jnp.nan, training.supervised(codes, X, D, Y))

    poisoned = jax.random.key_data(jax.random.fold_in(jax.random.key(0), 4))

    def loud_once(key):
        Y, X = sample(key)
        return jnp.where(jnp.all(jax.random.key_data(key) == poisoned), 1e9 * Y, Y), X

    with pytest.raises(NonFiniteError, match="stopped at step 4:") as caught:
        run(FAMILIES["lista_cp"], D, loud_once, loss=loss, steps=8, evaluate_every=8)
    chex.assert_tree_all_finite(caught.value.fit.params)


def test_an_update_that_is_not_finite_stops_the_training(D, sample):
    bursts = optax.chain(
        optax.sgd(1e-3), optax.scale_by_schedule(lambda k: jnp.where(k == 3, jnp.inf, 1.0))
    )
    with pytest.raises(
        NonFiniteError, match=r"stopped at step 3:.*first in params.steps.theta\[0\].*learning rate"
    ) as caught:
        run(FAMILIES["lista_cp"], D, sample, optimizer=bursts, steps=8, evaluate_every=4)
    chex.assert_tree_all_finite((caught.value.fit.history.loss[3], caught.value.fit.params))


@pytest.mark.slow
@pytest.mark.parametrize("form", [layers.stack, layers.unstack])
def test_the_step_whose_gradient_breaks_is_named(D, sample, form):
    """The square root has no finite derivative where the third threshold stands."""
    params = analytic.ista(D, 0.1, DEPTH)
    params = form(
        params._replace(steps=params.steps._replace(theta=params.steps.theta.at[2].set(0.0)))
    )

    class _broken(layers.ista):
        def step(self, shared, p, D, y, state):
            after = super().step(shared, p, D, y, state)
            return after._replace(x=after.x + 0 * jnp.sqrt(p.theta))

    name = r"steps.theta\[2\]" if form is layers.stack else r"steps\[2\].theta"
    with pytest.raises(NonFiniteError, match=f"stopped at step 0:.*the gradient of params.{name}"):
        run(_broken(DEPTH), D, sample, params, steps=2)


def test_the_step_whose_code_breaks_is_named(D, sample):
    """Also by a loss that sees the last code alone."""
    params = analytic.ista(D, 0.1, DEPTH)
    theta = params.steps.theta.at[2].set(0.0)
    params = params._replace(steps=params.steps._replace(theta=theta))

    class _undefined(layers.ista):
        def step(self, shared, p, D, y, state):
            after = super().step(shared, p, D, y, state)
            return after._replace(x=after.x + 0 * jnp.log(p.theta))

    with pytest.raises(NonFiniteError, match=r"first in codes\[2\];"):
        run(_undefined(DEPTH), D, sample, params, steps=2, loss=training.supervised)


def test_a_loss_that_is_nan_from_the_start(D, sample):
    with pytest.raises(
        NonFiniteError,
        match="step 0: the validation loss is nan, first in the loss, of finite.*smaller weights",
    ) as caught:
        run(FAMILIES["ista"], D, sample, loss=lambda codes, X, D, Y: jnp.nan * codes.sum(), steps=4)
    chex.assert_tree_all_finite(caught.value.fit.best)


# Evaluations


def test_callbacks_get_records_and_params_in_order(D, sample):
    layer, calls = FAMILIES["lista_cp"], []
    params = layer.init(jax.random.key(9), D)
    found = run(
        layer,
        D,
        sample,
        params,
        steps=12,
        evaluate_every=5,
        callbacks=[lambda record, p, name=name: calls.append((name, record, p)) for name in "ab"],
    )
    assert [name for name, *_ in calls] == list("abababab")
    assert [record for name, record, _ in calls if name == "a"] == list(found.history.records)
    assert [record.step for record in found.history.records] == [0, 5, 10, 12]
    losses = found.history.loss
    for record, part in zip(found.history.records[1:], (losses[:5], losses[5:10], losses[10:])):
        assert record.loss == pytest.approx(part.mean(), rel=ROUNDING)
    seconds = [record.seconds for record in found.history.records]
    assert seconds == sorted(seconds)
    # Params that a callback keeps stay usable.
    assert same(calls[0][2], params) and same(calls[-1][2], found.params)


def test_the_log_has_one_json_line_per_evaluation(D, sample, tmp_path):
    path = tmp_path / "log.jsonl"
    options = dict(evaluate_every=2, log=path)
    found = [run(FAMILIES["ista"], D, sample, steps=steps, **options) for steps in (4, 0)]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 0]
    assert lines[0]["loss"] is None
    records = [record for f in found for record in f.history.records]
    assert [line["validation"] for line in lines] == [record.validation for record in records]


@pytest.mark.slow
def test_a_bar_without_a_terminal_changes_nothing(D, sample):
    quiet, bar = (
        run(FAMILIES["ista"], D, sample, steps=4, progress=progress) for progress in (False, True)
    )
    assert same(quiet.params, bar.params)


def test_a_training_in_another_thread_has_no_bar(D, sample, monkeypatch):
    """A terminal has room for one."""
    bars = []
    monkeypatch.setattr("rich.progress.Progress.add_task", lambda *of, **options: bars.append(of))
    monkeypatch.setattr("rich.progress.Progress.update", lambda *of, **options: None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    def train():
        run(FAMILIES["ista"], D, sample, steps=2, progress=None)

    in_thread(train).result()
    assert not bars
    train()
    assert len(bars) == 1


def test_the_optimizer_sees_params_and_dictionary_by_name(D, sample):
    """Labels by a function of the tree: the dictionary is held, the params are trained."""
    layer, seen = FAMILIES["alista"], []

    def labels(tree):
        seen.append(tree)
        return jax.tree_util.tree_map_with_path(lambda path, leaf: path[0].name, tree)

    optimizer = optax.multi_transform(
        {"params": optax.adam(1e-2), "D": optax.set_to_zero()}, labels
    )
    found = run(layer, D, sample, steps=5, optimizer=optimizer, learn_dictionary=True)
    assert all(isinstance(tree, Trained) and tree.params.shared.W is None for tree in seen) and seen
    # Atoms are scaled to norm 1 after every step, which rounds.
    np.testing.assert_allclose(np.asarray(found.D), np.asarray(D), atol=20 * EPS)
    assert not same(found.params.steps, layer.init(jax.random.key(9), D).steps)


def test_labels_of_an_optimizer_are_a_tree_of_what_is_trained(D, sample):
    """Each part has its own optimiser; labels shaped as the params alone are refused in words."""
    layer = FAMILIES["alista"]
    params = layer.init(jax.random.key(9), D)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].name, params)
    transforms = {name: optax.set_to_zero() for name in set(jax.tree.leaves(labels))}
    transforms["theta"] = optax.adam(1e-2)
    options = dict(steps=2, key=jax.random.key(0))
    whole = optax.multi_transform(transforms, Trained(labels, None))
    found = fit(layer, params, D, sample, optimizer=whole, **options).params
    assert not same(found.steps.theta, params.steps.theta)
    assert same(found.steps.gamma, params.steps.gamma)
    message = r"^fit: the optimizer has a tree .* Trained\(params, D\).*Trained\(labels, None\)"
    for optimizer in (
        optax.multi_transform(transforms, labels),
        optax.masked(optax.adam(1e-2), jax.tree.map(lambda _: True, params)),
    ):
        with pytest.raises(ValueError, match=message):
            fit(layer, params, D, sample, optimizer=optimizer, **options)
    with pytest.raises(ValueError, match="no corresponding transformation"):  # in optax's words
        lost = optax.multi_transform({}, Trained(labels, None))
        fit(layer, params, D, sample, optimizer=lost, **options)


@pytest.mark.slow
def test_an_optimizer_may_remember_the_start(D, sample):
    """DoG measures the distance from it: its state holds the params themselves."""
    found = run(FAMILIES["lista_cp"], D, sample, steps=5, optimizer=optax.contrib.dog(1.0))
    chex.assert_tree_all_finite(found.params)
    assert not same(found.params, FAMILIES["lista_cp"].init(jax.random.key(9), D))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.polyak_sgd(),
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=2)),
        optax.lbfgs(),  # a line search in the step
    ],
    ids=["step by loss", "plateau", "line search"],
)
def test_an_optimizer_may_ask_for_the_loss(D, sample, optimizer):
    first, *_, last = run(FAMILIES["ista"], D, sample, steps=4, optimizer=optimizer).history.records
    assert last.validation < first.validation


@pytest.mark.slow
def test_a_masked_optimizer_trains_a_part(D, sample):
    layer = FAMILIES["alista"]
    params = layer.init(jax.random.key(9), D)

    def only_theta(tree):
        return jax.tree_util.tree_map_with_path(lambda path, leaf: path[-1].name != "theta", tree)

    frozen = optax.chain(optax.adam(1e-2), optax.masked(optax.set_to_zero(), only_theta))
    found = run(layer, D, sample, params, steps=5, optimizer=frozen)
    assert same(found.params.steps.gamma, params.steps.gamma)
    assert not same(found.params.steps.theta, params.steps.theta)


# Training that changes nothing, or that does harm


def test_thresholds_that_silence_every_entry_are_reported(D, sample):
    layer = layers.alista(DEPTH, theta=100.0)
    match = "fit: training changes nothing: all codes are zero, .* or analytic.calibrate first$"
    found = told_once(match, layer, D, sample, steps=4, evaluate_every=2)
    assert same(found.params, layer.init(None, D)) and not found.worsened


@pytest.mark.slow
def test_a_last_step_that_silences_every_entry_is_reported(D, sample):
    layer = FAMILIES["alista"]
    params = layer.init(None, D)
    theta = params.steps.theta.at[-1].set(100.0)
    params = params._replace(steps=params.steps._replace(theta=theta))
    match = "all codes are zero, .*, or training.deep: the codes before the last are not zero"
    told_once(match, layer, D, sample, params, steps=4)
    found = run(layer, D, sample, params, steps=4, loss=training.deep(training.supervised))
    assert not same(found.params.steps.theta[:-1], theta[:-1])


@pytest.mark.slow
def test_a_silent_curriculum_is_reported_once(D, sample):
    layer = layers.alista(2, theta=100.0)
    options = dict(key=0, steps_per_stage=2, validation=sample(jax.random.key(8)))
    with pytest.warns(UserWarning, match="curriculum: training changes nothing: all") as told:
        training.curriculum(layer, layer.init(None, D), D, sample, **options)
    assert len(told) == 1


def test_a_gradient_of_zero_is_reported(D, sample):
    def of_signals(codes, X, D, Y):
        return jnp.sum(Y**2)

    match = "changes nothing: the gradient is zero at every leaf that is trained"
    told_once(match, FAMILIES["ista"], D, sample, steps=4, loss=of_signals)


@pytest.mark.slow
def test_a_loss_that_does_not_move_is_reported(D, sample):
    match = "changes nothing: the validation loss stays at .* although its gradient is not zero"
    told_once(match, FAMILIES["ista"], D, sample, steps=4, optimizer=optax.sgd(0.0))
    late = optax.sgd(optax.piecewise_constant_schedule(0.0, {0: 1.0}))  # rate 0 throughout
    told_once(match, FAMILIES["ista"], D, sample, steps=4, evaluate_every=1, optimizer=late)


def test_a_rate_that_begins_at_zero_is_not_reported(D, sample):
    """The second evaluation is the first one again, but the gradient is not zero."""
    warmed = optax.sgd(optax.linear_schedule(0.0, 1e-2, 3))
    found = run(FAMILIES["ista"], D, sample, steps=4, evaluate_every=1, optimizer=warmed)
    first, second, *_, last = (record.validation for record in found.history.records)
    assert first == second and last < first and not found.worsened


@pytest.mark.slow
def test_divergence_is_reported(D, sample):
    """A loss above the start is a field; one above that of zero codes is a warning too."""
    batch = sample(jax.random.key(8))
    found = told_once(
        "fit: at the end .* worse than zero codes: .* Training diverged from ",
        FAMILIES["lista_cp"],
        D,
        sample,
        steps=5,
        optimizer=optax.adam(1.0),
        validation=batch,
    )
    assert found.worsened
    first, last = found.history.records[0], found.history.records[-1]
    assert last.validation > max(first.validation, half_mean_square(0 * batch[1], batch[1]))
    assert same(found.best, FAMILIES["lista_cp"].init(jax.random.key(9), D))
    worse = run(FAMILIES["lista_cp"], D, sample, steps=1, optimizer=optax.sgd(-0.1))
    assert worse.worsened
    assert not run(FAMILIES["lista_cp"], D, sample, steps=20).worsened


@pytest.mark.slow
def test_a_start_above_zero_codes_is_reported(D, sample):
    """A training that ends below them is not said to have worsened; one that ends above them is."""
    layer = FAMILIES["ista"]
    start = layer.init(None, D)
    far = start._replace(steps=start.steps._replace(gamma=4 * start.steps.gamma))
    match = "fit: at the start .* worse than zero codes: their validation loss is .*ISTA has"
    found = told_once(match, layer, D, sample, far, steps=150, optimizer=optax.adam(3e-2))
    assert not found.worsened
    zero, last = found.history.zero, found.history.records[-1].validation
    assert last < zero < found.history.records[0].validation
    told_once(match, layer, D, sample, far, steps=0)  # at the first evaluation, before any step
    with pytest.warns(UserWarning) as told:
        found = run(layer, D, sample, far, steps=1, optimizer=optax.sgd(1e-9))
    ends = "fit: at the end .* worse than zero codes: .* Training improved from .* try more steps"
    assert [bool(re.search(p, str(w.message))) for p, w in zip((match, ends), told)] == [True] * 2
    first, last = (found.history.records[i].validation for i in (0, -1))
    assert last <= first and found.worsened


def test_a_training_is_judged_beside_ista_of_its_depth(D, sample):
    """With the lam of the loss, else of the layer; a layer that is ISTA starts there."""
    start = analytic.ista(D, 0.1, DEPTH)
    found = run(layers.ista(DEPTH), D, sample, params=start, loss=LASSO, steps=0)
    assert found.history.ista == pytest.approx(found.history.records[0].validation, rel=ROUNDING)
    own = run(layers.ista(DEPTH, lam=0.3), D, sample, steps=0, loss=training.reconstruction)
    assert own.history.ista == pytest.approx(own.history.records[0].validation, rel=ROUNDING)
    assert np.isnan(run(layers.lamp(DEPTH), D, sample, steps=0).history.ista)
    assert f"of ISTA {own.history.ista:.6g}" in repr(own)


# Fixed weights in an optax loop of one's own


def own_loop(layer, params, D, sample, optimizer):
    """Three steps, written as a user would."""

    def loss(params, Y, X):
        return jnp.sum((jax.vmap(layer.apply, (None, None, 0))(params, D, Y) - X) ** 2)

    @jax.jit
    def step(params, state, key):
        gradients = jax.grad(loss)(params, *sample(key))
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for k in range(3):
        params, state = step(params, state, jax.random.key(k))
    return params


def test_a_mask_keeps_fixed_weights_where_weight_decay_moves_them(D, sample):
    layer = FAMILIES["alista"]
    params = layer.init(None, D)
    mask = training.trainable(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    decaying = optax.adamw(1e-2, weight_decay=0.5)
    plain = own_loop(layer, params, D, sample, decaying)
    masked = own_loop(layer, params, D, sample, optax.masked(decaying, mask))
    assert not same(plain.shared, params.shared) and same(masked.shared, params.shared)
    assert not same(masked.steps, params.steps)


def test_a_mask_is_what_fit_trains(D):
    """Leaf by leaf the same as `split`, also in a network and for a nested fixed record."""
    chain = (FAMILIES["alista"].init(None, D), FAMILIES["lista_cp"].init(None, D))
    for params in (layers.na_alista(2, units=2).init(jax.random.key(0), D), chain):
        trained, _ = training.split(params, D)
        mask = training.trainable(params)
        agree = jax.tree.map(lambda bit, leaf: bit is (leaf is not None), mask, trained.params)
        assert all(jax.tree.leaves(agree))
        assert set(jax.tree.leaves(mask)) == {True, False}


# A part of the params


def test_leaves_that_are_fixed_or_not_trainable_stay_bit_for_bit(D, sample):
    """Weight decay would move them; a fixed W is not trained, whatever is asked."""
    layer = FAMILIES["alista"]
    params = layer.init(jax.random.key(9), D)
    chosen = layers.Unrolled(True, layers.StepAndThreshold(gamma=False, theta=True))
    decay = optax.adamw(1e-2, weight_decay=0.5)
    found = run(layer, D, sample, params, steps=3, optimizer=decay, trainable=chosen)
    for end in (found.params, found.best):
        assert same((end.shared, end.steps.gamma), (params.shared, params.steps.gamma))
    assert not same(found.best.steps.theta, params.steps.theta) and same(found.D, D)


def test_a_step_that_is_not_trainable_stays_bit_for_bit(D, sample):
    layer = layers.lista_cp(2, tied=False)
    params = layers.unstack(layer.init(jax.random.key(9), D))
    chosen = layers.Unrolled(True, (False, True))
    decay = optax.adamw(1e-2, weight_decay=0.5)
    found = run(layer, D, sample, params, steps=3, optimizer=decay, trainable=chosen)
    assert [same(p, q) for p, q in zip(found.params.steps, params.steps)] == [True, False]


def test_trainable_false_leaves_the_dictionary_to_be_learned(D, sample):
    layer = FAMILIES["ista"]
    params = layer.init(jax.random.key(9), D)
    found = run(layer, D, sample, params, steps=3, trainable=False, learn_dictionary=True)
    assert same(found.params, params) and not same(found.D, D)


# A dictionary for every signal


def many_dictionaries(key, D):
    """A batch of signals of perturbed dictionaries, and those dictionaries."""
    noise_key, code_key = jax.random.split(key)
    Ds = D[None] + 0.2 * jax.random.normal(noise_key, (BATCH, *D.shape))
    Ds = Ds / jnp.linalg.norm(Ds, axis=1, keepdims=True)
    X = problems.exact_sparse(code_key, (BATCH, D.shape[1]), 1)
    return jax.vmap(jnp.matmul)(Ds, X), X, Ds


@pytest.mark.slow
def test_signals_with_structured_dictionaries_of_their_own():
    layer, key = layers.ada_lista(DEPTH), jax.random.key(3)
    filters = jax.random.normal(key, (BATCH, 2, 1, 3))
    Ds = jax.vmap(lambda f: dictionaries.Conv(f, 8, boundary="circular") / jnp.linalg.norm(f))(
        filters
    )
    D = jax.tree.map(lambda leaf: leaf[0], Ds)
    X = problems.exact_sparse(key, (BATCH, D.shape[1]), 1)
    Y = jax.vmap(jnp.matmul)(jax.vmap(dictionaries.dense)(Ds), X)
    codes = jax.vmap(layer.iterates, (None, 0, 0), 1)(layer.init(None, D), Ds, Y)
    composed = jax.vmap(lambda D: dictionaries.Composed(D, jnp.eye(D.shape[1])))(Ds)
    for batched in (Ds, composed):
        assert batched.ndim == 3 and batched.T.ndim == 3
    for loss in (LASSO, training.reconstruction, training.deep(LASSO)):
        matrices = jax.vmap(dictionaries.dense)(Ds)
        each = [loss(codes[:, n : n + 1], None, A, Y[n : n + 1]) for n, A in enumerate(matrices)]
        assert float(loss(codes, None, Ds, Y)) == pytest.approx(float(np.mean(each)), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [training.supervised, LASSO])
def test_signals_with_dictionaries_of_their_own(D, loss):
    layer = layers.robust_alista(DEPTH)
    start, key = layer.init(None, D), jax.random.key(3)
    batch = many_dictionaries(key, D)
    found = training.fit(
        layer,
        start,
        D,
        lambda key: many_dictionaries(key, D),
        optimizer=optax.sgd(0.0),
        steps=0,
        key=0,
        loss=loss,
        validation=batch,
    )
    codes = [layer.iterates(start, Dn, y) for y, Dn in zip(batch[0], batch[2])]
    losses = [loss(c[:, None], x[None], Dn, y[None]) for c, y, x, Dn in zip(codes, *batch)]
    assert found.history.records[0].validation == pytest.approx(float(np.mean(losses)), rel=1e-12)


@pytest.mark.parametrize("loss", [LASSO, training.reconstruction, training.deep(LASSO)])
def test_a_network_takes_a_dictionary_of_every_block_for_every_signal(batch, loss):
    D, _, codes, _, Y = batch
    own = tuple(jnp.repeat(Dj[None], len(Y), 0) for Dj in D)
    assert float(loss(codes, None, own, Y)) == pytest.approx(
        float(loss(codes, None, D, Y)), rel=ROUNDING
    )


@pytest.mark.slow
def test_training_over_many_dictionaries(D):
    found = run(layers.ada_lista(DEPTH), D, lambda key: many_dictionaries(key, D), steps=30)
    assert found.history.records[-1].validation < found.history.records[0].validation
    assert not np.array_equal(found.params.shared.P, np.eye(M))


def of_two_atoms(D):
    """A `Sparse` dictionary whose columns combine two atoms of D each."""
    A = np.zeros((D.shape[1], 9))
    for j in range(9):
        A[[j, (3 * j + 1) % D.shape[1]], j] = 1.0, -0.5
    return dictionaries.Sparse(D, A)


LEARNED = {
    "sparse": lambda D, C: of_two_atoms(D),
    "sparse, square": lambda D, C: dictionaries.Sparse(D, np.eye(D.shape[1])[:, ::-1]),
    "concatenated": lambda D, C: dictionaries.Concatenated(C, np.eye(C.shape[0])),
    "composed": lambda D, C: dictionaries.Composed(
        D, dictionaries.Conv(C.filters, N, boundary="circular")
    ),
    "transposed": lambda D, C: dictionaries.Conv(C.filters, M - 3).T,
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", LEARNED)
def test_learning_a_structured_dictionary(name, D):
    """Steps of a rate near 0 move next to nothing; others lower the loss and leave unit atoms."""
    filters = np.random.default_rng(0).normal(size=(2, 1, 4))
    start = LEARNED[name](D, dictionaries.Conv(filters, M))
    unit, _ = dictionaries.normalize(start)
    Y = np.random.default_rng(1).normal(size=(40, start.shape[0]))
    layer = FAMILIES["ista"]
    options = dict(loss=LASSO, steps=3, evaluate_every=1, key=0, learn_dictionary=True)
    for rate in (1e-9, 0.01):
        found = fit(layer, layer.init(None, unit), unit, Y, optimizer=optax.sgd(rate), **options)
        assert_unit_atoms(found.D)
        values = [record.validation for record in found.history.records]
        if rate > 1e-9:
            assert values[-1] < values[0]
        else:  # the slopes are near 1
            np.testing.assert_allclose(values, values[0], rtol=1e-6)
    found = fit(layer, layer.init(None, unit), start, Y, optimizer=optax.sgd(0.01), **options)
    assert np.isfinite([record.validation for record in found.history.records]).all()
    module = nnx.Module(layer, layer.init(None, start), start, learn_dictionary=True)
    module.normalize()
    assert_unit_atoms(module.dictionary())


# What is refused


def ista_params(D, depth=DEPTH, **changes):
    params = analytic.ista(D, 0.1, depth)
    return params._replace(steps=params.steps._replace(**changes))


NAN = np.full((2, M), np.nan)
# Error, words, and the change of a run; `batch` is of what the sampler draws.
FAULTS = {
    "no optimiser": (TypeError, "optax GradientTransformation, got float", dict(optimizer=1e-2)),
    "steps below 0": (ValueError, "steps must be at least 0, got -1", dict(steps=-1)),
    "no depth": (ValueError, "ista.* has depth 0", dict(layer=layers.ista(0))),
    "no evaluation": (ValueError, "every must be at least 1, got 0", dict(evaluate_every=0)),
    "no patience": (ValueError, "patience must be at least 1, got 0", dict(patience=0)),
    "no model": (TypeError, "expected a Layer or a Network, got str", dict(layer="ista")),
    "no pair": (TypeError, r"must be \(Y, X\), .* got", dict(batch=lambda Y, X, D: Y)),
    "turned": (
        *(ValueError, rf"signals have shape .*, 20\); expected \(batch, {M}\)"),
        dict(batch=lambda Y, X, D: (X, Y)),
    ),
    "one signal": (ValueError, "signals have shape", dict(batch=lambda Y, X, D: (Y[0], X[0]))),
    "no signal": (ValueError, "batch at least 1", dict(batch=lambda Y, X, D: (Y[:0], X[:0]))),
    "fewer atoms": (ValueError, "codes have shape", dict(batch=lambda Y, X, D: (Y, X[:, 1:]))),
    "codes that would broadcast": (
        *(ValueError, rf"codes have shape \(\d+, 1\); expected \(\d+, {N}\)"),
        dict(batch=lambda Y, X, D: (Y, X[:, :1])),
    ),
    "codes of two blocks": (
        *(ValueError, "codes of 2 blocks; expected at most 1"),
        dict(batch=lambda Y, X, D: (Y, (X, X))),
    ),
    "NaN": (ValueError, "fit, validation: .* NaN or infinite", dict(validation=(NAN, None))),
    "no pair to judge by": (
        *(TypeError, r"fit, validation: a batch must be \(Y, X\)"),
        dict(validation=NAN),
    ),
    "no codes": (ValueError, "X = None", dict(batch=lambda Y, X, D: (Y, None))),
    "another depth": (
        *(ValueError, "params have .* steps but the layer has depth 4"),
        dict(params=lambda D: ista_params(D, 3)),
    ),
    "nothing to train": (
        *(TypeError, "no floating-point leaf to train"),
        dict(layer=layers.alista(0), params=lambda D: layers.Unrolled(layers.Fixed(D), ())),
    ),
    "no prefix": (
        *(ValueError, "trainable is not a tree prefix of params"),
        dict(trainable=layers.Unrolled(False, (True, True))),
    ),
    "a number for a bool": (
        *(TypeError, "must hold bools, got float"),
        dict(trainable=layers.Unrolled(None, layers.StepAndThreshold(1.0, True))),
    ),
    "an array of bools": (
        *(TypeError, "ndarray; to freeze single steps"),
        dict(trainable=layers.Unrolled(None, np.ones(DEPTH, bool))),
    ),
    "all frozen": (ValueError, "leaves nothing to train", dict(trainable=False)),
    "a negative threshold": (
        *(ValueError, "theta must be non-negative"),
        dict(params=lambda D: ista_params(D, theta=-np.ones(DEPTH))),
    ),
    "one dictionary for all": (
        *(ValueError, "the dictionaries of the batch have shapes"),
        dict(batch=lambda Y, X, D: (Y, X, D)),
    ),
    "no dictionary to learn": (
        *(ValueError, "no dictionary to learn"),
        dict(batch=lambda Y, X, D: (Y, X, jnp.stack([D] * BATCH)), learn_dictionary=True),
    ),
    "a batch of one": (TypeError, "a dictionary each", dict(batch=lambda Y, X, D: (Y,))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_runs_that_are_refused(fault, D, sample):
    error, words, options = FAULTS[fault]
    usual = dict(layer=FAMILIES["ista"], params=ista_params, batch=lambda Y, X, D: (Y, X))
    options = usual | dict(steps=1, validation=None) | options
    layer, params, batch = (options.pop(name) for name in usual)
    with pytest.raises(error, match=words):
        run(layer, D, lambda key: batch(*sample(key), D), params(D), **options)


def test_losses_that_are_refused(batch):
    D, codes, _, X, Y = batch
    D, X, deep = D[0], X[0], training.deep(training.supervised)
    no_codes = "X = None; try training.lasso_loss"
    faults = [
        *(
            (loss, codes, None, Y, no_codes)
            for loss in (training.supervised, training.log_nmse, deep)
        ),
        (training.deep(training.supervised, (1.0, 1.0)), codes, X, Y, r"\(2,\); expected \(3,\)"),
        # These would be broadcast.
        *(
            (training.reconstruction, codes, None, signals, "^recon.* last codes, .* Y has shape")
            for signals in (Y[0], Y[:, :1], Y[:1])
        ),
        (training.reconstruction, codes[..., :-1], None, Y, "have no product with D"),
    ]
    for loss, x, true, signals, words in faults:
        with pytest.raises(ValueError, match=words):
            loss(x, true, D, signals)


@pytest.mark.parametrize("case", ["in place of one", "of another shape"])
def test_structured_dictionaries_that_do_not_fit_are_refused(case):
    """Before anything is traced with them, which would fail in the words of JAX."""
    rng = np.random.default_rng(0)
    filters, Y, X = (rng.normal(size=size) for size in ((2, 1, 3), (5, 8), (5, 16)))
    D, valid = (dictionaries.Conv(filters, 8, boundary=b) for b in ("circular", "valid"))
    own = jax.tree.map(lambda leaf: np.stack([leaf] * 5), valid)
    given, message = own, "a batch of dictionaries, Conv with 3 axes"
    if case == "of another shape":
        given, message = D, r"have shapes \[\(8, 12\)\]; expected \[\(8, 16\)\]"
    params = layers.ista(1).init(None, D)
    with pytest.raises(ValueError, match=message):
        run(layers.ista(1), given, lambda key: (Y, X, own), params, steps=1, validation=None)


def test_a_fault_of_the_validation_names_the_validation(D, sample):
    Y, X = sample(jax.random.key(8))
    with pytest.raises(ValueError, match="fit, validation"):
        run(FAMILIES["ista"], D, sample, validation=(Y[:, 1:], X))


def stage(steps, *, stop=99, **options):
    """A stage that has been evaluated at these steps, a second apart, and is at the last one."""
    records = tuple(_loop.Record(step, 0.0, 1.0, float(i), 0) for i, step in enumerate(steps))
    state = SimpleNamespace(records=records, stage=0, step=steps[-1], best_at=steps[0])
    return _loop._Stage(None, state, stop, SimpleNamespace(**options), None, -1, None)


def test_the_seconds_of_a_run_go_on_where_its_last_record_ended(monkeypatch):
    monkeypatch.setattr(_loop.time, "perf_counter", lambda: 100.0)
    assert stage([0, 2, 4, 6]).began == 100 - 3


def test_evaluations_are_a_number_of_steps_apart_until_a_stage_ends():
    """Whose end may have been between two of them, in a run that is made longer."""
    for steps, end in (([5], 8), ([5, 8, 9], 11), ([5, 8, 11], 12), ([5, 8, 11, 12], None)):
        assert stage(steps, stop=12, evaluate_every=3, patience=None).next_end() == end
    for patience, end in ((6, None), (7, 12)):  # the best is 6 steps old
        assert stage([5, 8, 11], stop=12, evaluate_every=3, patience=patience).next_end() == end


def test_a_leaf_that_is_not_finite_has_its_step_and_its_name():
    theta = layers.Threshold(np.array([0.1, 0.2, np.nan]))
    apart = tuple(layers.Threshold(np.array(t)) for t in (0.1, np.nan))
    shared = layers.Weights(np.full((2, 2), np.inf))
    for params, expected in (
        (layers.Unrolled(None, theta), [(2, "steps.theta[2]")]),
        (layers.Unrolled(None, apart), [(0, "steps[0].theta"), (1, "steps[1].theta")]),
        (layers.Unrolled(shared, ()), [(np.inf, "shared.W")]),
        (
            (layers.Unrolled(None, apart[:1]), layers.Unrolled(None, apart[1:])),
            [(0, "[0].steps[0].theta"), (0, "[1].steps[0].theta")],
        ),
        ((layers.Unrolled(None, theta),), [(2, "[0].steps.theta[2]")]),
    ):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        assert [_loop._step_and_name(*leaf) for leaf in leaves] == expected


def test_one_number_that_is_not_finite_is_noticed_among_all_leaves():
    assert _loop.all_finite((np.ones(2), np.zeros(()), np.arange(2)))
    assert not _loop.all_finite((np.ones(2), np.array([1.0, np.nan])))
    assert not _loop.all_finite((np.array(np.inf), np.ones(2)))
