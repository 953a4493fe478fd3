"""The application: the commands of `python -m unrolled`, and the studies that they report."""

import importlib
import typing

from unrolled._base import missing as _missing

if typing.TYPE_CHECKING:  # what is imported when it is asked for
    from unrolled.app import studies

__all__ = ["studies"]


def __getattr__(name: str) -> typing.Any:
    if name in __all__:
        return importlib.import_module(f"unrolled.app.{name}")
    raise _missing(__name__, name, __all__)


def __dir__() -> list[str]:
    return __all__
