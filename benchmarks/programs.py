"""Whether two checkouts compile the same programs for every family of layers.

    python benchmarks/programs.py OTHER_CHECKOUT

Equal programs take equal time to compile and to run. Each checkout compiles the forward pass and
the gradient of each family, 20 x 40, K = 4, a batch of 7; the optimised HLO is compared as text,
without its metadata. It prints what differs, and how many programs agree.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

FAMILIES = (
    "ista fista lista lista_ss lista_cp lista_cpss alista tilista robust_alista step_lista glista "
    "hyperlista lfista lamp lamp_bg tista liht ada_lista na_alista"
).split()
NEEDED = {"liht": {"sparsity": 3}}


def programs() -> dict[str, str]:
    """A digest of every program of the `unrolled` that this process imports."""
    import jax
    import jax.numpy as jnp

    import unrolled as ur

    D = ur.dictionaries.gaussian(jax.random.key(0), 20, 40)
    Y, found = jax.random.normal(jax.random.key(1), (7, 20)), {}
    for name in FAMILIES:
        layer = getattr(ur.layers, name)(4, **NEEDED.get(name, {}))
        params = layer.init(jax.random.key(0), D)
        apply = jax.vmap(layer.apply, (None, None, 0))

        def energy(params, D, Y, apply=apply):
            return jnp.sum(apply(params, D, Y) ** 2)

        for kind, f in {"forward": apply, "gradient": jax.grad(energy)}.items():
            text = jax.jit(f).lower(params, D, Y).compile().as_text()
            text = re.sub(r", metadata=\{.*?\}|HloModule.*\n", "", text)
            text = re.sub(r"(?s)FileNames.*", "", text)
            found[f"{name}, {kind}"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def of_checkout(path: Path) -> dict[str, str]:
    """`programs` of another checkout, in a process of its own."""
    code = f"import sys; sys.path[:0] = [{str(path)!r}, {str(Path(__file__).parent)!r}]\n"
    code += "import json, programs\nprint(json.dumps(programs.programs()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compare this checkout with another one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    other = of_checkout(parser.parse_args().other.resolve())
    ours = of_checkout(Path(__file__).resolve().parents[1])
    different = [name for name in ours if ours[name] != other[name]]
    print("\n".join([*different, f"{len(ours) - len(different)} of {len(ours)} programs agree"]))


if __name__ == "__main__":
    main()
