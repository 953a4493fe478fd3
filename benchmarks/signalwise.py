"""Proofs signal by signal and support by support, and attacks on these proofs.

    python benchmarks/signalwise.py [--only attacks|codes|supports|tubes]    writes signalwise.json
    python benchmarks/signalwise.py --table                            prints the tables

"attacks" compares the errors of layers with the bounds of `theory.certify_signals`. In about two
thirds of the runs, the signs of the code and the noise are random. In the other runs, the signs
follow the products of the weights of one atom with all atoms, and the noise is on the largest of
these weights. If no entry passes unshrunk, a fifth of the magnitudes are reduced at random. A run
counts as outside if the error of an entry at any step exceeds its bound, or if an entry off the
support is nonzero. "codes" certifies fresh codes for one schedule of `analytic.from_sample`.
"supports" certifies all codes on fresh supports with `theory.certify_supports`, and runs
`layers.alista_rt` on four kinds of codes. "tubes" attacks the tubes of `theory.certify_run` with
random noise, and with noise on the largest weight of one atom.
"""

import argparse
import itertools
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _measure import environment, markdown

import unrolled as ur

PATH = Path(__file__).with_suffix(".json")
M, D_ATOMS, FRESH = 250, 500, 13_809  # draws that prove 99.9 % with confidence 1 - 1e-6
SAMPLE, DEPTH = 30_000, 39
LEAVE_OUT = 1e-3  # share of the sample that from_sample may leave out
PASSING = (1.0, 1.0)

# name: (support, gamma, thresholds per atom, off the diagonal, noise, dtype, activation)
ATTACKS = {
    "soft": (None, 1.0, False, 0.0, 0.0, "float64", "relu"),
    "soft, float32": (None, 1.0, False, 0.0, 0.0, "float32", "relu"),
    "passing": (PASSING, 1.0, False, 0.0, 0.0, "float64", "relu"),
    "passing, float32": (PASSING, 1.0, False, 0.0, 0.0, "float32", "relu"),
    "some pass": ((0.005, 0.04), 1.0, False, 0.0, 0.0, "float64", "relu"),
    "some pass, float32": ((0.005, 0.04), 1.0, False, 0.0, 0.0, "float32", "relu"),
    "some pass, per atom": ((0.005, 0.04), 1.0, True, 0.0, 1e-3, "float64", "relu"),
    "passing, gamma .8": (PASSING, 0.8, False, 0.05, 1e-3, "float64", "relu"),
    "soft, gamma 1.1": (None, 1.1, True, 0.05, 1e-3, "float64", "relu"),
    "passing, noise, float32": (PASSING, 1.0, False, 0.0, 1e-2, "float32", "relu"),
    "soft, elu": (None, 1.0, False, 0.0, 0.0, "float64", "elu"),
    "passing, silu": (PASSING, 1.0, False, 0.0, 1e-3, "float32", "silu"),
}
SIZES = ((30, 60, 2), (60, 120, 4), (100, 200, 5), (100, 400, 4), (250, 500, 10))
SIGNS = 34  # runs per code


def gaussian(seed, m, d):
    D = np.random.default_rng(seed).standard_normal((m, d))
    return D / np.linalg.norm(D, axis=0)


def drawn(rng, n, d, s):
    """Codes with s Gaussian nonzeros."""
    X = np.zeros((n, d))
    np.put_along_axis(X, supports(rng, n, d, s), rng.standard_normal((n, s)), 1)
    return X


def supports(rng, n, d, s):
    return np.argsort(rng.random((n, d)), 1)[:, :s]


