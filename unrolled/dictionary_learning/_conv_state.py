"""What convolutional dictionary learning goes through from sweep to sweep."""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled._checks import Array
from unrolled.dictionaries import Conv
from unrolled.dictionary_learning._conv_sweep import (
    Curvature,
    Problem,
    evaluated,
    extrapolated,
    sweep,
)
from unrolled.dictionary_learning._windows import (
    drawn_windows,
    moved,
    shifted_copies,
    steps_to_centre,
)

# Sweeps from one that begins with centred filters to the next, which centres one filter in _TURNS:
# a filter that loses by it holds back only the others of its turn.
_PERIOD, _TURNS = 10, 3


class Ahead(NamedTuple):
    """What `convolutional` continues with beside D and X: where its next sweep begins."""

    filters: Array  # (n_atoms, n_channels, *kernel)
    X: Array  # (n, d)
    t: np.ndarray  # () momentum counter
    objective: np.ndarray  # () of D and X, in the units of images near 1; inf at the start
    curvature: Curvature


class State(NamedTuple):
    """The best filters and codes, and where the next sweep begins."""

    D: Conv
    X: Array  # (n, d)
    ahead: Ahead


def advanced(state: State, problem: Problem, nonnegative: bool, step: int) -> State:
    """A sweep, now and then from centred filters, which count if the objective is lower then.

    A filter begins as a window of the images, which may cut what it finds, and codes that fit the
    cut filter hold it there.
    """
    turn, rest = divmod(step, _PERIOD)
    ahead = centred(state, turn) if rest == 0 else None
    if ahead is None:
        return _advanced(state, problem, nonnegative)
    other = _advanced(state._replace(ahead=ahead), problem, nonnegative)
    return other if other.ahead.objective < state.ahead.objective else state


def _advanced(state: State, problem: Problem, nonnegative: bool) -> State:
    """A sweep. If it ends above the best objective, the next one begins from the best."""
    D, X, (filters, codes, t, objective, curvature) = state
    end = sweep(problem, replace(D, filters=filters), codes, curvature, nonnegative)
    value = np.mean(np.asarray(end.objectives), dtype=float)
    if value > objective:
        return at_rest(D, X, objective, end.curvature)
    t_next = (1 + np.sqrt(1 + 4 * t**2)) / 2
    momentum = jnp.asarray((t - 1) / t_next, X.dtype)
    filters, codes = extrapolated((D, X), (end.D, end.X), momentum, nonnegative)
    return State(end.D, end.X, Ahead(filters, codes, t_next, value, end.curvature))


def at_rest(D: Conv, X: Array, objective: np.ndarray, curvature: Curvature) -> State:
    """A state without momentum."""
    return State(D, X, Ahead(D.filters, X, np.ones(()), objective, curvature))


def centred(state: State, turn: int) -> Ahead | None:
    """The best filters and codes with some filters in the middle of their kernels.

    A filter and its codes move in opposite directions, so that only what is cut changes the images.

    Returns:
        Where a sweep may begin; None where there is nothing to move, or nothing to compare with.
    """
    D, X, ahead = state
    steps = steps_to_centre(D)
    chosen = np.roll(np.flatnonzero(steps.any(1)), turn)[::_TURNS]
    if not len(chosen) or not np.isfinite(ahead.objective):
        return None
    filters, codes = np.array(D.filters), np.array(X).reshape(len(X), *D.code_grid)
    for j in chosen:
        filters[j] = moved(filters[j], steps[j] * D.stride, False)
        codes[:, j] = moved(codes[:, j], -steps[j], D.boundary == "circular")
    return ahead._replace(
        filters=jnp.asarray(filters), X=jnp.asarray(codes.reshape(X.shape)), t=np.ones(())
    )


def refreshed(state: State, problem: Problem, rng: np.random.Generator) -> tuple[State, int]:
    """Windows of the residual in place of filters that are unused, or shifts of another.

    Where no filter is used they all stay: the codes have not been found yet, or lam is too large.
    """
    D, X, ahead = state
    filters = np.array(D.filters)
    use = np.asarray(jnp.sum(jnp.abs(X.reshape(len(X), len(filters), -1)), (0, 2)))
    fresh = np.union1d(np.flatnonzero(use == 0), shifted_copies(filters, use))
    if not use.any() or not len(fresh):
        return state, 0
    stay = ~np.isin(np.arange(len(filters)), fresh)
    X = X * D.spread(jnp.asarray(stay, X.dtype))[None]
    R = np.asarray(evaluated(problem, D, X).R)
    R = R if problem.V is None else np.where(np.asarray(problem.V) > 0, R, 0)
    others = filters[stay].reshape(stay.sum(), -1)
    filters[fresh] = drawn_windows(D, R, others, len(fresh), rng)
    D = replace(D, filters=jnp.asarray(filters))
    return at_rest(D, X, np.array(np.inf), ahead.curvature), len(fresh)
