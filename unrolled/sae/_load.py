"""Weights that other libraries have written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled import layers
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.files import check_file
from unrolled.layers import Encoder, Unrolled, repeat
from unrolled.sae._sae import SAE
from unrolled.training import from_safetensors

__all__ = ["load"]


KINDS = "relu", "topk", "batchtopk", "jumprelu", "gated"
_NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("relu", "topk"), ("b_enc",)),
    **dict.fromkeys(("batchtopk", "jumprelu"), ("b_enc", "threshold")),
    "gated": ("b_gate", "r_mag", "b_mag"),
}
# The names of the kinds in the configurations of other libraries.
_KINDS = {
    **{name: name for name in KINDS},
    **{"standard": "relu", "AutoEncoder": "relu", "AutoEncoderNew": "relu"},
    **{"AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk"},
    **{"MatryoshkaBatchTopKSAE": "batchtopk", "matryoshka_batchtopk": "batchtopk"},
    **{"JumpReluAutoEncoder": "jumprelu", "GatedAutoEncoder": "gated"},
}


@checked
def load(
    source: Mapping[str, Any] | str | Path,
    *,
    kind: str | None = None,
    k: int | None = None,
    centered: bool | None = None,
) -> SAE:
    r"""Load a sparse autoencoder from weights that SAELens or dictionary_learning have written.

    The encoder is x = a(W'(y) + b) with y = activation - center, where a is ReLU, JumpReLU, or
    TopK. BatchTopK becomes JumpReLU with the threshold that its training has estimated, as in both
    libraries. A gated encoder becomes JumpReLU, which gives the same codes:

    .. math:: 1[g + b_g > 0] \, relu(e^r g + b_m) = v \, 1[v > \theta], \quad v = e^r g + b_m, \quad
        \theta = \max(0, b_m - e^r b_g), \quad g = W'y.

    Args:
        source: a folder with `cfg.json` or `config.json` and the weights; a file of weights,
            `.safetensors` or `.npz` (Gemma Scope); or the weights by name. Names are those of
            SAELens (W_enc, b_enc, W_dec, b_dec, threshold; b_gate, r_mag, b_mag) or of
            dictionary_learning (encoder.weight, decoder.weight, ...).
        kind: "relu", "topk", "batchtopk", "jumprelu" or "gated"; None reads the kind from the
            configuration, or from the names of the weights if these decide.
        k: number of nonzeros of a TopK code; None reads it from the configuration or the weights.
        centered: whether the encoder subtracts the bias of the decoder from activations; None
            follows the configuration, or the library whose names the weights have.

    Returns:
        SAE, in float32 or wider, with one step.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another format; weights are missing, have other shapes or are not
            finite; the kind or k is not known; or activations are normalised token by token, which
            an encoder of this form cannot do.

    Reference: Rajamanoharan et al. (2024) for gated encoders as JumpReLU.

    Example:
        >>> D = ur.dictionaries.gaussian(0, 4, 8)
        >>> weights = {"W_enc": D, "b_enc": jnp.zeros(8), "W_dec": D.T, "b_dec": jnp.zeros(4)}
        >>> sae = ur.sae.load(weights | {"threshold": jnp.full(8, 0.1)})
        >>> x = sae.encode(D.T[:1])
        >>> bool(((x == 0) | (x > 0.1)).all())
        True
    """
    where = "sae.load"
    given, config = (source, {}) if isinstance(source, Mapping) else _read(Path(source))
    weights = _renamed(given)
    kind = _kind(kind, weights, config)
    k = _number(k, weights, config) if kind == "topk" else None
    arrays = {name: _array(value, name) for name, value in weights.arrays.items()}
    if missing := {"W_enc", "W_dec", *_NEEDED[kind]} - arrays.keys():
        raise ValueError(
            f"{where}: a {kind} autoencoder needs {', '.join(sorted(missing))}; source has "
            f"{', '.join(sorted(given)) or 'no weights'}"
        )
    if config.get("rescale_acts_by_decoder_norm"):  # SAELens keeps the largest x_i norm(d_i)
        arrays |= _with_unit_atoms(arrays)
    W, D = arrays["W_enc"], arrays["W_dec"].T
    center = arrays.get("b_dec", np.zeros(len(D), D.dtype))
    steps = _encoder(kind, W, arrays)
    shapes = (*map(np.shape, (W, *steps[1:], center)),)
    if W.ndim != 2 or shapes != (D.shape, D.shape[1:], D.shape[1:], D.shape[:1]):
        raise ValueError(f"{where}: the shapes of the weights do not fit: {_shapes(arrays)}")
    if centered is None:
        centered = _centered(weights, config)
    if not centered:  # the encoder sees the activation itself, y + center
        steps = steps._replace(bias=steps.bias + center @ steps.W)
    params = Unrolled(None, repeat(Encoder(*map(jnp.asarray, steps)), 1))
    return SAE(layers.sae(1, sparsity=k), params, jnp.asarray(D), jnp.asarray(center))


class Weights(NamedTuple):
    """Weights under the names of SAELens."""

    arrays: dict[str, Any]
    centered: bool  # whether the encoder subtracts b_dec, unless a configuration says otherwise


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The weights and the configuration of a folder or a file."""
    config: dict[str, Any] = {}
    folder = path if path.is_dir() else path.parent
    for name in ("cfg.json", "config.json"):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            config = {**config, **config.get("trainer", {})}  # as dictionary_learning nests it
            break
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in _READERS]
        files = [file for file in files if "sparsity" not in file.stem] or files
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "no file of weights"
            raise ValueError(f"sae.load: {path} has {names}; try the path of one file")
        path = files[0]
    check_file(path)
    if path.suffix not in _READERS:
        how = "; with torch, try safetensors.torch.save_file(torch.load(file), other)"
        raise ValueError(
            f"sae.load: {path.name} has the suffix {path.suffix!r}; expected one of "
            f"{', '.join(_READERS)}{how if path.suffix in ('.pt', '.pth') else ''}"
        )
    return _READERS[path.suffix](path), config


