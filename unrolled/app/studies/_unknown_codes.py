"""Methods on signals without known codes, such as patches of photographs."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import (
    analytic,
    dictionaries,
    layers,
    metrics,
    plots,
    problems,
    pursuit,
    theory,
    training,
)
from unrolled._base import checks, threads
from unrolled._base.doors import Array, Key, checked
from unrolled.app.studies import _steps
from unrolled.app.studies._overview import Overview, of_unknown
from unrolled.app.studies._steps import Pictures, Plan, Samples, Say
from unrolled.app.studies._study import Compared
from unrolled.comparison import Method, named, with_seconds
from unrolled.dictionaries import Dictionary, Operator
from unrolled.layers import Layer, Unrolled
from unrolled.pursuit import default_lam, lasso_optima
from unrolled.vision import datasets

__all__ = ["UnknownCodes", "unknown_codes"]


_BATCH = 128  # signals of a training step
_TESTED_ON = 2000  # signals, approximately
# Half of the loss is a loss of all steps, so that the objective falls at almost every step.
_DEEP = 0.5

_CALIBRATED = "alista", "alista_ss"  # left out by default, because known codes calibrate them

Methods = dict[str, Method]


class UnknownCodes(Compared):
    """The study of methods on signals without known codes."""

    D: Operator  # the dictionary, (m, d)
    signals: Pictures  # the signals for training and for testing
    tested: Array  # (tested, m), the test signals in the comparison
    lam: float  # weight of the LASSO
    optimum: pursuit.Pursuit  # the LASSO codes of the tested signals, which serve as true codes
    methods: Methods  # layers and params by name
    caption = "distance to the LASSO codes, objective gap, support, thresholds and weights"

    def parts(self) -> list[str]:
        """The setting, gaps to the optimum and weights as tables, and remarks."""
        D, optimum = self.D, self.optimum
        peak = float(np.ptp(np.asarray(self.tested)))
        rebuilt = "belong to constant signals, which have no PSNR"
        if peak:
            best = float(metrics.psnr(problems.synthesize(D, optimum.x), self.tested, peak))
            rebuilt = f"rebuild the signals with a PSNR of {best:.2f} dB"
        return [
            f"Dictionary {D.shape[0]} x {D.shape[1]}, {len(self.signals.training)} training "
            f"signals and {len(self.tested)} test signals, lam = {self.lam:.4g}, "
            f"K = {self.depth} steps. F* is known to a "
            f"relative duality gap of at most {np.asarray(optimum.gap).max():.1e} "
            f"(certified for {np.asarray(optimum.converged).mean():.1%} of the signals). The "
            f"optimal codes have {_steps.nonzeros(D, optimum.x):.1f} nonzeros on average and "
            f"{rebuilt}. Learned methods minimise the LASSO "
            "objective itself on the training signals, and need no codes.",
            "",
            self.comparison.table(all=True),
            "",
            *(p for remark in self.remarks for p in (remark, "")),
            _remark(D),
            "",
            _steps.WEIGHTS,
            "",
            self.comparison.parameters_table(),
            "",
            _steps.spent(self.seconds),
        ]

    def timed(self) -> "UnknownCodes":
        """The study with the CPU times of its methods and exact solvers."""
        result = with_seconds(self.comparison, self.methods, self.D, self.tested, self.seconds)
        return self.replace(comparison=result)

    def overview(self) -> Overview:
        """The first screen of a report."""
        m, d = self.D.shape
        setting = (
            f"{self.depth} steps on {len(self.tested):,} signals that training did not use, "
            f"dictionary {m} x {d}, lam = {self.lam:.4g}; the optimal codes have "
            f"{_steps.nonzeros(self.D, self.optimum.x):.1f} nonzeros on average."
        )
        return of_unknown(self.comparison, setting)

    @property
    def psnr(self) -> dict[str, list[float]]:
        """PSNR in dB of D x after every step; the peak is the range of the signals."""
        methods = self.comparison.methods.items()
        return {name: np.asarray(of.curve.psnr).tolist() for name, of in methods}

    def to_dict(self) -> dict[str, Any]:
        """The comparison, PSNR, lam, and the seconds that training took."""
        return super().to_dict() | {"psnr": self.psnr, "lam": self.lam}

    def rows(self) -> tuple[list[str], list[list]]:
        """Header and rows of a table with the errors of every method after every step."""
        header, rows = _steps.curve_rows(self.comparison)
        rows = [[*row, self.psnr[row[0]][(row[1] or 1) - 1]] for row in rows]
        return [*header, "psnr"], rows

    def figure(self) -> Any:
        """The figure of the comparison, with matplotlib."""
        return self.comparison.plot(codes="LASSO codes")

    def rebuilt(self) -> dict[str, np.ndarray]:
        """The test picture, and the pictures rebuilt from the codes of ISTA and of the last method.

        The result is empty if the test signals are not tiles of a picture.
        """
        picture, patches = self.signals.picture, np.asarray(self.signals.testing)
        if picture is None:
            return {}
        tiles, shown = jnp.asarray(patches), {"original": patches}
        for name in dict.fromkeys(["ISTA", list(self.methods)[-1]]):
            of = self.methods[name]
            codes = jax.jit(jax.vmap(of.layer.apply, (None, None, 0)))(of.params, self.D, tiles)
            rows = problems.synthesize(self.D, codes)
            shown[f"{name}, PSNR {float(metrics.psnr(rows, tiles)):.2f} dB"] = np.asarray(rows)
        return {
            name: datasets.from_patches(rows + picture.mean, picture.shape, _steps.PATCH)
            for name, rows in shown.items()
        }

    def figures(self) -> dict[str, Callable[[], Any]]:
        """The functions that draw the figures, by caption."""
        drawn = super().figures()
        if self.signals.picture is not None:
            caption = f"errors of the test picture, rebuilt from its codes after {self.depth} steps"
            original, *others = self.rebuilt().items()
            errors = {f"error of {name}": picture - original[1] for name, picture in others}
            drawn[caption] = partial(plots.images, errors, signed=True)
        return drawn


@checked
def unknown_codes(
    key: Key,
    D: Dictionary,
    signals: Pictures,
    *,
    methods: tuple[str, ...] = _steps.BY_DEFAULT,
    pursuits: Mapping[str, Mapping[str, Any]] | None = None,
    depth: int = 16,
    lam: float | None = None,
    steps: int = 400,
    tested: int = _TESTED_ON,
    weights: Mapping[str, training.Fit] | None = None,
    certify: bool = False,
    say: Say = _steps.silent,
) -> UnknownCodes:
    r"""Compare ISTA and FISTA with layers that learn on the LASSO objective, without known codes.

    .. math:: F(x) = \tfrac12 \|y - D x\|^2 + lam \|x\|_1

    A thread per core trains families, as in `known_codes`.

    Args:
        key: the key of the start and the training.
        D: a dictionary of shape (m, d).
        signals: signals to train and to test on.
        methods: some of ista, fista, lista, lista_cp, alista and alista_ss, or other families,
            whose params start from `init`. By default, the study trains lista_cp and the family
            that `training.unsupervised` trains for D: bcd, or lfista_cp for a structured D. A
            remark names the methods that are left out.
        pursuits: solvers to compare with, name -> options; a missing sparsity or lam comes from the
            optimal codes.
        depth: K, the number of steps.
        lam: weight of the LASSO; if None, a tenth of the lam at which nine codes in ten are 0.
        steps: number of training steps; `training.unsupervised` trains bcd, in several runs of at
            most this number of steps.
        tested: approximate number of test signals for which the study computes a certified optimum.
        weights: name -> the result of an earlier run, which is also compared.
        certify: as in `compare`.
        say: receives messages on the progress.

    Returns:
        UnknownCodes.

    Raises:
        ValueError: a method is unknown, a pursuit lacks an option, or signals do not fit D.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> Y = ur.problems.sampler(D, 60)(jax.random.key(0))[0]
        >>> signals = ur.app.studies.Pictures(Y[:40], Y[40:])
        >>> options = dict(methods=("ista",), depth=2, lam=0.1, steps=1)
        >>> study = ur.app.studies.unknown_codes(jax.random.key(1), D, signals, **options)
        >>> list(study.comparison.methods), study.rows()[0][-1]
        (['ISTA', 'FISTA', 'ISTA, learned'], 'psnr')
    """
    run = _steps.plan(key, methods, pursuits, depth, lam, steps, say, weights)
    where = "unknown_codes"
    D = dictionaries.as_dictionary(D, where)
    if certify:
        dictionaries.refuse_parts(
            D, "compare", "certify needs codes of single entries, try compare without it"
        )
    for Y in (signals.training, signals.testing):
        dictionaries.check_batch(D, Y, None, where)
        checks.finite(Y, "Y", where)
    tested = checks.as_index(tested, "tested", where, least=1)
    rows, tiles = jnp.asarray(signals.training), jnp.asarray(signals.testing)
    lam = default_lam(D, rows) if run.lam is None else run.lam
    some = tiles[:: max(1, len(tiles) // tested)]
    say(f"solving {len(some)} LASSO problems to a duality gap")
    optimum = lasso_optima(D, some, lam)
    samples = Samples(D, _steps.resampler(rows, batch=_BATCH), (rows, None), (some, optimum.x))
    seconds: dict[str, float] = {}
    remarks: list[str] = []
    pursued = _steps.pursuit_codes((D,), samples.tested_on, run, seconds, remarks, lam)
    classical = {name: codes for name, (codes,) in pursued.items()}
    sparsity = max(1, round(_steps.nonzeros(D, optimum.x)))
    trained = _trained_on_lasso(samples, lam, sparsity, run, seconds, remarks)
    if certify:
        say("proving the codes of the test signals")
    result = _steps.compared(
        {**trained, **classical, **run.weights}, D, some, lam=lam, certify=certify
    )
    learned = {
        name: (of.layer, of.params, D) for name, of in trained.items() if of.origin == "learned"
    }
    for name, fit in run.weights.items():
        assert isinstance(fit.model, Layer)  # `compared` refuses a network next to a layer
        learned[name] = fit.model, fit.best, D if fit.D is None else fit.D
    worse = {name: m for name, m in learned.items() if result[name].curve.worse[-1] > 0}
    remarks += _of_guarded(worse, D, some, lam, optimum)
    solved = D, signals, some, lam, optimum
    return UnknownCodes(run.depth, result, remarks, seconds, *solved, trained)


def _trained_on_lasso(
    samples: Samples,
    lam: float,
    sparsity: int,
    run: Plan,
    seconds: dict[str, float],
    remarks: list[str],
) -> Methods:
    """ISTA and FISTA, and learned methods trained on the LASSO objective."""
    D, K = samples.D, run.depth
    params = analytic.ista(D, lam, K)
    classical = {"ISTA": layers.ista(K), "FISTA": layers.fista(K)}
    made = [Method(of, params, origin="untrained", title=n) for n, of in classical.items()]
    families = _families(lam, sparsity, run)
    objective = training.lasso_loss(lam)

    def loss(codes, X, D, Y):
        deep = training.deep(objective)(codes, X, D, Y)
        return (1 - _DEEP) * objective(codes, X, D, Y) + _DEEP * deep

    names = run.methods
    if run.methods == _steps.BY_DEFAULT:
        names = "lista_cp", training.family_without_codes(D)
        left = ", ".join(_CALIBRATED)
        remarks.append(
            f"Without known codes the tables have no rows of {left} and of learned ISTA unless you "
            "name these methods."
        )

    def trained(family: str) -> tuple[list[Method], dict[str, float], list[str]]:
        name, layer, rate = families[family]
        spent: dict[str, float] = {}
        broken: list[str] = []
        run.say(f"{name}: training {run.steps} steps on the LASSO objective")
        start = layer.init(run.key, D)
        with _steps.timed(spent, f"{name}, learned"):
            if rate is None:
                learned = _by_recipe(samples, lam, run, family, name, broken)
            else:
                # lfista_cp returns the best code of all steps: the loss of the last is enough.
                aim = objective if family == "lfista_cp" else loss
                learned = _steps.train(layer, start, samples, run, name, broken, aim, rate)
        method, n = partial(Method, layer, title=name), len(samples.chosen_on[0])
        fitted = [method(learned.best, origin="learned", sample=n, steps=run.steps)]
        if name not in ("ISTA", "LFISTA-CP"):
            fitted.insert(0, method(start, origin="untrained"))
        return fitted, spent, broken

    for fitted, spent, broken in threads.each(trained, [n for n in families if n in names]):
        made += fitted
        seconds |= spent
        remarks += broken
    return named(made)


def _families(lam: float, sparsity: int, run: Plan) -> dict[str, tuple[str, Layer, float | None]]:
    """The title, the layer and the learning rate of every family that may be trained.

    The rate is None for layers that `training.unsupervised` trains.
    """
    K = run.depth
    families: dict[str, tuple[str, Layer, float | None]] = {
        "ista": ("ISTA", layers.ista(K, lam=lam), 3e-3),
        "lista": ("LISTA", layers.lista(K, lam=lam), 1e-3),
        "lista_cp": ("LISTA-CP", layers.lista_cp(K, tied=False, lam=lam), 1e-3),
        "lfista_cp": ("LFISTA-CP", layers.lfista_cp(K, lam=lam), 1e-3),
        "bcd": ("BCD", layers.bcd(K, lam=lam), None),
        "alista": ("ALISTA", layers.alista(K, lam=lam), 1e-3),
        "alista_ss": ("ALISTA-SS", layers.alista(K, lam=lam, support=_steps.SUPPORT), 1e-3),
    }
    for name in run.others:
        if name not in families:
            layer = _steps.layer_of(name, K, lam, sparsity)
            families[name] = (name, layer, None if training.has_recipe(layer) else 1e-3)
    return families


def _by_recipe(
    samples: Samples, lam: float, run: Plan, family: str, name: str, remarks: list[str]
) -> training.Fit:
    """A family, trained by `training.unsupervised`."""
    options: dict[str, Any] = dict(family=family, steps=run.steps, key=_steps.training_key(run))
    options |= dict(progress=False)
    train = partial(training.unsupervised, samples.D, samples.sample, lam, run.depth, **options)
    return _steps.unless_broken(train, name, remarks)


def _of_guarded(
    methods: Mapping[str, tuple[Layer, Unrolled, Dictionary]],
    D: Dictionary,
    Y: Array,
    lam: float,
    optimum: pursuit.Pursuit,
) -> list[str]:
    """A remark on the gaps with a guard, for methods with some codes worse than the zero code.

    Each method has the dictionary of its steps; `D` is the dictionary of the objective.
    """
    gaps, converged = {}, np.asarray(optimum.converged)
    for name, (layer, params, own) in methods.items():
        if layer.guard is None and converged.any():
            guarded = dataclasses.replace(layer, guard=lam)
            codes = jax.jit(jax.vmap(guarded.apply, (None, None, 0)))(params, own, Y)
            least, ours = (_objectives(D, Y, X, lam)[converged] for X in (optimum.x, codes))
            gaps[name] = float((ours - least).sum() / least.sum())
    if not gaps:
        return []
    listed = "; ".join(f"{name} {gap:.2e}" for name, gap in gaps.items())
    return [
        f"A layer with `guard={lam:.6g}` compares the codes of all steps and the zero code, and "
        "returns the code with the least objective, so no code is worse than the zero code. The "
        "guard needs no training, and costs one product per step. Set the guard by "
        f"`dataclasses.replace`. (F - F*) / F* with the guard: {listed}."
    ]


def _objectives(D: Any, Y: Any, X: Any, lam: float) -> np.ndarray:
    """F of every signal, in float64, so that squares of narrower dtypes stay in range."""
    D, Y, X = (np.asarray(part, float) for part in (D, Y, X))
    return np.sum((Y - X @ D.T) ** 2, 1) / 2 + lam * np.abs(X).sum(1)


def _remark(D: Dictionary) -> str:
    """A remark on the sparsity that theory certifies for D."""
    certified = analytic.certified_weights(dictionaries.normalize(D)[0])
    s = theory.max_sparsity(certified.mu_W, D.shape[1])
    return (
        "Of W = D and the closed form, the weights with the smaller coherence have "
        f"mu_W = {certified.mu_W:.3f}, which certifies s = {s}. The analytic rows therefore use "
        "ISTA's weights, the only weights that the objective itself justifies."
    )
