"""Which leaves of the params may be trained."""

from typing import Any

import jax
import jax.numpy as jnp

from unrolled.layers import Fixed
from unrolled.training._records import Params


def trainable(params: Params) -> Any:
    """Whether each leaf may be trained, as bools: a mask for an optax loop of one's own.

    True at floating-point leaves, except those inside a `layers.Fixed`. Those carry no gradient,
    but what an optimiser adds of its own, such as weight decay, moves them unless they are masked.
    `fit` needs no mask: it never moves them.

    Args:
        params: of a layer; a tuple of a network.

    Returns:
        bools, a tree of the structure of `params`.

    Example:
        >>> import optax
        >>> layer, D = ur.alista(2), ur.dictionaries.dct(4, 6)
        >>> params = layer.init(None, D)
        >>> mask = ur.training.trainable(params)
        >>> mask
        Unrolled(shared=Fixed(W=False), steps=StepAndThreshold(gamma=True, theta=True))
        >>> adamw = optax.masked(optax.adamw(0.1), mask)
        >>> gradients = jax.grad(lambda p: layer.apply(p, D, D[:, 0]).sum())(params)
        >>> updates, _ = adamw.update(gradients, adamw.init(params), params)
        >>> bool((optax.apply_updates(params, updates).shared.W == params.shared.W).all())
        True
    """

    def is_fixed(node):
        return isinstance(node, Fixed)

    def mark(node):
        return jax.tree.map(lambda leaf: not is_fixed(node) and is_float(leaf), node)

    return jax.tree.map(mark, params, is_leaf=is_fixed)


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds floating-point numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
