"""The effect of the precision of products and params on codes, certificates and `converged`.

    python benchmarks/precision.py

A CPU computes float32 products and ignores the requested precision. The script therefore emulates
the precision of other devices: it rounds the operands of every product to a format and sums in
float32. Pursuits and certificates request the highest precision on every device; their rows show
the benefit of this request.
"""

import argparse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax._src.lax import lax as products  # `@` looks up its product here

import unrolled as ur

HERE = Path(__file__).parent
# Bits after the leading bit of an operand of a product, and of params.
FORMATS = {
    "float32": (23, 23),
    "TF32 products": (10, 23),
    "bfloat16 products": (7, 23),
    "bfloat16 params": (23, 7),
}


def rounded(x: Any, bits: int) -> Any:
    """x rounded to `bits` bits after the leading bit; float32 has 23 bits."""
    return x if bits >= 23 else lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits)


@contextmanager
def products_of(bits: int) -> Iterator[None]:
    """Round the operands of all products that are compiled in the block to `bits` bits."""
    exact = products.dot_general

    def inexact(lhs, rhs, *arguments, **options):
        return exact(rounded(lhs, bits), rounded(rhs, bits), *arguments, **options)

    jax.clear_caches()
    products.dot_general = inexact
    try:
        yield
    finally:
        products.dot_general = exact
        jax.clear_caches()


def coded(layer: Any, params: Any, D: Any, Y: Any, bits: int, stored: int) -> np.ndarray:
    """The codes of a layer with products of `bits` bits and params of `stored` bits."""
    params = jax.tree.map(lambda leaf: rounded(leaf, stored), params)
    with products_of(bits):
        return np.asarray(jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y), float)


def certified_class(n: int, depth: int) -> dict[str, dict]:
    """Errors and bounds of LISTA-CP on codes that theory certifies: 64 x 128, two nonzeros."""
    D = ur.dictionaries.identity_hadamard(64)
    rng, X = np.random.default_rng(0), np.zeros((n, 128), np.float32)
    for x in X:
        x[rng.permutation(128)[:2]] = rng.uniform(-1, 1, 2)
    params = ur.analytic.lista_cp(D, depth=depth, sparsity=2, bound=1.0)
    bound = ur.theory.certify(ur.lista_cp(depth), params, D, sparsity=2, bound=1.0).error[-1]
    Y, rows = X @ np.asarray(D).T, {}
    for name, bits in FORMATS.items():
        codes = coded(ur.lista_cp(depth), params, D, Y, *bits)
        errors = np.abs(codes - X).sum(1)
        rows[name] = {
            "largest l1 error": float(errors.max()),
            "bound": float(bound),
            "beyond it": float((errors > bound).mean()),
            "with a wrong entry": float(((codes != 0) & (X == 0)).any(1).mean()),
        }
    return rows


def benchmark(n: int, m: int, d: int) -> dict[str, dict]:
    """Errors of calibrated ALISTA with support selection, and the share of certified codes."""
    D, key = ur.dictionaries.gaussian(0, m, d), jax.random.key(1)
    Y, X = (np.asarray(a) for a in ur.problems.sampler(D, 2 * n)(key))
    layer = ur.alista(16, support=(0.012, 0.12))
    params = ur.analytic.calibrate(layer, layer.init(None, D), D, Y[:n], X[:n])
    Y, X, rows = Y[n:], X[n:].astype(float), {}
    for name, bits in FORMATS.items():
        codes = coded(layer, params, D, Y, *bits)
        errors, sizes = np.sum((codes - X) ** 2, 1), np.sum(X**2, 1)
        proved = ur.theory.certify_code(D, Y, codes.astype(np.float32)).certified(Y)
        rows[name] = {
            "NMSE dB": 10 * float(np.log10(errors.sum() / sizes.sum())),
            "median dB": 10 * float(np.median(np.log10(errors / sizes))),
            "certified": float(np.asarray(proved).mean()),
        }
    return rows


def pursuits(n: int, m: int, d: int, tol: float) -> dict[str, dict]:
    """Convergence of FISTA to a relative gap, and the gaps of its codes in float64."""
    D = ur.dictionaries.gaussian(0, m, d)
    Y = np.asarray(ur.problems.sampler(D, n)(jax.random.key(1))[0])
    lam = 0.1 * float(np.median(np.abs(Y @ np.asarray(D)).max(1)))
    wide_D, wide_Y = np.asarray(D, float), Y.astype(float)
    rows = {}
    for name, (bits, _) in FORMATS.items():
        if name == "bfloat16 params":  # a pursuit has no params
            continue
        with products_of(bits):
            solve = jax.vmap(lambda y: ur.pursuit.fista(D, y, lam, tol=tol, max_steps=1000))
            found = jax.jit(solve)(Y)
        codes, converged = np.asarray(found.x, float), np.asarray(found.converged)
        R = wide_Y - codes @ wide_D.T
        s = np.minimum(1, lam / np.abs(R @ wide_D).max(1))
        inner = np.sum(codes * (R @ wide_D), 1)
        gaps = (1 - s) ** 2 * np.sum(R**2, 1) / 2 + lam * np.abs(codes).sum(1) - s * inner
        gaps /= np.sum(wide_Y**2, 1) / 2
        rows[name] = {
            "tol": tol,
            "converged": float(converged.mean()),
            "largest gap of these": float(gaps[converged].max()) if converged.any() else None,
            "largest gap": float(gaps.max()),
        }
    return rows


def main() -> None:
    """Print the rows and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE / "precision.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = {
        "certified class, 64 x 128, s = 2": certified_class(200, 40),
        "ALISTA-SS calibrated, 250 x 500": benchmark(200, 250, 500),
        "FISTA, 250 x 500": pursuits(50, 250, 500, 1e-5),
    }
    for what, formats in rows.items():
        for name, row in formats.items():
            print(f"{what:36}{name:20}{row}", flush=True)
    from _measure import save

    save(given.output, rows)


if __name__ == "__main__":
    main()
