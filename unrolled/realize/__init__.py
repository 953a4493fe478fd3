"""The same codes, computed by a convolutional network or by a transformer."""

from unrolled.realize._attention import Attention as Attention
from unrolled.realize._attention import Heads as Heads
from unrolled.realize._attention import attention as attention
from unrolled.realize._attention import attention_error as attention_error
from unrolled.realize._attention import attention_leak as attention_leak
from unrolled.realize._attention import multi_head_attention as multi_head_attention
from unrolled.realize._cnn import Realization as Realization
from unrolled.realize._cnn import cnn as cnn
from unrolled.realize._cnn_size import CnnSize as CnnSize
from unrolled.realize._cnn_size import cnn_size as cnn_size
from unrolled.realize._conv_layer import ConvLayer as ConvLayer
from unrolled.realize._conv_layer import conv_layer as conv_layer
from unrolled.realize._nnx import nnx_module as nnx_module
from unrolled.realize._transformer import Transformer as Transformer
from unrolled.realize._transformer import transformer as transformer
from unrolled.realize._transformer import transformer_error as transformer_error
from unrolled.realize._transformer_block import Block as Block
from unrolled.realize._transformer_block import BlockWeights as BlockWeights
from unrolled.realize._transformer_block import embed as embed
from unrolled.realize._transformer_block import read_code as read_code
from unrolled.realize._transformer_block import transformer_block as transformer_block
