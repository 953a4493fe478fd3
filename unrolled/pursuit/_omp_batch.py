"""Orthogonal matching pursuit of many signals, on the host."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import ArrayLike
from unrolled._base.numbers import host_exponent, wide_dtype
from unrolled.dictionaries import Dictionary, Structured, block_of, column_norms, dense
from unrolled.pursuit import _products
from unrolled.pursuit._derivative import Conditions
from unrolled.pursuit._many import (
    Answers,
    destination,
    on_the_host,
    operands_of_many,
    rows_of,
    share,
)
from unrolled.pursuit._omp import is_by_fit, most_atoms, negligible
from unrolled.pursuit._problem import Pursuit

if TYPE_CHECKING:  # imports numba
    from unrolled.pursuit._matching import Codes, Rule

__all__ = ["omp_batch"]


# Number of signals whose arrays stay in the cache of a core, and number of floats of the arrays of
# signals whose codes grow together.
_CHUNK, _FLOATS = 512, 2**23
# The largest number of entries of the matrix of a structured dictionary, and of a Gram matrix.
_MATRIX = 2**25
_DEPENDENT = 1e-10  # largest squared sine of the angle of a dependent atom to the span


def omp_batch(
    D: Dictionary,
    Y: ArrayLike,
    sparsity: int,
    weights: ArrayLike | None = None,
    *,
    selection: str = "correlation",
    nonnegative: bool = False,
    sparse: bool = False,
    out: np.ndarray | None = None,
) -> Pursuit:
    r"""`omp` for many signals with one dictionary, computed by another algorithm.

    For every row y of Y, with its own diagonal V or with V = I, `omp_batch` repeats

    .. math:: j = \arg\max_i |d_i' V r| \, \frac{\|d_i\|}{\sqrt{d_i' V d_i}}, \quad
        S \leftarrow S \cup \{j\}, \quad x_S = \arg\min_u (y - D_S u)' V (y - D_S u), \quad
        r = y - D x.

    As in `omp`, the choice favours atoms in proportion to their norms, not to their weighted norms.

    If the codes of D come in parts, the maximised numbers form one vector per part, and each step
    adds all atoms of the part whose vector has the largest norm.

    The algorithm runs on the host, where threads share the signals. If there are many signals, the
    correlations come from the Gram matrix of D; else, and if D is large, each step takes one
    product of all residuals with D. The function is traceable.

    Args:
        D: (m, d). A structured dictionary becomes a matrix if the matrix has at most 2^25 entries,
            or if D is traced or weights are given; else only products with D and its atoms are
            computed, as for a large D on an accelerator.
        Y: (batch, m). Y may also be a batch of signal grids of a `Conv` (the codes then have the
            shape `D.code_grid`), of complex signals of a `Complex` D, or of signals of a `Joint` D
            (the codes then have the same form as the signals). The batch may be empty. If Y comes
            from `np.load(path, mmap_mode="r")`, the function reads Y in chunks and returns the same
            codes.
        sparsity: maximum number of atoms (or parts) in a code, in 0..d.
        weights: (batch, m) or (m,), the diagonal of V for each flat signal; non-negative, and 0 for
            an unknown entry of Y.
        selection: "correlation", or "least_squares" to add the atom that leaves the smallest
            residual, whatever the norms of the atoms (orthogonal least squares). Codes in parts
            admit only "correlation".
        nonnegative: whether to minimise over codes x >= 0, as in `omp`.
        sparse, out: as in `lasso_batch`: whether `x` is a record with the nonzeros, and an array to
            write the codes into.

    Returns:
        Pursuit with a leading axis of signals in every field, as from `omp`. With weights,
        `residual` is the root of (y - D x)' V (y - D x), and `gap` compares the squares of such
        residuals. A signal that is not finite has the code 0, the gap inf and `converged` False.

    Raises:
        TypeError: an operand is not real, or sparsity is not a static integer.
        ValueError: shapes do not fit, sparsity is outside 0..d, weights are negative or not finite,
            or `selection` is unknown.
        MemoryError: the array of codes needs more than the memory of this machine.

    Reference: Pati, Rezaiifar, Krishnaprasad (1993); Rubinstein, Zibulevsky, Elad (2008); Chen,
    Billings, Luo (1989) for orthogonal least squares.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.omp_batch(D, (D[:, 3:5] - 0.5 * D[:, 20:22]).T, 2)
        >>> result.converged.tolist(), [jnp.flatnonzero(x).tolist() for x in result.x]
        ([True, True], [[3, 20], [4, 21]])
    """
    where = "omp_batch"
    D, signals, dtype, grid = operands_of_many(D, Y, where)
    (m, d), most = D.shape, most_atoms(sparsity, D, where)
    nonnegative = checks.as_bool(nonnegative, "nonnegative", where)
    by_fit = is_by_fit(selection, nonnegative, D, where)
    if weights is not None:
        checks.nonnegative(weights, "weights", where)
        checks.finite(weights, "weights", where)
        if (shape := np.shape(weights)) not in ((m,), signals.shape):
            raise ValueError(
                f"{where}: weights have shape {shape}; expected ({m},) or {signals.shape}"
            )
    into = destination(D, signals, sparse, out, dtype, grid, where)
    options: dict[str, Any] = dict(by_fit=by_fit, nonnegative=nonnegative, into=into)
    host = partial(_coded, most=most, dtype=np.dtype(dtype), block=block_of(D), **options)
    conditions = Conditions(D, signals, V=weights)
    return on_the_host(host, (D, signals, weights), d, dtype, grid, conditions, into)


class Atoms:
    """The atoms of a dictionary, or a way to compute them; atom i is divided by 2^k_i.

    Args:
        D: (m, d).
        as_matrix: whether the matrix is needed, however large it is.
    """

    matrix: np.ndarray | None = None  # (d, m) in float64, atoms in rows

    def __init__(self, D: Any, as_matrix: bool = True):
        self.shape, self.operator = D.shape, D
        remote = isinstance(D, jax.Array) and D.devices().pop().platform != "cpu"
        small = self.shape[0] * self.shape[1] <= _MATRIX
        if as_matrix or small or not (remote or isinstance(D, Structured)):
            matrix = np.asarray(dense(D) if isinstance(D, Structured) else D).T.astype(
                float, order="C"
            )
            self.k = np.frexp(np.abs(matrix).max(1, initial=0))[1]
            self.matrix = np.ldexp(matrix, -self.k[:, None])
            self.norms = np.linalg.norm(self.matrix, axis=1)
        else:
            self.norms, self.k = np.frexp(np.asarray(column_norms(D), float))
        self.finite = bool(np.isfinite(self.norms).all())
        self.relative = np.ldexp(1.0, self.k - self.k.max(initial=0))  # 2^k_i over the largest

    def gram(self, dtype: np.dtype) -> np.ndarray:
        """The Gram matrix, in the dtype."""
        atoms = self.short if dtype == np.float32 else self.matrix
        assert atoms is not None
        return atoms @ atoms.T

    @cached_property
    def short(self) -> np.ndarray:
        """The matrix in float32."""
        assert self.matrix is not None
        return self.matrix.astype(np.float32)

    def products(self, R: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """R D in the dtype."""
        if self.matrix is not None:
            return R.astype(dtype) @ (self.short if dtype == np.float32 else self.matrix).T
        return np.ldexp(_products.products(self.operator, R), -self.k).astype(dtype)

    def columns(self, which: np.ndarray) -> np.ndarray:
        """Some atoms in rows, in float64."""
        if self.matrix is not None:
            return self.matrix[which]
        return np.ldexp(_products.columns(self.operator, which), -self.k[which, None])


def _coded(
    D: Any,
    Y: np.ndarray,
    weights: np.ndarray | None,
    *,
    most: int,
    dtype: np.dtype,
    block: int,
    by_fit: bool,
    nonnegative: bool,
    into: Any = None,
) -> Answers:
    """The codes of the rows of Y, and the residuals of the codes as they are returned."""
    n, m = Y.shape
    answers, wide = Answers.empty(n, D.shape[1], dtype, into), wide_dtype(dtype)
    atoms = Atoms(D, weights is not None)
    if not atoms.finite:
        return answers
    rule, favour = rule_of(m, most, wide, by_fit, nonnegative), atoms.norms * atoms.relative
    pays = weights is None and block == 1 and gram_pays(atoms, n, most)
    gram = atoms.gram(wide) if pays else np.zeros((0, 0))
    # No atom in the range helps, but an atom below the range might help.
    lost, rounding = ((atoms.relative == 0) & (atoms.norms > 0)).any(), 4 * m * np.finfo(wide).eps

    def work(rows: slice) -> None:
        V = weights if weights is None or weights.ndim == 1 else weights[rows]
        y, root, b, c = _scaled(rows_of(Y, rows, dtype, "omp_batch"), V)
        finite = np.isfinite(y).all(1)
        y = np.where(finite[:, None], y, 0)
        if pays:
            codes, left = by_gram(atoms, gram, y, rule, favour)
        else:
            codes, left = step_by_step(atoms, y, root, rule, favour, wide, block)
        used = np.arange(codes.atoms.shape[1]) < codes.counts[:, None]
        shift, size = b - atoms.k[codes.atoms], np.abs(codes.values).max(1, initial=0)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.ldexp(codes.values, shift).astype(dtype)
            kept = np.where(used, np.ldexp(values.astype(float), -shift), 0)
            missed = np.where(used, np.abs(kept - codes.values), 0).max(1, initial=0)
        order = np.argsort(codes.atoms, axis=1)
        own, entries = (
            np.take_along_axis(v, order, 1) for v in (codes.atoms, np.where(used, values, 0))
        )
        answers.put(np.arange(rows.start, rows.stop), own, entries)
        residual, energy = left(y, kept), np.sum(y**2, 1)
        share_of = np.where(energy > 0, energy, 1)
        solved = finite & (codes.inside / share_of <= rounding)
        # The rounding of the values adds a vector in the span of the atoms to the residual.
        moved = 0 if dtype == np.float64 else left(np.zeros_like(y), kept - codes.values * used)
        gap = np.where(finite, (np.sqrt(codes.inside) + moved) ** 2 / share_of, np.inf)
        full = codes.counts == most * block
        short = lost & ~full & (residual > rounding * np.sqrt(energy))
        held = missed <= 2 * float(jnp.finfo(dtype).eps) * size
        residual = np.where(finite, np.ldexp(residual, b[:, 0] + c), np.nan)
        margin = np.where(finite, codes.margins, 0)
        fields = gap, residual, codes.steps, solved & ~short & held, margin
        for field, part in zip(answers[1:], fields):
            field[rows] = part

    share(work, n, _chunk(atoms, n, most * block))
    return answers


def _scaled(Y: np.ndarray, weights: Any) -> tuple[np.ndarray, np.ndarray | None, Any, Any]:
    """Signals times the roots of their weights, near 1; the roots; and both exponents.

    A signal is divided by 2^b, (n, 1), and its roots are divided by 2^c, (n,).
    """
    root, c = None, np.zeros(len(Y), int)
    if weights is not None:
        V = np.broadcast_to(weights.astype(float), Y.shape)
        c = host_exponent(V, 1)[:, 0] // 2
        root = np.sqrt(np.ldexp(V, -2 * c[:, None]))
        Y = root * np.where(root > 0, Y, 0)
    b = host_exponent(Y, 1)
    return np.ldexp(Y, -b), root, b, c


def rule_of(m: int, most: int, dtype: np.dtype, by_fit: bool, nonnegative: bool) -> "Rule":
    """The rule for signals of length m in float32 or float64."""
    from unrolled.pursuit import _matching

    least = negligible(m, dtype)
    return _matching.Rule(most, least, max(least, _DEPENDENT), by_fit, nonnegative)


def _chunk(atoms: Atoms, n: int, k: int) -> int:
    """The number of signals in a chunk of a thread, for codes with at most k atoms."""
    m, d = atoms.shape
    most = max(1, min(_CHUNK, _FLOATS // (2 * d + k * (m + 2 * k))))
    return -(-n // max(1, -(-n // most)))


def gram_pays(atoms: Atoms, n: int, most: int) -> bool:
    """Whether correlations of n signals from the Gram matrix take less time than products with D.

    A step reads as many rows of the Gram matrix as there are chosen atoms. Products with D take m
    times as many operations, about ten times as fast.
    """
    m, d = atoms.shape
    fits = atoms.matrix is not None and d * d <= _MATRIX
    return fits and m * d + 5 * n * most**2 <= 2 * n * most * m


# Signals and values of their codes -> the norms of the residuals.
Left = Callable[[np.ndarray, np.ndarray], np.ndarray]


def by_gram(
    atoms: Atoms, gram: np.ndarray, Y: np.ndarray, rule: "Rule", favour: np.ndarray
) -> tuple["Codes", Left]:
    """`step_by_step` without weights and parts, with correlations from the Gram matrix."""
    from unrolled.pursuit import _matching

    assert atoms.matrix is not None
    D, squares = atoms.matrix, atoms.norms**2
    factors = rule.depends * squares if rule.by_fit else favour * _inverse(atoms.norms)
    codes = _matching.with_gram(D, gram, Y, atoms.products(Y, gram.dtype), factors, rule)
    return codes, lambda Y, values: _matching.residuals(D, Y, codes, values)


def step_by_step(
    atoms: Atoms,
    Y: np.ndarray,
    root: np.ndarray | None,
    rule: "Rule",
    favour: np.ndarray,
    dtype: np.dtype,
    block: int = 1,
) -> tuple["Codes", Left]:
    """The codes of signals; and the function from w y and values of the codes to norm(w (y - D x)).

    Each step takes one product of all residuals with D.

    Args:
        atoms: the atoms.
        Y: (n, m), signals times the roots of their weights.
        root: (n, m), the roots w of the weights; None for ones.
        rule: the rule; `most` counts parts.
        favour: (d,), factors by which the choice multiplies the correlations of normalised atoms.
        dtype: the dtype of the correlations.
        block: the number of atoms of a part; these atoms enter together.
    """
    from unrolled.pursuit import _matching

    n, k = len(Y), rule.most * block
    state, codes = _matching.Growing.of(Y, k), _matching.Codes.empty(n, k)
    squares = atoms.norms[None] ** 2
    if root is not None:
        assert atoms.matrix is not None
        squares = root**2 @ (atoms.matrix**2).T
    factors = rule.depends * squares if rule.by_fit else favour * _inverse(np.sqrt(squares))
    factors = np.minimum(factors, np.finfo(dtype).max).astype(dtype)
    squares = np.broadcast_to(squares, (n, len(favour)))
    apart = np.array(squares, dtype, order="C") if rule.by_fit else factors

    def weighted(V: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return V if root is None else V * root[rows, None] if V.ndim == 3 else V * root[rows]

    live = np.arange(n if rule.most else 0)
    chosen, news, margins = np.zeros((n, block), int), np.zeros((n, block, len(Y.T))), np.ones(n)
    while len(live):
        g = atoms.products(weighted(state.r[live], live), dtype)
        _hide(g, codes, live, block)
        f, far = (v if len(v) in (1, len(live)) else v[live] for v in (factors, apart))
        best, margins[live] = _choices(g, f, far, rule, block)
        chosen[live] = best[:, None] * block + np.arange(block)
        columns = atoms.columns(np.maximum(chosen[live], 0).ravel())
        news[live] = weighted(columns.reshape(len(live), block, -1), live)
        _matching.grow(state, codes, Y, chosen, news, margins, rule)
        live = np.flatnonzero(state.news)
        if rule.by_fit and len(live):
            apart[live] -= atoms.products(weighted(state.q[live], live), dtype) ** 2
            for i in live[state.news[live] == 2]:  # an atom has left
                S = slice(codes.counts[i])
                rows = atoms.products(weighted(state.columns[i, S], np.full(S.stop, i)), dtype)
                apart[i] = squares[i] - np.sum(rows * (state.inverses()[i, S, S] @ rows), 0)
    _matching.finish(state, codes)
    return codes, lambda Y, values: np.linalg.norm(
        Y - np.matmul(values[:, None], state.columns)[:, 0], axis=1
    )


def _hide(g: np.ndarray, codes: "Codes", rows: np.ndarray, block: int) -> None:
    """Set the correlations of the chosen parts to 0, so that these parts are not chosen again."""
    i, j = np.nonzero(np.arange(codes.atoms.shape[1]) < codes.counts[rows, None])
    g.reshape(len(g), -1, block)[i, codes.atoms[rows][i, j] // block] = 0


def _choices(
    g: np.ndarray, factors: np.ndarray, apart: np.ndarray, rule: "Rule", block: int
) -> tuple[np.ndarray, np.ndarray]:
    """The part with the largest score for each signal, and its distance from the next score."""
    from unrolled.pursuit import _matching

    if block == 1:
        return _matching.choose(g, factors, apart, rule)
    sizes = np.linalg.norm((factors * g).reshape(len(g), -1, block), axis=2)
    sizes = np.pad(sizes, ((0, 0), (0, sizes.shape[1] == 1)))
    *_, second, best = np.partition(sizes, -2, axis=1)[:, -2:].T
    return sizes.argmax(1), 1 - second * _inverse(best)


def _inverse(sizes: np.ndarray) -> np.ndarray:
    """The inverses; 0 for 0."""
    return np.divide(1, sizes, out=np.zeros_like(sizes), where=sizes > 0)


def match(
    D: np.ndarray,
    Y: np.ndarray,
    sparsity: int,
    V: np.ndarray | None = None,
    nonnegative: bool = False,
) -> np.ndarray:
    r"""The codes of the rows of Y by matching pursuit with normalised correlations, (n, d).

    .. math:: j = \arg\max_i |d_i' V r| / \sqrt{d_i' V d_i}, \quad
        x_S = \arg\min_u (y - D_S u)' V (y - D_S u), \quad r = y - D x.

    Args:
        D: (m, d).
        Y: (n, m), near 1.
        sparsity: maximum number of atoms in a code.
        V: (n, m), the diagonal of V for each signal; None for ones.
        nonnegative: whether the codes are non-negative.
    """
    X, atoms, dtype = np.zeros((len(Y), D.shape[1]), Y.dtype), Atoms(D), Y.dtype
    rule, ones = rule_of(len(D), sparsity, dtype, False, nonnegative), np.ones(D.shape[1])
    root = None if V is None else np.sqrt(V.astype(float))
    signals = Y.astype(float) if root is None else root * Y
    pays = root is None and gram_pays(atoms, len(Y), sparsity)
    gram = atoms.gram(dtype) if pays else np.zeros((0, 0))

    def work(rows: slice) -> None:
        if pays:
            codes, _ = by_gram(atoms, gram, signals[rows], rule, ones)
        else:
            v = None if root is None else root[rows]
            codes, _ = step_by_step(atoms, signals[rows], v, rule, ones, dtype)
        i, j = np.nonzero(np.arange(sparsity) < codes.counts[:, None])
        k = codes.atoms[i, j]
        X[rows.start + i, k] = np.ldexp(codes.values[i, j], -atoms.k[k])

    share(work, len(Y), _chunk(atoms, len(Y), sparsity))
    return X
