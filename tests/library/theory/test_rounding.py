"""The bound on rounding, attacked by sums whose roundings add up, in every order that XLA picks."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrolled as ur
from unrolled.theory import _rounding, _signals, _supports

RNG = np.random.default_rng(0)
PASSING = (1.0, 1.0)
LAYER = ur.alista(12, support=PASSING)
ONE, BATCH = jax.jit(LAYER.iterates), jax.jit(jax.vmap(LAYER.iterates, (None, None, 0)))


def unit(A):
    return A / np.linalg.norm(A, axis=0)


def nonnegative(rng, m, d):
    """A nonnegative D and W = D: all roundings of a product can have the same sign."""
    D = unit(rng.random((m, d)))
    return D, D


def gaussian(rng, m, d):
    """A Gaussian D of few atoms: the closed form contracts so fast that only the floor is left."""
    D = unit(rng.standard_normal((m, d)))
    V = np.asarray(ur.theory.frobenius_weights(D))
    return D, V / np.sum(V * D, 0)


def assert_inside(D, W, X, dtype):
    """No run of a proved code is outside of its bound or off its support; returns the proofs."""
    D, W, X = (np.asarray(v, dtype) for v in (D, W, X))
    params = ur.analytic.from_sample(LAYER, D, X, W=W)
    proof = ur.theory.certify_signals(LAYER, params, D, X)
    exact = X.astype(float) @ D.T.astype(float)
    for Y in (exact.astype(dtype), X @ D.T):  # rounded, and computed
        single = np.stack([ONE(params, D, y) for y in Y])
        batch = np.asarray(BATCH(params, D, np.repeat(Y, 16, axis=0)))[::16]
        for Z in (batch.astype(float), single.astype(float)):
            errors = np.abs(Z - X[:, None]).max(2)
            assert (errors <= proof.errors[:, 1:])[proof.proved].all()
            assert not (Z * (X[:, None] == 0))[proof.proved].any()
    return proof


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [nonnegative, gaussian])
@pytest.mark.parametrize(
    "m, d",
    [(64, 6), (1000, 24), *(pytest.param(m, 24, marks=pytest.mark.slow) for m in (4096, 60_000))],
)
def test_sums_of_many_terms_stay_inside_of_the_bound(kind, m, d, dtype):
    """`certify_signals` once proved an error of 1e-7 where float32 ends at 650,000."""
    D, W = kind(np.random.default_rng(3), m, d)
    X = np.eye(d)[np.arange(6) % d] * np.array([0.3, 0.5723, 1, 1.7, 1e-3, 300])[:, None]
    for x in X:  # a schedule of its own: no other code adds slack
        assert assert_inside(D, W, x[None], dtype).proved.all()


def test_products_are_complete_before_they_are_added():
    """The assumption of the bound: sums that began with x = 1 would lose all small terms."""
    m, d, u = 256, 24, 2.0**-25
    W, r, x = np.full((m, d), 1, "f4"), np.full(m, u, "f4"), np.ones(d, "f4")
    for add in (lambda W, r, x: x + r @ W, lambda W, r, x: x - W.T @ r):
        for n in (1, 3, 16):
            found = jax.jit(jax.vmap(add, (None, 0, 0)))(W, np.tile(r, (n, 1)), np.tile(x, (n, 1)))
            assert np.abs(np.asarray(found, float) - 1).min() == m * u
        assert np.abs(np.asarray(jax.jit(add)(W, r, x), float) - 1).min() == m * u


@pytest.mark.parametrize("power", [0, 20, -200])
def test_the_largest_norm_of_an_atom_is_rounded_up_at_any_scale(power):
    """Of a matrix, on the host, and of a structured dictionary, by a program."""
    A = np.ldexp(RNG.standard_normal((5, 7)), power)
    exact = np.ldexp(np.linalg.norm(np.ldexp(A, -power), axis=0).max(), power)
    for D in (A, ur.dictionaries.Composed(A, np.eye(7))):
        ratio = _rounding.Rounding.of(A, D, np.float64).atom / exact
        assert 1 <= ratio < _rounding.UP * (1 + 8 * np.finfo(float).eps)


@pytest.mark.parametrize("s", [0, 3])
def test_the_rounding_of_products_is_at_most_the_bound(s):
    """In float32, next to float64; with atoms for which the roundings of a sum add up."""
    rng, u = np.random.default_rng(1), 2.0**-24
    for m in (64, 1000):
        D, W = (np.asarray(A, np.float32) for A in nonnegative(rng, m, 24))
        x = np.zeros(24, np.float32)
        x[:s] = rng.random(s)
        y = np.float32(D[:, 5] + D @ x)
        r = jax.jit(lambda D, x, y: y - D @ x)(D, x, y)
        g = np.asarray(jax.jit(lambda r, W: r @ W)(r, W), float)
        exact = (y.astype(float) - D.astype(float) @ x) @ W
        size, n = jnp.sum(jnp.abs(x)), jnp.float32(s)
        nu = float(_rounding.residual_error(jnp.asarray(W), jnp.asarray(D), y, r, size, n))
        assert (
            0
            < np.abs(g - exact).max()
            <= nu
            <= 3 * (m + 20) * u * np.linalg.norm(r) * 1.01
            + (2 * (s + 10) * u * (1 + np.abs(x).sum()))
        )


def test_terms_of_the_bound():
    """gamma_k = k u / (1 - k u), and at a lower precision the factors round first."""
    u = 2.0**-24
    assert _rounding.sum_error(1000, u) == pytest.approx(1000 * u / (1 - 1000 * u))
    assert np.isinf(_rounding.sum_error(2.0**24, u))
    D = np.eye(4, 8, dtype=np.float32)
    plain, tf32, half = (
        _rounding.Rounding.of(jnp.asarray(A), jnp.asarray(A), A.dtype, precision)
        for A, precision in (
            (D, "highest"),
            (D, "tensorfloat32"),
            (D.astype(jnp.bfloat16), "highest"),
        )
    )
    assert plain.relative == pytest.approx((4 + 5) * u, rel=1e-5)
    assert tf32.relative == pytest.approx(2 * 2.0**-11, rel=0.01)
    assert half.unit == 2.0**-8 and half.factors == 0
    # The error of the code vanishes with the code; the floor is of 2 s terms.
    assert plain.of_code(3) == pytest.approx(2 * (3 + 2) * u, rel=1e-5)
    assert not plain.lost(1, 1, 1, 3, 1e-3) > 1e-33 and np.isinf(plain.lost(1, 1, 1, 3, 1e38))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alista_rt_takes_no_wrong_entry_at_the_least_ratio(dtype):
    """With c = c(S) to one unit in the last place, and the code for which c(S) is attained."""
    rng, wrong, proved = np.random.default_rng(2), 0, 0
    D, _ = (np.asarray(A, dtype) for A in nonnegative(rng, 60, 8))
    D = np.asarray(unit(D * np.sign(rng.standard_normal(D.shape))), dtype)
    supports = np.argsort(rng.random((16, 8)), 1)[:, :2]
    proof = ur.theory.certify_supports(D, D, supports)
    B = D.T.astype(float) @ D
    layer = ur.layers.alista_rt(8)
    run = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    for S, ratio in zip(supports, proof.ratio):
        A = B[np.ix_(S, S)]
        Q = B[:, S] @ np.linalg.inv(A)
        Q[S] = 0
        x = np.zeros((2, 8))
        x[:, S] = np.linalg.solve(A, np.sign(Q[np.abs(Q).sum(1).argmax()])) * [[1], [-0.3]]
        c = np.asarray(ratio).astype(dtype)
        c = c if c >= ratio else np.nextafter(c, np.asarray(9, dtype))
        params = layer.init(None, D)
        shared = params.shared._replace(ratio=jnp.asarray(c))
        shared = shared._replace(analytic=shared.analytic._replace(W=jnp.asarray(D)))
        x = x.astype(dtype).astype(float)
        Z = np.asarray(run(params._replace(shared=shared), D, (x @ D.T).astype(dtype)))
        wrong += np.any(Z[:, :, x[0] == 0])
        proved += np.all(Z[:, -1, S] != 0)
    assert wrong == 0 and proved >= 14


def test_the_ratio_of_a_support_bounds_the_rounding_of_its_inverse():
    """Products of integers are exact, and the inverse of the nearly singular B_SS is not."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        a = rng.integers(1, 2**12, (2, 3))
        A = np.array([a[0], a[1], a[0] * 2**12 + a[1] + [0, 0, 1]])
        B = np.concatenate([A, rng.integers(-9, 9, (2, 3))]).astype(float)
        ((proved, _),) = _supports._of_supports(
            np.concatenate([B, np.zeros((5, 2))], 1).T, np.eye(5), np.arange(3)[None], 1, 0.0
        ).T
        M = [[Fraction(int(v)) for v in row] for row in B.T[:, :3]]
        exact = max(sum(map(abs, solved(M, [Fraction(int(v)) for v in row]))) for row in B[3:])
        assert float(exact) <= proved <= (1 + 1e-3) * float(exact)


