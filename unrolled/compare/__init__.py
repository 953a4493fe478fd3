"""Learned beside analytic: what each set of params does step by step, what training did to them, and how it went there."""

from unrolled.compare._compare import QUANTILES as QUANTILES
from unrolled.compare._compare import Change as Change
from unrolled.compare._compare import Comparison as Comparison
from unrolled.compare._compare import Curve as Curve
from unrolled.compare._compare import compare as compare
from unrolled.compare._coupling import Coupling as Coupling
from unrolled.compare._evolution import Evolution as Evolution
from unrolled.compare._evolution import Look as Look
from unrolled.compare._evolution import evolution as evolution
from unrolled.compare._plain import plain as plain
