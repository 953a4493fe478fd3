"""unrolled: sparse-coding solvers as networks in JAX, with weights from theory or from training.

A method has the same name in each module: `layers.ista` is the layer, `analytic.ista` computes the
params of this layer from theory, and `pursuit.ista` is the solver. The top level has the names that
most programs need: five layers and networks, two pursuits, a dictionary, a sampler of signals, and
functions such as `fit` and `compare`.
"""

import importlib
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from unrolled._base.interrupts import end_quietly_while_importing

if not TYPE_CHECKING:
    end_quietly_while_importing()

from unrolled import (
    activations,
    analytic,
    comparison,
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
    sae,
    theory,
    training,
)
from unrolled._base import missing, text
from unrolled.activations import shrink, soft_threshold
from unrolled.analytic import calibrate
from unrolled.comparison import compare
from unrolled.dictionaries import gaussian
from unrolled.layers import alista, lfista_cp, lista, lista_cp
from unrolled.networks import dsc
from unrolled.problems import sampler, synthesize
from unrolled.pursuit import choose_lam, lasso, omp
from unrolled.theory import certify, mutual_coherence
from unrolled.training import fit, recommend, save
from unrolled.training import restore as load

if TYPE_CHECKING:
    from unrolled import app, nnx, vision  # at run time these modules are imported on first use
    from unrolled import sklearn as sklearn

    __version__: str

__all__ = [
    "activations",
    "alista",
    "analytic",
    "app",
    "calibrate",
    "certify",
    "choose_lam",
    "compare",
    "comparison",
    "dictionaries",
    "dictionary_learning",
    "dsc",
    "export",
    "fit",
    "gaussian",
    "lasso",
    "layers",
    "lfista_cp",
    "lista",
    "lista_cp",
    "load",
    "metrics",
    "mutual_coherence",
    "networks",
    "nnx",
    "omp",
    "penalties",
    "plots",
    "problems",
    "pursuit",
    "realize",
    "recommend",
    "records",
    "sae",
    "sampler",
    "save",
    "shrink",
    "soft_threshold",
    "synthesize",
    "theory",
    "training",
    "vision",
]


if not TYPE_CHECKING:  # with a `__getattr__`, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        """Import `app`, `nnx`, `sklearn` or `vision` on first use; read the version."""
        if name in ("app", "nnx", "sklearn", "vision"):
            return importlib.import_module(f"unrolled.{name}")
        if name == "__version__":
            return text.version()
        rooms = [sys.modules.get(f"unrolled.{word}") for word in __all__]
        inside = [
            f"{room.__name__}.{name}" for room in rooms if name in getattr(room, "__all__", ())
        ]
        raise missing(__name__, name, __all__, inside)


def _absent(module: ModuleType, name: str) -> None:
    raise missing(module.__name__, name, sorted(module.__all__))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


for _name, _module in list(sys.modules.items()):
    if _name.startswith("unrolled.") and "._" not in _name:
        vars(_module).setdefault("__dir__", partial(sorted, _module.__all__))
        vars(_module).setdefault("__getattr__", partial(_absent, _module))
del _name, _module
