"""What networks of K steps per block share, and those whose steps sweep through all blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled import _checks, _sharded
from unrolled._checks import Array
from unrolled._program import program
from unrolled.activations import Activation, relu
from unrolled.dictionaries import Dictionary, operands
from unrolled.layers import (
    Layer,
    Looped,
    StepAndThreshold,
    Unrolled,
    as_activation,
    check_params,
    option,
    unstack,
)
from unrolled.networks._network import Codes, Dictionaries, Network, Params, chain_of, where
from unrolled.pursuit import lipschitz, sweep


class Unfolded(Network, Looped):
    """J blocks of K steps each, which are no chain of layers that start from zero codes.

    A subclass defines `forms`, `init` and `unfold`; or, for steps through all blocks at once, it is
    one of `Sweeping`.
    """

    depth: int = option(kw_only=False, help="K, the number of steps")
    lam: float = option(default=0.1, least=0, help="weight of the l1 norm at the start")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """None: the blocks do not run one after the other from zero."""
        return ()

    def unfold(self, params: Params, Ds: Dictionaries, y: Array) -> tuple[Codes, Codes]:
        """`run` for checked arguments, inside `jit`."""
        raise NotImplementedError

    def check(self, params, Ds):
        Ds = chain_of(self, Ds, None, params)
        for j, (p, D) in enumerate(zip(params, Ds)):
            check_params(p, D, self.forms(j), self.depth, where(self))

    def run(self, params, Ds, y):
        Ds = chain_of(self, Ds, None, params)
        _, y, (params, *Ds) = operands(Ds[0], y, where(self), params=(params, *Ds))
        self.check(params, Ds)
        return _run(self, params, Ds, y)

    def start_of(self, D: Dictionary, lam: Any) -> tuple[Array, Array, StepAndThreshold]:
        """gamma = 1 / L and theta = lam / L, with L = norm(D, 2)^2, and K steps of them."""
        start, usable = _steps_of(D, lam, self.depth)
        if not _checks.may_hold(usable):
            lipschitz(D, where(self))  # which says why
        return start


@program("depth")
def _steps_of(D: Dictionary, lam: Any, depth: int) -> tuple[Any, Array]:
    gamma = 1 / (L := lipschitz(D, "networks"))
    theta = lam * gamma
    steps = StepAndThreshold(*(jnp.full(depth, value, D.dtype) for value in (gamma, theta)))
    return (gamma, theta, steps), (L > 0) & (gamma > 0)


# Compiled once, where an eager scan would be compiled at every call.
@_sharded.on_auto_axes
@partial(jax.jit, static_argnums=0)
def _run(network: Unfolded, params: Params, Ds: Dictionaries, y: Array) -> tuple[Codes, Codes]:
    return network.unfold(params, Ds, y)


class Activated(Unfolded):
    """Blocks whose steps end in a shrinkage with any activation."""

    activation: Activation | Callable = option(
        default=relu, check=as_activation, help="replaces ReLU in the shrinkage"
    )


class AllCodes(NamedTuple):
    """The state of a sweep: the codes of all blocks."""

    x: Codes


class Blocks(NamedTuple):
    """The params of one sweep, block by block."""

    blocks: tuple[StepAndThreshold, ...]


class Sweeping(Activated):
    """J blocks whose codes are found together: K sweeps down and up, the first from zero codes."""

    def update(
        self, shared: Any, p: Any, D: Dictionary, before: Array, x: Array, Dx: Array
    ) -> Array:
        """The next code of one block, from the code before it, its own, and D times its own."""
        raise NotImplementedError

    def step(self, shared, p, Ds, y, state):
        """One sweep down and up through the codes of all blocks."""

        def update(j, before, x, Dx):
            return self.update(shared[j], p.blocks[j], Ds[j], before, x, Dx)

        return AllCodes(sweep(Ds, y, state.x[-1], update))

    def unfold(self, params, Ds, y):
        start = AllCodes(tuple(jnp.zeros(D.shape[1], y.dtype) for D in Ds))
        state, path = self.loop(self.step, _together(params), Ds, y, start)
        return state.x, path


def _together(params: Params) -> Unrolled:
    """The params of all blocks as those of one loop, stacked if all of them are."""
    steps = [p.steps for p in params]
    shared = tuple(p.shared for p in params)
    if not any(type(s) is tuple for s in steps):
        return Unrolled(shared, Blocks(tuple(steps)))
    alone = [s if type(s) is tuple else unstack(p).steps for s, p in zip(steps, params)]
    return Unrolled(shared, tuple(Blocks(blocks) for blocks in zip(*alone)))
