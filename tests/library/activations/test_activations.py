"""Activations against grids, thresholds against proximal maps, supports against sorting."""

import dataclasses
import json
import math
import pickle
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from faults import rows
from registry import ACTIVATIONS, MONOTONE

import unrolled as ur
from unrolled import activations as ua
from unrolled.activations import _thresholds

CONSTANTS = ("tail_lipschitz", "tail_sup", "tail_oscillation", "relu_gap", "line_oscillation")
BUILT_IN = [
    *ua.NAMED.values(),
    *(ua.leaky_relu(slope) for slope in (0.0, 0.3, 1.0)),
    *(ua.elu(alpha) for alpha in (0.0, 0.5, 2.0)),
    *(ua.celu(alpha) for alpha in (0.5, 1.5)),
]
assert_close = partial(chex.assert_trees_all_close, rtol=0)
STEP = 1e-3  # grid spacing: slopes are seen to about STEP, extreme values to about STEP^2


def measured(act, unit=1.0, reach=50.0):
    """The constants of `act` seen on a grid of spacing STEP * unit over [-reach, reach] * unit."""
    half = round(reach / STEP)
    x = np.arange(-half, half + 1) * (STEP * unit)
    rho = np.asarray(act(x))
    tail, gap = rho[: half + 1], rho - np.maximum(x, 0)
    slope = np.abs(np.diff(tail)).max() / (STEP * unit)
    return dict(
        zip(CONSTANTS, (slope, np.abs(tail).max(), np.ptp(tail), np.abs(gap).max(), np.ptp(gap)))
    )


def assert_bounds(act, seen):
    """The constants of `act` bound what the grid shows, to the rounding of a quotient, 1e-9."""
    for name in CONSTANTS:
        assert seen[name] <= getattr(act, name) + 1e-9, name


def assert_tight(act, seen, unit=1.0, names=CONSTANTS):
    """Finite constants are what the grid shows, to its accuracy: STEP for slopes, abs(h'') <= 2."""
    for name in names:
        slack = 2 * STEP if name == "tail_lipschitz" else 1e-6 * unit
        if math.isfinite(getattr(act, name)):
            assert getattr(act, name) <= seen[name] + slack, name


@pytest.mark.few(8)
@pytest.mark.parametrize("act", BUILT_IN, ids=str)
def test_constants_are_tight_upper_bounds(act):
    seen = measured(act)
    assert_bounds(act, seen)
    assert_tight(act, seen)


@pytest.mark.parametrize("act", BUILT_IN, ids=str)
def test_infinite_constants_are_infinite(act):
    near, far = measured(act, unit=10, reach=50), measured(act, unit=100, reach=50)
    for name in CONSTANTS:
        if math.isinf(getattr(act, name)):
            assert far[name] > 5 * near[name], name  # what is unbounded here grows linearly


@pytest.mark.parametrize("act", BUILT_IN, ids=str)
def test_flags_hold(act):
    x = np.linspace(-20, 20, 4001)
    rho = np.asarray(act(x))
    if act.identity_on_positives:
        np.testing.assert_array_equal(rho[2000:], x[2000:])
    if act.nonpositive_tail:
        assert (rho[:2001] <= 0).all()


def test_elu_and_celu_meet_the_hypotheses_of_theorem_9():
    for act in (
        ua.relu,
        ua.leaky_relu(0.1),
        ua.elu(0.5),
        ua.celu(2.0),
        ua.scale(ua.elu(0.5), 3),
        ua.compose(ua.elu(0.5), 3),
    ):
        assert act.identity_on_positives and act.nonpositive_tail, act.name
    assert not any(act.identity_on_positives for act in (ua.silu, ua.gelu, ua.softplus, ua.selu))


def test_functions_are_those_of_their_names():
    x = np.linspace(-5, 5, 101)
    erf = np.vectorize(math.erf)
    expected = {
        ua.relu: np.maximum(x, 0),
        ua.leaky_relu(0.3): np.where(x > 0, x, 0.3 * x),
        ua.elu(0.5): np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0))),
        ua.celu(0.5): np.where(x > 0, x, 0.5 * np.expm1(np.minimum(x, 0) / 0.5)),
        ua.selu: 1.0507009873554805
        * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
        ua.silu: x / (1 + np.exp(-x)),
        ua.gelu: x * (1 + erf(x / math.sqrt(2))) / 2,
        ua.gelu_tanh: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ua.mish: x * np.tanh(np.log1p(np.exp(x))),
        ua.softplus: np.log1p(np.exp(x)),
        ua.hard_swish: x * np.clip(x + 3, 0, 6) / 6,
        ua.scale(ua.silu, 2.0): x / (1 + np.exp(-2 * x)),
        ua.compose(ua.elu(0.5), 2): np.where(
            x > 0, x, 0.5 * np.expm1(0.5 * np.expm1(np.minimum(x, 0)))
        ),
    }
    found = jax.jit(lambda x: [act(x) for act in expected])(x)
    for (act, values), ours in zip(expected.items(), found, strict=True):
        # Both sides round a handful of operations on numbers of size 5.
        assert_close(ours, values, rtol=1e-14, atol=1e-14, custom_message=act.name)


