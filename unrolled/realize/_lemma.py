"""The matrices of Lemma 14 and the states between them: from LISTA-CP steps to layers."""

import math
from typing import NamedTuple

import numpy as np

from unrolled.realize._blocks import Bound, MatrixBlock, MatrixStep, next_bound
from unrolled.realize._conv_layer import ConvLayer
from unrolled.realize._polyphase import Architecture, first_tap, polyphase

Layers = tuple[ConvLayer, ...]


class State(NamedTuple):
    """The output h of a layer, and the affine map to the input of the next, v = A h + e."""

    A: np.ndarray  # (p, q)
    e: np.ndarray  # (p,)
    low: float  # lower bound on the entries of h
    tree: bool  # h can be read as a signal of length q; otherwise it is q channels of length 1
    signed: bool  # h is v up to a constant, rather than its positive and negative parts
    offset: float  # the largest constant that has lifted a state so far


def block_layers(
    blocks: tuple[MatrixBlock, ...], net: Architecture, M: float
) -> tuple[list[tuple[Layers, Layers]], float]:
    """Hidden layers and read-out of every block, and the largest constant that lifts the state."""
    m, layers = blocks[0].m, []
    state = State(np.eye(m), np.zeros(m), -M, tree=True, signed=True, offset=M)
    signal = Bound(np.full(m, M), M * math.sqrt(m))
    lift = net.identity_from + signal.entries
    for block in blocks:
        hidden, state, code = _hidden(block, state, signal, lift, net)
        read = state.A[: block.d] if block.steps else np.zeros((block.d, state.A.shape[1]))
        layers.append((hidden, _dense(read, np.zeros(block.d), state, net, readout=True)))
        state, signal, lift = _next_signal(read, state, code, net)
    return layers, state.offset


def _hidden(
    block: MatrixBlock, state: State, signal: Bound, lift: np.ndarray, net: Architecture
) -> tuple[Layers, State, Bound]:
    """The layers of a block up to its last state, that state, and bounds on the code.

    The bounds are computed only if `net.bounded`.
    """
    layers: list[ConvLayer] = []
    code = Bound(np.zeros(block.d), 0.0)
    for k, step in enumerate(block.steps):
        if net.form == "literal" and not state.signed:
            more, state = _lifted(
                state, np.concatenate([code.entries, signal.entries]) if k else signal.entries, net
            )
            layers += more
        B, c = _step_map(step, lift, first=k == 0)
        layers += _dense(B @ state.A, B @ state.e - c, state, net)
        tail, code = _reach(step, code, signal, net)
        state = _parts(block.d, lift, -tail, max(state.offset, lift.max()), net)
    return tuple(layers), state, code


def _step_map(step: MatrixStep, lift: np.ndarray, *, first: bool) -> tuple[np.ndarray, np.ndarray]:
    """B_k and c_k; for the first step B_0 and c_0, which act on the signal alone, since x^0 = 0.

    A signal that comes in two parts is their difference.
    """
    n, T, G, theta = len(lift), step.update.T, step.update.G, step.theta
    G = G if n == G.shape[1] else np.hstack([G, -G])
    U = G if first else np.hstack([T, G])
    return np.vstack([U, -U, np.eye(n, U.shape[1], U.shape[1] - n)]), np.concatenate(
        [theta, theta, -lift]
    )


def _parts(d: int, lift: np.ndarray, low: float, offset: float, net: Architecture) -> State:
    """The state after a step: h = (rho(u - theta), rho(-u - theta), s + lift), v = (x; s)."""
    n, tree = len(lift), net.form != "compact"
    A = np.eye(d + n, 2 * d + n, d)  # the ones that copy s
    A[:d] = np.eye(d, 2 * d + n) - np.eye(d, 2 * d + n, d)
    offset = max(offset, net.identity_from - low) if tree else offset
    return State(A, np.concatenate([np.zeros(d), -lift]), low, tree, False, offset)


def _lifted(state: State, bound: np.ndarray, net: Architecture) -> tuple[Layers, State]:
    """The map A of the lemma, lifted by a bound on v so that rho is the identity: h = v + lift."""
    lift = net.identity_from + bound
    layers = _dense(state.A, state.e + lift, state, net)
    offset = max(state.offset, lift.max())
    return layers, State(np.eye(len(lift)), -lift, net.identity_from, True, True, offset)


def _next_signal(
    read: np.ndarray, state: State, code: Bound, net: Architecture
) -> tuple[State, Bound, np.ndarray]:
    """The state that the next block starts from, the bounds on its signal, and the lift of it.

    The literal form carries the code itself, the others its two parts, which the tail of rho bounds
    from below.
    """
    d, q = read.shape
    if net.form == "literal":
        return (
            state._replace(A=read, e=np.zeros(d), signed=False),
            code,
            net.identity_from + code.entries,
        )
    A = np.eye(2 * d, q) if read.any() else np.zeros((2 * d, q))
    return (
        state._replace(A=A, e=np.zeros(2 * d)),
        code,
        np.full(2 * d, net.identity_from - min(state.low, 0.0)),
    )


def _reach(step: MatrixStep, code: Bound, signal: Bound, net: Architecture) -> tuple[float, Bound]:
    """How far below 0 rho can fall in a step, and the bounds on its code if the form needs them."""
    rho = net.activation
    if not net.bounded:
        return rho.relu_gap, code
    u, code = next_bound(step, code, signal, rho)
    tail = (
        rho.relu_gap
        if math.isfinite(rho.relu_gap)
        else rho.tail_lipschitz * float((u + step.theta).max())
    )
    return tail, code


def _dense(
    A: np.ndarray, b: np.ndarray, state: State, net: Architecture, *, readout: bool = False
) -> Layers:
    """The layers of rho(A h + b), where h is the output described by `state`."""
    if state.tree:
        return polyphase(A, b, state.low, net, readout=readout)
    return first_tap(A, b, net, readout=readout)
