"""The classes of codes that theory speaks of: dictionaries, their members, and the worst noise."""

import math

import numpy as np
from oracles import unit

from unrolled import dictionaries


def off_diagonal(W, D):
    """|w_i . d_j| with zeros for i = j, and w_i . d_i, by plain sums in float64."""
    products = np.asarray(W, float).T @ np.asarray(D, float)
    return np.abs(products - np.diag(np.diag(products))), np.diag(products)


def matrix_of(A, dtype=float):
    """A dictionary as a matrix of numpy, with no program for one that is."""
    return np.asarray(A if isinstance(A, np.ndarray) else dictionaries.dense(A)).astype(dtype)


def coherence_of(D):
    D = unit(np.asarray(D))
    return np.max(off_diagonal(D, D)[0], initial=0.0)


def lines(rng, c, q, d, m=None):
    """d lines over the field of q elements, with zero rows up to m: coherence at most 1/c.

    Each has c nonzeros +-1/sqrt(c). `rng` may be a seed.
    """
    rng = np.random.default_rng(rng)
    D = np.zeros((m or c * q, d))
    for column, line in zip(D.T, rng.choice(q * q, d, replace=False)):
        rows = [i * q + (line // q + i * line) % q for i in range(c)]
        column[rows] = rng.choice([-1, 1], c) / math.sqrt(c)
    return D


def barker(N, boundary="circular"):
    """Spikes and the Barker code of length 13: coherence 1 / sqrt(13), one per filter."""
    code = np.array([1, 1, 1, 1, 1, -1, -1, 1, 1, -1, 1, -1, 1])
    filters = unit(np.stack([np.eye(13)[0], code], 1)).T[:, None]
    return dictionaries.Conv(filters, N, boundary=boundary)


def members(rng, W, D, n, s, least=0.0):
    """Codes with at most s nonzeros in [least, 1], random or aligned against one w_i."""
    W, D = matrix_of(W), matrix_of(D)
    d = D.shape[1]
    counts = rng.integers(max(s - 1, 1), s + 1, n)
    support = np.argsort(rng.random((n, d)), axis=1) < counts[:, None]
    spread = rng.uniform(least, 1, (n, d)), 10.0 ** rng.uniform(-4, 0, (n, d))
    size = np.stack([np.ones((n, d)), *spread])[rng.integers(3, size=n), np.arange(n)]
    aligned = np.sign(W.T @ D)[rng.integers(d, size=n)]
    signs = np.where(rng.random((n, 1)) < 0.5, aligned, rng.choice([-1, 1], (n, d)))
    return support * np.maximum(size, least) * np.where(signs == 0, 1, signs)


def noise_along(rng, W, n, delta, norm):
    """Noise of norm delta with the largest product with some w_i.

    In l2 it points along w_i; in l1 it sits at the largest entry of w_i.
    """
    W = matrix_of(W)
    w = W.T[rng.integers(W.shape[1], size=n)]
    largest = np.abs(w) == np.abs(w).max(1, keepdims=True)
    e = w if norm == "l2" else np.where(largest, np.sign(w), 0)
    size = np.linalg.norm(e, ord=2 if norm == "l2" else 1, axis=1, keepdims=True)
    return delta * e / size * rng.choice([-1, 1], (n, 1))
