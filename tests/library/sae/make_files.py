"""Write small autoencoders with the libraries themselves, and the codes of their own forward.

    pip install sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0
    python tests/library/sae/make_files.py

`files/` has a folder for each autoencoder, and `expected.npz` with 64 activations, the codes and
the decoded activations. No library writes Gemma Scope and Llama Scope: their folders follow the
published formats, and torch computes their codes by the formulas of their authors.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from dictionary_learning import dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens import saes
from sae_lens.saes.sae import SAE
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

FILES = Path(__file__).with_name("files")
M, D, K = 8, 20, 4
torch.manual_seed(0)
A = 2 * torch.randn(64, M) + 0.5
EXPECTED = {"A": A.numpy()}


def fill(model):
    """Weights that no symmetry hides: biases are not zero, atoms have different norms."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.rand_like(p) + 0.1 if "threshold" in name else 0.5 * torch.randn_like(p))
    return model


def write(name, config, file="cfg.json"):
    (folder := FILES / name).mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(config))
    return folder


@torch.no_grad()
def expect(name, codes, decoded):
    EXPECTED[f"{name}/codes"] = codes.numpy()
    EXPECTED[f"{name}/decoded"] = decoded.numpy()


def saelens(name, config, training=None):
    """A folder of `save_model`; of a training, the codes are of the folder for inference."""
    made = fill(
        (training or saes.__dict__[config.__name__.replace("Config", "")])(
            config(d_in=M, d_sae=D, **({"k": K} if hasattr(config, "k") else {}))
        )
    )
    if hasattr(made, "topk_threshold"):
        made.topk_threshold.fill_(0.7)
    if "centered" not in name:
        made.cfg.apply_b_dec_to_input = False
    made.save_model(FILES / name)
    if training is None:
        own = SAE.load_from_disk(FILES / name)
    else:
        made.save_inference_model(FILES / "inference")
        own = SAE.load_from_disk(FILES / "inference")
        shutil.rmtree(FILES / "inference")
    codes = own.encode(A)
    expect(name, codes, own.decode(codes))


def old_saelens(name, config):
    """A configuration of an older version, with the weights that the newest one reads."""
    weights = {"W_enc": torch.randn(M, D), "b_enc": torch.randn(D), "W_dec": torch.randn(D, M)}
    folder = write(name, {"d_in": M, "d_sae": D, "dtype": "float32", "device": "cpu", **config})
    save_file(weights | {"b_dec": torch.randn(M)}, folder / "sae_weights.safetensors")
    own = SAE.load_from_disk(folder)
    codes = own.encode(A)
    expect(name, codes, own.decode(codes))


def dictionary_learning(made, **options):
    name = f"dictionary_learning-{type(made).__name__}"
    fill(made)
    if hasattr(made, "k"):
        made.threshold.fill_(0.7)
        options["k"] = K
    trainer = {"dict_class": type(made).__name__, "activation_dim": M, "dict_size": D, **options}
    folder = write(name, {"trainer": trainer, "buffer": {"d_submodule": M}}, "config.json")
    torch.save(made.state_dict(), folder / "ae.pt")
    save_file({n: t.contiguous() for n, t in made.state_dict().items()}, folder / "ae.safetensors")
    codes = made.encode(A)
    expect(name, codes, made.decode(codes))


def sparsify(name, **options):
    made = fill(SparseCoder(M, SparseCoderConfig(num_latents=D, k=K, **options)))
    made.save_to_disk(FILES / name)
    own = SparseCoder.load_from_disk(FILES / name)
    values, places, _ = own.encode(A)
    expect(name, torch.zeros(len(A), D).scatter_(1, places, values), own.decode(values, places))


