"""The compiled steps of a run: an update, an evaluation, and the state between two steps.

All random draws depend only on the key of the run and on the number of the step or epoch. The state
therefore needs no key, and a run continues from a saved state as if the run had not stopped. If
several devices share a run, each batch of images is split among the devices, and all devices hold
the state.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unrolled import metrics, training
from unrolled._base.checks import Array
from unrolled._base.programs import DATA, data_mesh
from unrolled.vision import models
from unrolled.vision.datasets import crop_and_flip
from unrolled.vision.experiments._recipe import EXACT, Recipe


class Devices(NamedTuple):
    """The devices that hold the arrays of a run: a mesh, or JAX's default device."""

    mesh: Mesh | None = None

    def everywhere(self, tree: Any) -> Any:
        """Copy a tree of arrays to each device."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, P()))

    def constrained(self, tree: Any, *axes: str) -> Any:
        """Inside a program, place a tree on all devices, or split a batch along the mesh `axes`."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, P(*axes)))

    @property
    def environment(self) -> dict[str, str]:
        """The description of the devices in a row."""
        return {} if self.mesh is None else {"devices": str(self.mesh.devices.size)}


_DROP_FACTOR = 0.2
_ORDER, _CROPS = 1, 2  # streams of the key of a run; stream 0 draws the initial weights


class Sums(NamedTuple):
    """Sums over the steps of an epoch, which give the epoch's entry in the curve."""

    loss: Array  # without the penalty
    penalty: Array
    l1: Array  # (layers,), sums of mean |x|
    zeros: Array  # (layers,), sums of the share of exact zeros


class State(NamedTuple):
    """The state between two steps."""

    step: Array
    params: Any
    others: Any  # variables that are not trained, such as batch statistics
    optimizer: Any
    sums: Sums


class Scores(NamedTuple):
    """The loss and the prediction for each image, as arrays on the device or on the host."""

    loss: Any  # (n,)
    predicted: Any  # (n,) classes, or (n, H, W) masks


class Features(NamedTuple):
    """The measures of the features of each layer for each image, (layers, n)."""

    l1: Any  # mean |x|
    zeros: Any  # share of exact zeros
    below: Any  # share of entries below 1/100 of the largest entry of the image
    hoyer: Any


