"""What every method of the registry must do: transformations change nothing, kin reduce to kin."""

import copy
import dataclasses
import inspect
import itertools
import pickle
import typing
from functools import cache, partial
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from jax import lax
from test_imports import exported

import unrolled as ur
from unrolled.dictionaries import Structured, dense
from unrolled.layers import Unrolled, names_with_role, stack, unroll, unstack

EPS = np.finfo(float).eps
M, N, K, BATCH = 6, 10, 4, 4
# A step sums M + N products of numbers near 1 and rounds each; K steps that hardly grow add up: (M
# + N) K eps, twice.
CLOSE = 2 * (M + N) * K * EPS
assert_close = partial(chex.assert_trees_all_close, rtol=0, atol=CLOSE)


def jittered(tree, seed=0):
    """Every floating entry times its own number near 1: no two steps alike, thresholds still
    positive.
    """
    rng = np.random.default_rng(seed)

    def one(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(np.asarray(leaf) * rng.uniform(0.8, 1.2, leaf.shape))

    return jax.tree.map(one, tree)


def slopes(f, gradients, arguments, seed=0, h=1e-6):
    """Pairs (derivative by `gradients`, central difference of `f`) along a random direction in each
    floating leaf.
    """
    rng = np.random.default_rng(seed)
    leaves, form = jax.tree.flatten(arguments)
    for i, (leaf, g) in enumerate(zip(leaves, jax.tree.leaves(gradients), strict=True)):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        v = rng.normal(size=leaf.shape)
        moved = [form.unflatten([*leaves[:i], leaf + s * h * v, *leaves[i + 1 :]]) for s in (1, -1)]
        yield float(np.vdot(g, v)), float(f(*moved[0]) - f(*moved[1])) / (2 * h)


def signals(m, batch=BATCH, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, m))


# The registry

# What users compile, beside what conftest.py sets for the tests.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
optimized = partial(jax.jit, compiler_options=OPTIMIZED)


@cache
def dictionary(kind):
    return registry.DICTIONARIES[kind]()


def nodes(tree):
    """The types of all dictionaries inside of a dictionary, itself included."""
    if isinstance(tree, Structured):
        yield type(tree)
        for field in dataclasses.fields(tree):
            yield from nodes(getattr(tree, field.name))


def words(form):
    """The names in the description of an activation."""
    if isinstance(form, str):
        yield form
    elif isinstance(form, list):
        yield from itertools.chain.from_iterable(map(words, form))


def ours(registered):
    return {name for name, kind in registered.items() if kind.__module__.startswith("unrolled.")}


def offered(module, kind, positional=None):
    """The functions of a module that return a record, with so many arguments by position."""
    for name, value in exported(module.__name__).items():
        if inspect.isfunction(value) and typing.get_type_hints(value).get("return") is kind:
            required = inspect.signature(value).parameters.values()
            if positional in (None, sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in required)):
                yield name


def test_every_family_has_a_line():
    assert ours(ur.layers.FAMILIES) == set(registry.FAMILIES)


def test_all_cases_of_a_new_family_run_by_default(monkeypatch):
    from conftest import mark_slow

    monkeypatch.setattr(registry, "NEW_FAMILIES", {"new"})
    items = []
    for line in ("ista", "fista", "new", "new, untied"):
        item = mock.Mock(nodeid=f"test[{line}]", **{"callspec.params": {"name": line}})
        item.get_closest_marker.return_value = pytest.mark.few(1).mark
        items.append(item)
    mark_slow(items)
    assert [item.add_marker.called for item in items] == [False, True, False, False]


def test_three_shares_of_the_tests_are_all_of_them():
    from conftest import share_of

    items = [mock.Mock(nodeid=f"test_{i}[{case}]") for i in range(8) for case in range(3)]
    shares = [share_of(items, second, 3) for second in (9, 10, 11)]
    assert [*map(len, shares)] == [3, 3, 2] and len(set.union(*shares)) == 8


def test_every_kind_of_dictionary_has_a_line():
    built = {kind for name in registry.DICTIONARIES for kind in nodes(dictionary(name))}
    assert ours(ur.dictionaries.KINDS) == {kind.__name__ for kind in built}


def test_every_network_has_a_line():
    assert ours(ur.networks.NETWORKS) == set(registry.NETWORKS)


def test_every_activation_has_a_line():
    built = [ur.activations.describe(build()) for build in registry.ACTIVATIONS.values()]
    listed = {word for form in built for word in words(form)}
    assert {*ur.activations.NAMED, *offered(ur.activations, ur.activations.Activation)} == listed


def test_every_pursuit_with_a_penalty_has_a_line():
    listed = {getattr(solve, "func", solve).__name__ for solve in registry.SOLVERS.values()}
    penalties = {"lam", "theta"}
    found = {
        name
        for name in offered(ur.pursuit, ur.pursuit.Pursuit)
        if penalties & set(inspect.signature(getattr(ur.pursuit, name)).parameters)
    }
    assert found - OF_STRIPES == listed


def test_every_pursuit_has_a_line():
    def name(solve):
        return name(solve.func) if isinstance(solve, partial) else solve.__name__

    found = {n for kind in PURSUIT_TYPES for n in offered(ur.pursuit, kind)}
    assert found - OF_STRIPES == {name(solve) for solve in registry.PURSUITS.values()}


