"""Every argument of every exported function: what is wrong is refused in words, or taken right.

The example in the docstring of a function is its valid call. Each argument in turn is then wrong.
"""

import contextlib
import dataclasses
import doctest
import importlib
import inspect
import re
import signal
import tempfile
import time
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from test_imports import PUBLIC, listing, of_ours

import unrolled as ur
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike, Key
from unrolled.training import NonFiniteError

COMMANDS = "unrolled.app.cli", "unrolled.app.commands"
# What an example may use without an import.
NAMES = {"ur": ur, "jax": jax, "jnp": jnp, "np": np}
SECONDS = 60  # that a call may take; the first call of a solver compiles for half of them
REFUSALS = TypeError, ValueError, MemoryError, OSError, NonFiniteError


def functions():
    """The exported functions but those behind the command line, by name."""
    return {
        name.removeprefix("unrolled."): value
        for name, value in of_ours()
        if not inspect.isclass(value) and not name.startswith(COMMANDS)
    }


FUNCTIONS = functions()


# What messages call some arguments.
CALLED = {
    **dict.fromkeys(("model", "layer"), "Layer|layer|model|state evolution|Module"),
    **dict.fromkeys(("estimate", "estimates", "X", "reference"), r"shape|estimate|\bX\b|reference"),
    "Ds_perturbed": r"\bD",
    "supports": r"\bS_|support",
    "sparsity": r"\bs_|sparsity",
    "sparsities": r"sparsit",
    "C_Ws": "C_W|gain",
    "image": "image|picture",
    "images": "image|atoms|picture",
    "sample": r"sample|\b[YX]\b",
    "path": "",
    "minutes": "minutes|budget",
    "checkpoint": "[Cc]heckpoint",
    "batches": r"batch|stream|\bY",
    "Y": r"\bY|signals",
    "layers": "layers|submodule",
    "name": "name|activation",
    "form": "form|activation|cells",
    "write": "write|saved",
    "sampled": "sampled|Y has shape",
    "filters": r"filters|\bX\b",
    "dictionaries": "dictionar",
    "found": "results|found",
    "xs": "code|x_|xs",
    **dict.fromkeys(("D", "Ds", "W", "Ws"), r"\b[DW]|atoms|dictionar|finite codes"),
    "act": "[Aa]ctivation",
    "activation": "[Aa]ctivation",
    "key": "key|seed",
    "tree": r"tree|\bD\b",
}


# Calls of the functions whose examples do not run: they need files.
NOT_RUN = {
    "vision.experiments.restore": (("runs", "row"), {}),
    "vision.experiments.row_features": (("runs", "row", None), {}),
}


def _few_signals():
    """A small dictionary, and a sampler of few of its signals."""
    D = ur.dictionaries.dct(4, 6)
    return dict(D=D, sample=ur.problems.sampler(D, 5, probability=0.3))


# Smaller arguments than those of the examples, of functions whose valid calls take long.
SMALLER = {
    "comparison.compare": lambda: dict(
        zip(("D", "X", "Y"), (ur.dictionaries.dct(4, 6), np.eye(6)[:2], np.eye(6, 4)[:2]))
    ),
    "dictionary_learning.double_sparse": lambda: dict(
        Y=np.random.default_rng(0).normal(size=(20, 4)), d=4, sweeps=2
    ),
    "dictionary_learning.multilayer": lambda: dict(
        Y=np.random.default_rng(0).normal(size=(20, 4)), shapes=[(4, 4), (4, 6)], sweeps=2
    ),
    "dictionary_learning.recover": lambda: dict(
        Y=np.random.default_rng(0).normal(size=(20, 4)), d=6, steps=5
    ),
    "dictionary_learning.unrolled": lambda: dict(layer=ur.layers.ista(1), steps=1),
    "sae.report": lambda: dict(A=np.random.default_rng(0).normal(size=(60, 16)), depth=2),
    "training.by_recipe": lambda: dict(family="ista", depth=1, steps=1, **_few_signals()),
    "training.curriculum": lambda: dict(steps_per_stage=1, stages=(1.0, 0.2)),
    "training.fit": lambda: dict(steps=1),
    "training.unsupervised": lambda: dict(depth=1, steps=1),
}


class Seen(Exception):
    """The valid call was seen."""


