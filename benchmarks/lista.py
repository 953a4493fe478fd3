"""The LISTA benchmark: every learned family, without noise, with noise, and ill-conditioned.

    python benchmarks/lista.py [--settings noiseless,...] [--families ALISTA-SS,...] [--seeds 3]
        [--steps 400] [--output FILE]

m = 250, n = 500, K = 16, Bernoulli(0.1)-Gaussian codes, float32. The dictionary is
`RandomState(0).normal` with normalised columns, as in NA-ALISTA; a condition number is set as in
LISTA-CPSS. A seed draws the codes, the noise and the training batches. Penalties, grids, ridges and
calibration use 256 signals, training draws its own, the best params are chosen on 512 more, and the
1,000 test signals serve the table alone. "public" is the dictionary and the test set of the ALISTA
repository, found through UNROLLED_DATA. A run merges its results into the file, family by family.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.io
from _measure import environment

import unrolled as ur
from unrolled import analytic, layers, metrics, training
from unrolled.layers import Fixed, Unrolled

M, N, K, PROBABILITY = 250, 500, 16, 0.1
SUPPORT = (0.012, 0.13)
# name: (SNR in dB, condition number, or None for the Gaussian dictionary as drawn)
SETTINGS = {
    "noiseless": (math.inf, None),
    "SNR 40": (40.0, None),
    "SNR 30": (30.0, None),
    "SNR 20": (20.0, None),
    "condition 5": (math.inf, 5.0),
    "condition 30": (math.inf, 30.0),
    "condition 50": (math.inf, 50.0),
    "public": (math.inf, None),
}


class Problem(NamedTuple):
    """One setting and one seed."""

    D: jax.Array
    W: jax.Array  # analytic weights
    snr: float
    key: jax.Array
    chosen_on: tuple  # (Y, X)
    validation: tuple
    test: tuple

    def sample(self, batch: int = 64) -> Callable:
        return ur.problems.sampler(self.D, batch, probability=PROBABILITY, snr=self.snr)

    @property
    def noise_variance(self) -> float:
        """The variance of the noise in an entry of y: std(y)^2 10^(-SNR / 10)."""
        return float(jnp.var(self.chosen_on[0])) * 10 ** (-self.snr / 10)


def dictionary(kappa: float | None) -> jax.Array:
    """The dictionary of RandomState(0), with unit columns.

    With `kappa`, its singular values are a geometric sequence of that ratio before the columns are
    normalised.
    """
    D = np.random.RandomState(0).normal(size=(M, N)) / math.sqrt(M)
    if kappa is not None:
        U, _, V = np.linalg.svd(D, full_matrices=False)
        D = U * np.logspace(0, -math.log10(kappa), M) @ V
    return jnp.asarray(D / np.linalg.norm(D, axis=0), jnp.float32)


def public() -> tuple[jax.Array, jax.Array]:
    """D and the test codes (1000, d) of VITA-Group/ALISTA."""
    folder = ur.datasets.locate("lista_benchmark")
    D = scipy.io.loadmat(folder / "D.mat")["D"]
    return jnp.asarray(D, jnp.float32), jnp.asarray(
        np.load(folder / "xtest_n500_p10.npy").T, jnp.float32
    )


def problem(setting: str, seed: int) -> Problem:
    """The dictionary, and the three samples of a seed."""
    (snr, kappa), keys = SETTINGS[setting], jax.random.split(jax.random.key(seed), 4)
    D, codes = public() if setting == "public" else (dictionary(kappa), None)
    sets = (
        jax.jit(ur.problems.sampler(D, n, probability=PROBABILITY, snr=snr))(k)
        for n, k in zip((256, 512, 1000), keys)
    )
    found = Problem(D, analytic.frobenius_weights(D), snr, keys[3], *sets)
    if codes is not None:
        found = found._replace(test=(ur.problems.synthesize(D, codes), codes))
    return found if (snr, kappa) == (math.inf, None) else found._replace(W=weights(found))


def weights(problem: Problem) -> jax.Array:
    """The closed-form weights, with the ridge that gives a calibrated ALISTA the least error."""
    D, (Y, X) = problem.D, (part[:64] for part in problem.chosen_on)

    def error(W):
        layer = layers.alista(K, support=SUPPORT)
        start = layer.from_theory(W, jnp.full(K, 0.1, D.dtype))
        return _nmse(layer, analytic.calibrate(layer, start, D, Y, X), D, Y, X)

    ridges = (0.0, 0.003, 0.01, 0.03, 0.1)
    candidates = [analytic.frobenius_weights(D, ridge * N / M) for ridge in ridges]
    return min(candidates, key=error)


class Family(NamedTuple):
    """How a family is trained: its layer, its start, and the rate of Adam (0: no training)."""

    layer: Callable  # (problem) -> Layer
    start: Callable  # (problem, layer) -> params
    rate: float
    calibrated: bool = True
    steps: int = 0  # of training; 0 takes the number of the command line
    steps_per_stage: int = 0  # of a curriculum; 0 trains end to end


def _from_init(problem, layer):
    return layer.init(problem.key, problem.D)


def _with_weights(problem, layer):
    """The analytic weights: with gamma = 1, or scaled where steps without one would expand."""
    if layer.from_theory is not None:
        return layer.from_theory(problem.W, jnp.full(K, 0.1, problem.D.dtype))
    params, W = layer.init(problem.key, problem.D), _scaled(problem)
    return params._replace(steps=params.steps._replace(W=layers.repeat(W, K)))


def _scaled(problem) -> jax.Array:
    return problem.W * layers.stable_step(problem.W, problem.D)


def _coupled(problem, layer):
    """The matrices of LISTA-CP in a family without its coupling: B = W, S = I - W'D, M = 0."""
    params, W = layer.init(problem.key, problem.D), _scaled(problem)
    S = jnp.eye(N) - W.T @ problem.D
    matrices = {"B": W, "S": S, "M": jnp.zeros_like(S)}
    repeated = {
        name: jnp.broadcast_to(A, (K, *A.shape))
        for name, A in matrices.items()
        if hasattr(params.steps, name)
    }
    return params._replace(steps=params.steps._replace(**repeated))


