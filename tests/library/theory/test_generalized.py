"""Generalized coherence and least entries (Definitions 7 and 8) against HiGHS; certificates."""

import itertools
import math
import os
from fractions import Fraction
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import matrix, normal, unit
from trees import same

from unrolled import analytic, dictionaries, linear_programs, theory, training

EPS = np.finfo(np.float64).eps
TOL = 1e-6  # the default gap
LARGE = "dct 64x256"

KNOWN = {  # mu~ in closed form
    "paley": 1 / math.sqrt(13),
    "identity and hadamard": 1 / math.sqrt(8),
    "duplicate and antiparallel": 1.0,
    "one row": 1.0,
    "square": 0.0,
    "tall": 0.0,
    "two atoms": 0.0,
    "one atom": 0.0,
    "one entry": 0.0,
}
every_dictionary = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == LARGE else ()) for n in oracles.DICTIONARIES],
)


@cache
def solved(name):
    """To be called before a test patches a solver: the result is kept."""
    return jax.tree.map(np.asarray, jax.jit(theory.generalized_coherence)(matrix(name)))


def products(W, A):
    """|w_i . a_j| for i != j, and w_i . a_i."""
    G = np.asarray(W).T @ A
    return np.abs(G - np.diag(np.diag(G))), np.diag(G)


def assert_bracketed(found, name, atoms, value):
    """`value(i)` lies between the bounds of atom i, up to the accuracy of HiGHS."""
    near = oracles.agreement(name)
    for i, low, high in zip(atoms, found.per_atom_lower, found.per_atom_upper):
        expected = value(matrix(name), i)
        # 1e-10 is the feasibility tolerance of HiGHS, hence the size of a zero coherence.
        assert low <= expected * (1 + near) + 1e-10 and high >= expected * (1 - near) - 1e-10, (
            i,
            low,
            expected,
            high,
        )


def subset(found, atoms):
    return found.replace(
        per_atom_lower=found.per_atom_lower[atoms], per_atom_upper=found.per_atom_upper[atoms]
    )


# Values.


@pytest.mark.few(3)
@every_dictionary
@pytest.mark.parametrize("value", [oracles.least_coherence, oracles.least_coherence_by_duality])
def test_the_bounds_enclose_the_primal_and_the_dual_value_of_highs(name, value):
    atoms = oracles.sampled(name, 2 if name == LARGE else 12)
    assert_bracketed(subset(solved(name), atoms), name, atoms, value)


@pytest.mark.few(8)
@every_dictionary
def test_the_gap_is_closed_for_every_atom(name):
    found = solved(name)
    assert found.holds and found.holds.dtype == bool
    # Coherences of independent atoms are mere rounding, |w_i| eps, with |w| below 1e3.
    assert (
        found.per_atom_upper - found.per_atom_lower <= np.maximum(TOL * found.per_atom_upper, 1e-12)
    ).all()
    assert (found.per_atom_lower >= 0).all() and (
        found.per_atom_lower <= found.per_atom_upper
    ).all()
    assert found.upper == found.per_atom_upper.max() and found.lower == found.per_atom_lower.max()


@pytest.mark.parametrize("name", KNOWN)
def test_known_values(name):
    found = solved(name)
    assert found.upper == pytest.approx(KNOWN[name], rel=TOL, abs=1e-12)
    assert found.lower == pytest.approx(KNOWN[name], rel=TOL, abs=1e-12)


def test_an_atom_independent_of_dependent_ones_has_coherence_zero_and_leaves_theirs_alone():
    found, others = solved("one independent atom"), solved("near duplicate")
    G = unit(normal(6, 8, 14))
    assert found.per_atom_upper[14] <= 1e-12 and found.upper > 0.1
    alone = theory.generalized_coherence(G)
    assert found.per_atom_upper[:14] == pytest.approx(np.asarray(alone.per_atom_upper), rel=2 * TOL)
    assert others.upper > 0.9  # the same atoms and a near duplicate


@pytest.mark.few(2)
@every_dictionary
def test_mu_tilde_is_at_most_mu_and_at_least_the_welch_bound(name):
    A = matrix(name)
    assert solved(name).lower <= products(A, A)[0].max() + 8 * EPS
    assert solved(name).upper >= theory.welch_bound(*A.shape) - 8 * EPS


def test_signs_and_order_of_the_atoms_do_not_matter():
    A, rng = matrix("gaussian 8x16"), np.random.default_rng(0)
    order = rng.permutation(16)
    found = theory.generalized_coherence((A * rng.choice([-1, 1], 16))[:, order])
    assert found.per_atom_upper == pytest.approx(
        solved("gaussian 8x16").per_atom_upper[order], rel=2 * TOL
    )


def test_atoms_a_little_off_unit_norm_are_solved_as_they_are():
    A = matrix("gaussian 5x20") * (1 + 9e-5 * np.random.default_rng(0).choice([-1, 1], 20))
    found = theory.generalized_coherence(A)
    for i in range(0, 20, 4):
        expected = oracles.least_coherence(A, i)
        assert (
            found.per_atom_lower[i] * (1 - 1e-7) <= expected <= found.per_atom_upper[i] * (1 + 1e-7)
        )
    assert products(found.W, A)[1] == pytest.approx(1, abs=100 * EPS)


@pytest.mark.parametrize("gap", [1e-3, 1e-4, 3e-5, 1e-5, 1e-6, 1e-8])
def test_bounds_are_true_where_an_atom_is_nearly_independent(gap):
    """Two atoms differ along a third; without it they are nearly equal and independent."""
    u, e = np.eye(3)[1], np.eye(3)[0]
    A = unit(np.stack([u, u + gap * e, e], 1))
    found = theory.generalized_coherence(A)
    for i, low, high in zip(range(3), found.per_atom_lower, found.per_atom_upper):
        # The dependence by hand, a_2 = (a_1 + gap a_3) / norm: the l1 norm of the coefficients of
        # atom i in the others.
        norm = math.sqrt(1 + gap**2)
        expected = 1 / ((1 + gap) / norm, norm + gap, (1 + norm) / gap)[(1, 0, 2)[i]]
        # Coherences of the size of the gap are known up to rounding divided by it.
        near = 1e-9 * expected + 1e-11
        assert low <= expected + near and high >= expected - near, (i, low, expected, high)
    assert found.upper == pytest.approx(1 / ((1 + gap) / math.sqrt(1 + gap**2)), rel=TOL)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-5])
