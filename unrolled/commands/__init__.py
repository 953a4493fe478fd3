"""The experiments behind the command line, and the report that they are written into."""

from unrolled.commands._certificate import (
    Request,
    certificate,
)
from unrolled.commands._config import (
    all_options,
)
from unrolled.commands._doctor import (
    doctor,
)
from unrolled.commands._encode import (
    encode,
)
from unrolled.commands._inputs import (
    read_dictionary,
)
from unrolled.commands._job import (
    sections,
)
from unrolled.commands._report import (
    check_folder,
    write,
)
from unrolled.commands._settings import (
    METHODS,
    Settings,
)
from unrolled.commands._train import (
    run,
)

__all__ = [
    "METHODS",
    "all_options",
    "Request",
    "Settings",
    "certificate",
    "check_folder",
    "doctor",
    "encode",
    "read_dictionary",
    "run",
    "sections",
    "write",
]
