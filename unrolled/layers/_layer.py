"""What every family is: a record of its options, with a step that the one loop runs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.dictionaries import operands
from unrolled.layers._options import Interned, option
from unrolled.layers._records import Unrolled, check_params, records_of
from unrolled.layers._unroll import unroll
from unrolled.pursuit import State

PRECISIONS = (
    *("highest", "high", "default"),
    *("float32", "tensorfloat32", "bfloat16", "bfloat16_3x"),
)

FAMILIES: dict[str, type["Layer"]] = {}


def as_precision(value: str, name: str, where: str) -> str:
    """Raise ValueError for a precision of products that JAX does not know."""
    if value not in PRECISIONS:
        raise ValueError(
            f"{where}: unknown {name} {value!r}; expected one of {', '.join(PRECISIONS)}"
        )
    return value


class Acting(NamedTuple):
    """What acts in one step, x <- shrink(S x + gamma W'y, theta); None is what the form implies."""

    W: Any  # (m, d)
    gamma: Array | None = None  # () or (d,); None is 1
    S: Array | None = None  # (d, d); None is I - gamma W'D


class Looped(Interned):
    """Options of how the loop over the steps runs; they change no result."""

    precision: str = option(
        default="highest",
        check=as_precision,
        help='of the matrix products; below "highest" the thresholds of the theory may fail',
    )
    unroll: int = option(default=1, least=1, help="steps per turn of the scan")
    remat: bool = option(
        default=False, help="recompute the steps in the backward pass and keep only the states"
    )

    def loop(self, step, params, D, y, state, schedule=None, depth=None) -> tuple[Any, Any]:
        """`unroll` with these options."""
        how = dict(precision=self.precision, unroll=self.unroll, remat=self.remat)
        return unroll(step, params, D, y, state, schedule, depth=depth, **how)


class Layer(Looped):
    r"""A solver cut after K steps: a frozen record of options whose methods are pure functions.

    A family is a subclass. It declares its options as annotated fields, its params as `forms`, and
    defines `init` and `step`; a family whose state is more than the code defines `start` too.
    `apply` and `iterates` follow. Methods act on one signal; `jax.vmap` makes batches. A subclass
    whose name has no leading underscore joins `FAMILIES`, by which files of weights and the command
    line know it.

    Attributes:
        forms: the records that (shared, one step) of the params may be, as `Unrolled` of classes.
        schedule: untrained constants, one per step, scanned beside the params; None if there are
            none.
        weights: `weights(shared, p, D) -> Acting`, what acts in a step; None where there is no such
            form. `compare` measures it against theory, `realize` computes with it.
        from_theory: `from_theory(W, theta) -> params` from weights (m, d) and thresholds (K,) or
            (K, d); None where theory sets no params.
        starts_from_theory: whether `init` already is what theory says.

    Example:
        >>> class landweber(ur.layers.Layer):
        ...     "K gradient steps x <- x + gamma_k D'(y - D x)."
        ...     forms = (ur.layers.Unrolled(None, ur.layers.Step),)
        ...     def init(self, key, D):
        ...         gamma = 1 / ur.dictionaries.spectral_norm(D) ** 2
        ...         return ur.layers.Unrolled(None, ur.layers.Step(jnp.full(self.depth, gamma)))
        ...     def step(self, shared, p, D, y, state):
        ...         return ur.layers.State(state.x + p.gamma * ((y - D @ state.x) @ D))
        >>> layer, D = landweber(3), jnp.eye(2)
        >>> layer.apply(layer.init(None, D), D, jnp.array([1.0, 2.0])).round(3).tolist()
        [1.0, 2.0]
        >>> layer is landweber(3), layer
        (True, landweber(3))
    """

    depth: int = option(kw_only=False, help="K, the number of steps")

    bound = ("apply", "iterates")
    forms: ClassVar[tuple[Unrolled, ...]] = ()
    weights: ClassVar[Callable[..., Acting] | None] = None
    from_theory: ClassVar[Callable[..., Unrolled] | None] = None
    starts_from_theory: ClassVar[bool] = False
    if TYPE_CHECKING:  # families differ in the last argument
        step: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        if cls.init is Layer.init or not hasattr(cls, "step") or cls.__name__.startswith("_"):
            return
        known = FAMILIES.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(
                f"{cls.__module__}.{cls.__name__}: the family {cls.__name__} is that of "
                f"{known.__module__}; choose another name, or one with a leading underscore"
            )
        FAMILIES[cls.__name__] = cls

    @property
    def family(self) -> str:
        """The name of the family."""
        return type(self).__name__

    @property
    def schedule(self) -> tuple[float, ...] | None:
        return None

    def init(self, key: Array | None, D: Any) -> Unrolled:
        """The usual start of the family, from the dictionary."""
        raise NotImplementedError

    def start(self, D: Any, y: Array) -> Any:
        """The state before the first step, a NamedTuple whose `x` is the code: zero."""
        return State(jnp.zeros(D.shape[1], y.dtype))

    def apply(self, params: Unrolled, D: Any, y: Array) -> Array:
        """The code of one signal, (m,) -> (d,)."""
        return self.run(params, D, y)[0].x

    def iterates(self, params: Unrolled, D: Any, y: Array) -> Array:
        """The code after every step, (m,) -> (K, d)."""
        return self.run(params, D, y)[1]

    def run(self, params: Unrolled, D: Any, y: Array) -> tuple[Any, Array]:
        """The last state, and the code after every step."""
        D, y, params = operands(D, y, self.family, params=params)
        self.check(params, D)
        return self.loop(self.step, params, D, y, self.start(D, y), self.schedule, self.depth)

    def check(self, params: Unrolled, D: Any) -> None:
        """Raise where `params` are not for this family, its depth and the shape of D.

        Values are looked at where they are known: a negative threshold is a ValueError. `apply` and
        `iterates` check first; inside of `jit` they see shapes alone.
        """
        check_params(params, D, self.forms, self.depth, self.family)

    @property
    def records(self) -> dict[str, type]:
        """The records of the params by name."""
        return records_of(self.forms)
