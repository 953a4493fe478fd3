"""How thresholds, weights and their coupling move while a network trains, beside what theory
predicts.
"""

import json
from typing import NamedTuple

import numpy as np

from unrolled import plots
from unrolled.compare._coupling import Coupling, coupling, thresholds
from unrolled.compare._plain import plain
from unrolled.dictionaries import as_dictionary
from unrolled.layers import Unrolled, stack


class Look(NamedTuple):
    """The params at one look at the training."""

    step: int  # training steps done
    loss: float  # mean training loss since the last look; nan before the first step
    validation: float  # loss on the validation batch
    theta: np.ndarray | None  # (K,) mean threshold of each step of the network
    coupling: Coupling | None  # of the weights, for families that have them


class Evolution:
    """What a training did, look by look: `fit(..., callbacks=[watch])` with `watch = evolution(D)`
    fills it.

    Attributes:
        D: (m, d), the dictionary that the weights are measured against.
        prediction: what theory predicts, or None.
        looks: the list of `Look`; the first is the start, the last the result.
    """

    def __init__(self, D, prediction=None):
        self.D, self.prediction, self.looks = D, prediction, []

    def __call__(self, record, params: Unrolled) -> None:
        """Measure `params` at a look; `record` has the fields `step`, `loss` and `validation`."""
        if not isinstance(params, Unrolled):
            raise TypeError(
                f"evolution: params must be Unrolled(shared, steps), got {type(params).__name__}; of a network watch one "
                "block: callbacks=[lambda record, params: watch(record, params[0])]"
            )
        params = stack(params) if params.steps else params
        self._check_shapes(params)
        theta = thresholds(params)
        if (
            self.prediction is not None
            and theta is not None
            and len(theta) != len(self.prediction.theta)
        ):
            raise ValueError(
                f"evolution: the prediction has {len(self.prediction.theta)} steps but the params have {len(theta)}"
            )
        numbers = int(record.step), float(record.loss), float(record.validation)
        self.looks.append(Look(*numbers, theta, coupling(params, self.D)))

    def series(self, field: str) -> np.ndarray:
        """A field over the looks: (looks,) for those of a `Look`, (looks, K) for "theta" and the
        fields of a `Coupling`.

        Weights that all steps share have K = 1.

        Raises:
            ValueError: an unknown field, one that the family lacks, no look yet.
        """
        known = (*Look._fields[:-1], *Coupling._fields)
        if field not in known:
            raise ValueError(
                f"evolution: unknown field {field!r}; expected one of {', '.join(known)}"
            )
        values = [
            getattr(look if field in Look._fields else look.coupling, field, None)
            for look in self._seen()
        ]
        if values[0] is None:
            raise ValueError(f"evolution: this family has no {field}")
        return np.asarray(values)

    def contraction(self, sparsity: int) -> np.ndarray:
        """a = (2s-1) mu_W + max abs(1 - w_i . d_i) of the weights at each look, (looks, K): below 1
        the theory covers s.
        """
        eta = np.maximum(
            np.abs(1 - self.series("diagonal_low")), np.abs(1 - self.series("diagonal_high"))
        )
        return max(2 * sparsity - 1, 0) * self.series("mu_W") + eta

    def table(self) -> str:
        """A Markdown table, one row per look, over all steps of the network; theory in the last
        row, if given.
        """
        rows = [
            "| training step | validation | threshold, first to last step | diagonal of W'D: least, mean, largest "
            "| largest mu_W | rms off-diagonal | coupling mismatch |",
            "|---|---|---|---|---|---|---|",
        ]
        rows += [
            _row(str(k.step), f"{k.validation:.4g}", k.theta, k.coupling) for k in self._seen()
        ]
        if self.prediction is not None:
            rows.append(f"| theory | | {_range(self.prediction.theta)} | 1 | | | 0 |")
        return "\n".join(rows)

    def steps_table(self) -> str:
        """A Markdown table, one row per step of the network: start -> result, beside the threshold
        of theory, if given.
        """
        first, last = self._seen()[0], self.looks[-1]
        columns = {} if first.theta is None else {"threshold": (first.theta, last.theta)}
        if first.coupling is not None:
            titles = {
                "diagonal_mean": "mean diagonal",
                "mu_W": "mu_W",
                "off_diagonal": "rms off-diagonal",
            }
            for field, title in {**titles, "mismatch": "coupling mismatch"}.items():
                columns[title] = getattr(first.coupling, field), getattr(last.coupling, field)
        columns = {
            title: [f"{a:.4g} -> {b:.4g}" for a, b in zip(*ends)] for title, ends in columns.items()
        }
        if self.prediction is not None:
            columns["threshold of theory"] = [
                f"{theta:.4g}" for theta in _means(self.prediction.theta)
            ]
        K = max(map(len, columns.values()), default=0)
        spread = [cells * K if len(cells) == 1 else cells for cells in columns.values()]
        rows = [
            ["step", *columns],
            ["---"] * (1 + len(columns)),
            *([str(k + 1), *c] for k, c in enumerate(zip(*spread))),
        ]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def to_json(self) -> str:
        """All looks and the prediction, as JSON; numbers that are not finite become null."""
        return json.dumps(plain({"looks": self._seen(), "prediction": self.prediction}), indent=1)

    def plot(self):
        """A figure over the training steps, a line per step of the network; dashed, what theory
        predicts.
        """
        self._seen()
        return plots.evolution(self)

    def _seen(self) -> list[Look]:
        if not self.looks:
            raise ValueError(
                "evolution: nothing was seen yet; pass it to a training, fit(..., callbacks=[watch])"
            )
        return self.looks

    def _check_shapes(self, params) -> None:
        for part in (params.shared, params.steps):
            for name in {"W", "B"} & set(getattr(part, "_fields", ())):
                shape = getattr(part, name).shape[-2:]
                if shape != self.D.shape:
                    raise ValueError(
                        f"evolution: {name} has shape {shape} but D has shape {self.D.shape}; they must agree"
                    )


