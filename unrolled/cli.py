"""The command line: `unrolled compare`, `certify`, `train`, `encode` and `doctor` (also `python -m
unrolled`).
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

# What a user can cause and mend: shown as one line, without a traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, ArithmeticError)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for wrong arguments or input (one line on
    stderr), 130 or 143 stopped.
    """
    parser = argparse.ArgumentParser(
        prog="unrolled", description="Unrolled sparse-coding solvers, analytic and learned."
    )
    commands = parser.add_subparsers(
        title="commands", metavar="{compare,certify,train,encode,doctor}"
    )
    for add in (_add_compare, _add_certify, _add_train, _add_encode, _add_doctor):
        command = add(commands)
        command.add_argument("--json", action="store_true", help="print JSON on standard output")
        if add is not _add_train:  # whose seed may come from its file
            command.add_argument(
                "--seed", type=int, default=0, help="of everything random (default 0)"
            )
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 2
    try:
        _check_devices()
        arguments.run(arguments)
    except _USER_ERRORS as error:
        print(f"unrolled: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"unrolled: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except SystemExit as stop:  # of SIGTERM, when a training has saved itself
        return stop.code
    return 0


def _check_devices() -> None:
    """Raise OSError, saying what to set, if jax finds no device to compute on."""
    import jax

    try:
        jax.devices()
    except (
        Exception
    ) as error:  # jax raises several types here, and a bare assertion for a missing plugin
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        reason = str(error).splitlines()[0] if str(error) else "its plugin is not installed"
        raise OSError(f"no device for {asked}: {reason}; try JAX_PLATFORMS=cpu") from error


def _add_compare(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "compare",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="analytic beside learned weights, as a report",
        description="Compare weights set by theory with learned ones and write a report with tables and figures.\n"
        "Without arguments: the standard benchmark, patches of real photographs, and a certified chain.",
        epilog="examples:\n  unrolled compare --quick\n"
        "  unrolled compare --dictionary D.npy --sparsity 5 --snr 30 --depth 20 --output report\n"
        "  unrolled compare --dictionary D.npy --signals Y.npy --method ista,lista_cp\n"
        "  unrolled compare --signals one.png two.png",
    )
    add = parser.add_argument
    add("--dictionary", type=Path, metavar="FILE", help="own D, (m, d), as .npy or .npz (entry D)")
    add(
        "--signals",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="own signals: one .npy or .npz (Y, (signals, m), and X if codes are known), or pictures; the last is tested",
    )
    add(
        "--method",
        metavar="NAMES",
        help="some of ista,fista,lista,lista_cp,alista,alista_ss (default: all but lista)",
    )
    add("--depth", type=int, default=16, help="steps K (default 16)")
    add("--sparsity", type=int, help="expected nonzeros of planted codes (default d / 10)")
    add("--snr", type=float, default=math.inf, help="of planted signals, dB (default: no noise)")
    add("--lam", type=float, help="LASSO weight (default: chosen on the data)")
    add("--steps", type=int, help="training steps (default 400; 60 with --quick)")
    add("--quick", action="store_true", help="a smaller run, under a minute")
    add(
        "--output",
        type=Path,
        default=Path("unrolled-report"),
        metavar="DIR",
        help="(default unrolled-report)",
    )
    parser.set_defaults(run=_compare)
    return parser


def _add_certify(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "certify",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="what the theory certifies for a dictionary or a chain",
        description="Coherence with certificates, admissible sparsity, rate and steps to a tolerance, for W = D, the\n"
        "closed-form and the minimax W; of several dictionaries also uniqueness, stability and a plan of the chain.",
        epilog="examples:\n  unrolled certify D.npy --sparsity 3 --tolerance 1e-3 --figure gram.png\n"
        "  unrolled certify D_1.npy D_2.npy --sparsity 10,2 --json",
    )
    add = parser.add_argument
    add(
        "dictionaries",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="D, (m, d), as .npy or .npz (entry D); a chain in order",
    )
    add(
        "--sparsity",
        metavar="S",
        help="nonzeros s, for a chain as s_1,s_2,... (default: the largest admissible)",
    )
    add("--bound", type=float, default=1.0, help="B, of the entries (default 1)")
    add("--noise", type=float, default=0.0, help="l1 budget of the noise (default 0)")
    add("--tolerance", type=float, default=1e-6, help="l1 error to reach (default 1e-6)")
    add("--normalize", action="store_true", help="scale the atoms to norm 1 first")
    add(
        "--activation",
        metavar="NAME",
        help="also what holds with this activation, such as elu (see --scale)",
    )
    add(
        "--scale",
        type=float,
        default=1.0,
        metavar="K",
        help="use rho(K x) / K for the activation (default 1)",
    )
    add(
        "--entries",
        action="store_true",
        help="also the weights of least entries (Definition 8; many times as long)",
    )
    add("--figure", type=Path, metavar="PNG", help="a picture of D'D beside W'D")
    parser.set_defaults(run=_certify)
    return parser


def _add_train(commands) -> argparse.ArgumentParser:
    from unrolled.commands import all_options

    parser = commands.add_parser(
        "train",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="train a layer as a TOML file and flags say",
        description="Train a layer and write weights, the history and checkpoints into a run folder.\n"
        "Every option below may stand in the file, in the table of its heading; a flag overrides the file.",
        epilog="examples:\n  unrolled train run.toml --output run\n"
        "  unrolled train --family lista_cp --depth 10 --loss log_nmse --steps 500 --output run\n"
        "  unrolled train --output run --resume",
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a TOML file")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run of the output folder"
    )
    groups = {None: parser}
    for option in all_options().values():
        if option.section not in groups:
            groups[option.section] = parser.add_argument_group(f"[{option.section}]")
        text = option.limits["help"] + (
            ""
            if option.default is None or option.default is False
            else f" (default {option.default})"
        )
        shown = {"metavar": "A,B" if option.kind is tuple else option.kind.__name__.upper()}
        kind = {"action": argparse.BooleanOptionalAction} if option.kind is bool else shown
        groups[option.section].add_argument(f"--{option.name}", default=None, help=text, **kind)
    parser.set_defaults(run=_train)
    return parser


def _add_encode(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "encode",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="the codes of signals by saved weights",
        description="Run the layer of a weights file, as `unrolled train` writes it, on the signals of a file.",
        epilog="example:\n  unrolled encode run/weights.npz Y.npy --output codes.npy",
    )
    add = parser.add_argument
    add("weights", type=Path, metavar="WEIGHTS", help="of `unrolled train`")
    add("signals", type=Path, metavar="SIGNALS", help="(signals, m), as .npy or .npz (entry Y)")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="CODES",
        help="(signals, d), as .npy or .npz (entry X)",
    )
    add(
        "--dictionary",
        type=Path,
        metavar="FILE",
        help="D in place of the saved one, as .npy or .npz (entry D)",
    )
    parser.set_defaults(run=_encode)
    return parser


