"""Vision models as modules of flax.nnx, with features that a penalty can make sparse.

`import unrolled` does not import this package, which needs flax; `ur.models` does, on first use.
"""

from unrolled.models._csc_layer import CSCLayer
from unrolled.models._cscnet import CSCNet, shift_average
from unrolled.models._image_conv import ImageConv
from unrolled.models._lenet import LeNet5
from unrolled.models._ml_csc import MLCSC
from unrolled.models._msd_csc import MSDCSC, MSDCSCBlock
from unrolled.models._pursuit_layer import Filters, Violations
from unrolled.models._res_csc import ResCSC, ResCSCBlock
from unrolled.models._taps import Tapped, submodule, tap
from unrolled.models._unet import UNet
from unrolled.models._vgg import VGG11

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
