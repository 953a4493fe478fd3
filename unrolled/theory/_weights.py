"""Analytic weights W in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import exponent, ldexp, times_power, wide_dtype, widened
from unrolled._base.numbers import pseudo_inverse as cut_pseudo_inverse
from unrolled._base.programs import program
from unrolled.dictionaries import (
    Conv,
    Dictionary,
    Operator,
    Structured,
    all_kept,
    as_dictionary,
    dense,
)
from unrolled.theory._coherence import refuse_cut_atoms

# A ridge below this part of the mean squared singular value acts as none: rounding would decide
# what S does outside the span of D.
_LEAST_RIDGE = 1e-9
_POWER_STEPS = 64  # of a spectral radius
_LARGEST_POWER = 4
# Newton steps for a power other than 2, until none moves a weight by more than this part.
_NEWTON_STEPS, _ENOUGH = 50, 1e-6


@checked
def frobenius_weights(D: Dictionary, ridge: ArrayLike = 0.0, power: float = 2.0) -> Operator:
    r"""The weights W of least norm(W'D, "fro") with w_i . d_i = 1, in closed form.

    .. math:: w_i = S^+ d_i / (d_i' S^+ d_i), \qquad S = D D' + ridge \, I.

    With a ridge, W minimises norm(W'D, "fro")^2 + ridge norm(W, "fro")^2, which regularises for
    noise: for codes of variance v and white noise of variance sigma^2 per entry, ridge = sigma^2 /
    v weighs interference and noise by their variances. As ridge -> inf, w_i tends to d_i / (d_i .
    d_i), which is d_i for unit atoms.

    The pseudo-inverse handles any rank of D. For a shift-invariant `Conv` the same formula holds on
    one window of the signal, where S collects every shift of every filter: one small system for the
    whole bank, and W is a `Conv` (optimal among shared filters of the same support; border effects
    are not used). Other structured dictionaries are made dense, unless they define `closed_form`.
    Traceable, and differentiable in D.

    Another power p gives the w_i of least sum_j abs(w_i . d_j)^p, by Newton steps from those for p
    = 2, for the matrix of D: 3 makes the largest products smaller, and proves more codes, by
    `certify_signals`, and more supports, by `certify_supports`, than 2 or `minimax_weights` do.

    Args:
        D: (m, d), atoms of norms that do not differ by orders of magnitude: the pseudo-inverse cuts
            singular values below 10 min(m, d) eps of the largest, and atoms with them.
        ridge: non-negative, in the units of D^2.
        power: p, from 2 to 4, with ridge = 0.

    Returns:
        W, (m, d): an array, or a `Conv` for a `Conv` whose atoms are shifts of each other (on a
        circle the stride must divide the signal and the kernel must fit into it).

    Raises:
        ValueError: a zero atom, one that is too small beside the others (where traced, its weights
            are NaN), a negative ridge, a `Conv` whose border atoms are cut, a power out of range,
            or a power other than 2 with a ridge.

    Not claimed: a small mu_W. It may exceed the coherence of D; `coherence` computes it.

    Reference: Liu, Chen, Wang, Yin (2019), equation (16), solved exactly.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> W = ur.theory.frobenius_weights(D)
        >>> bool(jnp.linalg.norm(W.T @ D) < jnp.linalg.norm(D.T @ D))
        True
    """
    D = as_dictionary(D, "frobenius_weights")
    checks.nonnegative(ridge, "ridge", "frobenius_weights")
    checks.one_number(ridge, "ridge", "frobenius_weights")
    is_zero = checks.is_concrete(ridge) and float(np.asarray(ridge)) == 0
    if not 2 <= power <= _LARGEST_POWER:
        raise ValueError(f"frobenius_weights: power must be from 2 to 4, got {power:g}")
    if power != 2 and not is_zero:
        raise ValueError("frobenius_weights: a power other than 2 needs ridge = 0")
    W, norms = _closed_form(D, None if is_zero else ridge)
    if power != 2:
        W = _least_power(dense(D), dense(W), power)
    dictionaries.nonzero_atoms(norms, "frobenius_weights")
    if checks.is_concrete(W) and isinstance(W, Conv | jax.Array):
        lost = np.isnan(np.asarray(W.filters if isinstance(W, Conv) else W))
        lost = lost.any(tuple(range(1, lost.ndim)) if isinstance(W, Conv) else 0)
        all_kept(~lost, wide_dtype(W.dtype), "frobenius_weights")
    return W


@program()
def _closed_form(D: Dictionary, ridge: ArrayLike | None) -> tuple[Operator, Array]:
    """The weights, nan for an atom that is too small, and the norms of the atoms."""
    refuse_cut_atoms(D, "frobenius_weights")
    norms = dictionaries.column_norms(D)
    shared = D.closed_form(0.0 if ridge is None else ridge) if isinstance(D, Structured) else None
    return (_of_matrix(D, ridge) if shared is None else shared), norms


def _of_matrix(D: Dictionary, ridge: ArrayLike | None) -> Array:
    A, dtype = dense(D), D.dtype
    k = exponent(A)
    A = times_power(widened(A), -k)  # its squares are in the range of the dtype
    with jax.default_matmul_precision("highest"):
        W = cut_pseudo_inverse(A).T  # its transpose is (A A')^+ A
        added = jnp.zeros((), A.dtype)
        if ridge is not None:
            ridge = ldexp(jnp.asarray(ridge, A.dtype), -2 * k)
            least = _LEAST_RIDGE * jnp.sum(A**2) / min(A.shape)
            W = jnp.where(ridge > least, _ridged(A, jnp.maximum(ridge, least)), W)
            added = jnp.where(ridge > least, ridge, 0)
        large = dictionaries.kept_atoms(A, _gram_product(A, W) + added * W, "frobenius_weights")
        W = jnp.where(large[None, :], W, jnp.nan)
        W = W / jnp.sum(W * A, axis=0, keepdims=True)  # w_i . d_i = 1
        return times_power(W, -k).astype(dtype)


@program("power")
def _least_power(A: Array, W: Array, power: float) -> Array:
    """The w_i with w_i . a_i = 1 of least sum_j abs(w_i . a_j)^power, from W, for power > 2."""
    k = exponent(A)
    unit, V = times_power(widened(A), -k), times_power(widened(W), k)

    def newton(state: tuple[Array, Array, Array], a: Array) -> tuple[Array, Array, Array]:
        w, _, n = state
        size = jnp.abs(w @ unit) ** (power - 2)
        S = (unit * size[None, :]) @ unit.T
        aim = jnp.linalg.solve(S + least * jnp.trace(S) * jnp.eye(m, dtype=S.dtype), a)
        aim = aim / (aim @ a)
        move = (aim - w) / (power - 1)
        return w + move, jnp.max(jnp.abs(move)) / jnp.max(jnp.abs(w)), n + 1

    def of_atom(pair: tuple[Array, Array]) -> Array:
        a, w = pair
        start = w, jnp.asarray(jnp.inf, w.dtype), jnp.zeros((), jnp.int32)
        return lax.while_loop(moves, lambda state: newton(state, a), start)[0]

    def moves(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] > _ENOUGH) & (state[2] < _NEWTON_STEPS)

    m = len(A)
    least = 10 * jnp.finfo(unit.dtype).eps / m  # outside of the span of D, which a lies in
    with jax.default_matmul_precision("highest"):
        found = lax.map(of_atom, (unit.T, V.T)).T
    return times_power(found, -k).astype(A.dtype)


def spectral_radius(W: Dictionary, D: Dictionary) -> Array:
    """About the spectral radius of W'D: the growth of its powers over some of them, ().

    Steps x <- x + gamma W'(y - D x) expand where gamma times it exceeds 2. Not claimed: a bound;
    for W in closed form, where W'D is similar to a symmetric matrix, the estimate is from below.

    Args:
        W, D: (m, d).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> round(float(ur.theory.spectral_radius(D, D)), 3)
        2.0
    """
    W, D = (as_dictionary(A, "spectral_radius") for A in (W, D))
    return _growth(W, D)


@jax.jit
def _growth(W: Dictionary, D: Dictionary) -> Array:
    wide = wide_dtype(D.dtype)

    def turn(v, _):
        v = ((D @ v.astype(D.dtype)) @ W).astype(wide)
        size = jnp.linalg.norm(v)
        return v / jnp.where(size > 0, size, 1), size

    start = jax.random.normal(jax.random.key(0), (D.shape[1],), wide)
    with jax.default_matmul_precision("highest"):
        sizes = lax.scan(turn, start, length=_POWER_STEPS)[1]
    return jnp.exp(jnp.mean(jnp.log(sizes[_POWER_STEPS // 2 :]))).astype(D.dtype)


@checked
def pseudo_inverse(D: Dictionary) -> Array:
    """D^+, (d, m), in the dtype of D.

    Example:
        >>> ur.theory.pseudo_inverse(jnp.array([[2.0], [0.0]])).tolist()
        [[0.5, 0.0]]
    """
    A = dense(D)
    with jax.default_matmul_precision("highest"):
        return cut_pseudo_inverse(widened(A)).astype(A.dtype)


def _ridged(A: Array, ridge: Array) -> Array:
    """(A A' + ridge I)^-1 A, by a system of the smaller dimension."""
    if len(A) > A.shape[1]:
        return _ridged(A.T, ridge).T
    return jnp.linalg.solve(A @ A.T + ridge * jnp.eye(len(A), dtype=A.dtype), A)


def _gram_product(A: Array, W: Array) -> Array:
    """A A' W for W = f(A A') A, which commutes: by products of the smaller dimension."""
    return (W @ A.T) @ A if len(A) <= A.shape[1] else A @ (A.T @ W)
