"""Vision models as modules of flax.nnx, with features that a penalty can make sparse.

`import unrolled` does not import this package because the package needs flax. The first use of
`ur.vision.models` imports this package.
"""

from unrolled._base import offer as _offer
from unrolled.vision.models._convolution import *
from unrolled.vision.models._csc_blocks import *
from unrolled.vision.models._cscnet import *
from unrolled.vision.models._layers import *
from unrolled.vision.models._ml_csc import *
from unrolled.vision.models._nets import *

_offer(
    __name__,
    results="Tapped Violations",
    own="Filters ImageConv MSDCSCBlock ResCSCBlock submodule",
)
