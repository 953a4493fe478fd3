"""Theory: coherence, certified threshold schedules, uniqueness, stability and analytic weights.

Traceable functions work in the dtype of D; host functions return float64 records with a field
`holds`.
"""

from unrolled.theory._activations import (
    ActivationSchedule,
    activation_schedule,
    theorem_of,
)
from unrolled.theory._certificates import (
    Certificate,
    certify,
)
from unrolled.theory._coherence import (
    Coherence,
    babel,
    coherence,
    diagonal,
    inner_products,
    max_sparsity,
    mutual_coherence,
    rounding_guard,
    spark_bound,
    sparsity_bound,
    weights_coherence,
    welch_bound,
)
from unrolled.theory._convergence import (
    AtomSchedule,
    Plan,
    atom_coherence,
    atom_schedule,
    error_gain,
    noise_gain,
    objective_bound,
    plan,
    sequence_bound,
    support_bound,
)
from unrolled.theory._generalized import (
    AtMost,
    GeneralizedCoherence,
    MinimalEntryWeights,
    coherence_at_most,
    generalized_coherence,
    minimal_entry_weights,
    minimax_weights,
)
from unrolled.theory._layered import (
    LayeredSchedule,
    layered_penalties,
    layered_thresholds,
)
from unrolled.theory._models import (
    CscFeasibility,
    Feasibility,
    is_csc_feasible,
    is_feasible,
    stripe_norm,
)
from unrolled.theory._schedules import (
    ErrorBar,
    Schedule,
    code_bound,
    deep_schedule,
    error_bar,
    schedule,
)
from unrolled.theory._stability import (
    HolisticStability,
    ProductStability,
    Stability,
    holistic_stability,
    model_stability,
    noise_stability,
    perturbed_eps,
    product_stability,
    stability,
)
from unrolled.theory._uniqueness import (
    SupportRecovery,
    Uniqueness,
    recover_on_supports,
    uniqueness,
)
from unrolled.theory._weights import (
    frobenius_weights,
    pseudo_inverse,
)

__all__ = [
    "ActivationSchedule",
    "AtMost",
    "AtomSchedule",
    "Certificate",
    "Coherence",
    "CscFeasibility",
    "ErrorBar",
    "Feasibility",
    "GeneralizedCoherence",
    "HolisticStability",
    "LayeredSchedule",
    "MinimalEntryWeights",
    "Plan",
    "ProductStability",
    "Schedule",
    "Stability",
    "SupportRecovery",
    "Uniqueness",
    "activation_schedule",
    "atom_coherence",
    "atom_schedule",
    "babel",
    "certify",
    "code_bound",
    "coherence",
    "coherence_at_most",
    "deep_schedule",
    "diagonal",
    "error_bar",
    "error_gain",
    "frobenius_weights",
    "generalized_coherence",
    "holistic_stability",
    "inner_products",
    "is_csc_feasible",
    "is_feasible",
    "layered_penalties",
    "layered_thresholds",
    "max_sparsity",
    "minimal_entry_weights",
    "minimax_weights",
    "model_stability",
    "mutual_coherence",
    "noise_gain",
    "noise_stability",
    "objective_bound",
    "perturbed_eps",
    "plan",
    "product_stability",
    "pseudo_inverse",
    "recover_on_supports",
    "rounding_guard",
    "schedule",
    "sequence_bound",
    "spark_bound",
    "sparsity_bound",
    "stability",
    "stripe_norm",
    "support_bound",
    "theorem_of",
    "uniqueness",
    "weights_coherence",
    "welch_bound",
]
