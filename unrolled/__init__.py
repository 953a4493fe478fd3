"""unrolled: sparse-coding solvers as networks in JAX, with weights from theory or from training."""

import importlib
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unrolled import (
    activations,
    analytic,
    compare,
    dictionaries,
    dictionary_learning,
    export,
    layers,
    metrics,
    networks,
    penalties,
    plots,
    problems,
    pursuit,
    realize,
    records,
    theory,
    training,
)
from unrolled._base import text
from unrolled.activations import shrink, soft_threshold
from unrolled.layers import alista, lista, lista_cp
from unrolled.networks import dsc
from unrolled.problems import synthesize
from unrolled.theory import mutual_coherence
from unrolled.training import fit, recommend

if TYPE_CHECKING:  # what is imported when it is asked for
    from unrolled import app, nnx, vision

    __version__: str

__all__ = [
    "activations",
    "alista",
    "analytic",
    "app",
    "compare",
    "dictionaries",
    "dictionary_learning",
    "dsc",
    "export",
    "fit",
    "layers",
    "lista",
    "lista_cp",
    "metrics",
    "mutual_coherence",
    "networks",
    "nnx",
    "penalties",
    "plots",
    "problems",
    "pursuit",
    "realize",
    "recommend",
    "records",
    "shrink",
    "soft_threshold",
    "synthesize",
    "theory",
    "training",
    "vision",
]


def __getattr__(name: str) -> Any:
    """`vision` and `nnx`, which need flax, `app`, and `__version__`, of the installed package."""
    if name in ("app", "nnx", "vision"):
        return importlib.import_module(f"unrolled.{name}")
    if name != "__version__":
        raise AttributeError(f"module 'unrolled' has no attribute {name!r}")
    return text.version()


def _public_names(module: ModuleType) -> list[str]:
    """What `dir` shows of a module: its `__all__`, else what is defined in it."""
    namespace = vars(module)
    own = (
        name
        for name, value in namespace.items()
        if not name.startswith("_")
        and getattr(value, "__module__", module.__name__ if name.isupper() else "")
        == module.__name__
        and not isinstance(value, bool)
    )
    return sorted(namespace.get("__all__", own))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


for _name in list(sys.modules):
    if _name.startswith("unrolled.") and "._" not in _name:
        vars(sys.modules[_name]).setdefault("__dir__", partial(_public_names, sys.modules[_name]))
del _name
