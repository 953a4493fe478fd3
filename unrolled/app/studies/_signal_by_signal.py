"""More nonzeros than the worst case covers, proved code by code and support by support."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers, problems, theory
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Key
from unrolled._base.text import markdown, screen, table_of
from unrolled.app.studies._steps import Say, silent
from unrolled.dictionaries import Dictionary, as_dictionary

__all__ = ["ProvedCodes", "ProvedRun", "proved_codes"]


_CODES, _TRIED = 150, 50  # that a share is of; supports that decide which sparsities are shown
_MOST_ATOMS = 1000  # products of all atoms are made in every step
_COLUMNS = ("method", "s", "proved", "wrong entries", "largest error after the last step")


class ProvedRun(NamedTuple):
    """What is proved of fresh codes with s nonzeros, and what the steps do to them."""

    method: str
    sparsity: int  # s, the nonzeros
    proved: float  # share of the codes
    wrong: int  # entries that are nonzero in the end where the true code is zero
    error: float  # the largest of an entry, of the codes that are proved; 0 without any


class ProvedCodes(NamedTuple):
    """The study of codes that are proved one by one, with more nonzeros than the worst case has."""

    worst: int  # the most nonzeros that the worst case covers, by D or the closed form
    codes: int  # fresh ones, and as many that set the thresholds
    depth: int  # K, the steps
    runs: tuple[ProvedRun, ...]  # empty where no more nonzeros are proved, or D is too large

    def text(self) -> str:
        """`parts` as Markdown."""
        return "\n".join(self.parts())

    def parts(self) -> list[str]:
        """What is shown, and a table with a row for every run."""
        if not self.runs:
            return []
        rows = [
            [r.method, str(r.sparsity), f"{r.proved:.1%}", str(r.wrong), f"{r.error:.1e}"]
            for r in self.runs
        ]
        return [
            f"Signal by signal: the worst case covers {self.worst} nonzeros with these weights, "
            "for every code. The same proof, carried through entry by entry, tells for one code "
            f"whether it is found. Shares of {self.codes} fresh codes with s Gaussian nonzeros, "
            f"{self.depth} steps, closed-form W, float64. `from_sample` sets one schedule of "
            f"thresholds by {self.codes} other codes; `alista_rt` has one number, and each proof "
            "is of all codes on a support.",
            "",
            markdown(_COLUMNS, rows),
        ]

    def answer(self) -> str:
        """The most nonzeros at which more than half of the codes are proved."""
        most = max((run.sparsity for run in self.runs if run.proved > 0.5), default=self.worst)
        return (
            f"The worst case covers {self.worst} nonzeros; signal by signal most codes with {most} "
            "are proved."
        )

    def __repr__(self) -> str:
        """The text, as it fits on a screen."""
        return screen(self.text().splitlines())

    def table(self, form: str = "markdown") -> Any:
        """The runs, in the forms of `compare.Comparison.table`."""
        return table_of(form, [run._asdict() for run in self.runs])

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return self._asdict()


@checked
def proved_codes(
    key: Key,
    D: Dictionary,
    *,
    sparsities: Sequence[int] | None = None,
    codes: int = _CODES,
    depth: int = 40,
    say: Say = silent,
) -> ProvedCodes:
    """Shares of fresh codes that are proved one by one, with more nonzeros than the worst case has.

    One row is of `analytic.from_sample` with `theory.certify_signals`, one of `layers.alista_rt`
    with `theory.certify_supports`. It runs in float64, on the host.

    Args:
        key: of the codes.
        D: (m, d), normalised here.
        sparsities: s of the rows; None for the largest at which nine supports in ten are proved,
            and the next one.
        codes: fresh ones, and as many that set the thresholds.
        depth: K, the steps.
        say: is told what is going on.

    Returns:
        ProvedCodes, without runs where nothing beyond the worst case is proved, or D has more than
        1,000 atoms.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 60, 100)
        >>> study = ur.app.studies.proved_codes(jax.random.key(1), D, sparsities=(3,), codes=50)
        >>> study.worst, [run.method for run in study.runs], study.runs[1].proved > 0.5
        (1, ['from_sample', 'alista_rt'], True)
    """
    where = "proved_codes"
    depth = checks.as_depth(depth, "depth", where, least=1)
    codes = checks.as_index(codes, "codes", where, least=1)
    if sparsities is not None:
        sparsities = checks.as_indices(sparsities, "sparsities", where, least=1)
    with jax.enable_x64(True):
        D = as_dictionary(D, where)
        wide = jnp.asarray(np.asarray(dictionaries.dense(D), np.float64))
        D = theory.in_float64(dictionaries.normalize(wide)[0], D.dtype)
        certified = analytic.certify(D)
        worst = theory.max_sparsity(certified.mu_W, D.shape[1])
        W = theory.frobenius_weights(D)
        if D.shape[1] > _MOST_ATOMS:
            return ProvedCodes(worst, codes, depth, ())
        if sparsities is None:
            sparsities = _reached(key, W, D, worst)
        if sparsities:
            say(f"signal by signal: s = {', '.join(map(str, sparsities))}")
        return ProvedCodes(worst, codes, depth, _runs(key, W, D, sparsities, codes, depth))


def _reached(key: Any, W: Any, D: Any, worst: int) -> tuple[int, ...]:
    """The largest sparsity at which nine supports in ten are proved, and the next one."""
    s = worst + 1
    while s < D.shape[0] and np.mean(_are_proved(W, D, _drawn(key, D, _TRIED, s))) >= 0.9:
        s += 1
    return (s - 1, s) if s > worst + 1 else ()


def _drawn(key: Any, D: Any, n: int, s: int) -> np.ndarray:
    """n codes with s Gaussian nonzeros."""
    rng, X = (
        np.random.default_rng([*jax.random.key_data(key).tolist(), s]),
        np.zeros((n, D.shape[1])),
    )
    supports = np.argsort(rng.random(X.shape), axis=1)[:, :s]
    np.put_along_axis(X, supports, rng.standard_normal((n, s)), axis=1)
    return X


def _are_proved(W: Any, D: Any, X: np.ndarray, ratio: float = 0.95) -> np.ndarray:
    """Whether the steps of `alista_rt` find every code on the support of each code."""
    s = np.count_nonzero(X[0])
    of = theory.certify_supports(W, D, np.argsort(X == 0, axis=1, kind="stable")[:, :s])
    return (of.ratio <= ratio) & (of.contraction < 1)


def _runs(
    key: Any, W: Any, D: Any, sparsities: Sequence[int], codes: int, depth: int
) -> tuple[ProvedRun, ...]:
    """Both methods at every sparsity; each runs once, on the codes of all sparsities."""
    scheduled, taking = layers.alista(depth, support=(1, 1)), layers.alista_rt(depth, ratio=0.999)
    params = taking.from_weights(None, W, D)
    proofs: list[Any] = []
    for s in sparsities:
        sample, fresh = np.split(_drawn(key, D, 2 * codes, s), 2)
        with checks.quiet(analytic.HypothesisWarning):
            schedule = analytic.from_sample(scheduled, D, sample, W=W)
        proved = theory.certify_signals(scheduled, schedule, D, fresh).proved
        reached = _found(scheduled, schedule, D, fresh)
        proofs.append(_run("from_sample", s, proved, fresh, reached))
        proved = _are_proved(W, D, fresh, taking.ratio)
        proofs.append(_run("alista_rt", s, proved, fresh, _found(taking, params, D, fresh)))
    return tuple(proofs)


def _run(method: str, s: int, proved: np.ndarray, X: np.ndarray, x: np.ndarray) -> ProvedRun:
    errors = np.abs(x - X).max(1)[proved]
    wrong = int(((x != 0) & (X == 0)).sum())
    return ProvedRun(method, s, float(proved.mean()), wrong, float(errors.max(initial=0.0)))


@partial(jax.jit, static_argnums=0)
def _codes(layer: Any, params: Any, D: Any, Y: Any) -> Any:
    return jax.vmap(layer.apply, (None, None, 0))(params, D, Y)


def _found(layer: Any, params: Any, D: Any, X: np.ndarray) -> np.ndarray:
    """The codes that a layer finds of the signals D x."""
    return np.asarray(_codes(layer, params, D, problems.synthesize(D, jnp.asarray(X))))
