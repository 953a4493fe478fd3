"""The reports of a running training: a file of JSON lines and a progress bar."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from unrolled.training._protocols import Callback


@contextmanager
def writer(log: str | Path | None) -> Iterator[Callback]:
    """A callback that appends one line of JSON per evaluation to the file `log`."""
    if log is None:
        yield lambda record, params: None
        return
    with Path(log).open("a") as lines:

        def write(record, params):
            values = {k: v if np.isfinite(v) else None for k, v in record._asdict().items()}
            lines.write(json.dumps(values) + "\n")
            lines.flush()

        yield write


@contextmanager
def bar(steps: int, progress: bool | None) -> Iterator[Callback]:
    """A callback that advances a progress bar, on a terminal or on request."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda record, params: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("training", total=steps)

        def advance(record, params):
            description = f"training, validation loss {record.validation:.4g}"
            shown.update(task, completed=record.step, description=description)

        yield advance
