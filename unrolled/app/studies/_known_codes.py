"""Classical, analytic, calibrated and learned methods on signals whose codes are known."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled import analytic, dictionaries, layers, networks, theory, training
from unrolled._base import threads
from unrolled._base.doors import Key, checked
from unrolled._base.text import markdown
from unrolled.app.studies import _steps
from unrolled.app.studies._overview import Overview, of_known
from unrolled.app.studies._steps import Plan, Samples, Say, timed
from unrolled.app.studies._study import Compared
from unrolled.comparison import Method, named, with_seconds
from unrolled.layers import Layer, Unrolled

__all__ = ["KnownChain", "KnownCodes", "known_codes"]


_CALIBRATED_ON = 512  # signals to calibrate ISTA on


class KnownCodes(Compared):
    """The study of methods on signals whose codes are known."""

    samples: Samples  # the signals and codes of the study
    caution: str  # why the analytic thresholds are not certified; "" if they are
    methods: dict[str, Method]  # layers and params by name
    covered: int  # the most nonzeros that the worst case covers
    caption = "distance to the true codes, failures, support and thresholds, step by step"

    def parts(self) -> list[str]:
        """The setting, errors, weights and guarantees as tables, and remarks."""
        D, (Y, X) = self.samples.D, self.samples.tested_on
        predicted = self.comparison.predictions_table()
        return [
            f"Dictionary {D.shape[0]} x {D.shape[1]}, {len(Y)} test signals with "
            f"{_steps.nonzeros(D, X):.1f} nonzeros on average, K = {self.depth} "
            f"steps{self.samples.noise()}. Calibration and the choice of ISTA's penalty "
            f"use {len(self.samples.chosen_on[0])} other signals.",
            "",
            self.comparison.table(all=True),
            "",
            *self.remarks,
            "",
            _steps.WEIGHTS,
            "",
            self.comparison.parameters_table(),
            "",
            _steps.GUARANTEES,
            "",
            self.comparison.guarantees_table(),
            "",
            *([_steps.PREDICTIONS, "", predicted, ""] if predicted else []),
            _steps.spent(self.seconds),
        ]

    def timed(self) -> "KnownCodes":
        """The study with the CPU times of its methods, which differ from run to run."""
        result = with_seconds(
            self.comparison, self.methods, self.samples.D, self.samples.tested_on[0]
        )
        return self.replace(comparison=result)

    def overview(self) -> Overview:
        """The first screen of a report."""
        D, (Y, X) = self.samples.D, self.samples.tested_on
        setting = (
            f"{self.depth} steps on {len(Y):,} test signals: {D.shape[0]} measurements, "
            f"{D.shape[1]} entries{dictionaries.in_parts(D, D.shape[1])}, about "
            f"{_steps.nonzeros(D, X):.0f} of them nonzero{self.samples.noise()}."
        )
        return of_known(self.comparison, setting, self.covered)

    def rows(self) -> tuple[list[str], list[list]]:
        """Header and rows of a table with the errors of every method after every step."""
        return _steps.curve_rows(self.comparison)

    def figure(self) -> Any:
        """The figure of the comparison, with matplotlib."""
        return self.comparison.plot(note=self.caution)


class KnownChain(Compared):
    """The study of chains of layers on signals whose codes are known, layer by layer."""

    samples: Samples  # the signals and codes of the study
    caption = "error, failures, support, thresholds and weights, a column per layer"

    def parts(self) -> list[str]:
        """The setting, errors, weights and guarantees as tables, and remarks."""
        Ds, (Y, Xs) = self.samples.D, self.samples.tested_on
        return [
            f"A chain of {len(Ds)} dictionaries, y = D_1 x_1 and x_j = D_(j+1) x_(j+1), with K = "
            f"{self.depth} steps in every layer, {len(Y)} test signals{self.samples.noise()}. Each "
            "layer runs on the code that the layer before it found. Calibration and "
            f"the choice of ISTA's penalties use {len(self.samples.chosen_on[0])} other signals, "
            "layer by layer.",
            "",
            _sparsity_table(Ds, Xs),
            "",
            "If a layer has more nonzeros than theory certifies, the thresholds that theory sets "
            "grow until they make every entry zero.",
            "",
            self.comparison.table(all=True),
            "",
            *(part for remark in self.remarks for part in (remark, "")),
            "The weights, and the relative distance by which training moved each array of weights:",
            "",
            self.comparison.parameters_table(),
            "",
            _steps.GUARANTEES,
            "",
            self.comparison.guarantees_table(),
            "",
            _steps.spent(self.seconds),
        ]

    def rows(self) -> tuple[list[str], list[list]]:
        """Header and rows of a table with the errors of every layer after every step."""
        tables = [_steps.curve_rows(layer) for layer in self.comparison.layers]
        rows = [[j, *row] for j, (_, table) in enumerate(tables, start=1) for row in table]
        return ["layer", *tables[0][0]], rows

    def figure(self) -> Any:
        """The figure of the comparison, with matplotlib."""
        return self.comparison.plot()


@checked
def known_codes(
    key: Key,
    samples: Samples,
    *,
    methods: tuple[str, ...] = _steps.BY_DEFAULT,
    pursuits: Mapping[str, Mapping[str, Any]] | None = None,
    depth: int = 16,
    lam: float | None = None,
    steps: int = 400,
    weights: Mapping[str, training.Fit] | None = None,
    sampled: int | None = None,
    certify: bool = False,
    predict: bool = False,
    say: Say = _steps.silent,
) -> KnownCodes | KnownChain:
    """Compare analytic, calibrated and learned params on signals whose codes are known.

    Analytic params come from theory alone. Calibrated params keep the analytic weights; their
    thresholds and step sizes are chosen on a sample, without gradients. Learned params start at the
    calibrated params and are trained end to end. A thread per core prepares and trains families.
    After an error or an interrupt, the other threads finish their families, and no other begins.

    Args:
        key: the key of the training.
        samples: from `planted` or `split`, for a dictionary or a chain.
        methods: some of ista, fista, lista, lista_cp, alista and alista_ss, or other families,
            whose params start from `training.prepare`.
        pursuits: solvers to compare with, name -> options; a missing sparsity or lam comes from the
            samples.
        depth: K, the number of steps of every layer.
        lam: penalty weight of ISTA and FISTA; if None, the best value of a small grid.
        steps: number of training steps.
        weights: name -> the result of an earlier run, which is also compared.
        sampled, certify, predict: as in `compare`; not for a chain.
        say: receives messages on the progress.

    Returns:
        KnownCodes; for a chain KnownChain.

    Raises:
        ValueError: a method is unknown; a pursuit lacks an option, or is not for a chain;
            `sampled`, `certify` or `predict` is given with a chain.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 8, 16)
        >>> samples = ur.app.studies.planted(jax.random.key(1), D, sparsity=2)
        >>> key, methods = jax.random.key(2), ("fista",)
        >>> study = ur.app.studies.known_codes(key, samples, methods=methods, depth=3, lam=0.1)
        >>> study.text()[:41], list(study.comparison.methods)
        ('Dictionary 8 x 16, 1000 test signals with', ['FISTA'])
    """
    run = _steps.plan(key, methods, pursuits, depth, lam, steps, say, weights)
    if isinstance(samples.D, tuple):
        if certify or predict or sampled is not None:
            raise ValueError(
                "known_codes: sampled, certify and predict are of one dictionary, got a chain"
            )
        return _known_chain(samples, run)
    seconds: dict[str, float] = {}
    made, remarks, caution, covered = _methods(samples, run, seconds)
    say("comparing on the test signals" + (", and proving their codes" if certify else ""))
    options = dict(sampled=sampled, certify=certify, predict=predict)
    result = _steps.compared({**made, **run.weights}, samples.D, *samples.tested_on, **options)
    layered = {name: method for name, method in made.items() if isinstance(method, Method)}
    return KnownCodes(run.depth, result, remarks, seconds, samples, caution, layered, covered)


def _families(run: Plan) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """method -> title, family and options, for the methods that have a recipe."""
    families: dict[str, tuple[str, str, dict[str, Any]]] = {
        "lista": ("LISTA", "lista", {}),
        "lista_cp": ("LISTA-CP", "lista_cp", {}),
        "alista": ("ALISTA", "alista", {"support": None}),
        "alista_ss": ("ALISTA-SS", "alista", {}),
    }
    families |= {name: (name, name, {}) for name in run.others}
    return {name: family for name, family in families.items() if name in run.methods}


def _prepared(samples: Samples, run: Plan, family: str, options: dict[str, Any]) -> training.Start:
    """The start of a family by its recipe, with the study's lam if the family has one."""
    if run.lam is not None and "lam" in layers.FAMILIES[family].__dataclass_fields__:
        options = {**options, "lam": run.lam}
    Y, X = samples.chosen_on
    return training.prepare(family, samples.D, Y, X, depth=run.depth, key=run.key, **options)


