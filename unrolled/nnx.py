"""Layers and networks as modules of flax.nnx, beside nnx.Linear and under nnx.Optimizer. flax is
imported on first use.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from unrolled.dictionaries import as_dictionary
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.training import merge, split, with_unit_atoms


def __getattr__(name: str):
    if name != "Module":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _module_class()


@functools.cache
def _module_class():
    """The class, made once: a module's class is part of what jit compares."""
    from flax import nnx

    class Module(nnx.Module):
        """A layer or a network with its params and its dictionary: `module(y)` is
        `model.apply(params, D, y)`.

        What `training.fit` trains is an nnx.Param, leaf by leaf; the rest (leaves inside a
        `layers.Fixed`, a D that is not learned, integers) is an nnx.Variable, which
        `nnx.Optimizer(..., wrt=nnx.Param)` leaves alone. As in `fit`, fields named `theta` act as
        abs(theta), so that thresholds stay non-negative. `fit` also keeps a learned D at unit
        atoms: call `normalize()` after each update for the same.

        Args:
            model: a layer, or a network with tuples for `params` and `D`.
            params: from `init`, `analytic` or training.
            D: the dictionary, plain or structured.
            learn_dictionary: make D trainable too.

        Raises:
            TypeError: not a layer or network, or no floating-point leaf to train.
            ImportError: flax is not installed (when the name `Module` is looked up).
        """

        def __init__(
            self, model: Layer | Network, params: Any, D: Any, *, learn_dictionary: bool = False
        ):
            if not isinstance(model, Layer | Network):
                raise TypeError(
                    f"nnx.Module: expected a Layer or a Network, got {type(model).__name__}"
                )
            several = isinstance(D, tuple | list)
            D = (
                tuple(as_dictionary(Dj, "nnx.Module") for Dj in D)
                if several
                else as_dictionary(D, "nnx.Module")
            )
            trained, fixed = split(params, D, learn_dictionary, None, "nnx.Module")
            self.model = model
            self.trained = nnx.data(jax.tree.map(nnx.Param, trained))
            self.fixed = nnx.data(jax.tree.map(lambda leaf: nnx.Variable(jnp.asarray(leaf)), fixed))

        def __call__(self, y):
            """The code of one signal (m,), or of each in a batch (..., m); of a network a tuple,
            one per block.
            """
            params, D = self._whole()
            apply = functools.partial(self.model.apply, params, D)
            for _ in range(jnp.ndim(y) - 1):
                apply = jax.vmap(apply)
            return apply(y)

        def params(self):
            """The params as pure data, thresholds non-negative: for `model.apply`, `compare`,
            `realize`.
            """
            return self._whole()[0]

        def dictionary(self):
            """The dictionary as pure data; a tuple for a network."""
            return self._whole()[1]

        def normalize(self) -> None:
            """Scale the atoms of a learned D to norm 1; one that is not learned is left as it is."""
            if not jax.tree.leaves(self.trained.D, is_leaf=_is_variable):
                return
            new = with_unit_atoms(_values(self.trained.D))
            for variable, value in zip(
                jax.tree.leaves(self.trained.D, is_leaf=_is_variable), jax.tree.leaves(new)
            ):
                variable[...] = value

        def _whole(self):
            return merge(_values(self.trained), _values(self.fixed))

    def _is_variable(leaf) -> bool:
        return isinstance(leaf, nnx.Variable)

    def _values(tree):
        return jax.tree.map(lambda variable: variable[...], tree, is_leaf=_is_variable)

    return Module
