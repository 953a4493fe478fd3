"""Figures cannot mislead: looks differ, curves are named, nothing outside the axes is lost."""

import ast
import json
import pickle
import re
import types
from pathlib import Path

import numpy as np
import pytest
from forms import K, curve, made
from matplotlib.figure import Figure

import unrolled as ur
from unrolled import plots
from unrolled.app.studies._steps import curve_rows
from unrolled.plots import _curves

KINDS = ("", "analytic", "calibrated", "learned")
OWN = ("mine", "yours", "mine, seed 1", "mine, seed 2", "learned ISTA", "analytic", "LISTA-CP, x")


def look(line):
    return line.get_color(), line.get_linestyle(), line.get_marker()


def variants(*families):
    return [f"{f}, {kind}" if kind else f for f in families for kind in KINDS]


def marks(panel):
    """The heights of the marks at the border: 1 at the top and 0 at the bottom."""
    found = [c for c in panel.collections if c.get_transform() != panel.transData]
    border = [c for c in found if c.get_clip_on() is False]
    return [float(y) for c in border for y in np.asarray(c.get_offsets())[:, 1]]


# Looks


def test_jupyter_shows_a_figure_without_pyplot():
    """The formatter of IPython asks for `_repr_png_`, of a figure that was stored, too."""
    figure, _ = plots.figure(1, 1)
    copied = pickle.loads(pickle.dumps(figure))
    assert copied._repr_png_()[:8] == figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_no_two_methods_of_a_figure_look_the_same():
    names = [*variants("ISTA", "FISTA", "LISTA", "LISTA-CP", "ALISTA", "ALISTA-SS"), *OWN]
    assert len(names) >= 25
    figure = made({name: curve(1.0) for name in names}).plot()
    for panel in figure.axes:
        assert len({look(line) for line in panel.lines}) == len(names)
        # A point that is alone has a marker, and so has each line somewhere.
        assert all(line.get_markevery() is not None for line in panel.lines)


def test_no_two_of_very_many_names_look_the_same():
    names = [f"family {i}, variant {j}" for i in range(24) for j in range(24)]
    assert len({tuple(v.items()) for v in plots.styles(names).values()}) == len(names) == 576
    with pytest.raises(ValueError, match="at most 576 names, got 577"):
        plots.styles([*names, "one more"])


def test_two_curves_of_a_figure_differ_without_their_markers():
    """A chart of a report has no markers; families beyond the twelfth share colours."""
    own = (name for name, family in ur.layers.FAMILIES.items() if "unrolled." in family.__module__)
    kinds = [(family, kind) for family in ("ISTA", "LISTA-CP", "BCD") for kind in ("", "learned")]
    shown = {f"{i}": kind for i, kind in enumerate([*kinds, ("BCD", "untrained"), ("FISTA", "")])}
    for names in (shown, [*own]):
        looks = plots.styles(names).values()
        assert len({(look["color"], look["linestyle"]) for look in looks}) == len(names)
    assert len({look["color"] for look in plots.styles(shown).values()}) == 4  # families


def test_curves_that_coincide_have_their_markers_at_different_steps():
    figure = made({name: curve(1.0) for name in ("ISTA", "LISTA-CP, analytic")}).plot()
    first, second = (
        set(range(K)[slice(a, None, b)])
        for a, b in (line.get_markevery() for line in figure.axes[0].lines)
    )
    assert first and second and not first & second


# Legends


def legends(figure):
    """The names in legends and beside lines."""
    found = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    beside = [text.get_text() for panel in figure.axes for text in panel.texts]
    return [text.get_text() for legend in found for text in legend.get_texts()] + beside


