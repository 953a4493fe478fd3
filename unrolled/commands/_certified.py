"""The regime of the theory: measured errors under certified bounds, for a block and a chain."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers, networks, plots, problems, theory
from unrolled.commands._console import Say
from unrolled.commands._report import Section
from unrolled.commands._settings import Settings
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled

_SIGNALS, _CHAIN_SIGNALS = 500, 200
_DEPTH, _QUICK_DEPTH = 100, 60
_CHAIN_DEPTHS, _QUICK_CHAIN_DEPTHS = (20, 40, 80, 160), (40,)  # of both layers
_FAST_DEPTH = 40
_FAST, _SLOW = (4, 1), (8, 2)  # nonzeros of the two layers; layer 1 contracts fast, or slowly
_ROW = "| {} | {} | {:.4f} | {:.3f} | {} | {:g} | {} |"


def certified_regime(D: Dictionary, settings: Settings, say: Say) -> Section | None:
    """Measured errors under the certified bounds, for codes as sparse as the theory admits.

    All weights run at the most nonzeros that D and the closed form certify, and the minimax weights
    also at their own. It runs in float64. None where not even one nonzero is certified.
    """
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(dictionaries.dense(D), np.float64))
        D = theory.in_float64(dictionaries.normalize(wide)[0], D.dtype)
        say("the certified regime: the linear programs of the minimax weights")
        weights = {
            "W = D": D,
            "closed-form W": theory.frobenius_weights(D),
            "minimax W": theory.generalized_coherence(D, only_maximum=True).W,
        }
        largest = {
            name: theory.max_sparsity(analytic.certify(D, W).mu_W, D.shape[1])
            for name, W in weights.items()
        }
        # D and the closed form certify no more than the minimax weights.
        common, most = max(largest["W = D"], largest["closed-form W"]), largest["minimax W"]
        cases = [(name, common) for name in weights]
        cases += [("minimax W", most)] if most > common else []
        cases = [(name, s) for name, s in cases if s]
        if not cases:
            return None
        say(f"the certified regime: s = {', '.join(map(str, sorted({s for _, s in cases})))}")
        K = _QUICK_DEPTH if settings.quick else _DEPTH
        runs = [_certified_run(D, name, weights[name], s, K, settings.key) for name, s in cases]
    welch = theory.max_sparsity(theory.welch_bound(*D.shape), D.shape[1])
    text = [
        f"The same dictionary with nonzeros of magnitude at most 1, as many as are certified: "
        f"{common} by D and the closed form, {most} by the minimax weights of the linear "
        f"programs (Welch's bound allows no dictionary of this size more than {welch}). LISTA-CP "
        f"with thresholds from Theorem 12, {_SIGNALS} signals, {K} steps, float64; wrong entries "
        "are counted over all signals and steps.",
        "",
        "| weights | s | mu_W | contraction a | holds | steps to 1e-6 | largest s "
        "| wrong entries | largest error | bound |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(run.row(largest[run.weights]) for run in runs),
    ]
    held = {f"{run.weights}, s = {run.sparsity}": run for run in runs if run.schedule.holds}
    rows = [
        [run.weights, run.sparsity, k, e, b]
        for run in held.values()
        for k, (e, b) in enumerate(zip(run.measured, run.schedule.error))
    ]
    title = "The regime that the theory certifies"
    draw = partial(
        plots.bound,
        {name: (run.measured, run.schedule.error) for name, run in held.items()},
        title=f"Largest l1 error of {_SIGNALS} signals and its bound",
    )
    caption = f"{title}: errors under their bounds, for the weights and the nonzeros of the table"
    header = ["weights", "s", "step", "largest l1 error", "certified bound"]
    curves = {
        name: {"sparsity": run.sparsity, "measured": run.measured, "bound": run.schedule.error}
        for name, run in held.items()
    }
    data = {"largest_sparsity": largest, "curves": curves}
    return Section(title, "certified", "\n".join(text), {caption: draw}, (header, rows), data)


class _Run(NamedTuple):
    """What theory certifies of weights for s nonzeros, and what was measured if it holds."""

    weights: str
    sparsity: int
    mu_W: float
    schedule: Any
    measured: np.ndarray  # largest l1 error, from step 0; of length 0 where nothing holds
    wrong: int

    def row(self, largest: int) -> str:
        """The row of the table."""
        schedule, steps = self.schedule, self.schedule.steps_for(1e-6)
        told = (self.mu_W, schedule.contraction, schedule.holds, steps, largest)
        row = _ROW.format(self.weights, self.sparsity, *told)
        if not schedule.holds:
            return row + " | | |"
        return row + f" {self.wrong} | {self.measured[-1]:.2e} | {schedule.error[-1]:.2e} |"


def _certified_run(D: Dictionary, name: str, W: Dictionary, s: int, K: int, key: jax.Array) -> _Run:
    options: dict[str, Any] = dict(depth=K, sparsity=s, bound=1.0)
    certified, schedule = _quietly(analytic.block_schedule, D, W, **options)
    if not schedule.holds:
        return _Run(name, s, certified.mu_W, schedule, np.zeros(0), 0)
    X = problems.bounded(jax.random.fold_in(key, 2), (_SIGNALS, D.shape[1]), s, 1.0)
    params = _quietly(analytic.lista_cp, D, W=W, **options)
    found = _iterates(layers.lista_cp(K), params, D, problems.synthesize(D, X))
    return _Run(name, s, certified.mu_W, schedule, *_errors(found, X))


@partial(jax.jit, static_argnames="layer")
def _iterates(layer: Layer, params: Unrolled, D: Dictionary, Y: jax.Array) -> jax.Array:
    """The codes (K, signals, d) after every step."""
    return jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y)


def _errors(iterates: jax.Array, X: jax.Array) -> tuple[np.ndarray, int]:
    """The largest l1 error of a signal at steps 0..K, and the count of wrong entries in all steps.

    A wrong entry is nonzero where the code X is zero.
    """
    start = jnp.abs(X).sum(1).max()[None]
    measured = jnp.concatenate([start, jnp.abs(iterates - X[None]).sum(2).max(1)])
    return np.asarray(measured), int(((iterates != 0) & (X == 0)[None]).sum())


def _quietly(function: Callable, *args: Any, **options: Any) -> Any:
    """The result of a function whose hypotheses may fail, which the table says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", analytic.HypothesisWarning)
        return function(*args, **options)


