"""Residual and mixed-scale blocks by their definitions, and the dictionaries that they are of."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import registry
from faults import Fault, refusals

import unrolled as ur
from unrolled.dictionaries import Conv, WithIdentity, dense
from unrolled.networks import mixed_scale, msd_csc, res_csc
from unrolled.networks._blocks import _code

EPS = np.finfo(float).eps
# Sums of some 50 products of numbers near 1, through a few steps that hardly grow.
assert_close = partial(chex.assert_trees_all_close, rtol=0, atol=1000 * EPS)


def shrink(v, theta):
    return np.sign(v) * np.maximum(np.abs(v) - theta, 0)


# Res-CSC


@pytest.mark.slow
def test_one_step_is_a_skip_connection_around_a_residual_branch():
    shapes = [(6, 8), (8, 10), (10, 8), (8, 10)]
    Ds = [np.array(ur.dictionaries.gaussian(j, *shape)) / 2 for j, shape in enumerate(shapes)]
    y, lam = np.random.default_rng(0).normal(size=6), 0.01
    network = res_csc(1, lam=lam)
    x_1, x_2, x_3, x_4 = network.apply(network.init(None, Ds), Ds, y)
    c = [1 / np.linalg.norm(D, 2) ** 2 for D in Ds]
    assert_close(x_1, shrink(c[0] * (y @ Ds[0]), c[0] * lam))
    assert_close(x_2, shrink(c[1] * (x_1 @ Ds[1]), c[1] * lam))
    assert_close(x_3, shrink(x_1 + c[2] * (x_2 - Ds[2] @ x_1) @ Ds[2], c[2] * lam))
    assert_close(x_4, shrink(x_2 + c[3] * (x_3 - Ds[3] @ x_2) @ Ds[3], c[3] * lam))


@pytest.mark.slow
def test_where_no_lengths_match_it_is_a_chain_of_ista():
    Ds = [ur.dictionaries.gaussian(j, *shape) for j, shape in enumerate([(6, 8), (8, 9), (9, 10)])]
    network, chain = res_csc(2, lam=0.02), ur.dsc([ur.layers.ista(2, lam=0.02)] * 3)
    params = network.init(None, Ds)
    pairs = zip(network.apply(params, Ds, jnp.ones(6)), chain.apply(params, Ds, jnp.ones(6)))
    for ours, theirs in pairs:
        assert ours.any()
        np.testing.assert_array_equal(ours, theirs)


# MSD-CSC


@pytest.mark.slow
def test_one_sweep_is_a_network_with_dense_connections_and_more_are_ml_ista():
    lam = 0.02
    Ds = mixed_scale(3, (4, 4), channels=2, growth=2, depth=2, kernel=2, dilations=(1, 2))
    y = np.random.default_rng(0).normal(size=32)
    network = msd_csc(1, lam=lam)
    params = network.init(None, Ds)
    x, theta = y, lam
    for code, p, D in zip(network.apply(params, Ds, y), params, Ds):
        F = np.asarray(dense(D.F))
        # The FFT finds the norm of a circular bank to rounding, and rounds it up.
        c = 1 / (1 + np.linalg.norm(F, 2) ** 2)
        assert float(p.steps.gamma[0]) == pytest.approx(c, rel=100 * EPS) and p.steps.gamma[0] <= c
        theta = theta * c
        x = shrink(c * np.concatenate([x, x @ F]), theta)
        assert_close(code, x)
    assert x.shape == (6 * 16,) and x.any()
    several = msd_csc(3, lam=lam)
    codes = several.apply(several.init(None, Ds), Ds, y)
    # Whose codes are x_J after three steps, and what it synthesises; so only x_J is the same.
    solver = ur.pursuit.ml_ista(Ds, y, (lam, lam), tol=None, max_steps=3)
    assert_close(codes[-1], solver.xs[-1])


@pytest.mark.slow
def test_mixed_scale_dictionaries():
    Ds = mixed_scale(0, 12, channels=2, growth=3, depth=3, dilations=(1, 4))
    assert [D.F.filters.shape for D in Ds] == [(3, 2, 3), (3, 5, 3), (3, 8, 3)]
    assert [D.F.dilation for D in Ds] == [(1,), (4,), (1,)]
    assert_close(ur.dictionaries.column_norms(Ds[1]), np.ones(Ds[1].shape[1]))
    D = mixed_scale(1, 12, channels=2, growth=3, depth=1)[0]
    assert not np.array_equal(D.F.filters, Ds[0].F.filters)


@pytest.mark.slow
def test_one_threshold_per_channel_and_filter():
    (D,) = mixed_scale(0, 4, channels=2, growth=1, depth=1)
    assert D.groups == (3,)
    assert D.spread(jnp.arange(3.0)).tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
    network = msd_csc(1)
    (params,) = network.init(None, (D,))
    per_filter = params._replace(steps=params.steps._replace(theta=jnp.full((1, 3), 0.1)))
    network.check((per_filter,), (D,))
    assert WithIdentity(np.eye(2)).groups == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["res_csc", "msd_csc"])
def test_blocks_train_with_their_dictionaries(name):
    network, Ds = registry.NETWORKS[name]()
    Ds = ur.training.with_unit_atoms(Ds)  # as `fit` keeps them, or the first steps are not safe
    params = network.init(None, Ds)

    def sample(key):
        return jax.random.normal(key, (16, 6)), None

    fit = ur.training.fit(
        *(network, params, Ds, sample),
        optimizer=optax.adam(1e-2),
        steps=60,
        key=0,
        loss=ur.training.lasso_loss(0.02),
        learn_dictionary=True,
    )
    assert fit.history.loss[-10:].mean() < fit.history.loss[:10].mean()
    assert jax.tree.structure(fit.D) == jax.tree.structure(Ds)
    for D in fit.D:
        assert_close(ur.dictionaries.column_norms(D), 1.0)


# Dilation


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, signal, stride, dilation, boundary",
    [
        ((2, 2, 3), 9, 2, 2, "valid"),
        ((2, 1, 2, 3), (4, 7), (1, 2), (2, 3), "zero"),
        ((3, 1, 3), 12, 2, 2, "circular"),
        ((2, 2, 3), 9, 1, 2, "circular"),
        ((2, 1, 40), 90, 1, 2, "valid"),
    ],
)
def test_dilated_filters_are_filters_with_zeros_between(shape, signal, stride, dilation, boundary):
    D = Conv(np.random.default_rng(0).normal(size=shape), signal, stride, boundary, dilation)
    filled = np.zeros((*shape[:2], *D.extent))
    filled[(..., *(slice(None, None, delta) for delta in D.dilation))] = D.filters
    E = Conv(filled, signal, stride, boundary)
    assert D.shape == E.shape and D.positions == E.positions and D.kernel == shape[2:]
    assert_close(dense(D), dense(E))
    assert_close(D.column_norms(), E.column_norms())
    assert_close(D.spectral_norm(), E.spectral_norm())
    assert D.spectral_norm() >= np.linalg.norm(dense(D), 2) * (1 - 8 * EPS)
    assert D.stripe_reach() == E.stripe_reach()
    if boundary == "circular":
        unit = ur.dictionaries.normalize(D)[0]
        gram = np.asarray(dense(unit).T @ dense(unit))
        largest = np.abs(gram - np.diag(np.diag(gram))).max()
        assert_close(ur.theory.mutual_coherence(unit), largest)
        W = ur.analytic.frobenius_weights(unit)
        assert W.is_shift_of(unit)
        assert_close(np.sum(np.asarray(dense(W) * dense(unit)), 0), 1.0)


def test_files_without_a_dilation_are_read_and_hashes_stay(tmp_path):
    from unrolled.training._forms import build, describe

    D = Conv(np.ones((1, 1, 2)), 4)
    form, leaves = describe(D, "D")
    assert set(form["static"]) == {"signal_shape", "stride", "boundary"}
    assert build(form, leaves).dilation == (1,)
    form, leaves = describe(Conv(np.ones((1, 1, 2)), 4, dilation=2), "D")
    assert build(form, leaves).dilation == (2,)


WRONG = {
    "covers .5,. of the signal .4,.": lambda: Conv(np.ones((1, 1, 3)), 4, dilation=2),
    "covers .9,. of the signal": lambda: Conv(np.ones((1, 1, 3)), 8, 1, "circular", 4),
    "dilation must be at least 1": lambda: Conv(np.ones((1, 1, 3)), 8, dilation=0),
    "dilation .1, 2. does not fit": lambda: Conv(np.ones((1, 1, 3)), 8, dilation=(1, 2)),
    'boundary "valid" makes maps': lambda: mixed_scale(0, 8, growth=1, depth=1, boundary="valid"),
    "growth must be at least 1": lambda: mixed_scale(0, 8, growth=0, depth=1),
    "at least one dilation": lambda: mixed_scale(0, 8, growth=1, depth=1, dilations=()),
    "covers .9, 9.": lambda: mixed_scale(0, (8, 8), growth=1, depth=1, dilations=(4,)),
    "D_1 has shape": lambda: res_csc(1).init(None, (np.eye(2), np.eye(3))),
    "lam must be at least 0": lambda: msd_csc(1, lam=-1.0),
    "y must have shape": lambda: res_csc(0).apply(
        res_csc(0).init(None, (np.eye(2),)), (np.eye(2),), np.ones(3)
    ),
    "D has dilation": lambda: ur.realize.transformer_block(
        *[Conv(np.ones((1, 1, 2)), 4, dilation=2)] * 2, 0.1, signal_bound=1.0, code_bound=1.0
    ),
}


FAULTS = {message: Fault(call, ValueError, message) for message, call in WRONG.items()}
FAULTS |= {
    "no identity": Fault(
        lambda: msd_csc(1).init(None, (np.eye(2),)),
        TypeError,
        r"D_1 is ndarray; expected \[I, F\]|D_1 is ArrayImpl",
    ),
    "one number": Fault(
        lambda: mixed_scale(0, 12, growth=3, depth=3, dilations=2),
        TypeError,
        "dilations must be a sequence, got 2; try",
    ),
}
test_what_does_not_fit_is_refused = refusals(FAULTS)


# Deconvolutional networks


def test_a_deconvolutional_layer_of_many_steps_is_half_quadratic_splitting():
    D, y = registry._unit(0, 6, 8), np.random.default_rng(0).normal(size=6)
    network = ur.networks.deconvolutional(8, lam=0.01, p=0.5)
    (x,) = network.apply(network.init(None, (D,)), (D,), y)
    # The same betas, one step at each.
    found = ur.pursuit.half_quadratic(D, y, 0.01, p=0.5, stages=8, steps=1, max_steps=0)
    assert x.any()
    assert_close(x, found.x)


@pytest.fixture(scope="module")
def learned():
    images = np.random.default_rng(0).normal(size=(4, 1, 6, 6))
    network = ur.networks.deconvolutional(6, lam=0.1, p=0.8)
    masks = None, [[1, 0], [0, 1], [1, 1]]
    return images, ur.networks.learn_deconvolution(
        0, network, images, [(2, 3), (3, 2)], sweeps=3, masks=masks
    )


def test_filters_of_one_layer_are_learned_where_their_mask_lets_them():
    images = np.random.default_rng(0).uniform(-0.9, 0.9, size=(3, 2, 4, 4))  # kept as they are
    network = ur.networks.deconvolutional(2, lam=0.1, p=0.8)
    found = ur.networks.learn_deconvolution(
        0, network, images, [(2, 2)], sweeps=2, masks=([[1, 0], [0, 1]],)
    )
    filters = np.asarray(found.Ds[0].filters)
    assert not filters[[0, 1], [1, 0]].any() and filters[[0, 1], [0, 1]].all()
    assert_close(np.sum(filters**2, (1, 2, 3)), np.ones(2))
    assert found.objective.shape == (1, 2) and found.objective[0, 1] < found.objective[0, 0]
    Y = images.reshape(3, -1)
    X, value = map(np.asarray, _code(network, found.Ds[0], Y))
    misfit = np.sum((Y - X @ np.asarray(dense(found.Ds[0])).T) ** 2, 1) / 2
    assert_close(value, np.mean(misfit + 0.1 * np.sum(np.abs(X) ** 0.8, 1)))
    assert value < found.objective[0, 1]


@pytest.mark.slow
def test_filters_are_learned_layer_by_layer(learned):
    images, found = learned
    assert (found.objective[:, -1] < found.objective[:, 0]).all()
    assert found.objective.shape == (2, 3)
    for D in found.Ds:
        assert_close(ur.dictionaries.column_norms(D), np.ones(D.shape[1]))
    unseen = np.asarray(found.Ds[1].filters)[[0, 1], [1, 0]]
    assert not unseen.any()  # the mask
    network = ur.networks.deconvolutional(6, lam=0.1, p=0.8)
    codes = network.apply(found.params, found.Ds, images[0].reshape(-1))
    assert [x.shape for x in codes] == [(72,), (108,)]


@pytest.mark.slow
def test_planted_filters_are_found():
    """Up to order, sign and shift: the largest correlation of each planted filter is near 1."""
    rng = np.random.default_rng(0)
    planted = ur.dictionaries.normalize(
        Conv(rng.normal(size=(2, 1, 3, 3)), (12, 12), boundary="circular")
    )[0]
    X = rng.normal(size=(20, planted.shape[1])) * (rng.uniform(size=(20, planted.shape[1])) < 0.03)
    images = (X @ np.asarray(dense(planted)).T).reshape(20, 1, 12, 12)
    network = ur.networks.deconvolutional(30, lam=0.05)

    def least(seed):
        found = ur.networks.learn_deconvolution(seed, network, images, [(2, 5)], sweeps=40)
        products = np.abs(np.asarray(dense(planted).T @ dense(found.Ds[0])))
        return products.reshape(2, 144, -1).max((1, 2)).min()

    assert any(least(seed) > 0.95 for seed in range(3))  # the best of three starts


LEARN = {
    "images have shape": dict(images=np.ones((2, 6))),
    "filters of side 7 are longer": dict(banks=[(2, 7)]),
    "at least one bank": dict(banks=[]),
    "a bank is 2; expected": dict(banks=[2]),
    "a bank is .2, 3, 4.; expected": dict(banks=[(2, 3, 4)]),
    "sweeps must be at least 1": dict(sweeps=0),
    "got 2 masks for 1 banks": dict(masks=(None, None)),
    "a mask of shape": dict(masks=(np.ones((1, 1)),)),
    "images has NaN": dict(images=np.full((2, 1, 6, 6), np.nan)),
}


@pytest.mark.slow
@pytest.mark.parametrize("k", [-100, 100])
def test_the_scale_of_the_images_scales_the_objective_alone(k):
    images = np.random.default_rng(1).normal(size=(3, 1, 6, 6)).astype(np.float32)
    one, other = (
        ur.networks.learn_deconvolution(
            0, ur.networks.deconvolutional(2, lam=0.1 * c), c * images, [(2, 3)], sweeps=2
        )
        for c in (np.float32(1), np.float32(2.0**k))
    )
    np.testing.assert_allclose(one.Ds[0].filters, other.Ds[0].filters, atol=1e-5)
    np.testing.assert_allclose(one.objective * 4.0**k, other.objective, rtol=1e-5)


def _learning(options):
    def call():
        network = ur.networks.deconvolutional(2)
        arguments = dict(images=np.ones((2, 1, 6, 6)), banks=[(2, 3)]) | options
        return ur.networks.learn_deconvolution(0, network, **arguments)

    return call


test_what_cannot_be_learned_is_refused = refusals(
    {words: Fault(_learning(options), ValueError, words) for words, options in LEARN.items()}
    | {
        f"p = {p}": Fault(partial(ur.networks.deconvolutional, 2, p=p), ValueError, "p must be in")
        for p in (0.0, 1.5)
    }
    | {
        "another network": Fault(
            lambda: ur.networks.learn_deconvolution(0, res_csc(1), np.ones((2, 1, 6, 6)), [(2, 3)]),
            TypeError,
            "expected networks.deconvolutional",
        )
    }
)


def test_learned_filters_have_the_dtype_of_the_images_and_the_shape_of_their_bank():
    images = np.random.default_rng(0).normal(size=(2, 1, 5)).astype(np.float32)
    network = ur.networks.deconvolutional(2, lam=0.1, p=0.8)
    found = ur.networks.learn_deconvolution(0, network, images, [(2, 3)], sweeps=1, filter_steps=1)
    assert found.Ds[0].filters.shape == (2, 1, 3) and found.Ds[0].dtype == np.float32
