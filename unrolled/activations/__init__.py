"""Activations with the constants that the theory needs, and the shrinkages built from them.

An activation rho replaces ReLU inside shrinkage. The theory of general activations (Theorems 9, 10
and 15) uses only a few numbers of it: how steep and how large its tail is on x <= 0, and how far it
is from ReLU. They are fields of `Activation`, next to the function itself.
"""

from unrolled.activations._activation import (
    Activation,
    Constants,
    celu,
    check,
    compose,
    elu,
    gelu,
    gelu_tanh,
    hard_swish,
    leaky_relu,
    mish,
    relu,
    scale,
    selu,
    sigmoid_sum,
    silu,
    softplus,
    tanh_sum,
)
from unrolled.activations._names import (
    NAMED,
    by_name,
    describe,
    from_description,
    is_known,
    is_monotone,
)
from unrolled.activations._thresholds import (
    as_power,
    firm_threshold,
    hard_threshold,
    kth_largest,
    nonnegative_threshold,
    power_threshold,
    select_support,
    shrink,
    soft_threshold,
)

__all__ = [
    "Activation",
    "Constants",
    "NAMED",
    "as_power",
    "by_name",
    "celu",
    "check",
    "compose",
    "describe",
    "elu",
    "firm_threshold",
    "from_description",
    "gelu",
    "gelu_tanh",
    "hard_swish",
    "hard_threshold",
    "is_known",
    "is_monotone",
    "kth_largest",
    "leaky_relu",
    "mish",
    "nonnegative_threshold",
    "power_threshold",
    "relu",
    "scale",
    "select_support",
    "selu",
    "shrink",
    "sigmoid_sum",
    "silu",
    "soft_threshold",
    "softplus",
    "tanh_sum",
]
