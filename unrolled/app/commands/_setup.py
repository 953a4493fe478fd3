"""The arguments of `fit` for a configuration: D, signals, layer, start, loss, optimiser."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import analytic, dictionaries, metrics, problems, training
from unrolled._base import checks
from unrolled._base.files import LARGEST_BYTES, MappedRows, drawing, whole_file
from unrolled._base.text import in_rows
from unrolled.app.commands import _config, _inputs
from unrolled.app.commands._config import Config, ConfigError
from unrolled.app.commands._config import Model as ModelSection
from unrolled.app.commands._console import Say
from unrolled.app.commands._inputs import read_codes, read_dictionary, read_given
from unrolled.app.studies import CHOSEN_ON, Samples, from_theory
from unrolled.dictionaries import as_chain
from unrolled.layers import Layer, Unrolled
from unrolled.networks import Network, dsc
from unrolled.problems import resampler
from unrolled.pursuit import DEFAULT_LAM, LARGEST_LAM, default_lam, lasso_batch
from unrolled.vision import datasets

# If a file is too large for memory, validation and test get as many signals as from a file with
# this number of signals.
_OF_LARGE = 100_000

Model = Layer | Network
Dictionaries = Any  # one dictionary, or a tuple for a chain
Batch = tuple[Any, Any]  # (Y, X); X is a tuple for a chain, and None if codes are not known


class Setup(NamedTuple):
    """A run, ready to start."""

    model: Model
    params: Any  # the start
    D: Dictionaries
    sample: Callable[..., Any]
    validation: Batch | None  # signals to choose the best params on; if None, `fit` draws them
    tested_on: Batch
    loss: Callable[..., jax.Array]
    optimizer: Callable[..., optax.GradientTransformation]  # a function of the rate or schedule
    key: jax.Array


def setup(config: Config, say: Say) -> Setup:
    """The arguments of the training, checked before its first step.

    Raises:
        ValueError: files do not fit, or the layer refuses an option.
        OSError: a file cannot be read.
    """
    start_key, chosen_key, test_key, key = jax.random.split(jax.random.key(config.seed), 4)
    D = _dictionary(config)
    model = _config.make_model(config)
    problem, validation = _problem(config, D, chosen_key, test_key, say)
    loss, optimizer = _loss(config), _optimizer(config)
    model, params = _start(config, model, problem, start_key, loss, say)
    return Setup(
        model, params, D, problem.sample, validation, problem.tested_on, loss, optimizer, key
    )


def _dictionary(config: Config) -> Dictionaries:
    problem = config.problem
    if isinstance(problem.dictionary, tuple):
        return as_chain([read_dictionary(Path(path)) for path in problem.dictionary], "train")
    if problem.dictionary not in _config.GENERATED:
        return read_dictionary(Path(problem.dictionary))
    # `load` has given these options a value.
    assert problem.m and problem.d and problem.dictionary_seed is not None
    key = jax.random.key(problem.dictionary_seed)
    if problem.dictionary == "gaussian":
        return dictionaries.gaussian(key, problem.m, problem.d)
    assert problem.kappa
    return dictionaries.ill_conditioned(key, problem.m, problem.d, problem.kappa)


def _problem(
    config: Config, D: Dictionaries, chosen_key: jax.Array, test_key: jax.Array, say: Say
) -> tuple[Samples, Batch | None]:
    """The signals for training, for the start and for testing, and the validation signals."""
    if config.problem.signals != _config.PLANTED:
        return _own_samples(config, D, say)
    problem = config.problem
    # `load` has given these options a value.
    assert problem.probability and problem.snr is not None and problem.test_signals
    sampler = partial(problems.sampler, D, probability=problem.probability, snr=problem.snr)
    chosen_on: Batch = (None, None)
    if any(model.set_on_signals for model in config.layers):
        chosen_on = drawing(sampler(CHOSEN_ON))(chosen_key)
    tested_on = drawing(sampler(problem.test_signals))(test_key)
    return Samples(D, sampler(config.training.batch), chosen_on, tested_on), None


# If one of these options is given, the recipe for signals without codes does not apply.
_OTHER_WAYS = ("family", "start", "loss", "method", "codes")


def settled(path: Path | None, flags: Mapping[str, Any], say: Say) -> Config:
    """Load the configuration; choose lam, and the method if there are no codes, by the signals.

    Raises:
        ConfigError: see `load`.
        ValueError, OSError: a file cannot be read, or files do not fit.
    """
    config = _config.load(path, flags)
    if config.problem.signals == _config.PLANTED:
        return config
    signals = Path(config.problem.signals)
    entries = datasets.entries(signals) if signals.suffix == ".npz" and signals.is_file() else []
    known = config.problem.codes is None and {"X", "X_1"} & set(entries)
    if not known and _config.leaves_open(path, flags, _OTHER_WAYS):
        family = training.family_without_codes(_dictionary(config))
        flags = {**flags, "method": _config.UNSUPERVISED, "family": family}
    if config.problem.lam is None:
        flags = {
            **flags,
            "lam": _config.PLANTED_LAM if known else _chosen_lam(config, signals, say),
        }
    return _config.load(path, flags)


def _chosen_lam(config: Config, signals: Path, say: Say) -> float:
    D, ratio = _dictionary(config), config.problem.ratio
    Y, first = _inputs.open_given(signals, D), D[0] if isinstance(D, tuple) else D
    lam = default_lam(first, Y) if ratio is None else default_lam(first, Y, ratio)
    lam = float(f"{lam:.3g}")
    share = DEFAULT_LAM if ratio is None else f"{ratio:g} of {LARGEST_LAM}"
    say(f"lam = {lam:g}, {share}")
    return lam


def _own_samples(config: Config, D: Dictionaries, say: Say) -> tuple[Samples, Batch]:
    """Signals of a file, in file order: 70 % for training, 10 % for validation, 20 % for testing.

    If the file is too large for memory, at most 10,000 signals are for validation and 20,000
    signals for testing.
    """
    path, codes = Path(config.problem.signals), config.problem.codes
    open_file = _inputs.open_given if codes is None else read_given  # the LASSO needs all signals
    Y: Any = open_file(path, D)
    X = read_codes(path, Y, D) if codes is None else _made_codes(config, D, Y, say)
    needs = [f"loss {config.training.loss}"] if config.training.loss in _config.WITH_CODES else []
    needs += dict.fromkeys(f"start {m.start}" for m in config.layers if m.needs_codes)
    if X is None and needs:
        chained = isinstance(D, tuple)
        entries = f"entries X_1 to X_{len(D)}" if chained else "entry X"
        make = "" if chained else ", or codes lasso, which makes them"
        raise ConfigError(
            f"{path}: has no codes ({entries} of a .npz file), which {' and '.join(needs)} would "
            f"need; try loss lasso, start init or calibrated{make}"
        )
    if len(Y) < 3:
        raise ValueError(
            f"{path}: expected at least 3 signals, to train, to validate and to test, got {len(Y)}"
        )
    large = isinstance(Y, MappedRows) and Y.array.nbytes > LARGEST_BYTES
    n = min(len(Y), _OF_LARGE) if large else len(Y)
    tested, validated = max(1, n // 5), max(1, n // 10)

    def rows(first: int, last: int) -> Batch:
        return jax.tree.map(lambda array: jnp.asarray(array[first:last]), (Y, X))

    trained, last = len(Y) - tested - validated, len(Y) - tested
    to_train: Batch = jax.tree.map(lambda array: array[:trained], (Y, X))
    sample = resampler(*to_train, batch=config.training.batch)
    chosen_on = rows(0, min(trained, CHOSEN_ON))
    return Samples(D, sample, chosen_on, rows(last, len(Y))), rows(trained, last)


def _made_codes(config: Config, D: Dictionaries, Y: np.ndarray, say: Say) -> np.ndarray:
    """LASSO codes of the signals, computed once and kept in the run folder.

    All signals share one lam, as they share the thresholds of a network. With one lam per signal,
    the target would scale with the signal, whereas the code of the network does not.
    """
    path, lam = Path(config.output) / _inputs.CODES, config.problem.lam
    if path.exists():
        return read_codes(path, Y, D)
    say(f"solving {len(Y):,} LASSO problems, lam = {lam:g}")
    coded = lasso_batch(D, Y, lam)
    X, missed = np.asarray(coded.x, np.float32), np.flatnonzero(~np.asarray(coded.converged))
    with whole_file(path) as file:
        np.savez(file, X=X)
    miss = f"; {len(missed)} miss their tolerance{in_rows(missed)}" if len(missed) else ""
    say(f"codes with {_inputs.nonzeros(D, X) / len(X):.1f} nonzeros on average: {path}{miss}")
    return X


def _start(
    config: Config, model: Model, problem: Samples, key: jax.Array, loss: Any, say: Say
) -> tuple[Model, Any]:
    """The model and its start; in a chain each layer starts on the codes of the layer before."""
    if isinstance(model, Layer):
        return _layer_start(config.layers[0], problem, key, loss, say)
    signals, Xs = problem.chosen_on
    chosen = any(model.set_on_signals for model in config.layers)
    pairs: list[tuple[Layer, Unrolled]] = []
    for j, (section, D) in enumerate(zip(config.layers, problem.D)):
        X = None if Xs is None else Xs[j]
        one = problem._replace(D=D, chosen_on=(signals, X) if chosen else (None, None))
        said = partial(_say_of_layer, say, j + 1)
        layer, params = _layer_start(section, one, jax.random.fold_in(key, j), loss, said)
        pairs.append((layer, params))
        if chosen:
            signals = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, signals)
    layers, starts = zip(*pairs)
    return dsc(layers), starts


def _say_of_layer(say: Say, j: int, message: str) -> None:
    say(f"layer {j}: {message}")


def _layer_start(
    section: ModelSection, problem: Samples, key: jax.Array, loss: Any, say: Say
) -> tuple[Layer, Unrolled]:
    """The layer and its start: from `init`, a recipe, theory for the sample, or calibration.

    If codes are not known, the calibration minimises the training loss.
    """
    layer, (Y, X) = section.layer, problem.chosen_on
    if section.start == "recipe":
        start = training.prepare(
            type(layer), problem.D, Y, X, depth=layer.depth, key=key, **_own_options(layer)
        )
        say(repr(start))
        return start.layer, start.params
    begun = [layer.init(key, problem.D)]
    if not section.set_on_signals:
        return layer, begun[0]  # families such as ISTA start from theory here
    if layer.from_theory is not None and X is not None:
        starts = from_theory(problem, layer)
        begun.append(starts.params[layer])
        if section.start == "analytic":
            say(starts.remark)
            return layer, begun[-1]
    by = "" if X is not None else ", by the loss: their codes are not known"
    say(f"calibrating on {len(Y)} signals{by}")
    return layer, _calibrated(layer, begun, problem, loss)


def _calibrated(layer: Layer, begun: list[Unrolled], problem: Samples, loss: Any) -> Unrolled:
    """The best params after calibration, judged by the error of the codes or by the loss.

    For some dictionaries, errors grow so fast under the unit steps of theory that every step size
    in a calibration is too long. Under the steps of `init`, errors do not grow.
    """
    D, (Y, X) = problem.D, problem.chosen_on
    by_loss = loss if X is None else None
    if len(begun) == 1:
        return analytic.calibrate(layer, begun[0], D, Y, X, loss=by_loss)
    with checks.quiet():  # it is not an error if calibration does not improve a start
        made = [analytic.calibrate(layer, params, D, Y, X) for params in begun]
    apply = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    errors = [np.nan_to_num(metrics.nmse(apply(params, D, Y), X), nan=np.inf) for params in made]
    return made[int(np.argmin(errors))]


def _own_options(layer: Layer) -> dict[str, Any]:
    """The options of a layer that differ from the defaults of its family."""
    values = {f.name: (getattr(layer, f.name), f.default) for f in dataclasses.fields(layer)}
    return {n: value for n, (value, default) in values.items() if value != default and n != "depth"}


def _loss(config: Config) -> Callable[..., jax.Array]:
    name = config.training.loss
    assert config.problem.lam is not None  # `settled`
    loss = training.lasso_loss(config.problem.lam) if name == "lasso" else getattr(training, name)
    return training.deep(loss) if config.training.deep else loss


def _optimizer(config: Config) -> Callable[..., optax.GradientTransformation]:
    """A function from a learning rate to the optimiser."""
    name, clip = config.training.optimizer, config.training.clip

    def make(rate):
        optimizer = getattr(optax, name)(rate)
        if math.isinf(clip):
            return optimizer
        return optax.chain(optax.clip_by_global_norm(clip), optimizer)

    return make
