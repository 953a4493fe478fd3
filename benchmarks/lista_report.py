"""The tables and the figure of `benchmarks/lista.jsonl`, with published numbers.

    python benchmarks/lista_report.py            prints the tables
    python benchmarks/lista_report.py --figure   draws lista.png

Published numbers come from hours of training. A number with [log] is a ratio of sums from a log of
the training of NA-ALISTA, for the same dictionary. A number with [fig] is a mean of dB read off a
figure of Open-L2O (256 x 512, within about 0.7 dB). In the column "condition 50", a number with
[fig] belongs to the ill-conditioned dictionary of Open-L2O.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import _measure
import numpy as np
from lista import DESIGN, FAMILIES, LIMIT, MAIN, ORACLE, OTHERS, Row, read

from unrolled import layers, plots

HERE = Path(__file__).parent
# cell -> family -> (dB, where from)
PUBLISHED: dict[str, dict[str, tuple[float, str]]] = {
    "noiseless": {
        "LISTA": (-35, "fig"),
        "LISTA-CP": (-30, "fig"),
        "LISTA-CPSS": (-63, "fig"),
        "LFISTA": (-29, "fig"),
        "LAMP": (-55, "fig"),
        "ALISTA-SS": (-78.5, "fig"),
        "GLISTA": (-55, "fig"),
    },
    "SNR 40": {
        "ISTA": (-5.8, "log"),
        "FISTA": (-7.6, "log"),
        "ALISTA-SS": (-39.1, "log"),
        "ALISTA-AT": (-42.0, "log"),
        "NA-ALISTA": (-42.2, "log"),
    },
    "SNR 20": {
        "ISTA": (-5.7, "log"),
        "FISTA": (-7.6, "log"),
        "ALISTA-SS": (-21.1, "log"),
        "ALISTA-AT": (-21.8, "log"),
        "NA-ALISTA": (-21.6, "log"),
        "LISTA": (-18.2, "fig"),
        "LISTA-CP": (-14.6, "fig"),
        "LISTA-CPSS": (-20.0, "fig"),
        "LFISTA": (-16.9, "fig"),
        "LAMP": (-16.2, "fig"),
        "GLISTA": (-22.1, "fig"),
    },
    "condition 50": {
        "LISTA": (-13.5, "fig"),
        "LISTA-CP": (-19.3, "fig"),
        "LISTA-CPSS": (-26.4, "fig"),
        "LFISTA": (-15.2, "fig"),
        "LAMP": (-24.2, "fig"),
        "ALISTA-SS": (-13.8, "fig"),
        "GLISTA": (-31.1, "fig"),
    },
}
SHOWN = ("FISTA", "LISTA", "LISTA-CPSS", "ALISTA-SS", "OAT", "LAMP-BG", "AUTO-VAMP", "VAMP-BG")
BUDGETS = (8, 16, 32, 64, 128)  # products with a matrix
DIVERGES = 3  # dB above which a row counts as diverging
NOISE = 0.5  # dB by which a row may miss a published number and still count as reaching it
BOTH = "as a ratio of sums / as a mean over signals"
MADE = ("numbers", "products", "steps", "seconds", "start")  # columns of a choice

Rows = dict[Row, dict[str, Any]]


def tested(there: Rows, cell: str, family: str) -> dict[Row, dict[str, Any]]:
    """The test scores of all rows of a family in a cell."""
    return {
        row: entry["test"]
        for row, entry in there.items()
        if (row.cell, row.family) == (cell, family) and "test" in entry
    }


def over_dictionaries(found: dict[Row, dict], name: str) -> tuple[float, float, int]:
    """Mean over dictionaries of means over seeds, deviation of runs, number of dictionaries."""
    by: dict[int, list[float]] = {}
    for row, test in found.items():
        by.setdefault(row.dictionary, []).append(np.inf if test[name] is None else test[name])
    runs = [run for values in by.values() for run in values]
    with np.errstate(invalid="ignore"):
        sd = np.std(runs, ddof=1) if len(runs) > 1 else np.nan
    return float(np.mean([np.mean(values) for values in by.values()])), float(sd), len(by)


def cell_of(there: Rows, cell: str, family: str) -> str:
    """Ratio of sums / mean of dB; with several dictionaries also the deviation of single runs."""
    found = tested(there, cell, family)
    if not found:
        failed = any(
            (r.cell, r.family) == (cell, family) and "failed" in e for r, e in there.items()
        )
        return "failed" if failed else ""
    parts = []
    for name in ("nmse", "mean"):
        mean, sd, count = over_dictionaries(found, name)
        parts.append(
            "diverges" if mean > DIVERGES else f"{mean:.1f}" + (f" ({sd:.1f})" if count > 1 else "")
        )
    value, where = PUBLISHED.get(cell, {}).get(family, (None, ""))
    text = "diverges" if parts[0] == "diverges" else " / ".join(parts)
    return text + (f" [{value:g} {where}]" if where else "")


def markdown(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(header), *(list(map(str, row)) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def names_in(there: Rows, cells: Iterable[str]) -> list[str]:
    """The families that have a row in some of the cells."""
    have = {row.family for row in there if row.cell in cells}
    return [name for name in (ORACLE, LIMIT, *FAMILIES) if name in have]


def title(family: str) -> str:
    """The name of a family in tables."""
    return "VAMP-BG, 32 steps" if family == LIMIT else family


def errors(there: Rows, cells: Iterable[str]) -> str:
    """A table of the NMSE with a row per family and a column per cell."""
    cells = [cell for cell in cells if any(row.cell == cell for row in there)]
    rows = (
        [title(name), *(cell_of(there, cell, name) for cell in cells)]
        for name in names_in(there, cells)
    )
    return markdown(["family", *cells], rows)


def knows(family: str) -> str:
    """The information about the codes that a family is given, or learns from."""
    if family == ORACLE:
        return "support"
    name, options = FAMILIES.get(family, FAMILIES["VAMP-BG"])
    if options.get("em"):
        return "none"
    told = "probability" in layers.FAMILIES[name].__dataclass_fields__
    trained = layers.FAMILIES[name].recipe.rate > 0
    return (
        "law" + (" and training codes" if trained else "")
        if told
        else ("training codes" if trained else "a sample of codes")
    )


def costs(there: Rows, cell: str = "noiseless") -> str:
    """Information, cost and hard signals of each family, for the first dictionary and seed."""
    header = [
        "family",
        "information about the codes",
        "trainable numbers in the params",
        "products per signal",
        "training steps",
        "seconds of the recipe",
        "NMSE before training, dB",
    ]
    header += [
        "time over the time of the products",
        "NMSE after training, dB",
        "95 % interval of the NMSE, dB",
        "99 % quantile over signals, dB",
        "signals above -20 dB",
        "signals worse than the zero code",
        "bound on the errors of 99.9 % of all signals, dB",
        "certified codes",
    ]
    rows = []
    for name in names_in(there, [cell]):
        entry = there.get(Row(cell, name), {})
        if "test" not in entry:
            continue
        test, choice = entry["test"], entry.get("choice", {})
        low, high = test["interval"]
        made = ["" if (value := choice.get(key)) is None else value for key in MADE]
        time = entry.get("time")
        made.append(f"{time['ms'] / time['products, ms']:.2f}" if time else "")
        rows.append(
            [title(name), knows(name), *made, test["nmse"], f"{low} to {high}", test["worst 1 %"]]
            + [f"{test['above -20 dB']:.2%}", f"{test['worse than zero']:.2%}"]
            + ["none" if (level := test.get("99.9 %", "")) is None else level]
            + [f"{test['certified']:.0%}" if "certified" in test else ""]
        )
    return markdown(header, rows)


def at_equal_time(there: Rows, cell: str = "noiseless") -> str:
    """NMSE of the last step that ends within the processor time of a number of products.

    All steps count as equally long. The params are trained for the full depth.
    """
    budgets = (f"NMSE in the time of {n} products, dB" for n in BUDGETS)
    header = ["family", "ms for all steps", *budgets]
    rows = []
    for name in FAMILIES:
        entry = there.get(Row(cell, name), {})
        if not {"time", "test", "choice"} <= set(entry):
            continue
        (ms, bare), steps = entry["time"].values(), entry["test"]["per step"]
        each = bare / entry["choice"]["products"]
        done = [min(int(n * each * len(steps) / ms), len(steps)) for n in BUDGETS]
        rows.append([name, ms, *(steps[k - 1] if k else 0.0 for k in done)])
    return markdown(header, rows)


def not_reached(there: Rows) -> list[str]:
    """Every published number that the rows miss by more than its reading error."""
    found = []
    for cell, families in PUBLISHED.items():
        for name, (value, where) in families.items():
            rows = tested(there, cell, name)
            if not rows:
                continue
            ours, _, _ = over_dictionaries(rows, "nmse" if where == "log" else "mean")
            if ours > value + NOISE:
                end = "diverges" if ours > DIVERGES else f"{ours:.1f}"
                unit = "" if end == "diverges" else " dB"
                found.append(f"{name}, {cell}: {end}{unit} instead of {value:g} dB [{where}]")
    return found


def generalisation(there: Rows, cell: str = "noiseless") -> str:
    """A table of the NMSE of the params of one cell on test signals of other problems."""
    found = {
        name: there[Row(cell, name)]["test"]["elsewhere"]
        for name in FAMILIES
        if "elsewhere" in there.get(Row(cell, name), {}).get("test", {})
    }
    header = next(iter(found.values()), {})

    def text(ratio, mean):
        return f"{ratio} / {mean}" if ratio is not None and ratio < DIVERGES else "diverges"

    rows = ([name, *(text(*pair) for pair in each.values())] for name, each in found.items())
    return markdown(["family", *header], rows)


def summary_of_design(there: Rows) -> str:
    """Gains over ISTA in the cells of the design, and the number of cells with a larger error."""
    best: dict[str, int] = {}
    for cell in DESIGN:
        ends = {
            name: entry["test"]["nmse"]
            for name in FAMILIES
            if (entry := there.get(Row(cell, name), {}))
            and entry.get("test", {}).get("nmse") is not None
        }
        if len(ends) == len(FAMILIES):
            winner = min(ends, key=lambda name: ends[name])
            best[winner] = best.get(winner, 0) + 1
    rows = []
    for name in FAMILIES:
        gains, worse = [], []
        for cell in DESIGN:
            entry, ista = (there.get(Row(cell, n), {}) for n in (name, "ISTA"))
            if "test" not in entry or "test" not in ista:
                continue
            end = entry["test"]["nmse"]
            gains.append(ista["test"]["nmse"] - (np.inf if end is None else end))
            worse.append(entry["test"]["worse than zero"])
        if gains:
            above = sum(gain < -0.05 for gain in gains)
            rows.append(
                {
                    "family": name,
                    "cells run": len(gains),
                    "median gain over ISTA, dB": f"{np.median(gains):.1f}",
                    "least gain over ISTA, dB": f"{min(gains):.1f}",
                    "cells with an NMSE above ISTA": above,
                    "cells in which the family is best": best.get(name, 0),
                    "largest share of signals worse than the zero code": f"{max(worse):.2%}",
                }
            )
    return _measure.markdown(rows)


def figure(there: Rows, cell: str = "noiseless"):
    """Draw the NMSE after each step against the number of products with a matrix."""
    lines, products = {}, {}
    for name in SHOWN:
        entry = there.get(Row(cell, name), {})
        if "test" in entry:
            lines[name] = np.r_[0.0, entry["test"]["per step"]]
            products[name] = entry["choice"]["products"]
    fig, panels = plots.figure(1, 1, width=7, height=4.2)
    panel = panels[0, 0]
    looks = plots.styles(tuple(lines))
    for name, line in lines.items():
        panel.plot(np.linspace(0, products[name], len(line)), line, label=name, **looks[name])
    panel.set(xlabel="products with a matrix, per signal", ylabel="NMSE, dB (ratio of sums)")
    panel.set_title(cell)
    panel.legend(frameon=False, ncols=2)
    return fig


def main() -> None:
    """Print the tables, or draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figure", action="store_true", help="draw lista.png")
    given = parser.parse_args()
    there = read()
    if given.figure:
        figure(there).savefig(HERE / "lista.png", dpi=110)
        return
    print(f"NMSE in the main cells, dB, {BOTH}:\n")
    print(errors(there, MAIN), costs(there), sep="\n\n")
    print("\nPublished values that we do not reach:", "; ".join(not_reached(there)) + ".")
    for title, part in (
        (
            "NMSE at equal processor time, without noise, as a ratio of sums:",
            at_equal_time(there),
        ),
        (f"NMSE in the other cells, dB, {BOTH}:", errors(there, OTHERS)),
        (
            f"NMSE on other test signals after a recipe without noise, dB, {BOTH}:",
            generalisation(there),
        ),
        ("Results in the 40 cells of the design:", summary_of_design(there)),
    ):
        if part.count("\n") > 1:  # more than a header
            print(f"\n{title}\n\n{part}")


if __name__ == "__main__":
    main()
