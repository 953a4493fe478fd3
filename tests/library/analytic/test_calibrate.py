"""Calibration: both passes, what is held back, and the params it leaves alone."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import families

from unrolled import analytic, dictionaries, layers, networks, problems, training
from unrolled.analytic import _calibrate, calibrate
from unrolled.layers import Unrolled

DEPTH = 4
FAMILIES = families(DEPTH, support=(0.02, 0.05))
# The default ones first: those of other tests, too.
NAMES = ["ista", "alista with support", "lista_cp", *FAMILIES]
every_family = pytest.mark.parametrize("name", dict.fromkeys(NAMES))
# Two evaluations of one sum of squares, compiled differently: far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(float).eps


@pytest.fixture(scope="module")
def planted():
    """D, Y, X: 40 signals with 3 nonzeros, without noise."""
    D = dictionaries.gaussian(jax.random.key(1), 30, 60)
    X = problems.exact_sparse(jax.random.key(2), (40, 60), 3)
    return jax.tree.map(np.asarray, (D, problems.synthesize(D, X), X))


@pytest.fixture(scope="module")
def start(planted):
    """name -> params of `init`."""
    return cache(lambda name: FAMILIES[name].init(jax.random.key(0), planted[0]))


@pytest.fixture(scope="module")
def calibrated(planted, start):
    """name -> (params of `init`, calibrated params)."""
    return cache(lambda name: (start(name), calibrate(FAMILIES[name], start(name), *planted)))


@pytest.fixture(scope="module")
def seen(planted):
    """D, Y, X of the three quarters of the sample on which `calibrate` chooses."""
    D, Y, X = planted
    return D, Y[:30], X[:30]


first_pass = jax.jit(_calibrate.greedy, static_argnums=(0, 5))


@pytest.fixture(scope="module")
def greedy(seen, start):
    """name -> (params of `init`, those of the first pass)."""
    return cache(lambda name: (start(name), first_pass(FAMILIES[name], start(name), *seen)))


@partial(jax.jit, static_argnums=0)
def iterates(layer, params, D, Y):
    return jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y)


def errors(layer, params, D, Y, X):
    """Squared error of the whole sample after every step, relative to its energy."""
    codes = np.asarray(iterates(layer, params, D, Y))
    return ((codes - np.asarray(X)) ** 2).sum((1, 2)) / (np.asarray(X) ** 2).sum()


def step_of(params, k):
    return jax.tree.map(lambda rows: np.asarray(rows)[k], params.steps)


def with_step(params, k, step):
    """Params with step k replaced."""

    def replaced(rows, value):
        return np.stack([value if i == k else row for i, row in enumerate(np.asarray(rows))])

    return params._replace(steps=jax.tree.map(replaced, params.steps, step))


def others(params):
    """The leaves that calibration must not touch."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [np.asarray(leaf) for path, leaf in leaves if path[-1].name not in ("theta", "gamma")]


@pytest.mark.slow
@every_family
def test_each_greedy_step_is_at_least_as_good_as_the_one_it_replaces(name, seen, greedy):
    """After the greedy steps before it, step k of the start is never better than its own."""
    layer, (start, found) = FAMILIES[name], greedy(name)
    ours = errors(layer, found, *seen)
    for k in range(DEPTH):
        other = with_step(found, k, step_of(start, k))
        assert ours[k] <= errors(layer, other, *seen)[k] * (1 + ROUNDING)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["lista_cp", "ista", "alista with support"])
def test_no_pair_of_a_coarse_grid_beats_a_greedy_step_by_much(name, seen, greedy):
    """Step 2 against a grid of our own.

    The search ends between grid points 4 % apart, where the error is flat.
    """
    layer, (start, found) = FAMILIES[name], greedy(name)
    chosen, peak = errors(layer, found, *seen)[1], float(np.abs(seen[2]).max())
    step = step_of(found, 1)
    for theta in peak * np.geomspace(1e-4, 1, 12):
        for factor in (0.4, 1.0, 2.5) if hasattr(step, "gamma") else (1.0,):
            trial = step._replace(theta=theta)
            if hasattr(step, "gamma"):
                trial = trial._replace(gamma=factor * step_of(start, 1).gamma)
            assert chosen <= 1.001 * errors(layer, with_step(found, 1, trial), *seen)[1]