def _whitened(problem, layer):
    """Ada-LISTA with the steps of ALISTA: P = Q'Q = (D D')^-1.

    Up to scale, the rows of D^+ are the analytic weights.
    """
    params, D = layer.init(problem.key, problem.D), np.asarray(problem.D, float)
    values, vectors = np.linalg.eigh(D @ D.T)
    P, Q = (jnp.asarray(vectors * values**power @ vectors.T, jnp.float32) for power in (-1.0, -0.5))
    return Unrolled(layers.SignalMatrices(P, Q), params.steps._replace(gamma=jnp.full(K, N / M)))


def _with_recurrent_weights(problem, layer):
    """NA-ALISTA with the analytic weights of the problem."""
    params = layer.init(problem.key, problem.D)
    return params._replace(shared=params.shared._replace(analytic=Fixed(problem.W)))


def _best_of(options: tuple, make: Callable, start: Callable) -> Callable:
    """The layer `make(option)` whose start has the least error after K steps."""

    def choose(problem):
        D, (Y, X) = problem.D, problem.chosen_on
        return min(
            map(make, options), key=lambda layer: _nmse(layer, start(problem, layer), D, Y, X)
        )

    return choose


def _penalised(make: Callable) -> Callable:
    return _best_of((0.02, 0.05, 0.1, 0.2, 0.3, 0.4), make, _from_init)


def _grid(problem, layer):
    """The three numbers of HyperLISTA, by a grid search on the 512 validation signals.

    Nothing is trained, so these are free; fewer signals would mislead.
    """
    Y, X = problem.validation
    values = dict(
        threshold=np.linspace(0.02, 0.06, 9),
        momentum=np.linspace(0.01, 0.03, 5),
        selection=np.linspace(6.0, 18.0, 7),
    )
    return training.search(
        layer, layer.init(problem.key, problem.D), problem.D, Y, X, **values
    ).params


def _fixed(layer) -> Callable:
    return lambda problem: layer


def _tista(problem):
    return layers.tista(K, probability=PROBABILITY, noise=problem.noise_variance)


def _na_alista(problem):
    """With noise, NA-ALISTA has the published support shares, which grow more slowly."""
    return layers.na_alista(K, support=SUPPORT if math.isinf(problem.snr) else (0.0075, 0.12))


def _liht(sparsity: int):
    return layers.liht(K, sparsity=sparsity)


FAMILIES = {
    "ISTA": Family(_penalised(lambda lam: layers.ista(K, lam=lam)), _from_init, 0.0, False),
    "FISTA": Family(_penalised(lambda lam: layers.fista(K, lam=lam)), _from_init, 0.0, False),
    "step-LISTA": Family(
        _penalised(lambda lam: layers.step_lista(K, lam=lam)), _from_init, 5e-3, False
    ),
    "LISTA": Family(_fixed(layers.lista(K, tied=False)), _coupled, 3e-4),
    "LISTA-SS": Family(_fixed(layers.lista_ss(K, tied=False, support=SUPPORT)), _coupled, 3e-5),
    "LISTA-CP": Family(_fixed(layers.lista_cp(K, tied=False)), _with_weights, 5e-4),
    "LISTA-CPSS": Family(
        _fixed(layers.lista_cpss(K, tied=False, support=SUPPORT)), _with_weights, 5e-4
    ),
    "TiLISTA": Family(_fixed(layers.tilista(K, support=SUPPORT)), _with_weights, 5e-4),
    "ALISTA": Family(_fixed(layers.alista(K)), _with_weights, 5e-3),
    "ALISTA-SS": Family(_fixed(layers.alista(K, support=SUPPORT)), _with_weights, 2e-3),
    "ALISTA-SS longer": Family(
        _fixed(layers.alista(K, support=SUPPORT)), _with_weights, 2e-3, steps=3000
    ),
    "GLISTA": Family(_fixed(layers.glista(K, support=SUPPORT)), _with_weights, 5e-4),
    "LFISTA": Family(_fixed(layers.lfista(K)), _coupled, 1e-4),
    "LAMP": Family(_fixed(layers.lamp(K)), _from_init, 1e-4, False),
    "LAMP-BG": Family(_fixed(layers.lamp_bg(K, probability=PROBABILITY)), _from_init, 1e-4, False),
    "TISTA": Family(_tista, _from_init, 1e-2, False),
    "LIHT": Family(_best_of((40, 50, 60, 70, 80), _liht, _coupled), _coupled, 3e-5, False),
    "Ada-LISTA": Family(_fixed(layers.ada_lista(K)), _whitened, 1e-3),
    "NA-ALISTA": Family(_na_alista, _with_recurrent_weights, 5e-3, False, steps=1000),
    "LISTA-CPSS by stages": Family(
        _fixed(layers.lista_cpss(K, tied=False, support=SUPPORT)),
        _with_weights,
        1e-3,
        steps_per_stage=50,
    ),
    "HyperLISTA": Family(_fixed(layers.hyperlista(K)), _grid, 0.0, False),
}


