"""The experiments of `unrolled compare`: weights set by theory beside weights that were learned."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import analytic, datasets, dictionaries, layers, metrics, networks, plots, problems, theory, training
from unrolled._report import Section
from unrolled.compare import Comparison, _plain, compare
from unrolled.pursuit import fista

METHODS = ("ista", "fista", "lista", "lista_cp", "alista", "alista_ss")
_PATCH = 8


@dataclass(frozen=True)
class Settings:
    """What the command line sets."""

    methods: tuple[str, ...] = METHODS
    depth: int = 16
    sparsity: int | None = None
    snr: float = math.inf
    lam: float | None = None
    steps: int = 400
    seed: int = 0
    quick: bool = False

    @property
    def key(self):
        return jax.random.key(self.seed)


class Problem(NamedTuple):
    """A dictionary, a sampler for training, and samples with known codes to choose and to test on."""

    D: jax.Array
    sample: Callable
    chosen_on: tuple[jax.Array, jax.Array]  # (Y, X)
    tested_on: tuple[jax.Array, jax.Array]


def planted_problem(D, settings: Settings) -> Problem:
    """Bernoulli-Gaussian codes of a dictionary, with `sparsity` nonzeros expected (a tenth of the atoms by default)."""
    d = D.shape[1]
    s = d / 10 if settings.sparsity is None else settings.sparsity
    if not 0 < s <= d:
        raise ValueError(f"compare: sparsity must be in 1..{d}, got {settings.sparsity}")
    keys = jax.random.split(settings.key, 3)

    def sampler(batch):
        return problems.sampler(D, batch, probability=s / d, snr=settings.snr)

    return Problem(D, sampler(64), jax.jit(sampler(512))(keys[1]), jax.jit(sampler(1000))(keys[2]))


def given_problem(D, Y: np.ndarray, X: np.ndarray) -> Problem:
    """Signals and codes from files: four fifths to train and choose on, the rest to test."""
    cut = max(1, len(Y) * 4 // 5)
    if len(Y) < 2:
        raise ValueError(f"compare: expected at least 2 signals, got {len(Y)}")
    train, test = (jnp.asarray(Y[:cut]), jnp.asarray(X[:cut])), (jnp.asarray(Y[cut:]), jnp.asarray(X[cut:]))
    return Problem(D, resampler(*train), tuple(part[:512] for part in train), test)


def resampler(Y, X=None, batch: int = 64) -> Callable:
    """`sample(key)` that draws signals (and codes) of a set with replacement."""

    def sample(key):
        rows = jax.random.randint(key, (batch,), 0, len(Y))
        return Y[rows], None if X is None else X[rows]

    return sample


def known_codes(problem: Problem, settings: Settings, say: Callable, title: str, slug: str) -> Section:
    """Classical, analytic, calibrated and learned methods on signals whose codes are known."""
    D, (Y, X) = problem.D, problem.chosen_on
    found = _methods(problem, settings, say)
    say("comparing on the test signals")
    result = compare(found.methods, D, *reversed(problem.tested_on), reference=found.reference)
    text = [
        f"Dictionary {D.shape[0]} x {D.shape[1]}, {problem.tested_on[0].shape[0]} test signals with "
        f"{float((problem.tested_on[1] != 0).sum(1).mean()):.1f} nonzeros on average, K = {settings.depth} steps, SNR "
        f"{settings.snr:g} dB. Calibration and ISTA's penalty are chosen on {len(Y)} other signals.",
        "",
        result.table(),
        "",
        *found.remarks,
        "",
        "What the weights are, and how far training moved each of them (relative distance):",
        "",
        result.parameters_table(),
        "",
        _seconds(found.seconds),
    ]
    figures = {f"{title}: error, failures, support and thresholds, step by step": result.plot()}
    data = {"comparison": _plain(result._asdict()), "seconds": found.seconds}
    return Section(title, slug, "\n".join(text), figures, curve_rows(result), data)


class _Found(NamedTuple):
    methods: dict
    reference: str
    remarks: list[str]
    seconds: dict[str, float]


def _methods(problem: Problem, settings: Settings, say: Callable) -> _Found:
    """name -> (layer, params) for the chosen families: as theory sets them, calibrated, and learned."""
    D, (Y, X), K = problem.D, problem.chosen_on, settings.depth
    methods, remarks, seconds = {}, [], {}
    lam = best_lam(problem, settings) if settings.lam is None else settings.lam
    ista_params = analytic.ista(D, lam, K)
    if "ista" in settings.methods:
        methods["ISTA"] = (layers.ista(K), ista_params)
        methods["ISTA, calibrated"] = (layers.ista(K), analytic.calibrate(layers.ista(K), ista_params, D, X, Y))
    if "fista" in settings.methods:
        methods["FISTA"] = (layers.fista(K), ista_params)
    theory_params, remark = _from_theory(problem, K)
    remarks += [f"ISTA and FISTA use lam = {lam:g}.", remark]
    families = {
        "lista": ("LISTA", layers.lista(K, tied=False, lam=lam), None),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False), theory_params["lista_cp"]),
        "alista": ("ALISTA", layers.alista(K), theory_params["alista"]),
        "alista_ss": ("ALISTA-SS", layers.alista(K, support=(1.2e-2, 0.12)), theory_params["alista"]),
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
        began = time.perf_counter()
        calibrated = analytic.calibrate(layer, params, D, X, Y)
        jax.block_until_ready(calibrated)
        seconds[f"{name}, calibrated"] = time.perf_counter() - began
        methods[f"{name}, calibrated"] = (layer, calibrated)
        say(f"{name}: training {settings.steps} steps")
        began = time.perf_counter()
        trained = _train(layer, calibrated, problem, settings, rates[family], _code_loss)
        seconds[f"{name}, learned"] = time.perf_counter() - began
        methods[f"{name}, learned"] = (layer, trained.best)
    reference = next((name for name in methods if name.endswith("analytic")), next(iter(methods)))
    return _Found(methods, reference, remarks, seconds)


def _from_theory(problem: Problem, K: int):
    """Params of LISTA-CP and ALISTA as theory sets them for the sample's class, and what `holds` says."""
    D, (Y, X) = problem.D, problem.chosen_on
    unit, norms = dictionaries.normalize(D)
    s = int((X != 0).sum(1).max())
    bound = float(jnp.abs(X * norms).max())
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
        # Codes of D are those of the unit dictionary over the norms: W, thresholds and codes are scaled back.
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
    """The penalty of a small grid with the least error of ISTA after K steps, on the sample to choose on."""
    D, (Y, X), K = problem.D, problem.chosen_on, settings.depth
    apply = jax.jit(jax.vmap(layers.ista(K).apply, (None, None, 0)))
    scale = float(jnp.abs(X).max()) or 1.0
    lams = [scale * r for r in (0.01, 0.02, 0.05, 0.1, 0.2)]
    return min(lams, key=lambda lam: float(metrics.nmse(apply(analytic.ista(D, lam, K), D, Y), X)))


