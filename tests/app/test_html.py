"""A report as one page: it stands alone, begins with the answer, and shows what it is given."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from unrolled import plots
from unrolled._base.text import markdown
from unrolled.app import studies
from unrolled.app.commands import _chart, _report
from unrolled.app.commands._report import Section, write_report

VOID = {"meta", "img", "br", "input", "link"}


class Checker(HTMLParser):
    """Every tag is closed, every id is one of its own, and every link leads to one."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.words = [], [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [value[1:] for name, value in attributes if "href" in name]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def curve():
    fig, panels = plots.figure(1, 1)
    plots.curves(panels[0, 0], {"ista": np.ones(3)}, title="Error", ylabel="dB")
    return fig


def picture():
    return plots.images({"a": np.eye(4)})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    table = markdown(["method", "dB"], [["A & B", "-9.5"], ["<C>", "-10.5"]], ["A *note*."])
    parts = ["First `code`.", "", table, "```\nraw <text>\n```"]
    figures = {"curves": curve, "more curves": curve}
    rows = (("step",), [[1]])
    section = Section("One & only", "one", parts, figures, rows, {}, "C is best, -10.5 dB.")
    folder = tmp_path_factory.mktemp("report")
    report = write_report(folder, "Title", "About this.\n\nMore.", [section], {"seed": "0"})
    assert report == folder / "report.html"  # the path that the commands print
    assert (folder / "one.png").exists() and table in (folder / "report.md").read_text()
    return report.read_text()


def test_it_is_well_formed_and_stands_alone(text):
    page = Checker()
    page.feed(text)
    assert page.open == [] and len(set(page.ids)) == len(page.ids)
    assert set(page.links) <= set(page.ids)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r'\b(src|href)="(?!data:|#)', text)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", text)


def test_it_begins_with_the_answer_and_says_how_to_repeat_it(text):
    """The first section is open, the others are folded, and its figures stand before its words."""
    body = text.partition("<body>")[2]
    assert body.index("C is best, -10.5 dB.") < body.index("<svg") < body.index("First")
    assert re.findall("<details( open)? id", body) == [" open", "", ""]
    assert "About this." in body and "<pre>unrolled" in body and "<td>jax</td>" in body


def test_tables_figures_and_text_are_shown_as_they_are(text):
    assert "<thead><tr><th>method</th><th>dB</th></tr></thead>" in text
    assert "<td>A &amp; B</td>" in text and "<td>&lt;C&gt;</td>" in text
    assert "<p>A <em>note</em>.</p>" in text and "<code>code</code>" in text
    assert "raw &lt;text&gt;" in text and text.count("<svg") == 2
    assert ">Error</text>" in text  # words of a figure are words


def test_a_picture_is_no_drawing():
    shown = _report.page("T", "A.", [("S", [], {"p": picture()})], {}, "unrolled")
    assert "data:image/png" in shown and "<svg" not in shown


def test_every_row_has_a_cell_below_every_head(text):
    """The script orders the rows of a table by the cell in the place of a head."""
    tables = re.findall(r"<table><thead><tr>(.*?)</tr></thead><tbody>(.*?)</tbody>", text, re.S)
    assert tables and 'querySelectorAll("thead th")' in text
    for head, body in tables:
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
        assert rows and {row.count("<td>") for row in rows} == {head.count("<th>")}


def test_it_has_a_dark_form_and_a_printed_one(text):
    (style,) = re.findall(r"<style>(.*?)</style>\s*</head>", text, re.S)
    assert style.count("{") == style.count("}")
    colours = dict(re.findall(r"--(\w+): (light-dark\(#\w+, #\w+\))", style))
    assert '<meta name="color-scheme" content="light dark">' in text
    assert set(re.findall(r"var\(--(\w+)\)", style)) == set(colours)
    printed = style.partition("@media print")[2]
    assert "color-scheme: light" in printed and "overflow: visible" in printed
    assert '"beforeprint"' in text and "part.open = true" in text  # what is folded is printed


def overview(**changes):
    rng = np.random.default_rng(0)
    names = [f"Method {i}" for i in range(7)] + ["A & B, learned"]
    lines = {name: -np.cumsum(np.r_[0, rng.random(16)]) for name in names}
    shown = tuple(names[3:])
    rows = [[name, "the dictionary", "-9.5"] for name in shown]
    table = markdown(["Method", "Information used", "Error, dB"], rows)
    made = studies.Overview(
        *("B is nearer.", "On signals.", lines, {}, shown, shown[-1], "error, dB", False),
        *("Errors.", table),
    )
    return made.replace(**changes)


def test_the_first_screen_is_a_sentence_a_figure_and_a_table():
    parts = ["Text.", markdown(["method", "K", "dB"], [[n, "16", n] for n in "abc"])]
    page, first = Checker(), overview()
    shown = _report.page("T", "A.", [("S", parts, {"c": curve()})], {}, "unrolled", first)
    page.feed(shown)
    assert page.open == [] and len(set(page.ids)) == len(page.ids)
    screen, _, below = shown.partition("<details")
    assert "<h1>B is nearer.</h1>" in screen and "A." not in screen.partition("<body>")[2]
    assert "<details open" not in shown and below.index("<svg") < below.index("Text.")
    for broad, drawing in zip((True, False), re.findall(r"<svg class=.*?</svg>.*?</svg>", screen)):
        names = [*first.shown[:-1], "A &amp; B"]
        assert all(f">{name}" in drawing for name in names) and "Method 0" not in drawing
        assert drawing.count('class="faint"') == 3 and drawing.count("<polyline points") == 5
        assert ("A &amp; B, learned \u2212" in drawing) is broad  # a narrow screen breaks the name
    assert screen.count("<tr") == 6 and '<tr class="best"><td>A &amp; B, learned</td>' in screen
    # What does not change is a sentence, but for the table that is shown whole.
    assert "<th>K</th>" not in below and "<p>In every row: K 16.</p>" in below
    assert "<th>Information used</th>" in screen


