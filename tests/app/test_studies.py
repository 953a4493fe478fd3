"""Studies: records with text, data, tables and figures, the same as the commands show."""

import dataclasses
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import strict_json
from forms import check_forms, each
from matplotlib.figure import Figure

import unrolled as ur
from unrolled._base import threads
from unrolled._base.text import Grid, to_json
from unrolled.app import studies
from unrolled.app.studies import (
    _certificate,
    _certified,
    _drawn,
    _known_codes,
    _steps,
    _unknown_codes,
)

pytestmark = pytest.mark.usefixtures("float32_by_default")
KEY = jax.random.key(0)
FEW = dict(depth=2, steps=1, lam=0.1)


def hadamard():
    return ur.dictionaries.identity_hadamard(8)


def signals():
    Y, _ = ur.problems.sampler(hadamard(), 40)(KEY)
    return studies.Pictures(np.asarray(Y[:30]), np.asarray(Y[30:]))


def pictures():
    rng = np.random.default_rng(0)
    images = {name: rng.random((16, 24)) for name in ("a", "b")}
    return studies.photograph_patches(images)


def weights():
    D, layer = hadamard(), ur.lista_cp(6)
    return studies.certify_weights(layer, layer.init(None, D), D, noise=0.01)


def known(D, *methods, **options):
    samples = studies.planted(KEY, D, sparsity=1)
    return studies.known_codes(KEY, samples, methods=methods, **FEW | options)


STUDIES = {
    "certify": lambda: studies.dictionary_report(hadamard(), activation=ur.activations.relu),
    "certify_drawn": lambda: studies.certify_drawn(KEY, hadamard(), sparsity=2, draws=20),
    "certify a chain": lambda: studies.dictionary_report(
        [hadamard(), jnp.eye(16)], sparsity=(1, 1)
    ),
    "certify_weights": weights,
    "known_codes": lambda: known(hadamard(), "lista_cp", pursuits={"omp": {}}),
    "known_codes of a chain": lambda: known((hadamard(), jnp.eye(16)), "alista"),
    "unknown_codes": lambda: studies.unknown_codes(
        KEY, hadamard(), signals(), methods=("ista",), pursuits={"lasso": {}}, **FEW
    ),
    "unknown_codes of pictures": lambda: studies.unknown_codes(
        KEY, ur.dictionaries.dct((8, 8), (9, 9)), pictures(), methods=(), tested=3, **FEW
    ),
    "certified_regime": lambda: studies.certified_regime(KEY, hadamard(), depth=5),
    "certified_chain": lambda: studies.certified_chain(KEY, depths=(3,)),
}


@pytest.fixture(scope="module")
def studied():
    return {}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_text_data_tables_and_figures(studied, name):
    study = studied.setdefault(name, STUDIES[name]())
    check_forms(study)
    assert ", by lasso" not in study.answer()  # a pursuit is what the gap is measured from
    assert study.text().strip() and "None" not in study.text()
    assert study.answer().endswith(".") and any(isinstance(part, Grid) for part in study.parts())
    assert strict_json(to_json(study.to_dict()))
    assert isinstance(study.figure(), Figure)
    if name == "certify_drawn":
        assert len(study.figure().axes) == len(study.ratios) == 2
    if not name.startswith("certify"):
        assert "\n".join(study.parts()) == study.text()
        header, rows = study.rows()
        assert rows and {len(row) for row in rows} == {len(header)}
        assert [type(draw()) for draw in study.figures().values()] == [Figure] * (
            2 if name.endswith("pictures") else 1
        )


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["known_codes", "unknown_codes"])
def test_a_first_screen_has_a_sentence_six_lines_and_six_columns(studied, name):
    """Methods are timed for it; where codes are not known, exact codes have a row of their own."""
    study = studied.setdefault(name, STUDIES[name]())
    seen = study.timed().overview()
    assert seen.sentence and len(seen.shown) <= 6 and len(seen.table.columns) <= 6
    assert seen.best in seen.shown and set(seen.shown) <= set(study.comparison.methods)
    exact = [] if name == "known_codes" else list(study.comparison.exact)
    assert [row[0] for row in seen.table.rows] == [*seen.shown, *exact]
    assert all(float(row[-1].replace(",", "")) > 0 for row in seen.table.rows)
    assert all(len(line) == study.depth + 1 for line in seen.lines.values())
    if exact:
        assert exact[0] == "exact" and "Exact codes (" in seen.lead
    else:
        assert f"at most {study.covered} nonzero" in seen.lead


