"""Collections of pictures: what the readers return, and that a faulty file is one clear error."""

import gzip
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unrolled.vision import datasets
from unrolled.vision.datasets import _collections, cifar10, crop_and_flip, digits, masks, mnist

needs_data = pytest.mark.skipif(
    "UNROLLED_DATA" not in os.environ, reason="UNROLLED_DATA is not set"
)

# CIFAR-10

CIFAR = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder in the official layout, with three records in a file, and those records."""
    monkeypatch.setattr(datasets._collections, "_RECORDS", 3)
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


# MNIST

IDX = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
IDX += [name.replace("train", "t10k") for name in IDX]


@pytest.fixture
def arrays(monkeypatch):
    """Of a set of five and three pictures, by their names in the `.npz` file."""
    monkeypatch.setattr(datasets._collections, "_MNIST_TRAIN", 5)
    monkeypatch.setattr(datasets._collections, "_N_TEST", 3)
    rng = np.random.default_rng(0)
    found = {}
    for part, n in (("train", 5), ("test", 3)):
        found[f"x_{part}"] = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        found[f"y_{part}"] = rng.integers(0, 10, n).astype(np.uint8)
    return found


def idx_of(array):
    """The bytes of an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_idx(folder, arrays, compressed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX, arrays.values()):
        blob = idx_of(array)
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(blob) if compressed else blob)


def same_as(found, arrays):
    for (X, labels), part in ((found.train, "train"), (found.test, "test")):
        assert X.dtype == np.uint8 and labels.dtype == np.int32
        np.testing.assert_array_equal(X[..., 0], arrays[f"x_{part}"])
        np.testing.assert_array_equal(labels, arrays[f"y_{part}"])


def test_mnist_is_the_same_from_each_of_its_forms(tmp_path, arrays, monkeypatch):
    np.savez(tmp_path / "mnist.npz", **arrays)
    write_idx(tmp_path / "plain", arrays)
    write_idx(tmp_path / "packed" / "MNIST" / "raw", arrays, compressed=True)
    for root in ("mnist.npz", "", "plain", "packed"):
        found = mnist(tmp_path / root)
        same_as(found, arrays)
    assert found.name == "mnist" and found.classes == tuple("0123456789")
    found.train[0][:] = 0  # the copy is the caller's
    (tmp_path / "home" / "mnist").mkdir(parents=True)
    (tmp_path / "mnist.npz").rename(tmp_path / "home" / "mnist" / "mnist.npz")
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path / "home"))
    same_as(mnist(), arrays)


