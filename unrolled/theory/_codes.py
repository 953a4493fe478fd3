"""Certificates of single codes: a dual vector proves that the l1 norm of a code is the least."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, host_function, program
from unrolled._base.numbers import UP, norm, wide_dtype
from unrolled.activations import kth_largest
from unrolled.dictionaries import Dictionary, Operator
from unrolled.theory._coherence import BLOCK, of_real_entries

__all__ = ["CodeCertificate", "certify_code"]


_EPS = float(np.finfo(float).eps)
# The iteration lowers correlations off the support towards `_LOW`, and ends at `_ENOUGH`.
_LOW, _ENOUGH = 0.8, 0.85
# The iteration also ends if no nu up to this many times as long can have all correlations below 1.
_LONGER = 10.0
# A code with more than m nonzeros is cut to `_CUT` m nonzeros; a search uses `_SEARCHED` m atoms.
_CUT, _SEARCHED = 0.6, 0.3
_REFINEMENTS = 3  # the number of refinements of least squares by an inverse Gram matrix
# Squarings of the inverse Gram matrix: its norm is accurate to k^(2^-13), .1 % at k = 1000.
_SQUARINGS = 12
_WHOLE = 4096  # the largest number of atoms whose inner products form one matrix
_CHUNK = 2**22  # the number of entries of codes, or of Gram matrices, in one call
# Conjugate gradients: tolerance of the slope and number of runs; then the most iterations of a run.
_ROUGH, _FINE, _ITERATIONS = (1e-6, 1), (_EPS, 2), 300
# Supports, and small batches, are padded to multiples, so that one program serves many sizes.
_GRID, _STEP, _FEW = 16, 8, 64
_LARGEST = 1e100  # the largest ratio of a code to its signal
_LARGEST_ATOM = 1e60  # the fourth powers of this and of its inverse are in the range of float64


class CodeCertificate(Result):
    """The proof that a code is the only code of least l1 norm.

    For a batch of n codes, numbers become arrays (n,), and arrays get a first axis of length n.

    Example:
        >>> D, y = np.eye(3, dtype=np.float32), np.ones(3, np.float32)
        >>> ur.theory.certify_code(D, y, y).certified(y)
        True
    """

    x: np.ndarray  # (d,) the certified code
    residual: Any  # norm(y - D x)
    sigma: Any  # the least singular value of the atoms of x, rounded down; inf for x = 0
    dual: np.ndarray  # (m,) nu
    off_support: Any  # tau, the largest |d_j . nu| off the support
    mismatch: Any  # zeta, the largest |d_j . nu - sign(x_j)| on the support
    holds: Any  # whether x is the only code of least l1 norm among all codes with the same D x
    unique: Any  # whether `holds`, and D x equals y up to rounding
    error_gain: Any  # factor of norm(D (z - x)) in the bound on norm(z - x)
    l1_gain: Any  # factor of norm(z, 1) - norm(x, 1), if positive, in the same bound
    signal: np.ndarray  # (m,) D x

    def certified(self, y: ArrayLike) -> Any:
        """Whether `holds` is True and D x equals y up to the rounding of y, m^(1/2) eps norm(y).

        For float32 signals use `certified` instead of `unique`. In half precision only the entries
        of y are rounded, by eps / 2, because sums are computed in float32. Any other code z
        that fits equally well and has no larger l1 norm is within `error_gain` times
        norm(y - D x) + norm(y - D z) of x.
        """
        Y = checks.host_floats(y, "y", "certified")
        if Y.shape != self.dual.shape:
            raise ValueError(
                f"certified: y has shape {Y.shape}; expected {self.dual.shape}, as for the "
                "certified signals"
            )
        own, summed = _roundings(Y.dtype)
        level = max(own / 2, math.sqrt(Y.shape[-1]) * summed)
        Y = Y.astype(float)
        scale = np.abs(Y).max(-1, keepdims=True, initial=0)
        scale = np.where(scale > 0, scale, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            size, left = (np.linalg.norm(A / scale, axis=-1) for A in (Y, Y - self.signal))
        met = np.logical_and(self.holds, left <= level * size)
        return met if met.ndim else bool(met)


def _roundings(dtype: Any) -> tuple[float, float]:
    """The spacing at 1 of a dtype, and of the dtype in which its sums are computed."""
    return float(jnp.finfo(dtype).eps), float(jnp.finfo(wide_dtype(dtype)).eps)


@of_real_entries("D y x", "theory.uniqueness([D], [s]) or theory.certify_supports(D, D, supports)")
@host_function
def certify_code(
    D: Dictionary, y: ArrayLike, x: ArrayLike, *, finish: int | None = 3, steps: int = 300
) -> CodeCertificate:
    r"""Prove that a code, from any solver, is the only code of least l1 norm.

    Let x have a support T of n atoms, with sigma = sigma_min(D_T) > 0, and let all atoms have norms
    of at most b. For any vector nu let

    .. math::
        \zeta = \|D_T'\nu - \mathrm{sign}\, x_T\|_\infty, \quad
        \tau = \|D_{T^c}'\nu\|_\infty, \quad \kappa = \zeta \sqrt n / \sigma, \quad
        q = 1 - \tau - \kappa b > 0.

    Then for every code z, with u = norm(D (z - x)) and t = max(norm(z, 1) - norm(x, 1), 0),

    .. math::
        \|z - x\|_2 \le \frac{u}{\sigma} + \Bigl(1 + \frac b \sigma\Bigr) H, \qquad
        H = \frac{t + (\|\nu\|_2 + \kappa) u}{q},

    because norm(z, 1) >= norm(x, 1) + sign(x_T)'h_T + norm(h_{T^c}, 1) for h = z - x. So x is the
    only code of least l1 norm among all codes z with D z = D x. Any other code z of at most this l1
    norm is within `error_gain` times u of x, and u <= norm(y - D x) + norm(y - D z).

    First the function finishes the code: it computes least squares on the support, takes steps of
    subspace pursuit until the code fits y, and drops entries that are rounding errors. Then FISTA
    finds nu: it lowers the correlations off the support subject to D_T'nu = sign(x_T). The function
    evaluates sigma, zeta, tau and all bounds in float64 for the returned nu and x, and includes a
    bound on the rounding errors. For a product of factors, the function bounds the rounding errors
    of |D_1| |D_2| ..., which exceed the rounding errors of D if the factors cancel.

    Args:
        D: (m, d), atoms of any norm; a structured D enters only through its products.
        y: (m,), or a batch (n, m).
        x: (d,), or (n, d): codes from any solver. A code with more than m nonzeros is cut to its
            .6 m largest entries; a code that is not finite, or 1e100 times as large as y, counts as
            0.
        finish: the largest number of steps of subspace pursuit, which uses .3 m atoms; 0 for only
            least squares. None leaves the code unchanged.
        steps: the largest number of steps of FISTA.

    Returns:
        CodeCertificate, with numpy arrays in float64. If the certificate does not hold, for example
        because atoms depend on each other (sigma = 0), the gains are infinite. `unique` requires
        that the certificate holds and that the residual is at most the rounding of y - D x in
        float64. Codes fit float32 signals only to about 1e-7 norm(y), so use the method `certified`
        for these signals. The certificate of a signal that is not finite does not hold.

    Raises:
        TypeError: an argument is traced or complex.
        ValueError: shapes do not fit, a number of steps is negative, the codes of D come in parts,
            or the fourth power of an atom's norm leaves the range of float64: norms beyond 1e60 or
            below 1e-60.

    Not claimed: that x is the true code, unless the true code has no larger l1 norm. Codes with
    more nonzeros than basis pursuit recovers have no certificate, and `finish` finds at most .3 m
    nonzeros. With noise the bounds are valid but large: at m = 250, d = 500 and 50 nonzeros the
    median error gain is near 120, so an error bar at an SNR of 40 dB is as large as the code. The
    function does not use interval arithmetic. For complex codes, and other codes in parts, use
    `uniqueness`, which covers all codes with at most s nonzero parts.

    Reference: Fuchs (2004) and Tropp (2006) for the condition; Zhang, Yin, Cheng (2015) for its
    necessity; Dai, Milenkovic (2009) for subspace pursuit.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 40, 80)
        >>> x = np.zeros(80)
        >>> x[[3, 20, 70]] = 1.0, -2.0, 0.5
        >>> proof = ur.theory.certify_code(D, np.asarray(D, float) @ x, 0.9 * x)
        >>> proof.unique, np.flatnonzero(proof.x).tolist(), proof.x[20].round(9).item()
        (True, [3, 20, 70], -2.0)
    """
    where = "certify_code"
    finish = None if finish is None else checks.as_index(finish, "finish", where)
    steps = checks.as_index(steps, "steps", where)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        D = checks.cast(dictionaries.as_dictionary(D, where), np.float64)
        Y, X, roundings = _operands(D, y, x, where)
        one = Y.ndim == 1
        Y, X = np.atleast_2d(Y), np.atleast_2d(X)
        finite = np.isfinite(Y).all(1)
        Y, X, scale = _scaled(np.where(finite[:, None], Y, 0), np.where(finite[:, None], X, 0))
        m, d = D.shape
        if finish is not None:
            X, searched = _cut(X, m), max(1, min(int(_SEARCHED * m), d // 2))
            run = partial(_finished, D, roundings=roundings, finish=finish, searched=searched)
            (X,) = _in_chunks(run, 1, Y, X)
        k = _padded(X)
        parts = _in_chunks(partial(_dual_vectors, D, steps=steps, k=k), k, Y, X)
    certificates = _certificates(X, finite, scale, parts)
    return jax.tree.map(_single, certificates) if one else certificates


def _operands(
    D: Dictionary, y: ArrayLike, x: ArrayLike, where: str
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """y and x in float64, and the `_roundings` of y."""
    m, d = D.shape
    Y, X = checks.host_floats(y, "y", where), checks.host_floats(x, "x", where)
    if Y.shape[-1:] != (m,) or X.shape != (*Y.shape[:-1], d) or Y.ndim > 2:
        raise ValueError(
            f"{where}: D has shape {(m, d)}, y {Y.shape} and x {X.shape}; expected ({m},) and "
            f"({d},), or a batch (n, {m}) and (n, {d})"
        )
    return Y.astype(float), X.astype(float), _roundings(Y.dtype)


def _scaled(Y: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signals and codes divided by 2^k, and k.

    The largest entry of the scaled signal, or of the scaled code if the signal is 0, is near 1.
    """
    sizes = [np.abs(np.where(np.isfinite(A), A, 0)).max(1, initial=0) for A in (Y, X)]
    k = np.frexp(np.where(sizes[0] > 0, *sizes))[1]
    with np.errstate(over="ignore", invalid="ignore"):
        Y, X = (np.ldexp(A, -k[:, None]) for A in (Y, X))
    # Squares of larger numbers would leave the range.
    within = (np.abs(X) < _LARGEST).all(1, keepdims=True)
    return Y, np.where(within, X, 0), k


