"""The scaled problem of a pursuit, its result, and the compiled program that runs a method."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, Result
from unrolled._base.numbers import (
    any_nonzero,
    exponent,
    largest,
    ldexp,
    norm,
    power_of_two,
    times_power,
    wide_dtype,
)
from unrolled.activations import relu
from unrolled.dictionaries import (
    Conv,
    Dictionary,
    Operator,
    Structured,
    as_chain,
    as_flat,
    column_norms,
    operands,
    refuse_parts,
    spectral_norm,
    spread,
    threshold_shapes,
)
from unrolled.penalties import L1, Penalty

__all__ = ["DeepPursuit", "Pursuit"]


Codes = tuple[Array, ...]
# The form in which a flat code is returned: the shape of a grid, a function of the code, or None
# for a flat code.
Grid = Any
# The advice in the messages of pursuits that do not accept codes in parts.
NO_PARTS = "try pursuit.lasso, omp, ista or fista"
# Steps between two evaluations of the gap; an evaluation costs as much as a step.
_BLOCK = 10
# The largest number of entries of an operator for which the norms of its atoms are computed,
# because these norms may need the matrix of the operator.
_MATRIX = 2**20


class Pursuit(Result):
    """A code, with its duality gap, its residual and the number of steps."""

    x: Array  # (d,)
    gap: Array  # () duality gap of the returned x for the LASSO, relative to norm(y)^2 / 2
    residual: Array  # () norm(y - D x) of the returned x
    steps: Array  # () steps taken
    converged: Array  # () gap <= tol, and x is in the range of the dtype
    # () in [0, 1], the distance from a change of the support, if the pursuit computes it
    margin: Any = None

    # The method that `lasso` or `lasso_batch` chose: "admm", "fista", "gram" or "working sets". Not
    # a field, because programs and files do not hold it.
    how: ClassVar[str] = ""


def told(result: Pursuit, how: str) -> Pursuit:
    """The result, which now names the method `how`."""
    object.__setattr__(result, "how", how)  # of a frozen record
    return result


class DeepPursuit(Result):
    """The codes of a chain of dictionaries, with their gap, residual and number of steps."""

    xs: Codes  # x_j, (d_j,) each, with x_{j-1} = D_j x_j for j > 1
    gap: Array  # () duality gap, relative to norm(y)^2 / 2; inf if no bound is known
    residual: Array  # () norm(y - D_1 x_1)
    steps: Array  # () steps taken
    converged: Array  # () whether the pursuit met its aim and xs are in the range of the dtype


class Problem(NamedTuple):
    r"""A chain and a signal, scaled so that squares and products stay in the range of the dtype.

    .. math:: \min_{x_J} \|y - D_1 x_1\|^2 / 2 + \sum_j lam_j \|x_j\|_1 + l2/2 \, \|x_J\|^2,
        \qquad x_{j-1} = D_j x_j.

    A single dictionary is a chain with one layer. D_j is divided by 2^a_j and y is divided by 2^b,
    without rounding. So x_j is divided by 2^(b - a_1 - ... - a_j) and lam_j is divided by 2^(b +
    a_1 + ... + a_j).
    """

    Ds: tuple[Operator, ...]
    y: Array  # (m,)
    lams: tuple[Array, ...]  # () or (d_j,) each; empty if the pursuit has no penalties
    l2: Array | None  # ()
    level: Array | None  # () a bound on the residual
    sizes: tuple[Array, ...]  # `StaticPart.size` of D_j, such as norm(D_j, 2)
    b: Array  # the exponent of y
    up: tuple[Array, ...]  # the exponents of x_j
    lost: tuple[Array, ...]  # (d_j,) or () each: atoms that are below the range in these units

    @property
    def end(self) -> int:
        """The length of x_J."""
        return self.Ds[-1].shape[1]


class Found(NamedTuple):
    """The result of a method, in the units of the problem."""

    x: Array | Codes  # x_J, (d_J,), or all codes
    gap: Array
    steps: Array
    met: Array  # whether the method met its aim
    residual: Array | None = None  # norm(y - D_1 x_1), if the method computes it
    # The largest residual with which the returned code meets the aim
    allowed: Array | None = None
    more: Any = ()  # further numbers of the result, without units
    zeros: Codes | None = None  # marks entries that are zero up to rounding
    # (d_J,) -> the gap of a code x_J and whether it meets the aim; judges the code after rounding
    judge: Callable[[Array], tuple[Array, Array]] | None = None


def fixed_norm(D: Operator) -> Array:
    """norm(D, 2) as a constant, for methods whose result does not depend on the norm."""
    return spectral_norm(lax.stop_gradient(D))


@dataclass(frozen=True)
class StaticPart:
    """The static part of a call, except the method."""

    dtype: np.dtype  # of the result
    grid: Grid = None
    size: Callable[[Operator], Array] = spectral_norm  # the divisor of a dictionary
    sequence: bool = False  # whether lam is (n,), one penalty for each of n problems
    relative: bool = False  # whether lam is a ratio to lam_max
    kind: Penalty = L1


@programs.on_auto_axes
@partial(jax.jit, static_argnums=(0, 1))
def run(
    method: Callable[[Problem, Array], Found],
    form: StaticPart,
    Ds: tuple[Operator, ...],
    y: Array,
    lams: tuple,
    l2: Any,
    level: Any,
    start: Any,
) -> tuple[Any, ...]:
    """Run the method on the scaled problem; return the values of `result`."""
    problem, x = scaled(form, Ds, y, lams, l2, level, start)
    with jax.default_matmul_precision("highest"):
        return result(form, problem, method(problem, x))


def scaled(
    form: StaticPart,
    Ds: tuple[Operator, ...],
    y: Array,
    lams: tuple = (),
    l2: Any = None,
    level: Any = None,
    start: Any = None,
) -> tuple[Problem, Array]:
    """The scaled problem, in float32 or wider, and the code to start from."""
    dtype = wide_dtype(y.dtype)
    y, Ds = y.astype(dtype), checks.cast(Ds, dtype)
    sizes = [form.size(D) for D in Ds]
    a, b = [exponent(size) for size in sizes], exponent(y)
    total = [sum(a[1 : j + 1], a[0]) for j in range(len(a))]
    up = tuple(b - k for k in total)
    problem = Problem(
        tuple(D * power_of_two(-k, dtype) for D, k in zip(Ds, a)),
        times_power(y, -b),
        (),
        None if l2 is None else bounded(ldexp(jnp.asarray(l2, dtype), -2 * total[-1])),
        None if level is None else ldexp(jnp.asarray(level, dtype), -b),
        tuple(times_power(size, -k) for size, k in zip(sizes, a)),
        b,
        up,
        tuple(map(out_of_range, Ds, a)),
    )
    weights = [jnp.asarray(lam, dtype) for lam in lams]
    if not form.sequence:
        weights = [per_atom(D, lam) for D, lam in zip(Ds, weights)]
    if form.relative:
        weights = [weights[0] * largest_product(problem.Ds[0], problem.y, form.kind)]
    else:
        weights = [ldexp(lam, -(b + k)) for lam, k in zip(weights, total)]
    if start is None:
        x = jnp.zeros(problem.end, dtype)
    else:
        x = lax.stop_gradient(ldexp(jnp.asarray(start, dtype), -up[-1]))
    return problem._replace(lams=tuple(map(bounded, weights))), x


def least_of(dtype: np.dtype) -> float:
    """The size below which numbers of a dtype, or products with numbers near 1, may lose digits."""
    return float(jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps)


def out_of_range(D: Operator, k: Array, least: float | None = None) -> Array:
    """Mark nonzero atoms below `least` after division by 2^k, (d,); False for a large operator.

    The default of `least` is `least_of(D.dtype)`.

    If D is an array, the function also marks atoms of subnormal numbers, which XLA treats as zeros.
    """
    least = least_of(D.dtype) if least is None else least
    if isinstance(D, Structured):
        if math.prod(D.shape) > _MATRIX:
            return jnp.zeros((), bool)
        norms = column_norms(D)
        return (norms > 0) & (times_power(norms, -k) < least)
    near = jnp.max(jnp.abs(times_power(D, -k)), 0)
    return any_nonzero(D, 0) & (near < least)


def bounded(lam: Array) -> Array:
    """The penalty, limited to the largest number of the dtype, which gives the same code as inf."""
    return jnp.minimum(lam, float(jnp.finfo(lam.dtype).max))


def largest_product(D: Operator, y: Array, penalty: Penalty) -> Array:
    """The largest dual size of D'y, for D and y whose products stay in the range."""
    with jax.default_matmul_precision("highest"):
        return largest(penalty.of(D).dual_sizes(y @ D))


