"""Training with optax, end to end or stage by stage, the losses for it, and the search over a grid where it is not needed."""

from unrolled.training._checkpoint import Checkpoint as Checkpoint
from unrolled.training._curriculum import curriculum as curriculum
from unrolled.training._fit import fit as fit
from unrolled.training._losses import deep as deep
from unrolled.training._losses import lasso as lasso
from unrolled.training._losses import log_nmse as log_nmse
from unrolled.training._losses import reconstruction as reconstruction
from unrolled.training._losses import supervised as supervised
from unrolled.training._manifest import CheckpointError as CheckpointError
from unrolled.training._records import Fit as Fit
from unrolled.training._records import History as History
from unrolled.training._records import NonFiniteError as NonFiniteError
from unrolled.training._records import Record as Record
from unrolled.training._records import Trained as Trained
from unrolled.training._scale_steps import StepRates as StepRates
from unrolled.training._scale_steps import scale_steps as scale_steps
from unrolled.training._search import Search as Search
from unrolled.training._search import search as search
from unrolled.training._weights import Restored as Restored
from unrolled.training._weights import restore as restore
from unrolled.training._weights import save as save
