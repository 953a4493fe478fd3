"""The data, callables, objective and result of a run.

The types of callables are protocols: pass any function that takes the same positional arguments,
and do not subclass the protocols. An objective is a function of the trained leaves; `split`
separates the trained leaves from the other leaves.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, TypeAliasType
from unrolled._base.results import Result
from unrolled.dictionaries import (
    Dictionary,
    as_chain,
    as_dictionary,
    normalize,
    normalized,
    shared_part,
    signal_axes,
)
from unrolled.layers import Layer, Unrolled, fold_thresholds, is_trained
from unrolled.networks import Network, codes_of_ista, exceeds

__all__ = [
    "Callback",
    "Fit",
    "History",
    "Loss",
    "NonFiniteError",
    "Record",
    "Sample",
    "Trained",
    "Tried",
    "merge",
    "split",
    "trainable",
    "with_unit_atoms",
]


Model = TypeAliasType("Model", Layer | Network)
Params = TypeAliasType("Params", Unrolled | tuple[Unrolled, ...])  # for a layer, for a network
Dictionaries = TypeAliasType("Dictionaries", Dictionary | tuple[Dictionary, ...])  # likewise


class Record(Result):
    """One evaluation of a run."""

    step: int  # number of training steps done
    loss: float  # mean training loss since the last evaluation; nan before the first step
    validation: float  # loss on the validation batch
    seconds: float  # wall-clock time of the run so far
    stage: int = 0  # the stage of a curriculum; 0 in other runs


class History(Result):
    """The course of a run."""

    loss: np.ndarray  # (steps,) training loss of each step
    records: tuple[Record, ...]  # one per evaluation
    zero: float = np.inf  # the validation loss of zero codes
    # The validation loss of ISTA at the layer's depth, with the lam of the loss or the layer.
    ista: float = np.nan


class Tried(Result):
    """One run of `unsupervised`, which chooses the best of several runs."""

    family: str  # the family of the trained layer
    start: str  # "init", or "fista": the best params of a trained `fista`
    rate: float  # the first learning rate, for signals and atoms of mean norm 1
    steps: int  # number of training steps
    validation: float  # the least validation loss


class Fit(Result):
    """The result of a run."""

    params: Any  # the params after the last step
    best: Any  # the params with the least validation loss, possibly the initial params
    D: Any  # the given dictionary, or the dictionary learned with `best`
    history: History  # losses and evaluations
    model: Model  # the trained model
    tried: tuple[Tried, ...] = ()  # the runs of `unsupervised`; the last run is the chosen run

    def __repr__(self) -> str:
        """The model, the number of steps, and the validation losses."""
        if not self.history.records:
            return f"Fit of {self.model!r}, without a history"
        first, last = ends(self.history.records)
        best = self.judged["best"]
        others = {"zero codes": self.history.zero, "ISTA": self.history.ista}
        beside = [f", of {name} {loss:.6g}" for name, loss in others.items() if np.isfinite(loss)]
        has_options = isinstance(self.model, Layer | Network)
        name = repr(self.model) if has_options else type(self.model).__name__
        return (
            f"Fit of {name}: {last.step} steps, "
            f"validation loss {first.validation:.6g} at first, {last.validation:.6g} at the end, "
            f"{best:.6g} at best{''.join(beside)}"
        )

    @property
    def judged(self) -> dict[str, float]:
        """The validation losses of the initial params, `best`, zero codes and ISTA, if known.

        `training.save(..., validation=fit.judged)` keeps the losses with the weights.
        """
        stage = self.history.records[-1].stage  # in a curriculum, of the last stage
        losses = [record.validation for record in self.history.records if record.stage == stage]
        judged = {"first": losses[0], "best": min(losses)}
        judged |= {"zero": self.history.zero, "ista": self.history.ista}
        return {name: float(value) for name, value in judged.items() if np.isfinite(value)}

    @property
    def worsened(self) -> bool:
        """Whether the last validation loss exceeds the loss of the initial params or of zero codes.

        In a curriculum, the initial params are the params at the start of the last stage. Two
        losses that differ by the rounding of a sum count as equal.
        """
        first, last = ends(self.history.records)
        others = first.validation, self.history.zero
        return any(exceeds(last.validation, other) for other in others)


def ends(records: tuple[Record, ...]) -> tuple[Record, Record]:
    """The first and the last record of the last stage."""
    return next(r for r in records if r.stage == records[-1].stage), records[-1]


class NonFiniteError(FloatingPointError):
    """The loss, its gradient or an update is not finite; `fit` holds the last finite params.

    Attributes:
        fit: a `Fit` with the params before the step that failed, and the best params.
    """

    def __init__(self, message: str, fit: Fit):
        super().__init__(message)
        self.fit = fit


class Trained(NamedTuple):
    """The argument of the optimiser: params and D, with None at every leaf that is not trained."""

    params: Any  # the params of the model
    D: Any  # the dictionary, or None if it is not trained


class Progress(NamedTuple):
    """Everything that changes during a run, from which a run resumes bit for bit.

    The compiled step consumes `trained` and `optimizer`: copy both fields if you need them later.
    """

    trained: Trained
    optimizer: Any  # the state of the optimiser
    step: int  # number of training steps done
    stage: int  # the stage of a curriculum; 0 in other runs
    best: Trained
    lowest: float  # the validation loss of `best`
    best_at: int  # the step of `best`
    losses: np.ndarray  # (step,) training losses
    records: tuple[Record, ...]


class Sample(Protocol):
    """A function that draws a batch: `sample(key) -> (Y, X)` or `(Y, X, Ds)`.

    The training step traces the sampler, so the sampler must be a pure function of the key. Arrays
    that a plain function holds become constants of the compiled step. If the sampler is a pytree,
    such as `jax.tree_util.Partial(f, arrays)` or a result of `problems.sampler` or `resampler`, its
    arrays become arguments of the step and are not copied.

    Args:
        key: one random key; training step k passes `fold_in(key, k)`.

    Returns:
        (Y, X) or (Y, X, Ds). Y: signals, (batch, m). X: their codes, (batch, d); for a network a
        tuple of the codes of all blocks, or of the last block alone; None for a loss that does not
        use codes. Ds: dictionaries, (batch, m, d), if every signal has its own dictionary.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 4, 6)
        >>> def sample(key):
        ...     X = ur.problems.exact_sparse(key, (8, 6), 2)
        ...     return X @ D.T, X
        >>> [part.shape for part in sample(jax.random.key(1))]
        [(8, 4), (8, 6)]
    """

    def __call__(self, key: Array, /) -> tuple[Array, Any] | tuple[Array, Any, Any]: ...


class Loss(Protocol):
    """The loss of a batch, which training minimises: `loss(codes, X, D, Y) -> scalar`.

    The training step traces the loss, so the loss must be differentiable and pure.

    Args:
        codes: for a layer, the code after every step, (K, batch, d); for a network, a tuple with
            the code of every block, (batch, d_j). In both cases `codes[-1]` is the output.
        X: the codes from the sampler.
        D: the dictionary of the training, or the dictionaries (batch, m, d) from the sampler; a
            tuple for a network.
        Y: (batch, m), signals.

    If a loss needs only the last code, set its attribute `of_last` to True. For a layer the loss
    then gets codes of shape (1, batch, d), and training does not store the codes of the other
    steps. The losses of this library set the attribute.

    Example:
        >>> def mean_absolute_error(codes, X, D, Y):
        ...     return jnp.mean(jnp.abs(codes[-1] - X))
        >>> mean_absolute_error.of_last = True
        >>> float(mean_absolute_error(jnp.ones((1, 2, 4)), jnp.zeros((2, 4)), None, None))
        1.0
    """

    def __call__(self, codes: Any, X: Any, D: Any, Y: Array, /) -> Array: ...


class Callback(Protocol):
    """A function that `fit` calls at every evaluation, on the host: `callback(record, params)`.

    Args:
        record: the numbers of the evaluation.
        params: the params at this step, with non-negative thresholds; safe to keep.

    Example:
        >>> history = []
        >>> def keep(record, params):
        ...     history.append((record.step, record.validation))
        >>> keep(ur.training.Record(step=50, loss=0.3, validation=0.25, seconds=1.0), None)
        >>> history
        [(50, 0.25)]
    """

    def __call__(self, record: Record, params: Any, /) -> None: ...


@checked
def trainable(params: Params) -> Any:
    """Bools that say which leaves may be trained: a mask for your own optax loop.

    The mask is True at floating-point leaves, except leaves inside a `layers.Fixed`. Fixed leaves
    have no gradient, but weight decay and similar terms of an optimiser change them unless you mask
    them. `fit` needs no mask, because it never changes fixed leaves.

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

    return jax.tree.map(
        lambda trained, leaf: trained and is_float(leaf), is_trained(params), params
    )


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds floating-point numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def as_dictionaries(D: Any, where: str) -> Dictionaries:
    """A dictionary, or the tuple of dictionaries of a chain, checked."""
    return as_chain(D, where) if isinstance(D, tuple | list) else as_dictionary(D, where)


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

    Floating-point leaves are trained, except leaves inside a `layers.Fixed`.

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
        D, axis = (own[0], signal_axes(own[0])) if own else (D, None)
        codes = self.codes(params, D, Y, axis, every)
        return self.of(codes, X, D, Y, at), codes

    def evaluated(self, trained: Trained, fixed: Trained, batch: tuple, at: Any) -> Array:
        """The loss in an evaluation."""
        return self.judged(trained, fixed, batch, at)[0]

    def baseline_losses(self, trained: Trained, fixed: Trained, batch: tuple) -> tuple[Any, Any]:
        """The loss of zero codes, and of ISTA at the same depth."""
        Y, X, *own = batch
        D = own[0] if own else merge(trained, fixed).D
        zeros = jax.tree.map(jnp.zeros_like, self.judged(trained, fixed, batch, -1)[1])
        zero, has_ista = self.of(zeros, X, D, Y), isinstance(self.model, Layer) and self.model.depth
        if self.lam is None or not has_ista or (own and shared_part(D) is D):
            return zero, jnp.nan
        ista = codes_of_ista(D, self.lam, self.model.depth, Y, self.where)
        return zero, self.of(ista, X, D, Y)

    def of(self, codes: Any, X: Any, D: Any, Y: Array, at: Any = -1) -> Any:
        """The loss of codes; raises TypeError unless the loss is one floating-point number."""
        loss = self.loss(codes[at][None] if self.staged else codes, X, D, Y)
        if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise TypeError(
                f"{self.where}: the loss is {jnp.result_type(loss)} of shape {jnp.shape(loss)}; "
                "expected one floating-point number, try jnp.mean"
            )
        return loss