@cache
def valid_call(name):
    """The arguments of the call in the example of a function, some of them `SMALLER`."""
    last = name.rpartition(".")[2]
    calls, function = [], FUNCTIONS[name]

    def spy(*args, **options):
        calls.append((args, options))
        raise Seen

    example = doctest.DocTestParser()
    example = example.get_doctest(inspect.getdoc(function), dict(NAMES), name, None, 0)
    runner = doctest.DocTestRunner(verbose=False)
    with contextlib.ExitStack() as stack:
        for home in map(importlib.import_module, ("unrolled", *PUBLIC)):
            if vars(home).get(last) is function:
                stack.enter_context(mock.patch.object(home, last, spy))
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        runner.run(example, out=lambda text: None, clear_globs=False)
    args, options = calls[0] if calls else NOT_RUN[name]
    given = inspect.signature(function).bind(*args, **options)
    for argument, value in SMALLER.get(name, dict)().items():
        given = with_value(given, argument, value)
    return given


# Kinds of wrong values, made of a valid one.


def as_array(value):
    """The floats of a valid value, or one float."""
    with contextlib.suppress(Exception):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array.astype(np.float32)
    return np.array(1, np.float32)


def masked(value):
    values = as_array(value)
    return np.ma.masked_array(values, mask=np.ones(values.shape, bool))


def wide(value):
    """Integers beyond 32 bits."""
    size = as_array(value)
    return np.arange(2**33, 2**33 + size.size, dtype=np.int64).reshape(size.shape)


WRONG = {
    "int64": wide,
    "bool": lambda value: np.asarray(as_array(value) > 0),
    "complex": lambda value: as_array(value).astype(complex) + 1j,
    "object": lambda value: np.asarray(as_array(value), object),
    "masked": masked,
    "text": lambda value: "no",
    "texts": lambda value: np.full(as_array(value).shape, "no"),
    "none": lambda value: None,
    "another object": lambda value: object(),
    "a rank more": lambda value: np.stack([as_array(value)] * 2),
    "a rank less": lambda value: as_array(value).min(initial=1),
    "ragged": lambda value: [[1.0], [1.0, 2.0]],
    "keys": lambda value: jax.random.split(jax.random.key(0), 3),
    "a raw key": lambda value: np.zeros(3, np.uint32),
    "a dict": lambda value: {},
}
RIGHT_IF_EQUAL = "int64", "bool"  # which are numbers
SHAPES = "a rank more", "a rank less"  # which may be right
# Kinds that are right where an annotation names one of these types.
MAY_BE = {
    "none": {type(None)},
    "text": {str},
    "a dict": {dict, Mapping, Iterable, Collection},
    "ragged": {Sequence, tuple},
}


def cases(name):
    """(argument, kind, arguments, the same in floating point or None) of all wrong calls."""
    given = valid_call(name)
    signature = given.signature
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in ("where", "name") and "where" in signature.parameters:
            continue  # of messages
        value = given.arguments.get(parameter.name, parameter.default)
        for kind, make in WRONG.items():
            mentioned = mentions(parameter.annotation)
            if kind == "int64" and int in mentioned:  # a size that no memory holds
                continue
            if kind == "a raw key" and Key not in mentioned:
                continue
            if kind == "none" and value is None:  # the valid call once more
                continue
            yield parameter, kind, with_value(given, parameter.name, make(value))
            if isinstance(value, list | tuple) and len(value):
                bad = type(value) in (list, tuple) and type(value)([make(value[0]), *value[1:]])
                if bad:
                    yield parameter, f"{kind} inside", with_value(given, parameter.name, bad)


def with_value(given, name, value):
    bound = inspect.BoundArguments(given.signature, dict(given.arguments))
    bound.arguments[name] = value
    order = [p for p in given.signature.parameters if p in bound.arguments]
    bound.arguments = {p: bound.arguments[p] for p in order}
    return bound


class TooLong(Exception):
    """A call took too long. TimeoutError is an OSError, which counts as a refusal."""


@contextlib.contextmanager
def within(seconds):
    """Raise after so many CPU seconds of this process, which do not count a busy machine."""

    def stop(*_):
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def call(name, bound):
    with warnings.catch_warnings(), within(SECONDS):
        warnings.simplefilter("ignore")
        return FUNCTIONS[name](*bound.args, **bound.kwargs)


def mentions(annotation):
    """The types that an annotation names."""
    if hasattr(annotation, "__value__") and annotation not in (ArrayLike, Key):
        return mentions(annotation.__value__)
    inside = typing.get_args(annotation)
    if typing.get_origin(annotation) is Callable or not inside:
        return {typing.get_origin(annotation) or annotation}
    return {typing.get_origin(annotation)}.union(*map(mentions, inside))


