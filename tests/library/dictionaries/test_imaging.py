"""Fourier transforms, wavelets and coils, next to numpy and to published filters."""

from functools import partial

import jax
import numpy as np
import pytest
from faults import rows
from jax.test_util import check_grads

import unrolled as ur
from unrolled import dictionaries as ud
from unrolled.dictionaries import from_pairs, to_pairs

EPS = np.finfo(float).eps
WAVELETS = ["haar", "db2", "db4", "sym4", "db10", "sym2", "sym3", "sym5", "sym8", "sym9", "sym10"]


def draw(*shape, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def analysed(v, h):
    """One level, by its definition: the low and the high band of a vector on a circle."""
    n, F = len(v), len(h)
    g = [(-1) ** (j + 1) * h[F - 1 - j] for j in range(F)]
    bands = [[sum(f[j] * v[(2 * o + F // 2 - j) % n] for j in range(F)) for o in range(n // 2)]
             for f in (h, g)]  # fmt: skip
    return np.concatenate(bands)


# Daubechies (1992), tables 6.1 and 6.3, as used for analysis.
PUBLISHED = {
    "haar": np.ones(2) / np.sqrt(2),
    "db2": np.array([1 - 3**0.5, 3 - 3**0.5, 3 + 3**0.5, 1 + 3**0.5]) / (4 * 2**0.5),
    "db4": [-0.010597401785, 0.032883011667, 0.030841381836, -0.187034811719,
            -0.027983769417, 0.630880767930, 0.714846570553, 0.230377813309],
    "sym4": [-0.075765714789, -0.029635527646, 0.497618667632, 0.803738751805,
             0.297857795606, -0.099219543577, -0.012603967262, 0.032223100604],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wavelet_has_the_published_filter(name):
    v = np.random.default_rng(0).normal(size=16)
    expected = analysed(v, PUBLISHED[name])
    np.testing.assert_allclose(v @ ud.wavelet((16,), name, 1), expected, rtol=0, atol=1e-11)


def test_symlets_have_the_direction_of_the_published_filters():
    """The first entries for 2 to 10 vanishing moments, as PyWavelets 1.8 stores them."""
    first = [-0.129409523, 0.035226292, -0.075765715, 0.027333068, 0.015404109, 0.002681815]
    first += [-0.003382416, 0.001400916, 0.00077016]
    for moments, expected in enumerate(first, 2):
        atom = ud.dense(ud.wavelet((32,), f"sym{moments}", 1))[:, 0]
        np.testing.assert_allclose(atom[moments], expected, rtol=0, atol=2e-9)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", WAVELETS)
def test_wavelets_are_orthonormal_and_have_vanishing_moments(name):
    n = 32
    D = ud.wavelet((n,), name, 2)
    W = np.asarray(ud.dense(D))
    np.testing.assert_allclose(W.T @ W, np.eye(n), rtol=0, atol=16 * EPS)
    moments = 1 if name == "haar" else int(name.lstrip("dbsym"))
    centred = (np.arange(n) - n / 2) / n
    # Away from the seam of the circle, the fine coefficients of polynomials are 0.
    fine = W[:, n // 2 :]
    inside = np.abs(fine[[0, -1]]).max(0) == 0
    assert inside.any() or moments > 4
    powers = centred[None] ** np.arange(moments)[:, None]
    np.testing.assert_allclose(powers @ fine[:, inside], 0, rtol=0, atol=1e-11)
    assert ud.spectral_norm(3 * D) == 3


def test_levels_and_axes_of_wavelets():
    """Two levels in two dimensions, axis by axis."""
    v, one = draw(8, 12).real, partial(analysed, h=PUBLISHED["haar"])
    expected = np.apply_along_axis(one, 1, np.apply_along_axis(one, 0, v))
    expected[:4, :6] = np.apply_along_axis(one, 1, np.apply_along_axis(one, 0, expected[:4, :6]))
    found = v.reshape(-1) @ ud.wavelet((8, 12), "haar", 2)
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=0, atol=32 * EPS)
    along = v.reshape(-1) @ ud.wavelet((8, 12), "haar", 1, axes=(-1,))
    expected = np.apply_along_axis(one, 1, v).reshape(-1)
    np.testing.assert_allclose(along, expected, rtol=0, atol=32 * EPS)


def test_wavelets_are_those_of_pywavelets():
    """Stored: coeffs_to_array(wavedecn(v, "db2", "periodization", level=2)) of version 1.8."""
    v = np.arange(32.0) ** 2 % 7
    expected = [
        [7.1691107, 8.5808892, 2.2381805, -0.9636615,
         -0.837019, -0.9742785, 1.2990381, -0.8782849],
        [2.2114178, -0.9368988, -1.2722754, -3.243269,
         0.3125, 1.1818103, -1.7320508, 1.1282849],
        [-1.2700317, -0.1752404, 1.7320508, -1.2443103,
         2.4072912, -1.9530444, -0.0, -0.1797277],
        [0.8125, 0.6327722, -2.6650635, 1.677323,
         -0.3827722, -0.4375, -1.75, -0.2042468],
    ]  # fmt: skip
    found = (v @ ud.wavelet((4, 8), "db2", 2)).reshape(4, 8)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)


def test_fourier_is_that_of_numpy_on_the_measured_frequencies():
    x, mask = draw(2, 4, 6), np.random.default_rng(1).random((4, 6)) < 0.5
    D = ud.fourier(x.shape, mask, axes=(1, 2))
    expected = mask * np.fft.fft2(x, norm="ortho")
    found = jax.jit(lambda D, x: D @ x)(D, to_pairs(x.reshape(-1)))
    np.testing.assert_allclose(from_pairs(found), expected.reshape(-1), rtol=0, atol=32 * EPS)
    whole = np.fft.fftn(x, norm="ortho").reshape(-1)
    found = ud.fourier(x.shape) @ to_pairs(x.reshape(-1))
    np.testing.assert_allclose(from_pairs(found), whole, rtol=0, atol=32 * EPS)


def sense(maps, mask, shape=(8, 8)):
    n = len(maps)
    return (
        ud.fourier((n, *shape), mask, axes=(1, 2)) @ ud.coils(maps) @ ud.wavelet(shape, "haar", 2)
    )


def test_coils_see_more_than_one_coil():
    """SENSE, next to numpy; the code of half of the frequencies is found from three coils."""
    maps, x = draw(3, 8, 8), np.zeros(64, complex)
    maps = maps / np.linalg.norm(maps, axis=0)
    x[[0, 5, 17]] = [2, 1j, -1]
    mask = np.random.default_rng(2).random((8, 8)) < 0.5
    D = sense(maps, mask)
    picture = np.asarray(ud.dense(ud.wavelet((8, 8), "haar", 2))) @ x
    expected = mask * np.fft.fft2(maps * np.reshape(picture, (8, 8)), norm="ortho")
    y = from_pairs(D @ to_pairs(x))
    np.testing.assert_allclose(y, expected.reshape(-1), rtol=0, atol=64 * EPS)
    found = jax.jit(partial(ur.pursuit.lasso, tol=1e-8))(D, y, ratio=1e-3)
    assert found.converged and np.abs(found.x - x).max() < 0.02

    def seen(real, imag):
        return sense(jax.lax.complex(real, imag), mask) @ to_pairs(x)

    check_grads(seen, (maps.real, maps.imag), order=1, modes=("rev",), atol=1e-6, rtol=1e-6)


def test_the_norm_and_the_atoms_of_coils():
    maps = draw(3, 5)
    D = ud.coils(maps)
    norms = np.repeat(np.linalg.norm(maps, axis=0), 2)
    np.testing.assert_allclose(ud.column_norms(D), norms, rtol=8 * EPS)
    exact = np.linalg.norm(ud.dense(D), 2)
    np.testing.assert_allclose(ud.spectral_norm(D), exact, rtol=16 * EPS)
    np.testing.assert_array_equal(ud.dense(ud.coils(maps.real)), ud.dense(ud.coils(maps.real + 0j)))


def test_products_of_structured_dictionaries_are_written_as_products():
    F, W = ud.fourier((4, 4)), ud.wavelet((4, 4), "db2", 1)
    assert isinstance(F @ W, ud.Composed) and (F @ W).is_complex
    np.testing.assert_array_equal(ud.dense(F @ W), ud.dense(ud.Composed(F, W)))


def test_a_transform_goes_into_a_weights_file(tmp_path):
    D, layer = ud.fourier((4, 2)) @ ud.wavelet((4, 2), "sym4", 1), ur.layers.fista(2, lam=0.1)
    params = layer.init(None, D)
    ur.training.save(tmp_path / "weights.npz", params, D, layer=layer)
    kept = ur.training.restore(tmp_path / "weights.npz")
    y = draw(8)
    np.testing.assert_array_equal(
        kept.layer.apply(kept.params, kept.D, y), layer.apply(params, D, y)
    )


test_refusals = rows(
    (lambda: ud.wavelet((8, 8), "db11", 1), "name is 'db11'; expected 'haar', 'db2' to 'db10'"),
    (lambda: ud.wavelet((8, 12), "haar", 3), "axis 1 has length 12; expected a multiple of .* 8"),
    (lambda: ud.wavelet((8,), "haar", 0), "levels must be at least 1"),
    (lambda: ud.wavelet((8,), "haar", 1, axes=(1,)), r"axes are \(1,\); expected axes of"),
    (lambda: ud.fourier((8, 0)), r"shape\[1\] must be at least 1"),
    (lambda: ud.fourier((8, 4), np.ones(8)), r"mask has shape \(8,\); expected \(8, 4\), or"),
    (lambda: ud.coils(np.ones(4)), r"maps have shape \(4,\); expected \(c, \*shape\)"),
    (lambda: ud.coils(np.full((2, 3), np.nan)), "coils: maps has NaN"),
    (lambda: ud.coils([["a", "b"]]), TypeError, "maps is not a numeric array"),
    (lambda: ud.fourier((4,)) @ ud.wavelet((8,), "haar", 1), r"complex shape \(4, 4\) .* \(8, 8\)"),
)
