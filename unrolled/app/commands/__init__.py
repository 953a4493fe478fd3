"""The commands of `unrolled`. Each is a file with its parser, what it runs and what it prints."""

from unrolled.app.commands import (
    _certify,
    _compare,
    _doctor,
    _encode,
    _experiment,
    _export,
    _learn,
    _train,
)
from unrolled.app.commands._cache import kept_programs
from unrolled.app.commands._console import never_silent, plain_warnings, tolerant_streams

# Modules with `add_parser(commands)`, whose parser sets `run(arguments)`, in the order of the help.
COMMANDS = (_compare, _certify, _learn, _train, _encode, _export, _experiment, _doctor)

__all__ = ["COMMANDS", "kept_programs", "never_silent", "plain_warnings", "tolerant_streams"]
