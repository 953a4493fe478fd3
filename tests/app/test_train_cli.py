"""`unrolled train` and `unrolled encode` in process: run folders, weights and codes."""

import csv
import fcntl
import os
import re
import shutil
import signal
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
import scipy.sparse
from command_line import CHAIN, strict_json

import unrolled as ur
from unrolled.app.cli import main
from unrolled.app.commands import (
    _config,
    _encode,
    _inputs,
    _partial,
    _setup,
    _train,
)
from unrolled.app.commands._config import ConfigError, load, to_toml
from unrolled.app.commands._inputs import in_float32, weights_of
from unrolled.app.commands._train import Summary, read_history
from unrolled.layers import FAMILIES
from unrolled.training import run_lengths

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
    (folder / "chain.toml").write_text(CHAIN)
    np.savez(folder / "YX_wrong.npz", Y=Y, X=X[:, 1:])
    (folder / "torn.npy").write_bytes((folder / "Y.npy").read_bytes()[:700])
    (folder / "text.npy").write_text("not an array\n")
    (folder / "full").mkdir()
    (folder / "empty").mkdir()
    (folder / "full" / "notes.txt").write_text("mine\n")
    return folder


# train

TINY = (
    *("--dictionary", "D.npy", "--signals", "YX.npz", "--family", "ista", "--depth", 3),
    *("--steps", 20, "--batch", 8, "--evaluate-every", 5, "--save-every", 5),
)
EVALUATIONS = [0, 5, 10, 15, 20]


def prepared(path, flags, say=print):
    """A training, ready to start."""
    return _setup.setup(_setup.settled(path, flags, say), say)


