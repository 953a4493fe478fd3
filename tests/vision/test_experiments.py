"""Runs of experiments: what they compute, that they resume, what they refuse; tables and report."""

import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import AS_USERS, devices, strict_json
from faults import Fault, refusals
from flax import nnx
from forms import check_forms
from PIL import Image
from scipy import stats

import unrolled as ur
from unrolled.app.cli import main
from unrolled.training import CheckpointError
from unrolled.vision import experiments
from unrolled.vision.datasets import Images
from unrolled.vision.experiments import (
    Recipe,
    _features,
    _program,
    _recipe,
    _run,
    _table,
    paper_recipe,
)
from unrolled.vision.experiments._program import devices_of
from unrolled.vision.models._layers import Dense

N, SIDE, CLASSES = 26, 4, 3  # three batches of eight, and two images that are left out


class Rectified(nnx.Module):
    def __call__(self, x):
        return jax.nn.relu(x)


class Tiny(nnx.Module):
    """Batch statistics, features, and logits."""

    early = ("features",)

    def __init__(self, outputs, rngs):
        self.norm = nnx.BatchNorm(SIDE * SIDE, rngs=rngs)
        self.dense = nnx.Linear(SIDE * SIDE, 6, rngs=rngs)
        self.features = Rectified()
        self.last = nnx.Linear(6, outputs, rngs=rngs)

    def __call__(self, x):
        z = self.norm(x.reshape(len(x), -1))
        return self.last(self.features(self.dense(z)))


class Masker(nnx.Module):
    def __init__(self, rngs):
        self.last = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(x)[..., 0]


def build(recipe, shape, classes, rngs):
    return Tiny(classes, rngs) if classes else Masker(rngs)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (N + 5, SIDE, SIDE, 1), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, N + 5).astype(np.int32)
    return Images("tiny", (X[:N], labels[:N]), (X[N:], labels[N:]), ("a", "b", "c"))


NAMED = "data", "model", "activation"
RECIPE = Recipe(
    data="tiny", model="tiny", batch=8, epochs=3, augmentation="crop and flip", optimizer="adam"
)


def run(recipe, images, folder, **options):
    return experiments.run(recipe, images, folder, build=build, **options)


