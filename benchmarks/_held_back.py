"""Ten kinds of signals that chose nothing: no constant and no rule of the library.

Each kind is a function of a random generator and a number of signals n, which returns a dictionary
D, (m, d), and signals Y, (n, m). `SHARES` has lam as a share of the default lam
of the library.
"""

import math
from collections.abc import Callable

import numpy as np
from _kinds import TRAINED_ON, centred, learned, spread, unit

Made = tuple[np.ndarray, np.ndarray]


def voigt(rng: np.random.Generator, n: int) -> Made:
    """Absorption spectra: Voigt lines off the grid of the atoms, in three widths."""
    from scipy.special import voigt_profile

    m, t = 200, np.arange(200)[:, None]

    def lines(places: np.ndarray, widths: np.ndarray) -> np.ndarray:
        return unit(voigt_profile(t - places, widths, widths / 2))

    D = np.hstack([lines(np.arange(0, m, 1.5), np.float64(w)) for w in (1.0, 2.0, 4.0)])
    Y = 0.02 * rng.normal(size=(n, m))
    for y in Y:
        k = rng.poisson(6) + 1
        y += lines(rng.uniform(0, m, k), rng.uniform(0.8, 5, k)) @ rng.exponential(size=k)
    return D, Y


def wedge(rng: np.random.Generator, n: int) -> Made:
    """Seismic traces of thin layers: two opposite reflections at 1 to 8 samples distance."""
    m = 128

    def ricker(places: np.ndarray, pitch: float) -> np.ndarray:
        s = (np.pi * pitch * (np.arange(m)[:, None] - places)) ** 2
        return (1 - 2 * s) * np.exp(-s)

    D = np.hstack([unit(ricker(np.arange(m), pitch)) for pitch in (0.08, 0.15)])
    Y = 0.03 * rng.normal(size=(n, m))
    for y in Y:
        k = rng.poisson(3) + 1
        top, sizes = rng.uniform(0, m, k), rng.normal(size=k)
        both = np.concatenate([top, top + rng.uniform(1, 8, k)])
        y += ricker(both, rng.uniform(0.07, 0.16)) @ np.concatenate([sizes, -0.8 * sizes])
    return D, Y


