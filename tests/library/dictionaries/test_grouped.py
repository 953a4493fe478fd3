"""Groups of atoms: the group LASSO in numpy, `Joint` as a special case, bounds on random draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import Fault
from oracles import normal, unit

from unrolled import analytic, dictionaries, layers, pursuit, synthesize, theory
from unrolled.dictionaries import Grouped, Joint, dense
from unrolled.penalties import Penalty

A = unit(normal(0, 20, 30))
SIZES = np.array([1, 5, 3, 7, 2, 4, 8])
LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(7), SIZES))
MEMBERS = [np.flatnonzero(LABELS == i).tolist() for i in range(7)]
y = normal(2, 20)
WEIGHTS = {"roots": None, "ones": 1, "own": 0.5 + np.arange(7) / 4}


def group_lasso(A, y, lams):
    """Proximal gradient steps in numpy."""
    x, L = np.zeros(A.shape[1]), np.linalg.norm(A, 2) ** 2
    for _ in range(10_000):
        v = x + A.T @ (y - A @ x) / L
        for members, lam in zip(MEMBERS, lams):
            size = np.linalg.norm(v[members])
            x[members] = v[members] * max(0, 1 - lam / L / size)
    return x


@pytest.mark.few(1)
@pytest.mark.parametrize("name", WEIGHTS)
def test_codes_are_those_of_the_group_lasso(name):
    weights = WEIGHTS[name]
    D = Grouped(A, LABELS if name == "own" else MEMBERS, weights)
    w = np.sqrt(SIZES) if weights is None else np.broadcast_to(weights, 7)
    expected = group_lasso(A, y, 0.3 * w)
    found = pursuit.lasso(D, y, 0.3, tol=1e-12)
    assert found.converged and found.x.shape == (30,)
    np.testing.assert_allclose(found.x, expected, atol=1e-9)
    assert 1 < sum(expected[members].any() for members in MEMBERS) < 7
    products = [np.linalg.norm(A[:, members].T @ y) for members in MEMBERS]
    np.testing.assert_allclose(pursuit.lam_max(D, y), max(products / w))
    penalty = 0.3 * sum(w * [np.linalg.norm(expected[members]) for members in MEMBERS])
    value = pursuit.lasso_objective(D, y, expected, 0.3)
    np.testing.assert_allclose(value, np.sum((y - A @ expected) ** 2) / 2 + penalty)
    assert pursuit.duality_gap(D, y, expected, 0.3) < 1e-8
    np.testing.assert_allclose(synthesize(D, expected), A @ expected)
    batch = pursuit.lasso_batch(D, np.stack([y, 2 * y]), np.array([[0.3], [0.6]]), tol=1e-12)
    np.testing.assert_allclose(batch.x, np.stack([expected, 2 * expected]), atol=1e-8)
    np.testing.assert_allclose(pursuit.lasso(D, y, 0.3, start=expected).x, expected, atol=1e-6)


def test_groups_of_one_size_are_those_of_joint():
    base, Y = unit(normal(3, 6, 9)), normal(4, 6, 2)
    D = Grouped(dictionaries.dense(Joint(base, 2)), np.repeat(np.arange(9), 2), weights=1)
    assert D.shape == (12, 18) and D.block == 2
    expected = pursuit.lasso(Joint(base, 2), Y, 0.3, tol=1e-12).x
    np.testing.assert_allclose(pursuit.lasso(D, Y.reshape(-1), 0.3, tol=1e-12).x, expected.ravel())
    pair = dictionaries.dense(Joint(base, 2)), Joint(base, 2)
    own, joint = theory.block_coherence(pair[0], D), theory.block_coherence(pair[1], pair[1])
    np.testing.assert_allclose(own.mu, joint.mu)


def test_a_form_of_equal_shape_is_never_mistaken():
    """Groups of one size in another order, or with weights, have padding."""
    for labels, weights in ((np.arange(30) % 10, 1), (np.arange(30) // 3, None)):
        D = Grouped(A, labels, weights)
        assert D.block == 4 and D.shape == (30, 40)
        with pytest.raises(ValueError, match="expected length 40"):
            D @ pursuit.lasso(D, y, 0.3).x


@pytest.mark.slow
def test_gradients_and_transformations():
    D, signal = Grouped(A, LABELS), jnp.asarray(y)

    def loss(D, y):
        return jnp.sum(pursuit.lasso(D, y, 0.3, tol=1e-13).x ** 2)

    (own,), step = jax.grad(loss, (1,))(D, signal), 1e-5 * np.eye(20)[3]
    change = (loss(D, signal + step) - loss(D, signal - step)) / 2e-5
    np.testing.assert_allclose(own[3], change, rtol=1e-5)
    both = jax.jit(jax.vmap(lambda y: pursuit.lasso(D, y, 0.3).x))(jnp.stack([signal, -signal]))
    np.testing.assert_allclose(both[0], -both[1])
    layer = layers.fista(1000, lam=0.3)
    code = layer.apply(layer.init(None, D), D, signal)
    np.testing.assert_allclose(code, pursuit.lasso(D, y, 0.3, tol=1e-12).x, atol=1e-5)


@pytest.mark.slow
def test_a_schedule_bounds_every_draw_of_groups_of_unequal_sizes():
    """500 noisy codes: none has a false group, and none errs by more than the bound."""
    base, rng = np.asarray(dictionaries.identity_hadamard(128)), np.random.default_rng(5)
    sizes = rng.integers(1, 3, 200).cumsum()
    labels = np.searchsorted(sizes[sizes < 256], np.arange(256), side="right")
    D, n, s, B, delta, K = Grouped(base, labels, weights=1), labels.max() + 1, 2, 1.0, 0.02, 10
    params = analytic.alista(D, depth=K, sparsity=s, bound=B, noise=delta)
    _, planned = analytic.block_schedule(D, depth=K, sparsity=s, bound=B, noise=delta)
    assert planned.holds and D.block == 2 and len(D.tail)
    X = np.zeros((500, 256))
    for x in X:
        for i in rng.permutation(n)[:s]:
            part = rng.normal(size=(labels == i).sum())
            x[labels == i] = B * rng.choice([1, rng.uniform()]) * part / np.linalg.norm(part)
    noise = rng.normal(size=(500, 128))
    Y = X @ base.T + delta * noise / np.linalg.norm(noise, axis=1)[:, None]
    path = jax.vmap(layers.alista(K).iterates, (None, None, 0))(params, D, D.view(Y, 1)[0])
    path = np.asarray(path)[..., np.array(D.places)]
    sums = np.eye(n)[labels]  # (d, n)
    errors = np.sqrt(((path - X[:, None]) ** 2) @ sums).sum(2)
    assert (errors <= planned.error[1:]).all()
    assert (errors / planned.error[1:]).max() > 0.2  # the bound is of use
    assert not (((path != 0) @ sums > 0) & ~((X != 0) @ sums > 0)[:, None]).any()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["roots", "random"])
def test_a_schedule_of_block_coherence_bounds_weighted_groups(weights):
    """No group is false, and the sum of w_i |x_i - x*_i| is at most E_k, in 300 noisy codes."""
    base, rng = np.asarray(dictionaries.identity_hadamard(128)), np.random.default_rng(5)
    labels = np.repeat(np.arange(171), np.resize([1, 2], 171))
    labels, n, s, delta = labels[:256], labels[255] + 1, 2, 0.02
    sizes = np.bincount(labels)
    w = np.sqrt(sizes) if weights == "roots" else rng.uniform(0.8, 1.25, n)
    D, W = Grouped(base, labels, w), Grouped(base, labels, 1 / w)
    c = theory.block_coherence(W, D)
    plan = theory.schedule(c.mu, c.gain, eta=c.eta, sparsity=s, bound=1.0, noise=delta, depth=10)
    assert plan.holds
    X = np.zeros((300, 256))
    for x in X:
        for i in rng.permutation(n)[:s]:
            part = rng.normal(size=sizes[i])
            x[labels == i] = rng.choice([1, rng.uniform()]) * part / np.linalg.norm(part) / w[i]
    noise = rng.normal(size=(300, 128))
    Y = D.view(X @ base.T + delta * noise / np.linalg.norm(noise, axis=1)[:, None], 1)[0]
    Z, penalty, sums = np.zeros((300, D.shape[1])), Penalty(block=D.block), np.eye(n)[labels]
    for theta, bound in zip(plan.theta, plan.error[1:]):
        V = Z + (Y - Z @ dense(D).T) @ dense(W)
        Z = np.asarray(jax.vmap(penalty.shrink, (0, None))(V, theta))
        x = Z[:, np.array(D.places)] / w[labels]
        errors = (w * np.sqrt((x - X) ** 2 @ sums)).sum(1)
        assert 0.5 * bound < errors.max() <= bound
        assert not (((x != 0) @ sums > 0) & ~((X != 0) @ sums > 0)).any()


def test_theory_refuses_weights_in_words():
    with pytest.raises(ValueError, match="atoms have norms"):
        analytic.block_schedule(Grouped(A, LABELS), depth=3, sparsity=1, bound=1.0)


FAULTS = [
    Fault(lambda: Grouped(A, LABELS[:-1]), ValueError, "expected \\(30,\\) integers"),
    Fault(lambda: Grouped(A, LABELS + 0.5), ValueError, "integers, one per atom"),
    Fault(lambda: Grouped(A, MEMBERS[1:]), ValueError, "each of the 30 atoms once"),
    Fault(lambda: Grouped(A, [*MEMBERS, []]), ValueError, "no empty group"),
    Fault(lambda: Grouped(A, [*MEMBERS, [0]]), ValueError, "contain 31 indices"),
    Fault(lambda: Grouped(A, LABELS, 0), ValueError, "one positive number"),
    Fault(lambda: Grouped(A, LABELS, np.ones(3)), ValueError, "one per group"),
    Fault(lambda: Grouped(np.eye(3), [0, 1, 0]), ValueError, "codes look like signals"),
    Fault(lambda: Grouped(Joint(A, 2), LABELS), ValueError, "come in parts"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault):
    fault.check()
