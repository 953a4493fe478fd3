"""Seconds to build and to compile CNN realizations, compared with the layer that they compute.

    python benchmarks/realize.py

The layer has a dictionary of 256 x 512 and 16 untied steps, in float32. The script takes about a
minute on two cores and writes realize.json.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
from _measure import compile_seconds, median_ms, save

import unrolled as ur

M, D_ATOMS, STEPS, KERNEL = 256, 512, 16, 3


def measure(form: str, layer, params, D, y) -> dict:
    began = time.perf_counter()
    network = ur.realize.cnn(
        layer, params, D, kernel_size=KERNEL, signal_bound=float(jnp.abs(y).max()), form=form
    )
    jax.block_until_ready(network.layers)
    built = time.perf_counter() - began
    run, plain = jax.jit(network.run), jax.jit(layer.apply)
    difference = (
        jnp.abs(run(network.layers, y) - plain(params, D, y)).max()
        / jnp.abs(plain(params, D, y)).max()
    )
    times = median_ms(
        {
            "network": lambda: jax.block_until_ready(run(network.layers, y)),
            "layer": lambda: jax.block_until_ready(plain(params, D, y)),
        },
        rounds=3,
        calls=5,
    )
    return {
        "layers": network.depth,
        "weights": network.n_weights,
        "build, s": built,
        "compile, s": compile_seconds(network.run, network.layers, y),
        "one signal, ms": times["network"],
        "the layer itself, ms": times["layer"],
        "largest difference over the largest entry": float(difference),
    }


if __name__ == "__main__":
    D = ur.dictionaries.gaussian(jax.random.key(0), M, D_ATOMS)
    layer = ur.lista_cp(STEPS)
    params = ur.analytic.lista_cp(D, depth=STEPS, sparsity=2, bound=1.0, tied=False)
    y = ur.problems.synthesize(D, ur.problems.bounded(jax.random.key(1), (1, D_ATOMS), 2))[0]
    forms = ("literal", "positive", "compact")
    save(
        Path(__file__).with_suffix(".json"),
        {form: measure(form, layer, params, D, y) for form in forms},
    )
