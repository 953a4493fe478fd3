"""The theory: coherence and what it allows, threshold schedules with certified errors, analytic weights.

Traceable functions work in the dtype of D; host functions return float64 records with `holds`.
"""

from unrolled.theory._activations import ActivationSchedule as ActivationSchedule
from unrolled.theory._activations import activation_schedule as activation_schedule
from unrolled.theory._activations import theorem_of as theorem_of
from unrolled.theory._coherence import Coherence as Coherence
from unrolled.theory._coherence import babel as babel
from unrolled.theory._coherence import coherence as coherence
from unrolled.theory._coherence import diagonal as diagonal
from unrolled.theory._coherence import max_sparsity as max_sparsity
from unrolled.theory._coherence import mutual_coherence as mutual_coherence
from unrolled.theory._coherence import rounding_guard as rounding_guard
from unrolled.theory._coherence import spark_bound as spark_bound
from unrolled.theory._coherence import sparsity_bound as sparsity_bound
from unrolled.theory._coherence import welch_bound as welch_bound
from unrolled.theory._convergence import AtomSchedule as AtomSchedule
from unrolled.theory._convergence import Plan as Plan
from unrolled.theory._convergence import atom_coherence as atom_coherence
from unrolled.theory._convergence import atom_schedule as atom_schedule
from unrolled.theory._convergence import noise_gain as noise_gain
from unrolled.theory._convergence import objective_bound as objective_bound
from unrolled.theory._convergence import plan as plan
from unrolled.theory._convergence import sequence_bound as sequence_bound
from unrolled.theory._convergence import support_bound as support_bound
from unrolled.theory._generalized import AtMost as AtMost
from unrolled.theory._generalized import GeneralizedCoherence as GeneralizedCoherence
from unrolled.theory._generalized import MinimalEntryWeights as MinimalEntryWeights
from unrolled.theory._generalized import coherence_at_most as coherence_at_most
from unrolled.theory._generalized import generalized_coherence as generalized_coherence
from unrolled.theory._generalized import minimax_weights as minimax_weights
from unrolled.theory._generalized import minimal_entry_weights as minimal_entry_weights
from unrolled.theory._schedules import ErrorBar as ErrorBar
from unrolled.theory._schedules import Schedule as Schedule
from unrolled.theory._schedules import code_bound as code_bound
from unrolled.theory._schedules import deep_schedule as deep_schedule
from unrolled.theory._schedules import error_bar as error_bar
from unrolled.theory._schedules import schedule as schedule
from unrolled.theory._weights import frobenius_weights as frobenius_weights
