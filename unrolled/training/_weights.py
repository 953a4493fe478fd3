"""Weights in one small file that numpy (`.npz`) or any safetensors reader can open."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unrolled._base import checks
from unrolled._base.doors import Result, checked
from unrolled._base.text import an
from unrolled.layers import Layer, fold_thresholds
from unrolled.networks import Network
from unrolled.records import differences
from unrolled.training import _forms
from unrolled.training._files import FORMATS, Steps, check_parent, read, write
from unrolled.training._forms import CheckpointError, DamagedError
from unrolled.training._types import Dictionaries, Fit, Model, as_dictionaries

__all__ = ["Restored", "restore", "save"]


class Restored(Result):
    """The contents of a weights file or a folder of saved steps."""

    params: Any  # the params of the layer or network
    D: Any  # the dictionary, a tuple for a network; None if it was not saved
    layer: Any  # the layer or network of the params; None if it was not saved
    metadata: dict  # the metadata given to `save`, and "versions"


@checked
def save(
    path: str | Path,
    params: Any,
    D: Dictionaries | None = None,
    layer: Model | Any = None,
    *,
    dictionary: bool = True,
    **metadata: Any,
) -> Path:
    """Write params, their D and their layer to a `.npz` or `.safetensors` file, without pickle.

    The file holds every array in its dtype under its path in the tree, such as "params.shared.W".
    (In `.npz`, 8-bit and bfloat16 floats are stored as unsigned integers.) A manifest holds the
    form of the tree, the layer with all its options, the sha256 of each array and of D, the
    versions of the libraries, and `metadata`. `save` writes a temporary file and renames the
    complete file, so a previous file stays whole until then.

    `ur.save` is this function. To write a program that runs without this library, use
    `export.save`.

    Args:
        path: a file name that ends in .npz or .safetensors.
        params: the params of a layer, a tuple of params for a network, or the result of `fit`. For
            a result of `fit`, `save` writes the best params, D and the model.
        D: a dictionary, plain or structured, or a tuple of dictionaries for a network.
        layer: the layer or network of the params, which `restore` returns. Params of your own
            family can be saved only with their layer.
        dictionary: False saves only the hash of D, for a large D that you keep elsewhere.
        metadata: anything that JSON can hold, but not NaN or infinity; `restore` adds "versions".
            For a result of `fit`, `save` adds "seconds", the seconds of the training.

    Returns:
        The absolute path.

    Raises:
        ValueError: the suffix is neither .npz nor .safetensors, params do not fit the layer, or an
            entry of metadata is named "versions".
        TypeError: a tree, dtype, option or metadata cannot be saved, params belong to another
            family than the layer, or params are traced.
        CheckpointError: the file cannot be written (the message says how many bytes are free).

    Example:
        >>> import tempfile, pathlib
        >>> layer, D = ur.alista(3, support=(0.1, 0.3)), ur.dictionaries.dct(4, 6)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.npz"
        >>> path = ur.training.save(path, layer.init(None, D), D, layer)
        >>> ur.training.restore(path).layer
        alista(3, support=(0.1, 0.3))
    """
    path = Path(path).absolute()
    to_bytes, _ = _format(path, "save")
    if "versions" in metadata:
        raise ValueError("save: the metadata has versions of its own; expected another name")
    if isinstance(params, Fit):
        D = params.D if D is None else D
        layer = params.model if layer is None else layer
        metadata.setdefault("seconds", params.seconds)
        params = params.best
    if isinstance(params, Layer | Network):
        raise TypeError(f"save: params is {an(params.family)}; try save(path, params, D, layer)")
    checks.on_host((params, D), "save", "params or D")
    check_parent(path)
    D = None if D is None else as_dictionaries(D, "save")
    try:
        metadata = json.loads(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"save: metadata must be what JSON can hold ({error})") from error
    form: dict[str, Any] = {}
    if layer is not None:
        if not isinstance(layer, Layer | Network):
            raise TypeError(f"save: layer must be a Layer or a Network, got {type(layer).__name__}")
        if D is None:
            _forms.check_form(params, layer)
        else:
            layer.check(params, D)  # type: ignore[arg-type]  # a tuple for a network
        form["layer"] = _forms.describe_model(layer)
    form["params"], leaves = _forms.describe_params(params, layer)
    form["D"], leaves_D = _forms.describe(D if dictionary else None, "D")
    digest = {"D sha256": None if D is None else _forms.digest(D)}
    parts: dict[str, Any] = dict(form=form, metadata=metadata, **digest)
    write("save", path, "weights", leaves | leaves_D, to_bytes, **parts)
    return path


@checked
def load(
    path: str | Path, like: Any = None, D: Dictionaries | None = None, *, step: int | None = None
) -> Restored:
    """Read a file written by `save`, bit for bit, in the saved dtypes, after checking every hash.

    `ur.load` and `training.restore` are this function. If `path` is the folder of a
    `Checkpoint`, `load` reads the best params of a saved step.

    Args:
        path: the file, or the folder.
        like: params with the structure, shapes and dtypes that the saved params must have.
        D: a dictionary that must equal the D saved with the weights.
        step: the saved step to read from a folder; None reads the newest step.

    Raises:
        FileNotFoundError: the file does not exist, or the folder lacks the step.
        ValueError: the suffix is neither .npz nor .safetensors, or `step` is given for a file.
        CheckpointError: the file is damaged, truncated or has a newer format; this process does not
            know the family; the saved params differ from `like` (the message has a table); D
            differs from the saved D; or the file has 64-bit numbers and the process runs without
            them.

    Example:
        >>> import tempfile, pathlib
        >>> layer, D = ur.lista_cp(2), ur.dictionaries.dct(4, 6)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> path = ur.training.save(path, layer.init(None, D), D, layer, dataset="digits")
        >>> saved = ur.training.restore(path, D=D)
        >>> saved.layer.apply(saved.params, saved.D, D[:, 0]).shape, saved.metadata["dataset"]
        ((6,), 'digits')
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; {_files_beside(path)}")
    if step is not None and not path.is_dir():
        raise ValueError(f"{path} is a file, which has no steps; expected a folder")
    from_bytes = None if path.is_dir() else _format(path, "load")[1]
    try:
        if from_bytes is None:
            manifest, arrays = _read_folder(path, step)
        else:
            manifest, arrays = read(path, "weights", from_bytes)
        entries = manifest["leaves"]
        leaves = {n: _forms.to_device(entries[n]["dtype"], a) for n, a in arrays.items()}
        form = manifest["form"]
        layer = _forms.build_model(form["layer"]) if form.get("layer") else None
        params = _forms.build_params(form["params"], leaves, layer)
        params = fold_thresholds(params) if path.is_dir() else params
        saved = _forms.build(form["D"], leaves)
        saved = None if saved is None else as_dictionaries(saved, "D")
    except _forms.UnknownFamilyError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (FileNotFoundError, CheckpointError):
        raise
    except Exception as error:  # whatever a reader of foreign bytes raises
        raise DamagedError(f"{path}: {error}") from error
    if like is not None:
        _check_like(params, like, str(path))
    if D is not None and _forms.digest(as_dictionaries(D, "load")) != manifest["D sha256"]:
        how = "with another D" if manifest["D sha256"] else "without a D"
        raise CheckpointError(f"{path}: the weights were saved {how}; expected the one given")
    return Restored(params, saved, layer, manifest["metadata"] | {"versions": manifest["versions"]})


