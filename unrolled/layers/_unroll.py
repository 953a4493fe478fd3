"""The one loop that turns a step into a network of K layers, and the record that every family is."""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import by_name
from unrolled.dictionaries import Structured, operands

PRECISIONS = ("highest", "high", "default", "float32", "tensorfloat32", "bfloat16", "bfloat16_3x")


class Unrolled(NamedTuple):
    """Parameters of K steps: `shared` by all of them (None if there are none), and one set per
    step.

    `steps` is a NamedTuple whose leaves lead with K, run as one scan, or a plain tuple of K
    NamedTuples, run as a Python loop: the form for a single signal, where a scan would copy each
    step's weights. `stack` and `unstack` go between. None stands for steps that share everything.
    """

    shared: Any
    steps: Any


class Fixed(NamedTuple):
    """Shared weights that training leaves alone (ALISTA)."""

    W: Any  # (m, d)


class Weights(NamedTuple):
    """Shared weights that are trained."""

    W: Any  # (m, d)


class Layer(NamedTuple):
    """A solver cut after K steps, as pure functions of one signal; `jax.vmap` makes batches.

    Attributes:
        init: `init(key, D) -> params`, the family's usual start.
        start: `start(D, y) -> state`, a pytree whose `.x` is the code.
        step: `step(shared, step_params, D, y, state) -> state`; with a `schedule` its entry comes
            last.
        apply: `apply(params, D, y) -> x`, (d,).
        iterates: `iterates(params, D, y) -> (K, d)`, the code after every step.
        schedule: untrained constants, one per step, scanned beside the params; None if there are
            none.
    """

    init: Callable
    start: Callable
    step: Callable
    apply: Callable
    iterates: Callable
    schedule: tuple | None = None


def unroll(
    step: Callable,
    params: Unrolled,
    D,
    y: Array,
    state: Any,
    schedule: tuple | None = None,
    *,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
    depth: int | None = None,
) -> tuple[Any, Array]:
    """Run K steps from `state`: state <- step(params.shared, params.steps[k], D, y, state).

    Args:
        step, params, D, y, state, schedule: as in `Layer`.
        precision: of the products; below "highest" the thresholds of the theory may fail.
        unroll: steps per turn of the scan.
        remat: recompute the steps in the backward pass and keep only the states.
        depth: K, where params.steps is None: nothing differs between the steps.

    Returns:
        the last state, and the codes after every step, (K, d).
    """
    if remat:
        step = jax.checkpoint(step)

    def body(state, leaves):
        step_params, constant = leaves
        constants = () if constant is None else (constant,)
        state = step(params.shared, step_params, D, y, state, *constants)
        return state, state.x

    with jax.default_matmul_precision(precision):
        if type(params.steps) is not tuple:
            constants = None if schedule is None else jnp.asarray(schedule, jnp.float32)
            length = depth if params.steps is None else _depth(params.steps)
            return lax.scan(body, state, (params.steps, constants), length=length, unroll=unroll)
        codes = []
        for step_params, constant in zip(params.steps, schedule or (None,) * len(params.steps)):
            state, x = body(state, (step_params, constant))
            codes.append(x)
    return state, jnp.stack(codes) if codes else jnp.zeros((0, *state.x.shape), state.x.dtype)


def make_layer(
    where: str,
    depth: int,
    forms: tuple,
    init: Callable,
    start: Callable,
    step: Callable,
    schedule=None,
    **options,
) -> Layer:
    """A `Layer` of `depth` steps from its `init`, `start` and `step`.

    `forms` are the pairs of field names that (shared, one step) of its params may have; `options`
    are those of `unroll`.
    """

    def run(params, D, y):
        D, y, params = operands(D, y, where, params=params)
        check_params(params, D, depth, where, forms)
        return unroll(step, params, D, y, start(D, y), schedule, depth=depth, **options)

    def apply(params, D, y):
        return run(params, D, y)[0].x

    def iterates(params, D, y):
        return run(params, D, y)[1]

    return Layer(init, start, step, apply, iterates, schedule)


def factory(build: Callable) -> Callable:
    """Check the options of a layer factory and cache it, so that equal arguments give the same
    Layer.

    A Layer is compared by identity: the cache is what keeps `jit` from retracing for a layer made
        twice.
    """
    where, signature = build.__name__, inspect.signature(build)
    cached = functools.lru_cache(maxsize=256)(build)

    @functools.wraps(build)
    def make(*args, **options):
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{where}: {error}") from error
        bound.apply_defaults()
        chosen = bound.arguments
        chosen["depth"] = _checks.as_index(chosen["depth"], "depth", where)
        chosen["unroll"] = _checks.as_index(chosen["unroll"], "unroll", where, least=1)
        check_precision(chosen["precision"], where)
        for name in {"probability", "variance", "noise", "threshold"} & set(chosen):
            chosen[name] = float(chosen[name])
        for name in {"lam", "theta", "alpha", "gain"} & set(chosen):
            chosen[name] = float(chosen[name])
            _checks.nonnegative(chosen[name], name, where)
        if isinstance(chosen.get("support"), list | np.ndarray):
            chosen["support"] = tuple(chosen["support"])
        if "activation" in chosen:
            chosen["activation"] = _checked_activation(chosen["activation"], where)
        return cached(*bound.args, **bound.kwargs)

    return make


