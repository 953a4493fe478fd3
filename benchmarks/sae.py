"""A sparse autoencoder of token embeddings, and better codes for its own decoder.

    python benchmarks/sae.py                # three seeds; a row of sae.jsonl for each, resumable
    python benchmarks/sae.py --table        # the table and the figure of the page, from the rows
    python benchmarks/sae.py --scale        # 100,000 planted activations at 512 x 16384
    python benchmarks/sae.py --scale --atoms 65536 --tokens 4096

The data are the 32,000 token embeddings of 256 dimensions that the wheel of `wordllama` ships (pip
install wordllama --no-deps; nothing is run of it). The mean is removed, and all are divided by the
mean norm. `fit` trains a TopK autoencoder with 2048 atoms and 32 nonzeros on 30,000 tokens, decoder
included; `sae.report` codes 1,000 other tokens. A row also has the share of the atoms that another
seed finds (inner product above 0.9), and how much of a support stays if 1 % or 10 % of noise is
added (intersection over union).
"""

import argparse
import importlib.metadata
import importlib.util
import json
import resource
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax
from _measure import environment, markdown, rows_of

import unrolled as ur

ROWS = Path(__file__).with_name("sae.jsonl")
D_SAE, K, STEPS, SEEDS, TESTED, HELD = 2048, 32, 2000, (0, 1, 2), 1000, 2000
NOISE = 0.01, 0.1


def embeddings():
    """The tokens and their embeddings, shuffled once, without those of norm 0."""
    spec = importlib.util.find_spec("wordllama")
    if spec is None:
        raise SystemExit("sae.py: needs wordllama; try pip install wordllama --no-deps")
    folder = Path(spec.submodule_search_locations[0])
    from safetensors.numpy import load_file

    A = next(iter(load_file(folder / "weights/l2_supercat_256.safetensors").values()))
    words = json.loads((folder / "tokenizers/l2_supercat_tokenizer_config.json").read_text())
    words = sorted(words["model"]["vocab"].items(), key=lambda item: item[1])
    norms = np.linalg.norm(A := A.astype(np.float32), axis=1)
    kept = np.random.default_rng(0).permutation(np.flatnonzero(norms > 1e-3))
    A = A[kept] - A[kept].mean(0)
    A /= np.linalg.norm(A, axis=1).mean()
    return [words[i][0].replace("\u2581", " ") for i in kept], A


def kept(A, seed):
    """The autoencoder of a seed, from a file if there is one, and the CPU seconds of training."""
    path = Path(tempfile.gettempdir(), f"sae_of_tokens_{seed}.npz")
    if not path.exists():
        began = time.process_time()
        sae = autoencoder(A, seed)
        seconds, (W, bias, _) = time.process_time() - began, sae.params.steps
        weights = {"W_enc": W[0], "b_enc": bias[0], "W_dec": sae.D.T, "b_dec": sae.center}
        np.savez(path, seconds=seconds, **weights)
    with np.load(path) as file:
        weights = dict(file)
    return ur.sae.load(weights, kind="topk", k=K, centered=True), float(weights["seconds"])


def autoencoder(A, seed):
    """A TopK autoencoder, trained by `fit` with its decoder from tied random atoms."""
    m, center = A.shape[1], A.mean(0)
    D, layer = ur.gaussian(seed, m, D_SAE), ur.layers.sae(1, sparsity=K)
    start = layer.init(None, D)
    start = start._replace(steps=start.steps._replace(W=D[None], bias=0 * start.steps.bias))
    trained = ur.fit(
        layer,
        start,
        D,
        ur.problems.resampler(A - center, batch=768),
        loss=ur.training.reconstruction,
        learn_dictionary=True,
        optimizer=optax.adam(optax.cosine_decay_schedule(1.5e-3, STEPS)),
        steps=STEPS,
        key=seed,
        progress=False,
    )
    return ur.sae.SAE(layer, trained.params, trained.D, jax.numpy.asarray(center))


def overlap(X, Z):
    """The mean of intersection over union of supports."""
    X, Z = X != 0, Z != 0
    return float(np.mean((X & Z).sum(1) / np.maximum(1, (X | Z).sum(1))))


