"""A learning rate for every step of the network, applied to the updates of an optimiser."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike
from unrolled.layers import Unrolled


class StepRates(NamedTuple):
    """The state of `scale_steps`; replacing it changes the rates without compiling again."""

    rates: Array  # (K,)
    shared: Array  # ()


@checked
def scale_steps(
    rates: ArrayLike | Sequence[float], shared: ArrayLike = 1.0
) -> optax.GradientTransformation:
    """Scale the updates of step k by `rates[k]`, and all others by `shared`.

    Place it last, as in `optax.chain(optax.adam(1e-3), scale_steps(rates))`: before Adam it has no
    effect, since Adam divides by the size of the gradient. A rate of 0 freezes a step.

    Args:
        rates: (K,), not negative, for stacked steps (leaves that lead with K) or tuples of K steps,
            in `Unrolled` or inside `Trained`.
        shared: for everything outside `Unrolled.steps`: shared params and the dictionary.

    Raises:
        ValueError: rates that are no vector, negative or not finite; at `init`, params without
            steps or with another number of them.

    Example:
        >>> params = ur.layers.Unrolled(None, ur.layers.Step(jnp.ones(3)))
        >>> optimizer = ur.training.scale_steps([1.0, 0.5, 0.0])
        >>> updates, state = optimizer.update(params, optimizer.init(params))
        >>> updates.steps.gamma.tolist()
        [1.0, 0.5, 0.0]
    """
    for name, value, ndim in (("rates", rates, 1), ("shared", shared, 0)):
        if np.ndim(value) != ndim:
            expected = "a vector, one rate per step" if ndim else "one number"
            raise ValueError(
                f"scale_steps: {name} has shape {np.shape(value)}; expected {expected}"
            )
        _checks.finite(value, name, "scale_steps")
        _checks.nonnegative(value, name, "scale_steps")

    def init(params):
        # Copies: a compiled step may consume its state, and must not consume the caller's array.
        state = StepRates(jnp.array(rates, float), jnp.array(shared, float))
        nodes = jax.tree.leaves(params, is_leaf=_is_unrolled)
        networks = [node for node in nodes if _is_unrolled(node)]
        if not networks:
            raise ValueError(
                "scale_steps: there is no Unrolled(shared, steps) in what is trained, so no steps"
            )
        for node in networks:
            _check_depth(node, len(state.rates))
        return state

    def update(updates, state, params=None):
        def scaled(rate):
            return lambda leaf: leaf * rate.astype(leaf.dtype)

        def along_steps(leaf):
            return leaf * state.rates.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))

        def both(node):
            if type(node.steps) is tuple:
                steps = tuple(
                    jax.tree.map(scaled(state.rates[k]), p) for k, p in enumerate(node.steps)
                )
            else:
                steps = jax.tree.map(along_steps, node.steps)
            return Unrolled(jax.tree.map(scaled(state.shared), node.shared), steps)

        def one(node):
            return both(node) if _is_unrolled(node) else scaled(state.shared)(node)

        return jax.tree.map(one, updates, is_leaf=_is_unrolled), state

    return optax.GradientTransformation(init, update)


def _is_unrolled(node) -> bool:
    return isinstance(node, Unrolled)


def _check_depth(params: Unrolled, K: int) -> None:
    """Raise ValueError unless there are K steps."""
    if params.steps is None:
        raise ValueError(
            "scale_steps: the steps of this family share all their params; none has a rate"
        )
    if type(params.steps) is tuple:
        lengths = {(len(params.steps),)}
    else:
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params.steps)}
    if lengths - {(K,)}:
        raise ValueError(
            f"scale_steps: there are {K} rates, but the steps have the leading axes "
            f"{sorted(lengths)}; expected {K} steps"
        )
