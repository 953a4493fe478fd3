"""Calibration: thresholds and step sizes chosen on a sample, without gradients."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import dictionaries
from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, host_function, program
from unrolled._base.numbers import exponent, times_power
from unrolled.dictionaries import Dictionary
from unrolled.layers import Layer, Unrolled, names_with_role, stack, unstack
from unrolled.networks import Network, codes_of_ista, exceeds, lam_of, loss_of, worse_than_zero
from unrolled.problems import synthesize
from unrolled.theory import coherence, diagonal, max_sparsity, spectral_radius

__all__ = ["calibrate"]


Loss = Callable[..., Array]  # loss of (codes, X, D, Y), as in training
Report = Callable[[str], None] | None

# A greedy search tries every pair of a threshold and a step size on a grid, then on two finer grids
# around the best pair.
_ROUNDS = 3
_THETAS = 24
_GAMMAS = 9
# Half-widths of the first grid, in logarithms: theta runs from 1e-5 of the largest entry up to the
# largest entry, and gamma runs from a third to three times its given value.
_THETA_SPAN = 5.75
_GAMMA_SPAN = 1.1
# A threshold relative to the residual runs from 1/50 to 50 times its given value.
_RELATIVE_SPAN = math.log(50)
# Other searches multiply the threshold of step k by t r^(k-1). They try the logarithms of t and of
# rho = r^(K-1), on which no depth depends: first on few signals, then around the best pair on all.
_FEW = 100
_PAIRS = 56  # at most so many pairs of one search
# From a 64th of the largest entry up to twice the largest entry; rho from e^-9 up to 1.
_TWO_NUMBERS = (-2.5 * math.log(2), 3.5 * math.log(2), 8), (-4.5, 4.5, 7)
_FACTOR = (0.0, math.log(8), 17), (0.0, 0.0, 1)  # one factor for all steps, from 1/8 to 8
_FINE = 5
# The bounds B of Theorem 12 that are tried, in units of the largest entry.
_BOUNDS = 1, 1.5, 2, 3
# A tail is fitted to the share 1 / _TAIL of the errors, if there are enough signals.
_TAIL = 10
_TAIL_FROM = 100
_GREEDY = "greedy search"


def squared(codes: Any, X: Array, D: Any, Y: Array) -> Array:
    """The squared error of the last codes, in a unit in which squares stay within range."""
    return jnp.sum(_squares(codes[-1] - X, X))


def _judge(aim: Loss) -> Loss:
    """The loss by which candidates are compared."""
    return smoothed if aim is squared else aim


def _squares(codes: Array, X: Array) -> Array:
    """The squared norm of each code, in the unit of `squared`."""
    return jnp.sum(times_power(codes, -exponent(X)) ** 2, axis=1)


def smoothed(codes: Any, X: Array, D: Any, Y: Array) -> Array:
    r"""The squared error of the last codes, with a Pareto tail in place of the largest tenth.

    A few failures among thousands of signals decide a sum of squared errors, and a sample has none
    or one of them. The tail is e = u q^{-a}, where u is the largest error outside of the tenth, q
    is uniform on (0, 1], and a is the mean of log(e_i / u) over the tenth (Hill); a failure costs
    at most c, the energy of its code or the largest error. Each error is relative to the energy of
    its code. Hence the mean of the tail is

    .. math:: c q_0 + u \, \frac{1 - q_0^{1 - a}}{1 - a}, \qquad q_0 = (u / c)^{1 / a}.

    With fewer than 100 signals, or no such tail, this is `squared`.
    """
    errors, energies = _squares(codes[-1] - X, X), _squares(X, X)
    n = len(X) // _TAIL
    if len(X) < _TAIL_FROM:
        return jnp.sum(errors)
    energy = jnp.mean(energies)
    e = jnp.sort(errors / jnp.maximum(energies, energy / 10))  # a code may be zero
    u = e[-n - 1]
    a = jnp.mean(jnp.log(e[-n:] / u))
    decay = jnp.log(jnp.maximum(1, e[-1]) / u)  # q_0 = exp(-decay / a)
    z = (1 - a) * decay / a
    tail = u * (jnp.exp(-z) + decay / a * jnp.where(z == 0, 1, -jnp.expm1(-z) / z))
    fits = jnp.isfinite(tail) & (a > 0)
    return jnp.where(fits, energy * (jnp.sum(e[:-n]) + n * tail), jnp.sum(errors))


def codes_of(model: Any, params: Any, D: Any, Y: Array) -> Any:
    """The codes of a network, or the last codes of a layer as (1, batch, d), for a loss."""
    codes = jax.vmap(model.apply, (None, None, 0))(params, D, Y)
    return codes if isinstance(codes, tuple) else codes[None]


def threshold_names(p) -> list[str]:
    """The names of the thresholds among the params of a step, absolute or relative."""
    return names_with_role(p, "threshold", "relative threshold")


def greedy(
    layer: Layer, params: Unrolled, D: Dictionary, Y: Array, X: Any, loss: Loss = squared
) -> Unrolled:
    """Stacked params in which every step has the threshold and step size of least loss."""

    with jax.default_matmul_precision("highest"):
        ready = layer.prepare(params, D)
        start = jax.vmap(lambda y: layer.start(ready.D, y))(Y)

    def choose(state, step):
        p, state = _search(layer, loss, ready, step[0], D, Y, X, state, step[1:])
        return state, p

    schedule = () if layer.schedule is None else (jnp.asarray(layer.schedule, jnp.float32),)
    return params._replace(steps=lax.scan(choose, start, (params.steps, *schedule))[1])


_first_pass = jax.jit(greedy, static_argnums=(0, 5))


def _search(layer, loss, ready, p, D, Y, X, state, constants):
    """The step params with the best threshold and step size, and the states after the step."""
    sizes = names_with_role(p, "step size")

    def after(theta, gamma):
        fixed = ready.params.shared, _with(p, theta, gamma), ready.D
        return jax.vmap(lambda y, s: layer.step(*fixed, y, s, *constants))(Y, state)

    def error(theta, gamma):
        return loss(ready.restore(after(theta, gamma).x)[None], X, D, Y)

    one = jnp.ones((), Y.dtype)
    gamma = jnp.mean(getattr(p, sizes[0])).astype(Y.dtype) if sizes else one
    middle, width = jnp.log(_unit(p, D, Y, X)), _RELATIVE_SPAN
    if not names_with_role(p, "relative threshold"):
        middle, width = middle - _THETA_SPAN, _THETA_SPAN
    at = [middle, jnp.log(_positive(gamma))]
    widths = [width * one, (_GAMMA_SPAN if sizes else 0.0) * one]
    counts = [_THETAS, _GAMMAS if sizes else 1]

    def finer(_, window):
        at, widths = window
        thetas, gammas = (
            jnp.exp(a + w * jnp.linspace(-1, 1, n, dtype=Y.dtype))
            for a, w, n in zip(at, widths, counts)
        )
        # The pairs are tried one after the other: the arrays of one pair stay in the cache, and the
        # compiler moves the products, which do not depend on the threshold, out of the loop.
        errors = lax.map(lambda gamma: lax.map(lambda t: error(t, gamma), thetas), gammas)
        i, j = jnp.unravel_index(jnp.nanargmin(errors), errors.shape)
        at = [jnp.log(thetas[j]), jnp.log(gammas[i])]
        return at, [2 * w / (n - 1) for w, n in zip(widths, (_THETAS, _GAMMAS))]

    with jax.default_matmul_precision("highest"):
        at, _ = lax.fori_loop(0, _ROUNDS, finer, (at, widths))
        theta, gamma = (jnp.exp(a) for a in at)
        return _with(p, theta, gamma), after(theta, gamma)


def _unit(p, D: Dictionary, Y: Array, X: Any) -> Array:
    """The largest entry, or the mean of the given thresholds if they are relative."""
    if relative := names_with_role(p, "relative threshold"):
        return _positive(jnp.mean(jnp.abs(getattr(p, relative[0]))).astype(Y.dtype))
    return _largest_entry(D, Y, X)


_unit_of = jax.jit(_unit)


def _largest_entry(D: Dictionary, Y: Array, X: Any) -> Array:
    """The largest entry of X or, if X is None, of the best codes with one nonzero."""
    if X is not None:
        return jnp.max(jnp.abs(X)).astype(Y.dtype)
    norms = dictionaries.column_norms(D)
    norms = jnp.where(norms > 0, norms, jnp.inf)
    codes = jax.vmap(lambda y: (y @ D) / norms / norms)(Y)  # norms^2 may leave the range
    return jnp.max(jnp.abs(codes)).astype(Y.dtype)


def _positive(value: Array) -> Array:
    """The value, or 1 if the value is not positive."""
    return jnp.where(value > 0, value, 1)


def _with(p, theta, gamma=None):
    """Step params with one threshold and, if it is given, one step size."""
    values = dict.fromkeys(threshold_names(p), theta)
    if gamma is not None:
        values |= dict.fromkeys(names_with_role(p, "step size"), gamma)
    return p._replace(**{name: jnp.full_like(getattr(p, name), v) for name, v in values.items()})


def scaled(params: Unrolled, pair: Array) -> Unrolled:
    """Stacked params with theta_k <- t r^(k-1) theta_k, where the pair is (log t, (K-1) log r)."""

    def times(theta):
        factors = jnp.exp(pair[0] + pair[1] * jnp.linspace(0, 1, len(theta), dtype=pair.dtype))
        return theta * factors.reshape(-1, *[1] * (theta.ndim - 1)).astype(theta.dtype)

    names = threshold_names(params.steps)
    thetas = {name: times(jnp.asarray(getattr(params.steps, name))) for name in names}
    return params._replace(steps=params.steps._replace(**thetas))


_scaled_by = jax.jit(scaled)


def _best(layer, params, D, Y, X, judge: Loss, pairs) -> tuple[np.ndarray, float]:
    """The pair whose scaled params have the least loss after the last step, and this loss."""
    pairs = np.asarray(pairs, Y.dtype)
    padded = np.resize(pairs, (_PAIRS, 2))  # one program for searches of all sizes
    losses = np.asarray(_losses(layer, judge, params, D, Y, X, padded, len(pairs)))
    i = int(np.argmin(np.where(np.isnan(losses), np.inf, losses)))
    return pairs[i], float(losses[i])


@partial(jax.jit, static_argnums=(0, 1))
def _losses(layer, judge, params, D, Y, X, pairs, n):
    def tried(i, losses):
        codes = codes_of(layer, scaled(params, pairs[i]), D, Y)
        return losses.at[i].set(judge(codes, X, D, Y).astype(losses.dtype))

    return lax.fori_loop(0, n, tried, jnp.full(len(pairs), jnp.inf, Y.dtype))


def _grid(axes) -> np.ndarray:
    """The pairs of a grid whose two axes are (middle, half of the width, number of points)."""
    points = [at + width * np.linspace(-1, 1, n) if n > 1 else [at] for at, width, n in axes]
    return np.stack(np.meshgrid(*points, indexing="ij"), axis=-1).reshape(-1, 2)


def searched(layer, bases: Sequence[Unrolled], D, Y, X, judge: Loss, axes) -> Unrolled:
    """The base with the factors t r^(k-1) of least loss."""
    few: Any = jax.tree.map(lambda rows: rows[:_FEW], (Y, X))
    tried = [_best(layer, base, D, few[0], few[1], judge, _grid(axes)) for base in bases]
    i = min(range(len(bases)), key=lambda i: tried[i][1])
    # The middle of the finer grid is the best pair so far.
    finer = [
        (at, 2 * width / max(n - 1, 1), min(n, _FINE))
        for at, (_, width, n) in zip(tried[i][0], axes)
    ]
    pair, _ = _best(layer, bases[i], D, Y, X, judge, _grid(finer))
    return _scaled_by(bases[i], pair)


def of_theorem(layer: Layer, params: Unrolled, D: Dictionary, Y: Array, X: Any) -> list[Unrolled]:
    r"""Schedules of Theorem 12 without noise, for the two largest s that it covers, else [].

    .. math:: \theta_k = t r^{k-1}, \qquad t = \mu s B, \qquad r = (2 s - 1) \mu + \eta.
    """
    layer = dataclasses.replace(layer, guard=None)  # a guard does not change the step
    if layer.from_theory is None or not layer.is_coupled or dictionaries.block_of(D) > 1:
        return []
    mu, eta, size = map(float, _of_schedule(layer, params, D, Y, X))
    largest = max_sparsity(mu, D.shape[1])
    rates = [(s, (2 * s - 1) * mu + eta) for s in (largest - 1, largest)]
    pairs = [
        (math.log(mu * s * bound * size), (layer.depth - 1) * math.log(r))
        for s, r in rates
        for bound in _BOUNDS
        if s > 0 and mu * size > 0 and r < 1
    ]
    base = _at_unit(params, np.ones((), Y.dtype), True)
    return [_scaled_by(base, np.asarray(pair, Y.dtype)) for pair in pairs]


@partial(jax.jit, static_argnums=0)
def _of_schedule(layer: Layer, params: Unrolled, D: Dictionary, Y: Array, X: Any) -> Any:
    """mu_W, eta and the largest entry."""
    p = jax.tree.map(lambda rows: rows[0], params.steps)
    W = layer.weights(params.shared, p, D).W
    eta = jnp.max(jnp.abs(1 - diagonal(W, D)))
    return coherence(W, D).mu_W, eta, _unit(p, D, Y, X)


@partial(jax.jit, static_argnums=2)
def _at_unit(params: Unrolled, unit: Any, sizes_too: bool = False) -> Unrolled:
    """Stacked params whose thresholds are `unit`, and whose step sizes are 1 if asked for."""
    return params._replace(steps=_with(params.steps, unit, 1 if sizes_too else None))


def scaled_weights(layer: Layer, params: Unrolled, D: Dictionary) -> list[Unrolled]:
    """The params with c W in a list if steps have no step size and one step expands; else []."""
    unguarded = dataclasses.replace(layer, guard=None)  # a guard does not change the step
    if not unguarded.is_coupled or names_with_role(params.steps, "step size"):
        return []
    scaled, radius = _scaled(unguarded, params, D)
    rounding = D.shape[0] * float(jnp.finfo(radius.dtype).eps)  # shape of a product with one column
    return [scaled] if float(radius) > 2 * (1 + rounding) else []


@program("layer")
def _scaled(layer: Layer, params: Unrolled, D: Dictionary) -> tuple[Unrolled, Array]:
    """The params with c W, c = min(1, 2 / rho), and the largest spectral radius rho of W'D."""

    def scaled(p):
        radius = spectral_radius(layer.weights(params.shared, p, D).W, D)
        return _times(p, jnp.minimum(1, 2 / radius)), radius

    steps, radii = lax.map(scaled, params.steps)
    return Unrolled(_times(params.shared, jnp.minimum(1, 2 / radii[0])), steps), jnp.max(radii)


