"""The experiments behind the command line, and the report that they are written into."""

from unrolled._experiments._certificate import Request as Request
from unrolled._experiments._certificate import certificate as certificate
from unrolled._experiments._config import OPTIONS as OPTIONS
from unrolled._experiments._doctor import doctor as doctor
from unrolled._experiments._encode import encode as encode
from unrolled._experiments._inputs import read_dictionary as read_dictionary
from unrolled._experiments._job import sections as sections
from unrolled._experiments._report import check_folder as check_folder
from unrolled._experiments._report import write as write
from unrolled._experiments._settings import METHODS as METHODS
from unrolled._experiments._settings import Settings as Settings
from unrolled._experiments._train import run as run
