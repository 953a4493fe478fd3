"""What a comparison measures of one method: errors, costs, divergence, guarantees, predictions."""

import math

import numpy as np

from unrolled._base.results import Result
from unrolled.comparison._method import About
from unrolled.comparison._weights import Change, Coupling
from unrolled.theory import Certificate

__all__ = [
    "Cost",
    "Curve",
    "Divergence",
    "DivergenceWarning",
    "Guarantee",
    "MethodResult",
    "Predicted",
    "Proved",
    "QUANTILES",
    "Sampled",
]


# The quantiles over single signals that a `Curve` holds.
QUANTILES = (0.1, 0.5, 0.9)


class Curve(Result):
    """The errors of one method after every step; arrays have shape (K,) unless noted."""

    nmse: np.ndarray  # dB, ratio of sums
    mean_nmse: np.ndarray  # dB, mean over the signals
    quantiles: np.ndarray  # (K, 3), the `QUANTILES` of the NMSE of single signals, in dB
    # Share of signals with an NMSE above -20 dB or without a finite NMSE.
    failure_rate: np.ndarray
    precision: np.ndarray  # precision of the support; nan if no code has a nonzero
    recall: np.ndarray  # recall of the support
    false_positives: np.ndarray  # wrong nonzeros per signal
    largest_l1: np.ndarray  # the largest l1 error of a code; the theorems bound it
    # Sum of F - F* over sum of F* for the LASSO, if lam was given; nan if no F* is certified.
    gap: np.ndarray | None = None
    # (K, 3), the `QUANTILES` of (F - F*) / F* of single signals with a certified F*.
    gap_quantiles: np.ndarray | None = None
    residual: np.ndarray | None = None  # norm(Y - X D', "fro") / norm(Y, "fro")
    psnr: np.ndarray | None = None  # dB, for rebuilt signals; the peak is the range of Y
    nonzeros: np.ndarray | None = None  # mean number of nonzeros of a code
    # Share of signals whose code has a larger error than the zero code. If codes are not known:
    # share, among signals with a certified F*, of codes with a larger LASSO objective than the zero
    # code.
    worse: np.ndarray | None = None


class Cost(Result):
    """The cost of the codes of a method."""

    # CPU seconds to compute the codes of all signals, after compilation, in the fastest of several
    # turns. None without gaps to the optimum, and in a study, because its numbers must depend only
    # on its arguments.
    seconds: float | None
    products: int | None  # matrix products per signal; None if the number depends on the signal
    spread: float | None = None  # the longest turn divided by the shortest one


class DivergenceWarning(UserWarning):
    """The last codes of a method are worse than the zero code, from which every method starts."""


class Divergence(Result):
    """The step from which the codes of a method are worse than the zero code, and the reason."""

    step: int  # counted from 1; the codes are worse from this step to the last step
    reason: str  # the reason in words


class Guarantee(Result):
    """The certificate of theory for the params of a method, and the class of codes.

    If codes come in parts, s counts parts, and the noise is measured in l2.
    """

    sparsity: int  # s, the largest number of nonzeros
    bound: float  # B, the largest magnitude of an entry
    noise: float  # delta, the largest l1 norm of the noise in the signal of the layer
    certificate: Certificate  # the result of `theory.certify`
    # Share of the signals whose codes have at most `certificate.largest_sparsity` nonzeros (or
    # nonzero parts) of at most the magnitude B.
    covered: float = 0.0


class Proved(Result):
    """The share of codes for which theory proves that the steps of a method find the code.

    Each code is checked separately. For coupled steps, `theory.certify_signals` proves that no step
    has a false positive and that each nonzero has its sign at the end. For `layers.alista_rt`,
    whose steps have no thresholds, `theory.certify_supports` proves that no step takes an entry off
    the support and that the steps converge to the code.
    """

    share: float | None  # None if no such theorem covers the method
    signals: int  # number of checked codes, the first codes of the sample
    reason: str = ""  # why the share is None

    def text(self) -> str:
        """The number of proved codes, and the number of checked codes, as text.

        Example:
            >>> ur.comparison.Proved(0.75, 200).text()
            '150 of 200'
        """
        return "" if self.share is None else f"{round(self.share * self.signals)} of {self.signals}"


class Sampled(Result):
    """A bound on the errors of all but a small share of the codes, from an independent sample."""

    decibels: float  # bound on the NMSE of a signal; inf if there is no bound
    signals: int  # number of signals in the sample
    needed: int  # number of signals that a bound requires
    share: float  # share of the codes of the class that the bound leaves out
    confidence: float  # confidence that the bounds of all methods hold together
    drawn: bool  # whether the comparison drew the signals; otherwise they were given

    def text(self) -> str:
        """The bound as text.

        Example:
            >>> ur.comparison.Sampled(-20.0, 20_000, 13_809, 1e-3, 1 - 1e-6, True).text()
            'error of 99.9 % of the class: at most -20.0 dB (20,000 draws, confidence 1 - 1e-6)'
        """
        level = f"at most {self.decibels:.1f} dB" if self.decibels < math.inf else "no bound"
        if self.signals < self.needed:
            level = f"no bound, {self.needed - self.signals:,} signals are missing"
        risk = f"{1 - self.confidence:.0e}".replace("e-0", "e-")
        what = "draws" if self.drawn else "held-out signals"
        how = f"{self.signals:,} {what}, confidence 1 - {risk}"
        return f"error of {100 * (1 - self.share):.1f} % of the class: {level} ({how})"


class Predicted(Result):
    """Predictions of the median error, and of the rate of convergence on the right support."""

    nmse: np.ndarray | None  # (K,) dB, for a typical signal after every step, by state evolution
    rate: float | None  # dB per step, without noise
    remark: str  # why state evolution makes no prediction, or empty


class MethodResult(Result):
    """What a comparison measures of one method; None where a number does not apply."""

    curve: Curve  # errors after every step
    given: bool = False  # whether the method is codes of another solver, which have no steps
    diverged: Divergence | None = None  # if the last codes are worse than zero codes
    silent: bool = False  # whether the last codes are all zero, unlike the true codes
    about: About | None = None  # the family, and the origin of the params
    cost: Cost | None = None  # not for given codes
    trained: float | None = None  # seconds of training with all trials, for a result of `fit`
    untrained: float | None = None  # the last gap of the same layer with the params of `init`
    raised: float | None = None  # share of signals whose objective is above that of `init`
    thresholds: np.ndarray | None = None  # (K,), the mean threshold of each step
    coupling: Coupling | None = None  # for families with weights
    reference: str | None = None  # the method from whose params `changes` are measured
    changes: tuple[Change, ...] = ()  # the distance of each leaf from the reference
    guarantee: Guarantee | None = None  # for families with a certificate
    beyond: str = ""  # a sentence if codes exceed the bound B that analytic params are made for
    proved: Proved | None = None  # if codes are known
    sampled: Sampled | None = None  # if asked for
    certified: float | None = None  # share of codes that `theory.certify_code` proves
    predicted: Predicted | None = None  # if asked for
