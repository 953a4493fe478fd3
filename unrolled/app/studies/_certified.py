"""The certified regime: measured errors and their bounds, for one layer and for a chain."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers, plots, problems, theory
from unrolled._base import checks
from unrolled._base.doors import Key, Result, checked
from unrolled._base.text import aligned, markdown
from unrolled.app.studies._steps import Say, silent
from unrolled.app.studies._study import Measured
from unrolled.dictionaries import Dictionary, as_dictionary
from unrolled.layers import Unrolled

__all__ = [
    "CertifiedChain",
    "CertifiedRegime",
    "CertifiedRun",
    "ChainRun",
    "certified_chain",
    "certified_regime",
]


_SIGNALS, _CHAIN_SIGNALS = 500, 200
_FAST_DEPTH = 40
_FAST, _SLOW = (4, 1), (8, 2)  # nonzeros of the two layers; layer 1 contracts fast, or slowly
_COLUMNS = (
    *("weights", "s", "mu_W", "contraction a", "holds", "steps to 1e-6", "largest s"),
    *("wrong entries", "largest error", "bound"),
)
_CHAIN_COLUMNS = (
    *("steps per layer", "certified bound", "corrected thresholds"),
    "thresholds of the printed proof",
)


class CertifiedRun(Result):
    """The guarantee of weights for s nonzeros, and the measured errors if the guarantee holds."""

    weights: str  # the kind of weights
    sparsity: int  # s, the number of nonzeros
    mu_W: float
    schedule: theory.Schedule  # thresholds and certified errors
    measured: np.ndarray  # largest l1 error, from step 0; empty without a guarantee
    wrong: int  # number of wrong entries, over all signals and steps

    @property
    def name(self) -> str:
        """The kind of weights, and s."""
        return f"{self.weights}, s = {self.sparsity}"


class CertifiedRegime(Measured):
    """The study of all kinds of weights, with the most nonzeros that theory certifies for each."""

    shape: tuple[int, ...]  # the shape of D
    depth: int  # K, the number of steps
    largest: dict[str, int]  # weights -> the most nonzeros that they certify
    common: int  # the most nonzeros that W = D or the closed form certifies
    runs: tuple[CertifiedRun, ...]  # empty if not even one nonzero is certified
    caption = "errors under their bounds, for the weights and the nonzeros of the table"

    def parts(self) -> list[str]:
        """The setting, and a table with a row for every run."""
        welch = theory.max_sparsity(theory.welch_bound(*self.shape), self.shape[1])
        return [
            "The same dictionary, and codes with nonzeros of magnitude at most 1. Theory certifies "
            f"at most {self.common} nonzeros for W = D and the closed form, and at most "
            f"{self.largest['minimax W']} for the minimax weights of the linear programs (by "
            f"Welch's bound, at most {welch} for any dictionary of this size). LISTA-CP with "
            f"thresholds from Theorem 12 runs {self.depth} steps on {_SIGNALS} signals in float64. "
            "Wrong entries are counted over all signals and steps.",
            "",
            markdown(_COLUMNS, map(self._row, self.runs)),
        ]

    def short(self) -> str:
        """A row for each run: the weights, their sparsities, and the errors under their bounds."""
        kept = [_COLUMNS.index(n) for n in ("weights", "s", *_COLUMNS[6:])]
        rows = [self._row(run) for run in self.runs]
        return aligned([_COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows])

    def _row(self, run: CertifiedRun) -> list[str]:
        schedule = run.schedule
        cells = [run.weights, str(run.sparsity), f"{run.mu_W:.4f}", f"{schedule.contraction:.3f}"]
        cells += [str(schedule.holds), f"{schedule.steps_for(1e-6):g}"]
        cells.append(str(self.largest[run.weights]))
        if not schedule.holds:
            return [*cells, "", "", ""]
        return [*cells, str(run.wrong), f"{run.measured[-1]:.2e}", f"{schedule.error[-1]:.2e}"]

    def answer(self) -> str:
        """The number of certified nonzeros, and whether the errors stay below their bounds."""
        largest = max(self.largest.values())
        inside = all(np.all(run.measured <= run.schedule.error) for run in self._holding())
        verdict = "stay below their bounds" if inside else "exceed a bound"
        return f"Theory certifies up to {largest} nonzeros; the measured errors {verdict}."

    def to_dict(self) -> dict[str, Any]:
        """The most nonzeros that each kind of weights certifies; errors and bounds of the runs."""
        curves = {
            run.name: {
                "sparsity": run.sparsity,
                "measured": run.measured,
                "bound": run.schedule.error,
            }
            for run in self._holding()
        }
        return {"largest_sparsity": self.largest, "curves": curves}

    def _holding(self) -> list[CertifiedRun]:
        return [run for run in self.runs if run.schedule.holds]

    def rows(self) -> tuple[list[str], list[list]]:
        """Header and rows of a table with errors and bounds after every step."""
        rows = [
            [run.weights, run.sparsity, k, e, b]
            for run in self._holding()
            for k, (e, b) in enumerate(zip(run.measured, run.schedule.error))
        ]
        return ["weights", "s", "step", "largest l1 error", "certified bound"], rows

    def figure(self) -> Any:
        """The errors and their bounds, with matplotlib."""
        lines = {run.name: (run.measured, run.schedule.error) for run in self._holding()}
        return plots.bound(lines, title=f"Largest l1 error of {_SIGNALS} signals and its bound")


@checked
def certified_regime(
    key: Key, D: Dictionary, *, depth: int = 100, say: Say = silent
) -> CertifiedRegime:
    """Measure errors and compare them with certified bounds, for codes in the certified class.

    LISTA-CP runs with W = D, the closed form and the minimax weights, on codes with the most
    nonzeros that W = D or the closed form certifies. With the minimax weights it also runs on codes
    with the most nonzeros that the minimax weights certify. The study runs in float64, on the host.

    Args:
        key: the key of the signals.
        D: a dictionary of shape (m, d), whose atoms the study normalises.
        depth: K, the number of steps.
        say: receives messages on the progress.

    Returns:
        CertifiedRegime, without runs if theory does not certify even one nonzero.

    Reference: Theorem 12 of the paper, as in `analytic.lista_cp`.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> study = ur.app.studies.certified_regime(jax.random.key(0), D, depth=20)
        >>> [(run.name, run.schedule.holds, run.wrong) for run in study.runs[:2]]
        [('W = D, s = 2', True, 0), ('closed-form W, s = 2', True, 0)]
        >>> bool((study.runs[0].measured <= study.runs[0].schedule.error).all())
        True
    """
    depth = checks.as_depth(depth, "depth", "certified_regime", least=1)
    with jax.enable_x64(True):
        D = as_dictionary(D, "certified_regime")
        wide = jnp.asarray(np.asarray(dictionaries.dense(D), np.float64))
        D = theory.in_float64(dictionaries.normalize(wide)[0], D.dtype)
        say("the certified regime: the linear programs of the minimax weights")
        weights = {
            "W = D": D,
            "closed-form W": theory.frobenius_weights(D),
            "minimax W": theory.generalized_coherence(D, only_maximum=True).W,
        }
        largest = {
            name: theory.max_sparsity(analytic.certified_weights(D, W).mu_W, D.shape[1])
            for name, W in weights.items()
        }
        # D and the closed form certify no more than the minimax weights.
        common, most = max(largest["W = D"], largest["closed-form W"]), largest["minimax W"]
        cases = [(name, common) for name in weights]
        cases += [("minimax W", most)] if most > common else []
        cases = [(name, s) for name, s in cases if s]
        if cases:
            numbers = ", ".join(map(str, sorted({s for _, s in cases})))
            say(f"the certified regime: s = {numbers}")
        runs = tuple(_certified_run(D, name, weights[name], s, depth, key) for name, s in cases)
    return CertifiedRegime(D.shape, depth, largest, common, runs)


def _certified_run(
    D: Dictionary, name: str, W: Dictionary, s: int, K: int, key: Key
) -> CertifiedRun:
    options: dict[str, Any] = dict(depth=K, sparsity=s, bound=1.0)
    certified, schedule = _quietly(analytic.block_schedule, D, W, **options)
    if not schedule.holds:
        return CertifiedRun(name, s, certified.mu_W, schedule, np.zeros(0), 0)
    X = problems.bounded(jax.random.fold_in(key, 2), (_SIGNALS, D.shape[1]), s, 1.0)
    params = _quietly(analytic.lista_cp, D, W=W, **options)
    run = _measured(params, D, problems.synthesize(D, X), X)
    return CertifiedRun(name, s, certified.mu_W, schedule, run.errors, run.wrong)


class _Measured(NamedTuple):
    codes: jax.Array  # (signals, d) after the last step
    errors: np.ndarray  # (K + 1,) the largest l1 error of a signal, from step 0
    wrong: int  # number of entries, over all steps, that are nonzero where the true code is zero


def _measured(params: Unrolled, D: Dictionary, Y: jax.Array, X: jax.Array) -> _Measured:
    """Run LISTA-CP on signals, and measure its codes after every step."""
    states, error = _start(D, Y, X)
    errors, counts = [error], []
    steps = jax.device_get(params.steps)
    for theta in steps.theta:
        p = steps._replace(theta=theta)
        states, error, wrong = _step(params.shared, p, D, Y, X, states)
        errors.append(error)
        counts.append(wrong)
    errors, counts = jax.device_get((errors, counts))
    return _Measured(states.x, np.asarray(errors), int(sum(counts)))


_LAYER = layers.lista_cp(1)  # a layer of any depth repeats this step


@jax.jit
def _start(D: Dictionary, Y: jax.Array, X: jax.Array) -> tuple[Any, jax.Array]:
    """The states before the first step, and the largest l1 error of a signal."""
    states = jax.vmap(partial(_LAYER.start, D))(Y)
    return states, _largest_error(states.x, X)


# A program of one step serves all depths; a scan would need a program for each depth.
@jax.jit
def _step(
    shared: Any, p: Any, D: Dictionary, Y: jax.Array, X: jax.Array, states: Any
) -> tuple[Any, jax.Array, jax.Array]:
    """The states after a step, the largest l1 error of a signal, and the count of wrong entries."""
    with jax.default_matmul_precision(_LAYER.precision):
        states = jax.vmap(partial(_LAYER.step, shared, p, D))(Y, states)
    wrong = ((states.x != 0) & (X == 0)).sum()
    return states, _largest_error(states.x, X), wrong


def _largest_error(x: jax.Array, X: jax.Array) -> jax.Array:
    return jnp.abs(x - X).sum(1).max()


def _quietly(function: Callable, *args: Any, **options: Any) -> Any:
    """The result of a function, without HypothesisWarning: the table shows what does not hold."""
    with checks.quiet(analytic.HypothesisWarning):
        return function(*args, **options)


# Chains


class ChainRun(Result):
    """The certified and the measured errors of a chain, layer by layer."""

    contractions: tuple[float, ...]  # the contraction of every layer
    measured: tuple[np.ndarray, ...]  # largest l1 error, from step 0
    bounds: tuple[np.ndarray, ...]  # certified errors, layer by layer
    wrong: int  # number of wrong entries
    printed: float  # largest l1 error of layer 2 with the thresholds of the printed proof


class CertifiedChain(Measured):
    """The study of a certified chain of two layers."""

    fast: ChainRun  # layer 1 contracts fast
    slow: dict[int, ChainRun]  # layer 1 contracts slowly; steps of each layer -> run
    caption = f"{_CHAIN_SIGNALS} signals, float64"

    def parts(self) -> list[str]:
        """The setting, the fast run, and a table of the slow runs."""
        fast = self.fast
        return [
            "y = D_1 x_1, x_1 = D_2 x_2 with D_1 = [I, Hadamard] (256 x 512) and a transversal "
            "design D_2 (512 x 700, 4 nonzeros per atom). The thresholds of layer 2 include the "
            "certified error of layer 1 (Theorem 6, corrected).",
            "",
            f"With {_FAST} nonzeros in the layers, the contractions are "
            f"({fast.contractions[0]:.3f}, {fast.contractions[1]:.3f}); after {_FAST_DEPTH} steps "
            f"each, the largest l1 errors of {_CHAIN_SIGNALS} signals are "
            f"{fast.measured[0][-1]:.1e} and {fast.measured[1][-1]:.1e} under bounds of "
            f"{fast.bounds[0][-1]:.1e} and {fast.bounds[1][-1]:.1e}, with {fast.wrong} wrong "
            "entries.",
            "",
            f"With {_SLOW} nonzeros, layer 1 contracts slowly (a = 0.94). With the thresholds of "
            "the printed proof, which assume the exact x_1, layer 2 diverges. The table has the "
            "largest l1 error of layer 2:",
            "",
            markdown(_CHAIN_COLUMNS, self._slow()),
        ]

    def short(self) -> str:
        """The bounds and the errors of layer 2 if layer 1 contracts slowly."""
        return aligned(_CHAIN_COLUMNS, self._slow())

    def _slow(self) -> list[list[str]]:
        return [
            [str(K), *(f"{e:.2e}" for e in (r.bounds[1][-1], r.measured[1][-1], r.printed))]
            for K, r in self.slow.items()
        ]

    def answer(self) -> str:
        """The certified and the measured error of the chain, in one sentence."""
        bound, error = self.fast.bounds[-1][-1], self.fast.measured[-1][-1]
        return (
            f"The chain is certified to an l1 error of {bound:.1e} after {_FAST_DEPTH} steps in "
            f"each layer; {error:.1e} was measured."
        )

    def to_dict(self) -> dict[str, Any]:
        """All runs as data."""
        return {"fast": self.fast, "slow": {str(K): run for K, run in self.slow.items()}}

    def _lines(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {f"layer {j + 1}": (self.fast.measured[j], self.fast.bounds[j]) for j in range(2)}

    def rows(self) -> tuple[list[str], list[list]]:
        """Header and rows of a table with errors and bounds of the fast run after every step."""
        rows = [
            [name, k, e, b]
            for name, (measured, bounds) in self._lines().items()
            for k, (e, b) in enumerate(zip(measured, bounds))
        ]
        return ["layer", "step", "largest l1 error", "certified bound"], rows

    def figure(self) -> Any:
        """The errors of the fast run and their bounds, with matplotlib."""
        title = f"Largest l1 error and its bound, {_FAST} nonzeros"
        return plots.bound(self._lines(), title=title)


@checked
def certified_chain(
    key: Key, *, depths: Sequence[int] = (20, 40, 80, 160), say: Say = silent
) -> CertifiedChain:
    """Run a certified chain of two layers, with corrected and with printed thresholds.

    D_1 = [I, Hadamard] is 256 x 512, D_2 is a transversal design of 512 x 700. The printed
    thresholds are from the proof in the paper. The study runs in float64.

    Args:
        key: the key of D_2 and of the signals.
        depths: numbers of steps of each layer, for the runs in which layer 1 contracts slowly.
        say: receives messages on the progress.

    Reference: Theorem 6 of the paper, corrected, as in `analytic.dsc`.

    Example:
        >>> study = ur.app.studies.certified_chain(jax.random.key(0), depths=(20,))
        >>> [bool((e <= b).all()) for e, b in zip(study.fast.measured, study.fast.bounds)]
        [True, True]
        >>> bool(study.slow[20].printed > study.slow[20].measured[1][-1])
        True
    """
    depths = checks.as_indices(depths, "depths", "certified_chain", least=1)
    say("a two-layer chain with certified bounds")
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.fold_in(key, 4), 3)
        D_1 = dictionaries.identity_hadamard(256)
        D_2 = dictionaries.transversal(keys[0], 4, 127, 700)
        D_2 = jnp.pad(D_2, ((0, 4), (0, 0)))  # 508 rows, to 512
        fast = _chain_run(D_1, D_2, _FAST, (_FAST_DEPTH, _FAST_DEPTH), keys[1])
        slow = {K: _chain_run(D_1, D_2, _SLOW, (K, K), keys[2]) for K in depths}
    return CertifiedChain(fast, slow)


def _chain_run(
    D_1: Dictionary,
    D_2: Dictionary,
    sparsities: tuple[int, int],
    depths: tuple[int, int],
    key: jax.Array,
) -> ChainRun:
    X_2 = problems.bounded(key, (_CHAIN_SIGNALS, D_2.shape[1]), sparsities[1], 1.0)
    X_1 = problems.synthesize(D_2, X_2)
    Y, bounds = problems.synthesize(D_1, X_1), (sparsities[1] / 2, 1.0)
    options: dict[str, Any] = dict(sparsities=sparsities, bounds=bounds, Ws=(D_1, D_2))
    _, schedules = analytic.chain_schedules((D_1, D_2), depths=depths, **options)
    params = analytic.dsc((D_1, D_2), depths=depths, **options)
    first = _measured(params[0], D_1, Y, X_1)
    second = _measured(params[1], D_2, first.codes, X_2)
    exact = analytic.lista_cp(D_2, depth=depths[1], sparsity=sparsities[1], bound=1.0, W=D_2)
    printed = _measured(exact, D_2, first.codes, X_2)
    return ChainRun(
        tuple(s.contraction for s in schedules),
        (first.errors, second.errors),
        tuple(s.error for s in schedules),
        first.wrong + second.wrong,
        float(printed.errors[-1]),
    )
