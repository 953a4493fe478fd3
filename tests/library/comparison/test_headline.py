"""The headline of a comparison states the best row of each kind, whatever the rows are called."""

import re

import numpy as np
import pytest
from faults import Fault
from forms import K, changed, made
from forms import curve as falling

import unrolled as ur
from unrolled.comparison import About, Method, told

LEADS = ("learned", "calibrated", "analytic")
FAMILIES = {"alista": ("ALISTA", "ALISTA-SS"), "lista_cp": ("LISTA-CP",), "fista": ("FISTA",)}


def curve(level):
    """A method with this error, and failures, after every step."""
    return falling(1.0, nmse=np.full(K, level), failure_rate=np.full(K, 0.25))


def planted(rng):
    """A comparison with rows of all kinds, whose names say nothing of what they are."""
    rows = [
        (title, family, origin)
        for family, titles in FAMILIES.items()
        for title in titles
        for origin in ((*LEADS, "untrained") if family != "fista" else ("untrained",))
        if rng.random() < 0.8
    ]
    rows = [rows[i] for i in rng.permutation(len(rows))] or [("FISTA", "fista", "untrained")]
    names = [f"{rng.integers(1e6)} {rng.choice(['learned', 'analytic', 'x'])}" for _ in rows]
    result = made({name: curve(float(rng.uniform(-90, -1))) for name in names})
    for name, (title, family, origin) in zip(names, rows):
        result = changed(result, name, about=About(title, family, origin, numbers=7))
    return result


def numbers(text):
    """The errors that a text states."""
    return [float(number) for number in re.findall(r"(-\d+\.\d) dB", text)]


@pytest.mark.parametrize("seed", range(40))
def test_a_headline_states_the_best_row_of_each_kind(seed):
    """In any order of rows, and for any names; other families and worse rows are not in it."""
    result = planted(np.random.default_rng(seed))
    ends = {name: round(float(of.curve.nmse[-1]), 1) for name, of in result.methods.items()}
    abouts = {name: of.about for name, of in result.methods.items()}

    def best(*origins, family=None):
        names = [n for n, of in abouts.items() if of.origin in origins]
        names = [n for n in names if family in (None, abouts[n].family)]
        return min(names, key=lambda n: result[n].curve.nmse[-1], default=None)

    lead = next(filter(None, (best(origin) for origin in LEADS)), None)
    smallest = min(ends.values())
    if lead is None:
        assert numbers(result.why) == [smallest]
        return
    kin = [best(origin, family=abouts[lead].family) for origin in LEADS]
    rivals = best("untrained", family="fista")
    expected = sorted(ends[name] for name in filter(None, (*kin, rivals)))
    expected += [smallest] * (smallest not in expected)
    assert numbers(result.why) == expected
    shuffled = dict(sorted(result.methods.items(), reverse=True))
    assert result.replace(methods=shuffled).why == result.why


def test_methods_that_diverge_or_say_nothing_are_not_in_a_headline():
    result = made({"good": curve(-20.0), "zero": curve(-99.0), "far": curve(-98.0)})
    for name in result.methods:
        result = changed(result, name, about=About("ALISTA", "alista", "analytic", numbers=0))
    result = changed(result, "zero", silent=True)
    result = changed(result, "far", diverged=ur.comparison.Divergence(1, "it grows"))
    assert numbers(result.why) == [-20.0] and told(result) == ["good"]
    shown = [row[0] for row in result.table().rows]
    assert shown == ["good", "far"] and "return only zeros: zero" in result.table()
    assert [row[0] for row in result.table(all=True).rows] == list(result.methods)


def test_the_covered_share_counts_the_signals_of_the_class():
    """Theorem 12 covers codes with few nonzeros that are not too large, and no others."""
    D, layer = ur.dictionaries.identity_hadamard(64), ur.alista(20)
    params = ur.analytic.alista(D, depth=20, sparsity=2, bound=1.0)
    X = np.zeros((10, 128))
    for i in range(10):
        X[i, : 1 + i % 5] = 1.0  # 1 to 5 nonzeros
    method = Method(layer, params, origin="analytic", sparsity=2, bound=1.0)
    for size, share in ((1.0, 0.4), (3.0, 0.0)):
        result = ur.compare({method.name: method}, D, size * X @ np.asarray(D).T, size * X)
        assert result[method.name].guarantee.covered == pytest.approx(share)
        assert f"Theorem 12 covers {100 * share:g} % of the signals" in result.why


def test_a_table_for_a_terminal_fits_its_width():
    names = ["m" * 40, "n" * 40]
    result = made({name: curve(-20.0 - i) for i, name in enumerate(names)})
    for i, name in enumerate(names):
        about = About(name, "alista", "learned", numbers=2_000_016 + i)
        cost = ur.comparison.Cost(1.0 + i, 8)
        proved = ur.comparison.Proved(i / 2, 100)
        result = changed(result, name, about=about, cost=cost, proved=proved)
    lines = result.replace(signals=10).table("text").splitlines()
    assert max(map(len, lines)) <= 100 and len({len(line) for line in lines[-2:]}) == 1


def test_a_method_refuses_an_origin_that_is_not_known():
    layer = ur.alista(2)
    fault = Fault(lambda: Method(layer, None, origin="guessed"), ValueError, "guessed")
    fault.check()


def test_a_note_says_which_codes_exceed_the_bound_of_analytic_params():
    D, layer = ur.dictionaries.identity_hadamard(16), ur.alista(3)
    params = ur.analytic.alista(D, depth=3, sparsity=1, bound=1.0)
    X = np.eye(32)[:4] * np.array([[0.5], [1.0], [1.5], [4.1]])
    method = Method(layer, params, origin="analytic", sparsity=1, bound=1.0)
    notes = ur.compare({"theory": method}, D, X @ np.asarray(D).T, X).notes()
    said = "bound 1.0, entries reach 4.1: Theorem 12 does not cover 50 % of these signals"
    assert f"theory: {said}." in notes
