"""Records as text: tables for a terminal, Markdown, LaTeX and CSV; strict JSON, and its digest."""

import csv
import hashlib
import html
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unrolled._base.results import Result


def an(word: str) -> str:
    """A word with its article.

    Example:
        >>> from unrolled._base.text import an
        >>> an("alista"), an("dict")
        ('an alista', 'a dict')
    """
    return f"{'an' if word[:1] in 'AEIOUaeiou' else 'a'} {word}"


def entries(docstring: str, section: str) -> dict[str, str]:
    """The entries of a section of a docstring by name, each in one line.

    Example:
        >>> from unrolled._base.text import entries
        >>> entries("Add.\\n\\nArgs:\\n    x: a\\n        number.\\n    y: another.", "Args")
        {'x': 'a number.', 'y': 'another.'}
    """
    body = re.search(rf"^{section}:\n((?:    .*(?:\n|$))+)", docstring, re.MULTILINE)
    parts = re.split(r"^    (?=\S)", body[1], flags=re.MULTILINE)[1:] if body else []
    named = (part.partition(": ") for part in parts)
    return {name: " ".join(words.split()) for name, _, words in named}


def line(label: str, cells: Iterable[Any]) -> str:
    """A line of a table: the label and its cells, in columns."""
    return f"{label:24}" + "".join(f"{number(cell):>16}" for cell in cells)


def number(cell: Any) -> str:
    """A cell as text; floats get six digits."""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def short(value: float) -> str:
    """A cost as text.

    Example:
        >>> from unrolled._base.text import short
        >>> short(1234.5), short(0.126)
        ('1,234', '0.13')
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


class Grid(str):
    """A Markdown table with notes below it; the object keeps its columns and rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]

    def _repr_html_(self) -> str:
        """The table as Jupyter shows it."""
        head, *body = (
            "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
            for tag, row in [("th", self.columns), *(("td", row) for row in self.rows)]
        )
        rows = "\n".join(f"<tr>{cells}</tr>" for cells in body)
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
        return "\n".join([table, *(f"<p>{html.escape(note)}</p>" for note in self.notes)])


# A vertical bar, the beginning of a tag, and at the beginning of a cell = @ + - before a word.
_IN_MARKDOWN = re.compile(r"\||<(?=[A-Za-z/!?])|^(?:[=@]|[+-](?!inf|nan)(?=[A-Za-z(=@]))")


def markdown(
    columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str] = ()
) -> Grid:
    """A Markdown table. In a cell, a vertical bar, an HTML tag, and the first mark of a formula of
    spreadsheets are escaped.
    """

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_IN_MARKDOWN.sub(r"\\\g<0>", cell) for cell in cells) + " |"

    rows = list(rows)
    head, *body = map(row, (columns, *rows))
    table = "\n".join([head, "|" + "---|" * len(columns), *body])
    grid = Grid("\n\n".join([table, *notes]))
    grid.columns, grid.rows, grid.notes = columns, rows, notes
    return grid


def grid(rows: Mapping[str, Iterable[Any]]) -> Grid:
    """Labelled rows as a Markdown table; the first row is the head."""
    (corner, first), *rest = rows.items()
    cells = [[label, *map(number, values)] for label, values in rest]
    return markdown([corner, *map(str, first)], cells)


FORMS = ("markdown", "latex", "text", "csv", "records")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {mark: rf"\{mark}" for mark in "&%$#_{}"}


def latex(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A LaTeX table, with the rules of booktabs.

    Example:
        >>> from unrolled._base.text import latex
        >>> print(latex(["method", "K_1"], [["ISTA", "3"]]))
        \\begin{tabular}{lr}
        \\toprule
        method & K\\_1 \\\\
        \\midrule
        ISTA & 3 \\\\
        \\bottomrule
        \\end{tabular}
    """

    def row(cells: Sequence[str]) -> str:
        texts = ("".join(_LATEX.get(mark, mark) for mark in cell) for cell in cells)
        return " & ".join(texts) + r" \\"

    head, *body = map(row, (columns, *rows))
    begin = rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}"
    lines = [begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)


_HEAD = 8  # characters that a line of a head may always have


def aligned(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal: words begin, and numbers end, at one place of a column.

    A head that is wider than the cells below it takes several lines.

    Example:
        >>> from unrolled._base.text import aligned
        >>> print(aligned(["method", "NMSE dB"], [["ISTA", "-9.5"], ["FISTA", "-10.5"]]))
        method  NMSE dB
        ISTA       -9.5
        FISTA     -10.5
    """
    rows = [list(row) for row in rows]
    heads = [_broken(name, [row[i] for row in rows]) for i, name in enumerate(columns)]
    high = max(map(len, heads), default=0)
    first = [[""] * (high - len(head)) + head for head in heads]
    lines = [*zip(*first), *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    words = [i == 0 or any(row[i][:1].isalpha() for row in rows) for i in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words)
        ).rstrip()
        for line in lines
    )


def _broken(name: str, cells: Sequence[str]) -> list[str]:
    """The lines of a head, as wide as its longest word or the cells below it."""
    widest = max(map(len, [*name.split(), *cells]), default=1)
    return textwrap.wrap(name, max(widest, _HEAD)) or [""]


