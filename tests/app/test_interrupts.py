"""Ctrl-C of a command in its own process, at every stage: imports, compiling, training."""

import signal
import subprocess
import sys
import zipfile
from contextlib import suppress

import numpy as np
import pytest

import unrolled as ur

COMMANDS = {  # the arguments before the name of the output, and that name in a folder
    "compare": ("compare", "."),
    "train": ("train --steps 2000000 --dictionary D.npy --signals Y.npy", "weights.npz"),
}


def interrupted(command, seconds, output):
    """A command that got SIGINT after `seconds`, and its standard error."""
    words = [sys.executable, "-m", "unrolled", *command.split(), "--no-cache", "--output", output]
    # As at a terminal: what ignores SIGINT, such as tests in the background, starts processes that
    # ignore it, too. With `preexec_fn`, JAX would warn that it does not survive a fork.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGINT)
        return process, process.communicate(timeout=120)[1]
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 8, 20])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_ends_with_130_without_a_trace_or_a_partial_file(
    name, seconds, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    D = ur.dictionaries.gaussian(0, 50, 100)
    np.save("D.npy", D), np.save("Y.npy", ur.problems.sampler(D, 1000)(0)[0])
    command, output = COMMANDS[name]
    folder = tmp_path / "out"
    process, err = interrupted(command, seconds, folder / output)
    assert process.returncode == 130, err
    lines = err.splitlines()
    assert lines[-1].startswith("unrolled: "), err
    assert all(line.startswith(("[", "unrolled: ")) for line in lines), err
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if ".partial" in path.name or path == folder / output]
    if name == "compare":
        assert not files
    for path in folder.rglob("*.npz"):
        with zipfile.ZipFile(path) as saved:
            assert saved.testzip() is None