def result(form: StaticPart, problem: Problem, answer: Found) -> tuple[Any, ...]:
    """xs, gap, residual, steps, converged and more, in the units and the dtype of the caller.

    Residual and gap belong to the returned code: a judge tests codes in half precision again after
    they are rounded. (Without a judge, the method itself has rounded the code.) If the aim
    is a bound on the residual, `converged` tests this residual. An atom that is below the range may
    belong to the code if its penalty is below the range, too. Then no bound is known: the gap is
    inf and `converged` is False.
    """
    x, residual, converged, gap = answer.x, answer.residual, answer.met, answer.gap
    if answer.judge is not None and form.dtype != problem.y.dtype:
        assert not isinstance(x, tuple)
        gap, converged = answer.judge(rounded(x, form.dtype))
    for lam, lost in zip(problem.lams, problem.lost):
        unknown = (lost & (lam < least_of(problem.y.dtype))).any()
        gap, converged = jnp.where(unknown, jnp.inf, gap), converged & ~unknown
    xs = x if isinstance(x, tuple) else codes_of(problem.Ds, x)
    if answer.zeros is not None:
        xs = tuple(jnp.where(zero, 0, x) for zero, x in zip(answer.zeros, xs))
    if residual is None or form.dtype != problem.y.dtype:
        residual = norm(problem.y - problem.Ds[0] @ rounded(xs[0], form.dtype))
    if answer.allowed is not None:
        # A bound on the residual is exact up to the rounding of its dtype.
        converged &= residual <= answer.allowed * (1 + float(jnp.finfo(form.dtype).eps))
    codes = tuple(ldexp(x, k).astype(form.dtype) for x, k in zip(xs, problem.up))
    for code, x, k in zip(codes, xs, problem.up):
        converged = converged & is_held(code, x, k)
    if form.grid is not None:
        show = form.grid if callable(form.grid) else partial(jnp.reshape, shape=form.grid)
        codes = tuple(map(show, codes))
    gap, residual, *more = (
        v.astype(form.dtype) for v in (gap, times_power(residual, problem.b), *answer.more)
    )
    return codes, gap, residual, answer.steps, converged, *more