def test_names_at_the_ends_of_lines_do_not_meet():
    for heights in ([100.0] * 5, [390.0, 395.0, 399.0, 10.0, 11.0], [50.0]):
        places = _chart._apart(heights, 30, 40, 400)
        assert min(np.diff(sorted(places)), default=30) >= 30 - 0.1
        assert min(places) >= 40 and max(places) <= 400
        assert [places[i] for i in np.argsort(heights, kind="stable")] == sorted(places)


@pytest.mark.parametrize("log", [False, True])
def test_values_that_an_axis_has_no_place_for_leave_a_drawing(log):
    lines = {"a": np.array([np.nan, 1.0, 0.0, 1e-3]), "b": np.full(4, np.inf), "c": np.zeros(4)}
    drawn = _chart.chart(overview(lines=lines, shown=("a",), best="a", log=log))
    assert "nan" not in drawn and "inf" not in drawn.replace("infinite", "")


@pytest.mark.parametrize("log", [False, True])
def test_a_line_stands_where_its_values_are(log):
    """Heights are affine in the values, or in their logarithms, and larger values are higher."""
    values = np.array([4.0, 3.0, 0.5, 1.0, 0.25])
    given = overview(lines={"a": values}, shown=("a",), best="a", log=log)
    drawn = _chart.chart(given)
    box = re.search(r'<svg x="[\d.]+" y="[\d.]+" width="([\d.]+)" height="([\d.]+)"', drawn)
    wide, tall = map(float, box.groups())
    points = re.search(r'<polyline points="([^"]+)"', drawn)[1]
    x, y = np.array([point.split(",") for point in points.split()], float).T
    assert (0 <= y).all() and (y <= tall).all() and (0 <= x).all() and (x <= wide).all()
    np.testing.assert_allclose(np.diff(x), x[1] - x[0], atol=0.2)  # drawn to a tenth
    share = np.log10(values) if log else values
    share = (share.max() - share) / np.ptp(share)
    np.testing.assert_allclose(y, tall * (0.03 + share) / 1.06, atol=0.2)  # 3 % on both sides
    # All of it is in the figure, and the mark of a number is level with the number.
    top, bottom = (
        float(re.search(p, drawn)[1]) for p in (r'<svg x=.*? y="([\d.]+)', r"0 0 \d+ (\d+)")
    )
    assert top + tall < bottom
    marks = re.findall(r'class="tick"[^>]* y="([\d.]+)">([\d.]+)<', drawn.partition("</svg>")[0])
    (at,) = (float(y) for y, label in marks if label == "1")
    assert at - 5 == pytest.approx(top + y[3], abs=0.2)


BROWSER = shutil.which("chromium")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium")
ROWS = [["b", "-9.5"], ["a", "-10.5"], ["d", ""], ["c", "1,200.5"]]


def opened(tmp_path, script, *options):
    """What a script of the reader leaves of the page of a table."""
    parts = [markdown(["method", "dB"], ROWS)]
    page = _report.page("T", "A.", [("S", parts, {})], {}, "unrolled")
    path = tmp_path / "report.html"
    path.write_text(f"{page}<script>{script}</script>")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *options, "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    "column, clicks, order",
    [(1, 1, "abcd"), (1, 2, "cbad"), (0, 1, "abcd"), (0, 2, "dcba")],
    ids=["numbers", "falling", "words", "words, falling"],
)
def test_a_browser_sorts_a_table(column, clicks, order, tmp_path):
    """Numbers as numbers, and empty cells last in both directions."""
    click = f'document.querySelectorAll("thead th")[{column}].click();'
    shown = opened(tmp_path, click * clicks)
    assert re.findall(r"<tr><td>(\w)</td>", shown) == list(order)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width, kind", [(1280, "broad"), (500, "narrow")])
def test_a_browser_cuts_nothing_off(width, kind, tmp_path):
    """Every word of the figure ends within it, and the table within the screen."""
    script = f"""
      const words = [...document.querySelectorAll(".first .{kind} text")];
      const edge = document.querySelector(".first .{kind}").getBoundingClientRect().right;
      const beyond = words.filter(word => word.getBoundingClientRect().right > edge + 1);
      const table = document.querySelector(".short .wide");
      document.title = [words.length > 5, beyond.length, table.scrollWidth - table.clientWidth];
    """
    path = tmp_path / "report.html"
    path.write_text(
        _report.page("T", "A.", [], {}, "unrolled", overview()) + f"<script>{script}</script>"
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--dump-dom", f"--user-data-dir={tmp_path}", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "<title>true,0,0</title>" in shown


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("scheme, colour", [(0, "13, 17, 23"), (1, "255, 255, 255")])
def test_a_browser_shows_both_forms(scheme, colour, tmp_path):
    script = "document.title = getComputedStyle(document.body).backgroundColor"
    shown = opened(tmp_path, script, f"--blink-settings=preferredColorScheme={scheme}")
    assert f"<title>rgb({colour})</title>" in shown


def test_a_table_has_a_head_unless_all_its_columns_are_without_a_name():
    heads = [_report._table(columns, [["1", "2"]]) for columns in (["", "b"], ["", ""])]
    assert ["<thead>" in head for head in heads] == [True, False]
