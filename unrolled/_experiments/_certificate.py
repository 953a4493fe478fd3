"""What the theory says of a dictionary: `unrolled certify`."""

import math
import warnings
from typing import NamedTuple

import jax

from unrolled import analytic, dictionaries, theory


class Weights(NamedTuple):
    """One kind of weights, and the schedule that they certify."""

    mu_W: float
    C_W: float
    norm_W: float
    largest_sparsity: int
    sparsity: int
    holds: bool
    contraction: float
    rate: float
    floor: float
    steps: float  # to the tolerance


class Certificate(NamedTuple):
    """What the theory says of a dictionary."""

    m: int
    d: int
    mutual_coherence: float
    welch_bound: float
    tolerance: float
    weights: dict[str, Weights]

    def text(self) -> str:
        """The certificate as a table, one column per kind of weights."""
        lines = [
            f"{self.m} x {self.d}, mutual coherence {self.mutual_coherence:.6f}, Welch bound {self.welch_bound:.6f}",
            "",
            f"{'':24}" + "".join(f"{name:>16}" for name in self.weights),
        ]
        for field in Weights._fields:
            label = f"steps to {self.tolerance:g}" if field == "steps" else field.replace("_", " ")
            cells = [getattr(row, field) for row in self.weights.values()]
            lines.append(
                f"{label:24}" + "".join(f"{c:>16.6g}" if isinstance(c, float) else f"{c!s:>16}" for c in cells)
            )
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """For JSON: what is not finite becomes None."""
        rows = {name: {k: _finite(v) for k, v in row._asdict().items()} for name, row in self.weights.items()}
        return self._asdict() | {"weights": rows}


def certificate(D, *, sparsity: int | None, bound: float, noise: float, tolerance: float) -> Certificate:
    """W = D beside the closed form, in float64; sparsity None takes the largest that each certifies."""
    with jax.enable_x64(True):
        m, d = D.shape
        weights = {}
        for name, W in (("W = D", D), ("closed form", theory.frobenius_weights(D))):
            certified = analytic.certify(D, W)
            largest = theory.max_sparsity(certified.mu_W, d)
            s = largest if sparsity is None else sparsity
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", analytic.HypothesisWarning)  # the table says it
                _, found = analytic.block_schedule(D, W, depth=1, sparsity=s, bound=bound, noise=noise)
            weights[name] = Weights(
                certified.mu_W,
                certified.C_W,
                float(dictionaries.spectral_norm(W)),
                largest,
                s,
                found.holds,
                found.contraction,
                found.rate,
                found.floor,
                found.steps_for(tolerance),
            )
        mu = float(theory.mutual_coherence(D))
    return Certificate(m, d, mu, theory.welch_bound(m, d), tolerance, weights)


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