# It takes a `Conv` only, and the penalty is that of the stripes.
OF_STRIPES = {"local_sparsity"}


# Layers


@cache
def case(name):
    """A layer of K steps, params that differ from step to step, a dictionary and a batch of
    signals.
    """
    layer, D = registry.LAYERS[name](K), ur.dictionaries.gaussian(jax.random.key(0), M, N)
    params = jittered(jax.jit(layer.init)(jax.random.key(1), D))
    if layer.family == "sae":  # its threshold, which is 0 at first, must not become negative
        params = params._replace(steps=params.steps._replace(theta=params.steps.theta + 0.02))
    return layer, params, D, signals(M)


@cache
def mapped(name):
    """The compiled layer for a batch of signals."""
    return jax.jit(jax.vmap(case(name)[0].apply, (None, None, 0)))


def part(params, steps: slice):
    """The params of some of the steps; those that share everything are the same for any of them."""
    return Unrolled(params.shared, jax.tree.map(lambda leaf: leaf[steps], params.steps))


def theory_given(params):
    """For every leaf, whether it is a weight from theory, which carries no gradient."""
    is_fixed = partial(lambda kind, node: isinstance(node, kind), ur.layers.Fixed)
    marks = jax.tree.map(
        lambda node: jax.tree.map(lambda _: is_fixed(node), node), params, is_leaf=is_fixed
    )
    return jax.tree.leaves(marks)


def by_activation(name):
    """Whether a line is another one with an activation, which the shrinkage alone sees."""
    return registry.LAYERS[name](K).options.get("activation", ur.activations.relu).name != "relu"


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if by_activation(name) else [])
        for name in registry.LAYERS
    ]
)
def name(request):
    return request.param


# One of each way to loop: shared params alone, tied, untied, a schedule, a state with memory.
LOOPS = ["hyperlista", "lista", "lista_cp, untied", "alista", "lamp", "na_alista"]


@pytest.mark.few(1)
def test_every_way_to_run_a_layer_gives_the_same_code(name):
    layer, params, D, Y = case(name)
    codes = np.stack([layer.apply(params, D, y) for y in Y])
    assert (codes != 0).any(1).all() and codes.shape == (BATCH, N)
    assert_close(jax.jit(layer.apply)(params, D, Y[0]), codes[0])
    assert_close(mapped(name)(params, D, Y), codes)
    assert_close(layer.apply(unstack(params), D, Y[0]), codes[0])
    chex.assert_trees_all_equal(layer.apply(stack(unstack(params)), D, Y[0]), codes[0])
    if name not in registry.NONNEGATIVE:  # every other layer is odd
        assert_close(layer.apply(params, D, -Y[0]), -codes[0])


@pytest.mark.few(3)
def test_a_layer_runs_inside_shard_map_with_its_checks(name):
    """JAX knows which numbers differ among devices, also where there is one device."""
    layer, params, D, Y = case(name)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    codes = jax.vmap(partial(layer.apply, params, D))
    signals = jax.sharding.PartitionSpec("data")
    shared = jax.shard_map(codes, mesh=mesh, in_specs=signals, out_specs=signals)
    assert_close(jax.jit(shared)(Y), mapped(name)(params, D, Y))


@pytest.mark.few(3)
@pytest.mark.parametrize("name", LOOPS)
def test_the_programs_of_users_give_the_same_code(name):
    """XLA makes the same of them; LLVM contracts and reorders sums in lanes, which is rounding."""
    layer, params, D, Y = case(name)
    lowered = jax.jit(layer.apply).lower(params, D, Y[0])
    ours, expected = lowered.compile(OPTIMIZED), lowered.compile()
    assert ours.as_text() == expected.as_text()
    assert_close(ours(params, D, Y[0]), expected(params, D, Y[0]))


@pytest.mark.few(3)
def test_iterates_end_at_the_code_and_begin_as_shorter_layers(name):
    layer, params, D, Y = case(name)
    shorter, short = registry.LAYERS[name](K - 1), part(params, slice(0, K - 1))
    path = layer.iterates(params, D, Y[0])
    assert path.shape == (K, N)
    chex.assert_trees_all_equal(path[-1], layer.apply(params, D, Y[0]))
    assert_close(layer.iterates(unstack(params), D, Y[0]), path)
    assert_close(shorter.apply(short, D, Y[0]), path[-2])


