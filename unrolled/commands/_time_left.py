"""How far a run is and how long it will take: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from unrolled.commands._console import Say, heard

Tell = Callable[[str, int, int, str], None]
_EVERY = 20.0  # seconds between two lines


@contextmanager
def progress(say: Say) -> Iterator[Tell]:
    """`tell(name, done, steps, text)` shows a run with its time left, on standard error."""
    if not sys.stderr.isatty():
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
            heard()

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
