"""What a run works on, calls, minimises and returns.

What it calls are types: a function of the same arguments, by position, is one of them; nothing is
subclassed. An objective is a function of the leaves that are trained; `split` says which these are.
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
from unrolled.dictionaries import Dictionary, as_chain, as_dictionary, normalize, normalized
from unrolled.layers import Fixed, Layer, Unrolled, fold_thresholds
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
Params = TypeAliasType("Params", Unrolled | tuple[Unrolled, ...])  # of a layer, of a network
Dictionaries = TypeAliasType("Dictionaries", Dictionary | tuple[Dictionary, ...])  # likewise


class Record(Result):
    """One evaluation of a run."""

    step: int  # steps done
    loss: float  # mean training loss since the last evaluation; nan before the first step
    validation: float  # loss on the validation batch
    seconds: float  # since the start
    stage: int = 0  # of a curriculum


class History(Result):
    """The course of a run."""

    loss: np.ndarray  # (steps,) training loss of every step
    records: tuple[Record, ...]  # one per evaluation
    zero: float = np.inf  # the validation loss of zero codes
    # That of ISTA at the depth of a layer, with the lam of the loss, or of the layer; else nan.
    ista: float = np.nan


class Tried(Result):
    """One of the runs among which `unsupervised` chooses."""

    family: str  # that was trained
    start: str  # "init", or "fista": the best params of that family
    rate: float  # at its beginning, for signals and atoms of mean norm 1
    steps: int  # of training
    validation: float  # the least of its validation losses


class Fit(Result):
    """The result of a run."""

    params: Any  # after the last step
    best: Any  # with the smallest validation loss, the start included
    D: Any  # as given, or as learned together with `best`
    history: History  # losses and evaluations
    model: Model  # that was trained
    tried: tuple[Tried, ...] = ()  # by `unsupervised`, the one that it chose last

    def __repr__(self) -> str:
        """What was trained, how far, and how good it is."""
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
        """The validation losses of the start and of `best`, of zero codes and of ISTA, if known.

        `training.save(..., validation=fit.judged)` keeps them beside the weights.
        """
        stage = self.history.records[-1].stage  # of a curriculum the last one counts
        losses = [record.validation for record in self.history.records if record.stage == stage]
        judged = {"first": losses[0], "best": min(losses)}
        judged |= {"zero": self.history.zero, "ista": self.history.ista}
        return {name: float(value) for name, value in judged.items() if np.isfinite(value)}

    @property
    def worsened(self) -> bool:
        """Whether the last validation loss exceeds that of the start, or of zero codes.

        The start is that of the last stage. A loss that differs by the rounding of its sum is
        equal.
        """
        first, last = ends(self.history.records)
        others = first.validation, self.history.zero
        return any(exceeds(last.validation, other) for other in others)


def ends(records: tuple[Record, ...]) -> tuple[Record, Record]:
    """The first and the last record of the last stage."""
    return next(r for r in records if r.stage == records[-1].stage), records[-1]


class NonFiniteError(FloatingPointError):
    """The loss, its gradient or an update is not finite; `fit` holds what was reached before.

    Attributes:
        fit: a `Fit` with the params before the step that failed, and the best ones.
    """

    def __init__(self, message: str, fit: Fit):
        super().__init__(message)
        self.fit = fit


class Trained(NamedTuple):
    """What the optimiser sees: params and dictionary, None at every leaf that is not trained."""

    params: Any  # of the model
    D: Any  # the dictionary, or None where it is not trained


class Progress(NamedTuple):
    """Everything that changes during a run; a run resumes from it bit for bit.

    The compiled step consumes `trained` and `optimizer`: copy what is to be kept.
    """

    trained: Trained
    optimizer: Any  # the state of the optimiser
    step: int  # steps done
    stage: int  # of a curriculum, else 0
    best: Trained
    lowest: float  # validation loss of `best`
    best_at: int  # the step of `best`
    losses: np.ndarray  # (step,)
    records: tuple[Record, ...]


class Sample(Protocol):
    """Draws a batch: `sample(key) -> (Y, X)` or `(Y, X, Ds)`.

    It is traced into the training step, so it must be a pure function of the key. Arrays that a
    function holds become constants of that step; of a pytree, such as `jax.tree_util.Partial(f,
    arrays)` and what `problems.sampler` and `resampler` return, they are its arguments, which costs
    no copies.

    Args:
        key: one random key; training step k passes `fold_in(key, k)`.

    Returns:
        (Y, X) or (Y, X, Ds): signals (batch, m); their codes (batch, d), for a network a tuple with
        the codes of every block or the codes of the last block alone, None for a loss that does
        not use them; dictionaries (batch, m, d), where every signal has one of its own.

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
    """What training minimises: `loss(codes, X, D, Y) -> scalar`, of one batch.

    It is traced into the training step, so it must be differentiable and pure.

    Args:
        codes: for a layer, the code after every step, (K, batch, d); for a network, the code of
            every block, a tuple of (batch, d_j). `codes[-1]` is the output of either.
        X: the codes from the sampler.
        D: the dictionary in use: that of the training, or (batch, m, d) from the sampler; a tuple
            for a network.
        Y: (batch, m), signals.

    A loss of the last code alone may say so, by an attribute `of_last` that is True: of a layer it
    is then given (1, batch, d), and training does not store the codes of the other steps. The
    losses of this library do so.

    Example:
        >>> def mean_absolute_error(codes, X, D, Y):
        ...     return jnp.mean(jnp.abs(codes[-1] - X))
        >>> mean_absolute_error.of_last = True
        >>> float(mean_absolute_error(jnp.ones((1, 2, 4)), jnp.zeros((2, 4)), None, None))
        1.0
    """

    def __call__(self, codes: Any, X: Any, D: Any, Y: Array, /) -> Array: ...


