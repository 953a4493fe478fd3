"""The history of a run in its folder: a JSON line per evaluation, and a table."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unrolled import training
from unrolled._files import write_whole
from unrolled._json import plain, to_json
from unrolled.commands._report import write_table

HISTORY, TABLE = "history.jsonl", "history.csv"


def logger(folder: Path, started: Callable[[], None]) -> Callable[..., None]:
    """A callback of `fit` that appends one line per evaluation.

    Evaluations of an earlier run are kept up to the step that the first new one has. The earlier
    history is replaced, and `started` called, at the first evaluation, when `fit` has locked the
    checkpoints: a second run in the same folder changes nothing.
    """
    path = folder / HISTORY
    before: list[dict[str, Any]] | None = read_history(path)

    def write(record, params):
        nonlocal before
        row = row_of(record)
        if before is not None:
            _write_lines(path, [old for old in before if _place(old) < _place(row)])
            started()
            before = None
        with path.open("a") as file:
            file.write(_line(row))

    return write


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history, up to a line that was torn when a run was killed."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows.append(row | {"stage": int(row["stage"]), "step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            break
    return rows


def write_history(folder: Path, records: Sequence[training.Record]) -> None:
    """Write the whole history, as JSON lines and as a table."""
    rows = [row_of(record) for record in records]
    _write_lines(folder / HISTORY, rows)
    write_table(folder / TABLE, list(rows[0]), [list(row.values()) for row in rows])


def row_of(record: training.Record) -> dict[str, Any]:
    """A record of the history as data; numbers that are not finite are None."""
    return plain(record)


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["stage"], row["step"]


def _line(row: dict[str, Any]) -> str:
    return to_json(row, indent=None) + "\n"


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_whole(path, "".join(map(_line, rows)).encode())
