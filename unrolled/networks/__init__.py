"""Networks with dictionaries D_1 .. D_J: chains of layers, and networks that are not chains.

`dsc` runs layers one after the other. In `ml_lista` and `msd_csc` every step sweeps through all
blocks. A block of `res_csc` starts from the code two blocks before it. `deconvolutional` penalises
sum |x|^p.
"""

from unrolled._base import offer as _offer
from unrolled.networks._blocks import *
from unrolled.networks._network import *
from unrolled.networks._network import (
    ROUNDING,
    codes_of_ista,
    exceeds,
    lam_of,
    loss_of,
    worse,
    worse_than_zero,
)

_offer(
    __name__,
    results="Deconvolution",
    own="Analysis NETWORKS Network",
)
