r"""The penalty weight of the LASSO, chosen by the noise of the signals or by held-out entries.

Let y = f + e, where e has independent entries of standard deviation sigma. The estimate of f is
D x, where x is the code at lam. For the objective 1/2 norm(y - D x)^2 + lam norm(x, 1), whose data
term is a sum over entries, not a mean, the estimate has df degrees of freedom, the expected rank of
the atoms on the support, so that

.. math:: SURE(lam) = \|y - D x\|^2 - m \sigma^2 + 2 \sigma^2 df

is an unbiased estimate of norm(f - D x)^2. All rules compute the codes along one path of penalties
from large to small, where each penalty starts from the codes of the previous one.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from unrolled import plots
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import ArrayLike, Key
from unrolled._base.numbers import host_exponent
from unrolled._base.results import Result
from unrolled.dictionaries import (
    Dictionary,
    Masked,
    Operator,
    block_of,
    is_complex,
    known_entries,
)
from unrolled.penalties import Penalty
from unrolled.pursuit import _products
from unrolled.pursuit._lasso_batch import lasso_batch
from unrolled.pursuit._many import operands_of_many

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ChosenLam", "choose_lam"]

SURE, GCV, DISCREPANCY, HELD_OUT = RULES = "sure", "gcv", "discrepancy", "held out"
_SHARE = 0.2  # of the entries, held out at once
_RATIOS = np.geomspace(1, 1e-3, 31)  # ten penalties in a decade
_PAST = 6  # penalties without a new minimum after which a path ends
_TOL, _TOL_OF_PARTS = 1e-9, 1e-6  # relative duality gaps of codes in float64, and of codes in parts
_ROUNDS, _NEAR = 20, 1e-6  # of the search where a residual crosses, and its relative error


class ChosenLam(Result):
    """A chosen penalty weight, and the curve on which the choice is based.

    With n signals and k penalties, `lams`, `curve` and `nonzeros` have the shape (k,), or (n, k) if
    each signal has its own lam. All numbers are arrays of numpy in float64.
    """

    rule: str  # "sure", "gcv", "discrepancy" or "held out"
    lam: np.ndarray  # () for all signals, or (n, 1), in the form that `lasso_batch` takes
    inside: np.ndarray  # whether the path has smaller and larger penalties than lam; () or (n,)
    converged: bool  # whether all codes of the path reached their duality gap
    lams: np.ndarray  # the penalties of the path, from large to small
    curve: np.ndarray  # what the rule minimises, or the squared residual, per known entry
    nonzeros: np.ndarray  # mean number of nonzeros, or of nonzero parts

    def plot(self) -> "Figure":
        """A figure of the curve and of the number of nonzeros against lam."""
        return plots.penalties(self)


@checked
def choose_lam(
    D: Dictionary,
    Y: ArrayLike | Any,
    *,
    noise: float | None = None,
    share: float | None = None,
    by: str | None = None,
    each: bool = False,
    among: ArrayLike | None = None,
    nonnegative: bool = False,
    mask: ArrayLike | None = None,
    key: Key = 0,
) -> ChosenLam:
    r"""Choose the penalty weight lam of the LASSO, for all signals or for each signal.

    .. math:: \min_x \tfrac12 \|y - D x\|^2 + lam \|x\|_1, \qquad y = f + e.

    There are four rules. Here sigma is `noise`, and df is the number of nonzeros:

    - "sure" (the default if `noise` is given) takes the minimiser of an unbiased estimate of the
      squared error norm(f - D x)^2:

      .. math:: \|y - D x\|^2 - m \sigma^2 + 2 \sigma^2 df.

    - "gcv" (the default if neither `noise` nor `share` is given) needs no noise level. It takes the
      minimiser of the generalised cross-validation

      .. math:: \|y - D x\|^2 / (1 - df / m)^2.

    - "discrepancy" takes the lam at which norm(y - D x)^2 = m sigma^2. It needs no distribution of
      the noise, but its codes are sparser and have a larger error. With `each`, the codes are
      those of `bpdn` with eps = sqrt(m) sigma.
    - "held out" (the default if `share` is given) is for signals with missing entries. It divides
      the entries into 1 / share random parts, predicts each part from the codes of all other parts,
      and takes the lam with the least squared error. If a part is missing, atoms are shorter, and
      the noise in d_i . y shrinks by sqrt(1 - share); so the lam for the whole signal is larger
      than the lam of such a code by 1 / sqrt(1 - share). In a dictionary with many more atoms than
      entries, missing entries have a much larger error than known ones, and the lam is too large
      for denoising.

    If the codes of D come in parts of g real numbers, such as complex numbers, the parts count by
    the trace of the derivative of D x, with A the atoms of the nonzero parts x_i:

    .. math:: df = tr A (A'A + lam B)^{-1} A', \qquad B = diag_i (I - x_i x_i' / |x_i|^2) / |x_i|.

    All rules compute codes by `lasso_batch` along one path of penalties. A path ends early if the
    curve has had no new minimum for half a decade.

    Args:
        D: (m, d), a matrix or a structured dictionary.
        Y: the signals, (n, m), in any form that `lasso_batch` takes.
        noise: standard deviation sigma of the noise in an entry of Y (of a complex entry, not of
            its real part).
        share: the share of the entries to hold out at once, at most 1/2.
        by: the rule: "sure", "gcv", "discrepancy" or "held out" (with a `share` of 0.2 unless you
            give another).
        each: whether each signal gets its own lam. This helps if signals differ much in size and
            the noise level is known; "gcv" of a single signal often follows the noise.
        among: the penalties to try, (k,). The default is 31 penalties from the least lam that gives
            codes of 0 down to a thousandth; with `each`, they differ from signal to signal.
        nonnegative: as in `lasso_batch`.
        mask: as in `lasso_batch`; rules then speak of the known entries. If D is a `Masked`, its
            nonzero entries are known.
        key: of the random parts of the entries.

    Returns:
        ChosenLam. `inside` is False if lam is the largest or the smallest computed penalty; pass
        other penalties by `among`. For "discrepancy" the curve crosses sigma^2; for the other rules
        the chosen lam has the least value of the curve.

    Raises:
        TypeError: an argument is traced, or D, Y or the mask has a wrong type.
        ValueError: shapes do not fit, Y is not finite, all signals are zero, the rule is unknown or
            lacks its number, noise or a lam is not positive, or share is not between 0 and 1/2.

    Reference: Stein (1981); Zou, Hastie, Tibshirani (2007) and Tibshirani, Taylor (2012) for df;
    Vaiter et al. (2017) for parts; Golub, Heath, Wahba (1979) for "gcv"; Morozov (1966) for the
    discrepancy.

    Not claimed: that the support of the codes is the true support. The least squared error needs a
    smaller lam than the best support. SURE assumes independent Gaussian noise; "gcv" and "held
    out" assume independent noise of one size.

    Example:
        >>> D = ur.dictionaries.gaussian(0, 20, 40)
        >>> Y, X = ur.problems.sampler(D, batch=50, snr=20.0)(jax.random.key(1))
        >>> noise = float(jnp.std(Y - X @ D.T))
        >>> choice = ur.choose_lam(D, Y, noise=noise)
        >>> bool(choice.inside), choice.curve.shape == choice.lams.shape
        (True, True)
    """
    where = "choose_lam"
    rule, folds = _rule(noise, share, by, where)
    checks.on_host((D, Y, mask, among), where, "an argument")
    problem, b = _Problem.of(D, Y, mask, noise or 0.0, nonnegative, where)
    with nullcontext() if block_of(D) > 1 else jax.enable_x64(True):
        grid = problem.penalties(each) if among is None else _given(among, b, problem, where)
        parts = problem.parts(folds, key)
        points = problem.held_out(grid, parts) if parts else problem.whole(grid)
        path = _walk(points, problem, each, rule)
        lam, inside = path.least(grid)
        if rule == DISCREPANCY:
            lam, inside = _crossing(problem, path, grid, each)
    first = slice(None) if each else 0
    return ChosenLam(
        rule,
        np.ldexp(lam[:, None] if each else lam[0], b),
        inside[first],
        path.converged,
        np.ldexp(grid[: len(path.curve), :, 0].T[first], b),
        np.ldexp(path.curve.T[first], 2 * b),
        path.nonzeros.T if each else path.nonzeros.mean(1),
    )


def _rule(noise: float | None, share: float | None, by: str | None, where: str) -> tuple[str, int]:
    """The rule, and the number of parts of the entries for the rule that holds entries out."""
    rule = by or (SURE if noise is not None else GCV if share is None else HELD_OUT)
    if rule not in RULES:
        raise ValueError(f"{where}: by must be one of {', '.join(map(repr, RULES))}, got {by!r}")
    wanted = rule in (SURE, DISCREPANCY)
    if (noise is not None) != wanted or (share is not None and rule != HELD_OUT):
        takes = "noise" if wanted else "share" if rule == HELD_OUT else "neither noise nor share"
        raise ValueError(
            f"{where}: the rule {rule!r} takes {takes}; got noise={noise}, share={share}"
        )
    if noise is not None and not 0 < noise < math.inf:
        raise ValueError(f"{where}: noise must be positive and finite, got {noise}")
    if share is not None and not 0 < share <= 1 / 2:
        raise ValueError(f"{where}: share must be above 0 and at most 1/2, got {share}")
    return rule, round(1 / (share or _SHARE)) if rule == HELD_OUT else 0


def _given(among: Any, b: int, problem: "_Problem", where: str) -> np.ndarray:
    """The penalties of the caller, (k, n, 1), from large to small."""
    lams = checks.host_floats(among, "among", where).astype(float)
    if lams.ndim != 1 or not len(lams) or not ((lams > 0) & np.isfinite(lams)).all():
        raise ValueError(f"{where}: among must be positive and finite numbers, (k,), got {lams}")
    ordered = np.ldexp(np.sort(lams)[::-1], -b)
    return np.broadcast_to(ordered[:, None, None], (len(lams), len(problem.Y), 1))


class _Point(NamedTuple):
    """The codes of all signals at one penalty."""

    squares: np.ndarray  # (n,), sums of squared residuals, or of errors of held-out entries
    freedom: np.ndarray  # (n,), degrees of freedom
    nonzeros: np.ndarray  # (n,)
    converged: bool


class _Path(NamedTuple):
    """The points of a path, with k penalties."""

    curve: np.ndarray  # (k, n), or (k, 1) for all signals together
    nonzeros: np.ndarray  # (k, n)
    converged: bool

    def least(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The penalties with the least values of the curve, and whether the path has both sides."""
        rows, best = np.arange(self.curve.shape[1]), self.curve.argmin(0)
        return grid[best, rows, 0], (best > 0) & (best < len(self.curve) - 1)


class _Problem(NamedTuple):
    """Signals near 1, and what is known of them."""

    D: Operator
    Y: np.ndarray  # (n, m)
    known: np.ndarray  # (1, m) or (n, m), which entries are known
    counts: np.ndarray  # (n,), numbers of known entries
    noise: float  # standard deviation of an entry
    options: dict[str, Any]  # of `lasso_batch`

    @classmethod
    def of(
        cls, D: Any, Y: Any, mask: Any, noise: float, nonnegative: bool, where: str
    ) -> "tuple[_Problem, int]":
        """The problem with signals divided by 2^b, and b."""
        D, signals, *_ = operands_of_many(D, Y, where)
        signals, m, g = np.asarray(signals), D.shape[0], block_of(D)
        Penalty(g, nonnegative)
        known = np.ones(m, bool) if mask is None else known_entries(D, mask, len(signals), where)
        known = np.atleast_2d(known) & (np.asarray(D.mask) != 0 if isinstance(D, Masked) else True)
        signals = np.where(known, signals, 0)
        checks.finite(signals, "Y", where)
        if not signals.any():
            raise ValueError(f"{where}: all signals are zero; expected a signal to fit")
        counts = np.broadcast_to(known.sum(1), len(signals)) / (2 if is_complex(D) else 1)
        b = int(host_exponent(signals))
        if g == 1:
            with jax.enable_x64(True):
                D, signals = checks.cast_on_host((D, signals), np.float64)
        options = {"nonnegative": nonnegative, "tol": _TOL if g == 1 else _TOL_OF_PARTS}
        scaled = np.ldexp(signals, -b)
        return cls(D, scaled, known, counts, math.ldexp(noise, -b), options), b

    def value(self, rule: str, point: _Point, each: bool) -> np.ndarray:
        """The curve of a rule per entry, (n,), or (1,) for all signals together."""
        S, df, m = (
            v if each else v.sum(keepdims=True) for v in (point.squares, point.freedom, self.counts)
        )
        if rule == SURE:
            return S / m - self.noise**2 + 2 * self.noise**2 * df / m
        if rule == GCV:
            return np.where(df < m, S / m / np.where(df < m, 1 - df / m, 1) ** 2, np.inf)
        return S / m

    def penalties(self, each: bool) -> np.ndarray:
        """A path of penalties, (k, n, 1), from the least lam that gives codes of 0."""
        products = np.asarray(self.Y @ self.D, float)
        products = products if self.options["nonnegative"] else np.abs(products)
        parts = products.reshape(len(products), -1, block_of(self.D))
        sizes = np.maximum(np.linalg.norm(parts, axis=2).max(1), 0)
        top = np.where(sizes > 0, sizes, sizes.max()) if each else np.full_like(sizes, sizes.max())
        return _RATIOS[:, None, None] * top[:, None]

    def parts(self, folds: int, key: Key) -> list[np.ndarray]:
        """Disjoint random parts of the entries, (m,) each."""
        g = block_of(self.D)
        rows = self.D.shape[0] // g
        order = np.asarray(jax.random.permutation(checks.as_key(key, "choose_lam"), rows))
        return [np.repeat(order % folds == i, g) for i in range(min(folds, rows))]

    def codes(self, lams: np.ndarray, known: np.ndarray) -> Iterator[Any]:
        """The codes of the known entries along a path of penalties."""
        x, mask = None, None if known.all() else known[0] if len(known) == 1 else known
        for lam in lams:
            result = lasso_batch(self.D, self.Y, lam, start=x, mask=mask, **self.options)
            x = result.x
            yield result

    def whole(self, lams: np.ndarray) -> Iterator[_Point]:
        """The squared residuals and the degrees of freedom along a path."""
        for lam, result in zip(lams, self.codes(lams, self.known)):
            X, squares = np.asarray(result.x), np.asarray(result.residual, float) ** 2
            converged = bool(result.converged.all())
            yield _Point(squares, self.freedom(X, lam), self.nonzeros(X), converged)

    def held_out(self, lams: np.ndarray, parts: list[np.ndarray]) -> Iterator[_Point]:
        """The squared errors of entries, predicted from the codes of all other parts."""
        lams = math.sqrt(1 - 1 / len(parts)) * lams
        for together in zip(*(self.codes(lams, self.known & ~part) for part in parts)):
            codes = [np.asarray(result.x) for result in together]
            squares = [
                np.where(self.known & part, self.Y - np.asarray((self.D @ X.T).T), 0) ** 2
                for X, part in zip(codes, parts)
            ]
            nonzeros = np.mean([self.nonzeros(X) for X in codes], 0)
            converged = all(bool(result.converged.all()) for result in together)
            yield _Point(np.sum(squares, (0, 2), dtype=float), nonzeros, nonzeros, converged)

    def nonzeros(self, X: np.ndarray) -> np.ndarray:
        """The number of nonzero parts of each code, (n,)."""
        return (X.reshape(len(X), -1, block_of(self.D)) != 0).any(2).sum(1)

    def freedom(self, X: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """The degrees of freedom of D x, (n,), in entries of the signals."""
        if block_of(self.D) == 1:
            return self.nonzeros(X)
        known = np.broadcast_to(self.known, self.Y.shape)
        traces = [self._trace(x, weight, entries) for x, weight, entries in zip(X, lam, known)]
        return np.array(traces) / (2 if is_complex(self.D) else 1)

    def _trace(self, x: np.ndarray, lam: np.ndarray, known: np.ndarray) -> float:
        """The trace of the derivative of D x in y, for a code in parts."""
        g = block_of(self.D)
        v = x.reshape(-1, g).astype(float)
        some = np.flatnonzero(v.any(1))
        entries = (g * some[:, None] + np.arange(g)).ravel()
        A = _products.columns(self.D, entries)[:, known]  # atoms in rows
        sizes = np.linalg.norm(v[some], axis=1)[:, None, None]
        u = v[some][:, :, None] / sizes
        B = (np.eye(g) - u * u.swapaxes(1, 2)) / sizes
        gram, bend = A @ A.T, np.zeros((len(entries), len(entries)))
        for j, block in enumerate(B):
            bend[g * j : g * (j + 1), g * j : g * (j + 1)] = block
        return float(np.trace(np.linalg.lstsq(gram + lam * bend, gram, rcond=None)[0]))


def _walk(points: Iterator[_Point], problem: _Problem, each: bool, rule: str) -> _Path:
    """Follow a path until its curve has crossed the noise, or has a minimum that lies behind."""
    curve: list[np.ndarray] = []
    walked: list[_Point] = []
    for point in points:
        walked.append(point)
        curve.append(problem.value(rule, point, each))
        behind = len(curve) - 1 - np.argmin(curve, 0) >= _PAST
        if (curve[-1] <= problem.noise**2 if rule == DISCREPANCY else behind).all():
            break
    nonzeros = np.stack([p.nonzeros for p in walked])
    return _Path(np.stack(curve), nonzeros, all(p.converged for p in walked))


def _crossing(
    problem: _Problem, path: _Path, grid: np.ndarray, each: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The penalties at which the squared residual is that of the noise.

    While supports stay, the squared residual is a linear function of lam^2, so a line through the
    ends of an interval of lam^2 finds the crossing, and every other step halves the interval.
    """
    target, met = problem.noise**2, path.curve <= problem.noise**2
    rows, first = np.arange(met.shape[1]), np.where(met.any(0), met.argmax(0), len(met) - 1)
    inside = met.any(0) & (first > 0)
    at = np.stack([np.where(inside, first - 1, first), first])
    (high, low), (over, under) = grid[at, rows, 0] ** 2, path.curve[at, rows] - target
    for step in range(_ROUNDS):
        share = np.where(inside & (step % 2 == 0), over / np.where(inside, over - under, 1), 0.5)
        middle = high + share * (low - high)
        lam = np.broadcast_to(np.sqrt(middle)[:, None], (len(problem.Y), 1))
        excess = problem.value(DISCREPANCY, next(problem.whole(lam[None])), each) - target
        if (np.abs(excess) <= _NEAR * target)[inside].all():
            break
        up = excess > 0
        high, over = np.where(up, middle, high), np.where(up, excess, over)
        low, under = np.where(up, low, middle), np.where(up, under, excess)
    return np.sqrt(middle), inside
