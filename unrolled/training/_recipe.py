"""Training by a family's recipe if codes are known: start, calibration, ridge, rate and loss."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import dictionaries, layers, metrics
from unrolled._base import checks
from unrolled._base.arguments import unknown_option
from unrolled._base.doors import Array, ArrayLike, Key, Result, checked, program
from unrolled._base.files import check_draws, drawing
from unrolled._base.numbers import norm
from unrolled.analytic import calibrate
from unrolled.dictionaries import Dictionary, Operator
from unrolled.layers import FAMILIES, Law, Layer, Unrolled, ista, ista_params, stable_step
from unrolled.networks import ROUNDING
from unrolled.problems import synthesize
from unrolled.training._curriculum_and_search import search
from unrolled.training._fit import fit
from unrolled.training._losses import Codes, deep, log_nmse, true_codes
from unrolled.training._options import Run, RunOptions
from unrolled.training._signals import check_sample, from_arrays, is_own
from unrolled.training._types import Fit, Sample

__all__ = ["Made", "Start", "by_recipe", "mostly_last", "prepare"]


# The ridges to try for weights in closed form if signals are noisy, in units of norm(D, 2)^2.
_RIDGES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.5)
_ROUNDING = 1e-4  # residuals are rounding errors if their norm is below this share of norm(Y)
# Numbers of signals to draw from a sampler, to calibrate on and to search on, respectively.
_DRAWN, _CALIBRATED_ON, _SEARCHED_ON = 2048, 256, 512
_DEEP = 0.1  # weight of the mean over all steps in the loss
_CLIP = 1.0  # largest norm of a gradient after clipping
_TIE = 0.05  # dB; messages round to 0.1 dB and do not show smaller differences
_EVALUATE_EVERY = 50  # training steps
_FEWEST = 16  # the least number of signals


@checked
def mostly_last(codes: Codes, X: Codes | None, D: Any, Y: Array | None) -> Array:
    """Nine tenths of `log_nmse` at the last step, plus a tenth of its mean over all steps.

    Because of the mean over all steps, training also lowers the error of early steps. All recipes
    minimise this loss.

    Args:
        codes, X, D, Y: as for `Loss`; D and Y are not used.

    Raises:
        ValueError: X is None.

    Example:
        >>> codes = jnp.array([0.0, 0.9])[:, None, None] * jnp.ones((2, 2, 4))  # 0 and -20 dB
        >>> loss = ur.training.mostly_last(codes, jnp.ones((2, 4)), None, None)
        >>> round(float(loss * 10 / np.log(10)), 2)  # .9 (-20) + .1 (-10)
        -19.0
    """
    true_codes(codes, X, "mostly_last")
    return _mostly_last(codes, X)


@program()
def _mostly_last(codes: Codes, X: Codes | None) -> Array:
    Y: Any = None  # not used
    return (1 - _DEEP) * log_nmse(codes, X, None, Y) + _DEEP * deep(log_nmse)(codes, X, None, Y)


class Start(Result):
    """A layer with params that its recipe prepared and calibrated, ready for `fit`."""

    layer: Layer  # the layer, with options chosen for the signals
    params: Unrolled  # the params before training
    law: Law  # the law of the codes and the noise
    ridge: float | None  # the ridge of the weights, in units of norm(D, 2)^2; None without weights
    nmse: float  # NMSE on the validation signals, dB, ratio of sums
    ista: float  # NMSE of ISTA at the same depth with the best of six penalties, dB

    def __repr__(self) -> str:
        ridge = "" if self.ridge is None else f", ridge {self.ridge:g}"
        return (
            f"Start of {self.layer}{ridge}: NMSE {self.nmse:.1f} dB, of ISTA at the same depth "
            f"{self.ista:.1f} dB"
        )


@checked
def prepare(
    family: str | type[Layer],
    D: Dictionary,
    Y: ArrayLike | Any,
    X: ArrayLike | Any | None,
    *,
    depth: int = 16,
    key: Key = 0,
    **options: Any,
) -> Start:
    """Prepare a layer of a family by its recipe, before training, on signals whose codes are known.

    `prepare` sets options that you do not give according to the share of nonzeros, the variance of
    the nonzeros and the noise of the sample. Half of the signals, at most 256, are used to
    calibrate thresholds and step sizes. By the least error on the other signals, `prepare` chooses
    a penalty, the numbers of a grid search, the ridge of weights in closed form if there is noise,
    and smaller weights if message passing diverges.

    Args:
        family: the name or the class of the family.
        D: (m, d).
        Y: (batch, m), signals. Give 2,048 signals, because a few hard signals dominate the error.
            For a `Complex` D, Y and X are complex; for a `Joint` D, Y is (batch, m, g) and X is
            (batch, d, g).
        X: (batch, d), the codes of Y.
        depth: K.
        key: the key of random params.
        options: options of the family; they replace the options of the recipe.

    Returns:
        Start, with the layer, its params and their NMSE.

    Raises:
        ValueError: the family is unknown, shapes do not fit, there are no codes, all signals or
            codes are zero, or there are fewer than 16 signals.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 256)(jax.random.key(1))
        >>> start = ur.training.prepare("ista", D, Y, X, depth=4)
        >>> start.layer.lam in start.law.lams(0.02, 0.05, 0.1, 0.2, 0.3, 0.4), start.ridge
        (True, None)
    """
    cls, D = _family(family, "prepare"), dictionaries.as_dictionary(D, "prepare")
    if X is None:
        raise ValueError(
            "prepare: recipes are for known codes, got X = None; try layer.init(key, D), or "
            "analytic.calibrate with loss=training.lasso_loss(lam)"
        )
    pairs = zip(dictionaries.flat_batch(D, (Y, X)), ("Y", "X"))
    Y, X = (checks.as_float(part, name, "prepare") for part, name in pairs)
    dictionaries.check_batch(D, Y, X, "prepare")
    depth = checks.as_depth(depth, "depth", "prepare", least=1)
    if len(Y) < _FEWEST:
        raise ValueError(f"prepare: expected at least {_FEWEST} signals, got {len(Y)}")
    cut = min(_CALIBRATED_ON, len(Y) // 2)
    signals = _signals(D, (Y[:cut], X[:cut]), (Y[cut:], X[cut:]), depth)
    return _best(_starts(cls, signals, depth, checks.as_key(key, "prepare"), options))


class Made(Result):
    """The result of training by recipe; pass its field `fit` to `compare`."""

    start: Start  # the result of `prepare`, before training
    fit: Fit  # the result of the training
    nmse: float  # NMSE of the best params on the validation signals, dB, ratio of sums
    worse: float  # share of validation signals whose codes are worse than zero codes

    def __repr__(self) -> str:
        worse = f"; {self.worse:.2%} of the signals worse than zero codes" if self.worse else ""
        return f"{self.start}, trained {self.nmse:.1f} dB{worse}"


@checked
def by_recipe(
    family: str | type[Layer],
    D: Dictionary,
    sample: Sample | tuple[ArrayLike, ArrayLike] | Any,
    *,
    depth: int = 16,
    steps: int | None = None,
    key: Key = 0,
    validation: tuple | None = None,
    learn_dictionary: bool = False,
    trainable: Any = None,
    **options: Annotated[Any, RunOptions],
) -> Made:
    """Prepare a layer of a family by its recipe and train the layer, if codes are known.

    Adam minimises `mostly_last`, with clipped gradients and a rate that falls to zero along a
    cosine. The recipe of a family, `Layer.recipe`, has the rate and the number of training steps,
    and says whether a value, such as a penalty, is chosen after training. The result has the params
    with the least loss on validation signals.

    Args:
        family, D, depth: as for `prepare`.
        sample: `sample(key) -> (Y, X)`, or arrays (Y, X) as for `prepare`; the last tenth of the
            signals is held back for validation.
        steps: number of training steps; None takes the number of the recipe.
        key: the key from which signals, random params and training batches are drawn.
        validation: (Y, X), on which the recipe chooses; None holds signals back, or draws them.
        learn_dictionary, trainable: as in `fit`; the recipe sets all params before training.
        options: options of the family, as for `prepare`, and of `training.Run`. A recipe may train
            several starts, each a run of its own: callbacks and log then see the runs in turn.

    Returns:
        Made, with the result of `fit`.

    Warns:
        UserWarning: on the validation signals, the error is larger than the error of ISTA with the
            same depth.

    Raises:
        TypeError: neither the family nor `training.Run` has the option.
        ValueError: in the same cases as `prepare`; also if the sample has no codes, or `checkpoint`
            is given and the recipe trains several starts.
        NonFiniteError: a loss, gradient or update of the training is not finite.

    Not claimed: the best rate or the best initial params for a problem. We chose the recipes on
    Gaussian dictionaries 250 x 500 and codes with 10 % nonzeros (benchmarks/lista.py). On other
    dictionaries, `by_recipe` warns if a family ends with a larger error than ISTA.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> sample = ur.problems.sampler(D, 64)
        >>> made = ur.training.by_recipe("alista", D, sample, depth=4, steps=5)
        >>> made.nmse <= made.start.nmse < 0, made.fit.model.support is not None
        (True, True)
    """
    cls, D = _family(family, "by_recipe"), dictionaries.as_dictionary(D, "by_recipe")
    run = _run_of(cls, options)
    depth = checks.as_depth(depth, "depth", "by_recipe", least=1)
    drawing, starting, training = jax.random.split(checks.as_key(key, "by_recipe"), 3)
    sampler: Any = sample
    if is_own(sample):
        arrays = dictionaries.flat_batch(D, sample), validation, None, D, "by_recipe"
        sampler, validation = from_arrays(*arrays)
        calibrating = _draw(sampler, drawing, _CALIBRATED_ON)
    else:
        check_sample(sampler, "by_recipe")
        drawn = _draw(sampler, drawing, _DRAWN)
        calibrating = jax.tree.map(lambda array: array[:_CALIBRATED_ON], drawn)
        if validation is None:
            validation = jax.tree.map(lambda array: array[_CALIBRATED_ON:], drawn)
    if validation[1] is None:
        raise ValueError(
            "by_recipe: the signals have no codes; try fit with training.lasso_loss(lam)"
        )
    signals = _signals(D, calibrating, validation, depth)
    starts = _starts(cls, signals, depth, starting, options)
    if not cls.recipe.rate:
        starts = [_best(starts)]
    if len(starts) > 1 and run.get("checkpoint") is not None:
        tried = " and ".join(cls.recipe.tried(signals.law))
        raise ValueError(
            f"by_recipe: the recipe of {cls.__name__} trains {len(starts)} starts, and a "
            f"checkpoint holds one run; try to set {tried}, or omit `checkpoint`"
        )
    run |= {"learn_dictionary": learn_dictionary, "trainable": trainable}
    runs = [_trained(start, signals, sampler, steps, training, run) for start in starts]
    best, seconds = _best(runs), sum(each.fit.seconds for each in runs)
    best = best.replace(fit=best.fit.replace(seconds=seconds))
    if not best.nmse <= best.start.ista + _TIE:
        checks.warn(
            f"by_recipe: {best.fit.model} ends at {best.nmse:.1f} dB on {len(validation[0])} "
            f"validation signals, ISTA of the same depth at {best.start.ista:.1f} dB; try another "
            "family, such as alista_at"
        )
    return best


def _run_of(cls: type[Layer], options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of the run out of `options`; the others must belong to the family."""
    of_run, of_family = Run.__signature__.parameters, cls.__signature__.parameters
    run = {name: options.pop(name) for name in of_run if name in options}
    Run.of("by_recipe", run)
    for name in options.keys() - of_family.keys():
        problem = unknown_option(name, [*of_run, *of_family])
        raise TypeError(
            f"by_recipe: {problem}; the options are those of {cls.__name__} and of training.Run"
        )
    return run