@pytest.mark.few(4)
def test_two_stacks_of_half_the_depth_are_the_whole(name):
    layer, params, D, Y = case(name)
    ready, parts = layer.prepare(params, D), []
    state = layer.start(ready.D, jnp.asarray(Y[0]))
    for half in (slice(0, K // 2), slice(K // 2, K)):
        schedule = layer.schedule and layer.schedule[half]
        run = jax.jit(partial(unroll, layer.step, schedule=schedule, depth=K // 2))
        state, path = run(part(ready.params, half), ready.D, jnp.asarray(Y[0]), state)
        parts.append(ready.restore(path))
    chex.assert_trees_all_equal(ready.restore(state.x), parts[-1][-1])
    path = np.concatenate(parts)
    if layer.guard is None:
        assert_close(path, layer.iterates(params, D, Y[0]))
    else:  # the guarded code is one of these codes, or zero
        assert (path == np.asarray(layer.apply(params, D, Y[0]))).all(1).any()


@pytest.mark.few(4)
def test_no_steps_give_the_zero_code(name):
    _, _, D, Y = case(name)
    layer = registry.LAYERS[name](0)
    params = jax.jit(layer.init)(jax.random.key(0), D)
    for form in (params, unstack(params)):
        chex.assert_trees_all_equal(layer.apply(form, D, Y[0]), np.zeros(N))
        assert jax.eval_shape(layer.iterates, form, D, Y[0]).shape == (0, N)


WEIGHT = np.random.default_rng(2).normal(size=N)


def gradient(layer):
    """The compiled derivative of a weighted sum of the code in params, D and y."""
    return jax.jit(jax.grad(lambda *at: jnp.vdot(layer.apply(*at), WEIGHT), argnums=(0, 1, 2)))


@pytest.mark.few(3)
def test_gradients_are_central_differences_in_every_leaf(name):
    layer, params, D, Y = case(name)
    y, derivative = jnp.asarray(Y[0]), gradient(layer)
    plain, at_origin = derivative(params, D, y), derivative(params, D, jnp.zeros(M))
    fixed = theory_given(params)
    # Truncation h^2 times third derivatives of order 10, rounding 10 eps / h: 1e-9 each; 1e-7
    # leaves a hundredfold.
    for i, (slope, difference) in enumerate(
        slopes(lambda *at: layer.apply(*at) @ WEIGHT, plain, (params, D, y))
    ):
        if i < len(fixed) and fixed[i]:  # though the code depends on them
            assert slope == 0 and abs(difference) > 1e-3
        else:
            assert slope == pytest.approx(difference, rel=1e-7, abs=1e-7) and (
                slope != 0 or difference == 0
            )
    chex.assert_tree_all_finite(at_origin)


# Without support selection: where a step is computed anew, its k-th largest entry may be rounded
# otherwise, and fall out of the selection.
@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_codes_and_gradients_are_the_same_however_the_loop_runs(name):
    layer, params, D, Y = case(name)
    again = registry.LAYERS[name](K, unroll=3, remat=True)
    assert_close(again.apply(params, D, Y[0]), layer.apply(params, D, Y[0]))
    ours, expected = (gradient(layer)(params, D, jnp.asarray(Y[0])) for layer in (again, layer))
    # A gradient is up to 100 times its loss, and sums as many terms.
    assert_close(ours, expected, atol=100 * CLOSE)


@pytest.mark.few(4)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_keeps_its_dtype(name, dtype):
    layer, params, D, Y = case(name)
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.dtype(dtype)), (params, D, Y[0]))
    x = layer.apply(*narrow)
    assert x.dtype == jax.eval_shape(layer.iterates, *narrow).dtype == dtype
    # Relative to its own precision a narrow layer errs as a wide one does; the inputs are those
    # that it saw.
    wide = layer.apply(*jax.tree.map(lambda leaf: leaf.astype(float), narrow))
    assert_close(np.asarray(x, float), wide, atol=CLOSE / EPS * float(jnp.finfo(dtype).eps))


@pytest.mark.few(4)
def test_the_wider_dtype_wins(name):
    layer, params, D, Y = case(name)
    for wide, narrow in (("float64", "float32"), ("float32", "bfloat16"), ("float32", "float16")):
        for one in range(3):
            dtypes = [wide if i == one else narrow for i in range(3)]
            arguments = [
                jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf, dtype), argument)
                for dtype, argument in zip(dtypes, (params, D, Y[0]))
            ]
            assert jax.eval_shape(layer.apply, *arguments).dtype == wide


@pytest.mark.few(3)
def test_equal_shapes_are_traced_once(name):
    layer, params, D, Y = case(name)

    @partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(1)
    def apply(layer, params, D, y):
        return layer.apply(params, D, y)

    for i in range(5):
        again = registry.LAYERS[name](
            np.int64(K), precision="highest"
        )  # equal arguments: the same layer
        assert again is layer
        apply(again, jittered(params, i), jittered(D, i), Y[i % BATCH])
    assert registry.LAYERS[name](K + 1) is not layer


@pytest.mark.few(4)
def test_signatures_say_the_same_of_every_layer(name):
    layer, params, D, Y = case(name)
    names = {
        method: list(inspect.signature(getattr(layer, method)).parameters)
        for method in ("init", "start", "apply", "iterates", "check", "step")
    }
    assert names["init"] == ["key", "D"] and names["start"] == ["D", "y"]
    assert names["apply"] == names["iterates"] == ["params", "D", "y"]
    assert names["check"] == ["params", "D"]
    assert names["step"][:5] == ["shared", "p", "D", "y", "state"]
    constants = () if layer.schedule is None else layer.schedule[:1]
    inspect.signature(layer.step).bind(*"spDyx", *constants)
    assert layer.schedule is None or len(layer.schedule) == K
    prepared = layer.prepare(params, D)
    start = layer.start(prepared.D, jnp.asarray(Y[0]))
    chex.assert_trees_all_equal(prepared.restore(start.x), np.zeros(N))


