"""Support selection: the largest entries of a step pass unshrunk, more of them at later steps
(LISTA-CPSS).
"""

import math
from collections.abc import Callable

from unrolled._checks import Array
from unrolled.activations import select_support, shrink


def support_schedule(
    support: tuple[float, float] | None, depth: int, where: str
) -> tuple[float, ...] | None:
    """Support fractions min(k rate, largest) for k = 1..K from (rate, largest); None selects
    nothing.

    Raises:
        ValueError: not 0 <= rate and 0 <= largest <= 1.
    """
    if support is None:
        return None
    try:
        rate, largest = (float(v) for v in support)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: support must be (rate, largest), got {support!r}") from error
    if not (0 <= rate < math.inf and 0 <= largest <= 1):
        raise ValueError(f"{where}: support must be (rate >= 0, largest in [0, 1]), got {support}")
    return tuple(min(k * rate, largest) for k in range(1, depth + 1))


def select_or_shrink(u: Array, theta: Array, fraction: Array | None, activation: Callable) -> Array:
    """`select_support` with the fraction of the step, or `shrink` where nothing is selected."""
    return (
        shrink(u, theta, activation)
        if fraction is None
        else select_support(u, theta, fraction, activation)
    )
