"""`unrolled train` and `unrolled encode` in process: run folders, weights and codes."""

import os
import re
import signal
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import scipy.sparse
from command_line import strict_json

import unrolled as ur
from unrolled.app.cli import main
from unrolled.app.commands import _encode, _train
from unrolled.app.commands._inputs import in_float32
from unrolled.layers import FAMILIES

pytestmark = pytest.mark.usefixtures("float32_by_default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Input files: a dictionary of 8 x 12, its signals and codes, and broken ones."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    D = rng.normal(size=(8, 12))
    D /= np.linalg.norm(D, axis=0)
    X = rng.normal(size=(40, 12)) * (rng.random((40, 12)) < 0.2)
    Y = X @ D.T
    broken = Y.copy()
    broken[[3, 7], 2] = np.nan
    arrays = {
        "D": D,
        "other": -D,
        "Y": Y,
        "columns": Y.T,
        "huge": np.where(np.arange(40)[:, None] == 2, 1.3e38, Y),
        "longer": np.hstack([Y, Y]),
        "nan": broken,
        "few": Y[:2],
        "faint": 1e-40 * Y,
        "faint_D": np.where(np.arange(12) == 4, 1e-40, D),
    }
    for name, array in {**arrays, "none": Y[:0]}.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "YX.npz", Y=Y, X=X)
    chain = {"D_1": D, "D_2": np.eye(12), "D_3": np.eye(12)[:, [*range(12), 0, 1]]}
    codes = {"X_1": X, "X_2": X, "X_3": np.pad(X, ((0, 0), (0, 2)))}
    for name, array in chain.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "chain_signals.npz", Y=Y, **codes)
    np.savez(folder / "chain_part.npz", Y=Y, X_1=X, X_3=codes["X_3"])
    np.savez(folder / "chain_wrong.npz", Y=Y, X_1=X, X_2=X, X_3=X)
    np.savez(folder / "YX_wrong.npz", Y=Y, X=X[:, 1:])
    (folder / "torn.npy").write_bytes((folder / "Y.npy").read_bytes()[:700])
    (folder / "text.npy").write_text("not an array\n")
    (folder / "full").mkdir()
    (folder / "empty").mkdir()
    (folder / "full" / "notes.txt").write_text("mine\n")
    return folder


# train

FILES = ("--dictionary", "D.npy", "--signals", "Y.npy")
TINY = (*FILES, "--depth", 2, "--steps", 20)


def test_train_is_unsupervised_and_save(run, folder, tmp_path):
    """With the lam that `default_lam` gives, in three digits, and with the key of --seed."""
    path = tmp_path / "new" / "weights.npz"
    status, out, err = run("train", *TINY, "--seed", 3, "--output", path, "--json")
    assert status == 0, err
    D, Y = (np.load(folder / f"{name}.npy").astype(np.float32) for name in "DY")
    found, lam = strict_json(out), float(f"{ur.pursuit.default_lam(D, Y):.3g}")
    expected = ur.training.unsupervised(D, Y, lam, 2, key=3, steps=20, callbacks=[print])
    saved = ur.training.restore(path)
    chex.assert_trees_all_equal((saved.params, saved.D), (expected.best, expected.D))
    assert saved.layer is expected.model and found["model"] == repr(expected.model)
    assert found["validation"] == pytest.approx(expected.judged) and found["lam"] == lam
    assert found["shape"] == [8, 12] and list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_train_on_codes_is_by_recipe(run, folder, tmp_path):
    files = ("--dictionary", "D.npy", "--signals", "YX.npz", "--family", "tista", "--depth", 2)
    status, out, err = run("train", *files, "--steps", 2, "--output", tmp_path / "weights.npz")
    assert status in (0, 3) and "tista(2" in out, err
    with np.load(folder / "YX.npz") as pair:
        D, Y, X = (a.astype(np.float32) for a in (np.load(folder / "D.npy"), pair["Y"], pair["X"]))
    expected = ur.training.by_recipe("tista", D, (Y, X), depth=2, steps=2, key=0).fit
    saved = ur.training.restore(tmp_path / "weights.npz")
    chex.assert_trees_all_equal(saved.params, expected.best)


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_with_the_same_bits(
    number, status, run, interruptible, monkeypatch, tmp_path
):
    path, steps = tmp_path / "weights.npz", tmp_path / "weights.steps"
    command = ("train", *TINY, "--output", path)
    with monkeypatch.context() as patch:
        patch.setattr(_train, "note_output", lambda: os.kill(os.getpid(), number))
        found, out, err = run(*command)
    assert (found, out) == (status, "") and "--resume continues from here" in err
    assert list(tmp_path.iterdir()) == [steps]
    found, _, err = run(*command)
    assert found == 2 and "weights.steps: holds a run that was stopped; try --resume" in err
    assert run(*command, "--resume")[0] == 0 and list(tmp_path.iterdir()) == [path]
    assert run(*command[:-1], tmp_path / "whole.npz", "--resume")[0] == 0  # no run was stopped
    resumed, whole = map(ur.training.restore, (path, tmp_path / "whole.npz"))
    chex.assert_trees_all_equal((resumed.params, resumed.D), (whole.params, whole.D))


