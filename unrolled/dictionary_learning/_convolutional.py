"""Convolutional dictionary learning: filters, and codes at every position, from whole images."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike, Key
from unrolled.dictionaries import Conv
from unrolled.dictionary_learning import _conv_sweep
from unrolled.dictionary_learning._conv_sweep import Curvature, Problem, sweep
from unrolled.dictionary_learning._learning import (
    Arrays,
    Keeper,
    Learned,
    Method,
    Options,
    Progress,
    Signals,
    as_lam,
    fingerprint,
    learn,
    scaled_penalty,
    unit_rows,
    weighted_signals,
)

__all__ = ["convolutional"]


# Every _PERIOD sweeps, one sweep begins with centred filters. Such a sweep centres one in _TURNS of
# the off-centre filters. So a filter whose centring raises the objective affects only the filters
# that are centred in the same sweep.
_PERIOD, _TURNS = 10, 3


class Ahead(NamedTuple):
    """The start of the next sweep, which is needed in addition to D and X to continue."""

    filters: Array  # (n_atoms, n_channels, *kernel)
    X: Array  # (n, d)
    t: np.ndarray  # () momentum counter
    objective: np.ndarray  # () objective of D and X, in units of images near 1; inf at the start
    curvature: Curvature


class State(NamedTuple):
    """The best filters and codes, and the start of the next sweep."""

    D: Conv
    X: Array  # (n, d)
    ahead: Ahead


def advanced(state: State, problem: Problem, nonnegative: bool, step: int) -> State:
    """One sweep; every tenth starts from centred filters, and counts only if the objective falls.

    A filter begins as a window of the images, which may cut off a part of a structure. The codes
    that fit the cut filter then keep the filter at this position.
    """
    turn, rest = divmod(step, _PERIOD)
    ahead = centred(state, turn) if rest == 0 else None
    if ahead is None:
        return _swept(state, problem, nonnegative)
    other = _swept(state._replace(ahead=ahead), problem, nonnegative)
    return other if other.ahead.objective < state.ahead.objective else state


def _swept(state: State, problem: Problem, nonnegative: bool) -> State:
    """One sweep; if it ends above the best objective, the next sweep starts from the best state."""
    D, X, (filters, codes, t, objective, curvature) = state
    end = sweep(problem, replace(D, filters=filters), codes, curvature, nonnegative)
    value = np.mean(np.asarray(end.objectives), dtype=float)
    if value > objective:
        return at_rest(D, X, objective, end.curvature)
    t_next = (1 + np.sqrt(1 + 4 * t**2)) / 2
    momentum = jnp.asarray((t - 1) / t_next, X.dtype)
    filters, codes = _conv_sweep.extrapolated((D, X), (end.D, end.X), momentum, nonnegative)
    return State(end.D, end.X, Ahead(filters, codes, t_next, value, end.curvature))


def at_rest(D: Conv, X: Array, objective: np.ndarray, curvature: Curvature) -> State:
    """A state without momentum."""
    return State(D, X, Ahead(D.filters, X, np.ones(()), objective, curvature))


def centred(state: State, turn: int) -> Ahead | None:
    """The best filters and codes, with some filters moved to the middle of their kernels.

    A filter and its codes move in opposite directions, so that the images change only by the
    entries that are cut off.

    Returns:
        The start of a sweep; None if no filter moves, or if there is no objective to compare with.
    """
    D, X, ahead = state
    steps = _conv_sweep.steps_to_centre(D)
    chosen = np.roll(np.flatnonzero(steps.any(1)), turn)[::_TURNS]
    if not len(chosen) or not np.isfinite(ahead.objective):
        return None
    filters, codes = np.array(D.filters), np.array(X).reshape(len(X), *D.code_grid)
    for j in chosen:
        filters[j] = _conv_sweep.moved(filters[j], steps[j] * D.stride, False)
        codes[:, j] = _conv_sweep.moved(codes[:, j], -steps[j], D.boundary == "circular")
    return ahead._replace(
        filters=jnp.asarray(filters), X=jnp.asarray(codes.reshape(X.shape)), t=np.ones(())
    )


def refreshed(state: State, problem: Problem, rng: np.random.Generator) -> tuple[State, int]:
    """Replace filters that are unused, or shifts of another filter, by windows of the residual.

    If no filter is used, all filters stay: the codes have not been found yet, or lam is too large.
    """
    D, X, ahead = state
    filters = np.array(D.filters)
    use = np.asarray(jnp.sum(jnp.abs(X.reshape(len(X), len(filters), -1)), (0, 2)))
    fresh = np.union1d(np.flatnonzero(use == 0), _conv_sweep.shifted_copies(filters, use))
    if not use.any() or not len(fresh):
        return state, 0
    stay = ~np.isin(np.arange(len(filters)), fresh)
    X = X * D.spread(jnp.asarray(stay, X.dtype))[None]
    R = np.asarray(_conv_sweep.evaluated(problem, D, X).R)
    R = R if problem.V is None else np.where(np.asarray(problem.V) > 0, R, 0)
    others = filters[stay].reshape(stay.sum(), -1)
    filters[fresh] = _conv_sweep.drawn_windows(D, R, others, len(fresh), rng)
    D = replace(D, filters=jnp.asarray(filters))
    return at_rest(D, X, np.array(np.inf), ahead.curvature), len(fresh)


def checked_images(
    images: ArrayLike,
    filters: tuple[int, ...] | ArrayLike,
    geometry: tuple[int | tuple[int, ...], str],
    weights: ArrayLike | None,
    mask: ArrayLike | None,
    where: str,
) -> tuple[Signals, Conv, bool]:
    """The images in rows, a `Conv` of the right shape, and whether it holds initial filters.

    Without initial filters, the filters of the `Conv` are zero.
    """
    checks.on_host((images, filters, weights, mask), where, "images, filters, weights or mask")
    has_filters = np.ndim(filters) > 1
    bank = checks.as_float(filters, "filters", where) if has_filters else _zeros(filters, where)
    images = checks.as_float(images, "images", where)
    dimensions, shape = bank.ndim - 2, images.shape
    if dimensions < 1 or images.ndim not in (dimensions + 1, dimensions + 2) or 0 in shape:
        raise ValueError(
            f"{where}: images have shape {shape} and filters {bank.shape}; expected (n, n_channels,"
            " *signal_shape), or (n, *signal_shape), and (n_atoms, n_channels, *kernel)"
        )
    channels, *kernel = bank.shape[1:]
    planes = shape[1] if images.ndim == dimensions + 2 else 1
    if planes != channels:
        raise ValueError(
            f"{where}: images of shape {shape} have {planes} channels but filters have {channels}"
        )
    signal_shape = shape[-dimensions:]
    if any(n > N for n, N in zip(kernel, signal_shape)):
        raise ValueError(
            f"{where}: filters of shape {tuple(kernel)} are longer than images of {signal_shape}"
        )
    signals = weighted_signals(
        images.reshape(len(images), -1),
        where,
        _rows(weights, shape, "weights", where),
        _rows(mask, shape, "mask", where),
        "images",
    )
    D = Conv(bank.astype(signals.Y.dtype), signal_shape, *geometry)
    checks.check_memory((len(images), D.shape[1]), D.dtype, "the codes", where)
    return signals, D, has_filters


def _zeros(shape: Any, where: str) -> Array:
    sizes = [checks.as_index(n, "filters", where, least=1) for n in np.atleast_1d(shape)]
    checks.check_memory(tuple(sizes), jnp.result_type(float), "the filters", where)
    return jnp.zeros(sizes)


def _rows(
    value: ArrayLike | None, shape: tuple[int, ...], name: str, where: str
) -> np.ndarray | None:
    """Weights of whole images, or of their samples, in rows."""
    if value is None:
        return None
    value = np.asarray(value)
    if value.shape not in (shape, shape[:1]):
        raise ValueError(
            f"{where}: {name} has shape {value.shape}; expected {shape}, as the images, or "
            f"{shape[:1]}"
        )
    return value.reshape(len(value), -1)


@checked
def convolutional(
    images: ArrayLike,
    filters: tuple[int, ...] | ArrayLike,
    *,
    lam: float,
    sweeps: int = 50,
    key: Key = 0,
    stride: int | tuple[int, ...] = 1,
    boundary: str = "valid",
    nonnegative: bool = False,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""Convolutional dictionary learning: a few filters, whose shifts are the atoms.

    .. math:: \min_{D, X} \frac1n \sum_{k=1}^n \tfrac12 \|y_k - D x_k\|^2 + lam \|x_k\|_1

    The minimum is over the `Conv` dictionaries D with unit filters. A sweep takes 3 steps for the
    filters in the unit balls, scales the filters to norm 1 together with the codes (which lowers
    the penalty), and takes 5 steps for the codes. All these steps are steps of FISTA, as large as
    the curvature allows. A sweep begins at a point that is extrapolated beyond the end of the last
    sweep, with the momentum of FISTA. If the sweep ends above the best objective, the sweep does
    not count, and the next sweep begins without momentum. Every tenth sweep first moves a third of
    the off-centre filters, with their codes, to the centre of their kernels; this sweep counts only
    if it lowers the objective. So the objective falls from sweep to sweep unless filters are
    replaced. Filters that no code uses, and filters that are nearly shifts of another filter (inner
    product above 0.99), are replaced by windows of the residual.

    Args:
        images: (n, n_channels, *signal_shape), or (n, *signal_shape) for one channel.
        filters: the shape (n_atoms, n_channels, *kernel), or an array of initial filters. If only
            the shape is given, the function draws the filters from the windows of the images, with
            probabilities proportional to the energy of the windows. It also draws a window in place
            of every initial filter that is zero.
        lam: penalty weight.
        sweeps: total number of sweeps, including the sweeps of `resume`.
        key: a typed key, or a seed, for the start and for replacements.
        stride, boundary: as in `dictionaries.Conv`.
        nonnegative: if True, learn codes x >= 0.
        weights: weights of the squared errors, (n,) or in the shape of `images`, non-negative, of
            any scale.
        mask: in the shape of `images`, True where a sample is known; unknown samples may be NaN.
        progress: called as `progress(step)` after every sweep, with a `Step`.
        resume: a result to continue from. If the other arguments are the same, the result is
            bit-identical to the result of an uninterrupted call; in half precision, the two results
            are equal up to rounding.
        checkpoint: a file (.npz) in which the function saves its state after the last sweep, and
            after earlier sweeps at most once in 5 seconds. If the file exists, the same call
            continues from it.

    Returns:
        Learned, in the dtype of the images. D is a `Conv`, X has the shape (n, *D.code_grid), and
        `objective` is the mean above, computed with the weights.

    Raises:
        TypeError: arrays are traced or not real numbers, mask is not bool, or counts are not
            integers.
        ValueError: shapes do not fit, filters are longer than the images, lam is not above 0, NaN
            occur without a mask, the boundary is unknown, or `resume` has another shape.
        CheckpointError: the file is damaged, or comes from another call.

    Warns:
        UserWarning: lam is so large that all codes are zero, and D does not change.

    Not claimed: a global minimum. A filter is determined only up to its sign and a shift. Entries
    that a shift moves out of the kernel are lost; moves to the centre repair most of this loss.

    Reference: Zeiler, Krishnan, Taylor, Fergus (2010); Garcia-Cardona, Wohlberg (2018), a survey;
    Beck, Teboulle (2009) for the steps; Pock, Sabach (2016) for momentum in blocks.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.array([[[1.0, 2.0, 1.0]], [[1.0, -1.0, 0.0]]]), 40)
        >>> X = ur.problems.exact_sparse(jax.random.key(0), (20, D.shape[1]), 4)
        >>> learned = ur.dictionary_learning.convolutional(X @ D.T, (2, 1, 3), lam=0.05)
        >>> learned.D.filters.shape, learned.X.shape
        ((2, 1, 3), (20, 2, 38))
    """
    options = Options(sweeps, key, progress, resume, checkpoint, weights=weights, mask=mask)
    return learn(_Filters(images, filters, (stride, boundary), lam, nonnegative, options), options)