def test_bounds_are_true_where_a_small_part_of_one_atom_ties_the_others_together(seed, gap):
    rng, e = np.random.default_rng(seed), np.eye(4)[0]
    G = rng.normal(size=(4, 2))
    G[0] = 0
    A = unit(np.column_stack([G, G @ rng.uniform(0.3, 2, 2) + gap * e, e]))
    found = theory.generalized_coherence(A)
    for i in range(4):
        expected = oracles.least_coherence(A, i)
        assert found.per_atom_lower[i] <= expected * (1 + 1e-6) + 1e-10
        assert found.per_atom_upper[i] >= expected * (1 - 1e-6) - 1e-10
    assert found.upper <= products(A, A)[0].max() + 8 * EPS  # W = D is feasible


def test_an_atom_outside_the_span_of_the_others_is_not_bounded_by_its_projection():
    """a_1 and a_2 are equal up to rounding, so w = (0, 1e6) has coherence 1e-10 for a_3."""
    A = unit(np.array([[1, 1, 1], [0, 1e-16, 1e-6]]))
    w = np.array([0, 1e6])
    assert w @ A[:, 2] == pytest.approx(1, abs=1e-9) and np.abs(w @ A[:, :2]).max() <= 1e-9
    for found in (theory.generalized_coherence(A), theory.generalized_coherence(A, atoms=[2])):
        assert found.per_atom_lower[-1] <= 1e-9
        assert found.per_atom_upper[-1] <= 1e-6 or not found.holds


def exact_values(A):
    """Exact mu~_i of m + 1 atoms in m dimensions: |n_i| / (|n|_1 - |n_i|), n in the kernel."""
    m, d = A.shape
    rows, pivots = [[Fraction(v) for v in row] for row in A.tolist()], []
    for column in range(d):
        r = len(pivots)
        best = max(range(r, m), key=lambda i: abs(rows[i][column]), default=None)
        if best is None or not rows[best][column]:
            continue
        rows[r], rows[best] = rows[best], [v for v in rows[r]]
        rows[r] = [v / rows[r][column] for v in rows[r]]
        for i in set(range(m)) - {r}:
            rows[i] = [v - rows[i][column] * u for v, u in zip(rows[i], rows[r])]
        pivots.append(column)
    (free,) = set(range(d)) - set(pivots)
    n = [Fraction(1) if j == free else -rows[pivots.index(j)][free] for j in range(d)]
    return np.array([float(abs(v) / (sum(map(abs, n)) - abs(v))) for v in n])


@pytest.mark.few(1)
@pytest.mark.parametrize("m", [2, 4, 6])
def test_the_bounds_enclose_the_value_of_exact_arithmetic(m):
    """Near duplicates and scaled rows, with condition numbers up to 1e5."""
    rng, seen = np.random.default_rng(m), 0
    for _ in range(25):
        A, k = rng.normal(size=(m, m + 1)), rng.integers(1, m // 2 + 1)
        A[:, -k:] = A[:, :k] + 10 ** rng.uniform(-5, -1) * rng.normal(size=(m, k))
        A = unit(10 ** rng.uniform(-2, 0, (m, 1)) * A)
        if np.linalg.cond(A) > 1e5:
            continue
        seen += 1
        found, expected = theory.generalized_coherence(A), exact_values(A)
        assert (found.per_atom_lower <= expected * (1 + 1e-9) + 1e-10).all()
        assert (found.per_atom_upper >= expected * (1 - 1e-9) - 1e-10).all()
    assert seen > 8


# Certificates.


@pytest.mark.few(14)
@every_dictionary
def test_the_upper_values_are_the_coherences_of_the_weights_exactly(name):
    A, found = matrix(name), solved(name)
    off, own = products(found.W, A)
    size = np.linalg.norm(found.W, axis=0)
    rounding = 4 * len(A) * EPS * size  # two orders of summing m products
    assert (np.abs(own - 1) <= rounding).all()
    assert (np.abs(off.max(1) - found.per_atom_upper) <= rounding).all()


@every_dictionary
def test_no_weights_have_less_than_the_lower_values(name):
    A, found, rng = matrix(name), solved(name), np.random.default_rng(0)
    closed_form = np.linalg.pinv(A).T
    for start in (A, closed_form, found.W):
        for scale in (0, 1e-6, 1e-3, 1):
            W = start + scale * rng.normal(size=A.shape)
            with np.errstate(divide="ignore"):
                W = W / np.sum(W * A, axis=0)
            # w . a is rounded to eps |w| |a|.
            slack = 4 * len(A) * EPS * np.linalg.norm(W, axis=0)
            assert (products(W, A)[0].max(1) + slack >= found.per_atom_lower).all()


def test_an_open_gap_is_reported_and_the_bounds_are_still_true(monkeypatch):
    names = "gaussian 8x16", "bumps", "zeros and ones", "one independent atom"
    values = {name: solved(name).per_atom_lower for name in names}
    monkeypatch.setattr(
        linear_programs, "_finish", lambda Q, *others: (np.zeros(Q.shape[1]), others[4], 0)
    )
    for name in names:
        found = jax.tree.map(np.asarray, theory.generalized_coherence(matrix(name)))
        assert not found.holds and all(np.isfinite(v).all() for v in jax.tree.leaves(found))
        assert_bracketed(
            found,
            name,
            range(matrix(name).shape[1]),
            lambda A, i, name=name: values[name][i],
        )
        assert products(found.W, matrix(name))[0].max() == pytest.approx(
            float(found.upper), abs=1e-12
        )


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name", ["gaussian 20x60", "signs", "bumps", "rows from 1e-6 to 1", "one independent atom"]
)
def test_the_interior_point_alone_gives_the_same_values(name, monkeypatch):
    calls, other = [], solved(name)
    monkeypatch.setattr(linear_programs, "_simplex", lambda *args: calls.append(args) or (None, 0))
    found = theory.generalized_coherence(matrix(name))
    assert found.holds and calls
    assert found.per_atom_upper == pytest.approx(other.per_atom_upper, rel=2 * TOL, abs=1e-12)
    assert (found.per_atom_lower <= other.per_atom_upper * (1 + 1e-12)).all()
    assert (found.per_atom_upper >= other.per_atom_lower * (1 - 1e-12)).all()


