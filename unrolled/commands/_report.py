"""A report: sections of text, tables, figures and data, as files in one folder."""

import csv
import io
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled import plots
from unrolled._files import write_whole
from unrolled._json import to_json
from unrolled.commands import _html

RESULTS = "results.json"
_DPI = 150


class Section(NamedTuple):
    """One question of a report and its answer."""

    title: str
    slug: str  # the stem of the files that belong to it
    parts: Sequence[str]  # paragraphs in Markdown, and tables
    figures: Mapping[str, Callable[[], Any]]  # caption -> what draws its matplotlib figure
    rows: tuple[Sequence[str], Sequence[Sequence]]  # header and rows of its CSV
    data: Any  # for the JSON
    answer: str = ""  # in one sentence

    @property
    def text(self) -> str:
        """The parts as Markdown."""
        return "\n".join(self.parts)


def environment() -> dict[str, str]:
    """The versions and devices that results depend on."""
    import flax
    import jaxlib
    import optax

    devices = ", ".join(f"{d.platform} {d.device_kind}" for d in jax.devices())
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "devices": devices,
        "date": time.strftime("%Y-%m-%d"),
    }


def check_drawing() -> None:
    """Raise ImportError, which names the extra to install, if no figure can be drawn."""
    plots.figure(1, 1)


def check_folder(folder: Path) -> None:
    """Make the folder, and check that it can be written before any work is done.

    Raises:
        OSError: it cannot be made or written; NotADirectoryError if a file has that name.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; expected a folder to write into")
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".write-check"
    probe.write_text("")
    probe.unlink()


def check_not_read(written: Iterable[Path], read: Iterable[Path]) -> None:
    """Raise ValueError if a file or folder that is written is also read."""
    existing = [path for path in read if path.exists()]
    for path in written:
        if path.exists() and any(path.samefile(other) for other in existing):
            raise ValueError(f"{path}: is read by this command; try another --output")


def write_report(
    folder: Path, title: str, summary: str, sections: list[Section], settings: dict[str, str]
) -> Path:
    """Write one CSV per section, `results.json` and `report.md`, draw the figures, and write all of
    it as `report.html`.

    A figure that cannot be drawn so loses none of the numbers.

    Returns:
        the path of `report.md`.
    """
    machine = environment()
    lines = [f"# {title}", "", summary, ""]
    figures: dict[str, Callable[[], Any]] = {}
    for section in sections:
        lines += [f"## {section.title}", "", section.text.strip(), ""]
        for i, (caption, draw) in enumerate(section.figures.items()):
            name = f"{section.slug}.png" if i == 0 else f"{section.slug}-{i + 1}.png"
            figures[name] = draw
            lines += [f"![{caption}]({name})", "", f"*{caption}*", ""]
        write_table(folder / f"{section.slug}.csv", *section.rows)
        lines += [f"Step by step: [{section.slug}.csv]({section.slug}.csv).", ""]
    lines += ["## Where this was measured", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in {**machine, **settings}.items()]
    data = {section.slug: section.data for section in sections}
    results = {"environment": machine, "settings": settings, "sections": data}
    write_text(folder / RESULTS, to_json(results) + "\n")
    report = folder / "report.md"
    write_text(report, "\n".join(lines) + "\n")
    drawn = {name: draw() for name, draw in figures.items()}
    for name, figure in drawn.items():
        write_figure(folder / name, figure)
    write_html(folder, title, summary, sections, {**machine, **settings}, list(drawn.values()))
    return report


def write_html(
    folder: Path,
    title: str,
    summary: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
    drawn: Sequence[Any],
) -> None:
    """Write `report.html`: its first sentence is the answer of the first section that has one.

    Args:
        folder, title, summary, sections, facts: of the report.
        drawn: the figures of all sections, in their order.
    """
    figures = iter(drawn)
    shown: list[tuple[str, Sequence[str], Mapping[str, Any]]] = [
        (section.title, section.parts, {caption: next(figures) for caption in section.figures})
        for section in sections
    ]
    answers = [section.answer for section in sections if section.answer]
    if answers:
        shown.append(("What this is", summary.split("\n\n"), {}))
    text = _html.page(title, (answers or [summary])[0], shown, facts, _command())
    write_text(folder / "report.html", text)


def _command() -> str:
    """The command line of this process, as one types it."""
    return shlex.join(["unrolled", *sys.argv[1:]])


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    write_whole(path, text.encode())


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Write a CSV, whole or not at all."""
    with io.StringIO(newline="") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
        write_text(path, text.getvalue())


def check_figure(path: Path) -> None:
    """Raise unless a figure can be written to `path`, before any work.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: it is a folder, or lies in none that can be written.
        ValueError: its suffix is no format of pictures.
    """
    check_drawing()
    from matplotlib.backend_bases import FigureCanvasBase

    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file")
    check_folder(path.parent)
    kind, formats = path.suffix[1:].lower() or "png", sorted(FigureCanvasBase.filetypes)
    if kind not in formats:
        raise ValueError(
            f"{path}: .{kind} is no format of pictures; expected one of {', '.join(formats)}"
        )


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure in the format of its suffix (PNG without one), or not at all."""
    with io.BytesIO() as blob:
        figure.savefig(blob, format=path.suffix[1:] or "png", dpi=_DPI)
        write_whole(path, blob.getvalue())
