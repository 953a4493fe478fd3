"""Helpers for the tests of the command line."""

import json


def strict_json(text):
    """`json.loads`, which refuses NaN and Infinity here: JSON has neither."""

    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)
