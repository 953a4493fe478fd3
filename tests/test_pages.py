"""The pages of notebooks/: every page has its parts, and every command and example works."""

import argparse
import ast
import inspect
import re
import shlex
import sys
import tomllib
import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_docs import MODULES, NOTEBOOKS, PAGES, README, ROOT, blocks, each
from test_imports import of_ours

import unrolled as ur
from unrolled import cli

GUIDE = sorted((NOTEBOOKS / "guide").glob("*.md"))
ESSAYS = {"theory_of_practice"}  # pages that explain, and are listed beside the questions
RUN = [*GUIDE, NOTEBOOKS / "index.md", NOTEBOOKS / "start.md"]
LARGEST_BYTES = 300_000  # of a picture

# What the examples take, at a size that runs in a second or two.
SMALLER = {
    "250, 500": "16, 24",
    "100, 120": "16, 20",
    "120, 140": "20, 24",
    "40, 80": "8, 12",
    "(16": "(3",
    "(30": "(2",
    "(12)": "(2)",
    "depth=30": "depth=2",
    "20_000": "14_000",
    "sampler(D, 512)": "sampler(D, 48)",
    "sparsity=50": "sparsity=4",
    "steps=300": "steps=2",
    "sweeps=3": "sweeps=1",
    "kernel_size=3": "kernel_size=5",
}


@each(GUIDE)
def test_a_guide_says_what_one_has_what_to_run_and_what_can_go_wrong(path):
    text = path.read_text()
    if path.stem in ESSAYS:
        pytest.skip("an essay")
    assert re.match(r"# .*\?\n", text)
    headings = re.findall(r"^## (.*)$", text, flags=re.M)
    assert headings[-1] == "What can go wrong"
    if path.stem != "trouble":
        assert "**You have**" in text
    assert blocks(path, "bash") and blocks(path)


def test_the_page_of_the_folder_is_short_and_leads_to_every_guide():
    text = (NOTEBOOKS / "README.md").read_text()
    assert len(text.split()) <= 220
    assert all(f"guide/{path.name}" in text for path in GUIDE if path.stem not in ESSAYS)


def test_the_reference_has_every_module():
    listed = re.findall(r"^\| `(\w+)`", (NOTEBOOKS / "api.md").read_text(), flags=re.M)
    assert sorted(listed) == sorted(name for name in MODULES if name[0] != "_")


@cache
def source_of(module):
    return inspect.getsource(sys.modules[module])


def test_every_field_of_a_record_is_described():
    """By the comment behind it, in the docstring, or by the glossary."""
    glossary = (NOTEBOOKS / "reference" / "glossary.md").read_text()
    without = []
    for name, record in of_ours():
        if not hasattr(record, "_fields"):
            continue
        text, said = source_of(record.__module__), record.__doc__ or ""
        source = re.search(rf"^class {record.__name__}\b.*?(?=^\S|\Z)", text, re.M | re.S)[0]
        for field in record._fields:
            behind = re.search(rf"(^    # .*\n)?^    {field}: [^#\n]*(# .*)?$", source, re.M)
            known = behind and (behind[1] or behind[2]) or f"`{field}`" in glossary
            if not known and not re.search(rf"^ +(\w+, )*{field}(, \w+)*:", said, re.M):
                without.append(f"{name}.{field}")
    assert not without, "\n".join(without)


@each(sorted(path for kind in ("png", "svg") for path in ROOT.glob(f"[bnu]*/**/*.{kind}")))
def test_a_picture_is_small(path):
    if "build" not in path.parts:
        assert path.stat().st_size < LARGEST_BYTES


@each([*PAGES, README])
def test_the_commands_are_those_of_the_parser(path):
    text = "".join(blocks(path, "bash")).replace("\\\n", " ")
    lines = re.findall(r"^(?:\S*python -m )?unrolled (.*)$", text, flags=re.M)
    for line in lines:
        arguments = shlex.split(line, comments=True)
        if "my_module" not in arguments:
            parsed = cli._parser().parse_args(arguments)
            assert isinstance(parsed, argparse.Namespace) and hasattr(parsed, "run"), line


@each([*PAGES, README])
def test_the_options_of_calls_exist(path):
    for source in blocks(path):
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and re.match(r"ur\.[\w.]+$", ast.unparse(call.func)):
                value = eval(ast.unparse(call.func), {"ur": ur})
                known = inspect.signature(value).parameters
                open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
                used = {keyword.arg for keyword in call.keywords} - {None}
                assert open_ended or used <= set(known), ast.unparse(call)


@each(PAGES)
def test_the_configurations_are_read(path):
    for text in blocks(path, "toml"):
        assert tomllib.loads(text)["problem"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    D = rng.normal(size=(8, 12))
    D /= np.linalg.norm(D, axis=0)
    X = rng.normal(size=(100, 12)) * (rng.random((100, 12)) < 0.2)
    np.save("D.npy", D)
    np.save("Y.npy", X @ D.T + 0.01 * rng.normal(size=(100, 8)))


def execute(path):
    """All examples of a page, one after the other, in one namespace."""
    names = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "ur": ur}
    for source in blocks(path):
        for large, small in SMALLER.items():
            source = source.replace(large, small)
        exec(compile(source, str(path), "exec"), names)


QUICK = ("trouble",)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
        for path in RUN
    ],
)
def test_the_examples_run(path, files, quick_compilation, float32_by_default):
    registries = ur.layers.FAMILIES, ur.activations.NAMED, ur.dictionaries.KINDS
    before = [dict(registry) for registry in registries]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so small, some codes are zero or diverge
            execute(path)
    finally:
        for registry, names in zip(registries, before):
            registry.clear()
            registry.update(names)
