"""The examples of the docstrings run as a user would type them, and every function has one."""

import doctest
import importlib
import inspect
import io
import pkgutil
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_imports import listing, of_ours

import unrolled as ur

MODULES = ["unrolled"] + sorted(
    module.name
    for module in pkgutil.walk_packages(ur.__path__, "unrolled.")
    if not module.name.endswith("__main__")
)
# What an example may use without an import.
NAMES = {"ur": ur, "jax": jax, "jnp": jnp, "np": np}


def examples_of(name):
    """The examples that stand in one file."""
    found = doctest.DocTestFinder().find(importlib.import_module(name), name, globs=NAMES)
    return [example for example in found if example.examples]


def source_of(name):
    """The text of a file, which is not imported for it."""
    return Path(find_spec(name).origin).read_text()


EXAMPLES = [name for name in MODULES if ">>> " in source_of(name)]


@pytest.mark.few(1)
@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module, as_typed):
    said, examples = io.StringIO(), examples_of(module)
    assert examples
    for example in examples:
        doctest.DocTestRunner(verbose=False).run(example, out=said.write)
    assert not said.getvalue(), said.getvalue()


def test_every_public_function_has_an_example():
    """Those behind the command line have theirs in `--help`."""
    without = [
        name
        for name, value in of_ours()
        if not inspect.isclass(value)
        and not name.startswith(("unrolled.app.cli", "unrolled.app.commands"))
        and "Example:" not in (value.__doc__ or "")
    ]
    assert not without, listing(without)
