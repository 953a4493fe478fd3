"""Judge a change in seconds: ruff, mypy, and the cases that mention what the change touches.

    python tests/near.py             # what differs from the last commit
    python tests/near.py main        # what differs from main
    python tests/near.py --list      # the cases, without running them

A change touches the definitions that it alters, and those of its room that use them. A case is
near if its identifier, its function, or what its function mentions in its file has such a name; all
cases of a changed test file are near. Cases that `few` leaves to the slow tests count, other slow
tests do not. `pytest` alone judges a change completely.
"""

import argparse
import ast
import re
import subprocess
import sys

import pytest
from house import PACKAGE, ROOT, imports, tree_of

WORD = re.compile(r"\w+")
HUNK = re.compile(r"@@ \S+ \+(\d+)(?:,(\d+))? @@")
CHECKS = ["ruff check -q .", "ruff format -q --check .", "mypy unrolled"]


def changed(since):
    """{file: the lines that differ from a commit}, for Python files; all lines of new files."""
    lines, path = {}, None
    for line in git("diff", "-U0", "--no-ext-diff", "--diff-filter=d", since).splitlines():
        if line.startswith("+++ "):
            path = ROOT / line.removeprefix("+++ b/")
        elif hunk := HUNK.match(line):
            first, number = int(hunk[1]), int(hunk[2] or 1)
            lines.setdefault(path, set()).update(range(first, first + max(number, 1)))
    new = git("ls-files", "-o", "--exclude-standard").splitlines()
    lines |= {ROOT / name: set(range(10**5)) for name in new}
    return {path: those for path, those in lines.items() if path.suffix == ".py"}


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout


def touched(path, lines):
    """The definitions with these lines, and those of the room that use them."""
    inside = (n for n in tree_of(path).body if lines & set(range(n.lineno, n.end_lineno + 1)))
    names = set().union(*map(names_of, inside))
    if "__all__" in names:
        names |= set().union(*map(names_of, tree_of(path).body))
    room, before = ROOT.joinpath(*path.relative_to(ROOT).parts[:2]), set()
    files = [room] if room.is_file() else [p for p in room.rglob("*.py") if p.stem != "__init__"]
    while names > before:
        before = names
        names = names.union(*(users(each, names) for each in files))
    return names


def users(path, names):
    """The definitions of a file that use one of the names."""
    uses = mentions(path, code_of)
    known = names & {*uses, *(name.rpartition(".")[2] for _, name in imports(path))}
    return {name for name, those in uses.items() if those & known}


def names_of(node):
    """What a node at the top level of a file defines."""
    targets = (target.id for target in getattr(node, "targets", []) if hasattr(target, "id"))
    return {getattr(node, "name", None), *targets} - {None}


def code_of(node):
    """The names in a definition, without those in its docstrings."""
    return {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node)}


def words_of(node):
    return set(WORD.findall(ast.unparse(node)))


def mentions(path, words_of=words_of):
    """{name: the words of its definition, and of all that this mentions of its file}."""
    words = {name: words_of(node) for node in tree_of(path).body for name in names_of(node)}
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
    files = changed(options.since)
    of_package = (path for path in files if PACKAGE in path.parents)
    names = set().union(*(touched(path, files[path]) for path in of_package))
    tests = [p for p in (ROOT / "tests").rglob("test_*.py") if p in files or speaks(p, names)]
    checks = [] if options.list else CHECKS
    running = [subprocess.Popen([sys.executable, "-m", *c.split()], cwd=ROOT) for c in checks]
    arguments = ["-q", "-n0", "-m", "", *["--collect-only"] * options.list]
    arguments += sorted(map(str, tests))
    status = pytest.main(arguments, plugins=[Near(names, files)]) if tests else 0
    sys.exit(max(int(status), *(check.wait() for check in running), 0))


if __name__ == "__main__":
    main()
