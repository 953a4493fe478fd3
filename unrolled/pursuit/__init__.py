"""Pursuits: solvers that take `(D, y, ...)` for one signal and report how good their code is."""

from unrolled.pursuit._basis_pursuit import basis_pursuit
from unrolled.pursuit._bpdn import bpdn
from unrolled.pursuit._gap import duality_gap, lasso_objective
from unrolled.pursuit._half_quadratic import half_quadratic, half_quadratic_step
from unrolled.pursuit._holistic import holistic
from unrolled.pursuit._ista import fista, ista, ml_fista, ml_ista
from unrolled.pursuit._lasso import Path, lam_max, lam_of_paper, lasso, lasso_path
from unrolled.pursuit._lasso_batch import lasso_batch
from unrolled.pursuit._layered import (
    Layered,
    layered_basis_pursuit,
    layered_thresholding,
    threshold,
)
from unrolled.pursuit._local import Constrained, local_error, local_sparsity
from unrolled.pursuit._ml_basis_pursuit import ml_basis_pursuit
from unrolled.pursuit._omp import omp, omp_batch
from unrolled.pursuit._problem import DeepPursuit, Pursuit
from unrolled.pursuit._project import project
from unrolled.pursuit._registry import PURSUITS, register
from unrolled.pursuit._steps import (
    Momentum,
    State,
    extrapolated,
    fista_step,
    ista_step,
    lipschitz,
    ml_ista_step,
    sweep,
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
