"""Vision models made of unrolled sparse coding, as modules of flax.nnx.

`import unrolled` does not import this package, which needs flax.
"""

from unrolled.models._csc_layer import (
    CSCLayer,
)
from unrolled.models._cscnet import (
    CSCNet,
)
from unrolled.models._msd_csc import (
    MSDCSC,
    MSDCSCBlock,
)
from unrolled.models._res_csc import (
    ResCSC,
    ResCSCBlock,
)
from unrolled.models._shifts import (
    shift_average,
)

__all__ = [
    "CSCLayer",
    "CSCNet",
    "MSDCSC",
    "MSDCSCBlock",
    "ResCSC",
    "ResCSCBlock",
    "shift_average",
]


def __dir__() -> list[str]:
    return __all__
