"""Learning from batches: a stream in constant memory, and gradients through a layer."""

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import training
from unrolled._base import checks
from unrolled._base.doors import ArrayLike, Key, checked
from unrolled._base.files import CheckpointError
from unrolled._base.threads import one_thread
from unrolled.dictionaries import Dictionary, known_part, signal_axes
from unrolled.dictionary_learning import _learning
from unrolled.dictionary_learning._learning import (
    Arrays,
    Keeper,
    Learned,
    Method,
    Options,
    Progress,
    Signals,
    Step,
)
from unrolled.layers import Layer
from unrolled.pursuit import lasso, lasso_of_rows

__all__ = ["online", "unrolled"]


# Relative duality gap of a code. A smaller gap does not lead to better atoms: the change of the
# atoms from batch to batch matters more, and the excess of the objective over its minimum is much
# smaller than the gap.
TOL = 5e-2
_TOGETHER = 1000  # number of signals that a layer codes together


def lasso_codes(
    D: np.ndarray,
    Y: np.ndarray,
    lam: float,
    V: np.ndarray | None,
    nonnegative: bool = False,
    tol: float = TOL,
) -> np.ndarray:
    r"""The codes of signals near 1 with unit atoms, each with a relative duality gap below tol.

    .. math:: \min_x \tfrac12 (y - D x)' V (y - D x) + lam \|x\|_1.

    Args:
        D: (m, d).
        Y: (n, m).
        lam: penalty weight.
        V: (n, m), the diagonal of V for each signal; None for ones.
        nonnegative: whether to minimise over x >= 0.
        tol: largest relative duality gap.

    Returns:
        X, (n, d).
    """
    if V is not None:
        root = np.sqrt(V)
        return np.asarray(_weighted(D, root * Y, root, np.asarray(lam, D.dtype), nonnegative, tol))
    return lasso_of_rows(D, Y, np.full((1, 1), lam), tol=tol, nonnegative=nonnegative).x


@partial(jax.jit, static_argnums=(4, 5))
def _weighted(
    D: jax.Array, Y: jax.Array, root: jax.Array, lam: jax.Array, nonnegative: bool, tol: float
) -> jax.Array:
    return jax.vmap(lambda y, w: lasso(w[:, None] * D, y, lam, tol=tol, nonnegative=nonnegative).x)(
        Y, root
    )


class Sums(NamedTuple):
    """The sums over past signals that `online` keeps, weighted by age, in float64.

    For any D and the past codes x, the mean of the objective over the past signals is
    (terms + tr(D A D') / 2 - tr(D' B)) / weight.
    """

    D: np.ndarray  # (m, d)
    A: np.ndarray  # (d, d) sum of x x'
    B: np.ndarray  # (m, d) sum of y x'
    terms: np.ndarray  # () sum of norm(y)^2 / 2 + lam norm(x, 1)
    weight: np.ndarray  # () sum of the weights of the signals
    exponent: np.ndarray  # () A, B and terms, times 2^(2 exponent), are in the signals' units


class Stage(NamedTuple):
    """How a batch counts, and which atoms are replaced after the batch."""

    lam: float
    beta: float  # the factor of the past
    rare: float = 0.0  # atoms are replaced up to this share of the mean sum of x^2
    parallel: float = _learning.PARALLEL  # and above this inner product with another atom
    tol: float = TOL  # relative duality gap of a code


