"""LISTA and its variants. LISTA learns the two matrices of an ISTA step; variants couple the two
matrices into one, or add gains or momentum.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, checked, program
from unrolled.activations import kth_largest
from unrolled.dictionaries import Dictionary, Structured, as_dictionary, dense, spread
from unrolled.layers._ista import fista
from unrolled.layers._layer import (
    Acting,
    Law,
    Layer,
    Recipe,
    judging,
    least,
    selecting,
    selecting_untied,
    untied,
)
from unrolled.layers._records import (
    Matrix,
    Number,
    Shape,
    Square,
    Theta,
    Unrolled,
    Weights,
    repeat,
    stack,
)
from unrolled.layers._shrinking import (
    PUBLISHED_SUPPORT,
    Coupled,
    FromISTA,
    Selecting,
    Shrinking,
    support_option,
)
from unrolled.pursuit import State, lipschitz, with_step_size
from unrolled.records import option

__all__ = [
    "Gated",
    "Matrices",
    "MatricesAndThreshold",
    "MomentumMatrices",
    "Threshold",
    "WeightsAndMomentum",
    "WeightsAndThreshold",
    "glista",
    "keep_largest",
    "lfista",
    "lfista_cp",
    "liht",
    "lista",
    "lista_cp",
    "lista_cpss",
    "lista_ss",
]


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
    """Warn if the matrix S of one step, or of `depth` steps, takes much memory."""
    D, lead = as_dictionary(D, where), () if depth is None else (depth,)
    what = "S, which is dense for every D"
    checks.announce((*lead, D.shape[1], D.shape[1]), D.dtype, what, where)


@program("depth")
def ista_matrices(D: Dictionary, L: Array, depth: int | None = None) -> Matrices:
    """The matrices of an ISTA step, B = D / L and S = I - D'D / L, repeated for `depth` steps."""
    d = D.shape[1]
    with jax.default_matmul_precision("highest"):
        A = dense(D)
        matrices = Matrices(A / L, jnp.eye(d, dtype=D.dtype) - A.T @ A / L)
    return matrices if depth is None else repeat(matrices, depth)


@program()
def coupled_matrices(W: Dictionary, D: Dictionary) -> Matrices:
    """The matrices of a LISTA-CP step with weights W: B = W, S = I - W'D."""
    W, A = dense(W), dense(D)
    with jax.default_matmul_precision("highest"):
        return Matrices(W, jnp.eye(A.shape[1], dtype=A.dtype) - W.T @ A)


