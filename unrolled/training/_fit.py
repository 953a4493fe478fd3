"""End-to-end training by any optax optimiser."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrolled._base import checks, programs
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike, Key
from unrolled._base.files import MappedRows, as_data, check_draws, drawing
from unrolled.dictionaries import (
    Operator,
    block_of,
    flat_batch,
    known_entries,
    known_part,
    shared_part,
)
from unrolled.layers import Layer, fista
from unrolled.networks import Network, lam_of
from unrolled.problems import resampler
from unrolled.training._loop import Data
from unrolled.training._losses import supervised
from unrolled.training._objective import (
    Dictionaries,
    Fit,
    Loss,
    Model,
    Objective,
    Outputs,
    Params,
    Sample,
    Trained,
    as_dictionaries,
    check_model,
    is_nnx,
    merge,
    split,
)
from unrolled.training._options import Run, RunOptions
from unrolled.training._stages import run_stages

__all__ = ["fit"]


# The last tenth of the signals is held back, at most 1,000 signals.
_HELD_BACK, _MOST = 10, 1000
_BATCH = 64  # masked signals in a step, as many as `resampler` draws


def is_own(sample: Any) -> bool:
    """Whether `sample` is an array Y or a pair (Y, X), not a sampler; a data frame is an array."""
    pair = isinstance(sample, tuple) and len(sample) == 2
    first = sample[0] if pair else sample
    return hasattr(first, "__array__") and not callable(sample)


def from_arrays(
    arrays: Any,
    validation: tuple | None,
    params: Any,
    D: Dictionaries | None,
    where: str,
    mask: Any = None,
) -> tuple[Sample, tuple]:
    """A sampler of given signals, and the validation batch.

    If no validation batch is given, the last tenth of the signals, at least one and at most 1,000,
    becomes the validation batch, and the sampler never draws these signals. If a mask is given,
    every batch has a dictionary for each signal.
    """
    Y, X = arrays if isinstance(arrays, tuple) else (arrays, None)
    if mask is not None:
        mask = each_known(D, Y, mask, where)
        Y = np.where(mask, np.asarray(Y), 0)
    Y, X = as_data(Y, X, where)
    check_width(Y, D, where)
    dtype = checks.common_dtype(params, D, Y, X)
    Y, X = jax.tree.map(lambda array: array.astype(dtype), (Y, X))
    n, cut = len(Y), len(Y)
    if validation is None:
        if n < 2:
            raise ValueError(
                f"{where}: Y has one signal; expected at least 2, to train and to validate on, or "
                "validation=(Y, X)"
            )
        cut = n - min(max(1, n // _HELD_BACK), _MOST)
        validation = jax.tree.map(lambda array: jnp.asarray(array[cut:]), (Y, X))
    trained = jax.tree.map(lambda array: array[:cut], (Y, X)) if cut < n else (Y, X)
    parts = (("signals", trained[0]), ("signals held back to validate on", Y[cut:]))
    for what, signals in parts[isinstance(Y, MappedRows) :]:  # a file's first signals stay unread
        if len(signals) and not np.any(np.asarray(signals)):
            raise ValueError(f"{where}: all {what} are zero; expected some signal to fit")
    if mask is None:
        return resampler(*trained), validation
    if len(validation) == 2 and cut < n:
        validation = (*validation, mask[cut:])
    elif len(validation) != 3:
        raise ValueError(f"{where}: a validation batch with a mask is (Y, X, mask)")
    known = each_known(D, validation[0], validation[2], f"{where}, validation")
    own, Y = known_part(first_of(D), jnp.asarray(validation[0], dtype), known)
    rows = jax.tree_util.Partial(_known_rows, D, (*trained, jnp.asarray(mask[:cut])))
    return rows, (Y, validation[1], with_first(D, own))


def each_known(D: Any, Y: Any, mask: Any, where: str) -> np.ndarray:
    """A mask of the known entries of each signal, (n, m)."""
    known = known_entries(first_of(D), mask, len(Y), where)
    return np.broadcast_to(known, (len(Y), known.shape[-1]))


def first_of(D: Any) -> Any:
    """The dictionary of the signals, which is the first dictionary of a chain."""
    return D[0] if isinstance(D, tuple) else D


def with_first(D: Any, own: Operator) -> Any:
    """D, or a chain of dictionaries, with `own` as the dictionary of the signals."""
    return (own, *D[1:]) if isinstance(D, tuple) else own


@programs.program()
def _known_rows(D: Any, arrays: tuple, key: Array) -> tuple:
    """Random signals, their codes, and their dictionaries."""
    rows = jax.random.randint(key, (_BATCH,), 0, len(arrays[0]))
    Y, X, known = jax.tree.map(lambda array: array[rows], arrays)
    own, Y = known_part(first_of(D), Y, known)
    return Y, X, with_first(D, own)


def check_width(Y: Array | np.ndarray, D: Dictionaries | None, where: str) -> None:
    """Raise ValueError unless signals and atoms of the first dictionary have the same length."""
    if D is None:
        return
    m, g = first_of(D).shape[0], block_of(first_of(D))
    if Y.shape[1] != m:
        hint = "; the signals seem to be in columns, try Y.T" if len(Y) == m else ""
        if g > 1 and g * Y.shape[1] == m:
            hint = f"; signals of a {type(first_of(D)).__name__} have {g} numbers in each entry"
        raise ValueError(f"{where}: Y has shape {Y.shape}; expected (signals, {m}){hint}")


_VALIDATION_BATCHES = 8  # number of batches to draw if no validation batch is given
_NO_STEP = np.uint32(2**32 - 1)  # gives the key of validation batches; no run reaches this step


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
            signal. A validation batch is then (Y, X, mask).
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
    check_optimizer(optimizer, "fit")
    how = Run.of("fit", run)
    check_loss(loss, "fit")
    others = learn_dictionary, trainable is not None, how.accumulate > 1, mask is not None
    any_model = params is None and D is None and not isinstance(model, Layer | Network)
    if any_model and is_nnx(model):
        outputs, data = _of_outputs(model, loss, sample, key, validation, others)
        return run_stages(outputs, data, optimizer, how, steps)
    key, D, drawn, validation = check_data(params, D, sample, key, validation, "fit", mask)
    check_model(model, "fit")
    lam, of_last = lam_of(loss, model), getattr(loss, "of_last", False)
    loss = checks.without_codes(loss, "fit") if validation[1] is None else loss
    model.check(params, D)  # type: ignore[arg-type]  # tuples for a network
    if learn_dictionary and len(validation) == 3:
        raise ValueError(
            "fit: there is no dictionary to learn if every signal has its own; try (Y, X)"
        )
    parts = split(params, D, learn_dictionary=learn_dictionary, trainable=trainable, where="fit")
    if not model.depth:
        raise ValueError(f"fit: {model} has depth 0; expected at least one step")
    whole = Trained(params, merge(*parts).D if learn_dictionary else D)
    data = Data(key, drawn, validation, whole, *parts)
    objective = Objective("fit", model, loss, lam, of_last)
    if isinstance(model, fista) and model.guard is None and objective.of_lasso:
        checks.warn(
            "fit: fista has no guard: trained steps can be too long for some signal, whose code "
            "then explodes although the mean loss of the other signals is small; try "
            f"fista({model.depth}, guard=lam)"
        )
    return run_stages(objective, data, optimizer, how, steps)


def _of_outputs(
    model: Any, loss: Loss, sample: Any, key: Any, validation: tuple | None, others: tuple
) -> tuple[Outputs, Data]:
    """The objective and the data of a flax.nnx model; the options `others` are refused."""
    if any(others):
        raise ValueError(
            "fit: learn_dictionary, trainable, accumulate and mask are for layers and networks; of "
            "an nnx model the nnx.Params are trained, one batch a step"
        )
    trained, fixed = Outputs("fit", model, loss).start()
    key, _, drawn, validation = check_data(trained, None, sample, key, validation, "fit")
    loss = checks.without_codes(loss, "fit") if validation[1] is None else loss
    return Outputs("fit", model, loss), Data(key, drawn, validation, trained, trained, fixed)


def check_optimizer(optimizer: Any, where: str) -> None:
    """Raise TypeError unless `optimizer` is an optax optimiser."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"{where}: optimizer must be an optax GradientTransformation, "
            f"got {type(optimizer).__name__}"
        )


