"""The start of a realization: LISTA-CP blocks as matrices, after all checks of layer and params."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled._base import checks
from unrolled.activations import Activation
from unrolled.dictionaries import Dictionary, Operator, Structured, as_dictionary
from unrolled.layers import Layer, Unrolled, unstack
from unrolled.networks import Network


class Bound(NamedTuple):
    """Bounds on a vector: on the magnitude of each entry and on the Euclidean norm."""

    entries: np.ndarray  # (d,)
    norm: float


@dataclass(frozen=True, eq=False)
class Update:
    """The affine part u = T x + G y of a LISTA-CP step; tied steps share one object."""

    T: np.ndarray  # (d, d), I - gamma W'D
    G: np.ndarray  # (d, m), gamma W'

    @functools.cached_property
    def norms(self) -> tuple[float, float]:
        """norm(T, 2) and norm(G, 2)."""
        return float(np.linalg.norm(self.T, 2)), float(np.linalg.norm(self.G, 2))


class MatrixStep(NamedTuple):
    """One LISTA-CP step in matrices: x <- rho(u - theta) - rho(-u - theta), u of `update`."""

    update: Update
    theta: np.ndarray  # (d,)


class MatrixBlock(NamedTuple):
    """One layer of a chain in matrices: the shape (m, d) of its dictionary and its steps."""

    m: int
    d: int
    steps: tuple[MatrixStep, ...]


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
    layers: Sequence[Any] = model.layers if isinstance(model, Network) else (model,)
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
    if not checks.is_concrete((params, D)):
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
    return blocks, np.dtype(checks.common_dtype(params, dictionaries))


def _matrix(D: Dictionary, where: str) -> Operator:
    if isinstance(D, Structured):
        raise ValueError(f"{where}: D is a {type(D).__name__}; try dictionaries.dense(D)")
    return as_dictionary(D, where)


def _block(layer: Layer, params: Unrolled, D: Dictionary, where: str) -> MatrixBlock:
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Structured))
    if any(isinstance(leaf, Structured) for leaf in leaves):
        raise ValueError(f"{where}: W is structured; try dictionaries.dense(W) in the params")
    params = jax.tree.map(np.asarray, params)
    checks.finite(params, "params", where)
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


def next_bound(
    step: MatrixStep, x: Bound, y: Bound, activation: Activation
) -> tuple[np.ndarray, Bound]:
    r"""Bounds on u = T x + G y and on the next code, for all x and y within their bounds.

    .. math::
        |u| \le |T| |x| + |G| |y|, \qquad |u_i| \le \|T_i\|_2 \|x\|_2 + \|G_i\|_2 \|y\|_2, \qquad
        |x^+| \le (|u| - \theta)_+ + \min(osc, 2 L_h |u|).

    Over K steps the bounds grow like min(norm(T, inf), norm(T, 2))^K, whereas the errors of the
    theory decay.

    Returns:
        Bounds on the entries of u, (d,), and on the next code.
    """
    (T, G), theta = (step.update.T, step.update.G), step.theta
    norm_T, norm_G = step.update.norms
    rows = np.linalg.norm(T, axis=1) * x.norm + np.linalg.norm(G, axis=1) * y.norm
    u = np.minimum(np.abs(T) @ x.entries + np.abs(G) @ y.entries, rows)
    u_norm = min(float(np.linalg.norm(u)), norm_T * x.norm + norm_G * y.norm)
    tail = np.full_like(u, activation.line_oscillation)
    if activation.identity_on_positives:
        tail = np.minimum(tail, 2 * activation.tail_lipschitz * u)
    entries = np.maximum(u - theta, 0) + tail
    return u, Bound(
        entries, min(u_norm + float(np.linalg.norm(tail)), float(np.linalg.norm(entries)))
    )
