"""Learning that replaces atoms: what it finds, and what does not change its result."""

import numpy as np
import pytest
import trees

import unrolled as ur
from unrolled import dictionary_learning as dl
from unrolled.dictionary_learning import _learning, _recover, _stochastic
from unrolled.dictionary_learning._coder import Coder

M, D_ATOMS, N = 10, 20, 400


@pytest.fixture(scope="module")
def planted():
    rng, D = np.random.default_rng(0), np.array(ur.gaussian(1, M, D_ATOMS))
    X = rng.uniform(0.2, 1, (N, D_ATOMS)) * (rng.random((N, D_ATOMS)).argsort(1) < 2)
    return D, X @ D.T


def without_times(found):
    return found.replace(history=tuple(step.replace(seconds=0) for step in found.history))


def test_planted_atoms_are_found_with_their_signs(planted):
    D, Y = planted
    found = dl.recover(Y, D_ATOMS, lam=0.05, steps=300, nonnegative=True)
    assert np.mean((D.T @ np.asarray(found.D)).max(1) > 0.95) >= 0.9
    np.testing.assert_allclose(np.linalg.norm(found.D, axis=0), 1, atol=1e-12)
    assert found.X is None and len(found.history) == 300
    # The atoms compete in the first four fifths only.
    replaced = [step.replaced for step in found.history]
    assert sum(replaced[:240]) > 20 and sum(replaced[241:]) == 0


@pytest.mark.slow
def test_it_finds_more_than_online_learning():
    rng, D = np.random.default_rng(0), np.array(ur.gaussian(0, 40, 100))
    X = rng.random((300, 100)) * (rng.random((300, 100)).argsort(1) < 5)
    Y = X @ D.T
    batches = (Y[rng.permutation(300)[:100]] for _ in range(400))
    plain = dl.online(batches, 100, lam=0.1, nonnegative=True)
    found = dl.recover(Y, 100, lam=0.1, steps=400, nonnegative=True)
    shares = [np.mean((D.T @ np.asarray(each.D)).max(1) > 0.9) for each in (found, plain)]
    assert shares[0] > shares[1] + 0.1


def test_the_scale_of_the_signals_does_not_matter(planted):
    _, Y = planted
    one, big = (dl.recover(c * Y, D_ATOMS, lam=0.05 * c, steps=9) for c in (1.0, 2.0**40))
    assert np.array_equal(one.D, big.D) and big.objective == one.objective * 2.0**80


@pytest.mark.parametrize("stop", [{}, dict(evaluate_every=1, patience=1)])
def test_an_interrupted_call_goes_on_from_its_file(stop, planted, tmp_path, monkeypatch):
    _, Y = planted
    options = dict(lam=0.05, steps=6, nonnegative=True, key=3) | stop
    options |= dict(validation=Y[:50]) if stop else {}
    whole = dl.recover(Y, D_ATOMS, **options)
    monkeypatch.setattr(_learning, "_PERIOD", 0.0)

    def interrupt(step):
        if step.step == 4:
            raise KeyboardInterrupt

    path = tmp_path / "learned.npz"
    with pytest.raises(KeyboardInterrupt):
        dl.recover(Y, D_ATOMS, checkpoint=path, progress=interrupt, **options)
    again = dl.recover(Y, D_ATOMS, checkpoint=path, **options)
    assert trees.same(without_times(again), without_times(whole))
    with pytest.raises(ValueError, match="steps"):
        dl.recover(Y, D_ATOMS, checkpoint=path, **options | {"steps": 7})


def test_a_memmap_gives_the_same_atoms(planted, tmp_path):
    _, Y = planted
    np.save(tmp_path / "Y.npy", Y)
    mapped = np.load(tmp_path / "Y.npy", mmap_mode="r")
    options = dict(lam=0.05, steps=3, batch=50)
    assert np.array_equal(*(dl.recover(each, D_ATOMS, **options).D for each in (Y, mapped)))


def test_half_precision_is_that_of_the_file_alone(planted, tmp_path):
    _, Y = planted
    np.save(tmp_path / "Y.npy", Y.astype(np.float16))
    mapped = np.load(tmp_path / "Y.npy", mmap_mode="r")
    options = dict(lam=0.05, steps=2, batch=50)
    half, single = (
        dl.recover(each, D_ATOMS, **options).D for each in (mapped, mapped + np.float32(0))
    )
    assert half.dtype == np.float32 and np.array_equal(half, single)