def _times(record, c: Array):
    """A record whose weights are multiplied by c."""
    weights = {name: getattr(record, name) for name in names_with_role(record, "weights")}
    weights = {name: W * c.astype(W.dtype) for name, W in weights.items()}
    return record._replace(**weights) if weights else record


# The share 1 / _HELD_BACK of the signals is held back from a greedy search.
_HELD_BACK = 4


@overload
def calibrate(
    model: Layer,
    params: Unrolled,
    D: Dictionary,
    Y: ArrayLike,
    X: ArrayLike | None = None,
    *,
    loss: Loss | None = None,
    report: Report = None,
) -> Unrolled: ...


@overload
def calibrate(
    model: Network,
    params: tuple[Unrolled, ...],
    D: Sequence[Dictionary],
    Y: ArrayLike,
    X: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    loss: Loss | None = None,
    report: Report = None,
) -> tuple[Unrolled, ...]: ...


@programs.takes_sharded
@host_function
def calibrate(
    model: Layer | Network,
    params: Any,
    D: Any,
    Y: ArrayLike | Any,  # complex signals, too
    X: Any = None,
    *,
    loss: Loss | None = None,
    report: Report = None,
) -> Any:
    r"""Choose thresholds and step sizes on a sample, without gradients.

    `calibrate` compares the given params with four forms of thresholds, and returns the params with
    the smallest loss after the last step:

    - two numbers t and r by a grid search, in the form of Theorem 12 for signals without noise,

    .. math:: \theta_k = t \, r^{k - 1}, \qquad k = 1, \dots, K;

    - the schedules of Theorem 12 for the two largest s that it covers, if the layer has weights of
      the theorem, where B is the largest entry of the sample times 1, 1.5, 2 or 3;
    - the given thresholds times one factor;
    - a greedy search: theta_k and gamma_k have the smallest error after step k, with the steps
      before k fixed, on three quarters of the sample; then one factor multiplies all theta_k. On
      the last quarter, the error must not be above the error of the given params. (With fewer than
      four signals, all signals serve both purposes.)

    The two numbers go with the given step sizes or with the step sizes of the greedy search.

    The loss is the squared error of the codes, or the loss that you pass, such as the objective of
    the LASSO if the codes are not known. A few failures among thousands of signals decide a sum of
    squared errors. From 100 signals on, `calibrate` therefore replaces the largest tenth of the
    errors by the mean of a Pareto tail, fitted to this tenth, that ends at the energy of a signal.

    `calibrate` sets the fields whose role is "threshold", "relative threshold" or "step size"
    (theta, the alpha of LAMP, gamma); except for the factor of the given thresholds, the entries
    of a field are equal. Steps x <-
    shrink(x + W'(y - D x), theta), which have no step size, expand if W'D has an eigenvalue above
    2. For such steps `calibrate` tries both W and c W with c = 2 / (spectral radius of W'D), and
    keeps the weights with the smaller loss on the sample. All other fields stay unchanged.

    `calibrate` treats a chain block by block: the signals of a block are the codes of the
    calibrated block before it.

    Args:
        model: any family whose steps have a threshold, such as `ista`, `alista` or `lamp`, or a
            chain of such layers (`dsc`), with tuples for `params` and `D`.
        params: params of the model; the search begins at these params.
        D: (m, d).
        Y: (batch, m), the signals.
        X: (batch, d), the true codes of Y. For a chain, pass a tuple with the codes of every block,
            or only the codes of the last block, (batch, d_J): then x_{j-1} = D_j x_j gives the
            other codes. If the codes are unknown, pass None and a loss.
        loss: the loss of a batch, `loss(codes, X, D, Y)` as in `training.fit`, such as
            `training.lasso_loss(lam)`; the codes of the last step are `codes[-1]`. By default, the
            loss is the squared error of the codes, and signals may have any magnitude.
        report: a function that gets one line, which says the form of the chosen params; a chain
            gives one line per block.

    Returns:
        Params in the form of `params`.

    Warns:
        UserWarning: the given params are kept, the codes are worse than zero codes on the held-back
            signals, or X is None and all codes are zero.

    Raises:
        TypeError: signals without codes are integers, the steps of the family have no threshold,
            the network is not a chain, or the loss or the report is not a function.
        ValueError: shapes do not fit, the sample is empty or all zero, X and the loss are both
            None, the loss needs codes and X is None, or the loss is the same for all codes.

    Not claimed: that the thresholds are the best, or that the loss on the sample is the loss on
    other signals. In a test with Gaussian dictionaries, (250, 500), closed-form W, K = 16 and 512
    signals, the choice for ALISTA-SS was up to 3.3 dB worse than the best candidate on 4,000 other
    signals if codes have 10 % nonzeros, and up to 12.5 dB worse with 5 % nonzeros. The NMSE at 10 %
    nonzeros was -11.3 dB for ISTA, -26.2 dB for LISTA-CP and ALISTA, and -54.1 dB for ALISTA-SS.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layer = ur.layers.ista(4)
        >>> start = layer.init(None, D)
        >>> calibrated = ur.analytic.calibrate(layer, start, D, Y, X)
        >>> errors = [ur.metrics.nmse(jax.vmap(layer.apply, (None, None, 0))(p, D, Y), X)
        ...           for p in (start, calibrated)]
        >>> bool(errors[1] < errors[0])
        True
    """
    checks.arrays(params, "params", "calibrate")
    aim = loss_of(loss, X, "calibrate") or squared
    if isinstance(model, Network):
        return _calibrate_chain(model, params, D, Y, X, aim, report)
    D = dictionaries.as_dictionary(D, "calibrate")
    Y, X = _sample(D, *dictionaries.flat_batch(D, (Y, X)))
    dtype = checks.common_dtype(params, D, X, Y)
    params, D, X, Y = (checks.cast(tree, dtype) for tree in (params, D, X, Y))
    model.check(params, D)
    return _calibrate_layer(model, params, D, Y, X, aim, report)


