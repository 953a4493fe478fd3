"""A training from its start to its result: its options, its stages, its reports."""

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from unrolled._base import checks
from unrolled._base.processes import processes_of
from unrolled.networks import exceeds, worse
from unrolled.training._checkpoint import Checkpoint
from unrolled.training._forms import digest, versions
from unrolled.training._keeper import keeping, key_text
from unrolled.training._loop import Data, Loop, make_loop
from unrolled.training._mesh import Sharing, computing_on, sharing
from unrolled.training._objective import Objective
from unrolled.training._records import Callback, Fit, Progress, ends


class Options(NamedTuple):
    """The arguments of every kind of training; `fit` says what they are."""

    evaluate_every: int
    patience: int | None
    checkpoint: Checkpoint | str | Path | None
    callbacks: Iterable[Callback]
    log: str | Path | None
    progress: bool | None
    accumulate: int = 1
    mesh: Mesh | None = None
    reduction: str = "tree"

    @property
    def shared(self) -> Sharing:
        """How the devices share a step."""
        return Sharing(self.accumulate, self.mesh, self.reduction)

    def checked(self, where: str) -> "Options":
        """The options of `fit`; TypeError and ValueError as `fit` raises them."""
        every = checks.as_index(self.evaluate_every, "evaluate_every", where, least=1)
        patience, calls = self.patience, self.callbacks
        if patience is not None:
            patience = checks.as_index(patience, "patience", where, least=1)
        shared = sharing(self.accumulate, self.mesh, self.reduction, where)
        if not isinstance(calls, Iterable):
            what = type(calls).__name__
            raise TypeError(f"{where}: callbacks must be a sequence, got {what}; try (callback,)")
        for call in (calls := tuple(calls)):
            if not callable(call):
                raise TypeError(
                    f"{where}: a callback must be a function of (record, params), "
                    f"got {type(call).__name__}"
                )
        same = self.checkpoint, calls, self.log, self.progress
        return Options(every, patience, *same, *shared)


class Stage(NamedTuple):
    """A stage of `curriculum`, with an objective and a beginning of its own."""

    at: int = -1  # the `at` of its loss
    enter: Callable[[Loop, Progress], Progress] = lambda loop, state: state


def train(
    objective: Objective,
    data: Data,
    optimizer: optax.GradientTransformation,
    options: Options,
    steps: int,
    stages: Sequence[Stage] = (Stage(),),
    config: dict[str, Any] | None = None,
    of_lasso: bool = False,
) -> Fit:
    """A training of at most so many steps in each stage.

    Args:
        options: checked.
        config: what a checkpoint must agree in beside the key and the options.
        of_lasso: whether the loss is the objective of the LASSO after the last step.
    """
    where, mesh, total = objective.where, options.mesh, len(stages) * steps
    same = {"key": key_text(data.key), "evaluate_every": options.evaluate_every} | (config or {})
    same |= {"accumulate": options.accumulate, "reduction": options.reduction}
    _check_same_arguments(objective, data, options, same | {"steps": steps})
    with computing_on(mesh, where):
        loop = make_loop(objective, data, optimizer, options.shared)
        with keeping(options.checkpoint, loop, same, data.start) as keeper:
            state = stages[0].enter(loop, loop.start(data.trained))
            if keeper:
                loop, state = keeper.resume(state, total, at=stages[0].at)
            with _watcher(loop, total, options, of_lasso) as watch:
                for number, stage in list(enumerate(stages))[state.stage :]:
                    if number > state.stage:
                        state = stage.enter(loop, state)._replace(stage=number)
                    evaluated = (record.step for record in state.records if record.stage == number)
                    stop = next(evaluated, state.step) + steps
                    state = loop.run(state, stop, options, watch, at=stage.at, keeper=keeper)
            if keeper:
                keeper.save(state)
        result = loop.result(state)
    arrays = {name: getattr(result, name) for name in ("params", "best", "D")}
    return result._replace(**loop.processes.local(arrays))


def _check_same_arguments(
    objective: Objective, data: Data, options: Options, config: dict[str, Any]
) -> None:
    """Raise ValueError where the processes of a mesh train with different arguments."""
    processes = processes_of(options.mesh, objective.where)
    if processes.several:  # hashes take a while
        trees = {"params": data.start.params, "D": data.start.D, "validation": data.validation}
        config |= {"patience": options.patience, "model": objective.model}
        config |= {"loss": getattr(objective.loss, "__name__", type(objective.loss).__name__)}
        config |= {name: digest(tree) for name, tree in trees.items()}
        processes.require_equal(objective.where, config | versions())


