"""The depth and the number of weights of a realization, in closed form."""

from collections.abc import Sequence
from typing import NamedTuple

from unrolled import _checks
from unrolled._arguments import checked
from unrolled.realize._polyphase import tree_depth

FORMS = ("compact", "positive", "literal")


class CnnSize(NamedTuple):
    """Size of a convolutional network.

    Attributes:
        depth: number of layers from the signal to the last code.
        n_weights: number of entries in all filters and biases, zeros included.
    """

    depth: int
    n_weights: int


@checked
def cnn_size(
    m: int,
    d: int | Sequence[int],
    depth: int | Sequence[int],
    *,
    kernel_size: int,
    stride: int | None = None,
    form: str = "compact",
) -> CnnSize:
    r"""Depth and number of weights of `cnn`, in closed form.

    A polyphase tree R^q -> R^p of kernel size s and stride t has L(q) = max(1, ceil(log_t q))
    layers and

    .. math:: w(p, q) = \sum_{j<L} (s t^{2j-1} + t^j) + s \, t^{L-1} p + p

    weights. With n = 2d + m, a layer of K steps has

    - "literal": L(m) + (K-1) L(d+m) + K L(n) layers and
      w(n, m) + (K-1) (w(d+m, n) + w(n, d+m)) + w(d, n) weights;
    - "positive": L(m) + K L(n) layers and w(n, m) + (K-1) w(n, n) + w(d, n) weights;
    - "compact": L(m) + K layers and w(n, m) + (K-1) (s n + 1) n + (s n + 1) d weights.

    For a fixed kernel size the first two have O(K log(d+m)) layers, and all have O(K (d+m)^2)
    weights.

    The sizes of the blocks of a chain add up; they are not multiplied as in (31) of the paper.
    Block j > 1 has n = 2 d_j + 2 d_{j-1} ("literal": 2 d_j + d_{j-1}) and starts from the last
    state of the block before it, whose size q takes the place of m; in the compact form it has one
    layer in place of the L(m). "literal" also maps that state to the code, with L(q) layers and
    w(d_{j-1}, q) weights. The codes before the last are side outputs, which add weights but no
    depth.

    Args:
        m: length of the signal.
        d: number of atoms, or a sequence with one number for each block of a chain.
        depth: number of steps K, or a sequence with one number for each block.
        kernel_size: s, at least 2.
        stride: t, from 2 to kernel_size; None is kernel_size.
        form: "compact", "positive" or "literal", as in `cnn`.

    Returns:
        CnnSize.

    Raises:
        TypeError: a size is not an integer.
        ValueError: no network has this kernel size and stride, the form is unknown, a size is too
            small, d and depth have different lengths.

    Reference: Li, Feng, Zhou (2024), Lemma 14 and Theorem 6.

    Example:
        >>> ur.realize.cnn_size(64, 128, 10, kernel_size=2)
        CnnSize(depth=16, n_weights=1950354)
        >>> ur.realize.cnn_size(64, 128, 10, kernel_size=2, form="positive").depth
        96
    """
    where = "realize.cnn_size"
    s, t = geometry(kernel_size, stride, form, where)
    m = _checks.as_index(m, "m", where, least=1)
    ds, depths = ((each,) if not isinstance(each, (tuple, list)) else each for each in (d, depth))
    if not ds or len(depths) != len(ds):
        raise ValueError(
            f"{where}: d is {d} and depth is {depth}; expected one depth for each of at least one d"
        )
    hidden, readouts, q, carried = [], [], m, m  # hidden: pairs (times, size of one map)
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
    """Size of a polyphase tree R^q -> R^p."""
    L = tree_depth(q, t)
    rearranging = sum(s * t ** (2 * j - 1) + t**j for j in range(1, L))
    return CnnSize(L, rearranging + s * t ** (L - 1) * p + p)


def _tap(p: int, q: int, s: int, t: int) -> CnnSize:
    """Size of one layer R^q -> R^p on q channels of length 1."""
    return CnnSize(1, s * q * p + p)


def geometry(kernel_size: int, stride: int | None, form: str, where: str) -> tuple[int, int]:
    """Kernel size and stride of a network of trees, checked.

    Raises:
        TypeError: the kernel size or the stride is not an integer.
        ValueError: no network has this kernel size and stride, or the form is unknown.
    """
    if not isinstance(form, str) or form not in FORMS:
        raise ValueError(f"{where}: unknown form {form!r}; expected one of {', '.join(FORMS)}")
    s = _checks.as_index(kernel_size, "kernel_size", where)
    t = s if stride is None else _checks.as_index(stride, "stride", where)
    if s < 2 or t < 2:
        raise ValueError(
            f"{where}: kernel_size is {s} and stride is {t}; expected both at least 2: "
            "with stride 1 the receptive field grows by only kernel_size - 1 per layer, "
            "so no depth is logarithmic"
        )
    if t > s:
        raise ValueError(
            f"{where}: stride {t} is above kernel_size {s}, "
            "so layers would skip entries of the signal"
        )
    return s, t