def _safetensors(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        return from_safetensors(file)[1]


def _npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


_READERS = {".safetensors": _safetensors, ".npz": _npz}

# The names of dictionary_learning, whose matrices are transposed.
_NAMES = {
    **{"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"},
    **{"bias": "b_dec", "decoder_bias": "b_dec", "decoder.bias": "b_dec"},
    **{"gate_bias": "b_gate", "mag_bias": "b_mag"},
}


def _renamed(given: Mapping[str, Any]) -> Weights:
    """The weights under the names of SAELens."""
    arrays = {}
    for name, value in given.items():
        turned = name in ("encoder.weight", "decoder.weight")
        arrays[_NAMES.get(name, name)] = np.asarray(value).T if turned else value
    # JumpReLU of both libraries and Gemma Scope code the activation itself, as does the
    # `AutoEncoderNew` of dictionary_learning, which alone has the name decoder.bias.
    theirs = "encoder.weight" in given
    return Weights(arrays, theirs and "decoder.bias" not in given)


def _kind(kind: str | None, weights: Weights, config: Mapping[str, Any]) -> str:
    """The kind of the encoder: as given, as the configuration says, or as the names show."""
    where, names = "sae.load", weights.arrays.keys()
    form = config.get("normalize_activations", "none")
    if form in ("layer_norm", "constant_norm_rescale"):
        raise ValueError(
            f"{where}: the autoencoder normalises each activation ({form}); normalise the "
            "activations before, and load the weights by name"
        )
    if kind is None:
        activation = config.get("activation_fn", config.get("activation_fn_str"))
        said = config.get("architecture", config.get("dict_class", activation))
        if (said, activation) == ("standard", "topk"):  # SAELens before 6.0
            said = "topk"
        if said is not None and said not in _KINDS:
            raise ValueError(
                f"{where}: the configuration has the kind {said!r}; expected one of "
                f"{', '.join(_KINDS)}"
            )
        kind = _KINDS.get(said)
    if kind is None and names >= {"r_mag", "b_gate"}:
        kind = "gated"
    elif kind is None and "k" not in names:
        kind = "jumprelu" if "threshold" in names else "relu"
    if kind not in KINDS:
        what = "the kind is not known: there is no configuration, and the weights have k"
        raise ValueError(
            f"{where}: {what if kind is None else f'unknown kind {kind!r}'}; expected one of "
            f"{', '.join(KINDS)}"
        )
    return kind


def _centered(weights: Weights, config: Mapping[str, Any]) -> bool:
    """Whether the encoder subtracts b_dec: as the configuration says, or as its library does."""
    if (said := config.get("dict_class")) is not None:  # of dictionary_learning
        return said not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    return bool(config.get("apply_b_dec_to_input", weights.centered or bool(config)))


def _with_unit_atoms(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder and decoder whose codes are multiplied by the norms of the atoms."""
    norms = np.linalg.norm(arrays["W_dec"], axis=1)
    unit = arrays["W_dec"] / np.where(norms > 0, norms, 1)[:, None]
    return {"W_enc": arrays["W_enc"] * norms, "b_enc": arrays["b_enc"] * norms, "W_dec": unit}


def _number(k: int | None, weights: Weights, config: Mapping[str, Any]) -> int:
    """The number of nonzeros of a TopK code."""
    for place in (config, config.get("activation_fn_kwargs", {}), weights.arrays):
        k = place.get("k") if k is None else k
    if k is None:
        raise ValueError("sae.load: a topk autoencoder needs k, the number of nonzeros of a code")
    return checks.as_index(np.asarray(k).item(), "k", "sae.load", least=1)


def _array(value: Any, name: str) -> np.ndarray:
    """A weight in float32 or wider, on the host."""
    array = np.asarray(value)
    array = array.astype(np.promote_types(array.dtype, np.float32))
    checks.finite(array, name, "sae.load")
    return array


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


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in sorted(arrays.items()))