def _cut(X: np.ndarray, m: int) -> np.ndarray:
    """The codes; a code with more than m nonzeros keeps only its largest entries."""
    dense_rows = np.count_nonzero(X, 1) > m
    largest = np.argsort(-np.abs(X[dense_rows]), 1, kind="stable")[:, : max(1, int(_CUT * m))]
    cut = np.zeros_like(X[dense_rows])
    np.put_along_axis(cut, largest, np.take_along_axis(X[dense_rows], largest, 1), 1)
    X = X.copy()
    X[dense_rows] = cut
    return X


def _padded(X: np.ndarray) -> int:
    """The size of the largest support of the codes, padded."""
    n = int(np.count_nonzero(X, 1).max(initial=1))
    return min(X.shape[1], -(-n // _GRID) * _GRID)


def _in_chunks(f: Callable[..., tuple], k: int, Y: np.ndarray, X: np.ndarray) -> list[np.ndarray]:
    """f(Y, X) for a batch of any length, chunk by chunk, with supports of k entries."""
    n, d = X.shape
    rows = n if n == 1 or n > _FEW else max(1, -(-n // _STEP)) * _STEP
    size = max(1, min(rows, _CHUNK // max(k * k, d)))
    parts = []
    for start in range(0, max(n, 1), size):
        missing = max(0, start + size - n)
        part = (np.pad(A[start : start + size], ((0, missing), (0, 0))) for A in (Y, X))
        parts.append([np.asarray(a)[: size - missing] for a in f(*part)])
    return [np.concatenate(part) for part in zip(*parts)]


class _Support(NamedTuple):
    """The atoms of every code of a batch, padded to k."""

    atoms: Array  # (n, k)
    live: Array  # (n, k), False for padding
    root: Array  # (n, k, k), L^-1 for the Cholesky factor L of D_T'D_T + ridge
    ridge: Array  # ()


class _System(NamedTuple):
    """A dictionary, and the data that its least squares problems share."""

    D: Operator
    products: Array | None  # D'D, unless it is too large
    size: Array  # the largest norm of an atom
    summed: Array  # the largest column norm of `magnitudes(D)`, above `size` in a product
    off: Array  # the rounding of an atom
    rounding: Array  # the rounding of an entry of D'D, divided by eps


def _system(D: Any) -> _System:
    (m, d), inner = D.shape, dictionaries.inner_terms(D)
    whole = dictionaries.dense(D) if d <= _WHOLE else None
    size = jnp.max(dictionaries.column_norms(D))
    summed = jnp.max(dictionaries.column_norms(dictionaries.magnitudes(D))) if inner else size
    off = inner * _EPS * summed
    size = jnp.where(size > 0, size, 1.0) + off
    if whole is not None:
        return _System(D, whole.T @ whole, size, summed, off, m * size**2)
    # In a product of factors, rounding is proportional to the magnitudes of all factors.
    summed = jnp.maximum(size, summed)
    return _System(D, None, size, summed, off, (m + 2 * inner) * summed**2)


def _support(system: _System, atoms: Array, live: Array) -> _Support:
    """The supports; the ridge exceeds the rounding of Gram matrices, so factors exist."""
    D, products, size, *_ = system
    d, k = D.shape[1], atoms.shape[1]
    if products is not None:
        gram = products[atoms[:, :, None], atoms[:, None, :]]
    else:

        def of_one(T):
            unit = partial(jax.nn.one_hot, num_classes=d, dtype=size.dtype)
            if k * d > BLOCK:  # atom by atom
                return lax.map(lambda t: ((D @ unit(t)) @ D)[T], T)
            return ((D @ unit(T).T).T @ D)[:, T]

        gram = lax.map(of_one, atoms)
    ridge = k * _EPS * system.rounding
    both = live[:, :, None] & live[:, None, :]
    gram = jnp.where(both, gram, 0) + jnp.eye(k)[None] * jnp.where(live, ridge, size**2)[:, None]
    L = jnp.linalg.cholesky(gram)
    identity = jnp.broadcast_to(jnp.eye(k), L.shape)
    root = lax.linalg.triangular_solve(L, identity, left_side=True, lower=True)
    return _Support(atoms, live, root, ridge)


def _largest(system: _System, V: Array, k: int) -> _Support:
    """The supports of the k largest nonzero entries of every row of V."""
    values, atoms = lax.top_k(jnp.abs(V), k)
    return _support(system, atoms, values > 0)


def _solve(support: _Support, B: Array) -> Array:
    """(D_T'D_T)^-1 b_T on the support of every row b of B, and 0 off the support."""
    T, live, root, _ = support
    b = jnp.where(live, jnp.take_along_axis(B, T, 1), 0)
    u = (jnp.swapaxes(root, 1, 2) @ (root @ b[:, :, None]))[:, :, 0]
    rows = jnp.arange(len(B))[:, None]
    return jnp.zeros_like(B).at[rows, T].add(jnp.where(live, u, 0))


def _misfit(D: Dictionary, Y: Array, X: Array) -> tuple[Array, Array]:
    """norm(y - D x), and a bound on its rounding divided by eps.

    The bound counts the products of the nonzeros of x and two sums per entry.

    As in pursuits, a D x that loses half of the digits of y does not count as y, however large the
    terms of D x are.
    """
    sizes = norm(jnp.abs(Y) + jnp.abs(X) @ dictionaries.magnitudes(D).T, 1)
    terms = jnp.sum(jnp.where(X != 0, 1.0, 0.0), 1) + 2 + dictionaries.inner_terms(D)
    return norm(Y - X @ D.T, 1), jnp.minimum(terms * sizes, norm(Y, 1) / math.sqrt(_EPS))


@program("searched")
def _finished(
    D: Dictionary, Y: Array, X: Array, roundings: Any, finish: int, searched: int
) -> tuple[Array]:
    """Codes by least squares on their supports, and by subspace pursuit if codes do not fit."""
    eps, summed = roundings

    def fits(X):
        residual, rounding = _misfit(D, Y, X)
        return residual <= jnp.maximum(summed * rounding, eps / 2 * norm(Y, 1))

    def chosen(V):
        """A mask of the `searched` largest magnitudes of every row."""
        size = jnp.abs(V)
        least = jax.vmap(lambda row: kth_largest(row, searched))(size)
        return (size >= least[:, None]) & (size > 0)

    def body(carry):
        X, fit, i = carry
        on = chosen(X)
        on = on | chosen(jnp.where(on, 0, (Y - X @ D.T) @ D))
        on = chosen(_least_squares(D, Y, on, _ROUGH))
        X = jnp.where(fit[:, None], X, _least_squares(D, Y, on, _FINE))
        return X, fits(X), i + 1

    own = _least_squares(D, Y, X != 0, _FINE)
    refitted, fit, _ = lax.while_loop(
        lambda carry: (carry[2] < finish) & ~carry[1].all(),
        body,
        (own, fits(own), jnp.zeros((), int)),
    )
    X = jnp.where(fit[:, None], refitted, own)
    # Drop entries that the fit does not need: on a support that is too large these entries are
    # rounding errors.
    on = jnp.abs(X) > jnp.sqrt(eps) * jnp.max(jnp.abs(X), 1, keepdims=True)
    fewer = _least_squares(D, Y, on, _FINE)
    return (jnp.where(fits(fewer)[:, None], fewer, X),)


def _least_squares(D: Dictionary, Y: Array, on: Array, level: tuple[float, int]) -> Array:
    """The codes on the supports with least norm(y - D x), by conjugate gradients (CGLS).

    `level` holds a tolerance and a number of runs. Every run starts from the residual of the code,
    and ends when the slope is at most the tolerance times the slope at the code 0.
    """
    tol, times = level

    def slope(R):
        S = jnp.where(on, R @ D, 0)
        return S, jnp.sum(S**2, 1)

    def body(s):
        X, R, S, P, energy, i = s
        Q = P @ D.T
        curvature = jnp.sum(Q**2, 1)
        step = jnp.where(curvature > 0, energy / jnp.where(curvature > 0, curvature, 1), 0)
        step = jnp.where(energy > least, step, 0)[:, None]
        X, R = X + step * P, R - step * Q
        S, smaller = slope(R)
        ratio = jnp.where(energy > least, smaller / jnp.where(energy > least, energy, 1), 0)
        return X, R, S, S + ratio[:, None] * P, smaller, i + 1

    least = tol**2 * slope(Y)[1]
    X = jnp.zeros(on.shape)
    for _ in range(times):
        R = Y - X @ D.T
        S, energy = slope(R)
        start = X, R, S, S, energy, jnp.zeros((), int)
        X, *_ = lax.while_loop(lambda s: (s[4] > least).any() & (s[5] < _ITERATIONS), body, start)
    return X


@program("k")
def _dual_vectors(D: Any, Y: Array, X: Array, steps: int, k: int) -> tuple[Array, ...]:
    """Find nu, and measure tau, zeta, sigma, the largest norm of an atom, D x and the misfit.

    FISTA minimises 1/2 sum (|d_j . nu| - low)_+^2 over j off the support, subject to D_T'nu =
    sign(x_T). FISTA also updates the correlations g = D'nu, so a step takes four products.

    The gradient is D e, where e is the excess off the support. Let D_T c be the projection of D e
    on the span of the atoms of the support, and r the remainder. Then e'g = c'sign(x_T) + r'nu for
    every nu with D_T'nu = sign(x_T). If e'g exceeds norm(e, 1) for all such nu of at most some
    length, then none of these nu has |d_j . nu| <= 1 for all j off the support.
    """
    system, signs, off = _system(D), jnp.sign(X), X == 0
    support, gamma = _largest(system, X, k), 1 / dictionaries.spectral_norm(D) ** 2

    def feasible(nu):
        for _ in range(_REFINEMENTS):
            nu = nu + _solve(support, signs - nu @ D) @ D.T
        return nu

    def beyond(g):
        return jnp.max(jnp.where(off, jnp.abs(g), 0), 1)

    def body(s):
        nu, g, z, gz, t, best, value, over, i = s
        excess = jnp.where(off, jnp.sign(gz) * jnp.maximum(jnp.abs(gz) - _LOW, 0), 0)
        e = excess @ D.T
        eg = e @ D
        c = _solve(support, eg)
        e_on = c @ D.T
        new, g_new = z - gamma * (e - e_on), gz - gamma * (eg - e_on @ D)
        room = jnp.sum(jnp.abs(excess), 1) + _LONGER * norm(nu, 1) * norm(e - e_on, 1)
        t_new = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        momentum = (t - 1) / t_new
        size = beyond(g_new)
        best = jnp.where((size < value)[:, None], new, best)
        return (
            new,
            g_new,
            new + momentum * (new - nu),
            g_new + momentum * (g_new - g),
            t_new,
            best,
            jnp.minimum(size, value),
            over | (jnp.sum(c * signs, 1) > room),
            i + 1,
        )

    nu = feasible(jnp.zeros_like(Y))
    g = nu @ D
    none = jnp.zeros(len(nu), bool)
    start = nu, g, nu, g, jnp.ones(()), nu, beyond(g), none, jnp.zeros((), int)
    *_, best, _, _, _ = lax.while_loop(
        lambda s: (s[-1] < steps) & ((s[-3] > _ENOUGH) & ~s[-2]).any(), body, start
    )
    nu = feasible(best)
    g = nu @ D
    zeta = jnp.max(jnp.where(off, 0, jnp.abs(g - signs)), 1)
    terms = (D.shape[0] + dictionaries.inner_terms(D)) * system.summed
    sizes = (jnp.broadcast_to(v, zeta.shape) for v in (system.size, terms))
    sigma = _least_singular_value(support, system.off)
    return nu, beyond(g), zeta, sigma, *sizes, X @ D.T, *_misfit(D, Y, X)


def _least_singular_value(support: _Support, off: Array) -> Array:
    """sigma_min(D_T), rounded down, if rounding moves an atom by `off`; inf for an empty support.

    With B = (D_T'D_T + ridge)^-1, sigma^2 + ridge = 1 / norm(B, 2), and norm(B, 2) is at most the
    2^p-th root of the Frobenius norm of B^(2^p). The rounding of the Cholesky factor is less
    than two ridges.
    """
    B = jnp.swapaxes(support.root, 1, 2) @ support.root
    log = jnp.zeros(len(B))
    for p in range(_SQUARINGS + 1):
        size = jnp.sqrt(jnp.sum(B**2, (1, 2)))
        log = log + jnp.log(size) / 2**p
        B = B / size[:, None, None]
        B = B @ B if p < _SQUARINGS else B
    squared = jnp.exp(-log) - 3 * support.ridge
    atoms = jnp.sum(jnp.where(support.live, 1.0, 0.0), 1)
    sigma = jnp.sqrt(jnp.maximum(squared, 0)) - jnp.sqrt(atoms) * off
    return jnp.where(support.live.any(1), jnp.maximum(sigma, 0), jnp.inf)


def _certificates(
    X: np.ndarray, finite: np.ndarray, scale: np.ndarray, parts: list[np.ndarray]
) -> CodeCertificate:
    """The certificates, with the rounding of correlations, which are sums of m or more products."""
    nu, tau, zeta, sigma, size, terms, image, residual, rounding = parts
    if not ((size > 1 / _LARGEST_ATOM) & (size < _LARGEST_ATOM)).all():
        raise ValueError(
            f"certify_code: the largest norm of an atom is {size[0]:.3g}; expected norms near 1, "
            "try dictionaries.normalize"
        )
    length, n = np.linalg.norm(nu, axis=1), np.count_nonzero(X, 1)
    rounded = _EPS * terms * length
    tau, zeta = tau + rounded, zeta + np.where(n > 0, rounded, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.where(n > 0, zeta * np.sqrt(n) / sigma, 0)
        room = 1 - tau - kappa * size
        holds = finite & (sigma > 0) & (room > 0)
        l1_gain = np.where(holds, (1 + size / sigma) / room, math.inf)
        error_gain = np.where(holds, 1 / sigma + l1_gain * (length + kappa), math.inf)
    unique = holds & (residual <= _EPS * rounding)
    residual = np.where(finite, np.ldexp(residual, scale), math.inf)
    return CodeCertificate(
        np.ldexp(X, scale[:, None]),
        residual,
        sigma,
        nu,
        tau,
        zeta,
        holds,
        unique,
        error_gain * UP,
        l1_gain * UP,
        np.ldexp(image, scale[:, None]),
    )


def _single(a: np.ndarray) -> Any:
    """The first row of an array; a row that is one number becomes a Python number."""
    return a[0] if a.ndim > 1 else a[0].item()
