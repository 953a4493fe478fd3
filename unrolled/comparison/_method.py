"""The methods of a comparison: a layer with params, or codes, and where they come from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.results import Result
from unrolled._base.text import an
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network
from unrolled.training import Fit, trainable

__all__ = ["Method"]


ORIGINS = ("untrained", "analytic", "calibrated", "learned", "exact")
CLASSICAL = ("ista", "fista")  # their names need no word for untrained


class About(Result):
    """What a comparison says of a method: its family, and where its params come from."""

    title: str  # the name of the family with its options, such as "ALISTA-SS"
    family: str  # the family of the layer; of a network, its different families; "" for codes
    origin: str | None = None  # one of `ORIGINS`; None if it is not known
    sparsity: int | None = None  # s, for which analytic params are made
    bound: float | None = None  # B, for which analytic params are made
    sample: int | None = None  # number of signals from which the params were chosen or learned
    steps: int | None = None  # number of training steps
    # How many numbers were learned, or calibrated (one per step and field); 0 if theory or `init`
    # sets them all.
    numbers: int | None = None

    @property
    def variant(self) -> str:
        """The origin as a word of a name; "" for ISTA and FISTA as they are, and if unknown."""
        classical = self.origin == "untrained" and self.family in CLASSICAL
        return "" if classical or self.origin is None else self.origin

    @property
    def name(self) -> str:
        """The title, the origin, and s of analytic params."""
        parts = [self.title, self.variant]
        parts += [f"s = {self.sparsity}"] if self.sparsity is not None else []
        return ", ".join(filter(None, parts))

    @property
    def knows(self) -> str:
        """The information that the method uses."""
        if self.numbers is None:
            return ""
        if self.origin not in ("calibrated", "learned"):
            return "the dictionary, lam" if self.family in CLASSICAL else "the dictionary"
        sample = f"{self.sample:,} signals" if self.sample else "a sample"
        how = "no gradients" if self.origin == "calibrated" else f"{self.steps or 0:,} steps"
        return f"{sample}, {how}"


class Method(Result):
    """A method of `compare`: a layer or a network with params, and the origin of the params.

    `compare` also takes a pair (layer, params), which is such a record without an origin, and a
    result of `fit`, which is a record with the origin "learned".

    Args:
        layer: a layer or a network; None if `params` are codes of another solver.
        params: the params, or the codes.
        origin: "untrained", "analytic" (from theory, without data), "calibrated" (thresholds and
            step sizes from a sample, without gradients), "learned" or "exact"; None if unknown.
        title: the name of the family with its options, such as "ALISTA-SS"; "" for the family of
            the layer.
        sparsity, bound: s and B of the class of codes that analytic params are made for.
        sample: number of signals from which the params were chosen or learned.
        steps: number of training steps.
        D: the dictionary of the method, if this is not the dictionary of the comparison.
        seconds: duration of the training, by the clock.

    Raises:
        ValueError: the origin is unknown.

    Example:
        >>> layer, D = ur.alista(4), ur.dictionaries.identity_hadamard(4)
        >>> params = ur.analytic.alista(D, depth=4, sparsity=1, bound=1.0)
        >>> method = ur.comparison.Method(layer, params, origin="analytic", sparsity=1)
        >>> method.name
        'alista, analytic, s = 1'
    """

    layer: Any
    params: Any
    _: dataclasses.KW_ONLY
    origin: str | None = None
    title: str = ""
    sparsity: int | None = None
    bound: float | None = None
    sample: int | None = None
    steps: int | None = None
    D: Any = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.origin, str):  # a tree of shapes, for example, has other leaves
            checks.one_of(self.origin, ORIGINS, "origin", "Method")

    @property
    def chained(self) -> bool:
        """Whether the method is a network, or the codes of all layers of a chain."""
        return isinstance(self.params if self.layer is None else self.layer, tuple | Network)

    @property
    def about(self) -> About:
        """What the record says without the params."""
        return self._about(self._numbers())

    @property
    def name(self) -> str:
        """The name that `compare` shows if you use it as the key: "ALISTA-SS, analytic, s = 2"."""
        return self._about(None).name

    def _about(self, numbers: int | None) -> About:
        families = (getattr(layer, "family", "") for layer in self._layers)
        family = " and ".join(dict.fromkeys(families))
        given = self.origin, self.sparsity, self.bound, self.sample, self.steps
        return About(self.title or family, family, *given, numbers)

    def _numbers(self) -> int | None:
        if self.origin not in ("calibrated", "learned"):
            return None if self.origin is None else 0
        few = self.origin == "calibrated"
        return sum(_chosen(of, p, few) for of, p in zip(self._layers, self.each(self.params)))

    @property
    def _layers(self) -> tuple[Any, ...]:
        return tuple(getattr(self.layer, "layers", (self.layer,)))

    def each(self, tree: Any) -> tuple[Any, ...]:
        """Params, dictionaries or codes of every layer."""
        return tuple(tree) if self.chained else (tree,)


def named(methods: Any) -> dict[str, Method]:
    """Methods by the names that their fields make."""
    return {method.name: method for method in methods}


def _chosen(layer: Layer, params: Unrolled, few: bool) -> int:
    """The count of trainable numbers; if `few`, of those that a step has one of."""
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(trainable(params)))
    sizes = [int(np.size(leaf)) for leaf, trained in leaves if trained]
    return sum(size for size in sizes if not few or size <= layer.depth)


def methods_of(given: Mapping[str, Any], reference: str | None) -> dict[str, Method]:
    """The checked methods by name.

    Raises:
        TypeError: `given` is not a dict of methods by name, or has both layers and networks.
        ValueError: there are no methods, or the reference is not one of them.
    """
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError('compare: methods must be a dict by name, as in {"ISTA": (layer, params)}')
    if not given:
        raise ValueError("compare: expected at least one method, got none")
    if reference is not None:
        checks.one_of(reference, given, "reference", "compare")
    methods = {name: method_of(name, value) for name, value in given.items()}
    kinds = {method.chained: name for name, method in methods.items()}
    if len(kinds) > 1:
        raise TypeError(
            f"compare: {kinds[False]!r} is a layer and {kinds[True]!r} a network, which have "
            "codes of different dictionaries; compare them separately, or try dsc([layer])"
        )
    return methods


def method_of(name: str, value: Any) -> Method:
    """The record of a method in any form that `compare` takes.

    Raises:
        TypeError: the value is not a method.
    """
    if isinstance(value, Method):
        codes = value.params if isinstance(value.params, tuple) else (value.params,)
        if isinstance(value.layer, Layer | Network) or (value.layer is None and _are_arrays(codes)):
            return value
        value = (value.layer, value.params)
    if isinstance(value, Fit):
        records = getattr(value.history, "records", ())
        steps = records[-1].step if records else None
        return Method(
            value.model,
            value.best,
            origin="learned",
            steps=steps,
            D=value.D,
            seconds=value.seconds or None,
        )
    if isinstance(value, jax.Array | np.ndarray) or (type(value) is tuple and _are_arrays(value)):
        return Method(None, value)  # a record such as `Pursuit` is no plain tuple
    if not (isinstance(value, tuple | list) and len(value) == 2):
        what = an(type(value).__name__)
    elif isinstance(value[0], type):
        what = f"a pair that begins with the class {value[0].__name__}"
    elif not isinstance(value[0], Layer | Network):
        what = f"a pair that begins with {an(type(value[0]).__name__)}"
    else:
        return Method(value[0], value[1])
    hint = "; try its .x" if hasattr(value, "x") else ""
    raise TypeError(
        f"compare: {name!r} is {what}; expected (layer, params), (network, params), a Method, the "
        f"result of `fit`, or codes{hint}"
    )


def _are_arrays(values: tuple[Any, ...]) -> bool:
    return bool(values) and all(isinstance(X, jax.Array | np.ndarray) for X in values)
