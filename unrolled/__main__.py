"""`python -m unrolled`, and the command `unrolled`."""

import gc
import sys

import jax

from unrolled._base.interrupts import INTERRUPTED, end, imported
from unrolled.app.cli import main


def run() -> int:
    """Run one command in this process, and return the exit status."""
    try:
        imported()
        status = main()
        gc.freeze()  # the process ends: a last search for cycles would take a second
        if status and jax.distributed.is_initialized():
            jax.distributed.shutdown()
    except KeyboardInterrupt:  # a second one
        status = INTERRUPTED
    if status:
        end(status)
    return status


if __name__ == "__main__":
    sys.exit(run())
