"""A short training, and families of a user; as a program, a training that waits for a kill."""

import contextlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import unrolled as ur
from unrolled.layers import FAMILIES, Gamma, Number, State, Theta, Unrolled, option

if __name__ == "__main__":  # what conftest.py and the tests set
    jax.config.update("jax_enable_x64", True)

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


def families(depth, support):
    """Layers of all kinds of params."""
    layers = ur.layers
    return {
        "ista": layers.ista(depth),
        "fista": layers.fista(depth),
        "lista": layers.lista(depth),
        "lista untied": layers.lista(depth, tied=False),
        "lista_cp": layers.lista_cp(depth),
        "lista_cp untied": layers.lista_cp(depth, tied=False),
        "alista": layers.alista(depth),
        "alista with support": layers.alista(depth, support=support),
    }


class Scale(NamedTuple):
    """What all steps of `damped_ista` share."""

    scale: Number


class Damped(NamedTuple):
    """Params of a step of `damped_ista`; its threshold has a name of its own."""

    gamma: Gamma
    tau: Theta
    damping: Number


class OfAnother:
    """A place for a record of the same name."""

    class Damped(NamedTuple):
        """Params of a step of `damped_gradient`."""

        gamma: Gamma
        damping: Number


@contextlib.contextmanager
def families_of_a_user():
    """Two families of a user, known while the context lasts; their records share a name."""

    class damped_ista(ur.layers.Selecting):
        """K steps x <- damping_k shrink(x + gamma_k scale D'(y - D x), tau_k)."""

        lam: float = option(default=0.1, least=0, help="weight of the LASSO at the start")
        forms = (Unrolled(Scale, Damped),)

        def init(self, key, D):
            gamma = 1 / ur.pursuit.lipschitz(D, self.family)
            values = (gamma, self.lam * gamma, jnp.ones((), D.dtype))
            steps = Damped(*(jnp.full(self.depth, value, D.dtype) for value in values))
            return Unrolled(Scale(jnp.ones((), D.dtype)), steps)

        def step(self, shared, p, D, y, state, fraction=None):
            u = state.x + p.gamma * shared.scale * ((y - D @ state.x) @ D)
            return State(p.damping * self.shrink(D, u, p.tau, fraction))

    class damped_gradient(ur.layers.Layer):
        """K steps x <- damping_k (x + gamma_k D'(y - D x))."""

        forms = (Unrolled(None, OfAnother.Damped),)

        def init(self, key, D):
            values = (1 / ur.pursuit.lipschitz(D, self.family), jnp.ones((), D.dtype))
            steps = (jnp.full(self.depth, value, D.dtype) for value in values)
            return Unrolled(None, OfAnother.Damped(*steps))

        def step(self, shared, p, D, y, state):
            return State(p.damping * (state.x + p.gamma * ((y - D @ state.x) @ D)))

    try:
        yield damped_ista, damped_gradient
    finally:
        for family in (damped_ista, damped_gradient):
            FAMILIES.pop(family.__name__)


def pause(record, params):
    print(record.step, flush=True)
    sys.stdin.readline() if record.step == 8 else time.sleep(0.05)


if __name__ == "__main__":
    run(ur.training.Checkpoint(sys.argv[1], every=3), int(sys.argv[2]), callbacks=[pause])
