"""`unrolled.sklearn`: what scikit-learn expects of a transformer, and whose codes they are."""

import functools
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import SparseCoder as Theirs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils._set_output import ADAPTERS_MANAGER
from sklearn.utils.estimator_checks import estimator_checks_generator

import unrolled as ur
from unrolled.pursuit._by_name import BATCH, CHAIN, PURSUITS
from unrolled.sklearn import DictionaryLearner, SparseCoder

pytestmark = pytest.mark.usefixtures("float32_by_default")

RNG = np.random.default_rng(0)
D = RNG.normal(size=(8, 12))
D /= np.linalg.norm(D, axis=0)
B = RNG.normal(size=(12, 14))
B /= np.linalg.norm(B, axis=0)
X = RNG.normal(size=(6, 12)) * (RNG.random((6, 12)) < 0.2)
Y = X @ D.T + 0.1 * RNG.normal(size=(6, 8))
SIGNALS = np.random.default_rng(2).normal(size=(60, 8))
CONV = ur.dictionaries.Conv(np.asarray(RNG.normal(size=(2, 1, 3)), np.float32), (8,), 1, "circular")

# The rules of scikit-learn


def checks():
    """Its checks: some by default, since each compiles for shapes of its own."""
    default = {
        "check_do_not_raise_errors_in_init_or_set_param",
        "check_estimator_cloneable",
        "check_estimators_pickle",
        "check_fit_check_is_fitted",
        "check_n_features_in_after_fitting",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_set_params",
    }
    for coder, check in estimator_checks_generator(SparseCoder()):
        name = check.func.__name__
        marks = () if name in default else pytest.mark.slow
        yield pytest.param(coder, check, id=name, marks=marks)


@pytest.mark.parametrize("coder, check", [*checks()])
def test_a_check_of_scikit_learn(coder, check):
    check(coder)


def labelled(n=60):
    """Signals of two classes, which use the first and the last three atoms of D."""
    rng = np.random.default_rng(1)
    labels, codes = np.arange(n) % 2, np.zeros((n, 12))
    for i, label in enumerate(labels):
        codes[i, rng.choice(3, 2, replace=False) + 9 * label] = rng.choice((-1, 1), 2) + 0.1
    return codes @ D.T, labels


@pytest.mark.slow
def test_a_pipeline_and_a_grid_search_choose_a_sparsity():
    signals, labels = labelled()
    magnitudes = FunctionTransformer(np.abs)  # the classes differ in the support
    pipeline = make_pipeline(SparseCoder(D, sparsity=1), magnitudes, RidgeClassifier())
    search = GridSearchCV(pipeline, {"sparsecoder__sparsity": [1, 2]}, cv=2)
    search.fit(signals, labels)
    assert search.best_params_ == {"sparsecoder__sparsity": 2}
    coder = search.best_estimator_.named_steps["sparsecoder"]
    assert coder.get_feature_names_out()[:2].tolist() == ["sparsecoder0", "sparsecoder1"]
    plain = make_pipeline(magnitudes, RidgeClassifier()).fit(signals[::2], labels[::2])
    assert plain.score(signals[1::2], labels[1::2]) < search.best_score_


@pytest.mark.few(1)
@pytest.mark.parametrize("method", ["omp", ur.alista(3)])
def test_a_copy_and_a_pickle_give_the_same_codes(method):
    coder = SparseCoder(D, method).fit(Y)
    codes = coder.transform(Y)
    again = pickle.loads(pickle.dumps(coder))
    assert np.array_equal(again.transform(Y), codes)
    assert np.array_equal(clone(coder).fit(Y).transform(Y), codes)


def test_the_codes_are_those_of_scikit_learn():
    """OMP to rounding; both solve the LASSO, theirs to its own tolerance."""
    for ours, theirs in (
        (SparseCoder(D, sparsity=3), Theirs(dictionary=D.T, transform_n_nonzero_coefs=3)),
        (
            SparseCoder(D, "lasso_batch", lam=0.1, tol=1e-10),
            Theirs(dictionary=D.T, transform_algorithm="lasso_lars", transform_alpha=0.1),
        ),
    ):
        codes = ours.fit_transform(Y)
        assert codes.dtype == np.float64
        np.testing.assert_allclose(codes, theirs.fit_transform(Y), atol=1e-6)


# Every method

OPTIONS = {
    "threshold": dict(theta=0.3),
    "ista": dict(lam=0.2, tol=1e-4),
    "fista": dict(lam=0.2, tol=1e-4),
    "omp": dict(sparsity=2),
    "omp_batch": dict(sparsity=2, selection="least_squares"),
    "basis_pursuit": {},
    "bpdn": dict(eps=0.2, tol=1e-3),
    "half_quadratic": dict(lam=0.1, p=0.5, tol=1e-3),
    "lasso": dict(ratio=0.3, l2=0.1),
    "lasso_batch": dict(ratio=0.3, nonnegative=True),
    "local_error": dict(radius=0.5, tol=1e-3),
    "local_sparsity": dict(lam=0.5, tol=1e-3),
    "layered_thresholding": dict(thetas=(0.1, 0.1)),
    "layered_basis_pursuit": dict(lams=(0.1, 0.1), tol=1e-3),
    "project": dict(sparsity=2),
    "ml_ista": dict(lams=(0.1, 0.1), step=0.5, tol=1e-3),
    "ml_fista": dict(lams=(0.1, 0.1), tol=1e-3),
    "ml_basis_pursuit": dict(lams=(0.1, 0.1), tol=1e-2),
    "holistic": dict(lam=0.1, zeros=2, tol=1e-2),
}