def test_a_smaller_tolerance_gives_a_smaller_gap_and_one_below_rounding_terminates():
    for tol in (1e-2, 1e-9, 1e-300):
        found = theory.generalized_coherence(matrix("gaussian 8x16"), tol)
        assert np.max(found.per_atom_upper / found.per_atom_lower - 1) <= max(2 * tol, 1e-13)
        assert solved("gaussian 8x16").lower <= found.upper * (1 + 1e-15)
        assert tol < EPS or found.holds


# Parts of the answer.


@pytest.mark.few(7)
@every_dictionary
def test_the_maximum_alone_is_the_same_maximum(name):
    A, all_atoms = matrix(name), solved(name)
    found = jax.tree.map(np.asarray, theory.generalized_coherence(A, only_maximum=True))
    assert found.holds and found.lower <= found.upper
    assert found.upper == pytest.approx(float(all_atoms.upper), rel=2 * TOL, abs=1e-12)
    off, own = products(found.W, A)
    rounding = 4 * len(A) * EPS * np.linalg.norm(found.W, axis=0).max()
    assert off.max() == pytest.approx(float(found.upper), abs=rounding) and own == pytest.approx(
        1, abs=rounding
    )
    # The bounds of every atom are true, also of the unsettled ones.
    assert (found.per_atom_lower <= all_atoms.per_atom_upper + 1e-12).all()
    assert (found.per_atom_upper >= all_atoms.per_atom_lower - 1e-12).all()


def test_the_maximum_alone_finishes_fewer_programs(monkeypatch):
    finished, finish = [], linear_programs._finish
    monkeypatch.setattr(
        linear_programs, "_finish", lambda *args: finished.append(1) or finish(*args)
    )
    counts = []
    for only_maximum in (False, True):
        theory.generalized_coherence(matrix("gaussian 20x60"), only_maximum=only_maximum)
        counts.append(len(finished))
    assert counts[1] - counts[0] < counts[0] / 3


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["gaussian 8x16", "one independent atom", "bumps"])
def test_some_atoms_have_the_values_they_have_among_all(name):
    d = matrix(name).shape[1]
    for atoms in ([d - 1], [3, 0, 3], np.arange(d)[::-3], list(jnp.array([1, 2]))):
        found = theory.generalized_coherence(matrix(name), atoms=atoms)
        chosen = np.array([int(i) for i in atoms])
        assert found.holds and found.W.shape == (len(matrix(name)), len(chosen))
        assert found.per_atom_upper == pytest.approx(
            solved(name).per_atom_upper[chosen], rel=2 * TOL, abs=1e-12
        )
        own = np.sum(np.asarray(found.W) * matrix(name)[:, chosen], axis=0)
        assert own == pytest.approx(1, abs=1e-12)
        assert found.upper == found.per_atom_upper.max()


@pytest.mark.parametrize("name", ["gaussian 20x60", "rows from 1e-6 to 1"])
def test_progress_counts_up_to_the_number_of_programs(name):
    seen = []
    theory.generalized_coherence(matrix(name), 1e-12, progress=lambda *counts: seen.append(counts))
    settled, totals = zip(*seen)
    assert set(totals) == {matrix(name).shape[1]} and list(settled) == sorted(settled)
    assert settled[-1] == totals[-1]


@pytest.mark.parametrize(
    "name", ["gaussian 8x16", "gaussian 20x60", "zeros and ones", "paley", "tall"]
)
def test_coherence_at_most_agrees_with_the_value(name):
    A, found = matrix(name), solved(name)
    below, above = float(found.lower) * (1 - 1e-5), float(found.upper) * (1 + 1e-5)
    yes = theory.coherence_at_most(A, above)
    assert yes.answer is True and yes.lower <= yes.upper <= max(above, 1e-12)
    if below:
        no = theory.coherence_at_most(A, below)
        assert no.answer is False and below < no.lower <= no.upper
    assert theory.coherence_at_most(A, 1.0).answer is True
    assert theory.coherence_at_most(A, jnp.asarray(1.0)).answer is True
    assert theory.coherence_at_most(A, math.inf).answer is True


def test_coherence_at_most_is_undecided_between_its_bounds(monkeypatch):
    level = float(solved("gaussian 8x16").upper)
    monkeypatch.setattr(
        linear_programs, "_finish", lambda Q, *others: (np.zeros(Q.shape[1]), others[4], 0)
    )
    A = matrix("gaussian 8x16")
    undecided = theory.coherence_at_most(A, level)
    assert undecided.answer is None and undecided.lower <= level < undecided.upper


def test_coherence_at_most_of_orthonormal_atoms():
    assert theory.coherence_at_most(np.eye(3), 0.0).answer is True


def test_minimax_weights_are_those_weights():
    assert np.array_equal(
        analytic.minimax_weights(matrix("gaussian 8x16")), solved("gaussian 8x16").W
    )
    assert theory.minimax_weights is analytic.minimax_weights


# The cache.


