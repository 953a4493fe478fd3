"""MSD-CSC: dictionaries [I, F] with dilated F connect the layers densely, at mixed scales."""

from collections.abc import Sequence
from typing import Any

import jax

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Key
from unrolled.activations import shrink
from unrolled.dictionaries import Conv, WithIdentity, normalize, spread
from unrolled.layers import Acting, StepAndThreshold, Unrolled
from unrolled.networks._network import Dictionaries, Params, chain_of, where
from unrolled.networks._unfolded import Sweeping


class msd_csc(Sweeping):
    r"""MSD-CSC: K sweeps of ML-ISTA through dictionaries D_j = [I, F_j].

    .. math::
        x_{j-1} &\leftarrow D_j x_j, \quad j = J, \dots, 2, \\
        x_j &\leftarrow \mathrm{shrink}(x_j + \gamma_j D_j'(x_{j-1} - D_j x_j), \; \theta_j),
        \quad j = 1, \dots, J, \quad x_0 = y,

    where D_j'r = (r, F_j'r) and D_j (u, v) = u + F_j v. The first sweep, from zero codes, is a
    network with dense connections: x_j = shrink(gamma_j (x_{j-1}, F_j'x_{j-1}), theta_j). Dilations
    that differ from layer to layer mix scales; `mixed_scale` makes such dictionaries.

    Params: for each block steps (gamma, theta), none shared. `init` sets gamma_j = 1 / (1 +
    norm(F_j)^2), the largest safe step since norm(D_j)^2 = 1 + norm(F_j)^2, and theta_j = lam
    gamma_1 ... gamma_j: the steps of `pursuit.ml_ista`.

    Raises:
        TypeError: a dictionary that is not `dictionaries.WithIdentity`.
        ValueError: shapes that do not meet.

    Reference: Zhang, Zhang (2021). Not claimed: a rate, as for ML-ISTA; that trained step sizes
    stay below 1 / (1 + norm(F_j)^2).

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
    """The dictionaries; raise TypeError unless all are [I, F]."""
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

    F_j has `growth` filters of all channels + (j - 1) growth channels before it, and the dilation
    of its turn in the cycle.

    Args:
        key: a key or a seed.
        signal_shape: spatial shape, an int for 1-D.
        channels: those of the signal.
        growth: feature maps that every layer adds.
        depth: J, the number of layers.
        kernel: side of the filters.
        dilations: a cycle of dilations.
        boundary: "circular", or "zero" whose atoms are cut at the far border; all maps have the
            size of the signal.

    Raises:
        TypeError: a size that is not an integer.
        ValueError: a size below 1, no dilations, boundary "valid", or dilated filters that are
            longer than the signal.

    Example:
        >>> Ds = ur.networks.mixed_scale(0, (8, 8), channels=3, growth=2, depth=2, dilations=(1, 3))
        >>> [(D.shape, D.F.dilation) for D in Ds]
        [((192, 320), (1, 1)), ((320, 448), (3, 3))]
    """
    name = "networks.mixed_scale"
    _checks.as_sizes(name, channels=channels, growth=growth, depth=depth, kernel=kernel)
    dilations = _checks.as_indices(dilations, "dilations", name, least=1)
    if not dilations:
        raise ValueError(f"{name}: expected at least one dilation, got none")
    if boundary == "valid":
        raise ValueError(
            f'{name}: boundary "valid" makes maps that are smaller than the signal; expected '
            '"circular" or "zero"'
        )
    dimensions = len(signal_shape) if isinstance(signal_shape, tuple | list) else 1
    Ds = []
    for j, k in enumerate(jax.random.split(key, depth)):
        filters = jax.random.normal(k, (growth, channels + j * growth, *(kernel,) * dimensions))
        dilation = dilations[j % len(dilations)]
        F = Conv(filters, signal_shape, boundary=boundary, dilation=dilation)
        Ds.append(WithIdentity(normalize(F)[0]))
    return tuple(Ds)
