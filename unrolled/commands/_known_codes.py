"""Classical, analytic, calibrated and learned methods on signals whose codes are known."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers, metrics, problems, theory, training
from unrolled.commands._console import Say
from unrolled.commands._pursuit_rows import pursuit_codes
from unrolled.commands._report import Section
from unrolled.commands._settings import Samples, Settings, compared, curve_rows, spent, timed, train
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled

# Residuals below this share of the mean signal are rounding.
_ROUNDING = 1e-4
_UNIT = 1e-4  # how far the norms of unit atoms may be from 1
# Penalties of ISTA to choose from, as shares of the largest entry of the codes.
_PENALTIES = (0.01, 0.02, 0.05, 0.1, 0.2)
# Support selection of ALISTA-SS: the share per step, and the largest.
SUPPORT = (0.012, 0.12)
# What the table of guarantees means.
GUARANTEES = (
    "What theory guarantees for the same params: a bound on the l1 error of every code with at "
    "most s nonzeros of magnitude at most B, observed with noise of l1 norm at most delta. These "
    "are the least numbers that cover the test signals. The last column has the largest s that has "
    "a guarantee."
)
# Weight of all steps in the loss; the last step has the rest.
_DEEP = 0.1


def known_codes(problem: Samples, settings: Settings, say: Say, title: str, slug: str) -> Section:
    """The section on signals whose codes are known."""
    D, (Y, X) = problem.D, problem.tested_on
    found = _methods(problem, settings, say)
    say("comparing on the test signals")
    result = compared(found.methods, D, Y, X)
    text = [
        f"Dictionary {D.shape[0]} x {D.shape[1]}, {len(Y)} test signals with "
        f"{float((X != 0).sum(1).mean()):.1f} nonzeros on average, K = {settings.depth} "
        f"steps{problem.noise()}. Calibration and ISTA's penalty are chosen on "
        f"{len(problem.chosen_on[0])} other signals.",
        "",
        result.table(),
        "",
        *found.remarks,
        "",
        "What the weights are (mu_W and rms with w_i . d_i scaled to 1), and how far training "
        "moved each of them (relative distance):",
        "",
        result.parameters_table(),
        "",
        GUARANTEES,
        "",
        result.guarantees_table(),
        "",
        spent(found.seconds),
    ]
    caption = f"{title}: distance to the true codes, failures, support and thresholds, step by step"
    figures = {caption: partial(result.plot, note=found.caution)}
    data = {"comparison": result, "seconds": found.seconds}
    return Section(title, slug, "\n".join(text), figures, curve_rows(result), data)


class _Found(NamedTuple):
    # With analytic, calibrated and learned params; or codes of the test signals.
    methods: dict[str, Any]
    remarks: list[str]
    caution: str  # why the analytic rows are what they are, where nothing is certified
    seconds: dict[str, float]


def _methods(problem: Samples, settings: Settings, say: Say) -> _Found:
    D, (Y, X), K = problem.D, problem.chosen_on, settings.depth
    methods: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    broken: list[str] = []
    lam = best_lam(problem, settings) if settings.lam is None else settings.lam
    ista, ista_params = layers.ista(K), analytic.ista(D, lam, K)
    if "ista" in settings.methods:
        methods["ISTA"] = (ista, ista_params)
        methods["ISTA, calibrated"] = (ista, analytic.calibrate(ista, ista_params, D, Y, X))
    if "fista" in settings.methods:
        methods["FISTA"] = (layers.fista(K), ista_params)
    pursued = pursuit_codes((D,), problem.tested_on, settings, say, seconds, lam)
    methods |= {name: codes for name, (codes,) in pursued.codes.items()}
    families: dict[str, tuple[str, Layer, float]] = {  # title, layer, learning rate
        "lista": ("LISTA", layers.lista(K, tied=False, lam=lam), 5e-4),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False), 5e-4),
        "alista": ("ALISTA", layers.alista(K), 5e-3),
        "alista_ss": ("ALISTA-SS", layers.alista(K, support=SUPPORT), 2e-3),
    }
    starts, remark, caution = from_theory(problem, *(layer for _, layer, _ in families.values()))
    for name, layer, rate in (families[m] for m in families if m in settings.methods):
        params = starts.get(layer)
        if params is None:
            params = layer.init(settings.key, D)
        else:
            methods[f"{name}, analytic"] = (layer, params)
        say(f"{name}: calibrating")
        with timed(seconds, f"{name}, calibrated"):
            calibrated = jax.block_until_ready(analytic.calibrate(layer, params, D, Y, X))
        methods[f"{name}, calibrated"] = (layer, calibrated)
        say(f"{name}: training {settings.steps} steps")
        with timed(seconds, f"{name}, learned"):
            learned = train(layer, calibrated, problem, settings, rate, code_loss, name, broken)
        methods[f"{name}, learned"] = (layer, learned.best)
    remarks = [f"ISTA and FISTA use lam = {lam:g}.", *pursued.remarks, remark, *broken]
    shown = any(name.endswith(", analytic") for name in methods)
    return _Found(methods, remarks, caution if shown else "", seconds)


def from_theory(problem: Samples, *models: Layer) -> tuple[dict[Layer, Unrolled], str, str]:
    """The params that theory sets for the class of the sample, and what it certifies.

    Layers that theory sets no params for are left out. The second text says why the thresholds are
    not certified, if so; the first contains it.
    """
    D, (Y, X) = problem.D, problem.chosen_on
    unit, norms = dictionaries.normalize(D)
    s = int((X != 0).sum(1).max())
    bound = float(jnp.abs(X * norms[None, :]).max())
    # A noiseless sample still has rounding errors, which the guard covers.
    noise = float(jnp.abs(Y - problems.synthesize(D, X)).sum(1).max())
    noise = noise if noise > _ROUNDING * float(jnp.abs(Y).sum(1).mean()) else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", analytic.HypothesisWarning)
        certified, schedule = analytic.block_schedule(
            unit, depth=models[0].depth, sparsity=s, bound=bound, noise=noise
        )
    W, theta = certified.W, analytic.stored_thresholds(schedule.theta, certified.W.dtype)
    largest = theory.max_sparsity(certified.mu_W, D.shape[1])
    remark = (
        f"Theory, for s = {s} nonzeros (the most in the sample) and W with mu_W = "
        f"{certified.mu_W:.4f}: contraction a = {schedule.contraction:.3g}, so holds is "
        f"{schedule.holds}. "
    )
    caution = ""
    if schedule.holds:
        remark += f"It certifies up to s = {largest}."
    else:
        caution = (
            f"Theory certifies up to s = {largest} nonzeros and the sample has {s}: the analytic "
            f"thresholds grow by a factor of about {schedule.contraction:.3g} a step instead of "
            "shrinking."
        )
        remark += (
            f"{caution} The analytic rows show what an uncertified schedule does. Calibration "
            "keeps W and chooses thresholds on the sample; training moves everything."
        )
    if not np.allclose(np.asarray(norms), 1, atol=_UNIT):
        # The codes of D are those of the unit dictionary, divided by the norms.
        W, theta = W / norms[None, :], theta[:, None] / norms[None, :]
        remark += " The atoms were normalised for the theory and the params scaled back."
    params = {m: m.from_theory(W, theta) for m in models if m.from_theory is not None}
    return params, remark, caution


def best_lam(problem: Samples, settings: Settings) -> float:
    """The penalty of a small grid with the smallest error of ISTA after K steps."""
    D, (Y, X), K = problem.D, problem.chosen_on, settings.depth
    apply = jax.jit(jax.vmap(layers.ista(K).apply, (None, None, 0)))
    scale = float(jnp.abs(X).max()) or 1.0
    lams = [scale * share for share in _PENALTIES]
    return min(lams, key=lambda lam: float(metrics.nmse(apply(analytic.ista(D, lam, K), D, Y), X)))


def code_loss(codes: jax.Array, X: jax.Array, D: Dictionary, Y: jax.Array) -> jax.Array:
    """Mostly the error of the last step; the errors of all steps keep the way there short."""
    last, deep = training.log_nmse, training.deep(training.log_nmse)
    return (1 - _DEEP) * last(codes, X, D, Y) + _DEEP * deep(codes, X, D, Y)
