"""Fourteen kinds of signals, each with a dictionary.

Each kind is a function of a random generator and a number of signals n, which returns a dictionary
D, (m, d), and signals Y, (n, m). The pictures are from scikit-learn. Learned dictionaries are from
the first TRAINED_ON signals. `CHOOSE` names the kinds on which we chose the recipe of
`training.unsupervised`.
"""

from collections.abc import Callable

import numpy as np

import unrolled as ur

TRAINED_ON = 6000


def learned(Y: np.ndarray, atoms: int, seed: int) -> np.ndarray:
    """A dictionary that `online` learns from signals."""
    size = np.linalg.norm(Y, axis=1).mean()
    parts = np.array_split((Y / size).astype(np.float32), 12)
    return np.asarray(ur.dictionary_learning.online(parts, atoms, lam=0.1, key=seed).D, float)


def pictures() -> list[np.ndarray]:
    """The two photographs of scikit-learn, (rows, columns, colours)."""
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def grey() -> list[np.ndarray]:
    return [picture.mean(2) for picture in pictures()]


def crops(
    rng: np.random.Generator, n: int, images: list[np.ndarray], side: int, contrast: float = 0
) -> np.ndarray:
    """Square patches at random places of the images in turn, (n, numbers in a patch).

    The standard deviation of a patch is at least `contrast`.
    """
    cut: list[np.ndarray] = []
    while len(cut) < n:
        image = images[len(cut) % len(images)]
        i, j = (rng.integers(0, size - side) for size in image.shape[:2])
        patch = image[i : i + side, j : j + side].ravel()
        if patch.std() >= contrast:
            cut.append(patch)
    return np.stack(cut).astype(float)


def beats(
    rng: np.random.Generator,
    n: int,
    m: int,
    periods: tuple[float, float],
    waves: tuple[tuple[float, float, float], ...],
) -> np.ndarray:
    """Windows of periodic pulses at any phase, without their mean, (n, m).

    A pulse is a sum of waves. A wave has a place and a width in periods, and a height; all of them
    and the period change from signal to signal.
    """
    time = np.arange(m) / rng.uniform(*periods, (n, 1)) + rng.random((n, 1))  # in periods
    Y = 0.01 * rng.normal(size=(n, m))
    for wave in waves:
        place, width, height = np.reshape(wave, (3, 1, 1)) * np.exp(rng.normal(0, 0.15, (3, n, 1)))
        for beat in range(-1, int(m / periods[0]) + 3):
            Y += height * np.exp(-(((time - beat - place) / width) ** 2) / 2)
    return unit(centred(Y).T).T * np.exp(0.1 * rng.normal(size=(n, 1)))


def centred(Y: np.ndarray) -> np.ndarray:
    """The signals without their mean."""
    return Y - np.mean(Y, axis=1, keepdims=True)


def unit(D: np.ndarray) -> np.ndarray:
    """The atoms with norm 1."""
    return D / np.linalg.norm(D, axis=0)


def spread(Y: np.ndarray) -> float:
    """The size of an entry of a signal of mean norm."""
    return float(np.linalg.norm(Y, axis=1).mean() / np.sqrt(Y.shape[1]))


