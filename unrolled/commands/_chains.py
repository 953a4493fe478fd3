"""Chains of analytic, calibrated and learned layers, on signals whose codes are known."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unrolled import analytic, dictionaries, layers, networks, theory
from unrolled._text import markdown
from unrolled.commands._console import Say
from unrolled.commands._known_codes import GUARANTEES, SUPPORT, best_lam, code_loss, from_theory
from unrolled.commands._pursuit_rows import pursuit_codes
from unrolled.commands._report import Section
from unrolled.commands._settings import Samples, Settings, compared, curve_rows, spent, timed, train
from unrolled.layers import Layer, Unrolled

Methods = dict[str, tuple[networks.Network, Any]]
Make = Callable[[Layer, Samples], Unrolled]


def known_chain(problem: Samples, settings: Settings, say: Say, title: str, slug: str) -> Section:
    """The section on a chain of dictionaries, on signals whose codes are known."""
    Ds, (Y, Xs), K = problem.D, problem.tested_on, settings.depth
    seconds: dict[str, float] = {}
    remarks: list[str] = []
    pursued = pursuit_codes(Ds, problem.tested_on, settings, say, seconds, settings.lam)
    remarks += pursued.remarks
    methods = _methods(problem, settings, say, seconds, remarks)
    say("comparing on the test signals")
    result = compared(pursued.codes | methods, Ds, Y, Xs)
    text = [
        f"A chain of {len(Ds)} dictionaries, y = D_1 x_1 and x_j = D_(j+1) x_(j+1), with K = {K} "
        f"steps in every layer, {len(Y)} test signals{problem.noise()}. Each layer runs on "
        f"the code that the layer before it found. Calibration and ISTA's penalties are chosen on "
        f"{len(problem.chosen_on[0])} other signals, layer by layer.",
        "",
        _table(Ds, Xs),
        "",
        "Where a layer has more nonzeros than theory certifies, the thresholds that theory sets "
        "for them grow until they silence every entry.",
        "",
        result.table(),
        "",
        *(part for remark in remarks for part in (remark, "")),
        "What the weights are, and how far training moved each of them (relative distance):",
        "",
        result.parameters_table(),
        "",
        GUARANTEES,
        "",
        result.guarantees_table(),
        "",
        spent(seconds),
    ]
    caption = f"{title}: error, failures, support, thresholds and weights, a column per layer"
    rows = []
    for j, layer in enumerate(result.layers, start=1):
        header, found = curve_rows(layer)
        rows += [[j, *row] for row in found]
    data = {"comparison": result, "seconds": seconds}
    figures = {caption: result.plot}
    return Section(title, slug, "\n".join(text), figures, (["layer", *header], rows), data)


def _table(Ds: Any, Xs: Any) -> str:
    """The sparsity of the codes of every layer, beside what theory certifies."""
    columns = ["layer", "D", "nonzeros on average", "at most", "mu_W", "certified up to"]
    rows = []
    for j, (D, X) in enumerate(zip(Ds, Xs), start=1):
        counts = np.asarray((X != 0).sum(1))
        mu_W = analytic.certify(dictionaries.normalize(D)[0]).mu_W
        cells = [str(j), f"{D.shape[0]} x {D.shape[1]}", f"{counts.mean():.1f}", str(counts.max())]
        rows.append([*cells, f"{mu_W:.4f}", str(theory.max_sparsity(mu_W, D.shape[1]))])
    return markdown(columns, rows)


def _methods(
    problem: Samples, settings: Settings, say: Say, seconds: dict[str, float], remarks: list[str]
) -> Methods:
    K = settings.depth
    methods: Methods = {}
    classical: dict[str, tuple[str, Layer]] = {
        "ista": ("ISTA", layers.ista(K)),
        "fista": ("FISTA", layers.fista(K)),
    }
    for name, layer in (classical[m] for m in classical if m in settings.methods):
        say(f"{name}: choosing its penalties")
        methods[name] = _chain(layer, problem, lambda layer, part: _ista(part, settings))
    families: dict[str, tuple[str, Layer, float]] = {  # title, layer, learning rate
        "lista": ("LISTA", layers.lista(K, tied=False), 5e-4),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False), 5e-4),
        "alista": ("ALISTA", layers.alista(K), 5e-3),
        "alista_ss": ("ALISTA-SS", layers.alista(K, support=SUPPORT), 2e-3),
    }
    for name, layer, rate in (families[m] for m in families if m in settings.methods):
        if layer.from_theory is not None:
            methods[f"{name}, analytic"] = _chain(layer, problem, _analytic)
        say(f"{name}: calibrating")
        with timed(seconds, f"{name}, calibrated"):
            network, start = _chain(layer, problem, _calibrated)
        methods[f"{name}, calibrated"] = network, start
        say(f"{name}: training {settings.steps} steps")
        with timed(seconds, f"{name}, learned"):
            learned = train(network, start, problem, settings, rate, code_loss, name, remarks)
        methods[f"{name}, learned"] = network, learned.best
    return methods


def _chain(layer: Layer, problem: Samples, make: Make) -> tuple[networks.Network, Any]:
    """A chain of one layer for all dictionaries, each made on the codes of the one before."""
    signals, Xs = problem.chosen_on
    run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    params = []
    for D, X in zip(problem.D, Xs):
        params.append(make(layer, problem._replace(D=D, chosen_on=(signals, X))))
        signals = run(params[-1], D, signals)
    return networks.dsc((layer,) * len(params)), tuple(params)


def _ista(problem: Samples, settings: Settings) -> Unrolled:
    lam = best_lam(problem, settings) if settings.lam is None else settings.lam
    return analytic.ista(problem.D, lam, settings.depth)


def _analytic(layer: Layer, problem: Samples) -> Unrolled:
    return from_theory(problem, layer)[0][layer]


def _calibrated(layer: Layer, problem: Samples) -> Unrolled:
    start = layer.init(None, problem.D)
    if layer.from_theory is not None:
        start = _analytic(layer, problem)
    return analytic.calibrate(layer, start, problem.D, *problem.chosen_on)
