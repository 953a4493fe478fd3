"""The same codes, computed by a convolutional network or by a transformer."""

from unrolled.realize._cnn import Realization as Realization
from unrolled.realize._cnn import cnn as cnn
from unrolled.realize._cnn_size import CnnSize as CnnSize
from unrolled.realize._cnn_size import cnn_size as cnn_size
from unrolled.realize._conv_layer import ConvLayer as ConvLayer
from unrolled.realize._conv_layer import conv_layer as conv_layer
from unrolled.realize._nnx import nnx_module as nnx_module