def attacked(name, size, seed, depth=25):
    """Attack one schedule; return the runs outside of a bound, and the largest error over bound."""
    support, gamma, per_atom, off, delta, dtype, activation = ATTACKS[name]
    m, d, s = size
    rng = np.random.default_rng([seed, *size, list(ATTACKS).index(name)])
    D = gaussian(rng.integers(2**31), m, d).astype(dtype)
    W = np.asarray(ur.theory.frobenius_weights(D))
    W = (W * (1 + off * rng.uniform(-1, 1, d))).astype(dtype)
    if activation == "elu":
        activation = ur.activations.scale(ur.activations.elu(1.0), 1e4)
    elif activation == "silu":
        activation = ur.activations.scale(ur.activations.silu, 1e4)
    layer = ur.alista(depth, support=support, activation=activation)
    x = drawn(rng, 1, d, s).astype(dtype)
    params = ur.analytic.from_sample(layer, D, x, slack=1.0, noise=delta, W=gamma * W)
    if per_atom:
        theta = np.asarray(params.steps.theta)[:, None] * np.where(x, rng.uniform(0.3, 1.5, d), 1)
        steps = params.steps._replace(theta=jnp.asarray(theta.astype(dtype)))
        params = params._replace(steps=steps)
    proof = ur.theory.certify_signals(layer, params, D, x, noise=delta)
    B = W.T.astype(float) @ D
    signs = np.sign(rng.standard_normal((SIGNS, d)))
    noises = rng.standard_normal((SIGNS, m))
    for k in range(0, SIGNS, 3):  # signs aligned with one atom, noise on its largest weight
        i = rng.integers(d)
        signs[k] = np.where(B[i] < 0, -1, 1) * rng.choice([-1, 1])
        noises[k] = np.where(np.arange(m) == np.abs(W[:, i]).argmax(), np.sign(W[:, i]), 0)
    smaller = np.where(rng.random((SIGNS, d)) < 0.2, rng.random((SIGNS, d)), 1)
    smaller = smaller if support is None else np.ones_like(smaller)  # not monotone if entries pass
    X = (np.abs(x) * signs * smaller).astype(dtype)
    noises = delta * noises / np.abs(noises).sum(1, keepdims=True)
    Y = (X.astype(float) @ D.T.astype(float) + noises).astype(dtype)
    codes = np.asarray(jax.jit(jax.vmap(partial(layer.iterates, params, D)))(Y), float)
    errors = np.abs(codes - X[:, None])
    bound = proof.errors[0, 1:]
    outside = errors.max(2) > bound
    if layer.activation == ur.activations.relu and proof.failed_at[0] < 0:
        outside |= (np.where(x, 0, codes) != 0).any(2)
    at = np.isfinite(bound) & (bound > 1e-3 * np.abs(x).max())
    reached = errors.max(2)[:, at] / bound[at]
    return {
        "runs": SIGNS,
        "outside": int(outside.any(1).sum()),
        "proved": bool(proof.proved[0]),
        "first": float(reached[:, 0].max()) if at.any() else 0.0,
        "largest": float(reached.max(initial=0)),
    }


