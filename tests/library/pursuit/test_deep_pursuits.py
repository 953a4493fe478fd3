"""Pursuits of a chain, and the local ones: special cases, certificates, stored optimal values."""

import itertools
import json
from functools import cache, partial

import composite_programs as stored
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from numpy.testing import assert_allclose, assert_array_equal

import unrolled as ur
from unrolled.pursuit._multilayer import _products, _vertex

up, ud, ut = ur.pursuit, ur.dictionaries, ur.theory
EPS = np.finfo(np.float64).eps
OPTIMA = json.loads(stored.STORED.read_text())
LAMS = (0.05, 0.05)


@cache
def chain(seed=0, sizes=(12, 16, 20)):
    return stored.chain(seed, *sizes)


def product(Ds):
    return np.linalg.multi_dot(Ds) if len(Ds) > 1 else Ds[0]


def objective(Ds, y, lams, x):
    """F by its definition, from x_J."""
    total = 0.0
    for D, lam in zip(reversed(Ds), reversed(lams)):
        total += np.sum(lam * np.abs(x))
        x = D @ x
    return total + np.sum((y - x) ** 2) / 2


def arrays(found):
    return [np.asarray(x) for x in found.xs]


def assert_in_chain(Ds, xs):
    """x_{j-1} = D_j x_j, to the rounding of one product."""
    for D, before, x in zip(Ds[1:], xs, xs[1:]):
        size = np.abs(D) @ np.abs(x)
        assert (np.abs(before - D @ x) <= 16 * EPS * size.max()).all()


# Every pursuit of a chain.

# Each is called with Ds and y, and has a tolerance that float32 can meet.
DEEP = {
    "ml_ista": lambda Ds, y: up.ml_ista(Ds, y, LAMS, tol=1e-4),
    "layered_thresholding": lambda Ds, y: up.layered_thresholding(Ds, y, LAMS),
    "layered_basis_pursuit": lambda Ds, y: up.layered_basis_pursuit(Ds, y, LAMS, tol=1e-4),
    "project, sparsity": lambda Ds, y: up.project(Ds, y, sparsity=3),
    "project, lam": lambda Ds, y: up.project(Ds, y, lam=0.1, tol=1e-4),
    "ml_fista": lambda Ds, y: up.ml_fista(Ds, y, LAMS, tol=1e-4),
    "ml_basis_pursuit": lambda Ds, y: up.ml_basis_pursuit(Ds, y, LAMS, tol=1e-4),
    "holistic": lambda Ds, y: up.holistic(Ds, y, lam=0.05, zeros=2, tol=1e-4),
}
each = pytest.mark.parametrize("name", DEEP)


def test_every_deep_pursuit_is_in_the_table():
    offered = {
        name
        for name in up.__all__
        if getattr(getattr(up, name), "__annotations__", {}).get("return")
        in (up.DeepPursuit, up.Layered)
    }
    assert offered == {name.split(",")[0] for name in DEEP}


@pytest.mark.slow
@each
def test_jit_and_vmap_are_a_loop_and_a_bad_signal_spoils_only_itself(name):
    Ds, y = chain()
    Y = np.stack([y, 0 * y, y[::-1], np.where(np.arange(len(y)) == 2, np.nan, y)])
    batch = jax.tree.map(np.asarray, jax.jit(jax.vmap(DEEP[name], (None, 0)))(Ds, Y))
    for i in range(3):
        alone = DEEP[name](Ds, Y[i])
        for x, single in zip(batch.xs, alone.xs):
            # Both stop at 1e-4; with the same steps they differ by rounding, amplified by these.
            assert_allclose(x[i], single, atol=1e-9)
        assert_array_equal(batch.steps[i], alone.steps)
        assert_array_equal(batch.converged[i], alone.converged)
    assert not any(x[1].any() for x in batch.xs)
    assert not batch.converged[3] and not np.isfinite(batch.residual[3]).all()


@pytest.mark.slow
@each
def test_structured_dictionaries_are_their_matrices(name):
    rng = np.random.default_rng(0)
    Ds = (
        ud.Conv(rng.normal(size=(2, 1, 3)), 8, boundary="circular"),
        ud.Sparse(np.eye(16), rng.normal(size=(16, 12)) * (rng.random((16, 12)) < 0.3)),
        ud.Composed(rng.normal(size=(12, 5)), rng.normal(size=(5, 10))),
    )[: 3 if "thresholding" in name or "lam" in name else 2]
    lams = (0.5,) * len(Ds)
    solve = {
        "layered_thresholding": lambda Ds, y: up.layered_thresholding(Ds, y, lams),
        "project, lam": lambda Ds, y: up.project(Ds, y, lam=5.0, tol=1e-10),
    }.get(name, DEEP[name])
    y = rng.normal(size=8)
    structured, matrices = solve(Ds, y), solve(tuple(map(ud.dense, Ds)), y)
    for x, other in zip(structured.xs, matrices.xs):
        # Solutions within a gap of 1e-4 are this near, and those of one more step or less.
        assert_allclose(x, other, atol=1e-2 if "pursuit" in name or "ista" in name else 1e-4)


