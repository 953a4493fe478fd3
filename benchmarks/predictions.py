"""Compare state evolution with measured errors, and measure families without training.

The codes are Bernoulli-Gaussian, the dictionaries are Gaussian, K is 16, and the dtype is float32.
`curves` has the median error of the signals after each step and the prediction of
`theory.state_evolution`, for the best thresholds of each family. `families` has the error after the
last step of layers without training: layers with the params of `init`, layers that are calibrated
on 256 signals, and layers with the thresholds of `analytic.alista_at`.

    python benchmarks/predictions.py            adds the rows that are missing to predictions.json
    python benchmarks/predictions.py --table    prints the tables of predictions.json
"""

import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _measure import environment

import unrolled as ur

PATH = Path(__file__).with_suffix(".json")
K, SIGNALS, SAMPLE = 16, 500, 256
SHAPES = ((250, 500, 0.1), (500, 1000, 0.1), (333, 500, 0.1), (250, 1000, 0.05))
SNRS = (None, 20)  # in dB; None: no noise
CURVES = ("lamp", "lamp_bg", "vamp_bg", "alista_at, onsager", "tista, onsager")
FAMILIES = (
    "vamp_bg",
    "vamp_bg, em",
    "tista",
    "tista, onsager",
    "alista_at, onsager",
    "alista_at, onsager, calibrated",
    "alista_at, onsager, predicted",
)
SETTINGS = ("no noise", "SNR 40", "SNR 20", "condition 50")


def layer_of(name, probability, noise, ratio):
    """A layer with the true prior and noise (per entry of y, and as a ratio of energies)."""
    prior = dict(probability=probability)
    return {
        "lamp": lambda: ur.layers.lamp(K),
        "lamp_bg": lambda: ur.layers.lamp_bg(K, **prior),
        "vamp_bg": lambda: ur.layers.vamp_bg(K, **prior, noise_ratio=ratio),
        "vamp_bg, em": lambda: ur.layers.vamp_bg(K, em=True),
        "tista": lambda: ur.layers.tista(K, **prior, noise=noise),
        "tista, onsager": lambda: ur.layers.tista(K, **prior, noise=noise, onsager=True),
        "alista_at, onsager": lambda: ur.layers.alista_at(K, onsager=True),
    }[name]()


def errors_of(layer, params, D, Y, X):
    """The squared errors after every step, and the energies of the codes."""
    codes = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))(params, D, Y)
    X = np.asarray(X, float)
    return np.sum((np.asarray(codes, float) - X[:, None]) ** 2, -1), np.sum(X**2, -1)


def curve(m, d, probability, name, snr):
    """The predicted and the median error after every step, in dB."""
    D = ur.dictionaries.gaussian(0, m, d)
    Y, X = ur.problems.sampler(D, SIGNALS, probability=probability, snr=snr or math.inf)(1)
    noise = probability * d / m * 10 ** (-snr / 10) if snr else 0.0
    layer = layer_of(name, probability, noise, 10 ** (-snr / 10) if snr else 1e-10)
    found = ur.theory.state_evolution(layer, D, probability=probability, noise=noise)
    params = layer.init(None, D)
    if found.thresholds is not None:
        field = layer.message_passing().threshold
        params = params._replace(
            steps=params.steps._replace(**{field: jnp.asarray(found.thresholds, D.dtype)})
        )
    if name.startswith("alista_at"):
        params = params._replace(steps=params.steps._replace(gamma=jnp.ones(K)))
    errors, energy = errors_of(layer, params, D, Y, X)
    median = np.median(10 * np.log10(errors / energy[:, None]), 0)
    return {
        "predicted": found.nmse[1:].tolist(),
        "median": median.tolist(),
        "holds": bool(found.holds),
    }


def family(name, setting):
    """The ratio of sums, the median and the mean of dB after the last step, at 250 x 500."""
    snr = {"SNR 40": 40.0, "SNR 20": 20.0}.get(setting, math.inf)
    D = ur.dictionaries.gaussian(0, 250, 500)
    if setting == "condition 50":
        D = ur.dictionaries.ill_conditioned(0, 250, 500, 50.0)
    Y, X = ur.problems.sampler(D, SIGNALS, snr=snr)(1)
    ratio, start = 10 ** (-snr / 10), name.rpartition(", ")[2]
    kind = name.removesuffix(", calibrated").removesuffix(", predicted")
    layer = layer_of(kind, 0.1, noise := 0.2 * ratio, max(ratio, 1e-10))
    params = layer.init(None, D)
    if start == "calibrated":
        sample = ur.problems.sampler(D, SAMPLE, snr=snr)(2)
        params = ur.analytic.calibrate(layer, params, D, *sample)
    if start == "predicted":
        params = ur.analytic.alista_at(D, K, probability=0.1, noise=noise)
    errors, energy = errors_of(layer, params, D, Y, X)
    last = errors[:, -1]
    decibels = 10 * np.log10(last / energy)
    return {
        "sum": float(10 * np.log10(last.sum() / energy.sum())),
        "median": float(np.median(decibels)),
        "mean": float(np.mean(decibels)),
    }


def main():
    rows = json.loads(PATH.read_text()) if PATH.exists() else {}
    rows = {name: rows.get(name, {}) for name in ("curves", "families")}
    work = [
        ("curves", f"{m} x {d}; {name}; {snr}", partial(curve, m, d, p, name, snr))
        for snr in SNRS
        for m, d, p in SHAPES
        for name in CURVES
    ]
    work += [
        ("families", f"{name}; {setting}", partial(family, name, setting))
        for name in sorted(FAMILIES, key=lambda name: name.endswith("calibrated"))  # the slow ones
        for setting in SETTINGS
    ]
    for part, key, compute in work:
        if key not in rows[part]:
            began = time.perf_counter()
            rows[part][key] = compute()
            PATH.write_text(json.dumps({"environment": environment(), **rows}) + "\n")
            print(key, f"{time.perf_counter() - began:.0f} s", flush=True)


def table():
    """Distances of the medians from their prediction, then the errors of untrained layers."""
    rows = json.loads(PATH.read_text())
    noises = {snr: f"SNR {snr}" if snr else "no noise" for snr in SNRS}
    titles = [f"{m} x {d}, {noises[snr]}" for m, d, _ in SHAPES for snr in SNRS]
    lines = ["Largest distance of the median error from its prediction, dB:", ""]
    lines += ["| family | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for name in CURVES:
        cells = []
        for m, d, _ in SHAPES:
            for snr in SNRS:
                row = rows["curves"].get(f"{m} x {d}; {name}; {snr}")
                cells.append(_apart(row) if row else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    told = "NMSE of layers without training, dB, as a ratio of sums / as a median over signals"
    lines += ["", f"{told} (250 x 500, p = 0.1):", ""]
    lines += ["| family | " + " | ".join(SETTINGS) + " |", "|---" * (1 + len(SETTINGS)) + "|"]
    for name in FAMILIES:
        found = [rows["families"].get(f"{name}; {setting}") for setting in SETTINGS]
        cells = [f"{r['sum']:.1f} / {r['median']:.1f}" if r else "" for r in found]
        if any(found):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _apart(row):
    """The largest distance of the median from the predictions that are above -100 dB."""
    predicted, median = (np.array(row[name]) for name in ("predicted", "median"))
    above = predicted > -100
    mark = "" if row["holds"] else " (does not hold)"
    return f"{np.abs(predicted - median)[above].max():.1f}{mark}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        print(table())
    else:
        main()
