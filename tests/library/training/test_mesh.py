"""A training over the devices of a mesh has the bits of the same training on one device."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import AS_USERS, devices
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import unrolled as ur
from unrolled._base.programs import data_mesh, takes_sharded
from unrolled.training import Trained
from unrolled.training._mesh import Placement, Sharing, _put, mean, places_of

D = ur.dictionaries.gaussian(0, 10, 20)
LAYER = ur.lista_cp(2, tied=False)
SAMPLE = ur.problems.sampler(D, batch=7)
MESH = jax.make_mesh((1,), ("data",))


def fit(**options):
    how = dict(optimizer=optax.sgd(0.1), steps=2, key=0, evaluate_every=1) | options
    return ur.fit(LAYER, LAYER.init(None, D), D, SAMPLE, **how)


@pytest.mark.slow
def test_a_step_is_the_mean_of_batches_drawn_by_keys_of_their_own():
    """Against gradients of the batches one by one, to the rounding of their sum."""
    start = LAYER.init(None, D)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)

    def loss(params, key):
        Y, X = SAMPLE(key)
        codes = jax.vmap(lambda y: LAYER.iterates(params, D, y), out_axes=1)(Y)
        return ur.training.supervised(codes, X, D, Y)

    gradients = [jax.grad(loss)(start, key) for key in keys]
    expected = jax.tree.map(lambda p, *g: p - 0.1 * sum(g) / 4, start, *gradients)
    found = fit(steps=1, accumulate=4)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    assert found.history.loss[0] == pytest.approx(np.mean([loss(start, key) for key in keys]))


@pytest.mark.slow
def test_a_mesh_of_one_device_changes_nothing():
    alone, there = fit(accumulate=2), fit(accumulate=2, mesh=MESH)
    assert ur.training.digest(alone.best) == ur.training.digest(there.best)
    assert ur.training.digest(fit(mesh=MESH).best) == ur.training.digest(fit().best)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(accumulate=3), ValueError, "accumulate must be a power of two, got 3"),
        (dict(accumulate=0), ValueError, "accumulate"),
        (dict(reduction="sum"), ValueError, "unknown reduction 'sum'; expected one of tree, psum"),
        (dict(reduction="psum", accumulate=2), ValueError, "got accumulate=2 and no mesh"),
        (dict(reduction="psum", mesh=MESH), ValueError, "got accumulate=1 and a mesh; try"),
        (dict(mesh="data"), TypeError, "mesh must be a jax.sharding.Mesh, got str"),
        (dict(mesh=jax.make_mesh((1,), ("batch",))), ValueError, "expected one named 'data'"),
    ],
)
@pytest.mark.parametrize("train", ["fit", "curriculum"])
def test_what_does_not_fit_is_refused(train, options, error, message):
    with pytest.raises(error, match=f"{train}: .*{message}"):
        if train == "fit":
            fit(**options)
        else:
            ur.training.curriculum(LAYER, LAYER.init(None, D), D, SAMPLE, key=0, **options)


def test_the_compiler_splits_along_every_axis_of_a_mesh():
    mesh = data_mesh(jax.make_mesh((1, 1), ("data", "model")), "fit")
    assert mesh.axis_names == ("data", "model") and mesh.axis_types == (AxisType.Auto,) * 2


def test_arrays_on_explicit_axes_come_to_the_host_on_auto_ones_and_others_as_they_are():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    given = jax.device_put(np.arange(3.0), NamedSharding(mesh, P("data"))), np.ones(2), jnp.ones(2)
    found = takes_sharded(lambda *arrays: arrays)(*given)
    assert found[0].sharding.mesh.axis_types == (AxisType.Auto,)
    assert found[0].sharding.spec == P("data") and np.array_equal(
        *map(np.asarray, (found[0], given[0]))
    )
    assert found[1] is given[1] and found[2] is given[2]


def test_a_traced_leaf_is_put_where_it_belongs():
    where = NamedSharding(data_mesh(MESH, "fit"), P("data"))
    found = jax.jit(lambda leaf: _put(2 * leaf, where))(np.arange(3.0))
    assert found.tolist() == [0, 2, 4] and found.sharding.is_equivalent_to(where, 1)


def test_a_checkpoint_tells_the_number_of_batches_and_the_reduction(tmp_path):
    where = dict(steps=0, checkpoint=tmp_path)
    fit(accumulate=2, **where)
    with pytest.raises(ur.training.CheckpointError, match="accumulate"):
        fit(accumulate=4, **where)
    with pytest.raises(ur.training.CheckpointError, match="reduction  tree   psum"):
        fit(accumulate=2, mesh=MESH, reduction="psum", **where)


EIGHT = """
import json, sys
import jax, jax.numpy as jnp, optax
import unrolled as ur
from unrolled._base.programs import data_mesh
from unrolled.training import _mesh

D = ur.dictionaries.gaussian(0, 12, 24)

def mesh(p):
    return jax.make_mesh((p,), ("data",), devices=jax.devices()[:p])

