"""`unrolled train`: from a configuration to weights, one run in one folder."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import dictionaries, metrics, plots, training
from unrolled._base.files import write_whole
from unrolled._base.packages import require
from unrolled._base.processes import Processes, join
from unrolled._base.text import markdown, plain, to_json
from unrolled.app.commands import _config, _inputs, _report
from unrolled.app.commands._config import Config, ConfigError, to_dict
from unrolled.app.commands._console import Say, add_command, note_output, progress_printer, show
from unrolled.app.commands._report import Section
from unrolled.app.commands._setup import Dictionaries, Model, Setup, settled, setup
from unrolled.app.studies import silent
from unrolled.layers import Layer
from unrolled.networks import ROUNDING, worse
from unrolled.pursuit import lasso_objective

CONFIG, SUMMARY, HISTORY, TABLE = "config.toml", "summary.json", "history.jsonl", "history.csv"
_ALONE = Processes()
_WORSE = 3  # the exit status if the codes are worse than zero codes, or than ISTA's codes

_TITLES = {
    "nmse": "NMSE, ratio of sums, dB",
    "mean_nmse": "NMSE, mean of dB",
    "failure_rate": "share above -20 dB",
    "lasso_objective": "LASSO objective",
    "worse_than_zero": "worse than zero codes, %",
    "low_ratio": "objective / zero's, 10 %",
    "median_ratio": "objective / zero's, 50 %",
    "high_ratio": "objective / zero's, 90 %",
    "relative_residual": "relative residual",
    "nonzeros": "nonzeros",
}


class Summary(NamedTuple):
    """The final numbers of `unrolled train`."""

    config: Config
    shape: tuple[tuple[int, ...], ...]  # the shape of every D; if D is complex, in complex numbers
    steps: int  # training steps of all runs
    runs: int
    seconds: float  # of all runs
    best_step: int
    # The losses at the "first" and at the "best" evaluation, the loss of "zero" codes, and, if the
    # model is a layer, the loss of "ista" at its depth.
    validation: dict[str, float]
    tested_on: int  # number of test signals
    # By "start" and "learned", for every layer: measure -> number.
    judged: dict[str, list[dict[str, float]]]
    verdict: str = ""  # when the training is repaid; "" for a chain, and if codes are known

    def text(self) -> str:
        """The summary as lines of text."""
        first, best = self.validation["first"], self.validation["best"]
        models = [
            f"{model.family}, {model.depth} steps, {m} x {d}"
            for model, (m, d) in zip(self.config.layers, self.shape)
        ]
        several = f" in {self.runs} runs" if self.runs > 1 else ""
        lines = [
            f"{'; '.join(models)}: {self.steps} training steps{several} in "
            f"{self.seconds:.1f} s, validation loss {first:.4g} at first, "
            f"{best:.4g} at step {self.best_step}{self._beside()}",
            f"on {self.tested_on} test signals:",
        ]
        for title, start, learned in self._layers():
            lines.append(f"  {title:24}  {'start':>10}  {'learned':>10}")
            for name, value in start.items():
                lines.append(f"  {_TITLES[name]:24}  {value:10.4g}  {learned[name]:10.4g}")
        return "\n".join([*lines, *self._advice(), f"weights: {self._weights()}"])

    def parts(self) -> list[str]:
        """The summary as a paragraph, and a table for each layer."""
        tables = [
            markdown(
                [title, "start", "learned"],
                [[_TITLES[name], f"{a:.4g}", f"{after[name]:.4g}"] for name, a in before.items()],
            )
            for title, before, after in self._layers()
        ]
        ends = [*self._advice(), f"weights: `{self._weights()}`"]
        return [*self.text().splitlines()[:2], *tables, *ends]

    def _layers(self) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
        """The title of every layer, and its measures before and after training."""
        for j, pair in enumerate(zip(self.judged["start"], self.judged["learned"]), start=1):
            yield f"layer {j}" if self.config.chained else "", *pair

    def _advice(self) -> list[str]:
        """When the training is repaid, and advice if some signals have codes worse than zero."""
        advice = [self.verdict] if self.verdict else []
        (learned, *_), chained = self.judged["learned"], self.config.chained
        worse = not chained and learned.get("worse_than_zero", 0) > 0
        if not worse or self.config.layers[0].layer.guard is not None:
            return advice
        lam = self.config.problem.lam
        return [*advice, f"with a guard, no signal has a code worse than zero: try --guard {lam:g}"]

    def answer(self) -> str:
        """The result of the training, in one sentence."""
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
        """A sentence if the best codes are worse than zero codes or ISTA's codes, else ""."""
        best, zero = self.validation["best"], self.validation.get("zero", math.inf)
        of_ista = self.validation.get("ista", math.nan)
        rule = worse("the codes are", "validation loss", best, zero, of_ista)
        remedy = "another --family or --start, a smaller --rate or more --steps"
        return f"{rule}; try {remedy}" if rule else ""

    def to_dict(self) -> dict[str, Any]:
        """The summary as data, with the whole configuration and the environment."""
        added: dict[str, Any] = {
            "config": to_dict(self.config),
            "weights": self._weights(),
            "environment": _report.environment(),
        }
        if not self.config.chained:
            judged = {name: layer for name, (layer,) in self.judged.items()}
            added |= {"shape": self.shape[0], "judged": judged}
        return plain(self._asdict() | added)

    def _weights(self) -> str:
        return str(Path(self.config.output) / _inputs.WEIGHTS)


