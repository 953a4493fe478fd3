"""Which leaves of the params and of the dictionary are trained, and which are only used."""

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.dictionaries import normalized
from unrolled.layers import Fixed, fold_thresholds
from unrolled.training._records import Trained


def split(params, D, learn_dictionary: bool, trainable, where: str) -> tuple[Trained, Trained]:
    """Trained and fixed leaves, as two trees with None at the places of the other."""

    def is_fixed(node):
        return isinstance(node, Fixed)

    def mark(node):
        return jax.tree.map(lambda leaf: not is_fixed(node) and _is_float(leaf), node)

    whole = Trained(params, D)
    floats = jax.tree.map(mark, params, is_leaf=is_fixed)
    if learn_dictionary is False and not any(jax.tree.leaves(floats)):
        raise TypeError(f"{where}: there is no floating-point leaf to train")
    if trainable is not None:
        floats = jax.tree.map(
            lambda chosen, own: chosen and own, _spread(trainable, params, where), floats
        )
    trains = Trained(floats, jax.tree.map(lambda leaf: learn_dictionary and _is_float(leaf), D))
    if not any(jax.tree.leaves(trains)):
        raise ValueError(
            f"{where}: trainable leaves nothing to train; expected True at a floating-point leaf"
        )
    trained = jax.tree.map(lambda t, leaf: jnp.asarray(leaf) if t else None, trains, whole)
    return trained, jax.tree.map(lambda t, leaf: None if t else leaf, trains, whole)


def merge(trained: Trained, fixed: Trained) -> Trained:
    """The whole of params and D, with every trained threshold as its non-negative magnitude."""

    def one(t, f):
        return f if t is None else t

    return jax.tree.map(one, fold_thresholds(trained), fixed, is_leaf=lambda leaf: leaf is None)


def with_unit_atoms(D):
    """D, or each of a tuple, with its atoms scaled to norm 1."""
    if isinstance(D, tuple):
        return tuple(with_unit_atoms(Dj) for Dj in D)
    return normalized(D)[0]


def _spread(trainable, params, where: str):
    """A tree prefix of bools as a bool for every leaf of the params."""
    for leaf in jax.tree.leaves(trainable):
        if not isinstance(leaf, bool | np.bool_):
            hint = (
                "; to freeze single steps, pass unstacked params and a tuple of bools"
                if np.ndim(leaf)
                else ""
            )
            raise TypeError(f"{where}: trainable must hold bools, got {type(leaf).__name__}{hint}")
    try:
        return jax.tree.broadcast(trainable, params)
    except ValueError as error:
        raise ValueError(
            f"{where}: trainable is not a tree prefix of params; expected such as Unrolled(False, True) for params of the "
            f"form {jax.tree.structure(params)}: {error}"
        ) from error


def _is_float(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
