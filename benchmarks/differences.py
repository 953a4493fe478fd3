"""Differences of the sparse-feature runs from their baselines, with Holm's correction.

    python benchmarks/differences.py

It reads the committed rows alone, and prints a table of every section of the report, and MNIST's
unfolded networks beside the plain CNN at the rate that held-out images chose for it.
"""

from pathlib import Path

from unrolled import experiments

FOLDER = Path(__file__).parent / "sparse_features"
BEST_RATE = 0.05  # of the CNN


def score(row):
    return row["scores"]["accuracy"]


def beside_the_best_cnn(rows):
    """Paired differences in accuracy by (model, rate)."""
    mnist = [row for row in rows.values() if row["recipe"]["data"] == "mnist"]
    by_run = {}
    for row in mnist:
        recipe = row["recipe"]
        if recipe["test"] != "held-out" and row["status"] == "complete":
            by_run[recipe["model"], recipe["rate"], recipe["seed"]] = score(row)
    kinds = sorted({(model, rate) for model, rate, _ in by_run if model != "cnn"})
    found = {}
    for model, rate in kinds:
        seeds = [s for *kind, s in by_run if tuple(kind) == (model, rate)]
        common = [s for s in seeds if ("cnn", BEST_RATE, s) in by_run]
        if len(common) > 1:
            found[model, rate] = experiments.interval(
                by_run[model, rate, s] - by_run["cnn", BEST_RATE, s] for s in common
            )
    return found


def differences(cells):
    """The name and the interval of every difference over several seeds."""
    for cell in cells:
        recipe = cell.recipe
        run = f"{recipe.data}, {recipe.model}, {recipe.activation}, gamma {recipe.gamma:g}, "
        run += f"{recipe.epochs} epochs, "
        for name, of in cell.differences.items():
            if of.n > 1:
                yield run + name, of
        for name, layers in cell.feature_differences.items():
            for j, of in enumerate(layers, start=1):
                if of.n > 1:
                    yield f"{run}{name} of layer {j}", of


def main():
    rows = experiments.read_rows(FOLDER)
    cells = experiments.summarize(rows)
    groups = {}
    for cell in cells:
        recipe = cell.recipe
        groups.setdefault((recipe.data, recipe.model, recipe.epochs), []).append(cell)
    for (data, model, epochs), group in groups.items():
        print(f"\n{data}, {model}, {epochs} epochs\n\n{experiments.scores_table(group)}")
    named = list(differences(cells))
    plain = [of for _, of in named]
    corrected = experiments.holm(plain)
    clear = [sum(of.excludes_zero for of in found) for found in (plain, corrected)]
    print(
        f"\nOf {len(plain)} differences of scores and features {clear[0]} exclude 0, {clear[1]} of"
    )
    print("them by Holm's procedure for all at once:\n")
    for (name, of), wide in zip(named, corrected):
        if wide.excludes_zero:
            print(f"- {name}: {of.mean:+.3f} ± {of.half:.3f} ({wide.half:.3f})")
    print()
    found = beside_the_best_cnn(rows)
    for (kind, of), wide in zip(found.items(), experiments.holm(list(found.values()))):
        text = f"{100 * of.mean:+.2f} ± {100 * of.half:.2f} ({100 * wide.half:.2f}), {of.n} seeds"
        print(f"{kind[0]} at {kind[1]:g} less cnn at {BEST_RATE:g}: {text}")


if __name__ == "__main__":
    main()
