"""The pages of notebooks/: every page has its parts, and every command and example works."""

import argparse
import ast
import inspect
import pkgutil
import re
import shlex
import sys
import warnings
from contextlib import ExitStack
from functools import cache
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_docs import CURRENT, MODULES, NOTEBOOKS, PAGES, README, ROOT, blocks, each
from test_imports import of_ours

import unrolled as ur
from unrolled.app import cli

GUIDE = sorted((NOTEBOOKS / "guide").glob("*.md"))
ESSAYS = {
    "signal_by_signal",
    "theory_of_practice",
    "differentiate",  # no command
}  # pages that explain, and are listed beside the questions
RUN = [path for path in CURRENT if blocks(path)]
LARGEST_BYTES = 300_000  # of a picture

# What the examples take, at a size that runs in a second or two: all pages share few shapes.
SMALLER = {
    "250, 500": "8, 12",
    "n = 256": "n = 16",
    "50, 100)": "8, 12)",
    "(n, 100)": "(n, 12)",
    "100, 120": "8, 12",
    "120, 140": "12, 16",
    "40, 80": "8, 12",
    "(16": "(3",
    "(30": "(2",
    "(12": "(2",
    "(8)": "(2)",
    "depth=30": "depth=2",
    "depth=16": "depth=3",
    "20_000": "14_000",
    "1000": "20",
    "sampler(D, 512)": "sampler(D, 48)",
    "sampler(D, 64)": "sampler(D, 48)",
    "sampler(D, 32)": "sampler(D, 48)",
    "sparsity=50": "sparsity=4",
    "steps=300": "steps=2",
    "steps=2000": "steps=2",
    "lam, key=0)": "lam, depth=3, steps=2, key=0)",
    "0.05, key=0)": "0.05, depth=3, steps=2, key=0)",
    "sweeps=3": "sweeps=1",
    "kernel_size=3": "kernel_size=5",
}


@each([path for path in GUIDE if path.stem not in ESSAYS])
def test_a_guide_says_what_one_has_what_to_run_and_what_can_go_wrong(path):
    text = path.read_text()
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
    listed = re.findall(r"^\| `([\w.]+)`", (NOTEBOOKS / "api.md").read_text(), flags=re.M)
    books = {f"{book}.{m.name}" for book in ("vision", "app") for m in modules_in(book)}
    assert set(listed) == {m for m in MODULES if m[0] != "_"} - {"vision", "app"} | books


def modules_in(book):
    return pkgutil.iter_modules(getattr(ur, book).__path__)


@cache
def source_of(module):
    return inspect.getsource(sys.modules[module])


def is_ours(cls):
    return cls.__module__.startswith("unrolled.")


def source_of_class(cls):
    text = source_of(cls.__module__)
    return re.search(rf"^class {cls.__name__}\b.*?(?=^\S|\Z)", text, re.M | re.S)[0]


def test_every_field_of_a_record_is_described():
    """By the comment behind it, in the docstring, or by the glossary."""
    glossary = (NOTEBOOKS / "reference" / "glossary.md").read_text()
    without = []
    for name, record in of_ours():
        if not hasattr(record, "_fields"):
            continue
        said, bases = record.__doc__ or "", [b for b in record.__mro__ if is_ours(b)]
        source = "\n".join(map(source_of_class, bases))
        for field in record._fields:
            behind = re.search(rf"(^    # .*\n)?^    {field}: [^#\n]*(# .*)?$", source, re.M)
            known = behind and (behind[1] or behind[2]) or f"`{field}`" in glossary
            if not known and not re.search(rf"^ +(\w+, )*{field}(, \w+)*:", said, re.M):
                without.append(f"{name}.{field}")
    assert not without, "\n".join(without)


WITH_PICTURES = ("benchmarks", "notebooks", "unrolled")


@each(sorted(p for f in WITH_PICTURES for p in ROOT.glob(f"{f}/**/*.[ps][nv]g")))
def test_a_picture_is_small(path):
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


def test_every_flag_says_what_it_sets():
    """No help is empty, begins in the middle of a phrase, or speaks of a program as of a person."""
    (commands,) = (a.choices for a in cli._parser()._actions if isinstance(a.choices, dict))
    for name, parser in commands.items():
        for action in parser._actions:
            text = f"{name} {'/'.join(action.option_strings) or action.dest}: {action.help}"
            assert action.help, text
            assert not re.search(r": (of|in place of|where|which|also which)\b", text), text


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


def execute(examples):
    """The examples of a page, one after the other, in one namespace."""
    names = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "ur": ur}
    for source in examples:
        for large, small in SMALLER.items():
            source = source.replace(large, small)
        with jax.numpy_dtype_promotion("standard"):  # the default of users; optax needs it
            exec(compile(source, "an example", "exec"), names)


@pytest.fixture
def registries():
    """What an example defines does not outlive it."""
    known = ur.layers.FAMILIES, ur.activations.NAMED, ur.dictionaries.KINDS
    with ExitStack() as stack:
        for registry in known:
            stack.enter_context(mock.patch.dict(registry))
        yield


# Pages whose examples take less than a second together; the README has tests of its own.
SHORT = {
    "CONTRIBUTING",
    "dictionaries",
    "export",
    "sklearn",
    "start",
    "train_in_a_script",
    "trouble",
}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in SHORT else [pytest.mark.slow])
        for path in RUN
        if path != README
    ],
)
def test_the_examples_run(path, files, registries, float32_by_default):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so small, some codes are zero or diverge
        execute(blocks(path))


def test_no_page_closes_over_the_dictionary_of_a_pursuit():
    """XLA folds the arrays of a closure, such as the masks of an operator, while it compiles."""
    for path in [*PAGES, *NOTEBOOKS.glob("*.ipynb")]:
        for names in re.findall(r"jit\(lambda ([\w, ]+): ur\.pursuit\.\w+\(D\b", path.read_text()):
            assert "D" in names.split(", "), path