def solved(M, b):
    """The solution q of M q = b in fractions, by Cramer's rule."""

    def det(rows):
        (a, b, c), (d, e, f), (g, h, i) = rows
        return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

    columns = list(zip(*M))
    whole = det(M)
    return [
        det(list(zip(*[b if k == j else c for k, c in enumerate(columns)]))) / whole
        for j in range(3)
    ]


def test_supports_are_proved_if_the_ratio_and_kappa_are_below():
    """kappa = 1.69 diverges although c(S) < 1; ratios in (.95, 1) need a layer with such a c."""
    of = ur.theory.Supports(np.array([0.5, 0.97, 0.5]), np.array([0.8, 0.8, 1.69]), 3)
    assert of.proved().tolist() == [True, False, False]
    assert of.proved(0.98).tolist() == [True, True, False]
    assert repr(of).startswith("Supports: all codes on 1 of 3 supports of 3 atoms at c = 0.95")
    assert np.isfinite(of.bound(9)).tolist() == [True, False, False]
    singular = ur.theory.Supports(np.array([np.inf, 0.5]), np.array([np.inf, 1.0]), 3)
    assert singular.bound(9).tolist() == [np.inf] * 2  # without a warning
    with pytest.raises(ValueError, match="c must be in"):
        of.proved(1.5)