@pytest.mark.few(3)
@every_family
def test_without_noise_every_greedy_step_lowers_the_error(name, seen, greedy):
    """This holds for weights that can contract; a later test has some that cannot."""
    found = errors(FAMILIES[name], greedy(name)[1], *seen)
    assert (np.diff([1.0, *found]) < 0).all()


def decibels(layer, params, D, Y, X):
    return 10 * np.log10(errors(layer, params, D, Y, X)[-1])


def forms(layer, start, D, Y, X, aim=_calibrate.squared):
    """The candidates of `calibrate` by their names; of schedules of the theorem, the last one."""
    return dict(_calibrate._candidates(layer, start, D, Y, X, aim))


@pytest.mark.few(1)
@every_family
def test_one_factor_after_the_greedy_search_is_never_worse_after_the_last_step(
    name, planted, start, greedy
):
    """On the sample. All thresholds have one factor."""
    layer, first = FAMILIES[name], greedy(name)[1]
    found = forms(layer, start(name), *planted)["greedy search"]
    assert errors(layer, found, *planted)[-1] <= errors(layer, first, *planted)[-1] * (1 + ROUNDING)
    factors = np.asarray(found.steps.theta / first.steps.theta)
    np.testing.assert_allclose(factors, factors.flat[0], rtol=ROUNDING)


@pytest.mark.parametrize("name", ["ista", "lista_cp"])
def test_the_factor_of_a_search_is_the_best_of_a_fine_grid(name, planted, start, greedy):
    """To the distance of two points of its own second grid, which is half of the first's."""
    layer, (_, first) = FAMILIES[name], greedy(name)
    found = forms(layer, start(name), *planted)["greedy search"]
    factor = found.steps.theta[0] / first.steps.theta[0]
    tried = np.linspace(-np.log(8), np.log(8), 257)
    scaled = [
        first._replace(steps=first.steps._replace(theta=first.steps.theta * np.exp(t)))
        for t in tried
    ]
    best = tried[np.argmin([errors(layer, params, *planted)[-1] for params in scaled])]
    assert abs(np.log(factor) - best) <= np.log(8) / 8 / 2


@pytest.fixture(scope="module")
def large():
    """D, Y, X: 120 signals, from which a tail is fitted."""
    D = dictionaries.gaussian(jax.random.key(1), 30, 60)
    X = problems.exact_sparse(jax.random.key(2), (120, 60), 3)
    return jax.tree.map(np.asarray, (D, problems.synthesize(D, X), X))


@pytest.mark.parametrize("name", ["alista with support", "lista_cp", "ista"])
@pytest.mark.parametrize("loss", [None, training.lasso_loss(0.05)])
def test_no_candidate_has_a_smaller_loss_than_the_chosen_one(name, loss, large):
    """Except for greedy params that the held-back quarter refuses; here it refuses none."""
    layer, (D, Y, X) = FAMILIES[name], large
    start = layer.from_weights(None, analytic.frobenius_weights(D), D)
    X, judge = (X, _calibrate.smoothed) if loss is None else (None, loss)
    said = []
    found = calibrate(layer, start, D, Y, X, loss=loss, report=said.append)

    def value(params):
        codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
        return float(judge(codes[None], X, D, Y))

    tried = _calibrate._candidates(layer, start, D, Y, X, loss or _calibrate.squared)
    ours, values = value(found), [(form, value(params)) for form, params in tried]
    assert ours <= min(value(start), *(v for _, v in values)) * (1 + ROUNDING)
    assert len(said) == 1
    assert any(form in said[0] and v <= ours * (1 + ROUNDING) for form, v in values)
    assert ("Theorem 12" in dict(values)) == (layer.from_theory is not None)


