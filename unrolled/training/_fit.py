"""End-to-end training: one compiled step, samples drawn on the device, thresholds non-negative, the
best params kept.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.training._checkpoint import Checkpoint
from unrolled.training._keeper import keeping, key_text
from unrolled.training._loop import Loop, codes_of, make_loop
from unrolled.training._losses import supervised
from unrolled.training._records import Fit, Trained
from unrolled.training._report import bar, writer
from unrolled.training._split import split

_VALIDATION_BATCHES = 8
_NO_STEP = np.uint32(2**32 - 1)


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
    trainable: Any = None,
    validation: tuple | None = None,
    evaluate_every: int = 50,
    patience: int | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    callbacks: Iterable[Callable] = (),
    log: str | Path | None = None,
    progress: bool | None = None,
) -> Fit:
    """Train params (and D) from where they are, by any optax optimiser.

    Step k draws its batch as `sample(fold_in(key, k))` inside the one compiled step, so a run is a
    function of its arguments. Fields named `theta` are trained as abs(theta): thresholds stay
    non-negative. Leaves inside a `layers.Fixed` (ALISTA's W), and those that `trainable` freezes,
    are not touched, whatever the optimiser does. A learned D keeps unit atoms.

    Args:
        model: a layer, or a network with tuples for `params` and `D`.
        params: the start, from `init` or `analytic`. A tuple of steps (`layers.unstack`) trains
            faster than stacked ones, and takes longer to compile.
        D: the dictionary that the model uses (the sampler may use another).
        sample: `sample(key) -> (Y, X)`, a batch of signals (batch, m) and codes (batch, d); X may
            be None for an unsupervised loss, and a tuple for a network. Or (Y, X, Ds) where every
            signal has a dictionary of its own, (batch, m, d): the model and the loss then see those
            (Ada-LISTA, robust ALISTA).
        optimizer: sees `Trained(params, D)`, with None at every leaf that is not trained.
        steps: how many at most.
        key: of the samples.
        loss: `loss(codes, X, D, Y)`, see `training.supervised`, `log_nmse`, `lasso`,
            `reconstruction` and `deep`.
        learn_dictionary: train D too.
        trainable: bools, a tree prefix of `params`: `Unrolled(False, StepAndThreshold(gamma=False,
            theta=True))`, or `Unrolled(True, (False, False, True))` for unstacked steps. None
            trains all.
        validation: (Y, X) to choose `best` by; None draws eight batches that training does not use.
        evaluate_every: steps between two looks, which is when callbacks run and a line is logged.
        patience: stop at the first look at which `best` is so many steps old; None never stops.
        checkpoint: a folder, or a `Checkpoint` that says how often. The same call again goes on
            from the newest saved step, bit for bit as if it had never stopped; `steps` may have
            grown. SIGINT and SIGTERM save before they leave.
        callbacks: each called as `callback(record, params)` on the host.
        log: a file that gets one JSON line per look.
        progress: show a bar; None shows one on a terminal.

    Raises:
        NonFiniteError: a loss, gradient or update that is not finite. The message names the step of
            the training, and the first code, gradient or param that is not finite where that can be
            told. Its `fit` holds the params before that step (after a broken update the best ones)
            and the best ones.
        TypeError: not an optax optimiser, not a model, params without floating leaves, a
            `trainable` that holds other things than bools.
        ValueError: a batch that does not fit or is not finite; steps, patience or evaluate_every
            out of range; a `trainable` that is no tree prefix of params or freezes everything.
        CheckpointError: the folder holds another run (the message has a table), is in use, damaged
            or cannot be written. Of the optimiser, loss and sampler only what shows in the first
            look and the first two steps is compared.
    """
    steps = _checks.as_index(steps, "steps", "fit")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"fit: optimizer must be an optax GradientTransformation, got {type(optimizer).__name__}"
        )
    evaluate_every, patience = check_looks(evaluate_every, patience, "fit")
    key, D, validation = check_data(model, D, sample, key, validation, "fit")
    if learn_dictionary and len(validation) == 3:
        raise ValueError(
            "fit: there is no dictionary to learn where every signal has one of its own; try (Y, X)"
        )
    trained, fixed = split(params, D, learn_dictionary, trainable, "fit")

    def whole(codes, X, D, Y, at):
        return loss(codes, X, D, Y)

    loop = make_loop("fit", model, whole, sample, optimizer, key, trained, fixed, validation)
    config = {"key": key_text(key), "evaluate_every": evaluate_every}
    with keeping(checkpoint, model, loop, config, Trained(params, D)) as keeper:
        state = loop.start(trained)
        loop, state = keeper.resume(state, steps) if keeper else (loop, state)
        with watcher(loop, steps, callbacks, log, progress) as watch:
            state = loop.run(state, steps, evaluate_every, watch, patience=patience, keeper=keeper)
        if keeper:
            keeper.save(state)
    return loop.result(state)


@contextmanager
def watcher(loop: Loop, steps: int, callbacks, log, progress):
    """`watch(state)`, to call at every look: the user's callbacks, the log and the bar."""
    with bar(steps, progress) as show, writer(log) as write:
        calls = (*callbacks, show, write)

        def watch(state):
            params = loop.result(state).params
            for callback in calls:
                callback(state.records[-1], params)

        yield watch


def check_looks(evaluate_every, patience, where: str) -> tuple[int, int | None]:
    """Both as integers of at least 1; patience may be None."""
    evaluate_every = _checks.as_index(evaluate_every, "evaluate_every", where, least=1)
    return evaluate_every, None if patience is None else _checks.as_index(
        patience, "patience", where, least=1
    )


def check_data(model, D, sample, key, validation, where: str):
    """The key, the dictionary and the validation batch of a training, checked; the batch is drawn
    if there is none.
    """
    key = jax.random.key(int(key)) if isinstance(key, int | np.integer) else key
    D = (
        tuple(as_dictionary(Dj, where) for Dj in D)
        if isinstance(D, tuple | list)
        else as_dictionary(D, where)
    )
    validation = _validation(sample, key) if validation is None else validation
    _check_batch(validation, D, where)
    codes_of(model, where)
    return key, D, validation


def _validation(sample, key):
    """Batches from keys that no training step uses."""
    keys = jax.random.split(jax.random.fold_in(key, _NO_STEP), _VALIDATION_BATCHES)
    return jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves), *[jax.jit(sample)(k) for k in keys]
    )


def _check_batch(batch, D, where: str) -> None:
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise TypeError(
            f"{where}: sample must return (Y, X), signals and codes, or (Y, X, Ds) with a dictionary each"
        )
    Y, X, *own = batch
    m = (D[0] if isinstance(D, tuple) else D).shape[0]
    if np.ndim(Y) != 2 or Y.shape[1] != m or not len(Y):
        raise ValueError(
            f"{where}: signals have shape {np.shape(Y)}; expected (batch, {m}) with batch at least 1"
        )
    Ds = D if isinstance(D, tuple) else (D,)
    targets = X if isinstance(X, tuple) else (X,)
    for Dj, target in zip(Ds[-len(targets) :], targets):
        if target is not None and np.shape(target) != (len(Y), Dj.shape[1]):
            raise ValueError(
                f"{where}: codes have shape {np.shape(target)}; expected {(len(Y), Dj.shape[1])}"
            )
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(own)]
    expected = [(len(Y), *np.shape(leaf)) for leaf in jax.tree.leaves(D)]
    if own and shapes != expected:
        raise ValueError(
            f"{where}: the dictionaries of the batch have shapes {shapes}; expected {expected}"
        )
    _checks.finite(batch, "the batch of sample", where)
