"""Figures from arrays; matplotlib is imported when one is drawn.

No two curves of a figure share colour, dashes and marker, and a method has the same look in every
figure. Values outside the axes are marked at the border and named below it, as are those that are
no numbers.
"""

from unrolled.plots._curves import (
    COLOURS,
    bound,
    chain,
    chain_evolution,
    comparison,
    curves,
    evolution,
    figure,
    name_lines,
    styles,
)
from unrolled.plots._pictures import atoms, codes, features, gram, images, learning, losses, use

__all__ = [
    "COLOURS",
    "atoms",
    "bound",
    "chain",
    "chain_evolution",
    "codes",
    "comparison",
    "curves",
    "evolution",
    "features",
    "figure",
    "gram",
    "images",
    "learning",
    "losses",
    "name_lines",
    "styles",
    "use",
]
