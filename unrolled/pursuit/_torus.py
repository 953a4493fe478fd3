"""Codes of a `Conv` of stride 1 by ADMM in Fourier space, where its linear system is diagonal."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from unrolled._base import programs
from unrolled._base.checks import Array, ArrayLike
from unrolled.dictionaries import Conv, Masked, Operator
from unrolled.penalties import Penalty
from unrolled.pursuit._admm import Splits, admm
from unrolled.pursuit._gap import gap_at, relative_gap

__all__: list[str] = []

# The weight of the copy of D x for norm(D, 2) near 1, in units of the weight of the copy of x.
_WEIGHT = 4.0
# ADMM has stalled if the gap has not halved in so many steps.
_PATIENCE = 500
# The first rho, for norm(D, 2) near 1.
_RHO = 0.02


@dataclass(frozen=True, eq=False)
class Torus:
    """A `Conv` of stride 1 as a convolution on a torus, whose products are Fourier transforms.

    For the boundary "circular" the torus is the signal. For "valid" the signal is the torus, but no
    filter is at a position from where it would wrap around. For "zero" the torus is larger, and the
    signal is a part of it.
    """

    D: Conv
    sides: tuple[int, ...]
    spectra: Array  # H, (n_atoms, n_channels, *frequencies)
    gram: Array  # sum_a H_a H_a^H, (n_channels, n_channels, *frequencies)

    @classmethod
    def of(cls, D: Conv) -> "Torus":
        sides = D.signal_shape
        if D.boundary == "zero":
            sizes = zip(sides, D.extent)
            sides = tuple(_fast_length(N + n - 1) for N, n in sizes)
        H = jnp.fft.rfftn(D.entries(), sides, tuple(range(2, D.filters.ndim)))
        return cls(D, sides, H, jnp.sum(H[:, :, None] * H.conj()[:, None], 0))

    @property
    def shape(self) -> tuple[int, int]:
        return self.D.shape

    def forward(self, maps: Array) -> Array:
        """The spectra of maps, (n, *sides)."""
        return jnp.fft.rfftn(maps, axes=tuple(range(1, maps.ndim)))

    def back(self, spectra: Array) -> Array:
        return jnp.fft.irfftn(spectra, self.sides, tuple(range(1, spectra.ndim)))

    def apply(self, spectra: Array) -> Array:
        """D x in Fourier space, (n_channels, *frequencies), from (n_atoms, *frequencies)."""
        return jnp.sum(self.spectra * spectra[:, None], 0)

    def adjoint(self, spectra: Array) -> Array:
        """D'r in Fourier space."""
        return jnp.sum(self.spectra.conj() * spectra[None], 1)

    def padded(self, v: Array, grid: tuple[int, ...]) -> Array:
        """A flat signal or code as maps on the torus, with zeros around it."""
        pads = [(0, 0), *((0, N - n) for N, n in zip(self.sides, grid[1:]))]
        return jnp.pad(v.reshape(grid), pads)

    def cut(self, maps: Array, grid: tuple[int, ...]) -> Array:
        """The inverse of `padded`."""
        return maps[:, *(slice(0, n) for n in grid[1:])].reshape(-1)

    def __matmul__(self, x: Array) -> Array:
        x = self.padded(x, self.D.code_grid)
        return self.cut(self.back(self.apply(self.forward(x))), self.D.signal_grid)

    def __rmatmul__(self, r: Array) -> Array:
        r = self.padded(r, self.D.signal_grid)
        return self.cut(self.back(self.adjoint(self.forward(r))), self.D.code_grid)

    def nearest(self, x: Array, y: Array, ridge: ArrayLike) -> Array:
        """The minimiser of norm(y - D v)^2 + ridge norm(v - x)^2, all in Fourier space.

        By the formula of Woodbury, the minimiser is x + D'(D D' + ridge)^{-1} (y - D x).
        """
        G = self.gram
        ridge = jnp.asarray(ridge, G.real.dtype).astype(G.dtype)
        own = jnp.eye(len(G), dtype=G.dtype).reshape(*G.shape[:2], *(1,) * (G.ndim - 2))
        unit = ridge + 1  # norm(D, 2) is near 1
        inverses = inverse((G + ridge * own) / unit) / unit
        return x + self.adjoint(jnp.sum(inverses * (y - self.apply(x))[None], 1))


def _fast_length(n: int) -> int:
    """The least length of at least n without prime factors above 5."""
    while math.gcd(n, 30 ** n.bit_length()) != n:
        n += 1
    return n


def inverse(G: Array) -> Array:
    """The inverses of Hermitian positive definite matrices (n, n, ...), by Gauss and Jordan."""
    if len(G) == 1:
        return 1 / G

    def eliminate(k, A):
        e = (jnp.arange(len(A)) == k).astype(A.dtype).reshape(-1, *(1,) * (A.ndim - 2))
        row, column = A[k] + e, A[:, k] - e  # the pivot itself becomes its inverse
        return A - column[:, None] * (row / A[k, k][None])[None]

    return programs.fori_loop(0, len(G), eliminate, G)


def is_convolution(D: Any) -> bool:
    """Whether D is a `Conv` of stride 1, or a `Masked` one, which ADMM solves in Fourier space."""
    base = D.base if isinstance(D, Masked) else D
    return isinstance(base, Conv) and set(base.stride) == {1}


