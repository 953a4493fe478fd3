"""Every kind of wrong input, by the rows of the bad-input matrix (the numbers in the names)."""

import gc
import inspect
import io
import typing
import warnings
import zipfile
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import registry
from PIL import Image
from test_matrix import MODES, D, K, M, N, Y, eager, y

import unrolled as ur

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
FAMILIES = registry.FAMILIES


def blank(name, depth=K, D=D):
    """Params of the shapes of `init`, without its programs."""
    shapes = jax.eval_shape(FAMILIES[name](depth).init, KEY, D)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)


params_of = cache(blank)


# What some families have and others do not.
STEPS = {name: params_of(name).steps for name in FAMILIES}
WITH_STEPS = [name for name, steps in STEPS.items() if steps is not None]
WITH_THETA = [name for name in FAMILIES if ur.layers.names_with_role(STEPS[name], "threshold")]


def layer_apply(name, D, y, params=None):
    return FAMILIES[name](K).apply(params_of(name) if params is None else params, D, y)


def solve(name, D, y):
    return SOLVE[name](D, y, 0.1).x


SOLVE = {name: registry.SOLVERS[name] for name in ("threshold", "ista", "fista")}
LAM_NAME = {"threshold": "theta", "ista": "lam", "fista": "lam"}

# Everything that takes a dictionary and a signal.
ENTRIES = {
    **{f"layers.{name}": partial(layer_apply, name) for name in FAMILIES},
    **{f"pursuit.{name}": partial(solve, name) for name in SOLVE},
}


everywhere = pytest.mark.parametrize("mode", MODES)
# All entries share the door: a few of different forms stand for them under the transformations.
SOME = {f"layers.{name}" for name in ("ista", "lista", "lista_cp", "alista", "hyperlista")} | {
    "pursuit.threshold"
}
WAYS = [(entry, mode) for entry in ENTRIES for mode in MODES if mode is eager or entry in SOME]


@pytest.fixture(params=ENTRIES)
def entry(request):
    return ENTRIES[request.param]


@pytest.fixture(params=["layers.lista_cp", "pursuit.threshold"])
def some_entry(request):
    """One layer and one solver, where values are compared: all of them share the door."""
    return ENTRIES[request.param]


# Faults of params. Those of D and y are in test_matrix.py.


def with_steps(name, **fields):
    params = params_of(name)
    return params._replace(steps=params.steps._replace(**fields))


PARAMS = {
    "27 one theta per signal": (
        lambda name: with_steps(name, theta=np.ones((K, M))),
        ValueError,
        "theta has shape",
    ),
    "27 theta of rank 3": (
        lambda name: with_steps(name, theta=np.ones((K, N, 1))),
        ValueError,
        "theta has shape",
    ),
    "27 theta without steps": (
        lambda name: with_steps(name, theta=np.ones(())),
        ValueError,
        "the layer has depth 3",
    ),
    "29 too deep": (
        lambda name: params_of(name, 5),
        ValueError,
        r"params have \[5\] steps .* depth 3",
    ),
    "29 too shallow, unstacked": (
        lambda name: ur.layers.unstack(params_of(name, 2)),
        ValueError,
        r"params have \[2\] steps",
    ),
    "29 bare steps": (
        lambda name: params_of(name).steps,
        TypeError,
        r"params must be Unrolled\(shared, steps\)",
    ),
    "29 leaves disagree": (
        lambda name: ur.layers.Unrolled(None, (params_of(name).steps, np.ones(2))),
        TypeError,
        "params have the records .* another family",
    ),
}


def has(name, fault):
    """Whether a family has what the fault is about."""
    return name in WITH_THETA if "theta" in fault else name in WITH_STEPS or "too" not in fault


OF_LAYERS = [
    (entry.removeprefix("layers."), mode) for entry, mode in WAYS if entry.startswith("layers.")
]


@pytest.mark.few(8)
@pytest.mark.parametrize("name, mode", OF_LAYERS)
def test_params_that_do_not_fit_raise_at_trace_time(name, mode):
    apply = FAMILIES[name](K).apply
    for fault, (make, error, message) in PARAMS.items():
        if has(name, fault):
            params = make(name)
            with pytest.raises(error, match=message):
                mode(partial(apply, params), D, y)
            with pytest.raises(error, match=message):  # also where the params are the traced ones
                jax.eval_shape(apply, params, D, y)


