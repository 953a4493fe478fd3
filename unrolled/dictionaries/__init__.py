"""Dictionaries: plain arrays (m, d) with atoms in columns, or structured objects like them.

Every dictionary answers `D @ x` (synthesis), `r @ D` (= D' r, analysis), `D.T`, `D.shape == (m, d)`
and `D / c`; `dense(D)` gives the matrix. Structured dictionaries are pytrees: they pass through
jit, vmap, grad and scan, and can stand for the weights W. `Structured` says how to write one of
your own. What functions take is a `Dictionary`, of either kind or an array of numpy; what results
hold is an `Operator`, of either kind.
"""

from unrolled.dictionaries._base import (
    KINDS,
    Dictionary,
    Operator,
    Rescaled,
    Structured,
    Transposed,
    column_norms,
    dense,
    pytree,
)
from unrolled.dictionaries._composed import Composed, Concatenated, Sparse, WithIdentity
from unrolled.dictionaries._conv import Conv
from unrolled.dictionaries._dense import (
    dct,
    gaussian,
    identity_hadamard,
    ill_conditioned,
    paley,
    transversal,
)
from unrolled.dictionaries._operands import (
    all_kept,
    as_chain,
    as_dictionary,
    check_batch,
    cuts_atoms,
    entries,
    inner_products,
    inner_terms,
    kept_atoms,
    magnitudes,
    nonzero_atoms,
    normalize,
    normalized,
    operands,
    replicate,
    representatives,
    spectral_norm,
    spread,
    threshold_shapes,
    unit_atoms,
    unit_norms,
)

__all__ = [
    "Composed",
    "Concatenated",
    "Conv",
    "Dictionary",
    "KINDS",
    "Operator",
    "Rescaled",
    "Sparse",
    "Structured",
    "Transposed",
    "WithIdentity",
    "all_kept",
    "as_chain",
    "as_dictionary",
    "check_batch",
    "column_norms",
    "cuts_atoms",
    "dct",
    "dense",
    "entries",
    "gaussian",
    "identity_hadamard",
    "ill_conditioned",
    "inner_products",
    "inner_terms",
    "kept_atoms",
    "magnitudes",
    "nonzero_atoms",
    "normalize",
    "normalized",
    "operands",
    "paley",
    "pytree",
    "replicate",
    "representatives",
    "spectral_norm",
    "spread",
    "threshold_shapes",
    "transversal",
    "unit_atoms",
    "unit_norms",
]
