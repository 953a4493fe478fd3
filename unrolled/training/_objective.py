"""The objective and the data of a run.

An objective is a function of the trained leaves; `split` separates these from the other leaves.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, checked
from unrolled.dictionaries import Masked, normalize, normalized, shared_part, signal_axes
from unrolled.layers import Layer, fold_thresholds, is_trained
from unrolled.networks import Network, codes_of_ista, lam_of
from unrolled.training._signals import Signals, first_of, is_masked, with_first
from unrolled.training._types import Dictionaries, Loss, Params, Trained

__all__ = ["merge", "split", "trainable", "with_unit_atoms"]


@checked
def trainable(params: Params) -> Any:
    """Bools that say which leaves may be trained: a mask for your own optax loop.

    The mask is True at floating-point leaves, except leaves inside a `layers.Fixed` and ranks (the
    role "order" of a `layers.Shape`). These leaves have no gradient, but weight decay and similar
    terms of an optimiser change them unless you mask them. `fit` needs no mask, because it never
    changes them.

    Args:
        params: the params of a layer; a tuple of params for a network.

    Returns:
        A tree of bools with the structure of `params`.

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
    """The function `trainable` under another name, because an option has the name `trainable`."""
    marks = is_trained(params)
    return jax.tree.map(lambda trained, leaf: trained and is_float(leaf), marks, params)


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds floating-point numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