def test_every_curve_is_in_a_legend():
    names = variants("ISTA", "LISTA-CP", "ALISTA", "own", "yours", "theirs", "fourth")
    figure = made({name: curve(1.0) for name in names}).plot()
    assert set(legends(figure)) == set(names)
    assert all(line.get_label() in names for a in figure.axes for line in a.lines)
    errors = {name: (0.5 ** np.arange(9), 0.6 ** np.arange(9)) for name in names}
    figure = plots.bound(errors, title="")
    lines = figure.axes[0].lines
    assert {line.get_label() for line in lines} == set(legends(figure))
    assert len({look(line) for line in lines}) == len(lines) == 2 * len(names)


def watched(layer, steps=2, prediction=None):
    D = ur.dictionaries.identity_hadamard(8)
    watch = ur.comparison.evolution(layer, D, prediction=prediction)
    for step in range(steps):
        watch(types.SimpleNamespace(step=step, loss=1.0, validation=1.0), layer.init(None, D))
    return watch


@pytest.mark.few(1)
@pytest.mark.parametrize("tied", [True, False])
def test_the_lines_of_a_training_have_a_legend_and_a_bar(tied):
    prediction = ur.theory.schedule(0.2, 1.0, sparsity=1, bound=1.0, depth=3)
    figure = watched(ur.lista_cp(3, tied=tied), prediction=prediction).plot()
    assert legends(figure) == ["all steps together", "theory"]
    (bar,) = [a for a in figure.axes if a.get_ylabel() == "step of the network"]
    assert bar.get_ylim() == (1, 3)
    colours = {line.get_color() for a in figure.axes for line in a.lines if a is not bar}
    assert "black" in colours and len(colours) == 4


def test_lines_of_a_training_lose_what_only_an_axis_of_powers_cannot_show():
    """The band of a mean reaches from the least to the largest entry of all steps."""
    values = {"step": [0, 9], "theta": [[1, 0], [2, 3]], "diagonal_mean": [[-1, 0], [0, 1]]}
    values |= {"diagonal_low": [[-4, -2], [-3, -5]], "diagonal_high": [[2, 4], [5, 3]]}
    watch = types.SimpleNamespace(series=lambda name: np.array(values[name]), prediction=None)
    for name in ("theta", "diagonal_mean"):
        _curves._lines(panel := Figure().subplots(), watch, name)
        drawn = np.array([line.get_ydata() for line in panel.lines])[:2].T
        assert (drawn != values[name]).tolist() == [[False, name == "theta"], [False, False]]
    assert {*panel.collections[0].get_paths()[0].vertices[:, 1]} == {-4, -5, 4, 5}


def test_the_band_of_the_diagonal_encloses_all_entries_of_all_steps():
    layer = ur.lista_cp(2, tied=False)
    params = layer.init(None, D := ur.dictionaries.identity_hadamard(8))
    scaled = params._replace(
        steps=params.steps._replace(W=params.steps.W * np.array([[[1.0]], [[3.0]]]))
    )
    watch = ur.comparison.evolution(layer, D)
    for step, given in enumerate((params, scaled)):
        watch(types.SimpleNamespace(step=step, loss=1.0, validation=1.0), given)
    (panel,) = [a for a in watch.plot().axes if a.get_title().startswith("Mean of w_i")]
    (band,) = panel.collections
    y = band.get_paths()[0].vertices[:, 1]
    ends = watch.series("diagonal_low").min(), watch.series("diagonal_high").max()
    assert (y.min(), y.max()) == pytest.approx(ends)


