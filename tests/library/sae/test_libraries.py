"""Files of the libraries: equal codes where a format is understood, and words where it is not.

`make_files.py` has written the folders with the libraries themselves.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from unrolled import sae

FILES = Path(__file__).with_name("files")
FOLDERS = sorted(path.name for path in FILES.iterdir() if path.is_dir())
REFUSED = "sparsify-transcode", "sparsify-groupmax"  # by the rows of CONFIGS
UNDERSTOOD = [name for name in FOLDERS if name not in REFUSED]
OF_TORCH = [name for name in UNDERSTOOD if name.startswith("dictionary_learning")]


def check_codes(folder, name):
    """Sums of at most 10 products of float32, in two orders: 1e-5 of the largest entry."""
    expected, made = np.load(FILES / "expected.npz"), sae.load(folder)
    codes = np.asarray(made.encode(expected["A"]))
    for found, own in ((codes, "codes"), (made.decode(codes), "decoded")):
        own = expected[f"{name}/{own}"]
        np.testing.assert_allclose(found, own, rtol=0, atol=1e-5 * np.abs(own).max())
    np.testing.assert_array_equal(codes != 0, expected[f"{name}/codes"] != 0)


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_codes_and_decoded_activations_are_those_of_the_library(name):
    check_codes(FILES / name, name)


@pytest.mark.parametrize("name", OF_TORCH)
def test_a_folder_of_dictionary_learning_is_read_by_torch_or_says_how_to_convert(name, tmp_path):
    for file in ("ae.pt", "config.json"):
        shutil.copy(FILES / name / file, tmp_path)
    try:
        import torch  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"ae\.pt: torch is not installed; .*save_file\("):
            sae.load(tmp_path)
    else:
        check_codes(tmp_path, name)


@pytest.mark.parametrize("name", [name for name in UNDERSTOOD if "training" not in name])
def test_a_decoder_stays_as_it_is_in_the_file(name):
    """But for the scale of activations; a training of SAELens itself divides by the norms."""
    from safetensors.numpy import load_file

    (file,) = [
        path for path in (FILES / name).rglob("*") if path.suffix in (".npz", ".safetensors")
    ]
    given = np.load(file) if file.suffix == ".npz" else load_file(file)
    own = next(given[key] for key in ("W_dec", "w_dec", "decoder.weight") if key in given)
    made = sae.load(FILES / name)
    D = np.asarray(made.D) * (1 if made.units is None else np.asarray(made.units))
    D = D * np.float32(8**0.5 / 5.5) if "llama" in name else D
    turned = own if own.shape == D.shape else own.T
    np.testing.assert_allclose(D, turned, rtol=3e-7 if "llama" in name else 0)


CONFIGS = [  # a folder, what changes in its configuration, and the words of the refusal
    ("sparsify-transcode", {}, "transcode is true"),
    ("sparsify-groupmax", {}, "activation is 'groupmax'; expected one of 'topk'"),
    ("sparsify-topk", {"skip_connection": True}, "skip_connection is true"),
    ("sparsify-topk", {"transcode": "false"}, "transcode is 'false'; expected true or false"),
    ("sparsify-topk", {"k": 21}, "k is 21; expected an integer from 1 to 20"),
    ("sparsify-topk", {"k": True}, "k is True; expected an integer"),
    ("sparsify-topk", {"k": None}, "needs k"),
    ("sparsify-topk", {"d_in": 9}, "do not fit: .* d_in = 9"),
    ("saelens-6-topk", {"k": 2.5}, "k is 2.5; expected an integer"),
    ("saelens-6-topk", {"architecture": "transcoder"}, "architecture is 'transcoder'; expected"),
    ("saelens-6-topk", {"architecture": ["topk"]}, "architecture is .'topk'.; expected"),
    ("saelens-6-topk", {"normalize_activations": "layer_norm"}, "normalize_activations is 'layer"),
    ("saelens-6-topk", {"normalize_activations": "new"}, "normalize_activations is 'new'"),
    ("saelens-6-topk", {"apply_b_dec_to_input": "false"}, "is 'false'; expected true or false"),
    ("saelens-6-topk", {"rescale_acts_by_decoder_norm": 1}, "is 1; expected true or false"),
    ("saelens-3-relu", {"activation_fn_str": "tanh-relu"}, "is 'tanh-relu'; expected one of"),
    ("saelens-3-relu", {"activation_fn_str": None}, "kind is not known"),
    ("saelens-5-topk", {"activation_fn_kwargs": 3}, "activation_fn_kwargs is 3; expected an obj"),
    ("dictionary_learning-AutoEncoder", {"trainer": 3}, "trainer is 3; expected an object"),
    ("dictionary_learning-AutoEncoder", {"trainer": {}}, "dict_class is None; expected one of"),
    ("gemma_scope-2", {"hf_hook_point_out": "mlp"}, "expected one place, because a transcoder"),
    ("gemma_scope-2", {"affine_connection": True}, "affine_connection is true"),
    ("llama_scope-topk", {"act_fn": "tanh"}, "act_fn is 'tanh'; expected one of 'relu'"),
    ("llama_scope-topk", {"norm_activation": "token-wise"}, "norm_activation is 'token-wise'"),
    ("llama_scope-topk", {"dataset_average_activation_norm": {"in": 0}}, "in is 0; expected a pos"),
    ("llama_scope-topk", {"hook_point_out": "mlp"}, "expected one place, because a transcoder"),
]


@pytest.mark.parametrize("name, changes, words", CONFIGS)
def test_a_configuration_is_refused_that_is_not_understood(name, changes, words, tmp_path):
    folder = shutil.copytree(FILES / name, tmp_path / "folder")
    (file,) = folder.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=words) as raised:
        sae.load(folder)
    assert str(file) in str(raised.value)


def test_relu_is_no_default_of_a_configuration_that_no_library_writes(tmp_path):
    shutil.copy(FILES / "gemma_scope-1" / "params.npz", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="no library is known .* model_type; try kind="):
        sae.load(tmp_path)
    assert sae.load(tmp_path, kind="relu").D.shape == (8, 20)


def damaged(folder, rng):
    """A file of the folder with some other bytes, cut short, or with another value of an entry."""
    files = [path for path in folder.rglob("*") if path.suffix != ".pt" and path.is_file()]
    file = files[rng.integers(len(files))]
    blob, how = bytearray(file.read_bytes()), rng.integers(4)
    places = rng.integers(len(blob) if how == 0 else min(len(blob), 300), size=rng.integers(1, 9))
    if how < 2:
        for place in places:
            blob[place] = rng.integers(256)
    elif how == 2 or file.suffix != ".json":
        del blob[rng.integers(len(blob)) :]
    else:
        config = json.loads(blob)
        odd = [None, True, "no", -1, 1e400, [], {}, [[1], {}], "jumprelu", 10**400, {"in": "x"}]
        config[[*config][rng.integers(len(config))]] = odd[rng.integers(len(odd))]
        blob = json.dumps(config).encode()
    file.write_bytes(blob)
    return file


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(10))
def test_damage_is_refused_in_words_that_name_the_file(seed, tmp_path):
    """Or it leaves finite weights: a flipped bit of a number is a number."""
    rng, folder = np.random.default_rng(seed), tmp_path / "folder"
    refused = 0
    for trial in range(200):
        name = UNDERSTOOD[trial % len(UNDERSTOOD)]
        shutil.copytree(FILES / name, folder)
        file = damaged(folder, rng)
        try:
            made = sae.load(folder)
        except ValueError as error:
            assert str(error).startswith("sae.load: ") and str(folder) in str(error), error
            assert file.name in str(error), (file, error)
            refused += 1
        else:
            assert all(np.isfinite(array).all() for array in (made.D, *made.params.steps))
        shutil.rmtree(folder)
    assert refused > 50


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pth", ".safetensors"])
def test_a_pickle_is_not_executed(suffix, tmp_path):
    payload, file = Payload(tmp_path / "executed"), tmp_path / f"w{suffix}"
    for form in range(3):
        if form == 0:
            file.write_bytes(pickle.dumps(payload))
        elif form == 1:
            with file.open("wb") as opened:
                np.save(opened, np.array([payload]))
        else:
            with file.open("wb") as opened:
                np.savez(opened, W_enc=np.array([payload]))
        with pytest.raises(ValueError, match=rf"w\{suffix}"):
            sae.load(file, kind="relu")
    assert not payload.path.exists()
