"""Files that appear whole: what a process that is killed while it writes leaves behind."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import unrolled as ur
from unrolled._base import files
from unrolled._base.files import whole_file, write_whole

# It writes a file, says so, and waits to be killed.
WRITER = """
import os, sys
from pathlib import Path
if "named" in sys.argv:  # as where the system has no files without a name
    del os.O_TMPFILE
from unrolled._base.files import whole_file
with whole_file(Path("state.npz")) as file:
    file.write(bytes(100_000))
    print("written", flush=True)
    sys.stdin.read()
"""


def killed(folder, *arguments):
    """The names in the folder after a writer was killed there."""
    environment = os.environ | {"PYTHONPATH": str(Path(ur.__file__).parents[1])}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", WRITER, *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as writer:
        assert writer.stdout.readline() == "written\n"
        writer.kill()
    assert writer.returncode == -signal.SIGKILL
    return sorted(os.listdir(folder))


def test_a_file_has_no_name_before_it_is_whole(tmp_path):
    if not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")
    with whole_file(tmp_path / "state.npz") as file:
        file.write(b"half")
        assert not os.listdir(tmp_path)
    assert os.listdir(tmp_path) == ["state.npz"]


def test_a_disk_that_is_full_is_told_with_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left.*state.npz"):
        with whole_file(tmp_path / "state.npz"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_but_the_file_before(tmp_path):
    if not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")
    (tmp_path / "state.npz").write_bytes(b"before")
    assert killed(tmp_path) == ["state.npz"]
    assert (tmp_path / "state.npz").read_bytes() == b"before"


@pytest.mark.slow
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    """Without files that have no name; what another process is writing stays."""
    left = killed(tmp_path, "named")
    assert [name.split(".")[1:3] for name in left] == [["state", "npz"]]
    (tmp_path / ".state.npz.notes").write_text("of the user")
    with whole_file(tmp_path / "state.npz") as file:
        write_whole(tmp_path / "state.npz", b"by another")
        file.write(b"at last")
    assert (tmp_path / "state.npz").read_bytes() == b"at last"
    assert sorted(os.listdir(tmp_path)) == [".state.npz.notes", "state.npz"]


def test_a_place_has_one_process_even_when_its_lock_goes_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    lock, waited = files.lock, []

    def late(file):  # another process ends between the opening and the lock
        if not waited:
            waited.append(path.unlink())
        return lock(file)

    monkeypatch.setattr(files, "lock", late)
    with files.claimed(path) as holder, files.claimed(path) as other:
        assert holder is None and other == str(os.getpid()) == path.read_text()
    assert waited and not os.listdir(tmp_path)


@pytest.mark.parametrize("named", [False, True])
def test_a_live_writer_keeps_its_file_and_its_permissions(named, tmp_path, monkeypatch):
    if named:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    path = tmp_path / "a file.npz"
    with whole_file(path) as file:
        file.write(b"first")
        write_whole(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["a file.npz"]
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write(b"torn")
        raise KeyError
    assert path.read_bytes() == b"first" and len(os.listdir(tmp_path)) == 2


def linked(folder, name):
    """A link in one folder to a file in another, that is there."""
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "kept").write_bytes(b"before")
    link = folder / name
    link.symlink_to(Path("elsewhere") / "kept")
    return link


def test_a_link_stays_and_its_file_is_written(tmp_path):
    link = linked(tmp_path, "latest.npz")
    with whole_file(link) as file:
        file.write(b"after")
        assert link.read_bytes() == b"before"
    assert link.is_symlink() and link.resolve().read_bytes() == b"after"
    assert os.listdir(tmp_path / "elsewhere") == ["kept"]
    link.unlink(), link.symlink_to("new")  # to a file that is not there yet
    write_whole(link, b"new")
    assert link.is_symlink() and (tmp_path / "new").read_bytes() == b"new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write_whole(tmp_path / "loop", b"")
    assert (tmp_path / "loop").is_symlink()