def weights(folder, name):
    with np.load(folder / "weights" / f"{name}.npz") as found:
        return {entry: found[entry] for entry in found.files if entry != "manifest.json"}


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run without a stop: its folder, name and row."""
    folder = tmp_path_factory.mktemp("finished")
    made = run(RECIPE, images, folder)
    return folder, made.name, made.row


# What a run computes


@pytest.mark.slow
def test_a_row_has_its_recipe_a_line_per_epoch_and_what_it_depends_on(finished):
    _, name, row = finished
    assert experiments.Recipe(**{**row["recipe"], "options": ()}) == RECIPE
    assert row["status"] == "complete" and len(row["curve"]) == RECIPE.epochs
    assert {"loss", "penalty", "l1", "zeros"} == set(row["curve"][0]["train"])
    assert row["scores"] == row["curve"][-1]["test"]
    assert row["layers"] == ["features"] and len(row["features"]["hoyer"]) == 1
    assert row["images"]["train"] == N and row["images"]["test"] == 5
    assert row["parameters"] == 2 * 16 + 17 * 6 + 7 * 3
    assert {"jax", "flax", "device"} <= set(row["environment"]) and row["seconds"] > 0
    assert any(text.startswith("epochs: 3 instead of 200") for text in row["deviations"])
    assert name.startswith("tiny-tiny-relu-gamma0-seed0-epochs3-")


def test_a_row_that_exists_is_not_run_again(finished, images):
    folder, name, row = finished
    again = run(RECIPE, images, folder, progress=lambda *told: pytest.fail("it ran"))
    assert again == experiments.Outcome(name, row)
    more = images.replace(classes=(*images.classes, "d"))
    with pytest.raises(ValueError, match="has a row of these bytes as images of .*'classes': 3"):
        run(RECIPE, more, folder)


@pytest.mark.slow
def test_a_run_is_a_plain_loop_over_the_batches_of_its_key(images, tmp_path):
    """SGD with momentum, decay and cosine, by hand, on images that are not augmented."""
    recipe = dataclasses.replace(
        RECIPE, optimizer="sgd", augmentation="none", gamma=0.3, epochs=2, decay=0.01
    )
    name = run(recipe, images, tmp_path).name
    net = Tiny(CLASSES, nnx.Rngs(jax.random.fold_in(jax.random.key(0), 0)))
    X, labels = images.train
    values = X / np.float32(255)
    inputs = (values - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)
    graph, params, others = nnx.split(net, nnx.Param, ...)

    @jax.jit
    def step(params, others, velocity, x, y, rate):
        def loss(params, others):
            model = nnx.merge(graph, params, nnx.State(nnx.to_pure_dict(others)))
            z = model.norm(x.reshape(len(x), -1))
            features = jax.nn.relu(model.dense(z))
            fit = optax.softmax_cross_entropy_with_integer_labels(model.last(features), y).mean()
            penalty = np.float32(0.3) * jnp.abs(features).mean()
            return fit + penalty, nnx.state(model, nnx.Not(nnx.Param))

        gradient, others = jax.grad(loss, has_aux=True)(params, others)
        decay, momentum = np.float32(0.01), np.float32(0.9)
        gradient = jax.tree.map(lambda g, p: g + decay * p, gradient, params)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - rate * v, params, velocity), others, velocity

    velocity = jax.tree.map(jnp.zeros_like, params)
    for epoch in range(2):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), epoch)
        order = np.asarray(jax.random.permutation(key, N))
        for b in range(3):
            at = order[8 * b : 8 * b + 8]
            rate = np.float32(0.05 * (1 + math.cos(math.pi * (3 * epoch + b) / 6)))
            x = inputs[at].astype(np.float32)
            params, others, velocity = step(params, others, velocity, x, labels[at], rate)
    found = experiments.restore(tmp_path, name, build=build)
    # Six steps in float32, in another order of sums.
    restored = jax.tree.leaves(nnx.state(found, nnx.Param))
    chex.assert_trees_all_close(restored, jax.tree.leaves(params), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gamma_zero_is_no_penalty_bit_for_bit_and_a_penalty_shrinks_features(
    finished, images, tmp_path
):
    folder, name, row = finished
    without = run(dataclasses.replace(RECIPE, layers=()), images, tmp_path)
    chex.assert_trees_all_equal(weights(folder, name), weights(tmp_path, without.name), strict=True)
    assert without.row["features"] == {}
    programs = _run._shared_program.cache_info().misses
    shrunk = run(dataclasses.replace(RECIPE, gamma=30.0, epochs=3), images, tmp_path).row
    assert _run._shared_program.cache_info().misses == programs  # gamma is an operand
    assert shrunk["curve"][0]["train"]["loss"] != row["curve"][0]["train"]["loss"]
    assert shrunk["features"]["l1"][0] < row["features"]["l1"][0]


@pytest.mark.slow
def test_epochs_share_one_compiled_step(images):
    _run._shared_program.cache_clear()
    X, Y = map(jnp.asarray, images.train)
    recipe, moments = dataclasses.replace(RECIPE, layers=()), ((0.5,), (0.25,))
    job_program = _run._shared_program(
        recipe, build, X.shape[1:], 3, 3, moments, devices_of(None, 1)
    )
    net = Tiny(CLASSES, nnx.Rngs(0))
    state = _program.start(job_program, net)
    for epoch in (0, 0, 0, 1):
        chosen = np.asarray(_program.order(jax.random.key(0), epoch, N))[: RECIPE.batch]
        state = job_program.advance(state, jax.random.key(1), chosen, None, X, Y)
    assert int(state.step) == 4 and job_program.advance._cache_size() == 1


def test_the_rate_drops_to_a_fifth_after_each_part_of_the_epochs():
    recipe = paper_recipe("ml-csc", "mnist")
    optimizer = _program.make_optimizer(dataclasses.replace(recipe, momentum=0.0, decay=0.0), 2)
    one = jnp.ones((), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        state, rates = optimizer.init(one), []
        update = jax.jit(optimizer.update)
        for _ in range(2 * 61):
            change, state = update(one, state, one)
            rates.append(-float(change))
    at = {epoch: rates[2 * epoch] for epoch in (0, 29, 30, 59, 60)}
    expected = {0: 1.0, 29: 1.0, 30: 0.2, 59: 0.2, 60: 0.04}
    for epoch, factor in expected.items():
        assert at[epoch] == pytest.approx(0.002 * factor, rel=1e-5)


class Drawn(nnx.Module):
    """Weights in the default dtype, as the models of the library have them."""

    early = ("dense",)

    def __init__(self, rngs):
        self.dense = Dense(SIDE * SIDE, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape(len(x), -1))


def drawn(recipe, shape, classes, rngs):
    return Drawn(rngs)


@pytest.mark.slow
def test_rows_and_weights_do_not_depend_on_the_default_dtype_of_jax(images, tmp_path):
    recipe = dataclasses.replace(RECIPE, gamma=0.1, epochs=1)
    found = {}
    for wide, promotion in ((True, "strict"), (False, "standard")):
        with jax.enable_x64(wide), jax.numpy_dtype_promotion(promotion):
            folder = tmp_path / promotion
            made = experiments.run(recipe, images, folder, build=drawn)
            net = experiments.restore(folder, made.name, build=drawn)
            logits = net(np.ones((1, SIDE, SIDE, 1), np.float32))
            whole = made.row["curve"], made.row["features"], weights(folder, made.name), logits
            found[promotion] = whole
    assert found["strict"][:2] == found["standard"][:2]
    chex.assert_trees_all_equal(found["strict"][2], found["standard"][2], strict=True)
    assert found["strict"][3].dtype == found["standard"][3].dtype == np.float32


CSC = {
    "msd-csc": (
        dict(blocks=1, depth=1, growth=1, width=2, unfoldings=1),
        {"stem": 8 * 8 * 2, "blocks.0": 8 * 8 * 3},
    ),
    "res-csc": (
        dict(blocks=1, width=2, unfoldings=0),
        {"stem": 8 * 8 * 2, "blocks.0": 8 * 8 * 2},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["msd-csc", "res-csc"])
def test_networks_of_convolutional_sparse_coding_are_trained_and_restored(name, tmp_path):
    options, layers = CSC[name]
    images = experiments.load("digits", side=8)
    (X, labels), (X_test, labels_test) = images.train, images.test
    images = images.replace(train=(X[:24], labels[:24]), test=(X_test[:8], labels_test[:8]))
    recipe = Recipe(
        data="digits", model=name, gamma=0.1, epochs=1, batch=8, options=tuple(options.items())
    )
    made = experiments.run(recipe, images, tmp_path)
    name, row = made.name, made.row
    assert row["layers"] == list(layers) and all(l1 > 0 for l1 in row["features"]["l1"])
    assert {f"{option}: {value}" for option, value in options.items()} <= set(row["deviations"])
    net = experiments.restore(tmp_path, name)
    assert all(norm.use_running_average for norm in norms(net))
    assert all((norm.mean[...] != 0).any() for norm in norms(net))
    mean, deviation = (np.asarray(m, np.float32) for m in row["images"]["moments"])
    x = (X_test[:8] / np.float32(255) - mean) / deviation
    logits, features = nnx.jit(lambda net, x: ur.vision.models.tap(net, *net.early)(x))(net, x)
    found = np.mean(np.argmax(np.asarray(logits), -1) == labels_test[:8])
    assert found == row["scores"]["accuracy"]
    assert {name: code[0].size for name, code in features.items()} == layers


def norms(net):
    return [module for _, module in nnx.iter_modules(net) if isinstance(module, nnx.BatchNorm)]


def test_a_run_that_diverges_is_a_row_that_says_so(images, tmp_path):
    recipe = dataclasses.replace(RECIPE, optimizer="sgd", rate=1e30, augmentation="none")
    row = experiments.run(recipe, images, tmp_path, build=drawn).row
    assert row["status"] == "diverged" and len(row["curve"]) < 3
    assert row["curve"][-1]["train"]["loss"] is None
    assert experiments.summarize({"a": row})[0].failed == (0,)


# Stops and resumes


def test_a_run_stopped_by_a_signal_in_an_epoch_ends_as_one_that_was_not(
    finished, images, tmp_path, monkeypatch
):
    folder, name, row = finished

    def stop(name, done, steps, text):
        if done == 5:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(_run, "_FIRST_STEPS", 1)
    monkeypatch.setattr(_run, "_CHUNK_SECONDS", 0.0)  # one step at a time
    with pytest.raises(SystemExit):
        run(RECIPE, images, tmp_path, progress=stop)
    seen = []
    resumed = run(RECIPE, images, tmp_path, progress=lambda name, done, *_: seen.append(done))
    assert seen[0] == 6  # goes on after step 5
    assert resumed.name == name and resumed.row["curve"] == row["curve"]
    chex.assert_trees_all_equal(weights(folder, name), weights(tmp_path, name), strict=True)
    assert not os.listdir(tmp_path / "states")


def test_a_killed_run_goes_on_from_what_it_saved_last(finished, images, tmp_path, monkeypatch):
    folder, name, row = finished
    monkeypatch.setattr(_run, "_SAVE_SECONDS", -1.0)

    def kill(name, done, steps, text):
        if done == 6:
            raise MemoryError  # as sudden as a kill: nothing more is saved

    with pytest.raises(MemoryError):
        run(RECIPE, images, tmp_path, progress=kill)
    assert run(RECIPE, images, tmp_path).row["curve"] == row["curve"]
    chex.assert_trees_all_equal(weights(folder, name), weights(tmp_path, name), strict=True)


def test_a_budget_stops_at_the_end_of_an_epoch(finished, images, tmp_path, monkeypatch):
    _, name, row = finished
    recipes = [RECIPE, dataclasses.replace(RECIPE, seed=1)]
    clock = [0.0]
    with monkeypatch.context() as patch:
        patch.setattr(_run.time, "monotonic", lambda: clock[0])
        options = dict(build=build, minutes=1, progress=lambda *_: clock.append(clock.pop() + 60))
        found = experiments.sweep(recipes, images, tmp_path, **options)
    assert len(found.open) == 2 and found.open[0] == name and not found.rows
    (state,) = (tmp_path / "states").glob("*.npz")  # of the run that was begun
    with np.load(state) as saved:
        assert saved["step"] == 3
    found = experiments.sweep([RECIPE], images, tmp_path, build=build)
    assert not state.exists() and found.rows[name]["curve"] == row["curve"]


def test_a_row_in_the_hands_of_another_process_is_left_to_it(images, tmp_path):
    folder = _run.open_folder(tmp_path)
    name = RECIPE.row_name(_recipe.digest_of(images))
    with _run.claimed(folder, name) as mine:
        assert mine and not list(folder.glob("*.lock"))  # people read the rows there
        found = experiments.sweep([RECIPE], images, tmp_path, build=build)
    assert found.busy == [name] and not found.rows
    with _run.claimed(folder, name) as mine:  # whose holder is gone
        assert mine


def test_a_row_that_was_finished_meanwhile_is_found(finished, images, tmp_path, monkeypatch):
    _, name, row = finished

    def run_elsewhere(recipe, images, folder, **_):
        _run.write_row(_run.open_folder(folder), name, row)
        return _run.Outcome(name, None, busy=True)

    monkeypatch.setattr(_run, "run", run_elsewhere)
    found = experiments.sweep([RECIPE], images, tmp_path, build=build)
    assert found.rows[name]["curve"] == row["curve"] and not found.busy


class Repeated(Tiny):
    """It calls one of its layers twice."""

    early = ("dense", "features")

    def __call__(self, x):
        z = self.features(self.dense(self.norm(x.reshape(len(x), -1))))
        return self.last(self.features(z - 1))


@pytest.mark.slow
def test_a_layer_that_is_called_twice_is_two_layers_and_the_run_resumes(
    images, tmp_path, monkeypatch
):
    recipe = dataclasses.replace(RECIPE, model="repeated", gamma=0.1)
    options = dict(build=lambda recipe, shape, classes, rngs: Repeated(classes, rngs))
    whole = experiments.run(recipe, images, tmp_path / "whole", **options)
    name, row = whole.name, whole.row
    assert row["layers"] == ["dense", "features[0]", "features[1]"] == row["features"]["layers"]
    assert all(len(line["train"]["l1"]) == 3 for line in row["curve"])
    with monkeypatch.context() as patch:
        clock = [0.0]
        patch.setattr(_run.time, "monotonic", lambda: clock[0])
        stop = dict(until=1.0, progress=lambda *_: clock.append(clock.pop() + 1))
        assert experiments.run(recipe, images, tmp_path / "parts", **options, **stop).row is None
    again = experiments.run(recipe, images, tmp_path / "parts", **options).row
    assert again["curve"] == row["curve"]
    chex.assert_trees_all_equal(
        weights(tmp_path / "whole", name), weights(tmp_path / "parts", name), strict=True
    )


def test_a_damaged_state_is_refused(images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        clock = [0.0]
        patch.setattr(_run.time, "monotonic", lambda: clock[0])
        stop = dict(until=1.0, progress=lambda *_: clock.append(clock.pop() + 1))
        assert run(RECIPE, images, tmp_path, **stop).row is None
    state = next((tmp_path / "states").glob("*.npz"))
    blob = bytearray(state.read_bytes())
    blob[len(blob) // 2] ^= 1
    state.write_bytes(blob)
    with pytest.raises(CheckpointError, match="damaged"):
        run(RECIPE, images, tmp_path)


# Weights and pictures


def test_restored_models_have_the_scores_of_their_row(finished, images):
    folder, name, row = finished
    net = experiments.restore(folder, name, build=build)
    mean, deviation = (np.float32(m) for m in row["images"]["moments"])
    X, labels = images.test
    logits = nnx.jit(lambda net, x: net(x))(net, (X / np.float32(255) - mean) / deviation)
    assert np.mean(np.argmax(np.asarray(logits), -1) == labels) == row["scores"]["accuracy"]


def test_weights_that_were_not_kept_or_of_no_row(images, tmp_path):
    name = run(RECIPE, images, tmp_path, keep_weights=False).name
    with pytest.raises(FileNotFoundError, match="were not kept"):
        experiments.restore(tmp_path, name, build=build)
    with pytest.raises(FileNotFoundError, match="has no row 'b'"):
        experiments.restore(tmp_path, "b", build=build)


@pytest.mark.slow
def test_masks_have_all_scores_and_pictures(tmp_path):
    images = experiments.shapes(8, train=8, test=3)
    recipe = dataclasses.replace(RECIPE, data="shapes", epochs=1, batch=4)
    made = run(recipe, images, tmp_path)
    name, row = made.name, made.row
    for score in ("pixel_accuracy", "mean_class_precision", "mean_class_accuracy", "mean_iou"):
        assert 0 <= row["scores"][score] <= 1 and 0 <= row["scores"][f"{score}_pooled"] <= 1
        assert row["scores"][f"{score}_std"] >= 0 and row["scores"][f"{score}_undefined"] >= 0
    pictures = experiments.read_pictures(tmp_path, name)
    assert pictures["predicted"].shape == pictures["truth"].shape == (3, 8, 8)
    right = pictures["predicted"] == pictures["truth"]
    assert right.mean() == pytest.approx(row["scores"]["pixel_accuracy"], rel=1e-6)
    (path,) = (tmp_path / "pictures").iterdir()
    whole = path.read_bytes()
    for place in range(0, len(whole), 11):  # one of them asks for another method of packing
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = experiments.read_pictures(tmp_path, name)
            assert all(np.array_equal(found[key], pictures[key]) for key in pictures), place
        except ValueError as error:
            assert str(error).startswith(f"{path}: not the pictures of a row")


def test_shapes_are_one_object_each_and_always_the_same():
    X, M = experiments.shapes(16, train=20, test=1).train
    assert X.dtype == np.uint8 and M.any((1, 2)).all() and not M.all((1, 2)).any()
    np.testing.assert_array_equal(X, experiments.shapes(16, train=20, test=1).train[0])
    # No two of its points are further apart than the corners of a triangle about a circle.
    for points in map(np.argwhere, M):
        assert np.linalg.norm(points[:, None] - points, axis=-1).max() <= 2 * 3**0.5 * 0.25 * 16


def test_the_pace_is_that_of_the_last_chunk():
    job = SimpleNamespace(state=SimpleNamespace(step=30), step=30, first=20, seconds=7.0)
    job.began = time.monotonic() - 5
    _run.Job._end_chunk(job)
    assert job.seconds >= 12 and job.pace * 10 == pytest.approx(job.seconds - 7)


# What is refused


def classes(X, labels, tested, **change):
    return Images("tiny", (X, labels), tested, ("a", "b", "c")), change


def masks(X, M, tested=None):
    return Images("m", (X, M), tested or (X, M), ()), {}


RUNS = {
    "labels from 0 to 3; expected 0 to 2": lambda X, y, T: classes(X, 3 * (y > 0), T),
    r"labels of shape \(25,\); expected \(26,\)": lambda X, y, T: classes(X, y[1:], T),
    "labels of dtype float64; expected integers from 0 to 2": lambda X, y, T: classes(X, y / 2, T),
    "the test split is empty": lambda X, y, T: classes(X, y, (X[:0], y[:0])),
    "the train pictures are float64": lambda X, y, T: classes(X / 1, y, T),
    r"\(4, 4, 1\) for training and \(2, 4, 1\) for testing": lambda X, y, T: classes(
        X, y, (T[0][:, :2], T[1])
    ),
    "a batch of 8 is larger than its 7 training": lambda X, y, T: classes(X[:7], y[:7], T),
    "masks from 2 to 2; expected 0 to 1, or bool; try": lambda X, y, T: masks(
        X, X[..., 0] > 9, (X, np.full(X.shape[:3], 2))
    ),
    # A mask of 0.5 is rounded neither down nor up.
    "masks of dtype float64; expected integers from 0 to 1": lambda X, y, T: masks(
        X, np.full(X.shape[:3], 0.5)
    ),
    "masks of dtype float32; expected integers": lambda X, y, T: masks(
        X, np.full(X.shape[:3], np.nan, np.float32)
    ),
    "train split is empty.*, try a split file": lambda X, y, T: masks(
        X[:0], X[:0, ..., 0] > 9, (X, X[..., 0] > 9)
    ),
    "no exact part": lambda X, y, T: classes(X, y, T, test="exact"),
    "tiny has 4 training images; expected 5 or more to hold": lambda X, y, T: classes(
        X[:4], y[:4], T, test="held-out", batch=2
    ),
    # The name of the data stands in the row: it would tell of others.
    "tiny: the recipe has data='cifar10'; .* try data='tiny'": lambda X, y, T: classes(
        X, y, T, data="cifar10"
    ),
    "no submodule 'conv7'; it has dense, features": lambda X, y, T: classes(
        X, y, T, layers=("conv7",)
    ),
    "gamma is not 0, but no layers of tiny are named": lambda X, y, T: classes(
        X, y, T, gamma=0.5, layers=()
    ),
}


@pytest.mark.parametrize("message", RUNS)
def test_a_run_that_cannot_be_is_refused_and_leaves_no_folder(message, images, tmp_path):
    shown, change = RUNS[message](*images.train, images.test)
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(RECIPE, **change), shown, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_are_given_by_a_path_have_its_last_name(images, tmp_path):
    elsewhere = images.replace(name="a/folder/tiny")
    assert run(RECIPE, elsewhere, tmp_path, until=0.0).row is None


NAME = "is part of the name of a file"
LAYERS = "layers must be a tuple of tap names or None, got"
OPTIONS = r"options must be a tuple of \(name, value\)"
test_recipes_that_make_no_sense_are_refused = refusals(
    {
        f"{option}={value!r}": Fault(
            partial(dataclasses.replace, RECIPE, **{option: value}), error, f"Recipe: {message}"
        )
        for option, values, error, message in [
            ("gamma", (-1.0, math.nan), ValueError, "gamma must be at least 0"),
            ("gamma", ("a",), TypeError, "gamma must be a number, got 'a'"),
            ("rate", (0.0, math.inf), ValueError, "rate must be above 0 and finite"),
            ("drop", (0.0, 1), ValueError, "drop must be above 0 and below 1"),
            ("momentum", (1.0,), ValueError, "momentum must be at least 0 and below 1"),
            ("optimizer", ("lion",), ValueError, "unknown optimizer 'lion'"),
            ("epochs", (0,), ValueError, "epochs must be at least 1"),
            (
                "seed",
                (2**32,),
                ValueError,
                "seed must be at most 4294967295",
            ),  # whose key is that of 0
            *((n, ("a/b", "/a", "", None), ValueError, f"{n} {NAME}") for n in NAMED),
            ("layers", ("conv1", ["conv1"], (1,)), TypeError, LAYERS),
            ("options", ({"width": 2}, [("width", 2)], ("width", 2)), TypeError, OPTIONS),
            ("options", ((("width",),),), TypeError, OPTIONS),
        ]
        for value in values
    }
)

COLOURS = (32, 32, 3), 10
MODELS = {
    "unknown model 'resnet'": (dict(model="resnet"), *COLOURS),
    "unet needs masks, and tiny has labels": (dict(model="unet"), *COLOURS),
    "vgg11 needs labels, and tiny has masks": (dict(model="vgg11"), (32, 32, 3), 0),
    "vgg11 needs images 32 x 32, got 28 x 28": (dict(model="vgg11"), (28, 28, 3), 10),
    "cnn needs images 28 x 28 x 1 or": (dict(model="cnn"), (28, 28, 3), 10),
    "lenet5 has no option 'width'; it has none": (
        dict(model="lenet5", options=(("width", 3),)),
        *COLOURS,
    ),
    "msd-csc has no option 'widths'; it has width, blocks, growth": (
        dict(model="msd-csc", options=(("widths", 3),)),
        *COLOURS,
    ),
}


@pytest.mark.parametrize("message", MODELS)
def test_models_that_do_not_fit_their_images_are_refused(message):
    fields, *images = MODELS[message]
    with pytest.raises(ValueError, match=message):
        _recipe.build_model(dataclasses.replace(RECIPE, **fields), *images, nnx.Rngs(0))


def test_folders_of_something_else_are_refused(images, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no experiment"):
        run(RECIPE, images, tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        run(RECIPE, images, tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="holds no experiment"):
        experiments.read_rows(tmp_path)
    (tmp_path / "rows").mkdir()
    for text in ("{", '{"format": 2}', '{"format": 1, "recipe": {}}', "[]"):
        (tmp_path / "rows" / "a.json").write_text(text)
        with pytest.raises(ValueError, match="not a row of an experiment"):
            experiments.read_rows(tmp_path)


# Data


def test_test_sets_are_parts_of_the_images():
    X = np.zeros((50, 2, 2, 1), np.uint8)
    X[:, 0, 0, 0] = np.arange(50)
    labels = np.arange(50, dtype=np.int32) % 10
    images = Images(
        "cifar10", (X, labels), (X.repeat(40, 0), labels.repeat(40)), tuple("0123456789")
    )
    held = _recipe.split_images(images, "held-out")
    assert held.test[0][:, 0, 0, 0].tolist() == list(range(40, 50))
    assert held.train[0][:, 0, 0, 0].tolist() == list(range(40))
    assert len(_recipe.split_images(images, "exact").test[1]) == 1000
    assert _recipe.split_images(images, "whole") is images


def test_digits_are_enlarged_and_framed():
    small = experiments.load("digits", side=8).train[0]
    large = experiments.load("digits", side=28).train[0]
    assert large.shape[1:] == (28, 28, 1)
    np.testing.assert_array_equal(large[:, 2:26:3, 4:26:3], small)
    assert not large[:, :2].any() and not large[:, :, 26:].any()


# Tables and the report


def rows_of(scores, features=None):
    """Rows by (activation, gamma, seed) -> accuracy."""
    rows = {}
    for (activation, gamma, seed), accuracy in scores.items():
        recipe = Recipe(data="cifar10", model="lenet5", epochs=2, activation=activation)
        recipe = dataclasses.replace(recipe, gamma=gamma, seed=seed)
        line = {
            "train": {"loss": 1.0, "penalty": 0.1, "l1": [0.2], "zeros": [0.5]},
            "test": {"loss": 1.0, "accuracy": accuracy},
        }
        rows[recipe.row_name("x")] = {
            "format": 1,
            "recipe": recipe.to_dict(),
            "deviations": ["epochs: 2 instead of 200"],
            "layers": ["conv1.features"],
            "images": {"sha256": "x", "classes": 10, "train": 9, "test": 3},
            "status": "complete",
            "scores": line["test"],
            "features": {"l1": [0.25], "zeros": [0.5], "below": [0.5], "hoyer": [0.4]},
            "curve": [line, line],
            "seconds": 1.0,
            "parameters": 1,
            "environment": {},
        }
    return rows


SCORES = {
    **{("relu", 0.0, seed): value for seed, value in enumerate((0.50, 0.52, 0.57))},
    **{("relu", 0.1, seed): value for seed, value in enumerate((0.53, 0.54, 0.60, 0.10))},
    ("mish", 0.1, 0): 0.7,
}


def test_differences_are_of_equal_seeds_with_t_intervals():
    cells = {
        (cell.recipe.activation, cell.recipe.gamma): cell
        for cell in experiments.summarize(rows_of(SCORES))
    }
    found = cells["relu", 0.1].differences["accuracy"]
    differences = np.array([0.03, 0.02, 0.03])
    low, high = stats.t.interval(
        0.95, 2, differences.mean(), differences.std(ddof=1) / math.sqrt(3)
    )
    assert found.n == 3 and found.excludes_zero
    assert found.mean - found.half == pytest.approx(low, rel=1e-9)
    assert found.mean + found.half == pytest.approx(high, rel=1e-9)
    assert cells["relu", 0.1].failed == (3,) and cells["relu", 0.1].scores["accuracy"].n == 4
    assert cells["relu", 0.0].baseline is None and not cells["relu", 0.0].differences
    one = cells["mish", 0.1]
    assert math.isnan(one.scores["accuracy"].half) and not one.differences


def test_holm_rejects_as_its_procedure_of_p_values_does():
    rng = np.random.default_rng(0)
    samples = [rng.normal(mean, 1, size=n) for mean in (0, 1, 2, 4) for n in (2, 3, 6, 12)]
    values = [stats.ttest_1samp(x, 0).pvalue for x in samples]
    rejected, n = set(), len(values)
    for rank, i in enumerate(np.argsort(values)):
        if values[i] > 0.05 / (n - rank):
            break
        rejected.add(i)
    one = experiments.interval([3.0])
    found = experiments.holm([experiments.interval(x) for x in samples] + [one])
    assert {i for i, of in enumerate(found) if of.excludes_zero} == rejected
    assert 0 < len(rejected) < sum(np.array(values) < 0.05)
    assert math.isnan(found[-1].half)
    order = np.argsort(values)
    for rank, i in enumerate(order[: len(rejected) + 1]):  # the widths, up to the first that stays
        low, high = stats.t.interval(
            1 - 0.05 / (n - rank), len(samples[i]) - 1, np.mean(samples[i]), stats.sem(samples[i])
        )
        assert found[i].half == pytest.approx((high - low) / 2, rel=1e-9)


@pytest.mark.slow
def test_holm_errs_in_one_family_of_twenty():
    rng, errors, n = np.random.default_rng(1), 0, 400
    for _ in range(n):
        family = [experiments.interval(x) for x in rng.normal(size=(8, 4))]
        errors += any(of.excludes_zero for of in experiments.holm(family))
    assert errors / n < 0.05 + 3 * math.sqrt(0.05 * 0.95 / n)  # three standard deviations


def test_a_difference_is_shown_with_its_interval_and_with_what_is_not_clear():
    """In percent; the width is the one that all claims of the table have together."""
    intervals = {
        "one": _table.Interval(0.012, math.nan, 1),
        "clear": _table.Interval(0.012, 0.01, 3),
        "open": _table.Interval(-0.012, 0.02, 3),
    }
    cell = _table.Cell(RECIPE, None, {}, intervals, {}, {}, ())
    widths = {(id(cell), name): 0.015 for name in intervals}
    shown = [_table._difference(cell, name, widths) for name in (*intervals, "none")]
    clear, unclear = "+1.20 ± 1.00 (1.50)", "-1.20 ± 2.00 (1.50), not clear"
    assert shown == ["+1.20 (one seed)", clear, unclear, ""]


def test_holm_keeps_exact_differences():
    exact, none = experiments.interval([1.0, 1.0, 1.0]), experiments.interval([0.0, 0.0])
    assert experiments.holm([exact, none]) == [exact, none]
    assert exact.excludes_zero and not none.excludes_zero


def test_scores_have_a_row_in_every_form_of_a_table():
    cells = experiments.summarize(rows_of(SCORES))
    records = experiments.scores_table(cells, "records")
    assert [row["accuracy"] for row in records] == [c.scores["accuracy"].mean for c in cells]
    assert records[-1]["accuracy_half"] is None  # of one seed
    assert len(experiments.scores_table(cells, "csv").splitlines()) == 1 + len(cells)
    assert r"\toprule" in experiments.scores_table(cells, "latex")
    assert experiments.scores_table(cells).startswith("| model | activation | gamma | runs | acc")


def test_a_table_tells_recipes_apart_and_tasks():
    """What recipes differ in, as epochs, has a column; a score of another task is empty."""
    short, long = rows_of(SCORES), {}
    for name, row in short.items():
        recipe = dataclasses.replace(_recipe.from_dict(row["recipe"]), epochs=7)
        long[f"{name} longer"] = {**row, "recipe": recipe.to_dict()}
    cells = experiments.summarize({**short, **long})
    text = experiments.scores_table(cells)
    assert text.startswith("| model | activation | gamma | epochs | runs | acc")
    assert "relu, gamma 0.1, epochs 7, seeds 3" in text
    records = experiments.scores_table(cells, "records")
    keys = [(row["activation"], row["gamma"], row["epochs"]) for row in records]
    assert len(set(keys)) == len(cells) == 6
    masks = dataclasses.replace(cells[0], scores={"mean_iou": experiments.interval([0.5, 0.6])})
    mixed = experiments.scores_table([*cells, masks], "csv").splitlines()
    assert {"accuracy", "mean_iou"} <= set(mixed[0].split(","))
    rows = [*short.values(), {**next(iter(short.values())), "scores": {"mean_iou": 0.5}}]
    with pytest.raises(ValueError, match="expected rows of one task, got some without accuracy"):
        experiments.scores_by_activation(rows)


NOTHING = {
    "scores_by_activation: there are no rows": lambda: experiments.scores_by_activation([]),
    "training_loss: there are no rows": lambda: experiments.training_loss([]),
    "score_in_training: there are no rows": lambda: experiments.score_in_training([]),
    "score_in_training: no run has an epoch": lambda: experiments.score_in_training(
        [{"recipe": {}, "curve": []}]
    ),
    "l1_in_training: there are no rows": lambda: experiments.l1_in_training([], 0),
    "there are no values": lambda: experiments.interval([]),
    "there are no pictures": lambda: experiments.predicted_masks({"X": []}, []),
    "level must be in .0, 1., got 1": lambda: experiments.holm([], level=1),
    "unknown task 'x'": lambda: paper_recipe("x", "cifar10"),
    "above 0 minutes, got 0": lambda: experiments.sweep([], None, "nowhere", minutes=0),
}


@pytest.mark.parametrize("message", NOTHING)
def test_nothing_has_no_figure_and_no_mean(message):
    with pytest.raises(ValueError, match=message):
        NOTHING[message]()


def test_curves_are_means_over_runs_where_all_have_an_epoch():
    """One run has diverged: its curve is shorter. The band is the interval of the mean."""
    rows = [*rows_of({("relu", 0.0, seed): 0.5 for seed in (0, 1)}).values()]
    for row, values in zip(rows, ((3.0, 2.0), (1.0,))):
        row["curve"] = [
            {"train": {"loss": v, "penalty": v, "l1": [v]}, "test": {"accuracy": v}} for v in values
        ]
    drawn = {
        "training loss": experiments.training_loss(rows),
        "test accuracy": experiments.score_in_training(rows),
        "sum of mean |x|": experiments.l1_in_training(rows),
        f"mean |x| of {rows[0]['layers'][0]}": experiments.l1_in_training(rows, 0),
    }
    half = experiments.interval([3.0, 1.0]).half
    for label, figure in drawn.items():
        (panel,) = figure.axes
        (line,), (band,) = panel.lines, panel.collections
        assert panel.get_ylabel() == label
        np.testing.assert_array_equal(line.get_ydata(), [2.0, np.nan])
        ends = {round(y, 9) for y in band.get_paths()[0].vertices[:, 1]}
        assert ends == {round(2 - half, 9), round(2 + half, 9)}


MADE = {  # model -> image shape, options of the recipe; class, arguments, named arguments
    "unet": ((8, 8, 3), dict(width=4), "UNet", (4, "rho"), dict(channels=3)),
    "lenet5": ((16, 16, 1), {}, "LeNet5", (5, "rho"), dict(side=16, channels=1)),
    "vgg11": ((32, 32, 3), {}, "VGG11", (5, "rho"), dict(channels=3)),
    "res-csc": (
        (8, 8, 3),
        dict(width=4, unfoldings=2),
        "ResCSC",
        (5,),
        dict(widths=(4, 8, 16), activation="rho", unfoldings=2, channels=3),
    ),
    "msd-csc": (
        (8, 8, 1),
        dict(growth=2),
        "MSDCSC",
        (5,),
        dict(activation="rho", growth=2, channels=1),
    ),
    "ml-ista": ((28, 28, 1), dict(unfoldings=2), "mnist", ("ml-ista",), dict(unfoldings=2)),
    "ml-lista": ((32, 32, 3), {}, "cifar10", ("ml-lista",), {}),
}


@pytest.mark.parametrize("model", MADE)
def test_a_recipe_makes_its_model_with_its_options(model, monkeypatch):
    shape, options, name, arguments, named = MADE[model]
    holder = _recipe.models.MLCSC if name in ("mnist", "cifar10") else _recipe.models
    monkeypatch.setattr(holder, name, lambda *given, **options: (given, options))
    monkeypatch.setattr(_recipe, "_check_fits", lambda *given: None)
    monkeypatch.setattr(_recipe.activations, "by_name", lambda name: "rho")
    recipe = SimpleNamespace(model=model, activation="relu", options=tuple(options.items()))
    classes = 0 if model == "unet" else 5
    found = _recipe.build_model(recipe, shape, classes, "rngs")
    assert found == (arguments, named | {"rngs": "rngs"})


def test_images_of_a_folder_are_masks_unless_it_has_classes(monkeypatch):
    asked, masks = [], ur.vision.datasets.Masks("a", "b")
    monkeypatch.setattr(_recipe.datasets, "locate", lambda name, root: f"{root}/{name}")
    monkeypatch.setattr(_recipe.datasets, "is_class_folders", lambda folder: "classes" in folder)
    for name in ("masks", "class_folders"):
        monkeypatch.setattr(
            _recipe.datasets, name, lambda *given, name=name: asked.append((name, *given)) or masks
        )
    monkeypatch.setattr(_recipe, "shapes", lambda side: ("shapes", side))
    assert experiments.load("mine", "root") == Images("mine", "a", "b", ())
    assert experiments.load("classes", "root", side=24) is masks
    sides = _recipe._MASKS_SIDE
    assert asked == [("masks", "root/mine", (sides, sides)), ("class_folders", "root/classes", 24)]
    assert experiments.load("shapes") == ("shapes", sides)
    assert experiments.load("shapes", side=16) == ("shapes", 16)


def test_pictures_that_are_not_standardized_keep_their_values():
    X = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 2), np.uint8)
    assert _recipe.moments_of(X, SimpleNamespace(standardize=False)) == ((0.0,), (1.0,))


def test_a_sweep_says_what_is_left_and_has_the_table_of_its_rows():
    rows = rows_of(SCORES)
    sweep = experiments.Sweep(rows, ["x", "y"], ["z"])
    check_forms(sweep)
    assert repr(sweep).startswith(f"{len(rows)} runs finished, 2 open, 1 elsewhere\n| model")
    assert sweep.table() == experiments.scores_table(experiments.summarize(rows))
    assert repr(experiments.Sweep({}, [], ["z"])) == "0 runs finished, 0 open, 1 elsewhere"


def test_a_table_says_what_differences_are_from_and_what_one_seed_is():
    recipe = dataclasses.replace(RECIPE, gamma=0.1)
    one = experiments.interval([0.01])

    def notes(*cells):
        return experiments.scores_table(cells).splitlines()[-1]

    def cell(baseline, difference):
        scores = {"accuracy": experiments.interval([0.5, 0.6])}
        return _table.Cell(recipe, baseline, scores, {"accuracy": difference}, {}, {}, ())

    other = dataclasses.replace(RECIPE, model="cnn")
    assert notes(cell(RECIPE, one)) == (
        "Differences are from gamma = 0, in points. One seed gives no interval, and no claim."
    )
    several = experiments.interval([0.01, 0.02])
    assert notes(cell(other, several)).startswith(
        "Differences are from gamma = 0, and where that is 0 from cnn, in points. In brackets"
    )
    assert "One seed" not in notes(cell(other, several))


def test_pictures_of_a_run_are_its_first_test_images_and_their_predicted_masks(monkeypatch):
    monkeypatch.setattr(_run._program, "predict", lambda *given: given[-1])
    n = _run._PICTURES
    X, truth, predicted = (np.arange(2 * n) + shift for shift in (0, 100, 200))
    images = Images("masks", None, (X, truth), ())
    job = SimpleNamespace(images=images, program=None, state=None, tests=(X, predicted))
    found = _run.Job._pictures(job)
    for name, whole in {"X": X, "truth": truth, "predicted": predicted}.items():
        np.testing.assert_array_equal(found[name], whole[:n])


def test_the_first_thousand_images_have_an_accuracy_of_their_own():
    labels = np.arange(2000) % 3
    predicted = np.where(np.arange(2000) < 250, labels, labels + 1)
    scores = _program._classified(predicted, labels)
    assert scores == pytest.approx({"accuracy": 250 / 2000, "accuracy_first_1000": 250 / 1000})
    assert list(_program._classified(predicted[:9], labels[:9])) == ["accuracy"]


def test_a_run_without_penalised_layers_measures_no_features():
    assert _program.measure(SimpleNamespace(layers=()), None, None) == {}
    assert [part.shape for part in _program._l1_and_zeros({})] == [(0,), (0,)]


def test_features_of_a_row_are_those_of_its_standardized_test_images_and_are_kept(
    tmp_path, images, monkeypatch
):
    """Measured once, of the convolutions behind the names that the run followed."""
    recipe = dataclasses.replace(RECIPE, layers=("features",), test="whole")
    record = {"recipe": recipe.to_dict(), "images": {"name": "tiny"}}
    model, asked = SimpleNamespace(early=("features",), convolutions=("conv",)), []

    def measured(model, X, taps):
        asked.append((X, taps))
        return SimpleNamespace(to_json=lambda: json.dumps({"conv": 1}))

    monkeypatch.setattr(_features, "restore", lambda folder, row, build: model)
    monkeypatch.setattr(_features, "read_row", lambda folder, row: record)
    monkeypatch.setattr(_features, "trained_on", lambda record, images: True)
    monkeypatch.setattr(_features, "features", measured)
    monkeypatch.setattr(_features.Features, "from_json", staticmethod(json.loads))
    found = [experiments.row_features(tmp_path, "a", images, n=3) for _ in range(2)]
    assert found == [{"conv": 1}] * 2 and len(asked) == 1 and asked[0][1] == ["conv"]
    chosen = _recipe.split_images(images, "whole")
    mean, deviation = _recipe.moments_of(chosen.train[0], recipe)
    expected = (chosen.test[0][:3] / 255 - mean) / deviation
    np.testing.assert_allclose(asked[0][0], expected, rtol=1e-5, atol=1e-6)
    assert _features._convolutions(model, None) is None
    assert _features._convolutions(SimpleNamespace(), ("a",)) == ["a"]
    monkeypatch.setattr(_features, "trained_on", lambda record, images: False)
    with pytest.raises(ValueError, match="a was trained on other images than tiny"):
        experiments.row_features(tmp_path, "a", images)


def test_scores_are_points_with_their_mean_and_interval_by_activation_and_gamma():
    """A run without a score has no point, and a group without points has no mean."""
    rows = [*rows_of({**SCORES, ("mish", 0.0, 0): 0.4}).values()]
    rows[-1]["scores"] = {"accuracy": None}
    (panel,) = experiments.scores_by_activation(rows).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["relu", "mish"]
    drawn = [(line.get_xdata(), line.get_ydata()) for line in panel.lines]
    points = {round(float(x[0]), 6): sorted(y) for x, y in drawn[::4]}
    lines = {tuple(np.round(np.asarray(y, float), 6)) for _, y in drawn}
    assert {(0.5, 0.52, 0.57), (0.53, 0.54, 0.6, 0.1), (0.7,)} <= lines and points
    for values in ((0.5, 0.52, 0.57), (0.53, 0.54, 0.6, 0.1)):
        of, shown = experiments.interval(values), {line for line in lines if len(line) == 1}
        ends = of.mean - of.half, of.mean, of.mean + of.half
        assert {(round(end, 6),) for end in ends} <= shown
    at = {len(x): set(np.round(x, 6)) for x, y in drawn if len(x) > 2}
    assert at == {3: {-0.2}, 4: {0.2}}  # of relu, gamma = 0 left of gamma = 0.1
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["gamma = 0", "gamma = 0.1"] and panel.get_ylabel() == "test accuracy"
    low, high = panel.get_ylim()
    assert 0 <= low < 0.1 and 0.7 < high <= 1


def test_masks_are_pictures_in_a_row_of_their_own():
    rng = np.random.default_rng(0)
    truth = rng.random((2, 4, 4)) < 0.5
    pictures = {"X": rng.random((2, 4, 4, 3)), "truth": truth, "gamma = 0": ~truth}
    panels = experiments.predicted_masks(pictures, ["gamma = 0"]).axes
    shown = [panel.images[0].get_array() for panel in panels]
    for i in range(2):
        for j, column in enumerate(pictures):
            np.testing.assert_array_equal(shown[3 * i + j], pictures[column][i])
    titles = [panel.get_title() for panel in panels]
    assert titles == ["picture", "truth", "gamma = 0", "", "", ""]
    scores = [panel.get_xlabel() for panel in panels]
    assert scores == ["", "", "mean IoU 0 %"] * 2


def test_scores_of_masks_are_means_over_the_images_that_have_one_and_pooled():
    """Of an image with one class alone, the IoU of the other one is 0/0."""
    masks, predicted = np.zeros((2, 3, 4, 4), bool)
    masks[0, :2], predicted[0, 1:3] = True, True  # of each class 4 pixels meet, of 12 in the union
    masks[1], predicted[1] = True, True
    scores = _program._segmented(predicted, masks)
    expected = {
        "pixel_accuracy": (5 / 6, 2**0.5 / 6, 0, 5 / 6),
        "mean_iou": (1 / 3, 0, 2, 20 / 28),
        "mean_class_accuracy": (1 / 2, 0, 2, 20 / 24),
        "mean_class_precision": (1 / 2, 0, 2, 20 / 24),
    }
    for name, numbers in expected.items():
        found = [scores[f"{name}{kind}"] for kind in ("", "_std", "_undefined", "_pooled")]
        assert found == pytest.approx(numbers, abs=1e-6)
    undefined = _program._segmented(masks[1:], masks[1:])["mean_iou"]
    assert math.isnan(undefined) and len(scores) == 4 * len(expected)


def test_the_loss_of_a_mask_is_the_mean_cross_entropy_of_its_pixels():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(2, 3, 4)), rng.random((2, 3, 4)) < 0.5
    p = 1 / (1 + np.exp(-z))
    expected = -np.where(y, np.log(p), np.log(1 - p)).mean((1, 2))
    np.testing.assert_allclose(_program._losses(z, y), expected, rtol=1e-5)


def test_a_grid_has_a_recipe_for_each_combination():
    paper = experiments.paper_recipe("classification", "digits")
    varied = dict(models=["lenet5"], activations=["relu", "elu"], gammas=[0], epochs=[1])
    recipes = experiments.grid(paper, **varied, seeds=[0, 1])
    kinds = [(recipe.seed, recipe.activation) for recipe in recipes]
    assert kinds == [(0, "relu"), (0, "elu"), (1, "relu"), (1, "elu")]


def test_differences_of_features_are_paired_layer_by_layer():
    rows = rows_of({("relu", gamma, seed): 0.5 for gamma in (0.0, 0.1) for seed in range(3)})
    for row in rows.values():
        gamma, seed = (row["recipe"][name] for name in ("gamma", "seed"))
        row["features"] = {
            **row["features"],
            "zeros": [0.5 + seed / 10 + gamma, 0.9 - gamma * seed],
        }
        row["layers"] = ["conv1", "conv2"]
    plain, penalised = experiments.summarize(rows)
    first, second = penalised.feature_differences["zeros"]
    assert first.mean == pytest.approx(0.1) and first.half < 1e-12 and first.n == 3
    assert second.mean == pytest.approx(-0.1)
    assert second.half == pytest.approx(experiments.interval([0.0, -0.1, -0.2]).half)
    assert not plain.feature_differences


BAD_ROWS = {
    "none": (lambda row: None, TypeError, "got NoneType; try experiments.read_rows"),
    "list": (lambda row: [row], TypeError, "must be a dict of rows by name, got list"),
    "folder": (lambda row: "rows", TypeError, "got str"),
    "no row": (lambda row: {"a": None}, TypeError, "must be a dict of rows by name"),
    "empty": (lambda row: {"a": {}}, ValueError, "row a has no recipe, images, layers, scores"),
    "no scores": (
        lambda row: {"a": {name: row[name] for name in row if name != "scores"}},
        ValueError,
        "row a has no scores; expected a row as experiments.read_rows returns it",
    ),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_what_are_no_rows_has_no_summary(fault):
    make, error, message = BAD_ROWS[fault]
    (row,) = rows_of({("relu", 0.0, 0): 0.5}).values()
    with pytest.raises(error, match=f"^summarize: .*{message}"):
        experiments.summarize(make(row))


@pytest.mark.parametrize("classes, chance, learned", [(10, 0.158, 0.3), (2, 0.5, 0.95)])
def test_a_run_near_chance_is_told(classes, chance, learned):
    """Of ten classes, 0.158 is what a network reached whose loss had not left log 10."""
    rows = rows_of({("relu", 0.0, 0): chance, ("relu", 0.0, 1): learned})
    for row in rows.values():
        row["images"] |= {"classes": classes}
    assert experiments.summarize(rows)[0].failed == (0,)


def test_features_of_diverged_runs_are_left_out_and_their_scores_are_not():
    from unrolled.app.commands import _experiment

    rows = rows_of({("relu", gamma, seed): 0.5 for gamma in (0.0, 0.1) for seed in range(3)})
    plain, penalised = experiments.summarize(rows)
    diverged = next(reversed(rows.values()))
    diverged |= {"status": "diverged", "scores": {"accuracy": 0.1, "loss": None}}
    diverged["features"] = {name: [None] for name in diverged["features"]}  # as JSON holds nan
    cells = experiments.summarize(rows)
    assert cells[0].features == plain.features
    for name, values in penalised.features.items():
        assert cells[1].features[name] == pytest.approx(values, rel=1e-15)
    assert [d.n for d in cells[1].feature_differences["l1"]] == [2]
    assert cells[1].scores["accuracy"].n == cells[1].differences["accuracy"].n == 3
    assert cells[1].failed == (2,)
    assert "nan" not in "".join(_experiment._feature_tables(cells))


def test_unfolded_pursuits_are_compared_with_the_plain_network():
    rows = rows_of({("relu", 0.0, 0): 0.5, ("relu", 0.0, 1): 0.6})
    plain, unfolded = rows.values()
    for row, model in ((plain, "cnn"), (unfolded, "ml-ista")):
        row["recipe"] |= {"model": model, "seed": 0}
    cells = experiments.summarize(rows)
    assert [cell.recipe.model for cell in cells] == ["cnn", "ml-ista"]
    assert cells[1].baseline.model == "cnn"
    assert cells[1].differences["accuracy"].mean == pytest.approx(0.1)
    assert not cells[1].differences["accuracy"].excludes_zero  # one seed is no claim


@pytest.mark.slow
def test_the_report_of_a_folder(tmp_path):
    from unrolled.app.commands._experiment import write

    folder = _run.open_folder(tmp_path)
    rows = rows_of(SCORES)
    for name, row in rows.items():
        _run.write_row(folder, name, row)
    check_forms(experiments.Sweep(rows, [], []))
    text = write(folder, experiments.Sweep({}, ["later"], ["other"]))
    assert "+2.67 ± 1.43" in text and "seeds 3" in text and "epochs: 2 instead of 200" in text
    assert "Not finished: later" in text and "Another process works on: other" in text
    results = strict_json((folder / "results.json").read_text())
    (section,) = results["sections"].values()
    assert section["rows"].keys() == rows.keys()
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + len(rows)
    assert len(list(folder.glob("*.png"))) == 4  # of one penalised layer, whose mean is the penalty
    assert " has the best accuracy, " in (folder / "report.html").read_text()


def test_a_figure_that_fails_loses_no_table_of_the_report(tmp_path, monkeypatch):
    from unrolled.app.commands._experiment import write

    def no_figure(*args, **options):
        raise ValueError("no figure")

    monkeypatch.setattr(ur.plots, "figure", no_figure)
    folder, rows = _run.open_folder(tmp_path), rows_of(SCORES)
    for name, row in rows.items():
        _run.write_row(folder, name, row)
    with pytest.raises(ValueError, match="no figure"):
        write(folder, experiments.Sweep({}, [], []))
    assert "+2.67 ± 1.43" in (folder / "report.md").read_text()
    (section,) = strict_json((folder / "results.json").read_text())["sections"].values()
    assert section["rows"].keys() == rows.keys()
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + len(rows)


def test_names_of_rows_that_were_made_are_those_of_their_recipes():
    kept = sorted((Path(ur.__file__).parents[1] / "benchmarks/sparse_features/rows").glob("*"))
    assert len(kept) >= 7
    for path in kept:
        row = json.loads(path.read_text())
        recipe = _recipe.from_dict(row["recipe"])
        assert recipe.row_name(row["images"]["sha256"]) == path.stem


def test_equal_recipes_have_one_name_whatever_the_kinds_of_their_numbers():
    numbers = dict(gamma=np.float32(1), rate=1, momentum=0, seed=np.int64(3), epochs=np.uint8(5))
    found = dataclasses.replace(RECIPE, **numbers)
    same = dataclasses.replace(RECIPE, gamma=1.0, rate=1.0, momentum=0.0, seed=3, epochs=5)
    assert found == same and found.row_name("x") == same.row_name("x")
    assert found.to_dict() == same.to_dict()
    # Options of models are as given: a number does not stand for a switch.
    switched = [dataclasses.replace(RECIPE, options=(("constrained", v),)) for v in (1, True)]
    assert [recipe.to_dict()["options"][0][1] for recipe in switched] == [1, True]
    assert switched[0].row_name("x") != switched[1].row_name("x")


def test_a_row_with_a_flipped_bit_is_refused_or_the_same(tmp_path):
    """Of every seventh byte one bit, all eight in turn."""
    folder = _run.open_folder(tmp_path)
    ((name, row),) = rows_of({("relu", 0.0, 0): 0.5}).items()
    _run.write_row(folder, name, row)
    path = folder / "rows" / f"{name}.json"
    blob, refused = path.read_bytes(), 0
    for place in range(0, len(blob), 7):
        changed = bytearray(blob)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert _run.read_row(folder, name) == row, place
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: not a row of an experiment ")
            refused += 1
    assert len(blob) > 1000 and refused > len(blob) / 14  # the others are between the numbers
    path.write_text(json.dumps(row))
    with pytest.raises(CheckpointError, match="no sha256: an older .*; remove the file to run it"):
        experiments.read_rows(folder)


def test_damaged_features_and_pictures_of_a_row_are_refused(finished, images, tmp_path):
    folder = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    name = finished[1]
    _run.write_pictures(folder, name, {"X": np.ones(3), "truth": np.ones(3)})
    with pytest.raises(CheckpointError, match="not the pictures of a row .'predicted'"):
        experiments.read_pictures(folder, name)
    path = folder / "features" / f"{name}-2.json"
    path.parent.mkdir()
    layer = {"admitted": None, "codes": {}, "pursued": {}}
    for held in ({"a": 1}, {"a": layer, "sha256": "0"}, [], {"a": layer}):
        path.write_text(json.dumps(held))
        with pytest.raises(CheckpointError, match="not the features of a row"):
            experiments.row_features(folder, name, images, build=build, n=2)


def test_rows_with_other_options_are_other_sections():
    from unrolled.app.commands._experiment import grouped, section_name

    rows = rows_of(SCORES)
    other = rows.popitem()
    other[1]["recipe"]["options"] = [["unfoldings", 1]]
    parts = grouped(rows | dict([other]))
    assert [set(part) for part in parts] == [set(rows), {other[0]}]
    assert section_name(parts[0]) != section_name(parts[1])


def test_what_deviates_from_the_recipes_of_the_papers():
    recipe = paper_recipe("classification", "cifar10")
    varied = dataclasses.replace(recipe, model="vgg11", activation="mish", gamma=0.1, seed=3)
    assert experiments.deviations(varied, recipe) == []
    segmentation = paper_recipe("segmentation", "ecssd")
    narrow = dataclasses.replace(segmentation, data="ecssd", options=(("width", 16),))
    assert experiments.deviations(narrow, segmentation) == [
        "data: ecssd instead of duts",
        "width: 16 instead of 64",
    ]
    assert segmentation.optimizer == "adam" and segmentation.batch == 4


# The command


def test_arguments_of_the_command_that_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("UNROLLED_DATA", raising=False)
    (tmp_path / "notes.txt").write_text("mine")
    bad = {
        "--gamma must be numbers separated by commas, got 'x'": ["--gamma", "x"],
        "gamma must be at least 0 and finite, got -1": ["--gamma", "0,-1"],
        "budget must be above 0 minutes, got 0": ["--budget", "0"],
        "--seeds must be at least 1": ["--seeds", "0"],
        "--width is not an option of lenet5": ["--model", "res-csc,lenet5", "--width", "3"],
        "--side is not an option of classification with mnist": [
            *("--dataset", "mnist"),
            *("--side", "32"),
        ],
        "side must be at least 1, got 0": ["--side", "0"],
        "unknown name 'swoosh'": ["--activation", "swoosh"],
        "no root given": ["--dataset", "cifar10"],
        "is not empty and holds no experiment": ["--output", str(tmp_path)],
        "a batch of 5000 is larger than its 1437": ["--batch", "5000"],
    }
    for message, arguments in bad.items():
        given = ["experiment", "classification", "--output", str(tmp_path / "out"), *arguments]
        assert main(given) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_data_set_that_is_given_by_its_path_has_its_name_in_the_rows(
    images, tmp_path, monkeypatch
):
    """With its path, a row was written beside the data in place of the output."""
    recipes = []
    monkeypatch.setattr(experiments, "load", lambda *_, **__: images)
    monkeypatch.setattr(experiments, "sweep", lambda given, *_, **__: recipes.extend(given))
    for path in ("sub/Mine", str(tmp_path / "Mine"), "Mine"):
        arguments = ["--dataset", path, "--output", str(tmp_path / "out")]
        main(["experiment", "segmentation", *arguments])  # there are no rows to report
    assert {recipe.data for recipe in recipes} == {"Mine"}


def test_the_command_says_what_is_tested_on(images, tmp_path, monkeypatch, capsys):
    """The counts are of the set; a part of it may be held out."""
    monkeypatch.setattr(experiments, "load", lambda *_, **__: images)
    monkeypatch.setattr(experiments, "sweep", lambda *_, **__: None)
    for test, said in {"whole": False, "held-out": True}.items():
        output = str(tmp_path / test)
        main(["experiment", "classification", "--test", test, "--output", output])
        assert ("tested on the last fifth of the training" in capsys.readouterr().err) is said


def test_a_folder_of_classes_is_a_data_set(tmp_path):
    from unrolled.app.commands._experiment import _dataset

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            grey = np.full((4, 4), 40 * i, np.uint8)
            Image.fromarray(grey).save(tmp_path / "pets" / name / f"{i}.png")
    assert _dataset("classification", tmp_path / "pets", False) == str(tmp_path / "pets")
    assert _dataset("classification", tmp_path, False) == "cifar10"
    for name, root in (("pets", tmp_path), (str(tmp_path / "pets"), tmp_path / "pets")):
        images = experiments.load(name, root)
        assert images.classes == ("cat", "dog") and images.train[0].shape == (8, 32, 32, 3)
        _recipe.check_images(images, Recipe(data="pets", model="lenet5", batch=4))


def test_features_are_measured_of_the_rows_on_these_images(tmp_path):
    """A folder may have rows on the same set at another size."""
    from unrolled.app.commands import _experiment

    folder = _run.open_folder(tmp_path)
    ((name, row),) = rows_of({("relu", 0.0, 0): 0.5}).items()
    row["recipe"]["data"] = row["images"]["name"] = "digits"
    _run.write_row(folder, name, row)
    (folder / "weights" / f"{name}.npz").write_bytes(b"of pictures 32 x 32")
    row["images"]["sha256"] = _recipe.digest_of(experiments.load("digits", side=32))
    digits = experiments.load("digits", side=16)
    assert _experiment.features_sections(folder, digits, print) == []
    assert experiments.trained_on(row, experiments.load("digits")) and not experiments.trained_on(
        row, digits
    )


def test_time_left_in_words():
    from unrolled.app.commands._console import progress, time_left

    assert [time_left(s) for s in (40, 120, 12000)] == ["40 s", "2 min", "3 h 20 min"]
    told = []
    with progress(told.append) as tell:
        tell("a", 1, 4, "first epoch")
        tell("a", 4, 4, "epoch 1")
    assert told == ["a: step 1 of 4, first epoch", "a: step 4 of 4, epoch 1"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "segmentation", "ml-csc"])
def test_quick_experiments_take_less_than_a_hundred_starts_of_the_command(task, tmp_path):
    """As a user runs them: in a process of their own, with the defaults of JAX.

    The time is that of the processor, and so is that of a start: others may keep it busy. They take
    20 to 50 starts, about a minute. The largest network spends most of it in the compiler of users:
    it is compiled as in the tests, and has half of the time.
    """
    large = task == "segmentation"
    dropped = ("UNROLLED_DATA",) if large else ("UNROLLED_DATA", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {} if large else AS_USERS

    def timed(*options):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        found = subprocess.run(
            [sys.executable, "-m", "unrolled", "experiment", *options],
            cwd=Path(ur.__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr
        return found, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    _, start = timed("--help")
    found, seconds = timed(task, "--quick", "--json", "--no-cache", "--output", tmp_path / "out")
    assert seconds < (50 if large else 100) * start
    sections = json.loads(found.stdout)["sections"]
    assert sections and "embedded" in found.stderr
    cells = [cell for section in sections.values() for cell in section["cells"]]
    assert task != "classification" or not any(cell["failed"] for cell in cells)


def test_a_step_records_mean_magnitudes_and_exact_zeros():
    features = {"a": np.array([[[0.0, -1.0]], [[2.0, -3.0]]]), "b": np.zeros((2, 3))}
    l1, zeros = jax.jit(_program._l1_and_zeros)(features)
    np.testing.assert_allclose(l1, [1.5, 0.0])
    np.testing.assert_allclose(zeros, [0.25, 1.0])


SHARED = """
import dataclasses, json, sys, time
import jax
from unrolled.vision import experiments