def _code_loss(codes, X, D, Y):
    """Mostly the error of the last step; a tenth on all of them keeps the way there short."""
    return 0.9 * training.log_nmse(codes, X, D, Y) + 0.1 * training.deep(training.log_nmse)(codes, X, D, Y)


def _train(layer, params, problem, settings: Settings, rate: float, loss: Callable):
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, max(1, settings.steps)))
    )
    return training.fit(
        layer,
        params,
        problem.D,
        problem.sample,
        optimizer=optimizer,
        steps=settings.steps,
        key=jax.random.fold_in(settings.key, 1),
        loss=loss,
        evaluate_every=max(1, min(100, settings.steps)),
    )


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
            certified, schedule = _quietly(analytic.block_schedule, D, W, depth=K, sparsity=s, bound=1.0)
            table.append(
                f"| {name} | {certified.mu_W:.4f} | {schedule.contraction:.3f} | {schedule.holds} | "
                f"{schedule.steps_for(1e-6):g} | {theory.max_sparsity(certified.mu_W, D.shape[1])} |"
            )
            if not schedule.holds:
                continue
            params = _quietly(analytic.lista_cp, D, W=W, depth=K, sparsity=s, bound=1.0)
            codes = jax.jit(jax.vmap(layers.lista_cp(K).iterates, (None, None, 0), out_axes=1))(params, D, Y)
            measured = np.concatenate([[float(jnp.abs(X).sum(1).max())], jnp.abs(codes - X).sum(2).max(1)])
            wrong = int(((codes != 0) & (X == 0)).sum())
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
    figures = {f"{title}: the largest l1 error of 500 signals under its bound": plots.bound(lines, title=f"s = {s}")}
    header = ["weights", "step", "largest l1 error", "certified bound"]
    data = {name: {"measured": m.tolist(), "bound": b.tolist()} for name, (m, b) in lines.items()}
    return Section(title, "certified", "\n".join(text), figures, (header, rows), {"sparsity": s, "curves": data})


