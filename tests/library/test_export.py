"""Params and dictionaries are arguments of functions that `jax.export` writes and reads."""

import subprocess
import sys
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from jax import export

import unrolled as ur
from unrolled._base.programs import exportable

D = ur.dictionaries.gaussian(0, 6, 10)
Ds = D, ur.dictionaries.gaussian(1, 10, 12)


def written(f, *arguments):
    """f as bytes."""
    return bytes(export.export(jax.jit(f))(*arguments).serialize())


def agree(f, *arguments):
    again = export.deserialize(written(f, *arguments)).call(*arguments)
    chex.assert_trees_all_close(again, f(*arguments), rtol=1e-12, atol=1e-14)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["lista_cp", "alista"])
def test_params_of_a_family_are_arguments(name):
    layer = registry.LAYERS[name](2)
    params = layer.init(0, D)
    agree(layer.apply, params, D, D[:, 0])
    agree(lambda params: params.shared, ur.layers.unstack(params))


@pytest.mark.slow
def test_all_records_and_dictionaries_are_arguments():
    """Their trees are at stake, not their numbers."""
    key = jax.random.key(0)
    given = (
        {n: jax.eval_shape(build(1).init, key, D) for n, build in registry.FAMILIES.items()},
        # Functions are code, which no file holds.
        {n: build() for n, build in registry.DICTIONARIES.items() if "functions" not in n},
        jax.eval_shape(ur.networks.ml_lista(1).init, key, Ds),
    )
    again = export.deserialize(written(lambda *given: given, *given))
    assert again.in_tree == jax.tree.structure((given, {}))
    assert again.out_tree == jax.tree.structure(given)


def test_every_record_and_kind_is_registered():
    """Also without flatbuffers, which writing needs: a second registration is refused."""
    records = [
        record
        for family in registry.FAMILIES
        for record in ur.layers.records_of(ur.layers.FAMILIES[family].forms).values()
    ]
    for record in (*records, ur.layers.Unrolled, ur.networks.Analysis):
        with pytest.raises(ValueError, match="Duplicate serialization"):
            export.register_namedtuple_serialization(record, serialized_name="another")
    for kind in ur.dictionaries.KINDS.values():
        if kind.__module__.startswith("unrolled."):
            with pytest.raises(ValueError, match="Duplicate serialization"):
                export.register_pytree_node_serialization(
                    kind,
                    serialized_name="another",
                    serialize_auxdata=str,
                    deserialize_auxdata=str,
                )


class Gain(NamedTuple):
    """A record of one's own."""

    gamma: ur.layers.Gamma


class own_step(ur.layers.step_lista):
    """A family of one's own."""

    forms = (ur.layers.Unrolled(None, Gain),)

    def init(self, key, D):
        return ur.layers.Unrolled(None, Gain(super().init(key, D).steps.gamma))


def test_a_family_of_your_own_is_an_argument():
    layer = own_step(2)
    agree(layer.apply, layer.init(None, D), D, D[:, 0])


def test_a_class_that_is_defined_anew_is_no_error():
    for _ in range(2):
        exportable(type("Redefined", (Gain,), {"__module__": __name__}))


@pytest.mark.slow
def test_another_process_runs_it(tmp_path):
    layer, bank = ur.lista_cp(2), registry.DICTIONARIES["conv, circular"]()
    params, y = layer.init(None, bank), jnp.ones(bank.shape[0])
    (tmp_path / "layer.bin").write_bytes(written(layer.apply, params, bank, y))
    ur.training.save(tmp_path / "weights.npz", params, bank, layer)
    code = """
import chex
import jax
jax.config.update("jax_enable_x64", True)
import sys, jax.export, numpy as np, unrolled as ur
found = ur.training.restore(sys.argv[1] + "/weights.npz")
run = jax.export.deserialize(bytearray(open(sys.argv[1] + "/layer.bin", "rb").read()))
np.save(sys.argv[1] + "/x.npy", run.call(found.params, found.D, np.ones(found.D.shape[0])))
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), layer.apply(params, bank, y), rtol=1e-9)
