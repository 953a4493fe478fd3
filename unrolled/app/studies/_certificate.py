"""Certificates of a dictionary, of a chain of dictionaries, and of given weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled import activations, analytic, plots, realize, theory
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.text import grid, line, markdown, number, table_of
from unrolled.activations import Activation
from unrolled.app.studies._steps import Say, one_per_layer, seldom, silent
from unrolled.app.studies._study import Study
from unrolled.dictionaries import Dictionary, as_chain, block_of, dense
from unrolled.layers import Layer
from unrolled.networks import dsc

__all__ = [
    "ChainReport",
    "DictionaryReport",
    "Report",
    "WeightsCertificate",
    "certify_weights",
    "dictionary_report",
]


_KERNEL_SIZE = 3  # of the CNN in the report
_ROUNDING = 1e-9  # allowance for the rounding of the Babel function
_SILENCE = 1.0  # seconds between two messages on the linear programs


class Request(NamedTuple):
    """The options of a certificate, and the class of codes."""

    sparsities: Sequence[int] | None
    bound: float
    noise: float
    tolerance: float
    activation: Activation | None
    entries: bool


class DictionaryReport(Study):
    """The certificate of one dictionary."""

    m: int  # length of a signal
    d: int  # number of atoms
    rank: int  # numerical rank
    mu: float  # mutual coherence
    welch: float  # the Welch bound on mu
    generalized: tuple[float, float]  # a lower and an upper bound on mu~
    admissible: dict[str, int]  # largest sparsity of unique codes, by mu, babel and mu~
    table: analytic.WeightsTable  # guarantees of each kind of weights
    activation: theory.ActivationSchedule | None  # guarantees with an activation
    cnn: realize.CnnSize | None  # the network that reaches the tolerance, as a CNN

    def text(self) -> str:
        """The report as lines of text."""
        head, rest = self._sentences()
        return "\n".join([*head, "", self.table.text(), *(part for s in rest for part in ("", s))])

    def parts(self) -> list[str]:
        """The report as paragraphs and a table."""
        head, rest = self._sentences()
        rows = [[label, *map(number, cells)] for label, *cells in self.table.cells()]
        return [*head, markdown(["", *self.table.rows], rows), *rest]

    def _sentences(self) -> tuple[list[str], list[str]]:
        """The sentences before the table, and after it."""
        low, high = self.generalized
        by = ", ".join(f"{s} by {name}" for name, s in self.admissible.items())
        size = f"{self.m} x {self.d}"
        if self.rank < min(self.m, self.d):
            size += f" of numerical rank {self.rank}: every statement holds in the numerical range"
        settled = "" if self.table.coherence.holds else " (not settled)"
        head = [
            size,
            f"mutual coherence {self.mu:.6f}, generalized coherence in [{low:.8f}, {high:.8f}]"
            f"{settled}, Welch bound {self.welch:.6f}",
            f"codes are unique, and found by basis pursuit, up to this many nonzeros: {by}",
            f"fewer than {theory.spark_bound(high):.4g} atoms are always independent (spark)",
        ]
        rest = [*self.table.reasons()]
        if self.activation is not None:
            schedule = self.activation
            theorem = f"Theorem {schedule.theorem}" if schedule.theorem else "no theorem applies"
            rest.append(
                f"with the activation: {theorem}, contraction {schedule.contraction:.6g}, "
                f"floor {schedule.floor:.6g}"
            )
        if self.cnn is not None:
            rest.append(
                f"as a CNN of kernel size {_KERNEL_SIZE}, the minimax network that reaches an "
                f"error of {self.table.tolerance:g} has {self.cnn.depth} convolutional layers with "
                f"{self.cnn.n_weights:,} weights"
            )
        return head, rest

    def to_dict(self) -> dict[str, Any]:
        """The report as data."""
        schedule, activation = self.activation, None
        if schedule is not None:
            activation = dict(theorem=schedule.theorem, holds=schedule.holds, floor=schedule.floor)
        return {
            "m": self.m,
            "d": self.d,
            "rank": self.rank,
            "mutual_coherence": self.mu,
            "generalized_coherence": {"lower": self.generalized[0], "upper": self.generalized[1]},
            "welch_bound": self.welch,
            "spark_bound": theory.spark_bound(self.generalized[1]),
            "admissible_sparsity": self.admissible,
            **self.table.to_dict(),
            "activation": activation,
            "cnn": self.cnn,
        }


class ChainReport(Study):
    """The certificate of a chain, with the minimax weights of every layer."""

    sparsities: tuple[int, ...]  # s of every layer
    unique: dict[str, theory.Uniqueness]  # the uniqueness of codes, by mu and by mu~
    stability: theory.Stability  # the errors per unit of noise in the signal
    plan: theory.Plan  # the steps of every layer
    tolerance: float  # the l1 error to reach

    def text(self) -> str:
        """A table, one column per layer."""
        rows = (line(label, cells) for label, cells in self._rows().items())
        return "\n".join(["chain", *rows, *self._reasons()])

    def parts(self) -> list[str]:
        """The table of `text`, for a report."""
        return [grid(self._rows()), *self._reasons()]

    def _reasons(self) -> list[str]:
        return [] if self.plan.holds else [f"the plan does not hold: {self.plan.reason}"]

    def _rows(self) -> dict[str, Sequence]:
        rows: dict[str, Sequence] = {
            "layer": range(1, len(self.sparsities) + 1),
            "sparsity": self.sparsities,
        }
        for name, result in self.unique.items():
            rows[f"unique by {name}"] = result.unique.tolist()
            rows[f"  {name}: sparsity below"] = result.bounds.tolist()
            rows[f"  {name}: from layer"] = result.path.tolist()
            rows[f"  {name}: found by l1"] = result.l1.tolist()
        rows["error per noise (l2)"] = self.stability.delta.tolist()
        rows[f"steps to {self.tolerance:g}"] = self.plan.depths
        rows["certified l1 error"] = self._errors()
        return rows

    def _errors(self) -> list[float]:
        """The certified l1 error of every layer, inf if no plan reaches the tolerance."""
        errors = [float(schedule.error[-1]) for schedule in self.plan.schedules]
        return errors or [np.inf] * len(self.sparsities)

    def to_dict(self) -> dict[str, Any]:
        """The report as data."""
        unique = {
            name: {
                "unique": result.unique,
                "bounds": result.bounds,
                "path": result.path,
                "l1": result.l1,
            }
            for name, result in self.unique.items()
        }
        stability, plan = self.stability, self.plan
        return {
            "sparsities": self.sparsities,
            "uniqueness": unique,
            "stability": {"delta": stability.delta, "holds": stability.holds},
            "plan": {"depths": plan.depths, "errors": self._errors(), "holds": plan.holds}
            | {"reason": plan.reason},
        }


class Report(Study):
    """The certificates of each dictionary, and of the chain if there are several."""

    layers: tuple[DictionaryReport, ...]  # one per dictionary
    chain: ChainReport | None  # None for a single dictionary

    def text(self) -> str:
        """All parts as text."""
        texts = [layer.text() for layer in self.layers]
        texts += [] if self.chain is None else [self.chain.text()]
        return "\n\n".join(texts)

    def parts(self) -> list[str]:
        """All parts as paragraphs and tables."""
        chain = [] if self.chain is None else self.chain.parts()
        return [part for layer in self.layers for part in layer.parts()] + chain

    def answer(self) -> str:
        """The number of admissible nonzeros; for a chain, in every layer."""
        largest = [max(layer.admissible.values()) for layer in self.layers]
        if self.chain is None:
            return (
                f"Codes with at most {largest[0]} nonzeros are unique, and basis pursuit finds "
                "these codes."
            )
        holds = "holds" if self.chain.plan.holds else "does not hold"
        counts = ", ".join(map(str, largest))
        return f"At most {counts} nonzeros are admissible in the layers; the plan of steps {holds}."

    def table(self, form: str = "markdown") -> Any:
        """A row for each kind of weights of each D, as `comparison.Comparison.table`."""
        records = [
            {"dictionary": j, "m": of.m, "d": of.d, "rank": of.rank, "mu": of.mu, **row}
            for j, of in enumerate(self.layers, start=1)
            for row in of.table.table("records")
        ]
        return table_of(form, records)

    def to_dict(self) -> dict[str, Any]:
        """All parts as data."""
        if self.chain is None:
            return self.layers[0].to_dict()
        return {"layers": [layer.to_dict() for layer in self.layers], "chain": self.chain.to_dict()}

    def figure(self) -> Any:
        """The Gram matrix D'D of every dictionary, next to W'D of its weights, with matplotlib."""
        return plots.gram([_grams(layer.table.weights) for layer in self.layers])


def _grams(weights: Mapping[str, Dictionary]) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):  # in their own dtype
        D = np.asarray(dense(weights["W = D"]))
        checks.announce((D.shape[1],) * 2, D.dtype, "the picture of W'D", "certify")
        return {name: np.asarray(dense(W)).T @ D for name, W in weights.items()}


@checked
def dictionary_report(
    D: Dictionary | Sequence[Dictionary],
    *,
    sparsity: int | Sequence[int] | None = None,
    bound: float = 1.0,
    noise: float = 0.0,
    tolerance: float = 1e-6,
    activation: Activation | Callable | str | None = None,
    entries: bool = False,
    say: Say = silent,
) -> Report:
    """Certify a dictionary, or a chain and each of its dictionaries.

    The report has the coherence of D and the sparsity up to which codes are unique. For three kinds
    of weights, W = D, the closed form and the minimax weights, it has the contraction and the steps
    to a tolerance. For a chain the report also has uniqueness, stability and a plan of all layers.
    The function runs in float64, on the host, and solves a linear program per atom.

    Args:
        D: a dictionary of shape (m, d) with unit atoms; for a chain a tuple or list.
        sparsity: s, the number of nonzeros of a code, for a chain one per layer; if None, the
            largest admissible s.
        bound: B, the largest magnitude of an entry of a code.
        noise: the largest l1 norm of the noise in a signal.
        tolerance: l1 error to reach.
        activation: if given, the report also has guarantees with this activation in place of ReLU.
        entries: whether to compute also the weights with the smallest entries (Li, Feng, Zhou 2024,
            Definition 8), which takes many times longer.
        say: receives the number of linear programs solved so far.

    Returns:
        Report.

    Raises:
        ValueError: an atom does not have norm 1, or sparsities and dictionaries differ in number.

    Example:
        >>> H, report = ur.dictionaries.identity_hadamard(16), ur.app.studies.dictionary_report
        >>> study = report(H, tolerance=1e-3)
        >>> study.layers[0].admissible, study.chain
        ({'mu': 2, 'babel': 2, 'mu~': 2}, None)
        >>> study.text().splitlines()[0], round(study.to_dict()["mutual_coherence"], 3)
        ('16 x 32', 0.25)
    """
    with jax.enable_x64(True):
        Ds = as_chain(D if isinstance(D, Sequence) else [D], "certify")
    sparsities = one_per_layer(sparsity)
    if sparsities is not None and len(sparsities) != len(Ds):
        raise ValueError(
            f"certify: {len(sparsities)} sparsities for {len(Ds)} dictionaries; "
            "expected one for each"
        )
    rho: Any = None if activation is None else activations.by_name(activation)
    if rho is activations.relu:  # by itself `relu` selects another schedule
        rho = activations.scale(rho, 1.0)
    request = Request(sparsities, bound, noise, tolerance, rho, entries)
    with jax.enable_x64(True), checks.quiet(analytic.HypothesisWarning):  # the report has it
        Ds = tuple(D if D.dtype == np.float64 else theory.in_float64(D) for D in Ds)
        layers = tuple(
            _layer(
                D,
                None if sparsities is None else sparsities[j],
                request,
                _progress(say, j, len(Ds)),
            )
            for j, D in enumerate(Ds)
        )
        return Report(layers, _chain_report(Ds, layers, request, say) if len(Ds) > 1 else None)


def _layer(
    D: Dictionary, sparsity: int | None, request: Request, progress: Callable[[int, int], None]
) -> DictionaryReport:
    table = analytic.weights_table(
        D,
        sparsity=sparsity,
        bound=request.bound,
        noise=request.noise,
        tolerance=request.tolerance,
        entries=request.entries,
        progress=progress,
    )
    (m, d), best, mu = D.shape, table.rows["minimax"], float(theory.mutual_coherence(D))
    lower, upper = float(table.coherence.lower), float(table.coherence.upper)
    admissible = {
        "mu": _found_sparsity(D, mu),
        "babel": _babel_sparsity(D, theory.max_sparsity(upper, d)),
        "mu~": theory.max_sparsity(upper, d),
    }
    activation: theory.ActivationSchedule | None = None
    if request.activation is not None:
        _, schedule = analytic.block_schedule(
            D,
            table.weights["minimax"],
            request.activation,
            depth=0,
            sparsity=best.sparsity,
            bound=request.bound,
            noise=request.noise,
        )
        assert isinstance(schedule, theory.ActivationSchedule)  # since none is `relu` itself
        activation = schedule
    size = None
    if best.holds and np.isfinite(best.steps):
        size = realize.cnn_size(m, d, int(best.steps), kernel_size=_KERNEL_SIZE)
    welch, rank = theory.welch_bound(m, d), int(table.coherence.rank)
    return DictionaryReport(
        m, d, rank, mu, welch, (lower, upper), admissible, table, activation, size
    )


def _found_sparsity(D: Dictionary, mu: float) -> int:
    """The largest s for which mu proves that basis pursuit finds the codes.

    If the norms of atoms differ, within the tolerance for unit atoms, s is smaller.
    """
    s = theory.max_sparsity(mu, D.shape[1])
    while s and not theory.uniqueness([D], [s], coherence=lambda _: mu).l1[0]:
        s -= 1
    return s


def _babel_sparsity(D: Dictionary, most: int) -> int:
    """The largest s with mu_1(s - 1) + mu_1(s) < 1.

    The search ends at `most`, the s that the generalized coherence certifies.
    """
    s = 0
    while s < most and theory.babel(D, s) + theory.babel(D, s + 1) < 1 - _ROUNDING:
        s += 1
    return s


def _chain_report(
    Ds: Sequence[Dictionary], layers: Sequence[DictionaryReport], request: Request, say: Say
) -> ChainReport:
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
    stability = theory.stability(Ds, sparsities, 0.0, 1.0, Ws=Ws)
    return ChainReport(sparsities, unique, stability, plan, request.tolerance)


def _progress(say: Say, j: int, J: int) -> Callable[[int, int], None]:
    """A function that reports from time to time how many linear programs are solved."""
    which, now_and_then = "" if J == 1 else f"dictionary {j + 1} of {J}: ", seldom(say, _SILENCE)
    return lambda settled, total: now_and_then(f"{which}{settled} of {total} linear programs")


class WeightsCertificate(Study):
    """The certificate of every layer of given weights."""

    layers: tuple[Layer, ...]  # the layers of the model
    shapes: tuple[tuple[int, ...], ...]  # the shape of every D
    sparsities: tuple[int, ...]  # s of every layer
    bound: float  # B, the largest magnitude of an entry of a code
    noise: float  # the largest l1 norm of the noise in a signal
    tolerance: float  # the l1 error to reach
    certificates: tuple[theory.Certificate, ...]  # one per layer
    # The number of entries of a part of a code of layer 1. If a part has several entries, the
    # noise is measured in the l2 norm.
    block: int = 1

    def text(self) -> str:
        """A table, one column per layer."""
        table = (line(label, cells) for label, cells in self._rows().items())
        return "\n".join([self._class(), "", *table, *self._reasons()])

    def parts(self) -> list[str]:
        """The table of `text`, for a report."""
        return [self._class(), grid(self._rows()), *self._reasons()]

    def _reasons(self) -> list[str]:
        numbered = enumerate(self.certificates, start=1)
        return [f"layer {j}: {c.reason}" for j, c in numbered if not c.holds]

    def answer(self) -> str:
        """The error that is guaranteed after the last step."""
        last = self.certificates[-1]
        if not last.holds:
            start = f"{last.error[0]:.2e}, the error of zero codes"
            return f"These weights guarantee no l1 error below {start}, for this class of codes."
        return f"These weights guarantee an l1 error of at most {last.error[-1]:.2e}."

    def _class(self) -> str:
        entries, l1 = ("entries", "l1") if self.block == 1 else ("parts", "l2")
        return (
            f"what these weights guarantee, for {entries} of at most {self.bound:g} and noise of "
            f"{l1} norm at most {self.noise:g}"
        )

    def _rows(self) -> dict[str, Sequence]:
        each = self.certificates
        return {
            "layer": range(1, len(each) + 1),
            "family": [layer.family for layer in self.layers],
            "D": [f"{m} x {d}" for m, d in self.shapes],
            "sparsity": self.sparsities,
            "l1 error at the start": [float(c.error[0]) for c in each],
            "guaranteed l1 error": [float(c.error[-1]) if c.holds else "none" for c in each],
            "holds": [c.holds for c in each],
            f"steps to {self.tolerance:g}": [
                "none" if (k := self._steps(c)) is None else k for c in each
            ],
            "no false positives in": [
                f"{c.false_positives_excluded.sum()} of {layer.depth}"
                for c, layer in zip(each, self.layers)
            ],
            "largest sparsity": [c.largest_sparsity for c in each],
        }

    def table(self, form: str = "markdown") -> Any:
        """A row for every layer, in the forms of `comparison.Comparison.table`."""
        records = [
            dict(
                layer=j,
                family=layer.family,
                sparsity=s,
                error_at_the_start=float(c.error[0]),
                guaranteed_error=float(c.error[-1]) if c.holds else None,
                holds=bool(c.holds),
                steps=self._steps(c),
                largest_sparsity=c.largest_sparsity,
            )
            for j, (layer, s, c) in enumerate(
                zip(self.layers, self.sparsities, self.certificates), start=1
            )
        ]
        return table_of(form, records)

    def to_dict(self) -> dict[str, Any]:
        """The certificates as data, layer by layer."""
        layers = [
            dict(
                layer=repr(layer),
                shape=shape,
                sparsity=s,
                error=c.error,
                false_positives_excluded=c.false_positives_excluded,
                holds=c.holds,
                reason=c.reason,
                steps=self._steps(c),
                largest_sparsity=c.largest_sparsity,
            )
            for layer, shape, s, c in zip(
                self.layers, self.shapes, self.sparsities, self.certificates
            )
        ]
        return {"bound": self.bound, "noise": self.noise, "layers": layers}

    def figure(self) -> Any:
        """The certified l1 error of every layer after every step, with matplotlib."""
        numbered = enumerate(self.certificates, start=1)
        lines: dict[str, Any] = {f"layer {j}": c.error[1:] for j, c in numbered}
        figure, panels = plots.figure(1, 1)
        title, ylabel = "What these weights guarantee", "l1 error of the code"
        plots.curves(panels[0, 0], lines, title=title, ylabel=ylabel, log=True)
        plots.name_lines(panels[0, 0])
        return figure

    def _steps(self, certificate: theory.Certificate) -> int | None:
        """The first step whose error is within the tolerance; None if no step is."""
        reached = np.flatnonzero(certificate.error <= self.tolerance)
        return int(reached[0]) if len(reached) else None


@checked
def certify_weights(
    model: Any,
    params: Any,
    D: Any,
    *,
    sparsity: int | Sequence[int] | None = None,
    bound: float = 1.0,
    noise: float = 0.0,
    tolerance: float = 1e-6,
) -> WeightsCertificate:
    """The error that weights guarantee for sparse codes, layer by layer.

    Args:
        model: a layer, or a chain of layers.
        params, D: the params and the dictionary of the model; for a chain a tuple of each.
        sparsity: s, the number of nonzeros of a code; for a chain, one s per layer. If `sparsity`
            is None, s is the largest certified s; for a chain, s = 1 in every layer.
        bound: B, the largest magnitude of an entry of a code.
        noise: the largest l1 norm of the noise in a signal; the l2 norm if codes come in parts.
        tolerance: the l1 error to reach; the report names the first step that reaches it.

    Returns:
        WeightsCertificate.

    Raises:
        ValueError: sparsities and layers differ in number, or `theory.certify` refuses a number.
        TypeError: the model does not have layers that run one after the other, or
            `theory.certify` refuses a family.

    Example:
        >>> D, layer = ur.dictionaries.identity_hadamard(16), ur.lista_cp(10)
        >>> params = ur.analytic.lista_cp(D, depth=10, sparsity=2, bound=1.0)
        >>> study = ur.app.studies.certify_weights(layer, params, D)
        >>> study.sparsities, study.certificates[0].holds
        ((2,), True)
    """
    single = isinstance(model, Layer)
    if not single:
        checks.has(model, "layers", "a Layer or a Network", "model", "certify_weights")
    layers = (model,) if single else model.layers
    if not layers:
        raise TypeError(f"certify: {model} has no layers that run one after the other")
    Ds, blocks = ((D,), (params,)) if single else (D, params)

    def certified(s: Sequence[int]) -> tuple[theory.Certificate, ...]:
        bounds, noises = (bound,) * len(layers), (noise,) + (0.0,) * (len(layers) - 1)
        return theory.certify(dsc(layers), blocks, Ds, sparsity=s, bound=bounds, noise=noises)

    sparsities = one_per_layer(sparsity)
    if sparsities is None:
        sparsities = (1,) * len(layers)
        if single:
            sparsities = (max(1, certified(sparsities)[0].largest_sparsity),)
    if len(sparsities) != len(layers):
        raise ValueError(
            f"certify: {len(sparsities)} sparsities for {len(layers)} layers; expected one for each"
        )
    shapes = tuple(D.shape for D in Ds)
    block, proved = block_of(Ds[0]), certified(sparsities)
    return WeightsCertificate(
        layers, shapes, tuple(sparsities), bound, noise, tolerance, proved, block
    )