# Coherence at a unit diagonal


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::unrolled.comparison.DivergenceWarning")
def test_the_coherence_of_weights_is_taken_at_a_unit_diagonal():
    """Neither a scale nor a sign per atom changes it; what a step meets is told beside it."""
    D, layer = ur.dictionaries.identity_hadamard(8), ur.lista_cp(2)
    params = layer.init(None, D)
    scales = np.where(np.arange(16) % 2, -3.0, 0.25)[None, :]
    moved = params._replace(shared=params.shared._replace(W=params.shared.W * scales))
    Y, X = D.T, np.eye(16)
    methods = {"start": (layer, params), "scaled": (layer, moved)}
    result = ur.compare(methods, D, Y, X)
    start, scaled = result["start"].coupling, result["scaled"].coupling
    eps = 32 * np.finfo(float).eps  # inner products of 8 terms, divided
    for field in ("mu_W", "off_diagonal"):
        np.testing.assert_allclose(getattr(scaled, field), getattr(start, field), rtol=eps)
    mu = float(ur.mutual_coherence(D))
    assert start.mu_W == pytest.approx([mu], rel=eps)
    W = np.asarray(params.shared.W)
    products = np.abs(W.T @ np.asarray(D))[~np.eye(16, dtype=bool)]
    assert start.largest_product == pytest.approx([products.max()], rel=eps)
    assert scaled.largest_product == pytest.approx([3 * products.max()], rel=eps)
    norms = np.linspace(0.1, 9, 16)[None, :]
    unscaled = params._replace(shared=params.shared._replace(W=params.shared.W / norms))
    other = ur.compare({"own": (layer, unscaled)}, D * norms, Y, X)["own"].coupling
    for field in ("mu_W", "off_diagonal"):
        np.testing.assert_allclose(getattr(other, field), getattr(start, field), rtol=eps)
    cells = [row.split("|")[2].strip() for row in result.parameters_table().splitlines()[2:]]
    assert cells == [f"{mu:.4f}"] * 2
    *_, weights = result.plot().axes
    for line in weights.lines:
        np.testing.assert_allclose(line.get_ydata(), mu, rtol=eps)
    assert "w_i . d_i scaled to 1" in weights.get_title()


@pytest.mark.slow
def test_weights_that_miss_their_atom_have_an_infinite_coherence():
    D, layer = ur.dictionaries.identity_hadamard(8), ur.lista_cp(2)
    W = np.array(D)
    W[:, 0] = np.eye(8)[1]
    params = layer.init(None, D)
    params = params._replace(shared=params.shared._replace(W=W))
    found = ur.compare({"own": (layer, params)}, D, D.T, np.eye(16))
    assert found["own"].coupling.mu_W == np.inf
    panel = found.plot().axes[-1]
    assert "above the axis: own (to inf)" in panel.get_xlabel() and marks(panel) == [1.0, 1.0]


def test_the_products_of_a_picture_are_those_of_a_unit_diagonal():
    D = np.asarray(ur.dictionaries.identity_hadamard(8))
    G = D.T @ D
    figure = plots.gram([{"plain": G, "scaled": np.linspace(-2, -1, 16)[:, None] * G}])
    titles = [a.get_title() for a in figure.axes[:2]]
    assert titles == ["plain: mu_W = 0.3536", "scaled: mu_W = 0.3536"]
    worse = G + np.where(np.eye(16), 0, 1.0)
    figure = plots.gram([{"plain": G, "worse": worse}])
    assert legends(figure) == ["plain", "worse, 240 beyond"]
    for nothing in ([], [{}]):
        with pytest.raises(ValueError, match="gram: expected one dictionary or more"):
            plots.gram(nothing)
    with pytest.raises(ValueError, match=r"gram: 'D' has shape \(8, 16\); expected \(d, d\), W'D"):
        plots.gram([{"D": D}])


# Undefined scores


