"""What the theory says of a dictionary or a chain of them: `unrolled certify`."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from unrolled import analytic, plots, realize, theory
from unrolled.activations import Activation
from unrolled.analytic import finite_or_none, line
from unrolled.dictionaries import dense
from unrolled.theory import as_chain

KERNEL_SIZE = 3  # of the network that the report speaks of


class Request(NamedTuple):
    """What the command line sets."""

    sparsities: Sequence[int] | None
    bound: float
    noise: float
    tolerance: float
    activation: Activation | None
    entries: bool


class DictionaryReport(NamedTuple):
    """What the theory says of one dictionary."""

    m: int
    d: int
    mu: float
    welch: float
    generalized: tuple[float, float]  # mu~ from below and from above
    admissible: dict[str, int]  # the largest sparsity of unique codes, by mu, babel and mu~
    table: analytic.WeightsTable
    activation: theory.ActivationSchedule | None
    cnn: realize.CnnSize | None  # for the steps of the best weights to the tolerance

    def text(self) -> str:
        low, high = self.generalized
        by = ", ".join(f"{s} by {name}" for name, s in self.admissible.items())
        lines = [
            f"{self.m} x {self.d}",
            f"mutual coherence {self.mu:.6f}, generalized coherence in [{low:.8f}, {high:.8f}], Welch bound {self.welch:.6f}",
            f"unique, and found by basis pursuit, up to this many nonzeros: {by}",
            f"fewer than {theory.spark_bound(high):.4g} atoms are never dependent (spark)",
            "",
            self.table.text(),
        ]
        if self.activation is not None:
            found = self.activation
            theorem = f"Theorem {found.theorem}" if found.theorem else "no theorem applies"
            lines += [
                "",
                f"with the activation: {theorem}, contraction {found.contraction:.6g}, floor {found.floor:.6g}",
            ]
        if self.cnn is not None:
            size = f"{self.cnn.depth} convolutional layers with {self.cnn.n_weights:,} weights"
            lines += [
                "",
                f"the minimax network to {self.table.tolerance:g} as a CNN of kernel {KERNEL_SIZE}: {size}",
            ]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        found = self.activation
        activation = (
            None
            if found is None
            else dict(theorem=found.theorem, holds=found.holds, floor=found.floor)
        )
        return {
            "m": self.m,
            "d": self.d,
            "mutual_coherence": self.mu,
            "generalized_coherence": {"lower": self.generalized[0], "upper": self.generalized[1]},
            "welch_bound": self.welch,
            "spark_bound": finite_or_none(theory.spark_bound(self.generalized[1])),
            "admissible_sparsity": self.admissible,
            **self.table.to_dict(),
            "activation": activation and {k: finite_or_none(v) for k, v in activation.items()},
            "cnn": self.cnn and self.cnn._asdict(),
        }


class ChainReport(NamedTuple):
    """What the theory says of a chain, with the minimax weights of every layer."""

    sparsities: tuple[int, ...]
    unique: dict[str, theory.Uniqueness]  # by mu and by mu~
    stability: theory.Stability  # per unit of noise in the signal
    plan: theory.Plan
    tolerance: float

    def text(self) -> str:
        rows = {"layer": range(1, len(self.sparsities) + 1), "sparsity": self.sparsities}
        for name, found in self.unique.items():
            rows[f"unique by {name}"] = found.unique.tolist()
            rows[f"  {name}: sparsity below"] = found.bounds.tolist()
            rows[f"  {name}: from layer"] = found.path.tolist()
            rows[f"  {name}: found by l1"] = found.l1.tolist()
        rows["error per noise (l2)"] = self.stability.delta.tolist()
        rows[f"steps to {self.tolerance:g}"] = self.plan.depths
        rows["certified l1 error"] = self._errors()
        return "\n".join(["chain", *(line(label, cells) for label, cells in rows.items())])

    def _errors(self) -> list[float]:
        return [float(found.error[-1]) for found in self.plan.schedules] or [np.inf] * len(
            self.sparsities
        )

    def to_dict(self) -> dict:
        def clean(values):
            return [finite_or_none(v) for v in values]

        unique = {
            name: {
                "unique": found.unique.tolist(),
                "bounds": clean(found.bounds.tolist()),
                "path": found.path.tolist(),
                "l1": found.l1.tolist(),
            }
            for name, found in self.unique.items()
        }
        return {
            "sparsities": list(self.sparsities),
            "uniqueness": unique,
            "stability": {
                "delta": clean(self.stability.delta.tolist()),
                "holds": self.stability.holds,
            },
            "plan": {
                "depths": clean(self.plan.depths),
                "errors": clean(self._errors()),
                "holds": self.plan.holds,
            },
        }


class Report(NamedTuple):
    """The layers of a chain, one for a single dictionary, and the chain."""

    layers: tuple[DictionaryReport, ...]
    chain: ChainReport | None

    def text(self) -> str:
        return "\n\n".join(
            [layer.text() for layer in self.layers] + ([self.chain.text()] if self.chain else [])
        )

    def to_dict(self) -> dict:
        if self.chain is None:
            return self.layers[0].to_dict()
        return {"layers": [layer.to_dict() for layer in self.layers], "chain": self.chain.to_dict()}

    def figure(self):
        """The Gram matrix D'D of every dictionary beside W'D of its weights."""
        return plots.gram([_grams(layer.table.weights) for layer in self.layers])


def _grams(weights) -> dict[str, np.ndarray]:
    D = np.asarray(dense(weights["W = D"]))
    return {name: np.asarray(dense(W)).T @ D for name, W in weights.items()}


def certificate(Ds, request: Request, say: Callable) -> Report:
    """The report of one dictionary or of a chain, in float64."""
    Ds, given = as_chain(Ds, "certify"), request.sparsities
    if given is not None and len(given) != len(Ds):
        raise ValueError(
            f"certify: {len(given)} sparsities for {len(Ds)} dictionaries; expected one for each"
        )
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore", analytic.HypothesisWarning)  # the report says it
        layers = tuple(
            _layer(D, None if given is None else given[j], request, _progress(say, j, len(Ds)))
            for j, D in enumerate(Ds)
        )
        return Report(layers, _chain(Ds, layers, request, say) if len(Ds) > 1 else None)


def _layer(D, sparsity, request: Request, progress: Callable) -> DictionaryReport:
    problem = dict(sparsity=sparsity, bound=request.bound, noise=request.noise)
    table = analytic.weights_table(
        D, tolerance=request.tolerance, entries=request.entries, progress=progress, **problem
    )
    (m, d), best, mu = D.shape, table.rows["minimax"], float(theory.mutual_coherence(D))
    lower, upper = float(table.coherence.lower), float(table.coherence.upper)
    admissible = {
        "mu": theory.max_sparsity(mu, d),
        "babel": _babel_sparsity(D, theory.max_sparsity(upper, d)),
        "mu~": theory.max_sparsity(upper, d),
    }
    schedule = None
    if request.activation is not None:
        options = dict(problem, sparsity=best.sparsity, depth=0)
        _, schedule = analytic.block_schedule(
            D, table.weights["minimax"], request.activation, **options
        )
    steps = best.steps if best.holds else np.inf
    size = (
        realize.cnn_size(m, d, int(steps), kernel_size=KERNEL_SIZE) if np.isfinite(steps) else None
    )
    return DictionaryReport(
        m, d, mu, theory.welch_bound(m, d), (lower, upper), admissible, table, schedule, size
    )


def _babel_sparsity(D, most: int) -> int:
    """The largest s with mu_1(s-1) + mu_1(s) < 1, at most `most`: the generalized coherence
    certifies no less.
    """
    s = 0
    while s < most and theory.babel(D, s) + theory.babel(D, s + 1) < 1 - 1e-9:
        s += 1
    return s


def _chain(Ds, layers, request: Request, say: Callable) -> ChainReport:
    say("the chain")
    sparsities = tuple(layer.table.rows["minimax"].sparsity for layer in layers)
    Ws = [layer.table.weights["minimax"] for layer in layers]

    def generalized(D):
        return theory.generalized_coherence(D, only_maximum=True).upper

    unique = {
        "mu": theory.uniqueness(Ds, sparsities),
        "mu~": theory.uniqueness(Ds, sparsities, coherence=generalized),
    }
    J = len(Ds)
    plan = analytic.plan(
        Ds,
        Ws=Ws,
        sparsities=sparsities,
        bounds=(request.bound,) * J,
        noises=(request.noise,) + (0.0,) * (J - 1),
        tol=request.tolerance,
    )
    return ChainReport(
        sparsities,
        unique,
        theory.stability(Ds, sparsities, 0.0, 1.0, Ws=Ws),
        plan,
        request.tolerance,
    )


def _progress(say: Callable, j: int, J: int) -> Callable:
    """Tells of the programs of a dictionary, at most once a second."""
    which, told = "" if J == 1 else f"dictionary {j + 1} of {J}: ", time.monotonic()

    def progress(settled: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 1:
            told = time.monotonic()
            say(f"{which}{settled} of {total} linear programs")

    return progress
