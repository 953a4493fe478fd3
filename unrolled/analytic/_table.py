"""D, the closed form and the minimax weights side by side: what each of them certifies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled import theory
from unrolled._base import checks, text
from unrolled._base.programs import host_function
from unrolled._base.text import line, screen, table_of
from unrolled.analytic._schedules import CONTRACTS, HypothesisWarning, block_schedule, certify
from unrolled.dictionaries import Dictionary, Operator, as_dictionary, spectral_norm, unit_atoms


class WeightsRow(NamedTuple):
    """One kind of weights, and the schedule that they certify."""

    mu_W: float
    C_W: float
    omega: float  # max norm(w_i, 2)
    norm_W: float  # norm(W, 2), or an upper bound
    largest_sparsity: int  # the most nonzeros that they certify
    sparsity: int  # s, the nonzeros of this row
    holds: bool  # whether s is certified
    contraction: float  # a, factor of the error in a step
    rate: float  # -ln a
    floor: float  # the error that noise leaves
    steps: float  # to the tolerance


class WeightsTable(NamedTuple):
    """Kinds of weights of one dictionary side by side, with the weights themselves.

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
    rows: dict[str, WeightsRow]  # by kind of weights
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
        """The table, as it fits on a screen."""
        return screen(self.text().splitlines())

    def reasons(self) -> list[str]:
        """For all weights that do not reach the tolerance, which hypothesis fails at which number.

        a is the contraction, at least (2 s - 1) mu_W.
        """
        reasons = []
        for name, row in self.rows.items():
            if not row.holds and row.contraction < CONTRACTS:
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
        """A row for every kind of weights, in the forms of `compare.Comparison.table`."""
        return table_of(form, [{"weights": n, **row._asdict()} for n, row in self.rows.items()])

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON; those that are not finite become None."""
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
    """W = D, the closed form and the minimax weights side by side, in float64.

    D is taken to float64 by `theory.in_float64`: all weights are in its numerical range. No W has a
    smaller mu_W than the minimax one. A smaller C_W or omega lowers the floor under noise; a
    smaller norm(W) bounds a step outside the class. d x d by nature: `generalized_coherence`.

    Args:
        D: (m, d), unit atoms.
        sparsity: s; None takes the largest s that each kind of weights certifies.
        bound, noise: B and delta of the class.
        tolerance: the l1 error to reach.
        entries: also take the weights with the least largest entry at mu~ (Definition 8), which
            are many times slower to compute.
        progress: as in `theory.generalized_coherence`.

    Returns:
        WeightsTable.

    Raises:
        TypeError: a traced D.
        ValueError: atoms off unit norm, or sparsity above d.

    Example:
        >>> rows = ur.analytic.weights_table(ur.dictionaries.identity_hadamard(4)).rows
        >>> {name: round(row.mu_W, 3) for name, row in rows.items()}
        {'W = D': 0.5, 'closed form': 0.5, 'minimax': 0.5}
    """
    D = as_dictionary(D, "weights_table")
    unit_atoms(D, "weights_table")
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
    certified = certify(D, W)
    options: dict[str, Any] = dict(bound=1.0, depth=0, eta=certified.eta)

    def holds(s: int) -> bool:
        return theory.schedule(certified.mu_W, certified.C_W, sparsity=s, **options).holds

    most = theory.max_sparsity(certified.mu_W, D.shape[1])
    largest = next(s for s in range(most, -1, -1) if s == 0 or holds(s))  # eta counts, too
    s = largest if sparsity is None else sparsity
    with checks.quiet(HypothesisWarning):  # the table says whether it holds
        _, schedule = block_schedule(D, W, depth=1, sparsity=s, bound=bound, noise=noise)
    return WeightsRow(
        certified.mu_W,
        certified.C_W,
        certified.omega,
        float(spectral_norm(W)),
        largest,
        s,
        schedule.holds,
        schedule.contraction,
        schedule.rate,
        schedule.floor,
        schedule.steps_for(tolerance),  # type: ignore[union-attr]  # of a `Schedule`: ReLU
    )
