"""Solvers in one file: the codes of the library, for any number of signals, without the library."""

import json
import subprocess
import sys
import zipfile
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry

import unrolled as ur
from unrolled._base import text
from unrolled.app.cli import main
from unrolled.export import _file
from unrolled.training import CheckpointError

D = ur.dictionaries.normalize(ur.dictionaries.gaussian(0, 6, 10))[0]
Ds = D, ur.dictionaries.normalize(ur.dictionaries.gaussian(1, 10, 12))[0]
Y = np.random.default_rng(0).normal(size=(5, 6))
LAYER = ur.alista(2)
PARAMS = LAYER.init(None, D)
HOST = "no program in a file can"
BY_DEFAULT = ("alista", "lista_cp, untied", "lamp_bg")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return ur.export.save(tmp_path_factory.mktemp("saved") / "net.stablehlo", LAYER, PARAMS, D)


# To the rounding of one more compilation: sums of d terms near 1.
same = partial(chex.assert_trees_all_close, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in BY_DEFAULT else pytest.mark.slow) for n in registry.LAYERS],
)
def test_the_codes_are_those_of_the_layer_for_any_number_of_signals(tmp_path, name):
    layer = registry.LAYERS[name](2)
    params = jax.jit(layer.init)(jax.random.key(0), D)
    solver = ur.export.load(ur.export.save(tmp_path / "net.zip", layer, params, D))
    codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y[:5])
    for n in (1, 5):
        same(solver.run(Y[:n]), codes[:n])


@pytest.mark.slow
def test_networks_and_structured_dictionaries(tmp_path):
    network, path = ur.dsc([ur.alista(2), ur.lista_cp(1)]), tmp_path / "net.zip"
    params = network.init(0, Ds)
    solver = ur.export.load(ur.export.save(path, network, params, Ds))
    same(solver.run(Y), jax.vmap(lambda y: network.apply(params, Ds, y))(jnp.asarray(Y)))
    assert solver.manifest["codes"] == [["n", 10], ["n", 12]]
    bank = registry.DICTIONARIES["conv, circular"]()
    params, signals = (
        LAYER.init(None, bank),
        np.random.default_rng(1).normal(size=(3, bank.shape[0])),
    )
    solver = ur.export.load(ur.export.save(path, LAYER, params, bank))
    same(solver.run(signals), jax.vmap(lambda y: LAYER.apply(params, bank, y))(signals))


def test_a_pursuit_codes_each_signal():
    found = ur.export._file._solver(ur.pursuit.threshold, {"theta": 0.1}, D, "save")(jnp.asarray(Y))
    same(found[1], ur.pursuit.threshold(D, Y[1], 0.1).x)


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [("omp", {"sparsity": 2}), ("lasso", {"ratio": 0.1})])
def test_pursuits_with_their_options(tmp_path, name, options):
    solve, path = getattr(ur.pursuit, name), tmp_path / "solver.zip"
    solver = ur.export.load(ur.export.save(path, solve, options, D))
    expected = jax.vmap(lambda y: solve(D, y, **options).x)(jnp.asarray(Y))
    np.testing.assert_allclose(solver.run(Y), expected, rtol=1e-5, atol=1e-6)  # to tolerance
    assert solver.manifest["options"] == repr(options)


@pytest.mark.slow
def test_a_pursuit_of_a_chain(tmp_path):
    options = {"lams": (0.1, 0.1)}
    solver = ur.export.load(ur.export.save(tmp_path / "net", ur.pursuit.ml_ista, options, Ds))
    assert [x.shape for x in solver.run(Y)] == [(5, 10), (5, 12)]


