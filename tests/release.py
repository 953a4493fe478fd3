"""Check a release as users have it: built, and installed outside of the clone.

    python tests/release.py    # with the extra dev, which has `build`

The site comes from the environment of the extra `docs`, and is left in build/site. Everything else
is in a temporary folder, and a check prints nothing but its name and its seconds unless it fails.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
VERSIONS = ROOT / "tests" / f"constraints-py{sys.version_info[0]}{sys.version_info[1]}.txt"
SITE = ROOT / "build" / "site"

# What a user of an extra runs, and what fails without the extra.
EXTRAS = {
    "docs": ("-m", "sphinx", "-q", "-W", ROOT / "notebooks", SITE),
    "sklearn": ("-c", "from unrolled.sklearn import SparseCoder; SparseCoder"),
    "data": ("-c", "import unrolled as ur; ur.vision.datasets.photographs()"),
    "export": ("-m", "unrolled", "export", "weights.npz", "--output", "net.stablehlo"),
}
# What a user of no extra runs: it draws a figure, and writes the weights that are exported.
BASE = """
import jax, unrolled as ur
D = ur.dictionaries.gaussian(jax.random.key(0), 8, 12)
ur.plots.gram([{"D": D.T @ D}]).savefig("gram.png")
layer = ur.alista(2)
ur.training.save("weights.npz", layer.init(None, D), D, layer=layer)
"""


def run(*command, folder, fails=False) -> str:
    """The output of a command that does not see the clone; it ends with status 0, or fails."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = list(map(str, command))
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if bool(done.returncode) != fails:
        said = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{said}")
    return done.stdout


def built(folder: Path) -> tuple[Path, Path]:
    """The wheel, made from the sdist, and the unpacked sdist."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return wheel, folder / sdist.name.removesuffix(".tar.gz")


def install(python: Path, wheel: Path, extra: str = "") -> None:
    needed = f"unrolled{extra} @ {wheel.as_uri()}"
    run(python, "-m", "pip", "install", "-q", "-c", VERSIONS, needed, folder=wheel.parent)


def check_commands(programs: Path, wheel: Path) -> None:
    unrolled = programs / "unrolled"
    version = wheel.name.split("-")[1]
    assert run(unrolled, "--version", folder=wheel.parent) == f"unrolled {version}\n"
    shown = run(unrolled, "--help", folder=wheel.parent)
    commands = re.search(r"{([\w,]+)}", shown)[1].split(",")
    assert len(commands) >= 8
    for command in commands:
        assert f"unrolled {command}" in run(unrolled, command, "--help", folder=wheel.parent)


def check_examples(python: Path, folder: Path) -> None:
    """Those of the README, with fewer steps of training, on signals of their size."""
    rng = np.random.default_rng(0)
    D = rng.normal(size=(8, 12))
    D /= np.linalg.norm(D, axis=0)
    X = rng.normal(size=(1100, 12)) * (rng.random((1100, 12)) < 0.2)
    np.save(folder / "D.npy", D)
    np.save(folder / "Y.npy", X @ D.T)
    readme = (ROOT / "README.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", readme, flags=re.M | re.S)
    assert len(examples) == 2
    for example in examples:
        source = re.sub(r"\bsteps=\d+", "steps=2", example)
        assert "| method |" in run(python, "-c", source, folder=folder)


def check_sdist(sdist: Path) -> None:
    """Its pages are whole, so its files are."""
    tests = ("-m", "pytest", "-q", "-n", "0", "tests/pages/test_docs.py")
    run(sys.executable, *tests, folder=sdist)


def check_extra(extra: str, base: Path, wheel: Path) -> None:
    """Its command works in a copy of the base environment once the extra is installed."""
    folder = wheel.parent
    copy = folder / extra
    shutil.copytree(base, copy, symlinks=True, copy_function=os.link)  # pip replaces whole files
    python = copy / "bin" / "python"
    run(python, *EXTRAS[extra], folder=folder, fails=True)
    install(python, wheel, f"[{extra}]")
    run(python, *EXTRAS[extra], folder=folder)


def timed(name: str, check, *arguments) -> None:
    start = time.monotonic()
    check(*arguments)
    print(f"release: {name}, {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """Two checks at a time: the site takes a core for a minute."""
    with tempfile.TemporaryDirectory(prefix="release-") as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        base = folder / "base"
        making = pool.submit(venv.create, base, with_pip=True)
        wheel, sdist = built(folder)
        making.result()
        programs = base / "bin"
        timed("the wheel in an empty environment", install, programs / "python", wheel)
        run(programs / "python", "-c", BASE, folder=folder)
        checks = [(f"the extra {extra}", check_extra, extra, base, wheel) for extra in EXTRAS]
        checks += [
            ("the examples of the README", check_examples, programs / "python", folder),
            ("the commands", check_commands, programs, wheel),
            ("the pages of the sdist", check_sdist, sdist),
        ]
        for done in [pool.submit(timed, *check) for check in checks]:
            done.result()


if __name__ == "__main__":
    main()
