"""[I, F]: a dictionary whose code keeps the signal beside what F makes of it."""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from unrolled._checks import Array, ArrayLike
from unrolled.dictionaries._answers import cuts_atoms, magnitudes, normalized, spectral_norm
from unrolled.dictionaries._base import Dictionary, Rescaled, Structured, column_norms, pytree
from unrolled.dictionaries._conv import Conv
from unrolled.dictionaries._operands import as_dictionary


@pytree(data=("F",))
@dataclass(frozen=True, eq=False, init=False)
class WithIdentity(Structured):
    """[I, F], of shape (m, m + d), where the identity is neither stored nor multiplied.

    Analysis is (r, F'r): with a `Conv` F of as many positions as samples, the channels of a signal
    and the feature maps of F, one after the other, as a dense connection has them.

    Args:
        F: (m, d), plain or structured.

    Raises:
        TypeError, ValueError: as for any dictionary.

    Reference: Zhang, Zhang (2021), the dictionary of MSD-CSC.

    Example:
        >>> D = ur.dictionaries.WithIdentity(jnp.array([[1.0], [2.0]]))
        >>> ur.dictionaries.dense(D).tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]
    """

    F: Dictionary

    def __init__(self, F: Dictionary):
        object.__setattr__(self, "F", as_dictionary(F, "WithIdentity"))

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self.F.shape[-2:]
        return m, m + d

    @property
    def ndim(self) -> int:
        return self.F.ndim

    def synthesize(self, x: Array) -> Array:
        m = self.shape[0]
        return x[:m] + self.F @ x[m:]

    def analyze(self, r: Array) -> Array:
        return jnp.concatenate([r, r @ self.F])

    def scale(self, c: ArrayLike) -> Rescaled:
        return Rescaled(self, jnp.full(self.shape[1], c, self.dtype))

    def normalized(self) -> tuple["WithIdentity", Array]:
        """[I, F] with unit atoms in F, and all norms."""
        F, norms = normalized(self.F)
        return WithIdentity(F), self._after_ones(norms)

    def column_norms(self) -> Array:
        return self._after_ones(column_norms(self.F))

    def spectral_norm(self) -> Array:
        """sqrt(1 + norm(F)^2), exact where the norm of F is."""
        norm = spectral_norm(self.F)
        return jnp.hypot(jnp.ones_like(norm), norm)

    def magnitudes(self) -> "WithIdentity":
        return WithIdentity(magnitudes(self.F))

    @property
    def cuts_atoms(self) -> bool:
        return cuts_atoms(self.F)

    @property
    def groups(self) -> tuple[int, ...]:
        """(channels + filters,) with a `Conv` F, whose maps these are."""
        if not isinstance(self.F, Conv):
            return ()
        return (self.F.signal_grid[0] + self.F.code_grid[0],)

    def spread(self, theta: ArrayLike) -> Array:
        """One value per channel and per filter, repeated over the positions of each."""
        theta = jnp.asarray(theta)
        if not isinstance(self.F, Conv) or theta.shape != self.groups:
            return theta
        channels, samples = self.F.signal_grid[0], math.prod(self.F.signal_shape)
        own = jnp.broadcast_to(theta[:channels, None], (channels, samples)).reshape(-1)
        return jnp.concatenate([own, self.F.spread(theta[channels:])])

    def _after_ones(self, norms: Array) -> Array:
        return jnp.concatenate([jnp.ones(self.shape[0], norms.dtype), norms])
