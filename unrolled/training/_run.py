"""Training from start to result: options, stages, reports, and saved states to resume from."""

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled._base.processes import processes_of
from unrolled._base.threads import deferred, leave
from unrolled.layers import Layer
from unrolled.networks import Network, exceeds, worse
from unrolled.records import differences
from unrolled.training import _forms
from unrolled.training._files import Checkpoint, Steps, newest, opened
from unrolled.training._forms import CheckpointError
from unrolled.training._loop import Data, Loop, make_loop
from unrolled.training._mesh import Sharing, computing_on, sharing
from unrolled.training._objective import (
    Callback,
    Dictionaries,
    Fit,
    Model,
    Objective,
    Params,
    Progress,
    Record,
    Trained,
    ends,
)


class Options(NamedTuple):
    """The arguments that `fit`, `curriculum` and `unsupervised` share; see `fit`."""

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
        """The sharing of a step among devices."""
        return Sharing(self.accumulate, self.mesh, self.reduction)

    def checked(self, where: str) -> "Options":
        """The options, checked; raises TypeError and ValueError in the same cases as `fit`."""
        every = checks.as_index(self.evaluate_every, "evaluate_every", where, least=1)
        patience = self.patience
        if patience is not None:
            patience = checks.as_index(patience, "patience", where, least=1)
        shared = sharing(self.accumulate, self.mesh, self.reduction, where)
        same = self.checkpoint, tuple(self.callbacks), self.log, self.progress
        return Options(every, patience, *same, *shared)


class Stage(NamedTuple):
    """One stage of a run: the step whose code is evaluated, the start, and the length."""

    at: int = -1  # the index of the step whose code the loss gets
    enter: Callable[[Loop, Progress], Progress] = lambda loop, state: state
    steps: int | None = None  # the largest number of steps; None takes `steps` of the run


def run_stages(
    objective: Objective,
    data: Data,
    optimizer: optax.GradientTransformation,
    options: Options,
    steps: int,
    stages: Sequence[Stage] = (Stage(),),
    config: dict[str, Any] | None = None,
    loop: Loop | None = None,
) -> Fit:
    """Run all stages; each stage takes at most `steps` steps, or its own number of steps.

    Args:
        options: checked options.
        config: settings that a checkpoint must match, in addition to the key and the options.
        loop: the compiled loop of an earlier run with these arguments.
    """
    where, mesh = objective.where, options.mesh
    lengths = [steps if stage.steps is None else stage.steps for stage in stages]
    total = sum(lengths)
    same = {"key": key_text(data.key), "evaluate_every": options.evaluate_every} | (config or {})
    same |= {"accumulate": options.accumulate, "reduction": options.reduction}
    _check_same_arguments(objective, data, options, same | {"steps": steps})
    with computing_on(mesh, where):
        loop = loop or make_loop(objective, data, optimizer, options.shared)
        with keeping(options.checkpoint, loop, same, data.start) as keeper:
            state = stages[0].enter(loop, loop.start(data.trained))
            if keeper:
                loop, state = keeper.resume(state, total, at=stages[0].at)
            with _watcher(loop, total, options) as watch:
                for number, stage in list(enumerate(stages))[state.stage :]:
                    if number > state.stage:
                        state = stage.enter(loop, state)._replace(stage=number)
                    evaluated = (record.step for record in state.records if record.stage == number)
                    stop = next(evaluated, state.step) + lengths[number]
                    state = loop.run(state, stop, options, watch, at=stage.at, keeper=keeper)
            if keeper:
                keeper.save(state)
        result = loop.result(state)
    arrays = {name: getattr(result, name) for name in ("params", "best", "D")}
    return result.replace(**loop.processes.local(arrays))


def _check_same_arguments(
    objective: Objective, data: Data, options: Options, config: dict[str, Any]
) -> None:
    """Raise ValueError if the processes of a mesh train with different arguments."""
    processes = processes_of(options.mesh, objective.where)
    if processes.several:  # only then, because hashes take time
        trees = {"params": data.start.params, "D": data.start.D, "validation": data.validation}
        config |= {"patience": options.patience, "model": objective.model}
        config |= {"loss": getattr(objective.loss, "__name__", type(objective.loss).__name__)}
        config |= {name: _forms.digest(tree) for name, tree in trees.items()}
        processes.require_equal(objective.where, config | _forms.versions())


