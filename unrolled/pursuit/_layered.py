"""Thresholding, and layered pursuits, in which each layer codes the code of the previous layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import norm
from unrolled.activations import by_name, relu
from unrolled.dictionaries import (
    Composed,
    Dictionary,
    Operator,
    as_chain,
    column_norms,
    magnitudes,
)
from unrolled.penalties import L1, NONNEGATIVE, Penalty
from unrolled.pursuit import _problem
from unrolled.pursuit._basis_pursuit import basis_pursuit
from unrolled.pursuit._gap import relative_gap
from unrolled.pursuit._ista import Accelerated
from unrolled.pursuit._omp import atom_by_atom
from unrolled.pursuit._problem import Codes, DeepPursuit, Found, Problem, Pursuit, StaticPart

__all__ = ["Layered", "layered_basis_pursuit", "layered_thresholding", "project", "threshold"]


def threshold(
    D: Dictionary,
    y: ArrayLike,
    theta: ArrayLike,
    *,
    activation: Callable[[Array], Array] = relu,
    tol: float = 1e-6,
) -> Pursuit:
    """One layer of a CNN as a pursuit: x = shrink(D'y, theta).

    If D is orthonormal, x solves the LASSO with lam = theta. For any D, `gap` and `converged` judge
    x as a solution of this LASSO.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`, whose code has the shape `D.code_grid`.
        theta: one number, one per atom, or one per filter of a `Conv`.
        activation: function that replaces ReLU in the shrinkage.
        tol: relative duality gap up to which `converged` is True.

    Returns:
        Pursuit, with one step.

    Raises:
        TypeError: an operand is not real, or tol is traced.
        ValueError: shapes do not fit, theta is known to be negative or beyond the range of the
            dtype, or tol <= 0.

    Reference: Papyan, Romano, Elad (2017).

    Example:
        >>> result = ur.pursuit.threshold(jnp.eye(3), jnp.array([3.0, 0.5, -2.0]), 1.0)
        >>> result.x.tolist(), bool(result.converged)
        ([2.0, 0.0, -1.0], True)
    """
    method = Threshold(_problem.static_tol(tol, "threshold"), by_name(activation))
    return _problem.single(
        method, "threshold", D, y, theta, name="theta", finite=False, size=_one, parts=True
    )


def _one(D: Operator) -> Array:
    """1, because the code D'y needs no scaled dictionary."""
    return jnp.ones((), D.dtype)


@dataclass(frozen=True)
class Threshold:
    """x = shrink(D'y, theta), or rho(D'y - theta) over x >= 0, judged by the gap of the LASSO."""

    tol: float
    activation: Callable[[Array], Array]
    penalty: Penalty = L1

    def __call__(self, problem: Problem, x: Array) -> Found:
        (D,), y, (theta,), *_ = problem
        activation = _problem.activation_in_units(self.activation, problem.b)
        penalty = self.penalty.of(D)
        x = penalty.shrink(y @ D, theta, activation)

        def known(v):
            # If D is large, the residual leaves the range, and infinities of both signs make nan.
            return jnp.where(jnp.isfinite(x).all() & jnp.isnan(v), jnp.inf, v)

        def judge(x):
            gap = known(relative_gap(D, y, theta, x, penalty=penalty))
            return gap, gap <= self.tol

        gap, met = judge(x)
        return Found(x, gap, jnp.ones((), int), met, known(norm(y - D @ x)), judge=judge)


@jax.tree_util.register_pytree_node_class
class Layered(tuple[Pursuit, ...]):
    """The results of a layered pursuit, one `Pursuit` per layer.

    Each layer codes the code of the previous layer, so D_j x_j is only close to x_{j-1}.

    Example:
        >>> Ds = jnp.eye(2), jnp.eye(2)
        >>> result = ur.pursuit.layered_thresholding(Ds, jnp.ones(2), (0.5, 0.25))
        >>> [x.tolist() for x in result.xs], result.residual.shape, len(result)
        ([[0.5, 0.5], [0.25, 0.25]], (2,), 2)
    """

    @property
    def xs(self) -> Codes:
        """The codes (x_1, ..., x_J)."""
        return tuple(layer.x for layer in self)

    @property
    def gap(self) -> Array:
        """The gaps of the layers, an array of shape (J,)."""
        return jnp.stack([layer.gap for layer in self], -1)

    @property
    def residual(self) -> Array:
        """norm(x_{j-1} - D_j x_j) for every layer, an array of shape (J,)."""
        return jnp.stack([layer.residual for layer in self], -1)

    @property
    def steps(self) -> Array:
        """The steps of the layers, an array of shape (J,)."""
        return jnp.stack([layer.steps for layer in self], -1)

    @property
    def converged(self) -> Array:
        """Whether all layers have converged, an array of shape ()."""
        return jnp.stack([layer.converged for layer in self], -1).all(-1)

    def tree_flatten(self) -> tuple[tuple[Pursuit, ...], None]:
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, _: None, layers: Any) -> "Layered":
        return cls(layers)


def layered_thresholding(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    thetas: Sequence[ArrayLike],
    *,
    nonnegative: bool = False,
    activation: Callable[[Array], Array] = relu,
    tol: float = 1e-6,
) -> Layered:
    r"""Layered thresholding: the forward pass of a CNN, with x_0 = y.

    .. math:: x_j = shrink(D_j' x_{j-1}, \theta_j) \quad or \quad
        x_j = \rho(D_j' x_{j-1} - \theta_j) \; \text{for nonnegative codes}.

    With `nonnegative` and ReLU, a chain of `Conv` dictionaries is a CNN with biases -theta_j.

    Args:
        Ds: J dictionaries of shapes (d_{j-1}, d_j).
        y: (m,).
        thetas: J thresholds, each one number, one per atom, or one per filter of a `Conv`.
        nonnegative: whether codes are non-negative. One rectifier then replaces the two rectifiers
            of a shrinkage.
        activation: function that replaces ReLU.
        tol: relative duality gap up to which a layer counts as converged.

    Returns:
        Layered. The gap of a layer judges its code as a solution of the LASSO, over x >= 0 if
        nonnegative; the code is a solution if the atoms are orthonormal. If nonnegative, a code
        with a negative entry has the gap inf.

    Raises:
        TypeError: an operand is not real, or tol is traced.
        ValueError: shapes do not fit, the number of thetas is not J, theta_j < 0 (if known), or
            tol <= 0.

    Not claimed: that the codes are the true codes of the model. `theory.layered_thresholds` returns
    thresholds that give no false positives, and the error of the codes at these thresholds, which
    is positive even without noise.

    Reference: Papyan, Romano, Elad (2017).

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), jnp.eye(32)
        >>> result = ur.pursuit.layered_thresholding(Ds, Ds[0][:, 3], (0.5, 0.25))
        >>> [jnp.flatnonzero(x).tolist() for x in result.xs], float(result.xs[1].max())
        ([[3], [3]], 0.25)
    """
    where = "layered_thresholding"
    method = Threshold(
        _problem.static_tol(tol, where),
        by_name(activation),
        NONNEGATIVE if checks.as_bool(nonnegative, "nonnegative", where) else L1,
    )
    _, arrays = _problem.checked_chain(where, Ds, y, thetas, name="thetas", by_steps=False)
    return _chained(method, *arrays[:3])


def layered_basis_pursuit(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Sequence[ArrayLike] | None = None,
    *,
    tol: float | None = None,
    max_steps: int = 10_000,
) -> Layered:
    r"""Layered basis pursuit with penalties, or, without penalties, the problem DSC_1; x_0 = y.

    .. math::
        x_j = \arg\min_x \|x_{j-1} - D_j x\|^2 / 2 + lam_j \|x\|_1 \quad or \quad
        x_j = \arg\min_x \|x\|_1 : D_j x = x_{j-1}.

    Under Assumption 1 (with strict inequalities, for mu or the generalized coherence), DSC_1 and
    the DSC problem have the same codes (Theorem 2, `theory.uniqueness`). With penalties, y may be
    noisy: the penalties of `theory.layered_penalties` give no false positives, and an error
    proportional to the noise. With penalties, the function has no derivative in reverse mode.

    Args:
        Ds: J dictionaries of shapes (d_{j-1}, d_j), d_0 = m.
        y: (m,).
        lams: J penalties, each one number, one per atom, or one per filter of a `Conv`; None for
            the equality constraints.
        tol: relative duality gap of every layer; by default 1e-6 with penalties, and that of
            `basis_pursuit` without penalties.
        max_steps: maximum number of steps of `fista` in a layer with a penalty.

    Returns:
        Layered, with the results of `fista` or `basis_pursuit`. Without penalties, a layer has not
        converged if its input is not in the range of its dictionary.

    Raises:
        TypeError: an operand is not real.
        ValueError: there is no dictionary, neighbouring shapes do not fit, the number of lams is
            not J, lam_j < 0 (if known), or tol is not positive.

    Reference: Li, Feng, Zhou (2024), Definition 4; Papyan, Romano, Elad (2017).

    Example:
        >>> Ds = ur.dictionaries.paley(5), jnp.eye(6)
        >>> result = ur.pursuit.layered_basis_pursuit(Ds, Ds[0][:, 2])
        >>> [x.round(3).tolist()[2] for x in result.xs]
        [1.0, 1.0]
        >>> noisy = ur.pursuit.layered_basis_pursuit(Ds, Ds[0][:, 2] + 0.01, (0.05, 0.05))
        >>> bool(noisy.converged), [jnp.flatnonzero(x > 0.5).tolist() for x in noisy.xs]
        (True, [[2], [2]])
    """
    where = "layered_basis_pursuit"
    max_steps = _problem.static_steps(max_steps, where)
    if lams is None:
        least, Ds = None if tol is None else _problem.static_tol(tol, where), as_chain(Ds, where)
        _, arrays = _problem.checked_chain(where, Ds, y, (0.0,) * len(Ds), by_steps=False)
        return _chained(least, *arrays[:3])
    method = Accelerated(1e-6 if tol is None else tol, max_steps).checked(where)
    _, arrays = _problem.checked_chain(where, Ds, y, lams)
    return _chained(method, *arrays[:3])


@programs.on_auto_axes
@partial(jax.jit, static_argnums=0)
def _chained(
    method: Threshold | Accelerated | float | None, Ds: Sequence[Operator], y: Array, values: tuple
) -> Layered:
    """The results, layer by layer; another `method` is the tol of basis pursuit."""
    layers: list[Pursuit] = []
    for D, value in zip(Ds, values):
        if isinstance(method, Threshold):
            layer = _problem.single(method, "threshold", D, y, value, finite=False, size=_one)
        elif isinstance(method, Accelerated):
            layer = _problem.single(method, "fista", D, y, value)
        else:
            layer = basis_pursuit(D, y, tol=method)
        layers.append(layer)
        y = layer.x
    return Layered(layers)


# An entry of a product counts as zero if it is below this many rounding errors of the sum of the
# magnitudes of its terms.
_ROUNDING = 8


def project(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    *,
    sparsity: int | Sequence[int] | None = None,
    lam: ArrayLike | None = None,
    tol: float = 1e-6,
    max_steps: int = 10_000,
) -> DeepPursuit:
    r"""Project a signal onto the model of the chain: x_{j-1} = D_j x_j in all layers, to rounding.

    .. math:: \min_{x_J} \|y - D_{[1,J]} x_J\|^2, \; \|x_j\|_0 \le s_j
        \quad or \quad \min_{x_J} \|y - D_{[1,J]} x_J\|^2 / 2 + lam \|x_J\|_1,
        \qquad D_{[1,J]} = D_1 \cdots D_J.

    The function finds the deepest code in the effective dictionary, and computes the other codes as
    products. In contrast to layered pursuits, the errors of the layers therefore do not accumulate.

    With `sparsity`, orthogonal matching pursuit adds atoms of D_[1,J] one by one, always the atom
    whose normalised inner product with the residual is largest. The pursuit stops at s_J atoms, at
    an exact fit, if no independent atom is left, or before a code x_j would have more than s_j
    nonzeros. With `lam`, FISTA solves the LASSO in D_[1,J]. With one layer, `project` is the
    pursuit in D_1. The function has no derivative in reverse mode.

    Args:
        Ds: J dictionaries of shapes (d_{j-1}, d_j).
        y: (m,).
        sparsity: s_J, or a tuple with one s_j per layer. Entries of x_j that are rounding errors of
            the product count as zero.
        lam: penalty weight: one number, one per atom of D_J, or one per filter of a `Conv`.
        tol, max_steps: as in `fista`.

    Returns:
        DeepPursuit. With `sparsity`, `steps` is the number of atoms, and `converged` says that the
        codes are finite. `gap` is then inf, because no bound on the excess of a greedy choice is
        known. With `lam`, all fields are as in the result of `fista`.

    Raises:
        TypeError: an operand is not real, or a sparsity is not a static integer.
        ValueError: both or neither of sparsity and lam are given, a sparsity is above d_j, shapes
            do not fit, a known lam is negative, a known D_j is 0, or tol <= 0.

    Not claimed: the least residual under the sparsities, which is NP-hard to find. If the codes are
    unique, `theory.product_stability` bounds their error.

    Reference: Sulam, Papyan, Romano, Elad (2018).

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), jnp.eye(32)[:, ::2]
        >>> result = ur.pursuit.project(Ds, 2 * Ds[0][:, 4], sparsity=1)
        >>> int(result.xs[1].argmax()), result.xs[0].max().round(3).tolist()
        (2, 2.0)
    """
    where = "project"
    if (sparsity is None) == (lam is None):
        raise ValueError(f"{where}: expected sparsity or lam, and not both")
    tol, max_steps = _problem.static_tol(tol, where), _problem.static_steps(max_steps, where)
    Ds = as_chain(Ds, where)
    zeros = (0.0,) * (len(Ds) - 1)
    if lam is not None:
        checks.nonnegative(lam, "lam", where)
        checks.finite(lam, "lam", where)
        return _problem.deep(Relaxed(Accelerated(tol, max_steps)), where, Ds, y, (*zeros, lam))
    bounds = _sparsities(sparsity, [D.shape[1] for D in Ds], where)
    return _problem.deep(Greedy(bounds), where, Ds, y, (*zeros, 0.0))


def _sparsities(sparsity: Any, sizes: list[int], where: str) -> tuple[int, ...]:
    """One bound per layer; the size d_j for layers without a bound."""
    if not isinstance(sparsity, (tuple, list)):
        sparsity = (*sizes[:-1], sparsity)
    bounds = []
    for j, (s, d) in enumerate(
        zip(_problem.one_per_layer(sparsity, "sparsities", len(sizes), where), sizes), start=1
    ):
        s = checks.as_index(s, f"s_{j}", where)
        if s > d:
            raise ValueError(f"{where}: s_{j} is {s} but D_{j} has {d} atoms; expected at most {d}")
        bounds.append(s)
    return tuple(bounds)


@dataclass(frozen=True)
class Relaxed:
    """The LASSO in the effective dictionary, by FISTA."""

    method: Accelerated

    def __call__(self, problem: Problem, x: Array) -> Found:
        y, lam = problem.y, problem.lams[-1]
        form, effective = StaticPart(np.dtype(y.dtype)), (Composed(*problem.Ds),)
        (x,), gap, _, steps, met = _problem.run(
            self.method, form, effective, y, (lam,), None, None, None
        )

        def judge(x):
            gap = relative_gap(effective[0], y, lam, x)
            return gap, gap <= (self.method.tol or 0)

        return Found(x, gap, steps, met, judge=judge)


@dataclass(frozen=True)
class Greedy:
    """Matching pursuit in the effective dictionary, with a maximum number of nonzeros per layer."""

    bounds: tuple[int, ...]

    def __call__(self, problem: Problem, x: Array) -> Found:
        Ds, y = problem.Ds, problem.y
        D = Composed(*Ds)
        norms, sizes = column_norms(D), column_norms(magnitudes(D))
        # An atom whose norm is within the rounding error of its product counts as zero.
        norms = jnp.where(norms > _ROUNDING * float(jnp.finfo(y.dtype).eps) * sizes, norms, 0)
        inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)

        def is_sparse(x):
            xs = _sparse_codes(Ds, inverse * x)
            return jnp.stack([jnp.count_nonzero(x) <= s for x, s in zip(xs, self.bounds)]).all()

        unit, ones = D.scale_columns(inverse), (norms > 0).astype(y.dtype)
        chosen = atom_by_atom(unit, y, ones, min(self.bounds[-1], len(y)), 0.0, is_sparse)
        xs = _sparse_codes(Ds, inverse * chosen.x)
        finite = jnp.isfinite(norm(y - Ds[0] @ xs[0]))
        gap = jnp.full((), jnp.inf, y.dtype)
        return Found(xs, gap, chosen.size, finite)


def _sparse_codes(Ds: Sequence[Operator], x: Array) -> Codes:
    """(x_1, ..., x_J) from x_J; entries that are rounding errors of their product become 0."""
    tiny = _ROUNDING * float(jnp.finfo(x.dtype).eps)
    xs: Codes = (x,)
    for D in reversed(Ds[1:]):
        x, size = D @ x, magnitudes(D) @ jnp.abs(x)
        x = jnp.where(jnp.abs(x) > tiny * size, x, 0)
        xs = (x, *xs)
    return xs