def test_every_pursuit_is_tried():
    assert list(OPTIONS) == list(PURSUITS)
    others = {
        "choose_lam",
        "duality_gap",
        "lam_max",
        "lam_of_paper",
        "lasso_objective",
        "lasso_path",
    }
    assert set(ur.pursuit.__all__) == others | set(PURSUITS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OPTIONS])
def test_the_codes_are_those_of_the_pursuit(name):
    chained = PURSUITS[name].takes == CHAIN
    given = (D, B) if chained else CONV if name.startswith("local") else D
    coder = SparseCoder(given, name, **OPTIONS[name]).fit(Y)
    codes = coder.transform(Y)
    with jax.enable_x64(True):
        solve = getattr(ur.pursuit, name)
        batch = name if PURSUITS[name].takes == BATCH else PURSUITS[name].many
        if batch:
            expected = getattr(ur.pursuit, batch)(given, Y, **OPTIONS[name]).x
        else:
            found = [solve(jax.tree.map(jnp.asarray, given), y, **OPTIONS[name]) for y in Y]
            expected = np.stack([f.xs[-1] if chained else f.x for f in found])
        signals = codes
        for Dj in reversed(given if chained else (given,)):
            signals = ur.problems.synthesize(Dj, signals)
    # Iterations stop at the same step, to the rounding of products in another order.
    np.testing.assert_allclose(codes, expected, atol=1e-6 if name.startswith("local") else 1e-9)
    np.testing.assert_allclose(coder.inverse_transform(codes), signals, atol=1e-6)
    np.testing.assert_array_equal(coder.restore(Y), coder.inverse_transform(codes))


def test_a_pursuit_of_ones_own_is_a_method():
    """Its options are those of its signature, as of the pursuits here."""

    def halved(D, y, theta, *, tol=1e-6):
        return ur.pursuit.threshold(D, y / 2, theta, tol=tol)

    assert ur.pursuit.register(halved, aims=False) is halved
    try:
        codes = SparseCoder(D, "halved", theta=0.1).fit(Y).transform(Y)
        np.testing.assert_allclose(codes, _shrunk(Y @ D / 2), atol=1e-12)
        with pytest.raises(ValueError, match="halved needs theta"):
            SparseCoder(D, "halved").fit(Y)
        with pytest.raises(ValueError, match="halved has no lam; its options are theta, tol"):
            SparseCoder(D, "halved", theta=0.1, lam=1.0).fit(Y)
    finally:
        del PURSUITS["halved"]
    with pytest.raises(ValueError, match=r"begins with \(A, b\); expected \(D, y\)"):
        ur.pursuit.register(lambda A, b: A)


def _shrunk(V):
    return np.sign(V) * np.maximum(np.abs(V) - 0.1, 0)


def test_layers_and_networks_by_name_as_records_and_with_params():
    layer, network = ur.alista(3), ur.dsc([ur.layers.ista(2, lam=0.1), ur.alista(3)])
    with jax.enable_x64(True):
        given = layer.init(None, D)
        moved = given._replace(steps=jax.tree.map(lambda leaf: 1.5 * leaf, given.steps))
        plain, other = (jax.vmap(layer.apply, (None, None, 0))(p, D, Y) for p in (given, moved))
        deep = jax.vmap(network.apply, (None, None, 0))(network.init(None, (D, B)), (D, B), Y)
        chained = ur.pursuit.layered_thresholding((D, B), Y[0], (0.1, 0.1)).xs
    for coder, expected in (
        (SparseCoder(D, "alista", depth=3), plain),
        (SparseCoder(D, layer), plain),
        (SparseCoder(D, layer, params=moved), other),
        (SparseCoder((D, B), network), deep[-1]),
    ):
        np.testing.assert_allclose(coder.fit_transform(Y), expected, atol=1e-9)
    codes = SparseCoder((D, B), "layered_thresholding", thetas=(0.1, 0.1)).fit_transform(Y)
    np.testing.assert_allclose(codes[0], chained[-1], atol=1e-9)
    assert SparseCoder(D, "ista", depth=3, lam=0.1).fit(Y).method_ == ur.layers.ista(3, lam=0.1)


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["bcd", "lfista_cp"])
def test_a_bare_layer_is_trained_on_the_samples_by_the_recipe(family, monkeypatch):
    """With the seed, the lam and the dtype of the estimator; params that are given stay."""
    few = functools.partial(ur.training.unsupervised, steps=3)
    monkeypatch.setattr("unrolled.sklearn.unsupervised", few)
    coder = SparseCoder(D, family, depth=2, lam=0.2, random_state=5).fit(Y)
    with jax.enable_x64(True):
        fit = few(D, Y, 0.2, 2, key=5, family=family, progress=False)
        start = fit.model.init(None, jnp.asarray(D))
    assert coder.method_ == fit.model == ur.layers.FAMILIES[family](2, lam=0.2)
    jax.tree.map(np.testing.assert_array_equal, coder.params_, fit.best)
    assert not all(map(np.array_equal, jax.tree.leaves(fit.best), jax.tree.leaves(start)))
    kept = SparseCoder(D, fit.model, params=start).fit(Y)
    jax.tree.map(np.testing.assert_array_equal, kept.params_, start)


