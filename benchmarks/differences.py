"""The sparse-feature runs and their differences from their baselines, with Holm's correction.

    python benchmarks/differences.py
    python benchmarks/differences.py "cifar10, lenet5, epochs 20"     prints this table alone

The script reads only the committed rows. A table has the runs that differ only in model,
activation, gamma and seed; each combination of the other options has its own table. The script also
compares the unfolded networks of MNIST with the plain CNN, at the learning rate that was chosen for
the CNN on held-out images.
"""

import json
import sys
from pathlib import Path

import numpy as np

from unrolled import records
from unrolled.vision import experiments

FOLDER = Path(__file__).parent / "sparse_features"
BEST_RATE = 0.05  # learning rate of the CNN
CHANCE = 0.2  # a network of ten classes that learns has a higher accuracy
NAMED = ("data", "model", "activation", "gamma", "seed")  # begin a title, or are in the table
LABELS = {"relu": "ReLU", "elu": "ELU", "mish": "Mish"}
HEADER = ("activation", "gamma", "runs that trained", "test accuracy, %")
HEADER += ("difference from gamma = 0, points", "half width by Holm, points")
MEASURES = {"zeros in layers 1 / 2, %": ("zeros", 100, 1)}
MEASURES |= {"small entries in layers 1 / 2, %": ("below", 100, 1)}
MEASURES |= {"Hoyer's measure in layers 1 / 2": ("hoyer", 1, 3)}
MEASURES |= {"mean of abs x in layers 1 / 2": ("l1", 1, 3)}


def score(row):
    return row["scores"]["accuracy"]


def beside_the_best_cnn(rows):
    """Paired differences in accuracy from the CNN at its best rate, by (model, rate)."""
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
        run = f"{cell.recipe.activation}, gamma {cell.recipe.gamma:g}, {title(cell.recipe)}, "
        for name, of in cell.differences.items():
            if of.n > 1:
                yield run + name, of
        for name, layers in cell.feature_differences.items():
            for j, of in enumerate(layers, start=1):
                if of.n > 1:
                    yield f"{run}{name} of layer {j}", of


def counted(rows):
    """What a run of a table costs, and the differences whose intervals exclude 0."""
    seconds = [row["seconds"] for row in rows.values()]
    parameters = {f"{row['parameters']:,}" for row in rows.values()}
    found = [of for _, of in differences(experiments.summarize(rows))]
    clear = [sum(of.excludes_zero for of in each) for each in (found, experiments.holm(found))]
    return (
        f"{len(rows)} runs of {min(seconds):.0f} to {max(seconds):.0f} seconds; "
        f"{', '.join(sorted(parameters))} parameters. Of the intervals of {len(found)} differences "
        f"of scores and features, {clear[0]} exclude 0, and {clear[1]} by Holm's procedure."
    )


def title(recipe):
    """The options that differ from the recipe of the paper, without activation, gamma and seed."""
    paper = experiments.paper_recipe(experiments.task_of(recipe.model), recipe.data)
    changes = records.changes(records.values_of(paper), records.values_of(recipe))
    apart = {name: new for name, (_, new) in changes.items()}
    apart |= apart.pop("options", ())
    said = [f"{name} {value}" for name, value in apart.items() if name not in NAMED]
    return ", ".join([recipe.data, recipe.model, *said])


def by_title(rows):
    """The rows of every table, in the order of the cells."""
    tables = {}
    for cell in experiments.summarize(rows):
        tables.setdefault(title(cell.recipe), {})
    for name, row in rows.items():
        tables[title(recipe_of(row))][name] = row
    return tables


