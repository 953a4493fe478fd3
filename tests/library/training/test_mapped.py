"""Signals of a file that stay there: a training reads the rows that it draws, to the same bits."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import devices

import unrolled as ur
from unrolled._base.files import MappedRows

KEY = jax.random.key(1)
D = ur.dictionaries.gaussian(0, 6, 12)
Y, X = map(np.asarray, ur.problems.sampler(D, 50)(jax.random.key(3)))
LAYER = ur.layers.ista(2)


@pytest.fixture
def mapped(tmp_path):
    """An array as a file that is mapped into memory."""

    def of(array, name="Y.npy"):
        np.save(tmp_path / name, array)
        return np.load(tmp_path / name, mmap_mode="r")

    return of


@pytest.fixture
def read(monkeypatch):
    """The indices of all rows that are read."""
    rows, whole = [], MappedRows.read

    def recorded(self, indices):
        rows.extend((self.first + indices).tolist())
        return whole(self, indices)

    monkeypatch.setattr(MappedRows, "read", recorded)
    return rows


def fit(data, steps=4, **options):
    options = dict(optimizer=optax.sgd(1e-2), key=0, evaluate_every=2) | options
    return ur.fit(LAYER, LAYER.init(None, D), D, data, steps=steps, **options)


def bits(found):
    validation = [record.validation for record in found.history.records]
    return ur.training.digest((found.params, found.best, found.history.loss, validation))


CALLS = {
    "by a seed": lambda sample: sample(5),
    "jit": lambda sample: jax.jit(sample)(KEY),
    "vmap": lambda sample: jax.vmap(sample)(jax.random.split(KEY, 3)),
    "at once": lambda sample: sample(KEY),
    "map": lambda sample: jax.lax.map(sample, jax.random.split(KEY, 3)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("call", CALLS)
def test_rows_of_a_file_are_those_of_the_array(call, mapped):
    files = mapped(Y), mapped(X, "X.npy")
    expected = CALLS[call](ur.problems.resampler(Y, X, 7))
    for arrays in (files, (Y, files[1]), (files[0], X)):
        found = CALLS[call](ur.problems.resampler(*arrays, 7))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.few(3)
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float16", "float32"])
@pytest.mark.filterwarnings("ignore:.* is float64 but JAX runs in float32")
def test_rows_have_the_dtype_of_an_array_in_memory(dtype, x64, mapped):
    with jax.enable_x64(x64):
        arrays = Y.astype(dtype), X.astype(int)
        expected = ur.problems.resampler(*arrays)(0)
        found = ur.problems.resampler(mapped(arrays[0]), mapped(arrays[1], "X.npy"))(0)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


def test_what_is_not_drawn_is_not_read(mapped, read):
    sample = ur.problems.resampler(mapped(Y), (mapped(X, "X.npy"), None), batch=7)
    jax.eval_shape(sample, KEY)
    assert read == []
    sample(KEY)
    rows = jax.random.randint(KEY, (7,), 0, len(Y)).tolist()
    assert read == rows + rows


def test_a_copy_of_a_mapped_array_is_in_memory(mapped, read):
    ur.problems.resampler(mapped(Y).copy())(KEY)
    assert read == []


@pytest.mark.slow
def test_a_training_on_a_file_has_the_bits_of_one_in_memory(mapped, read):
    """It reads what is held back, two times, and a batch of 64 rows of the others a step."""
    found = fit((mapped(Y), mapped(X, "X.npy")))
    drawn = [row for row in read if row < 45]
    assert sorted(set(read) - set(drawn)) == [*range(45, 50)] and len(drawn) == 2 * 4 * 64
    assert bits(found) == bits(fit((Y, X)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [dict(accumulate=2), dict(optimizer=optax.lbfgs())], ids=["accumulate", "lbfgs"]
)
def test_and_so_has_one_of_several_batches_or_with_line_searches(options, mapped):
    assert bits(fit((mapped(Y), mapped(X, "X.npy")), **options)) == bits(fit((Y, X), **options))


@pytest.mark.slow
def test_a_recipe_and_a_curriculum_take_files(mapped):
    files, found = (mapped(Y), mapped(X, "X.npy")), []
    for data in (files, (Y, X)):
        made = ur.training.by_recipe("ista", D, data, depth=2, steps=2)
        stages = dict(key=0, steps_per_stage=2, stages=(1.0,))
        whole = ur.training.curriculum(LAYER, LAYER.init(None, D), D, data, **stages)
        found.append((bits(made.fit), bits(whole)))
    assert found[0] == found[1]


def with_nan(row):
    return np.where(np.arange(50)[:, None] == row, np.nan, Y)


@pytest.mark.filterwarnings("ignore:fit. at the start of training the codes are worse than zero")
def test_a_row_that_is_not_finite_ends_the_run_in_words(mapped):
    """Also where no loss sees it: a comparison with NaN is false."""
    file = mapped(with_nan(7))

    def blind(codes, X, D, Y):
        return jnp.sum(jnp.where(codes[-1] > 0, codes[-1], 0))

    with pytest.raises(ValueError, match=r"fit: .*Y.npy has NaN or infinite entries \(in row 7\)"):
        fit(file, loss=blind, steps=20)
    with pytest.raises(ValueError, match=r"fit: .*Z.npy has NaN .* \(in row 48\)"):
        fit(mapped(with_nan(48), "Z.npy"))  # of those to validate on
    sample = ur.problems.resampler(file, batch=300)
    with pytest.raises(ValueError, match="resampler: .*in row 7"):
        sample(KEY)


def test_inside_a_jit_of_ones_own_the_batch_is_nan_and_the_sampler_says_why(mapped):
    sample = ur.problems.resampler(mapped(with_nan(7)), batch=300)
    sample.check()
    batch, _ = jax.jit(sample)(KEY)
    assert np.isnan(batch).all()
    with pytest.raises(ValueError, match="resampler: .*in row 7"):
        sample.check()


def test_what_float32_loses_is_refused(mapped):
    far = mapped(np.where(np.arange(50)[:, None] == 7, 1e39, Y.astype(float)))
    with jax.enable_x64(False), pytest.warns(UserWarning, match="float64 but JAX runs in float32"):
        sample = ur.problems.resampler(far, batch=300)
    with pytest.raises(ValueError, match=r"Y.npy leaves the range of float32 \(in row 7\), where"):
        sample(KEY)


def test_a_file_that_is_cut_is_an_error_and_not_the_end_of_the_process(mapped, tmp_path):
    sample = ur.problems.resampler(mapped(Y)[10:], batch=7)
    size = (tmp_path / "Y.npy").stat().st_size
    os.truncate(tmp_path / "Y.npy", size - 8)
    with pytest.raises(ValueError, match=f"Y.npy has {size - 8} bytes, {size} when it was opened"):
        sample(KEY)


def test_more_rows_than_indices_are_refused(tmp_path):
    shape = (2**31, 1)  # of a file without blocks
    file = np.memmap(tmp_path / "Y", np.float16, "w+", shape=shape)
    with jax.enable_x64(False), pytest.raises(ValueError, match="Y has 2147483648 rows; JAX draws"):
        ur.problems.resampler(file)


FAULTS = {
    "grey values": (
        lambda of: ur.problems.resampler(of(np.ones((4, 3), np.uint8))),
        *(TypeError, "Y is uint8; expected real numbers near 1, try Y / 255"),
    ),
    "another number of rows": (
        lambda of: ur.problems.resampler(of(Y), of(X[1:], "X.npy")),
        *(ValueError, r"X has shape \(49, 12\); expected \(50, ...\)"),
    ),
    "no rows": (
        lambda of: ur.problems.resampler(of(np.ones((2, 0, 3)))),
        *(ValueError, "Y has shape .2, 0, 3"),
    ),
    "a vector": (lambda of: fit(of(Y[0])), ValueError, r"fit: Y has shape \(6,\)"),
    "another width": (lambda of: fit(of(X)), ValueError, r"Y has shape \(50, 12\); expected"),
    "zero rows to validate on": (
        lambda of: fit(of(0 * Y)),
        *(ValueError, "all signals held back to validate on are zero"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_refused(name, mapped):
    call, error, words = FAULTS[name]
    with pytest.raises(error, match=words):
        call(mapped)


DEVICES = """
import collections, json, sys
import jax, numpy as np, optax
import unrolled as ur
from unrolled._base.files import MappedRows

