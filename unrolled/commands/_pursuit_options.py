"""The options of pursuits on the command line."""

import argparse
from typing import Any

from unrolled._pursuits import PURSUITS


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    return tuple(float(part) for part in text.split(","))


_OPTIONS: dict[str, dict[str, Any]] = {
    "sparsity": dict(type=int, help="largest number of atoms of a code"),
    "lam": dict(type=float, help="weight of the LASSO"),
    "ratio": dict(
        type=float,
        help="lam as a fraction of lam_max, the smallest lam at which a code is zero (instead of "
        "--lam)",
    ),
    "p": dict(type=float, help="power of the penalty, in (0, 1], for half_quadratic"),
    "l2": dict(type=float, help="weight of the elastic net"),
    "nonnegative": dict(
        action="store_const", const=True, help="compute codes without negative entries"
    ),
    "eps": dict(type=float, help="largest norm of the residual, for bpdn"),
    "theta": dict(type=float, help="threshold, in units of the code"),
    "lams": dict(type=numbers, metavar="A,B,...", help="weights, one for each layer of a chain"),
    "thetas": dict(type=numbers, metavar="A,B,...", help="thresholds, one for each layer"),
    "zeros": dict(type=int, help="zeros of every code between the layers, for holistic"),
    "step": dict(
        type=float, help="step size as a fraction of the largest, for ml_ista and ml_fista"
    ),
    "tol": dict(type=float, help="accuracy: duality gap, or for omp the norm of the residual"),
    "max_steps": dict(type=int, help="largest number of steps"),
}
OPTIONS = tuple(_OPTIONS)


def names() -> tuple[str, ...]:
    """The pursuits of the command line.

    Those with local norms are for convolutional dictionaries, which no file holds.
    """
    return tuple(name for name in PURSUITS if not name.startswith("local_"))


def add_options(parser: argparse.ArgumentParser, names: tuple[str, ...] = OPTIONS) -> None:
    """Add options of pursuits to the parser of a command."""
    group = parser.add_argument_group("options of pursuits")
    for name in names:
        group.add_argument(f"--{name.replace('_', '-')}", **_OPTIONS[name])


def given_options(arguments: argparse.Namespace, names: tuple[str, ...] = OPTIONS) -> dict:
    """The options that were given, by name."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
