"""What the features of a network are: the codes of a dictionary, and how good ones."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import optimize, stats

from unrolled import _checks, metrics, plots, pursuit, theory
from unrolled._checks import Array
from unrolled._json import to_json
from unrolled._text import markdown
from unrolled.dictionaries import Conv, dense
from unrolled.experiments._layer_dictionary import LayerDictionary, as_dictionary, block_of
from unrolled.models import tap

# A mu in float32 may be too low by its rounding.
_ROUNDING = 1e-6
# Least penalty of the equivalent problem, in units of the largest threshold: the certificate of the
# pursuit divides by the penalties.
_LEAST_PENALTY = 0.1
_COHERENCE_TOL = 1e-3  # relative gap of the linear programs
_INFEASIBLE = 1e-9  # norm of the residual, at most 1, below which no shift is feasible


class Admitted(NamedTuple):
    """How many nonzeros theory admits: with fewer than (1 + 1/mu) / 2 a code is unique."""

    coherence: float  # mu of the filters under all shifts
    weights_coherence: float  # mu_W of the closed-form weights, at least mu~
    generalized: tuple[float, float] | None  # bounds of mu~; None: not computed, too many atoms
    stripe: int  # nonzeros in a stripe, by the smaller of mu and mu_W
    signal: int  # nonzeros of a code, by the smallest of all


class Codes(NamedTuple):
    """How sparse the codes of a layer are."""

    zeros: float  # share of exact zeros
    below: float  # share of entries that are small beside the largest of their image
    hoyer: float
    nonzeros: np.ndarray  # (images,)
    stripe: np.ndarray  # (images,) nonzeros of the fullest stripe


class Pursued(NamedTuple):
    """Forward codes x beside the codes x* of a pursuit; arrays are (images,).

    x* minimises J(x) = 1/2 norm(y - D x)^2 + sum_i theta_i x_i over x >= 0. The forward code is one
    step of ISTA from zero with step size 1. The next layer makes up for any scale, so the code is
    also judged at its best multiple.
    """

    bounded: bool  # whether J is, so that x* exists; else all arrays are nan
    negative: float  # share of the filters whose threshold is negative, a reward
    step: float  # 1 / norm(D)^2, the step size that is sure to lower J
    scale: np.ndarray  # c that minimises J(c x); 0 where x = 0
    gap: np.ndarray  # (J(c x) - J(x*)) / (J(0) - J(x*)): 0 for the code of the pursuit, 1 for none
    change: np.ndarray  # norm(x* - x) / norm(x*)
    scaled_change: np.ndarray  # least norm(x* - c x) / norm(x*) over c
    overlap: np.ndarray  # nonzeros in both supports over those in either
    nonzeros: np.ndarray  # of x*
    explained: np.ndarray  # 1 - norm(y - D x*)^2 / norm(y)^2
    certificate: np.ndarray  # how much J(x*) may exceed the minimum, in the units of `gap`


class LayerFeatures(NamedTuple):
    """What the features of one layer are."""

    dictionary: LayerDictionary
    admitted: Admitted
    codes: Codes
    pursued: Pursued


class Features(NamedTuple):
    """The result of `features`: by the name of the layer."""

    layers: dict[str, LayerFeatures]

    def table(self) -> str:
        """A Markdown table with a row per layer, of means over the images."""
        return features_table({"network": self})

    def to_json(self) -> str:
        """All numbers but the dictionaries, as JSON; those that are not finite become null."""
        return to_json(
            {
                name: {"shape": layer.dictionary.D.shape, **layer._replace(dictionary=None)._asdict()}
                for name, layer in self.layers.items()
            }
        )

    def plot(self) -> Any:
        """A figure of the codes of every layer, as the network has them and after a pursuit."""
        return plots.features({"network": self})


def features(
    model: nnx.Module,
    images: Array,
    layers: Sequence[str] | None = None,
    *,
    norms: Mapping[str, str] | None = None,
    activation: Any = None,
    fraction: float = 0.01,
    tol: float = 1e-3,
    max_steps: int = 4000,
    atoms: int = 600,
) -> Features:
    r"""The dictionaries, codes and pursuits of the convolutional layers of a network.

    A layer with ReLU computes x = relu(D'y - theta), see `LayerDictionary`. This is one step of
    nonnegative ISTA from zero, with step size 1, on

    .. math:: J(x) = \tfrac12 \|y - D x\|^2 + \sum_i theta_i x_i, \quad x \ge 0,

    where y is the input of the layer. A pursuit with the same D and theta starts at the best
    multiple of x and goes on to the minimiser x*. How far x* is from x tells how good a sparse
    coder the layer is, apart from its scale: see `Pursued`. Of other activations x is the positive
    part of the features.

    Some theta are negative, where a bias is positive. If shifts e of the signal, constant in each
    channel, give theta + D'e > 0, the pursuit is the LASSO of y + e with these penalties: the
    objectives differ by a constant. If there are none, J may have no minimum, and `bounded` is
    False.

    Args:
        model: any nnx.Module; it is evaluated as in `model.eval()` and not changed.
        images: (N, H, W, C), as the model takes them. 64 are enough for means.
        layers: paths of layers, as `as_dictionary` takes them; None takes `model.early`.
        norms: path of the batch norm of a layer, for layers that do not contain their own.
        activation: as in `as_dictionary`.
        fraction: of the largest entry of an image, for `Codes.below`.
        tol: how far J(x*) may be from the minimum, relative to J(0) - J(x*).
        max_steps: the most steps of FISTA.
        atoms: the most atoms for which the linear programs of mu~ are solved.

    Returns:
        Features, with means and numbers for every image.

    Raises:
        TypeError, ValueError: as in `as_dictionary`; images that are not (N, H, W, C), a layer that
            the model does not call, or calls more than once.

    Not claimed: that x* is unique, or was meant. Where D has more atoms than y has entries, J
    may have several minimisers; the pursuit ends in one near x.

    Reference: Papyan, Romano, Elad (2017) for layers as pursuits and for stripes; Li, Feng, Zhou
    (2024), Theorem 1.

    Example:
        >>> from flax import nnx
        >>> from unrolled.experiments import features
        >>> net = ur.models.LeNet5(channels=1, side=16, rngs=nnx.Rngs(0))
        >>> images = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
        >>> found = features(net, images, ["conv1"], tol=0.1)
        >>> found.layers["conv1"].pursued.gap.shape
        (2,)
    """
    where = "features"
    names = tuple(getattr(model, "early", ()) if layers is None else layers)
    if not names:
        raise ValueError(f"{where}: {type(model).__name__} has no `early`; pass layers")
    images = _checks.as_float(images, "images", where)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{where}: images have shape {images.shape}; expected (N, H, W, C)")
    model = nnx.clone(model)
    model.eval()
    inputs = _inputs(model, images, [block_of(model, name)[0] for name in names])
    found = {}
    for name, x in zip(names, inputs):
        norm = (norms or {}).get(name)
        layer = as_dictionary(model, name, x.shape[1:3], norm=norm, activation=activation)
        Y = layer.signals(x)
        found[name] = LayerFeatures(
            layer,
            _admitted(layer.D, atoms),
            _codes(layer, Y, fraction),
            _pursued(layer, Y, tol, max_steps),
        )
    return Features(found)


def features_table(found: Mapping[str, Features | Sequence[Features]]) -> str:
    """A Markdown table of results of `features`, a row per model and layer, of means over images.

    Of several results of one name, such as those of several seeds, it has the mean and the half
    width of the 95 % interval of Student's t.

    Args:
        found: by the name of the model.

    Example:
        >>> from unrolled.experiments import features_table
        >>> features_table({}).splitlines()[0][:26]
        '| model | layer | mu | adm'
    """
    rows = []
    for model, results in found.items():
        results = [results] if isinstance(results, Features) else list(results)
        for name in results[0].layers:
            every = [_numbers(result.layers[name]) for result in results]
            cells = [
                interval([numbers[column] for numbers in every], form)
                for column, form in _COLUMNS.items()
            ]
            rows.append([model, name, *cells])
    return markdown(["model", "layer", *_COLUMNS], rows)


_COLUMNS = {
    "mu": ".3f",
    "admitted": ".0f",
    "fullest stripe": ".0f",
    "zeros": ".1%",
    "Hoyer": ".3f",
    "theta < 0": ".0%",
    "gap": ".3f",
    "scaled change": ".3f",
    "change": ".2f",
    "overlap": ".3f",
    "zeros of x*": ".1%",
    "explained": ".1%",
}


def _numbers(layer: LayerFeatures) -> dict[str, float]:
    """The numbers of a row of the table."""
    dictionary, admitted, codes, pursued = layer
    means = {
        name: float(np.mean(getattr(pursued, name)))
        for name in ("gap", "scaled_change", "change", "overlap", "nonzeros", "explained")
    }
    return dict(
        zip(
            _COLUMNS,
            (
                admitted.coherence,
                admitted.stripe,
                float(codes.stripe.mean()),
                codes.zeros,
                codes.hoyer,
                pursued.negative,
                means["gap"],
                means["scaled_change"],
                means["change"],
                means["overlap"],
                1 - means["nonzeros"] / dictionary.D.shape[1],
                means["explained"],
            ),
            strict=True,
        )
    )


def interval(values: Sequence[float], form: str) -> str:
    """The mean as text and, of several values, the half width of its 95 % interval.

    Values that are nan are left out, which the text says.
    """
    known = [value for value in values if not math.isnan(value)]
    n, of_all = len(known), "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    if n == 0:
        return "none"
    if n == 1:
        return f"{known[0]:{form}}{of_all}"
    half = stats.t.ppf(0.975, n - 1) * np.std(known, ddof=1) / math.sqrt(n)
    return f"{np.mean(known):{form}} ± {half:{form}}{of_all}"


def _inputs(model: nnx.Module, images: Array, paths: Sequence[str]) -> list[Array]:
    """What the modules of these paths take; the model itself takes the images."""
    inner = tuple(dict.fromkeys(path for path in paths if path))
    taken: dict[str, Array] = {"": images}
    if inner:
        taken |= tap(model, *inner, inputs=True)(images)[1]
    for path in paths:
        if path not in taken:
            raise ValueError(f"features: the model calls {path!r} more than once; name another")
    return [taken[path] for path in paths]


def _admitted(D: Conv, atoms: int) -> Admitted:
    with jax.enable_x64(True):
        D, d, generalized = _checks.cast(D, np.float64), D.shape[1], None
        mu = float(theory.mutual_coherence(D))
        unit, _ = D.normalized()
        mu_W = float(theory.coherence(theory.frobenius_weights(unit), unit).mu_W)
        if d <= atoms:
            found = theory.generalized_coherence(dense(unit), _COHERENCE_TOL, only_maximum=True)
            generalized = float(found.lower), float(found.upper)
    local = min(mu, mu_W)
    least = local if generalized is None else min(local, generalized[1])
    stripe, signal = (theory.max_sparsity(value * (1 + _ROUNDING), d) for value in (local, least))
    return Admitted(mu, mu_W, generalized, stripe, signal)


def _codes(layer: LayerDictionary, Y: Array, fraction: float) -> Codes:
    X, D = layer.codes(Y), layer.D
    maps = D.unflatten_code(X)
    stripes = jax.vmap(partial(theory.stripe_norm, kernel=D.kernel, stride=D.stride))(maps)
    counts = np.asarray(jnp.sum(X != 0, 1)), np.asarray(stripes)
    return Codes(*map(float, metrics.sparsity(X, fraction)), *counts)


def _pursued(layer: LayerDictionary, Y: Array, tol: float, max_steps: int) -> Pursued:
    D, theta = layer.D, np.asarray(layer.theta, np.float64)
    told = float(np.mean(theta < 0)), 1 / float(D.spectral_norm()) ** 2
    x = jax.nn.relu(layer.codes(Y))
    scale, decrease = _best_multiple(layer, Y, x)
    sums = np.asarray(D.filters, np.float64).sum(axis=(2, 3))  # D'e for an e of one per channel
    shift = _shift(sums, theta)
    if shift is None:
        return Pursued(False, *told, np.asarray(scale), *[np.full(len(Y), np.nan)] * 7)
    e = jnp.asarray(np.repeat(shift, Y.shape[1] // len(shift)), Y.dtype)
    lam = jnp.asarray(theta + sums @ shift, Y.dtype)
    half = jnp.sum((Y + e) ** 2, 1) / 2
    shares = np.asarray(decrease / half)
    smallest = float(shares[shares > 0].min(initial=1.0))
    least = max(tol * smallest, 10 * float(jnp.finfo(Y.dtype).eps))
    least = 10.0 ** math.floor(math.log10(least))  # static: another value compiles again
    found = jax.vmap(partial(_pursue, D, lam, least, max_steps))(Y + e, scale[:, None] * x)
    return Pursued(
        True, *told, np.asarray(scale), *_compared(layer, Y, x, decrease, found.x, found.gap * half)
    )


def _pursue(
    D: Conv, lam: Array, tol: float, max_steps: int, y: Array, start: Array
) -> pursuit.Pursuit:
    options: dict[str, Any] = dict(nonnegative=True, tol=tol, max_steps=max_steps)
    return pursuit.lasso(D, y, lam, start=start, **options)


def _decrease(layer: LayerDictionary, Y: Array, X: Array) -> tuple[Array, Array, Array]:
    """a, b and D x with J(0) - J(c x) = c a - c^2 b / 2, (N,) and (N, m)."""
    D, theta = layer.D, layer.D.spread(layer.theta)
    with jax.default_matmul_precision("highest"):
        fitted = jax.vmap(lambda x: D @ x)(X)
        slope = jax.vmap(lambda y: y @ D)(Y) - theta
    return jnp.sum(X * slope, 1), jnp.sum(fitted**2, 1), fitted


def _best_multiple(layer: LayerDictionary, Y: Array, X: Array) -> tuple[Array, Array]:
    """The c that minimises J(c x), and J(0) - J(c x); (N,) each."""
    a, b, _ = _decrease(layer, Y, X)
    c = _ratio(jax.nn.relu(a), b)
    return c, c * a / 2


def _compared(
    layer: LayerDictionary, Y: Array, x: Array, decrease: Array, best: Array, excess: Array
) -> list[np.ndarray]:
    """The arrays of `Pursued` from `gap` on."""
    a, b, fitted = _decrease(layer, Y, best)
    most = a - b / 2  # J(0) - J(x*)
    length = jnp.sqrt(jnp.sum(best**2, 1))

    def change(c):
        return _ratio(jnp.sqrt(jnp.sum((best - c * x) ** 2, 1)), length)

    closest = _ratio(jnp.sum(x * best, 1), jnp.sum(x**2, 1))
    both, either = (jnp.sum(join(x > 0, best > 0), 1) for join in (jnp.logical_and, jnp.logical_or))
    explained = 1 - jnp.sum((Y - fitted) ** 2, 1) / jnp.sum(Y**2, 1)
    arrays = (
        _ratio(most - decrease, most),
        change(1),
        change(closest[:, None]),
        jnp.where(either > 0, both / jnp.maximum(either, 1), 1),
        jnp.sum(best > 0, 1),
        explained,
        _ratio(excess, most),
    )
    return [np.asarray(array) for array in arrays]


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _shift(sums: np.ndarray, theta: np.ndarray) -> np.ndarray | None:
    """The least constants of the channels that make all penalties theta + sums @ shift positive.

    min norm(c) with S c >= h is a nonnegative least squares problem; None if no c is feasible.

    Reference: Lawson, Hanson (1974), chapter 23.
    """
    wanted = _LEAST_PENALTY * np.abs(theta).max() - theta
    stacked = np.vstack([sums.T, wanted])
    target = np.eye(len(stacked))[-1]
    residual = stacked @ optimize.nnls(stacked, target)[0] - target
    if np.linalg.norm(residual) < _INFEASIBLE:
        return None
    return -residual[:-1] / residual[-1]
