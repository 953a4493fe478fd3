"""Bounds of all codes that a layer can reach, from a bound of the signal: what a signed state must
be lifted by.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unrolled.activations import Activation


class Bound(NamedTuple):
    """Bounds of a vector: of the magnitude of each entry, and of the Euclidean norm."""

    entries: np.ndarray
    norm: float


@dataclass(frozen=True, eq=False)
class Update:
    """u = T x + G y, what a LISTA-CP step shrinks; tied steps share one."""

    T: np.ndarray  # (d, d), I - gamma W'D
    G: np.ndarray  # (d, m), gamma W'

    @functools.cached_property
    def norms(self) -> tuple[float, float]:
        """norm(T, 2) and norm(G, 2)."""
        return float(np.linalg.norm(self.T, 2)), float(np.linalg.norm(self.G, 2))


class MatrixStep(NamedTuple):
    """One LISTA-CP step, x <- rho(u - theta) - rho(-u - theta)."""

    update: Update
    theta: np.ndarray  # (d,)


class MatrixBlock(NamedTuple):
    """One layer of a chain: the shape (m, d) of its dictionary, and its steps."""

    m: int
    d: int
    steps: tuple[MatrixStep, ...]


def next_bound(
    step: MatrixStep, x: Bound, y: Bound, activation: Activation
) -> tuple[np.ndarray, Bound]:
    r"""Bounds of u = T x + G y and of the next code, whatever x and y are within theirs.

    .. math::
        |u| \le |T| |x| + |G| |y|, \qquad |u_i| \le \|T_i\|_2 \|x\|_2 + \|G_i\|_2 \|y\|_2, \qquad
        |x^+| \le (|u| - \theta)_+ + \min(osc, 2 L_h |u|).

    Neither decays as the codes of the theory do: over K steps they grow like min(norm(T, inf),
        norm(T, 2))^K.

    Returns:
        the bounds of the entries of u, (d,), and those of the next code.
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
