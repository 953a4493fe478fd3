"""`unrolled train`: one run in its folder, from a configuration to weights."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax

from unrolled import plots, training
from unrolled._json import to_json
from unrolled._processes import Processes, join
from unrolled.commands._config import all_options, differences, load, to_toml
from unrolled.commands._console import Say, heard, show, teller
from unrolled.commands._inputs import CHECKPOINTS, WEIGHTS
from unrolled.commands._report import Section, check_folder, environment, write_html, write_text
from unrolled.commands._sections import Config, ConfigError
from unrolled.commands._setup import Setup, settled, setup
from unrolled.commands._summary import Summary, logger, summarize, write_history

CONFIG, SUMMARY = "config.toml", "summary.json"
_ALONE = Processes()
_WORSE = 3  # the exit status where the codes are worse than zero codes or ISTA


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled train`, with a flag for every option of every known family."""
    parser = commands.add_parser(
        "train",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="train a layer or a chain, configured by a TOML file and flags",
        description="Train a layer, and write its weights, the history and checkpoints into a run "
        "folder.\nThe exit status is 3 if the best codes are worse than zero codes, or than ISTA "
        "of the same\ndepth, on the validation signals.\n"
        "Set any option below in the TOML file, under its heading, or as a flag; flags win.\n"
        "A file with a table [[model]] for each layer, and a list of "
        "files as dictionary, trains a chain.",
        epilog="examples:\n  unrolled train run.toml --output run\n"
        "  unrolled train --family lista_cp --depth 10 --loss log_nmse --steps 500 --output run\n"
        "  unrolled train --output run --resume\n"
        "  unrolled train --import my_module --family my_family --output run\n"
        "  srun unrolled train run.toml --accumulate 8 --distributed --output /shared/run",
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a TOML file")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="share the run with other processes: those of SLURM, or those of the next three",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    parser.add_argument("--processes", type=int, metavar="N", help="number of processes")
    parser.add_argument("--process", type=int, metavar="I", help="index of this process, from 0")
    parser.add_argument(
        "--wait",
        type=int,
        default=300,
        metavar="S",
        help="time limit for the other processes, s (default 300)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run of the folder")
    groups: dict[str | None, Any] = {None: parser}
    for option in all_options().values():
        if option.section not in groups:
            groups[option.section] = parser.add_argument_group(f"[{option.section}]")
        if option.name != "seed":  # which all commands share
            option.add_flag(groups[option.section])
    parser.set_defaults(run=run, before=joined)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Train, and print the summary; exit with status 3 if zero codes or ISTA are better."""
    flags = {name: getattr(arguments, name) for name in all_options()}
    processes = Processes(arguments.distributed and jax.process_count() > 1)
    say = teller() if processes.is_first else _silent
    summary = train(arguments.config, flags, arguments.resume, say, processes)
    if processes.is_first:
        show(arguments.json, summary.to_dict(), summary.text())
    if summary.worse and processes.is_first:
        print(f"unrolled: {summary.worse}", file=sys.stderr)
        raise SystemExit(_WORSE)


def joined(arguments: argparse.Namespace) -> None:
    """Join the processes of a distributed training, if it is one, before there are devices."""
    cluster = arguments.coordinator, arguments.processes, arguments.process
    if arguments.distributed:
        join(*cluster, arguments.wait)
    elif any(part is not None for part in cluster):
        raise ConfigError("train: --coordinator, --processes and --process go with --distributed")


def _silent(message: str) -> None:
    """What a process other than the first says."""


def train(
    path: Path | None,
    flags: Mapping[str, Any],
    resume: bool,
    say: Say,
    processes: Processes = _ALONE,
) -> Summary:
    """Train as a TOML file and flags say, or continue the run of a folder.

    Several processes share one run and one folder, in which the first alone writes.

    Raises:
        ConfigError: see `load`; also a folder that is not empty, or holds another run than the one
            to resume.
        ArithmeticError: the training broke; its checkpoints stay.
        KeyboardInterrupt, SystemExit: by SIGINT or SIGTERM, after the step has been saved.
    """
    chosen: list[str] = []
    first = processes.together(
        lambda: _opened(path, flags, resume, chosen.append), first_alone=True
    )
    config = first or _read_config(path, flags, resume, chosen.append)
    folder = Path(config.output)
    prepared = processes.together(lambda: setup(config, say), first_alone=True)
    ready = prepared or setup(config, say)  # the first may have made codes for all
    mesh = _mesh(config.training, processes)
    for line in chosen:  # of files that fit
        say(line)
    say(f"training {config.training.steps} steps")

    def begun():
        if not resume:
            write_text(folder / CONFIG, to_toml(config))

    def ended():
        write_history(folder, fit.history.records)
        validation = summary.validation
        training.save(folder / WEIGHTS, fit.best, fit.D, ready.model, validation=validation)
        write_text(folder / SUMMARY, to_json(summary.to_dict()) + "\n")
        _write_report(folder, summary, fit.history.records)

    processes.together(begun, first_alone=True)
    fit = _trained(config, ready, folder, mesh, say, processes)
    summary = summarize(config, ready, fit)
    processes.together(ended, first_alone=True)
    return summary


def _write_report(folder: Path, summary: Summary, records: Sequence[training.Record]) -> None:
    """`report.html`, with the losses as curves."""
    figures = {"the loss at every evaluation": partial(plots.losses, records)}
    text = "Weights of a solver, trained from their start."
    section = Section("Result", "result", summary.parts(), figures, ((), ()), {}, summary.answer())
    drawn = [draw() for draw in figures.values()]
    write_html(folder, "Training", text, [section], environment(), drawn)


def _opened(path: Path | None, flags: Mapping[str, Any], resume: bool, say: Say) -> Config:
    """The configuration, with its folder made: empty, or that of the run to resume."""
    config = _read_config(path, flags, resume, say)
    folder = Path(config.output)
    if resume:
        other = differences(_grown(load(_saved(folder), {}), config), config)
        if other:
            raise _another(folder, other)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder}: is not empty; try --resume to continue its run, or another --output"
        )
    check_folder(folder)
    return config


def _read_config(path: Path | None, flags: Mapping[str, Any], resume: bool, say: Say) -> Config:
    """The configuration: of the file and the flags, or of the run to resume."""
    if not (resume and path is None):
        return settled(load(path, flags), say)
    folder = Path(flags.get("output") or Config.output).absolute()
    saved, family = load(_saved(folder), {}), flags.get("family")
    if family and not saved.chained and family != saved.layers[0].family:  # it has other options
        raise _another(folder, [f"model.family ({saved.layers[0].family}, now {family})"])
    return settled(load(_saved(folder), {**flags, "output": str(folder)}), say)


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
    """The saved configuration, with the steps of this one if a run may continue beyond its end."""
    before, steps = saved.training, config.training.steps
    longer = before.method == "end_to_end" and before.schedule == "constant"
    if not (longer and steps > before.steps):
        return saved
    return dataclasses.replace(saved, training=dataclasses.replace(before, steps=steps))


def _mesh(chosen: Any, processes: Processes) -> Any:
    """The devices that share the batches of a step; None for one."""
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
        if differences(load(folder / CONFIG, {}), config):
            (folder / WEIGHTS).unlink(missing_ok=True)  # those of its former end
        write_text(folder / CONFIG, to_toml(config))

    problem: Any = (ready.model, ready.params, ready.D, ready.sample)
    shared: dict[str, Any] = dict(
        key=ready.key,
        loss=ready.loss,
        validation=ready.validation,
        evaluate_every=chosen.evaluate_every,
        callbacks=(logger(folder, started), lambda record, params: heard())
        if processes.is_first
        else (),
        accumulate=chosen.accumulate,
        mesh=mesh,
        reduction=chosen.reduction,
        checkpoint=training.Checkpoint(folder / CHECKPOINTS, every=chosen.save_every),
    )
    try:
        if chosen.method == "curriculum":
            return training.curriculum(
                *problem,
                steps_per_stage=chosen.steps,
                rate=chosen.rate,
                optimizer=ready.optimizer,
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