def history(folder):
    return [strict_json(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def steps_saved(folder):
    return sorted(int(path.stem) for path in (folder / "checkpoints").glob("*.npz"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The run folder of TINY, never interrupted, and the JSON it printed; from a file and flags."""
    output, path = tmp_path_factory.mktemp("whole") / "new run é", folder / "tiny.toml"
    flags = {
        str(name)[2:].replace("-", "_"): str(value) for name, value in zip(TINY[::2], TINY[1::2])
    }
    flags |= {name: str(folder / flags[name]) for name in ("dictionary", "signals")}
    path.write_text(to_toml(load(None, flags)).replace("steps = 20", "steps = 9"))
    with pytest.MonkeyPatch.context() as patch, open(output.parent / "out", "w") as out:
        patch.chdir(folder)
        patch.setattr(sys, "stdout", out)
        arguments = ("train", "tiny.toml", "--output", output, "--steps", 20, "--json")
        assert main([str(a) for a in arguments]) == 0
    return output, (output.parent / "out").read_text()


@pytest.mark.slow
def test_complex_signals_without_codes_train_a_family_that_takes_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    A, X = (rng.normal(size=(n, 12, 2)) @ [1, 1j] for n in (8, 40))
    np.save("A.npy", A)
    np.save("Y.npy", (X * (rng.random(X.shape) < 0.15)) @ A.T)
    files = ["train", "--dictionary", "A.npy", "--signals", "Y.npy"]
    assert main([*files, "--depth", "2", "--steps", "3", "--output", "run"]) in (0, 3)
    config = load(Path("run/config.toml"), {})
    assert config.layers[0].layer.family == "lfista_cp"
    assert config.training.method == "unsupervised"


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
    options = ("--family", "ista", "--depth", 2, "--steps", 3, "--batch", 8)
    status, out, err = run(
        *("train", "--dictionary", "A.npy", "--signals", "YX.npz", *options, "--output", "run")
    )
    assert status == 0 and "8 x 12" in out, err
    assert run("encode", "run", "YX.npz", "--output", "codes.npz")[0] == 0
    kept = ur.training.restore(Path("run/weights.npz"))
    with np.load("codes.npz") as archive:
        x = kept.layer.apply(kept.params, kept.D, Y[0].astype("c8"))
        np.testing.assert_allclose(archive["X"][0], x, rtol=0, atol=1e-5)
    status, out, err = run(
        "certify", "A.npy", "--sparsity", 1, "--sampled", 5, "--output", "proofs"
    )
    assert status == 0 and "5 new codes with 1 parts of 2" in out, err
    assert "parts of 2" in Path("proofs/report.html").read_text()
    status, out, err = run("certify", "run/weights.npz", "--sparsity", 1)
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


@pytest.mark.slow
def test_a_recipe_sets_what_is_not_given(folder, tmp_path, monkeypatch, capsys):
    """The options of the family, the loss, the rate and its course; a resumed run has the same."""
    monkeypatch.chdir(folder)
    run = tmp_path / "run"
    arguments = ["train", "--dictionary", "D.npy", "--signals", "YX.npz", "--family", "tilista"]
    arguments += ["--depth", "3", "--start", "recipe", "--steps", "4", "--output", str(run)]
    assert main(arguments) == 0
    recipe, chosen = ur.layers.tilista.recipe, load(run / "config.toml", {}).training
    assert (chosen.rate, chosen.loss) == (recipe.rate, "mostly_last")
    assert (chosen.schedule, chosen.clip, chosen.steps) == ("cosine", 1.0, 4)
    first = ur.training.restore(weights_of(run))
    p = np.mean(np.load("YX.npz")["X"][:28] != 0)
    assert first.layer.support == tuple(float(f"{per * p:.2g}") for per in (0.12, 1.3))
    assert "support" not in (run / "config.toml").read_text()  # what the recipe sets is not chosen
    assert main(["train", "--output", str(run), "--resume"]) == 0
    again = ur.training.restore(weights_of(run))
    assert again.layer is first.layer
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)


@pytest.mark.slow
def test_a_run_folder_has_all_of_a_training(whole, folder):
    output, out = whole
    names = [
        "checkpoints",
        "config.toml",
        "history.csv",
        "history.jsonl",
        "report.html",
        "summary.json",
        "weights.npz",
    ]
    assert sorted(path.name for path in output.iterdir()) == names
    page = (output / "report.html").read_text()
    assert "The validation loss went from" in page and "<th>learned</th>" in page
    config = load(output / "config.toml", {})
    assert config.output == str(output)
    assert (config.training.steps, config.model.family) == (20, "ista")
    rows = history(output)
    assert [row["step"] for row in rows] == EVALUATIONS and rows[0]["loss"] is None
    assert steps_saved(output)[-1] == 20
    with (output / "history.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(float(row["validation"]), row["loss"] == "") for row in table] == [
        (row["validation"], row["loss"] is None) for row in rows
    ]
    summary = strict_json(out)
    assert summary == strict_json((output / "summary.json").read_text())
    assert summary["steps"] == 20 and summary["tested_on"] == 8 and summary["shape"] == [8, 12]
    assert summary["validation"]["first"] == rows[0]["validation"]
    assert summary["validation"]["best"] == min(row["validation"] for row in rows)


def test_the_summary_judges_the_saved_weights_on_the_last_signals(whole, folder):
    output, out = whole
    weights = ur.training.restore(output / "weights.npz")
    D = np.load(folder / "D.npy").astype(np.float32)
    assert weights.layer is ur.layers.ista(3, lam=0.1)
    assert np.array_equal(weights.D, D)
    with np.load(folder / "YX.npz") as archive:
        Y, X = (archive[name][-8:].astype(np.float32) for name in "YX")
    codes = jax.vmap(ur.layers.ista(3).apply, (None, None, 0))(weights.params, D, Y)
    judged = strict_json(out)["judged"]["learned"]
    assert judged["nmse"] == pytest.approx(float(ur.metrics.nmse(codes, X)), rel=1e-5)
    assert judged["mean_nmse"] == pytest.approx(float(ur.metrics.mean_nmse(codes, X)), rel=1e-5)
    assert judged["failure_rate"] == pytest.approx(float(ur.metrics.failure_rate(codes, X)))
    residual = Y - np.asarray(codes) @ D.T
    relative = np.linalg.norm(residual) / np.linalg.norm(Y)
    assert judged["relative_residual"] == pytest.approx(relative, rel=1e-5)
    objective = (residual**2).sum(1) / 2 + 0.1 * np.abs(codes).sum(1)
    assert judged["lasso_objective"] == pytest.approx(objective.mean(), rel=1e-5)


@pytest.mark.slow
def test_planted_test_signals_are_none_of_those_that_train_or_validate():
    flags = dict(dictionary="ill_conditioned", m="8", d="12", kappa="5", depth="1")
    flags |= dict(probability="1", batch="4", test_signals="20", snr="30")
    ready = prepared(None, flags, print)
    singular = np.linalg.svd(np.asarray(ready.D), compute_uv=False)
    assert ready.validation is None and ready.tested_on[0].shape == (20, 8)
    assert singular[0] / singular[-1] > 2
    batches = [ready.sample(jax.random.fold_in(ready.key, k))[0] for k in range(5)]
    assert not np.isin(np.asarray(ready.tested_on[0])[:, 0], np.concatenate(batches)[:, 0]).any()
    noise = np.asarray(ready.tested_on[0]) - np.asarray(ready.tested_on[1]) @ np.asarray(ready.D).T
    assert 0 < np.linalg.norm(noise) < 0.1 * np.linalg.norm(ready.tested_on[0])


def test_a_history_is_read_up_to_a_line_that_is_no_text(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 4, "stage": 0}\n\xff\xfe\n')
    assert read_history(path) == [{"step": 4, "stage": 0}]


@pytest.fixture
def stopped(run, monkeypatch, interruptible):
    """A command that is sent a signal at the evaluation of a step."""
    logger = _train.logger

    def stopped(number, step, *arguments):
        def log_and_stop(*arguments):
            write = logger(*arguments)

            def stop(record, params):
                write(record, params)
                if record.step == step:
                    os.kill(os.getpid(), number)

            return stop

        with monkeypatch.context() as patch:
            patch.setattr(_train, "logger", log_and_stop)
            return run(*arguments)

    return stopped


@pytest.mark.slow
def test_a_run_that_is_stopped_twice_ends_with_the_same_bits(run, stopped, whole, tmp_path):
    """By SIGINT, then by SIGTERM; a kill has also torn the last line of the history."""
    output = tmp_path / "stopped"
    command = ("train", *TINY, "--save-every", 50, "--output", output)
    status, out, err = stopped(signal.SIGINT, 10, *command)
    assert (status, out) == (130, "") and "--resume continues from here" in err
    assert steps_saved(output) == [10] and [row["step"] for row in history(output)] == [0, 5, 10]
    status, out, err = stopped(signal.SIGTERM, 15, *command, "--resume")
    assert (status, out) == (143, "") and "--resume continues from here" in err
    assert steps_saved(output) == [10, 15]
    with (output / "history.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')
    status, out, err = run("train", "--output", output, "--resume")
    assert status == 0 and "20 training steps" in out and str(output / "weights.npz") in out, err
    # The files differ in the seconds of training alone.
    resumed, once = (ur.training.restore(f / "weights.npz") for f in (output, whole[0]))
    chex.assert_trees_all_equal((resumed.params, resumed.D), (once.params, once.D))
    ours, expected = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in history(path)]
        for path in (output, whole[0])
    )
    assert ours == expected


def test_devices_that_are_not_there_are_missed_before_anything_is_written(run, tmp_path):
    for accumulate in (1, 2):
        flags = "--reduction", "psum", "--accumulate", accumulate
        status, _, err = run("train", *TINY, *flags, "--output", tmp_path / "run")
        assert status == 2 and "training.reduction: psum is for several devices" in err
        assert not list((tmp_path / "run").glob("*.toml"))


def test_a_run_is_resumed_only_as_it_was_but_may_go_on_for_longer(run, whole, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(whole[0], output)
    status, _, err = run("train", *TINY, "--output", output)
    advice = "is not empty; try --resume to continue its run, or another --output"
    assert status == 2 and err == f"unrolled: {output}: {advice}\n"
    other = ("--rate", "0.01", "--seed", "4", "--lam", "0.2")
    status, _, err = run("train", "--output", output, "--resume", *other)
    told = "seed (0, now 4), problem.lam (0.1, now 0.2), training.rate (0.001, now 0.01)"
    assert status == 2 and told in err
    status, _, err = run("train", "--output", output, "--resume", "--family", "tista")
    assert status == 2 and "model.family (ista, now tista)" in err
    status, _, err = run("train", "--output", output, "--resume", "--steps", "19")
    assert status == 2 and "training.steps (20, now 19)" in err
    assert (output / "weights.npz").read_bytes() == (whole[0] / "weights.npz").read_bytes()
    status, out, err = run("train", "--output", output, "--resume", "--steps", "25", "--json")
    assert status == 0 and strict_json(out)["steps"] == 25, err
    assert [row["step"] for row in history(output)] == [*EVALUATIONS, 25]
    assert load(output / "config.toml", {}).training.steps == 25


@pytest.mark.parametrize("flag", [None, ("schedule", "cosine"), ("method", "curriculum")])
def test_a_run_may_go_on_for_longer_where_its_steps_do_not_depend_on_their_number(flag):
    flags = dict([flag] if flag else [])
    saved, config = (load(None, flags | {"steps": steps}) for steps in (5, 9))
    changed = _config.differences(_train._grown(saved, config), config)
    assert changed == ([] if flag is None else ["training.steps (5, now 9)"])


@pytest.mark.slow
def test_a_grown_run_that_is_stopped_has_no_weights_of_its_former_end(
    run, stopped, whole, tmp_path
):
    output = tmp_path / "grown"
    shutil.copytree(whole[0], output)
    arguments = ("train", "--output", output, "--resume")
    assert run(*arguments)[0] == 0
    assert (output / "weights.npz").read_bytes() == (whole[0] / "weights.npz").read_bytes()
    assert stopped(signal.SIGINT, 25, *arguments, "--steps", 30)[0] == 130
    assert load(output / "config.toml", {}).training.steps == 30
    assert weights_of(output) == output / "checkpoints"


def test_a_run_in_use_is_refused_and_not_touched(run, whole, tmp_path):
    output = tmp_path / "used"
    shutil.copytree(whole[0], output)
    with (output / "checkpoints" / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status, _, err = run("train", "--output", output, "--resume", "--steps", 60)
    assert status == 2 and "in use by process" in err
    assert load(output / "config.toml", {}).training.steps == 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. at the start .* worse than ISTA")
def test_a_file_too_large_for_memory_trains_to_the_same_bits(run, tmp_path, monkeypatch):
    """Its lam, its start and its training; a row that is not finite is named when it is drawn."""
    files = ("--dictionary", "D.npy", "--family", "ista", "--start", "calibrated", "--depth", 2)
    files += ("--loss", "lasso", "--steps", 40, "--evaluate-every", 40, "--signals")
    found, losses = [], []
    for name in ("memory", "file"):
        status, _, err = run("train", *files, "Y.npy", "--output", tmp_path / name)
        assert status == 0, err
        found.append(
            ur.training.digest(ur.training.restore(tmp_path / name / "weights.npz").params)
        )
        losses.append([(row["loss"], row["validation"]) for row in history(tmp_path / name)])
        monkeypatch.setattr(_inputs, "LARGEST_BYTES", 100)
    assert found[0] == found[1] and losses[0] == losses[1]
    monkeypatch.setattr(_setup, "CHOSEN_ON", 3)  # the first of them
    status, _, err = run("train", *files, "nan.npy", "--lam", 0.1, "--output", tmp_path / "nan")
    assert status == 2 and "nan.npy: has NaN or infinite entries (in rows 3, 7)" in err


@pytest.mark.slow
def test_of_a_large_file_shares_of_so_many_signals_are_held_back(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for module in (_inputs, _setup):
        monkeypatch.setattr(module, "LARGEST_BYTES", 100)
    monkeypatch.setattr(_setup, "_OF_LARGE", 20)  # of the 40
    config = load(None, dict(dictionary="D.npy", signals="Y.npy", loss="lasso", lam="0.1"))
    ready = _setup.setup(config, print)
    Y = np.load("Y.npy").astype(np.float32)
    np.testing.assert_array_equal(ready.tested_on[0], Y[36:])
    np.testing.assert_array_equal(ready.validation[0], Y[34:36])
    drawn = np.asarray(ready.sample(0)[0])
    assert {row.tobytes() for row in drawn} <= {row.tobytes() for row in Y[:34]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_codes_worse_than_zero_are_counted_and_a_guard_leaves_none(run, tmp_path):
    """One signal at a time: LAMP is better than zero codes for some and worse for others."""
    files = ("--dictionary", "D.npy", "--signals", "Y.npy", "--loss", "lasso", "--lam", 0.4)
    options = ("--family", "lamp", "--depth", 8, "--steps", 1, "--output", tmp_path / "own")
    out = run("train", *files, *options)[1]
    summary = strict_json((tmp_path / "own" / "summary.json").read_text())
    saved = ur.training.restore(tmp_path / "own" / "weights.npz")
    Y = np.load("Y.npy")[-8:].astype(np.float32)
    codes = np.asarray(jax.vmap(saved.layer.apply, (None, None, 0))(saved.params, saved.D, Y))
    objective = ((Y - codes @ saved.D.T) ** 2).sum(1) / 2 + 0.4 * np.abs(codes).sum(1)
    share = 100 * np.mean(objective > (Y**2).sum(1) / 2)
    assert 0 < share < 100
    assert summary["judged"]["learned"]["worse_than_zero"] == pytest.approx(share)
    assert "try --guard 0.4" in out and "worse than zero codes, %" in out
    guarded = run("train", *files, *options[:-1], tmp_path / "guarded", "--guard", 0.4)
    summary = strict_json((tmp_path / "guarded" / "summary.json").read_text())
    assert summary["judged"]["learned"]["worse_than_zero"] == 0 and guarded[0] == 0
    assert (
        "try --guard" not in guarded[1]
        and "guard = 0.4" in (tmp_path / "guarded" / "config.toml").read_text()
    )


@pytest.mark.slow
def test_a_curriculum_goes_stage_by_stage(run, tmp_path):
    """Three stages of one step; the best params are those of the last one."""
    output = tmp_path / "staged"
    arguments = (*TINY, "--depth", 1, "--method", "curriculum", "--steps", 2, "--evaluate-every", 2)
    status, out, err = run("train", *arguments, "--output", output, "--json")
    assert status == 0, err
    expected = [(0, 0), (0, 2), (1, 2), (1, 4), (2, 4), (2, 6)]
    assert [(row["stage"], row["step"]) for row in history(output)] == expected
    summary = strict_json(out)
    assert summary["steps"] == 6
    assert summary["validation"]["first"] == history(output)[4]["validation"]
    assert steps_saved(output)[-1] == 6
    assert ur.training.restore(output / "weights.npz").params.steps.theta.shape == (1,)


@pytest.mark.parametrize("method, name", [("curriculum", "curriculum"), ("end_to_end", "fit")])
def test_a_run_trains_by_the_method_that_is_asked_for(method, name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    asked = {}
    for each in ("curriculum", "fit"):
        monkeypatch.setattr(
            _train.training, each, lambda *a, n=each, **k: asked.update({n: k}) or n
        )
    flags = dict(dictionary="D.npy", signals="YX.npz", depth="2", family="ista", start="init")
    flags |= dict(batch="2", method=method, steps="7", rate="0.5")
    config = load(None, flags)
    ready, one = prepared(None, flags, lambda message: None), SimpleNamespace(is_first=True)
    assert _train._trained(config, ready, tmp_path, None, print, one) == name
    assert list(asked) == [name] and asked[name]["checkpoint"].folder == tmp_path / "checkpoints"
    assert asked[name].get("steps_per_stage", asked[name].get("steps")) == 7


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_share_of_codes_worse_than_zero_has_no_scale(scale):
    D, Y = np.eye(3, dtype=np.float32), scale * np.eye(3, dtype=np.float32)[:2]
    layer = ur.layers.ista(1, lam=0.0)
    params = layer.init(None, D)
    for gamma, share in ((0.5, 0), (3.0, 100)):
        steps = params.steps._replace(gamma=np.full(1, gamma, np.float32))
        moved = params._replace(steps=steps)
        (found,) = _train._judged(layer, moved, D, Y, None, 0.0)
        assert found["worse_than_zero"] == share and found["nonzeros"] == 1


def test_a_start_that_is_not_set_on_signals_is_that_of_the_family(folder, monkeypatch):
    monkeypatch.chdir(folder)
    told = []
    flags = dict(dictionary="D.npy", signals="YX.npz", depth="2", family="ista", start="init")
    ready = prepared(None, flags | dict(batch="2"), told.append)
    jax.tree.map(np.testing.assert_array_equal, ready.params, ready.model.init(None, ready.D))
    assert not any("calibrating" in line for line in told)


def test_starts_from_theory_have_the_form_of_the_family(folder, monkeypatch):
    """Analytic params have the structure of `init`; calibrated ones keep the weights of theory."""
    monkeypatch.chdir(folder)
    told = []
    flags = dict(dictionary="D.npy", signals="YX.npz", depth="2", start="analytic", batch="2")
    for more in (dict(family="lista_cpss", tied=False), dict(family="lista_cp")):
        ready = prepared(None, flags | more, told.append)
        assert jax.tree.structure(ready.params) == jax.tree.structure(
            ready.model.init(jax.random.key(0), ready.D)
        )
        W = ready.params.steps.W[0] if ready.params.shared is None else ready.params.shared.W
        np.testing.assert_allclose(np.sum(W * np.asarray(ready.D), 0), 1, atol=1e-5)
        assert "theory covers up to " in told[-1]
    calibrated = prepared(None, flags | dict(family="alista", start="calibrated"), told.append)
    assert told[-1] == "calibrating on 28 signals"
    assert np.array_equal(calibrated.params.shared.W, ready.params.shared.W)
    assert (calibrated.params.steps.theta < ready.params.steps.theta).all()
    # Training, validation and test signals are the file, each row once.
    Y = np.load(folder / "Y.npy").astype(np.float32)
    assert np.array_equal(np.concatenate([ready.validation[0], ready.tested_on[0]]), Y[28:])
    rows = np.concatenate([ready.sample(jax.random.key(i))[0] for i in range(40)])
    assert set(map(tuple, rows)) <= set(map(tuple, Y[:28]))


def test_the_optimiser_and_the_loss_are_those_of_the_options():
    """One step of SGD at rate 0.5, its gradient of norm 5 clipped to 1; the LASSO as defined."""
    config = load(None, dict(optimizer="sgd", clip=1.0, loss="lasso", lam=0.5, deep=True))
    optimizer = _setup._optimizer(config)(0.5)
    gradient = {"a": np.float32([3, 4])}
    updates, _ = jax.jit(lambda g: optimizer.update(g, optimizer.init(g)))(gradient)
    np.testing.assert_allclose(updates["a"], [-0.3, -0.4], rtol=1e-6)
    D, Y = np.eye(2, dtype=np.float32), np.float32([[1, 2]])
    codes = np.float32([[[0, 0]], [[1, 0]]])
    loss = jax.jit(_setup._loss(config))(codes, None, D, Y)
    assert float(loss) == pytest.approx((2.5 + 2.5) / 2)
    for name in _config.OPTIMIZERS:
        made = _setup._optimizer(load(None, dict(optimizer=name)))(1e-3)
        assert callable(made.init) and callable(made.update)


@pytest.mark.slow
def test_a_training_that_breaks_says_where_and_keeps_its_checkpoints(run, tmp_path):
    output = tmp_path / "broken"
    arguments = (*TINY, "--optimizer", "sgd", "--rate", "1e25", "--output", output)
    status, out, err = run("train", *arguments)
    assert status == 2 and not out and len(err.splitlines()) == 2
    assert "training stopped at step" in err and "--clip" in err
    assert (output / "history.jsonl").exists() and not (output / "weights.npz").exists()


def test_a_training_is_judged_beside_zero_codes_and_ista():
    def worse(best, **others):
        validation = {"first": 9.0, "best": best} | others
        return Summary(load(None, {}), None, 1, 1, 1.0, 1, validation, 1, {}).worse

    assert worse(0.6, zero=1.0, ista=0.5).startswith("the codes are worse than ISTA of the same ")
    assert worse(1.1, zero=1.0, ista=0.5).startswith("the codes are worse than zero codes: their ")
    assert worse(0.5 + 1e-9, zero=1.0, ista=0.5) == worse(0.6, zero=1.0) == worse(0.6) == ""


def test_a_guard_is_advised_where_codes_are_worse_than_zero_and_have_none():
    def advised(config, share):
        judged = {"start": [{"worse_than_zero": 0.0}], "learned": [{"worse_than_zero": share}]}
        validation = {"first": 2.0, "best": 1.0}
        summary = Summary(config, ((8, 12),), 1, 1, 1.0, 1, validation, 1, judged, "Repaid.")
        assert "Repaid." in summary.text() and "Repaid." in summary.parts()
        return "try --guard 0.1" in summary.text()

    plain, guarded = load(None, {}), load(None, {"guard": 0.1})
    assert [advised(plain, 0.0), advised(plain, 5.0), advised(guarded, 5.0)] == [False, True, False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. at the start .* worse than ISTA")
def test_weights_that_are_worse_than_ista_end_with_status_3(folder, run):
    """Thresholds that let little pass, and a training that changes little."""
    files = ("--dictionary", "D.npy", "--signals", "Y.npy", "--output", folder / "above")
    options = ("--depth", 8, "--theta", 0.3, "--loss", "lasso", "--rate", 1e-5, "--steps", 1)
    status, _, err = run("train", *files, "--family", "alista", *options)
    assert status == 3 and (folder / "above" / "weights.npz").exists()
    last = err.splitlines()[-1]
    assert re.fullmatch("unrolled: the codes are worse than ISTA .*; try another --family .*", last)
    loss = strict_json((folder / "above" / "summary.json").read_text())["validation"]
    assert loss["ista"] < loss["best"] < loss["zero"]


# A family of the user's own

MODULE = """
from typing import NamedTuple
import jax.numpy as jnp
import unrolled as ur
from unrolled.layers import Gamma, Layer, State, Unrolled, option

class Step(NamedTuple):
    gamma: Gamma

class my_family(Layer):
    scale: float = option(default=1.0, above=0, help="of the step sizes, 100 % at 1")
    powers: tuple = option(default=(1, 2), check=lambda v, name, where: tuple(map(int, v)))
    forms = (Unrolled(None, Step),)
    def init(self, key, D):
        gamma = self.scale / ur.dictionaries.spectral_norm(D) ** 2
        return Unrolled(None, Step(jnp.full(self.depth, gamma)))
    def step(self, shared, p, D, y, state):
        return State(state.x + p.gamma * ((y - D @ state.x) @ D))
"""


def forget(module, family):
    """As in a process that has not imported the module."""
    FAMILIES.pop(family, None)
    sys.modules.pop(module, None)


@pytest.fixture
def own(tmp_path, folder, monkeypatch, capsys):
    """A runner in a folder with my_module.py, which is not on the path."""
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        forget("my_module", "my_family")
        monkeypatch.setattr(
            sys, "path", [path for path in sys.path if path not in ("", os.getcwd())]
        )
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    yield run
    forget("my_module", "my_family")


@pytest.mark.slow
def test_a_family_of_your_own_trains_resumes_and_encodes_where_it_is_imported(
    own, folder, tmp_path
):
    inputs = ("--dictionary", folder / "D.npy", "--signals", folder / "YX.npz")
    options = ("--scale", 0.5, "--powers", "[3, 4]", "--steps", 4, "--batch", 4, "--depth", 2)
    train = ("--family", "my_family", *inputs, *options, "--output", "run")
    status, out, err = own("train", "--import", "my_module", *train)
    assert status == 0 and out.startswith("my_family, 2 steps, 8 x 12: 4 training steps"), err
    assert 'family = "my_family"' in (tmp_path / "run" / "config.toml").read_text()
    saved = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert saved["model"]["powers"] == [3, 4]
    status, out, err = own(
        "train", "--import", "my_module", "--output", "run", "--resume", "--steps", 6, "--json"
    )
    assert status == 0 and strict_json(out)["steps"] == 6, err
    encode = ("run/weights.npz", folder / "Y.npy", "--output", "codes.npy")
    status, _, err = own("encode", "--import", "json", "--import", "my_module", *encode)
    assert status == 0, err
    found = ur.training.restore("run/weights.npz")
    assert repr(found.layer) == "my_family(2, scale=0.5, powers=(3, 4))"
    y = np.load(folder / "Y.npy").astype(np.float32)[0]
    expected = found.layer.apply(found.params, found.D, y)
    np.testing.assert_allclose(np.load("codes.npy")[0], expected, atol=1e-6)
    # A run that has not ended has no weights yet: the folder stands for its newest checkpoint.
    encode = ("encode", "--import", "my_module", "run", folder / "Y.npy", "--output", "again.npy")
    for used in ("run/weights.npz", "run/checkpoints"):
        status, out, err = own(*encode)
        assert status == 0 and f"{used} -> again.npy" in out, err
        found = ur.training.restore(used)
        expected = found.layer.apply(found.params, found.D, y)
        np.testing.assert_allclose(np.load("again.npy")[0], expected, atol=1e-6)
        os.remove("run/weights.npz") if used.endswith("npz") else None
    assert found.metadata["step"] == 6
    for arguments, advice in (
        (("train", "--output", "run", "--resume"), "a family of your own needs --import MODULE"),
        (("encode", *encode[3:]), "import the module that def"),
    ):
        status, out, err = own(*arguments)
        assert status == 2 and not out and len(err.splitlines()) == 1
        assert "unknown" in err and "'my_family'" in err and advice in err


def test_the_help_knows_the_options_of_your_own_family(own, capsys):
    with pytest.raises(SystemExit):
        own("train", "--import", "my_module", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert ", my_family; default alista" in shown and "--powers VALUE" in shown
    assert "--scale FLOAT of the step sizes, 100 % at 1 (my_family; default 1.0)" in shown


def test_options_that_two_families_share_are_left_to_the_layers(own, tmp_path):
    """Here theta is an integer and gain may be negative; seed is an option of the command."""
    shared = "theta: int = option(default=2)\n    gain: float = option(default=0.0)"
    (tmp_path / "my_module.py").write_text(
        MODULE.replace("scale: float", f"{shared}\n    scale: float")
    )
    gone = ("export", "gone.npz", "--output", "net", "--import", "my_module")
    assert "gone.npz: no such file" in own(*gone)[2]
    config = load(None, {"family": "my_family", "theta": "3", "gain": "-1.5"})
    made = _config.make_model(config)
    assert (made.theta, type(made.theta), made.gain) == (3, int, -1.5)
    assert _config.make_model(load(None, {"theta": "0.3"})) is ur.layers.alista(16, theta=0.3)
    with pytest.raises(ConfigError, match="train: --theta must be at least 0"):
        load(None, {"theta": "-1"})
    text = MODULE.replace("scale: float", "seed: int = option(default=2)\n    scale: float")
    (tmp_path / "my_module.py").write_text(text)
    status, _, err = own(*gone)
    assert status == 2 and "the family my_family has an option seed" in err and "rename it" in err


REFUSED = {
    "train gone.toml": "gone.toml: no such file",
    "train full": "full: is a folder; expected a TOML file",
    "train D.npy": "D.npy: not readable as TOML",
    "train --steps two": "--steps must be an integer, got 'two'",
    "train --seed x": "--seed must be an integer, got 'x'",
    "train --family my_family": "a family of your own needs --import MODULE",
    "train --family tista --probability 1 --m 4 --d 6": "tista: probability must be above 0 and "
    "below 1",
    "train --family liht --m 4 --d 6": "liht: sparsity is missing",
    "train --output D.npy": "D.npy: is a file; expected a folder",
    "train --output full": "full: is not empty; try --resume",
    "train --output full --resume": "full: there is no config.toml in it",
    "train --output gone --resume": "gone: there is no config.toml in it",
    "train --dictionary gone.npy": "gone.npy: no such file",
    "train --dictionary text.npy": "text.npy: not a readable array file",
    "train --dictionary D.npy --signals gone.npy": "gone.npy: no such file",
    "train --dictionary D.npy --signals torn.npy": "torn.npy: not a readable array file",
    "train --dictionary D.npy --signals nan.npy": "nan.npy: has NaN or infinite entries .in rows "
    "3, 7.",
    "train --dictionary D.npy --signals columns.npy": r"columns.npy: .*\(8, 40\)"
    r".*transpose them",
    "train --dictionary D.npy --signals longer.npy": r"longer.npy: .*\(40, 16\); "
    r"expected \(signals, 8\)",
    "train --dictionary D.npy --signals YX_wrong.npz": r"YX_wrong.npz: codes have shape "
    r"\(40, 11\); expected \(40, 12\)",
    "train --dictionary D.npy --signals faint.npy": "faint.npy: leaves the range of float32 "
    ".in rows 0, 1, 2 and 37 others., where entries become 0 or infinite; try numbers near 1",
    "encode weights.npz faint.npy": "faint.npy: leaves the range of float32 .in rows 0, ",
    "encode Y.npy --method omp --tol 1 --dictionary faint_D.npy": "faint_D.npy: leaves the range "
    "of float32 .in column 4.",
    "train --dictionary D.npy --signals few.npy --loss lasso": "few.npy: expected "
    "at least 3 signals",
    "train --dictionary D.npy --signals Y.npy --loss supervised": "Y.npy: has no codes .*which "
    "loss supervised would need; try loss lasso",
    "train --dictionary D.npy --signals Y.npy --rate 0.1 --clip 1": "rate, clip does not go with "
    "method unsupervised, which sets it; name a family and a loss",
    "train --dictionary D.npy --signals Y.npy --method unsupervised --family ista": r"ista\(16\) "
    "does not go with method unsupervised",
    "train chain.toml --method unsupervised": "a chain does not go with method unsupervised",
    "train --dictionary D.npy --signals Y.npy --loss log_nmse --start calibrated": "which loss "
    "log_nmse would need; try loss lasso, .*codes lasso, which makes them",
    "train --dictionary D.npy --signals Y.npy --start recipe": "which loss mostly_last and start "
    "recipe would need; try loss lasso",
    "train --dictionary D.npy --signals Y.npy --ratio 0.2": "ratio does not go with .*Y.npy",
    "train --codes lasso": "codes does not go with dictionary gaussian, signals planted",
    "train --signals Y.npy --codes lasso --ratio 1.5": "--ratio must be above 0 and at most 1",
    "encode Y.npy --method lasso --ratio 1.5 --dictionary D.npy": "encode: ratio must be at most "
    "1, where all codes are zero, got 1.5",
    "encode D.npy Y.npy": "D.npy must end in .npz",
    "encode YX.npz Y.npy": "YX.npz",
    "encode torn.npz Y.npy": "torn.npz",
    "encode plain.npz Y.npy": "plain.npz: it names no layer",
    "encode deeper.npz Y.npy": "deeper.npz: its weights do not fit its layer: .*params have .2. "
    "steps but the layer has depth 4",
    "encode bare.npz Y.npy": "bare.npz: has no dictionary; try --dictionary",
    "train chain.toml --signals chain_part.npz": "chain_part.npz: has no X_2; expected X_1, X_2",
    "train chain.toml --signals chain_wrong.npz": r"X_3 has shape \(40, 12\); expected \(40, 14\)",
    "train chain.toml --signals Y.npy": r"Y.npy: has no codes \(entries X_1 to X_3 of a .npz",
    "train chain.toml --dictionary D.npy": "has 3 layers; expected as many files, .* got one",
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
    arguments = command.split(" ")
    if "--output" not in arguments and arguments[0] != "certify":
        arguments += ["--output", tmp_path / ("run" if arguments[0] == "train" else "codes.npy")]
    status, out, err = run(*arguments)
    assert status == 2 and not out
    assert re.fullmatch(rf"unrolled: .*{REFUSED[command]}.*\n", err), err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Chains


@pytest.mark.slow
def test_a_chain_trains_resumes_encodes_and_is_certified(run, folder, tmp_path):
    output = tmp_path / "chain"
    status, out, err = run("train", "chain.toml", "--output", output)
    assert status == 0, err
    assert out.startswith("lista_cp, 3 steps, 8 x 12; ista, 2 steps, 12 x 12; alista, 2 steps, 12 ")
    assert [f"layer {j}" in out for j in (1, 2, 3, 4)] == [True, True, True, False]
    summary = strict_json((output / "summary.json").read_text())
    assert summary["shape"] == [[8, 12], [12, 12], [12, 14]]
    saved = ur.training.restore(output / "weights.npz")
    assert saved.layer is _config.make_model(load(folder / "chain.toml", {}))
    Y = np.load(folder / "chain_signals.npz")["Y"].astype(np.float32)
    codes = jax.vmap(saved.layer.apply, (None, None, 0))(saved.params, saved.D, Y[-8:])
    for j, (judged, x) in enumerate(zip(summary["judged"]["learned"], codes)):
        X = np.load(folder / "chain_signals.npz")[f"X_{j + 1}"][-8:].astype(np.float32)
        assert judged["nmse"] == pytest.approx(float(ur.metrics.nmse(x, X)), rel=1e-4)
        back = np.linalg.multi_dot([*map(np.asarray, saved.D[: j + 1]), np.asarray(x).T]).T
        relative = np.linalg.norm(Y[-8:] - back) / np.linalg.norm(Y[-8:])
        assert judged["relative_residual"] == pytest.approx(relative, rel=1e-4)
    status, out, err = run("train", "--output", output, "--resume", "--steps", 6, "--json")
    assert status == 0 and strict_json(out)["steps"] == 6, err

    weights, signals = output / "weights.npz", "Y.npy"
    saved = ur.training.restore(weights)
    codes = jax.vmap(saved.layer.apply, (None, None, 0))(saved.params, saved.D, Y)
    status, out, err = run("encode", weights, signals, "--output", tmp_path / "all.npz")
    assert status == 0 and "  layer 3, 14 atoms: " in out, err
    with np.load(tmp_path / "all.npz") as held:
        assert sorted(held) == ["X_1", "X_2", "X_3"]
        for name, x in zip(sorted(held), codes):
            np.testing.assert_allclose(held[name], x, atol=1e-6)
    status, out, _ = run("encode", weights, signals, "--output", tmp_path / "last.npy", "--json")
    assert [layer["atoms"] for layer in strict_json(out)["layers"]] == [12, 12, 14]
    np.testing.assert_allclose(np.load(tmp_path / "last.npy"), codes[2], atol=1e-6)

    options = ("--sparsity", "2,1,1", "--bound", "0.5")
    status, out, err = run("certify", output, *options, "--json")
    found = strict_json(out)
    expected = ur.theory.certify(
        *(saved.layer, saved.params, saved.D),
        **dict(sparsity=(2, 1, 1), bound=(0.5,) * 3, noise=(0.0,) * 3),
    )
    for layer, certificate in zip(found["layers"], expected, strict=True):
        assert layer["error"] == certificate.error.tolist()
        assert layer["holds"] is certificate.holds
    bare = ur.training.save(
        tmp_path / "bare.npz", saved.params, saved.D, saved.layer, dictionary=False
    )
    files = [folder / f"D_{j}.npy" for j in (1, 2, 3)]
    assert strict_json(run("certify", bare, *files, *options, "--json")[1]) == found
    out = run("certify", weights)[1]
    rows = {line[:24].strip(): line[24:].split() for line in out.splitlines()[2:]}
    assert rows["family"] == ["lista_cp", "ista", "alista"] and rows["sparsity"] == ["1"] * 3


def test_codes_that_are_all_zero_are_told(folder, run, tmp_path):
    files = ("--dictionary", "D.npy", "Y.npy", "--output", tmp_path / "X.npy")
    out = run("encode", "--method", "lasso", "--lam", 1e3, *files)[1]
    assert "all codes are zero: try a smaller lam" in out and "0.0 nonzeros" in out
    assert "all codes are zero" not in run("encode", "--method", "lasso", "--lam", 0.1, *files)[1]
    assert _encode._advice("omp") == "a smaller tol or a larger sparsity"


QUICK = ("--steps", "2", "--batch", "8", "--depth", "2", "--evaluate-every", "1")


@pytest.mark.slow
def test_signals_without_codes_calibrate_a_start_and_choose_lam(folder, run):
    """Trained by the LASSO with a learned dictionary, judged on the last fifth of the file."""
    own = ("train", "--dictionary", "D.npy", "--signals", "Y.npy", "--family", "ista")
    more = ("--loss", "lasso", "--start", "calibrated", "--learn-dictionary", *QUICK)
    status, out, err = run(*own, *more, "--output", "without_codes")
    assert status == 0 and "calibrating on 28 signals, by the loss" in err
    assert "on 8 test signals" in out and "LASSO objective" in out and "NMSE" not in out
    D, Y = (np.load(folder / f"{name}.npy") for name in "DY")
    lam = float(f"{np.quantile(np.abs(Y @ D).max(1), 0.9) / 10:.3g}")  # of float32 arrays
    assert f"lam = {lam:g}, a tenth of the lam at which nine codes in ten are 0" in err
    saved = ur.training.restore(folder / "without_codes" / "weights.npz")
    summary = strict_json((folder / "without_codes" / "summary.json").read_text())
    judged = saved.metadata["validation"]
    assert judged == summary["validation"] and judged["best"] < judged["zero"]
    assert set(judged) == {"first", "best", "zero", "ista"}
    assert f"{judged['ista']:.4g} of ISTA" in out
    np.testing.assert_allclose(np.linalg.norm(saved.D, axis=0), 1, atol=1e-6)
    assert not np.array_equal(saved.D, D.astype(np.float32))
    config = load(folder / "without_codes" / "config.toml", {})
    assert config.problem.lam == config.layers[0].layer.lam == lam and config.problem.snr is None
    status, _, err = run(*own, *more, "--output", "without_codes", "--resume", "--steps", "3")
    assert status == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bcd", "lfista_cp"])
def test_signals_without_codes_train_by_the_recipe_where_nothing_else_is_named(family, folder, run):
    """The same params as the library's function returns, and as the resumed run has."""
    shutil.rmtree(folder / "by_recipe", ignore_errors=True)
    own = ("train", "--dictionary", "D.npy", "--signals", "Y.npy", "--depth", 3, "--steps", 4)
    own += ("--family", family, "--method", "unsupervised") * (family != "bcd")
    status, out, err = run(*own, "--output", "by_recipe")
    runs = len(run_lengths(FAMILIES[family](3), 4))
    assert status == 0 and f"training {4 * runs} steps in {runs} runs, the last of 4 steps" in err
    assert out.startswith(f"{family}, 3 steps")
    summary = strict_json((folder / "by_recipe" / "summary.json").read_text())
    assert summary["verdict"] in out and f"{family} with 3 steps takes" in summary["verdict"]
    assert summary["verdict"].startswith("Exact codes (lasso_batch) take ")
    config = load(folder / "by_recipe" / "config.toml", {})
    assert (config.training.method, config.training.loss) == ("unsupervised", "lasso")
    assert (
        "rate" not in (folder / "by_recipe" / "config.toml").read_text()
    )  # the recipe has its own
    ready, lam = prepared(folder / "by_recipe" / "config.toml", {}), config.problem.lam
    options = dict(key=ready.key, validation=ready.validation, steps=4, family=family)
    fit = ur.training.unsupervised(ready.D, ready.sample, lam, 3, **options)
    saved = ur.training.restore(folder / "by_recipe" / "weights.npz")
    jax.tree.map(np.testing.assert_array_equal, saved.params, fit.best)
    assert run("train", "--output", "by_recipe", "--resume")[0] == 0
    again = ur.training.restore(folder / "by_recipe" / "weights.npz")
    jax.tree.map(np.testing.assert_array_equal, again.params, fit.best)


@pytest.mark.slow
def test_codes_are_made_once_and_kept(folder, run):
    own = ("train", "--dictionary", "D.npy", "--signals", "Y.npy", "--codes", "lasso")
    more = ("--family", "alista", "--start", "calibrated", "--ratio", "0.2", *QUICK)
    status, _, err = run(*own, *more, "--output", "made")
    D, Y = (np.load(folder / f"{name}.npy").astype(np.float32) for name in "DY")
    lam = float(f"{0.2 * np.quantile(np.abs(Y.astype(float) @ D).max(1), 0.9):.3g}")
    assert f"lam = {lam:g}, 0.2 of the lam at which nine codes in ten are 0" in err
    assert status == 0 and f"solving 40 LASSO problems, lam = {lam:g}\n" in err
    assert load(folder / "made" / "config.toml", {}).layers[0].layer.lam == lam
    X = np.load(folder / "made" / "codes.npz")["X"]
    expected = ur.pursuit.lasso_batch(D, Y, lam)
    assert f"{np.count_nonzero(X) / 40:.1f} nonzeros on average" in err
    np.testing.assert_array_equal(X, expected.x)
    status, _, err = run(*own, *more, "--output", "made", "--resume")
    assert status == 0 and "solving" not in err


@pytest.mark.slow
def test_a_calibrated_start_is_good_where_the_unit_steps_of_theory_expand(tmp_path):
    """Atoms of low frequencies: no step size near 1 is short enough for the weights of theory."""
    rng, k = np.random.default_rng(0), np.arange(1, 12)
    waves = np.cos(np.pi * np.outer(np.arange(24) + 0.5, k) / 24) / k**1.5
    D, Y = waves @ rng.normal(size=(11, 48)), (waves @ rng.normal(size=(11, 200))).T
    D /= np.linalg.norm(D, axis=0)
    for name, array in {"D": D, "Y": Y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    flags = dict(start="calibrated", codes="lasso", loss="log_nmse", output=str(tmp_path))
    files = {n: str(tmp_path / f"{f}.npy") for n, f in (("dictionary", "D"), ("signals", "Y"))}
    ready = prepared(None, flags | files, lambda message: None)
    Y, X = ready.tested_on

    def error(layer, params):
        return ur.metrics.nmse(jax.vmap(layer.apply, (None, None, 0))(params, ready.D, Y), X)

    ista = ur.layers.ista(16, lam=ready.model.lam)
    assert error(ready.model, ready.params) < error(ista, ista.init(None, ready.D)) - 1


@pytest.mark.few(1)
@pytest.mark.parametrize("signals", ["chain_signals.npz", "planted"])
def test_the_layers_of_a_chain_start_on_the_codes_of_the_layer_before(folder, signals):
    text = CHAIN.replace("chain_signals.npz", signals).replace("depth = 2\nsup", START)
    (folder / f"{signals}.toml").write_text(text)
    ready = prepared(folder / f"{signals}.toml", {}, lambda message: None)
    ready.model.check(ready.params, ready.D)
    Y, Xs = ready.tested_on
    assert [X.shape[1] for X in Xs] == [12, 12, 14] and len(Y) == len(Xs[0])
    for D, before, X in zip(ready.D, (Y, *Xs), Xs):
        np.testing.assert_allclose(before, np.asarray(X) @ np.asarray(D).T, atol=1e-5)


def test_a_chain_trains_on_signals_without_codes(folder):
    text = CHAIN.replace("chain_signals.npz", "Y.npy").replace("[training]", "[training]\n" + LASSO)
    (folder / "unknown.toml").write_text(text.replace('start = "analytic"', ""))
    ready = prepared(folder / "unknown.toml", {}, lambda message: None)
    ready.model.check(ready.params, ready.D)
    text = text.replace('start = "analytic"', 'start = "calibrated"')
    (folder / "unknown_too.toml").write_text(text)
    told = []
    calibrated = prepared(folder / "unknown_too.toml", {}, told.append)
    assert "layer 2: calibrating on 28 signals, by the loss: their codes are not known" in told
    assert not np.array_equal(calibrated.params[1].steps.theta, ready.params[1].steps.theta)
    assert ready.tested_on[1] is None and ready.sample(jax.random.key(0))[1] is None


LASSO = 'loss = "lasso"'
START = 'depth = 2\nstart = "calibrated"\nsup'


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


@pytest.mark.parametrize("output", ["codes.npy", "codes.npz", "sparse.npz"])
def test_encode_continues_after_an_interruption(run, saved, folder, streamed, monkeypatch, output):
    """With the bytes of a run without an interruption; other options begin anew."""
    command = ["encode", "weights.npz", "Y.npy", "--output", output]
    command += ["--sparse"] if output == "sparse.npz" else []
    assert run(*command)[0] == 0
    monkeypatch.setattr(_partial, "AFTER", -1.0)
    whole, kept = (folder / output).read_bytes(), folder / f".{output}.chunks"
    (folder / output).unlink()
    chunk = _encode._Job.chunk

    def stopped(job, first, signals):
        if first == 32:
            raise KeyboardInterrupt
        return chunk(job, first, signals)

    streamed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(_encode._Job, "chunk", stopped)
        assert run(*command)[0] != 0
    assert sorted(path.name for path in kept.iterdir()) == ["0.npz", "16.npz", "job"]
    assert streamed == [16, 16] and not (folder / output).exists()
    assert run(*command)[0] == 0
    assert streamed == [16, 16, 8] and not kept.exists()
    assert (folder / output).read_bytes() == whole
    with monkeypatch.context() as patch:
        patch.setattr(_encode._Job, "chunk", stopped)
        assert run(*command)[0] != 0
    Y = np.load(folder / "Y.npy")
    np.save(folder / "Y.npy", Y[:33])
    streamed.clear()
    assert run(*command)[0] == 0 and streamed == [16, 16, 1]
    np.save(folder / "Y.npy", Y)
    (folder / output).unlink()
