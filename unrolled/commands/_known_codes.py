"""Classical, analytic, calibrated and learned methods on signals whose codes are known."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers, metrics, problems, theory, training
from unrolled.commands._report import Section
from unrolled.commands._settings import Problem, Settings, curve_rows, spent, timed, train
from unrolled.compare import compare, plain


def known_codes(
    problem: Problem, settings: Settings, say: Callable, title: str, slug: str
) -> Section:
    """Classical, analytic, calibrated and learned methods on signals whose codes are known."""
    D = problem.D
    found = _methods(problem, settings, say)
    say("comparing on the test signals")
    result = compare(found.methods, D, *reversed(problem.tested_on))
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


def _methods(problem: Problem, settings: Settings, say: Callable) -> _Found:
    """name -> (layer, params) for the chosen families: as theory sets them, calibrated, and
    learned.
    """
    D, (Y, X), K = problem.D, problem.chosen_on, settings.depth
    methods, remarks, seconds = {}, [], {}
    lam = best_lam(problem, settings) if settings.lam is None else settings.lam
    ista_params = analytic.ista(D, lam, K)
    if "ista" in settings.methods:
        methods["ISTA"] = (layers.ista(K), ista_params)
        methods["ISTA, calibrated"] = (
            layers.ista(K),
            analytic.calibrate(layers.ista(K), ista_params, D, X, Y),
        )
    if "fista" in settings.methods:
        methods["FISTA"] = (layers.fista(K), ista_params)
    theory_params, remark = from_theory(problem, K)
    remarks += [f"ISTA and FISTA use lam = {lam:g}.", remark]
    families = {
        "lista": ("LISTA", layers.lista(K, tied=False, lam=lam), None),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False), theory_params["lista_cp"]),
        "alista": ("ALISTA", layers.alista(K), theory_params["alista"]),
        "alista_ss": (
            "ALISTA-SS",
            layers.alista(K, support=(1.2e-2, 0.12)),
            theory_params["alista"],
        ),
    }
    rates = {"lista": 5e-4, "lista_cp": 5e-4, "alista": 5e-3, "alista_ss": 2e-3}
    for family, (name, layer, params) in families.items():
        if family not in settings.methods:
            continue
        if params is None:
            params = layer.init(settings.key, D)
        else:
            methods[f"{name}, analytic"] = (layer, params)
        say(f"{name}: calibrating")
        with timed(seconds, f"{name}, calibrated"):
            calibrated = jax.block_until_ready(analytic.calibrate(layer, params, D, X, Y))
        methods[f"{name}, calibrated"] = (layer, calibrated)
        say(f"{name}: training {settings.steps} steps")
        with timed(seconds, f"{name}, learned"):
            learned = train(layer, calibrated, problem, settings, rates[family], _code_loss)
        methods[f"{name}, learned"] = (layer, learned.best)
    return _Found(methods, remarks, seconds)


def from_theory(problem: Problem, K: int):
    """Params of LISTA-CP and ALISTA as theory sets them for the sample's class, and what `holds`
    says.
    """
    D, (Y, X) = problem.D, problem.chosen_on
    unit, norms = dictionaries.normalize(D)
    s = int((X != 0).sum(1).max())
    bound = float(jnp.abs(X * norms[None, :]).max())
    # A noiseless sample still shows the rounding of its own making, which the guard covers.
    noise = float(jnp.abs(Y - problems.synthesize(D, X)).sum(1).max())
    noise = noise if noise > 1e-4 * float(jnp.abs(Y).sum(1).mean()) else 0.0
    options = dict(depth=K, sparsity=s, bound=bound, noise=noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", analytic.HypothesisWarning)
        certified, schedule = analytic.block_schedule(unit, **options)
        params = {
            "lista_cp": analytic.lista_cp(unit, tied=False, W=certified.W, **options),
            "alista": analytic.alista(unit, W=certified.W, **options),
        }
    largest = theory.max_sparsity(certified.mu_W, D.shape[1])
    remark = (
        f"Theory, for s = {s} nonzeros (the most in the sample) and W with mu_W = {certified.mu_W:.4f}: contraction a = "
        f"{schedule.contraction:.3g}, so holds is {schedule.holds}; it certifies up to s = {largest}. "
    )
    if not schedule.holds:
        remark += "Its thresholds then grow until they silence every entry: the analytic rows show what an uncertified "
        remark += "schedule does. Calibration keeps W and sets thresholds by the sample; training moves everything."
    if not np.allclose(np.asarray(norms), 1, atol=1e-4):
        # Codes of D are those of the unit dictionary over the norms: W, thresholds and codes are
        # scaled back.
        params = {name: _rescaled(p, norms) for name, p in params.items()}
        remark += " The atoms were normalised for the theory and the params scaled back."
    return params, remark


def _rescaled(params, norms):
    """Params for D = D_unit diag(norms) from those for D_unit: x = x_unit / norms."""

    def one(path, leaf):
        name = getattr(path[-1], "name", None)
        if name == "theta":
            return leaf[:, None] / norms[None, :]
        return leaf / norms.reshape((1,) * (leaf.ndim - 1) + (-1,)) if name == "W" else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def best_lam(problem: Problem, settings: Settings) -> float:
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
