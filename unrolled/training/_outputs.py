"""The objective of any model of flax.nnx: its outputs are its code, its variables its params."""

from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled._checks import Array
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.training._objective import Objective
from unrolled.training._records import Trained


class Variables(NamedTuple):
    """The variables of a model, as nested dicts."""

    weights: Any  # nnx.Params
    others: Any  # statistics of batches, streams of random numbers


class Outputs(Objective):
    """The mean loss of the outputs of a model."""

    def start(self) -> tuple[Trained, Trained]:
        """What is trained, and None for what is not."""
        variables = Trained(_variables(self.model), None)
        return variables, jax.tree.map(lambda leaf: None, variables)

    @cached_property
    def graphs(self) -> tuple[Any, Any]:
        """Of the model in training and in an evaluation."""
        from flax import nnx

        model = nnx.clone(self.model)
        model.train()
        learning = nnx.graphdef(model)
        model.eval()
        return learning, nnx.graphdef(model)

    def made(self, variables: Variables, evaluated: bool = True) -> Any:
        """The model with these variables."""
        from flax import nnx

        return nnx.merge(self.graphs[evaluated], *map(nnx.State, variables))

    def codes(
        self, params: Variables, D: None, Y: Array, axis: int | None, every: bool = False
    ) -> Any:
        return _as_codes(self.made(params)(Y))

    def free(self, trained: Trained) -> tuple[Trained, Any]:
        return Trained(trained.params.weights, None), trained.params.others

    def join(self, free: Trained, others: Any) -> Trained:
        return Trained(Variables(free.params, others), None)

    def learned(
        self, free: Trained, others: Any, fixed: Trained, batch: tuple, at: Any
    ) -> tuple[Array, Any]:
        model = self.made(Variables(free.params, others), evaluated=False)
        Y, X = batch
        return self.of(_as_codes(model(Y)), X, None, Y), _variables(model).others

    def admissible(self, free: Trained) -> Trained:
        """The leaves after an update: the D that an `unrolled.nnx.Module` learns has unit atoms."""
        from flax import nnx

        model = self.made(_variables(self.model)._replace(weights=free.params))
        for _, module in nnx.iter_modules(model):
            if isinstance(getattr(module, "model", None), Layer | Network):
                module.normalize()  # type: ignore[attr-defined]
        return Trained(_variables(model).weights, None)

    def whole(self, trained: Trained, fixed: Trained) -> Trained:
        from flax import nnx

        return Trained(nnx.state(self.made(trained.params)), None)

    def of_others(self, trained: Trained, fixed: Trained, batch: tuple) -> tuple[float, float]:
        """None: outputs that are zero are no measure for a model of any kind."""
        return np.inf, np.nan


def is_nnx(model: Any) -> bool:
    """Whether it is a model of flax.nnx."""
    from flax import nnx

    return isinstance(model, nnx.Module)


def _variables(model: Any) -> Variables:
    from flax import nnx

    states = nnx.state(model, nnx.Param, nnx.Not(nnx.Param))
    return Variables(*map(nnx.to_pure_dict, states))


def _as_codes(outputs: Any) -> Any:
    return outputs if isinstance(outputs, tuple) else outputs[None]