def _announced(config: Config) -> str:
    """The number of training steps of all runs, before the first one."""
    steps = config.training.steps
    if config.training.method != _config.UNSUPERVISED:
        return f"{steps} steps"
    lengths = training.run_lengths(config.layers[0].layer, steps)
    return f"{sum(lengths):,} steps in {len(lengths)} runs, the last of {steps:,} steps"


def summarize(config: Config, ready: Setup, fit: training.Fit) -> Summary:
    """Judge the start and the best params of a run."""
    whole = fit.history.records
    # Only the last stage of a curriculum counts.
    records = [record for record in whole if record.stage == whole[-1].stage]
    best = min(records, key=lambda record: record.validation)
    lam, tested_on = config.problem.lam, ready.tested_on
    assert lam is not None  # `settled`
    judged = {
        "start": _judged(ready.model, ready.params, ready.D, *tested_on, lam),
        "learned": _judged(ready.model, fit.best, fit.D, *tested_on, lam),
    }
    Ds = ready.D if isinstance(ready.D, tuple) else (ready.D,)
    return Summary(
        config,
        tuple(D.real.shape if isinstance(D, dictionaries.Complex) else D.shape for D in Ds),
        sum(run.steps for run in fit.tried) or records[-1].step,
        max(1, len(fit.tried)),
        fit.seconds,
        best.step,
        fit.judged,
        len(tested_on[0]),
        judged,
        _verdict(ready, fit, lam),
    )


def _verdict(ready: Setup, fit: training.Fit, lam: float) -> str:
    """The verdict of `recommend` on the trained layer, measured on test signals without codes."""
    layer, (Y, X) = ready.model, ready.tested_on
    if X is not None or not isinstance(layer, Layer):
        return ""
    name = f"{layer.family} with {layer.depth} steps"
    network = {name: (layer, fit.best, fit.D, fit.seconds)}
    rows = training.next_to_trained(fit.D, Y, lam, network)
    gap = next(row.mean for row in rows if row.method == name)
    return training.verdict(rows, gap) if math.isfinite(gap) else ""


