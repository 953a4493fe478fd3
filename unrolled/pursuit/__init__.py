"""Pursuits: solvers that take `(D, y, ...)` for one signal and report how good their code is."""

from unrolled._base import offer as _offer
from unrolled.pursuit._basis_pursuit import *
from unrolled.pursuit._by_name import *
from unrolled.pursuit._by_name import (
    CHAIN,
    DEFAULT_LAM,
    LARGEST_LAM,
    ROUNDINGS,
    check_dictionaries,
    check_options,
    default_lam,
    is_relative,
    lasso_optima,
    lasso_problem,
    negligible,
    pursue,
)
from unrolled.pursuit._choose_lam import *
from unrolled.pursuit._costs import (
    EXACT,
    FEWEST,
    MOST_SPREAD,
    clock,
    in_turns,
    lasso_solvers,
    repaid_after,
    repeated,
)
from unrolled.pursuit._gap import *
from unrolled.pursuit._gap import proved_gap
from unrolled.pursuit._ista import *
from unrolled.pursuit._ista import with_step_size
from unrolled.pursuit._lasso import *
from unrolled.pursuit._lasso import Lasso, lasso_from
from unrolled.pursuit._lasso_batch import *
from unrolled.pursuit._lasso_batch import lasso_of_rows, minima, weights_of_many
from unrolled.pursuit._layered import *
from unrolled.pursuit._multilayer import *
from unrolled.pursuit._omp import *
from unrolled.pursuit._omp_batch import *
from unrolled.pursuit._omp_batch import match
from unrolled.pursuit._problem import *
from unrolled.pursuit._problem import static_tol
from unrolled.pursuit._sparse import SparseCodes
from unrolled.pursuit._splitting import *
from unrolled.pursuit._torus import Torus, is_convolution

_offer(
    __name__,
    results="ChosenLam Constrained DeepPursuit Layered Path Pursuit SparseCodes",
    own="Momentum PURSUITS State extrapolated fista_step half_quadratic_step ista_step "
    "lipschitz ml_ista_step register sweep",
)
