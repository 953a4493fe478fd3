"""A family, a dictionary and an activation that nobody but this file knows work everywhere."""

import inspect
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import registry
import test_conformance as conformance

import unrolled as ur
from unrolled import layers
from unrolled.activations import Activation
from unrolled.dictionaries import Structured, pytree, spectral_norm
from unrolled.layers import (
    Acting,
    Coupled,
    Gamma,
    Layer,
    Shape,
    Shrinking,
    State,
    Theta,
    Unrolled,
    option,
)

# What a stranger writes


class OwnStep(NamedTuple):
    gamma: Gamma
    theta: Theta
    inertia: Annotated[jax.Array, Shape("")]


class OwnState(NamedTuple):
    x: jax.Array  # (d,)
    before: jax.Array  # (d,)


class own_heavy_ball(Shrinking):
    """K steps x <- shrink(x + gamma D'(y - D x) + inertia (x - x_before), theta)."""

    lam: float = option(default=0.1, least=0, help="weight of the LASSO at the start")
    forms = (Unrolled(None, OwnStep),)
    recipe = layers.Recipe(without_codes=(1e-3, 1e-2))

    def init(self, key, D):
        gamma = 1 / spectral_norm(D) ** 2
        values = gamma, self.lam * gamma, jnp.full_like(gamma, 0.2)
        return Unrolled(None, OwnStep(*(jnp.full(self.depth, v, D.dtype) for v in values)))

    def start(self, D, y):
        return OwnState(*(jnp.zeros(D.shape[1], y.dtype) for _ in range(2)))

    def step(self, shared, p, D, y, state):
        u = state.x + p.gamma * ((y - D @ state.x) @ D) + p.inertia * (state.x - state.before)
        return OwnState(self.shrink(D, u, p.theta), state.x)

    def weights(self, shared, p, D):
        return Acting(D, p.gamma)


@pytree(data=("A", "B"))
@dataclass(frozen=True, eq=False)
class OwnKronecker(Structured):
    """The Kronecker product of two matrices."""

    A: jax.Array
    B: jax.Array

    @property
    def shape(self):
        return tuple(a * b for a, b in zip(self.A.shape[-2:], self.B.shape[-2:]))

    def synthesize(self, x):
        return (self.A @ x.reshape(self.A.shape[1], -1) @ self.B.T).ravel()

    def analyze(self, r):
        return (self.A.T @ r.reshape(self.A.shape[0], -1) @ self.B).ravel()

    def scale(self, c):
        return OwnKronecker(self.A * c, self.B)


@pytree(data=("gain",), static=("m", "decay", "parts"))
@dataclass(frozen=True, eq=False)
class OwnEcho(Structured):
    """gain (I, decay J), with J that turns a signal round."""

    gain: jax.Array
    m: int
    decay: float = 0.1
    parts: tuple = ((1, "left"), (2, "right"))

    @property
    def shape(self):
        return self.m, 2 * self.m

    def synthesize(self, x):
        return self.gain * (x[: self.m] + self.decay * x[self.m :][::-1])

    def analyze(self, r):
        return self.gain * jnp.concatenate([r, self.decay * r[::-1]])

    def scale(self, c):
        return OwnEcho(self.gain * c, self.m, self.decay, self.parts)


def _squareplus(x):
    return (x + jnp.sqrt(x * x + 0.04)) / 2


own_squareplus = Activation(
    "own_squareplus", 0.5, 0.1, 0.1, 0.1, function=_squareplus, line_oscillation=0.1
)


# The library around it

M, N, K = 4, 6, 3
D = ur.dictionaries.gaussian(jax.random.key(0), M, N)
LAYER = own_heavy_ball(K)
PARAMS = jax.jit(LAYER.init)(None, D)


@jax.jit
def sample(key):
    X = ur.problems.bounded(key, (4, N), 1).astype(D.dtype)
    return X @ D.T, X


Y, X = sample(jax.random.key(1))
TRAINING = dict(optimizer=optax.adam(1e-2), key=3, evaluate_every=2, validation=(Y, X))


def loss(params):
    codes = jax.vmap(LAYER.apply, (None, None, 0))(params, D, Y)
    return float(jnp.mean((codes - X) ** 2))


def conforms(argument):
    """Parametrised by the tests of the conformance suite that need no more than a line's name."""
    given = {argument, "dtype", "tmp_path"}
    tests = [
        pytest.param(test, id=name.removeprefix("test_"))
        for name, test in vars(conformance).items()
        if name.startswith("test_") and argument in (needed := parameters(test)) and needed <= given
    ]
    assert len(tests) >= 2
    return pytest.mark.parametrize("test", tests)


def parameters(test):
    return set(inspect.signature(test).parameters)


