"""What the functions of analytic refuse, and in which words. Wrong kinds stand in `test_doors`."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy.linalg import hadamard

from unrolled import analytic, layers, networks, training
from unrolled.layers import Unrolled

D = np.hstack([np.eye(16), hadamard(16) / 4])
GAUSSIAN = oracles.unit(np.random.default_rng(1).normal(size=(5, 8)))
X = np.random.default_rng(0).normal(size=(4, 8))
Y = X @ GAUSSIAN.T
ISTA, LIHT = layers.ista(1), layers.liht(1, sparsity=3)
CHAIN, ML_LISTA = networks.dsc([ISTA, ISTA]), networks.ml_lista(2)
DS = GAUSSIAN, np.eye(8)


def blank(layer, D):
    """Params of zeros."""
    params = jax.eval_shape(lambda D: layer.init(None, D), D)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)


STARTS = tuple(blank(ISTA, D) for D in DS)


def given(function, valid, **changes):
    """A call of the function with some of its valid arguments changed."""
    return partial(function, **valid | changes)


KINDS = {}, {"per_atom": True}, {"noise_norm": "l2"}, {"activation": "elu"}
FAMILIES = analytic.lista_cp, analytic.alista, analytic.block_schedule
CLASS = dict(D=D, depth=2, sparsity=1, bound=1.0, noise=0.1)
CLASSES = dict(Ds=[D], sparsities=[1], bounds=[1.0], noises=[0.0], Ws=[None])
plan = partial(given, analytic.plan, CLASSES | dict(tol=0.1))
dsc = partial(given, analytic.dsc, CLASSES | dict(depths=[1], activations=["relu"]))
calibrate = partial(
    given, analytic.calibrate, dict(model=ISTA, params=STARTS[0], D=GAUSSIAN, Y=Y, X=X)
)
blind = partial(calibrate, X=None)
chain = partial(calibrate, model=CHAIN, params=STARTS, D=DS, X=(X, X))

# (call, words of the ValueError)
REFUSED = [
    *((given(family, CLASS, **kind, **{name: value}), words)
      for family in FAMILIES for kind in KINDS for name, value, words in (
        ("sparsity", 33, "sparsity 33 exceeds the number of atoms 32"),
        ("sparsity", -1, "sparsity must be at least 0"),
        ("bound", -1.0, "bound must be non-negative"), ("bound", math.nan, "must be non-negative"),
        ("noise", -1.0, "noise must be non-negative"), ("noise", math.nan, "must be non-negative"),
        ("depth", -1, "depth must be at least 0"), ("D", 2 * D, "normalize"),
        ("W", D[:, :9], "they must agree"))),
    *((given(analytic.lista_cp, CLASS, noise_norm=norm), 'noise_norm .*expected "l1" or "l2"')
      for norm in ("l0", "L2", 2, None, ["l1"])),
    *((call(**{name: valid * 2}), f"{name} has length 2; expected 1")
      for call in (plan, dsc) for name, valid in CLASSES.items() if name != "Ds"),
    (dsc(depths=[1, 1]), "depths has length 2; expected 1"),
    (dsc(activations=["relu", "relu"]), "activations has length 2; expected 1"),
    (dsc(activations=["rely"]), "unknown name"),
    (plan(Ds=[D, D]), "D_1 has shape .* but D_2"),
    (dsc(Ds=[D, D]), "D_1 has shape .* but D_2"),
    (plan(sparsities=[33]), "sparsity 33 exceeds the number of atoms 32"),
    *((plan(tol=tol), "tol must be non-negative") for tol in (-1.0, math.nan)),
    *((partial(make, GAUSSIAN, **dict(depth=2, probability=0.1) | options), words)
      for make in (analytic.lamp, analytic.alista_at) for options, words in (
        (dict(probability=1.0), "probability must be above 0 and below 1, got 1"),
        (dict(margin=0.5), "margin must be at least 1, got 0.5"),
        (dict(variance=-1.0), "variance must be above 0"), (dict(depth=-1), "depth"))),
    (lambda: analytic.certified_weights(D, math.nan * D), "certified_weights: W has NaN"),
    (lambda: analytic.weights_table(2 * D), "normalize"),
    (lambda: analytic.weights_table(D, sparsity=33), "exceeds the number of atoms 32"),
    (lambda: analytic.weights_table(D * np.where(np.arange(32) == 3, math.nan, 1.0)), "NaN"),
    (given(analytic.lista_cp, CLASS, bound=np.ones((2, 9))), "9|32"),
    (lambda: analytic.bound_remark(D, np.full((2, 32), math.nan), 1.0), "NaN|finite"),
    (lambda: analytic.bound_remark(D, np.ones((2, 32)), -1.0), "bound must be non-negative"),
    # Calibration.
    (blind(), r"there are no codes; .* try loss=training.lasso_loss\(lam\)"),
    (blind(loss=training.log_nmse), r"X = None; try training.lasso_loss\(lam\)"),
    (blind(loss=lambda codes, X, D, Y: jnp.sum((codes[-1] - X) ** 2)),
     "calibrate: the loss fails without codes, X = None"),
    (blind(loss=lambda codes, X, D, Y: jnp.full((), 3.0)),
     "the loss is 3 for all codes, zero codes too"),
    (blind(Y=0 * Y, loss=training.lasso_loss(0.1)), "all signals of the sample are zero"),
    (chain(X=(X,)), "X has 1 arrays of codes; expected 2, one per block"),
    (chain(params=STARTS[:1]), "tuple of 2 params"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::unrolled.analytic.HypothesisWarning")
@pytest.mark.parametrize("call, words", REFUSED)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# (call, words of the TypeError)
OTHER_KINDS = [
    *((dsc(activations=[rho]), "constants of an Activation") for rho in (jnp.tanh,)),
    (blind(loss=0.1), "loss must be a function, got 0.1"),
    (calibrate(report="stdout"), "report must be a function"),
    (calibrate(model=LIHT, params=blank(LIHT, GAUSSIAN)),
     "steps with a threshold.*this family has none"),
    (calibrate(params=Unrolled(None, (layers.Weights(GAUSSIAN),))), "another family"),
    (chain(model=ML_LISTA, params=blank(ML_LISTA, DS)),
     "the blocks of ml_lista do not run one after the other"),
]  # fmt: skip


@pytest.mark.parametrize("call, words", OTHER_KINDS)
def test_what_is_of_another_kind_is_refused_in_words(call, words):
    with pytest.raises(TypeError, match=words):
        call()


TRACED = {
    **{f"lista_cp: {name}": partial(lambda name, v: given(analytic.lista_cp, CLASS, **{name: v})(),
                                    name) for name in ("bound", "noise")},
    "lista_cp: D": lambda v: given(analytic.lista_cp, CLASS, D=v * D)(),
    "alista: bound": lambda v: given(analytic.alista, CLASS, bound=v, per_atom=True)(),
    "block_schedule: noise": lambda v: given(analytic.block_schedule, CLASS, noise=v)(),
    "plan: tol": lambda v: plan(tol=v)(),
    "stored_thresholds: theta": lambda v: analytic.stored_thresholds(v[None], np.float32),
    "calibrate: Y": lambda v: calibrate(Y=v * Y)(),
    "weights_table: D": lambda v: analytic.weights_table(v * D),
    "lamp: margin": lambda v: analytic.lamp(GAUSSIAN, 2, probability=0.1, margin=v),
}  # fmt: skip


@pytest.mark.parametrize("where", TRACED)
def test_host_functions_refuse_tracers_and_say_which(where):
    with pytest.raises(TypeError, match=f"{where} is traced; this function runs on the host"):
        jax.make_jaxpr(TRACED[where])(1.0)