def _add_doctor(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "doctor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="versions, devices and a write check",
        description="Print versions, devices and settings, and run one small certified check.",
        epilog="example:\n  unrolled doctor --json",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="a folder that must be writable")
    parser.set_defaults(run=_doctor)
    return parser


_SUMMARY = """\
How close do weights that theory sets come to weights that were learned? *Analytic* params come from theory alone (weights in
closed form, thresholds from Theorem 12), *calibrated* ones keep those weights and choose thresholds and step sizes on a sample
without gradients, *learned* ones start there and are trained end to end."""


def _teller():
    """`say(message)`: a line on stderr with the seconds since now."""
    began = time.perf_counter()

    def say(message: str) -> None:
        print(f"[{time.perf_counter() - began:5.1f} s] {message}", file=sys.stderr, flush=True)

    return say


def _compare(arguments) -> None:
    from unrolled import commands

    settings = _settings(arguments)
    commands.check_folder(arguments.output)  # before any work
    say = _teller()
    sections = commands.sections(arguments.dictionary, arguments.signals, settings, say)
    say("writing the report")
    given = {
        k: str(v)
        for k, v in vars(arguments).items()
        if k not in ("run", "json") and v not in (None, False)
    }
    report = commands.write(
        arguments.output, "Analytic and learned sparse coding", _SUMMARY, sections, given
    )
    if arguments.json:
        print((arguments.output / "results.json").read_text())
    else:
        for section in sections:
            print(f"\n# {section.title}\n\n{section.text.strip()}")
        print(f"\nReport: {report}")
    say("done")


