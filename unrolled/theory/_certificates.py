"""Certified bounds on errors: by theory for given params, or from an independent sample."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from unrolled._base import checks, text
from unrolled._base.doors import ArrayLike, Result, checked, host_function
from unrolled._base.numbers import UP
from unrolled.activations import relu
from unrolled.dictionaries import Dictionary, Operator, as_dictionary, block_of, spread
from unrolled.theory._convergence import sum_of_largest
from unrolled.theory._parts import Products, part_products
from unrolled.theory._rounding import Rounding, share
from unrolled.theory._schedules import host_numbers

__all__ = ["Certificate", "Tolerance", "certify", "exceedance", "signals_needed", "tolerance_bound"]


class Certificate(Result):
    """An error bound for every code of a class, step by step."""

    error: np.ndarray  # (K+1,) l1 error after k steps
    false_positives_excluded: np.ndarray  # (K,) whether step k leaves no entry off the support
    holds: bool  # whether the last bound is 0 or below the first; otherwise it says nothing
    # The largest sparsity, by doubling and bisection, at which the certificate holds; 0 for none
    largest_sparsity: int
    uncovered: str | None = None  # the shrinkage of the layer, if no theorem covers it

    def __repr__(self) -> str:
        """The first and last bounds, whether the certificate holds, and the largest sparsity."""
        holds = "holds" if self.holds else "does not hold"
        return (
            f"Certificate: l1 error from {self.error[0]:.4g} to {self.error[-1]:.4g} in "
            f"{len(self.error) - 1} steps, {holds}, largest sparsity {self.largest_sparsity}"
        )

    @property
    def reason(self) -> str:
        """Why the certificate does not hold, with the numbers; "" if it holds."""
        if self.holds:
            return ""
        if self.uncovered:
            return f"no theorem is about {self.uncovered}"
        first, last, K = float(self.error[0]), float(self.error[-1]), len(self.error) - 1
        most = self.largest_sparsity
        largest = f"it holds for s = {most}" if most else "it holds for no s that was tried"
        return (
            f"the bound must end below where it begins, at {first:.4g}, but after {K} steps it is "
            f"{last:.4g}; {largest}"
        )

    def table(self, form: str = "markdown") -> Any:
        """The bound step by step, in the forms of `comparison.Comparison.table`."""
        clean = [None, *map(bool, self.false_positives_excluded)]
        columns = ("step", "l1_error", "false_positives_excluded")
        steps = enumerate(zip(map(float, self.error), clean))
        return text.table_of(form, [dict(zip(columns, (k, *row))) for k, row in steps])


@overload
def certify(
    layer: Any,
    params: Any,
    D: Dictionary,
    *,
    sparsity: int,
    bound: ArrayLike,
    noise: ArrayLike = 0.0,
) -> Certificate: ...
@overload
def certify(
    layer: Any,
    params: Sequence[Any],
    D: Sequence[Dictionary],
    *,
    sparsity: Sequence[int],
    bound: Sequence[ArrayLike],
    noise: ArrayLike | Sequence[ArrayLike] = 0.0,
) -> tuple[Certificate, ...]: ...
@host_function
def certify(
    layer: Any, params: Any, D: Any, *, sparsity: Any, bound: Any, noise: Any = 0.0
) -> Certificate | tuple[Certificate, ...]:
    r"""Certify any params of a layer whose step is x <- shrink(x + gamma W'(y - D x), theta).

    For every code with at most s nonzeros of magnitude at most B, observed with noise of l1 norm at
    most delta, the l1 error after k steps is at most e_k, where

    .. math::
        e_0 = s B, \qquad e_{k+1} = o_k e_k + top_{s-1}(\mu_k) e_k + top_s(\theta_k + n_k), \qquad
        n_{k,i} = C_{k,i} \delta + g_k,

    and no step has a false positive, as long as theta_ki >= mu_ki e_k + n_ki for every atom i. Here
    w_i are the columns of gamma_k W_k, o_k = max_i abs(1 - w_i . d_i), mu_ki = max abs(w_i . d_j)
    over j != i, C_ki = max_j abs(w_ji), top_s is the sum of the s largest entries, and g_k is the
    rounding.

    In a step with smaller thresholds, the error may also have entries off the support S. Then

    .. math::
        e_{k+1} = \max_S \Bigl( \sum_{i \in S} (\theta_{k,i} + n_{k,i})
            + \sum_{i \notin S} (\mu_{k,i} e_k + n_{k,i} - \theta_{k,i})_+ \Bigr)
            + o_k e_k + top_{s-1}(\mu_k) e_k.

    In a step that follows such a step, top_s replaces top_{s-1}, and max(abs(1 - w_i . d_i), mu_ki)
    replaces mu_ki in the condition. With support selection, a false positive may pass unshrunk.
    Each false positive that passes adds its threshold to the error, for at most as many entries as
    the step selects.

    If codes come in parts x_i (`D.block`), s counts parts, B and e refer to the sizes abs(x_i) of
    parts, delta bounds the l2 norm of the noise, W_i are the columns of gamma_k W_k for part i, and

    .. math::
        o_k = \max_i \|I - W_i'D_i\|_2, \qquad \mu_{k,i} = \max_{j \ne i} \|W_i'D_j\|_2, \qquad
        C_{k,i} = \|W_i\|_2.

    Proof: let e = x* - x, and let n be the noise. The argument of the shrinkage differs from x*_i
    by W_i'n + sum_{j != i} W_i'D_j e_j - (I - W_i'D_i) e_i. The numbers above bound the size of
    this difference. Shrinkage moves a part by at most theta_i, and to 0 if its size is at most
    theta_i. The size of a false positive is the size of the argument minus theta_i.

    Args:
        layer: a layer of a family with this step, such as `layers.lista_cp`, `alista`, `tilista` or
            `ista`, with ReLU; or a chain, `networks.dsc`, of such layers.
        params: the params of the layer, tied or not, from theory or from training.
        D: (m, d), atoms of any norm; for a chain a tuple.
        sparsity, bound, noise: s, B and delta; for a chain, one value per layer. For a chain,
            `noise` may also be one number, the bound on the noise of the signal. The error of one
            layer is noise for the next layer, weighted as in `error_gain` if false positives are
            excluded.

    Returns:
        Certificate, computed in float64 from the stored arrays; for a chain a tuple of
            certificates. If the layer has another shrinkage (firm shrinkage, or a subclass of your
            own), no theorem covers the layer: the errors are infinite, and `reason` says so.

    Raises:
        TypeError: the layer is of another family, or an argument is traced.
        ValueError: the activation is not ReLU, params do not fit, or a number is out of range.

    Not claimed: that the layer fails if the certificate does not hold. The bound on the rounding
    g_k is proved, as in `rounding_guard`, for a D whose products are sums of products; for
    `from_functions` it is an estimate.

    Reference: Li, Feng, Zhou (2024), Theorem 12, for given thresholds.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(64)
        >>> params = ur.analytic.alista(D, depth=20, sparsity=2, bound=1.0)
        >>> result = ur.theory.certify(ur.alista(20), params, D, sparsity=2, bound=1.0)
        >>> result.holds, bool(result.false_positives_excluded.all()), result.largest_sparsity
        (True, True, 2)
    """
    if getattr(layer, "layers", None) is None:
        return _layer(layer, params, D, sparsity, bound, noise, None)[0]
    return _chain(layer, params, D, sparsity, bound, noise)


class _Error(NamedTuple):
    """Bounds on the error of a code; `size` is the number of nonzeros of the error, 0 if unknown.

    If the code comes in parts, `l1`, `linf` and `size` refer to parts.
    """

    l1: float
    linf: float
    size: int
    block: int = 1  # the number of entries of a part


class Step(NamedTuple):
    """The numbers of one step that the theory uses, in float64, for n parts of the d entries."""

    W: Operator
    tied: bool  # whether W equals the W of the step before
    gamma: np.ndarray  # (n,) magnitude of gamma
    sign: np.ndarray  # (n,) sign of gamma
    own: np.ndarray  # (n,) abs(1 - gamma w_i . d_i)
    products: Products  # of W and D
    rounding: Rounding
    theta: np.ndarray  # (n,)
    passing: int  # the number of parts that may pass unshrunk

    def with_rounding(
        self,
        noise: Any,
        error: Any,
        code: Any,
        nonzeros: Any,
        noise_l1: Any = 0.0,
        spread: float = 1.0,
    ) -> Any:
        """Bounds on noise and rounding in the argument of the shrinkage, from bounds on the noise.

        Args:
            noise: bounds on the effect of the noise, of a shape that the next two arguments fit.
            error, code: bounds on norm(x* - x, 1) and norm(x*, 1), in sizes of parts.
            nonzeros: the largest number of nonzero parts of x and of x*.
            noise_l1: bound on the l1 norm of the noise.
            spread: the bound on gamma |w_i|'|e| for the noise e, over the bound `noise`.
        """
        r, gain = self.rounding, float(self.gamma.max(initial=0))
        C, largest = (float(v.max(initial=0)) for v in (self.products.C, self.products.G))
        G = max(float((self.products.G * self.gamma).max(initial=0)), 1.0)  # also covers x + g
        relative = share(r.of_error(nonzeros), error) + share(r.of_code(nonzeros), code)
        noise = noise + share(r.of_noise() * spread, noise)
        lost = r.lost(gain, C, largest, nonzeros, error + code, noise_l1)
        return (noise + G * relative + lost) * UP


class Coupled(NamedTuple):
    """The steps of a layer, and the data that all steps share."""

    D: Operator  # in float64
    steps: list[Step]

    @property
    def block(self) -> int:
        """The number of entries of a part."""
        return block_of(self.D)

    @property
    def parts(self) -> int:
        """n, the number of parts of a code."""
        return self.D.shape[1] // self.block


def uncovered_of(layer: Any, params: Any, D: Any, where: str) -> str:
    """The shrinkage of a layer if no theorem covers it; "" otherwise."""
    # A family may declare itself coupled.
    claims = getattr(layer, "is_coupled", False)
    if uncovered := "" if claims else str(getattr(layer, "uncovered", "")):
        layer.check(params, as_dictionary(D, where))
    return uncovered


def coupled(layer: Any, params: Any, D: Any, where: str) -> Coupled:
    """The steps of a layer of a family x <- shrink(x + gamma W'(y - D x), theta), in float64.

    Raises:
        TypeError: the layer is of another family. ValueError: params do not fit, or are not finite.
    """
    D = as_dictionary(D, where)
    if not getattr(layer, "is_coupled", False):
        raise TypeError(
            f"{where}: a step of {layer} is not x <- shrink(x + gamma W'(y - D x), theta); "
            "expected such a family, as layers.lista_cp, alista, tilista or ista, without a guard "
            "or a bend, and not nonnegative"
        )
    layer.check(params, D)
    checks.finite((params, D), "params or D", where)
    dtype = checks.common_dtype(params, D)
    with jax.enable_x64(True):
        params, D = checks.cast((params, D), np.float64)
        return Coupled(D, list(_measured_steps(layer, params, D, dtype)))


def _layer(
    layer: Any, params: Any, D: Any, sparsity: Any, bound: Any, noise: Any, before: _Error | None
) -> tuple[Certificate, _Error]:
    """The certificate and last error of one layer, whose signal has the error `before`, if any."""
    where = "certify"
    if uncovered := uncovered_of(layer, params, D, where):
        s, K = checks.as_index(sparsity, "sparsity", where), layer.depth
        B, _ = host_numbers(where, bound=bound, noise=noise)
        errors = np.array([s * B, *[np.inf] * K])
        nothing = Certificate(errors, np.zeros(K, bool), False, 0, uncovered)
        return nothing, _Error(np.inf, np.inf, 0)
    measured = coupled(layer, params, D, where)
    if layer.activation != relu:
        raise ValueError(f"{where}: expected the activation relu, got {layer.activation}")
    d = measured.parts
    s = min(checks.as_index(sparsity, "sparsity", where), d)
    B, delta = host_numbers(where, bound=bound, noise=noise)
    checks.finite((B, delta), "bound or noise", where)
    with jax.enable_x64(True):
        noises = _noises(measured, delta, before)
    signal = delta + (before.l1 * math.sqrt(before.block) if before is not None else 0.0)
    run = partial(_errors, measured.steps, noises, signal, bound=B)
    errors, excluded, left = run(s)
    most = _largest_sparsity(lambda s: _shrinks(run(s)[0]), d)
    most = max(most, s) if _shrinks(errors) else most
    return Certificate(errors, excluded, _shrinks(errors), most), left._replace(
        block=measured.block
    )


def _noises(measured: Coupled, delta: float, before: _Error | None) -> list[np.ndarray]:
    """Bounds, (n,) per step, on the effect of noise and of the error of the layer before on W'y."""
    noises, gain = [], 0.0
    for step in measured.steps:
        noise = step.products.C * delta
        if before is not None and before.l1 and measured.block > 1:
            l2 = math.sqrt(before.l1) * math.sqrt(before.linf)
            noise = noise + step.products.C * min(before.l1, l2)
        elif before is not None and before.l1:
            # An error with few nonzeros, each at most l_inf, may add less than C_W times its l1
            # norm.
            gain = gain if step.tied else sum_of_largest(step.W, before.size * before.block)
            noise = noise + np.minimum(
                step.products.C * before.l1 * math.sqrt(before.block),
                gain * before.linf if before.size else np.inf,
            )
        noises.append(noise * step.gamma)
    return noises


def _chain(
    network: Any, params: Any, Ds: Any, sparsities: Any, bounds: Any, noises: Any
) -> tuple[Certificate, ...]:
    layers = network.layers
    noises = (noises, *[0.0] * (len(layers) - 1)) if np.ndim(noises) == 0 else noises
    columns = dict(params=params, D=Ds, sparsity=sparsities, bound=bounds, noise=noises)
    for name, column in columns.items():
        if not hasattr(column, "__len__") or len(column) != len(layers):
            raise ValueError(f"certify: expected {len(layers)} {name}, one per layer of the chain")
    certificates, before = [], None
    for layer, p, D, s, B, delta in zip(layers, params, Ds, sparsities, bounds, noises):
        certificate, before = _layer(layer, p, D, s, B, delta, before)
        certificates.append(certificate)
    return tuple(certificates)


def _measured_steps(layer: Any, params: Any, D: Operator, dtype: Any) -> Iterator[Step]:
    d, g, steps = D.shape[1], block_of(D), params.steps
    if type(steps) is not tuple:
        steps = [jax.tree.map(lambda v, k=k: np.asarray(v)[k], steps) for k in range(layer.depth)]
    last: Any = None
    products: Products | None = None
    for p, fraction in zip(steps, layer.schedule or [0.0] * layer.depth):
        W, gamma, _ = layer.weights(params.shared, p, D)
        tied = products is not None and _same(W, last)
        if products is None or not tied:  # tied weights are measured once
            last, products = W, part_products(W, D)
            rounding = Rounding.of(W, D, dtype, layer.precision)
        gamma = _of_parts(1.0 if gamma is None else gamma, d, g)
        size = np.abs(gamma)
        theta = _of_parts(spread(D, jax.device_put(p.theta)), d, g)
        # Count as `activations.select_support` does.
        passing = int(np.round(np.float32(fraction) * np.float32(d // g)))
        own = products.drift(gamma)
        yield Step(last, tied, size, np.sign(gamma), own, products, rounding, theta, passing)


def _of_parts(values: Any, d: int, g: int) -> np.ndarray:
    """One number per part of g entries, from one number per entry or one number for all."""
    parts = np.broadcast_to(np.asarray(values), (d,)).reshape(-1, g)
    if (parts != parts[:, :1]).any():
        raise ValueError("a step has several step sizes or thresholds within a part; expected one")
    return parts[:, 0]


def _same(A: Any, B: Any) -> bool:
    return A is B or all(map(np.array_equal, jax.tree.leaves(A), jax.tree.leaves(B)))


def _errors(
    steps: list[Step], noises: list[np.ndarray], noise_l1: float, s: int, *, bound: float
) -> tuple[np.ndarray, np.ndarray, _Error]:
    """The errors after 0..K steps, the steps without false positives, and the last error.

    `noise_l1` bounds the l1 norm of the noise, or its l2 norm if codes come in parts.
    """
    e, linf, clean = s * bound, bound if s else 0.0, True
    errors, excluded = [e], list[bool]()
    up = 1 + 2 * (s + 8) * float(np.finfo(float).eps)  # for the rounding of these sums
    if steps and steps[0].rounding.block > 1:
        noise_l1 *= math.sqrt(steps[0].rounding.rows * steps[0].rounding.block)
    with np.errstate(over="ignore", invalid="ignore"):
        for step, noise in zip(steps, noises):
            theta, own, mu = step.theta, step.own, step.gamma * step.products.mu
            d, o = len(mu), float(own.max())
            n = step.with_rounding(noise, e, s * bound, s if clean else d, noise_l1)
            reach = (mu if clean else np.maximum(own, mu)) * e + n
            inside = clean or s == d  # the error is on s entries
            drift = o * e + _top(mu, s - 1 if inside else s) * e
            clean = not (theta < reach).any()
            if clean or s == d:
                # The error of an entry is at most its own drift, plus the effect of the errors of
                # the other entries, plus its threshold and noise.
                on, moved = (linf, min((s - 1) * linf, e)) if inside else (e, e)
                after = o * on + float(mu.max()) * moved + float((theta + n).max())
                e = drift + _top(theta + n, s)
                linf = min(after, e) if s else 0.0
            else:
                within, beyond = theta + n, np.maximum(mu * e + n - theta, 0)
                e = drift + float(beyond.sum()) + _top(within - beyond, s)
                # An entry that passes exceeds its threshold, so the threshold is below `reach`.
                low = theta[theta < reach]
                e += _top(low, min(step.passing, d - s, len(low)))
                linf = e
            if not np.isfinite(e):
                e = linf = np.inf
            e, linf = e * up, linf * up
            errors.append(e)
            excluded.append(clean)
    left = _Error(e, linf, s if clean or (steps and s == len(steps[0].own)) else 0)
    return np.asarray(errors), np.asarray(excluded, bool), left


def _top(values: np.ndarray, k: int) -> float:
    """The sum of the k largest values."""
    if k <= 0:
        return 0.0
    return float(np.partition(values, -k)[-k:].sum()) if k < len(values) else float(values.sum())


def _shrinks(errors: np.ndarray) -> bool:
    return bool(errors[-1] < errors[0] or errors[-1] == 0)


def _largest_sparsity(holds: Callable[[int], bool], d: int) -> int:
    """The largest s with holds(s), by doubling and bisection; 0 if there is none.

    Doubling continues past an s that fails, because a larger s may hold.
    """
    tried = [0, *(2**i for i in range(d.bit_length())), d + 1]
    i = max(i for i, s in enumerate(tried[:-1]) if not s or holds(s))
    low, high = tried[i : i + 2]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


# Relative rounding of a probability, far below the rounding of 1 - confidence.
_ROUNDING = 1e-12


class Tolerance(Result):
    """A bound on the errors of all but a small share of a class, from a sample of the class."""

    bound: float  # at most the given share of the class has a larger error; inf without a bound
    left_out: int  # number of signals in the sample whose errors may lie above the bound
    needed: int  # size of the smallest sample that certifies a bound
    holds: bool  # whether the sample suffices and the bound is finite
    missing: int  # number of signals to add to the sample; 0 if the sample is large enough


def signals_needed(share: float, confidence: float, at_once: int = 1) -> int:
    r"""The least number of signals in a sample for which `tolerance_bound` can give a bound.

    .. math:: n = \min \{ n : M (1 - \epsilon)^n \le 1 - c \}.

    The bound for a sample of this size is the largest error in the sample.

    Args:
        share: epsilon, the share of the class whose errors may exceed the bound, in (0, 1).
        confidence: c, in (0, 1).
        at_once: M, the number of bounds that hold simultaneously.

    Raises:
        TypeError: an argument is traced, or is not a single number.
        ValueError: the share or the confidence is outside (0, 1), the share is so small that the
            number of signals is infinite in float64, or at_once is below 1 or beyond 2^31 - 1.

    Reference: Wilks (1941).

    Example:
        >>> ur.theory.signals_needed(1e-3, 1 - 1e-6), ur.theory.signals_needed(0.05, 0.95)
        (13809, 59)
    """
    share, risk = _risk("signals_needed", share, confidence, at_once)
    n = math.log(risk) / math.log1p(-share) * (1 - _ROUNDING)
    if n == math.inf:
        raise ValueError(
            f"signals_needed: a share of {share:g} needs more signals than can be counted"
        )
    return max(1, math.ceil(n))


@checked
def tolerance_bound(
    errors: ArrayLike, *, share: float = 1e-3, confidence: float = 1 - 1e-6, at_once: int = 1
) -> Tolerance:
    r"""A bound on the errors of all but a small share of a class, from a sample of the class.

    .. math::
        P\bigl( P(E > E_{(n-r)}) > \epsilon \bigr) \le P(\mathrm{Bin}(n, \epsilon) \le r)
            \le (1 - c) / M.

    Here E_(1) <= ... <= E_(n) are the order statistics of n independent draws from any
    distribution, and r is the largest integer that satisfies the last inequality. Ties make the
    bound conservative. The errors may come from any layer, network or pursuit, in any unit, for
    draws of a class or for held-out signals.

    Args:
        errors: (n,), the errors of n independent signals. NaN counts as inf.
        share: epsilon, the share of the class whose errors may exceed the bound, in (0, 1).
        confidence: c, the probability over the sample that the statement is true.
        at_once: M, the number of such statements that are true together, for example the number of
            methods times the number of steps.

    Returns:
        Tolerance. The bound is infinite and holds is False if there are fewer than `needed`
        signals, or more non-finite errors than may be left out.

    Raises:
        TypeError: errors are traced or complex, or an option is not a single number.
        ValueError: errors have another shape; also as in `signals_needed`.

    Not claimed: anything about a sample that has been used to choose the params, the depth or the
    method, or whose signals depend on each other, such as patches of one picture. The statement
    covers neither single signals nor other classes than the sampled class.

    Reference: Wilks (1941); Clopper, Pearson (1934).

    Example:
        >>> errors = np.random.default_rng(0).exponential(size=20_000)
        >>> tolerance = ur.theory.tolerance_bound(errors)
        >>> round(tolerance.bound, 2), tolerance.left_out, tolerance.holds
        (8.9, 2, True)
        >>> ur.theory.tolerance_bound(errors[:10_000]).missing
        3809
    """
    where = "tolerance_bound"
    needed = signals_needed(share, confidence, at_once)
    share, risk = _risk(where, share, confidence, at_once)
    errors = _sorted(errors, where)
    n = len(errors)
    if n < needed:
        return Tolerance(math.inf, 0, needed, False, needed - n)
    r = max(bisect_right(range(n), risk, key=lambda r: _at_most(r, n, share)) - 1, 0)
    bound = float(errors[n - 1 - r])
    return Tolerance(bound, r, needed, bound < math.inf, 0)


@host_function
def exceedance(errors: ArrayLike, level: float, confidence: float = 1 - 1e-6) -> float:
    r"""A bound on the share of signals of a class whose errors exceed a level, from a sample.

    .. math:: \max \{ p : P(\mathrm{Bin}(n, p) \le k) \ge 1 - c \}, \qquad k = \#\{i : E_i > l\}.

    Args:
        errors: (n,), the errors of n independent signals, as in `tolerance_bound`; a NaN exceeds
            every level.
        level: l, a finite number, chosen without the sample.
        confidence: c, in (0, 1).

    Returns:
        The bound, rounded up; 1 if all signals exceed the level, or there are no signals.

    Raises: as in `tolerance_bound`; also ValueError if the level is not finite.

    Not claimed: as in `tolerance_bound`.

    Reference: Clopper, Pearson (1934), one-sided.

    Example:
        >>> round(ur.theory.exceedance(np.zeros(13809), 0.5), 6)
        0.001
    """
    from scipy.special import betainccinv

    where = "exceedance"
    _, risk = _risk(where, 0.5, confidence, 1)
    errors = _sorted(errors, where)
    if not math.isfinite(level):
        raise ValueError(f"{where}: level is {level}; expected a finite number")
    n, k = len(errors), int(np.count_nonzero(errors > level))
    return min(1.0, float(betainccinv(k + 1, n - k, risk)) * UP) if k < n else 1.0


def _at_most(r: int, n: int, share: float) -> float:
    """P(Bin(n, share) <= r), for r < n."""
    from scipy.special import betaincc

    return float(betaincc(r + 1, n - r, share))


def _sorted(errors: ArrayLike, where: str) -> np.ndarray:
    """The errors in ascending order, with inf for NaN."""
    values = checks.host_floats(errors, "errors", where)
    if values.ndim != 1:
        raise ValueError(
            f"{where}: errors have shape {values.shape}; expected (n,), one per signal; try one "
            "call per step and method, with at_once"
        )
    values = values.astype(float)
    return np.sort(np.where(np.isnan(values), math.inf, values))


def _risk(where: str, share: float, confidence: float, at_once: int) -> tuple[float, float]:
    """The share, and (1 - confidence) / at_once."""
    share, confidence = (
        checks.as_fraction(value, name, where)
        for name, value in {"share": share, "confidence": confidence}.items()
    )
    at_once = checks.as_index(at_once, "at_once", where, least=1)
    return share, (1 - confidence) / at_once
