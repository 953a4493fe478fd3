r"""Activations with the constants that the theory needs, and the shrinkages built from them.

An activation rho stands in for ReLU inside shrinkage. The theory of general activations (Theorems
9, 10, 15) sees it only through numbers: how steep and how large its tail is on x <= 0, and how far
it is from ReLU. They are fields of `Activation`, beside the function itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks
from unrolled._checks import Array


def _relu(x):
    return jax.nn.relu(x)


@dataclass(frozen=True, repr=False)
class Activation:
    r"""A scalar activation rho and its constants; hashable and equal by value, so it never
    retraces.

    The constants are upper bounds; for the activations of this module they are the exact suprema,
    rounded up. Write h for rho on the tail x <= 0.

    Attributes:
        name: shown in tables and messages.
        tail_lipschitz: L_h, the Lipschitz constant of h.
        tail_sup: beta = sup abs(h).
        tail_oscillation: sup h - inf h.
        relu_gap: sup over the whole line of abs(rho - relu).
        function: called as `function(x, *parameters)`; give a module-level function, not a lambda.
        parameters: hashable arguments of `function`.
        line_oscillation: sup - inf of rho - relu over the whole line (at most twice `relu_gap`).
        identity_on_positives: rho(x) = x for x >= 0, the hypothesis of Theorems 9 and 15.
        nonpositive_tail: rho(x) <= 0 for x <= 0; without it composing does not shrink the tail.
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
    """An activation whose tail and whose distance from ReLU keep one sign: oscillation = supremum."""
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
    """max(x, 0) + slope min(x, 0), with 0 <= slope <= 1; unbounded tail unless slope = 0."""
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
    """x for x >= 0, alpha (exp(x) - 1) below; Theorem 9 asks alpha < 1."""
    alpha = _parameter(alpha, "alpha", "elu")
    return _one_signed(
        f"elu({alpha:g})", _elu, (alpha,), lipschitz=alpha, sup=alpha, gap=alpha, exact=True
    )


def celu(alpha: float = 1.0) -> Activation:
    """x for x >= 0, alpha (exp(x / alpha) - 1) below: slope 1 at 0-, bounded by alpha."""
    alpha = _parameter(alpha, "alpha", "celu", positive=True)
    return _one_signed(
        f"celu({alpha:g})", _celu, (alpha,), lipschitz=1.0, sup=alpha, gap=alpha, exact=True
    )


def _scaled(x, act, k):
    return act(x * k) / k


def scale(act: Activation, k: float) -> Activation:
    """rho(k x) / k: the tail and the distance from ReLU shrink by k, the slopes stay (theory of
    Theorem 10).
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
        raise TypeError(
            f"{where}: expected an Activation, whose constants it can follow; got {act!r}"
        )


def _composed(x, act, times):
    for _ in range(times):
        x = act(x)
    return x


def compose(act: Activation, times: int) -> Activation:
    r"""rho applied `times` times (the rho^m of Theorem 9), with valid, not always exact, constants.

    If rho(x) = x on x >= 0 and h <= 0, the tail of rho^m is at most min(beta, L_h^(m-1) beta) and
    L_h^m-Lipschitz, and where h is also monotone (ELU, CELU) its supremum is found by iterating
    from -beta. Otherwise relu_gap(rho^m) <= m relu_gap(rho), since ReLU is idempotent and
    1-Lipschitz. `scale` reaches the same tail with no extra depth.
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
    """sup abs(h^m): beta_1 = beta, and beta_{k+1} = abs(h(-beta_k)) for the monotone tails, else
    min(1, L) beta_k.
    """
    sup = act.tail_sup
    for _ in range(m - 1):
        if act.function is _elu:
            sup = -act.parameters[0] * math.expm1(-sup)
        elif act.function is _celu:
            sup = -act.parameters[0] * math.expm1(-sup / act.parameters[0])
        else:
            sup = min(1.0, act.tail_lipschitz) * sup
    return sup * (1 + 1e-7) if math.isfinite(sup) else sup


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


