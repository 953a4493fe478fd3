"""The pages of notebooks/: every page has its parts, and every command and example works."""

import argparse
import ast
import inspect
import pkgutil
import re
import shlex
import sys
import tomllib
import warnings
from contextlib import ExitStack
from functools import cache
from operator import attrgetter
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forms import curve
from forms import made as comparison
from test_docs import CURRENT, MODULES, NOTEBOOKS, PAGES, README, ROOT, blocks, each
from test_imports import of_ours

import unrolled as ur
from unrolled.app import cli

GUIDE = sorted((NOTEBOOKS / "guide").glob("*.md"))
ESSAYS = {"theory_of_practice"}  # pages that explain, and are listed beside the questions
RUN = [path for path in CURRENT if blocks(path)]
LARGEST_BYTES = 300_000  # of a picture

# What the examples take, at a size that runs in a second or two: all pages share few shapes.
SMALLER = {
    "250, 500": "8, 12",
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
    listed = re.findall(r"^\| `([\w.]+)`", (NOTEBOOKS / "api.md").read_text(), flags=re.M)
    books = {f"{book}.{m.name}" for book in ("vision", "app") for m in modules_in(book)}
    assert set(listed) == {m for m in MODULES if m[0] != "_"} - {"vision", "app"} | books


def modules_in(book):
    return pkgutil.iter_modules(getattr(ur, book).__path__)


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


def execute(examples):
    """The examples of a page, one after the other, in one namespace."""
    names = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "ur": ur}
    for source in examples:
        for large, small in SMALLER.items():
            source = source.replace(large, small)
        exec(compile(source, "an example", "exec"), names)


@pytest.fixture
def registries():
    """What an example defines does not outlive it."""
    known = ur.layers.FAMILIES, ur.activations.NAMED, ur.dictionaries.KINDS
    with ExitStack() as stack:
        for registry in known:
            stack.enter_context(mock.patch.dict(registry))
        yield


@pytest.mark.slow
@each([path for path in RUN if path != README])  # which has tests of its own
def test_the_examples_run(path, files, registries, float32_by_default):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so small, some codes are zero or diverge
        execute(blocks(path))


def run(model, params, D, Y):
    """The codes of a model as JAX would return them, from their shapes alone."""
    codes = jax.eval_shape(jax.vmap(model.apply, (None, None, 0)), params, D, Y)
    assert jax.tree.leaves(codes)[-1].shape[0] == len(Y)
    return codes


def calibrated(model, params, D, Y, X=None, **options):
    run(model, params, D, Y)
    return params


def fitted(model, params, D, sample, *, steps, callbacks=(), key, loss=None, **options):
    """A fit of no steps: the batch, the codes, their loss and the callbacks are as in one."""
    own = not callable(sample)
    batch = sample if own else jax.eval_shape(sample, jax.random.key(0))
    Y, X = batch if isinstance(batch, tuple) else (batch, None)
    codes = run(model, params, D, Y)
    if loss is not None:
        path = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), codes)
        assert jax.eval_shape(loss, path, X, D, Y).shape == ()
    records = [ur.training.Record(step, 1.0, 1.0, 0.0) for step in (0, steps)]
    for record in records:
        for callback in callbacks:
            callback(record, params)
    return ur.training.Fit(params, params, D, ur.training.History(np.ones(steps), records), model)


def compared(methods, D, Y, X=None, **options):
    """A comparison with made numbers, of methods whose codes have the shape of X."""
    for method in methods.values():
        if isinstance(method, ur.training.Fit):
            method = method.model, method.best
        codes = run(*method, D, Y) if isinstance(method, tuple) else method
        shapes = [x.shape for x in jax.tree.leaves(codes)]
        assert X is None or shapes == [x.shape for x in jax.tree.leaves(X)]
    made = comparison({name: curve(1.0) for name in methods})
    return ur.compare.ChainComparison((made,) * len(D)) if isinstance(D, tuple) else made


