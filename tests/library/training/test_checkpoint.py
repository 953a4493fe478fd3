"""Saved weights and trainings come back bit for bit, or an error says why; kills are real."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import registry
from safetensors.numpy import load_file
from small_training import D, Damped, OfAnother, families_of_a_user, run, sample
from trees import same

import unrolled as ur
from unrolled import dictionaries
from unrolled._base.threads import deferred
from unrolled.dictionaries._base import Rescaled
from unrolled.training import (
    Checkpoint,
    CheckpointError,
    NonFiniteError,
    _files,
    _forms,
    _resume,
    restore,
    save,
)
from unrolled.training._files import Steps
from unrolled.training._forms import DamagedError

M, N, K, STEPS = 3, 5, 2, 12
SUFFIXES = (".npz", ".safetensors")


def gaussian(seed=0, m=M, d=N):
    return ur.dictionaries.gaussian(jax.random.key(seed), m, d)


# Weights in a file


@pytest.fixture(scope="module")
def families():
    """A layer of every family, and its params."""
    layers = {name: build(K) for name, build in registry.LAYERS.items()}
    return {n: (layer, layer.init(jax.random.key(1), gaussian())) for n, layer in layers.items()}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_of_every_family_come_back_bit_for_bit_with_their_layer(suffix, families, tmp_path):
    D = gaussian()
    for name, (layer, params) in families.items():
        found = restore(
            save(tmp_path / f"a{suffix}", params, D, layer, note=name), like=params, D=D
        )
        assert same((found.params, found.D), (params, D)), name
        assert found.layer is layer and found.metadata["note"] == name
        assert found.metadata["versions"]["jax"] == jax.__version__
        bare = restore(save(tmp_path / f"b{suffix}", params, D), like=params)
        assert same(bare.params, params) and bare.layer is None


@pytest.mark.parametrize("name", registry.ACTIVATIONS)
def test_an_activation_comes_back_with_its_parameters(name, tmp_path):
    layer = ur.layers.ista(K, activation=registry.ACTIVATIONS[name]())
    params = layer.init(None, gaussian())
    assert restore(save(tmp_path / "a.npz", params, layer=layer)).layer is layer


@pytest.mark.slow
def test_networks_come_back_with_all_options_of_their_layers(tmp_path):
    Ds = gaussian(), gaussian(1, N, 7)
    elu = ur.activations.elu(0.5)
    for network in (
        ur.dsc([ur.alista(K, support=(0.1, 0.3), activation=elu), ur.layers.lamp(3)]),
        ur.networks.ml_lista(K, lam=0.2, activation=elu, unroll=2),
    ):
        params = network.init(jax.random.key(0), Ds)
        found = restore(save(tmp_path / "a.npz", params, Ds, network), like=params, D=Ds)
        assert found.layer is network and same((found.params, found.D), (params, Ds))


def test_params_that_are_not_of_the_layer_are_refused(tmp_path):
    params, D = ur.layers.ista(K).init(None, gaussian()), gaussian()
    with pytest.raises(TypeError, match="another family"):
        save(tmp_path / "a.npz", params, D, ur.lista_cp(K))
    with pytest.raises(ValueError, match="depth 3"):
        save(tmp_path / "a.npz", params, D, ur.layers.ista(3))
    with pytest.raises(TypeError, match="another family"):
        save(tmp_path / "a.npz", params, layer=ur.lista_cp(K))
    with pytest.raises(TypeError, match="layer must be a Layer or a Network, got dict"):
        save(tmp_path / "a.npz", params, D, dict(family="ista"))
    with pytest.raises(TypeError, match="no name; add it to activations.NAMED"):
        save(tmp_path / "a.npz", params, D, ur.layers.ista(K, activation=lambda v: v))
    assert not list(tmp_path.iterdir())


# Families of a user


def test_families_of_a_user_come_back_with_records_of_one_name(tmp_path):
    D = gaussian()
    with families_of_a_user() as families:
        layers = [family(K) for family in families]
        params = [layer.init(None, D) for layer in layers]
        paths = [
            save(tmp_path / f"{layer.family}.npz", p, D, layer) for layer, p in zip(layers, params)
        ]
        for path, layer, p, record in zip(paths, layers, params, (Damped, OfAnother.Damped)):
            found = restore(path, like=p)
            assert found.layer is layer and same(found.params, p)
            assert type(found.params.steps) is record
        network = ur.dsc(layers)
        Ds = D, gaussian(1, N, 7)
        chain = network.init(None, Ds)
        found = restore(save(tmp_path / "both.npz", chain, Ds, network), like=chain)
        assert found.layer is network and same(found.params, chain)
        with pytest.raises(TypeError, match=r"cannot save a Scale; give its model, `save\("):
            save(tmp_path / "bare.npz", params[0])
    for path in (*paths, tmp_path / "both.npz"):
        with pytest.raises(CheckpointError, match="'damped_.*'; import the module that defines it"):
            restore(path)


@pytest.mark.slow
def test_a_training_of_a_family_of_a_user_resumes_bit_for_bit(tmp_path):
    with families_of_a_user() as (damped_ista, _):
        layer = damped_ista(K, support=(0.1, 0.3))
        straight, found = resumed_like_straight(tmp_path, layer=layer)
        assert same(found.params, straight.best) and type(found.params.steps) is Damped
        assert found.layer is layer


def test_every_kind_of_dictionary_comes_back_bit_for_bit_and_has_its_own_hash(tmp_path):
    filters, columns = np.arange(1.0, 7.0).reshape(2, 1, 3), np.eye(3, 4)
    conv = dictionaries.Conv(filters, 8)
    kinds = [
        np.eye(3),
        conv,
        conv.T,
        dictionaries.Conv(filters, 8, stride=2),
        dictionaries.Sparse(np.eye(3), columns),
    ]
    kinds += [
        dictionaries.Conv(filters, 8, boundary="zero"),
        dictionaries.Conv(filters[:, :, :, None], (8, 1)),
    ]
    kinds += [dictionaries.Composed(columns.T, np.eye(3)), Rescaled(conv, np.arange(1.0, 13.0))]
    kinds += [
        dictionaries.Concatenated(
            np.eye(8), dictionaries.Composed(conv, dictionaries.Sparse(np.eye(12), np.eye(12, 7)))
        )
    ]
    for kind in kinds:
        found = restore(save(tmp_path / "a.npz", (), kind), D=kind).D
        assert same(found, jax.tree.map(jnp.asarray, kind))
    assert len({_forms.digest(kind) for kind in kinds}) == len(kinds)
    of_steps = (jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), conv),)
    assert same(restore(save(tmp_path / "steps.npz", of_steps)).params, of_steps)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_dtype_is_kept(suffix, dtype, tmp_path):
    values = jnp.asarray([1.1, -0.0, np.nan, np.inf, 1e-7], dtype)
    params = ur.layers.Unrolled(None, ur.layers.StepAndThreshold(values, jnp.asarray(0.3, dtype)))
    found = restore(save(tmp_path / f"a{suffix}", params), like=params).params
    assert same(found, params, equal_nan=True)


@pytest.mark.slow
def test_networks_lists_dicts_and_empty_arrays_come_back(tmp_path):
    layer = ur.layers.ista(K)
    params = (
        layer.init(None, gaussian()),
        ur.layers.unstack(ur.lista(K).init(None, gaussian(1, N, 7))),
    )
    Ds = (gaussian(), dictionaries.Composed(np.eye(N), dictionaries.Conv(np.ones((1, 1, 2)), N)))
    found = restore(save(tmp_path / "a.npz", params, list(Ds)), like=params, D=Ds)
    assert same(found.params, params) and same(found.D, Ds)
    untied = ur.layers.lamp(K).init(
        None, dictionaries.Conv(np.ones((2, 1, 3)), 8)
    )  # a bank of filters at every step
    assert same(restore(save(tmp_path / "d.npz", untied), like=untied).params, untied)
    network = ur.networks.ml_lista(K)
    params = network.init(None, Ds)
    assert same(restore(save(tmp_path / "c.npz", params, Ds), like=params).params, params)
    tree = {"a": [jnp.zeros((0, 3)), None], "b": jnp.arange(3, dtype=jnp.int8)}
    assert same(restore(save(tmp_path / "b.safetensors", tree)).params, tree)


def test_a_npz_of_weights_opens_with_numpy_alone(tmp_path):
    params = ur.layers.ista(K).init(None, gaussian())
    with np.load(save(tmp_path / "a.npz", params, gaussian()), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["params.steps.gamma"], params.steps.gamma)
        np.testing.assert_array_equal(archive["D"], gaussian())
        assert json.loads(archive["manifest.json"])["format"] == 1


def test_a_safetensors_file_of_weights_opens_with_safetensors(tmp_path):
    params = ur.layers.ista(K).init(None, gaussian())
    loaded = load_file(save(tmp_path / "a.safetensors", params, gaussian()))
    np.testing.assert_array_equal(loaded["params.steps.gamma"], params.steps.gamma)


def test_without_the_dictionary_its_hash_is_kept(tmp_path):
    path = save(
        tmp_path / "a.npz", ur.layers.ista(K).init(None, gaussian()), gaussian(), dictionary=False
    )
    assert restore(path, D=gaussian()).D is None
    with pytest.raises(CheckpointError, match="saved with another D"):
        restore(path, D=gaussian(1))


@pytest.mark.parametrize("layer", [None, ur.layers.ista(K)])
def test_weights_that_are_not_like_the_requested_ones_are_refused_with_a_table(tmp_path, layer):
    D = gaussian()
    path = save(tmp_path / "a.npz", ur.layers.ista(K).init(None, D), layer=layer)
    for like, row in (
        (ur.layers.ista(3).init(None, D), r"params.steps.gamma +float64 \(2,\) +float64 \(3,\)"),
        (
            ur.layers.ista(K).init(None, D.astype(np.float32)),
            r"params.steps.theta +float64 \(2,\) +float32 \(2,\)",
        ),
        (ur.lista_cp(K).init(None, D), r"params.shared.W +- +float64 \(3, 5\)"),
        (jnp.ones(2), r"form +Unrolled\(shared=None, steps=Step.* array"),
        ({"steps": None}, r"form +Unrolled\(shared=None, .* dict\(steps=None\)"),
    ):
        with pytest.raises(CheckpointError, match=rf"(?s)saved +requested.*{row}"):
            restore(path, like=like)


@pytest.mark.slow
def test_the_result_of_fit_is_saved_as_its_best_params_with_d_and_the_model(tmp_path):
    fit = run(None, learn_dictionary=True)
    saved = restore(save(tmp_path / "fit.npz", fit, seed=3))
    same((saved.params, saved.D), (fit.best, fit.D))
    assert saved.layer is fit.model and saved.metadata["seed"] == 3
    assert restore(save(tmp_path / "other.npz", fit, dictionary=False)).D is None


def test_weights_without_a_dictionary_fit_their_layer(tmp_path):
    layer, Ds = ur.alista(K), (gaussian(), gaussian(1, N, 7))
    params = layer.init(None, Ds[0])
    network = ur.dsc([layer, layer])
    chain = network.init(None, Ds)
    whole = ur.networks.ml_lista(K)
    path = tmp_path / "a.npz"
    for tree, model, error, message in (
        (params, ur.alista(K + 1), ValueError, f"save: params have .* depth {K + 1}"),
        (params, ur.lista(K), TypeError, "save: params have the records .* another family?"),
        ((*chain, params), network, ValueError, "save: params have 3 blocks; expected 2"),
        ((params, ur.alista(1).init(None, Ds[1])), network, ValueError, f"depth {K}"),
        (whole.init(None, Ds), ur.networks.ml_lista(K + 1), ValueError, f"depth {K + 1}"),
    ):
        with pytest.raises(error, match=message):
            save(path, tree, layer=model)
    for tree, model in ((params, layer), (chain, network), (whole.init(None, Ds), whole)):
        found = restore(save(path, tree, layer=model), like=tree)
        assert found.layer is model and same(found.params, tree)
        with pytest.raises(CheckpointError, match="the weights were saved without a D"):
            restore(path, D=gaussian())


def test_chains_of_other_lengths_are_refused_with_a_table(tmp_path):
    layer, D = ur.alista(K), gaussian()
    params = layer.init(None, D)
    path = save(tmp_path / "a.npz", (params,), layer=ur.dsc([layer]))
    with pytest.raises(CheckpointError, match=r"params.1.shared.W +- +float64 \(3, 5\)"):
        restore(path, like=(params, params))


def test_64_bits_are_not_cast_in_a_process_without_them(tmp_path):
    path = save(tmp_path / "a.npz", ur.layers.ista(K).init(None, gaussian()))
    with (
        jax.enable_x64(False),
        pytest.raises(CheckpointError, match="holds float64, but JAX runs in float32"),
    ):
        restore(path)


def test_64_bits_of_a_tree_are_refused_with_its_file(tmp_path):
    path, tree = tmp_path / "a.npz", {"step": 7}
    ur.training.save_tree(path, tree)
    with jax.enable_x64(False), pytest.raises(CheckpointError, match=r"a\.npz: holds int64, but"):
        ur.training.restore_tree(path, tree)


def test_a_tree_has_metadata_that_json_can_hold(tmp_path):
    path, tree = tmp_path / "a.npz", {"step": 7}
    ur.training.save_tree(path, tree, loss=float("inf"))
    assert ur.training.restore_tree(path, tree)[1] == {"loss": float("inf")}
    with pytest.raises(TypeError, match="save_tree: metadata must be what JSON can hold"):
        ur.training.save_tree(path, tree, loss=np.float32(1))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_copy_is_enough_to_write_a_file_and_none_to_read_it(suffix, tmp_path):
    """Beside the 16 MB that numpy writes at a time."""
    path, (put, take) = tmp_path / f"a{suffix}", _files.FORMATS[suffix]
    array = np.arange(2.0**22)
    tracemalloc.start()
    try:
        _files.write("save_tree", path, "tree", {"a": array}, put)
        wrote = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = _files.read(path, "tree", take)[1]["a"]
        kept = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(found, array)
    assert wrote < array.nbytes + 1.1 * 2**24 and kept < 2**20


def test_entries_too_large_for_32_bits_are_read_by_us_and_by_numpy(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    path, tree = tmp_path / "a.npz", {"a": np.arange(999.0), "b": np.ones(3)}
    ur.training.save_tree(path, tree)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("a.npy").file_size > 1000
    assert same(ur.training.restore_tree(path)[0], tree)
    with np.load(path) as file:
        assert np.array_equal(file["a"], tree["a"])


def test_a_tree_with_a_flipped_bit_is_refused_or_the_same(tmp_path):
    tree, metadata = {"a": np.arange(3.0), "key": jax.random.key(1)}, {"curve": [0.5, 1e-3]}
    path = tmp_path / "state.npz"
    ur.training.save_tree(path, tree, **metadata)
    blob, refused = path.read_bytes(), 0
    places = range(0, len(blob), 9)
    for place in places:
        changed = bytearray(blob)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = ur.training.restore_tree(path, tree)
            assert found[1] == metadata and np.array_equal(found[0]["a"], tree["a"])
            assert jax.random.key_data(found[0]["key"]).tolist() == [0, 1]
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: damaged (")
            refused += 1
    assert refused > 0.5 * len(places)  # the others are times and versions of the archive


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    class Stranger(tuple):
        pass

    for arguments, error, message in (
        (("a.txt", ()), ValueError, "must end in .npz or .safetensors"),
        (("a.npz", Stranger()), TypeError, "params: cannot save a Stranger"),
        (
            ("a.npz", {"a": np.ones(1), "not a name": np.ones(1)}),
            TypeError,
            "dict must have names as keys",
        ),
        (("a.npz", "text"), TypeError, "cannot save a str"),
        (("a.npz", ur.alista(2), ()), TypeError, r"params is an alista; try save\(path, params"),
        (("a.npz", ur.lasso(np.eye(2), np.ones(2), 0.1)), TypeError, "a Pursuit.* `asdict"),
        (("a.npz", np.ones(1) * 1j), TypeError, "params has dtype complex128"),
        (("a.npz", np.asarray([{}], object)), TypeError, "params has dtype object"),
    ):
        with pytest.raises(error, match=message):
            save(tmp_path / arguments[0], *arguments[1:])
    for note in (object(), np.nan, [np.inf]):
        with pytest.raises(TypeError, match="what JSON can hold"):
            save(tmp_path / "a.npz", (), note=note)
    with pytest.raises(ValueError, match="versions of its own"):  # those of `restore` would hide it
        save(tmp_path / "a.npz", (), versions="mine")
    with pytest.raises(TypeError, match="save: params or D is traced"):
        jax.jit(lambda params: save(tmp_path / "a.npz", params))(np.ones(1))
    with pytest.raises(TypeError, match="two leaves have the path 'a.b'"):
        ur.training.save_tree(tmp_path / "a.npz", {"a.b": np.ones(1), "a": {"b": np.zeros(1)}})
    assert not list(tmp_path.iterdir())


def test_a_file_with_another_suffix_is_not_called_damaged(tmp_path):
    (tmp_path / "a.npy").touch()
    with pytest.raises(ValueError, match="a.npy must end in .npz or .safetensors") as raised:
        restore(tmp_path / "a.npy")
    assert not isinstance(raised.value, CheckpointError)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3,), "load: path is an int"),
        (("weights.npz", None, 3), r"load: D has shape \(\)"),
        ((), r"load\(\) missing .* 'path'"),
    ],
)
def test_a_wrong_argument_of_load_is_refused_under_this_name(arguments, text):
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        ur.load(*arguments)


def test_a_missing_file_is_named_with_what_lies_beside_it(tmp_path):
    save(tmp_path / "other.npz", ())
    with pytest.raises(FileNotFoundError, match=r"^/\S*a.npz: no such file; next to it: other.npz"):
        restore(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        restore(tmp_path / "no" / "a.npz")
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match="no saved step"):
        restore(tmp_path / "run")


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path):
    path, more = save(tmp_path / "a.npz", jnp.arange(3.0)), np.arange(1000.0)
    with (
        file_size_limit(100),
        pytest.raises(
            CheckpointError, match=r"a.npz: cannot be written \(.*\); \d+ bytes are free"
        ),
    ):
        save(path, more)
    assert same(restore(path).params, jnp.arange(3.0)) and os.listdir(tmp_path) == ["a.npz"]


def test_save_looks_at_the_folder_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(ur.training._forms, "describe_params", None)
    (tmp_path / "a.npz").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "b.npz", tmp_path / "a.npz", tmp_path / "file" / "b.npz"):
        with pytest.raises(CheckpointError, match=f"save: {path}: cannot be written"):
            save(path, ())
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "file"]


class file_size_limit:
    """Files of this process cannot grow beyond so many bytes: a disk that is full."""

    def __init__(self, n):
        self.n = n

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.n, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


# Damage and malice


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_flipped_bit_or_cut_gives_other_weights(suffix, tmp_path):
    params, D = ur.lista_cp(K).init(None, gaussian()), gaussian()
    path = save(tmp_path / f"a{suffix}", params, D)
    blob, rng, silent = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(75):
        place, bit = rng.integers(len(blob)), rng.integers(8)
        changed = bytearray(blob)
        changed[place] ^= 1 << bit
        path.write_bytes(changed if trial < 50 else blob[:place])
        try:
            found = restore(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:  # a bit that means nothing, such as the date of an entry
            assert trial < 50 and same((found.params, found.D), (params, D))
            silent += 1
    assert silent <= 10


def sealed(params="params", leaves=None, **changes):
    manifest = {
        "form": {"params": params, "D": None},
        "leaves": leaves or {},
        "D sha256": None,
        "versions": {},
        "metadata": {},
    }
    return json.dumps(_forms.seal("weights", manifest | changes))


def npz(text, compression=zipfile.ZIP_STORED, **entries):
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w", compression) as archive:
        archive.writestr("manifest.json", text)
        for name, body in entries.items():
            archive.writestr(f"{name}.npy", body)
    return blob.getvalue()


def npy(array, shape=None):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue() if shape is None else file.getvalue().replace(b"(3,)", shape)


def tensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


LEAF = {"params": {"dtype": "float64", "shape": [3], "sha256": _forms.sha256(np.arange(3.0))}}
META = {"__metadata__": {"unrolled": sealed(leaves=LEAF)}}


def of_layer(layer):
    """A file whose form has this layer."""
    return npz(sealed(None, form={"params": None, "D": None, "layer": layer}))


MALICE = {
    "family.npz": (
        of_layer({"family": "Popen", "args": ["ls"]}),
        "unknown family 'Popen'; import the module",
    ),
    "network.npz": (
        of_layer({"network": "dsc", "layers": [{"family": "os"}]}),
        "unknown family 'os'",
    ),
    "option.npz": (of_layer({"family": "ista", "depth": 2, "nobody": 1}), "nobody"),
    "value.npz": (of_layer({"family": "ista", "depth": "2"}), "depth must be an integer"),
    "activation.npz": (
        of_layer({"family": "ista", "depth": 2, "activation": {"activation": ["system", "ls"]}}),
        "unknown form",
    ),
    "layer.npz": (of_layer("ista(2)"), "'str' object"),
    "objects.npz": (
        npz(sealed(leaves=LEAF), params=npy(np.asarray([{}, 1, 2], object))),
        "dtype object",
    ),
    "lying.npz": (
        npz(sealed(leaves=LEAF), params=npy(np.arange(3.0), b"(999999999999,)")),
        "buffer size",
    ),
    "bomb.npz": (
        npz(sealed(leaves=LEAF), zipfile.ZIP_DEFLATED, params=bytes(10**6)),
        "compressed entries",
    ),
    "class.npz": (npz(sealed({"kind": "Popen", "parts": {}})), "unknown kind 'Popen'"),
    "fields.npz": (
        npz(sealed({"kind": "Fixed", "parts": {"V": None}})),
        r"Fixed has the fields \['V'\]; expected",
    ),
    "static.npz": (
        npz(sealed({"kind": "Conv", "parts": {}, "static": {"stride": {"a": 1}}})),
        "static fields",
    ),
    "node.npz": (npz(sealed({"kind": "tuple", "parts": [1]})), "the form has a node"),
    "tuple.npz": (npz(sealed({"kind": "tuple", "parts": {"1": None}})), "a tuple has the entries"),
    "leaf.npz": (npz(sealed("elsewhere")), "no array 'elsewhere'"),
    "deep.npz": (npz("[" * 10**5), "recursion|JSON|Expecting"),
    "dtype.npz": (
        npz(sealed(leaves={"params": LEAF["params"] | {"dtype": "O"}}), params=npy(np.ones(3))),
        "dtype 'O'",
    ),
    "column.npz": (  # the same bits
        npz(sealed(leaves=LEAF), params=npy(np.arange(3.0)[:, None])),
        r"params is float64 \(3, 1\); expected float64 \(3,\)",
    ),
    "more.npz": (
        npz(sealed(None), params=npy(np.ones(3))),
        r"holds the arrays \['params'\]; expected \[\]",
    ),
    "newer.npz": (npz(sealed(format=2)), "format 2, newer than 1"),
    "kind.npz": (
        npz(json.dumps(_forms.seal("training", {}))),
        "holds 'training'; expected 'weights'",
    ),
    "unsealed.npz": (
        npz(sealed().replace('"D sha256": null', '"D sha256": "0"')),
        "manifest has changed",
    ),
    "plain.npz": (npz("{}"), "manifest is not one of unrolled"),
    "empty.npz": (b"", "not a zip file"),
    "header.safetensors": (tensors(b"{}", length=10**15), "header promises 1000000000000000 bytes"),
    "cut.safetensors": (tensors(b"{}", length=3), "header promises 3 bytes, the file has 10"),
    "overlap.safetensors": (
        tensors(
            META | {"params": {"dtype": "F64", "shape": [3], "data_offsets": [8, 32]}}, bytes(32)
        ),
        "expected them to begin at 0",
    ),
    "shape.safetensors": (
        tensors(
            META | {"params": {"dtype": "F64", "shape": [10**12], "data_offsets": [0, 24]}},
            bytes(24),
        ),
        "reshape",
    ),
    "rest.safetensors": (tensors(META, bytes(24)), "24 bytes that belong to no array"),
    "changed.safetensors": (
        tensors(
            META | {"params": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}}, bytes(24)
        ),
        "params has changed since it was saved",
    ),
}


@pytest.mark.parametrize("name", MALICE)
def test_malicious_and_foreign_files_are_refused_with_their_name(name, tmp_path):
    blob, message = MALICE[name]
    (tmp_path / name).write_bytes(blob)
    with pytest.raises(CheckpointError, match=f"(?s){re.escape(name)}.*({message})"):
        restore(tmp_path / name)


def test_the_package_never_unpickles_or_evaluates_what_it_reads():
    words = r"\b(pickle|joblib|cloudpickle|dill|shelve|marshal)\b(?!=False)"
    words += r"|(?<!model\.)\beval\(|\bexec\(|allow_pickle=True|shell=True"
    for path in Path(ur.__file__).parent.rglob("*.py"):
        code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.S)
        assert not re.search(words, code), path


# A training that saves itself: one tiny problem for all


@pytest.fixture(scope="module")
def reference():
    """The run that nothing disturbs."""
    return run(None, STEPS)


@pytest.fixture(scope="module")
def finished(reference, tmp_path_factory):
    """The folder of a finished run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("run") / "with spaces and ö"
    assert_same_run(run(Checkpoint(folder, every=3), STEPS), reference)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def assert_same_run(ours, expected):
    """Bit for bit, but for the seconds."""
    assert same((ours.params, ours.best, ours.D), (expected.params, expected.best, expected.D))
    np.testing.assert_array_equal(ours.history.loss, expected.history.loss)
    records = [
        [record.replace(seconds=0.0) for record in found.history.records]
        for found in (ours, expected)
    ]
    assert records[0] == records[1]


