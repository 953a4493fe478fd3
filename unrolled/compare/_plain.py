"""Records as what JSON can hold."""

import math

import numpy as np


def plain(value):
    """Records and arrays as dicts, lists and floats that JSON can hold; numbers that are not finite
    become None.
    """
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
