"""Which options of a configuration go together, and the defaults that depend on others."""

import dataclasses
import math
from typing import Any

from unrolled.commands._options import ConfigError, options_of
from unrolled.commands._sections import (
    GENERATED,
    PLANTED,
    Config,
    ModelSection,
    ProblemSection,
    family_of,
    option_names,
)
from unrolled.layers import FAMILIES, Layer, names_with_role


def resolved(config: Config) -> Config:
    """The configuration with defaults that depend on other options, if all options fit together."""
    problem = config.problem
    _fits_its_dictionaries(config)
    defaults = _problem_defaults(config)
    optional = [o.name for o in options_of("problem", ProblemSection) if o.default is None]
    given = [name for name in optional if getattr(problem, name) is not None]
    where = f"dictionary {problem.dictionary}, signals {problem.signals}"
    _none_of([name for name in given if name not in defaults], where)
    for model in config.layers:
        _check_layer(model)
    if config.training.method == "curriculum":
        _fits_a_curriculum(config)
    missing = {name: value for name, value in defaults.items() if getattr(problem, name) is None}
    return dataclasses.replace(config, problem=dataclasses.replace(problem, **missing))


def _fits_its_dictionaries(config: Config) -> None:
    """Raise ConfigError unless a chain has a dictionary per layer, and a layer has one."""
    given, J = config.problem.dictionary, len(config.layers)
    if config.chained and not (isinstance(given, tuple) and len(given) == J):
        got = len(given) if isinstance(given, tuple) else "one"
        raise ConfigError(
            f"train: [[model]] has {J} layers; expected as many files, problem.dictionary = "
            f'["D_1.npy", "D_2.npy", ...], got {got}'
        )
    if isinstance(given, tuple) and not config.chained:
        raise ConfigError(
            f"train: problem.dictionary has {len(given)} files; expected one for [model], "
            "or a [[model]] for each"
        )


def _check_layer(model: ModelSection) -> None:
    """Raise ConfigError unless the options and the start of a layer are of its family."""
    cls = family_of(model)
    _none_of([n for n in model.options if n not in option_names(cls)], f"family {model.family}")
    for start, can in (("analytic", _can_start_analytic), ("calibrated", _can_calibrate)):
        if model.start == start and not can(cls):
            able = ", ".join(name for name, other in FAMILIES.items() if can(other))
            raise ConfigError(f"train: {model.family} cannot start {start}; that is for {able}")


def _can_start_analytic(cls: type[Layer]) -> bool:
    return cls.from_theory is not None or cls.starts_from_theory


def _can_calibrate(cls: type[Layer]) -> bool:
    return any(names_with_role(form.steps, "threshold") for form in cls.forms)


def _problem_defaults(config: Config) -> dict[str, Any]:
    """The options that go with the dictionary and the signals, with their defaults."""
    problem = config.problem
    defaults: dict[str, Any] = {}
    if problem.dictionary in GENERATED:
        defaults |= dict(m=250, d=500, dictionary_seed=0)
    if problem.dictionary == "ill_conditioned":
        defaults |= dict(kappa=10.0)
    if problem.signals == PLANTED:
        defaults |= dict(probability=0.1, snr=math.inf, test_signals=1000)
    if any("probability" in option_names(family_of(model)) for model in config.layers):
        defaults |= dict(probability=0.1)
    return defaults


def _fits_a_curriculum(config: Config) -> None:
    """Raise ConfigError for options that a curriculum has no use for.

    Its loss is that of one step, and its stages are short.
    """
    chosen = config.training
    wrong = [name for name in ("deep", "learn_dictionary") if getattr(chosen, name)]
    wrong += ["schedule cosine"] if chosen.schedule == "cosine" else []
    if config.chained:
        wrong.append("a chain")
    elif all(form.steps is None for form in family_of(config.layers[0]).forms):
        wrong.append(f"family {config.layers[0].family}")
    if wrong:
        raise ConfigError(
            f"train: {', '.join(wrong)} does not go with method curriculum; try end_to_end"
        )


def _none_of(given: list[str], what: str) -> None:
    if given:
        raise ConfigError(f"train: {', '.join(given)} does not go with {what}")
