"""Learned iterative hard thresholding (Xin, Wang, Gao, Wipf, Wang 2016): the s largest entries are
kept.
"""

import jax.numpy as jnp
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import kth_largest
from unrolled.dictionaries import as_dictionary
from unrolled.layers._ista import lipschitz, zero_state
from unrolled.layers._lista import Matrices, ista_matrices, repeat
from unrolled.layers._unroll import Layer, Unrolled, factory, make_layer
from unrolled.pursuit import State


def keep_largest(v: Array, sparsity: int) -> Array:
    """v with all but its `sparsity` largest magnitudes set to zero (more than that stay only where
    magnitudes are equal).

    NaN counts as largest and stays.
    """
    magnitude = lax.stop_gradient(jnp.abs(v))
    return jnp.where(magnitude < kth_largest(magnitude, sparsity), 0, v)


@factory
def liht(
    depth: int, *, sparsity: int, precision: str = "highest", unroll: int = 1, remat: bool = False
) -> Layer:
    r"""K steps x <- H_s(B_k'y + S_k x), where H_s keeps the s largest magnitudes.

    Params: steps (B, S). `init` is iterative hard thresholding with step 1/L: B = D / L, S = I -
        D'D / L.

    Args:
        sparsity: s, at least 1; above d everything is kept.

    Reference: Xin, Wang, Gao, Wipf, Wang (2016); Blumensath, Davies (2008) for fixed matrices.
    """
    sparsity = _checks.as_index(sparsity, "sparsity", "liht", least=1)

    def init(key, D):
        D = as_dictionary(D, "liht")
        return Unrolled(None, repeat(ista_matrices(D, lipschitz(D, "liht")), depth))

    def step(shared, p, D, y, state):
        return State(keep_largest(y @ p.B + p.S @ state.x, min(sparsity, D.shape[1])))

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("liht", depth, (((), Matrices._fields),), init, zero_state, step, **options)