def shrink(v: Array, theta: Array, activation: Callable = relu) -> Array:
    r"""Shrinkage by two activations: rho(v - theta) - rho(-v - theta).

    With ReLU it is the soft threshold sign(v) max(abs(v) - theta, 0), with derivative 0 at the
    kink. That derivative is read off the result, in forward and reverse mode and any order, so that
    a backward pass keeps nothing but x.

    Args:
        v: any shape.
        theta: threshold, broadcast against `v`; non-negative (for theta < 0 the two forms differ).

    Raises:
        ValueError: a known theta is negative or NaN. Under `jit` it cannot be seen: theta < 0 then
            expands.

    Reference: Li, Feng, Zhou (2024), equations (20) and (33).
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


def soft_threshold(v: Array, theta: Array) -> Array:
    """sign(v) max(abs(v) - theta, 0), the proximal map of theta norm(x, 1); see `shrink`."""
    return shrink(v, theta)


def hard_threshold(v: Array, theta: Array) -> Array:
    """v where abs(v) > theta, else 0: a proximal map of theta^2/2 norm(x, 0)."""
    _checks.nonnegative(theta, "theta", "hard_threshold")
    return jnp.where(jnp.abs(v) > theta, v, jnp.zeros_like(v))


def firm_threshold(v: Array, theta: Array, upper: Array) -> Array:
    """0 up to theta, v from `upper` on, linear between (Gao and Bruce 1997); soft as upper -> inf.

    Raises:
        ValueError: known thresholds without 0 <= theta < upper.
    """
    _checks.nonnegative(theta, "theta", "firm_threshold")
    if _checks.is_concrete((theta, upper)) and not np.all(np.asarray(theta) < np.asarray(upper)):
        raise ValueError(
            f"firm_threshold: expected theta < upper, got theta={theta}, upper={upper}"
        )
    between = jax.nn.relu(jnp.abs(v) - theta) / (1 - theta / upper)  # this form stands upper = inf
    return jnp.sign(v) * jnp.minimum(between, jnp.abs(v))


def nonnegative_threshold(v: Array, theta: Array, activation: Callable = relu) -> Array:
    """rho(v - theta): the proximal map of theta norm(x, 1) on x >= 0, a CNN's biased ReLU."""
    _checks.nonnegative(theta, "theta", "nonnegative_threshold")
    return activation(v - theta)


def select_support(v: Array, theta: Array, fraction: Array, activation: Callable = relu) -> Array:
    r"""Shrinkage that lets the largest entries pass unshrunk ("support selection", LISTA-CPSS).

    An entry passes as it is if it exceeds theta and belongs to the round(fraction d) largest
    magnitudes; the comparison with the next magnitude is strict, so ties at the border are shrunk.
    The choice carries no gradient.

    Args:
        v: (d,).
        theta: () or (d,), non-negative.
        fraction: share of the entries, in [0, 1]; may be traced.

    Raises:
        ValueError: a known fraction is outside [0, 1], or theta negative.

    Reference: Chen, Liu, Wang, Yin (2018), section 2.3.
    """
    if _checks.is_concrete(fraction) and not 0 <= float(fraction) <= 1:
        raise ValueError(f"select_support: fraction must be in [0, 1], got {fraction}")
    d = v.shape[-1]
    magnitude = lax.stop_gradient(jnp.abs(v))
    count = jnp.round(jnp.asarray(fraction, jnp.float32) * d).astype(jnp.int32)
    # For count = d there is no next magnitude and every entry that exceeds theta passes.
    border = jnp.where(
        count < d, kth_largest(magnitude, jnp.minimum(count + 1, d)), -jnp.ones((), v.dtype)
    )
    passes = (magnitude > border) & (magnitude > lax.stop_gradient(theta))
    return jnp.where(passes, v, shrink(v, theta, activation))


def kth_largest(magnitude: Array, k: Array) -> Array:
    r"""The k-th largest of non-negative numbers, exactly, by a binary search over the bit pattern.

    Non-negative floats are ordered as their bits are, so the answer is built bit by bit from the
    top: a bit stays if at least k entries are no smaller. About 30 passes of compare-and-count,
    many times faster than a sort.

    Args:
        magnitude: (d,), non-negative.
        k: integer in 1..d; may be traced.

    Returns:
        (), in the dtype of `magnitude`.
    """
    dtype, k = magnitude.dtype, jnp.asarray(k).astype(jnp.int32)
    if dtype.itemsize < 4:
        return kth_largest(magnitude.astype(jnp.float32), k).astype(dtype)
    bits = lax.bitcast_convert_type(magnitude, jnp.int64 if dtype.itemsize == 8 else jnp.int32)
    # floats are summed faster, and exactly up to 2^24
    count_dtype = jnp.float32 if magnitude.size < 2**24 else jnp.int32

    def keep(i, found):
        trial = found | (jnp.ones_like(found) << (dtype.itemsize * 8 - 2 - i))
        count = jnp.sum((bits >= trial).astype(count_dtype))
        return jnp.where(count >= k.astype(count_dtype), trial, found)

    # i is an int32 index: in bits' dtype the shift needs no promotion.
    found = lax.fori_loop(
        0, dtype.itemsize * 8 - 1, lambda i, f: keep(i.astype(bits.dtype), f), bits[0] * 0
    )
    return lax.bitcast_convert_type(found, dtype)