def _quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", analytic.HypothesisWarning)
        return function(*args, **options)


class Pictures(NamedTuple):
    """Signals without known codes: to train on, to test on, and how to show the test ones as a picture."""

    train: np.ndarray  # (signals, m)
    test: np.ndarray
    mean: np.ndarray | None  # (signals, 1) what was taken off the test patches
    shape: tuple[int, int] | None  # of the test picture


def photograph_patches(images: dict[str, np.ndarray]) -> Pictures:
    """8 x 8 patches without their mean: all pictures but the last train, the last one is tested in tiles."""
    *train, test = images.values()
    train = train or [test]
    rows = np.concatenate([datasets.to_patches(image, _PATCH, 3) for image in train])
    tiles = datasets.to_patches(test, _PATCH)
    mean = tiles.mean(1, keepdims=True)
    return Pictures(rows - rows.mean(1, keepdims=True), tiles - mean, mean, test.shape)


def unknown_codes(D, pictures: Pictures, settings: Settings, say: Callable, title: str, slug: str) -> Section:
    """Signals without known codes: the gap to the LASSO optimum at every step, and the reconstruction."""
    K, D = settings.depth, jnp.asarray(D)
    train, test = jnp.asarray(pictures.train), jnp.asarray(pictures.test)
    lam = settings.lam
    if lam is None:
        lam = float(jnp.median(jnp.abs(train[:2000] @ D).max(1))) / 10
    say(f"solving {len(test)} LASSO problems to a duality gap")
    solve = jax.jit(jax.vmap(lambda y: fista(D, y, lam, tol=1e-6, max_steps=3000)))
    subset = test[:: max(1, len(test) // (500 if settings.quick else 2000))]
    optimum, sample = solve(subset), train[jax.random.randint(settings.key, (512,), 0, len(train))]
    targets = solve(sample).x
    problem = Problem(D, resampler(train, batch=128), (sample, targets), (subset, optimum.x))
    methods = {"ISTA": (layers.ista(K), analytic.ista(D, lam, K)), "FISTA": (layers.fista(K), analytic.ista(D, lam, K))}
    seconds = {}
    loss = _lasso_loss(lam)
    families = {
        "lista": ("LISTA", layers.lista(K, tied=True, lam=lam), 1e-3),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False, lam=lam), 1e-3),
        "ista": ("ISTA, steps", layers.ista(K, lam=lam), 3e-3),
    }
    for family, (name, layer, rate) in families.items():
        if family not in settings.methods:
            continue
        start = layer.init(settings.key, D)
        say(f"{name}: training {settings.steps} steps on the LASSO objective")
        began = time.perf_counter()
        methods[f"{name} learned"] = (layer, _train(layer, start, problem, settings, rate, loss).best)
        seconds[f"{name} learned"] = time.perf_counter() - began
    result = compare(methods, D, optimum.x, subset, reference="ISTA", lam=lam)
    psnrs = {name: _psnr_per_step(layer, p, D, subset) for name, (layer, p) in methods.items()}
    best_psnr = float(metrics.psnr(problems.synthesize(D, optimum.x), subset))
    table = [
        "| method | (F - F*) / F* after 4 | after 8 | after K | PSNR after K, dB |",
        "|---|---|---|---|---|",
        *[
            f"| {name} | {c.gap[min(3, K - 1)]:.2e} | {c.gap[min(7, K - 1)]:.2e} | {c.gap[-1]:.2e} | {psnrs[name][-1]:.2f} |"
            for name, c in result.curves.items()
        ],
        f"| LASSO optimum | | | 0 | {best_psnr:.2f} |",
    ]
    W = analytic.certify(dictionaries.normalize(D)[0])
    text = [
        f"Dictionary {D.shape[0]} x {D.shape[1]}, {len(train)} signals to train on and {len(subset)} others to test on, lam = "
        f"{lam:.4g}, K = {K} steps. F* is solved by FISTA to a relative duality gap of at most "
        f"{float(optimum.gap.max()):.1e} ({float(optimum.converged.mean()):.1%} of the signals within 1e-6); the optimal codes have "
        f"{float((optimum.x != 0).sum(1).mean()):.1f} nonzeros on average.",
        "",
        f"The best closed-form weights have mu_W = {W.mu_W:.3f}, which certifies s = "
        f"{theory.max_sparsity(W.mu_W, D.shape[1])}: on so coherent a dictionary theory has nothing to say, "
        "and what is learned is compared with the optimum itself.",
        "",
        *table,
        "",
        _seconds(seconds),
    ]
    figures = {f"{title}: objective gap, error against the optimal codes, support and thresholds": result.plot()}
    if pictures.shape is not None:
        figures[f"{title}: reconstruction from the codes after K = {K} steps"] = _show(pictures, methods, D, optimum, lam)
    header, rows = curve_rows(result)
    rows = [[*row, psnrs[row[0]][row[1] - 1]] for row in rows]
    data = {"comparison": _plain(result._asdict()), "psnr": _plain(psnrs), "lam": lam, "seconds": seconds}
    return Section(title, slug, "\n".join(text), figures, ([*header, "psnr"], rows), data)


