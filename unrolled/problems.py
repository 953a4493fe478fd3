"""Planted problems: codes of a known class, noise of a known size, and the field's standard
benchmark.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks, dictionaries
from unrolled._checks import Array


def bernoulli_gaussian(key: Array, shape: tuple[int, ...], probability: float) -> Array:
    """Codes whose entries are N(0, 1) with the given probability and 0 otherwise."""
    if not 0 <= probability <= 1:
        raise ValueError(f"bernoulli_gaussian: probability must be in [0, 1], got {probability}")
    support_key, value_key = jax.random.split(key)
    values = jax.random.normal(value_key, shape)
    return jnp.where(jax.random.bernoulli(support_key, probability, shape), values, 0)


def exact_sparse(key: Array, shape: tuple[int, ...], sparsity: int) -> Array:
    """Codes with exactly `sparsity` nonzeros on a uniformly random support, with N(0, 1) values."""
    support_key, value_key = jax.random.split(key)
    return _support(support_key, shape, sparsity, "exact_sparse") * jax.random.normal(
        value_key, shape
    )


def bounded(
    key: Array, shape: tuple[int, ...], sparsity: int, bound: float = 1.0, least: float = 0.0
) -> Array:
    """Codes of the class of Assumption 2: `sparsity` nonzeros of random sign, magnitudes uniform in
    [least, bound].

    Raises:
        ValueError: sparsity outside 0..d, or not 0 <= least <= bound < inf.
    """
    if not 0 <= least <= bound < math.inf:
        raise ValueError(f"bounded: expected 0 <= least <= bound, got least={least}, bound={bound}")
    support_key, sign_key, value_key = jax.random.split(key, 3)
    signs = jax.random.rademacher(sign_key, shape, float)
    return (
        _support(support_key, shape, sparsity, "bounded")
        * signs
        * jax.random.uniform(value_key, shape, float, least, bound)
    )


def _support(key: Array, shape: tuple[int, ...], sparsity: int, where: str) -> Array:
    s = _checks.as_index(sparsity, "sparsity", where)
    if s > shape[-1]:
        raise ValueError(f"{where}: sparsity {s} exceeds the code length {shape[-1]}")
    # The first s of a random order; ranks of independent uniforms are a uniform permutation.
    ranks = jnp.argsort(jnp.argsort(jax.random.uniform(key, shape), axis=-1), axis=-1)
    return (ranks < s).astype(float)


def synthesize(D, X: Array) -> Array:
    """Signals (batch, m) of the codes (batch, d), in full precision."""
    if np.ndim(X) != 2 or X.shape[1] != D.shape[1]:
        raise ValueError(f"synthesize: X has shape {np.shape(X)}; expected (batch, {D.shape[1]})")
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda x: D @ x)(X)


def add_noise(key: Array, Y: Array, snr: float) -> Array:
    """Y plus white Gaussian noise at `snr` dB for every signal; inf adds none.

    The noise level of a signal is std(y) 10^(-snr / 20), the benchmark's convention (the mean of y
    is left out).
    """
    if math.isnan(snr):
        raise ValueError("add_noise: snr is nan; expected decibels, or inf for no noise")
    if snr == math.inf:
        return Y
    level = jnp.std(Y, axis=-1, keepdims=True) * 10 ** (-snr / 20)
    return Y + level * jax.random.normal(key, Y.shape, Y.dtype)


def l1_noise(key: Array, shape: tuple[int, ...], noise: float) -> Array:
    """Noise vectors of l1 norm exactly `noise` in random directions: the budget delta of Assumption
    2.
    """
    if not 0 <= noise < math.inf:
        raise ValueError(f"l1_noise: noise must be non-negative and finite, got {noise}")
    e = jax.random.laplace(key, shape)
    return e * (noise / jnp.sum(jnp.abs(e), axis=-1, keepdims=True))


class Benchmark(NamedTuple):
    """A dictionary and a sampler: `sample(key)` draws a batch `(Y, X)`, (batch, m) and (batch, d)."""

    D: Array
    sample: Callable


def standard_benchmark(
    key: Array,
    *,
    m: int = 250,
    d: int = 500,
    probability: float = 0.1,
    snr: float = math.inf,
    kappa: float | None = None,
    batch: int = 64,
) -> Benchmark:
    """The benchmark of the LISTA literature: Gaussian D (or ill-conditioned, `kappa`),
    Bernoulli-Gaussian codes.

    Reference: Chen, Liu, Wang, Yin (2018), section 4.1.
    """
    D = (
        dictionaries.gaussian(key, m, d)
        if kappa is None
        else dictionaries.ill_conditioned(key, m, d, kappa)
    )
    return Benchmark(D, sampler(D, batch, probability=probability, snr=snr))


def sampler(D, batch: int, *, probability: float = 0.1, snr: float = math.inf) -> Callable:
    """`sample(key) -> (Y, X)` of Bernoulli-Gaussian codes and noisy signals of D, for
    `training.fit`.
    """
    batch = _checks.as_index(batch, "batch", "sampler", least=1)

    def sample(key):
        code_key, noise_key = jax.random.split(key)
        X = bernoulli_gaussian(code_key, (batch, D.shape[1]), probability).astype(D.dtype)
        return add_noise(noise_key, synthesize(D, X), snr), X

    return sample
