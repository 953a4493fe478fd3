"""Codes of an autoencoder, of its unrolled encoder and of exact solvers, at equal nonzeros."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from unrolled import plots, theory
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, Result, checked
from unrolled._base.text import short, table_of
from unrolled.layers import bcd
from unrolled.pursuit import in_turns, lasso_batch, omp_batch
from unrolled.sae._sae import SAE, unroll
from unrolled.training import fit, reconstruction

__all__ = ["Report", "Row", "report"]


_LEAST, _MOST = 50, 1000  # activations that are coded: at least, and at most
_SWEEPS = 4  # of the untrained block coordinate descent
_BISECTIONS, _BISECTED = 14, 128  # to find lam, and the number of signals
_CERTIFIED, _GRAM = 100, 8192  # signals whose optimum is certified, for up to so many atoms
_TWINS = 0.95  # the inner product of unit atoms from which they are twins
_TOL = 1e-5  # duality gap of the exact codes
_ENTRIES = 2**25  # of the codes that are in memory while atoms are counted
_RATE = 0.004  # learning rate of Adam, in units of the mean size of a weight


class Row(Result):
    """The codes of one method."""

    method: str  # the name of the method, in the table
    nonzeros: float  # the mean number of nonzeros of a code
    unexplained: float  # sum of norm(a - decoded)^2 over the sum of norm(a - mean)^2
    microseconds: float  # per activation: CPU time of this process, or on an accelerator the clock


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The comparison of an autoencoder with better codes for its own decoder.

    Attributes:
        rows: one `Row` for each method.
        lam: the weight of the LASSO whose codes have the number of nonzeros of the encoder.
        amortisation: mean of F(encoder) / F(optimum) - 1, where F is the objective of this LASSO.
        certified: share of the optima that `theory.certify_lasso` proves to be the only optimum;
            nan above 8,192 atoms.
        dead: share of the atoms that the encoder uses for none of the activations.
        twins: share of the atoms that have an inner product above 0.95 with another atom, after
            both are divided by their norms.
        coherence: the largest such inner product.
    """

    rows: tuple[Row, ...]
    lam: float
    amortisation: float
    certified: float
    dead: float
    twins: float
    coherence: float

    @property
    def notes(self) -> list[str]:
        """The findings in words."""
        words = [
            f"For the LASSO over x >= 0 with lam = {self.lam:.3g}, the objective of the codes of "
            f"the encoder is {100 * self.amortisation:.3g} % above the optimum on average.",
            f"The encoder never uses {100 * self.dead:.3g} % of the atoms. "
            f"{100 * self.twins:.3g} % of the atoms have a twin (inner product above {_TWINS}); "
            f"the coherence is {self.coherence:.3g}.",
        ]
        if np.isfinite(self.certified):
            words.append(f"{100 * self.certified:.3g} % of the optima are proved to be unique.")
        return words

    def table(self, form: str = "markdown") -> Any:
        """A table of the methods, with the notes below.

        Args:
            form: "markdown", "latex", "csv", or "records", a list of dicts with unrounded numbers.

        Raises:
            ValueError: the form is unknown.
        """
        return table_of(form, [row.asdict() for row in self.rows], self.notes)

    def __repr__(self) -> str:
        first, *others = self.rows
        best = min(others, key=lambda row: row.unexplained)
        return (
            f"Report: the encoder leaves {short(first.unexplained)} of the variance unexplained, "
            f"{best.method} {short(best.unexplained)}, with {short(first.nonzeros)} and "
            f"{short(best.nonzeros)} nonzeros"
        )

    def plot(self) -> Any:
        """A figure of the unexplained variance against the time per activation."""
        lines = {row.method: ([row.microseconds], [row.unexplained]) for row in self.rows}
        return plots.costs(lines, title="Codes for one decoder", ylabel="unexplained variance")