def chain(settings: Settings, say: Say) -> Section:
    """A certified chain of two layers, with corrected thresholds and those of the printed proof.

    It runs in float64.
    """
    say("a two-layer chain with certified bounds")
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.fold_in(settings.key, 4), 3)
        D_1 = dictionaries.identity_hadamard(256)
        D_2 = dictionaries.transversal(keys[0], 4, 127, 700)
        D_2 = jnp.pad(D_2, ((0, 4), (0, 0)))  # 508 rows, to 512
        fast = _chain_run(D_1, D_2, _FAST, (_FAST_DEPTH, _FAST_DEPTH), keys[1])
        depths = _QUICK_CHAIN_DEPTHS if settings.quick else _CHAIN_DEPTHS
        slow = {K: _chain_run(D_1, D_2, _SLOW, (K, K), keys[2]) for K in depths}
    text = [
        "y = D_1 x_1, x_1 = D_2 x_2 with D_1 = [I, Hadamard] (256 x 512) and D_2 a transversal "
        "design (512 x 700, 4 nonzeros per atom). The certified error of layer 1 enters the "
        "thresholds of layer 2 (Theorem 6, corrected).",
        "",
        f"With {_FAST} nonzeros the contractions are "
        f"({fast.contractions[0]:.3f}, {fast.contractions[1]:.3f}); after {_FAST_DEPTH} steps "
        f"each, the largest l1 errors of {_CHAIN_SIGNALS} signals are "
        f"{fast.measured[0][-1]:.1e} and {fast.measured[1][-1]:.1e} under bounds of "
        f"{fast.bounds[0][-1]:.1e} and {fast.bounds[1][-1]:.1e}, with {fast.wrong} wrong entries.",
        "",
        f"With {_SLOW} nonzeros layer 1 contracts slowly (a = 0.94). The printed proof runs layer "
        "2 with thresholds made for the exact x_1; it diverges. Largest l1 error of layer 2:",
        "",
        "| steps per layer | certified bound | corrected thresholds "
        "| thresholds of the printed proof |",
        "|---|---|---|---|",
        *[
            f"| {K} | {r.bounds[1][-1]:.2e} | {r.measured[1][-1]:.2e} | {r.printed:.2e} |"
            for K, r in slow.items()
        ],
    ]
    lines = {f"layer {j + 1}": (fast.measured[j], fast.bounds[j]) for j in range(2)}
    rows = [
        [name, k, e, b]
        for name, (measured, bounds) in lines.items()
        for k, (e, b) in enumerate(zip(measured, bounds))
    ]
    header = ["layer", "step", "largest l1 error", "certified bound"]
    title = "A two-layer chain with certified bounds"
    draw = partial(plots.bound, lines, title=f"Largest l1 error and its bound, {_FAST} nonzeros")
    figures = {f"{title}: {_CHAIN_SIGNALS} signals, float64": draw}
    data = {"fast": fast, "slow": {str(K): r for K, r in slow.items()}}
    return Section(title, "chain", "\n".join(text), figures, (header, rows), data)


class _Chain(NamedTuple):
    """What a chain was certified to do, and what it did, layer by layer."""

    contractions: tuple[float, ...]
    measured: tuple[np.ndarray, ...]  # largest l1 error, from step 0
    bounds: tuple[np.ndarray, ...]
    wrong: int
    printed: float  # largest l1 error of layer 2 with the thresholds of the printed proof


def _chain_run(
    D_1: Dictionary,
    D_2: Dictionary,
    sparsities: tuple[int, int],
    depths: tuple[int, int],
    key: jax.Array,
) -> _Chain:
    X_2 = problems.bounded(key, (_CHAIN_SIGNALS, D_2.shape[1]), sparsities[1], 1.0)
    X_1 = problems.synthesize(D_2, X_2)
    Y, bounds = problems.synthesize(D_1, X_1), (sparsities[1] / 2, 1.0)
    options: dict[str, Any] = dict(sparsities=sparsities, bounds=bounds, Ws=(D_1, D_2))
    _, schedules = analytic.chain_schedules((D_1, D_2), depths=depths, **options)
    params = analytic.dsc((D_1, D_2), depths=depths, **options)
    first, second = (layers.lista_cp(K) for K in depths)
    run = jax.jit(networks.dsc((first, second)).apply)
    codes = jax.vmap(run, (None, None, 0))(params, (D_1, D_2), Y)
    iterates = [
        _iterates(layer, p, D, y)
        for layer, p, D, y in zip((first, second), params, (D_1, D_2), (Y, codes[0]))
    ]
    measured, wrong = zip(*(_errors(x, X) for x, X in zip(iterates, (X_1, X_2))))
    exact = analytic.lista_cp(D_2, depth=depths[1], sparsity=sparsities[1], bound=1.0, W=D_2)
    printed = jax.jit(jax.vmap(second.apply, (None, None, 0)))(exact, D_2, codes[0])
    return _Chain(
        tuple(s.contraction for s in schedules),
        measured,
        tuple(s.error for s in schedules),
        sum(wrong),
        float(jnp.abs(printed - X_2).sum(1).max()),
    )