def _judged(
    model: Model, params: Any, D: Dictionaries, Y: jax.Array, X: Any, lam: float
) -> list[dict[str, float]]:
    """Judge every layer on test signals by its objective, and by errors if true codes are known.

    Each layer has its own LASSO objective, whose signal is the code of the layer before.
    """
    codes = _inputs.apply_in_chunks(model.apply, params, D, Y)
    if isinstance(model, Layer):
        D, codes, X = (D,), (codes,), (X,)
    assert isinstance(D, tuple)
    Xs = [None] * len(D) if X is None else X
    judged = []
    size, *residuals = np.linalg.norm(_inputs.residual_norms(D, Y, codes), axis=1)
    for D_j, signals, x, X_j, residual in zip(D, (Y, *codes), codes, Xs, residuals):
        objective = jax.vmap(lasso_objective, (None, 0, 0, None))
        values = objective(D_j, signals, x, jnp.asarray(lam, x.dtype))
        numbers = {} if X_j is None else _errors(x, X_j)
        numbers |= {"lasso_objective": values.mean()}
        if X_j is None:  # the share of signals with an objective above the zero code's
            zero = jnp.sum(signals**2, 1) / 2
            numbers |= {"worse_than_zero": 100 * jnp.mean(~(values <= (1 + ROUNDING) * zero))}
            ends = np.nanquantile(np.where(zero > 0, values / zero, np.nan), (0.1, 0.5, 0.9))
            numbers |= dict(zip(("low_ratio", "median_ratio", "high_ratio"), ends))
        count = _inputs.nonzeros(D_j, x) / len(x)
        numbers |= {"relative_residual": residual / (size or 1), "nonzeros": count}
        judged.append({name: float(value) for name, value in numbers.items()})
    return judged


def _errors(x: jax.Array, X: jax.Array) -> dict[str, Any]:
    return {
        "nmse": metrics.nmse(x, X),
        "mean_nmse": metrics.mean_nmse(x, X),
        "failure_rate": metrics.failure_rate(x, X),
    }


