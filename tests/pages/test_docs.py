"""What the Markdown files say: links lead somewhere, names exist, examples run."""

import ast
import json
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

import unrolled as ur

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parent
NOTEBOOKS = ROOT / "notebooks"
PAGES = sorted(path for path in NOTEBOOKS.rglob("*.md") if path.parent.name != "api")
README, MEASUREMENTS = ROOT / "README.md", ROOT / "benchmarks" / "README.md"
CONTRIBUTING, CHANGELOG, SECURITY = (
    ROOT / ".github" / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")
)
MEASURED = sorted((NOTEBOOKS / "measurements").glob("*.md"))
GALLERY, METHODS = NOTEBOOKS / "gallery.md", NOTEBOOKS / "reference" / "methods.md"
DOCUMENTS = [README, MEASUREMENTS, CONTRIBUTING, CHANGELOG, SECURITY, *PAGES]
CURRENT = [path for path in DOCUMENTS if path != CHANGELOG]  # that names what is gone, too
MODULES = {module.name for module in pkgutil.iter_modules(ur.__path__)}
FILES = {"md", "py", "json", "toml", "npz", "npy", "png", "ipynb", "safetensors", "csv", "jsonl"}


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(ROOT)))


def prose(text):
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def blocks(path, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.M | re.S)


def anchors(path):
    """The names by which GitHub links to the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", prose(path.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def names(text):
    """The names of the library in backticks, as `theory.babel`, `unrolled.nnx` or `ur.fit`."""
    dotted = re.findall(r"`(?:unrolled\.|ur\.)?([A-Za-z_]\w*(?:\.\w+)*)(?:\([^`]*\))?`", text)
    return {
        name
        for name in dotted
        if name.split(".")[0] in MODULES and name.split(".")[-1] not in FILES
    }


def resolves(name):
    try:
        pkgutil.resolve_name(f"unrolled.{name}")
    except (ImportError, AttributeError):
        return False
    return True


def chains(source):
    """The dotted names that begin with `ur`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if re.fullmatch(r"ur(\.\w+)+", text):
                yield text.removeprefix("ur.")


