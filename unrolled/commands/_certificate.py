"""What `unrolled certify` and `unrolled learn` ask of `studies.certify`."""

from collections.abc import Sequence
from typing import NamedTuple

from unrolled import studies
from unrolled.activations import Activation
from unrolled.commands._console import Say
from unrolled.dictionaries import Dictionary
from unrolled.studies import Report


class Request(NamedTuple):
    """What is to be certified, and for which class of codes."""

    sparsities: Sequence[int] | None
    bound: float
    noise: float
    tolerance: float
    activation: Activation | None
    entries: bool


def certificate(Ds: Sequence[Dictionary], request: Request, say: Say) -> Report:
    """The report on one dictionary or on a chain, in float64."""
    sparsities, bound, noise, tolerance, activation, entries = request
    return studies.certify(
        Ds,
        sparsity=sparsities,
        bound=bound,
        noise=noise,
        tolerance=tolerance,
        activation=activation,
        entries=entries,
        say=say,
    )
