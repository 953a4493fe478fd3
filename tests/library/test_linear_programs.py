"""Basis pursuit in batches against HiGHS, and each of its three methods alone."""

from functools import cache

import numpy as np
import oracles
import pytest
from oracles import matrix, normal, unit

from unrolled import linear_programs as lp
from unrolled._base import interior_point

EPS = np.finfo(float).eps
INDEPENDENT = {"square", "tall", "two atoms", "one atom", "one entry"}
every_dictionary = pytest.mark.parametrize(
    "name", [n for n in oracles.DICTIONARIES if n != "dct 64x256"]
)


@cache
def dense_signals(name, n=3):
    """Signals of n random dense codes."""
    A = matrix(name)
    return A @ normal(20, A.shape[1], n)


def gap(found):
    return np.max((found.primal - found.dual) / found.primal)


def check_certificate(A, Y, found):
    """A V = Y, |A'Z| <= 1 and the values are right, up to rounding; no gap is negative."""
    V, Z, S = found.V, found.Z, np.linalg.svd(A, compute_uv=False)
    cond = S[0] / S[S > 1e-12 * S[0]][-1]
    assert np.abs(A @ V - Y).max() <= 1e-11 * np.abs(Y).max()
    # The lift divides z by the singular values.
    assert np.abs(A.T @ Z).max() <= 1 + 4 * len(A) * EPS * cond
    assert found.primal == pytest.approx(np.abs(V).sum(0), rel=1e-12)
    assert found.dual == pytest.approx(np.sum(Y * Z, 0), rel=1e-9)
    assert (found.dual <= found.primal * (1 + 1e-11)).all()


def give_up(monkeypatch):
    """Make the simplex give up at once; returns the list of its calls."""
    calls = []
    monkeypatch.setattr(lp, "_simplex", lambda *args: calls.append(args) or (None, 0))
    return calls


@every_dictionary
def test_dense_signals_have_the_least_l1_norm_of_highs(name):
    A, Y = matrix(name), dense_signals(name)
    found = lp.basis_pursuit(lp.whiten(A), Y)
    check_certificate(A, Y, found)
    assert gap(found) <= 1e-9
    for y, primal in zip(Y.T, found.primal):
        assert primal == pytest.approx(oracles.least_l1(A, y)[0], rel=oracles.agreement(name))


@pytest.mark.few(15)
@every_dictionary
@pytest.mark.parametrize("iterations", [0, 1, 200])
def test_the_first_order_method_only_saves_pivots(name, iterations):
    A, Y = matrix(name), dense_signals(name)
    found, expected = (lp.basis_pursuit(lp.whiten(A), Y, iterations=k) for k in (iterations, 50))
    check_certificate(A, Y, found)
    # Neighbouring bumps make every basis singular, and without a good start the interior point ends
    # when its matrices become singular.
    most = 1e-5 if name == "bumps" and iterations < 200 else 1e-9
    assert gap(found) <= most
    assert found.primal == pytest.approx(expected.primal, rel=2 * most)


@pytest.mark.few(10)
@every_dictionary
@pytest.mark.parametrize("iterations", [0, 50])
def test_the_interior_point_alone_reaches_the_gap(name, iterations, monkeypatch):
    A, Y = matrix(name), dense_signals(name)
    expected, calls = lp.basis_pursuit(lp.whiten(A), Y), give_up(monkeypatch)
    found = lp.basis_pursuit(lp.whiten(A), Y, iterations=iterations)
    check_certificate(A, Y, found)
    # Neighbouring bumps make every basis singular, and without a good start the interior point ends
    # when its matrices become singular.
    most = 1e-5 if name == "bumps" and iterations < 200 else 1e-9
    assert gap(found) <= most
    assert found.primal == pytest.approx(expected.primal, rel=2 * most)
    assert calls or iterations or name == "one entry"


@pytest.mark.parametrize("seed", range(3))
def test_the_interior_point_alone_reaches_the_gap_on_larger_problems(seed, monkeypatch):
    A = unit(normal(seed, 60, 120))
    Y = A @ normal(seed + 10, 120, 4)
    give_up(monkeypatch)
    assert gap(lp.basis_pursuit(lp.whiten(A), Y, iterations=0)) <= 1e-9


