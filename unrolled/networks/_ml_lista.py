"""ML-LISTA: the codes of all blocks together, step by step."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from unrolled._export import exportable
from unrolled.activations import shrink
from unrolled.dictionaries import Dictionary, dense, spread
from unrolled.layers import Acting, Matrix, StepAndThreshold, Unrolled
from unrolled.networks._network import chain_of
from unrolled.networks._unfolded import Sweeping


class Analysis(NamedTuple):
    """The matrix that the steps of a block of ML-LISTA share."""

    B: Matrix  # (d_{j-1}, d_j), applied to the code before as B'x


exportable(Analysis)


class ml_lista(Sweeping):
    r"""ML-LISTA: K steps that estimate the codes of all layers together.

    .. math::
        x_j &\leftarrow D_{j+1} x_{j+1}, \quad j = J - 1, \dots, 1, \\
        x_j &\leftarrow \mathrm{shrink}(x_j - \gamma_j D_j' D_j x_j + B_j' x_{j-1}, \; \theta_j),
        \quad j = 1, \dots, J, \quad x_0 = y,

    where the first line goes down from the deepest code and the second goes up, each time from the
    code just found.

    Params: for each block shared B, which is learned, and steps (gamma, theta). `init` is ML-ISTA:
    B_j = D_j / L_j, gamma_j = 1 / L_j and theta_j = lam / (L_1 ... L_j), with L_j = norm(D_j, 2)^2,
    the steps of `pursuit.ml_ista`; J = 1 is ISTA.

    Reference: Sulam, Aberdam, Beck, Elad (2020), section 5. Not claimed: a rate; the fixed point of
    ML-ISTA is only near the optimum of its objective.

    Example:
        >>> network = ur.networks.ml_lista(8, lam=0.02)
        >>> Ds = ur.dictionaries.gaussian(jax.random.key(0), 8, 12), jnp.eye(12)
        >>> params = network.init(None, Ds)
        >>> [x.shape for x in network.iterates(params, Ds, jnp.ones(8))]
        [(8, 12), (8, 12)]
    """

    def forms(self, j):
        return (Unrolled(Analysis, StepAndThreshold),)

    def weights(self, j):
        return _acting

    def init(self, key, Ds):
        params: list[Unrolled] = []
        theta: Any = self.lam
        for D in chain_of(self, Ds):
            gamma, theta, steps = self.start_of(D, theta)
            params.append(Unrolled(Analysis(D * gamma), steps))
        return tuple(params)

    def update(self, shared, p, D, before, x, Dx):
        u = x - p.gamma * (Dx @ D) + before @ shared.B
        return shrink(u, spread(D, p.theta), self.activation)


def _acting(shared: Analysis, p: StepAndThreshold, D: Dictionary) -> Acting:
    """B and I - gamma D'D, by which a step acts on the code before and on its own."""
    A, gamma = dense(D), jnp.reshape(p.gamma, (-1, 1))
    return Acting(shared.B, S=jnp.eye(A.shape[1], dtype=A.dtype) - gamma * (A.T @ A))