@pytest.mark.parametrize("ratio", [0.6, 0.9])
def test_two_numbers_are_found_where_they_are_planted(ratio, planted, start):
    """The true codes are those of a layer with t and r: each threshold to a step of the grid."""
    layer, (D, Y, _) = FAMILIES["lista_cp"], planted
    theta = 0.2 * ratio ** np.arange(DEPTH)
    made = start("lista_cp")
    made = made._replace(steps=made.steps._replace(theta=theta))
    X = np.asarray(jax.vmap(layer.apply, (None, None, 0))(made, D, Y))
    found = forms(layer, start("lista_cp"), D, Y, X)["two numbers t and r, theta_k = t r^(k-1)"]
    logs = np.log(found.steps.theta)
    np.testing.assert_allclose(np.diff(logs), logs[1] - logs[0], atol=ROUNDING)
    assert np.abs(logs - np.log(theta)).max() <= np.log(2) / 2 + 0.75


def test_a_tail_replaces_no_more_than_the_largest_tenth():
    """The mean of a Pareto tail, by integration; and a failure counts once, not as its square."""
    X = np.ones((1000, 1))
    e = np.concatenate([np.full(900, 1e-4), 1e-4 * ((np.arange(100) + 0.5) / 100) ** -0.5])
    value = float(_calibrate.smoothed((X + np.sqrt(e)[:, None])[None], X, None, None))
    a = np.log(e[900:] / 1e-4).mean()
    q = (np.arange(10**6) + 0.5) / 10**6
    expected = 900e-4 + 100 * np.minimum(1e-4 * q**-a, 1).mean()
    unit = float(_calibrate.squared(0 * X[None], X, None, None)) / 1000
    assert value == pytest.approx(unit * expected, rel=1e-4)  # of the midpoint rule


def test_params_follow_the_unit_of_the_codes(planted):
    """A power of two; logarithms of the grids round."""
    D, Y, X = planted
    layer, W = FAMILIES["lista_cp"], analytic.frobenius_weights(D)
    thetas = [
        calibrate(layer, layer.from_theory(W, jnp.full(DEPTH, 0.1 * c)), D, c * Y, c * X)
        for c in (1, 2.0**10)
    ]
    one, other = (np.asarray(params.steps.theta) for params in thetas)
    np.testing.assert_allclose(other, 2.0**10 * one, rtol=ROUNDING)


@pytest.mark.slow
def test_the_greedy_pass_is_short_sighted():
    """At 12 steps the result is 1 to 5 dB better on other signals; the best factor is above 1."""
    D = dictionaries.gaussian(jax.random.key(0), 40, 80)
    sample = problems.sampler(D, 128, probability=0.08)
    (Y, X), others = sample(jax.random.key(1)), sample(jax.random.key(2))
    W, theta = analytic.frobenius_weights(D), jnp.full(12, 0.1)
    starts = {
        layer: layer.from_theory(W, theta) for layer in (layers.lista_cp(12), layers.alista(12))
    }
    starts[layers.ista(12)] = analytic.ista(D, 0.1, 12)
    for layer, start in starts.items():
        first = first_pass(layer, start, D, Y[:96], X[:96])
        found = calibrate(layer, start, D, Y, X)
        assert decibels(layer, found, D, *others) < decibels(layer, first, D, *others) - 1.0
        longer = forms(layer, start, D, Y, X)["greedy search"]
        assert (longer.steps.theta > first.steps.theta).all()


def at_four_atoms_per_entry(m, batch, depth):
    """Closed-form weights at d = 4 m, where W'D has eigenvalues above 4; two samples."""
    D = dictionaries.gaussian(jax.random.key(0), m, 4 * m)
    sample = problems.sampler(D, batch, probability=0.05)
    theta = jnp.full(depth, 0.1, D.dtype)
    return D, analytic.frobenius_weights(D), theta, sample(jax.random.key(1)), sample(2)


