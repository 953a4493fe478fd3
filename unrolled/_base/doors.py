"""What an exported function needs: checks of its arguments, one compiled program, and a result."""

from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike, DTypeLike, Key
from unrolled._base.programs import host_function, program
from unrolled._base.results import Result

__all__ = [
    "Array",
    "ArrayLike",
    "DTypeLike",
    "Key",
    "Result",
    "checked",
    "host_function",
    "program",
]