# Layered pursuits.


@pytest.mark.few(1)
@pytest.mark.parametrize("k", [-70, 70])
def test_nonnegative_layered_thresholding_is_judged_alike_at_any_scale(k):
    """The squares of these signals leave the range of float32."""
    Ds, y = jax.tree.map(np.float32, chain())

    def solve(c):
        return up.layered_thresholding(Ds, c * y, [c * t for t in LAMS], nonnegative=True)

    plain, found = solve(np.float32(1)), solve(np.float32(2.0**k))
    assert not found.converged and (found.gap == plain.gap).all() and plain.gap.max() > 0.1
    for x, other in zip(found.xs, plain.xs):
        assert_array_equal(x, other * 2.0**k)


def test_a_signal_far_below_0_costs_a_nonnegative_code_nothing():
    """Of x >= 0 the optimality condition is on one side: d . r <= theta, however negative."""
    found = up.layered_thresholding([np.eye(2)], [1.0, -3.0], [0.1], nonnegative=True)
    assert found.xs[0].tolist() == [0.9, 0.0] and found.converged and found.gap[0] < 1e-15


def test_a_rectifier_with_negative_values_gives_no_code_of_x_at_least_0():
    one = up.layered_thresholding([np.eye(2)], [1.0, 0.0], [0.1], nonnegative=True)
    elu = up.layered_thresholding(
        [np.eye(2)], [1.0, 0.0], [0.1], nonnegative=True, activation=ur.activations.elu(1.0)
    )
    assert one.converged and elu.xs[0][1] < 0 and np.isinf(elu.gap) and not elu.converged


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tol", [("float32", 1e-6), ("float64", 1e-12)])
def test_layered_thresholding_is_the_forward_pass_of_a_cnn(dtype, tol):
    """Two layers of flax on a picture, with biases -theta."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2, 9, 8)).astype(dtype)
    shapes, strides, grid, h = [(3, 2, 3, 2), (4, 3, 2, 3)], [(1, 2), (1, 1)], (9, 8), y
    Ds, thetas, expected = [], [], []
    h = np.moveaxis(y, 0, -1)[None]
    for (n_atoms, n_channels, *kernel), stride in zip(shapes, strides):
        filters = (rng.normal(size=(n_atoms, n_channels, *kernel)) / 3).astype(dtype)
        theta = rng.uniform(0, 0.2, n_atoms).astype(dtype)
        layer = linen.Conv(
            n_atoms, tuple(kernel), stride, padding="VALID", precision="highest", dtype=dtype
        )
        weights = {"kernel": filters.transpose(2, 3, 1, 0), "bias": -theta}
        h = jax.nn.relu(layer.apply({"params": weights}, h))
        expected.append(np.moveaxis(np.asarray(h[0]), -1, 0))
        Ds.append(ud.Conv(filters, grid, stride))
        grid = Ds[-1].positions
        thetas.append(theta)
    found = up.layered_thresholding(Ds, y.ravel(), thetas, nonnegative=True)
    for D, x, feature in zip(Ds, found.xs, expected):
        assert feature.any()
        assert_allclose(D.unflatten_code(x), feature, atol=tol)


@pytest.mark.slow
def test_signed_thresholding_is_a_rectifier_of_the_doubled_dictionary():
    Ds, y = chain()
    signed = up.layered_thresholding(Ds, y, (0.1, 0.2))
    twice = [np.hstack([D, -D]) for D in Ds]
    first = up.layered_thresholding(twice[:1], y, (0.1,), nonnegative=True).xs[0]
    assert_allclose(signed.xs[0], first[:16] - first[16:], atol=20 * EPS)
    second = up.layered_thresholding(twice[1:], signed.xs[0], (0.2,), nonnegative=True).xs[0]
    assert_allclose(signed.xs[1], second[:20] - second[20:], atol=20 * EPS)


def test_layered_basis_pursuit_solves_the_lasso_of_every_layer():
    Ds, y = chain()
    found = up.layered_basis_pursuit(Ds, y, (0.1, 0.05), tol=1e-10)
    before = y
    for D, layer, lam in zip(Ds, found, (0.1, 0.05)):
        (alone,) = np.asarray(up.lasso_batch(D, before[None], lam, tol=1e-12).x)
        assert_allclose(layer.x, alone, atol=1e-4)  # the root of the gap
        assert np.abs(D.T @ (before - D @ np.asarray(layer.x))).max() <= lam + 1e-4
        before = np.asarray(layer.x)
    assert found.converged and found.gap.shape == found.residual.shape == found.steps.shape == (2,)


@pytest.mark.slow
def test_a_layer_with_a_penalty_is_fista_bit_for_bit():
    Ds, before = chain()
    for D, layer in zip(Ds, up.layered_basis_pursuit(Ds, before, (0.1, 0.05), tol=1e-10)):
        lam = 0.1 if D is Ds[0] else 0.05
        assert_array_equal(layer.x, up.fista(D, before, lam, tol=1e-10).x)
        before = np.asarray(layer.x)


@pytest.mark.slow
def test_orthonormal_layers_make_thresholding_basis_pursuit():
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    P = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    y = np.random.default_rng(2).normal(size=12)
    thresholded = up.layered_thresholding((Q, P), y, (0.3, 0.1))
    pursued = up.layered_basis_pursuit((Q, P), y, (0.3, 0.1), tol=1e-12)
    assert thresholded.converged
    for x, other in zip(thresholded.xs, pursued.xs):
        assert_allclose(x, other, atol=1e-5)  # the root of the gap


# Projection pursuit.


@pytest.mark.slow
@pytest.mark.parametrize("s", [1, 4, 9])
def test_projection_of_one_layer_is_orthogonal_matching_pursuit(s):
    from sklearn import linear_model

    rng = np.random.default_rng(s)
    D, y = stored.unit(rng.normal(size=(20, 40))), rng.normal(size=20)
    found = up.project((D,), y, sparsity=s)
    x = np.asarray(found.xs[0])
    assert_allclose(x, linear_model.orthogonal_mp(D, y, n_nonzero_coefs=s), atol=1e-12)
    assert found.steps == s == np.count_nonzero(x) and found.converged
    assert np.abs(D[:, x != 0].T @ (y - D @ x)).max() <= 20 * EPS * np.linalg.norm(y)
    # Atoms of any norm: the choice goes by the angle.
    scale = rng.uniform(0.1, 10, 40)
    assert_allclose(up.project((D * scale,), y, sparsity=s).xs[0] * scale, x, atol=1e-11)


@pytest.mark.slow
def test_projected_codes_lie_in_the_chain_and_a_signal_of_the_model_stays():
    Ds, y = chain(3)
    found = up.project(Ds, y, sparsity=3)
    xs = arrays(found)
    assert_in_chain(Ds, xs)
    again = up.project(Ds, Ds[0] @ xs[0], sparsity=3)
    for x, other in zip(xs, again.xs):
        assert_allclose(x, other, atol=1e-12)
    assert again.residual <= 100 * EPS and np.isinf(found.gap)


def matched(D, y, most):
    """The codes of orthogonal matching pursuit after 1, ..., most atoms, by least squares."""
    S, codes = [], []
    for _ in range(most):
        r = y - D @ (codes[-1] if codes else np.zeros(D.shape[1]))
        S.append(np.argmax(np.abs(r @ stored.unit(D))))
        codes.append(np.zeros(D.shape[1]))
        codes[-1][S] = np.linalg.lstsq(D[:, S], y, rcond=None)[0]
    return codes


def test_the_pursuit_stops_before_a_code_exceeds_its_sparsity():
    Ds, y = chain(0)
    codes = matched(product(Ds), y, 4)
    counts = [np.count_nonzero(Ds[1] @ x) for x in codes]
    steps = sum(count <= 6 for count in counts)
    held = up.project(Ds, y, sparsity=(6, 4))
    assert held.steps == steps < 4 and held.converged and counts[steps] > 6
    assert_allclose(held.xs[1], codes[steps - 1], atol=1e-13)
    assert np.count_nonzero(held.xs[0]) == counts[steps - 1]


@pytest.mark.slow
def test_a_pursuit_whose_first_atom_has_too_many_nonzeros_takes_none():
    Ds, y = chain(0)
    nothing = up.project(Ds, y, sparsity=(2, 4))  # in every column of D_2 are three
    assert nothing.steps == 0 and not np.any(nothing.xs[1])


@pytest.mark.slow
def test_dependent_zero_and_too_many_atoms():
    D = stored.unit(np.random.default_rng(0).normal(size=(6, 3)))
    y = np.random.default_rng(1).normal(size=6)
    twice = np.hstack([D, -D, np.zeros((6, 2))])
    found = up.project((twice,), y, sparsity=5)
    assert found.steps == 3 and np.isfinite(found.xs[0]).all() and found.converged
    expected = np.linalg.lstsq(D, y, rcond=None)[0]
    assert_allclose(twice @ np.asarray(found.xs[0]), D @ expected, atol=1e-12)
    exact = up.project((D,), 2 * D[:, 1], sparsity=3)
    assert exact.steps == 1 and np.allclose(exact.xs[0], [0, 2, 0], atol=1e-14)
    assert up.project((D,), y, sparsity=0).steps == 0


@pytest.mark.slow
def test_an_effective_atom_that_is_rounding_is_never_chosen():
    D1 = np.random.default_rng(0).normal(size=(4, 6))
    null = np.linalg.svd(D1)[2][-1]
    D2 = np.stack([null, *np.eye(6)[:2]], 1)
    for seed in range(4):
        y = np.random.default_rng(seed).normal(size=4)
        found = up.project((D1, D2), y, sparsity=3)
        assert found.xs[1][0] == 0 and found.residual <= np.linalg.norm(y)


@pytest.mark.slow
def test_a_projection_by_the_lasso_has_no_scale():
    """D_1 D_2 is above the range of float32, and the codes are not."""
    D = jnp.float32(1e25) * jnp.eye(2, dtype=jnp.float32)
    found = up.project((D, D), jnp.asarray([1e25, 0.0], jnp.float32), lam=1.0)
    assert found.converged
    assert_allclose(found.xs[0], [1, 0], rtol=1e-6)
    assert_allclose(found.xs[1], [1e-25, 0], rtol=1e-6)


def test_a_projection_whose_codes_leave_the_range_is_not_called_converged():
    eye = jnp.eye(2, dtype=jnp.float32)
    y = jnp.asarray([1e10, 0.0], jnp.float32)
    found = up.project((1e-30 * eye, 1e30 * eye), y, lam=1.0)
    assert not np.isfinite(found.xs[0]).all() and not found.converged


@pytest.mark.slow
def test_projection_by_the_lasso_is_the_lasso_in_the_effective_dictionary():
    Ds, y = chain()
    found = up.project(Ds, y, lam=0.1, tol=1e-10)
    alone = up.fista(product(Ds), y, 0.1, tol=1e-10)
    assert_allclose(found.xs[1], alone.x, atol=1e-5)  # the root of the gap
    assert_in_chain(Ds, arrays(found))
    assert found.converged and found.gap <= 1e-10


@pytest.mark.slow
def test_projection_beats_layered_pursuit_on_the_shallow_layer():
    """64/64/80, D_1 orthonormal, D_2 4-sparse, 20 dB, as in the experiment of the paper."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    D2 = np.zeros((64, 80))
    for k in range(80):
        D2[rng.choice(64, 4, replace=False), k] = rng.normal(size=4)
    D2 = stored.unit(D2)
    X2 = np.zeros((60, 80))
    for x in X2:
        x[rng.choice(80, 4, replace=False)] = rng.choice([-1, 1], 4) * rng.uniform(0.5, 1.5, 4)
    X1 = X2 @ D2.T
    noise = rng.normal(size=(60, 64))
    scale = np.linalg.norm(X1, axis=1) / np.linalg.norm(noise, axis=1) / 10
    Y = X1 @ Q.T + noise * scale[:, None]
    projected = jax.jit(jax.vmap(lambda y: up.project((Q, D2), y, sparsity=4).xs[0]))(Y)
    first = jax.jit(jax.vmap(lambda y: up.project((Q,), y, sparsity=16).xs[0]))(Y)

    def error(X):
        return np.mean(np.linalg.norm(X - X1, axis=1) / np.linalg.norm(X1, axis=1))

    # 16 free entries of noise against 4: the errors differ by a factor of about 2.
    assert error(projected) < 0.75 * error(first)