def loss(codes, X, D, Y):
    """The error of the last step, and with a tenth of the weight that of all steps."""
    return 0.9 * training.log_nmse(codes, X, D, Y) + 0.1 * training.deep(training.log_nmse)(
        codes, X, D, Y
    )


def run(family: Family, problem: Problem, steps: int) -> dict:
    """Start, calibrate, train and test one family; seconds include compilation."""
    D, (Y, X) = problem.D, problem.chosen_on
    began = time.perf_counter()
    layer = family.layer(problem)
    params = family.start(problem, layer)
    if family.calibrated:
        params = analytic.calibrate(layer, params, D, Y, X)
    untrained = jax.block_until_ready(params)
    started = time.perf_counter() - began
    if family.steps_per_stage:
        params = train_in_stages(layer, params, problem, family)
    elif steps := training_steps(family, steps):
        params = train(layer, params, problem, family.rate, steps)
    seconds = time.perf_counter() - began
    codes = jax.jit(jax.vmap(layer.iterates, (None, None, 0), out_axes=1))(
        params, D, problem.test[0]
    )
    X = problem.test[1]
    return {
        "untrained": _nmse(layer, untrained, D, *problem.test),
        "nmse": float(metrics.nmse(codes[-1], X)),
        "mean_nmse": float(metrics.mean_nmse(codes[-1], X)),
        "failure_rate": float(metrics.failure_rate(codes[-1], X)),
        "per_step": [round(float(metrics.nmse(x, X)), 2) for x in codes],
        "seconds_to_start": round(started, 1),
        "seconds": round(seconds, 1),
    }


def training_steps(family: Family, steps: int) -> int:
    """The training steps of a family; a curriculum has three stages per step of the network."""
    return 3 * K * family.steps_per_stage or family.steps or (steps if family.rate else 0)


def train(layer, params, problem: Problem, rate: float, steps: int):
    """Train end to end, with a tuple of steps, which trains faster than stacked ones."""
    schedule = optax.cosine_decay_schedule(rate, steps)
    return ur.fit(
        layer,
        layers.unstack(params),
        problem.D,
        problem.sample(),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        steps=steps,
        key=problem.key,
        loss=loss,
        validation=problem.validation,
        evaluate_every=max(1, min(50, steps)),
        progress=False,
    ).best


def train_in_stages(layer, params, problem: Problem, family: Family):
    """Train step after step, by the curriculum of the library."""
    return training.curriculum(
        layer,
        layers.unstack(params),
        problem.D,
        problem.sample(),
        key=problem.key,
        rate=family.rate,
        steps_per_stage=family.steps_per_stage,
        loss=training.log_nmse,
        validation=problem.validation,
        progress=False,
    ).best


def _nmse(layer, params, D, Y, X) -> float:
    return float(metrics.nmse(jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y), X))


def medians(runs: list[dict]) -> dict:
    """The median over the seeds, number by number."""
    return {
        name: np.median([run[name] for run in runs], axis=0).round(3).tolist()
        for name in runs[0]
        if name != "seed"
    }


def main() -> None:
    """Run the chosen settings and families, and merge the results into the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    without_data = [name for name in SETTINGS if name != "public" or "UNROLLED_DATA" in os.environ]
    parser.add_argument("--settings", default=",".join(without_data))
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results["environment"] = environment()
    for setting in arguments.settings.split(","):
        problems = [problem(setting, seed) for seed in range(arguments.seeds)]
        for name in arguments.families.split(","):
            runs = [run(FAMILIES[name], p, arguments.steps) for p in problems]
            found = {
                "steps": training_steps(FAMILIES[name], arguments.steps),
                "median": medians(runs),
                "runs": runs,
            }
            results.setdefault(setting, {})[name] = found
            m = found["median"]
            print(
                f"{setting:13} {name:11} {m['nmse']:7.1f} dB, mean {m['mean_nmse']:7.1f}, "
                f"fails {m['failure_rate']:.1%}, untrained {m['untrained']:.1f}, "
                f"{m['seconds']:.0f} s",
                flush=True,
            )
            arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
