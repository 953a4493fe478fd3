"""Chains of layers: they run one after the other, and are certified where the theory applies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import Fault

from unrolled import analytic, dictionaries, layers, networks, problems, theory
from unrolled.networks._network import _together

# The same products, compiled differently, through some ten steps.
ROUNDING = 1e4 * np.finfo(float).eps


@pytest.fixture(scope="module")
def chain():
    """Three families over a dense, a convolutional and a composed D: 12 -> 20 -> 32 -> 30."""
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(2, 1, 5))
    Ds = (
        rng.normal(size=(12, 20)) / 12**0.5,
        dictionaries.Conv(bank / np.linalg.norm(bank, axis=2, keepdims=True), 20),
        dictionaries.Composed(*(rng.normal(size=(n, m)) / n**0.5 for n, m in ((32, 40), (40, 30)))),
    )
    parts = (layers.lista_cp(3, lam=0.02), layers.ista(2, lam=0.01), layers.lista(4, lam=0.01))
    network = networks.dsc(parts)
    return network, network.init(None, Ds), Ds


@pytest.fixture(scope="module")
def signal():
    return np.random.default_rng(7).normal(size=12)


def test_a_chain_runs_its_layers_one_after_the_other(chain, signal):
    network, params, Ds = chain
    assert type(params) is tuple
    codes = network.apply(list(params), list(Ds), signal)  # lists serve as tuples
    assert type(codes) is tuple and [x.shape for x in codes] == [(20,), (32,), (30,)]
    y = signal
    for layer, p, D, x in zip(network.layers, params, Ds, codes, strict=True):
        chex.assert_trees_all_equal(p, layer.init(None, D))
        y = layer.apply(p, D, y)
        assert np.any(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_an_analytic_chain_keeps_its_certificate():
    """Theorem 6: with thresholds from theory there are no false positives and the bounds hold."""
    D_1 = dictionaries.identity_hadamard(64)
    D_2 = jnp.pad(
        dictionaries.transversal(jax.random.key(0), 3, 41, 300), ((0, 5), (0, 0))
    )  # 123 rows, to 128
    sparsities, bounds, depths = (3, 1), (1 / np.sqrt(3), 1.0), (30, 30)
    options = dict(depths=depths, sparsities=sparsities, bounds=bounds)
    certified, schedules = analytic.chain_schedules((D_1, D_2), **options)
    expected = theory.deep_schedule(
        [c.mu_W + c.drift(s) for c, s in zip(certified, sparsities)],
        [c.of_noise for c in certified],
        sparsities=sparsities,
        bounds=bounds,
        depths=depths,
        guards=[c.guard(s, s * B, 0.0) for c, s, B in zip(certified, sparsities, bounds)],
        etas=[c.eta + c.drift(s) for c, s in zip(certified, sparsities)],
    )
    assert all(block.holds for block in expected)
    params = analytic.dsc((D_1, D_2), **options)
    X_2 = problems.bounded(jax.random.key(1), (50, 300), 1, 1.0)
    X_1 = problems.synthesize(D_2, X_2)
    blocks = [layers.lista_cp(K) for K in depths]
    Y = problems.synthesize(D_1, X_1)
    codes = jax.jit(jax.vmap(networks.dsc(blocks).apply, (None, None, 0)))(params, (D_1, D_2), Y)
    inputs = (Y, codes[0])
    for layer, p, D, given, X, block, last in zip(
        blocks, params, (D_1, D_2), inputs, (X_1, X_2), expected, codes
    ):
        # `analytic` rounds the factor of the inherited error up, by 1e-9; the theorem is the least.
        theta = np.asarray(p.steps.theta)
        np.testing.assert_allclose(theta, block.theta, rtol=2e-9, atol=0)
        assert (theta >= block.theta).all()
        iterates = np.asarray(
            jax.jit(jax.vmap(layer.iterates, (None, None, 0), out_axes=1))(p, D, given)
        )
        np.testing.assert_allclose(iterates[-1], np.asarray(last), rtol=0, atol=ROUNDING)
        assert not ((iterates != 0) & (np.asarray(X) == 0)).any()
        assert (np.abs(iterates - np.asarray(X)).sum(2).max(1) <= block.error[1:]).all()
    assert expected[1].error[-1] < 1e-2 * expected[1].error[0]


def _run(count=3, order=(0, 1, 2), batch=()):
    """The codes of a chain for some of its params, and its dictionaries in another order."""

    def call(chain):
        network, params, Ds = chain
        return network.apply(params[:count], [Ds[j] for j in order], np.ones((*batch, 12)))

    return call


MISUSES = {
    "no layers": Fault(lambda _: networks.dsc(()), ValueError, "at least one layer, got none"),
    "two params": Fault(
        _run(count=2), ValueError, "expected a tuple of 3 params, one per layer, got 2"
    ),
    "two dictionaries": Fault(
        _run(order=(0, 1)), ValueError, "expected a tuple of 3 Ds, one per layer, got 2"
    ),
    "one dictionary": Fault(
        lambda chain: chain[0].init(None, chain[2][0]), ValueError, "Ds is one dictionary"
    ),
    "another order": Fault(
        _run(order=(0, 2, 1)), ValueError, r"D_1 has shape \(12, 20\) but D_2 has shape"
    ),
    "a batch": Fault(_run(batch=(6,)), ValueError, r"y must have shape \(12,\)"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_what_does_not_chain_is_refused(chain, misuse):
    MISUSES[misuse].check(chain)


def test_stacked_params_beside_unstacked_ones_run_as_unstacked_ones():
    stacked = layers.Unrolled(None, layers.Threshold(np.array([0.1, 0.2])))
    apart = layers.unstack(stacked)
    expected = _together((apart, apart))
    assert len(expected.steps) == 2 and len(_together((stacked, stacked)).steps.blocks) == 2
    for mixed in ((stacked, apart), (apart, stacked)):
        chex.assert_trees_all_equal(_together(mixed), expected)