def check_loss(loss: Any, where: str) -> None:
    """Raise TypeError unless `loss` is a function."""
    if not callable(loss):
        raise TypeError(
            f"{where}: loss must be a function of (codes, X, D, Y), got {type(loss).__name__}; try "
            "training.supervised, or training.lasso_loss(lam) without codes"
        )


def check_data(
    params: Any,
    D: Dictionaries | None,
    sample: Any,
    key: Key,
    validation: tuple | None,
    where: str,
    mask: Any = None,
) -> tuple[Array, Any, Sample, tuple]:
    """The key, the dictionary, the sampler and the validation batch; None draws the batch.

    If D is None, the arrays of a batch may have any shapes.
    """
    key = checks.as_key(key, where)
    D = None if D is None else as_dictionaries(D, where)
    judged = where if validation is None else f"{where}, validation"
    if validation is not None:
        validation = jax.tree.map(checks.as_array, flat_batch(D, validation))
    if mask is not None and not is_own(sample):
        raise ValueError(f"{where}: a mask is for arrays; a sampler returns (Y, X, Ds)")
    if is_own(sample):
        sample = flat_batch(D, sample)
        sample, validation = from_arrays(sample, validation, params, D, where, mask)
    check_sample(sample, where)
    if validation is None:
        validation = _validation(sample, key)
        check_draws(sample, validation)
    else:  # no other check sees the batches of training
        _check_batch(jax.eval_shape(sample, key), D, where)
    _check_batch(validation, D, judged)
    checks.finite(validation, "the batch", judged)
    return key, D, sample, validation


