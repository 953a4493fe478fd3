"""Threads of this process, and the signals that let a run finish its step before it ends."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax

Part = TypeVar("Part")
Result = TypeVar("Result")

_LIMITING = threading.Lock()  # held by the thread that has set the limit of BLAS


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS to one thread if threadpoolctl is installed (scikit-learn depends on it).

    Factorisations of a few hundred rows gain nothing from a second thread, and become up to a
    hundred times slower if another process holds a core. The limit holds for the whole process: the
    first caller sets and removes the limit, and callers in the meantime leave it unchanged.
    """
    try:
        blas = _blas()
    except ImportError:
        yield
        return
    if not _LIMITING.acquire(blocking=False):
        yield
        return
    try:
        with blas.limit(limits=1):
            yield
    finally:
        _LIMITING.release()


@cache
def _blas() -> Any:
    """The BLAS of NumPy and SciPy, found once: the search reads the memory map of the process."""
    import scipy.linalg  # noqa: F401  # a BLAS that is loaded later would have all cores
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


class Threads(NamedTuple):
    """Threads that share work with the thread of the caller."""

    cores: int
    pool: ThreadPoolExecutor

    def share(self, work: Callable[[Part], None], parts: Sequence[Part]) -> None:
        """Run `work` on every part, each in the first thread that is free."""
        _drained(work, parts, self.cores, self.pool.submit)


@contextmanager
def threads() -> Iterator[Threads]:
    """One thread per core, each with a single thread of BLAS.

    Without threadpoolctl there is a single thread, since BLAS takes all cores.
    """
    cores = _cores()
    with one_thread(), ThreadPoolExecutor(cores) as pool:
        yield Threads(cores, pool)


def in_thread(work: Callable[[], Result]) -> Future[Result]:
    """Begin a piece of work in a separate thread, which does not outlive the process.

    The thread has the context of the caller. If the caller computes in float64, the thread does
    too, because JAX has this setting per thread.
    """
    future: Future[Result] = Future()
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    context = copy_context()

    def run() -> None:
        try:
            with jax.enable_x64(wide):
                future.set_result(context.run(work))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def each(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """The results of `work` on every part, in the order of the parts, with one thread per core.

    The thread of the caller takes part; `in_thread` starts the other threads.
    """
    results: dict[int, Result] = {}

    def one(part: tuple[int, Part]) -> None:
        results[part[0]] = work(part[1])

    _drained(one, list(enumerate(parts)), _available(), in_thread)
    return [results[i] for i in range(len(parts))]


def _drained(
    work: Callable[[Part], Any], parts: Sequence[Part], threads: int, begin: Callable
) -> None:
    """Run `work` on every part, in this thread and in threads that `begin` starts."""
    left = iter(parts)

    def drain() -> None:
        try:
            for part in left:
                work(part)
        finally:  # after an error no other part begins
            for _ in left:
                pass

    others = [begin(drain) for _ in range(min(threads, len(parts)) - 1)]
    drain()
    for other in others:
        other.result()


def _cores() -> int:
    """The number of threads that may share BLAS."""
    try:
        import threadpoolctl  # noqa: F401
    except ImportError:
        return 1
    return _available()


def _available() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_AGAIN = 0.05  # seconds


@contextmanager
def never_lost() -> Iterator[None]:
    """If Python ignores the KeyboardInterrupt of a SIGINT, send the SIGINT again a moment later.

    Python prints and ignores an exception in a callback of its garbage collector (JAX has such a
    callback) or in the deletion of an object.
    """
    before, timers = sys.unraisablehook, []

    def hook(unraisable):
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # Another thread may receive a signal to the process; then the main thread would sleep on.
        main = threading.main_thread().ident
        while True:
            try:
                timer = threading.Timer(_AGAIN, signal.pthread_kill, (main, signal.SIGINT))
                timer.start()
                timers.append(timer)
                return
            except KeyboardInterrupt:  # from that signal, if this thread had to wait here
                continue

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.join()  # its signal interrupts this call, and no later call


@contextmanager
def deferred() -> Iterator[list[int]]:
    """A list that receives the first SIGINT or SIGTERM; the second signal ends the process at once.

    At the end the previous handlers are restored. Only the main thread may handle signals: in other
    threads, and for ignored signals, nothing changes.
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
