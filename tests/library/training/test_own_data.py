"""What people bring, a dictionary and signals without codes: trained, judged and refused."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forms import check_forms

import unrolled as ur
from unrolled.app.cli import main
from unrolled.app.commands import _console
from unrolled.app.commands._console import never_silent, progress_printer
from unrolled.pursuit._by_name import pursue
from unrolled.sklearn import SparseCoder

M, N, K = 6, 9, 3
LAM = 0.1
LAYER = ur.layers.ista(K, lam=LAM)
LASSO = ur.training.lasso_loss(LAM)

rng = np.random.default_rng(0)
D = rng.normal(size=(M, N))
D /= np.linalg.norm(D, axis=0)
X = rng.normal(size=(40, N)) * (rng.random((40, N)) < 0.3)
Y = X @ D.T + 0.01 * rng.normal(size=(40, M))
PARAMS = LAYER.init(None, jnp.asarray(D))


def fit(given, *, layer=LAYER, params=PARAMS, D=D, loss=LASSO, steps=3, **options):
    options = dict(optimizer=optax.sgd(1e-2), key=0, loss=loss, steps=steps) | options
    return ur.fit(layer, params, D, given, **options)


APPLY = jax.jit(jax.vmap(LAYER.apply, (None, None, 0)))


def codes_of(Y, params=PARAMS):
    return APPLY(params, D, Y)


# Arrays in place of a sampler


class Frame:
    """What converts itself to an array of numpy and is none, as the data frames of pandas."""

    def __init__(self, array):
        self.array, self.shape, self.ndim = array, array.shape, array.ndim

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return Frame(self.array[rows])

    def __bool__(self):
        raise ValueError("the truth of a frame is ambiguous")


@pytest.mark.slow
def test_a_data_frame_trains_and_is_judged_as_its_array():
    judge = (Frame(Y[:9]), Frame(X[:9]))
    expected, found = fit(Y, validation=(Y[:9], X[:9])), fit(Frame(Y), validation=judge)
    np.testing.assert_array_equal(found.history.loss, expected.history.loss)
    assert found.judged == expected.judged
    drawn, codes = ur.problems.resampler(Frame(Y), Frame(X))(jax.random.key(0))
    expected = ur.problems.resampler(Y, X)(jax.random.key(0))
    np.testing.assert_array_equal(np.hstack([drawn, codes]), np.hstack(expected))


COUNTS = np.round(255 * np.abs(Y)).astype(int)
PICTURES = Y.reshape(len(Y), 2, 3)
ROWS_OF_SIGNALS = {
    "fit": fit,
    "compare": lambda Y: ur.compare({"ista": (LAYER, PARAMS)}, D, Y),
    "calibrate": lambda Y: ur.analytic.calibrate(LAYER, PARAMS, D, Y, loss=LASSO),
    "search": lambda Y: ur.training.search(LAYER, PARAMS, D, Y, theta=[0.1], loss=LASSO),
    "resampler": ur.problems.resampler,
}


@pytest.mark.parametrize("name", ROWS_OF_SIGNALS)
def test_integers_are_refused_in_a_data_frame_as_in_an_array(name):
    for counts in (COUNTS, Frame(COUNTS)):
        with pytest.raises(TypeError, match=f"{name}: Y is int64; expected real numbers near 1"):
            ROWS_OF_SIGNALS[name](counts)


BATCHES = ROWS_OF_SIGNALS | {
    "fit, validation": lambda Y: fit(PICTURES.reshape(40, 6), validation=(Y, None)),
    "lasso_batch": lambda Y: ur.pursuit.lasso_batch(D, Y, LAM),
    "online": lambda Y: ur.dictionary_learning.online([Y], N, lam=LAM, key=0),
    "ksvd": lambda Y: ur.dictionary_learning.ksvd(Y, N, sparsity=2, key=0),
    "prepare": lambda Y: ur.training.prepare("ista", D, Y, X, depth=2),
}


@pytest.mark.parametrize("name", BATCHES)
def test_pictures_are_refused_with_the_rows_that_they_may_become(name):
    message = rf"{name}: .* shape \(40, 2, 3\).*; try Y.reshape\(len\(Y\), -1\)"
    with pytest.raises(ValueError, match=message):
        BATCHES[name](PICTURES)


def test_a_resampler_draws_the_rows_of_its_arrays():
    drawn, codes = ur.problems.resampler(Y, X, batch=200)(jax.random.key(0))
    rows = np.argmin(np.abs(np.asarray(drawn)[:, None] - Y).sum(-1), axis=1)
    np.testing.assert_array_equal(drawn, Y[rows])
    np.testing.assert_array_equal(codes, X[rows])
    assert len(set(rows)) == len(Y)  # the chance that 200 draws miss one of 40 is below 0.3


@pytest.mark.slow
def test_arrays_train_as_the_sampler_of_all_but_the_last_tenth():
    held = (jnp.asarray(Y[36:]), None)
    expected = fit(ur.problems.resampler(Y[:36]), validation=held)
    found = fit(Y)
    assert found.history.records[-1].validation == expected.history.records[-1].validation
    np.testing.assert_array_equal(found.history.loss, expected.history.loss)
    np.testing.assert_array_equal(found.best.steps.theta, expected.best.steps.theta)


@pytest.mark.slow
def test_no_step_sees_a_signal_that_is_held_back():
    other = np.where(np.arange(40)[:, None] >= 36, 7 * Y[::-1], Y)
    found, changed = fit(Y), fit(other)
    np.testing.assert_array_equal(found.params.steps.theta, changed.params.steps.theta)
    assert found.history.records[-1].validation != changed.history.records[-1].validation
    given = fit(Y, validation=(Y[:5], None))  # then all train
    assert (
        given.history.records[0].validation
        == fit(Y[:5], validation=(Y[:5], None), steps=0).history.records[0].validation
    )
    assert not np.array_equal(given.history.loss, found.history.loss)


MASKS = rng.random(Y.shape) < 0.7
MISSING = np.where(MASKS, Y, np.nan)


def test_a_mask_trains_on_the_known_entries_of_each_signal():
    """The losses of known rows alone, of those that are held back; ISTA's and zero codes' too."""
    found = fit(MISSING, mask=MASKS, evaluate_every=1)
    for params, judged in ((found.best, "best"), (PARAMS, "ista")):
        losses = []
        for known, y in zip(MASKS[36:], Y[36:]):
            x = LAYER.apply(params, jnp.asarray(D[known]), jnp.asarray(y[known]))
            losses.append(ur.pursuit.lasso_objective(D[known], y[known], x, LAM))
        assert found.judged[judged] == pytest.approx(np.mean(losses), rel=1e-10)
    assert found.judged["zero"] == pytest.approx(np.mean((Y * MASKS)[36:] ** 2) * M / 2, rel=1e-10)
    given = fit(MISSING[:36], mask=MASKS[:36], validation=(MISSING[36:], None, MASKS[36:]))
    assert (
        given.judged["zero"] == found.judged["zero"] and given.judged["best"] < found.judged["zero"]
    )


@pytest.mark.parametrize("learn_dictionary", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_mask_is_no_mask(learn_dictionary):
    plain, full = (
        fit(Y, learn_dictionary=learn_dictionary, **options)
        for options in ({}, {"mask": np.ones(M, bool)})
    )
    np.testing.assert_allclose(full.best.steps.theta, plain.best.steps.theta, rtol=1e-10)
    np.testing.assert_allclose(full.history.loss, plain.history.loss, rtol=1e-10)
    np.testing.assert_allclose(full.D, plain.D, rtol=1e-10)
    assert np.array_equal(full.D, D) != learn_dictionary


def test_a_dictionary_is_learned_from_the_known_entries():
    """Its last losses are those of the learned rows alone."""
    found = fit(MISSING, mask=MASKS, learn_dictionary=True, evaluate_every=1)
    assert not np.array_equal(found.D, D)
    np.testing.assert_allclose(np.linalg.norm(found.D, axis=0), 1, rtol=1e-12)
    losses = []
    for known, y in zip(MASKS[36:], Y[36:]):
        x = LAYER.apply(found.best, found.D[known], jnp.asarray(y[known]))
        losses.append(ur.pursuit.lasso_objective(found.D[known], y[known], x, LAM))
    assert found.judged["best"] == pytest.approx(np.mean(losses), rel=1e-10)
    assert found.judged["best"] < fit(MISSING, mask=MASKS, evaluate_every=1).judged["best"]


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (MISSING, dict(mask=MASKS[:3]), ValueError, r"mask has shape \(3, 6\); expected \(6,\) or"),
        (MISSING, dict(mask=1.0 * MASKS), TypeError, "mask has dtype float64; expected bool"),
        (MISSING, dict(mask=~MASKS), ValueError, "Y has NaN"),
        (lambda key: (Y, None), dict(mask=MASKS), ValueError, "a mask is for arrays"),
        (MISSING, dict(mask=MASKS, validation=(Y, None)), ValueError, r"is \(Y, X, mask\)"),
    ],
)
def test_masks_that_are_refused(given, options, error, message):
    with pytest.raises(error, match=f"fit: .*{message}"):
        fit(given, **options)


@pytest.fixture
def constants_are_told():
    """JAX warns of programs that hold more than the sizes here, and warnings are errors."""
    before = jax.config.jax_captured_constants_warn_bytes
    jax.config.update("jax_captured_constants_warn_bytes", 1000)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", before)


SAMPLERS = {
    "arrays": (Y, X),
    "a resampler": ur.problems.resampler(Y, X),
    "planted": ur.problems.sampler(jnp.asarray(D), 8),
    "of a file, and codes": (Y, X),
    "of a caller": jax.tree_util.Partial(lambda Y, key: (Y[:8], None), jnp.asarray(Y)),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("given", SAMPLERS.values(), ids=SAMPLERS)
def test_no_program_of_a_training_holds_its_signals(given, constants_are_told, tmp_path, request):
    """As constants they were copied by the compiler, and kept in the cache of programs."""
    if "file" in request.node.name:
        np.save(tmp_path / "Y.npy", Y)
        given = np.load(tmp_path / "Y.npy", mmap_mode="r"), X
    for options in ({}, dict(accumulate=2, mesh=jax.make_mesh((1,), ("data",)))):
        assert np.isfinite(fit(given, **options).history.loss).all()


@pytest.mark.slow
def test_a_sampler_that_holds_arrays_trains_as_before(constants_are_told):
    sample = ur.problems.resampler(Y, X)
    expected = fit(sample)
    with pytest.warns(UserWarning, match="constants were captured"):
        found = fit(lambda key: sample(key))
    np.testing.assert_array_equal(found.history.loss, expected.history.loss)


class Unhashable(dict):
    def __call__(self, key):
        return self["Y"], None


class Sized(NamedTuple):
    batch: np.ndarray
    Y: jax.Array

    def __call__(self, key):
        return self.Y[: int(self.batch)], None


@pytest.mark.slow
@pytest.mark.parametrize(
    "sample",
    [Unhashable(Y=jnp.asarray(Y[:8])), Sized(np.array(8), jnp.asarray(Y))],
    ids=["dict", "tuple"],
)
def test_a_sampler_may_be_any_function(sample):
    """Not hashable, or a pytree with sizes in it."""
    found = fit(sample, steps=1)
    np.testing.assert_array_equal(
        found.history.loss, fit(lambda key: sample(key), steps=1).history.loss
    )


def test_signals_with_codes_train_on_codes():
    found = fit((Y, X), loss=ur.training.supervised, steps=30, optimizer=optax.adam(1e-2))
    first, last = found.history.records[0], found.history.records[-1]
    assert last.validation < first.validation
    expected = np.mean(np.sum((np.asarray(codes_of(Y[36:])) - X[36:]) ** 2, 1)) / 2
    assert first.validation == pytest.approx(expected, rel=1e-12)  # some 40 terms


@pytest.mark.slow
def test_a_network_and_a_curriculum_take_arrays():
    chain, Ds = ur.dsc([LAYER, ur.layers.ista(2)]), (jnp.asarray(D), jnp.eye(N))
    params = chain.init(None, Ds)
    found = fit(Y, layer=chain, params=params, D=Ds, steps=2)
    assert len(found.history.loss) == 2
    found = fit((Y, (X, X)), layer=chain, params=params, D=Ds, loss=ur.training.supervised, steps=1)
    assert np.isfinite(found.history.loss).all()
    options = dict(key=0, steps_per_stage=1, stages=(1.0,), loss=LASSO)
    found = ur.training.curriculum(LAYER, PARAMS, D, Y, **options)
    assert len(found.history.loss) == K


@pytest.mark.slow
def test_signals_in_float64_train_a_layer_in_float32():
    warned = pytest.warns(UserWarning, match="fit: Y is float64 but JAX runs in float32")
    with jax.enable_x64(False), warned:
        found = fit(Y, D=jnp.asarray(D, jnp.float32), params=LAYER.init(None, jnp.float32(D)))
    assert found.best.steps.theta.dtype == np.float32


def _nan(*rows):
    return np.where(np.isin(np.arange(40), rows)[:, None], np.nan, Y)


FAULTS = {
    "another width": (Y[:, 1:], ValueError, r"Y has shape \(40, 5\); expected \(signals, 6\)"),
    "in columns": (Y.T, ValueError, r"seem to be in columns, try Y.T"),
    "one signal": (Y[:1], ValueError, "Y has one signal; expected at least 2"),
    "no signal": (Y[:0], ValueError, "with at least one signal"),
    "a vector": (Y[0], ValueError, r"Y has shape \(6,\)"),
    "all zero": (0 * Y, ValueError, "all signals are zero"),
    "zero at the end": (
        np.where(np.arange(40)[:, None] < 36, Y, 0),
        ValueError,
        "all signals held back to validate on are zero",
    ),
    "nan": (_nan(3, 17), ValueError, r"Y has NaN or infinite entries \(in rows 3, 17\)"),
    "integers": (np.rint(Y).astype(int), TypeError, "Y is int64; expected real numbers near 1"),
    "grey values": (np.abs(Y).astype(np.uint8), TypeError, "Y is uint8; .* try Y / 255"),
    "complex": (Y + 0j, TypeError, "Y is complex"),
    "other codes": ((Y, X[1:]), ValueError, r"X has shape \(39, 9\); expected \(40, ...\)"),
    "short codes": ((Y, X[:, 1:]), ValueError, r"codes have shape"),
    "nan codes": ((Y, np.full_like(X, np.nan)), ValueError, "X has NaN or infinite entries"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_signals_that_do_not_fit_are_refused(fault):
    given, error, message = FAULTS[fault]
    with pytest.raises(error, match=f"fit: .*{message}"):
        fit(given)


@pytest.mark.parametrize("fault", ["another width", "all zero", "nan", "integers", "grey values"])
def test_a_calibration_and_a_comparison_without_codes_refuse_them_too(fault):
    given, error, message = FAULTS[fault]
    message = message.replace("signals, 6", "batch, 6").replace("all signals", "all signals.*")
    with pytest.raises(error, match=f"calibrate: .*{message}"):
        ur.analytic.calibrate(LAYER, PARAMS, D, given, loss=LASSO)
    with pytest.raises(error, match=f"compare: .*{message}"):
        ur.compare({"ISTA": (LAYER, PARAMS)}, D, given, lam=LAM)


@pytest.mark.few(1)
@pytest.mark.parametrize("fault", ["zero atom", "equal atoms"])
def test_a_dictionary_with_zero_or_equal_atoms_is_trained_with(fault):
    """The zero atom is never used; of equal ones either may be."""
    spoilt = D.copy()
    spoilt[:, 2] = 0 if fault == "zero atom" else D[:, 3]
    found = fit(Y, D=spoilt, params=LAYER.init(None, jnp.asarray(spoilt)))
    assert found.judged["best"] < found.judged["zero"] and not found.worsened
    if fault == "zero atom":
        codes = jax.vmap(LAYER.apply, (None, None, 0))(found.best, jnp.asarray(spoilt), Y)
        assert not np.any(codes[:, 2])


@pytest.mark.slow
def test_a_lam_of_zero_trains_and_one_that_silences_all_signals_is_told():
    free = ur.layers.ista(K, lam=0.0)
    options = dict(layer=free, params=free.init(None, jnp.asarray(D)))
    assert not fit(Y, loss=ur.training.lasso_loss(0.0), **options).worsened
    lam = 2 * float(np.abs(Y @ D).max())
    layer = ur.layers.ista(K, lam=lam)
    start = layer.init(None, jnp.asarray(D))
    with pytest.warns(UserWarning, match="all codes are zero, silenced by .* a smaller lam"):
        fit(Y, layer=layer, params=start, loss=ur.training.lasso_loss(lam), evaluate_every=1)
    with pytest.warns(UserWarning, match="all codes are zero, as no thresholds .*a smaller lam"):
        ur.analytic.calibrate(layer, start, D, Y, loss=ur.training.lasso_loss(lam))


@pytest.mark.parametrize(
    "command",
    ["train --dictionary D.npy --signals", "compare --dictionary D.npy --signals"]
    + ["encode --method omp --sparsity 2 --dictionary D.npy", "learn --atoms 3"],
)
def test_grey_values_of_a_file_are_refused(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("D.npy", D)
    np.save("grey.npy", np.abs(Y).astype(np.uint8))
    output = {"encode": "codes.npy", "train": "w.npz"}.get(command.split()[0], "folder")
    assert main([*command.split(), "grey.npy", "--output", output]) == 2
    told = capsys.readouterr().err
    assert "grey.npy: signals are uint8; expected real numbers near 1, try Y / 255" in told


def test_a_loss_that_needs_codes_says_so():
    for loss in (ur.training.supervised, ur.training.deep(ur.training.log_nmse)):
        with pytest.raises(ValueError, match=r"X = None; try training.lasso_loss\(lam\)"):
            fit(Y, loss=loss)
    own = {
        "unsupported operand": lambda codes, X, D, Y: jnp.mean((codes[-1] - X) ** 2),
        "subscriptable": lambda codes, X, D, Y: jnp.mean(codes[-1] - X[0]),
    }
    for what, loss in own.items():
        message = (
            rf"fit: the loss fails without codes, X = None \(.*{what}.*\); try training.lasso_loss"
        )
        with pytest.raises(ValueError, match=message):
            fit(Y, loss=loss)


# Degenerate signals

FLAT = {
    "omp": dict(sparsity=2),
    "omp_batch": dict(sparsity=2),
    "basis_pursuit": {},
    "lasso": dict(ratio=0.1),
    "lasso_batch": dict(ratio=0.1),
    "project": dict(sparsity=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAT)
def test_signals_of_rounding_are_coded_as_zero(name):
    """A flat patch without its mean is a rounding or two: no pursuit codes it beside others."""
    flat = np.stack([0 * Y[0], np.full(M, 0.7) - np.mean(np.full(M, 0.7)), 1e-16 * Y[1]])
    signals = jnp.asarray(np.concatenate([Y[:3], flat]))
    coded = pursue(name, (jnp.asarray(D),), signals, FLAT[name])
    (codes,) = coded.codes
    assert not np.any(codes[3:]) and np.all(np.any(np.asarray(codes[:3]), axis=1))
    assert coded.zeros == int((np.abs(flat).max(1) > 0).sum())
    alone = pursue(name, (jnp.asarray(D),), jnp.asarray(1e-16 * Y[:2]), FLAT[name])
    assert alone.zeros == 0 and np.any(alone.codes[0])  # faint signals alone are signals


def test_a_coder_says_how_many_samples_are_rounding_beside_the_largest_of_all():
    coder = SparseCoder(D, "omp", sparsity=2).fit(Y)
    samples = np.concatenate([1e-17 * Y[:1], Y[:2], 1e-17 * Y[1:3]])
    with pytest.warns(
        UserWarning, match="3 of 5 samples are negligible next to the largest, to the"
    ):
        codes = coder.transform(samples)
    assert np.array_equal(np.any(codes, axis=1), [False, True, True, False, False])
    assert coder.transform(Y).any(1).all()  # a warning would be an error
    coder = SparseCoder(D, "lasso", lam=1e-18).fit(Y)
    assert coder.transform(1e-17 * Y[:1]).any()


def test_an_aim_in_the_units_of_the_signals_decides_itself():
    signals = jnp.asarray(np.stack([Y[0], 1e-16 * Y[1]]))
    coded = pursue("lasso", (jnp.asarray(D),), signals, dict(lam=1e-18))
    assert coded.zeros == 0 and np.any(coded.codes[0][1])


def test_a_cast_to_float32_loses_no_signals_and_no_atoms():
    near = pytest.warns(UserWarning, match="float64 but JAX runs in float32")
    faint = np.where(np.arange(40)[:, None] == 3, 1e-60 * Y, Y)
    thin = np.where(np.arange(N) == 5, 1e-60, 1) * D
    where = "leaves the range of float32"
    with jax.enable_x64(False), near:
        with pytest.raises(ValueError, match=rf"lasso_batch: Y {where} \(in row 3\), where"):
            ur.pursuit.lasso_batch(jnp.float32(D), faint, LAM)
        with pytest.raises(ValueError, match=rf"ista: D {where} \(in column 5\), where entries"):
            LAYER.init(None, thin)
        with pytest.raises(ValueError, match=rf"fit: Y {where} \(in row 3\)"):
            fit(faint, D=jnp.float32(D), params=LAYER.init(None, jnp.float32(D)))
        with pytest.raises(ValueError, match=f"omp: y {where}, where entries become 0"):
            ur.pursuit.omp(jnp.float32(D), 1e-60 * Y[0], 2)


# Judged beside zero codes


@pytest.mark.slow
def test_a_search_that_ends_above_zero_codes_says_so():
    options = dict(theta=[0.0], gamma=[5.0, 8.0])
    with pytest.warns(UserWarning, match="search: the best codes are worse than zero codes: "):
        found = ur.training.search(LAYER, PARAMS, jnp.asarray(D), Y, X, **options)
    assert found.worsened and np.nanmin(found.nmse) > 0
    found = ur.training.search(LAYER, PARAMS, jnp.asarray(D), Y, X, theta=[0.01, 5.0])
    assert not found.worsened


def test_a_lasso_training_that_starts_above_ista_says_so_before_its_first_step():
    layer = ur.layers.liht(K, sparsity=N)  # no shrinkage at all
    params = layer.init(None, jnp.asarray(D))
    with pytest.warns(UserWarning, match="fit: at the start .* worse than ISTA of the same depth:"):
        found = fit(Y, layer=layer, params=params, loss=ur.training.lasso_loss(0.3), steps=0)
    assert found.history.ista < found.judged["first"] < found.history.zero


@pytest.mark.slow
@pytest.mark.parametrize("family", ["alista", "robust_alista"])
def test_a_start_that_is_a_little_above_ista_says_so(family):
    """Seismic traces, of few reflections: ISTA has converged, these weights solve their problem."""
    rng, t = np.random.default_rng(0), np.arange(32)
    squares = (0.15 * np.pi * np.subtract.outer(t, t)) ** 2
    wavelets = (1 - 2 * squares) * np.exp(-squares)  # of Ricker, one at every sample
    traces = (rng.normal(size=(200, 32)) ** 3 * (rng.random((200, 32)) < 0.03)) @ wavelets.T
    traces += 0.01 * rng.normal(size=traces.shape)
    traces /= np.linalg.norm(traces, axis=1).mean()
    wavelets /= np.linalg.norm(wavelets, axis=0)
    layer = ur.layers.FAMILIES[family](100, lam=0.5)
    start, options = layer.init(None, wavelets), dict(loss=ur.training.lasso_loss(0.5), steps=0)
    with pytest.warns(UserWarning, match="at the start .* worse than ISTA of the same depth: "):
        found = fit(traces, layer=layer, params=start, D=wavelets, **options)
    assert 1 < found.judged["first"] / found.history.ista < 1.02


def test_a_search_is_judged_by_its_loss_beside_zero_codes_and_ista_or_by_known_codes():
    def mean_objective(params):
        codes = codes_of(Y, params=params)
        return float(LASSO(codes[None], None, jnp.asarray(D), jnp.asarray(Y)))

    thetas = [1e-3, 0.01, 5.0]
    found = ur.training.search(LAYER, PARAMS, D, Y, loss=LASSO, theta=thetas)
    each = [PARAMS._replace(steps=PARAMS.steps._replace(theta=jnp.full(K, t))) for t in thetas]
    np.testing.assert_allclose(found.loss, list(map(mean_objective, each)), rtol=1e-9)
    assert found.nmse is None and found.lowest == found.loss.min() and not found.worsened
    assert found.zero == pytest.approx(np.mean(np.sum(Y**2, 1)) / 2)
    assert found.ista == pytest.approx(mean_objective(PARAMS))  # the layer is ISTA
    with pytest.warns(UserWarning, match="worse than zero codes: their loss is .*, ISTA has "):
        far = ur.training.search(LAYER, PARAMS, D, Y, loss=LASSO, theta=[0.0], gamma=[5.0])
    assert far.worsened
    nmse = ur.training.search(LAYER, PARAMS, D, Y, X, theta=thetas).nmse  # X, where it is known
    errors = [np.sum((np.asarray(codes_of(Y, params=params)) - X) ** 2) for params in each]
    np.testing.assert_allclose(nmse, 10 * np.log10(errors / np.sum(X**2)), rtol=1e-9)
    with pytest.raises(ValueError, match="search: there are no codes; expected X, or a loss"):
        ur.training.search(LAYER, PARAMS, D, Y, theta=thetas)


def test_a_fit_hands_its_losses_beside_those_of_zero_codes_and_ista_to_the_weights(tmp_path):
    found = fit(Y)
    first, last = found.history.records
    assert found.judged == {
        "first": first.validation,
        "best": min(first.validation, last.validation),
        "zero": found.history.zero,
        "ista": found.history.ista,
    }
    ur.training.save(tmp_path / "w.npz", found.best, D, LAYER, validation=found.judged)
    assert ur.training.restore(tmp_path / "w.npz").metadata["validation"] == found.judged


@pytest.mark.slow
def test_a_calibration_that_ends_above_zero_codes_says_what_ista_has():
    """The matrices of LISTA are not scaled: they expand the larger, held-back signals."""
    layer, factors = ur.layers.lista(K), np.where(np.arange(40) < 30, 1.0, 100.0)[:, None]
    W = 4 * D
    matrices = ur.layers.Matrices(jnp.asarray(W), jnp.eye(N) - W.T @ D)
    start = layer.init(None, D)._replace(shared=matrices)
    with pytest.warns(UserWarning, match="worse than zero codes: their loss is .*, ISTA has "):
        ur.analytic.calibrate(layer, start, D, factors * Y, loss=LASSO)


# What a command says


class Clock:
    """The clock of a command, and what its watch waits for: nothing else passes the time."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic

    def wait(self, seconds):
        self.now += seconds
        return self.now > 113


