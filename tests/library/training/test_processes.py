"""One training over two processes: equal bits, one writer, and faults that all of them learn of."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import devices
from jax.sharding import Mesh

import unrolled as ur
from unrolled._base.processes import Processes, processes_of

GUIDE = Path(__file__).parents[3] / "notebooks" / "guide" / "train_in_a_script.md"

SETUP = """
import json, os, signal, sys, threading
import jax
index, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
import numpy as np, optax
import unrolled as ur
from unrolled._base.files import MappedRows
from unrolled.training import _files

D = ur.dictionaries.gaussian(0, 10, 20)
layer = ur.lista_cp(2, tied=False)
mesh = jax.make_mesh((len(jax.devices()),), ("data",))
sample, adam = ur.problems.sampler(D, 7), optax.adam(1e-2)
answer = {}

def fit(name, steps=8, **options):
    how = dict(optimizer=adam, steps=steps, key=0, evaluate_every=2, accumulate=8, mesh=mesh)
    if name:
        how["checkpoint"] = os.path.join(folder, name)
    found = ur.fit(layer, layer.init(None, D), D, sample, **how | options)
    return ur.training.digest((found.params, found.best, found.D, found.history.loss))

def atoms(**options):
    how = dict(optimizer=adam, steps=4, key=0, accumulate=2, learn_dictionary=True) | options
    found = ur.fit(layer, layer.init(None, D), D, sample, **how)
    return found.history.loss.tolist(), sorted(d.process_index for d in found.D.devices()), found

def of_file(name="Y.npy"):
    Y = np.load(os.path.join(folder, name), mmap_mode="r")
    start, loss = layer.init(None, D), ur.training.lasso_loss(0.1)
    found = ur.fit(layer, start, D, Y if count > 1 else np.array(Y), optimizer=adam, steps=2,
                   key=0, loss=loss, accumulate=8, mesh=mesh)
    return ur.training.digest((found.params, found.best, found.history.loss))

whole = os.path.exists(os.path.join(folder, "Y.npy"))  # all of it, and not a kill alone
if count == 1:
    answer["whole"], answer["resumed"] = fit(""), fit("killed")
    if whole:
        answer["file"] = of_file()
        answer["atoms"] = [atoms(**how)[0] for how in (
            {}, dict(steps=6, checkpoint=os.path.join(folder, "atoms")))]
    print(json.dumps(answer), flush=True)
    raise SystemExit
if whole:
    grid = jax.make_mesh((2, 2), ("data", "atoms"))
    *answer["atoms"], found = atoms(mesh=grid, checkpoint=os.path.join(folder, "atoms"))
    ur.training.save(os.path.join(folder, f"{index}.npz"), found.best, found.D, layer)
    try:
        ur.fit(layer, layer.init(None, D), D, sample, optimizer=adam, steps=1, key=0,
               mesh=jax.make_mesh((1, 4), ("data", "atoms")))
    except ValueError as error:
        answer["atoms of both"] = str(error)
"""
FAULTS = """
rows, read = [], MappedRows.read
def recorded(self, indices):
    rows.extend((self.first + indices).tolist())
    return read(self, indices)
MappedRows.read = recorded
answer["file"], answer["rows"] = of_file(), sorted(row for row in rows if row < 450)
try:
    of_file(f"Y_{index}.npy")
except (ValueError, ur.training.CheckpointError) as error:
    answer["row"] = str(error)

try:
    fit("", steps=8 + index)
except ValueError as error:
    answer["other steps"] = str(error)

save = _files.Steps.save
def full(self, step, *arguments, **options):
    if step == 4:
        raise ur.training.CheckpointError("step 4 was not saved (No space left on device)")
    save(self, step, *arguments, **options)
_files.Steps.save = full
try:
    fit("full")
except ur.training.CheckpointError as error:
    answer["full disk"] = str(error)
_files.Steps.save = save
answer["after the disk was full"] = fit("full", log=os.path.join(folder, "log"))

def end(record, params):
    if index == 1 and record.step == 4:
        os.kill(os.getpid(), signal.SIGTERM)
try:
    fit("ended", callbacks=[end])
except SystemExit as left:
    answer["left with"] = left.code
answer["after SIGTERM"] = fit("ended")
print(json.dumps(answer), flush=True)
"""
KILL = """
def kill(record, params):
    if index == int(sys.argv[5]) and record.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
try:
    fit("killed", callbacks=[kill])
except RuntimeError as error:
    answer["alone"] = str(error)
print(json.dumps(answer), flush=True)
if index:  # JAX ends it, where the first one is lost
    threading.Event().wait(120)
os._exit(0)
"""


def start(index, count, port, folder, n_devices, faults=FAULTS, victim=1):
    environment = os.environ | devices(n_devices) | {"JAX_ENABLE_X64": "0"}
    given = map(str, (index, count, port, folder, victim))
    code = (sys.executable, "-W", "ignore", "-c", SETUP + faults + KILL, *given)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(code, env=environment, **pipes)


def answers(process, timeout):
    """The last line of JSON that a process printed, and its errors."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    assert lines, err
    return json.loads(lines[-1])


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def rows_drawn(batches):
    """The rows of 450 that some of the eight batches of two steps draw, by the key 0."""
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(0), k), 8)[batches] for k in (0, 1)]
    with jax.enable_x64(False):
        rows = [jax.random.randint(key, (64,), 0, 450) for key in jnp.concatenate(keys)]
    return sorted(np.concatenate(rows).tolist())