def _lasso_loss(lam: float) -> Callable:
    objective = training.lasso(lam)

    def loss(codes, X, D, Y):
        return 0.7 * objective(codes, X, D, Y) + 0.3 * training.deep(objective)(codes, X, D, Y)

    return loss


def _psnr_per_step(layer, params, D, Y) -> list[float]:
    codes = jax.jit(jax.vmap(layer.iterates, (None, None, 0), out_axes=1))(params, D, Y)
    return [float(metrics.psnr(problems.synthesize(D, X), Y)) for X in codes]


def _show(pictures: Pictures, methods, D, optimum, lam):
    """The test picture: itself, and rebuilt from ISTA's codes and the last learned ones."""
    shown = {"original": pictures.test}
    for name in ("ISTA", list(methods)[-2 if len(methods) > 3 else -1]):
        layer, params = methods[name]
        codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, jnp.asarray(pictures.test))
        rebuilt = np.asarray(problems.synthesize(D, codes))
        value = float(metrics.psnr(jnp.asarray(rebuilt), jnp.asarray(pictures.test)))
        shown[f"{name}, {value:.2f} dB"] = rebuilt
    return plots.images(
        {name: datasets.from_patches(p + pictures.mean, pictures.shape, _PATCH) for name, p in shown.items()}
    )


