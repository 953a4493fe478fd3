"""The speed of the layers, compared with their matrix products, numpy and PyTorch.

    python benchmarks/layers.py [--output benchmarks/layers.json]

The script also measures how compile time grows with depth, and the overhead of `fit`. Contestants
take turns within one run in float32, and times are medians. PyTorch takes part if it is installed.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import compile_seconds, median_ms, save

import unrolled as ur

M, D_ATOMS, K = 250, 500, 16


def setting(batch: int):
    """D (250 x 500), params of an untied LISTA-CP of 16 steps, and a batch of signals and codes."""
    D = ur.dictionaries.gaussian(jax.random.key(0), M, D_ATOMS)
    Y, X = ur.problems.sampler(D, batch)(jax.random.key(1))
    params = ur.layers.lista_cp(K, tied=False).init(None, D)
    return D, params, Y, X


def products_alone(params, D, Y):
    """The matrix products of the 16 steps alone, in the layout of the layer: x <- (D x) W_k."""

    def one(y):
        x = jnp.zeros(D_ATOMS, y.dtype) + y[0]
        return jax.lax.scan(lambda x, W: ((D @ x) @ W, None), x, params.steps.W)[0]

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(Y)


def forward(batch: int) -> dict:
    """Milliseconds for a batch by the layer, by its matrix products, by numpy and by PyTorch.

    The layer runs in chunks of 1,000 signals, which stay in the cache.
    """
    D, params, Y, _ = setting(batch)
    apply = ur.layers.lista_cp(K, tied=False).apply
    layer = jax.jit(
        lambda params, D, Y: jax.lax.map(lambda y: apply(params, D, y), Y, batch_size=1000)
    )
    products = jax.jit(products_alone)
    functions = {
        "unrolled": lambda: layer(params, D, Y).block_until_ready(),
        "its products alone": lambda: products(params, D, Y).block_until_ready(),
        "numpy": numpy_forward(D, params, Y),
        **torch_forward(D, params, Y),
    }
    times = median_ms(functions, rounds=5, calls=3 if batch > 2000 else 10)
    return times | {"ratio to its products": times["unrolled"] / times["its products alone"]}


def single() -> dict:
    """Milliseconds for one signal by unstacked steps, stacked steps, numpy and PyTorch."""
    D, params, Y, _ = setting(1)
    layer = ur.layers.lista_cp(K, tied=False)
    loop, scan = ur.layers.unstack(params), params
    apply = jax.jit(layer.apply)
    functions = {
        "unrolled, unstacked": lambda: apply(loop, D, Y[0]).block_until_ready(),
        "unrolled, stacked": lambda: apply(scan, D, Y[0]).block_until_ready(),
        "numpy": numpy_forward(D, params, Y),
        **torch_forward(D, params, Y),
    }
    times = median_ms(functions, rounds=5, calls=100)
    if "torch eager" in times:
        times["torch eager / unrolled, unstacked"] = (
            times["torch eager"] / times["unrolled, unstacked"]
        )
    return times


def numpy_forward(D, params, Y):
    """The same network in numpy."""
    D, Y, W, theta = (np.asarray(a) for a in (D, Y, params.steps.W, params.steps.theta))

    def run():
        X = np.zeros((len(Y), D.shape[1]), Y.dtype)
        for k in range(K):
            U = X + (Y - X @ D.T) @ W[k]
            X = U - np.clip(U, -theta[k], theta[k])
        return X

    return run


def torch_forward(D, params, Y) -> dict:
    """The same network in PyTorch, eager; an empty dict if PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    D, Y, W, theta = (
        torch.from_numpy(np.array(a)) for a in (D, Y, params.steps.W, params.steps.theta)
    )
    theta = theta.tolist()

    @torch.no_grad()
    def run():
        X = torch.zeros(len(Y), D.shape[1])
        for k in range(K):
            X = torch.nn.functional.softshrink(X + (Y - X @ D.T) @ W[k], theta[k])
        return X

    return {"torch eager": run}


def compile_times() -> dict:
    """Median seconds of three compilations of forward pass and gradient, at three depths."""
    D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
    y = D[:, 0]
    found = {}
    for depth in (16, 64, 256):
        layer = ur.layers.lista_cp(depth, tied=False)
        params = layer.init(None, D)
        grad = jax.grad(lambda p, D, y, layer=layer: jnp.sum(layer.apply(p, D, y) ** 2))
        seconds = [
            (compile_seconds(layer.apply, params, D, y), compile_seconds(grad, params, D, y))
            for _ in range(3)
        ]
        forward, gradient = np.median(seconds, axis=0)
        found[f"K = {depth}"] = {"forward": float(forward), "gradient": float(gradient)}
    for kind in ("forward", "gradient"):
        found[f"{kind}, K = 256 over K = 16"] = found["K = 256"][kind] / found["K = 16"][kind]
    return found


def fit_overhead() -> dict:
    """Milliseconds per step of `fit`, and of a bare loop over an equal compiled step."""
    D, params, _, _ = setting(64)
    sample, layer = ur.problems.sampler(D, 64), ur.layers.lista_cp(K, tied=False)
    optimizer, key = optax.adam(1e-4), jax.random.key(2)

    def loss(params, k):
        Y, X = sample(jax.random.fold_in(key, k))
        codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
        return jnp.mean(jnp.sum((codes - X) ** 2, -1)) / 2

    @jax.jit
    def bare(params, state, k):
        value, gradients = jax.value_and_grad(loss)(params, k)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    def run_bare(steps):
        p, state = params, optimizer.init(params)
        for k in range(steps):
            p, state, value = bare(p, state, k)
        value.block_until_ready()

    def run_fit(steps):
        ur.fit(
            layer,
            params,
            D,
            sample,
            optimizer=optimizer,
            steps=steps,
            key=key,
            evaluate_every=100,
            progress=False,
        )

    run_bare(1)
    per_step = {}
    for name, run in (("bare loop", run_bare), ("fit", run_fit)):
        differences = []
        for _ in range(3):  # a long run minus a short one: compilation and set-up cancel
            began = time.perf_counter()
            run(100)
            middle = time.perf_counter()
            run(400)
            differences.append((time.perf_counter() - middle) - (middle - began))
        per_step[name] = 1e3 * float(np.median(differences)) / 300
    return per_step | {"share of fit in the compiled step": per_step["bare loop"] / per_step["fit"]}


def support_threshold() -> dict:
    """Microseconds per signal for the exact 60th largest of 500 magnitudes, with 1,000 signals."""
    X = jnp.abs(jax.random.normal(jax.random.key(0), (1000, 500)))
    search = jax.jit(jax.vmap(lambda x: ur.activations.kth_largest(x, 60)))
    sort = jax.jit(jax.vmap(lambda x: jax.lax.top_k(x, 60)[0][-1]))
    if not bool((search(X) == sort(X)).all()):
        raise SystemExit("the two thresholds differ")
    times = median_ms(
        {
            "bit search": lambda: search(X).block_until_ready(),
            "lax.top_k": lambda: sort(X).block_until_ready(),
        },
        rounds=3,
        calls=7,
    )
    return times | {"lax.top_k / bit search": times["lax.top_k"] / times["bit search"]}


def main() -> None:
    """Run all measurements and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    results = {
        "forward, 1 signal, ms": single(),
        "forward, 1000 signals, ms": forward(1000),
        "forward, 10000 signals, ms": forward(10_000),
        "compile seconds": compile_times(),
        "training step, batch 64, ms": fit_overhead(),
        "support threshold, us per signal": support_threshold(),
    }
    save(arguments.output, results)


if __name__ == "__main__":
    main()