def evolution(D, *, prediction=None) -> Evolution:
    """A recorder of a training: `watch = evolution(D)`, `fit(..., callbacks=[watch])`, then
    `watch.plot()`.

    At each look of `fit` it measures every step of the network: the mean threshold, the diagonal of
    W_k'D, its largest (mu_W) and its root mean square off-diagonal entry, and how far S_k is from I
    - W_k'D; see `Coupling`. Families without weights give thresholds alone.

    Args:
        D: (m, d), held fixed: with `learn_dictionary=True` the weights are still measured against
            this one.
        prediction: what theory predicts, from `analytic.block_schedule` or `theory.schedule`: its
            thresholds stand beside the trained ones, a diagonal of 1 and a mismatch of 0 beside the
            rest.

    Raises:
        TypeError: a prediction without thresholds, the dictionaries of a chain.
    """
    if type(D) is tuple:
        raise TypeError(
            "evolution: expected one dictionary, got a tuple; make a recorder for each block"
        )
    if prediction is not None and not hasattr(prediction, "theta"):
        raise TypeError(
            f"evolution: the prediction must have thresholds `theta`, got {type(prediction).__name__}; try "
            "`analytic.block_schedule(...)[1]`"
        )
    return Evolution(as_dictionary(D, "evolution"), prediction)


def _row(step: str, validation: str, theta, c: Coupling | None) -> str:
    cells = [step, validation, "" if theta is None else _range(theta)]
    if c is None:
        return "| " + " | ".join([*cells, "", "", "", ""]) + " |"
    diagonal = (
        f"{c.diagonal_low.min():.4f}, {c.diagonal_mean.mean():.4f}, {c.diagonal_high.max():.4f}"
    )
    cells += [
        diagonal,
        f"{c.mu_W.max():.4f}",
        f"{c.off_diagonal.max():.4f}",
        f"{c.mismatch.max():.2e}",
    ]
    return "| " + " | ".join(cells) + " |"


def _range(theta) -> str:
    means = _means(theta)
    return f"{means[0]:.4g} to {means[-1]:.4g}" if len(means) else ""


def _means(theta) -> np.ndarray:
    """(K,) from thresholds of steps, or of steps and atoms."""
    theta = np.asarray(theta, float)
    return theta.reshape(len(theta), -1).mean(1)
