"""Planted problems have the sparsity, bounds and noise they promise, and the statistics."""

import math
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import Fault, rows
from trees import same

from unrolled import dictionaries, problems

EPS = np.finfo(float).eps
SHAPE = (4000, 8)  # one shape for all, since every new one is compiled


def test_bernoulli_gaussian_statistics(key):
    X = np.asarray(problems.bernoulli_gaussian(key, SHAPE, 0.1))
    n, values = X.size, X[X != 0]
    # Five standard errors of a frequency, a mean, a variance and a fourth moment of normal values.
    assert abs(values.size / n - 0.1) < 5 * math.sqrt(0.09 / n)
    assert abs(values.mean()) < 5 / math.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / values.size)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / values.size)
    assert np.abs((X != 0).mean(0) - 0.1).max() < 5 * math.sqrt(0.09 / len(X))  # at every position


def test_the_least_entries_are_those_of_a_stable_sort():
    """With many ties, which the draws of a support have once in thousands of codes."""
    U = np.random.default_rng(0).integers(0, 4, (40, 30)).astype(np.float32)
    ranks = np.argsort(np.argsort(U, 1, kind="stable"), 1)
    least = jax.jit(jax.vmap(problems._least, (None, 0)))
    for s in (0, 1, 7, 29, 30):
        np.testing.assert_array_equal(least(s, U), ranks < s)


@pytest.mark.parametrize("p", [0.0, 1.0, 0, 1])
def test_a_probability_of_none_or_all_is_met(key, p):
    assert ((np.asarray(problems.bernoulli_gaussian(key, SHAPE, p)) != 0) == p).all()


@pytest.mark.few(1)
@pytest.mark.parametrize("sparsity", [0, 1, 3, 8])
def test_counts_are_exact(key, sparsity):
    for X in (
        problems.exact_sparse(key, SHAPE, sparsity),
        problems.bounded(key, SHAPE, sparsity, 2.0, 0.5),
    ):
        assert X.shape == SHAPE
        assert (np.count_nonzero(np.asarray(X), axis=1) == sparsity).all()