# ML-ISTA and the exact problem.


@pytest.mark.few(1)
@pytest.mark.parametrize("names", [("ml_ista", "ista"), ("ml_fista", "fista")])
def test_one_layer_is_the_solver_of_the_lasso_bit_for_bit(names):
    Ds, y = chain()
    deep, plain = (getattr(up, name) for name in names)
    for steps in (1, 37):
        one = deep(Ds[:1], y, (0.1,), tol=None, max_steps=steps)
        alone = plain(Ds[0], y, 0.1, tol=None, max_steps=steps)
        assert_array_equal(one.xs[0], alone.x)
        assert one.gap == alone.gap and one.residual == alone.residual


def test_the_tolerance_of_a_chain_is_in_units_of_its_signal():
    """Between two powers of two, which the problem is scaled by."""
    Ds, y = chain()
    steps = [
        int(up.ml_ista(Ds, c * y, (c * 0.05, c * 0.05), tol=1e-3, max_steps=999).steps)
        for c in (1.0, 1.3, 1.6, 1.9)
    ]
    assert len(set(steps)) == 1 and 20 < steps[0] < 999


@pytest.mark.slow
def test_without_penalties_between_and_an_orthonormal_first_layer_it_is_ista_in_the_product():
    D2, y = chain()[0][1], chain(2, (16, 16))[1]
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    deep = up.ml_ista((Q, D2), y, (0.0, 0.1), tol=None, max_steps=50)
    alone = up.ista(Q @ D2, y, 0.1, tol=None, max_steps=50)
    assert_allclose(deep.xs[1], alone.x, atol=1e-13)
    assert_allclose(deep.gap, alone.gap, atol=1e-13)


