"""Pursuits: solvers that take `(D, y, ...)` for one signal and report how good their code is."""

from unrolled.pursuit._basis_pursuit import basis_pursuit, bpdn
from unrolled.pursuit._by_name import (
    CHAIN,
    DEFAULT_LAM,
    LARGEST_LAM,
    PURSUITS,
    ROUNDINGS,
    check_dictionaries,
    check_options,
    default_lam,
    is_relative,
    lasso_optima,
    pursue,
    register,
    zero_beside_largest,
)
from unrolled.pursuit._gap import duality_gap, lasso_objective
from unrolled.pursuit._ista import (
    Momentum,
    State,
    extrapolated,
    fista,
    fista_step,
    ista,
    ista_step,
    lipschitz,
    ml_fista,
    ml_ista,
    ml_ista_step,
    sweep,
)
from unrolled.pursuit._lasso import Path, lam_max, lam_of_paper, lasso, lasso_path
from unrolled.pursuit._lasso_batch import lasso_batch, rough_codes
from unrolled.pursuit._layered import (
    Layered,
    layered_basis_pursuit,
    layered_thresholding,
    project,
    threshold,
)
from unrolled.pursuit._multilayer import holistic, ml_basis_pursuit
from unrolled.pursuit._omp import match, omp, omp_batch
from unrolled.pursuit._problem import DeepPursuit, Pursuit
from unrolled.pursuit._splitting import (
    Constrained,
    half_quadratic,
    half_quadratic_step,
    local_error,
    local_sparsity,
)

__all__ = [
    "Constrained",
    "DeepPursuit",
    "Layered",
    "Momentum",
    "PURSUITS",
    "Path",
    "Pursuit",
    "State",
    "basis_pursuit",
    "bpdn",
    "duality_gap",
    "extrapolated",
    "fista",
    "fista_step",
    "half_quadratic",
    "half_quadratic_step",
    "holistic",
    "ista",
    "ista_step",
    "lam_max",
    "lam_of_paper",
    "lasso",
    "lasso_batch",
    "lasso_objective",
    "lasso_path",
    "layered_basis_pursuit",
    "layered_thresholding",
    "lipschitz",
    "local_error",
    "local_sparsity",
    "ml_basis_pursuit",
    "ml_fista",
    "ml_ista",
    "ml_ista_step",
    "omp",
    "omp_batch",
    "project",
    "register",
    "sweep",
    "threshold",
]