def steps_in(folder):
    return sorted(int(path.stem) for path in Path(folder).glob("*.npz"))


@pytest.mark.slow
def test_a_saved_training_is_the_same_training_and_keeps_the_newest_steps(finished):
    assert steps_in(finished) == [6, 9, 12]  # 9 lies between two evaluations


def test_a_finished_run_returns_what_it_found_without_an_evaluation(finished, reference):
    def never(record, params):
        pytest.fail("evaluated")

    assert_same_run(run(finished, STEPS, callbacks=[never]), reference)


@pytest.mark.parametrize("step", [6, 9])
def test_a_run_goes_on_from_any_saved_step_bit_for_bit(step, folder, reference):
    for later in steps_in(folder):
        if later > step:
            (folder / f"{later}.npz").unlink()
    assert_same_run(run(folder, STEPS), reference)


def test_a_run_goes_on_with_the_weights_that_are_not_trained_as_it_had_them(tmp_path):
    """Another device may round the weights of theory otherwise."""
    layer = ur.alista(2)
    params = layer.init(None, D)
    run(tmp_path, 1, layer=layer, params=params)
    shared = jax.tree.map(lambda leaf: leaf * (1 + 4e-15), params.shared)
    assert not same(shared, params.shared)
    found = run(tmp_path, 2, layer=layer, params=params._replace(shared=shared))
    assert same(found.params.shared, params.shared)


