"""The selection of the default tests names tests that exist."""

import ast

import pytest
from conftest import DEFAULT_CASES, FOLDER


@pytest.mark.parametrize("path", DEFAULT_CASES)
def test_the_selection_names_tests_of_the_file(path):
    tree = ast.parse((FOLDER / path).read_text())
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert set(DEFAULT_CASES[path]) <= tests
