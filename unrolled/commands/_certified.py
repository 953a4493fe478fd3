"""Where the theory applies: measured errors under certified bounds, for one block and for a chain
of two.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers, networks, plots, problems, theory
from unrolled._json import plain
from unrolled.commands._report import Section
from unrolled.commands._settings import Settings


def certified_regime(D, settings: Settings, say: Callable) -> Section | None:
    """Codes as sparse as the theory admits: measured errors under the certified bound, in float64."""
    with jax.enable_x64(True):
        D, _ = dictionaries.normalize(jnp.asarray(np.asarray(dictionaries.dense(D), np.float64)))
        weights = {"W = D": D, "closed-form W": theory.frobenius_weights(D)}
        numbers = {name: analytic.certify(D, W) for name, W in weights.items()}
        best = min(numbers, key=lambda name: numbers[name].mu_W)
        s = theory.max_sparsity(numbers[best].mu_W, D.shape[1])
        if s < 1:
            return None
        say(f"the certified regime: s = {s}")
        K = 60 if settings.quick else 100
        X = problems.bounded(jax.random.fold_in(settings.key, 2), (500, D.shape[1]), s, 1.0)
        Y = problems.synthesize(D, X)
        lines, rows, table = {}, [], []
        for name, W in weights.items():
            certified, schedule = _quietly(
                analytic.block_schedule, D, W, depth=K, sparsity=s, bound=1.0
            )
            table.append(
                f"| {name} | {certified.mu_W:.4f} | {schedule.contraction:.3f} | {schedule.holds} | "
                f"{schedule.steps_for(1e-6):g} | {theory.max_sparsity(certified.mu_W, D.shape[1])} |"
            )
            if not schedule.holds:
                continue
            params = _quietly(analytic.lista_cp, D, W=W, depth=K, sparsity=s, bound=1.0)
            codes = jax.jit(jax.vmap(layers.lista_cp(K).iterates, (None, None, 0), out_axes=1))(
                params, D, Y
            )
            measured, wrong = _errors(codes, X)
            lines[name] = (measured, schedule.error)
            rows += [[name, k, e, b] for k, (e, b) in enumerate(zip(measured, schedule.error))]
            table[-1] += f" {wrong} | {measured[-1]:.2e} | {schedule.error[-1]:.2e} |"
    text = [
        f"The same dictionary with s = {s} nonzeros of magnitude at most 1, the most that its best weights certify "
        f"(Welch's bound allows no dictionary of this size more than "
        f"{theory.max_sparsity(theory.welch_bound(*D.shape), D.shape[1])}). LISTA-CP with thresholds from Theorem 12, "
        f"500 signals, {K} steps, float64; wrong entries are counted over all signals and steps.",
        "",
        "| weights | mu_W | contraction a | holds | steps to 1e-6 | largest s | wrong entries | largest error | bound |",
        "|---|---|---|---|---|---|---|---|---|",
        *[row if row.count("|") > 7 else row + " | | |" for row in table],
    ]
    title = "The regime that the theory certifies"
    figures = {
        f"{title}: the largest l1 error of 500 signals under its bound": plots.bound(
            lines, title=f"s = {s}"
        )
    }
    header = ["weights", "step", "largest l1 error", "certified bound"]
    data = {name: {"measured": m.tolist(), "bound": b.tolist()} for name, (m, b) in lines.items()}
    return Section(
        title,
        "certified",
        "\n".join(text),
        figures,
        (header, rows),
        {"sparsity": s, "curves": data},
    )


def _errors(iterates, X) -> tuple[np.ndarray, int]:
    """The largest l1 error of a signal, from step 0 on, and the wrong entries of all steps and
    signals.
    """
    start = jnp.abs(X).sum(1).max()[None]
    measured = jnp.concatenate([start, jnp.abs(iterates - X[None]).sum(2).max(1)])
    return np.asarray(measured), int(((iterates != 0) & (X == 0)[None]).sum())


def _quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", analytic.HypothesisWarning)
        return function(*args, **options)


def chain(settings: Settings, say: Callable) -> Section:
    """A certified two-layer chain in float64, and the thresholds of the printed proof beside the
    corrected ones.
    """
    say("a two-layer chain with certified bounds")
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.fold_in(settings.key, 4), 3)
        D_1 = dictionaries.identity_hadamard(256)
        D_2 = jnp.pad(
            dictionaries.transversal(keys[0], 4, 127, 700), ((0, 4), (0, 0))
        )  # 508 rows, to 512
        fast = _chain_run(D_1, D_2, (4, 1), (40, 40), keys[1])
        slow = {
            K: _chain_run(D_1, D_2, (8, 2), (K, K), keys[2])
            for K in ((40,) if settings.quick else (20, 40, 80, 160))
        }
    text = [
        "y = D_1 x_1, x_1 = D_2 x_2 with D_1 = [I, Hadamard] (256 x 512) and D_2 a transversal design (512 x 700, 4 "
        "nonzeros per atom). The certified error of layer 1 enters the thresholds of layer 2 (Theorem 6, corrected).",
        "",
        "With (4, 1) nonzeros the contractions are "
        f"({fast.contractions[0]:.3f}, {fast.contractions[1]:.3f}); after 40 steps each, the largest l1 errors of 200 signals "
        f"are {fast.measured[0][-1]:.1e} and {fast.measured[1][-1]:.1e} under bounds of {fast.bounds[0][-1]:.1e} and "
        f"{fast.bounds[1][-1]:.1e}, with {fast.wrong} wrong entries.",
        "",
        "With (8, 2) nonzeros layer 1 contracts slowly (a = 0.94). The printed proof runs layer 2 with thresholds made for "
        "the exact x_1; it diverges. Largest l1 error of layer 2:",
        "",
        "| steps per layer | certified bound | corrected thresholds | thresholds of the printed proof |",
        "|---|---|---|---|",
        *[
            f"| {K} | {r.bounds[1][-1]:.2e} | {r.measured[1][-1]:.2e} | {r.printed:.2e} |"
            for K, r in slow.items()
        ],
    ]
    lines = {f"layer {j + 1}": (fast.measured[j], fast.bounds[j]) for j in range(2)}
    title = "A two-layer chain with certified bounds"
    rows = [
        [f"layer {j + 1}", k, e, b]
        for j in range(2)
        for k, (e, b) in enumerate(zip(fast.measured[j], fast.bounds[j]))
    ]
    header = ["layer", "step", "largest l1 error", "certified bound"]
    figures = {
        f"{title}: 200 signals, float64": plots.bound(
            lines, title="Deep sparse coding, (4, 1) nonzeros"
        )
    }
    data = {
        "fast": plain(fast._asdict()),
        "slow": {str(K): plain(r._asdict()) for K, r in slow.items()},
    }
    return Section(title, "chain", "\n".join(text), figures, (header, rows), data)


class _Chain(NamedTuple):
    contractions: tuple[float, float]
    measured: tuple[np.ndarray, np.ndarray]  # largest l1 error, from step 0
    bounds: tuple[np.ndarray, np.ndarray]
    wrong: int
    printed: float  # largest l1 error of layer 2 with the thresholds of the printed proof


def _chain_run(D_1, D_2, sparsities, depths, key) -> _Chain:
    X_2 = problems.bounded(key, (200, D_2.shape[1]), sparsities[1], 1.0)
    X_1 = problems.synthesize(D_2, X_2)
    Y, bounds = problems.synthesize(D_1, X_1), (sparsities[1] / 2, 1.0)
    options = dict(sparsities=sparsities, bounds=bounds, Ws=(D_1, D_2))
    _, schedules = analytic.chain_schedules((D_1, D_2), depths=depths, **options)
    params = analytic.dsc((D_1, D_2), depths=depths, **options)
    first, second = (layers.lista_cp(K) for K in depths)
    run = jax.jit(networks.dsc((first, second)).apply)
    codes = jax.vmap(run, (None, None, 0))(params, (D_1, D_2), Y)
    iterates = [
        jax.jit(jax.vmap(layer.iterates, (None, None, 0), out_axes=1))(p, D, y)
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
