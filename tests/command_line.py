"""Helpers for the tests of the command line, and of other processes."""

import json
import os

# Of the environment of a process, which otherwise compiles as the tests do; see conftest.py.
AS_USERS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def devices(n):
    """Of the environment of a process with n devices, beside the flags of conftest.py."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={n}"}


def strict_json(text):
    """`json.loads`, which refuses NaN and Infinity here: JSON has neither."""

    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)
