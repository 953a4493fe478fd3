"""The compiled training step, and the loop on the host around it."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from unrolled._beside import codes_of_ista
from unrolled._checks import Array
from unrolled._processes import Processes, processes_of
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.training._mesh import batches, mean, placed, with_gradient
from unrolled.training._protocols import Sample
from unrolled.training._records import (
    Fit,
    History,
    Model,
    NonFiniteError,
    Progress,
    Record,
    Trained,
)
from unrolled.training._split import merge, with_unit_atoms


def make_loop(
    where: str,
    model: Model,
    loss: Callable[..., Array],
    sample: Sample,
    optimizer: optax.GradientTransformation,
    key: Array,
    trained: Trained,
    fixed: Trained,
    validation: tuple,
    lam: Any = None,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> "Loop":
    """Compile a run once, for any number of stages.

    `loss(codes, X, D, Y, at)`: `at` is a traced number that may differ from stage to stage. `lam`
    is that of the ISTA beside which a layer is judged; None for none. A step sees `accumulate`
    batches, which the devices of the mesh share.
    """
    codes, place = codes_of(model, where), partial(placed, mesh=mesh)
    key, trained, fixed, validation = place((key, trained, fixed, validation))
    # Line searches and the like ask for the loss: as a number and as a function.
    informed = optax.with_extra_args_support(optimizer)
    learns_dictionary = bool(jax.tree.leaves(trained.D))

    def judged(trained, fixed, batch, at):
        params, D = merge(trained, fixed)
        Y, X, *own = batch
        D, axis = (own[0], 0) if own else (D, None)
        found = codes(params, D, Y, axis)
        return _scalar(loss(found, X, D, Y, at), where), found

    def objective(trained, fixed, batch, at):
        return judged(trained, fixed, batch, at)[0]

    def of_others(trained, fixed, batch):
        """The loss of zero codes, and of ISTA at the same depth."""
        D = merge(trained, fixed).D
        Y, X, *own = batch
        found = jax.tree.map(jnp.zeros_like, judged(trained, fixed, batch, -1)[1])
        zero = loss(found, X, own[0] if own else D, Y, -1)
        if lam is None or own or not isinstance(model, Layer) or not model.depth:
            return zero, jnp.nan
        return zero, loss(codes_of_ista(D, lam, model.depth, Y, where), X, D, Y, -1)

    def advance(trained, state, gradients, **told):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in its own scalars
            updates, state = informed.update(gradients, state, trained, **told)
            trained = optax.apply_updates(trained, updates)
        if learns_dictionary:
            trained = trained._replace(D=with_unit_atoms(trained.D))
        return trained, state

    def judge(key, trained, fixed, at):
        return objective(trained, fixed, sample(key), at)

    def gradient(trained, fixed, k, at):
        """The loss of a step and its gradient, and the loss as a function."""
        step_key = jax.random.fold_in(key, k)
        if accumulate == 1:
            value_fn = partial(objective, fixed=fixed, batch=sample(step_key), at=at)
            return *jax.value_and_grad(value_fn)(trained), value_fn

        def average(trained):
            of_batch = jax.value_and_grad(judge, argnums=1)
            return mean(of_batch, step_key, accumulate, mesh, trained, fixed, at)

        return *average(trained), with_gradient(average)

    def update(trained, state, bad, fixed, k, at):
        value, gradients, value_fn = gradient(trained, fixed, k, at)
        told = dict(value=value, grad=gradients, value_fn=value_fn)
        good = jnp.isfinite(value) & all_finite(gradients)
        bad = jnp.where(good | (bad >= 0), bad, k)
        # A branch, not a selection: selecting afterwards would read and write all params once more.
        trained, state = jax.lax.cond(
            bad < 0, partial(advance, **told), lambda t, s, _: (t, s), trained, state, gradients
        )
        return trained, state, jnp.where(all_finite(trained) | (bad >= 0), bad, k), value

    zero, of_ista = jax.jit(of_others)(trained, fixed, validation)
    return Loop(
        where,
        model,
        jax.jit(update, donate_argnums=(0, 1, 2)),
        jax.jit(objective),
        jax.jit(jax.value_and_grad(judged, has_aux=True)),
        float(zero),
        float(of_ista),
        jax.jit(lambda k: batches(key, k, accumulate, sample)),
        optimizer,
        fixed,
        validation,
        place,
        processes_of(mesh, where),
    )


def _scalar(loss: Any, where: str) -> Any:
    """The loss; TypeError unless it is one floating-point number."""
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise TypeError(
            f"{where}: the loss is {jnp.result_type(loss)} of shape {jnp.shape(loss)}; expected "
            "one floating-point number, try jnp.mean"
        )
    return loss


class Loop(NamedTuple):
    """A compiled training; `run` continues a `Progress` from where it is."""

    where: str
    model: Model
    update: Callable
    objective: Callable
    inspect: Callable  # codes and gradients, where something is wrong
    zero: float  # the validation loss of zero codes
    ista: float  # and of ISTA at the same depth; nan where there is none
    batch: Callable
    optimizer: optax.GradientTransformation
    fixed: Trained
    validation: tuple
    place: Callable[[Any], Any]  # where arrays belong: on all devices of a mesh
    processes: Processes

    def start(self, trained: Trained) -> Progress:
        """The state before the first step.

        The compiled step consumes its arguments: copies keep the caller's params apart.
        """
        trained = copy(self.place(trained))
        optimizer = copy(self.place(self.optimizer.init(trained)))
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

    def run(
        self,
        state: Progress,
        stop: int,
        every: int,
        watch: Callable[[Progress, int], None],
        *,
        patience: int | None = None,
        at: int = -1,
        keeper: Any = None,
    ) -> Progress:
        """Train until step `stop`; every so many steps evaluate, then call `watch(state, at)`.

        A saved state, also one between two evaluations, continues with the evaluations of its
        stage. A `keeper` is asked after every step whether it is `due` to `save`.
        """
        bad = jnp.full((), -1, jnp.int32)
        began = time.perf_counter() - (state.records[-1].seconds if state.records else 0.0)
        evaluations = [record.step for record in state.records if record.stage == state.stage]
        first, evaluated = (evaluations[0], evaluations[-1]) if evaluations else (state.step, None)
        if evaluations and _is_stale(state, patience):
            return state
        for done in [*range(first, stop, every), stop]:
            if evaluated is not None and done <= evaluated:  # before this state was saved
                continue
            state, bad = self._advance(state, bad, done, at, keeper)
            recent = state.losses[done if evaluated is None else evaluated : done]
            value = float(self.objective(state.trained, self.fixed, self.validation, at))
            loss, evaluated = float(recent.mean()) if len(recent) else np.nan, done
            record = Record(done, loss, value, time.perf_counter() - began, state.stage)
            state = state._replace(records=(*state.records, record))
            if value < state.lowest:
                state = state._replace(best=copy(state.trained), lowest=value, best_at=done)
            self._stop_unless_finite(state, int(bad), at)
            watch(state, at)
            if keeper is not None and keeper.due(done, evaluated=True):
                keeper.save(state)
            if _is_stale(state, patience):
                break
        return state

    def _advance(
        self, state: Progress, bad: Array, done: int, at: int, keeper: Any
    ) -> tuple[Progress, Array]:
        """The state after step `done`, without an evaluation."""
        trained, optimizer = state.trained, state.optimizer
        pending: list[Array] = []

        def collected(step):
            losses = np.concatenate([state.losses, np.asarray([float(value) for value in pending])])
            return state._replace(trained=trained, optimizer=optimizer, step=step, losses=losses)

        for k in range(state.step, done):
            trained, optimizer, bad, value = self.update(trained, optimizer, bad, self.fixed, k, at)
            pending.append(value)
            due = keeper is not None and k + 1 < done and keeper.due(k + 1, evaluated=False)
            if due and int(bad) < 0:
                state = collected(k + 1)
                pending.clear()
                keeper.save(state)
        return collected(done), bad

    def result(self, state: Progress) -> Fit:
        """The result so far; it stays usable when the training continues."""
        last = copy(state.trained) if all_finite(state.trained) else state.best
        history = History(state.losses, state.records, self.zero, self.ista)
        best = merge(state.best, self.fixed)
        return Fit(merge(last, self.fixed).params, *best, history, self.model)

    def _stop_unless_finite(self, state: Progress, bad: int, at: int) -> None:
        """Raise NonFiniteError after a step that was `bad`, or for the last validation loss."""
        last = state.records[-1]
        if bad < 0 and np.isfinite(last.validation):
            return
        if all_finite(state.trained):
            batch = self.validation if bad < 0 else self.batch(bad)
            (value, codes), gradients = self.inspect(state.trained, self.fixed, batch, at)
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
        found = f", first in {place}" if place else ""
        raise NonFiniteError(
            f"{self.where}: {what}{found}; `.fit` of this error holds the params before it and the "
            "best; try a smaller learning rate or optax.clip_by_global_norm",
            self.result(state),
        )


def _is_stale(state: Progress, patience: int | None) -> bool:
    """True at an evaluation at which `best` is `patience` steps old."""
    return (
        patience is not None
        and state.records[-1].step == state.step
        and state.step - state.best_at >= patience
    )


def place_of_non_finite(codes, loss, tree: Trained, of: str = "the gradient of ") -> str:
    """The first code that is not finite, else the loss, else the leaf of `tree` of the least step.

    "" if all are finite.
    """
    for k, x in enumerate(codes):
        if not np.isfinite(x).all():
            return f"codes[{k}]"
    if not np.isfinite(loss):
        return "the loss, of finite codes"
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    places = [_step_and_name(path, leaf) for path, leaf in leaves if not np.isfinite(leaf).all()]
    return of + min(places)[1] if places else ""


def _step_and_name(path, leaf) -> tuple[float, str]:
    """The first step at which a leaf is not finite (infinity if it is shared), and its name."""
    keys = [getattr(entry, "name", getattr(entry, "idx", None)) for entry in path]
    name = jax.tree_util.keystr(path).lstrip(".")
    if "steps" not in keys:
        return np.inf, name
    k = keys[keys.index("steps") + 1]
    if isinstance(k, int):
        return k, name
    k = int(np.argmin(np.isfinite(leaf).reshape(len(leaf), -1).all(1)))  # stacked: K leads
    return k, f"{name}[{k}]"


def codes_of(model: Model, where: str) -> Callable[..., Any]:
    """`codes(params, D, Y, axis)`: (K, batch, d) for a layer, a tuple of blocks for a network.

    `axis` is 0 where every signal has a dictionary of its own, else None.
    """
    if isinstance(model, Layer):
        return lambda params, D, Y, axis: jax.vmap(model.iterates, (None, axis, 0), out_axes=1)(
            params, D, Y
        )
    if isinstance(model, Network):
        return lambda params, D, Y, axis: jax.vmap(model.apply, (None, axis, 0))(params, D, Y)
    raise TypeError(f"{where}: expected a Layer or a Network, got {type(model).__name__}")


def copy(tree: Any) -> Any:
    """Every leaf in a buffer of its own."""
    return jax.tree.map(jnp.copy, tree)


def all_finite(tree: Any) -> Array:
    """Whether all leaves are finite, ()."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
