"""The application: the commands of `python -m unrolled`, and the studies that commands report."""

import importlib
import typing

from unrolled._base import missing as _missing

if typing.TYPE_CHECKING:  # imported on first use
    from unrolled.app import studies

__all__ = ["studies"]


def __getattr__(name: str) -> typing.Any:
    if name in __all__:
        return importlib.import_module(f"unrolled.app.{name}")
    raise _missing(__name__, name, __all__)


def __dir__() -> list[str]:
    return __all__
