"""K-SVD and MOD: atoms for codes with a given number of nonzeros."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unrolled._arguments import checked
from unrolled._checks import ArrayLike, Key
from unrolled.dictionaries import Dictionary
from unrolled.dictionary_learning._learning import Learned, Options, Progress, learn
from unrolled.dictionary_learning._signals import Signals, correction
from unrolled.dictionary_learning._sweeps import Alternation, Fitted

# Alternating steps towards the leading pair of singular vectors of an error, from the last ones.
_STEPS = 3


@checked
def ksvd(
    Y: ArrayLike,
    d: int,
    *,
    sparsity: int,
    sweeps: int = 20,
    key: Key = 0,
    start: str | Dictionary = "data",
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""K-SVD: codes by orthogonal matching pursuit, then one atom after the other with its codes.

    .. math:: \min_{D, X} \frac1{2n} \sum_{k=1}^n \|y_k - D x_k\|^2, \qquad
        \|x_k\|_0 \le s, \; \|d_i\| = 1.

    The update of an atom takes the signals that use it, without its part, and moves to the leading
    pair of singular vectors of these: three alternating steps, each of which lowers the objective.
    A code of the sweep before stays where OMP finds no better one, so the objective falls from
    sweep to sweep unless atoms are replaced: those that no signal uses, and those parallel to
    another (inner product above 0.99), by the signals that are represented worst.

    Args:
        Y: (n, m), signals in rows, with n at least d.
        d: the number of atoms.
        sparsity: s, the most nonzeros of a code, in 1..min(m, d).
        sweeps: how many in all, those of `resume` included.
        key: a typed key, or a seed, of the start and of replacements.
        start: "data" for random signals, "dct" for cosines (of square patches where m is a square),
            or a D, (m, d).
        weights: of the squared errors, (n,) or (n, m), non-negative. Their scale may be any: inside
            they are divided by a power of two near the largest. A factor changes the objective by
            itself and, but for rounding, nothing else.
        mask: (n, m), True where an entry of Y is known; the others may be NaN.
        progress: called as `progress(step)` after every sweep, with a `Step`.
        resume: a result to continue from. With the other arguments as they were it is, bit for bit,
            as if it had never stopped.
        checkpoint: a file (.npz) in which every sweep is kept. The same call continues from it.

    Returns:
        Learned, in the dtype of Y. `objective` is the mean above, with the weights.

    Raises:
        TypeError: arrays that are traced or not real numbers, a mask that is not bool, counts that
            are not integers.
        ValueError: shapes that do not fit, fewer signals than atoms, sparsity out of range, NaN
            without a mask, an unknown start, a `resume` of another shape.
        CheckpointError: the file is damaged, or of another learning.

    Not claimed: a global minimum. Constant or equal signals leave atoms unused, which are noise.

    Reference: Aharon, Elad, Bruckstein (2006); Rubinstein, Zibulevsky, Elad (2008) for alternating
    steps; Smith, Elad (2013) for keeping codes.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (300, 12), 2) @ D.T
        >>> learned = ur.dictionary_learning.ksvd(Y, 12, sparsity=2, sweeps=15, key=0)
        >>> learned.D.shape, learned.objective < learned.history[0].objective / 2
        ((8, 12), True)
    """
    options = Options(sweeps, key, progress, resume, checkpoint, start, weights, mask)
    return learn(Alternation("ksvd", Y, d, sparsity, options, _one_by_one), options)