def test_more_nonzeros_than_the_worst_case_covers_are_proved_signal_by_signal():
    """Without a sparsity the last one with nine supports in ten; all proved codes are found.

    The scale of the atoms does not count, and one class alone has the numbers that it has among
    others.
    """
    D = ur.dictionaries.gaussian(KEY, 40, 60)
    options = dict(draws=40, weights=("closed form",), measured=True)
    study = studies.certify_drawn(KEY, np.ldexp(D, np.arange(-30, 30)), **options)
    s, following = study.sparsities
    worst = ur.theory.max_sparsity(ur.analytic.certified_weights(D).mu_W, 60)
    assert study.worst == {"closed form": worst} and following - 1 == s > worst
    proved = {(row.sparsity, row.steps): row.proved for row in study.rows}
    taking = next(steps for _, steps in proved if "ratio" in steps)
    assert proved[s, taking] > 28 and proved[s, taking] >= proved[following, taking]
    errors = [row.error for row in study.rows if row.error is not None]
    assert errors and max(errors) < 1e-6
    alone = studies.certify_drawn(KEY, D, sparsity=s, **options)
    rows = [row.replace(error=None) for row in study.rows if row.sparsity == s]
    assert [row.replace(error=None) for row in alone.rows] == rows
    assert f"closed form, s = {s}" in study.text() and "the worst case ends at" in study.answer()
    nothing = studies.certify_drawn(KEY, jnp.ones((4, 5)), draws=3)
    assert nothing.text() == "" and "beyond the worst case" in nothing.answer()


def test_the_sizes_of_drawn_parts_are_those_of_drawn_entries():
    parts, entries = (_drawn._drawn(KEY, (3, 8, g), 0.7, 2) for g in (2, 1))
    sizes = np.linalg.norm(parts.reshape(3, 8, 2), axis=2)
    np.testing.assert_allclose(sizes, np.abs(entries), rtol=1e-6)
    assert (np.count_nonzero(entries, axis=1) == 2).all() and sizes.max() <= 0.7


def test_drawn_codes_in_parts_are_proved_part_by_part():
    real, imag = (ur.dictionaries.gaussian(key, 40, 60) for key in (1, 2))
    D = ur.dictionaries.normalize(ur.dictionaries.Complex(real, imag))[0]
    study = studies.certify_drawn(KEY, D, sparsity=4, draws=40, measured=True)
    assert list(study.worst) == ["closed form"] and study.worst["closed form"] < 4
    assert all(row.proved > 20 and (row.error or 0) < 1e-6 for row in study.rows)
    assert "4 parts of 2 on a random support, with sizes uniform in [0, 1]" in study.text()
    assert "the error of every part of a proved code" in study.text()
    noisy = studies.certify_drawn(KEY, D, sparsity=2, draws=5, noise=1e-3)
    assert "Noise of l2 norm at most 0.001 hides small parts" in noisy.text()
    params = ur.analytic.alista(D, depth=10, sparsity=1, bound=1.0)
    weights = studies.certify_weights(ur.alista(10), params, D, sparsity=1)
    assert weights.certificates[0].holds and "parts of at most 1 and noise of l2" in weights.text()


@pytest.mark.parametrize(
    "message, changed",
    {
        "sparsity 17 exceeds": dict(sparsity=17),
        r"sparsity\[1\] must be at least 1": dict(sparsity=(2, 0)),
        "bound must be positive": dict(bound=0.0),
        "expected some weights of closed form": dict(weights=("minimax",)),
    }.items(),
)
def test_drawn_codes_refuse_what_no_class_has(message, changed):
    with pytest.raises(ValueError, match=message):
        studies.certify_drawn(KEY, hadamard(), **dict(sparsity=2, draws=3) | changed)


