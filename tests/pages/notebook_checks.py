"""What the notebooks show is true: a reader need not see the proof of it.

    python tests/pages/notebook_checks.py NOTEBOOK FOLDER [--small]

The notebook runs, with `--small` in its reduced form: the texts of `SMALLER` take the place of
others in its cells. Then its check reads the names that the cells have defined.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

import unrolled as ur

ROUNDING = 1e-12  # of sums of a few hundred terms in float64, relative

SMALLER = {
    "00": {"steps=300": "steps=40", "K = 16": "K = 6"},
    "02": {"m, d, K = 250, 500, 16": "m, d, K = 64, 128, 8", "steps = 300": "steps = 40"},
    "04": {
        "m, d = 250, 500": "m, d = 60, 120",
        "depth=120": "depth=60",
        "lista_cp(120)": "lista_cp(60)",
        "k = 50": "k = 12",
        "(32, 64), 200": "(12, 24), 30",
        "sparsity=6": "sparsity=1",
    },
    "05": {"m, d, K = 32, 64, 20": "m, d, K = 6, 10, 12", "range(200)": "range(10)"},
    "08": {
        "SNRS = (10, 20, 30, 40, 50, 60)": "SNRS = (40,)",
        "COUNT, ZEROS = 24, 8": "COUNT, ZEROS = 3, 8",
    },
    "09": {
        "m, d, K, steps = 100, 200, 8, 500": "m, d, K, steps = 32, 64, 3, 6",
        '"SNR 40, kappa 5": (40.0, 5.0),': "",
        '"SNR 20, kappa 5": (20.0, 5.0),': "",
        '"no noise, kappa 50": (np.inf, 50.0),': "",
        "s, seeds, rounds = 2, range(3), 300": "s, seeds, rounds = 2, range(1), 6",
        "for depth in (K, 20)": "for depth in (K,)",
        '"s = 2": s, "p = 0.1": None': '"s = 2": s',
    },
    "10": {
        "[0, 0.1, 1.0], range(3)": "[0, 1.0], range(1)",
        "steps, batch = 400, 128": "steps, batch = 20, 64",
    },
    "11": {"M, DEPTH, STEPS = 64, 8, 300": "M, DEPTH, STEPS = 16, 4, 20"},
    "12": {
        "n, d, K = 10_000, 128, 12": "n, d, K = 1000, 80, 6",
        "sweeps, steps = 10, 400": "sweeps, steps = 2, 20",
        "step=12": "step=6",
    },
    "13": {
        "m, d = 250, 500": "m, d = 60, 120",
        "few, depth = 12, 30": "few, depth = 3, 15",
        "s, K, n = 50, 16, 200": "s, K, n = 12, 8, 32",
        "range(2, 26, 2)": "range(1, 7)",
        "nonzeros=20": "nonzeros=4",
        "(25, 50, 80, 100)": "(6, 12, 19, 24)",
    },
    "16": {"recording(16_000)": "recording(4_000)", "steps=400": "steps=20"},
    "17": {"steps=2_000": "steps=300"},
}


def check_00(n):
    """The loop is the network, and learning reduces its error."""
    assert n.difference < 1e-5
    nmse = {name: float(of.curve.nmse[-1]) for name, of in n.result.methods.items()}
    assert nmse["ALISTA, learned"] < nmse["ALISTA, calibrated"] < nmse["ISTA"]


def check_01(n):
    """The layer is the solver; ISTA never rises; training helps."""
    assert n.layer is ur.layers.ista(n.K)  # equal options give the same layer
    assert n.difference < 1e-6
    assert ur.metrics.kkt_violation(n.D, n.Y[0], n.result.x, n.lam) < 1e-4
    assert (jnp.diff(n.gaps["ISTA"]) <= 0).all()
    assert n.gaps["learned"][-1] < n.gaps["ISTA"][-1]


def check_02(n):
    """The certificate holds in its class, and learned weights are better outside of it."""
    assert n.schedule.holds and (n.errors <= n.schedule.error).all()
    assert not ((n.estimates != 0) & (n.codes == 0)).any()
    nmse = {name: float(of.curve.nmse[-1]) for name, of in n.result.methods.items()}
    assert nmse["ALISTA-SS, learned"] < nmse["ISTA"]


def check_03(n):
    """Every block stays below its bound; printed thresholds diverge."""
    for x, true, schedule in zip(n.codes, n.X, n.schedules):
        assert schedule.holds and n.l1(x - true) <= schedule.error[-1]
        assert not ((x != 0) & (true == 0)).any()
    for K in (20, 40, 80, 160):
        bound, right, wrong = n.second_block(K)
        assert right[-1] <= bound[-1]
    assert wrong[-1] > 1e3
    options = dict(depths=(40, 40), sparsities=(4, 1), bounds=(0.5, 1.0), Ws=n.shallow)
    _, schedules = ur.analytic.chain_schedules(n.shallow, **options)
    blocks, y = ur.analytic.dsc(n.shallow, **options), n.planted(n.shallow, 1, 100)
    run = jax.jit(jax.vmap(ur.lista_cp(40).iterates, (None, None, 0), out_axes=1))
    signals = y[0]
    for params, D, true, schedule in zip(blocks, n.shallow, y[1], schedules):
        codes = run(params, D, signals)
        assert all(n.l1(x - true) <= e for x, e in zip(codes, schedule.error[1:]))
        signals = codes[-1]


def check_04(n):
    """Both certificates of the coherence agree, and every bound holds."""
    assert n.generalized.holds and n.below <= n.above * (1 + 1e-9)
    rows = n.table.rows
    assert rows["minimax"].largest_sparsity > rows["closed form"].largest_sparsity
    assert n.wrong == 0 and (n.errors <= n.schedule.error * (1 + ROUNDING)).all()
    assert n.bound.holds and n.proved.mean() > 0.9
    assert n.after.upper < n.before.lower  # certified: the bounds do not overlap
    noisy = ur.dictionaries.gaussian(n.keys[2], 40, 80)
    rows = ur.analytic.weights_table(noisy, sparsity=1, noise=1e-3, entries=True).rows
    assert rows["least entries"].floor < rows["minimax"].floor


def check_05(n):
    """The networks are the layer; their sizes are those that are counted; training helps."""
    for form, network in n.networks.items():
        assert n.differences[form] < 1e-13 * (1 + network.offset)  # of the lifted state
        size = ur.realize.cnn_size(n.m, n.d, n.K, kernel_size=3, form=form)
        assert (network.depth, network.n_weights) == (size.depth, size.n_weights)
    assert all(error <= bound for error, bound in n.smooth.values())
    assert n.after < n.before


def check_06(n):
    """Soft attention stays below its bounds, and the border needs its zeros."""
    assert all(e <= b + 1e-14 for e, b in zip(n.errors, n.bounds))
    assert n.border > 0.1 and n.difference < 1e-14
    assert all(e <= b + 1e-13 for e, b in zip(n.stack_errors, n.stack_bounds))


def check_07(n):
    """Each counterexample is one, and each corrected statement holds."""
    assert n.first and not n.second
    plane = np.array([[1, 0, np.sqrt(0.5)], [0, 1, np.sqrt(0.5)]])
    assert not ur.theory.uniqueness([plane], [2], counts=[1]).holds  # 1 + 2 is not below 1 + 1/mu
    assert (n.lines["guard"] <= n.bounds["guard"]).all() and n.lines["no guard"][-1] > 1e3
    assert (n.ratio <= n.factors).all() and n.ratio[-1] > 1e6
    assert all(max(-low, high) <= bound for low, high, bound in n.above.values())
    assert n.above[7][0] < 0
    for errors, bounds in n.floors.values():
        assert (errors <= bounds * (1 + ROUNDING)).all() and errors[-1] > 0
    assert n.printed < 1 <= n.corrected * (1 + 1e-9)


def check_08(n):
    """Projection beats layered pursuit, and the gap of ML-ISTA falls with its step."""
    for rows in n.results.values():
        assert all(row["projection"][1] < row["layered"][1] for row in rows)
    assert n.gaps[1.0] > n.gaps[0.3] > n.gaps[0.1] > 100 * n.exact.gap


def check_09(n):
    """The three families start as one function, and theory holds where it is certified."""
    for (_, name), (_, _, watch) in n.runs.items():
        family, start = name.split(", ")
        if start == "analytic":  # the closed form
            assert np.abs(watch.series("diagonal_mean")[0] - 1).max() < 1e-5
        mismatch = watch.series("mismatch")
        assert mismatch[0].max() < 1e-5 and (family == "LISTA" or mismatch.max() == 0)
    assert all(low >= closed * (1 - 1e-5) for closed, low in n.learned_rms)  # none has less
    assert all(clean or not holds for holds, clean in n.certified)
    assert max(map(abs, n.same)) < 0.5  # dB


def check_10(n):
    """The penalty makes the first layer sparser."""
    assert n.zeros["gamma 1"][0] > n.zeros["gamma 0"][0]


def check_11(n):
    """The fast dictionary is the dense one, and a file holds all of the family."""
    matrix = ur.dictionaries.identity_hadamard(n.M)
    assert jnp.allclose(ur.dictionaries.dense(n.D), matrix, atol=1e-6)
    assert n.layer is n.heavy_ball(n.DEPTH, lam=0.05)
    assert ur.layers.FAMILIES["heavy_ball"] is n.heavy_ball
    assert n.same and n.sharp.relu_gap == 0.25 / 50


def check_12(n):
    """K-SVD descends."""
    assert n.ksvd.objective < n.ksvd.history[0].objective


def check_13(n):
    """The bound of a signal, entry by entry, and codes that are wrong."""
    a, P = n.x, np.abs(np.asarray(n.params.shared.W).T @ np.asarray(n.D))
    np.fill_diagonal(P, 0)
    E, entries = [a], np.abs(np.asarray(n.runs - n.signed[:, None]))
    for theta in np.asarray(n.params.steps.theta):
        A = P @ E[-1]
        assert (theta >= A[a == 0]).all()
        moved = np.where(a > theta + A, A, np.where(a + A <= theta, a, np.maximum(A, a)))
        E.append(np.where(a > 0, moved, 0))
    assert (entries <= np.array(E[1:]) * (1 + 1e-9) + 1e-14).all()
    assert not entries[:, :, a == 0].any()
    assert np.allclose(n.proof.errors[n.chosen], np.max(E, axis=1), rtol=1e-6, atol=1e-12)

    assert not (n.proofs.unique & n.wrong).any()
    few = np.asarray(n.X[:20])
    swapped, turned = few.copy(), few.copy()
    for x, other in zip(swapped, turned):
        on, off = np.flatnonzero(x), np.flatnonzero(x == 0)[0]
        other[on[1]] *= -1
        x[off], x[on[0]] = x[on[0]], 0
    noise = jax.random.normal(n.keys[3], (20, n.m))
    noisy = n.Y[:20] + 1e-6 * noise / jnp.linalg.norm(noise, axis=1, keepdims=True)
    for Y, X in ((n.Y[:20], swapped), (n.Y[:20], turned), (noisy, few)):
        assert not ur.theory.certify_code(n.D, Y, X, finish=None).unique.any()


def check_16(n):
    """The recording loses noise."""
    assert n.snr(n.quiet) > n.snr(n.record) + 2


def check_17(n):
    """At its own number of nonzeros, the encoder is the farthest of its decoder."""
    errors = [n.lines[name][n.k - 2] for name in ("OMP", "four steps", "encoder")]
    assert errors == sorted(errors) and n.found(n.learned.D) > 0.9


CHECKS = {name[6:]: check for name, check in globals().items() if name.startswith("check_")}


def reduced(notebook, number):
    """The notebook with the sizes of `SMALLER`, each of which it must have."""
    left = dict(SMALLER[number])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"])
            for large, small in SMALLER[number].items():
                if large in text:
                    text = text.replace(large, small)
                    left.pop(large, None)
            cell["source"] = text.splitlines(keepends=True)
    assert not left, f"notebook {number} has no {', '.join(left)}"
    return notebook


if __name__ == "__main__":
    path, folder, *rest = map(Path, sys.argv[1:])
    execute = runpy.run_path(str(Path(__file__).parents[2] / "notebooks" / "execute.py"))
    notebook, number = json.loads(path.read_text()), path.stem[:2]
    names = execute["execute"](reduced(notebook, number) if rest else notebook)
    execute["write"](notebook, folder / path.name)
    CHECKS.get(number, lambda names: None)(SimpleNamespace(**names))
