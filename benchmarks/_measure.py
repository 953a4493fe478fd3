"""Comparable timing: contestants take turns within one run, and compile time is separate."""

import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jaxlib
import numpy as np


def median_ms(functions: dict, *, rounds: int, calls: int) -> dict[str, float]:
    """Median milliseconds of each function, measured in turns."""
    times = all_ms(functions, rounds=rounds, calls=calls)
    return {name: statistics.median(values) for name, values in times.items()}


def all_ms(functions: dict, *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Milliseconds of every call of each function, measured in turns (A B C A B C ...).

    Each of `rounds` turns has `calls` timed calls. A turn begins with a pause and one call that is
    not timed, because the thread pool of the previous contestant may still spin.
    """
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            time.sleep(0.3)
            function()
            for _ in range(calls):
                began = time.perf_counter()
                function()
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def compile_seconds(function, *args) -> float:
    """Seconds to trace and compile `function`. A new wrapper and empty caches prevent reuse."""
    jax.clear_caches()
    began = time.perf_counter()
    jax.jit(lambda *args: function(*args)).lower(*args).compile()
    return time.perf_counter() - began


def markdown(rows: list[dict[str, object]]) -> str:
    """A table with a row for each dict; a sentence above names the columns with one value."""
    if not rows:
        return ""
    equal = [name for name in rows[0] if len({str(row[name]) for row in rows}) == 1 < len(rows)]
    names = [name for name in rows[0] if name not in equal]
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    said = ", ".join(f"{name} ({rows[0][name]})" for name in equal)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"The table omits columns with one value: {said}.\n\n{table}" if equal else table


def environment() -> dict[str, str]:
    """The versions and the hardware on which a measurement depends."""
    found = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "device": ", ".join(f"{d.platform} {d.device_kind}" for d in jax.devices()),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
    }
    try:
        import torch

        found["torch"] = torch.__version__
    except ImportError:
        found["torch"] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()


def rows_of(path: Path) -> list[dict]:
    """The rows of a .jsonl file; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def save(path: Path, results: dict) -> None:
    """Write the results and the environment as JSON, and print them."""
    text = json.dumps({"environment": environment(), **results}, indent=1)
    path.write_text(text + "\n")
    print(text)