@pytest.mark.filterwarnings("ignore:fit. ")  # the start is worse, too
def test_codes_that_are_worse_than_zero_are_told_what_a_guard_makes_of_them():
    """Message passing expands on atoms that are alike; ISTA does not, and is not named.

    Weights that are there have the dictionary that they were learned with, if any.
    """
    rng = np.random.default_rng(0)
    D = rng.normal(size=(8, 16)) + 3 * rng.normal(size=(8, 1))
    D = np.asarray(D / np.linalg.norm(D, axis=0), np.float32)
    Y = (rng.normal(size=(40, 16)) * (rng.random((40, 16)) < 0.1)).astype("f4") @ D.T
    layer = ur.layers.lamp(FEW["depth"])
    params, guarded = layer.init(KEY, D), dataclasses.replace(layer, guard=FEW["lam"])
    kept = {
        name: ur.training.Fit(None, params, learned_with, None, layer)
        for name, learned_with in {"v": None, "w": 2 * D}.items()
    }
    ista = ur.layers.ista(FEW["depth"], lam=FEW["lam"])
    fine = {"u": ur.training.Fit(None, ista.init(KEY, D), None, None, ista)}
    options = dict(methods=("lamp",), weights=fine | kept, **FEW)
    study = studies.unknown_codes(KEY, D, studies.Pictures(Y[:30], Y[30:]), **options)
    (told,) = [remark for remark in study.remarks if "`guard=0.1`" in remark]
    safe = {name: fit.replace(model=guarded) for name, fit in kept.items()}
    safe = {"lamp, learned": (guarded, study.methods["lamp, learned"].params), **safe}
    curves = each(ur.compare(safe, D, study.tested, lam=FEW["lam"]), "curve")
    listed = "; ".join(f"{name} {float(curve.gap[-1]):.2e}" for name, curve in curves.items())
    assert told.endswith(f"with the guard: {listed}.")
    for name, curve in curves.items():
        assert study.comparison[name].curve.worse[-1] > curve.worse[-1] == 0


def test_without_codes_half_of_the_loss_is_on_the_last_step_and_half_on_all(monkeypatch):
    losses = []

    def kept(layer, params, samples, plan, name, remarks, loss, rate):
        losses.append(loss)
        return ur.training.Fit(params, params, samples.D, None, layer)

    monkeypatch.setattr(studies._steps, "train", kept)
    studies.unknown_codes(KEY, hadamard(), signals(), methods=("ista",), **FEW)
    rng, D = np.random.default_rng(0), np.asarray(hadamard())
    X, Y = (rng.normal(size=shape).astype("f4") for shape in ((2, 3, 16), (3, 8)))
    F = (((Y - X @ D.T) ** 2).sum(2) / 2 + FEW["lam"] * np.abs(X).sum(2)).mean(1)
    loss = jax.jit(losses[0])(X, None, D, Y)
    assert float(loss) == pytest.approx(F[1] / 2 + F.mean() / 2, rel=1e-5)


@pytest.mark.slow
def test_bcd_comes_nearer_by_the_recipe_than_before_training_and_its_ranks_do_not_count():
    study = studies.unknown_codes(
        KEY, hadamard(), signals(), methods=("bcd",), **FEW | {"steps": 50}
    )
    gaps = {n: float(of.curve.gap[-1]) for n, of in study.comparison.methods.items()}
    assert list(gaps) == ["ISTA", "FISTA", "BCD, untrained", "BCD, learned"]
    assert gaps["BCD, learned"] < gaps["BCD, untrained"] and "BCD, learned" in study.seconds
    seen = study.overview()
    numbers = 16 + 3 * FEW["depth"]  # step sizes of atoms, and three numbers a step
    rival = min(("ISTA", "FISTA"), key=gaps.__getitem__)
    assert seen.sentence == (
        "After 2 steps, the gap to the optimum of the LASSO is "
        f"{gaps['BCD, learned']:.2g} for learned BCD ({numbers} numbers, 50 training steps) "
        f"and {gaps[rival]:.2g} for {rival}."
    )
    rows = {row[0]: row[1] for row in seen.table.rows}
    assert rows["BCD, learned"] == "30 signals, 50 steps"
    assert rows["BCD, untrained"] == "the dictionary"


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["known", "unknown"])
def test_families_beside_each_other_are_those_of_one_after_the_other(codes, monkeypatch):
    """In the same order, too, though the second is ready first."""
    both, ready, methods = {}, threading.Event(), ("lista_cp", "liht")
    train = studies._steps.train

    def second_first(layer, *arguments):
        if layer.family == "lista_cp" and cores > 1:
            assert ready.wait(60)
        learned = train(layer, *arguments)
        if layer.family == "liht":
            ready.set()
        return learned

    monkeypatch.setattr(studies._steps, "train", second_first)
    for cores in (1, 2):
        monkeypatch.setattr(threads, "_available", lambda cores=cores: cores)
        if codes == "known":
            study = known(hadamard(), *methods)
        else:
            study = studies.unknown_codes(KEY, hadamard(), signals(), methods=methods, **FEW)
        names = [name for name in study.seconds if name.endswith("learned")]
        both[cores] = study.comparison.table(), study.remarks, list(study.seconds)
        assert names == ["LISTA-CP, learned", "liht, learned"]
        assert "parts that ran at the same time took longer" in study.text()
    assert both[1] == both[2]


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.mark.slow
def test_what_certify_prints_is_the_study(run, folder):
    D = ur.dictionaries.gaussian(KEY, 6, 9)  # in float32
    np.save("D.npy", np.asarray(D))
    study = studies.dictionary_report(D)
    status, out, _ = run("certify", "D.npy", "--json", "--output", "c")
    page = (folder / "c" / "report.html").read_text()
    assert study.answer() in page and "<th>minimax</th>" in page
    assert status == 0 and strict_json(out) == strict_json(to_json(study.to_dict()))
    assert run("certify", "D.npy")[1] == f"D.npy: {study.text()}\n"