@pytest.mark.slow
def test_one_step_from_zero_is_a_cnn_and_the_network_at_its_start_is_the_solver():
    Ds, y = chain()
    L = [float(ud.spectral_norm(D)) ** 2 for D in Ds]
    network = ur.networks.ml_lista(7, lam=0.05)
    params = network.init(None, Ds)
    codes = network.iterates(params, Ds, y)
    found = up.ml_ista(Ds, y, LAMS, tol=None, max_steps=7)
    assert_allclose(codes[1][-1], found.xs[1], atol=1e-14)
    theta = 0.05 / L[0], 0.05 / (L[0] * L[1])
    first = up.layered_thresholding([D / c for D, c in zip(Ds, L)], y, theta)
    for step, x in zip(codes, first.xs):
        assert_allclose(step[0], x, atol=1e-15)


@cache
def exact(tol=1e-9):
    Ds, y = chain()
    return up.ml_basis_pursuit(Ds, y, LAMS, tol=tol)


@pytest.mark.slow
def test_the_bias_of_ml_ista_falls_with_its_step_and_is_never_zero():
    Ds, y = chain()
    optimum = objective(Ds, y, LAMS, np.asarray(exact().xs[1]))
    excess = []
    for step in (1.0, 0.25, 1 / 16):
        found = up.ml_fista(Ds, y, LAMS, step=step, tol=1e-9, max_steps=50_000)
        assert found.converged
        excess.append(objective(Ds, y, LAMS, np.asarray(found.xs[1])) - optimum)
        # The gap bounds the bias, and does not exceed it by much.
        assert excess[-1] <= found.gap * np.sum(y**2) / 2 <= 4 * excess[-1]
    assert excess[0] > 1.5 * excess[1] > 1.5**2 * excess[2] > 1e-7
    # ISTA has the same fixed point.
    slow = up.ml_ista(Ds, y, LAMS, tol=1e-9)
    fast = up.ml_fista(Ds, y, LAMS, tol=1e-9)
    assert slow.converged and slow.steps > fast.steps
    assert_allclose(slow.xs[1], fast.xs[1], atol=1e-6)
    again = up.ml_ista(Ds, y, LAMS, tol=1e-8, start=slow.xs[1])
    assert again.steps == 0 and again.converged