@pytest.mark.slow
@conforms("name")
def test_a_family_conforms(test, monkeypatch, tmp_path):
    monkeypatch.setitem(registry.LAYERS, "own", own_heavy_ball)
    given = {"name": "own", "dtype": "float32", "tmp_path": tmp_path}
    test(**{name: given[name] for name in parameters(test)})


@pytest.mark.slow
def test_a_family_trains_and_is_watched():
    watch = ur.comparison.evolution(LAYER, D)
    found = ur.fit(LAYER, PARAMS, D, sample, steps=20, callbacks=[watch], **TRAINING)
    assert loss(found.best) < loss(PARAMS) and (found.params.steps.theta >= 0).all()
    assert len(watch.evaluations) == 11
    assert watch.evaluations[-1].theta.shape == watch.evaluations[-1].coupling.mu_W.shape == (K,)
    assert "training step" in watch.table()


@pytest.mark.slow
def test_a_family_trains_without_codes():
    """By its name, in `unsupervised` and in a coder, in the units that its annotations say."""
    options = dict(key=3, steps=20, evaluate_every=5)
    signals = np.asarray(sample(jax.random.key(2))[0].tolist() * 10)
    fits = [
        ur.training.unsupervised(c * D, signals * s, 0.1 * c * s, K, family=LAYER.family, **options)
        for c, s in ((1.0, 1.0), (4.0, 0.5))
    ]
    assert fits[0].model is LAYER and fits[0].judged["best"] < fits[0].judged["ista"]
    (gamma, theta, inertia), scaled = (fit.best.steps for fit in fits)
    np.testing.assert_allclose(scaled.gamma, gamma / 16, rtol=1e-9)
    np.testing.assert_allclose(scaled.theta, theta / 8, rtol=1e-9)
    np.testing.assert_allclose(scaled.inertia, inertia, rtol=1e-9)
    coder = ur.sklearn.SparseCoder(np.asarray(D), LAYER.family, depth=K, random_state=0)
    assert not np.allclose(coder.fit(signals).params_.steps.inertia, PARAMS.steps.inertia)


def test_a_family_is_recommended_like_the_own_ones():
    """It is measured next to them, and the predicted training is its own."""
    signals = np.asarray(sample(jax.random.key(2))[0])[:20]
    advice = ur.recommend(D, signals, lam=0.1, gap=0.3, signals=2 * 10**9, family=LAYER.family)
    assert {row.method for row in advice.rows} >= {"lasso_batch", "fista", "bcd", LAYER.family}
    assert advice.training is None or advice.training.method == LAYER.family
    with pytest.raises(ValueError, match="recommend: unknown family 'ista'; expected one of"):
        ur.recommend(D, signals, lam=0.1, family="ista")
    pairs = ur.dictionaries.Complex.of(np.asarray(D) * (1 + 1j))
    with pytest.raises(ValueError, match="recommend: codes of Complex come in parts of 2 entries"):
        ur.recommend(pairs, signals + 0j, lam=0.1, family="bcd")


@pytest.mark.slow
def test_a_family_trains_step_by_step():
    options = dict(key=3, steps_per_stage=4, stages=(1.0,), rate=1e-2, validation=(Y, X))
    found = ur.training.curriculum(LAYER, PARAMS, D, sample, **options)
    assert loss(found.params) < loss(PARAMS)


@pytest.mark.slow
def test_thresholds_and_steps_of_a_family_are_calibrated_and_searched():
    calibrated = ur.analytic.calibrate(LAYER, PARAMS, D, Y, X)
    np.testing.assert_array_equal(calibrated.steps.inertia, PARAMS.steps.inertia)
    found = ur.training.search(LAYER, PARAMS, D, Y, X, theta=[0.01, 0.1, 10.0])
    assert max(loss(calibrated), loss(found.params)) < loss(PARAMS)
    assert found.values["theta"] < 10


@pytest.mark.slow
def test_a_family_is_compared():
    ista = ur.layers.ista(K)
    methods = {"ISTA": (ista, ista.init(None, D)), "own": (LAYER, PARAMS)}
    found = ur.compare(methods, D, Y, X)
    expected = ur.metrics.nmse(jax.vmap(LAYER.apply, (None, None, 0))(PARAMS, D, Y), X)
    assert found["own"].curve.nmse[-1] == pytest.approx(float(expected), abs=1e-9)
    assert found["own"].coupling.mu_W.shape == (K,)
    np.testing.assert_allclose(found["own"].thresholds, PARAMS.steps.theta)
    assert "| own |" in found.table()