@pytest.mark.few(2)
@pytest.mark.parametrize("k", [0.1, 1.0, 7.0, 100.0])
def test_scale_keeps_constants_valid_and_tight(k):
    for act in (
        ua.relu,
        ua.leaky_relu(0.3),
        ua.elu(0.5),
        ua.celu(1.5),
        ua.silu,
        ua.mish,
        ua.softplus,
        ua.selu,
    ):
        scaled, seen = ua.scale(act, k), measured(ua.scale(act, k), unit=1 / k)
        assert_bounds(scaled, seen)
        assert_tight(scaled, seen, unit=1 / k)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2, 3, 6])
def test_compose_keeps_constants_valid(times):
    acts = (*BUILT_IN, ua.scale(ua.elu(2.0), 3), ua.scale(ua.silu, 0.5), ua.compose(ua.elu(0.5), 2))
    for act in acts:
        composed = ua.compose(act, times)
        assert_bounds(composed, measured(composed, reach=20.0))


@pytest.mark.few(1)
@pytest.mark.parametrize("times", [2, 3, 6])
def test_compose_is_exact_for_monotone_tails(times):
    for act in (ua.relu, ua.elu(0.5), ua.elu(1.0), ua.elu(1.5), ua.celu(0.5), ua.celu(1.5)):
        composed = ua.compose(act, times)
        assert_tight(composed, measured(composed), names=CONSTANTS[1:])
        # The slope alpha^m is reached at 0-, where it also changes fastest: by about m alpha^(2 m)
        # a unit.
        slope = measured(composed)["tail_lipschitz"]
        assert (
            composed.tail_lipschitz <= slope + times * STEP * max(1, composed.tail_lipschitz) ** 2
        )


def test_composing_elu_shrinks_the_tail_geometrically():
    sups = [ua.compose(ua.elu(0.5), times).tail_sup for times in range(1, 8)]
    assert all(after <= 0.5 * before for before, after in zip(sups, sups[1:]))


@pytest.mark.parametrize("k", [0.5, 3.0])
def test_selu_is_a_scaled_elu(k):
    x = np.linspace(-5, 5, 101)
    theirs = np.asarray(ua.scale(ua.elu(1.6732632423543772), k)(x))
    assert_close(np.asarray(ua.selu(k * x)) / (1.0507009873554805 * k), theirs, rtol=1e-14)


# Sums of sigmoids.


SUMS = [
    ua.sigmoid_sum(0.1, 2.0), ua.tanh_sum(0.1, 2.0), ua.sigmoid_sum(0.05, 1.0, 500.0),
    ua.sigmoid_sum(0.3, 1.0, 0.5), ua.tanh_sum(0.3, 1.0, 4.0), ua.sigmoid_sum(0.3, 1.0),
    ua.sigmoid_sum(1.0, 1.0), ua.scale(ua.sigmoid_sum(0.1, 2.0), 5.0),
]  # fmt: skip


@pytest.mark.parametrize("act", SUMS, ids=str)
def test_sums_of_sigmoids_are_as_near_to_relu_as_they_say(act):
    x = np.linspace(-act.reach, act.reach, 8001)
    rho = np.asarray(act(x))
    gap = np.abs(rho - np.maximum(x, 0)).max()
    assert 0.2 * act.relu_gap < gap <= act.relu_gap
    assert np.ptp(rho - np.maximum(x, 0)) <= act.line_oscillation
    # The tail is bounded on the whole half-line: rho increases from 0.
    tail = np.asarray(act(-np.geomspace(1e-9, 1e3, 999)))
    assert tail.min() >= 0 and tail.max() <= min(act.tail_sup, act.tail_oscillation)
    assert (np.diff(rho) >= -1e-15).all()
    assert np.diff(rho)[x[1:] <= 0].max() / (x[1] - x[0]) <= act.tail_lipschitz
    assert not act.identity_on_positives and math.isfinite(act.reach)


def test_a_sum_of_sigmoids_is_its_formula():
    x, h, M, k = np.linspace(-3, 3, 61), 0.25, 2.0, 7.0
    t = (np.arange(8) + 0.5) * h
    expected = h * (1 / (1 + np.exp(-k * (x[:, None] - t)))).sum(1)
    assert_close(ua.sigmoid_sum(h, M, k)(x), expected, atol=1e-14)
    expected = h / 2 * (1 + np.tanh(k * (x[:, None] - t))).sum(1)
    assert_close(ua.tanh_sum(h, M, k)(x), expected, atol=1e-14)
    many = jax.eval_shape(ua.sigmoid_sum(h, M), np.ones((2, 3), np.float32))
    assert (many.dtype, many.shape) == (np.float32, (2, 3))


def test_the_gap_of_a_sum_of_sigmoids_is_proportional_to_their_distance():
    gaps = [ua.sigmoid_sum(h, 1.0).relu_gap / h for h in (0.1, 0.01, 0.001)]
    assert gaps == pytest.approx([math.sqrt(math.log(2)) / 2] * 3)
    # No steepness has a smaller bound.
    assert all(ua.sigmoid_sum(0.1, 1.0, k).relu_gap >= 0.1 * gaps[0] for k in (5, 30, 35, 400))
    # Without a slope they are stairs, half of a step from ReLU.
    assert ua.sigmoid_sum(0.1, 1.0, 1e9).relu_gap == pytest.approx(0.05)


