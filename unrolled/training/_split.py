"""Which leaves of the params and of the dictionary are trained, and which are only used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._arguments import checked
from unrolled.dictionaries import as_dictionary, normalize, normalized
from unrolled.layers import Fixed, fold_thresholds
from unrolled.training._records import Dictionaries, Params, Trained


@checked
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
    return _marks(params)


def _marks(params: Params) -> Any:
    """`trainable`, which is also the name of an option."""

    def is_fixed(node):
        return isinstance(node, Fixed)

    def mark(node):
        return jax.tree.map(lambda leaf: not is_fixed(node) and is_float(leaf), node)

    return jax.tree.map(mark, params, is_leaf=is_fixed)


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds floating-point numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def as_dictionaries(D: Any, where: str) -> Dictionaries:
    """D, or each of a tuple of them, checked."""
    if isinstance(D, tuple | list):
        return tuple(as_dictionary(Dj, where) for Dj in D)
    return as_dictionary(D, where)


@checked
def split(
    params: Params | Any,
    D: Dictionaries,
    *,
    learn_dictionary: bool = False,
    trainable: Any = None,
    where: str = "split",
) -> tuple[Trained, Trained]:
    """The trained and the fixed leaves, two trees with None where the other has its leaf.

    Floating-point leaves are trained, except those inside a `layers.Fixed`.

    Args:
        params, D: of a layer; tuples of a network.
        learn_dictionary: train D too; one whose unit atoms take another form, as a `Composed` of a
            `Conv`, has that form at once.
        trainable: bools, a tree prefix of `params`; None trains all.
        where: the name of the caller, which messages begin with.

    Raises:
        TypeError: params without floating-point leaves, a `learn_dictionary` that is not a bool, a
            `trainable` that holds anything but bools.
        ValueError: a `trainable` that is no tree prefix of params, or that freezes everything.

    Example:
        >>> layer, D = ur.alista(3), ur.dictionaries.dct(4, 6)
        >>> trained, fixed = ur.training.split(layer.init(None, D), D)
        >>> trained.params.shared.W is None, trained.params.steps.theta.shape
        (True, (3,))
        >>> ur.training.merge(trained, fixed).params.shared.W.shape
        (4, 6)
    """
    learn_dictionary = _checks.as_bool(learn_dictionary, "learn_dictionary", where)
    D = _in_form(D) if learn_dictionary else D
    whole = Trained(params, D)
    floats = _marks(params)
    if not learn_dictionary and not any(jax.tree.leaves(floats)):
        raise TypeError(f"{where}: there is no floating-point leaf to train")
    if trainable is not None:
        floats = jax.tree.map(
            lambda chosen, own: chosen and own, _spread(trainable, params, where), floats
        )
    trains = Trained(floats, jax.tree.map(lambda leaf: learn_dictionary and is_float(leaf), D))
    if not any(jax.tree.leaves(trains)):
        raise ValueError(
            f"{where}: trainable leaves nothing to train; expected True at a floating-point leaf"
        )
    trained = jax.tree.map(lambda t, leaf: jnp.asarray(leaf) if t else None, trains, whole)
    return trained, jax.tree.map(lambda t, leaf: None if t else leaf, trains, whole)


@checked
def merge(trained: Trained, fixed: Trained) -> Trained:
    """The whole params and D, with every trained threshold as its non-negative magnitude.

    Args:
        trained, fixed: from `split`, or trained since then.

    Example:
        >>> layer, D = ur.alista(1), ur.dictionaries.dct(4, 6)
        >>> trained, fixed = ur.training.split(layer.init(None, D), D)
        >>> negative = jax.tree.map(jnp.negative, trained)
        >>> steps = ur.training.merge(negative, fixed).params.steps
        >>> bool(steps.gamma < 0), bool(steps.theta == trained.params.steps.theta)
        (True, True)
    """

    def one(t, f):
        return f if t is None else t

    return jax.tree.map(one, fold_thresholds(trained), fixed, is_leaf=lambda leaf: leaf is None)


@checked
def with_unit_atoms(D: Dictionaries) -> Dictionaries:
    """D, or each of a tuple, with its atoms scaled to norm 1, as `fit` does after every update.

    Args:
        D: (m, d); a tuple of a network.

    Example:
        >>> D = ur.training.with_unit_atoms(jnp.array([[3.0, 0.0], [4.0, 2.0]]))
        >>> ur.dictionaries.column_norms(D).round(3).tolist()
        [1.0, 1.0]
    """
    if isinstance(D, tuple):
        return tuple(normalized(Dj)[0] for Dj in D)
    return normalized(D)[0]


def _in_form(D: Any) -> Any:
    """D in the form that `with_unit_atoms` keeps: D itself, or with unit atoms."""
    if isinstance(D, tuple):
        return tuple(map(_in_form, D))
    unit: Any = jax.tree.structure(jax.eval_shape(with_unit_atoms, D))
    return D if unit == jax.tree.structure(D) else normalize(D)[0]


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
            f"{where}: trainable is not a tree prefix of params, {jax.tree.structure(params)}; "
            f"expected a prefix such as Unrolled(False, True): {error}"
        ) from error
