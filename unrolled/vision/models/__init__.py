"""Vision models as modules of flax.nnx, with features that a penalty can make sparse.

`import unrolled` does not import this package, which needs flax; `ur.vision.models` does, on first
use.
"""

from unrolled.vision.models._convolution import ImageConv
from unrolled.vision.models._csc_blocks import MSDCSC, CSCLayer, MSDCSCBlock, ResCSC, ResCSCBlock
from unrolled.vision.models._cscnet import CSCNet, shift_average
from unrolled.vision.models._layers import Tapped, submodule, tap
from unrolled.vision.models._ml_csc import MLCSC, Filters, Violations
from unrolled.vision.models._nets import VGG11, LeNet5, UNet

__all__ = [
    "CSCLayer",
    "CSCNet",
    "Filters",
    "ImageConv",
    "LeNet5",
    "MLCSC",
    "MSDCSC",
    "MSDCSCBlock",
    "ResCSC",
    "ResCSCBlock",
    "Tapped",
    "UNet",
    "VGG11",
    "Violations",
    "shift_average",
    "submodule",
    "tap",
]


def __dir__() -> list[str]:
    return __all__