class Callback(Protocol):
    """What is called at every evaluation, on the host: `callback(record, params) -> None`.

    Args:
        record: the numbers of the evaluation.
        params: of the model at this step, with non-negative thresholds; safe to keep.

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
    """A dictionary, or a tuple of those of a chain, checked."""
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
    """The trained and the fixed leaves, two trees with None where the other has its leaf.

    Floating-point leaves are trained, except those inside a `layers.Fixed`.

    Args:
        params, D: of a layer; tuples of a network.
        learn_dictionary: train D too; one whose unit atoms take another form, as a `Composed` of a
            `Conv`, has that form at once.
        trainable: bools, a tree prefix of `params`; None trains all.
        where: the name of the caller, which messages begin with.

    Raises:
        TypeError: params with a leaf that is no array, or without a floating-point one, a
            `learn_dictionary` that is not a bool, a `trainable` that holds anything but bools.
        ValueError: a `trainable` that is no tree prefix of params, or that freezes everything.

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


@dataclass(frozen=True, eq=False)
class Objective:
    """The mean loss of the codes of a layer or a network.

    Another kind of model is a subclass, which says what its codes are and which of its leaves have
    a gradient.
    """

    where: str
    model: Any
    loss: Loss
    lam: Any = None  # of the ISTA beside which a layer is judged; None for none
    of_last: bool = False  # whether the loss sees the code of the last step alone
    staged: bool = False  # or that of its stage, a traced `at`

    @property
    def of_lasso(self) -> bool:
        """Whether the loss is the objective of the LASSO, of the code after the last step."""
        return self.of_last and getattr(self.loss, "lam", None) is not None

    def codes(self, params: Any, D: Any, Y: Array, axis: int | None, every: bool = False) -> Any:
        """(K, batch, d) for a layer, a tuple of blocks for a network.

        (1, batch, d) where the loss sees the last code alone, unless `every` code is asked for: a
        gradient through all codes stores them. `axis` is 0 where every signal has a dictionary of
        its own, else None.
        """
        if not isinstance(self.model, Layer):
            return jax.vmap(self.model.apply, (None, axis, 0))(params, D, Y)
        if self.of_last and not every:
            return jax.vmap(self.model.apply, (None, axis, 0))(params, D, Y)[None]
        return jax.vmap(self.model.iterates, (None, axis, 0), out_axes=1)(params, D, Y)

    def free(self, trained: Trained) -> tuple[Any, Any]:
        """The leaves that have a gradient, and the others that a step may change."""
        return trained, None

    def join(self, free: Any, others: Any) -> Trained:
        """What `free` took apart."""
        return free

    def learned(
        self, free: Any, others: Any, fixed: Trained, batch: tuple, at: Any
    ) -> tuple[Array, Any]:
        """The loss in a step of training, and the others after it."""
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
        """The loss in an evaluation, and the codes that it sees, or all."""
        params, D = merge(trained, fixed)
        Y, X, *own = batch
        D, axis = (own[0], 0) if own else (D, None)
        codes = self.codes(params, D, Y, axis, every)
        return self.of(codes, X, D, Y, at), codes

    def evaluated(self, trained: Trained, fixed: Trained, batch: tuple, at: Any) -> Array:
        """The loss in an evaluation."""
        return self.judged(trained, fixed, batch, at)[0]

    def baseline_losses(self, trained: Trained, fixed: Trained, batch: tuple) -> tuple[Any, Any]:
        """The loss of zero codes, and of ISTA at the same depth."""
        D = merge(trained, fixed).D
        Y, X, *own = batch
        zeros = jax.tree.map(jnp.zeros_like, self.judged(trained, fixed, batch, -1)[1])
        zero = self.of(zeros, X, own[0] if own else D, Y)
        if self.lam is None or own or not isinstance(self.model, Layer) or not self.model.depth:
            return zero, jnp.nan
        ista = codes_of_ista(D, self.lam, self.model.depth, Y, self.where)
        return zero, self.of(ista, X, D, Y)

    def of(self, codes: Any, X: Any, D: Any, Y: Array, at: Any = -1) -> Any:
        """The loss of codes; TypeError unless it is one floating-point number."""
        loss = self.loss(codes[at][None] if self.staged else codes, X, D, Y)
        if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise TypeError(
                f"{self.where}: the loss is {jnp.result_type(loss)} of shape {jnp.shape(loss)}; "
                "expected one floating-point number, try jnp.mean"
            )
        return loss


