"""Stage-wise training: step after step, each alone first and then with those before it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import as_dictionary
from unrolled.layers import Layer, Unrolled
from unrolled.training._checkpoint import Checkpoint
from unrolled.training._fit import check_data, check_looks, watcher
from unrolled.training._keeper import keeping, key_text
from unrolled.training._loop import Loop, make_loop
from unrolled.training._losses import supervised
from unrolled.training._records import Fit, Progress, Trained
from unrolled.training._scale_steps import StepRates, scale_steps
from unrolled.training._split import split


def curriculum(
    layer: Layer,
    params: Unrolled,
    D,
    sample: Callable,
    *,
    key: Array,
    steps_per_stage: int = 100,
    stages: Sequence[float] = (1.0, 0.2, 0.02),
    rate: float = 1e-3,
    decay: float = 1.0,
    optimizer: Callable = optax.adam,
    loss: Callable = supervised,
    trainable: Any = None,
    validation: tuple | None = None,
    evaluate_every: int = 50,
    patience: int | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    callbacks: Iterable[Callable] = (),
    log: str | Path | None = None,
    progress: bool | None = None,
) -> Fit:
    r"""Train a layer step by step: for k = 1, ..., K in turn a few stages, all of them with the
    loss of the code after step k.

    The first stage of k moves the params of step k alone, the others those of steps 1..k. In a
    stage with factor c the updates of step j are those of `optimizer(rate)` times

    .. math:: c \; decay^{k - j} \quad (j \le k), \qquad 0 \quad (j > k),

    and those of trained shared params (a tied W) are times c; the first stage moves them at k = 1
    only. Every stage starts from the best params of the one before it (on the validation batch, by
    the loss of its k) with the optimiser as new. There is one compiled step for all stages: k and
    the rates are arguments of it, so that early stages cost as much as late ones.

    Args:
        layer, params, D, sample, key, loss, trainable, validation, evaluate_every, checkpoint,
            callbacks, log, progress: as in `fit`. The loss sees one code, as `codes[-1]`.
        steps_per_stage: how many at most; there are K len(stages) stages.
        stages: the factors c.
        rate: of the optimiser in a stage with factor 1, for step k.
        decay: how much less a step moves each time that a later one is trained, in [0, 1]. Small
            values are greedy: on the standard benchmark (LISTA-CPSS from `analytic.calibrate`, 50
            steps a stage) 0.3 reaches -43 dB and 1 -62 dB, where as many steps of `fit` reach -58
            dB.
        optimizer: a function from a rate to an optax transformation.
        patience: end a stage at the first look at which its best params are so many steps old; None
            never does.

    Returns:
        as `fit`. `best` is that of the last stage, by the loss of the code after step K. The
        records of stage i belong to step k = i // len(stages), counted from 0, and their validation
        losses are those of that step.

    Raises:
        TypeError: a family whose steps share all their params (`training.search` is for it), a
            network, an `optimizer` that is no such function. ValueError: no stages, factors, rate
            or decay out of range. And what `fit` raises.

    Reference: Chen, Liu, Wang, Yin (2018), the training of section 4. Their decay of 0.3 scales
    gradients, which Adam undoes: in effect it is 1.
    """
    _check(layer, params, D)
    K = layer.depth
    steps = _checks.as_index(steps_per_stage, "steps_per_stage", "curriculum")
    evaluate_every, patience = check_looks(evaluate_every, patience, "curriculum")
    plan = _plan(K, stages, decay)
    total = len(plan) * steps
    key, D, validation = check_data(layer, D, sample, key, validation, "curriculum")
    trained, fixed = split(params, D, False, trainable, "curriculum")
    scaled = optax.chain(_made(optimizer, rate), scale_steps(jnp.ones(K)))

    def of_step(codes, X, D, Y, at):
        return loss(codes[at][None], X, D, Y)

    loop = make_loop("curriculum", layer, of_step, sample, scaled, key, trained, fixed, validation)
    config = {
        "key": key_text(key),
        "evaluate_every": evaluate_every,
        "rate": rate,
    }
    config |= {"steps_per_stage": steps, "stages": [float(c) for c in stages], "decay": decay}
    with keeping(checkpoint, layer, loop, config, Trained(params, D)) as keeper:
        state = _enter(loop, loop.start(trained), 0, plan[0][1])
        loop, state = keeper.resume(state, total, at=plan[0][0]) if keeper else (loop, state)
        with watcher(loop, total, callbacks, log, progress) as watch:
            for stage, (k, rates) in list(enumerate(plan))[state.stage :]:
                state = _enter(loop, state, stage, rates) if stage > state.stage else state
                begun = next(
                    (record.step for record in state.records if record.stage == stage), state.step
                )
                options = dict(patience=patience, at=k, keeper=keeper)
                state = loop.run(state, begun + steps, evaluate_every, watch, **options)
        if keeper:
            keeper.save(state)
    return loop.result(state)


def _enter(loop: Loop, state: Progress, stage: int, rates: StepRates) -> Progress:
    """The state at the beginning of a stage: the best params so far, and the optimiser as new."""
    fresh = loop.start(state.best)
    optimizer = (*fresh.optimizer[:-1], rates)
    return state._replace(trained=fresh.trained, optimizer=optimizer, stage=stage, lowest=np.inf)


def _plan(K: int, stages: Sequence[float], decay: float) -> list[tuple[int, StepRates]]:
    """For every stage the step whose code it judges, and the rates of all steps."""
    factors = np.asarray(stages, float)
    if factors.ndim != 1 or not len(factors) or not (np.isfinite(factors) & (factors >= 0)).all():
        raise ValueError(
            f"curriculum: stages must be non-negative factors, at least one, got {stages}"
        )
    if not 0 <= decay <= 1:
        raise ValueError(f"curriculum: decay must be in [0, 1], got {decay}")
    plan = []
    for k in range(K):
        age = k - np.arange(K)
        reach = np.where(age >= 0, float(decay) ** np.maximum(age, 0), 0.0)
        for i, factor in enumerate(factors):
            rates = factor * (reach if i else age == 0)
            shared = factor if i or k == 0 else 0.0
            plan.append((k, StepRates(jnp.asarray(rates, float), jnp.asarray(shared, float))))
    return plan


def _check(layer, params, D) -> None:
    if not isinstance(layer, Layer):
        raise TypeError(
            f"curriculum: expected a Layer, got {type(layer).__name__}; "
            "train the blocks of a network in turn"
        )
    layer.check(params, as_dictionary(D, "curriculum"))
    if params.steps is None:
        raise TypeError(
            "curriculum: the steps of this family share all their params; "
            "try training.search or training.fit"
        )


def _made(optimizer, rate: float) -> optax.GradientTransformation:
    if not 0 <= rate < np.inf:
        raise ValueError(f"curriculum: rate must be non-negative and finite, got {rate}")
    made = optimizer(rate) if callable(optimizer) else optimizer
    if not callable(optimizer) or not (hasattr(made, "init") and hasattr(made, "update")):
        raise TypeError(
            "curriculum: optimizer must be a function from a rate to an optax transformation, such as optax.adam, got "
            f"{type(optimizer).__name__}"
        )
    return made
