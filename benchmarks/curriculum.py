"""Stage-wise and end-to-end training in equally many steps, and HyperLISTA without training.

    python benchmarks/curriculum.py [--steps-per-stage 50] [--output benchmarks/curriculum.json]

The problem is the standard benchmark: 250 x 500, K = 16, no noise. The score is the NMSE in dB
after 16 steps on 1,000 test signals, by both definitions.
"""

import argparse
import time
from pathlib import Path

import jax
import optax
from _measure import save

import unrolled as ur

K = 16
D, SAMPLE = ur.problems.standard_benchmark(jax.random.key(0))


def signals(seed: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """A batch (Y, X) of the benchmark."""
    return ur.problems.sampler(D, batch)(jax.random.key(seed))


def judge(layer: ur.layers.Layer, params, seconds: float) -> dict[str, float]:
    """The test errors of params, and the seconds of the search for the params."""
    Y, X = signals(99, 1000)
    codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y)
    found = {
        "ratio of sums": ur.metrics.nmse(codes, X),
        "mean of dB": ur.metrics.mean_nmse(codes, X),
    }
    numbers = {name: round(float(value), 2) for name, value in found.items()}
    return numbers | {"seconds": round(seconds, 1)}


def timed(layer: ur.layers.Layer, make) -> dict[str, float]:
    """`judge` of the params that `make()` returns."""
    began = time.perf_counter()
    params = jax.block_until_ready(make())
    return judge(layer, params, time.perf_counter() - began)


def trainings(layer: ur.layers.Layer, params, steps_per_stage: int) -> dict[str, dict]:
    """Train from calibrated params in 3 K stages, and end to end for equally many steps."""
    Y, X = signals(77, 512)
    start = ur.analytic.calibrate(layer, params, D, Y, X)
    steps = 3 * K * steps_per_stage
    options = dict(key=1, validation=signals(78, 512), evaluate_every=steps_per_stage)
    log_nmse, adam = ur.training.log_nmse, optax.adam

    def end_to_end(rate):
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam(rate))
        return ur.fit(
            layer, start, D, SAMPLE, optimizer=optimizer, steps=steps, loss=log_nmse, **options
        ).best

    def staged(decay):
        how = dict(steps_per_stage=steps_per_stage, decay=decay)
        return ur.training.curriculum(layer, start, D, SAMPLE, **how, **options).best

    cosine = optax.cosine_decay_schedule(2e-3, steps)
    return {
        "calibrated": judge(layer, start, 0.0),
        "end to end, Adam 1e-3": timed(layer, lambda: end_to_end(1e-3)),
        "end to end, cosine from 2e-3": timed(layer, lambda: end_to_end(cosine)),
        "curriculum": timed(layer, lambda: staged(1.0)),
        "curriculum, decay 0.3": timed(layer, lambda: staged(0.3)),
    }


def searched() -> dict[str, dict]:
    """HyperLISTA with its initial numbers, and after a search over its three numbers."""
    layer, params, (Y, X) = ur.layers.hyperlista(K), ur.analytic.hyperlista(D), signals(50, 2048)
    grid = dict(
        threshold=[0.03, 0.035, 0.04],
        momentum=[0.0125, 0.015, 0.0175, 0.02],
        selection=[10.0, 11.0, 12.0, 13.0],
    )
    began = time.perf_counter()
    found = ur.training.search(layer, params, D, Y, X, chunk=1, **grid)
    seconds = time.perf_counter() - began
    return {
        "as given": judge(layer, params, 0.0),
        "searched": judge(layer, found.params, seconds) | found.values,
    }


def main() -> None:
    """Run all measurements and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps-per-stage", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()

    cpss, lista = ur.layers.lista_cpss(K, tied=False), ur.layers.lista(K, tied=False)
    start = cpss.init(None, D)
    W = ur.analytic.frobenius_weights(D)
    start = start._replace(steps=start.steps._replace(W=jax.numpy.repeat(W[None], K, 0)))
    results = {
        "HyperLISTA": searched(),
        "LISTA-CPSS": trainings(cpss, start, options.steps_per_stage),
        "LISTA": trainings(lista, lista.init(None, D), options.steps_per_stage),
    }
    save(options.output, results)


if __name__ == "__main__":
    main()