def _kind(layer: Layer) -> str:
    """The kind of params that a recipe makes before training."""
    return "calibrated" if layer.recipe.calibrated else "untrained"


class _Made(NamedTuple):
    title: str
    start: training.Start
    learned: training.Fit | None  # None if nothing is trained
    seconds: dict[str, float]
    remarks: list[str]


def _made(samples: Samples, run: Plan, family: tuple[str, str, dict[str, Any]]) -> _Made:
    """The params of a family by its recipe, before and after training."""
    title, name, options = family
    seconds: dict[str, float] = {}
    remarks: list[str] = []
    run.say(f"{title}: calibrating")
    with timed(seconds, f"{title}, before training"):
        start = jax.block_until_ready(_prepared(samples, run, name, options))
    if not start.layer.recipe.rate:
        return _Made(title, start, None, seconds, remarks)
    run.say(f"{title}: training {run.steps} steps")
    with timed(seconds, f"{title}, learned"):
        learned = _steps.train(start.layer, start.params, samples, run, title, remarks)
    return _Made(title, start, learned, seconds, remarks)


def _methods(
    samples: Samples, run: Plan, seconds: dict[str, float]
) -> tuple[dict[str, Any], list[str], str, int]:
    """Analytic, calibrated and learned params, and codes of pursuits; remarks, the caution, and the
    most nonzeros that the worst case covers.
    """
    D, (Y, X), K = samples.D, samples.chosen_on, run.depth
    made: list[Method] = []
    broken: list[str] = []
    lam = _steps.best_lam(samples, K) if run.lam is None else run.lam
    ista, ista_params = layers.ista(K), analytic.ista(D, lam, K)
    penalties = [f"ISTA uses lam = {lam:g}"]
    if "ista" in run.methods:
        made.append(Method(ista, ista_params, origin="untrained", title="ISTA"))
        rows = Y[:_CALIBRATED_ON], X[:_CALIBRATED_ON]
        calibrated = analytic.calibrate(ista, ista_params, D, *rows)
        n = len(rows[0])
        made.append(Method(ista, calibrated, origin="calibrated", title="ISTA", sample=n))
    if "fista" in run.methods:
        fista_lam = _steps.best_lam(samples, K, "fista") if run.lam is None else run.lam
        fista = layers.fista(K), analytic.ista(D, fista_lam, K)
        made.append(Method(*fista, origin="untrained", title="FISTA"))
        penalties.append(f"FISTA uses lam = {fista_lam:g}")
    of_pursuits: list[str] = []
    pursued = _steps.pursuit_codes((D,), samples.tested_on, run, seconds, of_pursuits, lam)
    families = threads.each(partial(_made, samples, run), list(_families(run).values()))
    of = _steps.from_theory(samples, layers.alista(K), *(one.start.layer for one in families))
    theories = [of]
    if of.caution and of.covered:  # the params for as many nonzeros as theory covers
        theories.insert(0, _steps.from_theory(samples, *of.params, sparsity=of.covered))
    for title, start, learned, spent, breaks in families:
        layer = start.layer
        method = partial(Method, layer, title=title)
        made += [
            method(each.params[layer], origin="analytic", sparsity=each.sparsity, bound=each.bound)
            for each in theories
            if layer in each.params
        ]
        kind = _kind(layer)
        sample = len(Y) if kind == "calibrated" else None
        made.append(method(start.params, origin=kind, sample=sample))
        if learned is not None:
            made.append(method(learned.best, origin="learned", steps=run.steps))
        seconds |= spent
        broken += breaks
    shown = any(method.origin == "analytic" for method in made)
    remarks = [f"{', '.join(penalties)}.", *of_pursuits, of.remark, *broken]
    methods = named(made) | {name: codes for name, (codes,) in pursued.items()}
    return methods, remarks, of.caution if shown else "", of.covered


