"""What a command says: progress on standard error, its result on standard output."""

import sys
import time
from collections.abc import Callable
from typing import Any

from unrolled._json import to_json

Say = Callable[[str], None]


def teller() -> Say:
    """`say(message)` prints a line on standard error, with the seconds since now."""
    began = time.perf_counter()

    def say(message: str) -> None:
        print(f"[{time.perf_counter() - began:5.1f} s] {message}", file=sys.stderr, flush=True)

    return say


def show(as_json: bool, data: Any, text: str) -> None:
    """Print the result of a command, as JSON or as text."""
    print(to_json(data) if as_json else text)
