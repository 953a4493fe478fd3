"""The results of a comparison, and their tables."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from unrolled import plots
from unrolled._base import checks
from unrolled._base.results import Result
from unrolled._base.text import markdown, screen, short, table, to_json
from unrolled.comparison._headline import headline
from unrolled.comparison._method import About
from unrolled.comparison._payoff import microseconds, payoff
from unrolled.comparison._results import Cost, Curve, Guarantee, MethodResult, Predicted
from unrolled.training import Candidate

__all__ = ["ChainComparison", "Comparison"]


class Comparison(Result):
    """The result of `compare` for layers; `comparison["ALISTA"]` is the result of a method.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(8)
        >>> comparison = ur.compare({"ISTA": (layer, layer.init(None, D))}, D, Y, X)
        >>> comparison.table().splitlines()[0]
        '| method | NMSE dB (ratio of sums) | NMSE dB (median) | failures |'
    """

    methods: dict[str, MethodResult]  # the result of each method
    signals: int = 0  # number of signals in the sample
    known: bool = True  # False: codes of the LASSO replace the true codes, which are not known
    lam: float | None = None  # the weight of the LASSO of the gaps
    # The exact solvers of the LASSO by name, if there are gaps.
    exact: dict[str, MethodResult] = dataclasses.field(default_factory=dict)
    # The gaps of ISTA after 0, ..., K steps; the first is the gap of zero codes.
    ista_gap: np.ndarray | None = None
    uncertified: int = 0  # signals whose F* has no certificate; the gaps omit these signals
    remarks: tuple[str, ...] = ()  # remarks on lam
    # Trained networks, exact codes and untrained layers as `recommend` measures them.
    rows: tuple[Candidate, ...] = ()

    def __getitem__(self, name: str) -> MethodResult:
        """The result of a method or of an exact solver."""
        if not isinstance(name, str):
            return super().__getitem__(name)  # which refuses it
        rows = self._rows()
        if name not in rows:
            near = f"{', '.join(rows)}{checks.meant(str(name), rows)}"
            raise KeyError(f"Comparison: unknown method {name!r}; expected one of {near}")
        return rows[name]

    def _rows(self) -> dict[str, MethodResult]:
        """The exact solvers and the methods, in the order of the tables."""
        return self.methods | {n: of for n, of in self.exact.items() if n not in self.methods}

    def _values(self, field: str) -> dict[str, Any]:
        """The values of a field by method, without methods to which the field does not apply."""
        values = {name: getattr(of, field) for name, of in self.methods.items()}
        return {name: value for name, value in values.items() if value is not None}

    def __repr__(self) -> str:
        """The table "text", cut to the size of the screen."""
        return screen([*self.table("text").splitlines(), *self.notes()])

    def _repr_html_(self) -> str:
        """The short table as HTML for Jupyter."""
        return self.table()._repr_html_()

    @property
    def why(self) -> str:
        """The result in words: the best learned, calibrated and analytic params of a family.

        The sentences give the errors (NMSE, ratio of sums) of these methods, of ISTA or FISTA, and
        of the best method of all. They also give the CPU times, if known, and the share of the
        signals that Theorem 12 covers. If codes are unknown, gaps to the LASSO optimum replace the
        errors. Without origins of params (see `Method`), only the best method is named.
        """
        return headline(self)

    def table(
        self,
        form: str = "markdown",
        columns: Collection[str] | None = None,
        *,
        all: bool = False,
    ) -> Any:
        """A table of the last errors, the share of failures, and the costs.

        The table has at most seven columns: the method, the error, its median and the failures, and
        those of the CPU time, the count of learned numbers and the share of proved codes in which
        the methods differ. A note below the table names each method that diverges, and each method
        whose codes are all zero, which has no row. If the LASSO has been solved, the table also has
        a row for each exact solver.

        Args:
            form: "markdown", "latex" (with the rules of booktabs), "text" for a terminal, at most
                100 columns wide, "csv", or "records", a list of dicts that `pandas.DataFrame`
                takes. "csv" and "records" have all columns, with unrounded numbers.
            columns: fields of the records, such as ["K", "nmse", "gap"], in the order in which
                they follow the method.
            all: if True, a row for every method, and all columns in which a method has a number,
                among them the support scores and the quality of the rebuilt signals. Cells of
                undefined scores, such as the precision of codes that are all zero, are empty.

        Raises:
            TypeError: columns is not a list of names.
            ValueError: the form or a column is unknown.
        """
        return _table(form, columns, all, (self,), self._errors, self._records, self.notes())

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
        return markdown(*self._predictions()) if self._values("predicted") else ""

    def notes(self) -> list[str]:
        """Sentences on methods that diverge, on methods whose codes are all zero, on signals that
        the gaps omit, on lam, on proofs, and on costs.
        """
        diverged = self._values("diverged")
        far = [f"{name} diverges: {how.reason}." for name, how in diverged.items()]
        quiet = "; ".join(name for name, of in self.methods.items() if of.silent)
        far += [f"{name}: {of.beyond}." for name, of in self.methods.items() if of.beyond]
        notes = [*far, *([f"These methods return only zeros: {quiet}."] if quiet else [])]
        notes += self.remarks
        if n := self.uncertified:
            subject = "1 signal is" if n == 1 else f"{n} signals are"
            notes.append(f"{subject} not in the gaps: no duality gap certifies F*.")
        proved = self._values("proved").values()
        shares = {of.share: of.signals for of in proved if of.share is not None}
        if shares.keys() == {0.0}:
            notes.append(
                f"Signal by signal, theory proves none of the first {shares[0.0]} codes for any of "
                "these params."
            )
        return [*notes, *filter(None, [self.payoff()])]

    def payoff(self) -> str:
        """The verdict of `recommend`: which codes cost the least, and when training is repaid.

        The wanted gap is the mean gap (F - F*) / F* of the best network, among results of `fit` if
        there are any. With a result of `fit`, `compare` measures exact codes, and `fista` and `bcd`
        untrained with 8 to 128 steps, on at most 256 of the signals; `rows` has the costs and the
        gaps. A training of T seconds is repaid after T / (a - b) signals, where a and b are the CPU
        seconds per signal of the cheapest untrained codes within the gap and of the network. T is
        the time of the clock, so work of other processes during the training raises T. Without a
        result of `fit`, with a mask and for networks, only the methods and the exact solvers of the
        table count. The text is empty if codes are known or times are unknown.
        """
        return "" if self.known else payoff(self.methods, self.exact, self.signals, self.rows)

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
        curves = [of.curve.asdict() for of in self.methods.values()]
        numbers = [*self._records(), *curves]
        has = {f for record in numbers for f, value in record.items() if value is not None}
        shares = [of.share for of in self._values("proved").values()]
        has -= set() if any(shares) else {"proved"}  # a note says that no code is proved
        return has & numbers[0].keys()

    def _errors(self, fields: Sequence[str], all: bool) -> tuple[list[str], list[list[str]]]:
        """The records as text, in the columns of these fields; unless `all`, without zero codes."""
        columns, records = [_column(field) for field in fields], self._records()
        if not all:
            records = [r for r in records if not self[r["method"]].silent] or records
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
        rows = [*self.methods.items(), *self.exact.items()]
        return [self._record(name, of) for name, of in rows]

    def _record(self, name: str, of: MethodResult) -> dict[str, Any]:
        """The numbers of a method."""
        numbers: dict[str, Any]
        c, cost = of.curve, of.cost or Cost(None, None)
        K = None if of.given else len(c.nmse)
        numbers = {f: _number(getattr(c, f)) for f in Curve._fields if "quantiles" not in f}
        of_gaps = np.full((1, 3), np.nan) if c.gap_quantiles is None else c.gap_quantiles
        for measure, ends in (("nmse", c.quantiles), ("gap", of_gaps)):
            names = f"low_{measure}", f"median_{measure}", f"high_{measure}"
            numbers |= dict(zip(names, map(_number, ends.T)))
        if not self.known:
            numbers = {f: value for f, value in numbers.items() if f in _UNKNOWN}
        if self.ista_gap is not None:
            numbers |= dict(zip(("ista_gap", "zero_gap"), self._beside(K)))
        if self._values("proved"):
            numbers["proved"] = None if of.proved is None else of.proved.share
        if self._values("certified"):
            numbers["certified"] = of.certified
        if self._values("predicted"):
            expected = of.predicted or Predicted(None, None, "")
            numbers |= dict(predicted_nmse=_number(expected.nmse), rate=expected.rate)
        numbers |= {"microseconds": microseconds(of, self.signals), **cost.asdict()}
        if self._values("about"):
            about = of.about or About("", "")
            numbers |= {"numbers": about.numbers, "origin": about.origin}
        return {"method": name, "K": K, **numbers, "diverges": of.diverged is not None}

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
        for name, of in self.methods.items():
            cells = ["", "", "", ""]
            if (c := of.coupling) is not None:
                diagonal = f"{c.diagonal_low.min():.4f} to {c.diagonal_high.max():.4f}"
                cells = [f"{c.mu_W.max():.4f}", f"{c.off_diagonal.max():.4f}", diagonal]
                cells.append(f"{c.mismatch.max():.2e}")
            moved = ", ".join(f"{c.leaf} {c.distance:.3g}" for c in of.changes)
            rows.append([name, *cells, moved, of.reference or ""])
        return columns, rows

    def _guarantees(self) -> tuple[list[str], list[list[str]]]:
        columns = ["method", "s", "B", "delta", "l1 error at the start", "guaranteed l1 error"]
        columns += ["steps without false positives", "largest s"]
        rows = [[name, *_guaranteed(of.guarantee)] for name, of in self.methods.items()]
        more = {"first codes that are proved": "proved", "by a sample": "sampled"}
        for title, field in more.items():
            if texts := self._values(field):
                columns.append(title)
                rows = [[*row, texts[row[0]].text() if row[0] in texts else ""] for row in rows]
        return columns, rows

    def _unproved(self) -> list[str]:
        """A sentence that names the methods without a proof of single codes, and the reasons."""
        proved = self._values("proved")
        reasons = {name: of.reason for name, of in proved.items() if of.share is None}
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        return [f"Not covered signal by signal: {listed}."] if listed else []

    def _predictions(self) -> tuple[list[str], list[list[str]]]:
        shares = ("a quarter", "half", "all")
        columns = ["method", "K", *(f"dB after {share} of the steps" for share in shares)]
        columns += ["dB per step on the support", "why no state evolution"]
        rows = []
        for name, of in self._values("predicted").items():
            median = self[name].curve.quantiles[:, 1]
            K, cells = len(median), []
            for k in (max(1, round(K / 4)), max(1, round(K / 2)), K):
                expected = "" if of.nmse is None else f" / {of.nmse[k - 1]:.1f}"
                cells.append(f"{median[k - 1]:.1f}{expected}")
            cells.append("" if of.rate is None else f"{of.rate:.1f}")
            rows.append([name, str(K), *cells, of.remark])
        return columns, rows


class ChainComparison(Result):
    """The result of `compare` for networks: a `Comparison` of the codes of every layer.

    Example:
        >>> Ds = ur.dictionaries.gaussian(jax.random.key(0), 20, 30), jnp.eye(30)
        >>> X = ur.problems.exact_sparse(jax.random.key(1), (64, 30), 2)
        >>> network = ur.dsc([ur.layers.ista(8), ur.layers.ista(4)])
        >>> methods = {"ISTA": (network, network.init(None, Ds))}
        >>> comparison = ur.compare(methods, Ds, ur.problems.synthesize(Ds[0], X), (X, X))
        >>> [row[:10] for row in comparison.table().splitlines()[:4]]
        ['| layer | ', '|---|---|-', '| 1 | ISTA', '| 2 | ISTA']
    """

    layers: tuple[Comparison, ...]  # one comparison per layer

    def __repr__(self) -> str:
        """The table "text", cut to the size of the screen."""
        return screen([*self.table("text").splitlines(), *self.notes()])

    def _repr_html_(self) -> str:
        """The short table as HTML for Jupyter."""
        return self.table()._repr_html_()

    def table(
        self,
        form: str = "markdown",
        columns: Collection[str] | None = None,
        *,
        all: bool = False,
    ) -> Any:
        """`Comparison.table` of every layer, with the same arguments and a column for the layer."""
        rows = partial(self._together, "_errors")
        return _table(form, columns, all, self.layers, rows, self._records, self.notes())

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

    @property
    def why(self) -> str:
        """`Comparison.why` of the last layer."""
        return f"Layer {len(self.layers)}: {self.layers[-1].why}"

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
    "low_nmse": ("NMSE dB (10 %)", ".1f"),
    "median_nmse": ("NMSE dB (median)", ".1f"),
    "high_nmse": ("NMSE dB (90 %)", ".1f"),
    "failure_rate": ("failures", ".1%"),
    "worse": ("worse than zero", ".1%"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "false_positives": ("wrong entries", ".2f"),
    "gap": ("(F - F*) / F*", ".2e"),
    "low_gap": ("gap (10 %)", ".2e"),
    "median_gap": ("gap (median)", ".2e"),
    "high_gap": ("gap (90 %)", ".2e"),
    "ista_gap": ("gap of ISTA", ".2e"),
    "zero_gap": ("gap of zero codes", ".2e"),
    "proved": ("proved codes, %", ".1%"),
    "certified": ("certified codes, %", ".1%"),
    "residual": ("relative residual", ".4g"),
    "psnr": ("PSNR dB", ".2f"),
    "nonzeros": ("nonzeros", ".1f"),
    "microseconds": ("CPU us per signal", "us"),
    "seconds": ("seconds", ".2g"),
    "numbers": ("numbers learned", ",d"),
    "products": ("products", "d"),
}
# The order of all columns; without true codes, methods are judged by their gaps.
_KNOWN = [f for f in _COLUMNS if f not in ("low_gap", "median_gap", "high_gap", "microseconds")]
_UNKNOWN = (
    *("K", "gap", "low_gap", "median_gap", "high_gap", "ista_gap", "zero_gap", "worse"),
    *("certified", "residual", "psnr", "nonzeros", "microseconds", "numbers", "products"),
)
# The columns of a short table, if the methods differ in them: errors first, then costs.
_SHORT_KNOWN = ("nmse", "median_nmse", "failure_rate", "gap", "microseconds", "numbers", "proved")
_SHORT_UNKNOWN = ("gap", "median_gap", "worse", "microseconds", "numbers", "residual")
_MOST = 6  # columns of a short table after the method


def _table(
    form: str,
    asked: Collection[str] | None,
    all: bool,
    layers: Sequence[Comparison],
    rows: Callable[[Sequence[str], bool], tuple[list[str], list[list[str]]]],
    records: Callable[[], list[dict[str, Any]]],
    notes: Sequence[str],
) -> Any:
    """The table of one or several layers, in the columns that are asked for or have numbers."""
    if asked is None:
        fields = _fields(layers, all)
        return table(form, *rows(fields, all), notes, records, "table")
    if isinstance(asked, str) or not isinstance(asked, Collection):
        got = checks.brief(asked)
        raise TypeError(f"table: columns must be a list of names, got {got}; try columns=[{got}]")
    known = [field for field in records()[0] if field not in ("layer", "method", "diverges")]
    for name in asked:
        checks.one_of(name, known, "column", "table")

    def chosen() -> list[dict[str, Any]]:
        return [
            {f: record.get(f) for f in ("layer", "method", *asked) if f != "layer" or f in record}
            for record in records()
        ]

    return table(form, *rows(list(asked), True), notes, chosen, "table")


def _fields(layers: Sequence[Comparison], all: bool) -> list[str]:
    """The columns of a table: all that have a number, or the first in which methods differ."""
    known = layers[0].known
    defined = set().union(*(layer._defined() for layer in layers))
    if all:
        return [f for f in (_KNOWN if known else _UNKNOWN) if f in defined]
    texts: dict[str, set[str]] = {}
    for field in (f for f in (_SHORT_KNOWN if known else _SHORT_UNKNOWN) if f in defined):
        texts[field] = {row[1] for layer in layers for row in layer._errors([field], False)[1]}
    several = sum(len(layer._errors([], False)[1]) for layer in layers) > 1
    # The ratio of sums, the median and the failures mislead if one of them stands alone.
    always = _SHORT_KNOWN[:3] if known else _SHORT_UNKNOWN[:2]
    differ = [f for f, cells in texts.items() if len(cells) > 1 or not several or f in always]
    return differ[:_MOST]


def _column(field: str) -> tuple[str, str]:
    """The title and the format of a field."""
    return _COLUMNS.get(field, (field.replace("_", " "), ".4g"))


def _cell(value: Any, title: str, form: str) -> str:
    """A number as text, empty if the number is not known; the title may contain the unit."""
    if form == "us":
        return "" if value is None else short(value)
    text = "" if value is None else f"{value:{form}}"
    return text.rstrip("%") if title.endswith("%") else text


def _number(values: np.ndarray | None) -> float | None:
    """The number after the last step; None if this number is not known."""
    return None if values is None or np.isnan(values[-1]) else float(values[-1])


def _guaranteed(of: Guarantee | None) -> list[str]:
    """The cells of a guarantee."""
    if of is None:
        return [""] * 7
    certificate, clean = of.certificate, of.certificate.false_positives_excluded
    return [
        str(of.sparsity),
        f"{of.bound:.3g}",
        f"{of.noise:.2g}",
        f"{certificate.error[0]:.3g}",
        f"{certificate.error[-1]:.2e}" if certificate.holds else "none",
        f"{clean.sum()} of {len(clean)}",
        str(certificate.largest_sparsity),
    ]
