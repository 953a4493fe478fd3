"""Draw the first figure of the README from `benchmarks/lista.jsonl`, light and dark.

    python benchmarks/hero.py [--output benchmarks]

Each line has the error of a family on 10,000 test signals of the cell without noise, with the first
dictionary and the first seed, against the number of products with a matrix per code. The labels
show how many numbers each family learns, from the same rows.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lista import Row, read

import unrolled as ur

CELL = "noiseless"


class Line(NamedTuple):
    label: str
    colours: tuple[str, str]  # on white, and on #0d1117
    trained: bool = False
    offset: tuple[int, int] = (6, 0)  # from the end of the line to the label, points
    side: str = "left"  # side of the label next to the line
    dashes: str = "-"

    def text(self, numbers: int) -> str:
        return f"{self.label}: {numbers:,} numbers" if self.trained else self.label


GREY = ("#6A6A6A", "#9A9A9A")
LINES = {
    "ISTA": Line("ISTA", GREY, offset=(6, 3)),
    "FISTA": Line("FISTA", GREY, offset=(6, -5)),
    "ALISTA-SS, analytic": Line("ALISTA, from theory alone", ("#B84F00", "#FF8A3D"), dashes="--"),
    "LISTA-SS": Line("LISTA", ("#0072B2", "#56B4E9"), trained=True),
    "ALISTA-SS": Line("ALISTA", ("#B84F00", "#FF8A3D"), trained=True),
    "OAT": Line(
        "ALISTA with messages", ("#8A3FA0", "#C98BDB"), True, offset=(-14, -6), side="right"
    ),
    "VAMP-BG": Line("VAMP: knows the\ndistribution of codes", ("#007A5A", "#2BC79A")),
}
INK = {"light": ("#1F2328", "#59636E"), "dark": ("#E6EDF3", "#9198A1")}


def lines() -> dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """The products, the error in dB of the code after each step, and the choices of the recipe."""
    rows, found = read(), {}
    for name in LINES:
        entry = rows[Row(CELL, name)]
        errors = np.r_[0, entry["test"]["per step"]]
        products = np.linspace(0, entry["choice"]["products"], len(errors))
        found[name] = (products, errors, entry["choice"])
    return found


def draw(scheme: str):
    """Draw the lines with a label at the end of each line."""
    from matplotlib import rc_context

    ink, muted = INK[scheme]
    with rc_context({"text.color": ink}):
        fig, panels = ur.plots.figure(1, 1, width=8.3, height=4.4)
        panel = panels[0, 0]
        for name, (products, errors, choice) in lines().items():
            line, strong = LINES[name], name == "ALISTA-SS"
            colour = line.colours[scheme == "dark"]
            look = dict(color=colour, linestyle=line.dashes, linewidth=3.2 if strong else 2)
            panel.plot(products, errors, **look)
            panel.annotate(
                line.text(choice["numbers"]),
                (products[-1], errors[-1]),
                line.offset,
                textcoords="offset points",
                va="center",
                ha=line.side,
                color=colour,
                fontsize=12.5,
                fontweight="bold" if strong else "normal",
                annotation_clip=False,
            )
        panel.set(xlim=(0, 48), ylim=(-115, 1), xticks=range(0, 49, 16))
        panel.set_xlabel("products with a matrix, per signal")
        panel.set_yticks(range(-100, 1, 20))
        panel.set_title("error of the code, dB", loc="left", fontsize=13, color=muted)
        panel.tick_params(colors=muted, labelsize=13)
        panel.xaxis.label.set(color=ink, size=13)
        panel.spines[:].set_color(muted)
        panel.grid(axis="y", color=muted, alpha=0.25)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parent
    parser.add_argument("--output", type=Path, default=here, help="folder of the two pictures")
    options = parser.parse_args()
    for scheme in INK:
        path = options.output / f"hero-{scheme}.svg"
        draw(scheme).savefig(path, transparent=True, metadata={"Date": None})
        print(path)


if __name__ == "__main__":
    main()
