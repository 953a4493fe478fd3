"""Layers and networks as modules of flax.nnx, and the training of any nnx model.

A module nests in other modules like nnx.Linear and trains under nnx.Optimizer, or by `fit`.
"""

from functools import cached_property, partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base.packages import absent

try:
    from flax import nnx
except ImportError as error:
    raise absent("unrolled.nnx", "flax") from error

from unrolled import training
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, checked
from unrolled.dictionaries import Dictionary, Operator
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network
from unrolled.training import Data, Fit, Objective, Run, RunOptions, Signals, Trained

__all__ = ["Module", "fit"]


def __dir__() -> list[str]:
    return __all__


class Module(nnx.Module):
    """A layer or network with its params and D: `module(y)` is `model.apply(params, D, y)`.

    Each array that `training.fit` would train is an nnx.Param. Arrays that stay fixed (inside a
    `layers.Fixed`, a D that is not learned, integers) are nnx.Variables, which `nnx.Optimizer(...,
    wrt=nnx.Param)` does not change. As in `fit`, thresholds act as abs(theta), so that they stay
    non-negative. `fit` also keeps the atoms of a learned D at norm 1; under your own optimizer,
    call `normalize()` after each update.

    Args:
        model: a layer or a network.
        params: params of the model, from `init`, `analytic` or training; a tuple for a network.
        D: the dictionary, of shape (m, d), plain or structured; a tuple for a network.
        learn_dictionary: if True, D is trained too.

    Raises:
        TypeError: model is neither a Layer nor a Network, or params have no floating-point leaf
            to train.
        ValueError: D is not a dictionary of shape (m, d).

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
        D = training.as_dictionaries(D, "nnx.Module")
        trained, fixed = training.split(
            params, D, learn_dictionary=learn_dictionary, where="nnx.Module"
        )
        self.model = model
        self.trained = nnx.data(jax.tree.map(nnx.Param, trained))
        self.fixed = nnx.data(jax.tree.map(lambda leaf: nnx.Variable(jnp.asarray(leaf)), fixed))

    def __call__(self, y: ArrayLike) -> Array | tuple[Array, ...]:
        """The codes of one signal or of a batch.

        Args:
            y: an array of shape (..., m).

        Returns:
            An array of shape (..., d); for a network a tuple with one such array for each block.
        """
        params, D = self._whole()
        apply = partial(self.model.apply, params, D)
        for _ in range(jnp.ndim(y) - 1):
            apply = jax.vmap(apply)
        return apply(y)

    def params(self) -> Unrolled | tuple[Unrolled, ...]:
        """The params as pure data with non-negative thresholds, as `model.apply` takes them."""
        return self._whole()[0]

    def dictionary(self) -> Operator | tuple[Operator, ...]:
        """The dictionary as pure data; a tuple for a network."""
        return self._whole()[1]

    def normalize(self) -> None:
        """Scale the atoms of a learned D to norm 1; a D that is not learned stays unchanged."""
        if self._learns():
            params, D = self._whole()
            self._hold(Trained(_values(self.trained.params), training.with_unit_atoms(D)))

    def _learns(self) -> bool:
        """Whether D is trained too."""
        return bool(jax.tree.leaves(self.trained.D))

    def _hold(self, whole: Trained) -> None:
        """Set the trained leaves to the params and D of `whole`."""

        def take(variable, value):
            if variable is not None:
                variable[...] = value

        jax.tree.map(take, self.trained, whole, is_leaf=lambda v: v is None or _is_variable(v))

    def _whole(self) -> Trained:
        """The params and D as pure data."""
        return training.merge(_values(self.trained), _values(self.fixed))


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _values(tree: Any) -> Any:
    return jax.tree.map(lambda variable: variable[...], tree, is_leaf=_is_variable)


def fit(model: nnx.Module, sample: Any, **options: Any) -> Fit:
    """Train an nnx model in place by `training.fit`, with its guards, checkpoints and warnings.

    `fit` trains the nnx.Params. Training steps also update other variables, such as batch
    statistics; evaluations use `model.eval()`. At the end the model has the variables of the
    smallest validation loss. For a `Module`, the result has the same bits as the result of
    `training.fit` for its layer. If a `Module`, also one inside the model, learns D, `fit` keeps
    the atoms of D at norm 1.

    Args:
        model: a `Module`, or any other nnx.Module that takes a batch Y.
        sample: `sample(key) -> (Y, X)`, the input and the desired output; or arrays, as in
            `training.fit`. If the inputs of a batch do not have shape (n, m), pass a sampler.
        options: options of `training.fit`: `optimizer`, `steps`, `key`, `loss`, `validation`,
            `evaluate_every`, `patience`, `checkpoint`, `callbacks`, `log`, `progress`; for a
            `Module` also `trainable`, `accumulate`, `mesh` and `reduction`. `loss(codes, X, D, Y)`
            gets the output of the model as `codes[-1]`, and None for D.

    Returns:
        Fit, whose `params` and `best` are instances of nnx.State and whose D is None; for a
        `Module` the result of `training.fit`.

    Warns:
        UserWarning: training changes nothing; for a `Module`, the warnings of `training.fit`.

    Raises:
        NonFiniteError: see `training.fit`; the model stays as it was.
        TypeError: model is not an nnx.Module. `training.fit` can raise further errors.

    Example:
        >>> import optax
        >>> from flax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.relu)
        >>> Y = jax.random.normal(jax.random.key(0), (200, 2), jnp.float32)
        >>> X = Y @ jnp.ones((2, 8), jnp.float32)
        >>> trained = ur.nnx.fit(model, (Y, X), optimizer=optax.adam(0.01), steps=100, key=0)
        >>> trained.history.records[-1].validation < trained.history.records[0].validation
        True
    """
    if isinstance(model, Module):
        options["learn_dictionary"] = model._learns()
        result = training.fit(model.model, *model._whole(), sample, **options)
        model._hold(Trained(result.best, result.D))
        return result
    if not isinstance(model, nnx.Module):
        raise TypeError(f"nnx.fit: expected an nnx.Module, got {type(model).__name__}")
    for name, default in _OF_LAYERS.items():
        if options.pop(name, default) is not default:
            raise ValueError(
                f"nnx.fit: {name} is for layers and networks; of an nnx model the nnx.Params are "
                "trained, one batch a step"
            )
    result = _trained(model, sample, where="nnx.fit", **options)
    nnx.update(model, result.best)
    return result


# Options for layers and networks, with the values that mean "not given".
_OF_LAYERS = {"learn_dictionary": False, "trainable": None, "mask": None, "accumulate": 1}


@checked
def _trained(
    model: nnx.Module,
    sample: Any,
    *,
    optimizer: Any,
    steps: int,
    key: Key,
    loss: Any = training.supervised,
    validation: tuple | Any = None,
    where: str,
    **run: Unpack[RunOptions],
) -> Fit:
    """The result of training a model that is not a `Module`, which stays as it is."""
    how = Run.of(where, run)
    outputs = _Outputs(where, model, loss)
    trained, fixed = outputs.start()
    dtype = checks.common_dtype(trained)
    signals = Signals.of(None, sample, key, validation, None, dtype, where)
    data = Data(signals, trained, trained, fixed)
    return training.run_stages(
        outputs, data, optimizer, how, checks.as_index(steps, "steps", where)
    )


class _Variables(NamedTuple):
    """The variables of a model, as nested dicts."""

    weights: Any  # nnx.Params
    others: Any  # statistics of batches, and states of random-number generators


class _Outputs(Objective):
    """The mean loss of the outputs of a model."""

    def start(self) -> tuple[Trained, Trained]:
        """The trained leaves, and None as the fixed leaves."""
        variables = Trained(_variables(self.model), None)
        return variables, jax.tree.map(lambda leaf: None, variables)

    @cached_property
    def graphs(self) -> tuple[Any, Any]:
        """The graph definitions of the model in training and in an evaluation."""
        model = nnx.clone(self.model)
        model.train()
        learning = nnx.graphdef(model)
        model.eval()
        return learning, nnx.graphdef(model)

    def made(self, variables: _Variables, evaluated: bool = True) -> Any:
        """The model with these variables."""
        return nnx.merge(self.graphs[evaluated], *map(nnx.State, variables))

    def codes(
        self, params: _Variables, D: None, Y: Array, axis: int | None, every: bool = False
    ) -> Any:
        return _as_codes(self.made(params)(Y))

    def free(self, trained: Trained) -> tuple[Trained, Any]:
        return Trained(trained.params.weights, None), trained.params.others

    def join(self, free: Trained, others: Any) -> Trained:
        return Trained(_Variables(free.params, others), None)

    def learned(
        self, free: Trained, others: Any, fixed: Trained, batch: tuple, at: Any
    ) -> tuple[Array, Any]:
        model = self.made(_Variables(free.params, others), evaluated=False)
        Y, X = batch
        return self.value(_as_codes(model(Y)), X, None, Y), _variables(model).others

    def admissible(self, free: Trained, fixed: Trained) -> Trained:
        """The leaves after an update: the D that an `unrolled.nnx.Module` learns has unit atoms."""
        model = self.made(_variables(self.model)._replace(weights=free.params))
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Module):
                module.normalize()
        return Trained(_variables(model).weights, None)

    def whole(self, trained: Trained, fixed: Trained) -> Trained:
        return Trained(nnx.state(self.made(trained.params)), None)

    def baseline_losses(
        self, trained: Trained, fixed: Trained, batch: tuple
    ) -> tuple[float, float]:
        """Infinity and nan, because zero outputs of a general model are not a baseline."""
        return np.inf, np.nan


def _variables(model: Any) -> _Variables:
    states = nnx.state(model, nnx.Param, nnx.Not(nnx.Param))
    return _Variables(*map(nnx.to_pure_dict, states))


def _as_codes(outputs: Any) -> Any:
    return outputs if isinstance(outputs, tuple) else outputs[None]
