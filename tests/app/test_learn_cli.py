"""`unrolled learn` in process: its files, going on after an interruption, and what it refuses."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_line import strict_json

from unrolled import dictionary_learning, plots, theory
from unrolled._base.files import claimed
from unrolled.app.cli import main
from unrolled.app.commands import _learn
from unrolled.vision import datasets

pytestmark = pytest.mark.usefixtures("float32_by_default")
RNG = np.random.default_rng(0)
SIGNALS = RNG.normal(size=(90, 9)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "Y.npy", SIGNALS)
    return tmp_path / "Y.npy"


def batches(size=30):
    return [SIGNALS[first : first + size] for first in range(0, len(SIGNALS), size)]


@pytest.mark.slow  # the pictures and the linear programs
def test_it_writes_the_dictionary_and_a_report_with_its_picture(path, capsys):
    folder = path.parent / "learned"
    flags = ["--atoms", "12", "--batch", "30", "--lam", "0.5", "--output", str(folder), "--json"]
    assert main(["learn", str(path), *flags]) == 0
    data = strict_json(capsys.readouterr().out)
    D = np.load(folder / "D.npy")
    found = dictionary_learning.online(batches(), 12, lam=0.5)
    assert np.array_equal(D, found.D) and data["objective"] == found.objective
    with jax.enable_x64(True):
        mu = float(theory.mutual_coherence(np.asarray(D, float)))
    assert data["certificate"]["mutual_coherence"] == pytest.approx(mu, abs=1e-9)
    report = (folder / "report.md").read_text()
    assert "![the atoms, as pictures](atoms.png)" in report and "Welch bound" in report
    assert "![the use of the atoms by 90 signals](atoms-2.png)" in report
    assert "![the objective of every step](atoms-3.png)" in report
    for name in ("atoms.png", "atoms-2.png", "atoms-3.png"):
        assert datasets.read_image(folder / name).size > 1000
    assert len((folder / "atoms.csv").read_text().splitlines()) == 4
    assert not (folder / "checkpoint.npz").exists()


@pytest.mark.slow
def test_the_same_command_goes_on(path, monkeypatch):
    folder = path.parent / "learned"
    flags = ["--atoms", "12", "--batch", "30", "--lam", "0.5", "--output", str(folder)]
    command = ["learn", str(path), *flags, "--no-certificate"]
    monkeypatch.setattr("unrolled.dictionary_learning._learning._PERIOD", 0.0)
    rows, read = datasets.read_rows, []

    def failing(array, path, first, n):
        read.append(first)
        if len(read) == 3:
            raise KeyboardInterrupt
        return rows(array, path, first, n)

    monkeypatch.setattr(datasets, "read_rows", failing)
    assert main(command) == 130 and (folder / "checkpoint.npz").exists()
    monkeypatch.setattr(datasets, "read_rows", rows)
    assert main(command) == 0
    assert np.array_equal(
        np.load(folder / "D.npy"), dictionary_learning.online(batches(), 12, lam=0.5).D
    )


@pytest.mark.slow
def test_a_folder_has_one_process(path, capsys):
    folder = path.parent / "learned"
    folder.mkdir()
    flags = ["--atoms", "12", "--batch", "30", "--lam", "0.5", "--output", str(folder)]
    command = ["learn", str(path), *flags, "--no-certificate"]
    with claimed(folder / "lock", stays=True) as holder:
        assert holder is None and main(command) == 2
    message = f"learned: in use by process {os.getpid()}; try another --output"
    assert message in capsys.readouterr().err and [*folder.iterdir()] == [folder / "lock"]
    assert main(command) == 0  # the process is gone; its lock, as that of a killed one, is not
    assert not {"lock", "checkpoint.npz"} & set(os.listdir(folder))


@pytest.mark.parametrize("method", ["ksvd", "online"])
def test_what_is_refused_leaves_no_folder(path, method, capsys):
    Y = SIGNALS.copy()
    Y[5, 2] = np.nan
    np.save(path, Y)
    flags = ["--method", method, "--atoms", "12", "--output", str(path.parent / "learned")]
    flags += ["--sparsity", "2"] if method == "ksvd" else []
    assert main(["learn", str(path), *flags]) == 2
    assert "NaN" in capsys.readouterr().err and os.listdir(path.parent) == ["Y.npy"]


def test_a_row_that_float32_loses_has_its_number_in_the_file(path):
    Y = np.where(np.arange(90)[:, None] == 70, 1e-40, SIGNALS.astype(float))
    batches = _learn._batches(Y, path, 30, 2)
    assert [len(next(batches)) for _ in range(2)] == [30, 30]
    with pytest.raises(ValueError, match=r"Y.npy: leaves the range of float32 \(in row 70\)"):
        next(batches)


def test_a_figure_that_fails_loses_no_table(path, monkeypatch, capsys):
    """The dictionary and the report are there, and what the same command goes on from."""

    def no_figure(*args, **options):
        raise ValueError("no figure")

    monkeypatch.setattr(plots, "atoms", no_figure)
    folder = path.parent / "learned"
    flags = ["--atoms", "12", "--method", "ksvd", "--sparsity", "2", "--sweeps", "2"]
    command = ["learn", str(path), *flags, "--output", str(folder), "--no-certificate"]
    assert main(command) == 2 and capsys.readouterr().err.endswith("unrolled: no figure\n")
    written = {"D.npy", "atoms.csv", "results.json", "report.md"}
    assert written <= {file.name for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ksvd", "mod"])
def test_a_method_with_a_given_sparsity(path, method, capsys):
    folder = path.parent / "learned"
    flags = ["--atoms", "12", "--method", method, "--sparsity", "2", "--sweeps", "2"]
    command = ["learn", str(path), *flags, "--output", str(folder), "--no-certificate"]
    assert main(command) == 0
    assert f"{method}: 12 atoms from 90 signals" in capsys.readouterr().out
    assert "![the atoms, as pictures](atoms.png)" in (folder / "report.md").read_text()
    assert (folder / "atoms.png").exists()
    found = getattr(dictionary_learning, method)(SIGNALS, 12, sparsity=2, sweeps=2)
    assert np.array_equal(np.load(folder / "D.npy"), found.D)


@pytest.mark.slow
def test_the_method_that_finds_atoms_again(path, capsys):
    folder = path.parent / "learned"
    flags = ["--atoms", "12", "--method", "recover", "--lam", "0.5", "--steps", "4"]
    command = ["learn", str(path), *flags, "--nonnegative", "--output", str(folder)]
    assert main([*command, "--no-certificate"]) == 0
    assert "recover: 12 atoms from 90 signals" in capsys.readouterr().out
    assert "nonnegative" in (folder / "report.md").read_text()
    found = dictionary_learning.recover(SIGNALS, 12, lam=0.5, steps=4, nonnegative=True)
    assert np.array_equal(np.load(folder / "D.npy"), found.D)


@pytest.mark.parametrize("method", ["online", "recover"])
def test_the_last_tenth_chooses_the_atoms(path, method, monkeypatch):
    """Without a figure, which costs most of the time; `online` codes by OMP."""
    monkeypatch.setattr(_learn, "_sections", lambda *args: [])
    flags = ["--atoms", "12", "--method", method, "--patience", "2", "--batch", "27"]
    flags += ["--sparsity", "2", "--sweeps", "3"] if method == "online" else ["--lam", "0.5"]
    flags += ["--evaluate-every", "2", "--steps", "6"] if method == "recover" else []
    command = ["learn", str(path), *flags, "--output", str(path.parent / "learned")]
    assert main([*command, "--no-certificate"]) == 0
    train, options = SIGNALS[:81], {"validation": SIGNALS[81:], "patience": 2}
    if method == "online":
        stream = np.split(train, 3) * 3
        found = dictionary_learning.online(stream, 12, sparsity=2, evaluate_every=3, **options)
    else:
        options |= dict(lam=0.5, batch=27, steps=6, evaluate_every=2)
        found = dictionary_learning.recover(train, 12, **options)
    assert np.array_equal(np.load(path.parent / "learned" / "D.npy"), found.D)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--atoms", "0"], "--atoms must be at least 1, got 0"),
        (["--atoms", "91"], "91 atoms for 90 signals; expected at most as many"),
        (["--atoms", "9", "--method", "ksvd"], "--method ksvd needs --sparsity"),
        (["--atoms", "9", "--sparsity", "2", "--lam", "1"], "one of lam and sparsity, got lam=1.0"),
        (["--atoms", "9", "--method", "recover", "--sparsity", "2"], "--sparsity does not go with"),
        (["--atoms", "9", "--method", "mod", "--patience", "2"], "--patience does not go with"),
        (["--atoms", "9", "--evaluate-every", "2"], "--evaluate-every needs --patience"),
        (["--atoms", "9", "--patience", "0"], "--patience must be at least 1, got 0"),
        (["--atoms", "82", "--patience", "1"], "82 atoms for 81 signals; expected at most as many"),
        (["--atoms", "9", "--method", "mod", "--lam", "1"], "--lam does not go with --method mod"),
        (["--atoms", "9", "--method", "mod", "--batch", "9"], "--batch does not go with --method"),
        (["--atoms", "9", "--steps", "9"], "--steps does not go with --method online"),
        (["--atoms", "9", "--method", "recover", "--sweeps", "2"], "--sweeps does not go with"),
        (["--atoms", "9", "--method", "recover", "--steps", "0"], "--steps must be at least 1"),
        (["--atoms", "9", "--shape", "3"], "--shape must be HxW, such as 8x8, got '3'"),
        (["--atoms", "9", "--shape", "2x4"], "--shape 2x4 does not have the 9 entries"),
        (["--atoms", "9", "--lam", "-1"], "lam must be positive"),
    ],
)
def test_what_it_refuses(path, flags, message, capsys):
    assert main(["learn", str(path), *flags, "--output", str(path.parent / "learned")]) == 2
    assert message in capsys.readouterr().err


def test_signals_that_say_nothing_are_refused(tmp_path, capsys):
    path = tmp_path / "Y.npy"
    np.save(path, np.zeros((40, 9)))
    assert main(["learn", str(path), "--atoms", "5", "--output", str(tmp_path / "learned")]) == 2
    assert "Y.npy: the signals are all zero" in capsys.readouterr().err


def test_codes_of_a_stream_are_those_of_its_first_signals(path, monkeypatch):
    monkeypatch.setattr(_learn, "_FIRST", 7)
    D = RNG.normal(size=(9, 12)).astype(np.float32)
    D /= np.linalg.norm(D, axis=0)
    learned = SimpleNamespace(X=None, D=D)
    options = {"lam": 0.5, "nonnegative": False}
    found = _learn._codes(SimpleNamespace(signals=path), SIGNALS, learned, options)
    residual = SIGNALS[:7] - found @ D.T  # which no atom fits better than lam, but for the gap
    assert found.shape == (7, 12) and np.abs(residual @ D).max() < 0.52


def test_atoms_are_square_pictures_where_they_have_a_square_number_of_entries():
    assert _learn._shape(None, 16) == (4, 4) and _learn._shape(None, 18) == (1, 18)


def test_signals_may_begin_with_zeros(tmp_path, capsys, monkeypatch):
    """Of a file that is read in parts; 41 atoms are refused once some part says something."""
    monkeypatch.setattr(_learn, "_FIRST", 8)
    np.save(tmp_path / "Y.npy", np.pad(SIGNALS[:10], ((30, 0), (0, 0))))
    flags = ["--atoms", "41", "--output", str(tmp_path / "learned")]
    assert main(["learn", str(tmp_path / "Y.npy"), *flags]) == 2
    assert "41" in (said := capsys.readouterr().err) and "all zero" not in said


def test_it_does_not_write_over_its_signals(tmp_path, capsys):
    signals = tmp_path / "D.npy"
    np.save(signals, SIGNALS)
    assert main(["learn", str(signals), "--atoms", "9", "--output", str(tmp_path)]) == 2
    assert "D.npy: is read by this command; try another --output" in capsys.readouterr().err
    assert np.array_equal(np.load(signals), SIGNALS)