@pytest.mark.parametrize(
    "layer",
    [
        ur.layers.bcd(2, lam=0.2, block=3),
        ur.layers.bcd(2, lam=0.2, nonnegative=True),
        ur.layers.lfista_cp(2, lam=0.2, nonnegative=True),
    ],
    ids=repr,
)
def test_a_layer_with_options_keeps_its_start(layer, monkeypatch):
    """The recipe trains for the LASSO alone, and has no options of a family."""
    monkeypatch.setattr("unrolled.sklearn.unsupervised", None)
    with jax.enable_x64(True):
        start = layer.init(None, jnp.asarray(D))
    jax.tree.map(np.testing.assert_array_equal, SparseCoder(D, layer).fit(Y).params_, start)


def test_families_that_draw_their_params_take_a_seed():
    coders = [SparseCoder(D, "na_alista", depth=2, random_state=seed).fit(Y) for seed in (0, 0, 1)]
    a, b, c = (jax.tree.leaves(coder.params_) for coder in coders)
    assert all(map(np.array_equal, a, b)) and not all(map(np.array_equal, a, c))


@pytest.mark.slow
def test_codes_have_the_dtype_of_the_samples_and_come_in_chunks(monkeypatch):
    monkeypatch.setattr("unrolled.sklearn._CHUNK", 3)
    coder = SparseCoder(D, "threshold", theta=0.3).fit(Y)
    codes = coder.transform(Y.astype(np.float32))
    assert codes.dtype == np.float32
    np.testing.assert_allclose(codes, coder.transform(Y), atol=1e-5)
    assert not jax.config.jax_enable_x64


# What is refused


@pytest.mark.parametrize(
    "coder, message",
    [
        (SparseCoder(D.T), r"shape \(12, 8\); expected \(8, n_components\).*try dictionary.T"),
        (SparseCoder(np.eye(5)), r"since X has 8 features$"),
        (SparseCoder(D, "ompp"), "unknown pursuit 'ompp'; expected one of threshold, "),
        (SparseCoder(D, "omp", lam=1.0), "omp has no lam; its options are sparsity, tol"),
        (SparseCoder(D, "bpdn"), "bpdn needs eps"),
        (SparseCoder(D, "lasso_batch"), "lasso_batch needs lam or ratio"),
        (SparseCoder((D, B), "project"), "project needs sparsity or lam"),
        (SparseCoder((D, B), "omp"), "omp takes one dictionary, got 2; for a chain try layered_"),
        (SparseCoder(D, "lista"), "lista is a family of layers; give its depth"),
        (SparseCoder(D, "omp", params=0), "params are for layers, omp is a pursuit"),
        (SparseCoder(D, "omp", depth=3), "unknown family 'omp'; expected one of "),
        (SparseCoder(D, ur.alista(3), depth=3, lam=1), "depth, lam does not go with a layer"),
        (SparseCoder((D, B), ur.alista(3)), "a layer has one dictionary, got 2"),
    ],
)
def test_fit_says_what_does_not_fit(coder, message):
    with pytest.raises(ValueError, match=f"^SparseCoder: .*{message}"):
        coder.fit(Y)


def test_what_is_no_method_no_code_or_not_fitted_is_refused():
    with pytest.raises(TypeError, match="method is a function; expected the name of a pursuit"):
        SparseCoder(D, ur.pursuit.omp).fit(Y)
    with pytest.raises(NotFittedError):
        SparseCoder(D).transform(Y)
    coder = SparseCoder(D, "threshold", theta=0.3).fit(Y)
    with pytest.raises(ValueError, match=r"codes have shape \(6, 8\); expected \(n_samples, 12\)"):
        coder.inverse_transform(Y)


def test_codes_that_miss_their_tolerance_warn_and_infinite_ones_are_refused():
    with pytest.warns(ConvergenceWarning, match="6 of 6 codes miss the tolerance of ista"):
        SparseCoder(D, "ista", lam=0.01, tol=1e-12, max_steps=10).fit_transform(Y)
    layer = ur.layers.ista(2)
    params = jax.tree.map(lambda leaf: np.inf * leaf, layer.init(None, D.astype(np.float32)))
    with pytest.raises(ArithmeticError, match="6 codes are not finite"):
        SparseCoder(D, layer, params=params).fit_transform(Y)


