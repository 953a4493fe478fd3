"""`unrolled train`: one training in its run folder, from a configuration to weights and a summary."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unrolled import metrics, problems, training
from unrolled._json import plain
from unrolled.commands._config import Config, ConfigError, differences, load, to_toml
from unrolled.commands._encode import apply_in_chunks
from unrolled.commands._report import check_folder, environment
from unrolled.commands._setup import Setup, setup
from unrolled.pursuit import lasso_objective

CONFIG, HISTORY, TABLE, WEIGHTS, SUMMARY = (
    "config.toml",
    "history.jsonl",
    "history.csv",
    "weights.npz",
    "summary.json",
)
CHECKPOINTS = "checkpoints"
_TITLES = {
    "nmse": "NMSE, ratio of sums, dB",
    "mean_nmse": "NMSE, mean of dB",
    "failure_rate": "share above -20 dB",
    "lasso_objective": "LASSO objective",
    "relative_residual": "relative residual",
    "nonzeros": "nonzeros",
}


class Summary(NamedTuple):
    """What a training has reached: the judgements of the start and of the learned params on the
    test signals.
    """

    config: Config
    shape: tuple[int, int]
    steps: int
    seconds: float
    best_step: int
    validation: dict[str, float]
    tested_on: int  # signals
    judged: dict[str, dict[str, float]]  # of "start" and "learned", judgement -> number

    def text(self) -> str:
        model, (m, d) = self.config.model, self.shape
        start, best = self.validation["first"], self.validation["best"]
        lines = [
            f"{model.family}, {model.depth} steps, {m} x {d}: {self.steps} training steps in {self.seconds:.1f} s, "
            f"validation loss {start:.4g} at first, {best:.4g} at step {self.best_step}",
            f"on {self.tested_on} test signals:",
        ]
        lines += [f"  {'':24}  {'start':>10}  {'learned':>10}"]
        for name, value in self.judged["start"].items():
            lines += [f"  {_TITLES[name]:24}  {value:10.4g}  {self.judged['learned'][name]:10.4g}"]
        return "\n".join([*lines, f"weights: {Path(self.config.output) / WEIGHTS}"])

    def to_dict(self) -> dict:
        found = self._asdict() | {
            "config": dataclasses.asdict(self.config),
            "weights": str(Path(self.config.output) / WEIGHTS),
            "environment": environment(),
        }
        return plain(found)


def run(path: Path | None, flags: dict[str, Any], resume: bool, say: Callable) -> Summary:
    """Train as a TOML file and flags say, or go on with the run of a folder.

    Raises:
        ConfigError: see `load`; a folder that holds a run, or another run than the one to resume.
        ArithmeticError: the training broke; the checkpoints before that stay.
        KeyboardInterrupt, SystemExit: by SIGINT or SIGTERM, with the step saved.
    """
    config = _opened(path, flags, resume)
    folder = Path(config.output)
    ready = setup(config, say)
    if not resume:
        _write(folder / CONFIG, to_toml(config))
    say(f"training {config.training.steps} steps")
    found = _trained(config, ready, folder, say)
    _write_history(folder, [_row(record) for record in found.history.records])
    training.save(folder / WEIGHTS, found.best, found.D, ready.layer)
    summary = _summary(config, ready, found)
    _write(folder / SUMMARY, json.dumps(summary.to_dict(), indent=1) + "\n")
    return summary


def _grown(saved: Config, config: Config) -> Config:
    """The saved configuration with the steps of this one, if a run may go on beyond its end."""
    chosen = saved.training
    if (
        chosen.method == "end_to_end"
        and chosen.schedule == "constant"
        and config.training.steps > chosen.steps
    ):
        return dataclasses.replace(
            saved, training=dataclasses.replace(chosen, steps=config.training.steps)
        )
    return saved


def _opened(path: Path | None, flags: dict[str, Any], resume: bool) -> Config:
    """The configuration, and its folder made: an empty one, or that of the same run."""
    if resume and path is None:  # the folder knows what was run
        folder = Path(flags.get("output") or Config.output).absolute()
        config = load(_saved(folder), flags | {"output": str(folder)})
    else:
        config = load(path, flags)
        folder = Path(config.output)
    if resume:
        other = differences(_grown(load(_saved(folder), {}), config), config)
        if other:
            raise ConfigError(
                f"{folder}: holds a run with another configuration: {', '.join(other)}; try another --output"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder}: is not empty; try --resume to go on with its run, or another --output"
        )
    check_folder(folder)
    return config


def _saved(folder: Path) -> Path:
    """The configuration of the run of a folder."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder}: there is no {CONFIG} in it, so no run to resume; try without --resume"
        )
    return folder / CONFIG


