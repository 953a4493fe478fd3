"""The progress of a command on standard error, its result on standard output, and the compiled
programs that it keeps for the next call.
"""

import argparse
import inspect
import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from unrolled._base.packages import is_installed
from unrolled._base.text import entries, to_json

Say = Callable[[str], None]
Tell = Callable[[str, int, int, str], None]
_SILENCE = 4.0  # seconds
_EVERY = 20.0  # seconds between two lines of a run
_REWRITE = "\r\x1b[K"  # what a terminal takes as "write this line again"
_OWNER_ONLY = 0o700  # anyone who can write into the folder can run code as its owner


@dataclass
class _Line:
    """The last message of a command, and its time."""

    text: str
    at: float
    shown: float  # when a line was last printed
    rewritten: bool = False  # whether the next line replaces it


_LATEST: ContextVar[_Line | None] = ContextVar("latest", default=None)


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], None],
    arguments: Mapping[str, Mapping[str, Any]],
) -> argparse.ArgumentParser:
    """The parser of a command, from a table: argument name -> options of argparse.

    The docstring of `run` is the help: a line, a description, the flags, and examples.
    """
    text = inspect.cleandoc(run.__doc__ or "")  # Python may have removed it
    line, description, *_, examples = text.split("\n\n") if text else ("", "", "")
    parser = commands.add_parser(
        name,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help=_in_lower_case(line).removesuffix("."),
        description=description,
        epilog=_in_lower_case(examples).replace("\n    ", "\n  "),
    )
    add_arguments(parser, run, arguments)
    parser.set_defaults(run=run)
    return parser