@pytest.mark.slow
def test_codes_that_are_all_zero_have_no_precision():
    D, layer = ur.dictionaries.identity_hadamard(8), ur.lista_cp(K)
    silent = layer.init(None, D)
    silent = silent._replace(steps=silent.steps._replace(theta=np.full(K, 1e3)))
    methods = {"ISTA": (ur.layers.ista(K), ur.analytic.ista(D, 0.1, K)), "silent": (layer, silent)}
    result = ur.compare(methods, D, D.T, np.eye(16))
    assert np.isnan(result["silent"].curve.precision).all()
    titles, _, *rows = (
        [c.strip() for c in r.split("|")] for r in result.table(all=True).splitlines()
    )
    (row,) = [dict(zip(titles, row)) for row in rows if "silent" in row]
    assert row["precision"] == "" and row["recall"] == "0.000"
    held = json.loads(result.to_json())["methods"]["silent"]["curve"]
    assert held["precision"] == [None] * K and held["recall"] == [0.0] * K
    header, rows = curve_rows(result)
    assert all(row[header.index("precision")] == "" for row in rows if row[0] == "silent")
    figure = result.plot(note="A reason.")
    (precision,) = [a for a in figure.axes if a.get_ylabel() == "precision"]
    assert "not a number: silent" in precision.get_xlabel()
    told = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert told.startswith("Flat lines, because all codes are zero") and told.endswith(
        "silent. A reason."
    )


# Outside the axes


def test_what_leaves_the_panels_is_marked_and_named():
    bad = curve(1.0, nmse=np.r_[np.full(K - 1, 6.7e9), np.inf], gap=np.full(K, -1e-9))
    good = curve(1.0, nmse=np.linspace(0, -40, K), gap=np.full(K, 0.1))
    lost = curve(1.0, nmse=np.full(K, np.nan), gap=np.full(K, 1e9))
    thresholds = {"good": np.ones(K), "bad": np.full(K, 0.0), "lost": np.ones(K)}
    figure = made({"good": good, "bad": bad, "lost": lost}, thresholds).plot()
    error, gap, *_, theta, _ = figure.axes
    low, high = error.get_ylim()  # 5 % beyond the lines that are shown
    assert -45 < low < -40 and 0 < high < 50 and marks(error) == [1.0] * K
    label = " ".join(error.get_xlabel().split())
    assert "\u25b2 above the axis: bad (to inf)" in label and "not a number: lost" in label
    assert marks(gap) == [0.0] * K + [1.0] * K
    label = " ".join(gap.get_xlabel().split())
    assert "\u25bc below the axis: bad (to -1e-09)" in label and "lost (to 1e+09)" in label
    assert "\u25bc below the axis: bad (to 0)" in theta.get_xlabel()


def test_one_method_at_least_stays_in_the_panel():
    figure = made(
        {"far": curve(1.0, nmse=np.full(K, 90.0)), "away": curve(1.0, nmse=np.full(K, 1e6))}
    ).plot()
    low, high = figure.axes[0].get_ylim()
    assert low < 90 < high < 1e6 and marks(figure.axes[0]) == [1.0] * K


def test_a_panel_without_outliers_has_neither_marks_nor_notes():
    for panel in made({"a": curve(1.0), "b": curve(2.0)}).plot().axes:
        assert marks(panel) == [] and panel.get_xlabel() == "step"


def test_rounding_does_not_fill_an_axis():
    mu = 0.125 * (1 + 1e-7 * np.arange(K))
    figure = made({"a": curve(1.0)}, mu_W={"a": mu}).plot()
    low, high = figure.axes[-1].get_ylim()
    assert low < mu.min() and mu.max() < high and high - low >= 0.00125


def test_zero_and_infinite_errors_of_a_bound_are_marked():
    errors = np.r_[1.0, 0.1, 0.0], np.r_[1.0, np.inf, 1e-3]
    (panel,) = plots.bound({"a": errors}, title="").axes
    told = " ".join(panel.get_xlabel().split())
    assert "above the axis: a: certified bound (to inf)" in told
    assert "below the axis: a: largest error (to 0)" in told and sorted(marks(panel)) == [0.0, 1.0]


def test_thresholds_of_a_training_that_are_not_positive_are_marked():
    watch = watched(ur.lista_cp(3))
    at = watch.evaluations[1]
    watch.evaluations[1] = at.replace(theta=np.array([0.1, -0.1, 0.1]), validation=np.nan)
    loss, theta, *_ = watch.plot().axes
    assert "below the axis: step 2 (to -0.1)" in theta.get_xlabel()
    assert "not a number: all (1 of 2)" in loss.get_xlabel()
    assert theta.get_yscale() == "log"
    watch.evaluations[:] = [each.replace(theta=np.zeros(3)) for each in watch.evaluations]
    assert watch.plot().axes[1].get_yscale() == "linear"  # which has a place for 0