@checked
def mod(
    Y: ArrayLike,
    d: int,
    *,
    sparsity: int,
    sweeps: int = 20,
    key: Key = 0,
    start: str | Dictionary = "data",
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""The method of optimal directions: codes by orthogonal matching pursuit, then all atoms.

    .. math:: D = Y' X (X' X)^{-1}, \quad \text{then unit atoms}.

    With weights v of signals these are the products Y'VX and X'VX. With a mask, or weights of
    entries, the atoms fit the signals v y + (1 - v) D x instead, for v divided by the largest
    weight, which lowers the objective, too. Where the codes of some atoms are dependent, X'X is
    singular, and the atoms change as little as they can. All else is as in `ksvd`.

    Args:
        Y, d, sparsity, sweeps, key, start, weights, mask, progress, resume, checkpoint: see `ksvd`.

    Returns:
        Learned, as from `ksvd`.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`.

    Reference: Engan, Aase, Husoy (1999).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (300, 12), 2) @ D.T
        >>> learned = ur.dictionary_learning.mod(Y, 12, sparsity=2, sweeps=15, key=0)
        >>> learned.X.shape, learned.objective < learned.history[0].objective / 2
        ((300, 12), True)
    """
    options = Options(sweeps, key, progress, resume, checkpoint, start, weights, mask)
    return learn(Alternation("mod", Y, d, sparsity, options, _all_atoms), options)


# (z, h) -> the admissible unit atom a that is nearest to a multiple of z, with weights h.
Nearest = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def _one_by_one(signals: Signals, fitted: Fitted) -> None:
    """The update of K-SVD."""
    for j in range(fitted.D.shape[1]):
        update_atom(signals, fitted, j, _unit)


def _unit(z: np.ndarray, h: np.ndarray | None) -> np.ndarray:
    size = np.linalg.norm(z)
    return z / size if size > 0 else z


@np.errstate(over="ignore", invalid="ignore")  # an atom that leaves the range lowers no error
def update_atom(signals: Signals, fitted: Fitted, j: int, nearest: Nearest) -> int:
    """An atom and its codes, by alternating least squares among the signals that use it.

    For fixed codes x and E = R + x d' the best atom is z = E'x / x'x. A `nearest` atom is taken
    only if it lowers the error.

    Returns:
        how many were taken, one after the other; at the first that is not, the update ends.
    """
    D, X, R = fitted
    users = np.flatnonzero(X[j])
    if not len(users):
        return 0
    E = R[users] + X[j, users, None] * D[:, j]
    V = None if signals.V is None else signals.V[users]
    best = _pair(E, D[:, j], X[j, users], V)
    taken = 0
    while taken < _STEPS:
        z, h = _best_atom(E, best, V)
        a = nearest(z, h)
        if not a.any():
            break
        pair = _pair(E, a, _best_codes(E, a, V), V)
        if not pair.error < best.error:
            break
        best, taken = pair, taken + 1
    D[:, j], X[j, users], R[users] = best.d, best.x, best.R
    return taken


class _Pair(NamedTuple):
    """An atom and its codes."""

    d: np.ndarray  # (m,)
    x: np.ndarray  # (users,)
    R: np.ndarray  # (users, m), E - x d'
    error: float  # the weighted sum of squares of R


def _pair(E: np.ndarray, d: np.ndarray, x: np.ndarray, V: np.ndarray | None) -> _Pair:
    R = E - x[:, None] * d
    return _Pair(d, x, R, float(np.sum(R * R if V is None else V * R * R)))


def _best_atom(
    E: np.ndarray, pair: _Pair, V: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The best atom for given codes, and the weights of its entries; d where they are zero."""
    x = pair.x
    if V is None:
        square = x @ x
        return (x @ E / square if square > 0 else pair.d), None
    h = (x * x) @ V
    return np.divide(x @ (V * E), h, out=pair.d.copy(), where=h > 0), h


def _best_codes(E: np.ndarray, a: np.ndarray, V: np.ndarray | None) -> np.ndarray:
    if V is None:
        return E @ a / (a @ a)
    h = V @ (a * a)
    return np.divide((V * E) @ a, h, out=np.zeros_like(h), where=h > 0)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # such atoms are not taken
def _all_atoms(signals: Signals, fitted: Fitted) -> None:
    """The update of MOD for the atoms that are used; left out where rounding raises the error."""
    D, X, R = fitted
    V, codes, left = signals.V, X.T, signals.weighted(R)
    if V is not None and (V == V[:, :1]).all():  # one weight for a signal
        root = np.sqrt(V[:, :1])
        codes, left = root * codes, root * R
    used = np.flatnonzero(codes.any(0))
    new, scaled = D.copy(), X.copy()
    new[:, used] += correction(codes[:, used], left)
    norms = np.linalg.norm(new, axis=0)
    new, scaled = new / norms, norms[:, None] * scaled
    if signals.objective(signals.Y - scaled.T @ new.T) < signals.objective(R):
        D[:], X[:] = new, scaled
