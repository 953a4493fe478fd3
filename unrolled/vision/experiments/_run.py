"""Runs, which train a model by a recipe, save the state regularly, and end with a row of results.

The folder of an experiment contains the rows, and the weights and pictures that rows keep.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from unrolled._base import files, text
from unrolled._base.doors import Result, checked
from unrolled._base.files import CheckpointError, write_whole
from unrolled._base.text import sealed, to_json, unsealed, version
from unrolled._base.threads import deferred, leave
from unrolled.training import drive, restore_tree, save_tree
from unrolled.vision.datasets import Images
from unrolled.vision.experiments import _program, _recipe
from unrolled.vision.experiments._recipe import Build, Recipe, build_model
from unrolled.vision.experiments._table import scores_table, summarize

_PARTS = ROWS, STATES, WEIGHTS, PICTURES = "rows", "states", "weights", "pictures"
_FORMAT = 1
_KEYS = (
    *("recipe", "deviations", "layers", "images", "parameters", "status", "scores", "features"),
    *("curve", "seconds", "environment"),
)


def open_folder(folder: str | Path) -> Path:
    """The folder of an experiment, which is created if it does not exist.

    Raises:
        NotADirectoryError: a file has the name of the folder.
        ValueError: the folder is not empty and contains no experiment.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; expected a folder to write into")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ROWS).is_dir():
        raise ValueError(
            f"{folder}: is not empty and holds no experiment; try another --output, or an empty one"
        )
    for part in _PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def opened(folder: str | Path) -> Iterator[Path]:
    """`open_folder` for a block; if the block raises an error, a new folder is removed."""
    made = not Path(folder).exists()
    folder = open_folder(folder)
    try:
        yield folder
    except (ValueError, TypeError):
        with suppress(OSError):  # raised if the folder is not empty
            for part in (*_PARTS, "") if made else ():
                (folder / part).rmdir()
        raise


def write_row(folder: Path, name: str, row: dict[str, Any]) -> None:
    """Add a row atomically."""
    text = to_json(sealed({"format": _FORMAT, **row}))
    write_whole(folder / ROWS / f"{name}.json", text.encode())


def read_row(folder: Path, name: str) -> dict[str, Any] | None:
    """The row with a given name; None if there is no such row.

    Raises:
        CheckpointError: the file is not a row, or has changed since the row was written.
    """
    path = Path(folder) / ROWS / f"{name}.json"
    return _read(path) if path.is_file() else None


@checked
def read_rows(folder: str | Path) -> dict[str, dict[str, Any]]:
    """A dict from the names of all rows to the rows, sorted by name.

    Raises:
        FileNotFoundError: the folder contains no experiment.
        CheckpointError: a file is not a row, or has changed since the row was written.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:  # of an experiment that has not begun
        ...     pathlib.Path(folder, "rows").mkdir()
        ...     ur.vision.experiments.read_rows(folder)
        {}
    """
    rows = Path(folder) / ROWS
    if not rows.is_dir():
        raise FileNotFoundError(f"{folder}: holds no experiment; expected a folder {ROWS} in it")
    return {path.stem: _read(path) for path in sorted(rows.glob("*.json"))}


def _read(path: Path) -> dict[str, Any]:
    try:
        row = unsealed(json.loads(path.read_text(encoding="utf-8")))
        if row["format"] != _FORMAT:
            raise ValueError(f"format {row['format']}; expected {_FORMAT}")
        if missing := [key for key in _KEYS if key not in row]:
            raise ValueError(f"without {', '.join(missing)}")
        return row
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a row of an experiment ({error}); remove the file to run it again"
        ) from error


def write_pictures(folder: Path, name: str, pictures: dict[str, np.ndarray]) -> None:
    """Keep pictures and masks of a row."""
    save_tree(folder / PICTURES / f"{name}.npz", pictures)