def test_mnist_that_is_missing_says_what_was_expected_and_where_it_is(
    tmp_path, arrays, monkeypatch
):
    where = "expected MNIST, mnist.npz with .*http://yann.lecun.com/exdb/mnist/"
    with pytest.raises(FileNotFoundError, match=f"no MNIST in it; {where}"):
        mnist(tmp_path)
    monkeypatch.delenv("UNROLLED_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=f"set UNROLLED_DATA; {where}"):
        mnist()
    write_idx(tmp_path, arrays)
    (tmp_path / IDX[3]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{IDX[3]} missing; {where}"):
        mnist(tmp_path)


@pytest.mark.parametrize(
    "name, fault, message",
    [
        (IDX[0], lambda blob: blob[:-1], f"{IDX[0]}: 3935 bytes; expected 3936"),
        (IDX[2], lambda blob: blob + b"0", f"{IDX[2]}: more than 2368 bytes"),
        (IDX[1], lambda blob: b"", f"{IDX[1]}: the header does not describe "),
        (IDX[1], lambda blob: idx_of(np.zeros(6, np.uint8)), "the header does not describe "),
        (IDX[1], lambda blob: idx_of(np.full(5, 10, np.uint8)), r"label 10 at 0; expected 0\.\.9"),
    ],
)
def test_an_idx_file_that_is_faulty(tmp_path, arrays, name, fault, message):
    write_idx(tmp_path, arrays)
    path = tmp_path / name
    path.write_bytes(fault(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        mnist(tmp_path)


def test_a_compressed_idx_file_that_is_damaged(tmp_path, arrays):
    write_idx(tmp_path, arrays, compressed=True)
    path = tmp_path / f"{IDX[2]}.gz"
    whole = path.read_bytes()
    for blob in (whole[:-20], b"no gzip", whole[:30] + b"xxxx" + whole[34:]):
        path.write_bytes(blob)
        with pytest.raises(ValueError, match=f"{IDX[2]}.gz: not a readable file"):
            mnist(tmp_path)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("x_train", np.zeros((5, 784), np.uint8), r"x_train is uint8 \(5, 784\); expected"),
        ("x_test", np.zeros((3, 28, 28)), r"x_test is float64 \(3, 28, 28\)"),
        ("y_test", np.array([0, -1, 2]), r"label -1 at 1"),
        ("y_train", np.zeros(5), "y_train is float64"),
        ("y_train", np.zeros(4, int), r"y_train is int64 \(4,\); expected \(5,\)"),
        ("y_train", None, "expected one called 'y_train'"),
    ],
)
def test_an_npz_file_of_mnist_that_is_faulty(tmp_path, arrays, name, value, message):
    arrays[name] = value
    np.savez(tmp_path / "mnist.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=f"mnist.npz: .*{message}"):
        mnist(tmp_path)


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


@pytest.mark.slow
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
    ):
        with pytest.raises(error, match=f"crop_and_flip: {message}"):
            crop_and_flip(0, bad)
    with pytest.raises(ValueError, match="pad must be at least 0"):
        crop_and_flip(0, X, pad=-1)


# Masks

LAYOUTS = [
    ("images", "masks"),
    ("images", "ground_truth_mask"),
    ("DUTS-TR-Image", "DUTS-TR-Mask"),
    ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
]


def pictures_of(names, size=(6, 8)):
    """Pictures with a grey level of their own, and masks with an object on the left."""
    M = np.zeros(size, bool)
    M[:, : size[1] // 2] = True
    return {name: (np.full((*size, 3), 40 * i + 10, np.uint8), M) for i, name in enumerate(names)}


def write_pairs(folder, pairs, layout=LAYOUTS[0]):
    for name in layout:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, (x, m) in pairs.items():
        Image.fromarray(x).save(folder / layout[0] / f"{name}.png")
        save_mask(m, folder / layout[1] / f"{name}.png")


def save_mask(m, path):
    Image.fromarray((255 * m).astype(np.uint8) if m.dtype == bool else m).save(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_without_a_split_are_for_testing_in_the_order_of_their_names(tmp_path, layout):
    pairs = pictures_of("ba")
    write_pairs(tmp_path, pairs, layout)
    (tmp_path / layout[0] / "Thumbs.db").write_text("not a picture")
    found = masks(tmp_path, (6, 8))
    for x, expected in zip(found.test, zip(pairs["a"], pairs["b"])):
        np.testing.assert_array_equal(x, expected)
    X, M = found.train
    assert X.shape == (0, 6, 8, 3) and M.shape == (0, 6, 8) and M.dtype == bool


def test_the_parts_of_duts_are_its_split(tmp_path, monkeypatch):
    train, test = pictures_of("abc"), pictures_of("d")
    for part, pairs in (("DUTS-TR", train), ("DUTS-TE", test)):
        write_pairs(tmp_path / "DUTS" / part, pairs, (f"{part}-Image", f"{part}-Mask"))
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path))
    found = masks("DUTS", (6, 8))
    np.testing.assert_array_equal(found.train[0], [x for x, _ in train.values()])
    np.testing.assert_array_equal(found.test[0], [x for x, _ in test.values()])
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a"], "test": ["d"]}))
    with pytest.raises(ValueError, match="expected none, since DUTS has its parts"):
        masks("DUTS", (6, 8), tmp_path / "split.json")


def test_a_split_file_chooses_and_orders_the_pairs(tmp_path):
    pairs = pictures_of("abcd")
    write_pairs(tmp_path, pairs)
    split = {"note": "made by hand", "train": ["d", "a"], "test": ["c"]}
    (tmp_path / "split_2_1.json").write_text(json.dumps(split))
    for chosen in (None, "split_2_1.json", tmp_path / "split_2_1.json"):
        found = masks(str(tmp_path), (6, 8), chosen)
        np.testing.assert_array_equal(found.train[0], [pairs["d"][0], pairs["a"][0]])
        np.testing.assert_array_equal(found.test[0], [pairs["c"][0]])
    (tmp_path / "split_1_1.json").write_text(json.dumps(split))
    with pytest.raises(ValueError, match="split_1_1.json, split_2_1.json; choose one by `split`"):
        masks(tmp_path, (6, 8))
    with pytest.raises(FileNotFoundError, match="split.json: no such split file, nor in"):
        masks(tmp_path, (6, 8), "split.json")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not a split file"),
        ("[]", "not a split file"),
        ('{"train": ["a"]}', r"not a split file \(KeyError\('test'\)\)"),
        ('{"train": "a", "test": ["b"]}', "train is not a list of names"),
        ('{"train": ["a"], "test": [1]}', "test is not a list of names"),
        ('{"train": ["a"], "test": []}', "test is empty"),
        ('{"train": ["a", "b"], "test": ["a"]}', "a named twice"),
        ('{"train": ["a", "x"], "test": ["y"]}', "x, y not among the pictures of"),
    ],
)
def test_a_split_file_that_is_faulty(tmp_path, text, message):
    write_pairs(tmp_path, pictures_of("ab"))
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match=f"split.json: {message}"):
        masks(tmp_path, (6, 8))