@pytest.mark.parametrize(
    "name", [n for n in oracles.DICTIONARIES if n not in INDEPENDENT | {"dct 64x256"}]
)
def test_a_banned_entry_stays_zero_and_the_rest_is_optimal(name):
    A = matrix(name)
    leverage = np.sum(lp.whiten(A).Q ** 2, 0)
    atoms = np.flatnonzero(leverage < 1 - 1e-6)[:4]  # atoms in the span of the others
    # The form of the coherence programs.
    found = lp.basis_pursuit(lp.whiten(A), A[:, atoms], banned=atoms, tol=1e-6)
    assert not found.V[atoms, np.arange(len(atoms))].any() and gap(found) <= 1e-6
    assert np.abs(A @ found.V - A[:, atoms]).max() <= 1e-12 * np.abs(found.V).sum(0).max()
    products = np.abs(A.T @ found.Z)
    products[atoms, np.arange(len(atoms))] = 0
    assert products.max() <= 1 + 1e-8  # cond up to 1e6
    for i, primal in zip(atoms, found.primal):
        expected = oracles.least_l1(np.delete(A, i, axis=1), A[:, i])[0]
        assert primal == pytest.approx(expected, rel=1e-6)


# The simplex.


def start(m, d, seed=0):
    """A whitened Gaussian, a dense right-hand side, and the first m atoms as a basis."""
    Q = lp.whiten(normal(seed, m, d)).Q
    return Q, np.ascontiguousarray(Q.T), Q @ normal(seed + 1, d), np.arange(m)


@pytest.mark.parametrize("m, d", [(1, 5), (2, 2), (5, 12), (30, 90), (100, 200)])
def test_the_simplex_finds_the_optimum_from_any_basis(m, d):
    Q, atoms, c, S = start(m, d)
    (v, z), pivots = lp._simplex(atoms, c, S.copy(), None, 1e-12)
    assert np.count_nonzero(v) <= m and Q @ v == pytest.approx(c, abs=1e-11)
    assert np.abs(Q.T @ z).max() <= 1 + 1e-11 and c @ z == pytest.approx(np.abs(v).sum(), rel=1e-11)
    assert np.abs(v).sum() == pytest.approx(oracles.least_l1(Q, c)[0], rel=1e-8)
    assert pivots > 0 or d == m


def test_the_simplex_refactors_after_64_pivots_and_goes_on(monkeypatch):
    made, basis = [], lp._Basis
    monkeypatch.setattr(lp, "_Basis", lambda rows: made.append(basis(rows)) or made[-1])
    Q, atoms, c, S = start(120, 400)
    (v, z), pivots = lp._simplex(atoms, c, S.copy(), None, 1e-12)
    # A factorisation takes 64 exchanges, or fewer where it was made anew to test an optimum, which
    # depends on rounding.
    exchanges = [len(one.etas) for one in made]
    assert pivots > 64 and max(exchanges) == 64 and sum(exchanges) == pivots
    assert Q @ v == pytest.approx(c, abs=1e-10) and np.abs(Q.T @ z).max() <= 1 + 1e-10
    assert c @ z == pytest.approx(np.abs(v).sum(), rel=1e-10)


def test_eta_updates_solve_with_the_exchanged_basis():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 20))
    basis, B = lp._Basis(rows.copy()), rows.T.copy()
    for _ in range(63):
        r, a = rng.integers(20), rng.normal(size=20)
        basis.exchange(r, basis.solve(a))
        B[:, r] = a
    c = rng.normal(size=20)
    # 63 updates of random matrices: errors grow by their condition numbers, up to about 1e2 each.
    assert basis.solve(c) == pytest.approx(np.linalg.solve(B, c), rel=1e-6, abs=1e-8)
    assert basis.solve_transposed(c) == pytest.approx(np.linalg.solve(B.T, c), rel=1e-6, abs=1e-8)


def test_long_steps_pass_breakpoints_and_save_pivots(monkeypatch):
    """The objective falls at every pivot, even if several signs flip in one."""
    values, passed, basis = [], [], lp._Basis

    class Watched(basis):
        def solve_transposed(self, s):
            passed.append(s.copy())
            z = super().solve_transposed(s)
            values.append(c @ z)  # norm(v, 1) of the current vertex
            return z

    monkeypatch.setattr(lp, "_Basis", Watched)
    Q, atoms, c, S = start(40, 200)
    (v, _), pivots = lp._simplex(atoms, c, S.copy(), None, 1e-12)
    flips = [np.sum(a != b) for a, b in zip(passed, passed[1:])]
    assert max(flips) > 2  # more than the leaving and the entering sign
    assert len(values) == pivots + 1 and (np.diff(values) <= 1e-10 * values[0]).all()
    assert values[-1] == pytest.approx(np.abs(v).sum(), rel=1e-10)


def test_the_simplex_gives_up_on_a_singular_basis_and_on_unbounded_stalling():
    Q, atoms, c, S = start(6, 20)
    atoms = atoms.copy()
    atoms[1] = atoms[0]
    assert lp._simplex(atoms, c, S, None, 1e-9) == (None, 0)
    # A vertex of one nonzero has many degenerate bases: pivots are few or useless.
    assert lp._simplex(start(6, 20)[1], Q[:, 0], S.copy(), None, 1e-9)[1] <= 20 + 3 * 6
    # No entry falls as v - t g moves: there is nothing to exchange.
    assert lp._leaving(np.ones(3), np.ones(3), -np.ones(3), 2.0) is None


