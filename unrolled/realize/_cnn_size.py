"""How deep a realization is and how many weights it has, before it is built."""

from typing import NamedTuple

from unrolled import _checks
from unrolled.realize._polyphase import tree_depth

FORMS = ("compact", "positive", "literal")


class CnnSize(NamedTuple):
    """Size of a convolutional network.

    Attributes:
        depth: layers from the signal to the last code.
        n_weights: numbers in all filters and biases, zeros included.
    """

    depth: int
    n_weights: int


def cnn_size(
    m: int, d, depth, *, kernel_size: int, stride: int | None = None, form: str = "compact"
) -> CnnSize:
    r"""Depth and number of weights of `cnn`, in closed form.

    A tree R^q -> R^p of stride t and kernel s has L(q) = max(1, ceil(log_t q)) layers and

    .. math:: w(p, q) = \sum_{j<L} (s t^{2j-1} + t^j) + s \, t^{L-1} p + p

    weights. With n = 2d + m, K steps have

    * "literal": L(m) + (K-1) L(d+m) + K L(n) layers, w(n, m) + (K-1) (w(d+m, n) + w(n, d+m)) + w(d,
    n) weights; * "positive": L(m) + K L(n) layers, w(n, m) + (K-1) w(n, n) + w(d, n) weights; *
    "compact": L(m) + K layers, w(n, m) + (K-1) (s n + 1) n + (s n + 1) d weights.

    The first two are O(K log(d+m)) layers; all are O(K (d+m)^2) weights, for a fixed kernel size.
    In a chain these add up: over j, not multiplied as (31) of the paper has it. There, block j > 1
    has n = 2 d_j + 2 d_{j-1} ("literal": 2 d_j + d_{j-1}) and starts from the last state before it,
    of size q in place of m (where L(m) is 1 in the compact form); "literal" then also has a map to
    that code, L(q) layers and w(d_{j-1}, q) weights, and codes before the last are read on the
    side, which adds weights and no depth.

    Args:
        m: length of the signal.
        d, depth: atoms and steps K of the layer, or a sequence of each for a chain.
        kernel_size, stride, form: as in `cnn`.

    Raises:
        ValueError: as `cnn`; d and depth of different lengths.

    Reference: Li, Feng, Zhou (2024), Lemma 14 and Theorem 6.
    """
    where = "realize.cnn_size"
    s, t = geometry(kernel_size, stride, form, where)
    m = _checks.as_index(m, "m", where, least=1)
    ds, depths = ((each,) if not isinstance(each, (tuple, list)) else each for each in (d, depth))
    if not ds or len(depths) != len(ds):
        raise ValueError(
            f"{where}: d is {d} and depth is {depth}; expected one depth for each of at least one d"
        )
    hidden, readouts, q, carried = [], [], m, m
    later = _tap if form == "compact" else _tree
    for j, (d, K) in enumerate(zip(ds, depths)):
        d, K = _checks.as_index(d, "d", where, least=1), _checks.as_index(K, "depth", where)
        n, v = 2 * d + carried, d + carried
        if K and form == "literal":
            hidden += [(min(j, 1), _tree(carried, q, s, t)), (1, _tree(n, carried, s, t))]
            hidden += [(K - 1, _tree(v, n, s, t)), (K - 1, _tree(n, v, s, t))]
        elif K:
            hidden += [(1, (later if hidden else _tree)(n, q, s, t)), (K - 1, later(n, n, s, t))]
        q = n if K else q
        readouts.append((later if hidden else _tree)(d, q, s, t))
        carried = d if form == "literal" else 2 * d
    depth = sum(times * size.depth for times, size in hidden) + readouts[-1].depth
    weights = sum(times * size.n_weights for times, size in hidden) + sum(
        size.n_weights for size in readouts
    )
    return CnnSize(depth, weights)


def _tree(p: int, q: int, s: int, t: int) -> CnnSize:
    L = tree_depth(q, t)
    return CnnSize(
        L, sum(s * t ** (2 * j - 1) + t**j for j in range(1, L)) + s * t ** (L - 1) * p + p
    )


def _tap(p: int, q: int, s: int, t: int) -> CnnSize:
    return CnnSize(1, s * q * p + p)


def geometry(kernel_size, stride, form: str, where: str) -> tuple[int, int]:
    """Kernel size and stride of a network of trees.

    Raises:
        ValueError: there is no such network, or no such form.
    """
    if form not in FORMS:
        raise ValueError(f"{where}: unknown form {form!r}; expected one of {', '.join(FORMS)}")
    s = _checks.as_index(kernel_size, "kernel_size", where)
    t = s if stride is None else _checks.as_index(stride, "stride", where)
    if s < 2 or t < 2:
        raise ValueError(
            f"{where}: kernel_size is {s} and stride is {t}; expected both at least 2: with stride 1 an entry "
            "sees only kernel_size - 1 more of the signal per layer, so no depth is logarithmic"
        )
    if t > s:
        raise ValueError(
            f"{where}: stride {t} is above kernel_size {s}, so layers would skip entries of the signal"
        )
    return s, t
