"""Sizes that are none, and what cannot draw params, are refused by every model in its own words."""

import inspect
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_imports import exported

from unrolled.vision import models
from unrolled.vision.models import Filters

MODELS = {
    "CSCLayer": dict(in_features=2, out_features=2, kernel_size=3),
    "CSCNet": dict(n_filters=2, kernel=3, stride=2, unfoldings=1),
    "LeNet5": {},
    "MLCSC": dict(shape=(8, 8, 1), filters=[Filters(4, 3)], method="ml-ista"),
    "MSDCSC": {},
    "MSDCSCBlock": dict(in_features=2),
    "ResCSC": {},
    "ResCSCBlock": dict(in_features=2, features=2),
    "UNet": {},
    "VGG11": {},
}
BAD = {-1: ValueError, "abc": TypeError, 2.5: TypeError, True: TypeError}


def parameters_of(name):
    return inspect.signature(getattr(models, name).__init__).parameters


def made(name, **options):
    return getattr(models, name)(**{"rngs": nnx.Rngs(0), **MODELS[name], **options})


def sizes_of(name):
    """The arguments that are integers, or integers among others."""
    kinds = {key: p.annotation for key, p in parameters_of(name).items()}
    return [key for key, kind in kinds.items() if int in (kind, *_members(kind))]


def _members(kind):
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else ()


def test_every_model_that_draws_is_listed():
    drawing = [name for name in exported(models.__name__) if inspect.isclass(getattr(models, name))]
    assert set(MODELS) == {name for name in drawing if "rngs" in parameters_of(name)}


SIZES = [(name, size) for name in MODELS for size in sizes_of(name)]


@pytest.mark.parametrize("name, size", SIZES)
def test_a_size_is_an_integer_in_its_range(name, size):
    kept = size == "unfoldings" and name != "CSCNet"  # 0 is no steps after the forward pass
    for bad, error in {**BAD, **({} if kept else {0: ValueError})}.items():
        with pytest.raises(error, match=f"^{name}: {size} must be "):
            made(name, **{size: bad})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["None", "int", "key", "no params"])
def test_rngs_draws_params(name, kind):
    given = {"None": None, "int": 0, "key": jax.random.key(0), "no params": nnx.Rngs(dropout=0)}
    rngs = given[kind]
    with pytest.raises(TypeError, match=rf"^{name}: rngs draws the params .* try rngs=nnx.Rngs"):
        made(name, rngs=rngs)


def test_given_filters_are_not_drawn():
    filters = np.ones((2, 3, 3))
    net = nnx.eval_shape(lambda: made("CSCNet", rngs=None, filters=filters))
    assert net.A.shape == (2, 1, 3, 3)


PER_DIMENSION = {
    "kernel": (lambda n: made("CSCLayer", kernel_size=(3, n)), r"CSCLayer: kernel_size\[1\]", 1),
    "strides": (lambda n: made("CSCLayer", strides=(n, 1)), r"CSCLayer: strides\[0\]", 1),
    "dilation": (lambda n: made("CSCLayer", kernel_dilation=n), "CSCLayer: kernel_dilation", 1),
    "widths": (lambda n: made("ResCSC", widths=(4, n)), r"ResCSC: widths\[1\]", 1),
    "dilations": (lambda n: made("MSDCSC", dilations=(n,)), r"MSDCSCBlock: dilations\[0\]", 1),
    "bank": (lambda n: made("MLCSC", filters=[Filters(n, 3)]), "MLCSC: number of layer 1", 1),
    "side": (lambda n: models.ImageConv(np.ones((3, 3, 1, 2)), (5, n)), r"ImageConv: side", 1),
    "stride": (lambda n: models.ImageConv(np.ones((3, 3, 1, 2)), (5, 5), n), "ImageConv: st", 1),
    "padding": (
        lambda n: models.ImageConv(np.ones((3, 3, 1, 2)), (5, 5), 1, n),
        "ImageConv: padding",
        0,
    ),
    "shifted kernel": (
        lambda n: models.shift_average(np.sin, np.ones((6, 6)), kernel=n, stride=1),
        "shift_average: kernel",
        1,
    ),
}


@pytest.mark.parametrize("what", PER_DIMENSION)
def test_a_size_among_others_is_an_integer_in_its_range(what):
    make, message, least = PER_DIMENSION[what]
    for bad, error in {**BAD, least - 1: ValueError}.items():
        with pytest.raises(error, match=f"^{message}.* must be "):
            make(bad)


def test_what_is_no_sequence_of_banks_or_no_side_is_refused():
    with pytest.raises(TypeError, match="^MLCSC: filters must be a sequence of models.Filters"):
        made("MLCSC", filters=-1)
    with pytest.raises(ValueError, match=r"^ImageConv: side is \(5,\); expected \(H, W\)"):
        models.ImageConv(np.ones((3, 3, 1, 2)), (5,))
    assert hash(models.ImageConv(np.ones((3, 3, 1, 2)), [5, 5]).side) == hash((5, 5))


@pytest.mark.parametrize(
    "name, flag",
    [
        *(("CSCLayer", flag) for flag in ("warm", "batch_norm", "use_bias")),
        ("MLCSC", "constrained"),
    ],
)
def test_flags_are_true_or_false(name, flag):
    with pytest.raises(TypeError, match=f"{name}: {flag} must be True or False, got 'no'"):
        made(name, **{flag: "no"})


@pytest.mark.parametrize("name", ["strides", "kernel_dilation"])
def test_csc_layers_take_one_size_per_side(name):
    with pytest.raises(ValueError, match=rf"CSCLayer: {name} is .* one for each"):
        made("CSCLayer", kernel_size=(3, 3), **{name: (1, 1, 1)})


def test_csc_layers_step_safely_for_filters_at_the_ends_of_the_range():
    for scale in (0.0, 1e-25, 1e20):
        draw = nnx.initializers.normal(scale)
        layer = made("CSCLayer", kernel_size=(3, 3), unfoldings=1, kernel_init=draw)
        assert jnp.isfinite(layer.step[...])
