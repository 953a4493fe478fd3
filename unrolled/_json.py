"""Records as strict JSON, and texts that tell whether JSON has changed."""

import hashlib
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


def digest(value: Any) -> str:
    """The sha256 of what JSON holds, whatever the order of its names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """`plain(value)` with its `digest` beside it."""
    whole = plain(value)
    return {**whole, "sha256": digest(whole)}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        ValueError: it has no seal, or it has changed since it was written.
    """
    if "sha256" not in value:
        raise ValueError("it has no sha256: an older version wrote it, or another program")
    whole = {name: part for name, part in value.items() if name != "sha256"}
    if value["sha256"] != digest(whole):
        raise ValueError("it has changed since it was written: its sha256 differs")
    return whole