def records_agree(name, params):
    """Whether one of the forms of a family has the records of these params."""
    found = type(params.shared), type(params.steps)
    return found in [
        tuple(type(None) if kind is None else typing.get_origin(kind) or kind for kind in form)
        for form in FAMILIES[name](K).forms
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_29_params_of_another_family_are_refused_unless_they_have_the_same_records(name):
    refused = 0
    for other in FAMILIES:
        params = params_of(other)
        if records_agree(name, params):
            assert np.isfinite(layer_apply(name, D, y, params)).all(), other
        else:
            refused += 1
            expected = rf"^{name}: params have the records .* another family\?"
            with pytest.raises(TypeError, match=expected):
                layer_apply(name, D, y, params)
    assert refused >= len(FAMILIES) - 3


@pytest.mark.few(4)
@everywhere
@pytest.mark.parametrize("name", ["lista", "lista_cp", "alista"])
def test_3_5_weights_for_another_dictionary_raise_at_trace_time(name, mode):
    for other in (D.T, D[:, :-1], D[:-1]):
        with pytest.raises(ValueError, match="another dictionary"):
            mode(partial(FAMILIES[name](K).apply, blank(name, D=other)), D, y)


# Sizes, numbers and containers that are fine.


@pytest.mark.few(2)
def test_6_an_empty_batch_gives_an_empty_batch(entry):
    assert jax.jit(jax.vmap(entry, (None, 0)))(D, np.zeros((0, M))).shape == (0, N)


@pytest.mark.slow
@pytest.mark.parametrize("m, d", [(1, 1), (1, 3), (3, 1)])
def test_7_one_row_or_one_atom_works(m, d):
    def codes(D, y):
        layers = [family(K) for family in FAMILIES.values()]
        found = {
            name: layer.apply(layer.init(KEY, D), D, y) for name, layer in zip(FAMILIES, layers)
        }
        return found | {f"pursuit.{name}": solver(D, y, 0.1).x for name, solver in SOLVE.items()}

    for name, x in jax.jit(codes)(np.ones((m, d)) / np.sqrt(m), np.ones(m)).items():
        assert x.shape == (d,) and np.isfinite(x).all()
        # Thresholds above the level of the residual are above a lone atom.
        assert x.any() or name in ("lamp", "alista_at")


@pytest.mark.few(1)
def test_8_integers_and_booleans_are_promoted(some_entry):
    whole = np.arange(M * N).reshape(M, N) % 3 - 1
    for signal in (np.arange(M), np.arange(M) > 2, np.arange(M).astype(np.uint8)):
        ours, expected = (
            some_entry(whole, signal),
            some_entry(whole.astype(float), signal.astype(float)),
        )
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.few(4)
def test_8_integers_and_booleans_become_the_default_float(entry):
    for dtype in ("int8", "uint16", "int64", "bool"):
        assert jax.eval_shape(entry, D.astype(dtype), y.astype(dtype)).dtype == float


def test_9_float64_without_x64_warns_and_says_both_ways_out():
    threshold = ENTRIES["pursuit.threshold"]
    with jax.enable_x64(False):
        with pytest.warns(
            UserWarning, match="is float64 but JAX runs in float32.*cast.*enable"
        ) as seen:
            assert threshold(D, y).dtype == np.float32
        assert {str(w.message).split(" is ")[0] for w in seen} == {"threshold: D", "threshold: y"}
        assert threshold(np.float32(D), np.float32(y)).dtype == np.float32  # and no warning


@pytest.mark.few(3)
@pytest.mark.parametrize("name", FAMILIES)
def test_9_layers_warn_of_float64_without_x64(name):
    with jax.enable_x64(False):
        layer = FAMILIES[name](K)
        params = layer.init(KEY, np.float32(D))
        with pytest.warns(UserWarning, match="float64") as seen:
            jax.eval_shape(lambda: layer.apply(params, D, y))
        assert {str(w.message).split(" is ")[0] for w in seen} == {f"{name}: D", f"{name}: y"}


@pytest.mark.parametrize("half", [jnp.bfloat16, np.float16])
@pytest.mark.parametrize("name", SOLVE)
def test_10_half_types_meet_wider_ones(name, half):
    for pair in ((np.asarray(D, half), y), (D, np.asarray(y, half))):
        assert jax.eval_shape(partial(solve, name), *pair).dtype == float


@pytest.mark.slow
@pytest.mark.parametrize("half", [jnp.bfloat16, np.float16])
def test_11_numpy_scalars_do_not_widen_half_types(half):
    found = SOLVE["threshold"](np.asarray(D, half), np.asarray(y, half), np.float64(0.1))
    assert found.x.dtype == found.gap.dtype == found.residual.dtype == half


@pytest.mark.few(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_13_14_a_bad_signal_spoils_only_its_own_code(name):
    layer = FAMILIES[name](K)
    run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    params = layer.init(KEY, D)
    spoilt, clean = Y.copy(), Y.copy()
    clean[1] = 0
    expected = np.delete(run(params, D, clean), 1, 0)
    for bad in (np.nan, np.inf, -np.inf):
        spoilt[1, 2] = bad
        codes = np.asarray(run(params, D, spoilt))
        np.testing.assert_array_equal(np.delete(codes, 1, 0), expected)
        assert not np.isfinite(codes[1]).all()  # never a plausible code


@pytest.mark.few(1)
@pytest.mark.parametrize("name", registry.SOLVERS)
def test_13_14_solvers_mark_the_bad_signal(name):
    run = jax.jit(jax.vmap(lambda D, y: registry.SOLVERS[name](D, y, 0.1), (None, 0)))
    spoilt, clean = Y.copy(), Y.copy()
    clean[1] = 0
    expected = np.delete(run(D, clean).x, 1, 0)
    for bad in (np.nan, np.inf):
        spoilt[1, 2] = bad
        found = run(D, spoilt)
        np.testing.assert_array_equal(np.delete(found.x, 1, 0), expected)
        assert (
            not found.converged[1]
            and not np.isfinite(found.residual[1])
            and not np.isfinite(found.gap[1])
        )


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "name", ["layers.ista", "layers.fista", "layers.lista_cp", "layers.alista", *SOLVE]
)
def test_14_a_traced_bad_dictionary_shows(name):
    """All but LISTA, whose code depends on its params alone."""
    run = jax.jit(
        ENTRIES[name] if name in ENTRIES else partial(SOLVE[name], **{LAM_NAME[name]: 0.1})
    )
    for bad in (np.nan, np.inf):
        found = run(np.where(D == D[1, 2], bad, D), y)
        if name in ENTRIES:
            assert not np.isfinite(found).all()
        else:
            assert not found.converged and np.isnan(found.gap)


def test_15_a_zero_dictionary_has_no_step_size():
    for name in ("ista", "fista"):
        with pytest.raises(ValueError, match="D is zero, so the step size"):
            SOLVE[name](0 * D, y, 0.1)
    with pytest.raises(ValueError, match="D is zero"):
        ur.analytic.ista(0 * D, 0.1, K)
    with pytest.raises(ValueError, match=r"ista: lam is 1e\+300, and .* is infinite in float32"):
        ur.analytic.ista(D.astype("float32"), 1e300, K)
    with pytest.raises(ValueError, match=r"supervised: the last codes have shape \(\)"):
        ur.training.supervised(3.0, 3.0, None, None)


@pytest.mark.slow
def test_16_a_zero_atom_is_named_where_it_hurts_and_gets_the_zero_code_elsewhere():
    spoilt = D.copy()
    spoilt[:, [2, 5]] = 0
    for refuses in (
        ur.dictionaries.normalize,
        ur.theory.mutual_coherence,
        ur.analytic.frobenius_weights,
    ):
        with pytest.raises(ValueError, match=r"atoms \[2, 5\] are zero"):
            refuses(spoilt)
    with pytest.raises(ValueError, match=r"atoms \[2, 5\] are zero"):
        ur.layers.alista(K).init(KEY, spoilt)
    for name in ("ista", "fista"):
        found, layer = jax.jit(SOLVE[name])(spoilt, y, 0.05), FAMILIES[name](K)
        code = layer.apply(layer.init(KEY, spoilt), spoilt, y)
        assert (
            found.converged
            and not np.asarray(found.x)[[2, 5]].any()
            and not np.asarray(code)[[2, 5]].any()
        )


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_17_with_duplicate_atoms_solvers_work_and_theory_says_no(sign):
    twins = np.concatenate([D, sign * D[:, :1]], 1)
    assert jax.jit(SOLVE["fista"])(twins, y, 0.05).converged
    assert ur.theory.mutual_coherence(twins) == pytest.approx(1, abs=1e-15)
    with pytest.warns(ur.analytic.HypothesisWarning, match="largest admissible s is"):
        params = ur.analytic.lista_cp(twins, depth=K, sparsity=2, bound=1.0)
    assert np.isfinite(params.steps.theta).all()


def test_18_theory_refuses_atoms_off_unit_norm_and_names_the_remedy():
    analytic = dict(depth=K, sparsity=1, bound=1.0)
    for refuses in (
        partial(ur.analytic.lista_cp, **analytic),
        partial(ur.analytic.alista, **analytic),
    ):
        with pytest.raises(
            ValueError,
            match=r"norms in \[1\.01.*expected 1 within 0\.0001, try dictionaries\.normalize",
        ):
            refuses(1.01 * D)
        refuses((1 + 5e-5) * D)


@pytest.mark.slow
def test_19_the_step_follows_the_scale_of_the_dictionary():
    def codes(D, y, lam):
        return [SOLVE[name](D, y, lam, tol=None, max_steps=20).x for name in ("ista", "fista")]

    def layered(D, y):
        layers = [family(20) for family in FAMILIES.values()]
        return [layer.apply(layer.init(KEY, D), D, y) for layer in layers]

    run, run_layers = jax.jit(codes), jax.jit(layered)
    expected = run(D, y, 0.1)
    for scale in (30.0, 1e-3, 1e6):
        # Scaling by powers of ten rounds data by eps; 20 steps hardly amplify it.
        np.testing.assert_allclose(
            run(scale * D, scale * y, 0.1 * scale**2), expected, rtol=0, atol=1e-12
        )
        assert all(np.isfinite(x).all() for x in run_layers(scale * D, scale * y))


def test_20_rank_deficient_and_tall_dictionaries_are_solved():
    flat = np.outer(np.ones(M), RNG.normal(size=N)) + np.outer(np.arange(M), RNG.normal(size=N))
    for E in (flat, D.T):
        assert jax.jit(SOLVE["fista"])(E, np.ones(E.shape[0]), 0.1).converged
        W = np.asarray(ur.analytic.frobenius_weights(E))
        # The pseudo-inverse keeps 1e-15 of the condition number of E, below 1e2 here.
        np.testing.assert_allclose((W * E).sum(0), 1, atol=1e-12)


LAYOUTS = {
    "fortran": lambda a: np.asfortranarray(a),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "read-only": lambda a: np.frombuffer(a.tobytes()).reshape(a.shape),
    "jax": jnp.asarray,
}


def test_21_memory_layout_does_not_matter(some_entry):
    expected = some_entry(D, y)
    for name, arrange in LAYOUTS.items():
        np.testing.assert_array_equal(some_entry(arrange(D), arrange(y)), expected, err_msg=name)


def test_22_lists_are_taken(some_entry):
    np.testing.assert_array_equal(some_entry(D.tolist(), y.tolist()), some_entry(D, y))


def test_22_what_is_no_number_is_not_taken(some_entry):
    for what in (y.astype(object), ["one"] * M, [[1.0], 2.0, 3, 4, 5], None, "abcde", {}):
        with pytest.raises(TypeError, match="y is not a numeric array"):
            some_entry(D, what)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", FAMILIES)
def test_22_inits_take_lists(name):
    ours, expected = (FAMILIES[name](K).init(KEY, given) for given in (D.tolist(), D))
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(expected)))


