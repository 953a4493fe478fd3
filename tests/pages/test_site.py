"""The site, where `python -m sphinx -W notebooks build/site` has built it: nothing is missing, and
nothing is fetched.
"""

import json
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest
from test_imports import of_ours

SITE = Path(__file__).parents[2] / "build" / "site"
PAGES = sorted(SITE.rglob("*.html"))
# Attributes by which a page loads something, and those by which it leads somewhere.
LOADS, LEADS = ("src", "srcset", "data", "poster"), ("href",)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="build the site first"),
]


class Reader(HTMLParser):
    """The anchors of a page, what it loads and where it leads."""

    def __init__(self):
        super().__init__()
        self.anchors, self.loads, self.leads = set(), [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in LOADS or (tag == "link" and name in LEADS):
                self.loads.append(value)
            elif name in LEADS:
                self.leads.append(value)


@cache
def page(path):
    reader = Reader()
    reader.feed(path.read_text())
    return reader


def test_every_part_of_the_site_is_built():
    names = {str(path.relative_to(SITE)) for path in PAGES}
    assert {"index.html", "start.html", "gallery.html", "guide/own_data.html"} <= names
    assert {"api/theory.html", "11_your_own.html", "reference/command_line.html"} <= names


def test_links_lead_somewhere():
    dead = []
    for path in PAGES:
        for target in page(path).leads:
            file, anchor = urldefrag(target)
            if re.match(r"\w+:", file):
                continue
            found = (path.parent / unquote(file)).resolve() if file else path
            known = found.exists() and (
                not anchor or found.suffix != ".html" or unquote(anchor) in page(found).anchors
            )
            dead += [] if known else [f"{path.relative_to(SITE)}: {target}"]
    assert not dead, "\n".join(dead[:20])


def test_nothing_is_fetched_and_nothing_is_missing():
    faults = []
    for path in PAGES:
        for target in page(path).loads:
            if target.startswith(("data:", "#")):
                continue
            file = target.partition("?")[0]
            if re.match(r"\w+:|//", file) or not (path.parent / unquote(file)).exists():
                faults.append(f"{path.relative_to(SITE)}: {target[:80]}")
    for path in SITE.rglob("*.css"):
        faults += [
            f"{path.name}: {url}" for url in re.findall(r"url\(.?https?:[^)]*", path.read_text())
        ]
    assert not faults, "\n".join(faults[:20])


def test_every_public_name_is_documented():
    anchors = set().union(*(page(path).anchors for path in (SITE / "api").glob("*.html")))
    ends = {anchor.rpartition(".")[2] for anchor in anchors}
    missing = [name for name, _ in of_ours() if name.rpartition(".")[2] not in ends]
    assert not missing, "\n".join(missing)


def test_the_search_finds_what_people_ask():
    text = (SITE / "searchindex.js").read_text()
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    names, titles = index["docnames"], index["titles"]
    wanted = {"gpu": "devices", "latex": "table", "equinox": "network", "mri": "mri"}
    wanted |= {"compress": "measure_less", "denois": "denoise"}  # stems, as the index has them
    wanted |= {"inpaint": "fill_in", "nonneg": "solve", "batch": "solve", "group": "groups"}
    wanted |= {"complex": "complex_signals", "radar": "complex_signals", "mmv": "many_measurements"}
    lam = "lam", "lambda", "alpha", "regularis", "penalti", "uncertainti"
    wanted |= dict.fromkeys(lam, "choose_lam") | {"proof": "serve", "serv": "serve"}
    for word, name in wanted.items():
        scores: dict[int, int] = {}  # as `search.js` and Sphinx score a word of the index
        for part, score in (("terms", 5), ("titleterms", 15)):
            for i in np.atleast_1d(index[part].get(word, [])).astype(int):
                scores[i] = score + 3 * names[i].startswith("guide/")
        first = min(scores, key=lambda i: (-scores[i], titles[i].lower()))
        assert names[first] == f"guide/{name}", word
    assert "reference/paper" in [names[i] for i in np.atleast_1d(index["titleterms"]["figur"])]
    titles = set(index["alltitles"])
    assert {"Reproduce the paper", "Theorem 6", "Theorem 12", "Figure 5", "Table 1"} <= titles


def test_names_in_code_are_links():
    """Also in a site that was built before: a build reads all pages again."""
    for name in ("start", "index", "guide/own_data", "02_learned_vs_analytic", "api/training"):
        assert "sphinx-codeautolink-a" in (SITE / f"{name}.html").read_text(), name


SHOWN = [
    *("index", "start", "gallery", "02_learned_vs_analytic", "measurements"),
    *("guide/own_data", "guide/trouble", "reference/methods", "reference/command_line"),
    "api/theory",
]
BROWSER = shutil.which("chromium")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", SHOWN)
def test_a_browser_shows_a_page_without_a_complaint(name, width, tmp_path):
    """No error on the console, and no request of the page beyond its folder."""
    picture, log = tmp_path / "page.png", tmp_path / "net.json"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options.append(f"--log-net-log={log}")
    options += [f"--window-size={width},900", f"--screenshot={picture}"]
    command = [BROWSER, *options, "--virtual-time-budget=4000", (SITE / f"{name}.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and picture.stat().st_size > 5000
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    assert re.findall(r"_dk_file:// file:// (http[^\"]*)", log.read_text()) == []  # of the page
