"""Layers: solvers cut after K steps. A family has a step and params; one loop runs all steps."""

from unrolled._base import offer as _offer
from unrolled.layers._alista import *
from unrolled.layers._alista_rt import *
from unrolled.layers._hyperlista import *
from unrolled.layers._ista import *
from unrolled.layers._layer import *
from unrolled.layers._lista import *
from unrolled.layers._message_passing import *
from unrolled.layers._records import *
from unrolled.layers._shrinking import *
from unrolled.pursuit import State as State
from unrolled.records import Interned as Interned
from unrolled.records import option as option

_offer(__name__, "Interned", "State", "option")
