"""What dictionary learning returns."""

from typing import Any, NamedTuple

from unrolled._checks import Array
from unrolled.dictionaries import Dictionary


class Step(NamedTuple):
    """One sweep over the signals, or one batch of a stream."""

    step: int  # 1 for the first
    objective: float  # mean over the signals
    seconds: float  # since the start, those before an interruption included
    replaced: int = 0  # atoms that were unused or duplicates, and were replaced


class Learned(NamedTuple):
    """The result of dictionary learning."""

    D: Dictionary | tuple[Dictionary, ...]  # (m, d), unit atoms; of a chain one per layer
    X: Array | tuple[Array, ...] | None  # (signals, d), the codes; None of a stream
    objective: float  # mean over the signals, for D and X
    history: tuple[Step, ...]  # one record per step
    state: Any = None  # what the algorithm needs beside D and X to continue


def as_learned(resume: Any, where: str) -> Learned:
    """What a caller gives as `resume`.

    Raises:
        TypeError: it is no result of dictionary learning.
    """
    if not isinstance(resume, Learned):
        raise TypeError(
            f"{where}: resume is a {type(resume).__name__}; expected a `Learned` of this function"
        )
    return resume