# Thresholds and penalties.


@pytest.mark.parametrize("bad", [-0.1, np.nan])
def test_25_26_known_negative_or_nan_thresholds_raise(bad):
    for build in SOLVE.values():
        with pytest.raises(ValueError, match="must be non-negative and not NaN"):
            build(D, y, bad)
        with pytest.raises(
            ValueError, match="must be non-negative and not NaN"
        ):  # known beside a traced signal
            jax.jit(lambda y, build=build: build(D, y, bad).x)(y)
    with pytest.raises(ValueError, match="lam must be non-negative and not NaN"):
        ur.analytic.ista(D, bad, K)
    for name in WITH_THETA:
        theta = params_of(name).steps.theta.copy()
        theta[1] = bad
        for params in (
            with_steps(name, theta=theta),
            ur.layers.unstack(with_steps(name, theta=theta)),
        ):
            with pytest.raises(ValueError, match="theta must be non-negative and not NaN"):
                FAMILIES[name](K).apply(params, D, y)
    for f in (ur.activations.shrink, ur.activations.soft_threshold, ur.activations.hard_threshold):
        with pytest.raises(ValueError, match="theta must be non-negative and not NaN"):
            f(y, bad)
    for field in ("mu", "C_W", "bound", "noise", "guard", "eta"):
        numbers = {**dict(mu=0.1, C_W=1.0, bound=1.0), field: bad}
        with pytest.raises(ValueError, match=f"{field} must be non-negative"):
            ur.theory.schedule(**numbers, sparsity=1, depth=K)


# Depths, sparsities and other options.