def test_without_steps_the_codes_are_those_of_the_start():
    Ds, y = chain()
    start = np.random.default_rng(0).normal(size=20)
    found = up.ml_ista(Ds, y, LAMS, tol=None, max_steps=0, start=start)
    assert_array_equal(found.xs[1], start)
    assert_allclose(found.xs[0], Ds[1] @ start, atol=20 * EPS)
    assert found.residual == pytest.approx(np.linalg.norm(y - product(Ds) @ start))
    assert found.steps == 0 and not found.converged


@pytest.mark.slow
def test_the_gap_bounds_the_excess_of_any_code():
    Ds, y = chain()
    optimum = objective(Ds, y, LAMS, np.asarray(exact().xs[1]))
    for k in range(5):
        start = 10.0 ** (1 - k) * np.random.default_rng(k).normal(size=20)
        found = up.ml_ista(Ds, y, LAMS, tol=None, max_steps=0, start=start)
        assert_allclose(found.xs[1], start, atol=0)
        excess = objective(Ds, y, LAMS, start) - optimum
        assert excess <= found.gap * np.sum(y**2) / 2 * (1 + 1e-12)


@pytest.mark.slow
def test_gradients_of_a_fixed_number_of_steps_are_central_differences():
    Ds, y = chain()

    def loss(y, lam):
        return jnp.sum(up.ml_ista(Ds, y, (lam, 0.02), tol=None, max_steps=12).xs[1] ** 2)

    slopes = jax.grad(loss, (0, 1))(y, 0.01)
    v, h = np.random.default_rng(0).normal(size=len(y)), 1e-6
    along_y = (loss(y + h * v, 0.01) - loss(y - h * v, 0.01)) / (2 * h)
    along_lam = (loss(y, 0.01 + h) - loss(y, 0.01 - h)) / (2 * h)
    # The second difference, and rounding of the loss over h.
    assert_allclose(np.vdot(slopes[0], v), along_y, rtol=1e-6)
    assert_allclose(slopes[1], along_lam, rtol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", stored.CHAINS)
def test_the_exact_problem_agrees_with_a_generic_solver(name):
    seed, sizes, lams = stored.CHAINS[name]
    Ds, y = stored.chain(seed, *sizes)
    found = up.ml_basis_pursuit(Ds, y, lams, tol=1e-8)
    xs = arrays(found)
    assert found.converged and 0 <= found.gap <= 1e-8
    assert_in_chain(Ds, xs)
    value = objective(Ds, y, lams, xs[-1])
    # The gap, and that of the stored value.
    assert abs(value - OPTIMA["ml_basis_pursuit"][name]) <= 1e-8 * (1 + np.sum(y**2))
    assert found.residual == pytest.approx(np.linalg.norm(y - Ds[0] @ xs[0]), abs=1e-12)
    # A vertex: as many exact zeros as the optimality conditions leave.
    assert sum(np.count_nonzero(x == 0) for x in xs) >= sizes[-1] - sizes[0]


def test_the_multipliers_of_a_vertex_make_up_the_gradient_whatever_the_signs():
    Ds, y = chain()
    A, below = _products(Ds, y)
    v = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 16), np.repeat([1.0, 0.0], [6, 14])
    x, Us, _ = jax.jit(_vertex)(A, below, y, LAMS, v, tuple(map(np.zeros_like, v)))
    gradient = A.T @ (y - A @ x)
    assert_allclose(sum(B.T @ U for B, U in zip(below, Us)), gradient, atol=1e-12)


