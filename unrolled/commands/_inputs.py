"""What the user brings: a dictionary, signals with or without codes, pictures."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from unrolled import datasets, dictionaries
from unrolled.commands._pictures import Pictures, photograph_patches
from unrolled.dictionaries import as_dictionary


def read_dictionary(path: Path, dtype=np.float32):
    """D from a `.npy` or `.npz` file (entry D)."""
    return as_dictionary(jnp.asarray(datasets.read_array(path, "D").astype(dtype)), str(path))


def read_signals(paths: list[Path], D):
    """(D, Y, X) for signals with known codes, (D, Pictures, None) for others; pictures take an
    overcomplete DCT if D is None.

    Raises:
        ValueError: several array files, arrays without a dictionary, or shapes that do not fit.
    """
    if paths[0].suffix not in (".npy", ".npz"):
        images = {path: datasets.read_image(path) for path in paths}
        small = [str(path) for path, image in images.items() if min(image.shape) < 8]
        if small:
            raise ValueError(f"{', '.join(small)}: smaller than a patch of 8 x 8")
        pictures = photograph_patches(images)
        D = dictionaries.dct((8, 8), (16, 16)) if D is None else D
        check_length(paths[0], pictures.testing, D)
        return D, pictures, None
    if len(paths) > 1:
        raise ValueError(f"compare: expected one array file with signals, got {len(paths)}")
    if D is None:
        raise ValueError("compare: signals in an array need --dictionary")
    Y = datasets.read_array(paths[0], "Y").astype(np.float32)
    check_length(paths[0], Y, D)
    if len(Y) < 2:
        raise ValueError(f"{paths[0]}: expected at least 2 signals, got {len(Y)}")
    X = read_codes(paths[0], Y, D)
    if X is not None:
        return D, Y, X
    cut = len(Y) * 4 // 5
    return D, Pictures(Y[:cut], Y[cut:], None, None), None


def read_codes(path: Path, Y, D):
    """The codes of the signals Y, entry X of a `.npz` file; None where there is none.

    Raises:
        ValueError: codes that do not fit Y and D.
    """
    if path.suffix != ".npz" or "X" not in datasets.entries(path):
        return None
    X = datasets.read_array(path, "X").astype(np.float32)
    if X.shape != (len(Y), D.shape[1]):
        raise ValueError(f"{path}: codes have shape {X.shape}; expected {(len(Y), D.shape[1])}")
    return X


def check_length(path: Path, Y, D) -> None:
    """Raise ValueError unless Y is (signals, m)."""
    if Y.ndim != 2 or Y.shape[1] != D.shape[0]:
        hint = (
            " The signals seem to be in columns: transpose them."
            if Y.ndim == 2 and len(Y) == D.shape[0]
            else ""
        )
        raise ValueError(
            f"{path}: signals have shape {Y.shape}; expected (signals, {D.shape[0]}) for D {D.shape}.{hint}"
        )
