"""The one loop that turns a step into a network of K layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from unrolled._checks import Array
from unrolled.layers._records import Unrolled, depth_of


def unroll(
    step: Callable[..., Any],
    params: Unrolled,
    D: Any,
    y: Array,
    state: Any,
    schedule: tuple[float, ...] | None = None,
    *,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
    depth: int | None = None,
) -> tuple[Any, Any]:
    """Run K steps from `state`: state <- step(params.shared, params.steps[k], D, y, state).

    Call it inside `jit`: outside, its scan is compiled at every call.

    Args:
        step: one step; with a `schedule`, its entry k is the last argument.
        params: stacked steps run as one scan, a tuple of steps as a Python loop; see `Unrolled`.
        D, y: the arguments of `step`.
        state: the state to start from; `state.x` is the code.
        schedule: untrained constants, one per step.
        precision: precision of the matrix products; below "highest" the thresholds of the theory
            may fail.
        unroll: how many steps one turn of the scan runs.
        remat: keep only the states of the forward pass, and recompute each step in the backward
            pass.
        depth: K, needed only where params.steps is None.

    Returns:
        The last state, and the code after every step, (K, d).

    Example:
        >>> def step(shared, p, D, y, state):
        ...     return ur.layers.State(state.x + p.gamma * ((y - D @ state.x) @ D))
        >>> params = ur.layers.Unrolled(None, ur.layers.Step(jnp.ones(3)))
        >>> D, y = jnp.eye(2), jnp.array([1.0, 2.0])
        >>> state, codes = ur.layers.unroll(step, params, D, y, ur.layers.State(jnp.zeros(2)))
        >>> codes.shape
        (3, 2)
    """
    if remat:
        step = jax.checkpoint(step)

    def body(state, leaves):
        step_params, constant = leaves
        constants = () if constant is None else (constant,)
        state = step(params.shared, step_params, D, y, state, *constants)
        return state, state.x

    with jax.default_matmul_precision(precision):
        if type(params.steps) is not tuple:
            constants = None if schedule is None else jnp.asarray(schedule, jnp.float32)
            length = depth if params.steps is None else depth_of(params.steps)
            return lax.scan(body, state, (params.steps, constants), length=length, unroll=unroll)
        codes = []
        for step_params, constant in zip(params.steps, schedule or (None,) * len(params.steps)):
            state, x = body(state, (step_params, constant))
            codes.append(x)
    if codes:
        return state, jax.tree.map(lambda *after: jnp.stack(after), *codes)
    return state, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), state.x)
