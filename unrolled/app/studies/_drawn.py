"""What is proved of codes that are drawn: signal by signal, and support by support."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled import analytic, layers, plots, problems, theory
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Key
from unrolled._base.text import markdown, screen, table_of
from unrolled.app.studies._steps import Say, silent
from unrolled.dictionaries import Dictionary, as_dictionary

__all__ = ["DRAWS", "DrawnProofs", "ProvedShare", "certify_drawn"]


DRAWS = 13_809  # all of so many are 99.9 % of the class, with the confidence of `exceedance`
_DEPTH = 40
_POWERS = {"closed form": 2.0, "3-norm": 3.0}  # weights -> the p of `frobenius_weights`
_LEFT_OUT = 0.01  # of the sample of a schedule
_RATIO = layers.alista_rt(1).ratio
_SUPPORT, _ANY_RATIO = f"alista_rt, ratio {_RATIO:g}", "alista_rt, some ratio below 1"
_OWN, _ONE = "alista, own thresholds", "alista, one schedule"
_COVERS = {
    _SUPPORT: "every code on the support",
    _ANY_RATIO: "every code on the support",
    _OWN: "the code, every sign pattern",
    _ONE: "the code, every sign pattern",
}


class ProvedShare(NamedTuple):
    """How many draws a statement proves, with one kind of weights."""

    weights: str  # their kind
    steps: str  # the layer, and what sets its thresholds
    proved: int  # of the draws
    share: float  # of the class at least, with the confidence of `theory.exceedance`


class DrawnProofs(NamedTuple):
    """What is proved of codes of one class that are drawn."""

    shape: tuple[int, ...]  # of D
    sparsity: int  # s, the nonzeros of a code
    bound: float  # B, of the entries of a code
    noise: float  # of a signal, in the l1 norm
    draws: int
    worst: dict[str, int]  # weights -> the most nonzeros that the worst case certifies
    rows: tuple[ProvedShare, ...]
    ratios: dict[str, np.ndarray]  # weights -> c(S) of every support
    bounds: dict[str, np.ndarray]  # weights, thresholds -> of all proved codes, from step 0

    def text(self) -> str:
        """The class, and a table, as text."""
        return "\n".join(self.parts())

    def parts(self) -> list[str]:
        """The class, and a row for the worst case and for every statement."""
        codes = f"{self.draws:,} codes with {self.sparsity} nonzeros on a random support"
        noise = ""
        if self.noise:
            noise = (
                f" Noise of l1 norm at most {self.noise:g} hides small nonzeros: of a code it is "
                "proved that no step takes a wrong entry and that the bound ends below where it "
                "began. The rows of alista_rt are without noise."
            )
        worst = ["worst case", "every code", *(f"s = {s}" for s in self.worst.values())]
        rows = [[steps, covers, *self._cells(steps)] for steps, covers in _COVERS.items()]
        return [
            f"Signal by signal: {codes}, uniform in [-{self.bound:g}, {self.bound:g}], drawn anew. "
            "In brackets is the share of the class that is proved at least, with confidence "
            f"1 - 1e-6.{noise}",
            "",
            markdown(["steps", "covers", *self.worst], [worst, *rows]),
        ]

    def _cells(self, steps: str) -> list[str]:
        return [
            f"{row.proved:,} ({100 * row.share:.2f} %)" for row in self.rows if row.steps == steps
        ]

    def answer(self) -> str:
        """The share that the best statement proves, beside the worst case."""
        best = max(self.rows, key=lambda row: row.proved)
        return (
            f"At {self.sparsity} nonzeros {best.proved:,} of {self.draws:,} codes are proved "
            f"({best.weights} weights, {best.steps}); the worst case ends at "
            f"{max(self.worst.values())}."
        )

    def __repr__(self) -> str:
        """The text, as it fits on a screen."""
        return screen(self.text().splitlines())

    def table(self, form: str = "markdown") -> Any:
        """A row for every statement, in the forms of `compare.Comparison.table`."""
        return table_of(form, [row._asdict() for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """The class, the worst case and the shares as data."""
        data = self._asdict()
        del data["ratios"], data["bounds"]
        return data | {"rows": [row._asdict() for row in self.rows]}

    def figure(self) -> Any:
        """The ratios of the supports, and the bounds of the codes, with matplotlib."""
        fig, panels = plots.figure(1, 2)
        left, right = panels[0]
        looks = plots.styles(self.ratios)
        for name, ratios in self.ratios.items():
            shares = np.arange(1, len(ratios) + 1) / len(ratios)
            left.plot(np.sort(ratios), shares, **looks[name] | dict(marker="", label=name))
        left.axvline(_RATIO, color="0.6", linewidth=1, zorder=0)
        title = f"Supports with c(S) at most c (line: {_RATIO:g})"
        left.set(title=title, xlabel="c", ylabel="share of the supports")
        left.set_xlim(right=min(1.25, left.get_xlim()[1]))
        left.legend(loc="upper left", frameon=False)
        title, ylabel = "What is proved of every proved code", "bound of the largest entry"
        lines: dict[str, Any] = {name: bound[1:] for name, bound in self.bounds.items()}
        plots.curves(right, lines, title=title, ylabel=ylabel, log=True)
        right.legend(loc="lower left", frameon=False)
        return fig

    def figures(self) -> dict[str, Callable[[], Any]]:
        """What a figure shows -> what draws it."""
        return {"the ratios of the supports, and the bounds of proved codes": self.figure}


@checked
def certify_drawn(
    key: Key,
    D: Dictionary,
    *,
    sparsity: int,
    draws: int = DRAWS,
    bound: float = 1.0,
    noise: float = 0.0,
    say: Say = silent,
) -> DrawnProofs:
    """What is proved of drawn codes, beside the worst case, for two kinds of weights.

    Of each support: whether `layers.alista_rt` finds every code on it (`theory.certify_supports`).
    Of each code: whether `layers.alista` with 40 steps finds it, with its own thresholds and with
    one schedule (`theory.certify_signals`, `analytic.from_sample`). The schedule is made from as
    many other codes, 1 % of which it may leave out. It runs in float64, on the host.

    Args:
        key: of the codes.
        D: (m, d) with unit atoms.
        sparsity: s, nonzeros of a code, at least 1.
        draws: the number of codes.
        bound: B; the nonzeros are uniform in [-B, B].
        noise: the l1 norm of the noise in a signal, at most.
        say: is told what is going on.

    Returns:
        DrawnProofs.

    Raises:
        ValueError: sparsity outside 1..d, no draws, atoms that are not of norm 1, or numbers out of
            range.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> study = ur.app.studies.certify_drawn(0, D, sparsity=2, draws=100)
        >>> study.worst["closed form"], study.rows[0].proved
        (2, 100)
    """
    where = "certify_drawn"
    s, draws = checks.as_sizes(where, sparsity=sparsity, draws=draws)
    with jax.enable_x64(True):
        D = as_dictionary(D, where)
        D = D if D.dtype == np.float64 else theory.in_float64(D)
        shape = (draws, D.shape[1])
        sample, fresh = (
            np.asarray(problems.bounded(part, shape, s, bound)) for part in jax.random.split(key)
        )
        supports = np.nonzero(fresh)[1].reshape(draws, s)
        layer = layers.alista(_DEPTH, support=(1, 1))
        worst: dict[str, int] = {}
        rows: list[ProvedShare] = []
        ratios: dict[str, np.ndarray] = {}
        bounds: dict[str, np.ndarray] = {}
        for name, power in _POWERS.items():
            say(f"signal by signal: {draws} codes, {name} weights")
            W = theory.frobenius_weights(D, power=power)
            worst[name] = theory.max_sparsity(analytic.certify(D, W).mu_W, D.shape[1])
            of = theory.certify_supports(W, D, supports)
            converges, ratios[name] = of.contraction < 1, of.ratio
            share = partial(_share, name)
            rows.append(share(_SUPPORT, (of.ratio <= _RATIO) & converges))
            rows.append(share(_ANY_RATIO, (of.ratio < 1) & converges))
            with checks.quiet(analytic.HypothesisWarning):  # the fresh codes say so
                params = analytic.from_sample(
                    layer, D, sample, noise=noise, W=W, leave_out=_LEFT_OUT
                )
            for steps in (_OWN, _ONE):
                proof = theory.certify_signals(
                    layer, params, D, fresh, noise=noise, own=steps == _OWN
                )
                errors = proof.errors
                proved = errors[:, -1] < errors[:, 0] if noise else proof.proved
                rows.append(share(steps, proved))
                if proved.any():
                    bounds[f"{name}, {steps.split(', ')[1]}"] = errors[proved].max(0)
    return DrawnProofs(
        D.shape, s, float(bound), float(noise), draws, worst, tuple(rows), ratios, bounds
    )


def _share(weights: str, steps: str, proved: Sequence[bool] | np.ndarray) -> ProvedShare:
    refused = 1.0 - np.asarray(proved)
    return ProvedShare(weights, steps, int(np.sum(proved)), 1 - theory.exceedance(refused, 0.5))