@pytest.mark.parametrize("name", ["bumps", "vandermonde", "near duplicate", "gaussian 20x60"])
def test_the_vertex_of_the_simplex_reproduces_its_signal(name):
    """Errors of pivots through nearly singular bases are removed by a last solve."""
    whitened, rng, solved = lp.whiten(matrix(name)), np.random.default_rng(0), 0
    Q, C = whitened.Q, whitened.into @ dense_signals(name)
    atoms, (r, d) = np.ascontiguousarray(Q.T), Q.shape
    for c in C.T:
        for _ in range(20):
            found, _ = lp._simplex(atoms, c, rng.choice(d, r, replace=False), None, 1e-9)
            if found is not None:
                solved += 1
                v, z = found
                assert np.abs(Q @ v - c).max() <= 1e-10 * np.abs(c).max()
                assert c @ z == pytest.approx(np.abs(v).sum(), rel=1e-8)
    assert solved or name == "bumps"


# The interior point.


@pytest.mark.parametrize("m, n", [(1, 3), (4, 4), (5, 12), (20, 60)])
def test_the_interior_point_solves_a_minimax_program(m, n):
    """min max |B'w| : c . w = 1 against HiGHS, proved by the multipliers: B v = nu c, |v|_1 = 1."""
    B, c = normal(0, m, n), normal(1, m)
    w, (v, nu), steps = lp.interior_point(B, np.zeros(n), np.ones(n), c, c, 1e-9)
    value = np.abs(B.T @ w).max()
    assert c @ w == pytest.approx(1, rel=1e-12) and 0 < steps < 60
    assert value == pytest.approx(oracles.least_coherence(np.column_stack([c, B]), 0), rel=1e-7)
    assert B @ v == pytest.approx(nu * c, abs=1e-8) and np.abs(v).sum() == pytest.approx(
        1, rel=1e-7
    )
    assert nu == pytest.approx(value, rel=1e-7)


def test_centrality_corrections_save_steps_and_the_residuals_are_within_tol(monkeypatch):
    """A tenth of the steps at least; the sum of what is left of B v = nu c is part of `tol`."""

    def steps_of(seed):
        A = np.random.default_rng(seed).normal(size=(15, 40))
        A /= np.linalg.norm(A, axis=0)
        c, B = A[:, 0], A[:, 1:]
        _, (v, nu), steps = lp.interior_point(B, np.zeros(39), np.ones(39), c, c, 1e-9)
        assert np.abs(B @ v - nu * c).sum() <= 1e-9
        return steps

    corrected = sum(map(steps_of, range(12)))
    monkeypatch.setattr(interior_point, "_CORRECTIONS", 0)
    assert corrected <= 0.9 * sum(map(steps_of, range(12)))


def test_a_point_that_is_too_far_out_is_pulled_back_to_the_level_and_no_farther():
    rng = np.random.default_rng(3)
    for _ in range(20):
        A = unit(rng.normal(size=(4, 31)))
        B, a = A[:, 1:], A[:, 0]
        inside = a
        level = 1.1 * np.abs(inside @ B).max()
        point = inside + rng.normal(size=4) * rng.choice([0.02, 0.3])
        point /= a @ point
        w = interior_point._pulled_inside(B, level, a, point, inside)
        reached = np.abs(w @ B).max()
        assert a @ w == pytest.approx(1, rel=1e-12)
        if np.abs(point @ B).max() <= level:
            np.testing.assert_array_equal(w, point)
        else:
            assert reached == pytest.approx(level, rel=1e-6) and reached <= level * (1 + 1e-12)


def test_the_interior_point_starts_anywhere():
    B, c, values = normal(0, 6, 15), normal(1, 6), []
    for start in (
        c,
        c * 1e6,
        c + 1e-3 * normal(2, 6),
        np.linalg.solve(B @ B.T, c),
        c + 100 * normal(3, 6),
    ):
        if c @ start > 0:
            w, _, _ = lp.interior_point(B, np.zeros(15), np.ones(15), c, start, 1e-9)
            values.append(np.abs(B.T @ w).max())
    assert len(values) > 3 and values == pytest.approx([values[0]] * len(values), rel=1e-8)


def test_the_interior_point_returns_its_best_iterate_when_steps_run_out():
    B, c = normal(0, 6, 15), normal(1, 6)
    for max_steps in (0, 1, 3):
        w, (v, nu), steps = lp.interior_point(
            B, np.zeros(15), np.ones(15), c, c, 1e-12, max_steps=max_steps
        )
        assert steps == max_steps and np.isfinite([*w, *v, nu]).all() and c @ w == pytest.approx(1)


