"""The skeleton of a learning: start or continue, sweep after sweep, and the result."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Key
from unrolled.dictionaries import Dictionary
from unrolled.dictionary_learning._keeper import Arrays, Keeper, Learned, Progress, keeping, text_of
from unrolled.dictionary_learning._signals import generator


class Options(NamedTuple):
    """The arguments that learnings share, as a caller gave them; `ksvd` says what they are."""

    sweeps: int | None  # None of a stream, which has as many steps as batches
    key: Key
    progress: Progress | None
    resume: Learned | None
    checkpoint: str | Path | None
    start: str | Dictionary = "data"
    weights: ArrayLike | None = None
    mask: ArrayLike | None = None


class Method:
    """One way to learn, of given signals: what `learn` asks for. A state is any value."""

    where: str  # the name of the function

    def config(self) -> dict[str, Any]:
        """What a file must agree in, beside the method and the key."""
        raise NotImplementedError

    def start(self, rng: np.random.Generator) -> Any:
        """The state before the first sweep."""
        raise NotImplementedError

    def resumed(self, resume: Learned) -> Any:
        """The state in which a result ended."""
        raise NotImplementedError

    def restored(self, arrays: Arrays, keeper: Keeper) -> Any:
        """The state that `arrays` gave."""
        raise NotImplementedError

    def arrays(self, state: Any) -> Arrays:
        """A state as a file keeps it."""
        raise NotImplementedError

    def steps(self, keeper: Keeper, sweeps: Any) -> Iterable[int]:
        """The numbers of the sweeps that are left."""
        return keeper.steps(sweeps)

    def sweep(self, state: Any, step: int, rng: np.random.Generator) -> tuple[Any, float, int]:
        """The state after a sweep, the objective, and how many atoms were replaced."""
        raise NotImplementedError

    def warn(self, state: Any) -> None:
        """Warn of a state after which a sweep has ended."""

    def result(self, state: Any) -> Learned:
        """The result, without its history."""
        raise NotImplementedError


def learn(method: Method, options: Options) -> Learned:
    """The result of a method, from its start, from a result or from a file.

    Raises:
        TypeError, ValueError, CheckpointError: as in `ksvd`.
    """
    where, sweeps = method.where, options.sweeps
    if sweeps is not None:
        sweeps = _checks.as_index(sweeps, "sweeps", where)
    key = _checks.as_key(options.key, where)
    config: dict[str, Any] = {"method": where}
    if options.checkpoint is not None:
        config |= {"key": text_of(key)} | method.config()
    with keeping(options.checkpoint, config, options.resume, options.progress) as keeper:
        if keeper.arrays is not None:
            state = method.restored(keeper.arrays, keeper)
        elif options.resume is not None:
            state = method.resumed(options.resume)
        else:
            state = method.start(generator(key, 0))
        for step in method.steps(keeper, sweeps):
            state, objective, replaced = method.sweep(state, step, generator(key, step))
            keeper.add(objective, replaced, method.arrays(state), last=step == sweeps)
        if sweeps is None:
            keeper.save(method.arrays(state), last=True)
    if keeper.history:
        method.warn(state)
    return method.result(state)._replace(history=tuple(keeper.history))