@checked
def read_pictures(folder: str | Path, name: str) -> dict[str, np.ndarray] | None:
    """The pictures X and the masks `truth` and `predicted` of a row; None if it has no masks.

    Raises:
        CheckpointError: the file of the masks is damaged.

    Example:
        >>> ur.vision.experiments.read_pictures("an-experiment", "a-row") is None
        True
    """
    path = Path(folder) / PICTURES / f"{name}.npz"
    if not path.is_file():
        return None
    try:
        arrays, _ = restore_tree(path)
        return {entry: arrays[entry] for entry in ("X", "truth", "predicted")}
    except (ValueError, KeyError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CheckpointError(
            f"{path}: not the pictures of a row ({reason}); remove the file to continue without "
            "them"
        ) from error


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Lock a row for a block, and yield True if this process holds the lock.

    The lock ends if the process is killed.
    """
    with files.claimed(folder / STATES / f"{name}.lock") as holder:
        yield holder is None


_CHUNK_SECONDS = 1.0  # seconds between two checks of the clock and of signals
_SAVE_SECONDS = 30.0  # a killed run loses at most this time and the time of one chunk
_PICTURES = 6  # pictures with predicted masks that a row keeps
_FIRST_STEPS = 5  # steps of the first chunk, which measures the speed for the next chunks

# progress(name of the row, steps done, all steps, text)
Progress = Callable[[str, int, int, str], None]


@dataclasses.dataclass
class Job:
    """A run in progress, which `training.drive` executes; each epoch ends with an evaluation."""

    recipe: Recipe
    images: Images
    path: Path  # file of its saved state
    name: str
    program: _program.Program
    state: _program.State
    curve: list[dict[str, Any]]
    seconds: float  # total time of all processes that worked on the run
    devices: _program.Devices
    until: float
    caught: list[int]  # signals that ask the run to stop
    progress: Progress | None
    pace: float = math.inf  # seconds per step

    def __post_init__(self):
        self.key = _program.key_of(self.recipe)
        put = self.devices.everywhere
        self.X, self.Y = (put(jnp.asarray(part)) for part in self.images.train)
        self.tests = tuple(put(jnp.asarray(part)) for part in self.images.test)
        self.gamma = np.float32(self.recipe.gamma) if self.recipe.gamma else None
        self.state, self.step = put(self.state), int(self.state.step)
        self.saved = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the loss is not finite."""
        return len(self.curve) == self.recipe.epochs or self.diverged

    @property
    def diverged(self) -> bool:
        """Whether the loss of the last epoch is not finite."""
        return bool(self.curve) and not math.isfinite(self.curve[-1]["train"]["loss"])

    def next_end(self) -> int | None:
        """Draw the batches of an epoch; return its last step, or None if the run has to end."""
        if self.finished or time.monotonic() >= self.until:
            return None
        epoch, steps = len(self.curve), self.program.steps_per_epoch
        indices = np.asarray(_program.order(self.key, epoch, len(self.X)))
        self.batches = indices[: steps * self.recipe.batch].reshape(steps, -1)
        self._begin_chunk()
        return (epoch + 1) * steps

    def advance(self) -> None:
        """Take one step."""
        chosen = self.batches[self.step % len(self.batches)]
        self.state = self.program.advance(self.state, self.key, chosen, self.gamma, self.X, self.Y)
        self.step += 1

    def pause(self) -> None:
        """After a chunk of about a second, report the progress, and save if a save is due.

        Raises:
            KeyboardInterrupt, SystemExit: a signal was caught; the state has been saved.
        """
        most = _FIRST_STEPS if self.pace == math.inf else max(1, int(_CHUNK_SECONDS / self.pace))
        if self.step - self.first >= most:
            self._end_chunk()
            self._tell_and_save()
            self._begin_chunk()

    def evaluate(self) -> None:
        """Add an entry to the curve; then report the progress, and save if a save is due."""
        self._end_chunk()
        began = time.monotonic()
        sums = jax.device_get(self.state.sums)
        means = jax.tree.map(lambda total: total / self.program.steps_per_epoch, sums)
        tested = _program.evaluate(self.program, self.state, *self.tests)
        train = {n: np.asarray(v, np.float64).tolist() for n, v in means._asdict().items()}
        self.curve.append({"train": train, "test": tested})
        self.state = self.state._replace(sums=_program.no_sums(len(self.program.layers)))
        self.seconds += time.monotonic() - began
        self._tell_and_save()

    def _begin_chunk(self) -> None:
        self.first, self.began = self.step, time.monotonic()

    def _end_chunk(self) -> None:
        """Wait for the steps of the chunk, and add their time."""
        jax.block_until_ready(self.state.step)
        passed = time.monotonic() - self.began
        self.seconds, self.pace = self.seconds + passed, passed / (self.step - self.first)

    def _tell_and_save(self) -> None:
        if self.progress:
            all_steps = self.recipe.epochs * self.program.steps_per_epoch
            self.progress(self.name, self.step, all_steps, _last_line(self.curve))
        if self.caught or time.monotonic() - self.saved > _SAVE_SECONDS:
            self.save()
        if self.caught:
            leave(
                self.caught[0],
                f"experiment: stopped after step {self.step} of {self.name}, saved",
            )

    def save(self) -> None:
        """Put the state on disk."""
        save_tree(self.path, self.state, curve=self.curve, seconds=self.seconds)
        self.saved = time.monotonic()

    def finish(self, folder: Path, keep_weights: bool) -> dict[str, Any]:
        """Write the row and the files that belong to the row; remove the saved state."""
        (X, _), (X_test, _) = self.images.train, self.images.test
        row = {
            "recipe": self.recipe.to_dict(),
            "deviations": _recipe.deviations(
                self.recipe,
                _recipe.paper_recipe(_recipe.task_of(self.recipe.model), self.recipe.data),
            ),
            "layers": list(self.program.layers),
            "images": {
                "name": self.images.name,
                "train": len(X),
                "test": len(X_test),
                "shape": list(X.shape[1:]),
                "classes": len(self.images.classes),
                "sha256": _recipe.digest_of(self.images),
                "moments": _recipe.moments_of(X, self.recipe),
            },
            "parameters": _recipe.size(
                _program.rebuild(self.program.graph, self.state.params, self.state.others)
            ),
            "status": "diverged" if self.diverged else "complete",
            "scores": self.curve[-1]["test"],
            "features": _program.measure(self.program, self.state, self.tests[0]),
            "curve": self.curve,
            "seconds": self.seconds,
            "environment": _environment() | self.devices.environment,
        }
        if keep_weights:
            weights = {"params": self.state.params, "others": self.state.others}
            save_tree(folder / WEIGHTS / f"{self.name}.npz", weights)
        if not self.images.classes:
            write_pictures(folder, self.name, self._pictures())
        write_row(folder, self.name, row)
        self.path.unlink(missing_ok=True)
        return read_row(folder, self.name) or row

    def _pictures(self) -> dict[str, np.ndarray]:
        """The first test pictures, with their true and their predicted masks."""
        X, truth = (part[:_PICTURES] for part in self.images.test)
        predicted = _program.predict(self.program, self.state, *self.tests)[:_PICTURES]
        return {"X": X, "truth": truth, "predicted": predicted}


def _last_line(curve: list[dict[str, Any]]) -> str:
    """The last entry of a curve, in words."""
    if not curve:
        return "first epoch"
    train, test = curve[-1]["train"], curve[-1]["test"]
    score = next(name for name in _program.SCORES if name in test)
    tested = f"test {score.replace('_', ' ')} {test[score]:.4f}"
    return f"epoch {len(curve)}: loss {train['loss']:.4g}, {tested}"


def _environment() -> dict[str, str]:
    """The versions and the device that determine a row."""
    device = jax.devices()[0]
    others = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "unrolled": version(),
        **{name: metadata.version(name) for name in others},
        "device": f"{device.platform} {device.device_kind}",
    }