@pytest.mark.few(5)
def test_a_layer_is_a_record_of_its_options(name):
    layer, params, D, _ = case(name)
    assert type(layer)(**layer.options) is layer
    assert ur.layers.FAMILIES[layer.family] is type(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other is layer
    assert dataclasses.replace(layer, depth=K + 1) is registry.LAYERS[name](K + 1)
    layer.check(params, D)


STRUCTURED = [(name, "conv, valid, stride 2") for name in registry.LAYERS] + [
    ("lista_cp, untied", "composed")
]


@pytest.mark.few(2)
@pytest.mark.parametrize("layer, kind", STRUCTURED)
def test_a_structured_dictionary_is_its_matrix(layer, kind):
    layer, D = (
        registry.LAYERS[layer](2),
        dictionary(kind) / 3.0,
    )  # norms near 1, as CLOSE asks
    if layer.family == "robust_alista":  # the ridge is relative to a norm that is a bound for Conv
        layer = dataclasses.replace(layer, ridge=0.0)
    y = signals(D.shape[0])[0]
    params = jittered(jax.jit(layer.init)(jax.random.key(1), D))
    filters, positions = D.code_grid if hasattr(D, "code_grid") else (D.shape[1], 1)
    each = np.random.default_rng(3).uniform(
        0.01, 0.1, (2, filters)
    )  # one threshold per filter, at all its positions
    has_theta = names_with_role(params.steps, "threshold") == ["theta"] and layer.family != "bcd"
    if has_theta:
        params = params._replace(steps=params.steps._replace(theta=jnp.asarray(each)))

    def apply(params, D, y):
        matrices = jax.tree.map(
            dense, unstack(params), is_leaf=lambda leaf: isinstance(leaf, Structured)
        )
        if has_theta:
            thetas = jnp.asarray(np.repeat(each, positions, axis=1))
            steps = tuple(p._replace(theta=theta) for p, theta in zip(matrices.steps, thetas))
            matrices = matrices._replace(steps=steps)
        return layer.apply(params, D, y), layer.apply(matrices, dense(D), y)

    ours, expected = jax.jit(apply)(params, D, y)
    assert ours.shape == (D.shape[1],) and np.isfinite(ours).all()
    assert_close(ours, expected, atol=8 * CLOSE * max(1, np.abs(expected).max()))


@pytest.mark.few(4)
def test_params_survive_a_file(name, tmp_path):
    layer, params, D, Y = case(name)
    path = ur.training.save(tmp_path / "weights.npz", params, D, layer)
    restored = ur.training.restore(path)
    assert restored.layer is layer
    assert jax.tree.structure(restored.params) == jax.tree.structure(params)
    leaves = jax.tree.leaves((restored.params, restored.D))
    for loaded, saved in zip(leaves, jax.tree.leaves((params, D)), strict=True):
        assert loaded.dtype == saved.dtype
        chex.assert_trees_all_equal(loaded, saved)
    chex.assert_trees_all_equal(*(layer.apply(p, D, Y[0]) for p in (restored.params, params)))


# Reductions of one family to another

LAM = 0.1


@pytest.fixture(scope="module")
def plain():
    D = ur.dictionaries.gaussian(jax.random.key(4), M, N)
    return D, signals(M, seed=4)[0], float(np.linalg.norm(np.asarray(D), 2) ** 2)


@pytest.mark.few(1)
@pytest.mark.parametrize("layer, solver", [("ista", "ista"), ("fista", "fista, no restart")])
def test_layers_with_analytic_params_are_their_solvers(plain, layer, solver):
    D, y, _ = plain
    network, params = registry.LAYERS[layer](7), ur.analytic.ista(D, LAM, 7)
    found = registry.SOLVERS[solver](D, y, LAM, tol=None, max_steps=7)
    assert found.steps == 7
    assert_close(network.apply(params, D, y), found.x)
    init = registry.LAYERS[layer](7, lam=LAM).init(jax.random.key(0), D)
    assert jax.tree.structure(init) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(init), jax.tree.leaves(params)))


def test_ista_and_fista_are_the_textbook_ones(plain):
    D, y, L = plain
    D = np.asarray(D)
    x = z = np.zeros(N)
    t, paths = 1.0, {"ista": [], "fista": []}
    for _ in range(7):  # Beck and Teboulle (2009), (4.1) to (4.3)
        u = z + D.T @ (y - D @ z) / L
        x_next, t_next = (
            np.sign(u) * np.maximum(np.abs(u) - LAM / L, 0),
            (1 + np.sqrt(1 + 4 * t * t)) / 2,
        )
        x, z, t = x_next, x_next + (t - 1) / t_next * (x_next - x), t_next
        paths["fista"].append(x)
    x = np.zeros(N)
    for _ in range(7):
        u = x + D.T @ (y - D @ x) / L
        x = np.sign(u) * np.maximum(np.abs(u) - LAM / L, 0)
        paths["ista"].append(x)
    for name, path in paths.items():
        found = registry.LAYERS[name](7).iterates(ur.analytic.ista(D, LAM, 7), D, y)
        assert_close(found, np.array(path))


