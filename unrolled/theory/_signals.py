"""Proofs that a layer finds single codes, for all signs and all noise within a bound, or finds all
codes on given supports.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import ArrayLike
from unrolled._base.programs import host_function
from unrolled._base.results import Result
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    as_dictionary,
    as_flat,
    block_of,
    dense,
    in_parts,
    magnitudes,
)
from unrolled.theory._certificates import Coupled, Step, coupled, uncovered_of
from unrolled.theory._parts import (
    chunks,
    part_norms,
    signed_products,
    spectral_norms,
    without_measurements,
)
from unrolled.theory._schedules import known, tail_of

__all__ = ["Signals", "Supports", "certify_signals", "certify_supports"]


# Rounding of an inner product, in eps of the magnitudes of its terms.
_ROUNDING = 4
# Up to `_KEPT` atoms |W'D| is kept for all steps; for more atoms, each step forms `_COLUMNS`
# columns of |W'D| at once.
_KEPT, _COLUMNS = 4_000, 1_000
# The number of entries of codes that are bounded at once.
_AT_ONCE = 2**23
# Supports with fewer than one in `_DENSE` atoms are multiplied separately, `_CACHED` numbers at a
# time.
_DENSE, _CACHED = 8, 2**18
# The number of entries of the products of supports that are formed at once.
_PRODUCTS = 2**22


class Signals(Result):
    """The proofs that a layer finds n codes, for every sign pattern and all noise within the bound.

    If codes come in parts, entries are parts, signs are directions of parts, and errors are sizes
    of parts. A part whose error is below its own size is not 0, and the error of its direction is
    less than a right angle.
    """

    # (n,) whether no step has a false positive, and each nonzero has its sign at the end
    proved: np.ndarray
    errors: np.ndarray  # (n, K+1) bound on the largest entry of the error; inf after a failure
    failed_at: np.ndarray  # (n,) the first step, from 0, whose condition fails; -1 for none
    support_from: np.ndarray  # (n,) steps after which the support stays exact; -1 for never
    uncovered: str | None = None  # the shrinkage of the layer, if no theorem covers it

    def __repr__(self) -> str:
        """The number of codes with a proof, and the largest bound on the errors of these codes."""
        n, proved = len(self.proved), int(self.proved.sum())
        largest = f", the error at most {self.errors[self.proved, -1].max():.3g}" if proved else ""
        nothing = f"; no theorem is about {self.uncovered}" if self.uncovered else ""
        steps = self.errors.shape[1] - 1
        return f"Signals: {proved} of {n} codes proved in {steps} steps{largest}{nothing}"


@overload
def certify_signals(
    layer: Any,
    params: Any,
    D: Dictionary,
    X: ArrayLike,
    *,
    noise: ArrayLike = 0.0,
    own: bool = False,
) -> Signals: ...
@overload
def certify_signals(
    layer: Any,
    params: Any,
    D: Sequence[Dictionary],
    X: Sequence[ArrayLike],
    *,
    noise: ArrayLike | Sequence[ArrayLike] = 0.0,
    own: bool = False,
) -> tuple[Signals, ...]: ...
@host_function
def certify_signals(
    layer: Any,
    params: Any,
    D: Any,
    X: Any,
    *,
    noise: ArrayLike | Sequence[ArrayLike] = 0.0,
    own: bool = False,
) -> Signals | tuple[Signals, ...]:
    r"""Prove, code by code, that steps x <- shrink(x + gamma W'(y - D x), theta) find the code.

    For one code x with support S, a = abs(x) and y = D x + noise, the error of each entry obeys

    .. math::
        E_0 = a, \qquad A = P E_k + o E_k + n, \qquad
        E_{k+1} = \min(A + \theta, \max(a, A - \theta)) \text{ on } S, \quad 0 \text{ off } S,

    as long as theta_i >= A_i for every i off S. P is abs(gamma W'D) without its diagonal,
    o_i = abs(1 - gamma w_i . d_i), and n_i bounds the effect of noise and rounding. If support
    selection passes every entry of S that exceeds theta, the error is A if a > theta + A, a if
    a + A <= theta, and max(A, a) in between. If the selection may pass only some of these entries,
    the bound takes the larger of the errors with and without selection. An activation with a tail
    adds the tail to the error, on S and off S. Each map gives the largest error for arguments
    within A of the code, so the bound of one step is exact. The bound of several steps ignores the
    signs of products.

    If codes come in parts (`D.block`), E, a and A refer to sizes of parts,
    P_ij = norm(gamma_i W_i'D_j, 2), o_i = norm(I - gamma_i W_i'D_i, 2), and a part may also move
    perpendicular to its direction:

    .. math:: E_{k+1} = \min(A + \theta, \sqrt{a^2 + (\sqrt{(A^2 - a^2)_+} - \theta)_+^2})

    on S, or as above if the part passes unshrunk. Proof: let t > 0 be the size of the part after
    shrinkage. Because norm(u - x) <= A, the squared error of the part is at most
    a^2 + t (A^2 - a^2) / (t + theta) - t theta. This bound is largest at
    t + theta = sqrt(A^2 - a^2), where u is orthogonal to x.

    The worst-case theorems bound the errors of all codes of a class by one number. For a Gaussian D
    of shape (250, 500), these theorems cover codes with up to 2 nonzeros, and this function finds
    proofs for codes with up to 12 nonzeros. If a worst-case theorem covers a code with the given
    params, this function also finds a proof.

    The products |W'D| are a d x d matrix. For at most 4,000 atoms, this matrix is kept for all
    steps; for more atoms, each step forms the matrix in chunks.

    Args:
        layer: a layer of a family with this step, as in `certify`, with any activation whose
            constants are known; or a chain, `networks.dsc`, of such layers.
        params: the params of the layer, from theory, calibrated or learned.
        D: (m, d); for a chain a tuple.
        X: (n, d), the codes, or the codes in another form that D accepts; for a chain a tuple of
            arrays (n, d_l).
        noise: bound on the l1 norm of the noise (the l2 norm if codes come in parts), one number or
            one per code, (n,); for a chain one bound per layer, or one bound for the signal. The
            error of a layer is noise, entry by entry, for the next layer.
        own: whether to use, for each code, the least thresholds for which the proof holds, instead
            of the thresholds of the params. The result then depends on the weights, but not on the
            thresholds of the params.

    Returns:
        Signals, computed in float64 from the stored arrays; for a chain a tuple of Signals. If the
            layer has another shrinkage, as in `certify`, no code has a proof, and `uncovered` names
            the shrinkage.

    Raises:
        TypeError: the layer is of another family, the activation has no constants, or an argument
            is traced.
        ValueError: params or codes do not fit, or a number is out of range.

    Not claimed: that the layer fails on a code without a proof. After few steps, or with noise, a
    small nonzero may not have its sign yet; `errors` still bounds its error. The function estimates
    the rounding as in `rounding_guard`; the estimate is not a worst case. The proofs do not cover
    other codes; for a class of codes use a sample and `tolerance_bound`.

    Reference: Li, Feng, Zhou (2024), Theorem 12, followed entry by entry for one code.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 100, 200)
        >>> X = ur.problems.exact_sparse(jax.random.key(1), (50, 200), 4)
        >>> layer = ur.alista(30, support=(1, 1))
        >>> params = layer.init(None, D)
        >>> bool(ur.theory.certify_signals(layer, params, D, X, own=True).proved.all())
        True
    """
    where = "certify_signals"
    if getattr(layer, "layers", None) is None:
        return _of_layer(layer, params, D, X, noise, own, None, where)[0]
    layers, noises = layer.layers, noise
    if not isinstance(noise, Sequence):  # the noise of the signal only
        noises = (noise, *[0.0] * (len(layers) - 1))
    columns: dict[str, Any] = dict(params=params, D=D, X=X, noise=noises)
    for name, column in columns.items():
        if not isinstance(column, Sequence) or len(column) != len(layers):
            raise ValueError(f"{where}: expected {len(layers)} {name}, one per layer of the chain")
    results, left = [], None
    for one, p, A, codes, delta in zip(layers, *columns.values()):
        result, left = _of_layer(one, p, A, codes, delta, own, left, where)
        results.append(result)
    return tuple(results)


def _of_layer(
    layer: Any,
    params: Any,
    D: Any,
    X: Any,
    noise: Any,
    own: bool,
    before: np.ndarray | None,
    where: str,
) -> tuple[Signals, np.ndarray]:
    """The proofs for the codes of one layer, and the last errors of their parts, (n, d).

    `before` holds the errors of the parts of the signals, (n, m), that the layer before leaves.
    """
    codes = codes_of(X, as_dictionary(D, where), where)
    deltas = noise_of(noise, len(codes), where)
    if uncovered := uncovered_of(layer, params, D, where):
        n, after = len(codes), np.full((len(codes), layer.depth), np.inf)
        errors = np.column_stack([codes.max(1, initial=0), after])
        never = np.full(n, -1)
        nothing = Signals(np.zeros(n, bool), errors, np.zeros(n, int), never, uncovered)
        return nothing, np.full(codes.shape, np.inf)
    measured = MeasuredLayer.of(layer, params, D, where)
    if before is not None and len(before) != len(codes):
        raise ValueError(
            f"{where}: X has {len(before)} codes for one layer and {len(codes)} for the next"
        )
    choose = _least if own else _given
    rows = max(1, _AT_ONCE // codes.shape[1])
    parts = []
    for i in range(0, max(len(codes), 1), rows):
        chunk = slice(i, i + rows)
        entering = None if before is None else before[chunk]
        parts.append(measured.bounds(codes[chunk], deltas[chunk], choose, entering))
    errors, failed, inside, left = (np.concatenate(column) for column in zip(*parts))
    return Signals((failed < 0) & are_found(codes, left), errors, failed, _from(inside)), left


def codes_of(X: Any, D: Dictionary, where: str) -> np.ndarray:
    """The sizes of the parts of the codes, (n, d); magnitudes of entries if D has no parts."""
    d, g = D.shape[1], block_of(D)
    codes = checks.host_floats(as_flat(D, X, 1)[0], "X", where)
    if codes.ndim != 2 or codes.shape[1] != d:
        raise ValueError(
            f"{where}: X has shape {codes.shape}; expected (n, {d}){in_parts(D, d)}, one code a row"
        )
    checks.finite(codes, "X", where)
    sizes = np.abs(codes.astype(np.float64))
    return np.hypot.reduce(sizes.reshape(-1, d // g, g), axis=2) if g > 1 else sizes


def noise_of(noise: Any, n: int, where: str) -> np.ndarray:
    """The bounds on the norm of the noise of each of n signals, (n,)."""
    deltas = checks.host_floats(noise, "noise", where).astype(np.float64)
    if deltas.shape not in ((), (n,)):
        raise ValueError(f"{where}: noise has shape {deltas.shape}; expected () or ({n},)")
    if not ((deltas >= 0) & (deltas < math.inf)).all():
        raise ValueError(f"{where}: noise must be at least 0 and finite")
    return np.broadcast_to(deltas, (n,))


def are_found(codes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Whether the error bounds of a code lie below its nonzeros, so that their signs are right."""
    return np.all((errors < codes) | (codes == 0), axis=1)


def _given(step: Step, needed: np.ndarray) -> np.ndarray:
    return step.theta


def _least(step: Step, needed: np.ndarray) -> np.ndarray:
    return needed[:, None]


class MeasuredLayer(NamedTuple):
    """The numbers of a layer that the theory needs: the steps, and the tail of the activation."""

    measured: Coupled
    tail_lipschitz: float
    tail: float  # the largest difference of a step from soft thresholding
    reach: float  # the constants hold for arguments up to this

    @classmethod
    def of(cls, layer: Any, params: Any, D: Any, where: str) -> "MeasuredLayer":
        """Measure a layer; raise unless theorems cover its step and its constants are known."""
        measured = coupled(layer, params, D, where)
        known(layer.activation, where)
        return cls(measured, *tail_of(layer.activation), layer.activation.reach)

    def bounds(
        self,
        a: np.ndarray,
        deltas: np.ndarray,
        choose: Callable[[Step, np.ndarray], np.ndarray],
        before: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Follow the error of every code through the steps.

        Args:
            a: (n, d), magnitudes of the codes.
            deltas: (n,), l1 norms of the noise; l2 norms if codes come in parts.
            choose: `choose(step, needed) -> theta`, where `needed`, (n,), is the least threshold
                that each code needs, and theta has the shape (d,), (n, 1) or ().
            before: (n, m), bounds on the errors of the signals, per entry or per part.

        Returns:
            The largest entry of the error after 0..K steps, (n, K+1); the first step that fails, or
            -1, (n,); whether the support is exact, (n, K+1); the last error of each entry, (n, d).
            If codes come in parts, d is the number of parts, and magnitudes are sizes of parts.
        """
        every = self.tail > 0 or self.reach < math.inf  # otherwise errors stay on the supports
        entries, size = _Entries(a, every), a.sum(1)
        a = entries.take(a)
        on, E, failed = a > 0, a, np.full(len(a), -1)
        errors, exact = [E.max(1, initial=0)], [~on.any(1)]
        for k, (step, P) in enumerate(zip(self.measured.steps, _maps(self.measured))):
            with np.errstate(over="ignore", invalid="ignore"):
                n = self._noise(step, np.maximum(size, E.sum(1)), deltas, before)
                A, off = entries.moved(P, E, n, on)
                least = off.max(1, initial=0)
                theta = choose(step, np.where(np.isnan(least), math.inf, least))
                same, at = np.ptp(theta, axis=-1).max(initial=0) == 0, entries.take(theta)
                suffices = ((least[:, None] if same else off) <= theta).all(1)
                within = (a + A + at <= self.reach).all(1)
                failed = np.where((failed < 0) & ~(suffices & within), k, failed)
                beyond = np.minimum(self.tail, 2 * self.tail_lipschitz * A) if self.tail else 0.0
                mapped = _mapped(step, a, A, at, same, self.measured.block > 1)
                E = np.where(on, mapped + self.tail, beyond)
                E = np.where(failed[:, None] < 0, E, math.inf)
            errors.append(E.max(1, initial=0))
            exact.append(np.where(on, E < a, E == 0).all(1))
            if (failed >= 0).all():  # no later step proves anything
                rest = len(self.measured.steps) - k - 1
                errors, exact = errors + errors[-1:] * rest, exact + exact[-1:] * rest
                break
        left = entries.put(E, np.where(failed < 0, 0.0, math.inf))
        return np.stack(errors, 1), failed, np.stack(exact, 1), left

    def _noise(
        self, step: Step, size: np.ndarray, deltas: np.ndarray, before: np.ndarray | None
    ) -> np.ndarray:
        """Noise and rounding in products, for codes of l1 norms `size`; (n, d) or (n, 1)."""
        n = np.zeros((len(size), 1))
        if deltas.any():
            n = deltas[:, None] * step.gamma * step.products.C
        if before is not None:
            n = n + step.gamma * (before @ _sizes_of(step.W, before.shape[1], step.gamma.size))
        rounding = _ROUNDING * self.measured.eps * (size * step.G + n.max(1)) + step.lost
        return (1 + _ROUNDING * self.measured.eps) * (n + rounding[:, None])


class _Entries:
    """The entries of codes whose errors are followed: entries on the supports, or all entries."""

    def __init__(self, a: np.ndarray, whole: bool):
        self.d = a.shape[1]
        width = max(1, (a > 0).sum(1).max(initial=0))
        # Indices of the supports, filled up with atoms off the support; None for all entries.
        self.at: np.ndarray | None = None
        if not whole and _DENSE * width < self.d:
            self.at = np.argsort(a == 0, axis=1, kind="stable")[:, :width]

    def take(self, v: np.ndarray) -> np.ndarray:
        """The followed entries of v, (n, d) or (d,)."""
        if self.at is None or v.shape[-1:] != (self.d,):
            return v
        return v[self.at] if v.ndim == 1 else np.take_along_axis(v, self.at, 1)

    def put(self, v: np.ndarray, others: np.ndarray) -> np.ndarray:
        """All entries, (n, d): the followed entries v, and others[i] at other entries of code i."""
        if self.at is None:
            return v
        full = np.repeat(others[:, None], self.d, axis=1)
        np.put_along_axis(full, self.at, v, 1)
        return full

    def moved(
        self, parts: Iterable[np.ndarray], E: np.ndarray, n: np.ndarray, on: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """P E + n at the followed entries, and at all entries with 0 on the supports."""
        if self.at is None:
            A = np.concatenate([E @ P for P in parts], axis=1) + n
            return _inf_for_nan(A), np.where(on, 0, A)
        A, last = np.empty((len(E), self.d)), 0
        n = np.broadcast_to(n, A.shape)
        for P in parts:
            columns = slice(last, last := last + P.shape[1])
            few = max(1, _CACHED // (E.shape[1] * P.shape[1]))
            for i in range(0, len(E), few):
                some = slice(i, i + few)
                np.matmul(E[some, None], P[self.at[some]], out=A[some, None, columns])
                A[some, columns] += n[some, columns]
        taken = self.take(A)
        np.put_along_axis(A, self.at, np.where(on, 0, taken), 1)
        return _inf_for_nan(taken), A


def _inf_for_nan(v: np.ndarray) -> np.ndarray:
    """Replace nan by inf, because products of infinite errors are nan."""
    return np.where(np.isnan(v), math.inf, v)


def _sizes_of(W: Operator, rows: int, columns: int) -> np.ndarray:
    """norm(W_ji, 2) of all pairs of parts, (rows, columns); |W| if parts are entries."""
    if W.shape == (rows, columns):
        return np.asarray(dense(magnitudes(W)))
    m, d = W.shape
    blocks = np.asarray(dense(W)).reshape(rows, m // rows, columns, d // columns)
    return spectral_norms(blocks.swapaxes(1, 2))


def _maps(measured: Coupled) -> Iterator[Iterator[np.ndarray]]:
    """For each step, the columns of gamma |D'W| with |1 - gamma w_i . d_i| on the diagonal."""
    D, d = measured.D, measured.parts
    columns = list(chunks(d, _COLUMNS // measured.block))
    up, kept = 1 + _ROUNDING * measured.eps, list[np.ndarray]()
    for step in measured.steps:
        parts: Iterable[np.ndarray] = (
            np.ascontiguousarray(part_norms(D, step.W, some)) for some in columns
        )
        if d <= _KEPT:
            parts = kept = kept if kept and step.tied else list(parts)
        yield (up * _map(step, some, part) for some, part in zip(columns, parts))


def _map(step: Step, columns: np.ndarray, products: np.ndarray) -> np.ndarray:
    P = products * step.gamma[columns]
    P[columns, np.arange(len(columns))] = step.own[columns]
    return P


def _mapped(
    step: Step, a: np.ndarray, A: np.ndarray, theta: np.ndarray, same: bool, parts: bool = False
) -> np.ndarray:
    """The largest error of entries a, or of parts of size a, whose argument moves by at most A.

    `same`: whether all atoms have one threshold.
    """
    if parts:  # perpendicular to x, the argument moves by at most `across`
        across = np.sqrt(np.maximum(A - a, 0)) * np.sqrt(A + a)
        soft = np.minimum(A + theta, np.hypot(a, np.maximum(across - theta, 0)))
    else:
        soft = np.minimum(A + theta, np.maximum(a, A - theta))
    if not step.passing:
        return soft
    passed = np.where(a > theta + A, A, np.where(a + A <= theta, a, np.maximum(A, a)))
    if step.passing == len(step.theta):
        return passed
    # With one threshold, no entry off the support exceeds the threshold. With several thresholds,
    # an entry may be below its own threshold and still large enough to be selected.
    above = ((a > 0) & (a + A > theta)).sum(1, keepdims=True)
    return np.where(same & (above <= step.passing), passed, np.maximum(soft, passed))


def _from(inside: np.ndarray) -> np.ndarray:
    """For each row, the first column from which on all entries are True; -1 if there is none."""
    wrong = ~inside[:, ::-1]
    last = np.where(wrong.any(1), wrong.argmax(1), inside.shape[1])
    return np.where(last == 0, -1, inside.shape[1] - last)


class Supports(Result):
    """The proofs that steps with residual thresholds find all codes on each of n supports."""

    ratio: np.ndarray  # (n,) c(S): no product off S exceeds this share of the largest product on S
    contraction: np.ndarray  # (n,) kappa(S), the largest row sum of abs(W_S'D_S - I)
    sparsity: int  # s

    def bound(self, k: int, ratio: float = 0.95) -> np.ndarray:
        r"""A bound on the max norm of the error of `layers.alista_rt` after k steps, (n,).

        .. math:: (c + \kappa)^{\min(s-1, k)} \kappa^{\max(k-s+1, 0)} \frac{1 + \kappa}{1 - \kappa}.

        The bound is relative to max abs(x), and holds for signals without noise and without
        rounding. The result is inf unless c(S) <= c < 1 and kappa < 1.

        Args:
            k: number of steps.
            ratio: c, the ratio of the layer.

        Example:
            >>> D = ur.dictionaries.identity_hadamard(16)
            >>> proof = ur.theory.certify_supports(D, D, [[0, 1], [2, 20]])
            >>> proof.bound(20).round(6).tolist()
            [0.0, 0.0]
        """
        where = "Supports.bound"
        k = checks.as_index(k, "k", where)
        c, kappa, s = checks.as_fraction(ratio, "ratio", where), self.contraction, self.sparsity
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            taking = (c + kappa) ** min(max(s - 1, 0), k) * kappa ** max(k - s + 1, 0)
            bound = taking * (1 + kappa) / (1 - kappa)
        return np.where((self.ratio <= c) & (kappa < 1), bound, np.inf)

    def __repr__(self) -> str:
        """The number of supports with a proof, and the largest ratio."""
        n, proved = len(self.ratio), int((self.ratio < 1).sum())
        largest = f", the largest ratio {self.ratio.max():.4g}" if n else ""
        return f"Supports: all codes on {proved} of {n} supports of {self.sparsity} atoms{largest}"


@host_function
def certify_supports(W: Dictionary, D: Dictionary, supports: ArrayLike) -> Supports:
    r"""Prove, support by support, that steps with residual thresholds never take a wrong entry.

    Let B = W'D. For a support S,

    .. math::
        c(S) = \max_{i \notin S} \|B_{iS} B_{SS}^{-1}\|_1, \qquad
        \kappa(S) = \max_{i \in S} \sum_{j \in S} |B_{SS} - I|_{ij}.

    `layers.alista_rt` takes an entry, and keeps it, if abs(g_i) > c max abs(g), with
    g = W'(y - D x). If c >= c(S), no step takes an entry off S, for every code on S, with any
    magnitudes and any signs. If also c < 1 and kappa(S) < 1, the steps converge to the code, at the
    rate of `Supports.bound`. The function forms the products of all atoms of the supports with all
    other atoms at once; these products are a d x d matrix if every atom is in a support.

    If codes come in parts (`D.block`), S consists of parts, and norm(A_ij, 2) of a block replaces
    abs(A_ij) in both sums. Let Q = B_iS B_SS^-1, and let g be the products of x* - x on S. Then
    abs(g_i) = abs(sum_j Q_ij g_j) <= sum_j norm(Q_ij, 2) max abs(g_j). The remaining proof holds
    with sizes of parts instead of magnitudes.

    Args:
        W: (m, d), weights with w_i . d_i = 1, for example `frobenius_weights(D)`.
        D: (m, d).
        supports: (n, s), indices of atoms, or of parts, distinct within each row.

    Returns:
        Supports, computed in float64 and rounded up. A support whose atoms depend on each other has
        the ratio inf.

    Raises:
        TypeError: an argument is traced, or an index is not an integer.
        ValueError: an index is out of range or repeated within a row, or shapes do not fit.

    Not claimed: that the steps fail on a support with c(S) >= 1. With W = D, c(S) is the exact
    recovery coefficient of Tropp (2004). For a class of supports, apply `tolerance_bound` to the
    ratios of a sample.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 100, 200)
        >>> W = ur.theory.frobenius_weights(D)
        >>> supports = [[3, 50, 77, 120], [0, 1, 2, 3]]
        >>> (ur.theory.certify_supports(W, D, supports).ratio < 0.95).tolist()
        [True, True]
    """
    where = "certify_supports"
    W, D = as_dictionary(W, where, "W"), as_dictionary(D, where)
    if W.shape != D.shape:
        raise ValueError(f"{where}: W has shape {W.shape} and D {D.shape}; expected the same")
    checks.finite((W, D), "W or D", where)
    W, D, g = without_measurements(W, D, block_of(D))
    S = _indices(supports, D.shape[1] // g, where)
    n, s = S.shape
    with jax.enable_x64(True):
        W, D = checks.cast((W, D), np.float64)
        at_once = max(1, _PRODUCTS // max(1, s * g * D.shape[1]))
        parts = [_of_supports(W, D, S[i : i + at_once], g) for i in range(0, n, at_once)]
    ratio, contraction = np.concatenate([np.zeros((2, 0)), *parts], axis=1)
    return Supports(ratio, contraction, s)


def _indices(supports: Any, d: int, where: str) -> np.ndarray:
    S = np.asarray(supports)
    if S.ndim != 2:
        raise ValueError(f"{where}: supports have shape {S.shape}; expected (n, s), one a row")
    if S.dtype.kind not in "iu" and S.size:
        raise TypeError(f"{where}: supports must be indices of atoms, got dtype {S.dtype}")
    if S.size and not (0 <= S.min() and S.max() < d):
        raise ValueError(
            f"{where}: supports must be indices in 0..{d - 1}, got {S.min()}..{S.max()}"
        )
    if (np.diff(np.sort(S, 1), axis=1) == 0).any():
        raise ValueError(f"{where}: a support names an atom twice")
    return S.astype(int)


def _of_supports(W: Any, D: Any, S: np.ndarray, g: int) -> np.ndarray:
    """The ratios and contractions of some supports of parts of g entries, (2, n)."""
    n, s = S.shape
    entries = (S[:, :, None] * g + np.arange(g)).reshape(n, s * g)
    used, place = np.unique(entries, return_inverse=True)
    B = signed_products(W, D, used)  # (d, used)
    R = np.moveaxis(B[:, place.reshape(entries.shape)], 0, 1)  # (n, d, s g)
    each = np.arange(n)[:, None]
    A = R[each, entries]  # B_SS
    inverse = _inverses(A)
    with np.errstate(invalid="ignore"):
        Q = R @ inverse
        # Q (I + E) = R A^-1 accounts for the remainder R - Q A, which is a rounding error.
        left = np.abs(R - Q @ A).sum(2) * np.abs(inverse).sum(2).max(1, initial=0)[:, None]
        sums = _sizes_of_blocks(np.where(np.isnan(Q), np.inf, Q), g).sum(2)
        sums = sums + left.reshape(n, -1, g).sum(2)
    sums = np.where(np.isnan(sums), np.inf, sums)
    sums[each, S] = 0
    up = 1 + 4 * s * g * np.finfo(float).eps
    kappa = _sizes_of_blocks(A - np.eye(s * g), g).sum(2).max(1, initial=0)
    return np.stack([sums.max(1, initial=0), kappa]) * up


def _sizes_of_blocks(A: np.ndarray, g: int) -> np.ndarray:
    """norm(A_ij, 2) of the g x g blocks of matrices; inf for a block that is not finite."""
    if g == 1:
        return np.abs(A)
    n, rows, columns = A.shape
    blocks = A.reshape(n, rows // g, g, columns // g, g).swapaxes(2, 3)
    finite = np.isfinite(blocks).all((3, 4))
    sizes = spectral_norms(np.where(finite[..., None, None], blocks, 0))
    return np.where(finite, sizes, np.inf)


def _inverses(A: np.ndarray) -> np.ndarray:
    """The inverses of matrices, nan for singular matrices."""
    try:
        return np.linalg.inv(A)
    except np.linalg.LinAlgError:
        if len(A) == 1:
            return np.full_like(A, np.nan)
        return np.concatenate([_inverses(one) for one in np.array_split(A, 2)])
