"""Layers realized as other networks: CNNs and transformers that compute the same codes."""

from unrolled.realize._attention import (
    Attention,
    Heads,
    attention,
    attention_error,
    attention_leak,
    multi_head_attention,
)
from unrolled.realize._cnn import CnnSize, Realization, cnn, cnn_size, nnx_module
from unrolled.realize._cnn_layers import ConvLayer, conv_layer
from unrolled.realize._transformer import (
    Block,
    BlockWeights,
    Transformer,
    embed,
    read_code,
    transformer,
    transformer_block,
    transformer_error,
)

__all__ = [
    "Attention",
    "Block",
    "BlockWeights",
    "CnnSize",
    "ConvLayer",
    "Heads",
    "Realization",
    "Transformer",
    "attention",
    "attention_error",
    "attention_leak",
    "cnn",
    "cnn_size",
    "conv_layer",
    "embed",
    "multi_head_attention",
    "nnx_module",
    "read_code",
    "transformer",
    "transformer_block",
    "transformer_error",
]
