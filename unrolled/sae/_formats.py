"""The formats of other libraries: one entry of a table for each."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

KINDS = "relu", "topk", "batchtopk", "jumprelu", "gated"
ENCODER_BIASES = "b_enc", "threshold", "b_gate", "r_mag", "b_mag"
_TURNED = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}  # as torch.nn.Linear keeps them
_LINEAR = {**_TURNED, "encoder.bias": "b_enc"}
_DATASET = "dataset_average_activation_norm"


class Read(NamedTuple):
    """What a configuration says of an encoder."""

    kind: str | None
    k: Any = None
    centered: bool = True  # whether the encoder subtracts b_dec from activations
    scale: float = 1.0  # that multiplies activations before the encoder, which leaves them so
    by_norms: bool = False  # norms of atoms multiply entries before the activation compares them
    with_norms: bool = False  # the library's codes keep these norms as factors
    threshold: float | None = None  # of all entries, where the configuration has it


class Format(NamedTuple):
    """A library's files."""

    library: str
    tested: str  # the versions whose files the tests read
    known: Callable[[Mapping[str, Any]], bool]  # whether a configuration is the library's
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], Read]  # of configuration and weights
    names: Mapping[str, str] = {}  # the names of other arrays than W_enc, W_dec, b_enc, b_dec
    turned: tuple[str, ...] = ()  # arrays that are kept transposed
    unused: tuple[str, ...] = ()  # arrays and prefixes of arrays that codes do not depend on
    width: tuple[str, ...] = ()  # the entries of a configuration that say m, and then d


def choice(config: Mapping[str, Any], name: str, kinds: Mapping[Any, Any], *default: Any) -> Any:
    """What a table says about an entry of a configuration, which has to be in the table."""
    said = config.get(name, *default)
    if not isinstance(said, str | bool | None) or said not in kinds:
        raise ValueError(
            f"{name} is {said!r}; expected one of {', '.join(map(repr, kinds))}, because the codes "
            "of others cannot be computed"
        )
    return kinds[said]


def flag(config: Mapping[str, Any], name: str, default: bool | None = None) -> bool:
    """A Boolean of a configuration."""
    if not isinstance(said := config.get(name, default), bool):
        raise ValueError(f"{name} is {said!r}; expected true or false")
    return said


