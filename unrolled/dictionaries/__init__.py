"""Dictionaries: plain arrays (m, d) with atoms in columns, or structured objects that answer the
same products.

Every dictionary answers `D @ x` (synthesis), `r @ D` (= D' r, analysis), `D.T`, `D.shape == (m, d)`
and `D / c`; `dense(D)` gives the matrix. Structured ones are pytrees: they pass through jit, vmap,
grad and scan, and serve as W.
"""

from unrolled.dictionaries._base import (
    Rescaled,
    Structured,
    Transposed,
    as_dictionary,
    column_norms,
    dense,
    nonzero_atoms,
    normalize,
    normalized,
    operands,
    pytree,
    spectral_norm,
    spread,
    unit_atoms,
)
from unrolled.dictionaries._composed import (
    Composed,
    Concatenated,
    Sparse,
)
from unrolled.dictionaries._conv import (
    Conv,
)
from unrolled.dictionaries._dense import (
    dct,
    gaussian,
    identity_hadamard,
    ill_conditioned,
    paley,
    transversal,
)

__all__ = [
    "Composed",
    "Concatenated",
    "Conv",
    "Rescaled",
    "Sparse",
    "Structured",
    "Transposed",
    "as_dictionary",
    "column_norms",
    "dct",
    "dense",
    "gaussian",
    "identity_hadamard",
    "ill_conditioned",
    "nonzero_atoms",
    "normalize",
    "normalized",
    "operands",
    "paley",
    "pytree",
    "spectral_norm",
    "spread",
    "transversal",
    "unit_atoms",
]