def comma_separated(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table as CSV with a header; None is an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.

    Example:
        >>> from unrolled._base.text import comma_separated
        >>> print(comma_separated(["method", "gap"], [["ISTA, learned", None], ["=A1", -1.5]]))
        method,gap
        "ISTA, learned",
        '=A1,-1.5
        <BLANKLINE>
    """
    with io.StringIO(newline="") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerows(
            [f"'{cell}" if _is_formula(cell) else cell for cell in row] for row in (columns, *rows)
        )
        return text.getvalue()


def _is_formula(cell: Any) -> bool:
    """Whether a cell is a text that begins with = @ + - and is not a list of numbers."""
    if not isinstance(cell, str) or cell[:1] not in tuple("=@+-\t\r"):
        return False
    try:
        return not [float(word) for word in cell.split()]
    except ValueError:
        return True


def table(
    form: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    records: Callable[[], list[dict[str, Any]]],
    where: str,
) -> Any:
    """A table in one of `FORMS`; notes follow it in Markdown, and as comments in LaTeX.

    Args:
        form: one of `FORMS`.
        columns, rows, notes: contents of the table.
        records: a function that returns the rows as numbers, for the forms csv and records.
        where: the name of the caller, for messages.

    Raises:
        ValueError: form is unknown.
    """
    if form == "markdown":
        return markdown(columns, rows, notes)
    if form == "latex":
        return "\n".join([latex(columns, rows), *(f"% {note}" for note in notes)])
    if form == "text":
        return aligned(columns, rows)
    if form == "csv":
        made = records()
        return comma_separated(list(made[0]) if made else [], map(dict.values, made))
    if form == "records":
        return records()
    raise ValueError(f"{where}: unknown form {form!r}; expected one of {', '.join(FORMS)}")


def table_of(form: str, records: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> Any:
    """Records as a `table` of numbers with four digits; None is an empty cell.

    Example:
        >>> from unrolled._base.text import table_of
        >>> print(table_of("markdown", [{"method": "ISTA", "largest_error": 1 / 3, "K": None}]))
        | method | largest error | K |
        |---|---|---|
        | ISTA | 0.3333 |  |
    """

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    columns = [name.replace("_", " ") for name in records[0]] if records else []
    rows = [[cell(value) for value in record.values()] for record in records]
    return table(form, columns, rows, notes, lambda: [*map(dict, records)], "table")


def screen(lines: Iterable[str], most: int = 24, width: int = 100) -> str:
    """The first lines of a text, so that it fits on a screen."""
    cut = [line if len(line) <= width else line[: width - 3] + "..." for line in lines]
    if len(cut) > most:
        cut = [*cut[: most - 1], f"... and {len(cut) - most + 1} more lines"]
    return "\n".join(cut)


def in_rows(rows: np.ndarray, what: str = "row") -> str:
    """The first few of some indices, for the end of a message.

    Example:
        >>> from unrolled._base.text import in_rows
        >>> in_rows(np.arange(5)), in_rows(np.array([7]), "column")
        (' (in rows 0, 1, 2 and 2 others)', ' (in column 7)')
    """
    others = f" and {len(rows) - 3} others" if len(rows) > 3 else ""
    return f" (in {what}{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:3]))}{others})"


def plain(value: Any) -> Any:
    """Records and arrays as dicts, lists and floats; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, Result):
        return plain(value.asdict())
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def to_json(value: Any, indent: int | None = 1) -> str:
    """`plain(value)` as JSON text."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def digest(value: Any) -> str:
    """The sha256 of a value in JSON; the order of names does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """`plain(value)` and its `digest`, in one dict."""
    whole = plain(value)
    return {**whole, "sha256": digest(whole)}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """The value that was passed to `sealed`.

    Raises:
        ValueError: the seal is missing, or the value has changed since it was written.
    """
    if "sha256" not in value:
        raise ValueError("it has no sha256: an older version wrote it, or another program")
    whole = {name: part for name, part in value.items() if name != "sha256"}
    if value["sha256"] != digest(whole):
        raise ValueError("it has changed since it was written: its sha256 differs")
    return whole


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The old and the new value of every entry that differs; None stands for a missing entry.

    Example:
        >>> ur.records.changes({"a": 1, "b": 2}, {"a": 1, "c": 3})
        {'b': (2, None), 'c': (None, 3)}
    """
    pairs = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


_ROWS, _WIDTH = 12, 64  # limits of a table of differences: rows, and characters in a cell


def differences(
    saved: Mapping[str, Any],
    requested: Mapping[str, Any],
    heads: tuple[str, str] = ("saved", "requested"),
) -> str:
    """`changes` as a table; "" if nothing differs.

    Example:
        >>> print(ur.records.differences({"steps": 1}, {"steps": 2}))
               saved  requested
        steps  1      2
    """
    changed = changes(saved, requested)
    if not changed:
        return ""
    cells = [(name, *map(_cell, pair)) for name, pair in list(changed.items())[:_ROWS]]
    rows = [("", *heads), *cells]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    more = len(changed) - _ROWS
    return "\n".join([*lines, *([f"and {more} more"] if more > 0 else [])])


def _cell(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def version() -> str:
    """The version of the installed package, from its metadata."""
    from importlib import metadata

    try:
        return metadata.version("unrolled")
    except metadata.PackageNotFoundError:
        return "unknown"
