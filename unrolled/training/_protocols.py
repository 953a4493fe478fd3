"""What a run calls: the sampler, the loss and the callbacks, as types.

A function of the same arguments, by position, is one of them; nothing is subclassed.
"""

from typing import Any, Protocol

from unrolled._checks import Array
from unrolled.training._records import Record


class Sample(Protocol):
    """Draws a batch: `sample(key) -> (Y, X)` or `(Y, X, Ds)`.

    It is traced into the training step, so it must be a pure function of the key.

    Args:
        key: one random key; training step k passes `fold_in(key, k)`.

    Returns:
        (Y, X) or (Y, X, Ds): signals (batch, m); their codes (batch, d), for a network a tuple with
        the codes of every block or the codes of the last block alone, None for a loss that does
        not use them; dictionaries (batch, m, d), where every signal has one of its own.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 4, 6)
        >>> def sample(key):
        ...     X = ur.problems.exact_sparse(key, (8, 6), 2)
        ...     return X @ D.T, X
        >>> [part.shape for part in sample(jax.random.key(1))]
        [(8, 4), (8, 6)]
    """

    def __call__(self, key: Array, /) -> tuple[Array, Any] | tuple[Array, Any, Any]: ...


class Loss(Protocol):
    """What training minimises: `loss(codes, X, D, Y) -> scalar`, of one batch.

    It is traced into the training step, so it must be differentiable and pure.

    Args:
        codes: for a layer, the code after every step, (K, batch, d); for a network, the code of
            every block, a tuple of (batch, d_j). `codes[-1]` is the output of either.
        X: the codes from the sampler.
        D: the dictionary in use: that of the training, or (batch, m, d) from the sampler; a tuple
            for a network.
        Y: (batch, m), signals.

    A loss of the last code alone may say so, by an attribute `of_last` that is True: of a layer it
    is then given (1, batch, d), and training does not store the codes of the other steps. The
    losses of this library do so.

    Example:
        >>> def mean_absolute_error(codes, X, D, Y):
        ...     return jnp.mean(jnp.abs(codes[-1] - X))
        >>> mean_absolute_error.of_last = True
        >>> float(mean_absolute_error(jnp.ones((1, 2, 4)), jnp.zeros((2, 4)), None, None))
        1.0
    """

    def __call__(self, codes: Any, X: Any, D: Any, Y: Array, /) -> Array: ...


class Callback(Protocol):
    """What is called at every evaluation, on the host: `callback(record, params) -> None`.

    Args:
        record: the numbers of the evaluation.
        params: of the model at this step, with non-negative thresholds; safe to keep.

    Example:
        >>> history = []
        >>> def keep(record, params):
        ...     history.append((record.step, record.validation))
        >>> keep(ur.training.Record(step=50, loss=0.3, validation=0.25, seconds=1.0), None)
        >>> history
        [(50, 0.25)]
    """

    def __call__(self, record: Record, params: Any, /) -> None: ...
