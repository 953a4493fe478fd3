"""Taps: what a model's submodules return, on models of a user, under jit, grad and batch norm."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import unrolled as ur

tap = ur.vision.models.tap


class Block(nnx.Module):
    def __init__(self, n, rngs):
        self.linear = nnx.Linear(n, n, rngs=rngs, param_dtype=float)

    def __call__(self, x):
        return jnp.tanh(self.linear(x))


class Net(nnx.Module):
    """A model of a user: a list, a dictionary, a shared and an unused block, batch norm."""

    def __init__(self, rngs):
        self.blocks = nnx.List([Block(3, rngs), Block(3, rngs)])
        self.heads = nnx.Dict({"main": Block(3, rngs)})
        self.shared = self.alias = Block(3, rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs, dtype=jnp.float32)
        self.unused = Block(3, rngs)

    def __call__(self, x, *, scale=1.0):
        for block in self.blocks:
            x = block(x)
        x = self.shared(self.alias(x)) * scale
        x = self.norm(x).astype(x.dtype)
        return self.heads["main"](x)


@nnx.jit
def run(model, x):
    return model(x)


@pytest.fixture
def net():
    return Net(nnx.Rngs(0))


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(5, 3))


@pytest.mark.slow
def test_three_lines_on_a_model_of_a_user(net, x):
    tapped = tap(net, "blocks.0", "blocks.1.linear", "heads.main")
    outputs, features = tapped(x)
    first = net.blocks[0](x)
    np.testing.assert_array_equal(features["blocks.0"], first)
    np.testing.assert_array_equal(features["blocks.1.linear"], net.blocks[1].linear(first))
    np.testing.assert_array_equal(features["heads.main"], outputs)
    assert list(features) == ["blocks.0", "blocks.1.linear", "heads.main"]


def test_outputs_are_those_of_the_model_and_the_model_stays_as_it_is(net, x):
    net.eval()
    before = nnx.graphdef(net)
    outputs, _ = tap(net, "blocks.0")(x, scale=2.0)
    np.testing.assert_array_equal(outputs, net(x, scale=2.0))
    assert nnx.graphdef(net) == before and type(net.blocks[0]) is Block


def test_a_shared_module_gives_one_feature_per_call_under_any_of_its_names(net, x):
    _, features = tap(net, "shared", "alias")(x)
    assert list(features) == ["shared[0]", "shared[1]", "alias[0]", "alias[1]"]
    np.testing.assert_array_equal(features["alias[1]"], features["shared[1]"])
    np.testing.assert_array_equal(features["shared[1]"], net.shared(features["shared[0]"]))


def test_statistics_of_batch_norm_are_updated_in_the_model_and_follow_its_mode(net, x):
    twin, tapped = Net(nnx.Rngs(0)), tap(net, "blocks.0")
    run(twin, x), run(tapped, x)
    before = np.array(net.norm.mean[...])
    np.testing.assert_allclose(before, twin.norm.mean[...], rtol=1e-6)
    assert np.any(before != 0)
    net.eval()
    run(tapped, x)
    np.testing.assert_array_equal(net.norm.mean[...], before)


@pytest.mark.slow
def test_gradients_reach_the_params_through_features_and_outputs(net, x):
    net.eval()

    def loss(tapped):
        outputs, features = tapped(x)
        return jnp.sum(outputs**2) + jnp.sum(jnp.abs(features["blocks.0"]))

    def by_hand(net):
        return jnp.sum(net(x) ** 2) + jnp.sum(jnp.abs(net.blocks[0](x)))

    found = nnx.jit(nnx.grad(loss))(tap(net, "blocks.0"))
    expected = nnx.jit(nnx.grad(by_hand))(net)
    # Batch norm runs in float32.
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_training_the_tapped_model_trains_the_model(net, x):
    tapped = tap(net, "blocks.0")
    before = np.array(net.blocks[0].linear.kernel[...])
    optimizer = nnx.Optimizer(tapped, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def train(tapped, optimizer, x):
        gradient = nnx.grad(lambda t: jnp.mean(jnp.abs(t(x)[1]["blocks.0"])))(tapped)
        optimizer.update(tapped, gradient)
        return gradient["model"]["blocks"][0]["linear"]["kernel"][...]

    expected = -0.1 * np.asarray(train(tapped, optimizer, x))
    step = np.asarray(net.blocks[0].linear.kernel[...]) - before
    np.testing.assert_allclose(step, expected, atol=1e-15)
    assert np.any(step != 0)


def test_a_tapped_model_compiles_once(net, x):
    traces = []

    @nnx.jit
    def run(net, x):
        traces.append(1)
        return tap(net, "blocks.0")(x)

    run(net, x), run(net, x + 1)
    assert len(traces) == 1


def test_modules_inside_a_transformation_are_tapped(x):
    class Remat(nnx.Module):
        def __init__(self, rngs):
            self.block = Block(3, rngs)

        def __call__(self, x):
            return nnx.remat(lambda block, x: block(x))(self.block, x)

    net = Remat(nnx.Rngs(0))
    outputs, features = nnx.jit(lambda net: tap(net, "block")(x))(net)
    np.testing.assert_array_equal(features["block"], outputs)


NAMES = {
    "no submodule 'blocks.2'; it has alias, alias.linear, blocks.0, blocks.0": ("blocks.2",),
    "no submodule 'nothing'": ("nothing",),
    "no submodule 'blocks'": ("blocks",),
    "no submodule ''": ("",),
    "no submodule 'norm.mean'": ("norm.mean",),
    "expected names that differ, got ..$": (),
    "expected names that differ, got ..sh": ("shared", "shared"),
}


@pytest.mark.parametrize("message", NAMES)
def test_names_that_are_refused(net, message):
    with pytest.raises(ValueError, match=message):
        tap(net, *NAMES[message])


def test_inputs_may_be_passed_by_name(x):
    class Named(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs, param_dtype=float)

        def __call__(self, x):
            return self.linear(inputs=2 * x)

    _, found = tap(Named(nnx.Rngs(0)), "linear", inputs=True)(x)
    np.testing.assert_array_equal(found["linear"], 2 * x)


def test_a_module_that_is_not_called_is_an_error(net, x):
    with pytest.raises(ValueError, match="the model does not call 'unused'"):
        tap(net, "unused")(x)
