"""`unrolled compare`: analytic beside calibrated and learned weights, as a report."""

import argparse
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unrolled import dictionaries, problems, training
from unrolled._base.threads import beside
from unrolled.app import studies
from unrolled.app.commands import _report
from unrolled.app.commands._console import Say, add_command, progress_printer
from unrolled.app.commands._inputs import (
    OPTIONS,
    add_options,
    given_options,
    names,
    read_chain,
    read_dictionary,
    read_signals,
    restore_model,
    weights_of,
)
from unrolled.app.commands._report import Section
from unrolled.app.studies import BY_DEFAULT, METHODS
from unrolled.dictionaries import Operator, as_chain
from unrolled.pursuit import PURSUITS
from unrolled.vision import datasets


@dataclass(frozen=True)
class Settings:
    """What the command line sets for all experiments."""

    methods: tuple[str, ...] = METHODS
    depth: int = 16
    sparsity: int | None = None
    snr: float = math.inf
    lam: float | None = None
    steps: int = 400
    sampled: int | None = None
    certify: bool = False
    predict: bool = False
    seed: int = 0
    quick: bool = False
    pursuits: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # of the pursuits
    weights: tuple[Path, ...] = ()  # files, or folders of runs
    dictionaries: list[Path] = field(default_factory=list)  # files

    @property
    def key(self) -> jax.Array:
        """The key of everything random."""
        return jax.random.key(self.seed)


