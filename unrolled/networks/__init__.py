"""Networks through dictionaries D_1 .. D_J: chains of layers, and blocks that are more than that.

`dsc` runs layers one after the other. In `ml_lista` and `msd_csc` every step sweeps through all
blocks, a block of `res_csc` starts from the code two blocks before it, and `deconvolutional`
penalises sum |x|^p.
"""

from unrolled.networks._deconvolutional import Deconvolution, deconvolutional, learn_deconvolution
from unrolled.networks._msd_csc import mixed_scale, msd_csc
from unrolled.networks._network import NETWORKS, Network, dsc
from unrolled.networks._res_csc import res_csc
from unrolled.networks._unfolded import Analysis, ml_lista

__all__ = [
    "Analysis",
    "Deconvolution",
    "NETWORKS",
    "Network",
    "deconvolutional",
    "dsc",
    "learn_deconvolution",
    "mixed_scale",
    "ml_lista",
    "msd_csc",
    "res_csc",
]
