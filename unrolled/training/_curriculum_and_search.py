"""Training by a curriculum, which adds steps one by one; and, for families with few parameters, a
grid search instead of training.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from unrolled import metrics
from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, Key, Result, checked
from unrolled.dictionaries import (
    Dictionary,
    as_dictionary,
    check_batch,
    known_part,
    signal_axes,
)
from unrolled.layers import Layer, Unrolled, names_with_role
from unrolled.networks import codes_of_ista, exceeds, lam_of, loss_of, worse_than_zero
from unrolled.training._loop import Loop
from unrolled.training._losses import supervised
from unrolled.training._objective import Data, Objective
from unrolled.training._options import Run, RunOptions
from unrolled.training._signals import Signals, each_known
from unrolled.training._stages import Stage, run_stages
from unrolled.training._types import Fit, Loss, Progress, Sample

__all__ = ["Search", "StepRates", "curriculum", "scale_steps", "search"]


class StepRates(NamedTuple):
    """The state of `scale_steps`; replace it to change the rates without compiling again."""

    rates: Array  # (K,)
    shared: Array  # ()


@checked
def scale_steps(
    rates: ArrayLike | Sequence[float], shared: ArrayLike = 1.0
) -> optax.GradientTransformation:
    """Scale the updates of step k by `rates[k]`, and all other updates by `shared`.

    Place `scale_steps` last, as in `optax.chain(optax.adam(1e-3), scale_steps(rates))`. In a chain,
    `scale_steps` has no effect before Adam, because Adam divides by the size of the gradient. A
    rate of 0 freezes a step.

    Args:
        rates: (K,), not negative, one rate per step. The steps of an `Unrolled`, which may be
            inside a `Trained`, are stacked (leaves with a leading axis K) or a tuple of K steps.
        shared: the factor for all updates outside `Unrolled.steps`: shared params and D.

    Raises:
        ValueError: rates are not a vector, or are negative or not finite; or, when the optimiser is
            initialised, the params do not have K steps.

    Example:
        >>> params = ur.layers.Unrolled(None, ur.layers.Step(jnp.ones(3)))
        >>> optimizer = ur.training.scale_steps([1.0, 0.5, 0.0])
        >>> updates, state = optimizer.update(params, optimizer.init(params))
        >>> updates.steps.gamma.tolist()
        [1.0, 0.5, 0.0]
    """
    for name, value, ndim in (("rates", rates, 1), ("shared", shared, 0)):
        if np.ndim(value) != ndim:
            expected = "a vector, one rate per step" if ndim else "one number"
            raise ValueError(
                f"scale_steps: {name} has shape {np.shape(value)}; expected {expected}"
            )
        checks.finite(value, name, "scale_steps")
        checks.nonnegative(value, name, "scale_steps")

    def init(params):
        # Copies, because a compiled step may consume its state but not the caller's array.
        state = StepRates(jnp.array(rates, float), jnp.array(shared, float))
        nodes = jax.tree.leaves(params, is_leaf=_is_unrolled)
        networks = [node for node in nodes if _is_unrolled(node)]
        if not networks:
            raise ValueError(
                "scale_steps: there is no Unrolled(shared, steps) in what is trained, so no steps"
            )
        for node in networks:
            _check_depth(node, len(state.rates))
        return state

    def update(updates, state, params=None):
        def scaled(rate):
            return lambda leaf: leaf * rate.astype(leaf.dtype)

        def along_steps(leaf):
            return leaf * state.rates.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))

        def both(node):
            if type(node.steps) is tuple:
                steps = tuple(
                    jax.tree.map(scaled(state.rates[k]), p) for k, p in enumerate(node.steps)
                )
            else:
                steps = jax.tree.map(along_steps, node.steps)
            return Unrolled(jax.tree.map(scaled(state.shared), node.shared), steps)

        def one(node):
            return both(node) if _is_unrolled(node) else scaled(state.shared)(node)

        return jax.tree.map(one, updates, is_leaf=_is_unrolled), state

    return optax.GradientTransformation(init, update)


def _is_unrolled(node) -> bool:
    return isinstance(node, Unrolled)


def _check_depth(params: Unrolled, K: int) -> None:
    """Raise ValueError unless there are K steps."""
    if params.steps is None:
        raise ValueError(
            "scale_steps: the steps of this family share all their params; none has a rate"
        )
    if type(params.steps) is tuple:
        lengths = {(len(params.steps),)}
    else:
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params.steps)}
    if lengths - {(K,)}:
        raise ValueError(
            f"scale_steps: there are {K} rates, but the steps have the leading axes "
            f"{sorted(lengths)}; expected {K} steps"
        )


@checked
@programs.takes_sharded
def curriculum(
    layer: Layer,
    params: Unrolled,
    D: Dictionary,
    sample: Sample | Array | np.ndarray | tuple,
    *,
    key: Key,
    steps_per_stage: int = 100,
    stages: Sequence[float] = (1.0, 0.2, 0.02),
    rate: float = 1e-3,
    decay: float = 1.0,
    optimizer: Callable[[float], optax.GradientTransformation] | Any = optax.adam,
    loss: Loss = supervised,
    learn_dictionary: bool = False,
    trainable: Any = None,
    validation: tuple | None = None,
    mask: ArrayLike | None = None,
    **run: Unpack[RunOptions],
) -> Fit:
    r"""Train a layer step by step: minimise the loss of the code after step k for k = 1, ..., K.

    Each k has several stages. The first stage trains only the params of step k, and the later
    stages train the params of steps 1..k. A stage with factor c multiplies the updates of
    `optimizer(rate)` for step j by

    .. math:: c \; decay^{k - j} \quad (j \le k), \qquad 0 \quad (j > k),

    and the updates of a learned D and of trained shared params (a tied W) by c. The first stage
    trains D and shared params only at k = 1. Every stage starts from the best params of the
    previous stage and initialises the optimiser again. The best params of a stage have the least
    loss of the code after step k on the validation batch. All stages use one compiled training
    step, with k and the rates as arguments. Early stages therefore cost as much as late stages.

    Args:
        layer, params, D, sample, key, loss: as in `fit`. The loss gets the code after step k as
            `codes[-1]`.
        learn_dictionary, trainable, validation, mask: as in `fit`.
        steps_per_stage: the largest number of training steps in a stage; there are `K *
            len(stages)` stages.
        stages: the factor c of each stage.
        rate: the rate of the optimiser for step k in a stage with factor 1.
        decay: a factor in [0, 1] by which the rate of a step is multiplied each time that k
            increases. With a small factor, earlier steps hardly change any more. On the standard
            benchmark (LISTA-CPSS from `analytic.calibrate`, 50 training steps per stage), training
            with a decay of 0.3 ends at an NMSE of -43 dB and training with a decay of 1 at -62 dB.
            `fit` with as many training steps ends at -58 dB.
        optimizer: a function from a rate to an optax transformation.
        run: the options of `training.Run`, by name. `patience` ends a stage, not the run.

    Returns:
        A Fit, as returned by `fit`. `best` has the best params of the last stage, by the loss of
        the code after step K. The records of stage i belong to step k = i // len(stages), counted
        from 0, and have the validation loss of the code after that step.

    Warns:
        UserWarning: in the same cases as `fit`.

    Raises:
        TypeError: the steps of the family share all params (use `training.search`), the model is a
            network, the rate is not a number, or `optimizer` is not a function that returns an
            optax transformation.
        ValueError: there are no stages, or a factor, the rate or decay is out of range.
        Other errors: in the same cases as `fit`.

    Reference: Chen, Liu, Wang, Yin (2018), the training in section 4, which has these stages. Their
    decay of 0.3 scales gradients. Adam cancels this scaling, so their effective decay is 1.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 10, 20)
        >>> layer, sample = ur.lista_cp(2, tied=False), ur.problems.sampler(D, batch=16)
        >>> start = layer.init(None, D)
        >>> trained = ur.training.curriculum(layer, start, D, sample, key=0, steps_per_stage=5)
        >>> trained.history.loss.shape  # 2 steps of the network, 3 stages each
        (30,)
    """
    layer.check(params, as_dictionary(D, "curriculum"))
    if params.steps is None:
        raise TypeError(
            "curriculum: the steps of this family share all their params; "
            "try training.search or training.fit"
        )
    K = checks.as_index(layer.depth, "depth", "curriculum", least=1)
    steps = checks.as_index(steps_per_stage, "steps_per_stage", "curriculum")
    how = Run.of("curriculum", run)
    plan = _plan(K, stages, decay)
    objective = Objective.of("curriculum", layer, loss, staged=True)
    dtype = checks.common_dtype(params, D)
    signals = Signals.of(D, sample, key, validation, mask, dtype, "curriculum")
    data = Data.of(objective, params, signals, learn_dictionary, trainable)
    scaled = optax.chain(_made(optimizer, rate), scale_steps(jnp.ones(K)))
    config: dict[str, Any] = {"rate": float(rate), "steps_per_stage": steps}
    config |= {"stages": [float(c) for c in stages], "decay": float(decay)}
    return run_stages(objective, data, scaled, how, steps, plan, config)


def _enter(rates: StepRates, loop: Loop, state: Progress) -> Progress:
    """The state at the start of a stage: the best params so far, and a new optimiser state."""
    fresh = loop.start(state.best)
    optimizer = (*fresh.optimizer[:-1], loop.place(rates))
    return state._replace(trained=fresh.trained, optimizer=optimizer, lowest=np.inf)


def _plan(K: int, stages: Sequence[float], decay: float) -> list[Stage]:
    """All stages, each with the step whose code is evaluated, and with the rates of all steps."""
    factors = np.asarray(stages, float)
    if factors.ndim != 1 or not len(factors) or not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError(
            f"curriculum: stages must be non-negative factors, at least one, got {stages}"
        )
    if not 0 <= decay <= 1:
        raise ValueError(f"curriculum: decay must be in [0, 1], got {decay}")
    plan = []
    for k in range(K):
        age = k - np.arange(K)
        reach = np.where(age >= 0, float(decay) ** np.maximum(age, 0), 0.0)
        for i, factor in enumerate(factors):
            rates = factor * (reach if i else age == 0)
            shared = factor if i or k == 0 else 0.0
            rates_of = StepRates(jnp.asarray(rates, float), jnp.asarray(shared, float))
            plan.append(Stage(k, partial(_enter, rates_of)))
    return plan


def _made(optimizer, rate: float) -> optax.GradientTransformation:
    if not 0 <= rate < np.inf:
        raise ValueError(f"curriculum: rate must be non-negative and finite, got {rate}")
    made = optimizer(rate) if callable(optimizer) else optimizer
    if not callable(optimizer) or not (hasattr(made, "init") and hasattr(made, "update")):
        raise TypeError(
            "curriculum: optimizer must be a function from a rate to an optax transformation, "
            f"such as optax.adam, got {type(optimizer).__name__}"
        )
    return made


class Search(Result):
    """The result of a grid search.

    Each table has one axis per field, and nan where codes are not finite. The best values have the
    least loss, or the least NMSE if no loss was given. This loss or NMSE is the measure of the
    search.
    """

    params: Unrolled  # the params with the best values
    values: dict[str, float]  # the best values
    axes: dict[str, np.ndarray]  # the tried values, in the order of the axes of the tables
    nmse: np.ndarray | None  # in dB, as a ratio of sums; None without codes
    mean_nmse: np.ndarray | None  # the mean over signals of the NMSE in dB; None without codes
    loss: np.ndarray | None = None  # the loss; None if no loss was given
    zero: float = 0.0  # the measure of zero codes
    ista: float = np.nan  # the measure of ISTA at this depth, with the lam of loss or layer

    def __repr__(self) -> str:
        """The grid, the best values, and the measure at these values."""
        tried = " x ".join(f"{len(axis)} of {name}" for name, axis in self.axes.items())
        best = ", ".join(f"{name} = {value:.6g}" for name, value in self.values.items())
        measure, unit = ("NMSE", " dB") if self.loss is None else ("loss", "")
        beside = {"zero codes": self.zero, "ISTA": self.ista}
        of = [f", of {name} {value:.6g}{unit}" for name, value in beside.items() if value == value]
        return f"Search of {tried}: {best} with {measure} {self.lowest:.6g}{unit}{''.join(of)}"

    @property
    def lowest(self) -> float:
        """The measure at the best values."""
        table: Any = self.nmse if self.loss is None else self.loss
        return float(np.nanmin(table))

    @property
    def worsened(self) -> bool:
        """Whether the codes with the best values are worse than zero codes."""
        if self.loss is not None:
            return exceeds(self.lowest, self.zero)
        return exceeds(10 ** (self.lowest / 10), 1.0)  # `lowest` is in dB


@checked
@programs.takes_sharded
def search(
    layer: Layer,
    params: Unrolled | Any,
    D: Dictionary,
    Y: ArrayLike,
    X: ArrayLike | None = None,
    *,
    loss: Loss | None = None,
    chunk: int = 8,
    mask: ArrayLike | None = None,
    **values: ArrayLike | Sequence[float],
) -> Search:
    """Try all combinations of values for scalar fields of the params, in one compiled call.

    Args:
        layer, params, D: as for `layer.apply`.
        Y: (batch, m), signals.
        X: (batch, d), the true codes of Y. Use 512 signals or more: values chosen on 64 signals
            overfit by 15 dB. If codes are not known, pass None and a loss.
        loss: the loss `loss(codes, X, D, Y)` to minimise, as in `fit`, such as
            `training.lasso_loss(lam)`; None minimises the NMSE.
        chunk: number of combinations to compute at once; memory grows with chunk times batch.
        mask: bools, in the shape of Y, True where an entry is known; unknown entries may be NaN.
            The layer and the loss get `dictionaries.Masked(D, mask)` of each signal.
        values: for each field, the values to try, such as threshold=[0.02, 0.04]. A field of
            `params.shared` is a scalar; a field of the stacked `params.steps` gets the same value
            at all steps.

    Warns:
        UserWarning: the codes with the best values are worse than zero codes; see
            `Search.worsened`.

    Raises:
        ValueError: shapes do not fit, values are not a vector or not finite, a threshold is
            negative, a field is not a scalar, no combination gives finite codes, there are neither
            codes nor a loss, or the loss needs codes and there are none.
        TypeError: Y or X is not an array, Y is an array of integers and X is None, there are no
            values, the params lack a field, or the loss is not a function.

    Not claimed: the best values between the points of the grid. The signals must resemble the
    signals that you will code later. Keep some signals out of Y for a test.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(8)
        >>> start, theta = layer.init(None, D), [0.001, 0.01, 1.0]
        >>> searched = ur.training.search(layer, start, D, Y, X, theta=theta)
        >>> searched.nmse.shape, searched.values["theta"] < 1
        ((3,), True)
    """
    D, chunk = as_dictionary(D, "search"), checks.as_index(chunk, "chunk", "search", least=1)
    own, known = X is None, None
    if mask is not None:
        known = each_known(D, Y, mask, "search")
        Y = np.where(known, np.asarray(Y), 0)
    Y = checks.as_signals(Y, "Y", "search") if own else checks.as_float(Y, "Y", "search")
    X = None if own else checks.as_float(X, "X", "search")
    check_batch(D, Y, X, "search")
    aim = loss_of(loss, X, "search")
    atoms, Y = known_part(D, Y, known)
    axes = {name: _tried(params, name, tried) for name, tried in values.items()}
    if not axes:
        raise TypeError(
            "search: there are no values to try; expected a field, as in threshold=[0.02, 0.04]"
        )
    grids = [grid.ravel() for grid in np.meshgrid(*axes.values(), indexing="ij")]
    shape = [len(tried) for tried in axes.values()]
    points = dict(zip(axes, grids))
    errors = _errors(layer, aim, params, atoms, Y, X, points, chunk)
    tables: dict[str, Any] = {
        name: np.asarray(error, float).reshape(shape) for name, error in errors.items()
    }
    decides = tables["nmse" if aim is None else "loss"]
    if np.isnan(decides).all():
        raise ValueError("search: no combination of values gives finite codes; try smaller values")
    best = np.unravel_index(np.nanargmin(decides), shape)
    chosen = {name: float(tried[i]) for (name, tried), i in zip(axes.items(), best)}
    zero, of_ista = map(float, _beside_zero_and_ista(layer, aim, lam_of(loss, layer), atoms, Y, X))
    tables = {"nmse": None, "mean_nmse": None, **tables}
    result = Search(with_values(params, chosen), chosen, axes, **tables, zero=zero, ista=of_ista)
    if result.worsened:
        measure, unit = ("NMSE", " dB") if aim is None else ("loss", "")
        numbers = result.lowest, result.zero, result.ista
        rule = worse_than_zero("the best codes are", measure, *numbers, unit)
        checks.warn(f"search: {rule}. Try other values, smaller weights or step sizes")
    return result


@partial(jax.jit, static_argnums=(0, 1, 2))
def _beside_zero_and_ista(layer, aim, lam, D, Y, X) -> tuple[Any, Any]:
    """The measure of zero codes, and of ISTA at the depth of the layer."""
    path = jnp.zeros((1, len(Y), D.shape[1]), Y.dtype)
    zero = 0.0 if aim is None else aim(path, X, D, Y)
    if lam is None or not layer.depth:
        return zero, jnp.nan
    path = codes_of_ista(D, lam, layer.depth, Y, "search")
    return zero, metrics.nmse(path[-1], X) if aim is None else aim(path, X, D, Y)


@partial(jax.jit, static_argnames=("layer", "aim", "chunk"))
def _errors(layer, aim, params, D, Y, X, points, chunk):
    """The errors at every point of the grid, by name; nan if a code is not finite."""

    def one(point):
        paths = jax.vmap(layer.iterates, (None, signal_axes(D), 0), out_axes=1)
        path = paths(with_values(params, point), D, Y)
        errors = {} if aim is None else {"loss": aim(path, X, D, Y)}
        if X is not None:
            errors |= {"nmse": metrics.nmse(path[-1], X)}
            errors |= {"mean_nmse": metrics.mean_nmse(path[-1], X)}
        finite = jnp.isfinite(path[-1]).all()
        return {name: jnp.where(finite, error, jnp.nan) for name, error in errors.items()}

    return lax.map(one, points, batch_size=chunk)


def with_values(params: Unrolled, values: Mapping[str, ArrayLike]) -> Unrolled:
    """The params with each named field of `shared` or `steps` set to one value."""
    for name, value in values.items():
        part = "shared" if name in getattr(params.shared, "_fields", ()) else "steps"
        fields = getattr(params, part)
        old = jnp.asarray(getattr(fields, name))
        new = jnp.broadcast_to(jnp.asarray(value).astype(old.dtype), old.shape)
        params = params._replace(**{part: fields._replace(**{name: new})})
    return params


def _tried(params: Unrolled, name: str, tried: ArrayLike | Sequence[float]) -> np.ndarray:
    """The values to try for a field, checked."""
    if not isinstance(params, Unrolled):
        raise TypeError(
            f"search: params must be Unrolled(shared, steps), got {type(params).__name__}"
        )
    shared, steps = (getattr(part, "_fields", ()) for part in params)
    if name not in (*shared, *steps):
        hint = "; try layers.stack" if type(params.steps) is tuple else ""
        raise TypeError(
            f"search: params have no field {name!r}; expected one of {[*shared, *steps]}{hint}"
        )
    record, ndim = (params.shared, 0) if name in shared else (params.steps, 1)
    leaves = jax.tree.leaves(getattr(record, name))
    if len(leaves) != 1 or np.ndim(leaves[0]) != ndim:
        each = " per step" if ndim else ""
        raise ValueError(f"search: {name} is not one number{each}, so it has no grid")
    try:
        tried = np.asarray(tried, float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"search: {name} must be numbers to try, got {tried!r}") from error
    if tried.ndim != 1 or not len(tried):
        raise ValueError(
            f"search: {name} has values of shape {tried.shape}; expected a vector of values to try"
        )
    checks.finite(tried, name, "search")
    if name in names_with_role(record, "threshold"):
        checks.nonnegative(tried, name, "search")
    return tried
