"""What `calibrate` chooses against its best candidate, on 4,000 signals outside of the sample.

    python benchmarks/calibrate.py choices            # ten dictionaries, two sparsities
    python benchmarks/calibrate.py families           # four families on one dictionary
    python benchmarks/calibrate.py families BEFORE    # with the `calibrate` of another file

D is Gaussian, 250 x 500, K = 16; the sample has 512 signals with 10 % or 5 % nonzeros. Each row is
appended to calibrate.jsonl.
"""

import json
import pathlib
import runpy
import sys
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import unrolled as ur
from unrolled.analytic import _calibrate

FILE = pathlib.Path(__file__).with_suffix(".jsonl")
DEPTH, SAMPLE, UNSEEN = 16, 512, 4000
SEEDS = 0, 7301, 701, *range(1, 8)


def drawn(seed: int, probability: float):
    """D, the sample, and the unseen signals."""
    D = ur.gaussian(jax.random.key(seed), 250, 500)
    draws = (
        ur.sampler(D, n, probability=probability)(jax.random.key(seed + i))
        for n, i in ((SAMPLE, 1), (UNSEEN, 3))
    )
    return D, *draws


def scores(layer, params, D, Y, X) -> dict[str, float]:
    """NMSE by the ratio of sums and its median in dB, and the share of failures (above -10 dB)."""
    codes = jax.vmap(layer.apply, (None, None, 0))
    parts = [codes(params, D, Y[i : i + 500]) for i in range(0, len(Y), 500)]
    errors = np.asarray(jnp.sum((jnp.concatenate(parts) - X) ** 2, axis=1), float)
    energies = np.asarray(jnp.sum(X**2, axis=1), float)
    ratios = errors / energies
    nmse, median = 10 * np.log10([errors.sum() / energies.sum(), np.median(ratios)])
    return dict(
        nmse=round(float(nmse), 2),
        median=round(float(median), 2),
        failures=float((ratios > 0.1).mean()),
    )


def write(**row) -> None:
    print(row, flush=True)
    with FILE.open("a") as file:
        file.write(json.dumps(row) + "\n")


def choices() -> None:
    for seed in SEEDS:
        for probability in (0.1, 0.05):
            D, sample, unseen = drawn(seed, probability)
            layer = ur.alista(DEPTH, support=(0.12 * probability, 1.2 * probability))
            start = ur.analytic.alista(D, depth=DEPTH, sparsity=2, bound=1.0)
            said: list[str] = []
            chosen = ur.calibrate(layer, start, D, *sample, report=said.append)
            (Y, X), aim = sample, _calibrate.squared
            candidates = _calibrate._candidates(layer, start, D, Y, X, aim)
            rows = [(scores(layer, p, D, *unseen)["nmse"], form) for form, p in candidates]
            best, form = min(rows)
            row = dict(seed=seed, probability=probability, said=said[0], best=best, best_form=form)
            write(study="choices", **row, **scores(layer, chosen, D, *unseen))


def families(calibrate, name: str) -> None:
    D, sample, unseen = drawn(0, 0.1)
    theory: Any = dict(depth=DEPTH, sparsity=2, bound=1.0)
    starts = {
        "ista": (ur.layers.ista(DEPTH), ur.analytic.ista(D, 0.1, DEPTH)),
        "lista_cp": (ur.layers.lista_cp(DEPTH), ur.analytic.lista_cp(D, **theory)),
        "alista": (ur.alista(DEPTH), ur.analytic.alista(D, **theory)),
        "alista_ss": (ur.alista(DEPTH, support=(0.012, 0.12)), ur.analytic.alista(D, **theory)),
    }
    for family, (layer, start) in starts.items():
        calibrate(layer, start, D, *sample)  # compiles
        began = time.process_time()
        found = calibrate(layer, start, D, *sample)
        seconds = round(time.process_time() - began, 1)
        row = dict(calibrate=name, family=family, cpu_seconds=seconds)
        write(study="families", **row, **scores(layer, found, D, *unseen))


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    if sys.argv[1] == "choices":
        choices()
    elif len(sys.argv) > 2:
        families(runpy.run_path(sys.argv[2])["calibrate"], "before")
    else:
        families(ur.calibrate, "after")