@contextmanager
def _watcher(
    loop: Loop, steps: int, options: Options, of_lasso: bool
) -> Iterator[Callable[[Progress, int], None]]:
    """`watch(state, at)`, to call at every evaluation: the user's callbacks, the log and the bar.

    It warns of training that changes nothing, or is worse than zero codes; `of_lasso`,
    where the loss is the objective of the LASSO after the last step, also of a start above ISTA.
    """
    if not loop.processes.is_first:
        options = options._replace(progress=False, log=None)
    with _bar(steps, options.progress) as show, _writer(options.log) as write:
        calls = (*options.callbacks, show, write)

        last: Progress | None = None
        warned = False

        def watch(state, at):
            nonlocal last, warned
            last, params = state, loop.result(state).params
            if len(state.records) == 1:
                _warn_of_start(loop, state, of_lasso)
            for callback in calls:
                callback(state.records[-1], params)
            if not warned and _is_stuck(state):
                warned = _warn_of_cause(loop, state, at)

        yield watch
        if last is not None and not warned:
            _warn_of_end(loop, last)


@contextmanager
def _writer(log: str | Path | None) -> Iterator[Callback]:
    """A callback that appends one line of JSON per evaluation to the file `log`."""
    if log is None:
        yield lambda record, params: None
        return
    with Path(log).open("a") as lines:

        def write(record, params):
            values = {k: v if np.isfinite(v) else None for k, v in record._asdict().items()}
            lines.write(json.dumps(values) + "\n")
            lines.flush()

        yield write


@contextmanager
def _bar(steps: int, progress: bool | None) -> Iterator[Callback]:
    """A callback that advances a progress bar: on a terminal in the main thread, or on request."""
    if progress is None:  # a terminal has room for one
        progress = sys.stderr.isatty() and threading.current_thread() is threading.main_thread()
    if not progress:
        yield lambda record, params: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("training", total=steps)

        def advance(record, params):
            description = f"training, validation loss {record.validation:.4g}"
            shown.update(task, completed=record.step, description=description)

        yield advance


def _is_stuck(state: Progress) -> bool:
    """Whether the second evaluation of a stage has the loss of the first, bit for bit."""
    losses = [record.validation for record in state.records if record.stage == state.stage]
    return len(losses) == 2 and losses[0] == losses[1]


def _warn_of_cause(loop: Loop, state: Progress, at: int) -> bool:
    """Warn of training that cannot begin: codes or gradient are zero. True if it warned."""
    _, codes, gradients = loop.inspected(state.trained, loop.validation, at)
    if np.any(np.asarray(codes[at])):
        if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients)):
            return False
        cause = (
            "the gradient is zero at every leaf that is trained, although the codes are not; does "
            "the loss see what these leaves change?"
        )
    else:
        cause = (
            "all codes are zero, silenced by the thresholds. Try a smaller lam, atoms and signals "
            "of norms near 1, or analytic.calibrate first"
        )
        if any(np.any(np.asarray(x)) for x in codes):
            cause += ", or training.deep: the codes before the last are not zero"
    checks.warn(f"{loop.where}: training changes nothing: {cause}")
    return True


def _warn_of_start(loop: Loop, state: Progress, of_lasso: bool) -> None:
    """Warn of a start that is worse than zero codes, or in the LASSO than ISTA."""
    first = state.records[0].validation
    if exceeds(first, loop.zero):
        advice = "Try smaller weights or step sizes, another family, or analytic.calibrate"
    elif of_lasso and exceeds(first, loop.ista):
        advice = (
            "The family may have no lam, another lam than the loss, support selection, or weights "
            "that solve a problem near the LASSO; try analytic.calibrate"
        )
    else:
        return
    checks.warn(f"{loop.where}: {_worse(loop, first, 'start')}. {advice}")


def _warn_of_end(loop: Loop, state: Progress) -> None:
    """Warn of training that never moved its loss, or ends above zero codes, or gains nothing."""
    records = state.records
    first, last = ends(records)
    losses = {(record.stage, record.validation) for record in records}
    if last.step > 0 and len(losses) == len({record.stage for record in records}):
        checks.warn(
            f"{loop.where}: training changes nothing: the validation loss stays at "
            f"{last.validation:.6g}, although its gradient is not zero. The updates are zero or "
            "too small for the dtype; try a larger rate"
        )
    elif last.step > first.step and exceeds(last.validation, loop.zero):
        what, remedy = "Training improved", "more steps, or another rate or start"
        if last.validation > first.validation:
            what, remedy = "Training diverged", "a smaller rate"
        rule = _worse(loop, last.validation, "end")
        checks.warn(
            f"{loop.where}: {rule}. {what} from {first.validation:.6g}. `best` has the params "
            f"with the smallest loss; try {remedy}"
        )
    elif state.best_at == 0 and exceeds(last.validation, first.validation):
        checks.warn(
            f"{loop.where}: training made nothing better: the validation loss is "
            f"{last.validation:.6g} at the end, {first.validation:.6g} at the start, which is "
            "`best`. Try a smaller rate, and optax.clip_by_global_norm"
        )


def _worse(loop: Loop, validation: float, at: str) -> str:
    """The rule of zero codes and ISTA at the start or the end."""
    codes = f"at the {at} of training the codes are"
    return worse(codes, "validation loss", validation, loop.zero, loop.ista)
