"""Tables as text: columns for a terminal, and Markdown; indices in a message."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def line(label: str, cells: Iterable[Any]) -> str:
    """A line of a table: the label and its cells, in columns."""
    return f"{label:24}" + "".join(
        f"{c:>16.6g}" if isinstance(c, float) else f"{c!s:>16}" for c in cells
    )


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is shown as one."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    head, *body = map(row, (columns, *rows))
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def in_rows(rows: np.ndarray, what: str = "row") -> str:
    """The first few of some indices, for the end of a message.

    Example:
        >>> from unrolled._text import in_rows
        >>> in_rows(np.arange(5)), in_rows(np.array([7]), "column")
        (' (in rows 0, 1, 2 and 2 others)', ' (in column 7)')
    """
    others = f" and {len(rows) - 3} others" if len(rows) > 3 else ""
    return f" (in {what}{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:3]))}{others})"
