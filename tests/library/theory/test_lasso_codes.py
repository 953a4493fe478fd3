"""Proofs of LASSO codes: exact arithmetic, other solvers, ties, scales, and spoilt solvers."""

from fractions import Fraction

import numpy as np
import pytest
from oracles import normal, unit
from sklearn.linear_model import Lasso

from unrolled import dictionaries, pursuit
from unrolled.theory import _lasso_codes, certify_lasso

M, N, BATCH = 16, 32, 60
D, Y = unit(normal(0, M, N)), normal(1, BATCH, M)
TOP = np.abs(Y @ D).max(1, keepdims=True)
NOTHING = np.zeros((BATCH, N))


def exact_code(D, y, x, lam):
    """The solution on the support of x with its signs, and whether its conditions hold strictly."""
    D, y, lam = ([[Fraction(v) for v in row] for row in np.atleast_2d(a)] for a in (D, y, lam))
    S, (y,), (lam,) = np.flatnonzero(x), y, lam
    signs = [int(np.sign(x[i])) for i in S]
    columns = list(zip(*D))

    def dot(a, b):
        return sum(p * q for p, q in zip(a, b))

    rows = [
        [dot(columns[i], columns[j]) for j in S] + [dot(columns[i], y) - lam[i] * s]
        for i, s in zip(S, signs)
    ]
    for c in range(len(S)):  # Gauss and Jordan
        pivot = rows[c][c]
        rows[c] = [v / pivot for v in rows[c]]
        for r in range(len(S)):
            if r != c:
                rows[r] = [a - rows[r][c] * b for a, b in zip(rows[r], rows[c])]
    z = [row[-1] for row in rows]
    left = [b - dot(row, z) for b, row in zip(y, ([D_row[i] for i in S] for D_row in D))]
    strict = all(v * s > 0 for v, s in zip(z, signs)) and all(
        abs(dot(columns[j], left)) < lam[j] for j in set(range(len(columns))) - set(S)
    )
    margin = min(lam[j] - abs(dot(columns[j], left)) for j in set(range(len(columns))) - set(S))
    return S, z, strict, margin


def test_what_is_proved_is_true_in_exact_arithmetic():
    """The proof, the distance and the margin of 12 codes whose numbers are taken as they are."""
    A, signals = D[:8, :14], Y[:12, :8]
    lam = 0.1 * np.abs(signals @ A).max(1, keepdims=True) * np.linspace(0.5, 1.5, 14)
    rough = np.asarray(pursuit.lasso_batch(A, signals, lam, tol=1e-3).x)
    proof = certify_lasso(A, signals, rough, lam)
    assert proof.unique.all()
    for y, given, weights, x, distance, margin in zip(
        signals, rough, lam, proof.x, proof.distance, proof.margin
    ):
        S, z, strict, least = exact_code(A, y, x, weights)
        assert strict
        apart = [Fraction(v) for v in given]
        for i, v in zip(S, z):
            apart[i] -= v
            assert abs(Fraction(x[i]) - v) <= 1e-13
        between = float(sum(v * v for v in apart)) ** 0.5
        assert between <= distance <= between + 1e-9
        assert float(least) - 1e-9 <= margin <= least


def test_signs_of_a_few_steps_lead_to_the_optimum_of_another_solver():
    rough = np.stack([pursuit.fista(D, y, 0.1 * t[0], max_steps=30).x for y, t in zip(Y[:9], TOP)])
    rough = rough.astype(np.float32)
    proof = certify_lasso(D, Y[:9], rough, 0.1 * TOP[:9])
    assert proof.unique.all() and (proof.margin > 0).all()
    for y, t, x in zip(Y, TOP[:, 0], proof.x):
        model = Lasso(0.1 * t / M, fit_intercept=False, tol=1e-14, max_iter=100_000)
        assert x == pytest.approx(model.fit(D, y).coef_, abs=1e-8)
    assert (proof.distance >= np.linalg.norm(rough - proof.x, axis=1)).all()