@pytest.mark.parametrize(
    "solve, options",
    [
        (ur.pursuit.basis_pursuit, None),
        (ur.pursuit.lasso_batch, {"lam": 0.1}),
        (ur.pursuit.omp_batch, {"sparsity": 2}),
        (lambda D, y: ur.pursuit.threshold(D, np.asarray(y), 0.1), None),
    ],
)
def test_pursuits_that_work_on_the_host_are_refused(tmp_path, solve, options):
    with pytest.raises(TypeError, match=HOST):
        ur.export.save(tmp_path / "solver.zip", solve, options, D)
    with pytest.raises(TypeError, match=HOST):
        ur.export.save(tmp_path / "solver.zip", solve, options, D, platforms="cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("g", [None, 3])
@pytest.mark.parametrize("kind", [float, complex])
def test_signals_in_parts_have_codes_of_their_form(tmp_path, g, kind):
    """The program has real numbers; complex ones are the bytes of its pairs."""
    rng = np.random.default_rng(3)
    A = rng.normal(size=(6, 10)) + (1j * rng.normal(size=(6, 10)) if kind is complex else 0)
    A = A / np.linalg.norm(A, axis=0)
    base = ur.dictionaries.Complex.of(A) if kind is complex else A
    D = base if g is None else ur.dictionaries.Joint(base, g)
    signals = rng.normal(size=(5, 6, g or 1, 2)) @ ([1, 1j] if kind is complex else [1, 0])
    signals = signals.reshape(5, 6, *[g] * (g is not None))
    layer = ur.alista(2)
    params = layer.init(None, D)
    path = ur.export.save(tmp_path / "net", layer, params, D, platforms="cpu")
    loaded = ur.export.load(path)
    run, manifest = loaded.run, loaded.manifest
    expected = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, signals)
    for Y in (signals, jnp.asarray(signals)):
        assert run(Y).dtype == expected.dtype
        same(run(Y), expected)
    assert run(signals[:0]).shape == expected[:0].shape
    flat = ur.dictionaries.as_flat(D, signals, 1)[0]
    same(run(flat), ur.dictionaries.as_flat(D, np.asarray(expected), 1)[0])
    if kind is complex and g is None:
        program = jax.export.deserialize(bytearray(zipfile.ZipFile(path).read("program")))
        same(np.asarray(program.call(signals.view(float))).view(complex), np.asarray(expected))
        with pytest.raises(ValueError, match=r"run: Y has shape \(5, 6\); expected \(n, 12\)"):
            run(signals.real)
    assert (manifest["form"] is None) == (kind is float and g is None)


@pytest.mark.slow
def test_the_dtype_is_that_of_the_weights(tmp_path):
    narrow, path = D.astype(jnp.float32), tmp_path / "net.zip"
    solver = ur.export.load(ur.export.save(path, LAYER, LAYER.init(None, narrow), narrow))
    assert solver.run(Y).dtype == jnp.float32 and solver.manifest["dtype"] == "float32"
    ur.export.save(path, LAYER, PARAMS, D)
    with jax.enable_x64(False):  # the program knows that it is in float64
        assert ur.export.load(path).run(Y).dtype == jnp.float64


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unrolled":
            raise ImportError("there is no unrolled here")
