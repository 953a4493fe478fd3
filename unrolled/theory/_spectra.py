"""Results from spectra: weights in closed form, the rate of steps with given weights, and the least
singular value of all small sets of atoms in a Gaussian dictionary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, checked, host_function, program
from unrolled._base.numbers import UP, exponent, ldexp, times_power, wide_dtype, widened
from unrolled._base.numbers import pseudo_inverse as cut_pseudo_inverse
from unrolled.dictionaries import Complex, Conv, Dictionary, Joint, Operator, Structured
from unrolled.theory._coherence import refuse_cut_atoms, without_parts
from unrolled.theory._uniqueness import as_supports

__all__ = [
    "Conditioning",
    "LocalRate",
    "StepsTo",
    "frobenius_weights",
    "gaussian_conditioning",
    "local_rate",
    "support_rate",
]


# A ridge below this share of the mean squared singular value counts as 0, because rounding would
# determine the action of S outside the span of D.
_LEAST_RIDGE = 1e-9
_POWER_STEPS = 64  # the number of power iterations for a spectral radius
_LARGEST_POWER = 4
# For a power other than 2 there are at most `_NEWTON_STEPS` Newton steps, fewer if a step moves no
# entry of w_i by more than `_ENOUGH` times the largest entry.
_NEWTON_STEPS, _ENOUGH = 50, 1e-6


@checked
def frobenius_weights(D: Dictionary, ridge: ArrayLike = 0.0, power: float = 2.0) -> Operator:
    r"""The weights W of least norm(W'D, "fro") with w_i . d_i = 1, in closed form.

    .. math:: w_i = S^+ d_i / (d_i' S^+ d_i), \qquad S = D D' + ridge \, I.

    With a ridge, W minimises norm(W'D, "fro")^2 + ridge norm(W, "fro")^2, which limits the effect
    of noise. For codes of variance v and white noise of variance sigma^2 per entry,
    ridge = sigma^2 / v weights interference and noise by their variances. As ridge -> inf, w_i
    tends to d_i / (d_i . d_i), which is d_i for unit atoms.

    D may have any rank, because S^+ is the pseudo-inverse. For a shift-invariant `Conv` the same
    formula holds on one window of the signal, where S is the sum of a a' over all shifts a of all
    filters, cut to the window. So the function solves one small system for all filters, and W is a
    `Conv`. This W is optimal among all `Conv` with filters as long as the filters of D, except for
    effects at the border of the signal. Other structured dictionaries are made dense, unless they
    define `closed_form`. Traceable, and differentiable in D.

    Another power p gives the w_i with the least sum_j abs(w_i . d_j)^p, by Newton steps from the
    w_i of p = 2; D is made dense. The power p = 3 makes the largest products smaller. With these
    weights, `certify_signals` finds proofs for more codes, and `certify_supports` for more
    supports, than with p = 2 or with `minimax_weights`.

    Args:
        D: (m, d), atoms whose norms do not differ by orders of magnitude, because the
            pseudo-inverse cuts singular values below 10 min(m, d) eps of the largest one.
        ridge: non-negative, in the units of D^2.
        power: p, from 2 to 4; other powers than 2 require ridge = 0.

    Returns:
        W, (m, d): an array; a `Complex` if D is complex; a `Joint` if D is a `Joint`; a `Conv` if
            D is a `Conv` whose atoms are shifts of each other (on a circle the stride must divide
            the length of the signal, and the kernel must fit into the signal).

    Raises:
        ValueError: an atom is zero or too small next to the others (if traced, its weights are
            NaN), the ridge is negative, border atoms of a `Conv` are cut, the power is out of
            range, or the power is not 2 and there is a ridge or codes come in parts.

    Not claimed: a small mu_W. mu_W may exceed the coherence of D; `coherence` computes mu_W.

    Reference: Liu, Chen, Wang, Yin (2019), equation (16), solved exactly.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
        >>> W = ur.theory.frobenius_weights(D)
        >>> bool(jnp.linalg.norm(W.T @ D) < jnp.linalg.norm(D.T @ D))
        True
    """
    D = dictionaries.as_dictionary(D, "frobenius_weights")
    checks.nonnegative(ridge, "ridge", "frobenius_weights")
    checks.one_number(ridge, "ridge", "frobenius_weights")
    is_zero = checks.is_concrete(ridge) and float(np.asarray(ridge)) == 0
    if not 2 <= power <= _LARGEST_POWER:
        raise ValueError(f"frobenius_weights: power must be from 2 to 4, got {power:g}")
    if power != 2 and not is_zero:
        raise ValueError("frobenius_weights: a power other than 2 needs ridge = 0")
    if power != 2:
        dictionaries.refuse_parts(D, "frobenius_weights", "expected power = 2")
    W, norms = _closed_form(D, None if is_zero else ridge)
    if power != 2:
        W = _least_power(dictionaries.dense(D), dictionaries.dense(W), power)
    dictionaries.nonzero_atoms(norms, "frobenius_weights")
    if checks.is_concrete(W) and isinstance(W, Conv | jax.Array):
        lost = np.isnan(np.asarray(W.filters if isinstance(W, Conv) else W))
        lost = lost.any(tuple(range(1, lost.ndim)) if isinstance(W, Conv) else 0)
        dictionaries.all_kept(~lost, wide_dtype(W.dtype), "frobenius_weights")
    elif checks.is_concrete(W):
        lost = np.isnan(np.asarray(dictionaries.column_norms(W)))
        dictionaries.all_kept(~lost, wide_dtype(W.dtype), "frobenius_weights")
    return W


@program()
def _closed_form(D: Dictionary, ridge: ArrayLike | None) -> tuple[Operator, Array]:
    """The weights, nan if an atom is too small, and the norms of the atoms."""
    refuse_cut_atoms(D, "frobenius_weights")
    norms = dictionaries.column_norms(D)
    if isinstance(D, Joint):
        return Joint(_closed_form(D.base, ridge)[0], D.measurements), norms
    if dictionaries.is_complex(D):  # products with D D' and its pseudo-inverse are complex
        W = _of_matrix(D, ridge)
        return Complex(W[::2, ::2], W[1::2, ::2]), norms
    shared = D.closed_form(0.0 if ridge is None else ridge) if isinstance(D, Structured) else None
    return (_of_matrix(D, ridge) if shared is None else shared), norms


def _of_matrix(D: Dictionary, ridge: ArrayLike | None) -> Array:
    A, dtype = dictionaries.dense(D), D.dtype
    k = exponent(A)
    A = times_power(widened(A), -k)  # so squares stay in the range of the dtype
    with jax.default_matmul_precision("highest"):
        W = cut_pseudo_inverse(A).T  # its transpose is (A A')^+ A
        added = jnp.zeros((), A.dtype)
        if ridge is not None:
            ridge = ldexp(jnp.asarray(ridge, A.dtype), -2 * k)
            least = _LEAST_RIDGE * jnp.sum(A**2) / min(A.shape)
            W = jnp.where(ridge > least, _ridged(A, jnp.maximum(ridge, least)), W)
            added = jnp.where(ridge > least, ridge, 0)
        large = dictionaries.kept_atoms(A, _gram_product(A, W) + added * W, "frobenius_weights")
        W = jnp.where(large[None, :], W, jnp.nan)
        W = W / jnp.sum(W * A, axis=0, keepdims=True)  # w_i . d_i = 1
        return times_power(W, -k).astype(dtype)


@program("power")
def _least_power(A: Array, W: Array, power: float) -> Array:
    """The w_i with w_i . a_i = 1 and the least sum_j abs(w_i . a_j)^power, by Newton steps."""
    k = exponent(A)
    unit, V = times_power(widened(A), -k), times_power(widened(W), k)

    def newton(state: tuple[Array, Array, Array], a: Array) -> tuple[Array, Array, Array]:
        w, _, n = state
        size = jnp.abs(w @ unit) ** (power - 2)
        S = (unit * size[None, :]) @ unit.T
        aim = jnp.linalg.solve(S + least * jnp.trace(S) * jnp.eye(m, dtype=S.dtype), a)
        aim = aim / (aim @ a)
        move = (aim - w) / (power - 1)
        return w + move, jnp.max(jnp.abs(move)) / jnp.max(jnp.abs(w)), n + 1

    def of_atom(pair: tuple[Array, Array]) -> Array:
        a, w = pair
        start = w, jnp.asarray(jnp.inf, w.dtype), jnp.zeros((), jnp.int32)
        return lax.while_loop(moves, lambda state: newton(state, a), start)[0]

    def moves(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] > _ENOUGH) & (state[2] < _NEWTON_STEPS)

    m = len(A)
    least = 10 * jnp.finfo(unit.dtype).eps / m  # acts only outside the span of D
    with jax.default_matmul_precision("highest"):
        W = lax.map(of_atom, (unit.T, V.T)).T
    return times_power(W, -k).astype(A.dtype)


def spectral_radius(W: Dictionary, D: Dictionary) -> Array:
    """An estimate of the spectral radius of W'D, from the growth of the powers of W'D.

    Steps x <- x + gamma W'(y - D x) expand if gamma times the radius exceeds 2. Not claimed: a
    bound for every W. For W in closed form, W'D is similar to a symmetric matrix, and the estimate
    is a lower bound.

    Args:
        W, D: (m, d).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> round(float(ur.theory.spectral_radius(D, D)), 3)
        2.0
    """
    W, D = (dictionaries.as_dictionary(A, "spectral_radius") for A in (W, D))
    return _growth(W, D)


@jax.jit
def _growth(W: Dictionary, D: Dictionary) -> Array:
    wide = wide_dtype(D.dtype)

    def turn(v, _):
        v = ((D @ v.astype(D.dtype)) @ W).astype(wide)
        size = jnp.linalg.norm(v)
        return v / jnp.where(size > 0, size, 1), size

    start = jax.random.normal(jax.random.key(0), (D.shape[1],), wide)
    with jax.default_matmul_precision("highest"):
        sizes = lax.scan(turn, start, length=_POWER_STEPS)[1]
    return jnp.exp(jnp.mean(jnp.log(sizes[_POWER_STEPS // 2 :]))).astype(D.dtype)


@checked
def pseudo_inverse(D: Dictionary) -> Array:
    """The pseudo-inverse D^+ of D, (d, m), in the dtype of D.

    Example:
        >>> ur.theory.pseudo_inverse(jnp.array([[2.0], [0.0]])).tolist()
        [[0.5, 0.0]]
    """
    A = dictionaries.dense(D)
    with jax.default_matmul_precision("highest"):
        return cut_pseudo_inverse(widened(A)).astype(A.dtype)


def _ridged(A: Array, ridge: Array) -> Array:
    """(A A' + ridge I)^-1 A, by a system of the smaller dimension of A."""
    if len(A) > A.shape[1]:
        return _ridged(A.T, ridge).T
    return jnp.linalg.solve(A @ A.T + ridge * jnp.eye(len(A), dtype=A.dtype), A)


def _gram_product(A: Array, W: Array) -> Array:
    """A A' W for W = f(A A') A, by the smaller dimension: A A' and f(A A') commute."""
    return (W @ A.T) @ A if len(A) <= A.shape[1] else A @ (A.T @ W)


_WEIGHTS = ("frobenius", "dictionary")
_GRID = 2001  # number of step sizes to try if eigenvalues are not real


class StepsTo(Result):
    """The number of steps of three methods, inf for a method that does not converge."""

    plain: float  # steps of size 1
    best: float  # steps of the best size
    accelerated: float  # steps with momentum


class LocalRate(Result):
    """The edges of a spectrum, and the factors by which one step multiplies the error.

    Example:
        >>> ur.theory.local_rate(250, 500, 50).steps_to(-100)
        StepsTo(plain=23, best=23, accelerated=11)
    """

    least: float  # the least eigenvalue of W_S'D_S
    largest: float  # the largest eigenvalue of W_S'D_S
    plain: float  # the factor of x <- x + W'(y - D x)
    best_step: float  # the best gamma of x <- x + gamma W'(y - D x); 0 if no gamma helps
    best: float  # the factor with this gamma
    accelerated: float  # the factor with the best momentum

    def steps_to(self, decibels: float) -> StepsTo:
        """The number of steps in which the squared error changes by `decibels` at these rates."""
        dB = checks.as_number(decibels, "decibels", "steps_to")
        if math.isnan(dB):
            raise ValueError("steps_to: decibels is nan; expected a number, such as -100")
        return StepsTo(*(_count(rate, dB) for rate in (self.plain, self.best, self.accelerated)))


@checked
def local_rate(m: int, d: int, s: int, *, weights: str = "frobenius") -> LocalRate:
    r"""The rate of convergence of layers on the right support, for a random D and large sizes.

    .. math::
        \lambda_\pm &= \frac{1}{\alpha} \left( \sqrt{\alpha (1 - \beta)}
            \pm \sqrt{\beta (1 - \alpha)} \right)^2, \qquad
            \alpha = m / d, \quad \beta = s / d, \\
        q(\gamma) &= \max |1 - \gamma \lambda_\pm|, \qquad
        \gamma^* = \frac{2}{\lambda_+ + \lambda_-}, \qquad
        \rho = \frac{\sqrt{\lambda_+} - \sqrt{\lambda_-}}{\sqrt{\lambda_+} + \sqrt{\lambda_-}}
             = \sqrt{\frac{s (d - m)}{m (d - s)}}.

    With `frobenius_weights`, W'D is d/m times the projection onto the row space of D, up to the
    scales of the atoms. If D is right-rotationally invariant, with any condition number, then
    W_S'D_S has the spectrum of a compressed projection, with these edges. For s > d - m the largest
    eigenvalue is d/m, which then replaces lambda_+. The last equality, and the statement below on
    the Onsager term, require s <= d - m. With W = D and Gaussian atoms the edges are
    (1 +- sqrt(s/m))^2, by Marchenko and Pastur, and rho = sqrt(s/m).

    `plain` is q(1), the rate of ISTA, LISTA-CP and ALISTA with unit steps; `best` is q(gamma*).
    `accelerated` is rho, the rate of the methods of Chebyshev and Polyak. The Onsager term of AMP
    and OAMP gives the same rate, because on a support this term is the best momentum.

    Args:
        m, d, s: the sizes, with s <= m <= d.
        weights: "frobenius", or "dictionary" for W = D.

    Raises:
        TypeError: a size is not an integer.
        ValueError: the sizes are out of order, or the weights are unknown.

    Not claimed: that the layer finds the support, or anything about the effect of a threshold. At
    finite sizes the edges fluctuate by a relative amount of about m^(-2/3), and the rate with
    momentum is then slower in late steps. `support_rate` computes the edges for a given D and S.

    Reference: Wachter (1980) and Collins (2005) for the spectrum; Polyak (1964).

    Example:
        >>> rate = ur.theory.local_rate(250, 500, 50)
        >>> [round(20 * float(np.log10(r)), 2) for r in (rate.plain, rate.accelerated)]
        [-4.44, -9.54]
    """
    where = "local_rate"
    m, d, s = checks.as_sizes(where, m=m, d=d, s=s)
    if not s <= m <= d:
        raise ValueError(f"{where}: m={m}, d={d}, s={s}; expected s <= m <= d")
    if weights not in _WEIGHTS:
        raise ValueError(f"{where}: weights is {weights!r}; expected one of {_WEIGHTS}")
    if weights == "dictionary":
        root = math.sqrt(s / m)
        return _rates((1 - root) ** 2, (1 + root) ** 2)
    if m == d:  # the projection is the identity
        return _rates(1.0, 1.0)
    u, v = math.sqrt(m * (d - s)), math.sqrt(s * (d - m))
    least, largest = ((u + sign * v) ** 2 / (m * d) for sign in (-1, 1))
    return _rates(least, d / m if s > d - m else largest)


@host_function
def support_rate(
    W: Dictionary, D: Dictionary, support: ArrayLike | list[int] | tuple[int, ...]
) -> LocalRate:
    r"""The `LocalRate` for given W, D and support, from the extreme eigenvalues of W_S'D_S.

    Args:
        W, D: (m, d), arrays or structured dictionaries.
        support: distinct integers in [0, d), the nonzero entries of the code.

    Returns:
        LocalRate, from the eigenvalues in float64; `least` and `largest` are their extreme real
        parts. `plain` is the spectral radius of I - W_S'D_S. Eigenvalues may be complex unless W is
        D or the closed form. For complex eigenvalues the function does not claim that momentum
        helps: `accelerated` equals `best`, from a grid of step sizes. If the real part of an
        eigenvalue is not positive, no step size helps.

    Raises:
        TypeError: an argument is traced, or an index is not an integer.
        ValueError: shapes differ, the support is empty, or an index is out of range or repeated.

    Not claimed: as in `local_rate`. A spectral radius is an asymptotic rate; if W_S'D_S is far from
    normal, the error may first grow.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> ur.theory.support_rate(D, D, [1, 20]).best_step
        1.0
    """
    where = "support_rate"
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        W, D = (
            checks.cast(without_parts(dictionaries.as_dictionary(A, where), where), np.float64)
            for A in (W, D)
        )
        if W.shape != D.shape:
            raise ValueError(
                f"{where}: W has shape {W.shape} but D has shape {D.shape}; they must agree"
            )
        (S,) = as_supports([support], [D], where)
        if not len(S):
            raise ValueError(f"{where}: the support is empty; expected at least one index")
        values = np.linalg.eigvals(np.asarray(_on_support(W, D, S)))
    rates = _rates(float(values.real.min()), float(values.real.max()))
    # Rounding separates a defective pair of real eigenvalues by the square root of that rounding.
    rounding = math.sqrt(len(S) * float(np.finfo(float).eps)) * np.abs(values).max()
    return rates if (np.abs(values.imag) <= rounding).all() else _complex_rates(values, rates)


@program()
def _on_support(W: Any, D: Any, S: Any) -> Array:
    """W_S'D_S."""
    selected = jnp.zeros((D.shape[1], len(S)), D.dtype).at[S, jnp.arange(len(S))].set(1)
    return (W @ selected).T @ (D @ selected)


def _rates(least: float, largest: float) -> LocalRate:
    """The rates for real eigenvalues that fill an interval."""
    plain = max(1 - least, largest - 1)
    if not least > 0:
        return LocalRate(least, largest, plain, 0.0, 1.0, 1.0)
    low, high = math.sqrt(least), math.sqrt(largest)
    spread, total = largest - least, largest + least
    return LocalRate(least, largest, plain, 2 / total, spread / total, (high - low) / (high + low))


def _complex_rates(values: np.ndarray, rates: LocalRate) -> LocalRate:
    """The rates for real or complex eigenvalues; the best step is chosen from a grid."""
    plain = float(np.abs(1 - values).max())
    if not rates.least > 0:
        return rates.replace(plain=plain)
    # Beyond 2 / largest, the eigenvalue with the largest real part makes the error grow.
    gammas = np.linspace(0, 2 / rates.largest, _GRID)
    radii = np.abs(1 - gammas[:, None] * values).max(1)
    best = float(radii.min())
    return LocalRate(rates.least, rates.largest, plain, float(gammas[radii.argmin()]), best, best)


def _count(rate: float, decibels: float) -> float:
    """The least k with 20 k log10(rate) <= decibels."""
    if decibels >= 0:
        return 0
    if rate >= 1 or (rate > 0 and decibels == -math.inf):
        return math.inf
    return math.ceil(decibels / (20 * math.log10(rate))) if rate > 0 else 1


_HALVINGS = 100  # halvings of an interval of logarithms, down to the rounding of its ends
_LEAST = -1400.0  # logarithm of a squared singular value whose root is 0 in float64


class Conditioning(float):
    """A bound on singular values; `atoms` is the number of atoms that the bound covers."""

    atoms: int

    def __new__(cls, value: float, atoms: int) -> "Conditioning":
        self = super().__new__(cls, value)
        self.atoms = atoms
        return self

    def __getnewargs__(self) -> tuple[float, int]:  # type: ignore[override]  # for copies
        return float(self), self.atoms


def gaussian_conditioning(m: int, d: int, k: int, confidence: float = 1 - 1e-6) -> Conditioning:
    r"""A lower bound on the singular values of every set of k atoms of a randomly drawn D.

    Let the unit atoms have independent directions, uniform on the sphere, as in
    `dictionaries.gaussian`. Then, with probability c over D,

    .. math::
        \sigma_{\min}(D_\Omega) \ge \kappa = \sqrt{t} / R \quad \text{for all } |\Omega| \le k
            \text{ at once}, \\
        \binom{d}{k} F(t) = \frac{1 - c}{2}, \quad d \, P(\chi^2_m > R^2) = \frac{1 - c}{2}, \quad
        F(t) = \frac{\sqrt\pi \, \Gamma(\frac{m+1}{2})}{\Gamma(\frac k2) \Gamma(a + \frac12)}
            P(a, \tfrac t2), \quad a = \tfrac{m-k+1}{2}.

    Here P(a, .) is the regularised incomplete gamma function. F bounds the distribution function of
    the least eigenvalue of G'G, where G is an m x k matrix of independent standard normal entries.
    The joint density of the eigenvalues l_1 >= ... >= l_k of G'G is

    .. math::
        K_{m,k} \prod_i l_i^{(m-k-1)/2} e^{-l_i / 2} \prod_{i<j} (l_i - l_j), \qquad
        K_{m,k}^{-1} = (2^m / \pi)^{k/2}
            \prod_{i=1}^k \Gamma(\tfrac{m-i+1}{2}) \Gamma(\tfrac{k-i+1}{2}).

    Bound l_i - l_k by l_i, and integrate the other eigenvalues over [0, inf) instead of [l_k, inf).
    The integrand is then the density for an (m + 1) x (k - 1) matrix. So the density of l_k = t is
    at most K_{m,k} / K_{m+1,k-1} t^(a-1) e^(-t/2). By the choice of R, the norms of the Gaussian
    columns, whose directions are the atoms, are at most R.

    If codes x and z have at most k nonzeros together, then norm(x - z) <= norm(D (x - z)) / kappa;
    see `error_bar`.

    Args:
        m, d: the shape of D.
        k: the number of atoms.
        confidence: c, in (0, 1).

    Returns:
        kappa, rounded down: a float with the attribute `atoms` = k. kappa is 1 for a single atom,
        and 0 for min(k, d) > m.

    Raises:
        TypeError: a size is not an integer, or the confidence is not a number.
        ValueError: a size is below 1, or the confidence is outside (0, 1).
        MemoryError: this machine cannot hold a dictionary of these sizes.

    Not claimed: anything about a D that was learned, chosen or built, such as a DCT or a dictionary
    of patches. The bound cannot be verified for a given D.

    Reference: Edelman (1988), Proposition 5.1, for F; Blanchard, Cartis, Tanner (2011) for the
    union of supports.

    Example:
        >>> round(ur.theory.gaussian_conditioning(250, 500, 100), 3)
        0.038
    """
    where = "gaussian_conditioning"
    m, d, k = checks.as_sizes(where, m=m, d=d, k=k)
    checks.check_memory((m, d), np.float32, "a dictionary", where)
    risk = 1 - checks.as_fraction(confidence, "confidence", where)
    atoms, k = k, min(k, d)
    if k > m or k == 1:
        return Conditioning(float(k == 1), atoms)
    return Conditioning(_least_of_all(m, d, k, risk) / UP, atoms)


def _least_of_all(m: int, d: int, k: int, risk: float) -> float:
    """The bound kappa = sqrt(t) / R of `gaussian_conditioning`."""
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
    """ln F(t), where P(a, t) is t^a e^-t sum_i t^i / (a (a + 1) ... (a + i)) / Gamma(a)."""
    a, half = (m - k + 1) / 2, math.exp(log_t) / 2
    term, total, i = 1.0, 1.0, 0
    while term > 1e-17 * total:
        i += 1
        term *= half / (a + i)
        total += term
    gammas = math.lgamma((m + 1) / 2) - math.lgamma(k / 2) - math.lgamma(a + 0.5)
    power = a * (log_t - math.log(2)) - half - math.lgamma(a + 1) + math.log(total)
    return math.log(math.pi) / 2 + gammas + power