D = ur.dictionaries.gaussian(0, 6, 12)
Y, X = map(np.asarray, ur.problems.sampler(D, 50)(jax.random.key(3)))
data = jax.make_mesh((2,), ("data",))
grid = jax.make_mesh((2, 2), ("data", "atoms"), devices=jax.devices())

def mapped(array):
    np.save(sys.argv[1], array)
    return np.load(sys.argv[1], mmap_mode="r")

def fit(Y, D=D, steps=4, accumulate=4, **options):
    how = dict(optimizer=optax.sgd(1e-2), steps=steps, key=0, loss=ur.training.lasso_loss(0.1))
    layer = ur.layers.ista(2)
    found = ur.fit(layer, layer.init(None, D), D, Y, accumulate=accumulate, **how | options)
    return ur.training.digest((found.params, found.best, found.history.loss))

drawn, read = collections.Counter(), MappedRows.read
def recorded(self, rows):
    if self.first == 0:
        drawn.update(rows.tolist())
    return read(self, rows)
MappedRows.read = recorded

answer, file = {}, mapped(Y)
answer["memory"], answer["file"] = fit(Y), fit(file)
answer["grid in memory"] = fit(Y, mesh=grid)
one = drawn.copy()
drawn.clear()
answer["two"] = fit(file, mesh=data)
answer["same rows"] = drawn == one
drawn.clear()
answer["grid"] = fit(file, mesh=grid)
answer["two times"] = drawn == one + one
alone = jax.make_mesh((1, 4), ("data", "atoms"))
answer["no batches to share"] = fit(file, mesh=alone, accumulate=1) is not None
broken = np.where(np.arange(50)[:, None] == 7, np.nan, Y)
try:
    fit(mapped(broken), mesh=data)
except ValueError as error:
    answer["row"] = str(error)

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

D = ur.dictionaries.gaussian(0, 500, 600)
large = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, (400_000, 500))
large[-1000:] = Y[:1, :1]
large.flush()
whole = np.load(sys.argv[1], mmap_mode="r")
fit(whole[-10_000:], D, mesh=data)  # as many are held back
before = anonymous()
fit(whole, D, mesh=data)
answer["grown"] = (anonymous() - before) / large.nbytes
print(json.dumps(answer))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="tells the memory in use")
def test_devices_read_what_they_draw_and_memory_does_not_hold_the_file(tmp_path):
    """The rows of two devices are those of one, and pairs along the atoms read them in pairs."""
    environment = os.environ | devices(4)
    code = (sys.executable, "-W", "ignore", "-c", DEVICES, str(tmp_path / "Y.npy"))
    done = subprocess.run(code, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["memory"] == answer["file"] == answer["two"]
    assert answer["grid in memory"] == answer["grid"]
    assert answer["same rows"] and answer["two times"] and answer["no batches to share"]
    assert "fit: " in answer["row"] and "has NaN or infinite entries (in row 7)" in answer["row"]
    assert answer["grown"] < 0.15  # of 800 MB; the allocator keeps some 50
