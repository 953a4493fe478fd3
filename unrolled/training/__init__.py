"""Training with optax: end to end, stage by stage, or by a search over a grid.

`fit` and `curriculum` train layers and networks, `unsupervised` trains by one recipe for signals
without codes, and `recommend` says whether to train. `save` and `restore` write and read the
result, and a `Checkpoint` lets an interrupted run resume. `Sample`, `Loss` and `Callback` are the
types of the functions that you pass to `fit`. Use `sparse_feature_penalty`, `save_tree` and
`restore_tree` for your own networks.
"""

from unrolled._base import offer as _offer
from unrolled.training._candidates import next_to_trained
from unrolled.training._curriculum_and_search import *
from unrolled.training._files import *
from unrolled.training._files import from_safetensors
from unrolled.training._fit import *
from unrolled.training._forms import *
from unrolled.training._forms import digest, versions
from unrolled.training._loop import drive
from unrolled.training._losses import *
from unrolled.training._losses import lasso_loss as lasso  # its former name, in no list
from unrolled.training._objective import *
from unrolled.training._objective import Data, Objective
from unrolled.training._options import *
from unrolled.training._options import OptionsWithoutProgress, PlainRun, Reports, RunOptions
from unrolled.training._recipe import *
from unrolled.training._recipe import law_of
from unrolled.training._recommend import *
from unrolled.training._signals import *
from unrolled.training._signals import known_batch
from unrolled.training._stages import run_stages
from unrolled.training._types import *
from unrolled.training._types import as_dictionaries
from unrolled.training._unsupervised import *
from unrolled.training._unsupervised import family_without_codes, has_recipe, run_lengths
from unrolled.training._verdict import *
from unrolled.training._verdict import LASSO_BATCH, verdict
from unrolled.training._watch import writer
from unrolled.training._weights import *
from unrolled.training._withheld import *

_offer(
    __name__,
    results="Candidate CheckpointError Fit History Made NonFiniteError Recommendation Record "
    "Restored Search Start StepRates Trained Tried Withheld",
    own="Callback Loss Sample Signals merge split trainable with_unit_atoms",
)
