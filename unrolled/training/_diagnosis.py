"""What is wrong with training that changes nothing, or that does harm: one warning each."""

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
    """Warn of training that cannot begin: codes or gradient are zero. True if it warned."""
    _, codes, gradients = loop.inspected(state.trained, loop.validation, at)
    if np.any(np.asarray(codes[at])):
        if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients)):
            return False
        cause = (
            "the gradient is zero at every leaf that is trained, although the codes are not; does "
            "the loss see what these leaves change?"
        )
    else:
        cause = (
            "all codes are zero, silenced by the thresholds. Try a smaller lam, or "
            "analytic.calibrate first"
        )
        if any(np.any(np.asarray(x)) for x in codes):
            cause += ", or training.deep: the codes before the last are not zero"
    _checks.warn(f"{loop.where}: training changes nothing: {cause}")
    return True


def warn_of_start(loop: Loop, state: Progress, of_lasso: bool) -> None:
    """Warn of a start that is worse than zero codes, or in the LASSO than ISTA."""
    first = state.records[0]
    if exceeds(first.validation, loop.zero):
        rule = _worse_than_zero(loop, first.validation, "start")
        _checks.warn(
            f"{loop.where}: {rule}. Try smaller weights or step sizes, another family, or "
            "analytic.calibrate"
        )
    elif of_lasso and first.validation > _SLACK * loop.ista:
        _checks.warn(
            f"{loop.where}: the start is worse than ISTA of the same depth: its validation loss is "
            f"{first.validation:.6g}, that of ISTA {loop.ista:.6g}. The family may have no lam, "
            "another lam than the loss, or support selection; try analytic.calibrate"
        )


def warn_of_end(loop: Loop, state: Progress) -> None:
    """Warn of training that never moved its loss, or ends above zero codes."""
    records = state.records
    first, last = ends(records)
    losses = {(record.stage, record.validation) for record in records}
    if last.step > 0 and len(losses) == len({record.stage for record in records}):
        _checks.warn(
            f"{loop.where}: training changes nothing: the validation loss stays at "
            f"{last.validation:.6g}, although its gradient is not zero. The updates are zero or "
            "too small for the dtype; try a larger rate"
        )
    elif last.step > first.step and exceeds(last.validation, loop.zero):
        what, remedy = "Training improved", "more steps, or another rate or start"
        if last.validation > first.validation:
            what, remedy = "Training diverged", "a smaller rate"
        rule = _worse_than_zero(loop, last.validation, "end")
        _checks.warn(
            f"{loop.where}: {rule}. {what} from {first.validation:.6g}. `best` has the params "
            f"with the smallest loss; try {remedy}"
        )


def _worse_than_zero(loop: Loop, validation: float, at: str) -> str:
    """The rule of zero codes at the start or the end."""
    codes = f"at the {at} of training the codes are"
    return worse_than_zero(codes, "validation loss", validation, loop.zero, loop.ista)