@pytest.mark.parametrize("activation", [ur.activations.leaky_relu(1e-3), ur.activations.silu])
def test_a_schedule_has_all_steps_if_every_code_fails_early(activation):
    D, _ = gaussian(np.random.default_rng(4), 30, 60)
    layer = ur.alista(9, support=PASSING, activation=activation)
    X = np.eye(60)[:4]
    with pytest.warns(ur.analytic.HypothesisWarning, match="4 of 4 codes are not proved"):
        params = ur.analytic.from_sample(layer, D, X)
    assert params.steps.theta.shape == (9,) and np.isfinite(params.steps.theta).all()
    assert np.isfinite(layer.apply(params, D, D[:, 0])).all()


SCALED_ELU = ur.activations.elu(1e-3)


def test_with_a_tail_entries_off_the_support_stay_below_the_errors():
    """A proof says that no argument off the support exceeds its threshold, not that it is 0."""
    rng = np.random.default_rng(5)
    D, W = gaussian(rng, 60, 90)
    layer = ur.alista(12, support=PASSING, activation=SCALED_ELU)
    X = np.eye(90)[:3] + 0.7 * np.eye(90)[3:6]
    params = ur.analytic.from_sample(layer, D, X, W=W)
    proof = ur.theory.certify_signals(layer, params, D, X)
    Z = np.asarray(jax.jit(jax.vmap(layer.iterates, (None, None, 0)))(params, D, X @ D.T))
    assert proof.proved.all() and np.any(Z[:, -1] * (X == 0))
    assert (np.abs(Z - X[:, None]).max(2) <= proof.errors[:, 1:]).all()