COUNTS = {
    "28 negative": (-1, ValueError, "at least 0, got -1"),
    "28 fraction": (2.5, TypeError, "must be an integer, got 2.5"),
    "28 whole float": (3.0, TypeError, "must be an integer"),
    "28 bool": (True, TypeError, "must be an integer, got True"),
    "28 numpy bool": (np.True_, TypeError, "must be an integer"),
    "28 none": (None, TypeError, "must be an integer, got None"),
    "28 string": ("3", TypeError, "must be an integer"),
    "28 digits that are not printed": (-(10**5000), ValueError, "at least 0, got int of too many"),
}
ANALYTIC = dict(sparsity=1, bound=1.0)
COUNTED = {
    **{f"layers.{name}": (build, "depth") for name, build in FAMILIES.items()},
    "analytic.ista": (lambda n: ur.analytic.ista(D, 0.1, n), "depth"),
    "analytic.lista_cp": (lambda n: ur.analytic.lista_cp(D, depth=n, **ANALYTIC), "depth"),
    "analytic.alista": (lambda n: ur.analytic.alista(D, depth=n, **ANALYTIC), "depth"),
    "theory.schedule": (lambda n: ur.theory.schedule(0.1, 1.0, depth=n, **ANALYTIC), "depth"),
    "pursuit.ista": (lambda n: ur.pursuit.ista(D, y, 0.1, max_steps=n), "max_steps"),
    "pursuit.fista": (lambda n: ur.pursuit.fista(D, y, 0.1, max_steps=n), "max_steps"),
    "problems.exact_sparse": (lambda n: ur.problems.exact_sparse(KEY, (2, N), n), "sparsity"),
    "problems.bounded": (lambda n: ur.problems.bounded(KEY, (2, N), n), "sparsity"),
}


@pytest.mark.parametrize("what", COUNTED)
def test_28_counts_are_static_integers(what):
    call, name = COUNTED[what]
    for value, error, message in COUNTS.values():
        with pytest.raises(error, match=f"{name} {message}" if error is TypeError else message):
            call(value)


@pytest.mark.parametrize("what", COUNTED)
def test_28_traced_counts_say_static(what):
    call, name = COUNTED[what]
    with pytest.raises(
        TypeError, match=f"{name} must be static.*static_argnames|call it outside jit"
    ):
        jax.jit(lambda n: jnp.sum(jnp.asarray(jax.tree.leaves(call(n))[0])))(3)


def test_28_numpy_integers_are_integers():
    for n in (np.int8(K), np.uint64(K), np.asarray(K)):
        assert ur.layers.ista(n) is ur.layers.ista(K)


def test_30_sparsity_is_at_most_the_number_of_atoms():
    for call in (
        lambda s: ur.problems.exact_sparse(KEY, (2, N), s),
        lambda s: ur.problems.bounded(KEY, (2, N), s),
        lambda s: ur.analytic.lista_cp(D, depth=K, sparsity=s, bound=1.0),
        lambda s: ur.analytic.alista(D, depth=K, sparsity=s, bound=1.0),
    ):
        with pytest.raises(ValueError, match=f"sparsity {N + 1} exceeds .* {N}"):
            call(N + 1)
    assert not ur.problems.exact_sparse(KEY, (2, N), 0).any()
    assert (ur.problems.bounded(KEY, (2, N), N) != 0).all()


def test_31_beyond_the_bound_theory_says_so_and_still_answers():
    found = ur.theory.schedule(0.4, 1.0, sparsity=3, bound=1.0, depth=K)
    assert not found.holds and np.isinf(found.floor) and np.isfinite(found.theta).all()
    with pytest.warns(
        ur.analytic.HypothesisWarning, match=r"s = 4: contraction a = .*\(expected < 1\)"
    ):
        params = ur.analytic.alista(D, depth=K, sparsity=4, bound=1.0)
    assert np.isfinite(ur.layers.alista(K).apply(params, D, y)).all()


OPTIONS = {
    "support rate": (dict(support=(-0.1, 0.2)), "support must be"),
    "support largest": (dict(support=(0.1, 1.5)), "support must be"),
    "support nan": (dict(support=(0.1, np.nan)), "support must be"),
    "support number": (dict(support=0.1), r"support must be \(rate, largest\)"),
    "support triple": (dict(support=(0.1, 0.1, 0.1)), r"support must be \(rate, largest\)"),
    "unroll": (dict(unroll=0), "unroll must be at least 1"),
}


@pytest.mark.parametrize("fault", OPTIONS)
def test_30_32_options_out_of_range(fault):
    options, message = OPTIONS[fault]
    with pytest.raises(ValueError, match=f"alista: {message}"):
        ur.layers.alista(K, **options)


def test_32_other_numbers_out_of_range():
    for tol in (0, -1, np.nan):
        with pytest.raises(ValueError, match="tol must be positive"):
            ur.pursuit.ista(D, y, 0.1, tol=tol)
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"probability must be in \[0, 1\]"):
            ur.problems.bernoulli_gaussian(KEY, (2, N), share)
        with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]"):
            ur.activations.select_support(y, 0.1, share)
    with pytest.raises(ValueError, match="0 <= least <= bound"):
        ur.problems.bounded(KEY, (2, N), 1, bound=1.0, least=2.0)
    with pytest.raises(ValueError, match="deep_schedule: depths has length 1; expected 2"):
        ur.theory.deep_schedule(
            [0.1, 0.1], [1.0, 1.0], sparsities=[1, 1], bounds=[1.0, 1.0], depths=[K]
        )


# Options of pursuits.