def test_a_run_may_grow(folder):
    grown, straight = run(folder, 20), run(None, 20)
    assert same((grown.params, grown.best), (straight.params, straight.best))
    np.testing.assert_array_equal(grown.history.loss, straight.history.loss)
    assert [record.step for record in grown.history.records] == [0, 4, 8, 12, 16, 20]
    with pytest.raises(CheckpointError, match=r"steps +20 +12"):
        run(folder, STEPS)


def test_the_folder_of_a_run_gives_its_best_params_and_its_dictionary(finished, reference):
    found = restore(finished, like=reference.best, D=D)
    assert same((found.params, found.D), (reference.best, D)) and found.metadata["step"] == STEPS
    assert found.layer is ur.lista_cp(K)


def test_any_saved_step_of_a_run_can_be_read(finished):
    found = restore(finished, step=6)
    assert found.metadata["step"] == 6 and same(found.params, run(None, 4).best)
    with pytest.raises(FileNotFoundError, match=r"no saved step 7; there are \[6, 9, 12\]"):
        restore(finished, step=7)
    with pytest.raises(ValueError, match="is a file, which has no steps"):
        restore(finished / "lock", step=6)


def resumed_like_straight(folder, **options):
    """The saved run, after a test that it is the same when its last save is lost."""
    where = Checkpoint(folder, every=2, dictionary=False)
    straight = run(where, 4, evaluate_every=2, **options)
    (folder / "4.npz").unlink()
    assert_same_run(run(where, 4, evaluate_every=2, **options), straight)
    return straight, restore(folder)


