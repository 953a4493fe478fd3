"""Weights that other libraries have written."""

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unrolled import layers
from unrolled._base.arguments import checked
from unrolled._base.files import check_file
from unrolled.layers import Encoder, Unrolled, repeat
from unrolled.sae._formats import ENCODER_BIASES, FORMATS, KINDS, NAMES, Format, Read
from unrolled.sae._sae import SAE
from unrolled.training import from_safetensors

__all__ = ["load"]


_NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("relu", "topk"), ("b_enc",)),
    **dict.fromkeys(("batchtopk", "jumprelu"), ("b_enc", "threshold")),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
_CONFIGS = "cfg.json", "config.json", "hyperparams.json"


@checked
def load(
    source: Mapping[str, Any] | str | Path,
    *,
    kind: str | None = None,
    k: int | None = None,
    centered: bool | None = None,
) -> SAE:
    r"""Load a sparse autoencoder from weights that another library has written.

    The encoder is x = a(W'(y) + b) with y = activation - center, where a is ReLU, JumpReLU, or
    TopK. Codes and decoded activations are those of the library. BatchTopK becomes JumpReLU with
    the threshold that its training has estimated, as in the libraries. A gated encoder becomes
    JumpReLU, which gives the same codes:

    .. math:: 1[g + b_g > 0] \, relu(e^r g + b_m) = v \, 1[v > \theta], \quad v = e^r g + b_m, \quad
        \theta = \max(0, b_m - e^r b_g), \quad g = W'y.

    Args:
        source: a folder with a configuration and weights of SAELens, dictionary_learning,
            sparsify, Gemma Scope or Llama Scope; a file of weights, `.safetensors`, `.npz`, or
            `.pt` if torch is installed; or the weights by name. Names are those of SAELens (W_enc,
            b_enc, W_dec, b_dec, threshold; b_gate, r_mag, b_mag) or of dictionary_learning
            (encoder.weight, decoder.weight, ...).
        kind: "relu", "topk", "batchtopk", "jumprelu" or "gated"; None reads the kind from the
            configuration, or from the names of the weights if these decide.
            ReLU is never the default.
        k: number of nonzeros of a TopK code; None reads it from the configuration or the weights.
        centered: whether the encoder subtracts the bias of the decoder from activations; None
            follows the configuration, or the library whose names the weights have.

    Returns:
        SAE, in float32 or wider, with one step.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged or has another format; a configuration is not understood;
            weights are missing, have other shapes or are not finite; the kind or k is not known;
            the encoder belongs to a transcoder; or activations are normalised token by token,
            which an encoder of this form cannot do.

    Not claimed: the scale of a data set, by which SAELens multiplies activations before it calls an
    encoder ("expected_average_only_in"): no file has this scale.

    Reference: Rajamanoharan et al. (2024) for gated encoders as JumpReLU.

    Example:
        >>> D = ur.dictionaries.gaussian(0, 4, 8)
        >>> weights = {"W_enc": D, "b_enc": jnp.zeros(8), "W_dec": D.T, "b_dec": jnp.zeros(4)}
        >>> sae = ur.sae.load(weights | {"threshold": jnp.full(8, 0.1)})
        >>> x = sae.encode(D.T[:1])
        >>> bool(((x == 0) | (x > 0.1)).all())
        True
    """
    if isinstance(source, Mapping):
        with _naming("source"):
            return _made(source, {}, kind, k, centered)
    path, config = _places(Path(source))
    said = {}
    if config is not None:
        with _naming(config, "; expected an object of JSON"):
            said = _json(config)
    with _naming(path, f"; expected weights of {', '.join(form.library for form in FORMATS)}"):
        if config is None and "transcoder" in str(path.resolve()):
            raise ValueError(
                "its path names a transcoder; try the weights of an autoencoder by name"
            )
        weights = _READERS[path.suffix](path)
    with _naming(path if config is None else f"{config} with {path.name}"):
        return _made(weights, said, kind, k, centered)


@contextmanager
def _naming(file: Any, expected: str = "") -> Iterator[None]:
    """Raise ValueError with the name of a file for every error that its contents cause."""
    try:
        with np.errstate(all="ignore"):  # numbers that overflow are refused
            yield
    except Exception as error:  # readers raise a dozen types
        words = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"sae.load: {file}: {words}{expected}") from None