def _trained_of(D: Any, trained: Any) -> Any:
    """D with None at every leaf that is not trained."""
    return jax.tree.map(
        lambda t, leaf: None if t is None else leaf, trained, D, is_leaf=lambda leaf: leaf is None
    )


def check_model(model: Any, where: str) -> None:
    """Raise TypeError unless `model` is a layer or a network."""
    if not isinstance(model, Layer | Network):
        raise TypeError(f"{where}: expected a Layer or a Network, got {type(model).__name__}")


class Variables(NamedTuple):
    """The variables of a model, as nested dicts."""

    weights: Any  # nnx.Params
    others: Any  # statistics of batches, and states of random-number generators


class Outputs(Objective):
    """The mean loss of the outputs of a model."""

    def start(self) -> tuple[Trained, Trained]:
        """The trained leaves, and None as the fixed leaves."""
        variables = Trained(_variables(self.model), None)
        return variables, jax.tree.map(lambda leaf: None, variables)

    @cached_property
    def graphs(self) -> tuple[Any, Any]:
        """The graph definitions of the model in training and in an evaluation."""
        from flax import nnx

        model = nnx.clone(self.model)
        model.train()
        learning = nnx.graphdef(model)
        model.eval()
        return learning, nnx.graphdef(model)

    def made(self, variables: Variables, evaluated: bool = True) -> Any:
        """The model with these variables."""
        from flax import nnx

        return nnx.merge(self.graphs[evaluated], *map(nnx.State, variables))

    def codes(
        self, params: Variables, D: None, Y: Array, axis: int | None, every: bool = False
    ) -> Any:
        return _as_codes(self.made(params)(Y))

    def free(self, trained: Trained) -> tuple[Trained, Any]:
        return Trained(trained.params.weights, None), trained.params.others

    def join(self, free: Trained, others: Any) -> Trained:
        return Trained(Variables(free.params, others), None)

    def learned(
        self, free: Trained, others: Any, fixed: Trained, batch: tuple, at: Any
    ) -> tuple[Array, Any]:
        model = self.made(Variables(free.params, others), evaluated=False)
        Y, X = batch
        return self.of(_as_codes(model(Y)), X, None, Y), _variables(model).others

    def admissible(self, free: Trained, fixed: Trained) -> Trained:
        """The leaves after an update: the D that an `unrolled.nnx.Module` learns has unit atoms."""
        from flax import nnx

        model = self.made(_variables(self.model)._replace(weights=free.params))
        for _, module in nnx.iter_modules(model):
            if isinstance(getattr(module, "model", None), Layer | Network):
                module.normalize()  # type: ignore[attr-defined]
        return Trained(_variables(model).weights, None)

    def whole(self, trained: Trained, fixed: Trained) -> Trained:
        from flax import nnx

        return Trained(nnx.state(self.made(trained.params)), None)

    def baseline_losses(
        self, trained: Trained, fixed: Trained, batch: tuple
    ) -> tuple[float, float]:
        """Infinity and nan, because zero outputs of a general model are not a baseline."""
        return np.inf, np.nan


def is_nnx(model: Any) -> bool:
    """Whether `model` is a model of flax.nnx."""
    from flax import nnx

    return isinstance(model, nnx.Module)


def _variables(model: Any) -> Variables:
    from flax import nnx

    states = nnx.state(model, nnx.Param, nnx.Not(nnx.Param))
    return Variables(*map(nnx.to_pure_dict, states))


def _as_codes(outputs: Any) -> Any:
    return outputs if isinstance(outputs, tuple) else outputs[None]