@pytest.mark.parametrize("name", ["lista", "lista, untied", "lista_cp", "lista_cp, untied"])
def test_learned_families_start_as_ista(plain, name):
    D, y, _ = plain
    ista = ur.layers.ista(K).iterates(ur.analytic.ista(D, LAM, K), D, y)
    layer = registry.LAYERS[name](K, lam=LAM)
    assert_close(layer.iterates(layer.init(jax.random.key(0), D), D, y), ista)


def test_lista_cp_with_scaled_atoms_is_ista(plain):
    D, y, L = plain
    layer = ur.layers.lista_cp(K)
    params = layer.init(jax.random.key(0), D)
    params = params._replace(
        shared=ur.layers.Weights(D / L), steps=params.steps._replace(theta=jnp.full(K, LAM / L))
    )
    assert_close(
        layer.apply(params, D, y), ur.layers.ista(K).apply(ur.analytic.ista(D, LAM, K), D, y)
    )


def test_tied_params_repeated_are_untied_ones(plain):
    D, y, _ = plain
    for family in (ur.layers.lista, ur.layers.lista_cp):
        tied, untied = (family(K, tied=tied) for tied in (True, False))
        codes = [layer.apply(layer.init(jax.random.key(0), D), D, y) for layer in (tied, untied)]
        assert_close(*codes)
        chex.assert_trees_all_equal(
            tied.apply(untied.init(jax.random.key(0), D), D, y), codes[1]
        )  # either form is taken


def test_no_support_is_no_selection_and_all_of_it_is_hard_thresholding(plain):
    D, y, _ = plain
    params = jittered(ur.layers.alista(K).init(jax.random.key(0), D))
    none, plain_ = (
        ur.layers.alista(K, support=support).iterates(params, D, y)
        for support in ((0.0, 0.0), None)
    )
    assert_close(none, plain_)
    every = ur.layers.alista(1, support=(1.0, 1.0))
    params = Unrolled(params.shared, jax.tree.map(lambda leaf: leaf[:1], params.steps))
    u = float(params.steps.gamma[0]) * (y @ np.asarray(params.shared.W))
    assert_close(
        every.apply(params, D, y), np.where(np.abs(u) > float(params.steps.theta[0]), u, 0)
    )


def test_alista_with_unit_steps_is_lista_cp(plain):
    D, y, _ = plain
    alista, lista_cp = ur.layers.alista(K), ur.layers.lista_cp(K)
    ours = alista.init(jax.random.key(0), D)
    unit = ours.steps._replace(gamma=jnp.ones_like(ours.steps.gamma))
    ours = ours._replace(steps=unit)
    theirs = lista_cp.init(jax.random.key(0), D)
    theirs = theirs._replace(
        shared=ur.layers.Weights(ours.shared.W), steps=theirs.steps._replace(theta=ours.steps.theta)
    )
    assert_close(alista.iterates(ours, D, y), lista_cp.iterates(theirs, D, y))


def test_without_a_threshold_ista_is_a_gradient_step(plain):
    D, y, L = plain
    assert_close(ur.layers.ista(1).apply(ur.analytic.ista(D, 0.0, 1), D, y), y @ np.asarray(D) / L)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", LOOPS)
def test_a_network_of_one_layer_is_the_layer(name):
    layer, params, D, Y = case(name)
    (code,) = jax.jit(ur.networks.dsc([layer]).apply)((params,), (D,), Y[0])
    assert_close(code, layer.apply(params, D, Y[0]))


# Networks


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in ("dsc", "ml_lista") else [])
        for name in registry.NETWORKS
    ]
)
def built(request):
    network, Ds = registry.NETWORKS[request.param]()
    return network, jittered(network.init(jax.random.key(0), Ds)), Ds, signals(M, 2)


@pytest.mark.slow
def test_a_network_runs_in_every_way(built, tmp_path):
    """Compiled, eager and for a batch; steps as a scan and as a loop; and from a file."""
    network, params, Ds, Y = built
    run = jax.jit(jax.vmap(network.run, (None, None, 0)))
    codes, paths = run(params, Ds, Y)
    loose = network.apply(tuple(map(unstack, params)), Ds, Y[1])
    for x, path, eager, other in zip(codes, paths, network.apply(params, Ds, Y[1]), loose):
        assert x.any(1).all() and x.dtype == float
        chex.assert_trees_all_equal(path[:, -1], x)
        assert_close(eager, x[1], atol=8 * CLOSE)
        assert_close(other, x[1], atol=8 * CLOSE)
    narrow = jax.tree.map(lambda leaf: leaf.astype(np.float32), (params, Ds, Y[0]))
    assert {x.dtype for x in jax.eval_shape(network.apply, *narrow)} == {np.dtype("float32")}
    network.check(params, Ds)
    restored = ur.training.restore(
        ur.training.save(tmp_path / "weights.npz", params, Ds, layer=network)
    )
    assert restored.layer is network
    chex.assert_trees_all_equal(run(restored.params, restored.D, Y)[0][-1], codes[-1])


@pytest.mark.slow
def test_the_programs_of_users_give_the_same_codes_of_a_network(built):
    network, params, Ds, Y = built
    ours, expected = (jit(network.apply)(params, Ds, Y[0]) for jit in (optimized, jax.jit))
    assert_close(ours, expected, atol=8 * CLOSE)


