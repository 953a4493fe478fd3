"""Cells of tables that other programs would take for a formula or for a tag."""

import pytest

from unrolled._base.text import comma_separated, markdown


@pytest.mark.parametrize(
    "cell, in_csv, in_markdown",
    [
        ("=HYPERLINK(A1)", "'=HYPERLINK(A1)", r"\=HYPERLINK(A1)"),
        ("@SUM(A1)", "'@SUM(A1)", r"\@SUM(A1)"),
        ("+cmd", "'+cmd", r"\+cmd"),
        ("-cmd|x", "'-cmd|x", r"\-cmd\|x"),
        ("-1+A1", "'-1+A1", "-1+A1"),
        ("<img src=x>", "<img src=x>", r"\<img src=x>"),
        ("a</td>", "a</td>", r"a\</td>"),
        ("x < 1", "x < 1", "x < 1"),
        ("-27.5", "-27.5", "-27.5"),
        ("-1 2e-3", "-1 2e-3", "-1 2e-3"),
        ("-inf", "-inf", "-inf"),
        ("lista_cp, s = 3", '"lista_cp, s = 3"', "lista_cp, s = 3"),
    ],
)
def test_a_cell_is_neither_a_formula_nor_a_tag(cell, in_csv, in_markdown):
    assert comma_separated([cell], [[cell]]) == f"{in_csv}\n{in_csv}\n"
    table = markdown([cell], [[cell]])
    assert table.splitlines()[::2] == [f"| {in_markdown} |"] * 2
    assert table.rows == [[cell]]  # its HTML is escaped apart


def test_numbers_and_empty_cells_stay():
    assert comma_separated(["a", "b"], [[-1.5, None]]) == "a,b\n-1.5,\n"
