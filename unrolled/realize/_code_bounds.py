"""Bounds on the codes of a layer from a bound on the signal; they lift the signed states."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unrolled.activations import Activation


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
