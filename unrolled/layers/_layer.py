"""The base class of all families: a record of options, and a step that one loop repeats.

The `Recipe` of a family says how to start and train a layer of the family if codes are known.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, Key, checked
from unrolled.dictionaries import Dictionary
from unrolled.layers import _records
from unrolled.layers._records import Unrolled
from unrolled.pursuit import State, lasso_objective
from unrolled.records import Interned, option

__all__ = ["Acting", "FAMILIES", "Law", "Layer", "Looped", "Prepared", "Recipe", "unroll"]


# The share of entries that support selection lets pass, in units of the share of nonzeros: k times
# the first number in step k, and at most the second number.
_PER_STEP, _MOST = 0.12, 1.3
# The square or the inverse of a variance outside these bounds overflows or underflows in float32.
_RANGE = 1e-18, 1e18
# The probability that a recipe passes for codes without zeros; the option must be below 1.
_ALMOST_ALL = 0.999


class Law(NamedTuple):
    """The properties of codes and noise that a recipe uses.

    Example:
        >>> law = ur.layers.Law(probability=0.1, variance=1.0, noise=0.0, signal=0.2, atoms=500)
        >>> law.support, law.sparsity
        ((0.012, 0.13), 50)
    """

    probability: float  # share of the entries that are not zero
    variance: float  # mean square of the nonzero entries
    noise: float  # mean square of the noise in an entry of y
    signal: float  # mean square of an entry of y
    atoms: int  # d
    unit: float = 1.0  # mean square of the norms of the atoms

    @property
    def support(self) -> tuple[float, float]:
        """The option `support`, which is proportional to the share of nonzeros."""
        return tuple(  # type: ignore[return-value]
            min(1.0, _two_digits(per * self.probability)) for per in (_PER_STEP, _MOST)
        )

    @property
    def sparsity(self) -> int:
        """The mean number of nonzeros of a code, at least 1."""
        return max(1, round(self.probability * self.atoms))

    @property
    def prior(self) -> dict[str, float]:
        """The options of families for Bernoulli-Gaussian codes: `probability` and `variance`.

        Raises:
            ValueError: float32 cannot represent the variance.
        """
        if not _RANGE[0] <= self.variance <= _RANGE[1]:
            raise ValueError(
                f"prepare: the nonzeros have the variance {self.variance:g}, which float32 does "
                "not hold; divide signals and codes by one number"
            )
        return {"probability": min(self.probability, _ALMOST_ALL), "variance": self.variance}

    def lams(self, *shares: float) -> tuple[float, ...]:
        """Weights of a LASSO: each of `shares` times the entry of D'y due to a single atom."""
        size = self.unit * math.sqrt(self.variance)
        return tuple(_two_digits(share * size) for share in shares)


def _two_digits(option: float) -> float:
    """Round an option to two digits, so that samples of one law have equal options and programs."""
    return float(f"{option:.2g}")