CHAIN = (D, np.eye(N))
BANK = ur.dictionaries.Conv(np.ones((2, 1, 2)), 6)
PURSUITS = {
    "basis_pursuit": lambda **given: ur.pursuit.basis_pursuit(D, y, **given),
    "bpdn": lambda **given: ur.pursuit.bpdn(D, y, 0.1, **given),
    "choose_lam": lambda **given: ur.choose_lam(D, Y, **given),
    "fista": lambda **given: ur.pursuit.fista(D, y, 0.1, **given),
    "half_quadratic": lambda **given: ur.pursuit.half_quadratic(D, y, 0.1, **given),
    "holistic": lambda **given: ur.pursuit.holistic(CHAIN, y, lam=0.1, zeros=1, **given),
    "ista": lambda **given: ur.pursuit.ista(D, y, 0.1, **given),
    "lam_max": lambda **given: ur.pursuit.lam_max(D, y, **given),
    "lasso": lambda **given: ur.pursuit.lasso(D, y, 0.1, **given),
    "lasso_batch": lambda **given: ur.pursuit.lasso_batch(D, Y, 0.1, **given),
    "lasso_path": lambda **given: ur.pursuit.lasso_path(D, y, [0.1], **given),
    "layered_basis_pursuit": partial(ur.pursuit.layered_basis_pursuit, CHAIN, y, (0.1, 0.1)),
    "layered_thresholding": partial(ur.pursuit.layered_thresholding, CHAIN, y, (0.1, 0.1)),
    "local_error": lambda **given: ur.pursuit.local_error(BANK, np.ones(6), 0.1, **given),
    "local_sparsity": lambda **given: ur.pursuit.local_sparsity(BANK, np.ones(6), 0.1, **given),
    "ml_basis_pursuit": lambda lams=(0.1, 0.1), **given: ur.pursuit.ml_basis_pursuit(
        CHAIN, y, lams, **given
    ),
    "ml_fista": lambda lams=(0.1, 0.1), **given: ur.pursuit.ml_fista(CHAIN, y, lams, **given),
    "ml_ista": lambda lams=(0.1, 0.1), **given: ur.pursuit.ml_ista(CHAIN, y, lams, **given),
    "omp": lambda **given: ur.pursuit.omp(D, y, 2, **given),
    "omp_batch": lambda **given: ur.pursuit.omp_batch(D, Y, 2, **given),
    "project": lambda **given: ur.pursuit.project(CHAIN, y, lam=0.1, **given),
    "threshold": lambda **given: ur.pursuit.threshold(D, y, 0.1, **given),
}


def pursuits_with(option):
    taken = {name: inspect.signature(getattr(ur.pursuit, name)).parameters for name in PURSUITS}
    return [name for name in PURSUITS if option in taken[name]]


def test_every_pursuit_with_an_option_of_these_is_listed():
    for option in ("tol", "nonnegative", "lams"):
        found = {
            name
            for name in ur.pursuit.__all__
            if inspect.isfunction(function := getattr(ur.pursuit, name))
            and option in inspect.signature(function).parameters
        }
        assert found == set(pursuits_with(option))


@pytest.mark.parametrize("name", pursuits_with("tol"))
def test_32_an_infinite_tol_is_refused(name):
    """Any code would be within it."""
    words = "has NaN or infinite entries" if name == "omp" else "must be positive and finite"
    with pytest.raises(ValueError, match=f"tol {words}"):
        PURSUITS[name](tol=np.inf)


SWITCHES = [(name, "nonnegative") for name in pursuits_with("nonnegative")]
SWITCHES += [(name, "restart") for name in pursuits_with("restart")]


@pytest.mark.parametrize("name, option", SWITCHES)
def test_32_a_switch_is_static(name, option):
    with pytest.raises(TypeError, match=f"{name}: {option} must be static"):
        jax.jit(lambda switch: jax.tree.leaves(PURSUITS[name](**{option: switch})))(True)


@pytest.mark.parametrize("name", ["ml_ista", "ml_fista", "ml_basis_pursuit"])
def test_27_penalties_are_one_per_layer(name):
    for bad, got in ((None, "NoneType"), (0.1, "float"), ((), "0"), ((0.1,), "1")):
        with pytest.raises(ValueError, match=f"{name}: expected a tuple of 2 lams, .* got {got}"):
            PURSUITS[name](lams=bad)
    with pytest.raises(TypeError, match=f"{name}: lam_2 must be real numbers, got None"):
        PURSUITS[name](lams=(0.1, None))


# Activations.


def _mean(x):
    return x.mean()


def _pair(x):
    return x, x


def _half(x):
    return x.astype(jnp.bfloat16)


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if "activation" in FAMILIES[name](K).options]
)
def test_33_34_activations_are_checked_by_the_factory(name):
    build = FAMILIES[name]
    with pytest.raises(ValueError, match="unknown name 'rulu'; expected one of relu, .*hard_swish"):
        build(K, activation="rulu")
    for what in (3, None, ["relu"]):
        with pytest.raises(TypeError, match="expected an Activation or a function"):
            build(K, activation=what)
    for bad in (_mean, _pair, _half):
        with pytest.raises(
            ValueError, match=rf"{name}: activation .* expected the same shape and dtype"
        ):
            build(K, activation=bad)
    assert build(K, activation="relu") is build(K)


def test_35_a_plain_function_is_an_activation():
    layer = ur.layers.ista(K, activation=jax.nn.relu)
    np.testing.assert_array_equal(layer.apply(params_of("ista"), D, y), layer_apply("ista", D, y))


# Training.

LAYER = ur.layers.ista(K)
X = RNG.normal(size=(4, N))


def sample(key):
    return jnp.asarray(Y), jnp.asarray(X)


SGD = optax.sgd(1e-3)


def fit(*, params=None, dictionary=D, sample=sample, optimizer=SGD, steps=1, key=KEY, **options):
    params = params_of("ista") if params is None else params
    options.setdefault("model", LAYER)
    return ur.training.fit(
        options.pop("model"),
        params,
        dictionary,
        sample,
        optimizer=optimizer,
        steps=steps,
        key=key,
        **options,
    )


