"""Synthetic pictures with one salient shape each, for experiments without data."""

import numpy as np

from unrolled.datasets import Images

_TRAIN, _TEST = 160, 40
_CORNERS = (3, 7)  # of a polygon, the second one excluded
_GRAIN = 12.0  # deviation of the noise of a pixel, of 255 grey values


def shapes(side: int, *, train: int = _TRAIN, test: int = _TEST, seed: int = 0) -> Images:
    """Pictures of an ellipse or a convex polygon on a textured ground, with masks of the shape.

    They are synthetic: scores on them say that a network trains, and nothing about photographs.

    Args:
        side: of a picture in pixels.
        train, test: numbers of pictures.
        seed: of all that is drawn.

    Example:
        >>> from unrolled.experiments import shapes
        >>> X, M = shapes(32).train
        >>> X.shape, M.shape, bool(M.any((1, 2)).all())
        ((160, 32, 32, 3), (160, 32, 32), True)
    """
    rng = np.random.default_rng(seed)
    X, M = map(np.stack, zip(*(_picture(rng, side) for _ in range(train + test))))
    return Images("shapes", (X[:train], M[:train]), (X[train:], M[train:]), ())


def _picture(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (side, side, 3) and its mask."""
    mask = (_ellipse if rng.random() < 0.5 else _polygon)(rng, side)
    ground, shape = _texture(rng, side), _texture(rng, side)
    picture = np.where(mask[..., None], shape, ground) + rng.normal(0, _GRAIN, (side, side, 3))
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """A colour with a wave of random direction and length."""
    u, v = _grid(side)
    phase = rng.uniform(-25, 25, 2) @ np.stack([u.ravel(), v.ravel()]) + rng.uniform(0, 2 * np.pi)
    wave = np.sin(phase).reshape(side, side, 1)
    return rng.uniform(40, 215, 3) + rng.uniform(-40, 40, 3) * wave


def _ellipse(rng: np.random.Generator, side: int) -> np.ndarray:
    u, v = _turned(rng, side)
    a, b = rng.uniform(0.12, 0.35, 2)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def _polygon(rng: np.random.Generator, side: int) -> np.ndarray:
    """The points on the inner side of all its edges, which touch one circle."""
    u, v = _turned(rng, side)
    n, radius = rng.integers(*_CORNERS), rng.uniform(0.1, 0.25)
    angles = 2 * np.pi * np.arange(n) / n
    return np.max([np.cos(a) * u + np.sin(a) * v for a in angles], axis=0) <= radius


def _turned(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates about a random centre, turned by a random angle; the picture has side 1."""
    u, v = _grid(side)
    centre, angle = rng.uniform(0.3, 0.7, 2), rng.uniform(0, 2 * np.pi)
    u, v = u - centre[0], v - centre[1]
    return np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel, in [0, 1]."""
    at = (np.arange(side) + 0.5) / side
    row, column = np.meshgrid(at, at, indexing="ij")
    return row, column