@pytest.mark.slow
def test_large_penalties_give_zero_at_once_and_a_step_limit_is_told():
    Ds, y = chain()
    most = np.abs(product(Ds).T @ y).max()
    for solve in (up.ml_ista, up.ml_fista, up.ml_basis_pursuit):
        limited = partial(solve, Ds, y, tol=1e-12, max_steps=0)
        found = limited((0.0, 1.0001 * most))
        assert not np.any(found.xs[1]) and found.steps == 0 and found.converged and found.gap == 0
        assert not limited((0.01, 0.01)).converged
    assert not up.ml_basis_pursuit(Ds, y, (0.1, 0.0), max_steps=500).converged


# Holistic pursuit.


def planted(seed, ratio, zeros, sizes=(30, 50, 30), sparsity=8):
    """A chain with Gaussian layers whose x_1 has zeros in known places, and noise of size 1."""
    rng = np.random.default_rng(seed)
    m, p, d = sizes
    D1 = stored.unit(rng.normal(size=(m, p)))
    D2 = stored.unit(rng.normal(size=(p, d)).T).T
    S, C = (rng.choice(n, k, replace=False) for n, k in ((d, sparsity), (p, zeros)))
    basis = np.linalg.svd(D2[np.ix_(C, S)])[2][zeros:].T
    x = np.zeros(d)
    x[S] = basis @ rng.normal(size=sparsity - zeros)
    x *= ratio / np.linalg.norm(D1 @ (D2 @ x))
    noise = rng.normal(size=m)
    return (D1, D2), D1 @ (D2 @ x) + noise / np.linalg.norm(noise), x, S, C


@pytest.mark.slow
def test_without_zeros_it_is_the_lasso_in_the_product_and_a_fit_to_its_support():
    Ds, y = chain()
    found = up.holistic(Ds, y, lam=0.2, zeros=0, tol=1e-10)
    alone = np.asarray(up.project(Ds, y, lam=0.2, tol=1e-12).xs[1])
    S = np.abs(alone) > 1e-4
    expected = np.linalg.lstsq(product(Ds)[:, S], y, rcond=None)[0]
    assert_allclose(np.asarray(found.xs[1])[S], expected, atol=1e-9)
    assert_array_equal(np.asarray(found.xs[1]) != 0, S)
    one = up.holistic(Ds[:1], y, lam=0.2, zeros=(), tol=1e-10)
    assert one.converged and len(one.xs) == 1


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(3))
def test_the_zeros_are_held_and_the_codes_are_those_of_the_oracle_on_the_supports_found(seed):
    Ds, y, _, _, _ = planted(seed, 300.0, 5)
    found = up.holistic(Ds, y, lam=0.1, zeros=5, sparsity=8, tol=1e-8)
    xs = arrays(found)
    assert found.converged and np.count_nonzero(xs[0] == 0) == 5
    assert np.count_nonzero(xs[1]) <= 8
    assert_in_chain(Ds, [np.where(xs[0] == 0, Ds[1] @ xs[1], xs[0]), xs[1]])
    assert np.abs((Ds[1] @ xs[1])[xs[0] == 0]).max() <= 1e-10
    oracle = ut.recover_on_supports(y, Ds, [np.flatnonzero(x) for x in xs])
    for x, other in zip(xs, oracle.xs):
        assert_allclose(x, other, atol=1e-8)