def _calibrate_layer(
    layer: Layer, params: Unrolled, D: Dictionary, Y: Any, X: Any, aim: Loss, report: Report
) -> Unrolled:
    """The candidate of least loss on the sample; the given params are a candidate."""
    if not layer.depth:
        return params
    start = stack(params)
    if start.steps is None or not threshold_names(start.steps):
        raise TypeError(
            "calibrate: expected steps with a threshold, such as theta, not in a record inside of "
            "them; this family has none"
        )
    given, *judged = (
        (_judged(aim, layer, p, D, Y, X), form, p)
        for form, p in (("the given params", start), *_candidates(layer, start, D, Y, X, aim))
    )
    # A greedy search chooses 2 K numbers: it must be good on signals that it has not seen, too.
    before = given[0]
    judged = [case for case in judged if case[1] != _GREEDY or case[0].later <= before.later]
    after, form, chosen = min(judged, key=lambda case: case[0].loss)
    if before.error == after.error == after.zero and not after.silent:
        raise ValueError(
            f"calibrate: the loss is {after.error:.6g} for all codes, zero codes too; does it "
            f"leave the range of {Y.dtype}? Try signals, and a lam, near 1"
        )
    if _is_worse(before, after, aim):
        after, form, chosen = given
    if report is not None:
        report(f"calibrate: {form}, {after.text(aim)} on the sample")
    _warn_of_end(after, aim, layer, D, Y, X)
    return unstack(chosen) if type(params.steps) is tuple else chosen