def _places(path: Path) -> tuple[Path, Path | None]:
    """The file of weights of a path, and the file of its configuration."""
    folder = path if path.is_dir() else path.parent
    folders = (folder, folder.parent) if folder.name == "checkpoints" else (folder,)
    configs = [at / name for at in folders for name in _CONFIGS if (at / name).is_file()]
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in _READERS]
        files = files or sorted((path / "checkpoints").glob("final.*"))  # of Llama Scope
        files = [file for file in files if "sparsity" not in file.stem] or files
        if len({file.with_suffix("") for file in files}) == 1:  # converted from torch
            files = sorted(files, key=lambda file: [*_READERS].index(file.suffix))[:1]
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "no file of weights"
            raise ValueError(f"sae.load: {path} has {names}; try the path of one file")
        path = files[0]
    check_file(path)
    if path.suffix not in _READERS:
        raise ValueError(
            f"sae.load: {path} has the suffix {path.suffix!r}; expected one of "
            f"{', '.join(_READERS)}"
        )
    return path, next(iter(configs), None)


def _json(path: Path) -> dict[str, Any]:
    if not isinstance(config := json.loads(path.read_text()), dict):
        raise ValueError(f"the configuration is of the type {type(config).__name__}")
    return config


def _safetensors(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        return from_safetensors(file)[1]


def _npz(path: Path) -> Mapping[str, Any]:
    # A damaged file stays open if NumPy opens it.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _torch(path: Path) -> Mapping[str, Any]:
    """The tensors of a file of torch, which executes nothing that the file says."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise ValueError(
            "torch is not installed; where it is, try safetensors.torch.save_file("
            f"{{n: t.contiguous() for n, t in torch.load({path.name!r}, weights_only=True)"
            f".items()}}, {path.stem + '.safetensors'!r})"
        ) from None
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensors, Mapping):
        raise ValueError(f"the file has a {type(tensors).__name__}; expected tensors by name")
    half = torch.bfloat16  # which NumPy does not know
    return {n: (t.float() if t.dtype == half else t).detach().numpy() for n, t in tensors.items()}


_READERS = {".safetensors": _safetensors, ".npz": _npz, ".pt": _torch, ".pth": _torch}


def _made(
    given: Mapping[str, Any],
    config: Mapping[str, Any],
    kind: str | None,
    k: int | None,
    centered: bool | None,
) -> SAE:
    """The autoencoder of weights and their configuration."""
    form, read = _format(given, config, kind)
    arrays = _renamed(given, form)
    if read.threshold is not None and "threshold" not in arrays:
        arrays["threshold"] = _array(read.threshold, "jump_relu_threshold")
    kind = read.kind if kind is None else kind
    if kind not in KINDS:
        what = "the kind is not known: neither a configuration nor the names of the weights decide"
        raise ValueError(
            f"{what if kind is None else f'unknown kind {kind!r}'}; try kind= with one of "
            f"{', '.join(KINDS)}"
        )
    if missing := {"W_enc", "W_dec", *_NEEDED[kind]} - arrays.keys():
        raise ValueError(
            f"a {kind} autoencoder needs {', '.join(sorted(missing))}; source has "
            f"{', '.join(sorted(given)) or 'no weights'}"
        )
    m, d = _sizes(arrays, config, form)
    dtype = np.result_type(arrays["W_enc"], arrays["W_dec"])
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    k = _nonzeros(read.k if k is None else k, d) if kind == "topk" else None
    norms = np.linalg.norm(arrays["W_dec"], axis=1)
    norms = np.where(norms > 0, norms, 1)
    arrays["W_enc"] = arrays["W_enc"] * read.scale
    units = None
    if read.by_norms and kind == "jumprelu":
        arrays["threshold"] = arrays["threshold"] / norms
    elif read.with_norms or (
        read.by_norms and kind == "topk" and np.ptp(norms) > 1e-6 * norms.max()
    ):
        units = None if read.with_norms else jnp.asarray(norms)
        arrays |= {"W_enc": arrays["W_enc"] * norms, "b_enc": arrays["b_enc"] * norms}
        arrays["W_dec"] = arrays["W_dec"] / norms[:, None]
    D = arrays["W_dec"].T / read.scale
    center = arrays.get("b_dec", np.zeros(m, D.dtype)) / read.scale
    steps = _encoder(kind, arrays["W_enc"], arrays)
    if not (read.centered if centered is None else centered):
        # The encoder sees the activation itself, y + center.
        steps = steps._replace(bias=steps.bias + center @ steps.W)
    params = Unrolled(None, repeat(Encoder(*map(_finite, steps, steps._fields)), 1))
    return SAE(
        layers.sae(1, sparsity=k), params, _finite(D, "W_dec"), _finite(center, "b_dec"), units
    )


def _format(
    given: Mapping[str, Any], config: Mapping[str, Any], kind: str | None
) -> tuple[Format, Read]:
    """The first format that knows a configuration, and what the configuration says."""
    for form in (*FORMATS, NAMES):
        if form.known(config):
            return form, form.read(config, given)
    if kind is None:
        raise ValueError(
            f"no library is known for a configuration with the entries {', '.join(config)}; try "
            "kind= and centered="
        )
    return NAMES, NAMES.read({}, given)


def _renamed(given: Mapping[str, Any], form: Format) -> dict[str, np.ndarray]:
    """The arrays that codes depend on, under the names of SAELens."""
    arrays = {}
    for name, value in given.items():
        new = form.names.get(name, name)
        if new == "log_threshold":
            new, value = "threshold", np.exp(_array(value, name))
        if new in ("W_enc", "W_dec", "b_dec", *ENCODER_BIASES):
            array = _array(value, name)
            arrays[new] = array.T if name in form.turned else array
        elif str(name).split(".")[0] not in form.unused:
            raise ValueError(f"no autoencoder of {form.library} has an array {name}")
    return arrays


def _array(value: Any, name: str) -> np.ndarray:
    """A weight in float32 or wider, on the host."""
    array = np.asarray(value)
    if array.dtype.kind in "fiu" or array.dtype.name == "bfloat16":
        array = array.astype(np.promote_types(array.dtype, np.float32))
        if np.isfinite(array).all():
            return array
        raise ValueError(f"{name} has NaN or infinite entries")
    raise ValueError(f"{name} has the dtype {array.dtype}; expected real numbers")


def _finite(array: np.ndarray, name: str) -> Any:
    """An array of JAX; ValueError if JAX's dtype or a product of weights overflows."""
    made = jnp.asarray(array)
    if not jnp.isfinite(made).all():
        raise ValueError(f"{name} exceeds the range of {made.dtype}")
    return made


def _sizes(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], form: Format
) -> tuple[int, int]:
    """m and d, if all shapes and the configuration have them."""
    m, d = (*arrays["W_enc"].shape, 0, 0)[:2]
    expected = {"W_enc": (m, d), "W_dec": (d, m), "b_dec": (m,)}
    nested = config.get("trainer", config)
    said = [nested.get(name, size) for name, size in zip(form.width, (m, d))]
    fit = all(
        a.shape == expected.get(name, (d,)) or (name == "threshold" and a.shape in ((), (1,)))
        for name, a in arrays.items()
    )
    if not fit or not m * d or said != [m, d][: len(said)]:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in sorted(arrays.items()))
        sizes = ", ".join(f"{name} = {size!r}" for name, size in zip(form.width, said))
        raise ValueError(
            f"the shapes of the weights do not fit: {shapes}{'; ' if sizes else ''}{sizes}"
        )
    return m, d


def _nonzeros(k: Any, d: int) -> int:
    """The number of nonzeros of a TopK code."""
    if k is None:
        raise ValueError("a topk autoencoder needs k, the number of nonzeros of a code; try k=")
    k = k if isinstance(k, bool) else np.asarray(k).tolist()
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= d:
        raise ValueError(f"k is {k!r}; expected an integer from 1 to {d}")
    return k


def _encoder(kind: str, W: Any, arrays: Mapping[str, Any]) -> Encoder:
    """The step of an encoder that sees activations minus b_dec."""
    zero = np.zeros(W.shape[-1:], W.dtype)
    if kind == "gated":
        gain = np.exp(arrays["r_mag"])
        bias = arrays["b_mag"]
        return Encoder(W * gain, bias, np.maximum(bias - gain * arrays["b_gate"], 0))
    if kind in ("jumprelu", "batchtopk"):  # ReLU acts before a negative threshold
        return Encoder(W, arrays["b_enc"], zero + np.maximum(arrays["threshold"], 0))
    return Encoder(W, arrays["b_enc"], zero)