def test_dependent_and_nearly_dependent_rows_do_not_stop_the_interior_point():
    """The normal equations are singular there, so the factorisation adds a ridge."""
    B, c = normal(0, 3, 12), normal(1, 3)
    expected = oracles.least_coherence(np.column_stack([c, B]), 0)
    for extra in (0, 1e-9, 1e-6):
        L = np.vstack([np.eye(3), [1, 1, 1]])
        C, d = L @ B + extra * normal(2, 4, 12), L @ c
        w, _, _ = lp.interior_point(C, np.zeros(12), np.ones(12), d, d, 1e-9)
        assert np.isfinite(w).all()
        if not extra:
            assert np.abs(C.T @ w).max() == pytest.approx(expected, rel=1e-6)


# The driver.


def test_programs_settled_by_the_first_order_method_are_left_alone():
    A = matrix("gaussian 8x16")
    Y = dense_signals("gaussian 8x16")
    loose = lp.basis_pursuit(lp.whiten(A), Y, tol=0.9)
    assert not loose.steps.any() and gap(loose) <= 0.9
    check_certificate(A, Y, loose)


def test_the_caller_chooses_the_order_and_the_end():
    A, Y, seen = matrix("gaussian 20x60"), dense_signals("gaussian 20x60"), []

    def choose(primal, dual, tried):
        assert (dual <= primal).all()
        seen.append(tried.copy())
        return 2 if not tried[2] else 0 if not tried[0] else None

    found = lp.basis_pursuit(lp.whiten(A), Y, choose=choose, iterations=1, tol=1e-9)
    assert [t.tolist() for t in seen] == [[False] * 3, [False, False, True], [True, False, True]]
    gaps = (found.primal - found.dual) / found.primal
    assert gaps[0] <= 1e-9 and gaps[2] <= 1e-9 < gaps[1] and not found.steps[1]
    check_certificate(A, Y, found)


def test_progress_counts_settled_programs():
    seen = []
    lp.basis_pursuit(lp.whiten(matrix("gaussian 20x60")), dense_signals("gaussian 20x60"),
                     iterations=0,
                     progress=lambda *counts: seen.append(counts))  # fmt: skip
    assert seen[-1] == (3, 3) and seen == sorted(seen)


def test_bounds_never_get_worse(monkeypatch):
    """If the finish returns bad points, those of the first-order method stay."""
    A, Y = matrix("gaussian 8x16"), dense_signals("gaussian 8x16")
    untouched = lp.basis_pursuit(lp.whiten(A), Y, choose=lambda *args: None)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(lp, "_finish", lambda *args: (rng.normal(size=16), rng.normal(size=8), 1))
    found = lp.basis_pursuit(lp.whiten(A), Y, tol=1e-12)
    assert (found.primal <= untouched.primal).all() and (found.dual >= untouched.dual).all()
    check_certificate(A, Y, found)


@pytest.mark.parametrize(
    "name", ["gaussian 20x60", "rank 6 of 12", "rows from 1e-6 to 1", "tall", "one row"]
)
def test_whitening_keeps_the_row_space(name):
    A = matrix(name)
    Q, into, lift = lp.whiten(A)
    r = np.linalg.matrix_rank(A)
    assert Q.shape == (r, A.shape[1]) and Q @ Q.T == pytest.approx(np.eye(r), abs=1e-13)
    # Rounding times the inverse singular values, 1e6 at worst.
    assert into @ A == pytest.approx(Q, abs=1e-9)
    assert np.array_equal(lift, into.T)


@pytest.mark.parametrize("scale", [1e-100, 1e-40, 1e-30, 1e30, 1e37, 1e39, 1e100])
def test_solutions_scale_with_their_signals(scale):
    A, Y = matrix("gaussian 8x16"), dense_signals("gaussian 8x16")
    found, expected = (lp.basis_pursuit(lp.whiten(A), s * Y) for s in (scale, 1.0))
    assert found.primal == pytest.approx(scale * expected.primal, rel=1e-9, abs=0)
    assert found.dual == pytest.approx(scale * expected.dual, rel=1e-9, abs=0)


def test_signals_of_different_sizes_are_solved_together():
    A, Y = matrix("gaussian 8x16"), dense_signals("gaussian 8x16")
    scales = np.array([1e-12, 1.0, 1e12])
    found, expected = (lp.basis_pursuit(lp.whiten(A), s * Y) for s in (scales, np.ones(3)))
    assert found.primal == pytest.approx(scales * expected.primal, rel=1e-9, abs=0)
