"""Methods side by side on one sample: their errors step by step, and what training changed."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks, metrics, plots
from unrolled._checks import Array
from unrolled._json import to_json
from unrolled._numbers import largest
from unrolled._text import markdown
from unrolled.compare._coupling import Coupling, coupling, thresholds
from unrolled.dictionaries import Dictionary, as_dictionary, check_batch
from unrolled.layers import Layer, Unrolled, stack
from unrolled.pursuit import fista, lasso_objective

# The quantiles of the errors of single signals that a `Curve` holds.
QUANTILES = (0.1, 0.5, 0.9)

# The most steps of FISTA to the optimum of the LASSO.
_MAX_STEPS = 3000


class Curve(NamedTuple):
    """The errors of one method after every step; all arrays are (K,) unless noted."""

    nmse: np.ndarray  # dB, ratio of sums
    mean_nmse: np.ndarray  # dB, mean over the signals
    quantiles: np.ndarray  # (K, 3) of the signals' NMSE in dB, at `QUANTILES`
    failure_rate: np.ndarray  # share of signals not below -20 dB
    precision: np.ndarray  # of the support; nan where no signal has an entry
    recall: np.ndarray
    false_positives: np.ndarray  # wrong entries per signal
    largest_l1: np.ndarray  # the largest l1 error of a signal, which the theorems bound
    gap: np.ndarray | None  # sum of F - F* over the sum of F* for the LASSO, if lam was given


class Change(NamedTuple):
    """The distance of one leaf of the params from that of the reference."""

    leaf: str
    distance: float  # norm(params - reference) / norm(reference)
    per_step: np.ndarray  # (K,) the same step by step, or of length 1 for a shared leaf


class Comparison(NamedTuple):
    """The result of `compare`; every field maps names of methods to results.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(8)
        >>> found = ur.compare.compare({"ISTA": (layer, layer.init(None, D))}, D, Y, X)
        >>> [row[:10] for row in found.table().splitlines()]
        ['| method |', '|---|---|-', '| ISTA | 8']
    """

    curves: dict[str, Curve]
    thresholds: dict[str, np.ndarray]  # (K,) mean threshold of each step
    references: dict[str, str]  # the method that its params are measured against
    changes: dict[str, tuple[Change, ...]]
    couplings: dict[str, Coupling]  # for families with weights

    def table(self) -> str:
        """A Markdown table: errors at the last step, in both definitions, and support scores.

        Scores that are undefined, such as the precision of codes that are all zero, are empty.
        """
        gaps = any(curve.gap is not None for curve in self.curves.values())
        columns = ["method", "K", "NMSE dB (ratio of sums)", "NMSE dB (mean)", "failures"]
        columns += ["precision", "recall", "wrong entries", *(["(F - F*) / F*"] if gaps else [])]
        rows = []
        for name, c in self.curves.items():
            cells = [name, str(len(c.nmse)), f"{c.nmse[-1]:.1f}", f"{c.mean_nmse[-1]:.1f}"]
            scores = ["" if np.isnan(v[-1]) else f"{v[-1]:.3f}" for v in (c.precision, c.recall)]
            cells += [f"{c.failure_rate[-1]:.1%}", *scores]
            cells += [
                f"{c.false_positives[-1]:.2f}",
                *([] if c.gap is None else [f"{c.gap[-1]:.2e}"]),
            ]
            rows.append(cells)
        return markdown(columns, rows)

    def parameters_table(self) -> str:
        """A Markdown table of the weights, and of how far training moved each leaf.

        mu_W and the rms are those of weights scaled to w_i . d_i = 1.
        """
        columns = ["method", "largest mu_W", "rms off-diagonal", "diagonal of W'D"]
        columns += ["coupling mismatch", "moved", "from"]
        rows = []
        for name in self.curves:
            cells = ["", "", "", ""]
            if name in self.couplings:
                c = self.couplings[name]
                diagonal = f"{c.diagonal_low.min():.4f} to {c.diagonal_high.max():.4f}"
                cells = [f"{c.mu_W.max():.4f}", f"{c.off_diagonal.max():.4f}", diagonal]
                cells.append(f"{c.mismatch.max():.2e}")
            moved = ", ".join(f"{c.leaf} {c.distance:.3g}" for c in self.changes.get(name, ()))
            rows.append([name, *cells, moved, self.references.get(name, "")])
        return markdown(columns, rows)

    def to_json(self) -> str:
        """All results as JSON; numbers that are not finite become null."""
        return to_json(self)

    def plot(self, *, codes: str = "true codes", note: str = "") -> Any:
        """A figure with errors, failures and support per step, thresholds, and weights.

        Args:
            codes: what the codes X of `compare` are, for the titles.
            note: what a reader should know, written below the panels.
        """
        return plots.comparison(self, codes=codes, note=note)


def compare(
    methods: dict[str, tuple[Layer, Unrolled]],
    D: Dictionary,
    Y: Array,
    X: Array,
    reference: str | None = None,
    *,
    lam: float | None = None,
) -> Comparison:
    """Run methods on one sample of signals and measure their errors, thresholds and weights.

    Args:
        methods: name -> (layer, params).
        D: (m, d).
        Y: (batch, m), the signals.
        X: (batch, d), their true codes.
        reference: the name of the method from which the distances of params of the same form are
            measured; None takes the first method before each one that has params of its form.
        lam: also report the gap to the optimum of the LASSO with this weight.

    Returns:
        Comparison.

    Raises:
        TypeError: a network.
        ValueError: no methods, shapes that do not fit, or an unknown reference.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layers = {"ISTA": ur.layers.ista(8), "FISTA": ur.layers.fista(8)}
        >>> methods = {name: (layer, layer.init(None, D)) for name, layer in layers.items()}
        >>> curves = ur.compare.compare(methods, D, Y, X).curves
        >>> bool(curves["FISTA"].nmse[-1] < curves["ISTA"].nmse[-1])
        True
    """
    D = as_dictionary(D, "compare")
    _check_methods(methods, reference)
    check_batch(D, Y, X, "compare")
    Y, X = _checks.as_float(Y, "Y", "compare"), _checks.as_float(X, "X", "compare")
    optimum = None if lam is None else _optimum(D, Y, jnp.asarray(lam, Y.dtype))
    stacked = {name: stack(p) if p.steps else p for name, (_, p) in methods.items()}
    curves, theta, couplings, references, changes = {}, {}, {}, {}, {}
    for name, (layer, params) in methods.items():
        curves[name] = _curve(layer, params, D, X, Y, lam, optimum)
        theta[name] = thresholds(stacked[name])
        couplings[name] = coupling(layer, stacked[name], D)
        earlier = list(curves)[:-1] if reference is None else [reference]
        same = (n for n in earlier if n != name and _same_form(stacked[n], stacked[name]))
        if (other := next(same, None)) is not None:
            references[name] = other
            changes[name] = _changes(stacked[other], stacked[name])
    return Comparison(curves, _known(theta), references, changes, _known(couplings))


def _check_methods(methods: dict[str, tuple[Layer, Unrolled]], reference: str | None) -> None:
    if not methods:
        raise ValueError("compare: expected at least one method, got none")
    if reference is not None and reference not in methods:
        names = ", ".join(methods)
        raise ValueError(f"compare: unknown reference {reference!r}; expected one of {names}")
    for name, (layer, _) in methods.items():
        if not isinstance(layer, Layer):
            raise TypeError(
                f"compare: {name!r} is a {type(layer).__name__}; expected a Layer, "
                "try the last layer of a network alone"
            )


def _known(found: dict) -> dict:
    return {name: value for name, value in found.items() if value is not None}


def _curve(layer, params, D, X, Y, lam, optimum) -> Curve:
    found, gap = _measure(layer, params, D, X, Y, lam, optimum)
    return Curve(
        **{k: np.asarray(v) for k, v in found.items()}, gap=None if gap is None else np.asarray(gap)
    )


@partial(jax.jit, static_argnames="layer")
def _measure(layer, params, D, X, Y, lam, optimum):
    """The fields of a `Curve`; compiled once for all params of a layer."""
    codes = jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y)

    def one(x):
        return dict(
            nmse=metrics.nmse(x, X),
            mean_nmse=metrics.mean_nmse(x, X),
            quantiles=jnp.nanquantile(metrics.signal_nmse(x, X), jnp.asarray(QUANTILES, x.dtype)),
            failure_rate=metrics.failure_rate(x, X),
            largest_l1=largest(jnp.abs(x - X).sum(-1)),
            **metrics.support_scores(x, X)._asdict(),
        )

    gap = (
        None if lam is None else jax.lax.map(lambda x: _objective_gap(D, Y, x, lam, optimum), codes)
    )
    return jax.lax.map(one, codes), gap


def _optimum(D, Y, lam) -> Array:
    """F* of every signal, to a relative duality gap of 1e-6 of its energy where float32 allows."""
    solve = jax.jit(
        jax.vmap(lambda y: lasso_objective(D, y, fista(D, y, lam, max_steps=_MAX_STEPS).x, lam))
    )
    return solve(Y)


def _objective_gap(D, Y, x, lam, optimum) -> Array:
    objective = jax.vmap(lasso_objective, (None, 0, 0, None))(D, Y, x, jnp.asarray(lam, Y.dtype))
    return jnp.sum(objective - optimum) / jnp.sum(optimum)


def _same_form(a, b) -> bool:
    shapes = ([np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b))
    forms: list[Any] = [jax.tree.structure(tree) for tree in (a, b)]
    return forms[0] == forms[1] and len(set(map(tuple, shapes))) == 1


def _changes(a: Unrolled, b: Unrolled) -> tuple[Change, ...]:
    """Relative distances of b from a, leaf by leaf."""
    changes = []
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        old, new = np.asarray(old, float), np.asarray(new, float)
        shared = getattr(path[0], "name", None) == "shared"
        rows = (1 if shared else len(old), -1)
        size = np.linalg.norm(old.reshape(rows), axis=1)
        per_step = np.linalg.norm((new - old).reshape(rows), axis=1) / np.where(size > 0, size, 1)
        whole = np.linalg.norm(new - old) / (np.linalg.norm(old) or 1.0)
        changes.append(
            Change(".".join(str(getattr(k, "name", k)) for k in path[1:]), float(whole), per_step)
        )
    return tuple(changes)
