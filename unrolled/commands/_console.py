"""What a command says: progress on standard error, its result on standard output."""

import argparse
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from unrolled._json import to_json

Say = Callable[[str], None]
_SILENCE = 4.0  # seconds


@dataclass
class _Line:
    """What a command said last, and when."""

    text: str
    at: float
    shown: float  # when a line was last printed


_LATEST: ContextVar[_Line | None] = ContextVar("latest", default=None)


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], None],
    arguments: Mapping[str, Mapping[str, Any]],
    **texts: Any,
) -> argparse.ArgumentParser:
    """The parser of a command, from a table of its arguments: by name, what argparse takes."""
    how = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, formatter_class=how, **texts)
    for argument, options in arguments.items():
        parser.add_argument(argument, **options)
    parser.set_defaults(run=run)
    return parser


def teller() -> Say:
    """`say(message)` prints a line on standard error, with the seconds since now."""
    began = time.perf_counter()

    def say(message: str) -> None:
        print(f"[{time.perf_counter() - began:5.1f} s] {message}", file=sys.stderr, flush=True)
        heard(message)

    return say


def heard(message: str | None = None) -> None:
    """Note that a command has just shown something, so that it is not silent."""
    if (line := _LATEST.get()) is not None:
        line.shown = time.monotonic()
        if message is not None:
            line.text, line.at = message, line.shown


@contextmanager
def never_silent(silence: float = _SILENCE) -> Iterator[None]:
    """On a terminal, a line on standard error after every so many seconds without one."""
    if not sys.stderr.isatty():
        yield
        return
    now, over = time.monotonic(), threading.Event()
    line = _Line("reading and compiling", now, now)
    token = _LATEST.set(line)

    def watch() -> None:
        while not over.wait(silence / 8):
            now = time.monotonic()
            if now - line.shown >= silence:
                line.shown = now
                print(f"... {line.text}: {now - line.at:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _LATEST.reset(token)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line that says what is wrong, without the place in the code."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *place, **line: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def show(as_json: bool, data: Any, text: str) -> None:
    """Print the result of a command, as JSON or as text."""
    print(to_json(data) if as_json else text)
