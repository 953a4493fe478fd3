"""What the functions of theory refuse, and in which words. Wrong kinds stand in `test_doors`."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from unrolled import activations, dictionaries, layers, networks, theory
from unrolled.layers import Threshold, Unrolled, Weights

nan, inf = math.nan, math.inf
EYE, TALL = np.eye(3), np.eye(3, 4)
D = oracles.unit(np.random.default_rng(0).normal(size=(4, 6)))
CUT = dictionaries.Conv(np.ones((1, 1, 3)), 8, boundary="zero")
CHAIN, X = [D, np.eye(6, 5)], [np.zeros(6), np.zeros(5)]
CONVS = [dictionaries.Conv(np.ones((3, 1, 4)), 24, 1, "circular")]
CONVS.append(dictionaries.Conv(np.ones((2, 3, 3)), 24, 1, "circular"))
OTHER_GRID = dictionaries.Conv(np.ones((2, 8, 2)), 9)  # 72 samples as D_1 has codes
Y8, Z = np.zeros(8), np.zeros
LAMP, LISTA_CP, FISTA = layers.lamp(2), layers.lista_cp(1), layers.fista(1)
PARAMS = Unrolled(Weights(EYE), Threshold(np.ones(1)))
PAIR, TWO = networks.dsc([LISTA_CP, LISTA_CP]), (PARAMS, PARAMS)

SCHEDULE = dict(mu=0.1, C_W=1.0, sparsity=1, bound=1.0, depth=3)
ATOMS = dict(mus=[0.1, 0.2], C_Ws=[1.0, 0.5], sparsity=1, bound=1.0, depth=3)
DEEP = dict(mus=[0.1], C_Ws=[1.0], sparsities=[1], bounds=[1.0], noises=[0.0], guards=[0.0],
            etas=[0.0], gains=[1.0])  # fmt: skip


def given(function, valid, **changes):
    """A call of the function with some of its valid arguments changed."""
    return partial(function, **valid | changes)


schedule = partial(given, theory.schedule, SCHEDULE)
soft = partial(given, partial(theory.activation_schedule, activations.relu), SCHEDULE | dict(d=10))
atoms = partial(given, theory.atom_schedule, ATOMS)
deep = partial(given, theory.deep_schedule, DEEP | dict(depths=[3]))
plan = partial(given, theory.plan, DEEP | dict(tol=0.1))
guard = partial(given, partial(theory.rounding_guard, EYE, EYE), dict(sparsity=1, bound=1.0))
uniqueness = partial(given, theory.uniqueness, dict(Ds=CHAIN, sparsities=[1, 1]))
stability = partial(given, theory.stability, dict(Ds=CHAIN, sparsities=[1, 1], eps=0.0, eps0=0.0))
moved = partial(given, theory.perturbed_eps, dict(Ds=[EYE], Ds_perturbed=[EYE], xs=[Z(3)]))
feasible = partial(
    given, theory.is_feasible, dict(y=Z(4), Ds=CHAIN, xs=X, sparsities=[6, 2], eps=0.0)
)
stripes = partial(
    given, theory.is_csc_feasible, dict(y=Z(24), Ds=CONVS, xs=[Z(72), Z(48)], sparsities=[9, 9])
)
recover = partial(given, theory.recover_on_supports, dict(y=Z(4), Ds=CHAIN, supports=[[0], [0]]))
certify = partial(
    given, theory.certify, dict(layer=LISTA_CP, params=PARAMS, D=EYE, sparsity=1, bound=1.0)
)
pair = partial(
    given, theory.certify, dict(layer=PAIR, params=TWO, D=(EYE, EYE), sparsity=(1, 1), bound=(1, 1))
)
bar = partial(given, theory.error_bar, dict(W=EYE, D=EYE, x=Z(3), y=Z(3), sparsity=1))
bound = partial(given, theory.code_bound, dict(W=EYE, D=EYE, y=Z(3), sparsity=1))
code = partial(given, theory.certify_code, dict(D=D, y=Z(4), x=Z(6)))
evolution = partial(given, theory.state_evolution, dict(layer=LAMP, D=D, probability=0.1))
layered = partial(given, theory.layered_penalties, dict(Ds=CHAIN, sparsities=(1, 1), noise=0.1))
thresholds = partial(
    given, theory.layered_thresholds, dict(Ds=CHAIN, sparsities=(1, 1), bounds=1.0)
)
tolerance = partial(given, theory.tolerance_bound, dict(errors=Z(9), share=0.05, confidence=0.9))


def of_numbers(call, where, *names, values=(-1e-3, nan)):
    """Rows for numbers that must be non-negative."""
    words = "must be (non-negative|at least 0)"
    for name in names:
        for value in values:
            yield call(**{name: value}), f"{where}: {name} {words}"


def of_lengths(call, words, *names):
    """Rows for sequences of another length than that of the chain."""
    for name in names:
        yield call(**{name: [1, 1, 1]}), rf"{name} has length 3; {words}"


def of_dictionaries(where, call):
    """Rows for what are no unit atoms."""
    yield from (
        (partial(call, TALL), rf"{where}: .*atoms \[3\] are zero"),
        (partial(call, np.full((2, 3), nan)), f"{where}: .* NaN or infinite"),
        (partial(call, np.array([[1, inf]])), f"{where}: .* NaN or infinite"),
        (partial(call, 1.001 * EYE), f"{where}: .*try dictionaries.normalize"),
        (partial(call, CUT), f"{where}: .*cuts the atoms at the border"),
    )


# (call, words of the ValueError)
REFUSED = [
    # Coherence.
    *of_dictionaries("coherence", lambda D: theory.coherence(D, D)),
    *of_dictionaries("babel", lambda D: theory.babel(D, 1)),
    *of_dictionaries("generalized_coherence", theory.generalized_coherence),
    *of_dictionaries("minimal_entry_weights", theory.minimal_entry_weights),
    *of_dictionaries("coherence_at_most", lambda D: theory.coherence_at_most(D, 0.5)),
    (lambda: theory.mutual_coherence(TALL), r"mutual_coherence: .*atoms \[3\] are zero"),
    (lambda: theory.mutual_coherence(CUT), "mutual_coherence: .*cuts the atoms at the border"),
    (lambda: theory.mutual_coherence(np.full((2, 2), nan)), "mutual_coherence: .*NaN"),
    (lambda: theory.mutual_coherence(np.ones((3, 0))), "at least one row and one column"),
    (lambda: theory.mutual_coherence(np.ones(3)), r"mutual_coherence: .*expected \(m, d\)"),
    (lambda: theory.frobenius_weights(TALL), r"frobenius_weights: .*atoms \[3\] are zero"),
    (lambda: theory.frobenius_weights(CUT), "frobenius_weights: .*cuts the atoms"),
    (lambda: theory.frobenius_weights(EYE * nan), "frobenius_weights: .*NaN"),
    (lambda: theory.frobenius_weights(EYE, -1e-9), "ridge must be non-negative"),
    (lambda: theory.frobenius_weights(CONVS[0], nan), "ridge must be non-negative"),
    (lambda: theory.coherence(D.T, D), r"Did you pass W\.T\?"),
    (lambda: theory.coherence(D[:, :5], D), "they must agree"),
    (lambda: theory.atom_coherence(D[:, :5], D), "atom_coherence: .*they must agree"),
    (lambda: theory.atom_coherence(D, 2 * D), "atom_coherence: .*normalize"),
    (lambda: theory.babel(EYE, -1), "babel: s must be at least 0"),
    *((partial(f, mu), "mu must be non-negative") for mu in (-0.1, nan)
      for f in (theory.sparsity_bound, theory.spark_bound, lambda mu: theory.max_sparsity(mu, 5))),
    (lambda: theory.max_sparsity(0.1, 0), "max_sparsity: d must be at least 1"),
    (lambda: theory.welch_bound(0, 3), "welch_bound: m must be at least 1"),
    (lambda: theory.welch_bound(3, 0), "welch_bound: d must be at least 1"),
    *of_numbers(guard, "rounding_guard", "bound", "noise"),
    *of_numbers(guard, "rounding_guard", "sparsity", values=(-1,)),
    (guard(precision="fp8"), "rounding_guard: unknown precision 'fp8'"),
    *(
        (partial(theory.rounding_guard, W, EYE, sparsity=1, bound=1.0), f"rounding_guard: W {said}")
        for W, said in (
            (np.ones((0, 6)), r"has shape \(0, 6\); expected at least one row"),
            (np.ones((5, 4)), r"has shape \(5, 4\) but D has shape \(3, 3\)"),
            (np.nan * EYE, "has NaN or infinite entries"),
        )
    ),
    # Generalized coherence.
    *((partial(f, EYE, tol=tol), "tol must be positive") for tol in (0, -1e-6, nan, inf)
      for f in (theory.generalized_coherence, theory.minimax_weights, theory.minimal_entry_weights,
                partial(theory.coherence_at_most, level=0.5))),
    *((partial(theory.generalized_coherence, EYE, atoms=atoms), "atoms must be")
      for atoms in ([], [3], [-1])),
    *((partial(theory.coherence_at_most, EYE, v), "level must be non-negative")
      for v in (-0.1, nan)),
    *((partial(theory.minimal_entry_weights, EYE, v), "coherence must be non-negative")
      for v in (-0.1, nan)),
    (lambda: theory.minimal_entry_weights(EYE, theory.generalized_coherence(EYE, atoms=[0])),
     "all atoms"),
    # Schedules.
    *of_numbers(schedule, "schedule", "mu", "C_W", "bound", "noise", "guard", "eta"),
    *of_numbers(schedule, "schedule", "sparsity", "depth", values=(-1,)),
    (lambda: theory.schedule(**SCHEDULE).steps_for(nan), "steps_for: tol is nan"),
    (lambda: theory.schedule(**SCHEDULE).steps_to_support(nan, sparsity=1), "nan"),
    (lambda: theory.schedule(**SCHEDULE).steps_to_support(0.1, sparsity=-1),
     "steps_to_support: sparsity"),
    *of_numbers(soft, "activation_schedule", "mu", "C_W", "bound", "noise", "guard", "eta"),
    *of_numbers(soft, "activation_schedule", "sparsity", "depth", values=(-1,)),
    (soft(d=0), "activation_schedule: d must be at least 1"),
    *of_numbers(atoms, "atom_schedule", "bound", "noise", "guard", "eta"),
    *of_numbers(atoms, "atom_schedule", "sparsity", "depth", values=(-1,)),
    *of_numbers(atoms, "atom_schedule", "mus", "C_Ws", values=([0.1, -0.2], [0.1, nan])),
    *((atoms(mus=mus), "atom_schedule: mus has shape") for mus in ([0.1], 0.1, [[0.1, 0.2]])),
    *of_lengths(deep, "expected 1, one per block", *sorted(DEEP.keys() - {"mus"}), "depths"),
    *of_lengths(plan, "expected 1, one per block", *sorted(DEEP.keys() - {"mus"})),
    (deep(mus=[-0.1]), "mu must be non-negative"),
    (plan(tol=-1.0), "tol must be non-negative"),
    (plan(tol=nan), "tol must be non-negative"),
    (plan(bounds=[-1.0]), "must be non-negative and not NaN"),
    (plan(noises=[nan]), "must be non-negative and not NaN"),
    (lambda: theory.support_bound(-0.1, 1.0, size=2), "mu must be non-negative"),
    (lambda: theory.support_bound(0.1, nan, size=2), "C_W must be non-negative"),
    (lambda: theory.support_bound(0.1, 1.0, size=-1), "size must be at least 0"),
    (lambda: theory.objective_bound(EYE, -1.0, sparsity=1, gamma=0.1), "error must be non-neg"),
    (lambda: theory.objective_bound(EYE, 1.0, sparsity=1, gamma=nan), "gamma must be non-neg"),
    (lambda: theory.objective_bound(EYE, 1.0, sparsity=-1, gamma=0.1), "sparsity must be at least"),
    (lambda: theory.sequence_bound(EYE[:, :2], EYE, 3), "they must agree"),
    (lambda: theory.sequence_bound(EYE, EYE, -1), "depth must be at least 0"),
    (lambda: theory.sequence_bound(EYE, 2 * EYE, 3), "sequence_bound: .*normalize"),
    (lambda: theory.noise_gain(EYE * nan), "noise_gain: .*NaN"),
    (lambda: theory.error_gain(EYE, sparsity=-1), "sparsity must be at least 0"),
    # Bounds after the fact.
    *of_numbers(bar, "error_bar", "noise", "conditioning"),
    *of_numbers(bound, "code_bound", "noise"),
    *((call(sparsity=-1), "sparsity must be at least 0") for call in (bar, bound)),
    *((call(W=EYE[:, :2]), "they must agree") for call in (bar, bound)),
    *((call(D=2 * EYE), "expected 1 within") for call in (bar, bound)),
    (bar(W=None), "error_bar: expected W, conditioning or both"),
    (bar(W=None, D=2 * EYE, conditioning=0.1), "expected 1 within"),
    # Uniqueness.
    (uniqueness(Ds=[D, np.eye(6, 5).T]), r"uniqueness: D_1 has shape \(4, 6\) but D_2 .*\(5, 6\)"),
    (uniqueness(sparsities=[1, 6]), r"sparsities\[1\] is 6 but D_2 has 5 atoms"),
    (uniqueness(counts=[7, 1]), r"counts\[0\] is 7 but D_1 has 6 atoms"),
    (uniqueness(sparsities=[1, -1]), "sparsities must be at least 0"),
    *of_lengths(uniqueness, "expected 2, one per layer", "sparsities"),
    (uniqueness(Ds=[2 * D, np.eye(6, 5)]), "norms in .* try dictionaries.normalize"),
    (uniqueness(Ds=[np.eye(4, 6), np.eye(6, 5)]), r"atoms \[4, 5\] are zero"),
    (uniqueness(Ds=[D * nan, np.eye(6, 5)]), "NaN or infinite"),
    (uniqueness(coherence=lambda D: nan), "coherence must be non-negative"),
    *((recover(supports=[S, [0]]), r"S_1 is .* expected distinct indices in \[0, 6\)")
      for S in ([0, 6], [-1, 0], [1, 1], [[0, 1]])),
    *of_lengths(recover, "expected 2, one per layer", "supports"),
    (recover(y=Z(5)), r"y has shape \(5,\)"),
    (recover(Ds=[D, np.eye(6, 5).T]), r"D_1 has shape \(4, 6\) but D_2 has shape \(5, 6\)"),
    (lambda: theory.oracle_errors([EYE], [[0]], sigma=-1.0), "sigma must be non-negative"),
    (lambda: theory.oracle_errors([EYE], [[4]]), "expected distinct indices"),
    (lambda: theory.holistic_stability([EYE], [[4]], 0.0, 0.0), "S_1 is"),
    # Stability.
    (stability(Ds=[D, D]), r"stability: D_1 has shape \(4, 6\) but D_2 has shape \(4, 6\)"),
    (stability(sparsities=[1, 6]), r"sparsities\[1\] is 6 but D_2 has 5 atoms"),
    (stability(Ds=[D, 2 * CHAIN[1]]), "norms in .* try dictionaries.normalize"),
    (stability(Ds=[D * nan, CHAIN[1]]), "NaN or infinite"),
    *((stability(eps=eps), "eps must be non-negative") for eps in (-1.0, [0.0, nan])),
    *of_numbers(stability, "stability", "eps0"),
    *of_lengths(stability, "expected 2", "eps", "sparsities"),
    (stability(Ws=[D]), "Ws has length 1; expected 2"),
    (stability(Ws=[D[:, :5], None]), "W has shape .* but D has shape"),
    *((partial(f, CHAIN, [1], 0.0), "sparsities has length 1; expected 2")
      for f in (theory.noise_stability, theory.model_stability)),
    *((partial(f, CHAIN, [1, 1], -1.0), "must be non-negative")
      for f in (theory.noise_stability, theory.model_stability)),
    (moved(Ds_perturbed=[EYE[:, :2]]),
     r"D_1 has shape \(3, 3\), its perturbation \(3, 2\) and its code \(3,\)"),
    (moved(xs=[Z(4)]), r"its code \(4,\)"),
    (moved(Ds_perturbed=[EYE, EYE]), "Ds_perturbed has length 2; expected 1"),
    (moved(xs=[]), "xs has length 0; expected 1"),
    (moved(xs=[Z(3) * nan]), "x_1 has NaN or infinite entries"),
    (lambda: theory.product_stability(CHAIN, 6, 0.0, 0.0), r"sparsities\[0\] is 6 but D_1 has 5"),
    (lambda: theory.product_stability(CHAIN, 1, 0.0, -1.0), "delta must be non-negative"),
    *((call(sparsities=(3,)), "sparsities has length 1") for call in (layered, thresholds)),
    *((call(sparsities=(3, 50)), "has 5 atoms") for call in (layered, thresholds)),
    *((call(noise=-0.1), "noise must be non-negative") for call in (layered, thresholds)),
    *((call(Ds=(2 * D, CHAIN[1])), "normalize") for call in (layered, thresholds)),
    (thresholds(bounds=(1.0,) * 3), "bounds has length 3"),
    # Models.
    *((partial(theory.stripe_norm, Z(shape), 2), r"expected \(n_atoms, \*positions\)")
      for shape in (5, (2, 0), (0, 5))),
    (lambda: theory.stripe_norm(Z((2, 5)), (2, 2)), r"kernel \(2, 2\) does not fit x .*\(2, 5\)"),
    (lambda: theory.stripe_norm(Z((2, 5)), 2, stride=0), "stride must be at least 1, got 0"),
    (lambda: theory.stripe_norm(Z((2, 5)), 0), "kernel must be at least 1"),
    (lambda: theory.stripe_norm(Z((2, 5)), 2, tol=-1.0), "tol must be non-negative"),
    (feasible(Ds=[D, CHAIN[1].T]), r"D_1 has shape \(4, 6\) but D_2 has shape \(5, 6\)"),
    (feasible(xs=[X[0], X[0]]), r"x_2 has shape \(6,\); expected \(5,\)"),
    (feasible(y=X[0]), r"y has shape \(6,\); expected \(4,\)"),
    *of_lengths(feasible, "expected 2, one per layer", "xs", "sparsities", "eps"),
    (feasible(sparsities=[6, -1]), "sparsities must be at least 0"),
    (feasible(eps=[0.0, nan]), "eps must be non-negative"),
    (feasible(tol=-1.0), "tol must be non-negative"),
    (feasible(Ds=D, xs=X[:1]), r"one dictionary of shape \(4, 6\).*try \[D\]"),
    (feasible(Ds=[], xs=[], sparsities=[]), "at least one dictionary, got none"),
    (feasible(Ds=[D * nan, CHAIN[1]]), "NaN or infinite"),
    (stripes(Ds=[CONVS[0], OTHER_GRID], xs=[Z(72), Z(OTHER_GRID.shape[1])]),
     r"D_1 has code grid \(3, 24\) but D_2 has signal grid \(8, 9\)"),
    *of_lengths(stripes, "expected 2", "sparsities"),
    (stripes(tol=-1.0), "tol must be non-negative"),
    (stripes(y=Y8, Ds=[CUT], xs=[Z(CUT.shape[1])], sparsities=[1]), 'boundary "zero" cuts the'),
    (stripes(Ds=[CONVS[0] * 0.0], xs=[Z(72)], sparsities=[9]), "are zero"),
    # Certificates of params.
    (certify(layer=layers.lista_cp(1, activation="silu")), "expected the activation relu"),
    *of_numbers(certify, "certify", "bound", "noise"),
    (certify(bound=inf), "certify: bound or noise has"),
    (certify(sparsity=-1), "certify: sparsity must be at least 0"),
    (certify(params=PARAMS._replace(steps=Threshold(np.full(1, inf)))), "params or D has NaN"),
    (certify(layer=layers.lista_cp(2)), "depth 2"),
    (pair(sparsity=1), "certify: expected 2 sparsity"),
    (pair(D=(EYE,)), "certify: expected 2 D"),
    # Certificates of codes.
    (code(x=Z(4)), r"D has shape \(4, 6\), y \(4,\) and x \(4,\)"),
    (code(steps=-1), "steps must be at least 0"),
    *((partial(theory.certify_code, a * EYE, a * np.ones(3), np.ones(3), finish=finish),
       "the largest norm of an atom is")
      for a, finish in ((1e61, 3), (1e80, None), (1e200, None), (1e-61, None), (1e-80, 3))),
    *((lambda y=y: theory.certify_code(EYE, Z(3), Z(3)).certified(y),
       r"certified: y has shape .*expected \(3,\)") for y in (np.ones(2), np.ones((1, 3)))),
    # Samples.
    *((tolerance(**change), f"(tolerance_bound|signals_needed): {words}") for change, words in (
        (dict(share=0.0), r"share must be in \(0, 1\), got 0.0"),
        (dict(share=nan), "share must be in"),
        (dict(confidence=1), r"confidence must be in \(0, 1\), got 1.0"),
        (dict(at_once=0), "at_once must be at least 1"),
        (dict(at_once=10**320), "at_once must be at most 2147483647"),
        (dict(errors=Z((3, 4))), r"errors have shape \(3, 4\); expected \(n,\)"))),
    (lambda: theory.exceedance(Z(9), nan), "level is nan"),
    (lambda: theory.signals_needed(1e-320, 0.5), "needs more signals than can be counted"),
    # State evolution.
    *((evolution(probability=p), f"probability must be above 0 and below 1, got {p}")
      for p in (0.0, 1.0, nan)),
    (evolution(variance=0.0), "variance must be above 0"),
    (evolution(noise=-1.0), "noise must be non-negative"),
    (evolution(noise=inf), "noise must be at most"),
    (evolution(noise=1e300), r"at most 1e\+100 times the variance 1 of the codes"),
    (evolution(D=2 * EYE), "normalize"),
    # Rates and conditioning.
    (lambda: theory.local_rate(5, 4, 1), "m=5, d=4, s=1; expected s <= m <= d"),
    (lambda: theory.local_rate(5, 9, 1, weights="W"), "weights is 'W'; expected one of"),
    (lambda: theory.local_rate(5, 9, 1).steps_to(nan), "decibels is nan"),
    (lambda: theory.support_rate(EYE, EYE, []), "the support is empty"),
    (lambda: theory.support_rate(EYE[:2], EYE, [0]), "they must agree"),
    (lambda: theory.gaussian_conditioning(4, 8, 0), "k must be at least 1, got 0"),
    (lambda: theory.gaussian_conditioning(4, 8, 2, 1), r"confidence must be in \(0, 1\), got 1.0"),
]  # fmt: skip


@pytest.mark.parametrize("call, words", REFUSED)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# (call, words of the TypeError)
OTHER_KINDS = [
    *((soft_of, "constants of an Activation") for soft_of in (
        partial(theory.theorem_of, "relu"), partial(theory.theorem_of, jax.nn.relu),
        partial(theory.activation_schedule, jax.nn.relu, d=3, **SCHEDULE))),
    (lambda: certify(layer=FISTA, params=FISTA.init(None, EYE))(), "certify: a step of fista"),
    (evolution(layer=layers.alista(2)), r"alista\(2\) has no state evolution; expected lamp"),
    (evolution(layer=layers.alista_at(2)), "no state evolution"),
    (evolution(layer=layers.lamp(2, activation="silu")), "no state evolution"),
    (evolution(layer="lamp"), "no state evolution"),
    (lambda: theory.schedule(**SCHEDULE).steps_to_support(0.1, sparsity=1.5), "steps_to_support:"),
    (evolution(D=dictionaries.Conv(np.ones((1, 1, 1)), 4)), "D is a Conv; expected an"),
    (recover(supports=[[0], np.ones(5, bool)]), "S_2 has dtype bool; .* np.flatnonzero"),
    (code(y=np.ma.array(Z(4), mask=np.arange(4) == 3)), "certify_code: y is a masked array"),
    (lambda: theory.certify_code(EYE, Z(3), Z(3)).certified(np.ma.masked_equal(Z(3), 0)),
     "certified: y is a masked array"),
    (stripes(Ds=[CONVS[0], dictionaries.Composed(CONVS[1])]), r"Ds\[1\] is a Composed; .* Conv"),
]  # fmt: skip


@pytest.mark.parametrize("call, words", OTHER_KINDS)
def test_what_is_of_another_kind_is_refused_in_words(call, words):
    with pytest.raises(TypeError, match=words):
        call()


TRACED = {
    "schedule: mu": lambda v: schedule(mu=v)(),
    "schedule: eta": lambda v: schedule(eta=v)(),
    "schedule: depth": lambda v: schedule(depth=v)(),
    "activation_schedule: bound": lambda v: soft(bound=v)(),
    "atom_schedule: an argument": lambda v: atoms(mus=jnp.stack([v, v]))(),
    "atom_schedule: noise": lambda v: atoms(noise=v)(),
    "plan: tol": lambda v: plan(tol=v)(),
    "schedule: bound": lambda v: plan(bounds=[v])(),
    "sparsity_bound: mu": theory.spark_bound,
    "max_sparsity: mu": lambda v: theory.max_sparsity(v, 5),
    "max_sparsity: d": lambda v: theory.max_sparsity(0.1, v),
    "welch_bound: d": lambda v: theory.welch_bound(3, v),
    "babel: s": lambda v: theory.babel(EYE, v),
    "rounding_guard: W": lambda v: theory.rounding_guard(v * EYE, EYE, sparsity=1, bound=1.0),
    "rounding_guard: bound": lambda v: guard(bound=v)(),
    "noise_gain: W": lambda v: theory.noise_gain(v * EYE),
    "error_gain: W": lambda v: theory.error_gain(v * EYE, sparsity=1),
    "sequence_bound: W": lambda v: theory.sequence_bound(v * EYE, EYE, 3),
    "support_bound: mu": lambda v: theory.support_bound(v, 1.0, size=2),
    "objective_bound: D": lambda v: theory.objective_bound(v * EYE, 1.0, sparsity=1, gamma=0.1),
    "objective_bound: error": lambda v: theory.objective_bound(EYE, v, sparsity=1, gamma=0.1),
    "coherence_at_most: D": lambda v: theory.coherence_at_most(v * EYE, 0.5),
    "coherence_at_most: level": lambda v: theory.coherence_at_most(EYE, v),
    "minimal_entry_weights: D": lambda v: theory.minimal_entry_weights(v * EYE),
    "minimal_entry_weights: coherence": lambda v: theory.minimal_entry_weights(EYE, v),
    "generalized_coherence: atoms": lambda v: theory.generalized_coherence(EYE, atoms=[v]),
    "error_bar: x": lambda v: bar(x=v * Z(3))(),
    "code_bound: y": lambda v: bound(y=v * Z(3))(),
    "uniqueness: Ds": lambda v: uniqueness(Ds=[v * D, CHAIN[1]])(),
    "recover_on_supports: supports": lambda v: recover(supports=[v.astype(int)[None], [0]])(),
    "stability: eps0": lambda v: stability(eps0=v)(),
    "stability: Ws": lambda v: stability(Ws=[v * D, None])(),
    "model_stability: eps": lambda v: theory.model_stability(CHAIN, [1, 1], v),
    "perturbed_eps: xs": lambda v: moved(xs=[v * Z(3)])(),
    "product_stability: Ds": lambda v: theory.product_stability([v * EYE], 1, 0.0, 0.0),
    "holistic_stability: Ds": lambda v: theory.holistic_stability([v * EYE], [[0]], 0.0, 0.0),
    "layered_penalties: Ds": lambda v: layered(Ds=[v * D, CHAIN[1]])(),
    "is_feasible: y": lambda v: feasible(y=v * Z(4))(),
    "is_feasible: eps": lambda v: feasible(eps=v)(),
    "certify: D": lambda v: certify(D=v * EYE)(),
    "certify_code: y": lambda v: code(y=v * Z(4))(),
    "tolerance_bound: errors": lambda v: tolerance(errors=v * Z(9))(),
    "support_rate: W": lambda v: theory.support_rate(v * EYE, EYE, [0]),
    "state_evolution: D": lambda v: evolution(D=v * D)(),
}


@pytest.mark.parametrize("where", TRACED)
def test_host_functions_refuse_tracers_and_say_which(where):
    with pytest.raises(TypeError, match=rf"{where}.* (is traced|traced value)"):
        jax.make_jaxpr(TRACED[where])(1.0)