def test_supports_are_uniform(key):
    X = np.asarray(problems.exact_sparse(key, SHAPE, 3)) != 0
    pairs = X.T.astype(float) @ X / 4000
    # Each entry with probability 3/8, each pair with 3 * 2 / (8 * 7); five standard errors.
    expected = np.where(np.eye(8) > 0, 3 / 8, 3 * 2 / (8 * 7))
    assert (np.abs(pairs - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_exact_sparse_values_are_normal(key):
    X = np.asarray(problems.exact_sparse(key, SHAPE, 3))
    values = X[X != 0]
    assert abs(values.mean()) < 5 / math.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / values.size)


@pytest.mark.parametrize("least, bound", [(0.0, 1.0), (0.5, 2.0), (3.0, 3.0)])
def test_bounded_magnitudes(key, least, bound):
    X = np.asarray(problems.bounded(key, SHAPE, 4, bound, least))
    values = X[X != 0]
    size = np.abs(values)
    assert size.min() >= least and size.max() <= bound
    # Mean of a uniform magnitude and of a fair sign: five standard errors; EPS for least = bound.
    assert (
        abs(size.mean() - (least + bound) / 2)
        <= 5 * (bound - least) / math.sqrt(12 * size.size) + 4 * EPS * bound
    )
    assert abs(np.sign(values).mean()) < 5 / math.sqrt(size.size)


def test_synthesize_is_the_product(key):
    filters = np.random.default_rng(0).normal(size=(2, 1, 3))
    D = dictionaries.Conv(filters, 8)
    M = np.asarray(dictionaries.dense(D))
    X = np.asarray(problems.exact_sparse(key, (5, D.shape[1]), 3))
    for dictionary in (D, jnp.asarray(M)):
        Y = problems.synthesize(dictionary, X)
        # Sums of three products of numbers up to about 3.
        np.testing.assert_allclose(np.asarray(Y), X @ M.T, rtol=0, atol=64 * EPS)
        one = problems.synthesize(dictionary, X[0])
        np.testing.assert_allclose(np.asarray(one), M @ X[0], rtol=0, atol=64 * EPS)
    in_grids = problems.synthesize(D, X.reshape(5, *D.code_grid))
    np.testing.assert_array_equal(in_grids, problems.synthesize(D, X).reshape(5, *D.signal_grid))
    picture = problems.synthesize(D, X[1].reshape(D.code_grid))
    np.testing.assert_allclose(picture, in_grids[1], rtol=0, atol=64 * EPS)


def test_synthesize_of_a_chain_is_the_product_of_its_dictionaries():
    rng = np.random.default_rng(2)
    A, B, X = (rng.normal(size=shape) for shape in ((3, 4), (4, 5), (2, 5)))
    np.testing.assert_allclose(problems.synthesize((A, B), X), X @ (A @ B).T, rtol=0, atol=64 * EPS)
    np.testing.assert_allclose(
        problems.synthesize((A, B), X[0]), A @ B @ X[0], rtol=0, atol=64 * EPS
    )
    with pytest.raises(ValueError, match="synthesize: D_1 has shape"):
        problems.synthesize((B, A), X)
    for wrong in (X[0, :3], X[None], X[:, :3], X[0, 0]):
        with pytest.raises(ValueError, match=r"x has shape .*; expected \(5,\) or \(batch, 5\)"):
            problems.synthesize(B, wrong)


@pytest.mark.parametrize("snr", [-5.0, 10.0, 40.0])
def test_noise_has_the_snr_asked_for(key, snr):
    scales = np.array([[0.1], [1.0], [100.0]])
    # The mean does not count as signal.
    Y = scales * np.random.default_rng(0).normal(size=(3, 20000)) + 7.0
    noise = np.asarray(problems.add_noise(key, Y, snr)) - Y
    measured = 10 * np.log10(Y.var(axis=1) / (noise**2).mean(1))
    # The power of n normal numbers has standard error sqrt(2 / n), here 0.043 dB.
    np.testing.assert_allclose(measured, snr, atol=5 * 10 / math.log(10) * math.sqrt(2 / 20000))
    assert (np.abs(noise.mean(1)) < 5 * noise.std(1) / math.sqrt(20000)).all()


def test_traced_numbers_give_the_same_draws(key):
    """As under `vmap` over noise levels."""
    Y, levels = np.random.default_rng(0).normal(size=SHAPE), np.array([-5.0, 20.0, math.inf])
    noisy = np.asarray(jax.jit(jax.vmap(problems.add_noise, (None, None, 0)))(key, Y, levels))
    for snr, ours in zip(levels.tolist(), noisy):
        expected = np.asarray(problems.add_noise(key, Y, snr))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=16 * EPS * np.abs(expected).max())
    for draw in (problems.bernoulli_gaussian, problems.l1_noise):
        ours = jax.jit(partial(draw, key, SHAPE))(0.5)
        np.testing.assert_allclose(ours, draw(key, SHAPE, 0.5), rtol=4 * EPS)
    codes = jax.jit(lambda b: problems.bounded(key, SHAPE, 2, bound=b))(0.5)
    np.testing.assert_allclose(codes, problems.bounded(key, SHAPE, 2, bound=0.5), rtol=4 * EPS)


def test_infinite_snr_adds_nothing(key, dtype):
    Y = jax.device_put(np.ones((2, 4), dtype))
    assert problems.add_noise(key, Y, math.inf) is Y
    assert problems.add_noise(key, Y, 20.0).dtype == dtype


@pytest.mark.parametrize("noise", [0.0, 0.3, 50.0])
def test_l1_noise_spends_its_budget(key, noise):
    e = np.asarray(problems.l1_noise(key, SHAPE, noise))
    assert e.shape == SHAPE
    # A sum of 8 magnitudes, a division and 8 products.
    np.testing.assert_allclose(np.abs(e).sum(1), noise, rtol=16 * EPS)
    if noise:
        assert abs(np.sign(e).mean()) < 5 / math.sqrt(e.size)


