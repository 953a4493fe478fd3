"""Planted dictionaries, and the share of their atoms that methods find again.

    python benchmarks/recovery.py              # rows of recovery.jsonl, resumable
    python benchmarks/recovery.py --table found  # a table of the page; also score, "CPU s"
    python benchmarks/recovery.py --theory     # what is proved of recovered atoms, a row

The law of signals is that of arXiv 2603.28744 ("Stop probing, start coding"): n latents, signals of
m = 2 k ln(n / k) entries with k = 10 nonzeros, uniform on [0, 1). Half of the signals have the
latent 0 and nine of the first half of the latents; the others have ten of all latents but the
latent 0. The score is that of the paper: on 1,000 signals of another law (ten of the second half of
the latents), the mean correlation of true latents with the codes that are matched to them, for
LASSO codes over x >= 0 with lam = 0.1. No method sees these signals. An atom is found if its inner
product with an atom is above 0.9. SPAMS (`spams-bin`) and scikit-learn take part if they are
installed; they have the CPU time that `recover` took for the same signals.
"""

import argparse
import importlib.util
import json
import math
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from _measure import environment, markdown
from scipy.optimize import linear_sum_assignment

import unrolled as ur

ROWS = Path(__file__).with_name("recovery.jsonl")
K, LAM = 10, 0.1
CASES = [
    *((200, 500), (200, 1000), (200, 2500), (200, 10_000), (200, 40_000)),
    *((500, 2500), (500, 10_000), (500, 40_000)),
    *((1000, 2500), (1000, 10_000), (1000, 20_000), (2000, 10_000), (2000, 40_000)),
]
LARGE = 5000, 40_000  # 200 steps alone: the default, 750 steps, takes over an hour
SEEDS = 0, 1, 2


def planted(n, signals, seed):
    """The atoms, signals to learn from, and codes and signals of another law."""
    rng, half = np.random.default_rng(seed), n - n // 2
    D = rng.normal(size=(math.ceil(2 * K * math.log(n / K)), n))
    D /= np.linalg.norm(D, axis=0)

    def codes(number, first):
        X = np.zeros((number, n), np.float32)
        for x in X:
            if first is not None:
                support = rng.choice(np.arange(first, n), K, replace=False)
            elif rng.random() < 0.5:
                support = np.r_[0, rng.choice(np.arange(1, half), K - 1, replace=False)]
            else:
                support = rng.choice(np.arange(1, n), K, replace=False)
            x[support] = rng.random(K)
        return X

    X, Z = codes(signals, None), codes(1000, half)
    return D, (X @ D.T).astype(np.float32), Z, (Z @ D.T).astype(np.float32)


def score(D, Z, Y):
    """The mean correlation of used latents with the entries of codes that match best."""
    codes = ur.pursuit.lasso_batch(D.astype(np.float32), Y, LAM, nonnegative=True, tol=1e-4).x

    def unit(X):
        X = X - X.mean(0)
        return X / np.maximum(np.linalg.norm(X, axis=0), 1e-8)

    products = np.abs(unit(Z[:, Z.std(0) > 0]).T @ unit(np.asarray(codes)))
    return float(products[linear_sum_assignment(-products)].mean())


def recover(Y, n, seed, **options):
    learn = ur.dictionary_learning.recover
    return learn(Y, n, lam=LAM, nonnegative=True, key=seed, **options).D


def online(Y, n, seed):
    """As many batches of the same size, with the default options of `online`."""
    rng = np.random.default_rng(seed)
    batches = (Y[rng.permutation(len(Y))[:n]] for _ in range(750))
    learn = ur.dictionary_learning.online
    return learn(batches, n, lam=LAM, nonnegative=True, key=seed).D


def autoencoder(Y, n, seed):
    """A TopK sparse autoencoder, trained with its decoder."""
    D, layer = ur.gaussian(seed, Y.shape[1], n), ur.layers.sae(1, sparsity=K)
    start = layer.init(None, D)
    start = start._replace(steps=start.steps._replace(W=D[None], bias=0 * start.steps.bias))
    trained = ur.fit(
        layer,
        start,
        D,
        ur.problems.resampler(Y, batch=256),
        loss=ur.training.reconstruction,
        learn_dictionary=True,
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, 4000)),
        steps=4000,
        key=seed,
        progress=False,
    )
    return trained.D


def spams(Y, n, seed):
    """`trainDL` on one thread, with about the iterations for the CPU time of `recover`."""
    from spams import trainDL

    options = dict(lambda1=LAM, posAlpha=True, batchsize=512, numThreads=1, verbose=False)
    options |= dict(X=np.asfortranarray(Y.T, float), D=np.asfortranarray(start(Y, n, seed), float))
    began = time.process_time()
    trainDL(iter=100, **options)  # one call learns more than a call for each part of the time
    each = (time.process_time() - began) / 100
    return unit_atoms(trainDL(iter=round(seconds_of_recover(Y, n, seed) / each), **options))


