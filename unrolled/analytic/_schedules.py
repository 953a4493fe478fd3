"""Certificates of stored weights, schedules from these certificates, and tables of both."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries, theory
from unrolled._base import checks, text
from unrolled._base.doors import Array, ArrayLike, Result, host_function, program
from unrolled._base.numbers import UP, largest, wide_dtype
from unrolled._base.text import line, screen, table_of
from unrolled.activations import Activation, by_name, relu
from unrolled.dictionaries import Dictionary, Operator

__all__ = [
    "Certified",
    "HypothesisWarning",
    "WeightsRow",
    "WeightsTable",
    "block_schedule",
    "certified_weights",
    "chain_schedules",
    "plan",
    "weights_table",
]


# `certify` rounds its sums up. Stored thresholds may be lower by u; `Certified` covers this.
_MARGIN = 1 + 1e-6
# Stored thresholds are at most this share of the largest number of their dtype, so they are finite.
LARGEST_SHARE = 1 / 4
# A contraction below this number is below 1 despite rounding; if theory does not cover a schedule
# with such a contraction, another hypothesis fails.
_CONTRACTS = 1 - 1e-5


class HypothesisWarning(UserWarning):
    """The theory does not cover the dictionary and sparsity: the thresholds do not contract."""


class Certified(Result):
    """Weights with the numbers that theory needs, computed in float64 from the stored arrays."""

    W: Operator  # (m, d)
    mu_W: float  # rounded up
    C_W: float
    eta: float  # max abs(1 - w_i . d_i)
    omega: float  # max norm(w_i, 2), rounded up
    G: float  # max (|W|'|D|)_ij, by which rounding is multiplied
    rounding: theory.Rounding  # of the products in the dtype of W and D

    def drift(self, nonzeros: int) -> float:
        """The rounding per unit of norm(x* - x, 1), also of thresholds; enlarges mu_W and eta."""
        stored = 2 * self.rounding.unit * self.mu_W + 16 * (nonzeros + 8) * np.finfo(float).eps
        return self.G * float(self.rounding.of_error(nonzeros)) * _MARGIN + float(stored)

    def guard(self, nonzeros: int, size: float, noise: float) -> float:
        """The rounding that remains for codes of norm(x*, 1) up to `size` and this noise."""
        if not (size or noise):
            return 0.0
        lost = self.rounding.lost(1.0, self.C_W, self.G, nonzeros, 2 * size, noise)
        remaining = float(self.G * self.rounding.of_code(nonzeros) * size + lost)
        return remaining * _MARGIN * (1 + 2 * self.rounding.unit)

    @property
    def of_noise(self) -> float:
        """C_W with the rounding of products with the noise."""
        return self.C_W * (1 + float(self.rounding.of_noise()) + 2 * self.rounding.unit) * UP


@host_function
def certified_weights(D: Dictionary, W: Dictionary | None = None) -> Certified:
    """The weights W for D, with the coherence, norms and rounding guard of W.

    If codes of D come in parts, mu_W, C_W and eta are the `mu`, `gain` and `eta` of
    `theory.block_coherence`, and omega is the `gain`, too.

    Args:
        D: (m, d), unit atoms.
        W: (m, d); by default D or `frobenius_weights(D)`, whichever has the smaller mu_W.

    Returns:
        Certified, with W in the dtype of D.

    Raises:
        ValueError: atoms of D are off unit norm, an atom is zero, or shapes differ.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> certified = ur.analytic.certified_weights(D, D)
        >>> round(certified.mu_W, 6), certified.C_W, certified.eta
        (0.25, 1.0, 0.0)
    """
    return _certified(D, W, "certified_weights")


def _certified(D: Dictionary, W: Dictionary | None, where: str) -> Certified:
    """`certified_weights`, with the name of the caller for messages."""
    D = dictionaries.as_dictionary(D, where)
    if W is None:
        both = _certified(D, D, where), _certified(D, theory.frobenius_weights(D), where)
        return min(both, key=lambda c: c.mu_W)
    W = dictionaries.as_dictionary(W, where, "W")
    W = W.astype(D.dtype)
    if W.shape != D.shape:
        raise ValueError(
            f"{where}: W has shape {W.shape} but D has shape {D.shape}; they must agree"
        )
    with jax.enable_x64(True):
        W64, D64 = checks.cast_on_host((W, D), np.float64)
        *numbers, norms = _measured(W64, D64)
        _, entries = theory.product_sizes(W64, D64, wide_dtype(D.dtype))
    dictionaries.unit_norms(D, np.asarray(norms), where)
    mu, C, eta, omega = map(float, numbers)
    rounding = theory.Rounding.of(W, D, D.dtype, norms=norms)
    G = dictionaries.block_of(D) * float(entries)  # bounds the norm of a block of |W|'|D|
    return Certified(W, mu * UP, C, eta * UP, omega * UP, max(G, 1.0) * UP, rounding)


@program()
def _measured(W: Dictionary, D: Dictionary) -> tuple[Array, ...]:
    """mu_W, C_W, eta = max abs(1 - w_i . d_i), omega = max norm(w_i), and the norms of D."""
    if dictionaries.block_of(D) > 1:  # for noise bounded in l2; the l2 norm is at most the l1 norm
        parts = theory.block_coherence(W, D)
        return parts.mu, parts.gain, parts.eta, parts.gain, dictionaries.column_norms(D)
    entries = theory.coherence(W, D)
    eta, omega = largest(jnp.abs(1 - theory.diagonal(W, D))), jnp.max(dictionaries.column_norms(W))
    return entries.mu_W, entries.C_W, eta, omega, dictionaries.column_norms(D)


@host_function
def bound_remark(D: Dictionary, X: Any, bound: ArrayLike | Any) -> str:
    """A sentence if codes exceed the bound B of a class, with the share of these codes; else "".

    The theorems cover a code only if no entry, or no part, is larger than B.

    Args:
        D: (m, d).
        X: (n, d), codes, or these codes in another form that D accepts.
        bound: B, a number or codes as in `lista_cp`.

    Raises:
        ValueError: codes do not fit to D or are not finite, or the bound is negative or NaN.

    Example:
        >>> ur.analytic.bound_remark(jnp.eye(2), jnp.array([[0.5, 0.0], [0.0, -4.1]]), 1.0)
        'bound 1.0, entries reach 4.1: Theorem 12 does not cover 50 % of these signals'
    """
    sizes = theory.codes_of(X, D, "bound_remark").max(axis=1, initial=0.0)
    bound = _bound(D, bound, "bound_remark")
    beyond = int(np.sum(sizes > bound * (1 + np.finfo(np.float32).eps)))
    if not beyond:
        return ""
    share = 100.0 if beyond == len(sizes) else min(99.9, 100 * beyond / len(sizes))
    what = "entries" if dictionaries.block_of(D) == 1 else "parts"
    return (
        f"bound {_two_digits(bound)}, {what} reach {_two_digits(sizes.max())}: Theorem 12 does not "
        f"cover {share:.3g} % of these signals"
    )


def _two_digits(size: float) -> str:
    """A size with two digits; a whole number has the digit .0."""
    return str(float(f"{size:.2g}"))


def _bound(D: Dictionary, bound: Any, where: str) -> float:
    """B, a number; for codes (n, d) the size of their largest entry or part."""
    if np.ndim(bound):
        return float(theory.codes_of(bound, D, where).max(initial=0.0))
    checks.nonnegative(bound, "bound", where)
    return checks.as_number(bound, "bound", where)


@host_function
def plan(
    Ds: Sequence[Dictionary],
    *,
    sparsities: Sequence[int],
    bounds: Sequence[ArrayLike | Any],
    noises: Sequence[float] | None = None,
    Ws: Sequence[Dictionary | None] | None = None,
    tol: float,
) -> theory.Plan:
    """The depths that certify the last code of a chain to `tol` with the fewest steps in total.

    Args:
        Ds, sparsities, bounds, noises, Ws: as in `dsc`.
        tol: bound on the l1 error of the last code.

    Returns:
        The `theory.Plan`; its depths are the depths for `dsc`, and its `holds` is False if no
            depths reach `tol`.

    Raises:
        ValueError: as in `dsc`.

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), jnp.eye(32)
        >>> ur.analytic.plan(Ds, sparsities=(1, 1), bounds=(1.0, 1.0), tol=0.01).depths
        (4, 1)
    """
    Ds, Ws, certified = _chain(
        Ds, Ws, "analytic.plan", sparsities=sparsities, bounds=bounds, noises=noises
    )
    bounds = [_bound(D, B, "analytic.plan") for D, B in zip(Ds, bounds)]
    drifts = [c.drift(s) for c, s in zip(certified, sparsities)]
    sizes = [s * B for s, B in zip(sparsities, bounds)]
    deltas = (0.0,) * len(Ds) if noises is None else noises
    return theory.plan(
        [c.mu_W + drift for c, drift in zip(certified, drifts)],
        [c.of_noise for c in certified],
        sparsities=sparsities,
        bounds=bounds,
        noises=noises,
        guards=[c.guard(*of) for c, *of in zip(certified, sparsities, sizes, deltas)],
        etas=[c.eta + drift for c, drift in zip(certified, drifts)],
        gains=[
            _gain(D, c, s, dictionaries.block_of(before))
            for D, c, s, before in zip(Ds, certified, (0, *sparsities), (Ds[0], *Ds))
        ],
        tol=tol,
    )


@host_function
def block_schedule(
    D: Dictionary,
    W: Dictionary | None = None,
    activation: Activation | Callable | str = relu,
    *,
    depth: int,
    sparsity: int,
    bound: ArrayLike | Any,
    noise: float = 0.0,
    noise_norm: str | Any = "l1",
    per_atom: bool = False,
) -> tuple[Certified, theory.Schedule | theory.ActivationSchedule | theory.AtomSchedule]:
    """The certified weights of `lista_cp` and `alista`, and the schedule of their thresholds.

    Arguments, warnings and errors are as in `lista_cp`.

    Returns:
        The weights, and the schedule of the theorem that covers the activation, with the rounding
        guard.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> _, schedule = ur.analytic.block_schedule(D, depth=3, sparsity=1, bound=1.0)
        >>> print(schedule.error.round(3), schedule.holds)
        [1.    0.25  0.063 0.016] True
    """
    rho: Any = by_name(activation)
    D = dictionaries.as_dictionary(D, "analytic")
    c = _certified(D, W, "analytic")
    _check_sparsity(D, sparsity)
    if not isinstance(noise_norm, str) or noise_norm not in ("l1", "l2"):
        raise ValueError(f'analytic: unknown noise_norm {noise_norm!r}; expected "l1" or "l2"')
    problem = dict(sparsity=sparsity, bound=_bound(D, bound, "analytic"), depth=depth)
    if per_atom:
        if rho != relu:
            raise ValueError(
                f"analytic: thresholds per atom are certified for ReLU alone, got {rho}"
            )
        return c, _atom_schedule(D, c, noise=noise, noise_norm=noise_norm, **problem)
    # For noise bounded in l2, omega replaces C_W, so the noise acts like l1 noise of delta omega /
    # C_W.
    noise = noise * _l2_gain(c) if noise_norm == "l2" else noise
    return c, _schedule(D, c, rho, noise=noise, **problem)


@host_function
def chain_schedules(
    Ds: Sequence[Dictionary],
    *,
    depths: Sequence[int],
    sparsities: Sequence[int],
    bounds: Sequence[ArrayLike | Any],
    noises: Sequence[float] | None = None,
    Ws: Sequence[Dictionary | None] | None = None,
    activations: Sequence[Activation | Callable | str] | None = None,
) -> tuple[tuple[Certified, ...], tuple[theory.Schedule | theory.ActivationSchedule, ...]]:
    """The certified weights of `dsc`, and the schedules of its blocks.

    The error of a block is noise for the next block, weighted by `theory.error_gain`. Arguments,
    warnings and errors are as in `dsc`.

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), jnp.eye(32)
        >>> classes = dict(sparsities=(1, 1), bounds=(1.0, 1.0))
        >>> _, (first, second) = ur.analytic.chain_schedules(Ds, depths=(3, 1), **classes)
        >>> round(float(second.error[-1] / first.error[-1]), 2)
        2.0
    """
    columns: dict[str, Any] = dict(depths=depths, bounds=bounds, noises=noises)
    columns |= dict(sparsities=sparsities, activations=activations)
    Ds, Ws, certified = _chain(Ds, Ws, "analytic.dsc", **columns)
    bounds = [_bound(D, B, "analytic.dsc") for D, B in zip(Ds, bounds)]
    noises = (0.0,) * len(Ds) if noises is None else noises
    activations = (relu,) * len(Ds) if activations is None else tuple(map(by_name, activations))
    schedules, inherited, before, block = [], 0.0, 0, 1
    for D, c, rho, s, B, delta, K in zip(
        Ds, certified, activations, sparsities, bounds, noises, depths
    ):
        options = dict(sparsity=s, bound=B, noise=delta, depth=K)
        inherited = _gain(D, c, before, block) * inherited
        schedules.append(_schedule(D, c, rho, inherited=inherited, **options))
        inherited, before = float(schedules[-1].error[-1]), s if rho == relu else 0
        block = dictionaries.block_of(D)
    return certified, tuple(schedules)


def _l2_gain(c: Certified) -> float:
    """omega / C_W, or 1 if the weights are 0."""
    return c.omega / c.C_W if c.C_W else 1.0


def _gain(D: Dictionary, c: Certified, before: int, block: int) -> float:
    """`error_gain` with rounding if the block before has `before` nonzeros; C_W if `before` = 0.

    `block` is the number of entries in a part of the codes of the block before. If the l2 norms of
    the parts of an error add up to E, the error has an l1 norm of at most sqrt(block) E and an l2
    norm of at most E.
    """
    if dictionaries.block_of(D) > 1:
        return c.of_noise
    gain = theory.error_gain(c.W, sparsity=before if block == 1 else 0)
    return (gain * UP + c.of_noise - c.C_W) * math.sqrt(block)


def _chain(Ds, Ws, where: str, *, sparsities: Sequence[int], **columns: Sequence[Any] | None):
    """The dictionaries of a chain, their weights and certificates, after all checks of lengths."""
    Ds = dictionaries.as_chain(Ds, where)
    Ws = (None,) * len(Ds) if Ws is None else Ws
    for name, column in {"sparsities": sparsities, **columns, "Ws": Ws}.items():
        if column is not None and len(column) != len(Ds):
            raise ValueError(
                f"{where}: {name} has length {len(column)}; expected {len(Ds)}, one per dictionary"
            )
    for D, s in zip(Ds, sparsities):
        _check_sparsity(D, s)
    return Ds, Ws, tuple(_certified(D, W, where) for D, W in zip(Ds, Ws))


def _schedule(
    D, c: Certified, activation: Activation, *, sparsity, bound, noise, depth, inherited=0.0
) -> theory.Schedule | theory.ActivationSchedule:
    """The schedule of one block with its rounding guard; warns if the schedule certifies nothing.

    `inherited` is the noise that the error of the block before adds to the products.
    """
    n = D.shape[1] // dictionaries.block_of(D)

    def at(sparsity, depth):
        nonzeros = sparsity if activation == relu else n  # a tail leaves no entry at 0
        drift, guard = c.drift(nonzeros), c.guard(nonzeros, sparsity * bound, noise) + inherited
        options = dict(sparsity=sparsity, bound=bound, noise=noise, depth=depth, guard=guard)
        options["eta"] = c.eta + drift
        if activation == relu:
            return theory.schedule(c.mu_W + drift, c.of_noise, **options)
        return theory.activation_schedule(activation, c.mu_W + drift, c.of_noise, d=n, **options)

    planned = at(sparsity, depth)
    planned = _within_range(planned, c, sparsity * bound + noise)
    return _warned(planned, sparsity, at, D, activation)


def _atom_schedule(
    D, c: Certified, *, sparsity, bound, noise, noise_norm: str, depth
) -> theory.AtomSchedule:
    """The schedule of one block with a threshold per atom; warns if it certifies nothing."""
    with jax.enable_x64(True):
        D64, W64 = checks.cast(D, np.float64), checks.cast(c.W, np.float64)
        atoms = theory.atom_coherence(W64, D64)
        sizes = dictionaries.column_norms(W64) * UP if noise_norm == "l2" else atoms.C_W
    mus, C_Ws = np.asarray(atoms.mu_W) * UP, np.asarray(sizes)
    of_noise = (c.of_noise - c.C_W) * noise * (_l2_gain(c) if noise_norm == "l2" else 1)

    def at(sparsity, depth):
        drift, guard = c.drift(sparsity), c.guard(sparsity, sparsity * bound, noise) + of_noise
        options = dict(sparsity=sparsity, bound=bound, noise=noise, depth=depth, guard=guard)
        return theory.atom_schedule(mus + drift, C_Ws, eta=c.eta + drift, **options)

    planned = _within_range(at(sparsity, depth), c, sparsity * bound + noise)
    return _warned(planned, sparsity, at, D)


def _within_range(planned: Any, c: Certified, size: float) -> Any:
    """`planned`, which holds only if the numbers of its steps are in the range of the dtype.

    `size` bounds the sum of norm(x*, 1) and the noise. The numbers of y - D x are at most size +
    norm(x*, 1) + E, and the numbers of a step exceed x* by at most E + omega E + theta.
    """
    E, theta = float(np.max(planned.error)), float(np.max(planned.theta, initial=0.0))
    within = size + (1 + max(c.omega, 1.0)) * E + theta <= _largest_number(c.W)
    return planned.replace(holds=bool(planned.holds and within))


def _largest_number(W: Dictionary) -> float:
    return LARGEST_SHARE * float(jnp.finfo(W.dtype).max)


def _check_sparsity(D: Dictionary, sparsity: int) -> None:
    s = checks.as_index(sparsity, "sparsity", "analytic")
    n, what = (
        D.shape[1] // dictionaries.block_of(D),
        "atoms" if dictionaries.block_of(D) == 1 else "parts",
    )
    if s > n:
        raise ValueError(f"analytic: sparsity {s} exceeds the number of {what} {n}")


def _warned(planned, sparsity: int, at: Callable, D: Dictionary, activation: Activation = relu):
    """`planned`, with a warning unless it holds; `at(sparsity, depth)` makes other schedules."""
    if not planned.holds and (planned.contraction < _CONTRACTS or at(sparsity, 0).holds):
        checks.warn(
            f"the theory does not cover codes of this size in {D.dtype}: the numbers of a step may "
            f"leave its range. Try a smaller bound{checks.or_float64(D.dtype)}",
            HypothesisWarning,
        )
    elif not planned.holds:
        covered = itertools.takewhile(lambda s: at(s, 0).holds, range(D.shape[1] + 1))
        name = "" if activation == relu else f" with {activation}"
        checks.warn(
            f"the theory does not cover s = {sparsity}{name}: contraction a = "
            f"{planned.contraction:.4g} (expected < 1); the largest admissible s is "
            f"{max(covered, default=0)}. The returned thresholds do not contract; try "
            "analytic.calibrate on a sample, or training",
            HypothesisWarning,
        )
    return planned


class WeightsRow(Result):
    """One kind of weights, and the schedule that these weights certify."""

    mu_W: float
    C_W: float
    omega: float  # max norm(w_i, 2)
    norm_W: float  # norm(W, 2), or an upper bound
    largest_sparsity: int  # the largest sparsity that the weights certify
    sparsity: int  # s, the sparsity of this row
    holds: bool  # whether s is certified
    contraction: float  # a, the factor of the error bound in a step
    rate: float  # -ln a
    floor: float  # the error bound that remains because of noise
    steps: float  # steps to reach the tolerance


class WeightsTable(Result):
    """Several kinds of weights for one dictionary, each with its numbers and its matrix.

    Example:
        >>> table = ur.analytic.weights_table(ur.dictionaries.identity_hadamard(4))
        >>> table.text().splitlines()[0].split("  ")[-1].strip(), list(table.weights)
        ('minimax', ['W = D', 'closed form', 'minimax'])
        >>> table.to_dict()["weights"]["minimax"]["largest_sparsity"]
        1
    """

    m: int  # length of a signal
    d: int  # number of atoms
    tolerance: float  # the l1 error to reach
    coherence: theory.GeneralizedCoherence  # mu~, certified
    rows: dict[str, WeightsRow]  # rows by kind of weights
    weights: dict[str, Operator]  # (m, d) by kind

    def text(self) -> str:
        """The table as text, one column per kind of weights."""
        return "\n".join(line(label, cells) for label, *cells in (["", *self.rows], *self.cells()))

    def cells(self) -> list[list[Any]]:
        """The lines of the table below its head: a label, and a number for each kind of weights."""
        labels = {field: field.replace("_", " ") for field in WeightsRow._fields}
        labels["steps"] = f"steps to {self.tolerance:g}"
        rows = self.rows.values()
        return [[label, *(getattr(row, f) for row in rows)] for f, label in labels.items()]

    def __repr__(self) -> str:
        """The table, cut to the size of the screen."""
        return screen(self.text().splitlines())

    def _repr_html_(self) -> str:
        """The table as HTML for Jupyter."""
        rows = [["", *self.rows], *self.cells()]
        return text.grid({label: cells for label, *cells in rows})._repr_html_()

    def reasons(self) -> list[str]:
        """A text for each kind of weights that misses the tolerance: the reason, with its numbers.

        In the texts, a is the contraction, which is at least (2 s - 1) mu_W.
        """
        reasons = []
        for name, row in self.rows.items():
            if not row.holds and row.contraction < _CONTRACTS:
                reasons.append(
                    f"{name}: codes of this size, or with this noise, leave the range of numbers"
                )
            elif not row.holds:
                reasons.append(
                    f"{name}: a < 1 fails: with s = {row.sparsity} and mu_W = {row.mu_W:.4g} it is "
                    f"{row.contraction:.4g}; it holds up to s = {row.largest_sparsity}"
                )
            elif not row.steps < float("inf"):
                reasons.append(
                    f"{name}: no number of steps reaches {self.tolerance:g}: the floor, from the "
                    f"noise and the rounding, is {row.floor:.4g}"
                )
        return reasons

    def table(self, form: str = "markdown") -> Any:
        """A table with a row for every kind of weights, in the forms of `Comparison.table`."""
        return table_of(form, [{"weights": n, **row.asdict()} for n, row in self.rows.items()])

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON; numbers that are not finite become None."""
        return text.plain({"tolerance": self.tolerance, "weights": self.rows})


