"""`unrolled export`: saved weights as a program in one file that runs without this library."""

import argparse
from pathlib import Path
from typing import Any

from unrolled import export
from unrolled.app.commands import _inputs
from unrolled.app.commands._console import add_command, show
from unrolled.app.commands._report import check_not_read

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "weights": dict(type=Path, metavar="WEIGHTS"),
    "--output": dict(type=Path, required=True, metavar="FILE"),
    "--dictionary": dict(type=Path, action="append", metavar="FILE"),
    "--platforms": dict(
        default=",".join(export.PLATFORMS),
        metavar="NAMES",
        help="comma-separated platforms of the program (default %(default)s)",
    ),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled export`."""
    return add_command(commands, "export", run, _ARGUMENTS)


def run(arguments: argparse.Namespace) -> None:
    """Write trained weights as a program that runs without this library.

    Write the layer or network of a weights file, with its dictionary, as one StableHLO program for
    any number of signals. To run the program, install only jax and flatbuffers.

    Flags:
        weights: a file of weights, or the folder of saved steps of a run
        --output: file to write
        --dictionary: D, as .npy or .npz (entry D), for weights that were saved without D; for a
            chain, give the option once for each layer

    Example:
        unrolled export weights.npz --output net.stablehlo
    """
    weights, given = arguments.weights, arguments.dictionary or []
    check_not_read([arguments.output], [weights, *given])
    model = _inputs.restore_model(weights, given)
    path = export.save(
        arguments.output,
        model.layer,
        model.params,
        model.D,
        platforms=arguments.platforms.split(","),
    )
    manifest = export.load(path).manifest
    form, size = manifest["form"], path.stat().st_size
    shape = ", ".join(map(str, ["n", *form["signals"]] if form else manifest["signals"]))
    which = "complex signals" if form and form["complex"] else "signals"
    text = (
        f"{path}: {manifest['model']} for {which} ({shape}) in {manifest['dtype']}, "
        f"{size / 1e6:.2g} MB, for {', '.join(manifest['platforms'])}"
    )
    show(arguments.json, {"path": str(path), "bytes": size, **manifest}, text)
