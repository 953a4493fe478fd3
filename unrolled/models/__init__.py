"""Vision models made of unrolled sparse coding, as modules of flax.nnx. Not imported by `import
unrolled`: it needs flax.
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