def test_options_set_after_a_fit_wait_for_the_next():
    coder = SparseCoder(D, "omp", sparsity=2).fit(Y)
    codes = coder.transform(Y)
    coder.set_params(method="lasso", lam=0.1, sparsity=None)
    np.testing.assert_array_equal(coder.transform(Y), codes)
    learner = DictionaryLearner(6, "ksvd", sparsity=2, sweeps=1).fit(Y)
    codes = learner.transform(Y)
    learner.set_params(method="online", sparsity=None)
    np.testing.assert_array_equal(learner.transform(Y), codes)
    with pytest.raises(ValueError, match="learned by another method; expected fit first"):
        learner.partial_fit(Y)


@pytest.mark.slow
def test_without_scikit_learn_the_message_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import unrolled; import unrolled.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "pip install '.[data]'" in done.stderr


# Habits of scikit-learn


@pytest.mark.parametrize("kind", ["coder", "learner"])
def test_a_seed_is_an_int_a_random_state_or_none(kind):
    """A RandomState gives the same as another one of its seed, and moves on; None is no seed."""

    def fitted(seed):
        if kind == "coder":
            return jax.tree.leaves(
                SparseCoder(D, "na_alista", depth=2, random_state=seed).fit(Y).params_
            )
        learner = DictionaryLearner(10, "mod", sparsity=2, sweeps=1, random_state=seed)
        return [learner.fit(SIGNALS).dictionary_]

    def equal(a, b):
        return all(map(np.array_equal, a, b))

    state = np.random.RandomState(7)
    first, second = fitted(state), fitted(state)
    again = fitted(np.random.RandomState(7))
    assert equal(first, again) and not equal(first, second)
    np.random.seed(3)
    assert not equal(fitted(None), fitted(None))
    with pytest.raises(TypeError, match="SparseCoder: key must|random_state must be an integer"):
        fitted("a seed")


def test_a_stream_goes_on_whatever_its_seed_is():
    learner = DictionaryLearner(10, lam=0.3, random_state=np.random.RandomState(0))
    for part in np.split(SIGNALS, 3):
        learner.partial_fit(part)
    assert len(learner.learned_.history) == 3 and np.isfinite(learner.transform(SIGNALS)).all()


def test_components_are_the_atoms_in_rows():
    np.testing.assert_array_equal(SparseCoder(D).fit(Y).components_, D.T)
    fast = ur.dictionaries.dct(8, 12)
    coder = SparseCoder(fast, sparsity=2).fit(Y)
    np.testing.assert_allclose(coder.inverse_transform(np.eye(12)), coder.components_, atol=1e-6)
    chain = SparseCoder((D, B), "project", sparsity=1).fit(Y)
    with pytest.raises(AttributeError, match="components_ is for one dictionary, got 2"):
        chain.components_  # noqa: B018
    assert not hasattr(SparseCoder(D), "components_")


@pytest.mark.parametrize("learned", [False, True])
def test_signs_may_have_features_of_their_own(learned):
    def made(split):
        if not learned:
            return SparseCoder(D, sparsity=3, split_sign=split).fit(SIGNALS)
        return DictionaryLearner(10, "ksvd", sparsity=2, sweeps=1, split_sign=split).fit(SIGNALS)

    plain, split = made(False), made(True)
    codes, features = plain.transform(SIGNALS), split.transform(SIGNALS)
    d = codes.shape[1]
    assert features.shape == (60, 2 * d) and (features >= 0).all() and (codes < 0).any()
    np.testing.assert_array_equal(features[:, :d] - features[:, d:], codes)
    assert not (features[:, :d] * features[:, d:]).any()
    assert len(split.get_feature_names_out()) == 2 * d
    np.testing.assert_array_equal(split.restore(SIGNALS), plain.restore(SIGNALS))
    with pytest.raises(ValueError, match=rf"codes have shape \(60, {d}\); .*, {2 * d}\)"):
        split.inverse_transform(codes)
    split.set_params(split_sign=False)  # for the next fit
    assert split.transform(SIGNALS).shape == (60, 2 * d)


@pytest.mark.slow
def test_a_split_coder_is_an_estimator_and_its_codes_are_proved():
    coder = SparseCoder(D, "lasso", lam=0.2, tol=1e-10, split_sign=True).fit(SIGNALS)
    proof = coder.certify(SIGNALS)
    assert proof.unique.all() and proof.x.shape == (60, 12)
    for made, check in estimator_checks_generator(SparseCoder(split_sign=True)):
        check(made)


@pytest.mark.parametrize(
    "refused, error, message",
    [
        (lambda: SparseCoder(D).fit(scipy.sparse.csr_array(Y)), TypeError, "Use '.toarray"),
        (lambda: DictionaryLearner().fit(scipy.sparse.csr_array(Y)), TypeError, "Use '.toarray"),
        (lambda: SparseCoder(D, n_jobs=2), TypeError, "unexpected keyword argument 'n_jobs'"),
        (lambda: DictionaryLearner(positive_dict=True), TypeError, "argument 'positive_dict'"),
        (lambda: DictionaryLearner(positive_code=True), TypeError, "argument 'positive_code'"),
        (lambda: SparseCoder(D, positive_code=True), TypeError, "argument 'positive_code'"),
        (lambda: SparseCoder(D).transform(Y), NotFittedError, "Call 'fit'"),
        (lambda: SparseCoder(D, split_sign=1).fit(Y), TypeError, "SparseCoder: split_sign must"),
    ],
)
def test_a_habit_that_is_refused_is_told_in_the_docstring(refused, error, message):
    with pytest.raises(error, match=message):
        refused()
    said = SparseCoder.__doc__ + DictionaryLearner.__doc__
    assert all(word in said for word in ("sparse matrices", "n_jobs", "`transform` before `fit`"))
    assert all(word in said for word in ("`positive_code` is named `nonnegative`", "positive_dict"))


