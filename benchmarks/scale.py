"""Bits, time and memory on several devices, with exported files and for large dictionaries.

    python benchmarks/scale.py [PART ...] [--only WORDS] [--output FILE]

large      seconds and memory of every function of theory and analytic, for a float32 dictionary of
           64 x 100,000 and for 16 filters on a picture of 512 x 512 pixels
devices    hashes of a short run on 1, 2, 4 and 8 forced devices; collectives of a step by its HLO
processes  hashes of the same run in 1 process of 1 device, 2 of 4 devices and 4 of 1 device
export     milliseconds of an exported file and of the jit of the library, also without the library
memory     temporaries of a step with 4 x 250 signals and with one batch of 1,000 signals
cost       milliseconds of these steps and of their matrix products
atoms      training on 64 x 100,000, with the atoms on four devices and on one device
coherence  seconds and memory of the coherence programs, up to a sample of 2,000 x 4,000

The script writes a row when it is done, and does not repeat a row that did not fail. Each row runs
in new processes. Memory is the peak of RssAnon, which excludes mapped pages of libraries. On a busy
machine the wall time is unreliable, so a row also has the seconds of both cores. The script does
not measure a speed-up by devices, because forced devices share two cores.
"""

import argparse
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _large import CALLS, OF_FILTERS, OF_MATRICES, large, measured

HERE = Path(__file__).parent
LIMIT = 1800  # seconds of a process


# Runs on devices and processes.

SIZES = (7, 16, 33, 37, 64)
COUNTS = (1, 2, 4, 8)
LAYOUTS = ((1, 1), (2, 4), (4, 1))
DEPTH, STEPS, BATCHES = 3, 4, 8
NEEDS = {"tista": {"noise": 0.01}, "liht": {"sparsity": 3}}
NEEDS |= {"vamp_bg": {"noise_ratio": 0.3}, "na_alista": {"units": 3, "threshold": 0.3}}
NEEDS |= dict.fromkeys(("lista_ss", "lista_cpss", "glista"), {"support": (0.1, 0.3)})
MANY = ("alista", "lista_cp, untied", "lista, learned D", "ista, lbfgs", "lista_cp, curriculum")


def run_of(case: str, size: int, mesh):
    """A short training run with 8 batches of `size` signals per step."""
    import jax
    import optax

    import unrolled as ur

    family, _, how = case.partition(", ")
    options = {"tied": False} if how in ("untied", "curriculum") else {}
    layer = ur.layers.FAMILIES[family](DEPTH, **NEEDS.get(family, {}), **options)
    D = ur.dictionaries.gaussian(0, 12, 24)
    given = layer, layer.init(jax.random.key(1), D), D, ur.problems.sampler(D, size)
    shared = {"key": 0, "accumulate": BATCHES, "mesh": mesh, "evaluate_every": 2}
    if how == "curriculum":
        stages = {"steps_per_stage": 2, "stages": (1.0,)}
        return ur.training.curriculum(*given, **stages, **shared)
    optimizer = optax.lbfgs() if how == "lbfgs" else optax.adam(1e-2)
    learned = {"learn_dictionary": how == "learned D"}
    return ur.fit(*given, optimizer=optimizer, steps=STEPS, **learned, **shared)


def bits(cases: str, meshed: str) -> dict[str, str]:
    """The hashes of params, best params, D, losses and validation losses of some runs."""
    import warnings

    import jax

    import unrolled as ur

    warnings.simplefilter("ignore")
    mesh = jax.make_mesh((len(jax.devices()),), ("data",)) if meshed == "mesh" else None
    hashes = {}
    for case in cases.split("; "):
        family, _, size = case.rpartition(": ")
        run = run_of(family, int(size), mesh)
        validations = np.array([record.validation for record in run.history.records])
        whole = run.params, run.best, run.D, run.history.loss, validations
        hashes[case] = ur.training.digest(whole)[:16]
    return hashes