@contextmanager
def _watcher(loop: Loop, steps: int, options: Options) -> Iterator[Callable[[Progress, int], None]]:
    """Yield `watch(state, at)`, which updates callbacks, log and progress bar at an evaluation.

    `watch` warns if training changes nothing, if the codes are worse than zero codes, or if the
    LASSO objective at the start is above the objective of ISTA.
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
                _warn_of_start(loop, state)
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
            values = {k: v if np.isfinite(v) else None for k, v in record.asdict().items()}
            lines.write(json.dumps(values) + "\n")
            lines.flush()

        yield write


@contextmanager
def _bar(steps: int, progress: bool | None) -> Iterator[Callback]:
    """A callback that advances a progress bar, on request, or on a terminal in the main thread."""
    if progress is None:  # show a bar on a terminal
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


# Saving and resuming a run. If the resumed run is not the saved run, an error says what differs.

_HISTORY = ("losses", "records")  # leaves that grow with the run
_ONLY_SPEED = ("unroll", "remat")  # options of a model that a resumed run may change
_REPLAYED = 2  # steps to repeat at a resume; the second step shows a changed learning rate


@contextmanager
def keeping(
    checkpoint: Checkpoint | str | Path | None, loop: Loop, config: dict[str, Any], start: Trained
) -> Iterator["Keeper | None"]:
    """A `Keeper` with a locked folder and deferred system signals; None without a checkpoint.

    `start` holds the whole params and the whole dictionary at the start of the training.
    """
    if checkpoint is None:
        yield None
        return
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    # A learned D is always saved, because D changes at every step.
    keeps_D = checkpoint.dictionary or not jax.tree.leaves(loop.fixed.D)
    fixed = loop.fixed if keeps_D else loop.fixed._replace(D=None)
    model = loop.objective.model
    form = _form(model, start.params, start.D if keeps_D else None)
    config = {"model": kind_of(model)} | config | {"D sha256": _forms.digest(start.D)}
    with opened(checkpoint, loop.where, loop.processes) as steps, deferred() as caught:
        yield Keeper(checkpoint, steps, caught, loop, config, form, _forms.names({"fixed": fixed}))


@dataclass
class Keeper:
    """Save the states of one run, and find the newest saved state."""

    checkpoint: Checkpoint
    steps: Steps
    caught: list[int]  # system signals that ask the training to stop
    loop: Loop
    config: dict[str, Any]
    form: dict | None
    fixed: dict[str, Any]  # leaves that are not trained
    saved: int = 0  # the newest step on disk

    def due(self, step: int, evaluated: bool) -> bool:
        """Whether to save now, because `every` steps have passed or a system signal has arrived.

        Processes tell each other of system signals at evaluations and at saves.
        """
        every = self.checkpoint.every
        if self.loop.processes.several and evaluated:
            self.loop.processes.broadcast_signal(self.caught)
        asked = bool(self.caught) and (evaluated or not self.loop.processes.several)
        return asked or (evaluated if every is None else step - self.saved >= every)

    def save(self, state: Progress) -> None:
        """Write the state unless it is on disk; then stop if a system signal has arrived."""
        if state.step > self.saved or not self.saved:

            def write():
                if state.step > self.saved or not self.steps.all():
                    packed = _packed(state) | self.fixed
                    self.steps.save(state.step, packed, config=self.config, form=self.form)
                    self.steps.keep(self.checkpoint.keep)

            self.loop.processes.on_all(write, first_alone=True)
            self.saved = state.step
        self.loop.processes.broadcast_signal(self.caught)
        if self.caught:
            leave(
                self.caught[0],
                f"{self.loop.where}: stopped after step {state.step}, saved in {self.steps.folder}",
            )

    def resume(self, start: Progress, steps: int, at: int = -1) -> tuple[Loop, Progress]:
        """The loop with its fixed leaves, and the newest saved state, or `start` if none is saved.

        `steps` and `at` are the arguments of the `run` that begins at `start`.

        Raises:
            CheckpointError: the newest step is damaged, or belongs to another run.
        """
        requested = self.config | _shared(_forms.types_of(_packed(start) | self.fixed))

        def accept(manifest):
            saved = manifest["config"] | _shared(_forms.types_of_entries(manifest["leaves"]))
            report = differences(saved, requested) or self._other_options(manifest["form"])
            if not report and manifest["step"] > steps:
                report = differences({"steps": manifest["step"]}, {"steps": steps})
            self._refuse_if(report)

        def look():
            return newest(self.steps, self.checkpoint.strict, accept, self.loop.where)

        processes = self.loop.processes
        first = processes.on_all(look, first_alone=True)  # `look` sets damaged steps aside
        saved_state = processes.on_all(lambda: first or look())
        seen = processes.gathered(np.array(saved_state[0]["step"] if saved_state else -1))
        if len(set(seen.tolist())) > 1:
            raise CheckpointError(
                f"{self.loop.where}: checkpoint {self.steps.folder}: the processes find the steps "
                f"{seen.tolist()} there (-1 for none); expected a folder that all of them share"
            )
        if saved_state is None:
            return self.loop, start
        manifest, arrays = saved_state

        def filled(name, like):
            leaves = _forms.names({name: like})
            entries = manifest["leaves"]
            values = [_forms.to_device(entries[leaf]["dtype"], arrays[leaf]) for leaf in leaves]
            return jax.tree.unflatten(jax.tree.structure(like), values)

        def placed(name, like):
            return self.loop.place(filled(name, like))

        state = _unpacked(placed, arrays, start)
        self._replay(state, start, at)
        self.saved = state.step
        params = filled("fixed.params", self.loop.fixed.params)
        fixed = self.loop.place(self.loop.fixed._replace(params=params))
        return self.loop._replace(fixed=fixed), state

    def _replay(self, state: Progress, start: Progress, at: int) -> None:
        """Repeat the first evaluation and the first two steps, and raise if a loss differs.

        A manifest cannot record losses, samplers or learning rates, but a change to one of them
        changes the repeated losses. Losses may differ by the rounding of another device.
        """
        loop, saved, again = self.loop, {}, {}
        value = loop.evaluate(start.trained, loop.fixed, loop.validation, at)
        saved["validation loss at the start"] = state.records[0].validation
        again["validation loss at the start"] = float(value)
        trained, optimizer, bad = start.trained, start.optimizer, jnp.full((), -1, jnp.int32)
        # Later stages start from other params, so their steps are not repeated.
        end = min([_REPLAYED, *(record.step for record in state.records if record.stage > 0)])
        for k, loss in enumerate(state.losses[:end]):
            trained, optimizer, bad, value = loop.update(
                trained, optimizer, bad, loop.fixed, loop.draw, k, at
            )
            saved[f"loss of step {k}"], again[f"loss of step {k}"] = float(loss), float(value)
        tolerance = float(jnp.finfo(value.dtype).eps) ** 0.5
        close = np.isclose([*saved.values()], [*again.values()], rtol=tolerance, atol=tolerance)
        self._refuse_if("" if close.all() else differences(saved, again))

    def _other_options(self, form: dict | None) -> str:
        """A table of the differing options of the two models, if both are known."""
        saved, requested = (_options((f or {}).get("layer") or {}) for f in (form, self.form))
        return differences(saved, requested) if saved and requested else ""

    def _refuse_if(self, report: str) -> None:
        if report:
            raise CheckpointError(
                f"{self.loop.where}: checkpoint {self.steps.folder} holds another run; "
                f"try another folder, or `restore` it and train from its params:\n{report}"
            )


def _form(model: Model, params: Params, D: Dictionaries | None) -> dict | None:
    """The form from which `restore` builds params and D; None if one of them has no form."""
    if not isinstance(model, Layer | Network):
        return None
    described: Model | None = model
    try:
        layer = _forms.describe_model(model)
    except TypeError:  # an option without a form, such as a lambda
        described, layer = None, None
    try:
        params_form, D_form = (
            _forms.describe_params(params, described)[0],
            _forms.describe(D, "D")[0],
        )
    except TypeError:
        return None
    return {"params": params_form, "D": D_form, "layer": layer}


def _options(described: dict[str, Any], of: str = "") -> dict[str, Any]:
    """The options of a described model and of its layers; only options that change the codes."""
    options: dict[str, Any] = {}
    for name, value in described.items():
        if name == "layers":
            for j, layer in enumerate(value):
                options |= _options(layer, f"layers[{j}].")
        elif name not in _ONLY_SPEED:
            options[of + name] = value["activation"] if _forms.is_activation(value) else value
    return options


def kind_of(model: Model) -> str:
    """The family of a layer; for a network, its family and the families of its layers."""
    layers = getattr(model, "layers", ())
    family = getattr(model, "family", type(model).__name__)
    return family + (f"({', '.join(map(kind_of, layers))})" if layers else "")


def key_text(key: Array) -> str:
    """A random key, typed or raw, as text."""
    return str(np.asarray(jax.random.key_data(key)).tolist())


def _packed(state: Progress) -> dict[str, Any]:
    """The leaves of a state by their names."""
    rows = [list(record.asdict().values()) for record in state.records]
    records: Any = np.asarray(rows, np.float64).reshape(-1, len(Record._fields))
    return _forms.names(state._replace(records=records))


def _unpacked(filled: Callable, arrays: dict[str, np.ndarray], like: Progress) -> Progress:
    """The state with the structure of `like`; the history stays on the host, in float64."""
    parts: dict[str, Any]
    parts = {name: filled(name, getattr(like, name)) for name in ("trained", "optimizer", "best")}
    parts |= {name: int(arrays[name]) for name in ("step", "stage", "best_at")}
    records = tuple(
        Record(int(step), loss, validation, seconds, int(stage))
        for step, loss, validation, seconds, stage in arrays["records"].tolist()
    )
    lowest, losses = float(arrays["lowest"]), arrays["losses"].copy()  # a copy outlives the file
    return Progress(**parts, lowest=lowest, losses=losses, records=records)


def _shared(types: dict[str, str]) -> dict[str, str]:
    """The types of the leaves that a resumed run must match."""
    return {name: kind for name, kind in types.items() if name not in _HISTORY}
