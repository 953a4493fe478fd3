"""How the process of the command `unrolled` ends after Ctrl-C, an error or SIGTERM."""

import os
import signal
import sys

INTERRUPTED = 130  # the exit status after SIGINT


def end_quietly_while_importing() -> None:
    """In the process of the command, let SIGINT end the imports without a traceback."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    ours = name in ("unrolled", "unrolled.exe") or (name == "-m" and "unrolled" in sys.orig_argv)
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def imported() -> None:
    """After the imports, SIGINT raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number, frame):
    print("unrolled: interrupted", file=sys.stderr)
    end(INTERRUPTED)


def end(status: int) -> None:
    """End this process at once.

    A thread may still compile a program. At the usual end of Python this thread would call an
    interpreter that is gone, and the process would abort.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # None, a full disk, closed
            pass
    os._exit(status)