def attacks(seeds):
    rows = []
    for name in ATTACKS:
        for size in SIZES:
            found = [attacked(name, size, seed) for seed in range(seeds)]
            row = {
                "attack": name,
                "size": size,
                "runs": sum(f["runs"] for f in found),
                "outside": sum(f["outside"] for f in found),
                "proved": sum(f["proved"] for f in found),
                "of": seeds,
                "first": max(f["first"] for f in found),
                "largest": max(f["largest"] for f in found),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def codes(seed=5):
    """Proofs of fresh codes, for one schedule and for thresholds of each code, in two dtypes."""
    exact, rows = gaussian(seed, M, D_ATOMS), []
    layer = ur.alista(DEPTH, support=PASSING)
    for power, dtype in itertools.product((2.0, 3.0), ("float64", "float32")):
        D = exact.astype(dtype)
        W = np.asarray(ur.theory.frobenius_weights(exact, power=power)).astype(dtype)
        for s in (12, 13):
            rng = np.random.default_rng([seed, s])
            sample, fresh = (drawn(rng, n, D_ATOMS, s).astype(dtype) for n in (SAMPLE, FRESH))
            made = time.process_time()
            params = ur.analytic.from_sample(layer, D, sample, W=W, slack=1.02, leave_out=LEAVE_OUT)
            made, proving = time.process_time() - made, time.process_time()
            common = ur.theory.certify_signals(layer, params, D, fresh)
            proving = time.process_time() - proving
            own = ur.theory.certify_signals(layer, params, D, fresh, own=True)
            Y = fresh[common.proved][:2000] @ D.T
            X = np.asarray(jax.jit(jax.vmap(partial(layer.apply, params, D)))(Y), float)
            row = {
                "power": power,
                "dtype": dtype,
                "s": s,
                "sample": SAMPLE,
                "CPU seconds of the schedule": made,
                "CPU seconds of the proofs": proving,
                "fresh": FRESH,
                "proved": int(common.proved.sum()),
                "bound": float(common.errors[common.proved, -1].max(initial=0)),
                "error": float(np.abs(X - fresh[common.proved][:2000]).max(initial=0)),
                "share": 1 - ur.theory.exceedance(1.0 - common.proved, 0.5),
                "own": int(own.proved.sum()),
                "exact": int((own.support_from >= 0).sum()),
                "own bound": float(own.errors[own.proved, -1].max(initial=0)),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


KINDS = {
    "Gaussian": lambda rng, n, s: rng.standard_normal((n, s)),
    "equal": lambda rng, n, s: rng.choice([-1.0, 1.0], (n, s)),
    "geometric": lambda rng, n, s: rng.choice([-1.0, 1.0], (n, s)) * 0.5 ** np.arange(s),
}


def worst_codes(W, D, S):
    """For every support, the code for which the product of an atom off the support is largest."""
    B, X = W.T @ D, np.zeros((len(S), D.shape[1]))
    for x, support in zip(X, S):
        A = B[np.ix_(support, support)]
        Q = B[:, support] @ np.linalg.inv(A)
        Q[support] = 0
        x[support] = np.linalg.solve(A, np.sign(Q[np.abs(Q).sum(1).argmax()]))
    return X


def all_codes(seed, depth=40):
    """Proofs for all codes on fresh supports, and runs of `alista_rt` on four kinds of codes."""
    D, rows = gaussian(seed, M, D_ATOMS), []
    layer = ur.layers.alista_rt(depth)
    for power in (2.0, 3.0):
        W = np.asarray(ur.theory.frobenius_weights(D, power=power))
        params = layer.from_weights(None, W, D)
        run = jax.jit(jax.vmap(partial(layer.iterates, params, D)))
        for s in (8, 11, 12, 13):
            rng = np.random.default_rng([seed, s])
            S = supports(rng, FRESH, D_ATOMS, s)
            proof = ur.theory.certify_supports(W, D, S)
            row = {
                "seed": seed,
                "power": power,
                "s": s,
                "supports": FRESH,
                "proved": int((proof.ratio < 1).sum()),
                "covered": int((proof.ratio <= layer.ratio).sum()),
                "largest": float(proof.ratio.max()),
                "contraction": float(proof.contraction.max()),
                "share": 1 - ur.theory.exceedance(proof.ratio, 1 - 1e-15),
            }
            for kind, make in {**KINDS, "aligned": None}.items():
                if make:
                    X = np.zeros((FRESH, D_ATOMS))
                    np.put_along_axis(X, S, make(rng, FRESH, s), 1)
                else:
                    X = worst_codes(W, D, S)
                X /= np.abs(X).max(1, keepdims=True)
                covered, wrong, worst, outside = proof.ratio <= layer.ratio, 0, 0.0, 0
                last = np.zeros(FRESH)
                for i in range(0, FRESH, 1000):
                    part = slice(i, i + 1000)
                    codes = np.asarray(run(X[part] @ D.T))
                    errors = np.abs(codes - X[part, None]).max(2)
                    false = ((codes != 0) & (X[part, None] == 0)).any((1, 2))
                    wrong += int((false & covered[part]).sum())
                    bounds = np.stack([proof.bound(k)[part] for k in range(1, depth + 1)], 1)
                    floor = 1e-13  # rounding
                    outside += int((errors > bounds + floor).any(1).sum())
                    last[part] = errors[:, -1]
                worst = float(last[covered].max())
                row[kind] = {
                    "error": worst,
                    "all": float(last.max()),
                    "wrong": wrong,
                    "outside": outside,
                }
            rows.append(row)
            print(row, flush=True)
    return rows


# name: (support, gamma, dtype)
TUBES = {
    "soft": (None, 0.9, "float64"),
    "soft, float32": (None, 1.0, "float32"),
    "passing": (PASSING, 1.0, "float64"),
    "passing, float32": (PASSING, 1.0, "float32"),
    "some pass": ((0.1, 0.3), 1.0, "float64"),
}
TUBE_SIZES, TUBE_RUNS = ((30, 60, 3), (60, 120, 8), (100, 200, 12)), 10


def tube_of(name, size, seed, depth=15):
    """Compare noisy runs on one code with the tube around the run without noise."""
    (support, gamma, dtype), (m, d, s) = TUBES[name], size
    rng = np.random.default_rng([seed, *size, list(TUBES).index(name)])
    D = gaussian(rng.integers(2**31), m, d).astype(dtype)
    W = gamma * np.asarray(ur.theory.frobenius_weights(D), float)
    W *= 1 + 0.05 * (seed % 2) * rng.uniform(-1, 1, d)
    W = (W + 0.01 * (seed % 3 == 2) * rng.standard_normal(W.shape)).astype(dtype)
    x, delta = drawn(rng, 1, d, s)[0].astype(dtype), 10.0 ** rng.uniform(-7, -1)
    falling = rng.uniform(0.4, 1.0) * rng.uniform(0.6, 0.85) ** np.arange(depth)
    theta = np.maximum(falling, delta * rng.uniform(0.3, 2))
    if seed % 4 == 3:  # thresholds per atom
        theta = theta[:, None] * rng.uniform(0.7, 1.3, d)
    layer = ur.alista(depth, support=support)
    params = layer.from_theory(W, jnp.asarray(theta.astype(dtype)))
    tube = ur.theory.certify_run(layer, params, D, x, noise=delta)
    noises = rng.standard_normal((TUBE_RUNS, m))
    for k in range(0, TUBE_RUNS, 2):  # noise on the largest weight of one atom
        i = rng.integers(d) if k % 4 else rng.choice(np.flatnonzero(x))
        w = W[:, i]
        noises[k] = np.where(np.arange(m) == np.abs(w).argmax(), rng.choice([-1, 1]), 0)
    noises *= delta / np.abs(noises).sum(1, keepdims=True)
    clean = x.astype(float) @ D.T.astype(float)
    Y = np.concatenate([clean + noises, clean[None]]).astype(dtype)
    codes = np.asarray(jax.jit(jax.vmap(partial(layer.iterates, params, D)))(Y), float)
    moved, errors = (np.linalg.norm(codes[:-1] - of, axis=2) for of in (codes[-1], x))
    outside = ((moved > tube.radius[1:]) | (errors > tube.error[1:])).any(1)
    if tube.exact:
        outside |= ((codes[:-1, -1] != 0) != (x != 0)).any(1)
    known = np.isfinite(tube.radius[1:]) & (tube.radius[1:] > 0)
    reached = moved[:, known].max(0) / tube.radius[1:][known]
    told = np.isfinite(tube.error[-1]) and tube.error[-1] < np.linalg.norm(x) / 2
    return int(outside.sum()), bool(told), bool(tube.exact), float(reached.max(initial=0))


def tubes(seeds):
    rows = []
    for name in TUBES:
        for size in TUBE_SIZES:
            outside, told, exact, reached = zip(*(tube_of(name, size, k) for k in range(seeds)))
            row = {
                "tube": name,
                "size": size,
                "runs": seeds * TUBE_RUNS,
                "outside": sum(outside),
                "told": sum(told),
                "exact": sum(exact),
                "of": seeds,
                "largest": max(reached),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def table(saved):
    """The tables of the page."""
    tables = [markdown([*map(of_supports, saved.get("supports", []))])]
    tables.append(markdown([*map(of_codes, saved.get("codes", []))]))
    attacks, tubes = (
        [(name, [row for row in saved.get(kind, []) if row[kind[:-1]] == name]) for name in names]
        for kind, names in (("attacks", ATTACKS), ("tubes", TUBES))
    )
    tables.append(markdown([of_attack(*pair) for pair in attacks if pair[1]]))
    tables.append(markdown([of_tube(*pair) for pair in tubes if pair[1]]))
    return "\n\n".join(filter(None, tables))


def of_supports(row):
    kinds = [row[kind] for kind in (*KINDS, "aligned")]
    return {
        "seed of D": row["seed"],
        "power p of W": f"{row['power']:g}",
        "nonzeros s": row["s"],
        "supports with c(S) < 1": row["proved"],
        "supports with c(S) <= .95": row["covered"],
        "largest c(S)": f"{row['largest']:.3f}",
        "largest kappa(S)": f"{row['contraction']:.3f}",
        "runs": len(kinds) * row["supports"],
        "wrong entries": sum(kind["wrong"] for kind in kinds),
        "bounds exceeded": sum(kind["outside"] for kind in kinds),
        "largest error where c(S) <= .95": f"{max(kind['error'] for kind in kinds):.1e}",
    }


def of_codes(row):
    return {
        "power p of W": f"{row['power']:g}",
        "dtype": row["dtype"],
        "nonzeros s": row["s"],
        "fresh codes with a proof for one schedule": f"{row['proved']} of {row['fresh']}",
        "lower bound on the share of codes with a proof": f"{row['share']:.4f}",
        "largest bound of the schedule": f"{row['bound']:.1e}",
        "largest error of 2,000 runs": f"{row['error']:.1e}",
        "codes with a proof for own thresholds": f"{row['own']} of {row['fresh']}",
        "codes with an exact support": row["exact"],
        "largest bound with own thresholds": f"{row['own bound']:.1e}",
        "CPU seconds of the schedule": f"{row['CPU seconds of the schedule']:.1f}",
        "CPU seconds of the proofs": f"{row['CPU seconds of the proofs']:.1f}",
    }


def of_attack(name, rows):
    total = {key: sum(row[key] for row in rows) for key in ("runs", "outside", "proved", "of")}
    return {
        "attack": name,
        "runs": total["runs"],
        "runs outside of a bound": total["outside"],
        "codes with a proof": f"{total['proved']} of {total['of']}",
        "largest error of the first step over its bound": f"{max(r['first'] for r in rows):.4f}",
        "largest error of any step over its bound": f"{max(r['largest'] for r in rows):.4f}",
    }


def of_tube(name, rows):
    total = {key: sum(r[key] for r in rows) for key in ("runs", "outside", "told", "exact", "of")}
    return {
        "tube": name,
        "runs": total["runs"],
        "runs outside of a bound": total["outside"],
        "codes with an error bound below half of their norm": f"{total['told']} of {total['of']}",
        "codes with an exact support": f"{total['exact']} of {total['of']}",
        "largest distance of any step over its bound": f"{max(r['largest'] for r in rows):.4f}",
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--only", choices=("attacks", "codes", "supports", "tubes"))
    parser.add_argument(
        "--seeds", type=int, default=10, help="dictionaries per attack; tubes have twice as many"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    saved = json.loads(PATH.read_text()) if PATH.exists() else {}
    if arguments.table:
        print(table(saved))
        return
    made = {
        "attacks": partial(attacks, arguments.seeds),
        "codes": codes,
        "supports": lambda: [row for seed in (3, 5) for row in all_codes(seed)],
        "tubes": partial(tubes, 2 * arguments.seeds),
    }
    for name, make in made.items():
        if arguments.only in (None, name):
            saved[name] = make()
            saved["environment"] = environment()
            PATH.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
