"""Training end to end with optax, and the losses for it."""

from unrolled.training._fit import Fit as Fit
from unrolled.training._fit import History as History
from unrolled.training._fit import NonFiniteError as NonFiniteError
from unrolled.training._fit import Record as Record
from unrolled.training._fit import Trained as Trained
from unrolled.training._fit import fit as fit
from unrolled.training._losses import deep as deep
from unrolled.training._losses import lasso as lasso
from unrolled.training._losses import log_nmse as log_nmse
from unrolled.training._losses import reconstruction as reconstruction
from unrolled.training._losses import supervised as supervised
