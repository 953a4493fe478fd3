"""Threads: the limit of BLAS, work that is shared, and one thread where the limit is missing."""

import json
import os
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl
from oracles import normal, unit

import unrolled as ur
from unrolled import linear_programs, pursuit
from unrolled._base import checks
from unrolled._base import threads as blas_threads
from unrolled._base.threads import each, in_thread, one_thread, threads
from unrolled.pursuit._omp_batch import match


class Limits:
    """The limit of a `ThreadpoolController`, which is one of the process."""

    limit = 2

    def __init__(self, limits):
        self.before, Limits.limit = Limits.limit, limits

    def __enter__(self):
        return self

    def __exit__(self, *error):
        Limits.limit = self.before


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.setattr(blas_threads, "_blas", lambda: types.SimpleNamespace(limit=Limits))


def test_the_limit_of_threads_may_be_nested(limits):
    with one_thread():
        with pytest.raises(KeyError), one_thread():
            assert Limits.limit == 1
            raise KeyError
        assert Limits.limit == 1
    assert Limits.limit == 2


@pytest.mark.slow
def test_a_blas_that_is_loaded_inside_is_limited_too():
    """In a new process, where nothing has loaded the BLAS of scipy yet."""
    code = """
import json
from unrolled._base.threads import one_thread
with one_thread():
    import scipy.linalg
    from threadpoolctl import threadpool_info
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
print(json.dumps(pools))
"""
    environment = {name: v for name, v in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    command = (sys.executable, "-c", code)
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert set(json.loads(done.stdout)) == {1}


def test_threads_that_overlap_leave_the_limit_as_it_was(limits):
    """The first one in is the first one out."""
    inside, leave = threading.Event(), threading.Event()

    def second():
        with one_thread():
            inside.set()
            leave.wait(30)

    other = threading.Thread(target=second)
    with one_thread():
        other.start()
        assert inside.wait(30) and Limits.limit == 1
    leave.set()
    other.join()
    assert Limits.limit == 2


def test_the_limit_is_one_of_blas():
    with one_thread():
        pools = threadpoolctl.threadpool_info()
        assert {p["num_threads"] for p in pools if p["user_api"] == "blas"} == {1}


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


def test_work_is_shared_among_the_cores(limits, two_cores):
    """Two parts that wait for each other, then more of them: each is done once."""
    done, both = [], threading.Barrier(2, timeout=30)

    def work(part):
        if part < 2:
            both.wait()
        done.append(part)

    with threads() as team:
        assert Limits.limit == 1 and team.cores == 2
        team.share(work, range(20))
    assert sorted(done) == list(range(20)) and Limits.limit == 2


@pytest.fixture(params=["share", "each"])
def shared(request, limits, two_cores):
    """Both ways to do a piece of work on every part by two threads."""
    if request.param == "each":
        yield each
        return
    with threads() as team:
        yield team.share


def test_a_fault_in_another_thread_is_raised(shared):
    own, both = threading.current_thread(), threading.Barrier(2, timeout=30)

    def work(part):
        both.wait()
        if threading.current_thread() is not own:
            raise KeyError(part)

    with pytest.raises(KeyError):
        shared(work, [0, 1])


@pytest.mark.parametrize("in_own", [True, False])
def test_after_a_fault_nothing_is_begun(shared, in_own):
    own, begun, left = threading.current_thread(), [], threading.Event()

    def work(part):
        begun.append(part)
        if (threading.current_thread() is own) == in_own:
            left.set()
            raise KeyError(part)
        left.wait(30)
        time.sleep(0.05)  # in which the fault is met

    with pytest.raises(KeyError):
        shared(work, range(100))
    time.sleep(0.1)
    assert len(begun) <= 4


def test_results_of_each_part_are_in_order_and_have_the_context_of_the_caller(two_cores):
    value = ContextVar("value", default=0)
    value.set(2)
    both = threading.Barrier(2, timeout=30)

    def work(part):
        if part < 2:
            both.wait()
        return part, value.get(), jnp.ones(()).dtype

    for wide, dtype in ((False, np.float32), (True, np.float64)):
        with jax.enable_x64(wide):
            assert each(work, range(9)) == [(i, 2, dtype) for i in range(9)]
    assert each(work, []) == []


def test_work_beside_has_the_context_of_its_caller():
    value = ContextVar("value", default=0)
    value.set(2)
    both = threading.Barrier(2, timeout=30)
    for wide, dtype in ((False, np.float32), (True, np.float64)):
        with jax.enable_x64(wide):
            other = in_thread(lambda: (both.wait(), value.get(), jnp.ones(()).dtype))
            both.wait()
        assert other.result()[1:] == (2, dtype)


def test_what_is_dropped_in_one_thread_is_heard_in_another():
    """Also where their blocks overlap: the first one in is the first one out."""
    both = threading.Barrier(2, timeout=30)

    def other():
        with checks.quiet(RuntimeWarning):
            both.wait()
            both.wait()
            checks.warn("dropped", RuntimeWarning)
            checks.warn("another kind")

    with pytest.warns(UserWarning) as note_output:
        with checks.quiet(message="fit: .* worse"):
            beside_it = in_thread(other)
            both.wait()
            checks.warn("fit: the start is worse")
            with checks.quiet(DeprecationWarning):  # beside what is dropped already
                checks.warn("fit: the end is worse")
            checks.warn("fit: the start")
        both.wait()
        beside_it.result()
        checks.warn("fit: it is worse")
    assert sorted(str(each.message) for each in note_output) == [
        "another kind",
        "fit: it is worse",
        "fit: the start",
    ]


def test_a_fault_of_work_beside_is_that_of_its_result():
    with pytest.raises(KeyError):
        in_thread({}.popitem).result()


def test_programs_of_any_order_are_finished_at_once_to_the_same_bits(two_cores, monkeypatch):
    whitened, finish = linear_programs.whiten(D), linear_programs._finish
    both, first = threading.Barrier(2, timeout=30), iter(range(2))

    def meeting(*arguments):
        if next(first, None) is not None:
            both.wait()
        return finish(*arguments)

    alone = linear_programs.basis_pursuit(whitened, Y.T, iterations=1, choose=in_order)
    monkeypatch.setattr(linear_programs, "_finish", meeting)
    shared = linear_programs.basis_pursuit(whitened, Y.T, iterations=1)
    for ours, theirs in zip(*map(jax.tree.leaves, (shared, alone)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def in_order(primal, dual, tried):
    left = np.flatnonzero((primal - dual > 1e-9 * primal) & ~tried)
    return int(left[0]) if len(left) else None


D = unit(normal(0, 8, 12))
Y = normal(1, 300, 8)


@pytest.mark.parametrize(
    "solve",
    [lambda: match(D, Y, 3), lambda: np.asarray(pursuit.lasso_batch(D, Y, ratio=0.2).x)],
    ids=["match", "lasso_batch"],
)
def test_without_threadpoolctl_one_thread_works_alone(solve, two_cores, monkeypatch):
    """BLAS takes all cores then."""
    shared = solve()
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.setattr("unrolled._base.threads.ThreadPoolExecutor.submit", None)
    assert solve() == pytest.approx(shared, abs=1e-9)


@pytest.mark.slow
def test_results_of_16_threads_are_those_of_one():
    """Host solvers, compiled solvers and layers, all in flight at once, bit for bit."""
    D = unit(normal(0, 12, 24))
    layer = ur.alista(4, support=(0.05, 0.1))
    params = layer.init(None, D)
    works = (
        lambda Y: pursuit.lasso_batch(D, Y, 0.1).x,
        lambda Y: pursuit.omp_batch(D, Y, 3).x,
        lambda Y: pursuit.lasso(D, Y[0], 0.1).x,
        lambda Y: jax.vmap(layer.apply, (None, None, 0))(params, D, Y),
        lambda Y: ur.metrics.nmse(Y, Y + 1),
    )
    calls = [(work, normal(seed, 7, 12)) for seed in range(24) for work in works]
    expected = [np.asarray(work(Y)) for work, Y in calls]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda call: np.asarray(call[0](call[1])), calls))
    chex.assert_trees_all_equal(results, expected)
