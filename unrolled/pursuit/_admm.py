"""The alternating direction method of multipliers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled._base import programs
from unrolled._base.checks import Array

__all__: list[str] = []

# The steps of one call of `advance`, which ends with a balance of rho during the first _BALANCED
# steps.
PERIOD, _BALANCED = 10, 2000
# The largest factor by which rho may change at once.
_MOST = 10.0


class Splits(NamedTuple):
    """The state of ADMM."""

    v: Any  # the copies of K x, a tree
    u: Any  # the scaled multipliers of v; rho u is a subgradient of the penalties at v
    rho: Array  # ()
    steps: Array  # ()


def admm(
    nearest: Callable[[Any, Array], Any],
    prox: Callable[[Any, Array], Any],
    relaxation: float = 1.6,
) -> Callable[[Splits], Splits]:
    r"""Minimise f(x) + g(K x) by the alternating direction method of multipliers.

    .. math::
        x &\leftarrow \arg\min_x f(x) + \rho/2 \|K x - v + u\|^2, \\
        v_+ &= prox_{g/\rho}(w + u), \qquad w = \alpha K x + (1 - \alpha) v, \\
        u &\leftarrow u + w - v_+.

    During the first `_BALANCED` steps, the method changes rho once per `PERIOD` steps to balance
    the relative primal and dual residuals. After these steps rho is constant, so that ADMM
    converges.

    Args:
        nearest: (w, rho) -> K x for the x that minimises f(x) + rho/2 norm(K x - w)^2.
        prox: (w, rho) -> argmin_v g(v) + rho/2 norm(v - w)^2.
        relaxation: alpha, in (0, 2).

    Returns:
        The function that takes `PERIOD` steps.

    Reference: Boyd, Parikh, Chu, Peleato, Eckstein (2011); Wohlberg (2017) for the balance.
    """

    def moved(state: Splits) -> tuple[Splits, Any]:
        v, u, rho, steps = state
        image = nearest(_minus(v, u), rho)
        w = jax.tree.map(lambda a, b: relaxation * a + (1 - relaxation) * b, image, v)
        after = prox(jax.tree.map(jnp.add, w, u), rho)
        u = jax.tree.map(lambda u, w, v: u + w - v, u, w, after)
        return Splits(after, u, rho, steps + 1), image

    def advance(state: Splits) -> Splits:
        before = programs.scan(lambda s, _: (moved(s)[0], None), state, length=PERIOD - 1)[0]
        (v, u, rho, steps), image = moved(before)
        primal = _size(_minus(image, v)) / jnp.maximum(_size(image), _size(v))
        dual = _size(_minus(v, before.v)) / _size(u)
        factor = jnp.clip(jnp.sqrt(primal / dual), 1 / _MOST, _MOST)
        factor = jnp.where((steps <= _BALANCED) & jnp.isfinite(factor), factor, 1)
        return Splits(v, jax.tree.map(lambda u: u / factor, u), rho * factor, steps)

    return advance


def begin(v: Any) -> Splits:
    """The state with v = K x and without multipliers."""
    one = jnp.ones((), jax.tree.leaves(v)[0].dtype)
    return Splits(v, jax.tree.map(jnp.zeros_like, v), one, jnp.zeros((), int))


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _size(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
