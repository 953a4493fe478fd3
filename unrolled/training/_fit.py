"""End-to-end training by any optax optimiser."""

from typing import Any, Unpack

import numpy as np
import optax

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, Key, checked
from unrolled.layers import fista
from unrolled.training._losses import supervised
from unrolled.training._objective import Data, Objective
from unrolled.training._options import Run, RunOptions
from unrolled.training._signals import Signals
from unrolled.training._stages import run_stages
from unrolled.training._types import Dictionaries, Fit, Loss, Model, Params, Sample

__all__ = ["fit"]


@checked
@programs.takes_sharded
def fit(
    model: Model | Any,
    params: Params | Any,
    D: Dictionaries | Any,
    sample: Sample | Array | np.ndarray | tuple | Any,
    *,
    optimizer: optax.GradientTransformation | Any,
    steps: int,
    key: Key,
    loss: Loss | Any = supervised,
    learn_dictionary: bool = False,
    trainable: Any = None,
    validation: tuple | Any = None,
    mask: ArrayLike | None = None,
    **run: Unpack[RunOptions],
) -> Fit:
    """Train params, and D if `learn_dictionary` is True, by any optax optimiser.

    One compiled step draws the batch of training step k as `sample(fold_in(key, k))`, so the result
    depends only on the arguments. Thresholds (fields with the role "threshold") are trained as
    abs(theta) and stay non-negative. No optimiser changes leaves inside a `layers.Fixed` (ALISTA's
    W) or leaves that `trainable` freezes. A learned D keeps unit atoms.

    Args:
        model, params, D: a layer with its params (from `init`, `analytic` or training) and the
            dictionary that it uses; or a network with tuples of both. A tuple of steps
            (`layers.unstack`) trains faster than stacked steps, and takes longer to compile.
        sample: a sampler `sample(key) -> (Y, X)`, see `Sample`; if it returns (Y, X, Ds), each
            signal has its own dictionary (Ada-LISTA, robust ALISTA). Or signals Y, (signals, m), or
            (Y, X) with their codes, as arrays or data frames: `problems.resampler` then draws the
            batches, and the last tenth of the signals, at most 1,000, is held back for validation.
            Of a file, `np.load(path, mmap_mode="r")`, each process reads only the rows it needs.
        optimizer: an optax optimiser. Its argument is `Trained(params, D)`, with None at every leaf
            that is not trained; labels for `optax.multi_transform` are `Trained(labels, None)`.
            `optax.lbfgs` and `optax.polyak_sgd` get the loss of the batch. `optax.lookahead` does
            not work, because it changes the form of the params.
        steps: the largest number of training steps.
        key: the key of the batches; an int is a seed.
        loss: `loss(codes, X, D, Y)`, see `Loss`: `training.supervised`, `log_nmse`, `lasso_loss`,
            `reconstruction`, `deep`, or your own.
        learn_dictionary: whether to train D too.
        trainable: a tree prefix of `params` with bools as leaves, for example `Unrolled(False,
            StepAndThreshold(gamma=False, theta=True))`; None trains all leaves.
        validation: (Y, X), the batch on which `best` has the least loss. None draws eight batches
            from keys that training does not use, or holds signals back if `sample` is arrays.
        mask: bools in the shape of Y, only if `sample` is arrays. True marks a known entry; unknown
            entries may be NaN. The model and the loss get `dictionaries.Masked(D, mask)` of each
            signal; a learned D is one for all signals. A validation batch is then (Y, X, mask).
        run: the options of `training.Run`, by name: evaluations, patience, checkpoints, devices.

    Returns:
        Fit, with the last params, the best params, D and the history.

    Warns:
        UserWarning: training changes nothing; the validation loss at the start or at the end is
            above the loss of zero codes; training made nothing better; or, for
            `training.lasso_loss`, the loss at the start is above the loss of ISTA, or a `fista`
            without a guard is trained. See also the field `worsened` of the result.

    Raises:
        NonFiniteError: a loss, gradient or update is not finite. The message names the training
            step and, if possible, the first code, gradient or param that is not finite. The
            attribute `fit` of the error holds the params before that step and the best params.
        TypeError: an argument has the wrong type; params have no floating-point leaf; or a loss is
            not one floating-point number.
        ValueError: a batch does not fit or is not finite; the loss needs codes and there are none;
            there is only one signal, or all signals are zero; a number is out of range; the labels
            of an optimiser form another tree; `trainable` is not a tree prefix of params or freezes
            everything; an option of the run is refused (see `training.Run`); with a mesh axis
            "atoms", D is not dense or the devices cannot share the atoms equally; or several
            processes have different arguments (the message has a table).
        RuntimeError: another process of the training has ended or is out of reach.
        CheckpointError: the folder holds another run (the message has a table), is in use, is
            damaged or cannot be written. All options of the model except `unroll` and `remat` must
            be the same. `fit` detects another optimiser, loss or sampler only by repeating the
            first evaluation and the first two training steps.

    Example:
        >>> import optax
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 10, 20)
        >>> layer, sample = ur.lista_cp(4), ur.problems.sampler(D, batch=16)
        >>> start, adam = layer.init(None, D), optax.adam(1e-2)
        >>> trained = ur.fit(layer, start, D, sample, optimizer=adam, steps=20, key=0)
        >>> first, last = trained.history.records
        >>> (first.step, last.step), last.validation < first.validation
        ((0, 20), True)
    """
    steps = checks.as_index(steps, "steps", "fit")
    how = Run.of("fit", run)
    objective = Objective.of("fit", model, loss)
    dtype = checks.common_dtype(params, D)
    signals = Signals.of(D, sample, key, validation, mask, dtype, "fit")
    data = Data.of(objective, params, signals, learn_dictionary, trainable)
    if isinstance(model, fista) and model.guard is None and objective.of_lasso:
        checks.warn(
            "fit: fista has no guard: trained steps can be too long for some signal, whose code "
            "then explodes although the mean loss of the other signals is small; try "
            f"fista({model.depth}, guard=lam)"
        )
    return run_stages(objective, data, optimizer, how, steps)
