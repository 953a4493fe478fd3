"""Networks that are not chains: Res-CSC, MSD-CSC, and deconvolutional networks."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, Key, Result, checked, program
from unrolled._base.numbers import exponent, times_power
from unrolled.activations import as_power, shrink
from unrolled.dictionaries import Conv, Dictionary, WithIdentity, normalize, normalized, spread
from unrolled.layers import Acting, Shape, StepAndThreshold, Theta, Unrolled, magnitude, option
from unrolled.networks._network import (
    Activated,
    Dictionaries,
    Params,
    Sweeping,
    Unfolded,
    chain_of,
    where,
)
from unrolled.pursuit import (
    State,
    half_quadratic_step,
    ista_step,
    lipschitz,
    with_step_size,
)

__all__ = [
    "Deconvolution",
    "deconvolutional",
    "learn_deconvolution",
    "mixed_scale",
    "msd_csc",
    "res_csc",
]


class res_csc(Activated):
    r"""Res-CSC: blocks of K steps of ISTA; each block starts from the code two blocks before it.

    .. math:: x_j \leftarrow \mathrm{shrink}(x_j + \gamma_j D_j'(x_{j-1} - D_j x_j), \; \theta_j),

    from x_j = x_{j-2} if x_{j-2} is a code of the same length, and from x_j = 0 otherwise; x_0 = y.
    One step from x_{j-2} is a skip connection around a residual branch,

    .. math:: x_j = \mathrm{shrink}(x_{j-2} + \gamma_j D_j'(x_{j-1} - D_j x_{j-2}), \; \theta_j).

    The block of a ResNet is this step without the term D_j'D_j x_{j-2}. If no lengths match, the
    network is a chain of `ista` layers. The more steps a block takes, the less its initial code
    matters.

    Params: each block has steps (gamma, theta) and no shared params. `init` sets gamma to 1 / L_j
    and theta to lam / L_j with L_j = norm(D_j, 2)^2.

    Reference: Zhang, Zhang (2021). Not claimed: the error bounds of `theory`, which assume zero
    initial codes.

    Example:
        >>> network = ur.networks.res_csc(1, lam=0.02)
        >>> D, E = ur.dictionaries.gaussian(jax.random.key(0), 8, 12), jnp.eye(12)
        >>> Ds = D, E, E
        >>> [x.shape for x in network.apply(network.init(None, Ds), Ds, jnp.ones(8))]
        [(12,), (12,), (12,)]
    """

    def forms(self, j):
        return (Unrolled(None, StepAndThreshold),)

    def weights(self, j):
        return lambda shared, p, D: Acting(D, p.gamma)

    def init(self, key: Key | None, Ds: Dictionaries) -> Params:
        return tuple(Unrolled(None, self.start_of(D, self.lam)[-1]) for D in chain_of(self, Ds))

    def step(self, shared, p, D, y, state):
        """One step of ISTA."""
        return State(ista_step(D, y, state.x, p.gamma, p.theta, self.activation))

    def begin(self, codes, D):
        x = super().begin(codes, D)
        return codes[-2] if len(codes) > 2 and codes[-2].shape == x.shape else x


class msd_csc(Sweeping):
    r"""MSD-CSC: K sweeps of ML-ISTA through dictionaries D_j = [I, F_j].

    .. math::
        x_{j-1} &\leftarrow D_j x_j, \quad j = J, \dots, 2, \\
        x_j &\leftarrow \mathrm{shrink}(x_j + \gamma_j D_j'(x_{j-1} - D_j x_j), \; \theta_j),
        \quad j = 1, \dots, J, \quad x_0 = y,

    where D_j'r = (r, F_j'r) and D_j (u, v) = u + F_j v. The first sweep, from zero codes, is a
    network with dense connections: x_j = shrink(gamma_j (x_{j-1}, F_j'x_{j-1}), theta_j). Dilations
    that differ from layer to layer mix scales; `mixed_scale` makes dictionaries with such
    dilations.

    Params: each block has steps (gamma, theta) and no shared params. `init` sets gamma_j = 1 / (1 +
    norm(F_j)^2), the largest safe step since norm(D_j)^2 = 1 + norm(F_j)^2, and theta_j = lam
    gamma_1 ... gamma_j. With these values the steps are the steps of `pursuit.ml_ista`.

    Raises:
        TypeError: a dictionary is not a `dictionaries.WithIdentity`.
        ValueError: shapes do not fit.

    Reference: Zhang, Zhang (2021). Not claimed: a convergence rate, which ML-ISTA lacks too, or
    that trained step sizes stay below 1 / (1 + norm(F_j)^2).

    Example:
        >>> Ds = ur.networks.mixed_scale(0, 16, growth=2, depth=3, dilations=(1, 2))
        >>> network = ur.networks.msd_csc(2, lam=0.02)
        >>> [x.shape for x in network.apply(network.init(None, Ds), Ds, jnp.ones(16))]
        [(48,), (80,), (112,)]
    """

    def forms(self, j):
        return (Unrolled(None, StepAndThreshold),)

    def weights(self, j):
        return lambda shared, p, D: Acting(D, p.gamma)

    def init(self, key: Key | None, Ds: Dictionaries) -> Params:
        params: list[Unrolled] = []
        theta: Any = self.lam
        for D in _mixed(self, chain_of(self, Ds)):
            _, theta, steps = self.start_of(D, theta)
            params.append(Unrolled(None, steps))
        return tuple(params)

    def check(self, params, Ds):
        super().check(params, Ds)
        _mixed(self, Ds)

    def update(self, shared, p, D, before, x, Dx):
        u = x + p.gamma * ((before - Dx) @ D)
        return shrink(u, spread(D, p.theta), self.activation)


def _mixed(network: msd_csc, Ds: Dictionaries) -> Dictionaries:
    """Return the dictionaries; raise TypeError unless all are [I, F]."""
    for j, D in enumerate(Ds, start=1):
        if not isinstance(D, WithIdentity):
            raise TypeError(
                f"{where(network)}: D_{j} is {type(D).__name__}; expected [I, F], try "
                "dictionaries.WithIdentity(F), or ml_lista for other dictionaries"
            )
    return Ds


@checked
def mixed_scale(
    key: Key,
    signal_shape: int | tuple[int, ...],
    *,
    channels: int = 1,
    growth: int,
    depth: int,
    kernel: int = 3,
    dilations: Sequence[int] = (1, 2, 3, 4, 5, 6),
    boundary: str = "circular",
) -> tuple[WithIdentity, ...]:
    """Dictionaries [I, F_j] for `msd_csc`, with Gaussian filters of norm 1.

    Each of the `growth` filters of F_j has `channels` + (j - 1) `growth` input channels. The
    dilation of F_j is the j-th entry of the cycle `dilations`.

    Args:
        key: a key or a seed.
        signal_shape: spatial shape, an int for 1-D.
        channels: number of channels of the signal.
        growth: number of feature maps that every layer adds.
        depth: J, the number of layers.
        kernel: side of the filters.
        dilations: a cycle of dilations.
        boundary: "circular", or "zero", which cuts atoms at the far border; all maps have the size
            of the signal.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is below 1, there are no dilations, boundary is "valid", or dilated
            filters are longer than the signal.
        MemoryError: the filters do not fit in memory.

    Example:
        >>> Ds = ur.networks.mixed_scale(0, (8, 8), channels=3, growth=2, depth=2, dilations=(1, 3))
        >>> [(D.shape, D.F.dilation) for D in Ds]
        [((192, 320), (1, 1)), ((320, 448), (3, 3))]
    """
    name = "networks.mixed_scale"
    checks.as_sizes(name, channels=channels, growth=growth, kernel=kernel)
    depth = checks.as_depth(depth, "depth", name, least=1)
    dilations = checks.as_indices(dilations, "dilations", name, least=1)
    if not dilations:
        raise ValueError(f"{name}: expected at least one dilation, got none")
    if boundary == "valid":
        raise ValueError(
            f'{name}: boundary "valid" makes maps that are smaller than the signal; expected '
            '"circular" or "zero"'
        )
    dimensions = len(signal_shape) if isinstance(signal_shape, tuple | list) else 1
    banks = [(growth, channels + j * growth, *(kernel,) * dimensions) for j in range(depth)]
    checks.check_memory(banks[-1], jnp.result_type(float), "the filters of the last layer", name)
    Ds = []
    for j, k in enumerate(jax.random.split(key, depth)):
        filters = jax.random.normal(k, banks[j])
        dilation = dilations[j % len(dilations)]
        F = Conv(filters, signal_shape, boundary=boundary, dilation=dilation)
        Ds.append(WithIdentity(normalize(F)[0]))
    return tuple(Ds)


# The first and the last beta, in units of norm(D, 2)^2, as in `pursuit.half_quadratic`.
_BETA = 0.1, 100.0


def _as_power(value: Any, name: str, caller: str) -> float:
    return as_power(value, caller)


class BetaAndThreshold(NamedTuple):
    """The magnitude of the coupling weight, and the threshold of one step."""

    beta: Annotated[Array, Shape("")]
    theta: Theta


programs.exportable(BetaAndThreshold)


class deconvolutional(Unfolded):
    r"""A deconvolutional network: K half-quadratic steps in every layer, one layer after the other.

    .. math:: x_j \approx \arg\min_x \|x_{j-1} - D_j x\|^2 / 2 + lam \sum_i |x_i|^p, \quad x_0 = y,

    with x_j computed by the steps of `pursuit.half_quadratic` from zero codes; beta grows from step
    to step. The paper solves these problems for every image; here K is fixed, so that params can be
    trained. Pass the dictionaries of `learn_deconvolution`, or any dictionaries that form a chain.

    Params: each block has steps (beta, theta) and no shared params. `init` sets beta to a geometric
    sequence from norm(D_j)^2 / 10 to 100 norm(D_j)^2, and theta to lam / beta.

    Raises:
        ValueError: p is outside (0, 1]; when called, shapes do not fit.

    Reference: Zeiler, Krishnan, Taylor, Fergus (2010), where lambda multiplies the data term, so
    that lam = 1 / lambda. Not claimed: that a layer reaches any accuracy; see
    `pursuit.half_quadratic`.

    Example:
        >>> network = ur.networks.deconvolutional(8, lam=0.02, p=0.8)
        >>> Ds = ur.dictionaries.gaussian(jax.random.key(0), 8, 12), jnp.eye(12)
        >>> [x.shape for x in network.apply(network.init(None, Ds), Ds, jnp.ones(8))]
        [(12,), (12,)]
    """

    p: float = option(default=1.0, check=_as_power, help="power of the penalty, in (0, 1]")

    def forms(self, j):
        return (Unrolled(None, BetaAndThreshold),)

    def init(self, key: Key | None, Ds: Dictionaries) -> Params:
        params = []
        for D in chain_of(self, Ds):
            params.append(with_step_size(_betas_of(D, self.lam, self.depth), D, where(self)))
        return tuple(params)

    def step(self, shared, p, D, y, state):
        """One pair of half-quadratic steps."""
        beta = magnitude(p.beta)
        return State(half_quadratic_step(D, y, state.x, beta, p.theta, self.p))


class Deconvolution(Result):
    """The result of `learn_deconvolution`."""

    params: Params  # params of the network
    Ds: tuple[Conv, ...]  # the learned dictionaries
    # (J, sweeps), the mean objective over the images for the codes that each sweep finds
    objective: np.ndarray


@checked
def learn_deconvolution(
    key: Key,
    network: deconvolutional | Any,
    images: ArrayLike,
    banks: Sequence[tuple[int, int] | Any],
    *,
    sweeps: int = 10,
    filter_steps: int = 5,
    masks: Sequence[ArrayLike | None] | None = None,
) -> Deconvolution:
    r"""Learn the filters of a deconvolutional network greedily, the first layer first.

    Each layer is learned from the maps of the layer before, whose filters then stay fixed. Each of
    the `sweeps` sweeps first finds the codes with the filters fixed. Then conjugate gradients on

    .. math:: \sum_n \|y_n - D x_n\|^2 / 2

    improve the filters with the codes fixed, and the filters are scaled to norm 1. The boundary is
    circular, so that maps are as large as the image.

    Args:
        key: a key or a seed for the initial filters.
        network: the network whose filters are learned, with its K, lam and p.
        images: (n, channels, *signal_shape).
        banks: (number of filters, side) for every layer.
        sweeps: number of sweeps for every layer.
        filter_steps: number of conjugate-gradient steps in a sweep.
        masks: for every layer, an array (filters, maps before) of 0 and 1 that says which filter
            reads which map, or None if every filter reads every map.

    Returns:
        Deconvolution. The objective may rise in a sweep, because each sweep starts from zero codes
            and the norm of the filters is fixed.

    Raises:
        TypeError: network is not a `deconvolutional`, or a size is not an integer.
        ValueError: images have another shape, filters are longer than the image, there are no
            banks, masks have another number or shape, or a filter reads no map.

    Reference: Zeiler, Krishnan, Taylor, Fergus (2010). In the paper, maps are larger than the image
    by the side of a filter minus 1; here the boundary is circular instead.

    Example:
        >>> images = jax.random.normal(jax.random.key(1), (3, 1, 6, 6))
        >>> network = ur.networks.deconvolutional(4, lam=0.1)
        >>> learned = ur.networks.learn_deconvolution(0, network, images, [(2, 3)], sweeps=2)
        >>> learned.Ds[0].shape, learned.objective.shape
        ((36, 72), (1, 2))
    """
    name = "learn_deconvolution"
    if not isinstance(network, deconvolutional):
        raise TypeError(f"{name}: expected networks.deconvolutional, got {network!r}")
    images = checks.as_float(images, "images", name)
    checks.finite(images, "images", name)
    if images.ndim < 3 or 0 in images.shape:
        raise ValueError(
            f"{name}: images have shape {images.shape}; expected (n, channels, *signal_shape)"
        )
    sweeps = checks.as_index(sweeps, "sweeps", name, least=1)
    filter_steps = checks.as_index(filter_steps, "filter_steps", name, least=1)
    if not len(banks):
        raise ValueError(f"{name}: expected at least one bank (filters, side), got none")
    if wrong := [b for b in banks if not hasattr(b, "__len__") or len(b) != 2 or np.ndim(b[0])]:
        raise ValueError(f"{name}: a bank is {wrong[0]}; expected (filters, side)")
    masks = (None,) * len(banks) if masks is None else masks
    if len(masks) != len(banks):
        raise ValueError(f"{name}: got {len(masks)} masks for {len(banks)} banks")
    shape, channels = images.shape[2:], images.shape[1]
    e = int(exponent(images))  # images scaled to about 1: no square leaves the range
    scaled = dataclasses.replace(network, lam=network.lam * 2.0 ** (e * (network.p - 2)))
    Y, Ds, history = times_power(images.reshape(len(images), -1), -e), [], []
    for k, bank, mask in zip(jax.random.split(key, len(banks)), banks, masks):
        count, side = (checks.as_index(size, "a size of a bank", name, least=1) for size in bank)
        if any(side > N for N in shape):
            raise ValueError(f"{name}: filters of side {side} are longer than the image {shape}")
        mask = _as_mask(mask, (count, channels), name).astype(Y.dtype)
        mask = mask.reshape(count, channels, *(1,) * len(shape))
        filters = jax.random.normal(k, (count, channels, *(side,) * len(shape)), Y.dtype)
        D = _unit(Conv(filters * mask, shape, boundary="circular"))
        objective: list[float] = []
        for _ in range(sweeps):
            X, value = _code(scaled, D, Y)
            objective.append(float(value) * 4.0**e)
            D = _improved(D, X, Y, mask, filter_steps)
        Y, channels = _code(scaled, D, Y)[0], count
        Ds.append(D)
        history.append(objective)
    return Deconvolution(network.init(None, Ds), tuple(Ds), np.array(history))


def _as_mask(mask: ArrayLike | None, shape: tuple[int, int], caller: str) -> np.ndarray:
    mask = np.ones(shape) if mask is None else np.asarray(mask, float)
    if mask.shape != shape or not np.isin(mask, (0, 1)).all() or not mask.any(1).all():
        raise ValueError(
            f"{caller}: a mask of shape {mask.shape}; expected {shape} of 0 and 1, with a map for "
            "every filter"
        )
    return mask


@program("depth")
def _betas_of(D: Dictionary, lam: float, depth: int) -> tuple[Unrolled, Array]:
    L = lipschitz(D, "deconvolutional")
    beta = L * jnp.geomspace(*_BETA, depth, dtype=D.dtype)
    return Unrolled(None, BetaAndThreshold(beta, lam / beta)), (L > 0) & (1 / L > 0)


@partial(jax.jit, static_argnums=0)
def _code(network: deconvolutional, D: Conv, Y: Array) -> tuple[Array, Array]:
    """The codes of all signals, and the mean objective of the signals."""
    params = network.init(None, (D,))
    X = jax.vmap(lambda y: network.unfold(params, (D,), y)[0][0])(Y)
    misfit = jnp.sum((Y - jax.vmap(lambda x: D @ x)(X)) ** 2) / 2
    return X, (misfit + network.lam * jnp.sum(jnp.abs(X) ** network.p)) / len(Y)


@partial(jax.jit, static_argnums=4)
def _improved(D: Conv, X: Array, Y: Array, mask: ArrayLike, steps: int) -> Conv:
    """D after `steps` steps towards the least-squares filters for given codes, scaled to norm 1."""
    mask = jnp.asarray(mask, Y.dtype)

    def synthesize(filters: Array) -> Array:
        with_filters = jax.tree.map(lambda _: filters * mask, D)
        return jax.vmap(lambda x: with_filters @ x)(X)

    analyze = jax.linear_transpose(synthesize, D.filters)
    filters, _ = jax.scipy.sparse.linalg.cg(
        lambda f: analyze(synthesize(f))[0], analyze(Y)[0], x0=D.filters, maxiter=steps
    )
    return _unit(jax.tree.map(lambda _: filters * mask, D))


def _unit(D: Conv) -> Conv:
    """D with filters of norm 1."""
    return cast(Conv, normalized(D)[0])
