"""The results of a comparison: curves, divergence, guarantees, changes by method, and tables."""

import dataclasses
import math
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import plots
from unrolled._base import checks
from unrolled._base.checks import ArrayLike
from unrolled._base.numbers import largest
from unrolled._base.results import Result
from unrolled._base.text import line, markdown, screen, table, to_json
from unrolled.dictionaries import Dictionary, dense, normalized
from unrolled.layers import Acting, Unrolled
from unrolled.theory import Certificate, inner_products

__all__ = [
    "ChainComparison",
    "Change",
    "Comparison",
    "Cost",
    "Coupling",
    "Curve",
    "Divergence",
    "DivergenceWarning",
    "Guarantee",
    "Predicted",
    "Proved",
    "Sampled",
    "Solver",
]


Weights = Callable[[Any, Any, Any], Acting]  # (shared, p, D): as `Layer.weights`


class Coupling(Result):
    """How the weights of each step fit D: arrays (K,), or (1,) if all steps share weights.

    Convergence needs S_k = I - W_k'D (Chen et al. 2018, Theorem 1), w_i . d_i near 1 and small
    off-diagonal products. `mu_W` and `off_diagonal` do not depend on the scale of the weights: they
    refer to atoms of unit norm, with w_i . d_i scaled to 1. `largest_product` is not scaled.
    `mismatch` is the relative distance of S_k from I - W_k'D, 0 if the family couples S_k and W_k.
    `layer.weights` gives W_k and S_k; the step size multiplies W_k. If W and D are shift-invariant
    `Conv` dictionaries of one geometry, W'D has only the rows of atoms that together meet every
    relative shift, not the rows of all positions.
    """

    diagonal_low: np.ndarray  # min of w_i . d_i
    diagonal_mean: np.ndarray  # mean of w_i . d_i
    diagonal_high: np.ndarray  # max of w_i . d_i
    mu_W: np.ndarray  # largest scaled abs(w_i . d_j) over i != j; inf if w_i . d_i = 0
    off_diagonal: np.ndarray  # root mean square of the scaled w_i . d_j over i != j
    largest_product: np.ndarray  # largest unscaled abs(w_i . d_j) over i != j
    mismatch: np.ndarray  # norm(S - (I - W'D)) / norm(S)


def coupling(weights: Weights | None, params: Unrolled, D: Dictionary) -> Coupling | None:
    """The `Coupling` of stacked params to D, with the `weights` of a layer or a block."""
    if weights is None:
        return None
    dtype = checks.common_dtype(params, D)
    columns = _per_step(weights, *checks.cast((params, D), dtype))
    return jax.tree.map(lambda column: np.asarray(column, float), columns)


def step_means(theta: ArrayLike) -> np.ndarray:
    """The mean of each row, (K,), of thresholds per step, (K,) or (K, d)."""
    theta = np.asarray(theta)
    return theta.reshape(len(theta), -1).mean(1)


def _per_step(weights: Weights, params: Unrolled, D: Dictionary) -> Coupling:
    """The coupling of all steps, or of one step if all steps have the same weights."""
    host = jax.device_get(params.steps)
    K = min(map(len, jax.tree.leaves(host)), default=1)  # steps may be None
    steps = [jax.tree.map(operator.itemgetter(k), host) for k in range(K)]
    if not _depends(lambda p: weights(params.shared, p, D), steps[0]):
        steps = steps[:1]
    couplings = []
    for p in steps:
        W, gamma, S = weights(params.shared, p, D)
        size = np.ones((), D.dtype) if gamma is None else gamma  # one program serves both cases
        couplings.append(jax.device_get(_one_step(W, S, size, D)))
    return jax.tree.map(lambda *numbers: np.stack(numbers), *couplings)


def _depends(f: Callable[[Any], Any], argument: Any) -> bool:
    """Whether the result of `f` depends on any leaf of its argument."""
    jaxpr = jax.make_jaxpr(f)(argument).jaxpr
    used = [*jaxpr.outvars, *(v for equation in jaxpr.eqns for v in equation.invars)]
    return any(v is variable for v in used for variable in jaxpr.invars)