def _family(family: Any, where: str) -> type[Layer]:
    if isinstance(family, type) and issubclass(family, Layer):
        return family
    checks.one_of(family, FAMILIES, "family", where)
    return FAMILIES[family]


def _draw(sample: Any, key: Array, signals: int) -> tuple[Any, Any]:
    """At least `signals` signals from a sampler, and their codes."""
    batch = len(jax.eval_shape(sample, key)[0])
    keys = jax.random.split(key, -(-signals // batch))
    drawn = jax.vmap(drawing(sample))(keys)[:2]
    check_draws(sample, drawn)
    return jax.tree.map(lambda array: array.reshape(-1, array.shape[-1]), drawn)


class _Signals(NamedTuple):
    D: Operator
    calibrating: tuple[Array, Array]  # (Y, X)
    later: tuple[Array, Array]  # (Y, X), on which choices minimise the error
    law: Law
    ista: float  # NMSE of ISTA on `later` with the best of its penalties, dB


def _signals(D: Operator, calibrating: tuple, later: tuple, depth: int) -> _Signals:
    """The two parts of the sample, in the dtype of D, and the law of the codes.

    Raises:
        ValueError: signals or codes are not finite, or are all zero.
    """
    dtype = checks.common_dtype(D, *calibrating)
    D, calibrating, later = (checks.cast(tree, dtype) for tree in (D, calibrating, later))
    checks.finite((calibrating, later), "Y or X", "prepare")
    law = law_of(D, *(np.concatenate(parts) for parts in zip(calibrating, later)))
    lams, (Y, X) = ista.recipe.tried(law)["lam"], later
    if not np.asarray(X).any():
        raise ValueError(f"prepare: the codes of the last {len(X)} signals are all zero")
    errors = (_nmse(ista(depth), ista_params(D, lam, depth, "prepare"), D, Y, X) for lam in lams)
    return _Signals(D, calibrating, later, law, min(float(nmse) for nmse, _ in errors))


@checked
def law_of(D: Dictionary, Y: Array | np.ndarray, X: Array | np.ndarray) -> Law:
    """The share of nonzeros, their variance and the noise of a sample.

    For codes in parts, the share is the share of parts that are not zero. If the noise is at least
    80 dB below the signals, it counts as rounding errors, and the law has noise 0.

    Args:
        D: (m, d).
        Y: (batch, m), signals.
        X: (batch, d), the codes of Y.

    Raises:
        ValueError: shapes do not fit, or all codes are zero.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> X = 3 * jnp.eye(8)
        >>> law = ur.training.law_of(D, ur.problems.synthesize(D, X), X)
        >>> law.probability, law.variance, law.noise
        (0.125, 9.0, 0.0)
    """
    dictionaries.check_batch(D, Y, X, "law_of")
    codes = np.asarray(X, float)
    on = codes.reshape(len(codes), -1, dictionaries.block_of(D)).any(2)
    share = float(f"{on.mean():.6g}")
    if not share:
        raise ValueError("law_of: all codes are zero; expected some signal to fit")
    signals = np.asarray(Y, float)
    rest = signals - np.asarray(synthesize(D, jnp.asarray(X)), float)
    noise, signal = float(np.mean(rest**2)), float(np.mean(signals**2))
    noise = 0.0 if noise <= _ROUNDING**2 * signal else noise
    unit = float(np.mean(np.square(np.asarray(dictionaries.column_norms(D), float))))
    variance = float(f"{np.mean(codes**2) / share:.6g}")
    return Law(share, variance, noise, signal, codes.shape[1], unit)


def _best(made: Sequence[Any]) -> Any:
    return min(made, key=lambda each: each.nmse)


def _starts(
    cls: type[Layer], signals: _Signals, depth: int, key: Any, options: dict[str, Any]
) -> list[Start]:
    """One start for each combination of values that the recipe tries; `options` stay fixed."""
    recipe, law = cls.recipe, signals.law
    tried = {name: values for name, values in recipe.tried(law).items() if name not in options}
    needed = {"sparsity": law.sparsity} if _needs(cls, "sparsity") else {}
    assumed = {**needed, **recipe.options(law, options), **options}
    ridges = _RIDGES[: None if law.noise else 1] if recipe.weighted else (None,)
    ridges = (options["ridge"],) if "ridge" in options else ridges
    return [
        _start(cls(depth, **assumed | dict(zip(tried, values))), signals, key, ridges)
        for values in itertools.product(*tried.values())
    ]


def _needs(cls: type[Layer], name: str) -> bool:
    """Whether a family has an option without a default."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return name in fields and fields[name].default is dataclasses.MISSING


def _start(layer: Layer, signals: _Signals, key: Any, ridges: tuple[float | None, ...]) -> Start:
    """A layer and its params, with the ridge and the searched numbers of least error on `later`."""
    recipe, D = layer.recipe, signals.D
    best: Start | None = None
    for ridge in ridges:
        made = layer
        if ridge is not None and "ridge" in {f.name for f in dataclasses.fields(layer)}:
            made = dataclasses.replace(layer, ridge=ridge)  # type: ignore[call-arg]
        params = _from_weights(made, ridge, key, D)
        with checks.quiet():  # the error on `later` shows the faults
            if recipe.calibrated:
                params = calibrate(made, params, D, *signals.calibrating)
            if recipe.searched:
                params = _searched(made, params, signals)
        start = Start(made, params, signals.law, ridge, _error(made, params, signals), signals.ista)
        if best is not None and not start.nmse < best.nmse:
            break
        best = start
    assert best is not None  # `ridges` is not empty
    if recipe.damped and not best.nmse <= signals.ista:
        best = _best([best, *(_damped(best, multiple, signals) for multiple in recipe.damped)])
    return best


def _damped(start: Start, multiple: float, signals: _Signals) -> Start:
    """The start with weights multiplied by `stable_step` and `multiple`, calibrated again."""
    steps: Any = start.params.steps
    W = multiple * stable_step(steps.W[0], signals.D) * steps.W
    params = start.params._replace(steps=steps._replace(W=W))
    with checks.quiet():  # the error on `later` shows the faults
        params = calibrate(start.layer, params, signals.D, *signals.calibrating)
    return start.replace(params=params, nmse=_error(start.layer, params, signals))


def _from_weights(layer: Layer, ridge: float | None, key: Any, D: Operator) -> Unrolled:
    """Params with weights in closed form, scaled down if steps with the weights would expand."""
    if ridge is None:
        return layer.from_weights(key, D, D)
    W = layers.lasso_weights(D, ridge)
    return layer.from_weights(key, W * stable_step(W, D), D)


def _searched(layer: Layer, params: Unrolled, signals: _Signals) -> Unrolled:
    grid: Any = {
        name: float(getattr(params.shared, name)) * np.asarray(multiples)
        for name, multiples in layer.recipe.searched.items()
    }
    Y, X = (part[:_SEARCHED_ON] for part in signals.later)
    return search(layer, params, signals.D, Y, X, **grid).params


def _error(layer: Layer, params: Unrolled, signals: _Signals) -> float:
    """The NMSE on `later` in dB, as a ratio of sums; infinity instead of nan."""
    return _number(_nmse(layer, params, signals.D, *signals.later)[0])


def _number(nmse: Array) -> float:
    return float(nmse) if np.isfinite(nmse) else np.inf


@jax.jit(static_argnums=0)
def _nmse(layer: Layer, params: Unrolled, D: Operator, Y: Array, X: Array) -> tuple[Array, Array]:
    """The NMSE in dB, and the share of signals whose codes are worse than zero codes."""
    codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
    worse = ~(jax.vmap(norm)(codes - X) <= jax.vmap(norm)(X) * (1 + ROUNDING))
    return metrics.nmse(codes, X), jnp.mean(worse, dtype=Y.dtype)


def _trained(
    start: Start, signals: _Signals, sample: Any, steps: int | None, key: Array, run: dict[str, Any]
) -> Made:
    """The result of training `start` by Adam with clipping, or `start` itself if the rate is 0."""
    layer, recipe = start.layer, start.layer.recipe
    steps = recipe.steps if steps is None else steps
    if not jax.tree.leaves(start.params):
        raise TypeError(
            f"by_recipe: {layer.family} has no params to train; training.prepare makes it and "
            "judges it without training"
        )
    steps = steps if recipe.rate else 0
    schedule = optax.cosine_decay_schedule(recipe.rate, max(1, steps))
    # A scan would copy the matrices of each step. Steps of numbers compile faster as one scan.
    matrices = any(np.ndim(leaf) > 2 for leaf in jax.tree.leaves(start.params.steps))
    stacked = not (matrices and steps) or run["trainable"] is not None  # a prefix of stacked params
    params = start.params if stacked else layers.unstack(start.params)
    silent = "fit: .*(worse than zero codes|made nothing better)"  # `Made` shows both facts
    with checks.quiet(message=silent):
        trained = fit(
            layer,
            params,
            signals.D,
            sample,
            optimizer=optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(schedule)),
            steps=steps,
            key=key,
            loss=mostly_last,
            validation=signals.later,
            **{"evaluate_every": max(1, min(_EVALUATE_EVERY, steps)), "progress": False, **run},
        )
    nmse, worse = _nmse(layer, trained.best, trained.D, *signals.later)
    return Made(start, trained, _number(nmse), float(worse))
