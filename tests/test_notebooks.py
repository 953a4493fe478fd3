"""The notebooks run from top to bottom, in their small form, and hold no traceback and no path of a
machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

# The value of a last expression is thrown away, as a plain script does; figures are drawn by the
# calls themselves.
RUNNER = """
import json, sys
cells = [c for c in json.load(open(sys.argv[1]))["cells"] if c["cell_type"] == "code"]
names = {"__name__": "__main__"}
for i, cell in enumerate(cells):
    exec(compile("".join(cell["source"]), f"cell {i}", "exec"), names)
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path):
    environment = {**os.environ, "UNROLLED_SMALL": "1", "PYTHONPATH": str(path.parents[1])}
    # Compiling is most of their time: done fast rather than well, and shared with the other tests.
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    for name in (
        "COMPILATION_CACHE_DIR",
        "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
    ):
        value = jax.config.values[f"jax_{name.lower()}"]
        environment[f"JAX_{name}"] = "" if value is None else str(value)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_clean(path):
    notebook = json.loads(path.read_text())
    assert len(notebook["cells"]) <= 15
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    assert all(output["output_type"] != "error" for output in outputs)
    texts = [
        json.dumps(o.get("text", "")) + json.dumps(o.get("data", {}).get("text/plain", ""))
        for o in outputs
    ]
    assert not [
        text for text in texts if "site-packages" in text or "/home/" in text or "Traceback" in text
    ]


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == [*(f"{i:02}" for i in range(1, 8)), "09"]