def digest(found):
    return ur.training.digest((found.params, found.best, found.D, found.history.loss))

def fit(layer, batch, optimizer=optax.adam(1e-2), D=D, steps=3, **options):
    sample = ur.problems.sampler(D, batch)
    how = dict(optimizer=optimizer, steps=steps, key=0, evaluate_every=2, accumulate=8)
    return ur.fit(layer, layer.init(None, D), D, sample, **how | options)

untied = ur.lista_cp(2, tied=False)
CASES = {
    "alista, 7": lambda **o: fit(ur.alista(3), 7, **o),
    "untied and D, 33": lambda **o: fit(untied, 33, learn_dictionary=True, **o),
    "lbfgs, 16": lambda **o: fit(ur.layers.ista(3), 16, optax.lbfgs(), **o),
    "vamp_bg, 7": lambda **o: fit(ur.layers.vamp_bg(3, noise_ratio=0.3), 7, **o),
    "curriculum, 5": lambda **o: ur.training.curriculum(
        untied, untied.init(None, D), D, ur.problems.sampler(D, 5), key=0, steps_per_stage=2,
        stages=(1.0,), accumulate=8, **o),
}
# A program is compiled for each number: one case has them all, the others one each.
NUMBERS = {"alista, 7": (1, 2, 8), "untied and D, 33": (2,), "vamp_bg, 7": (2,)}
answer = {}
for name in sys.argv[2].split(";"):
    answer[name] = [digest(CASES[name]())]
    answer[name] += [digest(CASES[name](mesh=mesh(p))) for p in NUMBERS.get(name, (8,))]

def batch(key, a):
    return jax.random.normal(key, (3,)) @ a, {"b": jax.random.normal(key, (3, 3))}

def counted(compiled, *names):
    text = compiled.as_text()
    return sum(text.count(f" {name}{start}(") for name in names for start in ("", "-start"))

if "alista, 7" in sys.argv[2]:
    key, results = jax.random.key(0), []
    for reduction in ("tree", "psum"):
        shared = _mesh.Sharing(16, data_mesh(mesh(8), ""), reduction)
        step = jax.jit(lambda key: _mesh.mean(batch, key, shared, jnp.eye(3))).lower(key).compile()
        answer[reduction] = [counted(step, "collective-permute"), counted(step, "all-reduce"),
                             counted(step, "all-gather", "all-to-all")]
        results.append(step(key))
    sizes = jax.vmap(batch, (0, None))(jax.random.split(key, 16), jnp.eye(3))
    # A sum of 16 in any order is off by at most 15 u of that of the magnitudes; / 16 is exact.
    bounds = jax.tree.map(lambda v: 30 * jnp.finfo(v.dtype).eps / 2 * jnp.abs(v).mean(0), sizes)
    answer["beyond"] = [float((abs(a - b) - bound).max()) for a, b, bound in zip(
        *map(jax.tree.leaves, (*results, bounds)))]
    losses = [CASES["alista, 7"](steps=1, mesh=mesh(p), reduction="psum").history.loss[0]
              for p in (2, 8)] + [CASES["alista, 7"](steps=1).history.loss[0]]
    answer["relative"] = max(abs(a / losses[-1] - 1) for a in losses) / jnp.finfo("float32").eps
    answer["relative"] = float(answer["relative"])

if sys.argv[1]:
    folder, whole = sys.argv[1], digest(fit(untied, 5, steps=6))
    fit(untied, 5, steps=4, mesh=mesh(8), checkpoint=folder)
    with jax.set_mesh(mesh(4)):  # a mesh that the caller has for something else
        resumed = digest(fit(untied, 5, steps=6, mesh=mesh(2), checkpoint=folder))
    answer["another number, another mesh"] = [whole, resumed]
try:
    fit(untied, 5, mesh=mesh(8), accumulate=4)
except ValueError as error:
    answer["too many"] = str(error)
print(json.dumps(answer))
"""


def on_eight_devices(folder, cases):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment = os.environ | AS_USERS | flags  # the bits are those of optimised programs
    code = (sys.executable, "-c", EIGHT, folder, cases)
    done = subprocess.run(code, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_bits_do_not_depend_on_the_number_of_devices():
    answer = on_eight_devices("", "alista, 7")
    assert len(set(answer["alista, 7"])) == 1
    assert answer["tree"] == [3, 0, 0] and answer["psum"] == [0, 1, 0]
    assert max(answer["beyond"]) <= 0
    assert answer["relative"] <= 7  # eight positive losses, 7 u a sum: two sums and their quotient
    assert "8 devices cannot share 4 batches equally" in answer["too many"]


@pytest.mark.slow
def test_nor_do_they_with_line_searches_stages_and_learned_dictionaries(tmp_path):
    """A checkpoint resumes on another number of devices, and a mesh of the caller's has no part."""
    cases = "untied and D, 33;lbfgs, 16;vamp_bg, 7;curriculum, 5"
    answer = on_eight_devices(str(tmp_path), cases)
    for name in (*cases.split(";"), "another number, another mesh"):
        assert len(set(answer[name])) == 1, name