def test_a_folder_that_is_no_collection_of_pairs(tmp_path, monkeypatch):
    monkeypatch.delenv("UNROLLED_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="gone: no such folder, nor .*DUTS-TR and DUTS-TE"):
        masks(tmp_path / "gone", (6, 8))
    with pytest.raises(FileNotFoundError, match=r"no pictures with masks .*https?://.*duts"):
        masks(tmp_path, (6, 8))
    write_pairs(tmp_path, pictures_of("abcde"))
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(ValueError, match="masks: b missing; expected pairs of the same names"):
        masks(tmp_path, (6, 8))
    for name in "abcd":
        (tmp_path / "images" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match="images: a, c, d missing"):
        masks(tmp_path, (6, 8))


def test_pairs_are_resized_and_masks_stay_binary(tmp_path):
    """Half of a mask is its left half at every size, whatever stores it."""
    M = np.zeros((20, 40), bool)
    M[:, :20] = True
    x = np.zeros((20, 40), np.uint8)
    x[:, 20:] = 200
    soft = np.where(M, 255, 0).astype(np.uint8)
    soft[:, 19:21] = 120, 140  # a blurred edge: the left pixel is below the half, the right above
    for name, m in (("a", M), ("b", M.astype(np.uint8)), ("c", soft)):
        write_pairs(tmp_path, {name: (x, m)})
    Image.fromarray(M).save(tmp_path / "masks" / "d.png")  # one bit a pixel
    Image.fromarray(x).save(tmp_path / "images" / "d.jpg", quality=95)
    X, found = masks(tmp_path, (10, 20)).test
    assert X.shape == (4, 10, 20, 3) and found.dtype == bool
    np.testing.assert_array_equal(found[[0, 1, 3]], np.broadcast_to(M[::2, ::2], (3, 10, 20)))
    assert (found[2] != M[::2, ::2]).sum() <= 10 * 2  # at the edge alone
    assert (X[:, :, :8] < 20).all() and (X[:, :, 12:] > 180).all()


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.tile(np.arange(0, 240, 30, dtype=np.uint8), (6, 1)), "not a binary mask; 88% of its"),
        (np.full((6, 8), 38, np.uint8), "not a binary mask; .* the brightest is 38"),
        (np.ones((6, 9), bool), r"is 8 x 6 and .*a.png is 9 x 6; expected a mask of the size"),
    ],
)
def test_a_mask_that_is_none(tmp_path, mask, message):
    write_pairs(tmp_path, {"a": (np.zeros((6, 8, 3), np.uint8), mask)})
    with pytest.raises(ValueError, match=f"a.png.*{message}"):
        masks(tmp_path, (6, 8))


