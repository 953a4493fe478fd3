"""What a command says: progress on standard error, its result on standard output."""

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from unrolled._json import to_json

Say = Callable[[str], None]
_SILENCE = 4.0  # seconds


@dataclass
class _Told:
    """What a command said last, and when."""

    text: str
    at: float
    shown: float  # when a line was last printed


_TOLD: ContextVar[_Told | None] = ContextVar("told", default=None)


def teller() -> Say:
    """`say(message)` prints a line on standard error, with the seconds since now."""
    began = time.perf_counter()

    def say(message: str) -> None:
        print(f"[{time.perf_counter() - began:5.1f} s] {message}", file=sys.stderr, flush=True)
        heard(message)

    return say


def heard(message: str | None = None) -> None:
    """Note that a command has just shown something, so that it is not silent."""
    if (told := _TOLD.get()) is not None:
        told.shown = time.monotonic()
        if message is not None:
            told.text, told.at = message, told.shown


@contextmanager
def never_silent(silence: float = _SILENCE) -> Iterator[None]:
    """On a terminal, a line on standard error after every so many seconds without one."""
    if not sys.stderr.isatty():
        yield
        return
    now, over = time.monotonic(), threading.Event()
    told = _Told("reading and compiling", now, now)
    token = _TOLD.set(told)

    def watch() -> None:
        while not over.wait(silence / 8):
            now = time.monotonic()
            if now - told.shown >= silence:
                told.shown = now
                print(f"... {told.text}: {now - told.at:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _TOLD.reset(token)


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
