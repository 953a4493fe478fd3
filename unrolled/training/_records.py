"""What a training works on and what it returns."""

from typing import Any, NamedTuple

import numpy as np


class Record(NamedTuple):
    """What is known at one look at the training."""

    step: int  # steps done
    loss: float  # mean training loss since the last look; nan before the first step
    validation: float  # loss on the validation batch
    seconds: float  # since the start
    stage: int = 0  # of a curriculum


class History(NamedTuple):
    """The course of a training."""

    loss: np.ndarray  # (steps,) training loss at every step
    records: tuple[Record, ...]


class Fit(NamedTuple):
    """The result of a training."""

    params: Any  # after the last step
    best: Any  # with the smallest validation loss, the start included
    D: Any  # as given, or as learned together with `best`
    history: History


class NonFiniteError(FloatingPointError):
    """The loss, its gradient or an update stopped being finite; `fit` holds what was reached
    before.
    """

    def __init__(self, message: str, fit: Fit):
        super().__init__(message)
        self.fit = fit


class Trained(NamedTuple):
    """What the optimiser sees: the params and the dictionary, with None at every leaf that is not
    trained.
    """

    params: Any
    D: Any


class Progress(NamedTuple):
    """All that changes while a training runs. Saved between two looks, it lets the training go on
    bit for bit.

    The compiled step consumes `trained` and `optimizer`: copy them before the training goes on.
    """

    trained: Trained
    optimizer: Any  # the state of the optimiser
    step: int  # done
    stage: int  # of a curriculum, else 0
    best: Trained
    lowest: float  # validation loss of `best`
    best_at: int  # the step of `best`
    losses: np.ndarray  # (step,)
    records: tuple[Record, ...]
