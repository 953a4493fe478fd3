"""Theory to params: one function per family, returning what training returns, and what theory says of given weights.

Host functions: coherences and schedules are computed in float64 from D and W as they are stored, and the leaves have the
dtype of D. If the hypotheses of the theory fail, params come back all the same and a `HypothesisWarning` says by how much.
"""

from unrolled.analytic._calibrate import calibrate as calibrate
from unrolled.analytic._params import alista as alista
from unrolled.analytic._params import dsc as dsc
from unrolled.analytic._params import hyperlista as hyperlista
from unrolled.analytic._params import ista as ista
from unrolled.analytic._params import lista_cp as lista_cp
from unrolled.analytic._schedules import Certified as Certified
from unrolled.analytic._schedules import HypothesisWarning as HypothesisWarning
from unrolled.analytic._schedules import block_schedule as block_schedule
from unrolled.analytic._schedules import certify as certify
from unrolled.analytic._schedules import chain_schedules as chain_schedules
from unrolled.analytic._schedules import plan as plan
from unrolled.analytic._table import WeightsRow as WeightsRow
from unrolled.analytic._table import WeightsTable as WeightsTable
from unrolled.analytic._table import weights_table as weights_table
from unrolled.theory import frobenius_weights as frobenius_weights
from unrolled.theory import minimax_weights as minimax_weights