@pytest.mark.slow
def test_a_network_in_float32_with_random_keys_in_its_optimiser_goes_on(tmp_path):
    Ds = tuple(
        gaussian(seed, *shape).astype(np.float32) for seed, shape in ((0, (M, N)), (1, (N, 7)))
    )

    def chained(key):
        X = jax.random.normal(key, (4, 7), np.float32)
        return X @ Ds[1].T @ Ds[0].T, X

    noisy = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(1)), optax.adam(1e-2))
    steps = ur.layers.StepAndThreshold(*np.full((2, K), [[0.1], [0.01]], np.float32))
    params = (ur.layers.Unrolled(ur.layers.Fixed(Ds[0]), steps), ur.layers.Unrolled(None, steps))
    network = ur.dsc([ur.alista(K), ur.layers.ista(K)])
    options = dict(layer=network, params=params, D=Ds, sample=chained, optimizer=noisy)
    straight, found = resumed_like_straight(
        tmp_path, validation=chained(jax.random.key(9)), **options
    )
    assert same(found.params, straight.best) and found.D is None


@pytest.mark.slow
def test_a_learned_dictionary_and_an_optimiser_without_state_go_on(tmp_path):
    straight, found = resumed_like_straight(
        tmp_path, learn_dictionary=True, optimizer=optax.sgd(1e-2)
    )
    assert same((found.params, found.D), (straight.best, straight.D)) and not same(found.D, D)


