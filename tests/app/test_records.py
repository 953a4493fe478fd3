"""What studies say of made records, and what they run, against direct calls of the library."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_line import strict_json
from forms import K, changed, check_forms, curve, made
from matplotlib.figure import Figure

import unrolled as ur
from unrolled._base.text import to_json
from unrolled.app import studies
from unrolled.app.studies import _certificate, _certified, _known_codes, _steps, _unknown_codes
from unrolled.vision import datasets

pytestmark = pytest.mark.usefixtures("float32_by_default")
KEY = jax.random.key(0)
ROUNDING = 1e-5  # of float32, through a few products of at most 16 terms


def hadamard():
    return np.asarray(ur.dictionaries.identity_hadamard(8))


def sparse(signals=40, d=16, s=2):
    rng = np.random.default_rng(0)
    places = np.argsort(rng.random((signals, d)), axis=1)[:, :s]
    X = np.zeros((signals, d), np.float32)
    np.put_along_axis(X, places, rng.uniform(-1, 1, (signals, s)), 1)
    return X


def samples(D=None):
    """Signals of D, or of a chain of D and the identity, whose codes are those of `sparse`."""
    X = sparse()
    Ds = (hadamard(), np.eye(16, dtype="f4"))
    if D == "chain":
        Y, codes, D = X @ Ds[0].T, (X, X), Ds
    else:
        D = Ds[0] if D is None else D
        Y, codes = X @ D.T, X
    first, last = (
        jax.tree.map(lambda a: a[:30], (Y, codes)),
        jax.tree.map(lambda a: a[30:], (Y, codes)),
    )
    return _steps.Samples(D, None, first, last)


# Certified regime and chain


def schedule(error, holds=True):
    error = np.asarray(error, float)
    return SimpleNamespace(holds=holds, contraction=0.5, error=error, steps_for=lambda tol: 41.0)


def regime(measured=(1, 0.5, 0.25)):
    runs = (
        studies.CertifiedRun(
            "W = D", 1, 0.1, schedule((1, 0.6, 0.3)), np.asarray(measured, float), 3
        ),
        studies.CertifiedRun("minimax W", 2, 0.3, schedule((1,), holds=False), np.zeros(0), 0),
    )
    largest = {"W = D": 1, "closed-form W": 1, "minimax W": 2}
    return studies.CertifiedRegime((8, 16), 2, largest, 1, runs)


def numbers_drawn(figure):
    """The y values of every line of a figure."""
    return [line.get_ydata().tolist() for axes in figure.axes for line in axes.get_lines()]


def test_a_certified_regime_shows_errors_where_its_schedules_hold():
    study = regime()
    check_forms(study, rows=3)
    common = ["0.500", "True", "41", "1"]
    assert study.parts()[-1].rows == [
        ["W = D", "1", "0.1000", *common, "3", "2.50e-01", "3.00e-01"],
        ["minimax W", "2", "0.3000", "0.500", "False", "41", "2", "", "", ""],
    ]
    head, rows = study.rows()
    assert rows == [
        ["W = D", 1, 0, 1.0, 1.0],
        ["W = D", 1, 1, 0.5, 0.6],
        ["W = D", 1, 2, 0.25, 0.3],
    ]
    assert study.table("records") == [dict(zip(head, row)) for row in rows]
    assert strict_json(to_json(study.to_dict())) == {
        "largest_sparsity": study.largest,
        "curves": {
            "W = D, s = 1": {"sparsity": 1, "measured": [1, 0.5, 0.25], "bound": [1, 0.6, 0.3]}
        },
    }
    welch = ur.theory.max_sparsity(ur.theory.welch_bound(8, 16), 16)
    text = study.text()
    assert text == "\n".join(study.parts()) and f"at most {welch} for any" in text
    assert "at most 1 nonzeros for W = D" in text and "2 for the minimax weights" in text
    assert "2 steps" in text
    (drawn,) = study.figures().values()
    lines = numbers_drawn(drawn())
    assert [1, 0.5, 0.25] in lines and [1, 0.6, 0.3] in lines


@pytest.mark.parametrize("last, verdict", [(0.3, "stay below their bounds"), (0.31, "exceed a bo")])
def test_errors_are_said_to_exceed_a_bound_where_one_does(last, verdict):
    start = "Theory certifies up to 2 nonzeros; the measured errors "
    assert regime((1, 0.5, last)).answer().startswith(start + verdict)


def test_a_certified_chain_shows_both_layers_and_the_printed_proof():
    measured, bounds = (np.array([2.0, 1.0]), np.array([0.5, 0.25])), ([4.0, 3.0], [0.75, 0.5])
    bounds = tuple(map(np.asarray, bounds))
    fast = studies.ChainRun((0.1, 0.2), measured, bounds, 4, 9.0)
    study = studies.CertifiedChain(fast, {7: fast, 9: fast.replace(printed=8.0)})
    check_forms(study, rows=4)
    assert [row for row in study.rows()[1]] == [
        ["layer 1", 0, 2.0, 4.0],
        ["layer 1", 1, 1.0, 3.0],
        ["layer 2", 0, 0.5, 0.75],
        ["layer 2", 1, 0.25, 0.5],
    ]
    text = study.text()
    for said in (
        "contractions are (0.100, 0.200)",
        "are 1.0e+00 and 2.5e-01 under bounds of 3.0e+00 and 5.0e-01, with 4 wrong entries",
        "| 7 | 5.00e-01 | 2.50e-01 | 9.00e+00 |\n| 9 | 5.00e-01 | 2.50e-01 | 8.00e+00 |",
    ):
        assert said in text
    assert "an l1 error of 5.0e-01 after 40 steps in each layer; 2.5e-01 was" in study.answer()
    data = strict_json(to_json(study.to_dict()))
    assert list(data["slow"]) == ["7", "9"] and data["slow"]["9"]["printed"] == 8
    (drawn,) = study.figures().values()
    lines = numbers_drawn(drawn())
    assert all(values.tolist() in lines for values in (*measured, *bounds))


def test_errors_and_wrong_entries_are_those_of_the_equation_of_lista_cp():
    """x <- soft(x - W'(D x - y), theta), here with thresholds that let wrong entries pass."""
    D, X, theta = hadamard(), sparse(), np.float32([0.05, 0.03, 0.01])
    Y, layer = X @ D.T, ur.lista_cp(3)
    params = layer.init(None, D)
    params = params._replace(steps=params.steps._replace(theta=theta))
    found = _certified._measured(params, D, Y, X)
    x, W, errors, wrong = np.zeros_like(X), np.asarray(params.shared.W), [], 0
    errors.append(np.abs(x - X).sum(1).max())
    for t in theta:
        v = x - (x @ D.T - Y) @ W
        x = np.sign(v) * np.maximum(np.abs(v) - t, 0)
        errors.append(np.abs(x - X).sum(1).max())
        wrong += int(((x != 0) & (X == 0)).sum())
    np.testing.assert_allclose(found.codes, x, atol=ROUNDING)
    np.testing.assert_allclose(found.errors, errors, rtol=1e-4)
    assert wrong and found.wrong == wrong


def test_the_minimax_weights_run_at_their_own_sparsity_if_it_is_larger(monkeypatch):
    """The last of the runs is theirs, and without more nonzeros there is no such run."""
    mu = iter([0.3, 0.3, 0.1])
    monkeypatch.setattr(_certified, "_certified_run", lambda D, name, W, s, K, key: (name, s, K))
    monkeypatch.setattr(_certified.theory, "frobenius_weights", lambda D: D)
    monkeypatch.setattr(
        _certified.theory, "generalized_coherence", lambda D, **_: SimpleNamespace(W=D)
    )
    certify = lambda D, W: SimpleNamespace(mu_W=next(mu))  # noqa: E731
    monkeypatch.setattr(_certified.analytic, "certified_weights", certify)
    said = []
    study = studies.certified_regime(KEY, hadamard(), depth=5, say=said.append)
    s, most = (ur.theory.max_sparsity(m, 16) for m in (0.3, 0.1))
    names = ("W = D", "closed-form W", "minimax W")
    assert study.runs == (*((name, s, 5) for name in names), ("minimax W", most, 5))
    assert said[-1] == f"the certified regime: s = {s}, {most}"


@pytest.mark.parametrize("s", [1, 5])
def test_a_run_stays_below_its_bound_where_its_schedule_holds(s, monkeypatch):
    """Theorem 12: no wrong entry either. Five nonzeros are too many for this dictionary."""
    monkeypatch.setattr(_certified, "_SIGNALS", 40)
    with jax.enable_x64(True):
        D = ur.dictionaries.identity_hadamard(8)
        run = _certified._certified_run(D, "W = D", D, s, 4, KEY)
    assert (run.name, run.sparsity) == (f"W = D, s = {s}", s)
    assert run.mu_W == pytest.approx(8**-0.5) and run.wrong == 0
    assert run.schedule.holds == (s == 1) and len(run.measured) == (5 if s == 1 else 0)
    if s == 1:
        assert (run.measured <= run.schedule.error).all() and run.measured[0] > 0.8


def test_a_chain_stays_below_its_bounds_in_both_layers(monkeypatch):
    """Theorem 6: the l1 error of layer 1 is noise in layer 2."""
    monkeypatch.setattr(_certified, "_CHAIN_SIGNALS", 40)
    with jax.enable_x64(True):
        Ds = ur.dictionaries.identity_hadamard(16), np.eye(32)
        run = _certified._chain_run(*Ds, (2, 2), (4, 4), KEY)
        options = dict(depths=(4, 4), sparsities=(2, 2), bounds=(1.0, 1.0), Ws=Ds)
        _, schedules = ur.analytic.chain_schedules(Ds, **options)
    assert run.contractions == tuple(s.contraction for s in schedules) and run.wrong == 0
    for measured, bound, of in zip(run.measured, run.bounds, schedules):
        np.testing.assert_array_equal(bound, of.error)
        assert (measured <= bound).all() and 0.5 < measured[0] <= 2
    assert 0 < run.printed != run.measured[1][-1]  # thresholds of the proof ignore that noise


def test_the_certified_chain_runs_its_fast_and_its_slow_layers(monkeypatch):
    asked, said = [], []

    def run(D_1, D_2, sparsities, depths, key):
        np.testing.assert_allclose(np.sum(np.asarray(D_2) ** 2, 0), 1, atol=1e-12)
        asked.append((D_1.shape, D_2.shape, sparsities, depths))
        return len(asked)

    monkeypatch.setattr(_certified, "_chain_run", run)
    monkeypatch.setattr(
        _certified.dictionaries,
        "transversal",
        lambda key, *sizes: np.eye(508, 700) + np.eye(508, 700, 508),
    )
    study = studies.certified_chain(KEY, depths=(3, 5), say=said.append)
    shapes = (256, 512), (512, 700)
    assert asked == [(*shapes, s, (K, K)) for s, K in (((4, 1), 40), ((8, 2), 3), ((8, 2), 5))]
    assert (study.fast, study.slow) == (1, {3: 2, 5: 3})
    assert said == ["a two-layer chain with certified bounds"]


# Params from theory


def test_atoms_of_any_norm_start_with_the_params_of_unit_atoms_scaled_back():
    """The codes are those of unit atoms, divided by the norms."""
    norms = np.exp2(np.arange(16, dtype="f4") % 3 - 1)
    unit, layer = samples(), ur.alista(4)
    (Y, X), D = unit.chosen_on, hadamard()
    scaled = unit._replace(D=D * norms, chosen_on=(Y, X / norms))
    one, other = (studies.from_theory(of, layer) for of in (unit, scaled))
    p, q = one.params[layer], other.params[layer]
    theta, W = np.asarray(p.steps.theta)[:, None], np.asarray(p.shared.W)
    np.testing.assert_allclose(q.steps.theta, theta / norms, rtol=1e-4)
    np.testing.assert_allclose(q.shared.W, W / norms, rtol=1e-4)
    assert other.remark == f"{one.remark} The atoms were normalised for the theory, and the " + (
        "params were scaled back."
    )
    assert (other.caution, other.covered) == (one.caution, one.covered)


def test_weights_of_a_structured_dictionary_stay_structured_when_they_are_scaled():
    filters = np.random.default_rng(0).normal(size=(2, 1, 3)).astype("f4")
    W = ur.dictionaries.Conv(filters, 6)
    norms = np.exp2(np.arange(W.shape[1], dtype="f4") % 3 - 1)
    found = _steps._divided(W, norms)
    assert isinstance(found, ur.dictionaries.Structured)
    dense = ur.dictionaries.dense
    np.testing.assert_allclose(dense(found), np.asarray(dense(W)) / norms, rtol=ROUNDING)


@pytest.mark.parametrize("holds", [True, False])
def test_a_schedule_that_does_not_hold_is_a_caution_in_the_remark(holds):
    a = 0.25 if holds else 1.5
    remark, caution = _steps._certified(0.125, SimpleNamespace(contraction=a, holds=holds), 3, 16)
    s = ur.theory.max_sparsity(0.125, 16)
    covers = f"theory covers up to {s} nonzeros and this sample has up to 3 (contraction {a}"
    if holds:
        assert (remark, caution) == (f"Guaranteed, with mu_W = 0.1250: {covers} < 1).", "")
    else:
        assert caution.startswith(f"No guarantee here: {covers}, not below 1)")
        assert "about 1.5 per step" in caution and remark.startswith(caution + " The analytic")


@pytest.mark.parametrize("family", ["ista", "fista"])
def test_the_best_lam_has_the_least_error_of_the_grid(family):
    of, layer = samples(), ur.layers.FAMILIES[family](2)
    D, (Y, X) = of.D, of.chosen_on
    best = _steps.best_lam(of, 2, family)
    grid = layer.recipe.tried(ur.training.law_of(D, Y, X))["lam"]

    def error(lam):
        codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(ur.analytic.ista(D, lam, 2), D, Y)
        return float(((codes - X) ** 2).sum())

    errors = {float(lam): error(lam) for lam in grid}
    assert best in errors and errors[best] <= min(errors.values()) * (1 + ROUNDING)
    assert max(errors.values()) > 1.1 * errors[best]


# Sentences and small parts of reports


SAID = {
    "no noise is known": (lambda: samples().noise(), ""),
    "planted without noise": (
        lambda: samples()._replace(snr=math.inf).noise(),
        ", without noise",
    ),
    "planted with noise": (lambda: samples()._replace(snr=30.0).noise(), ", SNR 30 dB"),
    "a pursuit has what it needs": (
        lambda: _steps._completed("omp", {"tol": 0.1}, {"sparsity": 3, "lam": 0.2}),
        {"tol": 0.1},
    ),
    "a pursuit lacks a sparsity": (
        lambda: _steps._completed("omp", {}, {"sparsity": 3, "lam": 0.2}),
        {"sparsity": 3},
    ),
    "a pursuit lacks a lam": (
        lambda: _steps._completed("ista", {"max_steps": 5}, {"sparsity": 3, "lam": 0.2}),
        {"max_steps": 5, "lam": 0.2},
    ),
    "a pursuit lacks a lam that nobody knows": (
        lambda: _steps._completed("lasso", {}, {"sparsity": 3, "lam": None}),
        {},
    ),
    "a pursuit that is not known": (lambda: _steps._completed("x", {}, {"sparsity": 3}), {}),
    "a family has the lam of the study": (
        lambda: _steps.layer_of("lista_cp", 3, 0.1, 2),
        ur.lista_cp(3, lam=0.1),
    ),
    "a family has its own lam": (lambda: _steps.layer_of("ista", 3, None, 2), ur.layers.ista(3)),
    "a family needs a sparsity": (
        lambda: getattr(_steps.layer_of("liht", 3, 0.1, 2), "sparsity", None),
        2,
    ),
    "a method of a recipe": (
        lambda: _known_codes._families(
            _steps.plan(KEY, ("ista", "alista", "lamp"), None, 2, None, 1, _steps.silent)
        ),
        {"alista": ("ALISTA", "alista", {"support": None}), "lamp": ("lamp", "lamp", {})},
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_parts_of_reports_and_plans(case):
    work, expected = SAID[case]
    assert work() == expected


def test_patches_of_photographs_are_tiles_of_the_last_picture_and_patches_of_the_others():
    rng = np.random.default_rng(0)
    first, last = rng.random((16, 24)), rng.random((24, 16))
    found = studies.photograph_patches({"a": first, "b": last})
    patches = datasets.to_patches(first, 8, 3)
    np.testing.assert_allclose(found.training, patches - patches.mean(1, keepdims=True), atol=1e-12)
    assert found.testing.shape == (6, 64) and found.picture.shape == (24, 16)
    again = datasets.from_patches(found.testing + found.picture.mean, (24, 16), 8)
    np.testing.assert_allclose(again, last, atol=1e-12)
    alone = studies.photograph_patches({"b": last})
    assert alone.training.shape == (len(datasets.to_patches(last, 8, 3)), 64)


def test_rows_of_curves_have_a_step_unless_the_codes_are_given_and_leave_undefined_cells_empty():
    undefined = np.where(np.arange(K) == 1, np.nan, 0.5)
    curves = {"A": curve(1.0, recall=undefined), "omp": curve(0.25)}
    head, rows = _steps.curve_rows(changed(made(curves), "omp", given=True))
    assert head == ["method", "step", *_steps._FIELDS] and len(rows) == 2 * K
    table = [dict(zip(head, row)) for row in rows]
    assert [row["step"] for row in table] == [*range(1, K + 1)] + [""] * K
    assert [row["recall"] for row in table[:3]] == [0.5, "", 0.5]
    assert {row["gap"] for row in table} == {""}
    assert [row["nmse"] for row in table[:3]] == [1, 0.5, 0.25] and table[K]["nmse"] == 0.25


def test_psnr_is_left_out_where_true_codes_judge():
    result = made({"A": curve(1.0)})
    for known in (True, False):
        (shown,) = _steps._without_psnr(result.replace(known=known)).methods.values()
        assert (shown.curve.psnr is None) == known


# Studies of methods


@pytest.fixture
def untrained(monkeypatch):
    """Recipes that begin where the family does, and trainings that end where they begin."""

    def prepared(samples, run, family, options):
        layer = ur.layers.FAMILIES[family](run.depth, **options)
        return ur.training.Start(layer, layer.init(run.key, samples.D), None, None, 0.0, 0.0)

    def train(layer, params, samples, plan, name, remarks):
        remarks.append(f"{name} broke")
        return SimpleNamespace(best=("learned", name, params))

    def calibrate(layer, params, D, Y, X):
        return "calibrated", layer, params, len(Y)

    monkeypatch.setattr(_known_codes, "_prepared", prepared)

    def pursue(name, Ds, Y, options):
        return SimpleNamespace(codes=(f"of {name}",), missed=2, zeros=len(Y))

    monkeypatch.setattr(_steps, "train", train)
    monkeypatch.setattr(_steps, "pursue", pursue)
    monkeypatch.setattr(_known_codes.analytic, "calibrate", calibrate)


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_methods_beside_each_other_are_classical_analytic_calibrated_and_learned(untrained):
    of, X, seconds, said = samples(), sparse()[:30], {}, []
    names = ("ista", "fista", "alista", "lista_cp", "lamp")
    run = _steps.plan(KEY, names, {"omp": {}}, 2, 0.1, 3, said.append)
    methods, remarks, caution, covered = _known_codes._methods(of, run, seconds)
    kinds = [
        f"{title}, {kind}"
        for title in ("LISTA-CP", "ALISTA")
        for kind in ("analytic, s = 1", "analytic, s = 2", "calibrated", "learned")
    ]
    kind = "calibrated" if ur.layers.lamp(2).recipe.calibrated else "untrained"
    trained = ["lamp, learned"] if ur.layers.lamp(2).recipe.rate else []
    own = ["ISTA", "ISTA, calibrated", "FISTA", *kinds, f"lamp, {kind}", *trained, "omp"]
    assert list(methods) == own
    ista = ur.analytic.ista(hadamard(), 0.1, 2)
    for name, layer in (("ISTA", ur.layers.ista(2)), ("FISTA", ur.layers.fista(2))):
        assert methods[name].layer == layer and methods[name].origin == "untrained"
        same(methods[name].params, ista)
    kind, of_layer, params, signals = methods["ISTA, calibrated"].params
    assert (kind, of_layer, signals) == ("calibrated", ur.layers.ista(2), 30)
    assert methods["ISTA, calibrated"].sample == 30
    same(params, ista)
    theory = studies.from_theory(of, ur.alista(2, support=None), ur.lista_cp(2))
    for title, layer in (("ALISTA", ur.alista(2, support=None)), ("LISTA-CP", ur.lista_cp(2))):
        analytic = methods[f"{title}, analytic, s = 2"]
        assert analytic.layer == layer and analytic.bound == pytest.approx(np.abs(X).max())
        same(analytic.params, theory.params[layer])
        start = methods[f"{title}, calibrated"].params
        same(start, layer.init(KEY, hadamard()))
        assert methods[f"{title}, learned"].params[:2] == ("learned", title)
        assert methods[f"{title}, learned"].params[2] is start
        assert {f"{title}, before training", f"{title}, learned"} <= set(seconds)
    assert methods["omp"] == "of omp"
    assert (caution, covered) == (theory.caution, theory.covered)
    assert remarks[0] == "ISTA uses lam = 0.1, FISTA uses lam = 0.1."
    missed = "2 codes miss their tolerance; "
    missed += "10 signals are negligible next to the largest: coded as zero"
    assert remarks[1:3] == [f"omp: sparsity = 2; {missed}.", theory.remark]
    assert set(remarks[3:]) >= {"LISTA-CP broke", "ALISTA broke"}
    assert {"omp: 10 test signals", "ALISTA: training 3 steps"} <= set(said)


def test_a_family_that_has_no_rate_is_not_trained(untrained, monkeypatch):
    layer = SimpleNamespace(recipe=SimpleNamespace(rate=0.0))
    start = SimpleNamespace(layer=layer)
    monkeypatch.setattr(_known_codes, "_prepared", lambda *_: start)
    monkeypatch.setattr(_known_codes.jax, "block_until_ready", lambda made: made)
    said = []
    run = _steps.plan(KEY, (), None, 2, 0.1, 3, said.append)
    made = _known_codes._made(samples(), run, ("title", "family", {}))
    assert made.title == "title" and made.start is start and made.learned is None
    assert said == ["title: calibrating"] and list(made.seconds) == ["title, before training"]


def test_layers_of_a_chain_are_classical_analytic_calibrated_and_learned(untrained):
    of, seconds, remarks = samples("chain"), {}, []
    run = _steps.plan(KEY, ("ista", "alista"), None, 2, 0.1, 3, _steps.silent)
    methods = _known_codes._chain_methods(of, run, seconds, remarks)
    kinds = "analytic", "calibrated", "learned"
    assert list(methods) == ["ISTA", *(f"ALISTA, {kind}" for kind in kinds)]
    network, params = methods["ISTA"].layer, methods["ISTA"].params
    assert network.layers == (ur.layers.ista(2),) * 2
    for D, of_layer in zip(of.D, params):
        same(of_layer, ur.analytic.ista(D, 0.1, 2))
    alista = ur.alista(2, support=None)
    assert methods["ALISTA, analytic"].layer.layers == (alista,) * 2
    first = of._replace(D=of.D[0], chosen_on=(of.chosen_on[0], of.chosen_on[1][0]))
    same(methods["ALISTA, analytic"].params[0], studies.from_theory(first, alista).params[alista])
    same(methods["ALISTA, calibrated"].params[1], alista.init(KEY, of.D[1]))
    assert methods["ALISTA, learned"].params[:2] == ("learned", "ALISTA")
    assert remarks == ["ALISTA broke"] and list(seconds) == [
        "ALISTA, before training",
        "ALISTA, learned",
    ]


@pytest.mark.parametrize("of", ["a dictionary", "a chain"])
def test_a_study_judges_its_methods_and_the_given_weights_on_the_test_signals(of, monkeypatch):
    chained, asked, said = of == "a chain", [], []
    given, own = (
        samples("chain" if chained else None),
        {"ISTA": ur.comparison.Method("layer", "params"), "omp": "codes"},
    )

    def methods(samples, run, seconds, *remarks):
        seconds["ISTA"] = 2.0
        return own if chained else (own, ["a remark"], "a caution", 3)

    def compared(*arguments, **options):
        asked.append((arguments, options))
        return "a comparison"

    monkeypatch.setattr(_known_codes, "_chain_methods" if chained else "_methods", methods)
    monkeypatch.setattr(_steps, "compared", compared)
    options = dict(depth=2, weights={"mine": "fit"}, say=said.append)
    options |= {} if chained else dict(sampled=3, certify=True)
    study = studies.known_codes(KEY, given, **options)
    (((of_methods, *rest), more),) = asked
    assert of_methods == own | {"mine": "fit"} and study.comparison == "a comparison"
    expected = (given.D, *given.tested_on)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, tuple(rest), expected))
    assert study.seconds == {"ISTA": 2.0} and study.depth == 2 and study.samples is given
    if chained:
        assert more == {} and said == ["comparing on the test signals"]
    else:
        assert more == dict(sampled=3, certify=True, predict=False)
        assert said == ["comparing on the test signals, and proving their codes"]
        assert study.methods == {"ISTA": own["ISTA"]} and study.covered == 3
        assert (study.remarks, study.caution) == (["a remark"], "a caution")
    if chained:
        with pytest.raises(ValueError, match="are of one dictionary, got a chain"):
            studies.known_codes(KEY, given, depth=2, certify=True)


@pytest.mark.parametrize("family, lam", [("ista", 0.25), ("ista", None), ("lamp", 0.25)])
def test_a_recipe_has_the_lam_of_the_study_where_its_family_has_one(family, lam, monkeypatch):
    asked = []
    monkeypatch.setattr(
        _known_codes.training, "prepare", lambda *given, **options: asked.append((given, options))
    )
    of, run = samples(), _steps.plan(KEY, (), None, 2, lam, 1, _steps.silent)
    _known_codes._prepared(of, run, family, {})
    ((name, D, Y, X), options), has = asked[0], hasattr(ur.layers.FAMILIES[family](2), "lam")
    assert name == family and D is of.D and Y is of.chosen_on[0] and X is of.chosen_on[1]
    expected = {"lam": 0.25} if lam and has else {}
    assert options == dict(depth=2, key=options["key"], **expected)


def judged(of, depth, title="ISTA"):
    """A comparison of ISTA, by the library."""
    Ds, (Y, X) = of.D, of.tested_on
    if isinstance(Ds, tuple):
        params = tuple(ur.analytic.ista(D, 0.1, depth) for D in Ds)
        methods = {title: (ur.dsc([ur.layers.ista(depth)] * len(Ds)), params)}
    else:
        methods = {title: (ur.layers.ista(depth), ur.analytic.ista(Ds, 0.1, depth))}
    return methods, ur.compare(methods, Ds, Y, X)


def test_a_study_of_known_codes_shows_its_comparison():
    of = samples()
    methods, result = judged(of, 2)
    result = _steps._without_psnr(result)
    study = studies.KnownCodes(2, result, ["a remark"], {"a": 1.5}, of, "", methods, 1)
    check_forms(study, rows=1)
    assert study.rows() == _steps.curve_rows(result) and len(study.rows()[1]) == 2
    D, X = of.D, of.tested_on[1]
    codes = jax.vmap(ur.layers.ista(2).apply, (None, None, 0))(methods["ISTA"][1], D, X @ D.T)
    nmse = 10 * np.log10(((codes - X) ** 2).sum() / (X**2).sum())
    assert dict(zip(*[study.rows()[0], study.rows()[1][-1]]))["nmse"] == pytest.approx(
        nmse, rel=1e-3
    )
    text = study.text()
    assert text == "\n".join(study.parts())
    assert text.startswith(
        "Dictionary 8 x 16, 10 test signals with 2.0 nonzeros on average, K = 2 "
    )
    assert "use 30 other signals" in text and "a remark" in text
    for part in (result.table(all=True), result.parameters_table(), result.guarantees_table()):
        assert part in text
    assert study.answer() == result.why and repr(study) == repr(result)
    assert strict_json(to_json(study.to_dict()))["seconds"] == {"a": 1.5}
    assert [type(draw()) for draw in study.figures().values()] == [Figure]


def test_a_study_of_a_chain_shows_its_comparison_layer_by_layer():
    of = samples("chain")
    _, result = judged(of, 2)
    study = studies.KnownChain(2, result, ["a remark"], {"a": 1.5}, of)
    check_forms(study)
    head, rows = study.rows()
    for j, layer in enumerate(result.layers, start=1):
        one, of_layer = _steps.curve_rows(layer)
        assert [row[1:] for row in rows if row[0] == j] == of_layer and head == ["layer", *one]
    text, X = study.text(), of.tested_on[1][0]
    assert text == "\n".join(study.parts())
    assert text.startswith("A chain of 2 dictionaries") and "a remark" in text
    mu = ur.analytic.certified_weights(of.D[0]).mu_W
    s = ur.theory.max_sparsity(mu, 16)
    most = np.count_nonzero(X, 1).max()
    assert f"| 1 | 8 x 16 | 2.0 | {most} | {mu:.4f} | {s} |\n| 2 | 16 x 16 |" in text
    assert "2 steps in every layer, 10 test signals" in text
    assert study.answer() == result.why and repr(study) == repr(result)
    assert strict_json(to_json(study.to_dict()))["seconds"] == {"a": 1.5}
    assert [type(draw()) for draw in study.figures().values()] == [Figure]


def test_a_study_of_unknown_codes_rebuilds_its_picture_from_the_codes_of_ista_and_of_the_last():
    rng = np.random.default_rng(0)
    D = np.asarray(ur.dictionaries.dct((8, 8), (9, 9)), np.float32)
    images = {"a": rng.random((16, 24)), "b": rng.random((16, 24)).astype("f4")}
    given = jax.tree.map(np.float32, studies.photograph_patches(images)[:2])
    given = studies.Pictures(*given, studies.photograph_patches(images).picture)
    layer, lams = ur.layers.ista(2), (0.1, 0.01, 0.02)
    names = ("ISTA", "A", "last")
    params = [ur.analytic.ista(D, lam, 2) for lam in lams]
    methods = {n: ur.comparison.Method(layer, p) for n, p in zip(names, params)}
    result = made({"ISTA": curve(1.0), "last": curve(0.5), "lasso": curve(0.25)})
    result = changed(result, "lasso", given=True)
    some = dict(x=given.testing @ D, gap=np.float32([1e-7] * 6), converged=np.arange(6) > 2)
    optimum = SimpleNamespace(**some)
    solved = (D, given, given.testing, 0.1, optimum)
    study = _unknown_codes.UnknownCodes(2, result, ["a remark"], {}, *solved, methods)
    run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    shown, tiles = study.rebuilt(), given.testing
    assert [name.partition(",")[0] for name in shown] == ["original", "ISTA", "last"]
    np.testing.assert_allclose(shown["original"], images["b"], atol=ROUNDING)
    for name, picture in list(shown.items())[1:]:
        rows = np.asarray(run(methods[name.partition(",")[0]].params, D, tiles)) @ D.T
        expected = datasets.from_patches(rows + given.picture.mean, (16, 24), 8)
        np.testing.assert_allclose(picture, expected, atol=1e-4)
        psnr = float(ur.metrics.psnr(rows, tiles))
        assert float(name.split()[-2]) == pytest.approx(psnr, abs=0.006)
    head, rows = study.rows()
    assert head[-1] == "psnr" and [row[-1] for row in rows[:3]] == [1, 0.5, 0.25]
    assert [row[-1] for row in rows if row[0] == "lasso"][0] == 0.25
    assert study.psnr["last"][1] == 0.25
    data = strict_json(to_json(study.to_dict()))
    assert data["lam"] == 0.1 and data["psnr"]["ISTA"][0] == 1
    assert len(study.figures()) == 2 and isinstance(list(study.figures().values())[1](), Figure)
    assert study.replace(signals=studies.Pictures(tiles, tiles)).rebuilt() == {}
    text = study.text()
    rebuilt = optimum.x @ D.T
    psnr = float(ur.metrics.psnr(rebuilt, tiles, float(np.ptp(tiles))))
    assert "gap of at most 1.0e-07 (certified for 50.0% of the signals)" in text
    assert f"PSNR of {psnr:.2f} dB" in text and "a remark" in text and "6 test signals" in text


@pytest.mark.parametrize(
    "methods, names",
    [
        (
            _steps.BY_DEFAULT,
            ["LISTA-CP, untrained", "LISTA-CP, learned", "BCD, untrained", "BCD, learned"],
        ),
        (("bcd", "lfista_cp"), ["LFISTA-CP, learned", "BCD, untrained", "BCD, learned"]),
        (("alista_ss", "ista"), ["ISTA, learned", "ALISTA-SS, untrained", "ALISTA-SS, learned"]),
        (("lamp",), ["lamp, untrained", "lamp, learned"]),
    ],
)
def test_without_codes_methods_are_trained_on_the_objective_of_the_lasso(
    methods, names, monkeypatch
):
    """The recipe trains bcd. By default are those left out that codes calibrate, and a remark
    names them.
    """
    of, remarks, seconds, asked = samples(), [], {}, {}

    def train(layer, params, samples, plan, name, remarks, loss, rate):
        asked[name] = layer, params, loss, rate
        return SimpleNamespace(best=("learned", name))

    def by_recipe(D, sample, lam, depth, *, key, family, steps, progress):
        assert D is of.D and sample is of.sample and (depth, family, steps) == (2, "bcd", 3)
        loss = ur.training.lasso_loss(lam)
        layer = ur.layers.bcd(depth, lam=lam)
        return train(layer, layer.init(None, D), of, run, "BCD", remarks, loss, 1e-3)

    monkeypatch.setattr(_steps, "train", train)
    monkeypatch.setattr(_unknown_codes.training, "unsupervised", by_recipe)
    run = _steps.plan(KEY, methods, None, 2, 0.1, 3, _steps.silent)
    found = _unknown_codes._trained_on_lasso(of, 0.1, 2, run, seconds, remarks)
    assert list(found) == ["ISTA", "FISTA", *names]
    same(found["FISTA"].params, ur.analytic.ista(of.D, 0.1, 2))
    left = [text for text in remarks if "Without known codes" in text]
    if methods == _steps.BY_DEFAULT:
        assert "the tables have no rows of alista, alista_ss and of learned ISTA" in left[0]
    else:
        assert not left
    x = np.full((3, 2, 16), 0.5, np.float32)
    D, Y = of.D, of.tested_on[0][:2]
    values = ((Y - x[0] @ D.T) ** 2).sum(1) / 2 + 0.1 * np.abs(x[0]).sum(1)
    for title, (layer, params, loss, rate) in asked.items():
        same(params, layer.init(KEY, of.D))
        learned = found[f"{title}, learned"]
        assert (learned.layer, learned.params) == (layer, ("learned", title))
        assert (learned.steps, learned.sample) == (3, 30)
        assert f"{title}, learned" in seconds and rate == (3e-3 if title == "ISTA" else 1e-3)
        assert getattr(layer, "lam", 0.1) == 0.1
        assert float(loss(x, None, D, Y)) == pytest.approx(values.mean(), rel=1e-4)


def test_a_dictionary_that_lacks_rank_is_certified_in_its_range_and_says_so():
    report = studies.dictionary_report(hadamard()).layers[0]
    lacking = report.replace(rank=5).text()
    said = "8 x 16 of numerical rank 5: every statement holds in the numerical range"
    assert said in lacking and "numerical range" not in report.text()
    assert lacking.replace(said, "8 x 16") == report.text()


# A chain that is certified


def plan(holds):
    errors = [np.array([1.0, 0.25]), np.array([2.0, 0.5])]
    schedules = [SimpleNamespace(error=error) for error in errors] if holds else []
    reason = "" if holds else "mu is 1"
    return SimpleNamespace(
        holds=holds, reason=reason, depths=(3, 4) if holds else (), schedules=schedules
    )


def chain(holds=True):
    Ds = (hadamard(), np.eye(16, dtype="f4"))
    unique = {"mu": ur.theory.uniqueness(Ds, (1, 1))}
    stability = ur.theory.stability(Ds, (1, 1), 0.0, 1.0, Ws=Ds)
    return _certificate.ChainReport((1, 1), unique, stability, plan(holds), 1e-3)


@pytest.mark.parametrize("holds", [True, False])
def test_a_chain_has_a_column_for_every_layer(holds):
    report = chain(holds)
    unique, delta = report.unique["mu"], report.stability.delta
    errors = ["0.25", "0.5"] if holds else ["inf", "inf"]
    rows = {row[0]: row[1:] for row in report.parts()[0].rows}
    assert rows["certified l1 error"] == errors
    assert rows["steps to 0.001"] == (["3", "4"] if holds else [])
    assert rows["sparsity"] == ["1", "1"]
    assert rows["unique by mu"] == [str(bool(u)) for u in unique.unique]
    assert rows["  mu: found by l1"] == [str(bool(u)) for u in unique.l1]
    assert rows["  mu: from layer"] == [str(int(j)) for j in unique.path]
    assert list(map(float, rows["  mu: sparsity below"])) == pytest.approx(unique.bounds, rel=1e-5)
    assert list(map(float, rows["error per noise (l2)"])) == pytest.approx(delta, rel=1e-5)
    reasons = [] if holds else ["the plan does not hold: mu is 1"]
    lines = report.text().splitlines()
    assert lines[0] == "chain" and report.parts()[1:] == reasons
    assert lines[1].split() == ["layer", "1", "2"] and lines[len(rows) + 2 :] == reasons
    data = strict_json(to_json(report.to_dict()))
    assert data["plan"]["holds"] == holds and data["plan"]["reason"] == ("" if holds else "mu is 1")
    assert data["uniqueness"]["mu"]["unique"] == unique.unique.tolist()
    assert data["stability"]["holds"] == report.stability.holds


def test_weights_that_are_certified_have_a_row_for_every_layer():
    Ds, layer = (hadamard(), np.eye(16, dtype="f4")), ur.alista(4)
    params = tuple(ur.analytic.alista(D, depth=4, sparsity=1, bound=1.0) for D in Ds)
    study = studies.certify_weights(ur.dsc([layer, layer]), params, Ds, sparsity=(1, 1))
    check_forms(study, rows=2)
    for row, certificate in zip(study.table("records"), study.certificates):
        assert row["error_at_the_start"] == float(certificate.error[0])
        assert row["guaranteed_error"] == float(certificate.error[-1]) and row["holds"]
        assert row["largest_sparsity"] == certificate.largest_sparsity
        assert (row["family"], row["sparsity"]) == ("alista", 1)
    assert [row["layer"] for row in study.table("records")] == [1, 2]


def test_a_report_of_a_chain_has_its_layers_and_the_chain():
    layers = [
        SimpleNamespace(
            text=lambda j=j: f"layer {j}",
            parts=lambda j=j: [f"part {j}"],
            admissible={"mu": j, "mu~": 2 * j},
            to_dict=lambda j=j: {"d": j},
        )
        for j in (3, 5)
    ]
    one, both = studies.Report(tuple(layers[:1]), None), studies.Report(tuple(layers), chain())
    assert one.text() == "layer 3" and one.parts() == ["part 3"] and one.to_dict() == {"d": 3}
    assert (
        one.answer()
        == "Codes with at most 6 nonzeros are unique, and basis pursuit finds these codes."
    )
    assert both.text() == f"layer 3\n\nlayer 5\n\n{chain().text()}"
    assert both.parts()[:2] == ["part 3", "part 5"] and len(both.parts()) == 3
    assert both.answer() == (
        "At most 6, 10 nonzeros are admissible in the layers; the plan of steps holds."
    )
    assert studies.Report(tuple(layers), chain(False)).answer().endswith("steps does not hold.")
    assert both.to_dict()["layers"] == [{"d": 3}, {"d": 5}] and "plan" in both.to_dict()["chain"]