def logger(folder: Path, started: Callable[[], None]) -> Callable[..., None]:
    """A callback of `fit` that appends one line per evaluation.

    At its first call, the callback keeps only those evaluations of an earlier history that come
    before the new evaluation, and calls `started`. By then `fit` has locked the checkpoints, so a
    second run in the same folder changes nothing.
    """
    path = folder / HISTORY
    before: list[dict[str, Any]] | None = read_history(path)

    def write(record, params):
        nonlocal before
        row = plain(record)  # numbers that are not finite are None
        if before is not None:
            _write_lines(path, [old for old in before if _place(old) < _place(row)])
            started()
            before = None
        with path.open("a") as file:
            file.write(_line(row))

    return write


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history, up to a line that is incomplete because a run was killed."""
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
    rows = list(map(plain, records))
    _write_lines(folder / HISTORY, rows)
    _report.write_table(folder / TABLE, list(rows[0]), [list(row.values()) for row in rows])


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["stage"], row["step"]


def _line(row: dict[str, Any]) -> str:
    return to_json(row, indent=None) + "\n"


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_whole(path, "".join(map(_line, rows)).encode())


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "config": dict(type=Path, nargs="?", metavar="CONFIG"),
    "--distributed": dict(action="store_true"),
    "--coordinator": dict(metavar="HOST:PORT"),
    "--processes": dict(type=int, metavar="N"),
    "--process": dict(type=int, metavar="I"),
    "--wait": dict(type=int, default=300, metavar="S"),
    "--resume": dict(action="store_true"),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled train`, with a flag for every option of every known family."""
    parser = add_command(commands, "train", run, _ARGUMENTS)
    groups: dict[str | None, Any] = {None: parser}
    for option in _config.all_options().values():
        if option.section not in groups:
            groups[option.section] = parser.add_argument_group(f"[{option.section}]")
        if option.name != "seed":  # all commands share the seed
            option.add_flag(groups[option.section])
    parser.set_defaults(before=joined)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Train a layer or a chain, configured by a TOML file and flags.

    Train a layer, and write its weights, the history and checkpoints into a run
    folder. On signals without codes the command trains bcd by one recipe, unless you
    give a family, a start, a loss or a method. The exit status is 3 if the best codes are
    worse than zero codes, or than codes of ISTA of the same depth, on the validation
    signals.
    Set any option below in the TOML file, under its heading, or as a flag; a flag overrides
    the file. To train a chain, write a table [[model]] for each layer, and a list of files
    as the dictionary.

    Flags:
        config: a TOML file
        --distributed: share the run with other processes, given by SLURM or by the next three
            options
        --coordinator: address of process 0
        --processes: number of processes
        --process: index of this process, from 0
        --wait: seconds to wait for the other processes (default 300)
        --resume: continue the run in the folder of --output

    Examples:
        unrolled train run.toml --output run
        unrolled train --dictionary D.npy --signals Y.npy --output run
        unrolled train --family lista_cp --depth 10 --loss log_nmse --steps 500 --output run
        unrolled train --output run --resume
        unrolled train --import my_module --family my_family --output run
        srun unrolled train run.toml --accumulate 8 --distributed --output /shared/run
    """
    require("train", "matplotlib", "tomli_w")
    flags = {name: getattr(arguments, name) for name in _config.all_options()}
    processes = Processes(arguments.distributed and jax.process_count() > 1)
    say = progress_printer() if processes.is_first else silent
    summary = train(arguments.config, flags, arguments.resume, say, processes)
    if processes.is_first:
        show(arguments.json, summary.to_dict(), summary.text())
    if summary.worse and processes.is_first:
        print(f"unrolled: {summary.worse}", file=sys.stderr)
        raise SystemExit(_WORSE)


def joined(arguments: argparse.Namespace) -> None:
    """Join the processes of a distributed training, before JAX looks for devices."""
    cluster = arguments.coordinator, arguments.processes, arguments.process
    if arguments.distributed:
        join(*cluster, arguments.wait)
    elif any(part is not None for part in cluster):
        raise ConfigError("train: --coordinator, --processes and --process go with --distributed")


def train(
    path: Path | None,
    flags: Mapping[str, Any],
    resume: bool,
    say: Say,
    processes: Processes = _ALONE,
) -> Summary:
    """Train as a TOML file and flags say, or continue the run of a folder.

    Several processes share one run and one folder; only the first process writes into it.

    Raises:
        ConfigError: see `load`; also if the folder is not empty, or holds a run other than the
            run to resume.
        ArithmeticError: the training broke down; the checkpoints stay.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM stopped the run; the last step is saved.
    """
    chosen: list[str] = []
    first = processes.on_all(lambda: _opened(path, flags, resume, chosen.append), first_alone=True)
    config = first or _read_config(path, flags, resume, chosen.append)
    folder = Path(config.output)
    prepared = processes.on_all(lambda: setup(config, say), first_alone=True)
    ready = prepared or setup(config, say)  # process 0 may have made the codes for all
    mesh = _mesh(config.training, processes)
    for line in chosen:  # only now, when `setup` has found that the files fit
        say(line)
    say(f"training {_announced(config)}")

    def begun():
        if not resume:
            _report.write_text(folder / CONFIG, _config.to_toml(config))

    def ended():
        write_history(folder, fit.history.records)
        validation = summary.validation
        training.save(folder / _inputs.WEIGHTS, fit, fit.D, ready.model, validation=validation)
        _report.write_text(folder / SUMMARY, to_json(summary.to_dict()) + "\n")
        _write_report(folder, summary, fit.history.records)

    processes.on_all(begun, first_alone=True)
    fit = _trained(config, ready, folder, mesh, say, processes)
    summary = summarize(config, ready, fit)
    processes.on_all(ended, first_alone=True)
    return summary


def _write_report(folder: Path, summary: Summary, records: Sequence[training.Record]) -> None:
    """Write `report.html`, with the losses as curves."""
    figures = {"the loss at every evaluation": partial(plots.losses, records)}
    text = "The weights of a solver at the start and after training."
    section = Section("Result", "result", summary.parts(), figures, answer=summary.answer())
    _report.write_html(folder, "Training", text, [section], _report.environment())


def _opened(path: Path | None, flags: Mapping[str, Any], resume: bool, say: Say) -> Config:
    """The configuration; make its folder, which must be empty or hold the run to resume."""
    config = _read_config(path, flags, resume, say)
    folder = Path(config.output)
    if resume:
        other = _config.differences(_grown(_config.load(_saved(folder), {}), config), config)
        if other:
            raise _another(folder, other)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder}: is not empty; try --resume to continue its run, or another --output"
        )
    _report.check_folder(folder)
    return config


def _read_config(path: Path | None, flags: Mapping[str, Any], resume: bool, say: Say) -> Config:
    """The configuration, from the file and the flags, or from the run to resume."""
    if not (resume and path is None):
        return settled(path, flags, say)
    folder = Path(flags.get("output") or Config.output).absolute()
    saved, family = _config.load(_saved(folder), {}), flags.get("family")
    if family and not saved.chained and family != saved.layers[0].family:  # other options
        raise _another(folder, [f"model.family ({saved.layers[0].family}, now {family})"])
    return settled(_saved(folder), {**flags, "output": str(folder)}, say)


def _another(folder: Path, changed: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{folder}: holds a run with another configuration: {', '.join(changed)}; try another "
        "--output"
    )


def _saved(folder: Path) -> Path:
    """The configuration of the run in a folder."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder}: there is no {CONFIG} in it, so no run to resume; try without --resume"
        )
    return folder / CONFIG


