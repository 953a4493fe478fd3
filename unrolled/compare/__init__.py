"""Comparisons of learned with analytic params: errors step by step, and changes by training.

Call the module like a function: `ur.compare(methods, D, Y, X)`.
"""

import inspect
import sys
import types
import typing

from unrolled._base import offer as _offer
from unrolled.compare._compare import *
from unrolled.compare._compare import compare, compared, with_seconds
from unrolled.compare._comparison import *
from unrolled.compare._evolution import *
from unrolled.compare._measure import *

if typing.TYPE_CHECKING:
    from unrolled.compare._called import called as called


class _Called(types.ModuleType):
    """This module, which can be called like the function `compare`."""

    def __call__(self, *args: typing.Any, **options: typing.Any) -> typing.Any:
        return self.compare(*args, **options)


sys.modules[__name__].__class__ = _Called
__wrapped__ = compare  # `inspect` takes the signature of the module from it
__doc__ = _Called.__call__.__doc__ = f"{__doc__}\n{inspect.getdoc(compare)}"  # for `help`
_offer(
    __name__,
    results="ChainComparison ChainEvolution Change Comparison Cost Coupling Curve Divergence "
    "DivergenceWarning Evaluation Evolution Guarantee Predicted Proved QUANTILES Sampled "
    "Solver",
)
