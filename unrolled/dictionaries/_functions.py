"""A dictionary defined by two functions, with products by JAX, or by numpy on the host."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, checked
from unrolled._base.numbers import largest_singular_value, norm
from unrolled.dictionaries._base import Structured, dense, pytree
from unrolled.dictionaries._pairs import InPairs, to_pairs

__all__ = ["Functions", "from_functions"]

Product = Callable[[Any], Any]  # the product of a matrix with a vector

# The two numbers of the adjoint test may differ by this many roundings of their largest size.
_ROUNDINGS = 100
# Factors of the draws of x and r in the test: nonlinear functions may pass a single draw.
_FACTORS = (1, 1), (-2, 1), (1, -1)
_APART = 1e-4  # the largest relative difference of a given norm from the norm of the atom
# Up to this many rows or columns, the norm is computed from the matrix. For larger matrices, this
# many Lanczos steps bound the norm, with this probability of failure.
_SMALL, _STEPS, _CHANCE = 1024, 48, 1e-6
_COLUMNS = 256  # products at a time, to compute the norms of the columns


@pytree(data=("gain", "norms"), static=("forward", "adjoint", "size", "on_host", "is_complex"))
@dataclass(frozen=True, eq=False)
class Functions(Structured):
    """gain times a dictionary that two functions define; made by `from_functions`.

    Two such dictionaries have the same pytree structure, as `vmap` and `scan` require, only if
    their functions are the same objects. A weights file cannot hold such a dictionary, because
    functions are code. An exported program contains the operations of JAX functions.

    Example:
        >>> D = ur.dictionaries.from_functions(jnp.flip, jnp.flip, (3, 3))
        >>> (2 * D @ jnp.array([1.0, 2.0, 3.0])).tolist()
        [6.0, 4.0, 2.0]
    """

    gain: Array  # ()
    norms: Array | None  # (d,), norms of the atoms before the gain
    forward: Product
    adjoint: Product
    size: tuple[int, int]
    on_host: bool
    is_complex: bool = False  # then the functions map pairs, and norms are (d / 2,)

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    @property
    def ndim(self) -> int:
        return 2 + self.gain.ndim

    def synthesize(self, x: Array) -> Array:
        return self.gain * self._product(x, self.forward, self.adjoint, self.size)

    def analyze(self, r: Array) -> Array:
        return self.gain * self._product(r, self.adjoint, self.forward, self.size[::-1])

    def scale(self, c: ArrayLike) -> "Functions":
        return replace(self, gain=self.gain * jnp.asarray(c, self.gain.dtype))

    def column_norms(self) -> Array:
        """The given norms, or norms computed from d products."""
        d, g, dtype = self.size[1], self.block, self.dtype
        if self.norms is not None:
            return jnp.repeat(jnp.abs(self.gain) * self.norms, g)

        def of_atom(i: Array) -> Array:
            return norm(self.synthesize(jax.nn.one_hot(i, d, dtype=dtype)))

        return jnp.repeat(jax.lax.map(of_atom, jnp.arange(0, d, g), batch_size=_COLUMNS), g)

    def spectral_norm(self) -> Array:
        r"""norm(D, 2); if m and d exceed 1024, a bound that holds with probability 1 - 1e-6.

        Let s be the largest singular value of the bidiagonal matrix after k = 48 steps of Golub and
        Kahan from a random vector, a Lanczos process on D'D. The bound is s / sqrt(1 - e). The
        probability that s^2 is more than a relative e below norm(D)^2 is at most
        :math:`1.648 \sqrt d \exp(-\sqrt e (2 k - 1))`.

        Reference: Kuczynski, Wozniakowski (1992), Theorem 4.2, which assumes exact arithmetic.
        """
        if min(self.size) <= _SMALL:
            return largest_singular_value(dense(self))
        e = (math.log(1.648 * math.sqrt(self.size[1]) / _CHANCE) / (2 * _STEPS - 1)) ** 2
        return largest_singular_value(self._bidiagonal()) / math.sqrt(1 - e)

    def _bidiagonal(self) -> Array:
        """The (k, k) bidiagonal matrix of D after k steps of Golub and Kahan.

        If the steps end early, the remaining entries are zero.
        """

        def unit(v: Array) -> tuple[Array, Array]:
            length = norm(v)
            return v / jnp.where(length > 0, length, 1), length

        def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Any]:
            u, v = state
            u, alpha = unit(self.synthesize(v) - u)
            v, beta = unit(self.analyze(u) - alpha * v)
            return (beta * u, v), (alpha, beta)

        v = jax.random.normal(jax.random.key(0), self.size[1:], self.dtype)
        start = jnp.zeros(self.size[0], self.dtype), unit(v)[0]
        _, (alphas, betas) = programs.scan(step, start, length=_STEPS)
        return jnp.diag(alphas) + jnp.diag(betas[:-1], 1)

    def _product(self, v: Array, product: Product, adjoint: Product, size: tuple) -> Array:
        if self.on_host:
            return _host_product().bind(v, product=product, adjoint=adjoint, size=size)
        with jax.numpy_dtype_promotion("standard"):  # the functions may contain other arrays
            return jnp.asarray(product(v)).astype(v.dtype)


@functools.cache
def _host_product() -> Any:
    """A linear primitive of JAX with products by numpy; `jax.pure_callback` has no adjoint.

    The primitive maps the vectors in the last axis, (..., d) -> (..., m).
    """
    from jax.extend.core import Primitive  # not loaded with jax

    bound = Primitive("host_product")

    def transposed(image: Array, v: Any, *, product: Product, adjoint: Product, size: tuple) -> Any:
        return [bound.bind(image, product=adjoint, adjoint=product, size=size[::-1])]

    def batched(args: Any, axes: Any, **options: Any) -> tuple[Array, int]:
        return bound.bind(jnp.moveaxis(args[0], axes[0], 0), **options), 0

    bound.def_impl(_on_host)
    bound.def_abstract_eval(lambda v, *, size, **_: v.update(shape=(*v.shape[:-1], size[0])))
    ad.deflinear2(bound, transposed)
    batching.primitive_batchers[bound] = batched
    mlir.register_lowering(bound, mlir.lower_fun(_on_host, multiple_results=False))
    return bound


def _on_host(v: Array, *, product: Product, adjoint: Product, size: tuple[int, int]) -> Array:
    image = jax.ShapeDtypeStruct((*v.shape[:-1], size[0]), v.dtype)

    def products(v: Any) -> np.ndarray:
        rows = np.asarray(v).reshape(-1, size[1])
        images = np.empty((len(rows), size[0]), image.dtype)
        for row, one in zip(images, rows):
            row[:] = product(one)
        return images.reshape(image.shape)

    return programs.host_callback(products, image, v)


@checked
def from_functions(
    synthesize: Product,
    analyze: Product,
    shape: tuple[int, int],
    *,
    norms: ArrayLike | None = None,
    complex: bool = False,
) -> Functions:
    r"""The dictionary with D x = synthesize(x) and D' r = analyze(r); its matrix is never stored.

    Both functions must use JAX, or both must use numpy. Numpy functions run on the host, one vector
    at a time, also under `jit`, `vmap` and `grad`, and must not call JAX. For a
    `scipy.sparse.linalg.LinearOperator` A, use `from_functions(A.matvec, A.rmatvec, A.shape)`.
    With complex=True the functions map complex vectors, and the dictionary has the signals and
    codes of `Complex`, in pairs inside; D' is the conjugate transpose.
    Gradients exist for x, r and the gain of the dictionary, but not for arrays inside the
    functions.

    **`from_functions` tests the adjoint**, in the dtype in which JAX computes. For random x and r,
    the test checks

    .. math:: \langle synthesize(x), r \rangle = \langle x, analyze(r) \rangle

    to 100 roundings of the larger of norm(D x) norm(r) and norm(x) norm(D' r), in the complex inner
    product if complex=True. The test also finds functions that are not linear. The test misses
    smaller faults, such as one wrong entry among 100,000 entries in float32.

    Args:
        synthesize: (d,) -> (m,), linear; arrays inside the function must not be traced.
        analyze: (m,) -> (d,), the adjoint of synthesize.
        shape: (m, d); complex numbers count as one.
        norms: (d,), the Euclidean norms of the atoms, if you know them; three norms are checked.
            Without `norms`, every function that needs the norms computes d products.
        complex: whether the functions map complex vectors.

    Returns:
        A dictionary in the default float of JAX; `astype` changes the dtype. `Composed` and
        `Masked` accept the dictionary like any other.

    Products, norms of the atoms and norm(D, 2) are enough for the pursuits `threshold`, `ista`,
    `fista`, `half_quadratic`, `lasso`, `lasso_path`, `bpdn`, `omp` and the pursuits of chains, and
    for the layers `ista`, `fista`, `step_lista`, `lista_cp`, `lista_cpss`, `lfista_cp`, `glista`,
    `tilista`, `ada_lista`, `lamp` and `lamp_bg`, and for `lasso_batch` with more than 512 atoms
    unless the signals are many. `omp_batch` without weights uses only products if the matrix has
    more than 2^25 entries. `omp_batch` otherwise, `basis_pursuit`, the coherences,
    `frobenius_weights` and `init` of other families compute the matrix with min(m, d) products.

    Raises:
        TypeError: a function returns complex numbers without complex=True, one function uses JAX
            and the other numpy, or a function contains traced values.
        ValueError: results have another shape or are not finite, the functions are not adjoint (the
            message shows both numbers), or norms differ from the norms of the atoms.

    Example:
        >>> import scipy.sparse.linalg
        >>> A = scipy.sparse.linalg.aslinearoperator(np.array([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]]))
        >>> D = ur.dictionaries.from_functions(A.matvec, A.rmatvec, A.shape)
        >>> (D @ jnp.array([1.0, 1.0, 0.0])).tolist(), (jnp.ones(2) @ D).tolist()
        ([3.0, 2.0], [3.0, 2.0, 2.0])
    """
    where = "from_functions"
    sizes = checks.as_indices(shape, "shape", where, least=1)
    if len(sizes) != 2:
        raise ValueError(f"{where}: shape is {sizes}; expected (m, d)")
    m, d = sizes
    rng, dtype = np.random.default_rng(0), np.dtype(jnp.result_type(float))
    x, r = (_random(rng, n, dtype, complex) for n in (d, m))
    on_host = not (_is_traceable(synthesize, x) and _is_traceable(analyze, r))
    image = partial(_image, product=synthesize, name="synthesize", n=m, on_host=on_host)
    back = partial(_image, product=analyze, name="analyze", n=d, on_host=on_host)
    for a, b in _FACTORS:
        _check_adjoint(a * x, b * r, image(a * x), back(b * r), dtype)
    if norms is not None:
        norms = _norms(norms, image, d, x.dtype, rng).astype(dtype)
    gain = jnp.ones((), dtype)
    if not complex:
        return Functions(gain, norms, synthesize, analyze, (m, d), on_host)
    pair = InPairs(synthesize), InPairs(analyze)
    return Functions(gain, norms, *pair, (2 * m, 2 * d), on_host, is_complex=True)


def _random(rng: Any, n: int, dtype: np.dtype, complex: bool) -> np.ndarray:
    v = rng.normal(size=n).astype(dtype)
    return v + 1j * rng.normal(size=n).astype(dtype) if complex else v


def _check_adjoint(
    x: np.ndarray, r: np.ndarray, Dx: np.ndarray, back: np.ndarray, dtype: np.dtype
) -> None:
    """Raise ValueError unless <Dx, r> = <x, back> to the rounding of products in the dtype."""
    left, right = np.vdot(r, Dx), np.vdot(back, x)
    most = max(_length(Dx) * _length(r), _length(x) * _length(back))
    if not abs(left - right) <= _ROUNDINGS * np.finfo(dtype).eps * most:
        raise ValueError(
            f"from_functions: analyze is not the adjoint of synthesize: for random x and r "
            f"<synthesize(x), r> = {left:.6g} and <x, analyze(r)> = {right:.6g}; expected equal "
            f"numbers to the rounding of {dtype}"
        )


def _is_traceable(product: Product, v: np.ndarray) -> bool:
    """Whether JAX can trace the product; a product that cannot be traced runs on the host."""
    try:
        with jax.numpy_dtype_promotion("standard"):
            jax.eval_shape(product, v)
    except Exception:  # any exception; a fault of the function is raised again on the host
        return False
    return True


def _image(v: np.ndarray, *, product: Product, name: str, n: int, on_host: bool) -> np.ndarray:
    """The product for a known vector, in float64.

    Raises:
        TypeError, ValueError: as in `from_functions`.
    """
    where = "from_functions"
    if on_host:
        image = product(v)
        if isinstance(image, jax.Array):
            raise TypeError(
                f"{where}: {name} returns an array of JAX but the other function cannot be traced; "
                "expected two functions of JAX, or two of numpy"
            )
    else:
        with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
            image = jax.jit(product)(v)
        checks.on_host(image, where, f"what {name} holds")
    image = np.asarray(image)
    if image.shape != (n,):
        raise ValueError(
            f"{where}: {name} returns the shape {image.shape} for {v.shape}; expected ({n},)"
        )
    kinds = "fiubc" if v.dtype.kind == "c" else "fiub"
    if image.dtype.kind not in kinds and image.dtype != jnp.bfloat16:
        hint = ", try complex=True" if image.dtype.kind == "c" else ""
        raise TypeError(f"{where}: {name} returns {image.dtype}; expected real numbers{hint}")
    is_complex = image.dtype.kind == "c"
    checks.finite(to_pairs(image) if is_complex else image, f"what {name} returns", where)
    return image.astype(np.result_type(v.dtype, float))


def _length(v: np.ndarray) -> float:
    return float(np.linalg.norm(v.astype(np.result_type(v.dtype, float))))


def _norms(norms: ArrayLike, image: Product, d: int, dtype: np.dtype, rng: Any) -> Array:
    """The given norms, after a comparison of three of them with the norms of the atoms."""
    where = "from_functions"
    norms = checks.as_float(norms, "norms", where)
    if norms.shape != (d,):
        raise ValueError(f"{where}: norms have shape {norms.shape}; expected ({d},)")
    checks.nonnegative(norms, "norms", where)
    for i in rng.permutation(d)[:3]:
        atom, given = _length(image(np.eye(1, d, i, dtype)[0])), float(norms[i])
        if abs(atom - given) > _APART * max(atom, given):
            raise ValueError(f"{where}: norms[{i}] is {given:.6g} but atom {i} has norm {atom:.6g}")
    return norms