def digits(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits of 8 x 8 pixels, shifted by fractions of a pixel."""
    from scipy.ndimage import shift
    from sklearn.datasets import load_digits

    images = load_digits().images
    chosen, moves = rng.integers(0, len(images), n), rng.uniform(-0.7, 0.7, (n, 2))
    Y = np.stack([shift(images[i], move, order=1).ravel() for i, move in zip(chosen, moves)])
    return learned(Y[:TRAINED_ON], 128, 0), Y


def photographs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of 12 x 12 pixels of two photographs, without their mean."""
    Y = centred(crops(rng, n, grey(), 12))
    return learned(Y[:TRAINED_ON], 288, 0), Y


def sounds(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Bursts of tones with times and pitches off the grid, in a frame of Gabor atoms."""
    t, m = np.arange(128), 128

    def burst(at, pitch, phase):
        return np.exp(-(((t - at) / 12) ** 2) / 2) * np.cos(np.pi * pitch * (t - at) / m + phase)

    grid = [
        burst(at, pitch, phase)
        for at in np.arange(4, m, 12)
        for pitch in np.arange(3, m, 8)
        for phase in (0, np.pi / 2)
    ]
    D = np.stack(grid, axis=1)
    Y = 0.05 * rng.normal(size=(n, m))
    for k in range(n):
        for _ in range(rng.poisson(3) + 1):
            place = rng.uniform(0, m), rng.uniform(2, m - 2), rng.uniform(0, 2 * np.pi)
            Y[k] += rng.normal() * burst(*place)
    return D / np.linalg.norm(D, axis=0), Y


def steps(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Piecewise constant signals with noise, in a staircase of strongly correlated atoms."""
    m = 64
    D = np.tril(np.ones((m, m)))[:, 1:] - np.linspace(1, 0, m, endpoint=False)[None, 1:]
    jumps = rng.normal(size=(n, m - 1)) * (rng.random((n, m - 1)) < 0.06)
    Y = jumps @ D.T + 0.1 * rng.normal(size=(n, m))
    return D / np.linalg.norm(D, axis=0), Y


def sines_and_spikes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of sines on an oversampled frequency grid and of single samples."""
    m = 80
    sines = np.cos(np.pi * (np.arange(m)[:, None] + 0.5) * np.arange(2 * m)[None] / (2 * m))
    D = np.hstack([np.eye(m), sines / np.linalg.norm(sines, axis=0)])
    kinds = np.where(np.arange(3 * m) < m, 0.02, 0.03)
    X = rng.normal(size=(n, 3 * m)) * (rng.random((n, 3 * m)) < kinds)
    return D, X @ D.T + 0.02 * rng.normal(size=(n, m))


def heavy(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Heavy-tailed codes in a 60 x 150 dictionary of condition 30 with atom norms 1 to 9."""
    U, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    V, _ = np.linalg.qr(rng.normal(size=(150, 60)))
    D = (U * np.geomspace(30, 1, 60)) @ V.T
    D *= rng.uniform(1, 9, 150) / np.linalg.norm(D, axis=0)
    X = rng.standard_t(3, size=(n, 150)) * (rng.random((n, 150)) < 0.06)
    return D, 10 * (X @ D.T + 0.1 * rng.normal(size=(n, 60)))


def colour(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of 6 x 6 pixels in three colours of two photographs, without their mean."""
    Y = centred(crops(rng, n, pictures(), 6, contrast=15))
    return learned(Y[:TRAINED_ON], 216, 0), Y


def with_mean(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of 10 x 10 pixels of two photographs, with their mean."""
    Y = crops(rng, n, grey(), 10, contrast=15)
    return learned(Y[:TRAINED_ON], 200, 0), Y


def blur(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over 5 x 5 pixels of photographs; the atoms are means of atoms for sharp patches."""
    from scipy.ndimage import uniform_filter

    side = 12
    sharp = centred(crops(rng, n, grey(), side, contrast=15))

    def blurred(rows: np.ndarray) -> np.ndarray:
        means = uniform_filter(rows.reshape(-1, side, side), 5, axes=(1, 2))
        return means[:, 2:-2, 2:-2].reshape(len(rows), -1)

    D, Y = blurred(learned(sharp[:TRAINED_ON], 288, 0).T).T, blurred(sharp)
    return unit(D), Y + 0.02 * spread(Y) * rng.normal(size=Y.shape)


def compressed_sensing(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """64 random measurements of patches of 256 pixels; the atoms are 384 measured atoms."""
    patches = centred(crops(rng, n, grey(), 16, contrast=15))
    A, Psi = rng.normal(size=(64, 256)) / 8, learned(patches[:TRAINED_ON], 384, 0)
    Y = patches @ A.T
    return A @ Psi, Y + 0.02 * spread(Y) * rng.normal(size=Y.shape)


def seismic(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Traces with few reflections or none; the atoms are all shifts of six Ricker wavelets."""
    m, pitches = 64, np.geomspace(0.15, 0.35, 6)  # peak frequencies, in cycles per sample
    s = (np.pi * pitches[:, None] * (np.arange(m)[:, None, None] - np.arange(m))) ** 2
    D = unit(((1 - 2 * s) * np.exp(-s)).reshape(m, -1))
    X = rng.normal(size=(n, 6 * m)) * (rng.random((n, 6 * m)) < 0.5 / (6 * m))
    return D, X @ D.T + 0.04 * rng.normal(size=(n, m))


def pressure(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of arterial pressure, without their mean; 12 of 120 different atoms occur twice."""
    waves = (0.15, 0.05, 1.0), (0.28, 0.08, 0.6), (0.48, 0.12, 0.4)
    Y = beats(rng, n, 64, (60, 120), waves)
    D = learned(Y[:TRAINED_ON], 120, 0)
    return np.hstack([D, D[:, rng.permutation(120)[:12]]]), Y


def ppg(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of PPG (pulses in the light through a finger), in atoms with norms from 1/2 to 2."""
    Y = beats(rng, n, 80, (60, 120), ((0.2, 0.07, 1.0), (0.45, 0.12, 0.5)))
    return learned(Y[:TRAINED_ON], 160, 0) * rng.permutation(np.geomspace(1 / 2, 2, 160)), Y


def spectra(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures of two reflectance spectra; the atoms are smooth, nonnegative and much alike."""
    from scipy.ndimage import gaussian_filter1d

    m, d = 81, 190
    curves = gaussian_filter1d(rng.normal(size=(m, d)), 4, axis=0)
    D = unit(1 / (1 + np.exp(-2 * curves / curves.std() - rng.normal(size=d))))
    X, share = np.zeros((n, d)), rng.random(n)
    first, second = rng.integers(0, d, (2, n))
    X[np.arange(n), first] = share
    X[np.arange(n), second] += 1 - share
    return D, X @ D.T + 0.02 * rng.normal(size=(n, m))


CHOOSE = ("colour", "pressure", "compressed_sensing", "spectra")  # the recipe was chosen on these
KINDS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    each.__name__: each
    for each in (
        *(colour, pressure, compressed_sensing, spectra),
        *(digits, photographs, sounds, steps, sines_and_spikes, heavy),
        *(seismic, ppg, blur, with_mean),
    )
}
