"""The notebooks run from top to bottom, print what is stored in them, and pass their checks.

Those that have a reduced form in notebook_checks.py run in it here. With UNROLLED_SLOW=1 they run
in full, and their numbers too are compared with the stored ones: that is meant for the machine that
stored them, since rounding may change what a grid search chooses.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import AS_USERS
from notebook_checks import CHECKS, SMALLER, reduced

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SLOW = bool(os.environ.get("UNROLLED_SLOW"))
LARGEST_BYTES = 330_000
MOST_CELLS, MOST_LINES = 24, 15  # a longer cell is folded, or one class

TIMING = re.compile(r"\d+(?:\.\d+)? m?s\b|takes \S+ microseconds.*")
NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
RELATIVE = 2e-2  # training amplifies rounding, which differs between processors
ROUNDING = 1e-6  # below this an error may be rounding alone


def small(path):
    """Whether the tests run the reduced form of a notebook, whose numbers are others."""
    return not SLOW and path.stem[:2] in SMALLER


def cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def texts(cell):
    """What a cell printed, and the text of its value."""
    found = [o["text"] if "text" in o else o["data"]["text/plain"] for o in cell["outputs"]]
    return "\n".join("".join(lines) for lines in found)


def close(stored, found):
    """A number with an exponent tells a magnitude, any other its digits."""
    a, b = (float(text.replace(",", "")) for text in (stored, found))
    if "e" in stored:
        tiny = max(abs(a), abs(b)) < ROUNDING
        return tiny or (a * b > 0 and 0.1 <= a / b <= 10)
    digits = len(stored.partition(".")[2])
    last = 2 * 10.0**-digits if digits else 0.0  # two units of the last digit; counts are exact
    return abs(a - b) <= max(RELATIVE * abs(a), last)


def differences(stored, found):
    """The pairs of numbers that are not close; the words themselves if these differ."""
    stored, found = (TIMING.sub("", text) for text in (stored, found))
    words = [NUMBER.sub("#", text).split() for text in (stored, found)]
    if words[0] != words[1]:
        return [tuple(words)]
    pairs = zip(NUMBER.findall(stored), NUMBER.findall(found), strict=True)
    return [pair for pair in pairs if not close(*pair)]


def test_a_notebook_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    located = runpy.run_path(str(FOLDER / "execute.py"))["located"]
    assert located(NOTEBOOKS[0].name).samefile(NOTEBOOKS[0])
    own = tmp_path / NOTEBOOKS[0].name
    own.touch()
    assert located(own.name).samefile(own)
    with pytest.raises(argparse.ArgumentTypeError, match="gone.ipynb: is not a file, here"):
        located("gone.ipynb")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_prints_what_is_stored(path, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)} | (AS_USERS if SLOW else {})
    command = [sys.executable, Path(__file__).parent / "notebook_checks.py", path, tmp_path]
    done = subprocess.run(
        command + ["--small"] * small(path),
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800 if SLOW else 300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if small(path):
        return
    for stored, found in zip(cells(path), cells(tmp_path / path.name), strict=True):
        assert stored["source"] == found["source"]
        assert differences(texts(stored), texts(found)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_with_its_outputs(path):
    executed = cells(path)
    numbers = [cell["execution_count"] for cell in executed]
    assert numbers == list(range(1, len(executed) + 1)), "run notebooks/execute.py"
    outputs = [output for cell in executed for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < LARGEST_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_clean(path):
    notebook = json.loads(path.read_text())
    assert len(notebook["cells"]) <= MOST_CELLS
    title = "".join(notebook["cells"][0]["source"]).splitlines()[0]
    assert title.startswith("# ") and title.endswith("?")
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    told = "\n".join(texts(cell) for cell in cells(path))
    assert not re.search("site-packages|/home/|/root/|Traceback", told)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_for_looking(path):
    """The result comes first, code is short or folded, and an exercise is last."""
    first, *others = json.loads(path.read_text())["cells"]
    (hero,) = (cell for cell in others if "hero" in tags(cell))
    assert "](attachment:result.png)" in "".join(first["source"])
    assert first["attachments"]["result.png"]["image/png"] == of_figure(hero)
    assert any("## Exercise" in "".join(cell["source"]) for cell in others[-2:])
    for cell in cells(path):
        source = "".join(cell["source"])
        assert not re.search(r"^\s*assert |SMALL|environ|costs=\{\}", source, re.M), source
        length = len(re.findall(r"^.*\S", source, re.M))
        folded = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        assert folded == ("hide-input" in tags(cell))  # the names of it that readers know
        assert length <= MOST_LINES or folded or re.search("^class ", source, re.M), source


def tags(cell):
    return cell["metadata"].get("tags", ())


def of_figure(cell):
    return cell["outputs"][-1]["data"]["image/png"]


def test_there_are_notebooks():
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers) >= 15
    assert {*CHECKS, *SMALLER} <= {*numbers}


@pytest.mark.parametrize("number", SMALLER)
def test_a_reduced_form_replaces_what_the_notebook_has(number):
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    assert reduced(json.loads(path.read_text()), number)["cells"]


class TestExecute:
    """What execute.py stores of a notebook."""

    @staticmethod
    def stored(*sources, tagged="hero"):
        execute = runpy.run_path(str(FOLDER / "execute.py"))["execute"]
        first = {"cell_type": "markdown", "metadata": {}, "source": ["# What?"]}
        code = [
            {"cell_type": "code", "metadata": {"tags": [tagged]}, "source": [source]}
            for source in sources
        ]
        notebook = {"cells": [first, *code]}
        return notebook, execute(notebook)

    def test_the_hero_is_the_picture_of_the_first_cell(self):
        source = "import unrolled as ur\nur.plots.figure(1, 1)[0]"
        notebook, names = self.stored(source)
        first, code = notebook["cells"]
        assert first["attachments"]["result.png"]["image/png"] == of_figure(code)
        assert "ur" in names

    def test_a_table_is_stored_as_html_and_as_text(self):
        source = (
            "import unrolled as ur\nur.analytic.weights_table(ur.dictionaries.identity_hadamard(4))"
        )
        notebook, _ = self.stored(source, tagged="plain")
        data = notebook["cells"][1]["outputs"][0]["data"]
        assert data["text/html"][0] == "<table>\n" and "minimax" in data["text/plain"][0]

    def test_a_slider_is_not_there(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ipywidgets", sys.modules.get("ipywidgets"))
        with pytest.raises(ImportError):
            self.stored("from ipywidgets import interact", tagged="plain")


def test_numbers_are_compared_as_they_are_printed():
    assert differences("F 1.20 dB in 3.1 s", "F 1.22 dB in 9 s") == []
    assert differences("error 1.1e-16 after 100 steps", "error 0.0e+00 after 101 steps") == []
    assert differences("0 wrong", "1 wrong") == [("0", "1")]
    assert differences("a 1.5e-03", "a 1.5e-05") == [("1.5e-03", "1.5e-05")]
    assert differences("-20.1 dB", "-19.0 dB") == [("-20.1", "-19.0")]
    assert differences("10,000 weights", "20,000 weights") == [("10,000", "20,000")]
    assert differences("holds: True", "holds: False") != []
