"""List the families that jax2onnx converts, and the errors of their codes by onnxruntime.

    python benchmarks/onnx_families.py [FAMILY ...]

The script needs jax2onnx, which installs onnxruntime, and prints a table. Each conversion has its
own process, because the converter replaces functions that JAX traces. The script converts a family
for any number of signals; if this fails, it converts the family for 64 signals. The families have 3
steps, a dictionary of 12 x 24 and the params of `init`, in float32.
"""

import argparse
import subprocess
import sys
from importlib.metadata import version

from scale import NEEDS

COUNT, ANY = 64, "any"


def apart(family: str, count: str) -> float:
    """The largest relative difference between codes by onnxruntime and by the library."""
    import jax
    import numpy as np
    import onnxruntime
    from jax2onnx import to_onnx

    import unrolled as ur

    D = ur.dictionaries.gaussian(0, 12, 24)
    Y, _ = ur.problems.sampler(D, COUNT)(jax.random.key(1))
    layer = ur.layers.FAMILIES[family](3, **NEEDS.get(family, {}))
    params = layer.init(jax.random.key(0), D)

    def codes(Y):
        return jax.vmap(lambda y: layer.apply(params, D, y))(Y)

    ours = np.asarray(jax.jit(codes)(Y))
    model = to_onnx(codes, [("n" if count == ANY else COUNT, D.shape[0])])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (theirs,) = session.run(None, {session.get_inputs()[0].name: np.asarray(Y)})
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


def row(family: str) -> str:
    """The number of signals and the error of a converted family, or the reason for a failure."""
    for count in (ANY, str(COUNT)):
        command = [sys.executable, "-W", "ignore", __file__, family, "--count", count]
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            return f"{count} | {float(done.stdout.splitlines()[-1]):.0e}"
    words = [line for line in done.stderr.splitlines() if "Error" in line or "node spec" in line]
    return f"no | {words[-1][-100:] if words else done.returncode}"


def main() -> None:
    """Convert one family for a number of signals, or print the rows of all families."""
    from unrolled.layers import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", help="all by default")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count:
        print(apart(*given.families, given.count))
        return
    print(", ".join(f"{name} {version(name)}" for name in ("jax", "jax2onnx", "onnxruntime")))
    for family in given.families or FAMILIES:
        print(f"{family} | {row(family)}", flush=True)


if __name__ == "__main__":
    main()