def rounding_of(form: StaticPart, problem: Problem, x: Array) -> Array:
    r"""The largest residual that rounding can cause for a code x with D x = y, in one dictionary.

    .. math:: \min(c \, (\|y\| + \sum_i \|d_i\| |x_i|), \; \sqrt\epsilon \|y\|)

    The entries of y and x are rounded to their dtype, whose spacing is eps, and the n products of
    an entry of D x are summed in float32 or wider. So c is the larger of 4 eps and 4 n times the
    spacing of the sums. If the residual exceeds the second bound, the code has lost half of the
    digits of y. Large terms that cancel do not justify such a residual: x then solves D x = y only
    because D is rounded.
    """
    (D,), y, eps = problem.Ds, problem.y, float(jnp.finfo(form.dtype).eps)
    share = 4 * max(eps, max(D.shape) * float(jnp.finfo(y.dtype).eps))
    length = norm(y)
    return jnp.minimum(share * (length + column_norms(D) @ jnp.abs(x)), math.sqrt(eps) * length)


def rounded(x: Array, dtype: np.dtype) -> Array:
    """x, rounded to the dtype."""
    return x.astype(dtype).astype(x.dtype)


def is_held(code: Array, x: Array, k: Array) -> Array:
    """Whether the error of code = x 2^k is within rounding, so that no entry left the range."""
    eps = float(jnp.finfo(code.dtype).eps)
    missed = jnp.abs(ldexp(code.astype(x.dtype), -k) - x)
    return (missed <= 2 * eps * jnp.max(jnp.abs(x))).all()


def codes_of(Ds: Sequence[Any], x: Array) -> Codes:
    """(x_1, ..., x_J) from x = x_J, by x_{j-1} = D_j x_j."""
    xs: Codes = (x,)
    for D in reversed(Ds[1:]):
        xs = (D @ xs[0], *xs)
    return xs