class lista(FromISTA, Selecting):
    r"""K steps x <- shrink(B'y + S x, theta_k).

    Params: if tied, shared (B, S) and steps theta; if untied, steps (B, S, theta). `apply` takes
    both forms. `init` gives ISTA: B = D / L, S = I - D'D / L, theta = lam / L. The paper's W_e and
    S are our B' and S. S has d^2 entries, also for a `Conv`; `init` warns if S takes more than 2
    GB.

    The codes converge only if S_k - (I - B_k'D) -> 0 (Chen et al. 2018, Theorem 1). In `lista_cp`
    this difference is 0 by construction.

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
        return super().init(key, D)

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
        return State(self.shrink(D, y @ B + S @ state.x, p.theta, fraction))

    def weights(self, shared, p, D):
        matrices = p if shared is None else shared
        return Acting(matrices.B, S=matrices.S)


class lista_ss(lista):
    """LISTA with support selection; see `lista`.

    Selected entries pass unshrunk. Before training, the LASSO objective of the codes of this layer
    can therefore be above the LASSO objective of the codes of ISTA at the same depth.

    Reference: Chen, Liu, Wang, Yin (2018).

    Example:
        >>> ur.layers.lista_ss(2).schedule
        (0.012, 0.024)
    """

    support: tuple[float, float] | None = support_option(PUBLISHED_SUPPORT)

    recipe = lista.recipe._replace(rate=3e-5, options=selecting_untied)


class WeightsAndThreshold(NamedTuple):
    """One step of an untied LISTA-CP."""

    W: Matrix  # plain or structured
    theta: Theta


class lista_cp(Coupled, FromISTA, Selecting):
    r"""K steps x <- shrink(x + W_k'(y - D x), theta_k).

    Params: if tied, shared W and steps theta; if untied, steps (W, theta). `apply` takes both
    forms, and W may be structured. `init` gives ISTA: W = D / L, theta = lam / L.
    `analytic.lista_cp` sets W and theta from theory; the theorems hold only without `support`.

    Reference: Chen, Liu, Wang, Yin (2018), equation (15); Li, Feng, Zhou (2024), (23) and (33).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> params = ur.analytic.lista_cp(D, depth=10, sparsity=1, bound=2.0)
        >>> x = jnp.zeros(32).at[5].set(2.0)
        >>> float(jnp.abs(ur.lista_cp(10).apply(params, D, D @ x) - x).sum()) < 0.1
        True
    """

    tied: bool = option(default=True, help="start with one W for all steps, not one per step")

    forms = (Unrolled(Weights, Threshold), Unrolled(None, WeightsAndThreshold))
    recipe = Recipe(rate=5e-4, options=untied, calibrated=True, weighted=True)

    def at_ista(self, D, L, theta):
        return self.from_theory(D / L, theta)

    def weights(self, shared, p, D):
        return Acting(p.W if shared is None else shared.W)

    def from_theory(self, W, theta):
        if self.tied:
            return Unrolled(Weights(W), Threshold(theta))
        return Unrolled(None, WeightsAndThreshold(repeat(W, len(theta)), theta))


class lista_cpss(lista_cp):
    """LISTA-CP with support selection; see `lista_cp`.

    Selected entries pass unshrunk. Before training, the LASSO objective of the codes of this layer
    can therefore be above the LASSO objective of the codes of ISTA at the same depth.

    Reference: Chen, Liu, Wang, Yin (2018).

    Example:
        >>> ur.layers.lista_cpss(2), ur.layers.lista_cpss(2).schedule
        (lista_cpss(2), (0.012, 0.024))
    """

    support: tuple[float, float] | None = support_option(PUBLISHED_SUPPORT)

    recipe = lista_cp.recipe._replace(options=selecting_untied)


class MomentumMatrices(NamedTuple):
    """One step of LFISTA."""

    B: Matrix  # applied to y as B'y
    S: Square  # applied to x
    M: Square  # applied to the previous code
    theta: Theta


class TwoCodes(NamedTuple):
    """The state: the code, and the code before the last step."""

    x: Array  # (d,)
    before: Array  # (d,)


def fista_momentum(depth: int) -> list[float]:
    """m_0 = 0 and m_k = (t_{k-1} - 1) / t_k, with t_k = (1 + sqrt(1 + 4 t_{k-1}^2)) / 2."""
    t = [1.0]
    for _ in range(depth):
        t.append((1 + np.sqrt(1 + 4 * t[-1] ** 2)) / 2)
    return [0.0, *((a - 1) / b for a, b in zip(t, t[1:]))][:depth]


class lfista(FromISTA, Shrinking):
    r"""K steps x_{k+1} = shrink(B_k'y + S_k x_k + M_k x_{k-1}, theta_k).

    Params: steps (B, S, M, theta). `init` gives FISTA without restart: B = D / L, theta = lam / L,
    S_k = (1 + m_k) (I - D'D / L) and M_k = -m_k (I - D'D / L). The momentum of FISTA is m_0 = 0 and
    m_k = (t_{k-1} - 1) / t_k.

    Reference: Moreau, Bruna (2017), section 4.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> ours, fista = (
        ...     layer.apply(layer.init(None, D), D, D[:, 1])
        ...     for layer in (ur.layers.lfista(3), ur.layers.fista(3))
        ... )
        >>> bool(jnp.allclose(ours, fista, atol=1e-5))
        True
    """

    forms = (Unrolled(None, MomentumMatrices),)

    recipe = Recipe(rate=1e-4, calibrated=True, weighted=True)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        announce_squares(D, self.depth, self.family)
        return super().init(key, D)

    def at_ista(self, D, L, theta):
        momentum = jnp.asarray(fista_momentum(self.depth), D.dtype)
        B, S = ista_matrices(D, L, self.depth)
        scaled = momentum[:, None, None] * S
        return Unrolled(None, MomentumMatrices(B, S + scaled, -scaled, theta))

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        B, S = repeat(coupled_matrices(W, D), self.depth)
        steps = MomentumMatrices(B, S, jnp.zeros_like(S), self.init(key, D).steps.theta)
        return Unrolled(None, steps)

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return TwoCodes(zero, zero)

    def step(self, shared, p, D, y, state):
        u = y @ p.B + p.S @ state.x + p.M @ state.before
        return TwoCodes(self.shrink(D, u, p.theta), state.x)

    def weights(self, shared, p, D):
        return Acting(p.B, S=p.S + p.M)


class WeightsAndMomentum(NamedTuple):
    """One step of LFISTA-CP."""

    W: Matrix  # plain or structured
    theta: Theta
    beta: Number


class Followed(NamedTuple):
    """The state: the best code so far, and the last two codes, from which the next step starts."""

    x: Array  # (d,), the code with the least objective
    objective: Array  # the objective of x
    last: Array  # (d,), the code of the last step
    before: Array  # (d,), the code of the previous step
    signal: Array  # (m,), D times `last`
    signal_before: Array  # (m,), D times `before`


class lfista_cp(FromISTA, Shrinking):
    r"""K steps of FISTA; each step has its own W, which contains a step size for every atom.

    .. math::
        z = x_k + \beta_k (x_k - x_{k-1}), \qquad
        x_{k+1} = \mathrm{shrink}(z + W_k'(y - D z), \; \theta_k).

    The layer returns the code among x_0 = 0, ..., x_K that has the least LASSO objective with the
    weight `lam`. Hence the objective of the returned code is never above the objective of the zero
    code, whatever the params and the signal. Finding this code needs no extra product with D,
    because D z = D x_k + beta_k (D x_k - D x_{k-1}).

    Params: steps (W, theta, beta); theta has a threshold for every atom, or for every filter of a
    `Conv`. `init` gives FISTA without restart: W = D / L, theta = lam / L and the momentum of
    FISTA. `from_fista` converts the params of a `fista`. `training.unsupervised` trains this family
    on signals without codes.

    Args:
        lam: weight of the LASSO objective that chooses the code.

    Reference: Chen, Liu, Wang, Yin (2018) for the coupling, Moreau, Bruna (2017) for the momentum.
    Not claimed: the theorems of these papers.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> layer, fista = ur.layers.lfista_cp(3), ur.layers.fista(3)
        >>> ours, theirs = (each.apply(each.init(None, D), D, D[:, 1]) for each in (layer, fista))
        >>> bool(jnp.allclose(ours, theirs, atol=1e-5))
        True
    """

    lam: float = option(default=0.1, least=0)

    forms = (Unrolled(None, WeightsAndMomentum),)
    recipe = Recipe(5e-4, options=judging, calibrated=True, weighted=True, without_codes=(2.5e-4,))

    def at_ista(self, D, L, theta):
        return _along(D, jnp.full_like(theta, 1 / L), theta)

    def from_fista(self, params: Unrolled, D: Dictionary) -> Unrolled:
        """Params whose steps are the steps of `fista` with params `params`: W_k = gamma_k D."""
        D = as_dictionary(D, self.family)
        fista(self.depth).check(params, D)
        gamma, theta = stack(params).steps
        return _along(D, gamma, theta)

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        steps = self.init(key, D).steps
        beta = jnp.zeros_like(steps.beta)  # FISTA's momentum is for steps with W = D / L
        return Unrolled(None, steps._replace(W=repeat(W, self.depth), beta=beta))

    def start(self, D, y):
        x, signal = jnp.zeros(D.shape[1], y.dtype), jnp.zeros_like(y)
        return Followed(x, self.objective(D, x, y), x, x, signal, signal)

    def step(self, shared, p, D, y, state):
        z = state.last + p.beta * (state.last - state.before)
        r = y - state.signal - p.beta * (state.signal - state.signal_before)
        x = self.shrink(D, z + r @ p.W, p.theta)
        signal = D @ x
        objective = self.objective(D, x, y - signal)
        objective, best = least((objective, x), (state.objective, state.x))
        return Followed(best, objective, x, state.last, signal, state.signal)

    def objective(self, D: Dictionary, x: Array, r: Array) -> Array:
        """norm(r)^2 / 2 + lam norm(x, 1) for a code x and its residual r."""
        return jnp.sum(r**2) / 2 + self.penalty(D).value(x, self.lam)

    def weights(self, shared, p, D):
        return Acting(p.W)


@program()
def _along(D: Dictionary, gamma: Array, theta: Array) -> Unrolled:
    """Params of FISTA steps with W = gamma D."""
    groups = D.groups if isinstance(D, Structured) else ()
    W = jax.vmap(lambda scale: D * scale)(gamma)
    if theta.ndim == 1:
        theta = jnp.tile(theta[:, None], groups or D.shape[1])
    beta = jnp.asarray(fista_momentum(len(gamma)), D.dtype)
    return Unrolled(None, WeightsAndMomentum(W, theta, beta))


Gate = Annotated[Array, Shape("", "d")]

# From the authors' program; keeps the overshoot finite if an entry does not change.
_SOFTENING = 0.1


class Gated(NamedTuple):
    """One step of GLISTA."""

    W: Matrix
    theta: Theta
    gain: Gate  # the amplification of small entries
    slope: Gate  # the rate at which the gain falls as the magnitude of an entry grows
    overshoot: Gate  # the extra length of a step


class Gates(NamedTuple):
    """The state: the code, and the threshold by which the last step shrank each entry, or 0."""

    x: Array  # (d,)
    shrunk_by: Array  # (d,)


class glista(FromISTA, Selecting):
    r"""K steps of LISTA-CP that start from an amplified code and are lengthened by an overshoot.

    .. math::
        u &= g \odot x, \qquad g = 1 + a_k \, relu(1 - relu(b_k |x|)), \\
        \tilde x &= \mathrm{shrink}(u + W_k'(y - D u), \theta_k), \\
        x &\leftarrow x + o \odot (\tilde x - x), \qquad o = 1 + c_k \tau / (|\tilde x - x| + 0.1),

    where tau is the threshold by which the previous step shrank the entry, or 0 if the entry passed
    unshrunk.

    Params: steps (W, theta, gain = a, slope = b, overshoot = c). `init` gives the W and theta of
    ISTA, slope 1, overshoot 0 and the given `gain`. If gain and overshoot are 0, a step is a step
    of `lista_cp`.

    Reference: Wu, Guo, Li, Zhang (2020), with the ReLU gain. Their program starts with gain 5, and
    its overshoot has the opposite sign.

    Example:
        >>> layer, D = ur.layers.glista(3, gain=0.5), ur.dictionaries.identity_hadamard(4)
        >>> params = layer.init(None, D)
        >>> params.steps.gain.tolist(), layer.apply(params, D, D[:, 1]).shape
        ([0.5, 0.5, 0.5], (8,))
    """

    gain: float = option(default=0.0, least=0, help="gain of the gate at the start")

    forms = (Unrolled(None, Gated),)
    recipe = Recipe(rate=5e-4, options=selecting, calibrated=True, weighted=True)

    def at_ista(self, D, L, theta):
        gain, overshoot = jnp.full_like(theta, self.gain), jnp.zeros_like(theta)
        slope = jnp.ones((self.depth, D.shape[1]), D.dtype)
        return Unrolled(None, Gated(repeat(D / L, self.depth), theta, gain, slope, overshoot))

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        start = self.init(key, D)
        return start._replace(steps=start.steps._replace(W=repeat(W, self.depth)))

    def start(self, D, y):
        zero = jnp.zeros(D.shape[1], y.dtype)
        return Gates(zero, zero)

    @property
    def takes_parts(self) -> bool:
        """False, because the gates act on single entries."""
        return False

    def step(self, shared, p, D, y, state, fraction=None):
        x, theta = state.x, spread(D, p.theta)
        u = x * (1 + p.gain * jax.nn.relu(1 - jax.nn.relu(p.slope * jnp.abs(x))))
        v = u + (y - D @ u) @ p.W
        end = self.shrink(D, v, theta, fraction)
        o = 1 + p.overshoot * state.shrunk_by / (jnp.abs(end - x) + _SOFTENING)
        x = x + o * (end - x)
        return Gates(jax.nn.relu(x) if self.nonnegative else x, jnp.where(end == v, 0, theta))

    def weights(self, shared, p, D):
        return Acting(p.W)


@checked
def keep_largest(v: ArrayLike, sparsity: int) -> Array:
    """Keep the `sparsity` entries of v with the largest magnitudes, and set the others to zero.

    If several entries have the smallest kept magnitude, all of them stay. A nan counts as the
    largest entry and stays. With sparsity 0, no entry stays.

    Args:
        v: (d,).
        sparsity: an integer, at least 0; may be traced.

    Raises:
        TypeError: v is complex, or sparsity is not an integer.
        ValueError: v has another shape, or sparsity is negative and not traced.

    Example:
        >>> ur.layers.keep_largest(jnp.array([3.0, -1.0, 2.0]), 2).tolist()
        [3.0, 0.0, 2.0]
    """
    checks.integer(sparsity, "sparsity", "keep_largest")
    checks.nonnegative(sparsity, "sparsity", "keep_largest")
    v = checks.as_float(v, "v", "keep_largest")
    checks.vector(v, "v", "keep_largest")
    return _keep_largest(v, sparsity)


@program()
def _keep_largest(v: Array, sparsity: ArrayLike) -> Array:
    magnitude, count = lax.stop_gradient(jnp.abs(v)), jnp.clip(sparsity, 1, v.size)
    least = kth_largest(magnitude, count)
    small = (magnitude < least) | (jnp.isnan(least) & ~jnp.isnan(magnitude))
    return jnp.where(small | (jnp.asarray(sparsity) == 0), 0, v)


def _counts(law: Law) -> dict[str, tuple[int, ...]]:
    """Values of `sparsity` to try, around the mean number of nonzeros."""
    return {"sparsity": tuple(min(law.atoms, -(-law.sparsity * n // 5)) for n in (4, 6, 8))}


class liht(Layer):
    r"""K steps x <- H_s(B_k'y + S_k x); H_s keeps the s entries of largest magnitude.

    Params: steps (B, S). `init` gives iterative hard thresholding with the step size 1 / L: B = D /
    L, S = I - D'D / L.

    The layer has no lam: the code of c y is c times the code of y. LASSO codes with a fixed lam do
    not scale with y. Before training, the LASSO objective of the codes of this layer can be above
    the LASSO objective of the codes of ISTA at the same depth.

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
        return Unrolled(None, with_step_size(_matrices(D, self.depth), D, self.family))

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
