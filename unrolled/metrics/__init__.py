"""Scores of codes, features, images and masks; every function runs under jit.

Two definitions of NMSE are in use and differ by many dB when a few signals fail: `nmse` is a ratio
of sums, `mean_nmse` a mean of decibels. Report both, with `failure_rate`.
"""

from unrolled.metrics._codes import (
    Sparsity,
    SupportScores,
    failure_rate,
    kkt_violation,
    mean_nmse,
    nmse,
    psnr,
    signal_nmse,
    sparsity,
    support_scores,
)
from unrolled.metrics._segmentation import (
    mean_class_accuracy,
    mean_class_precision,
    mean_iou,
    pixel_accuracy,
)

__all__ = [
    "Sparsity",
    "SupportScores",
    "failure_rate",
    "kkt_violation",
    "mean_class_accuracy",
    "mean_class_precision",
    "mean_iou",
    "mean_nmse",
    "nmse",
    "pixel_accuracy",
    "psnr",
    "signal_nmse",
    "sparsity",
    "support_scores",
]
