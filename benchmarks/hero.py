"""The first figure of the README, from `benchmarks/lista.json`: light and dark.

    python benchmarks/hero.py [--results benchmarks/lista.json] [--output benchmarks]

Each line is a median of three seeds on the standard benchmark without noise. The number of learned
numbers is counted from the params, and the seconds are those of the same rows.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import unrolled as ur

DEPTH, SUPPORT = 16, (0.012, 0.12)


class Line(NamedTuple):
    label: str
    colours: tuple[str, str]  # on white, on #0d1117
    layer: ur.layers.Layer | None = None  # whose learned numbers are counted

    def text(self, seconds: float) -> str:
        if self.layer is None:
            return self.label
        return f"{self.label}: {learned(self.layer):,} numbers\nlearned in {seconds:.0f} s"


GREY = ("#6A6A6A", "#9A9A9A")
LINES = {
    "ISTA": Line("ISTA", GREY),
    "FISTA": Line("FISTA", GREY),
    "LISTA-SS": Line(
        "LISTA", ("#0072B2", "#56B4E9"), ur.layers.lista_ss(DEPTH, support=SUPPORT, tied=False)
    ),
    "ALISTA-SS": Line("ALISTA", ("#B84F00", "#FF8A3D"), ur.alista(DEPTH, support=SUPPORT)),
    "LAMP-BG": Line("LAMP: knows the\ndistribution of codes", ("#007A5A", "#2BC79A")),
}
INK = {"light": ("#1F2328", "#59636E"), "dark": ("#E6EDF3", "#9198A1")}


def learned(layer: ur.layers.Layer) -> int:
    """The numbers that training moves, for 250 x 500."""
    D = jax.ShapeDtypeStruct((250, 500), "float32")
    params = jax.eval_shape(lambda D: layer.init(jax.random.key(0), D), D)
    moved = jax.tree.leaves(params, is_leaf=lambda part: isinstance(part, ur.layers.Fixed))
    return sum(leaf.size for leaf in moved if not isinstance(leaf, ur.layers.Fixed))


def draw(rows: dict, scheme: str):
    """The error of the code after each step, with a label at the end of each line."""
    from matplotlib import rc_context

    ink, muted = INK[scheme]
    with rc_context({"text.color": ink}):
        fig, panels = ur.plots.figure(1, 1, width=8.3, height=4.2)
        panel = panels[0, 0]
        for name, line in LINES.items():
            errors = np.r_[0, rows[name]["median"]["per_step"]]
            colour, strong = line.colours[scheme == "dark"], name == "ALISTA-SS"
            panel.plot(errors, color=colour, linewidth=3.2 if strong else 2)
            panel.annotate(
                line.text(rows[name]["median"]["seconds"]),
                (DEPTH, errors[-1]),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                fontsize=12.5,
                fontweight="bold" if strong else "normal",
                annotation_clip=False,
            )
        panel.set(xlim=(0, DEPTH), ylim=(-82, 1), xticks=range(0, 17, 4), xlabel="step")
        panel.set_yticks(range(-80, 1, 20))
        panel.set_title("error of the code, dB", loc="left", fontsize=13, color=muted)
        panel.tick_params(colors=muted, labelsize=13)
        panel.xaxis.label.set(color=ink, size=13)
        panel.spines[:].set_color(muted)
        panel.grid(axis="y", color=muted, alpha=0.25)
    return fig


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=here / "lista.json")
    parser.add_argument("--output", type=Path, default=here, help="folder of the two pictures")
    options = parser.parse_args()
    rows = json.loads(options.results.read_text())["noiseless"]
    for scheme in INK:
        path = options.output / f"hero-{scheme}.svg"
        draw(rows, scheme).savefig(path, transparent=True, metadata={"Date": None})
        print(path)


if __name__ == "__main__":
    main()
