"""Small composite problems and their optimal values by a generic convex solver.

`python tests/composite_programs.py` solves them with cvxpy and Clarabel and writes the values to
composite_programs.json; the tests read that file and need no cvxpy. The windows of the patches and
stripes are index lists made here, apart from the library.
"""

import itertools
import json
from pathlib import Path

import numpy as np

STORED = Path(__file__).with_suffix(".json")


def unit(D):
    return D / np.linalg.norm(D, axis=0)


def chain(seed, *sizes):
    """D_1, ..., D_J, where the columns of all but the first are sparse, and a noisy signal."""
    rng = np.random.default_rng(seed)
    Ds = [unit(rng.normal(size=sizes[:2]))]
    for p, d in itertools.pairwise(sizes[1:]):
        columns = np.zeros((p, d))
        for k in range(d):
            columns[rng.choice(p, 3, replace=False), k] = rng.normal(size=3)
        Ds.append(unit(columns))
    x = np.zeros(sizes[-1])
    x[rng.choice(sizes[-1], 3, replace=False)] = rng.normal(size=3)
    for D in reversed(Ds):
        x = D @ x
    return tuple(Ds), x + 0.05 * rng.normal(size=sizes[0])


def bank(seed, n_atoms, n_channels, kernel, signal, boundary):
    """Filters, their matrix on the grid of the signal, and a signal with a few atoms."""
    rng = np.random.default_rng(seed)
    filters = rng.normal(size=(n_atoms, n_channels, *kernel)) / np.sqrt(np.prod(kernel))
    positions = [N if boundary == "circular" else N - n + 1 for N, n in zip(signal, kernel)]
    columns = []
    for f, p in itertools.product(range(n_atoms), itertools.product(*map(range, positions))):
        atom = np.zeros((n_channels, *signal))
        for c, k in itertools.product(range(n_channels), itertools.product(*map(range, kernel))):
            atom[(c, *(np.add(p, k) % signal))] += filters[(f, c, *k)]
        columns.append(atom.ravel())
    A = np.array(columns).T
    x = np.zeros(A.shape[1])
    x[rng.choice(A.shape[1], 5, replace=False)] = rng.normal(size=5)
    return filters, A, A @ x + 0.05 * rng.normal(size=len(A)), positions


def patches(n_channels, kernel, signal):
    """The indices of every window of the size of the kernel, on a circle."""
    grid = np.arange(n_channels * np.prod(signal)).reshape(n_channels, *signal)
    return [
        grid[
            (slice(None), *np.ix_(*((p + np.arange(n)) % N for p, n, N in zip(at, kernel, signal))))
        ]
        .ravel()
        .tolist()
        for at in itertools.product(*map(range, signal))
    ]


def stripes(n_atoms, kernel, positions, boundary):
    """The indices of all coefficients whose atoms overlap those of a position."""
    grid = np.arange(n_atoms * np.prod(positions)).reshape(n_atoms, *positions)
    found = []
    for at in itertools.product(*map(range, positions)):
        near = [p + np.arange(1 - n, n) for p, n in zip(at, kernel)]
        if boundary == "circular":
            near = [np.unique(q % N) for q, N in zip(near, positions)]
        else:
            near = [q[(q >= 0) & (q < N)] for q, N in zip(near, positions)]
        found.append(grid[(slice(None), *np.ix_(*near))].ravel().tolist())
    return found


CHAINS = {  # the sizes of a chain, and its penalties
    "two layers": (0, (20, 30, 40), (0.05, 0.05)),
    "two layers, small penalties": (1, (20, 30, 40), (0.01, 0.003)),
    "two layers, analysis": (2, (20, 30, 40), (0.2, 0.01)),
    "two layers, synthesis": (3, (20, 30, 40), (0.0, 0.1)),
    "three layers": (4, (15, 20, 25, 30), (0.02, 0.03, 0.04)),
    "penalties per atom": (5, (15, 20, 25), (np.linspace(0, 0.1, 20), np.linspace(0.01, 0.1, 25))),
    "one layer": (6, (15, 25), (0.1,)),
}
BANKS = {  # n_atoms, n_channels, kernel, signal, boundary
    "circular": (0, 2, 1, (5,), (24,), "circular"),
    "valid": (1, 2, 1, (4,), (20,), "valid"),
    "two channels": (2, 3, 2, (3,), (10,), "circular"),
    "pictures": (3, 2, 1, (2, 3), (4, 5), "circular"),
    "one patch": (4, 2, 1, (9,), (9,), "circular"),
}
RADII = {"circular": 0.15, "valid": 0.4, "two channels": 0.2, "pictures": 0.1, "one patch": 0.2}
LAM = 0.1


def solved():
    """The optimal values, by name."""
    import cvxpy as cp

    def value(objective, constraints=()):
        program = cp.Problem(cp.Minimize(objective), list(constraints))
        tight = dict(tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
        assert program.solve(solver="CLARABEL", **tight) is not None
        return program.value

    found = {"ml_basis_pursuit": {}, "local_error": {}, "local_sparsity": {}}
    for name, (seed, sizes, lams) in CHAINS.items():
        Ds, y = chain(seed, *sizes)
        x = code = cp.Variable(sizes[-1])
        penalty = 0
        for D, lam in zip(reversed(Ds), reversed(lams)):
            penalty = penalty + cp.sum(cp.multiply(np.broadcast_to(lam, code.shape), cp.abs(code)))
            code = D @ code
        found["ml_basis_pursuit"][name] = value(cp.sum_squares(y - code) / 2 + penalty)
    for name, (seed, n_atoms, n_channels, kernel, signal, boundary) in BANKS.items():
        _, A, y, positions = bank(seed, n_atoms, n_channels, kernel, signal, boundary)
        x = cp.Variable(A.shape[1])
        r = y - A @ x
        near = [cp.norm(r[i]) <= RADII[name] for i in patches(n_channels, kernel, signal)]
        found["local_error"][name] = value(cp.norm1(x), near)
        sizes = [cp.norm1(x[i]) for i in stripes(n_atoms, kernel, positions, boundary)]
        fullest = cp.max(cp.hstack(sizes))
        found["local_sparsity"][name] = value(cp.sum_squares(r) / 2 + LAM * fullest)
    return found


if __name__ == "__main__":
    STORED.write_text(json.dumps(solved(), indent=1) + "\n")
