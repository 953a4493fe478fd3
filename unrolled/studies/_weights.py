"""What the theory certifies for given weights, learned ones included."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unrolled import _checks, plots, theory
from unrolled._arguments import checked
from unrolled._text import grid, line, screen, table_of
from unrolled.layers import Layer
from unrolled.networks import dsc
from unrolled.studies._steps import one_per_layer


class WeightsCertificate(NamedTuple):
    """The certificate of every layer of given weights."""

    layers: tuple[Layer, ...]  # of the model
    shapes: tuple[tuple[int, ...], ...]  # of D
    sparsities: tuple[int, ...]  # s of every layer
    bound: float  # B, of the entries of a code
    noise: float  # of the signal
    tolerance: float  # the l1 error to reach
    certificates: tuple[theory.Certificate, ...]  # one per layer

    def text(self) -> str:
        """A table, one column per layer."""
        table = (line(label, cells) for label, cells in self._rows().items())
        return "\n".join([self._class(), "", *table, *self._reasons()])

    def parts(self) -> list[str]:
        """The same, for a report."""
        return [self._class(), grid(self._rows()), *self._reasons()]

    def _reasons(self) -> list[str]:
        numbered = enumerate(self.certificates, start=1)
        return [f"layer {j}: {c.reason}" for j, c in numbered if not c.holds]

    def answer(self) -> str:
        """The error that is guaranteed at the end."""
        last = self.certificates[-1]
        if not last.holds:
            start = f"{last.error[0]:.2e}, that of zero codes"
            return f"These weights guarantee no l1 error below {start}, for this class of codes."
        return f"These weights guarantee an l1 error of at most {last.error[-1]:.2e}."

    def _class(self) -> str:
        return (
            f"what these weights guarantee, for entries of at most {self.bound:g} and noise of l1 "
            f"norm at most {self.noise:g}"
        )

    def _rows(self) -> dict[str, Sequence]:
        each = self.certificates
        return {
            "layer": range(1, len(each) + 1),
            "family": [layer.family for layer in self.layers],
            "D": [f"{m} x {d}" for m, d in self.shapes],
            "sparsity": self.sparsities,
            "l1 error at the start": [float(c.error[0]) for c in each],
            "guaranteed l1 error": [float(c.error[-1]) if c.holds else "none" for c in each],
            "holds": [c.holds for c in each],
            f"steps to {self.tolerance:g}": [
                "none" if (k := self._steps(c)) is None else k for c in each
            ],
            "no false positives in": [
                f"{c.false_positives_excluded.sum()} of {layer.depth}"
                for c, layer in zip(each, self.layers)
            ],
            "largest sparsity": [c.largest_sparsity for c in each],
        }

    def __repr__(self) -> str:
        """The table, as it fits on a screen."""
        return screen(self.text().splitlines())

    def table(self, form: str = "markdown") -> Any:
        """A row for every layer, in the forms of `compare.Comparison.table`."""
        records = [
            dict(
                layer=j,
                family=layer.family,
                sparsity=s,
                error_at_the_start=float(c.error[0]),
                guaranteed_error=float(c.error[-1]) if c.holds else None,
                holds=bool(c.holds),
                steps=self._steps(c),
                largest_sparsity=c.largest_sparsity,
            )
            for j, (layer, s, c) in enumerate(
                zip(self.layers, self.sparsities, self.certificates), start=1
            )
        ]
        return table_of(form, records)

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
                reason=c.reason,
                steps=self._steps(c),
                largest_sparsity=c.largest_sparsity,
            )
            for layer, shape, s, c in zip(
                self.layers, self.shapes, self.sparsities, self.certificates
            )
        ]
        return {"bound": self.bound, "noise": self.noise, "layers": layers}

    def figure(self) -> Any:
        """The certified l1 error of every layer after every step, with matplotlib."""
        numbered = enumerate(self.certificates, start=1)
        lines: dict[str, Any] = {f"layer {j}": c.error[1:] for j, c in numbered}
        figure, panels = plots.figure(1, 1)
        title, ylabel = "What these weights guarantee", "l1 error of the code"
        plots.curves(panels[0, 0], lines, title=title, ylabel=ylabel, log=True)
        plots.name_lines(panels[0, 0])
        return figure

    def _steps(self, certificate: theory.Certificate) -> int | None:
        """The first step with the tolerance; None for none."""
        reached = np.flatnonzero(certificate.error <= self.tolerance)
        return int(reached[0]) if len(reached) else None


@checked
def certify_weights(
    model: Any,
    params: Any,
    D: Any,
    *,
    sparsity: int | Sequence[int] | None = None,
    bound: float = 1.0,
    noise: float = 0.0,
    tolerance: float = 1e-6,
) -> WeightsCertificate:
    """The error that weights guarantee for sparse codes, layer by layer.

    Args:
        model: a layer, or a chain of layers.
        params, D: its params and its dictionary; of a chain a tuple of each.
        sparsity: s, nonzeros of a code; of a chain one per layer. None for the largest that is
            certified, in a chain 1 in every layer.
        bound: B, of the entries of a code.
        noise: the l1 norm of the noise in the signal, at most.
        tolerance: the l1 error whose step is told.

    Returns:
        WeightsCertificate.

    Raises:
        ValueError: another number of sparsities than layers, or numbers that `theory.certify`
            refuses.
        TypeError: a model without layers that run one after the other, or a family that
            `theory.certify` refuses.

    Example:
        >>> D, layer = ur.dictionaries.identity_hadamard(16), ur.lista_cp(10)
        >>> params = ur.analytic.lista_cp(D, depth=10, sparsity=2, bound=1.0)
        >>> study = ur.studies.certify_weights(layer, params, D)
        >>> study.sparsities, study.certificates[0].holds
        ((2,), True)
    """
    single = isinstance(model, Layer)
    if not single:
        _checks.has(model, "layers", "a Layer or a Network", "model", "certify_weights")
    layers = (model,) if single else model.layers
    if not layers:
        raise TypeError(f"certify: {model} has no layers that run one after the other")
    Ds, blocks = ((D,), (params,)) if single else (D, params)

    def certified(s: Sequence[int]) -> tuple[theory.Certificate, ...]:
        bounds, noises = (bound,) * len(layers), (noise,) + (0.0,) * (len(layers) - 1)
        return theory.certify(dsc(layers), blocks, Ds, sparsity=s, bound=bounds, noise=noises)

    sparsities = one_per_layer(sparsity)
    if sparsities is None:
        sparsities = (1,) * len(layers)
        if single:
            sparsities = (max(1, certified(sparsities)[0].largest_sparsity),)
    if len(sparsities) != len(layers):
        raise ValueError(
            f"certify: {len(sparsities)} sparsities for {len(layers)} layers; expected one for each"
        )
    shapes = tuple(D.shape for D in Ds)
    return WeightsCertificate(
        layers, shapes, tuple(sparsities), bound, noise, tolerance, certified(sparsities)
    )
