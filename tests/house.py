"""The house: its rooms, their floors, and the drawing of both from the imports of the package.

`python tests/house.py` draws .github/house.svg anew. A room is an entry of the first level of
`unrolled/`; a room stands one floor above the highest room that it imports from.
"""

import ast
import functools
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "unrolled"
DRAWING = ROOT / ".github" / "house.svg"
BOOKS = {  # everything else is the library
    "vision": "the paper's vision experiments",
    "app": "the application",
    "__main__": "the application",
    "nnx": "adapters",
    "sklearn": "adapters",
}
COLOURS = {
    "the library": "#dbe9f6",
    "the paper's vision experiments": "#e2f0d9",
    "the application": "#fbe5d0",
    "adapters": "#ece3f2",
}


def rooms():
    """The names of all rooms, without the front door `unrolled/__init__.py`."""
    names = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    return sorted(names | {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"})


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache
def imports(path):
    """(line, dotted name) of everything that a file imports, also in its functions."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


@functools.cache
def arrows():
    """{room: the rooms that it imports from}."""
    known, found = set(rooms()), {}
    for room in known:
        folder = PACKAGE / room
        files = folder.rglob("*.py") if folder.is_dir() else [PACKAGE / f"{room}.py"]
        names = [name.split(".") for path in files for _, name in imports(path)]
        targets = {parts[1] for parts in names if parts[0] == "unrolled" and len(parts) > 1}
        found[room] = frozenset(targets & known - {room})
    return found


@functools.cache
def floor(room):
    """1 for a room that imports from none. RecursionError if imports go in a circle."""
    return 1 + max((floor(other) for other in arrows()[room]), default=0)


def direct(room):
    """The rooms that it imports from and reaches by no longer way, for a drawing."""
    targets = arrows()[room]
    return sorted(targets - {far for near in targets for far in _reached(near)})


@functools.cache
def _reached(room):
    targets = arrows()[room]
    return targets.union(*map(_reached, targets)) if targets else frozenset()


def sentence(room):
    """The first sentence of the docstring of a room."""
    path = PACKAGE / room / "__init__.py"
    text = ast.get_docstring(tree_of(path if path.exists() else PACKAGE / f"{room}.py"))
    return text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


WIDTH, BOX, HIGH, STEP = 1180, 156, 34, 66  # of the drawing, a box, and a floor, in pixels


def places():
    """{room: the centre of its box}, the rooms of a floor side by side."""
    levels = [sorted(r for r in rooms() if floor(r) == k) for k in range(1, 1 + _top())]
    return {
        room: ((i + 1) * WIDTH / (len(level) + 1), 40 + (_top() - k) * STEP)
        for k, level in enumerate(levels, start=1)
        for i, room in enumerate(level)
    }


def _top():
    return max(map(floor, rooms()))


def svg():
    """The drawing: rooms by floors, the arrows from each to those right below it."""
    at = places()
    height = 40 + _top() * STEP
    lines = [
        f'<line x1="{at[a][0]:.0f}" y1="{at[a][1] + HIGH / 2:.0f}" x2="{at[b][0]:.0f}" '
        f'y2="{at[b][1] - HIGH / 2:.0f}" stroke="#8a94a0" marker-end="url(#tip)"/>'
        for a in rooms()
        for b in direct(a)
    ]
    boxes = [
        f'<g><title>{escape(sentence(room))}</title><rect x="{x - BOX / 2:.0f}" '
        f'y="{y - HIGH / 2:.0f}" width="{BOX}" height="{HIGH}" rx="5" stroke="#5b6570" '
        f'fill="{COLOURS[BOOKS.get(room, "the library")]}"/><text x="{x:.0f}" y="{y + 5:.0f}">'
        f"{room}</text></g>"
        for room, (x, y) in at.items()
    ]
    keys = [
        f'<rect x="{20 + 290 * i}" y="{height - 24}" width="16" height="16" fill="{colour}" '
        f'stroke="#5b6570"/><text x="{44 + 290 * i}" y="{height - 11}" text-anchor="start">'
        f"{book}</text>"
        for i, (book, colour) in enumerate(COLOURS.items())
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle" fill="#1c2126">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#8a94a0"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    )
    return "\n".join([head, *lines, *boxes, *keys, "</svg>\n"])


if __name__ == "__main__":
    DRAWING.write_text(svg())
