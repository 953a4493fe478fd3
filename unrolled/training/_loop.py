"""The compiled training step, and the loop on the host around it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled._base.checks import Array
from unrolled._base.files import Draws, as_argument
from unrolled._base.processes import Processes, processes_of
from unrolled.training._mesh import Placement, Sharing, batches, mean, places_of, with_gradient
from unrolled.training._objective import Data, Objective
from unrolled.training._types import Fit, History, NonFiniteError, Progress, Record, Sample, Trained


def make_loop(
    objective: Objective, data: Data, optimizer: optax.GradientTransformation, shared: Sharing
) -> "Loop":
    """Compile a run once, for any number of stages."""
    place = places_of(shared.mesh, data.start, objective.where)
    _, given, validation, key = data.signals
    sample = as_argument(given)
    if shared.mesh is None:
        sample = _placed(sample, data.trained)
    key, trained, fixed, sample = place((key, data.trained, data.fixed, sample))
    validation = place.batch(validation)
    # Line searches and similar optimisers need the loss as a number and as a function.
    informed = optax.with_extra_args_support(optimizer)
    step = _Step(objective, informed, key, shared, place)
    compiled = partial(jax.jit, compiler_options=shared.compiler)
    zero, ista = compiled(objective.baseline_losses)(trained, fixed, validation)
    return Loop(
        objective,
        compiled(step.update, donate_argnums=(0, 1, 2)),
        compiled(objective.evaluated),
        compiled(jax.value_and_grad(step.inspected, has_aux=True)),
        float(zero),
        float(ista),
        partial(compiled(lambda sample, k: batches(key, k, shared.batches, sample)), sample),
        given,
        sample,
        optimizer,
        fixed,
        validation,
        place,
        processes_of(shared.mesh, objective.where),
    )


def _placed(sample: Any, trained: Any) -> Any:
    """The sampler with its arrays on the devices of the params, for a compiled step."""
    devices = {d for leaf in jax.tree.leaves(trained) for d in jnp.asarray(leaf).devices()}

    def of_leaf(leaf):
        apart = isinstance(leaf, jax.Array) and leaf.devices() != devices
        return jnp.asarray(np.asarray(leaf) if apart else leaf)

    return jax.tree.map(of_leaf, sample)


@dataclass(frozen=True, eq=False)
class _Step:
    """One training step."""

    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    key: Array
    shared: Sharing
    place: Placement

    def inspected(self, free, others, fixed, batch, at):
        trained = self.objective.join(free, others)
        return self.objective.judged(trained, fixed, batch, at, every=True)

    def gradient(self, free, others, fixed, sample, k, at):
        """The loss of step k, its gradient, `others` after the step, and the loss as a function."""
        key = jax.random.fold_in(self.key, k)
        learned = partial(self.objective.learned, others=others, fixed=fixed, at=at)
        if self.shared.batches == 1:
            batch = sample(key)
            (value, others), gradients = jax.value_and_grad(learned, has_aux=True)(
                free, batch=batch
            )
            return value, gradients, others, lambda free: learned(free, batch=batch)[0]

        def judge(key, free, fixed, sample, at):
            return self.objective.evaluated(free, fixed, sample(key), at)

        def average(free):
            of_batch = jax.value_and_grad(judge, argnums=1)
            return mean(of_batch, key, self.shared, free, fixed, sample, at)

        return *average(free), others, with_gradient(average)

    def update(self, trained, state, bad, fixed, sample, k, at):
        """The leaves and the optimiser after step k, the first non-finite step, and the loss."""
        free, others = self.objective.free(trained)
        value, gradients, changed, value_fn = self.gradient(free, others, fixed, sample, k, at)
        good = jnp.isfinite(value) & all_finite(gradients)
        bad = jnp.where(good | (bad >= 0), bad, k)

        def advance(free, state, others, changed, gradients):
            informed = dict(value=value, grad=gradients, value_fn=value_fn)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes scalars of several dtypes
                updates, state = self.optimizer.update(gradients, state, free, **informed)
                free = optax.apply_updates(free, updates)
            return self.objective.admissible(free, fixed), state, changed

        # A branch, because `jnp.where` would read and write all params once more.
        free, state, others = jax.lax.cond(
            bad < 0, advance, lambda *parts: parts[:3], free, state, others, changed, gradients
        )
        trained = self.objective.join(free, others)
        if self.place.sizes is not None:  # keep the split leaves on their devices
            trained, state = self.place((trained, state))
        return trained, state, jnp.where(all_finite(trained) | (bad >= 0), bad, k), value


class Loop(NamedTuple):
    """A compiled run; the method `run` continues from a `Progress`."""

    objective: Objective
    update: Callable
    evaluate: Callable
    inspect: Callable  # returns codes and gradients, to explain a fault; see `inspected`
    zero: float  # the validation loss of zero codes
    ista: float  # the validation loss of ISTA at the same depth; nan if there is no ISTA
    batch: Callable
    sample: Sample
    draw: Sample  # the sampler that is an argument of `update`
    optimizer: optax.GradientTransformation
    fixed: Trained
    validation: tuple
    place: Placement
    processes: Processes

    @property
    def where(self) -> str:
        """The name of the public function that trains."""
        return self.objective.where

    def inspected(self, trained: Trained, batch: tuple, at: int) -> tuple[Any, Any, Any]:
        """The loss of a batch, its codes, and its gradients."""
        free, others = self.objective.free(trained)
        (value, codes), gradients = self.inspect(free, others, self.fixed, batch, at)
        return value, codes, gradients

    def start(self, trained: Trained) -> Progress:
        """The state before the first step.

        The compiled step consumes its arguments, so `start` copies the caller's params.
        """
        trained = copy(self.place(trained))
        optimizer = copy(self.place(self._state_of(self.objective.free(trained)[0])))
        return Progress(
            trained,
            optimizer,
            step=0,
            stage=0,
            best=trained,
            lowest=np.inf,
            best_at=0,
            losses=np.empty(0),
            records=(),
        )

    def _state_of(self, free: Trained) -> Any:
        """The first state of the optimiser; raises ValueError if labels do not fit the tree."""
        try:
            return self.optimizer.init(free)
        except ValueError as error:
            if "pytree" not in str(error):
                raise
            raise ValueError(
                f"{self.where}: the optimizer has a tree that does not fit; it sees "
                "Trained(params, D), with None at every leaf that is not trained. For labels of "
                "the params try optax.multi_transform(transforms, "
                "ur.training.Trained(labels, None)), or a function of the tree"
            ) from error

    def run(
        self,
        state: Progress,
        stop: int,
        options: Any,
        watch: Callable[[Progress, int], None],
        *,
        at: int = -1,
        keeper: Any = None,
    ) -> Progress:
        """Train until step `stop`; at every evaluation call `watch(state, at)`.

        A saved state continues with the evaluations of its stage, even if the state was saved
        between two evaluations. After every step, `run` saves by `keeper.save` if `keeper.due`
        returns True.
        """
        stage = _Stage(self, state, stop, options, watch, at, keeper)
        drive(stage)
        return stage.state

    def result(self, state: Progress) -> Fit:
        """The result so far; its arrays stay usable if the training continues."""
        last = copy(state.trained) if all_finite(state.trained) else state.best
        history = History(state.losses, state.records, self.zero, self.ista)
        params, _ = self.objective.whole(last, self.fixed)
        best, D = self.objective.whole(state.best, self.fixed)
        seconds = state.records[-1].seconds if state.records else 0.0
        return Fit(params, best, D, history, self.objective.model, seconds=seconds)

    def stop_unless_finite(self, state: Progress, bad: int, at: int) -> None:
        """Raise NonFiniteError if training step `bad` or the last validation loss is not finite."""
        last = state.records[-1]
        if bad < 0 and np.isfinite(last.validation):
            return
        if all_finite(state.trained):
            batch = self.validation if bad < 0 else self.batch(bad)
            value, codes, gradients = self.inspected(state.trained, batch, at)
            place = place_of_non_finite(codes, value, gradients)
        else:
            place = place_of_non_finite((), 0.0, state.trained, "")
        if bad >= 0:
            what = (
                f"training stopped at step {bad}: the loss is {state.losses[bad]:.4g}, "
                "and it, its gradient or the update is not finite"
            )
        else:
            what = f"training stopped at step {last.step}: the validation loss is {last.validation}"
        first = f", first in {place}" if place else ""
        remedy = "a smaller learning rate or optax.clip_by_global_norm"
        if last.step == 0:  # nothing has been trained
            remedy = "smaller weights or step sizes, another family, or analytic.calibrate"
        raise NonFiniteError(
            f"{self.where}: {what}{first}; `.fit` of this error holds the params before it and the "
            f"best; try {remedy}",
            self.result(state),
        )


class Course(Protocol):
    """A run for `drive`; its methods change the run in place."""

    @property
    def step(self) -> int:
        """The number of steps done."""

    def next_end(self) -> int | None:
        """The step of the next evaluation, which may be the current step; None at the end."""

    def advance(self) -> None:
        """Take one step."""

    def pause(self) -> None:
        """Save between two steps, if a save is due."""

    def evaluate(self) -> None:
        """Evaluate the params, and save if a save is due."""


def drive(course: Course) -> None:
    """The loop on the host: take steps, and evaluate at each step that `next_end` returns."""
    while (end := course.next_end()) is not None:
        while course.step < end:
            course.advance()
            if course.step < end:
                course.pause()
        course.evaluate()


@dataclass
class _Stage:
    """One stage of `fit`; `state` is its progress."""

    loop: Loop
    state: Progress
    stop: int
    options: Any
    watch: Callable[[Progress, int], None]
    at: int
    keeper: Any

    def __post_init__(self):
        records = self.state.records
        self.began = time.perf_counter() - (records[-1].seconds if records else 0.0)
        self.bad = jnp.full((), -1, jnp.int32)
        self.pending: list[Array] = []  # losses that may not be computed yet

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def evaluated(self) -> list[int]:
        """The steps of the evaluations of this stage."""
        return [record.step for record in self.state.records if record.stage == self.state.stage]

    def next_end(self) -> int | None:
        if not (evaluated := self.evaluated):
            return self.step
        if evaluated[-1] >= self.stop or _is_stale(self.state, self.options.patience):
            return None
        every = self.options.evaluate_every
        left = every - (evaluated[-1] - evaluated[0]) % every  # counted from a former last step
        return min(evaluated[-1] + left, self.stop)

    def advance(self) -> None:
        loop, state = self.loop, self.state
        trained, optimizer, self.bad, value = loop.update(
            state.trained, state.optimizer, self.bad, loop.fixed, loop.draw, state.step, self.at
        )
        self.pending.append(value)
        self.state = state._replace(trained=trained, optimizer=optimizer, step=state.step + 1)

    def pause(self) -> None:
        due = self.keeper is not None and self.keeper.due(self.step, evaluated=False)
        if due and int(self.bad) < 0:
            self._collect()
            self.keeper.save(self.state)

    def evaluate(self) -> None:
        self._collect()
        loop, state, done = self.loop, self.state, self.step
        recent = state.losses[self.evaluated[-1] if self.evaluated else done : done]
        value = float(loop.evaluate(state.trained, loop.fixed, loop.validation, self.at))
        loss = float(recent.mean()) if len(recent) else np.nan
        record = Record(done, loss, value, time.perf_counter() - self.began, state.stage)
        state = state._replace(records=(*state.records, record))
        if value < state.lowest:
            state = state._replace(best=copy(state.trained), lowest=value, best_at=done)
        self.state = state
        loop.stop_unless_finite(state, int(self.bad), self.at)
        self.watch(state, self.at)
        if self.keeper is not None and self.keeper.due(done, evaluated=True):
            self.keeper.save(state)

    def _collect(self) -> None:
        """Wait for the losses of the last steps."""
        losses = np.concatenate([self.state.losses, [float(value) for value in self.pending]])
        self.pending.clear()
        self.state = self.state._replace(losses=losses)
        if isinstance(self.loop.sample, Draws):
            self.loop.processes.on_all(self.loop.sample.check)


def _is_stale(state: Progress, patience: int | None) -> bool:
    """Whether the state is at an evaluation at which `best` is `patience` steps old."""
    return (
        patience is not None
        and state.records[-1].step == state.step
        and state.step - state.best_at >= patience
    )


def place_of_non_finite(codes, loss, tree: Trained, of: str = "the gradient of ") -> str:
    """Name the first non-finite code, or else a non-finite loss, or else a leaf of `tree`.

    The named leaf is the leaf that is not finite at the earliest step. The result is "" if all
    codes, the loss and all leaves are finite.
    """
    for k, x in enumerate(codes):
        if not np.isfinite(x).all():
            return f"codes[{k}]"
    if not np.isfinite(loss):
        return "the loss, of finite codes"
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    places = [_step_and_name(path, leaf) for path, leaf in leaves if not all_finite(leaf)]
    return of + min(places)[1] if places else ""


def _step_and_name(path, leaf) -> tuple[float, str]:
    """The first step with a non-finite entry (infinity for a shared leaf), and the leaf's name."""
    keys = [getattr(entry, "name", getattr(entry, "idx", None)) for entry in path]
    name = jax.tree_util.keystr(path).lstrip(".")
    if "steps" not in keys:
        return np.inf, name
    k = keys[keys.index("steps") + 1]
    if isinstance(k, int):
        return k, name
    k = int(np.argmin(np.isfinite(leaf).reshape(len(leaf), -1).all(1)))  # axis 0 has K entries
    return k, f"{name}[{k}]"


def copy(tree: Any) -> Any:
    """A copy of the tree, each leaf in a new buffer."""
    return jax.tree.map(jnp.copy, tree)


def all_finite(tree: Any) -> Array:
    """Whether all floating-point and complex leaves are finite, as an array of shape ()."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(leaf).all() for leaf in leaves], bool).all()