def radar(rng: np.random.Generator, n: int) -> Made:
    """Echoes of a chirp at any delay and Doppler shift, before pulse compression."""
    m, length = 96, 24

    def echoes(delays: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        t = np.arange(m)[:, None] - delays
        phase = np.pi * (0.1 * t + 0.4 * t**2 / length) + shifts * t
        return np.where((t >= 0) & (t < length), np.cos(phase), 0)

    at = np.arange(-8, m - 8, 1.0)
    D = np.hstack([echoes(at, np.float64(shift)) for shift in (-0.2, -0.1, 0, 0.1, 0.2)])
    Y = 0.1 * rng.normal(size=(n, m))
    for y in Y:
        k = rng.poisson(5) + 1
        y += echoes(rng.uniform(-8, m - 8, k), rng.uniform(-0.2, 0.2, k)) @ rng.normal(size=k)
    return unit(D), Y


def kmers(rng: np.random.Generator, n: int) -> Made:
    """Counts of 4-mers in reads that mix the genomes of three of 300 species."""
    m, d, order = 256, 300, 64
    chains = rng.dirichlet(np.full(4, 2.0), (d, order))  # of the next base, given three bases
    stationary = np.full((d, order), 1 / order)
    for _ in range(20):
        pairs = (stationary[..., None] * chains).reshape(d, 4, 16, 4)
        stationary = pairs.sum(1).reshape(d, order)
    words = (stationary[..., None] * chains).reshape(d, m)
    X = rng.dirichlet(np.ones(3), n)
    chosen = rng.integers(0, d, (n, 3))
    mixed = np.einsum("nk,nkm->nm", X, words[chosen])
    counts = rng.poisson(2000 * mixed)
    return unit(centred(words).T), centred(counts / 2000)


def hermite(rng: np.random.Generator, n: int) -> Made:
    """ECG beats: Hermite functions of six orders at shifts and four widths; beats off the grid."""
    from scipy.special import eval_hermite

    m, t = 128, np.arange(128)[:, None]

    def atom(order: int, place: np.ndarray, width: np.ndarray) -> np.ndarray:
        u = (t - place) / width
        return eval_hermite(order, u) * np.exp(-(u**2) / 2)

    places = np.arange(4, m, 10.0)
    D = np.hstack([unit(atom(o, places, np.float64(w))) for w in (2, 3.5, 6, 10) for o in range(6)])
    Y = 0.02 * rng.normal(size=(n, m))
    for y in Y:
        for order, size, width in ((0, 0.2, 6), (0, 1.0, 2.5), (1, 0.3, 2.5), (0, 0.4, 9)):
            place = rng.uniform(10, m - 10, 2)
            y += unit(atom(order, place, width * rng.uniform(0.8, 1.25, 2))) @ (
                size * rng.normal(1, 0.3, 2)
            )
    return D, Y


def polynomials(rng: np.random.Generator, n: int) -> Made:
    """Piecewise quadratic signals, in truncated powers of degree 0, 1 and 2 at every place."""
    m, t = 100, np.arange(100)[:, None]

    def powers(places: np.ndarray, degree: int) -> np.ndarray:
        u = np.maximum(t - places, 0) / m
        return np.where(t >= places, u**degree, 0)

    D = centred(np.hstack([powers(np.arange(1, m - 3), degree) for degree in range(3)]).T).T
    Y = np.zeros((n, m))
    for y in Y:
        for degree, size in ((0, 0.5), (1, 2.0), (2, 6.0)):
            k = rng.poisson(1.2)
            y += powers(rng.uniform(1, m - 3, k), degree) @ (size * rng.normal(size=k))
    return unit(D), centred(Y + 0.05 * rng.normal(size=Y.shape))


def tomography(rng: np.random.Generator, n: int) -> Made:
    """Sums along 128 rays of pictures of 20 x 20 pixels with few bright discs; atoms are pixels."""
    side, rays = 20, 16
    i, j = np.mgrid[:side, :side] - (side - 1) / 2
    rows = []
    for angle in np.pi * np.arange(8) / 8:
        distance = i * np.cos(angle) + j * np.sin(angle)
        at = np.linspace(-side / 2, side / 2, rays)
        rows += [np.maximum(0, 1 - np.abs(distance - a)).ravel() for a in at]
    A = np.stack(rows)
    centres = rng.uniform(-8, 8, (n, 3, 2))
    radii, sizes = rng.uniform(0.8, 2, (n, 3)), rng.exponential(size=(n, 3))
    inside = (i - centres[..., :1, None]) ** 2 + (j - centres[..., 1:, None]) ** 2
    pictures = (sizes[..., None, None] * (inside < radii[..., None, None] ** 2)).sum(1)
    Y = pictures.reshape(n, -1) @ A.T
    return unit(A), Y + 0.02 * spread(Y) * rng.normal(size=Y.shape)


def photoacoustic(rng: np.random.Generator, n: int) -> Made:
    """Pressures of small spheres at one detector: N-shaped pulses, in a frame of 256 x 768."""
    m, t = 256, np.arange(256)[:, None]

    def pulses(times: np.ndarray, radii: np.ndarray) -> np.ndarray:
        u = (times - t) / radii
        return np.where(np.abs(u) < 1, u, 0) * np.exp(-0.5 * u**2)

    D = np.hstack([pulses(np.arange(m) + 0.5, np.float64(r)) for r in (2.5, 5.0, 10.0)])
    Y = 0.05 * rng.normal(size=(n, m))
    for y in Y:
        k = rng.poisson(25) + 1
        y += pulses(rng.uniform(0, m, k), rng.uniform(2, 11, k)) @ rng.exponential(size=k)
    return unit(D), Y


def loads(rng: np.random.Generator, n: int) -> Made:
    """Power of a house in 96 quarters of an hour; the atoms are learned from houses."""
    m, t = 96, np.arange(96)
    Y = 0.02 * np.abs(rng.normal(size=(n, m)))
    for size, length, often in (
        (2, 2, 2.0),
        (1, 6, 1.0),
        (3, 1, 3.0),
        (0.1, 3, 8.0),
        (0.7, 16, 0.7),
    ):
        for y in Y:
            for start in rng.uniform(0, m, rng.poisson(often)):
                long = length * rng.uniform(0.6, 1.6)
                y += size * rng.uniform(0.8, 1.2) * np.clip(start + long - t, 0, 1) * (t >= start)
    return learned(Y[:TRAINED_ON], 240, 0), Y


def leads(rng: np.random.Generator, n: int) -> Made:
    """Potentials of dipoles at 64 electrodes on a sphere, in 1,000 dipoles in the sphere."""

    def directions(k: int) -> np.ndarray:
        i = np.arange(k) + 0.5
        z, turn = 1 - 2 * i / k, math.pi * (1 + math.sqrt(5)) * i
        around = np.sqrt(1 - z**2)
        return np.stack([around * np.cos(turn), around * np.sin(turn), z], 1)

    electrodes, places = directions(64), 0.75 * directions(1000)

    def potentials(at: np.ndarray, moments: np.ndarray) -> np.ndarray:
        between = electrodes[:, None] - at
        field = (between * moments).sum(2) / np.linalg.norm(between, axis=2) ** 3
        return field - field.mean(0)

    moments = places + 0.3 * rng.normal(size=places.shape)
    D = unit(potentials(places, moments / np.linalg.norm(moments, axis=1, keepdims=True)))
    X = np.zeros((n, 1000))
    for x in X:
        for centre in rng.integers(0, 1000, rng.poisson(1.5) + 1):
            near = np.argsort(((places - places[centre]) ** 2).sum(1))[: rng.integers(1, 8)]
            x[near] += rng.normal()
    Y = X @ D.T
    return D, Y + 0.05 * spread(Y) * rng.normal(size=Y.shape)


SHARES: dict[Callable[[np.random.Generator, int], Made], float] = {
    voigt: 1,
    wedge: 0.3,
    radar: 1,
    kmers: 0.3,
    hermite: 1,
    polynomials: 0.3,
    tomography: 1,
    photoacoustic: 0.3,
    loads: 1,
    leads: 0.3,
}
