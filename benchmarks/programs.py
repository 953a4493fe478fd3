"""Check whether two checkouts compile the same programs for all families and for the LASSO.

    python benchmarks/programs.py OTHER_CHECKOUT

Equal programs take equal time to compile and to run. Each checkout compiles the forward pass and
the gradient of each family (20 x 40, K = 4, a batch of 7), and of the pursuits with a penalty. The
script compares the optimised HLO as text, without its metadata. It prints the names of the programs
that differ, and the number of programs that agree.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

# Options without a default.
NEEDED = {"liht": {"sparsity": 3}}


def digest(text: str) -> str:
    """A digest of the computations of an HLO module alone.

    The names of files and lines are metadata of the operations and, in later versions of JAX,
    tables before the first computation.
    """
    computations = re.findall(r"(?ms)^(?:ENTRY |%).*?^\}", text)
    if not any(computation.startswith("ENTRY") for computation in computations):
        raise ValueError(f"no program in the text of a compiled function: {text[:200]!r}")
    bare = re.sub(r', metadata=\{(?:"[^"]*"|[^"{}])*\}', "", "\n".join(computations))
    return hashlib.sha256(bare.encode()).hexdigest()


def programs() -> dict[str, str]:
    """A digest of every program of the `unrolled` that this process imports."""
    import jax
    import jax.numpy as jnp

    import unrolled as ur

    D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
    Y, digests = jax.random.normal(jax.random.key(1), (7, 20)), {}
    for name, family in ur.layers.FAMILIES.items():
        layer = family(4, **NEEDED.get(name, {}))
        params = layer.init(jax.random.key(0), D)
        apply = jax.vmap(layer.apply, (None, None, 0))

        def energy(params, D, Y, apply=apply):
            return jnp.sum(apply(params, D, Y) ** 2)

        for kind, f in {"forward": apply, "gradient": jax.grad(energy)}.items():
            text = jax.jit(f).lower(params, D, Y).compile().as_text()
            digests[f"{name}, {kind}"] = digest(text)
    p, lam, x = ur.pursuit, jnp.full(40, 0.1), jnp.ones(40)
    pursuits = {
        "ista": lambda D, y: p.ista(D, y, lam),
        "fista": lambda D, y: p.fista(D, y, 0.1),
        "lasso": lambda D, y: p.lasso(D, y, 0.1),
        "lasso, gradient": jax.grad(lambda D, y: jnp.sum(p.lasso(D, y, lam).x ** 2)),
        "elastic net": lambda D, y: p.lasso(D, y, lam, l2=0.1),
        "lasso, x >= 0": lambda D, y: p.lasso(D, y, ratio=0.1, nonnegative=True),
        "lam_max": p.lam_max,
        "gap": lambda D, y: p.duality_gap(D, y, x, lam),
        "objective": lambda D, y: p.lasso_objective(D, y, x, lam),
    }
    for name, f in pursuits.items():
        digests[f"pursuit: {name}"] = digest(jax.jit(f).lower(D, Y[0]).compile().as_text())
    return digests


def of_checkout(path: Path) -> dict[str, str]:
    """The result of `programs` for another checkout, in a separate process."""
    code = f"import sys; sys.path[:0] = [{str(path)!r}, {str(Path(__file__).parent)!r}]\n"
    code += "import json, programs\nprint(json.dumps(programs.programs()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compare this checkout with another checkout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    other = of_checkout(parser.parse_args().other.resolve())
    ours = of_checkout(Path(__file__).resolve().parents[1])
    names = sorted(ours.keys() | other.keys())  # a family that is in one checkout alone differs
    different = [name for name in names if ours.get(name) != other.get(name)]
    print("\n".join([*different, f"{len(names) - len(different)} of {len(names)} programs agree"]))


if __name__ == "__main__":
    main()
