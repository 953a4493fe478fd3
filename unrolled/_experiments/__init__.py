"""The experiments behind `unrolled compare`, and the report that they are written into."""

from unrolled._experiments._certified import certified_regime as certified_regime
from unrolled._experiments._certified import chain as chain
from unrolled._experiments._known_codes import known_codes as known_codes
from unrolled._experiments._pictures import Pictures as Pictures
from unrolled._experiments._pictures import photograph_patches as photograph_patches
from unrolled._experiments._pictures import unknown_codes as unknown_codes
from unrolled._experiments._report import check_folder as check_folder
from unrolled._experiments._report import environment as environment
from unrolled._experiments._report import write as write
from unrolled._experiments._settings import METHODS as METHODS
from unrolled._experiments._settings import Problem as Problem
from unrolled._experiments._settings import Settings as Settings
from unrolled._experiments._settings import given_problem as given_problem
from unrolled._experiments._settings import planted_problem as planted_problem