@pytest.mark.slow
def test_what_compare_writes_is_the_study(run, folder):
    D = ur.dictionaries.gaussian(KEY, 6, 9)
    np.save("D.npy", np.asarray(D))
    options = ("--method", "fista", "--depth", 2, "--lam", 0.1, "--sparsity", 1, "--output", "r")
    assert run("compare", "--dictionary", "D.npy", *options)[0] == 0
    written = strict_json((folder / "r" / "results.json").read_text())["sections"]
    study = known(D, "fista")
    assert written["planted"] == strict_json(to_json(study.to_dict()))
    assert study.text().strip() in (folder / "r" / "report.md").read_text()
    assert study.answer() in (folder / "r" / "report.html").read_text()
    regime = studies.certified_regime(KEY, D)
    certified = written.get("certified")
    if certified:
        assert certified.pop("signal_by_signal")["shape"] == [6, 9]
    assert certified == (strict_json(to_json(regime.to_dict())) if regime.runs else None)


def test_relu_by_name_and_without_an_activation_certify_the_same():
    with_relu, without = (
        studies.dictionary_report(hadamard(), activation=a) for a in (ur.activations.relu, None)
    )
    row = without.layers[0].table.rows["minimax"]
    assert with_relu.layers[0].activation.contraction == pytest.approx(row.contraction)
    assert with_relu.layers[0].table.rows == without.layers[0].table.rows


@pytest.mark.slow
def test_progress_is_said():
    said = []
    known(hadamard(), "alista", say=said.append)
    training, compared = "ALISTA: training 1 steps", "comparing on the test signals"
    assert said == ["ALISTA: calibrating", training, compared]


def test_a_training_that_breaks_is_a_remark(monkeypatch):
    """Its row shows the best params before, here the calibrated start."""

    def overflowing(codes, X, D, Y):
        return (codes**2).sum() * 1e38 * 1e38

    monkeypatch.setattr(ur.training, "mostly_last", overflowing)
    study = known(hadamard(), "lista_cp", steps=3)
    remark = study.remarks[-1]
    assert remark.startswith("The training of LISTA-CP broke, because its loss or gradient was not")
    calibrated, learned = (
        study.comparison[f"LISTA-CP, {kind}"].curve for kind in ("calibrated", "learned")
    )
    np.testing.assert_array_equal(calibrated.nmse, learned.nmse)
    assert remark in study.text()


@pytest.mark.slow
def test_a_pursuit_takes_from_the_samples_what_it_lacks():
    X = np.asarray(ur.problems.exact_sparse(KEY, (60, 16), 2))
    samples = studies.split(hadamard(), X @ np.asarray(hadamard()).T, X)
    pursuits = {"omp": {}, "ista": {"max_steps": 5}, "bpdn": {"eps": 0.1}}
    study = studies.known_codes(KEY, samples, methods=(), pursuits=pursuits, **FEW)
    Y, X = samples.tested_on
    s = round(float((X != 0).sum(1).mean()))
    starts = [f"omp: sparsity = {s}", "ista: max_steps = 5, lam = 0.1", "bpdn: eps = 0.1"]
    assert [r[: len(text)] for r, text in zip(study.remarks[1:4], starts)] == starts
    assert [*each(study.comparison, "given")] == list(pursuits)


