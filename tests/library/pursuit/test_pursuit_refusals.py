"""What pursuits refuse, as rows: which of them, the options, and words of the message."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from oracles import normal, unit

from unrolled import dictionaries, pursuit

M, N, P, BATCH = 12, 16, 20, 9
D, E, Y = unit(normal(0, M, N)), unit(normal(1, N, P)), normal(2, BATCH, M)
y, F = Y[0], dictionaries.Conv(normal(3, 2, 1, 3), M, boundary="circular")
NAN, MASKED = np.full(N, np.nan), np.ma.masked_array(np.ones(N), np.arange(N) == 0)

ONE, CHAIN, BANK = dict(D=D, y=y), dict(Ds=(D, E), y=y), dict(D=F, y=y)
# The arguments of every pursuit, which the options of a row replace.
GIVEN = {
    "ista": ONE | dict(lam=0.1),
    "fista": ONE | dict(lam=0.1),
    "threshold": ONE | dict(theta=0.1),
    "lasso": ONE | dict(lam=0.1),
    "lasso_path": ONE | dict(ratio=[0.1]),
    "lasso_batch": dict(D=D, Y=Y, lam=0.1),
    "omp": ONE | dict(sparsity=2),
    "omp_batch": dict(D=D, Y=Y, sparsity=2),
    "basis_pursuit": ONE,
    "bpdn": ONE | dict(eps=0.1),
    "half_quadratic": ONE | dict(lam=0.1),
    "local_error": BANK | dict(radius=0.1),
    "local_sparsity": BANK | dict(lam=0.1),
    "layered_thresholding": CHAIN | dict(thetas=(0.1, 0.1)),
    "layered_basis_pursuit": CHAIN | dict(lams=(0.1, 0.1)),
    "project": CHAIN | dict(lam=0.1),
    "ml_ista": CHAIN | dict(lams=(0.1, 0.1)),
    "ml_fista": CHAIN | dict(lams=(0.1, 0.1)),
    "ml_basis_pursuit": CHAIN | dict(lams=(0.1, 0.1)),
    "holistic": CHAIN | dict(lam=0.1, zeros=1),
    "lasso_objective": ONE | dict(x=np.ones(N), lam=0.1),
    "duality_gap": ONE | dict(x=np.ones(N), lam=0.1),
    "lam_of_paper": {},
}
ALONE = "ista fista threshold lasso omp basis_pursuit bpdn half_quadratic"
LOCAL, BATCHES = "local_error local_sparsity", "lasso_batch omp_batch"
STEPPED = "ml_ista ml_fista ml_basis_pursuit layered_basis_pursuit"
DEEP = f"{STEPPED} layered_thresholding project holistic"
OF_GAPS = f"{ALONE.replace(' omp', '')} {LOCAL} lasso_path lasso_batch {DEEP}"


class Traced(NamedTuple):
    """An option that `jit` traces."""

    value: Any


VALUES = [
    # Operands
    (ALONE, dict(y=np.ones(N)), r"D has shape \(12, 16\).*Did you pass D\.T\?"),
    ("ista", dict(y=np.ones(M + 1)), ".*signal .m,. rather than a code"),
    ("ista basis_pursuit", dict(y=np.ones((7, M))), ".*jax.vmap over the rows"),
    ("ista", dict(y=np.ones((M, 7))), ".*in_axes=1"),
    ("ista", dict(y=np.ones((2, 2, M))), ".*over a batch"),
    (ALONE, dict(D=y), ".*expected .m, d."),
    (ALONE, dict(D=np.full((M, N), np.nan)), ".*NaN"),
    ("basis_pursuit", dict(D=np.ones((M, 0))), ".*at least one row and one column"),
    ("ista fista lasso lasso_batch bpdn half_quadratic", dict(D=0 * D), "D is zero"),
    ("lasso", dict(D=dictionaries.Conv(np.zeros((1, 1, 2)), M)), "D is zero"),
    ("lasso", dict(D=jax.device_put(0 * D), y=Traced(y)), "D is zero"),  # which the program knows
    (BATCHES, dict(Y=y), "Y has shape .* signals in rows"),
    (BATCHES, dict(Y=Y[:, :-1]), "Y has shape .* signals in rows"),
    (BATCHES, dict(Y=Y[None]), "Y has shape .* signals in rows"),
    (LOCAL, dict(y=y[1:]), ".*y has shape"),
    (LOCAL, dict(D=0 * F), "D_1 is zero"),
    (DEEP, dict(y=y[:-1]), ".*y has shape"),
    (DEEP, dict(y=np.stack([y, y])), ".*jax.vmap over the rows"),
    (DEEP, dict(Ds=()), ".*at least one dictionary"),
    (DEEP, dict(Ds=(E, D)), ".*must be as many as the rows"),
    (DEEP, dict(Ds=(D, E, E)), r"D_2 has shape \(16, 20\) but D_3 has shape \(16, 20\)"),
    (DEEP, dict(Ds=(D, np.where(E == E[0, 0], np.nan, E))), ".*NaN"),
    (DEEP, dict(Ds=D), ".*one dictionary"),
    (f"{STEPPED} project holistic", dict(Ds=(D, 0 * E)), "D_2 is zero"),
    # One penalty
    ("ista fista lasso lasso_batch half_quadratic project", dict(lam=-0.1), "lam must be non-neg"),
    ("ista fista", dict(lam=np.nan), "lam must be non-negative and not NaN"),
    ("lasso lasso_batch project local_sparsity", dict(lam=np.inf), "lam has NaN or infinite"),
    ("threshold", dict(theta=-0.1), "theta must be non-negative"),
    ("threshold", dict(theta=NAN), "theta must be non-negative"),
    (
        "lasso_objective duality_gap",
        dict(lam=np.ones((N, 1))),
        r"lam has shape \(16, 1\); expected",
    ),
    ("lasso lasso_batch", dict(lam=None), "expected one of lam and ratio"),
    ("lasso lasso_batch", dict(ratio=0.1), "expected one of lam and ratio"),
    ("lasso_path", dict(lam=[0.1]), "expected one of lam and ratio, got lam="),
    ("lasso_path", dict(ratio=0.1), r"ratio has shape \(\)"),
    ("lasso_path", dict(ratio=[-0.1]), "ratio must be non-negative"),
    ("lasso", dict(lam=None, ratio=-0.1), "ratio must be non-negative"),
    ("lasso lasso_batch", dict(lam=np.ones(3)), r"lam has shape \(3,\); expected \(\)"),
    ("lasso_batch", dict(lam=np.ones(BATCH)), r"lam has shape \(9,\); .* \(16,\), \(9, 1\)"),
    ("lasso_batch", dict(lam=None, ratio=np.ones(9)), r"ratio has shape \(9,\); expected"),
    ("lasso lasso_batch", dict(l2=-1.0), "l2 must be non-negative"),
    ("lasso_batch", dict(l2=np.inf), "l2 has NaN or infinite"),
    ("lasso lasso_batch", dict(l2=np.ones(2)), r"l2 has shape \(2,\)"),
    ("lam_of_paper", dict(weight=0.0), "weight is 0"),
    ("lam_of_paper", dict(weight=-1.0), "weight must be non-negative"),
    ("local_error", dict(radius=-0.1), "radius must be non-negative"),
    ("local_error", dict(radius=np.inf), "radius has NaN or infinite"),
    ("local_error", dict(radius=np.ones(2)), ".*expected one number"),
    ("local_sparsity", dict(lam=np.nan), "lam must be non-negative"),
    ("local_sparsity", dict(lam=np.ones(2)), ".*expected one number"),
    ("bpdn", dict(eps=0.0), "eps must be positive, got 0.0; try basis_pursuit"),
    ("bpdn", dict(eps=-1.0), "eps must be positive"),
    ("bpdn", dict(eps=np.nan), "eps has NaN"),
    ("bpdn", dict(eps=np.ones(2)), r"eps has shape \(2,\)"),
    # One for every layer
    (STEPPED, dict(lams=(0.1,)), "expected a tuple of 2 lams"),
    (STEPPED, dict(lams=(0.1,) * 3), "expected a tuple of 2 lams"),
    (STEPPED, dict(lams=0.1), "expected a tuple of 2 lams"),
    (STEPPED, dict(lams=np.full(2, 0.1)), "expected a tuple of 2 lams"),
    (STEPPED, dict(lams=(0.1, -0.1)), "lam_2 must be non-negative"),
    (STEPPED, dict(lams=(0.1, np.ones(3))), r"lam_2 has shape \(3,\)"),
    ("layered_thresholding", dict(thetas=None), "expected a tuple of 2 thetas"),
    ("layered_thresholding", dict(thetas=(0.1, -0.1)), "theta_2 must be non-negative"),
    ("layered_thresholding", dict(thetas=(0.1, np.ones(3))), r"theta_2 has shape \(3,\)"),
    ("holistic", dict(lam=-0.1), "lam_2 must be non-negative"),
    # Counts
    ("omp", dict(sparsity=None), "expected sparsity, tol or both, got neither"),
    ("omp", dict(sparsity=-1), "sparsity must be at least 0"),
    ("omp omp_batch", dict(sparsity=N + 1), "sparsity 17 exceeds the number of atoms 16"),
    ("omp_batch", dict(weights=-Y), "weights must be non-negative"),
    ("omp_batch", dict(weights=np.inf * np.ones(M)), "weights has NaN or infinite entries"),
    ("omp_batch", dict(weights=np.ones((BATCH, 3))), "weights have shape"),
    ("project", dict(lam=None), "expected sparsity or lam"),
    ("project", dict(sparsity=2), "expected sparsity or lam"),
    ("project", dict(lam=None, sparsity=21), "s_2 is 21 but D_2 has 20 atoms"),
    ("project", dict(lam=None, sparsity=-1), "s_2 must be at least 0"),
    ("project", dict(lam=None, sparsity=(1, 2, 3)), "expected a tuple of 2 sparsities"),
    ("project", dict(lam=None, sparsity=(17, 2)), "s_1 is 17 but D_1 has 16 atoms"),
    ("holistic", dict(zeros=17), "zeros.0. is 17 but x_1 has 16"),
    ("holistic", dict(zeros=(1, 2)), "expected a tuple of 1 zeros"),
    ("holistic", dict(sparsity=21), "sparsity is 21"),
    # Options
    (OF_GAPS, dict(tol=-1e-9), "tol must be positive"),
    ("omp", dict(tol=-1e-9), "tol must be non-negative"),
    ("ista fista basis_pursuit layered_basis_pursuit", dict(tol=0), "tol must be positive"),
    ("threshold bpdn half_quadratic basis_pursuit", dict(tol=np.nan), "tol must be positive"),
    ("omp", dict(tol=np.nan), "tol must be non-negative"),
    ("omp", dict(tol=np.ones(2)), r"tol has shape \(2,\)"),
    ("ista lasso project holistic ml_ista", dict(max_steps=-1), "max_steps must be at least 0"),
    ("ml_ista ml_fista", dict(step=0.0), "step must be in"),
    ("ml_ista ml_fista", dict(step=1.5), "step must be in"),
    ("ml_ista ml_fista", dict(step=np.nan), "step must be in"),
    ("lasso", dict(start=np.ones(3)), r"start has shape \(3,\); expected a code, \(16,\)"),
    ("lasso_batch", dict(start=np.ones(N)), r"start has shape \(16,\); expected \(9, 16\)"),
    ("ml_ista ml_basis_pursuit", dict(start=np.ones(3)), r"start has .*; expected x_J, \(20,\)"),
    ("lasso", dict(start=NAN), "start has NaN"),
    ("lasso_batch", dict(start=np.tile(NAN, (BATCH, 1))), "start has NaN"),
    ("half_quadratic", dict(p=0.0), "p must be in"),
    ("half_quadratic", dict(p=1.5), "p must be in .0, 1., got 1.5"),
    ("half_quadratic", dict(p=np.nan), "p must be in .0, 1., got nan"),
    ("half_quadratic", dict(beta=(2.0, 1.0)), "beta must be"),
    ("half_quadratic", dict(beta=3.0), "beta must be .first, last."),
    ("half_quadratic", dict(stages=0), "stages must be at least 1"),
    ("half_quadratic", dict(steps=0), "steps must be at least 1"),
]
REAL = "ista lasso lasso_batch"
TYPES = [
    (f"{ALONE} {DEEP}", dict(y=1j * y), ".*complex"),
    ("ista basis_pursuit", dict(y="abc"), ".*numeric"),
    (LOCAL, dict(D=np.asarray(dictionaries.dense(F))), "D is a .*; expected a Conv"),
    (DEEP, dict(Ds=3), ".*sequence of dictionaries"),
    (DEEP, dict(Ds=(D, 1j * E)), ".*complex"),
    *((REAL, dict(lam=bad), "lam must be real numbers, got") for bad in ("a", 1j, MASKED, {})),
    ("ista", dict(lam=[[0.1], [0.1, 0.1]]), "lam must be real numbers, got"),
    ("threshold", dict(theta=1j), "theta must be real numbers, got"),
    ("lasso", dict(l2="a"), "l2 must be real numbers, got"),
    ("omp", dict(tol="a"), "tol must be real numbers, got"),
    ("bpdn", dict(eps="small"), "eps is not a numeric array"),
    *(
        ("ista lasso bpdn threshold", dict(tol=bad), "tol must be a number")
        for bad in ("a", 1j, [0.1], True)
    ),
    ("ml_ista", dict(step="a"), "step must be a number"),
    ("half_quadratic", dict(beta=("a", "b")), "beta must be a number, got 'a'"),
    *(("ista fista", dict(max_steps=bad), "max_steps must be an int") for bad in (1.5, True, None)),
    ("omp", dict(sparsity=2.5), "sparsity must be an integer"),
    ("project", dict(lam=None, sparsity=1.5), "s_2 must be an integer"),
    ("holistic", dict(zeros=1.5), r"zeros\[0\] must be an integer"),
    ("omp", dict(sparsity=Traced(3)), "sparsity must be static"),
    ("half_quadratic", dict(p=Traced(0.5)), "p must be static"),
    ("ista fista", dict(max_steps=Traced(3)), "max_steps must be static"),
    ("ml_ista ml_fista", dict(step=Traced(0.5)), "step must be static"),
    ("lasso bpdn ml_ista ml_basis_pursuit holistic", dict(tol=Traced(0.1)), "tol must be static"),
]


@pytest.mark.parametrize("name", GIVEN)
def test_what_does_not_fit_is_refused_by_name(name):
    solve, rows = getattr(pursuit, name), [(ValueError, VALUES), (TypeError, TYPES)]
    for error, row in ((error, row) for error, table in rows for row in table):
        names, options, words = row
        if name not in names.split():
            continue
        given = GIVEN[name] | options
        traced = {k: v.value for k, v in given.items() if isinstance(v, Traced)}
        known = {k: v for k, v in given.items() if k not in traced}
        with pytest.raises(error, match=rf"^{name}: {words}"):
            if traced:
                jax.jit(lambda traced, known=known: solve(**known, **traced))(traced)
            else:
                solve(**known)


# A penalty, as it is given to each pursuit.
HELD = {
    "ista": lambda lam: dict(lam=lam),
    "threshold": lambda lam: dict(theta=lam),
    "lasso": lambda lam: dict(lam=lam),
    "lasso, l2": lambda lam: dict(l2=lam),
    "lasso_path": lambda lam: dict(lam=[0.1, lam], ratio=None),
    "lasso_batch": lambda lam: dict(lam=lam),
    "lasso_batch, l2": lambda lam: dict(l2=lam),
    "half_quadratic": lambda lam: dict(lam=lam, p=0.5),
    "project": lambda lam: dict(lam=lam),
    "ml_ista": lambda lam: dict(lams=(0.1, lam)),
}


@pytest.mark.parametrize("name", HELD)
def test_a_penalty_that_float32_does_not_hold_is_refused(name):
    solve = name.partition(",")[0]
    given = {k: jax.tree.map(np.float32, v) for k, v in GIVEN[solve].items() if k in "DsyY"}
    for value in (1e43, 1e-47):
        with pytest.raises(ValueError, match="leaves the range of float32; try signals"):
            getattr(pursuit, solve)(**GIVEN[solve] | given | HELD[name](value))


SINGLE = {
    "a matrix": D,
    "Conv": dictionaries.Conv(np.ones((2, 1, 3)), M),
    "Composed": dictionaries.Composed(D, np.eye(N)),
    "Sparse": dictionaries.Sparse(D, np.eye(N)),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_batch_of_dictionaries_is_refused_in_words(kind):
    several = jax.tree.map(lambda leaf: np.stack([leaf] * 3), SINGLE[kind])
    for name in ("lasso_batch", "omp_batch", "lasso"):
        with pytest.raises(ValueError, match=rf"^{name}: D .*expected .*\(m, d\)"):
            getattr(pursuit, name)(**GIVEN[name] | dict(D=several))


def test_a_dictionary_of_which_a_part_is_zero_is_not_zero():
    partly = dictionaries.Concatenated(D, jax.device_put(np.zeros((M, 2))))
    code = jax.eval_shape(lambda y: pursuit.lasso(partly, y, 0.1).x, y)  # which knows D
    assert code.shape == (N + 2,)