def _candidates(layer, start, D, Y, X, aim: Loss) -> list[tuple[str, Unrolled]]:
    """The forms of params that `calibrate` compares, each with its name."""
    judge = _judge(aim)
    seen = jax.tree.map(lambda rows: rows[: len(Y) - _n_held_back(Y) or len(Y)], (Y, X))
    found: list[tuple[str, Unrolled]] = []
    for params in (start, *scaled_weights(layer, start, D)):
        greedy_params = _first_pass(layer, params, D, *seen, aim)
        bases = [params]
        if names_with_role(params.steps, "step size"):
            bases.append(greedy_params)
        unit = _unit_of(params.steps, D, Y, X)
        bases = [_at_unit(base, unit) for base in bases]
        found += [
            (_GREEDY, searched(layer, [greedy_params], D, Y, X, judge, _FACTOR)),
            (
                "two numbers t and r, theta_k = t r^(k-1)",
                searched(layer, bases, D, Y, X, judge, _TWO_NUMBERS),
            ),
            *(("Theorem 12", p) for p in of_theorem(layer, params, D, Y, X)),
        ]
    factor = searched(layer, [start], D, Y, X, judge, _FACTOR)
    return [*found, ("the given thresholds times one factor", factor)]


def _calibrate_chain(
    network: Network, params, Ds, Y, X, aim: Loss, report: Report
) -> tuple[Unrolled, ...]:
    """Calibrate block after block, each on the codes of the calibrated block before it."""
    if not network.layers:
        raise TypeError(
            f"calibrate: the blocks of {network.family} do not run one after the other; expected a "
            "layer or a chain of layers, try training"
        )
    Ds = dictionaries.as_chain(Ds, "calibrate")
    network.check(params, Ds)
    targets = _targets(Ds, X)
    Y, _ = _sample(Ds[0], Y, targets[0])
    dtype = checks.common_dtype(params, Ds, targets, Y)
    params, Ds, targets, Y = (checks.cast(tree, dtype) for tree in (params, Ds, targets, Y))
    calibrated, signals = [], Y
    for layer, p, D, codes in zip(network.layers, params, Ds, targets):
        calibrated.append(_calibrate_layer(layer, p, D, *_sample(D, signals, codes), aim, report))
        signals = jax.vmap(layer.apply, (None, None, 0))(calibrated[-1], D, signals)
    truth = None if X is None else targets[-1] if aim is squared else targets
    before, after = (_judged(aim, network, p, Ds, Y, truth) for p in (params, tuple(calibrated)))
    return params if _is_worse(before, after, aim) else tuple(calibrated)


