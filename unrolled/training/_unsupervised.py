"""Training without codes: one recipe for your signals and dictionary."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Self, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled._base import checks, programs
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike, Key
from unrolled._base.numbers import mean_norm
from unrolled._base.processes import processes_of
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    Structured,
    as_dictionary,
    column_norms,
    refuse_parts,
)
from unrolled.layers import FAMILIES, Layer, Unrolled, fista, lfista_cp
from unrolled.pursuit import clock
from unrolled.training._loop import Loop, make_loop
from unrolled.training._losses import lasso_loss
from unrolled.training._mesh import computing_on
from unrolled.training._objective import Data, Objective, split
from unrolled.training._options import Run, RunOptions
from unrolled.training._signals import Signals
from unrolled.training._stages import Stage, run_stages
from unrolled.training._types import Fit, NonFiniteError, Progress, Record, Sample, Trained, Tried
from unrolled.training._watch import bar, warn_of

__all__ = ["unsupervised"]


_NAME = "unsupervised"
# We chose the rates of our families, these numbers of training steps and the largest gradient norm
# on some problems and tested them on others (benchmarks/recipe.py). They are for signals and atoms
# of mean norm 1.
_TRIAL, _LONG = 300, 1500  # steps of a trial, and of the last training of `fista`
_CLIP = 0.01
_TIMED = 5  # timed steps, from which the seconds of all steps are predicted


@checked
@programs.takes_sharded
def unsupervised(
    D: Dictionary,
    Y: Sample | Array | np.ndarray | Any,
    lam: ArrayLike,
    depth: int = 16,
    *,
    key: Key,
    family: str | None = None,
    steps: int = 2000,
    relative: bool = False,
    validation: tuple | Any = None,
    mask: ArrayLike | None = None,
    **run: Unpack[RunOptions],
) -> Fit:
    r"""Train a layer on signals without codes: minimise the mean objective of the LASSO.

    .. math:: 1/2 \; \|y - D x_K(y)\|_2^2 + \lambda \|x_K(y)\|_1

    For a matrix D the recipe trains `layers.bcd`: for 300 steps at each of three rates, and for
    `steps` steps at the best rate. If `steps` is at most 300, the best trial is the result, unless
    callbacks, a log or a checkpoint must see a last run. For a structured dictionary, or with a
    mask, the recipe trains `layers.lfista_cp`. It first trains the 2 K numbers of a guarded `fista`
    for 300 steps at each of four rates, and for 1,500 steps at the best rate; then `lfista_cp` for
    300 steps from the best `fista` (`from_fista`) and for 300 steps from `init`. The last run
    trains `lfista_cp` for `steps` steps from the start whose 300 steps gave the smaller loss. By
    default these are 2,900 training steps for `bcd` and 5,300 for `lfista_cp`; the progress bar
    counts the steps of all runs, and shows the time that is left.

    Every run begins at its initial params, and all choices use the validation loss on held-back
    signals. Rates are in units of the mean norms of signals and atoms: if you scale D, or scale the
    signals and `lam` by the same factor, the params scale accordingly.

    Args:
        D: (m, d), a matrix or a structured dictionary.
        Y: (signals, m), or a sampler, as in `fit`. The last tenth of the signals is held back for
            validation.
        lam: the weight of the LASSO, one number.
        depth: K.
        key: the key of the batches; an int is a seed.
        family: "bcd", "lfista_cp" or "fista" to train this family; None chooses as above. "fista"
            trains only 2 K numbers, in less time than "lfista_cp". A family of your own is trained
            like `bcd`, from `init` at the rates `without_codes` of its `Recipe`.
        steps: number of training steps of the last run; no earlier run takes more steps.
        relative: whether each signal counts relative to its energy: the recipe then minimises the
            mean of F(x_K) / F(0), where F is the objective above, instead of the mean of F. If
            signals have unequal sizes, fewer signals end worse than at the start, and the mean of F
            may be larger (benchmarks/recipe.py --relative).
        validation, mask: as in `fit`.
        run: the options of `training.Run`, by name. Callbacks, log and checkpoints belong to the
            last training: a resumed run repeats the trials, which take seconds.

    Returns:
        A Fit, as returned by `fit`. `model` is the layer, `seconds` counts all runs, and `tried`
        has every run with its rate, start and least validation loss. The run that comes last in
        `tried` gives `best`, `judged` and `history`: for `lfista_cp` the last run; for other
        families the run with the least loss, which is almost always the longest run.

    Warns:
        UserWarning: in the same cases as `fit`.

    Raises:
        NonFiniteError: a loss or a gradient is not finite.
        TypeError, ValueError: in the same cases as `fit`; also if lam is negative or not one
            number, the depth is below 1, the family is unknown or has no rates, or the family does
            not take codes in parts and D has such codes.

    Not claimed: that a trained network repays the cost of its training. If codes have few nonzeros,
    or every code must be exact, use `pursuit.lasso_batch`; `recommend` chooses between these
    methods.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 10, 20)
        >>> Y, _ = ur.problems.sampler(D, batch=64)(jax.random.key(1))
        >>> trained = ur.training.unsupervised(D, Y, 0.1, depth=3, key=0, steps=20)
        >>> trained.model, trained.judged["best"] < trained.judged["ista"]
        (bcd(3), True)
        >>> [(each.family, each.steps) for each in trained.tried]  # a trial at each of three rates
        [('bcd', 20), ('bcd', 20), ('bcd', 20)]
    """
    lam = checks.as_number(lam, "lam", _NAME)
    checks.nonnegative(lam, "lam", _NAME)
    depth = checks.as_depth(depth, "depth", _NAME, least=1)
    steps = checks.as_index(steps, "steps", _NAME)
    check_family(family, _NAME)
    how = Run.of(_NAME, run)
    signals = Signals.of(as_dictionary(D, _NAME), Y, key, validation, mask, where=_NAME)
    problem = _Problem.of(signals, lam, relative)
    atoms = problem.signals.D
    layer: Any = plain(FAMILIES[family or family_without_codes(atoms, mask)], depth, lam)
    if not layer.takes_parts:
        refuse_parts(atoms, _NAME, "try family='lfista_cp'")
    shown = how.progress if processes_of(how.mesh, _NAME).is_first else False
    with bar(sum(run_lengths(layer, steps)), shown) as show:  # one bar of all runs
        callbacks = (*how.callbacks, show)
        how = dataclasses.replace(how, progress=False, callbacks=callbacks)
        return _by_family(problem, layer, steps, how)


def check_family(family: Any, where: str) -> None:
    """Refuse a family that `unsupervised` does not train; None is its own choice."""
    able = sorted(name for name, each in FAMILIES.items() if each.recipe.without_codes)
    if family not in (None, *able):
        raise ValueError(
            f"{where}: unknown family {family!r}; expected one of {', '.join(able)}, or None (a "
            "family of your own needs rates in Recipe(without_codes=rates))"
            f"{checks.meant(str(family), able)}"
        )


def run_lengths(layer: Layer, steps: int) -> list[int]:
    """The numbers of training steps of all runs of `unsupervised`, at most, in their order."""
    short, long = min(_TRIAL, steps), min(_LONG, steps)
    if not isinstance(layer, lfista_cp):
        return [short] * len(layer.recipe.without_codes) + [steps]
    trials = [short] * len(fista.recipe.without_codes) + [long] * (long > short)
    return [*trials, short, short, steps]


def seconds_of_training(layer: Layer, signals: Signals, lam: float, steps: int) -> float:
    """The seconds of `unsupervised` for a layer that `trained_layer` makes, predicted.

    The seconds are the sum of the seconds that compile a training step and of all steps, at the
    mean of a few steps.
    """
    now, how = clock(), Run(progress=False)
    began, problem = now(), _Problem.of(signals, lam, False)
    objective, data, optimizer = problem.training(layer, layer.init(None, problem.signals.D))
    loop = make_loop(objective, data, optimizer, how.shared)
    rate = layer.recipe.without_codes[0]
    state = _entered(loop, loop.start(data.trained), data.trained, rate, steps)
    state = loop.run(state, 1, how, lambda state, at: None)
    compiled = now()
    loop.run(state, 1 + _TIMED, how, lambda state, at: None)
    lengths = run_lengths(layer, steps)
    many = sum(lengths) - (steps if steps <= _TRIAL else 0)  # the best trial is the last run
    return compiled - began + many * (now() - compiled) / _TIMED


def trained_layer(family: str, depth: int, lam: float) -> Any:
    """The layer of few numbers that `unsupervised` trains: `fista` has a guard."""
    return (
        fista(depth, lam=lam, guard=lam)
        if family == "fista"
        else plain(FAMILIES[family], depth, lam)
    )


def plain(family: type[Layer], depth: int, lam: float) -> Layer:
    """The layer of a family without options other than lam, and without lam if it has none."""
    options: Any = {"lam": lam} if "lam" in family.__signature__.parameters else {}
    return family(depth, **options)


def family_without_codes(D: Dictionary, mask: Any = None) -> str:
    """The family that `unsupervised` trains for D if you name none."""
    return "lfista_cp" if isinstance(D, Structured) or mask is not None else "bcd"


def has_recipe(layer: Any) -> bool:
    """Whether `unsupervised` trains this layer: it has rates, a start to train, and only lam."""
    able = isinstance(layer, Layer) and layer.recipe.without_codes and hasattr(layer, "lam")
    if not able or layer.starts_from_theory:
        return False
    return layer == plain(type(layer), layer.depth, layer.lam)


class _Units(NamedTuple):
    """The mean norms of signals and of atoms."""

    signal: float
    atom: float


def _units(D: Operator, Y: Array) -> _Units:
    norms = np.asarray(column_norms(D), float)
    return _Units(mean_norm(np.asarray(Y)) or 1.0, mean_norm(norms[:, None]) or 1.0)


class _Problem(NamedTuple):
    """The data that all runs share."""

    signals: Signals
    lam: float
    relative: bool
    units: _Units

    @classmethod
    def of(cls, signals: Signals, lam: float, relative: bool) -> Self:
        """The problem in the common dtype of D and the signals."""
        judged_on = signals.validation[0]
        atoms: Operator = checks.cast(signals.D, checks.common_dtype(signals.D, judged_on))
        return cls(signals._replace(D=atoms), lam, relative, _units(atoms, judged_on))

    def training(
        self, layer: Layer, start: Unrolled
    ) -> tuple[Objective, Data, optax.GradientTransformation]:
        """The objective, the data and the optimiser of a run that trains `layer` from `start`."""
        loss = lasso_loss(self.lam, relative=self.relative)
        objective = Objective.of(_NAME, layer, loss)
        data = Data.of(objective, start, self.signals)
        units = Trained(layer.param_units(start, *self.units), data.trained.D)  # leaves: None
        energy = 1.0 if self.relative else self.units.signal**2
        return objective, data, _optimizer(units, energy)


class _Run(NamedTuple):
    """One run, its result, and its last state; None if a loss or a gradient was not finite."""

    tried: Tried
    fit: Fit
    state: Progress | None = None


def _least(runs: Sequence[_Run]) -> _Run:
    return min(runs, key=lambda run: run.tried.validation)


def _by_family(problem: _Problem, layer: Layer, steps: int, how: Run) -> Fit:
    key, lam, atoms = problem.signals.key, problem.lam, problem.signals.D
    few = trained_layer("fista", layer.depth, lam)
    if not isinstance(layer, lfista_cp):
        layer = few if isinstance(layer, fista) else layer
        return _few_numbers(problem, layer, layer.init(key, atoms), steps, how)
    short, plain = min(_TRIAL, steps), few.init(None, atoms)
    lengths = short, min(_LONG, steps)
    _, runs = _trials(problem.training(few, plain), few.recipe.without_codes, lengths, how)
    best = _least(runs).fit.best
    starts = {"fista": layer.from_fista(best, atoms), "init": layer.init(None, atoms)}
    fit = _many_numbers(problem, layer, starts, short, steps, how)
    seconds = fit.seconds + sum(run.fit.seconds for run in runs)
    return fit.replace(tried=(*(run.tried for run in runs), *fit.tried), seconds=seconds)


def _few_numbers(
    problem: _Problem,
    layer: Layer,
    start: Unrolled,
    steps: int,
    how: Run,
) -> Fit:
    """Train a layer of few numbers: short runs at its rates, and a run at the best rate.

    The result is that of the run with the least loss, which comes last in `tried`.
    """
    training = problem.training(layer, start)
    rates = layer.recipe.without_codes
    loop, runs = _trials(training, rates, (min(_TRIAL, steps), 0), how)
    best, rate = _least(runs), _least(runs).tried.rate
    seen = how.checkpoint is not None or how.log is not None or len(tuple(how.callbacks)) > 1
    if steps <= _TRIAL and best.state is not None and not seen:  # the last run is the best trial
        warn_of(loop, best.state)
        return _chosen(best, runs)
    enter = partial(_entered, start=split(start, problem.signals.D)[0], rate=rate, steps=steps)
    config = {"lam": problem.lam, "steps": steps}
    fit = run_stages(*training, how, steps, [Stage(enter=enter)], config, loop)
    last = _Run(Tried(layer.family, "init", rate, steps, fit.judged["best"]), fit)
    return _chosen(_least([last, *runs]), [*runs, last])  # `last` if another has the same loss


def _chosen(best: _Run, runs: list[_Run]) -> Fit:
    """The result of a run, with the seconds of all runs, and with this run last in `tried`.

    A trial that this run repeats is not listed.
    """
    others = [run.tried for run in runs if run.tried != best.tried]
    seconds = sum(run.fit.seconds for run in runs)
    return best.fit.replace(tried=(*others, best.tried), seconds=seconds)


def _trials(
    training: tuple[Objective, Data, optax.GradientTransformation],
    rates: tuple[float, ...],
    lengths: tuple[int, int],
    how: Run,
) -> tuple[Loop, list[_Run]]:
    """The compiled loop; short runs at all rates, and a long run at the best rate."""
    objective, data, _ = training
    family, show = objective.model.family, tuple(how.callbacks)[-1]
    short, long = lengths
    runs: list[_Run] = []
    with computing_on(how.mesh, _NAME):
        loop = make_loop(*training, how.shared)

        def train(rate: float, steps: int) -> None:
            begun = _entered(loop, loop.start(data.trained), data.trained, rate, steps)
            state = None
            try:
                state = loop.run(begun, steps, how, lambda state, at: show(state.records[-1], None))
                fit = loop.result(state)
            except NonFiniteError as error:  # other rates may work
                fit = error.fit
            arrays = {name: getattr(fit, name) for name in ("params", "best", "D")}
            fit = fit.replace(**loop.processes.local(arrays))
            runs.append(_Run(Tried(family, "init", rate, steps, fit.judged["best"]), fit, state))

        for rate in rates:
            train(rate, short)
        if long > short:  # otherwise the run repeats an earlier run
            train(_least(runs).tried.rate, long)
    return loop, runs


def _many_numbers(
    problem: _Problem,
    layer: Layer,
    starts: dict[str, Unrolled],
    short: int,
    steps: int,
    how: Run,
) -> Fit:
    """Train a layer: one stage from each start, and a last stage from the best start."""
    (rate,) = layer.recipe.without_codes
    wholes = {name: split(start, problem.signals.D)[0] for name, start in starts.items()}

    def trials(records: Sequence[Record]) -> list[Tried]:
        return [
            Tried(layer.family, name, rate, short, _least_of(records, stage))
            for stage, name in enumerate(starts)
        ]

    def enter(loop: Loop, state: Progress) -> Progress:
        best = min(trials(state.records), key=lambda trial: trial.validation)
        return _entered(loop, state, wholes[best.start], rate, steps)

    stages = [
        Stage(enter=partial(_entered, start=start, rate=rate, steps=short), steps=short)
        for start in wholes.values()
    ]
    training = problem.training(layer, next(iter(starts.values())))
    config = {"lam": problem.lam, "steps": steps}
    fit = run_stages(*training, how, steps, [*stages, Stage(enter=enter)], config)
    tried = trials(fit.history.records)
    best = min(tried, key=lambda trial: trial.validation)
    last = best.replace(steps=steps, validation=fit.judged["best"])
    return fit.replace(tried=(*tried, last))


def _least_of(records: Sequence[Record], stage: int) -> float:
    return min(record.validation for record in records if record.stage == stage)


class Falling(NamedTuple):
    """The state of a falling rate; one compiled program starts at any rate, from a new state."""

    done: Array
    rate: Array
    steps: Array


def _falling(rate: float, steps: int) -> Falling:
    return Falling(jnp.zeros((), jnp.int32), jnp.float32(rate), jnp.float32(max(1, steps)))


def _optimizer(units: Trained, energy: float) -> optax.GradientTransformation:
    """Adam on params and an objective, both measured in the units of the problem.

    The state of the optimiser holds the rate, which falls to zero along a cosine.
    """

    def times(factor):
        def one(unit, part):
            return jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype) * unit, part)

        return partial(jax.tree.map, one, units)

    def update(updates, state, params=None):
        done, rate, steps = state
        now = rate * (1 + jnp.cos(jnp.pi * done / steps)) / 2
        return times(-now)(updates), state._replace(done=done + 1)

    into = optax.stateless(lambda gradients, params: times(1 / energy)(gradients))
    falling = optax.GradientTransformation(lambda params: _falling(0.0, 1), update)
    return optax.chain(into, optax.clip_by_global_norm(_CLIP), optax.scale_by_adam(), falling)


def _entered(loop: Loop, state: Progress, start: Trained, rate: float, steps: int) -> Progress:
    """The state before a run of `steps` steps from `start` at the first rate `rate`."""
    fresh = loop.start(start)
    optimizer = (*fresh.optimizer[:-1], loop.place(_falling(rate, steps)))
    return state._replace(trained=fresh.trained, optimizer=optimizer, lowest=np.inf)
