"""Proofs that a layer finds single codes, for all signs and all noise within a bound."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Result, host_function
from unrolled._base.numbers import UP
from unrolled.activations import Activation
from unrolled.dictionaries import Dictionary, Operator
from unrolled.theory import _parts
from unrolled.theory._certificates import Coupled, Step, coupled, uncovered_of
from unrolled.theory._schedules import known, tail_of

__all__ = ["Signals", "certify_signals"]


# Up to `_KEPT` atoms |W'D| is kept for all steps; for more atoms, each step forms `_COLUMNS`
# columns of |W'D| at once.
_KEPT, _COLUMNS = 4_000, 1_000
# The number of entries of codes that are bounded at once.
_AT_ONCE = 2**23
# Supports with fewer than one in `_DENSE` atoms are multiplied separately, `_CACHED` numbers at a
# time.
_DENSE, _CACHED = 8, 2**18


class Signals(Result):
    """The proofs that a layer finds n codes, for every sign pattern and all noise within the bound.

    If codes come in parts, entries are parts, signs are directions of parts, and errors are sizes
    of parts. A part whose error is below its own size is not 0, and the error of its direction is
    less than a right angle.
    """

    # (n,) whether no argument off the support exceeds its threshold in any step, and each nonzero
    # has its sign at the end; entries off the support are 0 if the activation has no tail
    proved: np.ndarray
    errors: np.ndarray  # (n, K+1) bound on the largest entry of the error; inf after a failure
    failed_at: np.ndarray  # (n,) the first step, from 0, whose condition fails; -1 for none
    support_from: np.ndarray  # (n,) steps after which the support stays exact; -1 for never
    uncovered: str | None = None  # the shrinkage of the layer, if no theorem covers it
    # "proved", or "estimated" if D or W is not a sum of products; then no code is proved
    rounding: str = "proved"
    theta: Any = None  # (n, K) with `own`: the thresholds of each code

    def __repr__(self) -> str:
        """The number of codes with a proof, and the largest bound on the errors of these codes."""
        n, proved = len(self.proved), int(self.proved.sum())
        largest = f", the error at most {self.errors[self.proved, -1].max():.3g}" if proved else ""
        nothing = f"; no theorem is about {self.uncovered}" if self.uncovered else ""
        if self.rounding == "estimated":
            nothing += f"; {int((self.failed_at < 0).sum())} fail at no step, by estimated rounding"
        steps = self.errors.shape[1] - 1
        return f"Signals: {proved} of {n} codes proved in {steps} steps{largest}{nothing}"


NORMS = ("l1", "l2", "linf", "gaussian")


class Noise(NamedTuple):
    r"""Bounds on the noise e of n signals, and on its effect |W_i'e|.

    The effect on entry i is at most max_j |W_ji| delta for the l1 norm, norm(w_i, 2) delta for the
    l2 norm, and norm(w_i, 1) delta for the largest entry. For Gaussian noise of standard deviation
    sigma, |w_i'e| <= norm(w_i, 2) sigma t for all products and |e_j| <= sigma t for all entries
    hold together with the probability `confidence`, by the union bound. For a part of g entries,
    the norms are those of the columns of W_i, and their l2 norm over the columns.
    """

    deltas: np.ndarray  # (n,)
    norm: str
    t: float = 1.0
    # for Gaussian noise, the bound on |w_i|'|e| over the bound on |w_i'e|
    spread: float = 1.0

    @classmethod
    def of(
        cls,
        noise: Any,
        norm: str | None,
        confidence: float,
        n: int,
        measured: Coupled,
        where: str,
        at_once: int = 1,
    ) -> "Noise":
        """Check the arguments. `confidence` is that of `at_once` such statements together."""
        deltas, D = noise_of(noise, n, where), measured.D
        norm = ("l1" if dictionaries.block_of(D) == 1 else "l2") if norm is None else norm
        checks.one_of(norm, NORMS, "noise_norm", where)
        confidence = checks.as_fraction(confidence, "confidence", where)
        if norm != "gaussian":
            return cls(deltas, norm)
        from scipy.special import ndtri

        weights = sum(not step.tied for step in measured.steps)
        bounds = 2 * (weights * D.shape[1] + D.shape[0])
        t = -float(ndtri((1 - confidence) / at_once / bounds))
        return cls(deltas, norm, t * (1 + 1e-9), math.sqrt(D.shape[0]))

    def rows(self, some: slice | np.ndarray) -> "Noise":
        """The noise of some signals."""
        return self._replace(deltas=self.deltas[some])

    def gain(self, step: Step) -> np.ndarray:
        """The effect of noise of norm 1, for every part, (d,)."""
        n = len(step.gamma)
        if self.norm == ("l1" if step.W.shape[1] == n else "l2"):
            return step.products.C
        W = np.abs(np.asarray(dictionaries.dense(step.W)))
        W = W.reshape(len(W), n, -1)  # (m, parts, g)
        if self.norm == "l1":
            return np.hypot.reduce(W, axis=2).max(0, initial=0)
        sizes = W.sum(0) if self.norm == "linf" else np.hypot.reduce(W, axis=0)
        return self.t * np.hypot.reduce(sizes, axis=1)

    def l1(self, m: int) -> np.ndarray:
        """Bounds on the l1 norm of the noise, (n,)."""
        factor = dict(l1=1.0, l2=math.sqrt(m), linf=m, gaussian=m * self.t)
        return self.deltas * factor[self.norm]


@overload
def certify_signals(
    layer: Any,
    params: Any,
    D: Dictionary,
    X: ArrayLike,
    *,
    noise: ArrayLike = 0.0,
    noise_norm: str | None = None,
    confidence: float = 1 - 1e-6,
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
    noise_norm: str | None = None,
    confidence: float = 1 - 1e-6,
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
    noise_norm: str | None = None,
    confidence: float = 1 - 1e-6,
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
        noise: bound on the norm of the noise, one number or one per code, (n,); for a chain one
            bound per layer, or one bound for the signal. The error of a layer is noise, entry by
            entry, for the next layer. What y loses when it is rounded to the dtype, or computed as
            D x in the dtype, is not noise: the rounding covers it.
        noise_norm: "l1" (the default), "l2" (the default if codes come in parts), "linf" for the
            largest entry, or "gaussian". Gaussian noise is independent from entry to entry, with
            the standard deviation `noise`.
        confidence: for Gaussian noise, the probability with which the statement on a code is true.
        own: whether to use, for each code, the least thresholds for which the proof holds, instead
            of the thresholds of the params. The result then depends on the weights, but not on the
            thresholds of the params. The field `theta` has these thresholds, rounded up to the
            dtype of D, for `layer.from_theory(W, theta[i])`.

    Returns:
        Signals, computed in float64 from the stored arrays; for a chain a tuple of Signals. If the
            layer has another shrinkage, as in `certify`, no code has a proof, and `uncovered` names
            the shrinkage.

    Raises:
        TypeError: the layer is of another family, the activation has no constants, or an argument
            is traced.
        ValueError: params or codes do not fit, or a number is out of range.

    The bound n on noise and rounding is proved. Let u be the unit roundoff of the dtype, s the
    number of nonzeros, and m the number of entries of a signal. For products of at most size
    G = gamma max (|W|'|D|)_ij, rounding adds about m u G norm(E_k, 1) and 2 s u G norm(x, 1) to A.
    The first term decreases with the error, and only the second term remains. We assume sums of
    products in any order, which are complete before x or y is added, operations that round to
    nearest, and values of the activation within 16 eps. On accelerators, `precision` of the layer
    sets u: "highest" is float32. A fast convolution, as by Winograd, is not such a sum.

    Not claimed: that the layer fails on a code without a proof. After few steps, or with noise, a
    small nonzero may not have its sign yet; `errors` still bounds its error. The rounding of
    `from_functions` is not known, so for such a dictionary `rounding` is "estimated", as if
    products were sums, and no code is proved. The proofs do not cover other codes; for a class of
    codes use a sample and `tolerance_bound`. If the activation has a tail, entries off the support
    are not 0; `errors` bounds these entries, too.

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
    options: dict[str, Any] = dict(norm=noise_norm, confidence=confidence, own=own, where=where)
    if getattr(layer, "layers", None) is None:
        return _of_layer(layer, params, D, X, noise, None, **options)[0]
    layers, noises = layer.layers, noise
    if not isinstance(noise, Sequence):  # the noise of the signal only
        noises = (noise, *[0.0] * (len(layers) - 1))
    columns: dict[str, Any] = dict(params=params, D=D, X=X, noise=noises)
    for name, column in columns.items():
        if not isinstance(column, Sequence) or len(column) != len(layers):
            raise ValueError(f"{where}: expected {len(layers)} {name}, one per layer of the chain")
    results, left = [], None
    for one, p, A, codes, delta in zip(layers, *columns.values()):
        result, left = _of_layer(one, p, A, codes, delta, left, at_once=len(layers), **options)
        results.append(result)
    return tuple(results)


def _of_layer(
    layer: Any,
    params: Any,
    D: Any,
    X: Any,
    noise: Any,
    before: np.ndarray | None,
    *,
    norm: str | None,
    confidence: float,
    own: bool,
    where: str,
    at_once: int = 1,
) -> tuple[Signals, np.ndarray]:
    """The proofs for the codes of one layer, and the last errors of their parts, (n, d).

    `before` holds the errors of the parts of the signals, (n, m), that the layer before leaves.
    """
    codes = codes_of(X, dictionaries.as_dictionary(D, where), where)
    n = len(codes)
    if uncovered := uncovered_of(layer, params, D, where):
        noise_of(noise, n, where)
        errors = np.column_stack([codes.max(1, initial=0), np.full((n, layer.depth), np.inf)])
        never = np.full(n, -1)
        nothing = Signals(np.zeros(n, bool), errors, np.zeros(n, int), never, uncovered)
        return nothing, np.full(codes.shape, np.inf)
    measured = MeasuredLayer.of(layer, params, D, where)
    noises = Noise.of(noise, norm, confidence, n, measured.measured, where, at_once)
    if before is not None and len(before) != n:
        raise ValueError(f"{where}: X has {len(before)} codes for one layer and {n} for the next")
    dtype, thresholds = dictionaries.as_dictionary(D, where).dtype, list[np.ndarray]()

    def least(step: Step, needed: np.ndarray) -> np.ndarray:
        thresholds.append(stored_up(needed, dtype))
        return thresholds[-1][:, None]

    rows = max(1, _AT_ONCE // codes.shape[1])
    parts, thetas = [], []
    for i in range(0, max(n, 1), rows):
        some = slice(i, i + rows)
        entering = None if before is None else before[some]
        thresholds.clear()
        parts.append(
            measured.bounds(codes[some], noises.rows(some), least if own else _given, entering)
        )
        unused = [np.full(len(codes[some]), math.inf)] * (layer.depth - len(thresholds))
        thetas.append(np.stack([*thresholds, *unused], 1) if layer.depth else np.zeros((n, 0)))
    errors, failed, inside, left = (np.concatenate(column) for column in zip(*parts))
    sums = all(step.rounding.proved for step in measured.measured.steps)
    proved = (failed < 0) & are_found(codes, left) & sums
    return Signals(
        proved,
        errors,
        failed,
        _from(inside),
        rounding="proved" if sums else "estimated",
        theta=np.concatenate(thetas) if own else None,
    ), left


def stored_up(theta: np.ndarray, dtype: Any) -> np.ndarray:
    """The least numbers of the dtype that are at least theta, in float64; inf beyond its range."""
    with np.errstate(over="ignore"):
        stored = np.asarray(theta, np.float64).astype(dtype)
    above = np.nextafter(stored, np.asarray(np.inf, dtype))
    return np.where(stored.astype(np.float64) < theta, above, stored).astype(np.float64)


def codes_of(X: Any, D: Dictionary, where: str) -> np.ndarray:
    """The sizes of the parts of the codes, (n, d); magnitudes of entries if D has no parts."""
    d, g = D.shape[1], dictionaries.block_of(D)
    codes = checks.host_floats(dictionaries.as_flat(D, X, 1)[0], "X", where)
    if codes.ndim != 2 or codes.shape[1] != d:
        raise ValueError(
            f"{where}: X has shape {codes.shape}; expected (n, {d}){dictionaries.in_parts(D, d)}, "
            "one code a row"
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


class MeasuredLayer(NamedTuple):
    """The numbers of a layer that the theory needs: the steps, and the tail of the activation."""

    measured: Coupled
    activation: Activation
    tail_lipschitz: float
    tail: float  # the largest difference of a step from soft thresholding
    reach: float  # the constants hold for arguments up to this

    @classmethod
    def of(cls, layer: Any, params: Any, D: Any, where: str) -> "MeasuredLayer":
        """Measure a layer; raise unless theorems cover its step and its constants are known."""
        measured = coupled(layer, params, D, where)
        known(layer.activation, where)
        return cls(measured, layer.activation, *tail_of(layer.activation), layer.activation.reach)

    def bounds(
        self,
        a: np.ndarray,
        noise: Noise,
        choose: Callable[[Step, np.ndarray], np.ndarray],
        before: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Follow the error of every code through the steps.

        Args:
            a: (n, d), magnitudes of the codes.
            noise: the noise of the n signals.
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
        nonzeros = np.full(len(a), entries.d) if every else on.sum(1)
        first = E.max(1, initial=0) * (UP if self.measured.block > 1 else 1.0)  # sizes are rounded
        errors, exact = [first], [~on.any(1)]
        for k, (step, P) in enumerate(zip(self.measured.steps, _maps(self.measured))):
            with np.errstate(over="ignore", invalid="ignore"):
                n = self._noise(step, E.sum(1), size, nonzeros, noise, before)
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
                if self.tail:
                    E = E + step.rounding.of_values(self.activation, a + A + at)
                E = np.where(failed[:, None] < 0, E * UP, math.inf)
            errors.append(E.max(1, initial=0))
            exact.append(np.where(on, E < a, E == 0).all(1))
            if (failed >= 0).all():  # no later step proves anything
                rest = len(self.measured.steps) - k - 1
                errors, exact = errors + errors[-1:] * rest, exact + exact[-1:] * rest
                break
        left = entries.put(E, np.where(failed < 0, 0.0, math.inf))
        return np.stack(errors, 1), failed, np.stack(exact, 1), left

    def _noise(
        self,
        step: Step,
        error: np.ndarray,
        size: np.ndarray,
        nonzeros: np.ndarray,
        noise: Noise,
        before: np.ndarray | None,
    ) -> np.ndarray:
        """Noise and rounding in arguments, (n, d) or (n, 1), for l1 norms of errors and codes."""
        m = self.measured.D.shape[0]
        n, l1 = np.zeros((len(size), 1)), noise.l1(m)
        if noise.deltas.any():
            n = noise.deltas[:, None] * step.gamma * noise.gain(step)
        if before is not None:
            n = n + step.gamma * (before @ _sizes_of(step.W, before.shape[1], step.gamma.size))
            l1 = l1 + math.sqrt(m // before.shape[1]) * before.sum(1)
        error, size, nonzeros, l1 = (v[:, None] for v in (error, size, nonzeros, l1))
        return step.with_rounding(n, error, size, nonzeros, l1, noise.spread)


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
        return np.asarray(dictionaries.dense(dictionaries.magnitudes(W)))
    m, d = W.shape
    blocks = np.asarray(dictionaries.dense(W)).reshape(rows, m // rows, columns, d // columns)
    return _parts.spectral_norms(blocks.swapaxes(1, 2))


def _maps(measured: Coupled) -> Iterator[Iterator[np.ndarray]]:
    """For each step, the columns of gamma |D'W| with |1 - gamma w_i . d_i| on the diagonal."""
    D, d = measured.D, measured.parts
    columns = list(_parts.chunks(d, _COLUMNS // measured.block))
    kept = list[np.ndarray]()
    for step in measured.steps:
        parts: Iterable[np.ndarray] = (
            np.ascontiguousarray(_parts.part_norms(D, step.W, some)) for some in columns
        )
        if d <= _KEPT:
            parts = kept = kept if kept and step.tied else list(parts)
        yield (_map(step, some, part) for some, part in zip(columns, parts))


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
