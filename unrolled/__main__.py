"""`python -m unrolled`, and the command `unrolled`."""

import gc
import sys

from unrolled.app.cli import main


def run() -> int:
    """Run one command in this process, and return the exit status."""
    status = main()
    gc.freeze()  # the process ends: a last search for cycles would take a second
    return status


if __name__ == "__main__":
    sys.exit(run())
