"""The command line in process: what it prints and writes, and one line for what a user can mend."""

import csv
import gc
import io
import os
import re
import runpy
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
from command_line import AS_USERS, devices, strict_json
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import unrolled
from unrolled import dictionaries, plots, pursuit, theory
from unrolled._base.files import claimed
from unrolled.app import cli, studies
from unrolled.app.cli import main
from unrolled.app.commands import _certify, _compare, _doctor
from unrolled.app.commands._certify import ProvedCodes, signals_of_class
from unrolled.app.commands._console import cache_folder, kept_programs, plain_warnings
from unrolled.app.commands._inputs import read_dictionary
from unrolled.app.commands._report import Section, write_report

QUICK = ("--quick", "--steps", "3", "--depth", "3")
pytestmark = pytest.mark.usefixtures("float32_by_default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Input files: a dictionary of 12 x 24, its signals, frames, pictures, and broken files."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    D = rng.normal(size=(12, 24))
    D /= np.linalg.norm(D, axis=0)
    X = rng.normal(size=(60, 24)) * (rng.random((60, 24)) < 0.1)
    Y = X @ D.T
    arrays = {
        "D": D,
        "twice": 2 * D,
        "Y": Y,
        "columns": Y.T,
        "one": Y[:1],
        "longer": np.hstack([Y, Y]),
        "faint": 1e-40 * Y,
    }
    with jax.enable_x64(True):
        arrays["paley"] = np.asarray(dictionaries.paley(13))
        arrays["H"] = np.asarray(dictionaries.identity_hadamard(32))
        arrays["T"] = np.pad(
            np.asarray(dictionaries.transversal(jax.random.key(0), 4, 13, 40)), ((0, 12), (0, 0))
        )
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "I.npy", np.eye(24))
    np.savez(folder / "YX.npz", Y=Y, X=X)
    np.savez(folder / "chain.npz", Y=Y, X_1=X, X_2=X)
    np.savez(folder / "faint.npz", Y=Y, X_1=X, X_2=1e-40 * X)
    np.savez(folder / "YX_wrong.npz", Y=Y, X=X[:, 1:])
    (folder / "text.npy").write_text("not an array\n")
    (folder / "text.png").write_text("not a picture\n")
    for name, shape in {"first": (64, 72), "second": (72, 64), "tiny": (7, 20)}.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


