"""The commands of `unrolled`. Each file has the parser of a command, its run and its output."""

from unrolled.app.commands import (
    _certify,
    _compare,
    _doctor,
    _encode,
    _experiment,
    _export,
    _learn,
    _recommend,
    _sae,
    _train,
)
from unrolled.app.commands._console import (
    kept_programs,
    never_silent,
    plain_warnings,
    tolerant_streams,
)

# One `add_parser(commands)` per command, in the order of the help; it sets `run(arguments)`.
COMMANDS = (
    _compare.add_parser,
    _certify.add_parser,
    _learn.add_parser,
    _recommend.add_parser,
    _sae.add_parser,
    _train.add_parser,
    _encode.add_parser,
    _export.add_parser,
    _experiment.add_parser,
    _doctor.add_parser,
)

__all__ = ["COMMANDS", "kept_programs", "never_silent", "plain_warnings", "tolerant_streams"]
