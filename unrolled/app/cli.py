"""The command line: `unrolled compare`, `certify`, `learn`, `recommend`, `train` and the others."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import unrolled
from unrolled._base.interrupts import INTERRUPTED
from unrolled._base.threads import never_lost
from unrolled.app.commands import (
    COMMANDS,
    kept_programs,
    never_silent,
    plain_warnings,
    tolerant_streams,
)

# Errors that a user can cause and fix: the command shows one line, without a traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, ArithmeticError, MemoryError)
_ERROR = 2  # the exit status
_SEEDS = 2**32


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program name; if None, `sys.argv[1:]`.

    Returns:
        0 after success; 2 for wrong arguments or input, after one line on standard error; 130 or
        143 if SIGINT or SIGTERM stopped the command. A run of `train` whose codes are worse than
        zero codes, or than the codes of ISTA of the same depth, raises SystemExit(3); `--version`
        and `--help` raise SystemExit(0).

    Example:
        >>> from unrolled.app.cli import main
        >>> main(["certify", "gone.npy"])  # on standard error: gone.npy: no such file
        2
    """
    argv = sys.argv[1:] if argv is None else argv
    with tolerant_streams():
        try:
            with never_lost():
                return _main(argv)
        except _USER_ERRORS as error:
            words = "; ".join(str(error).splitlines()) or type(error).__name__
            print(f"unrolled: {words}", file=sys.stderr)
            return _ERROR
        except KeyboardInterrupt as stop:
            print(f"unrolled: {str(stop) or 'interrupted'}", file=sys.stderr)
            return INTERRUPTED


def _main(argv: Sequence[str]) -> int:
    argv = [_with_hyphens(word) for word in argv]
    _import_modules(argv)  # before the parsers are made, because families have options
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return _ERROR
    arguments.seed = _seed(arguments.seed)
    getattr(arguments, "before", lambda arguments: None)(arguments)
    vars(arguments).pop("before", None)
    _check_devices()
    return _run(arguments)


def _with_hyphens(word: str) -> str:
    """A flag with hyphens: `--test_signals=9` means `--test-signals=9`."""
    flag, sign, value = word.partition("=")
    return f"{flag.replace('_', '-')}{sign}{value}" if word.startswith("--") else word


def _parser() -> argparse.ArgumentParser:
    """The parsers of all commands, each with the options that all commands share."""
    parser = argparse.ArgumentParser(
        prog="unrolled", description="Unrolled sparse-coding solvers, analytic and learned."
    )
    version = f"unrolled {unrolled.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands")
    for add_parser in COMMANDS:
        own = add_parser(commands)
        own.add_argument("--json", action="store_true", help="print JSON on standard output")
        own.add_argument("--seed", metavar="INT", help="seed of all random numbers (default 0)")
        own.add_argument(
            "--no-cache",
            action="store_true",
            help="do not keep compiled programs for the next call, and do not use kept programs",
        )
        _add_import(own)
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        action="append",
        metavar="MODULE",
        help="first import a module, which may define families of layers; repeatable",
    )


def _import_modules(argv: Sequence[str]) -> None:
    """Import the modules that the arguments name; search the current folder first."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    _add_import(parser)
    try:
        modules = vars(parser.parse_known_args(argv)[0])["import"] or []
    except argparse.ArgumentError:  # a name is missing: the whole parser reports it better
        return
    if modules and not {"", os.getcwd()} & set(sys.path):  # as `python -m` does
        sys.path.insert(0, os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a module can raise anything
            raise ImportError(f"--import {module}: {type(error).__name__}: {error}") from error


def _seed(text: str | None) -> int | None:
    try:
        seed = None if text is None else int(text)
    except ValueError as error:
        raise ValueError(f"--seed must be an integer, got {text!r}") from error
    if seed is not None and not 0 <= seed < _SEEDS:  # JAX would cut the seed to 32 bits
        raise ValueError(f"--seed must be at least 0 and below 2^32, got {seed}")
    return seed


def _check_devices() -> None:
    """Raise OSError, with a setting to try, if JAX finds no device to compute on."""
    import jax

    try:
        jax.devices()
    except Exception as error:  # JAX raises several types, an AssertionError without a plugin
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        reason = str(error).splitlines()[0] if str(error) else "its plugin is not installed"
        raise OSError(f"no device for {asked}: {reason}; try JAX_PLATFORMS=cpu") from error


def _run(arguments: argparse.Namespace) -> int:
    no_cache = vars(arguments).pop("no_cache")  # reports omit this option, which changes no result
    try:
        with plain_warnings(), never_silent(), kept_programs(no_cache) as message:
            arguments.run(arguments)
    except SystemExit as stop:  # after SIGTERM, when a run has saved its state
        return stop.code if isinstance(stop.code, int) else _ERROR
    if message:
        print(message, file=sys.stderr)
    return 0