def test_weights_that_are_worse_than_ista_end_with_status_3(run, tmp_path, monkeypatch):
    made = _train.Trained("w", "bcd(2)", (8, 12), 0.1, 1.0, dict(first=3, best=2, zero=4, ista=1))
    monkeypatch.setattr(_train, "train", lambda **options: made)
    status, out, err = run("train", *TINY, "--output", tmp_path / "weights.npz")
    assert status == 3 and "2 of the weights" in out
    assert re.fullmatch("unrolled: the codes are worse than ISTA .*; try another .*", err.strip())
    assert not made._replace(validation=dict(best=1, zero=4, ista=1)).worse


def test_files_of_complex_numbers_are_coded_and_trained_on(tmp_path, monkeypatch, capsys):
    """Codes are complex where signals are, in any order of the file, and pairs where they are."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    A, X = (rng.normal(size=(n, 12, 2)) @ [1, 1j] for n in (8, 40))
    A, X = A / np.linalg.norm(A, axis=0), X * (rng.random(X.shape) < 0.15)
    Y = X @ A.T
    D = ur.dictionaries.Complex.of(A.astype("c8"))
    arrays = {"A": A, "Y": Y, "columns": np.asfortranarray(Y), "single": Y.astype("c8")}
    arrays |= {"pairs": np.asarray(ur.dictionaries.to_pairs(Y)), "real": Y.real, "R": A.real}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.savez("YX.npz", Y=Y, X=X)

    def run(*arguments):
        return main([str(a) for a in arguments]), *capsys.readouterr()

    pursuit = ("encode", "--method", "omp_batch", "--sparsity", 2, "--dictionary", "A.npy")
    expected = np.asarray(ur.pursuit.omp_batch(D, Y.astype("c8"), 2).x)
    for name in ("Y", "columns", "single", "pairs"):
        status, out, err = run(*pursuit, f"{name}.npy", "--output", "codes.npy", "--json")
        assert status == 0, err
        codes, told = np.load("codes.npy"), strict_json(out)
        assert codes.dtype == ("f4" if name == "pairs" else "c8")
        np.testing.assert_allclose(codes.view("c8"), expected, rtol=0, atol=1e-5)
        assert (
            told["atoms"] == 12 and told["mean_nonzeros"] == (codes.view("c8") != 0).sum(1).mean()
        )
    assert run(*pursuit, "Y.npy", "--sparse", "--output", "sparse.npz")[0] == 0
    assert run(*pursuit, "Y.npy", "--output", "whole.npy")[0] == 0
    sparse = scipy.sparse.load_npz("sparse.npz")
    np.testing.assert_array_equal(sparse.toarray(), np.load("whole.npy"))
    status, _, err = run(*pursuit, "Y.npy", "--sparse", "--output", "sparse.npy")
    assert status == 2 and "--sparse needs one dictionary and an output in .npz, got sparse" in err
    files = ("--dictionary", "A.npy", "--signals", "YX.npz", "--output", "weights.npz")
    status, out, err = run("train", *files, "--family", "ista", "--depth", 2, "--steps", 3)
    assert status in (0, 3) and "8 x 12" in out, err
    assert run("encode", "weights.npz", "YX.npz", "--output", "codes.npz")[0] == 0
    kept = ur.training.restore(Path("weights.npz"))
    with np.load("codes.npz") as archive:
        x = kept.layer.apply(kept.params, kept.D, Y[0].astype("c8"))
        np.testing.assert_allclose(archive["X"][0], x, rtol=0, atol=1e-5)
    status, out, err = run(
        "certify", "A.npy", "--sparsity", 1, "--sampled", 5, "--output", "proofs"
    )
    assert status == 0 and "5 new codes with 1 parts of 2" in out, err
    assert "parts of 2" in Path("proofs/report.html").read_text()
    status, out, err = run("certify", "weights.npz", "--sparsity", 1)
    assert status == 0 and "parts of at most 1 and noise of l2" in out, err
    refused = {
        (*pursuit, "real.npy", "--output", "o.npy"): "D is complex: expected complex signals",
        (*pursuit[:-1], "R.npy", "Y.npy", "--output", "o.npy"): "entries are complex128; expected",
        ("certify", "A.npy", "--entries"): "--entries is for real dictionaries",
        ("certify", "A.npy", "A.npy"): "a chain is for real dictionaries",
        ("certify", "A.npy", "--code", "Y.npy", "--signals", "Y.npy"): "certify without it",
        (
            "learn",
            "Y.npy",
            "--atoms",
            9,
            "--output",
            "o",
        ): "Y.npy: entries are complex128; expected",
    }
    for arguments, message in refused.items():
        status, _, err = run(*arguments)
        assert status == 2 and message in err, err


# A family of the user's own

MODULE = """
from typing import NamedTuple
import jax.numpy as jnp
import unrolled as ur
from unrolled.layers import Gamma, Layer, Recipe, State, Unrolled

