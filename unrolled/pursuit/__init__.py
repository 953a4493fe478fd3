"""Pursuits: solvers that take `(D, y, ...)` for one signal and report how good their code is."""

from unrolled.pursuit._basis_pursuit import (
    basis_pursuit,
    layered_basis_pursuit,
)
from unrolled.pursuit._bpdn import (
    bpdn,
)
from unrolled.pursuit._ista import (
    Momentum,
    Pursuit,
    State,
    duality_gap,
    fista,
    fista_step,
    ista,
    ista_step,
    lasso_objective,
    lipschitz,
    threshold,
)
from unrolled.pursuit._lasso import (
    lam_max,
    lam_of_paper,
    lasso,
)
from unrolled.pursuit._lasso_batch import (
    lasso_batch,
)
from unrolled.pursuit._lasso_path import (
    Path,
    lasso_path,
)
from unrolled.pursuit._omp import (
    omp,
)

__all__ = [
    "Momentum",
    "Path",
    "Pursuit",
    "State",
    "basis_pursuit",
    "bpdn",
    "duality_gap",
    "fista",
    "fista_step",
    "ista",
    "ista_step",
    "lam_max",
    "lam_of_paper",
    "lasso",
    "lasso_batch",
    "lasso_objective",
    "lasso_path",
    "layered_basis_pursuit",
    "lipschitz",
    "omp",
    "threshold",
]
