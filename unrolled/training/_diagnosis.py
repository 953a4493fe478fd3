"""What is wrong with a training that does nothing, or that does harm: one warning each."""

import jax
import numpy as np

from unrolled import _checks
from unrolled._beside import exceeds, worse_than_zero
from unrolled.training._loop import Loop
from unrolled.training._records import Progress, ends

# So much above ISTA a start may be that has weights of its own, where ISTA has converged.
_SLACK = 1.02


def is_stuck(state: Progress) -> bool:
    """Whether the second evaluation of a stage has the loss of the first, bit for bit."""
    losses = [record.validation for record in state.records if record.stage == state.stage]
    return len(losses) == 2 and losses[0] == losses[1]


def warn_of_cause(loop: Loop, state: Progress, at: int) -> bool:
    """Warn of a training that cannot begin: codes or gradient are zero. True if it warned."""
    (_, codes), gradients = loop.inspect(state.trained, loop.fixed, loop.validation, at)
    if np.any(np.asarray(codes[at])):
        if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients)):
            return False
        cause = (
            "the gradient is zero at every leaf that is trained, although the codes are not; does "
            "the loss see what these leaves change?"
        )
    else:
        cause = (
            "all codes are zero: the thresholds silence every entry. Try analytic.calibrate first"
        )
        if any(np.any(np.asarray(x)) for x in codes):
            cause += ", or training.deep: the codes before the last are not zero"
    _checks.warn(f"{loop.where}: the training does nothing: {cause}")
    return True


def warn_of_start(loop: Loop, state: Progress, of_lasso: bool) -> None:
    """Warn of a training whose start is worse than zero codes, or in the LASSO than ISTA."""
    first = state.records[0]
    if exceeds(first.validation, loop.zero):
        at = "at the start of the training the codes are"
        rule = worse_than_zero(at, "validation loss", first.validation, loop.zero, loop.ista)
        _checks.warn(
            f"{loop.where}: {rule}. Try smaller weights or step sizes, another family, or "
            "analytic.calibrate"
        )
    elif of_lasso and first.validation > _SLACK * loop.ista:
        _checks.warn(
            f"{loop.where}: the training starts above ISTA of the same depth: its validation loss "
            f"is {first.validation:.6g}, that of ISTA {loop.ista:.6g}. Families that know no lam, "
            "or select a support, start there, and layers with another lam; try analytic.calibrate"
        )


def warn_of_end(loop: Loop, state: Progress) -> None:
    """Warn of a training that never moved its loss, or ends above zero codes."""
    records = state.records
    first, last = ends(records)
    losses = {(record.stage, record.validation) for record in records}
    if last.step > 0 and len(losses) == len({record.stage for record in records}):
        _checks.warn(
            f"{loop.where}: the training does nothing: the validation loss stays at "
            f"{last.validation:.6g}, although its gradient is not zero. The updates are zero or "
            "too small for the dtype; try a larger rate"
        )
    elif last.step > first.step and exceeds(last.validation, loop.zero):
        began, try_ = "began", "more steps, or another rate or start"
        if last.validation > first.validation:
            began, try_ = "diverges: it began", "a smaller rate"
        at = "at the end of the training the codes are"
        rule = worse_than_zero(at, "validation loss", last.validation, loop.zero, loop.ista)
        _checks.warn(
            f"{loop.where}: {rule}. The training {began} with {first.validation:.6g}. `best` has "
            f"the params of the smallest; try {try_}"
        )
