"""Readers: what they accept, what they return, and that every refusal names the file."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from flax import nnx
from PIL import Image

from unrolled.vision import datasets
from unrolled.vision.datasets import from_patches, read_array, read_image, to_patches
from unrolled.vision.models import LeNet5


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(3, 4))


def test_an_array_that_is_read_is_the_callers_copy(tmp_path, values):
    np.save(tmp_path / "D.npy", values)
    found = read_array(tmp_path / "D.npy")
    found += 1
    np.testing.assert_array_equal(np.load(tmp_path / "D.npy"), values)


def test_an_npz_file(tmp_path, values):
    np.savez(tmp_path / "two.npz", D=values, Y=2 * values)
    np.savez_compressed(tmp_path / "one.npz", whatever=values)
    np.savez(tmp_path / "unnamed.npz", values)
    np.testing.assert_array_equal(read_array(tmp_path / "two.npz", "D"), values)
    np.testing.assert_array_equal(read_array(str(tmp_path / "two.npz"), "Y"), 2 * values)
    np.testing.assert_array_equal(read_array(tmp_path / "unnamed.npz", "D"), values)
    with pytest.raises(ValueError, match=r"entries \['whatever'\]; expected one called 'Y'"):
        read_array(tmp_path / "one.npz", "Y")
    np.testing.assert_array_equal(read_array(tmp_path / "one.npz"), values)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("compressed", [True, False])
def test_an_array_file_with_a_wrong_byte(tmp_path, compressed):
    """Wherever it is: zlib, zipfile and numpy raise errors of their own."""
    path = tmp_path / ("bad.npz" if compressed else "bad.npy")
    array = np.random.default_rng(0).integers(0, 5, (9, 9))
    with path.open("wb") as file:
        np.savez_compressed(file, D=array) if compressed else np.save(file, array)
    whole = path.read_bytes()
    refused = 0
    for i in range(0, len(whole), 3) if compressed else range(128):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        try:
            datasets.open_array(path, "D")
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("name", ["D", None])
def test_an_archive_with_a_flipped_bit_is_refused_or_the_same(tmp_path, name):
    """Its array, or the names of all."""
    path = tmp_path / "bad.npz"

    def read():
        return datasets.entries(path) if name is None else datasets.open_array(path, name)

    np.savez(path, D=np.arange(1800).reshape(900, 2))
    whole, expected, refused = path.read_bytes(), read(), 0
    directory = whole.index(b"PK\x01\x02")
    flips = [(place, place % 8) for place in (*range(0, 160, 3), *range(directory, len(whole)))]
    flips += [(directory + place, bit) for place in range(6, 12) for bit in range(8)]
    fewer = whole.index(b"(900") + 1, 3  # rows, 100 in place of 900
    for place, bit in (*flips, fewer):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            found = read()
        except ValueError as error:
            assert str(error).startswith(f"{path}: not a readable array file")
            refused += 1
        else:  # the names are in the directory alone, and one may be another
            assert name is None or np.array_equal(found, expected), (place, bit)
    assert refused > 5


def written(path, values):
    """A file of another program with these values."""
    if path.suffix == ".csv":
        np.savetxt(path, values, delimiter=",")
    else:
        scipy.io.savemat(path, {"D": values, "other": np.zeros(2)})
    return path


@pytest.mark.parametrize("suffix", [".csv", ".mat"])
def test_files_of_other_programs_are_read(tmp_path, suffix):
    values = np.random.default_rng(0).normal(size=(3, 2))
    np.testing.assert_array_equal(read_array(written(tmp_path / f"D{suffix}", values), "D"), values)
    one = np.ones((1, 4))
    assert read_array(written(tmp_path / f"one{suffix}", one), "D").shape == (1, 4)


@pytest.mark.parametrize("suffix", [".csv", ".mat"])
def test_damaged_files_of_other_programs_are_value_errors(tmp_path, suffix):
    path = written(tmp_path / f"D{suffix}", np.ones((3, 2)))
    path.write_bytes(b"\xffdamaged" * 30)
    with pytest.raises(ValueError, match=f"D{suffix}: not a readable array file"):
        read_array(path, "D")


def test_files_of_other_programs_that_numpy_needs_first(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"Try np.save\('Y.npy', pandas.read_csv\('a.csv'\)"):
        read_array(tmp_path / "a.csv")
    scipy.io.savemat(tmp_path / "two.mat", {"A": np.zeros(2), "B": np.zeros(2)})
    with pytest.raises(ValueError, match=r"entries \['A', 'B'\]; expected one called 'D'"):
        read_array(tmp_path / "two.mat", "D")
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(9))
    with pytest.raises(ValueError, match=r"try save\('Y.mat', 'Y', '-v7'\)"):
        read_array(tmp_path / "new.mat")
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"try np.save\('a.npy', h5py.File\('a.h5'\)\['D'\]"):
        read_array(tmp_path / "a.h5", "D")
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pandas.read_parquet\('a.parquet'\).to_numpy\(\)\)\)$"):
        read_array(tmp_path / "a.parquet")
    monkeypatch.setattr(datasets._arrays, "LARGEST_BYTES", 5)
    with pytest.raises(ValueError, match="a.csv: 0.0 GiB; try np.save"):
        read_array(tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", [".npy", ".npz", "raw"])
def test_pickled_objects_are_never_loaded(tmp_path, suffix):
    import pickle

    path, touched = tmp_path / f"evil{suffix if suffix != 'raw' else '.npy'}", tmp_path / "touched"
    objects = np.array([Bomb(touched), None], dtype=object)
    if suffix == ".npy":
        np.save(path, objects, allow_pickle=True)
    elif suffix == ".npz":
        np.savez(path, D=objects)
    else:
        path.write_bytes(pickle.dumps(Bomb(touched)))
    with pytest.raises(ValueError, match="evil.np.: not a readable array file"):
        read_array(path)
    assert not touched.exists()


def test_a_file_that_is_too_large_is_refused_unread(tmp_path, monkeypatch, values):
    monkeypatch.setattr(datasets._arrays, "LARGEST_BYTES", 50)
    np.save(tmp_path / "D.npy", values)
    np.savez(tmp_path / "D.npz", D=values)
    with pytest.raises(ValueError, match="D.npy: .*GiB"):
        read_array(tmp_path / "D.npy")
    with pytest.raises(ValueError, match="D.npz: .*GiB"):
        read_array(tmp_path / "D.npz")


def saved(*entries):
    return lambda path: np.save(path, entries)


# Other files are refused in `test_bad_input.py`.
FILES = {
    "folder": (Path.mkdir, IsADirectoryError, "is a folder; expected a file"),
    "pipe.npy": (os.mkfifo, FileNotFoundError, "is not a regular file"),
    "bools.npy": (saved(True), ValueError, "entries are bool; expected real numbers"),
    "days.npy": (saved(np.datetime64(0, "s")), ValueError, "entries are .*; expected real numbers"),
    "inf.npy": (saved(1, -np.inf), ValueError, "has NaN or infinite entries"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_an_array_of_finite_numbers_is_refused_by_its_name(name, tmp_path):
    write, error, message = FILES[name]
    write(tmp_path / name)
    with pytest.raises(error, match=f"{name}: {message}"):
        read_array(tmp_path / name, "D")


# Pictures


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_coloured_picture_becomes_grey(tmp_path, mode):
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[:2], colours[2:] = (255, 0, 0), (255, 255, 255)
    Image.fromarray(colours).convert(mode).save(tmp_path / "c.png")
    found = read_image(str(tmp_path / "c.png"))
    assert found.shape == (4, 5)
    # ITU-R 601 gives red 0.299, to the nearest of 256 values.
    np.testing.assert_allclose(found[:2], 0.299, atol=0.5 / 255 + 1e-3)
    np.testing.assert_array_equal(found[2:], 1)


def test_a_picture_of_floats_is_refused(tmp_path):
    """Pillow takes 255 for white: all values in [0, 1] came out as 0."""
    Image.fromarray(np.full((2, 3), 0.7, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="a.tif: .*grey values are floats; try a .npy file"):
        read_image(tmp_path / "a.tif")


def test_a_picture_with_a_false_header_is_refused(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 x 255 1234")
    with pytest.raises(ValueError, match="a.pgm: not a readable picture"):
        read_image(tmp_path / "a.pgm")


def test_the_sample_photographs():
    pictures = datasets.photographs()
    assert list(pictures) == ["china", "flower"]
    for picture in pictures.values():
        assert picture.shape == (427, 640) and picture.dtype == np.float32
        # The weights sum to 1, to rounding of float32.
        assert picture.min() >= 0 and picture.max() <= 1 + 1e-6
        assert picture.std() > 0.1
    assert not np.array_equal(pictures["china"], pictures["flower"])


# Patches


def test_tiles_round_trip():
    image = np.arange(15.0 * 22).reshape(15, 22)
    tiles = to_patches(image, 4)
    assert tiles.shape == (3 * 5, 16)
    np.testing.assert_array_equal(tiles[0].reshape(4, 4), image[:4, :4])
    np.testing.assert_array_equal(tiles[6].reshape(4, 4), image[4:8, 4:8])
    np.testing.assert_array_equal(from_patches(tiles, image.shape, 4), image[:12, :20])
    tiles[:] = -1  # a copy: the picture stays
    assert image.min() == 0


def test_overlapping_patches():
    image = np.arange(30.0).reshape(5, 6)
    patches = to_patches(image, 3, stride=2)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2)]
    np.testing.assert_array_equal(
        patches, [image[r : r + 3, c : c + 3].ravel() for r, c in corners]
    )


def test_a_picture_smaller_than_a_patch():
    with pytest.raises(ValueError, match=r"picture \(7, 20\) is smaller than a patch of 8 x 8"):
        to_patches(np.zeros((7, 20)), 8)
    np.testing.assert_array_equal(to_patches(np.ones((8, 8)), 8), np.ones((1, 64)))


def test_patches_that_are_none_are_refused():
    for sizes in ((0,), (2, 0)):
        with pytest.raises(ValueError, match="to_patches: s.* must be at least 1"):
            to_patches(np.ones((8, 8)), *sizes)
    with pytest.raises(ValueError, match="expected .height, width."):
        to_patches(np.ones((8, 8, 3)), 2)
    tiles = np.ones((16, 4))
    with pytest.raises(ValueError, match="from_patches: size must be at least 1"):
        from_patches(tiles, (8, 8), 0)
    with pytest.raises(ValueError, match=r"from_patches: picture has shape \(8, 8, 3\); expected"):
        from_patches(tiles, (8, 8, 3), 2)
    with pytest.raises(ValueError, match=r"have shape \(16, 4\); expected \(12, 4\) for a picture"):
        from_patches(tiles, (8, 6), 2)


# Folders


def test_a_folder_of_pictures(tmp_path):
    for name, value in (("b.png", 10), ("a.PNG", 20), ("c.bmp", 30)):
        Image.fromarray(np.full((3, 4), value, np.uint8)).save(
            tmp_path / name, "BMP" if name == "c.bmp" else "PNG"
        )
    (tmp_path / "notes.txt").write_text("not a picture\n")
    (tmp_path / "more").mkdir()
    found = datasets.read_images(tmp_path)
    assert list(found) == ["a", "b", "c"]
    for picture, value in zip(found.values(), (20, 10, 30)):
        np.testing.assert_array_equal(picture, np.full((3, 4), np.float32(value) / 255))


def test_a_folder_without_pictures_or_with_doubtful_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        datasets.read_images(tmp_path / "gone")
    with pytest.raises(ValueError, match="no picture in it; expected files .png"):
        datasets.read_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"hello\n")
    with pytest.raises(ValueError, match="a.png: not a readable picture"):
        datasets.read_images(str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"hello\n")
    with pytest.raises(ValueError, match="same name but for the suffix"):
        datasets.read_images(tmp_path)


def test_where_a_collection_lies(tmp_path, monkeypatch):
    (tmp_path / "some").mkdir()
    monkeypatch.delenv("UNROLLED_DATA", raising=False)
    assert datasets.locate("some", tmp_path) == tmp_path / "some"
    with pytest.raises(FileNotFoundError, match="pass a path or set UNROLLED_DATA"):
        datasets.locate("some")
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path))
    assert datasets.locate("some") == tmp_path / "some"
    with pytest.raises(FileNotFoundError, match="other: no such folder"):
        datasets.locate("other")


# Augmentation, whose results are tested in `test_collections.py` without optimizations


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
def test_crop_and_flip_takes_below_a_twentieth_of_a_training_step():
    """One of LeNet-5 with 128 pictures, in the same process."""
    X = np.zeros((128, 32, 32, 3), np.uint8)
    graph, params = nnx.split(LeNet5(rngs=nnx.Rngs(0)))

    @jax.jit
    def gradient(params, X):
        return jax.grad(lambda p: (nnx.merge(graph, p)(X.astype(jnp.float32)) ** 2).sum())(params)

    def least_time(work):
        times = []
        for i in range(4):
            start = time.process_time()  # other processes take no part
            jax.block_until_ready(work(i))
            times.append(time.process_time() - start)
        return min(times)

    step = least_time(lambda i: gradient(params, X))
    assert least_time(lambda i: datasets.crop_and_flip(i, X)) < 0.05 * step


# Folders of classes


@pytest.fixture
def pictures(tmp_path):
    """`fill(folder, count)` puts pictures of one grey value each into a folder."""

    def fill(folder, count, side=6):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            grey = np.full((side, side + 2), 10 * i, np.uint8)
            Image.fromarray(grey).save(tmp_path / folder / f"{i}.png")

    return fill


def test_the_last_fifth_of_every_class_tests(tmp_path, pictures):
    pictures("dog", 10)
    pictures("cat/deeper", 3)
    (tmp_path / ".hidden").mkdir()
    images = datasets.class_folders(tmp_path, side=4)
    (X, labels), (X_test, labels_test) = images.train, images.test
    assert images.classes == ("cat", "dog") and X.shape == (10, 4, 4, 3) and X.dtype == np.uint8
    assert labels.tolist() == [0] * 2 + [1] * 8 and labels_test.tolist() == [0, 1, 1]
    assert X[:, 0, 0, 0].tolist() == [0, 10, *range(0, 80, 10)]
    assert X_test[:, 0, 0, 0].tolist() == [20, 80, 90]


def test_folders_may_say_what_trains_and_what_tests(tmp_path, pictures):
    for folder, count in {"train/a": 2, "train/b": 1, "val/b": 3}.items():
        pictures(folder, count)
    assert datasets.is_class_folders(tmp_path)
    images = datasets.class_folders(tmp_path, side=4)
    assert images.train[1].tolist() == [0, 0, 1] and images.test[1].tolist() == [1, 1, 1]
    pictures("val/c", 1)
    with pytest.raises(ValueError, match="val: c is not a class of .*train"):
        datasets.class_folders(tmp_path)


def test_folders_that_are_no_classes(tmp_path, pictures):
    pictures("pairs/images", 2)
    pictures("pairs/masks", 2)
    pictures("one/a", 1)
    pictures("few/a", 1)
    pictures("few/b", 3)
    assert [datasets.is_class_folders(tmp_path / n) for n in ("pairs", "one", "few")] == [
        *(False, False, True)
    ]
    with pytest.raises(ValueError, match="expected at least 2 folders of pictures, .* got a"):
        datasets.class_folders(tmp_path / "one")
    with pytest.raises(ValueError, match="few: a has one picture; expected 2 or more"):
        datasets.class_folders(tmp_path / "few")
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        datasets.class_folders(tmp_path / "none")