@pytest.mark.few(1)
def test_gradients_of_a_network_are_central_differences(built):
    network, params, Ds, Y = built

    def loss(params, Ds, y):
        return sum(jnp.sum(x**2) for x in network.apply(params, Ds, y))

    f = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, gradients = f(params, Ds, Y[0])
    assert all(g.any() for g in jax.tree.leaves(gradients[0]))
    rng = np.random.default_rng(0)
    h, leaves = 1e-6, jax.tree.leaves((params, Ds))
    v = [rng.normal(size=leaf.shape) for leaf in leaves]
    slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradients), v))
    form = jax.tree.structure((params, Ds))
    moved = [form.unflatten([a + s * h * d for a, d in zip(leaves, v)]) for s in (1, -1)]
    difference = (f(*moved[0], Y[0])[0] - f(*moved[1], Y[0])[0]) / (2 * h)
    # Rounding eps / h of the value, truncation h^2 times third derivatives.
    assert slope == pytest.approx(float(difference), rel=1e-7, abs=1e-8 * float(value))


# Activations


@pytest.mark.few(2)
@pytest.mark.parametrize("activation", registry.ACTIVATIONS)
def test_activations_conform(activation):
    build = registry.ACTIVATIONS[activation]
    assert build() == build() and hash(build()) == hash(build())

    @partial(jax.jit, static_argnums=2)
    @chex.assert_max_traces(1)
    def shrink(v, theta, act):
        return ur.activations.shrink(v, theta, act)

    v, theta = jnp.linspace(-9, 9, 73), jnp.full(73, 0.7)
    shrunk = [shrink(v, theta, build()) for _ in range(5)][0]
    # One exponential rounds by 2 eps of its value, and values are at most 10 times the range.
    assert_close(ur.activations.shrink(v, theta, build()), shrunk, atol=1000 * EPS)
    one_by_one = jax.vmap(partial(ur.activations.shrink, activation=build()))(v, theta)
    assert_close(one_by_one, shrunk, atol=1000 * EPS)
    assert_close(shrink(-v, theta, build()), -shrunk, atol=1000 * EPS)
    if activation in registry.MONOTONE:
        assert (np.diff(build()(v)) >= 0).all() and (np.diff(shrunk) >= -1000 * EPS).all()
    for dtype in ("float32", "bfloat16"):
        assert ur.activations.shrink(v.astype(dtype), theta.astype(dtype), build()).dtype == dtype


@pytest.mark.few(3)
@pytest.mark.parametrize("activation", registry.ACTIVATIONS)
def test_activations_have_finite_gradients_everywhere(activation):
    act = registry.ACTIVATIONS[activation]()
    theta = 0.5
    kinks = np.array(
        [0, theta, -theta, 3 + theta, 3 - theta, -3 - theta, theta - 3, 1e3, -1e3, 1e-300]
    )
    both = jax.vmap(
        jax.grad(partial(ur.activations.shrink, activation=act), argnums=(0, 1)), (0, None)
    )
    for slope in (*both(kinks, theta), *both(kinks, 0.0), jax.vmap(jax.grad(act))(kinks)):
        # The steepest: SELU has slope 1.76, composed ones less than 1.2; a shrinkage is a
        # difference of two.
        assert np.isfinite(slope).all() and np.abs(slope).max() < 4


# Dictionaries


@pytest.fixture(params=registry.DICTIONARIES)
def kind(request):
    return request.param


@pytest.mark.few(2)
def test_a_product_rounds_by_no_more_than_its_terms_and_magnitudes(kind):
    D, rng = dictionary(kind), np.random.default_rng(0)
    (m, d), eps = D.shape, 2.0**-23
    x, r = rng.normal(size=d).astype(np.float32), rng.normal(size=m).astype(np.float32)

    @jax.jit
    def narrow(D):
        return ur.dictionaries.magnitudes(D).astype(np.float32), D.astype(np.float32)

    @jax.jit
    def products(D, magnitudes, x, r):
        return (magnitudes @ abs(x), abs(r) @ magnitudes), (D @ x, r @ D)

    @jax.jit
    def exact_products(D, x, r):
        D, x, r = (v.astype(float) for v in (D, x, r))
        return D @ x, r @ D

    magnitudes, narrowed = narrow(D)
    sizes, rounded = products(narrowed, magnitudes, x, r)
    exact = exact_products(narrowed, x, r)
    for size, ours, theirs, n in zip(*jax.device_get((sizes, rounded, exact)), (d, m)):
        terms = n + ur.dictionaries.inner_terms(D) + 1  # and the last rounding of the bound
        assert (abs(np.float64(ours) - theirs) <= terms * eps * np.float64(size) + 1e-30).all()