# Chains

Make = Callable[[Samples], tuple[Layer, Unrolled]]


def _known_chain(samples: Samples, run: Plan) -> KnownChain:
    Ds, (Y, Xs) = samples.D, samples.tested_on
    seconds: dict[str, float] = {}
    remarks: list[str] = []
    pursued = _steps.pursuit_codes(Ds, samples.tested_on, run, seconds, remarks, run.lam)
    methods = _chain_methods(samples, run, seconds, remarks)
    run.say("comparing on the test signals")
    result = _steps.compared({**pursued, **methods, **run.weights}, Ds, Y, Xs)
    return KnownChain(run.depth, result, remarks, seconds, samples)


def _sparsity_table(Ds: Any, Xs: Any) -> str:
    """The sparsity of the codes of every layer, next to the sparsity that theory certifies."""
    columns = ["layer", "D", "nonzeros on average", "at most", "mu_W", "certified up to"]
    rows = []
    for j, (D, X) in enumerate(zip(Ds, Xs), start=1):
        counts = np.asarray((X != 0).sum(1))
        mu_W = analytic.certified_weights(dictionaries.normalize(D)[0]).mu_W
        cells = [str(j), f"{D.shape[0]} x {D.shape[1]}", f"{counts.mean():.1f}", str(counts.max())]
        rows.append([*cells, f"{mu_W:.4f}", str(theory.max_sparsity(mu_W, D.shape[1]))])
    return markdown(columns, rows)


