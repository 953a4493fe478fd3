"""What else convergence yields: thresholds atom by atom, the stability of the iterates, objectives,
and how to share steps.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled.dictionaries import as_dictionary, column_norms, dense, spectral_norm
from unrolled.theory._coherence import Coherence, _host, coherence
from unrolled.theory._schedules import Schedule, _numbers, deep_schedule, times


def atom_coherence(W, D) -> Coherence:
    """(mu_Wi, C_Wi) of every atom, (d,) each: max over j != i of |w_i . d_j|, and max over k of
    |W_ki|. Traceable.
    """
    coherence(W, D)  # the checks
    W, D = dense(W), dense(D)
    dtype = _checks.common_dtype(W, D)
    W, D = W.astype(dtype), D.astype(dtype)
    with jax.default_matmul_precision("highest"):
        products = jnp.abs(W.T @ D)
    own = jnp.eye(D.shape[1], dtype=bool)
    return Coherence(jnp.where(own, 0, products).max(1), jnp.abs(W).max(0))


def noise_gain(W) -> float:
    """omega = max norm(w_i, 2): in `schedule` omega norm(e, 2) may stand for C_W norm(e, 1), so
    pass omega for C_W.
    """
    return float(np.max(np.asarray(column_norms(as_dictionary(W, "noise_gain")))))


class AtomSchedule(NamedTuple):
    """Thresholds of K steps, one per atom, and the l1 error that they certify."""

    theta: np.ndarray  # (K, d)
    error: np.ndarray  # (K+1,) l1
    contraction: float  # top_{s-1}(mu_W) + top_s(mu_W) + eta
    rate: float
    floor: float
    holds: bool


def atom_schedule(
    mus,
    C_Ws,
    *,
    sparsity: int,
    bound: float,
    noise: float = 0.0,
    depth: int,
    guard: float = 0.0,
    eta: float = 0.0,
) -> AtomSchedule:
    r"""Thresholds of LISTA-CP atom by atom, tighter in l1 than the common ones of `schedule`.

    With top_k the sum of the k largest and c_i = C_{W,i} \delta + g,

    .. math::
        \theta_{k,i} = \mu_{W,i} E_k + c_i, \qquad
        E_{k+1} = (top_{s-1}(\mu_W) + top_s(\mu_W) + \eta) E_k + 2 \, top_s(c).

    No step has a false positive and `error` bounds the l1 error. Divided by s it does not bound the
    l_inf error, as that of `schedule` does.

    Args:
        mus, C_Ws: (d,), from `atom_coherence`. The others as in `schedule`.
    """
    where = "atom_schedule"
    bound, noise, guard, eta = _numbers(where, bound=bound, noise=noise, guard=guard, eta=eta)
    _checks.on_host((mus, C_Ws), where)
    mus, C_Ws = np.asarray(mus, np.float64), np.asarray(C_Ws, np.float64)
    if mus.ndim != 1 or mus.shape != C_Ws.shape:
        raise ValueError(
            f"{where}: mus has shape {mus.shape} and C_Ws {C_Ws.shape}; expected (d,) both"
        )
    _checks.nonnegative(mus, "mus", where), _checks.nonnegative(C_Ws, "C_Ws", where)
    s, K = _checks.as_index(sparsity, "sparsity", where), _checks.as_index(depth, "depth", where)
    s, c = min(s, len(mus)), _products(C_Ws, noise) + guard

    def top(values, k):
        return float(np.sort(values)[::-1][: max(k, 0)].sum())

    a = top(mus, s - 1) + top(mus, s) + eta if s else 0.0
    error, theta = np.empty(K + 1), np.empty((K, len(mus)))
    error[0] = times(s, bound)
    with np.errstate(over="ignore"):
        for k in range(K):
            theta[k] = _products(mus, error[k]) + c
            error[k + 1] = times(a, error[k]) + 2 * top(c, s)
    holds = a < 1 and math.isfinite(bound) and bool(np.isfinite(c).all())
    floor = 2 * top(c, s) / (1 - a) if holds else math.inf
    return AtomSchedule(theta, error, a, -math.log(a) if a else math.inf, floor, holds)


def _products(values: np.ndarray, x: float) -> np.ndarray:
    """values x, with 0 inf = 0."""
    return np.array([times(v, x) for v in values.tolist()])


def sequence_bound(W, D, depth: int) -> np.ndarray:
    r"""Factors F_k, (K+1,), with norm(x^k - x~^k, 2) <= F_k norm(y - y~, 2), whatever the
    thresholds.

    .. math:: F_k = \|W\|_2 \sum_{i < k} \|I - W'D\|_2^i.

    Two runs of LISTA-CP with the same thresholds on signals y and y~. Since norm(I - W'D, 2) >= 1
    where d > m, the factors grow without end there: the constant of the printed Lemma 13, which
    does not depend on k, does not exist. On a common support `support_bound` holds for all k.

    Reference: Li, Feng, Zhou (2024), Lemma 13, corrected.
    """
    K = _checks.as_index(depth, "depth", "sequence_bound")
    coherence(W, D)  # the checks
    W, D = (np.asarray(dense(A), np.float64) for A in (W, D))
    step = np.linalg.norm(np.eye(D.shape[1]) - W.T @ D, 2) * (1 + 1e-9)
    with np.errstate(over="ignore"):
        powers = step ** np.arange(K)
        return np.linalg.norm(W, 2) * (1 + 1e-9) * np.concatenate([[0.0], np.cumsum(powers)])


def support_bound(mu: float, C_W: float, *, size: int, eta: float = 0.0) -> float:
    r"""c with norm(x^k - x~^k, 1) <= c norm(y - y~, 1) for all k, if both runs stay on one set of t
    atoms.

    .. math:: c = t C_W / (1 - (t - 1) \mu_W - \eta),

    inf where the denominator is not positive. Inside the class of `schedule` t = s: both runs have
    their support in that of the code.

    Reference: Li, Feng, Zhou (2024), Lemma 13, corrected.
    """
    mu, C_W, eta = _numbers("support_bound", mu=mu, C_W=C_W, eta=eta)
    t = _checks.as_index(size, "size", "support_bound")
    room = 1 - times(max(t - 1, 0), mu) - eta
    return 0.0 if t == 0 else t * C_W / room if room > 0 else math.inf


def objective_bound(D, error: float, *, sparsity: int, gamma: float) -> float:
    r"""How far the objective at x~ can be from that at the true code x, L(v) = norm(z - D v)^2 +
    gamma norm(v, 1), z = D x.

    .. math:: |L(\tilde x) - L(x)| \le \|D\|_2^2 E^2 / s + \gamma E, \qquad \|\tilde x - x\|_1 \le E.

    `error` is an entry of a `Schedule`'s, whose l2 error is below E / sqrt(s). Both signs occur:
    the true code does not minimise L, a shrunk one does, so the lower bound 0 of the printed
    corollary is false.

    Reference: Li, Feng, Zhou (2024), Corollary 8, corrected.
    """
    error, gamma = _numbers("objective_bound", error=error, gamma=gamma)
    s = _checks.as_index(sparsity, "sparsity", "objective_bound")
    norm = _host(spectral_norm(as_dictionary(D, "objective_bound")), "D", "objective_bound")
    moved = times(norm, error)  # a product overflows to inf where a power would raise
    return moved * moved / s + times(gamma, error) if s else 0.0


class Plan(NamedTuple):
    """The fewest steps, over all blocks, after which the code of a chain is certified to a
    tolerance.
    """

    depths: tuple[int | float, ...]  # inf if there are none
    schedules: tuple[Schedule, ...]  # () if there are none
    holds: bool


def plan(mus, C_Ws, *, sparsities, bounds, noises=None, guards=None, etas=None, tol: float) -> Plan:
    r"""Depths K_1 .. K_J with E^{(J)}_{K_J} <= tol and the least K_1 + ... + K_J, each at least 1.

    The errors are those of `deep_schedule`. A block passes 2 s_j C_j / (1 - a_j) times its
    inherited error on, so blocks that come early usually need more steps. Found exactly: for each
    K_J the tolerance that is left decides the blocks before.

    Args: as in `deep_schedule`, without the depths; tol: l1 error of the last code.

    Returns:
        Plan; holds = False, with depths inf, where a block does not contract or the tolerance is
        not above the floor.
    """
    (tol,) = _numbers("plan", tol=tol)
    J = len(mus)
    columns = dict(sparsities=sparsities, bounds=bounds, noises=noises, guards=guards, etas=etas)
    columns = {
        name: [0.0] * J if column is None else list(column) for name, column in columns.items()
    }
    limits = deep_schedule(
        mus, C_Ws, depths=(0,) * J, **columns
    )  # the checks, and the contractions
    numbers = [
        _numbers("plan", C=C, B=B, delta=delta, g=g)
        for C, B, delta, g in zip(C_Ws, *list(columns.values())[1:4])
    ]
    blocks = tuple(
        _Block(found.contraction, times(s, B), 2 * s * C, delta, 2 * s * g)
        for found, s, (C, B, delta, g) in zip(limits, columns["sparsities"], numbers)
    )
    depths = (
        _fewest(blocks, tol, math.inf) if all(found.contraction < 1 for found in limits) else None
    )
    if depths is None:
        return Plan((math.inf,) * J, (), False)
    return Plan(depths, deep_schedule(mus, C_Ws, depths=depths, **columns), True)


class _Block(NamedTuple):
    """E_K = a^K start + (1 - a^K) / (1 - a) (gain (delta + inherited) + guard)."""

    a: float
    start: float
    gain: float
    delta: float
    guard: float

    def error(self, K: float, inherited: float) -> float:
        """E_K; its limit for K = inf."""
        left = self.a**K
        share = (1 - left) / (1 - self.a)
        return times(left, self.start) + share * (
            times(self.gain, self.delta + inherited) + self.guard
        )

    def tolerance(self, K: int, tol: float) -> float:
        """The inherited error with which K steps end at `tol`; negative where there is none."""
        room = tol - self.error(K, 0.0)
        share = (1 - self.a**K) / (1 - self.a)
        return room / (share * self.gain) if self.gain else (math.inf if room >= 0 else -1.0)

    def steps(self, tol: float) -> float:
        """The fewest steps, at least 1, that end at `tol` with nothing inherited; inf if there are
        none.
        """
        floor = self.error(math.inf, 0.0)
        if self.error(1, 0.0) <= tol:
            return 1
        if not floor < tol or not math.isfinite(self.start) or self.a == 0:
            return math.inf
        K = max(1, math.ceil(math.log((self.start - floor) / (tol - floor)) / -math.log(self.a)))
        K += self.error(K, 0.0) > tol  # the logarithms round
        return K - 1 if K > 1 and self.error(K - 1, 0.0) <= tol else K


def _fewest(blocks, tol: float, most: float) -> tuple[int, ...] | None:
    """Depths of the blocks with the least sum below `most` that end at `tol`; None where there are
    none.
    """
    if not blocks:
        return ()
    *before, last = blocks
    K, best, least = last.steps(tol), None, 0.0
    if not before:
        return (K,) if K < most else None
    for block in blocks:  # between one step and its limit an error only falls or only rises
        least = min(block.error(1, least), block.error(math.inf, least))
    if least > tol:
        return None
    while K + len(before) < most:
        found = _fewest(before, last.tolerance(K, tol), most - K)
        if found is not None:
            best, most = (*found, K), K + sum(found)
        if last.a**K * last.start <= 1e-18 * tol:
            break  # more steps of this block change nothing
        K += 1
    return best