@pytest.mark.slow
def test_a_run_that_is_out_of_patience_stays_stopped(tmp_path):
    options = dict(optimizer=optax.sgd(0.0), patience=8)
    with pytest.warns(UserWarning, match="the validation loss stays at"):
        stopped = run(tmp_path, 40, **options)
    assert steps_in(tmp_path) == [0, 4, 8]
    assert_same_run(run(tmp_path, 40, **options), stopped)


@pytest.mark.slow
def test_a_model_without_a_form_goes_on_and_its_params_come_back_where_they_have_one(tmp_path):
    """An activation of the caller's own has no name; a dictionary may have none either."""

    def rho(v):
        return jnp.maximum(v, 0)

    @dictionaries.pytree(data=("base",))
    @dataclass(frozen=True, eq=False)
    class _Twice(dictionaries.Structured):
        base: jax.Array
        shape = property(lambda self: self.base.shape)

        def synthesize(self, x):
            return 2 * (self.base @ x)

        def analyze(self, r):
            return 2 * (r @ self.base)

        def scale(self, c):
            return _Twice(c * self.base)

    layer = ur.lista_cp(K, activation=rho)
    straight, found = resumed_like_straight(tmp_path / "a", layer=layer)
    assert same(found.params, straight.best) and found.layer is None
    theirs = dict(layer=ur.layers.ista(K), D=_Twice(D))
    where = Checkpoint(tmp_path / "b", every=2)
    straight = run(where, 4, **theirs)
    (tmp_path / "b" / "4.npz").unlink()
    assert_same_run(run(where, 4, **theirs), straight)
    with pytest.raises(CheckpointError, match="of a kind of the caller's own"):
        restore(tmp_path / "b")