def activation_in_units(activation: Callable[[Array], Array], k: Array) -> Callable[[Array], Array]:
    """The activation for numbers divided by 2^k, v -> rho(2^k v) / 2^k; ReLU is unchanged."""
    return activation if activation == relu else lambda v: ldexp(activation(ldexp(v, k)), -k)


def solve(
    step: Callable[[Any], Any],
    start: Any,
    gaps: Callable[[Any], Any],
    *,
    tol: float | None,
    max_steps: int,
    period: int = 1,
) -> tuple[Any, Array, Any]:
    """The loop of all solvers: `state <- step(state)` until all gaps(state) are <= tol.

    The gaps are one number or a tuple; they are evaluated every `_BLOCK` steps. With tol=None
    exactly `max_steps` steps run as one scan, which has a derivative in reverse mode. `period` is
    the number of steps that a call of `step` takes, a divisor of `_BLOCK`.

    Returns:
        The last state, the number of steps, and the gaps of the last state.
    """

    def run(state, n):
        return programs.scan(lambda state, _: (step(state), None), state, length=n)[0]

    if tol is None:
        state = run(start, max_steps)
        return state, jnp.asarray(max_steps), gaps(state)

    def body(carry):
        state, steps, _ = carry
        state = run(state, _BLOCK // period)
        return state, steps + _BLOCK, gaps(state)

    def not_done(carry):
        _, steps, current = carry
        return (reduce(jnp.maximum, jax.tree.leaves(current)) > tol) & (steps < max_steps)

    return programs.while_loop(not_done, body, (start, jnp.zeros((), int), gaps(start)))


def check_weights(
    D: Dictionary, lam: ArrayLike, name: str, where: str, batch: int | None = None
) -> None:
    """Raise ValueError unless `lam` is one number, one per atom or one per group of atoms.

    For a batch, `lam` may also be one number per signal, or one per signal and atom (or part).
    """
    shape, grid = np.shape(lam), getattr(D, "code_grid", ())
    each = [] if batch is None else [(batch, 1), *((batch, *s) for s in threshold_shapes(D)[1:2])]
    if shape in (*threshold_shapes(D), *each, grid) or (grid and shape == (batch, *grid)):
        return
    *first, last = map(str, (*threshold_shapes(D)[:2], *each))
    raise ValueError(f"{where}: {name} has shape {shape}; expected {', '.join(first)} or {last}")


def per_atom(D: Dictionary, lam: ArrayLike) -> Array:
    """Penalties, one per atom, (d,); a single number is returned unchanged."""
    return jnp.asarray(spread(D, jnp.asarray(flat_code(D, lam))))


def one_by_one(D: Dictionary, lam: Any) -> Any:
    """lam; a known 0 becomes one 0 per atom, because the gap finds free atoms only in vectors."""
    number = isinstance(lam, int | float | np.ndarray | np.generic | jax.Array)
    if not number or np.ndim(lam) or not checks.is_concrete(lam):
        return lam
    value = np.asarray(lam)
    if value.dtype.kind not in "iuf" or value != 0:
        return lam
    return np.zeros(threshold_shapes(D)[1] if isinstance(D, Structured) else np.shape(D)[-1:])


def flat_code(D: Dictionary, x: ArrayLike) -> ArrayLike:
    """A code (or penalties) of shape `D.code_grid`, flattened; anything else unchanged."""
    if isinstance(D, Conv) and np.shape(x)[-len(D.code_grid) :] == D.code_grid:
        x = x if isinstance(x, np.ndarray) else jnp.asarray(x)
        return x.reshape(*x.shape[: -len(D.code_grid)], math.prod(D.code_grid))
    return x


def single(
    method: Callable[[Problem, Array], Found],
    where: str,
    D: Dictionary,
    y: ArrayLike,
    *lam: Any,
    **options: Any,
) -> Pursuit:
    """The result of a method with one dictionary; `checked_single` describes `options`."""
    if lam and lam[0] is None:
        raise TypeError(f"{where}: {options.get('name', 'lam')} must be real numbers, got None")
    form, arrays = checked_single(where, D, y, *lam, **options)
    (x,), *rest = run(method, form, *arrays)
    return Pursuit(x, *rest)


def deep(
    method: Callable[[Problem, Array], Found],
    where: str,
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Any,
    **options: Any,
) -> DeepPursuit:
    """The result of a method with a chain; `checked_chain` describes `options`."""
    form, arrays = checked_chain(where, Ds, y, lams, **options)
    return DeepPursuit(*run(method, form, *arrays))


def checked_single(
    where: str,
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike | None = None,
    *,
    name: str = "lam",
    finite: bool = True,
    sequence: bool = False,
    l2: ArrayLike | None = None,
    level: ArrayLike | None = None,
    start: ArrayLike | None = None,
    size: Callable[[Dictionary], Array] = spectral_norm,
    relative: bool = False,
    kind: Penalty = L1,
    parts: bool = False,
) -> tuple[StaticPart, tuple]:
    """The checked arguments of a pursuit with one dictionary, for `run`.

    Args:
        where: the name of the caller, with which messages begin.
        D, y: as in the pursuits; y may be a grid of a `Conv`.
        lam: the penalty, or None.
        name, finite: the name of the penalty in messages, and whether it must be finite.
        sequence: whether lam has n penalties, in an array of shape (n,).
        l2, level, start: further operands; the caller has checked the scalars.
        size, relative, kind: fields of `StaticPart`.
        parts: whether the pursuit accepts codes in parts.
    """
    if not parts:
        refuse_parts(D, where, NO_PARTS)
    y, grid = flat_signal(D, y, where)
    D, y, _ = operands(D, y, where)
    wide = wide_dtype(y.dtype)
    lams = () if lam is None else (penalty(D, lam, name, where, wide, finite, sequence),)
    if size in (spectral_norm, fixed_norm) and is_zero(D):
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    if l2 is not None:
        check_number(l2, "l2", where)
        checks.in_range(l2, wide, "l2", where)
    start = as_start(D, start, "a code, ", where)
    form = StaticPart(np.dtype(y.dtype), grid, size, sequence, relative, kind)
    return form, ((D,), y, lams, as_operand(l2, wide), as_operand(level, wide), start)


def checked_chain(
    where: str,
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Any,
    *,
    name: str = "lams",
    by_steps: bool = True,
    level: ArrayLike | None = None,
    start: ArrayLike | None = None,
) -> tuple[StaticPart, tuple]:
    """The checked arguments of a pursuit with a chain, for `run`.

    Args:
        where: the name of the caller, with which messages begin.
        Ds, y: as in the pursuits.
        lams: a tuple with one penalty per layer; zeros if the pursuit has no penalties.
        name: the name of the penalties in messages.
        by_steps: whether the pursuit takes steps of the size 1 / norm(D_j)^2. If the pursuit takes
            no such steps, D_j may be zero, and a penalty may be infinite.
        level, start: a bound on the residual, and the x_J to start from.

    Raises:
        TypeError: an operand is not real.
        ValueError: shapes do not fit, there is not one penalty per layer, a penalty is negative or
            not finite, or a dictionary is zero.
    """
    Ds = as_chain(Ds, where)
    for Dj in Ds:
        refuse_parts(Dj, where, NO_PARTS)
    lams = one_per_layer(lams, name, len(Ds), where)
    _, y, Ds = operands(Ds[0], y, where, params=Ds)
    wide = wide_dtype(y.dtype)
    lams = tuple(
        penalty(D, lam, f"{name[:-1]}_{j}", where, wide, by_steps)
        for j, (D, lam) in enumerate(zip(Ds, lams), 1)
    )
    for j, D in enumerate(Ds, start=1):
        if by_steps and is_zero(D):
            raise ValueError(f"{where}: D_{j} is zero, so its step size is undefined")
    start = as_start(Ds[-1], start, "x_J, ", where)
    return StaticPart(np.dtype(y.dtype)), (Ds, y, lams, None, as_operand(level, wide), start)


def penalty(
    D: Dictionary,
    lam: Any,
    name: str,
    where: str,
    dtype: np.dtype,
    finite: bool = True,
    sequence: bool = False,
    batch: int | None = None,
) -> Any:
    """A checked penalty in a shape that `check_weights` admits, or a sequence of shape (n,)."""
    checks.nonnegative(lam, name, where)
    if finite:
        checks.finite(lam, name, where)
    checks.in_range(lam, dtype, name, where)
    if not sequence:
        check_weights(D, lam, name, where, batch)
    elif np.ndim(lam) != 1:
        raise ValueError(f"{where}: {name} has shape {np.shape(lam)}; expected a sequence, (n,)")
    return as_operand(lam, dtype)


def as_start(D: Dictionary, start: Any, what: str, where: str, batch: tuple[int, ...] = ()) -> Any:
    """The checked code (or codes of a batch) to start from; None if `start` is None."""
    if start is None:
        return None
    start, shape = as_flat(D, start, len(batch))[0], (*batch, D.shape[1])
    start = flat_code(D, checks.on_host_or_device(start, "start", where))
    if start.shape != shape:
        raise ValueError(f"{where}: start has shape {start.shape}; expected {what}{shape}")
    checks.finite(start, "start", where)
    return start


def as_operand(value: Any, dtype: np.dtype) -> Any:
    """A user's number or array for a compiled program; the program itself casts JAX arrays."""
    return value if value is None or isinstance(value, jax.Array) else np.asarray(value, dtype)


def check_number(value: ArrayLike, name: str, where: str) -> None:
    """Raise unless `value` is one real number, and finite and non-negative if known."""
    checks.nonnegative(value, name, where)
    checks.finite(value, name, where)
    checks.one_number(value, name, where)


def is_zero(D: Dictionary) -> bool:
    """Whether a known D is zero, up to numbers below the range of its dtype.

    The function examines the whole dictionary only if a leaf is zero.
    """
    if not checks.is_concrete(D):
        return False
    leaves = [np.atleast_1d(leaf) for leaf in jax.tree.leaves(D)]
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if all(_has_normal(leaf[:1]) or _has_normal(leaf) for leaf in numbers):
        return False
    with jax.ensure_compile_time_eval():  # D may be known inside of a `jit`
        return not spectral_norm(D) > 0


def _has_normal(leaf: np.ndarray) -> bool:
    """Whether an entry is a normal number of the dtype, or larger."""
    return bool((np.abs(leaf) >= jnp.finfo(leaf.dtype).tiny).any())


def one_per_layer(values: Any, name: str, J: int, where: str) -> tuple:
    """`values` as a tuple of one value per layer."""
    if not isinstance(values, (tuple, list)) or len(values) != J:
        got = len(values) if isinstance(values, (tuple, list)) else type(values).__name__
        raise ValueError(f"{where}: expected a tuple of {J} {name}, one per layer, got {got}")
    return tuple(values)


def static_tol(tol: float, where: str, otherwise: str = "") -> float:
    """A tolerance as a number, checked to be positive and finite.

    Example:
        >>> from unrolled.pursuit._problem import static_tol
        >>> static_tol(1e-6, "caller")
        1e-06
    """
    number = checks.as_number(tol, "tol", where)
    if not 0 < number < math.inf:
        raise ValueError(f"{where}: tol must be positive and finite{otherwise}, got {tol}")
    return number


def static_steps(max_steps: int, where: str) -> int:
    """The maximum number of steps, limited to the range of a 32-bit counter.

    Example:
        >>> from unrolled.pursuit._problem import static_steps
        >>> static_steps(100, "caller")
        100
    """
    return min(checks.as_index(max_steps, "max_steps", where), 2**30)


def flat_signal(D: Dictionary, y: ArrayLike, where: str, *, batch: int = 0) -> tuple[Any, Grid]:
    """The flat y, and the form of its code if y is a grid or another form of D, else None.

    Args:
        D: (m, d).
        y: an array of shape `D.signal_grid`, or `D.signal_shape` for one channel, after `batch`
            leading axes; an array of another shape is returned unchanged.
        where: the name of the caller, with which messages begin.
        batch: the number of leading axes.

    Example:
        >>> from unrolled.pursuit._problem import flat_signal
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 2, 2)), (3, 4))
        >>> y, grid = flat_signal(D, jnp.ones((3, 4)), "caller")
        >>> y.shape, grid
        ((12,), (2, 2, 3))
    """
    if not isinstance(D, Conv):
        return as_flat(D, y, batch)
    shape = np.shape(y)
    channels, *spatial = D.signal_grid
    grids = [D.signal_grid] + ([tuple(spatial)] if channels == 1 and len(spatial) > 1 else [])
    if shape[batch:] not in grids:
        return y, None
    return checks.as_float(y, "y", where).reshape(*shape[:batch], -1), D.code_grid