@pytest.fixture
def kept(tmp_path):
    """A small dictionary, its result, the folder and the one file in it."""
    A = np.array([[0.6, 0, 1.0], [0.8, 1.0, 0]])
    found = theory.generalized_coherence(A, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    return A, found, tmp_path, file


def write(file, **arrays):
    with file.open("wb") as out:
        np.savez(out, **arrays)


def read(file):
    with file.open("rb") as kept, np.load(kept) as arrays:
        return dict(arrays)


def test_the_cache_is_written_once_and_read_back(kept, monkeypatch):
    A, found, folder, file = kept
    written = file.stat().st_mtime_ns
    monkeypatch.setattr(linear_programs, "basis_pursuit", None)  # nothing may be solved again
    again = theory.generalized_coherence(A, cache=str(folder))
    assert again.holds and again.upper == pytest.approx(float(found.upper), rel=4 * EPS)
    assert again.lower == pytest.approx(float(found.lower), rel=4 * EPS)
    assert jax.jit(lambda A: theory.generalized_coherence(A, cache=folder).upper)(A) == again.upper
    assert [*folder.iterdir()] == [file] and file.stat().st_mtime_ns == written


def test_the_cache_keeps_dictionaries_tolerances_and_atoms_apart(kept):
    A, _, folder, _ = kept
    for options in ({"tol": 1e-3}, {"only_maximum": True}, {"atoms": [0, 1]}):
        theory.generalized_coherence(A, cache=folder, **options)
    theory.generalized_coherence(A[:, ::-1], cache=folder)
    theory.generalized_coherence(A[::-1], cache=folder)
    assert len([*folder.iterdir()]) == 6
    theory.generalized_coherence(np.asfortranarray(A), cache=folder)
    assert len([*folder.iterdir()]) == 6


def test_the_cache_folder_is_made_and_left_without_parts(tmp_path):
    theory.generalized_coherence(np.eye(2), cache=tmp_path / "a" / "b")
    assert [path.suffix for path in (tmp_path / "a" / "b").iterdir()] == [".npz"]


def test_a_cache_that_cannot_be_written_is_refused_before_any_work(kept, monkeypatch):
    A, _, _, file = kept
    monkeypatch.setattr(linear_programs, "basis_pursuit", None)
    for folder in (file, file / "below"):
        call = partial(theory.generalized_coherence, cache=folder)
        for f in (call, jax.jit(call)):
            with pytest.raises(training.CheckpointError, match="the cache .* cannot be written"):
                f(-A)


def test_a_full_disk_costs_the_copy_and_not_the_result(kept, monkeypatch):
    A, _, folder, file = kept

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"generalized_coherence: .* not stored \(No space left"):
        assert theory.generalized_coherence(A[:, ::-1], cache=folder).holds
    assert [*folder.iterdir()] == [file]


