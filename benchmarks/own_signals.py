"""Every family on signals and a dictionary as people have them: patches, a learned dictionary.

The dictionary is learned by `online` on mean-free 8 x 8 patches of one photograph of scikit-learn,
and the codes of patches of the other one are judged by the objective of the LASSO: of the start,
and after a short training with `training.lasso` on the first one, beside zero codes, ISTA and FISTA
at the same depth, and the optimum of `lasso_batch`.

    python benchmarks/own_signals.py            writes own_signals.json
    python benchmarks/own_signals.py --table    prints its table
"""

import argparse
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import save
from sklearn.datasets import load_sample_images

import unrolled as ur
from unrolled import layers

HERE = Path(__file__).parent
SIDE, ATOMS, K, LAM = 8, (128, 256), 16, 0.1
PATCHES, TESTED = 20_000, 1_000
STEPS, BATCH, RATE = 200, 64, 1e-3
# Families that need an option, and options that matter.
BUILD = {
    "alista, ridge 0": lambda K, lam: layers.alista(K, lam=lam, ridge=0.0),
    "alista, support": lambda K, lam: layers.alista(K, lam=lam, support=(0.012, 0.12)),
    "lista, untied": lambda K, lam: layers.lista(K, lam=lam, tied=False),
    "lista_cp, untied": lambda K, lam: layers.lista_cp(K, lam=lam, tied=False),
    "liht": lambda K, lam: layers.liht(K, sparsity=8),
}


def patches(picture: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mean-free patches from random places, (count, SIDE^2)."""
    rng = np.random.default_rng(seed)
    top, left = (rng.integers(0, size - SIDE, count) for size in picture.shape)
    Y = np.stack([picture[i : i + SIDE, j : j + SIDE].ravel() for i, j in zip(top, left)])
    return Y - Y.mean(1, keepdims=True)


def problem(atoms: int):
    """A learned dictionary, signals to train on, and signals of the other photograph."""
    one, other = (picture.mean(-1) / 255 for picture in load_sample_images().images)
    Y = patches(one, PATCHES, 0)
    size = np.sqrt(np.mean(np.sum(Y**2, 1)))
    Y, tested = ((A / size).astype(np.float32) for A in (Y, patches(other, 2 * TESTED, 1)))
    learned = ur.dictionary_learning.online(np.split(Y, 40), atoms, lam=LAM, key=0)
    return jnp.asarray(learned.D), jnp.asarray(Y), jnp.asarray(tested)


def families():
    """A layer of every family that the library has, and of the options above."""
    for name, family in layers.FAMILIES.items():
        options = {"lam": LAM} if "lam" in family.__dataclass_fields__ else {}
        yield name, BUILD[name](K, LAM) if name in BUILD else family(K, **options)
    for name, build in BUILD.items():
        if name not in layers.FAMILIES:
            yield name, build(K, LAM)


def objective(layer, params, D, Y) -> float:
    X = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y)
    return _mean_objective(D, Y, X)


def _mean_objective(D, Y, X) -> float:
    values = jax.vmap(ur.pursuit.lasso_objective, (None, 0, 0, None))(D, Y, X, LAM)
    return float(np.mean(np.asarray(values, float)))


def measured(layer, D, Y, tested) -> dict:
    """The objective of the start and after training, and what was warned of."""
    validation, test = tested[:TESTED], tested[TESTED:]
    start = layer.init(jax.random.key(0), D)

    def sample(key):
        return Y[jax.random.randint(key, (BATCH,), 0, len(Y))], None

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            fit = ur.fit(
                layer,
                start,
                D,
                sample,
                optimizer=optax.adam(RATE),
                steps=STEPS,
                key=1,
                loss=ur.training.lasso(LAM),
                validation=(validation, None),
            )
        except ur.training.NonFiniteError as error:
            told, fit = [*told, error], error.fit
    texts = [str(getattr(entry, "message", entry)).partition(":")[2].strip() for entry in told]
    return {
        "start": objective(layer, start, D, test),
        "best": objective(layer, fit.best, D, test),
        "last": objective(layer, fit.params, D, test),
        "worsened": fit.worsened,
        "warned": [text.partition(":")[0] for text in texts],
    }


def run(atoms: int) -> dict:
    D, Y, tested = problem(atoms)
    test = tested[TESTED:]
    lasso = ur.pursuit.lasso_batch(D, test, LAM, tol=1e-4)
    rows = {}
    for name, layer in families():
        rows[name] = measured(layer, D, Y, tested)
        print(atoms, name, rows[name], flush=True)
    return {
        "shape": list(D.shape),
        "coherence": float(ur.theory.mutual_coherence(D)),
        "zero": _mean_objective(D, test, jnp.zeros((len(test), atoms), D.dtype)),
        "optimum": _mean_objective(D, test, lasso.x),
        "certified": bool(np.all(lasso.converged)),
        "rows": rows,
    }


def table(results: dict) -> str:
    lines = []
    for found in results["dictionaries"]:
        m, d = found["shape"]
        ista = found["rows"]["ista"]["start"]
        lines += [
            f"**{m} x {d}, mu = {found['coherence']:.2f}.** Zero codes {found['zero']:.4f}, "
            f"ISTA {ista:.4f}, optimum {found['optimum']:.4f}.",
            "",
            f"| family | start | after {results['steps']} steps (best) | last | warned of |",
            "|---|---|---|---|---|",
        ]
        for name, row in found["rows"].items():
            numbers = " | ".join(f"{row[k]:.4g}" for k in ("start", "best", "last"))
            lines.append(f"| {name} | {numbers} | {'; '.join(row['warned'])} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the table of the last run")
    path = HERE / "own_signals.json"
    if parser.parse_args().table:
        print(table(json.loads(path.read_text())))
        return
    found = [run(atoms) for atoms in ATOMS]
    save(path, {"depth": K, "lam": LAM, "steps": STEPS, "dictionaries": found})


if __name__ == "__main__":
    main()
