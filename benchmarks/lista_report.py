"""The table and the figure of `benchmarks/lista.json`, beside published numbers.

    python benchmarks/lista_report.py [--results benchmarks/lista.json]
        [--figure benchmarks/lista.png]

Published numbers: [log] is from a training log of NA-ALISTA (ratio of sums, the same dictionary);
[fig] is read off a figure of Open-L2O (mean of dB, 256 x 512, within about 0.7 dB). They come from
hours of training.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from unrolled import plots

PUBLISHED = {
    "noiseless": {
        "LISTA": "-35 [fig]",
        "LISTA-CP": "-30 [fig]",
        "LISTA-CPSS": "-63 [fig]",
        "LFISTA": "-29 [fig]",
        "LAMP": "-55 [fig]",
        "ALISTA-SS": "-78.5 [fig]",
        "GLISTA": "-55 [fig]",
    },
    "SNR 40": {
        "ISTA": "-5.8 [log]",
        "FISTA": "-7.6 [log]",
        "ALISTA-SS": "-39.1 [log]",
        "NA-ALISTA": "-42.2 [log]",
    },
    "SNR 20": {
        "ISTA": "-5.7 [log]",
        "FISTA": "-7.6 [log]",
        "ALISTA-SS": "-21.1 [log]",
        "NA-ALISTA": "-21.6 [log]",
        "LISTA": "-18.2 [fig]",
        "LISTA-CPSS": "-20.0 [fig]",
        "GLISTA": "-22.1 [fig]",
    },
}
SHOWN = (
    "ISTA",
    "FISTA",
    "LISTA-CP",
    "LISTA-CPSS",
    "ALISTA-SS",
    "NA-ALISTA",
    "HyperLISTA",
    "LAMP-BG",
)


def settings_of(results: dict) -> list[str]:
    return [name for name in results if name != "environment"]


def table(results: dict) -> str:
    """A row per family, a column per setting: ratio of sums / mean of dB (published value)."""
    settings = settings_of(results)
    families = list(dict.fromkeys(family for setting in settings for family in results[setting]))
    rows = ["| family | " + " | ".join(settings) + " |", "|---" * (1 + len(settings)) + "|"]
    for family in families:
        cells = [family]
        for setting in settings:
            found = results[setting].get(family)
            cell = "" if found is None else _both(found["median"])
            published = PUBLISHED.get(setting, {}).get(family)
            cells.append(f"{cell} ({published})" if published else cell)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _both(median: dict) -> str:
    """Ratio of sums / mean of dB, or "diverges" if the error exceeds the signal."""
    return (
        "diverges" if median["nmse"] > 0.1 else f"{median['nmse']:.1f} / {median['mean_nmse']:.1f}"
    )


def seconds(results: dict, setting: str = "noiseless") -> str:
    """The cost and the failures of a setting, family by family."""
    rows = [
        "| family | training steps | seconds | untrained | signals above -20 dB |",
        "|---|---|---|---|---|",
    ]
    for family, found in results[setting].items():
        m = found["median"]
        cells = [
            family,
            found["steps"],
            f"{m['seconds']:.0f}",
            f"{m['untrained']:.1f}",
            f"{m['failure_rate']:.1%}",
        ]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def figure(results: dict):
    """NMSE step by step, the median over the seeds, for four settings."""
    chosen = [name for name in ("noiseless", "SNR 40", "SNR 20", "condition 50") if name in results]
    styles = plots.styles(SHOWN)
    fig, panels = plots.figure(-(-len(chosen) // 2), 2, height=3.4)
    for panel, setting in zip(panels.flat, chosen):
        lines = {
            f: np.asarray(results[setting][f]["median"]["per_step"])
            for f in SHOWN
            if f in results[setting]
        }
        title = f"{setting} dB" if setting.startswith("SNR") else setting
        plots.curves(panel, lines, title=title, ylabel="NMSE, dB (ratio of sums)", looks=styles)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return fig


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("lista.json"))
    parser.add_argument("--figure", type=Path, default=Path(__file__).with_name("lista.png"))
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    print(table(results))
    if "noiseless" in results:
        print()
        print(seconds(results))
    figure(results).savefig(arguments.figure, dpi=110)


if __name__ == "__main__":
    main()