@pytest.mark.parametrize("act", SUMS[:4], ids=str)
def test_composing_sums_of_sigmoids_shrinks_their_reach(act):
    composed = ua.compose(act, 3)
    assert composed.reach == max(act.reach - 2 * act.relu_gap, 0)
    if composed.reach:
        x = np.linspace(-composed.reach, composed.reach, 2001)
        gap = np.asarray(composed(x)) - np.maximum(x, 0)
        assert np.abs(gap).max() <= composed.relu_gap


# Claimed constants.


def test_check_returns_the_constants_that_it_measures():
    seen = ua.check(ua.mish)
    for name in CONSTANTS:
        assert getattr(seen, name) == pytest.approx(getattr(ua.mish, name), rel=1e-3), name
    # Differences of large negative values have rounding errors, which the check leaves to them.
    steep = ua.Activation("steep", 3.0, *[np.inf] * 3, lambda x: jnp.where(x > 0, x, 3 * x))
    assert ua.check(steep).tail_lipschitz == pytest.approx(3, rel=1e-3)


@pytest.mark.few(4)
@pytest.mark.parametrize("act", [*BUILT_IN, *SUMS[:2], ua.scale(ua.mish, 1e4)], ids=str)
def test_check_passes_true_constants_and_refuses_smaller_ones(act):
    seen = ua.check(act)
    assert ua.is_known(act)
    for name in CONSTANTS:
        assert getattr(seen, name) <= getattr(act, name) * (1 + 1e-9)
        if getattr(seen, name) > 1e-6:
            false = dataclasses.replace(act, **{name: 0.99 * getattr(seen, name)})
            assert not ua.is_known(false)
            with pytest.raises(ValueError, match=rf"claims {name} = [\d.e-]+, measured"):
                ua.check(false)
    x = np.linspace(-1, 1, 201)
    rho = np.asarray(act(x))
    holds = np.allclose(rho[100:], x[100:]), (rho[:101] <= 0).all()
    for name, true in zip(("identity_on_positives", "nonpositive_tail"), holds):
        if not (getattr(act, name) or true or act.name in ("hard_swish", "gelu", "silu", "mish")):
            with pytest.raises(ValueError, match=f"claims {name} = True, measured rho"):
                ua.check(dataclasses.replace(act, **{name: True}))


def test_check_finds_a_bend_at_every_scale():
    for k in (1e-4, 1.0, 1e6):
        act = ua.scale(ua.softplus, k)
        assert ua.check(act).relu_gap == pytest.approx(act.relu_gap, rel=1e-6)
        with pytest.raises(ValueError, match="relu_gap"):
            ua.check(dataclasses.replace(act, relu_gap=0.999 * act.relu_gap))


def _counted(x, calls):
    calls.append(x.shape)
    return jax.nn.relu(x)


class _Calls(list):
    __hash__ = object.__hash__


def test_check_is_cached_where_the_parameters_hash_and_works_under_jit():
    for calls, cached in ((_Calls(), True), ([], False)):
        act = ua.Activation("own", 0.0, 0.0, 0.0, 0.0, _counted, (calls,))
        jax.jit(lambda v: v * ua.check(act).relu_gap)(1.0)  # noqa: B023
        first = len(calls)
        assert first and ua.check(act).relu_gap == 0
        assert (len(calls) == first) == cached


def test_other_parameters_are_other_activations():
    made = [
        *(ua.elu(0.5), ua.leaky_relu(0.1), ua.scale(ua.elu(0.5), 3), ua.scale(ua.relu, 2)),
        *(ua.compose(ua.scale(ua.celu(), 2), 4), ua.elu(0.25), ua.scale(ua.relu, 3)),
    ]
    assert len({*made, *ua.NAMED.values()}) == len(made) + len(ua.NAMED)
    assert ua.compose(ua.silu, 1) == ua.silu


def test_a_lambda_is_an_activation():
    v = np.linspace(-2, 2, 9)
    ours = jax.jit(lambda v: ua.shrink(v, 0.5, lambda x: jnp.maximum(x, 0.0)))(v)
    np.testing.assert_array_equal(ours, ua.soft_threshold(v, 0.5))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_monotone_is_named(act):
    assert ua.is_monotone(ACTIVATIONS[act]()) == (act in MONOTONE)
    assert not ua.is_monotone(lambda x: x)


def test_by_name_finds_names_and_passes_functions():
    for name, act in ua.NAMED.items():
        assert ua.by_name(name) is act
        assert str(ua.by_name(name)).split("(")[0] == name
    assert ua.by_name(jnp.tanh) is jnp.tanh
    assert ua.by_name(ua.relu) is ua.relu
    assert ua.by_name(Unhashable) is Unhashable