def test_on_a_terminal_a_command_is_never_silent(monkeypatch, capsys):
    clock, watched = Clock(), []
    monkeypatch.setattr(_console, "time", clock)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(_console, "_watch", lambda *arguments: watched.append(arguments))
        with never_silent(4):
            clock.now += 3
            progress_printer()("solving")
    ((line, silence, over),) = watched
    assert over.is_set()
    _console._watch(line, silence, clock)  # from the third second to the thirteenth
    expected = ["[  0.0 s] solving", "... solving: 4 s", "... solving: 8 s"]
    assert capsys.readouterr().err.splitlines() == expected


def test_without_a_terminal_nothing_watches_a_command(monkeypatch):
    watched = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.setattr(_console, "_watch", lambda *arguments: watched.append(arguments))
    with never_silent():
        pass
    assert not watched


@pytest.mark.slow
def test_certify_says_which_hypothesis_fails_and_which_signals_are_of_the_class(tmp_path, capsys):
    """Of four signals two have at most two nonzeros of magnitude at most 1."""
    frame = np.asarray(ur.dictionaries.identity_hadamard(16), float)
    codes = np.zeros((4, 32))
    codes[[0, 1, 1], [3, 5, 20]], codes[2, 7], codes[3] = 0.5, 3.0, 1.0
    np.save(tmp_path / "D.npy", frame)
    np.save(tmp_path / "Y.npy", codes @ frame.T)
    asked = ["certify", str(tmp_path / "D.npy"), "--signals", str(tmp_path / "Y.npy")]
    assert main([*asked, "--sparsity", "3", "--no-cache"]) == 0
    told = capsys.readouterr().out
    assert "minimax: a < 1 fails: with s = 3 and mu_W = 0.25 it is 1.25; it holds up to" in told
    found = "OMP finds a code of this class (at most 3 nonzeros of magnitude at most 1, noise"
    assert found in told and "for 2 of 4 signals" in told
    twice = [*asked, str(tmp_path / "D.npy")]
    assert main([*twice[:2], *twice[4:], *twice[2:4]]) == 2
    assert "--signals without --code needs one D" in capsys.readouterr().err


