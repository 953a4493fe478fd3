"""Vision models made of unrolled sparse coding, as modules of flax.nnx.

`import unrolled` does not import this package, which needs flax.
"""

from unrolled.models._cscnet import (
    CSCNet,
)
from unrolled.models._shifts import (
    shift_average,
)

__all__ = [
    "CSCNet",
    "shift_average",
]


def __dir__() -> list[str]:
    return __all__
