"""Chains of layers: they run one after the other, and are certified where the theory applies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled import analytic, dictionaries, layers, networks, problems, theory

# The same products, compiled differently, through some ten steps.
ROUNDING = 1e4 * np.finfo(float).eps


def unit_conv(filters, signal_shape):
    return dictionaries.normalize(dictionaries.Conv(filters, signal_shape))[0]


@pytest.fixture(scope="module")
def chain():
    """Three families over a dense, a convolutional and a composed D: 12 -> 20 -> 32 -> 30."""
    rng = np.random.default_rng(0)
    gaussian = [
        dictionaries.gaussian(jax.random.key(k), *shape)
        for k, shape in enumerate([(12, 20), (32, 40), (40, 30)])
    ]
    Ds = (
        gaussian[0],
        unit_conv(rng.normal(size=(2, 1, 5)), 20),
        dictionaries.Composed(*gaussian[1:]),
    )
    parts = (layers.lista_cp(3, lam=0.02), layers.ista(2, lam=0.01), layers.lista(4, lam=0.01))
    network = networks.dsc(parts)
    return network, network.init(jax.random.key(5), Ds), Ds


@pytest.fixture(scope="module")
def signals():
    return jax.random.normal(jax.random.key(7), (6, 12))


def one_after_the_other(network, params, Ds, y):
    codes = []
    for layer, p, D in zip(network.layers, params, Ds, strict=True):
        y = layer.apply(p, D, y)
        codes.append(y)
    return tuple(codes)


@pytest.mark.slow
def test_a_chain_runs_its_layers_one_after_the_other(chain, signals):
    network, params, Ds = chain
    codes = network.apply(params, Ds, signals[0])
    assert type(codes) is tuple and [x.shape for x in codes] == [(20,), (32,), (30,)]
    assert all(x.any() for x in codes)
    chex.assert_trees_all_equal(codes, one_after_the_other(network, params, Ds, signals[0]))


def test_jit_and_vmap(chain, signals):
    network, params, Ds = chain
    batched = jax.jit(jax.vmap(network.apply, (None, None, 0)))(params, Ds, signals)
    assert [x.shape for x in batched] == [(6, 20), (6, 32), (6, 30)]
    for i, y in enumerate(signals[:2]):
        ours = tuple(x[i] for x in batched)
        chex.assert_trees_all_close(ours, network.apply(params, Ds, y), rtol=0, atol=ROUNDING)


def test_init_is_that_of_every_layer(chain):
    network, params, Ds = chain
    assert type(params) is tuple
    for layer, p, D in zip(network.layers, params, Ds, strict=True):
        expected = layer.init(jax.random.key(0), D)  # these families use no randomness
        chex.assert_trees_all_equal(p, expected)


def test_lists_serve_as_tuples(chain, signals):
    network, params, Ds = chain
    ours = network.apply(list(params), list(Ds), signals[0])
    chex.assert_trees_all_equal(ours, network.apply(params, Ds, signals[0]))


def test_one_layer_is_a_chain(chain, signals):
    _, params, Ds = chain
    (code,) = networks.dsc([layers.lista_cp(3)]).apply(params[:1], Ds[:1], signals[0])
    expected = layers.lista_cp(3).apply(params[0], Ds[0], signals[0])
    np.testing.assert_array_equal(np.asarray(code), np.asarray(expected))


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
        [c.mu_W for c in certified],
        [c.C_W for c in certified],
        sparsities=sparsities,
        bounds=bounds,
        depths=depths,
        guards=[c.guard * s * B for c, s, B in zip(certified, sparsities, bounds)],
        etas=[c.eta for c in certified],
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


def test_what_does_not_chain_is_refused(chain, signals):
    network, params, Ds = chain
    with pytest.raises(ValueError, match="at least one layer, got none"):
        networks.dsc(())
    with pytest.raises(ValueError, match="expected a tuple of 3 params, one per layer, got 2"):
        network.apply(params[:2], Ds, signals[0])
    with pytest.raises(ValueError, match="expected a tuple of 3 Ds, one per layer, got 2"):
        network.apply(params, Ds[:2], signals[0])
    with pytest.raises(ValueError, match="Ds is one dictionary"):
        network.init(jax.random.key(0), Ds[0])
    with pytest.raises(ValueError, match=r"D_1 has shape \(12, 20\) but D_2 has shape"):
        network.apply(params, (Ds[0], Ds[2], Ds[1]), signals[0])
    with pytest.raises(ValueError, match=r"y must have shape \(12,\)"):
        network.apply(params, Ds, signals)
