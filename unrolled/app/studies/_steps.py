"""The parts that studies share: samples, starts from theory, training, pursuits, rows."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import analytic, dictionaries, layers, metrics, problems, theory, training
from unrolled._base import checks
from unrolled._base.doors import Array, Key, Result, checked
from unrolled._base.files import drawing
from unrolled.comparison import ChainComparison, Comparison
from unrolled.comparison import compared as compared_of
from unrolled.dictionaries import block_of, check_batch
from unrolled.layers import Layer, Unrolled
from unrolled.problems import resampler
from unrolled.pursuit import PURSUITS, check_dictionaries, check_options, pursue
from unrolled.training import as_dictionaries
from unrolled.vision import datasets

__all__ = [
    "Picture",
    "Pictures",
    "Samples",
    "Starts",
    "from_theory",
    "photograph_patches",
    "planted",
    "split",
]


BATCH = 64  # signals of a training step
CHOSEN_ON = 1280  # signals for choosing thresholds, step sizes and penalties
PATCH = 8  # pixels on a side of a patch
_TESTED_ON = 1000  # planted signals
_STRIDE = 3  # pixels between neighbouring training patches


class Samples(NamedTuple):
    """A dictionary, a sampler for training, and samples (Y, X) for settings and for tests."""

    D: Any  # the dictionary; a tuple for a chain
    sample: Callable[..., Any]  # draws a batch to train on
    chosen_on: tuple[Any, Any]  # (Y, X); X is a tuple for a chain, None if codes are not known
    tested_on: tuple[Any, Any]  # (Y, X), test signals and codes
    snr: float | None = None  # dB, of planted signals; None for other signals

    def noise(self) -> str:
        """The end of a sentence in a report; empty if the noise is not known."""
        if self.snr is None:
            return ""
        return ", without noise" if np.isinf(self.snr) else f", SNR {self.snr:g} dB"


@checked
def planted(key: Key, D: Any, *, sparsity: float | None = None, snr: float = math.inf) -> Samples:
    """Signals with Bernoulli-Gaussian codes for a dictionary, or for the last dictionary of a
    chain.

    Args:
        key: the key of the codes and the noise.
        D: a dictionary of shape (m, d); for a chain a tuple of dictionaries.
        sparsity: the expected number of nonzeros, or of nonzero parts if codes come in parts; if
            None, a tenth of the number of atoms.
        snr: signal-to-noise ratio, dB.

    Returns:
        Samples, with 1,280 signals for choosing settings and 1,000 signals for testing.

    Raises:
        ValueError: the sparsity is not in 1..d, or neighbouring dictionaries do not fit.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 16)
        >>> samples = ur.app.studies.planted(jax.random.key(1), D, sparsity=2, snr=30)
        >>> [array.shape for array in samples.tested_on]
        [(1000, 8), (1000, 16)]
    """
    D = as_dictionaries(D, "planted")
    last = D[-1] if isinstance(D, tuple) else D
    d = last.shape[1] // block_of(last)
    s = d / 10 if sparsity is None else sparsity
    s = checks.as_number(s, "sparsity", "compare")
    if not 0 < s <= d:
        raise ValueError(f"compare: sparsity must be in 1..{d}, got {sparsity}")
    keys = jax.random.split(key, 3)

    def sampler(batch):
        return problems.sampler(D, batch, probability=s / d, snr=snr)

    chosen_on, tested_on = (drawing(sampler(batch)) for batch in (CHOSEN_ON, _TESTED_ON))
    return Samples(D, sampler(BATCH), chosen_on(keys[1]), tested_on(keys[2]), snr)


def split(D: Any, Y: Array | np.ndarray, X: Any) -> Samples:
    """Split your signals and codes: four fifths for training, the rest for testing.

    The first 1,280 training signals are also for choosing thresholds, step sizes and penalties.

    Args:
        D: a dictionary of shape (m, d); for a chain a tuple of dictionaries.
        Y: signals of shape (signals, m).
        X: the codes of Y, of shape (signals, d); for a chain a tuple with the codes of every layer.

    Raises:
        ValueError: there is only one signal, or shapes do not fit.

    Example:
        >>> samples = ur.app.studies.split(jnp.eye(3), np.ones((10, 3)), np.ones((10, 3)))
        >>> [len(Y) for Y, X in (samples.chosen_on, samples.tested_on)]
        [8, 2]
    """
    Y, X = jax.tree.map(checks.as_array, (Y, X))
    D, signals = as_dictionaries(D, "split"), Y
    chained = isinstance(D, tuple)
    if chained and not (isinstance(X, tuple | list) and len(X) == len(D)):
        raise ValueError(f"split: expected a tuple X with the codes of all {len(D)} layers")
    for D_j, X_j in zip(D, X) if chained else ((D, X),):
        check_batch(D_j, signals, X_j, "split")
        signals = X_j
    cut = max(1, len(Y) * 4 // 5)
    if len(Y) < 2:
        raise ValueError(f"compare: expected at least 2 signals, got {len(Y)}")

    def rows(first: int, last: int) -> tuple[Any, Any]:
        return jax.tree.map(lambda array: jnp.asarray(array[first:last]), (Y, X))

    sample = resampler(*rows(0, cut))
    return Samples(D, sample, rows(0, min(cut, CHOSEN_ON)), rows(cut, len(Y)))


class Picture(NamedTuple):
    """The data that turn test patches into a picture again."""

    mean: np.ndarray  # (signals, 1), subtracted from the patches
    shape: tuple[int, int]  # (height, width)


class Pictures(NamedTuple):
    """Signals without known codes, for training and testing; test signals may tile a picture."""

    training: Any  # (signals, m), an array
    testing: Any  # signals to test on
    picture: Picture | None = None  # the picture that the test signals tile, or None


@checked
def photograph_patches(images: dict[str, np.ndarray]) -> Pictures:
    """8 x 8 patches of pictures, without their mean, for training and for testing.

    The test patches are tiles of the last picture. The training patches come from the other
    pictures, or from the last picture if there is no other.

    Args:
        images: name -> an array of grey values, of shape (height, width), as from
            `datasets.photographs`.

    Raises:
        ValueError: there are no pictures, or values are not finite.

    Example:
        >>> images = {"a": np.eye(16), "b": np.ones((16, 24))}
        >>> ur.app.studies.photograph_patches(images).testing.shape
        (6, 64)
    """
    if not images:
        raise ValueError("photograph_patches: there are no pictures; expected at least one")
    for name, image in images.items():
        checks.finite(np.asarray(image), f"picture {name}", "photograph_patches")
    *first, last = images.values()
    patches = [datasets.to_patches(image, PATCH, _STRIDE) for image in first or [last]]
    rows = np.concatenate(patches)
    tiles = datasets.to_patches(last, PATCH)
    mean = tiles.mean(1, keepdims=True)
    picture = Picture(mean, last.shape)
    return Pictures(rows - rows.mean(1, keepdims=True), tiles - mean, picture)


# Methods with a row in the tables of a study; every other family is a method, too.
METHODS = ("ista", "fista", "lista", "lista_cp", "alista", "alista_ss")
# LISTA is left out by default: its two free matrices per step are slow to train.
BY_DEFAULT = tuple(name for name in METHODS if name != "lista")
# Support selection of ALISTA-SS: the share per step, and the largest share.
SUPPORT = (0.012, 0.12)
# The sentence above the table of guarantees.
GUARANTEES = (
    "For the same params, theory bounds the l1 error of every code with at most s nonzeros of "
    "magnitude at most B, observed with noise of l1 norm at most delta. The table has the "
    "least s, B and delta that cover the test signals. The last column has the largest s with a "
    "guarantee."
)
# The sentence above the table of predictions.
PREDICTIONS = (
    "The columns of errors have the median error of a signal, in dB, / the prediction of state "
    "evolution, for Bernoulli-Gaussian codes like the codes of the test signals. The column of dB "
    "per step has the gain of a step once the support is right, without the effect of thresholds. "
    "Predictions do not cover the ratio of sums, which depends on a few hard signals:"
)
# The sentence above the table of parameters.
WEIGHTS = (
    "The weights (mu_W and rms with w_i . d_i scaled to 1), and the relative distance by which "
    "training moved each array of weights:"
)

_CLIP = 1.0  # largest norm of a gradient
_EVALUATE_EVERY = 100  # steps
# A residual below this share of the mean signal is a rounding error.
_ROUNDING = 1e-4
_UNIT = 1e-4  # how far the norms of unit atoms may be from 1

Say = Callable[[str], None]


def silent(message: str) -> None:
    """Take a message of a study, and print nothing."""


def seldom(say: Say, seconds: float) -> Say:
    """`say`, but without messages that come less than `seconds` after the last message."""
    last = time.monotonic()

    def say_seldom(message: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(message)

    return say_seldom


def one_per_layer(sparsity: int | Sequence[int] | None) -> Sequence[int] | None:
    """The sparsities of all layers, as a sequence; a number becomes a sequence of length 1."""
    if sparsity is None or isinstance(sparsity, Sequence):
        return sparsity
    return (checks.as_index(sparsity, "sparsity", "certify"),)


class Plan(NamedTuple):
    """The methods and the numbers of a study."""

    key: Array
    methods: tuple[str, ...]
    pursuits: Mapping[str, Mapping[str, Any]]  # name -> options
    depth: int
    lam: float | None
    steps: int
    say: Say
    weights: Mapping[str, training.Fit] = MappingProxyType({})  # results of earlier runs

    @property
    def others(self) -> list[str]:
        """The families among the methods that are not in `METHODS`."""
        return [name for name in self.methods if name not in METHODS]


def plan(
    key: Key,
    methods: tuple[str, ...],
    pursuits: Mapping[str, Mapping[str, Any]] | None,
    depth: int,
    lam: float | None,
    steps: int,
    say: Say,
    weights: Mapping[str, training.Fit] | None = None,
) -> Plan:
    """A plan with checked numbers."""
    where, methods = "compare", tuple(methods)
    if wrong := [name for name in methods if name not in all_methods()]:
        raise ValueError(
            f"{where}: unknown method {', '.join(map(str, wrong))}; expected some of "
            f"{', '.join(all_methods())}"
        )
    if lam is not None:
        lam = checks.as_number(lam, "lam", where)
        if not 0 < lam < np.inf:
            raise ValueError(f"{where}: lam must be positive, got {lam}")
    depth = checks.as_depth(depth, "depth", where, least=1)
    steps = checks.as_index(steps, "steps", where)
    numbers = depth, lam, steps
    return Plan(checks.as_key(key, where), methods, pursuits or {}, *numbers, say, weights or {})


def all_methods() -> tuple[str, ...]:
    """`METHODS`, and all other families that are known now.

    Example:
        >>> "lamp" in ur.app.studies.all_methods()
        True
    """
    return tuple(dict.fromkeys((*METHODS, *layers.FAMILIES)))


def layer_of(name: str, depth: int, lam: float | None, sparsity: int) -> Layer:
    """The layer of a family, with the study's lam and sparsity if the family has these options.

    Raises:
        ValueError: the family needs other options.
    """
    family = layers.FAMILIES[name]
    fields = {field.name: field for field in dataclasses.fields(family)}
    options: dict[str, Any] = {"lam": lam} if "lam" in fields and lam is not None else {}
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n != "depth"]
    if "sparsity" in needed:
        options["sparsity"] = sparsity
    if lacking := [n for n in needed if n not in options]:
        raise ValueError(
            f"compare: {name} needs {', '.join(lacking)}, which compare does not choose; train it "
            "in a script and pass its weights"
        )
    return family(depth, **options)


# Params


class Starts(Result):
    """The params that theory sets for the class of a sample, and their guarantee."""

    params: dict[Layer, Unrolled]  # for the layers whose params theory sets
    remark: str  # sentences about the start, or ""
    caution: str  # part of the remark: why the thresholds are not certified; "" if they are
    covered: int  # the most nonzeros that the worst case covers
    sparsity: int  # s, for which the params are made
    bound: float  # B, the largest entry of the sample, for atoms of norm 1


@checked
def from_theory(samples: Samples, *models: Layer, sparsity: int | None = None) -> Starts:
    """The params that theory sets for layers of one depth, for the codes of `samples.chosen_on`.

    Without `sparsity`, the params are for the most nonzeros of these codes.

    Example:
        >>> D, layer = ur.dictionaries.identity_hadamard(16), ur.alista(4)
        >>> X = ur.problems.exact_sparse(jax.random.key(0), (50, 32), 1)
        >>> samples = ur.app.studies.split(D, ur.problems.synthesize(D, X), X)
        >>> starts = ur.app.studies.from_theory(samples, layer)
        >>> starts.params[layer].steps.theta.shape, starts.remark[:28]
        ((4,), 'Guaranteed, with mu_W = 0.25')
    """
    D, (Y, X) = samples.D, samples.chosen_on
    unit, norms = dictionaries.normalize(D)
    codes, sizes = np.asarray(X), np.asarray(norms)
    s, bound = int(np.count_nonzero(codes, axis=1).max()), float(np.abs(codes * sizes).max())
    s = s if sparsity is None else sparsity
    noise, size = map(float, _noise(D, Y, X))
    # The guard covers the rounding errors of a noiseless sample.
    noise = noise if noise > _ROUNDING * size else 0.0
    with checks.quiet(analytic.HypothesisWarning):
        certified, schedule = analytic.block_schedule(
            unit, depth=models[0].depth, sparsity=s, bound=bound, noise=noise
        )
    W, theta = certified.W, analytic.stored_thresholds(schedule.theta, certified.W.dtype)
    remark, caution = _certified(certified.mu_W, schedule, s, D.shape[1])
    if not np.allclose(np.asarray(norms), 1, atol=_UNIT):
        # The codes of D are the codes of the unit dictionary, divided by the norms.
        W, theta = _divided(W, norms), theta[:, None] / norms[None, :]
        remark += " The atoms were normalised for the theory, and the params were scaled back."
    params = {m: m.from_theory(W, theta) for m in models if m.from_theory is not None}
    covered = theory.max_sparsity(certified.mu_W, D.shape[1])
    return Starts(params, remark, caution, covered, s, bound)


def _divided(W: Any, norms: Array) -> Any:
    """W with its columns divided by the norms."""
    structured = isinstance(W, dictionaries.Structured)
    return W.scale_columns(1 / norms) if structured else W / norms[None, :]


@jax.jit
def _noise(D: Any, Y: Array, X: Array) -> tuple[Array, Array]:
    """The largest l1 norm of y - D x over the signals, and the mean l1 norm of a signal."""
    return jnp.abs(Y - problems.synthesize(D, X)).sum(1).max(), jnp.abs(Y).sum(1).mean()


def nonzeros(D: Any, X: Any) -> float:
    """The mean number of nonzeros, or of nonzero parts, of codes of shape (signals, d)."""
    parts = np.asarray(X).reshape(len(X), -1, block_of(D))
    return float((parts != 0).any(2).sum(1).mean())


def _certified(mu_W: float, schedule: Any, s: int, d: int) -> tuple[str, str]:
    """The remark and the caution of `Starts`."""
    largest, a = theory.max_sparsity(mu_W, d), f"{schedule.contraction:.3g}"
    covered = f"up to {largest} nonzeros and this sample has up to {s} (contraction {a}"
    if schedule.holds:
        return f"Guaranteed, with mu_W = {mu_W:.4f}: theory covers {covered} < 1).", ""
    caution = (
        f"No guarantee here: theory covers {covered}, not below 1), so the analytic thresholds "
        f"grow by a factor of about {a} per step instead of shrinking."
    )
    return (
        f"{caution} The analytic rows show what an uncertified schedule does. Calibration keeps W "
        f"(mu_W = {mu_W:.4f}) and chooses thresholds on the sample; training changes all params "
        "that are not fixed."
    ), caution


def best_lam(samples: Samples, depth: int, family: str = "ista") -> float:
    """The lam in the grid of a recipe with the least error of ISTA, or FISTA, after K steps."""
    D, (Y, X), layer = samples.D, samples.chosen_on, layers.FAMILIES[family](depth)

    @jax.jit
    def error(params, D, Y, X):
        return metrics.nmse(jax.vmap(layer.apply, (None, None, 0))(params, D, Y), X)

    lams = layer.recipe.tried(training.law_of(D, Y, X))["lam"]
    return min(lams, key=lambda lam: float(error(analytic.ista(D, lam, depth), D, Y, X)))


def train(
    layer: Any,
    params: Any,
    samples: Samples,
    plan: Plan,
    name: str,
    remarks: list[str],
    loss: Callable[..., jax.Array] | None = None,
    rate: float | None = None,
) -> training.Fit:
    """`fit` by clipped Adam with a cosine-decayed rate.

    By default the loss is `training.mostly_last`, and the rate is the rate of the family's recipe.
    If the training breaks, the result has the best params so far, and a remark says so.
    """
    if rate is None:
        rate = (layer if isinstance(layer, Layer) else layer.layers[0]).recipe.rate
    optimizer = optax.chain(
        optax.clip_by_global_norm(_CLIP),
        optax.adam(optax.cosine_decay_schedule(rate, max(1, plan.steps))),
    )
    options: dict[str, Any] = dict(
        optimizer=optimizer,
        steps=plan.steps,
        key=training_key(plan),
        loss=loss or training.mostly_last,
        evaluate_every=max(1, min(_EVALUATE_EVERY, plan.steps)),
        progress=False,  # the plan's `say` tells it
    )
    run = partial(training.fit, layer, params, samples.D, samples.sample, **options)
    return unless_broken(run, name, remarks)


def training_key(plan: Plan) -> Array:
    """The key of the batches of all training runs."""
    return jax.random.fold_in(plan.key, 1)


def unless_broken(train: Callable[[], training.Fit], name: str, remarks: list[str]) -> training.Fit:
    """What `train` returns; if `train` breaks, the best params so far, and a remark."""
    try:
        return train()
    except training.NonFiniteError as broken:
        remarks.append(
            f"The training of {name} broke, because its loss or gradient was not finite: the row "
            "shows the best params so far. Atoms of norm 1 may help (`dictionaries.normalize`)."
        )
        return broken.fit


# Codes of pursuits


def pursuit_codes(
    Ds: tuple[Any, ...],
    tested_on: tuple[Any, Any],
    plan: Plan,
    seconds: dict[str, float],
    remarks: list[str],
    lam: float | None,
) -> dict[str, tuple[jax.Array, ...]]:
    """The codes that the plan's pursuits compute for the test signals, for every layer, by name.

    If an option is not given, the sparsity is the mean number of nonzeros of the known codes, and
    the weight of the LASSO is `lam`.

    Raises:
        ValueError: a pursuit lacks an option, or does not take that many dictionaries.
    """
    Y, X = tested_on
    sparsity = max(1, round(nonzeros(Ds[-1], X[-1] if isinstance(X, tuple) else X)))
    otherwise = {"sparsity": sparsity, "lam": lam}
    completed = {
        name: _completed(name, options, otherwise) for name, options in plan.pursuits.items()
    }
    for name, options in completed.items():  # check before any work
        check_options(name, options, "compare")
        check_dictionaries(name, len(Ds), "compare")
    codes = {}
    for name, options in completed.items():
        plan.say(f"{name}: {len(Y)} test signals")
        with timed(seconds, name):
            pursued = jax.block_until_ready(pursue(name, Ds, Y, options))
        codes[name] = pursued.codes
        listed = ", ".join(f"{option} = {value}" for option, value in options.items())
        missed = f"; {pursued.missed} codes miss their tolerance" if pursued.missed else ""
        if pursued.zeros:
            missed += f"; {pursued.zeros} signals are negligible next to the largest: coded as zero"
        remarks.append(f"{name}: {listed or 'no options'}{missed}.")
    return codes


def _completed(name: str, options: Mapping[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    """The options of a pursuit, with missing options taken from `otherwise`."""
    has_aim = options.keys() & {"sparsity", "lam", "ratio"} or (name == "omp" and "tol" in options)
    if has_aim or name not in PURSUITS:
        return dict(options)
    own = PURSUITS[name].options
    names = [option for option in ("sparsity", "lam") if option in own][:1]
    return dict(options) | {n: otherwise[n] for n in names if otherwise[n] is not None}


# Results

_FIELDS = (
    *("nmse", "mean_nmse", "failure_rate", "precision"),
    *("recall", "false_positives", "largest_l1", "gap"),
)


def compared(*arguments: Any, **options: Any) -> Any:
    """Call `compare` without its warning, because reports show its notes, and drop the seconds.

    Without seconds, a study is a function of its arguments. If there are true codes, the study
    omits PSNR, because the peak depends on the sample.
    """
    result = compared_of(*arguments, **options)
    if isinstance(result, ChainComparison):
        return result.replace(layers=tuple(map(_without_psnr, result.layers)))
    return _without_psnr(result)


def _without_psnr(result: Comparison) -> Comparison:
    if not result.known:
        return result
    methods = result.methods.items()
    return result.replace(
        methods={name: of.replace(curve=of.curve.replace(psnr=None)) for name, of in methods}
    )


@checked
def curve_rows(result: Comparison) -> tuple[list[str], list[list]]:
    """The curves of a comparison, one row per method and step; undefined cells are empty.

    The codes of a pursuit have one row, without a step.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> methods = {"ISTA": (ur.layers.ista(2), ur.analytic.ista(D, 0.1, 2))}
        >>> comparison = ur.compare(methods, D, D.T, jnp.eye(8))
        >>> from unrolled.app.studies._steps import curve_rows
        >>> header, rows = curve_rows(comparison)
        >>> header[:3], [row[:2] for row in rows]
        (['method', 'step', 'nmse'], [['ISTA', 1], ['ISTA', 2]])
    """
    rows = []
    for name, of in result.methods.items():
        for k in range(len(of.curve.nmse)):
            values = [None if v is None else v[k] for v in (getattr(of.curve, f) for f in _FIELDS)]
            cells = ["" if v is None or np.isnan(v) else float(v) for v in values]
            rows.append([name, "" if of.given else k + 1, *cells])
    return ["method", "step", *_FIELDS], rows


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Put the seconds of a block into `seconds`."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def spent(seconds: dict[str, float]) -> str:
    """The seconds as one sentence of a report."""
    if not seconds:
        return ""
    listed = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return f"Seconds, with compilation; parts that ran at the same time took longer: {listed}."
