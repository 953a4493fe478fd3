"""Learned params beside analytic ones: their errors step by step, and what training changes."""

from unrolled.compare._compare import (
    QUANTILES,
    Change,
    Comparison,
    Curve,
    compare,
)
from unrolled.compare._coupling import (
    Coupling,
)
from unrolled.compare._evolution import (
    Evaluation,
    Evolution,
    evolution,
)

__all__ = [
    "Change",
    "Comparison",
    "Coupling",
    "Curve",
    "Evaluation",
    "Evolution",
    "QUANTILES",
    "compare",
    "evolution",
]
