"""The autoencoder as a layer with its params, and the same layer with more steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import layers
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, checked, program
from unrolled.layers import Encoder, Unrolled, ista, stack

__all__ = ["SAE", "unroll"]

_SAMPLE = 256  # activations that choose step sizes


class SAE(Result):
    """A sparse autoencoder: a layer with its params, the decoder, and the bias of the decoder.

    `layer`, `params` and `D` with the signals `signals(A)` go into all other functions, such as
    `fit`, `compare`, `pursuit.lasso_batch`, `theory.certify_lasso`, `save` and `export.save`.

    Example:
        >>> D = ur.dictionaries.gaussian(0, 4, 8)
        >>> weights = {"W_enc": D, "b_enc": jnp.zeros(8), "W_dec": D.T, "b_dec": jnp.ones(4)}
        >>> sae = ur.sae.load(weights, kind="topk", k=2)
        >>> A = jax.random.normal(jax.random.key(0), (3, 4))
        >>> sae.layer, sae.encode(A).shape, sae.decode(sae.encode(A)).shape
        (sae(1, sparsity=2), (3, 8), (3, 4))
    """

    layer: layers.sae  # the encoder; with more steps, its unrolled form
    params: Unrolled  # the params of the layer
    D: Array  # (m, d), the decoder: an atom is the direction of a feature
    center: Array  # (m,), the bias of the decoder
    units: Array | None = None  # (d,), that divide codes for D into codes in the file's units

    def signals(self, A: ArrayLike) -> Array:
        """The signals of activations, A - center, (n, m), in the dtype of D."""
        A = checks.as_float(A, "A", "SAE")
        if A.ndim != 2 or A.shape[1] != len(self.center):
            raise ValueError(
                f"SAE: A has shape {A.shape}; expected (n, {len(self.center)}), activations in rows"
            )
        return A.astype(self.D.dtype) - self.center[None]

    def encode(self, A: ArrayLike) -> Array:
        """The codes of activations, (n, m) -> (n, d), in the units of the file."""
        return self.codes(self.layer.encode(self.D, self.signals(A), self.params))

    def codes(self, X: ArrayLike) -> Array:
        """Codes for the atoms D, such as those of `lasso_batch`, in the units of the file."""
        return jnp.asarray(X) if self.units is None else jnp.asarray(X) / self.units[None]

    def decode(self, X: ArrayLike) -> Array:
        """The activations of codes in the units of the file, (n, d) -> (n, m)."""
        X = jnp.asarray(X) if self.units is None else jnp.asarray(X) * self.units[None]
        return X @ self.D.T + self.center[None]

    def unit(self) -> "SAE":
        """The same autoencoder over atoms of norm 1; `encode`, `codes` keep the units of the file.

        Raises:
            ValueError: atoms differ in norm and the layer keeps the largest entries of a code,
                because other entries would then be the largest.
        """
        norms = jnp.linalg.norm(self.D, axis=0)
        alike = bool(jnp.ptp(norms) <= 1e-4 * jnp.max(norms))
        if self.layer.sparsity is not None and not alike:
            raise ValueError(
                "SAE.unit: the atoms of a TopK autoencoder have unequal norms; rescaled codes "
                "have other largest entries"
            )
        size = jnp.where(norms > 0, norms, 1)[None]
        W, bias, theta = _per_atom(self.params.steps)
        steps = Encoder(W * size[None], bias * size, theta * size)
        units = size[0] * (1 if self.units is None else self.units)
        return self.replace(params=Unrolled(None, steps), D=self.D / size, units=units)


@checked
def unroll(sae: SAE, A: Array | np.ndarray, depth: int, *, sparsity: int | None = None) -> SAE:
    r"""The autoencoder with `depth` steps: its encoder, and then steps that see the residual.

    The further steps start as projected gradient steps on 1/2 norm(y - D x)^2,

    .. math:: x \leftarrow H_s(\max(0, \; x + \gamma_k D'(y - D x))),

    where H_s keeps the s largest entries. Step by step, gamma_k is the step size that leaves the
    smallest residuals on at most 256 of the activations: 1 / norm(D, 2)^2 times a power of sqrt(2),
    up to 1 / max norm(d_i)^2. To train all steps on activations alone::

        deep = ur.sae.unroll(sae, A, 4)
        trained = ur.fit(
            deep.layer, deep.params, deep.D, deep.signals(A), loss=ur.training.reconstruction,
            optimizer=optax.adam(optax.cosine_decay_schedule(5e-4, 1500)), steps=1500, key=0,
        )
        deep = deep.replace(params=trained.best)

    Args:
        sae: an autoencoder with one step.
        A: activations, (n, m), that choose the step sizes.
        depth: K.
        sparsity: number s of entries that a step keeps; None takes that of the layer.

    Raises:
        ValueError: the layer has more than one step, K is below 1, there is no activation, or there
            is no sparsity: without a bound on the nonzeros, steps that only reduce the residual use
            all atoms.

    Reference: Blumensath, Davies (2008) for the further steps before training. Not claimed: that
    codes with a smaller residual are better features.

    Example:
        >>> D = ur.dictionaries.gaussian(0, 16, 32)
        >>> weights = {"W_enc": D, "b_enc": jnp.zeros(32), "W_dec": D.T}
        >>> one = ur.sae.load(weights, kind="topk", k=2)
        >>> A, _ = ur.problems.sampler(D, batch=50, probability=0.06)(jax.random.key(0))
        >>> deep = ur.sae.unroll(one, A, 4)
        >>> deep.layer
        sae(4, sparsity=2)
        >>> before, after = (float(jnp.sum((A - s.decode(s.encode(A))) ** 2)) for s in (one, deep))
        >>> after < before
        True
    """
    where = "sae.unroll"
    depth, given = checks.as_depth(depth, "depth", where, least=1), sae.layer
    if given.depth != 1:
        raise ValueError(f"{where}: the layer has {given.depth} steps; expected 1")
    sparsity = given.sparsity if sparsity is None else sparsity
    if sparsity is None:
        raise ValueError(
            f"{where}: the layer has no sparsity; expected the number of nonzeros of a code, for "
            "example sparsity=int((sae.encode(A) > 0).sum(1).mean())"
        )
    if not len(Y := sae.signals(A[:_SAMPLE] if np.ndim(A) else A)):
        raise ValueError(f"{where}: there are no activations; expected at least 1")
    layer = layers.sae(depth, sparsity=sparsity, bandwidth=given.bandwidth)
    sizes, D = _step_sizes(sae.D), sae.D
    first = jax.tree.map(lambda leaf: leaf[0], _per_atom(sae.params.steps))
    steps, zero = [first], jnp.zeros(D.shape[1], D.dtype)
    state = _stepped(layer, first, D, Y, jax.vmap(layer.start, (None, 0))(D, Y))
    for _ in range(depth - 1):
        tried = [Encoder(gamma * D, zero, zero) for gamma in sizes]
        states = [_stepped(layer, step, D, Y, state) for step in tried]
        best = min(range(len(tried)), key=lambda i: float(jnp.sum(states[i].residual ** 2)))
        steps.append(tried[best])
        state = states[best]
    return sae.replace(layer=layer, params=stack(Unrolled(None, tuple(steps))))


def _per_atom(steps: Encoder) -> Encoder:
    """Stacked steps with a threshold for each atom."""
    theta = jnp.asarray(steps.theta).reshape(len(steps.bias), -1)
    return steps._replace(theta=jnp.broadcast_to(theta, steps.bias.shape))


def _step_sizes(D: Array) -> list[float]:
    """From 1 / norm(D, 2)^2 to 1 / max norm(d_i)^2, by factors sqrt(2)."""
    least = float(ista(1).init(None, D).steps.gamma[0])
    most = 1 / float(jnp.max(jnp.sum(D**2, axis=0)))
    return [least * 2 ** (i / 2) for i in range(1 + int(2 * np.log2(most / least) + 1e-3))]


@program("layer")
def _stepped(layer: layers.sae, step: Encoder, D: Array, Y: Array, states: Any) -> Any:
    """The states of all signals after a step."""
    return jax.vmap(layer.step, (None, None, None, 0, 0))(None, step, D, Y, states)
