"""Named intermediate features of a model of flax.nnx."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from unrolled._arguments import checked
from unrolled._checks import Array

_RECORD = "tapped_outputs"


@checked
def tap(model: nnx.Module, *names: str, inputs: bool = False) -> "Tapped":
    """The model, which also hands out what its named submodules return.

    `outputs, features = tap(model, "conv1", "blocks.0")(x)`: features is a dictionary with one
    array per name. The tapped model shares all variables with the given one, which is not changed:
    who trains one of them trains the other, and both follow `model.train()` and `model.eval()`. It
    is a module itself, so that `nnx.jit`, `nnx.grad` and `nnx.Optimizer` take it.

    A name is the path of a submodule, its attributes and indices joined by dots. What counts is the
    call of the submodule: one that was called k > 1 times gives the k features "name[0]", ...,
    "name[k-1]". Attributes other than variables that a call of the model sets are lost. A tapped
    model calls copies of its modules, which no second tap reaches: give all names to one.

    Args:
        model: any nnx.Module.
        names: paths of submodules.
        inputs: hand out the first argument of their calls in place of what they return.

    Raises:
        TypeError: the model is not an nnx.Module, or a name not a string.
        ValueError: no names, a name twice or one that does not exist (the message lists those that
            do); when called, a submodule that the model does not call.

    Example:
        >>> from flax import nnx
        >>> class Net(nnx.Module):  # a model of your own
        ...     def __init__(self, rngs):
        ...         sizes = ((4, 3), (3, 2))
        ...         self.layers = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])
        ...     def __call__(self, x):
        ...         return self.layers[1](nnx.relu(self.layers[0](x)))
        >>> net, x = Net(nnx.Rngs(0)), jnp.ones((5, 4))
        >>> tapped = ur.models.tap(net, "layers.0")
        >>> outputs, features = tapped(x)
        >>> outputs.shape, features["layers.0"].shape
        ((5, 2), (5, 3))
    """
    return Tapped(model, names, inputs)


class Tapped(nnx.Module):
    """A model with the names of the submodules whose outputs it hands out; made by `tap`."""

    def __init__(self, model: nnx.Module, names: tuple[str, ...], inputs: bool = False):
        if not isinstance(model, nnx.Module):
            raise TypeError(f"tap: expected a model of flax.nnx, got {type(model).__name__}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tap: expected names that differ, got {names}")
        for name in names:
            submodule(model, name)
        self.model, self.names, self.inputs = model, names, inputs

    def __call__(self, *args: Any, **options: Any) -> tuple[Any, dict[str, Array]]:
        """The outputs of the model, and the features by name."""
        model = nnx.clone(self.model, variables=False)  # modules of its own, the same variables
        taps = {name: submodule(model, name) for name in self.names}
        for module in {id(module): module for module in taps.values()}.values():
            module.__class__ = _recording(type(module), self.inputs)
        outputs = model(*args, **options)
        features: dict[str, Array] = {}
        for name, module in taps.items():
            record = getattr(module, _RECORD, None)
            if record is None:
                raise ValueError(f"tap: the model does not call {name!r}; tap what it calls")
            calls = record.get_value()
            if len(calls) == 1:
                features[name] = calls[0]
            else:
                features |= {f"{name}[{k}]": output for k, output in enumerate(calls)}
        return outputs, features


@functools.cache
def _recording(cls: type, inputs: bool) -> type:
    """The class whose calls append what they return, or take, to a variable of the module."""

    class Recording(cls):
        def __call__(self, *args, **options):
            output = super().__call__(*args, **options)
            record = getattr(self, _RECORD, None)
            before = () if record is None else record.get_value()
            recorded = next(iter((*args, *options.values()))) if inputs else output
            setattr(self, _RECORD, nnx.Intermediate((*before, recorded)))
            return output

    Recording.__name__ = cls.__name__
    return Recording


@checked
def submodule(model: nnx.Module, name: str) -> nnx.Module:
    """The submodule at a path, as `tap` finds it.

    Raises:
        TypeError: the name is not a string.
        ValueError: there is none that can be called; the message lists those that exist.

    Example:
        >>> from flax import nnx
        >>> net = ur.models.LeNet5(rngs=nnx.Rngs(0))
        >>> ur.models.submodule(net, "conv1") is net.conv1
        True
    """
    if not isinstance(name, str):
        raise TypeError(f"tap: a name must be a string, got {name!r}")
    node: Any = model
    try:
        for part in name.split("."):
            node = _child(node, part)
    except (AttributeError, LookupError, ValueError):
        node = None
    if not (isinstance(node, nnx.Module) and callable(node)):
        modules = nnx.iter_modules(model)
        names = [".".join(map(str, path)) for path, node in modules if path and callable(node)]
        raise ValueError(
            f"tap: {type(model).__name__} has no submodule {name!r}; it has "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    return node


def _child(node: Any, part: str) -> Any:
    if isinstance(node, Mapping):
        return node[part]
    return node[int(part)] if isinstance(node, Sequence) else getattr(node, part)
