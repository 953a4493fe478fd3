"""The exact line search of the LASSO along a segment, for numpy and for JAX."""

from types import ModuleType
from typing import Any


def least_between(xp: ModuleType, x: Any, d: Any, slope: Any, lam: Any, signs: Any) -> Any:
    """The minimiser of the objective among x + t d, 0 <= t <= 1, for every row.

    With the signs of its support the objective is -f t + f t^2 / 2, f = slope . d, up to a
    constant, if x + d is their minimiser; where an entry changes its sign, the slope rises by
    2 lam_i abs(d_i). An entry where the search stops is exactly 0.

    Args:
        xp: numpy or jax.numpy.
        x: (n, k), codes.
        d: (n, k), the changes to the minimisers.
        slope: (n, k), the negative gradient at x.
        lam: (n, k), or of a shape that broadcasts to it.
        signs: (n, k), -1, 0 or 1.

    Example:
        >>> from unrolled.pursuit._line import least_between
        >>> x, d = np.array([[1.0, 2.0]]), np.array([[-3.0, 1.0]])  # f = 10, the first rise is 6
        >>> least_between(np, x, d, d, 1.0, np.ones((1, 2))).round(2).tolist()
        [[-0.2, 2.4]]
    """
    crosses = (x + d) * signs < 0
    size = xp.abs(d)
    t = xp.where(crosses, xp.abs(x) / xp.where(crosses, size, 1), xp.inf)
    order = xp.argsort(t, axis=1)
    times = xp.take_along_axis(t, order, axis=1)
    rises = xp.take_along_axis(xp.where(crosses, 2 * lam * size, 0), order, axis=1)
    after = xp.cumsum(rises, axis=1)
    f = xp.maximum(xp.sum(d * slope, axis=1, keepdims=True), float(xp.finfo(x.dtype).tiny))
    passed = xp.sum(after < f * (1 - times), axis=1, keepdims=True)
    # The first crossing that is not passed, and the rises before it.
    nothing = xp.zeros_like(f)
    before = xp.take_along_axis(xp.concatenate([nothing, after], 1), passed, axis=1)
    limit = xp.take_along_axis(xp.concatenate([times, nothing + xp.inf], 1), passed, axis=1)
    step = xp.minimum(1 - before / f, limit)
    return xp.where(t == step, 0, x + step * d)
