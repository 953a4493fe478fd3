"""Dictionary learning: D, and codes, from signals alone.

Signals are rows and atoms are columns: Y is nearly X D'. Every function returns a `Learned`, whose
D is what the pursuits, the layers and the theory take.
"""

from unrolled.dictionary_learning._convolutional import convolutional
from unrolled.dictionary_learning._ksvd import ksvd, mod, sparse_ksvd
from unrolled.dictionary_learning._learning import Learned, Step
from unrolled.dictionary_learning._sparse_atoms import double_sparse, multilayer
from unrolled.dictionary_learning._stochastic import online, unrolled

__all__ = [
    "Learned",
    "Step",
    "convolutional",
    "double_sparse",
    "ksvd",
    "mod",
    "multilayer",
    "online",
    "sparse_ksvd",
    "unrolled",
]
