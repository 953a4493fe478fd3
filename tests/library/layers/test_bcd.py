"""Block coordinate descent: the formula block by block, the descent, and the blocks of `init`."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import rows
from numpy.linalg import norm
from registry import _unit as unit

import unrolled as ur
from unrolled import layers
from unrolled.layers import Sweep, Unrolled, Visits, _bcd, bcd

M, N, K, LAM, DRAWS = 6, 11, 5, 0.1, 40
EPS = np.finfo(float).eps
# K sweeps of sums of M + N products of numbers near 1, each rounded, twice.
CLOSE = 2 * (M + N) * K * EPS
assert_close = partial(chex.assert_trees_all_close, rtol=0, atol=CLOSE)


@pytest.fixture(scope="module")
def problem():
    return np.array(unit(2, M, N)), np.random.default_rng(4).normal(size=(DRAWS, M))


def drawn(seed, spread, depth=K, d=N, norm=2.0):
    """Params for each draw: ranks of any size, and step sizes and thresholds off by exp(spread)."""
    rng = np.random.default_rng(seed)

    def around(*shape):
        return np.exp(spread * rng.normal(size=(DRAWS, *shape)))

    visits = Visits(rng.normal(size=(DRAWS, d)), around(d) / norm)
    sweeps = Sweep(around(depth), LAM * around(depth), rng.uniform(-1, 2, (DRAWS, depth)))
    return Unrolled(visits, sweeps)


def of_draw(params, i):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[i], params)


@partial(jax.jit, static_argnums=0)
def paths(layer, params, D, Y):
    """The codes after every step, each signal with params of its own."""
    return jax.vmap(layer.iterates, (0, None, 0))(params, D, Y)


@partial(jax.jit, static_argnums=0)
def codes(layer, params, D, Y):
    return jax.vmap(layer.apply, (None, None, 0))(params, D, Y)


def objectives(D, Y, X, lam=LAM):
    D, Y, X = (np.asarray(v, float) for v in (D, Y, X))
    return np.sum((Y - X @ D.T) ** 2, -1) / 2 + lam * np.abs(X).sum(-1)


def by_blocks(params, D, y, block, nonnegative):
    """The codes after every step: each residual anew from the code, one block after the other."""
    order = np.argsort(params.shared.rank)
    x = before = np.zeros(D.shape[1])
    path = []
    for gamma, theta, beta in zip(*params.steps):
        u = x + beta * (x - before)
        for first in range(0, len(order), block):
            b = order[first : first + block]
            s = params.shared.size[b]
            v = u[b] + gamma * s * (D[:, b].T @ (y - D @ u))
            u[b] = np.maximum(v - theta * s, 0)
            if not nonnegative:
                u[b] -= np.maximum(-v - theta * s, 0)
        before = x
        if objectives(D, y, u) <= objectives(D, y, x):
            x = u
        path.append(x)
    return np.array(path)


@pytest.mark.few(3)
@pytest.mark.parametrize("block, nonnegative", [(4, False), (1, True), (50, False), (3, True)])
def test_the_layer_is_its_formula_block_by_block(problem, block, nonnegative):
    """With params off by 80 %, some sweeps are taken back, and most sweeps are not."""
    D, Y = problem
    layer, params = bcd(K, lam=LAM, block=block, nonnegative=nonnegative), drawn(1, 0.6)
    expected = np.array(
        [by_blocks(of_draw(params, i), D, y, block, nonnegative) for i, y in enumerate(Y)]
    )
    steps = np.diff(expected, axis=1, prepend=0)
    assert 0.1 < np.mean(~steps.any(-1)) < 0.6
    # Longer steps enlarge the errors: by the largest step size, here 8, in each of a few sweeps.
    assert_close(paths(layer, params, D, Y), expected, atol=100 * CLOSE)


@pytest.mark.parametrize("group", [4, 64])
def test_the_products_of_a_group_of_blocks_are_those_of_the_blocks(problem, group, monkeypatch):
    """As for long signals: three groups of two blocks, or one group of all blocks."""
    D, Y = problem
    monkeypatch.setattr(_bcd, "_LONG", 1)
    monkeypatch.setattr(_bcd, "_GROUP", group)
    layer, params = bcd(K, lam=LAM, block=2, unroll=group), drawn(1, 0.6)  # a program of its own
    expected = np.array([by_blocks(of_draw(params, i), D, y, 2, False) for i, y in enumerate(Y)])
    assert layer.prepare(of_draw(params, 0), jnp.asarray(D)).D.shape[2] == min(group, N)
    assert_close(paths(layer, params, D, Y), expected, atol=100 * CLOSE)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_step_raises_the_objective_whatever_the_params(problem, dtype):
    """Params off by factors of hundreds; some params and signals are not even finite numbers."""
    layer, params = bcd(2 * K, lam=LAM, block=4), drawn(2, 3.0, 2 * K)
    params.steps.gamma[0, 3] = params.steps.theta[1, 2] = np.nan
    params.steps.beta[2, 4], params.steps.gamma[3, 1] = np.inf, 1e30
    cast = partial(jax.tree.map, partial(np.asarray, dtype=dtype))
    (D, Y), params = cast(problem), cast(params)
    path = paths(layer, params, D, Y)
    zero = np.sum(Y.astype(float) ** 2, 1) / 2
    values = np.column_stack([zero, objectives(D, Y[:, None], path)])
    # The residual is the sum of N / 4 changes in each sweep, each rounded.
    slack = 2 * K * N / 4 * np.finfo(dtype).eps * zero[:, None]
    assert (np.diff(values, axis=1) <= slack).all()
    assert np.mean(np.diff(values, axis=1) < 0) > 0.05


def singular(kind, rng):
    """D in float32; "rank one" and "duplicates" have many codes of every signal."""
    D = rng.normal(size=(20, 60))
    if kind == "rank one":
        D = np.outer(D[:, 0], D[0])
    elif kind == "duplicates":
        D[:, 30:] = D[:, :30]
    return D.astype("float32")


def attacked(kind, lam, choices, runs, seed):
    """The codes of `runs` draws of large momenta, signal and D in float32."""
    rng = np.random.default_rng(seed)
    D, y = singular(kind, rng), rng.normal(size=20).astype("float32")
    layer = bcd(40, lam=lam, block=4)
    params = layer.init(None, D)
    beta = rng.choice(choices, (runs, 40)).astype("float32")
    draws = params._replace(steps=params.steps._replace(beta=beta))
    axes = jax.tree.map(lambda _: None, params)
    axes = axes._replace(steps=axes.steps._replace(beta=0))
    run = jax.jit(jax.vmap(layer.iterates, (axes, None, None)))
    return D, y, np.asarray(run(draws, D, y), float)


def never_rises(D, y, path, lam):
    """Up to errors of n + 2 roundings in each entry of the residual, before and after a step."""
    X = np.concatenate([0 * path[:, :1], path], axis=1)
    values = objectives(D, y, X, lam)
    error = norm((D.shape[1] + 2) * np.finfo("float32").eps * (np.abs(X) @ np.abs(D).T), axis=-1)
    slack = error * (np.sqrt(2 * values) + error) + 20 * np.finfo("float32").eps * values[:, :1]
    rises = np.diff(values, axis=1) - slack[:, 1:] - slack[:, :-1]
    return (rises <= 0).all() and (values[:, -1] <= 1.001 * values[:, 0]).all()


def test_momentum_does_not_multiply_the_errors_of_residuals():
    for seed in range(4):
        assert never_rises(*attacked("rank one", 0.0, [1, 5, -3], 64, seed), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices, lams",
    [
        ([1, 5, -3], (0.0, 1e-5, 1e-2)),
        ([1, 30, -30], (1e-5, 1e-2, 0.0)),
        ([1, 5, -3, 1000], (1e-2, 0.0, 1e-5)),
    ],
)
@pytest.mark.parametrize("i, kind", [(0, "rank one"), (1, "gaussian"), (2, "duplicates")])
def test_no_momentum_raises_the_objective(choices, lams, i, kind):
    """Every two of a kind, a penalty and momenta meet once."""
    lam = lams[i]
    for seed in range(10, 16):
        assert never_rises(*attacked(kind, lam, choices, 647, seed), lam)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. ")  # this training is meant to go wrong
@pytest.mark.parametrize("rate", [0.1, 3.0])
@pytest.mark.parametrize("kind, lam", [("rank one", 0.0), ("duplicates", 1e-2)])
@pytest.mark.parametrize("choices", [None, [1, 5, -3]])
def test_no_trained_params_raise_the_objective(kind, lam, choices, rate):
    """Trained at large rates, from `init` or from large momenta; half of the signals have codes."""
    rng = np.random.default_rng(30)
    D, layer = singular(kind, rng), bcd(K, lam=lam, block=16)
    X = rng.normal(size=(150, 60)) * (rng.random((150, 60)) < 0.1)
    Y = np.concatenate([X @ D.T, rng.normal(size=(150, 20))]).astype("float32")
    start = layer.init(None, D)
    if choices:
        beta = rng.choice(choices, K).astype("float32")
        start = start._replace(steps=start.steps._replace(beta=beta))
    options = dict(loss=ur.training.lasso_loss(lam), steps=30, key=0)
    params = ur.fit(layer, start, D, Y, optimizer=optax.adam(rate), **options).params
    assert norm(params.steps.gamma - start.steps.gamma) > rate
    path = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))(params, D, Y)
    assert never_rises(D, Y[:, None], np.asarray(path, float), lam)


def coherent(seed, m, d):
    """Atoms near their neighbours, with norms from 1 / 20 to 20."""
    rng = np.random.default_rng(seed)
    D = np.cumsum(rng.normal(size=(m, d)), axis=1) + rng.normal(size=(m, d))
    return D / norm(D, axis=0) * np.exp(rng.uniform(-3, 3, d))


def within(D, blocks):
    """The sum of the squared cosines between different atoms of one block."""
    U = D / norm(D, axis=0)
    return sum(np.sum((U[:, b].T @ U[:, b]) ** 2) - len(b) for b in blocks)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m, d, block", [(12, 50, 8), (12, 24, 6), (9, 5, 10**6)])
def test_init_separates_coherent_atoms_and_inverts_the_norms_of_blocks(m, d, block, dtype):
    D = coherent(0, m, d).astype(dtype)
    shared, steps = jax.device_get(bcd(K, lam=LAM, block=block).init(None, D))
    order = np.argsort(shared.rank)
    np.testing.assert_array_equal(np.sort(shared.rank), np.arange(d))
    blocks = np.split(order, range(block, d, block))
    for b in blocks:
        assert np.ptp(shared.size[b]) == 0
        product = shared.size[b[0]] * norm(D[:, b].astype(float), 2) ** 2
        # An eigenvalue of a matrix of size n is off by about n eps; the margin is 4 n eps.
        assert 1 - 16 * min(block, d) * np.finfo(dtype).eps <= product <= 1
    neighbours = np.split(np.arange(d), range(block, d, block))
    assert d <= block or within(D, blocks) < 0.6 * within(D, neighbours)
    chex.assert_trees_all_equal(steps.gamma, np.ones(K, dtype))
    chex.assert_trees_all_close(steps.theta, np.full(K, LAM, dtype))


def test_init_is_one_program_for_many_dictionaries():
    Ds = np.stack([coherent(seed, 12, 30) for seed in range(3)])
    layer = bcd(K, block=8)
    together = jax.jit(jax.vmap(partial(layer.init, None)))(Ds)
    for i, D in enumerate(Ds):
        ours, alone = of_draw(together, i), layer.init(None, D)
        chex.assert_trees_all_equal(ours.shared.rank, np.asarray(alone.shared.rank))
        chex.assert_trees_all_close(ours, alone, rtol=100 * EPS)


def smooth(rng):
    """Atoms like their neighbours, whose products with them are 0.9."""
    C = 0.9 ** np.abs(np.subtract.outer(np.arange(72), np.arange(72)))
    return rng.normal(size=(36, 72)) @ np.linalg.cholesky(C).T


@pytest.mark.parametrize("kind", ["gaussian", "smooth", "nonnegative"])
def test_sweeps_are_nearer_to_the_optimum_than_twice_as_many_steps_of_fista(kind):
    """On codes with 5 % nonzeros, 1 % noise, and a lam of a tenth of the largest penalty."""
    rng = np.random.default_rng(5)
    D = {
        "gaussian": lambda: rng.normal(size=(36, 72)),
        "smooth": lambda: smooth(rng),
        "nonnegative": lambda: rng.uniform(size=(36, 72)),
    }[kind]()
    D /= norm(D, axis=0)
    X = rng.normal(size=(50, 72)) * (rng.random((50, 72)) < 0.05)
    Y = X @ D.T + 0.01 * rng.normal(size=(50, 36))
    lam = 0.1 * np.abs(Y @ D).max()
    ours, fista = bcd(16, lam=lam), layers.fista(32, lam=lam)
    optimum = objectives(D, Y, ur.pursuit.lasso_batch(D, Y, lam).x, lam).mean()
    found, theirs = (
        objectives(D, Y, codes(layer, layer.init(None, D), D, Y), lam).mean()
        for layer in (ours, fista)
    )
    assert optimum <= found < theirs


def test_many_sweeps_reach_the_optimum_to_rounding(problem):
    """A sweep whose gain is below the rounding of the objective can be taken back. The gap of a
    code is then of the order of the square root of eps, because the dual point is as far from
    optimal as the code, not as its objective.
    """
    D, Y = problem
    layer = bcd(3000, lam=LAM, block=4)
    X = codes(layer, layer.init(None, D), D, Y)
    gaps = jax.jit(jax.vmap(ur.pursuit.duality_gap, (None, 0, 0, None)))(D, Y, X, LAM)
    assert (gaps <= 10 * np.sqrt(EPS) * np.sum(Y**2, 1) / 2).all()
    exact = ur.pursuit.lasso_batch(D, Y, LAM, tol=1e-14).x
    np.testing.assert_allclose(objectives(D, Y, X), objectives(D, Y, exact), rtol=1e-12)


def test_steps_one_by_one_are_the_loop(problem):
    D, Y = problem
    layer, params = bcd(K, lam=LAM, block=4), of_draw(drawn(3, 0.5), 0)

    def one_by_one(params, D, y):
        (shared, steps), D, restore = layer.prepare(layers.unstack(params), D)
        state = layer.start(D, y)
        for p in steps:
            state = layer.step(shared, p, D, y, state)
            yield restore(state.x)

    path = jax.jit(lambda *arguments: jnp.stack(list(one_by_one(*arguments))))(params, D, Y[0])
    assert_close(path, layer.iterates(params, D, Y[0]))


def test_a_guard_with_the_same_lam_changes_nothing(problem):
    D, Y = problem
    plain, guarded = bcd(K, lam=LAM, block=4), bcd(K, lam=LAM, block=4, guard=LAM)
    params = drawn(6, 0.5)
    assert_close(paths(guarded, params, D, Y), paths(plain, params, D, Y))


def test_a_program_with_known_params_sorts_when_it_runs(problem):
    """XLA takes seconds to sort a thousand known ranks; it must not try."""
    D, Y = problem
    layer, params = bcd(K, lam=LAM, block=4), of_draw(drawn(3, 0.5), 0)
    program = jax.jit(lambda y: layer.apply(params, D, y)).lower(Y[0]).compile()
    assert " sort(" in program.as_text()


def test_the_order_of_the_atoms_in_the_dictionary_does_not_matter(problem):
    D, Y = problem
    layer, params = bcd(K, lam=LAM, block=4), drawn(4, 0.5)
    order = np.random.default_rng(0).permutation(N)
    visits = jax.tree.map(lambda leaf: leaf[:, order], params.shared)
    permuted = paths(layer, params._replace(shared=visits), D[:, order], Y)
    # The same blocks in the same order: only sums over all atoms round otherwise.
    assert_close(permuted, np.asarray(paths(layer, params, D, Y))[..., order])


def test_a_missing_row_is_a_row_of_zeros(problem):
    D, Y = problem
    mask = np.arange(M) != 2
    layer, params = bcd(K, lam=LAM, block=4), of_draw(drawn(5, 0.5), 0)
    masked = layer.apply(params, ur.dictionaries.Masked(D, mask), Y[0] * mask)
    assert_close(masked, layer.apply(params, D * mask[:, None], Y[0] * mask))


LARGE, SMALL = 2.0**400, 2.0**-400


@pytest.mark.parametrize("s, t", [(LARGE, SMALL), (SMALL, LARGE), (LARGE, LARGE), (SMALL, SMALL)])
def test_codes_scale_with_signals_and_against_atoms(problem, s, t):
    """By powers of two, exactly: up to the squares of the numbers, which are near the limits."""
    D, Y = problem[0], problem[1][0]
    plain, scaled = bcd(K, lam=0.125, block=4), bcd(K, lam=0.125 * s * t, block=4)
    expected = plain.apply(plain.init(None, D), D, Y)
    assert np.count_nonzero(expected) > 2
    found = scaled.apply(scaled.init(None, D * s), D * s, Y * t)
    chex.assert_trees_all_equal(found, expected * (t / s))


def test_one_atom_takes_its_code_in_one_sweep():
    d, y = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    layer = bcd(1, lam=1.0)
    code = layer.apply(layer.init(None, d[:, None]), d[:, None], y)
    # The step size is 200 eps below its limit.
    np.testing.assert_allclose(np.asarray(code), [(11 - 1) / 25], rtol=200 * EPS)


def test_zero_atoms_have_zero_codes_and_do_not_change_the_others(problem):
    D, Y = problem
    layer = bcd(K, lam=LAM, block=4)
    padded = np.insert(D, [0, 5, 5, 9], 0, axis=1)
    X = np.asarray(codes(layer, layer.init(None, padded), padded, Y))
    zero = ~padded.any(0)
    assert zero.sum() == 4 and not X[:, zero].any()
    assert (objectives(padded, Y, X) < np.sum(Y**2, 1) / 2).all()


@pytest.mark.parametrize("seed", range(3))
def test_copies_of_an_atom_are_in_different_blocks(seed):
    """As many copies as blocks: they choose first, while all blocks have room."""
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(6, 22))
    copies = rng.permutation(22)[:6]
    D[:, copies] = D[:, copies[:1]]
    ranks = np.asarray(bcd(K, block=4).init(None, D).shared.rank)
    assert set(ranks[copies] // 4) == set(range(6))


def test_blocks_do_not_depend_on_the_norms_and_signs_of_atoms():
    D, rng = coherent(1, 12, 50), np.random.default_rng(0)
    scales = rng.choice([-1, 1], 50) * 2.0 ** rng.integers(-3, 4, 50)
    ranks, same = (bcd(K, block=8).init(None, A).shared.rank for A in (D, D * scales))
    chex.assert_trees_all_equal(ranks, same)


def test_the_code_of_a_signal_that_is_not_finite_is_nan_and_harms_no_other(problem):
    D, Y = problem
    layer = bcd(K, lam=LAM, block=4)
    params = layer.init(None, D)
    torn = Y.copy()
    torn[3, 1], torn[7, 0] = np.nan, np.inf
    X, plain = (np.asarray(codes(layer, params, D, signals)) for signals in (torn, Y))
    whole = np.isfinite(torn).all(1)
    np.testing.assert_array_equal(X[whole], plain[whole])
    assert np.isnan(X[~whole]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_no_atom_is_left_out(dtype):
    """bfloat16 has the same number for many of 600 ranks, and float16 has one for each."""
    d = 600
    D, y = np.eye(d, dtype=dtype), np.linspace(1, 2, d).astype(dtype)
    layer = bcd(1, lam=0.25)
    x = layer.apply(layer.init(None, D), D, y)
    assert x.dtype == dtype
    error = np.asarray(x, float) - (np.asarray(y, float) - 0.25)
    assert np.abs(error).max() <= 4 * float(jnp.finfo(dtype).eps)


def test_training_leaves_the_ranks(problem):
    """They are not trained, also not by weight decay."""
    D, Y = problem
    layer = bcd(K, lam=LAM, block=4)
    params = layer.init(None, D)
    gradient = jax.jit(
        jax.grad(lambda p: jnp.mean(jnp.square(jax.vmap(layer.apply, (None, None, 0))(p, D, Y))))
    )(params)
    assert not np.any(gradient.shared.rank)
    assert all(np.any(leaf) for leaf in (gradient.shared.size, *gradient.steps[:2]))
    chex.assert_tree_all_finite(gradient)
    options = dict(loss=ur.training.lasso_loss(LAM), steps=5, key=jax.random.key(0))
    fitted = ur.fit(layer, params, D, Y, optimizer=optax.adamw(0.01, weight_decay=0.1), **options)
    before, after = params.shared, fitted.params.shared
    chex.assert_trees_all_equal(after.rank, before.rank)
    assert not np.array_equal(after.size, before.size)


A = np.ones((3, 4))
PARTS = ur.dictionaries.Complex(A, A), ur.dictionaries.Joint(A, 2)


def encoded(D):
    return lambda: bcd(2).apply(bcd(2).init(None, np.ones(D.shape)), D, np.ones(D.shape[0]))


test_refusals = rows(
    (lambda: bcd(2).init(None, np.zeros((3, 4))), "bcd: D is zero, so the step size"),
    (lambda: bcd(2).init(None, A.astype("f4") * 1e-25), "leaves the range of float32"),
    (lambda: bcd(2, block=0), "block must be at least 1"),
    (lambda: bcd(2, block=2.5), TypeError, "block must be an integer"),
    *((encoded(D), "bcd: .* try layers.alista or lista_cp") for D in PARTS),
)
