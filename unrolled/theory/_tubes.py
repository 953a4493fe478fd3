"""The effect of noise on one run: a tube around the run on the signal without noise."""

import math
from typing import Any

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Result, host_function
from unrolled.dictionaries import Dictionary, as_dictionary, dense
from unrolled.theory._certificates import Coupled
from unrolled.theory._coherence import of_real_entries
from unrolled.theory._schedules import host_numbers
from unrolled.theory._signals import MeasuredLayer

__all__ = ["Tube", "certify_run"]


_EPS = float(np.finfo(float).eps)


class Tube(Result):
    """Bounds on the errors of the runs on all signals D x + noise, step by step."""

    radius: np.ndarray  # (K+1,) largest l2 distance from the run without noise; inf if unknown
    error: np.ndarray  # (K+1,) largest l2 distance from the code x
    exact: bool  # whether the last code of every run has exactly the support of x


@of_real_entries("layer params D x", "theory.certify_signals(layer, params, D, X)")
@host_function
def certify_run(layer: Any, params: Any, D: Dictionary, x: ArrayLike, *, noise: ArrayLike) -> Tube:
    r"""Bound the distance by which noise can move a run of the layer on the signal of one code.

    Let u be the argument of a step of the run on D x, and C = I - gamma W'D. Let beta bound the l2
    distance between the codes with and without noise, which differ at most on the set T. Noise
    moves u_i by at most

    .. math:: b_i = \|C_{i,T}\| \beta + n_i, \qquad n_i = \gamma_i C_{W,i} \delta,

    plus rounding. Every run keeps entry i if abs(u_i) - b_i > theta_i, and drops entry i if
    abs(u_i) + b_i <= theta_i; otherwise the entry is open. If entries pass unshrunk, an open entry
    moves by at most j_i = max(b_i, abs(u_i)) if abs(u_i) > theta_i, otherwise by at most j_i =
    abs(u_i) + b_i, and

    .. math:: \beta_+^2 = (\|C_{kept,T}\| \beta + \|n_{kept}\|)^2 + \|j_{open}\|^2.

    Soft thresholding has no jumps, so beta_+ has only the first term, over all entries that are not
    dropped.

    `certify_signals` bounds the errors for all sign patterns at once. For a Gaussian D of shape
    (250, 500), it finds proofs for codes with up to about 12 nonzeros. `certify_run` follows the
    signs of one run, so it also certifies the run for more nonzeros if the noise is small and the
    thresholds stay above the noise.

    The function forms the d x d matrix |W'D|, so its memory grows with d^2.

    Args:
        layer: a layer of a family x <- shrink(x + gamma W'(y - D x), theta), with ReLU.
        params: the params of the layer, from theory, calibrated or learned.
        D: (m, d).
        x: (d,), the code.
        noise: delta, bound on the l1 norm of the noise.

    Returns:
        Tube, computed in float64 from the stored arrays.

    Raises:
        TypeError: the layer is of another family, or an argument is traced or complex.
        ValueError: the activation is not ReLU, params or code do not fit, or a number is out of
            range.

    Not claimed: that noise can move a run as far as the radius. Thresholds below the noise leave
    entries open, and the radius then grows without end. If the support selection of a step may pass
    only some of the entries above the threshold, the radius is inf from this step on. The bound on
    the rounding is proved, with the assumptions of `certify_signals`.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 100, 200)
        >>> x = ur.problems.bounded(jax.random.key(1), (200,), 10, 1.0, least=0.5)
        >>> theta = jnp.maximum(0.6 * 0.8 ** jnp.arange(20.0), 0.1)
        >>> layer = ur.alista(20, support=(1, 1))
        >>> params = layer.from_theory(ur.theory.frobenius_weights(D), theta)
        >>> tube = ur.theory.certify_run(layer, params, D, x, noise=0.01)
        >>> tube.exact, bool(tube.error[-1] < 0.03)
        (True, True)
    """
    where = "certify_run"
    D = as_dictionary(D, where)
    of_layer = MeasuredLayer.of(layer, params, D, where)
    if of_layer.tail or of_layer.reach < math.inf:
        raise ValueError(f"{where}: expected the activation relu, got {layer.activation}")
    code = checks.host_floats(x, "x", where)
    d = D.shape[1]
    if code.shape != (d,):
        raise ValueError(f"{where}: x has shape {code.shape}; expected ({d},), one code")
    checks.finite(code, "x", where)
    (delta,) = host_numbers(where, noise=noise)
    if not 0 <= delta < math.inf:
        raise ValueError(f"{where}: noise must be at least 0 and finite, got {delta:g}")
    code = code.astype(np.float64)
    radius, errors, exact = _tube(of_layer.measured, code, delta)
    # The run without noise rounds as well, so it has a tube of its own.
    alone, _, _ = _tube(of_layer.measured, code, 0.0) if delta else (radius, None, None)
    return Tube(radius + alone, errors, exact)


def _tube(measured: Coupled, code: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray, bool]:
    """The tube of all layer runs around the run in exact numbers, which the host follows.

    Returns:
        The radii and the bounds on the errors, (K+1,); whether the last code has the support of x.
    """
    d = len(code)
    k = int(np.frexp(max(np.abs(code).max(initial=0), delta))[1])  # because norms square entries
    code, delta = np.ldexp(code, -k), float(np.ldexp(delta, -k))
    with jax.enable_x64(True):
        A = np.asarray(dense(measured.D))
    y, z, beta, moving = A @ code, np.zeros(d), 0.0, np.zeros(d, dtype=bool)
    up = 1 + 4 * d * _EPS  # for the rounding of norms
    radius, errors, exact = [0.0], [float(np.linalg.norm(code)) * up], not code.any()
    for step in measured.steps:
        W, theta = np.asarray(dense(step.W)) * (step.sign * step.gamma), np.ldexp(step.theta, -k)
        u = z + (y - A @ z) @ W
        C = np.eye(d)[:, moving] - W.T @ A[:, moving]
        sizes = np.abs(z - code).sum() + beta * math.sqrt(moving.sum()), np.abs(code).sum()
        n = step.gamma * step.products.C * delta
        nonzeros = int(np.count_nonzero(moving | (code != 0)))
        whole, error, size = (np.ldexp(v, k) for v in (n, *sizes))
        rounding = step.with_rounding(whole, error, size, nonzeros, np.ldexp(delta, k))
        n = n + 2 * (np.ldexp(rounding, -k) - n)  # the layer rounds, and so does the host
        b = (np.linalg.norm(C, axis=1) * beta + n) * up
        above, moving = np.abs(u) > theta, np.abs(u) + b > theta
        kept, jump = np.abs(u) - b > theta, np.where(above, np.maximum(b, np.abs(u)), np.abs(u) + b)
        exact = np.array_equal(kept, code != 0) and np.array_equal(moving, code != 0)
        if step.passing and step.passing < (moving.sum() if np.ptp(theta) == 0 else d):
            break
        if step.passing:
            z, opened = np.where(above, u, 0), float(np.linalg.norm(jump[moving & ~kept]))
        else:
            z, kept, opened = np.sign(u) * np.maximum(np.abs(u) - theta, 0), moving, 0.0
        moved = np.linalg.norm(C[kept], 2) if C[kept].size else 0.0
        beta = math.hypot(moved * beta + np.linalg.norm(n[kept]), opened) * up
        radius.append(beta)
        errors.append((float(np.linalg.norm(z - code)) + beta) * up)
    unknown = [math.inf] * (1 + len(measured.steps) - len(radius))
    radii, bounds = (np.ldexp(v + unknown, k) for v in (radius, errors))
    return radii, bounds, exact and not unknown
