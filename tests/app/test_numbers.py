"""Numbers that commands show and write are those of direct calls of the library."""

import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import rich.progress
from command_line import strict_json
from PIL import Image

import unrolled as ur
from unrolled._base.text import to_json
from unrolled.app import cli, studies
from unrolled.app.cli import main
from unrolled.app.commands import (
    _certify,
    _compare,
    _console,
    _doctor,
    _encode,
    _experiment,
    _inputs,
    _learn,
    _report,
)

pytestmark = pytest.mark.usefixtures("float32_by_default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dictionary of 8 x 12, 40 of its signals and their codes."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    D = rng.normal(size=(8, 12))
    D /= np.linalg.norm(D, axis=0)
    X = rng.normal(size=(40, 12)) * (rng.random((40, 12)) < 0.2)
    arrays = {"D": D, "X": X, "Y": X @ D.T, "I": np.eye(12)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def arrays(folder, *names):
    return [np.load(folder / f"{name}.npy").astype(np.float32) for name in names]


# doctor


def test_doctor_measures_rates_errors_and_the_bits_of_a_gradient(monkeypatch):
    """Rates are operations over seconds, of which here each program takes a half."""
    ran = []
    monkeypatch.setattr(_doctor, "_SIDE", 16)
    monkeypatch.setattr(_doctor, "_SHAPE", (8, 12))
    monkeypatch.setattr(_doctor, "_BATCH", 40)
    monkeypatch.setattr(_doctor, "_seconds", lambda f, *args: ran.append((f, args)) or 0.5)
    (found,) = _doctor._measured()
    assert found.device == str(jax.local_devices()[0]) and found.repeats and found.as_first
    steps = _doctor._STEPS
    assert found[1:3] == pytest.approx((2 * 16**3 / 0.5e9, 4 * steps * 8 * 12 * 40 / 0.5e9))
    assert 0 < found.highest_error <= found.default_error < 16 * 2.0**-24
    (product, (A,)), (loss, (params, D, Y)) = ran
    exact = np.asarray(A, float) @ np.asarray(A, float)
    np.testing.assert_allclose(product(A), exact, atol=1e-4)
    codes = jax.vmap(ur.layers.ista(steps).apply, (None, None, 0))(params, D, Y)
    assert float(loss(params, D, Y)) == pytest.approx(float((codes**2).mean()), rel=1e-4)


def test_the_least_time_of_runs_after_the_first_is_told(monkeypatch):
    now, ran = iter([0.0, 3.0, 10.0, 12.0, 20.0, 25.0]), []
    monkeypatch.setattr(_doctor.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(_doctor, "_RUNS", 3)
    assert _doctor._seconds(lambda x: ran.append(x), 1) == 2.0 and ran == [1] * 4


def test_the_check_of_doctor_is_below_its_certified_bound():
    D = ur.dictionaries.identity_hadamard(64)
    _, schedule = ur.analytic.block_schedule(D, depth=_doctor._DEPTH, sparsity=2, bound=1.0)
    rounding = 128 * 2.0**-24  # the signal has two entries, and a code of 128
    assert 0 <= _doctor._certified_error() <= schedule.error[-1] + rounding


def test_the_memory_of_a_device_is_told_where_it_knows_it(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 3 * 2**29})
    monkeypatch.setattr(_doctor.jax, "devices", lambda: [device])
    assert _doctor._memory() == "1.5 GiB of the device"


# Progress


def test_a_terminal_shows_the_run_that_speaks_on_standard_error(monkeypatch):
    """One bar is visible, that of the last run; a run that speaks again keeps its bar."""
    shown, begun, consoles = {}, [], []

    class Bars:
        def __init__(self, *columns, console, transient):
            consoles.append((console.stderr, transient))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            consoles.append("closed")

        def add_task(self, name, total, completed):
            begun.append((name, total, completed))
            shown[len(begun)] = {"visible": True}
            return len(begun)

        def update(self, task, **fields):
            shown[task] |= fields

    monkeypatch.setattr(rich.progress, "Progress", Bars)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    with _console.progress(lambda message: None) as tell:
        tell("a", 1, 9, "loss 3")
        tell("a", 2, 9, "loss 2")
        tell("b", 0, 4, "loss 8")
    assert begun == [("a", 9, 1), ("b", 4, 0)] and consoles == [(True, True), "closed"]
    assert shown == {
        1: {"visible": False, "completed": 2, "description": "a, loss 2"},
        2: {"visible": True, "completed": 0, "description": "b, loss 8"},
    }


# certify, compare, encode, learn


def test_certify_numbers_the_rows_of_a_file_whose_codes_are_not_certified(
    folder, monkeypatch, capsys
):
    """The files go through in chunks, and rows have their numbers in the file."""
    monkeypatch.chdir(folder)
    D, Y, X = arrays(folder, "D", "Y", "X")
    given = []

    def certified(D, Y, X, finish):
        given.append((np.asarray(D), np.asarray(Y), np.asarray(X), finish))
        return SimpleNamespace(certified=lambda Y: np.arange(len(Y)) % 15 != 1)

    monkeypatch.setattr(_certify._inputs, "CHUNK", 16)
    monkeypatch.setattr(_certify.theory, "certify_code", certified)
    arguments = ["certify", "D.npy", "--signals", "Y.npy", "--code", "X.npy"]
    assert main([*arguments, "--json"]) == 0
    found = strict_json(capsys.readouterr().out)
    assert found == {"certified_share": 1 - 3 / 40, "not_certified": [1, 17, 33]}
    np.testing.assert_allclose(given[0][0], D, rtol=1e-6)
    for place, whole in ((1, Y), (2, X)):
        np.testing.assert_allclose(np.concatenate([g[place] for g in given]), whole, rtol=1e-6)
    assert [len(g[1]) for g in given] == [16, 16, 8] and {g[3] for g in given} == {0}
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("92.50% of 40 codes certified: ")
    assert out.endswith("not certified: rows 1, 17, 33\n")


def test_what_is_proved_of_lasso_codes_is_told_as_shares():
    many = tuple(range(3, 3 + _certify._SHOWN + 2))
    proved = _certify.ProvedCodes(100, many, 99, 0.0125)
    text, share = proved.text(), 1 - len(many) / 100
    assert text.startswith(f"{share:.2%} of 100 codes certified: each has the support")
    assert "proved for 99.00% of the signals, at a distance of at most 0.013 times its norm" in text
    assert text.endswith(f"{many[-3]} and 2 more")
    assert proved.to_dict() == {
        "certified_share": share,
        "not_certified": list(many),
        "proved_optima": 0.99,
        "largest_distance": 0.0125,
    }
    assert "not certified" not in _certify.CertifiedCodes(4, ()).text()


def test_weights_are_told_from_arrays_by_what_a_file_holds(tmp_path):
    layer = ur.layers.ista(2)
    own = ur.training.save(tmp_path / "own.npz", layer.init(None, np.eye(2, dtype="f4")))
    np.savez(tmp_path / "arrays.npz", D=np.eye(2))
    whole = (tmp_path / "arrays.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4" + whole[len(whole) // 2 :])
    (tmp_path / "text.npz").write_text("no archive")
    for path, holds in {
        own: True,
        tmp_path: True,
        tmp_path / "any.safetensors": True,
        tmp_path / "arrays.npz": False,
        tmp_path / "torn.npz": False,
        tmp_path / "text.npz": False,
        tmp_path / "D.npy": False,
    }.items():
        assert _certify.holds_weights(path) == holds, path


@pytest.mark.parametrize("code, status", [(3, 3), (None, cli._ERROR), ("words", cli._ERROR)])
def test_a_command_that_ends_by_a_signal_has_its_status(code, status):
    def stopped(arguments):
        assert vars(arguments) == {"run": stopped}
        raise SystemExit(code)

    assert cli._run(SimpleNamespace(run=stopped, no_cache=True)) == status > 0


@pytest.mark.parametrize("chained", [True, False])
def test_encode_says_what_it_coded_layer_by_layer(chained):
    layers = tuple(_encode.EncodedLayer(n, n / 8, 0.25) for n in (12, 24))
    encoded = _encode.Encoded(
        40, layers if chained else layers[:1], chained, "weights.npz", (3, 5), 2, "C.npy"
    )
    text = encoded.text()
    line = "12 atoms: 1.5 nonzeros on average, relative residual 0.25"
    assert line in text and text.count("relative residual") == 1 + chained
    assert ("  layer 2, 24 atoms: 3.0 nonzeros" in text) == chained
    assert "2 signals are negligible next to the largest, to the rounding of float32" in text
    assert "next to the largest" not in encoded._replace(zeros=0).text()


def test_weights_of_files_are_compared_as_results_of_fit(folder, tmp_path):
    """With their own dictionary, or with the one that is given where they have none."""
    (D,) = arrays(folder, "D")
    layer, alone = ur.layers.ista(2), tmp_path / "D.npy"
    params = layer.init(None, D)
    np.save(alone, D)
    paths = [tmp_path / "with.npz", tmp_path / "without.npz"]
    for path, own in zip(paths, (True, False)):
        ur.training.save(path, params, D, layer, dictionary=own)
    fits = _compare._restored(paths, [alone])
    assert list(fits) == [str(path) for path in paths]
    for fit in fits.values():
        np.testing.assert_array_equal(fit.D, D)
        assert fit.params is fit.best
        jax.tree.map(np.testing.assert_array_equal, fit.params, params)


def test_a_section_of_learned_atoms_has_every_step_and_the_certificate(folder):
    (D,) = arrays(folder, "D")
    step = ur.dictionary_learning.Step
    history = [step(1, 2.0, 0.5, 3), step(2, 1.25, 1.0, 1)]
    learned = SimpleNamespace(D=D, history=history, objective=1.25)
    layer = SimpleNamespace(admissible={"mu": 1, "mu~": 2})
    certified = SimpleNamespace(
        layers=[layer], text=lambda: "a text", to_dict=lambda: {"layers": 1}
    )
    atoms, certificate = _learn._sections("online", learned, np.eye(12), (2, 4), certified)
    text = to_json([atoms.data, certificate.data])
    assert strict_json(text)[0]["objective"] == 1.25
    assert [s["objective"] for s in strict_json(text)[0]["steps"]] == [2, 1.25]
    assert "12 atoms of 8 entries; 4 were replaced on the way." in atoms.text
    assert "```\na text\n```" in certificate.text and len(atoms.figures) == 3
    assert _learn._sections("online", learned, np.eye(12), (2, 4), None)[1:] == []


@pytest.mark.parametrize(
    "text, m, shape",
    [(None, 16, (4, 4)), (None, 12, (1, 12)), ("3x4", 12, (3, 4)), (None, 2, (1, 2))],
)
def test_an_atom_is_a_square_picture_unless_it_is_told(text, m, shape):
    assert _learn._shape(text, m) == shape


@pytest.mark.parametrize("certificate", [True, False])
def test_learn_writes_the_dictionary_and_prints_its_numbers(
    certificate, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    (D,), said = arrays(folder, "D"), []
    history = [ur.dictionary_learning.Step(1, 2.0, 0.5, 0)]
    learned = SimpleNamespace(D=D, X=np.eye(40, 12), history=history, objective=1.25)
    report = SimpleNamespace(
        layers=[SimpleNamespace(admissible={"mu": 1})],
        text=lambda: "certified",
        to_dict=lambda: {"mu": 0.5},
    )

    def certify(Ds, say):
        said.append(Ds[0].dtype)
        np.testing.assert_array_equal(Ds[0], D)
        return report

    monkeypatch.setattr(_learn, "_learned", lambda arguments, Y, options: learned)
    monkeypatch.setattr(_learn.studies, "dictionary_report", certify)
    output = tmp_path / "out"
    arguments = ["learn", "Y.npy", "--atoms", "12", "--output", str(output), "--json"]
    assert main(arguments + ([] if certificate else ["--no-certificate"])) == 0
    found = strict_json(capsys.readouterr().out)
    path = output / _learn._DICTIONARY
    np.testing.assert_array_equal(np.load(path), D)
    assert found.pop("report").startswith(str(output)) and found.pop("output") == str(path)
    assert found.pop("certificate", None) == ({"mu": 0.5} if certificate else None)
    expected = dict(method="online", signals=40, atoms=12, objective=1.25, seconds=0.5)
    assert found == expected and said == ([np.float64] if certificate else [])
    assert (
        "online: 12 atoms from 40 signals in 0.5 s, objective 1.25 -> "
        in (output / "report.md").read_text()
    )


def test_pictures_are_cut_into_patches_and_have_a_dictionary_of_cosines(tmp_path):
    rng, D = np.random.default_rng(0), np.eye(64, dtype="f4")
    for name, shape in (("a", (16, 24)), ("b", (24, 16))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    given, pictures = _inputs._read_pictures(paths, None)
    np.testing.assert_array_equal(given, ur.dictionaries.dct((8, 8), (16, 16)))
    images = {path.name: ur.vision.datasets.read_images(path) for path in paths}
    expected = studies.photograph_patches({k: next(iter(v.values())) for k, v in images.items()})
    np.testing.assert_array_equal(pictures.testing, expected.testing)
    np.testing.assert_array_equal(pictures.training, expected.training)
    assert _inputs._read_pictures([tmp_path], D)[0] is D
    Image.fromarray(np.zeros((7, 20), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="small: smaller than a patch of 8 x 8"):
        _inputs._read_pictures([tmp_path], None)


@pytest.mark.parametrize("quick", [True, False])
def test_the_standard_sections_are_four_studies_with_the_numbers_of_the_arguments(
    quick, monkeypatch
):
    asked = []
    D = np.eye(3)
    given = _compare.Asked(
        key=jax.random.key(0),
        planted={},
        both={"lam": None, "depth": 3},
        known={},
        quick=quick,
        say=lambda message: None,
    )

    def stub(module, name, result=None):
        def called(*arguments, **options):
            asked.append((name, arguments, options))
            return name if result is None else result

        monkeypatch.setattr(module, name, called)

    stub(_compare.datasets, "photographs", {})
    stub(_compare.studies, "photograph_patches")
    stub(_compare.problems, "standard_benchmark", SimpleNamespace(D=D))
    stub(_compare, "_planted"), stub(_compare, "_certified_regime", ["regime"])
    stub(_compare, "_unknown_codes"), stub(_compare.studies, "certified_chain")
    stub(_compare, "section_of")
    sections = _compare._standard_sections(given)
    assert sections == ["_planted", "regime", "_unknown_codes", "section_of"]
    called = {name: (arguments, options) for name, arguments, options in asked}
    assert called["_planted"][0][0] is D is called["_certified_regime"][0][0]
    (cosines, pictures, *_), options = called["_unknown_codes"]
    np.testing.assert_array_equal(cosines, ur.dictionaries.dct((8, 8), (16, 16)))
    assert pictures == "photograph_patches" and options == {"lam": _compare._LAM_OF_PATCHES}
    depths = {"depths": _compare._QUICK_CHAIN_DEPTHS} if quick else {}
    assert {k: v for k, v in called["certified_chain"][1].items() if k != "say"} == depths
    assert called["section_of"][0][0] == "certified_chain"


@pytest.mark.parametrize("quick", [True, False])
def test_the_certified_section_ends_with_what_is_proved_signal_by_signal(quick, monkeypatch):
    asked, key, D = {}, jax.random.key(0), np.eye(3)
    given = _compare.Asked(key, {}, {}, {}, quick, say=print)
    studied = SimpleNamespace(runs=("a run",), shape=(2, 3))
    proved = SimpleNamespace(to_dict=lambda: {"proved": 1}, parts=lambda: ["by signal"])

    def stub(name, result):
        def called(*arguments, **options):
            asked[name] = arguments, {k: v for k, v in options.items() if k != "say"}
            return result

        monkeypatch.setattr(_compare.studies, name, called)

    stub("certified_regime", studied), stub("certify_drawn", proved)
    section = _report.Section("title", "slug", ["a part"], {}, data={"worst": 2})
    monkeypatch.setattr(_compare, "section_of", lambda *_: section)
    (found,) = _compare._certified_regime(D, given, (3, 4))
    assert found.parts == ["a part", "", "by signal"]
    assert found.data == {"worst": 2, "signal_by_signal": {"proved": 1}}
    for name, options in {
        "certified_regime": {"depth": _compare._QUICK_DEPTH} if quick else {},
        "certify_drawn": dict(
            sparsity=(3, 4), draws=_compare._DRAWS, weights=("closed form",), measured=not quick
        ),
    }.items():
        (first, second), more = asked[name]
        assert first is key and second is D and more == options
    studied.shape = 2, _compare._MOST_ATOMS + 1
    assert _compare._certified_regime(D, given) == [section]
    studied.runs = ()
    assert _compare._certified_regime(D, given) == []


# experiment


def test_an_experiment_says_which_runs_are_open_and_which_are_elsewhere():
    said = _experiment._state(SimpleNamespace(open=["a", "b"], busy=["c"]))
    assert said == (
        "Not finished: a, b. The same command continues them. Another process works on: c."
    )
    assert _experiment._state(SimpleNamespace(open=[], busy=[])) == ""


def test_the_best_network_is_named_with_its_difference_from_the_baseline():
    interval = ur.vision.experiments.interval

    def cell(gamma, scores, differences):
        recipe = SimpleNamespace(model="lenet5", activation="relu", gamma=gamma)
        return SimpleNamespace(recipe=recipe, scores=scores, differences=differences)

    plain = cell(0.0, {"accuracy": interval([0.5, 0.6])}, {})
    better = cell(0.1, {"accuracy": interval([0.75])}, {"accuracy": interval([0.2])})
    best = "lenet5, relu, gamma 0.1 has the best accuracy, 75.0 %"
    assert _experiment._answer([plain, better]) == f"{best}, +20.0 points from its baseline."
    assert _experiment._answer([plain]).endswith("gamma 0 has the best accuracy, 55.0 %.")


def test_features_of_rows_with_equal_activation_and_gamma_are_one_line(monkeypatch):
    rows = {
        name: {"recipe": {"activation": "relu", "gamma": gamma, "model": "net", "epochs": 2}}
        for name, gamma in (("a", 0.0), ("b", 0.1), ("c", 0.0))
    }
    said, shown = [], []
    layer = SimpleNamespace(codes=SimpleNamespace(nonzeros=np.ones(7)))

    def features_of(folder, name, images):
        return SimpleNamespace(name=name, layers={"conv": layer})

    for name, function in {
        "row_features": features_of,
        "features_table": lambda named: shown.append(named) or "a table",
        "features_rows": lambda named: (["head"], [["row"]]),
    }.items():
        monkeypatch.setattr(_experiment.vision.experiments, name, function)
    monkeypatch.setattr(_experiment, "section_name", lambda rows: "slug")
    images = SimpleNamespace(name="tiny")
    section = _experiment._features_section(None, rows, images, said.append)
    lines = {label: [result.name for result in of] for label, of in shown[0].items()}
    assert lines == {"relu, gamma 0": ["a", "c"], "relu, gamma 0.1": ["b"]}
    assert said == [f"features of {name}" for name in "abc"]
    assert section.title == "What the features are: tiny, net, 2 epochs"
    assert section.slug == "features-slug" and "a table" in section.text
    assert section.data == {label: [{"conv": layer}] * len(of) for label, of in lines.items()}
    assert section.rows == (["head"], [["row"]]) and " 7 " in section.text
    assert _experiment._feature_tables([SimpleNamespace(features={})]) == []


def test_pictures_of_masks_are_those_of_the_first_seed(monkeypatch):
    rows = {
        name: {"recipe": {"seed": seed, "activation": "relu", "gamma": gamma}}
        for name, seed, gamma in (("a", 2, 0.0), ("b", 1, 0.1), ("c", 1, 0.0), ("d", 1, 0.5))
    }
    kept = {name: {"X": 1, "truth": 2, "predicted": name} for name in "abc"}
    monkeypatch.setattr(
        _experiment.vision.experiments, "read_pictures", lambda folder, name: kept.get(name)
    )
    pictures, titles = _experiment._pictures(None, rows)
    assert titles == ["relu, gamma 0.1", "relu, gamma 0"]
    assert pictures == {"X": 1, "truth": 2, "relu, gamma 0.1": "b", "relu, gamma 0": "c"}
    kept.clear()
    assert _experiment._pictures(None, rows) is None
