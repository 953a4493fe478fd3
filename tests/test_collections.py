"""Collections of pictures: what the readers return, and that a faulty file is one clear error."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled import datasets
from unrolled.datasets import cifar10, crop_and_flip, digits

needs_data = pytest.mark.skipif(
    "UNROLLED_DATA" not in os.environ, reason="UNROLLED_DATA is not set"
)

# CIFAR-10

CIFAR = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder in the official layout, with three records in a file, and those records."""
    monkeypatch.setattr(datasets._cifar10, "_RECORDS", 3)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (6, 3, 3073)).astype(np.uint8)
    records[..., 0] %= 10
    for name, batch in zip(CIFAR, records):
        batch.tofile(folder / name)
    return folder, records


def test_cifar10_is_read_in_order_with_channels_last(cifar, monkeypatch):
    folder, records = cifar
    found = cifar10(folder)
    assert found.name == "cifar10" and found.classes[0] == "airplane" and len(found.classes) == 10
    X, labels = found.train
    assert X.shape == (15, 32, 32, 3) and X.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, records[:5, :, 0].ravel())
    record = records[1, 2, 1:]
    for row, column, channel in ((0, 0, 0), (31, 30, 2), (5, 17, 1)):
        assert X[5, row, column, channel] == record[1024 * channel + 32 * row + column]
    np.testing.assert_array_equal(found.test[1], records[5, :, 0])
    for root in (folder.parent, str(folder)):
        np.testing.assert_array_equal(cifar10(root).train[0], X)
    monkeypatch.setenv("UNROLLED_DATA", str(folder.parent))
    np.testing.assert_array_equal(cifar10().test[0], found.test[0])


def test_cifar10_that_is_missing_says_what_was_expected_and_where_it_is(cifar, monkeypatch):
    folder, _ = cifar
    (folder / "data_batch_2.bin").unlink()
    (folder / "test_batch.bin").unlink()
    where = "the binary version of CIFAR-10.*https://www.cs.toronto.edu/~kriz/cifar.html"
    with pytest.raises(
        FileNotFoundError, match=f"data_batch_2.bin, test_batch.bin missing.*{where}"
    ):
        cifar10(folder)
    with pytest.raises(FileNotFoundError, match=f"no such folder; expected {where}"):
        cifar10(folder.parent / "elsewhere")
    monkeypatch.delenv("UNROLLED_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=f"set UNROLLED_DATA .*{where}"):
        cifar10()


@pytest.mark.parametrize("size", [0, 3 * 3073 - 1, 3 * 3074])
def test_a_cifar10_file_of_another_length(cifar, size):
    folder, _ = cifar
    (folder / "data_batch_4.bin").write_bytes(bytes(size))
    with pytest.raises(
        ValueError, match=f"data_batch_4.bin: {size} bytes; expected 9219, 3 records"
    ):
        cifar10(folder)


def test_a_cifar10_label_out_of_range(cifar):
    folder, records = cifar
    records[5, 1, 0] = 10
    records[5].tofile(folder / "test_batch.bin")
    with pytest.raises(ValueError, match=r"test_batch.bin: label 10 at 1; expected 0\.\.9"):
        cifar10(folder)


# Digits


def test_digits_are_those_of_scikit_learn_in_their_order():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    found = digits()
    X, y = (np.concatenate(pair) for pair in zip(found.train, found.test))
    assert X.dtype == np.uint8 and y.dtype == np.int32 and len(found.test[0]) == 360
    # A grey value is 255/16 = 15.9 steps from the next: rounding loses nothing.
    np.testing.assert_array_equal(np.round(X.reshape(1797, 64) * (16 / 255)), images)
    np.testing.assert_array_equal(y, labels)
    assert all(np.bincount(part[1]).min() > 30 for part in (found.train, found.test))


# Crop and flip


def crops_of(picture, pad, flip):
    """All pictures that may come out, made with numpy."""
    H, W, _ = picture.shape
    padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)))
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            crop = padded[row : row + H, column : column + W]
            yield crop
            if flip:
                yield crop[:, ::-1]


@pytest.mark.parametrize("flip", [True, False])
def test_every_output_is_a_crop_of_the_padded_picture_and_every_crop_occurs(flip):
    picture = np.arange(1, 31, dtype=np.uint8).reshape(3, 5, 2)
    X = np.broadcast_to(picture, (600, 3, 5, 2))
    found = np.asarray(crop_and_flip(jax.random.key(0), X, pad=1, flip=flip))
    assert found.shape == X.shape and found.dtype == np.uint8
    possible = {crop.tobytes() for crop in crops_of(picture, 1, flip)}
    drawn = [one.tobytes() for one in found]
    # Uniform draws miss one of at most 18 crops with probability below 18 (17/18)^600 = 2e-14.
    assert set(drawn) == possible and len(possible) == (18 if flip else 9)
    counts = np.unique(drawn, return_counts=True)[1]
    expected = 600 / len(possible)
    # Each count is binomial: six standard deviations.
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_crop_and_flip_is_a_function_of_its_key_in_every_dtype():
    X = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3)).astype(np.uint8)
    key = jax.random.key(3)
    once = crop_and_flip(key, X)
    np.testing.assert_array_equal(once, crop_and_flip(key, jnp.asarray(X)))
    np.testing.assert_array_equal(once, crop_and_flip(3, X))
    assert not np.array_equal(once, crop_and_flip(4, X))
    np.testing.assert_array_equal(once, jax.jit(crop_and_flip)(key, X))
    floats = crop_and_flip(key, X.astype(np.float32))
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(once, floats)
    M = X[..., :1] > 127  # a mask moves with its picture
    np.testing.assert_array_equal(crop_and_flip(key, M), once[..., :1] > 127)


def test_what_crop_and_flip_refuses():
    X = np.zeros((2, 4, 4, 1), np.uint8)
    for bad, error, message in (
        (X[0], ValueError, r"X has shape \(4, 4, 1\); expected \(N, H, W, C\)"),
        (X.astype(int), TypeError, "X is int64; expected uint8"),
        (X.astype(complex), TypeError, "X is complex128"),
    ):
        with pytest.raises(error, match=f"crop_and_flip: {message}"):
            crop_and_flip(0, bad)
    with pytest.raises(ValueError, match="pad must be at least 0"):
        crop_and_flip(0, X, pad=-1)
    with pytest.raises(TypeError, match="pad must be an integer"):
        crop_and_flip(0, X, pad=1.5)