def check_sample(sample: Sample, where: str) -> None:
    """Raise TypeError unless `sample` is callable."""
    if callable(sample):
        return
    shape = f" of shape {sample.shape}" if hasattr(sample, "shape") else ""
    raise TypeError(
        f"{where}: sample must be a function of a key that returns a batch (Y, X), or arrays, "
        f"got {type(sample).__name__}{shape}; try an array Y for signals alone, (Y, X) with their "
        "codes, or problems.sampler for planted ones"
    )


def _validation(sample: Sample, key: Array) -> tuple:
    """Batches from keys that no training step uses."""
    keys = jax.random.split(jax.random.fold_in(key, _NO_STEP), _VALIDATION_BATCHES)
    batches = [*map(drawing(sample), keys)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)


def _check_batch(batch, D: Dictionaries | None, where: str) -> None:
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise TypeError(
            f"{where}: a batch must be (Y, X), signals and codes, or (Y, X, Ds) with a "
            f"dictionary each, got {type(batch).__name__}"
        )
    Y, X, *own = batch
    if D is None:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        if own or len({shape[:1] for shape in shapes} | {()}) != 2:
            raise ValueError(
                f"{where}: the arrays of a batch have shapes {shapes}; expected (Y, X) with as "
                "many rows each"
            )
        return
    Ds = D if isinstance(D, tuple) else (D,)
    if jnp.issubdtype(getattr(Y, "dtype", float), jnp.complexfloating):
        raise TypeError(
            f"{where}: the signals of a sampler are complex; expected pairs of real numbers, try "
            "dictionaries.to_pairs, and dictionaries.Complex for D"
        )
    m = Ds[0].shape[0]
    if np.ndim(Y) != 2 or Y.shape[1] != m or not len(Y):
        raise ValueError(
            f"{where}: signals have shape {np.shape(Y)}; "
            f"expected (batch, {m}) with batch at least 1"
            f"{checks.flattened('Y', np.shape(Y))}"
        )
    targets = X if isinstance(X, tuple) else (X,)
    if len(targets) > len(Ds):
        raise ValueError(
            f"{where}: there are codes of {len(targets)} blocks; expected at most {len(Ds)}"
        )
    for Dj, target in zip(Ds[-len(targets) :], targets):
        if target is not None and np.shape(target) != (len(Y), Dj.shape[1]):
            raise ValueError(
                f"{where}: codes have shape {np.shape(target)}; expected {(len(Y), Dj.shape[1])}"
            )
    if own:
        _check_own(own[0], D, len(Y), where)


def _check_own(own: Any, D: Dictionaries, n: int, where: str) -> None:
    """Raise ValueError unless `own` holds one dictionary like D for each of n signals."""
    axis: tuple[int, ...] = (n,)
    first = first_of(own)
    if shared_part(first) is not first and first.mask.shape == (n, first_of(D).shape[0]):
        axis, own = (), with_first(own, first.base)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(own)]
    expected = [(*axis, *np.shape(leaf)) for leaf in jax.tree.leaves(D)]
    if shapes == expected:  # static fields, such as the boundary of a `Conv`, change (m, d)
        nodes = [tree if isinstance(tree, tuple) else (tree,) for tree in (own, D)]
        shapes, expected = ([Dj.shape[-2:] for Dj in Ds] for Ds in nodes)
    if shapes != expected:
        raise ValueError(
            f"{where}: the dictionaries of the batch have shapes {shapes}; expected {expected}"
        )