def same(ours, expected):
    leaves = [jax.tree.leaves(tree) for tree in (ours, expected)]
    if len(leaves[0]) != len(leaves[1]):
        return False
    for a, b in zip(*leaves):
        if getattr(a, "dtype", np.dtype(object)).kind in "biufV":  # other numbers may be seconds
            a, b = np.asarray(a, float), np.asarray(b, float)
            if a.shape != b.shape or not np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True):
                return False
    return True


# What a message may begin with: the name of the function, or of what it hands the argument to.
BEGINNINGS = {name.rpartition(".")[2] for name, _ in of_ours()}


def fault(name, parameter, kind, bound):
    """What is wrong with a call; None if it is refused in words, or right."""
    try:
        result = call(name, bound)
    except REFUSALS as error:
        text = str(error)
        beginning = re.split(r"[,:] ", text)[0].rpartition(".")[2]
        begins = {
            "activation",
            "experiment",
            *BEGINNINGS,
            *name.split("."),
            bound.arguments.get("where"),
            parameter.name,
        }
        paths = (v for v in bound.arguments.values() if isinstance(v, str | Path) and str(v))
        if any(text.startswith(str(path)) for path in paths) or isinstance(error, OSError):
            return None
        if beginning not in begins:
            return f"raw: {type(error).__name__}: {text[:90]}"
        called = CALLED.get(parameter.name, rf"\b{parameter.name.removesuffix('s')}")
        if not re.search(called, text) and str(bound.arguments.get("name", "?")) not in text:
            return f"argument unnamed: {text[:90]}"
        return None
    except BaseException as error:
        return f"raw: {type(error).__name__}: {str(error)[:90]}"
    return silent(name, parameter, kind, bound, result)


def with_floats(value, dtype):
    if isinstance(value, list | tuple):
        return type(value)([np.asarray(value[0], dtype), *value[1:]])
    return np.asarray(value, dtype)


def silent(name, parameter, kind, bound, result):
    """What is wrong with a call that returned."""
    kind, kinds = kind.removesuffix(" inside"), mentions(parameter.annotation)
    if typing.Any in kinds or kind in SHAPES or kinds & MAY_BE.get(kind, set()):
        return None
    if kind in RIGHT_IF_EQUAL:
        value = bound.arguments[parameter.name]
        for dtype in (np.float32, float):
            floats = with_floats(value, dtype)
            with contextlib.suppress(*REFUSALS):
                if same(result, call(name, with_value(bound, parameter.name, floats))):
                    return None
        return "silent: wrong numbers"
    return "silent"


# Of classes, fields and flags that a programmer declares; there Python answers.
DECLARATIONS = frozenset(
    "dictionaries.pytree layers.option records.option records.add_flag".split()
)
# How many wrong calls are answered in the words of JAX or Python, and why.
FALLS = {
    "layers.unroll": (
        6,
        "it runs a step of the user, who reads of what fails inside it as JAX says",
    ),
}
# A function of each kind, of those whose calls compile little.
BY_DEFAULT = """
activations.hard_threshold vision.datasets.read_array dictionaries.gaussian dictionaries.normalize
metrics.nmse problems.synthesize records.changes theory.deep_schedule theory.schedule
theory.support_rate training.digest training.scale_steps training.split
vision.experiments.trained_on
""".split()
CASES = [
    pytest.param(n, marks=[] if n in BY_DEFAULT else [pytest.mark.slow])
    for n in sorted(FUNCTIONS)  # in one order in all processes
    if n not in DECLARATIONS
]


@pytest.mark.usefixtures("as_typed")
@pytest.mark.parametrize("name", CASES)
def test_wrong_arguments_are_refused_in_words_or_taken_right(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faults = [
        f"{parameter.name}, {kind}: {wrong}"
        for parameter, kind, bound in cases(name)
        if (wrong := fault(name, parameter, kind, bound))
    ]
    assert len(faults) == FALLS.get(name, (0, ""))[0], listing(faults)


# Forms in which other libraries and files hold the numbers of an array.


def mapped(values):
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, values)
        return np.load(file.name, mmap_mode="r")


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def unaligned(values):
    memory = np.zeros(values.nbytes + 1, np.uint8)[1:]
    memory = memory.view(values.dtype).reshape(values.shape)
    memory[...] = values
    return memory