def torus_of(D: Operator) -> tuple[Torus, Array | None] | None:
    """The torus of a `Conv` of stride 1, and a mask of its signals; None for other dictionaries."""
    if not is_convolution(D):
        return None
    base, mask = (D.base, D.mask) if isinstance(D, Masked) else (D, None)
    assert isinstance(base, Conv)
    if base.boundary == "zero" and mask is None:
        mask = jnp.ones(D.shape[0], D.dtype)
    torus = Torus.of(base)
    return torus, None if mask is None else torus.padded(mask, base.signal_grid)


class Convolved:
    """ADMM for the elastic net in a convolution; its linear system is diagonal in Fourier space.

    With a mask, D x has a copy of its own (mask decoupling).

    Reference: Bristow, Eriksson, Lucey (2013); Wohlberg (2014); Heide, Heidrich, Wetzstein (2015)
    for the mask.
    """

    def __init__(self, torus: Torus, mask: Array | None, penalty: Penalty, problem: Any):
        self.D, self.y, self.lam, self.l2 = problem
        self.torus, self.mask, self.penalty = torus, mask, penalty
        # Only the span of free atoms needs a dictionary with norms.
        self.product: Any = self.D if self.lam.ndim or isinstance(self.D, Masked) else torus
        self.Y = torus.padded(self.y, torus.D.signal_grid)
        self.spectrum = torus.forward(self.Y)
        self.advance = admm(self._nearest, self._prox, 1.8)

    def solved(
        self, x: Array, gap: Array, steps: Array, tol: float | Array, max_steps: int
    ) -> tuple[Array, Array, Array]:
        """The best code until its gap is at most tol, or has not halved for _PATIENCE steps."""

        def body(carry):
            state, best, least, goal, limit = carry
            state = self.advance(state)
            x = self.code(state)
            gap = self.gap(x, state)
            best = jnp.where(gap < least, x, best)
            limit = jnp.where(gap <= goal, state.steps + _PATIENCE, limit)
            goal = jnp.where(gap <= goal, gap / 2, goal)
            return state, best, jnp.minimum(gap, least), goal, limit

        def not_done(carry):
            state, _, least, _, limit = carry
            return (least > tol) & (state.steps < jnp.minimum(limit, max_steps))

        first = self.rest(x), x, gap, gap, steps + _PATIENCE
        state, x, gap, *_ = programs.while_loop(not_done, body, first)
        return x, gap, steps + state.steps

    def rest(self, x: Array, rho: ArrayLike = _RHO) -> Splits:
        """The state at a code, with the multipliers that are optimal if the code is."""
        torus, grid, Y = self.torus, self.torus.D.code_grid, self.Y
        maps, rho = torus.padded(x, grid), jnp.asarray(rho, x.dtype)
        image = torus.back(torus.apply(torus.forward(maps)))
        r = Y - image if self.mask is None else self.mask * (Y - self.mask * image)
        h = torus.back(torus.adjoint(torus.forward(r)))
        own = torus.cut(h, grid) - self.l2 * x
        u = h - torus.padded(own - self.penalty.within(own, self.lam), grid)
        both: Any = maps, u
        if self.mask is not None:
            both = (_WEIGHT * image, maps), (-r / _WEIGHT, u)
        return Splits(both[0], jax.tree.map(lambda u: u / rho, both[1]), rho, jnp.zeros((), int))

    def code(self, state: Splits) -> Array:
        """The sparse code of a state."""
        return self.torus.cut(self._maps(state.v), self.torus.D.code_grid)

    def gap(self, x: Array, state: Splits | None = None) -> Array:
        """The relative gap of a code, with the better dual point of its residual and of a state's.

        The code that solves the linear system is not sparse, but its residual violates the
        constraints less.
        """
        gap = relative_gap(self.product, self.y, self.lam, x, self.l2, self.penalty)
        if state is None:
            return gap
        operands = self.product, self.y, self.lam, x, self._dual_point(state), self.l2
        return jnp.minimum(gap, gap_at(*operands, self.penalty))

    def _dual_point(self, state: Splits) -> Array:
        """The multipliers of y - D x at the solution of the linear system, (m,)."""
        torus, w = self.torus, jax.tree.map(jnp.subtract, state.v, state.u)
        image = torus.back(torus.apply(self._solution(w, state.rho)))
        if self.mask is None:
            nu = self.Y - image
        else:
            nu = _WEIGHT * state.rho * (w[0] - _WEIGHT * image)
            nu = jnp.where(self.mask != 0, nu / jnp.where(self.mask != 0, self.mask, 1), 0)
        return torus.cut(nu, torus.D.signal_grid)

    def _maps(self, v: Any) -> Array:
        return v if self.mask is None else v[1]

    def _solution(self, w: Any, rho: Array) -> Array:
        """The spectra of the x whose K x is nearest to w."""
        torus = self.torus
        if self.mask is None:
            return torus.nearest(torus.forward(w), self.spectrum, rho)
        return torus.nearest(torus.forward(w[1]), torus.forward(w[0]) / _WEIGHT, _WEIGHT**-2)

    def _nearest(self, w: Any, rho: Array) -> Any:
        torus, x = self.torus, self._solution(w, rho)
        if self.mask is None:
            return torus.back(x)
        return _WEIGHT * torus.back(torus.apply(x)), torus.back(x)

    def _prox(self, w: Any, rho: Array) -> Any:
        grid = self.torus.D.code_grid
        x = self.penalty.shrink(self.torus.cut(self._maps(w), grid), self.lam / rho)
        maps = self.torus.padded(x / (1 + self.l2 / rho), grid)
        if self.mask is None:
            return maps
        own = self.mask / _WEIGHT
        return (own * self.Y + rho * w[0]) / (own**2 + rho), maps
