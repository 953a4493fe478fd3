"""Scores of codes and images. Batches are (batch, d); every function runs under jit.

Two definitions of NMSE are in use and differ by many dB when a few signals fail: `nmse` is a ratio
of sums, `mean_nmse` a mean of decibels. Report both, with `failure_rate`.
"""

from unrolled.metrics._codes import (
    SupportScores,
    failure_rate,
    kkt_violation,
    mean_nmse,
    nmse,
    signal_nmse,
    support_scores,
)
from unrolled.metrics._images import (
    psnr,
)

__all__ = [
    "SupportScores",
    "failure_rate",
    "kkt_violation",
    "mean_nmse",
    "nmse",
    "psnr",
    "signal_nmse",
    "support_scores",
]
