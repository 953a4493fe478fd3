"""What a realization starts from: the steps of LISTA-CP blocks as matrices, after every check of
layer and params.
"""

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled.activations import Activation, shrink
from unrolled.dictionaries import Structured, as_dictionary
from unrolled.layers import Layer, Unrolled, _alista, _lista_cp, check_params, unstack
from unrolled.networks import Network
from unrolled.realize._code_bounds import MatrixBlock, MatrixStep, Update

FORMS = (*_lista_cp.FORMS, *_alista.FORMS)


def blocks_of(
    layer: Layer | Network, params, D, activation: Activation, where: str
) -> tuple[tuple[MatrixBlock, ...], np.dtype]:
    """The blocks of a layer or of a chain, and the common dtype.

    Raises:
        TypeError: neither a Layer nor a Network, params of another family, traced arrays.
        ValueError: shapes that do not meet, values that are not finite, a structured D or W,
            support selection, another activation.
    """
    if not isinstance(layer, (Layer, Network)):
        raise TypeError(f"{where}: expected a Layer or a Network, got {type(layer).__name__}")
    if isinstance(layer, Network) and not layer.layers:
        raise TypeError(
            f"{where}: expected a chain of layers, as networks.dsc makes them; this network is none"
        )
    if not _checks.is_concrete((params, D)):
        raise TypeError(
            f"{where}: builds on the host from known params and D, got traced ones; call it outside jit"
        )
    chain = isinstance(layer, Network)
    several = chain and isinstance(D, (tuple, list))
    dictionaries = tuple(_matrix(one, where) for one in (D if several else (D,)))
    D = dictionaries if several else dictionaries[0]
    m = next((one.shape[0] for one in dictionaries), 1)
    # The layer's own checks of params and D, without running it.
    jax.eval_shape(lambda y: layer.apply(params, D, y), jax.ShapeDtypeStruct((m,), np.float32))
    parts = zip(layer.layers, params, dictionaries) if chain else [(layer, params, D)]
    blocks = tuple(_block(*part, activation, where) for part in parts)
    return blocks, np.dtype(_checks.common_dtype(params, dictionaries))


def _matrix(D, where: str):
    if isinstance(D, Structured):
        raise ValueError(f"{where}: D is a {type(D).__name__}; try dictionaries.dense(D)")
    return as_dictionary(D, where)


def _block(layer: Layer, params: Unrolled, D, activation: Activation, where: str) -> MatrixBlock:
    if any(
        isinstance(leaf, Structured) for leaf in jax.tree.leaves(params, is_leaf=_is_structured)
    ):
        raise ValueError(f"{where}: W is structured; try dictionaries.dense(W) in the params")
    params = jax.tree.map(np.asarray, params)
    _checks.finite(params, "params", where)
    steps = unstack(params).steps
    check_params(params, D, 1 if steps is None else len(steps), where, FORMS)
    if layer.schedule is not None:
        raise ValueError(
            f"{where}: the layer has a support selection, which compares entries with each other; convolutions and "
            "activations of single entries cannot; try the layer without `support`"
        )
    if steps:
        _check_step(layer, params.shared, steps[0], activation, where)
    return MatrixBlock(*D.shape, tuple(_steps(params.shared, steps, np.asarray(D, float))))


def _is_structured(leaf) -> bool:
    return isinstance(leaf, Structured)


def _steps(shared, steps, D: np.ndarray):
    """The update and the threshold of every step, in float64; steps with the same W and gamma share
    their update.
    """
    d, last = D.shape[1], None
    for p in steps:
        W, gamma = p.W if shared is None else shared.W, np.asarray(getattr(p, "gamma", 1.0), float)
        if last is None or W is not last[0] or not np.array_equal(gamma, last[1]):
            G = np.broadcast_to(gamma, (d,))[:, None] * np.asarray(W, float).T
            last = W, gamma, Update(np.eye(d) - G @ D, G)
        yield MatrixStep(last[2], np.broadcast_to(np.asarray(p.theta, float), (d,)))


def _check_step(layer: Layer, shared, p, activation: Activation, where: str) -> None:
    """Raise unless the layer's step shrinks with `activation`, on scalars of every scale.

    A layer hides its activation in its step. A rescaled one differs from ReLU only near its own
    scale, so thresholds range over 2^-30 .. 2^10.
    """
    theta = np.repeat(2.0 ** np.arange(-30, 11), 8)
    u = np.tile([-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0], 41) * theta
    dtype = jnp.zeros(()).dtype
    D = W = jnp.full((1, 1), 0.5, dtype)

    def step(y, theta):
        values = {"W": W, "gamma": jnp.ones((), dtype), "theta": theta}
        small = [
            None if part is None else part._replace(**{f: values[f] for f in part._fields})
            for part in (shared, p)
        ]
        state = layer.start(D, y[None])
        return layer.step(*small, D, y[None], state._replace(x=y[None] / 2)).x[
            0
        ]  # u = y / 2 + (y - y / 4) / 2

    with jax.default_matmul_precision("highest"):
        ours = jax.vmap(step)(jnp.asarray(u * 8 / 7, dtype), jnp.asarray(theta, dtype))
    expected = shrink(jnp.asarray(u, dtype), jnp.asarray(theta, dtype), activation)
    if not (np.abs(np.asarray(ours) - np.asarray(expected)) <= 1e-4 * theta).all():
        raise ValueError(
            f"{where}: the layer's step is not x <- shrink(x + gamma W'(y - D x), theta) with the activation {activation}; "
            "pass the `activation` that the layer was made with"
        )