sys.meta_path.insert(0, Blocked())
import jax, jax.export, numpy as np, zipfile
jax.config.update("jax_enable_x64", True)
program = zipfile.ZipFile(sys.argv[1]).read("program")
np.save(sys.argv[2], jax.export.deserialize(bytearray(program)).call(np.load(sys.argv[3])))
assert not [name for name in sys.modules if name.startswith("unrolled")]
"""


@pytest.mark.slow
def test_it_runs_where_there_is_no_library(tmp_path, saved):
    np.save(tmp_path / "Y.npy", Y)
    code = (sys.executable, "-c", WITHOUT, saved, tmp_path / "X.npy", tmp_path / "Y.npy")
    subprocess.run(code, check=True, timeout=120, cwd=tmp_path)
    same(np.load(tmp_path / "X.npy"), jax.vmap(lambda y: LAYER.apply(PARAMS, D, y))(jnp.asarray(Y)))


def test_the_manifest_says_what_it_is(saved):
    manifest = ur.export.load(saved).manifest
    assert manifest["model"] == "alista(2)" and manifest["signals"] == ["n", 6]
    assert manifest["D sha256"] == ur.training.digest(D)
    assert manifest["params sha256"] == ur.training.digest(PARAMS)
    assert manifest["platforms"] == list(ur.export.PLATFORMS)
    with zipfile.ZipFile(saved) as archive:
        assert set(archive.namelist()) == {"program", "manifest.json"}


def test_every_damage_is_refused_or_harmless(tmp_path, saved):
    blob, path = saved.read_bytes(), tmp_path / "net.zip"
    whole, refused = ur.export.load(saved).manifest, 0
    for at in np.random.default_rng(0).integers(len(blob), size=60):
        path.write_bytes(blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1 :])
        try:
            assert ur.export.load(path).manifest == whole  # of a name's case, or a time
        except CheckpointError:
            refused += 1
    assert refused > 40
    for size in (0, 10, len(blob) // 2, len(blob) - 1):
        path.write_bytes(blob[:size])
        with pytest.raises(CheckpointError, match="net.zip"):
            ur.export.load(path)


def test_files_of_others_are_refused(tmp_path, saved):
    path = tmp_path / "net.zip"

    with zipfile.ZipFile(saved) as whole:
        program, own = whole.read("program"), json.loads(whole.read("manifest.json"))

    def write(manifest, program=program):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("program", program)
            archive.writestr("manifest.json", json.dumps(manifest))

    write(own, program[:-1] + b"x")  # a whole archive
    with pytest.raises(CheckpointError, match="its program has changed since it was written"):
        ur.export.load(path)

    write({"model": "alista(2)"})
    with pytest.raises(CheckpointError, match="not one of unrolled"):
        ur.export.load(path)
    write(text.sealed({"format": 2}))
    with pytest.raises(CheckpointError, match="format 2, newer than 1"):
        ur.export.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        ur.export.load(tmp_path / "gone.zip")


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(model=3), TypeError, "expected a layer or a network .* got int"),
        (dict(params=None), TypeError, "params"),
        (dict(model=ur.pursuit.omp, params=(2,)), TypeError, "a dict of options"),
        (dict(model=ur.alista(3)), ValueError, "3"),
        (dict(platforms="gpu"), ValueError, "platforms must be some of cpu, cuda, rocm, tpu"),
        (dict(platforms=()), ValueError, "platforms must be some of"),
        (dict(path="net.onnx"), ValueError, "writes StableHLO, not ONNX, got net.onnx"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, error, message):
    given = dict(path=tmp_path / "net.zip", model=LAYER, params=PARAMS, D=D) | change
    with pytest.raises(error, match=message):
        ur.export.save(**given)


def test_an_activation_has_a_name(tmp_path, monkeypatch):
    """A file says what it computes: an address of a function does not."""
    absolute = jnp.abs
    layer = ur.layers.ista(3, activation=absolute)
    given = dict(model=layer, params=layer.init(None, D), D=D)
    with pytest.raises(TypeError, match="has no name; add it to activations.NAMED"):
        ur.export.save(tmp_path / "net.zip", **given)
    with pytest.raises(TypeError, match="has no name"):
        network = ur.dsc([layer])
        ur.export.save(tmp_path / "net.zip", network, (given["params"],), (D,))
    with pytest.raises(TypeError, match="has no name"):  # of a network without layers
        network = ur.networks.res_csc(2, activation=absolute)
        ur.export.save(tmp_path / "net.zip", network, network.init(None, (D,)), (D,))
    monkeypatch.setitem(ur.activations.NAMED, "absolute", absolute)
    path = ur.export.save(tmp_path / "net.zip", **given)
    assert ur.export.load(path).manifest["model"] == "ista(3, activation=absolute)"


def test_signals_that_do_not_fit_are_refused(saved):
    run = ur.export.load(saved).run
    for wrong in (Y[0], Y[:, :5], Y[None]):
        with pytest.raises(ValueError, match=r"run: Y has shape .*; expected \(n, 6\)"):
            run(wrong)
    with pytest.raises(TypeError, match="run: Y is complex128; expected real numbers"):
        run(np.asarray(Y) * 1j)
    objects = np.asarray(Y).astype(object)
    for wrong in (np.asarray(Y).astype(str), objects, np.asarray(Y).astype(str).tolist()):
        with pytest.raises(TypeError, match="run: Y is not a numeric array"):
            run(wrong)
    same(run(np.asarray([[1, 2, 3, 4, 5, 6]])), run(np.arange(1.0, 7)[None]))  # integers are
    assert run(Y[:0]).shape == (0, 10)


def test_without_flatbuffers_it_says_what_to_install(tmp_path, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[export\]'"):
        ur.export.save(tmp_path / "net.zip", LAYER, PARAMS, D)
    with pytest.raises(ImportError, match=r"pip install '\.\[export\]'"):
        ur.export.load(saved)


def test_the_command(tmp_path, capsys):
    weights = ur.training.save(tmp_path / "weights.npz", PARAMS, D, LAYER)
    output = tmp_path / "net.stablehlo"
    assert main(["export", str(weights), "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "alista(2)"
    same(ur.export.load(output).run(Y[:1])[0], LAYER.apply(PARAMS, D, jnp.asarray(Y[0])))
    capsys.readouterr()
    written = weights.read_bytes()
    for taken, message in ((weights, "is read by this command"), (tmp_path, "is a folder; expec")):
        assert main(["export", str(weights), "--output", str(taken)]) == 2
        assert f"{taken}: {message}" in capsys.readouterr().err
    assert weights.read_bytes() == written
    assert main(["export", str(weights), "--output", str(output), "--platforms", "gpu"]) == 2
    assert "platforms must be some of" in capsys.readouterr().err


def test_a_pursuit_of_one_signal_is_exported_and_that_of_a_batch_refused():
    assert callable(_file._solver(ur.pursuit.omp, dict(sparsity=1), np.eye(2), "save"))
    with pytest.raises(TypeError, match="save: omp_batch takes batches, on the host"):
        _file._solver(ur.pursuit.omp_batch, dict(sparsity=1), np.eye(2), "save")