@jax.jit
def _one_step(W: Any, S: Any, gamma: Any, D: Dictionary) -> Coupling:
    if np.ndim(gamma):  # with a step size per atom the weights are not a convolution
        W, gamma = dense(W) * gamma[None, :], jnp.ones((), D.dtype)
    products, own = inner_products(W, D)
    products = gamma * products
    diagonal, off = jnp.sum(jnp.where(own, products, 0), 1), jnp.where(own, 0, products)
    unit, _ = inner_products(W, normalized(D)[0])
    scale = jnp.sum(jnp.where(own, unit, 0), 1)[:, None]
    # If w_i . d_i = 0, no scale makes it 1.
    scaled = jnp.where(own, 0, jnp.where(scale == 0, jnp.inf, unit / scale))
    mismatch = jnp.zeros((), products.dtype)
    if S is not None:
        distance = jnp.linalg.norm(S - jnp.eye(len(S), dtype=S.dtype) + products)
        mismatch = distance / jnp.linalg.norm(S)
    numbers: dict[str, Any] = dict(
        diagonal_low=-largest(-diagonal),
        diagonal_mean=diagonal.mean(),
        diagonal_high=largest(diagonal),
        mu_W=largest(jnp.abs(scaled)),
        off_diagonal=jnp.sqrt(jnp.sum(scaled**2) / max(1, off.size - len(off))),
        largest_product=largest(jnp.abs(off)),
        mismatch=mismatch,
    )
    return Coupling(**numbers)


class Curve(Result):
    """The errors of one method after every step; arrays have shape (K,) unless noted."""

    nmse: np.ndarray  # dB, ratio of sums
    mean_nmse: np.ndarray  # dB, mean over the signals
    quantiles: np.ndarray  # (K, 3), the `QUANTILES` of the NMSE of single signals, in dB
    # Share of signals with an NMSE above -20 dB or without a finite NMSE.
    failure_rate: np.ndarray
    precision: np.ndarray  # precision of the support; nan if no code has a nonzero
    recall: np.ndarray  # recall of the support
    false_positives: np.ndarray  # wrong nonzeros per signal
    largest_l1: np.ndarray  # the largest l1 error of a code; the theorems bound it
    # Sum of F - F* over sum of F* for the LASSO, if lam was given; nan if no F* is certified.
    gap: np.ndarray | None
    residual: np.ndarray | None = None  # norm(Y - X D', "fro") / norm(Y, "fro")
    psnr: np.ndarray | None = None  # dB, for rebuilt signals; the peak is the range of Y
    nonzeros: np.ndarray | None = None  # mean number of nonzeros of a code
    # Share of signals whose code has a larger error than the zero code. If codes are not known:
    # share, among signals with a certified F*, of codes with a larger LASSO objective than the zero
    # code.
    worse: np.ndarray | None = None


class Cost(Result):
    """The cost of the codes of a method."""

    # Seconds to compute the codes of all signals after every step: the least time of several runs,
    # after compilation. None in a study, because its numbers must depend only on its arguments.
    seconds: float | None
    products: int | None  # matrix products per signal; None if the number depends on the signal


class Change(Result):
    """The distance of one leaf of the params from the same leaf of the reference."""

    leaf: str  # name of the leaf
    distance: float  # norm(params - reference) / norm(reference)
    per_step: np.ndarray  # (K,), the distance step by step; (1,) for a shared leaf


class DivergenceWarning(UserWarning):
    """The last codes of a method are worse than the zero code, from which every method starts."""


class Divergence(Result):
    """The step from which the codes of a method are worse than the zero code, and the reason."""

    step: int  # counted from 1; the codes are worse from this step to the last step
    reason: str  # the reason in words


class Guarantee(Result):
    """The certificate of theory for the params of a method, and the class of codes.

    If codes come in parts, s counts parts, and the noise is measured in l2.
    """

    sparsity: int  # s, the largest number of nonzeros
    bound: float  # B, the largest magnitude of an entry
    noise: float  # delta, the largest l1 norm of the noise in the signal of the layer
    certificate: Certificate  # the result of `theory.certify`