@pytest.mark.slow
def test_a_curriculum_goes_on_in_the_stage_it_was_in(tmp_path):
    layer = ur.lista_cp(K)
    params = layer.init(None, D)

    def curriculum(folder):
        options = dict(
            stages=(1.0, 0.2), steps_per_stage=4, evaluate_every=2, patience=4, key=3, rate=1e-2
        )
        where = Checkpoint(folder, every=3, keep=9)
        return ur.training.curriculum(layer, params, D, sample, checkpoint=where, **options)

    straight = curriculum(tmp_path)
    for step in steps_in(tmp_path):
        if step > 7:  # between two evaluations of the second stage
            (tmp_path / f"{step}.npz").unlink()
    assert steps_in(tmp_path)[-1] in (6, 7)
    assert_same_run(curriculum(tmp_path), straight)


@pytest.mark.slow
def test_a_curriculum_whose_first_stage_is_one_step_that_harms_goes_on(tmp_path):
    layer = ur.layers.ista(K)

    def curriculum():
        options = dict(stages=(1.0, 0.2), steps_per_stage=1, evaluate_every=1, key=3, rate=10.0)
        return ur.training.curriculum(
            layer, layer.init(None, D), D, sample, checkpoint=tmp_path, **options
        )

    with pytest.warns(UserWarning, match="Training diverged"):
        straight = curriculum()
    assert straight.history.records[1].validation > straight.history.records[0].validation
    assert_same_run(curriculum(), straight)


