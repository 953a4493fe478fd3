"""A training from its start to its result: its options, its stages, its reports."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from jax.sharding import Mesh

from unrolled import _checks
from unrolled._processes import processes_of
from unrolled.training._checkpoint import Checkpoint
from unrolled.training._diagnosis import is_stuck, warn_of_cause, warn_of_end, warn_of_start
from unrolled.training._keeper import keeping, key_text
from unrolled.training._loop import Data, Loop, make_loop
from unrolled.training._manifest import digest, versions
from unrolled.training._mesh import Sharing, computing_on, sharing
from unrolled.training._objective import Objective
from unrolled.training._protocols import Callback
from unrolled.training._records import Fit, Progress


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
        every = _checks.as_index(self.evaluate_every, "evaluate_every", where, least=1)
        patience, calls = self.patience, self.callbacks
        if patience is not None:
            patience = _checks.as_index(patience, "patience", where, least=1)
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
    same |= options.shared.config
    _agree(objective, data, options, same | {"steps": steps})
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


def _agree(objective: Objective, data: Data, options: Options, config: dict[str, Any]) -> None:
    """Raise ValueError where the processes of a mesh train with different arguments."""
    processes = processes_of(options.mesh, objective.where)
    if processes.several:  # hashes take a while
        trees = {"params": data.start.params, "D": data.start.D, "validation": data.validation}
        config |= {"patience": options.patience, "model": objective.model}
        config |= {"loss": getattr(objective.loss, "__name__", type(objective.loss).__name__)}
        config |= {name: digest(tree) for name, tree in trees.items()}
        processes.agree(objective.where, config | versions())


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
                warn_of_start(loop, state, of_lasso)
            for callback in calls:
                callback(state.records[-1], params)
            if not warned and is_stuck(state):
                warned = warn_of_cause(loop, state, at)

        yield watch
        if last is not None and not warned:
            warn_of_end(loop, last)


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
    """A callback that advances a progress bar, on a terminal or on request."""
    if not (sys.stderr.isatty() if progress is None else progress):
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
