"""What the command line sets for the studies of `unrolled compare`."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from unrolled.studies import METHODS


@dataclass(frozen=True)
class Settings:
    """What the command line sets for all experiments."""

    methods: tuple[str, ...] = METHODS
    depth: int = 16
    sparsity: int | None = None
    snr: float = math.inf
    lam: float | None = None
    steps: int = 400
    sampled: int | None = None
    certify: bool = False
    predict: bool = False
    seed: int = 0
    quick: bool = False
    pursuits: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # of the pursuits
    weights: tuple[Path, ...] = ()  # files, or folders of runs
    dictionaries: list[Path] = field(default_factory=list)  # files

    @property
    def key(self) -> jax.Array:
        """The key of everything random."""
        return jax.random.key(self.seed)