def prepared(family, D, Y, X, *, depth=16, key=0, **options):
    layer = ur.layers.FAMILIES[family](depth, **options)
    params = calibrated(layer, layer.init(jax.random.key(key), D), D, Y, X)
    law = ur.layers.Law(0.1, 1.0, 0.0, 1.0, D.shape[1])
    return ur.training.Start(layer, params, law, None, 0.0, 0.0)


def made_by_recipe(family, D, sample, *, depth=16, steps=None, key=0, **options):
    start = prepared(family, D, *sample(jax.random.key(0)), depth=depth, **options)
    fit = fitted(start.layer, start.params, D, sample, optimizer=optax.sgd(1.0), steps=1, key=key)
    return ur.training.Made(start, fit, 0.0, 0.0)


def like(result, **fields):
    """Whatever a call returns has the attributes of this type alone."""
    return lambda *args, **options: mock.create_autospec(result, instance=True, **fields)


# What trains, searches or proves takes seconds. In the default tests these stand for it, with the
# signature that it has; the slow tests run it.
STAND_INS = {
    "fit": fitted,
    "analytic.calibrate": calibrated,
    "analytic.plan": like(ur.theory.Plan, depths=(2, 2)),
    "analytic.weights_table": like(ur.analytic.WeightsTable),
    "compare.compare": compared,
    "plots.comparison": lambda *args, **options: ur.plots.figure(1, 1)[0],
    "pursuit.bpdn": like(ur.pursuit.Pursuit),
    "pursuit.lasso": like(ur.pursuit.Pursuit),
    "pursuit.lasso_path": like(ur.pursuit.Path),
    "training.by_recipe": made_by_recipe,
    "training.prepare": prepared,
    "theory.certify_code": like(ur.theory.CodeCertificate),
    "app.studies.planted": like(ur.app.studies.Samples),
    "app.studies.known_codes": like(ur.app.studies.KnownCodes),
    "vision.experiments.run": lambda *args: ("row", {"features": {"zeros": [0.5]}}, {}),
    "vision.experiments.restore": lambda *args: None,
    "vision.experiments.layer_dictionary": like(ur.vision.experiments.LayerDictionary),
    "vision.experiments.row_features": like(ur.vision.experiments.Features),
}


@pytest.fixture
def rehearsal(registries, float32_by_default, monkeypatch):
    for name, stand_in in STAND_INS.items():
        spec = mock.create_autospec(attrgetter(name)(ur), side_effect=stand_in)
        monkeypatch.setattr(f"unrolled.{name}", spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Whose examples trace more than the other pages do; `test_the_examples_run` runs them, too.
LONG = {"chain", "choose", "export", "sklearn", "solve", "theory_of_practice"}


@each([path for path in RUN if path.stem not in LONG])
def test_the_examples_are_rehearsed(path, files, rehearsal):
    """A name, an argument, a field or a shape that is wrong fails; a value in the test above."""
    execute(blocks(path))


BROKEN = {
    "name": "ur.analytic.calibrated(layer, params, D, Y, X)",
    "argument": "ur.fit(layer, params, D, Y, optimizer=optax.adam(1e-3), step=3, key=0)",
    "field": "ur.compare.compare({'start': (layer, params)}, D, Y, X).tables()",
    "result": "ur.theory.certify_code(D, Y, X).uniqe",
    "signals": "ur.analytic.calibrate(layer, params, D, Y[:, :4], X)",
    "params": "ur.compare.compare({'start': (ur.alista(4), params)}, D, Y, X)",
    "codes": "ur.compare.compare({'mine': X.T}, D, Y, X)",
}
BEFORE = """
D, Y, X = np.ones((8, 12)), np.ones((5, 8)), np.ones((5, 12))
layer = ur.layers.ista(3)
params = layer.init(None, D / 8**0.5)
"""


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_a_broken_example_is_noticed(line, rehearsal):
    with pytest.raises((AssertionError, AttributeError, TypeError, ValueError)):
        execute([BEFORE, line])
    execute([BEFORE])
