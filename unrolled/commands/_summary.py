"""What a run leaves in its folder: its history, and the start and the end on test signals.

The history is a JSON line per evaluation, and a table.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled import metrics, training
from unrolled._beside import ROUNDING, worse
from unrolled._files import write_whole
from unrolled._json import plain, to_json
from unrolled._text import markdown
from unrolled.commands._coders import apply_in_chunks, relative_residuals, residual_norms
from unrolled.commands._config import to_dict
from unrolled.commands._inputs import WEIGHTS
from unrolled.commands._report import environment, write_table
from unrolled.commands._sections import Config
from unrolled.commands._setup import Dictionaries, Model, Setup
from unrolled.layers import Layer
from unrolled.pursuit import lasso_objective

HISTORY, TABLE = "history.jsonl", "history.csv"

_TITLES = {
    "nmse": "NMSE, ratio of sums, dB",
    "mean_nmse": "NMSE, mean of dB",
    "failure_rate": "share above -20 dB",
    "lasso_objective": "LASSO objective",
    "worse_than_zero": "worse than zero codes, %",
    "relative_residual": "relative residual",
    "nonzeros": "nonzeros",
}


class Summary(NamedTuple):
    """The numbers that `unrolled train` ends with."""

    config: Config
    shape: Any  # of D, or of every D of a chain
    steps: int
    seconds: float
    best_step: int
    # The loss of the "first" and of the "best" evaluation, of "zero" codes, and, where a layer is
    # trained, of "ista" at its depth.
    validation: dict[str, float]
    tested_on: int  # signals
    # Of "start" and "learned": judgement -> number, for a chain a list with those of every layer.
    judged: dict[str, Any]

    def text(self) -> str:
        """The summary as lines of text."""
        first, best = self.validation["first"], self.validation["best"]
        shapes, judged = self.shape, list(zip(self.judged["start"], self.judged["learned"]))
        if not self.config.chained:
            shapes, judged = [self.shape], [(self.judged["start"], self.judged["learned"])]
        models = [
            f"{model.family}, {model.depth} steps, {m} x {d}"
            for model, (m, d) in zip(self.config.layers, shapes)
        ]
        lines = [
            f"{'; '.join(models)}: {self.steps} training steps in "
            f"{self.seconds:.1f} s, validation loss {first:.4g} at first, "
            f"{best:.4g} at step {self.best_step}{self._beside()}",
            f"on {self.tested_on} test signals:",
        ]
        for j, (start, learned) in enumerate(judged, start=1):
            title = f"layer {j}" if self.config.chained else ""
            lines.append(f"  {title:24}  {'start':>10}  {'learned':>10}")
            for name, value in start.items():
                lines.append(f"  {_TITLES[name]:24}  {value:10.4g}  {learned[name]:10.4g}")
        return "\n".join([*lines, *self._advice(), f"weights: {self._weights()}"])

    def parts(self) -> list[str]:
        """The same as a paragraph and a table for each layer."""
        learned, start = (self.judged[name] for name in ("learned", "start"))
        layers = list(zip(start, learned)) if self.config.chained else [(start, learned)]
        tables = [
            markdown(
                [f"layer {j}" if self.config.chained else "", "start", "learned"],
                [[_TITLES[name], f"{a:.4g}", f"{after[name]:.4g}"] for name, a in before.items()],
            )
            for j, (before, after) in enumerate(layers, start=1)
        ]
        ends = [*self._advice(), f"weights: `{self._weights()}`"]
        return [*self.text().splitlines()[:2], *tables, *ends]

    def _advice(self) -> list[str]:
        """What helps where some signals have codes worse than zero."""
        learned = self.judged["learned"]
        worse = not self.config.chained and learned.get("worse_than_zero", 0) > 0
        if not worse or self.config.layers[0].layer.guard is not None:
            return []
        lam = self.config.problem.lam
        return [f"no signal has a code worse than zero with a guard: try --guard {lam:g}"]

    def answer(self) -> str:
        """How far the training came, in one sentence."""
        first, best = self.validation["first"], self.validation["best"]
        text = f"The validation loss went from {first:.4g} to {best:.4g} in {self.steps} steps"
        return f"{text}; {self.worse}." if self.worse else f"{text}{self._beside()}."

    def _beside(self) -> str:
        """The validation losses of zero codes and of ISTA."""
        names = {"zero": "zero codes", "ista": "ISTA"}
        scores = {text: self.validation[n] for n, text in names.items() if n in self.validation}
        return "".join(f", {value:.4g} of {text}" for text, value in scores.items())

    @property
    def worse(self) -> str:
        """A sentence if the best codes are worse than zero codes, or than ISTA, else ""."""
        best, zero = self.validation["best"], self.validation.get("zero", math.inf)
        of_ista = self.validation.get("ista", math.nan)
        rule = worse("the codes are", "validation loss", best, zero, of_ista)
        remedy = "another --family or --start, a smaller --rate or more --steps"
        return f"{rule}; try {remedy}" if rule else ""

    def to_dict(self) -> dict[str, Any]:
        """The summary as data, with the whole configuration and the environment."""
        added = {
            "config": to_dict(self.config),
            "weights": self._weights(),
            "environment": environment(),
        }
        return plain(self._asdict() | added)

    def _weights(self) -> str:
        return str(Path(self.config.output) / WEIGHTS)


def summarize(config: Config, ready: Setup, fit: training.Fit) -> Summary:
    """Judge the start and the best params of a run."""
    whole = fit.history.records
    # Of a curriculum the last stage counts.
    records = [record for record in whole if record.stage == whole[-1].stage]
    best = min(records, key=lambda record: record.validation)
    lam, tested_on = config.problem.lam, ready.tested_on
    assert lam is not None  # `settled`
    judged = {
        "start": _judged(ready.model, ready.params, ready.D, *tested_on, lam),
        "learned": _judged(ready.model, fit.best, fit.D, *tested_on, lam),
    }
    Ds = ready.D
    return Summary(
        config,
        tuple(D.shape for D in Ds) if isinstance(Ds, tuple) else Ds.shape,
        records[-1].step,
        records[-1].seconds,
        best.step,
        fit.judged,
        len(tested_on[0]),
        judged,
    )


def _judged(
    model: Model, params: Any, D: Dictionaries, Y: jax.Array, X: Any, lam: float
) -> dict[str, float] | list[dict[str, float]]:
    """Errors of the codes of test signals where the true codes are known, and their LASSO.

    For a chain a list with those of every layer, whose LASSO has the code before as its signal.
    """
    codes = apply_in_chunks(model.apply, params, D, Y)
    if isinstance(model, Layer):
        D, codes, X = (D,), (codes,), (X,)
    assert isinstance(D, tuple)
    Xs = [None] * len(D) if X is None else X
    judged = []
    residuals = relative_residuals(residual_norms(D, Y, codes))
    for D_j, signals, x, X_j, residual in zip(D, (Y, *codes), codes, Xs, residuals):
        objective = jax.vmap(lasso_objective, (None, 0, 0, None))
        values = objective(D_j, signals, x, jnp.asarray(lam, x.dtype))
        numbers = {} if X_j is None else _errors(x, X_j)
        numbers |= {"lasso_objective": values.mean()}
        numbers |= {} if X_j is not None else {"worse_than_zero": _worse_than_zero(values, signals)}
        numbers |= {"relative_residual": residual, "nonzeros": (x != 0).sum(1).mean()}
        judged.append({name: float(value) for name, value in numbers.items()})
    return judged[0] if isinstance(model, Layer) else judged


def _worse_than_zero(values: jax.Array, Y: jax.Array) -> jax.Array:
    """The share of signals whose objective exceeds that of the zero code, in percent."""
    return 100 * jnp.mean(~(values <= (1 + ROUNDING) * jnp.sum(Y**2, 1) / 2))


def _errors(x: jax.Array, X: jax.Array) -> dict[str, Any]:
    return {
        "nmse": metrics.nmse(x, X),
        "mean_nmse": metrics.mean_nmse(x, X),
        "failure_rate": metrics.failure_rate(x, X),
    }


def logger(folder: Path, started: Callable[[], None]) -> Callable[..., None]:
    """A callback of `fit` that appends one line per evaluation.

    Evaluations of an earlier run are kept up to the step that the first new one has. The earlier
    history is replaced, and `started` called, at the first evaluation, when `fit` has locked the
    checkpoints: a second run in the same folder changes nothing.
    """
    path = folder / HISTORY
    before: list[dict[str, Any]] | None = read_history(path)

    def write(record, params):
        nonlocal before
        row = row_of(record)
        if before is not None:
            _write_lines(path, [old for old in before if _place(old) < _place(row)])
            started()
            before = None
        with path.open("a") as file:
            file.write(_line(row))

    return write


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history, up to a line that was torn when a run was killed."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows.append(row | {"stage": int(row["stage"]), "step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            break
    return rows


def write_history(folder: Path, records: Sequence[training.Record]) -> None:
    """Write the whole history, as JSON lines and as a table."""
    rows = [row_of(record) for record in records]
    _write_lines(folder / HISTORY, rows)
    write_table(folder / TABLE, list(rows[0]), [list(row.values()) for row in rows])


def row_of(record: training.Record) -> dict[str, Any]:
    """A record of the history as data; numbers that are not finite are None."""
    return plain(record)


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["stage"], row["step"]


def _line(row: dict[str, Any]) -> str:
    return to_json(row, indent=None) + "\n"


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_whole(path, "".join(map(_line, rows)).encode())
