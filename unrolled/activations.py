r"""Activations with the constants that the theory needs, and the shrinkages built from them.

An activation rho replaces ReLU inside shrinkage. The theory of general activations (Theorems 9, 10
and 15) uses only a few numbers of it: how steep and how large its tail is on x <= 0, and how far it
is from ReLU. They are fields of `Activation`, next to the function itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import widened

# Iterated suprema are raised by this part, above the rounding of the few steps that find them.
_ROUNDED_UP = 1e-7


def _relu(x):
    return jax.nn.relu(x)


@dataclass(frozen=True, repr=False)
class Activation:
    r"""A scalar activation rho and its constants; hashable and equal by value.

    It can be a static argument of `jit` without retracing. The constants are upper bounds; for the
    activations of this module they are the exact suprema, rounded up. Write h for rho on the tail
    x <= 0.

    Attributes:
        name: shown in tables and messages, and as `repr`.
        tail_lipschitz: L_h, the Lipschitz constant of h.
        tail_sup: beta = sup abs(h).
        tail_oscillation: sup h - inf h.
        relu_gap: sup over the whole line of abs(rho - relu).
        function: called as `function(x, *parameters)`; give a module-level function, not a lambda.
        parameters: hashable arguments of `function`.
        line_oscillation: sup - inf of rho - relu over the whole line (at most twice `relu_gap`).
        identity_on_positives: rho(x) = x for x >= 0, the hypothesis of Theorems 9 and 15.
        nonpositive_tail: rho(x) <= 0 for x <= 0; without it composing does not shrink the tail.

    Example:
        >>> rho = ur.activations.elu(0.5)
        >>> rho, rho.tail_sup, float(rho(jnp.float32(2.0)))
        (elu(0.5), 0.5, 2.0)
    """

    name: str
    tail_lipschitz: float
    tail_sup: float
    tail_oscillation: float
    relu_gap: float
    function: Callable[..., Array] = _relu
    parameters: tuple = ()
    line_oscillation: float = math.inf
    identity_on_positives: bool = False
    nonpositive_tail: bool = False

    def __call__(self, x: Array) -> Array:
        return self.function(x, *self.parameters)

    def __repr__(self) -> str:
        return self.name


def _one_signed(name, function, parameters=(), *, lipschitz, sup, gap, exact=False) -> Activation:
    """An activation whose tail and distance from ReLU keep one sign: oscillation = supremum."""
    return Activation(
        name, lipschitz, sup, sup, gap, function, parameters, gap, exact, nonpositive_tail=exact
    )


# Module-level functions of our own, since those of jax.nn cannot be pickled.


def _leaky_relu(x, slope):
    return jax.nn.leaky_relu(x, slope)


def _elu(x, alpha):
    return jax.nn.elu(x, alpha)


def _celu(x, alpha):
    return jax.nn.celu(x, alpha)


def _selu(x):
    return jax.nn.selu(x)


def _silu(x):
    return jax.nn.silu(x)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x):
    return jax.nn.gelu(x, approximate=True)


def _mish(x):
    return jax.nn.mish(x)


def _softplus(x):
    return jax.nn.softplus(x)


def _hard_swish(x):
    return jax.nn.hard_swish(x)


relu = _one_signed("relu", _relu, lipschitz=0.0, sup=0.0, gap=0.0, exact=True)
silu = _one_signed("silu", _silu, lipschitz=0.5, sup=0.27846455, gap=0.27846455)
gelu = _one_signed("gelu", _gelu, lipschitz=0.5, sup=0.16997121, gap=0.16997121)
gelu_tanh = _one_signed("gelu_tanh", _gelu_tanh, lipschitz=0.5, sup=0.17004076, gap=0.17004076)
mish = _one_signed("mish", _mish, lipschitz=0.6, sup=0.30884342, gap=0.30884342)
softplus = _one_signed("softplus", _softplus, lipschitz=0.5, sup=0.69314719, gap=0.69314719)
hard_swish = _one_signed("hard_swish", _hard_swish, lipschitz=0.5, sup=0.375, gap=0.375)
# SELU has slope 1.0507 on x > 0, so no scaling brings it near ReLU; selu(k x) / (1.0507 k) is
# scale(elu(1.6732632423543772), k).
selu = Activation("selu", 1.7580994, 1.7580994, 1.7580994, math.inf, _selu)


def _parameter(
    value: float, name: str, where: str, *, most: float = math.inf, positive: bool = False
) -> float:
    value = float(value)
    if not (0 < value if positive else 0 <= value) or not value <= most or not math.isfinite(value):
        bounds = f"{'above' if positive else 'at least'} 0" + (
            f" and at most {most:g}" if most < math.inf else ""
        )
        raise ValueError(f"{where}: {name} must be {bounds}, got {value}")
    return value


def leaky_relu(slope: float) -> Activation:
    """max(x, 0) + slope min(x, 0); its tail is unbounded unless slope = 0.

    Raises:
        ValueError: slope outside [0, 1].

    Example:
        >>> ur.activations.leaky_relu(0.1)(jnp.array([-10.0, 10.0])).tolist()
        [-1.0, 10.0]
    """
    slope = _parameter(slope, "slope", "leaky_relu", most=1.0)
    unbounded = math.inf if slope else 0.0
    return _one_signed(
        f"leaky_relu({slope:g})",
        _leaky_relu,
        (slope,),
        lipschitz=slope,
        sup=unbounded,
        gap=unbounded,
        exact=True,
    )


def elu(alpha: float = 1.0) -> Activation:
    """x for x >= 0, alpha (exp(x) - 1) below; Theorem 9 requires alpha < 1.

    Raises:
        ValueError: alpha negative, infinite or NaN.

    Example:
        >>> ur.activations.elu(0.5).tail_lipschitz
        0.5
    """
    alpha = _parameter(alpha, "alpha", "elu")
    return _one_signed(
        f"elu({alpha:g})", _elu, (alpha,), lipschitz=alpha, sup=alpha, gap=alpha, exact=True
    )


def celu(alpha: float = 1.0) -> Activation:
    """x for x >= 0, alpha (exp(x / alpha) - 1) below: slope 1 at 0-, bounded by alpha.

    Raises:
        ValueError: alpha not positive, infinite or NaN.

    Example:
        >>> ur.activations.celu(0.5).tail_lipschitz, ur.activations.celu(0.5).tail_sup
        (1.0, 0.5)
    """
    alpha = _parameter(alpha, "alpha", "celu", positive=True)
    return _one_signed(
        f"celu({alpha:g})", _celu, (alpha,), lipschitz=1.0, sup=alpha, gap=alpha, exact=True
    )


def _scaled(x, act, k):
    return act(x * k) / k


def scale(act: Activation, k: float) -> Activation:
    """rho(k x) / k: the tail and the distance from ReLU shrink by k, the slopes stay.

    Args:
        act: rho.
        k: positive and finite.

    Raises:
        TypeError: act is not an `Activation`. ValueError: k out of range.

    Reference: Li, Feng, Zhou (2024), Theorem 10.

    Example:
        >>> ur.activations.scale(ur.activations.softplus, 100.0).relu_gap < 0.007
        True
    """
    _has_constants(act, "scale")
    k = _parameter(k, "k", "scale", positive=True)
    return Activation(
        f"scale({act.name}, {k:g})",
        act.tail_lipschitz,
        act.tail_sup / k,
        act.tail_oscillation / k,
        act.relu_gap / k,
        _scaled,
        (act, k),
        act.line_oscillation / k,
        act.identity_on_positives,
        act.nonpositive_tail,
    )


def _has_constants(act, where: str) -> None:
    if not isinstance(act, Activation):
        raise TypeError(f"{where}: expected an Activation, whose constants are known; got {act!r}")


def _composed(x, act, times):
    for _ in range(times):
        x = act(x)
    return x


def compose(act: Activation, times: int) -> Activation:
    r"""rho applied `times` times, the rho^m of Theorem 9; `scale` shrinks the tail at less cost.

    The constants are valid upper bounds, not always exact. If rho(x) = x on x >= 0 and h <= 0, the
    tail of rho^m is at most min(beta, L_h^(m-1) beta) and L_h^m-Lipschitz; if h is also monotone
    (ELU, CELU), its supremum is found by iterating from -beta. Otherwise
    relu_gap(rho^m) <= m relu_gap(rho), since ReLU is idempotent and 1-Lipschitz.

    Args:
        act: rho.
        times: m, at least 1.

    Raises:
        TypeError: act is not an `Activation`, or times is not an integer.
        ValueError: times below 1.

    Reference: Li, Feng, Zhou (2024), Theorem 9.

    Example:
        >>> rho = ur.activations.elu(0.5)
        >>> [round(ur.activations.compose(rho, m).tail_sup, 3) for m in (1, 2, 3)]
        [0.5, 0.197, 0.089]
    """
    _has_constants(act, "compose")
    m = _checks.as_index(times, "times", "compose", least=1)
    if m == 1:
        return act
    gap = m * act.relu_gap
    lipschitz, sup, oscillation, line = math.inf, gap, 2 * gap, 2 * gap
    if act.identity_on_positives and act.nonpositive_tail:
        lipschitz = act.tail_lipschitz**m
        sup = _iterated_sup(act, m)
        gap = line = oscillation = sup
    return Activation(
        f"compose({act.name}, {m})",
        lipschitz,
        sup,
        oscillation,
        gap,
        _composed,
        (act, m),
        line,
        act.identity_on_positives,
        act.nonpositive_tail,
    )


def _iterated_sup(act: Activation, m: int) -> float:
    """sup abs(h^m): beta_{k+1} = abs(h(-beta_k)) for monotone tails, else min(1, L) beta_k."""
    sup = act.tail_sup
    for _ in range(m - 1):
        if act.function is _elu:
            sup = -act.parameters[0] * math.expm1(-sup)
        elif act.function is _celu:
            sup = -act.parameters[0] * math.expm1(-sup / act.parameters[0])
        else:
            sup = min(1.0, act.tail_lipschitz) * sup
    return sup * (1 + _ROUNDED_UP) if math.isfinite(sup) else sup


# Names that configurations and files may use; an activation of a user's own may be added.
NAMED = {
    "relu": relu,
    "leaky_relu": leaky_relu(0.01),
    "elu": elu(),
    "celu": celu(),
    "selu": selu,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "mish": mish,
    "softplus": softplus,
    "hard_swish": hard_swish,
}

# Functions of JAX, with their default arguments, and the activations that know their constants.
_TWINS = (
    (jax.nn.relu, relu),
    (jax.nn.leaky_relu, NAMED["leaky_relu"]),
    (jax.nn.elu, NAMED["elu"]),
    (jax.nn.celu, NAMED["celu"]),
    (jax.nn.selu, selu),
    (jax.nn.silu, silu),
    (jax.nn.swish, silu),
    (jax.nn.gelu, gelu_tanh),  # approximate=True is the default of JAX
    (jax.nn.mish, mish),
    (jax.nn.softplus, softplus),
    (jax.nn.hard_swish, hard_swish),
    (jax.nn.hard_silu, hard_swish),
)

# Factories by the function of the activations that they make: their arguments are its parameters.
_FACTORIES = {
    _leaky_relu: leaky_relu,
    _elu: elu,
    _celu: celu,
    _scaled: scale,
    _composed: compose,
}


def by_name(name: "str | Activation | Callable[[Array], Array]") -> Callable[[Array], Array]:
    """The activation of that name; a function of `jax.nn` that has a twin here becomes the twin.

    Any other callable is returned as it is, an activation too.

    Raises:
        ValueError: `NAMED` has no such name (the message lists those it has).
        TypeError: `name` is neither a string nor callable.

    Example:
        >>> ur.activations.by_name("elu"), ur.activations.by_name(jax.nn.silu)
        (elu(1), silu)
    """
    if isinstance(name, str):
        if name not in NAMED:
            raise ValueError(
                f"activation: unknown name {name!r}; expected one of {', '.join(NAMED)}"
            )
        return NAMED[name]
    if not callable(name):
        raise TypeError(
            f"activation: expected an Activation or a function, got {type(name).__name__}"
        )
    return next((twin for function, twin in _TWINS if function is name), name)


def describe(activation: Callable[[Array], Array]) -> str | list:
    """A form of an activation that JSON can hold; `from_description` turns it back, exactly.

    It is the name in `NAMED`, or the name of a factory with its arguments. An activation of your
    own needs a name in `NAMED`, when it is described and when it is read.

    Raises:
        TypeError: the activation has no name in `NAMED` and comes from none of the factories.

    Example:
        >>> rho = ur.activations.scale(ur.activations.compose(ur.activations.elu(0.9), 3), 5.0)
        >>> ur.activations.describe(rho)
        ['scale', ['compose', ['elu', 0.9], 3], 5.0]
    """
    for name, known in NAMED.items():
        if known == activation:
            return name
    factory = _FACTORIES.get(activation.function) if isinstance(activation, Activation) else None
    if factory is not None and factory(*activation.parameters) == activation:
        return [
            factory.__name__,
            *(describe(p) if callable(p) else p for p in activation.parameters),
        ]
    raise TypeError(
        f"activation: {activation!r} has no name; add it to activations.NAMED under a name"
    )


def from_description(form: str | list) -> Callable[[Array], Array]:
    """The activation that `describe` gave this form of; names are looked up, never evaluated.

    Raises:
        ValueError: an unknown name, or arguments that its factory does not take.

    Example:
        >>> ur.activations.from_description(["scale", "silu", 5.0])
        scale(silu, 5)
    """
    if isinstance(form, str):
        return by_name(form)
    factories = {factory.__name__: factory for factory in _FACTORIES.values()}
    name, *arguments = form if isinstance(form, (list, tuple)) and form else (None,)
    if not isinstance(name, str) or name not in factories:
        raise ValueError(
            f"activation: unknown form {form!r}; expected a name or [factory, *arguments] with one "
            f"of {', '.join(factories)}"
        )
    try:
        return factories[name](
            *(from_description(a) if isinstance(a, (str, list, tuple)) else a for a in arguments)
        )
    except TypeError as error:
        raise ValueError(f"activation: cannot read {form!r}: {error}") from error


def shrink(v: Array, theta: ArrayLike, activation: Callable[[Array], Array] = relu) -> Array:
    r"""Shrinkage by two activations: rho(v - theta) - rho(-v - theta).

    With ReLU it is the soft threshold sign(v) max(abs(v) - theta, 0), with derivative 0 at the
    kink. Its derivative is read off the result, in forward and reverse mode and at any order, so
    that a backward pass stores nothing but x.

    Args:
        v: any shape.
        theta: threshold, broadcast against `v`; non-negative.
        activation: rho.

    Returns:
        The shape of v and theta, broadcast.

    Raises:
        ValueError: a known theta is negative or NaN. A traced one is not checked: theta < 0 expands
            instead of shrinking.

    Reference: Li, Feng, Zhou (2024), equations (20) and (33).

    Example:
        >>> ur.shrink(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [-2.0, 0.0, 1.0]
    """
    _checks.nonnegative(theta, "theta", "shrink")
    if activation == relu:
        return _soft(v, jnp.asarray(theta, jnp.result_type(v, theta)))
    return activation(v - theta) - activation(-v - theta)


@jax.custom_jvp
def _soft(v: Array, theta: Array) -> Array:
    return jax.nn.relu(v - theta) - jax.nn.relu(-v - theta)


@_soft.defjvp
def _soft_jvp(primals, tangents):
    dv, dtheta = tangents
    x = _soft(*primals)
    return x, jnp.where(x != 0, dv - jnp.sign(x) * dtheta, jnp.zeros_like(x))


def soft_threshold(v: Array, theta: ArrayLike) -> Array:
    """sign(v) max(abs(v) - theta, 0), the proximal map of theta norm(x, 1); see `shrink`.

    Example:
        >>> ur.soft_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [-2.0, 0.0, 1.0]
    """
    return shrink(v, theta)


def hard_threshold(v: Array, theta: ArrayLike) -> Array:
    """v where abs(v) > theta, else 0: a proximal map of theta^2/2 norm(x, 0).

    Raises:
        ValueError: a known theta is negative or NaN.

    Example:
        >>> ur.activations.hard_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [-3.0, 0.0, 2.0]
    """
    _checks.nonnegative(theta, "theta", "hard_threshold")
    return jnp.where(jnp.abs(v) > theta, v, jnp.zeros_like(v))


def firm_threshold(v: Array, theta: ArrayLike, upper: ArrayLike) -> Array:
    """0 up to theta, v from `upper` on, linear in between; the soft threshold as upper -> inf.

    Raises:
        ValueError: known thresholds without 0 <= theta < upper.

    Reference: Gao, Bruce (1997).

    Example:
        >>> ur.activations.firm_threshold(jnp.array([0.5, 2.0, 3.0]), 1.0, 3.0).tolist()
        [0.0, 1.5, 3.0]
    """
    _checks.nonnegative(theta, "theta", "firm_threshold")
    if _checks.is_concrete((theta, upper)) and not np.all(np.asarray(theta) < np.asarray(upper)):
        raise ValueError(
            f"firm_threshold: expected theta < upper, got theta={theta}, upper={upper}"
        )
    between = jax.nn.relu(jnp.abs(v) - theta) / (1 - theta / upper)  # also for upper = inf
    return jnp.sign(v) * jnp.minimum(between, jnp.abs(v))


def nonnegative_threshold(
    v: Array, theta: ArrayLike, activation: Callable[[Array], Array] = relu
) -> Array:
    """rho(v - theta): a CNN's biased ReLU, the proximal map of theta norm(x, 1) on x >= 0.

    Raises:
        ValueError: a known theta is negative or NaN.

    Example:
        >>> ur.activations.nonnegative_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0).tolist()
        [0.0, 0.0, 1.0]
    """
    _checks.nonnegative(theta, "theta", "nonnegative_threshold")
    return activation(v - theta)


def select_support(
    v: Array, theta: ArrayLike, fraction: ArrayLike, activation: Callable[[Array], Array] = relu
) -> Array:
    r"""Shrinkage that passes the largest entries unshrunk: the support selection of LISTA-CPSS.

    An entry passes if it exceeds theta and is one of the round(fraction d) largest magnitudes. The
    comparison with the next magnitude is strict, so that ties with it are shrunk. The selection
    carries no gradient.

    Args:
        v: (d,).
        theta: () or (d,), non-negative.
        fraction: share of the entries, in [0, 1]; may be traced.
        activation: rho of the shrinkage.

    Returns:
        (d,).

    Raises:
        ValueError: a known fraction is outside [0, 1], or a known theta is negative or NaN.

    Reference: Chen, Liu, Wang, Yin (2018), section 2.3.

    Example:
        >>> ur.activations.select_support(jnp.array([-3.0, 0.5, 2.0, 1.5]), 1.0, 0.5).tolist()
        [-3.0, 0.0, 2.0, 0.5]
    """
    if _checks.is_concrete(fraction) and not 0 <= float(fraction) <= 1:
        raise ValueError(f"select_support: fraction must be in [0, 1], got {fraction}")
    d = v.shape[-1]
    magnitude = lax.stop_gradient(jnp.abs(v))
    count = jnp.round(jnp.asarray(fraction, jnp.float32) * d).astype(jnp.int32)
    # For count = d there is no next magnitude, and every entry that exceeds theta passes.
    border = jnp.where(
        count < d, kth_largest(magnitude, jnp.minimum(count + 1, d)), -jnp.ones((), v.dtype)
    )
    passes = (magnitude > border) & (magnitude > lax.stop_gradient(theta))
    return jnp.where(passes, v, shrink(v, theta, activation))


def kth_largest(magnitude: Array, k: ArrayLike) -> Array:
    r"""The k-th largest of non-negative numbers, exactly, by a binary search over the bit pattern.

    Non-negative floats are ordered as their bits are, so the answer is built bit by bit from the
    top: a bit stays if at least k entries are no smaller. About 30 passes of compare-and-count,
    many times faster than a sort.

    Args:
        magnitude: (d,), non-negative.
        k: integer in 1..d; may be traced.

    Returns:
        (), in the dtype of `magnitude`.

    Example:
        >>> float(ur.activations.kth_largest(jnp.array([3.0, 1.0, 2.0]), 2))
        2.0
    """
    narrow, magnitude = magnitude.dtype, widened(magnitude)
    dtype, k = magnitude.dtype, jnp.asarray(k).astype(jnp.int32)
    bits = lax.bitcast_convert_type(magnitude, jnp.int64 if dtype.itemsize == 8 else jnp.int32)
    # Floats are summed faster than integers, and exactly up to 2^24.
    count_dtype = jnp.float32 if magnitude.size < 2**24 else jnp.int32

    def keep(i, found):
        trial = found | (jnp.ones_like(found) << (dtype.itemsize * 8 - 2 - i))
        count = jnp.sum((bits >= trial).astype(count_dtype))
        return jnp.where(count >= k.astype(count_dtype), trial, found)

    # i is an int32 index; in the dtype of `bits` the shift needs no promotion.
    found = lax.fori_loop(
        0, dtype.itemsize * 8 - 1, lambda i, f: keep(i.astype(bits.dtype), f), bits[0] * 0
    )
    return lax.bitcast_convert_type(found, dtype).astype(narrow)
