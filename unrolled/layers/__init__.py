"""Layers: solvers cut after K steps. A family is a `step` and its params; `unroll` runs any of them."""

from unrolled.layers._alista import alista as alista
from unrolled.layers._ista import StepAndThreshold as StepAndThreshold
from unrolled.layers._ista import fista as fista
from unrolled.layers._ista import ista as ista
from unrolled.layers._lista import Matrices as Matrices
from unrolled.layers._lista import MatricesAndThreshold as MatricesAndThreshold
from unrolled.layers._lista import Threshold as Threshold
from unrolled.layers._lista import lista as lista
from unrolled.layers._lista_cp import WeightsAndThreshold as WeightsAndThreshold
from unrolled.layers._lista_cp import lista_cp as lista_cp
from unrolled.layers._unroll import Fixed as Fixed
from unrolled.layers._unroll import Layer as Layer
from unrolled.layers._unroll import Unrolled as Unrolled
from unrolled.layers._unroll import Weights as Weights
from unrolled.layers._unroll import stack as stack
from unrolled.layers._unroll import unroll as unroll
from unrolled.layers._unroll import unstack as unstack
