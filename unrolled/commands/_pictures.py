"""Signals without known codes, such as patches of photographs, judged by the LASSO."""

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
from unrolled._pursuits import lasso_optima
from unrolled._text import markdown
from unrolled.commands._console import Say
from unrolled.commands._pursuit_rows import pursuit_codes
from unrolled.commands._report import Section
from unrolled.commands._settings import (
    Samples,
    Settings,
    compared,
    curve_rows,
    resampler,
    spent,
    timed,
    train,
)
from unrolled.compare import Comparison
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled

PATCH = 8  # pixels on a side
_STRIDE = 3  # pixels between two patches for training
_BATCH = 128  # signals of a training step
_TESTED_ON, _QUICKLY_TESTED_ON = 2000, 500  # signals, about
# Half of the loss on all steps: the way there stays monotone, or nearly so.
_DEEP = 0.5

Methods = dict[str, tuple[Layer, Unrolled]]


class Picture(NamedTuple):
    """What turns the test patches into a picture again."""

    mean: np.ndarray  # (signals, 1), subtracted from the patches
    shape: tuple[int, int]


class Pictures(NamedTuple):
    """Signals without known codes, to train and to test on; the test ones may make a picture."""

    training: np.ndarray  # (signals, m)
    testing: np.ndarray
    picture: Picture | None


def photograph_patches(images: dict[str, np.ndarray]) -> Pictures:
    """8 x 8 patches without their mean: tiles of the last picture to test, the others to train."""
    *first, last = images.values()
    patches = [datasets.to_patches(image, PATCH, _STRIDE) for image in first or [last]]
    rows = np.concatenate(patches)
    tiles = datasets.to_patches(last, PATCH)
    mean = tiles.mean(1, keepdims=True)
    picture = Picture(mean, last.shape)
    return Pictures(rows - rows.mean(1, keepdims=True), tiles - mean, picture)


def unknown_codes(
    D: Dictionary, pictures: Pictures, settings: Settings, say: Say, title: str, slug: str
) -> Section:
    """The section on signals without known codes: gaps to the LASSO optimum, reconstructions."""
    K, D = settings.depth, jnp.asarray(D)
    rows, tiles = jnp.asarray(pictures.training), jnp.asarray(pictures.testing)
    lam = _default_lam(D, rows) if settings.lam is None else settings.lam
    about = _QUICKLY_TESTED_ON if settings.quick else _TESTED_ON
    tested = tiles[:: max(1, len(tiles) // about)]
    say(f"solving {len(tested)} LASSO problems to a duality gap")
    optimum = lasso_optima(D, tested, lam)
    problem = Samples(D, resampler(rows, batch=_BATCH), (rows, None), (tested, optimum.x))
    remarks: list[str] = []
    seconds: dict[str, float] = {}
    pursued = pursuit_codes((D,), problem.tested_on, settings, say, seconds, lam)
    remarks += pursued.remarks
    classical = {name: codes for name, (codes,) in pursued.codes.items()}
    methods = _methods(problem, lam, settings, say, seconds, remarks)
    result = compared(methods | classical, D, tested, optimum.x, lam=lam)
    psnrs = {
        name: _psnr_per_step(layer, params, D, tested).tolist()
        for name, (layer, params) in methods.items()
    }
    for name, codes in classical.items():
        psnrs[name] = [float(metrics.psnr(problems.synthesize(D, codes), tested))]
    text = [
        f"Dictionary {D.shape[0]} x {D.shape[1]}, {len(rows)} signals to train on and "
        f"{len(tested)} others to test on, lam = {lam:.4g}, K = {K} steps. F* is known to a "
        f"relative duality gap of at most {float(optimum.gap.max()):.1e} "
        f"(certified for {float(optimum.converged.mean()):.1%} of the signals); the optimal "
        f"codes have {float((optimum.x != 0).sum(1).mean()):.1f} nonzeros on average. Learned rows "
        "minimise the LASSO objective itself on the training signals: no codes are needed.",
        "",
        _table(result, psnrs, float(metrics.psnr(problems.synthesize(D, optimum.x), tested))),
        "",
        *(part for note in (*result.notes(), *remarks) for part in (note, "")),
        _remark(D),
        "",
        "What the weights are (mu_W and rms with w_i . d_i scaled to 1), and how far training "
        "moved each of them (relative distance):",
        "",
        result.parameters_table(),
        "",
        spent(seconds),
    ]
    shown = "distance to the LASSO codes, objective gap, support, thresholds and weights"
    figures = {f"{title}: {shown}": partial(result.plot, codes="LASSO codes")}
    if pictures.picture is not None:
        caption = f"{title}: the test picture rebuilt from its codes after {K} steps"
        rebuilt = _rebuilt(pictures.picture, pictures.testing, methods, D)
        figures[caption] = partial(plots.images, rebuilt)
    header, curve = curve_rows(result)
    curve = [[*row, psnrs[row[0]][(row[1] or 1) - 1]] for row in curve]
    data = {"comparison": result, "psnr": psnrs, "lam": lam, "seconds": seconds}
    return Section(title, slug, "\n".join(text), figures, ([*header, "psnr"], curve), data)


def _default_lam(D: Dictionary, rows: jax.Array) -> float:
    """A tenth of the weight for which nine signals in ten have the code 0."""
    products = np.asarray(rows[:2000], float) @ np.asarray(D, float)  # in float32 they may be 0
    return float(np.quantile(np.abs(products).max(1), 0.9)) / 10


def _methods(
    problem: Samples,
    lam: float,
    settings: Settings,
    say: Say,
    seconds: dict[str, float],
    remarks: list[str],
) -> Methods:
    """ISTA and FISTA, and learned methods trained on the LASSO objective."""
    D, K = problem.D, settings.depth
    params = analytic.ista(D, lam, K)
    methods: Methods = {"ISTA": (layers.ista(K), params), "FISTA": (layers.fista(K), params)}
    families: dict[str, tuple[str, Layer, float]] = {  # title, layer, learning rate
        "ista": ("ISTA", layers.ista(K, lam=lam), 3e-3),
        "lista": ("LISTA", layers.lista(K, lam=lam), 1e-3),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False, lam=lam), 1e-3),
    }
    objective = training.lasso(lam)

    def loss(codes, X, D, Y):
        deep = training.deep(objective)(codes, X, D, Y)
        return (1 - _DEEP) * objective(codes, X, D, Y) + _DEEP * deep

    if left := [name for name in settings.methods if name not in (*families, "fista")]:
        remarks.append(f"Without known codes there are no rows of {', '.join(left)}.")
    for family in [name for name in families if name in settings.methods]:
        name, layer, rate = families[family]
        say(f"{name}: training {settings.steps} steps on the LASSO objective")
        start = layer.init(settings.key, D)
        if family != "ista":
            methods[f"{name}, analytic"] = (layer, start)
        with timed(seconds, f"{name}, learned"):
            learned = train(layer, start, problem, settings, rate, loss, name, remarks)
        methods[f"{name}, learned"] = (layer, learned.best)
    return methods


