"""Dictionary learning: a dictionary, and codes, from signals alone.

Signals are rows and atoms are columns, so Y is approximately X D'. Every function returns a
`Learned`, whose D you can pass to the pursuits, the layers and the functions of `theory`.
"""

from unrolled._base import offer as _offer
from unrolled.dictionary_learning._convolutional import *
from unrolled.dictionary_learning._ksvd import *
from unrolled.dictionary_learning._learning import *
from unrolled.dictionary_learning._recover import *
from unrolled.dictionary_learning._sparse_atoms import *
from unrolled.dictionary_learning._stochastic import *
from unrolled.dictionary_learning._through_layers import *

_offer(
    __name__,
    results="Learned Step",
)
