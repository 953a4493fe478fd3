"""A report: sections of text, tables, figures and data, written as Markdown, CSV, JSON and PNG into
one folder.
"""

import csv
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Section(NamedTuple):
    """One question of a report and its answer."""

    title: str
    slug: str  # the stem of the files that belong to it
    text: str  # Markdown, tables included
    figures: dict[str, Any]  # caption -> matplotlib figure
    rows: tuple[Sequence[str], list[Sequence]]  # header and rows of its CSV
    data: Any  # for the JSON


def environment() -> dict[str, str]:
    """Versions and devices that a figure depends on."""
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


def check_folder(folder: Path) -> None:
    """Make the folder and prove that it can be written, before any work is done.

    Raises:
        OSError: it cannot be made or written; NotADirectoryError if a file has that name.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; expected a folder to write into")
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".write-check"
    probe.write_text("")
    probe.unlink()


def write(folder: Path, title: str, summary: str, sections: list[Section], settings: dict) -> Path:
    """Write `report.md`, `results.json`, one CSV per section and the figures; returns the path of
    the report.
    """
    found = environment()
    lines = [f"# {title}", "", summary, ""]
    results = {"environment": found, "settings": settings, "sections": {}}
    for section in sections:
        lines += [f"## {section.title}", "", section.text.strip(), ""]
        for i, (caption, figure) in enumerate(section.figures.items()):
            name = f"{section.slug}.png" if i == 0 else f"{section.slug}-{i + 1}.png"
            figure.savefig(folder / name, dpi=150)
            lines += [f"![{caption}]({name})", "", f"*{caption}*", ""]
        with (folder / f"{section.slug}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(section.rows[0])
            writer.writerows(section.rows[1])
        lines += [f"Step by step: [{section.slug}.csv]({section.slug}.csv).", ""]
        results["sections"][section.slug] = section.data
    lines += ["## Where this was measured", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in {**found, **settings}.items()]
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report = folder / "report.md"
    report.write_text("\n".join(lines) + "\n")
    return report
