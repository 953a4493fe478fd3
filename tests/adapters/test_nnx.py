"""Layers and networks as nnx modules: the codes, gradients and training of the pure form."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import registry
from flax import nnx
from small_training import Damped, families_of_a_user
from trees import same

import unrolled as ur

M, N, DEPTH, BATCH = 5, 8, 2, 6
# Sums of about ten terms in another order, through a few products, stay far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(np.float64).eps
ROUNDING32 = 100 * np.finfo(np.float32).eps  # sums of ten terms
assert_close = partial(chex.assert_trees_all_close, rtol=ROUNDING, atol=ROUNDING)


@pytest.fixture(scope="module")
def D():
    return ur.dictionaries.gaussian(jax.random.key(0), M, N)


@pytest.fixture(scope="module")
def sample(D):
    return ur.problems.sampler(D, BATCH, probability=0.3)


def trainable(params):
    """The trained leaves of `params`, ordered by name as in an nnx state."""

    def thaw(node):
        return None if isinstance(node, ur.layers.Fixed) else node

    params = jax.tree.map(thaw, params, is_leaf=lambda node: isinstance(node, ur.layers.Fixed))
    found = jax.tree_util.tree_leaves_with_path(params)
    return [leaf for _, leaf in sorted(found, key=lambda pair: jax.tree_util.keystr(pair[0]))]


def square(codes):
    return jnp.sum(codes**2)


# Every form of params: shared, per step, both, frozen, and steps that share everything.
FORMS = (
    "ista",
    "lista",
    "lista_cp, untied",
    "alista, support",
    "glista",
    "hyperlista",
    "na_alista",
    "robust_alista",
)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", FORMS)
def test_a_module_has_the_codes_and_the_gradients_of_its_layer(name, D):
    layer = registry.LAYERS[name](DEPTH)
    params = layer.init(jax.random.key(1), D)
    Y = jax.random.normal(jax.random.key(2), (3, M))

    @jax.jit
    def both(params, Y):
        model = ur.nnx.Module(layer, params, D)
        pure = jax.value_and_grad(
            lambda params: square(jax.vmap(layer.apply, (None, None, 0))(params, D, Y))
        )
        value, gradient = nnx.value_and_grad(lambda model: square(model(Y)))(model)
        return pure(params), (value, jax.tree.leaves(gradient))

    (value, gradient), (found, found_gradient) = both(params, Y)
    np.testing.assert_allclose(found, value, rtol=ROUNDING)
    assert_close(found_gradient, trainable(gradient))


def test_a_family_of_a_user_is_a_module(D):
    with families_of_a_user() as (damped_ista, _):
        layer = damped_ista(DEPTH)
        params = layer.init(None, D)
        model = ur.nnx.Module(layer, params, D)
        Y = jax.random.normal(jax.random.key(2), (3, M))
        assert_close(model(Y), jax.vmap(layer.apply, (None, None, 0))(params, D, Y))
        tau = model.trained.params.steps.tau
        tau[...] = -tau[...]
        assert type(model.params().steps) is Damped
        assert_close(model.params(), params)


def test_one_signal_and_any_leading_axes(D):
    layer = ur.lista_cp(DEPTH)
    params = layer.init(None, D)
    model = ur.nnx.Module(layer, params, D)
    Y = jax.random.normal(jax.random.key(3), (2, 3, M))
    codes = model(Y)
    assert codes.shape == (2, 3, N)
    assert_close(codes[1, 2], model(Y[1, 2]))


def test_params_and_dictionary_are_returned_unchanged(D):
    layer = ur.alista(DEPTH)
    params = layer.init(None, D)
    model = ur.nnx.Module(layer, params, D)
    assert_close(model.params(), params)
    assert_close(model.dictionary(), D)


def test_untrained_arrays_are_variables_but_not_params(D):
    layer = ur.alista(DEPTH)
    params = layer.init(None, D)

    def sizes(model, kind):
        return sorted(leaf.size for leaf in jax.tree.leaves(nnx.state(model, kind)))

    model = ur.nnx.Module(layer, params, D)
    assert sizes(model, nnx.Param) == [DEPTH, DEPTH]  # gamma and theta
    assert sizes(model, nnx.Not(nnx.Param)) == [M * N, M * N]  # W and D
    assert sizes(ur.nnx.Module(layer, params, D, learn_dictionary=True), nnx.Param) == [
        DEPTH,
        DEPTH,
        M * N,
    ]


def test_a_negative_threshold_acts_as_its_magnitude_and_one_at_zero_can_move(D):
    layer = ur.lista_cp(1)
    model = ur.nnx.Module(layer, layer.init(None, D), D)
    y = D[:, 0]
    code = model(y)
    theta = model.trained.params.steps.theta
    theta[...] = -theta[...]
    assert_close(model(y), code)
    assert float(model.params().steps.theta[0]) > 0
    theta[...] = jnp.zeros_like(theta[...])
    gradient = nnx.grad(lambda model: square(model(y)))(model)
    assert float(gradient["trained"]["params"]["steps"]["theta"][...][0]) < 0


def trained(model, sample, optimizer, steps, key):
    """The training of `fit` with a learned dictionary, as users of nnx write it."""
    optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, key):
        Y, X = sample(key)
        loss, gradients = nnx.value_and_grad(
            lambda model: ur.training.supervised(model(Y)[None], X, None, Y)
        )(model)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in its scalars
            optimizer.update(model, gradients)
        model.normalize()
        return loss

    return [float(step(model, optimizer, jax.random.fold_in(key, k))) for k in range(steps)]


@pytest.mark.slow
def test_training_under_nnx_optimizer_is_that_of_fit(D, sample):
    layer, key, steps = ur.alista(DEPTH), jax.random.key(4), 20
    params = layer.init(None, D)
    options = dict(optimizer=optax.adam(1e-2), steps=steps, key=key, learn_dictionary=True)
    expected = ur.fit(
        layer, params, D, sample, validation=sample(key), evaluate_every=steps, **options
    )
    model = ur.nnx.Module(layer, params, D, learn_dictionary=True)
    losses = trained(model, sample, optax.adam(1e-2), steps, key)
    np.testing.assert_allclose(losses, expected.history.loss, rtol=ROUNDING)
    assert_close(model.params(), expected.params)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    np.testing.assert_allclose(np.linalg.norm(model.dictionary(), axis=0), 1, rtol=ROUNDING)
    assert not np.allclose(model.dictionary(), D, atol=1e-3)
    np.testing.assert_array_equal(model.params().shared.W, params.shared.W)


@pytest.mark.slow
def test_a_convolutional_dictionary_can_be_learned():
    D = ur.dictionaries.Conv(np.random.default_rng(0).normal(size=(2, 1, 2, 2)), (3, 4))
    layer = ur.lista_cp(DEPTH)
    model = ur.nnx.Module(layer, layer.init(None, D), D, learn_dictionary=True)
    model.normalize()
    Y = jax.random.normal(jax.random.key(5), (BATCH, 12))
    losses = trained(
        model,
        lambda key: (Y, jnp.zeros((BATCH, D.shape[1]))),
        optax.sgd(1e-3),
        4,
        jax.random.key(0),
    )
    assert losses[-1] < losses[0]
    found = model.dictionary()
    assert isinstance(found, ur.dictionaries.Conv) and found.signal_shape == (3, 4)
    np.testing.assert_allclose(found.column_norms(), 1, rtol=ROUNDING)
    assert isinstance(model.params().shared.W, ur.dictionaries.Conv)


def test_a_network_gives_the_codes_of_every_block(D):
    Ds = (D, ur.dictionaries.gaussian(jax.random.key(6), N, 11))
    network = ur.dsc([ur.lista_cp(DEPTH), ur.layers.ista(DEPTH)])
    params = network.init(jax.random.key(7), Ds)
    model = ur.nnx.Module(network, params, list(Ds))
    Y = jax.random.normal(jax.random.key(8), (3, M))
    codes, expected = jax.jit(
        lambda Y: (model(Y), jax.vmap(network.apply, (None, None, 0))(params, Ds, Y))
    )(Y)
    assert_close(codes, expected)
    assert [code.shape for code in codes] == [(3, N), (3, 11)]
    assert isinstance(model.dictionary(), tuple)


class Regression(nnx.Module):
    """A sparse code between two linear maps."""

    def __init__(self, layer, D, rngs):
        self.first = nnx.Linear(3, M, param_dtype=jnp.float64, rngs=rngs)
        self.code = ur.nnx.Module(layer, layer.init(None, D), D)
        self.last = nnx.Linear(N, 1, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, u):
        return self.last(self.code(self.first(u)))


@pytest.mark.slow
def test_it_nests_in_a_model_survives_split_and_merge_and_trains(D):
    model = Regression(ur.lista_cp(DEPTH), D, nnx.Rngs(0))
    U = jax.random.normal(jax.random.key(9), (BATCH, 3))
    graph, state = nnx.split(model)
    again = jax.jit(lambda state: nnx.merge(graph, state)(U))(state)
    assert_close(again, nnx.jit(lambda model: model(U))(model))
    W = nnx.state(model, nnx.Param)["code"]["trained"]["params"]["shared"]["W"]
    assert W[...].shape == (M, N)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: square(model(U) - 1.0))(model)
        with jax.numpy_dtype_promotion("standard"):
            optimizer.update(model, gradients)
        return loss

    start = model.code.params().shared.W
    losses = [float(step(model, optimizer)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert not np.array_equal(model.code.params().shared.W, start)
    np.testing.assert_array_equal(model.code.dictionary(), D)


# The one loop of training


def both_trainings(layer, D, sample, **options):
    """A layer by `training.fit`, and its module by `nnx.fit`."""
    params = layer.init(None, D)
    options = dict(optimizer=optax.adam(1e-2), steps=12, key=3, evaluate_every=4) | options
    learns = options.pop("learn_dictionary", False)
    module = ur.nnx.Module(layer, params, D, learn_dictionary=learns)

    def outcome(train):
        try:
            return train()
        except ur.training.NonFiniteError as error:
            return error

    return module, [
        outcome(lambda: ur.fit(layer, params, D, sample, learn_dictionary=learns, **options)),
        outcome(lambda: ur.nnx.fit(module, sample, **options)),
    ]


def without_seconds(fit):
    return [record.replace(seconds=0.0) for record in fit.history.records]


@pytest.mark.slow
def test_a_module_is_trained_bit_for_bit_as_its_layer(D, sample):
    module, (layer_fit, fit) = both_trainings(ur.alista(DEPTH), D, sample, learn_dictionary=True)
    assert same((layer_fit.params, layer_fit.best, layer_fit.D), (fit.params, fit.best, fit.D))
    assert same(layer_fit.history.loss, fit.history.loss)
    assert without_seconds(layer_fit) == without_seconds(fit)
    assert same((module.params(), module.dictionary()), (fit.best, fit.D))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. at the end")  # the rate makes it diverge
def test_patience_stops_a_module_where_it_stops_its_layer(D, sample):
    options = dict(optimizer=optax.sgd(30.0), patience=4, steps=40)
    _, (layer_fit, fit) = both_trainings(ur.lista_cp(DEPTH), D, sample, **options)
    assert fit.history.records[-1].step == layer_fit.history.records[-1].step < 40


@pytest.mark.slow
def test_a_module_names_the_place_of_a_nan_as_its_layer_does(D, sample):
    layer = ur.lista_cp(DEPTH)
    breaks = optax.scale_by_schedule(lambda k: jnp.where(k < 5, -1e-3, jnp.nan))
    module, (layer_error, error) = both_trainings(layer, D, sample, optimizer=breaks)
    assert "step 5" in str(error) and "first in " in str(error)
    assert str(error) == str(layer_error)
    assert_close(module.params(), layer.init(None, D))  # as it was


class Noisy(nnx.Module):
    """A sparse code of normalised signals, some of which are left out in training."""

    def __init__(self, layer, D):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(M, rngs=rngs)
        self.norm.scale[...] = jnp.full(M, 4.0, jnp.float32)  # far too large
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.code = ur.nnx.Module(layer, layer.init(None, D), D, learn_dictionary=True)

    def __call__(self, y):
        return self.code(self.drop(self.norm(y)))


def fitted(D, steps, model=None, **options):
    """In float32, in which nnx computes the statistics of batches."""
    D = D.astype(jnp.float32)
    model, sample = model or Noisy(ur.lista_cp(DEPTH), D), ur.problems.sampler(D, BATCH)
    options = dict(optimizer=optax.adam(3e-2), key=1, evaluate_every=3) | options
    return model, ur.nnx.fit(model, sample, steps=steps, **options)


@pytest.mark.slow
def test_any_model_resumes_with_the_statistics_of_its_batches(D, sample, tmp_path):
    model, whole = fitted(D, 9)
    fitted(D, 6, checkpoint=tmp_path)
    again, resumed = fitted(D, 9, checkpoint=tmp_path)
    assert same(whole.history.loss, resumed.history.loss)
    numbers = nnx.Not(nnx.RngState)
    for fitted_model in (model, again):
        assert same(nnx.state(fitted_model, numbers), nnx.filter_state(whole.best, numbers))
    assert np.all(model.norm.mean[...] != 0) and np.all(model.norm.scale[...] < 4)
    np.testing.assert_allclose(np.linalg.norm(model.code.dictionary(), axis=0), 1, rtol=ROUNDING32)
    assert whole.history.records[-1].validation < whole.history.records[0].validation
    # An evaluation leaves nothing out, and has the statistics of the training.
    batch = ur.problems.sampler(D.astype(jnp.float32), BATCH)(jax.random.key(9))
    model.eval()
    value = ur.training.supervised(model(batch[0])[None], batch[1], None, None)
    _, checked = fitted(D, 0, validation=batch, model=model)
    np.testing.assert_allclose(checked.history.records[0].validation, value, rtol=ROUNDING32)


@pytest.mark.slow
def test_any_model_names_the_place_of_a_nan(D, sample):
    breaks = optax.scale_by_schedule(lambda k: jnp.where(k < 2, -1e-3, jnp.nan))
    with pytest.raises(
        ur.training.NonFiniteError, match=r"step 2: .*, first in params.weights\['"
    ) as caught:
        fitted(D, 5, optimizer=breaks)
    assert caught.value.fit.history.loss.shape == (3,)


def test_a_dictionary_that_is_not_learned_is_not_normalized(D):
    layer = ur.lista_cp(DEPTH)
    for kind in (2 * D, ur.dictionaries.Composed(2 * D)):
        module = ur.nnx.Module(layer, layer.init(None, kind), kind)
        module.normalize()
        np.testing.assert_array_equal(ur.dictionaries.dense(module.dictionary()), 2 * D)


def test_the_class_is_of_nnx_and_other_names_are_refused():
    assert issubclass(ur.nnx.Module, nnx.Module)
    with pytest.raises(AttributeError, match="no attribute 'Modul'"):
        _ = ur.nnx.Modul


LAYER, ADAM = ur.lista_cp(DEPTH), dict(optimizer=optax.adam(1e-2), steps=1, key=0)
# A call of (params, D, sample, a linear model), the error, and words.
REFUSED = [
    (
        lambda p, D, sample, linear: ur.nnx.fit(LAYER, sample, **ADAM),
        *(TypeError, "nnx.fit: expected an nnx.Module, got lista_cp"),
    ),
    (
        lambda p, D, sample, linear: ur.nnx.fit(linear, None, **ADAM),
        *(TypeError, "nnx.fit: sample must be a function of a key"),
    ),
    (
        lambda p, D, sample, linear: ur.nnx.fit(linear, sample, accumulate=2, **ADAM),
        *(ValueError, "nnx.fit: accumulate is for layers and networks"),
    ),
    (
        lambda p, D, sample, linear: ur.nnx.fit(linear, lambda key: (D, D[1:]), **ADAM),
        *(ValueError, r"\(40, 8\), \(32, 8\)\]; expected \(Y, X\) with as"),
    ),
    (
        lambda p, D, sample, linear: ur.nnx.fit(linear, sample, mask=D > 0, **ADAM),
        *(ValueError, "nnx.fit: mask is for layers and networks"),
    ),
    (
        lambda p, D, sample, linear: ur.nnx.fit(linear, sample, patince=2, **ADAM),
        *(TypeError, "nnx.fit: unknown option 'patince', perhaps 'patience'"),
    ),
    (
        lambda p, D, sample, linear: ur.fit(linear, None, None, sample, **ADAM),
        *(TypeError, "fit: expected a Layer or a Network, got .*; try unrolled.nnx.fit"),
    ),
    (
        lambda p, D, *_: ur.nnx.Module(LAYER.apply, p, D),
        *(TypeError, "expected a Layer or a Network, got method"),
    ),
    (
        lambda p, D, *_: ur.nnx.Module(LAYER, None, D),
        *(TypeError, "no floating-point leaf to train"),
    ),
    (
        lambda p, D, *_: ur.nnx.Module(LAYER, p, D[0]),
        *(ValueError, r"expected \(m, d\), atoms in columns"),
    ),
    (
        lambda p, D, *_: ur.nnx.Module(LAYER, p, D)(np.zeros(M + 1)),
        *(ValueError, rf"y must have shape \({M},\)"),
    ),
]


@pytest.mark.parametrize("call, error, words", REFUSED)
def test_what_is_no_module_or_does_not_fit_is_refused(call, error, words, D, sample):
    linear = nnx.Linear(N, N, rngs=nnx.Rngs(0))
    with pytest.raises(error, match=words):
        call(LAYER.init(None, D), D, sample, linear)