class Frame:
    """What a data frame offers."""

    def __init__(self, values):
        self.values, self.shape, self.ndim = values, values.shape, values.ndim

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype, order="F")


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "strided": lambda values: np.repeat(values, 2, values.ndim - 1)[..., ::2],
    "reversed": lambda values: values[::-1].copy()[::-1],
    "big-endian": lambda values: values.astype(values.dtype.newbyteorder(">")),
    "read-only": read_only,
    "mapped": mapped,
    "unaligned": unaligned,
    "float64": lambda values: values.astype(float) if values.dtype.kind == "f" else values,
    "list": lambda values: values.tolist(),
    "data frame": Frame,
    "nothing masked": np.ma.masked_array,
    "masked": lambda values: np.ma.masked_equal(values, values.flat[0]),
    "object": lambda values: values.astype(object),
}
REFUSED = "masked", "object"
FEW = "Fortran order", "big-endian", "masked"  # for calls that take longer than a second
# A second call differs if the function changes an argument in place; `like` has the saved dtypes.
IN_PLACE = "nnx.fit", "training.restore_tree"


def in_layout(value, layout):
    """Arrays, and the arrays of lists and tuples, in another form; None if there are none."""
    if type(value) in (list, tuple):
        inside = [in_layout(one, layout) for one in value]
        known = any(one is not None for one in inside)
        return type(value)(b if a is None else a for a, b in zip(inside, value)) if known else None
    if not isinstance(value, np.ndarray | jax.Array) or not np.ndim(value) or not np.size(value):
        return None
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or value.dtype.kind not in "fiu":
        return None
    return LAYOUTS[layout](np.ascontiguousarray(value))


def layouts(name):
    """(argument, form, arguments) of all calls with an array in another form."""
    given = valid_call(name)
    for argument, value in given.arguments.items():
        kinds = mentions(given.signature.parameters[argument].annotation)
        for layout in LAYOUTS if ArrayLike in kinds else [n for n in LAYOUTS if n != "list"]:
            other = in_layout(value, layout)
            if other is not None and argument != "out":
                yield argument, layout, with_value(given, argument, other)


def layout_fault(name, expected, argument, layout, bound):
    """What is wrong with a call whose numbers come in another form; None if nothing is."""
    try:
        result = call(name, bound)
    except REFUSALS as error:
        beginning = re.split(r"[,:] ", str(error))[0].rpartition(".")[2]
        own = beginning in {*BEGINNINGS, argument, bound.arguments.get("where")}
        return None if own else f"raw: {type(error).__name__}: {str(error)[:90]}"
    except BaseException as error:
        return f"raw: {type(error).__name__}: {str(error)[:90]}"
    if layout in REFUSED:
        return "silent"
    return None if same(result, expected) else "wrong numbers"


