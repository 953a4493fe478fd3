"""Thresholds, weights and their coupling during the training of a layer, next to theory."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from unrolled import plots
from unrolled._base import checks
from unrolled._base.doors import Array, Result, checked
from unrolled._base.text import markdown, screen, table, to_json
from unrolled.comparison._weights import Coupling, Weights, coupling, step_means
from unrolled.dictionaries import Dictionary, Structured, as_chain, as_dictionary
from unrolled.layers import Layer, Unrolled, stack
from unrolled.networks import Network
from unrolled.theory import ActivationSchedule, AtomSchedule, Schedule

__all__ = ["ChainEvolution", "Evaluation", "Evolution", "evolution"]


class Evaluation(Result):
    """The measurements of the params at one evaluation of the training."""

    step: int  # training steps done
    loss: float  # mean training loss since the last evaluation; nan before the first step
    validation: float  # loss on the validation batch
    theta: np.ndarray | None  # (K,) mean threshold of each step; None without thresholds
    coupling: Coupling | None  # coupling of the weights; None without weights


class Evolution:
    """The record of a run, which `fit(..., callbacks=[watch])` fills; see `evolution`.

    Attributes:
        layer: the trained layer, or the trained network that contains the layer.
        D: (m, d), the dictionary against which the weights are measured.
        prediction: the schedule of the theory, or None.
        evaluations: the list of `Evaluation`, from the initial params to the result.

    Example:
        >>> layer, D = ur.lista_cp(3), ur.dictionaries.identity_hadamard(8)
        >>> watch = ur.comparison.evolution(layer, D)
        >>> start = ur.training.Record(step=0, loss=1.0, validation=1.0, seconds=0.0)
        >>> watch(start, layer.init(None, D))
        >>> print(watch.series("mu_W").round(2), watch.contraction(1).round(2))
        [[0.35]] [[0.68]]
    """

    def __init__(self, layer: Layer | Network, D: Dictionary, prediction: Any = None):
        self.layer, self.D, self.prediction = layer, D, prediction
        self.evaluations: list[Evaluation] = []

    def __call__(self, record: Any, params: Unrolled) -> None:
        """Append the measurements of `params`; `record` has `step`, `loss` and `validation`."""
        if not isinstance(params, Unrolled):
            raise TypeError(
                f"evolution: params must be Unrolled(shared, steps), got {type(params).__name__}; "
                "for a network try evolution(network, Ds)"
            )
        layer: Any = self.layer
        layer.check(params, self.D)
        self._measure(record, params, layer.thresholds, layer.weights)

    def _measure(
        self, record: Any, params: Unrolled, thresholds: Any, weights: Weights | None
    ) -> None:
        """Append the measurements of checked params, by functions of the layer."""
        params = stack(params) if params.steps else params
        theta, expected = thresholds(params), getattr(self.prediction, "theta", None)
        if expected is not None and theta is not None and len(theta) != len(expected):
            raise ValueError(
                f"evolution: the prediction has {len(expected)} steps "
                f"but the params have {len(theta)}"
            )
        numbers = int(record.step), float(record.loss), float(record.validation)
        measured = coupling(weights, params, self.D)
        self.evaluations.append(Evaluation(*numbers, theta, measured))

    def series(self, field: str) -> np.ndarray:
        """The values of a field, (evaluations,), or (evaluations, K) if it has values per step.

        "theta" and the fields of a `Coupling` have one value per step. If all steps share the
        weights, K = 1 for the fields of a `Coupling`.

        Raises:
            ValueError: the field is unknown, the family lacks it, or there is no evaluation yet.
        """
        fields = (*Evaluation._fields[:-1], *Coupling._fields)
        checks.one_of(field, fields, "field", "evolution")
        own = field in Evaluation._fields
        values = [getattr(at if own else at.coupling, field, None) for at in self._seen()]
        if values[0] is None:
            raise ValueError(f"evolution: this family has no {field}")
        return np.asarray(values)

    def contraction(self, sparsity: int) -> np.ndarray:
        """The contraction a of the theory, (evaluations, K): theory covers s nonzeros if a < 1.

        a = (2s-1) max_{i != j} abs(w_i . d_j) + max_i abs(1 - w_i . d_i), with unscaled weights.
        """
        low, high = (np.abs(1 - self.series(f"diagonal_{end}")) for end in ("low", "high"))
        return max(2 * sparsity - 1, 0) * self.series("largest_product") + np.maximum(low, high)

    def __repr__(self) -> str:
        """The table, cut to the size of the screen."""
        name = f"Evolution of {self.layer!r}"
        return screen([name, *(self.table().splitlines() if self.evaluations else ())])

    def table(self, form: str = "markdown") -> Any:
        """A table over all steps, with one row per evaluation, in the forms of `Comparison.table`.

        In Markdown and LaTeX the last row shows the numbers of theory, if a prediction is given.
        """
        return table(form, *self._rows(), (), self._records, "table")

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        """The records as text; the last row shows the numbers of theory."""
        columns = ["training step", "validation", *(title for title, *_ in _COLUMNS)]
        rows = [
            [str(record["step"]), f"{record['validation']:.4g}"]
            + [
                _cell(join, form, [record[f] for f in fields])
                for _, join, form, *fields in _COLUMNS
            ]
            for record in self._records()
        ]
        if self.prediction is not None:
            means = step_means(self.prediction.theta)
            expected = _cell(" to ", ".4g", [means[0], means[-1]] if len(means) else [None])
            rows.append(["theory", "", expected, "1", "", "", "0"])
        return columns, rows

    def _records(self) -> list[dict[str, Any]]:
        """The numbers of every evaluation; None for numbers that the family lacks."""
        records = []
        for at in self._seen():
            record: dict[str, Any] = dict(step=at.step, loss=at.loss, validation=at.validation)
            means = np.empty(0) if at.theta is None else step_means(at.theta)
            for name, place in (("theta_first", 0), ("theta_last", -1)):
                record[name] = float(means[place]) if len(means) else None
            for field, over in _OVER_STEPS.items():
                value = None if at.coupling is None else getattr(at.coupling, field)
                record[field] = None if value is None else float(over(value))
            records.append(record)
        return records

    def steps_table(self) -> str:
        """A Markdown table with "start -> result" for every step, and the threshold of theory."""
        first, last = self._seen()[0], self.evaluations[-1]
        columns: dict[str, Any] = {}
        if first.theta is not None:
            columns["threshold"] = (first.theta, last.theta)
        if first.coupling is not None:
            for field, title in _TITLES.items():
                columns[title] = getattr(first.coupling, field), getattr(last.coupling, field)
        cells = {
            title: [f"{a:.4g} -> {b:.4g}" for a, b in zip(*ends)] for title, ends in columns.items()
        }
        if self.prediction is not None:
            cells["threshold of theory"] = [f"{v:.4g}" for v in step_means(self.prediction.theta)]
        K = max(map(len, cells.values()), default=0)
        spread = [column * K if len(column) == 1 else column for column in cells.values()]
        rows = [[str(k + 1), *row] for k, row in enumerate(zip(*spread))]
        return markdown(["step", *cells], rows)

    def to_json(self) -> str:
        """All evaluations and the prediction; numbers that are not finite become null."""
        return to_json(self._data())

    def _data(self) -> dict[str, Any]:
        """All evaluations and the prediction, as `to_json` writes them."""
        return {"evaluations": self._seen(), "prediction": self.prediction}

    def plot(self) -> Any:
        """A figure over the training steps, with a line per step of the layer; theory is dashed."""
        self._seen()
        return plots.evolution(self)

    def _seen(self) -> list[Evaluation]:
        if not self.evaluations:
            raise ValueError(
                "evolution: there is no evaluation yet; pass it to fit(..., callbacks=[watch])"
            )
        return self.evaluations


class ChainEvolution:
    """The record of the training of a network: an `Evolution` for each of its layers.

    Attributes:
        network: the network that is trained.
        layers: a tuple of `Evolution`.

    Example:
        >>> network, Ds = ur.dsc([ur.lista_cp(3), ur.alista(2)]), [jnp.eye(4)] * 2
        >>> watch = ur.comparison.evolution(network, Ds)
        >>> start = ur.training.Record(step=0, loss=1.0, validation=1.0, seconds=0.0)
        >>> watch(start, network.init(None, Ds))
        >>> [layer.series("theta").shape for layer in watch.layers]
        [(1, 3), (1, 2)]
    """

    def __init__(self, network: Network, layers: tuple[Evolution, ...]):
        self.network, self.layers = network, layers

    def __call__(self, record: Any, params: Any) -> None:
        """Append the measurements of the params of every layer."""
        self.network.check(params, [layer.D for layer in self.layers])
        for j, (layer, p) in enumerate(zip(self.layers, params)):
            layer._measure(record, p, self.network.thresholds(j), self.network.weights(j))

    def __repr__(self) -> str:
        """The tables, cut to the size of the screen."""
        seen = self.layers[0].evaluations
        return screen(
            [f"Evolution of {self.network!r}", *(self.table().splitlines() if seen else ())]
        )

    def table(self, form: str = "markdown") -> Any:
        """`Evolution.table` of every layer: under headings in Markdown, otherwise in one table."""
        if form == "markdown":
            return self._together("table")
        numbered = [*enumerate(self.layers, start=1)]
        rows = [[str(j), *row] for j, layer in numbered for row in layer._rows()[1]]
        columns = ["layer", *self.layers[0]._rows()[0]]

        def records():
            return [{"layer": j, **row} for j, layer in numbered for row in layer._records()]

        return table(form, columns, rows, (), records, "table")

    def steps_table(self) -> str:
        """`Evolution.steps_table` of every layer, under a heading."""
        return self._together("steps_table")

    def to_json(self) -> str:
        """The evaluations and the prediction of every layer."""
        return to_json({"layers": [layer._data() for layer in self.layers]})

    def plot(self) -> Any:
        """The figure of `Evolution.plot` with one column per layer."""
        self.layers[0]._data()
        return plots.chain_evolution(self)

    def _together(self, table: str) -> str:
        parts = [f"Layer {j}\n\n{getattr(e, table)()}" for j, e in enumerate(self.layers, start=1)]
        return "\n\n".join(parts)


# The columns of a table: the title, the text between two fields of a record, the format, and the
# fields.
_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("threshold, first to last step", " to ", ".4g", "theta_first", "theta_last"),
    (
        *("diagonal of W'D: least, mean, largest", ", ", ".4f"),
        *("diagonal_low", "diagonal_mean", "diagonal_high"),
    ),
    ("largest mu_W", "", ".4f", "mu_W"),
    ("rms off-diagonal", "", ".4f", "off_diagonal"),
    ("coupling mismatch", "", ".2e", "mismatch"),
)
# The fields of a `Coupling` in the records, and the function that reduces all steps to one number.
_OVER_STEPS: dict[str, Any] = {
    **{"diagonal_low": np.min, "diagonal_mean": np.mean, "diagonal_high": np.max},
    **{"mu_W": np.max, "off_diagonal": np.max, "mismatch": np.max},
}
# The fields of a `Coupling` that the tables show, and their titles.
_TITLES = {
    "diagonal_mean": "mean diagonal",
    "mu_W": "mu_W",
    "off_diagonal": "rms off-diagonal",
    "mismatch": "coupling mismatch",
}


Prediction = Schedule | ActivationSchedule | AtomSchedule


@overload
def evolution(
    model: Layer, D: Dictionary, *, prediction: Prediction | None = None
) -> Evolution: ...
@overload
def evolution(
    model: Network,
    D: Sequence[Dictionary],
    *,
    prediction: Sequence[Prediction | None] | None = None,
) -> ChainEvolution: ...
@checked
def evolution(model: Any, D: Any, *, prediction: Any = None) -> Evolution | ChainEvolution:
    """A recorder of a run: `watch = evolution(layer, D)`, then `watch.table()` or `.plot()`.

    At each evaluation of `fit(..., callbacks=[watch])`, `watch` measures the mean threshold of
    every step, the diagonal of W_k'D, and the distance of S_k from I - W_k'D (see `Coupling`). It
    also measures the largest off-diagonal entry, mu_W, and the root mean square of the off-diagonal
    entries of W_k'D, with the diagonal scaled to 1. For families without weights, `watch` measures
    only the thresholds.

    Args:
        model: the layer, or the network, to train.
        D: (m, d); for a network a tuple. With `learn_dictionary=True` the weights are still
            measured against this D.
        prediction: a schedule from `analytic.block_schedule` or `theory.schedule`; for a network
            one schedule per layer, for example from `analytic.chain_schedules`. The tables show the
            thresholds of the schedule next to the trained thresholds, with a diagonal of 1 and a
            mismatch of 0.

    Returns:
        An Evolution without evaluations; for a network a ChainEvolution with an Evolution per
            layer.

    Raises:
        TypeError: the model is neither a layer nor a network, a layer has a tuple of dictionaries,
            or the prediction has no thresholds.
        ValueError: a network does not have one dictionary, or one prediction, per layer.

    Example:
        >>> layer, D = ur.alista(3), ur.dictionaries.identity_hadamard(8)
        >>> watch = ur.comparison.evolution(layer, D)
        >>> start = ur.training.Record(step=0, loss=1.0, validation=1.0, seconds=0.0)
        >>> watch(start, layer.init(None, D))
        >>> print(watch.series("theta").round(3))
        [[0.05 0.05 0.05]]
    """
    if isinstance(model, Network):
        Ds = as_chain(D, "evolution")
        J = len(model.layers) or len(Ds)
        schedules = (None,) * J if prediction is None else prediction
        for what, several in (("dictionaries", Ds), ("predictions", schedules)):
            got = len(several) if isinstance(several, tuple | list) else "one"
            if got != J:
                raise ValueError(
                    f"evolution: expected {J} {what}, one per layer of the network, got {got}"
                )
        parts = (_recorder(model, *pair) for pair in zip(Ds, schedules))
        return ChainEvolution(model, tuple(parts))
    if not isinstance(model, Layer):
        raise TypeError(
            f"evolution: expected a Layer or a Network first, got {type(model).__name__}"
        )
    first = D[0] if isinstance(D, tuple | list) and D else None
    if isinstance(first, Array | Structured | np.ndarray):
        raise TypeError("evolution: expected one dictionary for a layer, got several")
    return _recorder(model, D, prediction)


def _recorder(model: Layer | Network, D: Dictionary, prediction: Any) -> Evolution:
    if prediction is not None and not hasattr(prediction, "theta"):
        raise TypeError(
            "evolution: the prediction must have thresholds `theta`, got "
            f"{type(prediction).__name__}; try `analytic.block_schedule(...)[1]`"
        )
    return Evolution(model, as_dictionary(D, "evolution"), prediction)


def _cell(join: str, form: str, values: list[Any]) -> str:
    """Numbers as text; empty if the family lacks these numbers."""
    return "" if values[0] is None else join.join(f"{value:{form}}" for value in values)