@checked
def split(
    params: Params | Any,
    D: Dictionaries,
    *,
    learn_dictionary: bool = False,
    trainable: Any = None,
    where: str = "split",
) -> tuple[Trained, Trained]:
    """Split params and D into a tree of trained and a tree of fixed leaves, with None elsewhere.

    Floating-point leaves are trained, except leaves inside a `layers.Fixed` and ranks.

    Args:
        params, D: the params and the dictionary of a layer; tuples for a network.
        learn_dictionary: whether to train D too. If unit atoms need another form of D, as for a
            `Composed` of a `Conv`, `split` returns D in this form.
        trainable: a tree prefix of `params` with bools as leaves; None trains all leaves.
        where: the name of the caller, with which messages begin.

    Raises:
        TypeError: a leaf of params is not an array, params have no floating-point leaf,
            `learn_dictionary` is not a bool, or `trainable` holds anything but bools.
        ValueError: `trainable` is not a tree prefix of params, or freezes everything.

    Example:
        >>> layer, D = ur.alista(3), ur.dictionaries.dct(4, 6)
        >>> trained, fixed = ur.training.split(layer.init(None, D), D)
        >>> trained.params.shared.W is None, trained.params.steps.theta.shape
        (True, (3,))
        >>> ur.training.merge(trained, fixed).params.shared.W.shape
        (4, 6)
    """
    D = _in_form(D) if learn_dictionary else D
    foreign = [leaf for leaf in jax.tree.leaves(params) if not isinstance(leaf, jax.Array)]
    checks.arrays(foreign, "params", where)
    whole = Trained(params, D)
    floats = _marks(params)
    if not learn_dictionary and not any(jax.tree.leaves(floats)):
        raise TypeError(f"{where}: params have no floating-point leaf to train")
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
    """Merge the results of `split`; each trained threshold becomes its absolute value.

    Args:
        trained, fixed: the results of `split`, before or after training.

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
    """D with atoms scaled to norm 1, as `fit` scales a learned D after every update.

    Args:
        D: (m, d); a tuple for a network.

    Example:
        >>> D = ur.training.with_unit_atoms(jnp.array([[3.0, 0.0], [4.0, 2.0]]))
        >>> ur.dictionaries.column_norms(D).round(3).tolist()
        [1.0, 1.0]
    """
    if isinstance(D, tuple):
        return tuple(normalized(Dj)[0] for Dj in D)
    return normalized(D)[0]


def _in_form(D: Any) -> Any:
    """D in the form that `with_unit_atoms` returns: D itself, or D with unit atoms."""
    if isinstance(D, tuple):
        return tuple(map(_in_form, D))
    unit: Any = jax.tree.structure(jax.eval_shape(with_unit_atoms, D))
    return D if unit == jax.tree.structure(D) else normalize(D)[0]


def _spread(trainable, params, where: str):
    """A bool for every leaf of the params, made from a tree prefix of bools."""
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


@dataclass(frozen=True, eq=False)
class Objective:
    """The mean loss of the codes of a layer or a network.

    A subclass for other models defines their codes and the leaves that have a gradient.
    """

    where: str
    model: Any
    loss: Loss
    lam: Any = None  # lam of the ISTA with which a layer is compared; None for no ISTA
    of_last: bool = False  # whether the loss sees only the code of the last step
    staged: bool = False  # whether the last step is a traced `at` that depends on the stage

    @classmethod
    def of(cls, where: str, model: Any, loss: Any, *, staged: bool = False) -> Self:
        """The objective of a layer or a network; TypeError for another model."""
        if not isinstance(model, Layer | Network):
            of_flax = any(base.__module__.startswith("flax.") for base in type(model).__mro__)
            raise TypeError(
                f"{where}: expected a Layer or a Network, got {type(model).__name__}"
                + ("; try unrolled.nnx.fit" if of_flax else "")
            )
        of_last = not staged and getattr(loss, "of_last", False)
        return cls(where, model, loss, lam_of(loss, model), of_last, staged)

    @property
    def of_lasso(self) -> bool:
        """Whether the loss is the LASSO objective of the code after the last step."""
        return self.of_last and getattr(self.loss, "lam", None) is not None

    def codes(self, params: Any, D: Any, Y: Array, axis: Any, every: bool = False) -> Any:
        """The codes: (K, batch, d) for a layer, a tuple with the codes of all blocks for a network.

        If the loss sees only the last code, the codes have shape (1, batch, d) unless `every` is
        True, because a gradient through all codes would store all codes. `axis` is the axis from
        `signal_axes` if signals have their own dictionaries, else None.
        """
        if not isinstance(self.model, Layer):
            return jax.vmap(self.model.apply, (None, axis, 0))(params, D, Y)
        if self.of_last and not every:
            return jax.vmap(self.model.apply, (None, axis, 0))(params, D, Y)[None]
        return jax.vmap(self.model.iterates, (None, axis, 0), out_axes=1)(params, D, Y)

    def free(self, trained: Trained) -> tuple[Any, Any]:
        """The leaves with a gradient, and the other leaves that a step may change."""
        return trained, None

    def join(self, free: Any, others: Any) -> Trained:
        """The inverse of `free`."""
        return free

    def learned(
        self, free: Any, others: Any, fixed: Trained, batch: tuple, at: Any
    ) -> tuple[Array, Any]:
        """The loss in a training step, and the other leaves after the step."""
        return self.judged(free, fixed, batch, at)[0], others

    def admissible(self, free: Any, fixed: Trained) -> Any:
        """The leaves after an update: a learned D has unit atoms."""
        if not jax.tree.leaves(free.D):
            return free
        unit = with_unit_atoms(merge(Trained(None, free.D), Trained(None, fixed.D)).D)
        return free._replace(D=_trained_of(unit, free.D))

    def whole(self, trained: Trained, fixed: Trained) -> Trained:
        """The params and D of a result."""
        return merge(trained, fixed)

    def judged(
        self, trained: Trained, fixed: Trained, batch: tuple, at: Any, every: bool = False
    ) -> tuple[Array, Any]:
        """The loss in an evaluation, and the codes that the loss sees, or all codes if `every`."""
        params, D = merge(trained, fixed)
        Y, X, *own = batch
        D, axis = (_of_signals(own[0], D), signal_axes(own[0])) if own else (D, None)
        codes = self.codes(params, D, Y, axis, every)
        return self.value(codes, X, D, Y, at), codes

    def evaluated(self, trained: Trained, fixed: Trained, batch: tuple, at: Any) -> Array:
        """The loss in an evaluation."""
        return self.judged(trained, fixed, batch, at)[0]

    def baseline_losses(self, trained: Trained, fixed: Trained, batch: tuple) -> tuple[Any, Any]:
        """The loss of zero codes, and of ISTA at the same depth."""
        Y, X, *own = batch
        D = merge(trained, fixed).D
        D = _of_signals(own[0], D) if own else D
        zeros = jax.tree.map(jnp.zeros_like, self.judged(trained, fixed, batch, -1)[1])
        zero, has_ista = (
            self.value(zeros, X, D, Y),
            isinstance(self.model, Layer) and self.model.depth,
        )
        if self.lam is None or not has_ista or (own and shared_part(D) is D):
            return zero, jnp.nan
        ista = codes_of_ista(D, self.lam, self.model.depth, Y, self.where)
        return zero, self.value(ista, X, D, Y)

    def value(self, codes: Any, X: Any, D: Any, Y: Array, at: Any = -1) -> Any:
        """The loss of codes; raises TypeError unless the loss is one floating-point number."""
        of = self.loss if X is not None else checks.without_codes(self.loss, self.where)
        loss = of(codes[at][None] if self.staged else codes, X, D, Y)
        if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise TypeError(
                f"{self.where}: the loss is {jnp.result_type(loss)} of shape {jnp.shape(loss)}; "
                "expected one floating-point number, try jnp.mean"
            )
        return loss


def _of_signals(own: Any, D: Any) -> Any:
    """The dictionaries of signals; those of masked signals have the D of the training step."""
    return with_first(D, Masked._of(first_of(D), first_of(own).mask)) if is_masked(own) else own


def _trained_of(D: Any, trained: Any) -> Any:
    """D with None at every leaf that is not trained."""
    return jax.tree.map(
        lambda t, leaf: None if t is None else leaf, trained, D, is_leaf=lambda leaf: leaf is None
    )


class Data(NamedTuple):
    """What a run trains, and on which signals."""

    signals: Signals
    start: Trained  # the whole params and D
    trained: Trained
    fixed: Trained

    @classmethod
    def of(
        cls,
        objective: Objective,
        params: Params,
        signals: Signals,
        learn_dictionary: bool = False,
        trainable: Any = None,
    ) -> Self:
        """The params and D of a run, checked and split.

        Raises:
            TypeError, ValueError: as in `split`; also if params or signals do not fit the model.
        """
        where, D = objective.where, signals.D
        objective.model.check(params, D)
        _, _, *own = signals.validation
        if learn_dictionary and own and not is_masked(own[0]):
            raise ValueError(
                f"{where}: there is no dictionary to learn if every signal has its own; try (Y, X)"
            )
        parts = split(
            params, D, learn_dictionary=learn_dictionary, trainable=trainable, where=where
        )
        if not objective.model.depth:
            raise ValueError(f"{where}: {objective.model} has depth 0; expected at least one step")
        return cls(signals, Trained(params, merge(*parts).D if learn_dictionary else D), *parts)
