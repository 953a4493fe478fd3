"""Learning of atoms by gradients through the steps of a layer."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import training
from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Key, checked
from unrolled.dictionaries import Dictionary, known_part, signal_axes
from unrolled.dictionary_learning import _learning
from unrolled.dictionary_learning._learning import Learned, Progress, Step
from unrolled.layers import Layer

__all__ = ["unrolled"]


_TOGETHER = 1000  # number of signals that a layer codes together


@checked
def unrolled(
    layer: Layer,
    Y: ArrayLike,
    d: int,
    *,
    lam: float,
    steps: int = 1000,
    batch: int = 128,
    rate: float = 1e-2,
    key: Key = 0,
    start: str | Dictionary = "data",
    params: Any = None,
    progress: Progress | bool | None = None,
    trainable: Any = None,
    validation: tuple | None = None,
    mask: ArrayLike | None = None,
    **run: Unpack[training.OptionsWithoutProgress],
) -> Learned:
    r"""Learn a dictionary and the params of a layer by gradients through the steps of the layer.

    .. math:: \min_{D, \, params} \frac1n \sum_{k=1}^n
        \tfrac12 \|y_k - D x_K(y_k)\|^2 + lam \|x_K(y_k)\|_1, \qquad \|d_i\| = 1.

    `unrolled` is `training.fit(learn_dictionary=True)` with the loss `training.lasso_loss(lam)`,
    Adam, and random batches of the signals.

    Args:
        layer: a layer such as `layers.lista(8)`.
        Y: (n, m), signals in rows, with n at least d.
        d: number of atoms.
        lam: penalty weight.
        steps: number of training steps.
        batch: number of signals in a step.
        rate: the learning rate of Adam.
        key: a typed key, or a seed, for the start, the first params and the batches.
        start: as in `ksvd`.
        params: initial params of the layer; None for the result of `layer.init`.
        progress: called as `progress(step)` at every evaluation, with a `Step`; or a bool, whether
            to show a progress bar.
        trainable, validation: as in `training.fit`; a validation batch is (Y, None).
        mask: as in `ksvd`; the steps and the objective use only the known entries of each signal. A
            validation batch is then (Y, None, mask).
        run: the other options of `training.Run`, by name.

    Returns:
        Learned, where X are the codes of the layer with the best params, `objective` is the mean
        above, `history` has the losses of the evaluations, and `state` is the `training.Fit`.

    Raises:
        TypeError, ValueError: as in `ksvd` and `training.fit`.
        NonFiniteError, CheckpointError: as in `training.fit`.

    Not claimed: that all atoms are used; unused atoms are not replaced. If the layer has many
    steps, the gradient in D is biased until the codes converge.

    Reference: Malezieux, Moreau, Kowalski (2022).

    Example:
        >>> Y = jax.random.normal(jax.random.key(1), (50, 6))
        >>> learned = ur.dictionary_learning.unrolled(
        ...     ur.layers.ista(3, lam=0.1), Y, 8, lam=0.1, steps=20
        ... )
        >>> learned.D.shape, learned.X.shape
        ((6, 8), (50, 8))
    """
    where = "unrolled"
    signals = _learning.weighted_signals(Y, where, None, mask)
    n = len(signals.Y)
    d = _learning.atom_count(d, n, where)
    batch = checks.as_index(batch, "batch", where, least=1)
    checks.check_memory((batch, signals.Y.shape[1] + d), signals.dtype, "a batch", where)
    rate = checks.as_number(rate, "rate", where)
    if not 0 < rate < np.inf:
        raise ValueError(f"{where}: rate must be positive and finite, got {rate}")
    key = checks.as_key(key, where)
    D = jnp.asarray(
        _learning.start_atoms(start, signals, d, _learning.generator(key, 0), where), signals.dtype
    )
    rows = jnp.asarray(np.ldexp(signals.Y, signals.exponent), signals.dtype)
    known = None if signals.V is None else jnp.asarray(signals.V > 0)
    if known is not None and validation is not None:
        validation = training.known_batch(D, validation, D.dtype, where)
    loss = training.lasso_loss(lam)

    def sample(key: Key) -> tuple:
        chosen = jax.random.randint(key, (batch,), 0, n)
        if known is None:
            return rows[chosen], None
        own, part = known_part(D, rows[chosen], known[chosen])
        return part, None, own

    if callable(progress):
        tell: Any = progress  # for the type checker, to which a bool may be callable
        run["callbacks"] = [*run.get("callbacks", ()), lambda record, _: tell(_as_step(record))]
    fit = training.fit(
        layer,
        layer.init(key, D) if params is None else params,
        D,
        sample,
        optimizer=optax.adam(rate),
        steps=steps,
        key=key,
        loss=loss,
        learn_dictionary=True,
        trainable=trainable,
        validation=validation,
        progress=progress is True,
        **run,
    )
    X, objective = _encoded(layer, fit, rows, known, loss)
    return Learned(fit.D, X, objective, tuple(map(_as_step, fit.history.records)), fit)


def _as_step(record: training.Record) -> Step:
    return Step(record.step, record.validation, record.seconds)


def _encoded(
    layer: Layer, fit: training.Fit, Y: jax.Array, known: jax.Array | None, loss: Any
) -> tuple[jax.Array, float]:
    """The codes of all signals, and the mean of the loss."""
    apply = jax.jit(jax.vmap(layer.apply, (None, signal_axes(known_part(fit.D, Y, known)[0]), 0)))
    codes, total = [], 0.0
    for first in range(0, len(Y), _TOGETHER):
        rows = slice(first, first + _TOGETHER)
        D, part = known_part(fit.D, Y[rows], None if known is None else known[rows])
        codes.append(apply(fit.best, D, part))
        total += float(loss(codes[-1][None], None, D, part)) * len(part)
    return jnp.concatenate(codes), total / len(Y)
