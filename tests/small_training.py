"""A training of a second for the tests of checkpoints; as a program, one that waits to be killed."""

import sys
import time

import jax
import optax

import unrolled as ur

if __name__ == "__main__":  # what conftest.py and the tests set
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)

D = ur.dictionaries.gaussian(jax.random.key(0), 3, 5)


def sample(key):
    X = jax.random.normal(key, (4, 5), D.dtype)
    return X @ D.T, X


def run(folder, steps=12, *, layer=None, params=None, D=D, sample=sample, **options):
    """`fit` with the usual choices."""
    layer = ur.lista_cp(2) if layer is None else layer
    usual = dict(
        optimizer=optax.adam(1e-2), key=3, evaluate_every=4, validation=sample(jax.random.key(9))
    )
    params = layer.init(jax.random.key(0), D) if params is None else params
    return ur.fit(layer, params, D, sample, steps=steps, checkpoint=folder, **usual | options)


def pause(record, params):
    print(record.step, flush=True)
    sys.stdin.readline() if record.step == 8 else time.sleep(0.05)


if __name__ == "__main__":
    run(ur.training.Checkpoint(sys.argv[1], every=3), int(sys.argv[2]), callbacks=[pause])
