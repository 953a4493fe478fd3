"""What every result with a table owes: four forms and a short repr; and comparisons to draw."""

import numpy as np
import pytest

from unrolled.comparison import Comparison, Coupling, Curve, MethodResult

K = 8  # steps of the comparisons


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


def curve(level, **fields):
    """A method whose numbers all fall from a level."""
    falling = level * 0.5 ** np.arange(K)
    given = dict.fromkeys(Curve._fields, falling)
    given |= dict(quantiles=np.stack([falling] * 3, 1), gap=None, gap_quantiles=None)
    return Curve(**{**given, **fields})


def made(curves, thresholds=None, mu_W=None):
    """A comparison with given numbers."""
    thresholds = {name: np.ones(K) for name in curves} if thresholds is None else thresholds
    weights = dict.fromkeys(curves, np.full(K, 0.2)) if mu_W is None else mu_W
    couplings = {name: Coupling(*[mu] * len(Coupling._fields)) for name, mu in weights.items()}
    return Comparison(
        {
            name: MethodResult(curve, thresholds=thresholds.get(name), coupling=couplings.get(name))
            for name, curve in curves.items()
        }
    )


def each(result, field):
    """A field of every method of a comparison by name, without None, False and ()."""
    values = {name: getattr(of, field) for name, of in result.methods.items()}
    return {
        n: v
        for n, v in values.items()
        if not (v is None or v is False or (isinstance(v, tuple) and not v))
    }


def changed(result, name, **fields):
    """The comparison with other fields of a method."""
    return result.replace(methods=result.methods | {name: result.methods[name].replace(**fields)})