FITS = {
    "6 empty batch": (
        dict(sample=lambda key: (np.zeros((0, M)), np.zeros((0, N)))),
        ValueError,
        "batch at least 1",
    ),
    "13 nan sample": (dict(sample=lambda key: (Y * np.nan, X)), ValueError, "NaN or infinite"),
    "14 nan dictionary": (dict(dictionary=D * np.nan), ValueError, "D has NaN or infinite entries"),
    "3 signals too short": (dict(sample=lambda key: (Y[:, 1:], X)), ValueError, r"\(batch, 5\)"),
    "3 codes too short": (dict(sample=lambda key: (Y, X[:, 1:])), ValueError, r"\(32, 8\)"),
    "3 other batch": (dict(sample=lambda key: (Y, X[1:])), ValueError, "codes have shape"),
    "1 one signal": (dict(sample=lambda key: (y, X[0])), ValueError, "signals have shape"),
    "sample not a pair": (dict(sample=lambda key: Y), TypeError, r"must be \(Y, X\)"),
    "signals without codes for a supervised loss": (
        dict(sample=Y),
        ValueError,
        r"X = None; try training.lasso_loss\(lam\), or signals with their codes, \(Y, X\)",
    ),
    "neither a sampler nor arrays": (
        dict(sample=Y.tolist()),
        TypeError,
        r"fit: sample must be a function of a key .* got list; try an array Y .*problems.sampler",
    ),
    "a triple in place of the sampler": (
        dict(sample=(Y, X, D)),
        TypeError,
        "fit: sample must be a function of a key .* got tuple; ",
    ),
    "no loss": (dict(loss=None), TypeError, "loss must be a function of .* got None"),
    "no callback": (
        dict(callbacks=[None]),
        TypeError,
        r"callbacks\[0\] must be a function, got None",
    ),
    "a callback alone": (dict(callbacks=print), TypeError, "callbacks must be an iterable, got"),
    "no codes for a supervised loss": (
        dict(sample=lambda key: (Y, None)),
        ValueError,
        "training.lasso_loss",
    ),
    "29 other depth": (
        dict(model=ur.layers.ista(5)),
        ValueError,
        r"params have \[3\] steps .* depth 5",
    ),
    "37 optimiser function": (
        dict(optimizer=optax.adam),
        TypeError,
        "must be an optax GradientTransformation",
    ),
    "37 no optimiser": (dict(optimizer=None), TypeError, "must be an optax GradientTransformation"),
    "37 learning rate": (
        dict(optimizer=1e-3),
        TypeError,
        "must be an optax GradientTransformation",
    ),
    "28 negative steps": (dict(steps=-1), ValueError, "steps must be at least 0"),
    "32 no evaluations": (dict(evaluate_every=0), ValueError, "evaluate_every must be at least 1"),
    "not a model": (dict(model=jnp.sum), TypeError, "expected a Layer or a Network"),
    "a loss per code": (
        dict(loss=lambda codes, X, D, Y: jnp.sum(codes[-1], 0)),
        TypeError,
        r"the loss is float64 of shape \(8,\); expected one floating-point number",
    ),
    "a loss that counts": (
        dict(loss=lambda codes, X, D, Y: jnp.sum(codes[-1] != 0)),
        TypeError,
        r"the loss is int64 of shape \(\)",
    ),
}


@pytest.mark.parametrize("fault", FITS)
def test_fit_refuses(fault):
    options, error, words = FITS[fault]
    with pytest.raises(error, match=words):
        fit(**options)


def test_26_fit_stops_at_nan_params_and_keeps_what_it_had():
    params = with_steps("ista", gamma=jnp.full(K, jnp.nan))
    with pytest.raises(
        ur.training.NonFiniteError, match="fit: training stopped at step 0"
    ) as raised:
        fit(params=params)
    assert (
        np.isnan(raised.value.fit.params.steps.gamma).all()
        and len(raised.value.fit.history.records) == 1
    )


@pytest.mark.filterwarnings("ignore:fit. ")  # of one random batch
def test_38_seeds_and_keys_of_both_kinds_give_the_same_samples():
    def random_sample(key):
        return jax.random.normal(key, (2, M)), jax.random.normal(key, (2, N))

    losses = [
        fit(sample=random_sample, steps=0, key=key).history.records[0].validation
        for key in (7, np.int64(7), jax.random.key(7), jax.random.PRNGKey(7))
    ]
    assert len(set(losses)) == 1


def test_calibration_refuses_samples_that_do_not_fit():
    calibrate = partial(ur.analytic.calibrate, LAYER, params_of("ista"), D)
    pairs = (Y[:, 1:], X), (Y, X[:, 1:]), (Y, X[1:]), (y, X[0]), (Y[:0], X[:0]), (X, Y)
    for sample in pairs:
        with pytest.raises(ValueError, match=r"expected \(batch, 5\) and \(batch, 8\)"):
            calibrate(*sample)
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibrate(Y, X * np.nan)
    with pytest.raises(ValueError, match="all codes of the sample are zero"):
        calibrate(Y, 0 * X)


def test_networks_refuse_what_does_not_chain():
    network = ur.networks.dsc([LAYER, LAYER])
    with pytest.raises(ValueError, match="at least one layer"):
        ur.networks.dsc([])
    for Ds, message in (
        ((D, D), r"D_1 has shape \(5, 8\) but D_2"),
        ((D,), "expected a tuple of 2 Ds"),
        (D, "Ds is one dictionary"),
    ):
        with pytest.raises(ValueError, match=message):
            network.init(KEY, Ds)
    with pytest.raises(ValueError, match="expected a tuple of 2 params"):
        network.apply((params_of("ista"),), (D, np.eye(N)), y)


def test_metrics_refuse_shapes_that_differ():
    names = "nmse mean_nmse signal_nmse failure_rate support_scores psnr ssim"
    for name in names.split():
        with pytest.raises(ValueError, match=r"shapes \(4, 8\) and \(8,\) differ"):
            getattr(ur.metrics, name)(X, X[0])  # would broadcast


# Files.


