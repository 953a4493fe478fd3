"""Refusals as data: what is called, the error, and the words of its message."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class Fault(NamedTuple):
    """A call that is refused; the message is a regular expression."""

    call: Callable[..., Any]
    error: type[Exception]
    message: str

    def check(self, *arguments):
        with pytest.raises(self.error, match=self.message):
            self.call(*arguments)


def flips(path, period=8):
    """Write a file anew with one other bit, once for every byte; and its bytes, each time."""
    blob = path.read_bytes()
    for place in range(len(blob)):
        changed = bytearray(blob)
        changed[place] ^= 1 << place % period
        path.write_bytes(changed)
        yield bytes(changed)


def refusals(faults):
    """A test of every one of the named faults."""

    @pytest.mark.parametrize("fault", faults)
    def test(fault):
        faults[fault].check()

    return test


def rows(*faults):
    """`refusals` of rows (call, words of the message) for a ValueError, or (call, error, words)."""
    return refusals(
        {
            f"{i}: {words}": Fault(call, *(error or [ValueError]), words)
            for i, (call, *error, words) in enumerate(faults)
        }
    )
