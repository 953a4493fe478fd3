"""Signals that let a run finish its step and save before the process ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred() -> Iterator[list[int]]:
    """A list that receives the first SIGINT or SIGTERM; the second one ends the process at once.

    The previous handlers are restored at the end. Only the main thread may handle signals: in other
    threads, and for signals that are ignored, nothing changes.
    """
    caught: list[int] = []

    def note(number, frame):
        if caught:
            leave(number)
        caught.append(number)

    mine = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if mine else ()
    before = {number: signal.getsignal(number) for number in numbers}
    handled = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in handled:
            signal.signal(number, note)
        yield caught
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
    if caught:  # after the last save
        leave(caught[0])


def leave(number: int, message: str = "") -> None:
    """Do what the signal would have done: raise KeyboardInterrupt, or SystemExit(143)."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise SystemExit(128 + number)