def absorb(
    sums: Sums,
    signals: Signals,
    stage: Stage,
    rng: np.random.Generator,
    nonnegative: bool = False,
) -> tuple[Sums, float, int]:
    """The sums after a batch, its mean objective before the update, and the number of new atoms."""
    sums, beta = _rescaled(sums, signals), stage.beta
    lam = _learning.scaled_penalty(stage.lam, signals.exponent + signals.scale)
    D, n = sums.D.astype(signals.Y.dtype), len(signals.Y)
    X = lasso_codes(D, signals.Y, lam, signals.V, nonnegative, stage.tol)
    R = signals.Y - X @ D.T
    errors, penalty, target = signals.errors(R), lam * np.sum(np.abs(X)), signals.target(R)
    objective = (np.sum(errors) / 2 + penalty) / n
    terms = signals.top * np.sum(np.square(target, dtype=float)) / 2 + penalty
    # The unit of the batch relative to the unit of the sums; any unit is valid for a batch of
    # zeros.
    unit = math.ldexp(1, min(0, 2 * (signals.exponent - int(sums.exponent)) + signals.scale))
    A = beta * sums.A + unit * signals.top * (X.T @ X).astype(float)
    B = beta * sums.B + unit * signals.top * (target.T @ X).astype(float)
    D, A, B = _descend_atoms(sums.D, A, B)
    use = np.diag(A)
    twins = _learning.duplicates(D, use, stage.parallel, nonnegative)
    fresh = np.union1d(twins, np.flatnonzero(use <= stage.rare * use.mean()))
    if len(fresh):
        D[:, fresh] = _learning.fresh_atoms(D, fresh, target.astype(float), errors, rng).T
        A[fresh], A[:, fresh], B[:, fresh] = 0, 0, 0
    terms, weight = beta * sums.terms + unit * terms, beta * sums.weight + n
    sums = Sums(D, A, B, terms, weight, sums.exponent)
    return sums, signals.in_units(objective), len(fresh)


def _rescaled(sums: Sums, signals: Signals) -> Sums:
    """The sums in units of the largest weighted signals so far, including this batch."""
    exponent, new = int(sums.exponent), signals.exponent + (signals.scale + 1) // 2
    if not signals.Y.any() or not (new > exponent or sums.terms == 0):
        return sums
    unit = np.ldexp(1.0, 2 * (exponent - new)) if sums.terms else 1.0
    D, A, B, terms, weight, _ = sums
    return Sums(D, unit * A, unit * B, unit * terms, weight, np.array(new))


