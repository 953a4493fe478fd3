"""End-to-end training: one compiled step, samples drawn on the device, thresholds non-negative, the best params kept."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries._base import as_dictionary, normalized
from unrolled.layers._unroll import Fixed, Layer
from unrolled.networks import Network
from unrolled.training._losses import supervised

_VALIDATION_BATCHES = 8


class Record(NamedTuple):
    """What is known at one look at the training."""

    step: int  # steps done
    loss: float  # mean training loss since the last look; nan before the first step
    validation: float  # loss on the validation batch
    seconds: float  # since the start


class History(NamedTuple):
    """The course of a training."""

    loss: np.ndarray  # (steps,) training loss at every step
    records: tuple[Record, ...]


class Fit(NamedTuple):
    """The result of a training."""

    params: Any  # after the last step
    best: Any  # with the smallest validation loss, the start included
    D: Any  # as given, or as learned together with `best`
    history: History


class NonFiniteError(FloatingPointError):
    """The loss, its gradient or an update stopped being finite; `fit` holds what was reached before."""

    def __init__(self, message: str, fit: Fit):
        super().__init__(message)
        self.fit = fit


class Trained(NamedTuple):
    """What the optimiser sees: the params and the dictionary, with None at every leaf that is not trained."""

    params: Any
    D: Any


def fit(
    model: Layer | Network,
    params: Any,
    D: Any,
    sample: Callable,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: Array,
    loss: Callable = supervised,
    learn_dictionary: bool = False,
    validation: tuple | None = None,
    evaluate_every: int = 50,
    callbacks: Iterable[Callable] = (),
    log: str | Path | None = None,
    progress: bool | None = None,
) -> Fit:
    """Train params (and D) from where they are, by any optax optimiser.

    Step k draws its batch as `sample(fold_in(key, k))` inside the one compiled step, so a run is a function of its
    arguments. Fields named `theta` are trained as abs(theta): thresholds stay non-negative. Leaves inside a `layers.Fixed`
    (ALISTA's W) are not touched, whatever the optimiser does. A learned D keeps unit atoms.

    Args:
        model: a layer, or a network with tuples for `params` and `D`.
        params: the start, from `init` or `analytic`.
        D: the dictionary that the model uses (the sampler may use another).
        sample: `sample(key) -> (Y, X)`, a batch of signals (batch, m) and codes (batch, d); X may be None for an
            unsupervised loss, and a tuple for a network.
        optimizer: sees `Trained(params, D)`, with None at every leaf that is not trained.
        steps: how many.
        key: of the samples.
        loss: `loss(codes, X, D, Y)`, see `training.supervised`, `log_nmse`, `lasso`, `reconstruction` and `deep`.
        learn_dictionary: train D too.
        validation: (Y, X) to choose `best` by; None draws eight batches that training does not use.
        evaluate_every: steps between two looks, which is when callbacks run and a line is logged.
        callbacks: each called as `callback(record, params)` on the host.
        log: a file that gets one JSON line per look.
        progress: show a bar; None shows one on a terminal.

    Raises:
        NonFiniteError: a loss, gradient or update that is not finite; the message names the step, and its `fit` holds the
            params before that step (after a broken update the best ones) and the best ones.
        TypeError: not an optax optimiser, not a model, params without floating leaves.
        ValueError: a batch that does not fit or is not finite, steps or evaluate_every out of range.
    """
    steps = _checks.as_index(steps, "steps", "fit")
    evaluate_every = _checks.as_index(evaluate_every, "evaluate_every", "fit", least=1)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"fit: optimizer must be an optax GradientTransformation, got {type(optimizer).__name__}")
    key = jax.random.key(int(key)) if isinstance(key, int | np.integer) else key
    D = tuple(as_dictionary(Dj, "fit") for Dj in D) if isinstance(D, tuple | list) else as_dictionary(D, "fit")
    validation = _validation(sample, key, steps) if validation is None else validation
    _check_batch(validation, D)
    codes = _codes_of(model)
    trained, fixed = _split(params, D, learn_dictionary)

    def objective(trained, fixed, Y, X):
        params, D = _merge(trained, fixed)
        return loss(codes(params, D, Y), X, D, Y)

    def advance(trained, state, gradients):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in its own scalars
            updates, state = optimizer.update(gradients, state, trained)
            trained = optax.apply_updates(trained, updates)
        return trained._replace(D=_unit_atoms(trained.D)) if learn_dictionary else trained, state

    def update(trained, state, bad, fixed, k):
        Y, X = sample(jax.random.fold_in(key, k))
        value, gradients = jax.value_and_grad(objective)(trained, fixed, Y, X)
        good = jnp.isfinite(value) & _all_finite(gradients)
        bad = jnp.where(good | (bad >= 0), bad, k)
        # A branch, not a selection: selecting afterwards would read and write all params once more.
        trained, state = jax.lax.cond(bad < 0, advance, lambda t, s, _: (t, s), trained, state, gradients)
        return trained, state, jnp.where(_all_finite(trained) | (bad >= 0), bad, k), value

    # The compiled step consumes its arguments: copies keep the caller's params, and states that hold the start, apart.
    trained = _copy(trained)
    loop = _Loop(jax.jit(update, donate_argnums=(0, 1, 2)), jax.jit(objective), fixed, validation)
    with _bar(steps, progress) as show, _writer(log) as write:
        return loop.run(trained, _copy(optimizer.init(trained)), steps, evaluate_every, (*callbacks, show, write))


class _Loop(NamedTuple):
    """The host's side of a training: when to look, what is best, when to stop."""

    update: Callable
    objective: Callable
    fixed: Any
    validation: tuple

    def run(self, trained, state, steps: int, evaluate_every: int, callbacks) -> Fit:
        bad = jnp.full((), -1, jnp.int32)
        losses, records = np.empty(0), []
        best, lowest = trained, np.inf
        began = time.perf_counter()
        for done in [*range(0, steps, evaluate_every), steps]:
            pending = []
            for k in range(len(losses), done):
                trained, state, bad, value = self.update(trained, state, bad, self.fixed, k)
                pending.append(value)
            recent = np.asarray([float(value) for value in pending])
            losses = np.concatenate([losses, recent])
            value = float(self.objective(trained, self.fixed, *self.validation))
            loss = recent.mean() if len(recent) else np.nan
            records.append(Record(done, float(loss), value, time.perf_counter() - began))
            if value < lowest:
                best, lowest = _copy(trained), value
            last = _copy(trained) if _all_finite(trained) else best
            history = History(losses, tuple(records))
            result = Fit(_merge(last, self.fixed).params, *_merge(best, self.fixed), history)
            _stop_unless_finite(int(bad), result)
            for callback in callbacks:
                callback(records[-1], result.params)
        return result


def _stop_unless_finite(bad: int, result: Fit) -> None:
    last = result.history.records[-1]
    if bad < 0 and np.isfinite(last.validation):
        return
    if bad >= 0:
        loss = result.history.loss[bad]
        what = (
            f"training stopped at step {bad}: the loss is {loss:.4g}, and it, its gradient or the update is not finite"
        )
    else:
        what = f"training stopped at step {last.step}: the validation loss is {last.validation}"
    hint = "try a smaller learning rate or optax.clip_by_global_norm"
    raise NonFiniteError(f"fit: {what}; `.fit` of this error holds the params before it and the best; {hint}", result)


def _codes_of(model) -> Callable:
    """`codes(params, D, Y)`: (K, batch, d) for a layer, a tuple over the blocks for a network."""
    if isinstance(model, Layer):
        return jax.vmap(model.iterates, (None, None, 0), out_axes=1)
    if isinstance(model, Network):
        return jax.vmap(model.apply, (None, None, 0))
    raise TypeError(f"fit: expected a Layer or a Network, got {type(model).__name__}")


def _split(params, D, learn_dictionary: bool) -> tuple[Trained, Trained]:
    """Trained and fixed leaves, as two trees with None at the places of the other."""

    def is_fixed(node):
        return isinstance(node, Fixed)

    def mark(node):
        return jax.tree.map(lambda leaf: not is_fixed(node) and _is_float(leaf), node)

    whole = Trained(params, D)
    trains = Trained(
        jax.tree.map(mark, params, is_leaf=is_fixed), jax.tree.map(lambda leaf: learn_dictionary and _is_float(leaf), D)
    )
    trained = jax.tree.map(lambda t, leaf: jnp.asarray(leaf) if t else None, trains, whole)
    if not jax.tree.leaves(trained):
        raise TypeError("fit: there is no floating-point leaf to train")
    return trained, jax.tree.map(lambda t, leaf: None if t else leaf, trains, whole)


def _merge(trained: Trained, fixed: Trained) -> Trained:
    """The whole of params and D, with every theta as the non-negative abs(theta)."""

    def one(path, t, f):
        if t is None:
            return f
        # Not jnp.abs: its derivative at 0 is 0, and a threshold that starts at 0 would never move.
        return jnp.where(t >= 0, t, -t) if getattr(path[-1], "name", None) == "theta" else t

    return jax.tree_util.tree_map_with_path(one, trained, fixed, is_leaf=lambda leaf: leaf is None)


def _unit_atoms(D):
    """D, or each of a tuple, with its atoms scaled to norm 1."""
    if isinstance(D, tuple):
        return tuple(_unit_atoms(Dj) for Dj in D)
    return normalized(D)[0]


def _is_float(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _all_finite(tree) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _validation(sample, key, steps: int):
    """Batches from keys that no training step uses."""
    keys = jax.random.split(jax.random.fold_in(key, steps), _VALIDATION_BATCHES)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[jax.jit(sample)(k) for k in keys])


def _check_batch(batch, D) -> None:
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise TypeError("fit: sample must return (Y, X), signals and codes")
    Y, X = batch
    m = (D[0] if isinstance(D, tuple) else D).shape[0]
    if np.ndim(Y) != 2 or Y.shape[1] != m or not len(Y):
        raise ValueError(f"fit: signals have shape {np.shape(Y)}; expected (batch, {m}) with batch at least 1")
    Ds = D if isinstance(D, tuple) else (D,)
    targets = X if isinstance(X, tuple) else (X,)
    for Dj, target in zip(Ds[-len(targets) :], targets):
        if target is not None and np.shape(target) != (len(Y), Dj.shape[1]):
            raise ValueError(f"fit: codes have shape {np.shape(target)}; expected {(len(Y), Dj.shape[1])}")
    _checks.finite(batch, "the batch of sample", "fit")


@contextmanager
def _writer(log):
    """A callback that appends one JSON line per look to the file `log`."""
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
def _bar(steps: int, progress: bool | None):
    """A callback that moves a progress bar, on a terminal or on request."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda record, params: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=steps)

        def advance(record, params):
            bar.update(task, completed=record.step, description=f"training, validation loss {record.validation:.4g}")

        yield advance