@each(DOCUMENTS)
def test_relative_links_lead_somewhere(path):
    text = prose(path.read_text())
    pictures = re.findall(r'\bsrc(?:set)?="([^"]+)"', text)
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *pictures]:
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@each(sorted((ROOT / "notebooks").glob("*.ipynb")))
def test_links_between_notebooks_lead_somewhere(path):
    for target in re.findall(r"\]\((\w+\.ipynb)\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("number", ["02", "12"])
def test_decibels_of_the_table_of_notebooks_are_those_that_are_stored(number):
    (row,) = re.findall(rf"^\| \[{number}\].*$", GALLERY.read_text(), flags=re.M)
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    texts = [out["text"] if "text" in out else out["data"]["text/plain"] for out in outputs]
    printed = "".join(line for lines in texts for line in lines)
    stored = {round(float(text)) for text in re.findall(r"-\d+\.\d\b", printed)}
    told = {int(text) for text in re.findall(r" (-\d+) ", row)}
    assert len(told) == 3 and told <= stored


@each(sorted((ROOT / "benchmarks").glob("*.json")))
def test_measurements_link_their_records_and_name_their_version_and_processor(path):
    sections = [
        part for page in MEASURED for part in re.split(r"^## ", page.read_text(), flags=re.M)
    ]
    (section,) = [part for part in sections if f"/benchmarks/{path.name})" in part]
    found = json.loads(path.read_text())["environment"]
    for name in ("Intel Xeon", "AMD EPYC"):
        assert (name in " ".join(section.split())) == (name.split()[0] in found["processor"])
    assert f"jax {found['jax']}" in " ".join(section.split())


@each(MEASURED)
def test_a_measurement_begins_with_its_result_and_ends_with_its_command(path):
    title, result, *_ = path.read_text().split("\n\n")
    assert re.match(r"# .*", title) and re.search(r"\d", result)
    assert not re.match(r"[#!|<]", result)
    end = path.read_text().rpartition("\n## ")[2]
    assert end.startswith("Measure again\n") and ("```bash" in end or path.stem == "denoising")


def test_the_index_of_measurements_has_a_line_and_a_number_of_each():
    """Every number of a line stands on its page."""
    lines = re.findall(r"^\| \[.*\]\((.*)\) \| (.*) \|$", MEASUREMENTS.read_text(), flags=re.M)
    pages = [(MEASUREMENTS.parent / link).resolve() for link, _ in lines]
    assert sorted(pages) == MEASURED
    for page, (_, result) in zip(pages, lines):
        numbers = re.findall(r"-?[\d,]*\.?\d+", re.sub(r"`[^`]*`", "", result))
        assert numbers and [n for n in numbers if n not in page.read_text()] == [], page.stem


@each(CURRENT)
def test_names_of_the_library_exist(path):
    assert [name for name in sorted(names(path.read_text())) if not resolves(name)] == []


@each(CURRENT)
def test_names_in_examples_exist(path):
    used = {name for block in blocks(path) for name in chains(block)}
    assert [name for name in sorted(used) if not resolves(name)] == []


@each(CURRENT)
def test_files_that_are_named_exist(path):
    named = re.findall(r"`((?:tests|benchmarks|notebooks|unrolled)/[\w/]+\.\w+)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_words_of_the_house():
    """Programs do not come back or go on; "training" is an activity, a run or a fit is a thing."""
    habits = r"\b(comes?|came) back\b|\bgo(es)? on\b|\btrainings\b"
    habits += r"|\b(an?|one|every|each|two) training\b(?! (step|loss|batch|set|image|signal))"
    sources = [README, CONTRIBUTING, *PAGES, *(ROOT / "unrolled").rglob("*.py")]
    texts = {path.relative_to(ROOT): path.read_text() for path in sources}
    found = [f"{path}: {m[0]}" for path, text in texts.items() for m in re.finditer(habits, text)]
    assert not found, "\n".join(found)


def targets(text):
    """Where the links and the pictures of a document lead."""
    text = prose(text)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'\bsrc(?:set)?="([^"]+)"', text)


@pytest.mark.parametrize("address", ["", "https://example.org/unrolled/blob/v1/"])
def test_the_readme_has_no_dead_link_outside_of_the_repository(address, monkeypatch):
    """As an index of packages shows it; only the build has the real base class."""
    interface = types.SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    hook = runpy.run_path(str(ROOT / ".ci" / "long_description.py"))
    here = README.read_text()
    there = hook["long_description"](here, address)
    assert len(targets(there)) == (len(targets(here)) if address else 0)
    for target in targets(there):
        file = target.removeprefix(address).partition("?")[0].partition("#")[0]
        assert target.startswith(address) and (ROOT / file).is_file(), target
    code = r"^```.*?^```"
    assert re.findall(code, there, re.M | re.S) == re.findall(code, here, re.M | re.S)
    words = re.findall(r"\[([^\]]*)\]\(|alt=\"([^\"]*)\"", prose(here))
    assert all(max(pair) in there.replace(r"\*", "*") for pair in words)


def test_the_citation_is_that_of_the_file_for_tools():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repeated = ("version", "license", "authors")
    assert {key: cff[key] for key in repeated} == {key: project[key] for key in repeated}
    (author,), (paper,) = cff["authors"], cff["references"]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    (entries,) = blocks(NOTEBOOKS / "reference" / "cite.md", "bibtex")
    assert re.findall(r"= {(.*)}", entries) == [
        *(cff["title"], f"{{{author['name']}}}", cff["version"], cff["license"]),
        *(paper["title"], authors, paper["journal"], str(paper["year"])),
    ]


@each([GALLERY, CONTRIBUTING])
def test_the_command_for_whole_notebooks_selects_them(path):
    """They are slow tests, which `addopts` leaves out of any other selection."""
    commands = re.findall(r"UNROLLED_SLOW=1(\s[^`]*?test_notebooks\.py)", path.read_text())
    assert commands and all("-m slow" in command for command in commands)


def test_no_document_is_left_out():
    folders = [ROOT / name for name in (".github", "benchmarks", "notebooks", "tests", "unrolled")]
    found = {path for folder in folders for path in folder.rglob("*.md")} | set(ROOT.glob("*.md"))
    assert {path for path in found if path.parent.name != "api"} == set(DOCUMENTS)


@each([README, NOTEBOOKS / "index.md", NOTEBOOKS / "README.md"])
def test_the_first_page_leads_to_what_people_ask(path):
    """Own data, what is guaranteed, a family of one's own, a GPU, trouble: one click away."""
    text = path.read_text()
    for name in ("own_data", "choose", "certificates", "devices", "add_your_own", "trouble"):
        assert re.search(rf"guide/{name}(\.md)?\b", text), name


def test_names_are_found():
    """The checks above see what they are meant to see."""
    found = set().union(*(names(path.read_text()) for path in PAGES))
    assert {"theory.mutual_coherence", "layers.alista", "realize.cnn"} <= found and len(found) > 60
    assert not resolves("theory.no_such_function")


def test_the_table_of_methods_lists_every_family():
    families = ur.layers.FAMILIES.items()
    ours = {name for name, family in families if family.__module__.startswith("unrolled.")}
    assert ours <= {name.removeprefix("layers.") for name in names(METHODS.read_text())}


def test_the_readme_is_one_page_and_keeps_its_commands():
    text = README.read_text()
    assert len(text.splitlines()) <= 130
    assert len(re.findall(r"\S*\w\S*", text)) <= 900  # words, those of examples and tables too
    commands = blocks(README, "bash")
    assert commands[0].rstrip().endswith("-m unrolled compare")
    assert f"<!-- test command -->\n```bash\n{commands[1]}```" in text
    assert commands[1].rstrip().endswith("-m pytest -q")


def test_the_first_figure_says_what_was_measured():
    lines = (ROOT / "benchmarks" / "lista.jsonl").read_text().splitlines()
    first = {"cell": "noiseless", "dictionary": 0, "seed": 0}
    rows = {
        entry["row"]["family"]: entry["test"]
        for entry in map(json.loads, lines)
        if "test" in entry and entry["row"].items() >= first.items()
    }
    (said,) = re.findall(r'<img .*alt="([^"]+)"', README.read_text())
    names = "ISTA", "FISTA", "ALISTA-SS, analytic", "LISTA-SS", "ALISTA-SS", "OAT", "VAMP-BG"
    ends = [round(rows[name]["per step"][-1]) for name in names]
    assert [int(number) for number in re.findall(r"-\d+", said)] == ends


@pytest.mark.slow
def test_the_tables_of_the_measurements_are_printed_from_the_rows(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    shutil.copytree(NOTEBOOKS / "measurements", tmp_path / "notebooks" / "measurements")
    page = tmp_path / "notebooks" / "measurements" / "sparse_features.md"
    command, text = [sys.executable, "benchmarks/pages.py"], page.read_text()
    page.write_text(text.replace("| ELU | 0 | 3 of 3 |", "| ELU | 0 | 2 of 3 |", 1))
    checked = subprocess.run([*command, "--check"], cwd=tmp_path, capture_output=True, text=True)
    stale = 'sparse_features.md: differences.py "cifar10, lenet5, momentum 0.0, test held-out". Run'
    assert checked.returncode and f"print: {stale} " in checked.stderr, checked.stderr


# The example of the README at a size that runs in seconds.
SMALLER = {"250, 500": "40, 80", "16": "3", "sparsity=2": "sparsity=1", "steps=300": "steps=2"}


@pytest.mark.slow
def test_the_example_of_the_readme_runs(capsys, float32_by_default):
    source, _ = blocks(README)
    for large, small in SMALLER.items():
        assert large in source
        source = source.replace(large, small)
    exec(compile(source, "README.md", "exec"), {})
    rows = capsys.readouterr().out.strip().splitlines()
    stored = README.read_text().partition("```python")[2]
    header = next(line for line in stored.splitlines() if line.startswith("| method"))
    assert rows[0] == header
    names = [row.split(" | ")[0] for row in rows[2:5]]
    assert names == ["| analytic", "| calibrated", "| learned"]
    assert rows[-1].startswith("After 3 steps, the error of the codes is ")


@pytest.mark.slow
def test_the_example_of_own_signals_runs(capsys, float32_by_default, tmp_path, monkeypatch):
    _, source = blocks(README)
    assert len([line for line in source.splitlines() if line and "import" not in line]) <= 10
    for large, small in {"1000": "20", "16, key=0": "3, key=0, steps=2"}.items():
        assert large in source
        source = source.replace(large, small)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    D = rng.normal(size=(8, 12))
    D /= np.linalg.norm(D, axis=0)
    np.save("D.npy", D)
    np.save("Y.npy", (rng.normal(size=(80, 12)) * (rng.random((80, 12)) < 0.2)) @ D.T)
    exec(compile(source, "README.md", "exec"), {})
    rows = capsys.readouterr().out.strip().splitlines()
    head = [row.startswith("| method | (F - F*) / F* | gap (median) |") for row in rows]
    rows = rows[head.index(True) :]
    assert [row.split(" | ")[0] for row in rows[2:4]] == ["| learned", "| exact"]


GUEST = """
import jax, jax.numpy as jnp, numpy as np, unrolled as ur
D = ur.dictionaries.gaussian(jax.random.key(0), 6, 10)
layer, plain = relaxed_ista(4, relaxation=1.0), ur.layers.ista(4)
params, y = layer.init(None, D), D[:, 0]
np.testing.assert_allclose(layer.apply(params, D, y), plain.apply(params, D, y), atol=1e-6)
ur.training.save("weights.npz", params, D, layer=relaxed_ista(4))
assert ur.training.restore("weights.npz").layer is relaxed_ista(4)
"""


@pytest.mark.slow
def test_the_family_of_the_guide_works(tmp_path):
    """In a process of its own: a family registers itself for good."""
    (tmp_path / "guest.py").write_text(blocks(CONTRIBUTING)[0])
    done = subprocess.run(
        [sys.executable, "-c", f"from guest import relaxed_ista\n{GUEST}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_family_of_contributing_passes_the_suite_as_printed():
    """As the file that it names: over dense and other dictionaries, under every transformation."""
    source = """
import sys, types
import pytest, unrolled.layers
module = types.ModuleType("unrolled.layers._relaxed_ista")
exec(sys.argv[1], vars(module))
sys.modules[module.__name__] = module
tests = "tests/test_conformance.py", "-k", "relaxed_ista", "-m", "slow or not slow"
sys.exit(pytest.main(["-q", "-n0", *tests]))
"""
    done = subprocess.run(
        [sys.executable, "-c", source, blocks(CONTRIBUTING)[0]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10


def test_every_supported_python_has_the_versions_that_it_was_tested_with():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d", c)]
    needed = project["dependencies"] + project["optional-dependencies"]["test"]
    for python in supported:
        assert f" {python}" in CONTRIBUTING.read_text()
        lines = (FOLDER / f"constraints-py{python.replace('.', '')}.txt").read_text().splitlines()
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
        pinned = {line.partition("=")[0].lower() for line in lines}
        assert {re.match(r"[\w-]+", need)[0] for need in needed} <= pinned
