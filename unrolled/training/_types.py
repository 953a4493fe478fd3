"""The types of a run: its records and result, its state, and the functions that users pass.

The types of callables are protocols: pass any function that takes the same positional arguments,
and do not subclass the protocols.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from unrolled._base.checks import Array, TypeAliasType
from unrolled._base.results import Result
from unrolled.dictionaries import Dictionary, as_chain, as_dictionary
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network, exceeds

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
    "Withheld",
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
    seconds: float = 0.0  # of the clock, with compilation; of all runs of a recipe together
    # Share of the signals held back whose objective is above that of the untrained layer by more
    # than 1e-3 of the objective of the zero code; None if no recipe measured it.
    raised: float | None = None

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
            + ("" if self.raised is None else f"; {100 * self.raised:.1f} % of the signals worse")
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


class Withheld(NamedTuple):
    """What a layer does not see: the signals of a batch, 0 where not withheld, and where."""

    Y: Array  # (batch, m)
    known: Array  # (batch, m), bool


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
        record: the numbers of the evaluation, a `Record`.
        params: the params at this step, with non-negative thresholds; safe to keep.

    Example:
        >>> history = []
        >>> def keep(record, params):
        ...     history.append((record.step, record.validation))
        >>> keep(ur.training.Record(step=50, loss=0.3, validation=0.25, seconds=1.0), None)
        >>> history
        [(50, 0.25)]
    """

    # Learning of dictionaries calls it with a `dictionary_learning.Step` and D.
    def __call__(self, record: Any, params: Any, /) -> None: ...


def as_dictionaries(D: Any, where: str) -> Dictionaries:
    """A dictionary, or the tuple of dictionaries of a chain, checked."""
    return as_chain(D, where) if isinstance(D, tuple | list) else as_dictionary(D, where)
