"""Signals without known codes, such as patches of photographs: how near the LASSO optimum each step
comes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import (
    analytic,
    datasets,
    dictionaries,
    layers,
    metrics,
    plots,
    problems,
    theory,
    training,
)
from unrolled._json import plain
from unrolled.commands._report import Section
from unrolled.commands._settings import (
    Samples,
    Settings,
    curve_rows,
    resampler,
    spent,
    timed,
    train,
)
from unrolled.compare import compare
from unrolled.pursuit import fista

_PATCH = 8


class Pictures(NamedTuple):
    """Signals without known codes: to train on, to test on, and how to show the test ones as a
    picture.
    """

    training: np.ndarray  # (signals, m)
    testing: np.ndarray
    mean: np.ndarray | None  # (signals, 1) what was taken off the test patches
    shape: tuple[int, int] | None  # of the test picture


def photograph_patches(images: dict[str, np.ndarray]) -> Pictures:
    """8 x 8 patches without their mean: all pictures but the last train, the last one is tested in
    tiles.
    """
    *first, last = images.values()
    rows = np.concatenate([datasets.to_patches(image, _PATCH, 3) for image in first or [last]])
    tiles = datasets.to_patches(last, _PATCH)
    mean = tiles.mean(1, keepdims=True)
    return Pictures(rows - rows.mean(1, keepdims=True), tiles - mean, mean, last.shape)


def unknown_codes(
    D, pictures: Pictures, settings: Settings, say: Callable, title: str, slug: str
) -> Section:
    """Signals without known codes: the gap to the LASSO optimum at every step, and the
    reconstruction.
    """
    K, D = settings.depth, jnp.asarray(D)
    rows, tiles = jnp.asarray(pictures.training), jnp.asarray(pictures.testing)
    lam = _default_lam(D, rows) if settings.lam is None else settings.lam
    tested = tiles[:: max(1, len(tiles) // (500 if settings.quick else 2000))]
    say(f"solving {len(tested)} LASSO problems to a duality gap")
    optimum = jax.jit(jax.vmap(lambda y: fista(D, y, lam, tol=1e-6, max_steps=3000)))(tested)
    problem = Samples(D, resampler(rows, batch=128), (rows, None), (tested, optimum.x))
    methods, seconds = _methods(problem, lam, settings, say)
    result = compare(methods, D, tested, optimum.x, lam=lam)
    psnrs = {
        name: _psnr_per_step(layer, params, D, tested).tolist()
        for name, (layer, params) in methods.items()
    }
    text = [
        f"Dictionary {D.shape[0]} x {D.shape[1]}, {len(rows)} signals to train on and {len(tested)} others to test on, lam = "
        f"{lam:.4g}, K = {K} steps. F* is solved by FISTA to a relative duality gap of at most "
        f"{float(optimum.gap.max()):.1e} ({float(optimum.converged.mean()):.1%} of the signals are within 1e-6); the optimal "
        f"codes have {float((optimum.x != 0).sum(1).mean()):.1f} nonzeros on average. Learned rows minimise the LASSO "
        "objective itself on the training signals: no codes are needed.",
        "",
        _table(result, psnrs, float(metrics.psnr(problems.synthesize(D, optimum.x), tested))),
        "",
        _remark(D),
        "",
        "What the weights are, and how far training moved each of them (relative distance):",
        "",
        result.parameters_table(),
        "",
        spent(seconds),
    ]
    figures = {
        f"{title}: error against the optimal codes, objective gap, support, thresholds and weights": result.plot()
    }
    if pictures.shape is not None:
        figures[f"{title}: the test picture rebuilt from its codes after {K} steps"] = _show(
            pictures, methods, D
        )
    header, curve = curve_rows(result)
    curve = [[*row, psnrs[row[0]][row[1] - 1]] for row in curve]
    data = {"comparison": plain(result._asdict()), "psnr": psnrs, "lam": lam, "seconds": seconds}
    return Section(title, slug, "\n".join(text), figures, ([*header, "psnr"], curve), data)


def _default_lam(D, rows) -> float:
    """A tenth of the weight at which nine signals in ten have the code 0."""
    return float(jnp.quantile(jnp.abs(rows[:2000] @ D).max(1), 0.9)) / 10


def _methods(problem: Samples, lam: float, settings: Settings, say: Callable):
    """Classical and learned methods, the learned ones trained on the LASSO objective from ISTA."""
    D, K = problem.D, settings.depth
    params = analytic.ista(D, lam, K)
    methods, seconds = {"ISTA": (layers.ista(K), params), "FISTA": (layers.fista(K), params)}, {}
    families = {
        "ista": ("ISTA", layers.ista(K, lam=lam), 3e-3),
        "lista": ("LISTA", layers.lista(K, lam=lam), 1e-3),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False, lam=lam), 1e-3),
    }
    objective = training.lasso(lam)

    def loss(codes, X, D, Y):
        """Half on the last step, half on all: the way there stays monotone or nearly so."""
        return 0.5 * objective(codes, X, D, Y) + 0.5 * training.deep(objective)(codes, X, D, Y)

    for family in [name for name in families if name in settings.methods]:
        name, layer, rate = families[family]
        say(f"{name}: training {settings.steps} steps on the LASSO objective")
        start = layer.init(settings.key, D)
        if family != "ista":
            methods[f"{name}, analytic"] = (layer, start)
        with timed(seconds, f"{name}, learned"):
            methods[f"{name}, learned"] = (
                layer,
                train(layer, start, problem, settings, rate, loss).best,
            )
    return methods, seconds


def _table(result, psnrs, best: float) -> str:
    rows = [
        "| method | (F - F*) / F* after K/4 | after K/2 | after K | PSNR after K, dB |",
        "|---|---|---|---|---|",
    ]
    for name, curve in result.curves.items():
        K = len(curve.gap)
        gaps = [f"{curve.gap[max(0, k - 1)]:.2e}" for k in (K // 4, K // 2, K)]
        rows.append("| " + " | ".join([name, *gaps, f"{psnrs[name][-1]:.2f}"]) + " |")
    return "\n".join([*rows, f"| LASSO optimum | | | 0 | {best:.2f} |"])


def _remark(D) -> str:
    certified = analytic.certify(dictionaries.normalize(D)[0])
    s = theory.max_sparsity(certified.mu_W, D.shape[1])
    return (
        f"The weights with the smaller coherence, of D and the closed form, have mu_W = {certified.mu_W:.3f}, which certifies "
        f"s = {s}. Analytic rows are therefore ISTA's weights, the only ones that the objective itself justifies."
    )


@partial(jax.jit, static_argnames="layer")
def _psnr_per_step(layer, params, D, Y):
    codes = jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y)
    return jax.lax.map(lambda X: metrics.psnr(problems.synthesize(D, X), Y), codes)


def _show(pictures: Pictures, methods, D):
    """The test picture: itself, and rebuilt from the codes of ISTA and of the method that was given
    last.
    """
    tiles, shown = jnp.asarray(pictures.testing), {"original": pictures.testing}
    for name in dict.fromkeys(["ISTA", list(methods)[-1]]):
        layer, params = methods[name]
        rebuilt = problems.synthesize(
            D, jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, tiles)
        )
        shown[f"{name}, {float(metrics.psnr(rebuilt, tiles)):.2f} dB"] = np.asarray(rebuilt)
    whole = {
        name: datasets.from_patches(rows + pictures.mean, pictures.shape, _PATCH)
        for name, rows in shown.items()
    }
    return plots.images(whole)
