"""`unrolled export`: trained weights as a program in one file, which runs without this library."""

import argparse
from pathlib import Path
from typing import Any

from unrolled import export
from unrolled.app.commands._console import add_command, show
from unrolled.app.commands._inputs import restore_model, weights_of
from unrolled.app.commands._report import check_not_read

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "weights": dict(type=Path, metavar="WEIGHTS", help="a file, or a run folder"),
    "--output": dict(type=Path, required=True, metavar="FILE", help="file to write"),
    "--dictionary": dict(
        type=Path,
        action="append",
        metavar="FILE",
        help="D, where the weights were saved without it, as .npy or .npz (entry D); once for each "
        "layer of a chain",
    ),
    "--platforms": dict(
        default=",".join(export.PLATFORMS),
        metavar="NAMES",
        help="comma-separated platforms of the program (default %(default)s)",
    ),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled export`."""
    return add_command(
        commands,
        "export",
        run,
        _ARGUMENTS,
        help="write trained weights as a program that runs without this library",
        description="Write the layer or network of a file of weights, with its dictionary, as one "
        "program of StableHLO for any number of signals. It runs where jax and flatbuffers are "
        "installed.",
        epilog="example:\n  unrolled export weights.npz --output net.stablehlo",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the file, and print what it holds."""
    weights, given = weights_of(arguments.weights), arguments.dictionary or []
    check_not_read([arguments.output], [weights, *given])
    model = restore_model(weights, given)
    path = export.save(
        arguments.output,
        model.layer,
        model.params,
        model.D,
        platforms=arguments.platforms.split(","),
    )
    manifest = export.load(path).manifest
    m, size = manifest["signals"][1], path.stat().st_size
    text = (
        f"{path}: {manifest['model']} for signals (n, {m}) in {manifest['dtype']}, "
        f"{size / 1e6:.2g} MB, for {', '.join(manifest['platforms'])}"
    )
    show(arguments.json, {"path": str(path), "bytes": size, **manifest}, text)
