"""What a run reports: callbacks, log, progress bar and warnings."""

import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.packages import is_installed
from unrolled.networks import exceeds, worse
from unrolled.training._loop import Loop
from unrolled.training._options import Run
from unrolled.training._types import Callback, Progress, ends


@contextmanager
def watcher(loop: Loop, steps: int, run: Run) -> Iterator[Callable[[Progress, int], None]]:
    """Yield `watch(state, at)`, which updates callbacks, log and progress bar at an evaluation.

    `watch` warns if training changes nothing, if the codes are worse than zero codes, or if the
    LASSO objective at the start is above the objective of ISTA.
    """
    if not loop.processes.is_first:
        run = dataclasses.replace(run, progress=False, log=None)
    with bar(steps, run.progress) as show, writer(run.log) as write:
        calls = (*run.callbacks, show, write)

        last: Progress | None = None
        warned = False

        def watch(state, at):
            nonlocal last, warned
            last, params = state, loop.result(state).params
            if len(state.records) == 1:
                _warn_of_start(loop, state)
            for callback in calls:
                callback(state.records[-1], params)
            if not warned and _is_stuck(state):
                warned = _warn_of_cause(loop, state, at)

        yield watch
        if last is not None and not warned:
            _warn_of_end(loop, last)


@contextmanager
def writer(log: str | Path | None) -> Iterator[Callback]:
    """A callback that appends one line of JSON per evaluation to the file `log`."""
    if log is None:
        yield lambda record, params: None
        return
    with Path(log).open("a") as lines:

        def write(record, params):
            values = record.asdict()
            values |= {k: None for k, v in values.items() if v is None or not np.isfinite(v)}
            lines.write(json.dumps(values) + "\n")
            lines.flush()

        yield write


@contextmanager
def bar(steps: int, progress: bool | None) -> Iterator[Callback]:
    """A callback that advances a progress bar, on request, or on a terminal in the main thread.

    `steps` is the number of steps of all runs that one after another call the callback.
    """
    if progress is None:  # show a bar on a terminal
        on_terminal = sys.stderr.isatty() and is_installed("rich")
        progress = on_terminal and threading.current_thread() is threading.main_thread()
    if not progress:
        yield lambda record, params: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"training, {steps:,} steps", total=steps)
        before = last = 0

        def advance(record, params):
            nonlocal before, last
            if record.step < last:  # a new run begins
                before += last
            last = record.step
            description = f"training, validation loss {record.validation:.4g}"
            shown.update(task, completed=before + last, description=description)

        yield advance


def warn_of(loop: Loop, state: Progress, at: int = -1) -> None:
    """The warnings of `watcher` for a run that is over."""
    _warn_of_start(loop, state)
    stuck = _is_stuck(state._replace(records=state.records[:2]))
    if not (stuck and _warn_of_cause(loop, state, at)):
        _warn_of_end(loop, state)


def _is_stuck(state: Progress) -> bool:
    """Whether the first two evaluations of a stage have the same loss, bit for bit."""
    losses = [record.validation for record in state.records if record.stage == state.stage]
    return len(losses) == 2 and losses[0] == losses[1]


def _warn_of_cause(loop: Loop, state: Progress, at: int) -> bool:
    """Warn if training cannot start, because codes or gradient are zero; return True if so."""
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


def _warn_of_start(loop: Loop, state: Progress) -> None:
    """Warn if the start is worse than zero codes, or has a larger LASSO objective than ISTA."""
    first = state.records[0].validation
    if exceeds(first, loop.zero):
        advice = "Try smaller weights or step sizes, another family, or analytic.calibrate"
    elif loop.objective.of_lasso and exceeds(first, loop.ista):
        advice = (
            "The family may have no lam, another lam than the loss, support selection, or weights "
            "that solve a problem near the LASSO; try analytic.calibrate"
        )
    else:
        return
    checks.warn(f"{loop.where}: {_worse(loop, first, 'start')}. {advice}")


def _warn_of_end(loop: Loop, state: Progress) -> None:
    """Warn if the loss never changed, ends above the loss of zero codes, or never fell."""
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
    """A sentence that compares the loss at the start or the end with zero codes and ISTA."""
    codes = f"at the {at} of training the codes are"
    return worse(codes, "validation loss", validation, loop.zero, loop.ista)