def _no_options(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _nothing(law: Law) -> dict[str, tuple]:
    return {}


def selecting(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The option `support` of families with support selection."""
    return {"support": law.support}


def penalties(law: Law) -> dict[str, tuple[float, ...]]:
    """Values of lam to try, for families whose only option for the codes is lam."""
    return {"lam": law.lams(0.02, 0.05, 0.1, 0.2, 0.3, 0.4)}


def judging(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A very small lam, so that the layer returns the code with the least residual."""
    return {"lam": law.lams(0.02)[0]}


def untied(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The option `tied` of families whose steps may share their weights."""
    return {"tied": False}


def selecting_untied(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of families with support selection whose steps may share their weights."""
    return untied(law, chosen) | selecting(law, chosen)


class Recipe(NamedTuple):
    """How to start and train a layer of a family if codes are known; see `training.by_recipe`.

    Attributes:
        rate: learning rate of Adam, which falls to zero along a cosine; with rate 0 there is no
            training.
        steps: number of training steps.
        options: `options(law, chosen) -> dict`, the options that follow from the law of the codes.
            The options in `chosen` replace these options.
        tried: `tried(law) -> {option: values}`, the values to try. `by_recipe` trains a layer for
            each value and keeps the layer with the least error on the validation signals.
        searched: for each field of the shared params, multiples of its initial value. A grid search
            chooses one of these multiples.
        calibrated: whether `analytic.calibrate` sets thresholds and step sizes before training.
        weighted: whether the params before training have weights in closed form, from
            `Layer.from_weights`. If there is noise, `prepare` chooses the ridge with the least
            error on the validation signals.
        damped: for steps with weights W, factors by which W times `stable_step` is multiplied. If
            the error before training is above the error of ISTA, `prepare` calibrates with each
            factor and keeps the params with the least error on the validation signals.
        without_codes: the learning rates that `training.unsupervised` tries if codes are not known,
            in the units of `Layer.param_units`; () for a family that it does not train.

    Example:
        >>> ur.layers.lamp.recipe.rate, ur.layers.ista.recipe.rate
        (0.0001, 0)
    """

    rate: float = 1e-3
    steps: int = 400
    options: Callable[[Law, Mapping[str, Any]], Mapping[str, Any]] = _no_options
    tried: Callable[[Law], Mapping[str, tuple]] = _nothing
    searched: Mapping[str, tuple[float, ...]] = {}
    calibrated: bool = False
    weighted: bool = False
    damped: tuple[float, ...] = ()
    without_codes: tuple[float, ...] = ()


@checked
def unroll(
    step: Callable[..., Any],
    params: Unrolled,
    D: Any,
    y: Array,
    state: Any,
    schedule: tuple[float, ...] | None = None,
    *,
    precision: str = "highest",
    unroll: int = 1,
    remat: bool = False,
    depth: int | None = None,
) -> tuple[Any, Any]:
    """Run K steps from `state`: state <- step(params.shared, params.steps[k], D, y, state).

    Call `unroll` inside `jit`. Outside of `jit`, every call compiles the scan again.

    Args:
        step: the function for one step; with a `schedule`, entry k of the schedule is the last
            argument.
        params: the params; stacked steps run as one scan, and a tuple of steps runs as a Python
            loop (see `Unrolled`).
        D, y: the arguments D and y of `step`.
        state: the state to start from; `state.x` is the code.
        schedule: constants that are not trained, one per step.
        precision: precision of the matrix products. At precisions below "highest", the guarantees
            of thresholds from theory may fail.
        unroll: number of steps in one turn of the scan.
        remat: whether to store only the states of the forward pass and to recompute each step in
            the backward pass.
        depth: K, needed only if params.steps is None.

    Returns:
        The last state, and the code after every step, (K, d).

    Raises:
        TypeError: D has a leaf that is not an array, or a state has no code x.
        ValueError: the precision is unknown, or the schedule does not have one entry per step.

    Example:
        >>> def step(shared, p, D, y, state):
        ...     return ur.layers.State(state.x + p.gamma * ((y - D @ state.x) @ D))
        >>> params = ur.layers.Unrolled(None, ur.layers.Step(jnp.ones(3)))
        >>> D, y = jnp.eye(2), jnp.array([1.0, 2.0])
        >>> state, codes = ur.layers.unroll(step, params, D, y, ur.layers.State(jnp.zeros(2)))
        >>> codes.shape
        (3, 2)
    """
    checks.arrays(D, "D", "unroll")
    checks.has(state, "x", "a State, whose x is the code", "state", "unroll")
    checks.one_of(precision, PRECISIONS, "precision", "unroll")
    length = _n_steps(params.steps, depth)
    if schedule is not None and length not in (None, len(schedule)):
        raise ValueError(
            f"unroll: schedule has {len(schedule)} entries; expected {length}, one per step"
        )
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
            leaves = params.steps, constants
            return programs.scan(body, state, leaves, length=length, unroll=unroll)
        codes = []
        for step_params, constant in zip(params.steps, schedule or (None,) * len(params.steps)):
            state, x = body(state, (step_params, constant))
            codes.append(x)
    if codes:
        return state, jax.tree.map(lambda *after: jnp.stack(after), *codes)
    return state, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), state.x)


def _n_steps(steps: Any, depth: int | None) -> int | None:
    if type(steps) is tuple:
        return len(steps)
    return depth if steps is None else _records.depth_of(steps)


PRECISIONS = (
    *("highest", "high", "default"),
    *("float32", "tensorfloat32", "bfloat16", "bfloat16_3x"),
)

# A param that `from_weights` sets and that calibration replaces.
_THRESHOLD = 0.1

# The families by their names, for weights files and the command line.
FAMILIES: dict[str, type["Layer"]] = {}


class Acting(NamedTuple):
    """The W, gamma and S of a step x <- shrink(S x + gamma W'y, theta)."""

    W: Any  # (m, d)
    gamma: Array | None = None  # () or (d,); None stands for 1
    S: Array | None = None  # (d, d); None stands for I - gamma W'D


def unchanged(codes: Array) -> Array:
    """The codes themselves."""
    return codes


class Prepared(NamedTuple):
    """The params and the D on which the steps of a layer compute; see `Layer.prepare`."""

    params: Unrolled  # of the layer, in the order of the prepared D
    D: Any  # a dictionary, or anything that `start` and `step` of the family take in its place
    restore: Callable[[Array], Array] = unchanged  # codes (..., d) of D from codes of the steps


def least(new: tuple, old: tuple) -> tuple:
    """Of two tuples (objective, array, ...), the tuple with the smaller objective.

    The new tuple wins a tie and replaces an old objective that is not finite, so that the code of a
    signal that is not finite is not finite.
    """
    keeps = ~(new[0] <= old[0]) & jnp.isfinite(old[0])
    return tuple(jnp.where(keeps, before, now) for before, now in zip(old, new))


class Looped(Interned):
    """A record with the options for the speed, memory and precision of the loop over the steps.

    Args:
        precision: precision of the matrix products; below "highest" the guarantees of thresholds
            from theory may fail.
        unroll: number of steps in one turn of the scan.
        remat: keep only the states of the forward pass, and recompute each step in the backward
            pass.

    Example:
        >>> D = jnp.eye(2)
        >>> fast, plain = ur.alista(4, unroll=4, remat=True), ur.alista(4)
        >>> params = plain.init(None, D)
        >>> bool(jnp.allclose(fast.apply(params, D, D[0]), plain.apply(params, D, D[0])))
        True
    """

    precision: str = option(default="highest", choices=PRECISIONS)
    unroll: int = option(default=1, least=1)
    remat: bool = option(default=False)

    def loop(self, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """Call `layers.unroll` with these arguments and the options of the record."""
        options |= dict(precision=self.precision, unroll=self.unroll, remat=self.remat)
        return unroll(*arguments, **options)


class Layer(Looped):
    r"""A solver cut after K steps: a frozen record of options whose methods are pure functions.

    A family is a subclass. The subclass declares its options as annotated fields and its params as
    `forms`, and defines `init` and `step`. If the state holds more than the code, the subclass also
    defines `start`. The base class derives `apply` and `iterates` from these methods. All methods
    take one signal; use `jax.vmap` for batches. A subclass whose name has no leading underscore
    joins `FAMILIES`; weights files and the command line find families there by their names. A
    subclass without `init` or without `step` is a base class of families and needs no `forms`.

    With a `guard`, the code after step k is the code among x_0 = 0, ..., x_k that has the least
    LASSO objective with the guard as weight. Hence no code has a larger objective than the zero
    code, whatever the params and the signal. The guard adds one product with D per step and does
    not change the steps. The certificates and predictions of `theory` and the functions of
    `realize` refuse guarded layers, because the theorems bound the code of the last step.

    Attributes:
        forms: the possible classes of `shared` and of one step in the params, as a tuple of
            `Unrolled(shared class, step class)`.
        schedule: constants that are not trained, one per step, which are scanned together with the
            params; or None.
        weights: `weights(shared, p, D) -> Acting`, the W, gamma and S of the step with params p;
            None for a family without weights. `compare` compares these weights with theory,
            `theory.certify` bounds the error with these weights, and `realize` builds networks from
            these weights.
        from_theory: `from_theory(W, theta) -> params`, the params with weights W, (m, d), and
            thresholds theta, (K,) or (K, d); None for a family without params from theory.
        message_passing: `message_passing() -> theory.MessagePassing | None`, the facts about the
            steps that `theory.state_evolution` needs; None for a family that state evolution does
            not cover.
        starts_from_theory: whether `init` returns the params from theory.
        recipe: the `Recipe` of the family, for `training.by_recipe`.

    Args:
        depth: K, the number of steps.
        guard: weight of a LASSO; the layer then returns the code of least objective among all steps
            and the zero code (default: no guard).

    Example:
        >>> class _landweber(ur.layers.Layer):  # a leading underscore: an example, not a family
        ...     "K gradient steps x <- x + gamma_k D'(y - D x)."
        ...     forms = (ur.layers.Unrolled(None, ur.layers.Step),)
        ...     def init(self, key, D):
        ...         gamma = 1 / ur.dictionaries.spectral_norm(D) ** 2
        ...         return ur.layers.Unrolled(None, ur.layers.Step(jnp.full(self.depth, gamma)))
        ...     def step(self, shared, p, D, y, state):
        ...         return ur.layers.State(state.x + p.gamma * ((y - D @ state.x) @ D))
        >>> layer, D = _landweber(3), jnp.eye(2)
        >>> layer.apply(layer.init(None, D), D, jnp.array([1.0, 2.0])).round(3).tolist()
        [1.0, 2.0]
        >>> layer is _landweber(3), layer
        (True, _landweber(3))

        The codes with steps that are too long, without and with a guard:

        >>> wild = ur.layers.Unrolled(None, ur.layers.Step(jnp.full(3, 4.0)))
        >>> [made.apply(wild, D, D[0]).tolist() for made in (layer, _landweber(3, guard=0.1))]
        [[28.0, 0.0], [0.0, 0.0]]
    """

    depth: int = option(kw_only=False, most=checks.DEEPEST)
    guard: float | None = option(default=None, least=0)

    bound = ("apply", "iterates")
    forms: ClassVar[tuple[Unrolled, ...]] = ()
    weights: ClassVar[Any] = None
    from_theory: ClassVar[Any] = None
    message_passing: ClassVar[Any] = None
    starts_from_theory: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = Recipe()
    if TYPE_CHECKING:  # the last argument depends on the family
        step: ClassVar[Callable[..., Any]]

    else:

        def step(self, shared, p, D, y, state):
            """The state after a step with params p; a `schedule` adds its entry as an argument."""
            raise NotImplementedError

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        if "is_coupled" in vars(cls) and not hasattr(cls, "shrink"):
            raise TypeError(
                f"{cls.__name__}: is_coupled is for families that shrink; expected a subclass of "
                "layers.Coupled, or of layers.Shrinking"
            )
        if cls.init is not Layer.init and cls.step is not Layer.step:
            _records.check_forms(cls.forms, cls.__name__)
            checks.register(FAMILIES, cls, "family")
            if FAMILIES.get(cls.__name__) is cls:
                for record in _records.records_of(cls.forms).values():
                    programs.exportable(record)

    @property
    def family(self) -> str:
        """The name of the family."""
        return type(self).__name__

    @property
    def is_coupled(self) -> bool:
        """Whether steps are x <- shrink(x + gamma W'(y - D x), theta), the form of the theorems.

        `Coupled` overrides this property. A family that overrides this property must have the
        `shrink` and `activation` of `Shrinking`.
        """
        return False

    @property
    def takes_parts(self) -> bool:
        """Whether the steps treat a part of a code like an entry; see `Shrinking`."""
        return False

    @property
    def schedule(self) -> tuple[float, ...] | None:
        """Constants that are not trained, one per step, or None."""
        return None

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        """The usual initial params for this dictionary."""
        raise NotImplementedError

    def from_weights(self, key: Key | None, W: Dictionary, D: Dictionary) -> Unrolled:
        """Params to calibrate or to train, with the weights W in closed form, (m, d).

        By default `from_theory` makes these params, or `init` if the family makes its own weights.
        """
        if self.from_theory is None:
            return self.init(key, D)
        return self.from_theory(W, jnp.full(self.depth, _THRESHOLD, D.dtype))

    def param_units(self, start: Unrolled, signal: float, atom: float) -> Unrolled:
        """The units of the params, a tree prefix of the initial params `start`.

        `training.unsupervised` multiplies its learning rates by these units. By default the units
        follow from the roles of the fields and from the mean norms `signal` and `atom`; all units
        are 1 if both norms are 1.
        """
        numbers = {_records.THRESHOLD: signal / atom, _records.RELATIVE: 1 / atom}
        return _records.by_role(
            start, numbers | {_records.STEP_SIZE: atom**-2, _records.WEIGHTS: 1 / atom}
        )

    def thresholds(self, params: Unrolled) -> np.ndarray | None:
        """The mean threshold of each step of stacked params, (K,); None without thresholds."""
        return _records.mean_thresholds(params.steps)

    def prepare(self, params: Unrolled, D: Dictionary) -> Prepared:
        """What the steps need and does not depend on the signal, computed once for all steps.

        `start` and `step` get `Prepared.D` and the shared params of `Prepared.params`; the params
        of the steps must stay as they are, because calibration changes them from step to step. By
        default nothing changes.
        """
        return Prepared(params, D)

    def start(self, D: Any, y: Array) -> Any:
        """The state before the first step: a NamedTuple whose `x` is the zero code."""
        return State(jnp.zeros(D.shape[1], y.dtype))

    def apply(self, params: Unrolled, D: Dictionary, y: ArrayLike) -> Array:
        """The code of one signal, (m,) -> (d,)."""
        return self.run(params, D, y)[0].x

    def iterates(self, params: Unrolled, D: Dictionary, y: ArrayLike) -> Array:
        """The code of one signal after every step, (m,) -> (K, d)."""
        return self.run(params, D, y)[1]

    def encode(
        self, D: Dictionary, Y: Any, params: Any = None, *, mask: ArrayLike | None = None
    ) -> Array:
        """The codes of many signals, (signals, m) -> (signals, d), by one compiled program.

        Args:
            params: None takes `init(None, D)`.
            mask: bools, in the shape of Y or of one signal, True where an entry is known. The codes
                then fit only the known entries; unknown entries of Y may be NaN.

        Raises:
            TypeError, ValueError: as in `check` and `apply`, or the mask does not fit Y.

        Example:
            >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
            >>> Y, _ = ur.problems.sampler(D, batch=5)(jax.random.key(1))
            >>> ur.layers.bcd(8, lam=0.1).encode(D, Y).shape
            (5, 40)
        """
        D = dictionaries.as_dictionary(D, self.family)
        params = self.init(None, D) if params is None else params
        self.check(params, D)
        if mask is None:
            return codes_of(self, params, D, Y)
        Y, shown = dictionaries.as_flat(D, Y, 1)
        own, Y = dictionaries.known_part(
            D, Y, dictionaries.known_entries(D, mask, len(Y), self.family)
        )
        codes = codes_of(self, params, own, Y)
        return codes if shown is None else shown(codes)

    def run(self, params: Unrolled, D: Dictionary, y: ArrayLike) -> tuple[Any, Array]:
        """The last state, and the code after every step."""
        y, shown = dictionaries.as_flat(D, y)
        D, y, params = dictionaries.operands(D, y, self.family, params=params)
        self.check(params, D)
        state, path = _run(self, params, D, y)
        return (state, path) if shown is None else (state._replace(x=shown(state.x)), shown(path))

    def check(self, params: Unrolled, D: Dictionary) -> None:
        """Raise unless `params` are of this family and depth and fit the shape of D.

        The check includes values that are not traced: a negative threshold raises ValueError.
        `apply` and `iterates` call `check` first. Inside `jit`, `check` sees only shapes.
        """
        D = dictionaries.as_dictionary(D, self.family)
        if not self.takes_parts:
            dictionaries.refuse_parts(D, self.family, "try layers.alista or lista_cp")
        _records.check_params(params, D, self.forms, self.depth, self.family)

    @property
    def records(self) -> dict[str, type]:
        """The classes of records in the params, by their names."""
        return _records.records_of(self.forms)


@partial(jax.jit, static_argnames="model")
def codes_of(model: Any, params: Any, D: Any, Y: Array) -> Any:
    """The last codes of a layer or a network; the codes of all steps take up to twice the time."""
    return jax.vmap(model.apply, (None, dictionaries.signal_axes(D), 0))(params, D, Y)


@partial(jax.jit, static_argnames="layer")
def codes_after(K: Any, layer: Layer, params: Any, D: Any, Y: Array) -> Any:
    """The codes after the first K steps of a layer without guard; one program for all K."""

    def code(D: Any, y: Array) -> Array:
        own, y, p = dictionaries.operands(D, y, layer.family, params=params)
        with jax.default_matmul_precision(layer.precision):
            ready = layer.prepare(p, own)

            def step(k: Any, state: Any) -> Any:
                p = jax.tree.map(lambda leaf: leaf[k], ready.params.steps)
                return layer.step(ready.params.shared, p, ready.D, y, state)

            return ready.restore(jax.lax.fori_loop(0, K, step, layer.start(ready.D, y)).x)

    return jax.vmap(code, (dictionaries.signal_axes(D), 0))(D, Y)


# Compiled once per layer and shape, because every call of an eager scan would compile it again.
@programs.on_auto_axes
@partial(jax.jit, static_argnums=0)
def _run(layer: Layer, params: Unrolled, D: Any, y: Array) -> tuple[Any, Array]:
    with jax.default_matmul_precision(layer.precision):
        ready = layer.prepare(params, D)
        start = layer.start(ready.D, y)
    loop = partial(layer.loop, depth=layer.depth, schedule=layer.schedule)
    if layer.guard is None:
        state, path = loop(layer.step, ready.params, ready.D, y, start)
        return state._replace(x=ready.restore(state.x)), ready.restore(path)
    guarded = _Guarded(start, jnp.sum(y * (y / 2)), ready.restore(start.x))

    def step(shared: Any, p: Any, at: Any, y: Array, guarded: _Guarded, *constants: Any) -> Any:
        state = layer.step(shared, p, at, y, guarded.state, *constants)
        x = ready.restore(state.x)
        value = lasso_objective(D, y, x, layer.guard)  # type: ignore[arg-type]  # not None
        return _Guarded(state, *least((value, x), guarded[1:]))

    guarded, path = loop(step, ready.params, ready.D, y, guarded)
    return guarded.state._replace(x=guarded.x), path


class _Guarded(NamedTuple):
    """The state of a layer, and the code with the least LASSO objective so far."""

    state: Any
    value: Array  # the objective of x
    x: Array  # (d,)