@dataclass(frozen=True, eq=False)
class Program:
    """The compiled functions that all runs share if they differ only in seed and gamma."""

    graph: nnx.GraphDef  # graph of the model in training
    eval_graph: nnx.GraphDef
    taps: tuple[str, ...]
    layers: list[str]  # names of the penalised layers; a layer that is called k times has k names
    recipe: Recipe
    steps_per_epoch: int
    mean: np.ndarray
    deviation: np.ndarray
    devices: Devices

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser of the recipe."""
        return make_optimizer(self.recipe, self.steps_per_epoch)

    @cached_property
    def advance(self) -> Callable[..., State]:
        """A function that takes one step per call.

        The compiled program has no loop over steps because XLA computes gradients of convolutions
        on a CPU several times more slowly inside a loop than outside.
        """
        return jax.jit(self._advance, donate_argnums=0)

    @cached_property
    def evaluate(self) -> Callable[..., Scores]:
        """The scores of n images from `first` on."""
        return jax.jit(self._evaluate, static_argnames="n")

    @cached_property
    def measure(self) -> Callable[..., Features]:
        """The features of n images from `first` on."""
        return jax.jit(self._measure, static_argnames="n")

    def inputs(self, X):
        return (X.astype(jnp.float32) / np.float32(255) - self.mean) / self.deviation

    def objective(self, params, others, x, y, gamma):
        """The loss with the penalty, the updated other variables, and the parts of the loss."""
        model = rebuild(self.graph, params, others)
        outputs, features = _outputs(model, self.taps, self.inputs(x))
        loss = jnp.mean(_losses(outputs, y))
        penalty = training.sparse_feature_penalty(features) if features else jnp.zeros_like(loss)
        total = loss if gamma is None else loss + gamma * penalty
        others = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
        return total, (others, Sums(loss, penalty, *_l1_and_zeros(features)))

    def _advance(self, state, key, chosen, gamma, X, Y):
        """The state after one more step, on the images with the chosen indices."""
        x, y = (jnp.take(part, chosen, axis=0, mode="clip") for part in (X, Y))
        key = jax.random.fold_in(jax.random.fold_in(key, _CROPS), state.step)
        x, y = self.devices.constrained(_augmented(self.recipe.augmentation, key, x, y), DATA)
        differentiate = jax.grad(self.objective, has_aux=True)
        gradient, (others, sums) = differentiate(state.params, state.others, x, y, gamma)
        with jax.numpy_dtype_promotion("standard"):
            changes, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, changes)
        sums = jax.tree.map(jnp.add, state.sums, sums)
        return self.devices.constrained(State(state.step + 1, params, others, optimizer, sums))

    def _evaluate(self, params, others, X, Y, first, n):
        y = lax.dynamic_slice_in_dim(Y, first, n)
        x = self.inputs(lax.dynamic_slice_in_dim(X, first, n))
        outputs = rebuild(self.eval_graph, params, others)(x)
        predicted = jnp.argmax(outputs, -1) if y.ndim == 1 else outputs > 0
        return Scores(_losses(outputs, y), predicted)

    def _measure(self, params, others, X, first, n):
        x = self.inputs(lax.dynamic_slice_in_dim(X, first, n))
        model = rebuild(self.eval_graph, params, others)
        _, features = _outputs(model, self.taps, x)
        return Features(*map(jnp.stack, zip(*map(_measures, features.values()))))


def key_of(recipe: Recipe) -> Array:
    """The key of a run."""
    return jax.random.key(recipe.seed)


@partial(jax.jit, static_argnames="n")
def order(key: Array, epoch: Array, n: int) -> Array:
    """The permutation of n images in an epoch."""
    key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    return jax.random.permutation(key, n)


def start(program: Program, model: nnx.Module) -> State:
    """The state before the first step of a model."""
    params, others = map(nnx.to_pure_dict, nnx.state(model, nnx.Param, nnx.Not(nnx.Param)))
    with jax.numpy_dtype_promotion("standard"):
        optimizer = program.optimizer.init(params)
    step = jnp.zeros((), jnp.int32)
    return State(step, params, others, optimizer, no_sums(len(program.layers)))


def no_sums(layers: int) -> Sums:
    """The sums before the first step of an epoch."""
    shapes = ((), (), (layers,), (layers,))
    # Each sum has its own array because the state is donated and no buffer can be donated twice.
    return Sums(*(jnp.zeros(shape, jnp.float32) for shape in shapes))


def rebuild(graph: nnx.GraphDef, params: Any, others: Any) -> nnx.Module:
    """Rebuild the model from its graph and variables."""
    return nnx.merge(graph, nnx.State(params), nnx.State(others))


def make_optimizer(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimiser of a recipe, with the schedule of the learning rate."""
    steps = recipe.epochs * steps_per_epoch
    if recipe.schedule == "cosine":
        rate = optax.cosine_decay_schedule(recipe.rate, steps)
    else:
        every = max(1, round(recipe.drop * recipe.epochs)) * steps_per_epoch
        rate = optax.exponential_decay(recipe.rate, every, _DROP_FACTOR, staircase=True)
    if recipe.optimizer == "adam":
        return optax.adamw(rate, b1=recipe.momentum, weight_decay=recipe.decay)
    # As in torch.optim.SGD, the decay is part of the gradient that momentum accumulates.
    return optax.chain(
        optax.add_decayed_weights(recipe.decay), optax.sgd(rate, recipe.momentum or None)
    )


def make_program(
    model: nnx.Module,
    taps: tuple[str, ...],
    recipe: Recipe,
    shape: tuple[int, ...],
    steps_per_epoch: int,
    moments: tuple[np.ndarray, np.ndarray],
    devices: Devices,
) -> Program:
    """The compiled functions for a model.

    Args:
        model: a model with the layers of the models to train; the program does not use its weights.
        taps: the tap names of the penalised layers.
        recipe: the recipe; the program does not use its seed and its gamma.
        shape: (H, W, C) of an image.
        steps_per_epoch: number of whole batches in an epoch.
        moments: mean and standard deviation of each channel, for values in [0, 1].
        devices: devices that share each batch.
    """
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    mean, deviation = (np.asarray(m, np.float32).reshape(1, 1, 1, -1) for m in moments)
    graphs = nnx.graphdef(model), eval_graph
    program = Program(*graphs, taps, [], recipe, steps_per_epoch, mean, deviation, devices)
    x = jax.ShapeDtypeStruct((recipe.batch, *shape), jnp.uint8)

    def run(x: Array) -> None:  # a trace sorts dicts, so a list keeps the order of the layers
        program.layers.extend(_outputs(nnx.clone(model), taps, program.inputs(x))[1])

    jax.eval_shape(run, x)
    return program


def _outputs(model: nnx.Module, taps: tuple[str, ...], x: Array) -> tuple[Array, dict]:
    """The outputs of a model, and the features of the layers with the tap names."""
    return models.tap(model, *taps)(x) if taps else (model(x), {})


def _losses(outputs: Array, y: Array) -> Array:
    """The cross entropy of each image; for masks, the mean over the pixels of the image."""
    if y.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    pixels = optax.sigmoid_binary_cross_entropy(outputs, y.astype(outputs.dtype))
    return jnp.mean(pixels, axis=(1, 2))


