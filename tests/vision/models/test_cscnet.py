"""CSCNet against convolutions of XLA and against layers, and the average over shifts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import Fault, refusals
from flax import nnx
from jax import lax

import unrolled as ur
from unrolled.vision.models import CSCNet, shift_average

FILTERS, KERNEL, STRIDE, UNFOLDINGS, THETA = 3, 4, 2, 3, 0.15
# Sums of about 100 terms in another order, through a few products, stay far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(np.float64).eps


def make(stride=STRIDE, **options):
    """A net whose three banks differ, as after training."""
    net = CSCNet(FILTERS, KERNEL, stride, UNFOLDINGS, rngs=nnx.Rngs(0), theta=THETA, **options)
    for j, bank in enumerate((net.B, net.C), start=1):
        bank[...] = np.asarray(bank[...]) + 0.1 * np.random.default_rng(j).normal(size=bank.shape)
    return net


def picture(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


@nnx.jit
def run(net, *args):
    return net(*args)


@nnx.jit
def window_and_code(net, *args):
    return net.estimate(*args), net.code(*args)


@nnx.jit
def density(net, *args):
    return net.density(*args)


@nnx.jit
def convolutions(net, y):
    """Estimate and code of one window of mean 0, by the convolution of XLA and its transpose."""
    A, B, C = (bank[...] for bank in (net.A, net.B, net.C))
    strides = (net.stride, net.stride)

    def analysis(filters, r):
        return lax.conv_general_dilated(r[None, None], filters, strides, "VALID")[0]

    def synthesis(filters, x):
        kernels = filters.transpose(2, 3, 1, 0)  # of the convolution whose transpose this is
        x = x.transpose(1, 2, 0)[None]
        return lax.conv_transpose(x, kernels, strides, "VALID", transpose_kernel=True)[0, :, :, 0]

    x = jnp.zeros((len(A), *((N - net.kernel) // net.stride + 1 for N in y.shape)))
    for _ in range(net.unfoldings):
        v = x + analysis(B, y - synthesis(A, x))
        theta = net.theta[...][:, None, None]
        x = jnp.maximum(v - theta, 0) - jnp.maximum(-v - theta, 0)
    return synthesis(C, x), x.reshape(-1)


def test_estimates_and_codes_equal_those_of_plain_convolutions():
    net, window = make(), picture(12, 14)
    estimate, code = convolutions(net, window - window.mean())
    found, found_code = window_and_code(net, window)
    np.testing.assert_allclose(found, estimate + window.mean(), atol=ROUNDING)
    np.testing.assert_allclose(found_code, code, atol=ROUNDING)
    assert 0.1 < np.mean(np.asarray(code) != 0) < 0.9


def of_all_shifts(net, noisy):
    """The estimates of a picture of 7 x 9, and their shares of nonzeros."""
    padded = np.pad(noisy, KERNEL - 1, mode="reflect")  # (13, 15)
    for a, b in np.ndindex(STRIDE, STRIDE):
        estimate, code = convolutions(net, padded[a : a + 12, b : b + 14])
        rows, columns = KERNEL - 1 - a, KERNEL - 1 - b
        yield estimate[rows : rows + 7, columns : columns + 9], np.mean(np.asarray(code) != 0)


def test_the_prediction_is_the_mean_over_all_shifts():
    net, noisy = make(), picture(7, 9)
    estimates, nonzero = zip(*of_all_shifts(net, noisy - noisy.mean()))
    np.testing.assert_allclose(run(net, noisy), np.mean(estimates, 0) + noisy.mean(), atol=ROUNDING)
    np.testing.assert_allclose(density(net, noisy), np.mean(nonzero), rtol=ROUNDING)
    assert np.std(estimates, 0).max() > 1e-3  # the shifts differ


def test_the_steps_are_those_of_lista_cp_and_initially_those_of_ista():
    lam, L, window = 0.03, 1.7, picture(12, 14)
    net = CSCNet(FILTERS, KERNEL, STRIDE, UNFOLDINGS, rngs=nnx.Rngs(0), theta=lam / L)
    net.B[...] = np.asarray(net.A[...]) / L
    D = ur.dictionaries.Conv(net.A[...], (12, 14), STRIDE)
    y = (window - window.mean()).reshape(-1)
    B = ur.dictionaries.Conv(net.B[...], (12, 14), STRIDE)
    theta = jnp.asarray(np.full(UNFOLDINGS, lam / L))
    layers = ur.layers
    cp = layers.Unrolled(layers.Weights(B), layers.Threshold(theta))
    ista = layers.Unrolled(
        None, layers.StepAndThreshold(jnp.asarray(np.full(UNFOLDINGS, 1 / L)), theta)
    )
    code = window_and_code(net, window)[1]
    np.testing.assert_allclose(
        jax.jit(ur.lista_cp(UNFOLDINGS).apply)(cp, D, y), code, atol=ROUNDING
    )
    np.testing.assert_allclose(
        jax.jit(layers.ista(UNFOLDINGS).apply)(ista, D, y), code, atol=ROUNDING
    )


def test_the_initial_filters_are_equal_and_of_norm_one():
    net = CSCNet(FILTERS, KERNEL, STRIDE, UNFOLDINGS, rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(net.A[...], net.B[...])
    np.testing.assert_array_equal(net.A[...], net.C[...])
    A = ur.dictionaries.Conv(net.A[...], (16, 16), STRIDE, "circular")
    # On the torus of the power iteration, whose 100 steps converge to 1e-2.
    np.testing.assert_allclose(np.linalg.norm(jax.jit(ur.dictionaries.dense)(A), 2), 1, rtol=1e-2)


def test_given_filters_are_kept_up_to_their_scale():
    filters = picture(FILTERS, KERNEL, KERNEL, seed=5)
    net = CSCNet(FILTERS, KERNEL, STRIDE, UNFOLDINGS, rngs=nnx.Rngs(0), filters=filters)
    ratio = np.asarray(net.A[...])[:, 0] / filters
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=ROUNDING)


def test_a_noise_adaptive_net_with_zero_slope_is_the_plain_one():
    plain, adaptive, noisy = make(), make(noise_adaptive=True), picture(7, 9)
    np.testing.assert_array_equal(run(adaptive, noisy, 0.1), run(plain, noisy))


def test_thresholds_follow_the_noise_level_of_every_picture():
    plain, adaptive, noisy = make(), make(noise_adaptive=True), picture(2, 7, 9)
    adaptive.theta[...] = np.zeros(FILTERS)
    adaptive.slope[...] = np.asarray(plain.theta[...]) / 0.25
    found = run(adaptive, noisy, np.array([0.25, 0.5]))
    np.testing.assert_allclose(found[0], run(plain, noisy[0]), atol=ROUNDING)
    np.testing.assert_allclose(found[1], run(adaptive, noisy[1], 0.5), atol=ROUNDING)
    densities = [float(density(adaptive, noisy[0], sigma)) for sigma in (0.0, 0.25, 1.0)]
    assert densities == sorted(densities, reverse=True) and densities[0] > densities[-1]


def test_negative_thresholds_act_as_their_magnitudes():
    net, noisy = make(), picture(7, 9)
    before = run(net, noisy)
    net.theta[...] = -np.asarray(net.theta[...])
    np.testing.assert_array_equal(run(net, noisy), before)


@pytest.mark.slow
def test_means_may_stay_and_thresholds_may_be_negative():
    net, window = make(subtract_mean=False, signed=True), picture(12, 14)
    net.theta[...] = net.theta[...] * jnp.array([1.0, -1.0, 1.0])
    for found, expected in zip(window_and_code(net, window), convolutions(net, window)):
        np.testing.assert_allclose(found, expected, atol=ROUNDING)
    np.testing.assert_allclose(net.code(window), found, atol=ROUNDING)  # also outside of jit
    noisy = picture(7, 9)
    estimates, nonzero = zip(*of_all_shifts(net, noisy))
    np.testing.assert_allclose(run(net, noisy), np.mean(estimates, 0), atol=ROUNDING)
    np.testing.assert_allclose(density(net, noisy), np.mean(nonzero), rtol=ROUNDING)
    adaptive = make(noise_adaptive=True, subtract_mean=False, signed=True)
    adaptive.theta[...], adaptive.slope[...] = 3 * net.theta[...], -2 * net.theta[...]
    np.testing.assert_allclose(run(adaptive, noisy, 1.0), run(net, noisy), atol=ROUNDING)


def test_the_prediction_moves_with_the_picture():
    net = make()
    rest = picture(40, 38)
    # One more row, which does not change the mean.
    longer = np.concatenate([np.full((1, 38), rest.mean()), rest])
    # The receptive field of a pixel: one kernel on each side in C and in every product.
    reach = 2 * UNFOLDINGS * (KERNEL - 1)
    inner = (slice(reach, -reach), slice(reach, -reach))
    np.testing.assert_allclose(run(net, longer)[1:][inner], run(net, rest)[inner], atol=ROUNDING)


@pytest.mark.parametrize("kernel, stride", [(5, 3), (3, 1)])
def test_every_pixel_is_covered_by_as_many_kernels_as_on_an_infinite_grid(kernel, stride):
    def count(window):
        D = ur.dictionaries.Conv(jnp.ones((1, 1, kernel, kernel)), window.shape, stride)
        return (D @ jnp.ones(D.shape[1])).reshape(window.shape)

    counted = jax.jit(lambda y: shift_average(count, y, kernel=kernel, stride=stride))(
        np.zeros((6, 8))
    )
    np.testing.assert_allclose(counted, (kernel / stride) ** 2, rtol=ROUNDING)


def test_the_identity_on_windows_returns_the_picture():
    noisy = picture(6, 8)
    average = jax.jit(lambda y: shift_average(lambda window: window, y, kernel=4, stride=3))
    np.testing.assert_allclose(average(noisy), noisy, atol=ROUNDING)


@pytest.mark.slow
def test_a_batch_equals_its_pictures_one_by_one_in_their_dtype():
    filters = picture(FILTERS, KERNEL, KERNEL).astype(np.float32)
    net = CSCNet(FILTERS, KERNEL, STRIDE, UNFOLDINGS, rngs=nnx.Rngs(0), filters=filters)
    batch = picture(2, 7, 9).astype(np.float32)
    found = run(net, batch)
    assert found.dtype == jnp.float32 and found.shape == (2, 7, 9)
    rounding = 8 * np.finfo(np.float32).eps
    np.testing.assert_allclose(found[1], run(net, batch[1]), atol=rounding)


def test_a_brighter_picture_gives_a_brighter_estimate():
    net, noisy = make(), picture(7, 9)
    np.testing.assert_allclose(run(net, noisy + 3.0), run(net, noisy) + 3.0, atol=10 * ROUNDING)


def test_training_on_windows_reaches_all_parameters_and_lowers_the_error():
    net = make(noise_adaptive=True)
    windows = picture(2, 10, 10)

    @nnx.jit
    def step(net):
        def error(net):
            return jnp.mean((jax.vmap(net.estimate, (0, None))(windows, 0.1) - windows) ** 2)

        value, gradients = nnx.value_and_grad(error)(net)
        nnx.update(
            net, jax.tree.map(lambda p, g: p - 0.05 * g, nnx.state(net, nnx.Param), gradients)
        )
        return value, gradients

    first, gradients = step(net)
    reached = {name for name, g in gradients.items() if np.any(np.asarray(g[...]) != 0)}
    assert reached == {"A", "B", "C", "theta", "slope"}
    assert float(step(net)[0]) < float(first)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_given_filters_may_have_any_scale(scale):
    filters = np.random.default_rng(0).normal(size=(FILTERS, KERNEL, KERNEL))
    nets = [given(filters=f) for f in (filters, scale * filters)]
    np.testing.assert_allclose(nets[0].A[...], nets[1].A[...], rtol=1e-5)


# Bad input


def given(**change):
    sizes = dict(n_filters=FILTERS, kernel=KERNEL, stride=STRIDE, unfoldings=UNFOLDINGS)
    return CSCNet(**(sizes | change), rngs=nnx.Rngs(0))


Y = np.ones((12, 14))
NETS = {
    "stride 5 leaves gaps between kernels of 4": dict(stride=5),
    "theta must be non-negative": dict(theta=-1.0),
    r"filters have shape \(3, 2, 2\); expected \(3, 4, 4\)": dict(filters=np.ones((3, 2, 2))),
    "the filters are zero": dict(filters=np.zeros((3, 4, 4))),
    "filters has NaN or infinite entries": dict(filters=np.full((3, 4, 4), np.nan)),
}
CALLS = {
    "takes no sigma; try noise_adaptive=True": lambda: called("__call__", Y, 0.1),
    "needs the noise level sigma": lambda: called("__call__", Y, noise_adaptive=True),
    "sigma must be non-negative": lambda: called("__call__", Y, -0.1, noise_adaptive=True),
    r"sigma has shape \(3,\); expected \(\) or one per": lambda: called(
        "__call__", Y, np.ones(3), noise_adaptive=True
    ),
    r"the picture has shape \(12,\)": lambda: called("__call__", Y[:, 0]),
    r"a window of \(11, 14\) does not fit; expected sides of 4 \+ multiples of 2": lambda: called(
        "estimate", Y[1:]
    ),
    r"the picture has shape \(1, 12, 14\); expected \(H, W\)$": lambda: called("code", Y[None]),
    r"the picture has shape \(2, 12, 14\); expected \(H, W\)": lambda: called(
        "density", np.zeros((2, 12, 14))
    ),
    "stride must be at least 1": lambda: averaged(Y, stride=0),
    "stride 4 leaves gaps between kernels of 3": lambda: averaged(Y, stride=4),
    r"the picture has shape \(14,\); expected \(H, W\)": lambda: averaged(Y[0]),
    r"window of shape \(16, 18\) has shape \(1, 16, 18\); expected": lambda: jax.eval_shape(
        lambda: averaged(Y, estimate=lambda window: window[None])
    ),
}


def called(method, *args, **options):
    """A call of a net whose filters are ones."""
    net = given(filters=np.ones((FILTERS, KERNEL, KERNEL)), **options)
    return getattr(net, method)(*args)


def averaged(picture, stride=1, estimate=lambda window: window):
    return shift_average(estimate, picture, kernel=3, stride=stride)


test_what_does_not_fit_is_refused = refusals(
    {
        **{m: Fault(partial(given, **change), ValueError, m) for m, change in NETS.items()},
        **{m: Fault(call, ValueError, m) for m, call in CALLS.items()},
        **{
            name: Fault(
                partial(given, **{name: "no"}), TypeError, f"CSCNet: {name} must be True or"
            )
            for name in ("subtract_mean", "signed")
        },
    }
)


def test_pictures_may_be_lists():
    y = [[1.0, 2.0], [3.0, 4.0]]
    same = jax.jit(lambda: shift_average(lambda window: window, y, kernel=2, stride=1))()
    np.testing.assert_allclose(same, y, atol=ROUNDING)