def test_a_file_that_is_too_large_or_unpacks_to_too_much_is_computed_again(kept):
    A, found, folder, file = kept
    with file.open("ab") as out:
        out.truncate(2**40)  # sparse: reading it would take a terabyte
    assert same(theory.generalized_coherence(A, cache=folder), found)
    with file.open("wb") as out:
        np.savez_compressed(out, W=np.zeros((2, 3)), V=np.zeros((3, 3)), more=np.zeros(10**7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.lib.npyio.NpzFile, "__getitem__", None)  # nothing may be unpacked
        assert same(theory.generalized_coherence(A, cache=folder), found)


def test_truncated_and_foreign_files_are_computed_again(kept):
    A, found, folder, file = kept
    good = file.read_bytes()
    for bad in (
        b"",
        good[:1],
        good[:10],
        good[: len(good) // 2],
        good[:-1],
        b"not a zip",
        b"PK\x03\x04",
    ):
        file.write_bytes(bad)
        assert same(theory.generalized_coherence(A, cache=folder), found)
    file.write_bytes(good)
    write(file, W=read(file)["W"])  # without V
    assert same(theory.generalized_coherence(A, cache=folder), found)
    file.unlink()
    assert same(theory.generalized_coherence(A, cache=folder), found)


@pytest.mark.slow
def test_one_flipped_bit_anywhere_is_noticed(kept):
    A, found, folder, file = kept
    good = file.read_bytes()
    for place in range(0, len(good), 13):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        file.write_bytes(bytes(bad))
        again = theory.generalized_coherence(A, cache=folder)
        assert again.holds and again.upper == pytest.approx(float(found.upper), rel=1e-12), place


@pytest.mark.parametrize("place, bit", [(6, 0), (8, 7), (494, 0), (496, 7), (492, 7)])
def test_a_file_marked_as_encrypted_or_packed_otherwise_is_computed_again(kept, place, bit):
    A, found, folder, file = kept
    bad = bytearray(file.read_bytes())
    bad[place] ^= 1 << bit
    file.write_bytes(bytes(bad))
    assert theory.generalized_coherence(A, cache=folder).upper == pytest.approx(
        float(found.upper), rel=1e-12
    )


WRONG = {
    "transposed": lambda W, V: (W.T, V),
    "too few": lambda W, V: (W[:, :2], V[:, :2]),
    "too deep": lambda W, V: (W[None], V[None]),
    "no numbers": lambda W, V: (W.astype(str), V.astype(str)),
    "complex": lambda W, V: (W * (1 + 1j), V),
    "objects": lambda W, V: (W.astype(object), V.astype(object)),
    "nan": lambda W, V: (np.full_like(W, np.nan), np.full_like(V, np.nan)),
    "infinite weights": lambda W, V: (np.full_like(W, np.inf), V),
    "infinite multipliers": lambda W, V: (W, np.full_like(V, np.inf)),
    "zero": lambda W, V: (0 * W, 0 * V),
    "other signs": lambda W, V: (-W, -V),
    "huge": lambda W, V: (W * 1e300, V * 1e300),
    "tiny": lambda W, V: (W * 1e-320, V * 1e-320),
    "other atoms": lambda W, V: (W[:, ::-1], V[:, ::-1]),
    "half the multipliers": lambda W, V: (W, V / 2),
    "own atom": lambda W, V: (W, np.eye(3)),
    "half precision": lambda W, V: (W.astype(np.float16), V.astype(np.float16)),
}


@pytest.mark.few(6)
@pytest.mark.parametrize("fault", WRONG)
def test_a_tampered_file_never_gives_a_false_certificate_and_costs_only_time(kept, fault):
    A, found, folder, file = kept
    arrays = read(file)
    W, V = WRONG[fault](arrays["W"], arrays["V"])
    write(file, W=W, V=V)
    again = theory.generalized_coherence(A, cache=folder)
    assert again.lower <= 5 / 7 * (1 + 1e-12) and again.upper >= 5 / 7 * (1 - 1e-12)  # mu~ by hand
    assert again.holds and again.upper == pytest.approx(float(found.upper), rel=TOL)


@pytest.mark.parametrize("size", [1e-8, 1e-10, 1e-12, 1e-13])
def test_multipliers_that_only_nearly_represent_an_atom_prove_nothing(tmp_path, size):
    """Only small rows separate these atoms; a file that ignores them would certify 1."""
    A = unit(np.vstack([[1, 1, -1, 1, 1.0], size * normal(0, 3, 5)]))
    honest = theory.generalized_coherence(A, cache=tmp_path)
    assert honest.holds and honest.upper < 0.8
    (file,) = tmp_path.iterdir()
    W, V = np.zeros_like(A), np.zeros((5, 5))
    W[0], V[(np.arange(5) + 1) % 5, np.arange(5)] = A[0], A[0] * np.roll(A[0], -1)
    write(file, W=W, V=V)
    assert theory.generalized_coherence(A, cache=tmp_path).lower <= honest.upper


# Dtypes and transformations.


def test_float32_keeps_its_dtype_and_rounds_the_bounds_outwards():
    A = matrix("gaussian 8x16").astype(np.float32)
    found, wide = (
        theory.generalized_coherence(A),
        theory.generalized_coherence(A.astype(np.float64)),
    )
    numbers = jax.tree.leaves(found.replace(holds=None, rank=None))
    assert {v.dtype for v in numbers} == {np.dtype(np.float32)} and found.holds
    assert (np.float64(found.per_atom_upper) >= np.float64(wide.per_atom_upper)).all()
    assert (np.float64(found.per_atom_lower) <= np.float64(wide.per_atom_lower)).all()
    assert found.per_atom_upper == pytest.approx(np.asarray(wide.per_atom_upper), rel=2.0**-23)
    # W is rounded: an entry by 2^-24 of itself.
    assert found.W == pytest.approx(np.asarray(wide.W), rel=2.0**-23)


@pytest.mark.parametrize("half", [jnp.bfloat16, np.float16])
def test_half_precision_bounds_enclose_the_value(half):
    A = dictionaries.identity_hadamard(4).astype(half)
    for solve in (theory.generalized_coherence, jax.jit(theory.generalized_coherence)):
        found = solve(A)
        assert found.upper.dtype == found.W.dtype == half
        assert float(found.lower) <= 0.5 <= float(found.upper) <= 0.51


def test_it_runs_where_float64_is_off():
    A = matrix("gaussian 8x16").astype(np.float32)
    with jax.enable_x64(False):
        eager, jitted = theory.generalized_coherence(A), jax.jit(theory.generalized_coherence)(A)
        assert eager.holds and eager.upper.dtype == np.float32 and same(eager, jitted)
        assert theory.coherence_at_most(A, 0.9).answer is True
        assert theory.minimal_entry_weights(A, eager).holds
    assert eager.upper == pytest.approx(float(solved("gaussian 8x16").upper), rel=1e-6)


def test_a_bad_dictionary_is_marked_under_jit_and_affects_no_other():
    A = matrix("gaussian 8x16")
    stack = np.stack([A, np.where(A == A[0, 0], np.nan, A), np.where(np.arange(16) == 3, 0.0, A)])
    found = jax.vmap(theory.generalized_coherence)(stack)
    assert found.holds.tolist() == [True, False, False]
    assert found.upper.tolist() == [float(solved("gaussian 8x16").upper), math.inf, math.inf]
    assert found.lower[1:].tolist() == [0, 0] and np.isfinite(found.W).all()


@pytest.mark.slow
def test_the_gradient_is_zero_where_atoms_are_independent_and_weights_carry_none():
    assert not np.asarray(
        jax.grad(lambda A: theory.generalized_coherence(A).upper)(np.eye(4, 3))
    ).any()
    gradient = jax.grad(lambda A: jnp.sum(theory.generalized_coherence(A).W))(
        matrix("gaussian 8x16")
    )
    assert not np.asarray(gradient).any()


def test_descent_along_the_gradient_lowers_mu_tilde():
    X = unit(normal(14, 6, 12))

    @jax.jit
    @jax.value_and_grad
    def maximum(X):
        return theory.generalized_coherence(dictionaries.normalize(X)[0], only_maximum=True).upper

    values = []
    for _ in range(10):
        value, slope = maximum(X)
        values.append(float(value))
        X = X - 0.02 * slope / np.linalg.norm(slope)
    assert values[-1] < values[0] - 0.01


# Convolutions.

CIRCULAR = {  # filters, signal, stride
    "1-D": ((2, 1, 4), 12, 1),
    "1-D, stride 2": ((3, 1, 5), 12, 2),
    "1-D, two channels, stride 2": ((5, 2, 4), 8, 2),
    "1-D, kernel longer than the signal": ((2, 1, 9), 7, 1),
    "2-D, strides 2 and 1": ((3, 1, 3, 2), (4, 3), (2, 1)),
    "independent atoms": ((1, 2, 3), 8, 2),
}


def bank(name, seed=0):
    """A circular dictionary with unit atoms."""
    shape, signal, stride = CIRCULAR[name]
    filters = normal(seed, *shape)
    sizes = np.atleast_1d(signal)
    atoms = np.zeros((*shape[:2], *sizes))  # a kernel longer than the signal wraps onto itself
    for place in np.ndindex(*shape[2:]):
        atoms[(..., *np.array(place) % sizes)] += filters[(..., *place)]
    norms = np.sqrt(np.sum(atoms**2, axis=tuple(range(1, atoms.ndim)), keepdims=True))
    return dictionaries.Conv(filters / norms, signal, stride, "circular")


def everything(D):
    found = theory.generalized_coherence(D)
    return (
        found,
        dictionaries.dense(D),
        dictionaries.dense(found.W),
        theory.coherence(found.W, D).mu_W,
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("name", CIRCULAR)
def test_one_program_per_filter_answers_for_the_whole_circle(name, monkeypatch):
    D, sizes, solve = bank(name), [], linear_programs.basis_pursuit
    monkeypatch.setattr(
        linear_programs,
        "basis_pursuit",
        lambda *args, **kw: sizes.append(args[1].shape[1]) or solve(*args, **kw),
    )
    found, A, W, mu_W = jax.tree.map(np.asarray, jax.jit(everything)(D))
    assert sizes == ([] if name == "independent atoms" else [CIRCULAR[name][0][0]]) and found.holds
    for i in range(0, A.shape[1], 5):  # all filters, at several positions
        expected = oracles.least_coherence(A, i)
        assert found.per_atom_lower[i] <= expected * (1 + 1e-7) + 1e-10
        assert found.per_atom_upper[i] >= expected * (1 - 1e-7) - 1e-10
    off, own = products(W, A)
    # Products of w and d in another order: rounding of |w| below 10.
    assert own == pytest.approx(1, abs=1e-13) and off.max(1) == pytest.approx(
        found.per_atom_upper, abs=1e-13
    )
    assert mu_W == pytest.approx(float(found.upper), abs=1e-13)


@pytest.mark.slow
def test_some_atoms_of_a_circle_are_answered_one_by_one():
    D = bank("1-D")
    found, whole = theory.generalized_coherence(D, atoms=[5, 20]), theory.generalized_coherence(D)
    assert isinstance(found.W, jax.Array) and found.W.shape == (12, 2)
    assert found.per_atom_upper == pytest.approx(
        np.asarray(whole.per_atom_upper)[[5, 20]], rel=2 * TOL
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [dict(boundary="valid", stride=2), dict(boundary="circular", stride=5)]
)
def test_other_convolutions_are_answered_by_their_matrix(options):
    D = dictionaries.normalize(dictionaries.Conv(normal(0, 3, 1, 4), 12, **options))[0]
    found, expected = (
        theory.generalized_coherence(D),
        theory.generalized_coherence(dictionaries.dense(D)),
    )
    assert found.holds and same(found, expected)


def test_other_structured_dictionaries_are_answered_by_their_matrix():
    D = dictionaries.Concatenated(np.eye(6), unit(normal(0, 6, 5)))
    assert same(
        theory.generalized_coherence(D), theory.generalized_coherence(dictionaries.dense(D))
    )


# Bad input.

# Least entries (Definition 8).

# At levels too close to mu~ for the conditioning, the gap is not always reached; wider levels are
# checked too.
THIN = {"near duplicate", "rows from 1e-6 to 1", "vandermonde", "bumps"}
small_dictionaries = pytest.mark.parametrize(
    "name", [n for n in oracles.DICTIONARIES if n != LARGE]
)


@cache
def least(name, factor):
    start = solved(name)
    level = start if factor is None else float(start.upper) * factor + 1e-6
    return theory.minimal_entry_weights(matrix(name), level)


@pytest.mark.few(8)
@small_dictionaries
@pytest.mark.parametrize("factor", [None, 1.05, 2.0])
def test_least_entries_agree_with_highs_at_their_level(name, factor):
    A, found = matrix(name), least(name, factor)
    assert found.holds or (factor is None and name in THIN)
    # HiGHS: 1e-10 against a level of width 1e-6
    near = 1e-4 if name in THIN and factor is None else 1e-6
    for i in oracles.sampled(name, 6):
        expected = oracles.least_entry(A, i, found.coherence)
        assert found.per_atom_lower[i] <= expected * (1 + near)
        assert found.per_atom_upper[i] >= expected * (1 - near)


@pytest.mark.few(14)
@small_dictionaries
@pytest.mark.parametrize("factor", [None, 1.05])
def test_weights_of_least_entries_keep_their_level_and_their_unit_diagonal(name, factor):
    A, found = matrix(name), least(name, factor)
    off, own = products(found.W, A)
    assert off.max() <= found.coherence and own == pytest.approx(1, abs=1e-12)
    assert (
        found.upper == np.abs(found.W).max() == found.per_atom_upper.max()
        and found.lower <= found.upper
    )
    assert np.abs(found.W).max(0) == pytest.approx(found.per_atom_upper, rel=4 * EPS)
    # The start is feasible, so for every atom its largest entry is no smaller.
    assert (found.per_atom_upper <= np.abs(solved(name).W).max(0) * (1 + 1e-12)).all()
    assert (found.per_atom_lower >= 0).all() and np.isfinite(found.W).all()


@pytest.mark.parametrize("name", ["near duplicate", "rows from 1e-6 to 1", "vandermonde", "bumps"])
def test_least_entries_close_their_gap_also_at_thin_levels(name):
    found = least(name, None)
    # The multipliers of a near duplicate at its level are near 1e6, and magnify the 1e-12 by which
    # every w stays inside.
    most = 1e-5 if name == "near duplicate" else 1e-6
    assert np.max((found.per_atom_upper - found.per_atom_lower) / found.per_atom_upper) <= most
    assert found.holds or name == "near duplicate"


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["rows from 1e-6 to 1", "vandermonde", "bumps"])
@pytest.mark.parametrize("above", [1e-5, 1e-7, 1e-9])
def test_least_entries_hold_at_levels_just_above_the_coherence(name, above):
    A = matrix(name)
    found = theory.minimal_entry_weights(A, float(solved(name).upper) * (1 + above))
    gap = (found.per_atom_upper - found.per_atom_lower) / found.per_atom_upper
    assert np.isfinite(found.upper) and gap.max() <= 3e-6
    assert products(found.W, A)[0].max() <= found.coherence


@pytest.mark.parametrize("tol", [0.3, 0.03, 1e-3])
def test_a_loose_tolerance_refuses_no_level_above_the_coherence(tol):
    # The programs of the start are solved to tol: at a level between mu~ and mu~ (1 + tol) they may
    # look infeasible.
    A = matrix("gaussian 8x16")
    mu = float(solved("gaussian 8x16").upper)
    for above in (1e-6, tol / 10):
        found = theory.minimal_entry_weights(A, mu * (1 + above), tol)
        assert found.holds and np.isfinite(found.per_atom_upper).all()
    below = theory.minimal_entry_weights(A, mu * (1 - 1e-6), tol)
    assert np.isinf(below.per_atom_upper).any() and not below.holds


def test_a_wider_level_needs_no_larger_entries():
    C = [least("gaussian 8x16", factor).upper for factor in (None, 1.05, 2.0)]
    assert C[0] > C[1] > C[2]


def test_least_entries_of_one_atom_and_at_a_wide_level_are_those_of_the_signs():
    """Without other constraints min |w|_inf : w . a = 1 is 1 / |a|_1, at the signs of a."""
    A = matrix("one atom")
    found = theory.minimal_entry_weights(A)
    assert found.holds and found.upper == pytest.approx(1 / np.abs(A).sum(), rel=TOL)
    for level in (100.0, 1e6):
        wide = theory.minimal_entry_weights(matrix("gaussian 8x16"), level)
        assert wide.holds
        assert wide.per_atom_upper == pytest.approx(
            1 / np.abs(matrix("gaussian 8x16")).sum(0), rel=TOL
        )


@pytest.mark.parametrize("level", [1e10, 1e100, math.inf])
def test_a_level_without_bound_is_finite_or_refused(level):
    A = matrix("gaussian 8x16")
    try:
        found = theory.minimal_entry_weights(A, level)
    except ValueError:
        return
    assert found.per_atom_upper == pytest.approx(1 / np.abs(A).sum(0), rel=TOL)


@pytest.mark.parametrize("name", ["gaussian 8x16", "paley", "one row", "rows from 1e-6 to 1"])
def test_a_level_below_mu_tilde_has_no_weights_for_the_atoms_above_it(name):
    values = solved(name).per_atom_lower
    for level in (0.0, 0.3 * values.max(), 0.999 * values.max()):
        found = theory.minimal_entry_weights(matrix(name), level)
        assert not found.holds and found.upper == math.inf and found.coherence == level
        assert np.isinf(found.per_atom_upper).tolist() == (values > level).tolist()
        assert (found.per_atom_lower <= found.per_atom_upper).all() and np.isfinite(found.W).all()


@pytest.mark.few(4)
@small_dictionaries
def test_the_certified_coherence_is_itself_a_level_that_has_weights(name):
    level = float(solved(name).upper)
    found = theory.minimal_entry_weights(matrix(name), level)
    assert np.isfinite(found.per_atom_upper).all()


def test_least_entries_from_any_start():
    A = matrix("gaussian 8x16")
    starts = (None, theory.generalized_coherence(A, only_maximum=True), solved("gaussian 8x16"))
    found = [theory.minimal_entry_weights(A, start) for start in starts]
    for one, other in itertools.combinations(found, 2):
        assert one.coherence == pytest.approx(other.coherence, rel=2 * TOL)
        # The levels differ by 1e-6, their slopes by 1e2.
        assert one.upper == pytest.approx(other.upper, rel=1e-4)


@pytest.mark.slow
def test_least_entries_of_a_convolution_and_of_float32_are_dense_and_wide():
    D = bank("1-D")
    found = theory.minimal_entry_weights(D, theory.generalized_coherence(D))
    assert found.holds and found.W.shape == D.shape and found.W.dtype == np.float64
    assert found.per_atom_upper == pytest.approx(
        np.repeat(found.per_atom_upper[[0, 12]], 12), rel=2 * TOL
    )
    A = matrix("gaussian 8x16").astype(np.float32)
    found = theory.minimal_entry_weights(A, theory.generalized_coherence(A))
    assert found.holds and found.upper == pytest.approx(
        least("gaussian 8x16", None).upper, rel=1e-4
    )


def test_least_entries_report_progress():
    seen = []
    theory.minimal_entry_weights(
        matrix("gaussian 8x16"), progress=lambda *counts: seen.append(counts)
    )
    assert seen[-1] == (16, 16) and seen == sorted(seen)


# Applications.


def null_space_constant(A):
    """max |h_i| / |h|_1 over h in ker A, by HiGHS: max h_i : A h = 0, |h|_1 <= 1."""
    m, d = A.shape
    best = 0
    for i in range(d):
        cost = np.zeros(2 * d)
        cost[i], cost[d + i] = -1, 1
        options = dict(
            A_ub=np.ones((1, 2 * d)), b_ub=[1], A_eq=np.hstack([A, -A]), b_eq=np.zeros(m)
        )
        best = max(best, -oracles.linprog(cost, **options).fun)
    return best


@pytest.mark.parametrize(
    "name", ["gaussian 8x16", "gaussian 5x20", "paley", "identity and hadamard", "positive"]
)
def test_the_null_space_constant_is_mu_tilde_over_one_plus_mu_tilde(name):
    mu = float(solved(name).upper)
    assert null_space_constant(matrix(name)) == pytest.approx(mu / (1 + mu), rel=1e-6)


@pytest.mark.parametrize(
    "name", ["gaussian 5x20", "gaussian 3x30", "zeros and ones", "duplicate and antiparallel"]
)
def test_the_spark_is_at_least_its_bound(name):
    A = matrix(name)
    bound = theory.spark_bound(float(solved(name).upper))
    # Sets of fewer atoms than the bound are independent.
    for k in range(1, math.ceil(bound - 1e-6)):
        sets = np.array([*itertools.combinations(range(A.shape[1]), k)])
        assert np.linalg.svd(A.T[sets], compute_uv=False).min() > 1e-6
    assert bound >= theory.spark_bound(products(A, A)[0].max()) * (1 - 1e-12)


def test_weights_that_lose_their_certificate_when_rounded_do_not_hold():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((8, 3)) @ rng.standard_normal((3, 16))
    A += 1e-6 * rng.standard_normal(A.shape)
    D = jnp.asarray(A / np.linalg.norm(A, axis=0), jnp.float32)
    for solve in (theory.generalized_coherence, jax.jit(theory.generalized_coherence)):
        found = solve(D)
        W, exact = np.asarray(found.W, float), np.asarray(D, float)
        reached = (np.abs(exact.T @ W) - np.eye(16) * np.abs(exact.T @ W)).max()
        assert reached > 1.01 * float(found.upper) and not found.holds
    with jax.enable_x64(True):  # where nothing is rounded
        assert theory.generalized_coherence(jnp.asarray(D, jnp.float64)).holds


# Dictionaries in a subspace, but for the rounding of their entries.

MEAN_FREE = np.linalg.svd(np.eye(8) - 1 / 8)[0][:, :7]  # a basis


def mean_free(dtype, out=0.0):
    """8 x 16 atoms without their mean, with a singular value near `out` along it, and rounded."""
    A = MEAN_FREE @ normal(1, 7, 16) + out * normal(2, 16)
    return unit(A).astype(dtype)


# In float32 the rounding of the entries alone leaves the subspace.
in_a_subspace = pytest.mark.parametrize(
    "dtype, out", [(np.float64, 0.0), (np.float64, 2e-14), (np.float32, 0.0), (np.float32, 3e-8)]
)


@in_a_subspace
def test_rounding_is_no_direction_for_weights(dtype, out):
    A = mean_free(dtype, out)
    found = theory.generalized_coherence(A)
    within = theory.generalized_coherence(MEAN_FREE.T @ A.astype(float))
    size = np.linalg.norm(within.W, axis=0).max()
    # What the entries round, and with them the products with W.
    rounding = 8 * np.finfo(dtype).eps * size
    assert found.holds and found.rank == 7 and within.rank == 7
    assert found.upper == pytest.approx(float(within.upper), rel=2 * TOL + rounding)
    assert np.linalg.norm(np.asarray(found.W, float), axis=0).max() <= 1.01 * size
    # The range of the rounded A is that of the mean-free ones up to out / sigma_7, and what factors
    # it has a backward error of m eps sigma_1; entries of a unit vector add up to sqrt(m) at most.
    S, eps = np.linalg.svd(A)[1], np.finfo(dtype).eps
    tilt = (16 * (out + eps) + math.sqrt(8) * 8 * eps * S[0]) / S[6]
    assert np.abs(found.W.sum(0)).max() <= tilt * size
    assert found.W.dtype == dtype
    least = theory.minimal_entry_weights(A)
    assert least.holds and least.coherence == pytest.approx(float(found.upper), rel=1e-5)
    between = (float(found.upper) * 0.99, float(found.upper) * 1.01)
    assert [theory.coherence_at_most(A, level).answer for level in between] == [False, True]


@pytest.mark.slow
@in_a_subspace
def test_the_numerical_range_under_transformations(dtype, out):
    A = jnp.asarray(mean_free(dtype, out))
    full = jnp.asarray(oracles.matrix("gaussian 8x16"), dtype)
    found = jax.vmap(theory.generalized_coherence)(jnp.stack([A, full]))
    assert found.rank.tolist() == [7, 8] and found.holds.all()
    slope = jax.grad(lambda D: theory.generalized_coherence(D).upper)(A)
    assert jnp.isfinite(slope).all() and jnp.abs(slope).max() <= 10


@pytest.mark.parametrize("cond", [1e6, 1e8, 1e10, 1e12])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weights_of_a_nearly_deficient_dictionary_do_what_they_claim_or_say_so(dtype, cond):
    U, S, V = np.linalg.svd(normal(3, 4, 8), full_matrices=False)
    A = unit((U * [*S[:-1], S[0] / cond]) @ V).astype(dtype)
    found = theory.generalized_coherence(A)
    if found.rank < 4:
        assert found.holds
    if found.holds:
        reached = coherence_in_fractions(np.asarray(found.W), A)
        # `holds` asks for half of the digits; the bounds themselves are known to TOL.
        near = max(np.finfo(dtype).eps ** 0.5, TOL)
        assert (reached <= np.asarray(found.per_atom_upper, float) * (1 + near)).all()


def coherence_in_fractions(W, A):
    """max_j |w_i . a_j| / (w_i . a_i), exactly."""
    found, atoms = [], [list(map(Fraction, a)) for a in A.T.tolist()]
    for i, w in enumerate(W.T.tolist()):
        products = [sum(Fraction(p) * q for p, q in zip(w, a)) for a in atoms]
        own = products.pop(i)
        found.append(float(max(map(abs, products)) / own))
    return np.array(found)


def test_a_dictionary_of_full_rank_is_taken_to_float64_as_it_is():
    for name in ("gaussian 8x16", "rows from 1e-6 to 1", "tall"):
        A = oracles.matrix(name)
        assert (theory.in_float64(A) == A).all()
        assert theory.generalized_coherence(A).rank == min(A.shape)
    A, D = mean_free(np.float32), np.asarray(theory.in_float64(mean_free(np.float32)))
    assert D.dtype == np.float64 and np.abs(D - A).max() <= 16 * np.finfo(np.float32).eps
    assert np.linalg.svd(D)[1][-1] <= 16 * EPS < np.linalg.svd(A.astype(float))[1][-1]
