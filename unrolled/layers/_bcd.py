"""Block coordinate descent: a step updates one block of atoms after the other."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base.checks import Array, Key
from unrolled._base.numbers import widened
from unrolled._base.programs import program, scan
from unrolled.dictionaries import Dictionary, as_dictionary, column_norms, dense
from unrolled.layers._layer import Prepared, Recipe, judging, least
from unrolled.layers._lista import fista_momentum
from unrolled.layers._records import ORDER, THRESHOLD, Number, Shape, Unrolled
from unrolled.layers._shrinking import Shrinking
from unrolled.pursuit import lipschitz, with_step_size
from unrolled.records import option

__all__ = ["Sweep", "Visits", "bcd"]


_TOGETHER = 512  # atoms whose products with all atoms are computed together by `init`
# For signals of at least _LONG entries, the products of the residual with _GROUP atoms are computed
# together, which is faster than block by block; for shorter signals it is slower.
_GROUP, _LONG = 64, 128
_UNROLLED = 8  # blocks in one turn of the scan


class Visits(NamedTuple):
    """The order in which a step visits the atoms, and the `size` of the step of each atom."""

    rank: Annotated[Any, Shape("d", role=ORDER)]  # a step visits atoms of low rank first
    size: Annotated[Array, Shape("d", role=THRESHOLD)]  # 1 / norm(D_b, 2)^2 with `init`


class Sweep(NamedTuple):
    """One step of block coordinate descent; `gamma` and `theta` multiply the step sizes."""

    gamma: Annotated[Array, Shape("", role="step size")]
    theta: Annotated[Array, Shape("", role=THRESHOLD)]
    beta: Number


class Groups(NamedTuple):
    """What a step shares with the others, for groups of blocks: step sizes and norms of atoms, and
    the inner products of the atoms of a group.
    """

    size: Array  # (groups, atoms of a group)
    norm: Array
    gram: Array | None  # (groups, atoms of a group, atoms of a group); None for groups of one block


class Swept(NamedTuple):
    """The state: the last two codes with their residuals, and the objective of the last code.

    The codes are in the order of the blocks, with zeros at the end.
    """

    x: Array
    before: Array  # the code of the previous step
    residual: Array  # (m,), y - D x
    residual_before: Array  # (m,)
    objective: Array


class bcd(Shrinking):
    r"""K sweeps of block coordinate descent with momentum; a sweep visits every block of atoms.

    .. math::
        x &= x_k + \beta_k (x_k - x_{k-1}), \qquad r = y - D x, \\
        u_b &= \mathrm{shrink}(x_b + \gamma_k s_b \odot D_b' r, \; \theta_k s_b), \qquad
        r \leftarrow r + D_b (x_b - u_b), \qquad x_b \leftarrow u_b
        \qquad \text{for each block } b.

    A block sees the codes that the blocks before it have just found. The step size s of a block
    must suit this block alone, and is therefore longer than the step size 1 / L of ISTA: with
    `init`, 16 sweeps are nearer to the optimum of the LASSO than 32 steps of FISTA on most
    dictionaries. A sweep takes the two products of a step of FISTA, in pieces of `block` atoms, or
    of 64 atoms for signals of at least 128 entries, where inner products of atoms give the products
    of the blocks. Pieces are slower than whole products, and the residual of the code is one
    product more: a sweep takes the time of 3 to 4.5 steps of FISTA. Larger blocks are faster and
    have shorter steps.

    A sweep that raises the LASSO objective with the weight `lam` is taken back, and the next sweep
    has no momentum. Hence, up to the rounding of y - D x, the objective never rises from step to
    step, and the objective of the returned code is never above the objective of the zero code,
    whatever the params and the signal. A sweep computes this residual anew from its code, because
    the momentum multiplies errors that residuals keep from step to step, and takes back a code so
    large that the rounding of y - D x may hide a rise. With a `bend`, the objective has the minimax
    concave penalty.

    Params: shared (rank, size = s), steps (gamma, theta, beta); theta is in units of lam. `init`
    distributes the atoms over the blocks such that the atoms of a block have small inner products,
    and sets s = 1 / norm(D_b, 2)^2, gamma = 1, theta = lam and the momentum of FISTA. A sweep takes
    the atoms in ascending order of their ranks, `block` atoms at a time; the ranks have no
    gradient. `training.unsupervised` trains this family on signals without codes.

    A structured dictionary is turned into its matrix.

    Reference: Tseng (2001) for block coordinate descent, Gregor, LeCun (2010) for coordinate
    descent as a network, O'Donoghue, Candes (2015) for the restart of the momentum. Not claimed:
    convergence with momentum, or relative duality gaps below the square root of the precision,
    because a sweep whose gain is lost in the rounding of the objective may be taken back.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 60)
        >>> y = ur.problems.sampler(D, batch=1)(jax.random.key(1))[0][0]
        >>> layers = ur.layers.bcd(8, lam=0.1), ur.layers.fista(16, lam=0.1)
        >>> codes = [layer.apply(layer.init(None, D), D, y) for layer in layers]
        >>> ours, theirs = (float(ur.pursuit.lasso_objective(D, y, x, 0.1)) for x in codes)
        >>> ours < theirs
        True
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO")
    block: int = option(default=16, least=1, help="number of atoms in a block")

    forms = (Unrolled(Visits, Sweep),)
    recipe = Recipe(5e-3, options=judging, calibrated=True, without_codes=(1e-3, 4e-3, 1.6e-2))

    @property
    def takes_parts(self) -> bool:
        """False: a block may cut a part."""
        return False

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        return with_step_size(_bcd_params(self, D), D, self.family)

    def param_units(self, start, signal, atom):
        """The units of the initial params."""
        size: Any = float(np.mean(np.asarray(start.shared.size)))
        sweep: Any = Sweep(1.0, self.lam, 1.0)  # type: ignore[arg-type]
        return Unrolled(Visits(1.0, size), sweep)

    def thresholds(self, params):
        return super().thresholds(params) * np.mean(np.asarray(params.shared.size))

    def prepare(self, params, D):
        """The atoms and their step sizes in the order of the ranks, block by block."""
        # Behind the barrier, XLA does not sort ranks that it knows, which would take it seconds.
        order = jnp.argsort(lax.optimization_barrier(params.shared.rank))
        back = jnp.argsort(order)
        A = dense(D)
        parts = params.shared.size, lax.stop_gradient(column_norms(A)), A
        width = self.block * (max(1, _GROUP // self.block) if D.shape[0] >= _LONG else 1)
        size, norm, A = (_cut(part[..., order], width) for part in parts)
        gram = jnp.einsum("gmi,gmj->gij", A, A) if width > self.block else None
        shared = Groups(size, norm, gram)
        return Prepared(params._replace(shared=shared), A, lambda codes: codes[..., back])

    def start(self, D, y):
        x = jnp.zeros(D.shape[0] * D.shape[2], y.dtype)
        return Swept(x, x, y, y, jnp.sum(y * (y / 2)))

    def step(self, shared, p, D, y, state):
        z = state.x + p.beta * (state.x - state.before)
        r = state.residual + p.beta * (state.residual - state.residual_before)

        def update(r, group):
            z, D, gram, size = group
            g, codes = r @ D, []
            for i in range(0, len(z), self.block):
                b, after = slice(i, i + self.block), slice(i + self.block, None)
                v = z[b] + p.gamma * size[b] * g[: self.block]
                codes.append(self.shrink(D, v, p.theta * size[b]))
                if gram is not None:
                    g = g[self.block :] + (z[b] - codes[-1]) @ gram[b, after]
            x = jnp.concatenate(codes)
            return r + D @ (z - x), x

        parts = z.reshape(shared.size.shape), D, shared.gram, shared.size
        blocks = -(-D.shape[2] // self.block)  # of a group
        _, x = scan(update, r, parts, unroll=max(1, min(_UNROLLED // blocks, len(D))))
        r, doubt = y - jnp.tensordot(D, x, ((0, 2), (0, 1))), _doubt(x, shared.norm)
        x = x.ravel()
        value = jnp.sum(r * (r / 2)) + doubt + self.penalty(D).value(x, self.lam)
        value, x, r = least((value, x, r), (state.objective, state.x, state.residual))
        return Swept(x, state.x, r, state.residual, value)


def _doubt(x: Array, norm: Array) -> Array:
    """e^2 / (2 sqrt(u)) for a computed y - D x that is off by e = u sum_j abs(x_j) norm(d_j).

    A residual of norm r has a true norm of at most r + e, and (r + e)^2 is at most 1 + t times
    r^2 + e^2 / t, here with t = sqrt(u). Only a code that is huge along directions that D maps to
    zero makes this number large. The sums of n products are off by less than n e, mostly by e.
    """
    root = float(jnp.finfo(x.dtype).eps / 2) ** 0.75 * jnp.sum(jnp.abs(x) * norm)
    return root * (root / 2)


def _cut(part: Array, size: int) -> Array:
    """Blocks of `size` atoms along the last axis, as a new first axis; the last block has zeros."""
    size = min(size, part.shape[-1])
    pad = [(0, 0)] * (part.ndim - 1) + [(0, -part.shape[-1] % size)]
    blocks = jnp.pad(part, pad).reshape(*part.shape[:-1], -1, size)
    return jnp.moveaxis(blocks, -2, 0)


def _joined(U: Array, room: Array) -> Array:
    """The block that each unit atom joins: the block that has room and the least sum of squared
    inner products with this atom.

    The products of `_TOGETHER` atoms with all atoms are one product of matrices; there are never
    products of all atoms with all atoms in memory.
    """
    d, n = U.shape[1], min(_TOGETHER, U.shape[1])
    U = jnp.pad(U, ((0, 0), (0, -d % n)))  # atoms behind all others

    def join_together(carry, first):
        blocks, room = carry
        squares = (U.T @ lax.dynamic_slice_in_dim(U, first, n, 1)) ** 2
        among = lax.dynamic_slice_in_dim(squares, first, n)
        sums = jax.ops.segment_sum(squares, blocks, len(room) + 1)[:-1]

        def join(carry, i):
            sums, room = carry
            b = jnp.argmin(jnp.where(room > 0, sums[:, i], jnp.inf))
            return (sums.at[b].add(among[i]), room.at[b].add(-1)), b

        (_, room), joined = lax.scan(join, (sums, room), jnp.arange(n))
        return (lax.dynamic_update_slice(blocks, joined, (first,)), room), None

    nowhere = jnp.full(U.shape[1], len(room))
    firsts = jnp.arange(0, U.shape[1], n)
    (blocks, _), _ = lax.scan(join_together, (nowhere, room), firsts)
    return blocks[:d]


@program("layer")
def _bcd_params(layer: bcd, D: Dictionary) -> tuple[Unrolled, Array]:
    """The params of `init`, and whether D has a step size."""
    L = lipschitz(D, layer.family)
    ones, beta = jnp.ones(layer.depth, D.dtype), jnp.asarray(fista_momentum(layer.depth), D.dtype)
    visits = Visits(*_distributed(dense(D), layer.block))
    return Unrolled(visits, Sweep(ones, layer.lam * ones, beta)), (L > 0) & (1 / L > 0)


def _distributed(D: Array, size: int) -> tuple[Array, Array]:
    """The ranks of the atoms and their step sizes, for blocks of `size` atoms.

    The atom with the largest inner products chooses first; it joins the block that has room and the
    least sum of squared inner products with this atom.
    """
    dtype, D = D.dtype, widened(D)
    d = D.shape[1]
    size = min(size, d)
    count = -(-d // size)
    norms = column_norms(D)
    U = D / jnp.where(norms > 0, norms, 1)[None]
    with jax.default_matmul_precision("highest"):
        visited = jnp.argsort(-jnp.sum(((U @ U.T) @ U) * U, axis=0))
        room = jnp.full(count, size).at[-1].set(d - (count - 1) * size)
        order = visited[jnp.argsort(_joined(U[:, visited], room))]
        unit = jnp.max(norms)
        parts = _cut((D / jnp.where(unit > 0, unit, 1))[:, order], size)
        largest = jax.vmap(lambda A: jnp.linalg.eigvalsh(A.T @ A)[-1])(parts)
    # Rounding may lower an eigenvalue by about size eps.
    L = largest * (1 + 4 * size * jnp.finfo(D.dtype).eps) * unit * unit
    steps = jnp.repeat(jnp.where(jnp.isinf(1 / L), 0, 1 / L), size)[:d]
    ranks = jnp.argsort(order)
    return ranks.astype(dtype), steps[ranks].astype(dtype)
