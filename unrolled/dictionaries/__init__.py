"""Dictionaries: plain arrays (m, d) with atoms in columns, or structured objects that answer the same products.

Every dictionary answers `D @ x` (synthesis), `r @ D` (= D' r, analysis), `D.T`, `D.shape == (m, d)` and `D / c`;
`dense(D)` gives the matrix. Structured ones are pytrees: they pass through jit, vmap, grad and scan, and serve as W.
"""

from unrolled.dictionaries._base import Structured as Structured
from unrolled.dictionaries._base import column_norms as column_norms
from unrolled.dictionaries._base import dense as dense
from unrolled.dictionaries._base import normalize as normalize
from unrolled.dictionaries._base import spectral_norm as spectral_norm
from unrolled.dictionaries._base import spread as spread
from unrolled.dictionaries._composed import Composed as Composed
from unrolled.dictionaries._composed import Concatenated as Concatenated
from unrolled.dictionaries._composed import Sparse as Sparse
from unrolled.dictionaries._conv import Conv as Conv
from unrolled.dictionaries._dense import dct as dct
from unrolled.dictionaries._dense import gaussian as gaussian
from unrolled.dictionaries._dense import identity_hadamard as identity_hadamard
from unrolled.dictionaries._dense import ill_conditioned as ill_conditioned
from unrolled.dictionaries._dense import paley as paley
from unrolled.dictionaries._dense import transversal as transversal
