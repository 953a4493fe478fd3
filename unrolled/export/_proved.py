"""The program of a solver that proves its codes: the steps of a layer, then a pursuit to a gap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled._base import checks
from unrolled.dictionaries import Complex, Joint, Structured, block_of, flat_batch, spectral_norm
from unrolled.layers import Layer
from unrolled.penalties import Penalty
from unrolled.pursuit import Lasso, lasso_from, proved_gap, static_tol
from unrolled.theory import exceedance

__all__: list[str] = []

CONFIDENCE = 1 - 1e-6  # of the bound on the share of signals that need more than K steps
_LEAST = 1e-30  # a smaller lam may leave the range of float32
_TOGETHER = 4096  # held-out signals in one call


class Proof(NamedTuple):
    """A layer, the LASSO whose gap the program bounds, and the end of the program."""

    layer: Layer
    D: Any
    lam: Any  # (), in the dtype of the program
    norm: float  # norm(D, 2)
    method: Lasso

    def solver(self, params: Any) -> Callable[[Any], Any]:
        """Signals (n, m) -> codes (n, d), gaps (n,) and numbers of steps (n,)."""

        def one(y):
            x = self.layer.apply(params, self.D, y)
            x, gap, steps = lasso_from(self.D, y, x, self.lam, method=self.method, norm=self.norm)
            return x, gap, steps + self.layer.depth

        return jax.vmap(one)

    def description(self, params: Any, held_out: Any, where: str) -> dict[str, Any]:
        """The part of the manifest: the LASSO, and what held-out signals say of the K steps."""
        K, text = self.layer.depth, {}
        if held_out is not None:
            Y = np.asarray(flat_batch(self.D, held_out), self.lam.dtype)
            m = self.D.shape[0]
            if Y.ndim != 2 or Y.shape[1] != m or not len(Y):
                raise ValueError(f"{where}: held_out has shape {Y.shape}; expected (n, {m})")
            run = jax.jit(self.solver(params))
            cut = range(0, len(Y), _TOGETHER)
            steps = np.concatenate([np.asarray(run(Y[i : i + _TOGETHER])[2]) for i in cut])
            text = {
                "held out": len(Y),
                "more steps": int((steps > K).sum()),
                "share": exceedance(steps, K, CONFIDENCE),
                "confidence": CONFIDENCE,
            }
        return {
            "lam": float(self.lam),
            "tol": self.method.tol,
            "steps": K,
            "max_steps": self.method.max_steps,
            **text,
        }


def proof_of(
    model: Any, D: Any, dtype: Any, where: str, *, tol: Any, max_steps: Any, **only: Any
) -> Proof | None:
    """The proof that `save` adds to a program; None without a tolerance.

    `only` are the arguments lam and held_out of `save`, which are for proofs alone.
    """
    if tol is None:
        for name in (name for name, value in only.items() if value is not None):
            raise ValueError(f"{where}: {name} is for a program with a proof; give tol, too")
        return None
    if not isinstance(model, Layer) or isinstance(D, tuple):
        raise ValueError(
            f"{where}: tol is for a layer in one dictionary, got {type(model).__name__}; export a "
            "pursuit without tol: its own tol is one of its options"
        )
    lam = getattr(model, "lam", None) if only["lam"] is None else only["lam"]
    lam = checks.as_number(lam, "lam", where)
    if not _LEAST <= lam < np.inf:
        raise ValueError(f"{where}: lam must be between {_LEAST} and inf, got {lam}")
    if not _is_matrix(D):
        raise ValueError(
            f"{where}: the rounding of products with {type(D).__name__} is not known, so no gap "
            "can be proved; expected a matrix, or Complex or Joint of one, try dictionaries.dense"
        )
    penalty = Penalty(block_of(D), bool(getattr(model, "nonnegative", False)))
    max_steps = checks.as_index(max_steps, "max_steps", where)
    method = Lasso(static_tol(tol, where), max_steps, penalty, proved_gap)
    return Proof(model, D, np.asarray(lam, dtype), float(spectral_norm(D)), method)


def _is_matrix(D: Any) -> bool:
    """Whether products with D are those of a matrix, of pairs or of many measurements."""
    if isinstance(D, Complex | Joint):
        return all(map(_is_matrix, vars(D).values()))
    return not isinstance(D, Structured)