def _trained(config: Config, ready: Setup, folder: Path, say: Callable) -> training.Fit:
    chosen = config.training
    options = dict(
        key=ready.key,
        loss=ready.loss,
        validation=ready.validation,
        evaluate_every=chosen.evaluate_every,
        callbacks=(_log(folder, config),),
        checkpoint=training.Checkpoint(folder / CHECKPOINTS, every=chosen.save_every),
    )
    if chosen.method == "curriculum":
        options |= dict(steps_per_stage=chosen.steps, rate=chosen.rate, optimizer=ready.optimizer)
        train = training.curriculum
    else:
        cosine = chosen.schedule == "cosine"
        rate = optax.cosine_decay_schedule(chosen.rate, chosen.steps) if cosine else chosen.rate
        options |= dict(
            steps=chosen.steps,
            optimizer=ready.optimizer(rate),
            learn_dictionary=chosen.learn_dictionary,
        )
        train = training.fit
    try:
        return train(ready.layer, ready.params, ready.D, ready.sample, **options)
    except (KeyboardInterrupt, SystemExit):  # after the step has been saved
        say("stopped; --resume goes on from here")
        raise
    except training.NonFiniteError as error:
        raise ArithmeticError(f"{error} (here --rate and --clip)") from error


def _log(folder: Path, config: Config) -> Callable:
    """A callback that writes one JSON line per look; looks of a run before, from there on, are
    replaced.

    It is called when the checkpoints are locked: until then a run that is resumed twice at once
        changes nothing.
    """
    path = folder / HISTORY
    before = _read_history(path)

    def write(record, params):
        nonlocal before
        row = _row(record)
        if before is not None:
            kept = [
                old for old in before if (old["stage"], old["step"]) < (row["stage"], row["step"])
            ]
            _write(path, "".join(json.dumps(old) + "\n" for old in kept))
            _write(folder / CONFIG, to_toml(config))  # its steps may have grown
            before = None
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    return write


def _read_history(path: Path) -> list[dict]:
    """The looks of a history, up to a line that was torn off when the run was killed."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows.append(row | {"stage": int(row["stage"]), "step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            break
    return rows


def _row(record: training.Record) -> dict:
    return {name: _plain(value) for name, value in record._asdict().items()}


def _write_history(folder: Path, rows: list[dict]) -> None:
    """The whole history, as JSON lines and as a table."""
    _write(folder / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))
    with io.StringIO(newline="") as text:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        _write(folder / TABLE, text.getvalue())


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _plain(value):
    """Strict JSON knows no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(config: Config, ready: Setup, found: training.Fit) -> Summary:
    whole = found.history.records
    records = [
        record for record in whole if record.stage == whole[-1].stage
    ]  # of a curriculum the last one counts
    best = min(records, key=lambda record: record.validation)
    judged = {
        name: _judged(ready.layer, params, D, *ready.tested_on, config.problem.lam)
        for name, params, D in (("start", ready.params, ready.D), ("learned", found.best, found.D))
    }
    validation = {"first": records[0].validation, "best": best.validation}
    steps, seconds = records[-1].step, records[-1].seconds
    return Summary(
        config,
        ready.D.shape,
        steps,
        seconds,
        best.step,
        validation,
        len(ready.tested_on[0]),
        judged,
    )


def _judged(layer, params, D, Y, X, lam: float) -> dict[str, float]:
    """What the codes of the test signals are worth: beside the true ones where they are known, and
    in the LASSO.
    """
    codes = apply_in_chunks(layer.apply, params, D, Y)
    found = {}
    if X is not None:
        found = {
            "nmse": metrics.nmse(codes, X),
            "mean_nmse": metrics.mean_nmse(codes, X),
            "failure_rate": metrics.failure_rate(codes, X),
        }
    objective = jax.vmap(lasso_objective, (None, 0, 0, None))(
        D, Y, codes, jnp.asarray(lam, codes.dtype)
    )
    residual = Y - problems.synthesize(D, codes)
    found |= {
        "lasso_objective": objective.mean(),
        "relative_residual": jnp.linalg.norm(residual) / jnp.linalg.norm(Y),
        "nonzeros": (codes != 0).sum(1).mean(),
    }
    return {name: float(value) for name, value in found.items()}