BESIDE = {
    "fista,omp": ("--sparsity", 2, "--dictionary", "D.npy", "--signals", "YX.npz"),
    "fista,project": ("--sparsity", 2, "--dictionary", "D.npy", "I.npy", "--signals", "chain.npz"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", BESIDE)
def test_pursuits_stand_beside_layers(run, folder, tmp_path, method):
    """With their last codes alone: of known codes and of a chain."""
    options = ("--depth", 2, "--steps", 0, "--output", tmp_path)
    status, out, err = run("compare", "--method", method, *BESIDE[method], *options)
    assert status == 0, err
    name, [table] = method.split(",")[1], tmp_path.glob("*.csv")
    with table.open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == name]
    assert [row["step"] for row in rows] == [""] * (1 + (name == "project"))
    assert re.search(rf"^(\d +)?{name} +[-\d]", out, re.M)
    assert f"\n{name}: " in (tmp_path / "report.md").read_text()
    if name == "omp":
        D = np.load(folder / "D.npy").astype(np.float32)
        with np.load(folder / "YX.npz") as archive:
            X, Y = archive["X"][48:], archive["Y"][48:].astype(np.float32)
        codes = jax.vmap(lambda y: pursuit.omp(D, y, sparsity=2))(Y).x
        expected = 10 * np.log10(((codes - X) ** 2).sum() / (X**2).sum())
        assert float(rows[0]["nmse"]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_a_pursuit_of_ones_own_is_a_method(run, folder, tmp_path):
    def halved(D, y, theta):
        return pursuit.threshold(D, y / 2, theta)

    pursuit.register(halved, aims=False)
    try:
        options = ("--theta", 0.1, "--dictionary", "D.npy", "Y.npy", "--output", tmp_path / "X.npy")
        status, _, err = run("encode", "--method", "halved", *options)
        assert status == 0, err
        options = ("--method", "ista,halved", "--theta", 0.1, "--depth", 2, "--steps", 0)
        files = ("--dictionary", "D.npy", "--signals", "Y.npy", "--output", tmp_path / "table")
        status, out, err = run("compare", *options, *files)
        assert status == 0 and re.search(r"^halved +\d", out, re.M), err
    finally:
        del pursuit.PURSUITS["halved"]
    D, Y, X = np.load(folder / "D.npy"), np.load(folder / "Y.npy"), np.load(tmp_path / "X.npy")
    half = Y @ D / 2
    expected = np.sign(half) * np.maximum(np.abs(half) - 0.1, 0)
    np.testing.assert_allclose(X, expected, atol=1e-5)


@pytest.mark.parametrize(
    "command", ["compare", "certify", "learn", "recommend", "sae", "train", "encode", "doctor"]
)
def test_help_shows_an_example_and_the_shared_options(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(rf"examples?:\n  unrolled {command} ", shown)
    assert all(option in shown for option in ("--json", "--seed", "--import MODULE"))


def test_every_argument_of_every_command_has_a_help():
    """Most have it in the docstring of the command, by their name."""
    commands = next(action for action in cli._parser()._actions if action.choices)
    without = [
        (name, action.dest)
        for name, parser in commands.choices.items()
        for action in parser._actions
        if not action.help
    ]
    assert commands.choices and not without


def test_no_command_prints_the_help(run):
    status, out, _ = run()
    commands = "{compare,certify,learn,recommend,sae,train,encode,export,experiment,doctor}"
    assert status == 2 and commands in out


def test_an_unknown_option_is_refused(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("certify", "paley.npy", "--colour")
    assert stopped.value.code == 2 and "--colour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text"), [("--help", "certify"), ("--version", f"unrolled {unrolled.__version__}\n")]
)
def test_help_and_version_ask_for_no_device(option, text, capsys, monkeypatch):
    def devices():
        raise AssertionError("asked for a device")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(SystemExit) as stopped:
        main([option])
    assert stopped.value.code == 0 and text in capsys.readouterr().out


BROKEN_MODULES = {
    "broken_syntax": ("def f(:\n", "SyntaxError"),
    "broken_value": ("raise ValueError('two\\nlines')\n", "ValueError: two; lines"),
    "broken_exit": ("raise SystemExit(0)\n", "SystemExit: 0"),
    "broken_layer": (
        "import unrolled as ur\nclass alista(ur.layers.Layer):\n"
        "    def init(self, key, D): ...\n    def step(self, shared, p, D, y, state): ...\n",
        "TypeError: .*alista",
    ),
}


@pytest.mark.parametrize("module", [*BROKEN_MODULES, "not_there"])
def test_an_import_that_fails_is_one_line(module, capsys, tmp_path, monkeypatch):
    text, expected = BROKEN_MODULES.get(module, ("", "ModuleNotFoundError: No module named"))
    if text:
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    status, shown = main(["doctor", "--import", "json", "--import", module]), capsys.readouterr()
    assert status == 2 and not shown.out
    assert re.fullmatch(rf"unrolled: --import {module}: {expected}.*\n", shown.err), shown.err


def test_an_import_without_a_module_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--import"])
    assert stopped.value.code == 2
    assert "unrolled doctor: error: argument --import: expected one" in capsys.readouterr().err


# The cache of compiled programs


@pytest.fixture
def home_cache(monkeypatch, tmp_path):
    """The cache of a user who has configured none in JAX."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "unrolled"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()  # JAX looks at its configuration once


def compiled(number):
    """Compile a program that is new to this process."""
    return jax.jit(lambda x: x + number)(1.0)


CACHE = [name for name in jax.config.values if "cache" in name]


def cache_options():
    return {name: jax.config.values[name] for name in CACHE}


def test_a_command_keeps_what_it_compiles(home_cache):
    """In a folder of the user's own, and JAX is configured as before when it ends."""
    before = cache_options()
    with kept_programs(False) as message:
        compiled(0.125)
    assert str(home_cache) in message and "--no-cache" in message
    assert list(home_cache.glob("*-cache")) and cache_options() == before
    assert os.name == "nt" or home_cache.stat().st_mode & 0o077 == 0


def test_a_torn_program_is_compiled_again(home_cache):
    with kept_programs(False):
        assert compiled(0.375) == 1.375
        for path in home_cache.glob("*-cache"):
            path.write_bytes(path.read_bytes()[:40])
        with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
            assert compiled(0.375) == 1.375


def test_no_cache_keeps_nothing(home_cache, tmp_path):
    before = cache_options()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with kept_programs(True) as message:
        compiled(0.625)
    jax.config.update("jax_compilation_cache_dir", None)
    assert not message and not list(tmp_path.iterdir()) and cache_options() == before


def test_a_cache_that_is_configured_in_jax_stays(home_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    before = cache_options()
    with kept_programs(False) as message:
        assert not message and cache_options() == before
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with kept_programs(False) as message:
            compiled(0.875)
        assert not message and not home_cache.exists()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_without_a_folder_for_it_nothing_is_kept(home_cache):
    home_cache.write_text("a file of that name")
    with kept_programs(False) as message:
        assert compiled(0.1875) == 1.1875
    assert message.startswith("compiled programs are not kept: ") and str(home_cache) in message


@pytest.mark.parametrize(
    "platform, folder",
    {"linux": ".cache", "darwin": "Library/Caches", "win32": ""}.items(),
)
def test_the_cache_is_where_the_platform_has_caches(monkeypatch, platform, folder):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    for name in ("", "relative"):  # neither is a folder by the standard
        monkeypatch.setenv("XDG_CACHE_HOME", name)
        assert cache_folder().relative_to(Path.home() / folder).parts[0] == "unrolled"


@pytest.mark.slow
def test_a_command_says_where_its_programs_are(run, home_cache):
    """On standard error, so that the result is as without; not before a refusal."""
    status, out, err = run("certify", "I.npy", "--json")
    assert status == 0 and strict_json(out) and str(home_cache) in err.splitlines()[-1]
    status, again, err = run("certify", "I.npy", "--json", "--no-cache")
    assert status == 0 and again == out and str(home_cache) not in err
    assert run("certify", "gone.npy")[2].count("\n") == 1


def test_the_module_is_the_command_where_it_is_run_and_not_where_it_is_imported(
    monkeypatch, capsys
):
    path = Path(unrolled.__file__).with_name("__main__.py")
    monkeypatch.setattr(sys, "argv", ["unrolled", "--version"])
    assert callable(runpy.run_path(path)["run"]) and not capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(path, run_name="__main__")
    assert unrolled.__version__ in capsys.readouterr().out


# recommend


@pytest.mark.slow
def test_recommend_prints_the_table_and_code_that_runs(run, folder, tmp_path):
    figure = tmp_path / "costs.png"
    call = "recommend", "D.npy", "Y.npy", "--lam", "0.1", "--gap", "1e-2", "--figure", figure
    status, out, _ = run(*call, "--json", "--signals", "9")
    found = strict_json(out)
    assert status == 0 and "9 signals" in found["case"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    within = [row for row in found["rows"] if row["mean"] <= found["gap"] == 1e-2]
    assert min(within, key=lambda row: row["microseconds"])["method"] == found["method"]
    D, Y = (np.load(folder / f"{name}.npy").astype("f") for name in "DY")
    codes = eval(found["code"], {"ur": unrolled, "D": D, "Y": Y})
    assert np.shape(getattr(codes, "x", codes)) == (len(Y), D.shape[1])
    status, out, _ = run(*call[:3], "--lam", "0.1", "--output", tmp_path / "advice")
    page = (tmp_path / "advice" / "report.html").read_text()
    assert "A method for your signals" in page and "lasso_batch" in page
    assert status == 0 and "| method | K | microseconds | mean | median | worst |" in out
    assert out.splitlines()[-1].startswith("ur.")


# sae


@pytest.mark.slow
def test_sae_prints_the_table_of_its_codes(run, tmp_path):
    rng, figure = np.random.default_rng(0), tmp_path / "codes.png"
    W = rng.normal(size=(8, 16)).astype("f")
    weights = {"W_enc": W, "b_enc": np.zeros(16, "f"), "W_dec": W.T, "b_dec": np.zeros(8, "f")}
    np.savez(tmp_path / "sae.npz", **weights)
    np.save(tmp_path / "A.npy", rng.normal(size=(300, 8)).astype(np.float16))
    call = "sae", tmp_path / "sae.npz", tmp_path / "A.npy", "--kind", "topk", "--k", "2"
    status, out, _ = run(*call, "--steps", "0", "--json", "--figure", figure)
    found = strict_json(out)
    assert status == 0 and figure.read_bytes().startswith(b"\x89PNG")
    assert found["rows"][0]["method"] == "encoder" and found["rows"][0]["nonzeros"] <= 2
    status, out, _ = run(*call, "--steps", "0")
    assert status == 0 and "| method | nonzeros | unexplained | microseconds |" in out


# doctor


@pytest.mark.slow
def test_doctor(run):
    status, out, err = run("doctor")
    assert status == 0, err
    found = dict(re.split(r" {2,}", line, maxsplit=1) for line in out.splitlines() if "  " in line)
    assert found["jax"] == jax.__version__
    assert {"JAX_PLATFORMS", "memory", "compilation cache"} <= set(found)
    assert re.search("certified check .*passed", out)
    assert re.fullmatch(r"cpu:0: \d+ GFLOP/s in .*two runs agree to the bit", found["device 0"])


@pytest.mark.slow
def test_doctor_measures_every_device(tmp_path):
    """From another folder, on two devices of one processor: equal bits, and products in float32."""
    environment = os.environ | AS_USERS | devices(2)
    environment["PYTHONPATH"] = str(Path(unrolled.__file__).parents[1])
    command = [sys.executable, "-m", "unrolled", "doctor", "--json", "--no-cache"]
    options = dict(cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    done = subprocess.run(command, **options)
    measured = strict_json(done.stdout)["measured"]
    assert not list(tmp_path.iterdir())
    assert [device["device"] for device in measured] == ["cpu:0", "cpu:1"]
    for device in measured:
        assert device["repeats"] and device["as_first"] and device["step_gflops"] > 0
        # 1024 products of random signs: sqrt(1024) roundings at most, each of 2^-24.
        assert 0 < device["highest_error"] <= device["default_error"] < 32 * 2.0**-24


def test_doctor_says_where_runs_differ():
    device = _doctor.Measured("gpu:1", 1.0, 1.0, 3e-4, 1e-7, repeats=False, as_first=False)
    assert "off by 3e-04 by default" in device.text()
    assert device.text().endswith(
        "two runs DIFFER: see the guide on devices, and not as on device 0"
    )


def test_doctor_as_json(run, monkeypatch):
    for name, found in {"_measured": list, "_certified_error": lambda: 1e-7}.items():
        monkeypatch.setattr(_doctor, name, found)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    status, out, _ = run("doctor", "--json")
    found = strict_json(out)
    assert found["JAX_PLATFORMS"] == "cpu"
    assert status == 0 and found["numpy"] == np.__version__ and found["float64"] == "off"
    assert found["certified check"].startswith("passed") and found["measured"] == []
    monkeypatch.setattr(_doctor, "_certified_error", lambda: np.nan)
    status, out, err = run("doctor", "--json")
    assert (status, out) == (2, "") and "doctor: the certified check failed on" in err


def test_doctor_knows_the_memory_and_whether_the_cache_can_be_written(tmp_path, folder):
    assert re.fullmatch(r"[\d.]+ GiB of the (host|device)", _doctor._memory())
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(folder / "D.npy"))
        assert re.search("D.npy, which cannot be written: nothing will be kept", _doctor._cache())
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        assert _doctor._cache() == f"{tmp_path}, writable"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_no_device_is_one_line(run, monkeypatch):
    """A missing plugin is a bare assertion in jax, an unknown name a RuntimeError."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for error, reason in (
        (AssertionError(), "its plugin is not installed"),
        (RuntimeError("not in\nthe list"), "not in"),
    ):

        def devices(error=error):
            raise error

        monkeypatch.setattr(jax, "devices", devices)
        status, out, err = run("doctor")
        told = f"no device for JAX_PLATFORMS=cuda: {reason}; try JAX_PLATFORMS=cpu"
        assert (status, out, err) == (2, "", f"unrolled: {told}\n")


# certify


def test_certify_as_text(run):
    status, out, _ = run("certify", "paley.npy")
    assert status == 0
    lines = {line[:24].strip(): line[24:].split() for line in out.splitlines()[4:]}
    assert "7 x 14" in out and f"{1 / np.sqrt(13):.6f}" in out
    assert "2 by mu, 2 by babel, 2 by mu~" in out
    assert "fewer than 4.606 atoms" in out  # 1 + sqrt(13)
    assert [float(v) for v in lines["mu W"]] == pytest.approx([1 / np.sqrt(13)] * 3, rel=1e-5)
    assert lines["largest sparsity"] == ["2"] * 3 and lines["holds"] == ["True"] * 3
    steps = list(map(int, lines["steps to 1e-06"]))
    assert min(steps) > 0
    # ceil(log_3 7) layers, and one per step
    assert f"has {2 + steps[-1]} convolutional layers" in out


@pytest.mark.slow
def test_certify_covers_an_activation_and_the_smallest_entries(run):
    arguments = ("certify", "D.npy", "--sparsity", 1, "--noise", 1e-4, "--activation", "softplus")
    found = strict_json(run(*arguments, "--scale", 1e5, "--entries", "--json")[1])
    assert found["activation"]["theorem"] == "10" and found["activation"]["holds"] is True
    floors = [found["weights"][kind]["floor"] for kind in ("least entries", "minimax")]
    assert floors[0] < floors[1] < found["activation"]["floor"]
    assert "no theorem applies" in run("certify", "D.npy", "--activation", "selu")[1]


def test_certify_runs_on_codes_or_on_dictionaries(run, monkeypatch):
    called = []
    for name in ("_run_on_codes", "_run_on_dictionaries"):
        monkeypatch.setattr(_certify, name, lambda *_, name=name: called.append(name))
    assert run("certify", "D.npy", "--signals", "Y.npy", "--code", "X.npy")[0] == 0
    assert run("certify", "D.npy")[0] == 0
    assert called == ["_run_on_codes", "_run_on_dictionaries"]


def test_certify_asks_which_signals_are_of_the_class_of_its_dictionary(run, folder, monkeypatch):
    layer = SimpleNamespace(table=SimpleNamespace(rows={"minimax": SimpleNamespace(sparsity=2)}))
    report = SimpleNamespace(layers=[layer], to_dict=dict, text=lambda: "", figure=None)
    asked = []

    class Told(NamedTuple):
        inside: int = 3

        def text(self):
            return "told"

    monkeypatch.setattr(_certify.studies, "dictionary_report", lambda *_, **__: report)
    monkeypatch.setattr(_certify, "signals_of_class", lambda *given: asked.append(given) or Told())
    status, out, err = run("certify", "D.npy", "--signals", "Y.npy", "--bound", "3", "--json")
    assert status == 0 and strict_json(out) == {"class_of_signals": {"inside": 3}}, err
    ((D, *rest),) = asked
    np.testing.assert_allclose(D, np.load(folder / "D.npy"), atol=1e-6)
    assert [str(rest[0]), *rest[1:]] == ["Y.npy", 2, 3.0, 0.0]


@pytest.mark.slow
def test_certify_reports_on_a_chain(run, tmp_path):
    status, out, _ = run(
        "certify", "H.npy", "T.npy", "--sparsity", "3,2", "--tolerance", "1e-4", "--json"
    )
    found = strict_json(out)
    chain = found["chain"]
    assert status == 0 and [layer["d"] for layer in found["layers"]] == [64, 40]
    assert chain["sparsities"] == [3, 2] and chain["uniqueness"]["mu"]["unique"] == [True, True]
    assert chain["stability"]["holds"] and chain["plan"]["holds"]
    assert chain["plan"]["errors"][-1] <= 1e-4 and min(chain["plan"]["depths"]) >= 1
    picture = tmp_path / "grams.png"
    out = run("certify", "H.npy", "T.npy", "--sparsity", "9,9", "--figure", picture)[1]
    assert "chain" in out and "inf" in out and "False" in out
    with Image.open(picture) as image:
        assert image.size[0] > 1000


def test_certify_says_how_many_drawn_codes_are_proved(run, tmp_path):
    arguments = ("certify", "paley.npy", "--sparsity", 2, "--sampled", 50)
    status, out, err = run(*arguments, "--output", tmp_path / "report")
    assert status == 0 and "signal by signal: 50 codes" in err
    assert "| worst case | every code | s = 2 | s = 2 |" in out and "3-norm, s = 2" in out
    html = (tmp_path / "report" / "report.html").read_text()
    assert "Signal by signal" in html and "the ratios of the supports" in html
    drawn = strict_json(run(*arguments, "--json", "--seed", 1)[1])["drawn"]
    assert drawn["draws"] == 50 and drawn["worst"] == {"closed form": 2, "3-norm": 2}
    # What the worst case certifies is proved of every code; one schedule is that of other codes.
    proved = {(row["weights"], row["steps"]): row["proved"] for row in drawn["rows"]}
    schedule = [proved.pop((name, "alista, one schedule")) for name in drawn["worst"]]
    assert set(proved.values()) == {50} and min(schedule) > 40
    assert "drawn" not in strict_json(run("certify", "paley.npy", "--json")[1])


@pytest.mark.slow
def test_certify_normalizes_on_request(run):
    status, out, _ = run("certify", "twice.npy", "--normalize", "--json")
    plain = strict_json(run("certify", "D.npy", "--json")[1])
    found = strict_json(out)
    assert status == 0
    assert found["mutual_coherence"] == pytest.approx(plain["mutual_coherence"], rel=1e-12)
    assert found["weights"]["closed form"]["mu_W"] == pytest.approx(
        plain["weights"]["closed form"]["mu_W"], rel=1e-9
    )


@pytest.mark.slow
def test_certify_looks_in_the_numerical_range_and_says_so(run, tmp_path):
    """The rounding of mean-free atoms in a file is no direction for weights."""
    A = np.random.default_rng(0).normal(size=(8, 16))
    A = (A - A.mean(0)).astype(np.float32)
    np.save(tmp_path / "mean_free.npy", A)
    found = strict_json(run("certify", tmp_path / "mean_free.npy", "--normalize", "--json")[1])
    assert found["rank"] == 7 and max(w["norm_W"] for w in found["weights"].values()) < 100
    assert (
        "8 x 16 of numerical rank 7" in run("certify", tmp_path / "mean_free.npy", "--normalize")[1]
    )
    out = run("certify", "D.npy")[1]
    assert "rank" not in out and strict_json(run("certify", "D.npy", "--json")[1])["rank"] == 12


@pytest.mark.slow
def test_an_archive_with_a_flipped_bit_is_no_traceback(run, tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, D=np.eye(2))
    whole = path.read_bytes()
    for place in range(whole.index(b"PK\x01\x02"), len(whole), 9):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        status, _, error = run("certify", path)
        assert status == 0 or (status == 2 and error.startswith(f"unrolled: {path}: ")), place


# What a user can mend

REFUSED = {
    "certify gone.npy": "gone.npy: no such file",
    "certify text.npy": "text.npy: not a readable array file",
    "certify first.png": "first.png: expected a .npy or .npz file",
    "certify YX.npz": "'Y', 'X'.*called 'D'",
    "certify twice.npy": r"twice.npy: atoms have norms in \[2, 2\].*\(here --normalize\)",
    "certify D.npy --sparsity 25": "sparsity 25 exceeds the number of atoms 24",
    "certify D.npy --sparsity -1": "sparsity must be at least 0",
    "certify D.npy --sparsity two": "sparsity must be integers with commas between them, got 'two'",
    "certify D.npy paley.npy": r"D_1 has shape \(12, 24\) but D_2 has shape \(7, 14\)",
    "certify D.npy --activation swoosh": "unknown name 'swoosh'",
    "certify D.npy --activation elu --scale 0": "k must be above 0",
    "certify D.npy --scale 2": "--scale needs --activation",
    "certify D.npy --figure D.npy/gram.png": "D.npy: is a file",
    "certify D.npy --figure .": ".: is a folder; expected a file",
    "certify D.npy --figure gram.xyz": "gram.xyz: .xyz is not a format of pictures; expected one",
    "certify D.npy --noise nan": "noise must be non-negative and not NaN",
    "certify D.npy --sampled -1": "sampled must be at least 0, got -1",
    "certify D.npy paley.npy --sampled 9": "--sampled needs one D",
    "certify D.npy --tolerance -1": "certify: tolerance must be non-negative and not NaN",
    "compare --dictionary D.npy --signals faint.npy": "faint.npy: leaves the range of float32 .in "
    "rows .*, where entries become 0 or infinite; try numbers near 1",
    "compare --dictionary D.npy I.npy --signals faint.npz": "faint.npz: leaves the range of float3",
    "learn faint.npy --atoms 4": "faint.npy: leaves the range of float32 .in rows ",
    "recommend gone.npy Y.npy": "gone.npy: no such file",
    "recommend D.npy columns.npy": "columns.npy: .*transpose them",
    "recommend D.npy Y.npy --lam -1": "recommend: lam must be non-negative",
    "recommend D.npy Y.npy --gap 0": "recommend: gap must be positive and finite, got 0",
    "recommend D.npy Y.npy --signals -1": "recommend: signals must be at least 0",
    "recommend D.npy Y.npy --figure gap.xyz": "gap.xyz: .xyz is not a format of pictures",
    "sae gone.npz Y.npy": "gone.npz: no such file",
    "sae D.npy Y.npy": r"D.npy has the suffix '.npy'; expected one of .safetensors, .npz",
    "sae D.npy Y.npy --figure codes.xyz": "codes.xyz: .xyz is not a format of pictures",
    "compare --output D.npy": "D.npy: is a file; expected a folder",
    "compare --dictionary D.npy --method ista,omp,ksvd": "unknown method ksvd; expected some "
    "of ista, fista",
    "compare --dictionary D.npy --method ista,omp --eps 1": "--eps needs a pursuit that has it in",
    "compare --dictionary D.npy --method ": "unknown method",
    "compare --sampled 0": "sampled must be at least 1, got 0",
    "compare --dictionary D.npy --signals Y.npy --predict": "of known codes; these are not",
    "compare --dictionary D.npy --signals Y.npy --sampled 9": "of known codes; these are not",
    "compare --dictionary D.npy I.npy --certify": "--predict are of one dictionary, got a chain",
    "compare --dictionary D.npy --depth 0": "depth must be at least 1, got 0",
    "compare --dictionary D.npy --sparsity 25": "sparsity must be in 1..24, got 25",
    "compare --dictionary gone.npy": "gone.npy: no such file",
    "compare --dictionary .": ".: is a folder; expected a file",
    "compare --dictionary H.npy T.npy --signals Y.npy": "a chain needs one .npz file with signals",
    "compare --signals YX.npz --dictionary D.npy I.npy": "YX.npz: has no codes; "
    "expected entries X_1 to X_2",
    "compare --signals Y.npy": "signals in an array need --dictionary",
    "compare --dictionary D.npy --seed x": "--seed must be an integer, got 'x'",
    "compare --dictionary D.npy --seed 4294967296": r"below 2\^32, got 4294967296",
    "compare --dictionary D.npy --signals columns.npy": r"columns.npy: .*\(12, 60\)"
    ".*transpose them",
    "compare --dictionary D.npy --signals longer.npy": r"longer.npy: .*\(60, 24\); expected "
    r"\(signals, 12\)",
    "compare --dictionary D.npy --signals Y.npy --snr 20 --sparsity 2": "--snr, --sparsity is for "
    "generated codes, not for signals of a file",
    "compare --dictionary D.npy --signals one.npy": "one.npy: expected at least 2 signals, got 1",
    "compare --dictionary D.npy --signals Y.npy YX.npz": "expected one array file with signals, "
    "got 2",
    "compare --dictionary D.npy --signals YX_wrong.npz": r"YX_wrong.npz: codes have shape "
    r"\(60, 23\); expected .*24\)",
    "compare --signals first.png text.png": "text.png: not a readable picture",
    "compare --signals first.png tiny.png": r"tiny.png: smaller than a patch of 8 x 8",
    "compare --dictionary D.npy --signals first.png": r"signals have shape .*, 64\); expected "
    r"\(signals, 12\)",
    # These draw signals first.
    "compare --dictionary D.npy --method bpdn": "bpdn needs eps",
    "compare --dictionary D.npy --method project,ml_ista": "ml_ista needs lams",
    "compare --dictionary D.npy I.npy --method omp": "omp takes one dictionary, got 2",
}


@pytest.mark.few(45)
@pytest.mark.parametrize("command", REFUSED)
def test_one_line_says_what_to_mend(run, tmp_path, command):
    arguments = command.split(" ")
    if arguments[0] == "compare" and "--output" not in arguments:
        arguments += ["--output", tmp_path / "report"]
    status, out, err = run(*arguments)
    assert status == 2 and not out
    assert re.fullmatch(rf"unrolled: .*{REFUSED[command]}.*\n", err), err
    assert not list(tmp_path.iterdir())  # no empty report


def test_an_interrupt_is_one_line_too(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("unrolled.app.commands._doctor.doctor", interrupt)
    assert run("doctor") == (130, "", "unrolled: interrupted\n")


def test_a_stream_that_lacks_a_character_has_it_escaped(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    monkeypatch.setattr(
        "unrolled.app.commands._doctor.doctor", lambda: {"folder": "rü", "measured": []}
    )
    assert main(["doctor"]) == 0 and narrow.errors == "strict"
    narrow.flush()
    assert rb"r\xfc" in narrow.buffer.getvalue()


def test_a_closed_standard_error_stops_nothing(run, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr("unrolled.app.commands._doctor.doctor", lambda: {"measured": []})
    assert run("doctor", "--json")[:2] == (0, '{\n "measured": []\n}\n') and sys.stderr is None
    assert run("certify", "gone.npy")[:2] == (2, "")  # no message in place of a result


def test_a_report_names_files_whose_names_are_no_text(tmp_path):
    write_report(tmp_path, "Of Y\udce4.npy", "", [], {"signals": "Y\udce4.npy"})
    for name in ("report.md", "report.html"):
        assert r"Y\udce4.npy" in (tmp_path / name).read_text()
    results = strict_json((tmp_path / "results.json").read_text())
    assert results["settings"] == {"signals": "Y\udce4.npy"}


def test_atoms_of_different_norms_are_warned_of(folder, tmp_path):
    np.save(tmp_path / "D.npy", np.load(folder / "D.npy") * np.geomspace(0.01, 100, 24))
    with pytest.warns(UserWarning, match="atoms have norms from 0.01 to 100; .* atoms of norm 1"):
        read_dictionary(tmp_path / "D.npy")


class Late(threading.Timer):
    """A timer whose start takes longer than the timer, as on a machine with other work."""

    def start(self):
        super().start()
        if not self.started:
            Late.started = True
            time.sleep(0.3)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("timer", [threading.Timer, Late])
def test_an_interrupt_in_a_collection_of_garbage_is_not_lost(run, monkeypatch, timer):
    """Python ignores what is raised in a callback of the collector, of which JAX has one."""
    monkeypatch.setattr(Late, "started", False, raising=False)
    monkeypatch.setattr(threading, "Timer", timer)

    def collected(phase, info):
        gc.callbacks.remove(collected)
        raise KeyboardInterrupt

    def interrupt():
        gc.callbacks.append(collected)
        gc.collect()
        time.sleep(10)
        return {"measured": []}

    monkeypatch.setattr("unrolled.app.commands._doctor.doctor", interrupt)
    began = time.monotonic()
    assert run("doctor") == (130, "", "unrolled: interrupted\n")
    assert time.monotonic() - began < 5


def test_what_memory_does_not_hold_is_said_in_one_line(run, monkeypatch):
    def large():
        return unrolled.problems.exact_sparse(0, (10**9, 10**9), 3)

    monkeypatch.setattr("unrolled.app.commands._doctor.doctor", large)
    status, out, err = run("doctor")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"unrolled: exact_sparse: the codes, .* GB of memory; .*\n", err)


# compare


def test_what_is_refused_leaves_no_folder_of_a_report(run, tmp_path):
    files = ("--dictionary", "D.npy", "--signals", "columns.npy")
    assert run("compare", *files, "--output", tmp_path / "a" / "b")[0] == 2
    assert not list(tmp_path.iterdir())


def test_a_report_is_written_by_one_process(run, tmp_path):
    files = ("--dictionary", "D.npy", "--signals", "Y.npy", "--output", tmp_path)
    with claimed(tmp_path / "lock") as holder:
        assert holder is None
        status, out, err = run("compare", *files)
        assert status == 2 and not out and not (tmp_path / "report.md").exists()
    assert f"{tmp_path}: in use by process {os.getpid()}; try another --output" in err


def check_report(folder, slugs):
    """Check the files of a report: parseable, readable, linked. Returns the data by section."""
    report = (folder / "report.md").read_text()
    results = strict_json((folder / "results.json").read_text())
    assert list(results["sections"]) == slugs and results["environment"]["jax"] == jax.__version__
    linked = set(re.findall(r"\]\(([^)]+)\)", report))
    assert {path.name for path in folder.iterdir()} == linked | {
        "report.md",
        "report.html",
        "results.json",
    }
    assert {f"{slug}.csv" for slug in slugs} | {f"{slug}.png" for slug in slugs} <= linked
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200 and np.asarray(picture.convert("L")).std() > 1
    for slug in slugs:
        with (folder / f"{slug}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert rows and all(len(row) == len(header) for row in rows)
    return results["sections"]


def curve_rows(folder, slug):
    """Method -> number of steps in the CSV of a section."""
    with (folder / f"{slug}.csv").open(newline="") as file:
        names = [row["method"] for row in csv.DictReader(file)]
    return {name: names.count(name) for name in names}


@pytest.fixture
def drawn(monkeypatch):
    """The figures of comparisons, as they are drawn."""
    figures, comparison = [], plots.comparison

    def record(*args, **options):
        figures.append(comparison(*args, **options))
        return figures[-1]

    monkeypatch.setattr(plots, "comparison", record)
    return figures


@pytest.mark.slow
def test_compare_on_an_own_dictionary(run, tmp_path, drawn):
    out_folder = tmp_path / "deep" / "report"
    status, out, err = run(
        "compare", "--dictionary", "D.npy", *QUICK, "--sparsity", 2, "--output", out_folder
    )
    assert status == 0, err
    assert "done" in err and f"Report: {out_folder / 'report.html'}" in out
    data = check_report(out_folder, ["planted", "certified"])
    names = ["ISTA", "ISTA, calibrated", "FISTA"]
    names += [
        f"{f}, {kind}"
        for f in ("LISTA-CP", "ALISTA", "ALISTA-SS")
        for kind in ("analytic, s = 1", "analytic, s = 6", "calibrated", "learned")
    ]
    assert list(data["planted"]["comparison"]["methods"]) == names
    assert curve_rows(out_folder, "planted") == dict.fromkeys(names, 3)
    report = (out_folder / "report.md").read_text()
    assert all(f"| {name} |" in report for name in names)
    assert re.search("return only zeros: .*ALISTA, analytic, s = 6", report)
    # The analytic rows are flat; the report and its figure say why.
    why = "No guarantee here: theory covers up to 1 nonzeros and this sample has up to"
    told = drawn[0].legends[0].get_title().get_text().replace("\n", " ")
    assert why in report and "grow by a factor of about" in report and why in told
    assert drawn[0].axes[0].get_title().startswith("Distance to the true codes")
    # In the certified regime no error exceeds its bound by more than the rounding of its sum.
    for curve in data["certified"]["curves"].values():
        assert (np.asarray(curve["measured"]) <= np.asarray(curve["bound"]) * (1 + 1e-12)).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibrate. kept the start")
@pytest.mark.parametrize("slug, methods", {"planted-chain": "ista", "signals": "lista_cp"}.items())
def test_compare_on_a_chain(run, tmp_path, slug, methods):
    own = ("--sparsity", 2) if slug == "planted-chain" else ("--signals", "chain.npz")
    chain = ("compare", "--dictionary", "D.npy", "I.npy", *own, "--method", methods)
    status, out, err = run(*chain, *QUICK, "--output", tmp_path)
    assert status == 0, err
    data = check_report(tmp_path, [slug])
    learned = [f"LISTA-CP, {kind}" for kind in ("analytic", "calibrated", "learned")]
    names = ["ISTA"] if methods == "ista" else learned
    for layer in data[slug]["comparison"]["layers"]:
        assert list(layer["methods"]) == names
    assert curve_rows(tmp_path, slug) == dict.fromkeys(names, 6)  # three steps of two layers
    report = (tmp_path / "report.md").read_text()
    assert f"| 2 | {names[-1]} | 3 |" in report and re.search(rf"^2 +{names[-1]} ", out, re.M)
    # The start that theory sets for too many nonzeros gives the zero code.
    said = "^Layer 1: These methods return only zeros: LISTA-CP, analytic"
    silent = re.search(said, report, re.M)
    assert bool(silent) is (names == learned)


@pytest.mark.slow
def test_compare_on_own_signals(run, tmp_path, drawn):
    D = np.load("D.npy").astype(np.float32)
    layer = unrolled.layers.ista(2)
    unrolled.training.save(tmp_path / "w.npz", layer.init(None, D), D, layer)
    methods = f"ista,alista,liht,omp,{tmp_path / 'w.npz'}"
    methods = sum((["--method", part] for part in methods.rsplit(",", 1)), [])  # one by one, too
    arguments = ("--dictionary", "D.npy", "--signals", "Y.npy", *methods, "--certify", *QUICK)
    status, out, err = run("compare", *arguments, "--output", tmp_path / "r")
    assert status == 0, err
    report = (tmp_path / "r" / "report.md").read_text()
    assert "| certified codes, % |" in report and "proving the codes" in err
    data = check_report(tmp_path / "r", ["signals"])["signals"]
    steps = {"ISTA": 3, "FISTA": 3, "ISTA, learned": 3, "omp": 1, str(tmp_path / "w.npz"): 2}
    steps |= {f"{of}, learned": 3 for of in ("ALISTA", "liht")}
    steps |= {"ALISTA, untrained": 3, "liht, untrained": 3}
    assert curve_rows(tmp_path / "r", "signals") == steps
    gap = np.asarray(data["comparison"]["methods"]["ISTA"]["curve"]["gap"])
    assert (np.diff(gap) < 0).all() and (gap > 0).all() and data["lam"] > 0
    assert "distance to the LASSO codes" in (tmp_path / "r" / "report.md").read_text()
    assert drawn[0].axes[0].get_title().startswith("Distance to the LASSO codes")


@pytest.mark.slow
def test_compare_on_own_signals_with_codes(run, tmp_path):
    """With a sample, proofs and predictions; as JSON, standard output is the file written."""
    arguments = ("--dictionary", "D.npy", "--signals", "YX.npz", "--method", "alista", *QUICK)
    more = ("--sampled", 100, "--certify", "--predict", "--json", "--output", tmp_path / "r")
    status, out, err = run("compare", *arguments, *more)
    assert status == 0, err
    check_report(tmp_path / "r", ["signals"])
    text = (tmp_path / "r" / "report.md").read_text()
    assert "SNR" not in text  # of given signals: unknown
    assert "the prediction of state evolution" in text
    assert "certified codes, %" in text and "signals are missing (100 draws, confidence" in text
    assert strict_json(out) == strict_json((tmp_path / "r" / "results.json").read_text())
    shown = list(curve_rows(tmp_path / "r", "signals"))
    assert shown[-2:] == ["ALISTA, calibrated", "ALISTA, learned"]
    assert all(name.startswith("ALISTA, analytic, s = ") for name in shown[:-2]) and shown[:-2]


@pytest.mark.parametrize("given", ["photos", "photos/signals.png"])
def test_a_report_does_not_write_over_pictures_that_it_reads(run, folder, tmp_path, given):
    (tmp_path / "photos").mkdir()
    picture = tmp_path / "photos" / "signals.png"
    before = (folder / "first.png").read_bytes()
    picture.write_bytes(before)
    options = ("--signals", tmp_path / given, "--output", tmp_path / "photos")
    status, _, err = run("compare", *options)
    assert status == 2 and f"{tmp_path / given}: is read by this command" in err
    assert picture.read_bytes() == before


@pytest.mark.slow
def test_compare_on_own_pictures(run, tmp_path):
    arguments = ("--signals", "first.png", "second.png", "--method", "ista", *QUICK)
    status, out, err = run("compare", *arguments, "--output", tmp_path / "r")
    report = (tmp_path / "r" / "report.md").read_text()
    assert status == 0 and "Dictionary 64 x 256" in report, err
    data = check_report(tmp_path / "r", ["signals"])["signals"]
    assert (tmp_path / "r" / "signals-2.png").exists()  # the test picture rebuilt
    assert len(data["psnr"]["ISTA"]) == 3 and np.isfinite(data["psnr"]["ISTA"]).all()


@pytest.fixture
def asked(monkeypatch):
    """The studies are replaced by records of what they are asked: name -> arguments, options."""
    asked, rows = {}, (["a"], [[1]])
    study = SimpleNamespace(
        parts=lambda: ["text"],
        answer=lambda: "yes",
        short=lambda: "a table",
        figures=dict,
        rows=lambda: rows,
        to_dict=dict,
        runs=(1,),
        shape=(8, 8),
    )

    def stub(name):
        def ask(key, *arguments, **options):
            asked[name] = arguments, options
            return study

        return ask

    names = "known_codes", "unknown_codes", "certified_regime", "certify_drawn", "certified_chain"
    for name in names:
        monkeypatch.setattr(studies, name, stub(name))
    return asked


@pytest.mark.slow
def test_without_arguments_compare_has_all_standard_sections(run, tmp_path, monkeypatch, asked):
    """The first two meet: each has a thread."""
    both = threading.Barrier(2, timeout=30)

    def meeting(study):
        return lambda *arguments, **options: (study(*arguments, **options), both.wait())[0]

    for name in ("known_codes", "certified_regime"):
        monkeypatch.setattr(studies, name, meeting(getattr(studies, name)))
    status, out, err = run("compare", "--output", tmp_path)
    assert status == 0, err
    (samples,), options = asked["known_codes"]
    assert samples.D.shape == asked["certified_regime"][0][0].shape == (250, 500)
    assert (options["depth"], options["steps"], options["lam"]) == (16, 400, None)
    assert asked["certify_drawn"][1]["sparsity"] == (11, 12)
    (D, _), options = asked["unknown_codes"]
    assert D.shape == (64, 256) and options["lam"] == 0.05 and "tested" not in options
    titles = ["The standard benchmark", "The regime that the theory certifies"]
    titles += ["Patches of real photographs", "A two-layer chain with certified bounds"]
    assert re.findall("^(.*)\n\na table$", out, re.M) == titles
    assert re.findall("^## (.*)$", (tmp_path / "report.md").read_text(), re.M)[:4] == titles


ROUTES = {
    "D.npy": {"planted": "Planted codes of the dictionary", "certified": "The regime that the "},
    "D.npy I.npy": {"planted-chain": "Planted codes of the chain"},
    "D.npy --signals Y.npy": {"signals": "Own signals"},
    "D.npy --signals YX.npz": {"signals": "Own signals with known codes"},
    "D.npy I.npy --signals chain.npz": {"signals": "Own signals of the chain"},
}


@pytest.mark.parametrize("files", ROUTES)
def test_compare_asks_the_study_of_the_files(run, tmp_path, monkeypatch, asked, files):
    """With the numbers of the arguments, and for each pursuit the options that it has."""
    monkeypatch.setattr(studies, "planted", lambda key, D, **options: (D, options))
    method = ("--method", "fista, omp", "--tol", 1e-3, "--quick", "--depth", 3, "--lam", 0.5)
    status, out, err = run("compare", "--dictionary", *files.split(), *method, "--output", tmp_path)
    assert status == 0, err
    sections = strict_json((tmp_path / "results.json").read_text())["sections"]
    assert list(sections) == list(ROUTES[files])
    shown = re.findall("^(.*)\n\na table$", out, re.M)
    assert all(map(str.startswith, shown, ROUTES[files].values())) and len(shown) == len(sections)
    assert out.splitlines()[-1] == "yes" and (tmp_path / "report.md").read_text().count("yes") == 1
    known = "unknown_codes" not in asked
    given, options = asked["known_codes" if known else "unknown_codes"]
    assert (options["methods"], options["pursuits"]) == (("fista",), {"omp": {"tol": 1e-3}})
    assert (options["depth"], options["steps"], options["lam"]) == (3, 60, 0.5)
    if not known:
        assert options["tested"] == 500 and [len(Y) for Y in given[1][:2]] == [48, 12]
    elif "--signals" in files:
        sizes = [len(Y) for Y, _ in (given[0].chosen_on, given[0].tested_on)]
        assert sizes == [48, 12] and options["sampled"] is None
    else:
        assert given[0][1] == {"sparsity": None, "snr": np.inf}
        assert isinstance(given[0][0], tuple) is ("I.npy" in files)


# Figures


def test_missing_photographs_are_left_out_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(_compare, "_planted", lambda *_: None)
    monkeypatch.setattr(_compare, "_smaller_sections", lambda D, pictures, asked: [pictures])
    said = []
    sections = _compare._standard_sections(mock.Mock(key=0, say=said.append))
    assert sections == [None, None] and said[0] == (
        "left out: patches of photographs: needs scikit-learn, not installed; try pip install "
        "'.[data]' in the clone"
    )


def no_figure(*args, **options):
    raise ValueError("no figure")


def test_a_figure_that_fails_loses_no_table(tmp_path):
    rows, curve = (["step", "error"], [[1, 0.5]]), {"error": [0.5]}
    section = Section("Codes", "codes", ["| 0.5 |"], {"a figure": no_figure}, rows, curve)
    with pytest.raises(ValueError, match="no figure"):
        write_report(tmp_path, "Title", "summary", [section, section._replace(slug="more")], {})
    for name in ("codes", "more"):
        assert (tmp_path / f"{name}.csv").read_text() == "step,error\n1,0.5\n"
    results = strict_json((tmp_path / "results.json").read_text())
    assert results["sections"] == {"codes": curve, "more": curve}
    assert (tmp_path / "report.md").read_text().count("| 0.5 |") == 2


@pytest.mark.slow
def test_a_figure_that_fails_loses_no_table_of_compare(run, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "comparison", no_figure)
    options = ("--dictionary", "D.npy", "--signals", "Y.npy", "--method", "ista", *QUICK)
    status, _, err = run("compare", *options, "--output", tmp_path)
    assert status == 2 and err.endswith("unrolled: no figure\n")
    names = {"ISTA": 3, "FISTA": 3, "ISTA, learned": 3}
    assert curve_rows(tmp_path, "signals") == names
    results = strict_json((tmp_path / "results.json").read_text())
    assert list(results["sections"]["signals"]["comparison"]["methods"]) == list(names)
    assert "| ISTA, learned |" in (tmp_path / "report.md").read_text()


def test_a_figure_that_fails_loses_no_text_of_certify(run, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "gram", no_figure)
    status, out, err = run("certify", "paley.npy", "--figure", tmp_path / "gram.png")
    assert status == 2 and err.endswith("unrolled: no figure\n")
    assert out == run("certify", "paley.npy")[1]


def test_signals_are_counted_whose_codes_are_in_the_class(tmp_path):
    """Up to the rounding of a bound that is reached, and to the noise."""
    D, path = np.asarray(dictionaries.identity_hadamard(8), "f4"), tmp_path / "Y.npy"
    noisy = D[:, 3] + np.float32([0.08, 0, 0, 0, 0, 0, 0, 0])
    np.save(path, np.stack([D[:, 9], 1.5 * D[:, 2], D[:, 1] + D[:, 9], noisy]).astype("f4"))
    D = D.astype(float)
    inside = [signals_of_class(D, path, 1, 1.0, noise).inside for noise in (0.0, 0.1)]
    assert inside == [1, 2] and signals_of_class(D, path, 1, 2.0, 0.0).inside == 2


def test_encode_proves_codes_of_the_lasso(run, tmp_path):
    """Of a pursuit for its own penalty, of weights for one that is given."""
    D, C = np.load("D.npy"), tmp_path / "C.npz"
    with np.load("YX.npz") as archive:
        Y = archive["Y"].astype("f4")
    np.save(tmp_path / "Y.npy", Y)
    pursuits = ("--method", "lasso", "--lam", 0.05, "--dictionary", "D.npy")
    arguments = ("--certify", tmp_path / "Y.npy", "--output", C)
    status, out, err = run("encode", *pursuits, *arguments)
    assert status == 0 and "the signs of the only optimum of the LASSO" in out, err
    encoded = strict_json(run("encode", *pursuits, *arguments, "--json")[1])
    with np.load(C) as archive:
        proof = theory.certify_lasso(D.astype("f4"), Y, archive["X"], 0.05)
        certified = archive["certified"][:, 0] == 1
    assert np.array_equal(certified, proof.unique & (proof.repairs == 0)) and certified.any()
    assert encoded["proved_optima"] == proof.unique.mean() > 0.9
    rows = proof.unique & proof.x.any(1)
    far = (proof.distance[rows] / np.linalg.norm(proof.x[rows], axis=1)).max()
    assert encoded["largest_distance"] == pytest.approx(far) and 0 < far < 0.1
    assert "times its norm" in out and "norm" not in ProvedCodes(2, (0, 1), 0, 0.0).text()
    D = D.astype("f4")
    layer, weights = unrolled.layers.fista(4), tmp_path / "weights.npz"
    unrolled.training.save(weights, layer.init(None, D), layer=layer, D=D)
    status, out, err = run("encode", "--lam", 0.05, "--certify", weights, *arguments[1:], "--json")
    assert status == 0 and strict_json(out)["proved_optima"] > 0.9, err
    for wrong in (("--lam", 0.05), ("--certify", "--nonnegative")):
        status, _, err = run("encode", *wrong, weights, *arguments[1:])
        assert status == 2 and "needs --method" in err


@pytest.mark.slow
def test_codes_of_a_file_are_certified(run, tmp_path):
    """In the dtype of the signals: a wrong code of a row is repaired, and noise is not met."""
    with np.load("YX.npz") as archive:
        Y, X = archive["Y"], archive["X"]
    Y, X = Y[:9].copy(), X[:9].copy()
    Y[3] += 1e-6
    np.savez(tmp_path / "Y.npz", Y=Y), np.savez(tmp_path / "X.npz", X=0.9 * X)
    arguments = ("D.npy", "--code", tmp_path / "X.npz", "--signals", tmp_path / "Y.npz")
    expected = np.flatnonzero(~theory.certify_code(np.load("D.npy"), Y, 0.9 * X).unique).tolist()
    assert 3 in expected and len(expected) < 9
    status, out, err = run("certify", *arguments, "--json")
    assert status == 0, err
    found = strict_json(out)
    assert found["not_certified"] == expected
    assert found["certified_share"] == pytest.approx(1 - len(expected) / 9)
    status, out, _ = run("certify", *arguments)
    assert "of 9 codes certified" in out and "not certified: rows " in out
    # The same of the codes that a pursuit computes, in float32.
    np.save(tmp_path / "Y.npy", X @ np.load("D.npy").T)
    options = ("--method", "omp", "--tol", 1e-5, "--dictionary", "D.npy", "--certify")
    status, out, err = run("encode", *options, tmp_path / "Y.npy", "--output", tmp_path / "C.npy")
    assert status == 0 and "of 9 codes certified" in out, err
    assert np.load(tmp_path / "C.npy").shape == (9, 24)
    arguments_npz = (tmp_path / "Y.npy", "--output", tmp_path / "C.npz", "--json")
    status, out, err = run("encode", *options, *arguments_npz)
    with np.load(tmp_path / "C.npz") as archive:
        rows = np.flatnonzero(archive["certified"][:, 0] == 0).tolist()
        np.testing.assert_array_equal(archive["X"], np.load(tmp_path / "C.npy"))
    assert strict_json(out)["not_certified"] == rows and len(rows) < 9
    for wrong, message in (
        (("certify", "D.npy", "--code", tmp_path / "X.npz"), "--code and --signals go together"),
        (("certify", "D.npy", *arguments), "--code needs one D, got 2"),
        (("certify", "D.npy", "--code", "Y.npy", *arguments[3:]), "one code for each"),
    ):
        status, _, err = run(*wrong)
        assert status == 2 and message in err


def test_a_warning_is_one_line_without_a_place():
    """As Python prints it: pytest shows warnings in its own way."""
    given, usual = (UserWarning("fit: a"), UserWarning, "fit.py", 3), warnings.formatwarning
    with plain_warnings():
        assert warnings.formatwarning(*given) == "warning: fit: a\n"
    assert warnings.formatwarning is usual
