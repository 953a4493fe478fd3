"""What computes the codes of signals: saved weights, or a pursuit by its name and options."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import problems, training
from unrolled._checks import ArrayLike
from unrolled._numbers import norm
from unrolled._pursuits import CHAIN, PURSUITS, pursue
from unrolled.commands._inputs import read_dictionary
from unrolled.dictionaries import Operator, as_chain
from unrolled.layers import Layer
from unrolled.networks import Network


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them; the name is that of the values in messages."""
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
CHUNK = 1000  # signals at a time: fastest while their codes stay in the cache


class Coder(NamedTuple):
    """What computes codes."""

    # of signals; and the rows that miss their aim
    codes: Callable[[np.ndarray], tuple[Sequence[ArrayLike], np.ndarray]]
    Ds: tuple[Operator, ...]
    chained: bool
    of: dict[str, Any]  # the same for equal codes of equal signals


def coder_of_weights(weights: Path, dictionaries: list[Path]) -> Coder:
    """The layer or the chain of a weights file."""
    model, params, D = _restored_model(weights, dictionaries)
    chained = isinstance(model, Network)

    def codes(rows):
        X = apply_in_chunks(model.apply, params, D, jnp.asarray(rows))
        return X if chained else (X,), np.zeros(0, int)

    of = {"model": repr(model), "digest": training.digest((params, D))}
    return Coder(codes, D if chained else (D,), chained, of)


def coder_of_pursuit(name: str, dictionaries: list[Path], options: dict[str, Any]) -> Coder:
    """A pursuit, whose options were checked."""
    Ds = as_chain([read_dictionary(path) for path in dictionaries], "encode")

    def codes(rows):
        coded = pursue(name, Ds, jnp.asarray(rows), options)
        return coded.codes, coded.rows

    of = {"method": name, "options": options, "digest": training.digest(Ds)}
    return Coder(codes, Ds, PURSUITS[name].takes == CHAIN, of)


def residual_norms(Ds: Sequence[Operator], Y: ArrayLike, codes: Sequence[ArrayLike]) -> np.ndarray:
    """norm(y) and then norm(y - D_1 ... D_j x_j) for every layer, (J + 1, signals), float64."""
    Y = jnp.asarray(Y)
    norms = [norm(Y, 1)]
    for j, X in enumerate(codes, start=1):
        signals = jnp.asarray(X)
        for D in reversed(Ds[:j]):
            signals = problems.synthesize(D, signals)
        norms.append(norm(Y - signals, 1))
    return np.asarray(norms, float)


def relative_residuals(norms: np.ndarray) -> np.ndarray:
    """norm(Y - D_1 ... D_j X_j) / norm(Y) of every layer, (J,), from those of the signals."""
    size, *residuals = np.linalg.norm(norms, axis=1)
    return np.asarray(residuals) / (size or 1)


def _restored_model(weights: Path, dictionaries: list[Path]) -> tuple[Layer | Network, Any, Any]:
    """The layer or the chain of a weights file, its params and the dictionary or dictionaries."""
    saved = restore_model(weights, dictionaries)
    model: Any = saved.layer
    try:
        model.check(saved.params, saved.D)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{weights}: its weights do not fit its layer: {error}") from error
    return model, saved.params, saved.D


def restore_model(
    weights: Path, dictionaries: list[Path], advice: str = "--dictionary"
) -> training.Restored:
    """What `training.restore` returns, with a model and the dictionary or dictionaries.

    Raises:
        ValueError: weights without a layer, or without a dictionary where none is given; several
            dictionaries for one layer.
    """
    saved = training.restore(weights)
    if saved.layer is None:
        raise ValueError(f"{weights}: it names no layer, as the files of `unrolled train` do")
    if dictionaries:
        Ds: Any = tuple(map(read_dictionary, dictionaries))
        if isinstance(saved.layer, Layer):
            if len(Ds) > 1:
                raise ValueError(f"{weights}: its layer has one dictionary, got {len(Ds)}")
            Ds = Ds[0]
        saved = training.restore(weights, D=Ds)
        return saved._replace(D=Ds)
    if saved.D is None:
        raise ValueError(f"{weights}: has no dictionary; try {advice}")
    return saved


@partial(jax.jit, static_argnums=0)
def apply_in_chunks(apply: Callable, params: Any, D: Any, Y: jax.Array) -> Any:
    """The codes (signals, d) of many signals (signals, m); of a network a tuple of them."""
    return jax.lax.map(lambda y: apply(params, D, y), Y, batch_size=CHUNK)


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
