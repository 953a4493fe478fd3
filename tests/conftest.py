"""Tests run in float64 with strict promotion; where users use float32, a test names it."""

import collections
import csv
import gc
import hashlib
import os
import platform
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

# The tests run in two processes on what may be two cores: a BLAS that spins on both would wait for
# the other's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# What one process has read, the many that the tests start need not read as text again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# LLVM optimises nothing, which halves compiling; what XLA makes of a program is the same. It holds
# for the processes that tests start, too. Tests whose property depends on optimised code, or that
# run for long, use `as_users_compile`, and give their processes `AS_USERS` of command_line.py.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax  # noqa: E402
import jax.monitoring  # noqa: E402

# Compiling is most of the time of a test, and half of that goes into the fusion emitters; a program
# in one part compiles faster on one core. Later versions may not know the flags.
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
        " --xla_cpu_parallel_codegen_split_count=1"
    )

import chex  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Tracing makes many objects that live: looking for cycles among them is a tenth of the time.
gc.set_threshold(200_000, 50, 1000)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # programs are lowered without their lines


def machine():
    """What programs depend on beside what JAX knows: its version, and what the processor can do.

    Not the version of Python, which compiles none of them.
    """
    said = Path("/proc/cpuinfo")
    lines = said.read_text().splitlines() if said.exists() else [platform.processor()]
    processor = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    words = platform.machine(), *sorted(processor or lines[:1])
    digest = hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]
    return f"jax-{jax.__version__}-jaxlib-{jax.lib.__version__}-{digest}"


def pytest_addoption(parser):
    parser.addoption("--share", help="K/N: each Nth test, from K on, with all its cases")


def pytest_configure(config):
    """Save compiling, which is two thirds of the time of a test.

    Most trainings of tests take a few steps at a large rate; they may gain nothing.

    Other processes, and later runs, load what one process has compiled; the cache of the user's own
    commands is left alone. `UNROLLED_CACHE` names a folder that several clones share.
    """
    config.addinivalue_line(
        "filterwarnings", "ignore:(fit|unsupervised). training made nothing better"
    )
    if not config.pluginmanager.hasplugin("cacheprovider"):
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of commands in other processes
        jax.config.update("jax_enable_compilation_cache", False)
        return
    shared = os.environ.get("UNROLLED_CACHE")
    folder = str(Path(shared, machine()) if shared else config.cache.mkdir("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    for name, least in (("compile_time_secs", 0), ("entry_size_bytes", -1)):
        jax.config.update(f"jax_persistent_cache_min_{name}", least)
        os.environ[f"JAX_PERSISTENT_CACHE_MIN_{name.upper()}"] = str(least)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    mark_slow(items)
    if share := config.getoption("--share"):
        kept = share_of(items, *map(int, share.split("/")))
        config.hook.pytest_deselected(
            items=[item for item in items if without_case(item) not in kept]
        )
        items[:] = [item for item in items if without_case(item) in kept]


def without_case(item):
    """The name of the test without that of the case."""
    return item.nodeid.partition("[")[0]


def mark_slow(items):
    """Mark the cases of a test beyond the first n of its `few(n)`, and beyond the number that
    `choose.py` chose, as slow, unless they are of a new family.
    """
    from registry import NEW_FAMILIES  # after what is set in this file

    seen, most = collections.Counter(), chosen()
    for item in items:
        few, test = item.get_closest_marker("few"), without_case(item)
        seen[test] += 1
        number = min(few.args[0] if few else len(items), most.get(test, len(items)))
        if seen[test] > number and not NEW_FAMILIES & of_lines(item):
            item.add_marker(pytest.mark.slow)


def share_of(items, first, step):
    """Each test whose number is `first` modulo `step`."""
    return set([*dict.fromkeys(map(without_case, items))][first % step :: step])


def chosen():
    """{test: the number of its cases that run by default}, see `choose.py`."""
    table = Path(__file__).with_name("chosen.csv")
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        return {row["test"]: int(row["default"]) for row in csv.DictReader(file)}


def of_lines(item):
    """The arguments of a case that are text, up to a comma: the families of "alista, support"."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {value.partition(",")[0] for value in values if isinstance(value, str)}


def pytest_collection_finish():
    """Modules and cases stay: no search for cycles looks at them again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """How many cases of the bad-input matrix were tried; one that is not refused fails its test."""
    passed = terminalreporter.stats.get("passed", [])
    counts = [n for report in passed for name, n in report.user_properties if name == "matrix"]
    if counts:
        terminalreporter.write_line(f"bad-input matrix: {sum(counts)} cases, all refused")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Programs are kept for one file: gigabytes of them slow the garbage collector down."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def short_timings():
    """Costs are measured in two short turns: no test depends on how exact they are."""
    from unrolled.pursuit import _costs  # after what is set in this file

    with mock.patch.multiple(_costs, _TURNS=2, _MOMENT=2e-3):
        yield


@pytest.fixture(autouse=True)
def forget_traces():
    """`chex.assert_max_traces` counts together what the cases of a test trace."""
    chex.clear_trace_counter()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def compiled():
    """The programs compiled so far, in a list that grows."""
    programs = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield programs
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def interruptible():
    """SIGINT as at a terminal: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def as_users_compile():
    """All optimisations of LLVM in the programs of a test: for bits, rounding, and long runs."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def as_typed():
    """What a fresh process of a user has: float32, and the promotion that JAX has by default.

    What an example defines does not outlive it in the registries.
    """
    import unrolled as ur  # after what tests set in this file

    registries = (
        ur.activations.NAMED,
        ur.dictionaries.KINDS,
        ur.layers.FAMILIES,
        ur.networks.NETWORKS,
    )
    with ExitStack() as stack:
        for scope in (
            jax.enable_x64(False),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            *map(mock.patch.dict, registries),
        ):
            stack.enter_context(scope)
        yield


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
        from unrolled.app.cli import main  # the tests of the library do without

        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run
