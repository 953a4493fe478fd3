"""`python -m unrolled`, and the command `unrolled`."""

import gc
import sys

from unrolled.app.cli import main


def run() -> int:
    """One command as a process of its own; returns its exit status."""
    status = main()
    gc.freeze()  # all that lives ends with the process: a search for cycles would take a second
    return status


if __name__ == "__main__":
    sys.exit(run())
