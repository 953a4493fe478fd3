"""The studies that the commands show, as records with text, data, tables and figures.

`dictionary_report` and `certify_weights` give the guarantees of theory; `known_codes` and
`unknown_codes` compare analytic with learned weights; `certified_regime` and `certified_chain`
measure errors and print them next to their bounds; `certify_drawn` counts the drawn codes that are
proved signal by signal. Every record has `.text()` and `.to_dict()`, and most records have
`.figure()`.
"""

from unrolled._base import offer as _offer
from unrolled.app.studies._certificate import *
from unrolled.app.studies._certified import *
from unrolled.app.studies._drawn import *
from unrolled.app.studies._drawn import DRAWS
from unrolled.app.studies._known_codes import *
from unrolled.app.studies._overview import *
from unrolled.app.studies._steps import *
from unrolled.app.studies._steps import (
    BY_DEFAULT,
    CHOSEN_ON,
    METHODS,
    PATCH,
    all_methods,
    plan,
    seldom,
    silent,
)
from unrolled.app.studies._study import Compared
from unrolled.app.studies._unknown_codes import *

_offer(
    __name__,
    results="CertifiedChain CertifiedRegime CertifiedRun ChainReport ChainRun DictionaryReport "
    "DrawnProofs KnownChain KnownCodes Overview Picture Pictures ProvedShare Report "
    "Samples Starts UnknownCodes WeightsCertificate",
)