@pytest.mark.slow
def test_the_minimax_weights_run_at_their_own_sparsity():
    study = studies.certified_regime(KEY, ur.dictionaries.gaussian(KEY, 12, 14), depth=60)
    curves = study.to_dict()["curves"]
    assert [curve["sparsity"] for curve in curves.values()] == [1, 1, 1, 2]
    assert list(curves)[-1] == "minimax W, s = 2"
    for curve in curves.values():
        assert (curve["measured"] <= curve["bound"] * (1 + 1e-12)).all()
    labels = [text.get_text() for text in study.figure().legends[0].get_texts()]
    assert labels == [
        f"{name}: {part}" for name in curves for part in ("certified bound", "largest error")
    ]


@pytest.mark.parametrize("below, sparsity", [(1e-8, 1), (5e-10, 0)])
def test_rounding_counts_against_a_coherence_near_one(below, sparsity):
    c = 1 - below
    D = np.array([[1, c], [0, np.sqrt(1 - c**2)]])
    with jax.enable_x64(True):
        assert studies._certificate._babel_sparsity(D, 1) == sparsity


def test_where_nothing_is_certified_there_are_no_runs():
    D = np.eye(3, dtype=np.float32)[:, [0, 1, 2, 2]] + 0.9
    study = studies.certified_regime(KEY, D, depth=2)
    assert study.runs == () and study.to_dict()["curves"] == {} and study.rows()[1] == []


FAULTS = {
    "unknown method lasso, omp; expected some of ista, ": lambda: known(
        hadamard(), "lasso", "omp", "ista"
    ),
    "depth must be at least 1, got 0": lambda: known(hadamard(), "ista", depth=0),
    "steps must be at least 0, got -1": lambda: known(hadamard(), "ista", steps=-1),
    "lam must be positive, got nan": lambda: known(hadamard(), "ista", lam=float("nan")),
    "unknown pursuit 'matching'": lambda: known(hadamard(), pursuits={"matching": {}}),
    "omp has no rank": lambda: known(hadamard(), pursuits={"omp": {"rank": 1}}),
    "expected at least 2 signals, got 1": lambda: studies.split(
        jnp.eye(2), np.ones((1, 2)), np.ones((1, 2))
    ),
    "split: Y has shape": lambda: studies.split(jnp.eye(2), np.ones((4, 3)), np.ones((4, 2))),
    "a tuple X with the codes of all 2 layers": lambda: studies.split(
        (jnp.eye(2), jnp.eye(2)), np.ones((4, 2)), np.ones((4, 2))
    ),
    "unknown_codes: Y has shape": lambda: studies.unknown_codes(
        KEY, np.eye(3, dtype="f4"), signals(), **FEW
    ),
    "tested must be at least 1, got 0": lambda: studies.unknown_codes(
        KEY, hadamard(), signals(), tested=0, **FEW
    ),
    "2 sparsities for 1 dictionaries": lambda: studies.dictionary_report(
        [hadamard()], sparsity=(1, 1)
    ),
    "depth must be at least 1": lambda: studies.certified_regime(KEY, hadamard(), depth=0),
    "must be at least 1, got 0": lambda: studies.certified_chain(KEY, depths=(0,)),
    "expected 1 within": lambda: studies.dictionary_report(2 * hadamard()),
    "unknown_codes: Y has NaN": lambda: studies.unknown_codes(
        KEY, hadamard(), signals()._replace(training=np.full((30, 8), np.nan)), methods=("ista",)
    ),
    "there are no pictures": lambda: studies.photograph_patches({}),
    "picture a has NaN": lambda: studies.photograph_patches({"a": np.full((16, 16), np.nan)}),
}


@pytest.mark.few(5)
@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_refused_in_words(message):
    with pytest.raises(ValueError, match=message):
        FAULTS[message]()