@pytest.mark.slow
def test_a_training_of_a_family_goes_on_from_its_checkpoint(tmp_path):
    whole = ur.fit(LAYER, PARAMS, D, sample, steps=6, **TRAINING)
    for steps in (3, 6):
        parts = ur.fit(LAYER, PARAMS, D, sample, steps=steps, checkpoint=tmp_path / "a", **TRAINING)
    chex.assert_trees_all_equal(parts.params, whole.params, strict=True)
    restored = ur.training.restore(tmp_path / "a")
    assert restored.layer is LAYER
    chex.assert_trees_all_equal(restored.params, parts.best, strict=True)


def test_a_family_is_a_module():
    module = ur.nnx.Module(LAYER, PARAMS, D)
    codes = jax.vmap(LAYER.apply, (None, None, 0))(PARAMS, D, Y)
    np.testing.assert_allclose(module(Y), codes, atol=1e-14)
    chex.assert_trees_all_equal(module.params(), PARAMS, strict=True)


def test_a_family_is_a_layer_of_a_chain(tmp_path):
    network, Ds = ur.dsc([LAYER, ur.layers.ista(2)]), (D, jnp.eye(N))
    params = network.init(jax.random.key(0), Ds)
    first, second = network.apply(params, Ds, Y[0])
    np.testing.assert_allclose(first, LAYER.apply(PARAMS, D, Y[0]), atol=1e-14)
    assert second.shape == (N,)
    restored = ur.training.restore(ur.training.save(tmp_path / "a.npz", params, Ds, network))
    assert restored.layer is network
    chex.assert_trees_all_equal(restored.params, params, strict=True)


@pytest.fixture(scope="module")
def own():
    A, B = (ur.dictionaries.gaussian(jax.random.key(seed), 2, 3) for seed in (1, 2))
    return OwnKronecker(A, B)


@pytest.mark.few(1)
@conforms("kind")
def test_a_dictionary_conforms(test, own, monkeypatch):
    monkeypatch.setitem(registry.DICTIONARIES, "own", lambda: own)
    test("own")


@pytest.mark.few(3)
@pytest.mark.parametrize("name", registry.FAMILIES)
def test_every_family_takes_a_dictionary(name, own):
    layer, matrix = registry.FAMILIES[name](2), ur.dictionaries.dense(own)
    y = jnp.asarray(np.random.default_rng(0).normal(size=matrix.shape[0]))
    params = layer.init(jax.random.key(0), own)

    def codes(params, D, y):
        matrices = jax.tree.map(
            ur.dictionaries.dense,
            ur.layers.unstack(params),
            is_leaf=lambda leaf: isinstance(leaf, Structured),
        )
        return layer.apply(params, D, y), layer.apply(matrices, matrix, y)

    ours, expected = jax.jit(codes)(params, own, y)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_theory_answers_for_a_dictionary(own, tmp_path):
    """The coherence of a Kronecker product of unit atoms is the larger one of its factors."""
    A, B, matrix = own.A, own.B, ur.dictionaries.dense(own)
    whole, *factors = (float(ur.theory.mutual_coherence(D)) for D in (own, A, B))
    assert whole == pytest.approx(max(factors), abs=1e-14)
    W = ur.theory.frobenius_weights(own)
    np.testing.assert_allclose(
        ur.dictionaries.dense(W), ur.theory.frobenius_weights(matrix), atol=1e-12
    )
    found, expected = map(ur.theory.generalized_coherence, (own, matrix))
    assert found.holds and float(found.upper) == pytest.approx(float(expected.upper), abs=1e-6)
    restored = ur.training.restore(ur.training.save(tmp_path / "a.npz", PARAMS.steps.theta, own))
    assert type(restored.D) is OwnKronecker
    chex.assert_trees_all_equal(restored.D, own, strict=True)


@conforms("activation")
def test_an_activation_conforms(test, monkeypatch):
    monkeypatch.setitem(registry.ACTIVATIONS, "own", lambda: own_squareplus)
    test("own")


@pytest.mark.slow
def test_theory_answers_for_an_activation(tmp_path, monkeypatch):
    D = ur.dictionaries.identity_hadamard(16)
    activation = ur.activations.scale(own_squareplus, 100.0)
    problem = dict(depth=8, sparsity=1, bound=1.0, activation=activation)
    layer, params = (
        ur.lista_cp(8, activation=activation),
        ur.analytic.lista_cp(D, **problem),
    )
    of = ur.theory.coherence(D, D)
    found = ur.theory.activation_schedule(
        activation, of.mu_W, of.C_W, d=32, sparsity=1, bound=1.0, depth=8
    )
    codes = layer.iterates(params, D, D[:, 3])
    errors = np.abs(np.asarray(codes) - np.eye(32)[3]).sum(1)
    assert found.holds and (errors <= found.error[1:]).all()
    with pytest.raises(
        TypeError, match="own_squareplus.* has no name; add it to activations.NAMED"
    ):
        ur.training.save(tmp_path / "a.npz", params, D, ur.lista_cp(8, activation=own_squareplus))
    monkeypatch.setitem(ur.activations.NAMED, "own_squareplus", own_squareplus)
    assert ur.lista_cp(8, activation="own_squareplus").activation is own_squareplus
    path = ur.training.save(tmp_path / "a.npz", params, D, layer)
    assert ur.training.restore(path).layer is layer


