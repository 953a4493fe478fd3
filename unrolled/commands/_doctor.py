"""`unrolled doctor`: versions, devices, a write check, and one certified computation."""

import argparse
import math
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from unrolled import analytic, dictionaries, layers
from unrolled.commands._console import show
from unrolled.commands._report import check_folder, environment

# The certified check: LISTA-CP with analytic params on [I, Hadamard] (64 x 128), where two nonzeros
# are certified; its l1 error after these steps is rounding.
_DEPTH = 40
_LARGEST_ERROR = 1e-4


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The parser of `unrolled doctor`."""
    parser = commands.add_parser(
        "doctor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="show versions and devices, and check that they work",
        description="Print versions, devices and settings, and run one small certified check.",
        epilog="example:\n  unrolled doctor --json",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="a folder that must be writable")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Print what `doctor` finds."""
    found = doctor(arguments.output)
    text = "\n".join(f"{name:18} {value}" for name, value in found.items())
    show(arguments.json, found, text)


def doctor(folder: Path | None) -> dict[str, str]:
    """What is installed, and whether it computes.

    Raises:
        OSError: the folder cannot be written.
        ArithmeticError: the device does not compute float32 products to rounding.
    """
    with tempfile.TemporaryDirectory() as scratch:
        check_folder(Path(scratch) / "check" if folder is None else folder)
    error = _certified_error()
    if not error < _LARGEST_ERROR:
        raise ArithmeticError(
            f"doctor: the certified check failed on {jax.devices()[0]}: "
            f"l1 error {error:.1e} after {_DEPTH} steps"
        )
    return environment() | {
        "default device": str(jax.devices()[0]),
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS") or "not set: the best there is",
        "memory": _memory(),
        "float64": "on" if jax.config.values["jax_enable_x64"] else "off",
        "cores": str(os.cpu_count()),
        "compilation cache": _cache(),
        "write check": f"{folder or 'the temporary folder'} is writable",
        "certified check": f"passed, l1 error {error:.1e} after {_DEPTH} steps",
    }


def _certified_error() -> float:
    """The l1 error of analytic LISTA-CP on one signal of its certified class."""
    D = dictionaries.identity_hadamard(64)
    x = jnp.zeros(128).at[jnp.asarray([3, 70])].set(jnp.asarray([1.0, -0.5]))
    params = analytic.lista_cp(D, depth=_DEPTH, sparsity=2, bound=1.0)
    return float(jnp.abs(jax.jit(layers.lista_cp(_DEPTH).apply)(params, D, D @ x) - x).sum())


def _memory() -> str:
    """The memory of the default device, or of the host if the device does not report it."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return f"{stats['bytes_limit'] / 2**30:.1f} GiB of the device"
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return "unknown"
    return f"{math.prod(map(os.sysconf, names)) / 2**30:.1f} GiB of the host"


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
