"""Tables as text: columns for a terminal, and Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


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
