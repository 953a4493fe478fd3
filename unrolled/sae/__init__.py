"""Sparse autoencoders of language models: load their weights, unroll and compare their encoders.

A sparse autoencoder (SAE) codes an activation a by one product with its encoder, and decodes the
code as D x + b. Hence its encoder is one step of LISTA for the dictionary D (Gregor, LeCun 2010),
and the questions of this library apply: how far are its codes from the best codes for its own D
(`report`), and what do more steps gain (`unroll`)?
"""

from unrolled._base import offer as _offer
from unrolled.sae._formats import KINDS
from unrolled.sae._load import *
from unrolled.sae._report import *
from unrolled.sae._sae import *

_offer(__name__, results="Report Row SAE")
