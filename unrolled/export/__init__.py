"""A solver in one file that runs without this library: its program, with weights and dictionary."""

from unrolled._base import offer as _offer
from unrolled.export._file import *

_offer(__name__, results="Exported", own="PLATFORMS")
