"""Nodes of pytrees that `jax.export` can write: they may be arguments of an exported function."""

import json
from contextlib import suppress
from typing import Any

from jax import export


def exportable(cls: type) -> None:
    """Let `jax.export` write a record (a NamedTuple), or a node whose static part JSON can hold.

    A class that is defined anew keeps the entry of the first, as JAX has one per name.
    """
    name = f"{cls.__module__.partition('._')[0]}.{cls.__name__}"
    with suppress(ValueError):
        if hasattr(cls, "_fields"):
            export.register_namedtuple_serialization(cls, serialized_name=name)
        else:
            export.register_pytree_node_serialization(
                cls,
                serialized_name=name,
                serialize_auxdata=lambda static: json.dumps(static).encode(),
                deserialize_auxdata=lambda text: _tuples(json.loads(text)),
            )


def _tuples(value: Any) -> Any:
    """Tuples where JSON has lists: static fields are hashable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