def drawn(rng, norm, n, m, W, delta):
    """Noise at its bound, half of it along one w_i."""
    w = W.T[rng.integers(W.shape[1], size=n)]
    E = np.where(np.arange(n)[:, None] % 2 == 0, rng.standard_normal((n, m)), w)
    if norm == "gaussian":
        return delta * rng.standard_normal((n, m))
    if norm == "linf":
        return delta * np.sign(E)
    if norm == "l1":
        E = np.where(np.abs(E) == np.abs(E).max(1, keepdims=True), E, 0)
    return delta * E / np.linalg.norm(E, 1 if norm == "l1" else 2, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize(
    "norm, delta", [("l1", 0.02), ("l2", 0.02), ("linf", 2e-3), ("gaussian", 2e-3)]
)
def test_no_noise_of_a_norm_leaves_the_bound(norm, delta, block):
    rng = np.random.default_rng(6)
    A, V = gaussian(rng, 60, 90)
    D, W = (A, V) if block == 1 else (ur.dictionaries.Joint(A, 2), ur.dictionaries.Joint(V, 2))
    x = np.zeros((1, 90))
    x[0, [4, 50]] = 1.0, -0.8
    X = x if block == 1 else (x[:, :, None] * np.array([0.6, 0.8])).reshape(1, -1)
    options = dict(noise=delta, noise_norm=norm)
    params = ur.analytic.from_sample(LAYER, D, X, W=W, **options)
    proof = ur.theory.certify_signals(LAYER, params, D, X, **options)
    assert proof.proved.all() and proof.rounding == "proved"
    matrix, weights = (np.asarray(ur.dictionaries.dense(B)) for B in (D, W))
    Y = X @ matrix.T + drawn(rng, norm, 200, len(matrix), weights, delta)
    Z = np.asarray(BATCH(params, D, Y))
    sizes = np.linalg.norm((Z - X).reshape(*Z.shape[:2], 90, block), axis=3).max(2)
    assert (sizes <= proof.errors[0, 1:]).all()
    assert not Z.reshape(*Z.shape[:2], 90, block)[:, :, x[0] == 0].any()
    # The bound is not loose: the noise moves the code by a good part of it.
    assert sizes[:, -1].max() > (0.1 if norm == "gaussian" else 0.25) * proof.errors[0, -1]


def test_the_least_thresholds_are_returned_and_suffice():
    rng = np.random.default_rng(7)
    D, W = (A.astype(np.float32) for A in gaussian(rng, 60, 90))
    X = np.zeros((5, 90), np.float32)
    np.put_along_axis(X, np.argsort(rng.random(X.shape), 1)[:, :2], rng.uniform(0.5, 1, (5, 2)), 1)
    params = LAYER.from_theory(W, np.ones(12, np.float32))
    own = ur.theory.certify_signals(LAYER, params, D, X, own=True)
    assert own.theta.shape == (5, 12) and own.proved.all()
    assert (own.theta == own.theta.astype(np.float32)).all()
    for i, theta in enumerate(own.theta.astype(np.float32)):
        exact = LAYER.from_theory(W, theta)
        given = ur.theory.certify_signals(LAYER, exact, D, X)
        assert given.theta is None and given.proved[i]
        np.testing.assert_allclose(given.errors[i], own.errors[i], rtol=1e-12)
        lower = LAYER.from_theory(W, theta * np.float32(0.999))
        assert ur.theory.certify_signals(LAYER, lower, D, X).failed_at[i] == 0


def test_functions_have_an_estimated_rounding_and_no_proof():
    D, W = gaussian(np.random.default_rng(8), 20, 30)
    F = ur.dictionaries.from_functions(lambda x: D @ x, lambda r: r @ D, D.shape)
    X = np.eye(30)[:2]
    params = LAYER.from_theory(W, np.ones(12))
    found, plain = (
        ur.theory.certify_signals(LAYER, params, A, X, own=True) for A in (F, jnp.asarray(D))
    )
    assert (found.rounding, plain.rounding) == ("estimated", "proved")
    assert plain.proved.all() and not found.proved.any() and (found.failed_at < 0).all()
    assert "2 fail at no step, by estimated rounding" in repr(found)


FAULTS = {
    "a norm": (dict(noise_norm="l3"), "unknown noise_norm 'l3'"),
    "a confidence": (dict(noise_norm="gaussian", confidence=1.0), "confidence must be in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_noise_is_refused(fault):
    D, _ = gaussian(np.random.default_rng(9), 8, 12)
    options, words = FAULTS[fault]
    params = LAYER.init(None, D)
    with pytest.raises(ValueError, match=words):
        ur.theory.certify_signals(LAYER, params, D, np.eye(12), noise=0.1, **options)


def test_bounds_on_moduli_are_rounded_up():
    D = ur.dictionaries.Complex.of(np.eye(200, dtype="complex64"))
    z = np.random.default_rng(4).normal(size=(200, 2)).astype(np.float32)
    X = np.diag(z[:, 0] + 1j * z[:, 1])
    errors = ur.theory.certify_signals(LAYER, LAYER.init(None, D), D, X).errors[:, 0]
    for (a, b), error in zip(z, errors):
        assert Fraction(float(a)) ** 2 + Fraction(float(b)) ** 2 <= Fraction(float(error)) ** 2


def test_stored_thresholds_are_rounded_up():
    theta = np.array([0.1, 0.5, 1e39, 0.0])
    stored = _signals.stored_up(theta, np.float32)
    assert (stored >= theta).all() and np.isinf(stored[2]) and stored[1] == 0.5 and stored[3] == 0
