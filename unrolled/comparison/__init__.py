"""Comparisons of learned with analytic params: errors step by step, and changes by training."""

from unrolled._base import offer as _offer
from unrolled.comparison._compare import *
from unrolled.comparison._compare import compared, with_seconds
from unrolled.comparison._comparison import *
from unrolled.comparison._costs import *
from unrolled.comparison._evolution import *
from unrolled.comparison._headline import ends_of, told
from unrolled.comparison._method import *
from unrolled.comparison._method import About, named
from unrolled.comparison._payoff import microseconds
from unrolled.comparison._results import *
from unrolled.comparison._weights import *

_offer(
    __name__,
    results="About ChainComparison ChainEvolution Change Comparison Cost Coupling Curve "
    "Divergence DivergenceWarning Evaluation Evolution Guarantee Method MethodResult Predicted "
    "Proved QUANTILES Sampled",
)
