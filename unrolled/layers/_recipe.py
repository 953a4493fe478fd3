"""What a family says of itself: how it starts and is trained where codes are known."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Shares of the entries that support selection lets pass, per share of nonzeros: of the first step,
# which the k-th step has k times, and at most.
_PER_STEP, _MOST = 0.12, 1.3
# A variance below or above this leaves float32 when it is squared or inverted.
_RANGE = 1e-18, 1e18
# Of a code without zeros a family that wants a probability below 1 is told this one.
_ALMOST_ALL = 0.999


class Law(NamedTuple):
    """What a recipe knows of the codes and the noise.

    Example:
        >>> law = ur.layers.Law(probability=0.1, variance=1.0, noise=0.0, signal=0.2, atoms=500)
        >>> law.support, law.sparsity
        ((0.012, 0.13), 50)
    """

    probability: float  # share of the entries that are not zero
    variance: float  # mean square of those
    noise: float  # mean square of the noise of an entry of y
    signal: float  # mean square of an entry of y
    atoms: int  # d
    unit: float = 1.0  # mean square of the norms of the atoms

    @property
    def support(self) -> tuple[float, float]:
        """The option `support`, in proportion to the share of nonzeros."""
        shares = (float(f"{per * self.probability:.6g}") for per in (_PER_STEP, _MOST))
        return tuple(min(1.0, share) for share in shares)  # type: ignore[return-value]

    @property
    def sparsity(self) -> int:
        """The mean number of nonzeros of a code, at least 1."""
        return max(1, round(self.probability * self.atoms))

    @property
    def prior(self) -> dict[str, float]:
        """The options of families that assume a Bernoulli-Gaussian law.

        Raises:
            ValueError: a variance that float32 does not hold.
        """
        if not _RANGE[0] <= self.variance <= _RANGE[1]:
            raise ValueError(
                f"prepare: the nonzeros have the variance {self.variance:g}, which float32 does "
                "not hold; divide signals and codes by one number"
            )
        return {"probability": min(self.probability, _ALMOST_ALL), "variance": self.variance}

    def lams(self, *shares: float) -> tuple[float, ...]:
        """Weights of a LASSO, as shares of what one atom of a signal gives D'y."""
        size = self.unit * math.sqrt(self.variance)
        return tuple(float(f"{share * size:.6g}") for share in shares)


def _no_options(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _nothing(law: Law) -> dict[str, tuple]:
    return {}


def selecting(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The option of families with support selection."""
    return {"support": law.support}


def penalties(law: Law) -> dict[str, tuple[float, ...]]:
    """Values of lam to try, of families that know the codes through it alone."""
    return {"lam": law.lams(0.02, 0.05, 0.1, 0.2, 0.3, 0.4)}


def untied(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The option of families whose steps may share their weights."""
    return {"tied": False}


def selecting_untied(law: Law, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of families with support selection whose steps may share their weights."""
    return untied(law, chosen) | selecting(law, chosen)


class Recipe(NamedTuple):
    """How a family starts and is trained where codes are known; see `training.by_recipe`.

    Attributes:
        rate: of Adam, from where it falls to zero along a cosine; 0 trains nothing.
        steps: of training.
        options: `options(law, chosen) -> dict`, what the law of the codes says of the options that
            are not chosen.
        tried: `tried(law) -> {option: values}`; after training validation signals choose a value.
        searched: field of the shared params -> multiples of its start; a grid search chooses.
        calibrated: whether `analytic.calibrate` sets thresholds and step sizes before training.
        weighted: whether it starts with weights in closed form, `Layer.from_weights`, whose ridge
            validation signals choose where there is noise.

    Example:
        >>> ur.layers.lamp.recipe.rate, ur.layers.ista.recipe.rate
        (0.0001, 0)
    """

    rate: float = 1e-3
    steps: int = 400
    options: Callable[[Law, Mapping[str, Any]], Mapping[str, Any]] = _no_options
    tried: Callable[[Law], Mapping[str, tuple]] = _nothing
    searched: Mapping[str, tuple[float, ...]] = {}
    calibrated: bool = False
    weighted: bool = False
