"""Find groups of unequal sizes from few measurements: the group LASSO next to the LASSO.

    python benchmarks/groups.py            groups.json and groups.svg, a minute on one core
    python benchmarks/groups.py --table    prints the table of groups.json

60 Gaussian atoms of norm 1 are in 15 groups of 1 to 8 atoms; 3 groups are active, with entries from
N(0, 1), and there is no noise. The 3 groups of largest norm count as found. lam is 0.01 of lam_max,
and 3 seeds draw 100 signals each.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from _measure import save

import unrolled as ur

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

RESULTS = Path(__file__).with_suffix(".json")
SIZES = [1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8]
ACTIVE, SIGNALS, SEEDS, MEASUREMENTS = 3, 100, (0, 1, 2), (12, 16, 20, 24, 28, 32)
METHODS = "groups, weights of roots", "groups, weights of 1", "LASSO"


def shares(m: int, seed: int) -> dict[str, float]:
    """The share of signals whose active groups each method finds."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(len(SIZES)), SIZES)
    A = rng.normal(size=(m, len(labels)))
    A /= np.linalg.norm(A, axis=0)
    truth = np.stack([rng.permutation(len(SIZES))[:ACTIVE] for _ in range(SIGNALS)])
    on = (truth[:, :, None] == labels).any(1)
    Y = (on * rng.normal(size=on.shape)) @ A.T
    dictionaries = ur.dictionaries.Grouped(A, labels), ur.dictionaries.Grouped(A, labels, 1), A
    found = {}
    for name, D in zip(METHODS, dictionaries):
        X = np.asarray(ur.pursuit.lasso_batch(D, Y, ratio=0.01, tol=1e-5).x)
        norms = np.sqrt(X**2 @ np.eye(len(SIZES))[labels])
        largest = np.argsort(norms, 1)[:, -ACTIVE:]
        found[name] = float(np.mean((np.sort(largest, 1) == np.sort(truth, 1)).all(1)))
    return found


def table(rows: dict) -> str:
    lines = [
        "| method | " + " | ".join(f"m = {m}" for m in MEASUREMENTS) + " |",
        "|" + "---|" * (1 + len(MEASUREMENTS)),
    ]
    for name in METHODS:
        means = (np.mean([one[name] for one in rows[str(m)]]) for m in MEASUREMENTS)
        lines.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(lines)


def draw(rows: dict) -> None:
    drawing, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name, style in zip(METHODS, ("o-", "s--", "^:")):
        values = np.array([[one[name] for one in rows[str(m)]] for m in MEASUREMENTS])
        axis.plot(MEASUREMENTS, values.mean(1), style, label=name)
        axis.fill_between(MEASUREMENTS, values.min(1), values.max(1), alpha=0.15)
    axis.set_xlabel("measurements m, of 60 atoms in 15 groups")
    axis.set_ylabel("share of codes with all groups found")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    drawing.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    if parser.parse_args().table:
        print(table(json.loads(RESULTS.read_text())["rows"]))
        return
    rows = {str(m): [shares(m, seed) for seed in SEEDS] for m in MEASUREMENTS}
    save(RESULTS, {"rows": rows})
    draw(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