def check_scaled(found, W, D):
    """The weights that come back are W divided by half the spectral radius of W'D."""
    radius = np.abs(np.linalg.eigvals(np.asarray(W.T @ D))).max()
    factors = np.asarray(found / W)
    np.testing.assert_allclose(factors, factors.flat[0], rtol=ROUNDING)
    # The power iteration ends a few percent below the radius: eigenvalues lie close to the largest.
    assert radius > 4 and 2 <= factors.flat[0] * radius < 2.2


@pytest.mark.slow
def test_weights_that_expand_begin_with_a_step_size():
    """Thresholds of a greedy search end far above zero codes on other signals; c W is tried."""
    D, W, theta, (Y, X), others = at_four_atoms_per_entry(20, 64, 12)
    layer = layers.lista_cp(12)
    start = layer.from_theory(W, theta)
    found = calibrate(layer, start, D, Y, X)
    greedy = first_pass(layer, start, D, Y[:48], X[:48])
    assert decibels(layer, greedy, D, *others) > 10
    assert decibels(layer, found, D, *others) < -6
    check_scaled(_calibrate.scaled_weights(layer, start, D)[0].shared.W, W, D)


@pytest.mark.slow
def test_weights_of_single_steps_are_scaled_as_shared_ones_are():
    D, W, theta, (Y, X), _ = at_four_atoms_per_entry(20, 64, 4)
    found = (
        calibrate(layer, layer.from_theory(W, theta), D, Y, X)
        for layer in (layers.lista_cp(4), layers.lista_cp(4, tied=False))
    )
    tied, untied = found
    for k in range(4):
        np.testing.assert_allclose(untied.steps.W[k], tied.shared.W, rtol=ROUNDING)
    np.testing.assert_allclose(untied.steps.theta, tied.steps.theta, rtol=ROUNDING)


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("family, m, batch", [("lista_cp", 100, 480), ("alista", 250, 256)])
def test_weights_that_expand_calibrate_at_full_size(family, m, batch):
    """The greedy pass alone had 40 to 100 dB there."""
    with jax.enable_x64(False):
        D, W, theta, sample, others = at_four_atoms_per_entry(m, batch, 16)
        layer = getattr(layers, family)(16)
        found = calibrate(layer, layer.from_theory(W, theta), D, *sample)
        assert decibels(layer, found, D, *others) < -9


def test_weights_that_contract_stay_as_they_are(planted, calibrated):
    start, found = calibrated("lista_cp")
    assert found.shared.W is start.shared.W or (found.shared.W == start.shared.W).all()


def test_the_start_is_kept_if_no_candidate_is_better(planted, start):
    """The true codes are those of the start."""
    D, Y, _ = planted
    layer, given, said = FAMILIES["lista_cp"], start("lista_cp"), []
    X = jax.vmap(layer.apply, (None, None, 0))(given, D, Y)
    with pytest.warns(UserWarning, match="kept the start; .*: start NMSE -.*, best found") as told:
        found = calibrate(layer, given, D, Y, X, report=said.append)
    assert len(told) == 1 and "the given params" in said[0]
    chex.assert_trees_all_equal(found, given)


def test_codes_worse_than_zero_on_held_back_signals_are_reported(planted, start):
    """The codes of the held-back quarter have the other sign, and little energy."""
    D, Y, X = planted
    seen = (np.arange(len(Y)) < 30)[:, None]
    sample = np.where(seen, Y, Y / 2), np.where(seen, X, -X / 2)
    with pytest.warns(
        UserWarning, match="the codes are worse than zero codes: their NMSE is .* dB"
    ):
        calibrate(FAMILIES["ista"], start("ista"), D, *sample)