def _descend_atoms(
    D: np.ndarray, A: np.ndarray, B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit atoms after one pass of block coordinate descent over the atoms, with their A and B."""
    atoms, C = np.ascontiguousarray(D.T), np.ascontiguousarray(B.T)
    used = np.flatnonzero(np.diag(A) > 0)
    for j in used:
        u = atoms[j] + (C[j] - A[j] @ atoms) / A[j, j]
        atoms[j] = u / max(1, math.sqrt(u @ u))
    norms = np.linalg.norm(atoms, axis=1)
    dead = norms == 0
    norms[dead] = 1
    A, B = norms[:, None] * A * norms, B * norms
    A[dead], A[:, dead] = 0, 0
    return (atoms / norms[:, None]).T, A, B


def mean_objective(sums: Sums) -> float:
    """The mean objective over the past, in the units of the signals."""
    D, A, B, terms, weight, exponent = sums
    value = (terms + np.sum((D.T @ D) * A) / 2 - np.sum(D * B)) / max(float(weight), 1.0)
    return _learning.times_two_to(2 * int(exponent), value)


@checked
def online(
    batches: Iterable[Any],
    d: int,
    *,
    lam: float,
    key: Key = 0,
    start: str | Dictionary = "data",
    forgetting: float = 3.0,
    nonnegative: bool = False,
    progress: Progress | None = None,
    resume: Learned | None = None,
    checkpoint: str | Path | None = None,
    **run: Unpack[training.Reports],
) -> Learned:
    r"""Online dictionary learning (Mairal et al.): one pass over a stream, in constant memory.

    For every batch, `online` computes

    .. math:: x = \arg\min_x \tfrac12 \|y - D x\|^2 + lam \|x\|_1, \quad
        A \leftarrow \beta A + \textstyle\sum x x', \quad B \leftarrow \beta B + \sum y x', \quad
        d_j \leftarrow \Pi \big( d_j + (b_j - D a_j) / A_{jj} \big).

    Here :math:`\Pi` is the projection on the unit ball. The factor in batch t is
    :math:`\beta = (1 - 1/t)^\rho`, so that batch s has the weight (s / t)^rho after batch t. Atoms
    with norms below 1 are then scaled to norm 1, together with A and B. Atoms that no code uses,
    and atoms that are nearly parallel to another atom, are replaced by the worst represented
    signals of the batch.

    Args:
        batches: an iterable of signals (n, m), or of pairs of signals and weights of their squared
            errors, (n,) or (n, m). A bool array of weights is a mask; signals may be NaN where the
            mask is False. The batches may differ in length. A batch whose weights are all zero is
            skipped. For several passes over the signals, repeat the batches.
        d: number of atoms.
        lam: penalty weight.
        key: a typed key, or a seed, for the start and for replacements.
        start: "data", which takes d of the first signals; "dct"; or a D, (m, d).
        forgetting: rho, at least 0; with 0, all batches have the same weight. The early codes come
            from poor atoms and should be forgotten: rho = 3 works well for patches of photographs
            and for planted dictionaries.
        nonnegative: whether codes are non-negative. The entries of atoms may have either sign.
        progress: called as `progress(step)` after every batch, with a `Step`.
        resume: a result to continue from. If `batches` holds the batches that follow, and the other
            arguments are the same, the result is bit-identical to the result of an uninterrupted
            stream.
        checkpoint: a file (.npz) in which the function saves its state after the last batch, and
            after earlier batches at most once in 5 seconds. If the file exists, the same call, with
            the stream from its beginning, skips the batches that the file covers and continues. If
            one of these batches has changed, the call raises CheckpointError.
        run: `callbacks` and `log` of `training.Run`: after every batch, each callback is called as
            `callback(step, D)`, and a line of JSON with the `Step` is appended to the file `log`.

    Returns:
        Learned, with X None. `objective` is the mean of the LASSO objective over the past signals,
        weighted by age, for D and the codes found in the past; it is an upper bound on the mean for
        the best codes. The objective of a step is the objective of its batch before the update of
        D, i.e. on unseen signals. `state` holds the sums.

    Raises:
        TypeError: batches are traced, or not real numbers.
        ValueError: the stream ends before d signals (with start "data") or before the first signal,
            shapes of batches differ, NaN occur without a mask, lam is not above 0, or forgetting is
            below 0.
        CheckpointError: the file is damaged, or comes from another call.

    Warns:
        UserWarning: lam is so large that all codes are zero.

    With weights, `online` codes the weighted signals. The atoms then fit v y + (1 - v) D x, where v
    are the weights divided by the largest weight of the batch. This fit also lowers the objective.
    A batch counts in proportion to its largest weight. Weights may have any scale: a common factor
    of the weights and lam scales the objective and changes nothing else.

    Reference: Mairal, Bach, Ponce, Sapiro (2009, 2010).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
        >>> Y = ur.problems.exact_sparse(jax.random.key(1), (600, 12), 2) @ D.T
        >>> learned = ur.dictionary_learning.online(jnp.split(Y, 20), 12, lam=0.1, key=0)
        >>> learned.D.shape, learned.history[-1].objective < learned.history[0].objective
        ((8, 12), True)
    """
    reports = training.Run.of("online", run)
    options = Options(None, key, progress, resume, checkpoint, start, run=reports)
    return _learning.learn(Stream(batches, d, lam, forgetting, nonnegative, options), options)


class _State(NamedTuple):
    """The sums and the identity of the stream so far."""

    sums: Sums
    dtype: Any  # dtype of the first batch; None before the first batch
    seen: "Seen"


class Stream(Method):
    """Online learning, where a sweep is one batch."""

    where = "online"

    def __init__(
        self,
        batches: Iterable[Any],
        d: int,
        lam: float,
        forgetting: float,
        nonnegative: bool,
        options: Options,
    ):
        where, self.options = self.where, options
        self.nonnegative = checks.as_bool(nonnegative, "nonnegative", where)
        self.d, self.lam = checks.as_index(d, "d", where, least=1), _learning.as_lam(lam, where)
        self.forgetting = checks.as_number(forgetting, "forgetting", where)
        if not 0 <= self.forgetting < math.inf:
            raise ValueError(
                f"{where}: forgetting must be non-negative and finite, got {forgetting}"
            )
        parts = (_as_batch(batch, where) for batch in batches)
        self.stream: Iterator[Signals] = (part for part in parts if part.top)
        self.batch: Signals  # of the sweep

    def config(self) -> dict[str, Any]:
        own = {"d": self.d, "lam": float(self.lam), "start": _learning.text_of(self.options.start)}
        return own | {"forgetting": float(self.forgetting)} | _learning.signs(self.nonnegative)

    def start(self, rng: np.random.Generator) -> _State:
        sums, self.stream = _start(self.stream, self.d, self.options.start, rng, self.where)
        return _State(sums, None, Seen())

    def resumed(self, resume: Learned) -> _State:
        if not isinstance(resume.state, Sums) or resume.state.D.shape[1] != self.d:
            raise ValueError(f"online: resume is not a result of `online` with {self.d} atoms")
        return _State(resume.state, resume.D.dtype, Seen())

    def restored(self, arrays: Arrays, keeper: Keeper) -> _State:
        sums, dtype = Sums(*(arrays[name] for name in Sums._fields)), np.dtype(str(arrays["dtype"]))
        earlier = 0 if self.options.resume is None else len(self.options.resume.history)
        passed = len(keeper.history) - earlier
        return _State(sums, dtype, _passed_over(self.stream, passed, arrays, keeper.path))

    def arrays(self, state: _State) -> Arrays:
        texts = {"dtype": str(state.dtype), "first": state.seen.first, "all": state.seen.all}
        return state.sums._asdict() | texts

    def steps(self, keeper: Keeper, sweeps: None) -> Iterator[int]:
        for step, batch in enumerate(self.stream, start=len(keeper.history) + 1):
            self.batch = batch
            yield step

    def stage(self, step: int) -> Stage:
        """What the batch of a step changes."""
        return Stage(self.lam, (1 - 1 / step) ** self.forgetting)

    @one_thread()  # the threads that compute the codes are enough
    def sweep(self, state: _State, step: int, rng: Any) -> tuple[_State, float, int]:
        (sums, dtype, seen), signals = state, self.batch
        if signals.Y.shape[1] != len(sums.D):
            raise ValueError(
                f"{self.where}: batch {step} has signals of length {signals.Y.shape[1]}; expected "
                f"{len(sums.D)}"
            )
        sums, objective, replaced = absorb(sums, signals, self.stage(step), rng, self.nonnegative)
        seen = seen if self.options.checkpoint is None else seen.then(signals)
        return _State(sums, signals.dtype if dtype is None else dtype, seen), objective, replaced

    def warn(self, state: _State) -> None:
        """Warn if all codes are zero."""
        if state.sums.terms > 0 and not state.sums.A.any():
            checks.warn(
                f"{self.where}: all codes are zero, so D is made of signals: lam={self.lam} is not "
                "below max abs(D'y); try a smaller lam"
            )

    def result(self, state: _State) -> Learned:
        sums = state.sums
        return Learned(jnp.asarray(sums.D, state.dtype), None, mean_objective(sums), (), sums)


def _as_batch(batch: Any, where: str) -> Signals:
    """Check a batch of the stream."""
    if not isinstance(batch, tuple):
        return _learning.weighted_signals(batch, where)
    if len(batch) != 2:
        raise ValueError(f"{where}: a batch has {len(batch)} parts; expected Y or (Y, weights)")
    Y, weights = batch
    is_mask = np.asarray(weights).dtype == bool
    return _learning.weighted_signals(
        Y, where, **{"mask" if is_mask else "weights": weights}, unknown=True
    )


class Seen(NamedTuple):
    """The identity of a stream: texts that differ if one of the batches so far differs."""

    first: str = ""  # text of the first batch
    all: str = ""

    def then(self, signals: Signals) -> "Seen":
        """The identity of the stream with one more batch."""
        batch = signals.fingerprint()
        together = _learning.fingerprint(np.array([self.all, batch]), np.array(signals.exponent))
        return Seen(self.first or batch, together)


def _passed_over(stream: Iterator[Signals], n: int, arrays: Arrays, path: Path | None) -> Seen:
    """Skip n batches of the stream, and return the identity of the stream after these batches.

    Raises:
        CheckpointError: the stream has other batches, or has fewer than n batches.
    """
    saved, seen, passed = Seen(str(arrays["first"]), str(arrays["all"])), Seen(), 0
    for signals in itertools.islice(stream, n):
        seen, passed = seen.then(signals), passed + 1
        if seen.first != saved.first:
            break
    if seen.first != saved.first or (passed == n and seen.all != saved.all):
        raise CheckpointError(
            f"{path}: holds the learning of another stream: one of the {n} batches that it has "
            "seen is not the same"
        )
    if passed < n:
        raise CheckpointError(f"{path}: has seen {n} batches but the stream ends after {passed}")
    return seen


def _start(
    stream: Iterator[Signals], d: int, start: str | Dictionary, rng: Any, where: str
) -> tuple[Sums, Iterator[Signals]]:
    """The initial sums, and the stream, which again includes the batches read for the start."""
    first: list[Signals] = []
    needed = d if isinstance(start, str) and start == "data" else 1
    while sum(len(signals.Y) for signals in first) < needed:
        signals = next(stream, None)
        if signals is None:
            n = sum(len(signals.Y) for signals in first)
            raise ValueError(
                f"{where}: the stream ended after {n} signals; expected at least {needed}"
            )
        if first and signals.Y.shape[1] != first[0].Y.shape[1]:
            raise ValueError(
                f"{where}: batches have signals of length {first[0].Y.shape[1]} and "
                f"{signals.Y.shape[1]}"
            )
        first.append(signals)
    exponent = max(signals.exponent for signals in first)
    Y = np.concatenate([signals.rescaled(exponent).Y for signals in first])
    together = Signals(Y, None, exponent, first[0].dtype)
    D = _learning.start_atoms(start, together, d, rng, where).astype(float)
    m = len(D)
    zeros = np.zeros((d, d)), np.zeros((m, d)), np.zeros(()), np.zeros(())
    return Sums(D, *zeros, np.array(exponent)), itertools.chain(first, stream)


@checked
def unrolled(
    layer: Layer,
    Y: ArrayLike,
    d: int,
    *,
    lam: float,
    steps: int = 1000,
    batch: int = 128,
    rate: float = 1e-2,
    key: Key = 0,
    start: str | Dictionary = "data",
    params: Any = None,
    progress: Progress | bool | None = None,
    trainable: Any = None,
    validation: tuple | None = None,
    mask: ArrayLike | None = None,
    **run: Unpack[training.OptionsWithoutProgress],
) -> Learned:
    r"""Learn a dictionary and the params of a layer by gradients through the steps of the layer.

    .. math:: \min_{D, \, params} \frac1n \sum_{k=1}^n
        \tfrac12 \|y_k - D x_K(y_k)\|^2 + lam \|x_K(y_k)\|_1, \qquad \|d_i\| = 1.

    `unrolled` is `training.fit(learn_dictionary=True)` with the loss `training.lasso_loss(lam)`,
    Adam, and random batches of the signals.

    Args:
        layer: a layer such as `layers.lista(8)`.
        Y: (n, m), signals in rows, with n at least d.
        d: number of atoms.
        lam: penalty weight.
        steps: number of training steps.
        batch: number of signals in a step.
        rate: the learning rate of Adam.
        key: a typed key, or a seed, for the start, the first params and the batches.
        start: as in `ksvd`.
        params: initial params of the layer; None for the result of `layer.init`.
        progress: called as `progress(step)` at every evaluation, with a `Step`; or a bool, whether
            to show a progress bar.
        trainable, validation: as in `training.fit`; a validation batch is (Y, None).
        mask: as in `ksvd`; the steps and the objective use only the known entries of each signal. A
            validation batch is then (Y, None, mask).
        run: the other options of `training.Run`, by name.

    Returns:
        Learned, where X are the codes of the layer with the best params, `objective` is the mean
        above, `history` has the losses of the evaluations, and `state` is the `training.Fit`.

    Raises:
        TypeError, ValueError: as in `ksvd` and `training.fit`.
        NonFiniteError, CheckpointError: as in `training.fit`.

    Not claimed: that all atoms are used; unused atoms are not replaced. If the layer has many
    steps, the gradient in D is biased until the codes converge.

    Reference: Malezieux, Moreau, Kowalski (2022).

    Example:
        >>> Y = jax.random.normal(jax.random.key(1), (50, 6))
        >>> learned = ur.dictionary_learning.unrolled(
        ...     ur.layers.ista(3, lam=0.1), Y, 8, lam=0.1, steps=20
        ... )
        >>> learned.D.shape, learned.X.shape
        ((6, 8), (50, 8))
    """
    where = "unrolled"
    signals = _learning.weighted_signals(Y, where, None, mask)
    n = len(signals.Y)
    d = _learning.atom_count(d, n, where)
    batch = checks.as_index(batch, "batch", where, least=1)
    checks.check_memory((batch, signals.Y.shape[1] + d), signals.dtype, "a batch", where)
    rate = checks.as_number(rate, "rate", where)
    if not 0 < rate < np.inf:
        raise ValueError(f"{where}: rate must be positive and finite, got {rate}")
    key = checks.as_key(key, where)
    D = jnp.asarray(
        _learning.start_atoms(start, signals, d, _learning.generator(key, 0), where), signals.dtype
    )
    rows = jnp.asarray(np.ldexp(signals.Y, signals.exponent), signals.dtype)
    known = None if signals.V is None else jnp.asarray(signals.V > 0)
    if known is not None and validation is not None:
        validation = training.known_batch(D, validation, D.dtype, where)
    loss = training.lasso_loss(lam)

    def sample(key: Key) -> tuple:
        chosen = jax.random.randint(key, (batch,), 0, n)
        if known is None:
            return rows[chosen], None
        own, part = known_part(D, rows[chosen], known[chosen])
        return part, None, own

    if callable(progress):
        tell: Any = progress  # for the type checker, to which a bool may be callable
        run["callbacks"] = [*run.get("callbacks", ()), lambda record, _: tell(_as_step(record))]
    fit = training.fit(
        layer,
        layer.init(key, D) if params is None else params,
        D,
        sample,
        optimizer=optax.adam(rate),
        steps=steps,
        key=key,
        loss=loss,
        learn_dictionary=True,
        trainable=trainable,
        validation=validation,
        progress=progress is True,
        **run,
    )
    X, objective = _encoded(layer, fit, rows, known, loss)
    return Learned(fit.D, X, objective, tuple(map(_as_step, fit.history.records)), fit)


def _as_step(record: training.Record) -> Step:
    return Step(record.step, record.validation, record.seconds)


def _encoded(
    layer: Layer, fit: training.Fit, Y: jax.Array, known: jax.Array | None, loss: Any
) -> tuple[jax.Array, float]:
    """The codes of all signals, and the mean of the loss."""
    apply = jax.jit(jax.vmap(layer.apply, (None, signal_axes(known_part(fit.D, Y, known)[0]), 0)))
    codes, total = [], 0.0
    for first in range(0, len(Y), _TOGETHER):
        rows = slice(first, first + _TOGETHER)
        D, part = known_part(fit.D, Y[rows], None if known is None else known[rows])
        codes.append(apply(fit.best, D, part))
        total += float(loss(codes[-1][None], None, D, part)) * len(part)
    return jnp.concatenate(codes), total / len(Y)
