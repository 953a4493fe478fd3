"""The programs that a command compiles, kept on disk for its next call."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_OWNER_ONLY = 0o700  # who can write into it can run code as its owner


def cache_folder() -> Path:
    """The cache folder of a user, as the platform has it."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(folder):  # the standard says to ignore others
        return Path(folder, "unrolled")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home(), "unrolled", "Cache")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unrolled"
    return Path.home() / ".cache" / "unrolled"


@contextmanager
def kept_programs(off: bool) -> Iterator[str]:
    """JAX keeps all programs that a block compiles, and reads those of earlier calls.

    A folder, or no cache at all, that the user has configured in JAX stays as it is.

    Args:
        off: whether to keep and read none, wherever.

    Yields:
        What to tell the user of the folder, "" if there is nothing to tell.
    """
    options, message = _cache_options(off)
    before = {name: jax.config.values[name] for name in options}
    _configure(options)
    try:
        yield message
    finally:
        _configure(before)


def _cache_options(off: bool) -> tuple[dict[str, Any], str]:
    """The configuration of JAX for a command, and what to tell of it."""
    configured = jax.config.values
    if off:
        return {"jax_enable_compilation_cache": False}, ""
    if not configured["jax_enable_compilation_cache"] or configured["jax_compilation_cache_dir"]:
        return {}, ""
    try:
        folder = cache_folder()
        folder.mkdir(_OWNER_ONLY, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return {}, f"compiled programs are not kept: {error}"
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    return (
        options,
        f"compiled programs are kept in {folder} for the next call; --no-cache keeps none",
    )


def _configure(options: dict[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    if options:
        compilation_cache.reset_cache()  # JAX looks at them once