def _table(result: Comparison, psnrs: dict[str, list[float]], best: float) -> str:
    columns = "method", "(F - F*) / F* after K/4", "after K/2", "after K", "PSNR after K, dB"
    rows = []
    for name, curve in result.curves.items():
        assert curve.gap is not None  # `compare` was given lam
        K = len(curve.gap)
        gaps = [f"{curve.gap[max(0, k - 1)]:.2e}" for k in (K // 4, K // 2, K)]
        if name in result.given:
            gaps[:2] = "", ""
        rows.append([name, *gaps, f"{psnrs[name][-1]:.2f}"])
    return markdown(columns, [*rows, ["LASSO optimum", "", "", "0", f"{best:.2f}"]])


def _remark(D: Dictionary) -> str:
    """What the theory certifies of D, beside the analytic rows."""
    certified = analytic.certify(dictionaries.normalize(D)[0])
    s = theory.max_sparsity(certified.mu_W, D.shape[1])
    return (
        "The weights with the smaller coherence, of D and the closed form, have "
        f"mu_W = {certified.mu_W:.3f}, which certifies s = {s}. Analytic rows are therefore "
        "ISTA's weights, the only ones that the objective itself justifies."
    )


@partial(jax.jit, static_argnames="layer")
def _psnr_per_step(layer: Layer, params: Unrolled, D: Dictionary, Y: jax.Array) -> jax.Array:
    """(K,), in dB."""
    codes = jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y)
    return jax.lax.map(lambda X: metrics.psnr(problems.synthesize(D, X), Y), codes)


def _rebuilt(
    picture: Picture, patches: np.ndarray, methods: Methods, D: Dictionary
) -> dict[str, np.ndarray]:
    """The test picture, and the same rebuilt from the codes of ISTA and of the last method."""
    tiles, shown = jnp.asarray(patches), {"original": patches}
    for name in dict.fromkeys(["ISTA", list(methods)[-1]]):
        layer, params = methods[name]
        codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, tiles)
        rebuilt = problems.synthesize(D, codes)
        shown[f"{name}, PSNR {float(metrics.psnr(rebuilt, tiles)):.2f} dB"] = np.asarray(rebuilt)
    return {
        name: datasets.from_patches(rows + picture.mean, picture.shape, PATCH)
        for name, rows in shown.items()
    }