@pytest.mark.slow
def test_two_processes_are_one_training(tmp_path):
    """On two devices each; the one that is killed leaves what eight devices of one resume."""
    Y = np.asarray(ur.problems.sampler(ur.dictionaries.gaussian(0, 10, 20), 500)(0)[0], np.float32)
    broken = np.where(np.arange(500)[:, None] < 450, np.nan, Y)  # none of those held back
    for name, array in {"Y": Y, "Y_0": Y, "Y_1": broken}.items():
        np.save(tmp_path / f"{name}.npy", array)
    port = free_port()
    pair = [start(i, 2, port, str(tmp_path), 2) for i in (0, 1)]
    second, first = answers(pair[1], 300), answers(pair[0], 60)
    alone = answers(start(0, 1, port, str(tmp_path), 8), 120)
    assert first["rows"] == rows_drawn(slice(4)) and second["rows"] == rows_drawn(slice(4, 8))
    assert "Y_1.npy has NaN or infinite entries (in rows " in second["row"]
    assert first["row"] == f"process 1: {second['row']}"
    for answer in (first, second):
        assert answer["file"] == alone["file"]
        assert "processes 0 and 1 were started with different arguments" in answer["other steps"]
        assert "process 0  process 1\nsteps  8          9" in answer["other steps"]
        assert "No space left on device" in answer["full disk"]
        assert answer["left with"] == 143
        bits = answer["after the disk was full"], answer["after SIGTERM"]
        assert {*bits, alone["whole"], alone["resumed"]} == {alone["whole"]}
        losses, devices = answer["atoms"]
        # Four Adam steps in float32: products of 20 terms, each as large as what they add up to.
        np.testing.assert_allclose(losses, alone["atoms"][0], rtol=1e-4)
        assert len(devices) == 2 and len(set(devices)) == 1
        assert "'atoms' belong to several processes" in answer["atoms of both"]
    assert alone["atoms"][1][:4] == first["atoms"][0] and len(alone["atoms"][1]) == 6
    weights = [ur.training.restore(tmp_path / f"{i}.npz").params for i in (0, 1)]
    assert ur.training.digest(weights[0]) == ur.training.digest(weights[1])
    assert second["full disk"].startswith("process 0: ")
    assert "process 0 lost another one" in first["alone"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "log").read_text().splitlines()]
    assert steps == sorted(set(steps))  # of the first process alone


@pytest.mark.slow
def test_the_process_that_writes_may_be_killed(tmp_path):
    """The other one says so before JAX aborts it; what was saved resumes to the same bits."""
    port = free_port()
    pair = [start(i, 2, port, str(tmp_path), 2, faults="", victim=0) for i in (0, 1)]
    said = answers(pair[1], 200)["alone"]
    assert said.startswith("fit: process 1 lost another one")
    pair[0].communicate(timeout=60)
    assert [process.returncode for process in pair] == [-signal.SIGKILL, -signal.SIGABRT]
    assert (tmp_path / "killed" / "4.npz").is_file()
    alone = answers(start(0, 1, port, str(tmp_path), 8), 120)
    assert alone["whole"] == alone["resumed"]


class _Device:
    def __init__(self, process_index):
        self.process_index = process_index


def test_a_mesh_that_leaves_processes_out_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)

    class _Mesh:
        devices = np.array([_Device(0), _Device(2)])

    with pytest.raises(ValueError, match="fit: mesh has devices of 2 of 3 processes"):
        processes_of(_Mesh(), "fit")
    _Mesh.devices = np.array([_Device(1)])
    with pytest.raises(ValueError, match="fit: mesh has no device of this process, 0"):
        processes_of(_Mesh(), "fit")


def test_one_process_waits_for_no_other():
    """Also where there are others, that train on their own."""
    alone = processes_of(Mesh(np.array(jax.devices()[:1]), ("data",)), "fit")
    assert alone == Processes(False) and alone.is_first
    assert alone.on_all(lambda: 3, first_alone=True) == 3
    with pytest.raises(ZeroDivisionError):
        alone.on_all(lambda: 1 // 0)
    alone.require_equal("fit", {"steps": 1})
    signals: list[int] = []
    alone.broadcast_signal(signals)
    assert signals == []


@pytest.mark.slow
def test_the_script_of_the_guide_trains_in_processes_of_slurm(tmp_path):
    """By the variables of its jobs alone; one process without a mesh has the same bits."""
    D = ur.dictionaries.gaussian(0, 10, 20)
    np.save(tmp_path / "D.npy", D)
    np.save(tmp_path / "Y.npy", ur.problems.sampler(D, 200)(0)[0])
    script = re.findall(r"```py\n(.*?)```", GUIDE.read_text(), re.DOTALL)[-1]
    pipes = dict(stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    variables = os.environ | {"JAX_PLATFORMS": "cpu"}
    slurm = dict(SLURM_JOB_ID=str(os.getpid()), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2")

    def started(script, **own):
        command = (sys.executable, "-W", "ignore", "-c", script)
        return subprocess.Popen(command, env=variables | own, **pipes)

    def bits(*processes):
        for process in processes:
            assert not process.communicate(timeout=200)[1] and process.returncode == 0
        return ur.training.digest(ur.training.restore(tmp_path / "weights.npz").params)

    pair = bits(*(started(script, SLURM_PROCID=i, SLURM_LOCALID=i, **slurm) for i in "01"))
    alone = script.replace("jax.distributed.initialize()", "").replace('"shared"', '"alone"')
    assert bits(started(alone)) == pair