def test_titles_say_what_is_drawn():
    result = made({"a": curve(1.0, gap=np.ones(K))})
    titles = [a.get_title() for a in result.plot(codes="LASSO codes").axes]
    assert titles[0].startswith("Distance to the LASSO codes")
    assert titles[1] == "Gap to the LASSO optimum" and "LASSO codes" in titles[2] + titles[3]
    assert result.plot().axes[0].get_title().startswith("Distance to the true codes")


# Axes

UNIT = re.compile(r"dB|%|, s$|pixels")
# Counts, ratios, and magnitudes of codes and weights, which have no unit.
WITHOUT_UNIT = {
    *("step", "training step", "step of the network", "layer", "entry", "entries", "signal"),
    *("atom, the most used first", "share of signals", "share of exact zeros", "precision"),
    *("recall", "share", "(F - F*) / F*", "(J(c x) - J*) / (J(0) - J*)", "in both / in either"),
    *("least |x* - c x| / |x*|", "|S - (I - W'D)| / |S|", "|w_i . d_j| / |w_i . d_i|"),
    *("mean theta", "mu_W of each step", "mu_W", "w_i . d_i", "rms of w_i . d_j", "mean |x|"),
    *("value", "l1 error of the code", "loss", "mean objective"),
}


FIGURES = {
    "comparison": lambda: made({"a": curve(1.0)}).plot(),
    "gaps": lambda: made({"a": curve(1.0, gap=np.ones(K))}).plot(),
    "chain": lambda: ur.comparison.ChainComparison((made({"a": curve(1.0)}),) * 2).plot(),
    "evolution": lambda: watched(ur.lista_cp(3)).plot(),
    "uncoupled": lambda: watched(ur.lista(3)).plot(),
    "bound": lambda: plots.bound({"a": (np.ones(3), np.ones(3))}, title=""),
    "losses": lambda: plots.losses([ur.training.Record(0, 1.0, 1.0, 0.0)]),
    "use": lambda: plots.use({"a": np.eye(3)}),
    "learning": lambda: plots.learning({"a": history([2.0, 1.0], [1, 0])}),
    "gram": lambda: plots.gram([{"a": np.eye(3)}]),
    "codes": lambda: plots.codes(np.eye(3)),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_every_axis_has_a_label_with_its_unit(draw):
    for panel in draw().axes:
        if panel.axison:
            bar = hasattr(panel, "_colorbar")
            labels = [panel.get_xlabel().partition("\n")[0], panel.get_ylabel()]
            labels = list(filter(None, labels)) if bar else labels
            assert labels
            assert all(label in WITHOUT_UNIT or UNIT.search(label) for label in labels), labels


@pytest.mark.parametrize("folder", ["unrolled", "benchmarks"])
def test_labels_in_the_sources_have_their_units(folder):
    """Of the figures that take longer to draw: studies, experiments, benchmarks."""
    more = {"products with a matrix, per signal", "(F - F*) / F* on other pictures"}
    more |= {"CPU time per signal, microseconds", "time per signal, microseconds"}
    more |= {"ratio c(S)", "share of the supports"}
    more |= {"measurements g", "supports recovered"}
    more |= {"training loss", "NMSE", "unexplained variance"}  # of classes; and of a docstring
    sources = (p.read_text() for p in (Path(ur.__file__).parents[1] / folder).rglob("*.py"))
    for source in sources:
        for node in ast.walk(ast.parse(source if "label=" in source else "")):
            if isinstance(node, ast.keyword) and node.arg in ("xlabel", "ylabel"):
                label = getattr(node.value, "value", "dB")  # made of parts: its figure is drawn
                assert label in WITHOUT_UNIT | more or UNIT.search(str(label)), label


# Atoms, codes, pictures


def shown(figure, panel=0):
    (picture,) = figure.axes[panel].images
    return picture


def assert_zero_is_grey(picture, top):
    assert picture.get_clim() == (-top, top)
    red, green, blue, _ = picture.cmap(picture.norm(0.0))
    assert red == green == blue and abs(red - 0.5) < 0.01


def test_atoms_are_tiled_row_by_row_on_one_signed_scale():
    D = np.arange(-20.0, 28.0).reshape(6, 8)
    figure = plots.atoms(D, (2, 3), columns=3)
    picture = shown(figure)
    sheet = picture.get_array()
    assert sheet.shape == (3 * 3 - 1, 3 * 4 - 1)
    for i in range(8):
        row, column = 3 * (i // 3), 4 * (i % 3)
        np.testing.assert_array_equal(
            sheet[row : row + 2, column : column + 3], D[:, i].reshape(2, 3)
        )
    assert sheet.mask.sum() == sheet.size - D.size  # gaps, and the place of a ninth atom
    assert_zero_is_grey(picture, 27.0)
    assert figure.axes[0].get_title() == "8 atoms of 2 x 3"


def test_atoms_of_a_convolution_are_its_filters():
    rng = np.random.default_rng(0)
    for kernel, channels in (((3, 4), 2), ((5,), 1), ((5,), 3)):
        filters = rng.normal(size=(4, channels, *kernel))
        D = ur.dictionaries.Conv(filters, (9,) * len(kernel))
        figure = plots.atoms(D, columns=2)
        first = shown(figure).get_array()[: kernel[0] if len(kernel) == 2 else 1]
        flat = filters.reshape(4, channels, -1, kernel[-1])
        expected = np.concatenate(flat[0], -1)
        np.testing.assert_array_equal(first[:, : expected.shape[1]], expected)
        assert_zero_is_grey(shown(figure), np.abs(filters).max())
        assert figure.axes[0].get_title().startswith("4 filters of ")


def test_atoms_with_channels_and_atoms_that_are_zero():
    D = np.random.default_rng(0).normal(size=(12, 5))
    figure = plots.atoms(D, (2, 2, 3), columns=5)
    np.testing.assert_array_equal(shown(figure).get_array()[:2, :3], D[:6, 0].reshape(2, 3))
    np.testing.assert_array_equal(shown(figure).get_array()[:2, 3:6], D[6:, 0].reshape(2, 3))
    assert_zero_is_grey(shown(plots.atoms(np.zeros((4, 3)), (2, 2))), 1.0)


def test_atoms_stand_in_the_order_of_their_use():
    D = np.arange(12.0).reshape(4, 3)
    codes = np.array([[0, 1.0, 0], [0, -1.0, 9.0]])
    figure = plots.atoms(D, (2, 2), columns=3, codes=codes)
    assert figure.axes[0].get_title() == "3 atoms of 2 x 2, the most used first"
    for place, i in enumerate((1, 2, 0)):
        tile = shown(figure).get_array()[:, 3 * place : 3 * place + 2]
        np.testing.assert_array_equal(tile, D[:, i].reshape(2, 2))
    # A filter is used by a signal wherever it stands: twice in one signal counts once.
    filters = np.arange(1.0, 5.0).reshape(2, 1, 2)
    D = ur.dictionaries.Conv(filters, 4, boundary="circular")
    codes = np.zeros((2, 2, 4))
    codes[0, 0] = 1.0
    codes[:, 1, 2] = 0.1
    sheet = shown(plots.atoms(D, columns=1, codes=codes.reshape(2, 8))).get_array()
    np.testing.assert_array_equal(sheet[::2], filters[::-1, 0])
    for bad, words in ((np.ones((2, 7)), "have 7 entries; expected 8"), (np.ones(8), r"\(n, d\)")):
        with pytest.raises(ValueError, match=f"atoms: .*{words}"):
            plots.atoms(D, codes=bad)


@pytest.mark.parametrize(
    "D, shape, words",
    [
        (np.ones((16, 3)), None, r"an atom has 16 entries, got shape None.*try shape=\(4, 4\)"),
        (np.ones((6, 3)), (2, 2), r"got shape \(2, 2\).*try shape=\(1, 6\)"),
        (ur.dictionaries.Conv(np.ones((2, 1, 3)), 8), (1, 3), "no `shape` with them"),
        (
            ur.dictionaries.Conv(np.ones((2, 1, 2, 2, 2)), (3, 3, 3)),
            None,
            r"\(2, 2, 2\); expected one or",
        ),
        (np.ones(4), (2, 2), "atoms: "),
        (np.full((4, 3), np.nan), (2, 2), "atoms: D has NaN or infinite entries"),
    ],
)
def test_atoms_refuses_what_has_no_picture(D, shape, words):
    with pytest.raises(ValueError, match=words):
        plots.atoms(D, shape)


def test_codes_keep_signs_and_lose_no_nonzero():
    X = np.random.default_rng(0).normal(size=(4, 30))
    picture = shown(plots.codes(X))
    np.testing.assert_array_equal(picture.get_array(), X)
    assert_zero_is_grey(picture, np.abs(X).max())
    assert shown(plots.codes(X[0])).get_array().shape == (1, 30)
    long = np.zeros((300, 1000))
    long[123, 777], long[299, 999] = -2.0, 1.0
    figure = plots.codes(long)
    cells = shown(figure).get_array()
    assert cells.shape == (100, 250) and cells[41, 194] == -2.0 and cells[99, 249] == 1.0
    assert np.count_nonzero(cells) == 2
    assert (
        "300 codes of 1000 entries; a cell shows the largest of 3 x 4" == figure.axes[0].get_title()
    )
    for bad in (np.ones((2, 2, 2)), np.ones((0, 3)), 1.0):
        with pytest.raises(ValueError, match=r"codes: expected \(batch, d\) or \(d,\)"):
            plots.codes(bad)


def test_entries_that_are_not_finite_are_crossed_and_counted():
    X = np.eye(3)
    X[0, 2], X[2, 0] = np.nan, np.inf
    for figure in (
        plots.codes(X),
        plots.images({"a": X}, signed=True),
    ):
        assert "2 not finite (crosses)" in figure.axes[0].get_title()
        assert len(figure.axes[0].collections[0].get_offsets()) == 2
    (crosses,) = plots.codes(X).axes[0].collections
    assert {tuple(at) for at in np.asarray(crosses.get_offsets())} == {(2.0, 0.0), (0.0, 2.0)}


def test_images_with_signs_share_a_scale_and_others_say_what_is_clipped():
    a, b = np.array([[-1.0, 0.0]]), np.array([[0.5, 3.0]])
    figure = plots.images({"a": a, "b": b}, signed=True)
    for panel in (0, 1):
        assert_zero_is_grey(shown(figure, panel), 3.0)
    np.testing.assert_array_equal(shown(figure, 1).get_array(), b)
    titles = [panel.get_title() for panel in plots.images({"a": a, "b": b / 3}).axes]
    assert titles == ["a\n50.00% outside 0 to 1, clipped", "b"]
    for bad in ({}, {"a": a, "b": np.ones((2, 2))}, {"a": np.ones((2, 2, 3))}):
        with pytest.raises(ValueError, match="images: expected pictures of one shape"):
            plots.images(bad)


# Learning of dictionaries


def test_the_use_of_atoms_is_that_of_the_codes():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 6)) * (rng.random((50, 6)) < np.linspace(0, 1, 6))
    figure = plots.use({"online": X, "ksvd": np.ones((3, 4))})
    share, size = figure.axes
    assert legends(figure) == ["online", "ksvd"]
    order = sorted(range(6), key=lambda i: -np.count_nonzero(X[:, i]))
    np.testing.assert_array_equal(share.lines[0].get_ydata(), (X != 0).mean(0)[order])
    np.testing.assert_allclose(size.lines[0].get_ydata(), np.abs(X).mean(0)[order], rtol=1e-14)
    assert share.lines[1].get_ydata().tolist() == [1.0] * 4
    assert share.get_xlabel().endswith("never used: online 1 of 6")
    assert share.get_ylim()[0] == size.get_ylim()[0] == 0
    told = plots.use({"ksvd": np.ones((3, 4))}).axes[0].get_xlabel()
    assert told == "atom, the most used first"


