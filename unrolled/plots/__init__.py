"""Figures from arrays; matplotlib is imported when the first figure is drawn.

Any two curves of a figure differ in colour, dashes or marker, and a method has the same look in
every figure. A figure marks values outside the axes at the border, and names the curves with such
values below the border. Curves with NaN are named there, too.
"""

from unrolled._base import offer as _offer
from unrolled.plots._costs import *
from unrolled.plots._curves import *
from unrolled.plots._pictures import *

_offer(__name__, own="COLOURS costs figure name_lines penalties styles")
