"""How each exported numeric function is called, to count the programs of a first call.

What the calls need is built here, with programs of its own: tests import this file when they run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import registry

import unrolled as ur

rng = np.random.default_rng(0)


def _unit(m, d):
    A = rng.normal(size=(m, d))
    return jnp.asarray(A / np.linalg.norm(A, axis=0))


D, D_2, V = _unit(11, 19), _unit(19, 23), jnp.asarray(rng.normal(size=19))
CONV = ur.dictionaries.Conv(
    np.array([[[0.6, 0.8, 0.0]], [[0.0, 0.28, 0.96]]]), 13, boundary="circular"
)
X = jnp.asarray(rng.normal(size=(7, 19)) * (rng.uniform(size=(7, 19)) < 0.3))
Y, Y_CONV = jnp.asarray(np.asarray(X) @ np.asarray(D).T), jnp.asarray(rng.normal(size=(7, 13)))
Y_1, X_1, Y_1_CONV = (jnp.asarray(np.asarray(A[0])) for A in (Y, X, Y_CONV))
MAGNITUDES, TWO = jnp.asarray(np.abs(V)), jnp.asarray([0.1, 0.2])
CODE, ZERO = jnp.asarray(np.eye(19)[3]), jnp.asarray(np.zeros(19))
MASKS = jnp.asarray(rng.uniform(size=(3, 5, 7)) < 0.5)
CODE_CONV, W_CONV = jnp.asarray(np.ones(26)), jnp.asarray(np.ones((13, 2)))
KEY = jax.random.key(0)
LAYER, ONE = ur.layers.lista_cp(3), dict(sparsity=1, bound=1.0)
ISTA = ur.layers.ista(3)
CODES = jnp.asarray(rng.normal(size=(3, 7, 19)))
HIDING = ur.training.withholding(D, np.asarray(Y), batch=7)
HIDDEN = HIDING(KEY)


def _params(layer):
    """Of the shapes of `init`, without its programs."""
    shapes = jax.eval_shape(layer.init, KEY, D)
    return jax.tree.map(lambda leaf: jnp.asarray(np.full(leaf.shape, 0.1, leaf.dtype)), shapes)


PARAMS, ISTA_PARAMS = _params(LAYER), _params(ISTA)
ONE_STEP = jax.tree.map(lambda leaf: np.asarray(leaf)[0], PARAMS.steps)
UNSTACKED = PARAMS._replace(steps=(ONE_STEP,) * 3)
NETWORKS = {name: build() for name, build in registry.NETWORKS.items()}


def _step(shared, p, D, y, state):
    return ur.layers.State(state.x + p.gamma * ((y - D @ state.x) @ D))


t, d, a, m, p = ur.theory, ur.dictionaries, ur.analytic, ur.metrics, ur.problems
act, lay, tr, real = ur.activations, ur.layers, ur.training, ur.realize

FILTERS, PLACES = CONV.filters, np.arange(13)[:, None]
IMAGE, TOKENS = Y_CONV[:1], jnp.asarray(rng.uniform(size=(13, 4)))
ATTENTION, SOFT_ATTENTION = (real.attention(FILTERS, signal_shape=13, alpha=a) for a in (None, 8.0))
CNN = real.cnn(LAYER, PARAMS, D, kernel_size=4, signal_bound=9.0)
MODULE = real.nnx_module(CNN)
CONV_PARAMS = ur.analytic.ista(CONV, 0.1, 3)
TRANSFORMER = real.transformer(ISTA, CONV_PARAMS, CONV, signal_bound=9.0)
BOUNDS = dict(signal_bound=9.0, code_bound=9.0)
BLOCK = real.transformer_block(CONV, CONV, 0.1, **BOUNDS)
STRUCTURED = {
    name: D
    for name, D in ((name, build()) for name, build in registry.DICTIONARIES.items())
    if isinstance(D, ur.dictionaries.Structured)
}

# Functions of one dictionary, of which a `Conv` is another case.
OF_DICTIONARIES = {
    "dictionaries.column_norms": d.column_norms,
    "dictionaries.dense": d.dense,
    "dictionaries.entries": d.entries,
    "dictionaries.inner_products": lambda D: d.inner_products(D, D),
    "dictionaries.magnitudes": d.magnitudes,
    "dictionaries.normalize": d.normalize,
    "dictionaries.normalized": d.normalized,
    "dictionaries.spectral_norm": d.spectral_norm,
    "dictionaries.unit_atoms": lambda D: d.unit_atoms(D, "caller"),
    "dictionaries.unit_norms": lambda D: d.unit_norms(D, np.ones(D.shape[1]), "caller"),
    "theory.atom_coherence": lambda D: t.atom_coherence(D, D),
    "theory.block_coherence": lambda D: t.block_coherence(D, D),
    "theory.babel": lambda D: t.babel(D, 3),
    "theory.coherence": lambda D: t.coherence(D, D),
    "theory.diagonal": lambda D: t.diagonal(D, D),
    "theory.certify_code": lambda D: t.certify_code(D, np.ones(D.shape[0]), np.ones(D.shape[1])),
    "theory.certify_lasso": lambda D: t.certify_lasso(
        D, np.ones(D.shape[0]), np.zeros(D.shape[1]), 0.1
    ),
    "theory.error_gain": lambda D: t.error_gain(D, sparsity=2),
    "theory.frobenius_weights": t.frobenius_weights,
    "theory.frobenius_weights, ridge": lambda D: t.frobenius_weights(D, 0.1),
    "theory.in_float64": t.in_float64,
    "theory.mutual_coherence": t.mutual_coherence,
    "theory.noise_gain": t.noise_gain,
    "theory.objective_bound": lambda D: t.objective_bound(D, 0.1, sparsity=1, gamma=0.5),
    "theory.pseudo_inverse": t.pseudo_inverse,
    "theory.rounding_guard": lambda D: t.rounding_guard(D, D, **ONE),
    "theory.sequence_bound": lambda D: t.sequence_bound(D, D, 3),
    "theory.spectral_radius": lambda D: t.spectral_radius(D, D),
    "theory.weights_coherence": lambda D: t.weights_coherence(D, D),
    "theory.inner_products": lambda D: t.inner_products(D, D),
    "theory.perturbed_eps": lambda D: t.perturbed_eps([D], [D], [np.ones(D.shape[1])]),
    "theory.support_rate": lambda D: t.support_rate(D, D, [1, 2]),
    "theory.uniqueness": lambda D: t.uniqueness([D], [1]),
    "theory.layered_penalties": lambda D: t.layered_penalties([D], sparsities=[1], noise=0.1),
    "theory.layered_thresholds": lambda D: t.layered_thresholds([D], sparsities=[1], bounds=1.0),
    "analytic.certified_weights": lambda D: a.certified_weights(D, D),
    "analytic.ista": lambda D: a.ista(D, 0.1, 3),
    "analytic.hyperlista": a.hyperlista,
    "analytic.lista_cp": lambda D: a.lista_cp(D, depth=3, **ONE),
    "analytic.alista": lambda D: a.alista(D, depth=3, **ONE),
    "analytic.block_schedule": lambda D: a.block_schedule(D, depth=3, **ONE),
    "layers.lasso_weights": lambda D: lay.lasso_weights(D, 0.2),
    "layers.stable_step": lambda D: lay.stable_step(D, D),
    "layers.ista_params": lambda D: lay.ista_params(D, 0.1, 3, "caller"),
    "training.with_unit_atoms": tr.with_unit_atoms,
    **{
        f"layers.{name}.init": lambda D, build=build: build(3).init(KEY, D)
        for name, build in registry.LAYERS.items()
    },
}

# Each is called without arguments.
CALLS = {name: partial(call, D) for name, call in OF_DICTIONARIES.items()}
CALLS |= {f"{name}, Conv": partial(call, CONV) for name, call in OF_DICTIONARIES.items()}
CALLS |= {
    f"networks.{name}.init": partial(lambda network, Ds: network.init(KEY, Ds), *built)
    for name, built in NETWORKS.items()
}
CALLS |= {
    "activations.firm_threshold": lambda: act.firm_threshold(V, 0.1, 0.5),
    "activations.hard_threshold": lambda: act.hard_threshold(V, 0.1),
    "activations.jump_relu": lambda: act.jump_relu(V, 0.1),
    "activations.kth_largest": lambda: act.kth_largest(MAGNITUDES, 3),
    "activations.nonnegative_threshold": lambda: act.nonnegative_threshold(V, 0.1),
    "activations.power_threshold": lambda: act.power_threshold(V, 0.1, 0.5),
    "activations.select_support": lambda: act.select_support(V, 0.1, 0.2),
    "activations.selected": lambda: act.selected(MAGNITUDES, 0.1, 0.2),
    "activations.shrink": lambda: act.shrink(V, 0.1),
    "activations.shrink, elu": lambda: act.shrink(V, 0.1, act.elu(0.5)),
    "activations.soft_threshold": lambda: act.soft_threshold(V, 0.1),
    **{f"activations.{name}": partial(rho, V) for name, rho in act.NAMED.items()},
    "dictionaries.all_kept": lambda: d.all_kept(np.ones(3, bool), np.float32, "caller"),
    "dictionaries.coils": lambda: d.coils(np.ones((2, 3, 4), np.complex64)),
    "dictionaries.fourier": lambda: d.fourier((4, 6), np.eye(4, 6) > 0),
    "dictionaries.wavelet": lambda: d.wavelet((8, 8), "db2", 2),
    "dictionaries.as_chain": lambda: d.as_chain([D, D_2], "caller"),
    "dictionaries.as_dictionary": lambda: d.as_dictionary(D, "caller"),
    "dictionaries.check_batch": lambda: d.check_batch(D, Y, X, "caller"),
    "dictionaries.cuts_atoms": lambda: d.cuts_atoms(CONV),
    "dictionaries.inner_terms": lambda: d.inner_terms(CONV),
    "dictionaries.dct": lambda: d.dct(11, 19),
    "dictionaries.gaussian": lambda: d.gaussian(KEY, 11, 19),
    "dictionaries.identity_hadamard": lambda: d.identity_hadamard(16),
    "dictionaries.ill_conditioned": lambda: d.ill_conditioned(KEY, 11, 19, 5.0),
    "dictionaries.kept_atoms": lambda: d.kept_atoms(D, D, "caller"),
    "dictionaries.nonzero_atoms": lambda: d.nonzero_atoms(MAGNITUDES, "caller"),
    "dictionaries.operands": lambda: d.operands(D, Y_1, "caller"),
    "dictionaries.paley": lambda: d.paley(13),
    "dictionaries.replicate": lambda: d.replicate(CONV, W_CONV),
    "dictionaries.representatives": lambda: d.representatives(CONV),
    "dictionaries.from_pairs": lambda: d.from_pairs(V[:18]),
    "dictionaries.to_pairs": lambda: d.to_pairs(np.array([1j, 2.0])),
    "dictionaries.spread": lambda: d.spread(CONV, TWO),
    "dictionaries.threshold_shapes": lambda: d.threshold_shapes(CONV),
    "dictionaries.transversal": lambda: d.transversal(KEY, 2, 5, 12),
    "theory.activation_schedule": lambda: t.activation_schedule(
        act.elu(0.1), 0.01, 1.0, d=19, depth=3, **ONE
    ),
    "theory.atom_schedule": lambda: t.atom_schedule(np.ones(19) / 9, np.ones(19), depth=3, **ONE),
    "theory.block_coherence": lambda: t.block_coherence(d.Joint(D, 2), d.Joint(D, 2)),
    "theory.certify": lambda: t.certify(LAYER, PARAMS, D, **ONE),
    "theory.certify_run": lambda: t.certify_run(LAYER, PARAMS, D, X_1, noise=0.1),
    "theory.certify_signals": lambda: t.certify_signals(LAYER, PARAMS, D, X),
    "theory.certify_supports": lambda: t.certify_supports(D, D, [[1, 2], [3, 4]]),
    "analytic.from_sample": lambda: a.from_sample(LAYER, D, np.asarray(X_1)[None], W=D),
    "theory.code_bound": lambda: t.code_bound(D, D, Y_1, sparsity=1),
    "theory.coherence_at_most": lambda: t.coherence_at_most(D, 0.9),
    "theory.deep_schedule": lambda: t.deep_schedule(
        [0.1], [1.0], sparsities=[1], bounds=[1.0], depths=[3]
    ),
    "theory.error_bar": lambda: t.error_bar(D, D, CODE, Y_1, sparsity=1),
    "theory.exceedance": lambda: t.exceedance(np.zeros(9), 0.5),
    "theory.gaussian_conditioning": lambda: t.gaussian_conditioning(11, 19, 3),
    "theory.generalized_coherence": lambda: t.generalized_coherence(D),
    "theory.holistic_stability": lambda: t.holistic_stability([D], [[1, 2]], 0.1, 0.1),
    "theory.is_csc_feasible": lambda: t.is_csc_feasible(Y_1_CONV, [CONV], [CODE_CONV], [9]),
    "theory.is_feasible": lambda: t.is_feasible(Y_1, [D], [X_1], [9], 0.1),
    "theory.local_rate": lambda: t.local_rate(11, 19, 3),
    "theory.max_sparsity": lambda: t.max_sparsity(0.25, 19),
    "theory.minimal_entry_weights": lambda: t.minimal_entry_weights(D),
    "theory.minimax_weights": lambda: t.minimax_weights(D),
    "theory.model_stability": lambda: t.model_stability([D], [1], 0.1),
    "theory.noise_stability": lambda: t.noise_stability([D], [1], 0.1),
    "theory.oracle_errors": lambda: t.oracle_errors([D], [[1, 2]]),
    "theory.plan": lambda: t.plan([0.1], [1.0], sparsities=[1], bounds=[1.0], tol=0.1),
    "theory.product_stability": lambda: t.product_stability([D], 1, 0.1, 0.1),
    "theory.recover_on_supports": lambda: t.recover_on_supports(Y_1, [D], [np.array([1, 2])]),
    "theory.schedule": lambda: t.schedule(0.1, 1.0, depth=3, **ONE),
    "theory.signals_needed": lambda: t.signals_needed(0.1, 0.9),
    "theory.spark_bound": lambda: t.spark_bound(0.25),
    "theory.sparsity_bound": lambda: t.sparsity_bound(0.25),
    "theory.state_evolution": lambda: t.state_evolution(lay.lamp(2), D, probability=0.1),
    "theory.stability": lambda: t.stability([D], [1], 0.1, 0.1),
    "theory.stripe_norm": lambda: t.stripe_norm(X, 3),
    "theory.support_bound": lambda: t.support_bound(0.01, 1.0, size=3),
    "theory.theorem_of": lambda: t.theorem_of(act.relu),
    "theory.tolerance_bound": lambda: t.tolerance_bound(np.zeros(99), share=0.1, confidence=0.9),
    "theory.welch_bound": lambda: t.welch_bound(11, 19),
    "analytic.lamp": lambda: a.lamp(D, 2, probability=0.1),
    "analytic.alista_at": lambda: a.alista_at(D, 2, probability=0.1),
    "analytic.frobenius_weights": lambda: a.frobenius_weights(D),
    "analytic.minimax_weights": lambda: a.minimax_weights(D),
    "analytic.calibrate": lambda: a.calibrate(ISTA, ISTA_PARAMS, D, Y, X),
    "analytic.chain_schedules": lambda: a.chain_schedules(
        [D], depths=[3], sparsities=[1], bounds=[1.0]
    ),
    "analytic.dsc": lambda: a.dsc([D], depths=[3], sparsities=[1], bounds=[1.0]),
    "analytic.plan": lambda: a.plan([D], sparsities=[1], bounds=[1.0], tol=0.1),
    "analytic.stored_thresholds": lambda: a.stored_thresholds(np.ones(3), np.float64),
    "analytic.weights_table": lambda: a.weights_table(D),
    "metrics.failure_rate": lambda: m.failure_rate(X, X),
    "metrics.kkt_violation": lambda: m.kkt_violation(D, Y_1, X_1, 0.1),
    "metrics.mean_class_accuracy": lambda: m.mean_class_accuracy(MASKS, MASKS),
    "metrics.mean_class_precision": lambda: m.mean_class_precision(MASKS, MASKS),
    "metrics.mean_iou": lambda: m.mean_iou(MASKS, MASKS),
    "metrics.mean_nmse": lambda: m.mean_nmse(X, X),
    "metrics.nmse": lambda: m.nmse(X, X),
    "metrics.pixel_accuracy": lambda: m.pixel_accuracy(MASKS, MASKS),
    "metrics.psnr": lambda: m.psnr(X, X),
    "metrics.ssim": lambda: m.ssim(np.eye(11), np.eye(11)),
    "metrics.signal_nmse": lambda: m.signal_nmse(X, X),
    "metrics.sparsity": lambda: m.sparsity(X),
    "metrics.support_scores": lambda: m.support_scores(X, X),
    "problems.add_noise": lambda: p.add_noise(KEY, Y, 20.0),
    "problems.bernoulli_gaussian": lambda: p.bernoulli_gaussian(KEY, (7, 19), 0.1),
    "problems.bounded": lambda: p.bounded(KEY, (7, 19), 3),
    "problems.exact_sparse": lambda: p.exact_sparse(KEY, (7, 19), 3),
    "problems.l1_noise": lambda: p.l1_noise(KEY, (7, 19), 0.1),
    "problems.resampler": lambda: p.resampler(Y, X, 7)(KEY),
    "problems.sampler": lambda: p.sampler(D, 7, snr=20.0)(KEY),
    "problems.sampler, chain": lambda: p.sampler((D, D_2), 7, snr=20.0)(KEY),
    "problems.standard_benchmark": lambda: p.standard_benchmark(KEY, m=11, d=19),
    "dictionaries.from_functions": lambda: d.from_functions(jnp.flip, jnp.flip, (19, 19)),
    "problems.synthesize": lambda: p.synthesize(D, X),
    "layers.bernoulli_gaussian_mean": lambda: lay.bernoulli_gaussian_mean(
        V, 0.1, probability=0.1, variance=1.0
    ),
    "layers.fold_thresholds": lambda: lay.fold_thresholds(PARAMS),
    "layers.keep_largest": lambda: lay.keep_largest(V, 3),
    "layers.magnitude": lambda: lay.magnitude(V),
    "layers.repeat": lambda: lay.repeat(PARAMS, 3),
    "layers.stack": lambda: lay.stack(UNSTACKED),
    "layers.unroll": lambda: lay.unroll(_step, ISTA_PARAMS, D, Y_1, lay.State(ZERO)),
    "layers.unstack": lambda: lay.unstack(PARAMS),
    "layers.apply": lambda: LAYER.apply(PARAMS, D, Y_1),
    "layers.iterates": lambda: LAYER.iterates(PARAMS, D, Y_1),
    "networks.mixed_scale": lambda: ur.networks.mixed_scale(
        KEY, 6, growth=1, depth=2, dilations=(1, 2)
    ),
    "realize.attention": lambda: real.attention(FILTERS, signal_shape=13),
    "realize.attention, apply": lambda: ATTENTION.apply(IMAGE),
    "realize.attention, apply, soft": lambda: SOFT_ATTENTION.apply(IMAGE),
    "realize.attention_error": lambda: real.attention_error(FILTERS, IMAGE, 8.0),
    "realize.attention_leak": lambda: real.attention_leak(8.0),
    "realize.cnn": lambda: real.cnn(LAYER, PARAMS, D, kernel_size=4, signal_bound=9.0),
    "realize.cnn, apply": lambda: CNN.apply(Y_1),
    "realize.cnn, in_range": lambda: CNN.in_range(Y_1),
    "realize.conv_layer": lambda: real.conv_layer(IMAGE, FILTERS, TWO, stride=2),
    "realize.conv_layer, of a network": lambda: CNN.layers[0](IMAGE[:, :11]),
    "realize.embed": lambda: real.embed(CONV, Y_1_CONV, CODE_CONV),
    "realize.multi_head_attention": lambda: real.multi_head_attention(
        IMAGE.T, ATTENTION.heads, PLACES, PLACES, alpha=8.0, period=(13,)
    ),
    "realize.nnx_module": lambda: real.nnx_module(CNN),
    "realize.nnx_module, call": lambda: MODULE(Y_1),
    "realize.read_code": lambda: real.read_code(CONV, TOKENS),
    "realize.transformer": lambda: real.transformer(ISTA, CONV_PARAMS, CONV, signal_bound=9.0),
    "realize.transformer, apply": lambda: TRANSFORMER.apply(Y_1_CONV),
    "realize.transformer_block": lambda: real.transformer_block(CONV, CONV, 0.1, **BOUNDS),
    "realize.transformer_block, apply": lambda: BLOCK.apply(TOKENS),
    "realize.transformer_error": lambda: real.transformer_error(
        ISTA, CONV_PARAMS, CONV, alpha=8.0, signal_bound=1.0
    ),
    "training.deep": lambda: tr.deep(tr.supervised)(CODES, X, None, None),
    "training.lasso_loss": lambda: tr.lasso_loss(0.1)(CODES, None, D, Y),
    "training.log_nmse": lambda: tr.log_nmse(CODES, X, None, None),
    "training.law_of": lambda: tr.law_of(D, Y, X),
    "training.mostly_last": lambda: tr.mostly_last(CODES, X, None, None),
    "training.reconstruction": lambda: tr.reconstruction(CODES, None, D, Y),
    "training.sparse_feature_penalty": lambda: tr.sparse_feature_penalty([X, Y]),
    "training.supervised": lambda: tr.supervised(CODES, X, None, None),
    "training.withheld": lambda: tr.withheld(CODES, *HIDDEN[1:], HIDDEN[0]),
    "training.withholding": lambda: HIDING(KEY),
    "comparison.compare": lambda: ur.compare({"ISTA": (ISTA, ISTA_PARAMS)}, D, Y, X, lam=0.1),
    "comparison.evolution": lambda: ur.comparison.evolution(ISTA, D),
}

# A dictionary times a code, a signal times a dictionary, and many of each.
CALLS |= {
    f"products, {name}": lambda D=D, m=D.shape[0], d=D.shape[1]: (
        (D @ np.ones(d), np.ones(m) @ D, D @ np.ones((d, 2)), np.ones((2, m)) @ D)
    )
    for name, D in STRUCTURED.items()
}

CHAINS = {f"networks.{name}.init": len(Ds) for name, (_, Ds) in NETWORKS.items()}
CHAINS |= {"networks.mixed_scale": 2}
MOST_OF = {f"products, {name}": 4 for name in STRUCTURED}  # of four products
# Of functions of the library: the optimum, ISTA, the codes and the guarantees of a method; the
# minimax weights and what a table says of each kind; the greedy search, searches on few and on all
# signals, the schedule of theory, and what compares them.
CHAINS |= {"comparison.compare": 6, "analytic.weights_table": 2, "analytic.calibrate": 3}