def test_an_activation_is_known_by_its_name():
    by_name = studies.dictionary_report(hadamard(), activation="elu")
    assert (
        by_name.text()
        == studies.dictionary_report(hadamard(), activation=ur.activations.elu(1.0)).text()
    )


def test_weights_that_improve_nothing_are_not_said_to_guarantee_nothing():
    """The bound of a class is one of each smaller class, below which its zero codes may be."""
    D, layer = hadamard(), ur.alista(4)
    params = ur.analytic.alista(D, depth=4, sparsity=1, bound=1.0)
    answers = [
        studies.certify_weights(layer, params, D, sparsity=1, bound=bound).answer()
        for bound in (1.0, 1e-4)
    ]
    assert "guarantee an l1 error of at most" in answers[0]
    assert "guarantee no l1 error below 1.00e-04, the error of zero codes" in answers[1]


def test_a_chain_of_weights_is_certified_for_one_nonzero_in_every_layer():
    Ds, layer = (hadamard(), np.eye(16, dtype="f4")), ur.alista(4)
    params = tuple(ur.analytic.alista(D, depth=4, sparsity=1, bound=1.0) for D in Ds)
    one = studies.certify_weights(layer, params[0], Ds[0], sparsity=1).certificates[0]
    study = studies.certify_weights(ur.dsc([layer, layer]), params, Ds)
    assert study.sparsities == (1, 1) and study.shapes == ((8, 16), (16, 16))
    np.testing.assert_array_equal(study.certificates[0].error, one.error)


@pytest.mark.slow
def test_studies_take_convolutions_of_any_norm():
    """Without a warning, and with the optimum of the matrix; steps of a `Conv` are safe ones."""
    filters = np.random.default_rng(0).normal(size=(2, 1, 3)).astype("f4")
    conv = ur.dictionaries.Conv(filters, 10)
    unit, _ = ur.dictionaries.normalize(conv)
    Y = np.random.default_rng(1).normal(size=(40, 10)).astype("f4")
    given = studies.Pictures(Y[:30], Y[30:])
    found, expected = (
        studies.unknown_codes(KEY, D, given, methods=("ista",), **FEW).optimum.x
        for D in (unit, ur.dictionaries.dense(unit))
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)  # gaps of 1e-9 leave the root of that
    text = known(conv, "alista").text()
    assert "The atoms were normalised for the theory" in text
    assert isinstance(studies.dictionary_report(unit).figure(), Figure)


def test_constant_signals_have_no_psnr():
    given = studies.Pictures(np.ones((30, 8), "f4"), np.ones((10, 8), "f4"))
    study = studies.unknown_codes(KEY, hadamard(), given, methods=(), **FEW)
    assert "constant signals, which have no PSNR" in study.text() and "-inf" not in study.text()


def test_each_layer_of_a_chain_is_made_on_the_codes_of_the_layer_before():
    rng, given, layer = np.random.default_rng(0), [], ur.layers.ista(2)
    shapes = (4, 6), (6, 8), (3, 4), (3, 6), (3, 8)
    *Ds, Y, X, Z = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    samples = _steps.Samples(tuple(Ds), None, (Y, (X, Z)), None, None)

    def make(samples):
        given.append(samples)
        return layer, layer.init(None, samples.D)

    _, params = _known_codes._made_in_chain(samples, make)
    codes = jax.vmap(layer.apply, (None, None, 0))(params[0], Ds[0], Y)
    assert [one.chosen_on[1] is X for one, X in zip(given, (X, Z))] == [True, True]
    np.testing.assert_allclose(given[1].chosen_on[0], codes, rtol=1e-5)


def test_the_sum_of_two_babel_functions_is_below_1_by_more_than_rounding(monkeypatch):
    """Of a simplex of four atoms they are s / 3, and the second sum is 1."""
    monkeypatch.setattr(_certificate.theory, "babel", lambda D, s: s / 3 * (1 - 1e-12))
    assert _certificate._babel_sparsity(None, 4) == 1


