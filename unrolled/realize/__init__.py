"""Layers realized as other networks: CNNs and transformers that compute the same codes."""

from unrolled._base import offer as _offer
from unrolled.realize._attention import *
from unrolled.realize._cnn import *
from unrolled.realize._cnn_layers import *
from unrolled.realize._transformer import *

_offer(
    __name__,
    results="Attention Block BlockWeights CnnSize ConvLayer Heads Realization Transformer",
    own="conv_layer embed multi_head_attention read_code",
)
