"""Pursuits beside layers: their codes of the test signals, as rows of a comparison."""

from typing import Any, NamedTuple

import jax

from unrolled._pursuits import PURSUITS, check_dictionaries, check_options, pursue
from unrolled.commands._console import Say
from unrolled.commands._settings import Settings, timed


class Pursued(NamedTuple):
    """The codes by pursuit, a tuple with those of every layer, and what to say of them."""

    codes: dict[str, tuple[jax.Array, ...]]
    remarks: list[str]


def pursuit_codes(
    Ds: tuple[Any, ...],
    tested_on: tuple[Any, Any],
    settings: Settings,
    say: Say,
    seconds: dict[str, float],
    lam: float | None,
) -> Pursued:
    """The codes that the pursuits of the settings find of the test signals.

    Without an option for it, the sparsity is the mean number of nonzeros of the known codes, and
    the weight of the LASSO is `lam`.

    Raises:
        ValueError: pursuits that lack an option, or are not for that many dictionaries.
    """
    Y, X = tested_on
    X = X[-1] if isinstance(X, tuple) else X
    sparsity = max(1, round(float((X != 0).sum(1).mean())))
    otherwise = {"sparsity": sparsity, "lam": lam}
    chosen = {name: _options(name, settings.options, otherwise) for name in settings.pursuits}
    for name, options in chosen.items():  # before any work
        check_options(name, options, "compare")
        check_dictionaries(name, len(Ds), "compare")
    codes, remarks = {}, []
    for name, options in chosen.items():
        say(f"{name}: {len(Y)} test signals")
        with timed(seconds, name):
            found = jax.block_until_ready(pursue(name, Ds, Y, options, many=True))
        codes[name] = found.codes
        told = ", ".join(f"{option} = {value}" for option, value in options.items())
        missed = f"; {found.missed} codes miss their tolerance" if found.missed else ""
        remarks.append(f"{name}: {told or 'no options'}{missed}.")
    return Pursued(codes, remarks)


def _options(name: str, given: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    """Those given that the pursuit has, and what it needs of the others."""
    known = PURSUITS[name].options.split()
    options = {option: value for option, value in given.items() if option in known}
    if options.keys() & {"sparsity", "lam", "ratio"} or (name == "omp" and "tol" in options):
        return options
    names = [option for option in ("sparsity", "lam") if option in known][:1]
    return options | {n: otherwise[n] for n in names if otherwise[n] is not None}