def npy(shape=(3,), body=b"", descr="<f8"):
    """Bytes of a .npy file whose header promises `shape`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue() + body


def npz(**entries):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        for name, body in entries.items():
            z.writestr(f"{name}.npy", body)
    return archive.getvalue()


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


GOOD = saved(np.arange(3.0))
FILES = {
    "52 empty": ("a.npy", b"", "not a readable array file"),
    "52 junk": ("a.npy", b"hello world" * 9, "not a readable array file .it holds no array"),
    "52 truncated": ("a.npy", GOOD[:-3], "not a readable array file"),
    "52 truncated archive": ("a.npz", npz(x=GOOD)[:-30], "not a readable array file"),
    "43 flipped byte": ("a.npz", npz(x=GOOD).replace(b"\xf0\x3f", b"\xf0\x3e", 1), "CRC"),
    "52 empty archive": ("a.npz", npz(), r"entries \[\]; expected a single one"),
    "52 two entries": (
        "a.npz",
        npz(x=GOOD, z=GOOD),
        r"entries \['x', 'z'\]; expected a single one",
    ),
    "47 lying header": ("a.npy", npy((10**12,), bytes(24)), "not a readable array file"),
    "47 negative shape": ("a.npy", npy((-3,), bytes(24)), "not a readable array file"),
    "47 lying header in an archive": (
        "a.npz",
        npz(x=npy((10**6,), bytes(24))),
        "not a readable array file",
    ),
    "46 pickled objects": (
        "a.npy",
        saved(np.array([{}, 1], object), allow_pickle=True),
        "not a readable array file",
    ),
    "46 pickled in an archive": (
        "a.npz",
        npz(x=saved(np.array([{}], object), allow_pickle=True)),
        "allow_pickle=False",
    ),
    "12 complex": (
        "a.npy",
        saved(np.ones(3) * 1j),
        "entries are complex128; expected real numbers",
    ),
    "22 strings": ("a.npy", saved(np.array(["a"])), "expected real numbers"),
    "13 nan": ("a.npy", saved(np.array([1, np.nan])), "NaN or infinite"),
    "14 inf": ("a.npy", saved(np.array([1, np.inf])), "NaN or infinite"),
    "52 other suffix": ("a.txt", b"1,2,3", "expected a .npy or .npz file, or .csv or .mat$"),
    "52 array named as an archive": ("a.npz", GOOD, "a.npz"),
    "52 archive named as an array": ("a.npy", npz(x=GOOD), "a.npy"),
    "52 entry that is no array": ("a.npz", npz(x=b"no array at all"), "a.npz"),
    "47 huge lying header in an archive": ("a.npz", npz(x=npy((10**15,), bytes(24))), "a.npz"),
}


@pytest.mark.parametrize("fault", FILES)
def test_unreadable_arrays_are_value_errors_that_name_the_file(fault, tmp_path):
    name, content, message = FILES[fault]
    (tmp_path / name).write_bytes(content)
    gc.freeze()  # so that the collection below sees what this test leaves alone
    with warnings.catch_warnings():
        # numpy leaves a cut archive open until it is collected
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(ValueError, match=message) as raised:
            ur.vision.datasets.read_array(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
        del raised
        gc.collect()


def test_readable_arrays_come_back(tmp_path):
    for dtype in ("<f8", ">f8", "<f4", ">f4", "<f2", "<i2", "u1"):
        np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3).astype(dtype))
        array = ur.vision.datasets.read_array(str(tmp_path / "a.npy"))
        assert (
            array.dtype == (np.float64 if dtype.endswith("f8") else np.float32)
            and array.dtype.isnative
        )
        np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(3.0), z=np.ones(2))
    np.testing.assert_array_equal(
        ur.vision.datasets.read_array(tmp_path / "a.npz", "x"), np.arange(3.0)
    )
    with pytest.raises(FileNotFoundError, match="no such file"):
        ur.vision.datasets.read_array(tmp_path / "none.npy")


def test_pictures_are_read_and_unreadable_ones_are_value_errors_that_name_the_file(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "good.png")
    np.testing.assert_array_equal(
        ur.vision.datasets.read_image(tmp_path / "good.png"), grey.astype(np.float32) / 255
    )
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000  # of 16 bits
    Image.fromarray(deep).save(tmp_path / "deep.png")
    pixels = ur.vision.datasets.read_image(tmp_path / "deep.png")
    np.testing.assert_allclose(pixels, deep / 65535, atol=1 / 255)
    good = (tmp_path / "good.png").read_bytes()
    for bad in (b"", b"junk", good[: len(good) // 2], good.replace(b"IDAT", b"IDAX")):
        (tmp_path / "bad.png").write_bytes(bad)
        with pytest.raises(ValueError, match="bad.png: not a readable picture"):
            ur.vision.datasets.read_image(tmp_path / "bad.png")
    with pytest.raises(FileNotFoundError, match="no such file"):
        ur.vision.datasets.read_image(tmp_path / "none.png")


SIZES = {
    "gaussian": lambda n: ur.dictionaries.gaussian(0, n, n),
    "ill_conditioned": lambda n: ur.dictionaries.ill_conditioned(0, n, n, 5.0),
    "dct": lambda n: ur.dictionaries.dct(n, n),
    "identity_hadamard": lambda n: ur.dictionaries.identity_hadamard(2 ** n.bit_length()),
    "paley": ur.dictionaries.paley,
    "transversal": lambda n: ur.dictionaries.transversal(0, 3, n, n),
    "bernoulli_gaussian": lambda n: ur.problems.bernoulli_gaussian(0, (n, n), 0.1),
    "exact_sparse": lambda n: ur.problems.exact_sparse(0, (n, n), 3),
    "bounded": lambda n: ur.problems.bounded(0, (n, n), 3),
    "l1_noise": lambda n: ur.problems.l1_noise(0, (n, n), 1.0),
    "sampler": lambda n: ur.problems.sampler(D, n * n),
    "resampler": lambda n: ur.problems.resampler(Y, batch=n * n),
    "gaussian_conditioning": lambda n: ur.theory.gaussian_conditioning(n * n, 6, 2),
    "repeat": lambda n: ur.layers.repeat(D, n * n),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_memory_does_not_hold_is_refused_before_anything_is_made(name, monkeypatch):
    """JAX and the system would end the process, and loops over such sizes would not end."""
    monkeypatch.setattr("unrolled._base.checks.host_bytes", lambda: 1e9)  # on every machine
    with pytest.raises(MemoryError, match=f"^{name}.* GB of memory; expected at most"):
        SIZES[name](46327)  # a prime, 3 modulo 4, with a square below the limit of sizes
    for n in (10**30, 10**5000):
        with pytest.raises(ValueError, match="must be at most 2147483647, got"):
            SIZES[name](n)


DEPTHS = {
    "analytic.ista": lambda K: ur.analytic.ista(D, 0.1, K),
    "analytic.lista_cp": lambda K: ur.analytic.lista_cp(D, depth=K, sparsity=1, bound=1.0),
    "per atom": lambda K: ur.analytic.alista(
        D, depth=K, sparsity=1, bound=1.0, per_atom=True, W=np.asarray(D)
    ),
    "analytic.lamp": lambda K: ur.analytic.lamp(D, K, probability=0.1),
    "analytic.alista_at": lambda K: ur.analytic.alista_at(D, K, probability=0.1),
    "schedule": lambda K: ur.theory.schedule(0.1, 1.0, depth=K, sparsity=1, bound=1.0),
    "sequence_bound": lambda K: ur.theory.sequence_bound(D, D, K),
    "prepare": lambda K: ur.training.prepare("ista", D, Y, np.ones((4, N)), depth=K),
    "certified_regime": lambda K: ur.app.studies.certified_regime(0, D, depth=K),
    "ml_lista": ur.networks.ml_lista,
}


@pytest.mark.parametrize("name", [*DEPTHS, *FAMILIES])
def test_a_depth_whose_tables_do_not_end_is_refused(name):
    for depth in (10**7 + 1, 10**30, 10**5000):
        with pytest.raises(
            ValueError, match="depth must be (at least . and )?at most (10000000|2147483647), got"
        ):
            DEPTHS.get(name, FAMILIES.get(name))(depth)


def test_patches_need_a_picture_that_holds_one():
    with pytest.raises(ValueError, match=r"picture \(4, 6\) is smaller than a patch of 5 x 5"):
        ur.vision.datasets.to_patches(np.ones((4, 6)), 5)


# Single cases


def _gamma_per_filter():
    bank = registry.DICTIONARIES["conv, circular"]()
    params = LAYER.init(KEY, bank)
    params = params._replace(steps=params.steps._replace(gamma=jnp.ones((K, 2))))
    LAYER.apply(params, bank, np.ones(bank.shape[0]))


def _shallow_calibration():
    layer = ur.layers.alista(K, support=(0.1, 0.2))
    ur.analytic.calibrate(layer, params_of("alista", 5), D, Y, X)


def _traced_tol():
    jax.jit(lambda tol: ur.pursuit.ista(D, y, 0.1, tol=tol).x)(0.1)


def _thetas(D, **given):
    return ur.analytic.alista(D, depth=K, **ANALYTIC, **given).steps.theta


WRONG = ur.activations.Activation("wrong", 0.0, 0.0, 0.0, 0.0, function=_mean)
REFUSED = {
    "15 ista for D = 0": (partial(FAMILIES["ista"](K).init, KEY, 0 * D), "zero"),
    "15 lista for D = 0": (partial(FAMILIES["lista"](K).init, KEY, 0 * D), "zero"),
    "29 calibrating with other params": (_shallow_calibration, "depth 3"),
    "25 negative lam of a layer": (partial(ur.layers.ista, K, lam=-1.0), "lam"),
    "25 negative theta of a layer": (partial(ur.layers.alista, K, theta=-1.0), "theta"),
    "27 theta of another length": (partial(ur.pursuit.threshold, D, y, np.ones(5)), "theta"),
    "27 lam of another length": (partial(ur.pursuit.ista, D, y, np.ones(5)), "lam"),
    "27 gamma per filter": (_gamma_per_filter, "gamma has shape"),
    "32 unknown precision": (partial(ur.layers.ista, K, precision="bogus"), "precision"),
    "32 snr nan": (partial(ur.problems.add_noise, KEY, Y, np.nan), "snr"),
    "32 bound inf": (partial(ur.problems.bounded, KEY, (2, N), 1, np.inf), "bound"),
    "34 record with a wrong function": (partial(ur.layers.ista, K, activation=WRONG), "wrong"),
    "3 weights of another shape": (partial(_thetas, D, W=D.T), "W has shape"),
    "3 codes of another length": (partial(ur.problems.synthesize, D, Y), "expected"),
    "38 text for the key of a layer": (
        partial(ur.layers.na_alista(K).init, "3", D),
        "key must be a key of jax.random, or a seed",
    ),
    "56 traced tol says static": (_traced_tol, "static"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_single_values_are_refused(row):
    call, message = REFUSED[row]
    of_type = row.startswith(("38", "56"))
    with pytest.raises(TypeError if of_type else ValueError, match=message):
        call()


def _in_float32(**options):
    return ur.pursuit.ista(np.float32(D), np.float32(y), 0.1, **options).x


BYTES = np.array([[10, 250]], np.uint8), np.array([[12, 5]], np.uint8)
SAME = {
    "8 bytes in nmse": [
        lambda kind=kind: ur.metrics.nmse(*(b.astype(kind) for b in BYTES))
        for kind in (np.uint8, float)
    ],
    "11 numpy tol": [partial(_in_float32, tol=tol) for tol in (np.float64(1e-3), 1e-3)],
    "22 analytic takes lists": [partial(_thetas, given) for given in (D.tolist(), D)],
    "32 support as a list": [
        lambda kind=kind: id(ur.layers.alista(K, support=kind([0.1, 0.2])))
        for kind in (list, tuple)
    ],
    "33 pursuit by activation name": [partial(_in_float32, activation="relu"), _in_float32],
}


@pytest.mark.few(2)
@pytest.mark.parametrize("row", SAME)
def test_two_forms_of_one_value_are_the_same(row):
    np.testing.assert_array_equal(*(call() for call in SAME[row]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibrate. ")  # one signal is held back
def test_10_params_keep_half_precision_and_take_the_wider_one_of_a_sample():
    for name, build in FAMILIES.items():
        params = build(K).init(KEY, np.asarray(D, jnp.bfloat16))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}, name
    params = ur.analytic.calibrate(LAYER, ur.analytic.ista(D, 0.1, K), np.float32(D), Y, X)
    chex.assert_tree_all_finite(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(float)}
