"""Consequences of convergence: schedules per atom, stability, objectives, and depths."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, checked, host_function, program
from unrolled._base.numbers import UP, largest, up
from unrolled.dictionaries import Conv, Dictionary, Structured, as_dictionary, dense, magnitudes
from unrolled.theory import _coherence
from unrolled.theory._coherence import Coherence, diagonal
from unrolled.theory._schedules import Schedule, deep_schedule, host_numbers, times

__all__ = [
    "AtomSchedule",
    "Plan",
    "atom_coherence",
    "atom_schedule",
    "error_gain",
    "noise_gain",
    "objective_bound",
    "plan",
    "sequence_bound",
    "support_bound",
]


# If the initial error of a block has fallen to this share of the tolerance, further steps of the
# block change nothing in float64.
_NEGLIGIBLE = 1e-18


def atom_coherence(W: Dictionary, D: Dictionary) -> Coherence:
    r"""The coherence mu_Wi and the largest entry C_Wi of w_i for every atom, two arrays (d,).

    .. math:: \mu_{W,i} = \max_{j \ne i} |w_i \cdot d_j|, \qquad C_{W,i} = \max_k |W_{ki}|.

    Traceable. If there are many atoms, their inner products are formed tile by tile. For a `Conv`
    with more than 4096 atoms, the values are per filter; atoms near a border have at most the
    values of their filter.

    Args:
        W: (m, d), weights.
        D: (m, d), unit atoms.

    Raises:
        ValueError: as in `coherence`.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> mus = ur.theory.atom_coherence(D, D).mu_W
        >>> mus.shape, bool(jnp.isclose(mus.max(), ur.theory.mutual_coherence(D)))
        ((40,), True)
    """
    return Coherence(*_atom_coherence(*_coherence.weights_of(W, D, "atom_coherence")))


@program()
def _atom_coherence(W: Dictionary, D: Dictionary) -> tuple[Array, Array]:
    if D.shape[1] ** 2 <= _coherence.BLOCK:  # atom by atom, also near a border
        W, D = dense(W), dense(D)
    return _largest_of_rows(W, D), _largest_entries(W)


def _largest_of_rows(W: Dictionary, D: Dictionary, diagonal: bool = False) -> Array:
    """The largest abs(w_i . d_j) for every i, (d,), over j != i, or over all j if `diagonal`."""
    if _coherence.exceeds(D):
        return _coherence.row_maxima(dense(W), dense(D), diagonal=diagonal)
    products, own = dictionaries.inner_products(W, D)
    sizes = jnp.abs(products) if diagonal else jnp.where(own, 0, jnp.abs(products))
    return _of_atoms(D, largest(sizes, 1), lambda v: jnp.max(v, 1))


def _of_atoms(D: Dictionary, rows: Array, of_group: Callable[[Array], Array]) -> Array:
    """Values for all atoms, (d,), from the values of the rows of `inner_products`."""
    if not isinstance(D, Structured) or len(rows) == D.shape[1]:
        return rows
    return jnp.asarray(D.spread(of_group(rows.reshape(D.groups[0], -1))))


def _largest_entries(W: Dictionary) -> Array:
    """max_j abs(W_ji), (d,)."""
    if isinstance(W, Conv):  # the entries of the filters, one after the other
        return W.spread(jnp.max(jnp.abs(W.entries()).reshape(W.groups[0], -1), 1))
    return largest(jnp.abs(dense(W)), 0)


@program()
def atom_products(W: Dictionary, D: Dictionary) -> tuple[Array, Array, Array, Array]:
    """w_i . d_i, max_{j != i} abs(w_i . d_j), max_j abs(W_ji) and max_j (|W|'|D|)_ij, (d,) each."""
    own = _of_atoms(D, diagonal(W, D), lambda v: v[:, -1])
    sizes = _largest_of_rows(magnitudes(W), magnitudes(D), diagonal=True)
    return own, _largest_of_rows(W, D), _largest_entries(W), sizes


@host_function
def noise_gain(W: Dictionary) -> float:
    """omega = max norm(w_i, 2), rounded up, which replaces C_W if the noise is bounded in l2 norm.

    If you know a bound on norm(e, 2) instead of norm(e, 1), pass omega as C_W and the bound as
    `noise` to `schedule`. To `rounding_guard`, which multiplies `noise` by C_W, pass the bound
    times omega / C_W as `noise`.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> omega = ur.theory.noise_gain(D)
        >>> l2 = ur.theory.schedule(1 / 8, omega, sparsity=3, bound=1.0, noise=1e-3, depth=20)
        >>> round(l2.floor, 3)
        0.016
    """
    with jax.enable_x64(True):
        W = checks.cast_on_host(as_dictionary(W, "noise_gain", "W"), np.float64)
        return float(np.max(np.asarray(dictionaries.column_norms(W)))) * UP


@host_function
def error_gain(W: Dictionary, *, sparsity: int) -> float:
    r"""The factor that replaces C_W if the noise of a block is the error of the block before it.

    .. math:: \max_i \frac{1}{s} \sum_{k \le s} |w_i|_{(k)} \le C_W.

    Here |w_i|_(1) >= |w_i|_(2) >= ... are the sorted magnitudes of w_i. An error on at most s
    entries, whose l_inf norm is at most E / s, changes every entry of W'y by at most `error_gain`
    times E. `schedule` certifies such an error.

    Args:
        W: (m, d), the weights of the block.
        sparsity: s of the block before; at s = 0 the result is C_W.

    Raises:
        TypeError: W is traced.
        ValueError: the sparsity is negative.

    Example:
        >>> W = jnp.array([[0.5, 0.0], [0.75, 1.0]])
        >>> [ur.theory.error_gain(W, sparsity=s) for s in (1, 2)]
        [1.0, 0.625]
    """
    s = max(1, checks.as_index(sparsity, "sparsity", "error_gain"))
    return sum_of_largest(as_dictionary(W, "error_gain", "W"), s) / s


def sum_of_largest(W: Dictionary, s: int) -> float:
    """The largest sum of the magnitudes of s entries of one column w_i."""
    if isinstance(W, Conv):  # pad, because the rounding of a sum depends on its length
        columns = np.abs(np.asarray(W.entries())).reshape(W.groups[0], -1)
        columns = np.pad(columns, ((0, 0), (0, max(0, min(s, W.shape[0]) - columns.shape[1]))))
    elif isinstance(W, Structured) and W.shape[1] ** 2 <= _coherence.BLOCK:
        columns = np.asarray(_represented(W))
    else:
        columns = np.asarray(dense(W)).T
    size = -np.sort(-np.abs(np.asarray(columns, np.float64)), axis=1)
    return float(size[:, :s].sum(1).max())


@program()
def _represented(W: Structured) -> Array:
    """The columns of W that represent all columns, one per row."""
    rows = dictionaries.representatives(W)
    units = jnp.zeros((len(rows), W.shape[1]), W.dtype)
    return jax.vmap(lambda e: W @ e)(units.at[jnp.arange(len(rows)), rows].set(1))


class AtomSchedule(Result):
    """Thresholds of K steps, one per atom, and the l1 error that they certify."""

    theta: np.ndarray  # (K, d)
    error: np.ndarray  # (K+1,) l1 error after k steps
    contraction: float  # top_{s-1}(mu_W) + top_s(mu_W) + eta
    rate: float  # -ln of the contraction, inf at 0
    floor: float  # limit of the error, inf if the recursion does not contract
    holds: bool  # whether the contraction is below 1, beyond rounding, and all inputs are finite


@checked
def atom_schedule(
    mus: ArrayLike,
    C_Ws: ArrayLike,
    *,
    sparsity: int,
    bound: ArrayLike,
    noise: ArrayLike = 0.0,
    depth: int,
    guard: ArrayLike = 0.0,
    eta: ArrayLike = 0.0,
) -> AtomSchedule:
    r"""Thresholds of LISTA-CP per atom, with a tighter l1 bound than the bound of `schedule`.

    Let top_k be the sum of the k largest entries, and c_i = C_{W,i} \delta + g. Then

    .. math::
        \theta_{k,i} = \mu_{W,i} E_k + c_i, \qquad
        E_{k+1} = (top_{s-1}(\mu_W) + top_s(\mu_W) + \eta) E_k + 2 \, top_s(c).

    No step has a false positive, and `error` bounds the l1 error.

    Args:
        mus, C_Ws: (d,) each, from `atom_coherence`. The other arguments are as in `schedule`.

    Returns:
        AtomSchedule. If the recursion does not contract, holds is False and floor is inf.

    Raises:
        TypeError: an argument is traced.
        ValueError: the shapes differ, or a value is negative or NaN.

    Not claimed: that error / s bounds the l_inf error, as it does in `schedule`.

    Example:
        >>> mus, C_Ws = np.array([0.2, 0.1, 0.1]), np.ones(3)
        >>> atoms = ur.theory.atom_schedule(mus, C_Ws, sparsity=2, bound=1.0, depth=10)
        >>> common = ur.theory.schedule(0.2, 1.0, sparsity=2, bound=1.0, depth=10)
        >>> round(atoms.contraction, 3), round(common.contraction, 3)
        (0.5, 0.6)
    """
    where = "atom_schedule"
    bound, noise, guard, eta = host_numbers(where, bound=bound, noise=noise, guard=guard, eta=eta)
    checks.on_host((mus, C_Ws), where)
    enlarged = up(mus, eta)
    mus, C_Ws = np.asarray(mus, np.float64), np.asarray(C_Ws, np.float64)
    if mus.ndim != 1 or mus.shape != C_Ws.shape:
        raise ValueError(
            f"{where}: mus has shape {mus.shape} and C_Ws {C_Ws.shape}; expected (d,) both"
        )
    checks.nonnegative(mus, "mus", where)
    checks.nonnegative(C_Ws, "C_Ws", where)
    s, K = checks.as_index(sparsity, "sparsity", where), checks.as_depth(depth, "depth", where)
    s, c = min(s, len(mus)), _times(C_Ws, noise) + guard

    def top(values: np.ndarray, k: int) -> float:
        return float(np.sort(values)[::-1][: max(k, 0)].sum())

    a = top(mus, s - 1) + top(mus, s) + eta if s else 0.0
    checks.announce((K, len(mus)), np.float64, "the thresholds", where)
    error, theta = np.empty(K + 1), np.empty((K, len(mus)))
    error[0] = times(s, bound)
    with np.errstate(over="ignore"):
        for k in range(K):
            theta[k] = _times(mus, error[k]) + c
            error[k + 1] = times(a, error[k]) + 2 * top(c, s)
    finite = math.isfinite(error[0]) and math.isfinite(bound) and bool(np.isfinite(c).all())
    holds = a * enlarged < 1 and finite
    floor = 2 * top(c, s) / (1 - a) if holds else math.inf
    return AtomSchedule(theta, error, a, -math.log(a) if a else math.inf, floor, holds)


def _times(values: np.ndarray, x: float) -> np.ndarray:
    """The product of values and x, with 0 times inf = 0."""
    return np.multiply(values, x, out=np.zeros_like(values), where=(values != 0) & (x != 0))


@host_function
def sequence_bound(W: Dictionary, D: Dictionary, depth: int) -> np.ndarray:
    r"""Factors F_k, (K+1,), with norm(x^k - x~^k, 2) <= F_k norm(y - y~, 2), for any thresholds.

    .. math:: F_k = \|W\|_2 \sum_{i < k} \|I - W'D\|_2^i.

    The factors compare two runs of LISTA-CP with the same thresholds, on the signals y and y~. If
    d > m, norm(I - W'D, 2) >= 1 and the factors grow without bound. Contrary to Lemma 13 as
    printed, no single factor holds for all thresholds and all k. If both runs keep their supports
    in a common set, `support_bound` gives one factor for all k. Structured dictionaries are made
    dense.

    Args:
        W: (m, d), weights.
        D: (m, d), unit atoms.
        depth: K, the number of steps.

    Reference: Li, Feng, Zhou (2024), Lemma 13, corrected.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> ur.theory.sequence_bound(D, D, 3).round(3).tolist()
        [0.0, 1.414, 2.828, 4.243]
    """
    K = checks.as_depth(depth, "depth", "sequence_bound")
    W, D = _coherence.weights_of(W, D, "sequence_bound")
    weights, atoms = (np.asarray(dense(A), np.float64) for A in (W, D))
    step = _distance_from_identity(weights, atoms) * UP
    with np.errstate(over="ignore"):
        powers = step ** np.arange(K)
        return np.linalg.norm(weights, 2) * UP * np.concatenate([[0.0], np.cumsum(powers)])


def _distance_from_identity(W: np.ndarray, D: np.ndarray) -> float:
    """norm(I - W'D, 2)."""
    m, d = D.shape
    if d**2 <= _coherence.BLOCK or d <= 2 * m:
        return float(np.linalg.norm(np.eye(d) - W.T @ D, 2))
    # On vectors orthogonal to the rows of W and D, I - W'D is the identity.
    Q = np.linalg.qr(np.concatenate([W, D]).T)[0]
    return max(1.0, float(np.linalg.norm(np.eye(Q.shape[1]) - (W @ Q).T @ (D @ Q), 2)))


def support_bound(mu: ArrayLike, C_W: ArrayLike, *, size: int, eta: ArrayLike = 0.0) -> float:
    r"""The factor c with norm(x^k - x~^k, 1) <= c norm(y - y~, 1) for all k, on a common support.

    .. math:: c = t C_W / (1 - (t - 1) \mu_W - \eta).

    The factor is inf unless the denominator is positive by more than rounding. Both runs must keep
    their supports in one set of t atoms. For the class of `schedule`, t = s, because both runs keep
    their supports in the support of the code.

    Args:
        mu, C_W, eta: as in `schedule`.
        size: t, the number of atoms of the common support.

    Raises:
        TypeError: an argument is traced.
        ValueError: an argument is negative or NaN.

    Reference: Li, Feng, Zhou (2024), Lemma 13, corrected.

    Example:
        >>> ur.theory.support_bound(0.1, 0.5, size=6)
        6.0
    """
    enlarged = up(mu, eta)
    mu, C_W, eta = host_numbers("support_bound", mu=mu, C_W=C_W, eta=eta)
    t = checks.as_index(size, "size", "support_bound")
    taken = times(max(t - 1, 0), mu) + eta
    return 0.0 if t == 0 else t * C_W / (1 - taken) if taken * enlarged < 1 else math.inf


@host_function
def objective_bound(D: Dictionary, error: ArrayLike, *, sparsity: int, gamma: ArrayLike) -> float:
    r"""A bound on the difference between the objectives of a code x~ and of the true code x.

    .. math::
        L(v) = \|D x - D v\|_2^2 + \gamma \|v\|_1, \qquad
        |L(\tilde x) - L(x)| \le \|D\|_2^2 E^2 / s + \gamma E, \qquad \|\tilde x - x\|_1 \le E.

    The difference may have either sign: a shrunk code minimises L, and the true code does not. So
    the lower bound 0 of the printed corollary is false.

    Args:
        D: (m, d).
        error: E, an entry of `Schedule.error`; the l2 error is then at most E / sqrt(s).
        sparsity: s, as in `schedule`.
        gamma: weight of the penalty.

    Raises:
        TypeError: an argument is traced.
        ValueError: an argument is negative or NaN.

    Reference: Li, Feng, Zhou (2024), Corollary 8, corrected.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> round(ur.theory.objective_bound(D, 0.1, sparsity=4, gamma=0.5), 4)
        0.055
    """
    where = "objective_bound"
    error, gamma = host_numbers(where, error=error, gamma=gamma)
    s = checks.as_index(sparsity, "sparsity", where)
    norm = _coherence.host_float(
        dictionaries.spectral_norm(_coherence.without_parts(as_dictionary(D, where), where)),
        "D",
        where,
    )
    moved = times(norm, error)  # a square overflows to inf, but ** would raise
    return moved * moved / s + times(gamma, error) if s else 0.0


class Plan(Result):
    """The depths with the fewest steps in total for which the last error is within a tolerance."""

    depths: tuple[Any, ...]  # integers; inf if no depths reach the tolerance
    schedules: tuple[Schedule, ...]  # () if no depths reach the tolerance
    holds: bool  # whether every layer is certified
    reason: str = ""  # why the plan does not hold


@checked
def plan(
    mus: Sequence[ArrayLike],
    C_Ws: Sequence[ArrayLike],
    *,
    sparsities: Sequence[int],
    bounds: Sequence[ArrayLike],
    noises: Sequence[ArrayLike] | None = None,
    guards: Sequence[ArrayLike] | None = None,
    etas: Sequence[ArrayLike] | None = None,
    gains: Sequence[ArrayLike] | None = None,
    tol: ArrayLike,
) -> Plan:
    r"""Depths K_1, ..., K_J, each at least 1, with E^{(J)}_{K_J} <= tol and the least sum.

    The errors are computed as in `deep_schedule`. A block amplifies its inherited error by
    2 s_j G_j / (1 - a_j), so early blocks usually need more steps than late blocks. The search is
    exact: for each K_J, the remaining tolerance determines the depths of the earlier blocks. If tol
    equals the error of a plan up to rounding, the result may have one step too many.

    Args:
        mus, C_Ws, sparsities, bounds, noises, guards, etas, gains: as in `deep_schedule`.
        tol: tolerance of the l1 error of the last code.

    Returns:
        Plan. If a block does not contract or the tolerance is not above the floor, holds is False
        and the depths are inf.

    Raises:
        TypeError: an argument is traced.
        ValueError: sequences have different lengths, or a value is negative or NaN.

    Example:
        >>> plan = ur.theory.plan(
        ...     (1 / 32, 1 / 5), (1.0, 1.0), sparsities=(4, 2), bounds=(1.0, 1.0), tol=1e-3
        ... )
        >>> plan.depths
        (9, 15)
    """
    (tol,) = host_numbers("plan", tol=tol)
    J = len(mus)
    zeros = (0.0,) * J
    noises = zeros if noises is None else noises
    guards = zeros if guards is None else guards
    etas = zeros if etas is None else etas
    gains = C_Ws if gains is None else gains
    classes: dict[str, Any] = dict(sparsities=sparsities, bounds=bounds, noises=noises)
    schedules = partial(deep_schedule, mus, C_Ws, **classes, guards=guards, etas=etas, gains=gains)
    limits = schedules(depths=(0,) * J)  # the checks, and the contractions
    numbers = [
        host_numbers("plan", C=C, B=B, delta=delta, g=g, gain=gain)
        for C, B, delta, g, gain in zip(C_Ws, bounds, noises, guards, gains)
    ]
    noisy = [times(C, delta) + g for C, _, delta, g, _ in numbers]
    blocks = tuple(
        _Block(limit.contraction, times(s, B), 2 * s * gain, times(2 * s, c))
        for limit, s, c, (_, B, _, _, gain) in zip(limits, sparsities, noisy, numbers)
    )
    contracts = [limit.contraction * up(mu, eta) < 1 for limit, mu, eta in zip(limits, mus, etas)]
    finite = all(map(math.isfinite, [*noisy, *(block.start for block in blocks)]))
    depths = _fewest(blocks, tol, math.inf) if all(contracts) and finite else None
    if depths is None:
        return Plan((math.inf,) * J, (), False, _reason(blocks, contracts, noisy, tol))
    return Plan(depths, schedules(depths=depths), True)


class _Block(NamedTuple):
    """A block with the error E_K = a^K start + (1 - a^K) / (1 - a) (gain inherited + own)."""

    a: float
    start: float
    gain: float
    own: float

    def error(self, K: float, inherited: float) -> float:
        """E_K, or its limit for K = inf."""
        left = self.a**K
        share = (1 - left) / (1 - self.a)
        return times(left, self.start) + share * (times(self.gain, inherited) + self.own)

    def tolerance(self, K: float, tol: float) -> float:
        """The inherited error for which E_K equals `tol`; negative if no such error exists."""
        room = tol - self.error(K, 0.0)
        share = (1 - self.a**K) / (1 - self.a)
        return room / (share * self.gain) if self.gain else (math.inf if room >= 0 else -1.0)

    def steps(self, tol: float) -> float:
        """The least K >= 1 with E_K <= `tol` for a block without an inherited error, or inf."""
        floor = self.error(math.inf, 0.0)
        if self.error(1, 0.0) <= tol:
            return 1
        if not floor < tol or not math.isfinite(self.start) or self.a == 0:
            return math.inf
        fall = math.log(self.start - floor) - math.log(tol - floor)  # their ratio may overflow
        K = max(1, math.ceil(fall / -math.log(self.a)))
        K += self.error(K, 0.0) > tol  # the logarithms round
        return K - 1 if K > 1 and self.error(K - 1, 0.0) <= tol else K


def _reason(
    blocks: Sequence[_Block], contracts: Sequence[bool], noisy: Sequence[float], tol: float
) -> str:
    """The hypothesis that a plan violates, with the number that violates the hypothesis."""
    for j, (block, contracting, c) in enumerate(zip(blocks, contracts, noisy), start=1):
        if not contracting:
            return f"block {j} does not contract: its a is {block.a:.4g}, and must be below 1"
        if not math.isfinite(block.start):
            return f"block {j} begins at an error s B that is not finite"
        if not math.isfinite(c):
            return f"the noise of block {j} is not finite"
    least = _least(blocks)
    certified = "the least error that they certify is" if least > tol else "their errors stay above"
    return f"no depths end at {tol:.4g}: {certified} {least:.4g}"


def _least(blocks: Sequence[_Block]) -> float:
    """The least error of the last code, over all depths.

    The error of a block is monotone in its depth, so the error is least after one step, or in the
    limit of infinitely many steps.
    """
    least = 0.0
    for block in blocks:
        least = min(block.error(1, least), block.error(math.inf, least))
    return least


def _fewest(blocks: Sequence[_Block], tol: float, most: float) -> tuple[int, ...] | None:
    """The depths of least sum, below `most`, for which the last error is at most `tol`, or None."""
    if not blocks:
        return ()
    *before, last = blocks
    K, best = last.steps(tol), None
    if not before:
        return (int(K),) if K < most else None
    if _least(blocks) > tol:
        return None
    while K + len(before) < most:
        depths = _fewest(before, last.tolerance(K, tol), most - K)
        if depths is not None:
            best, most = (*depths, int(K)), K + sum(depths)
        if last.a**K * last.start <= _NEGLIGIBLE * tol:
            break
        K += 1
    return best