def test_functions_of_jax_become_the_activations_that_know_their_constants():
    names = "relu leaky_relu elu celu selu silu swish gelu mish softplus hard_swish hard_silu"
    functions = [getattr(jax.nn, name) for name in names.split()]
    acts = [ua.by_name(function) for function in functions]
    assert set(acts) <= set(ua.NAMED.values()) and acts[0] is ua.relu
    x, eps = np.linspace(-4, 4, 81), np.finfo(float).eps
    pairs = jax.jit(lambda x: [(act(x), f(x)) for act, f in zip(acts, functions)])(x)
    for act, (ours, theirs) in zip(acts, pairs):
        # Our mish has about eight roundings, and gelu_tanh those of x (1 + tanh) / 2, near x eps.
        assert_close(
            ours,
            theirs,
            rtol=8 * eps * (act is ua.mish),
            atol=4 * eps * np.max(np.abs(x)) * (act is ua.gelu_tanh),
            custom_message=act.name,
        )


DESCRIBED = {
    **{name: make() for name, make in ACTIVATIONS.items()},
    "a sum of tanh": ua.tanh_sum(0.1, 2.0),
    "a third": ua.elu(1 / 3),
    "deep": ua.compose(ua.scale(ua.compose(ua.leaky_relu(0.1), 2), 1e-3), 5),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_survives_json_and_pickle(name):
    act = DESCRIBED[name]
    form = json.loads(json.dumps(ua.describe(act)))
    assert ua.from_description(form) == act
    assert ua.describe(ua.from_description(form)) == form
    assert pickle.loads(pickle.dumps(act)) == act


def test_descriptions_read_as_what_one_types():
    assert ua.describe(ua.elu()) == "elu" and ua.describe(ua.elu(0.5)) == ["elu", 0.5]
    act = ua.scale(ua.compose(ua.elu(0.9), 3), 5.0)
    assert ua.describe(act) == ["scale", ["compose", ["elu", 0.9], 3], 5.0]
    assert repr(act) == str(act) == "scale(compose(elu(0.9), 3), 5)"
    assert repr([ua.relu, ua.elu(0.5)]) == "[relu, elu(0.5)]"


def _bent(x):
    return x - 0.1 * jnp.tanh(x)


def test_an_activation_of_a_users_own_is_described_by_its_name(monkeypatch):
    own = ua.Activation("bent", 1.0, math.inf, math.inf, math.inf, _bent)
    for what in (own, _bent, ua.scale(own, 2.0), dataclasses.replace(ua.elu(0.5), tail_sup=1.0)):
        with pytest.raises(TypeError, match="add it to activations.NAMED under a name"):
            ua.describe(what)
    monkeypatch.setitem(ua.NAMED, "bent", own)
    monkeypatch.setitem(ua.NAMED, "bare", _bent)
    assert ua.describe(own) == "bent" and ua.from_description("bent") is own
    assert ua.describe(_bent) == "bare" and ua.from_description("bare") is _bent
    scaled = ua.scale(own, 2.0)
    assert ua.describe(scaled) == ["scale", "bent", 2.0]
    assert ua.from_description(["scale", "bent", 2.0]) == scaled


@pytest.mark.parametrize(
    "form",
    [
        "__import__('os')",
        "rulu",
        "",
        [],
        None,
        3,
        {"elu": 1},
        ["relu"],
        ["by_name", "relu"],
        ["shrink", 1.0],
        [["elu", 0.5]],
        ["elu", 0.5, 1],
        ["elu", "relu"],
        ["elu", -1.0],
        ["elu", None],
        ["elu", float("nan")],
        ["elu", {}],
        ["scale", "relu"],
        ["scale", 2.0, "relu"],
        ["scale", "rulu", 2.0],
        ["compose", "relu", 2.5],
        ["compose", "relu", 0],
        ["compose", "relu", True],
    ],
    ids=str,
)
def test_a_form_that_no_activation_has_is_refused(form):
    with pytest.raises(ValueError, match="activation|elu|scale|compose"):
        ua.from_description(form)


class _Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x


Unhashable = _Unhashable()


def minimax_concave(x, theta, upper):
    """The penalty whose proximal map is the firm threshold."""
    return np.where(
        np.abs(x) <= upper, theta * np.abs(x) - theta * x**2 / (2 * upper), theta * upper / 2
    )


PROXIMAL = {
    "soft": (lambda v: ua.soft_threshold(v, 0.7), lambda x: 0.7 * np.abs(x)),
    "shrink": (lambda v: ua.shrink(v, 0.7), lambda x: 0.7 * np.abs(x)),
    "soft, 0": (lambda v: ua.soft_threshold(v, 0.0), lambda x: 0 * x),
    "hard": (lambda v: ua.hard_threshold(v, 0.7), lambda x: 0.7**2 / 2 * (x != 0)),
    "firm": (lambda v: ua.firm_threshold(v, 0.7, 1.5), lambda x: minimax_concave(x, 0.7, 1.5)),
    "nonnegative": (
        lambda v: ua.nonnegative_threshold(v, 0.7),
        lambda x: np.where(x < 0, np.inf, 0.7 * x),
    ),
}


@pytest.mark.parametrize("name", PROXIMAL)
def test_thresholds_are_proximal_maps(name):
    prox, penalty = PROXIMAL[name]
    v = np.linspace(-3, 3, 121)
    grid = np.arange(-4000, 4001) / 1000

    def objective(x):
        return (x - v[:, None]) ** 2 / 2 + penalty(x)

    p = np.asarray(prox(v))
    # A minimiser is no worse than any grid point; 1e-13 is the rounding of numbers of size 10.
    assert (objective(p[:, None])[:, 0] <= objective(grid[None, :]).min(1) + 1e-13).all()
    # Each objective grows by at least a tenth of the squared distance, so the best grid point is
    # near.
    nearest = grid[objective(grid[None, :]).argmin(1)]
    jumps = np.isclose(np.abs(v), 0.7) if name == "hard" else np.zeros(v.shape, bool)
    assert (np.abs(p - nearest)[~jumps] <= 2e-3).all()


def test_thresholds_are_their_formulas(dtype):
    v = np.linspace(-3, 3, 241, dtype=dtype)
    theta, upper = dtype.type(0.75), dtype.type(1.5)
    size, elu = np.abs(v), ua.elu(0.5)
    slope = np.sign(v) * (size - theta) * upper / (upper - theta)
    cases = [
        (ua.soft_threshold(v, theta), np.sign(v) * np.maximum(size - theta, 0)),
        (ua.shrink(v, theta, elu), np.asarray(elu(v - theta)) - np.asarray(elu(-v - theta))),
        (ua.hard_threshold(v, theta), np.where(size > theta, v, 0)),
        (
            ua.firm_threshold(v, theta, upper),
            np.where(size <= theta, 0, np.where(size >= upper, v, slope)),
        ),
        (ua.nonnegative_threshold(v, theta), np.maximum(v - theta, 0)),
    ]
    for ours, formula in cases:
        assert ours.dtype == dtype
        # Two roundings of numbers up to 3.
        assert_close(ours, formula, atol=8 * np.finfo(dtype).eps)


def test_theta_may_differ_by_entry():
    v, theta = np.array([3.0, -3.0, 0.5, -2.0]), np.array([1.0, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(ua.shrink(v, theta), [2.0, -1.0, 0.0, -2.0])
    np.testing.assert_array_equal(ua.hard_threshold(v, theta), [3.0, -3.0, 0.0, -2.0])
    firm = ua.firm_threshold(v, theta, theta + 4)
    assert_close(firm, np.array([2.5, -1.5, 0.0, -2.0]), rtol=4 * np.finfo(float).eps)
    np.testing.assert_array_equal(ua.nonnegative_threshold(v, theta), [2.0, 0.0, 0.0, 0.0])


def test_firm_tends_to_soft():
    v = np.linspace(-3, 3, 61)
    # The slope is 1 + theta / (upper - theta), one plus about 1e-9.
    assert_close(ua.firm_threshold(v, 1.0, 1e9), ua.soft_threshold(v, 1.0), atol=3e-9)
    np.testing.assert_array_equal(ua.firm_threshold(v, 1.0, np.inf), ua.soft_threshold(v, 1.0))


@pytest.fixture(scope="module")
def drawn():
    """Pairs of vectors with entries up to 1e3, and a threshold for each."""
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.uniform(-3, 3, (2, 100, 8))
    return *(size * rng.choice([-1, 0, 1], size.shape)), 10.0 ** rng.uniform(-3, 3, (100, 1))


@pytest.mark.parametrize("prox", [ua.soft_threshold, ua.nonnegative_threshold])
def test_convex_thresholds_are_firmly_nonexpansive(prox, drawn):
    a, b, theta = drawn
    moved = np.asarray(prox(a, theta)) - np.asarray(prox(b, theta))
    # Both sides are sums of 8 products of numbers up to 4e3, each with a few roundings.
    slack = 64 * np.finfo(float).eps * 2e3**2
    assert (np.sum(moved * (a - b), 1) >= np.sum(moved * moved, 1) - slack).all()


def test_soft_threshold_splits_its_argument(drawn):
    """Moreau: v = prox + projection onto the box; one rounding of v - theta, one of the sum."""
    v, _, theta = drawn
    p = np.asarray(ua.soft_threshold(v, theta))
    assert_close(p + np.clip(v, -theta, theta), v, atol=2 * np.finfo(float).eps * 2e3)


def test_gradients_at_and_off_the_kinks():
    v = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    derivatives = {
        "shrink": (lambda u: ua.shrink(u, 1.0), [1, 0, 0, 0, 0, 0, 1]),
        "shrink, theta 0": (lambda u: ua.shrink(u, 0.0), [1, 1, 1, 0, 1, 1, 1]),
        "hard": (lambda u: ua.hard_threshold(u, 1.0), [1, 0, 0, 0, 0, 0, 1]),
        "firm": (lambda u: ua.firm_threshold(u, 1.0, 5.0), [1.25, 0, 0, 0, 0, 0, 1.25]),
        "firm, beyond": (lambda u: ua.firm_threshold(u, 1.0, 2.0), [1, 0, 0, 0, 0, 0, 1]),
        "nonnegative": (lambda u: ua.nonnegative_threshold(u, 1.0), [0, 0, 0, 0, 0, 0, 1]),
    }

    @jax.jit
    def slopes(v):
        by_v = {name: jax.vmap(jax.grad(f))(v) for name, (f, _) in derivatives.items()}
        return by_v, jax.vmap(jax.grad(ua.shrink, argnums=1), (0, None))(v, 1.0)

    by_v, by_theta = slopes(v)
    for name, (_, expected) in derivatives.items():
        np.testing.assert_array_equal(by_v[name], expected, err_msg=name)
    np.testing.assert_array_equal(by_theta, [1, 0, 0, 0, 0, 0, -1])


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_and_slopes_are_right_in_the_whole_range_of_a_dtype(dtype):
    top = float(jnp.finfo(dtype).max) / 4
    sizes = np.concatenate([np.geomspace(1e-3, 40, 60), np.geomspace(40, top, 30)])
    x = jnp.asarray(np.concatenate([-sizes, sizes]), dtype)

    @jax.jit
    def both(x):
        return {name: jax.jvp(act, (x,), (jnp.ones_like(x),)) for name, act in ua.NAMED.items()}

    narrow, wide = both(x), both(x.astype(np.float64))
    eps = float(jnp.finfo(dtype).eps)
    for name, (values, slopes) in narrow.items():
        exact, exact_slopes = map(np.asarray, wide[name])
        # A few roundings of arguments up to 40, where the tails bend.
        size = 64 * eps * (1 + np.abs(exact))
        assert (np.abs(np.asarray(values, np.float64) - exact) <= size).all(), name
        assert (np.abs(np.asarray(slopes, np.float64) - exact_slopes) <= 64 * eps).all(), name


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("k", [1e4, 1e6])
def test_steep_activations_stay_in_the_range_of_half_precision(dtype, k):
    x = jnp.asarray([-40.0, -1.0, 0.0, 1.0, 40.0, 300.0], dtype)
    acts = ua.scale(ua.elu(), k), ua.scale(ua.softplus, k), ua.celu(1 / k)
    found = jax.jit(lambda x: [jax.jvp(act, (x,), (jnp.ones_like(x),)) for act in acts])(x)
    wide = np.asarray(x, float)
    for act, (values, slopes) in zip(acts, found):
        assert values.dtype == slopes.dtype == x.dtype
        values, slopes = (np.asarray(v, float) for v in (values, slopes))
        assert_close(values, np.maximum(wide, 0), atol=2 / k, custom_message=act)
        assert_close(slopes[wide != 0], (wide > 0)[wide != 0].astype(float), custom_message=act)


@pytest.mark.slow
def test_the_derivative_of_shrink_holds_in_both_modes_and_twice():
    v, theta = jnp.asarray([-2.0, -0.4, 0.3, 1.7, jnp.nan]), 0.5
    x, along = jax.jvp(ua.shrink, (v, theta), (jnp.full(5, 3.0), 2.0))
    np.testing.assert_array_equal(x, [-1.5, 0, 0, 1.2, np.nan])
    np.testing.assert_array_equal(along, [5, 0, 0, 1, np.nan])  # dv - sign(x) dtheta on the support
    square = jax.hessian(lambda z: jnp.sum(ua.shrink(z[:4], z[4]) ** 2) / 2)(
        jnp.append(v[:4], theta)
    )
    gradient = np.array([[1, 0, 0, 0, 1], [0, 0, 0, 1, -1]])  # of the two entries that are not zero
    np.testing.assert_array_equal(square, gradient.T @ gradient)
    np.testing.assert_array_equal(
        jax.grad(lambda v: jnp.sum(ua.shrink(v, 1)))(v[:4]), [1, 0, 0, 1]
    )  # an integer theta


def sorted_selection(v, theta, fraction):
    """`select_support` with ReLU, by a sort."""
    count, size = int(np.round(fraction * v.size)), np.abs(v)
    border = np.sort(size)[::-1][count] if count < v.size else -1.0
    soft = np.sign(v) * np.maximum(size - theta, 0)
    return np.where((size > border) & (size > theta), v, soft)


def test_select_support_agrees_with_a_sort():
    rng = np.random.default_rng(0)
    select = jax.jit(ua.select_support)
    distinct, tied = rng.normal(size=(6, 20)), rng.integers(-3, 4, (6, 20)).astype(float)
    for v in (*distinct, *tied, np.zeros(20), np.ones(20)):
        for fraction in (0.0, 0.04, 0.1, 0.33, 0.5, 0.95, 1.0):
            for theta in (0.0, 0.6, 2.0):
                ours = select(v, theta, fraction)
                np.testing.assert_array_equal(ours, sorted_selection(v, theta, fraction))


def test_select_support_extremes(dtype):
    v = np.array([3.0, -2.0, 1.0, -0.5, 0.0], dtype)
    np.testing.assert_array_equal(ua.select_support(v, 0.75, 0.0), ua.soft_threshold(v, 0.75))
    np.testing.assert_array_equal(ua.select_support(v, 0.75, 1.0), ua.hard_threshold(v, 0.75))
    assert ua.select_support(v, 0.75, 0.4).dtype == dtype
    # Two of five pass; with a tie at the border neither of the tied ones does.
    np.testing.assert_array_equal(ua.select_support(v, 0.5, 0.4), [3.0, -2.0, 0.5, 0.0, 0.0])
    tied = np.array([3.0, -2.0, 2.0, 1.0, 0.0], dtype)
    np.testing.assert_array_equal(ua.select_support(tied, 0.5, 0.4), [3.0, -1.5, 1.5, 0.5, 0.0])


def test_select_support_with_another_activation():
    v = np.array([3.0, -2.0, 1.0, -0.5])
    expected = np.where(np.abs(v) > 1.5, v, ua.shrink(v, 0.75, ua.elu(0.5)))
    np.testing.assert_array_equal(ua.select_support(v, 0.75, 0.5, ua.elu(0.5)), expected)


def test_select_support_under_vmap():
    rng = np.random.default_rng(1)
    V, fractions, thetas = rng.normal(size=(5, 11)), np.linspace(0, 1, 5), np.linspace(0, 1, 5)
    ours = jax.jit(jax.vmap(ua.select_support))(V, thetas, fractions)
    for row, v, theta, fraction in zip(ours, V, thetas, fractions):
        np.testing.assert_array_equal(row, sorted_selection(v, theta, fraction))


def test_select_support_choice_carries_no_gradient():
    slopes = jax.jit(jax.jacobian(ua.select_support, argnums=(0, 1, 2)))
    by_v, by_theta, by_fraction = slopes(np.array([3.0, -2.0, 1.0, -0.25]), 0.5, 0.5)
    np.testing.assert_array_equal(by_v, np.diag([1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(by_theta, [0.0, 0.0, -1.0, 0.0])
    np.testing.assert_array_equal(by_fraction, np.zeros(4))


def test_select_support_counts_in_low_precision():
    one = 0x3F80  # the bits of 1 in bfloat16: 1000 distinct numbers from there on
    v = np.arange(one, one + 1000, dtype=np.uint16).view(ml_dtypes.bfloat16)
    for count in (1, 51, 301, 777):
        kept = np.asarray(ua.select_support(v, 0.5, count / 1000, jnp.zeros_like))
        assert np.count_nonzero(kept) == count


FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("float_type", FLOATS, ids=lambda t: np.dtype(t).name)
def test_kth_largest_is_the_sorted_one(float_type):
    info = ml_dtypes.finfo(float_type)
    rng = np.random.default_rng(2)
    special = [
        0,
        0,
        info.smallest_subnormal,
        info.smallest_normal,
        info.eps,
        1,
        1,
        1 + info.eps,
        info.max,
        np.inf,
    ]
    special = np.asarray([float(v) for v in special]).astype(float_type)
    kth = jax.jit(jax.vmap(ua.kth_largest, (None, 0)))
    for magnitude in (
        rng.permutation(special),
        rng.integers(0, 3, 10).astype(float_type),
        np.abs(rng.normal(size=10)).astype(float_type),
        np.zeros(10, float_type),
    ):
        ours = np.asarray(kth(magnitude, np.arange(1, 11, dtype=np.int32)))
        assert ours.dtype == float_type
        np.testing.assert_array_equal(
            ours.view(f"u{info.bits // 8}"), np.sort(magnitude)[::-1].view(f"u{info.bits // 8}")
        )


@pytest.mark.parametrize("d", [31, 32, 33, 500])
def test_kth_largest_counts_many_ties(d):
    rng = np.random.default_rng(3)
    for magnitude in (rng.integers(0, 4, d), np.ones(d), np.abs(rng.normal(size=d))):
        magnitude = magnitude.astype(np.float32)
        order = np.sort(magnitude)[::-1]
        for k in (1, 2, d // 2, d - 1, d):
            assert ua.kth_largest(magnitude, k) == order[k - 1]


def test_kth_largest_counts_more_rows_than_16_bits_do():
    assert ua.kth_largest(np.ones(2**20 + 1, np.float32), 2**20 + 1) == 1


@pytest.mark.slow
def test_support_is_selected_without_jit():
    with jax.disable_jit():
        v = np.array([3.0, -1.0, 2.0], np.float32)
        assert ua.select_support(v, 1.5, 0.4).tolist() == [3, 0, 0.5]


def test_kth_largest_is_the_same_on_other_devices():
    """Which have a search of their own, that runs anywhere."""
    bits = np.abs(np.random.default_rng(0).normal(size=200)).view(np.int64)
    searches = [
        jax.jit(search) for search in (_thresholds._count_search, _thresholds._count_search_on_cpu)
    ]
    for k in np.array([1, 77, 200], np.int32):
        ours, theirs = (search(bits, k) for search in searches)
        assert int(ours) == int(theirs) == np.sort(bits)[::-1][k - 1]


def test_a_row_that_devices_share_is_not_reshaped():
    def columns():
        return "32]" in str(jax.make_jaxpr(lambda v: ua.kth_largest(v, 3))(jnp.ones(40)))

    def mesh(kind):
        return jax.sharding.AbstractMesh((2,), ("atoms",), axis_types=(kind,))

    kinds = jax.sharding.AxisType
    assert columns()
    with jax.sharding.use_abstract_mesh(mesh(kinds.Auto)):
        assert not columns()
    with jax.sharding.use_abstract_mesh(mesh(kinds.Manual)):
        assert columns()


@pytest.mark.parametrize("integer", [int, np.int32, np.int64])
def test_kth_largest_takes_any_integer(integer):
    assert jax.jit(ua.kth_largest)(np.array([1.0, 3.0, 2.0]), integer(2)) == 2.0


def test_a_traced_negative_theta_expands():
    expanded = jax.jit(ua.shrink)(np.array([2.0, -2.0, 0.25]), -0.5)
    np.testing.assert_array_equal(expanded, [2.5, -2.5, 0.5])


# What is refused


def _bad(x, kind):
    return {
        "nan": jnp.where(x > 3, jnp.nan, x),
        "shape": x[None],
        "integers": jnp.round(x).astype(jnp.int32),
    }[kind]


def _own(kind):
    return partial(ua.check, ua.Activation("own", 1.0, 1.0, 1.0, 1.0, _bad, (kind,)))


V = np.ones(3)
CODES = np.ones((2, 3))
THRESHOLDS = {
    "shrink": ua.shrink,
    "soft_threshold": ua.soft_threshold,
    "hard_threshold": ua.hard_threshold,
    "firm_threshold": partial(ua.firm_threshold, upper=5.0),
    "nonnegative_threshold": ua.nonnegative_threshold,
    "select_support": partial(ua.select_support, fraction=0.5),
}
ORDERS = {
    "kth_largest: magnitude": partial(ua.kth_largest, k=1),
    "select_support: v": partial(ua.select_support, theta=0.1, fraction=0.5),
    "keep_largest: v": partial(ur.layers.keep_largest, sparsity=1),
}
test_faults_are_refused = rows(
    *(
        (
            partial(jit(partial(call, theta=theta)), V),
            f"{name.replace('soft_threshold', 'shrink')}: theta must be non-negative and not NaN",
        )
        for name, call in THRESHOLDS.items()
        for theta in (-1.0, math.nan, np.array([1.0, -1e-9, 1.0]))
        for where, jit in (("", lambda f: f), (", in a program", jax.jit))
    ),
    *(
        (partial(ua.firm_threshold, V, 1.0, upper), "expected theta < upper, got theta=1.0")
        for upper in (1.0, 0.5, math.nan)
    ),
    *(
        (partial(ua.select_support, V, 1.0, fraction), r"fraction must be in \[0, 1\]")
        for fraction in (-0.1, 1.1, math.nan)
    ),
    *(
        (partial(call, bad), rf"{name} has shape {re.escape(str(bad.shape))}; expected \(d,\)")
        for name, call in ORDERS.items()
        for bad in (CODES, CODES[0, 0])
    ),
    *(
        (partial(call, V, k), TypeError, "must be an integer, got")
        for call in (ua.kth_largest, ur.layers.keep_largest)
        for k in (1.5, np.ones(3, int), "one")
    ),
    *(
        (partial(make, value), f"{bounds}, got")
        for make, bounds, values in (
            (ua.leaky_relu, "slope must be at least 0 and at most 1", (-0.1, 1.1, math.nan)),
            (ua.elu, "alpha must be at least 0", (-1, math.nan, math.inf)),
            (ua.celu, "alpha must be above 0", (0, -1, math.nan, math.inf)),
            (partial(ua.scale, ua.relu), "k must be above 0", (0, -2, math.nan, math.inf)),
            (partial(ua.compose, ua.relu), "times must be at least 1", (0, -1)),
            (partial(ua.compose, ua.elu(0.9)), "times must be at most 1000", (10**9,)),
        )
        for value in values
    ),
    (
        partial(ua.from_description, ["compose", ["elu", 0.9], 10**9]),
        "times must be at most 1000, got",
    ),
    (
        lambda: jax.jit(lambda n: ua.compose(ua.relu, n)(1.0))(2),
        TypeError,
        "compose: times must be static",
    ),
    *(
        (partial(make, *arguments), f"{make.__name__}: ")
        for make in (ua.sigmoid_sum, ua.tanh_sum)
        for arguments in (
            *((0.0, 1.0), (0.1, 0.0), (-0.1, 1.0), (0.1, math.inf), (0.2, 0.1)),
            *((0.1, 1.0, 0.0), (0.1, 1.0, math.nan)),
        )
    ),
    (_own("nan"), "check: own .*is nan at x = 3.0"),
    (_own("shape"), "check: own .*expected floats of the same shape"),
    (_own("integers"), "check: own .*to int32 .* expected floats"),
    (partial(ua.check, jax.nn.relu), TypeError, "check: expected an Activation"),
    (
        partial(ua.by_name, "swish"),
        "unknown name 'swish'; expected one of relu, leaky_relu, .*hard_swish",
    ),
    (partial(ua.by_name, 3), TypeError, "expected an Activation or a function, got int"),
)