def test_static_fields_of_a_dictionary_come_back_from_files(tmp_path):
    """Numbers, text and tuples of them, beside one array; what JSON does not hold is refused."""
    echo, layer = OwnEcho(jnp.ones(()), M), ur.layers.ista(2)
    params = layer.init(None, echo)
    saved = ur.training.restore(ur.training.save(tmp_path / "w.npz", params, echo, layer)).D
    batch = jnp.ones((4, M)), None
    options = TRAINING | dict(steps=2, loss=ur.training.lasso_loss(0.1), validation=batch)
    ur.fit(layer, params, echo, lambda key: batch, checkpoint=tmp_path / "kept", **options)
    for found in (saved, ur.training.restore(tmp_path / "kept").D):
        chex.assert_trees_all_equal_structs(found, echo)
        assert (found.m, found.decay, found.parts) == (M, 0.1, ((1, "left"), (2, "right")))
    for value in ({1}, np.inf):
        other = OwnEcho(jnp.ones(()), M, parts=(value,))
        with pytest.raises(TypeError, match="cannot save the static field parts of OwnEcho"):
            ur.training.save(tmp_path / "x.npz", params, other, layer)


class OwnWeights(NamedTuple):
    W: Annotated[jax.Array, Shape("m,d", role="weights")]
    theta: Theta


class own_coupled(Coupled):
    """What `Coupled` asks for, and no more."""

    forms = (Unrolled(None, OwnWeights),)

    def init(self, key, D):
        W = ur.layers.repeat(D / spectral_norm(D) ** 2, self.depth)
        return Unrolled(None, OwnWeights(W, jnp.full(self.depth, 0.01, D.dtype)))

    def weights(self, shared, p, D):
        return Acting(p.W)


def test_coupled_needs_no_other_class():
    layer = own_coupled(2)
    params = layer.init(None, D)
    other = layers.lista_cp(2, tied=False)
    theirs = Unrolled(None, layers.WeightsAndThreshold(*params.steps))
    np.testing.assert_array_equal(layer.apply(params, D, Y[0]), other.apply(theirs, D, Y[0]))
    assert layer.is_coupled and ur.theory.certify(layer, params, D, sparsity=1, bound=1.0)


def test_only_what_shrinks_is_coupled():
    with pytest.raises(TypeError, match="claims: is_coupled is for families that shrink"):
        type("claims", (Layer,), {"is_coupled": True})


class own_fixed(Layer):
    """K steps of ISTA, without params."""

    forms = (Unrolled(None, None),)

    def init(self, key, D):
        return Unrolled(None, None)

    def step(self, shared, p, D, y, state):
        gamma = (1 if p is None else p.gamma) / spectral_norm(D) ** 2
        return State(ur.pursuit.ista_step(D, y, state.x, gamma, 0.01 * gamma))


class own_drawn(own_fixed):
    """K steps of ISTA, of sizes that are drawn."""

    forms = (Unrolled(None, layers.Step),)

    def init(self, key, D):
        return Unrolled(None, layers.Step(1 + jax.random.uniform(key, (self.depth,), D.dtype)))


def test_recipes_of_families_of_ones_own():
    """The key may be a seed, also that of the default; without params nothing is trained."""
    drawn = ur.problems.sampler(D, 64, probability=0.2)
    start = ur.training.prepare(own_drawn, D, *drawn(jax.random.key(0)), depth=2)
    assert start.params.steps.gamma.shape == (2,)
    fixed = ur.training.prepare(own_fixed, D, *drawn(jax.random.key(0)), depth=2)
    assert np.isfinite(fixed.nmse)
    with pytest.raises(TypeError, match="own_fixed has no params to train; training.prepare"):
        ur.training.by_recipe(own_fixed, D, drawn, depth=2)


@pytest.mark.parametrize(
    "shapes, role, words",
    [
        (("", "md"), None, "unknown shape 'md'; expected"),
        (("d",), "thresholds", "unknown role 'thresholds'; expected threshold, relative threshold"),
    ],
)
def test_a_shape_that_means_nothing_is_refused(shapes, role, words):
    with pytest.raises(ValueError, match=words):
        Shape(*shapes, role=role)