class Frame:
    """A data frame as scikit-learn makes it of an output."""

    container_lib = "frames"

    def __init__(self, values, columns):
        self.values, self.columns = values, list(columns)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)

    @property
    def shape(self):
        return self.values.shape

    @classmethod
    def create_container(cls, values, original, columns, inplace=True):
        return cls(np.asarray(values), columns() if callable(columns) else columns)


@pytest.mark.parametrize(
    "estimator",
    [
        SparseCoder(D, "lasso_batch", lam=0.2),
        SparseCoder(D, sparsity=2, split_sign=True),
        DictionaryLearner(10, "ksvd", sparsity=2, sweeps=1),
    ],
    ids=["coder", "split", "learner"],
)
def test_data_frames_pass_and_are_returned(estimator, monkeypatch):
    """pandas and polars are such containers; a global choice of one does not reach inside."""
    monkeypatch.setitem(ADAPTERS_MANAGER.adapters, "frames", Frame)
    frame = Frame(SIGNALS, [f"pixel {i}" for i in range(8)])
    expected = clone(estimator).fit(SIGNALS).transform(SIGNALS)
    fitted = clone(estimator).set_output(transform="frames").fit(frame)
    with config_context(transform_output="frames"):
        found = [fitted.transform(frame), clone(estimator).fit(frame).transform(frame)]
    for codes in found:
        assert isinstance(codes, Frame) and codes.columns == [*fitted.get_feature_names_out()]
        np.testing.assert_array_equal(codes.values, expected)
    np.testing.assert_array_equal(fitted.restore(frame), fitted.inverse_transform(expected))
    if isinstance(estimator, SparseCoder):
        assert len(fitted.certify(frame).x) == len(SIGNALS)


# Missing entries

KNOWN = np.random.default_rng(3).permuted(np.arange(8) >= 2 * np.ones((6, 1)), axis=1)
KNOWN[0] = True  # each of the other samples misses two entries
TORN = np.where(KNOWN, Y, np.nan)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("lasso_batch", "omp") else pytest.mark.slow)
        for name in OPTIONS
        if not name.startswith("local")
    ],
)
def test_codes_fit_the_known_entries_alone(name):
    """Each sample has the code of its known entries in the rows of D that belong to them."""
    chained, options = PURSUITS[name].takes == CHAIN, OPTIONS[name]
    codes = SparseCoder((D, B) if chained else D, name, **options).fit(TORN).transform(TORN)
    solve = getattr(ur.pursuit, name)
    for y, known, code in zip(Y, KNOWN, codes):
        atoms, y, norms = D[known], y[known], 1.0
        if name.startswith("omp"):
            atoms, norms = atoms / np.linalg.norm(atoms, axis=0), np.linalg.norm(atoms, axis=0)
        with jax.enable_x64(True):
            if PURSUITS[name].takes == BATCH:
                found = solve(atoms, y[None], **options).x[0]
            elif chained:
                found = solve((jnp.asarray(atoms), jnp.asarray(B)), y, **options).xs[-1]
            else:
                found = solve(jnp.asarray(atoms), y, **options).x
        np.testing.assert_allclose(code, np.asarray(found) / norms, atol=1e-9)


@pytest.mark.parametrize("kind", ["coder", "network", "learner"])
def test_missing_entries_are_filled_in(kind, monkeypatch):
    """Better than by zeros; samples without missing entries, also of another chunk, stay as are."""
    monkeypatch.setattr("unrolled.sklearn._CHUNK", 30)
    rng = np.random.default_rng(4)
    samples = labelled(60)[0]
    known = rng.random(samples.shape) < 0.9
    known[:30], known[40] = True, False
    torn = np.where(known, samples, np.nan)
    if kind == "coder":
        estimator = SparseCoder(D, "lasso_batch", lam=0.02)
    elif kind == "network":
        estimator = SparseCoder(D, "lfista_cp", depth=30, lam=0.02, params=_start_of_fista(30))
    else:
        estimator = DictionaryLearner(12, "ksvd", sparsity=2, sweeps=10)
    restored = estimator.fit(torn).restore(torn)
    missing = ~known & known.any(1, keepdims=True)  # of sample 40 nothing is known
    assert np.linalg.norm((restored - samples)[missing]) < 0.8 * np.linalg.norm(samples[missing])
    np.testing.assert_allclose(restored[:30], estimator.restore(samples)[:30], atol=1e-12)
    assert not restored[40].any()
    filled = estimator.restore(torn.astype(np.float32))
    assert filled.dtype == np.float32
    np.testing.assert_allclose(filled, restored, atol=1e-4)