restore = load  # messages name `load`, as in `ur.load`


def _read_folder(path: Path, step: int | None) -> tuple[dict, dict]:
    """The manifest of a saved step, and the arrays of its best params and its dictionary."""
    steps = Steps(path)
    saved = steps.all()
    if not saved or step not in (None, *saved):
        there = saved or sorted(p.name for p in path.iterdir())[:8]
        raise FileNotFoundError(
            f"{path}: no saved step{'' if step is None else f' {step}'}; "
            + (f"there are {there}" if there else "the folder is empty")
        )
    manifest, arrays = steps.load(saved[-1] if step is None else step)
    if manifest["form"] is None:
        raise ValueError(
            "its params or dictionary are of a kind of the caller's own; "
            "run the same call of `fit` again"
        )
    best = {name: name.partition(".")[2] for name in arrays if name.startswith(("best.", "fixed."))}
    config = manifest["config"]
    manifest |= {
        "leaves": {leaf: manifest["leaves"][name] for name, leaf in best.items()},
        "D sha256": config["D sha256"],
        "metadata": {"step": manifest["step"], **config},
    }
    return manifest, {leaf: arrays[name] for name, leaf in best.items()}


def _check_like(params: Any, like: Any, where: str) -> None:
    """Raise CheckpointError, with a table, if structure, shapes or dtypes differ from `like`."""
    saved, requested = (
        {"form": _forms.kinds(tree), **_forms.types_of(_forms.names({"params": tree}))}
        for tree in (params, like)
    )
    if report := differences(saved, requested):
        raise CheckpointError(
            f"{where}: the saved params are not like the requested ones:\n{report}"
        )


def _files_beside(path: Path) -> str:
    """The files in the folder of a file that does not exist."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    beside = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".npz", ".safetensors"))
    return f"next to it: {', '.join(beside[:8]) or 'no weights'}"


def _format(path: Path, where: str) -> tuple[Callable, Callable]:
    """The writer and the reader of the format of a file."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{where}: {path} must end in {' or '.join(FORMATS)}")
    return FORMATS[path.suffix]
