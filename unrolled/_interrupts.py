"""Signals that let a run finish its step and save before the process ends."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = 0.05  # seconds


@contextmanager
def never_lost() -> Iterator[None]:
    """A SIGINT whose KeyboardInterrupt Python ignores is sent again a moment later.

    Python prints and ignores what is raised in a callback of its garbage collector, of which JAX
    has one, or where an object is deleted.
    """
    before, timers = sys.unraisablehook, []

    def hook(unraisable):
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # Another thread may take a signal to the process; then the main thread would sleep on.
        main = threading.main_thread().ident
        while True:
            try:
                timer = threading.Timer(_AGAIN, signal.pthread_kill, (main, signal.SIGINT))
                timer.start()
                timers.append(timer)
                return
            except KeyboardInterrupt:  # that signal, where this thread was kept waiting here
                continue

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.join()  # it interrupts what runs here, and nothing after it


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
