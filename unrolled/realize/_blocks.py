"""The start of a realization: LISTA-CP blocks as matrices, after all checks of layer and params."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from unrolled import _checks
from unrolled.activations import Activation
from unrolled.dictionaries import Dictionary, Structured, as_dictionary
from unrolled.layers import Layer, Unrolled, unstack
from unrolled.networks import Network
from unrolled.realize._code_bounds import MatrixBlock, MatrixStep, Update


def check_coupled(layer: Layer, where: str) -> None:
    """Raise unless a step of the layer is x <- shrink(x + gamma W'(y - D x), theta).

    Raises:
        TypeError: another family.
        ValueError: support selection.
    """
    if not layer.is_coupled:
        raise TypeError(
            f"{where}: a step of {layer} is not x <- shrink(x + gamma W'(y - D x), theta); "
            "expected such a family, as layers.lista_cp, alista, tilista or ista, without a guard"
        )
    if layer.schedule is not None:
        raise ValueError(
            f"{where}: the layer selects supports, which compares all entries with each other; "
            "no local operation does that, try the layer without `support`"
        )


def activation_of(model: Layer | Network, given: Callable | None, where: str) -> Activation:
    """The activation that all layers have in common, with its constants.

    Raises:
        TypeError: neither a layer nor a chain, another family, or an activation without constants.
        ValueError: support selection, activations that differ between layers or from `given`, or
            one whose constants hold on a part of the line.
    """
    if not isinstance(model, (Layer, Network)):
        raise TypeError(f"{where}: expected a Layer or a Network, got {type(model).__name__}")
    layers: tuple[Any, ...] = model.layers if isinstance(model, Network) else (model,)
    if not layers:
        raise TypeError(
            f"{where}: expected a chain of layers, as networks.dsc makes it; {model} is none"
        )
    for layer in layers:
        check_coupled(layer, where)
    own = [layer.activation for layer in layers]
    activation, *others = dict.fromkeys(own if given is None else [given, *own])
    if others:
        got = " and ".join(map(str, (activation, *others)))
        raise ValueError(f"{where}: expected one activation, that of the layer, got {got}")
    if not isinstance(activation, Activation):
        raise TypeError(
            f"{where}: expected an Activation, with the constants of its tail, got {activation!r}"
        )
    if math.isfinite(activation.reach):
        raise ValueError(
            f"{where}: {activation} is near ReLU only up to {activation.reach:g}; states may leave "
            "that range"
        )
    return activation


def blocks_of(
    model: Layer | Network, params: Any, D: Any, where: str
) -> tuple[tuple[MatrixBlock, ...], np.dtype]:
    """The blocks of a layer or of a chain, and the common dtype.

    Raises:
        TypeError: params of another family, or traced arrays.
        ValueError: shapes that do not meet, values that are not finite, or a structured D or W.
    """
    if not _checks.is_concrete((params, D)):
        raise TypeError(
            f"{where}: params or D are traced; this function runs on the host, call it outside jit"
        )
    several = isinstance(model, Network) and isinstance(D, (tuple, list))
    dictionaries = tuple(_matrix(one, where) for one in (D if several else (D,)))
    Ds: Any = dictionaries if several else dictionaries[0]
    model.check(params, Ds)
    if isinstance(model, Network):
        parts = list(zip(model.layers, params, dictionaries))
    else:
        parts = [(model, params, dictionaries[0])]
    blocks = tuple(_block(layer, p, one, where) for layer, p, one in parts)
    return blocks, np.dtype(_checks.common_dtype(params, dictionaries))


def _matrix(D: Dictionary, where: str) -> Dictionary:
    if isinstance(D, Structured):
        raise ValueError(f"{where}: D is a {type(D).__name__}; try dictionaries.dense(D)")
    return as_dictionary(D, where)


def _block(layer: Layer, params: Unrolled, D: Dictionary, where: str) -> MatrixBlock:
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Structured))
    if any(isinstance(leaf, Structured) for leaf in leaves):
        raise ValueError(f"{where}: W is structured; try dictionaries.dense(W) in the params")
    params = jax.tree.map(np.asarray, params)
    _checks.finite(params, "params", where)
    m, d = D.shape
    return MatrixBlock(m, d, tuple(_steps(layer, params, np.asarray(D))))


def _steps(layer: Layer, params: Unrolled, D: np.ndarray) -> Iterator[MatrixStep]:
    """The steps in float64; those with equal updates share one object."""
    d, last = D.shape[1], None
    for p in unstack(params).steps or ():
        W, gamma, _ = layer.weights(params.shared, p, D)
        W, gamma = np.asarray(W, float), np.asarray(1.0 if gamma is None else gamma, float)
        if last is None or not (np.array_equal(W, last[0]) and np.array_equal(gamma, last[1])):
            G = np.broadcast_to(gamma, (d,))[:, None] * W.T
            last = W, gamma, Update(np.eye(d) - G @ np.asarray(D, float), G)
        yield MatrixStep(last[2], np.broadcast_to(np.asarray(p.theta, float), (d,)))