images = experiments.load("digits")
images = images.replace(train=tuple(part[:320] for part in images.train))
recipe = experiments.Recipe(
    data="digits", model="lenet5", epochs=2, batch=64, rate=0.02, augmentation="none", gamma=1e-3
)
mesh = jax.make_mesh((4,), ("data",))
alone = experiments.run(recipe, images, sys.argv[1] + "/alone").row
shared = experiments.run(recipe, images, sys.argv[1] + "/shared", mesh=mesh).row
# Stopped at the end of its first epoch on four devices, and continued on one.
moved = sys.argv[1] + "/moved"
soon = time.monotonic() + 0.01
assert experiments.run(recipe, images, moved, mesh=mesh, until=soon).row is None
moved = experiments.run(recipe, images, moved).row
try:
    experiments.run(dataclasses.replace(recipe, batch=30), images, sys.argv[1] + "/no", mesh=mesh)
except ValueError as error:
    refused = str(error)
print(json.dumps([alone, shared, moved, refused]))
"""


@pytest.mark.slow
def test_devices_share_the_batches_of_a_run(tmp_path):
    """To rounding: ten steps of sums over 64 images, in another order."""
    environment = os.environ | devices(4)
    code = (sys.executable, "-W", "ignore", "-c", SHARED, str(tmp_path))
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=500)
    assert not done.returncode, done.stderr
    alone, shared, moved, refused = json.loads(done.stdout.splitlines()[-1])
    for row in (shared, moved):
        for a, b in zip(alone["curve"], row["curve"]):
            assert b["train"]["loss"] == pytest.approx(a["train"]["loss"], rel=1e-3)
            assert b["train"]["l1"] == pytest.approx(a["train"]["l1"], rel=1e-3)
        assert row["scores"]["accuracy"] == pytest.approx(alone["scores"]["accuracy"], abs=0.01)
    assert shared["environment"]["devices"] == "4" and "devices" not in moved["environment"]
    assert "4 devices cannot share a batch of 30 images equally" in refused


def test_a_row_says_how_many_devices_shared_it():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    assert devices_of(mesh, 64).environment == {"devices": "1"}


def test_channels_are_standardized_by_their_own_moments():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 2)).astype(np.uint8)
    pixels[..., 1] = 51  # a channel without deviation keeps its units
    recipe = dataclasses.replace(paper_recipe("classification", "digits"), standardize=True)
    mean, deviation = _recipe.moments_of(pixels, recipe)
    assert mean == pytest.approx([pixels[..., 0].mean() / 255, 0.2])
    assert deviation == pytest.approx([pixels[..., 0].std() / 255, 1.0])
