"""Whole studies as records with text, data, tables and figures: what the commands show.

`certify` and `certify_weights` say what theory certifies; `known_codes` and `unknown_codes` compare
analytic with learned weights; `certified_regime` and `certified_chain` measure errors under their
bounds. Every record has `.text()`, `.to_dict()` and `.figure()`.
"""

from unrolled.app.studies._certificate import (
    ChainReport,
    DictionaryReport,
    Report,
    WeightsCertificate,
    certify,
    certify_weights,
)
from unrolled.app.studies._certified import (
    CertifiedChain,
    CertifiedRegime,
    CertifiedRun,
    ChainRun,
    certified_chain,
    certified_regime,
)
from unrolled.app.studies._known_codes import KnownChain, KnownCodes, known_codes
from unrolled.app.studies._steps import (
    BY_DEFAULT,
    CHOSEN_ON,
    METHODS,
    PATCH,
    Picture,
    Pictures,
    Samples,
    Starts,
    all_methods,
    curve_rows,
    from_theory,
    photograph_patches,
    plan,
    planted,
    resampler,
    seldom,
    silent,
    split,
)
from unrolled.app.studies._unknown_codes import UnknownCodes, unknown_codes

__all__ = [
    "BY_DEFAULT",
    "CHOSEN_ON",
    "CertifiedChain",
    "CertifiedRegime",
    "CertifiedRun",
    "ChainReport",
    "ChainRun",
    "DictionaryReport",
    "KnownChain",
    "KnownCodes",
    "METHODS",
    "PATCH",
    "Picture",
    "Pictures",
    "Report",
    "Samples",
    "Starts",
    "UnknownCodes",
    "WeightsCertificate",
    "all_methods",
    "certified_chain",
    "certified_regime",
    "certify",
    "certify_weights",
    "curve_rows",
    "from_theory",
    "known_codes",
    "photograph_patches",
    "planted",
    "resampler",
    "split",
    "unknown_codes",
]


def __dir__() -> list[str]:
    return __all__
