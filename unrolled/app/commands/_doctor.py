"""`unrolled doctor`: versions, a write check, a certified computation, and the speed of devices."""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import analytic, dictionaries, layers
from unrolled._base import checks
from unrolled.app.commands._console import add_command, show
from unrolled.app.commands._report import check_folder, environment

# The certified check: LISTA-CP with analytic params on [I, Hadamard] (64 x 128), where two nonzeros
# are certified; after these steps its l1 error is only a rounding error.
_DEPTH = 40
_LARGEST_ERROR = 1e-4
# Timed on every device: a square product, and steps of ISTA on a batch.
_SIDE, _SHAPE, _BATCH, _STEPS, _RUNS = 1024, (250, 500), 1000, 4, 3


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled doctor`."""
    return add_command(commands, "doctor", run, {})


def run(arguments: argparse.Namespace) -> None:
    """Show versions and devices, and check that they work.

    Print versions, devices and settings, run one small certified check, time a product and a
    layer on every device, and check that two runs of a gradient have the same bits.

    Example:
        unrolled doctor --json
    """
    report = doctor()
    lines = {name: value for name, value in report.items() if name != "measured"}
    lines |= {f"device {i}": device.text() for i, device in enumerate(report["measured"])}
    text = "\n".join(f"{name:18} {value}" for name, value in lines.items())
    show(arguments.json, report, text)


class Measured(NamedTuple):
    """The measurements of one device; while other programs use it, its rates are lower."""

    device: str
    product_gflops: float  # of a product in the default precision
    step_gflops: float  # of the products of a layer, which asks for the highest precision
    default_error: float  # of a float32 product in the default precision, relative to float64
    highest_error: float  # of a float32 product in the highest precision
    repeats: bool  # whether two runs of a gradient have the same bits
    as_first: bool  # whether the first device gives the same bits

    def text(self) -> str:
        """The measurements as one line of text."""
        same = "agree to the bit" if self.repeats else "DIFFER: see the guide on devices"
        first = "" if self.as_first else ", and not as on device 0"
        return (
            f"{self.device}: {self.product_gflops:.0f} GFLOP/s in a product, "
            f"{self.step_gflops:.0f} in a layer; a float32 product is off by "
            f"{self.default_error:.0e} by default, {self.highest_error:.0e} in the highest "
            f"precision; two runs {same}{first}"
        )


def doctor() -> dict[str, Any]:
    """The installed versions, the devices, and the results of checks that they work.

    Raises:
        ArithmeticError: float32 products of the device have errors larger than rounding.
    """
    error = _certified_error()
    if not error < _LARGEST_ERROR:
        raise ArithmeticError(
            f"doctor: the certified check failed on {jax.devices()[0]}: "
            f"l1 error {error:.1e} after {_DEPTH} steps"
        )
    facts: dict[str, Any] = environment()
    return facts | {
        "default device": str(jax.devices()[0]),
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS") or "not set: JAX takes the best available",
        "memory": _memory(),
        "float64": "on" if jax.config.values["jax_enable_x64"] else "off",
        "precision": _precision(),
        "cores": str(os.cpu_count()),
        "compilation cache": _cache(),
        "certified check": f"passed, l1 error {error:.1e} after {_DEPTH} steps",
        "measured": _measured(),
    }


def _certified_error() -> float:
    """The l1 error of analytic LISTA-CP on one signal of its certified class."""
    D = dictionaries.identity_hadamard(64)
    x = jnp.zeros(128).at[jnp.asarray([3, 70])].set(jnp.asarray([1.0, -0.5]))
    params = analytic.lista_cp(D, depth=_DEPTH, sparsity=2, bound=1.0)
    return float(jnp.abs(jax.jit(layers.lista_cp(_DEPTH).apply)(params, D, D @ x) - x).sum())


def _precision() -> str:
    """The precision of products, by default and in the layers and pursuits of this package."""
    asked = jax.config.values["jax_default_matmul_precision"]
    by_default = f"jax_default_matmul_precision={asked}" if asked else "the default of the device"
    return f"products: {by_default}; in layers and pursuits the highest, unless precision= is given"


def _measured() -> list[Measured]:
    """The measurements of every device of this process."""
    results: list[Measured] = []
    gradients: list[list[bytes]] = []
    for device in jax.local_devices():
        with jax.default_device(device):
            measured, bits = _of_default_device()
        gradients.append(bits)
        results.append(measured._replace(device=str(device), as_first=bits == gradients[0]))
    return results


def _of_default_device() -> tuple[Measured, list[bytes]]:
    """The measurements of the default device, and the bits of a gradient."""
    rng = np.random.default_rng(0)
    square = rng.normal(size=(_SIDE, _SIDE)).astype(np.float32)
    D, Y = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (_SHAPE, (_BATCH, _SHAPE[0])))
    exact = square.astype(float) @ square

    def product(precision: str | None) -> Callable[[Any], Any]:
        return jax.jit(lambda A: jnp.matmul(A, A, precision=precision))

    A = jnp.asarray(square)
    errors = [np.asarray(product(p)(A), float) - exact for p in (None, "highest")]
    layer = layers.ista(_STEPS)
    params = layer.init(None, D)

    def loss(params: Any, D: Any, Y: Any) -> Any:
        return jnp.mean(jax.vmap(layer.apply, (None, None, 0))(params, D, Y) ** 2)

    gradient = jax.jit(jax.grad(loss))
    first, again = (
        [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(gradient(params, D, Y))]
        for _ in range(2)
    )
    product_rate = 2e-9 * _SIDE**3 / _seconds(product(None), A)
    flops = 4 * _STEPS * math.prod(_SHAPE) * _BATCH
    rate = 1e-9 * flops / _seconds(jax.jit(loss), params, D, Y)
    off, least = (float(np.linalg.norm(error) / np.linalg.norm(exact)) for error in errors)
    return Measured("", product_rate, rate, off, least, first == again, True), first


def _seconds(f: Callable[..., Any], *arguments: Any) -> float:
    """The least time of several runs, after one run that compiles."""
    jax.block_until_ready(f(*arguments))
    times = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)


def _memory() -> str:
    """The memory of the default device, or of the host if the device does not report it."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return f"{stats['bytes_limit'] / 2**30:.1f} GiB of the device"
    size = checks.host_bytes()
    return f"{size / 2**30:.1f} GiB of the host" if size < math.inf else "unknown"


def _cache() -> str:
    """The folder of the compilation cache, and whether it can be written."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder:
        return "off"
    try:
        check_folder(Path(folder))
    except OSError as error:
        reason = error.strerror or error
        return f"{folder}, which cannot be written: nothing will be kept ({reason})"
    return f"{folder}, writable"
