"""`unrolled sae`: the codes of a sparse autoencoder, next to better codes for its decoder."""

import argparse
from pathlib import Path
from typing import Any

from unrolled import sae
from unrolled.app.commands._console import add_command, note_output, show
from unrolled.app.commands._inputs import open_signals
from unrolled.app.commands._report import check_figure, check_not_read, write_figure

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "weights": dict(type=Path, metavar="SAE"),
    "data": dict(type=Path, metavar="ACTIVATIONS"),
    "--kind": dict(choices=sae.KINDS),
    "--k": dict(type=int),
    "--depth": dict(type=int, default=4),
    "--steps": dict(type=int, default=500),
    "--figure": dict(type=Path, metavar="PNG"),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled sae`."""
    return add_command(commands, "sae", run, _ARGUMENTS)


def run(arguments: argparse.Namespace) -> None:
    """Compare a sparse autoencoder with better codes for its decoder.

    Code held-out activations by the encoder, by its unrolled form, and by exact solvers for the
    same decoder, at equal numbers of nonzeros. Print the unexplained variance and the time of each.

    Flags:
        weights: a folder of SAELens, dictionary_learning, sparsify, Gemma Scope or Llama Scope, or
            a file of weights (.safetensors, .npz, or .pt if torch is installed)
        data: activations of shape (n, m), as .npy or .npz (entry Y); float16 is possible
        --kind: the kind of the encoder (default: as the configuration says)
        --k: number of nonzeros of a topk code (default: likewise)
        --depth: steps of the unrolled encoder (default 4)
        --steps: training steps of the unrolled encoder (default 500)
        --figure: save a picture of the errors and times

    Examples:
        unrolled sae layer_8/ activations.npy
        unrolled sae ae.safetensors activations.npy --kind topk --k 32 --figure codes.png
    """
    if arguments.figure is not None:
        check_figure(arguments.figure)
        check_not_read([arguments.figure], [arguments.weights, arguments.data])
    loaded = sae.load(arguments.weights, kind=arguments.kind, k=arguments.k)
    A = open_signals(arguments.data)
    note_output("coding activations by all methods")
    report = sae.report(loaded, A, depth=arguments.depth, steps=arguments.steps)
    fields = ("lam", "amortisation", "certified", "dead", "twins", "coherence", "rows")
    data = {name: getattr(report, name) for name in fields}
    show(arguments.json, data, report.table())
    if arguments.figure is not None:
        write_figure(arguments.figure, report.plot())
