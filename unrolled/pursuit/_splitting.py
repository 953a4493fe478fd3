"""ADMM with one split per penalty, the engine of the pursuits whose penalties do not commute."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled import _lax
from unrolled._checks import Array
from unrolled._numbers import widened

# Over-relaxation, within (0, 2).
_RELAXATION = 1.6
# Every so many steps, for the first so many, rho is balanced.
_PERIOD, _BALANCED = 10, 2000
# By how much rho may change at once.
_MOST = 10.0


class Splits(NamedTuple):
    """The state of ADMM."""

    x: Array  # (d,)
    v: Any  # the copies of K x, a tree
    u: Any  # their scaled multipliers; rho u is a subgradient of the penalties at v
    rho: Array  # ()
    steps: Array  # ()


def admm(
    minimise: Callable[[Array, Array], Array],
    forward: Callable[[Array], Any],
    prox: Callable[[Any, Array], Any],
    start: Array,
) -> tuple[Callable[[Splits], Splits], Splits]:
    r"""min f(x) + g(K x) by the alternating direction method of multipliers.

    .. math::
        x &\leftarrow \arg\min_x f(x) + \rho/2 \|K x - v + u\|^2, \\
        v_+ &= prox_{g/\rho}(w + u), \qquad w = \alpha K x + (1 - \alpha) v, \\
        u &\leftarrow u + w - v_+.

    rho is balanced now and then between the relative primal and dual residuals. It stays after a
    while, so that ADMM converges.

    Args:
        minimise: (b, rho) -> argmin_x f(x) + rho (x'K'K x / 2 - b'x).
        forward: x -> K x, linear, any tree of arrays.
        prox: (w, rho) -> argmin_v g(v) + rho/2 norm(v - w)^2.
        start: x to begin from.

    Returns:
        The step, and the state to begin from.

    Reference: Boyd, Parikh, Chu, Peleato, Eckstein (2011); Wohlberg (2017) for the balance.
    """

    def step(state: Splits) -> Splits:
        x, v, u, rho, steps = state
        x = minimise(_lax.adjoint(forward, x, _minus(v, u)), rho)
        image = forward(x)
        w = jax.tree.map(lambda a, b: _RELAXATION * a + (1 - _RELAXATION) * b, image, v)
        after = prox(jax.tree.map(jnp.add, w, u), rho)
        u = jax.tree.map(lambda u, w, v: u + w - v, u, w, after)
        primal = _size(_minus(image, after)) / jnp.maximum(_size(image), _size(after))
        dual = _size(_minus(after, v)) / _size(u)
        factor = jnp.clip(jnp.sqrt(primal / dual), 1 / _MOST, _MOST)
        due = (steps % _PERIOD == _PERIOD - 1) & (steps < _BALANCED) & jnp.isfinite(factor)
        factor = jnp.where(due, factor, 1)
        return Splits(x, after, jax.tree.map(lambda u: u / factor, u), rho * factor, steps + 1)

    image = forward(start)
    zero = jax.tree.map(jnp.zeros_like, image)
    return step, Splits(start, image, zero, jnp.ones((), start.dtype), jnp.zeros((), int))


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _size(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def null_space(B: Array) -> tuple[Array, Array]:
    """N, (d, d), whose nonzero columns are an orthonormal basis of {x : B x = 0}; and B^+, (d, n).

    B is (n, d) with n >= d. Singular values within the rounding of the largest count as zero,
    which does not grow with the number of rows.
    """
    wide = widened(B)
    U, values, V = jnp.linalg.svd(wide, full_matrices=False)
    n, d = B.shape
    cut = min(n, 10 * d) * float(jnp.finfo(B.dtype).eps) * jnp.max(values)
    large = values > cut
    inverse = jnp.where(large, 1 / jnp.where(large, values, 1), 0)
    N, pseudo = jnp.where(large[None, :], 0, V.T), (V.T * inverse[None, :]) @ U.T
    return N.astype(B.dtype), pseudo.astype(B.dtype)