def _targets(Ds, X) -> tuple[Any, ...]:
    """The codes of every block; codes that are not given are computed from the last code."""
    if X is None:
        return (None,) * len(Ds)
    if isinstance(X, tuple | list):
        if len(X) != len(Ds):
            raise ValueError(
                f"calibrate: X has {len(X)} arrays of codes; expected {len(Ds)}, one per block"
            )
        return tuple(X)
    codes = [X]
    for D in reversed(Ds[1:]):
        codes.append(synthesize(D, codes[-1]))
    return tuple(reversed(codes))


class _Judged(NamedTuple):
    """The losses of the codes of a model; infinity instead of nan."""

    loss: float  # smoothed, if it is the squared error
    error: float
    zero: float  # error of zero codes
    silent: bool  # whether all codes are zero
    later: float  # error on the held-back signals
    later_zero: float
    held_back: int  # number of held-back signals

    def text(self, aim: Loss) -> str:
        """The loss on the sample as text; the squared error as an NMSE in dB."""
        if aim is not squared:
            return f"loss {self.error:.6g}"
        with np.errstate(divide="ignore", invalid="ignore"):
            return f"NMSE {10 * np.log10(np.divide(self.error, self.zero)):.1f} dB"


def _n_held_back(Y: Array) -> int:
    """The number of signals held back at the end; all signals if the sample is too small."""
    return len(Y) // _HELD_BACK or len(Y)


