"""What computes the codes of signals: saved weights, or a pursuit by its name."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import problems, training
from unrolled._numbers import norm
from unrolled._pursuits import CHAIN, PURSUITS, pursue
from unrolled.commands._inputs import read_dictionary
from unrolled.dictionaries import Dictionary, as_chain
from unrolled.layers import Layer
from unrolled.networks import Network

CHUNK = 1000  # signals at a time: fastest while their codes stay in the cache


class Coder(NamedTuple):
    """What computes codes."""

    # of signals; and the rows that miss their aim
    codes: Callable[[np.ndarray], tuple[Sequence[ArrayLike], np.ndarray]]
    Ds: tuple[Dictionary, ...]
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


def residual_norms(
    Ds: Sequence[Dictionary], Y: ArrayLike, codes: Sequence[ArrayLike]
) -> np.ndarray:
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
