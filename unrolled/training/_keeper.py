"""A run that saves itself and resumes: the same run, or an error that says what differs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base.checks import Array
from unrolled._base.threads import deferred, leave
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.records import differences
from unrolled.training import _forms
from unrolled.training._checkpoint import Checkpoint, Steps, newest, opened
from unrolled.training._forms import (
    CheckpointError,
    describe,
    describe_model,
    describe_params,
    is_activation,
    names,
)
from unrolled.training._loop import Loop
from unrolled.training._records import Dictionaries, Model, Params, Progress, Record, Trained

_HISTORY = ("losses", "records")  # they grow with the run
_ONLY_SPEED = ("unroll", "remat")  # options of a model that a resumed run may change
_REPLAYED = 2  # steps that are done again at a resume: the second shows a learning rate


@contextmanager
def keeping(
    checkpoint: Checkpoint | str | Path | None, loop: Loop, config: dict[str, Any], start: Trained
) -> Iterator["Keeper | None"]:
    """A `Keeper` with its folder locked and signals deferred; None without a checkpoint.

    `start` has the whole params and dictionary that the training starts from.
    """
    if checkpoint is None:
        yield None
        return
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    # A learned D differs from step to step: it is always saved.
    keeps_D = checkpoint.dictionary or not jax.tree.leaves(loop.fixed.D)
    fixed = loop.fixed if keeps_D else loop.fixed._replace(D=None)
    model = loop.objective.model
    form = _form(model, start.params, start.D if keeps_D else None)
    config = {"model": kind_of(model)} | config | {"D sha256": _forms.digest(start.D)}
    with opened(checkpoint, loop.where, loop.processes) as steps, deferred() as caught:
        yield Keeper(checkpoint, steps, caught, loop, config, form, names({"fixed": fixed}))


@dataclass
class Keeper:
    """Saves the states of one run, and finds the newest one."""

    checkpoint: Checkpoint
    steps: Steps
    caught: list[int]  # signals that ask the training to stop
    loop: Loop
    config: dict[str, Any]
    form: dict | None
    fixed: dict[str, Any]  # leaves that are not trained
    saved: int = 0  # the last step that is on disk

    def due(self, step: int, evaluated: bool) -> bool:
        """Whether to save after this step: `every` has passed, or a signal has arrived.

        Processes tell each other of signals at evaluations and at saves.
        """
        every = self.checkpoint.every
        if self.loop.processes.several and evaluated:
            self.loop.processes.broadcast_signal(self.caught)
        asked = bool(self.caught) and (evaluated or not self.loop.processes.several)
        return asked or (evaluated if every is None else step - self.saved >= every)

    def save(self, state: Progress) -> None:
        """Write the state if it is not on disk; then stop the training if a signal has arrived."""
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
        """The newest saved state, and the loop with the fixed leaves that it was reached with.

        `start` where nothing is saved; `steps` and `at` are those of the `run` that it would begin.

        Raises:
            CheckpointError: the newest step is damaged, or it belongs to another run.
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
        first = processes.on_all(look, first_alone=True)  # which sets damaged steps aside
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
            leaves = names({name: like})
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
        """Repeat the first evaluation and the first two steps, and refuse other losses.

        What no manifest can tell shows there: the loss, the sampler, a learning rate. Losses agree
        up to the rounding of another device.
        """
        loop, saved, again = self.loop, {}, {}
        value = loop.evaluate(start.trained, loop.fixed, loop.validation, at)
        saved["validation loss at the start"] = state.records[0].validation
        again["validation loss at the start"] = float(value)
        trained, optimizer, bad = start.trained, start.optimizer, jnp.full((), -1, jnp.int32)
        # A later stage starts from other params: it is not repeated.
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
        """A table of the options of the model that differ, where both are known."""
        saved, requested = (_options((f or {}).get("layer") or {}) for f in (form, self.form))
        return differences(saved, requested) if saved and requested else ""

    def _refuse_if(self, report: str) -> None:
        if report:
            raise CheckpointError(
                f"{self.loop.where}: checkpoint {self.steps.folder} holds another run; "
                f"try another folder, or `restore` it and train from its params:\n{report}"
            )


def _form(model: Model, params: Params, D: Dictionaries | None) -> dict | None:
    """What `restore` builds from; None where params or D are of a kind that has no form."""
    if not isinstance(model, Layer | Network):
        return None
    described: Model | None = model
    try:
        layer = describe_model(model)
    except TypeError:  # an option that has no form, such as a lambda
        described, layer = None, None
    try:
        params_form, D_form = describe_params(params, described)[0], describe(D, "D")[0]
    except TypeError:
        return None
    return {"params": params_form, "D": D_form, "layer": layer}


def _options(described: dict[str, Any], of: str = "") -> dict[str, Any]:
    """The options of a described model that change its codes, those of its layers included."""
    options: dict[str, Any] = {}
    for name, value in described.items():
        if name == "layers":
            for j, layer in enumerate(value):
                options |= _options(layer, f"layers[{j}].")
        elif name not in _ONLY_SPEED:
            options[of + name] = value["activation"] if is_activation(value) else value
    return options


def kind_of(model: Model) -> str:
    """The family of a layer, or of a network with those of its layers."""
    layers = getattr(model, "layers", ())
    family = getattr(model, "family", type(model).__name__)
    return family + (f"({', '.join(map(kind_of, layers))})" if layers else "")


def key_text(key: Array) -> str:
    """A random key, old or new, as text."""
    return str(np.asarray(jax.random.key_data(key)).tolist())


def _packed(state: Progress) -> dict[str, Any]:
    """The leaves of a state by name."""
    records: Any = np.asarray(state.records, np.float64).reshape(-1, len(Record._fields))
    return names(state._replace(records=records))


def _unpacked(filled: Callable, arrays: dict[str, np.ndarray], like: Progress) -> Progress:
    """The state with the structure of `like`; its history stays on the host, in float64."""
    parts: dict[str, Any]
    parts = {name: filled(name, getattr(like, name)) for name in ("trained", "optimizer", "best")}
    parts |= {name: int(arrays[name]) for name in ("step", "stage", "best_at")}
    records = tuple(
        Record(int(step), loss, validation, seconds, int(stage))
        for step, loss, validation, seconds, stage in arrays["records"].tolist()
    )
    lowest, losses = float(arrays["lowest"]), arrays["losses"].copy()  # they outlive the file
    return Progress(**parts, lowest=lowest, losses=losses, records=records)


def _shared(types: dict[str, str]) -> dict[str, str]:
    """Those of the types of leaves in which a resumed run must agree."""
    return {name: kind for name, kind in types.items() if name not in _HISTORY}
