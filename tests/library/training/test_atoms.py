"""A training whose atoms are shared among devices is the one on one device, to rounding."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import devices

import unrolled as ur
from unrolled.training._mesh import Placement


def test_the_annotation_says_which_axis_is_that_of_the_atoms():
    """Not the shape: m is d here, and an (m, m) matrix stays whole."""
    D = jnp.eye(6)
    layer = ur.layers.ada_lista(3)
    params = layer.init(None, D)
    assert {np.shape(leaf) for leaf in params.shared} == {D.shape}
    assert not any(ur.layers.along_atoms(params).shared)


def test_one_number_a_step_is_no_number_an_atom():
    """Thresholds of K = d steps have the shape of one step's threshold of each atom."""
    D = jnp.eye(3)
    per_atom = ur.layers.StepAndThreshold(jnp.ones((3, 3)), jnp.ones(3))
    steps = ur.layers.along_atoms(ur.layers.Unrolled(None, per_atom)).steps
    assert steps.gamma and not steps.theta
    apart = ur.layers.unstack(ur.layers.Unrolled(None, per_atom))
    assert [step.gamma for step in ur.layers.along_atoms(apart).steps] == [True] * 3
    whole = ur.lista_cp(3, tied=False).init(None, D)
    assert ur.layers.along_atoms(whole).steps.W


FOUR = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
import jax, jax.numpy as jnp, numpy as np, optax
import unrolled as ur
from unrolled.training import _loop, _stages

D = ur.dictionaries.gaussian(0, 12, 24)
layer = ur.layers.lista_cpss(3, tied=False, support=(0.05, 0.2))
start, answer, steps = layer.init(None, D), {}, []  # compiled, and what the last one returned

def mesh(data, atoms):
    return jax.make_mesh((data, atoms), ("data", "atoms"), devices=jax.devices()[:data * atoms])

def seen(*arguments):
    loop = make_loop(*arguments)

    def update(*state):
        if not steps:
            steps.append(loop.update.lower(*state).compile().as_text())
        after = loop.update(*state)
        steps[1:] = [after[:2]]
        return after

    return loop._replace(update=update)

make_loop, _stages.make_loop = _loop.make_loop, seen

def fit(layer=layer, start=start, D=D, optimizer=optax.adam(1e-2), **options):
    sample = ur.problems.sampler(D, 5)
    how = dict(optimizer=optimizer, steps=4, key=0, evaluate_every=2, learn_dictionary=True,
               accumulate=2)
    return ur.fit(layer, start, D, sample, **how | options)

def apart(a, b):
    numbers = [(f.params, f.best, f.D, f.history.loss) for f in (a, b)]
    pairs = zip(*map(jax.tree.leaves, numbers), strict=True)
    return max(float(np.abs(np.asarray(x) - y).max() / np.abs(y).max()) for x, y in pairs)

def shares(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]
    return [max(s.data.nbytes for s in x.addressable_shards) / x.nbytes for x in leaves]

def collectives():
    kinds = r"= (.*?) (all-\\w+|reduce-scatter|collective-permute)(?:-start)?[(]"
    shapes = re.findall(kinds, steps[0])
    sizes = {name: [] for _, name in shapes}
    for text, name in shapes:
        sizes[name] += [int(np.prod([int(n) for n in numbers.split(",") if n]))
                        for numbers in re.findall(r"[[]([0-9,]*)[]]", text)]
    return sizes

alone = fit()
for name, data, atoms, reach in (("2 x 2", 2, 2, 2), ("4 for atoms", 1, 4, 4)):
    steps.clear()
    split = fit(steps=reach, mesh=mesh(data, atoms), checkpoint=sys.argv[1])
    answer[name] = collectives()
answer["apart"] = apart(split, alone)
answer["shares"] = shares((split.params, split.best, split.D, steps[1]))
ista = ur.layers.ista(1)
conv = ur.dictionaries.normalize(ur.dictionaries.Conv(jnp.ones((1, 1, 3)), (9,)))[0]
for name, wrong in {
    "atoms": dict(D=D[:, :22], start=layer.init(None, D[:, :22])),
    "conv": dict(layer=ista, D=conv, start=ista.init(None, conv)),
}.items():
    try:
        fit(mesh=mesh(1, 4), **wrong)
    except ValueError as error:
        answer[name] = str(error)
print(json.dumps(answer))
"""


@pytest.mark.slow
def test_a_dictionary_split_among_devices_gives_the_same_training(tmp_path):
    """Params, D and moments stay split, support selection included, and none of them travels."""
    environment = os.environ | devices(4) | {"JAX_ENABLE_X64": "1"}
    code = (sys.executable, "-c", FOUR, str(tmp_path))
    done = subprocess.run(code, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    # Four Adam steps through six products of at most 24 terms: some 600 u, times how far a
    # relative error of a gradient grows where its terms cancel.
    assert answer["apart"] < 1e-11
    assert set(answer["shares"]) == {1 / 4}
    batch, m = 5, 12
    assert set(answer["4 for atoms"]) == {"all-reduce"}
    assert set(answer["2 x 2"]) == {"all-reduce", "collective-permute"}
    for name in ("2 x 2", "4 for atoms"):
        assert max(answer[name]["all-reduce"]) == batch * m
    assert "4 devices of the axis 'atoms' cannot share 22 atoms equally" in answer["atoms"]
    assert "the axis 'atoms' of mesh splits a dense dictionary, got Conv" in answer["conv"]


def test_the_last_axis_of_the_size_of_the_atoms_is_split():
    placement = Placement(jax.make_mesh((1, 1), ("data", "atoms")))
    specs = [placement._put(4, np.zeros(shape)).sharding.spec for shape in ((3, 4), (4,), (4, 3))]
    assert [tuple(spec) for spec in specs] == [(None, "atoms"), ("atoms",), ()]