def test_masks_of_nothing_and_of_everything_are_masks(tmp_path):
    for name, m in (("a", np.zeros((6, 8), bool)), ("b", np.ones((6, 8), bool))):
        write_pairs(tmp_path, {name: (np.zeros((6, 8, 3), np.uint8), m)})
    _, M = masks(tmp_path, (3, 4)).test
    assert not M[0].any() and M[1].all()


def test_pictures_of_16_bits_are_those_of_8(tmp_path):
    grey = np.arange(48, dtype=np.uint16).reshape(6, 8)
    pairs = {"a": (5 * grey.astype(np.uint8), np.eye(6, 8, dtype=bool))}
    write_pairs(tmp_path, pairs | {"b": (5 * 257 * grey, np.eye(6, 8, dtype=bool))})
    with Image.open(tmp_path / "images" / "b.png") as picture:
        assert picture.mode.startswith("I")
    X, _ = masks(tmp_path, (6, 8)).test
    np.testing.assert_array_equal(X[0], X[1])
    np.testing.assert_array_equal(X[0, ..., 2], 5 * grey)


def test_pairs_that_cannot_be_read_and_sizes_that_are_none(tmp_path):
    write_pairs(tmp_path, pictures_of("a"))
    with pytest.raises(TypeError, match="masks: size must be a pair"):
        masks(tmp_path, (8, 8, 3))
    with pytest.raises(ValueError, match=r"masks: size\[0\] must be at least 1, got 0"):
        masks(tmp_path, (0, 8))
    path = tmp_path / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="a.png: not a readable picture"):
        masks(tmp_path, (6, 8))


# The data sets themselves


@needs_data
def test_the_real_mnist():
    found = mnist()
    # Published: 0.1307 and 0.3081 of the training pictures, as shares of 255.
    assert abs(found.train[0].mean() / 255 - 0.1307) < 1e-4
    assert abs(found.train[0].std() / 255 - 0.3081) < 1e-4
    assert found.train[1][:5].tolist() == [5, 0, 4, 1, 9]


def test_the_mask_of_a_made_picture_is_where_its_shape_lies(monkeypatch):
    textures = iter([np.full((32, 32, 3), 60.0), np.full((32, 32, 3), 190.0)])  # ground and shape
    monkeypatch.setattr(_collections, "_texture", lambda rng, side: next(textures))
    picture, mask = _collections._picture(np.random.default_rng(0), 32)
    assert 0 < mask.sum() < mask.size
    np.testing.assert_array_equal(picture.mean(2) > 125, mask)


@needs_data
def test_the_real_cifar10():
    try:
        found = cifar10()
    except FileNotFoundError:
        pytest.skip("no CIFAR-10 below UNROLLED_DATA")
    means = found.train[0].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)
    for _, labels in (found.train, found.test):
        assert set(np.bincount(labels)) == {len(labels) // 10}


@needs_data
@pytest.mark.slow
def test_the_real_ecssd():
    found = masks("ECSSD", (64, 64))
    assert found.train[0].shape == (800, 64, 64, 3) and found.test[1].shape == (200, 64, 64)
    assert 0.2 < found.train[1].mean() < 0.27 and 0.2 < found.test[1].mean() < 0.27