@pytest.mark.slow
def test_it_helps_where_the_zeros_are_found_and_not_in_noise():
    def errors(ratio):
        found = []
        for seed in range(12):
            Ds, y, x, _, _ = planted(seed, ratio, 6)
            holistic = up.holistic(Ds, y, lam=0.3, zeros=6, sparsity=8, tol=1e-6)
            projected = up.holistic(Ds, y, lam=0.3, zeros=0, sparsity=8, tol=1e-6)
            found.append([np.sum((np.asarray(f.xs[1]) - x) ** 2) for f in (holistic, projected)])
        return np.median(found, 0)

    clean, noisy = errors(3000.0), errors(10.0)
    assert clean[0] < 0.6 * clean[1]
    assert noisy[0] > 0.9 * noisy[1]


@pytest.mark.slow
def test_more_zeros_than_freedom_leave_nothing():
    Ds, y = chain()
    found = up.holistic(Ds, y, lam=0.01, zeros=16)
    assert all(np.abs(x).max() <= 1e-12 for x in found.xs)


# Local formulations.


@cache
def bank(name):
    seed, n_atoms, n_channels, kernel, signal, boundary = stored.BANKS[name]
    filters, A, y, positions = stored.bank(seed, n_atoms, n_channels, kernel, signal, boundary)
    D = ud.Conv(filters, signal, boundary=boundary)
    patches = stored.patches(n_channels, kernel, signal)
    stripes = stored.stripes(n_atoms, kernel, positions, boundary)
    return D, A, y, patches, stripes


def fullest(x, stripes):
    return max(np.abs(x[i]).sum() for i in stripes)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", stored.BANKS)
def test_patches_and_stripes_are_the_windows_of_their_definition(name):
    D, A, y, patches, stripes = bank(name)
    x = np.random.default_rng(0).normal(size=A.shape[1])

    def windows(D, y, x):
        return ud.dense(D), D.patches(y), D.stripes(x)

    matrix, of_y, of_x = map(np.asarray, jax.jit(windows)(D, y, x))
    assert_allclose(matrix, A, atol=0)
    assert_array_equal(np.sort(of_y, 1), np.sort([y[i] for i in patches], 1))
    assert_allclose(np.abs(of_x).sum(1), [np.abs(x[i]).sum() for i in stripes])


@pytest.mark.few(1)
@pytest.mark.parametrize("name", stored.BANKS)
def test_local_error_agrees_with_a_generic_solver(name):
    D, A, y, patches, _ = bank(name)
    radius = stored.RADII[name]
    found = up.local_error(D, y, radius, tol=1e-7)
    x, best = np.asarray(found.x), OPTIMA["local_error"][name]
    assert found.converged and found.gap <= 1e-7 and found.violation <= 1e-7
    assert np.abs(x).sum() == pytest.approx(best, rel=1e-6)
    worst = [max(np.linalg.norm(r[i]) for i in patches) for r in (y - A @ x, y)]
    assert worst[0] <= radius + 1e-7 * worst[1] * (1 + 1e-9)
    assert found.residual == pytest.approx(np.linalg.norm(y - A @ x))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", stored.BANKS)
def test_local_sparsity_agrees_with_a_generic_solver(name):
    D, A, y, _, stripes = bank(name)
    found = up.local_sparsity(D, y, stored.LAM, tol=1e-8)
    x, best = np.asarray(found.x), OPTIMA["local_sparsity"][name]
    value = np.sum((y - A @ x) ** 2) / 2 + stored.LAM * fullest(x, stripes)
    assert found.converged and 0 <= found.gap <= 1e-8
    assert abs(value - best) <= 1e-8 * (1 + np.sum(y**2))


@pytest.mark.slow
def test_one_patch_and_one_stripe_are_the_global_problems():
    D, A, y, _, _ = bank("one patch")
    found = up.local_error(D, y, 0.2, tol=1e-9)
    x = np.asarray(found.x)
    r = y - A @ x
    assert np.linalg.norm(r) == pytest.approx(0.2, rel=1e-7)
    # The LASSO with the multiplier as its penalty: r is in proportion to a dual point.
    lam = np.abs(A.T @ r).max()
    assert found.converged and up.duality_gap(A, y, x, lam) <= 1e-7
    sparse = up.local_sparsity(D, y, 0.1, tol=1e-10)
    alone = up.fista(A, y, 0.1, tol=1e-12)
    assert_allclose(sparse.x, alone.x, atol=1e-4)  # the root of the gap