_TITLE = "Analytic and learned sparse coding"
_SUMMARY = """\
How close do weights that theory sets come to weights that were learned? *Analytic* params come from
theory alone (weights in closed form, thresholds from Theorem 12), *calibrated* ones keep those
weights and choose thresholds and step sizes on a sample without gradients, *learned* ones start
there and are trained end to end."""
_STEPS, _QUICK_STEPS = 400, 60
# Options of pursuits alone: a sparsity and a lam the layers have too.
_OPTIONS = tuple(name for name in OPTIONS if name not in ("sparsity", "lam"))
# Weight of the LASSO for patches whose grey values are in [0, 1].
_LAM_OF_PATCHES = 0.05
# With --quick: about so many tested signals, steps of the certified regime, and of its chain.
_QUICK_TESTED, _QUICK_DEPTH, _QUICK_CHAIN_DEPTHS = 500, 60, (40,)

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "--dictionary": dict(
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="D, (m, d), as .npy or .npz (entry D); several files are a chain, in order",
    ),
    "--signals": dict(
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="signals (signals, m) as .npy or .npz (entry Y, and X if codes are known; of a chain "
        "X_1, X_2, ...), or pictures or folders of them, of which the last picture is for testing",
    ),
    "--method": {},  # by `add_parser`: pursuits may be registered later
    "--depth": dict(type=int, default=16, help="steps K of a layer (default 16)"),
    "--sparsity": dict(
        type=int,
        help="expected nonzeros of a generated code (default d / 10); of a pursuit the most",
    ),
    "--snr": dict(
        type=float, default=math.inf, help="signal-to-noise ratio, dB (default: no noise)"
    ),
    "--lam": dict(type=float, help="weight of the LASSO (default: chosen on the data)"),
    "--steps": dict(
        type=int, help=f"training steps (default {_STEPS}; {_QUICK_STEPS} with --quick)"
    ),
    "--sampled": dict(
        type=int,
        metavar="N",
        help="also bound the errors of 99.9 %% of the class of known codes by N fresh draws, such "
        "as 20000 (default: no bound)",
    ),
    "--certify": dict(
        action="store_true",
        help="also measure the share of codes that are proved to be the only ones of least l1 "
        "norm, after least squares on their supports",
    ),
    "--predict": dict(
        action="store_true",
        help="also show what theory predicts of the median error, step by step (known codes)",
    ),
    "--quick": dict(action="store_true", help="a smaller run, under a minute"),
    "--output": dict(
        type=Path,
        default=Path("unrolled-report"),
        metavar="DIR",
        help="folder of the report (default unrolled-report)",
    ),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled compare`."""
    method = dict(
        action="append",
        metavar="NAMES",
        help=f"comma-separated layers ({','.join(METHODS)}, or any other family; default: all but "
        "lista), files of weights or folders of `unrolled train`, and pursuits, shown as level "
        f"lines ({','.join(_pursuits())})",
    )
    parser = add_command(
        commands,
        "compare",
        run,
        {**_ARGUMENTS, "--method": method},
        help="compare analytic with learned weights in a report",
        description="Compare weights set by theory with learned ones, and write a report with "
        "tables and figures.\nWithout arguments: the standard benchmark, patches of real "
        "photographs, and a certified chain.",
        epilog="examples:\n  unrolled compare --quick\n"
        "  unrolled compare --dictionary D.npy --sparsity 5 --snr 30 --depth 20 --output report\n"
        "  unrolled compare --dictionary D.npy --signals Y.npy --method ista,lista_cp\n"
        "  unrolled compare --dictionary D.npy --method ista,omp,bpdn --sparsity 5 --eps 0.1\n"
        "  unrolled compare --dictionary D_1.npy D_2.npy D_3.npy\n"
        "  unrolled compare --signals one.png two.png",
    )
    add_options(parser, _OPTIONS)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Run the experiments, write the report and print its text, or its data as JSON."""
    settings = _settings(arguments)
    _check_output(arguments.output, arguments.signals or [])
    say = progress_printer()
    facts = {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in vars(arguments).items()
        if name not in ("run", "json") and value not in (None, False)
    }
    with _report.output_folder(arguments.output):
        sections = _studies(arguments.dictionary, arguments.signals, settings, say)
        say("writing the report")
        report = _report.write_report(arguments.output, _TITLE, _SUMMARY, sections, facts)
    if arguments.json:
        print((arguments.output / _report.RESULTS).read_text())
    else:
        for section in sections:
            print(f"\n# {section.title}\n\n{section.text.strip()}")
        print(f"\nReport: {report}")
    say("done")


def _check_output(folder: Path, signals: list[Path]) -> None:
    """Raise, before any work, if a report would be drawn over the pictures given."""
    pictures = [folder / name for name in ("signals.png", "signals-2.png")]
    _report.check_not_read([folder, *pictures], signals)


def _pursuits() -> tuple[str, ...]:
    return tuple(name for name in names() if name not in studies.all_methods())


def _is_weights(name: str) -> bool:
    """Whether a method is a file of weights, or a folder with one."""
    return Path(name).suffix in (".npz", ".safetensors") or (bool(name) and Path(name).is_dir())


def _restored(paths: tuple[Path, ...], D: list[Path]) -> dict[str, training.Fit]:
    """The weights of files as results of `fit`, by their paths.

    Raises:
        ValueError: weights without a layer, or without a dictionary where none is given.
    """
    fits = {}
    for path in paths:
        has_D = training.restore(weights_of(path)).D is not None
        saved = restore_model(weights_of(path), [] if has_D else D)
        model: Any = saved.layer
        history = training.History(np.zeros(0), ())
        fits[str(path)] = training.Fit(saved.params, saved.params, saved.D, history, model)
    return fits


def _settings(arguments: argparse.Namespace) -> Settings:
    """The settings of the experiments, checked before any work."""
    methods = BY_DEFAULT
    if arguments.method is not None:
        arguments.method = ",".join(arguments.method)
        methods = tuple(name.strip() for name in arguments.method.split(","))
    weights = tuple(Path(name) for name in methods if _is_weights(name))
    methods = tuple(name for name in methods if not _is_weights(name))
    available = *studies.all_methods(), *_pursuits()
    if unknown := [name for name in methods if name not in available]:
        raise ValueError(
            f"compare: unknown method {', '.join(unknown)}; expected some of "
            f"{', '.join(available)}, or a file of weights"
        )
    pursuits = tuple(name for name in methods if name in _pursuits())
    options = given_options(arguments, _OPTIONS)
    steps = arguments.steps
    if steps is None:
        steps = _QUICK_STEPS if arguments.quick else _STEPS
    _check_options(arguments, pursuits, tuple(options))
    _check_numbers(arguments, steps)
    same = ("depth", "sparsity", "snr", "lam", "sampled", "certify", "predict", "quick")
    return Settings(
        methods=tuple(name for name in methods if name not in pursuits),
        weights=weights,
        pursuits=pursuits,
        options=options | given_options(arguments, ("sparsity", "lam")),
        steps=steps,
        dictionaries=arguments.dictionary or [],
        seed=arguments.seed or 0,
        **{name: getattr(arguments, name) for name in same},
    )


def _check_options(
    arguments: argparse.Namespace, pursuits: tuple[str, ...], options: tuple[str, ...]
) -> None:
    """Raise ValueError for options that nothing among the methods or the signals has."""
    has = {option for name in pursuits for option in PURSUITS[name].options}
    if idle := [option for option in options if option not in has]:
        raise ValueError(f"compare: --{', --'.join(idle)} needs a pursuit that has it in --method")
    if arguments.signals is None:
        return
    planted = ["snr"] if arguments.snr != math.inf else []
    if arguments.sparsity is not None and "sparsity" not in has:
        planted.append("sparsity")
    if planted:
        raise ValueError(f"compare: --{', --'.join(planted)} is of planted codes, not signals")


def _check_numbers(arguments: argparse.Namespace, steps: int) -> None:
    """Raise ValueError for numbers out of range."""
    for name, value, least in (("depth", arguments.depth, 1), ("steps", steps, 0)):
        if value < least:
            raise ValueError(f"compare: {name} must be at least {least}, got {value}")
    if arguments.lam is not None and not 0 < arguments.lam < math.inf:
        raise ValueError(f"compare: lam must be positive, got {arguments.lam}")
    if arguments.sampled is not None and arguments.sampled < 1:
        raise ValueError(f"compare: sampled must be at least 1, got {arguments.sampled}")
    asked = arguments.sampled is not None or arguments.certify or arguments.predict
    if len(arguments.dictionary or []) > 1 and asked:
        raise ValueError(
            "compare: --sampled, --certify and --predict are of one dictionary, got a chain"
        )
    if math.isnan(arguments.snr):
        raise ValueError("compare: snr must be a number of decibels, got nan")


def _studies(
    paths: list[Path] | None, signals: list[Path] | None, settings: Settings, say: Say
) -> list[Section]:
    """The studies of the files of a user, or the standard ones without files."""
    Ds = [read_dictionary(path) for path in paths or ()]
    if len(Ds) > 1:
        return [_chain_section(as_chain(Ds, "compare"), signals, settings, say)]
    D = Ds[0] if Ds else None
    if signals is not None:
        D, own = read_signals(signals, D)
        if isinstance(own, studies.Pictures):
            if settings.predict or settings.sampled is not None:
                raise ValueError(
                    "compare: --sampled and --predict are of errors of known codes; these are not"
                )
            return [_unknown_codes(D, own, settings, say, "Own signals", "signals")]
        samples, title = studies.split(D, *own), "Own signals with known codes"
        return [_known_codes(samples, settings, say, title, "signals")]
    if D is None:
        return _standard_sections(settings, say)
    samples, title = _planted(D, settings), "Planted codes of the dictionary"
    return [
        _known_codes(samples, settings, say, title, "planted"),
        *_certified_regime(D, settings, say),
    ]


def _chain_section(
    Ds: tuple[Operator, ...], signals: list[Path] | None, settings: Settings, say: Say
) -> Section:
    """The study of a chain of dictionaries."""
    if signals is None:
        title = "Planted codes of the chain"
        return _known_codes(_planted(Ds, settings), settings, say, title, "planted-chain")
    samples = studies.split(Ds, *read_chain(signals, Ds))
    return _known_codes(samples, settings, say, "Own signals of the chain", "signals")


def _standard_sections(settings: Settings, say: Say) -> list[Section]:
    """The standard benchmark, its certified regime, photographs, and a certified chain.

    Tracing and compiling take one core: the benchmark has a thread, the others have one together.
    """
    # First, as they may not be installed.
    pictures = studies.photograph_patches(datasets.photographs())
    D = problems.standard_benchmark(settings.key).D
    others = beside(partial(_smaller_sections, D, pictures, settings, say))
    say("the standard benchmark, 250 x 500")
    title = "The standard benchmark"
    benchmark = _known_codes(_planted(D, settings), settings, say, title, "benchmark")
    return [benchmark, *others.result()]


def _smaller_sections(
    D: Operator, pictures: studies.Pictures, settings: Settings, say: Say
) -> list[Section]:
    """All standard sections but the benchmark."""
    certified = _certified_regime(D, settings, say)
    say("patches of photographs, 64 x 256")
    cosines, title = dictionaries.dct((8, 8), (16, 16)), "Patches of real photographs"
    lam = _LAM_OF_PATCHES if settings.lam is None else settings.lam
    patches = _unknown_codes(cosines, pictures, settings, say, title, "patches", lam=lam)
    depths = dict(depths=_QUICK_CHAIN_DEPTHS) if settings.quick else {}
    chain = studies.certified_chain(settings.key, **depths, say=say)
    title = "A two-layer chain with certified bounds"
    return [*certified, patches, _study_section(chain, title, "chain")]


# Studies, and their sections


def _planted(D: Any, settings: Settings) -> studies.Samples:
    return studies.planted(settings.key, D, sparsity=settings.sparsity, snr=settings.snr)


def _study_options(settings: Settings, say: Say) -> dict[str, Any]:
    """What the studies of known and of unknown codes have in common."""
    pursuits = {
        name: {
            option: value
            for option, value in settings.options.items()
            if option in PURSUITS[name].options
        }
        for name in settings.pursuits
    }
    return dict(
        methods=settings.methods,
        pursuits=pursuits,
        depth=settings.depth,
        lam=settings.lam,
        steps=settings.steps,
        certify=settings.certify,
        weights=_restored(settings.weights, settings.dictionaries),
        say=say,
    )


def _known_codes(
    samples: studies.Samples, settings: Settings, say: Say, title: str, slug: str
) -> Section:
    options = _study_options(settings, say)
    options |= dict(sampled=settings.sampled, predict=settings.predict)
    study = studies.known_codes(settings.key, samples, **options)
    return _study_section(study, title, slug)


def _unknown_codes(
    D: Operator,
    pictures: studies.Pictures,
    settings: Settings,
    say: Say,
    title: str,
    slug: str,
    **others: Any,
) -> Section:
    options = _study_options(settings, say) | others
    if settings.quick:
        options |= dict(tested=_QUICK_TESTED)
    study = studies.unknown_codes(settings.key, D, pictures, **options)
    return _study_section(study, title, slug)


def _certified_regime(D: Operator, settings: Settings, say: Say) -> list[Section]:
    """The certified regime; none where not even one nonzero is certified."""
    options = dict(depth=_QUICK_DEPTH) if settings.quick else {}
    study = studies.certified_regime(settings.key, D, **options, say=say)
    title = "The regime that the theory certifies"
    return [_study_section(study, title, "certified")] if study.runs else []


def _study_section(study: Any, title: str, slug: str) -> Section:
    figures = {f"{title}: {shown}": draw for shown, draw in study.figures().items()}
    parts, rows = study.parts(), study.rows()
    return Section(title, slug, parts, figures, rows, study.to_dict(), study.answer())
