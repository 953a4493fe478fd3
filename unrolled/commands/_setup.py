"""What `fit` takes, from a configuration: dictionary, signals, layer, start, loss, optimiser."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unrolled import analytic, dictionaries, problems, training
from unrolled.commands._config import make_model
from unrolled.commands._console import Say
from unrolled.commands._inputs import read_chain_codes, read_codes, read_dictionary, read_given
from unrolled.commands._sections import GENERATED, PLANTED, WITH_CODES, Config, ConfigError
from unrolled.commands._sections import Model as ModelSection
from unrolled.dictionaries import as_chain
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network
from unrolled.studies import CHOSEN_ON, Samples, from_theory, resampler

Model = Layer | Network
Dictionaries = Any  # one, or a tuple for a chain
Batch = tuple[Any, Any]  # (Y, X); X is a tuple for a chain, and None where codes are not known


class Setup(NamedTuple):
    """A training, ready to run."""

    model: Model
    params: Any  # the start
    D: Dictionaries
    sample: Callable[..., Any]
    validation: Batch | None  # to choose the best params by; None lets `fit` draw it
    tested_on: Batch
    loss: Callable[..., jax.Array]
    optimizer: Callable[..., optax.GradientTransformation]  # of the rate, or of its schedule
    key: jax.Array


def setup(config: Config, say: Say) -> Setup:
    """Everything that the training needs, checked before its first step.

    Raises:
        ValueError: files that do not fit, options that the layer refuses.
        OSError: files that cannot be read.
    """
    start_key, chosen_key, test_key, key = jax.random.split(jax.random.key(config.seed), 4)
    D = _dictionary(config)
    model = make_model(config)
    problem, validation = _problem(config, D, chosen_key, test_key)
    params = _start(config, model, problem, start_key, say)
    loss, optimizer = _loss(config), _optimizer(config)
    return Setup(
        model, params, D, problem.sample, validation, problem.tested_on, loss, optimizer, key
    )


def _dictionary(config: Config) -> Dictionaries:
    problem = config.problem
    if isinstance(problem.dictionary, tuple):
        return as_chain([read_dictionary(Path(path)) for path in problem.dictionary], "train")
    if problem.dictionary not in GENERATED:
        return read_dictionary(Path(problem.dictionary))
    # `load` has given these options a value.
    assert problem.m and problem.d and problem.dictionary_seed is not None
    key = jax.random.key(problem.dictionary_seed)
    if problem.dictionary == "gaussian":
        return dictionaries.gaussian(key, problem.m, problem.d)
    assert problem.kappa
    return dictionaries.ill_conditioned(key, problem.m, problem.d, problem.kappa)


def _problem(
    config: Config, D: Dictionaries, chosen_key: jax.Array, test_key: jax.Array
) -> tuple[Samples, Batch | None]:
    """Signals to train on, to set a start on and to test on, and the validation signals."""
    if config.problem.signals != PLANTED:
        return _given(config, D)
    problem = config.problem
    # `load` has given these options a value.
    assert problem.probability and problem.snr is not None and problem.test_signals
    sampler = partial(problems.sampler, D, probability=problem.probability, snr=problem.snr)
    chosen_on: Batch = (None, None)
    if any(map(_set_on_codes, config.layers)):
        chosen_on = jax.jit(sampler(CHOSEN_ON))(chosen_key)
    tested_on = jax.jit(sampler(problem.test_signals))(test_key)
    return Samples(D, sampler(config.training.batch), chosen_on, tested_on), None


def _given(config: Config, D: Dictionaries) -> tuple[Samples, Batch]:
    """Signals of a file, in its order: seven tenths to train, one to validate, two to test."""
    path = Path(config.problem.signals)
    Y = read_given(path, D[0] if isinstance(D, tuple) else D)
    X: Any
    if isinstance(D, tuple):
        X, entries = read_chain_codes(path, Y, D), f"entries X_1 to X_{len(D)}"
    else:
        X, entries = read_codes(path, Y, D), "entry X"
    needs = [f"loss {config.training.loss}"] if config.training.loss in WITH_CODES else []
    needs += dict.fromkeys(f"start {m.start}" for m in config.layers if _set_on_codes(m))
    if X is None and needs:
        raise ConfigError(
            f"{path}: has no codes ({entries} of a .npz file), which {' and '.join(needs)} would "
            "need; try loss lasso, start init"
        )
    if len(Y) < 3:
        raise ValueError(
            f"{path}: expected at least 3 signals, to train, to validate and to test, got {len(Y)}"
        )
    tested = max(1, len(Y) // 5)
    validated = max(1, len(Y) // 10)

    def rows(first: int, last: int) -> Batch:
        return jax.tree.map(lambda array: jnp.asarray(array[first:last]), (Y, X))

    trained, last = len(Y) - tested - validated, len(Y) - tested
    sample = resampler(*rows(0, trained), batch=config.training.batch)
    chosen_on = rows(0, min(trained, CHOSEN_ON))
    return Samples(D, sample, chosen_on, rows(last, len(Y))), rows(trained, last)


def _set_on_codes(model: ModelSection) -> bool:
    """Whether the start is set on signals with known codes."""
    theory = model.start == "analytic" and model.layer.from_theory is not None
    return theory or model.start == "calibrated"


def _start(config: Config, model: Model, problem: Samples, key: jax.Array, say: Say) -> Any:
    """The start of the layer; in a chain each layer starts on the codes of the one before."""
    if isinstance(model, Layer):
        return _layer_start(config.layers[0], problem, key, say)
    signals, Xs = problem.chosen_on
    known = any(map(_set_on_codes, config.layers))
    found: list[Unrolled] = []
    for j, (section, D) in enumerate(zip(config.layers, problem.D)):
        one = problem._replace(D=D, chosen_on=(signals, Xs[j]) if known else (None, None))
        told = _of_layer(say, j + 1)
        found.append(_layer_start(section, one, jax.random.fold_in(key, j), told))
        if known:
            signals = jax.jit(jax.vmap(section.layer.apply, (None, None, 0)))(found[j], D, signals)
    return tuple(found)


def _of_layer(say: Say, j: int) -> Say:
    def told(message: str) -> None:
        say(f"layer {j}: {message}")

    return told


def _layer_start(section: ModelSection, problem: Samples, key: jax.Array, say: Say) -> Unrolled:
    """The usual start, or what theory sets for the class of the sample, or that calibrated."""
    layer = section.layer
    params = layer.init(key, problem.D)
    if not _set_on_codes(section):
        return params  # also for families that start from theory, such as ISTA
    if layer.from_theory is not None:
        starts, remark, _ = from_theory(problem, layer)
        params = starts[layer]
        if section.start == "analytic":
            say(remark)
            return params
    say(f"calibrating on {len(problem.chosen_on[0])} signals")
    return analytic.calibrate(layer, params, problem.D, *problem.chosen_on)


def _loss(config: Config) -> Callable[..., jax.Array]:
    name = config.training.loss
    loss = training.lasso(config.problem.lam) if name == "lasso" else getattr(training, name)
    return training.deep(loss) if config.training.deep else loss


def _optimizer(config: Config) -> Callable[..., optax.GradientTransformation]:
    """The optimiser as a function of its rate."""
    name, clip = config.training.optimizer, config.training.clip

    def make(rate):
        optimizer = getattr(optax, name)(rate)
        if math.isinf(clip):
            return optimizer
        return optax.chain(optax.clip_by_global_norm(clip), optimizer)

    return make
