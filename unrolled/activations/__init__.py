"""Activations with the constants that the theory needs, and the shrinkages built from them.

An activation rho replaces ReLU inside shrinkage. The theory of general activations (Li, Feng, Zhou
2024, Theorems 9, 10 and 15) uses only a few numbers: the slope and the size of the tail of rho on
x <= 0, and the distance of rho from ReLU. `Activation` stores these numbers next to the function.
"""

from unrolled._base import offer as _offer
from unrolled.activations._activation import *
from unrolled.activations._names import *
from unrolled.activations._names import is_known, is_monotone
from unrolled.activations._thresholds import *
from unrolled.activations._thresholds import as_power, kth_largest, selected

_offer(
    __name__,
    own="Activation Constants NAMED check describe from_description",
)