def test_a_chain_is_reported_with_what_theory_says_of_its_numbers(monkeypatch):
    """The noise of the signals is that of the first layer, the others have none."""
    asked = {}

    def told(name):
        def tell(Ds, *args, **options):
            asked[name] = args, options
            return name

        return tell

    for module, name in (("theory", "stability"), ("analytic", "plan"), ("theory", "uniqueness")):
        monkeypatch.setattr(getattr(_certificate, module), name, told(name))
    weights = [SimpleNamespace(sparsity=s) for s in (3, 2)]
    layers = [
        SimpleNamespace(table=SimpleNamespace(rows={"minimax": w}, weights={"minimax": w.sparsity}))
        for w in weights
    ]
    request = SimpleNamespace(bound=2.0, noise=0.1, tolerance=1e-3)
    report = _certificate._chain_report((None, None), layers, request, lambda message: None)
    both = dict.fromkeys(("mu", "mu~"), "uniqueness")
    assert report == studies.ChainReport((3, 2), both, "stability", "plan", 1e-3)
    options = dict(Ws=[3, 2], sparsities=(3, 2), bounds=(2.0, 2.0), noises=(0.1, 0.0), tol=1e-3)
    assert asked["plan"] == ((), options) and asked["stability"][0] == ((3, 2), 0.0, 1.0)


def test_the_noise_of_a_sample_is_the_largest_l1_norm_of_what_its_codes_leave():
    D, rng = np.asarray(hadamard()), np.random.default_rng(0)
    X, noise = rng.normal(size=(5, 16)).astype("f4"), rng.normal(size=(5, 8)).astype("f4")
    found = _steps._noise(D, X @ D.T + noise, X)
    expected = np.abs(noise).sum(1).max(), np.abs(X @ D.T + noise).sum(1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("holds", [True, False])
def test_a_schedule_is_run_where_it_holds(holds, monkeypatch):
    schedule, measured = SimpleNamespace(holds=holds), SimpleNamespace(errors=np.ones(3), wrong=4)
    made = lambda *_, **__: (SimpleNamespace(mu_W=0.1), schedule)  # noqa: E731
    monkeypatch.setattr(_certified.analytic, "block_schedule", made)
    monkeypatch.setattr(_certified.analytic, "lista_cp", lambda *_, **__: None)
    monkeypatch.setattr(_certified, "_measured", lambda *_: measured)
    D = np.eye(4, dtype="f4")
    found = _certified._certified_run(D, "W", D, 1, 2, jax.random.key(0))
    assert (found.weights, found.sparsity, found.mu_W) == ("W", 1, 0.1)
    assert found.schedule is schedule
    assert (found.measured.tolist(), found.wrong) == (([1.0] * 3, 4) if holds else ([], 0))


def test_the_objective_of_codes_is_that_of_the_lasso():
    Y, X = np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[0.0, 1.0], [-2.0, 0.0]])
    found = _unknown_codes._objectives(np.eye(2), Y, X, 0.5)
    np.testing.assert_allclose(found, [2 / 2 + 0.5, 13 / 2 + 1.0])


def test_a_sample_without_noise_starts_with_the_thresholds_of_none():
    D, layer = hadamard(), ur.alista(4)
    X = np.eye(16, dtype="f4")
    samples = _steps.Samples(D, None, (X @ np.asarray(D).T, X), (None, None))
    starts = _steps.from_theory(samples, layer)
    _, schedule = ur.analytic.block_schedule(D, depth=4, sparsity=1, bound=1.0)
    np.testing.assert_allclose(starts.params[layer].steps.theta, schedule.theta, rtol=1e-4)


def test_the_largest_error_is_the_l1_error_of_the_worst_signal():
    x, X = np.array([[1.0, -2.0], [0.0, 2.0]]), np.array([[0.0, 0.0], [0.0, -2.0]])
    assert _certified._largest_error(x, X) == 4


def test_nonzeros_are_those_of_a_code_and_seconds_are_told_where_there_are_some():
    matrix, joint = np.eye(12), ur.dictionaries.Joint(jnp.eye(4), 3)
    assert _steps.nonzeros(matrix, np.eye(3, 12)) == _steps.nonzeros(joint, np.eye(3, 12)) == 1
    ones = np.ones((2, 12))
    assert (_steps.nonzeros(matrix, ones), _steps.nonzeros(joint, ones)) == (12, 4)
    X = studies.planted(KEY, joint, sparsity=2).tested_on[1]
    assert _steps.nonzeros(joint, X) == pytest.approx(2, abs=0.2)  # 6 deviations of 1,000 signals
    assert _steps.spent({}) == "" and _steps.spent({"fit": 1.25}).endswith("longer: fit 1.2.")
