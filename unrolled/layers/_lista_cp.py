"""LISTA-CP (Chen, Liu, Wang, Yin 2018): LISTA with the coupling S = I - W'D."""

from typing import NamedTuple

from unrolled.layers._layer import Acting, Recipe, selecting_untied, untied
from unrolled.layers._lista import Threshold
from unrolled.layers._records import Matrix, Theta, Unrolled, Weights, repeat
from unrolled.layers._shrinking import (
    PUBLISHED_SUPPORT,
    Coupled,
    FromISTA,
    Selecting,
    support_option,
)
from unrolled.records import option


class WeightsAndThreshold(NamedTuple):
    """One step of an untied LISTA-CP."""

    W: Matrix  # plain or structured
    theta: Theta


class lista_cp(Coupled, FromISTA, Selecting):
    r"""K steps x <- shrink(x + W_k'(y - D x), theta_k).

    Params: tied, shared W and steps theta; untied, steps (W, theta). `apply` takes either form, and
    W may be structured. `init` is ISTA: W = D / L, theta = lam / L. `analytic.lista_cp` takes W and
    theta from theory, whose theorems hold without `support`.

    Reference: Chen, Liu, Wang, Yin (2018), equation (15); Li, Feng, Zhou (2024), (23) and (33).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> params = ur.analytic.lista_cp(D, depth=10, sparsity=1, bound=2.0)
        >>> x = jnp.zeros(32).at[5].set(2.0)
        >>> float(jnp.abs(ur.lista_cp(10).apply(params, D, D @ x) - x).sum()) < 0.1
        True
    """

    tied: bool = option(default=True, help="start with one W for all steps, not one per step")

    forms = (Unrolled(Weights, Threshold), Unrolled(None, WeightsAndThreshold))
    recipe = Recipe(rate=5e-4, options=untied, calibrated=True, weighted=True)

    def at_ista(self, D, L, theta):
        return self.from_theory(D / L, theta)

    def weights(self, shared, p, D):
        return Acting(p.W if shared is None else shared.W)

    def from_theory(self, W, theta):
        if self.tied:
            return Unrolled(Weights(W), Threshold(theta))
        return Unrolled(None, WeightsAndThreshold(repeat(W, len(theta)), theta))


class lista_cpss(lista_cp):
    """LISTA-CP with support selection; see `lista_cp`.

    A selected entry passes unshrunk: in the objective of the LASSO the start can be above ISTA.

    Reference: Chen, Liu, Wang, Yin (2018).

    Example:
        >>> ur.layers.lista_cpss(2), ur.layers.lista_cpss(2).schedule
        (lista_cpss(2), (0.012, 0.024))
    """

    support: tuple[float, float] | None = support_option(PUBLISHED_SUPPORT)

    recipe = lista_cp.recipe._replace(options=selecting_untied)