def _judged(aim: Loss, model, params, D, Y, X) -> _Judged:
    numbers = map(float, _numbers(aim, model, params, D, Y, X))
    loss, error, zero, silent, later, later_zero = (np.inf if np.isnan(v) else v for v in numbers)
    return _Judged(loss, error, zero, bool(silent), later, later_zero, _n_held_back(Y))


@partial(jax.jit, static_argnums=(0, 1))
def _numbers(aim: Loss, model, params, D, Y, X) -> tuple[Array, ...]:
    codes, n = codes_of(model, params, D, Y), _n_held_back(Y)
    zeros = jax.tree.map(jnp.zeros_like, codes)
    Y_later, X_later = jax.tree.map(lambda rows: rows[-n:], (Y, X))
    later, zeros_later = jax.tree.map(lambda x: x[..., -n:, :], (codes, zeros))
    silent = ~(codes[-1] != 0).any()
    on_these = aim(later, X_later, D, Y_later), aim(zeros_later, X_later, D, Y_later)
    judged = _judge(aim)(codes, X, D, Y)
    return judged, aim(codes, X, D, Y), aim(zeros, X, D, Y), silent, *on_these


def _is_worse(start: _Judged, best: _Judged, aim: Loss) -> bool:
    """Warn and return True if no candidate is better than the given params on the sample."""
    if best.loss < start.loss:
        return False
    checks.warn(
        "calibrate: kept the start; the search found nothing better (on the sample: start "
        f"{start.text(aim)}, best found {best.text(aim)})"
    )
    return True


