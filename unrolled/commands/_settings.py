"""What the experiments share: settings, samples, training, and results as rows of a table."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import problems, training
from unrolled.compare import Comparison, DivergenceWarning, compare

METHODS = ("ista", "fista", "lista", "lista_cp", "alista", "alista_ss")

BATCH = 64  # signals of a training step
CHOSEN_ON = 512  # signals that thresholds, step sizes and penalties are chosen on
_TESTED_ON = 1000  # planted signals
_CLIP = 1.0  # largest norm of a gradient
_EVALUATE_EVERY = 100  # steps


@dataclass(frozen=True)
class Settings:
    """What the command line sets for all experiments."""

    methods: tuple[str, ...] = METHODS
    depth: int = 16
    sparsity: int | None = None
    snr: float = math.inf
    lam: float | None = None
    steps: int = 400
    seed: int = 0
    quick: bool = False
    pursuits: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # of the pursuits

    @property
    def key(self) -> jax.Array:
        """The key of everything random."""
        return jax.random.key(self.seed)


class Samples(NamedTuple):
    """A dictionary, a sampler to train with, and samples (Y, X) to choose and to test on."""

    D: Any  # a tuple for a chain
    sample: Callable[..., Any]
    chosen_on: tuple[Any, Any]  # (Y, X); X is a tuple for a chain, None where codes are not known
    tested_on: tuple[Any, Any]
    snr: float | None = None  # dB, of planted signals

    def noise(self) -> str:
        """The end of a sentence of a report: of given signals the noise is not known."""
        return "" if self.snr is None else f", SNR {self.snr:g} dB"


def planted_problem(D: Any, settings: Settings) -> Samples:
    """Bernoulli-Gaussian codes of a dictionary, or of the last one of a chain.

    The expected number of nonzeros is `settings.sparsity`, by default a tenth of the atoms.
    """
    d = (D[-1] if isinstance(D, tuple) else D).shape[1]
    s = d / 10 if settings.sparsity is None else settings.sparsity
    if not 0 < s <= d:
        raise ValueError(f"compare: sparsity must be in 1..{d}, got {settings.sparsity}")
    keys = jax.random.split(settings.key, 3)

    def sampler(batch):
        return problems.sampler(D, batch, probability=s / d, snr=settings.snr)

    chosen_on, tested_on = jax.jit(sampler(CHOSEN_ON)), jax.jit(sampler(_TESTED_ON))
    return Samples(D, sampler(BATCH), chosen_on(keys[1]), tested_on(keys[2]), settings.snr)


def given_problem(D: Any, Y: np.ndarray, X: Any) -> Samples:
    """Signals and codes from files: four fifths to train and to choose on, the rest to test on."""
    cut = max(1, len(Y) * 4 // 5)
    if len(Y) < 2:
        raise ValueError(f"compare: expected at least 2 signals, got {len(Y)}")

    def rows(first: int, last: int) -> tuple[Any, Any]:
        return jax.tree.map(lambda array: jnp.asarray(array[first:last]), (Y, X))

    sample = resampler(*rows(0, cut))
    return Samples(D, sample, rows(0, min(cut, CHOSEN_ON)), rows(cut, len(Y)))


def resampler(Y: jax.Array, X: Any = None, batch: int = BATCH) -> Callable[..., Any]:
    """`sample(key)` that draws signals, and codes, of a set with replacement."""

    def sample(key):
        rows = jax.random.randint(key, (batch,), 0, len(Y))
        return jax.tree.map(lambda array: array[rows], (Y, X))

    return sample


def train(
    layer: Any,
    params: Any,
    problem: Samples,
    settings: Settings,
    rate: float,
    loss: Callable[..., jax.Array],
    name: str,
    remarks: list[str],
) -> training.Fit:
    """`fit` by clipped Adam with a cosine-decayed rate, the same for every family.

    A training that breaks counts as far as it came, and a remark says so.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(_CLIP),
        optax.adam(optax.cosine_decay_schedule(rate, max(1, settings.steps))),
    )
    try:
        return training.fit(
            layer,
            params,
            problem.D,
            problem.sample,
            optimizer=optimizer,
            steps=settings.steps,
            key=jax.random.fold_in(settings.key, 1),
            loss=loss,
            evaluate_every=max(1, min(_EVALUATE_EVERY, settings.steps)),
        )
    except training.NonFiniteError as broken:
        remarks.append(
            f"The training of {name} broke, because its loss or gradient was not finite: its row "
            "shows the best params before. Atoms of norm 1 may help (`dictionaries.normalize`)."
        )
        return broken.fit


_FIELDS = (
    *("nmse", "mean_nmse", "failure_rate", "precision"),
    *("recall", "false_positives", "largest_l1", "gap"),
)


def compared(*arguments: Any, **options: Any) -> Any:
    """`compare` without its warning: a report has the notes of the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        warnings.filterwarnings("ignore", "compare: .* not in the gaps")
        return compare(*arguments, **options)


def curve_rows(result: Comparison) -> tuple[list[str], list[list]]:
    """The curves of a comparison, one row per method and step; what is undefined is empty.

    Codes that were given have one row without a step.
    """
    rows = []
    for name, curve in result.curves.items():
        for k in range(len(curve.nmse)):
            values = [None if v is None else v[k] for v in (getattr(curve, f) for f in _FIELDS)]
            cells = ["" if v is None or np.isnan(v) else float(v) for v in values]
            rows.append([name, "" if name in result.given else k + 1, *cells])
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
    told = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return f"Seconds, compilation included: {told}."
