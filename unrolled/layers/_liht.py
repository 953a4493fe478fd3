"""Learned iterative hard thresholding (Xin et al. 2016): each step keeps the s largest entries."""

import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike, Key
from unrolled._program import program
from unrolled.activations import kth_largest
from unrolled.dictionaries import Dictionary, as_dictionary
from unrolled.layers._layer import Acting, Law, Layer, Recipe
from unrolled.layers._lista import Matrices, announce_squares, coupled_matrices, ista_matrices
from unrolled.layers._records import Unrolled, repeat
from unrolled.pursuit import State, lipschitz
from unrolled.records import option


@checked
def keep_largest(v: ArrayLike, sparsity: int) -> Array:
    """v with all but its `sparsity` largest magnitudes set to zero; equal magnitudes stay together.

    A nan counts as largest and stays; with sparsity 0 nothing does.

    Args:
        v: (d,).
        sparsity: an integer, at least 0; may be traced.

    Raises:
        TypeError: v is complex, or sparsity no integer. ValueError: v of another shape, or a known
            sparsity that is negative.

    Example:
        >>> ur.layers.keep_largest(jnp.array([3.0, -1.0, 2.0]), 2).tolist()
        [3.0, 0.0, 2.0]
    """
    _checks.integer(sparsity, "sparsity", "keep_largest")
    _checks.nonnegative(sparsity, "sparsity", "keep_largest")
    v = _checks.as_float(v, "v", "keep_largest")
    _checks.vector(v, "v", "keep_largest")
    return _keep_largest(v, sparsity)


@program()
def _keep_largest(v: Array, sparsity: ArrayLike) -> Array:
    magnitude, count = lax.stop_gradient(jnp.abs(v)), jnp.clip(sparsity, 1, v.size)
    least = kth_largest(magnitude, count)
    small = (magnitude < least) | (jnp.isnan(least) & ~jnp.isnan(magnitude))
    return jnp.where(small | (jnp.asarray(sparsity) == 0), 0, v)


def _counts(law: Law) -> dict[str, tuple[int, ...]]:
    """Numbers of entries to keep, around the mean number of nonzeros."""
    return {"sparsity": tuple(min(law.atoms, -(-law.sparsity * n // 5)) for n in (4, 6, 8))}


class liht(Layer):
    r"""K steps x <- H_s(B_k'y + S_k x), where H_s keeps the s largest magnitudes.

    Params: steps (B, S). `init` is iterative hard thresholding with the step size 1 / L: B = D / L,
    S = I - D'D / L.

    It knows no lam, and a signal c y has c times the code of y, as no LASSO with a fixed lam has
    it: in that objective the start can be above ISTA at the same depth.

    Reference: Xin, Wang, Gao, Wipf, Wang (2016); Blumensath, Davies (2008) for fixed matrices.

    Example:
        >>> layer, D = ur.layers.liht(8, sparsity=1), ur.dictionaries.identity_hadamard(4)
        >>> print(layer.apply(layer.init(None, D), D, 2 * D[:, 1]).round(2))
        [0.   1.99 0.   0.   0.   0.   0.   0.  ]
    """

    sparsity: int = option(least=1, help="number s of entries that a step keeps; d keeps all")

    forms = (Unrolled(None, Matrices),)
    recipe = Recipe(rate=3e-5, tried=_counts, weighted=True)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        announce_squares(D, self.depth, self.family)
        matrices, usable = _matrices(D, self.depth)
        if not _checks.may_hold(usable):
            lipschitz(D, self.family)  # which says why
        return Unrolled(None, matrices)

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        return Unrolled(None, repeat(coupled_matrices(W, D), self.depth))

    def step(self, shared, p, D, y, state):
        return State(keep_largest(y @ p.B + p.S @ state.x, min(self.sparsity, D.shape[1])))

    def weights(self, shared, p, D):
        return Acting(p.B, S=p.S)


@program("depth")
def _matrices(D: Dictionary, depth: int) -> tuple[Matrices, Array]:
    L = lipschitz(D, "liht")
    return ista_matrices(D, L, depth), (L > 0) & (1 / L > 0)