def devices(name: str) -> dict:
    """The hashes of every case without a mesh and on 1 to 8 devices, or collectives of a step."""
    if name.startswith("step of "):
        return collectives(*name.removeprefix("step of ").rsplit(" on ", 1))
    from unrolled.layers import FAMILIES

    cases = with_size([*MANY, *(family for family in FAMILIES if family not in MANY)], name)
    begun = {"no mesh": start(["bits", cases, "none"])}
    begun |= {f"{p} devices": start(["bits", cases, "mesh"], forced(p)) for p in COUNTS}
    return compared({where: ended(one) for where, one in begun.items()})


def with_size(cases: Sequence[str], name: str) -> str:
    """The cases with the batch size at the beginning of the name of a row."""
    return "; ".join(f"{case}: {name.split()[0]}" for case in cases)


def compared(answers: dict[str, dict]) -> dict:
    """The number of cases with equal bits everywhere, and the hashes of the different cases."""
    if failed := {where: found["failed"] for where, found in answers.items() if "failed" in found}:
        return {"failed": failed}
    first, *others = answers.values()
    different = {
        case: {where: hashes[case] for where, hashes in answers.items()}
        for case in first
        if any(hashes[case] != first[case] for hashes in others)
    }
    equal = {case: hash for case, hash in first.items() if case not in different}
    return {"on": ", ".join(answers), "equal": len(equal), "different": different, "hashes": equal}


def collectives(case: str, count: str) -> dict:
    """The exchanges of a compiled training step by kind: their number and bytes per device."""
    with tempfile.TemporaryDirectory() as folder:
        flags = forced(int(count.split()[0]), dumped(folder))
        answer = process(["bits", case, "mesh"], flags)
        if "failed" in answer:
            return answer
        (program,) = Path(folder).glob("*jit_update.*after_optimizations.txt")
        return exchanges(program.read_text())


def exchanges(program: str) -> dict[str, dict[str, int]]:
    """The collectives of an HLO program by kind: their number and the bytes of their results."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found: dict[str, dict[str, int]] = {}
    for shapes, kind in re.findall(rf"= (\S+|\([^=]*\)) ({kinds})(?:-start)?\(", program):
        row = found.setdefault(kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        for dtype, sides in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shapes):
            bits = int(re.sub(r"\D", "", dtype))
            row["bytes"] += bits // 8 * int(np.prod([int(n) for n in sides.split(",") if n]))
    return found


def processes(name: str) -> dict:
    """The hashes of some cases in every layout of processes and devices."""
    cases = with_size(MANY, name)
    return compared({f"{n} x {p}": together(cases, n, p) for n, p in LAYOUTS})


def together(cases: str, n: int, p: int) -> dict:
    """The output of n processes of p devices; if outputs differ, one that differs or failed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = ["bits", cases, "mesh"]
    started = [
        start(arguments + (["--joined", f"{port}/{n}/{i}"] if n > 1 else []), forced(p))
        for i in range(n)
    ]
    answers = [ended(one) for one in started]
    return next((a for a in answers if "failed" in a or a != answers[0]), answers[0])


def forced(p: int, *flags: str) -> dict[str, str]:
    """The environment of a process with p devices."""
    return {"XLA_FLAGS": " ".join((f"--xla_force_host_platform_device_count={p}", *flags))}


def dumped(folder: str) -> str:
    """The flags with which XLA writes the program of a training step into a folder."""
    return f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_update"


# Exported files.

VERSIONS = ("0.10.0", "0.9.2", "0.8.3")

WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unrolled":
            raise ImportError("there is no unrolled here")
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[3])
import json, zipfile
import jax, jax.export, numpy as np
from _measure import median_ms
call = jax.jit(jax.export.deserialize(bytearray(zipfile.ZipFile(sys.argv[1]).read("program"))).call)
Y = np.load(sys.argv[2])
run = {"file": lambda: jax.block_until_ready(call(Y))}
assert not [name for name in sys.modules if name.startswith("unrolled")]
print(json.dumps(median_ms(run, rounds=5, calls=max(3, 3000 // len(Y)))))
"""


OTHER = """
import sys, zipfile
import jax, jax.export, numpy as np
program = zipfile.ZipFile(sys.argv[1]).read("program")
X = jax.export.deserialize(bytearray(program)).call(np.load(sys.argv[2]))
print(jax.__version__, float(np.abs(X - np.load(sys.argv[3])).max()))
"""


def export(name: str) -> dict:
    """Milliseconds for codes by a file and by the library in turns, then without the library.

    A row "under jax V" installs version V of jax and runs the file with this version.
    """
    import statistics

    import jax
    from _measure import all_ms

    import unrolled as ur

    n = 5 if name.startswith("under") else int(name.split()[0].replace(",", ""))
    D = ur.dictionaries.gaussian(0, 250, 500)
    layer = ur.alista(16, support=(0.012, 0.12))
    params = layer.init(None, D)
    Y = np.asarray(ur.problems.sampler(D, n)(jax.random.key(1))[0])
    with tempfile.TemporaryDirectory() as folder:
        path = ur.export.save(Path(folder) / "net.stablehlo", layer, params, D)
        np.save(Path(folder) / "Y.npy", Y)
        if name.startswith("under"):
            np.save(Path(folder) / "X.npy", ur.export.load(path).run(Y))
            return under(name.split()[-1], Path(folder))
        run, ours = ur.export.load(path).run, jax.jit(jax.vmap(lambda y: layer.apply(params, D, y)))
        calls = {
            "library": lambda: jax.block_until_ready(ours(Y)),
            "file": lambda: jax.block_until_ready(run(Y)),
        }
        apart = float(np.abs(np.asarray(run(Y)) - np.asarray(ours(Y))).max())
        times = all_ms(calls, rounds=9, calls=max(3, 3000 // n))
        code = [sys.executable, "-c", WITHOUT, str(path), str(Path(folder) / "Y.npy"), str(HERE)]
        alone = subprocess.run(code, capture_output=True, text=True, check=True, cwd=folder)
        size = path.stat().st_size
    row = {"MB of the file": round(size / 1e6, 3), "largest difference of codes": apart}
    for which, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        row[f"{which}, ms"] = round(middle, 3)
        row[f"{which}, quartiles"] = [round(low, 3), round(high, 3)]
    return row | {"without the library, ms": round(json.loads(alone.stdout)["file"], 3)}


def under(version: str, folder: Path) -> dict:
    """The result of a file under another version of jax, which pip installs into a folder."""
    packages = (f"jax=={version}", f"jaxlib=={version}")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(folder / "jax"),
    ]
    subprocess.run([*pip, *packages], check=True)
    files = (str(folder / name) for name in ("net.stablehlo", "Y.npy", "X.npy"))
    environment = os.environ | {"PYTHONPATH": str(folder / "jax")}
    code = [sys.executable, "-c", OTHER, *files]
    done = subprocess.run(code, capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line]
        return {"refused": lines[-1] if lines else str(done.returncode)}
    ran, apart = done.stdout.split()
    return {"version": ran, "largest difference of codes": float(apart)}


# Memory of a step, and the coherence programs.


def memory(name: str) -> dict:
    """The temporaries, in MB, of a compiled training step of ALISTA, 250 x 500, K = 16."""
    with tempfile.TemporaryDirectory() as folder:
        answer = process(["step", name], {"XLA_FLAGS": dumped(folder)})
        if "failed" in answer:
            return answer
        (buffers,) = Path(folder).glob("*jit_update.*buffer-assignment.txt")
        sizes = re.findall(r"size (\d+), preallocated-temp", buffers.read_text())
    return {"temporaries, MB": round(sum(map(int, sizes)) / 1e6, 1)} | answer


def step(name: str) -> dict:
    """A run of a few training steps with `n x batch` signals."""
    import optax

    import unrolled as ur

    n, size = (int(part.replace(",", "")) for part in name.split(" x "))
    D = ur.dictionaries.gaussian(0, 250, 500)
    layer = ur.alista(16, support=(0.012, 0.12))
    given = layer, layer.init(None, D), D, ur.problems.sampler(D, size)
    options = {"optimizer": optax.adam(1e-3), "steps": 10, "key": 0, "evaluate_every": 10}
    return measured(lambda: ur.fit(*given, accumulate=n, **options))


def cost(name: str) -> dict:
    """Milliseconds of a training step of a family and of its matrix products, in turns."""
    import statistics
    import warnings

    import jax
    import optax

    import unrolled as ur

    warnings.simplefilter("ignore")
    family, _, sizes = name.partition(", ")
    n, size = (int(part.replace(",", "")) for part in sizes.split(" x "))
    D = ur.dictionaries.gaussian(0, 250, 500)
    layer = ur.alista(16, support=None) if family == "alista" else ur.lista_cp(16, tied=False)
    params = ur.layers.unstack(layer.init(None, D))  # unstacked steps, which run faster than a scan
    Y, X = ur.problems.sampler(D, n * size)(jax.random.key(1))
    if family == "alista":  # W has no gradient

        @jax.jit
        def bare(r):
            for _ in range(2 * 16):
                r = (r @ D) @ D.T / 8
            return r
    else:
        from training import products

        chain = products(params, D, Y)
        bare = lambda Y: chain()  # noqa: E731
    spent: dict[str, list[float]] = {"products": [], "step": []}
    at = [0.0]

    def turn(record, params):
        """Run the products ten times after every ten training steps."""
        now = time.perf_counter()
        spent["step"].append((now - at[0]) / 10)
        for _ in range(10):
            jax.block_until_ready(bare(Y))
        at[0] = time.perf_counter()
        spent["products"].append((at[0] - now) / 10)

    how = dict(optimizer=optax.adam(1e-4), steps=100, key=0, evaluate_every=10, accumulate=n)
    given = layer, params, D, ur.problems.resampler(Y, X, size)
    ur.fit(*given, **how, validation=(Y[:8], X[:8]), callbacks=[turn])
    row = {f"{w}, ms": round(1e3 * statistics.median(v[2:]), 1) for w, v in spent.items()}
    return row | {"step / products": round(row["step, ms"] / row["products, ms"], 3)}


def atoms(name: str) -> dict:
    """The bytes of the arrays on each device, and the losses."""
    devices = name.partition(" ")[0]
    return process(["trained", devices], forced(int(devices)))


def trained(devices: str, count: int = 100_000, steps: int = 4) -> dict:
    """Train LISTA-CP and its D, 64 x `count`, for some steps on devices that share the atoms."""
    import jax
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    import unrolled as ur

    mesh = jax.make_mesh((1, int(devices)), ("data", "atoms"))
    columns = NamedSharding(mesh, PartitionSpec(None, "atoms"))
    D = jax.device_put(ur.dictionaries.gaussian(0, 64, count), columns)
    layer, held = ur.lista_cp(3), []
    start = layer.init(None, D)
    params = jax.tree.map(
        lambda leaf: jax.device_put(leaf, columns) if leaf.ndim > 1 else leaf, start
    )
    del start
    sample = ur.problems.sampler(D, 16, probability=1e-4)

    def watch(record, params):
        on_mesh = [x for x in jax.live_arrays() if isinstance(x.sharding, NamedSharding)]
        numbers = [x for x in on_mesh if x.dtype.name == "float32"]
        held.append(sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in numbers))

    how = dict(optimizer=optax.adam(1e-6), steps=steps, key=0, learn_dictionary=True, mesh=mesh)
    checked = sample(jax.random.key(1))
    found = ur.fit(layer, params, D, sample, validation=checked, callbacks=[watch], **how)
    W = found.params.shared.W
    return {
        "W, MB a device": round(4e-6 * math.prod(W.sharding.shard_shape(W.shape)), 1),
        "arrays on the mesh, MB a device": round(max(held) / 1e6, 1),
        "losses": found.history.loss.tolist(),
    }


def coherence(name: str) -> dict:
    """Seconds and memory of the programs of all atoms, or of the first 16 atoms, in float64."""
    import jax
    from coherence import gaussian

    from unrolled import theory

    shape, _, some = name.partition(", ")
    m, d = map(int, shape.split(" x "))
    atoms = [*range(0, d, d // 16)][:16] if some else None
    jax.config.update("jax_enable_x64", True)
    D, found = gaussian(m, d), []
    row = measured(lambda: found.append(theory.generalized_coherence(D, atoms=atoms)))
    upper, lower = (np.asarray(v) for v in (found[0].per_atom_upper, found[0].per_atom_lower))
    gap = float(((upper - lower) / upper).max())
    return row | {"atoms": len(upper), "largest relative gap": gap, "holds": bool(found[0].holds)}


# The rows.


def rows() -> dict[str, list[str]]:
    """The names of all rows of each part."""
    both = {name: ("atoms", "filters") for name in CALLS}
    both |= dict.fromkeys(OF_MATRICES, ("atoms",)) | dict.fromkeys(OF_FILTERS, ("filters",))
    sizes = [f"{size} signals a batch" for size in SIZES]
    steps = [f"step of lista_cp, untied: 33 on {p} devices" for p in COUNTS]
    shapes = ("250 x 500", "500 x 1000", "1000 x 2000", "2000 x 4000, a sample")
    return {
        "large": [f"{name} on {of}" for name, where in both.items() for of in where],
        "devices": [*steps, *sizes],
        "processes": sizes,
        "export": ["1 signal", "1,000 signals", *(f"under jax {v}" for v in VERSIONS)],
        "memory": ["1 x 1,000", "4 x 250"],
        "cost": [f"{f}, {s}" for f in ("alista", "lista_cp") for s in ("1 x 1,000", "4 x 250")],
        "atoms": ["1 device", "4 devices"],
        "coherence": [*shapes],
    }


IN_THIS_PROCESS = {"devices": devices, "processes": processes, "memory": memory, "atoms": atoms}
IN_ANOTHER = {
    "large": large,
    "export": export,
    "coherence": coherence,
    "cost": cost,
    "step": step,
    "trained": trained,
}


def process(arguments: list[str], environment: dict[str, str] | None = None) -> dict:
    """The last line of output of a process of this script as JSON, or its error message."""
    return ended(start(arguments, environment))


def start(arguments: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", __file__, "--row", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | (environment or {}), **pipes)


def ended(one: subprocess.Popen) -> dict:
    try:
        out, err = one.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        one.kill()
        one.communicate()
        return {"failed": f"not done after {LIMIT} s"}
    if one.returncode:
        return {"failed": ([*filter(None, err.splitlines())] or [str(one.returncode)])[-1][:300]}
    return json.loads(out.splitlines()[-1])


def row(what: str, *arguments: str, joined: str | None) -> dict:
    """Measure a row, or a part of a row, in this process."""
    if joined:
        import jax

        port, n, i = joined.split("/")
        jax.distributed.initialize(f"localhost:{port}", int(n), int(i))
    return bits(*arguments) if what == "bits" else IN_ANOTHER[what](*arguments)


def main() -> None:
    """Measure the missing rows, and write each row when it is done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help=", ".join(rows()) + "; all by default")
    parser.add_argument("--only", default="", help="only rows whose names contain this")
    parser.add_argument("--output", type=Path, default=HERE / "scale.json")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--joined", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(row(*given.parts, joined=given.joined)))
        return
    from _measure import environment

    names, output = rows(), given.output
    found = json.loads(output.read_text()) if output.exists() else {"environment": environment()}
    for part in given.parts or names:
        for name in names[part]:
            there = found.setdefault(part, {}).get(name, {"failed": "not run"})
            if "failed" not in there or given.only not in name:
                continue
            here = IN_THIS_PROCESS.get(part)
            found[part][name] = here(name) if here else process([part, name])
            print(f"{part:10}{name:44}{found[part][name]}", flush=True)
            output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