MAKERS = {
    "bernoulli_gaussian": lambda key: problems.bernoulli_gaussian(key, SHAPE, 0.5),
    "exact_sparse": lambda key: problems.exact_sparse(key, SHAPE, 5),
    "bounded": lambda key: problems.bounded(key, SHAPE, 5),
    "l1_noise": lambda key: problems.l1_noise(key, SHAPE, 1.0),
    "add_noise": lambda key: problems.add_noise(key, np.broadcast_to(np.arange(8.0), SHAPE), 10.0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_key_decides(key, name):
    make, other = MAKERS[name], jax.random.key(1)
    np.testing.assert_array_equal(np.asarray(make(key)), np.asarray(make(key)))
    assert (np.asarray(make(key)) != np.asarray(make(other))).any()


def test_standard_benchmark(key):
    D, sample = problems.standard_benchmark(key, m=20, d=40, batch=5)
    assert D.shape == (20, 40)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(D), axis=0), 1, atol=16 * EPS)
    draw, other = jax.random.split(key)
    Y, X = jax.device_get(jax.jit(sample)(draw))
    assert Y.shape == (5, 20) and X.shape == (5, 40)
    # 40 products of numbers up to about 4, without noise.
    np.testing.assert_allclose(Y, X @ np.asarray(D).T, rtol=0, atol=160 * EPS)
    alone_Y, alone_X = jax.device_get(sample(draw))
    # Inside of another program the last bit of a normal number may differ.
    np.testing.assert_allclose(X, alone_X, rtol=4 * EPS)
    np.testing.assert_allclose(Y, alone_Y, rtol=0, atol=160 * EPS)
    assert (np.asarray(sample(other)[1]) != alone_X).any()


def test_standard_benchmark_has_the_published_defaults(key):
    D, sample = problems.standard_benchmark(key)
    Y, X = jax.eval_shape(sample, key)
    assert (D.shape, Y.shape, X.shape) == ((250, 500), (64, 250), (64, 500))


@pytest.mark.slow
def test_standard_benchmark_options(key):
    sizes = dict(m=20, d=40, batch=200)
    plain, hard = (
        problems.standard_benchmark(key, kappa=kappa, **sizes).D for kappa in (None, 500)
    )
    assert np.linalg.cond(np.asarray(hard)) > 10 * np.linalg.cond(np.asarray(plain))
    D, sample = problems.standard_benchmark(key, probability=0.25, snr=20.0, **sizes)
    Y, X = jax.device_get(jax.jit(sample)(key))
    assert abs((X != 0).mean() - 0.25) < 5 * math.sqrt(0.1875 / X.size)
    clean = X @ np.asarray(D).T
    # std(y) leaves out the mean of y; 4000 samples give 0.1 dB.
    levels = np.sqrt(((Y - clean) ** 2).mean(1)) / clean.std(1)
    assert 20 * np.log10(np.sqrt((levels**2).mean())) == pytest.approx(-20, abs=0.5)


@pytest.mark.slow
def test_sampler_of_a_chain_draws_the_last_code(key):
    """x_{j-1} = D_j x_j, and y = D_1 x_1; the last code is that of a sampler of D_J alone."""
    Ds = dictionaries.gaussian(key, 4, 6), jnp.eye(6), dictionaries.gaussian(key, 6, 9)
    Y, Xs = problems.sampler(Ds, 8, probability=0.3)(key)
    assert [X.shape for X in Xs] == [(8, 6), (8, 6), (8, 9)]
    for D, before, X in zip(Ds, (Y, *Xs), Xs):
        np.testing.assert_array_equal(before, problems.synthesize(D, X))
    np.testing.assert_array_equal(Xs[2], problems.sampler(Ds[2], 8, probability=0.3)(key)[1])
    noisy, _ = problems.sampler(Ds, 8, probability=0.3, snr=20.0)(key)
    assert 0 < float(jnp.linalg.norm(noisy - Y)) < 0.5 * float(jnp.linalg.norm(Y))
    with pytest.raises(ValueError, match="D_1 has shape .4, 6. but D_2 has shape .9, 2."):
        problems.sampler((Ds[0], jnp.ones((9, 2))), 8)


def test_sampler_of_a_structured_dictionary(key):
    D = dictionaries.Conv(np.ones((2, 1, 3)), 8)
    Y, X = jax.eval_shape(problems.sampler(D, 4, probability=0.5), key)
    assert Y.shape == (4, 8) and X.shape == (4, 12)


def samplers(key):
    A, B = (np.random.default_rng(0).normal(size=shape) for shape in ((5, 7), (7, 9)))
    return {
        "a dictionary": lambda: problems.sampler(A, 3),
        "a chain": lambda: problems.sampler((A, B), 3, snr=20.0),
        "signals": lambda: problems.resampler(A, batch=3),
        "signals and codes": lambda: problems.resampler(A, B[:5], batch=3),
    }