class Sweep(Result):
    """The outcome of the runs of a grid."""

    rows: dict[str, dict[str, Any]]  # the finished rows, old and new, by name
    open: list[str]  # names of runs that the time budget stopped, or that have not started
    busy: list[str]  # names of runs in other processes

    def __repr__(self) -> str:
        """The scores, cut to the size of a screen, and the unfinished runs."""
        scores = self.table().splitlines() if self.rows else []
        left = f"{len(self.rows)} runs finished, {len(self.open)} open, {len(self.busy)} elsewhere"
        return text.screen([left, *scores])

    def table(self, form: str = "markdown") -> Any:
        """`scores_table` of the rows, in the same forms."""
        return scores_table(summarize(self.rows), form)


class Outcome(Result):
    """The outcome of a run: its name, and its row if the run is finished."""

    name: str  # name of the row
    row: Any  # the record of the row, a dict; None until the run is finished
    busy: bool = False  # whether another process executes the run


@checked
def run(
    recipe: Recipe,
    images: Images,
    folder: str | Path,
    *,
    build: Build = build_model,
    until: float = math.inf,
    keep_weights: bool = True,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Outcome:
    """Train and test one model by a recipe, and add its row to the folder of an experiment.

    If the row exists, `run` returns the row at once. If a run was stopped or killed, `run`
    continues from the last saved step. On the same device the result is bit-identical to the result
    of an uninterrupted run. A run computes in float32 even if JAX uses float64 by default.

    Args:
        recipe: recipe of the run.
        images: images from `load`, with the whole test set.
        folder: folder of the experiment.
        build: function that returns the model; pass your own function for your own model. The name
            of the row does not depend on `build`. If you change your model, change `recipe.model`.
        until: time (`time.monotonic`) after which the run stops at the end of the current epoch.
        keep_weights: if True, the weights stay in the folder, for `restore`.
        progress: function called about once a second as `progress(name of the row, steps done, all
            steps, text)`.
        mesh: devices that share each batch along the axis "data"; each device has all weights. The
            result equals the result on one device up to rounding. A saved run can continue on
            another number of devices; the row records the number of devices on which the run ended.

    Raises:
        TypeError: mesh is not a mesh.
        ValueError: devices cannot share a batch equally, images do not fit the recipe or the model,
            or images have the same bytes as the images of a row but other shapes or classes.
        CheckpointError: a saved state is damaged.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM arrived; the last step has been saved.

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> class Net(nnx.Module):  # a network of your own, without layers to penalise
        ...     early = ()
        ...     def __init__(self, rngs):
        ...         self.dense = nnx.Linear(32 * 32, 10, rngs=rngs)
        ...     def __call__(self, x):
        ...         return self.dense(x.reshape(len(x), -1))
        >>> images = ur.vision.experiments.load("digits")
        >>> recipe = ur.vision.experiments.Recipe(
        ...     data="digits", model="linear", epochs=1, augmentation="none")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = ur.vision.experiments.run(
        ...         recipe, images, folder, build=lambda recipe, shape, classes, rngs: Net(rngs))
        ...     rows = ur.vision.experiments.read_rows(folder)
        >>> done.row["status"], list(rows) == [done.name]
        ('complete', True)
        >>> ur.vision.experiments.summarize(rows)[0].scores["accuracy"].n  # seeds
        1
    """
    chosen = _recipe.split_images(images, recipe.test)
    _recipe.check_images(chosen, recipe)
    devices = _program.devices_of(mesh, recipe.batch)
    name = recipe.row_name(_recipe.digest_of(chosen))
    with jax.enable_x64(False), opened(folder) as folder:
        if row := _finished(folder, name, chosen):
            return Outcome(name, row)
        with claimed(folder, name) as mine, deferred() as caught:
            if not mine:
                return Outcome(name, None, busy=True)
            if row := _finished(folder, name, chosen):  # another process has finished it
                return Outcome(name, row)
            if time.monotonic() >= until:  # nothing is created or saved before a run starts
                return Outcome(name, None)
            options: dict[str, Any] = dict(until=until, caught=caught, progress=progress)
            job = _opened(recipe, chosen, folder, name, build, devices, **options)
            drive(job)
            if not job.finished:
                job.save()
                return Outcome(name, None)
            return Outcome(name, job.finish(folder, keep_weights))


def _finished(folder: Path, name: str, images: Images) -> dict[str, Any] | None:
    """The row with a given name; None if there is no such row.

    Raises:
        ValueError: the images of the row have the same bytes but other shapes or classes.
    """
    row = read_row(folder, name)
    expected = dict(shape=[*images.train[0].shape[1:]], classes=len(images.classes))
    recorded = row and {field: row["images"][field] for field in expected}
    if recorded and recorded != expected:
        raise ValueError(
            f"experiment: {folder} has a row of these bytes as images of {recorded}; expected "
            f"{expected}, try another folder"
        )
    return row


def _opened(
    recipe: Recipe,
    images: Images,
    folder: Path,
    name: str,
    build: Build,
    devices: _program.Devices,
    **options: Any,
) -> Job:
    """The run at its last saved step, or before its first step."""
    X = images.train[0]
    model = build(recipe, X.shape[1:], len(images.classes), _rngs(recipe))
    _recipe.penalised(recipe, model)  # raises if gamma is positive and there are no layers
    program = _shared_program(
        dataclasses.replace(recipe, seed=0, gamma=0.0),
        build,
        X.shape[1:],
        len(images.classes),
        len(X) // recipe.batch,
        _recipe.moments_of(X, recipe),
        devices,
    )
    state, curve, seconds = _program.start(program, model), [], 0.0
    if (path := folder / STATES / f"{name}.npz").is_file():
        state, record = restore_tree(path, state)
        curve, seconds = record["curve"], record["seconds"]
    return Job(recipe, images, path, name, program, state, curve, seconds, devices, **options)


@functools.lru_cache(maxsize=16)
def _shared_program(
    recipe, build, shape, classes, steps_per_epoch, moments, devices
) -> _program.Program:
    """The program for runs that differ only in seed and gamma, compiled once in a process."""
    model = build(recipe, shape, classes, _rngs(recipe))
    taps = _recipe.penalised(recipe, model)
    return _program.make_program(model, taps, recipe, shape, steps_per_epoch, moments, devices)


def _rngs(recipe: Recipe) -> nnx.Rngs:
    return nnx.Rngs(jax.random.fold_in(_program.key_of(recipe), 0))


@checked
def sweep(
    recipes: Iterable[Recipe],
    images: Images | Any,
    folder: str | Path,
    *,
    build: Build = build_model,
    minutes: float = math.inf,
    keep_weights: bool = True,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Sweep:
    """Run all recipes that have no row yet; several processes may share a folder.

    Args:
        recipes, images, folder, build, keep_weights, progress, mesh: as in `run`.
        minutes: time budget. When the budget is spent, the current run stops after its epoch and is
            saved.

    Raises:
        ValueError: minutes is not positive, or as in `run`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ur.vision.experiments.sweep([], ur.vision.experiments.load("digits"), folder).open
        []
    """
    if not minutes > 0:
        raise ValueError(f"experiment: the budget must be above 0 minutes, got {minutes}")
    until, recipes = time.monotonic() + 60 * minutes, list(recipes)
    options: dict[str, Any] = dict(build=build, keep_weights=keep_weights, until=until, mesh=mesh)
    outcomes: list[Outcome] = []
    for i, recipe in enumerate(recipes, start=1):
        placed = _placed(progress, f"{i} of {len(recipes)}: ")
        outcomes.append(run(recipe, images, folder, progress=placed, **options))
    # By now other processes may have finished some of their runs.
    records = {of.name: of.row or read_row(Path(folder), of.name) for of in outcomes}
    rows = {name: row for name, row in records.items() if row}
    return Sweep(
        rows,
        [of.name for of in outcomes if not (of.row or of.busy)],
        [of.name for of in outcomes if of.busy and of.name not in rows],
    )


def _placed(progress: Progress | None, place: str) -> Progress | None:
    """A progress function that puts the place of a run in a grid before its name."""
    if progress is None:
        return None

    def tell(name: str, done: int, steps: int, text: str) -> None:
        progress(place + name, done, steps, text)

    return tell
