"""Compare Hybrid ISTA and an equilibrium layer with `alista_at` at an equal number of products.

    python benchmarks/beyond.py [CELL ...]

Both methods use the step of `alista_at` and start from its calibrated params. One loop trains both
methods and the plain step: 1,000 steps of Adam on the logarithm of the NMSE, with 64 signals per
step. The loop keeps the params with the least error on 2,048 other signals. Each method has 32
products with a matrix.

hybrid       Hybrid ISTA of Zheng, Dai, Li, Zou, Xiong (2022). Each of 8 steps computes u = v + N(v)
             between two steps of ISTA, and a learned convex combination of their codes. N has one
             hidden layer of 16 units for each entry. Before training, the hybrid is `alista_at`.
equilibrium  The layer has one gamma and one theta for all steps. It is trained with 16 steps, and
             evaluated after 16 steps and at the fixed point (200 steps).
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lista import CELLS, dictionary, sampler

import unrolled as ur

CHOSEN_FROM, UNITS, STEPS, RATE, DEPTH = ("noiseless", "SNR 20"), 16, 1000, 2e-3, 16


def ista(x, gamma, theta, share, D, W, y):
    """A step of ALISTA-AT."""
    g = (y - D @ x) @ W
    return ur.activations.select_support(x + gamma * g, theta * jnp.mean(jnp.abs(g)), share)


def plain(p, shares, D, W, y):
    x = jnp.zeros(D.shape[1])
    return jax.lax.scan(lambda x, s: (ista(x, *s, D, W, y), None), x, (*p, shares))[0]


def hybrid(p, shares, D, W, y):
    (gamma, theta), net = p

    def step(x, s):
        gamma, theta, share, (a, b, c, alpha) = s
        v = ista(x, gamma[0], theta[0], share[0], D, W, y)
        size = jnp.sqrt(jnp.mean(v**2)) + 1e-12
        u = v + size * (jax.nn.gelu(v[:, None] / size * a + b) - jax.nn.gelu(b)) @ c
        w = ista(u, gamma[1], theta[1], share[1], D, W, y)
        return (1 - alpha) * w + alpha * v, None

    halves = (part.reshape(-1, 2) for part in (gamma, theta, shares))
    return jax.lax.scan(step, jnp.zeros(D.shape[1]), (*halves, net))[0]


def equilibrium(p, shares, D, W, y):
    x = jnp.zeros(D.shape[1])
    return jax.lax.scan(lambda x, share: (ista(x, *p, share, D, W, y), None), x, shares)[0]


def trained(code, p, shares, D, W, sample, validation):
    """The least validation NMSE in dB; for the equilibrium layer also the NMSE after 200 steps."""

    def ratio(p, Y, X, shares=shares):
        codes = jax.vmap(code, (None, None, None, None, 0))(p, shares, D, W, Y)
        return jnp.sum((codes - X) ** 2) / jnp.sum(X**2)

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    )

    @jax.jit
    def turn(p, state, key):
        def step(carry, key):
            p, state = carry
            gradient = jax.grad(lambda p: jnp.log(ratio(p, *sample(key))))(p)
            updates, state = optimizer.update(gradient, state, p)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (p, state), jax.random.split(key, STEPS // 20))[0]

    judge = jax.jit(ratio)
    best, state = (float(judge(p, *validation)), p), optimizer.init(p)
    for key in jax.random.split(jax.random.key(1), 20):
        p, state = turn(p, state, key)
        best = min(best, (float(judge(p, *validation)), p), key=lambda pair: pair[0])
    if code is equilibrium:  # also the fixed point
        longer = jnp.concatenate([shares, jnp.full(200 - DEPTH, shares[-1])])
        return 10 * np.log10(best[0]), 10 * np.log10(float(judge(best[1], *validation, longer)))
    return (10 * np.log10(best[0]),)


def main() -> None:
    for name in sys.argv[1:] or CHOSEN_FROM:
        cell = CELLS[name]
        D = jnp.asarray(dictionary(cell, 0), jnp.float32)
        validation = sampler(cell, D, 2048)(jax.random.key(2))
        start = ur.training.prepare("alista_at", D, *validation, depth=DEPTH, key=0)
        W, own = start.params.shared.W, start.params.steps
        shares = jnp.asarray(start.layer.schedule, jnp.float32)
        a, b = jax.random.normal(jax.random.key(3), (2, DEPTH // 2, UNITS))
        net = a, b, jnp.zeros_like(a), jnp.zeros(DEPTH // 2)
        starts = {
            plain: (own.gamma, own.theta),
            hybrid: ((own.gamma, own.theta), net),
            equilibrium: (own.gamma.mean(), own.theta.mean()),
        }
        for code, p in starts.items():
            found = trained(code, p, shares, D, W, sampler(cell, D, 64), validation)
            print(name, code.__name__, *(f"{dB:.1f} dB" for dB in found), flush=True)


if __name__ == "__main__":
    main()