@pytest.mark.few(2)
@pytest.mark.parametrize("of", ["a dictionary", "signals", "a chain", "signals and codes"])
def test_equal_samplers_share_their_programs_and_can_be_pickled(of, key, compiled):
    make = samplers(key)[of]
    draw = jax.jit(lambda sample, key: sample(key))
    batch = draw(make(), key)
    assert same(pickle.loads(pickle.dumps(make()))(key), make()(key))
    compiled.clear()
    assert same(draw(make(), key), batch) and not compiled


def _of(draw, *arguments, **options):
    """A call of a maker of codes or noise, (key, shape, ...)."""
    return partial(draw, 0, *arguments, **options)


OUT_OF_PROBABILITY = r"probability must be in \[0, 1\], got"
BOUNDS = "expected 0 <= least <= bound, got least="
LEAVES = "leaves the range of float32"
test_faults_are_refused = rows(
    *(
        (_of(problems.bernoulli_gaussian, (2, 3), p), f"{OUT_OF_PROBABILITY} {p}")
        for p in (-0.1, 1.5, math.nan)
    ),
    *(
        (partial(problems.sampler, np.eye(2), 3, **{name: value}), f"sampler: {words}")
        for name, value, words in (
            ("probability", math.nan, OUT_OF_PROBABILITY),
            ("probability", 1.5, OUT_OF_PROBABILITY),
            ("snr", math.nan, "snr is nan; expected decibels"),
        )
    ),
    *(
        (_of(draw, *arguments), error, f"{draw.__name__}: {words}")
        for draw in (problems.exact_sparse, problems.bounded)
        for what, arguments, error, words in (
            ("4 of 3", ((2, 3), 4), ValueError, "sparsity 4 exceeds the code length 3"),
            ("-1 of 3", ((2, 3), -1), ValueError, "sparsity must be at least 0, got -1"),
            ("no length", ((), 0), ValueError, r"shape is \(\); expected \(\.\.\., d\)"),
            ("2.5 of 3", ((2, 3), 2.5), TypeError, "sparsity must be an integer, got 2.5"),
        )
    ),
    *(
        (_of(problems.bounded, (2, 3), 1, b, a), f"{BOUNDS}{a}")
        for a, b in ((2.0, 1.0), (-1.0, 1.0), (0.0, math.nan), (math.nan, 1.0))
    ),
    *((_of(problems.l1_noise, (3,), n), f"noise must be .*got {n}") for n in (-1.0, math.nan)),
    *(
        (
            _of(problems.add_noise, np.arange(3, dtype="float32"), snr),
            f"noise at snr={snr} dB {LEAVES}",
        )
        for snr in (-1e4, -math.inf)
    ),
    (partial(problems.sampler, np.eye(3), 0), "sampler: batch must be at least 1"),
    (_of(problems.standard_benchmark, m=0), "gaussian: m must be at least 1, got 0"),
    (
        lambda: jax.jit(partial(problems.bounded, 0, (2, 3)))(1),
        TypeError,
        "bounded: sparsity must be static",
    ),
)


OF_FLOAT32 = {
    "bounded: bound=1e.39": _of(problems.bounded, (2, 4), 2, 1e39),
    "bounded: bound=1e-46": _of(problems.bounded, (2, 4), 2, 1e-46, 1e-46),
    "l1_noise: noise=1e.39": _of(problems.l1_noise, (2, 4), 1e39),
}


@pytest.mark.parametrize("words", OF_FLOAT32)
def test_magnitudes_out_of_the_range_are_refused(words):
    with jax.enable_x64(False):
        Fault(OF_FLOAT32[words], ValueError, f"{words} {LEAVES}").check()


def test_codes_without_entries(key):
    assert problems.exact_sparse(key, (3, 0), 0).shape == (3, 0)
    assert problems.bounded(key, (3, 0), 0).shape == (3, 0)


def test_a_nonzero_is_not_drawn_as_zero(monkeypatch):
    """A uniform number of float32 on [0, 1) is 0 once in 2^23, here always."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, *_: jnp.zeros(shape))
    code = problems.bounded(0, (7,), 4, 2.0)  # of one code, too
    assert np.sum(np.abs(code) == 2) == 4