def test_fewer_than_four_signals_choose_and_judge(planted):
    D, Y, X = planted
    layer = layers.ista(1)
    start = layer.init(None, D)
    found = calibrate(layer, start, D, Y[:3], X[:3])
    assert errors(layer, found, D, Y[:3], X[:3])[-1] < errors(layer, start, D, Y[:3], X[:3])[-1]


# Without codes


def objective(layer, params, D, Y, lam):
    codes = np.asarray(jax.vmap(layer.apply, (None, None, 0))(params, D, Y))
    residual = np.asarray(Y) - codes @ np.asarray(D).T
    return np.mean((residual**2).sum(1) / 2 + lam * np.abs(codes).sum(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ista", "lista_cp", "alista with support"])
def test_without_codes_the_objective_falls(planted, name):
    """The start is safe already; the held-back quarter decides, so the whole may not rise."""
    D, Y, _ = planted
    layer, lam = FAMILIES[name], 0.05
    start = layer.init(jax.random.key(0), D)
    found = calibrate(layer, start, D, Y, loss=training.lasso_loss(lam))
    before, after = (objective(layer, p, D, Y, lam) for p in (start, found))
    assert after < before < np.mean((np.asarray(Y) ** 2).sum(1) / 2)


def test_a_greedy_step_without_codes_is_the_best_of_a_grid(planted):
    D, Y, _ = planted
    lam, layer = 0.05, layers.ista(1)
    loss = training.lasso_loss(lam)
    found = first_pass(layer, layer.init(None, D), D, Y, None, loss).steps
    best = objective(layer, Unrolled(None, found), D, Y, lam)
    for theta in np.geomspace(1e-3, 1, 6):
        for gamma in float(found.gamma[0]) * np.geomspace(0.5, 2, 3):
            step = type(found)(np.full(1, gamma), np.full(1, theta))
            assert best <= objective(layer, Unrolled(None, step), D, Y, lam) * (1 + 1e-3)


@pytest.mark.slow
def test_a_chain_without_codes(chain):
    network, start, Ds, Y, _ = chain
    loss = training.lasso_loss(0.05)
    found = calibrate(network, start, Ds, Y, loss=loss)

    def value(params):
        codes = jax.vmap(network.apply, (None, None, 0))(params, Ds, Y)
        return float(loss(codes, None, Ds, Y))

    assert value(found) < value(start)


def test_the_squared_error_as_a_loss_is_the_default(planted, calibrated):
    D, Y, X = planted
    start, expected = calibrated("ista")
    found = calibrate(FAMILIES["ista"], start, D, Y, X, loss=training.supervised)
    # Another order of the sums decides between neighbours of the last grid, a part in 1e3 apart.
    np.testing.assert_allclose(found.steps.theta, expected.steps.theta, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-20, 1e15])
def test_signals_of_any_size_calibrate_alike_in_float32(planted, size):
    """A power of two would change no bit; this one rounds D'y, and moves choices by neighbours."""
    D, Y, X = (np.asarray(A) for A in planted)
    layer = layers.ista(8)
    with jax.enable_x64(False):
        D, *sample = (jnp.asarray(A, jnp.float32) for A in (D, Y, X))
        scaled = [jnp.asarray(A * size, jnp.float32) for A in (Y, X)]
        start = layer.init(None, D)
        near = decibels(layer, calibrate(layer, start, D, *sample), D, *sample)
        far = decibels(layer, calibrate(layer, start, D, *scaled), D, *scaled)
    assert near < -5 and far == pytest.approx(near, abs=0.1)


# Chains


@pytest.fixture(scope="module")
def chain(planted):
    """A network of two blocks, its start, and a sample of codes of codes."""
    Ds = planted[0], dictionaries.gaussian(jax.random.key(3), 60, 20)
    network = networks.dsc([FAMILIES["alista"], layers.ista(2)])
    X2 = problems.exact_sparse(jax.random.key(2), (40, 20), 1)
    X1 = problems.synthesize(Ds[1], X2)
    first = FAMILIES["alista"].from_theory(analytic.frobenius_weights(Ds[0]), jnp.full(DEPTH, 0.1))
    start = (first, network.layers[1].init(None, Ds[1]))
    signals = jax.tree.map(np.asarray, (problems.synthesize(Ds[0], X1), (X1, X2)))
    return network, start, Ds, *signals


@pytest.mark.slow
def test_a_chain_is_calibrated_block_by_block(chain):
    network, start, Ds, Y, X = chain
    found = calibrate(network, start, Ds, Y, X)
    first = calibrate(network.layers[0], start[0], Ds[0], Y, X[0])
    codes = jax.vmap(network.layers[0].apply, (None, None, 0))(first, Ds[0], Y)
    second = calibrate(network.layers[1], start[1], Ds[1], codes, X[1])
    chex.assert_trees_all_equal(found, (first, second))

    def error(params):
        return float(
            jnp.sum((jax.vmap(network.apply, (None, None, 0))(params, Ds, Y)[-1] - X[1]) ** 2)
        )

    assert error(found) < error(start)


@pytest.mark.slow
def test_the_last_codes_of_a_chain_give_the_others(chain):
    network, start, Ds, Y, X = chain
    given, derived = (calibrate(network, start, Ds, Y, codes) for codes in (X, X[-1]))
    chex.assert_trees_all_equal(given, derived)


def test_a_chain_with_a_worse_end_comes_back_as_it_was(chain):
    """The codes that are asked of the first block mislead the second one."""
    network, start, Ds, Y, X = chain
    good = calibrate(network, start, Ds, Y, X)
    with pytest.warns(UserWarning, match="kept the start"):
        found = calibrate(network, good, Ds, Y, (-X[0], X[1]))
    chex.assert_trees_all_equal(found, good)


# One layer


def test_calibration_beats_the_solver_by_several_decibels(planted, calibrated):
    """At the best penalty of a grid for ISTA's own params, after as many steps."""
    D, Y, X = planted
    layer = FAMILIES["ista"]
    best = min(
        errors(layer, analytic.ista(D, lam, DEPTH), D, Y, X)[-1] for lam in (0.01, 0.03, 0.1, 0.3)
    )
    assert errors(layer, calibrated("ista")[1], D, Y, X)[-1] < best / 10**0.2
    assert errors(FAMILIES["alista"], calibrated("alista")[1], D, Y, X)[-1] < best / 10**0.6


@pytest.mark.few(3)
@every_family
def test_only_thresholds_and_step_sizes_change(name, calibrated):
    start, found = calibrated(name)
    assert jax.tree.structure(found) == jax.tree.structure(start)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(start)]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(found)] == shapes
    for ours, given in zip(others(found), others(start), strict=True):
        np.testing.assert_array_equal(ours, given)
    assert (np.asarray(found.steps.theta) != np.asarray(start.steps.theta)).all()
    if hasattr(start.steps, "gamma"):
        assert (np.asarray(found.steps.gamma) != np.asarray(start.steps.gamma)).any()


