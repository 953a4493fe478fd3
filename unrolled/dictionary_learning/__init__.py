"""Dictionary learning: D, and codes, from signals alone.

Signals are rows and atoms are columns: Y is nearly X D'. Every function returns a `Learned`; the
pursuits, the layers and the theory take its D.
"""

from unrolled._base import offer as _offer
from unrolled.dictionary_learning._convolutional import *
from unrolled.dictionary_learning._ksvd import *
from unrolled.dictionary_learning._learning import *
from unrolled.dictionary_learning._sparse_atoms import *
from unrolled.dictionary_learning._stochastic import *

_offer(
    __name__,
    results="Learned Step",
)
