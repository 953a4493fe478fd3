"""Dictionaries: plain arrays (m, d) with atoms in columns, or structured objects like them.

Every dictionary supports `D @ x` (synthesis), `r @ D` (= D' r, analysis), `D.T`, `D / c`, and
`D.shape == (m, d)`; `dense(D)` gives the matrix. Structured dictionaries are pytrees: they pass
through jit, vmap, grad and scan, and can serve as the weights W. To write a structured dictionary
of your own, see `Structured`. Functions accept a `Dictionary`: a plain array, a structured
dictionary or a numpy array. Results contain an `Operator`: a plain array or a structured
dictionary.
"""

from unrolled._base import offer as _offer
from unrolled.dictionaries._base import *
from unrolled.dictionaries._base import scale_columns
from unrolled.dictionaries._conv import *
from unrolled.dictionaries._families import *
from unrolled.dictionaries._functions import *
from unrolled.dictionaries._grouped import *
from unrolled.dictionaries._grouped import matrix_of_parts
from unrolled.dictionaries._imaging import *
from unrolled.dictionaries._masked import *
from unrolled.dictionaries._masked import known_entries, known_part, shared_part, signal_axes
from unrolled.dictionaries._operands import *
from unrolled.dictionaries._operands import (
    all_kept,
    as_flat,
    block_of,
    check_batch,
    cuts_atoms,
    entries,
    flat_batch,
    in_parts,
    inner_products,
    inner_terms,
    is_complex,
    kept_atoms,
    nonzero_atoms,
    normalized,
    operands,
    refuse_parts,
    replicate,
    representatives,
    threshold_shapes,
    unit_atoms,
    unit_norms,
)
from unrolled.dictionaries._pairs import *
from unrolled.dictionaries._parts import *

_offer(
    __name__,
    own="Coils Dictionary Functions KINDS Operator Rescaled Structured Transposed Unitary "
    "WithIdentity as_chain as_dictionary column_norms magnitudes pytree spectral_norm spread",
)
