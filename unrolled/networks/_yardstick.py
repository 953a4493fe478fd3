"""One rule everywhere: codes are judged beside zero codes, and beside ISTA of the same depth."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array
from unrolled.dictionaries import Dictionary
from unrolled.layers import ista, ista_params

# Two programs add the losses of a batch in different orders.
ROUNDING = 1e-5


@checked
def exceeds(loss: float, other: float) -> bool:
    """Whether a loss is above another by more than the rounding of a sum.

    Example:
        >>> ur.training.exceeds(1.0001, 1.0), ur.training.exceeds(1.0 + 1e-7, 1.0)
        (True, False)
    """
    return bool(loss > other and not np.isclose(loss, other, rtol=ROUNDING, atol=0))


def worse_than_zero(
    codes: str, measure: str, loss: Any, zero: Any, ista: Any = np.nan, unit: str = ""
) -> str:
    """The sentence of the rule.

    Args:
        codes: which ones, with their verb.
        measure: what the numbers are.
        loss, zero, ista: of the codes, of zero codes and of ISTA at the same depth; NaN for none.
        unit: of the numbers.

    Example:
        >>> from unrolled.networks._yardstick import worse_than_zero
        >>> worse_than_zero("they are", "loss", 3.0, 2.0, 0.5)
        'they are worse than zero codes: their loss is 3, that of zero codes 2, of ISTA 0.5'
    """
    return _sentence("zero codes", codes, measure, loss, zero, ista, unit)


def worse(codes: str, measure: str, loss: Any, zero: Any, ista: Any = np.nan) -> str:
    """The sentence of the rule if codes exceed zero codes, or else ISTA; "" if they exceed neither.

    Arguments are those of `worse_than_zero`.

    Example:
        >>> from unrolled.networks._yardstick import worse
        >>> worse("they are", "loss", 1.0, 2.0, 0.5)[:42]
        'they are worse than ISTA of the same depth'
        >>> worse("they are", "loss", 0.4, 2.0, 0.5)
        ''
    """
    if exceeds(loss, zero):
        return worse_than_zero(codes, measure, loss, zero, ista)
    if exceeds(loss, ista):
        return _sentence("ISTA of the same depth", codes, measure, loss, zero, ista)
    return ""


def _sentence(
    other: str, codes: str, measure: str, loss: Any, zero: Any, ista: Any, unit: str = ""
) -> str:
    numbers = [f"their {measure} is {loss:.6g}{unit}", f"that of zero codes {zero:.6g}{unit}"]
    numbers += [] if np.isnan(ista) else [f"of ISTA {ista:.6g}{unit}"]
    return f"{codes} worse than {other}: {', '.join(numbers)}"


def codes_of_ista(D: Dictionary, lam: Any, depth: int, Y: Array, where: str) -> Array:
    """The codes of ISTA after every step, (K, batch, d)."""
    solver, params = ista(depth), ista_params(D, lam, depth, where)
    return jax.vmap(solver.iterates, (None, None, 0), out_axes=1)(params, D, Y)


def loss_of(loss: Any, X: Any, where: str) -> Callable[..., Array] | None:
    """The loss of codes whose true ones are X, checked; None where X alone judges them.

    Raises:
        TypeError: it is no function.
        ValueError: neither codes nor a loss.
    """
    if loss is None and X is None:
        raise ValueError(
            f"{where}: there are no codes; expected X, or a loss that needs none, try "
            "loss=training.lasso(lam)"
        )
    if loss is not None and not callable(loss):
        raise TypeError(
            f"{where}: loss must be a function of (codes, X, D, Y), such as training.lasso(lam), "
            f"got {type(loss).__name__}"
        )
    return loss if X is not None else checks.without_codes(loss, where)


def lam_of(loss: Any, model: Any) -> float | None:
    """The one lam of a loss, else of a layer; None where neither has one."""
    lams = (getattr(part, "lam", None) for part in (loss, model))
    lam = next((lam for lam in lams if lam is not None), None)
    return None if lam is None or np.ndim(lam) or not checks.is_concrete(lam) else float(lam)
