"""Proofs of drawn codes: signal by signal, and support by support."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers, plots, problems, theory
from unrolled._base import checks
from unrolled._base.doors import Key, Result, checked
from unrolled._base.text import markdown, table_of
from unrolled.app.studies._steps import Say, silent
from unrolled.app.studies._study import Study
from unrolled.dictionaries import Dictionary, as_dictionary, block_of

__all__ = ["DrawnProofs", "ProvedShare", "certify_drawn"]


# If all of this many draws are proved, so are 99.9 % of the codes of the class, with the confidence
# of `theory.exceedance`.
DRAWS = 13_809
_POWERS = {"closed form": 2.0, "3-norm": 3.0}  # weights -> the p of `frobenius_weights`
_LEFT_OUT = 0.01  # the share of a sample that a schedule may leave out
_SCHEDULED, _TAKING = layers.alista(40, support=(1, 1)), layers.alista_rt(40)
_SUPPORT, _ANY_RATIO = f"alista_rt, ratio {_TAKING.ratio:g}", "alista_rt, some ratio below 1"
_OWN, _ONE = "alista, own thresholds", "alista, one schedule"
_COVERS = {
    _SUPPORT: "every code on the support",
    _ANY_RATIO: "every code on the support",
    _OWN: "the code, every sign pattern",
    _ONE: "the code, every sign pattern",
}
# By default the study takes the largest s with proofs for a share _MOST or more of _TRIED supports.
_TRIED, _MOST = 50, 0.9


class ProvedShare(Result):
    """The number of drawn codes for which one statement is proved, with one kind of weights."""

    weights: str  # the kind of weights
    sparsity: int  # s, the number of nonzeros of a code
    steps: str  # the layer, and how its thresholds are set
    proved: int  # number of draws with a proof
    share: float  # lower bound, by `theory.exceedance`, on the share of the class with a proof
    error: float | None = None  # largest error of an entry of a proved code, after the steps


class DrawnProofs(Study):
    """The proofs of drawn codes, for one sparsity or for several."""

    shape: tuple[int, ...]  # the shape of D
    sparsities: tuple[int, ...]  # s, the numbers of nonzeros of a code
    bound: float  # B, the largest magnitude of an entry of a code
    noise: float  # the largest l1 norm of the noise in a signal
    draws: int  # number of codes of every sparsity
    worst: dict[str, int]  # weights -> the most nonzeros that the worst case certifies
    rows: tuple[ProvedShare, ...]  # empty if nothing beyond the worst case is proved
    ratios: dict[str, np.ndarray]  # weights, s -> c(S) of every support
    bounds: dict[str, np.ndarray]  # weights, s, thresholds -> bounds of proved codes, from step 0
    # The number of entries of a part. If a part has several entries, sparsities, bound and errors
    # refer to parts, and the noise is measured in the l2 norm.
    block: int = 1
    caption = "the ratios of the supports, and the bounds of proved codes"

    def parts(self) -> list[str]:
        """The class of codes, and a table of the worst case and statements; empty without rows."""
        if not self.rows:
            return []
        counts = " or ".join(map(str, self.sparsities))
        single = self.block == 1
        codes = f"{self.draws:,} new codes with {counts} nonzeros on a random support"
        values = f"values uniform in [-{self.bound:g}, {self.bound:g}]"
        if not single:
            codes = (
                f"{self.draws:,} new codes with {counts} parts of {self.block} on a random support"
            )
            values = f"sizes uniform in [0, {self.bound:g}]"
        noise = measured = ""
        if self.noise:
            norm, small = ("l1", "nonzeros") if single else ("l2", "parts")
            noise = (
                f" Noise of {norm} norm at most {self.noise:g} hides small {small}: a proof says "
                "that no step takes a wrong entry and that the final bound is below the initial "
                "bound. The rows of alista_rt assume no noise."
            )
        errors = [row.error for row in self.rows if row.error is not None]
        if errors:
            measured = (
                " After the steps, which ran on these codes without noise, the error of every "
                f"{'entry' if single else 'part'} of a proved code is at most {max(errors):.1e}."
            )
        columns = [(name, s) for name in self.worst for s in self.sparsities]
        worst = ["worst case", "every code", *(f"s = {self.worst[name]}" for name, _ in columns)]
        rows = [[steps, covers, *self._cells(steps)] for steps, covers in _COVERS.items()]
        return [
            f"Proofs signal by signal, for {codes}, with {values}. In brackets is a lower bound on "
            f"the share of the class with a proof, with confidence 1 - 1e-6.{noise}{measured}",
            "",
            markdown(
                ["steps", "covers", *(f"{name}, s = {s}" for name, s in columns)], [worst, *rows]
            ),
        ]

    def _cells(self, steps: str) -> list[str]:
        return [
            f"{row.proved:,} ({100 * row.share:.2f} %)" for row in self.rows if row.steps == steps
        ]

    def answer(self) -> str:
        """How many drawn codes are proved, at the largest s with a proof for over half of them."""
        worst = max(self.worst.values())
        if not self.rows:
            return (
                "Signal by signal, nothing is proved beyond the worst case, which ends at "
                f"{worst} nonzeros."
            )
        best = max(
            self.rows, key=lambda row: (row.sparsity * (2 * row.proved > self.draws), row.proved)
        )
        return (
            f"At {best.sparsity} nonzeros {best.proved:,} of {self.draws:,} codes are proved "
            f"({best.weights} weights, {best.steps}); the worst case ends at {worst} nonzeros."
        )

    def table(self, form: str = "markdown") -> Any:
        """A row for every statement, in the forms of `comparison.Comparison.table`."""
        return table_of(form, [row.asdict() for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """The class of the codes, the worst case and the proved shares as data."""
        data = self.asdict()
        del data["ratios"], data["bounds"]
        return data | {"rows": [row.asdict() for row in self.rows]}

    def figure(self) -> Any:
        """The ratios of the supports, and the bounds on the errors of codes, with matplotlib."""
        fig, panels = plots.figure(1, 2)
        left, right = panels[0]
        looks = plots.styles(self.ratios)
        for name, ratios in self.ratios.items():
            shares = np.arange(1, len(ratios) + 1) / len(ratios)
            left.plot(np.sort(ratios), shares, **looks[name] | dict(marker="", label=name))
        left.axvline(_TAKING.ratio, color="0.6", linewidth=1, zorder=0)
        title = f"Supports with c(S) at most c (line: {_TAKING.ratio:g})"
        left.set(title=title, xlabel="ratio c(S)", ylabel="share of the supports")
        left.set_xlim(right=min(1.25, left.get_xlim()[1]))
        left.legend(loc="upper left", frameon=False)
        title, ylabel = "Proved bound on the error of the codes", "bound on the error of an entry"
        lines: dict[str, Any] = {name: bound[1:] for name, bound in self.bounds.items()}
        plots.curves(right, lines, title=title, ylabel=ylabel, log=True)
        right.legend(loc="lower left", frameon=False)
        return fig


@checked
def certify_drawn(
    key: Key,
    D: Dictionary,
    *,
    sparsity: int | Sequence[int] | None = None,
    draws: int = DRAWS,
    bound: float = 1.0,
    noise: float = 0.0,
    weights: Sequence[str] | None = None,
    measured: bool = False,
    say: Say = silent,
) -> DrawnProofs:
    """Count the drawn codes that are proved, next to the worst case, for some kinds of weights.

    For each support, the study tries to prove that `layers.alista_rt` finds every code on the
    support (`theory.certify_supports`). For each code, the study tries to prove that
    `layers.alista` with 40 steps finds the code, first with thresholds for this code, then with one
    schedule for all codes (`theory.certify_signals`, `analytic.from_sample`). The schedule comes
    from a sample of `draws` other codes, and may leave out 1 % of the sample. The study runs in
    float64, on the host.

    Args:
        key: the key of the codes.
        D: a dictionary of shape (m, d), whose atoms the study normalises.
        sparsity: s, the number of nonzeros, or nonzero parts, of a code, at least 1; or several
            such numbers. If None, the study takes the largest s above the worst case at which nine
            supports in ten are proved, and s + 1; if there is no such s, it makes no proofs.
        draws: the number of codes of every sparsity.
        bound: B > 0; the nonzeros are uniform in [-B, B]. Parts have sizes uniform in [0, B] and
            random directions.
        noise: the largest l1 norm of the noise in a signal; the l2 norm if codes come in parts.
        weights: kinds of weights, "closed form" and "3-norm", the p = 2 and p = 3 of
            `theory.frobenius_weights`; if None, both kinds, or only "closed form" if codes come in
            parts.
        measured: if True, also run the steps on the codes, without noise.
        say: receives messages on the progress.

    Returns:
        DrawnProofs.

    Raises:
        TypeError: a sparsity is not an integer.
        ValueError: a sparsity is outside 1..d, draws is 0, a kind of weights is unknown, an atom is
            zero, or a number is out of range.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> study = ur.app.studies.certify_drawn(0, D, sparsity=2, draws=100)
        >>> study.worst["closed form"], study.rows[0].proved
        (2, 100)
    """
    where = "certify_drawn"
    (draws,) = checks.as_sizes(where, draws=draws)
    if not checks.as_number(bound, "bound", where) > 0:
        raise ValueError(f"{where}: bound must be positive, got {bound!r}")
    sparsities: tuple[int, ...] | None = None
    if sparsity is not None:
        several = sparsity if np.ndim(sparsity) else (sparsity,)
        sparsities = checks.as_indices(several, "sparsity", where, least=1)
    weights = _kinds(weights, D, where)
    with jax.enable_x64(True):
        D = as_dictionary(D, where)
        D = theory.in_float64(dictionaries.normalize(checks.cast(D, np.float64))[0], D.dtype)
        g = block_of(D)
        Ws = {name: theory.frobenius_weights(D, power=_POWERS[name]) for name in weights}
        worst = {
            name: theory.max_sparsity(analytic.certified_weights(D, W).mu_W, D.shape[1] // g)
            for name, W in Ws.items()
        }
        draw = partial(_drawn, key, (2 * draws, D.shape[1] // g, g), bound)
        if sparsities is None:
            first = weights[0]
            sparsities = _reached(Ws[first], D, worst[first], min(draws, _TRIED), draw)
        rows: list[ProvedShare] = []
        ratios: dict[str, np.ndarray] = {}
        bounds: dict[str, np.ndarray] = {}
        for name, W in Ws.items():
            for s in sparsities:
                say(f"signal by signal: {draws} codes with {s} nonzeros, {name} weights")
                sample, fresh = np.split(draw(s), 2)
                share = partial(_share, name, s)
                of = f"{name}, s = {s}"
                proved, any_ratio, ratios[of] = _on_supports(W, D, fresh, s)
                params = _TAKING.from_weights(None, W, D)
                errors = _errors(_TAKING, params, D, fresh) if measured else None
                rows += [share(_SUPPORT, proved, errors), share(_ANY_RATIO, any_ratio)]
                params = _schedule(D, W, sample, noise)
                errors = _errors(_SCHEDULED, params, D, fresh) if measured else None
                for steps in (_OWN, _ONE):
                    own = steps == _OWN
                    proof = theory.certify_signals(
                        _SCHEDULED, params, D, fresh, noise=noise, own=own
                    )
                    ends = proof.errors[:, -1] < proof.errors[:, 0]
                    proved = ends if noise else proof.proved
                    rows.append(share(steps, proved, None if own else errors))
                    if proved.any():
                        bounds[f"{of}, {steps.split(', ')[1]}"] = proof.errors[proved].max(0)
    asked = D.shape, sparsities, float(bound), float(noise), draws
    return DrawnProofs(*asked, worst, tuple(rows), ratios, bounds, g)


def _kinds(weights: Sequence[str] | None, D: Dictionary, where: str) -> Sequence[str]:
    """The kinds of weights that are asked for, or all kinds that D allows."""
    if weights is None:
        return tuple(_POWERS) if block_of(D) == 1 else tuple(_POWERS)[:1]
    if not weights or not set(weights) <= set(_POWERS):
        raise ValueError(f"{where}: expected some weights of {', '.join(_POWERS)}, got {weights!r}")
    return weights


def _drawn(key: Any, shape: tuple[int, int, int], bound: float, s: int) -> np.ndarray:
    """Codes with s nonzero entries or parts: one half for the schedule, one half for the count."""
    key = jax.random.fold_in(key, s)
    X = np.asarray(problems.bounded(key, shape[:2], s, bound))
    if shape[2] == 1:
        return X
    v = np.asarray(jax.random.normal(jax.random.fold_in(key, 0), shape, float))
    v = v / np.linalg.norm(v, axis=2, keepdims=True)
    return (np.abs(X)[:, :, None] * v).reshape(len(X), -1)


def _sizes(D: Any, X: np.ndarray) -> np.ndarray:
    """The sizes of the parts of codes; a part may be a single entry."""
    return np.linalg.norm(X.reshape(len(X), -1, block_of(D)), axis=2)


def _reached(
    W: Any, D: Any, worst: int, tried: int, draw: Callable[[int], np.ndarray]
) -> tuple[int, ...]:
    """The last s above the worst case with a proved share of at least `_MOST`, and s + 1."""
    s = worst
    while (
        s + 1 < D.shape[0] // block_of(D)
        and _on_supports(W, D, draw(s + 1)[:tried], s + 1)[0].mean() >= _MOST
    ):
        s += 1
    return (s, s + 1) if s > worst else ()


def _schedule(D: Any, W: Any, sample: np.ndarray, noise: float) -> Any:
    """The params whose thresholds prove that the layer finds the codes of a sample."""
    with checks.quiet(analytic.HypothesisWarning):  # the count shows a failure
        return analytic.from_sample(_SCHEDULED, D, sample, noise=noise, W=W, leave_out=_LEFT_OUT)


def _on_supports(W: Any, D: Any, X: np.ndarray, s: int) -> tuple[np.ndarray, ...]:
    """Whether `alista_rt` is proved to find all codes on each support, with its own ratio and with
    some ratio below 1; and the ratios c(S).
    """
    of = theory.certify_supports(W, D, np.nonzero(_sizes(D, X))[1].reshape(len(X), s))
    converges = of.contraction < 1
    return (of.ratio <= _TAKING.ratio) & converges, (of.ratio < 1) & converges, of.ratio


@partial(jax.jit, static_argnums=0)
def _codes(layer: Any, params: Any, D: Any, X: Any) -> Any:
    return jax.vmap(layer.apply, (None, None, 0))(params, D, problems.synthesize(D, X))


def _errors(layer: Any, params: Any, D: Any, X: np.ndarray) -> np.ndarray:
    """The largest error of a part, for each code that a layer computes from the signals D x."""
    return _sizes(D, np.asarray(_codes(layer, params, D, jnp.asarray(X))) - X).max(1)


def _share(
    weights: str, s: int, steps: str, proved: np.ndarray, errors: np.ndarray | None = None
) -> ProvedShare:
    refused, error = 1.0 - proved, None
    if errors is not None and proved.any():
        error = float(errors[proved].max())
    share = 1 - theory.exceedance(refused, 0.5)
    return ProvedShare(weights, s, steps, int(proved.sum()), share, error)
