"""unrolled: sparse-coding solvers as networks in JAX, with weights from theory or from training."""

from unrolled import activations as activations
from unrolled import analytic as analytic
from unrolled import compare as compare
from unrolled import datasets as datasets
from unrolled import dictionaries as dictionaries
from unrolled import layers as layers
from unrolled import metrics as metrics
from unrolled import networks as networks
from unrolled import nnx as nnx
from unrolled import plots as plots
from unrolled import problems as problems
from unrolled import pursuit as pursuit
from unrolled import realize as realize
from unrolled import theory as theory
from unrolled import training as training
from unrolled.activations import shrink as shrink
from unrolled.activations import soft_threshold as soft_threshold
from unrolled.layers import alista as alista
from unrolled.layers import lista as lista
from unrolled.layers import lista_cp as lista_cp
from unrolled.networks import dsc as dsc
from unrolled.theory import mutual_coherence as mutual_coherence
from unrolled.training import fit as fit
