"""Judge a change in seconds: ruff, mypy, and the cases that mention what the change touches.

    python tests/near.py             # what differs from the last commit
    python tests/near.py main        # what differs from main
    python tests/near.py --list      # the cases, without running them

A file of the package touches the names that it offers, and the names of those files of its room
that import it. A case is near if its identifier, its function, or what its function mentions in its
file has such a name; all cases of a changed test file are near. Cases that `few` leaves to the slow
tests count, other slow tests do not. `pytest` alone judges a change completely.
"""

import argparse
import ast
import re
import subprocess
import sys

import pytest
from house import PACKAGE, ROOT, imports, tree_of

WORD = re.compile(r"\w+")
CHECKS = ["ruff check -q .", "ruff format -q --check .", "mypy unrolled"]


def changed(since):
    """The Python files that differ from a commit, with the new files."""
    lists = f"git diff --name-only --diff-filter=d {since}", "git ls-files -o --exclude-standard"
    for command in lists:
        done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, check=True)
        yield from (ROOT / name for name in done.stdout.splitlines() if name.endswith(".py"))


def with_importers(path):
    """A file of the package, and the files of its room that build on it."""
    room, reached = ROOT.joinpath(*path.relative_to(ROOT).parts[:2]), set()
    found = {path}
    while found > reached:
        reached = found
        names = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in reached}
        found = reached | {
            p
            for p in room.rglob("*.py")
            if p.stem != "__init__" and any(n.rpartition(".")[0] in names for _, n in imports(p))
        }
    return reached


def names_of(node):
    """What a node at the top level of a file defines."""
    targets = (target.id for target in getattr(node, "targets", []) if hasattr(target, "id"))
    return {getattr(node, "name", None), *targets} - {None}


def offered(path):
    """The names in `__all__`, or all names where a file has no such list."""
    nodes = tree_of(path).body
    lists = [ast.literal_eval(n.value) for n in nodes if names_of(n) == {"__all__"}]
    return set(lists[0]) if lists else set().union(*map(names_of, nodes))


def mentions(path):
    """{name: the words of its definition, and of all that this mentions of its file}."""
    words = {
        name: set(WORD.findall(ast.unparse(node)))
        for node in tree_of(path).body
        for name in names_of(node)
    }
    for name in words:
        todo = {name}
        while todo:
            new = set().union(*(words[other] for other in todo)) - words[name]
            words[name] |= new
            todo = new & words.keys()
    return words


def speaks(path, names):
    """Whether the text of a test file, or the registry that it reads, has one of the names."""
    text = path.read_text()
    if "registry" in text:
        text += (ROOT / "tests" / "registry.py").read_text()
    return not names.isdisjoint(WORD.findall(text))


class Near:
    """A plugin that keeps the cases near the names, and all cases of changed files."""

    def __init__(self, names, files):
        self.names, self.files, self.words = names, files, {}

    def is_near(self, item):
        if item.get_closest_marker("slow") and not item.get_closest_marker("few"):
            return False
        if item.path in self.files:
            return True
        if item.path not in self.words:
            self.words[item.path] = mentions(item.path)
        said = self.words[item.path].get(getattr(item, "originalname", None), set())
        return not self.names.isdisjoint(said.union(WORD.findall(item.name)))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        near = [item for item in items if self.is_near(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in near])
        items[:] = near


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("since", nargs="?", default="HEAD", help="a commit")
    parser.add_argument("--list", action="store_true", help="the cases, without running them")
    options = parser.parse_args()
    files = set(changed(options.since))
    package = {path for path in files if PACKAGE in path.parents}
    reached = set().union(*map(with_importers, package))
    names = set().union(*map(offered, reached))
    tests = [p for p in (ROOT / "tests").rglob("test_*.py") if p in files or speaks(p, names)]
    checks = [] if options.list else CHECKS
    running = [subprocess.Popen([sys.executable, "-m", *c.split()], cwd=ROOT) for c in checks]
    arguments = ["-q", "-n0", "-m", "", *["--collect-only"] * options.list]
    arguments += sorted(map(str, tests))
    status = pytest.main(arguments, plugins=[Near(names, files)]) if tests else 0
    sys.exit(max(int(status), *(check.wait() for check in running), 0))


if __name__ == "__main__":
    main()