def with_features(rows):
    """Accuracies of the runs that trained, their differences, and measures of both layers.

    Only the first 1,000 records of the test batch are exact; their accuracy has its own column.
    """
    whole = any(row["recipe"]["test"] == "whole" for row in rows.values())
    header = [*HEADER, *(["accuracy on the first 1,000 records, %"] if whole else []), *MEASURES]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    trained = {
        name: row
        for name, row in rows.items()
        if row["status"] == "complete" and score(row) > CHANCE
    }
    cells = experiments.summarize(trained)
    plain = [of for cell in cells for of in cell.differences.values() if of.n > 1]
    corrected = dict(zip(map(id, plain), experiments.holm(plain)))
    for cell in cells:
        kind = cell.recipe.activation, cell.recipe.gamma
        runs, good = ([r for r in of.values() if kind_of(r) == kind] for of in (rows, trained))
        apart = cell.differences.get("accuracy") if kind[1] else None
        wide = corrected.get(id(apart))
        line = [LABELS[kind[0]], f"{kind[1]:g}", f"{len(good)} of {len(runs)}"]
        line += [percent(cell.scores["accuracy"]), percent(apart, "+") if apart else ""]
        line.append(f"± {100 * wide.half:.2f}" if wide else "")
        if whole:
            exact = (row["scores"]["accuracy_first_1000"] for row in good)
            line.append(percent(experiments.interval(exact)))
        for measure, scale, digits in MEASURES.values():
            values = (f"{scale * v:.{digits}f}" for v in cell.features[measure])
            line.append(" / ".join(values))
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def beside_a_pursuit(rows):
    """Table, name and paired difference from gamma = 0 of each comparison with a pursuit."""
    by_run = {}
    for path in sorted((FOLDER / "features").glob("*.json")):
        row = rows[path.stem.rpartition("-")[0]]  # the number of pictures follows
        table = title(recipe_of(row))
        for layer in row["layers"]:
            measured = json.loads(path.read_text())[layer]
            for name in ("gap", "scaled_change", "overlap"):
                runs = by_run.setdefault((table, layer, name), {})
                runs[row["recipe"]["gamma"], row["recipe"]["seed"]] = measured["pursued"][name]
    for (table, layer, name), runs in by_run.items():
        for gamma in sorted({gamma for gamma, _ in runs} - {0.0}):
            seeds = [seed for g, seed in runs if g == gamma and (0.0, seed) in runs]
            apart = (np.mean(runs[gamma, s]) - np.mean(runs[0.0, s]) for s in seeds)
            yield table, f"{layer}, gamma {gamma:g}, {name}", experiments.interval(apart)


def recipe_of(row):
    fields = {n: tuple(map(tuple, v)) if n == "options" else v for n, v in row["recipe"].items()}
    return experiments.Recipe(**fields)


def kind_of(row):
    return row["recipe"]["activation"], row["recipe"]["gamma"]


def percent(of, sign=""):
    half = f" ± {100 * of.half:.2f}" if of.n > 1 else ""
    return f"{100 * of.mean:{sign}.2f}{half}"


def main():
    rows = experiments.read_rows(FOLDER)
    groups = by_title(rows)
    tables = {
        name: with_features(group)
        if "cifar10, lenet5" in name
        else experiments.scores_table(experiments.summarize(group))
        for name, group in groups.items()
    }
    if wanted := sys.argv[1:]:
        print(*(tables[name] for name in wanted), sep="\n\n")
        return
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}\n\n{counted(groups[name])}")
    print("\nDifferences from gamma = 0 of the comparisons with a pursuit:\n")
    tables = {}
    for table, name, of in beside_a_pursuit(rows):
        tables.setdefault(table, []).append((name, of))
    for table, found in tables.items():
        for (name, of), wide in zip(found, experiments.holm([of for _, of in found])):
            clear = " *" * (of.excludes_zero + wide.excludes_zero)
            print(f"- {table}, {name}: {of.mean:+.3f} ± {of.half:.3f} ({wide.half:.3f}){clear}")
    named = list(differences(experiments.summarize(rows)))
    plain = [of for _, of in named]
    corrected = experiments.holm(plain)
    clear = [sum(of.excludes_zero for of in found) for found in (plain, corrected)]
    print(f"\nOf the intervals of {len(plain)} differences of scores and features, {clear[0]}")
    print("exclude 0. Of the intervals by Holm's procedure for all of these differences,")
    print(f"{clear[1]} exclude 0:\n")
    for (name, of), wide in zip(named, corrected):
        if wide.excludes_zero:
            print(f"- {name}: {of.mean:+.3f} ± {of.half:.3f} ({wide.half:.3f})")
    print()
    found = beside_the_best_cnn(rows)
    for (kind, of), wide in zip(found.items(), experiments.holm(list(found.values()))):
        text = f"{100 * of.mean:+.2f} ± {100 * of.half:.2f} ({100 * wide.half:.2f}), {of.n} seeds"
        print(f"{kind[0]} at {kind[1]:g} minus cnn at {BEST_RATE:g}: {text}")


if __name__ == "__main__":
    main()
