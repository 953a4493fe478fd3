"""The options of a run: one record, which every function that trains takes by name."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict

from jax.sharding import Mesh

from unrolled._base.arguments import OPTIONS
from unrolled._base.packages import require
from unrolled._base.programs import data_mesh
from unrolled.records import Record, accept, option
from unrolled.training._files import Checkpoint
from unrolled.training._mesh import Sharing, sharing
from unrolled.training._types import Callback

__all__ = ["Run"]


class PlainRun(Record):
    """The options of a run that a file can spell.

    Args:
        evaluate_every: number of training steps between two evaluations.
        patience: stop at the first evaluation at which `best` is this many steps old (None: never).
        accumulate: number of batches in a step, a power of two; devices share the batches.
        reduction: how devices add their batches: tree gives the same bits on any number of devices,
            psum needs fewer exchanges.
    """

    evaluate_every: int = option(default=50, least=1)
    patience: int | None = option(default=None, least=1)
    accumulate: int = option(default=1, least=1, most=2**20)
    reduction: str = option(default="tree", choices=("tree", "psum"))


def _as_callbacks(callbacks: Any, name: str, where: str) -> tuple:
    """The callbacks, each compared by identity, because a record must keep the given objects."""
    callbacks = tuple(callbacks) if isinstance(callbacks, Iterable) else (None,)
    if not all(map(callable, callbacks)):
        raise TypeError(f"{where}: {name} must be an iterable of functions of (record, params)")
    own = (type(callback).__hash__ is object.__hash__ for callback in callbacks)
    return tuple(c if is_own else partial(c) for c, is_own in zip(callbacks, own))


class Run(PlainRun):
    """How a run proceeds: what `fit`, `curriculum`, `unsupervised` and others take by name.

    Step k draws n = `accumulate` batches with the keys `split(fold_in(key, k), n)` and takes the
    mean of their losses and gradients. If a loss is not a mean over the batch, as with `log_nmse`,
    this mean differs from the loss of one large batch.

    If you repeat a call with a checkpoint, the run resumes from the newest saved step, and the
    result is bit for bit the result without the interruption. `steps` may be larger in the repeated
    call; the evaluation at the former last step then stays in the history and counts for `best`. On
    SIGINT and SIGTERM the run saves before it stops.

    The devices of a mesh share the batches of a step along the axis "data"; each device draws its
    own batches. The number of devices must divide `accumulate`. It changes no bit of the result,
    and a run can resume on another number of devices. `jax.distributed.initialize` joins the
    devices of several processes: all processes make the call with the same arguments and read the
    checkpoints, and only the first process writes checkpoints, log and progress bar. A SIGINT or
    SIGTERM to one process stops all processes at the next evaluation. With `reduction="psum"`
    devices add their losses and gradients in one exchange instead of log2(devices), and their
    number changes the result by rounding.

    A second axis "atoms", within each process, splits a dense D, the params with an entry or a
    column for each atom, and the moments of the optimiser for D and these params. The result stays
    split and equals the result of one device up to rounding. Devices exchange only parts of D x.
    For LISTA and LFISTA, devices also exchange codes, which S multiplies; for robust ALISTA,
    devices also exchange W.

    Args:
        checkpoint: a folder, or a `Checkpoint` that says how often to save.
        callbacks: each is called as `callback(record, params)` at an evaluation, see `Callback`.
        log: a file; each evaluation appends a line of JSON to this file.
        mesh: the devices that share the batches of a step.
        progress: whether to show a progress bar; None shows the bar on a terminal.

    Raises:
        TypeError: there is no option with the given name, or a value has the wrong type.
        ValueError: a number is out of range, or the mesh lacks the axis "data". Functions that
            train also raise ValueError if `accumulate` is not a power of two, the devices cannot
            share the batches equally, or `reduction` is "psum" and no devices share a step.

    Example:
        >>> run = ur.training.Run(evaluate_every=10, patience=100)
        >>> run, run.reduction
        (Run(evaluate_every=10, patience=100), 'tree')
    """

    checkpoint: Checkpoint | str | Path | None = option(default=None)
    callbacks: Iterable[Callback] = option(default=(), check=_as_callbacks)
    log: Path | str | None = option(default=None)
    mesh: Mesh | Any = option(
        default=None,
        check=lambda mesh, name, where: None if mesh is None else data_mesh(mesh, where),
    )
    progress: bool | None = option(default=None)
    is_kept = False  # callbacks may hold large arrays

    @classmethod
    def of(cls, where: str, options: Mapping[str, Any]) -> Self:
        """The options that the function `where` was given, checked under its name."""
        fields = cls.__dataclass_fields__
        values = {name: accept(fields[name], value, name, where) for name, value in options.items()}
        run = cls(**values)
        sharing(run.accumulate, run.mesh, run.reduction, where)
        if run.progress:
            require(f"{where}(progress=True)", "rich")
        return run

    @property
    def shared(self) -> Sharing:
        """The sharing of a step among devices."""
        return Sharing(self.accumulate, self.mesh, self.reduction)


class Reports(TypedDict, total=False):
    """The options of a `Run` for a function whose steps are no training steps."""

    callbacks: Iterable[Callback]
    log: Path | str | None
    evaluate_every: int
    patience: int | None


class OptionsWithoutProgress(Reports, total=False):
    """The options of a `Run` for a function whose `progress` has another meaning."""

    accumulate: int
    reduction: str
    checkpoint: Checkpoint | str | Path | None
    mesh: Mesh | Any


class RunOptions(OptionsWithoutProgress, total=False):
    """The options of a `Run` by name, for type checkers; a test compares the two."""

    progress: bool | None


OPTIONS.update(
    dict.fromkeys((RunOptions, OptionsWithoutProgress, Reports), Run.__signature__.parameters)
)
