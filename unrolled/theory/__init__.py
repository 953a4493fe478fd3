"""Theory: coherence, certified threshold schedules, uniqueness, stability and analytic weights.

Traceable functions work in the dtype of D. Host functions compute in float64, and most return a
record with a field `holds`.
"""

from unrolled._base import offer as _offer
from unrolled.dictionaries import inner_products
from unrolled.theory._atom_programs import *
from unrolled.theory._atom_programs import in_float64
from unrolled.theory._certificates import *
from unrolled.theory._codes import *
from unrolled.theory._coherence import *
from unrolled.theory._coherence import diagonal, product_sizes, row_maxima, weights_coherence
from unrolled.theory._convergence import *
from unrolled.theory._generalized import *
from unrolled.theory._lasso_codes import *
from unrolled.theory._models import *
from unrolled.theory._parts import *
from unrolled.theory._rounding import OF_SIGNAL, Rounding, residual_error
from unrolled.theory._schedules import *
from unrolled.theory._signals import *
from unrolled.theory._signals import MeasuredLayer, Noise, are_found, codes_of, stored_up
from unrolled.theory._spectra import *
from unrolled.theory._spectra import pseudo_inverse, spectral_radius
from unrolled.theory._stability import *
from unrolled.theory._state_evolution import *
from unrolled.theory._supports import *
from unrolled.theory._tubes import *
from unrolled.theory._uniqueness import *

_offer(
    __name__,
    results="ActivationSchedule AtMost AtomSchedule BlockCoherence Certificate CodeCertificate "
    "Coherence Conditioning CscFeasibility ErrorBar Feasibility GeneralizedCoherence "
    "HolisticStability LassoCertificate LayeredSchedule LocalRate MinimalEntryWeights "
    "OracleErrors Plan ProductStability Schedule Signals Stability StateEvolution StepsTo "
    "SupportRecovery Supports Tolerance Tube Uniqueness",
    own="MessagePassing",
)
