"""`unrolled compare`: analytic, calibrated and learned weights in one report."""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled import dictionaries, problems, training
from unrolled._base.packages import absent, is_installed, require
from unrolled._base.threads import in_thread
from unrolled.app import studies
from unrolled.app.commands import _inputs, _report
from unrolled.app.commands._console import Say, add_command, progress_printer
from unrolled.app.commands._report import Section, section_of
from unrolled.app.studies import BY_DEFAULT, METHODS, Pictures, plan
from unrolled.dictionaries import Operator, as_chain
from unrolled.pursuit import PURSUITS
from unrolled.vision import datasets

_TITLE = "Analytic and learned sparse coding"
_SUMMARY = """\
How close do weights that theory sets come to weights that were learned? *Analytic* params come from
theory alone (weights in closed form, thresholds from Theorem 12). *Calibrated* params keep these
weights; their thresholds and step sizes are chosen on a sample, without gradients. *Learned* params
start at the calibrated params and are trained end to end."""
_STEPS, _QUICK_STEPS = 400, 60
# Options that only pursuits have; layers also have a sparsity and a lam.
_OPTIONS = tuple(name for name in _inputs.OPTIONS if name not in ("sparsity", "lam"))
# Weight of the LASSO for patches whose grey values are in [0, 1].
_LAM_OF_PATCHES = 0.05
# With --quick: the approximate number of tested signals, the steps of the certified regime, and the
# steps of each layer of the certified chain.
_QUICK_TESTED, _QUICK_DEPTH, _QUICK_CHAIN_DEPTHS = 500, 60, (40,)
# Proofs signal by signal: the numbers of nonzeros in the standard benchmark; the number of codes to
# prove (the study draws twice this number, which is the number in the certified regime, so that one
# program serves both); the largest number of atoms, since each step multiplies by a d x d matrix.
_PROVED, _DRAWS, _MOST_ATOMS = (11, 12), 250, 1000

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "--dictionary": dict(type=Path, nargs="+", action="extend", metavar="FILE"),
    "--signals": dict(type=Path, nargs="+", action="extend", metavar="FILE"),
    "--method": {},  # by `add_parser`: pursuits may be registered later
    "--depth": dict(type=int, default=16),
    "--sparsity": dict(type=int),
    "--snr": dict(type=float, default=math.inf),
    "--lam": dict(type=float),
    "--steps": dict(
        type=int, help=f"training steps (default {_STEPS}; {_QUICK_STEPS} with --quick)"
    ),
    "--sampled": dict(type=int, metavar="N"),
    "--certify": dict(action="store_true"),
    "--predict": dict(action="store_true"),
    "--quick": dict(action="store_true"),
    "--output": dict(type=Path, default=Path("unrolled-report"), metavar="DIR"),
}


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled compare`."""
    method = dict(
        action="append",
        metavar="NAMES",
        help=f"comma-separated layers ({','.join(METHODS)}, or any other family; default: all but "
        "lista; for signals without codes, ista, fista, lista_cp and bcd), files of weights or "
        "folders of saved steps, and pursuits, shown as horizontal lines "
        f"({','.join(_pursuits())})",
    )
    parser = add_command(commands, "compare", run, {**_ARGUMENTS, "--method": method})
    _inputs.add_options(parser, _OPTIONS)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Compare analytic and learned weights in a report.

    Compare the weights that theory sets with learned weights, and write a report with
    tables and figures. Without arguments, the report covers the standard benchmark, patches of
    photographs, and a certified chain.

    Flags:
        --dictionary: D of shape (m, d), as .npy or .npz (entry D); several files make a chain, in
            order
        --signals: signals of shape (signals, m), as .npy or .npz (entry Y, and X if codes are
            known; for a chain X_1, X_2, ...), or pictures or folders of pictures; the last picture
            is for testing
        --depth: steps K of a layer (default 16)
        --sparsity: expected number of nonzeros of a generated code (default d / 10); largest number
            of nonzeros of the code of a pursuit
        --snr: signal-to-noise ratio, dB (default: no noise)
        --lam: weight of the LASSO (default: chosen on the data)
        --sampled: also draw N new known codes, such as 20000, and bound the errors of 99.9 % of the
            codes in the class of the drawn codes (default: no bound)
        --certify: also measure the share of codes that are proved to be the only codes of least l1
            norm, after least squares on their supports
        --predict: for known codes, also show the median error that theory predicts for every step
        --quick: a smaller run, under a minute
        --output: folder of the report (default unrolled-report)

    Examples:
        unrolled compare --quick
        unrolled compare --dictionary D.npy --sparsity 5 --snr 30 --depth 20 --output report
        unrolled compare --dictionary D.npy --signals Y.npy --method ista,lista_cp
        unrolled compare --dictionary D.npy --method ista,omp,bpdn --sparsity 5 --eps 0.1
        unrolled compare --dictionary D_1.npy D_2.npy D_3.npy
        unrolled compare --signals one.png two.png
    """
    require("compare", "matplotlib")
    say: Say = print  # replaced once the number of stages is known
    asked, folder = _asked(arguments, lambda message: say(message)), arguments.output
    say = progress_printer(_stages(arguments, asked))
    # Check before any work: the report would overwrite these pictures.
    drawn = [folder / name for name in ("signals.png", "signals-2.png")]
    _report.check_not_read([folder, *drawn], arguments.signals or [])
    facts = {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in vars(arguments).items()
        if name not in ("run", "json") and value not in (None, False)
    }
    with _report.output_folder(folder):
        sections = _sections(arguments.dictionary or [], arguments.signals, asked)
        say("measuring the costs")
        sections = [*map(_report.with_costs, sections)]
        say("writing the report")
        report = _report.write_report(folder, _TITLE, _SUMMARY, sections, facts)
    if arguments.json:
        print((folder / _report.RESULTS).read_text())
    else:
        for section in sections:
            print(f"\n{section.title}\n\n{section.short}")
        print(f"\nReport: {report}, with every number in report.md and {_report.RESULTS}")
        say("done")
        print(f"\n{sections[0].answer}")


# Arguments


class Asked(NamedTuple):
    """The arguments of the studies, checked."""

    key: jax.Array  # of all random numbers
    planted: dict[str, Any]  # options of `studies.planted`
    both: dict[str, Any]  # options that the studies of known and of unknown codes share
    known: dict[str, Any]  # options that only the study of known codes has
    quick: bool
    say: Say


def _asked(arguments: argparse.Namespace, say: Say) -> Asked:
    """The arguments of the studies, checked before any work."""
    methods = BY_DEFAULT
    if arguments.method is not None:
        arguments.method = ",".join(arguments.method)
        methods = tuple(name.strip() for name in arguments.method.split(","))
    weights = [Path(name) for name in methods if _is_weights(name)]
    methods = tuple(name for name in methods if not _is_weights(name))
    available = *studies.all_methods(), *_pursuits()
    if unknown := [name for name in methods if name not in available]:
        raise ValueError(
            f"compare: unknown method {', '.join(unknown)}; expected some of "
            f"{', '.join(available)}, or a file of weights"
        )
    pursuits = tuple(name for name in methods if name in _pursuits())
    _check_options(arguments, pursuits)
    options, steps = _inputs.given_options(arguments), arguments.steps
    if steps is None:
        steps = _QUICK_STEPS if arguments.quick else _STEPS
    asked = dict(
        methods=tuple(name for name in methods if name not in pursuits),
        pursuits={
            name: {n: value for n, value in options.items() if n in PURSUITS[name].options}
            for name in pursuits
        },
        depth=arguments.depth,
        lam=arguments.lam,
        steps=steps,
        weights=_restored(weights, arguments.dictionary or []),
        say=say,
    )
    key = jax.random.key(arguments.seed or 0)
    plan(key, **asked)
    return Asked(
        key,
        dict(sparsity=arguments.sparsity, snr=arguments.snr),
        asked | dict(certify=arguments.certify),
        dict(sampled=arguments.sampled, predict=arguments.predict),
        arguments.quick,
        say,
    )


def _pursuits() -> tuple[str, ...]:
    return tuple(name for name in _inputs.names() if name not in studies.all_methods())


def _is_weights(name: str) -> bool:
    """Whether a method is a file of weights, or a folder with such a file."""
    return Path(name).suffix in (".npz", ".safetensors") or (bool(name) and Path(name).is_dir())


def _check_options(arguments: argparse.Namespace, pursuits: tuple[str, ...]) -> None:
    """Raise ValueError if a given option suits no method in use, or a number is out of range."""
    has = {option for name in pursuits for option in PURSUITS[name].options}
    if idle := [
        option for option in _inputs.given_options(arguments, _OPTIONS) if option not in has
    ]:
        raise ValueError(f"compare: --{', --'.join(idle)} needs a pursuit that has it in --method")
    planted = ["snr"] if arguments.snr != math.inf else []
    planted += ["sparsity"] if arguments.sparsity is not None and "sparsity" not in has else []
    if planted and arguments.signals is not None:
        raise ValueError(
            f"compare: --{', --'.join(planted)} is for generated codes, not for signals of a file"
        )
    if arguments.sampled is not None and arguments.sampled < 1:
        raise ValueError(f"compare: sampled must be at least 1, got {arguments.sampled}")
    asked = arguments.sampled is not None or arguments.certify or arguments.predict
    if len(arguments.dictionary or []) > 1 and asked:
        raise ValueError(
            "compare: --sampled, --certify and --predict are of one dictionary, got a chain"
        )
    if math.isnan(arguments.snr):
        raise ValueError("compare: snr must be a number of decibels, got nan")


def _restored(paths: list[Path], D: list[Path]) -> dict[str, training.Fit]:
    """The weights of files as results of `fit`, by their paths.

    Raises:
        ValueError: weights have no layer, or have no dictionary and --dictionary is not given.
    """
    fits = {}
    for path in paths:
        has_D = training.restore(path).D is not None
        saved = _inputs.restore_model(path, [] if has_D else D)
        model: Any = saved.layer
        history = training.History(np.zeros(0), ())
        fit = training.Fit(saved.params, saved.params, saved.D, history, model)
        fits[str(path)] = fit.replace(seconds=float(saved.metadata.get("seconds", 0.0)))
    return fits


# Studies, and their sections


def _stages(arguments: argparse.Namespace, asked: Asked) -> int:
    """The number of messages of a command: the studies', and three of its own."""
    methods, chained = asked.both["methods"], len(arguments.dictionary or []) > 1
    families = [name for name in methods if name not in ("ista", "fista")]
    pursuits, certify = len(asked.both["pursuits"]), int(asked.both["certify"])
    classical = (len(methods) - len(families)) * chained
    known = classical + 2 * len(families) + pursuits + 1
    trained = 2 if methods == BY_DEFAULT else len(families) + ("ista" in methods)
    unknown = 1 + pursuits + certify + trained
    own = 3  # costs, report, end
    if arguments.signals is not None:
        return own + (known if arguments.signals[0].suffix == ".npz" else unknown)
    if arguments.dictionary:
        return own + known + (0 if chained else 3)
    return own + 1 + known + 2 + len(_PROVED) + 1 + unknown + 1


def _sections(paths: list[Path], signals: list[Path] | None, asked: Asked) -> list[Section]:
    """The studies of a user's files; without files, the standard studies."""
    Ds = [_inputs.read_dictionary(path) for path in paths]
    D: Any = as_chain(Ds, "compare") if len(Ds) > 1 else next(iter(Ds), None)
    if signals is not None:
        D, own = _inputs.read_signals(signals, D)
        if not isinstance(own, Pictures):
            of = "of the chain" if len(Ds) > 1 else "with known codes"
            return [_known_codes(studies.split(D, *own), asked, f"Own signals {of}", "signals")]
        if asked.known["predict"] or asked.known["sampled"] is not None:
            raise ValueError(
                "compare: --sampled and --predict are of errors of known codes; these are not"
            )
        return [_unknown_codes(D, own, asked, "Own signals", "signals")]
    if D is None:
        return _standard_sections(asked)
    if len(Ds) > 1:
        return [_planted(D, asked, "Planted codes of the chain", "planted-chain")]
    planted = _planted(D, asked, "Planted codes of the dictionary", "planted")
    return [planted, *_certified_regime(D, asked)]


def _standard_sections(asked: Asked) -> list[Section]:
    """The standard benchmark, its certified regime, photographs, and a certified chain.

    Tracing and compiling take one core, so the benchmark runs in one thread and the other studies
    run in a second thread.
    """
    pictures = None
    if is_installed("sklearn", "PIL"):
        pictures = studies.photograph_patches(datasets.photographs())
    else:
        asked.say(f"left out: {absent('patches of photographs', 'sklearn', 'PIL')}")
    D = problems.standard_benchmark(asked.key).D
    others = in_thread(partial(_smaller_sections, D, pictures, asked))
    asked.say("the standard benchmark, 250 x 500")
    return [_planted(D, asked, "The standard benchmark", "benchmark"), *others.result()]


def _smaller_sections(D: Operator, pictures: Pictures | None, asked: Asked) -> list[Section]:
    """All standard sections except the benchmark."""
    sections = _certified_regime(D, asked, _PROVED)
    if pictures is not None:
        asked.say("patches of photographs, 64 x 256")
        cosines, lam = dictionaries.dct((8, 8), (16, 16)), asked.both["lam"] or _LAM_OF_PATCHES
        title = "Patches of real photographs"
        sections += [_unknown_codes(cosines, pictures, asked, title, "patches", lam=lam)]
    depths = dict(depths=_QUICK_CHAIN_DEPTHS) if asked.quick else {}
    chain = studies.certified_chain(asked.key, **depths, say=asked.say)
    title = "A two-layer chain with certified bounds"
    return [*sections, section_of(chain, title, "chain")]


def _planted(D: Any, asked: Asked, title: str, slug: str) -> Section:
    return _known_codes(studies.planted(asked.key, D, **asked.planted), asked, title, slug)


def _known_codes(samples: studies.Samples, asked: Asked, title: str, slug: str) -> Section:
    study = studies.known_codes(asked.key, samples, **asked.both, **asked.known)
    return section_of(study, title, slug)


def _unknown_codes(
    D: Operator, pictures: Pictures, asked: Asked, title: str, slug: str, **others: Any
) -> Section:
    options = asked.both | others | (dict(tested=_QUICK_TESTED) if asked.quick else {})
    return section_of(studies.unknown_codes(asked.key, D, pictures, **options), title, slug)


def _certified_regime(
    D: Operator, asked: Asked, sparsities: tuple[int, ...] | None = None
) -> list[Section]:
    """The certified regime, and the proofs beyond it; empty if theory certifies s = 0 only."""
    options = dict(depth=_QUICK_DEPTH) if asked.quick else {}
    study = studies.certified_regime(asked.key, D, **options, say=asked.say)
    if not study.runs:
        return []
    section = section_of(study, "The regime that the theory certifies", "certified")
    if study.shape[1] > _MOST_ATOMS:
        return [section]
    proved = studies.certify_drawn(
        asked.key,
        D,
        sparsity=sparsities,
        draws=_DRAWS,
        weights=("closed form",),
        measured=not asked.quick,
        say=asked.say,
    )
    data = {**section.data, "signal_by_signal": proved.to_dict()}
    return [section._replace(parts=[*section.parts, "", *proved.parts()], data=data)]