def _chain_methods(
    samples: Samples, run: Plan, seconds: dict[str, float], remarks: list[str]
) -> dict[str, Method]:
    made: list[Method] = []
    classical: dict[str, tuple[str, Layer]] = {
        "ista": ("ISTA", layers.ista(run.depth)),
        "fista": ("FISTA", layers.fista(run.depth)),
    }
    for title, layer in (classical[m] for m in classical if m in run.methods):
        run.say(f"{title}: choosing its penalties")
        chain = _made_in_chain(samples, partial(_ista, run, layer))
        made.append(Method(*chain, origin="untrained", title=title))
    for title, family, options in _families(run).values():
        run.say(f"{title}: calibrating")
        with timed(seconds, f"{title}, before training"):
            network, start = _made_in_chain(
                samples, partial(_start_by_recipe, run, family, options)
            )
        first = network.layers[0]
        if layers.FAMILIES[family].from_theory is not None:
            chain = _made_in_chain(samples, partial(_analytic, first))
            made.append(Method(*chain, origin="analytic", title=title))
        made.append(Method(network, start, origin=_kind(first), title=title))
        if first.recipe.rate:
            run.say(f"{title}: training {run.steps} steps")
            with timed(seconds, f"{title}, learned"):
                learned = _steps.train(network, start, samples, run, title, remarks)
            of = network, learned.best
            made.append(Method(*of, origin="learned", title=title, steps=run.steps))
    return named(made)


def _made_in_chain(samples: Samples, make: Make) -> tuple[networks.Network, Any]:
    """A chain of layers for all dictionaries, each made on the codes of the layer before."""
    signals, Xs = samples.chosen_on
    made = []
    for D, X in zip(samples.D, Xs):
        made.append(make(samples._replace(D=D, chosen_on=(signals, X))))
        layer, params = made[-1]
        signals = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, signals)
    models, params = zip(*made)
    return networks.dsc(models), params


def _ista(run: Plan, layer: Layer, samples: Samples) -> tuple[Layer, Unrolled]:
    lam = _steps.best_lam(samples, run.depth, layer.family) if run.lam is None else run.lam
    return layer, analytic.ista(samples.D, lam, run.depth)


def _analytic(layer: Layer, samples: Samples) -> tuple[Layer, Unrolled]:
    return layer, _steps.from_theory(samples, layer).params[layer]


def _start_by_recipe(
    run: Plan, family: str, options: dict[str, Any], samples: Samples
) -> tuple[Layer, Unrolled]:
    start = _prepared(samples, run, family, options)
    return start.layer, start.params