class _Filters(Method):
    """Sweeps through the filters and the codes of all images."""

    where = "convolutional"

    def __init__(
        self,
        images: ArrayLike,
        filters: tuple[int, ...] | ArrayLike,
        geometry: tuple[int | tuple[int, ...], str],
        lam: float,
        nonnegative: bool,
        options: Options,
    ):
        where, weights, mask = self.where, options.weights, options.mask
        self.signals, self.D, self.has_filters = checked_images(
            images, filters, geometry, weights, mask, where
        )
        self.lam = as_lam(lam, where)
        self.nonnegative = nonnegative
        self.problem = _problem(self.signals, self.lam)

    def config(self) -> dict[str, Any]:
        D = self.D
        return {
            "filters": [*D.filters.shape],
            "stride": [*D.stride],
            "boundary": D.boundary,
            "lam": float(self.lam),
            "nonnegative": self.nonnegative,
            "images": self.signals.fingerprint(),
            "exponent": self.signals.exponent,
            "start": fingerprint(np.asarray(D.filters)) if self.has_filters else "data",
        }

    def start(self, rng: np.random.Generator) -> State:
        """The start: zero codes, and windows instead of zero filters."""
        D, Y = self.D, self.signals.Y
        rows = unit_rows(np.asarray(D.filters).reshape(len(D.filters), -1))
        drawn = ~rows.any(1)
        filters = rows.reshape(D.filters.shape)
        filters[drawn] = _conv_sweep.drawn_windows(D, Y, rows[~drawn], drawn.sum(), rng)
        values = (
            filters,
            np.zeros((len(Y), D.shape[1]), Y.dtype),
            (np.ones((), Y.dtype), np.full(len(Y), len(filters), Y.dtype)),
        )
        filters, X, curvature = jax.device_put(values)  # `jnp.zeros` would compile a program
        return at_rest(replace(D, filters=filters), X, np.array(np.inf), Curvature(*curvature))

    def resumed(self, resume: Learned) -> State:
        n, past, ahead = len(self.signals.Y), resume.D, resume.state
        fits = isinstance(past, Conv) and past.is_shift_of(self.D) and past.shape == self.D.shape
        if not fits or not isinstance(ahead, Ahead) or len(ahead.X) != n:
            raise ValueError(
                f"{self.where}: resume is not a result of `convolutional` with such filters and "
                f"{n} images"
            )
        dtype = self.signals.Y.dtype
        X = np.ldexp(np.asarray(resume.X, dtype).reshape(n, -1), -self.signals.exponent)
        return State(checks.cast(past, dtype), jnp.asarray(X), ahead)

    def restored(self, arrays: Arrays, keeper: Keeper) -> State:
        D, X, filters, codes = (jnp.asarray(arrays[name]) for name in _ARRAYS[:4])
        curvature = Curvature(*(jnp.asarray(arrays[name]) for name in _ARRAYS[6:]))
        ahead = Ahead(filters, codes, arrays["t"], arrays["objective"], curvature)
        return State(replace(self.D, filters=D), X, ahead)

    def arrays(self, state: State) -> Arrays:
        D, X, (filters, codes, t, objective, curvature) = state
        values = (D.filters, X, filters, codes, t, objective, *curvature)
        return {name: np.asarray(value) for name, value in zip(_ARRAYS, values)}

    def sweep(self, state: State, step: int, rng: np.random.Generator) -> tuple[State, float, int]:
        state, replaced = refreshed(state, self.problem, rng)
        state = advanced(state, self.problem, self.nonnegative, step)
        return state, _in_units(state.ahead.objective, self.signals), replaced

    def result(self, state: State) -> Learned:
        signals, (D, X, ahead) = self.signals, state
        objectives = np.asarray(_conv_sweep.evaluated(self.problem, D, X).objectives)
        objective = _in_units(np.mean(objectives, dtype=float), signals)
        codes = np.ldexp(np.asarray(X), signals.exponent).reshape(-1, *D.code_grid)
        D = checks.cast(D, signals.dtype)
        return Learned(D, jnp.asarray(codes, signals.dtype), objective, (), ahead)

    def warn(self, state: State) -> None:
        """Warn if all codes are zero."""
        if not np.asarray(state.X).any():
            checks.warn(
                f"{self.where}: all codes are zero and D is the start: lam={self.lam} is not below "
                "max abs(D'y) of these filters; try a smaller lam"
            )


_ARRAYS = ("D", "X", "filters", "codes", "t", "objective", "of_filters", "of_codes")


def _problem(signals: Signals, lam: float) -> Problem:
    """The problem for images near 1 and weights up to 1."""
    V = None if signals.V is None else jnp.asarray(signals.V / signals.top)
    scaled = scaled_penalty(lam / signals.top, signals.exponent + signals.scale)
    return Problem(jnp.asarray(signals.Y), V, jnp.asarray(scaled, signals.Y.dtype))


def _in_units(objective: Any, signals: Signals) -> float:
    """An objective of `_problem` in the units of the caller's images and weights."""
    return signals.in_units(signals.top * float(objective))