def test_a_network_is_named_after_what_made_it():
    layer = ur.layers.ista(K)
    assert _resume.kind_of(ur.dsc((layer, ur.alista(K)))) == "dsc(ista, alista)"
    assert _resume.kind_of(ur.networks.ml_lista(K)) == "ml_lista"


OTHERS = {
    "family": (dict(layer=ur.layers.tilista(K)), r"model +lista_cp +tilista"),
    "depth": (
        dict(layer=ur.lista_cp(3)),
        r"trained.params.steps.theta +float64 \(2,\) +float64 \(3,\)",
    ),
    "dtype": (
        dict(D=D.astype(np.float32)),
        r"best.params.shared.W +float64 \(3, 5\) +float32 \(3, 5\)",
    ),
    "dictionary": (dict(D=-D), r"D sha256 +\w{64} +\w{64}"),
    "shape of the dictionary": (
        dict(D=gaussian(0, M, 6), sample=lambda key: (np.ones((2, M)), np.ones((2, 6)))),
        "sha256",
    ),
    "optimiser": (
        dict(optimizer=optax.sgd(1e-2)),
        r"optimizer.0.mu.params.shared.W +float64 \(3, 5\) +-",
    ),
    "trained leaves": (dict(learn_dictionary=True), r"trained.D +- +float64 \(3, 5\)"),
    "key": (dict(key=4), r"key +\[0, 3\] +\[0, 4\]"),
    "evaluations": (dict(evaluate_every=5), r"evaluate_every +4 +5"),
    "learning rate": (dict(optimizer=optax.adam(2e-2)), r"loss of step 1 +\S+ +\S+$"),
    "sampler": (dict(sample=lambda key: tuple(2 * v for v in sample(key))), r"loss of step 0"),
    "activation": (
        dict(layer=ur.lista_cp(K, activation=ur.activations.elu(0.5))),
        r"activation +relu +\['elu', 0.5\]$",
    ),
    "support": (dict(layer=ur.lista_cp(K, support=(0.1, 0.3))), r"support +- +\[0.1, 0.3\]$"),
    "precision": (dict(layer=ur.lista_cp(K, precision="high")), r"precision +highest +high$"),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_refused_with_a_table_of_what_differs(what, finished):
    options, row = OTHERS[what]
    before = steps_in(finished)
    with pytest.raises(CheckpointError, match=rf"(?s)holds another run.*saved +requested.*{row}"):
        run(finished, STEPS, **options)
    assert steps_in(finished) == before


def test_how_the_steps_run_may_change(folder, reference):
    (folder / "12.npz").unlink()
    found = run(folder, STEPS, layer=ur.lista_cp(K, unroll=2, remat=True))
    np.testing.assert_allclose(found.history.loss, reference.history.loss, rtol=1e-9)


@pytest.mark.slow
def test_another_option_of_a_layer_of_a_network_is_refused(tmp_path):
    def train(support):
        network = ur.dsc([ur.layers.ista(K), ur.lista_cp(K, support=support)])
        Ds = D, gaussian(1, N, 7)
        options = dict(layer=network, params=network.init(None, Ds), D=Ds, loss=loss)
        return run(tmp_path, 1, sample=lambda key: (sample(key)[0], None), **options)

    loss = ur.training.lasso_loss(0.1)
    train((0.1, 0.3))
    row = r"layers\[1\].support +\[0.1, 0.3\] +\[0.1, 0.5\]$"
    with pytest.raises(CheckpointError, match=rf"(?s)saved +requested.*{row}"):
        train((0.1, 0.5))


# Folders, damage and disks


def test_a_folder_that_cannot_hold_a_run_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="cannot write there"):
            run(path, optimizer=optax.GradientTransformation(lambda trained: (), None))
    for name in ("every", "keep"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Checkpoint(tmp_path, **{name: 0})
    with pytest.raises(TypeError, match="folder must be a path"):
        Checkpoint(3)


def test_a_relative_folder_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run("a/b", 0)
    assert steps_in(tmp_path / "a" / "b") == [0]


def read(folder):
    """The newest step, or the error."""
    try:
        return restore(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)
        return None


@pytest.mark.slow
def test_no_flipped_bit_cut_or_missing_file_gives_other_numbers(folder):
    path, rng, blobs = folder / f"{STEPS}.npz", np.random.default_rng(1), []
    blob = path.read_bytes()
    for _ in range(50):
        changed = bytearray(blob)
        changed[rng.integers(len(blob))] ^= 1 << rng.integers(8)
        blobs.append(changed)
    whole, told = restore(folder), 0
    for changed in (*blobs, blob[: len(blob) // 2], b""):
        path.write_bytes(changed)
        found = read(folder)
        told += found is None
        assert found is None or same((found.params, found.D), (whole.params, whole.D))
    assert told > 0.5 * len(blobs)  # the others are times and versions of the archive


def damage(folder):
    path = folder / f"{steps_in(folder)[-1]}.npz"
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def test_a_damaged_step_stops_the_run_unless_asked_to_go_on_from_the_one_before(folder, reference):
    damage(folder)
    with pytest.raises(
        CheckpointError, match=r"12.npz: damaged \(.*\); other steps: \[6, 9\]; .*strict=False"
    ):
        run(folder, STEPS)
    with pytest.warns(
        UserWarning,
        match=r"resumes from step 9: .*12.npz: damaged.* Step 12 is kept as 12.damaged-0",
    ):
        assert_same_run(run(Checkpoint(folder, strict=False), STEPS), reference)
    assert steps_in(folder) == [6, 9, 12] and (folder / "12.damaged-0").is_file()
    for step in steps_in(folder):
        (folder / f"{step}.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no step of .* is whole"):
        run(Checkpoint(folder, strict=False), STEPS)
    assert steps_in(folder) == [6, 9, 12]


@pytest.mark.parametrize("strict", [True, False])
def test_a_step_of_a_newer_format_is_refused_and_stays(strict, folder, monkeypatch):
    """It is whole: nobody goes on from an older step without being told."""
    manifest, arrays = Steps(folder).load(12)
    monkeypatch.setattr(_forms, "FORMAT", 2)
    Steps(folder).save(12, arrays, **{key: manifest[key] for key in ("config", "form")})
    monkeypatch.undo()
    for call in (lambda: run(Checkpoint(folder, strict=strict), STEPS), lambda: restore(folder)):
        with pytest.raises(CheckpointError, match=r"12\.npz: has format 2, newer than 1") as raised:
            call()
        assert not isinstance(raised.value, DamagedError)
    assert steps_in(folder) == [6, 9, 12]


def test_steps_that_orbax_wrote_are_refused_with_what_reads_them(tmp_path):
    for step in ("12", "6"):
        for part in ("manifest", "state"):
            (tmp_path / step / part).mkdir(parents=True)
    for call in (run, lambda folder, steps: restore(folder)):
        with pytest.raises(CheckpointError, match=r"\[6, 12\] with orbax; `restore` one with"):
            call(tmp_path, STEPS)


def test_what_a_kill_left_half_written_is_no_step_and_is_swept(folder, reference):
    for name in (".99.npz.0a1b.partial", "notes.npz", ".notes.npz.0a1b.partial"):
        (folder / name).touch()
    assert restore(folder).metadata["step"] == STEPS
    assert_same_run(run(folder, STEPS), reference)
    theirs = [".notes.npz.0a1b.partial", "notes.npz"]
    assert sorted(os.listdir(folder)) == sorted(["12.npz", "6.npz", "9.npz", "lock", *theirs])


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(folder, reference):
    (folder / "12.npz").unlink()
    limit = file_size_limit(1000)
    try:
        with pytest.raises(
            CheckpointError,
            match=r"step 12 was not saved \(.*\); \d+ bytes are free, the steps \[6, 9\]",
        ):
            run(folder, STEPS, callbacks=[lambda record, params: limit.__enter__()])
    finally:
        limit.__exit__()
    assert steps_in(folder) == [6, 9] and restore(folder).metadata["step"] == 9
    assert_same_run(run(folder, STEPS), reference)


@pytest.mark.slow
def test_a_run_that_breaks_keeps_its_last_good_state_and_can_be_mended(tmp_path, reference):
    def breaks(key):
        Y, X = sample(key)
        bad = jax.random.key_data(jax.random.fold_in(jax.random.key(3), 6))
        return jnp.where(jnp.all(jax.random.key_data(key) == bad), jnp.nan, Y), X

    with pytest.raises(NonFiniteError, match="stopped at step 6"):
        run(Checkpoint(tmp_path, every=2), STEPS, sample=breaks)
    assert steps_in(tmp_path) == [2, 4, 6]
    assert_same_run(run(tmp_path, STEPS), reference)


# Signals and kills


@pytest.mark.few(1)
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    "number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_finishes_the_step_saves_and_leaves(number, error, tmp_path, reference):
    def at_4(record, params):
        if record.step == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(error) as left:
        run(Checkpoint(tmp_path, every=100), STEPS, callbacks=[at_4])
    assert steps_in(tmp_path) == [4] and signal.getsignal(number) == before
    assert left.value.code == 143 if error is SystemExit else "saved in" in str(left.value)
    assert_same_run(run(tmp_path, STEPS), reference)


@pytest.mark.usefixtures("interruptible")
def test_the_second_signal_leaves_at_once_and_one_that_nobody_saw_is_not_lost():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("the second signal was held back")
    with pytest.raises(SystemExit), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) == before


def test_signals_stay_as_they_are_outside_the_main_thread_and_where_they_are_ignored():
    seen = []

    def note():
        with deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=note)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    note()
    signal.signal(signal.SIGINT, before)
    assert seen == [before, signal.SIG_IGN]


@pytest.mark.slow
def test_killed_runs_go_on_bit_for_bit_and_a_folder_has_one_process(tmp_path, reference):
    """Three processes are killed at random moments; what they left is finished here."""
    script = Path(__file__).parents[2] / "small_training.py"
    places = [str(Path(ur.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    rng, steps, children = np.random.default_rng(2), 40, []
    folders = [tmp_path / str(i) for i in range(3)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            child = stack.enter_context(
                subprocess.Popen([sys.executable, script, folder, str(steps)], **pipes)
            )
            stack.callback(child.kill)
            children.append(child)
        straight = run(None, steps)
        for child, folder in zip(children, folders):
            while child.stdout.readline() != "8\n":  # now it waits, and step 6 is saved
                assert child.poll() is None
            with pytest.raises(CheckpointError, match=f"in use by process {child.pid};"):
                run(folder, steps)
            print(file=child.stdin, flush=True)
            time.sleep(rng.uniform(0, 0.5))
            child.kill()
            assert child.wait() == -signal.SIGKILL and (folder / "lock").read_text() == str(
                child.pid
            )
            assert 6 <= max(steps_in(folder)) < steps
            assert_same_run(run(Checkpoint(folder, every=20), steps), straight)
