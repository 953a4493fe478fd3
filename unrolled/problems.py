"""Planted problems: codes of a known class, noise of a known size, and the standard benchmark."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, checked, program
from unrolled._base.files import Draws, MappedRows, as_data
from unrolled._base.numbers import exponent, times_power, widened
from unrolled._base.programs import on_auto_axes, takes_sharded
from unrolled.activations import kth_largest
from unrolled.dictionaries import Dictionary, as_chain, as_dictionary, as_flat, block_of

__all__ = [
    "add_noise",
    "bernoulli_gaussian",
    "bounded",
    "exact_sparse",
    "l1_noise",
    "resampler",
    "sampler",
    "standard_benchmark",
    "synthesize",
]
__results__ = ["Benchmark"]


@checked
def bernoulli_gaussian(key: Key, shape: tuple[int, ...], probability: float | Array) -> Array:
    """Codes whose entries are N(0, 1) with the given probability and 0 otherwise.

    Args:
        key: a typed key, or a seed.
        shape: (..., d).
        probability: probability that an entry is nonzero, in [0, 1].

    Returns:
        Codes of shape `shape`.

    Raises:
        ValueError: probability is outside [0, 1] (checked if known).

    Example:
        >>> X = ur.problems.bernoulli_gaussian(jax.random.key(0), (100, 50), 0.1)
        >>> X.shape, round(float((X != 0).mean()), 1)
        ((100, 50), 0.1)
    """
    checks.one_number(probability, "probability", "bernoulli_gaussian")
    if checks.is_concrete(probability):
        _check_probability(probability, "bernoulli_gaussian")
        probability = float(probability)
    _announce(shape, "bernoulli_gaussian")
    return _bernoulli_gaussian(key, tuple(shape), probability)


@program("shape")
def _bernoulli_gaussian(key: Key, shape: tuple[int, ...], probability: float | Array) -> Array:
    support_key, value_key = jax.random.split(key)
    values = jax.random.normal(value_key, shape)
    return jnp.where(
        jax.random.bernoulli(support_key, jnp.asarray(probability, values.dtype), shape), values, 0
    )


@checked
def exact_sparse(key: Key, shape: tuple[int, ...], sparsity: int) -> Array:
    """Codes with exactly `sparsity` nonzeros, N(0, 1), on a uniformly random support.

    Args:
        key: a typed key, or a seed.
        shape: (..., d).
        sparsity: number of nonzeros of a code, in 0..d.

    Returns:
        Codes of shape `shape`.

    Raises:
        TypeError: sparsity is not an integer.
        ValueError: shape is empty, or sparsity is outside 0..d.

    Example:
        >>> X = ur.problems.exact_sparse(jax.random.key(0), (3, 50), 4)
        >>> (X != 0).sum(1).tolist()
        [4, 4, 4]
    """
    s = _sparsity(sparsity, shape, "exact_sparse")
    return _exact_sparse(key, tuple(shape), s)


@program("shape")
def _exact_sparse(key: Key, shape: tuple[int, ...], s: int) -> Array:
    support_key, value_key = jax.random.split(key)
    return _support(support_key, shape, s) * jax.random.normal(value_key, shape)


@checked
def bounded(
    key: Key, shape: tuple[int, ...], sparsity: int, bound: float = 1.0, least: float = 0.0
) -> Array:
    """Codes of the class of Assumption 2: bounded nonzeros with random signs on a random support.

    Args:
        key: a typed key, or a seed.
        shape: (..., d).
        sparsity: number of nonzeros s, in 0..d.
        bound, least: limits of the magnitudes, which are uniform in [least, bound].

    Returns:
        Codes of shape `shape`.

    Raises:
        TypeError: sparsity is not an integer.
        ValueError: shape is empty, sparsity is outside 0..d, least and bound violate 0 <= least <=
            bound < inf, or a magnitude is out of the range of the default float.

    Reference: Li, Feng, Zhou (2024), Assumption 2.

    Example:
        >>> X = ur.problems.bounded(jax.random.key(0), (3, 50), 4, bound=2.0, least=1.0)
        >>> magnitudes = jnp.abs(X[X != 0])
        >>> len(magnitudes), bool(((magnitudes >= 1) & (magnitudes <= 2)).all())
        (12, True)
    """
    if checks.is_concrete((least, bound)) and not 0 <= least <= bound < math.inf:
        raise ValueError(f"bounded: expected 0 <= least <= bound, got least={least}, bound={bound}")
    for name, size in (("bound", bound), ("least", least)):
        checks.in_range(size, jnp.result_type(float), name, "bounded")
    s = _sparsity(sparsity, shape, "bounded")
    return _bounded(key, tuple(shape), s, bound, least)


@program("shape")
def _bounded(key: Key, shape: tuple[int, ...], s: int, bound: float, least: float) -> Array:
    support_key, sign_key, value_key = jax.random.split(key, 3)
    signs = jax.random.rademacher(sign_key, shape, float)
    values = jax.random.uniform(value_key, shape, float, least, bound)
    values = jnp.where(values == 0, bound, values)  # a nonzero must not be 0
    return _support(support_key, shape, s) * signs * values


def _sparsity(sparsity: int, shape: tuple[int, ...], where: str) -> int:
    s = checks.as_index(sparsity, "sparsity", where)
    if not len(shape):
        raise ValueError(f"{where}: shape is {shape}; expected (..., d)")
    if s > shape[-1]:
        raise ValueError(f"{where}: sparsity {s} exceeds the code length {shape[-1]}")
    _announce(shape, where)
    return s


def _check_probability(probability: Any, where: str) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"{where}: probability must be in [0, 1], got {probability}")


def _announce(shape: tuple[int, ...], where: str, what: str = "the codes") -> None:
    """Warn before a large array is drawn, or refuse an array that does not fit in memory.

    Three arrays of the same size exist at once: random bits, the support and the values.
    """
    sizes = checks.as_indices(shape, "shape", where)
    checks.announce(sizes, jnp.result_type(float), what, where, copies=3)


def _support(key: Array, shape: tuple[int, ...], s: Any) -> Array:
    # The positions of the s least of d independent uniforms are a uniformly random support.
    if not shape[-1]:
        return jnp.zeros(shape)
    ranked = jax.random.uniform(key, shape).reshape(-1, shape[-1])
    return jax.vmap(partial(_least, s))(ranked).reshape(shape).astype(float)


def _least(s: Any, u: Array) -> Array:
    """Mark the s least entries, and of equal entries the first ones; this is faster than a sort."""
    d = len(u)
    last = kth_largest(u, jnp.minimum(d + 1 - s, d))
    equal = jnp.where(u == last, jnp.arange(d, 0, -1, dtype=u.dtype), 0)
    room = s - jnp.count_nonzero(u < last)
    on = (u < last) | (equal >= kth_largest(equal, jnp.maximum(room, 1)))
    return on & (s > 0)


def synthesize(D: Dictionary | tuple[Dictionary, ...] | Any, x: ArrayLike) -> Array:
    r"""The estimate D x of the signal, for one code or for a batch of codes, in full precision.

    .. math:: \hat y = D x, \qquad \hat y = D_1 D_2 \cdots D_J x_J

    Args:
        D: (m, d), or the tuple (D_1, ..., D_J) of a chain, for which x is the last code. If the
            code was computed from a signal with missing or blurred entries, pass the dictionary of
            whole signals, not the dictionary with which the code was computed.
        x: (d,), or (batch, d). For a `Conv`, x may have the shape `D.code_grid`, in which pursuits
            return the codes of signal grids. For a `Complex` D, x may be complex; for a `Joint` D,
            x may be (d, g) or a batch of such codes.

    Returns:
        (m,), or (batch, m). For codes in a grid, the signals have the shape `D.signal_grid`; for
        codes of another form, the signals have that form.

    Raises:
        ValueError: x has another shape, or the shapes of the dictionaries do not fit together.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> ur.synthesize(D, jnp.eye(8)[:2]).tolist()
        [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
        >>> ur.synthesize((2 * jnp.eye(4), D), jnp.eye(8)[1]).tolist()
        [0.0, 2.0, 0.0, 0.0]
    """
    if block_of(D) > 1 and isinstance(x, Array | np.ndarray):
        for axes in (0, 1):
            flat, shown = as_flat(D, x, axes)
            if shown is not None:
                return shown(_estimates(D, flat, "synthesize"))
    return _estimates(D, x, "synthesize")


@checked
def _estimates(D: Dictionary | tuple[Dictionary, ...] | Any, x: ArrayLike, where: str) -> Array:
    """`synthesize` for flat codes, and for codes in the grid of a `Conv`."""
    chain = as_chain(D, where) if isinstance(D, tuple) else (as_dictionary(D, where),)
    x = x if isinstance(x, Array | np.ndarray) else jnp.asarray(x)  # lists, and pandas frames
    first, last = chain[0], chain[-1]
    d, shape = last.shape[1], np.shape(x)
    grid = last.code_grid if isinstance(last, dictionaries.Conv) else (d,)
    flat = shape if shape[-1:] == (d,) else (*shape[: -len(grid)], d)
    if len(flat) not in (1, 2) or (shape != flat and shape[-len(grid) :] != grid):
        batch = f"({d},) or (batch, {d})" if grid == (d,) else f"{grid}, ({d},) or a batch of them"
        raise ValueError(f"{where}: x has shape {shape} but D {last.shape}; expected {batch}")
    if shape == flat:
        return _synthesize(chain, x)
    signals = _synthesize(chain, jnp.reshape(x, flat))
    grid = first.signal_grid if isinstance(first, dictionaries.Conv) else first.shape[:1]
    return signals.reshape(*flat[:-1], *grid)


@program()
def _synthesize(chain: tuple[Dictionary, ...], x: Any) -> Array:
    with jax.default_matmul_precision("highest"):
        for D in reversed(chain):
            x = D @ x if x.ndim == 1 else jax.vmap(partial(operator.matmul, D))(x)
        return x


@checked
def add_noise(key: Key, Y: ArrayLike, snr: float | Array) -> Array:
    """Y plus white Gaussian noise, at a signal-to-noise ratio of `snr` dB for every signal.

    The standard deviation of the noise in a signal is std(y) 10^(-snr / 20), as in the benchmark
    (std subtracts the mean of y).

    Args:
        key: a typed key, or a seed.
        Y: (..., m).
        snr: signal-to-noise ratio in dB; inf adds no noise.

    Returns:
        The noisy signals, in the shape of Y.

    Raises:
        ValueError: snr is nan, or the noise leaves the range of Y (checked if known).

    Example:
        >>> Y = jax.random.normal(jax.random.key(0), (1, 10_000))
        >>> noise = ur.problems.add_noise(jax.random.key(1), Y, 20.0) - Y
        >>> round(float(noise.std()), 2)
        0.1
    """
    Y = checks.as_float(Y, "Y", "add_noise")
    if not Y.ndim:
        raise ValueError("add_noise: Y is one number; expected signals, (..., m)")
    if not checks.is_concrete(snr):
        return _add_noise(key, Y, jnp.power(10.0, -snr / 20).astype(Y.dtype))
    if math.isnan(snr := checks.as_number(snr, "snr", "add_noise")):
        raise ValueError("add_noise: snr is nan; expected decibels, or inf for no noise")
    if snr == math.inf:
        return Y
    with np.errstate(over="ignore"):
        ratio = float(np.power(10.0, -snr / 20))
    if not ratio <= float(jnp.finfo(Y.dtype).max):
        raise ValueError(f"add_noise: noise at snr={snr} dB leaves the range of {Y.dtype}")
    return _add_noise(key, Y, ratio)


@program()
def _add_noise(key: Key, Y: Array, ratio: float | Array) -> Array:
    k = exponent(Y, -1)
    spread = times_power(jnp.std(times_power(widened(Y), -k), axis=-1, keepdims=True), k)
    return Y + spread.astype(Y.dtype) * ratio * jax.random.normal(key, Y.shape, Y.dtype)


@checked
def l1_noise(key: Key, shape: tuple[int, ...], noise: float | Array) -> Array:
    """Noise vectors of l1 norm `noise`, the budget delta of Assumption 2, in random directions.

    Args:
        key: a typed key, or a seed.
        shape: (..., m).
        noise: delta, non-negative and finite.

    Returns:
        Noise vectors of shape `shape`.

    Raises:
        ValueError: noise is negative, infinite or NaN, or out of the range of the default float
            (checked if known).

    Reference: Li, Feng, Zhou (2024), Assumption 2.

    Example:
        >>> e = ur.problems.l1_noise(jax.random.key(0), (2, 50), 0.5)
        >>> jnp.abs(e).sum(1).round(3).tolist()
        [0.5, 0.5]
    """
    checks.one_number(noise, "noise", "l1_noise")
    if checks.is_concrete(noise) and not 0 <= noise < math.inf:
        raise ValueError(f"l1_noise: noise must be non-negative and finite, got {noise}")
    checks.in_range(noise, jnp.result_type(float), "noise", "l1_noise")
    _announce(shape, "l1_noise", "the noise")
    return _l1_noise(key, tuple(shape), noise)


@program("shape")
def _l1_noise(key: Key, shape: tuple[int, ...], noise: float | Array) -> Array:
    e = jax.random.laplace(key, shape)
    return e * (noise / jnp.sum(jnp.abs(e), axis=-1, keepdims=True))


class Benchmark(NamedTuple):
    """A dictionary and a sampler of its signals."""

    D: Array  # (m, d)
    sample: Callable[[Key], tuple[Array, Array]]  # key -> (Y, X), (batch, m) and (batch, d)


@checked
def standard_benchmark(
    key: Key,
    *,
    m: int = 250,
    d: int = 500,
    probability: float = 0.1,
    snr: float = math.inf,
    kappa: float | None = None,
    batch: int = 64,
) -> Benchmark:
    """The benchmark of the LISTA literature: Bernoulli-Gaussian codes of a Gaussian dictionary.

    Args:
        key: a typed key, or a seed, for the draw of D.
        m, d: the shape of D.
        probability: probability that an entry of a code is nonzero; if codes come in parts,
            probability that a part is nonzero.
        snr: signal-to-noise ratio in dB, as in `add_noise`.
        kappa: condition number for `dictionaries.ill_conditioned`; None for a Gaussian D.
        batch: signals per call of `sample`.

    Returns:
        Benchmark, with the fields D and `sample`.

    Raises:
        TypeError, ValueError: a size, kappa or batch is out of range.

    Reference: Chen, Liu, Wang, Yin (2018), section 4.1.

    Example:
        >>> D, sample = ur.problems.standard_benchmark(jax.random.key(0), m=25, d=50)
        >>> Y, X = sample(jax.random.key(1))
        >>> D.shape, Y.shape, X.shape
        ((25, 50), (64, 25), (64, 50))
    """
    D = (
        dictionaries.gaussian(key, m, d)
        if kappa is None
        else dictionaries.ill_conditioned(key, m, d, kappa)
    )
    return Benchmark(D, sampler(D, batch, probability=probability, snr=snr))


@checked
@takes_sharded
def sampler(
    D: Dictionary | tuple[Dictionary, ...] | list[Dictionary],
    batch: int,
    *,
    probability: float = 0.1,
    snr: float = math.inf,
) -> Callable[[Key], tuple[Array, Any]]:
    """A sampler of noisy signals of D and their Bernoulli-Gaussian codes, for `training.fit`.

    Args:
        D: (m, d), or the tuple of a chain, for which the sampler draws the last code.
        batch: signals per call.
        probability: probability that an entry of a code is nonzero; if codes come in parts,
            probability that a part is nonzero.
        snr: signal-to-noise ratio in dB, as in `add_noise`.

    Returns:
        `sample(key) -> (Y, X)`, (batch, m) and (batch, d). For a chain, X is a tuple with the codes
        of every layer, x_{j-1} = D_j x_j.

    Raises:
        TypeError: batch is not an integer.
        ValueError: batch is below 1, probability is outside [0, 1], or snr is nan.
        MemoryError: a batch does not fit in memory.

    Example:
        >>> sample = ur.problems.sampler(ur.dictionaries.identity_hadamard(4), 16)
        >>> Y, X = sample(jax.random.key(0))
        >>> Y.shape, X.shape
        ((16, 4), (16, 8))
    """
    batch = checks.as_index(batch, "batch", "sampler", least=1)
    _check_probability(probability, "sampler")
    if math.isnan(snr):
        raise ValueError("sampler: snr is nan; expected decibels, or inf for no noise")
    chained = isinstance(D, tuple | list)
    Ds = as_chain(D, "sampler") if isinstance(D, tuple | list) else (D,)
    size = (batch, Ds[-1].shape[1])
    _announce((batch, sum(max(D.shape) for D in Ds)), "sampler", "signals and codes")
    draw = _Sampled(size, float(probability), float(snr), chained)
    return jax.tree_util.Partial(draw, Ds)  # the leaves of Ds become arguments of a program


@dataclass(frozen=True)
class _Sampled:
    """The function behind a `sampler`; equal instances share their programs."""

    size: tuple[int, int]
    probability: float
    snr: float
    chained: bool

    def __call__(self, Ds: tuple[Dictionary, ...], key: Key) -> tuple[Array, Any]:
        key = checks.as_key(key, "sampler")
        Y, *codes = _sample(key, Ds, self.size, self.probability, self.snr)
        return Y, tuple(codes) if self.chained else codes[0]


@takes_sharded
def resampler(Y: Array | np.ndarray, X: Any = None, batch: int = 64) -> Callable[[Key], Any]:
    """A sampler that draws from your own signals, and their codes, with replacement.

    Args:
        Y: (signals, m). If `np.load(path, mmap_mode="r")` returned Y or X, the sampler reads only
            the rows that it draws.
        X: (signals, d), the codes of Y; a tuple for a chain, None if the codes are unknown.
        batch: signals per call.

    Returns:
        `sample(key) -> (Y, X)`, (batch, m) and (batch, d). If drawn rows of a file have NaN or
        infinite entries, or the file has become shorter, `sample` raises ValueError. Inside your
        own `jit` the batch is NaN instead, and `sample.check()` raises the error afterwards.

    Raises:
        TypeError: signals are integers, such as grey values, or not real numbers.
        ValueError: shapes do not fit, there are no signals, a row has NaN or infinite entries, or
            batch is below 1.

    Example:
        >>> Y, X = ur.problems.resampler(jnp.arange(6.0)[:, None], batch=4)(jax.random.key(0))
        >>> Y.shape, X
        ((4, 1), None)
    """
    where = "resampler"
    batch = checks.as_index(batch, "batch", where, least=1)
    arrays = as_data(Y, X, where)
    _announce((batch, arrays[0].shape[1]), where, "a batch")
    files = tuple(leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, MappedRows))
    drawn = jax.tree_util.Partial(_Resampled(batch, bool(files)), arrays)  # as in `sampler`
    return Draws(drawn, files) if files else drawn


@dataclass(frozen=True)
class _Resampled:
    """The function behind a `resampler`; equal instances share their programs."""

    batch: int
    of_files: bool

    def __call__(self, arrays: Any, key: Key) -> Any:
        draw = _read if self.of_files else _resample
        return draw(checks.as_key(key, "resampler"), arrays, self.batch)


def _drawn(key: Array, arrays: Any, batch: int) -> Any:
    rows = jax.random.randint(key, (batch,), 0, len(arrays[0]))
    return jax.tree.map(lambda array: array[rows], arrays)


_resample, _read = program("batch")(_drawn), on_auto_axes(_drawn)


def planted(key: Array, size: tuple[int, int], probability: float, block: int) -> Array:
    """Bernoulli-Gaussian codes; the entries of a part are all Gaussian, or all 0."""
    if block == 1:
        return bernoulli_gaussian(key, size, probability)
    on_key, value_key = jax.random.split(key)
    on = jax.random.bernoulli(on_key, probability, (size[0], size[1] // block))
    return jnp.where(jnp.repeat(on, block, axis=1), jax.random.normal(value_key, size), 0)


@program("size", "probability", "snr")
def _sample(
    key: Array, Ds: tuple[Dictionary, ...], size: tuple[int, int], probability: float, snr: float
) -> tuple[Array, ...]:
    """Noisy signals of a chain, and the codes of every layer."""
    code_key, noise_key = jax.random.split(key)
    signals = [planted(code_key, size, probability, block_of(Ds[-1])).astype(Ds[-1].dtype)]
    for D in reversed(Ds):
        signals.insert(0, synthesize(D, signals[0]))
    return add_noise(noise_key, signals[0], snr), *signals[1:]