def test_the_support_schedule_is_part_of_the_search(planted, calibrated):
    """Thresholds chosen without support selection are worse for a layer that has it."""
    layer = FAMILIES["alista with support"]
    with_it = errors(layer, calibrated("alista with support")[1], *planted)
    without = errors(layer, calibrated("alista")[1], *planted)
    assert with_it[-1] < without[-1]


@pytest.mark.slow
def test_the_unstacked_form_comes_back_unstacked(planted, calibrated):
    D, Y, X = planted
    start, expected = calibrated("lista_cp untied")
    found = calibrate(FAMILIES["lista_cp untied"], layers.unstack(start), D, Y, X)
    assert type(found.steps) is tuple and len(found.steps) == DEPTH
    chex.assert_trees_all_equal(layers.stack(found), expected)


@pytest.fixture(scope="module")
def filters():
    """D, Y, X of three filters on 20 samples."""
    D = dictionaries.normalize(
        dictionaries.Conv(np.random.default_rng(0).normal(size=(3, 1, 5)), 20)
    )[0]
    X = problems.exact_sparse(jax.random.key(2), (20, D.shape[1]), 2)
    return D, problems.synthesize(D, X), X


@pytest.mark.slow
@pytest.mark.parametrize("per_filter", [False, True])
def test_a_convolutional_dictionary(filters, per_filter):
    D, Y, X = filters
    layer = layers.alista(2)
    start = layer.init(jax.random.key(0), D)
    if per_filter:
        start = start._replace(steps=start.steps._replace(theta=np.full((2, 3), 0.1)))
    found = calibrate(layer, start, D, Y, X)
    assert found.steps.theta.shape == start.steps.theta.shape and found.steps.gamma.shape == (2,)
    rows = np.asarray(found.steps.theta).reshape(2, -1)
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape))
    assert errors(layer, found, D, Y, X)[-1] < errors(layer, start, D, Y, X)[-1]