def _start_of_fista(depth):
    with jax.enable_x64(True):
        return ur.layers.lfista_cp(depth, lam=0.02).init(None, jnp.asarray(D))


def test_a_faint_sample_with_missing_entries_has_the_code_zero():
    samples = np.vstack([TORN, 1e-20 * TORN[1:2]])
    coder = SparseCoder(D, sparsity=2).fit(samples)
    with pytest.warns(UserWarning, match="1 of 7 samples are negligible"):
        codes = coder.transform(samples)
    np.testing.assert_allclose(codes, [*coder.transform(TORN), np.zeros(12)], atol=1e-12)


def test_a_network_runs_with_the_masked_dictionary_of_each_sample():
    layer, network = ur.alista(3), ur.dsc([ur.layers.ista(2, lam=0.1), ur.alista(3)])
    seen = np.where(KNOWN, Y, 0)
    for model, given in ((layer, D), (network, (D, B))):
        with jax.enable_x64(True):
            params = model.init(None, given)
            found = []
            for known, y in zip(KNOWN, seen):
                own = ur.dictionaries.Masked(D, known)
                code = model.apply(params, own if model is layer else (own, jnp.asarray(B)), y)
                found.append(code if model is layer else code[-1])
        codes = SparseCoder(given, model).fit(TORN).transform(TORN)
        np.testing.assert_allclose(codes, found, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bcd", "lfista_cp"])
def test_the_recipe_trains_on_the_known_entries(family, monkeypatch):
    few = functools.partial(ur.training.unsupervised, steps=3)
    monkeypatch.setattr("unrolled.sklearn.unsupervised", few)
    coder = SparseCoder(D, family, depth=2, lam=0.2, random_state=5).fit(TORN)
    with jax.enable_x64(True):
        options = dict(family=family, progress=False, mask=KNOWN)
        expected = few(D, TORN, 0.2, 2, key=5, **options).best
    jax.tree.map(np.testing.assert_array_equal, coder.params_, expected)


@pytest.mark.parametrize("method", ["online", "recover", "ksvd", "mod"])
def test_a_learner_learns_from_the_known_entries(method):
    known = np.random.default_rng(5).random(SIGNALS.shape) < 0.9
    torn = np.where(known, SIGNALS, np.nan)
    learner = DictionaryLearner(10, method, sweeps=2, steps=2).fit(torn)
    with jax.enable_x64(True):
        if method == "online":
            order = np.random.default_rng(0)
            rows = [order.permutation(60) for _ in range(2)]
            batches, lam = [(torn[part], known[part]) for part in rows], learner.lam_
            found = ur.dictionary_learning.online(batches, 10, lam=lam, key=0)
            assert lam == pytest.approx(np.linalg.norm(known * SIGNALS, axis=1).mean() / 10)
        elif method == "recover":
            options = dict(lam=learner.lam_, steps=2, key=0, mask=known)
            found = ur.dictionary_learning.recover(SIGNALS, 10, **options)
        else:
            learn = getattr(ur.dictionary_learning, method)
            found = learn(SIGNALS, 10, sparsity=1, sweeps=2, key=0, mask=known)
    np.testing.assert_array_equal(learner.dictionary_, found.D)
    coder = ("omp", {"sparsity": 1})
    if method in ("online", "recover"):
        coder = ("lasso_batch", {"lam": learner.lam_})
    expected = SparseCoder(learner.dictionary_, coder[0], **coder[1]).fit(torn).transform(torn)
    np.testing.assert_array_equal(learner.transform(torn), expected)
    if method == "online":
        streamed = DictionaryLearner(10, lam=lam).partial_fit(torn)
        with jax.enable_x64(True):
            found = ur.dictionary_learning.online([(torn, known)], 10, lam=lam, key=0)
        np.testing.assert_array_equal(streamed.dictionary_, found.D)


def test_missing_entries_that_a_method_cannot_leave_out_are_refused():
    infinite = np.where(KNOWN, Y, np.inf)
    for estimator in (SparseCoder(D), DictionaryLearner(3)):
        with pytest.raises(ValueError, match="infinity"):
            estimator.fit(infinite)
    coder = SparseCoder(D, "lasso_batch", lam=0.2).fit(TORN)
    torn = (~KNOWN).any(1).sum()
    with pytest.raises(ValueError, match=f"certify needs samples without .*, got {torn} with NaN"):
        coder.certify(TORN)
    with pytest.raises(TypeError, match="local_error: D is a Masked; expected a Conv"):
        SparseCoder(CONV, "local_error", radius=0.5).fit_transform(TORN)

    def halves(D, Y, scale=0.5):
        return ur.pursuit.omp_batch(D, scale * Y, 2)

    ur.pursuit.register(halves)
    try:
        coder = SparseCoder(D, "halves").fit(TORN)
        assert coder.transform(Y).any()
        with pytest.raises(
            ValueError, match="halves: entries of Y are missing; .* mask or weights"
        ):
            coder.transform(TORN)
    finally:
        del PURSUITS["halves"]


# Learned dictionaries


def learner_checks():
    """As `checks`, for three methods."""
    default = {"check_no_attributes_set_in_init", "check_parameters_default_constructible"}
    for method in ("online", "recover", "ksvd"):
        made = DictionaryLearner(method=method, sweeps=2, steps=5)
        for learner, check in estimator_checks_generator(made):
            name = check.func.__name__
            marks = () if name in default else pytest.mark.slow
            yield pytest.param(learner, check, id=f"{method}-{name}", marks=marks)


@pytest.mark.parametrize("learner, check", [*learner_checks()])
def test_a_check_of_scikit_learn_for_learning(learner, check):
    check(learner)


def test_a_learner_is_the_function_of_its_name():
    learner = DictionaryLearner(10, "mod", sparsity=2, sweeps=3, random_state=4).fit(SIGNALS)
    with jax.enable_x64(True):
        found = ur.dictionary_learning.mod(SIGNALS, 10, sparsity=2, sweeps=3, key=4)
        assert np.array_equal(learner.dictionary_, found.D)
    codes = learner.transform(SIGNALS)
    assert codes.shape == (60, 10) and (codes != 0).sum(1).max() <= 2
    assert np.allclose(learner.inverse_transform(codes), codes @ learner.components_)
    assert np.array_equal(learner.restore(SIGNALS), learner.inverse_transform(codes))
    back = pickle.loads(pickle.dumps(learner))
    assert back.learned_.history == learner.learned_.history
    assert np.array_equal(back.transform(SIGNALS), codes)


@pytest.mark.parametrize("method", ["online", "recover", "ksvd", "mod"])
def test_a_learner_has_nonnegative_codes(method):
    learner = DictionaryLearner(10, method, nonnegative=True, sweeps=1, steps=3)
    again = clone(learner)
    assert again.get_params() == learner.get_params() and again.get_params()["nonnegative"]
    codes = learner.fit(SIGNALS).transform(SIGNALS)
    assert (codes >= 0).all() and codes.any() and learner.nonnegative_
    learner.set_params(nonnegative=False)  # for the next fit
    assert np.array_equal(learner.transform(SIGNALS), codes)
    assert (learner.fit(SIGNALS).transform(SIGNALS) < 0).any()


def test_recover_of_a_learner_is_the_function():
    options = dict(lam=0.5, nonnegative=True, steps=4)
    learner = DictionaryLearner(10, "recover", batch_size=20, random_state=3, **options)
    learner.fit(SIGNALS)
    with jax.enable_x64(True):
        found = ur.dictionary_learning.recover(SIGNALS, 10, batch=20, key=3, **options)
    assert np.array_equal(learner.dictionary_, found.D) and len(learner.learned_.history) == 4
    assert not hasattr(learner, "partial_fit")


def test_online_of_a_learner_codes_by_omp():
    learner = DictionaryLearner(10, sparsity=2, sweeps=1, batch_size=60).fit(SIGNALS)
    again = DictionaryLearner(10, sparsity=2).partial_fit(SIGNALS)
    batch = SIGNALS[np.random.default_rng(0).permutation(60)]
    with jax.enable_x64(True):
        for estimator, signals in ((learner, batch), (again, SIGNALS)):
            found = ur.dictionary_learning.online([signals], 10, sparsity=2, key=0)
            assert np.array_equal(estimator.dictionary_, found.D)
    assert (learner.transform(SIGNALS) != 0).sum(1).max() == 2 and learner.lam_ is None
    assert len(learner.partial_fit(SIGNALS).learned_.history) == 2


@pytest.mark.parametrize("method", ["online", "recover"])
def test_samples_that_are_held_back_end_the_learning(method):
    samples = np.where(np.random.default_rng(5).random((60, 8)) < 0.9, SIGNALS, np.nan)
    options = {"sparsity": 2} if method == "online" else {"lam": 0.5}
    options |= dict(patience=2, evaluate_every=1)
    learner = DictionaryLearner(10, method, batch_size=18, sweeps=20, steps=40, **options)
    learner.fit(samples)
    held, rest = np.split(np.random.default_rng(0).permutation(60), [6])
    torn, known = samples[np.sort(rest)], ~np.isnan(samples[np.sort(rest)])
    options["validation"] = samples[held], ~np.isnan(samples[held])
    with jax.enable_x64(True):
        if method == "online":
            order = np.random.default_rng(0)
            rows = np.concatenate([order.permutation(54) for _ in range(20)]).reshape(60, 18)
            batches = [(torn[part], known[part]) for part in rows]
            found = ur.dictionary_learning.online(batches, 10, **options)
            assert len(found.history) < 60
        else:
            options |= dict(batch=18, steps=40)
            found = ur.dictionary_learning.recover(torn, 10, mask=known, **options)
    assert np.array_equal(learner.dictionary_, found.D)
    judged = [step.validation for step in learner.learned_.history]
    assert learner.learned_.objective == min(judged) and len(judged) == len(found.history)
    with pytest.raises(ValueError, match="partial_fit holds back no samples"):
        DictionaryLearner(patience=3).partial_fit(SIGNALS)


def test_the_default_lam_follows_the_scale_of_the_samples():
    one, tiny = (DictionaryLearner(10, sweeps=1).fit(c * SIGNALS) for c in (1.0, 2.0**-700))
    assert one.lam_ == pytest.approx(np.linalg.norm(SIGNALS, axis=1).mean() / 10)
    assert tiny.lam_ == one.lam_ * 2.0**-700
    assert np.array_equal(one.dictionary_, tiny.dictionary_)


def test_partial_fit_goes_on_with_a_stream():
    parts = np.split(SIGNALS, 3)
    learner = DictionaryLearner(10, lam=0.3)
    for part in parts:
        learner.partial_fit(part)
    with jax.enable_x64(True):
        found = ur.dictionary_learning.online(parts, 10, lam=0.3, key=0)
        assert np.array_equal(learner.dictionary_, found.D)
    assert not hasattr(DictionaryLearner(method="ksvd"), "partial_fit")


@pytest.mark.parametrize(
    "learner, message",
    [
        (
            DictionaryLearner(method="svd"),
            "unknown method 'svd'; expected one of online, recover, ksvd, mod",
        ),
        (DictionaryLearner(method="ksvd", lam=1.0), "ksvd has no lam"),
        (DictionaryLearner(lam=1.0, sparsity=2), "online: expected one of lam and sparsity"),
        (DictionaryLearner(method="mod", patience=2), "mod has no patience"),
        (DictionaryLearner(evaluate_every=2), "evaluate_every needs patience"),
        (DictionaryLearner(patience=0), "patience must be at least 1"),
        (DictionaryLearner(method="recover", sparsity=2), "recover has no sparsity"),
        (DictionaryLearner(method="recover", steps=0), "steps must be at least 1"),
        (DictionaryLearner(61), "61 atoms for 60 samples; expected at most as many"),
        (DictionaryLearner(batch_size=0), "batch_size must be at least 1"),
        (DictionaryLearner(0), "DictionaryLearner: n_components must be at least 1, got 0"),
    ],
)
def test_what_a_learner_refuses(learner, message):
    with pytest.raises(ValueError, match=message):
        learner.fit(SIGNALS)


@pytest.mark.parametrize("estimator", [DictionaryLearner(61), SparseCoder(np.eye(5))])
def test_after_a_fit_that_failed_an_estimator_is_not_fitted(estimator):
    estimator = clone(estimator)
    with pytest.raises(ValueError, match="atoms for|dictionary has shape"):
        estimator.fit(SIGNALS)
    for method in (estimator.transform, estimator.inverse_transform):
        with pytest.raises(NotFittedError):
            method(SIGNALS)


def test_complex_samples_are_pairs():
    """As scikit-learn asks, an array of complex numbers is refused."""
    rng = np.random.default_rng(0)
    A, Z = (rng.normal(size=(n, 6, 2)) @ [1, 1j] for n in (4, 5))
    A = (A / np.linalg.norm(A, axis=0)).astype("c8")
    Y = Z.astype("c8") @ A.T
    D = ur.dictionaries.Complex.of(A)
    coder = SparseCoder(D, "lasso_batch", lam=0.5)
    samples = ur.dictionaries.to_pairs(Y)
    codes = ur.dictionaries.from_pairs(coder.fit(samples).transform(samples))
    np.testing.assert_array_equal(codes, ur.pursuit.lasso_batch(D, Y, 0.5).x)
    assert (codes != 0).any() and (codes == 0).any()
    for estimator in (coder, DictionaryLearner(3)):
        with pytest.raises(ValueError, match="Complex data not supported"):
            estimator.fit(Y)


@pytest.mark.parametrize("options", [{"lam": 0.2}, {"ratio": 0.1, "nonnegative": True}])
def test_codes_of_the_lasso_are_proved_for_their_own_penalty(options):
    coder = SparseCoder(D, "lasso", tol=1e-10, **options).fit(SIGNALS)
    proof = coder.certify(SIGNALS)
    assert proof.unique.all() and not proof.repairs.any()
    np.testing.assert_allclose(proof.x, coder.transform(SIGNALS), atol=1e-4)
    chosen = SparseCoder(D, "omp", sparsity=3).fit(SIGNALS)
    assert chosen.certify(SIGNALS, lam=0.2).unique.all()


@pytest.mark.slow
def test_the_codes_of_samples_are_certified():
    codes = np.zeros((4, 12))
    codes[[0, 1, 2], [3, 5, 7]] = 1.0, -2.0, 0.5
    codes[3, [1, 8]] = 1.0
    samples = codes @ D.T
    coder = SparseCoder(D, "omp", sparsity=2).fit(samples)
    found = coder.certify(samples)
    assert found.certified(samples)[:3].all()
    np.testing.assert_allclose(found.x[found.unique], codes[found.unique], atol=1e-12)
    chain = SparseCoder((D, B), "project", sparsity=1).fit(samples)
    with pytest.raises(ValueError, match="certify is for one dictionary, got 2"):
        chain.certify(samples)
