"""Certificates of given params: no draw of the class may break one, whatever the params are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import barker, lines, matrix_of
from oracles import unit

from unrolled import analytic, dictionaries, layers, networks, theory
from unrolled.layers import StepAndThreshold, Threshold, Unrolled, Weights, WeightsAndThreshold

EPS = np.finfo(np.float64).eps


def members(rng, W, D, n, s, B, delta):
    """Codes of the class and their signals: extreme sizes, signs along a product, worst noise."""
    d = D.shape[1]
    count = np.where(rng.random(n) < 0.7, s, rng.integers(0, s + 1, n))
    support = np.argsort(rng.random((n, d)), axis=1) < count[:, None]
    size = np.where(rng.random((n, 1)) < 0.6, 1.0, rng.uniform(0, 1, (n, d)))
    row = rng.integers(d, size=n)
    aligned = np.sign(W.T @ D)[row]
    signs = np.where(rng.random((n, 1)) < 0.5, aligned, rng.choice([-1, 1], (n, d)))
    X = B * support * size * np.where(signs == 0, 1, signs)
    w = W.T[row]
    top = np.abs(w) >= np.abs(w).max(1, keepdims=True)
    E = np.where(top, np.sign(w), 0) / top.sum(1, keepdims=True) * rng.choice([-1, 1], (n, 1))
    return X, X @ D.T + delta * E


@functools.partial(jax.jit, static_argnames="layer")
def codes_of(layer, params, D, Y):
    return jax.vmap(layer.iterates, (None, None, 0))(params, D, Y)


def attack(layer, params, D, *, seed, sparsity, bound=1.0, noise=0.0, n=1000):
    """The certificate, and the largest share of its errors that a member reaches."""
    found = theory.certify(layer, params, D, sparsity=sparsity, bound=bound, noise=noise)
    assert found.error.shape == (layer.depth + 1,) and found.error[0] == sparsity * bound
    assert found.false_positives_excluded.shape == (layer.depth,)
    assert found.holds == bool(found.error[-1] < found.error[0] or found.error[-1] == 0)
    dtype = jax.tree.leaves(params)[0].dtype
    steps = layers.unstack(params).steps
    W = matrix_of(layer.weights(params.shared, steps[0], D).W)
    X, Y = members(np.random.default_rng(seed), W, matrix_of(D), n, sparsity, bound, noise)
    codes = np.asarray(codes_of(layer, params, D, jnp.asarray(Y, dtype)), np.float64)
    seen = np.abs(codes - X[:, None]).sum(2).max(0)
    # A stored y is rounded: by eps of its size, as the guard assumes.
    assert (seen <= found.error[1:] * (1 + 1e-12)).all()
    wrong = (codes != 0) & (X == 0)[:, None]
    assert not wrong[:, found.false_positives_excluded].any()
    return found, float(np.max(seen / found.error[1:], initial=0, where=found.error[1:] > 1e-9))


@functools.cache
def pairs():
    rng = np.random.default_rng(0)
    plain = unit(rng.normal(size=(36, 48)))
    hadamard = np.asarray(dictionaries.identity_hadamard(64))
    minimax = np.asarray(analytic.minimax_weights(plain))
    return {
        "hadamard": (hadamard, hadamard),
        "minimax": (plain, minimax),
        "off its diagonal": (plain, minimax * rng.uniform(0.97, 1.03, 48)),
        "circular": (barker(30), None),
        "valid": (barker(30, "valid"), None),
    }


EVERY = "hadamard", "minimax", "off its diagonal", "circular", "valid"
K = 12


@pytest.mark.few(1)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_theory_s_own_params_have_the_error_of_their_schedule(name, noise, dtype):
    D, W = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), pairs()[name])
    options = dict(sparsity=2, bound=1.5, noise=noise, depth=K)
    problem = dict(sparsity=2, bound=1.5, noise=noise)
    for per_atom in (False, True):
        _, schedule = analytic.block_schedule(D, W, per_atom=per_atom, **options)
        params = analytic.lista_cp(D, W=W, per_atom=per_atom, **options)
        found = theory.certify(layers.lista_cp(K), params, D, **problem)
        assert found.false_positives_excluded.all()
        # The guard has the same form, and mu is rounded up. C_W is the largest of all atoms, where
        # a certificate adds the s largest.
        slack, rel = 160 * float(np.finfo(dtype).eps), 1e-6
        if noise and name in ("minimax", "off its diagonal"):
            rel = 0.02
        assert found.error == pytest.approx(schedule.error, rel=rel, abs=slack)
        assert (found.error <= schedule.error * (1 + 1e-6)).all()
        assert found.holds == schedule.holds and found.largest_sparsity >= 2
        untied = analytic.lista_cp(D, W=W, per_atom=per_atom, tied=False, **options)
        fixed = analytic.alista(D, W=W, per_atom=per_atom, **options)
        for layer, same in ((layers.lista_cp(K, tied=False), untied), (layers.alista(K), fixed)):
            again = theory.certify(layer, same, D, **problem)
            assert again.error.tolist() == found.error.tolist()


def learned(layer, params, D, seed):
    """A few steps of gradient descent on signals of 3 nonzeros."""
    rng = np.random.default_rng(seed)
    d = D.shape[1]
    X = (np.argsort(rng.random((64, d)), 1) < 3) * rng.uniform(-1, 1, (64, d))
    X, Y = jnp.asarray(X), jnp.asarray(X @ matrix_of(D).T)

    def loss(p):
        return jnp.mean((jax.vmap(layer.apply, (None, None, 0))(p, D, Y) - X) ** 2)

    @jax.jit
    def step(p):
        moved = jax.tree.map(lambda v, g: v - 2.0 * g, p, jax.grad(loss)(p))
        return moved._replace(steps=moved.steps._replace(theta=jnp.maximum(moved.steps.theta, 0)))

    for _ in range(20):
        params = step(params)
    return params


def perturbed(rng, params, amount):
    """Every number times 1 +- amount, thresholds by up to a factor of 3 in both directions."""
    moved = jax.tree.map(lambda v: v * rng.uniform(1 - amount, 1 + amount, v.shape), params)
    theta = moved.steps.theta * 3.0 ** rng.uniform(-1, 1, moved.steps.theta.shape)
    return moved._replace(steps=moved.steps._replace(theta=theta))


def cases():
    rng = np.random.default_rng(3)
    D, W = pairs()["minimax"]
    options = dict(depth=K, sparsity=2, bound=1.0)
    tied, untied = (analytic.lista_cp(D, W=W, tied=t, **options) for t in (True, False))
    steps = analytic.alista(D, W=W, **options)
    atoms = analytic.lista_cp(D, W=W, per_atom=True, **options)
    sample = jnp.asarray((rng.random((60, 48)) < 0.06) * rng.uniform(-1, 1, (60, 48)))
    calibrated = analytic.calibrate(layers.lista_cp(K), tied, D, sample @ D.T, sample)
    scaled = jnp.asarray(D * rng.uniform(0.5, 2, 48))
    random = Unrolled(
        None,
        WeightsAndThreshold(
            *(jnp.asarray(v) for v in (rng.normal(size=(K, 36, 48)) / 60, rng.uniform(0, 0.3, K)))
        ),
    )
    C = pairs()["circular"][0]
    filters = analytic.lista_cp(C, **options)
    filters = filters._replace(
        steps=Threshold(filters.steps.theta[:, None] * jnp.asarray(rng.uniform(0.7, 1.5, (K, 2))))
    )
    per_atom_steps = Unrolled(
        Weights(jnp.asarray(W)),
        StepAndThreshold(
            jnp.asarray(rng.uniform(0.6, 1.1, (K, 48))), jnp.asarray(steps.steps.theta) * 1.2
        ),
    )
    return {
        "learned, tied": (layers.lista_cp(K), learned(layers.lista_cp(K), tied, D, 0), D),
        "learned, alista": (layers.alista(K), learned(layers.alista(K), steps, D, 1), D),
        "perturbed, tied": (layers.lista_cp(K), perturbed(rng, tied, 0.01), D),
        "perturbed, untied": (layers.lista_cp(K), perturbed(rng, untied, 0.03), D),
        "perturbed, per atom": (layers.lista_cp(K), perturbed(rng, atoms, 0.01), D),
        "perturbed, alista": (layers.alista(K), perturbed(rng, steps, 0.05), D),
        "calibrated": (layers.lista_cp(K), calibrated, D),
        "support selection": (
            layers.lista_cp(K, support=(0.01, 0.1)), perturbed(rng, tied, 0.01), D
        ),
        "selection, low thresholds": (
            layers.lista_cp(K, support=(0.05, 0.5)),
            tied._replace(steps=Threshold(0.2 * tied.steps.theta)),
            D,
        ),
        "low thresholds": (
            layers.lista_cp(K), tied._replace(steps=Threshold(0.2 * tied.steps.theta)), D
        ),
        "random": (layers.lista_cp(K), random, D),
        "ista": (layers.ista(K), layers.ista(K, lam=0.3).init(None, jnp.asarray(D)), D),
        "atoms of any norm": (
            layers.ista(K), layers.ista(K, lam=0.3).init(None, scaled), scaled
        ),
        "Conv, per filter": (layers.lista_cp(K), filters, C),
        "a step size per atom": (layers.tilista(K), per_atom_steps, D),
    }  # fmt: skip


NAMES = [
    "learned, tied", "learned, alista", "perturbed, tied", "perturbed, untied",
    "perturbed, per atom", "perturbed, alista", "calibrated", "support selection",
    "selection, low thresholds", "low thresholds", "random", "ista", "atoms of any norm",
    "Conv, per filter", "a step size per atom",
]  # fmt: skip


@pytest.fixture(scope="module")
def every_case():
    return cases()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_member_of_the_class_breaks_a_certificate(every_case, name):
    # 15 cases, 4 classes and 350 members each: 21,000 draws.
    layer, params, D = every_case[name]
    params, D = jax.tree.map(jnp.asarray, (params, D))
    classes = ((1, 0.0, 1.0), (2, 0.0, 1.0), (3, 0.05, 1.0), (1, 0.3, 0.1))
    for seed, (s, noise, B) in enumerate(classes):
        _, share = attack(layer, params, D, seed=seed, sparsity=s, noise=noise, bound=B, n=350)
        assert share > 0.05


def step_of(D, W, gamma, theta, passing, X, Y):
    """One step by plain sums: the entries above the (passing + 1)-th magnitude pass."""
    U = X + gamma * ((Y - X @ D.T) @ W)
    size = np.abs(U)
    shrunk = np.sign(U) * np.maximum(size - theta, 0)
    if not passing:
        return shrunk
    d = size.shape[1]
    border = np.sort(size, 1)[:, [d - 1 - passing]] if passing < d else -1.0
    return np.where((size > border) & (size > theta), U, shrunk)


def test_tiny_pairs_with_any_weights_stay_under_their_certificates():
    # Weights, step sizes and thresholds per atom are random: few certificates hold, all are true.
    rng, tightest, held, K = np.random.default_rng(7), 0.0, 0, 4
    for trial in range(60):
        m, d = [(2, 3), (3, 3), (3, 4)][trial % 3]
        D = unit(np.eye(m, d) + rng.choice([0.02, 0.1, 0.5]) * rng.normal(size=(m, d)))
        W = D + rng.choice([0.0, 0.05, 0.5]) * rng.normal(size=(m, d))
        gamma = rng.uniform(0.5, 1.2, K)
        s, noise = int(rng.integers(1, d + 1)), 0.1 * (trial % 4 == 0)
        B, fraction = 10.0 ** rng.uniform(-1, 1), rng.choice([0.0, 0.0, 0.5, 1.0])
        theta = B * rng.uniform(0, rng.choice([0.2, 1]), (K, d)) * 0.6 ** np.arange(K)[:, None]
        layer = layers.tilista(K, support=(fraction, fraction) if fraction else None)
        params = Unrolled(
            Weights(jnp.asarray(W)), StepAndThreshold(*map(jnp.asarray, (gamma, theta)))
        )
        found = theory.certify(layer, params, D, sparsity=s, bound=B, noise=noise)
        held += found.holds
        X, Y = members(rng, W, D, 400, s, B, noise)
        x = np.zeros_like(X)
        for k in range(K):
            x = step_of(D, W, gamma[k], theta[k], round(fraction * d), x, Y)
            seen = np.abs(x - X).sum(1).max()
            assert seen <= found.error[k + 1] * (1 + 1e-12) + 1e-14
            if k == 0:
                tightest = max(tightest, seen / found.error[1])
            if found.false_positives_excluded[k]:
                assert not x[X == 0].any()
    assert 3 < held < 60 and tightest > 0.95


def test_the_error_of_a_false_positive_moves_the_entry_on_the_support():
    # The first step leaves all of its error off the support, the second brings it back.
    D, theta, x = jnp.array([[1.0, 0.5], [0.0, 0.75**0.5]]), jnp.array([0.0, 0.05]), np.eye(2)[0]
    layer, params = layers.lista_cp(2), Unrolled(Weights(D), Threshold(theta))
    found = theory.certify(layer, params, D, sparsity=1, bound=1.0)
    codes = np.asarray(layer.iterates(params, D, D @ x))
    errors = np.abs(codes - x).sum(1)
    np.testing.assert_allclose(errors, [0.5, 0.3], atol=1e-14)
    assert found.error[1] == pytest.approx(0.5) and errors[1] <= found.error[2]


def test_a_false_positive_that_passes_unshrunk_counts_in_full():
    # Orthonormal atoms, noise of .3 in one entry and a threshold of .2 below it.
    D, theta = jnp.eye(3), jnp.full(1, 0.2)
    params = Unrolled(Weights(D), Threshold(theta))
    problem = dict(sparsity=1, bound=1.0, noise=0.3)
    y, x = jnp.array([1.0, 0.3, 0.0]), jnp.array([1.0, 0.0, 0.0])
    # theta + delta on the support, and delta - theta or delta for two others.
    for support, error in (((1.0, 1.0), 1.1), (None, 0.7)):
        layer = layers.lista_cp(1, support=support)
        found = theory.certify(layer, params, D, **problem)
        assert not found.false_positives_excluded[0]
        assert found.error[1] == pytest.approx(error)
        seen = float(jnp.abs(layer.apply(params, D, y) - x).sum())
        assert seen == pytest.approx(0.3)  # the threshold or the false positive


def test_the_noise_of_an_atom_is_that_of_its_own_entries():
    # Three rows and three groups of atoms, [I, F] with two filters: no row stands for a group.
    filters = np.array([[[0.0, 0.6, 0.8]], [[0.0, 0.8, -0.6]]])
    D = dictionaries.WithIdentity(dictionaries.Conv(filters, 3))
    filters[0, 0, 0] = 5.0
    W = dictionaries.WithIdentity(dictionaries.Conv(filters, 3))
    params = Unrolled(Weights(W), Threshold(jnp.array([[6.0, 1.5, 6.0]])))
    layer, y = layers.lista_cp(1), jnp.array([1.0, 0.0, 0.0])
    found = theory.certify(layer, params, D, sparsity=0, bound=1.0, noise=1.0)
    seen = float(jnp.abs(layer.apply(params, D, y)).sum())
    assert seen == pytest.approx(3.5) == found.error[1]
    assert not found.false_positives_excluded[0] and not found.holds


def test_one_nonzero_attains_the_bound():
    D = dictionaries.paley(13)  # an equiangular frame, 7 x 14
    params = analytic.lista_cp(D, depth=3, sparsity=1, bound=1.0)
    layer = layers.lista_cp(3)
    found = theory.certify(layer, params, D, sparsity=1, bound=1.0)
    x = np.eye(14)[3]
    codes = np.asarray(layer.iterates(params, D, D @ x))
    assert np.abs(codes - x).sum(1) == pytest.approx(found.error[1:], rel=1e-6)


def test_thresholds_without_room_for_rounding_exclude_no_false_positives():
    D, layer = dictionaries.identity_hadamard(16), layers.lista_cp(1)
    least = theory.rounding_guard(D, D, sparsity=1, bound=1.0)
    for guard, excluded in ((0.0, False), (least / 9, False), (least, True)):
        theta = jnp.full(1, 0.25 + guard)  # mu_W s B and the guard
        params = Unrolled(Weights(D), Threshold(theta))
        found = theory.certify(layer, params, D, sparsity=1, bound=1.0)
        assert found.false_positives_excluded.tolist() == [excluded]


def test_limit_cases():
    D = dictionaries.identity_hadamard(16)
    params = analytic.lista_cp(D, depth=4, sparsity=2, bound=1.0, noise=0.01)
    layer = layers.lista_cp(4)

    def certify(**options):
        return theory.certify(layer, params, D, **{"sparsity": 1, "bound": 1.0, **options})

    empty = certify(sparsity=0, noise=0.01)
    assert empty.error.tolist() == [0] * 5 and empty.holds
    assert not certify(sparsity=0, noise=10.0).holds  # noise alone makes false positives
    assert certify(bound=0.0).error[0] == 0 and certify(bound=0.0).error[-1] > 0
    assert certify(sparsity=99).error[0] == 32 and not certify(sparsity=99).holds
    # No threshold at all: everything is let through, and the error says so.
    bare = Unrolled(params.shared, Threshold(jnp.zeros(4)))
    open_ = theory.certify(layer, bare, D, sparsity=1, bound=1.0)
    assert not open_.false_positives_excluded.any() and not open_.holds
    # Without steps the code is 0.
    none = analytic.lista_cp(D, depth=0, sparsity=1, bound=1.0)
    start = theory.certify(layers.lista_cp(0), none, D, sparsity=3, bound=2.0)
    assert (start.error.tolist(), start.holds, start.largest_sparsity) == ([6], False, 0)
    assert start.false_positives_excluded.shape == (0,)
    # A diverging error ends at inf, never at nan.
    long = Unrolled(Weights(30 * D), Threshold(jnp.zeros(400)))
    wild = theory.certify(layers.lista_cp(400), long, D, sparsity=1, bound=1.0, noise=0.1)
    assert wild.error[-1] == np.inf and not np.isnan(wild.error).any()
    assert not wild.holds and wild.largest_sparsity == 0


def test_one_large_threshold_may_leave_only_larger_sparsities():
    """top_s(theta) / s falls with s: e_1 = 1.5 + .1 (s - 1) is below e_0 = s from s = 2 on."""
    layer, D = layers.lista_cp(1), jnp.eye(6)
    params = layer.from_theory(D, jnp.array([[1.5, 0.1, 0.1, 0.1, 0.1, 0.1]]))
    found = [theory.certify(layer, params, D, sparsity=s, bound=1.0) for s in range(1, 7)]
    assert [f.holds for f in found] == [False, *[True] * 5]
    assert {f.largest_sparsity for f in found} == {6} and "holds for s = 6" in found[0].reason


def test_the_certificate_holds_up_to_its_largest_sparsity():
    D = dictionaries.identity_hadamard(64)
    params, layer = analytic.lista_cp(D, depth=30, sparsity=4, bound=1.0), layers.lista_cp(30)
    found = [theory.certify(layer, params, D, sparsity=s, bound=1.0) for s in range(1, 7)]
    assert [f.holds for f in found] == [True] * 4 + [False] * 2
    assert {f.largest_sparsity for f in found} == {4} == {theory.max_sparsity(1 / 8, 128)}


def test_a_less_precise_layer_has_a_larger_guard():
    D = dictionaries.identity_hadamard(16).astype(np.float32)
    params = analytic.lista_cp(D, depth=30, sparsity=1, bound=1.0)
    ends = [
        theory.certify(layers.lista_cp(30, precision=p), params, D, sparsity=1, bound=1.0).error[-1]
        for p in ("highest", "high", "default")
    ]
    assert ends[0] < 1e-5 < ends[1] < ends[2]


def chain():
    """16 -> 32 -> 40 with 2 nonzeros before 1."""
    return np.asarray(dictionaries.identity_hadamard(16)), lines(3, 2, 13, 40, 32)


@pytest.mark.few(1)
@pytest.mark.parametrize("scaled", [False, True])
def test_chains_hand_on_what_a_layer_leaves(scaled):
    Ds, rng = chain(), np.random.default_rng(0)
    problem = dict(sparsities=(2, 1), bounds=(0.8, 1.0))
    params = analytic.dsc(Ds, depths=(20, 20), noises=(0.01, 0.02), **problem)
    _, schedules = analytic.chain_schedules(Ds, depths=(20, 20), noises=(0.01, 0.02), **problem)
    network = networks.dsc([layers.lista_cp(20), layers.lista_cp(20)])
    if scaled:
        params = jax.tree.map(lambda v: v * rng.uniform(1, 1.004, v.shape), params)
        params = tuple(p._replace(steps=Threshold(1.1 * p.steps.theta)) for p in params)
    found = theory.certify(
        network, params, Ds, sparsity=(2, 1), bound=(0.8, 1.0), noise=(0.01, 0.02)
    )
    if not scaled:
        for certificate, schedule in zip(found, schedules):
            assert certificate.false_positives_excluded.all()
            assert certificate.error == pytest.approx(schedule.error, rel=1e-5)
    X2 = np.zeros((300, 40))
    X2[np.arange(300), rng.integers(40, size=300)] = rng.choice([-1, 1], 300)
    X1 = X2 @ Ds[1].T
    row = rng.integers(16, size=300)
    Y = X1 @ Ds[0].T + 0.01 * np.eye(16)[row]
    codes = jax.jit(jax.vmap(network.iterates, (None, None, 0)))(params, Ds, jnp.asarray(Y))
    for certificate, x, X in zip(found, codes, (X1, X2)):
        x = np.asarray(x)
        assert (np.abs(x - X[:, None]).sum(2).max(0) <= certificate.error[1:]).all()
        wrong = (x != 0) & (X == 0)[:, None]
        assert not wrong[:, certificate.false_positives_excluded].any()
    # One number is noise of the signal alone.
    one = theory.certify(network, params, Ds, sparsity=(2, 1), bound=(0.8, 1.0), noise=0.01)
    assert (
        one[0].error.tolist() == found[0].error.tolist() and one[1].error[-1] < found[1].error[-1]
    )


class _shifted(layers.lista_cp):
    "A step of its own is not the one of the theorems."

    def shrink(self, D, u, theta, fraction=None):
        return super().shrink(D, u, theta, fraction) + 1


class _warm(layers.lista_cp):
    "A start of its own neither."

    def start(self, D, y):
        return super().start(D, y)._replace(x=jnp.ones(D.shape[1]))


def test_a_family_is_coupled_unless_it_has_a_step_of_its_own():
    for name, family in layers.FAMILIES.items():
        expected = name in ("lista_cp", "lista_cpss", "alista", "tilista", "ista")
        if family.__module__.startswith("unrolled"):
            made = family(2, sparsity=1) if name == "liht" else family(2)
            assert made.is_coupled == expected, name
    assert not _shifted(2).is_coupled and not _warm(2).is_coupled
    params = Unrolled(Weights(jnp.eye(2)), Threshold(jnp.ones(2)))
    with pytest.raises(TypeError, match="is not x <- shrink"):
        theory.certify(_warm(2), params, np.eye(2), sparsity=1, bound=1.0)
    assert not theory.certify(_shifted(2), params, np.eye(2), sparsity=1, bound=1.0).holds