def test_the_sum_of_a_tree_is_by_halves():
    """((0 + 1) + (2 + 3)) and so on, which no other order gives for these numbers."""
    values = jnp.asarray(np.random.default_rng(0).normal(size=8) * 10.0 ** np.arange(-8, 8, 2))
    keys = jax.random.split(jax.random.key(3), 8)

    def of(key):
        same = (jax.random.key_data(keys) == jax.random.key_data(key)[None]).all(1)
        return values[jnp.argmax(same)]

    total = np.asarray(values)
    while len(total) > 1:
        total = total[0::2] + total[1::2]
    assert mean(of, jax.random.key(3), Sharing(8)) == total[0] / 8


def test_leaves_with_a_column_for_each_atom_lie_along_the_atoms():
    place = Placement(jax.make_mesh((1, 1), ("data", "atoms")), Trained(3, 0))
    found = place(Trained({"W": np.ones((4, 2, 3)), "theta": np.ones(3), "gamma": np.ones(2)}, D))
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, found)
    split = {"W": P(None, None, "atoms"), "theta": P("atoms"), "gamma": P()}
    assert specs == Trained(split, P())


@pytest.mark.parametrize("processes", [[[0, 0], [1, 1]], [[0, 1], [0, 1]]])
def test_atoms_are_split_within_a_process_alone(processes):
    mesh = SimpleNamespace(
        shape={"data": 2, "atoms": 2},
        axis_names=("data", "atoms"),
        devices=np.array([[SimpleNamespace(process_index=p) for p in row] for row in processes]),
    )
    whole = Trained(LAYER.init(None, D), D)
    if processes[0] == [0, 0]:
        assert places_of(mesh, whole, "fit").sizes.D == 20
    else:
        with pytest.raises(ValueError, match="fit: devices of the axis 'atoms' belong to several"):
            places_of(mesh, whole, "fit")


SHARDED = """
import sys, warnings
warnings.simplefilter("ignore")
import jax, numpy as np, optax
import unrolled as ur
from jax.sharding import AxisType, NamedSharding, PartitionSpec

D = ur.dictionaries.gaussian(0, 6, 12)
Y, X = ur.problems.sampler(D, 8)(jax.random.key(0))
layer = ur.layers.alista(2)
params = layer.init(None, D)
adam = optax.adam(1e-2)
CALLS = {
    "calibrate": lambda Y, X: ur.analytic.calibrate(layer, params, D, Y, X),
    "search": lambda Y, X: ur.training.search(layer, params, D, Y, X, theta=[0.05, 0.1]).loss,
    "compare": lambda Y, X: ur.compare({"a": (layer, params)}, D, Y, X)["a"].curve.nmse,
    "fit": lambda Y, X: ur.fit(layer, params, D, (Y, X), optimizer=adam, steps=1, key=0).params,
    "sampler": lambda Y, X: ur.fit(
        layer, params, jax.device_put(D, jax.devices()[0]), ur.problems.resampler(Y, X),
        optimizer=adam, steps=1, key=0, validation=(np.asarray(Y), np.asarray(X)),
    ).params,  # of signals on other devices than D
    "apply": lambda Y, X: jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y),
    "pursuits": lambda Y, X: jax.vmap(lambda y: ur.pursuit.fista(D, y, 0.1))(Y).x,
    "matching": lambda Y, X: jax.jit(jax.vmap(lambda y: ur.pursuit.omp(D, y, 2)))(Y).x,
    "batch": lambda Y, X: ur.pursuit.lasso_batch(D, Y, 0.1).x,
    "basis": lambda Y, X: jax.vmap(lambda y: ur.pursuit.basis_pursuit(D, y))(Y).x,
}
for axis in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis,))
    place = NamedSharding(mesh, PartitionSpec("data"))
    for name in sys.argv[1].split():
        if axis == AxisType.Auto and name not in ("calibrate", "apply", "basis"):
            continue
        ours, theirs = (CALLS[name](*jax.device_put((Y, X), where)) for where in (place, None))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=f"{axis} {name}")
        if name in ("apply", "pursuits", "matching"):
            assert [shard.data.shape[0] for shard in ours.addressable_shards] == [2, 2, 2, 2]
        print(axis, name, flush=True)
    if "set" in sys.argv:
        with jax.set_mesh(mesh):
            CALLS["apply"](*jax.device_put((Y, X), place))
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "calls", ["apply pursuits matching batch basis", "calibrate search compare fit sampler"]
)
def test_signals_of_the_caller_may_lie_on_a_mesh(calls):
    """Of the default kind, whose axes are Explicit, and of Auto ones; codes stay spread."""
    environment = os.environ | devices(4) | {"JAX_ENABLE_X64": "1"}
    code = (sys.executable, "-c", SHARDED, calls, "set" if "apply" in calls else "")
    done = subprocess.run(code, capture_output=True, text=True, env=environment, timeout=500)
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr[-3000:]
