"""What the features of a network are: the codes of a dictionary, and how good ones."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from scipy import optimize

from unrolled import _checks, metrics, plots, pursuit, theory
from unrolled._checks import Array
from unrolled._json import to_json
from unrolled._numbers import norm
from unrolled._text import markdown
from unrolled.dictionaries import Conv, dense
from unrolled.experiments._layer_dictionary import LayerDictionary, as_dictionary, block_of
from unrolled.experiments._table import interval
from unrolled.models import tap

# A mu in float32 may be too low by its rounding.
_ROUNDING = 1e-6
# Least penalty of the equivalent problem, in units of the largest threshold or entry of a code: the
# certificate of the pursuit divides by the penalties.
_LEAST_PENALTY = 0.01
_LEAST_GAP = 1e-12  # to ask for, relative to half the energy of the signal
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
    entries: int  # d, of a code
    nonzeros: np.ndarray  # (images,)
    stripe: np.ndarray  # (images,) nonzeros of the fullest stripe


class Pursued(NamedTuple):
    """Forward codes x beside the codes x* of a pursuit; arrays are (images,).

    x* minimises J(x) = 1/2 norm(y - D x)^2 + sum_i theta_i x_i over x >= 0. The forward code is one
    step of ISTA from zero with step size 1. The next layer makes up for any scale, so the code is
    also judged at its best multiple.
    """

    bounded: bool  # whether J is, as far as `features` can tell; else all arrays but scale are nan
    negative: float  # share of the filters whose threshold is negative, a reward
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

    dictionary: LayerDictionary | None  # None if read from a file
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
        """All but the dictionaries, as JSON; numbers that are not finite become null."""
        return to_json(
            {name: layer._replace(dictionary=None) for name, layer in self.layers.items()}
        )

    @staticmethod
    def from_json(text: str) -> "Features":
        """What `to_json` gave the text of, without the dictionaries."""
        return Features({name: _layer(held) for name, held in json.loads(text).items()})

    def plot(self) -> Any:
        """A figure of the codes of every layer, as the network has them and after a pursuit."""
        return plots.features({"network": self})


def features(
    model: nnx.Module,
    images: ArrayLike,
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

    Some theta are negative, where a bias is positive. If a shift e of the signal, the same at all
    positions, gives theta + D'e > 0, the pursuit is the LASSO of y + e with these penalties: the
    objectives differ by a constant. If there is none, J falls without end on large pictures, a
    minimum on a small one is an effect of its border, and `bounded` is False.

    Args:
        model: any nnx.Module; it is evaluated as in `model.eval()` and not changed.
        images: (N, H, W, C), as the model takes them. 64 are enough for means.
        layers: paths of layers, as `as_dictionary` takes them; None takes those that the model
            names in `convolutions`, or in `early`.
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
    early = getattr(model, "convolutions", getattr(model, "early", ()))
    names = tuple(early if layers is None else layers)
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
        options: dict[str, Any] = dict(norm=(norms or {}).get(name), activation=activation)
        layer = as_dictionary(model, name, x.shape[1:3], **options)
        Y = layer.signals(x)
        found[name] = LayerFeatures(
            layer,
            _admitted(layer.D, atoms),
            _codes(layer, Y, fraction),
            _pursued(layer, Y, tol, max_steps),
        )
    return Features(found)


# By the name of a model: one result, or several.
Results = Mapping[str, Features | Sequence[Features]]


def _layer(held: dict[str, Any]) -> LayerFeatures:
    """The numbers of a layer from JSON."""

    def arrays(part):
        lists = {name: value for name, value in part.items() if isinstance(value, list)}
        return part | {name: np.array(value, float) for name, value in lists.items()}

    admitted = dict(held["admitted"])
    if admitted["generalized"] is not None:
        admitted["generalized"] = tuple(admitted["generalized"])
    return LayerFeatures(
        None,
        Admitted(**admitted),
        Codes(**arrays(held["codes"])),
        Pursued(**arrays(held["pursued"])),
    )


def features_table(found: Results) -> str:
    """A Markdown table of results of `features`, a row per model and layer, of means over images.

    Of several results of one name, such as those of several seeds, it has the mean and the half
    width of the 95 % interval of Student's t. The certificate is the largest of all images.

    Args:
        found: by the name of the model.

    Example:
        >>> from unrolled.experiments import features_table
        >>> features_table({}).splitlines()[0][:26]
        '| model | layer | mu | adm'
    """
    return markdown(*features_rows(found))


def features_rows(found: Results) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of `features_table`.

    Example:
        >>> from unrolled.experiments import features_rows
        >>> features_rows({})[0][:3]
        ['model', 'layer', 'mu']
    """
    rows = []
    for model, results in found.items():
        several = [results] if isinstance(results, Features) else results
        for name in several[0].layers:
            every = [_numbers(result.layers[name]) for result in several]
            cells = [
                _cell([numbers[column] for numbers in every], form)
                for column, form in _COLUMNS.items()
            ]
            certificates = np.array([r.layers[name].pursued.certificate.max() for r in several])
            known = certificates[~np.isnan(certificates)]
            rows.append([model, name, *cells, f"{known.max():.0e}" if known.size else "none"])
    return ["model", "layer", *_COLUMNS, "certificate"], rows


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
    """The numbers of a row of the table, by its columns."""
    _, admitted, codes, pursued = layer
    mean = {
        name: float(np.mean(value))
        for name, value in pursued._asdict().items()
        if isinstance(value, np.ndarray)
    }
    values = (
        *(admitted.coherence, admitted.stripe, float(codes.stripe.mean())),
        *(codes.zeros, codes.hoyer, pursued.negative),
        *(mean["gap"], mean["scaled_change"], mean["change"], mean["overlap"]),
        *(1 - mean["nonzeros"] / codes.entries, mean["explained"]),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _cell(values: Sequence[float], form: str) -> str:
    """Mean and 95 % interval as text; values that are nan are left out, which the text says."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "none"
    mean, half, n = interval(known)
    told = format(mean, form) if n == 1 else f"{mean:{form}} ± {half:{form}}"
    return told if n == len(values) else f"{told} ({n} of {len(values)})"


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
    d, generalized = D.shape[1], None
    with jax.enable_x64(True):
        unit, mu, mu_W = _coherences(_checks.cast(D, np.float64))
        if d <= atoms:
            found = theory.generalized_coherence(dense(unit), _COHERENCE_TOL, only_maximum=True)
            generalized = float(found.lower), float(found.upper)
        local = min(float(mu), float(mu_W))
    least = local if generalized is None else min(local, generalized[1])
    stripe, signal = (theory.max_sparsity(value * (1 + _ROUNDING), d) for value in (local, least))
    return Admitted(float(mu), float(mu_W), generalized, stripe, signal)


@jax.jit
def _coherences(D: Conv) -> tuple[Conv, Array, Array]:
    """D with atoms of norm 1 in float64, its mu, and mu_W of the closed form."""
    unit, _ = D.normalized()
    mu_W = theory.coherence(theory.frobenius_weights(unit), unit).mu_W
    return unit, theory.mutual_coherence(unit), mu_W


def _codes(layer: LayerDictionary, Y: Array, fraction: float) -> Codes:
    X = layer.codes(Y)
    zeros, below, hoyer = map(float, metrics.sparsity(X, fraction))
    return Codes(zeros, below, hoyer, X.shape[1], *map(np.asarray, _counts(layer.D, X)))


@jax.jit
def _counts(D: Conv, X: Array) -> tuple[Array, Array]:
    """Nonzeros, and those of the fullest stripe, of codes (N, d)."""
    stripes = partial(theory.stripe_norm, kernel=D.kernel, stride=D.stride)
    return jnp.sum(X != 0, 1), jax.vmap(stripes)(D.unflatten_code(X))


def _pursued(layer: LayerDictionary, Y: Array, tol: float, max_steps: int) -> Pursued:
    """In float64: where a code explains little of a signal, the gap is a small difference."""
    wide = [np.asarray(part, np.float64) for part in (layer.theta, Y, jax.nn.relu(layer.codes(Y)))]
    with jax.enable_x64(True):
        D = _checks.cast(layer.D, np.float64)
        theta, Y, X = map(jnp.asarray, wide)
        least = _LEAST_PENALTY * max(np.abs(wide[0]).max(), wide[2].max())
        negative, shifted = float(np.mean(wide[0] < 0)), _shifted(D, wide[0], least)
        scale, decrease = _best_multiples(D, theta, Y, X)
        if shifted is None:
            return Pursued(False, negative, np.asarray(scale), *[np.full(len(Y), np.nan)] * 7)
        e, lam = shifted
        half = np.sum((wide[1] + e) ** 2, 1) / 2
        shares = np.asarray(decrease) / half
        tight = max(tol * shares[shares > 0].min(initial=1.0), _LEAST_GAP)
        tight = 10.0 ** math.floor(math.log10(tight))  # static: another value compiles again
        problem = D, jnp.asarray(lam), jnp.asarray(e)
        best, gap = _pursue(*problem, Y, scale, X, tol=tight, max_steps=max_steps)
        compared = _compare(D, theta, Y, X, decrease, best, gap * jnp.asarray(half))
        return Pursued(True, negative, *map(np.asarray, (scale, *compared)))


@partial(jax.jit, static_argnames=("tol", "max_steps"))
def _pursue(
    D: Conv, lam: Array, e: Array, Y: Array, scale: Array, X: Array, *, tol: float, max_steps: int
) -> tuple[Array, Array]:
    """Codes x*, and their gaps relative to norm(y + e)^2 / 2, from c x on."""

    def one(y, c, x):
        options: dict[str, Any] = dict(nonnegative=True, tol=tol, max_steps=max_steps)
        found = pursuit.lasso(D, y + e, lam, start=c * x, **options)
        return found.x, found.gap

    return jax.vmap(one)(Y, scale, X)


def _parts(D: Conv, theta: Array, y: Array, x: Array) -> tuple[Array, Array, Array]:
    """a, b and D x with J(0) - J(c x) = c a - c^2 b / 2."""
    with jax.default_matmul_precision("highest"):
        fitted = D @ x
        return jnp.vdot(x, y @ D - D.spread(theta)), jnp.vdot(fitted, fitted), fitted


@jax.jit
def _best_multiples(D: Conv, theta: Array, Y: Array, X: Array) -> tuple[Array, Array]:
    """The c that minimises J(c x), and J(0) - J(c x); (N,) each."""

    def one(y, x):
        a, b, _ = _parts(D, theta, y, x)
        c = _ratio(jax.nn.relu(a), b)
        return c, c * a / 2

    return jax.vmap(one)(Y, X)


@jax.jit
def _compare(
    D: Conv, theta: Array, Y: Array, X: Array, decrease: Array, best: Array, excess: Array
) -> tuple[Array, ...]:
    """The arrays of `Pursued` from `gap` on."""

    def one(y, x, forward, best, excess):
        a, b, fitted = _parts(D, theta, y, best)
        most = a - b / 2  # J(0) - J(x*)
        closest = _ratio(jnp.vdot(x, best), jnp.vdot(x, x))
        either = jnp.sum((x > 0) | (best > 0))
        both = jnp.sum((x > 0) & (best > 0))
        return (
            _ratio(most - forward, most),
            _ratio(norm(best - x), norm(best)),
            _ratio(norm(best - closest * x), norm(best)),
            jnp.where(either > 0, both / jnp.maximum(either, 1), 1),
            jnp.sum(best > 0),
            1 - _ratio(norm(y - fitted), norm(y)) ** 2,
            _ratio(excess, most),
        )

    return jax.vmap(one)(Y, X, decrease, best, excess)


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _shifted(D: Conv, theta: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray] | None:
    """A small shift e (m,) of signals with penalties theta + D'e of at least `least`, and these.

    The shift repeats itself with the stride, so D'e has one value per filter. If there is none,
    there are codes of equal maps with D x = 0, but for the border, and theta' x negative (Farkas):
    minimisers, where they exist, live on the border.
    """
    n_atoms, channels = D.code_grid[0], D.signal_grid[0]
    t, filters = D.stride, np.asarray(D.filters, np.float64)
    room = [(0, -n % t) for n, t in zip(D.kernel, D.stride)]
    whole = np.pad(filters, [(0, 0), (0, 0), *room])
    height, width = whole.shape[2:]
    phases = whole.reshape(n_atoms, channels, height // t[0], t[0], width // t[1], t[1])
    sums = phases.sum(axis=(2, 4)).reshape(n_atoms, -1)
    c = _least_norm(sums, least - theta)
    if c is None:  # without rewards J >= 0, but the certificate is loose where a threshold is 0
        return (np.zeros(D.shape[0]), theta) if (theta >= 0).all() else None
    times = [-(-N // t) for N, t in zip(D.signal_shape, t)]
    e = np.tile(c.reshape(channels, *t), (1, *times))[:, : D.signal_shape[0], : D.signal_shape[1]]
    return e.reshape(-1), theta + sums @ c


def _least_norm(S: np.ndarray, h: np.ndarray) -> np.ndarray | None:
    """The c of least norm with S c >= h, by nonnegative least squares; None if there is none.

    Reference: Lawson, Hanson (1974), chapter 23, least distance programming.
    """
    stacked = np.vstack([S.T, h])
    target = np.eye(len(stacked))[-1]
    residual = stacked @ optimize.nnls(stacked, target)[0] - target
    if np.linalg.norm(residual) < _INFEASIBLE:
        return None
    return -residual[:-1] / residual[-1]
