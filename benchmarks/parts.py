"""Compare codes in parts with codes of single entries: complex signals and many measurements.

    python benchmarks/parts.py             all rows and figures, minutes on one core
    python benchmarks/parts.py complex     the tasks whose names begin with "complex"
    python benchmarks/parts.py --table     prints the tables of parts.json

"complex": the matrix is Gaussian, 128 x 256, and a tenth of the numbers of a code are nonzero. A
network and the LASSO compute codes with the modulus, and on the stacked real and imaginary parts.
The thresholds and steps of the network are calibrated (`analytic.calibrate`), and the weight of the
LASSO is chosen, on signals of another seed.

"measurements": the 9 nonzero rows of 60 are found from 20 x g numbers, from all columns together
and column by column. The weight of the LASSO is 0.01 of lam_max. All tasks have three seeds.

"complex, trained": three families of 8 steps compute complex codes of 24 x 48, with the modulus and
on the stacked parts. The networks are calibrated as above, then trained for 400 steps of Adam on
equal batches of 64 signals. The params with the least error on the calibration signals are kept,
and the rows have their error on 2,048 other signals.
"""

import argparse
import itertools
import json
from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax
from _measure import environment

import unrolled as ur

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
RESULTS = HERE / "parts.json"
CHOOSING, SEEDS = 10, (0, 1, 2)
SIZE, DEPTH, TESTED = (128, 256), 16, 64
TRAINED = {"LISTA-CP": "lista_cp", "ALISTA": "alista", "LFISTA-CP": "lfista_cp"}
SMALL, TRAINED_DEPTH, STEPS, RATE, BATCH, JUDGED = (24, 48), 8, 400, 2e-3, 64, 2048
RATIOS = 0.003, 0.01, 0.03, 0.1
ROWS, MEASURED, ACTIVE, TRIALS = 60, 20, 9, 100
GROUPS = 1, 2, 4, 8
ud = ur.dictionaries


def complex_gaussian(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def unit(A):
    return A / np.linalg.norm(A, axis=0)


def dictionaries(seed, size=SIZE):
    """The complex matrix as a dictionary whose parts are complex numbers, and as a real matrix."""
    A = unit(complex_gaussian(np.random.default_rng(seed), *size)).astype(np.complex64)
    D = ud.Complex.of(A)
    return {"modulus": D, "stacked": np.asarray(ud.dense(D))}


def signals(D, seed, n, snr):
    """Signals and codes; a tenth of the complex numbers of a code are nonzero."""
    return ur.problems.sampler(D, n, probability=0.1, snr=snr)(jax.random.key(seed))


def complex_rows(snr):
    """The error in dB of the codes of each method, for every seed."""
    rows = {}
    for seed in SEEDS:
        both = dictionaries(seed)
        planted = both["modulus"]
        Y, X = signals(planted, CHOOSING + seed, 256, snr)
        tested, truth = signals(planted, 100 + seed, TESTED, snr)
        for name, D in both.items():
            layer = ur.alista(DEPTH)
            params = ur.analytic.calibrate(layer, layer.init(None, D), D, Y, X)
            codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, tested)
            add(rows, f"ALISTA, {name}", ur.metrics.nmse(codes, truth))
            dB = [ur.metrics.nmse(lasso(D, Y[:TESTED], r), X[:TESTED]) for r in RATIOS]
            best = RATIOS[int(np.argmin(dB))]
            add(rows, f"LASSO, {name}", ur.metrics.nmse(lasso(D, tested, best), truth))
    return rows


def trained_rows(snr):
    """The error in dB of the codes of each family after training, for every seed."""
    rows, loss = {}, ur.training.mostly_last
    for seed, (name, family) in itertools.product(SEEDS, TRAINED.items()):
        both = dictionaries(seed, SMALL)
        planted = both["modulus"]
        sample = ur.problems.sampler(planted, BATCH, probability=0.1, snr=snr)
        Y, X = signals(planted, CHOOSING + seed, 256, snr)
        tested, truth = signals(planted, 100 + seed, JUDGED, snr)
        for form, D in both.items():
            layer = ur.layers.FAMILIES[family](TRAINED_DEPTH)
            start = ur.analytic.calibrate(layer, layer.init(None, D), D, Y, X)
            rate = optax.cosine_decay_schedule(RATE, STEPS)
            optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
            options = dict(optimizer=optimizer, steps=STEPS, loss=loss, validation=(Y, X))
            fit = ur.fit(layer, start, D, sample, key=seed, progress=False, **options)
            codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(fit.best, D, tested)
            add(rows, f"{name}, {form}", ur.metrics.nmse(codes, truth))
    return rows


def lasso(D, Y, ratio):
    return ur.pursuit.lasso_batch(D, Y, ratio=ratio, tol=1e-5).x


def add(rows, name, value):
    rows.setdefault(name, []).append(round(float(value), 2))
    print(name, rows[name], flush=True)


