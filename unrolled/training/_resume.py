"""The saved states of a run, and how a run resumes from the newest one."""

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
from unrolled.training._files import Checkpoint, Steps, newest, opened
from unrolled.training._forms import CheckpointError
from unrolled.training._loop import Loop
from unrolled.training._types import Dictionaries, Model, Params, Progress, Record, Trained

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