def history(objectives, replaced):
    steps = enumerate(zip(objectives, replaced), start=1)
    return [ur.dictionary_learning.Step(k, value, 0.5 * k, n) for k, (value, n) in steps]


def test_learning_is_drawn_against_time_with_circles_where_atoms_were_replaced():
    histories = {
        "online": history([3.0, 2.0, 1.0, 0.5], [4, 0, 1, 0]),
        "ksvd": history([2.0, 1.0], [0, 0]),
    }
    figure = plots.learning(histories)
    (panel,) = figure.axes
    assert legends(figure) == ["online", "ksvd"]
    np.testing.assert_array_equal(panel.lines[0].get_xydata()[:, 0], [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_array_equal(panel.lines[0].get_xydata()[:, 1], [3.0, 2.0, 1.0, 0.5])
    (circles,) = panel.collections
    assert np.asarray(circles.get_offsets()).tolist() == [[0.5, 3.0], [1.5, 1.0]]
    assert panel.get_xlabel() == "time, s\natoms replaced (circles): online 5"
    assert panel.get_yscale() == "linear"
    assert plots.learning(histories, log=True).axes[0].get_yscale() == "log"


def test_objectives_that_cannot_be_drawn_are_named():
    figure = plots.learning({"a": history([1.0, np.nan, 0.0], [0] * 3)}, log=True)
    told = " ".join(figure.axes[0].get_xlabel().split())
    assert "below the axis: a (to 0)" in told and "not a number: a (1 of 3)" in told


@pytest.mark.parametrize(
    "draw, words",
    [
        (lambda: plots.use({}), "use: expected codes of at least one dictionary, got none"),
        (lambda: plots.use({"a": np.ones(3)}), r"use: a: expected codes \(n, d\), got shape \(3,"),
        (lambda: plots.use({"a": np.ones((0, 3))}), r"got shape \(0, 3\)"),
        (lambda: plots.use({"a": np.full((2, 3), np.nan)}), "use: a: the codes have NaN"),
        (lambda: plots.learning({}), "learning: expected histories of at least one step, got none"),
        (lambda: plots.learning({"a": []}), "got 0 of a"),
    ],
)
def test_learning_and_use_refuse_what_they_cannot_draw(draw, words):
    with pytest.raises(ValueError, match=words):
        draw()


def test_costs_have_plain_numbers_and_the_wanted_gap():
    fig = plots.costs({"fista": ([1.0, 40.0], [0.1, 1e-3]), "exact": ([90.0], [1e-9])}, gap=0.01)
    (panel,) = fig.axes
    assert panel.get_xscale() == panel.get_yscale() == "log"
    assert [line.get_xydata().tolist() for line in panel.lines[:2]] == [
        [[1.0, 0.1], [40.0, 1e-3]],
        [[90.0, 1e-9]],
    ]
    assert set(panel.lines[2].get_ydata()) == {0.01}
    assert [text.get_text() for text in panel.texts] == ["exact", "fista"]
    fig.canvas.draw()
    assert {"10", "50"} <= {tick.get_text() for tick in panel.get_xticklabels()}
