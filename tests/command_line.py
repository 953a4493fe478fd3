"""What the tests of the command line read its output with."""

import json


def strict_json(text):
    """`json.loads` that refuses NaN and Infinity, which are no JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)
