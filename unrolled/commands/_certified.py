"""The regime of the theory: measured errors under certified bounds, for a block and a chain."""

import warnings
from collections.abc import Callable
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
_ROW = "| {} | {:.4f} | {:.3f} | {} | {:g} | {} |"


def certified_regime(D: Dictionary, settings: Settings, say: Say) -> Section | None:
    """Measured errors under the certified bounds, for codes as sparse as the theory admits.

    It runs in float64. None where not even one nonzero is certified.
    """
    with jax.enable_x64(True):
        D, _ = dictionaries.normalize(jnp.asarray(np.asarray(dictionaries.dense(D), np.float64)))
        weights = {"W = D": D, "closed-form W": theory.frobenius_weights(D)}
        numbers = {name: analytic.certify(D, W) for name, W in weights.items()}
        best = min(numbers, key=lambda name: numbers[name].mu_W)
        s = theory.max_sparsity(numbers[best].mu_W, D.shape[1])
        if s < 1:
            return None
        say(f"the certified regime: s = {s}")
        K = _QUICK_DEPTH if settings.quick else _DEPTH
        X = problems.bounded(jax.random.fold_in(settings.key, 2), (_SIGNALS, D.shape[1]), s, 1.0)
        Y = problems.synthesize(D, X)
        lines, rows, table = {}, [], []
        for name, W in weights.items():
            certified, schedule = _quietly(
                analytic.block_schedule, D, W, depth=K, sparsity=s, bound=1.0
            )
            steps = schedule.steps_for(1e-6)
            largest = theory.max_sparsity(certified.mu_W, D.shape[1])
            told = (certified.mu_W, schedule.contraction, schedule.holds, steps, largest)
            table.append(_ROW.format(name, *told))
            if not schedule.holds:
                table[-1] += " | | |"
                continue
            params = _quietly(analytic.lista_cp, D, W=W, depth=K, sparsity=s, bound=1.0)
            measured, wrong = _errors(_iterates(layers.lista_cp(K), params, D, Y), X)
            lines[name] = (measured, schedule.error)
            rows += [[name, k, e, b] for k, (e, b) in enumerate(zip(measured, schedule.error))]
            table[-1] += f" {wrong} | {measured[-1]:.2e} | {schedule.error[-1]:.2e} |"
    text = [
        f"The same dictionary with s = {s} nonzeros of magnitude at most 1, the most that its best "
        "weights certify (Welch's bound allows no dictionary of this size more than "
        f"{theory.max_sparsity(theory.welch_bound(*D.shape), D.shape[1])}). LISTA-CP with "
        f"thresholds from Theorem 12, {_SIGNALS} signals, {K} steps, float64; wrong entries are "
        "counted over all signals and steps.",
        "",
        "| weights | mu_W | contraction a | holds | steps to 1e-6 | largest s "
        "| wrong entries | largest error | bound |",
        "|---|---|---|---|---|---|---|---|---|",
        *table,
    ]
    title = "The regime that the theory certifies"
    caption = f"{title}: the largest l1 error of {_SIGNALS} signals under its bound"
    figures = {caption: plots.bound(lines, title=f"s = {s}")}
    header = ["weights", "step", "largest l1 error", "certified bound"]
    curves = {name: {"measured": m, "bound": b} for name, (m, b) in lines.items()}
    data = {"sparsity": s, "curves": curves}
    return Section(title, "certified", "\n".join(text), figures, (header, rows), data)


def _iterates(layer: Layer, params: Unrolled, D: Dictionary, Y: jax.Array) -> jax.Array:
    """The codes (K, signals, d) after every step."""
    return jax.jit(jax.vmap(layer.iterates, (None, None, 0), out_axes=1))(params, D, Y)


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
    picture = plots.bound(lines, title=f"Deep sparse coding, {_FAST} nonzeros")
    figures = {f"{title}: {_CHAIN_SIGNALS} signals, float64": picture}
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