def check_precision(precision: str, where: str) -> None:
    """Raise ValueError for a name that JAX does not know."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"{where}: unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}"
        )


def stack(params: Unrolled) -> Unrolled:
    """Steps as one NamedTuple with leading K (for a scan), from a tuple of K NamedTuples."""
    if type(params.steps) is not tuple:
        return params
    if not params.steps:
        raise ValueError("stack: there are no steps to stack")
    return Unrolled(params.shared, jax.tree.map(lambda *leaves: jnp.stack(leaves), *params.steps))


def unstack(params: Unrolled) -> Unrolled:
    """Steps as a tuple of K NamedTuples (for a Python loop), from one with leading K; call it
    outside jit.
    """
    if type(params.steps) is tuple or params.steps is None:
        return params
    K = _depth(params.steps)
    return Unrolled(
        params.shared, tuple(jax.tree.map(operator.itemgetter(k), params.steps) for k in range(K))
    )


def check_params(params: Unrolled, D, depth: int, where: str, forms: tuple) -> None:
    """Raise if `params` are not for `depth` steps or not for the shape of D, or if a known
    threshold is negative.
    """
    if not isinstance(params, Unrolled):
        raise TypeError(
            f"{where}: params must be Unrolled(shared, steps), got {type(params).__name__}"
        )
    stacked = type(params.steps) is not tuple
    parts = (params.shared, params.steps if stacked else next(iter(params.steps), None))
    form = tuple(getattr(part, "_fields", ()) for part in parts)
    if form not in forms and depth:
        got, expected = (" or ".join(map(str, some)) for some in ([form], forms))
        raise TypeError(
            f"{where}: params have the fields {got}; expected {expected} in (shared, steps): another family?"
        )
    if params.steps is None:
        lengths = {depth}
    elif stacked:
        lengths = {
            leaf.shape[0] if leaf.ndim else 0
            for leaf in map(jnp.asarray, jax.tree.leaves(params.steps))
        }
    else:
        lengths = {len(params.steps)}
    if lengths != {depth}:
        raise ValueError(
            f"{where}: params have {sorted(lengths)} steps but the layer has depth {depth}"
        )
    _check_fields(params.shared, D, 0, where)
    for part in (params.steps,) if stacked else params.steps:
        _check_fields(part, D, int(stacked), where)


def _check_fields(part, D, lead: int, where: str) -> None:
    """Shapes of the fields that have a name of the glossary, after `lead` axes for the steps."""
    m, d = D.shape
    per_filter = [D.code_grid[:1]] if hasattr(D, "code_grid") else []
    matrices = {
        "W": (m, d),
        "B": (m, d),
        "S": (d, d),
        "M": (d, d),
        "P": (m, m),
        "Q": (m, m),
        "leverage": (d,),
    }
    expected = {name: [shape] for name, shape in matrices.items()} | {
        "theta": [(), (d,), *per_filter]
    }
    expected |= dict.fromkeys(("gamma", "alpha", "gain", "slope", "overshoot"), [(), (d,)])
    expected |= dict.fromkeys(("threshold", "momentum", "selection", "mu_W"), [()])
    for name in getattr(part, "_fields", ()):
        value = getattr(part, name)
        if hasattr(value, "_fields"):  # what theory gives, inside of what is learned
            _check_fields(value, D, lead, where)
            continue
        shape = value.shape if isinstance(value, Structured) else np.shape(value)[lead:]
        if shape not in expected.get(name, [shape]):
            hint = " Were the params made for another dictionary?" if name in matrices else ""
            raise ValueError(
                f"{where}: {name} has shape {shape} at a step; expected one of {expected[name]}.{hint}"
            )
    if hasattr(part, "theta"):
        _checks.nonnegative(part.theta, "theta", where)


def magnitude(v: Array) -> Array:
    """abs(v), with derivative 1 at 0 where `jnp.abs` has 0: what starts at 0 can move."""
    return jnp.where(v >= 0, v, -v)


def _checked_activation(activation, where: str) -> Callable:
    rho = by_name(activation)
    probe = jax.ShapeDtypeStruct((3,), np.float32)
    out = jax.eval_shape(rho, probe)
    if getattr(out, "shape", None) != probe.shape or out.dtype != probe.dtype:
        raise ValueError(
            f"{where}: activation {rho} maps float32 (3,) to {out}; expected the same shape and dtype"
        )
    return rho


def _depth(steps) -> int:
    return jax.tree.leaves(steps)[0].shape[0]
