"""Params from theory in their layers: no draw may break what the schedule certifies."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import barker, lines, matrix_of, members, noise_along
from oracles import unit

from unrolled import activations as act
from unrolled import analytic, dictionaries, layers, networks, theory


@functools.cache
def load(name):
    """A dictionary and weights."""
    rng = np.random.default_rng(0)
    gaussian = unit(rng.normal(size=(36, 48)))
    if name == "gaussian, minimax W":
        return gaussian, np.asarray(analytic.minimax_weights(gaussian))
    if name == "gaussian, W off its diagonal":
        return gaussian, load("gaussian, minimax W")[1] * rng.uniform(0.97, 1.03, 48)
    if name == "Conv, minimax W":
        return barker(26), analytic.minimax_weights(barker(26))
    if name == "Conv, valid":
        return barker(26, "valid"), None
    return {
        "hadamard": np.asarray(dictionaries.identity_hadamard(64)),
        "lines": lines(0, 4, 7, 30, 28),
    }[name], None


EVERY = [
    "gaussian, minimax W",
    "gaussian, W off its diagonal",
    "Conv, minimax W",
    "Conv, valid",
    "hadamard",
    "lines",
]


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


@functools.partial(jax.jit, static_argnames="layer")
def iterates(layer, params, D, Y):
    """The codes of a batch after every step, (K, n, d)."""
    return jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y)


def assert_certified(layer, params, found, D, X, E=0.0):
    """No step has a false positive or an l1 error above the certified one.

    There is no tolerance, because the schedule contains the rounding guard.
    """
    X = X.astype(D.dtype).astype(float)
    Y = (X @ matrix_of(D).T + E).astype(D.dtype)
    codes = np.asarray(iterates(layer, params, D, Y))
    assert not codes[np.broadcast_to(X == 0, codes.shape)].any()
    assert (np.abs(codes - X).sum(2).max(1) <= found.error[1:]).all()


# Thresholds atom by atom.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, dtype",
    [*((name, "float64") for name in EVERY[1:5]), ("gaussian, minimax W", "float32")],
)
def test_params_per_atom_are_those_of_the_atom_schedule(name, dtype):
    D, W = cast(load(name), dtype)
    options = dict(depth=20, sparsity=2, bound=1.5, noise=0.01)
    certified, found = analytic.block_schedule(D, W, per_atom=True, **options)
    D64, W64 = matrix_of(D), matrix_of(certified.W)
    products = W64.T @ D64
    mus = np.abs(products - np.diag(np.diag(products))).max(1)
    drift, guard = certified.drift(2), certified.guard(2, 2 * 1.5, 0.01)
    guard += (certified.of_noise - certified.C_W) * 0.01
    largest = theory.rounding_guard(certified.W, D, sparsity=2, bound=1.5, noise=0.01)
    assert guard <= largest + 2e-9 * certified.of_noise * 0.01  # norms are rounded up by 1e-9
    eta = np.abs(1 - np.diag(products)).max() + drift
    expected = theory.atom_schedule(
        mus + drift, np.abs(W64).max(0), guard=guard, eta=eta, **options
    )
    # Coherences are rounded up by 1e-9; those near 0 are rounding themselves.
    assert found.error == pytest.approx(expected.error, rel=1e-6)
    assert found.theta == pytest.approx(expected.theta, rel=1e-6, abs=1e-14)
    tied = analytic.lista_cp(D, W=W, per_atom=True, **options)
    untied = analytic.lista_cp(D, W=W, per_atom=True, tied=False, **options)
    fixed = analytic.alista(D, W=W, per_atom=True, **options)
    for theta in (tied.steps.theta, untied.steps.theta, fixed.steps.theta):
        assert theta.dtype == dtype and theta.shape == (20, D.shape[1])
        stored = np.asarray(theta)  # rounded up, to the next number of the dtype
        assert (stored >= found.theta).all() and (np.nextafter(stored, 0) < found.theta).all()
    assert fixed.steps.gamma.tolist() == [1] * 20


@pytest.mark.few(2)
@pytest.mark.parametrize("name, family", list(zip(EVERY, ["lista_cp", "alista"] * 3)))
def test_no_member_breaks_the_bounds_per_atom(name, family):
    D, W = load(name)
    layer, rng = getattr(layers, family)(40), np.random.default_rng(1)
    for s, noise in ((2, 0.0), (2, 0.03), (1, 0.03)):
        options = dict(depth=40, sparsity=s, bound=1.0, noise=noise, per_atom=True)
        params = getattr(analytic, family)(D, W=W, **options)
        certified, found = analytic.block_schedule(D, W, **options)
        X = members(rng, certified.W, D, 500, s)
        assert_certified(
            layer, params, found, D, X, noise_along(rng, certified.W, 500, noise, "l1")
        )


def test_equal_atoms_have_the_thresholds_of_all():
    """In float32, where the noise is most of the guard against rounding."""
    D, options = np.eye(8, dtype=np.float32), dict(depth=3, sparsity=1, bound=1.0, noise=100.0)
    _, found = analytic.block_schedule(D, D, **options)
    _, each = analytic.block_schedule(D, D, per_atom=True, **options)
    np.testing.assert_allclose(each.theta, np.tile(found.theta[:, None], 8), rtol=1e-12)


@pytest.mark.slow
def test_thresholds_per_atom_are_for_relu_alone():
    D, _ = load("hadamard")
    options = dict(depth=2, sparsity=1, bound=1.0, per_atom=True)
    by_name = analytic.lista_cp(D, activation="relu", **options)
    assert by_name.steps.theta.shape == (2, 128)
    jax_relu = analytic.lista_cp(D, activation=jax.nn.relu, **options)  # has the twin act.relu
    assert jax_relu.steps.theta.tolist() == by_name.steps.theta.tolist()
    for rho in (act.elu(0.1), "silu", jax.nn.elu, jnp.tanh):
        for family in (analytic.lista_cp, analytic.alista):
            with pytest.raises(ValueError, match="per atom are certified for ReLU alone"):
                family(D, activation=rho, **options)


# Noise in l2.


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "name, dtype",
    [
        ("gaussian, W off its diagonal", "float64"),
        ("gaussian, minimax W", "float32"),
        ("Conv, minimax W", "float64"),
        ("hadamard", "float32"),
    ],
)
def test_noise_in_l2_stays_under_the_bounds(name, dtype):
    (D, W), rng, delta = cast(load(name), dtype), np.random.default_rng(3), 0.05
    for s in (1, 2):
        options = dict(depth=40, sparsity=s, bound=1.0, noise=delta, noise_norm="l2")
        certified, found = analytic.block_schedule(D, W, **options)
        omega = np.linalg.norm(matrix_of(certified.W), axis=0).max()
        assert omega <= certified.omega == pytest.approx(omega, rel=1e-8)
        of_noise, drift = omega / certified.C_W, certified.drift(s)
        guard = certified.guard(s, s, delta * of_noise)
        guard += (certified.of_noise - certified.C_W) * delta * of_noise
        expected = theory.schedule(
            certified.mu_W + drift,
            omega,
            sparsity=s,
            bound=1.0,
            noise=delta,
            depth=40,
            guard=guard,
            eta=certified.eta + drift,
        )
        assert found.error == pytest.approx(expected.error, rel=1e-8)
        params = analytic.lista_cp(D, W=W, **options)
        assert (
            params.steps.theta.tolist() == analytic.alista(D, W=W, **options).steps.theta.tolist()
        )
        X = members(rng, certified.W, D, 500, s)
        # y is rounded as well.
        E = noise_along(rng, certified.W, 500, delta * (1 - 4 * np.finfo(dtype).eps), "l2")
        assert_certified(layers.lista_cp(40), params, found, D, X, E)


def test_noise_in_l2_for_an_activation():
    D, _ = load("hadamard")
    options = dict(
        depth=40,
        sparsity=2,
        bound=1.0,
        noise=0.05,
        noise_norm="l2",
        activation=act.scale(act.softplus, 1e3),
    )
    _, found = analytic.block_schedule(D, **options)
    rng = np.random.default_rng(4)
    X, E = members(rng, D, D, 500, 2), noise_along(rng, D, 500, 0.05, "l2")
    layer = layers.lista_cp(40, activation=options["activation"])
    codes = np.asarray(iterates(layer, analytic.lista_cp(D, **options), D, X @ D.T + E))
    assert found.holds and (np.abs(codes - X).sum(2).max(1) <= found.error[1:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hadamard", "gaussian, minimax W", "Conv, minimax W"])
def test_noise_in_l2_stays_under_the_bounds_per_atom(name):
    # An atom with small entries can have a large norm: omega C_Wi / C_W does not bound |w_i|.
    (D, W), rng, delta = load(name), np.random.default_rng(5), 0.05
    options = dict(depth=40, sparsity=1, bound=1.0, noise=delta, noise_norm="l2", per_atom=True)
    certified, found = analytic.block_schedule(D, W, **options)
    assert (found.theta >= delta * np.linalg.norm(matrix_of(certified.W), axis=0)).all()
    X = members(rng, certified.W, D, 1000, 1)
    X[:500] = 0
    E = noise_along(rng, certified.W, 1000, delta, "l2")
    assert_certified(layers.lista_cp(40), analytic.lista_cp(D, W=W, **options), found, D, X, E)


@pytest.mark.slow
def test_noise_in_l2_enters_a_chain_as_the_l1_noise_of_equal_weight():
    # dsc takes l1 norms: omega delta / C_W is the one with the thresholds of an l2 norm delta.
    Ds, delta = (load("hadamard")[0], lines(1, 3, 17, 200, 128)), 0.01
    first = analytic.certified_weights(Ds[0])
    options = dict(
        depths=(25, 25),
        sparsities=(3, 1),
        bounds=(0.6, 1.0),
        noises=(delta * first.omega / first.C_W, 0.0),
    )
    _, schedules = analytic.chain_schedules(Ds, **options)
    rng = np.random.default_rng(6)
    X2 = members(rng, Ds[1], Ds[1], 500, 1)
    X1 = X2 @ Ds[1].T
    Y = X1 @ Ds[0].T + noise_along(rng, Ds[0], 500, delta, "l2")
    for x, X, found in zip(run_chain(Ds, Y, **options), (X1, X2), schedules):
        assert found.holds and not x[X == 0].any() and np.abs(x - X).sum(1).max() <= found.error[-1]


# Weights.


def test_minimax_weights_certify_more_nonzeros():
    D, W = load("gaussian, minimax W")
    options = dict(depth=5, sparsity=3, bound=1.0)
    with pytest.warns(analytic.HypothesisWarning):
        analytic.lista_cp(D, **options)
    analytic.lista_cp(D, W=W, **options)  # a warning would be an error


# Chains.


def run_chain(Ds, Y, *, activations=None, **options):
    """The codes of every block, with params for the same options."""
    depths, rhos = options["depths"], activations or (act.relu,) * len(Ds)
    params = analytic.dsc(Ds, activations=activations, **options)
    network = networks.dsc([layers.lista_cp(K, activation=rho) for K, rho in zip(depths, rhos)])
    return [np.asarray(x) for x in jax.jit(jax.vmap(network.apply, (None, None, 0)))(params, Ds, Y)]


@pytest.mark.slow
@pytest.mark.parametrize("tol", [1e-1, 1e-6])
def test_a_planned_chain_ends_within_its_tolerance(tol):
    Ds = load("hadamard")[0], lines(2, 3, 41, 300, 128)
    options = dict(sparsities=(3, 1), bounds=(1 / math.sqrt(3), 1.0))
    found = analytic.plan(Ds, tol=tol, **options)
    assert found.holds and found.schedules[-1].error[-1] <= tol
    _, schedules = analytic.chain_schedules(Ds, depths=found.depths, **options)
    assert [a.error.tolist() for a in schedules] == [a.error.tolist() for a in found.schedules]
    X2 = members(np.random.default_rng(7), Ds[1], Ds[1], 300, 1)
    X1 = X2 @ Ds[1].T
    codes = run_chain(Ds, X1 @ Ds[0].T, depths=found.depths, **options)
    for x, X, block in zip(codes, (X1, X2), schedules):
        assert not x[X == 0].any() and np.abs(x - X).sum(1).max() <= block.error[-1]
    # No chain with a step less in all is certified to the tolerance.
    total = sum(found.depths)
    for K in range(1, total - 1):
        _, fewer = analytic.chain_schedules(Ds, depths=(K, total - 1 - K), **options)
        assert fewer[-1].error[-1] > tol


def test_a_plan_knows_guard_and_noise():
    D = jnp.asarray(load("hadamard")[0], jnp.float32)
    options = dict(sparsities=[2], bounds=[1.0])
    floor = analytic.block_schedule(D, depth=1, sparsity=2, bound=1.0)[1].floor
    assert 1e-7 < floor < 1e-4
    assert analytic.plan([D], tol=2 * floor, **options).holds
    # Within rounding of float32 there is no certificate.
    assert not analytic.plan([D], tol=floor / 2, **options).holds
    assert not analytic.plan([D], tol=0.1, noises=[0.1], **options).holds


def test_what_cannot_be_reached_has_no_plan_and_no_warning():
    Ds = load("hadamard")[0], lines(2, 3, 17, 200, 128)
    for sparsities, noises in (((9, 1), None), ((3, 3), None), ((3, 1), (0.5, 0.0))):
        found = analytic.plan(Ds, sparsities=sparsities, bounds=(1.0, 1.0), noises=noises, tol=1e-3)
        assert found.replace(reason="") == theory.Plan((math.inf, math.inf), (), False)
        assert found.reason


def test_plans_take_arrays_as_dsc_does():
    Ds = load("hadamard")[0], lines(2, 3, 17, 200, 128)
    options = dict(
        sparsities=np.array([3, 1]), bounds=np.array([0.6, 1.0]), noises=np.array([1e-4, 1e-4])
    )
    assert len(analytic.dsc(Ds, depths=np.array([3, 2]), **options)) == 2
    assert analytic.plan(Ds, tol=0.1, **options).holds


# Chains with other activations.


RHOS = [
    *act.NAMED.values(),
    act.scale(act.softplus, 1e3),
    act.scale(act.elu(1.6732632423543772), 1e3),
    act.scale(act.gelu, 10.0),
    act.compose(act.elu(0.5), 4),
    act.compose(act.silu, 2),
    act.scale(act.compose(act.elu(0.1), 2), 100.0),
    act.compose(act.scale(act.mish, 10.0), 2),
]
SHORT = dict(depths=(20, 20), sparsities=(2, 1), bounds=(0.8, 1.0), noises=(0.01, 0.02))


@functools.cache
def short_chain():
    """16 -> 32 -> 40, with codes of the class, the noise of both blocks, and the signals."""
    rng = np.random.default_rng(8)
    Ds = np.asarray(dictionaries.identity_hadamard(16)), lines(3, 2, 13, 40, 32)
    X2 = members(rng, Ds[1], Ds[1], 400, 1)
    X1 = X2 @ Ds[1].T
    largest = np.abs(X1) == np.abs(X1).max(1, keepdims=True)
    X1 = X1 + np.where(largest, 0.01 * np.sign(X1), 0)  # on its support
    return Ds, (X1, X2), X1 @ Ds[0].T + noise_along(rng, Ds[0], 400, 0.01, "l1")


@pytest.mark.slow
@pytest.mark.parametrize("rho", RHOS, ids=str)
@pytest.mark.filterwarnings("ignore::unrolled.analytic.HypothesisWarning")
def test_chains_of_every_activation_stay_under_their_bounds(rho):
    Ds, truths, Y = short_chain()
    certified, schedules = analytic.chain_schedules(Ds, activations=(rho, rho), **SHORT)
    codes = run_chain(Ds, Y, activations=(rho, rho), **SHORT)
    inherited = 0.0
    for found, c, D, x, X, s, B, delta in zip(
        schedules,
        certified,
        Ds,
        codes,
        truths,
        SHORT["sparsities"],
        SHORT["bounds"],
        SHORT["noises"],
    ):
        assert np.abs(X).max() <= B + 0.02 and (np.abs(x - X).sum(1) <= found.error[-1]).all()
        if rho == act.relu:
            assert not x[X == 0].any()
            continue
        assert found.theorem == (theory.theorem_of(rho) if found.holds else "")
        assert (np.where(X == 0, np.abs(x), 0).sum(1) <= found.off_support[-1]).all()
        bare = theory.activation_schedule(
            rho,
            c.mu_W,
            c.C_W,
            d=D.shape[1],
            sparsity=s,
            bound=B,
            noise=delta + inherited,
            depth=20,
            eta=c.eta,
        )
        assert (found.error >= bare.error).all()
        assert found.error == pytest.approx(bare.error, rel=1e-6, abs=1e-9)  # the guard
        inherited = found.error[-1]


@pytest.mark.slow
def test_activations_of_a_chain_may_differ_and_have_names():
    Ds, truths, Y = short_chain()
    rhos = (act.scale(act.silu, 100.0), act.relu)
    _, schedules = analytic.chain_schedules(Ds, activations=rhos, **SHORT)
    assert type(schedules[0]) is theory.ActivationSchedule and type(schedules[1]) is theory.Schedule
    codes = run_chain(Ds, Y, activations=rhos, **SHORT)
    for found, x, X in zip(schedules, codes, truths):
        assert found.holds and (np.abs(x - X).sum(1) <= found.error[-1]).all()
    assert not codes[1][truths[1] == 0].any()
    named = analytic.dsc(Ds, activations=("silu", "relu"), **SHORT)
    given = analytic.dsc(Ds, activations=(act.silu, act.relu), **SHORT)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), named, given))


def test_a_chain_must_know_what_the_tail_of_one_block_leaves_to_the_next():
    # C-13, for activations: thresholds of block 2 that are made for an exact code do not certify.
    Ds, truths, Y = short_chain()
    options = {**SHORT, "noises": None}
    rhos = (act.softplus, act.relu)
    certified, schedules = analytic.chain_schedules(Ds, activations=rhos, **options)
    params = analytic.dsc(Ds, activations=rhos, **options)
    first = iterates(layers.lista_cp(20, activation=act.softplus), params[0], Ds[0], Y)[-1]
    alone = analytic.lista_cp(Ds[1], depth=20, sparsity=1, bound=1.0)
    _, exact = analytic.block_schedule(Ds[1], depth=20, sparsity=1, bound=1.0)
    errors = [
        np.abs(np.asarray(iterates(layers.lista_cp(20), p, Ds[1], first))[-1] - truths[1])
        .sum(1)
        .max()
        for p in (alone, params[1])
    ]
    assert errors[0] > 100 * exact.error[-1] and errors[1] <= schedules[1].error[-1]


@pytest.mark.few(1)
@pytest.mark.parametrize("rho", [act.softplus, act.gelu, act.elu(1.0)], ids=str)
def test_the_error_of_a_chain_is_proportional_to_the_scale(rho):
    Ds, truths, _ = short_chain()
    options = dict(depths=(60, 60), sparsities=(2, 1), bounds=(0.8, 1.0))
    X2 = np.eye(40)
    X1 = X2 @ Ds[1].T
    observed, certified = [], []
    for k in (1e3, 1e5):
        rhos = (act.scale(rho, k),) * 2
        codes = run_chain(Ds, X1 @ Ds[0].T, activations=rhos, **options)
        _, schedules = analytic.chain_schedules(Ds, activations=rhos, **options)
        observed.append([k * np.abs(x - X).sum(1).max() for x, X in zip(codes, (X1, X2))])
        certified.append([k * found.error[-1] for found in schedules])
    # What is left of the contraction, (3/4)^60, is 3e-8 of the start; times k = 1e5, .005.
    assert observed[0] == pytest.approx(observed[1], rel=2e-2)
    assert certified[0] == pytest.approx(certified[1], rel=2e-2)
    assert (np.array(observed) <= certified).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "rho",
    [act.scale(act.softplus, 1e4), act.scale(act.elu(1.0), 1e5), act.compose(act.elu(0.1), 2)],
    ids=str,
)
def test_activations_in_float32_stay_under_their_bounds_at_depth(rho):
    D = jnp.asarray(dictionaries.identity_hadamard(64), jnp.float32)
    options = dict(depth=250, sparsity=2, bound=1.0, activation=rho)
    _, found = analytic.block_schedule(D, **options)
    X = members(np.random.default_rng(9), D, D, 200, 2).astype(np.float32)
    layer = layers.lista_cp(250, activation=rho)
    Y = (X.astype(float) @ matrix_of(D).T).astype(np.float32)
    codes = np.asarray(iterates(layer, analytic.lista_cp(D, **options), D, Y)).astype(float)
    assert found.holds and (np.abs(codes - X).sum(2).max(1) <= found.error[1:]).all()


# Warnings and refusals.


CALLS = {
    "lista_cp": lambda D, **o: analytic.lista_cp(D, **o),
    "lista_cp, per atom": lambda D, **o: analytic.lista_cp(D, per_atom=True, **o),
    "lista_cp, elu": lambda D, **o: analytic.lista_cp(D, activation="elu", **o),
    "alista": lambda D, **o: analytic.alista(D, **o),
    "alista, l2": lambda D, **o: analytic.alista(D, noise_norm="l2", **o),
    "block_schedule": lambda D, **o: analytic.block_schedule(D, **o),
    "block_schedule, per atom": lambda D, **o: analytic.block_schedule(D, per_atom=True, **o),
    "dsc": lambda D, **o: analytic.dsc([D], **{_plural(k): [v] for k, v in o.items()}),
    "chain_schedules": lambda D, **o: analytic.chain_schedules(
        [D], **{_plural(k): [v] for k, v in o.items()}
    ),
}


def _plural(name):
    return {"sparsity": "sparsities"}.get(name, name + "s")


@pytest.mark.parametrize("call", CALLS)
def test_warnings_point_at_the_caller(call):
    # At a line of the library, the default filter would show one warning per process.
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        CALLS[call](load("hadamard")[0], depth=2, sparsity=9, bound=1.0)
    (warning,) = seen
    assert warning.category is analytic.HypothesisWarning
    code = CALLS[call].__code__
    assert (warning.filename, warning.lineno) == (code.co_filename, code.co_firstlineno)


def largest_named(D, W, **options):
    with pytest.warns(analytic.HypothesisWarning) as seen:
        analytic.lista_cp(D, W=W, depth=2, bound=1.0, **options)
    return int(str(seen[0].message).split("largest admissible s is ")[1].split(".")[0])


@pytest.mark.parametrize("off", [1.0, 1.03, 1.3])
def test_warnings_name_the_largest_sparsity_that_holds(off):
    # a = (2s-1) mu_W + eta: 1 - w . d takes its share.
    D, W = load("hadamard")[0], off * load("hadamard")[0]
    holds = [
        analytic.certified_weights(D, W).mu_W * max(2 * s - 1, 0) + (off - 1) * (s > 0) < 1
        for s in range(9)
    ]
    assert largest_named(D, W, sparsity=8) == sum(holds) - 1


def test_warnings_per_atom_name_the_largest_sparsity_that_holds_per_atom():
    # w_1 meets d_2 by .35 and w_2 meets d_3 by .2: a = .35, .35 + .55, .55 + .55 for s = 1, 2, 3.
    # In common .35 (2s-1).
    D, W = np.eye(6), np.eye(6)
    W[1, 0], W[2, 1] = 0.35, 0.2
    for s in (1, 2):
        assert analytic.block_schedule(D, W, depth=2, sparsity=s, bound=1.0, per_atom=True)[1].holds
    assert theory.max_sparsity(0.35, 6) == 1
    assert largest_named(D, W, sparsity=3, per_atom=True) == 2


@pytest.mark.few(3)
@pytest.mark.filterwarnings("ignore::unrolled.analytic.HypothesisWarning")
@pytest.mark.parametrize(
    "each", [{}, {"per_atom": True}, {"noise_norm": "l2"}, {"activation": "leaky_relu"}], ids=str
)
def test_beyond_the_hypotheses_nothing_is_nan(each, dtype):
    D = jnp.asarray(load("hadamard")[0], dtype)
    options = dict(depth=1000, sparsity=40, bound=1.0, noise=0.1)
    _, found = analytic.block_schedule(D, **options, **each)
    assert not found.holds and found.floor == math.inf
    assert not np.isnan(found.error).any() and not np.isnan(found.theta).any()
    assert found.error[-1] == math.inf
    for family in (analytic.lista_cp, analytic.alista):
        theta = family(D, **options, **each).steps.theta
        assert theta.dtype == dtype and np.isfinite(np.asarray(theta)).all()


@pytest.mark.filterwarnings("ignore::unrolled.analytic.HypothesisWarning")
def test_a_chain_behind_a_diverging_block_has_finite_params():
    Ds = load("hadamard")[0], lines(2, 3, 17, 200, 128)
    for rhos in (None, (act.relu, act.silu), (act.leaky_relu(0.1), act.relu)):
        options = dict(depths=(2000, 4), sparsities=(20, 1), bounds=(1.0, 1.0), activations=rhos)
        _, schedules = analytic.chain_schedules(Ds, **options)
        assert not any(found.holds for found in schedules) and schedules[1].error[-1] == math.inf
        assert not any(np.isnan(found.error).any() for found in schedules)
        assert all(
            np.isfinite(np.asarray(leaf)).all()
            for leaf in jax.tree.leaves(analytic.dsc(Ds, **options))
        )


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "dtype, bound", [("float32", 1e-35), ("float16", 1e-5), ("float32", 1e-30), ("float16", 1e-2)]
)
def test_certificates_at_the_lower_end_of_the_range_are_true(dtype, bound):
    """Products below the least normal number are lost, which no relative guard covers."""
    D = jnp.asarray(dictionaries.identity_hadamard(16), dtype)
    d, depth, rng = 32, 12, np.random.default_rng(0)
    _, planned = analytic.block_schedule(D, depth=depth, sparsity=1, bound=bound)
    params = analytic.alista(D, depth=depth, sparsity=1, bound=bound)
    X = np.zeros((300, d))
    X[np.arange(300), rng.integers(0, d, 300)] = bound * rng.uniform(-1, 1, 300)
    X = X.astype(dtype).astype(float)
    Y = jnp.asarray(X @ np.asarray(D, float).T, dtype)
    codes = np.asarray(jax.vmap(layers.alista(depth).apply, (None, None, 0))(params, D, Y), float)
    errors = np.abs(codes - X).sum(1).max()
    assert planned.holds and errors <= planned.error[-1] and not ((codes != 0) & (X == 0)).any()
    certificate = theory.certify(layers.alista(depth), params, D, sparsity=1, bound=bound)
    assert not certificate.holds or errors <= certificate.error[-1]


# What the steps of a held schedule reach stays in the range of the dtype


@pytest.mark.parametrize("per_atom", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_codes_too_large_for_their_dtype_are_not_certified(dtype, per_atom):
    """Thresholds beyond a quarter of the range would be cut: of what holds none is."""
    D = dictionaries.identity_hadamard(64).astype(dtype)
    largest = float(jnp.finfo(dtype).max)
    # In float16 the rounding of sums of 64 terms leaves no room for more.
    options = dict(depth=3, sparsity=4 if dtype == "float32" else 2, per_atom=per_atom)
    for share in (0.6, 0.1, 0.05):
        with pytest.warns(analytic.HypothesisWarning, match=f"this size in {dtype}"):
            _, schedule = analytic.block_schedule(D, D, bound=share * largest, **options)
        assert not schedule.holds
    for bound in (1e-3 * largest, 1.0):
        _, schedule = analytic.block_schedule(D, D, bound=bound, **options)
        stored = analytic.stored_thresholds(schedule.theta, dtype)
        assert schedule.holds
        assert (np.asarray(stored, float) >= schedule.theta).all()


def test_chains_of_codes_too_large_for_their_dtype_are_not_certified():
    D = dictionaries.identity_hadamard(64).astype(np.float32)
    classes = dict(depths=(2, 2), sparsities=(1, 1))
    for bound, warned in ((1e38, True), (1e30, False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chain = (D, jnp.eye(128, dtype=np.float32))
            _, schedules = analytic.chain_schedules(chain, bounds=(bound, bound), **classes)
        assert bool(caught) is warned and all(s.holds for s in schedules) is not warned


def test_weights_of_zero_certify_nothing_in_either_norm():
    D = dictionaries.identity_hadamard(16)
    for norm in ("l1", "l2"):
        for per_atom in (False, True):
            with pytest.warns(analytic.HypothesisWarning):
                _, schedule = analytic.block_schedule(
                    D,
                    0 * D,
                    depth=2,
                    sparsity=1,
                    bound=1.0,
                    noise=0.1,
                    noise_norm=norm,
                    per_atom=per_atom,
                )
            assert not schedule.holds


def test_host_functions_take_known_arguments_inside_of_a_jit():
    D, layer = dictionaries.identity_hadamard(16), layers.lista_cp(3)
    options = dict(depth=3, sparsity=1)

    @jax.jit
    def coded(y):
        assert theory.uniqueness([D], [2]).holds
        return layer.apply(analytic.lista_cp(D, bound=1.0, **options), D, y)

    outside = layer.apply(analytic.lista_cp(D, bound=1.0, **options), D, D[:, 3])
    np.testing.assert_allclose(coded(D[:, 3]), outside, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "sizes, bound, remark",
    [
        ([0.5, 4.1], 1.0, "bound 1.0, entries reach 4.1: Theorem 12 does not cover 50 % of these"),
        ([2.0, 4.1], 1.0, "does not cover 100 %"),
        ([0.5, 1.0], 1.0, ""),
        ([0.5] * 1999 + [2.0], 1.0, "does not cover 0.05 %"),
        ([2.0] * 1999 + [0.5], 1.0, "does not cover 99.9 %"),
        ([0.5, 4.1], np.diag([0.0, -4.1]), ""),
    ],
)
def test_a_remark_says_which_share_of_codes_exceeds_the_bound(sizes, bound, remark):
    said = analytic.bound_remark(np.eye(2), -np.outer(sizes, [0, 1]), bound)
    assert remark in said and bool(remark) == bool(said)


def test_codes_as_a_bound_give_the_params_of_their_largest_entry():
    D, X = dictionaries.identity_hadamard(16), np.zeros((3, 32))
    X[1, 4] = -2.5
    ours, expected = (analytic.lista_cp(D, depth=3, sparsity=1, bound=bound) for bound in (X, 2.5))
    np.testing.assert_array_equal(ours.steps.theta, expected.steps.theta)
