"""Execute the notebooks and store what they print and draw.

    python notebooks/execute.py [--output FOLDER] [NOTEBOOK ...]

Without arguments: every notebook of this folder, in place. A NOTEBOOK is a path or a name in this
folder. A notebook is JSON and its cells are Python, so neither Jupyter nor a kernel is needed. Each
notebook runs in a process of its own. Figures become PNG files of 64 colours. The figure of the
cell tagged `hero` is also the picture `attachment:result.png` of the first cell, and a cell with
ipywidgets stores the picture of its defaults.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

# As in the tests: with more threads BLAS rounds otherwise, and a grid search may choose otherwise.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

DPI, COLOURS = 144, 64  # two pixels for each of a screen; a notebook stays below 330 kB


def execute(notebook: dict) -> dict:
    """Run the code cells, store their outputs in `notebook`, and return the names they define."""
    sys.modules["ipywidgets"] = None  # a slider needs a kernel
    names, cells = {"__name__": "__main__"}, notebook["cells"]
    for number, cell in enumerate((c for c in cells if c["cell_type"] == "code"), start=1):
        text, value = run("".join(cell["source"]), f"cell {number}", names)
        outputs = (
            [] if not text else [{"name": "stdout", "output_type": "stream", "text": lines(text)}]
        )
        if value is not None:
            result = {"execution_count": number, "metadata": {}, "output_type": "execute_result"}
            outputs.append({"data": shown(value), **result})
        cell["execution_count"], cell["outputs"] = number, outputs
        if "hero" in cell["metadata"].get("tags", ()):
            picture = {"image/png": outputs[-1]["data"]["image/png"]}
            cells[0]["attachments"] = {"result.png": picture}
    return names


def run(source: str, title: str, names: dict) -> tuple[str, object]:
    """What a cell prints, and the value of its last line where that is an expression."""
    tree, value = ast.parse(source), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(compile(tree, title, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), title, "eval"), names)
    return text.getvalue(), value


def shown(value) -> dict:
    """The forms in which a notebook shows a value: a picture, a table, or text."""
    if not hasattr(value, "savefig"):
        if not hasattr(value, "_repr_html_"):
            return {"text/plain": lines(repr(value))}
        text = value if isinstance(value, str) else repr(value)
        return {"text/html": lines(value._repr_html_()), "text/plain": lines(text)}
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    value.savefig(drawn, format="png", dpi=DPI)
    # A median cut, the default, loses the colours of thin lines beside a large picture.
    whole, way = Image.open(drawn).convert("RGB"), Image.Quantize.MAXCOVERAGE
    picture = whole.quantize(COLOURS, method=way, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True)
    width, height = picture.size
    return {
        "image/png": base64.b64encode(small.getvalue()).decode(),
        "text/plain": [f"<Figure of {width} x {height} pixels>"],
    }


def lines(text: str) -> list[str]:
    """Text as a notebook stores it."""
    return text.splitlines(keepends=True)


def located(name: str) -> Path:
    """A notebook by its path, or by its name in this folder."""
    folder = Path(__file__).parent
    for path in (Path(name), folder / name):
        if path.is_file():
            return path
    raise argparse.ArgumentTypeError(f"{name}: is not a file, here or in {folder}")


def main() -> None:
    """Execute what is asked for, several notebooks one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=located, metavar="NOTEBOOK")
    parser.add_argument("--output", type=Path, help="write there, not in place")
    arguments = parser.parse_args()
    paths = arguments.notebooks or sorted(Path(__file__).parent.glob("*.ipynb"))
    if len(paths) > 1:
        for path in paths:
            print(path.name, flush=True)
            command = [sys.executable, __file__, path]
            command += ["--output", arguments.output] if arguments.output else []
            subprocess.run(command, check=True)
        return
    notebook = json.loads(paths[0].read_text())
    execute(notebook)
    write(notebook, (arguments.output or paths[0].parent) / paths[0].name)


def write(notebook: dict, target: Path) -> None:
    """The notebook as a file."""
    target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