def add_arguments(
    parser: Any, function: Callable[..., Any], arguments: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add arguments to a parser or a group; the docstring of a function has their help."""
    helps = entries(inspect.cleandoc(function.__doc__ or ""), "Flags")
    for name, options in arguments.items():
        help = helps.get(name, "").replace("%", "%%")
        parser.add_argument(name, **{"help": help, **options})


def _in_lower_case(text: str) -> str:
    """A text whose first letter is small."""
    return text[:1].lower() + text[1:]


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Let standard output escape characters that its encoding lacks; tolerate a closed standard
    error.
    """
    out = sys.stdout
    with ExitStack() as after:
        if isinstance(out, io.TextIOWrapper):
            after.callback(out.reconfigure, errors=out.errors)
            out.reconfigure(errors="backslashreplace")
        if sys.stderr is None:
            after.enter_context(redirect_stderr(after.enter_context(open(os.devnull, "w"))))
        yield


def progress_printer(stages: int | None = None) -> Say:
    """A function `say(message)` that prints a line on standard error, with the seconds elapsed.

    If the number of `stages` is given, each message begins a stage: its line says "i of n", and
    from the second stage on about how long the rest takes, as if all stages were equally long. On
    a terminal each line of a stage then replaces the line before it.
    """
    began, begun, lock = time.perf_counter(), 0, threading.Lock()
    rewritten = stages is not None and sys.stderr.isatty()

    def say(message: str) -> None:
        nonlocal begun
        with lock:  # several threads may print
            begun += 1
            spent = time.perf_counter() - began
            line = f"[{spent:5.1f} s] {message}"
            if stages is not None:
                n = max(stages, begun)
                line = f"[{spent:5.1f} s] {begun} of {n}: {message}"
                if 1 < begun < n:
                    line += f", about {time_left(spent / (begun - 1) * (n - begun + 1))} left"
            end = "" if rewritten and begun < (stages or 0) else "\n"
            print(_REWRITE * rewritten + line, end=end, file=sys.stderr, flush=True)
            note_output(message, rewritten)

    return say


def note_output(message: str | None = None, rewritten: bool = False) -> None:
    """Note that a command has just printed a line, so that `never_silent` waits."""
    if (line := _LATEST.get()) is not None:
        line.shown, line.rewritten = time.monotonic(), rewritten
        if message is not None:
            line.text, line.at = message, line.shown


@contextmanager
def never_silent(silence: float = _SILENCE) -> Iterator[None]:
    """On a terminal, print a line on standard error after `silence` seconds without output."""
    if not sys.stderr.isatty():
        yield
        return
    now, over = time.monotonic(), threading.Event()
    line = _Line("reading and compiling", now, now)
    token = _LATEST.set(line)

    thread = threading.Thread(target=_watch, args=(line, silence, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _LATEST.reset(token)


def _watch(line: _Line, silence: float, over: threading.Event) -> None:
    """Until `over` is set, repeat the last message after every `silence` seconds without output."""
    while not over.wait(silence / 8):
        now = time.monotonic()
        if now - line.shown >= silence:
            line.shown = now
            text = f"... {line.text}: {now - line.at:.0f} s"
            lead, end = (_REWRITE, "") if line.rewritten else ("", "\n")
            print(lead + text, end=end, file=sys.stderr, flush=True)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each warning as one line that says what is wrong, without the place in the code."""
    usual = warnings.formatwarning
    lead = _REWRITE if sys.stderr is not None and sys.stderr.isatty() else ""
    warnings.formatwarning = lambda message, *place, **line: f"{lead}warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def show(as_json: bool, data: Any, text: str) -> None:
    """Print the result of a command, as JSON or as text."""
    print(to_json(data) if as_json else text)


@contextmanager
def progress(say: Say) -> Iterator[Tell]:
    """Yield `tell(name, done, steps, text)`, which prints how far a run is, and its time left."""
    if not (sys.stderr.isatty() and is_installed("rich")):
        yield _lines(say)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, Any] = {}

        def tell(name: str, done: int, steps: int, text: str) -> None:
            if name not in tasks:
                for other in tasks.values():
                    shown.update(other, visible=False)
                tasks[name] = shown.add_task(name, total=steps, completed=done)
            shown.update(tasks[name], completed=done, description=f"{name}, {text}")
            note_output()

        yield tell


def _lines(say: Say) -> Tell:
    begun: dict[str, tuple[float, int]] = {}
    last = [-_EVERY]

    def tell(name: str, done: int, steps: int, text: str) -> None:
        now = time.monotonic()
        began, first = begun.setdefault(name, (now, done))
        if now - last[0] < _EVERY and done < steps:
            return
        last[0] = now
        timed = done > first
        left = (
            f", {time_left((now - began) / (done - first) * (steps - done))} left" if timed else ""
        )
        say(f"{name}: step {done} of {steps}, {text}{left if done < steps else ''}")

    return tell


def time_left(seconds: float) -> str:
    """A duration in words: "3 h 20 min", "2 min", "40 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# Compiled programs


def cache_folder() -> Path:
    """The cache folder of a user on this platform."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(folder):  # the XDG standard says to ignore relative paths
        return Path(folder, "unrolled")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home(), "unrolled", "Cache")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unrolled"
    return Path.home() / ".cache" / "unrolled"


@contextmanager
def kept_programs(off: bool) -> Iterator[str]:
    """Let JAX keep all programs that a block compiles, and read programs of earlier calls.

    If the user has set a cache folder in JAX, or has switched the cache off, the setting stays.

    Args:
        off: if True, keep no programs and read none.

    Yields:
        A message for the user about the folder, or "".
    """
    options, message = _cache_options(off)
    before = {name: jax.config.values[name] for name in options}
    _configure(options)
    try:
        yield message
    finally:
        _configure(before)


def _cache_options(off: bool) -> tuple[dict[str, Any], str]:
    """The configuration of JAX for a command, and a message about it for the user."""
    configured = jax.config.values
    if off:
        return {"jax_enable_compilation_cache": False}, ""
    if not configured["jax_enable_compilation_cache"] or configured["jax_compilation_cache_dir"]:
        return {}, ""
    try:
        folder = cache_folder()
        folder.mkdir(_OWNER_ONLY, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        return {}, f"compiled programs are not kept: {error}"
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    return (
        options,
        f"compiled programs are kept in {folder} for the next call; --no-cache keeps none",
    )


def _configure(options: dict[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    if options:
        compilation_cache.reset_cache()  # JAX reads the configuration once