def _refused(config: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError if one of the names is set: the encoder has another form."""
    for name in names:
        if flag(config, name, False):
            raise ValueError(f"{name} is true; expected an autoencoder of one matrix, without it")


def _saelens(config: Mapping[str, Any], weights: Mapping[str, Any]) -> Read:
    plain = {None: "none", False: "none", "none": "none"}
    # The library scales activations by the mean norm of a data set before it calls the encoder.
    choice(config, "normalize_activations", {**plain, True: "", "expected_average_only_in": ""})
    choice(config, "reshape_activations", {None: "", "none": "", "hook_z": ""})
    name = "activation_fn" if "activation_fn" in config else "activation_fn_str"
    activation = choice(config, name, {None: None, "relu": "relu", "topk": "topk"})
    kinds = {kind: kind for kind in KINDS if kind != "relu"}
    kinds |= {"standard": activation or "relu", "matryoshka_batchtopk": "batchtopk"}
    # Up to version 5 the architecture may be missing, and topk is a standard one.
    kind = choice(config, "architecture", kinds) if "architecture" in config else activation
    kwargs = config.get("activation_fn_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"activation_fn_kwargs is {kwargs!r}; expected an object")
    if "scaling_factor" in weights and not np.all(np.asarray(weights["scaling_factor"]) == 1):
        raise ValueError("scaling_factor differs from 1; expected a factor that is folded")
    # A batchtopk folder is of a run; its threshold is in units of the norms if these count.
    norms = "rescale_acts_by_decoder_norm"
    by_norms = flag(config, norms, None if kind == "batchtopk" else False)
    by_norms = by_norms and kind in ("topk", "batchtopk")
    centered = flag(config, "apply_b_dec_to_input", True)
    k = config.get("k", kwargs.get("k"))
    return Read(kind, k, centered, by_norms=by_norms, with_norms=by_norms)


def _dictionary_learning(config: Mapping[str, Any], weights: Mapping[str, Any]) -> Read:
    if not isinstance(config := config.get("trainer", config), dict):
        raise ValueError(f"trainer is {config!r}; expected an object")
    kinds = {"AutoEncoder": "relu", "AutoEncoderNew": "relu", "AutoEncoderTopK": "topk"}
    kinds |= {"BatchTopKSAE": "batchtopk", "MatryoshkaBatchTopKSAE": "batchtopk"}
    kinds |= {"JumpReluAutoEncoder": "jumprelu", "GatedAutoEncoder": "gated"}
    kind = choice(config, "dict_class", kinds)
    k = config.get("k", weights.get("k"))
    if "k" in weights and np.asarray(weights["k"]).tolist() != k:
        raise ValueError(f"k is {k!r}, the weights have k = {weights['k']}; expected equal numbers")
    return Read(kind, k, config["dict_class"] not in ("AutoEncoderNew", "JumpReluAutoEncoder"))


def _sparsify(config: Mapping[str, Any], weights: Mapping[str, Any]) -> Read:
    _refused(config, "transcode", "skip_connection", "signed")
    return Read(choice(config, "activation", {"topk": "topk"}, "topk"), config.get("k"))


def _gemma_scope_2(config: Mapping[str, Any], weights: Mapping[str, Any]) -> Read:
    _refused(config, "affine_connection")
    _same(config, "hf_hook_point_in", "hf_hook_point_out")
    return Read("jumprelu", centered=False)


def _llama_scope(config: Mapping[str, Any], weights: Mapping[str, Any]) -> Read:
    _refused(config, "use_glu_encoder")
    _same(config, "hook_point_in", "hook_point_out")
    kind = choice(config, "act_fn", {kind: kind for kind in ("relu", "topk", "jumprelu")})
    scale = 1.0
    if choice(config, "norm_activation", {"inference": False, "dataset-wise": True}):
        norms = config.get(_DATASET) or {"in": weights.get(f"{_DATASET}.{config['hook_point_in']}")}
        if not isinstance(norms, dict) or norms.get("out", norms.get("in")) != norms.get("in"):
            raise ValueError(f"{_DATASET} is {norms!r}; expected one number for in and out")
        scale = math.sqrt(_number(config, "d_model")) / _number(norms, "in")
    centered = flag(config, "apply_decoder_bias_to_pre_encoder")
    return Read(
        kind,
        config.get("top_k"),
        centered and flag(config, "use_decoder_bias", True),
        scale,
        flag(config, "sparsity_include_decoder_norm"),
        threshold=config.get("jump_relu_threshold") if kind == "jumprelu" else None,
    )


def _same(config: Mapping[str, Any], first: str, second: str) -> None:
    """Raise ValueError if activations of one place are coded as those of another."""
    ends = config.get(first), config.get(second, config.get(first))
    if not isinstance(ends[0], str) or ends[0] != ends[1]:
        raise ValueError(
            f"{first} is {ends[0]!r} and {second} is {ends[1]!r}; expected one place, because a "
            "transcoder has no decoder of its own input"
        )


def _number(config: Mapping[str, Any], name: str) -> float:
    """A positive number of a configuration."""
    said = np.asarray(config.get(name)) if not isinstance(config.get(name), bool) else np.array("")
    if said.size != 1 or said.dtype.kind not in "iuf" or not 0 < said.item() < math.inf:
        raise ValueError(f"{name} is {config.get(name)!r}; expected a positive number")
    return float(said.item())


_OF_SAELENS = {"architecture", "activation_fn", "activation_fn_str", "apply_b_dec_to_input"}
_OF_SAELENS |= {"hook_point", "hook_name"}

FORMATS = (
    Format(
        "Gemma Scope 2",
        "the format of 2025",
        lambda config: config.get("architecture") == "jump_relu",
        _gemma_scope_2,
        names={"w_enc": "W_enc", "w_dec": "W_dec"},
    ),
    Format(
        "dictionary_learning",
        "0.1.0",
        lambda config: "trainer" in config or "dict_class" in config,
        _dictionary_learning,
        names={
            **{**_LINEAR, "bias": "b_dec", "decoder_bias": "b_dec", "decoder.bias": "b_dec"},
            **{"gate_bias": "b_gate", "mag_bias": "b_mag"},
        },
        turned=tuple(_TURNED),
        unused=("k", "group_sizes"),
        width=("activation_dim", "dict_size"),
    ),
    Format(
        "Llama Scope",
        "hyperparams.json of 2024, and config.json of R1-Distill",
        lambda config: "act_fn" in config,
        _llama_scope,
        names={**_LINEAR, "decoder.bias": "b_dec", "log_jumprelu_threshold": "log_threshold"},
        turned=tuple(_TURNED),
        unused=(_DATASET,),
        width=("d_model", "d_sae"),
    ),
    Format(
        "sparsify",
        "1.3.3",
        lambda config: "expansion_factor" in config and not _OF_SAELENS & {*config},
        _sparsify,
        names=_LINEAR,
        turned=("encoder.weight",),
        width=("d_in",),
    ),
    Format(
        "SAELens",
        "6.54.12, and configurations of 3 to 5",
        lambda config: bool(_OF_SAELENS & {*config}),
        _saelens,
        names={"topk_threshold": "threshold"},
        unused=("scaling_factor",),
        width=("d_in", "d_sae"),
    ),
)


def by_names(config: Mapping[str, Any], weights: Mapping[str, Any]) -> Read:
    """What the names of weights show if there is no configuration, as in Gemma Scope."""
    kind = None
    if {"r_mag"} < weights.keys():
        kind = "gated"
    elif "threshold" in weights and "k" not in weights:
        kind = "jumprelu"
    # `AutoEncoderNew` of dictionary_learning, which codes the activation itself, alone has the
    # name decoder.bias; the other encoders with this library's names subtract the bias.
    theirs = "encoder.weight" in weights and "decoder.bias" not in weights
    return Read(kind, weights.get("k"), theirs)


NAMES = Format(
    "Gemma Scope, or weights by name",
    "params.npz of 2024",
    lambda config: not config,
    by_names,
    names={**FORMATS[1].names, "w_enc": "W_enc", "w_dec": "W_dec"},
    turned=tuple(_TURNED),
    unused=("k", "group_sizes"),
)
