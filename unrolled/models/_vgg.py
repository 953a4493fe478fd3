"""VGG11 with batch normalisation (Simonyan, Zisserman 2015), in the form that is usual on CIFAR."""

from collections.abc import Callable

from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import by_name, relu
from unrolled.models._convolution import max_pool
from unrolled.models._layers import ConvolutionBlock, Dense, as_pictures, check_rngs

_FILTERS = (64, 128, 256, 256, 512, 512, 512, 512)
_POOLED = (0, 1, 3, 5, 7)  # the blocks that maxima over 2 x 2 pixels follow
_SIDE = 32


class VGG11(nnx.Module):
    r"""Eight blocks of convolution, batch normalisation and activation, and one dense layer.

    .. math:: x_j = \rho(BN(D_j' * p_j(x_{j-1}) + b_j)), \quad j = 1, \dots, 8,

    with 64, 128, 256, 256, 512, 512, 512, 512 filters of 3 x 3 pixels, padding 1, and p_j the
    maxima over 2 x 2 pixels after the blocks 1, 2, 4, 6 and 8. It has 9,231,114 params for ten
    classes and pictures of 32 x 32 x 3. Weights and biases are drawn uniformly from
    [-1, 1] / sqrt(fan-in), as PyTorch does by default. Derivatives are those of reverse mode
    (`jax.grad`, `jax.vjp`).

    Args:
        classes: number of outputs.
        activation: rho, an activation of `unrolled.activations`, its name or any function.
        channels: of the pictures.
        rngs: draws the params.

    Attributes:
        early: the names of x_1, ..., x_4 for `tap`.

    Raises:
        TypeError: a size is not an integer, the activation is not a function, rngs is no nnx.Rngs.
        ValueError: a size is below 1; when called, the pictures are not (N, 32, 32, channels).

    Reference: Simonyan, Zisserman, "Very deep convolutional networks" (2015), configuration A,
    whose three dense layers became one. Li, Feng, Zhou (2024), section 4.

    Example:
        >>> from flax import nnx
        >>> net = nnx.eval_shape(lambda: ur.models.VGG11(rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
        9231114
        >>> net.early
        ('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3')
    """

    early = tuple(f"blocks.{j}" for j in range(4))

    def __init__(
        self,
        classes: int = 10,
        activation: str | Callable[[Array], Array] = relu,
        *,
        channels: int = 3,
        rngs: nnx.Rngs,
    ):
        classes = _checks.as_index(classes, "classes", "VGG11", least=1)
        self.channels = _checks.as_index(channels, "channels", "VGG11", least=1)
        activation = by_name(activation)
        check_rngs(rngs, "VGG11")
        sizes = zip((self.channels, *_FILTERS), _FILTERS)
        self.blocks = nnx.List([ConvolutionBlock(*n, activation, rngs=rngs) for n in sizes])
        self.dense = Dense(_FILTERS[-1], classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """The logits of pictures.

        Args:
            x: (N, 32, 32, channels).

        Returns:
            (N, classes).
        """
        x = as_pictures(x, self.dense.bias, self.channels, "VGG11")
        if x.shape[1:3] != (_SIDE, _SIDE):
            raise ValueError(
                f"VGG11: the pictures have shape {x.shape}; expected sides of {_SIDE} pixels, "
                "try to pad or to resize them"
            )
        for j, block in enumerate(self.blocks):
            x = block(x)
            x = max_pool(x) if j in _POOLED else x
        return self.dense(x.reshape(len(x), -1))
