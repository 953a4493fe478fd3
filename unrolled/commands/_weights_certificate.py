"""The certificate of saved weights, learned ones included."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from unrolled import studies
from unrolled.commands._coders import restore_model
from unrolled.commands._inputs import weights_of


def holds_weights(path: Path) -> bool:
    """Whether a path is a folder, or a file as `training.save` writes it."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return path.is_dir() or path.suffix == ".safetensors"
    try:
        with zipfile.ZipFile(path) as archive:
            return "manifest.json" in archive.namelist()
    except Exception:  # whatever zipfile raises of foreign bytes: what reads arrays says it better
        return False


def weights_certificate(
    path: Path,
    dictionaries: list[Path],
    sparsities: Sequence[int] | None,
    bound: float,
    noise: float,
    tolerance: float,
) -> studies.WeightsCertificate:
    """`studies.certify_weights` of a file of weights, or of that of a run folder.

    The dictionaries are those of weights that were saved without theirs.
    """
    model = restore_model(weights_of(path), dictionaries, "its file after that of the weights")
    options = dict(bound=bound, noise=noise, tolerance=tolerance)
    return studies.certify_weights(
        model.layer, model.params, model.D, sparsity=sparsities, **options
    )
