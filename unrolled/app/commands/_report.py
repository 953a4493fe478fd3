"""A report: sections of text, tables, figures and data, as files in one folder and as one page.

The HTML page needs no other file and no internet connection.
"""

import base64
import io
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import jax

from unrolled._base.files import check_writable, claimed, whole_file, write_whole
from unrolled._base.packages import is_installed
from unrolled._base.text import Grid, comma_separated, to_json
from unrolled.app.commands._chart import chart
from unrolled.app.studies import Compared, Overview

RESULTS = "results.json"
_DPI = 150
_FEW = 3  # in tables with at least this many rows, a constant column becomes a sentence

_PAGE = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


class Section(NamedTuple):
    """One question of a report and its answer."""

    title: str
    slug: str  # the stem of its files
    parts: Sequence[str]  # paragraphs in Markdown, and tables
    figures: Mapping[str, Callable[[], Any]]  # caption -> function that draws the figure
    rows: tuple[Sequence[str], Sequence[Sequence]] = ((), ())  # header and rows of its CSV
    data: Any = None  # for the JSON
    answer: str = ""  # the result in words
    short: str = ""  # a table for a terminal
    study: Any = None  # in the first section, its `overview` makes the first screen

    @property
    def text(self) -> str:
        """The parts as Markdown."""
        return "\n".join(self.parts)


_MEASURED = ("jax", "jaxlib", "flax", "optax", "numpy")


def environment() -> dict[str, str]:
    """The versions and devices that results depend on."""
    devices = ", ".join(f"{d.platform} {d.device_kind}" for d in jax.devices())
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _MEASURED if is_installed(name)},
        "devices": devices,
        "date": time.strftime("%Y-%m-%d"),
    }


