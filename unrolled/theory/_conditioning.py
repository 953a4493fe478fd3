"""The least singular value of all small sets of atoms of a Gaussian dictionary at once."""

import math

import numpy as np

from unrolled import _checks
from unrolled._numbers import UP

_HALVINGS = 100  # of an interval of logarithms: down to the rounding of its ends
_LEAST = -1400.0  # logarithm of a squared singular value whose root is 0 in float64


class Conditioning(float):
    """A bound of singular values that knows of how many atoms, `atoms`."""

    atoms: int

    def __new__(cls, value: float, atoms: int) -> "Conditioning":
        self = super().__new__(cls, value)
        self.atoms = atoms
        return self

    def __getnewargs__(self) -> tuple[float, int]:  # type: ignore[override]  # of a copy
        return float(self), self.atoms


def gaussian_conditioning(m: int, d: int, k: int, confidence: float = 1 - 1e-6) -> Conditioning:
    r"""A bound of the singular values of any k atoms of a D that was drawn at random.

    For unit atoms in independent directions that are uniform on the sphere, as those of
    `dictionaries.gaussian`, with probability c over D

    .. math::
        \sigma_{\min}(D_\Omega) \ge \kappa = \sqrt{t} / R \quad \text{for all } |\Omega| \le k
            \text{ at once}, \\
        \binom{d}{k} F(t) = \frac{1 - c}{2}, \quad d \, P(\chi^2_m > R^2) = \frac{1 - c}{2}, \quad
        F(t) = \frac{\sqrt\pi \, \Gamma(\frac{m+1}{2})}{\Gamma(\frac k2) \Gamma(a + \frac12)}
            P(a, \tfrac t2), \quad a = \tfrac{m-k+1}{2},

    with the regularised incomplete gamma function P. F bounds the law of the least eigenvalue of
    G'G, for G of m times k independent standard normal entries: its density in all eigenvalues
    l_1 >= ... >= l_k is

    .. math::
        K_{m,k} \prod_i l_i^{(m-k-1)/2} e^{-l_i / 2} \prod_{i<j} (l_i - l_j), \qquad
        K_{m,k}^{-1} = (2^m / \pi)^{k/2}
            \prod_{i=1}^k \Gamma(\tfrac{m-i+1}{2}) \Gamma(\tfrac{k-i+1}{2}).

    With l_i - l_k <= l_i, and the others integrated over [0, inf) in place of [l_k, inf), what
    remains of them is the density of m + 1 times k - 1 entries. So the density of l_k = t is at
    most K_{m,k} / K_{m+1,k-1} t^(a-1) e^(-t/2). The atoms have norms of at most R before they are
    normalised.

    Any codes x and z with at most k nonzeros together then have norm(x - z) <= norm(D (x - z)) /
    kappa: see `error_bar`.

    Args:
        m, d: the shape of D.
        k: the number of atoms.
        confidence: c, in (0, 1).

    Returns:
        kappa, rounded down, a float with the attribute `atoms` = k; 1 for a single atom, 0 for
        min(k, d) > m.

    Raises:
        TypeError: sizes that are no integers, or a confidence that is no number.
        ValueError: sizes below 1, or a confidence outside (0, 1).
        MemoryError: sizes of a dictionary that this machine does not hold.

    Not claimed: anything of a D that was learned, chosen or built, as a DCT or patches; nor can it
    be verified for a D at hand.

    Reference: Edelman (1988), Proposition 5.1, derived again above; Blanchard, Cartis, Tanner
    (2011) for the union of supports.

    Example:
        >>> round(ur.theory.gaussian_conditioning(250, 500, 100), 3)
        0.038
    """
    where = "gaussian_conditioning"
    m, d, k = _checks.as_sizes(where, m=m, d=d, k=k)
    _checks.check_memory((m, d), np.float32, "a dictionary", where)
    risk = 1 - _checks.as_fraction(confidence, "confidence", where)
    atoms, k = k, min(k, d)
    if k > m or k == 1:
        return Conditioning(float(k == 1), atoms)
    return Conditioning(_least_of_all(m, d, k, risk) / UP, atoms)


def _least_of_all(m: int, d: int, k: int, risk: float) -> float:
    """sqrt(t) / R."""
    from scipy.special import gammainccinv

    subsets = math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)
    target = math.log(risk / 2) - subsets
    low, high = _LEAST, math.log(m)
    if _law(low, m, k) > target:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _law(middle, m, k) <= target else (low, middle)
    R2 = 2 * float(gammainccinv(m / 2, risk / (2 * d)))
    return math.exp(low / 2) / math.sqrt(R2)


def _law(log_t: float, m: int, k: int) -> float:
    """ln F(t), with t^a e^-t sum_i t^i / (a (a + 1) ... (a + i)) / Gamma(a) for P(a, t)."""
    a, half = (m - k + 1) / 2, math.exp(log_t) / 2
    term, total, i = 1.0, 1.0, 0
    while term > 1e-17 * total:
        i += 1
        term *= half / (a + i)
        total += term
    gammas = math.lgamma((m + 1) / 2) - math.lgamma(k / 2) - math.lgamma(a + 0.5)
    power = a * (log_t - math.log(2)) - half - math.lgamma(a + 1) + math.log(total)
    return math.log(math.pi) / 2 + gammas + power
