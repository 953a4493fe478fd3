"""What the features of a network are: the codes of a dictionary, and how good ones."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled import _checks, metrics, theory
from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike
from unrolled.dictionaries import Conv, dense
from unrolled.experiments._feature_records import Admitted, Codes, Features, LayerFeatures
from unrolled.experiments._layer_dictionary import LayerDictionary, as_dictionary, block_of
from unrolled.experiments._layer_pursuit import pursued
from unrolled.models import tap

# A mu in float32 may be too low by its rounding.
_ROUNDING = 1e-6
_COHERENCE_TOL = 1e-3  # relative gap of the linear programs


@checked
def features(
    model: nnx.Module,
    images: ArrayLike,
    layers: Sequence[str] | None = None,
    *,
    norms: Mapping[str, str] | None = None,
    activation: Any = None,
    fraction: float = 0.01,
    tol: float = 1e-3,
    max_steps: int = 4000,
    atoms: int = 600,
) -> Features:
    r"""The dictionaries, codes and pursuits of the convolutional layers of a network.

    A layer with ReLU computes x = relu(D'y - theta), see `LayerDictionary`. This is one step of
    nonnegative ISTA from zero, with step size 1, on

    .. math:: J(x) = \tfrac12 \|y - D x\|^2 + \sum_i theta_i x_i, \quad x \ge 0,

    where y is the input of the layer. A pursuit with the same D and theta starts at the best
    multiple of x and ends at the minimiser x*. How far x* is from x tells how good a sparse
    coder the layer is, apart from its scale: see `Pursued`. Of other activations x is the positive
    part of the features.

    Some theta are negative, where a bias is positive. If a shift e of the signal, the same at all
    positions, gives theta + D'e > 0, the pursuit is the LASSO of y + e with these penalties: the
    objectives differ by a constant. If there is none, J falls without end on large pictures, a
    minimum on a small one is an effect of its border, and `bounded` is False.

    Args:
        model: any nnx.Module; it is evaluated as in `model.eval()` and not changed.
        images: (N, H, W, C), as the model takes them. 64 are enough for means.
        layers: paths of layers, as `as_dictionary` takes them; None takes those that the model
            names in `convolutions`, or in `early`.
        norms: path of the batch norm of a layer, for layers that do not contain their own.
        activation: as in `as_dictionary`.
        fraction: of the largest entry of an image, for `Codes.below`.
        tol: how far J(x*) may be from the minimum, relative to J(0) - J(x*).
        max_steps: the most steps of FISTA.
        atoms: the most atoms for which the linear programs of mu~ are solved.

    Returns:
        Features, with means and numbers for every image.

    Raises:
        TypeError, ValueError: as in `as_dictionary`; images that are not (N, H, W, C), a layer that
            the model does not call, or calls more than once.

    Not claimed: that x* is unique, or was meant. Where D has more atoms than y has entries, J
    may have several minimisers; the pursuit ends in one near x.

    Reference: Papyan, Romano, Elad (2017) for layers as pursuits and for stripes; Li, Feng, Zhou
    (2024), Theorem 1.

    Example:
        >>> from flax import nnx
        >>> from unrolled.experiments import features
        >>> net = ur.models.LeNet5(channels=1, side=16, rngs=nnx.Rngs(0))
        >>> images = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
        >>> measured = features(net, images, ["conv1"], tol=0.1)
        >>> measured.layers["conv1"].pursued.gap.shape
        (2,)
    """
    where = "features"
    early = getattr(model, "convolutions", getattr(model, "early", ()))
    names = tuple(early if layers is None else layers)
    if not names:
        raise ValueError(f"{where}: {type(model).__name__} has no `early`; pass layers")
    images = _checks.as_float(images, "images", where)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{where}: images have shape {images.shape}; expected (N, H, W, C)")
    model = nnx.clone(model)
    model.eval()
    inputs = _inputs(model, images, [block_of(model, name)[0] for name in names])
    measured = {}
    for name, x in zip(names, inputs):
        options: dict[str, Any] = dict(norm=(norms or {}).get(name), activation=activation)
        layer = as_dictionary(model, name, x.shape[1:3], **options)
        Y = layer.signals(x)
        measured[name] = LayerFeatures(
            layer,
            _admitted(layer.D, atoms),
            _codes(layer, Y, fraction),
            pursued(layer, Y, tol, max_steps),
        )
    return Features(measured)


def _inputs(model: nnx.Module, images: Array, paths: Sequence[str]) -> list[Array]:
    """What the modules of these paths take; the model itself takes the images."""
    inner = tuple(dict.fromkeys(path for path in paths if path))
    taken: dict[str, Array] = {"": images}
    if inner:
        taken |= tap(model, *inner, inputs=True)(images)[1]
    for path in paths:
        if path not in taken:
            raise ValueError(f"features: the model calls {path!r} more than once; name another")
    return [taken[path] for path in paths]


def _admitted(D: Conv, atoms: int) -> Admitted:
    d, generalized = D.shape[1], None
    with jax.enable_x64(True):
        unit, mu, mu_W = _coherences(_checks.cast(D, np.float64))
        if d <= atoms:
            wide = theory.in_float64(dense(unit), D.dtype)
            coherence = theory.generalized_coherence(wide, _COHERENCE_TOL, only_maximum=True)
            generalized = float(coherence.lower), float(coherence.upper)
        local = min(float(mu), float(mu_W))
    least = local if generalized is None else min(local, generalized[1])
    stripe, signal = (theory.max_sparsity(value * (1 + _ROUNDING), d) for value in (local, least))
    return Admitted(float(mu), float(mu_W), generalized, stripe, signal)


@jax.jit
def _coherences(D: Conv) -> tuple[Conv, Array, Array]:
    """D with atoms of norm 1 in float64, its mu, and mu_W of the closed form."""
    unit, _ = D.normalized()
    mu_W = theory.coherence(theory.frobenius_weights(unit), unit).mu_W
    return unit, theory.mutual_coherence(unit), mu_W


def _codes(layer: LayerDictionary, Y: Array, fraction: float) -> Codes:
    X = layer.codes(Y)
    zeros, below, hoyer = map(float, metrics.sparsity(X, fraction))
    return Codes(zeros, below, hoyer, X.shape[1], *map(np.asarray, _counts(layer.D, X)))


@jax.jit
def _counts(D: Conv, X: Array) -> tuple[Array, Array]:
    """Nonzeros, and those of the fullest stripe, of codes (N, d)."""
    stripes = partial(theory.stripe_norm, kernel=D.kernel, stride=D.stride)
    return jnp.sum(X != 0, 1), jax.vmap(stripes)(D.unflatten_code(X))
