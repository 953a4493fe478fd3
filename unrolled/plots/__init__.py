"""Figures from arrays; matplotlib is imported when one is drawn.

No two curves of a figure share colour, dashes and marker, and a method has the same look in every
figure. A figure marks values outside the axes at the border and names them below the border, and
does the same with NaN and infinities.
"""

from unrolled._base import offer as _offer
from unrolled.plots._curves import *
from unrolled.plots._pictures import *

_offer(__name__, own="COLOURS figure name_lines styles")
