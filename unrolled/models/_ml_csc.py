"""Classifiers that unfold the pursuits of a multi-layer convolutional sparse coding model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import by_name, relu
from unrolled.models import _pursuit_layer
from unrolled.models._layers import Features, as_pictures, check_rngs
from unrolled.models._pursuit_layer import Classifier, Filters, Linear, PursuitLayer, violations
from unrolled.models._unfolded import PURSUITS, Codes, at_time

MNIST = Filters(32, 6, 2), Filters(64, 6, 2), Filters(512, 4)
CIFAR10 = Filters(32, 4, 2, 1), Filters(64, 4, 2, 1), Filters(128, 4, 2, 1)
_PROXIMAL = ("cnn", "ml-ista", "ml-fista", "layered-bp")  # methods that can be constrained


class MLCSC(nnx.Module):
    r"""A classifier of the codes that T unfoldings of a multi-layer pursuit find.

    The model is a chain of convolutional dictionaries, x_{j-1} = D_j x_j, with nonnegative codes
    x_j and x_0 = y the picture. The first codes are those of a plain CNN, which are a step of
    ML-ISTA from x_J = 0:

    .. math:: x_j = \rho(\gamma_j D_j' x_{j-1} + b_j), \quad j = 1, \dots, J.

    The methods unfold the steps of `pursuit.ml_ista_step` from there, with the same params, so that
    their number does not depend on T:

    - "cnn": no unfoldings.
    - "ml-ista": x_{j-1} = D_j x_j downwards, then upwards x_j <- rho(x_j + gamma_j D_j'(x_{j-1} -
      D_j x_j) + b_j).
    - "ml-fista": the same steps at extrapolated points, as those of `pursuit.ml_fista`.
    - "layered-bp": T steps of ISTA in every layer, one layer after the other.
    - "ml-lista": x_j <- rho(x_j - D_j' D_j x_j + B_j' x_{j-1} + b_j), with analysis filters B_j of
      their own and no step sizes.
    - "all-free": ML-ISTA with params of their own in each of the T + 1 steps.

    With rho = ReLU, the steps are those of proximal gradient methods with thresholds -b_j, as long
    as b_j <= 0 and gamma_j norm(D_j, 2)^2 <= 1. Training keeps neither. `violations` counts the
    layers that break them; with `constrained`, thresholds act as abs(b_j) and step sizes as
    min(abs(c_j), 0.95 / norm(D_j, 2)^2), with the norm by 30 Lanczos steps. Derivatives are those
    of reverse mode.

    Args:
        shape: (H, W, C) of the pictures.
        filters: the sizes of the J filter banks; trained are their filters, c_j = gamma_j and a
            bias per filter.
        method: see above.
        unfoldings: T.
        classes: number of outputs.
        activation: rho, an activation of `unrolled.activations`, its name or any function.
        classifier: makes the module that maps x_J to logits, called as `classifier(shape of x_J,
            classes, activation, rngs=rngs)`; a dense layer by default.
        constrained: whether the steps are kept proximal; not for "ml-lista" and "all-free".
        rngs: draws the params. Filters are normal with standard deviation 0.1 / sqrt(fan-in), equal
            for all methods but "all-free".

    Attributes:
        early: the names of x_1, ..., x_J for `tap`.

    Raises:
        TypeError: a size is not an integer, the activation is not a function, filters are no
            sequence of `Filters`, rngs is no nnx.Rngs.
        ValueError: an unknown method, filters that do not fit, no filters, a size out of range, or
            a method that cannot be constrained; when called, pictures of another shape.

    Reference: Sulam, Aberdam, Beck, Elad, "On multi-layer basis pursuit, efficient algorithms and
    convolutional neural networks" (2020). They leave open in which dictionary ML-LISTA goes down;
    here it is D_j.

    Not claimed: that the codes have converged after T unfoldings, or that more of them classify
    better.

    Example:
        >>> from flax import nnx
        >>> sizes = ur.models.Filters(8, 4, stride=2), ur.models.Filters(16, 3)
        >>> net = ur.models.MLCSC((8, 8, 1), sizes, "ml-ista", unfoldings=2, rngs=nnx.Rngs(0))
        >>> y = jax.random.uniform(jax.random.key(0), (5, 8, 8, 1))
        >>> net(y).shape, [x.shape for x in net.pursue(y)], net.violations().layers
        ((5, 10), [(5, 3, 3, 8), (5, 1, 1, 16)], 0)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        filters: Sequence[Filters],
        method: str,
        unfoldings: int = 6,
        *,
        classes: int = 10,
        activation: str | Callable[[Array], Array] = relu,
        classifier: Classifier = Linear,
        constrained: bool = False,
        rngs: nnx.Rngs,
    ):
        if not isinstance(method, str) or method not in PURSUITS:
            raise ValueError(
                f"MLCSC: unknown method {method!r}; expected one of {', '.join(PURSUITS)}"
            )
        constrained = _checks.as_bool(constrained, "constrained", "MLCSC")
        if not callable(classifier):
            raise TypeError(f"MLCSC: classifier must make a module, got {classifier!r}")
        if constrained and method not in _PROXIMAL:
            raise ValueError(
                f"MLCSC: {method} cannot be constrained; expected one of {', '.join(_PROXIMAL)}"
            )
        if not isinstance(filters, Sequence):
            raise TypeError(f"MLCSC: filters must be a sequence of models.Filters, got {filters!r}")
        if not filters:
            raise ValueError("MLCSC: no filters; expected the sizes of one layer at least")
        T = _checks.as_index(unfoldings, "unfoldings", "MLCSC")
        if np.shape(shape) != (3,):
            raise ValueError(f"MLCSC: shape is {shape}; expected (H, W, C)")
        for name, size in zip(("H", "W", "C"), shape):
            _checks.as_index(size, name, "MLCSC", least=1)
        check_rngs(rngs, "MLCSC")
        self.picture, self.method = tuple(shape), method
        self.unfoldings = 0 if method == "cnn" else T
        self.activation = by_name(activation)
        options: dict[str, Any] = dict(
            copies=(T + 1,) if method == "all-free" else (),
            analysis=method == "ml-lista",
            constrained=constrained,
        )
        self.layers: nnx.List[PursuitLayer] = nnx.List()
        for j, bank in enumerate(filters, start=1):
            _pursuit_layer.check_bank(shape, bank, j)
            self.layers.append(PursuitLayer(shape, bank, rngs, **options))
            shape = self.layers[-1].shape
        self.codes = nnx.List([Features() for _ in self.layers])
        classes = _checks.as_index(classes, "classes", "MLCSC", least=1)
        self.classifier = classifier(shape, classes, self.activation, rngs=rngs)

    @classmethod
    def mnist(
        cls, method: str, unfoldings: int = 6, *, constrained: bool = False, rngs: nnx.Rngs
    ) -> "MLCSC":
        """The network of the paper for MNIST: 604,909 params, pictures (N, 28, 28, 1) in [0, 1].

        Example:
            >>> from flax import nnx
            >>> net = ur.models.MLCSC.mnist("ml-fista", rngs=nnx.Rngs(0))
            >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
            604909
        """
        return cls((28, 28, 1), MNIST, method, unfoldings, constrained=constrained, rngs=rngs)

    @classmethod
    def cifar10(
        cls, method: str, unfoldings: int = 6, *, constrained: bool = False, rngs: nnx.Rngs
    ) -> "MLCSC":
        """The network of the paper for CIFAR-10: 4,005,869 params, pictures (N, 32, 32, 3).

        Three layers are unfolded; three plain convolutions and a dense layer classify their code.
        The paper subtracts the mean of each channel and divides by its standard deviation.
        """
        return cls(
            (32, 32, 3),
            CIFAR10,
            method,
            unfoldings,
            classifier=_pursuit_layer.Convolutional,
            constrained=constrained,
            rngs=rngs,
        )

    @property
    def early(self) -> tuple[str, ...]:
        return tuple(f"codes.{j}" for j in range(len(self.codes)))

    def __call__(self, y: Array) -> Array:
        """The logits of pictures.

        Args:
            y: (N, H, W, C).

        Returns:
            (N, classes).
        """
        xs = [code(x) for code, x in zip(self.codes, self.pursue(y))]
        return self.classifier(xs[-1])

    def pursue(self, y: Array) -> Codes:
        """The codes x_1, ..., x_J of pictures, (N, h_j, w_j, m_j) each.

        Args:
            y: (N, H, W, C).
        """
        y = as_pictures(y, self.layers[0].kernel, self.picture[2], "MLCSC")
        if y.shape[1:] != self.picture:
            expected = ", ".join(map(str, self.picture))
            raise ValueError(f"MLCSC: the pictures have shape {y.shape}; expected (N, {expected})")
        steps = [layer.step() for layer in self.layers]
        return PURSUITS[self.method](steps, y, self.unfoldings, self.activation)

    def violations(self) -> _pursuit_layer.Violations:
        """Which layers are no steps of a proximal gradient method; on the host.

        "ml-lista" is judged by D_j, with steps of size 1. "all-free" has J layers for each of its
        T + 1 steps.
        """
        _checks.on_host(nnx.state(self), "MLCSC.violations", "the network")
        steps = [layer.step() for layer in self.layers]
        if self.method != "all-free":
            return violations(steps)
        times = range(self.unfoldings + 1)
        return violations([step for t in times for step in at_time(steps, t)])
