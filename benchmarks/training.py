"""The speed of a training step of LISTA-CP (forward, backward, Adam), compared with PyTorch.

    python benchmarks/training.py [--output benchmarks/training.json]

The layer has a dictionary of 250 x 500 and 16 untied steps, with and without support selection. The
loss is the squared error of the last code. All arrays are float32, and all contestants have the
same batch. Contestants take turns within one run, and times are medians. PyTorch runs eager and
compiled, with its fused Adam; `torch.compile` needs a C++ compiler.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import median_ms, save

import unrolled as ur

M, N, K = 250, 500, 16
SUPPORT = (0.012, 0.13)


def ours(params, D, Y, X, support):
    """One step of Adam; stacked steps run as a scan, and a tuple of steps as a Python loop."""
    layer = ur.layers.lista_cp(K, tied=False, support=support)
    optimizer = optax.adam(1e-4)

    def loss(params, D, Y, X):
        codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
        return jnp.mean(jnp.sum((codes - X) ** 2, -1)) / 2

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, D, Y, X):
        value, gradients = jax.value_and_grad(loss)(params, D, Y, X)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    at = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

    def run():
        *at[:], value = step(*at, D, Y, X)
        value.block_until_ready()

    return run


def products(params, D, Y):
    """The 5 K matrix products of a training step, by XLA: 2 K forward and 3 K backward."""

    @partial(jax.jit, donate_argnums=0, keep_unused=True)
    def chain(gradients, steps, D, Y):
        r = Y
        for p in steps:
            x = r @ p.W
            r = x @ D.T
        for p in reversed(steps):
            gradients = (*gradients[1:], Y.T @ x)
            x = (x @ p.W.T) @ D
        return gradients, x

    D = D / 10  # so that the chain stays finite
    at = [tuple(jnp.zeros_like(p.W) for p in params.steps)]

    def run():
        at[0], x = chain(at[0], params.steps, D, Y)
        x.block_until_ready()

    return run


def torch_steps(params, D, Y, X, support) -> dict:
    """The same step in PyTorch; an empty dict if PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    D, Y, X = (torch.from_numpy(np.array(a)) for a in (D, Y, X))
    rate, largest = support or (0, 0)
    counts = [round(min((k + 1) * rate, largest) * N) for k in range(K)]

    def make(compiled: bool):
        W = [torch.nn.Parameter(torch.from_numpy(np.array(w))) for w in params.steps.W]
        theta = [torch.nn.Parameter(torch.tensor(float(t))) for t in params.steps.theta]
        optimizer = torch.optim.Adam([*W, *theta], lr=1e-4, fused=True)

        def shrink(v, t, count):
            shrunk = torch.sign(v) * torch.relu(v.abs() - t)
            if count == 0:
                return shrunk
            magnitude = v.detach().abs()
            border = magnitude.kthvalue(N - count, dim=1, keepdim=True).values
            return torch.where((magnitude > border) & (magnitude > t), v, shrunk)

        def loss():
            x = torch.zeros(len(Y), N)
            for k in range(K):
                x = shrink(x + (Y - x @ D.T) @ W[k], theta[k], counts[k])
            return ((x - X) ** 2).sum(1).mean() / 2

        objective = torch.compile(loss) if compiled else loss

        def run():
            optimizer.zero_grad(set_to_none=True)
            objective().backward()
            optimizer.step()

        return run

    return {"torch eager": make(False), "torch compiled": make(True)}


def training_step(batch: int, support) -> dict:
    """Milliseconds per training step of each contestant."""
    D = ur.dictionaries.gaussian(jax.random.key(0), M, N)
    Y, X = ur.problems.sampler(D, batch)(jax.random.key(1))
    params = ur.layers.lista_cp(K, tied=False).init(None, D)
    functions = {
        "unrolled, a tuple of steps": ours(ur.layers.unstack(params), D, Y, X, support),
        "unrolled, stacked steps": ours(params, D, Y, X, support),
        "its matrix products alone": products(ur.layers.unstack(params), D, Y),
        **torch_steps(params, D, Y, X, support),
    }
    times = median_ms(functions, rounds=5, calls=20 if batch < 500 else 5)
    ours_ms = times["unrolled, a tuple of steps"]
    ratios = {
        "unrolled, a tuple of steps / its products": ours_ms / times["its matrix products alone"]
    }
    if "torch compiled" in times:
        best = min(times["torch compiled"], times["torch eager"])
        ratios["best torch / unrolled, a tuple of steps"] = best / ours_ms
    return times | ratios


def main() -> None:
    """Run all measurements and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    results = {
        f"batch {batch}, {'support selection' if support else 'plain'}, ms": training_step(
            batch, support
        )
        for batch in (64, 1000)
        for support in (None, SUPPORT)
    }
    save(arguments.output, results)


if __name__ == "__main__":
    main()
