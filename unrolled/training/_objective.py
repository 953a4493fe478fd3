"""What training minimises, as functions of the leaves that it trains."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._beside import codes_of_ista
from unrolled._checks import Array
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.training._records import Loss, Trained
from unrolled.training._split import merge, with_unit_atoms


@dataclass(frozen=True, eq=False)
class Objective:
    """The mean loss of the codes of a layer or a network.

    Another kind of model is a subclass, which says what its codes are and which of its leaves have
    a gradient.
    """

    where: str
    model: Any
    loss: Loss
    lam: Any = None  # of the ISTA beside which a layer is judged; None for none
    staged: bool = False  # whether the loss sees the code of its stage, a traced `at`, alone

    def codes(self, params: Any, D: Any, Y: Array, axis: int | None, every: bool = False) -> Any:
        """(K, batch, d) for a layer, a tuple of blocks for a network.

        (1, batch, d) where the loss sees the last code alone, unless `every` code is asked for: a
        gradient through all codes stores them. `axis` is 0 where every signal has a dictionary of
        its own, else None.
        """
        if not isinstance(self.model, Layer):
            return jax.vmap(self.model.apply, (None, axis, 0))(params, D, Y)
        if getattr(self.loss, "of_last", False) and not (self.staged or every):
            return jax.vmap(self.model.apply, (None, axis, 0))(params, D, Y)[None]
        return jax.vmap(self.model.iterates, (None, axis, 0), out_axes=1)(params, D, Y)

    def free(self, trained: Trained) -> tuple[Any, Any]:
        """The leaves that have a gradient, and the others that a step may change."""
        return trained, None

    def join(self, free: Any, others: Any) -> Trained:
        """What `free` took apart."""
        return free

    def learned(
        self, free: Any, others: Any, fixed: Trained, batch: tuple, at: Any
    ) -> tuple[Array, Any]:
        """The loss in a step of training, and the others after it."""
        return self.judged(free, fixed, batch, at)[0], others

    def admissible(self, free: Any, fixed: Trained) -> Any:
        """The leaves after an update: a learned D has unit atoms."""
        if not jax.tree.leaves(free.D):
            return free
        unit = with_unit_atoms(merge(Trained(None, free.D), Trained(None, fixed.D)).D)
        return free._replace(D=_trained_of(unit, free.D))

    def whole(self, trained: Trained, fixed: Trained) -> Trained:
        """The params and D of a result."""
        return merge(trained, fixed)

    def judged(
        self, trained: Trained, fixed: Trained, batch: tuple, at: Any, every: bool = False
    ) -> tuple[Array, Any]:
        """The loss in an evaluation, and the codes that it sees, or all."""
        params, D = merge(trained, fixed)
        Y, X, *own = batch
        D, axis = (own[0], 0) if own else (D, None)
        codes = self.codes(params, D, Y, axis, every)
        return self.of(codes, X, D, Y, at), codes

    def evaluated(self, trained: Trained, fixed: Trained, batch: tuple, at: Any) -> Array:
        """The loss in an evaluation."""
        return self.judged(trained, fixed, batch, at)[0]

    def of_others(self, trained: Trained, fixed: Trained, batch: tuple) -> tuple[Any, Any]:
        """The loss of zero codes, and of ISTA at the same depth."""
        D = merge(trained, fixed).D
        Y, X, *own = batch
        zeros = jax.tree.map(jnp.zeros_like, self.judged(trained, fixed, batch, -1)[1])
        zero = self.of(zeros, X, own[0] if own else D, Y)
        if self.lam is None or own or not isinstance(self.model, Layer) or not self.model.depth:
            return zero, jnp.nan
        ista = codes_of_ista(D, self.lam, self.model.depth, Y, self.where)
        return zero, self.of(ista, X, D, Y)

    def of(self, codes: Any, X: Any, D: Any, Y: Array, at: Any = -1) -> Any:
        """The loss of codes; TypeError unless it is one floating-point number."""
        loss = self.loss(codes[at][None] if self.staged else codes, X, D, Y)
        if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise TypeError(
                f"{self.where}: the loss is {jnp.result_type(loss)} of shape {jnp.shape(loss)}; "
                "expected one floating-point number, try jnp.mean"
            )
        return loss


def _trained_of(D: Any, trained: Any) -> Any:
    """The leaves of D that are trained, None for the others."""
    return jax.tree.map(
        lambda t, leaf: None if t is None else leaf, trained, D, is_leaf=lambda leaf: leaf is None
    )


def check_model(model: Any, where: str) -> None:
    """TypeError unless it is a layer or a network."""
    if not isinstance(model, Layer | Network):
        raise TypeError(f"{where}: expected a Layer or a Network, got {type(model).__name__}")


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

    def admissible(self, free: Trained, fixed: Trained) -> Trained:
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