def stability(sae, A, lam):
    """How much of the supports stays if noise is added, by method and share of noise."""
    noise = np.random.default_rng(1).normal(size=A.shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    D, found = np.asarray(sae.D), {}
    methods = {
        "encoder": lambda Y: sae.layer.encode(sae.D, Y, sae.params),
        "LASSO": lambda Y: ur.pursuit.lasso_batch(D, Y, lam, nonnegative=True).x,
        "OMP, x >= 0": lambda Y: ur.pursuit.omp_batch(D, Y, K, nonnegative=True).x,
    }
    Y = np.asarray(sae.signals(A))
    for share in NOISE:
        moved = Y + share * np.linalg.norm(Y, axis=1, keepdims=True) * noise
        for name, code in methods.items():
            found[f"{name}, {share:g}"] = overlap(np.asarray(code(Y)), np.asarray(code(moved)))
    return found


def shared_atoms(D, other):
    """The share of the atoms of D that have an inner product above 0.9 with one of the others."""
    return float(np.mean((np.asarray(D).T @ np.asarray(other)).max(1) > 0.9))


def measure(seed):
    words, A = embeddings()
    sae, seconds = kept(A[:-HELD], seed)
    report = ur.sae.report(sae, np.concatenate([A[:-HELD], A[-TESTED:]]), steps=1000)
    others = [kept(A[:-HELD], other)[0].D for other in SEEDS if other != seed]
    return {
        "seed": seed,
        "steps": STEPS,
        "training CPU s": round(seconds),
        "rows": report.table("records"),
        "lam": report.lam,
        "amortisation": report.amortisation,
        "certified": report.certified,
        "dead": report.dead,
        "twins": report.twins,
        "coherence": report.coherence,
        "atoms of another seed": [shared_atoms(sae.D, other) for other in others],
        "supports that stay": stability(sae, A[-TESTED:][:300], report.lam),
        "tokens": tokens_of_atoms(words[:-HELD], sae, A[:-HELD], report.lam) if seed == 0 else [],
        "wordllama": importlib.metadata.version("wordllama"),
        **environment(),
    }


def tokens_of_atoms(words, sae, A, lam, atoms=6, shown=6):
    """The tokens with the largest entries of some atoms, by the encoder and by exact codes."""
    X = np.asarray(sae.encode(A))
    Z = np.asarray(
        ur.pursuit.lasso_batch(
            np.asarray(sae.D), np.asarray(sae.signals(A)), lam, nonnegative=True
        ).x
    )
    use = (X > 0).sum(0)
    chosen = np.random.default_rng(0).choice(np.flatnonzero(use > 50), atoms, replace=False)
    top = lambda codes, i: [words[j] for j in np.argsort(-codes[:, i])[:shown]]  # noqa: E731
    return [
        {"atom": int(i), "encoder": top(X, i), "LASSO": top(Z, i), "used": int(use[i])}
        for i in chosen
    ]


def scale(n, d, m=512):
    """CPU and clock seconds, and peak memory, of exact sparse codes from a memmap in float16."""
    rng = np.random.default_rng(0)
    D = rng.normal(size=(m, d)).astype(np.float32)
    D /= np.linalg.norm(D, axis=0)
    path = Path(tempfile.gettempdir(), "sae_activations.npy")
    A = np.lib.format.open_memmap(path, "w+", np.float16, (n, m))
    for rows in np.array_split(np.arange(n), 100):
        for i in rows:
            atoms = rng.choice(d, 20, replace=False)
            A[i] = D[:, atoms] @ rng.uniform(0.5, 1.5, 20)
    A.flush()
    A, began, cpu = np.load(path, mmap_mode="r"), time.perf_counter(), time.process_time()
    parts, gap, nonzeros = [], 0.0, 0
    for at in range(0, n, 4096):
        part = np.asarray(A[at : at + 4096], np.float32)
        found = ur.pursuit.lasso_batch(D, part, 0.15, nonnegative=True, sparse=True, tol=1e-5)
        gap, nonzeros = max(gap, float(np.max(found.gap))), nonzeros + int(found.x.counts.sum())
        parts.append(found.x.scipy())
    return {
        "scale": [m, d, n],
        "clock s": round(time.perf_counter() - began),
        "CPU s": round(time.process_time() - cpu),
        "nonzeros": nonzeros / n,
        "largest gap": gap,
        "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        **environment(),
    }


def write(row):
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def table():
    """The means over the seeds, and the figure."""
    rows = [row for row in rows_of(ROWS) if "seed" in row]
    lines, points = [], {}
    for method in (row["method"] for row in rows[0]["rows"]):
        of = [one for row in rows for one in row["rows"] if one["method"] == method]
        nonzeros, unexplained, microseconds = (
            [row[name] for row in of] for name in ("nonzeros", "unexplained", "microseconds")
        )
        points[method] = [np.mean(microseconds)], [np.mean(unexplained)]
        lines.append(
            {
                "method": method,
                "nonzeros": f"{np.mean(nonzeros):.1f}",
                "unexplained variance": f"{np.mean(unexplained):.3f}",
                "its range": f"{min(unexplained):.3f} to {max(unexplained):.3f}",
                "microseconds": f"{np.mean(microseconds):.0f}",
            }
        )
    figure = ur.plots.costs(
        points, title="Codes of token embeddings for one decoder", ylabel="unexplained variance"
    )
    figure.savefig(ROWS.with_suffix(".png"), dpi=150)
    return markdown(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--train", action="store_true", help="train only; a later call measures")
    parser.add_argument("--atoms", type=int, default=16384, help="of --scale")
    parser.add_argument("--tokens", type=int, default=100_000, help="of --scale")
    options = parser.parse_args()
    if options.table:
        return print(table())
    if options.scale:
        return write(scale(options.tokens, options.atoms))
    if options.train:
        A = embeddings()[1]
        return [kept(A[:-HELD], seed) for seed in SEEDS]
    for seed in set(SEEDS) - {row.get("seed") for row in rows_of(ROWS)}:
        write(row := measure(seed))
        print(json.dumps(row["rows"], indent=1))


if __name__ == "__main__":
    main()
