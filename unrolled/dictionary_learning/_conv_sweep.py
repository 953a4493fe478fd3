"""One sweep of convolutional dictionary learning: the filters for given codes, then the codes."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base.checks import Array
from unrolled.activations import relu, shrink
from unrolled.dictionaries import Conv
from unrolled.dictionary_learning._learning import PARALLEL, distinct
from unrolled.pursuit import Torus, is_convolution


def drawn_windows(
    D: Conv, R: np.ndarray, filters: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw `count` unit windows, with probabilities proportional to their energy.

    Args:
        D: the `Conv` that defines the shape and the positions of windows.
        R: (n, m), the images.
        filters: (others, n_channels prod(kernel)); no window is parallel to one of these filters.
        count: number of windows.
        rng: random generator of the draw.

    Returns:
        (count, n_channels, *kernel); if too few windows differ from each other, the rest is noise.
    """
    grid = (len(R), *D.signal_grid)
    R = _extended(D, R.reshape(grid))
    axes = tuple(range(2, R.ndim))
    # (n, n_channels, *positions, *kernel), a view
    windows = np.lib.stride_tricks.sliding_window_view(R, D.kernel, axes)
    places = tuple(slice(0, (p - 1) * t + 1, t) for p, t in zip(D.positions, D.stride))
    windows = windows[:, :, *places]
    energy = _window_sums(np.sum(R.astype(float) ** 2, 1), D.kernel)[:, *places]
    odds = np.maximum(energy, 0).reshape(-1)
    wanted, size = min(10 * count, int(np.count_nonzero(odds))), filters.shape[1]
    candidates = np.zeros((0, size), R.dtype)
    if wanted:
        chosen = rng.choice(len(odds), wanted, replace=False, p=odds / odds.sum())
        image, *position = np.unravel_index(chosen, energy.shape)
        candidates = np.moveaxis(windows, 1, len(D.kernel) + 1)[image, *position]
    rows = distinct(candidates.reshape(-1, size), filters.T, count, rng)
    return rows.reshape(count, D.signal_grid[0], *D.kernel)


def _extended(D: Conv, R: np.ndarray) -> np.ndarray:
    """Pad images to the end of the last window, periodically if D is circular, else with zeros."""
    sizes = zip(D.positions, D.stride, D.kernel, D.signal_shape)
    reach = [(0, max(0, (p - 1) * t + n - N)) for p, t, n, N in sizes]
    return np.pad(R, [(0, 0), (0, 0), *reach], "wrap" if D.boundary == "circular" else "constant")


