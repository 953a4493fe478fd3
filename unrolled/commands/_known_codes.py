"""Classical, analytic, calibrated and learned methods on signals whose codes are known."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers, metrics, problems, theory, training
from unrolled._json import plain
from unrolled.commands._report import Section
from unrolled.commands._settings import Samples, Settings, curve_rows, spent, timed, train
from unrolled.compare import compare
from unrolled.layers import Layer, Unrolled

# Residuals below this share of the mean signal are rounding.
_ROUNDING = 1e-4


def known_codes(
    problem: Samples, settings: Settings, say: Callable, title: str, slug: str
) -> Section:
    """Classical, analytic, calibrated and learned methods on signals whose codes are known."""
    D = problem.D
    found = _methods(problem, settings, say)
    say("comparing on the test signals")
    result = compare(found.methods, D, *problem.tested_on)
    text = [
        f"Dictionary {D.shape[0]} x {D.shape[1]}, {problem.tested_on[0].shape[0]} test signals with "
        f"{float((problem.tested_on[1] != 0).sum(1).mean()):.1f} nonzeros on average, K = {settings.depth} steps, SNR "
        f"{settings.snr:g} dB. Calibration and ISTA's penalty are chosen on {len(problem.chosen_on[0])} other signals.",
        "",
        result.table(),
        "",
        *found.remarks,
        "",
        "What the weights are, and how far training moved each of them (relative distance):",
        "",
        result.parameters_table(),
        "",
        spent(found.seconds),
    ]
    figures = {f"{title}: error, failures, support and thresholds, step by step": result.plot()}
    data = {"comparison": plain(result._asdict()), "seconds": found.seconds}
    return Section(title, slug, "\n".join(text), figures, curve_rows(result), data)


class _Found(NamedTuple):
    methods: dict
    remarks: list[str]
    seconds: dict[str, float]


def _methods(problem: Samples, settings: Settings, say: Callable) -> _Found:
    """name -> (layer, params): as theory sets them, calibrated, and learned."""
    D, (Y, X), K = problem.D, problem.chosen_on, settings.depth
    methods, seconds = {}, {}
    lam = best_lam(problem, settings) if settings.lam is None else settings.lam
    ista, ista_params = layers.ista(K), analytic.ista(D, lam, K)
    if "ista" in settings.methods:
        methods["ISTA"] = (ista, ista_params)
        methods["ISTA, calibrated"] = (ista, analytic.calibrate(ista, ista_params, D, Y, X))
    if "fista" in settings.methods:
        methods["FISTA"] = (layers.fista(K), ista_params)
    families = {  # title, layer, learning rate
        "lista": ("LISTA", layers.lista(K, tied=False, lam=lam), 5e-4),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False), 5e-4),
        "alista": ("ALISTA", layers.alista(K), 5e-3),
        "alista_ss": ("ALISTA-SS", layers.alista(K, support=(0.012, 0.12)), 2e-3),
    }
    covered = [layer for _, layer, _ in families.values() if layer.from_theory is not None]
    found, remark = from_theory(problem, *covered)
    starts = dict(zip(covered, found))
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
            learned = train(layer, calibrated, problem, settings, rate, _code_loss)
        methods[f"{name}, learned"] = (layer, learned.best)
    remarks = [f"ISTA and FISTA use lam = {lam:g}.", remark]
    return _Found(methods, remarks, seconds)


def from_theory(problem: Samples, *models: Layer) -> tuple[list[Unrolled], str]:
    """Params of the layers as theory sets them for the class of the sample, and what it certifies."""
    D, (Y, X) = problem.D, problem.chosen_on
    unit, norms = dictionaries.normalize(D)
    s = int((X != 0).sum(1).max())
    bound = float(jnp.abs(X * norms[None, :]).max())
    # A noiseless sample still shows the rounding of its own making, which the guard covers.
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
        f"{schedule.holds}; it certifies up to s = {largest}. "
    )
    if not schedule.holds:
        remark += (
            "Its thresholds then grow until they silence every entry: the analytic rows show what "
            "an uncertified schedule does. Calibration keeps W and sets thresholds by the sample; "
            "training moves everything."
        )
    if not np.allclose(np.asarray(norms), 1, atol=1e-4):
        # Codes of D are those of the unit dictionary over the norms.
        W, theta = W / norms[None, :], theta[:, None] / norms[None, :]
        remark += " The atoms were normalised for the theory and the params scaled back."
    return [layer.from_theory(W, theta) for layer in models], remark


def best_lam(problem: Samples, settings: Settings) -> float:
    """The penalty of a small grid with the least error of ISTA after K steps, on the sample to
    choose on.
    """
    D, (Y, X), K = problem.D, problem.chosen_on, settings.depth
    apply = jax.jit(jax.vmap(layers.ista(K).apply, (None, None, 0)))
    scale = float(jnp.abs(X).max()) or 1.0
    lams = [scale * r for r in (0.01, 0.02, 0.05, 0.1, 0.2)]
    return min(lams, key=lambda lam: float(metrics.nmse(apply(analytic.ista(D, lam, K), D, Y), X)))


def _code_loss(codes, X, D, Y):
    """Mostly the error of the last step; a tenth on all of them keeps the way there short."""
    return 0.9 * training.log_nmse(codes, X, D, Y) + 0.1 * training.deep(training.log_nmse)(
        codes, X, D, Y
    )