class Step(NamedTuple):
    gamma: Gamma

class my_family(Layer):
    forms = (Unrolled(None, Step),)
    recipe = Recipe(without_codes=(1e-3,))
    def init(self, key, D):
        gamma = 1 / ur.dictionaries.spectral_norm(D) ** 2
        return Unrolled(None, Step(jnp.full(self.depth, gamma)))
    def step(self, shared, p, D, y, state):
        return State(state.x + p.gamma * ((y - D @ state.x) @ D))
"""


@pytest.fixture
def own(tmp_path, folder, monkeypatch, capsys):
    """A runner in a folder with my_module.py, which is not on the path."""
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def forget():
        FAMILIES.pop("my_family", None)
        sys.modules.pop("my_module", None)

    def run(*arguments):
        forget()
        monkeypatch.setattr(
            sys, "path", [path for path in sys.path if path not in ("", os.getcwd())]
        )
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    yield run
    forget()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unsupervised. ")
def test_a_family_of_your_own_trains_and_encodes_where_it_is_imported(own, folder, tmp_path):
    files = ("--dictionary", folder / "D.npy", "--signals", folder / "Y.npy", "--output", "w.npz")
    train = ("train", "--family", "my_family", "--depth", 2, "--steps", 4, *files)
    status, out, err = own(*train, "--import", "json", "--import", "my_module")
    assert status in (0, 3) and "my_family(2)" in out, err
    encode = ("encode", "w.npz", folder / "Y.npy", "--output", "codes.npy")
    assert own(*encode, "--import", "my_module")[0] == 0
    found = ur.training.restore("w.npz")
    y = np.load(folder / "Y.npy").astype(np.float32)[0]
    expected = found.layer.apply(found.params, found.D, y)
    np.testing.assert_allclose(np.load("codes.npy")[0], expected, atol=1e-6)
    for arguments in (train, encode):
        status, out, err = own(*arguments)
        assert status == 2 and not out and "unknown" in err and "'my_family'" in err


REFUSED = {
    "train run.toml": "reads no configuration, got run.toml; .* write a script",
    "train --dictionary D.npy": "train: --signals is missing",
    "train T --output D.npy": "D.npy: expected a file of weights, whose name ends in .npz",
    "train T --output plain.npz --signals plain.npz": "plain.npz: is read by this command",
    "train T --seed x": "--seed must be an integer, got 'x'",
    "train T --family my_family": "unknown family 'my_family'.*a family of your own needs rates",
    "train T --dictionary gone.npy": "gone.npy: no such file",
    "train T --signals nan.npy": "nan.npy: has NaN or infinite entries .in rows 3, 7.",
    "train T --signals columns.npy": r"columns.npy: .*\(8, 40\).*transpose them",
    "train T --signals YX_wrong.npz": r"YX_wrong.npz: codes have shape \(40, 11\); expected",
    "train T --signals YX.npz --resume": "--resume is for signals without codes, but YX.npz has",
    "train T --signals faint.npy": "faint.npy: leaves the range of float32 "
    ".in rows 0, 1, 2 and 37 others., where entries become 0 or infinite; try numbers near 1",
    "encode weights.npz faint.npy": "faint.npy: leaves the range of float32 .in rows 0, ",
    "encode Y.npy --method omp --tol 1 --dictionary faint_D.npy": "faint_D.npy: leaves the range "
    "of float32 .in column 4.",
    "encode Y.npy --method lasso --ratio 1.5 --dictionary D.npy": "encode: ratio must be at most "
    "1, where all codes are zero, got 1.5",
    "encode D.npy Y.npy": "D.npy must end in .npz",
    "encode YX.npz Y.npy": "YX.npz",
    "encode torn.npz Y.npy": "torn.npz",
    "encode plain.npz Y.npy": "plain.npz: it names no layer",
    "encode deeper.npz Y.npy": "deeper.npz: its weights do not fit its layer: .*params have .2. "
    "steps but the layer has depth 4",
    "encode bare.npz Y.npy": "bare.npz: has no dictionary; try --dictionary",
    "certify weights.npz --normalize": "weights.npz: holds weights, which --normalize does not go",
    "certify weights.npz other.npy": "weights.npz: the weights were saved with another D",
    "certify bare.npz": "bare.npz: has no dictionary; try its file after the file of the weights",
    "certify weights.npz --sparsity 1,2": "2 sparsities for 1 layers; expected one for each",
    "certify weights.npz --tolerance nan": "certify: tolerance must be non-negative and not NaN",
    "certify full": "full: no saved step; there are",
    "certify empty": "empty: no saved step; the folder is empty",
    "encode bare.npz Y.npy --dictionary other.npy": "bare.npz: the weights "
    "were saved with another D",
    "encode weights.npz gone.npy": "gone.npy: no such file",
    "encode weights.npz none.npy": "none.npy: expected at least one signal",
    "encode weights.npz Y.npy --output codes.txt": "codes.txt: expected "
    "a name that ends in .npy or .npz",
    "encode weights.npz Y.npy --output D.npy/codes.npy": "D.npy",
    "encode weights.npz Y.npy --output folder.npy": "folder.npy: is a folder; expected a file",
    "encode weights.npz Y.npy --output Y.npy": "Y.npy: is read by this command; "
    "expected another file",
    "encode weights.npz Y.npy --output weights.npz": "weights.npz: is read by this command",
    "encode negative.npz Y.npy": "negative.npz: its weights do not fit its layer: .*theta "
    "must be non-negative",
    "encode chain.npz Y.npy": "chain.npz: it names no layer",
    "encode bare.npz Y.npy --dictionary D.npy --dictionary D.npy": "bare.npz: its layer has one "
    "dictionary, got 2",
    "encode infinite.npz Y.npy": "encode: 40 codes are not finite, "
    "the first of signal 0; nothing was written",
    # Which of the two leaves the range of float32 depends on the order of a sum.
    "encode weights.npz huge.npy": "encode: 1 (codes|relative residuals) are not finite, "
    "the first of signal 2; nothing was written",
    "encode Y.npy": "encode: expected WEIGHTS and SIGNALS, or --method and SIGNALS",
    "encode weights.npz Y.npy --sparsity 3": "encode: --sparsity needs --method",
    "encode weights.npz Y.npy --method omp": "encode: --method takes no weights, got weights.npz",
    "encode Y.npy --method ompp": "encode: unknown method 'ompp'; expected one of threshold, ",
    "encode Y.npy --method bpdn": "encode: bpdn needs eps",
    "encode Y.npy --method omp --lam 1": "encode: omp has no lam; its options are sparsity, tol",
    "encode Y.npy --method omp --sparsity 1": "encode: --method needs --dictionary",
    "encode Y.npy --method omp --dictionary D.npy": "encode: omp needs sparsity or tol",
    "encode Y.npy --method omp --sparsity 13 --dictionary D.npy": "omp_batch: .*13",
    "encode Y.npy --method omp --tol 1 --dictionary D.npy --dictionary D.npy": "omp takes one "
    "dictionary, got 2; for a chain try ",
    "encode Y.npy --method lasso --lam -1 --dictionary D.npy": "lasso_batch: lam must be non-negat",
    "encode Y.npy --method omp --tol 1 --dictionary D.npy --output D.npy": "D.npy: is read by this",
}


@pytest.mark.parametrize("command", REFUSED)
def test_one_line_says_what_to_mend(run, saved, tmp_path, command):
    given = command.replace("train T", f"train {' '.join(FILES)}")
    arguments = given.split(" ")
    if "--output" not in arguments and arguments[0] != "certify":
        name = "weights.npz" if arguments[0] == "train" else "codes.npy"
        arguments += ["--output", tmp_path / name]
    status, out, err = run(*arguments)
    assert status == 2 and not out
    assert re.fullmatch(rf"(\[.*\n)?unrolled: .*{REFUSED[command]}.*\n", err), err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Chains


@pytest.mark.slow
def test_a_chain_is_encoded_and_certified(run, folder, tmp_path):
    names = ("D_1", "D_2", "D_3")
    Ds = tuple(np.load(folder / f"{name}.npy").astype(np.float32) for name in names)
    network = ur.dsc([ur.lista_cp(3), ur.layers.ista(2), ur.alista(2, support=(0.1, 0.3))])
    weights, params = tmp_path / "weights.npz", network.init(0, Ds)
    ur.training.save(weights, params, Ds, network)
    Y = np.load(folder / "Y.npy").astype(np.float32)
    codes = jax.vmap(network.apply, (None, None, 0))(params, Ds, Y)
    status, out, err = run("encode", weights, "Y.npy", "--output", tmp_path / "all.npz", "--json")
    assert status == 0, err
    for j, (x, layer) in enumerate(zip(codes, strict_json(out)["layers"], strict=True)):
        back = np.linalg.multi_dot([*Ds[: j + 1], np.asarray(x).T]).T
        relative = np.linalg.norm(Y - back) / np.linalg.norm(Y)
        assert layer["relative_residual"] == pytest.approx(relative, rel=1e-4)
    with np.load(tmp_path / "all.npz") as held:
        assert sorted(held) == ["X_1", "X_2", "X_3"]
        for name, x in zip(sorted(held), codes):
            np.testing.assert_allclose(held[name], x, atol=1e-6)
    status, out, _ = run("encode", weights, "Y.npy", "--output", tmp_path / "last.npy", "--json")
    assert [layer["atoms"] for layer in strict_json(out)["layers"]] == [12, 12, 14]
    np.testing.assert_allclose(np.load(tmp_path / "last.npy"), codes[2], atol=1e-6)

    options = ("--sparsity", "2,1,1", "--bound", "0.5")
    found = strict_json(run("certify", weights, *options, "--json")[1])
    expected = ur.theory.certify(
        network, params, Ds, sparsity=(2, 1, 1), bound=(0.5,) * 3, noise=(0.0,) * 3
    )
    for layer, certificate in zip(found["layers"], expected, strict=True):
        assert layer["error"] == certificate.error.tolist()
        assert layer["holds"] is certificate.holds
    bare = ur.training.save(tmp_path / "bare.npz", params, Ds, network, dictionary=False)
    files = [folder / f"{name}.npy" for name in names]
    assert strict_json(run("certify", bare, *files, *options, "--json")[1]) == found


def test_codes_that_are_all_zero_are_told(folder, run, tmp_path):
    files = ("--dictionary", "D.npy", "Y.npy", "--output", tmp_path / "X.npy")
    out = run("encode", "--method", "lasso", "--lam", 1e3, *files)[1]
    assert "all codes are zero: try a smaller lam" in out and "0.0 nonzeros" in out
    assert "all codes are zero" not in run("encode", "--method", "lasso", "--lam", 0.1, *files)[1]
    assert _encode._advice("omp") == "a smaller tol or a larger sparsity"


# encode


@pytest.fixture(scope="module")
def saved(folder):
    """Weights of ALISTA with support selection in the folder of the inputs, and broken ones."""
    D, layer = np.load(folder / "D.npy").astype(np.float32), ur.layers.alista(2, support=(0.1, 0.3))
    params = layer.init(jax.random.key(0), D)
    save, steps = ur.training.save, params.steps
    save(folder / "weights.npz", params, D, layer)
    save(folder / "bare.npz", params, D, layer, dictionary=False)
    save(folder / "plain.npz", params, D)
    infinite = params._replace(steps=steps._replace(gamma=steps.gamma * np.float32(np.inf)))
    save(folder / "infinite.npz", infinite, D, layer)
    next_D = np.eye(12, dtype=np.float32)
    save(folder / "chain.npz", (params, layer.init(jax.random.key(0), next_D)), (D, next_D))
    with pytest.MonkeyPatch.context() as patch:  # `save` would refuse them
        patch.setattr(ur.layers.Layer, "check", lambda self, params, D: None)
        save(folder / "deeper.npz", params, D, ur.layers.alista(4, support=(0.1, 0.3)))
        negative = params._replace(steps=steps._replace(theta=-steps.theta))
        save(folder / "negative.npz", negative, D, layer)
    (folder / "torn.npz").write_bytes((folder / "weights.npz").read_bytes()[:900])
    (folder / "folder.npy").mkdir()
    return layer, params, D


@pytest.fixture(scope="module")
def expected(saved, folder):
    """The codes of the signals by these weights."""
    layer, params, D = saved
    Y = np.load(folder / "Y.npy").astype(np.float32)
    return np.asarray(jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y))


def test_encode_writes_the_codes_of_the_layer(run, saved, tmp_path, folder, expected):
    """Into a folder that is made for them."""
    (_, _, D), path = saved, tmp_path / "new" / "folder" / "codes.npy"
    Y = np.load(folder / "Y.npy").astype(np.float32)
    status, out, err = run("encode", "weights.npz", "Y.npy", "--output", path, "--json")
    assert status == 0, err
    X, found = np.load(path), strict_json(out)
    assert X.shape == (40, 12) and X.dtype == np.float32
    np.testing.assert_allclose(X, expected, atol=1e-6)
    assert found["signals"] == 40 and found["atoms"] == 12
    assert found["mean_nonzeros"] == pytest.approx((X != 0).sum() / 40)
    assert found["relative_residual"] == pytest.approx(
        np.linalg.norm(Y - X @ D.T) / np.linalg.norm(Y), rel=1e-5
    )
    # The same from an archive into an existing archive, with the dictionary from a file.
    archive = path.with_suffix(".npz")
    archive.write_text("old")
    status, out, err = run(
        "encode", "bare.npz", "YX.npz", "--dictionary", "D.npy", "--output", archive
    )
    assert status == 0 and "40 signals, 12 atoms: " in out and "relative residual" in out, err
    assert np.array_equal(np.load(archive)["X"], X)
    assert sorted(path.parent.iterdir()) == [path, archive]


def test_a_tolerance_that_the_start_meets_takes_no_step(run, saved, tmp_path):
    """So say the text, the data and the report, whose folder is made."""
    options, page = ("--sparsity", 1, "--tolerance", 2), tmp_path / "new" / "report.html"
    status, out, _ = run("certify", "weights.npz", *options, "--output", page.parent)
    assert "steps to 2" in page.read_text()
    assert status == 0 and re.search(r"^steps to 2 +0$", out, re.MULTILINE), out
    found = strict_json(run("certify", "weights.npz", *options, "--json")[1])
    assert found["layers"][0]["steps"] == 0


def test_encode_measures_faint_and_loud_signals(run, saved, tmp_path, folder):
    Y = np.load(folder / "Y.npy")
    for scale in (1e-30, 1e30):
        np.save(tmp_path / "Y.npy", scale * Y)
        files = ("weights.npz", tmp_path / "Y.npy", "--output", tmp_path / "codes.npy")
        status, out, err = run("encode", *files, "--json")
        assert status == 0, err
        X = np.load(tmp_path / "codes.npy").astype(float)
        residual = scale * Y - X @ np.load(folder / "D.npy").T
        assert strict_json(out)["relative_residual"] == pytest.approx(
            np.linalg.norm(residual) / np.linalg.norm(scale * Y), rel=1e-4
        )


def test_encode_counts_signals_that_basis_pursuit_cannot_reproduce(run, tmp_path):
    """Only rounding brings a signal with a mean into the range of atoms without one."""
    atoms = np.random.default_rng(0).normal(size=(8, 16))
    atoms = atoms - atoms.mean(0)
    D = (atoms / np.linalg.norm(atoms, axis=0)).astype(np.float32)
    np.save(tmp_path / "A.npy", D)
    np.save(tmp_path / "S.npy", np.stack([D[:, 3], D[:, 3] + np.float32(0.5)]))
    given = ("--method", "basis_pursuit", "--dictionary", tmp_path / "A.npy", tmp_path / "S.npy")
    status, out, err = run("encode", *given, "--output", tmp_path / "X.npy")
    assert status == 0, err
    assert "\n1 codes miss the tolerance of basis_pursuit\n" in out, out


@pytest.mark.slow
def test_encode_takes_a_pursuit(run, saved, tmp_path, folder):
    """OMP, alone in its dictionary; and of a chain, all codes, with what misses its tolerance."""
    _, _, D = saved
    Y = np.load(folder / "Y.npy").astype(np.float32)
    given, codes = ("--method", "omp", "--sparsity", "2", "--dictionary", "D.npy"), tmp_path / "X"
    for selection in ("least_squares", "correlation"):
        more = ("--selection", selection, "Y.npy", "--output", f"{codes}.npy", "--json")
        status, out, err = run("encode", *given, *more)
        assert status == 0, err
        X, found = np.load(f"{codes}.npy"), strict_json(out)
        omp = partial(ur.pursuit.omp, D, sparsity=2, selection=selection)
        np.testing.assert_allclose(X, jax.vmap(omp)(Y).x, atol=1e-5)
    assert found["method"] == "omp" and found["missed_tolerance"] == 0 and "weights" not in found
    assert found["mean_nonzeros"] == pytest.approx((X != 0).sum() / 40)
    np.save(tmp_path / "B.npy", np.eye(12)[:, :6])
    given = ("--method", "ml_ista", "--lams", "0.1,0.2", "--max-steps", "1", "--tol", "1e-9")
    given += ("--dictionary", "D.npy", "--dictionary", tmp_path / "B.npy")
    status, out, err = run("encode", *given, "Y.npy", "--output", f"{codes}.npz")
    assert status == 0 and "  layer 2, 6 atoms: " in out, err
    assert re.search(r"\n\d+ codes miss the tolerance of ml_ista\nml_ista -> ", out), out
    with np.load(f"{codes}.npz") as archive:
        assert {name: archive[name].shape for name in archive} == {"X_1": (40, 12), "X_2": (40, 6)}


@pytest.mark.slow
def test_encode_codes_signals_as_zero_beside_the_largest_of_the_file(run, tmp_path, monkeypatch):
    """With a ratio, which makes rounding as large as a signal; `lasso` is that of batches."""
    rng = np.random.default_rng(0)
    D, Y = rng.normal(size=(8, 12)), rng.normal(size=(40, 8))
    Y[[3, 30]] *= 1e-8
    Y[30, 2] = 0  # an entry that is exactly zero, as differences of equal numbers are
    Y[7], Y[20], Y[39] = 0, 1e-5 * Y[20], 9 * Y[39]
    np.save(tmp_path / "D.npy", D), np.save(tmp_path / "Y.npy", Y)
    monkeypatch.setattr(_encode, "_CHUNK", 16)
    files = ("--dictionary", tmp_path / "D.npy", tmp_path / "Y.npy", "--output", tmp_path / "X.npy")
    rows = Y.astype(np.float32)
    rows[[3, 30]] = 0
    expected = np.asarray(ur.pursuit.lasso_batch(D.astype(np.float32), rows, ratio=0.1).x)
    for method in ("lasso", "lasso_batch"):
        status, out, err = run("encode", "--method", method, "--ratio", 0.1, *files)
        assert status == 0, err
        faint = "2 signals are negligible next to the largest, to the rounding of float32: coded"
        assert faint in out
        X = np.load(tmp_path / "X.npy")
        # Chunks of other sizes round other sums.
        np.testing.assert_allclose(X, expected, rtol=1e-5, atol=1e-7)
        assert not X[[3, 7, 30]].any() and X[20].any()
    status, out, _ = run("encode", "--method", "lasso", "--ratio", 0.1, *files, "--json")
    assert strict_json(out)["zero_beside_largest"] == 2
    # The penalty lam has the units of the signals: no signal is too small for it.
    status, out, _ = run("encode", "--method", "lasso", "--lam", 1e-10, *files, "--json")
    assert strict_json(out)["zero_beside_largest"] == 0 and np.load(tmp_path / "X.npy")[3].any()


ROW = np.arange(5)[:, None] == 3
LOST = {  # rows of numbers near 1, in float64, that float32 loses
    "faint": (lambda Y: 1e-40 * Y, "rows 0, 1, 2 and 2 others"),
    "gone": (lambda Y: 1e-300 * Y, "rows 0, 1, 2 and 2 others"),
    "one": (lambda Y: np.where(ROW, 1e-42 * Y, Y), "row 3"),
    "in part": (lambda Y: np.where(ROW, 1e-36 * 0.1 ** np.arange(8), Y), "row 3"),
    "subnormal": (lambda Y: np.where(ROW, 1e-40 * Y, Y).astype(np.float32), "row 3"),
    "large": (lambda Y: np.where(ROW, 1e60 * Y, Y), "row 3"),
}


@pytest.mark.parametrize("kind", LOST)
def test_rows_that_float32_loses_are_refused(kind):
    """They were zero, and coded without an error; the first row of a chunk has its own number."""
    change, told = LOST[kind]
    Y = change(np.random.default_rng(0).normal(size=(5, 8)))
    with pytest.raises(ValueError, match=rf"Y.npy: leaves the range of float32 \(in {told}\)"):
        in_float32(Y, Path("Y.npy"))
    with pytest.raises(ValueError, match=r"\(in row 1003\)"):
        in_float32(Y[3:4], Path("Y.npy"), 1003)


def test_what_float32_rounds_is_no_loss():
    """Entries that are rounding beside those of their row, the least that are kept, and zeros."""
    Y = np.array([[1, 1e-300, 0], [1e-31, 1e-39, 0], [0, 0, 0], [1.2e-38, -3e38, 1]])
    assert np.array_equal(in_float32(Y, Path("Y.npy")), Y.astype(np.float32))
    assert in_float32(Y[:0], Path("Y.npy")).shape == (0, 3)


@pytest.fixture
def streamed(monkeypatch):
    """Chunks of 16 signals, progress after each, and the rows that were in memory together."""
    seen, norms = [], _encode._inputs.residual_norms

    def noted(Ds, Y, codes):
        seen.append(len(Y))
        return norms(Ds, Y, codes)

    monkeypatch.setattr(_encode._inputs, "residual_norms", noted)
    for name, value in {"_CHUNK": 16, "_PERIOD": -1.0}.items():
        monkeypatch.setattr(_encode, name, value)
    return seen


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_encode_streams_files_of_any_size(run, saved, tmp_path, folder, streamed, expected, suffix):
    """Also one above the limit for arrays that are read at once."""
    D = saved[2]
    Y, codes = np.load(folder / "Y.npy").astype(np.float32), tmp_path / f"codes{suffix}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ur.vision.datasets._arrays, "LARGEST_BYTES", Y.nbytes - 1)
        status, out, err = run("encode", "weights.npz", "Y.npy", "--output", codes)
    assert status == 0 and streamed == [16, 16, 8], err
    assert re.findall(r"\] (.*)\n", err) == [f"{n} of 40 signals" for n in (16, 32, 40)]
    X = np.load(codes) if suffix == ".npy" else np.load(codes)["X"]
    assert X.dtype == np.float32
    np.testing.assert_allclose(X, expected, atol=1e-6)
    assert f"{(X != 0).sum() / 40:.1f} nonzeros on average" in out
    residual = np.linalg.norm(Y - X @ D.T) / np.linalg.norm(Y)
    assert f"relative residual {residual:.4g}\n" in out


def test_encode_numbers_the_rows_that_are_not_proved(
    run, saved, tmp_path, folder, streamed, monkeypatch
):
    rows = np.flatnonzero(np.load(folder / "Y.npy")[:, 0] > 0)
    monkeypatch.setattr(_encode, "uncertified", lambda D, Y, X: np.flatnonzero(Y[:, 0] > 0))
    arguments = ("weights.npz", "Y.npy", "--certify", "--output", tmp_path / "C.npz", "--json")
    status, out, err = run("encode", *arguments)
    assert status == 0 and strict_json(out)["not_certified"] == rows.tolist(), err
    with np.load(tmp_path / "C.npz") as archive:
        assert np.flatnonzero(archive["certified"][:, 0] == 0).tolist() == rows.tolist()
        assert archive["X"].shape == (40, 12)


def test_a_fault_in_a_late_chunk_leaves_nothing(run, saved, tmp_path, folder, streamed):
    (tmp_path / "codes.npy").write_text("old")
    Y = np.load(folder / "Y.npy")
    for value, message in (
        (np.nan, "Y.npy: has NaN or infinite entries (in row 35)"),
        (2e38, "1 codes are not finite among signals 32 to 39, the first of signal 35; nothing"),
    ):
        Y[35] = value
        np.save(tmp_path / "Y.npy", Y)
        files = ("weights.npz", tmp_path / "Y.npy", "--output", tmp_path / "codes.npy")
        status, out, err = run("encode", *files)
        assert status == 2 and not out and message in err
        assert (tmp_path / "codes.npy").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["Y.npy", "codes.npy"]
