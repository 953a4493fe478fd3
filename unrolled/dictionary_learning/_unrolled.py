"""A dictionary by gradient through a layer: what `training.fit` learns together with the params."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import training
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import ArrayLike, Key
from unrolled.dictionaries import Dictionary
from unrolled.dictionary_learning._learning import (
    Learned,
    Progress,
    Step,
    as_signals,
    atom_count,
    generator,
    start_atoms,
)
from unrolled.layers import Layer

_CHUNK = 1000  # signals whose codes are computed together


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
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""A dictionary by gradient through the steps of a layer, together with its params.

    .. math:: \min_{D, \, params} \frac1n \sum_{k=1}^n
        \tfrac12 \|y_k - D x_K(y_k)\|^2 + lam \|x_K(y_k)\|_1, \qquad \|d_i\| = 1.

    It is `training.fit(learn_dictionary=True)` with the loss `training.lasso(lam)`, Adam, and
    random batches of the signals. For all of its options call that.

    Args:
        layer: such as `layers.lista(8)`.
        Y: (n, m), signals in rows, with n at least d.
        d: the number of atoms.
        lam: penalty weight.
        steps: of training.
        batch: signals of one step.
        rate: the learning rate of Adam.
        key: a typed key, or a seed, of the start, the first params and the batches.
        start: as in `ksvd`.
        params: of the layer; None takes its `init`.
        progress: called as `progress(step)` at every evaluation, with a `Step`.
        checkpoint: a folder, see `training.fit`. The same call continues from it.

    Returns:
        Learned, where X are the codes of the layer with the best params, `objective` is the mean
        above, `history` has the losses of the evaluations, and `state` is the `training.Fit`.

    Raises:
        TypeError, ValueError: as in `ksvd` and `training.fit`.
        NonFiniteError, CheckpointError: see `training.fit`.

    Not claimed: atoms that are not used are not replaced. With many steps the gradient in D is
    biased before the codes converge.

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
    signals = as_signals(Y, where)
    n = len(signals.Y)
    d = atom_count(d, n, where)
    batch = checks.as_index(batch, "batch", where, least=1)
    rate = checks.as_number(rate, "rate", where)
    if not 0 < rate < np.inf:
        raise ValueError(f"{where}: rate must be positive and finite, got {rate}")
    key = checks.as_key(key, where)
    D = jnp.asarray(start_atoms(start, signals, d, generator(key, 0), where), signals.dtype)
    rows = jnp.asarray(np.ldexp(signals.Y, signals.exponent), signals.dtype)
    loss = training.lasso(lam)

    def tell(record, params):
        if progress is not None:
            progress(_as_step(record))

    fit = training.fit(
        layer,
        layer.init(key, D) if params is None else params,
        D,
        lambda key: (rows[jax.random.randint(key, (batch,), 0, n)], None),
        optimizer=optax.adam(rate),
        steps=steps,
        key=key,
        loss=loss,
        learn_dictionary=True,
        checkpoint=checkpoint,
        callbacks=[tell],
        progress=False,
    )
    X, objective = _encoded(layer, fit, rows, loss)
    return Learned(fit.D, X, objective, tuple(map(_as_step, fit.history.records)), fit)


def _as_step(record: training.Record) -> Step:
    return Step(record.step, record.validation, record.seconds)


def _encoded(layer: Layer, fit: training.Fit, Y: jax.Array, loss: Any) -> tuple[jax.Array, float]:
    """The codes of all signals, and the mean of the loss."""
    apply = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    parts = [Y[first : first + _CHUNK] for first in range(0, len(Y), _CHUNK)]
    codes = [apply(fit.best, fit.D, part) for part in parts]
    losses = [float(loss(X[None], None, fit.D, part)) * len(part) for X, part in zip(codes, parts)]
    return jnp.concatenate(codes), sum(losses) / len(Y)
