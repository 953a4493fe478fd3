"""The figures of Section 4 in the order of the paper, from the committed rows alone.

    python benchmarks/sparse_features_figures.py
    python benchmarks/sparse_features_figures.py --pictures FOLDER     of the runs: figures 4 and 6
    python benchmarks/sparse_features_figures.py --tables              prints Tables 4 and 5
    python benchmarks/sparse_features_figures.py --features TITLE      prints the penalised features
    python benchmarks/sparse_features_figures.py --losses TITLE        prints the training losses

TITLE is a title that `differences.py` prints, such as "ecssd, unet, epochs 20, width 16".

Rows keep numbers, not pictures: the masks of figures 4 and 6 are in the folder that
`unrolled experiment segmentation --output` wrote. All of its runs show the same first five test
pictures, which a fixed permutation of the data set chose. As in the tables, runs of LeNet-5 that
did not learn are left out.
"""

import argparse
from pathlib import Path

import numpy as np
from differences import CHANCE, FOLDER, LABELS, MEASURES, by_title, kind_of, score

from unrolled.vision import experiments

SHOWN = 5  # pictures
LENET5 = "cifar10, lenet5, epochs 20, test held-out"
VGG11 = "cifar10, vgg11, epochs 5, rate 0.01, test held-out, width 16"
UNET = "ecssd, unet, epochs 20, width 16"
SCORES = {"pixel accuracy, % (deviation over pictures)": "pixel_accuracy"}
SCORES |= {"mPA, %": "mean_class_precision", "mean IoU, %": "mean_iou"}


def masks(folder, activation):
    """Pictures, true masks and the masks of the runs of one activation and seed 0."""
    pictures, titles = {}, []
    for name, row in experiments.read_rows(folder).items():
        recipe, kept = row["recipe"], experiments.read_pictures(folder, name)
        if kept is None or (recipe["activation"], recipe["seed"]) != (activation, 0):
            continue
        titles.append(f"{LABELS[activation]}, gamma = {recipe['gamma']:g}")
        kept = {kind: array[:SHOWN] for kind, array in kept.items()}
        pictures |= {"X": kept["X"], "truth": kept["truth"], titles[-1]: kept["predicted"]}
    return experiments.predicted_masks(pictures, titles)


def table(rows):
    """Tables 4 and 5: the mean over seeds of each score and of its deviation over pictures."""
    lines = [f"| activation | gamma | seeds | {' | '.join(SCORES)} |", "|" + "---|" * 6]
    kinds = {kind_of(row) for row in rows}
    for kind in sorted(kinds, key=lambda kind: ([*LABELS].index(kind[0]), kind[1])):
        runs = [row["scores"] for row in rows if kind_of(row) == kind]
        line = [LABELS[kind[0]], f"{kind[1]:g}", f"{len(runs)}"]
        for name in SCORES.values():
            mean, over_pictures = (
                100 * sum(run[name + end] for run in runs) / len(runs) for end in ("", "_std")
            )
            line.append(f"{mean:.2f} ({over_pictures:.2f})")
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def features(rows):
    """Means over seeds of the measures of each penalised block, and differences from gamma = 0."""
    names = [name.replace(" in layers 1 / 2", "") for name in MEASURES]
    lines = [f"| activation | gamma | seeds | {' | '.join(names)} |", "|" + "---|" * 7]
    apart = ["| activation | gamma | measure | differences from gamma = 0 |", "|" + "---|" * 4]
    cells = experiments.summarize({str(i): row for i, row in enumerate(rows)})
    order = [*LABELS].index
    for cell in sorted(cells, key=lambda of: (order(of.recipe.activation), of.recipe.gamma)):
        kind = [LABELS[cell.recipe.activation], f"{cell.recipe.gamma:g}"]
        line = [*kind, f"{next(iter(cell.scores.values())).n}"]
        for name, (measure, scale, digits) in zip(names, MEASURES.values()):
            line.append(" / ".join(f"{scale * v:.{digits}f}" for v in cell.features[measure]))
            change = " / ".join(
                f"{scale * of.mean:+.{digits}f} ± {scale * of.half:.{digits}f}"
                for of in cell.feature_differences.get(measure, ())
                if of.n > 1
            )
            if change:
                apart.append(f"| {' | '.join([*kind, name, change])} |")
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join([*lines, "", *(apart if len(apart) > 2 else [])])


def losses(rows):
    """Means over seeds of the training loss by epoch, and differences from gamma = 0."""
    lines = ["| activation | gamma | seeds | training loss by epoch | difference from gamma = 0 |"]
    lines.append("|" + "---|" * 5)
    by_run = {
        (*kind_of(row), row["recipe"]["seed"]): [line["train"]["loss"] for line in row["curve"]]
        for row in rows
    }
    for activation, gamma in dict.fromkeys(map(kind_of, rows)):
        seeds = [s for *kind, s in by_run if kind == [activation, gamma]]
        found = np.array([by_run[activation, gamma, s] for s in seeds])
        apart = found - np.array([by_run[activation, 0.0, s] for s in seeds])
        line = [LABELS[activation], f"{gamma:g}", f"{len(seeds)}"]
        line.append(" / ".join(f"{loss:.3f}" for loss in found.mean(0)))
        line.append("")
        if len(seeds) > 1 and gamma:
            paired = map(experiments.interval, apart.T)
            line[-1] = " / ".join(f"{of.mean:+.3f} ± {of.half:.3f}" for of in paired)
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=Path, help="folder of the runs of segmentation")
    parser.add_argument("--tables", action="store_true", help="print Tables 4 and 5 alone")
    parser.add_argument("--features", metavar="TITLE", help="print the features of a table alone")
    parser.add_argument("--losses", metavar="TITLE", help="print the losses of a table alone")
    options = parser.parse_args()
    tables = {
        title: sorted(rows.values(), key=lambda row: [*LABELS].index(kind_of(row)[0]))
        for title, rows in by_title(experiments.read_rows(FOLDER)).items()
    }
    if options.tables:
        print(table(tables[UNET]))
        return
    if options.features:
        print(features(tables[options.features]))
        return
    if options.losses:
        print(losses(tables[options.losses]))
        return
    lenet5 = [row for row in tables[LENET5] if score(row) > CHANCE]
    vgg11, unet = tables[VGG11], tables[UNET]
    figures = {
        "figure_1": experiments.score_in_training(lenet5),
        "figure_2": experiments.training_loss(lenet5),
        "figure_3": experiments.training_loss(vgg11),
        "figure_5": experiments.l1_in_training(lenet5),
        "unet_loss": experiments.training_loss(unet),
        "unet_penalty": experiments.l1_in_training(unet),
    }
    if options.pictures:
        run = {
            row["recipe"]["activation"] for row in experiments.read_rows(options.pictures).values()
        }
        for name, activation in (("figure_4", "relu"), ("figure_6", "elu")):
            if activation in run:
                figures[name] = masks(options.pictures, activation)
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
