# pyright: reportUnnecessaryTypeIgnoreComment=true
"""What type checkers tell a user, so what an editor completes: test_types.py has it checked."""

from typing import assert_type

import jax
import numpy as np

import unrolled as ur

D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
Y, X = ur.problems.sampler(D, 48)(jax.random.key(1))
layer = ur.alista(4, support=(0.1, 1.0))
assert_type(D, jax.Array)
assert_type(layer, ur.alista)
assert_type(layer.depth, int)
assert_type(layer.is_coupled, bool)

params = layer.init(None, D)
assert_type(params, ur.layers.Unrolled)
assert_type(layer.from_weights(None, D, D), ur.layers.Unrolled)
assert_type(layer.apply(params, D, Y[0]), jax.Array)
assert_type(layer.apply(params, np.eye(8), np.ones(8)), jax.Array)
assert_type(layer.iterates(params, D, Y[0]), jax.Array)

network = ur.dsc([ur.lista_cp(2), ur.lista_cp(2, lam=0.1)])
assert_type(network, ur.dsc)
assert_type(network.init(0, (D, X.T)), tuple[ur.layers.Unrolled, ...])
assert_type(ur.training.Checkpoint("folder"), ur.training.Checkpoint)
assert_type(ur.pursuit.lasso(D, Y[0], lam=0.1).x, jax.Array)

methods = {"start": (layer, params)}
comparison: ur.comparison.Comparison = ur.compare(methods, D, Y, X)
assert_type(ur.compare(methods, D, Y, X), ur.comparison.Comparison)
assert_type(ur.compare(methods, (D, X.T), Y), ur.comparison.ChainComparison)
assert_type(ur.lasso(D, Y[0], lam=0.1).x, jax.Array)
assert_type(ur.gaussian(0, 8, 12), jax.Array)
assert_type(ur.load("weights.npz"), ur.training.Restored)

ur.compare(methods, D, Y, refrence="start")  # type: ignore[call-overload]
ur.lassso(D, Y[0], lam=0.1)  # type: ignore[attr-defined]
ur.training.unsupervised(D, Y, 0.1, key=0, patience=200, log="log.jsonl")
ur.training.unsupervised(D, Y, 0.1, key=0, patince=200)  # type: ignore[call-arg]
ur.training.unsupervised(D, Y, 0.1, key=0, patience="a")  # type: ignore[arg-type]
ur.alista("four")  # type: ignore[arg-type]
ur.alista(4, suport=(0.1, 1.0))  # type: ignore[call-arg]
layer.aply(params, D, Y[0])  # type: ignore[attr-defined]
