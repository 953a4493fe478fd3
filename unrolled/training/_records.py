"""What a run works on, what it calls and what it returns.

What it calls are types: a function of the same arguments, by position, is one of them; nothing is
subclassed.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from unrolled._base.checks import Array, TypeAliasType
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network, exceeds

Model = TypeAliasType("Model", Layer | Network)
Params = TypeAliasType("Params", Unrolled | tuple[Unrolled, ...])  # of a layer, of a network
Dictionaries = TypeAliasType("Dictionaries", Dictionary | tuple[Dictionary, ...])  # likewise


class Record(NamedTuple):
    """One evaluation of a run."""

    step: int  # steps done
    loss: float  # mean training loss since the last evaluation; nan before the first step
    validation: float  # loss on the validation batch
    seconds: float  # since the start
    stage: int = 0  # of a curriculum


class History(NamedTuple):
    """The course of a run."""

    loss: np.ndarray  # (steps,) training loss of every step
    records: tuple[Record, ...]  # one per evaluation
    zero: float = np.inf  # the validation loss of zero codes
    # That of ISTA at the depth of a layer, with the lam of the loss, or of the layer; else nan.
    ista: float = np.nan


class Fit(NamedTuple):
    """The result of a run."""

    params: Any  # after the last step
    best: Any  # with the smallest validation loss, the start included
    D: Any  # as given, or as learned together with `best`
    history: History  # losses and evaluations
    model: Model  # that was trained

    def __repr__(self) -> str:
        """What was trained, how far, and how good it is."""
        if not self.history.records:
            return f"Fit of {self.model!r}, without a history"
        first, last = ends(self.history.records)
        best = min(record.validation for record in self.history.records)
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
