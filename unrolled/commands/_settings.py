"""What every experiment shares: settings, problems, training, and how results become rows."""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled import problems, training
from unrolled.compare import Comparison

METHODS = ("ista", "fista", "lista", "lista_cp", "alista", "alista_ss")


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


class Samples(NamedTuple):
    """A dictionary, a sampler for training, and samples with known codes to choose and to test on."""

    D: jax.Array
    sample: Callable
    chosen_on: tuple[jax.Array, jax.Array]  # (Y, X)
    tested_on: tuple[jax.Array, jax.Array]


def planted_problem(D, settings: Settings) -> Samples:
    """Bernoulli-Gaussian codes of a dictionary, with `sparsity` nonzeros expected (a tenth of the
    atoms by default).
    """
    d = D.shape[1]
    s = d / 10 if settings.sparsity is None else settings.sparsity
    if not 0 < s <= d:
        raise ValueError(f"compare: sparsity must be in 1..{d}, got {settings.sparsity}")
    keys = jax.random.split(settings.key, 3)

    def sampler(batch):
        return problems.sampler(D, batch, probability=s / d, snr=settings.snr)

    return Samples(D, sampler(64), jax.jit(sampler(512))(keys[1]), jax.jit(sampler(1000))(keys[2]))


def given_problem(D, Y: np.ndarray, X: np.ndarray) -> Samples:
    """Signals and codes from files: four fifths to train and choose on, the rest to test."""
    cut = max(1, len(Y) * 4 // 5)
    if len(Y) < 2:
        raise ValueError(f"compare: expected at least 2 signals, got {len(Y)}")
    train, test = (
        (jnp.asarray(Y[:cut]), jnp.asarray(X[:cut])),
        (jnp.asarray(Y[cut:]), jnp.asarray(X[cut:])),
    )
    return Samples(D, resampler(*train), tuple(part[:512] for part in train), test)


def resampler(Y, X=None, batch: int = 64) -> Callable:
    """`sample(key)` that draws signals (and codes) of a set with replacement."""

    def sample(key):
        rows = jax.random.randint(key, (batch,), 0, len(Y))
        return Y[rows], None if X is None else X[rows]

    return sample


def train(layer, params, problem, settings: Settings, rate: float, loss: Callable):
    """`fit` with clipped Adam at a cosine-decayed rate, the same for every family."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(rate, max(1, settings.steps))),
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


def curve_rows(result: Comparison) -> tuple[list[str], list[list]]:
    """The curves of a comparison as a CSV: one row per method and step."""
    fields = (
        "nmse",
        "mean_nmse",
        "failure_rate",
        "precision",
        "recall",
        "false_positives",
        "largest_l1",
        "gap",
    )
    rows = []
    for name, curve in result.curves.items():
        for k in range(len(curve.nmse)):
            values = [getattr(curve, field) for field in fields]
            rows.append([name, k + 1, *["" if v is None else float(v[k]) for v in values]])
    return ["method", "step", *fields], rows


@contextmanager
def timed(seconds: dict[str, float], name: str):
    """Add the seconds of a block to `seconds`."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def spent(seconds: dict[str, float]) -> str:
    """The seconds as one sentence of a report."""
    if not seconds:
        return ""
    return (
        "Seconds, compilation included: "
        + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        + "."
    )
