r"""The derivative of the codes of a batch, by the optimality conditions on their supports.

The code x of a signal y satisfies, on its support S,

.. math:: D_S' V (y - D_S x_S) - l2 \, x_S - lam_S \, sign(x_S) = 0.

If the support stays, a cotangent c of x becomes the cotangent of all other arguments through the
solution w of (D_S' V D_S + l2) w = c_S, as the gradient of

.. math:: \langle V (y - D x), D w \rangle - l2 \langle x, w \rangle - \langle lam \, sign(x), w
    \rangle.

Reference: Mairal, Bach, Ponce (2012), proposition 1, for task-driven dictionary learning.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.checks import Array
from unrolled._base.numbers import exponent, ldexp, power_of_two, times_power, wide_dtype
from unrolled.dictionaries import Operator, Structured, dense
from unrolled.pursuit import _products

# Signals whose systems are solved together, and the largest share of the largest singular value
# that counts as zero where the atoms of a support are dependent.
_TOGETHER, _DEPENDENT = 64, 1e-10


class Conditions(NamedTuple):
    """The arguments on which codes depend."""

    D: Operator
    Y: Array  # (n, m)
    lam: Any = 0.0  # (), or an array that broadcasts to (n, d)
    l2: Any = 0.0  # ()
    V: Any = None  # (m,) or (n, m), the diagonal of V for each signal; None for ones


def with_derivative(X: Array, of: Conditions) -> Array:
    """X, (n, d), with the derivative of the codes in the arguments; each support is held fixed.

    If no argument is traced, nothing is computed. Derivatives are in reverse mode, once.
    """
    if checks.is_concrete((of, X)):
        return X
    # A structured D would become a matrix in a program, whose derivative takes atoms on the host.
    return (_attached if isinstance(of.D, Structured) else jax.jit(_attached))(X, of)


def _attached(X: Array, of: Conditions) -> Array:
    dtype = wide_dtype(X.dtype)
    D, Y, lam, l2, V = checks.cast(of, dtype)
    if V is not None:
        V = jnp.broadcast_to(V, Y.shape)
        Y = jnp.where(V > 0, Y, 0)
    fixed_D, fixed_Y = lax.stop_gradient((D, Y))
    a = jnp.zeros((), jnp.int32) if isinstance(D, Structured) else exponent(fixed_D)
    b = exponent(fixed_Y, 1)
    near = Conditions(
        D * power_of_two(-a, D.dtype),
        times_power(Y, -b),
        ldexp(jnp.broadcast_to(lam, X.shape), -(a + b)),
        ldexp(l2, -2 * a),
        V,
    )
    with jax.default_matmul_precision("highest"):
        codes = _on_supports(ldexp(X.astype(dtype), a - b), near)
        return ldexp(codes, b - a).astype(X.dtype)


@jax.custom_vjp
def _on_supports(X: Array, of: Conditions) -> Array:
    return X


def _forward(X: Array, of: Conditions) -> tuple[Array, Any]:
    return X, (X, of)


def _backward(saved: Any, change: Array) -> tuple[Array, Conditions]:
    X, of = saved
    D, Y, _, l2, V = of
    if not isinstance(D, Structured):
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (D, Y, Y, X)]
        to_D, R, of_W, W = _called(_products_of_w, shapes, D, Y, l2, V, X, change)
        to_Y, to_V = (of_W, None) if V is None else (V * of_W, R * of_W)
        to_lam, to_l2 = -jnp.sign(X) * W, -jnp.sum(X * W)
        return jnp.zeros_like(X), Conditions(to_D, to_Y, to_lam, to_l2, to_V)
    whole = D if checks.is_concrete(saved) else dense(D)
    W = _called(_solved, jax.ShapeDtypeStruct(X.shape, X.dtype), whole, l2, V, X, change)

    def pairing(of: Conditions) -> Array:
        D, Y, lam, l2, V = of
        R = Y - (D @ X.T).T
        R = R if V is None else V * R
        return jnp.sum(R * (D @ W.T).T) - jnp.sum((l2 * X + lam * jnp.sign(X)) * W)

    return jnp.zeros_like(X), jax.grad(pairing, allow_int=True)(of)


_on_supports.defvjp(_forward, _backward)


def _called(function: Callable, shapes: Any, *operands: Any) -> Any:
    """The results of a function of numpy."""
    if checks.is_concrete(operands):
        return jax.tree.map(jnp.asarray, function(*operands))

    @programs.on_auto_axes
    def called(*operands: Any) -> Any:
        return programs.host_callback(function, shapes, *operands, vmap_method="sequential")

    return called(*operands)


def _products_of_w(D: Any, Y: Any, l2: Any, V: Any, X: Any, change: Any) -> list[np.ndarray]:
    """The cotangent of a matrix D, y - D x, D w and w, by products with the sparse x and w."""
    from scipy.sparse import csr_array

    W, X, Y = _solved(D, l2, V, X, change), np.asarray(X), np.asarray(Y)
    owners, supports = np.nonzero(X)
    used, places = np.unique(supports, return_inverse=True)
    where = places, np.searchsorted(owners, np.arange(len(X) + 1))
    shape, atoms = (len(X), len(used)), _columns(D, used)
    x, w = (csr_array((v[owners, supports].astype(float), *where), shape) for v in (X, W))
    R, of_W = Y - x @ atoms, w @ atoms
    weights = 1 if V is None else np.asarray(V)
    to_D = np.zeros(D.shape, D.dtype)
    to_D[:, used] = (w.T @ (weights * R) - x.T @ (weights * of_W)).T
    return [v.astype(D.dtype, copy=False) for v in (to_D, R, of_W, W)]


def _solved(D: Any, l2: Any, V: Any, X: Any, change: Any) -> np.ndarray:
    """w for every signal, (n, d), 0 off the support of X."""
    X, change = (np.asarray(v) for v in (X, change))
    W, (owners, supports) = np.zeros_like(X), np.nonzero(X)
    counts = np.bincount(owners, minlength=len(X))
    slots = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
    used = np.flatnonzero(np.bincount(supports, minlength=X.shape[1]))
    all_places = np.zeros((len(X), counts.max(initial=0)), int)  # of the supports in `used`
    all_places[owners, slots] = np.searchsorted(used, supports)
    atoms = _columns(D, used)
    # One large product is about eight times as fast as the small products of the supports.
    squared = V is None and len(used) ** 2 <= 8 * np.sum(counts**2)
    gram = atoms @ atoms.T if squared else None
    root = None if V is None else np.sqrt(np.asarray(V).astype(float))
    order = np.argsort(counts, kind="stable")
    for rows in np.split(order, range(_TOGETHER, len(order), _TOGETHER)):
        k = int(counts[rows].max(initial=0))
        places = all_places[rows, :k]
        real = np.arange(k) < counts[rows, None]
        if gram is not None:
            A = gram[places[:, :, None], places[:, None]]
        else:
            C = atoms[places] if root is None else atoms[places] * root[rows, None]
            A = C @ C.transpose(0, 2, 1)
        A = np.where(real[:, :, None] & real[:, None], A, 0)
        A[:, np.arange(k), np.arange(k)] += np.where(real, float(l2), 1)
        c = np.where(real, change[rows[:, None], used[places]], 0).astype(float)
        i, j = np.nonzero(real)
        W[rows[i], used[places[i, j]]] = _systems(A, c)[i, j]
    return W


def _systems(A: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The solutions of A w = c; the shortest of least squares if a matrix is singular."""
    try:
        return np.linalg.solve(A, c[..., None])[..., 0]
    except np.linalg.LinAlgError:
        inverses = np.linalg.pinv(A, rcond=_DEPENDENT, hermitian=True)
        return np.matmul(inverses, c[..., None])[..., 0]


def _columns(D: Any, which: np.ndarray) -> np.ndarray:
    """Some atoms in rows, in float64."""
    if isinstance(D, Structured):
        return _products.columns(D, which)
    return np.asarray(D)[:, which].T.astype(float)
