"""Networks through dictionaries D_1 .. D_J: chains of layers, and blocks that are more than that.

`dsc` runs layers one after the other. In `ml_lista` and `msd_csc` every step sweeps through all
blocks, a block of `res_csc` starts from the code two blocks before it, and `deconvolutional`
penalises sum |x|^p.
"""

from unrolled.networks._blocks import (
    Deconvolution,
    deconvolutional,
    learn_deconvolution,
    mixed_scale,
    msd_csc,
    res_csc,
)
from unrolled.networks._network import (
    NETWORKS,
    ROUNDING,
    Analysis,
    Network,
    codes_of_ista,
    dsc,
    exceeds,
    lam_of,
    loss_of,
    ml_lista,
    worse,
    worse_than_zero,
)

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