@pytest.mark.slow
def test_local_pursuits_commute_with_shifts_on_a_circle():
    D, _, y, _, _ = bank("circular")
    for solve in (partial(up.local_error, radius=0.15), partial(up.local_sparsity, lam=0.1)):
        still = D.unflatten_code(solve(D, y, tol=1e-9).x)
        moved = D.unflatten_code(solve(D, np.roll(y, 5), tol=1e-9).x)
        assert_allclose(np.roll(still, 5, axis=1), moved, atol=1e-3)  # the root of the gap


@pytest.mark.slow
def test_local_pursuits_at_their_ends():
    D, A, y, _, _ = bank("circular")
    for found in (up.local_error(D, y, 100.0), up.local_sparsity(D, y, 100.0)):
        assert not np.any(found.x) and found.steps == 0 and found.converged and found.gap == 0
    warm = up.local_error(D, y, 100.0, start=np.ones(D.shape[1]))
    assert not np.any(warm.x) and warm.gap == 0 and warm.converged and warm.steps < 1000
    valid, _, z, _, _ = bank("valid")
    tall = ud.Conv(np.asarray(valid.filters)[:1], valid.signal_shape)
    nowhere = up.local_error(tall, np.random.default_rng(0).normal(size=20), 1e-3, max_steps=300)
    assert not nowhere.converged and np.isfinite(nowhere.x).all() and nowhere.violation > 1e-2
    exact = up.local_error(D, y, 0.0, tol=1e-7)
    least = np.abs(np.asarray(up.basis_pursuit(A, y).x)).sum()
    assert exact.converged and np.abs(exact.x).sum() == pytest.approx(least, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("solve", [up.local_error, up.local_sparsity])
def test_local_pursuits_under_jit_vmap_and_in_float32(solve):
    D, _, y, _, _ = bank("valid")
    Y = np.stack([y, 0 * y, y[::-1], np.full_like(y, np.nan)])
    run = partial(solve, tol=1e-4)
    batch = jax.jit(jax.vmap(run, (None, 0, None)))(D, Y, 0.2)
    for i in range(3):
        alone = run(D, Y[i], 0.2)
        assert alone.converged and batch.steps[i] == alone.steps
        assert_allclose(batch.x[i], alone.x, atol=1e-9)
    assert not batch.converged[3]
    single = run(D.astype(np.float32), np.float32(y), np.float32(0.2))
    assert single.converged and single.x.dtype == single.gap.dtype == np.float32
    again = run(D, y, 0.2, start=run(D, y, 0.2).x)
    assert again.converged


@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.1, 1.0, 3.0, 100.0])
def test_the_shrinkage_of_the_fullest_rows_is_a_proximal_map(lam):
    """Against every direction, and by the conditions on the thresholds."""
    rows = np.random.default_rng(0).normal(size=(6, 5))
    found = np.asarray(up._splitting.lower_the_fullest(jnp.asarray(rows), jnp.asarray(lam)))

    def F(p):
        return np.sum((p - rows) ** 2) / 2 + lam * np.abs(p).sum(1).max()

    for k, h in itertools.product(range(50), (1e-1, 1e-3, 1e-5)):
        assert F(found) <= F(found + h * np.random.default_rng(k).normal(size=rows.shape))
    taken = np.abs(rows - found).max(1)
    assert taken.sum() == pytest.approx(lam) or not found.any()


@pytest.mark.slow
def test_one_penalty_per_filter():
    y = chain()[1]
    D1 = ud.Conv(np.random.default_rng(0).normal(size=(2, 1, 3)), 12, boundary="circular")
    D2 = stored.unit(np.random.default_rng(1).normal(size=(24, 30)))
    each, repeated = (
        up.ml_ista((D1, D2), y, (lam, 0.1), tol=None, max_steps=9)
        for lam in (np.array([0.1, 0.3]), np.repeat([0.1, 0.3], 12))
    )
    assert_array_equal(each.xs[1], repeated.xs[1])


def test_the_entry_that_becomes_zero_is_the_smallest_by_magnitude_in_its_layer():
    from unrolled.pursuit._multilayer import _one_more

    zeros = np.array([True, False, False]), np.array([False, False])
    codes = np.array([0.0, -4.0, 2.0]), np.array([-9.0, 6.0])
    more = _one_more(zeros, codes, (2, 1))  # shares 1 and .5, and 1 and .67
    assert [z.tolist() for z in more] == [[True, False, True], [False, False]]
    full = _one_more(more, codes, (2, 1))
    assert [z.tolist() for z in full] == [[True, False, True], [False, True]]