@pytest.mark.usefixtures("as_typed")
@pytest.mark.parametrize(
    "name", [case for case in CASES if not {*case.values} & {*IN_PLACE, *FALLS}]
)
def test_the_layout_of_an_array_changes_no_number(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, start = [*layouts(name)], time.process_time()
    expected = call(name, valid_call(name)) if found else None
    fast = time.process_time() - start < 1
    faults = [
        f"{argument}, {layout}: {wrong}"
        for argument, layout, bound in found
        if (fast or layout in FEW)
        and (wrong := layout_fault(name, expected, argument, layout, bound))
    ]
    assert not faults, listing(faults)


def enormous(value):
    """2^38 in place of every integer; in place of None, 2^38."""
    if isinstance(value, list | tuple):
        return type(value)(map(enormous, value)) if value else (2**38,)
    return 2**38


def sizes(name):
    """The parameters of a function that are integers."""
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        kinds = mentions(parameter.annotation)
        if int in kinds and float not in kinds and parameter.kind is not parameter.VAR_KEYWORD:
            yield parameter


@pytest.mark.usefixtures("as_typed")
@pytest.mark.parametrize("name", [case for case in CASES if any(sizes(*case.values))])
def test_a_size_beyond_memory_is_refused_in_words(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = valid_call(name)
    faults = []
    for parameter in sizes(name):
        value = enormous(given.arguments.get(parameter.name, parameter.default))
        wrong = fault(name, parameter, "a size", with_value(given, parameter.name, value))
        faults += [f"{parameter.name}: {wrong}"] if wrong else []
    assert not faults, listing(faults)


def test_an_option_beyond_memory_is_refused_in_words():
    models = [build(2) for build in registry.FAMILIES.values()]
    for model in (*models, *(build()[0] for build in registry.NETWORKS.values())):
        sizes = [f.name for f in dataclasses.fields(model) if ur.records.kind_of(f) is int]
        for name in sizes:
            with pytest.raises(ValueError, match=rf"^\w+: {name} must be at most"):
                dataclasses.replace(model, **{name: 2**38})
        assert sizes or type(model) is ur.dsc


CODES = np.array([[2**33 + 2**20, 0, 3], [0, -(2**40), 1]])
WIDE = {
    "soft_threshold": lambda x: ur.soft_threshold(x, 1.0),
    "nmse": lambda x: ur.metrics.nmse(x, CODES[::-1].astype(np.float32)),
    "column_norms": ur.dictionaries.column_norms,
    "normalize": ur.dictionaries.normalize,
    "weights_coherence": lambda x: ur.theory.weights_coherence(x, x),
    "omp": lambda x: ur.pursuit.omp(np.eye(3, dtype=np.float32), x[0], 2).x,
}


@pytest.mark.usefixtures("as_typed")
@pytest.mark.parametrize("name", WIDE)
def test_integers_beyond_32_bits_are_the_numbers_that_they_are(name):
    ours, expected = WIDE[name](CODES), WIDE[name](CODES.astype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.usefixtures("as_typed")
def test_an_array_of_numpy_that_is_infinite_in_float32_is_refused():
    for x in (np.array([1e300, 1.0]), [1e300, 1.0]):
        with pytest.raises(ValueError, match=r"^\w+: v leaves the range of float32"):
            ur.soft_threshold(x, 1.0)


class Axis:
    """A class that the annotation of an argument names, without an import."""


@checked
def _asked(
    x: Array,
    n: int = 0,
    tol: float | None = 1.0,
    f: Callable[..., Any] = abs,
    rows: Sequence[float] = (),
    support: ArrayLike | list[int] = 0,
    axis: "Axis" = None,
) -> tuple:
    return x, n, tol, f, rows


def test_the_door_hands_on_what_fits():
    x, kappa = jnp.ones(3), np.float32(0.5)
    given = _asked(x, np.int64(3), kappa, rows=[kappa])
    assert given[0] is x and [type(v) for v in given[1:3]] == [int, float]
    assert type(given[4][0]) is float and _asked(x, tol=None, axis=Axis())[2] is None
    assert jax.jit(lambda x: _asked(x)[0])(x).shape == (3,)


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(x=None), "x is not a numeric array"),
        (dict(n=2.5), "n must be an integer, got 2.5"),
        (dict(tol="1"), "tol must be a number, got '1'"),
        (dict(f=3), "f must be a function, got 3"),
        (dict(rows=2.0), "rows must be a sequence, got 2.0"),
        (dict(rows=[1, None]), "rows must be a number, got None"),
        (dict(support=[np.True_, 2]), "support must be an integer, got"),
        (dict(axis=3), "axis must be an Axis, got 3"),
        (dict(rows=np.ones((2, 2))), "rows must be a sequence, each a number"),
    ],
)
def test_the_door_names_the_function_and_the_argument(given, words):
    with pytest.raises(TypeError, match=f"^_asked: {words}"):
        _asked(**{"x": 1.0, **given})


@pytest.mark.parametrize("key", [np.zeros(3, np.uint32), np.zeros((2, 2), np.uint32)])
def test_one_key_is_asked_for(key):
    with pytest.raises((TypeError, ValueError), match="^gaussian: key"):
        ur.dictionaries.gaussian(key, 2, 3)
    with pytest.raises(ValueError, match=r"^gaussian: key has shape \(3,\); expected one key"):
        ur.dictionaries.gaussian(jax.random.split(jax.random.key(0), 3), 2, 3)


def draws():
    """(name, parameters) of the exported functions and methods that draw something."""
    for name, value in of_ours():
        members = inspect.getmembers(value) if inspect.isclass(value) else [("", value)]
        for member, function in members:
            if inspect.isroutine(function) and not member.startswith("_"):
                with contextlib.suppress(ValueError, TypeError):  # some of C have no signature
                    given = inspect.signature(function).parameters
                    if given.keys() & {"key", "seed", "rng", "random_state"}:
                        yield f"{name}.{member}".rstrip("."), given


def test_whatever_draws_takes_a_key_or_an_integer():
    """Pictures of `shapes` are drawn by numpy, from the seed of a recipe."""
    kinds = Key, Key | None
    found = {name: p["key"].annotation if "key" in p else None for name, p in draws()}
    others = [name for name, kind in found.items() if kind not in kinds]
    assert len(found) > 60 and others == ["unrolled.vision.experiments.shapes"], listing(others)


@pytest.mark.parametrize("key", [3, np.int64(3), np.uint32(3), jax.random.key(3)])
def test_an_integer_is_the_seed_of_a_key(key):
    D, expected = ur.dictionaries.dct(4, 6), jax.random.key(3)
    draw = ur.sampler(D, 2)
    for drawn in (draw, ur.layers.glista(2).init, ur.problems.resampler(D.T)):
        given = (D,) if inspect.signature(drawn).parameters.keys() >= {"D"} else ()
        chex.assert_trees_all_equal(drawn(key, *given), drawn(expected, *given))