def _window_sums(E: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """Sums over all windows of the kernel: (n, *signal) -> (n, *positions)."""
    for axis, n in enumerate(kernel, start=1):
        sums = np.cumsum(E, axis)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
        length = sums.shape[axis]
        E = sums.take(range(n, length), axis) - sums.take(range(length - n), axis)
    return E


def shifted_copies(filters: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Indices of the filters that are nearly a shift of a more used filter, up to sign."""
    kernel = filters.shape[2:]
    shape = tuple(2 * n - 1 for n in kernel)
    axes = tuple(range(2, filters.ndim))
    spectra = np.fft.rfftn(filters, shape, axes)
    order = np.argsort(-use, kind="stable")
    copies: list[int] = []
    for rank, j in enumerate(order):
        others = order[:rank]
        products = np.sum(spectra[others] * spectra[j].conj(), 1)
        inner = np.fft.irfftn(products, shape, tuple(range(1, products.ndim)))
        if np.abs(inner).max(initial=0) > PARALLEL:
            copies.append(int(j))
    return np.array(sorted(copies), int)


def steps_to_centre(D: Conv) -> np.ndarray:
    """The number of positions by which each filter should move to centre its energy.

    Returns:
        (n_atoms, axes), integers.
    """
    energy = np.sum(np.square(D.filters), 1).reshape(len(D.filters), -1)
    places = np.indices(D.kernel).reshape(len(D.kernel), -1)
    total = energy.sum(1, keepdims=True)
    centre = energy @ places.T / np.where(total > 0, total, 1)
    return np.rint(((np.array(D.kernel) - 1) / 2 - centre) / D.stride).astype(int)


def moved(A: np.ndarray, steps: np.ndarray, circular: bool) -> np.ndarray:
    """Move entry k of the last axes of A to k + step; zeros or wrapped entries move in."""
    sides = [(max(s, 0), max(-s, 0)) for s in steps.tolist()]
    first = A.ndim - len(sides)
    sides = [(0, 0)] * first + sides
    inside = tuple(slice(after, after + n) for (_, after), n in zip(sides, A.shape))
    return np.pad(A, sides, "wrap" if circular else "constant")[inside]


# The factors by which the bound L of the curvature changes after a step, and after a step for which
# L was too small.
_LOWER, _HIGHER = 0.95, 1.5


class Fit(NamedTuple):
    """The objective 1/2 sum_i v_i (y_i - (A u)_i)^2 + h(u), and M, the metric of the steps."""

    y: Array
    v: Array | None  # weights, in the shape of y; None for ones
    product: Callable[[Array], Array]  # u -> A u
    adjoint: Callable[[Array], Array]  # r -> A'r
    scales: Array  # M, positive, broadcast to u
    prox: Callable[[Array, Array], Array]  # (u, step) -> the prox of step h at u
    penalty: Callable[[Array], Array]  # u -> the terms of h, in the shape of u


class Descent(NamedTuple):
    """The state of FISTA: the point u, the extrapolated point z, and the products A u and A z."""

    u: Array
    Au: Array
    z: Array
    Az: Array
    t: Array  # () momentum counter
    L: Array  # () L with A'VA <= L M along the steps so far


def descend(fit: Fit, u: Array, Au: Array, L: Array, steps: int) -> Descent:
    r"""Take steps of FISTA from u; a step that would raise the objective only ends the momentum.

    .. math:: u_+ = prox_{h / (L M)} \big( z + (L M)^{-1} A' V (y - A z) \big).

    L follows the curvature along the steps, so that
    :math:`\|A (u_+ - z)\|_V^2 \le L \|u_+ - z\|_M^2`. Checking this condition needs no extra
    product.

    Reference: Beck, Teboulle (2009) for FISTA and its monotone form; O'Donoghue, Candes (2015) for
    the restart.
    """
    start = Descent(u, Au, u, Au, jnp.ones((), u.dtype), L)
    return lax.scan(lambda state, _: (_accelerated_step(fit, state), None), start, length=steps)[0]


def _rise(fit: Fit, u: Array, Au: Array, new: Array, product: Array) -> Array:
    """The objective at `new` minus the objective at u, without cancellation of two large sums."""
    middle = fit.y - (Au + product) / 2
    penalties = jnp.sum(fit.penalty(new) - fit.penalty(u))
    return penalties - jnp.vdot(product - Au, weighted(fit.v, middle))


def weighted(v: Array | None, r: Array) -> Array:
    """V r."""
    return r if v is None else v * r


def _accelerated_step(fit: Fit, state: Descent) -> Descent:
    u, Au, z, Az, t, L = state
    step = 1 / (L * fit.scales)
    new = fit.prox(z + step * fit.adjoint(weighted(fit.v, fit.y - Az)), step)
    product = fit.product(new)
    moved, change = new - z, product - Az
    # Rounding of the products must not count as curvature.
    eps = float(jnp.finfo(u.dtype).eps)
    noise = (8 * eps) ** 2 * jnp.vdot(fit.y, weighted(fit.v, fit.y))
    curved = jnp.vdot(change, weighted(fit.v, change))
    safe = curved <= L * jnp.sum(fit.scales * moved**2) + noise
    taken = safe & (_rise(fit, u, Au, new, product) <= 0)
    uphill = jnp.sum(fit.scales * (z - new) * (new - u)) > 0
    t = jnp.where(uphill, 1, t)
    t_next = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    momentum = (t - 1) / t_next
    forward = Descent(
        new,
        product,
        new + momentum * (new - u),
        product + momentum * (product - Au),
        t_next,
        _LOWER * L,
    )
    # If the step was too long, try again from z; if the objective would rise, restart from u.
    back = Descent(
        u,
        Au,
        jnp.where(safe, u, z),
        jnp.where(safe, Au, Az),
        jnp.where(safe, 1, t),
        jnp.where(safe, L, _HIGHER * L),
    )
    return jax.tree.map(lambda a, b: jnp.where(taken, a, b), forward, back)


# Number of steps for the filters and for the codes in a sweep.
_FILTERS, _CODES = 3, 5


class Problem(NamedTuple):
    """Flat images, scaled near 1, the weights of their squared errors, and the penalty weight."""

    Y: Array  # (n, m)
    V: Array | None  # (n, m); None for ones
    lam: Array  # ()


class Curvature(NamedTuple):
    """The bounds of the curvature for the steps of the filters and of the codes."""

    filters: Array  # ()
    codes: Array  # (n,)


class Sweep(NamedTuple):
    """The filters and codes after a sweep."""

    D: Conv  # unit filters
    X: Array  # (n, d)
    curvature: Curvature
    objectives: Array  # (n,) objectives of the images


def products(D: Conv, X: Array) -> Array:
    """D x for every code: (n, d) -> (n, m)."""
    return jax.vmap(D.synthesize)(X)


# From this number of entries of a kernel on, the steps use Fourier transforms: for 32 filters of
# 8 x 8 on a CPU the steps took about half of the time of convolutions.
_LARGE = 32


def in_fourier_space(D: Conv) -> bool:
    """Whether the steps for the filters use Fourier transforms."""
    return is_convolution(D) and len(D.kernel) > 1 and math.prod(D.kernel) >= _LARGE


def filter_maps(D: Conv, X: Array) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """filters -> the products with the codes X, and the adjoint of this map, for the shape of D."""
    if not in_fourier_space(D):
        return (
            lambda filters: products(replace(D, filters=filters), X),
            partial(filter_gradient, D, X),
        )
    torus = Torus.of(D)
    codes = jax.vmap(lambda x: torus.forward(torus.padded(x, D.code_grid)))(X)

    def product(filters):
        H = Torus.of(replace(D, filters=filters))
        return jax.vmap(lambda x: torus.cut(torus.back(H.apply(x)), D.signal_grid))(codes)

    def adjoint(R):
        R = jax.vmap(lambda r: torus.forward(torus.padded(r, D.signal_grid)))(R)
        H = jnp.sum(codes.conj()[:, :, None] * R[:, None], 0)
        kernels = jax.vmap(torus.back)(H)
        return kernels[:, :, *(slice(0, n) for n in D.kernel)]

    return product, adjoint


@partial(jax.jit, static_argnames="nonnegative")
def sweep(problem: Problem, D: Conv, X: Array, curvature: Curvature, nonnegative: bool) -> Sweep:
    """Filters and codes whose objective is not above the objective of D and X, up to rounding."""
    with jax.default_matmul_precision("highest"):
        filters = _filters(problem, D, X, curvature.filters)
        axes = tuple(range(1, D.filters.ndim))
        norms = jnp.sqrt(jnp.sum(filters.u**2, axes))
        norms = jnp.where(norms > 0, norms, 1)
        D = replace(D, filters=filters.u / jnp.expand_dims(norms, axes))
        X = X * D.spread(norms)[None]
        codes = _descend_codes(problem, D, X, filters.Au, curvature.codes, nonnegative)
        curvature = Curvature(filters.L, codes.L)
        objectives = _objectives(problem, codes.u, problem.Y - codes.Au)
        return Sweep(D, codes.u, curvature, objectives)


@partial(jax.jit, static_argnames="nonnegative")
def extrapolated(
    old: tuple[Conv, Array], new: tuple[Conv, Array], momentum: Array, nonnegative: bool
) -> tuple[Array, Array]:
    """Admissible filters and codes, extrapolated from the old through the new filters and codes."""
    ahead = jax.tree.map(lambda a, b: b + momentum * (b - a), old, new)
    filters, X = ahead[0].filters, relu(ahead[1]) if nonnegative else ahead[1]
    norms = jnp.sqrt(jnp.sum(filters**2, tuple(range(1, filters.ndim)), keepdims=True))
    return filters / jnp.where(norms > 0, norms, 1), X


class Evaluated(NamedTuple):
    """The objectives and residuals of filters and codes."""

    objectives: Array  # (n,) objectives of the images
    R: Array  # (n, m) Y - X D'


@jax.jit
def evaluated(problem: Problem, D: Conv, X: Array) -> Evaluated:
    """The objectives and residuals of D and X."""
    with jax.default_matmul_precision("highest"):
        R = problem.Y - products(D, X)
        return Evaluated(_objectives(problem, X, R), R)


def _objectives(problem: Problem, X: Array, R: Array) -> Array:
    penalties = problem.lam * jnp.sum(jnp.abs(X), 1)
    return jnp.sum(R * weighted(problem.V, R), 1) / 2 + penalties


def _filters(problem: Problem, D: Conv, X: Array, L: Array) -> Descent:
    """Steps for the filters in the unit balls; filters that no code uses do not change."""
    axes = tuple(range(1, D.filters.ndim))
    use = jnp.sum(X.reshape(len(X), D.code_grid[0], -1) ** 2, (0, 2))
    scales = jnp.expand_dims(jnp.where(use > 0, use, 1), axes)

    def into_ball(filters, _):
        return filters / jnp.maximum(1, jnp.sqrt(jnp.sum(filters**2, axes, keepdims=True)))

    product, adjoint = filter_maps(D, X)
    fit = Fit(problem.Y, problem.V, product, adjoint, scales, into_ball, jnp.zeros_like)
    return descend(fit, D.filters, product(D.filters), L, _FILTERS)


def filter_gradient(D: Conv, X: Array, R: Array) -> Array:
    """The derivative of sum_i r_i'D x_i in the filters, in the shape of the filters."""

    def correlation(filters):
        return jnp.vdot(jax.vmap(replace(D, filters=filters).analyze)(R), X)

    return jax.grad(correlation)(D.filters)


def _descend_codes(
    problem: Problem, D: Conv, X: Array, DX: Array, L: Array, nonnegative: bool
) -> Descent:
    lam = problem.lam

    def prox(x, step):
        return relu(x - step * lam) if nonnegative else shrink(x, step * lam)

    def one(y, v, x, Dx, L):
        fit = Fit(
            y, v, D.synthesize, D.analyze, jnp.ones((), x.dtype), prox, lambda x: lam * jnp.abs(x)
        )
        return descend(fit, x, Dx, L, _CODES)

    in_v = None if problem.V is None else 0
    return jax.vmap(one, (0, in_v, 0, 0, 0))(problem.Y, problem.V, X, DX, L)
