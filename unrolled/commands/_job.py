"""Which experiments a call of `unrolled compare` runs: the main job, or those on what the user
brings.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from unrolled import datasets, dictionaries, problems
from unrolled.commands._certified import certified_regime, chain
from unrolled.commands._inputs import read_dictionary, read_signals
from unrolled.commands._known_codes import known_codes
from unrolled.commands._pictures import photograph_patches, unknown_codes
from unrolled.commands._report import Section
from unrolled.commands._settings import Settings, given_problem, planted_problem


def sections(
    dictionary: Path | None, signals: list[Path] | None, settings: Settings, say: Callable
) -> list[Section]:
    """The sections that the arguments ask for; the main job if there are none."""
    D = None if dictionary is None else read_dictionary(dictionary)
    if signals is not None:
        D, Y, X = read_signals(signals, D)
        if X is None:
            return [unknown_codes(D, Y, settings, say, "Own signals", "signals")]
        return [
            known_codes(
                given_problem(D, Y, X), settings, say, "Own signals with known codes", "signals"
            )
        ]
    if D is not None:
        planted = known_codes(
            planted_problem(D, settings),
            settings,
            say,
            "Planted codes of the dictionary",
            "planted",
        )
        certified = certified_regime(D, settings, say)
        return [planted] if certified is None else [planted, certified]
    return main_job(settings, say)


def main_job(settings: Settings, say: Callable) -> list[Section]:
    """The standard benchmark, the regime that theory certifies, photographs, and a certified chain."""
    say("the standard benchmark, 250 x 500")
    D = problems.standard_benchmark(settings.key).D
    benchmark = known_codes(
        planted_problem(D, settings), settings, say, "The standard benchmark", "benchmark"
    )
    certified = certified_regime(D, settings, say)
    say("patches of photographs, 64 x 256")
    pictures, cosines = (
        photograph_patches(datasets.photographs()),
        dictionaries.dct((8, 8), (16, 16)),
    )
    # Grey values are in [0, 1].
    on_patches = settings if settings.lam is not None else dataclasses.replace(settings, lam=0.05)
    patches = unknown_codes(
        cosines, pictures, on_patches, say, "Patches of real photographs", "patches"
    )
    return [benchmark, certified, patches, chain(settings, say)]
