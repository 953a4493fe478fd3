"""Encoders of sparse autoencoders, and the same encoders unrolled."""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from unrolled._base.doors import Array, Key
from unrolled.activations import jump_relu
from unrolled.dictionaries import spread
from unrolled.layers._layer import Acting, Recipe
from unrolled.layers._lista import keep_largest
from unrolled.layers._records import Matrix, Shape, Theta, Unrolled, repeat
from unrolled.layers._shrinking import FromISTA
from unrolled.records import option

__all__ = ["Encoder", "sae"]


class Encoder(NamedTuple):
    """One step of `sae`; with one step, the encoder of a sparse autoencoder."""

    W: Matrix
    bias: Annotated[Array, Shape("d")]  # added before the activation
    theta: Theta  # entries up to theta become 0


class Encoded(NamedTuple):
    """The state: a code with its residual, so that one step takes one product."""

    x: Array  # (d,)
    residual: Array  # (m,), y - D x


class sae(FromISTA):
    r"""K steps of the encoder of a sparse autoencoder (SAE); K = 1 is the encoder itself.

    .. math::
        u = x + W_k'(y - D x) + b_k, \qquad
        x \leftarrow u \odot 1[u > \theta_k], \quad \theta_k \ge 0.

    Codes are never negative. With theta = 0 the activation is ReLU, and else JumpReLU. With the
    option `sparsity`, only the `sparsity` largest entries of a code stay (TopK). D is the decoder,
    and y is the activation of the language model minus the bias of the decoder; `unrolled.sae`
    loads the weights of other libraries in this form.

    Params: steps (W, bias, theta); theta has the surrogate derivative of `activations.jump_relu`.
    `init` gives ISTA for the LASSO over x >= 0: W = D / L, bias = -lam / L, theta = 0. `fit` trains
    the layer on signals alone with the loss `training.reconstruction`.

    Reference: Bricken et al. (2023) for ReLU, Gao et al. (2024) for TopK, Rajamanoharan et al.
    (2024) for JumpReLU; Chen, Liu, Wang, Yin (2018) for steps that know the residual. Not claimed:
    the theorems of the last paper, because the bias may have both signs.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> y, ista = 2 * D[:, 1] + D[:, 6], ur.layers.ista(1, nonnegative=True)
        >>> codes = [layer.apply(layer.init(None, D), D, y) for layer in (ur.layers.sae(1), ista)]
        >>> bool(jnp.allclose(*codes, atol=1e-6))
        True
        >>> two = ur.layers.sae(16, sparsity=2)
        >>> print(jnp.flatnonzero(two.apply(two.init(None, D), D, y)))
        [1 6]
    """

    sparsity: int | None = option(
        default=None, least=1, help="number of entries that a step keeps (default: all)"
    )
    bandwidth: float = option(
        default=1e-3,
        above=0,
        help="width of the window around theta in which theta has a surrogate derivative",
    )

    forms = (Unrolled(None, Encoder),)
    recipe = Recipe(rate=5e-4, weighted=True)

    def at_ista(self, D, L, theta):
        bias = jnp.broadcast_to(-theta[:, None], (self.depth, D.shape[1]))
        return Unrolled(None, Encoder(repeat(D / L, self.depth), bias, jnp.zeros_like(theta)))

    def from_weights(self, key: Key | None, W: Any, D: Any) -> Unrolled:
        steps = self.init(key, D).steps
        return Unrolled(None, steps._replace(W=repeat(W, self.depth)))

    def start(self, D, y):
        return Encoded(jnp.zeros(D.shape[1], y.dtype), y)

    def step(self, shared, p, D, y, state):
        u = state.x + state.residual @ p.W + p.bias
        x = jump_relu(u, spread(D, p.theta), self.bandwidth)
        if self.sparsity is not None:
            x = keep_largest(x, min(self.sparsity, D.shape[1]))
        return Encoded(x, y - D @ x)

    def weights(self, shared, p, D):
        return Acting(p.W)
