"""Layers and networks as modules of flax.nnx; `Module` is the only public name.

A module nests in other modules like nnx.Linear and trains under nnx.Optimizer. flax is imported on
first use of `Module`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.dictionaries import Dictionary, as_chain, as_dictionary
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network
from unrolled.training import Trained, merge, split, with_unit_atoms


def __dir__() -> list[str]:
    return ["Module"]  # made on first use


def __getattr__(name: str) -> type:
    if name != "Module":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _module_class()


@functools.cache
def _module_class() -> type:
    """The class, made once: jit retraces if the class of a module changes."""
    from flax import nnx

    class Module(nnx.Module):
        """A layer or network with its params and D: `module(y)` is `model.apply(params, D, y)`.

        Each array that `training.fit` would train is an nnx.Param. The others (inside a
        `layers.Fixed`, a D that is not learned, integers) are nnx.Variables, which
        `nnx.Optimizer(..., wrt=nnx.Param)` does not change. As in `fit`, thresholds act as
        abs(theta), so that they stay non-negative. `fit` also keeps the atoms of a learned D at
        norm 1; for the same effect call `normalize()` after each update.

        Args:
            model: a layer or a network.
            params: of the model, from `init`, `analytic` or training; a tuple for a network.
            D: (m, d), plain or structured; a tuple for a network.
            learn_dictionary: whether D is trained too.

        Raises:
            TypeError: model is neither a Layer nor a Network, or params have no floating-point leaf
                to train.
            ValueError: D is not a dictionary of shape (m, d).
            ImportError: flax is not installed; raised when the name `Module` is looked up.

        Example:
            >>> from flax import nnx
            >>> D, layer = ur.dictionaries.identity_hadamard(4), ur.lista_cp(2)
            >>> module = ur.nnx.Module(layer, layer.init(jax.random.key(0), D), D)
            >>> module(jnp.ones((3, 4))).shape  # a batch of 3 signals
            (3, 8)
            >>> [leaf.shape for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))]  # W, theta
            [(4, 8), (2,)]
        """

        def __init__(
            self,
            model: Layer | Network,
            params: Unrolled | tuple[Unrolled, ...],
            D: Dictionary | tuple[Dictionary, ...],
            *,
            learn_dictionary: bool = False,
        ):
            if not isinstance(model, Layer | Network):
                raise TypeError(
                    f"nnx.Module: expected a Layer or a Network, got {type(model).__name__}"
                )
            if isinstance(D, tuple | list):
                D = as_chain(D, "nnx.Module")
            else:
                D = as_dictionary(D, "nnx.Module")
            trained, fixed = split(params, D, learn_dictionary=learn_dictionary, where="nnx.Module")
            self.model = model
            self.trained = nnx.data(jax.tree.map(nnx.Param, trained))
            self.fixed = nnx.data(jax.tree.map(lambda leaf: nnx.Variable(jnp.asarray(leaf)), fixed))

        def __call__(self, y: Array) -> Array | tuple[Array, ...]:
            """The codes of one signal or of a batch.

            Args:
                y: (..., m).

            Returns:
                (..., d); for a network a tuple with one such array for each block.
            """
            params, D = self._whole()
            apply = functools.partial(self.model.apply, params, D)
            for _ in range(jnp.ndim(y) - 1):
                apply = jax.vmap(apply)
            return apply(y)

        def params(self) -> Unrolled | tuple[Unrolled, ...]:
            """The params as pure data with non-negative thresholds, as for `model.apply`."""
            return self._whole()[0]

        def dictionary(self) -> Dictionary | tuple[Dictionary, ...]:
            """The dictionary as pure data; a tuple for a network."""
            return self._whole()[1]

        def normalize(self) -> None:
            """Scale the atoms of a learned D to norm 1; a D that is not learned stays as it is."""
            variables = jax.tree.leaves(self.trained.D, is_leaf=_is_variable)
            if variables:
                values = jax.tree.leaves(with_unit_atoms(_values(self.trained.D)))
                for variable, value in zip(variables, values):
                    variable[...] = value

        def _whole(self) -> Trained:
            """The params and D as pure data."""
            return merge(_values(self.trained), _values(self.fixed))

    def _is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    def _values(tree: Any) -> Any:
        return jax.tree.map(lambda variable: variable[...], tree, is_leaf=_is_variable)

    return Module
