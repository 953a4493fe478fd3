"""Training end to end with optax, and the losses for it."""

from unrolled.training._fit import fit as fit
from unrolled.training._losses import deep as deep
from unrolled.training._losses import lasso as lasso
from unrolled.training._losses import log_nmse as log_nmse
from unrolled.training._losses import reconstruction as reconstruction
from unrolled.training._losses import supervised as supervised
from unrolled.training._records import Fit as Fit
from unrolled.training._records import History as History
from unrolled.training._records import NonFiniteError as NonFiniteError
from unrolled.training._records import Record as Record
from unrolled.training._records import Trained as Trained
