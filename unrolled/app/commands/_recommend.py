"""`unrolled recommend`: the cheapest method for signals of a file, with all costs."""

import argparse
from pathlib import Path
from typing import Any

from unrolled import training
from unrolled.app.commands._console import add_command, note_output, show
from unrolled.app.commands._inputs import open_given, read_dictionary
from unrolled.app.commands._report import (
    Section,
    check_figure,
    check_folder,
    check_not_read,
    environment,
    write_figure,
    write_html,
)

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "dictionary": dict(type=Path, metavar="D"),
    "data": dict(type=Path, metavar="SIGNALS"),
    "--lam": dict(type=float),
    "--signals": dict(type=int, metavar="N"),
    "--gap": dict(type=float, default=1e-3),
    "--family": dict(),
    "--figure": dict(type=Path, metavar="PNG"),
    "--output": dict(type=Path, metavar="DIR"),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled recommend`."""
    return add_command(commands, "recommend", run, _ARGUMENTS)


def run(arguments: argparse.Namespace) -> None:
    """The cheapest method for your signals: exact codes, untrained or trained layers.

    Measure the costs and the gaps of exact codes and of untrained layers on at most 256 signals,
    and say which method is the cheapest, and after how many signals training is repaid. Let nothing
    else compute meanwhile. For 256 x 1024 the answer takes 5 to 20 seconds.

    Flags:
        dictionary: D of shape (m, d), as .npy or .npz (entry D)
        data: signals of shape (signals, m), as .npy or .npz (entry Y)
        --lam: weight of the LASSO (default: chosen on the signals)
        --signals: number of signals to code (default: the signals of the file)
        --gap: the largest mean gap (F - F*) / F* of codes (default 0.001)
        --family: another family to measure, and to train, such as lfista_cp
        --figure: save a picture of the gaps and costs
        --output: folder for report.html (default: no report)

    Examples:
        unrolled recommend D.npy Y.npy
        unrolled recommend D.npy Y.npy --lam 0.1 --signals 1000000 --gap 1e-4 --output advice
    """
    D = read_dictionary(arguments.dictionary)
    Y: Any = open_given(arguments.data, D)
    if arguments.figure is not None:
        check_figure(arguments.figure)
        check_not_read([arguments.figure], [arguments.dictionary, arguments.data])
    if arguments.output is not None:
        check_folder(arguments.output)
    note_output("measuring exact codes and untrained layers")
    options = {name: getattr(arguments, name) for name in ("lam", "signals", "gap", "family")}
    advice = training.recommend(D, Y, **options)
    fields = ("case", "method", "why", "lam", "gap", "rows")
    data = {name: getattr(advice, name) for name in fields} | {"code": repr(advice)}
    show(arguments.json, data, f"{advice.case}\n\n{advice.table()}\n\n{advice!r}")
    if arguments.figure is not None:
        write_figure(arguments.figure, advice.plot())
    if arguments.output is not None:
        parts = advice.case, advice.table(), f"```python\n{advice!r}\n```"
        figures = {"the mean gaps of all methods against their costs": advice.plot}
        section = Section("The cheapest method", "method", parts, figures, answer=advice.why)
        text = "The costs and the gaps of exact codes and of untrained layers."
        write_html(arguments.output, "A method for your signals", text, [section], environment())