def _grown(saved: Config, config: Config) -> Config:
    """The saved configuration, with the steps of `config` if the run may continue past its end."""
    before, steps = saved.training, config.training.steps
    longer = before.method == "end_to_end" and before.schedule == "constant"
    if not (longer and steps > before.steps):
        return saved
    return dataclasses.replace(saved, training=dataclasses.replace(before, steps=steps))


def _mesh(chosen: Any, processes: Processes) -> Any:
    """The devices that share the batches of a step; None for one device."""
    devices, batches = jax.devices(), chosen.accumulate
    shared = processes.several or (len(devices) > 1 and batches % len(devices) == 0)
    if chosen.reduction == "psum" and (batches == 1 or not shared):
        raise ConfigError(
            "training.reduction: psum is for several devices that share the batches of a step, got "
            f"{len(devices)} and training.accumulate={batches}; try tree, the default"
        )
    return jax.make_mesh((len(devices),), ("data",)) if shared else None


def _trained(
    config: Config, ready: Setup, folder: Path, mesh: Any, say: Say, processes: Processes
) -> training.Fit:
    chosen = config.training

    def started():  # the steps of a resumed run may have grown
        if _config.differences(_config.load(folder / CONFIG, {}), config):
            # The weights of the earlier, shorter run.
            (folder / _inputs.WEIGHTS).unlink(missing_ok=True)
        _report.write_text(folder / CONFIG, _config.to_toml(config))

    problem: Any = (ready.model, ready.params, ready.D, ready.sample)
    shared: dict[str, Any] = dict(
        key=ready.key,
        loss=ready.loss,
        validation=ready.validation,
        callbacks=(logger(folder, started), lambda record, params: note_output())
        if processes.is_first
        else (),
        mesh=mesh,
        checkpoint=training.Checkpoint(folder / _inputs.CHECKPOINTS, every=chosen.save_every),
        **{name: getattr(chosen, name) for name in training.PlainRun.__signature__.parameters},
    )
    try:
        if chosen.method == _config.UNSUPERVISED:
            lam: Any = config.problem.lam  # a number: `settled`
            options = {name: shared[name] for name in shared if name != "loss"}
            options["family"] = config.layers[0].layer.family
            signals = ready.D, ready.sample, lam, config.layers[0].depth
            return training.unsupervised(*signals, steps=chosen.steps, **options)
        if chosen.method == "curriculum":
            return training.curriculum(
                *problem,
                steps_per_stage=chosen.steps,
                rate=chosen.rate,
                optimizer=ready.optimizer,
                learn_dictionary=chosen.learn_dictionary,
                **shared,
            )
        cosine = chosen.schedule == "cosine"
        rate = optax.cosine_decay_schedule(chosen.rate, chosen.steps) if cosine else chosen.rate
        return training.fit(
            *problem,
            steps=chosen.steps,
            optimizer=ready.optimizer(rate),
            learn_dictionary=chosen.learn_dictionary,
            **shared,
        )
    except (KeyboardInterrupt, SystemExit):  # after the step has been saved
        say("stopped; --resume continues from here")
        raise
    except training.NonFiniteError as error:
        raise ArithmeticError(f"{error} (here --rate and --clip)") from error