@host_function
def weights_table(
    D: Dictionary,
    *,
    sparsity: int | None = None,
    bound: float = 1.0,
    noise: float = 0.0,
    tolerance: float = 1e-6,
    entries: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> WeightsTable:
    """The weights W = D, the closed form and the minimax weights in one table, in float64.

    `theory.in_float64` converts D to float64; all weights lie in the numerical range of D. No W has
    a smaller mu_W than the minimax weights. A smaller C_W or omega lowers the error bound that
    remains under noise; a smaller norm(W) gives a smaller bound on the steps for signals outside
    the class. The computation needs d x d arrays, as in `theory.generalized_coherence`.

    Args:
        D: (m, d), unit atoms.
        sparsity: s; by default the largest s that each kind of weights certifies.
        bound, noise: B and delta of the class.
        tolerance: the l1 error to reach.
        entries: if True, also include the weights of coherence mu~ whose largest entry is as small
            as possible (Definition 8). These weights take many times longer to compute.
        progress: as in `theory.generalized_coherence`.

    Returns:
        WeightsTable.

    Raises:
        TypeError: D is traced.
        ValueError: atoms are off unit norm, or sparsity is above d.

    Example:
        >>> rows = ur.analytic.weights_table(ur.dictionaries.identity_hadamard(4)).rows
        >>> {name: round(row.mu_W, 3) for name, row in rows.items()}
        {'W = D': 0.5, 'closed form': 0.5, 'minimax': 0.5}
    """
    D = dictionaries.as_dictionary(D, "weights_table")
    dictionaries.unit_atoms(D, "weights_table")
    with jax.enable_x64(True):
        D = theory.in_float64(D)
        coherence = theory.generalized_coherence(D, progress=progress)
        weights = {"W = D": D, "closed form": theory.frobenius_weights(D), "minimax": coherence.W}
        if entries:
            least = theory.minimal_entry_weights(D, coherence, progress=progress)
            weights["least entries"] = jnp.asarray(least.W)
        rows = {name: _row(D, W, sparsity, bound, noise, tolerance) for name, W in weights.items()}
    m, d = D.shape
    return WeightsTable(m, d, tolerance, coherence, rows, weights)


def _row(D, W, sparsity, bound, noise, tolerance) -> WeightsRow:
    certified = _certified(D, W, "weights_table")
    options: dict[str, Any] = dict(bound=1.0, depth=0, eta=certified.eta)

    def holds(s: int) -> bool:
        return theory.schedule(certified.mu_W, certified.C_W, sparsity=s, **options).holds

    most = theory.max_sparsity(certified.mu_W, D.shape[1])
    largest = next(s for s in range(most, -1, -1) if s == 0 or holds(s))  # `most` ignores eta
    s = largest if sparsity is None else sparsity
    with checks.quiet(HypothesisWarning):  # instead, the table has the field `holds`
        _, schedule = block_schedule(D, W, depth=1, sparsity=s, bound=bound, noise=noise)
    return WeightsRow(
        certified.mu_W,
        certified.C_W,
        certified.omega,
        float(dictionaries.spectral_norm(W)),
        largest,
        s,
        schedule.holds,
        schedule.contraction,
        schedule.rate,
        schedule.floor,
        schedule.steps_for(tolerance),  # type: ignore[union-attr]  # of a `Schedule`: ReLU
    )
