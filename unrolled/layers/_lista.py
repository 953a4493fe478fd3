"""LISTA (Gregor, LeCun 2010): both matrices of the ISTA step are learned, without a coupling
between them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.activations import relu
from unrolled.dictionaries import as_dictionary, dense, spread
from unrolled.layers._ista import lipschitz, zero_state
from unrolled.layers._support import select_or_shrink, support_schedule
from unrolled.layers._unroll import Layer, Unrolled, factory, make_layer
from unrolled.pursuit import State


class Matrices(NamedTuple):
    """The matrices of a tied LISTA."""

    B: Array  # (m, d), applied to y as B'y
    S: Array  # (d, d), applied to x


class Threshold(NamedTuple):
    """What a step of a tied network keeps for itself."""

    theta: Array  # (), (d,) or one per filter


class MatricesAndThreshold(NamedTuple):
    """One step of an untied LISTA."""

    B: Array  # (m, d)
    S: Array  # (d, d)
    theta: Array  # (), (d,) or one per filter


FORMS = ((Matrices._fields, Threshold._fields), ((), MatricesAndThreshold._fields))


def ista_matrices(D, L: Array) -> Matrices:
    """Those of an ISTA step: B = D / L, S = I - D'D / L."""
    with jax.default_matmul_precision("highest"):
        A = dense(D)
        return Matrices(A / L, jnp.eye(D.shape[1], dtype=D.dtype) - A.T @ A / L)


def repeat(tree, depth: int):
    """Every leaf `depth` times along a new leading axis: the start of an untied network."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], depth, axis=0), tree)


@factory
def lista(
    depth: int,
    *,
    tied: bool = True,
    support: tuple[float, float] | None = None,
    lam: float = 0.1,
    activation: Callable = relu,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
) -> Layer:
    r"""K steps x <- shrink(B'y + S x, theta_k).

    Params: tied, shared (B, S) and steps theta; untied, steps (B, S, theta). `apply` takes either
    form. `init` is ISTA: B = D / L, S = I - D'D / L, theta = lam / L. (The paper's W_e and S are
    our B' and S.)

    Args:
        support: (rate, largest), support selection as in `alista`: with it this is LISTA-SS.

    Convergence needs S_k - (I - B_k'D) -> 0 (Chen et al. 2018, Theorem 1), which `lista_cp` builds
    in.
    """
    fractions = support_schedule(support, depth, "lista")

    def init(key, D):
        D = as_dictionary(D, "lista")
        L = lipschitz(D, "lista")
        shared = ista_matrices(D, L)
        theta = jnp.full(depth, lam / L, D.dtype)
        if tied:
            return Unrolled(shared, Threshold(theta))
        return Unrolled(None, MatricesAndThreshold(*repeat(shared, depth), theta))

    def step(shared, p, D, y, state, fraction=None):
        w = p if shared is None else shared
        return State(
            select_or_shrink(y @ w.B + w.S @ state.x, spread(D, p.theta), fraction, activation)
        )

    options = dict(precision=precision, unroll=unroll, remat=remat)
    return make_layer("lista", depth, FORMS, init, zero_state, step, fractions, **options)


def lista_ss(depth: int, *, support: tuple[float, float] = (0.012, 0.13), **options) -> Layer:
    """LISTA with support selection: `lista(depth, support=support, **options)` (Chen, Liu, Wang,
    Yin 2018).
    """
    return lista(depth, support=support, **options)
