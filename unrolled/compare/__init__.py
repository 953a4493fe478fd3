"""Learned beside analytic: what each set of params does step by step, what training did to them,
and how it went there.
"""

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