CASES = {  # weights over lam_max, and options
    "one": (0.1, {}),
    "atoms": (np.linspace(0.05, 0.3, N), {}),
    "nonnegative": (0.1, {"nonnegative": True}),
    "ridge": (0.05, {"l2": 0.3}),
    "free": (np.where(np.arange(N) < 3, 0, 0.2), {}),
    "free, nonnegative": (np.where(np.arange(N) < 3, 0, 0.2), {"nonnegative": True}),
    "small": (1e-4, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_any_start_leads_to_the_optimum_and_its_signs_need_no_repair(case):
    weight, options = CASES[case]
    lam = weight * TOP
    best = pursuit.lasso_batch(D, Y, lam, tol=1e-13, **options)
    assert best.converged.all()
    for start in (NOTHING, normal(2, BATCH, N)):
        proof = certify_lasso(D, Y, start, lam, repairs=40, **options)
        assert proof.unique.all() and (proof.repairs > 0).all()
        assert proof.x == pytest.approx(np.asarray(best.x), abs=1e-7)
    again = certify_lasso(D, Y, 3 * proof.x, lam, repairs=0, **options)
    assert again.unique.all() and not again.repairs.any()
    assert again.x == pytest.approx(proof.x, abs=1e-12)


def test_repairs_are_limited():
    proof = certify_lasso(D, Y, NOTHING, 0.1 * TOP, repairs=1)
    rest = ~proof.holds
    assert rest.any() and np.isinf(proof.distance[rest]).all() and not proof.unique[rest].any()
    assert (proof.repairs[~rest] <= 1).all()


def test_equal_atoms_and_ties_hold_without_being_unique():
    twins = np.hstack([D[:, :20], D[:, :1], -D[:, 1:2]])
    proof = certify_lasso(twins, Y, np.zeros((BATCH, 22)), 0.1 * TOP, repairs=40)
    assert proof.holds.all() and 0 < proof.unique.sum() < BATCH
    assert ((proof.margin > 0) == proof.unique).all()
    tie = certify_lasso(np.eye(4), [3.0, 1.0, 0.0, 2.0], np.zeros(4), 1.0)
    assert tie.holds and not tie.unique and tie.x.tolist() == [2, 0, 0, 1]
    at_top = certify_lasso(D, Y, NOTHING, TOP)  # x = 0, one constraint is met with equality
    assert at_top.holds.all() and not at_top.x.any() and not at_top.unique.any()
    dependent = certify_lasso(D, Y, NOTHING, 0.0, repairs=40)  # y = D x in many ways
    assert dependent.holds.all() and not dependent.unique.any()


@pytest.mark.parametrize("exponents", [(-300, 200), (250, -300), (500, -500)])
def test_scales_leave_the_proof_as_it_is(exponents):
    a, b = exponents
    plain = certify_lasso(D, Y, NOTHING, 0.1 * TOP)
    scaled = certify_lasso(D * 2.0**a, Y * 2.0**b, NOTHING, 0.1 * TOP * 2.0 ** (a + b))
    assert (scaled.unique == plain.unique).all() and (scaled.repairs == plain.repairs).all()
    assert (scaled.x == plain.x * 2.0 ** (b - a)).all()
    assert (scaled.margin == plain.margin * 2.0 ** (a + b)).all()


def test_a_short_atom_that_the_units_lose_is_not_forgotten():
    """Atoms of norms 2^600 and 2^-500: in the units of the first the second is 0."""
    atoms, y = np.diag([2.0**600, 2.0**-500]), np.array([1.0, 4.0])
    proof = certify_lasso(atoms, y, np.zeros(2), 2.0**-500)
    assert not proof.holds and not proof.unique and np.isinf(proof.distance)


def test_margins_of_short_atoms_are_rounded_down():
    """One number each: lam is far above 1e-9 y, whose rounding is no part of that of lam."""
    signals, lam = np.abs(normal(3, 200, 1)), 1 + np.abs(normal(4, 200, 1))
    atom = np.array([[1e-9 / 3]])
    proof = certify_lasso(atom, signals, np.zeros((200, 1)), lam)
    assert proof.unique.all()
    for (y,), (weight,), margin in zip(signals, lam, proof.margin):
        assert 0 < Fraction(margin) <= Fraction(weight) - Fraction(atom[0, 0]) * Fraction(y)


def test_a_small_distance_is_not_zero():
    proof = certify_lasso(np.eye(2), np.full(2, 0.5), np.array([3e-170, 4e-170]), 1.0)
    assert proof.unique and 5e-170 <= proof.distance <= 5.1e-170
    D, y = np.array([[0.6, 0.8], [0.8, -0.6]]), np.array([1.0, 0.3])
    optimum = certify_lasso(D, y, np.array([0.74, 0.52]), 0.1).x  # but for its rounding
    assert 0 < certify_lasso(D, y, optimum, 0.1).distance < 1e-14


@pytest.mark.parametrize("l2", [1e3, 1e6])
def test_a_ridge_leaves_the_distance_relative_to_the_code(l2):
    """Codes fall as 1 / l2, and their supports have different numbers of atoms."""
    given = certify_lasso(D, Y, NOTHING, 0.1 * TOP, l2=l2, repairs=40).x
    proof = certify_lasso(D, Y, given, 0.1 * TOP, l2=l2)
    assert proof.unique.all() and np.ptp(np.count_nonzero(given, axis=1))
    assert (proof.distance <= 1e-12 * np.linalg.norm(given, axis=1)).all()


def test_the_distance_is_true_if_only_the_ridge_bounds_the_inverse():
    finite = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        D = rng.standard_normal((3, 8)) * 10.0 ** rng.uniform(-12, 12, 8)
        y = rng.standard_normal(3) * 10.0 ** rng.uniform(-12, 12)
        lam = np.abs(D.T @ y) * rng.uniform(0.05, 1.2, 8)
        x = certify_lasso(D, y, rng.standard_normal(8), lam, repairs=200, l2=2.0**-10).x
        proof = certify_lasso(D, y, x, lam, repairs=200, l2=2.0**-10)
        stacked = np.vstack([D, 2.0**-5 * np.eye(8)]), np.append(y, np.zeros(8))  # without rounding
        if not proof.holds or np.count_nonzero(proof.x) in (0, 8):
            continue
        S, z, strict, _ = exact_code(*stacked, proof.x, lam)
        if strict and np.isfinite(proof.distance):
            full = dict(zip(S, z))
            squares = sum((Fraction(v) - full.get(i, 0)) ** 2 for i, v in enumerate(x))
            assert squares <= Fraction(float(proof.distance)) ** 2
            finite += 1
    assert finite >= 20


def spoilt(how):
    rows = np.arange(BATCH)

    def minima(*operands, **options):
        x, *rest = pursuit.minima(*operands, **options)
        i = np.abs(x).argmax(1)
        values = {"dropped": 0.0, "turned": -x[rows, i], "moved": x[rows, i] * (1 + 1e-3)}
        if how in values:
            x[rows, i] = values[how]
        else:
            x[rows, np.abs(x).argmin(1)] = 1e-3
        return x, *rest

    return minima


@pytest.mark.parametrize("how", ["dropped", "turned", "added"])
def test_a_proof_does_not_believe_the_solver(monkeypatch, how):
    monkeypatch.setattr(_lasso_codes, "minima", spoilt(how))
    proof = certify_lasso(D, Y, NOTHING, 0.1 * TOP, repairs=40)
    assert not proof.holds.any() and not proof.unique.any()


def test_a_value_that_the_solver_moved_is_solved_anew(monkeypatch):
    plain = certify_lasso(D, Y, NOTHING, 0.1 * TOP)
    monkeypatch.setattr(_lasso_codes, "minima", spoilt("moved"))
    proof = certify_lasso(D, Y, NOTHING, 0.1 * TOP)
    assert proof.unique.all() and proof.x == pytest.approx(plain.x, abs=1e-12)


def test_the_layout_of_arrays_does_not_matter():
    start = normal(2, BATCH, N)
    plain = certify_lasso(D, Y, start, 0.1 * TOP)
    turned = certify_lasso(*map(np.asfortranarray, (D, Y, start)), np.asfortranarray(0.1 * TOP))
    assert (turned.holds == plain.holds).all()
    assert turned.x == pytest.approx(plain.x, abs=1e-12)
    A = np.asfortranarray(Y[:, ::-1])
    codes = pursuit.match(np.asfortranarray(D[::-1]), A, 3)
    assert codes == pytest.approx(pursuit.match(D, Y, 3), abs=1e-12)


def test_one_signal_no_signal_and_signals_that_are_not_finite():
    one = certify_lasso(D, Y[0], NOTHING[0], 0.2)
    assert one.unique is True and one.x.shape == (N,) and isinstance(one.distance, float)
    assert certify_lasso(D, Y[:0], NOTHING[:0], 0.2).x.shape == (0, N)
    spoilt, start = np.where(np.arange(M) == 2, [[np.nan], [1.0]], Y[:2]), NOTHING[:2].copy()
    start[1, 4] = np.inf
    proof = certify_lasso(D, spoilt, start, 0.2)
    assert proof.holds.tolist() == [False, True] and np.isinf(proof.distance[0])
    zero = certify_lasso(D, 0 * Y[0], NOTHING[0], 0.2)
    assert zero.unique and not zero.x.any() and zero.margin == pytest.approx(0.2)


def test_filters_have_weights_of_their_own():
    C = dictionaries.Conv(normal(9, 3, 1, 2, 2), (4, 5))
    m, d = C.shape
    lam = np.array([0.2, 0.3, 0.4])
    proof = certify_lasso(C, normal(10, 3, m), np.zeros((3, d)), lam, repairs=60)
    alone = certify_lasso(
        np.asarray(dictionaries.dense(C)), normal(10, 3, m), proof.x, C.spread(lam), repairs=0
    )
    assert proof.unique.all() and alone.unique.all()
    assert alone.x == pytest.approx(proof.x, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": NOTHING[:, 1:]}, r"x \(60, 31\); expected \(16,\) and \(32,\)"),
        ({"y": Y[0]}, r"expected \(16,\) and \(32,\), or a batch"),
        ({"lam": -1.0}, "lam"),
        ({"lam": np.ones(3)}, r"lam has shape \(3,\); expected"),
        ({"lam": np.inf}, "lam"),
        ({"l2": -1.0}, "l2"),
        ({"repairs": -1}, "repairs"),
        ({"D": dictionaries.Joint(D, 2)}, "come in parts of 2 entries"),
    ],
)
def test_refusals(change, message):
    given = {"D": D, "y": Y, "x": NOTHING, "lam": 0.1} | change
    with pytest.raises(ValueError, match=f"certify_lasso: .*{message}"):
        certify_lasso(**given)
