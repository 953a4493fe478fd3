"""Pursuits: solvers that take `(D, y, ...)` for one signal and say how good their code is."""

from unrolled.pursuit._basis_pursuit import basis_pursuit as basis_pursuit
from unrolled.pursuit._basis_pursuit import layered_basis_pursuit as layered_basis_pursuit
from unrolled.pursuit._ista import Momentum as Momentum
from unrolled.pursuit._ista import Pursuit as Pursuit
from unrolled.pursuit._ista import State as State
from unrolled.pursuit._ista import duality_gap as duality_gap
from unrolled.pursuit._ista import fista as fista
from unrolled.pursuit._ista import fista_step as fista_step
from unrolled.pursuit._ista import ista as ista
from unrolled.pursuit._ista import ista_step as ista_step
from unrolled.pursuit._ista import lasso_objective as lasso_objective
from unrolled.pursuit._ista import threshold as threshold
