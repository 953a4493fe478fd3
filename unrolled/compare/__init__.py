"""Learned params beside analytic ones: their errors step by step, and what training changes."""

from unrolled.compare._compare import compare, compared
from unrolled.compare._comparison import (
    ChainComparison,
    Change,
    Comparison,
    Cost,
    Coupling,
    Curve,
    Divergence,
    DivergenceWarning,
    Guarantee,
    Predicted,
    Sampled,
)
from unrolled.compare._evolution import ChainEvolution, Evaluation, Evolution, evolution
from unrolled.compare._measure import QUANTILES, products

__all__ = [
    "ChainComparison",
    "ChainEvolution",
    "Change",
    "Comparison",
    "Cost",
    "Coupling",
    "Curve",
    "Divergence",
    "DivergenceWarning",
    "Evaluation",
    "Evolution",
    "Guarantee",
    "Predicted",
    "QUANTILES",
    "Sampled",
    "compare",
    "evolution",
    "products",
]
