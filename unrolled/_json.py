"""Records as strict JSON."""

import json
import math
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Records and arrays as dicts, lists and floats; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def to_json(value: Any, indent: int | None = 1) -> str:
    """`plain(value)` as text."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)
