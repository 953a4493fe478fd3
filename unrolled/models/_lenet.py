"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998), in the form that is usual today."""

from collections.abc import Callable

from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import by_name, relu
from unrolled.models._layers import Dense, PooledConvolution, as_pictures, check_rngs

_KERNEL, _LEAST_SIDE = 5, 16


class LeNet5(nnx.Module):
    r"""Two convolutions with max pooling and three dense layers: 62,006 params on 32 x 32 x 3.

    .. math:: x_1 = \rho(D_1' * x_0 + b_1), \quad x_2 = \rho(D_2' * p(x_1) + b_2),

    with 6 and 16 filters of 5 x 5 pixels, no padding and p the maxima over 2 x 2 pixels, then
    dense layers of 120, 84 and `classes` outputs of p(x_2). x_1 and x_2 are the features that the
    paper penalises, see `early` and `tap`. Weights and biases are drawn uniformly from [-1, 1] /
    sqrt(fan-in), as PyTorch does by default.

    Args:
        classes: number of outputs.
        activation: rho, an activation of `unrolled.activations`, its name or any function.
        channels: of the pictures.
        side: of the pictures, in pixels, at least 16.
        rngs: draws the params.

    Attributes:
        early: the names of x_1 and x_2 for `tap`.

    Raises:
        TypeError: a size is not an integer, the activation is not a function, rngs is no nnx.Rngs.
        ValueError: a size is too small; when called, the pictures are not (N, side, side,
            channels).

    Reference: LeCun et al., "Gradient-based learning applied to document recognition" (1998). Max
    pooling, full connections and the activation are today's; theirs were different. Li, Feng, Zhou
    (2024), section 4.

    Example:
        >>> from flax import nnx
        >>> net = ur.models.LeNet5(activation="elu", rngs=nnx.Rngs(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net)))
        62006
        >>> logits, features = ur.models.tap(net, *net.early)(jnp.ones((2, 32, 32, 3)))
        >>> logits.shape, {name: x.shape for name, x in features.items()}
        ((2, 10), {'conv1.features': (2, 28, 28, 6), 'conv2.features': (2, 10, 10, 16)})
    """

    early = ("conv1.features", "conv2.features")

    def __init__(
        self,
        classes: int = 10,
        activation: str | Callable[[Array], Array] = relu,
        *,
        channels: int = 3,
        side: int = 32,
        rngs: nnx.Rngs,
    ):
        classes = _checks.as_index(classes, "classes", "LeNet5", least=1)
        self.channels = _checks.as_index(channels, "channels", "LeNet5", least=1)
        self.side = _checks.as_index(side, "side", "LeNet5", least=_LEAST_SIDE)
        self.activation = by_name(activation)
        check_rngs(rngs, "LeNet5")
        left = self.side
        for _ in range(2):
            left = (left - _KERNEL + 1) // 2
        self.conv1 = PooledConvolution(self.channels, 6, _KERNEL, self.activation, rngs=rngs)
        self.conv2 = PooledConvolution(6, 16, _KERNEL, self.activation, rngs=rngs)
        self.dense1 = Dense(left * left * 16, 120, rngs=rngs)
        self.dense2 = Dense(120, 84, rngs=rngs)
        self.dense3 = Dense(84, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """The logits of pictures.

        Args:
            x: (N, side, side, channels).

        Returns:
            (N, classes).
        """
        x = as_pictures(x, self.dense3.bias, self.channels, "LeNet5")
        if x.shape[1:3] != (self.side, self.side):
            raise ValueError(
                f"LeNet5: the pictures have shape {x.shape}; expected sides of {self.side} pixels, "
                f"try side={x.shape[1]} where the net is made"
            )
        x = self.conv2(self.conv1(x))
        x = self.activation(self.dense1(x.reshape(len(x), -1)))
        x = self.activation(self.dense2(x))
        return self.dense3(x)
