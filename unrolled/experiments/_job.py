"""A run in progress: its epochs, what it saves, and the row at its end."""

import dataclasses
import math
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import unrolled
from unrolled._interrupts import leave
from unrolled.datasets import Images
from unrolled.experiments import _data, _rows
from unrolled.experiments._program import Devices, Program, State, key_of, no_sums, order, rebuild
from unrolled.experiments._recipe import Recipe, deviations, paper_recipe, size, task_of
from unrolled.experiments._scores import SCORES, evaluate, measure, predict
from unrolled.training import save_tree

_CHUNK_SECONDS = 1.0  # between two looks at the clock and at signals
_SAVE_SECONDS = 30.0  # the most that a kill can lose, but for one chunk
_PICTURES = 6  # with predicted masks that a row keeps
_FIRST_STEPS = 5  # of the first chunk, by which the speed of the others is known

# progress(name of the row, steps done, all steps, text)
Progress = Callable[[str, int, int, str], None]


@dataclasses.dataclass
class Job:
    """A run in progress."""

    recipe: Recipe
    images: Images
    folder: Path
    name: str
    program: Program
    state: State
    curve: list[dict[str, Any]]
    seconds: float  # of all processes that worked on it
    progress: Progress | None
    devices: Devices = Devices()
    pace: float = math.inf  # seconds of a step
    saved: float = dataclasses.field(default_factory=time.monotonic)

    def __post_init__(self):
        self.key = key_of(self.recipe)
        put = self.devices.everywhere
        self.X, self.Y = (put(jnp.asarray(part)) for part in self.images.train)
        self.tests = tuple(put(jnp.asarray(part)) for part in self.images.test)
        self.state = put(self.state)

    @property
    def finished(self) -> bool:
        """All epochs are done, or the loss is no number."""
        return len(self.curve) == self.recipe.epochs or self.diverged

    @property
    def diverged(self) -> bool:
        """The loss of the last epoch is no number."""
        return bool(self.curve) and not math.isfinite(self.curve[-1]["train"]["loss"])

    @property
    def path(self) -> Path:
        """Where its state is saved."""
        return self.folder / _rows.STATES / f"{self.name}.npz"

    def epoch(self, caught: list[int]) -> None:
        """Go on to the end of the epoch, and evaluate there; save from time to time.

        Raises:
            KeyboardInterrupt, SystemExit: a signal was caught; the state has been saved.
        """
        epoch, steps = len(self.curve), self.program.steps_per_epoch
        indices = np.asarray(order(self.key, epoch, len(self.X)))
        batches = indices[: steps * self.recipe.batch].reshape(steps, -1)
        gamma = np.float32(self.recipe.gamma) if self.recipe.gamma else None
        done, end = int(self.state.step), (epoch + 1) * steps
        while done < end:
            began, chunk = time.monotonic(), self._chunk()
            stop = min(done + chunk, end)
            for step in range(done, stop):
                self.state = self.program.advance(
                    self.state, self.key, batches[step % steps], gamma, self.X, self.Y
                )
            jax.block_until_ready(self.state.step)
            passed = time.monotonic() - began
            self.seconds, self.pace = self.seconds + passed, passed / (stop - done)
            done = stop
            if done < end:
                self._pause(done, caught)
        self._close_epoch()
        self._pause(done, caught)

    def _chunk(self) -> int:
        """Steps of about a second."""
        return _FIRST_STEPS if self.pace == math.inf else max(1, int(_CHUNK_SECONDS / self.pace))

    def _pause(self, done: int, caught: list[int]) -> None:
        """Tell how far it is, and save if it is time."""
        if self.progress:
            all_steps = self.recipe.epochs * self.program.steps_per_epoch
            self.progress(self.name, done, all_steps, _last_line(self.curve))
        if caught or time.monotonic() - self.saved > _SAVE_SECONDS:
            self.save()
        if caught:
            leave(caught[0], f"experiment: stopped after step {done} of {self.name}, saved")

    def _close_epoch(self) -> None:
        began = time.monotonic()
        sums = jax.device_get(self.state.sums)
        means = jax.tree.map(lambda total: total / self.program.steps_per_epoch, sums)
        tested = evaluate(self.program, self.state, *self.tests)
        train = {n: np.asarray(v, np.float64).tolist() for n, v in means._asdict().items()}
        self.curve.append({"train": train, "test": tested})
        self.state = self.state._replace(sums=no_sums(len(self.program.layers)))
        self.seconds += time.monotonic() - began

    def save(self) -> None:
        """Put the state on disk."""
        save_tree(self.path, self.state, curve=self.curve, seconds=self.seconds)
        self.saved = time.monotonic()

    def finish(self, keep_weights: bool) -> dict[str, Any]:
        """Write the row, and what stays with it; the saved state goes."""
        (X, _), (X_test, _) = self.images.train, self.images.test
        row = {
            "recipe": self.recipe.to_dict(),
            "deviations": deviations(
                self.recipe, paper_recipe(task_of(self.recipe.model), self.recipe.data)
            ),
            "layers": list(self.program.layers),
            "images": {
                "name": self.images.name,
                "train": len(X),
                "test": len(X_test),
                "shape": list(X.shape[1:]),
                "classes": len(self.images.classes),
                "sha256": _data.digest(self.images),
                "moments": _data.moments(X, self.recipe),
            },
            "parameters": size(rebuild(self.program.graph, self.state.params, self.state.others)),
            "status": "diverged" if self.diverged else "complete",
            "scores": self.curve[-1]["test"],
            "features": measure(self.program, self.state, self.tests[0]),
            "curve": self.curve,
            "seconds": self.seconds,
            "environment": _environment() | self.devices.environment,
        }
        if keep_weights:
            weights = {"params": self.state.params, "others": self.state.others}
            save_tree(self.folder / _rows.WEIGHTS / f"{self.name}.npz", weights)
        if not self.images.classes:
            _rows.write_pictures(self.folder, self.name, self._pictures())
        _rows.write_row(self.folder, self.name, row)
        self.path.unlink(missing_ok=True)
        return _rows.read_row(self.folder, self.name) or row

    def _pictures(self) -> dict[str, np.ndarray]:
        """The first test pictures, with their true and their predicted masks."""
        X, truth = (part[:_PICTURES] for part in self.images.test)
        predicted = predict(self.program, self.state, *self.tests)[:_PICTURES]
        return {"X": X, "truth": truth, "predicted": predicted}


def _last_line(curve: list[dict[str, Any]]) -> str:
    """The last line of a curve, in words."""
    if not curve:
        return "first epoch"
    train, test = curve[-1]["train"], curve[-1]["test"]
    score = next(name for name in SCORES if name in test)
    tested = f"test {score.replace('_', ' ')} {test[score]:.4f}"
    return f"epoch {len(curve)}: loss {train['loss']:.4g}, {tested}"


def _environment() -> dict[str, str]:
    """The versions and the device that a row depends on."""
    device = jax.devices()[0]
    others = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "unrolled": str(unrolled.__version__),
        **{name: metadata.version(name) for name in others},
        "device": f"{device.platform} {device.device_kind}",
    }
