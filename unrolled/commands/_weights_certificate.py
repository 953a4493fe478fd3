"""What the theory certifies for saved weights, learned ones included."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unrolled import theory
from unrolled._text import line
from unrolled.commands._encode import restore_model
from unrolled.commands._inputs import weights_of
from unrolled.layers import Layer
from unrolled.networks import dsc


class WeightsCertificate(NamedTuple):
    """The certificate of every layer of a file of weights."""

    layers: tuple[Layer, ...]
    shapes: tuple[tuple[int, ...], ...]  # of D
    sparsities: tuple[int, ...]
    bound: float
    noise: float  # of the signal
    tolerance: float
    certificates: tuple[theory.Certificate, ...]

    def text(self) -> str:
        """A table, one column per layer."""
        found = self.certificates
        rows: dict[str, Sequence] = {
            "layer": range(1, len(found) + 1),
            "family": [layer.family for layer in self.layers],
            "D": [f"{m} x {d}" for m, d in self.shapes],
            "sparsity": self.sparsities,
            "l1 error at the start": [float(c.error[0]) for c in found],
            "guaranteed l1 error": [float(c.error[-1]) if c.holds else "none" for c in found],
            "holds": [c.holds for c in found],
            f"steps to {self.tolerance:g}": [
                "none" if (k := self._steps(c)) is None else k for c in found
            ],
            "no false positives in": [
                f"{c.false_positives_excluded.sum()} of {layer.depth}"
                for c, layer in zip(found, self.layers)
            ],
            "largest sparsity": [c.largest_sparsity for c in found],
        }
        of = f"for entries of at most {self.bound:g} and noise of l1 norm at most {self.noise:g}"
        table = (line(label, cells) for label, cells in rows.items())
        return "\n".join([f"what these weights guarantee, {of}", "", *table])

    def to_dict(self) -> dict[str, Any]:
        """The certificates as data, layer by layer."""
        layers = [
            dict(
                layer=repr(layer),
                shape=shape,
                sparsity=s,
                error=c.error,
                false_positives_excluded=c.false_positives_excluded,
                holds=c.holds,
                steps=self._steps(c),
                largest_sparsity=c.largest_sparsity,
            )
            for layer, shape, s, c in zip(
                self.layers, self.shapes, self.sparsities, self.certificates
            )
        ]
        return {"bound": self.bound, "noise": self.noise, "layers": layers}

    def _steps(self, found: theory.Certificate) -> int | None:
        """The first step with the tolerance; None for none."""
        reached = np.flatnonzero(found.error <= self.tolerance)
        return int(reached[0]) if len(reached) else None


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
) -> WeightsCertificate:
    """The certificates of a file of weights, or of that of a run folder.

    The dictionaries are those of weights that were saved without theirs.

    Raises:
        ValueError: no weights of a layer or a chain, another number of sparsities than layers, or
            numbers that `theory.certify` refuses.
        TypeError: a family that it refuses.
    """
    where = "its file after that of the weights"
    found = restore_model(weights_of(path), dictionaries, where)
    model: Any = found.layer
    single = isinstance(model, Layer)
    layers = (model,) if single else model.layers
    if not layers:
        raise TypeError(f"{path}: {model} has no layers that run one after the other")
    Ds: Any = (found.D,) if single else found.D
    params = (found.params,) if single else found.params

    def certified(s):
        bounds, noises = (bound,) * len(layers), (noise,) + (0.0,) * (len(layers) - 1)
        chain = dsc(layers)
        return theory.certify(chain, params, Ds, sparsity=s, bound=bounds, noise=noises)

    if sparsities is None:
        sparsities = (1,) * len(layers)
        if single:
            sparsities = (max(1, certified(sparsities)[0].largest_sparsity),)
    if len(sparsities) != len(layers):
        raise ValueError(f"{path}: {len(sparsities)} sparsities for {len(layers)} layers")
    shapes = tuple(D.shape for D in Ds)
    given = (tuple(sparsities), bound, noise, tolerance)
    return WeightsCertificate(layers, shapes, *given, certified(sparsities))