def _warn_of_end(end: _Judged, aim: Loss, model, D, Y, X) -> None:
    """Warn if X is None and all codes are zero, or if held-back codes are worse than zero."""
    if end.silent and X is None:
        checks.warn(
            "calibrate: all codes are zero, as no thresholds give a smaller loss. Try a smaller lam"
        )
    if exceeds(end.later, end.later_zero):
        rows = jax.tree.map(lambda rows: rows[-end.held_back :], (Y, X))
        numbers: Any = (end.later, end.later_zero, _of_ista(aim, model, D, *rows))
        what, unit = "loss", ""
        if aim is squared:  # zero codes have the squared norm of the true codes
            what, unit = "NMSE", " dB"
            with np.errstate(divide="ignore", invalid="ignore"):
                numbers = tuple(10 * np.log10(np.divide(numbers, end.later_zero)))
        loss, zero, ista = numbers
        rule = worse_than_zero("the codes are", what, loss, zero, ista, unit)
        checks.warn(
            f"calibrate: on {end.held_back} held-back signals {rule}. Try smaller weights or step "
            "sizes"
        )


def _of_ista(aim: Loss, model, D, Y, X) -> float:
    """The loss of ISTA at the depth of a layer, with the lam of the loss or layer."""
    lam = lam_of(aim, model)
    if lam is None or not isinstance(model, Layer):
        return np.nan
    return float(aim(codes_of_ista(D, lam, model.depth, Y, "calibrate")[-1:], X, D, Y))


def _sample(D, Y, X) -> tuple[Array, Any]:
    own = X is None
    Y = checks.as_signals(Y, "Y", "calibrate") if own else checks.as_float(Y, "Y", "calibrate")
    X = None if own else checks.as_float(X, "X", "calibrate")
    dictionaries.check_batch(D, Y, X, "calibrate")
    checks.finite((Y, X), "the sample", "calibrate")
    what, fitted = ("signals", Y) if X is None else ("codes", X)
    if not np.any(np.asarray(fitted)):
        raise ValueError(
            f"calibrate: all {what} of the sample are zero; expected some signal to fit"
        )
    return Y, X
