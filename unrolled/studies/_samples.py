"""What a study runs on: samples with known codes, and signals without."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks, datasets, problems
from unrolled._arguments import checked
from unrolled._checks import Array, Key
from unrolled._mapped import drawing
from unrolled.dictionaries import as_chain, as_dictionary, check_batch
from unrolled.problems import resampler

BATCH = 64  # signals of a training step
CHOSEN_ON = 1280  # signals that thresholds, step sizes and penalties are chosen on
PATCH = 8  # pixels on a side
_TESTED_ON = 1000  # planted signals
_STRIDE = 3  # pixels between two patches for training


class Samples(NamedTuple):
    """A dictionary, a sampler to train with, and samples (Y, X) to choose and to test on."""

    D: Any  # a tuple for a chain
    sample: Callable[..., Any]  # draws a batch to train on
    chosen_on: tuple[Any, Any]  # (Y, X); X is a tuple for a chain, None where codes are not known
    tested_on: tuple[Any, Any]  # (Y, X), test signals and codes
    snr: float | None = None  # dB, of planted signals

    def noise(self) -> str:
        """The end of a sentence of a report: of signals from elsewhere the noise is not known."""
        if self.snr is None:
            return ""
        return ", without noise" if np.isinf(self.snr) else f", SNR {self.snr:g} dB"


def as_dictionaries(D: Any, where: str) -> Any:
    """A dictionary, or a tuple of those of a chain, checked."""
    return as_chain(D, where) if isinstance(D, tuple | list) else as_dictionary(D, where)


@checked
def planted(key: Key, D: Any, *, sparsity: float | None = None, snr: float = math.inf) -> Samples:
    """Signals with Bernoulli-Gaussian codes of a dictionary, or of the last one of a chain.

    Args:
        key: of the codes and the noise.
        D: (m, d); for a chain a tuple.
        sparsity: the expected number of nonzeros; None for a tenth of the atoms.
        snr: of the signals, in dB.

    Returns:
        Samples, with 1,280 signals to choose on and 1,000 to test on.

    Raises:
        ValueError: a sparsity that is not in 1..d, or dictionaries that do not meet.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 16)
        >>> samples = ur.studies.planted(jax.random.key(1), D, sparsity=2, snr=30)
        >>> [array.shape for array in samples.tested_on]
        [(1000, 8), (1000, 16)]
    """
    D = as_dictionaries(D, "planted")
    d = (D[-1] if isinstance(D, tuple) else D).shape[1]
    s = d / 10 if sparsity is None else sparsity
    s = _checks.as_number(s, "sparsity", "compare")
    if not 0 < s <= d:
        raise ValueError(f"compare: sparsity must be in 1..{d}, got {sparsity}")
    keys = jax.random.split(key, 3)

    def sampler(batch):
        return problems.sampler(D, batch, probability=s / d, snr=snr)

    chosen_on, tested_on = (drawing(sampler(batch)) for batch in (CHOSEN_ON, _TESTED_ON))
    return Samples(D, sampler(BATCH), chosen_on(keys[1]), tested_on(keys[2]), snr)


def split(D: Any, Y: Array | np.ndarray, X: Any) -> Samples:
    """Signals and codes of one's own: four fifths to train and to choose on, the rest to test on.

    Args:
        D: (m, d); for a chain a tuple.
        Y: (signals, m).
        X: (signals, d), their codes; for a chain a tuple with those of every layer.

    Raises:
        ValueError: a single signal, or shapes that do not fit.

    Example:
        >>> samples = ur.studies.split(jnp.eye(3), np.ones((10, 3)), np.ones((10, 3)))
        >>> [len(Y) for Y, X in (samples.chosen_on, samples.tested_on)]
        [8, 2]
    """
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
    """What turns the test patches into a picture again."""

    mean: np.ndarray  # (signals, 1), subtracted from the patches
    shape: tuple[int, int]  # (height, width)


class Pictures(NamedTuple):
    """Signals without known codes, to train and to test on; the test ones may make a picture."""

    training: Any  # (signals, m), an array
    testing: Any  # signals to test on
    picture: Picture | None = None  # that the test signals tile, or None


@checked
def photograph_patches(images: dict[str, np.ndarray]) -> Pictures:
    """8 x 8 patches without their mean: tiles of the last picture to test, the others to train.

    Args:
        images: name -> grey values, (height, width), as `datasets.photographs` has them; a single
            picture is also trained on.

    Raises:
        ValueError: no pictures, or NaN or infinite values.

    Example:
        >>> images = {"a": np.eye(16), "b": np.ones((16, 24))}
        >>> ur.studies.photograph_patches(images).testing.shape
        (6, 64)
    """
    if not images:
        raise ValueError("photograph_patches: there are no pictures; expected at least one")
    for name, image in images.items():
        _checks.finite(np.asarray(image), f"picture {name}", "photograph_patches")
    *first, last = images.values()
    patches = [datasets.to_patches(image, PATCH, _STRIDE) for image in first or [last]]
    rows = np.concatenate(patches)
    tiles = datasets.to_patches(last, PATCH)
    mean = tiles.mean(1, keepdims=True)
    picture = Picture(mean, last.shape)
    return Pictures(rows - rows.mean(1, keepdims=True), tiles - mean, picture)
