"""Proofs of single codes and of supports, beside runs of the layers."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import unrolled as ur
from unrolled.analytic import _sample
from unrolled.theory import _signals

M, N, S, K = 40, 80, 3, 12
RNG = np.random.default_rng(0)
D = RNG.standard_normal((M, N))
D /= np.linalg.norm(D, axis=0)
W = np.linalg.solve(D @ D.T, D)
W /= np.sum(W * D, 0)
PASSING = (1.0, 1.0)


def codes(rng, n, s=S):
    """Codes with s Gaussian nonzeros."""
    X = np.zeros((n, N))
    np.put_along_axis(X, np.argsort(rng.random((n, N)), 1)[:, :s], rng.standard_normal((n, s)), 1)
    return X


def schedule(layer, X, **options):
    return ur.analytic.from_sample(layer, D.astype(options.pop("dtype", float)), X, **options)


def attacked(rng, x, n):
    """The code with other signs; every third set of signs aligns the products of one atom."""
    signs = rng.choice([-1.0, 1.0], (n, N))
    B = W.T @ D
    signs[::3] = np.where(B[rng.integers(N, size=len(signs[::3]))] < 0, -1, 1)
    return np.abs(x) * signs


LAYERS = {
    "soft": dict(),
    "all pass": dict(support=PASSING),
    "some pass": dict(support=(0.02, 0.03)),
    "a tail": dict(support=PASSING, activation=ur.activations.scale(ur.activations.silu, 1e4)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_no_run_of_a_proved_code_is_outside_of_its_bound(name, dtype):
    rng = np.random.default_rng(1)
    layer = ur.alista(K, **LAYERS[name])
    run = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    for noise in (0.0, 1e-3):
        x = codes(rng, 1).astype(dtype)
        params = ur.analytic.from_sample(
            layer, D.astype(dtype), x, slack=1.0, noise=noise, W=W.astype(dtype)
        )
        proof = ur.theory.certify_signals(layer, params, D.astype(dtype), x, noise=noise)
        assert proof.proved.all() and proof.failed_at.tolist() == [-1]
        X = attacked(rng, x, 30).astype(dtype)
        e = rng.standard_normal((30, M))
        e *= noise / np.abs(e).sum(1, keepdims=True)
        Z = np.asarray(run(params, D.astype(dtype), (X.astype(float) @ D.T + e).astype(dtype)))
        errors = np.abs(Z - X[:, None].astype(float)).max(2)
        assert (errors <= proof.errors[0, 1:]).all()
        # One step is tight where the signs align.
        assert errors[:, 0].max() > 0.7 * proof.errors[0, 1]
        if "activation" not in LAYERS[name]:
            assert not Z[:, :, x[0] == 0].any()


def test_a_step_reaches_its_bound_with_the_signs_that_align():
    x = np.zeros(N)
    x[[3, 20, 50]] = 1.0, 0.5, 0.8
    layer = ur.alista(1)
    params = ur.analytic.from_sample(layer, D, x[None], W=W)
    bound = ur.theory.certify_signals(layer, params, D, x[None]).errors[0, 1]
    B = W.T @ D
    worst = 0.0
    for i in (3, 20, 50):
        for sign in (-1, 1):
            z = np.where(B[i] < 0, -1, 1) * x
            z[i] = sign * x[i]
            worst = max(worst, np.abs(layer.apply(params, D, D @ z) - z).max())
    assert worst == pytest.approx(bound, rel=1e-12)


def test_what_the_worst_case_certifies_is_proved_of_every_code():
    H = ur.dictionaries.identity_hadamard(64).astype(float)
    layer, rng = ur.lista_cp(15), np.random.default_rng(2)
    params = ur.analytic.lista_cp(H, depth=15, sparsity=3, bound=2.0, noise=1e-3, W=H)
    X = np.zeros((200, 128))
    places = np.argsort(rng.random(X.shape), 1)[:, :3]
    np.put_along_axis(X, places, rng.uniform(-2, 2, (200, 3)), 1)
    proof = ur.theory.certify_signals(layer, params, H, X, noise=1e-3)
    worst = ur.theory.certify(layer, params, H, sparsity=3, bound=2.0, noise=1e-3)
    assert worst.holds and (proof.failed_at < 0).all()
    assert (proof.errors <= worst.error).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_the_worst_case_certifies_is_proved_of_every_support(seed):
    rng = np.random.default_rng(seed)
    H = np.asarray(ur.dictionaries.identity_hadamard(64), float)
    H = H + 0.02 * rng.standard_normal(H.shape) / 8
    H /= np.linalg.norm(H, axis=0)
    V = np.asarray(ur.theory.frobenius_weights(H))
    mu = np.abs(V.T @ H - np.eye(128)).max()
    s = ur.theory.max_sparsity(mu, 128)
    assert s >= 3
    supports = np.argsort(rng.random((300, 128)), 1)[:, :s]
    proof = ur.theory.certify_supports(V, H, supports)
    # By the Neumann series of B_SS.
    assert (proof.ratio <= s * mu / (1 - (s - 1) * mu) * (1 + 1e-12)).all()
    assert (proof.contraction <= (s - 1) * mu * (1 + 1e-12)).all() and proof.ratio.max() < 1
    X = np.zeros((300, 128))
    np.put_along_axis(X, supports, rng.uniform(-1, 1, supports.shape), 1)
    layer = ur.lista_cp(15)
    params = ur.analytic.lista_cp(H, depth=15, sparsity=s, bound=1.0, W=V)
    worst = ur.theory.certify(layer, params, H, sparsity=s, bound=1.0)
    of_codes = ur.theory.certify_signals(layer, params, H, X)
    assert worst.holds and (of_codes.failed_at < 0).all()
    assert (of_codes.errors <= worst.error).all()


def test_a_threshold_below_what_a_step_needs_is_named():
    layer = ur.alista(5, support=PASSING)
    X = codes(np.random.default_rng(3), 4)
    params = schedule(layer, X, slack=1.0)
    low = params.steps._replace(theta=params.steps.theta * np.array([1, 1, 0.2, 1, 1]))
    proof = ur.theory.certify_signals(layer, params._replace(steps=low), D, X)
    assert 2 in proof.failed_at and set(proof.failed_at) <= {2, -1}
    failed = proof.failed_at == 2
    assert not proof.proved[failed].any() and (proof.support_from[failed] == -1).all()
    assert np.isinf(proof.errors[failed, 3:]).all() and np.isfinite(proof.errors[failed, :3]).all()


def test_own_thresholds_prove_codes_that_one_schedule_does_not():
    layer, rng = ur.alista(K, support=PASSING), np.random.default_rng(4)
    X = codes(rng, 300)
    params = schedule(layer, codes(rng, 30), slack=1.0)
    common, own = (ur.theory.certify_signals(layer, params, D, X, own=own) for own in (False, True))
    assert own.proved.all() and 0 < common.proved.sum() < 300


def test_a_code_whose_bounds_stall_is_not_proved_though_no_step_fails():
    X = codes(np.random.default_rng(11), 20, 8)
    proof = ur.theory.certify_signals(ur.alista(K), start(K), D, X, own=True)
    stalled = (proof.failed_at < 0) & (proof.errors[:, -1] > 0.1)
    assert stalled.sum() > 10 and not proof.proved[stalled].any()


def test_the_support_is_exact_from_the_step_that_is_named():
    layer, rng = ur.alista(K, support=PASSING), np.random.default_rng(5)
    X = codes(rng, 50)
    params = schedule(layer, X)
    proof = ur.theory.certify_signals(layer, params, D, X)
    codes_of_steps = np.asarray(jax.jit(jax.vmap(partial(layer.iterates, params, D)))(X @ D.T))
    for x, path, first in zip(X, codes_of_steps, proof.support_from):
        assert first > 0
        assert all(((z != 0) == (x != 0)).all() for z in path[first - 1 :])


def test_what_the_first_layer_of_a_chain_leaves_is_noise_for_the_second():
    rng = np.random.default_rng(6)
    D2 = np.linalg.qr(rng.standard_normal((N, 2 * N // 2)))[0]
    X2 = np.zeros((6, N))
    X2[np.arange(6), rng.integers(N, size=6)] = 1.0
    X1 = np.where(np.abs(X2 @ D2.T) > np.sort(np.abs(X2 @ D2.T))[:, -3:-2], X2 @ D2.T, 0)
    layers = ur.alista(K, support=PASSING), ur.alista(K, support=PASSING)
    params = schedule(layers[0], X1, W=W), ur.analytic.from_sample(layers[1], D2, X2, noise=1.0)
    network = ur.dsc(layers)
    first, second = ur.theory.certify_signals(network, params, (D, D2), (X1, X2))
    alone = ur.theory.certify_signals(layers[0], params[0], D, X1)
    assert (first.errors == alone.errors).all()
    clean = ur.theory.certify_signals(layers[1], params[1], D2, X2)
    assert (second.errors >= clean.errors).all() and (second.errors > clean.errors).any()


@pytest.mark.parametrize("support", [None, PASSING, (0.02, 0.03)])
def test_what_is_proved_of_a_code_is_the_same_beside_a_dense_one(support):
    # Codes of few nonzeros are carried on their supports alone, others by all entries.
    layer, rng = ur.alista(K, support=support), np.random.default_rng(12)
    X, dense = codes(rng, 40, 2), rng.standard_normal((1, N))
    X *= np.geomspace(0.2, 1, 40)[:, None]
    params = ur.analytic.from_sample(layer, D, X, noise=1e-3, W=0.9 * W)
    theta = np.asarray(params.steps.theta)[:, None] * rng.uniform(0.9, 1.1, N)
    holds: set[bool] = set()
    for steps in (params.steps, params.steps._replace(theta=theta)):
        p = params._replace(steps=steps)
        alone = ur.theory.certify_signals(layer, p, D, X, noise=1e-3)
        mixed = ur.theory.certify_signals(layer, p, D, np.concatenate([X, dense]), noise=1e-3)
        assert np.allclose(alone.errors, mixed.errors[:-1], rtol=1e-12)
        for name in ("proved", "failed_at", "support_from"):
            assert (getattr(alone, name) == getattr(mixed, name)[:-1]).all()
        holds |= set((alone.failed_at < 0).tolist())
    assert holds == {True, False}


def test_scaled_codes_have_scaled_bounds():
    layer = ur.alista(K)
    X = codes(np.random.default_rng(7), 5)
    params = schedule(layer, X)
    scaled = params._replace(steps=params.steps._replace(theta=params.steps.theta * 2.0**40))
    one, other = (
        ur.theory.certify_signals(layer, p, D, c) for p, c in ((params, X), (scaled, X * 2.0**40))
    )
    assert np.allclose(one.errors * 2.0**40, other.errors, rtol=1e-9)
    assert (one.failed_at == other.failed_at).all()


def test_a_schedule_proves_its_sample_and_warns_where_it_stalls():
    layer = ur.alista(K, support=PASSING)
    X = codes(np.random.default_rng(8), 40)
    params = schedule(layer, X)
    assert ur.theory.certify_signals(layer, params, D, X).proved.all()
    loud = 2.0 ** np.arange(5)[:, None] * codes(np.random.default_rng(9), 5, 30)
    with pytest.warns(ur.analytic.HypothesisWarning, match="not proved in 12 .* i = 4, 3, "):
        schedule(layer, loud)


def test_a_schedule_may_leave_out_the_codes_that_hold_it_back():
    layer, rng = ur.alista(K, support=PASSING), np.random.default_rng(13)
    X, dense = codes(rng, 60), codes(rng, 2, 20)
    params = schedule(layer, np.concatenate([X, dense]), leave_out=0.05)
    assert ur.theory.certify_signals(layer, params, D, X).proved.sum() >= 59  # 3 of 62 left out
    with pytest.warns(ur.analytic.HypothesisWarning, match="a larger leave_out than 0.02"):
        schedule(layer, np.concatenate([X, dense]), leave_out=0.02)


def test_a_large_sample_leaves_out_several_codes_at_once(monkeypatch):
    monkeypatch.setattr(_sample, "_FIRST", 10)
    layer, rng = ur.alista(K, support=PASSING), np.random.default_rng(13)
    X, dense = codes(rng, 20), codes(rng, 2, 20)
    params = schedule(layer, np.concatenate([X, dense]), leave_out=0.2)
    assert ur.theory.certify_signals(layer, params, D, X).proved.sum() >= 18  # 4 of 22 left out


def test_on_covered_supports_no_code_of_alista_rt_has_a_wrong_entry():
    rng = np.random.default_rng(10)
    supports = np.argsort(rng.random((60, N)), 1)[:, :S]
    proof = ur.theory.certify_supports(W, D, supports)
    layer = ur.layers.alista_rt(40)
    params = layer.init(None, D)
    covered = proof.ratio <= layer.ratio
    assert covered.sum() > 20
    proved = covered & (proof.contraction < 1)
    np.testing.assert_array_equal(np.isfinite(proof.bound(40, layer.ratio)), proved)
    B = W.T @ D
    X = np.zeros((60, 3, N))
    for x, support in zip(X, supports):
        A = B[np.ix_(support, support)]
        Q = np.abs(B[:, support] @ np.linalg.inv(A))
        Q[support] = 0
        i = Q.sum(1).argmax()
        x[0, support] = rng.standard_normal(S)
        x[1, support] = 0.5 ** np.arange(S)
        x[2, support] = np.linalg.solve(A, np.sign(B[i, support] @ np.linalg.inv(A)))
    Z = np.asarray(jax.jit(jax.vmap(jax.vmap(partial(layer.iterates, params, D))))(X @ D.T))
    errors = np.abs(Z - X[:, :, None]).max(3) / np.abs(X).max(2)[:, :, None]
    assert not ((Z != 0) & (X[:, :, None] == 0))[covered].any()
    for k in (1, 5, 40):
        slack = 1e-13  # rounding
        assert (errors[:, :, k - 1] <= proof.bound(k)[:, None] + slack)[covered].all()
    assert errors[covered & (proof.contraction < 0.9), :, -1].max() < 1e-10


def test_the_ratio_of_a_support_is_that_of_an_inverse():
    supports = np.array([[1, 5, 9], [70, 2, 33]])
    proof = ur.theory.certify_supports(W, D, supports)
    B = W.T @ D
    for S_, ratio, kappa in zip(supports, proof.ratio, proof.contraction):
        A = B[np.ix_(S_, S_)]
        Q = np.abs(B[:, S_] @ np.linalg.inv(A)).sum(1)
        Q[S_] = 0
        assert Q.max() <= ratio <= Q.max() * (1 + 1e-12)
        assert kappa == pytest.approx(np.abs(A - np.eye(3)).sum(1).max(), rel=1e-12)
    doubled = np.concatenate([D[:, :1], D], 1)
    assert np.isinf(ur.theory.certify_supports(doubled, doubled, [[0, 1]]).ratio[0])


@pytest.mark.parametrize("power", [2.5, 3.0, 4.0])
def test_weights_of_a_power_are_stationary(power):
    V = np.asarray(ur.theory.frobenius_weights(D, power=power))
    assert np.allclose(np.sum(V * D, 0), 1)
    P = V.T @ D
    gradient = (np.abs(P) ** (power - 1) * np.sign(P)) @ D.T  # of every w_i, a row
    along = np.sum(gradient * D.T, 1, keepdims=True)
    # Stationary where w_i . d_i is held: nothing is left across d_i.
    assert np.abs(gradient - along * D.T).max() < 1e-5
    assert (np.abs(P) ** power).sum() < (np.abs(W.T @ D) ** power).sum()


@pytest.mark.parametrize("scale", [1.0, 2.0**-500])
@pytest.mark.parametrize("support", [None, PASSING, (0.1, 0.3)])
def test_no_noise_moves_a_run_out_of_its_tube(support, scale):
    rng = np.random.default_rng(14)
    layer = ur.alista(K, support=support)
    run = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    told = 0
    for delta in (1e-6, 1e-4, 1e-2):
        x, V = scale * codes(rng, 1, 5)[0], W * rng.uniform(0.9, 1.05, N)
        theta = scale * np.maximum(0.8 * 0.6 ** np.arange(K), delta)
        params = layer.from_theory(V, theta)
        tube = ur.theory.certify_run(layer, params, D, x, noise=scale * delta)
        noise = rng.standard_normal((40, M))
        for k in range(0, 40, 2):  # on the largest weight of an atom
            w = np.abs(V[:, rng.integers(N)])
            noise[k] = np.where(w == w.max(), rng.choice([-1, 1]), 0)
        noise *= scale * delta / np.abs(noise).sum(1, keepdims=True)
        Z = np.asarray(run(params, D, np.concatenate([noise, 0 * noise[:1]]) + D @ x)) / scale
        moved = np.linalg.norm(Z[:-1] - Z[-1], axis=2)
        assert (moved <= tube.radius[1:] / scale).all()
        assert (np.linalg.norm(Z - x / scale, axis=2) <= tube.error[1:] / scale).all()
        assert moved[:, 0].max() > 0.3 * tube.radius[1] / scale > 0
        if tube.exact:
            assert ((Z[:, -1] != 0) == (x != 0)).all()
        told += tube.error[-1] < 0.1 * tube.error[0]
    assert told >= 1


def test_a_tube_is_unknown_after_a_step_that_may_pass_only_some_entries():
    layer = ur.alista(3, support=(0.01, 0.02))
    x = codes(np.random.default_rng(15), 1, 6)[0]
    params = layer.from_theory(W, np.full(3, 1e-3))
    tube = ur.theory.certify_run(layer, params, D, x, noise=1e-4)
    assert tube.radius[0] == 0 and np.isinf(tube.radius[1:]).all() and not tube.exact


X3 = np.zeros((2, N))
FAULTS = {
    "codes of another length": (
        lambda: ur.theory.certify_signals(ur.alista(2), start(2), D, X3[:, :5]),
        ValueError,
        r"X has shape \(2, 5\); expected \(n, 80\)",
    ),
    "noise below zero": (
        lambda: ur.theory.certify_signals(ur.alista(2), start(2), D, X3, noise=-1.0),
        ValueError,
        "noise must be at least 0",
    ),
    "noise of other signals": (
        lambda: ur.theory.certify_signals(ur.alista(2), start(2), D, X3, noise=np.ones(3)),
        ValueError,
        r"noise has shape \(3,\)",
    ),
    "another family": (
        lambda: ur.theory.certify_signals(ur.layers.lamp(2), None, D, X3),
        TypeError,
        "is not x <- shrink",
    ),
    "a bare function": (
        lambda: ur.theory.certify_signals(ur.alista(2, activation=np_like), start(2), D, X3),
        TypeError,
        "needs the constants of an Activation",
    ),
    "a tube of two codes": (
        lambda: ur.theory.certify_run(ur.alista(2), start(2), D, X3, noise=0.0),
        ValueError,
        r"x has shape \(2, 80\); expected \(80,\), one code",
    ),
    "a tube of another activation": (
        lambda: ur.theory.certify_run(silu(), start(2), D, X3[0], noise=0.0),
        ValueError,
        "expected the activation relu",
    ),
    "noise of a tube that is not a number": (
        lambda: ur.theory.certify_run(ur.alista(2), start(2), D, X3[0], noise=np.nan),
        ValueError,
        "noise must be non-negative",
    ),
    "an atom twice": (
        lambda: ur.theory.certify_supports(W, D, [[1, 1]]),
        ValueError,
        "names an atom twice",
    ),
    "an atom that is not there": (
        lambda: ur.theory.certify_supports(W, D, [[1, N]]),
        ValueError,
        "indices in 0..79",
    ),
    "supports of numbers": (
        lambda: ur.theory.certify_supports(W, D, [[0.5, 1.0]]),
        TypeError,
        "must be indices",
    ),
    "no support": (
        lambda: ur.theory.certify_supports(W, D, [1, 2]),
        ValueError,
        r"expected \(n, s\)",
    ),
    "weights of another shape": (
        lambda: ur.theory.certify_supports(W[:, 1:], D, [[1, 2]]),
        ValueError,
        "W has shape",
    ),
    "slack below 1": (
        lambda: schedule(ur.alista(2), X3, slack=0.9),
        ValueError,
        "slack must be at least 1",
    ),
    "all codes left out": (
        lambda: schedule(ur.alista(2), X3, leave_out=1.0),
        ValueError,
        r"leave_out must be in \[0, 1\)",
    ),
    "a sample without codes": (
        lambda: schedule(ur.alista(2), X3[:0]),
        ValueError,
        "X has no code",
    ),
    "a layer without theory": (
        lambda: schedule(ur.layers.lamp(2), X3),
        TypeError,
        "no params from theory",
    ),
    "a power below 2": (
        lambda: ur.theory.frobenius_weights(D, power=1.5),
        ValueError,
        "power must be from 2 to 4",
    ),
    "a power with a ridge": (
        lambda: ur.theory.frobenius_weights(D, 0.1, power=3.0),
        ValueError,
        "needs ridge = 0",
    ),
}


def np_like(x):
    return jax.nn.relu(x)


def silu():
    return ur.alista(2, activation=ur.activations.scale(ur.activations.silu, 1e4))


def start(depth):
    return ur.alista(depth).init(None, D)


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_arguments_are_refused(fault):
    call, error, words = FAULTS[fault]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("passing", [0, 6])
def test_the_error_of_an_entry_is_that_of_its_worst_move(passing):
    """Of a soft threshold, and of a hard one where every entry may pass; by a grid of moves."""
    rng = np.random.default_rng(0)
    a, A, theta = rng.uniform(0, 2, (40, 6)), rng.uniform(0, 1, (40, 6)), rng.uniform(0.1, 1.5, 6)
    u = a + A * np.linspace(-1, 1, 4001)[:, None, None]
    code = np.where(np.abs(u) > theta, u - (0 if passing else theta * np.sign(u)), 0)
    worst = np.abs(code - a).max(0)
    found = _signals._mapped(SimpleNamespace(passing=passing, theta=theta), a, A, theta, False)
    assert (worst <= found + 1e-12).all() and (found <= worst + 1e-3).all()
