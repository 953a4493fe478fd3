"""Proofs where codes come in parts, next to runs of the layers and to proofs of entries."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrolled as ur
from unrolled.dictionaries import Complex, Joint, dense, to_pairs
from unrolled.theory import _parts, _signals

M, N, K = 24, 40, 10
KINDS = {"complex": 2, "joint": 4, "complex joint": 4}


def matrix(rng, m=M, n=N, is_complex=False):
    A = rng.normal(size=(m, n)) + 1j * rng.normal(size=(m, n)) * is_complex
    A /= np.linalg.norm(A, axis=0)
    return A if is_complex else A.real


def dictionary(kind, rng, dtype=np.float64, m=M, n=N):
    A = matrix(rng, m, n, "complex" in kind)
    D = Complex.of(A.astype(np.result_type(dtype, np.complex64))) if "complex" in kind else A
    D = Joint(D, KINDS[kind] // (2 if "complex" in kind else 1)) if "joint" in kind else D
    return D.astype(dtype)


def codes(rng, n, s, g, least=0.0, parts=N):
    """n codes (n, parts, g) with s parts of sizes up to 1, and their sizes."""
    X = np.zeros((n, parts, g))
    for x in X:
        v = rng.normal(size=(s, g))
        sizes = rng.uniform(least, 1, (s, 1))
        x[rng.permutation(parts)[:s]] = v / np.linalg.norm(v, axis=1, keepdims=True) * sizes
    return X


def noisy(rng, D, X, delta):
    """D x + noise of l2 norm delta, for every second signal along one w_i."""
    A = np.asarray(dense(D), float)
    e = rng.normal(size=(len(X), len(A)))
    e[::2] = A.T[rng.integers(A.shape[1], size=len(e[::2]))]
    return X.reshape(len(X), -1) @ A.T + delta * e / np.linalg.norm(e, axis=1, keepdims=True)


def sizes(v, g):
    return np.linalg.norm(v.reshape(*v.shape[:-1], -1, g), axis=-1)


@pytest.mark.parametrize("passing", [0, 6])
def test_the_error_of_a_part_is_that_of_its_worst_move(passing):
    """By a grid of moves in the plane of the part and the move, which says it for all g > 1."""
    rng = np.random.default_rng(0)
    a, A, theta = rng.uniform(0, 2, (60, 6)), rng.uniform(0, 2.5, (60, 6)), rng.uniform(0.1, 1.5, 6)
    turn = np.exp(2j * np.pi * np.arange(720) / 720)
    u = a + A * np.concatenate([np.linspace(0, 1, 60)[:, None] * turn]).reshape(-1, 1, 1)
    size = np.abs(u)
    code = np.where(size > theta, u * (1 if passing else 1 - theta / size), 0)
    worst = np.abs(code - a).max(0)
    step = SimpleNamespace(passing=passing, theta=theta)
    found = _signals._mapped(step, a, A, theta, False, True)
    assert (worst <= found + 1e-12).all() and (found <= worst + 0.03).all()
    # Parts may move across their direction: some err by more than entries do.
    entries = _signals._mapped(step, a, A, theta, False)
    assert (entries <= found + 1e-15).all() and passing or (entries < found - 0.1).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_by_part_are_those_of_matrices(kind, dtype):
    rng = np.random.default_rng(1)
    D = dictionary(kind, rng, m=6, n=9)
    for W in (ur.theory.frobenius_weights(D), jnp.asarray(rng.normal(size=D.shape))):
        found = _parts.part_products(W, D)
        g, gamma = D.block, rng.uniform(0.5, 1, 9)
        V, A = (np.asarray(dense(B)).reshape(-1, 9, g) for B in (W, D))
        blocks = np.einsum("mia,mjb->ijab", V, A)
        norms = np.linalg.norm(blocks, 2, (2, 3))
        entries = np.linalg.norm(np.einsum("mia,mjb->ijab", abs(V), abs(A)), 2, (2, 3))
        drift = np.eye(g) - gamma[:, None, None] * blocks[range(9), range(9)]
        off = np.where(np.eye(9), 0, norms)
        close = dict(rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found.mu, off.max(1), **close)
        np.testing.assert_allclose(found.C, np.linalg.norm(V.swapaxes(0, 1), 2, (1, 2)), **close)
        np.testing.assert_allclose(found.G, entries.max(1), **close)
        np.testing.assert_allclose(found.drift(gamma), np.linalg.norm(drift, 2, (1, 2)), atol=1e-14)
        np.testing.assert_allclose(_parts.part_norms(D, W, np.arange(9)), norms.T, **close)


def test_parts_of_one_entry_and_real_numbers_have_the_numbers_of_entries():
    rng = np.random.default_rng(2)
    A, layer, options = matrix(rng), ur.alista(K, support=(1, 1)), dict(sparsity=2, bound=1.0)
    X = codes(rng, 40, 2, 1)[:, :, 0]
    params = ur.analytic.from_sample(layer, A, X, slack=1.05)
    W = params.shared.analytic.W if hasattr(params.shared, "analytic") else params.shared.W
    real, class_of = (
        ur.theory.certify_signals(layer, params, A, X),
        ur.theory.certify(layer, params, A, **options),
    )
    for D, V, Z in (
        (Joint(A, 1), Joint(W, 1), X[:, :, None]),
        (Complex.of(A), Complex.of(W), X * np.exp(2j * np.pi * rng.random(X.shape))),
        (Joint(A, 3), Joint(W, 3), X[:, :, None] * np.array([2, -1, 2]) / 3),
    ):
        same = layer.from_theory(V, params.steps.theta)
        proof = ur.theory.certify_signals(layer, same, D, Z)
        # No term of rounding is the same: by that much thresholds and bounds differ.
        close = dict(rtol=1e-9, atol=1e-12)
        found = ur.theory.certify(layer, same, D, **options)
        np.testing.assert_allclose(found.error, class_of.error, **close)
        assert found.largest_sparsity == class_of.largest_sparsity
        np.testing.assert_array_equal(proof.failed_at, real.failed_at)
        if D.block == 1:
            np.testing.assert_allclose(proof.errors, real.errors, **close)
        else:  # an entry has one direction, where a part may move across
            assert (proof.errors >= real.errors * (1 - 1e-9) - 1e-12).all()
            np.testing.assert_allclose(proof.errors[:, 1], real.errors[:, 1], **close)


def members_of_a_class(kind, dtype, n, seed, delta=0.01, scale=1.0):
    """Largest ratio of errors to what `certify` and the schedule say, and whether a wrong part is
    taken, over n draws of the class."""
    rng = np.random.default_rng(seed)
    D = dictionary(kind, rng, dtype, m=40, n=60)
    g, layer = D.block, ur.alista(12)
    c = ur.analytic.certified_weights(D, ur.theory.frobenius_weights(D))
    s = max(1, ur.theory.max_sparsity(c.mu_W, 60))
    asked = dict(sparsity=s, bound=scale, noise=delta * scale)
    params = ur.analytic.alista(D, depth=12, W=c.W, **asked)
    proof = ur.theory.certify(layer, params, D, **asked)
    assert proof.holds and proof.false_positives_excluded.all()
    _, planned = ur.analytic.block_schedule(D, c.W, depth=12, **asked)
    assert (proof.error <= planned.error * (1 + 1e-6)).all()
    X = codes(rng, n, s, g, parts=60)
    X[::2] /= np.maximum(np.linalg.norm(X[::2], axis=2, keepdims=True), 1e-300)  # at the bound
    X = np.asarray(X * (X != 0), dtype).astype(float)
    X /= max(1, sizes(X.reshape(n, -1), g).max())
    Y = noisy(rng, D, X, delta) * scale
    run = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    Z = np.asarray(run(params, D, Y.astype(dtype))).astype(float) / scale
    errors = sizes(Z - X.reshape(n, 1, -1), g)
    wrong = (sizes(Z, g) > 0) & (sizes(X.reshape(n, 1, -1), g) == 0)
    return (errors.sum(2) / (proof.error[1:] / scale)).max(), wrong.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, scale", [("float32", 1e10), ("float64", 1e-10)])
def test_no_draw_is_outside_of_the_certificate_of_its_class(kind, dtype, scale):
    worst, wrong = members_of_a_class(kind, dtype, 40, 3, scale=scale)
    assert 0.5 < worst <= 1 and not wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_none_of_a_thousand_draws_is_outside_of_the_certificate(kind, seed):
    found = [
        members_of_a_class(kind, ("float32", "float64")[seed % 2], 1_000, [seed, i], 0.01 * (i > 0))
        for i in range(3)
    ]
    assert max(worst for worst, _ in found) <= 1 and not any(wrong for _, wrong in found)
    assert max(worst for worst, _ in found) > 0.8  # seldom far from the bound


def step_of(A, W, theta, passing, Z, Y, g):
    """A step with support selection, in numpy, of codes (n, d)."""
    u = (Z + (Y - Z @ A.T) @ W).reshape(len(Z), -1, g)
    size = np.linalg.norm(u, axis=2)
    chosen = size > theta
    code = np.where(chosen[..., None], u * (1 - theta / np.maximum(size, 1e-300))[..., None], 0)
    if passing < size.shape[1]:
        chosen &= size > np.sort(size, 1)[:, ::-1][:, [passing]]
    return np.where(chosen[..., None] & (passing > 0), u, code).reshape(Z.shape)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_tiny_pairs_with_any_weights_stay_under_their_bounds(seed):
    """Also after steps whose thresholds let wrong parts in."""
    rng, ratios, reached = np.random.default_rng(seed), [], set()
    for trial in range(200 if seed else 25):
        n, m, g = (*map(int, rng.integers(2, (5, 4))), 2) if seed else (2, 2, 2)  # few shapes
        D = dictionary("complex", rng, m=m, n=n) if trial % 2 else Joint(matrix(rng, m, n), 2)
        A, passing = np.asarray(dense(D)), int(rng.integers(0, n + 1))
        support = (passing / n, passing / n) if passing else None
        layer = ur.lista_cp(3, tied=False, support=support)
        W = A * rng.uniform(0.3, 1.2, (3, 1, 1)) + 0.1 * rng.normal(size=(3, *A.shape))
        theta = rng.uniform(0.5, 1.5, (3, n)) * rng.uniform(0, 0.6, (3, 1)) * rng.integers(1, 3)
        s, delta = int(rng.integers(1, n + 1)), rng.choice([0, 0.1])
        params = ur.layers.Unrolled(None, ur.layers.WeightsAndThreshold(W, theta))
        worst = ur.theory.certify(layer, params, D, sparsity=s, bound=1.0, noise=delta)
        X = codes(rng, 400, s, g, parts=n).reshape(400, -1)
        proof = ur.theory.certify_signals(layer, params, D, X, noise=delta)
        Y, Z = noisy(rng, D, X, delta), np.zeros_like(X)
        for k in range(3):
            Z = step_of(A, W[k], theta[k], passing, Z, Y, g)
            errors = sizes(Z - X, g)
            wrong = (sizes(Z, g) > 0) & (sizes(X, g) == 0)
            clean = bool(worst.false_positives_excluded[k])
            assert not (clean and wrong.any())
            assert (errors.sum(1) <= worst.error[k + 1] * (1 + 1e-12)).all()
            assert (errors.max(1) <= proof.errors[:, k + 1] * (1 + 1e-12)).all()
            assert not (wrong.any(1) & ((proof.failed_at < 0) | (proof.failed_at > k))).any()
            ratios.append(errors.sum(1).max() / worst.error[k + 1])
            reached |= {(clean, passing > 0)}
    assert max(ratios) > 0.9 and len(reached) >= 3


LAYERS = {
    "soft": dict(),
    "all pass": dict(support=(1.0, 1.0)),
    "some pass": dict(support=(0.02, 0.05)),
    "a tail": dict(support=(1.0, 1.0), activation=ur.activations.scale(ur.activations.silu, 1e4)),
}


def attacked(layer, params, D, a, delta, seed, n=20):
    """Codes with sizes a, and signals with noise, whose errors grow by ascent along gradients."""
    rng = np.random.default_rng(seed)
    g, A = D.block, jnp.asarray(dense(D), float)
    with_params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), (params, D))

    def made(v, e):
        v = v.reshape(-1, g)
        x = (a[:, None] * v / jnp.linalg.norm(v, axis=1, keepdims=True)).reshape(-1)
        return x, A @ x + delta * e / jnp.linalg.norm(e)

    def error(pair, k):
        x, y = made(*pair)
        return jnp.sum((layer.iterates(*with_params, y)[k] - x).reshape(-1, g) ** 2, 1).max()

    def up(pair, k):
        slopes = jax.grad(error)(pair, k)
        unit = [v / (jnp.linalg.norm(v) + 1e-300) for v in (*pair, *slopes)]
        return (unit[0] + 0.3 * unit[2], unit[1] + 0.3 * unit[3])

    @jax.jit
    @jax.vmap
    def ascended(v, e, k):
        pair, _ = jax.lax.scan(lambda pair, _: (up(pair, k), None), (v, e), None, length=40)
        return made(*pair)

    v, e = (rng.normal(size=(n, size)) for size in (D.shape[1], D.shape[0]))
    return map(np.asarray, ascended(v, e, rng.integers(layer.depth, size=n)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "kind, dtype, delta, of_parts",
    [
        ("complex", "float32", 0.0, True),
        ("complex", "float64", 0.01, False),
        pytest.param("joint", "float32", 0.01, True, marks=pytest.mark.slow),
        pytest.param("joint", "float64", 0.01, False, marks=pytest.mark.slow),
        pytest.param("complex joint", "float64", 0.0, True, marks=pytest.mark.slow),
    ],
)
def test_no_attack_leads_a_proved_code_out_of_its_bound(name, kind, dtype, delta, of_parts):
    rng = np.random.default_rng(4)
    layer, D = ur.alista(K, **LAYERS[name]), dictionary(kind, rng, dtype)
    W = ur.theory.frobenius_weights(D)
    if not of_parts:  # weights off the structure of D
        W = dense(W) + 0.005 * rng.normal(size=D.shape)
    x = codes(rng, 1, 2, D.block, least=0.3)
    a = np.linalg.norm(x[0], axis=1)
    # `slack` because the sizes of the attacks round.
    params = ur.analytic.from_sample(layer, D, x.reshape(1, -1), slack=1.001, noise=delta, W=W)
    X, Y = attacked(layer, params, D, a, delta, 5)
    proof = ur.theory.certify_signals(layer, params, D, X, noise=delta * (1 + 1e-12))
    assert (proof.failed_at < 0).all()
    run = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    Z = np.asarray(run(params, D, Y.astype(dtype))).astype(float)
    errors = sizes(Z - X[:, None], D.block).max(2)
    assert (errors <= proof.errors[:, 1:] * (1 + 1e-14)).all()
    assert (errors[:, 0] / proof.errors[:, 1]).max() > 0.7
    if name != "a tail":
        assert not sizes(Z, D.block)[:, :, a == 0].any()


def test_complex_codes_are_proved_as_pairs_are_and_at_every_scale():
    rng = np.random.default_rng(6)
    D, layer = dictionary("complex", rng), ur.alista(25, support=(1, 1))
    pairs = codes(rng, 60, 2, 2, least=0.1).reshape(60, -1)
    X = pairs[:, 0::2] + 1j * pairs[:, 1::2]
    assert (to_pairs(X) == pairs).all()
    params = ur.analytic.from_sample(layer, D, X[:30])
    proof = ur.theory.certify_signals(layer, params, D, X)
    assert proof.proved[:30].all() and proof.proved.mean() > 0.8
    for scale in (2.0**-400, 2.0**400):
        scaled = params._replace(steps=params.steps._replace(theta=params.steps.theta * scale))
        same = ur.theory.certify_signals(layer, scaled, D, pairs * scale)
        np.testing.assert_array_equal(same.proved, proof.proved)
        np.testing.assert_allclose(same.errors / scale, proof.errors, rtol=1e-9)
    own = ur.theory.certify_signals(layer, params, D, X, own=True)
    assert (own.proved >= proof.proved).all()
    run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    Z = run(params, D, X @ (np.asarray(D.real) + 1j * np.asarray(D.imag)).T)
    errors = np.abs(np.asarray(Z) - X).max(1)
    assert (errors <= proof.errors[:, -1])[proof.proved].all()


def test_a_chain_of_parts_hands_on_what_a_layer_leaves():
    rng = np.random.default_rng(7)
    basis = np.linalg.qr(matrix(rng, 60, 60, True))[0] + 0.01 * matrix(rng, 60, 60, True)
    atoms = np.zeros((60, 70), complex)  # of two entries, so that the codes between are sparse
    for j, rows in enumerate(rng.permuted(np.tile(np.arange(60), (70, 1)), axis=1)[:, :2]):
        atoms[rows, j] = np.exp(2j * np.pi * rng.random(2))
    matrices = [A / np.linalg.norm(A, axis=0) for A in (basis, atoms)]
    (first, second), layers = map(Complex.of, matrices), (ur.lista_cp(12), ur.lista_cp(12))
    X2 = np.zeros((30, 70), complex)
    X2[np.arange(30), rng.integers(70, size=30)] = np.exp(2j * np.pi * rng.random(30))
    X1 = X2 @ matrices[1].T
    s, B = 2, np.abs(X1).max()
    chain = dict(sparsities=(2, 1), bounds=(B, 1.0))
    chain["Ws"] = tuple(map(ur.theory.frobenius_weights, (first, second)))
    p1, p2 = ur.analytic.dsc((first, second), depths=(12, 12), **chain)
    _, planned = ur.analytic.chain_schedules((first, second), depths=(12, 12), **chain)
    network = ur.networks.dsc(layers)
    asked = dict(sparsity=(s, 1), bound=(B, 1.0), noise=0.0)
    classes = ur.theory.certify(network, (p1, p2), (first, second), **asked)
    alone = ur.theory.certify(layers[1], p2, second, sparsity=1, bound=1.0)
    assert alone.error[-1] < classes[1].error[-1] < 1
    for found, schedule in zip(classes, planned):
        assert found.false_positives_excluded.all()
        assert (found.error <= schedule.error * (1 + 1e-6)).all()
    plan = ur.analytic.plan((first, second), tol=classes[1].error[-1] * 1.1, **chain)
    assert plan.holds and sum(plan.depths) <= 24
    # From parts to entries: an error of one part is one of two entries.
    plain = ur.analytic.chain_schedules(
        (first, np.eye(120)), depths=(12, 3), **chain | {"Ws": None}
    )
    given = ur.analytic.dsc((first, np.eye(120)), depths=(12, 3), **chain | {"Ws": None})
    both = ur.networks.dsc((layers[0], ur.lista_cp(3)))
    last = ur.theory.certify(both, given, (first, np.eye(120)), **asked)[1]
    assert last.false_positives_excluded.all()
    assert (last.error <= plain[1][1].error * (1 + 1e-6)).all()
    proofs = ur.theory.certify_signals(network, (p1, p2), (first, second), (X1, X2))
    assert all((proof.failed_at < 0).all() for proof in proofs)
    Y = to_pairs(X1 @ matrices[0].T)
    Z1, Z2 = jax.vmap(network.apply, (None, None, 0))((p1, p2), (first, second), Y)
    for Z, X, proof, worst in zip((Z1, Z2), (X1, X2), proofs, classes):
        errors = sizes(np.asarray(Z) - to_pairs(X), 2)
        assert (errors.max(1) <= proof.errors[:, -1]).all()
        assert (errors.sum(1) <= worst.error[-1]).all()


@pytest.mark.parametrize(
    ("D", "X", "message"),
    [
        (Complex.of(np.eye(4)), np.ones((2, 3)) * 1j, r"\(2, 6\); expected \(n, 8\), 4 parts of 2"),
        (Complex.of(np.eye(4)), np.ones((2, 4)), r"\(2, 4\); expected \(n, 8\), 4 parts of 2"),
        (Joint(np.eye(4), 3), np.ones((2, 3, 4)), r"\(2, 3, 4\); expected \(n, 12\), 4 parts of 3"),
    ],
)
def test_codes_of_another_form_are_refused(D, X, message):
    layer = ur.alista(1)
    with pytest.raises(ValueError, match=message):
        ur.theory.certify_signals(layer, layer.from_theory(D, jnp.ones(1)), D, X)


def test_a_part_of_the_size_of_the_threshold_is_zero_and_counts_as_missed():
    D, layer = Complex.of(np.eye(4)), ur.alista(1)
    params = layer.from_theory(D, jnp.array([5.0]))
    X = np.array([[3 + 4j, 0, 0, 0], [3 + 4.001j, 0, 0, 0]])
    proof = ur.theory.certify_signals(layer, params, D, X)
    Z = jax.vmap(layer.apply, (None, None, 0))(params, D, X)
    assert not np.asarray(Z[0]).any() and np.abs(Z[1]).any()
    assert not proof.proved[0] and (np.abs(Z - X).max(1) <= proof.errors[:, 1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_on_covered_supports_of_parts_no_code_has_a_wrong_part(kind):
    rng = np.random.default_rng(9)
    D = dictionary(kind, rng)
    g, W = D.block, ur.theory.frobenius_weights(D)
    supports = np.argsort(rng.random((40, N)), 1)[:, :2]
    proof = ur.theory.certify_supports(W, D, supports)
    B = np.asarray(dense(W)).T @ np.asarray(dense(D))
    B = B.reshape(N, g, N, g).swapaxes(1, 2)
    X = np.zeros((40, 2, N, g))
    for x, S, ratio, kappa in zip(X, supports, proof.ratio, proof.contraction):
        A = B[np.ix_(S, S)].swapaxes(1, 2).reshape(2 * g, 2 * g)
        Q = (B[:, S].swapaxes(1, 2).reshape(N * g, 2 * g) @ np.linalg.inv(A)).reshape(N, g, 2, g)
        norms = np.linalg.norm(Q.swapaxes(1, 2), 2, (2, 3)).sum(1)
        norms[S] = 0
        assert norms.max() <= ratio <= norms.max() * (1 + 1e-12)
        off = (A - np.eye(2 * g)).reshape(2, g, 2, g).swapaxes(1, 2)
        assert kappa == pytest.approx(np.linalg.norm(off, 2, (2, 3)).sum(1).max(), rel=1e-9)
        x[0, S] = rng.normal(size=(2, g)) * [[1], [0.1]]
        # Products of one size whose shares of the worst part have one direction.
        turned = np.linalg.svd(Q[norms.argmax()].swapaxes(0, 1))
        v = [V[0] * np.sign(U[:, 0] @ turned[0][0, :, 0]) for U, V in zip(turned[0], turned[2])]
        x[1, S] = np.linalg.solve(A, np.concatenate(v)).reshape(2, g)
    layer = ur.layers.alista_rt(40)
    covered = (proof.ratio <= layer.ratio) & (proof.contraction < 1)
    assert covered.sum() > 10
    run = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    Z = run(layer.init(None, D), D, X.reshape(80, -1) @ np.asarray(dense(D)).T)
    Z = np.asarray(Z).reshape(40, 2, 40, N, g)
    wrong = np.any(Z != 0, -1) & ~np.any(X != 0, -1)[:, :, None]
    assert not wrong[covered].any()
    largest = np.linalg.norm(X, axis=-1).max(-1)
    errors = np.linalg.norm(Z - X[:, :, None], axis=-1).max(-1) / largest[:, :, None]
    for k in (1, 5, 40):
        assert (errors[:, :, k - 1] <= proof.bound(k)[:, None] + 1e-13)[covered].all()
    float32 = jax.tree.map(lambda leaf: leaf.astype(np.float32), (layer.init(None, D), D))
    Y = X.reshape(80, -1) @ np.asarray(dense(D)).T
    taken = np.any(np.asarray(run(*float32, Y.astype(np.float32))).reshape(wrong.shape + (g,)), -1)
    assert not (taken & ~np.any(X != 0, -1)[:, :, None])[covered].any()


def test_the_uniqueness_of_codes_of_complex_numbers_is_that_of_moduli():
    A = np.random.default_rng(0).normal(size=(2, 3, 4))
    A = A[0] + 1j * A[1]
    A /= np.linalg.norm(A, axis=0)
    mu = np.abs(A.conj().T @ A - np.eye(4)).max()
    assert ur.theory.uniqueness([Complex.of(A)], [1]).bounds == pytest.approx((1 + 1 / mu) / 2)


def test_codes_in_parts_are_unique_up_to_the_coherence_of_blocks():
    rng = np.random.default_rng(8)
    H = ur.dictionaries.identity_hadamard(16)
    real, joint = (ur.theory.uniqueness([D], [2]) for D in (H, Joint(H, 3)))
    assert real.holds and joint.holds and joint.bounds == pytest.approx(real.bounds, rel=1e-12)
    assert joint.l1.all() and not ur.theory.uniqueness([Joint(H, 3)], [3]).holds
    found = []
    for seed in range(3):
        D = dictionary("complex", np.random.default_rng(seed), m=7, n=9)
        A = np.asarray(D.real) + 1j * np.asarray(D.imag)
        mu = np.abs(A.conj().T @ A - np.eye(9)).max()
        result = ur.theory.uniqueness([D], [1])
        assert result.bounds[0] == pytest.approx((1 + 1 / mu) / 2, rel=1e-12)
        assert result.holds == (mu < 1)
        s = int(np.ceil(result.bounds[0]) - 1)
        for S in map(list, itertools.combinations(range(9), 2 * s)):
            found.append(np.linalg.svd(A[:, S], compute_uv=False)[-1])
    assert min(found) > 1e-3
    # A product of two: its parts are those of the last, and not orthogonal within.
    first = dictionary("complex", rng, m=30, n=24)
    atoms = np.eye(24, 30) + 1j * np.eye(24, 30, 3) * (np.arange(24) < 3)[:, None]
    atoms[:, 24:] = matrix(rng, 24, 6, True)
    second = Complex.of(atoms / np.linalg.norm(atoms, axis=0))
    chain = ur.theory.uniqueness([first, second], [1, 1])
    assert chain.bounds.shape == (2,) and chain.unique.tolist() == [True, True]
    with pytest.raises(ValueError, match="in parts"):
        ur.theory.uniqueness([first], [1], coherence=ur.theory.generalized_coherence)
    with pytest.raises(ValueError, match=r"is 25 but D_1 has 24 parts of 2 atoms"):
        ur.theory.uniqueness([first], [25])


@pytest.mark.parametrize("kind", ["complex", "joint"])
def test_a_comparison_says_what_is_proved_of_codes_in_parts(kind):
    rng = np.random.default_rng(10)
    D = dictionary(kind, rng, m=40, n=60)
    layer, asked = ur.alista(12), dict(depth=12, sparsity=1, bound=1.0, noise=0.01)
    X = codes(rng, 30, 1, D.block, least=0.5, parts=60)
    Y = noisy(rng, D, X, 0.01)
    params = ur.analytic.alista(D, **asked)
    taking = ur.layers.alista_rt(12, noise=0.025)
    methods = {
        "theory": (layer, params),
        "firm": (ur.alista(12, bend=3), params),
        "taking": (taking, taking.init(None, D)),
    }
    found = ur.compare(methods, D, Y, X.reshape(30, -1))
    promise = found["theory"].guarantee
    assert (promise.sparsity, promise.noise) == (1, pytest.approx(0.01))
    assert promise.bound == pytest.approx(sizes(X.reshape(30, -1), D.block).max())
    assert promise.certificate.holds
    assert (found["theory"].curve.largest_l1 <= promise.certificate.error[1:]).all()
    assert found["theory"].proved.share == 1 and 0 < found["taking"].proved.share <= 1
    assert "firm shrinkage" in found["firm"].proved.reason and found["firm"].proved.share is None
    assert "firm shrinkage of alista with bend=3" in found.guarantees_table()


@pytest.mark.parametrize("kind", ["complex", "joint"])
def test_a_schedule_of_another_activation_bounds_codes_in_parts(kind):
    rng = np.random.default_rng(11)
    D, rho = dictionary(kind, rng, m=40, n=60), ur.activations.scale(ur.activations.elu(1.0), 1e4)
    asked = dict(depth=12, sparsity=1, bound=1.0, noise=0.01, activation=rho)
    _, planned = ur.analytic.block_schedule(D, **asked)
    assert planned.holds and not planned.vacuous
    X = codes(rng, 60, 1, D.block, parts=60)
    layer = ur.alista(12, activation=rho)
    run = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    Z = np.asarray(run(ur.analytic.alista(D, **asked), D, noisy(rng, D, X, 0.01)))
    errors = sizes(Z - X.reshape(60, 1, -1), D.block)
    off = np.where(sizes(X.reshape(60, 1, -1), D.block) == 0, errors, 0).sum(2)
    assert (errors.sum(2) <= planned.error[1:]).all() and (off <= planned.off_support[1:]).all()
    assert (errors.sum(2) / planned.error[1:]).max() > 0.5


class _own_shrinkage(ur.layers.alista):
    "A shrinkage of its own, by which larger parts pass."

    def shrink(self, D, u, theta, fraction=None):
        return jnp.where(jnp.abs(u) > theta, u, 0)


@pytest.mark.parametrize(
    "layer, words",
    [
        (ur.alista(4, bend=3), "firm shrinkage of alista with bend=3"),
        (_own_shrinkage(4), "shrinkage that _own_shrinkage defines"),
    ],
)
def test_another_shrinkage_has_a_record_that_does_not_hold(layer, words):
    D = ur.dictionaries.identity_hadamard(16)
    params, X = ur.alista(4).init(None, D), np.eye(32)[:3]
    assert not layer.is_coupled
    found = ur.theory.certify(layer, params, D, sparsity=1, bound=2.0)
    assert not found.holds and found.error.tolist() == [2.0] + 4 * [np.inf]
    assert not found.false_positives_excluded.any() and found.largest_sparsity == 0
    assert words in found.reason
    proof = ur.theory.certify_signals(layer, params, D, X)
    assert not proof.proved.any() and (proof.failed_at == 0).all() and words in repr(proof)
    assert (proof.errors[:, 0] == 1).all() and (proof.errors[:, 1:] == np.inf).all()
    chain = ur.networks.dsc((layer, ur.alista(4)))
    H = jnp.eye(32)
    both = (params, ur.alista(4).init(None, H))
    classes = ur.theory.certify(chain, both, (D, H), sparsity=(1, 1), bound=(1.0, 1.0))
    assert not any(one.holds for one in classes) and classes[1].uncovered is None
    with pytest.raises(ValueError, match="bound"):
        ur.theory.certify(layer, params, D, sparsity=1, bound=-1.0)
    with pytest.raises(TypeError, match="is not x <- shrink"):
        ur.analytic.from_sample(layer, D, X)


def calls_on_entries(D, y, x):
    """Functions on real entries, by name: the call, and the words of the advice."""
    theory, layer = ur.theory, ur.alista(2)
    params = layer.init(None, np.eye(4))
    return {
        "certify_code": (lambda: theory.certify_code(D, y, x), "theory.uniqueness.*supports"),
        "certify_lasso": (lambda: theory.certify_lasso(D, y, x, 0.1), "pursuit.duality_gap"),
        "certify_run": (
            lambda: theory.certify_run(layer, params, D, x, noise=0.0),
            "theory.certify_signals",
        ),
        "error_bar": (lambda: theory.error_bar(D, D, x, y, sparsity=1), "theory.block_coherence"),
        "code_bound": (lambda: theory.code_bound(D, D, y, sparsity=1), "theory.block_coherence"),
    }


@pytest.mark.parametrize("name", calls_on_entries(np.eye(4), None, None))
def test_proofs_on_real_entries_say_what_proves_complex_codes(name):
    """For a complex D, signal or code, in every form, and for pairs; the advice then works."""
    A = matrix(np.random.default_rng(0), 6, 8, is_complex=True)
    x = np.zeros(8, complex)
    x[2] = 1 - 2j
    C, y = Complex.of(A), A @ x
    for D, signal, found in ((A, y, x), (C, y, x), (A.real, y, x), (A.real, list(y), list(x))):
        call, advice = calls_on_entries(D, signal, found)[name]
        words = rf"{name}: \w is complex.*expected real numbers.*{advice}.*Complex\.of\(A\)"
        with pytest.raises(TypeError, match=words):
            call()
    call, advice = calls_on_entries(C, to_pairs(y), to_pairs(x))[name]
    with pytest.raises(ValueError, match=f"{name}: .*parts of 2 entries.*{advice}"):
        call()
    if name == "certify_code":
        assert ur.theory.uniqueness([C], [1]).l1.all()
        assert ur.theory.certify_supports(C, C, [[2]]).ratio < 1
    if name == "certify_lasso":
        code = ur.pursuit.lasso(C, y, 0.1).x
        assert ur.pursuit.duality_gap(C, y, code, 0.1) <= 1e-4 * np.linalg.norm(y) ** 2
    if name == "certify_run":
        layer = ur.alista(30)
        proof = ur.theory.certify_signals(layer, layer.init(None, C), C, x[None], own=True)
        assert proof.proved.all()
