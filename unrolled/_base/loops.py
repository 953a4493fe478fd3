"""Loops and adjoints of JAX, which also run inside `jax.shard_map` as it comes, with its checks.

There the type of an array says along which axes devices have other numbers. A state must keep its
type: zeros from which a loop starts are equal on all devices, what it makes of them is not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def scan(body: Callable[[Any, Any], Any], start: Any, xs: Any = None, **options: Any) -> Any:
    """`lax.scan`; every leaf of the state differs among devices as the state after a step does."""
    if not _inside_shard_map():
        return lax.scan(body, start, xs, **options)
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    axes = _axes(start, jax.eval_shape(lambda state: body(state, first)[0], start))

    def alike(state: Any, x: Any) -> Any:
        after, out = body(state, x)
        return _varying(after, axes), out

    return lax.scan(alike, _varying(start, axes), xs, **options)


def while_loop(not_done: Callable[[Any], Any], body: Callable[[Any], Any], start: Any) -> Any:
    """`lax.while_loop`, with the state as in `scan`."""
    if not _inside_shard_map():
        return lax.while_loop(not_done, body, start)
    axes = _axes(start, jax.eval_shape(body, start))
    return lax.while_loop(
        not_done, lambda state: _varying(body(state), axes), _varying(start, axes)
    )


def fori_loop(lower: int, upper: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """`lax.fori_loop`, with the state as in `scan`."""
    if not _inside_shard_map():
        return lax.fori_loop(lower, upper, body, start)
    axes = _axes(start, jax.eval_shape(body, jnp.int32(lower), start))
    return lax.fori_loop(
        lower, upper, lambda i, state: _varying(body(i, state), axes), _varying(start, axes)
    )


def cond(holds: Any, yes: Callable[..., Any], no: Callable[..., Any], *operands: Any) -> Any:
    """`lax.cond`, whose branches may use other arrays too; inside shard_map both are computed."""
    if not _inside_shard_map():
        return lax.cond(holds, yes, no, *operands)
    return jax.tree.map(partial(jnp.where, holds), yes(*operands), no(*operands))


def adjoint(linear: Callable[[Any], Any], primal: Any, image: Any) -> Any:
    """linear' applied to an image, by `jax.linear_transpose` at the type of a primal."""
    if _inside_shard_map():
        primal = jnp.zeros(primal.shape, primal.dtype)
        axes = _axes(image, jax.eval_shape(linear, primal))
        primal, image = _varying(primal, axes), _varying(image, axes)
    return jax.linear_transpose(linear, primal)(image)[0]


def _inside_shard_map() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _axes(*trees: Any) -> frozenset[Any]:
    """The axes along which the devices have other numbers in some leaf."""
    leaves = jax.tree.leaves(trees)
    return frozenset[Any]().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))


def _varying(tree: Any, axes: frozenset[Any]) -> Any:
    """The tree, for JAX one whose leaves may differ among devices along the axes."""

    def of_leaf(leaf: Any) -> Any:
        missing = axes - _axes(leaf)
        return lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(of_leaf, tree)
