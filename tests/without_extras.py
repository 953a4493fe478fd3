"""A plugin of pytest: only jax, jaxlib, optax, numba and their dependencies are installed.

`python -m pytest -p without_extras tests/library/theory`, with `tests` on the path of Python.
"""

import sys

ABSENT = {"flax", "orbax", "rich", "matplotlib", "sklearn", "PIL"}
ABSENT |= {"flatbuffers", "threadpoolctl"}


class Absent:
    """Finds none of them, wherever they lie."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Absent)
