"""Learned params beside analytic ones: their errors step by step, and what training changes."""

from unrolled._base import offer as _offer
from unrolled.compare._compare import *
from unrolled.compare._compare import compared, with_seconds
from unrolled.compare._comparison import *
from unrolled.compare._evolution import *
from unrolled.compare._measure import *

_offer(__name__)
