"""Rates per step, stage-wise training, and the search over a grid."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_training import Damped, Scale, families_of_a_user
from trees import same

from unrolled import dictionaries, layers, metrics, problems, training
from unrolled.layers import StepAndThreshold, Unrolled
from unrolled.training import NonFiniteError, Trained, curriculum, scale_steps, search

M, N, DEPTH, STAGES, STEPS, EVERY = 10, 20, 3, 3, 20, 5
RATES = np.array([1.0, 0.3, 0.0, 2.0])
# Sums and products of a few numbers in another order.
ROUNDING = 1e3 * np.finfo(np.float64).eps
assert_close = partial(chex.assert_trees_all_close, rtol=ROUNDING)


@pytest.fixture(scope="module")
def D():
    return dictionaries.gaussian(jax.random.key(1), M, N)


@pytest.fixture(scope="module")
def sample(D):
    return problems.sampler(D, 16, probability=0.1)


def step_of(params, k):
    return jax.tree.map(lambda leaf: leaf[k], params.steps)


# Rates per step


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


PARAMS = Unrolled(jnp.zeros(3), StepAndThreshold(jnp.zeros(4), jnp.zeros((4, 2))))


def moved(optimizer, params, gradients):
    """The params after one update per tree of gradients."""

    @jax.jit
    def step(params, state, g):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(g, state, params)
            return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for g in gradients:
        params, state = step(params, state, g)
    return params


@pytest.mark.slow
@pytest.mark.parametrize("form", [layers.stack, layers.unstack])
def test_rates_per_step_are_separate_optimisers(form):
    """One Adam for each step and for the shared params, against one Adam and `scale_steps`."""
    gradients = [random_like(PARAMS, seed) for seed in range(3)]
    together = optax.chain(optax.adam(1e-2), scale_steps(RATES, shared=0.5))
    found = layers.stack(moved(together, form(PARAMS), [form(g) for g in gradients]))
    for k, rate in enumerate(RATES):
        alone = moved(
            optax.adam(1e-2 * rate), step_of(PARAMS, k), [step_of(g, k) for g in gradients]
        )
        assert_close(step_of(found, k), alone)
    assert_close(
        found.shared, moved(optax.adam(0.5e-2), PARAMS.shared, [g.shared for g in gradients])
    )


@pytest.mark.slow
def test_scaling_the_gradients_before_adam_does_nothing():
    gradients = [random_like(PARAMS, seed) for seed in range(3)]
    plain = optax.adam(1e-2, eps=0.0)
    before = optax.chain(scale_steps([1.0, 0.3, 1e-3, 2.0], shared=0.5), plain)
    assert_close(moved(before, PARAMS, gradients), moved(plain, PARAMS, gradients))


def test_rates_reach_what_fit_shows_to_an_optimiser():
    """Untrained leaves are None, and a dictionary stands outside of the params."""
    updates = Trained(Unrolled(None, StepAndThreshold(None, jnp.ones((4, 2)))), jnp.ones((2, 2)))
    rates = scale_steps(RATES, shared=0.5)
    found, _ = rates.update(updates, rates.init(updates))
    np.testing.assert_array_equal(found.params.steps.theta, np.outer(RATES, [1, 1]))
    np.testing.assert_array_equal(found.D, np.full((2, 2), 0.5))
    assert found.params.shared is None and found.params.steps.gamma is None


def test_rates_change_without_a_new_trace():
    optimizer = scale_steps(RATES)

    @jax.jit
    @chex.assert_max_traces(1)
    def update(updates, state):
        return optimizer.update(updates, state)[0]

    ones, state = jax.tree.map(jnp.ones_like, PARAMS), optimizer.init(PARAMS)
    np.testing.assert_array_equal(update(ones, state).steps.gamma, RATES)
    np.testing.assert_array_equal(
        update(ones, state._replace(rates=2 * state.rates)).steps.gamma, 2 * RATES
    )


def test_a_rate_of_zero_freezes_bit_for_bit_under_weight_decay():
    params = random_like(PARAMS, 9)
    optimizer = optax.chain(
        optax.adamw(1e-2, weight_decay=0.5), scale_steps([1.0, 0.0, 1.0, 0.0], shared=0.0)
    )
    found = moved(optimizer, params, [random_like(PARAMS, 1)])
    assert [same(step_of(found, k), step_of(params, k)) for k in range(4)] == [
        False,
        True,
        False,
        True,
    ]
    assert same(found.shared, params.shared)


def test_scale_steps_refuses_what_is_no_rate():
    for rates, shared, match in (
        (0.5, 1.0, r"rates has shape \(\); expected a vector"),
        ([1.0, -0.1], 1.0, "rates must be non-negative"),
        ([1.0, np.nan], 1.0, "rates has NaN or infinite"),
        ([1.0], np.inf, "shared has NaN or infinite"),
        ([1.0], [1.0], r"shared has shape \(1,\); expected one number"),
    ):
        with pytest.raises(ValueError, match=match):
            scale_steps(rates, shared)
    for params in (PARAMS, layers.unstack(PARAMS)):
        with pytest.raises(
            ValueError, match=r"there are 3 rates, .* leading axes \[\(4,\)\]; expected 3 steps"
        ):
            scale_steps(np.ones(3)).init(params)
    with pytest.raises(ValueError, match=r"there is no Unrolled\("):
        scale_steps(np.ones(3)).init(PARAMS.steps)
    with pytest.raises(ValueError, match="share all their params"):
        scale_steps(np.ones(3)).init(layers.Unrolled(PARAMS.shared, None))


# Stage-wise training


class Course(NamedTuple):
    """A curriculum and what was seen on the way."""

    found: training.Fit
    start: Unrolled
    layer: layers.Layer
    seen: list  # (record, params) at every evaluation
    traces: int
    validation: tuple

    def of_stage(self, stage):
        return [(record, params) for record, params in self.seen if record.stage == stage]

    def errors(self, params):
        """Mean square error after every step, on the validation batch."""
        Y, X = self.validation
        codes = jax.jit(jax.vmap(self.layer.iterates, (None, None, 0), 1))(params, self.found.D, Y)
        return ((np.asarray(codes) - np.asarray(X)) ** 2).sum(-1).mean(-1) / 2


def course(layer, D, sample, params=None, **options):
    params, seen, traces = layer.init(None, D) if params is None else params, [], []

    def counted(key):
        traces.append(1)
        return sample(key)

    options = (
        dict(
            steps_per_stage=STEPS,
            evaluate_every=EVERY,
            rate=3e-2,
            validation=sample(jax.random.key(8)),
        )
        | options
    )
    callbacks = [lambda record, params: seen.append((record, params))]
    found = curriculum(layer, params, D, counted, key=0, callbacks=callbacks, **options)
    return Course(found, params, layer, seen, len(traces), options["validation"])


@pytest.fixture(scope="module")
def untied(D, sample):
    return course(layers.lista_cp(DEPTH, tied=False), D, sample)


@pytest.mark.slow
def test_one_compiled_step_serves_all_stages(untied):
    assert untied.traces == 2  # for the shapes of its batches, and in the step
    assert [record.stage for record, _ in untied.seen] == [
        i for i in range(DEPTH * STAGES) for _ in range(STEPS // EVERY + 1)
    ]
    assert untied.found.history.loss.shape == (DEPTH * STAGES * STEPS,)
    assert untied.found.history.records == tuple(record for record, _ in untied.seen)


@pytest.mark.slow
def test_the_curriculum_beats_its_start_at_every_step_and_errors_fall(untied):
    start, end = untied.errors(untied.start), untied.errors(untied.found.best)
    assert (end < 0.9 * start).all()
    assert (np.diff(end) < 0).all()


def test_a_stage_moves_its_steps_alone(untied):
    """The first stage of k moves step k, the others steps 1..k; bit for bit."""
    for stage in range(DEPTH * STAGES):
        k, first = divmod(stage, STAGES)
        (_, before), *_, (_, after) = untied.of_stage(stage)
        still = [same(step_of(before, j), step_of(after, j)) for j in range(DEPTH)]
        assert still == [j != k if first == 0 else j > k for j in range(DEPTH)]


def validation_of(evaluation):
    return evaluation[0].validation


def test_every_stage_starts_from_the_best_of_the_one_before(untied):
    for stage in range(1, DEPTH * STAGES):
        before = untied.of_stage(stage - 1)
        record, params = min(before, key=validation_of)
        assert same(untied.of_stage(stage)[0][1], params)
        if stage % STAGES:
            assert untied.of_stage(stage)[0][0].validation == record.validation
    record, params = min(untied.of_stage(DEPTH * STAGES - 1), key=validation_of)
    assert same(untied.found.best, params)


def test_the_validation_loss_is_that_of_the_step_in_training(untied):
    for stage in (0, 4, 8):
        record, params = untied.of_stage(stage)[-1]
        assert record.validation == pytest.approx(
            untied.errors(params)[stage // STAGES], rel=ROUNDING
        )


def test_steps_trained_before_move_less(D, sample):
    """One step of Adam moves every entry by its rate: 0.2 times 1, decay and its square."""
    params = layers.ista(DEPTH).init(None, D)
    found = course(
        layers.ista(DEPTH),
        D,
        sample,
        params,
        stages=(0.0, 0.2),
        steps_per_stage=1,
        rate=1e-6,
        decay=0.5,
        evaluate_every=1,
    )
    (_, before), (_, after) = found.of_stage(2 * DEPTH - 1)
    step = np.abs(np.asarray(after.steps.gamma - before.steps.gamma))
    # The eps of Adam against gradients of 1e-3 and more, and the rounding of the difference.
    np.testing.assert_allclose(step, 0.2e-6 * np.array([0.25, 0.5, 1.0]), rtol=1e-4)


@pytest.mark.slow
def test_shared_weights_and_unstacked_steps(D, sample):
    """The trained W of TiLISTA rests in the first stages of k > 1; both forms train alike."""
    layer = layers.tilista(DEPTH)
    params = layer.init(None, D)
    stacked, loose = (
        course(layer, D, sample, form(params), steps_per_stage=4)
        for form in (layers.stack, layers.unstack)
    )
    for stage in range(DEPTH * STAGES):
        (_, before), *_, (_, after) = stacked.of_stage(stage)
        assert same(before.shared, after.shared) is (stage % STAGES == 0 and stage > 0)
    assert type(loose.found.best.steps) is tuple
    # The same products, compiled differently, divided by the square roots of Adam.
    assert_close(layers.stack(loose.found.best), stacked.found.best, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_curriculum_learns_d(D, sample):
    """It moves with shared params, from the first stage on, and belongs to the best params."""
    found, fixed = (
        course(layers.ista(2), D, sample, learn_dictionary=learn)[0] for learn in (True, False)
    )
    assert not np.array_equal(found.D, D) and np.array_equal(fixed.D, D)
    np.testing.assert_allclose(np.linalg.norm(found.D, axis=0), 1, rtol=1e-6)
    Y, X = sample(jax.random.key(8))
    codes = jax.vmap(layers.ista(2).apply, (None, None, 0))(found.best, found.D, Y)
    loss = training.supervised(codes[None], X, found.D, Y)
    assert found.judged["best"] == pytest.approx(float(loss), rel=1e-5)
    assert found.judged["best"] < fixed.judged["best"]


@pytest.mark.slow
def test_patience_ends_a_stage(D, sample):
    """At a rate of 10 training only harms: a stage ends at the first evaluation after 7 steps."""
    layer = layers.alista(DEPTH)
    frozen = Unrolled(True, StepAndThreshold(gamma=False, theta=True))
    found = course(
        layer, D, sample, stages=(1.0, 1.0), rate=10.0, patience=7, trainable=frozen, progress=False
    )
    assert [record.step for record in found.found.history.records if record.stage == 1] == [
        10,
        15,
        20,
    ]
    assert len(found.found.history.loss) == 2 * DEPTH * 10
    assert same(found.found.best, found.start)


@pytest.mark.slow
def test_a_nan_in_a_late_stage_is_named(D, sample):
    poisoned = jax.random.key_data(jax.random.fold_in(jax.random.key(0), 9))

    def poison(key):
        Y, X = sample(key)
        return jnp.where(jnp.all(jax.random.key_data(key) == poisoned), jnp.nan, Y), X

    with pytest.raises(
        NonFiniteError, match=r"curriculum: training stopped at step 9:.*first in codes\[0\]"
    ) as caught:
        course(layers.ista(DEPTH), D, poison, steps_per_stage=4, evaluate_every=2)
    records = caught.value.fit.history.records
    assert (records[-1].step, records[-1].stage) == (10, 2)
    chex.assert_tree_all_finite(caught.value.fit.best)


# Error, words, and what is changed.
REFUSED = [
    (TypeError, "sample must be a function.* got list", dict(sample=[[1.0] * M])),
    (ValueError, "curriculum: Y has one signal", dict(sample=np.ones((1, M)))),
    (TypeError, "all their params; try training.search", dict(layer=layers.hyperlista(DEPTH))),
    (TypeError, "rate to an optax .*got GradientTransf", dict(optimizer=optax.adam(1e-3))),
    (TypeError, "optimizer must be a function", dict(optimizer=lambda rate: rate)),
    (ValueError, "rate must be non-negative and finite, got nan", dict(rate=np.nan)),
    (ValueError, "stages must be non-negative factors", dict(stages=())),
    (ValueError, "stages must be non-negative factors", dict(stages=(1.0, -1.0))),
    (ValueError, r"decay must be in \[0, 1\], got 1.5", dict(decay=1.5)),
    (ValueError, "steps_per_stage must be at least 0", dict(steps_per_stage=-1)),
    (ValueError, "evaluate_every must be at least 1", dict(evaluate_every=0)),
    (ValueError, "patience must be at least 1", dict(patience=0)),
    (ValueError, "trainable leaves nothing", dict(trainable=False)),
    (ValueError, "codes have shape", dict(validation=(np.ones((2, M)), np.ones((2, M))))),
    (ValueError, "steps but the layer has depth 3", dict(params=layers.ista(4))),
    (ValueError, "depth must be at least 1", dict(layer=layers.ista(0))),
]


@pytest.mark.parametrize("error, words, changes", REFUSED)
def test_curriculum_refuses_what_it_cannot_train(error, words, changes, D, sample):
    usual = dict(layer=layers.ista(DEPTH), sample=sample) | changes
    layer = usual.pop("layer")
    params = usual.pop("params", layer).init(None, D)
    with pytest.raises(error, match=words):
        curriculum(layer, params, D, usual.pop("sample"), key=0, **usual)


@pytest.mark.slow
def test_a_family_of_a_user_has_a_curriculum_and_a_search(D, sample):
    with families_of_a_user() as (damped_ista, _):
        layer = damped_ista(DEPTH)
        found = course(layer, D, sample, steps_per_stage=8)
        assert (found.errors(found.found.best) < found.errors(found.start)).all()
        assert type(found.found.best.steps) is Damped and type(found.found.best.shared) is Scale
        Y, X = sample(jax.random.key(5))
        grid = dict(tau=[0.01, 10.0], scale=[0.5, 1.0])
        tried = search(layer, found.start, D, Y, X, **grid)
        assert tried.nmse.shape == (2, 2) and tried.values["tau"] == 0.01
        with pytest.raises(ValueError, match="tau must be non-negative"):
            search(layer, found.start, D, Y, X, tau=[-0.1])


# The grid


@pytest.fixture(scope="module")
def hyper(D, sample):
    """HyperLISTA on the small problem: layer, params, signals and codes."""
    layer = layers.hyperlista(4)
    return layer, layer.init(None, D), *sample(jax.random.key(5))


@pytest.mark.slow
def test_a_search_equals_a_loop(D, hyper):
    layer, params, Y, X = hyper
    grid = dict(threshold=[0.02, 0.1, 0.5], momentum=[0.0, 0.05], selection=[1.0, 4.0])
    found = search(layer, params, D, Y, X, chunk=5, **grid)
    apply = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    assert found.nmse.shape == found.mean_nmse.shape == (3, 2, 2)
    for index in np.ndindex(found.nmse.shape):
        values = {name: jnp.asarray(tried[i]) for (name, tried), i in zip(grid.items(), index)}
        codes = apply(params._replace(shared=params.shared._replace(**values)), D, Y)
        assert found.nmse[index] == pytest.approx(float(metrics.nmse(codes, X)), rel=1e-9)
        assert found.mean_nmse[index] == pytest.approx(float(metrics.mean_nmse(codes, X)), rel=1e-9)
    i, j, k = np.unravel_index(found.nmse.argmin(), found.nmse.shape)
    assert found.values == dict(
        threshold=grid["threshold"][i], momentum=grid["momentum"][j], selection=grid["selection"][k]
    )
    assert {name: float(getattr(found.params.shared, name)) for name in grid} == found.values
    assert same(found.params.shared.analytic, params.shared.analytic)


@pytest.mark.slow
def test_a_search_over_a_field_of_the_steps_skips_what_diverges(D, sample):
    layer = layers.ista(60)
    Y, X = sample(jax.random.key(5))
    params = layer.init(None, D)
    found = search(layer, params, D, Y, X, gamma=[1e9, 0.1, 0.2])
    assert (
        np.isnan(found.nmse[0])
        and np.isfinite(found.nmse[1:]).all()
        and found.values["gamma"] in (0.1, 0.2)
    )
    np.testing.assert_array_equal(found.params.steps.gamma, np.full(60, found.values["gamma"]))
    with pytest.raises(ValueError, match="no combination of values gives finite codes"):
        search(layer, params, D, Y, X, gamma=[1e9])


def test_search_refuses_what_is_no_grid(D, hyper):
    layer, given, Y, X = hyper
    steps = layers.ista(2).init(None, D)
    tried = dict(threshold=[0.1])
    for error, words, changes in (
        (TypeError, "there are no values to try", {}),
        (TypeError, r"'theta'; expected one of \['analytic', 'threshold'", dict(theta=[0.1])),
        (ValueError, "analytic is not one number, so it has no grid", dict(analytic=[0.1])),
        (ValueError, r"values of shape \(\); expected a vector", dict(threshold=0.1)),
        (ValueError, r"threshold has values of shape \(0,\)", dict(threshold=[])),
        (ValueError, "threshold has NaN or infinite", dict(threshold=[np.nan])),
        (TypeError, r"must be numbers to try, got \['a'\]", dict(threshold=["a"])),
        (ValueError, "chunk must be at least 1", dict(chunk=0) | tried),
        (ValueError, r"and X \(20,\)", dict(X=X[0]) | tried),
        (ValueError, rf"expected \(batch, {M}\) and \(batch, {N}\)", dict(Y=Y[1:]) | tried),
        (TypeError, "no field 'count'", dict(count=[1.0])),  # a method of every tuple
        (TypeError, "params must be Unrolled", dict(params=(given,)) | tried),
        (ValueError, "theta must be non-negative", dict(params=steps, theta=[-0.1, 0.1])),
        (TypeError, "'gamma'.*layers.stack", dict(params=layers.unstack(steps), gamma=[0.1])),
    ):
        usual = dict(params=given, Y=Y, X=X) | changes
        with pytest.raises(error, match=words):
            search(layer, usual.pop("params"), D, usual.pop("Y"), usual.pop("X"), **usual)


def test_a_search_measures_against_the_codes_that_it_is_given(D, hyper):
    layer, params, Y, X = hyper
    found = search(layer, params, D, Y, X, threshold=[0.02, 0.5])
    apply, X = jax.jit(jax.vmap(layer.apply, (None, None, 0))), np.asarray(X)
    for value, nmse in zip((0.02, 0.5), found.nmse, strict=True):
        tried = params._replace(shared=params.shared._replace(threshold=np.array(value)))
        error = np.sum((np.asarray(apply(tried, D, Y)) - X) ** 2)
        assert nmse == pytest.approx(10 * np.log10(error / np.sum(X**2)))