class Proved(Result):
    """The share of codes for which theory proves that the steps of a method find the code.

    Each code is checked separately. For coupled steps, `theory.certify_signals` proves that no step
    has a false positive and that each nonzero has its sign at the end. For `layers.alista_rt`,
    whose steps have no thresholds, `theory.certify_supports` proves that no step takes an entry off
    the support and that the steps converge to the code.
    """

    share: float | None  # None if no such theorem covers the method
    signals: int  # number of checked codes, the first codes of the sample
    reason: str = ""  # why the share is None

    def text(self) -> str:
        """The number of proved codes, and the number of checked codes, as text.

        Example:
            >>> ur.compare.Proved(0.75, 200).text()
            '150 of 200'
        """
        return "" if self.share is None else f"{round(self.share * self.signals)} of {self.signals}"


class Solver(Result):
    """An exact solver of the LASSO on the signals of a comparison."""

    curve: Curve  # the errors of its codes, as one step
    seconds: float | None  # for all signals, after compilation; None in a study


class Sampled(Result):
    """A bound on the errors of all but a small share of the codes, from an independent sample."""

    decibels: float  # bound on the NMSE of a signal; inf if there is no bound
    signals: int  # number of signals in the sample
    needed: int  # number of signals that a bound requires
    share: float  # share of the codes of the class that the bound leaves out
    confidence: float  # confidence that the bounds of all methods hold together
    drawn: bool  # whether the comparison drew the signals; otherwise they were given

    def text(self) -> str:
        """The bound as text.

        Example:
            >>> ur.compare.Sampled(-20.0, 20_000, 13_809, 1e-3, 1 - 1e-6, True).text()
            'error of 99.9 % of the class: at most -20.0 dB (20,000 draws, confidence 1 - 1e-6)'
        """
        level = f"at most {self.decibels:.1f} dB" if self.decibels < math.inf else "no bound"
        if self.signals < self.needed:
            level = f"no bound, {self.needed - self.signals:,} signals are missing"
        risk = f"{1 - self.confidence:.0e}".replace("e-0", "e-")
        what = "draws" if self.drawn else "held-out signals"
        how = f"{self.signals:,} {what}, confidence 1 - {risk}"
        return f"error of {100 * (1 - self.share):.1f} % of the class: {level} ({how})"


class Predicted(Result):
    """Predictions of the median error, and of the rate of convergence on the right support."""

    nmse: np.ndarray | None  # (K,) dB, for a typical signal after every step, by state evolution
    rate: float | None  # dB per step, without noise
    remark: str  # why state evolution makes no prediction, or empty