def gemma_scope():
    w = {"W_enc": torch.randn(M, D), "b_enc": torch.randn(D), "threshold": torch.rand(D)}
    w |= {"W_dec": torch.randn(D, M), "b_dec": torch.randn(M)}
    u = A @ w["W_enc"] + w["b_enc"]
    codes = torch.relu(u) * (u > w["threshold"])
    (folder := FILES / "gemma_scope-1").mkdir()
    np.savez(folder / "params.npz", **{name: array.numpy() for name, array in w.items()})
    ends = {f"hf_hook_point_{end}": "model.layers.7.output" for end in ("in", "out")}
    config = {"architecture": "jump_relu", "affine_connection": False, "type": "sae", **ends}
    folder = write("gemma_scope-2", config | {"model_name": "gemma-v3-270m-pt"}, "config.json")
    save_file({k.lower(): v.contiguous() for k, v in w.items()}, folder / "params.safetensors")
    for name in ("gemma_scope-1", "gemma_scope-2"):
        expect(name, codes, codes @ w["W_dec"] + w["b_dec"])


def llama_scope(name, act_fn, centered):
    """The encoder compares u_i norm(d_i); activations are scaled to the mean norm sqrt(m)."""
    place, norm = "blocks.0.hook_resid_post", 5.5
    config = {"hook_point_in": place, "hook_point_out": place, "d_model": M, "d_sae": D}
    config |= {"act_fn": act_fn, "jump_relu_threshold": 0.52734375, "top_k": K}
    config |= {"use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": centered}
    config |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True}
    config |= {"dataset_average_activation_norm": {"in": norm, "out": norm}}
    folder = write(
        name, {**config, "use_glu_encoder": False, "expansion_factor": 2.5}, "hyperparams.json"
    )
    w = {"encoder.weight": torch.randn(D, M), "encoder.bias": torch.randn(D)}
    w |= {"decoder.weight": torch.randn(M, D), "decoder.bias": torch.randn(M)}
    (folder / "checkpoints").mkdir()
    save_file(w, folder / "checkpoints" / "final.safetensors")
    scale = M**0.5 / norm
    u = (A * scale - centered * w["decoder.bias"]) @ w["encoder.weight"].T + w["encoder.bias"]
    scores = u * w["decoder.weight"].norm(dim=0)
    if act_fn == "jumprelu":
        codes = u * (scores > config["jump_relu_threshold"])
    else:
        codes = u * (scores >= scores.topk(K).values[:, -1:]) * (u > 0)
    expect(name, codes, (codes @ w["decoder.weight"].T + w["decoder.bias"]) / scale)


def main():
    shutil.rmtree(FILES, ignore_errors=True)
    saelens("saelens-6-standard-centered", saes.StandardSAEConfig)
    saelens("saelens-6-topk", saes.TopKSAEConfig)
    saelens("saelens-6-jumprelu", saes.JumpReLUSAEConfig)
    saelens("saelens-6-gated-centered", saes.GatedSAEConfig)
    saelens("saelens-6-topk-training", saes.TopKTrainingSAEConfig, saes.TopKTrainingSAE)
    saelens(
        "saelens-6-batchtopk-training", saes.BatchTopKTrainingSAEConfig, saes.BatchTopKTrainingSAE
    )
    old = {"hook_point": "blocks.0.hook_resid_post", "normalize_activations": "none"}
    old_saelens("saelens-3-relu", old | {"activation_fn_str": "relu"})
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    old_saelens("saelens-5-topk", old | topk | {"architecture": "standard"})
    dictionary_learning(dictionary.AutoEncoder(M, D))
    dictionary_learning(dictionary.AutoEncoderNew(M, D))
    dictionary_learning(dictionary.GatedAutoEncoder(M, D))
    dictionary_learning(dictionary.JumpReluAutoEncoder(M, D))
    dictionary_learning(AutoEncoderTopK(M, D, K))
    dictionary_learning(BatchTopKSAE(M, D, K))
    dictionary_learning(MatryoshkaBatchTopKSAE(M, D, K, [8, 12]), group_sizes=[8, 12])
    sparsify("sparsify-topk")
    sparsify("sparsify-transcode", transcode=True)
    sparsify("sparsify-groupmax", activation="groupmax")
    gemma_scope()
    llama_scope("llama_scope-jumprelu", "jumprelu", False)
    llama_scope("llama_scope-topk", "topk", True)
    four = {"architecture": "standard", "activation_fn_str": "relu", "apply_b_dec_to_input": False}
    old_saelens("saelens-4-relu", old | four)
    np.savez_compressed(FILES / "expected.npz", **EXPECTED)


if __name__ == "__main__":
    main()