def scikit_learn(Y, n, seed):
    """`MiniBatchDictionaryLearning` by coordinate descent, for the CPU time of `recover`."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    rng, budget = np.random.default_rng(seed), seconds_of_recover(Y, n, seed)
    Y = Y.astype(float)  # in float32 its solver does not reach its tolerance
    options = dict(fit_algorithm="cd", positive_code=True, dict_init=start(Y, n, seed).T.copy())
    learner = MiniBatchDictionaryLearning(n, alpha=LAM, random_state=seed, **options)
    began = time.process_time()
    while time.process_time() - began < budget:
        learner.partial_fit(Y[rng.choice(len(Y), 256, replace=False)])
    return unit_atoms(learner.components_.T)


def start(Y, n, seed):
    return unit_atoms(Y[np.random.default_rng(seed).permutation(len(Y))[:n]].T)


def unit_atoms(D):
    return D / np.maximum(np.linalg.norm(D, axis=0), 1e-12)


def seconds_of_recover(Y, n, seed):
    case = (n, len(Y), seed, "recover")
    of = {(row["n"], row["signals"], row["seed"], row["method"]): row["CPU s"] for row in read()}
    return of[case]


METHODS = {
    "true atoms": lambda Y, n, seed: planted(n, len(Y), seed)[0],
    "recover": recover,
    "recover, 1500 steps": partial(recover, steps=1500),
    "recover, 200 steps": partial(recover, steps=200),
    "online": online,
    "SPAMS": spams,
    "scikit-learn": scikit_learn,
    "sparse autoencoder": autoencoder,
}
# The cases of a method, where not all.
ONLY = {"recover, 1500 steps": [(500, 2500)], "recover, 200 steps": [LARGE]}
PACKAGES = {"SPAMS": "spams", "scikit-learn": "sklearn"}


def read():
    rows = map(json.loads, ROWS.read_text().splitlines()) if ROWS.exists() else ()
    return [row for row in rows if "method" in row]


def write(row):
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def measure(n, signals, seed, method):
    D, Y, Z, other = planted(n, signals, seed)
    began = time.process_time()
    found = np.asarray(jax.block_until_ready(METHODS[method](Y, n, seed)))
    seconds = time.process_time() - began
    return {
        **dict(n=n, signals=signals, seed=seed, method=method),
        "found": float(np.mean((D.T @ found).max(1) > 0.9)),
        "score": score(found, Z, other),
        "CPU s": round(seconds),
        **environment(),
    }


def theory(n=200, signals=10_000, seed=0):
    """Bounds for every code with the atoms, and the share of 1,000 codes that are certified."""
    D, Y, _, other = planted(n, signals, seed)
    row = {"theory": [n, signals, seed], **environment()}
    for name, atoms in {"true atoms": D, "recover": recover(Y, n, seed)}.items():
        atoms = unit_atoms(np.asarray(atoms, float))
        with jax.enable_x64(True):
            options = dict(nonnegative=True)
            X = ur.pursuit.lasso_batch(atoms, other.astype(float), LAM, tol=1e-9, **options).x
            proof = ur.theory.certify_lasso(atoms, other.astype(float), X, lam=LAM, **options)
            row[name] = {
                "coherence": float(ur.theory.mutual_coherence(atoms)),
                "nonzeros for every code": float(ur.theory.uniqueness([atoms], [K]).bounds[0]),
                "nonzeros of codes": float((np.asarray(X) > 0).sum(1).mean()),
                "certified": float(np.mean(proof.unique)),
            }
    return row


def table(of):
    """A row for each case: the mean of `of` over the seeds by method, with half its range."""
    rows, lines = read(), []
    for n, signals in CASES:
        case = [row for row in rows if (row["n"], row["signals"]) == (n, signals)]
        line = {"atoms": n, "signals": signals, "per atom": f"{signals / n:g}"}
        for method in (method for method in METHODS if method not in ONLY):
            values = [row[of] for row in case if row["method"] == method]
            line[method] = cell(values, 0 if of == "CPU s" else 3)
        if of != "score":
            del line["true atoms"]
        lines.append(line)
    return markdown(lines)


def cell(values, digits):
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    return f"{np.mean(values):.{digits}f} \u00b1 {np.ptp(values) / 2:.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", choices=("score", "found", "CPU s"))
    parser.add_argument("--atoms", type=int, nargs="*", help="the cases with these numbers alone")
    parser.add_argument("--signals", type=int, nargs="*", help="the cases with so many alone")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=[*METHODS])
    parser.add_argument("--theory", action="store_true")
    options = parser.parse_args()
    if options.theory:
        return print(write(theory()))
    if options.table:
        return print(table(options.table))
    present = [
        m for m in options.methods if importlib.util.find_spec(PACKAGES.get(m, "jax")) is not None
    ]
    done = {(row["n"], row["signals"], row["seed"], row["method"]) for row in read()}
    for seed in options.seeds:
        for n, signals in [*CASES, LARGE]:
            if n not in (options.atoms or [n]) or signals not in (options.signals or [signals]):
                continue
            for method in present:
                wanted = (n, signals) in ONLY.get(method, CASES)
                if wanted and (n, signals, seed, method) not in done:
                    row = measure(n, signals, seed, method)
                    write(row)
                    shown = ("n", "signals", "method", "found", "score", "CPU s")
                    print({name: row[name] for name in shown}, flush=True)


if __name__ == "__main__":
    main()