@pytest.mark.few(2)
def test_a_dictionary_is_a_matrix_and_its_adjoint(kind):
    D = dictionary(kind)
    (m, d), rng = D.shape, np.random.default_rng(0)
    x, r, X, R = (rng.normal(size=shape) for shape in ((d,), (m,), (d, 3), (3, m)))

    def answers(D, x, r, X, R):
        transposed = jax.linear_transpose(lambda x: D @ x, x)(r)[0]
        products = (
            D @ x,
            r @ D,
            D.T @ r,
            x @ D.T,
            transposed,
            D @ X,
            R @ D,
            (D / 2.0) @ x,
            ur.dictionaries.column_norms(D),
        )
        return ur.dictionaries.dense(D), ur.dictionaries.spectral_norm(D), *products

    matrix, norm, *products = (
        np.asarray(a) for a in jax.jit(answers)(D, *map(jnp.asarray, (x, r, X, R)))
    )
    assert matrix.shape == (m, d) and D.dtype == matrix.dtype == float
    expected = (
        matrix @ x,
        r @ matrix,
        r @ matrix,
        matrix @ x,
        r @ matrix,
        matrix @ X,
        R @ matrix,
        matrix @ x / 2,
    )
    # Sums of at most m + d products of entries and operands (all below 4), each rounded, in up to
    # four factors.
    close = 16 * (m + d) * max(1, np.abs(matrix).max()) ** 2 * EPS
    for ours, theirs in zip(products, (*expected, np.linalg.norm(matrix, axis=0)), strict=True):
        assert_close(ours, theirs, atol=close)
    assert r @ products[0] == pytest.approx(products[1] @ x, abs=m * close)
    assert norm >= np.linalg.norm(matrix, 2) * (1 - 8 * EPS)  # a safe step size follows from it


@pytest.mark.few(1)
def test_a_dictionary_is_a_pytree_of_its_arrays(kind):
    D = dictionary(kind)
    (m, d), (R, X) = D.shape, (jnp.asarray(signals(n, 2)) for n in D.shape)
    again = jax.tree.unflatten(jax.tree.structure(D), jax.tree.leaves(D))
    assert again.shape == (m, d) and type(again) is type(D)
    several = [jittered(D, seed) for seed in range(2)]

    def stacked_up(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *several)
    if isinstance(D, Structured):
        assert (stacked.shape, stacked.T.shape, stacked.dtype) == ((m, d), (d, m), D.dtype)

    def products(D, x, r):
        return D @ x, r @ D, D.T @ r, x @ D.T, ur.dictionaries.column_norms(D)

    def run(several, stacked, X, R):
        first, (E, *_) = (X[0], R[0]), several
        of_first, *others = (products(E, *first) for E in several)
        one_by_one = stacked_up([of_first, *others])
        scanned = lax.scan(lambda carry, E: (carry, products(E, *first)), 0, stacked)[1]
        mapped = jax.vmap(products, (0, None, None))(stacked, *first)
        loop = stacked_up([of_first, *(products(E, x, r) for x, r in zip(X[1:], R[1:]))])
        return one_by_one, scanned, mapped, loop, jax.vmap(products, (None, 0, 0))(E, X, R)

    one_by_one, scanned, mapped, loop, batch = jax.jit(run)(several, stacked, X, R)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves((one_by_one, loop)))
    close = 16 * max(m, d) * max(1, largest) * EPS
    for ours, theirs in ((scanned, one_by_one), (mapped, one_by_one), (batch, loop)):
        assert_close(ours, theirs, atol=close)


@pytest.mark.few(5)
def test_gradients_reach_every_array_of_a_dictionary(kind):
    D = dictionary(kind)
    x, y = (jnp.asarray(signals(n)[0]) for n in D.shape[::-1])
    f = jax.jit(
        jax.value_and_grad(
            lambda D, x: (jnp.sum((y - D @ x) ** 2) + jnp.sum((y @ D) ** 2)) / 2,
            argnums=(0, 1),
            allow_int=True,
        )
    )
    value, gradients = f(D, x)
    for slope, difference in slopes(lambda *at: f(*at)[0], gradients, (D, x)):
        # A polynomial of low degree: truncation below h^2 times the loss, rounding eps / h = 2e-10
        # of it.
        assert (
            slope == pytest.approx(difference, rel=1e-7, abs=1e-8 * max(1.0, float(value)))
            and slope != 0
        )


# Solvers


@pytest.fixture(params=registry.SOLVERS)
def solver(request):
    return registry.SOLVERS[request.param]


@pytest.mark.few(1)
def test_solvers_answer_alike_for_one_signal_and_many(solver, plain):
    """Eager calls are those of the pursuits below, which these are with a penalty."""
    D = plain[0]
    Y = signals(M, seed=5)
    one = jax.jit(chex.assert_max_traces(lambda *problem: solver(*problem), 1))
    each = [one(D, y, LAM * (1 + i)) for i, y in enumerate(Y)]
    lams = LAM * np.arange(1, BATCH + 1)
    batch = jax.jit(jax.vmap(solver, (None, 0, 0)))(D, Y, lams)
    # Ill-posed to the gap: two runs that stop at 1e-6 may differ by its root, but here they take
    # the same steps.
    for i, alone in enumerate(each):
        assert batch.steps[i] == alone.steps and batch.converged[i] == alone.converged
        assert_close(batch.x[i], alone.x, atol=1e-12)
    chex.assert_trees_all_equal(one(D, -Y[0], LAM).x, -each[0].x)


@pytest.fixture(scope="module")
def optimum(plain):
    """The least objective of the plain problem, to 1e-13 of its energy."""
    D, y, _ = plain
    found = jax.jit(partial(ur.pursuit.fista, tol=1e-13))(D, y, LAM)
    assert found.converged
    return objective(D, y, found.x)


