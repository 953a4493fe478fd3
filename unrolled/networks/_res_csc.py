"""Res-CSC: a pursuit that starts from the code two layers before it is a residual block."""

from unrolled._checks import Key
from unrolled.layers import Acting, StepAndThreshold, Unrolled
from unrolled.networks._network import Dictionaries, Params, chain_of
from unrolled.networks._unfolded import Activated
from unrolled.pursuit import State, ista_step


class res_csc(Activated):
    r"""Res-CSC: blocks of K steps of ISTA, each from the code two blocks before it.

    .. math:: x_j \leftarrow \mathrm{shrink}(x_j + \gamma_j D_j'(x_{j-1} - D_j x_j), \; \theta_j),

    from x_j = x_{j-2} if x_{j-2} is a code of the same length, else from 0; x_0 = y. One step from
    x_{j-2} is a skip connection around a residual branch,

    .. math:: x_j = \mathrm{shrink}(x_{j-2} + \gamma_j D_j'(x_{j-1} - D_j x_{j-2}), \; \theta_j).

    The block of a ResNet is this without D_j'D_j x_{j-2}. Where lengths never match, it is a chain
    of layers `ista`. The more steps, the less it matters where they start.

    Params: for each block steps (gamma, theta), none shared. `init` sets 1 / L_j and lam / L_j with
    L_j = norm(D_j, 2)^2.

    Reference: Zhang, Zhang (2021). Not claimed: the bounds of theory, which start from zero codes.

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