def _settings(arguments):
    """The settings of the experiments, checked before any work."""
    from unrolled import commands

    names = commands.METHODS
    # LISTA's two free matrices per step are slow to train: it is there when it is asked for.
    methods = tuple(name for name in names if name != "lista")
    if arguments.method is not None:
        methods = tuple(name.strip() for name in arguments.method.split(","))
    unknown = [name for name in methods if name not in names]
    if unknown:
        raise ValueError(
            f"compare: unknown method {', '.join(unknown)}; expected some of {', '.join(names)}"
        )
    steps = arguments.steps if arguments.steps is not None else (60 if arguments.quick else 400)
    for name, value, least in (("depth", arguments.depth, 1), ("steps", steps, 0)):
        if value < least:
            raise ValueError(f"compare: {name} must be at least {least}, got {value}")
    if arguments.lam is not None and not 0 < arguments.lam < math.inf:
        raise ValueError(f"compare: lam must be positive, got {arguments.lam}")
    if math.isnan(arguments.snr):
        raise ValueError("compare: snr must be a number of decibels, got nan")
    return commands.Settings(
        methods=methods,
        depth=arguments.depth,
        sparsity=arguments.sparsity,
        snr=arguments.snr,
        lam=arguments.lam,
        steps=steps,
        seed=arguments.seed,
        quick=arguments.quick,
    )


def _certify(arguments) -> None:
    import jax
    import numpy as np

    from unrolled import activations, commands, dictionaries

    activation = None
    if arguments.activation is not None:
        activation = activations.scale(activations.by_name(arguments.activation), arguments.scale)
    request = commands.Request(
        sparsities=None
        if arguments.sparsity is None
        else _integers(arguments.sparsity, "sparsity"),
        bound=arguments.bound,
        noise=arguments.noise,
        tolerance=arguments.tolerance,
        activation=activation,
        entries=arguments.entries,
    )
    if arguments.figure is not None:
        commands.check_folder(arguments.figure.parent)  # before any work
    say = _teller()
    with jax.enable_x64(True):
        Ds = [commands.read_dictionary(path, np.float64) for path in arguments.dictionaries]
        if arguments.normalize:
            Ds = [dictionaries.normalize(D)[0] for D in Ds]
    found = commands.certificate(Ds, request, say)
    if arguments.figure is not None:
        found.figure().savefig(arguments.figure, dpi=150)
    names = " ".join(str(path) for path in arguments.dictionaries)
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else f"{names}: {found.text()}")


def _integers(text: str, name: str) -> list[int]:
    """Integers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"certify: {name} must be integers with commas between them, got {text!r}"
        ) from error


def _train(arguments) -> None:
    from unrolled import commands

    flags = {name: getattr(arguments, name) for name in commands.all_options()}
    summary = commands.run(arguments.config, flags, arguments.resume, _teller())
    print(json.dumps(summary.to_dict(), indent=1) if arguments.json else summary.text())


def _encode(arguments) -> None:
    from unrolled import commands

    found = commands.encode(
        arguments.weights, arguments.signals, arguments.output, arguments.dictionary
    )
    text = (
        f"{found.signals} signals, {found.atoms} atoms: {found.mean_nonzeros:.1f} nonzeros on average, "
        f"relative residual {found.relative_residual:.4g}\n{found.output}"
    )
    print(json.dumps(found._asdict(), indent=1) if arguments.json else text)


def _doctor(arguments) -> None:
    from unrolled import commands

    found = commands.doctor(arguments.output)
    print(
        json.dumps(found, indent=1)
        if arguments.json
        else "\n".join(f"{k:18} {v}" for k, v in found.items())
    )