def chain(settings: Settings, say: Callable) -> Section:
    """A certified two-layer chain in float64, and the thresholds of the printed proof beside the corrected ones."""
    say("a two-layer chain with certified bounds")
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.fold_in(settings.key, 4), 3)
        D_1 = dictionaries.identity_hadamard(256)
        D_2 = jnp.pad(dictionaries.transversal(keys[0], 4, 127, 700), ((0, 4), (0, 0)))  # 508 rows, to 512
        fast = _chain_run(D_1, D_2, (4, 1), (40, 40), keys[1])
        slow = {K: _chain_run(D_1, D_2, (8, 2), (K, K), keys[2]) for K in ((20, 40) if settings.quick else (20, 40, 80, 160))}
    text = [
        "y = D_1 x_1, x_1 = D_2 x_2 with D_1 = [I, Hadamard] (256 x 512) and D_2 a transversal design (512 x 700, 4 "
        "nonzeros per atom). The certified error of layer 1 enters the thresholds of layer 2 (Theorem 6, corrected).",
        "",
        f"With (4, 1) nonzeros the contractions are ({fast.contractions[0]:.3f}, {fast.contractions[1]:.3f}); after 40 steps "
        f"each, the largest l1 errors of 200 signals are {fast.measured[0][-1]:.1e} and {fast.measured[1][-1]:.1e} under bounds "
        f"of {fast.bounds[0][-1]:.1e} and {fast.bounds[1][-1]:.1e}, with {fast.wrong} wrong entries.",
        "",
        "With (8, 2) nonzeros layer 1 contracts slowly (a = 0.94). The printed proof runs layer 2 with thresholds made for "
        "the exact x_1; it diverges. Largest l1 error of layer 2:",
        "",
        "| steps per layer | certified bound | corrected thresholds | thresholds of the printed proof |",
        "|---|---|---|---|",
        *[f"| {K} | {r.bounds[1][-1]:.2e} | {r.measured[1][-1]:.2e} | {r.printed:.2e} |" for K, r in slow.items()],
    ]
    lines = {f"layer {j + 1}": (fast.measured[j], fast.bounds[j]) for j in range(2)}
    title = "A two-layer chain with certified bounds"
    rows = [[f"layer {j + 1}", k, e, b] for j in range(2) for k, (e, b) in enumerate(zip(fast.measured[j], fast.bounds[j]))]
    header = ["layer", "step", "largest l1 error", "certified bound"]
    figures = {f"{title}: 200 signals, float64": plots.bound(lines, title="Deep sparse coding, (4, 1) nonzeros")}
    data = {"fast": _plain(fast._asdict()), "slow": {str(K): _plain(r._asdict()) for K, r in slow.items()}}
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
    measured = tuple(
        np.concatenate([[float(jnp.abs(X).sum(1).max())], jnp.abs(x - X).sum(2).max(1)])
        for x, X in zip(iterates, (X_1, X_2))
    )
    wrong = sum(int(((x != 0) & (X == 0)).sum()) for x, X in zip(iterates, (X_1, X_2)))
    exact = analytic.lista_cp(D_2, depth=depths[1], sparsity=sparsities[1], bound=1.0, W=D_2)
    printed = jax.jit(jax.vmap(second.apply, (None, None, 0)))(exact, D_2, codes[0])
    return _Chain(
        tuple(s.contraction for s in schedules),
        measured,
        tuple(s.error for s in schedules),
        wrong,
        float(jnp.abs(printed - X_2).sum(1).max()),
    )


def curve_rows(result: Comparison) -> tuple[list[str], list[list]]:
    """The curves of a comparison as a CSV: one row per method and step."""
    fields = ("nmse", "mean_nmse", "failure_rate", "precision", "recall", "false_positives", "largest_l1", "gap")
    rows = []
    for name, curve in result.curves.items():
        for k in range(len(curve.nmse)):
            values = [getattr(curve, field) for field in fields]
            rows.append([name, k + 1, *["" if v is None else float(v[k]) for v in values]])
    return ["method", "step", *fields], rows


def _seconds(seconds: dict[str, float]) -> str:
    if not seconds:
        return ""
    return "Seconds, compilation included: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()) + "."
