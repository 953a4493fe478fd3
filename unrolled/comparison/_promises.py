"""What theory and an independent sample say about the methods of a comparison: certificates, proofs
of single codes, bounds from a sample, and predictions.
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from unrolled import metrics, problems, theory
from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled.activations import relu
from unrolled.comparison._results import Guarantee, Predicted, Proved, Sampled
from unrolled.dictionaries import Dictionary, Structured, block_of, check_batch, dense
from unrolled.layers import Law, Layer, Unrolled, alista_rt, unstack
from unrolled.networks import Network, dsc
from unrolled.training import law_of

Class = tuple[Any, Any, Any]  # (sparsity, bound, noise); None: computed from the sample
ClassOf = Callable[[int, Dictionary], tuple[int, float, float]]


def guarantees(
    model: Layer | Network,
    params: tuple[Unrolled, ...],
    Ds: tuple[Dictionary, ...],
    Xs: Sequence[Array],
    class_of: ClassOf,
) -> list[Guarantee | None]:
    """The guarantee of every layer; None from the first layer without a certificate on.

    Args:
        model: a layer, or a network of J layers.
        params, Ds, Xs: params, dictionaries and codes, one per layer.
        class_of: a function; `class_of(j, D)` gives the sparsity, bound and noise of layer j with
            D.
    """
    layers = (model,) if isinstance(model, Layer) else model.layers
    certified: list[Layer] = []
    for layer, p in zip(layers, params):
        if not _has_certificate(layer, p):
            break
        certified.append(layer)
    if not certified:
        return [None] * len(params)
    J = len(certified)
    numbers = [class_of(j, D) for j, D in enumerate(Ds[:J])]
    sparsity, bound, noise = zip(*numbers)
    certificates = theory.certify(
        dsc(tuple(certified)), params[:J], Ds[:J], sparsity=sparsity, bound=bound, noise=noise
    )
    proved = [
        Guarantee(*of, certificate, _covered(_part_sizes(D, X), of[1], certificate))
        for D, X, of, certificate in zip(Ds, Xs, numbers, certificates)
    ]
    return [*proved, *[None] * (len(params) - J)]


def _covered(sizes: np.ndarray, bound: float, certificate: theory.Certificate) -> float:
    """The share of codes, by the sizes of their parts, that lie in the class of a certificate."""
    few = np.count_nonzero(sizes, axis=1) <= certificate.largest_sparsity
    return float(np.mean(few & (sizes.max(1) <= bound)))


def _has_certificate(layer: Any, params: Unrolled) -> bool:
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params))
    return finite and layer.is_coupled and layer.activation == relu


# The most codes of a sample that are checked, and the most products with |W'D| for these proofs.
_PROVED_ON, _MOST_PRODUCTS = 100, 2**31


def proofs(
    model: Layer | Network,
    params: tuple[Unrolled, ...],
    Ds: tuple[Dictionary, ...],
    pairs: list[tuple[Array, Array]],
    noises: list[Any],
) -> list[Proved]:
    """The share of the first codes of every layer that the steps provably find.

    Args:
        model: a layer, or a network of J layers.
        params, Ds, pairs: params, dictionaries and (signals, codes), one per layer.
        noises: bounds on the norm of the noise, as in `Guarantee`, one per layer; if a bound is
            None, the noise of each signal is used.
    """
    layers = (model,) if isinstance(model, Layer) else tuple(model.layers)
    size = sum(layer.depth * D.shape[1] ** 2 for layer, D in zip(layers, Ds))
    n = max(1, min(_PROVED_ON, len(pairs[0][0]), _MOST_PRODUCTS // max(1, size)))
    some = [(np.asarray(Y[:n]), np.asarray(X[:n])) for Y, X in pairs]
    codes = tuple(X for _, X in some)
    bounds = tuple(
        _noise_of(D, *pair) if noise is None else noise for D, pair, noise in zip(Ds, some, noises)
    )
    try:
        if isinstance(model, alista_rt):
            of = [_by_supports(model, params[0], Ds[0], *some[0], bounds[0])]
        else:
            layered = theory.certify_signals(dsc(layers), params, Ds, codes, noise=bounds)
            if reasons := [signals.uncovered for signals in layered if signals.uncovered]:
                return [Proved(None, n, f"no theorem is about {reasons[0]}")] * len(params)
            of = [signals.proved for signals in layered]
    except (TypeError, ValueError) as error:  # the message says what theory does not cover
        reason = str(error).partition(": ")[2].partition(";")[0]
        return [Proved(None, n, reason)] * len(params)
    return [Proved(float(np.mean(proved)), n) for proved in of]


def _noise_of(D: Dictionary, Y: Any, X: Any) -> np.ndarray:
    """The l1 norm of y - D x (l2 if codes have parts) for each signal; rounding counts as noise."""
    with jax.enable_x64(True):
        D, Y, X = checks.cast((D, Y, X), np.float64)
        left = np.abs(np.asarray(Y) - np.asarray(problems.synthesize(D, X)))
    return left.sum(1) if block_of(D) == 1 else np.hypot.reduce(left, axis=1)


def _by_supports(
    layer: alista_rt, params: Unrolled, D: Dictionary, Y: np.ndarray, X: np.ndarray, noise: Any
) -> np.ndarray:
    """For each code, (n,), whether the steps keep entries off its support at 0 and converge."""
    checks.finite((params, D), "params or D", "certify_supports")
    W, c, g = params.shared.analytic.W, abs(float(params.shared.ratio)), block_of(D)
    parts = _part_sizes(D, X)
    sizes, proved = np.count_nonzero(parts, axis=1), np.zeros(len(X), bool)
    for s in np.unique(sizes):
        rows = sizes == s
        supports = np.argsort(parts[rows] == 0, axis=1, kind="stable")[:, :s]
        of_supports = theory.certify_supports(W, D, supports)
        proved[rows] = of_supports.proved(c) if 0 < c < 1 else False
    matrix = np.asarray(dense(W), float)
    # The steps allow for the noise in the layer's options, and for this rounding of the signals.
    rounded = np.linalg.norm(matrix, axis=0).max() * np.linalg.norm(Y.reshape(len(Y), -1), axis=1)
    allowed = layer.noise + theory.OF_SIGNAL * np.finfo(Y.dtype).eps / 2 * rounded
    gain = np.abs(matrix).max()
    if g > 1:  # for noise bounded in l2
        gain = np.linalg.norm(matrix.reshape(len(matrix), -1, g), 2, axis=(0, 2)).max()
    return proved & (gain * noise <= allowed)


def _part_sizes(D: Dictionary, X: Any) -> np.ndarray:
    """The sizes of the parts of codes; the magnitudes of the entries if D has no parts."""
    sizes, g = np.abs(np.asarray(X)), block_of(D)
    return sizes if g == 1 else np.hypot.reduce(sizes.reshape(len(sizes), -1, g), axis=2)


def classes_of(
    Ds: tuple[Dictionary, ...], pairs: list[tuple[Array, Array]], classes: list[Class]
) -> ClassOf:
    """A function (j, D) -> the class of layer j, which computes the class of Ds[j] only once.

    Args:
        Ds, pairs: dictionaries and (signals, codes), one per layer.
        classes: the given numbers of the class, one triple per layer; None for numbers to compute.
    """

    @functools.cache
    def own(j: int) -> tuple[int, float, float]:
        return _class_of(Ds[j], *pairs[j], classes[j])

    return lambda j, D: own(j) if D is Ds[j] else _class_of(D, *pairs[j], classes[j])


def _class_of(D: Dictionary, Y: Array, X: Array, asked: Class) -> tuple[int, float, float]:
    """The class; the least number that covers the sample replaces each None."""
    s, B, delta = asked
    sizes = _part_sizes(D, X)
    s = int(np.count_nonzero(sizes, axis=1).max()) if s is None else s
    B = float(sizes.max()) if B is None else checks.as_number(B, "bound", "compare")
    delta = _noise_of(D, Y, X).max() if delta is None else delta
    return s, B, checks.as_number(delta, "noise", "compare")


_SHARE, _CONFIDENCE = 1e-3, 1 - 1e-6
_CHUNK = 1000  # signals per call
_SEED = 2**31 - 1  # seed of the draws, which users are unlikely to use for a sample


def drawn(D: Dictionary, Y: Array, X: Array, n: int) -> tuple[Array, Array]:
    """Draw n signals of the class of a sample."""
    probability, variance, noise, *_ = law_of(D, Y, X)
    keys = jax.random.split(jax.random.key(_SEED))
    codes = problems.planted(keys[0], (n, X.shape[-1]), probability, block_of(D))
    codes = (codes * math.sqrt(variance)).astype(X.dtype)
    signals = problems.synthesize(D, codes)
    noises = math.sqrt(noise) * jax.random.normal(keys[1], (n, Y.shape[-1]))
    return (signals + noises).astype(Y.dtype), codes


def held_out(D: Dictionary, Y: Array, X: Array, sampled: Any) -> tuple[Array, Array]:
    """The given signals and codes, or new draws if `sampled` is the number of draws."""
    where = "compare"
    if isinstance(sampled, tuple | list):
        if len(sampled) != 2:
            raise ValueError(f"{where}: sampled has {len(sampled)} entries; expected (Y, X)")
        check_batch(D, sampled[0], sampled[1], where)
        pair = tuple(checks.as_float(a, "sampled", where) for a in sampled)
        checks.finite(pair, "sampled", where)
        return pair[0], pair[1]
    n = checks.as_index(sampled, "sampled", where, least=1)
    checks.announce((n, X.shape[-1]), X.dtype, "the codes that are sampled", where)
    return drawn(D, Y, X, n)


@partial(jax.jit, static_argnums=0)
def _last_codes(model: Any, params: Any, D: Any, Y: Array) -> Array:
    return jax.lax.map(lambda y: model.apply(params, D, y), Y, batch_size=_CHUNK)


def bound(
    method: tuple[Layer, Unrolled, Dictionary], Y: Array, X: Array, drawn: bool, at_once: int
) -> Sampled:
    """The sampled bound of a method (model, params, D), one of `at_once` methods."""
    codes = _last_codes(*method, Y)
    right = np.asarray((codes == X).all(1))  # also if both are zero
    errors = np.where(right, -math.inf, np.asarray(metrics.signal_nmse(codes, X)))
    tolerance = theory.tolerance_bound(
        errors, share=_SHARE, confidence=_CONFIDENCE, at_once=at_once
    )
    return Sampled(tolerance.bound, len(Y), tolerance.needed, _SHARE, _CONFIDENCE, drawn)


def certified_share(model: Any, params: Any, D: Dictionary, Y: Array) -> float:
    """The share of the last codes of a method that `theory.certify_code` certifies.

    Without a model, `params` are the codes. `certify_code` runs without a search for codes
    (`finish=0`): a search would find the right code even for methods that did not find it.
    """
    codes = params if model is None else _last_codes(model, params, D, Y)
    return float(np.mean(theory.certify_code(D, Y, codes, finish=0).certified(Y)))


_SUPPORTS = 5  # number of drawn supports; the rate is the median over these supports
_WEIGHTS = {"amp": "dictionary"}  # kind of message passing -> `weights` of `local_rate`


def prediction(layer: Layer, params: Unrolled, D: Dictionary, law: Law) -> Predicted:
    """The predictions for a layer, for codes of a law."""
    nmse, remark, passing = None, "none is known for this family and its options", _passing(layer)
    has_rate = True
    if passing is not None:
        try:
            evolution = theory.state_evolution(
                layer,
                D,
                probability=law.probability,
                variance=law.variance,
                noise=law.noise,
                params=params,
            )
            nmse = evolution.nmse[1:] if evolution.holds else None
            remark = evolution.reason
            # A plain step ("projected") has a rate even if state evolution does not hold.
            has_rate = evolution.holds or passing.step == "projected"
        except (TypeError, ValueError) as error:  # the message says what theory does not cover
            remark = str(error).partition(": ")[2].partition(";")[0]
    rate = _rate(layer, params, D, law) if has_rate else None
    return Predicted(nmse, rate, remark)


def _passing(layer: Layer) -> theory.MessagePassing | None:
    described = layer.message_passing is not None and layer.guard is None
    return layer.message_passing() if described else None


def _rate(layer: Layer, params: Unrolled, D: Dictionary, law: Law) -> float | None:
    """The rate in dB per step, from the last weights or, for message passing, by `local_rate`."""
    m, d = D.shape
    s = round(law.probability * d)
    if law.noise > 0 or not 1 <= s <= m <= d or block_of(D) > 1:
        return None
    passing = _passing(layer)
    if passing is not None and passing.step != "projected":
        if isinstance(D, Structured):
            return None
        weights = _WEIGHTS.get(passing.step, "frobenius")
        return _decibels(theory.local_rate(m, d, s, weights=weights).accelerated)
    if not layer.is_coupled:
        return None
    shared, steps = unstack(Unrolled(params.shared, jax.device_get(params.steps)))
    W, gamma, _ = layer.weights(shared, steps[-1], D)
    acting: Any = np.asarray(dense(W), float) * (1.0 if gamma is None else np.asarray(gamma, float))
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(d)[:s] for _ in range(_SUPPORTS)]
    return _decibels(float(np.median([theory.support_rate(acting, D, S).plain for S in drawn])))


def _decibels(rate: float) -> float | None:
    """A rate in dB; None if the steps do not converge, or one step is enough."""
    return 20 * math.log10(rate) if 0 < rate < 1 else None
