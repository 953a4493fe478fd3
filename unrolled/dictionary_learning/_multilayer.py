"""Learning the dictionaries of a chain together, from signals of the multi-layer model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Key
from unrolled._threads import one_thread
from unrolled.dictionaries import Dictionary
from unrolled.dictionary_learning._keeper import Keeper, Progress, text_of
from unrolled.dictionary_learning._learned import Learned
from unrolled.dictionary_learning._multilayer_sweep import (
    Matrices,
    product,
    residual,
    sparse_columns,
    sweep,
)
from unrolled.dictionary_learning._signals import (
    Signals,
    as_signals,
    distinct,
    generator,
    start_atoms,
)


def multilayer(
    Y: ArrayLike,
    shapes: Sequence[tuple[int, int]],
    *,
    sparsities: Sequence[int],
    sweeps: int = 20,
    key: Key = 0,
    start: str | Dictionary = "data",
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
) -> Learned:
    r"""Dictionaries of the multi-layer model: D_1, and sparse D_2, ..., D_J.

    .. math:: \min \frac1{2n} \sum_{k=1}^n \|y_k - D_1 \cdots D_J x_{J,k}\|^2, \qquad
        x_{j-1} = D_j x_j, \; \|x_j\|_0 \le s_j.

    A column of D_j, j > 1, has at most s_{j-1} // s_j nonzeros. Then the codes between are
    as sparse as asked for whenever x_J is, so every sweep is feasible: x_J by orthogonal matching
    pursuit in the product; D_J, ..., D_2 by passes of gradient steps, column by column, each
    followed by a hard threshold, with the step 1 / L that never raises the objective; D_1 by least
    squares, as in `mod`; then unit atoms in every layer. A code of the sweep before stays where the
    new one is worse, so that only replaced atoms raise the objective.

    Args:
        Y: (n, m), signals in rows, with n at least d_J.
        shapes: ((m, d_1), (d_1, d_2), ..., (d_{J-1}, d_J)).
        sparsities: s_1, ..., s_J.
        sweeps, key, weights, mask, progress, resume, checkpoint: as in `ksvd`.
        start: of D_1, as in `ksvd`. A column of D_j starts as the code of a random signal in
            D_1 ... D_{j-1}.

    Returns:
        Learned, where D is (D_1, ..., D_J), matrices with exact zeros, and X is (X_1, ..., X_J),
        (n, d_j) each. One layer is `mod`.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`, and for shapes that do not meet or
            sparsities that are not one per layer, below 1, above d_j (s_J above m) or above the
            one before.

    Reference: Sulam, Papyan, Romano, Elad (2018), section V, where signals come in batches, codes
    from FISTA, and D_1 from a gradient step.

    Not claimed: that D_1 and D_2 are those of a planted product; each may be mixed into the other
    where D_2 is not sparse enough.

    Example:
        >>> D_1, D_2 = ur.dictionaries.dct(8, 8), ur.dictionaries.transversal(0, 2, 5, 12)[:8]
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (300, 12), 1) @ (D_1 @ D_2).T
        >>> found = ur.dictionary_learning.multilayer(Y, [(8, 8), (8, 12)], sparsities=(2, 1))
        >>> [X.shape for X in found.X], int((found.D[1] != 0).sum(0).max())
        ([(300, 8), (300, 12)], 2)
    """
    where = "multilayer"
    signals = as_signals(Y, where, weights, mask)
    shapes = _shapes(shapes, signals.Y.shape, where)
    counts = _counts(sparsities, shapes, where)
    sweeps, key = _checks.as_index(sweeps, "sweeps", where), _checks.as_key(key, where)
    config: dict[str, Any] = {
        "method": where,
        "shapes": [list(s) for s in shapes],
        "sparsities": list(sparsities),
    }
    if checkpoint is not None:
        config |= {"key": text_of(key), "start": text_of(start)}
        config |= {"signals": signals.fingerprint(), "exponent": signals.exponent}
    keeper = Keeper(checkpoint, config, resume, progress)
    if (arrays := keeper.arrays) is not None:
        Ds, X = tuple(arrays[f"D_{j}"] for j in range(len(shapes))), arrays["X"]
    elif resume is not None:
        Ds, X = _resumed(resume, signals, shapes, where)
    else:
        Ds = _start(signals, shapes, counts, start, generator(key, 0), where)
        X = np.zeros((len(signals.Y), shapes[-1][1]), signals.Y.dtype)
    for step in keeper.steps(sweeps):
        with one_thread():
            Ds, X, replaced = sweep(signals, Ds, X, counts, generator(key, step))
        objective = signals.objective(residual(signals, Ds, X))
        kept = {"X": X, **{f"D_{j}": D for j, D in enumerate(Ds)}}
        keeper.add(objective, replaced, kept, last=step == sweeps)
    codes = [X]
    for D in reversed(Ds[1:]):
        codes.insert(0, codes[0] @ D.T)
    return Learned(
        tuple(jnp.asarray(D, signals.dtype) for D in Ds),
        tuple(jnp.asarray(np.ldexp(x, signals.exponent), signals.dtype) for x in codes),
        signals.objective(residual(signals, Ds, X)),
        tuple(keeper.history),
    )


def _shapes(
    shapes: Sequence[tuple[int, int]], signals: tuple[int, ...], where: str
) -> tuple[tuple[int, int], ...]:
    """The shapes as integers, checked against each other and the signals."""
    n, m = signals
    found: list[tuple[int, int]] = []
    if np.ndim(shapes) == 0:
        raise TypeError(
            f"{where}: shapes must be a sequence of (rows, columns), got {shapes!r}; try "
            f"(({m}, {shapes!r}),)"
        )
    for j, shape in enumerate(shapes, start=1):
        if np.shape(shape) != (2,):
            raise ValueError(f"{where}: shapes[{j - 1}] is {shape}; expected (rows, columns)")
        rows, columns = _checks.as_indices(shape, f"shapes[{j - 1}]", where, least=1)
        expected = found[-1][1] if found else m
        if rows != expected:
            what = f"D_{j - 1} has {expected} columns" if found else f"signals have length {m}"
            raise ValueError(f"{where}: D_{j} has {rows} rows but {what}")
        found.append((rows, columns))
    if not found:
        raise ValueError(f"{where}: expected the shape of at least one dictionary, got none")
    if (largest := max(columns for _, columns in found)) > n:
        raise ValueError(
            f"{where}: a dictionary has {largest} atoms but there are {n} signals; expected at "
            "most as many"
        )
    return tuple(found)


def _counts(
    sparsities: Sequence[int], shapes: tuple[tuple[int, int], ...], where: str
) -> tuple[int, ...]:
    """The most nonzeros of a column of D_2, ..., D_J, and of x_J."""
    if np.shape(sparsities) != (len(shapes),):
        raise ValueError(
            f"{where}: sparsities has shape {np.shape(sparsities)}; expected one of each of "
            f"{len(shapes)} layers"
        )
    found: list[int] = []
    for j, (s, (_, d)) in enumerate(zip(sparsities, shapes), start=1):
        most = d if j < len(shapes) else min(d, shapes[0][0])
        s = _checks.as_index(s, f"s_{j}", where, least=1)
        if s > most:
            raise ValueError(f"{where}: s_{j} is {s}; expected at most {most}")
        if found and s > found[-1]:
            raise ValueError(
                f"{where}: s_{j} is {s} but s_{j - 1} is {found[-1]}; expected sparsities that do "
                "not grow: a code is as sparse as the next only if the columns between have one "
                "nonzero"
            )
        found.append(s)
    return *(above // s for above, s in zip(found, found[1:])), found[-1]


def _resumed(
    resume: Learned, signals: Signals, shapes: tuple[tuple[int, int], ...], where: str
) -> tuple[Matrices, np.ndarray]:
    Ds, codes = resume.D, resume.X
    n = len(signals.Y)
    if (
        not isinstance(Ds, tuple)
        or not isinstance(codes, tuple)
        or tuple(D.shape for D in Ds) != shapes
        or codes[-1].shape != (n, shapes[-1][1])
    ):
        raise ValueError(f"{where}: resume is not of dictionaries {shapes} and these {n} signals")
    X = np.ldexp(np.asarray(codes[-1], signals.Y.dtype), -signals.exponent)
    return tuple(np.array(D, signals.Y.dtype) for D in Ds), X


def _start(
    signals: Signals,
    shapes: tuple[tuple[int, int], ...],
    counts: tuple[int, ...],
    start: str | Dictionary,
    rng: np.random.Generator,
    where: str,
) -> Matrices:
    Ds: Matrices = (start_atoms(start, signals, shapes[0][1], rng, where),)
    for (_, d), count in zip(shapes[1:], counts):
        atoms = distinct(signals.Y[rng.permutation(len(signals.Y))], Ds[0][:, :0], d, rng)
        Ds = (*Ds, sparse_columns(product(Ds), atoms, count))
    return Ds