def test_missing_entries_do_not_count(planted):
    D, Y = planted
    known = np.random.default_rng(2).random(Y.shape) < 0.9
    options = dict(lam=0.05, steps=3, batch=50)
    torn, filled = (
        dl.recover(np.where(known, Y, value), D_ATOMS, mask=known, **options).D
        for value in (np.nan, 7.0)
    )
    assert np.array_equal(torn, filled) and np.isfinite(torn).all()


@pytest.mark.slow
def test_planted_atoms_are_found_from_the_known_entries(planted):
    D, Y = planted
    known = np.random.default_rng(2).random(Y.shape) < 0.9
    options = dict(lam=0.05, steps=300, batch=100, nonnegative=True)
    found = dl.recover(np.where(known, Y, np.nan), D_ATOMS, mask=known, **options)
    assert np.mean((D.T @ np.asarray(found.D)).max(1) > 0.9) >= 0.8


def test_each_signal_is_drawn_once_before_any_is_drawn_again():
    Y = np.arange(10.0)[:, None]
    batches = list(_recover._batches(Y, None, 4, 5, np.random.default_rng(0)))
    drawn = np.concatenate(batches).ravel()
    assert [len(batch) for batch in batches] == [4] * 5
    assert np.array_equal(np.bincount(drawn.astype(int)), np.full(10, 2))


def test_held_out_signals_end_the_competition(planted):
    """Only after the first half of the steps; the last fifth of them follows."""
    _, Y = planted
    run = ur.training.Run(evaluate_every=5, patience=10)
    options = _learning.Options(None, 0, None, None, None, run=run)
    learner = _recover._Recovering((), D_ATOMS, Coder(False, lam=0.1), 100, Y, options)
    for step in range(5, 55, 5):
        learner.evaluated(step, float(step), Y.T)
        assert learner.skipped == 0
    learner.evaluated(55, 55.0, Y.T)
    assert learner.stage(55).rare > 0 and learner.stage(56) == learner.last_stage()
    assert learner.is_done(75) and not learner.is_done(74) and learner.held.least == 5


def test_the_penalty_falls_and_the_competition_ends():
    stages = [_recover.stage(step, 10, Coder(False, lam=0.1)) for step in range(1, 11)]
    lams = [0.5, 0.42, 0.34, 0.26, 0.18, 0.1, 0.1, 0.1, 0.05, 0.05]
    assert [round(stage.coder.lam, 9) for stage in stages] == lams
    assert [stage.rare > 0 for stage in stages] == [True] * 8 + [False] * 2


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(Y=np.zeros((3, 2, 2))), r"Y has shape \(3, 2, 2\); expected \(n, m\)"),
        (dict(d=30), "30"),
        (dict(lam=0), "lam must be"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(batch=0), "batch must be at least 1"),
        (dict(Y=np.full((20, 3), np.nan)), "finite"),
        (dict(mask=np.ones((20, 2), bool)), r"mask is bool of shape \(20, 2\); expected bool of"),
        (dict(mask=np.ones((20, 3))), "mask is float"),
    ],
)
def test_recover_refuses(options, message):
    given = dict(Y=np.ones((20, 3)), d=5, lam=0.1) | options
    with pytest.raises(ValueError, match=message):
        dl.recover(given.pop("Y"), given.pop("d"), **given)


def test_an_atom_and_its_negative_are_not_twins_of_nonnegative_codes():
    D = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    assert Coder(False).duplicates(D, np.ones(3)).tolist() == [1]
    assert not len(Coder(True).duplicates(D, np.ones(3)))


@pytest.mark.parametrize("share", [0.005, 0.5])
def test_products_of_few_nonzeros_are_those_of_all_entries(share):
    """Sums of the same float64 products, in another order."""
    rng = np.random.default_rng(0)
    X = np.where(rng.random((60, 90)) < share, rng.normal(size=(60, 90)), 0)
    products = _stochastic._products(X)
    np.testing.assert_allclose(
        products, X.T @ X, rtol=0, atol=60**2 * 2**-53 * np.abs(X).max() ** 2
    )
    assert products.dtype == float and X.any()