def recovered(X, truth):
    """The share of signals whose rows of largest norm are exactly the rows of the true code."""
    sizes = np.linalg.norm(np.asarray(X), axis=2)
    chosen = np.sort(np.argsort(sizes, 1)[:, -ACTIVE:], 1)
    return (chosen == np.sort(truth, 1)).all(1).mean()


def measurement_rows():
    """The share of recovered supports, for every number of measurements and seed."""
    rows = {}
    for g in GROUPS:
        for seed in SEEDS:
            rng = np.random.default_rng([seed, g])
            A = unit(rng.normal(size=(MEASURED, ROWS))).astype(np.float32)
            rows_of = np.stack([rng.permutation(ROWS)[:ACTIVE] for _ in range(TRIALS)])
            X = np.zeros((TRIALS, ROWS, g), np.float32)
            np.put_along_axis(X, rows_of[..., None], rng.normal(size=(TRIALS, ACTIVE, g)), 1)
            Y, D = A @ X, ud.Joint(A, g)
            columns = Y.swapaxes(1, 2).reshape(-1, MEASURED)

            def apart(codes, g=g):
                return np.asarray(codes).reshape(TRIALS, g, ROWS).swapaxes(1, 2)

            found = {
                "LASSO, together": lasso(D, Y, 0.01),
                "LASSO, column by column": apart(lasso(A, columns, 0.01)),
                "OMP, together": ur.pursuit.omp_batch(D, Y, ACTIVE).x,
                "OMP, column by column": apart(ur.pursuit.omp_batch(A, columns, ACTIVE).x),
            }
            for name, codes in found.items():
                add(rows.setdefault(f"g = {g}", {}), name, recovered(codes, rows_of))
    return rows


def draw_complex():
    """Draw the moduli of six echoes, found from a quarter of the frequencies by three methods."""
    n, rng = 128, np.random.default_rng(2)
    F = np.fft.fft(np.eye(n), norm="ortho")
    kept = np.sort(rng.permutation(n)[: n // 4])
    A = unit(F[kept]).astype(np.complex64)
    x = np.zeros(n, complex)
    x[rng.permutation(n)[:6]] = complex_gaussian(rng, 6)
    y = (A @ x + 0.03 * complex_gaussian(rng, len(kept))).astype(np.complex64)
    D = ud.Complex.of(A)
    estimates = {
        "inverse Fourier transform of what is known": A.conj().T @ y * len(kept) / n,
        "LASSO with the modulus": np.asarray(ur.pursuit.lasso(D, y, ratio=0.05).x),
    }
    figure, axes = plt.subplots(2, 1, figsize=(7, 3.6), sharex=True, layout="constrained")
    for axis, (name, estimate) in zip(axes, estimates.items()):
        axis.plot(np.flatnonzero(x), np.abs(x[x != 0]), "o", color="0.6", label="echoes")
        axis.plot(np.abs(estimate), lw=1.2, label=name)
        axis.set_ylabel("|x|")
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
    axes[-1].set_xlabel("delay")
    save(figure, "parts_complex.svg")


def draw_measurements(rows):
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for name in rows["g = 1"]:
        shares = np.array([rows[f"g = {g}"][name] for g in GROUPS])
        style = "-" if "together" in name else "--"
        mean = shares.mean(1)
        spread = [mean - shares.min(1), shares.max(1) - mean]
        axis.errorbar(GROUPS, mean, spread, fmt=style, marker="o", capsize=2, label=name)
    axis.set(xlabel="measurements g", ylabel="supports recovered", xticks=GROUPS)
    axis.legend(loc="upper left", fontsize=8, frameon=False)
    axis.set_ylim(0, 1.05)
    save(figure, "parts_measurements.svg")


def save(figure, name):
    with matplotlib.rc_context({"svg.hashsalt": "parts"}):
        figure.savefig(HERE / name, metadata={"Date": None})
    plt.close(figure)


TASKS = {
    "complex, noiseless": lambda: complex_rows(np.inf),
    "complex, SNR 20": lambda: complex_rows(20.0),
    "complex, trained, noiseless": lambda: trained_rows(np.inf),
    "complex, trained, SNR 20": lambda: trained_rows(20.0),
    "measurements": measurement_rows,
}


def table(task, rows, places):
    for name, values in rows.items():
        if isinstance(values, dict):
            table(name, values, places)
            continue
        mean, least, most = (f"{v:.{places}f}" for v in (np.mean(values), min(values), max(values)))
        print(f"| {task} | {name} | {mean} | {least} to {most} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks", nargs="*", help="first words of tasks: complex, measurements")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if not arguments.table:
        for name, measure in TASKS.items():
            if not arguments.tasks or name.startswith(tuple(arguments.tasks)):
                stored["rows"][name] = measure()
                stored["environment"] = environment()
                RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
        draw_complex()
        if "measurements" in stored["rows"]:
            draw_measurements(stored["rows"]["measurements"])
    for name, rows in stored["rows"].items():
        table(name.removeprefix("complex, "), rows, 1 if name.startswith("complex") else 2)


if __name__ == "__main__":
    main()
