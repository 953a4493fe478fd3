"""What theory certifies for the params of a method, for the class of codes of a sample."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unrolled import _checks, theory
from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.compare._comparison import Guarantee
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network, dsc
from unrolled.problems import synthesize

Class = tuple[Any, Any, Any]  # (sparsity, bound, noise); None where the sample decides
ClassOf = Callable[[int, Dictionary], tuple[int, float, float]]


def guarantees(
    model: Layer | Network,
    params: tuple[Unrolled, ...],
    Ds: tuple[Dictionary, ...],
    class_of: ClassOf,
) -> list[Guarantee | None]:
    """The guarantee of every layer, from the first to the last that theory certifies.

    Args:
        model: a layer, or a network of J layers.
        params, Ds: J of each.
        class_of: the sparsity, bound and noise of layer j with a dictionary.
    """
    layers = (model,) if isinstance(model, Layer) else model.layers
    certified: list[Layer] = []
    for layer, p in zip(layers, params):
        if not _has_certificate(layer, p):
            break
        certified.append(layer)
    if not certified:
        return [None] * len(params)
    J = len(certified)
    numbers = [class_of(j, D) for j, D in enumerate(Ds[:J])]
    sparsity, bound, noise = zip(*numbers)
    certificates = theory.certify(
        dsc(tuple(certified)), params[:J], Ds[:J], sparsity=sparsity, bound=bound, noise=noise
    )
    proved = [Guarantee(*of, certificate) for of, certificate in zip(numbers, certificates)]
    return [*proved, *[None] * (len(params) - J)]


def _has_certificate(layer: Any, params: Unrolled) -> bool:
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params))
    return finite and layer.is_coupled and layer.activation == relu


def classes_of(
    Ds: tuple[Dictionary, ...], pairs: list[tuple[Array, Array]], classes: list[Class]
) -> ClassOf:
    """The class of every layer of a sample; that with its own dictionary is found once.

    Args:
        Ds, pairs: J dictionaries, and (signals, codes), as in `check_batch`.
        classes: J of them.
    """

    @functools.cache
    def own(j: int) -> tuple[int, float, float]:
        return _class_of(Ds[j], *pairs[j], classes[j])

    return lambda j, D: own(j) if D is Ds[j] else _class_of(D, *pairs[j], classes[j])


def _class_of(D: Dictionary, Y: Array, X: Array, asked: Class) -> tuple[int, float, float]:
    """The least class that holds the sample, where it is not given."""
    s, B, delta = asked
    codes = np.asarray(X)
    s = int(np.count_nonzero(codes, axis=1).max()) if s is None else s
    B = float(np.abs(codes).max()) if B is None else _checks.as_number(B, "bound", "compare")
    if delta is None:
        with jax.enable_x64(True):  # the rounding of the signals counts as noise
            D, Y, X = _checks.cast((D, Y, X), np.float64)
            delta = np.abs(np.asarray(Y) - np.asarray(synthesize(D, X))).sum(1).max()
    return s, B, _checks.as_number(delta, "noise", "compare")