def objective(D, y, x):
    return np.sum((y - np.asarray(D) @ np.asarray(x)) ** 2) / 2 + LAM * np.abs(x).sum()


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_solvers_certify_what_they_return(solver, plain, optimum, dtype):
    D, y, _ = plain
    found = jax.jit(solver)(np.asarray(D, dtype), np.asarray(y, dtype), LAM)
    assert found.x.dtype == found.gap.dtype == found.residual.dtype == dtype
    x = np.asarray(found.x, float)
    # The gap bounds the excess, up to rounding: a dozen sums of terms below the energy, the data
    # included.
    energy, slack = np.sum(y**2) / 2, 100 * float(jnp.finfo(dtype).eps)
    assert objective(D, y, x) - optimum <= (float(found.gap) + slack) * energy
    assert found.gap >= 0
    assert float(found.residual) == pytest.approx(np.linalg.norm(y - np.asarray(D) @ x), rel=slack)
    assert bool(found.converged) == (float(found.gap) <= np.asarray(1e-6, dtype))


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["conv, circular", "sparse, conv"])
def test_solvers_take_structured_dictionaries(solver, kind):
    """The matrix certifies the code: residual and gap, which is 1e-6 but for a threshold."""
    D, lam = dictionary(kind), 0.2
    y, A = signals(D.shape[0])[0], np.asarray(dense(D))
    found = jax.jit(solver)(D, y, lam)
    x = np.asarray(found.x)
    r = y - A @ x
    dual = y @ y - np.sum((y - min(1, lam / np.abs(r @ A).max()) * r) ** 2)
    assert float(found.residual) == pytest.approx(np.linalg.norm(r), abs=1e-12)
    gap = (r @ r + 2 * lam * np.abs(x).sum() - dual) / (y @ y)
    if kind == "conv, circular" and solver is ur.pursuit.lasso:  # the better of two dual points
        assert float(found.gap) <= gap + 1e-12
    else:
        assert float(found.gap) == pytest.approx(gap, abs=1e-12)
    if solver is ur.pursuit.threshold:
        assert_close(x, np.sign(y @ A) * np.maximum(np.abs(y @ A) - lam, 0))
    else:
        assert found.converged and found.gap <= 1e-6


# Pursuits of one signal

PURSUIT_TYPES = ur.pursuit.Pursuit, ur.pursuit.Path


@pytest.fixture(params=registry.PURSUITS)
def pursue(request):
    return registry.PURSUITS[request.param]


@pytest.mark.slow
def test_pursuits_answer_alike_however_they_are_run(pursue, plain):
    """Eager, compiled and for a batch: a zero signal has the zero code, a bad one is marked."""
    D = plain[0]
    Y = np.concatenate([signals(M, seed=5)[:2], np.zeros((1, M)), np.full((1, M), np.nan)])
    run = jax.jit(jax.vmap(pursue, (None, 0)))
    found, eager = run(D, Y), pursue(D, Y[0])
    assert_close(found.x[0], eager.x, atol=1e-9)
    assert np.all(found.steps[0] == eager.steps) and found.x.dtype == np.float64
    assert not found.x[2].any() and found.converged[2].all() and not found.residual[2].any()
    assert not found.converged[3].any() and not np.isfinite(found.gap[3]).any()
    x = np.asarray(found.x[:2])
    assert_close(
        found.residual[:2],
        np.linalg.norm(Y[:2, None] - x.reshape(2, -1, N) @ D.T, axis=-1).reshape(
            found.residual[:2].shape
        ),
        atol=1e-12,
    )
    assert jax.eval_shape(jax.vmap(pursue, (None, 0)), D, Y[:0]).x.shape[0] == 0


@pytest.mark.slow
def test_the_programs_of_users_find_the_same_code(pursue, plain):
    """As many steps, too: without noise no test of these ends within rounding of its bound."""
    D, y, _ = plain
    ours, expected = optimized(pursue)(D, y), pursue(D, y)
    np.testing.assert_array_equal(ours.steps, expected.steps)
    assert_close(ours.x, expected.x, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in registry.PURSUITS if "," in name])
def test_pursuits_with_an_option_keep_float32(name, plain):
    """Those without are in test_pursuit_programs.py, in every dtype."""
    found = registry.PURSUITS[name](*(np.asarray(v, np.float32) for v in plain[:2]))
    assert found.x.dtype == found.gap.dtype == found.residual.dtype == np.float32
    assert np.isfinite(found.x).all() and (found.gap >= 0).all()


@pytest.mark.slow
def test_pursuits_take_pictures_of_convolutions(pursue):
    D = dictionary("conv 2-D, valid")
    y = signals(D.shape[0])[0]
    flat, found = pursue(D, y), pursue(D, y.reshape(D.signal_grid))
    assert found.x.shape == (*flat.gap.shape, *D.code_grid)
    chex.assert_trees_all_equal(np.asarray(found.x).reshape(flat.x.shape), flat.x)
    # Without the axis of the one channel, which costs another program: the shape alone.
    assert jax.eval_shape(pursue, D, y.reshape(D.signal_shape)).x.shape == found.x.shape
