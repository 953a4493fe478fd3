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
from unrolled.layers import FAMILIES, Layer, Unrolled, codes_of, fista, lfista_cp
from unrolled.pursuit import clock, lasso_batch
from unrolled.training._loop import Loop, make_loop
from unrolled.training._losses import lasso_loss, objectives_of
from unrolled.training._mesh import computing_on
from unrolled.training._objective import Data, Objective, split
from unrolled.training._options import Run, RunOptions
from unrolled.training._signals import Signals, is_masked
from unrolled.training._stages import Stage, run_stages
from unrolled.training._types import Fit, NonFiniteError, Progress, Sample, Trained, Tried
from unrolled.training._watch import bar, warn_of

__all__ = ["unsupervised"]


_NAME = "unsupervised"
# We chose the rates of our families, these numbers of training steps and the largest gradient norm
# on some problems and tested them on others (benchmarks/recipe.py). They are for signals and atoms
# of mean norm 1.
_TRIAL, _LONG = 100, 500  # steps of a trial, and of the last training of `fista`
_CLIP = 0.01
# Differences of objectives, in units of F(0), the objective of the zero code: a signal is worse if
# its objective rises by more than _WORSE; a mean gap below _NOTHING leaves nothing to gain. A run
# is accepted if at most a share of _MOST of the signals held back is worse, or one signal: with at
# most 100 signals held back, a run with a true share of 1 % then passes with probability 0.73 or
# more. If no signal could be worse, this probability would be 0.37 for 99 signals.
_WORSE, _NOTHING, _MOST = 1e-3, 1e-5, 0.01
_JUDGED = 512  # the most signals held back whose optimum is computed
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
    steps: int = 1000,
    relative: bool = True,
    validation: tuple | Any = None,
    mask: ArrayLike | None = None,
    **run: Unpack[RunOptions],
) -> Fit:
    r"""Train a layer on signals without codes: minimise the mean of F(x_K(y)) / F(0), where

    .. math:: F(x) = 1/2 \; \|y - D x\|_2^2 + \lambda \|x\|_1

    For a matrix D the recipe trains `layers.bcd`: for 100 steps at each of three rates, and for
    `steps` steps at the best rate. If `steps` is at most 100, the best trial is the result, unless
    callbacks, a log or a checkpoint must see a last run. For a structured dictionary, or with a
    mask, the recipe trains `layers.lfista_cp`. It first trains the 2 K numbers of a guarded `fista`
    for 100 steps at each of four rates, and for 500 steps at the best rate; then it trains
    `lfista_cp` for `steps` steps from the best `fista` (`from_fista`), or from `init` if that start
    has the smaller loss. By default these are 1,300 training steps for `bcd` and 1,900 for
    `lfista_cp`; the progress bar counts the steps of all runs, and shows the time that is left.

    Every run begins at its initial params, and all choices use signals that are held back. No run
    takes a step if the untrained layer is within 1e-5 of F(0) of the optimum in the mean. A run is
    accepted only if the objectives of at most 1 % of these signals (of one signal, if there are
    fewer than 100) rise by more than 1e-3 of F(0) from their values before training, and neither
    the mean, nor the median, nor the 90 % quantile of (F - F*) / F(0) rises. If no run is accepted,
    the result is the untrained layer. Rates are in units of the mean norms of signals and atoms: if
    you scale D, or scale the signals and `lam` by the same factor, the params scale accordingly.

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
        relative: False minimises the mean of F instead, to which large signals contribute most. If
            signals have unequal sizes, a run then makes more of them worse, and is more often
            refused.
        validation, mask: as in `fit`.
        run: the options of `training.Run`, by name. Callbacks, log and checkpoints belong to the
            last training: a resumed run repeats the trials, which take seconds.

    Returns:
        A Fit, as returned by `fit`. `model` is the layer, `seconds` counts all runs, and `tried`
        has every run with its rate, start and least validation loss. The run that comes last in
        `tried` gives `best`, `judged` and `history`: the accepted run with the least loss, which is
        almost always the longest run. `raised` is the share of the signals held back that became
        worse by more than 1e-3 of F(0).

    Warns:
        UserWarning: in the same cases as `fit`, or training gains nothing.

    Raises:
        NonFiniteError: a loss or a gradient is not finite.
        TypeError, ValueError: in the same cases as `fit`; also if lam is negative or not one
            number, the depth is below 1, the family is unknown or has no rates, or the family does
            not take codes in parts and D has such codes.

    Not claimed: that a trained network repays the cost of its training, or that the share of worse
    signals is as small for signals of another distribution. If codes have few nonzeros,
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
    return [*trials, steps]


def seconds_of_training(layer: Layer, signals: Signals, lam: float, steps: int) -> float:
    """The seconds of `unsupervised` for a layer that `trained_layer` makes, predicted.

    The seconds are the sum of the seconds that compile a training step and of all steps, at the
    mean of a few steps.
    """
    now, how = clock(), Run(progress=False)
    began, problem = now(), _Problem.of(signals, lam, True)
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

    def shares(self, layer: Layer, params: Unrolled) -> np.ndarray:
        """F(x_K) / F(0) of the signals held back, signal by signal."""
        Y, _, *own = self.signals.validation
        D = own[0] if own else self.signals.D
        return np.asarray(objectives_of(D, Y, codes_of(layer, params, D, Y), self.lam, True))

    def optima(self) -> np.ndarray:
        """F* / F(0) of at most _JUDGED signals held back, NaN for the others or if not certified.

        Signals with dictionaries of their own have no batch solver.
        """
        Y, _, *own = self.signals.validation
        best = np.full(len(Y), np.nan)
        if own and not is_masked(own[0]):
            return best
        some = slice(_JUDGED)
        mask = None if not own else np.asarray(own[0].mask[some]) > 0
        found = lasso_batch(self.signals.D, np.asarray(Y[some]), self.lam, mask=mask)
        D = jax.tree.map(lambda leaf: leaf[some], own[0]) if own else self.signals.D
        values = np.asarray(objectives_of(D, Y[some], found.x, self.lam, True))
        best[some] = np.where(np.asarray(found.converged), values, np.nan)
        return best


class _Run(NamedTuple):
    """One run, its result, and its last state; None if a loss or a gradient was not finite."""

    tried: Tried
    fit: Fit
    state: Progress | None = None


def _least(runs: Sequence[_Run]) -> _Run:
    return min(runs, key=lambda run: run.tried.validation)


class _Judge(NamedTuple):
    """What training must not make worse: objectives of the signals held back, over F(0)."""

    before: np.ndarray  # of the untrained layer
    best: np.ndarray  # of optimal codes; NaN if not known

    def gaps(self, shares: np.ndarray) -> np.ndarray:
        """The mean, the median and the 90 % quantile of (F - F*) / F(0)."""
        known = np.isfinite(self.best)
        of = (shares - self.best)[known] if known.any() else shares
        return np.array([of.mean(), *np.quantile(of, (0.5, 0.9))])

    def raised(self, shares: np.ndarray) -> float:
        """The share of the signals that are worse."""
        return float(np.mean(shares - self.before > _WORSE))

    def accepts(self, shares: np.ndarray) -> bool:
        rises = self.gaps(shares) - self.gaps(self.before)
        most = max(_MOST, 1 / len(shares))
        return self.raised(shares) <= most and bool((rises <= _NOTHING).all())

    @property
    def is_done(self) -> bool:
        """Whether the untrained layer leaves nothing to gain."""
        return bool(np.isfinite(self.best).any()) and self.gaps(self.before)[0] <= _NOTHING


def _by_family(problem: _Problem, layer: Layer, steps: int, how: Run) -> Fit:
    key, atoms = problem.signals.key, problem.signals.D
    few = trained_layer("fista", layer.depth, problem.lam)
    layer = few if isinstance(layer, fista) else layer
    start = layer.init(key, atoms)
    judge = _Judge(problem.shares(layer, start), problem.optima())
    if steps and judge.is_done:
        checks.warn(
            f"{_NAME}: training gains nothing: on the signals held back, the untrained {layer!r} "
            f"is within {_NOTHING:g} F(0) of the optimum in the mean"
        )
        steps = 0
    if not isinstance(layer, lfista_cp):
        return _trained(problem, layer, {"init": start}, steps, how, judge)
    lengths = min(_TRIAL, steps), min(_LONG, steps)
    training = problem.training(few, few.init(None, atoms))
    _, runs = _trials(training, few.recipe.without_codes, lengths, how)
    starts = {"fista": layer.from_fista(_least(runs).fit.best, atoms), "init": start}
    fit = _trained(problem, layer, starts, steps, how, judge)
    seconds = fit.seconds + sum(run.fit.seconds for run in runs)
    return fit.replace(tried=(*(run.tried for run in runs), *fit.tried), seconds=seconds)


def _trained(
    problem: _Problem,
    layer: Layer,
    starts: dict[str, Unrolled],
    steps: int,
    how: Run,
    judge: _Judge,
) -> Fit:
    """Train a layer from the best start: short runs at its rates, and a run at the best rate.

    The result is the accepted run with the least loss, which comes last in `tried`.
    """
    losses = {name: problem.shares(layer, start).mean() for name, start in starts.items()}
    name = min(losses, key=lambda name: losses[name])
    start = starts[name]
    training, rates = problem.training(layer, start), layer.recipe.without_codes
    short = min(_TRIAL, steps)
    loop, runs = _trials(training, rates if steps and len(rates) > 1 else (), (short, 0), how, name)
    rate = _least(runs).tried.rate if runs else rates[0]
    seen = how.checkpoint is not None or how.log is not None or len(tuple(how.callbacks)) > 1
    if runs and steps <= _TRIAL and (state := _least(runs).state) is not None and not seen:
        warn_of(loop, state)  # the last run is the best trial
    else:
        enter = partial(_entered, start=split(start, problem.signals.D)[0], rate=rate, steps=steps)
        config = {"lam": problem.lam, "steps": steps}
        fit = run_stages(*training, how, steps, [Stage(enter=enter)], config, loop)
        last = _Run(Tried(layer.family, name, rate, steps, fit.judged["best"]), fit)
        runs = [last, *runs]  # `last` if another has the same loss
    accepted = [run for run in runs if judge.accepts(problem.shares(layer, run.fit.best))]
    if not accepted:
        checks.warn(
            f"{_NAME}: training gains nothing: each run makes more than {100 * _MOST:g} % of the "
            "signals held back worse, or raises a quantile of their gaps; the result is the "
            f"untrained {layer!r}"
        )
        whole = problem.training(layer, layer.init(problem.signals.key, problem.signals.D))
        accepted = _trials(whole, rates[:1], (0, 0), how)[1]
        runs = [*runs, *accepted]
    best = _least(accepted)
    raised = judge.raised(problem.shares(layer, best.fit.best))
    return _chosen(best, runs).replace(raised=raised)


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
    name: str = "init",
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
            runs.append(_Run(Tried(family, name, rate, steps, fit.judged["best"]), fit, state))

        for rate in rates:
            train(rate, short)
        if long > short:  # otherwise the run repeats an earlier run
            train(_least(runs).tried.rate, long)
    return loop, runs


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
