"""Activations with the constants that the theory needs, and the shrinkages built from them.

An activation rho replaces ReLU inside shrinkage. The theory of general activations (Theorems 9, 10
and 15) uses only a few numbers of it: how steep and how large its tail is on x <= 0, and how far it
is from ReLU. They are fields of `Activation`, next to the function itself.
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
