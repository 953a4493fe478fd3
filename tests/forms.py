"""What every result with a table owes: four forms of it, and a repr of one screen."""

import pytest


def check_forms(result, rows=None):
    """A row per record in every form; without `rows` there is at least one."""
    records = result.table("records")
    assert records and (rows is None or len(records) == rows)
    assert len(result.table("csv").splitlines()) == len(records) + 1
    assert result.table().startswith("| ") and len(result.table().splitlines()) >= len(records) + 2
    assert result.table("latex").startswith(r"\begin{tabular}")
    assert len(repr(result).splitlines()) <= 24 and "Array(" not in repr(result)
    with pytest.raises(ValueError, match="unknown form 'html'"):
        result.table("html")
