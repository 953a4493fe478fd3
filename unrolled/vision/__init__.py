"""The paper's vision experiments: networks with sparse features, their data, and their runs.

`import unrolled` does not import this subpackage because the models and experiments need flax.
"""

import importlib
import typing

from unrolled._base import missing as _missing
from unrolled._base.packages import require as _require

if typing.TYPE_CHECKING:  # the subpackages are imported on first use
    from unrolled.vision import datasets, experiments, models

__all__ = ["datasets", "experiments", "models"]


def __getattr__(name: str) -> typing.Any:
    if name in __all__:
        if name != "datasets":
            _require(f"unrolled.vision.{name}", "flax")
        return importlib.import_module(f"unrolled.vision.{name}")
    raise _missing(__name__, name, __all__)


def __dir__() -> list[str]:
    return __all__
