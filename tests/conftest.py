"""Tests run in float64 with strict promotion; where users use float32, a test names it."""

import os
import signal

# The tests run in two processes on what may be two cores: a BLAS that spins on both would wait for
# the other's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402

# Compiling is most of the time of a test, and half of it are the fusion emitters; later versions do
# not know the flag.
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    )

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from unrolled.cli import main  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """Save compiling, which is two thirds of the time of a test.

    The default tests compile without most optimisations; `-m slow` and other selections compile as
    users do. What one process has compiled the others load, and the next run too.
    """
    jax.config.update("jax_disable_most_optimizations", config.option.markexpr == "not slow")
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    folder = str(config.cache.mkdir("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def interruptible():
    """SIGINT as at a terminal: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def quick_compilation():
    """Tiny problems spend their time in the compiler, however the tests are selected."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def float32_by_default():
    """As in a fresh process of a user."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def run(capsys, folder, monkeypatch):
    """The command line in process, in the `folder` of a module's inputs.

    `run(*arguments)` returns (status, stdout, stderr).
    """
    monkeypatch.chdir(folder)

    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run