class Comparison(Result):
    """The result of `compare` for layers; dicts map the names of methods to results.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(8)
        >>> comparison = ur.compare({"ISTA": (layer, layer.init(None, D))}, D, Y, X)
        >>> [row[:10] for row in comparison.table().splitlines()]
        ['| method |', '|---|---|-', '| ISTA | 8']
    """

    curves: dict[str, Curve]  # errors after every step
    thresholds: dict[str, np.ndarray]  # (K,) mean threshold of each step
    references: dict[str, str]  # the method whose params are the reference for `changes`
    changes: dict[str, tuple[Change, ...]]  # the distance of each leaf from the reference
    couplings: dict[str, Coupling]  # for families with weights
    guarantees: dict[str, Guarantee]  # for families with a certificate
    diverged: dict[str, Divergence]  # methods whose last codes are worse than zero codes
    silent: tuple[str, ...]  # methods whose last codes are all zero, unlike the true codes
    given: tuple[str, ...] = ()  # methods that are codes of another solver, without steps
    uncertified: int = 0  # signals whose F* has no certificate; the gaps omit these signals
    # Costs of the methods with steps.
    costs: dict[str, Cost] = dataclasses.field(default_factory=dict)
    lam: float | None = None  # the weight of the LASSO of the gaps
    known: bool = True  # False: codes of the LASSO replace the true codes, which are not known
    remarks: tuple[str, ...] = ()  # remarks on lam
    sampled: dict[str, Sampled] | None = None  # for methods with steps, if asked for
    certified: dict[str, float] | None = None  # share of codes that `theory.certify_code` proves
    # The gaps of ISTA after 0, ..., K steps; the first is the gap of zero codes.
    ista_gap: np.ndarray | None = None
    predicted: dict[str, Predicted] | None = None  # for methods with steps, if asked for
    # For methods with steps, if codes are known.
    proved: dict[str, Proved] = dataclasses.field(default_factory=dict)
    # The exact solvers, if there are gaps.
    exact: dict[str, Solver] = dataclasses.field(default_factory=dict)
    # Seconds of training, for results of `fit`.
    trained: dict[str, float] = dataclasses.field(default_factory=dict)
    signals: int = 0  # number of signals in the sample

    def __repr__(self) -> str:
        """The table, cut to the size of the screen."""
        return screen(_short(self))

    def _repr_html_(self) -> str:
        """The same table as HTML for Jupyter."""
        return markdown(*_few(self), self.notes())._repr_html_()

    def table(self, form: str = "markdown", columns: Collection[str] | None = None) -> Any:
        """A table of the last errors, the quality of the rebuilt signals, and the costs.

        If the true codes are known, the table has the NMSE in both definitions, and support scores.
        Cells of undefined scores, such as the precision of codes that are all zero, are empty. A
        note below the table names each method that diverges, or whose codes are all zero. If the
        LASSO has been solved, the table also has a row for each exact solver.

        Args:
            form: "markdown", "latex" (with the rules of booktabs), "csv", or "records", a list of
                dicts that `pandas.DataFrame` takes. "csv" and "records" have unrounded numbers.
            columns: fields of the records, such as ["K", "nmse", "gap"], in the order in which
                they follow the method. If omitted, the table has all columns in which a method has
                a number. A table in LaTeX then has only "nmse", "gap", "residual" and "nonzeros" of
                these columns, so that the table fits on a page.

        Raises:
            TypeError: columns is not a list of names.
            ValueError: the form or a column is unknown.
        """
        return _table(form, columns, (self,), self._errors, self._records, self.notes())

    def parameters_table(self) -> str:
        """A Markdown table of the weights, and of how far training moved each leaf.

        For mu_W and the rms of the off-diagonal products, weights are scaled to w_i . d_i = 1.
        """
        return markdown(*self._parameters())

    def guarantees_table(self) -> str:
        """A Markdown table of the certificates of the params of each method.

        The table shows a bound on the l1 error after the last step. This bound holds for every code
        of the class. The cell is "none" if the certificate does not hold. The class (s, B, delta)
        comes from the sample, unless you pass s, B and delta to `compare`. Next to this worst case,
        the table shows how many codes of the sample are proved (see `Proved`), and the bound by
        `sampled` on the errors of 99.9 % of the codes of the class.
        """
        return markdown(*self._guarantees(), self._unproved())

    def predictions_table(self) -> str:
        """A Markdown table of the median errors, measured and predicted.

        The table has the NMSE in dB after a quarter, half and all of the steps, as "median /
        predicted by state evolution", and the predicted change in dB per step once the support is
        right. If state evolution makes no prediction, a cell has only the median, and the last
        column gives the reason. Without `predict` the table is empty.
        """
        return markdown(*self._predictions()) if self.predicted is not None else ""

    def notes(self) -> list[str]:
        """Sentences on methods that diverge, on methods whose codes are all zero, on signals that
        the gaps omit, on lam, on proofs, and on costs.
        """
        far = [f"{name} diverges: {how.reason}." for name, how in self.diverged.items()]
        quiet = "; ".join(self.silent)
        notes = [*far, *([f"These methods return only zeros: {quiet}."] if quiet else [])]
        notes += self.remarks
        if n := self.uncertified:
            subject = "1 signal is" if n == 1 else f"{n} signals are"
            notes.append(f"{subject} not in the gaps: no duality gap certifies F*.")
        shares = {of.share: of.signals for of in self.proved.values() if of.share is not None}
        if shares.keys() == {0.0}:
            notes.append(
                f"Signal by signal, theory proves none of the first {shares[0.0]} codes for any of "
                "these params."
            )
        return [*notes, *filter(None, [self.payoff()])]

    def payoff(self) -> str:
        """One sentence: the number N of signals above which a network costs less than an exact
        solver.

        N = T / (a - b), where T is the time of the training, a the time per signal of the exact
        solver, and b the time per signal of the network. The network is the method with the
        smallest gap, among results of `fit` if there are any. The sentence is empty if codes are
        known or times are unknown.
        """
        clocks = {n: of.seconds for n, of in self.exact.items() if of.seconds is not None}
        networks = {
            name: (gap, cost.seconds)
            for name, curve in self.curves.items()
            if name in (self.trained or self.costs) and name not in self.diverged
            if (gap := _number(curve.gap)) is not None
            if (cost := self.costs.get(name)) and cost.seconds
        }
        if self.known or not clocks or not networks:
            return ""
        best = min(networks, key=lambda name: networks[name][0])
        solver = min(clocks, key=lambda name: clocks[name])
        (gap, seconds), optimal = networks[best], 1e6 * clocks[solver] / self.signals
        spent = 1e6 * seconds / self.signals
        saved = optimal - spent
        if saved <= 0:
            verdict = "the network never pays"
        elif best in self.trained:
            verdict = f"the network pays above {_count(1e6 * self.trained[best] / saved)} signals"
        else:
            verdict = f"the network pays above {_count(1e6 / saved)} signals per second of training"
        name = "" if solver == "exact" else f" ({solver})"
        return (
            f"{best} takes {_cell(spent, '', 'us')} microseconds per signal and ends at a gap of "
            f"{gap:.1e}; exact codes take {_cell(optimal, '', 'us')} microseconds{name}: {verdict}."
        )

    def answer(self) -> str:
        """One sentence: the best method, its error at the last step, and its guarantee.

        The error is the NMSE (ratio of sums) if codes are known, otherwise the gap to the LASSO.
        """
        field = "nmse" if self.known else "gap"
        # The sentence says how near a network comes to the optimum, so that codes of another solver
        # do not count.
        judged = [n for n in self.curves if self.known or n not in self.given] or self.curves
        numbers = {name: _number(getattr(self.curves[name], field)) for name in judged}
        ends = {name: end for name, end in numbers.items() if end is not None}
        if not ends:
            return "No method was judged."
        best = min(ends, key=ends.__getitem__)
        text = f"{ends[best]:.1f} dB" if self.known else f"{ends[best]:.2g}"
        what = "error of the codes" if self.known else "gap to the optimum of the LASSO"
        promise, one_by_one = self.guarantees.get(best), self.proved.get(best)
        proved = f"theory guarantees no error bound for {best} here"
        if promise is not None and promise.certificate.holds:
            error = promise.certificate.error[-1]
            proved = f"theory guarantees an l1 error of at most {error:.1e} for {best}"
        elif one_by_one is not None and one_by_one.share:
            proved = f"theory proves {one_by_one.text()} codes of {best} one by one"
        return f"The smallest {what} is {text}, by {best}; {proved}."

    def to_json(self) -> str:
        """All results as JSON; numbers that are not finite become null."""
        return to_json(self)

    def plot(self, *, codes: str = "true codes", note: str = "") -> Any:
        """A figure with errors, failures and support per step, thresholds, and weights.

        Args:
            codes: a name for the codes X of `compare`, for the titles.
            note: a note for the reader, below the panels.
        """
        codes = codes if self.known else "LASSO codes"
        return plots.comparison(self, codes=codes, note=note)

    def _defined(self) -> set[str]:
        """The names of the fields of the records for which at least one method has a number."""
        records, timed = self._records(), any(of.seconds for of in self.costs.values())
        given: list[Any] = [*self.curves.values(), *self.costs.values()]
        has = {f for of in given for f in of._fields if getattr(of, f) is not None}
        has |= records[0].keys() - {*Curve._fields, *Cost._fields}
        has -= set() if timed else {"microseconds"}
        has -= (
            set() if any(of.share for of in self.proved.values()) else {"proved"}
        )  # a note says that no code is proved
        return has & records[0].keys()

    def _errors(self, fields: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """The records as text, in the columns of these fields."""
        columns, records = [_column(field) for field in fields], self._records()
        rows = [
            [record["method"], *(_cell(record.get(f), *of) for f, of in zip(fields, columns))]
            for record in records
        ]
        marked = 1 + fields.index("nmse") if "nmse" in fields else 0
        for record, row in zip(records, rows):
            if record["diverges"]:
                row[marked] = f"{row[marked]} (diverges)".lstrip()
        return ["method", *(title for title, _ in columns)], rows

    def _records(self) -> list[dict[str, Any]]:
        """The numbers of the table: one dict per method, with None for unknown numbers."""
        solvers = {name: Cost(of.seconds, None) for name, of in self.exact.items()}
        rows = [
            self._record(n, c, self.costs.get(n), n in self.given) for n, c in self.curves.items()
        ]
        return rows + [self._record(n, self.exact[n].curve, c, True) for n, c in solvers.items()]

    def _record(self, name: str, c: Curve, cost: Cost | None, level: bool) -> dict[str, Any]:
        """The numbers of a method; `level` says that the codes have no steps."""
        K, cost = None if level else len(c.nmse), cost or Cost(None, None)
        fields = [f for f in Curve._fields if f != "quantiles"]
        numbers: dict[str, Any] = {f: _number(getattr(c, f)) for f in fields}
        if not self.known:
            numbers = {f: numbers[f] for f in ("gap", "residual", "psnr", "nonzeros", "worse")}
        if self.ista_gap is not None:
            numbers |= dict(zip(("ista_gap", "zero_gap"), self._beside(K)))
        if self.proved:
            numbers["proved"] = self.proved[name].share if name in self.proved else None
        if self.certified is not None:
            numbers["certified"] = self.certified.get(name)
        if self.predicted is not None:
            expected = self.predicted.get(name, Predicted(None, None, ""))
            numbers["median_nmse"] = float(c.quantiles[-1, 1])
            numbers["predicted_nmse"] = _number(expected.nmse)
            numbers["rate"] = expected.rate
        each = None if cost.seconds is None else 1e6 * cost.seconds / max(1, self.signals)
        numbers |= {"microseconds": each, **cost.asdict()}
        return {"method": name, "K": K, **numbers, "diverges": name in self.diverged}

    def _beside(self, K: int | None) -> tuple[float | None, float | None]:
        """The gaps of ISTA after K steps, and of zero codes; None if a gap is unknown."""
        gaps = self.ista_gap
        if gaps is None or np.isnan(gaps[0]):
            return None, None
        return None if K is None else float(gaps[K]), float(gaps[0])

    def _parameters(self) -> tuple[list[str], list[list[str]]]:
        columns = ["method", "largest mu_W", "rms off-diagonal", "diagonal of W'D"]
        columns += ["coupling mismatch", "moved", "from"]
        rows = []
        for name in self.curves:
            cells = ["", "", "", ""]
            if name in self.couplings:
                c = self.couplings[name]
                diagonal = f"{c.diagonal_low.min():.4f} to {c.diagonal_high.max():.4f}"
                cells = [f"{c.mu_W.max():.4f}", f"{c.off_diagonal.max():.4f}", diagonal]
                cells.append(f"{c.mismatch.max():.2e}")
            moved = ", ".join(f"{c.leaf} {c.distance:.3g}" for c in self.changes.get(name, ()))
            rows.append([name, *cells, moved, self.references.get(name, "")])
        return columns, rows

    def _guarantees(self) -> tuple[list[str], list[list[str]]]:
        columns = ["method", "s", "B", "delta", "l1 error at the start", "guaranteed l1 error"]
        columns += ["steps without false positives", "largest s"]
        rows = [[name, *self._guaranteed(name)] for name in self.curves]
        more = {"first codes that are proved": self.proved, "by a sample": self.sampled}
        for title, texts in more.items():
            if texts:
                columns.append(title)
                rows = [[*row, texts[row[0]].text() if row[0] in texts else ""] for row in rows]
        return columns, rows

    def _unproved(self) -> list[str]:
        """A sentence that names the methods without a proof of single codes, and the reasons."""
        reasons = {name: of.reason for name, of in self.proved.items() if of.share is None}
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        return [f"Not covered signal by signal: {listed}."] if listed else []

    def _predictions(self) -> tuple[list[str], list[list[str]]]:
        shares = ("a quarter", "half", "all")
        columns = ["method", "K", *(f"dB after {share} of the steps" for share in shares)]
        columns += ["dB per step on the support", "why no state evolution"]
        rows = []
        for name, of in (self.predicted or {}).items():
            median = self.curves[name].quantiles[:, 1]
            K, cells = len(median), []
            for k in (max(1, round(K / 4)), max(1, round(K / 2)), K):
                expected = "" if of.nmse is None else f" / {of.nmse[k - 1]:.1f}"
                cells.append(f"{median[k - 1]:.1f}{expected}")
            cells.append("" if of.rate is None else f"{of.rate:.1f}")
            rows.append([name, str(K), *cells, of.remark])
        return columns, rows

    def _guaranteed(self, name: str) -> list[str]:
        if name not in self.guarantees:
            return [""] * 7
        of, certificate = self.guarantees[name], self.guarantees[name].certificate
        clean = certificate.false_positives_excluded
        return [
            *(
                str(of.sparsity),
                f"{of.bound:.3g}",
                f"{of.noise:.2g}",
                f"{certificate.error[0]:.3g}",
            ),
            f"{certificate.error[-1]:.2e}" if certificate.holds else "none",
            f"{clean.sum()} of {len(clean)}",
            str(certificate.largest_sparsity),
        ]


class ChainComparison(Result):
    """The result of `compare` for networks: a `Comparison` of the codes of every layer.

    Example:
        >>> Ds = ur.dictionaries.gaussian(jax.random.key(0), 20, 30), jnp.eye(30)
        >>> X = ur.problems.exact_sparse(jax.random.key(1), (64, 30), 2)
        >>> network = ur.dsc([ur.layers.ista(8), ur.layers.ista(4)])
        >>> methods = {"ISTA": (network, network.init(None, Ds))}
        >>> comparison = ur.compare(methods, Ds, ur.problems.synthesize(Ds[0], X), (X, X))
        >>> [row[:14] for row in comparison.table().splitlines()[:4]]
        ['| layer | meth', '|---|---|---|-', '| 1 | ISTA | 8', '| 2 | ISTA | 4']
    """

    layers: tuple[Comparison, ...]  # one comparison per layer

    def __repr__(self) -> str:
        """The tables, cut to the size of the screen."""
        return screen(
            line for j, layer in self._numbered() for line in [f"layer {j}:", *_short(layer)]
        )

    def _repr_html_(self) -> str:
        """The same tables as HTML for Jupyter."""
        return "\n".join(f"<p>layer {j}</p>\n{x._repr_html_()}" for j, x in self._numbered())

    def table(self, form: str = "markdown", columns: Collection[str] | None = None) -> Any:
        """`Comparison.table` of every layer, with the same arguments and a column for the layer."""
        rows = partial(self._together, "_errors")
        return _table(form, columns, self.layers, rows, self._records, self.notes())

    def parameters_table(self) -> str:
        """`Comparison.parameters_table` of every layer, with a column for the layer."""
        return markdown(*self._together("_parameters"))

    def guarantees_table(self) -> str:
        """`Comparison.guarantees_table` of every layer, with a column for the layer.

        The noise of a layer is the noise of its signal; the error of the layer before is added to
        this noise.
        """
        return markdown(*self._together("_guarantees"))

    def notes(self) -> list[str]:
        """`Comparison.notes` of every layer, with the number of the layer."""
        return [f"Layer {j}: {note}" for j, layer in self._numbered() for note in layer.notes()]

    def answer(self) -> str:
        """`Comparison.answer` of the last layer."""
        return f"Layer {len(self.layers)}: {self.layers[-1].answer()}"

    def to_json(self) -> str:
        """The results of every layer as JSON; numbers that are not finite become null."""
        return to_json(self)

    def plot(self, *, codes: str = "true codes", note: str = "") -> Any:
        """The figure of `Comparison.plot`, with the same arguments and one column per layer."""
        return plots.chain(self, codes=codes, note=note)

    def _records(self) -> list[dict[str, Any]]:
        return [{"layer": j, **row} for j, layer in self._numbered() for row in layer._records()]

    def _numbered(self) -> Iterator[tuple[int, Comparison]]:
        return enumerate(self.layers, start=1)

    def _together(self, part: str, *options: Any) -> tuple[list[str], list[list[str]]]:
        parts = [getattr(layer, part)(*options) for layer in self.layers]
        rows = [[str(j), *row] for j, (_, rows) in enumerate(parts, start=1) for row in rows]
        return ["layer", *parts[0][0]], rows


# The columns of a table: the field of a record, its title and its format.
_COLUMNS = {
    "K": ("K", "d"),
    "nmse": ("NMSE dB (ratio of sums)", ".1f"),
    "mean_nmse": ("NMSE dB (mean)", ".1f"),
    "failure_rate": ("failures", ".1%"),
    "worse": ("worse than zero", ".1%"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "false_positives": ("wrong entries", ".2f"),
    "gap": ("(F - F*) / F*", ".2e"),
    "ista_gap": ("gap of ISTA", ".2e"),
    "zero_gap": ("gap of zero codes", ".2e"),
    "proved": ("proved codes, %", ".1%"),
    "certified": ("certified codes, %", ".1%"),
    "residual": ("relative residual", ".4g"),
    "psnr": ("PSNR dB", ".2f"),
    "nonzeros": ("nonzeros", ".1f"),
    "microseconds": ("microseconds per signal", "us"),
    "seconds": ("seconds", ".2g"),
    "products": ("products", "d"),
}
_KNOWN = tuple(field for field in _COLUMNS if field != "microseconds")
# Without true codes, methods are judged by their gaps.
_UNKNOWN = (
    *("K", "gap", "ista_gap", "zero_gap", "worse", "certified"),
    *("residual", "psnr", "nonzeros", "microseconds", "products"),
)


def _table(
    form: str,
    asked: Collection[str] | None,
    layers: Sequence[Comparison],
    rows: Callable[[Sequence[str]], tuple[list[str], list[list[str]]]],
    records: Callable[[], list[dict[str, Any]]],
    notes: Sequence[str],
) -> Any:
    """The table of one or several layers, in the columns that are asked for or have numbers."""
    if asked is None:
        order = _DIGITS if form == "latex" else _KNOWN if layers[0].known else _UNKNOWN
        defined = set().union(*(layer._defined() for layer in layers))
        return table(form, *rows([f for f in order if f in defined]), notes, records, "table")
    if isinstance(asked, str) or not isinstance(asked, Collection):
        got = checks.brief(asked)
        raise TypeError(f"table: columns must be a list of names, got {got}; try columns=[{got}]")
    known = [field for field in records()[0] if field not in ("layer", "method", "diverges")]
    for name in asked:
        if name not in known:
            raise ValueError(
                f"table: unknown column {checks.brief(name)}; expected one of {', '.join(known)}"
                f"{checks.meant(str(name), known)}"
            )

    def chosen() -> list[dict[str, Any]]:
        return [
            {f: record.get(f) for f in ("layer", "method", *asked) if f != "layer" or f in record}
            for record in records()
        ]

    return table(form, *rows(list(asked)), notes, chosen, "table")


def _column(field: str) -> tuple[str, str]:
    """The title and the format of a field."""
    return _COLUMNS.get(field, (field.replace("_", " "), ".4g"))


def _cell(value: Any, title: str, form: str) -> str:
    """A number as text, empty if the number is not known; the title may contain the unit."""
    if form == "us":
        form = ".0f" if value is None or value >= 10 else ".2g"
    text = "" if value is None else f"{value:{form}}"
    return text.rstrip("%") if title.endswith("%") else text


def _count(number: float) -> str:
    """A count rounded to two digits."""
    return f"{float(f'{number:.2g}'):,.0f}"


def _number(values: np.ndarray | None) -> float | None:
    """The number after the last step; None if this number is not known."""
    return None if values is None or np.isnan(values[-1]) else float(values[-1])


_DIGITS = {"nmse": ".1f", "gap": ".2e", "residual": ".4g", "nonzeros": ".1f"}


def _few(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The columns and rows by which methods are judged at a glance."""
    shown = {"nmse": "NMSE dB"} if comparison.known else {}
    shown |= {"gap": "(F-F*)/F*", "residual": "residual", "nonzeros": "nonzeros"}
    records = comparison._records()
    shown = {f: title for f, title in shown.items() if any(r[f] is not None for r in records)}
    rows = [
        [r["method"] + " (diverges)" * r["diverges"]]
        + ["" if r[f] is None else f"{r[f]:{_DIGITS[f]}}" for f in shown]
        for r in records
    ]
    return ["method", *shown.values()], rows


def _short(comparison: Comparison) -> Iterator[str]:
    """Lines for a terminal: the methods with the columns of `_few`, and the notes."""
    (_, *titles), rows = _few(comparison)
    yield line("method", titles)
    for name, *cells in rows:
        yield line(name, cells)
    yield from comparison.notes()