def test_thresholds_per_atom_keep_their_shape(planted, calibrated):
    D, Y, X = planted
    start, expected = calibrated("lista_cp")
    start = start._replace(steps=start.steps._replace(theta=np.full((DEPTH, 60), 0.1)))
    found = calibrate(FAMILIES["lista_cp"], start, D, Y, X).steps.theta
    # The value of a single threshold: the same sums, compiled differently, around a flat optimum.
    np.testing.assert_allclose(
        np.asarray(found), np.asarray(expected.steps.theta)[:, None] * np.ones(60), rtol=1e-2
    )


@pytest.mark.slow
def test_in_float32():
    with jax.enable_x64(False):
        D = dictionaries.gaussian(jax.random.key(1), 30, 60)
        X = problems.exact_sparse(jax.random.key(2), (40, 60), 3)
        Y = problems.synthesize(D, X)
        start = FAMILIES["alista"].init(jax.random.key(0), D)
        found = calibrate(FAMILIES["alista"], start, D, Y, X)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
        assert (
            errors(FAMILIES["alista"], found, D, Y, X)[-1]
            < errors(FAMILIES["alista"], start, D, Y, X)[-1]
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamp", "lamp_bg"])
def test_the_alphas_of_message_passing_are_set_in_any_units(planted, name):
    """They are per unit of the residual: no scale of the signals enters, and that of D inversely.

    The prior of LAMP-BG is one of the codes as they are, so that its signals are not scaled.
    """
    D, Y, X = planted
    layer = layers.lamp(DEPTH, alpha=3.0) if name == "lamp" else layers.lamp_bg(DEPTH)
    start = layer.init(None, D)
    found = calibrate(layer, start, D, Y, X)
    assert errors(layer, found, D, Y, X)[-1] < 0.9 * errors(layer, start, D, Y, X)[-1]
    np.testing.assert_array_equal(found.steps.W, start.steps.W)
    if name == "lamp":
        small = calibrate(layer, start, D, jnp.ldexp(Y, -30), jnp.ldexp(X, -30))
        np.testing.assert_array_equal(small.steps.alpha, found.steps.alpha)
    large = calibrate(layer, layer.init(None, 4 * D), 4 * D, 4 * Y, X)
    # The grid is one of logarithms, which round.
    np.testing.assert_allclose(4 * large.steps.alpha, found.steps.alpha, rtol=ROUNDING)


def test_a_held_back_quarter_without_any_code_is_judged_by_its_error(planted, calibrated):
    """Zero signals have zero codes before and after, however the params are."""
    D, Y, X = planted
    silent = np.where(np.arange(len(Y)) < 30, 1.0, 0.0)[:, None]
    start, expected = calibrated("ista")
    found = calibrate(FAMILIES["ista"], start, D, silent * Y, silent * X)
    np.testing.assert_array_equal(np.asarray(found.steps.theta), np.asarray(expected.steps.theta))
