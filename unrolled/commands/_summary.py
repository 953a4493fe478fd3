"""What a training has reached: the start and the learned params, judged on test signals."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled import metrics, problems, training
from unrolled._json import plain
from unrolled.commands._config import Config
from unrolled.commands._encode import apply_in_chunks
from unrolled.commands._inputs import WEIGHTS
from unrolled.commands._report import environment
from unrolled.commands._setup import Setup
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled
from unrolled.pursuit import lasso_objective

_TITLES = {
    "nmse": "NMSE, ratio of sums, dB",
    "mean_nmse": "NMSE, mean of dB",
    "failure_rate": "share above -20 dB",
    "lasso_objective": "LASSO objective",
    "relative_residual": "relative residual",
    "nonzeros": "nonzeros",
}


class Summary(NamedTuple):
    """The numbers that `unrolled train` ends with."""

    config: Config
    shape: tuple[int, ...]  # of D
    steps: int
    seconds: float
    best_step: int
    validation: dict[str, float]  # the loss of the "first" and of the "best" evaluation
    tested_on: int  # signals
    judged: dict[str, dict[str, float]]  # of "start" and "learned", judgement -> number

    def text(self) -> str:
        """The summary as lines of text."""
        model, (m, d) = self.config.model, self.shape
        first, best = self.validation["first"], self.validation["best"]
        lines = [
            f"{model.family}, {model.depth} steps, {m} x {d}: {self.steps} training steps in "
            f"{self.seconds:.1f} s, validation loss {first:.4g} at first, "
            f"{best:.4g} at step {self.best_step}",
            f"on {self.tested_on} test signals:",
            f"  {'':24}  {'start':>10}  {'learned':>10}",
        ]
        for name, value in self.judged["start"].items():
            lines += [f"  {_TITLES[name]:24}  {value:10.4g}  {self.judged['learned'][name]:10.4g}"]
        return "\n".join([*lines, f"weights: {self._weights()}"])

    def to_dict(self) -> dict[str, Any]:
        """The summary as data, with the whole configuration and the environment."""
        added = {
            "config": dataclasses.asdict(self.config),
            "weights": self._weights(),
            "environment": environment(),
        }
        return plain(self._asdict() | added)

    def _weights(self) -> str:
        return str(Path(self.config.output) / WEIGHTS)


def summarize(config: Config, ready: Setup, found: training.Fit) -> Summary:
    """Judge the start and the best params of a training."""
    whole = found.history.records
    # Of a curriculum the last stage counts.
    records = [record for record in whole if record.stage == whole[-1].stage]
    best = min(records, key=lambda record: record.validation)
    lam, tested_on = config.problem.lam, ready.tested_on
    judged = {
        "start": _judged(ready.layer, ready.params, ready.D, *tested_on, lam),
        "learned": _judged(ready.layer, found.best, found.D, *tested_on, lam),
    }
    return Summary(
        config,
        ready.D.shape,
        records[-1].step,
        records[-1].seconds,
        best.step,
        {"first": records[0].validation, "best": best.validation},
        len(tested_on[0]),
        judged,
    )


def _judged(
    layer: Layer, params: Unrolled, D: Dictionary, Y: jax.Array, X: jax.Array | None, lam: float
) -> dict[str, float]:
    """Errors of the codes of test signals where the true codes are known, and their LASSO."""
    codes = apply_in_chunks(layer.apply, params, D, Y)
    found = {}
    if X is not None:
        found = {
            "nmse": metrics.nmse(codes, X),
            "mean_nmse": metrics.mean_nmse(codes, X),
            "failure_rate": metrics.failure_rate(codes, X),
        }
    objective = jax.vmap(lasso_objective, (None, 0, 0, None))
    residual = Y - problems.synthesize(D, codes)
    found |= {
        "lasso_objective": objective(D, Y, codes, jnp.asarray(lam, codes.dtype)).mean(),
        "relative_residual": jnp.linalg.norm(residual) / jnp.linalg.norm(Y),
        "nonzeros": (codes != 0).sum(1).mean(),
    }
    return {name: float(value) for name, value in found.items()}
