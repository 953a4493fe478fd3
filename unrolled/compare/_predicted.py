"""What theory predicts of the methods of a comparison, and what an independent sample and proofs
of single codes say about them.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled import metrics, problems, theory
from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled.dictionaries import Dictionary, Structured, check_batch, dense
from unrolled.layers import Layer, Unrolled, unstack

_SHARE, _CONFIDENCE = 1e-3, 1 - 1e-6
_CHUNK = 1000  # signals at a time
_SEED = 2**31 - 1  # of the draws: that of no sample that a user is likely to have drawn
_ROUNDING = 1e-5  # a residual of this share of the signals is no noise


class Sampled(NamedTuple):
    """A bound on the errors of all of the class but a share, by a sample that chose nothing."""

    decibels: float  # NMSE of a signal, inf where the sample does not suffice
    signals: int  # that were drawn
    needed: int  # signals that a bound needs
    share: float  # of the class that the bound leaves out
    confidence: float  # that the bounds of all methods hold together
    drawn: bool  # by the comparison itself; otherwise they were given

    def text(self) -> str:
        """The bound as a sentence.

        Example:
            >>> ur.compare.Sampled(-20.0, 20_000, 13_809, 1e-3, 1 - 1e-6, True).text()
            '99.9 % of the class: at most -20.0 dB (20,000 draws, confidence 1 - 1e-6)'
        """
        level = f"at most {self.decibels:.1f} dB" if self.decibels < math.inf else "no bound"
        if self.signals < self.needed:
            level = f"no bound, {self.needed - self.signals:,} signals are missing"
        risk = f"{1 - self.confidence:.0e}".replace("e-0", "e-")
        what = "draws" if self.drawn else "held-out signals"
        how = f"{self.signals:,} {what}, confidence 1 - {risk}"
        return f"{100 * (1 - self.share):.1f} % of the class: {level} ({how})"


class Class(NamedTuple):
    """Bernoulli-Gaussian codes with white noise in their signals."""

    probability: float  # that an entry is not zero
    variance: float  # of those that are not
    noise: float  # the variance of the noise per entry of a signal


def class_of(D: Dictionary, Y: Array, X: Array) -> Class:
    """The class with the share of nonzeros, their mean square and the noise of a sample."""
    values = np.asarray(X, float)
    on = values != 0
    rest = np.asarray(Y, float) - np.asarray(problems.synthesize(D, X), float)
    noise, power = (float(np.mean(signals**2)) for signals in (rest, np.asarray(Y, float)))
    variance = float(np.sum(values**2)) / max(1, int(on.sum()))
    return Class(float(on.mean()), variance, noise if noise > _ROUNDING**2 * power else 0.0)


def drawn(D: Dictionary, Y: Array, X: Array, n: int) -> tuple[Array, Array]:
    """n signals of the class of a sample."""
    probability, variance, noise = class_of(D, Y, X)
    keys = jax.random.split(jax.random.key(_SEED))
    codes = problems.bernoulli_gaussian(keys[0], (n, X.shape[-1]), probability)
    codes = (codes * math.sqrt(variance)).astype(X.dtype)
    signals = problems.synthesize(D, codes)
    noises = math.sqrt(noise) * jax.random.normal(keys[1], (n, Y.shape[-1]))
    return (signals + noises).astype(Y.dtype), codes


def held_out(D: Dictionary, Y: Array, X: Array, sampled: Any) -> tuple[Array, Array]:
    """The signals and codes that are given, or as many draws as asked for."""
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


def bounds(
    methods: Mapping[str, tuple], D: Dictionary, Y: Array, X: Array, drawn: bool
) -> dict[str, Sampled]:
    """The bound of every method (model, params, D) that is no fixed array of codes."""
    models = {name: method for name, method in methods.items() if method[0] is not None}
    results = {}
    for name, (model, params, own) in models.items():
        codes = _last_codes(model, params, D if own is None else own, Y)
        right = np.asarray((codes == X).all(1))  # also where both are zero
        errors = np.where(right, -math.inf, np.asarray(metrics.signal_nmse(codes, X)))
        options = dict(share=_SHARE, confidence=_CONFIDENCE)
        bound, _, needed, _, _ = theory.tolerance_bound(errors, at_once=len(models), **options)
        results[name] = Sampled(bound, len(Y), needed, _SHARE, _CONFIDENCE, drawn)
    return results


def certified_shares(methods: Mapping[str, tuple], D: Dictionary, Y: Array) -> dict[str, float]:
    """The share of the last codes of every method that `theory.certify_code` proves.

    No search finishes them: it would find the right code for methods that did not.
    """
    shares = {}
    for name, (model, params, own) in methods.items():
        used = D if own is None else own
        codes = params if model is None else _last_codes(model, params, used, Y)
        proved = theory.certify_code(used, Y, codes, finish=0).certified(Y)
        shares[name] = float(np.mean(proved))
    return shares


_SUPPORTS = 5  # drawn ones, of which the median rate is taken
_WEIGHTS = {"amp": "dictionary"}  # of `local_rate`, for message passing of this kind


class Predicted(NamedTuple):
    """The median error that state evolution predicts, and the rate once the support is right."""

    nmse: np.ndarray | None  # (K,) dB, of a typical signal after every step
    rate: float | None  # dB per step, of codes without noise
    remark: str  # why a prediction is missing, or empty


def predictions(
    methods: Mapping[str, tuple], D: Dictionary, Y: Array, X: Array
) -> dict[str, Predicted]:
    """What theory predicts of every method (layer, params, D) that is no fixed array of codes."""
    of, models = class_of(D, Y, X), {n: m for n, m in methods.items() if m[0] is not None}
    return {
        name: _prediction(layer, params, D if own is None else own, of)
        for name, (layer, params, own) in models.items()
    }


def _prediction(layer: Layer, params: Unrolled, D: Dictionary, of: Class) -> Predicted:
    nmse, remark, passing = None, "none is known for this family and its options", _passing(layer)
    has_rate = True
    if passing is not None:
        try:
            options: Any = of._asdict()
            evolution = theory.state_evolution(layer, D, **options, params=params)
            nmse = evolution.nmse[1:] if evolution.holds else None
            remark = evolution.reason
            has_rate = evolution.holds or passing.step == "projected"  # a plain step has its own
        except (TypeError, ValueError) as error:  # it says what it does not cover
            remark = str(error).partition(": ")[2].partition(";")[0]
    rate = _rate(layer, params, D, of) if has_rate else None
    return Predicted(nmse, rate, remark)


def _passing(layer: Layer) -> theory.MessagePassing | None:
    described = layer.message_passing is not None and layer.guard is None
    return layer.message_passing() if described else None


def _rate(layer: Layer, params: Unrolled, D: Dictionary, of: Class) -> float | None:
    """In dB per step: of the last weights of a plain step, or of the Onsager term."""
    m, d = D.shape
    s = round(of.probability * d)
    if of.noise > 0 or not 1 <= s <= m <= d:
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
    """None where it does not converge, or where one step is enough."""
    return 20 * math.log10(rate) if 0 < rate < 1 else None
