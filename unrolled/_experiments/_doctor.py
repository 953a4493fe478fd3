"""`unrolled doctor`: versions, devices, a write check, and one certified computation on this device."""

import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from unrolled import analytic, dictionaries, layers
from unrolled._experiments._report import check_folder, environment


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
        "float64": "on" if jax.config.jax_enable_x64 else "off",
        "cores": str(os.cpu_count()),
        "compilation cache": str(jax.config.jax_compilation_cache_dir or "off"),
        "write check": f"{folder or 'the temporary folder'} is writable",
        "certified check": f"passed, l1 error {error:.1e} after 40 steps",
    }