def test_certify_of_atoms_of_unequal_norms_says_what_basis_pursuit_finds():
    """Up to the tolerance for unit atoms: of two nonzeros l1 prefers the three other atoms."""
    e, t = 7.5e-5, 0.99e-4
    V = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]]).T / np.sqrt(3)
    top = np.vstack([np.sqrt(1 - e * e) * V, np.full((1, 4), -e)])
    D = np.column_stack([top, np.eye(4)[:, 3]]) * [1 - t, 1 - t, 1 + t, 1 + t, 1]
    (layer,) = ur.app.studies.dictionary_report(D).layers
    assert ur.theory.max_sparsity(layer.mu, 5) == 2 and layer.admissible["mu"] == 1
    found = ur.pursuit.basis_pursuit(D, D @ [1, 1, 0, 0, 0])
    assert found.converged and jnp.abs(found.x).sum() < 2 - 1e-5


@pytest.mark.parametrize("numbers", [{"bound": np.inf}, {"noise": np.inf}, {"bound": 1e308}])
def test_certify_of_numbers_out_of_range_does_not_blame_the_contraction(numbers):
    told = ur.app.studies.dictionary_report(ur.dictionaries.identity_hadamard(16), **numbers).text()
    assert "leave the range of numbers" in told and "a < 1 fails" not in told


