"""`ur.compare` as type checkers see it: a class, as they support no callable module."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

from unrolled._base.checks import ArrayLike
from unrolled.compare import ChainComparison, Comparison, _compare, _evolution, _measure
from unrolled.dictionaries import Dictionary

class called:
    from unrolled.compare import QUANTILES as QUANTILES
    from unrolled.compare import ChainComparison as ChainComparison
    from unrolled.compare import ChainEvolution as ChainEvolution
    from unrolled.compare import Change as Change
    from unrolled.compare import Comparison as Comparison
    from unrolled.compare import Cost as Cost
    from unrolled.compare import Coupling as Coupling
    from unrolled.compare import Curve as Curve
    from unrolled.compare import Divergence as Divergence
    from unrolled.compare import DivergenceWarning as DivergenceWarning
    from unrolled.compare import Evaluation as Evaluation
    from unrolled.compare import Evolution as Evolution
    from unrolled.compare import Guarantee as Guarantee
    from unrolled.compare import Predicted as Predicted
    from unrolled.compare import Proved as Proved
    from unrolled.compare import Sampled as Sampled
    from unrolled.compare import Solver as Solver

    compare = staticmethod(_compare.compare)
    evolution = staticmethod(_evolution.evolution)
    products = staticmethod(_measure.products)

    @overload
    def __new__(  # type: ignore[misc]
        cls,
        methods: Mapping[str, Any],
        D: Dictionary,
        Y: ArrayLike,
        X: ArrayLike | None = None,
        reference: str | None = None,
        *,
        lam: ArrayLike | None = None,
        sparsity: int | None = None,
        bound: float | None = None,
        noise: float | None = None,
        sampled: int | tuple[ArrayLike, ArrayLike] | None = None,
        certify: bool = False,
        predict: bool = False,
        mask: ArrayLike | None = None,
    ) -> Comparison: ...
    @overload
    def __new__(  # type: ignore[misc]
        cls,
        methods: Mapping[str, Any],
        D: Sequence[Dictionary],
        Y: ArrayLike,
        X: Sequence[ArrayLike] | None = None,
        reference: str | None = None,
        *,
        lam: ArrayLike | Sequence[float] | None = None,
        sparsity: Sequence[int] | None = None,
        bound: Sequence[float] | None = None,
        noise: Sequence[float] | None = None,
    ) -> ChainComparison: ...
