"""A run of several stages, from the first state to the result."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

from unrolled._base.processes import processes_of
from unrolled.training import _forms
from unrolled.training._loop import Loop, make_loop
from unrolled.training._mesh import computing_on
from unrolled.training._objective import Data, Objective
from unrolled.training._options import Run
from unrolled.training._resume import keeping, key_text
from unrolled.training._types import Fit, Progress
from unrolled.training._watch import watcher


class Stage(NamedTuple):
    """One stage of a run: the step whose code is evaluated, the start, and the length."""

    at: int = -1  # the index of the step whose code the loss gets
    enter: Callable[[Loop, Progress], Progress] = lambda loop, state: state
    steps: int | None = None  # the largest number of steps; None takes `steps` of the run


def run_stages(
    objective: Objective,
    data: Data,
    optimizer: optax.GradientTransformation,
    run: Run,
    steps: int,
    stages: Sequence[Stage] = (Stage(),),
    config: dict[str, Any] | None = None,
    loop: Loop | None = None,
) -> Fit:
    """Run all stages; each stage takes at most `steps` steps, or its own number of steps.

    Args:
        run: the result of `Run.of`.
        config: settings that a checkpoint must match, in addition to the key and the run's own.
        loop: the compiled loop of an earlier run with these arguments.
    """
    where = objective.where
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"{where}: optimizer must be an optax GradientTransformation, "
            f"got {type(optimizer).__name__}"
        )
    if not callable(loss := objective.loss):
        raise TypeError(
            f"{where}: loss must be a function of (codes, X, D, Y), got {type(loss).__name__}; try "
            "training.supervised, or training.lasso_loss(lam) without codes"
        )
    lengths = [steps if stage.steps is None else stage.steps for stage in stages]
    total = sum(lengths)
    same = {"key": key_text(data.signals.key), "evaluate_every": run.evaluate_every} | (
        config or {}
    )
    same |= {"accumulate": run.accumulate, "reduction": run.reduction}
    _check_same_arguments(objective, data, run, same | {"steps": steps})
    with computing_on(run.mesh, where):
        loop = loop or make_loop(objective, data, optimizer, run.shared)
        with keeping(run.checkpoint, loop, same, data.start) as keeper:
            state = stages[0].enter(loop, loop.start(data.trained))
            if keeper:
                loop, state = keeper.resume(state, total, at=stages[0].at)
            with watcher(loop, total, run) as watch:
                for number, stage in list(enumerate(stages))[state.stage :]:
                    if number > state.stage:
                        state = stage.enter(loop, state)._replace(stage=number)
                    evaluated = (record.step for record in state.records if record.stage == number)
                    stop = next(evaluated, state.step) + lengths[number]
                    state = loop.run(state, stop, run, watch, at=stage.at, keeper=keeper)
            if keeper:
                keeper.save(state)
        result = loop.result(state)
    arrays = {name: getattr(result, name) for name in ("params", "best", "D")}
    return result.replace(**loop.processes.local(arrays))


def _check_same_arguments(
    objective: Objective, data: Data, run: Run, config: dict[str, Any]
) -> None:
    """Raise ValueError if the processes of a mesh train with different arguments."""
    processes = processes_of(run.mesh, objective.where)
    if processes.several:  # only then, because hashes take time
        trees = {
            "params": data.start.params,
            "D": data.start.D,
            "validation": data.signals.validation,
        }
        config |= {"patience": run.patience, "model": objective.model}
        config |= {"loss": getattr(objective.loss, "__name__", type(objective.loss).__name__)}
        config |= {name: _forms.digest(tree) for name, tree in trees.items()}
        processes.require_equal(objective.where, config | _forms.versions())