def test_a_plan_and_a_certificate_say_why_they_do_not_hold():
    numbers = dict(sparsities=(4, 2), bounds=(1.0, 1.0))
    found = ur.theory.plan((1 / 32, 0.4), (1.0, 1.0), **numbers, tol=1e-3)
    assert found.reason == "block 2 does not contract: its a is 1.2, and must be below 1"
    found = ur.theory.plan((1 / 32, 1 / 5), (1.0, 1.0), **numbers, noises=(0.1, 0.0), tol=1e-3)
    least = float(found.reason.rpartition(" ")[2])
    assert found.reason.startswith("no depths end at 0.001: the least error")
    options = dict(numbers, noises=(0.1, 0.0))
    for tol, holds in ((1.01 * least, True), (0.99 * least, False)):
        assert ur.theory.plan((1 / 32, 1 / 5), (1.0, 1.0), **options, tol=tol).holds is holds
    assert ur.theory.plan((1 / 32, 1 / 5), (1.0, 1.0), **numbers, tol=1e-3).reason == ""


# Results in four forms


@pytest.mark.slow
def test_evolutions_certificates_and_studies_have_tables_in_four_forms():
    watch = ur.comparison.evolution(LAYER, jnp.asarray(D))
    fit(Y, callbacks=[watch])
    frame = ur.dictionaries.identity_hadamard(4)
    layer, params = ur.lista_cp(4), ur.analytic.lista_cp(frame, depth=4, sparsity=1, bound=1.0)
    weights = ur.app.studies.certify_weights(layer, params, frame, tolerance=1e-2)
    found = [watch, weights, weights.certificates[0], ur.analytic.weights_table(frame)]
    for result, rows in zip(found, (2, 1, 5, 3)):
        check_forms(result, rows)
    assert watch.table("records")[-1]["validation"] == watch.evaluations[-1].validation
    assert weights.certificates[0].table("records")[0]["l1_error"] == 1.0


def test_a_search_with_masks_sees_each_signal_through_its_own():
    known, thetas = np.random.default_rng(3).random(Y.shape) < 0.7, [0.01, 0.1]
    found = ur.training.search(LAYER, PARAMS, D, Y, mask=known, loss=LASSO, theta=thetas)
    for theta, loss in zip(thetas, found.loss):
        params = PARAMS._replace(steps=PARAMS.steps._replace(theta=jnp.full(K, theta)))
        seen, atoms = known * Y, known[:, :, None] * D
        codes = jax.jit(jax.vmap(LAYER.apply, (None, 0, 0)))(params, atoms, seen)
        misfit = np.sum((seen - np.einsum("nij,nj->ni", atoms, codes)) ** 2, 1) / 2
        assert loss == pytest.approx(np.mean(misfit + LAM * np.sum(np.abs(codes), 1)), rel=1e-9)