@checked
def report(
    sae: SAE, A: Array | np.ndarray, *, depth: int = 4, steps: int = 500, key: Key = 0
) -> Report:
    r"""Compare the codes of an autoencoder with better codes for the same decoder.

    All codes have about the number of nonzeros of the encoder. The methods are: the encoder; its
    support with the values of least squares; the unrolled encoder with `depth` steps, untrained
    and trained; four untrained sweeps of `layers.bcd`, and the exact codes, for

    .. math:: \min_{x \ge 0} \; 1/2 \, \|y - D x\|^2 + \lambda \|x\|_1

    with the lam at which codes have this number of nonzeros; the support of the exact codes with
    the values of least squares; and orthogonal matching pursuit, with x >= 0 and without. Least
    squares has the constraint x >= 0, too.

    Args:
        sae: an autoencoder with one step.
        A: activations, (n, m); a memmap is read in parts. The last fifth, at most 1,000, is coded
            and timed; the others train the unrolled encoder.
        depth: K of the unrolled encoder.
        steps: number of training steps, with batches of 256; 0 does not train.
        key: the key of the batches.

    Returns:
        Report. A time is per activation, as in `recommend`: let nothing else compute meanwhile.

    Raises:
        ValueError: shapes do not fit, there are fewer than 50 activations, activations that are
            coded are not finite or are all equal, or the encoder gives only zeros.

    Not claimed: that codes with a smaller error are better features of the language model.

    Example:
        >>> D = ur.dictionaries.gaussian(0, 16, 32)
        >>> A, _ = ur.problems.sampler(D, batch=500, probability=0.1)(jax.random.key(0))
        >>> weights = {"W_enc": D, "b_enc": jnp.zeros(32), "W_dec": D.T}
        >>> found = ur.sae.report(ur.sae.load(weights, kind="topk", k=3), A, steps=0)
        >>> [row.method for row in found.rows][:2]
        ['encoder', 'encoder, least squares']
        >>> found.amortisation > 0
        True
    """
    where = "sae.report"
    depth = checks.as_depth(depth, "depth", where, least=1)
    steps = checks.as_index(steps, "steps", where)
    if np.ndim(A) != 2 or len(A) < _LEAST:
        raise ValueError(
            f"{where}: A has shape {np.shape(A)}; expected (n, {len(sae.center)}) with n at least "
            f"{_LEAST}"
        )
    tested = min(_MOST, len(A) // 5)
    coded = _Coded.of(sae, np.asarray(A[-tested:]))
    deep = unroll(sae, A[:tested], depth, sparsity=coded.k)
    lam = coded.lam_of_nonzeros()
    layer = bcd(_SWEEPS, lam=lam, nonnegative=True)
    D, Y, k, params = coded.D, coded.Y, coded.k, layer.init(None, sae.D)

    def optimum() -> np.ndarray:
        return np.asarray(lasso_batch(D, Y, lam, nonnegative=True, tol=_TOL).x)

    methods: dict[str, Callable[[], Any]] = {
        "encoder": partial(_codes, sae, Y),
        "encoder, least squares": lambda: coded.least_squares(_codes(sae, Y)),
        f"unrolled, {depth} steps": partial(_codes, deep, Y),
    }
    if steps:
        deep = trained(deep, A[:-tested], steps, key)
        methods[f"trained, {depth} steps"] = partial(_codes, deep, Y)
    methods |= {
        f"bcd, {_SWEEPS} sweeps": partial(layer.encode, sae.D, Y, params),
        "LASSO": optimum,
        "LASSO, least squares": lambda: coded.least_squares(optimum()),
        "OMP, x >= 0": lambda: omp_batch(D, Y, k, nonnegative=True).x,
        "OMP": lambda: omp_batch(D, Y, k).x,
    }
    exact, nearest = optimum(), nearest_atoms(sae.D)
    return Report(
        rows=tuple(coded.row(name, code) for name, code in methods.items()),
        lam=lam,
        amortisation=coded.excess(exact, lam),
        certified=_certified(D, Y[:_CERTIFIED], exact[:_CERTIFIED], lam),
        dead=float(np.mean(~used_atoms(sae, A))),
        twins=float(np.mean(nearest > _TWINS)),
        coherence=float(nearest.max()),
    )


def _certified(D: np.ndarray, Y: np.ndarray, X: np.ndarray, lam: float) -> float:
    """The share of codes that are proved to be the only optimum; nan for many atoms."""
    if D.shape[1] > _GRAM:
        return np.nan
    return float(np.mean(theory.certify_lasso(D, Y, X, lam, nonnegative=True).unique))


class _Coded:
    """The activations that all methods code, as signals of the decoder."""

    def __init__(self, sae: SAE, A: np.ndarray, Y: np.ndarray, X: np.ndarray):
        self.D, self.Y, self.X = np.asarray(sae.D), Y, X
        self.k = max(1, round(float((X != 0).sum(1).mean())))
        self.variance = float(np.sum((A - A.mean(0)) ** 2))

    @classmethod
    def of(cls, sae: SAE, A: Any) -> "_Coded":
        A = np.asarray(A).astype(sae.D.dtype)
        checks.finite(A, "A", "sae.report")
        Y = np.asarray(sae.signals(A))
        X = np.asarray(_codes(sae, Y))
        if not X.any():
            raise ValueError("sae.report: the encoder gives only zeros for the coded activations")
        made = cls(sae, A, Y, X)
        if not made.variance > 0:
            raise ValueError("sae.report: the coded activations are all equal")
        return made

    def row(self, method: str, code: Callable[[], Any]) -> Row:
        """The codes of a method and their time."""
        timing = in_turns({method: code})[method]
        X = np.asarray(code())
        return Row(
            method,
            float((X != 0).sum(1).mean()),
            float(np.sum((self.Y - X @ self.D.T) ** 2)) / self.variance,
            1e6 * timing.seconds / len(X),
        )

    def objectives(self, X: np.ndarray, lam: float) -> np.ndarray:
        """The objective of the LASSO for each code."""
        return ((self.Y - X @ self.D.T) ** 2).sum(1) / 2 + lam * np.abs(X).sum(1)

    def excess(self, exact: np.ndarray, lam: float) -> float:
        """The mean of F(encoder) / F(optimum) - 1; 0 for a signal of zeros."""
        own, least = self.objectives(self.X, lam), self.objectives(exact, lam)
        return float(np.mean(np.where(least > 0, own / np.where(least > 0, least, 1), 1)) - 1)

    def lam_of_nonzeros(self) -> float:
        """The lam at which the codes of some signals have k nonzeros on average."""
        Y = self.Y[:_BISECTED]
        high = float((Y @ self.D).max())
        low = 1e-4 * high
        for _ in range(_BISECTIONS):
            lam = float(np.sqrt(low * high))
            X = lasso_batch(self.D, Y, lam, nonnegative=True, tol=_TOL).x
            low, high = (lam, high) if np.mean((X != 0).sum(1)) > self.k else (low, lam)
        return high

    def least_squares(self, X: ArrayLike) -> np.ndarray:
        """Codes with the supports of X that are the nearest to the signals, over x >= 0."""
        from scipy.optimize import nnls

        nearest = np.zeros_like(np.asarray(X))
        for x, y, code in zip(nearest, self.Y, np.asarray(X)):
            support = np.flatnonzero(code)
            x[support] = nnls(self.D[:, support], y)[0] if support.size else 0
        return nearest


def _codes(sae: SAE, Y: np.ndarray) -> Array:
    return sae.layer.encode(sae.D, Y, sae.params)


def trained(sae: SAE, A: Any, steps: int, key: Key) -> SAE:
    """The autoencoder after training its layer on activations; the decoder stays."""
    Y = np.asarray(sae.signals(A))
    rate = optax.cosine_decay_schedule(_RATE * float(jnp.mean(jnp.abs(sae.params.steps.W))), steps)
    made = fit(
        sae.layer,
        sae.params,
        sae.D,
        Y,
        loss=reconstruction,
        optimizer=optax.adam(rate),
        steps=steps,
        key=key,
        progress=False,
    )
    return sae.replace(params=made.best)


def used_atoms(sae: SAE, A: Any) -> np.ndarray:
    """Whether the encoder uses an atom for some activation, (d,)."""
    used = np.zeros(sae.D.shape[1], bool)
    size = max(1, _ENTRIES // sae.D.shape[1])
    for at in range(0, len(A), size):
        used |= np.asarray((sae.encode(A[at : at + size]) != 0).any(0))
    return used


def nearest_atoms(D: Array) -> np.ndarray:
    """The largest inner product of each atom with another, for atoms of norm 1, (d,)."""
    norms = jnp.linalg.norm(D, axis=0)
    unit = D / jnp.where(norms > 0, norms, 1)[None]
    return np.asarray(theory.row_maxima(unit, unit))