def check_folder(folder: Path) -> None:
    """Make the folder, and check that it can be written before any work is done.

    Raises:
        OSError: the folder cannot be made or written.
        NotADirectoryError: a file has the name of the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; expected a folder to write into")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Check a folder by `check_folder`, and lock it for this process until the block ends.

    At the end of the block, new folders that are still empty are removed.

    Raises:
        ValueError: another process writes into the folder.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    check_folder(folder)
    try:
        with claimed(folder / "lock") as holder:
            if holder is not None:
                raise ValueError(f"{folder}: in use by process {holder}; try another --output")
            yield
    finally:
        with suppress(OSError):  # a folder that is not empty stays
            for path in made:
                path.rmdir()


def check_not_read(written: Iterable[Path], read: Iterable[Path]) -> None:
    """Raise ValueError if a file or folder that is written is also read."""
    existing = [path for path in read if path.exists()]
    for path in written:
        if path.exists() and any(path.samefile(other) for other in existing):
            raise ValueError(f"{path}: is read by this command; try another --output")


def section_of(study: Any, title: str, slug: str) -> Section:
    """The section of a study with figures, rows and an answer."""
    figures = {f"{title}: {shown}": draw for shown, draw in study.figures().items()}
    parts, rows, data = study.parts(), study.rows(), study.to_dict()
    return Section(title, slug, parts, figures, rows, data, study.answer(), study.short(), study)


def with_costs(section: Section) -> Section:
    """A section whose answer, short table and first screen have the CPU times of its methods.

    Call it when no other thread computes.
    """
    if not isinstance(section.study, Compared):
        return section
    timed = section.study.timed()
    return section._replace(answer=timed.answer(), short=timed.short(), study=timed)


def write_report(
    folder: Path, title: str, summary: str, sections: list[Section], settings: dict[str, str]
) -> Path:
    """Write one CSV per section, `results.json` and `report.md`, draw the figures, and write
    everything again as `report.html`.

    If a figure cannot be drawn, the numbers are already written.

    Returns:
        The path of `report.html`.
    """
    machine = environment()
    answers = [section.answer for section in sections if section.answer]
    lines = [
        f"# {title}",
        "",
        *(part for answer in answers[:1] for part in (answer, "")),
        summary,
        "",
    ]
    figures: dict[str, Callable[[], Any]] = {}
    for section in sections:
        lines += [f"## {section.title}", "", section.text.strip(), ""]
        for i, (caption, draw) in enumerate(section.figures.items()):
            name = f"{section.slug}.png" if i == 0 else f"{section.slug}-{i + 1}.png"
            figures[name] = draw
            lines += [f"![{caption}]({name})", "", f"*{caption}*", ""]
        write_table(folder / f"{section.slug}.csv", *section.rows)
        lines += [f"Values of every step: [{section.slug}.csv]({section.slug}.csv).", ""]
    lines += ["## Where this was measured", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in {**machine, **settings}.items()]
    data = {section.slug: section.data for section in sections}
    results = {"environment": machine, "settings": settings, "sections": data}
    write_text(folder / RESULTS, to_json(results) + "\n")
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    drawn = {name: draw() for name, draw in figures.items()}
    for name, figure in drawn.items():
        write_figure(folder / name, figure)
        figure.set_layout_engine("none")  # the page keeps the layout that the figure now has
    facts = {**machine, **settings}
    return write_html(folder, title, summary, sections, facts, list(drawn.values()))


def write_html(
    folder: Path,
    title: str,
    summary: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
    drawn: Sequence[Any] | None = None,
) -> Path:
    """Write `report.html`. The page begins with the overview of the first section if there is one,
    else with the first answer of a section.

    Args:
        folder, title, summary, sections, facts: the parts of the report.
        drawn: the figures of all sections, in order; if None, the function draws the figures.

    Returns:
        The path.
    """
    draws = [draw for section in sections for draw in section.figures.values()]
    figures = iter([draw() for draw in draws] if drawn is None else drawn)
    shown: list[tuple[str, Sequence[str], Mapping[str, Any]]] = [
        (section.title, section.parts, {caption: next(figures) for caption in section.figures})
        for section in sections
    ]
    answers = [section.answer for section in sections if section.answer]
    if answers:
        shown.append(("What this is", summary.split("\n\n"), {}))
    command = shlex.join(["unrolled", *sys.argv[1:]])  # as a user types it
    first: Any = sections[0].study if sections else None
    overview = first.overview() if hasattr(first, "overview") else None
    text = page(title, (answers or [summary])[0], shown, facts, command, overview)
    report = folder / "report.html"
    write_text(report, text)
    return report


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, completely or not at all."""
    # A file name may have bytes that are not text.
    write_whole(path, text.encode(errors="backslashreplace"))


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Write a CSV, completely or not at all."""
    write_text(path, comma_separated(header, rows))


def check_figure(path: Path) -> None:
    """Raise unless a figure can be written to `path`, before any work.

    Raises:
        OSError: the path is a folder, or its folder cannot be written.
        ValueError: the suffix is not a format of pictures.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file")
    check_folder(path.parent)
    kind, formats = path.suffix[1:].lower() or "png", sorted(FigureCanvasBase.filetypes)
    if kind not in formats:
        raise ValueError(
            f"{path}: .{kind} is not a format of pictures; expected one of {', '.join(formats)}"
        )


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure in the format of the suffix (default PNG), completely or not at
    all.
    """
    with whole_file(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", dpi=_DPI)


def page(
    title: str,
    answer: str,
    sections: Sequence[tuple[str, Iterable[str], Mapping[str, Any]]],
    facts: Mapping[str, str],
    command: str,
    overview: Overview | None = None,
) -> str:
    """The page: a sentence, the overview, and the folded sections below.

    Args:
        title: the title of the page.
        answer: the first sentence if there is no overview; in this case the first section is open.
        sections: title, parts (paragraphs in Markdown, tables as `Grid`, text between ```) and
            matplotlib figures by caption.
        facts: versions and settings.
        command: the command that makes this page again.
        overview: the first screen.
    """
    body = [
        _section(i, *section, is_open=overview is None and i == 0)
        for i, section in enumerate(sections)
    ]
    rows = [[name, str(value)] for name, value in facts.items()]
    repeat = [f"```\n{command}\n```", _table(["", ""], rows)]
    body.append(_section(len(body), "Repeat", repeat, {}))
    return _PAGE.substitute(
        title=escape(title),
        answer=_inline(answer if overview is None else overview.sentence),
        first="" if overview is None else _first(overview),
        body="\n".join(body),
    )


def _first(overview: Overview) -> str:
    """The first screen, below its sentence."""
    caption = f"<figcaption>{_inline(overview.caption)}</figcaption>"
    table = _table(overview.table.columns, overview.table.rows, whole=True)
    best = f"<tr><td>{escape(overview.best)}</td>"
    table = table.replace(best, f'<tr class="best"{best[3:]}')
    return "\n".join(
        [
            f'<p class="lead">{_inline(overview.lead)}</p>',
            f'<figure class="first">{chart(overview)}{caption}</figure>',
            f'<div class="short">{table}</div>',
        ]
    )


def _section(
    i: int, title: str, parts: Iterable[str], figures: Mapping[str, Any], is_open: bool = False
) -> str:
    """A section that folds, with its figures first."""
    shown = []
    for j, (caption, figure) in enumerate(figures.items()):
        below = f"<figcaption>{_inline(caption)}</figcaption>"
        shown.append(f"<figure>{_picture(figure, f's{i}f{j}')}{below}</figure>")
    shown += [_part(part) for part in parts if part.strip()]
    head = f'<details{" open" if is_open else ""} id="s{i}"><summary>{escape(title)}</summary>'
    return "\n".join([head, *shown, "</details>"])


def _part(part: str) -> str:
    if isinstance(part, Grid):
        return "\n".join([_table(part.columns, part.rows), *map(_part, part.notes)])
    if part.startswith("<"):
        return part
    if part.startswith("```"):
        return f"<pre>{escape(part.strip('`').strip())}</pre>"
    return "\n".join(f"<p>{_inline(text)}</p>" for text in part.split("\n\n"))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: bool = False) -> str:
    """A table; unless `whole`, a sentence below the table replaces its constant columns."""
    every = "" if whole else _constant(columns, rows)
    kept = [i for i, _ in enumerate(columns) if not every or not _is_constant(rows, i)]
    columns, rows = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>\n" for row in rows
    )
    thead = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="wide"><table>{thead}<tbody>{body}</tbody></table></div>{every}'


def _constant(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The columns that are the same in every row, as a sentence."""
    same = [i for i, name in enumerate(columns) if name and _is_constant(rows, i)]
    listed = ", ".join(f"{escape(columns[i])} {escape(str(rows[0][i]))}" for i in same)
    return f"<p>In every row: {listed}.</p>" if same else ""


def _is_constant(rows: Sequence[Sequence[str]], i: int) -> bool:
    cells = {str(row[i]) for row in rows}
    return i > 0 and len(rows) >= _FEW and len(cells) == 1 and cells != {""}


def _inline(text: str) -> str:
    """HTML for the code and emphasis of Markdown."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)", r"<em>\1</em>", text)


def _picture(figure: Any, name: str) -> str:
    """A figure of curves as SVG with unique ids; a figure with pictures as PNG."""
    from matplotlib import rc_context

    with io.BytesIO() as blob:
        if any(panel.images for panel in figure.axes):
            figure.savefig(blob, format="png", dpi=110)
            data = base64.b64encode(blob.getvalue()).decode()
            return f'<img alt="" src="data:image/png;base64,{data}">'
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unrolled"}):
            figure.savefig(blob, format="svg", metadata={"Date": None})
        svg = blob.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
