"""LISTA (Gregor, LeCun 2010): both matrices of the ISTA step are learned, without a coupling."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled import _checks
from unrolled._checks import Array, Key
from unrolled._program import program
from unrolled.dictionaries import Dictionary, as_dictionary, dense, spread
from unrolled.layers._layer import Acting, Recipe, selecting_untied, untied
from unrolled.layers._records import Matrix, Square, Theta, Unrolled, repeat
from unrolled.layers._shrinking import PUBLISHED_SUPPORT, FromISTA, Selecting, support_option
from unrolled.pursuit import State
from unrolled.records import option


class Matrices(NamedTuple):
    """The matrices of a tied LISTA."""

    B: Matrix  # applied to y as B'y
    S: Square  # applied to x


class Threshold(NamedTuple):
    """The threshold of one step."""

    theta: Theta


class MatricesAndThreshold(NamedTuple):
    """One step of an untied LISTA."""

    B: Matrix
    S: Square
    theta: Theta


def announce_squares(D: Any, depth: int | None, where: str) -> None:
    """Warn before the S of one step, or of so many, takes much memory."""
    D, lead = as_dictionary(D, where), () if depth is None else (depth,)
    what = "S, which is dense whatever D is"
    _checks.announce((*lead, D.shape[1], D.shape[1]), D.dtype, what, where)


@program("depth")
def ista_matrices(D: Dictionary, L: Array, depth: int | None = None) -> Matrices:
    """The matrices of an ISTA step: B = D / L, S = I - D'D / L; with a depth, of so many steps."""
    d = D.shape[1]
    with jax.default_matmul_precision("highest"):
        A = dense(D)
        matrices = Matrices(A / L, jnp.eye(d, dtype=D.dtype) - A.T @ A / L)
    return matrices if depth is None else repeat(matrices, depth)


@program()
def coupled_matrices(W: Dictionary, D: Dictionary) -> Matrices:
    """Those of the step of LISTA-CP with weights W: B = W, S = I - W'D."""
    W, A = dense(W), dense(D)
    with jax.default_matmul_precision("highest"):
        return Matrices(W, jnp.eye(A.shape[1], dtype=A.dtype) - W.T @ A)


class lista(FromISTA, Selecting):
    r"""K steps x <- shrink(B'y + S x, theta_k).

    Params: tied, shared (B, S) and steps theta; untied, steps (B, S, theta). `apply` takes either
    form. `init` is ISTA: B = D / L, S = I - D'D / L, theta = lam / L. (The paper's W_e and S are
    our B' and S.) S has d^2 entries, for a `Conv` too; `init` warns where they take above 2 GB.

    Convergence needs S_k - (I - B_k'D) -> 0 (Chen et al. 2018, Theorem 1), which `lista_cp` builds
    in.

    Reference: Gregor, LeCun (2010).

    Example:
        >>> layer, D = ur.lista(2, tied=False), ur.dictionaries.identity_hadamard(4)
        >>> layer.init(None, D).steps.S.shape
        (2, 8, 8)
    """

    tied: bool = option(default=True, help="start with one B and S for all steps, not one per step")

    forms = (Unrolled(Matrices, Threshold), Unrolled(None, MatricesAndThreshold))
    recipe = Recipe(rate=3e-4, options=untied, calibrated=True, weighted=True)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        announce_squares(D, None if self.tied else self.depth, self.family)
        return self.start_at_ista(D)

    def at_ista(self, D, L, theta):
        if self.tied:
            return Unrolled(ista_matrices(D, L), Threshold(theta))
        B, S = ista_matrices(D, L, self.depth)
        return Unrolled(None, MatricesAndThreshold(B, S, theta))

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        matrices, params = coupled_matrices(W, D), self.init(key, D)
        if self.tied:
            return Unrolled(matrices, params.steps)
        B, S = repeat(matrices, self.depth)
        return Unrolled(None, MatricesAndThreshold(B, S, params.steps.theta))

    def step(self, shared, p, D, y, state, fraction=None):
        B, _, S = self.weights(shared, p, D)
        return State(self.shrink(y @ B + S @ state.x, spread(D, p.theta), fraction))

    def weights(self, shared, p, D):
        matrices = p if shared is None else shared
        return Acting(matrices.B, S=matrices.S)


class lista_ss(lista):
    """LISTA with support selection; see `lista`.

    A selected entry passes unshrunk: in the objective of the LASSO the start can be above ISTA.

    Reference: Chen, Liu, Wang, Yin (2018).

    Example:
        >>> ur.layers.lista_ss(2).schedule
        (0.012, 0.024)
    """

    support: tuple[float, float] | None = support_option(PUBLISHED_SUPPORT)

    recipe = lista.recipe._replace(rate=3e-5, options=selecting_untied)
