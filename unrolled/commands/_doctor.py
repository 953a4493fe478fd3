"""`unrolled doctor`: versions, devices, a write check, and one certified computation on this
device.
"""

import math
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from unrolled import analytic, dictionaries, layers
from unrolled.commands._report import check_folder, environment


def doctor(folder: Path | None) -> dict[str, str]:
    """What is installed and whether it computes.

    Raises:
        OSError: the folder cannot be written.
        ArithmeticError: the device does not compute float32 products to rounding.
    """
    with tempfile.TemporaryDirectory() as scratch:
        check_folder(Path(scratch) / "check" if folder is None else folder)
    D = dictionaries.identity_hadamard(64)
    x = jnp.zeros(128).at[jnp.asarray([3, 70])].set(jnp.asarray([1.0, -0.5]))
    params = analytic.lista_cp(D, depth=40, sparsity=2, bound=1.0)
    error = float(jnp.abs(jax.jit(layers.lista_cp(40).apply)(params, D, D @ x) - x).sum())
    if not error < 1e-4:
        raise ArithmeticError(
            f"doctor: the certified check failed on {jax.devices()[0]}: l1 error {error:.1e} after 40 steps"
        )
    return environment() | {
        "default device": str(jax.devices()[0]),
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS") or "not set: the best there is",
        "memory": _memory(),
        "float64": "on" if jax.config.jax_enable_x64 else "off",
        "cores": str(os.cpu_count()),
        "compilation cache": _cache(),
        "write check": f"{folder or 'the temporary folder'} is writable",
        "certified check": f"passed, l1 error {error:.1e} after 40 steps",
    }


def _memory() -> str:
    """Of the default device, or of the host where its devices do not say."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return f"{stats['bytes_limit'] / 2**30:.1f} GiB of the device"
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return "unknown"
    return f"{math.prod(map(os.sysconf, names)) / 2**30:.1f} GiB of the host"


def _cache() -> str:
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        return "off"
    try:
        check_folder(Path(folder))
    except OSError as error:
        return (
            f"{folder}, which cannot be written: nothing will be kept ({error.strerror or error})"
        )
    return f"{folder}, writable"
