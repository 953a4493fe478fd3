"""The result of a comparison in words, from the fields of its rows; `result` is a `Comparison`."""

import math
from collections.abc import Mapping
from typing import Any

from unrolled._base.text import short
from unrolled.comparison._method import CLASSICAL, About
from unrolled.comparison._payoff import microseconds

_LEADS = ("learned", "calibrated", "analytic")  # the headline is about the first that exists


def headline(result: Any) -> str:
    """`Comparison.why`."""
    ends = ends_of(result)
    if not ends:
        return "No method was judged."
    what = "error of the codes" if result.known else "gap to the optimum of the LASSO"
    best = min(ends, key=ends.__getitem__)
    lead, *others = told(result) or [""]
    if not lead:
        return f"{best} has the smallest {what}, {_text(best, ends, result)}."
    named = sorted([lead, *others], key=ends.__getitem__)
    parts = [f"{_text(n, ends, result)} for {_subject(about_of(result, n))}" for n in named]
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    text = f"After {len(result[lead].curve.nmse)} steps, the {what} is {listed}."
    if best not in named:
        text += f" {best} has the smallest, {_text(best, ends, result)}."
    return " ".join(filter(None, [text, _costs([lead, *others[-1:]], result), _covered(result)]))


def told(result: Any) -> list[str]:
    """The methods that a headline compares; empty if no origin is known.

    The first is the best learned method, or else the best calibrated or analytic one. The best
    methods of the other origins in the same family, and the better of ISTA and FISTA, follow.
    """
    ends = ends_of(result)
    lead = next(filter(None, (_best(result, ends, origin) for origin in _LEADS)), None)
    if lead is None:
        return []
    family = about_of(result, lead).family
    kin = [_best(result, ends, origin, family) for origin in _LEADS]
    rivals = [n for n in ends if _is_classical(about_of(result, n))]
    return [*filter(None, kin), *sorted(rivals, key=ends.__getitem__)[:1]]


def about_of(result: Any, name: str) -> About:
    """What is known of a method; its name if nothing is."""
    return result[name].about or About(name, "")


def _is_classical(about: About) -> bool:
    return about.family in CLASSICAL and about.origin == "untrained"


def ends_of(result: Any) -> dict[str, float]:
    """The errors, or gaps, after the last step, without methods that diverge or say nothing.

    Without known codes, codes of another solver do not count: they may have another objective.
    """
    ends = {}
    for name, of in result.methods.items():
        values = of.curve.nmse if result.known else of.curve.gap
        judged = of.diverged is None and not of.silent and (result.known or not of.given)
        if judged and values is not None and not math.isnan(values[-1]):
            ends[name] = float(values[-1])
    return ends


def _best(
    result: Any, ends: Mapping[str, float], origin: str, family: str | None = None
) -> str | None:
    """The method of an origin, and a family, with the smallest end."""
    abouts = {name: about_of(result, name) for name in ends}
    names = [
        n for n, of in abouts.items() if (of.origin, family or of.family) == (origin, of.family)
    ]
    return min(names, key=ends.__getitem__, default=None)


def _text(name: str, ends: Mapping[str, float], result: Any) -> str:
    """The end of a method, and the share of its failures."""
    if not result.known:
        return f"{ends[name]:.2g}"
    share = float(result[name].curve.failure_rate[-1])
    return f"{ends[name]:.1f} dB" + (f" ({100 * share:.3g} % failures)" if share > 0 else "")


def _subject(about: About) -> str:
    """A method in a sentence, with the numbers that were chosen for it."""
    if about.origin not in _LEADS:
        return about.name
    facts = [f"{about.numbers:,} numbers"] if about.numbers else []
    facts += [f"{about.steps:,} training steps"] if about.steps else []
    facts += [f"s = {about.sparsity}"] if about.sparsity is not None else []
    facts += [f"B = {about.bound:.3g}"] if about.bound is not None else []
    return _plain(about) + (f" ({', '.join(facts)})" if facts else "")


def _plain(about: About) -> str:
    """A method in a sentence."""
    return f"{about.origin} {about.title}" if about.origin in _LEADS else about.name


def _costs(names: list[str], result: Any) -> str:
    """The CPU times of methods, and of the exact solvers."""
    rows = {_plain(about_of(result, n)): result[n] for n in names}
    rows |= {"exact codes" if n == "exact" else n: of for n, of in result.exact.items()}
    times = {n: t for n, of in rows.items() if (t := microseconds(of, result.signals))}
    if next(iter(rows)) not in times:
        return ""
    (first, time), *others = times.items()
    text = f"A signal takes {short(time)} microseconds of CPU time with {first}"
    parts = [f"{short(time)} with {name}" for name, time in others]
    return " and ".join([", ".join([text, *parts[:-1]]), *parts[-1:]]) + "."


def _covered(result: Any) -> str:
    """The share of the signals that theory covers for the told params, analytic ones first."""
    names = [n for n in told(result)[::-1] if result[n].guarantee is not None]
    names = [n for n in names if about_of(result, n).origin in _LEADS]
    if not result.known or not names:
        return ""
    guarantee, proved = result[names[0]].guarantee, result[names[0]].proved
    assert guarantee is not None
    text = f"Theorem 12 covers {100 * guarantee.covered:.3g} % of the signals"
    text += f" with {_plain(about_of(result, names[0]))}"
    if proved is not None and proved.share:
        text += f", and theory proves {proved.text()} codes one by one"
    return f"{text}."