def _trained_of(D: Any, trained: Any) -> Any:
    """The leaves of D that are trained, None for the others."""
    return jax.tree.map(
        lambda t, leaf: None if t is None else leaf, trained, D, is_leaf=lambda leaf: leaf is None
    )


def check_model(model: Any, where: str) -> None:
    """TypeError unless it is a layer or a network."""
    if not isinstance(model, Layer | Network):
        raise TypeError(f"{where}: expected a Layer or a Network, got {type(model).__name__}")


class Variables(NamedTuple):
    """The variables of a model, as nested dicts."""

    weights: Any  # nnx.Params
    others: Any  # statistics of batches, streams of random numbers


class Outputs(Objective):
    """The mean loss of the outputs of a model."""

    def start(self) -> tuple[Trained, Trained]:
        """What is trained, and None for what is not."""
        variables = Trained(_variables(self.model), None)
        return variables, jax.tree.map(lambda leaf: None, variables)

    @cached_property
    def graphs(self) -> tuple[Any, Any]:
        """Of the model in training and in an evaluation."""
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
        """None: outputs that are zero are no measure for a model of any kind."""
        return np.inf, np.nan


def is_nnx(model: Any) -> bool:
    """Whether it is a model of flax.nnx."""
    from flax import nnx

    return isinstance(model, nnx.Module)


def _variables(model: Any) -> Variables:
    from flax import nnx

    states = nnx.state(model, nnx.Param, nnx.Not(nnx.Param))
    return Variables(*map(nnx.to_pure_dict, states))


def _as_codes(outputs: Any) -> Any:
    return outputs if isinstance(outputs, tuple) else outputs[None]
