"""What soft attention adds to the steps of a transformer, position by position."""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled.dictionaries import Conv
from unrolled.realize._attention import attention_leak, others_on_a_line

# exp(-745) is the last positive one: distances whose weight is zero are not summed.
_UNDERFLOW = 750.0
_FLAT = 1e-6  # concentrations below this have too many other weights to sum


class Leak:
    r"""The operators of the bound, for one dictionary and one concentration of the attention.

    Head tau reads G_tau z in place of z, where the rows of G_tau are masses. If all heads have the
    masses g around their targets, what leaks is spread by g from the sums of the values:

    .. math:: \sum_\tau V_\tau (G_\tau - I) z = (g - \delta) * (V z).

    V z = gamma W'(y - D x) is the update of the layer, much smaller than the sum of |V_tau z|. On a
    line the masses differ from g by those past the border, on a circle for the outermost offsets.

    Args:
        D: the dictionary.
        alpha: concentration of the attention.
    """

    def __init__(self, D: Conv, alpha: float):
        self.D, self.alpha = D, alpha
        self.circular = D.boundary == "circular"
        self.reach = tuple(n - 1 for n in D.kernel)
        self.leak = attention_leak(alpha, len(D.kernel))
        lead = 0 if self.circular else 1
        self.grid = tuple(N + lead * n for N, n in zip(D.signal_shape, self.reach))

    def place(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n_atoms, *positions) on the grid of tokens, zero where no code is."""
        tokens = np.zeros((len(codes), *self.grid))
        tokens[(slice(None), *self._at(1))] = codes
        return tokens

    def signal(self, y: np.ndarray) -> np.ndarray:
        """A signal (m,) on the grid of tokens, (n_channels, *grid)."""
        y = y.reshape(-1, *self.D.signal_shape)
        return np.pad(y, [(0, 0), *((0 if self.circular else n, 0) for n in self.reach)])

    def everywhere(self, most: np.ndarray) -> np.ndarray:
        """The bounds (channels,) at all positions of the grid of tokens."""
        return np.broadcast_to(most.reshape(-1, *[1] * len(self.grid)), (len(most), *self.grid))

    def read(self, V: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """sum_tau V_tau z(q + tau) at every position q that meets a token, (n_atoms, ...)."""
        kernel = np.moveaxis(V, 0, -1).reshape(*V.shape[1:], *(2 * n + 1 for n in self.reach))
        times = 1 if self.circular else 2
        pad = [(0, 0), *((times * n, times * n) for n in self.reach)]
        padded = np.pad(tokens, pad, mode="wrap") if self.circular else np.pad(tokens, pad)
        arguments = jnp.asarray(padded)[None], jnp.asarray(kernel)
        out = lax.conv_general_dilated(*arguments, (1,) * len(self.reach), "VALID")
        return np.array(out)[0]

    def at_codes(self, values: np.ndarray) -> np.ndarray:
        """The part of what `read` returns at the positions of the codes, a view."""
        return values[(slice(None), *self._at(2))]

    def of_update(self, V: np.ndarray, update: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What leaks to the positions of the codes.

        Args:
            V: (heads, n_atoms, channels), magnitudes.
            update: |V z|, as `read` returns V z.
            tokens: |z|, (channels, *grid).
        """
        size = sum(math.log1p(self._others_of_one(n)) for n in update.shape[1:])
        own, lost = math.exp(-size), -math.expm1(-size)  # the masses of g at its target and off it
        spread, total = np.zeros_like(update), update
        for axis in range(1, update.ndim):
            moved = self._moved(axis, total)
            spread, total = spread + moved, total + moved
        return self.at_codes(own * spread + lost * update + self._apart(V, tokens))

    def _at(self, leads: int) -> Iterator[slice]:
        leads = 0 if self.circular else leads
        sizes = zip(self.reach, self.D.positions, self.D.stride)
        return (slice(leads * n, leads * n + (p - 1) * t + 1, t) for n, p, t in sizes)

    def _others_of_one(self, size: int) -> float:
        """The masses of g off its target along one dimension, relative to that of the target."""
        return float(self._others(size)[0].sum() if self.circular else 2 * self._tail(0))

    def _others(self, size: int) -> np.ndarray:
        """exp(-alpha u^2) at the distances u of two positions, 0 for u = 0."""
        u = np.abs(np.arange(size)[:, None] - np.arange(size))
        u = np.minimum(u, size - u) if self.circular else u
        return np.where(u == 0, 0, self._mass(u))

    def _moved(self, axis: int, values: np.ndarray) -> np.ndarray:
        """What the other positions along an axis of `values` add, relative to their own mass."""
        others = self._others(values.shape[axis])
        return np.moveaxis(np.tensordot(others, values, (1, axis)), 0, axis)

    def _apart(self, V: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What is added where the masses of a head are not those of g."""
        if self.circular:
            most = tokens.reshape(len(tokens), -1).max(1)
            added = np.einsum("hoc,c,h->o", V, most, self._distances())
            return added.reshape(-1, *[1] * len(self.reach))
        more, total = np.zeros(self.grid), tokens
        for axis, size in enumerate(self.grid):
            i = np.arange(size)
            gone = self._tail(i) + self._tail(size - 1 - i)  # past the two borders
            inside = 1 + self._others(size).sum(1)
            more = more + np.log1p(gone / inside).reshape(
                [-1 if a == axis else 1 for a in range(more.ndim)]
            )
            total = total + self._moved(axis + 1, total)
        return self.read(V, np.expm1(more) * (1 - self.leak) * total)

    def _mass(self, u: np.ndarray) -> np.ndarray:
        """exp(-alpha u^2)."""
        with np.errstate(over="ignore"):  # to exp(-inf) = 0
            return np.exp(-self.alpha * u.astype(float) ** 2)

    def _tail(self, i: np.ndarray | int) -> np.ndarray:
        """The sum of exp(-alpha u^2) over u > i."""
        if self.alpha < _FLAT:
            terms = self._mass(np.arange(1, np.max(i) + 1))
            return others_on_a_line(self.alpha) / 2 - np.append(0.0, np.cumsum(terms))[i]
        last = math.ceil(math.sqrt(_UNDERFLOW / self.alpha)) + 1
        terms = self._mass(np.arange(last + 1))
        sums = np.append(np.cumsum(terms[::-1])[::-1], 0.0)
        return sums[np.minimum(np.asarray(i) + 1, last + 1)]

    def _distances(self) -> np.ndarray:
        """The l1 distance of the masses of every head on a circle from g, (heads,).

        The offsets of a head go from 0 to N - 1, not to both sides of its target.
        """
        distance = np.zeros([2 * n + 1 for n in self.reach])
        for axis, (n, N) in enumerate(zip(self.reach, self.D.signal_shape)):
            u = np.abs(np.arange(N)[None] - (np.arange(-n, n + 1) % N)[:, None])
            line, circle = (self._mass(d) for d in (u, np.minimum(u, N - u)))
            line[u == 0], circle[u == 0] = 0, 0
            S, C = line.sum(1, keepdims=True), circle.sum(1, keepdims=True)
            own = np.abs(S - C) / ((1 + S) * (1 + C))
            off = own[:, 0] + np.abs(line / (1 + S) - circle / (1 + C)).sum(1)
            distance = distance + off.reshape(
                [-1 if a == axis else 1 for a in range(distance.ndim)]
            )
        return distance.reshape(-1)


def errors_of_signal(
    D: Conv, V: np.ndarray, theta: np.ndarray, alpha: float, y: np.ndarray
) -> np.ndarray:
    r"""Bounds on the error after every block for one signal, (K + 1,), the largest over its code.

    .. math::
        \Delta_k = |T_k| e_k + |g - \delta| * |V_k z_k| + 2 \, leak \, |V_{k,x}| \max e_k + \dots,
        \qquad e_{k+1} = \Delta_k \text{ where } |u_k| + \Delta_k > \theta_k, \text{ else } 0.

    Args:
        D: the dictionary.
        V: (K, heads, n_atoms, n_atoms + n_channels), the values of the heads.
        theta: (K, 1 or n_atoms).
        alpha: concentration of the attention.
        y: (m,).
    """
    leak, n_atoms = Leak(D, alpha), V.shape[-2]
    # The head that reads the target's own position also carries the identity in x + ...
    here = np.zeros(V.shape[1:])
    here[len(here) // 2, :, :n_atoms] = np.eye(n_atoms)
    x, e, y, errors = np.zeros(D.code_grid), np.zeros(D.code_grid), leak.signal(y), [0.0]
    for values, t in zip(V, theta.reshape(len(V), -1, *[1] * (x.ndim - 1))):
        size, tokens = np.abs(values), np.concatenate([leak.place(x), y])
        update = leak.read(values, tokens)
        u = x + leak.at_codes(update)
        most = leak.everywhere(e.reshape(n_atoms, -1).max(1))
        moved = leak.read(np.abs(values + here)[..., :n_atoms], leak.place(e))
        again = 2 * leak.leak * leak.read(size[..., :n_atoms], most)
        delta = leak.at_codes(moved + again) + leak.of_update(size, np.abs(update), np.abs(tokens))
        # Both codes are 0 where neither argument exceeds the threshold.
        e = np.where(np.abs(u) + delta > t, delta, 0)
        x = np.sign(u) * np.maximum(np.abs(u) - t, 0)
        errors.append(float(e.max()))
    return np.array(errors)
