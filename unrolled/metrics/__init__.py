"""Scores of codes, features, images and masks; every function runs under jit.

Two definitions of NMSE are in use. They differ by many dB if a few signals fail: `nmse` is a ratio
of sums, and `mean_nmse` is a mean of decibels. Report both, together with `failure_rate`.
"""

from unrolled._base import offer as _offer
from unrolled.metrics._codes import *
from unrolled.metrics._images import *
from unrolled.metrics._segmentation import *

_offer(
    __name__,
    results="Sparsity SupportScores",
)
