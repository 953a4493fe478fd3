"""Networks through dictionaries D_1 .. D_J of any shapes and kinds: deep sparse coding (DSC)
chains, and ML-LISTA.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import by_name, relu, shrink
from unrolled.dictionaries import as_dictionary, operands, spread
from unrolled.layers import (
    Layer,
    StepAndThreshold,
    Unrolled,
    check_params,
    check_precision,
    lipschitz,
    stack,
)


class Network(NamedTuple):
    """Codes of J dictionaries as pure functions of one signal.

    Attributes:
        init: `init(key, Ds) -> params`, a tuple with the params of every block.
        apply: `apply(params, Ds, y) -> (x_1, ..., x_J)`, the code of every block.
        layers: the layers of a chain; none where the blocks do not run one after the other.
    """

    init: Callable
    apply: Callable
    layers: tuple[Layer, ...] = ()


def dsc(layers) -> Network:
    r"""The DSC network: layer j codes the code of layer j - 1 in D_j, x_j = layer_j(D_j, x_{j-1}),
    x_0 = y.

    Args:
        layers: J layers, of any families and depths. Params come from `init`, `analytic.dsc` or
            training.

    Raises:
        ValueError: no layers; when called, params or dictionaries of another number, or shapes that
            do not meet.

    Reference: Li, Feng, Zhou (2024), Definition 2 and Theorem 6.
    """
    layers = tuple(layers)
    if not layers:
        raise ValueError("networks.dsc: expected at least one layer, got none")

    def init(key, Ds):
        _check("networks.dsc", layers, Ds=Ds)
        return tuple(
            layer.init(jax.random.fold_in(key, j), D)
            for j, (layer, D) in enumerate(zip(layers, Ds))
        )

    def apply(params, Ds, y: Array) -> tuple[Array, ...]:
        _check("networks.dsc", layers, params=params, Ds=Ds)
        codes = []
        for layer, p, D in zip(layers, params, Ds):
            y = layer.apply(p, D, y)
            codes.append(y)
        return tuple(codes)

    return Network(init, apply, layers)


class Analysis(NamedTuple):
    """What a block of ML-LISTA shares among its steps."""

    B: Any  # (d_{j-1}, d_j), applied to the code before as B'x


@functools.lru_cache(maxsize=256)
def ml_lista(
    depth: int, *, lam: float = 0.1, activation: Callable = relu, precision: str = "highest"
) -> Network:
    r"""ML-LISTA: K steps that estimate the codes of all layers together, with learned analysis
    matrices.

    .. math::
        x_j &\leftarrow D_{j+1} x_{j+1}, \quad j = J - 1, \dots, 1, \\
        x_j &\leftarrow \mathrm{shrink}(x_j - \gamma_j D_j' D_j x_j + B_j' x_{j-1}, \; \theta_j), \quad j = 1, \dots, J,
        \quad x_0 = y,

    where the first line goes down from the deepest code and the second up through the codes just
    found.

    Params: for each block shared B and steps (gamma, theta). `init` is ML-ISTA: B_j = D_j / L_j,
    gamma_j = 1 / L_j and theta_j = lam / (L_1 ... L_j), with L_j = norm(D_j, 2)^2; J = 1 is ISTA.

    Reference: Sulam, Aberdam, Beck, Elad (2020), section 5. Not claimed: a rate; the fixed point of
    ML-ISTA is only near the optimum of its objective.
    """
    where = "networks.ml_lista"
    depth = _checks.as_index(depth, "depth", where)
    _checks.nonnegative(lam, "lam", where)
    check_precision(precision, where)
    activation = by_name(activation)

    def init(key, Ds):
        _check_chain(where, Ds)
        params, theta = [], lam
        for D in (as_dictionary(D, where) for D in Ds):
            gamma = 1 / lipschitz(D, where)
            theta = theta * gamma
            steps = StepAndThreshold(
                jnp.full(depth, gamma, D.dtype), jnp.full(depth, theta, D.dtype)
            )
            params.append(Unrolled(Analysis(D * gamma), steps))
        return tuple(params)

    def apply(params, Ds, y: Array) -> tuple[Array, ...]:
        _check_chain(where, Ds)
        _check(where, Ds, params=params, Ds=Ds)
        _, y, (params, *Ds) = operands(
            Ds[0], y, where, params=(params, *(as_dictionary(D, where) for D in Ds))
        )
        for p, D in zip(params, Ds):
            check_params(p, D, depth, where, ((Analysis._fields, StepAndThreshold._fields),))
        params = [stack(p) for p in params if depth]

        def step(codes, steps):
            down = codes[-1:]
            for D in reversed(Ds[1:]):
                down = (D @ down[0], *down)
            before, codes = y, ()
            for D, p, at, x in zip(Ds, params, steps, down):
                before = shrink(
                    x - at.gamma * ((D @ x) @ D) + before @ p.shared.B,
                    spread(D, at.theta),
                    activation,
                )
                codes = (*codes, before)
            return codes, None

        start = tuple(jnp.zeros(D.shape[1], y.dtype) for D in Ds)
        if not depth:
            return start
        with jax.default_matmul_precision(precision):
            return jax.lax.scan(step, start, tuple(p.steps for p in params), length=depth)[0]

    return Network(init, apply)


def _check_chain(where: str, Ds) -> None:
    if not isinstance(Ds, (tuple, list)) or not Ds:
        raise ValueError(
            f"{where}: expected a tuple of dictionaries, at least one, got {type(Ds).__name__}"
        )


def _check(where: str, layers, *, Ds, params=None) -> None:
    J = len(layers)
    for name, given in (("params", params), ("Ds", Ds)):
        if given is not None and (not isinstance(given, (tuple, list)) or len(given) != J):
            got = len(given) if isinstance(given, (tuple, list)) else type(given).__name__
            raise ValueError(f"{where}: expected a tuple of {J} {name}, one per layer, got {got}")
    for j, (left, right) in enumerate(zip(Ds, Ds[1:]), start=1):
        if left.shape[1] != right.shape[0]:
            raise ValueError(
                f"{where}: D_{j} has shape {left.shape} but D_{j + 1} has shape {right.shape}"
            )
