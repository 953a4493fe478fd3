"""Figures from arrays; matplotlib is imported when one is drawn.

No two curves of a figure share colour, dashes and marker, and a method has the same look in every
figure. Values outside the axes are marked at the border and named below it, as are those that are
no numbers.
"""

from unrolled._base import offer as _offer
from unrolled.plots._curves import *
from unrolled.plots._pictures import *

_offer(__name__)