def _augmented(kind: str, key: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Crops of images, and the same crops of their masks."""
    if kind == "none":
        return x, y
    flip = kind == "crop and flip"
    cropped = crop_and_flip(key, x, flip=flip)
    return cropped, y if y.ndim == 1 else crop_and_flip(key, y[..., None], flip=flip)[..., 0]


def _l1_and_zeros(features: dict[str, Array]) -> tuple[Array, Array]:
    """The mean of |x| and the share of exact zeros for each layer."""
    values = [lax.stop_gradient(x) for x in features.values()]
    if not values:
        return jnp.zeros(0, jnp.float32), jnp.zeros(0, jnp.float32)

    def mean(x: Array) -> Array:
        # The penalty, too, sums image by image, so XLA computes the sum only once.
        return jnp.mean(jnp.mean(x, range(1, x.ndim)))

    l1, zeros = zip(*((mean(jnp.abs(x)), mean((x == 0).astype(x.dtype))) for x in values))
    return jnp.stack(l1), jnp.stack(zeros)


def _measures(x: Array) -> tuple[Array, Array, Array, Array]:
    """The mean of |x| and the measures of `metrics.sparsity` for each image, four arrays (n,)."""
    l1 = jnp.mean(jnp.abs(x).reshape(len(x), -1), 1)
    of = jax.vmap(lambda sample: metrics.sparsity(sample[None]))(x)
    return l1, of.zeros, of.below, of.hoyer


def devices_of(mesh: Any, batch: int) -> Devices:
    """The devices of a mesh, with axes that the compiler partitions.

    Raises:
        TypeError: the argument is not a mesh.
        ValueError: the mesh has no axis "data", or its devices cannot share a batch equally.
    """
    if mesh is None:
        return Devices()
    mesh = data_mesh(mesh, "experiment")
    if batch % mesh.shape[DATA]:
        raise ValueError(
            f"experiment: {mesh.shape[DATA]} devices cannot share a batch of {batch} images "
            "equally; expected a multiple of their number"
        )
    return Devices(mesh)


_MASK_SCORES: dict[str, Callable[..., Array]] = {
    "pixel_accuracy": metrics.pixel_accuracy,
    "mean_class_precision": metrics.mean_class_precision,
    "mean_class_accuracy": metrics.mean_class_accuracy,
    "mean_iou": metrics.mean_iou,
}


# The scores that tables show. The main score of a row is the first of these scores in the row.
SCORES = ("accuracy", "mean_iou", "pixel_accuracy", "mean_class_precision", "mean_class_accuracy")


def evaluate(program: Program, state: State, X: Array, Y: Array) -> dict[str, Any]:
    """Loss and scores over test images."""
    scores = _scores(program, state, X, Y)
    judged = (_classified if Y.ndim == 1 else _segmented)(scores.predicted, np.asarray(Y))
    return {"loss": float(np.mean(scores.loss, dtype=np.float64)), **judged}


def predict(program: Program, state: State, X: Array, Y: Array) -> np.ndarray:
    """The predicted classes or masks of test images."""
    return np.asarray(_scores(program, state, X, Y).predicted)


def _scores(program: Program, state: State, X: Array, Y: Array) -> Scores:
    return Scores(*_in_batches(program, partial(program.evaluate, *state[1:3], X, Y), len(X)))


def measure(program: Program, state: State, X: Array) -> dict[str, Any]:
    """The mean measures of the features over test images, one number per penalised layer."""
    if not program.layers:
        return {}
    features = Features(*_in_batches(program, partial(program.measure, *state[1:3], X), len(X), 1))
    means = {n: np.mean(part, 1, np.float64).tolist() for n, part in features._asdict().items()}
    return {"layers": list(program.layers), **means}


def _in_batches(
    program: Program, call: Callable[..., Any], images: int, axis: int = 0
) -> Iterator[np.ndarray]:
    """The arrays that `call(first, n)` returns for n images, concatenated for all images.

    The last batch overlaps the previous batch so that one compiled program serves all batches.
    """
    n, batches = min(program.recipe.batch, images), []
    for first in range(0, images, n):
        begin = min(first, images - n)
        parts = call(np.int32(begin), n)
        batches.append([np.split(np.asarray(part), [first - begin], axis)[1] for part in parts])
    return (np.concatenate(part, axis) for part in zip(*batches))


def _classified(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The accuracy on all images and on the first 1000, the test set "exact" of CIFAR-10."""
    right = predicted == labels
    scores = {"accuracy": float(np.mean(right))}
    if len(right) > EXACT:
        scores["accuracy_first_1000"] = float(np.mean(right[:EXACT]))
    return scores


def _segmented(predicted: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """The mean and standard deviation of each score over images, and each score over all pixels.

    The mean of a score omits images with the score 0/0. The result contains the number of omitted
    images.
    """
    scores: dict[str, float] = {}
    for name, score in _MASK_SCORES.items():
        each = np.asarray(score(predicted, masks), np.float64)
        defined = each[~np.isnan(each)]
        scores[name] = float(defined.mean()) if defined.size else math.nan
        scores[f"{name}_std"] = float(defined.std()) if defined.size else math.nan
        scores[f"{name}_undefined"] = len(each) - len(defined)
        scores[f"{name}_pooled"] = float(score(predicted, masks, pooled=True))
    return scores
