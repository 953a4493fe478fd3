"""What the tests notice: one small fault at a time in a copy of the package, drawn by a seed.

    python tests/mutants.py                          # 300 faults, a row of mutants.csv for each
    python tests/mutants.py --room pursuit theory    # those of two rooms alone
    python tests/mutants.py --slow                   # of faults that are missed, slow tests, too

The rooms share the faults by their statements, and all kinds of fault have equal odds in a room. A
first run records file by file which case executes which statement; a run that was stopped continues
after the last file. A fault is tried by the cases that execute it, the cheapest file first, then by
the other cases of these files, which may use programs that those traced. The trial ends with the
first case that fails, or that takes far longer than before. A row is written at once, and a fault
with a row is not tried again. Remarks are kept: write "equivalent: why" where nothing observable
changes.
"""

import argparse
import ast
import contextlib
import csv
import importlib
import itertools
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".csv")
KEY = "file function kind before after".split()
COLUMNS = "commit file function kind before after default slow case seconds remark".split()

OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or,
    ast.Or: ast.And,
}  # fmt: skip
FUNCTIONS = {"max": "min", "any": "all", "maximum": "minimum", "argmax": "argmin", "sum": "mean",
             "floor": "ceil", "amax": "amin"}  # fmt: skip
FUNCTIONS |= {other: name for name, other in FUNCTIONS.items()}
DROPPED = {"abs", "sqrt", "square", "sort", "conj", "sign", "stop_gradient", "log", "exp"}
CONSTANTS = {"0": "1", "1": "2", "2": "1", "3": "2", "0.0": "1.0", "0.5": "1.0", "1.0": "2.0",
             "2.0": "1.0", "True": "False", "False": "True"}  # fmt: skip
# What people read only: messages and reprs, and how figures look.
MESSAGES = {"warn", "ValueError", "TypeError", "print", "option", "__repr__", "__str__"}
COSMETIC = ("unrolled/plots/", "unrolled/app/studies/_html")


class Fault(NamedTuple):
    file: str
    function: str
    line: int  # of the statement
    kind: str
    start: int  # bytes of the file that `text` replaces
    end: int
    text: bytes
    before: str
    after: str


def changes(node):
    """(kind, what is replaced, its replacement) for each fault at a node."""
    match node:
        case ast.Compare(left, [operator], [right]) if type(operator) in OPERATORS:
            yield "comparison", node, ast.Compare(left, [OPERATORS[type(operator)]()], [right])
        case ast.BoolOp(operator, values):
            yield "condition", node, ast.BoolOp(OPERATORS[type(operator)](), values)
        case ast.BinOp(left, operator, right) if not is_text(left) and not is_text(right):
            if type(operator) in OPERATORS:
                yield "operator", node, ast.BinOp(left, OPERATORS[type(operator)](), right)
                yield "term", node, left
            if isinstance(operator, ast.Add | ast.Mult):
                yield "term", node, right
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield "sign", node, operand
        case ast.Constant(value) if repr(value) in CONSTANTS:
            yield "constant", node, ast.Name(CONSTANTS[repr(value)])
        case ast.If(test) | ast.IfExp(test) | ast.While(test):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)
            if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Return):
                yield "return", node.body[-1], ast.Pass()
        case ast.Call():
            yield from changes_of_call(node)


def changes_of_call(node):
    func, args, keywords = node.func, node.args, node.keywords
    name = getattr(func, "attr", getattr(func, "id", ""))
    if name in FUNCTIONS:
        of = isinstance(func, ast.Attribute)
        other = ast.Attribute(func.value, FUNCTIONS[name]) if of else ast.Name(FUNCTIONS[name])
        yield "function", func, other
    if name in DROPPED and len(args) == 1:
        yield "function", node, args[0]
    if name == "where" and len(args) == 3:
        yield "where", node, ast.Call(func, [args[0], args[2], args[1]], keywords)
    for i, keyword in enumerate(keywords):
        if keyword.arg == "axis":
            yield (
                "axis",
                keyword.value,
                ast.Name("-1" if ast.unparse(keyword.value) == "0" else "0"),
            )
        elif keyword.arg:
            yield "argument", node, ast.Call(func, args, keywords[:i] + keywords[i + 1 :])
    for i, (first, second) in enumerate(itertools.pairwise(args)):
        if ast.unparse(first) != ast.unparse(second):
            swapped = [*args[:i], second, first, *args[i + 2 :]]
            yield "argument", node, ast.Call(func, swapped, keywords)


def is_text(node):
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", 0), str)


def faults(file, source):
    """All faults of a file, without those that only a reader would see."""
    starts = list(itertools.accumulate(map(len, source.splitlines(True)), initial=0))

    def walk(node, function, statement):
        name = getattr(node, "name", "")
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{name}".lstrip(".")
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in MESSAGES or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            return
        statement = node.lineno if isinstance(node, ast.stmt) else statement
        for kind, old, new in changes(node):
            if kind in ("constant", "argument") and file.startswith(COSMETIC):
                continue
            start = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            text = ast.unparse(new)
            if isinstance(new, ast.BinOp | ast.BoolOp | ast.Compare | ast.UnaryOp | ast.IfExp):
                text = f"({text})"
            if "\n" in text:
                continue
            first, last = starts[old.lineno - 1], starts[old.end_lineno]
            lines = source[first:last], source[first:start] + text.encode() + source[end:last]
            shown = (" ".join(line.decode().split()) for line in lines)
            line = old.lineno if isinstance(old, ast.stmt) else statement
            yield Fault(file, function, line, kind, start, end, text.encode(), *shown)
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from walk(child, function, statement)

    yield from walk(ast.parse(source), "", 1)


def room(file):
    """The first level of the package; vision and app are one room each."""
    return file.split("/")[1].removesuffix(".py").strip("_")


def draw(tree, seed, number):
    """The faults of each room in a fixed order, mixed such that every beginning is fair."""
    rooms, sizes = defaultdict(list), Counter()
    for path in sorted(tree.glob("unrolled/**/*.py")):
        file, source = str(path.relative_to(tree)), path.read_bytes()
        rooms[room(file)] += faults(file, source)
        sizes[room(file)] += sum(isinstance(n, ast.stmt) for n in ast.walk(ast.parse(source)))
    chosen = []
    for name, candidates in rooms.items():
        odds, rng = Counter(f.kind for f in candidates), random.Random(f"{seed} {name}")
        keys = {f: rng.random() ** odds[f.kind] for f in candidates}
        share = number * sizes[name] / sizes.total()
        first = sorted(candidates, key=keys.get, reverse=True)[: max(1, round(share))]
        chosen += [((i + 0.5) / share, f) for i, f in enumerate(first)]
    return [f for _, f in sorted(chosen, key=lambda pair: pair[0])]


# --- which cases execute which statements


RECORDER = """
import atexit, os, pickle
executed, case = {}, [os.environ.get("MUTANTS_CASE", "")]
def at(statement):
    executed.setdefault(case[0], set()).add(statement)
def save():
    with open(f"{os.environ['MUTANTS_FOLDER']}/{os.getpid()}.pickle", "wb") as file:
        pickle.dump(executed, file)
atexit.register(save)
"""


def recorded(source, file, statements):
    """The source with a call of the recorder before each statement of a function.

    What numba compiles cannot call the recorder: of a file that imports numba the public functions
    that call the compiled ones have it.
    """
    numba = b"from numba import" in source

    def compiled(node):
        return node.name.startswith("_") or f"entry({node.name}, ".encode() in source

    class Insert(ast.NodeTransformer):
        inside = 0

        def visit_FunctionDef(self, node):
            if numba and compiled(node):
                return node
            self.inside += 1
            self.generic_visit(node)
            self.inside -= 1
            return node

        def generic_visit(self, node):
            super().generic_visit(node)
            for field in ("body", "orelse", "finalbody"):
                block = getattr(node, field, None)
                if self.inside and isinstance(block, list) and not isinstance(node, ast.ClassDef):
                    setattr(node, field, [new for old in block for new in self.pair(old)])
            return node

        def pair(self, statement):
            quiet = isinstance(statement, ast.Nonlocal | ast.Global)
            if quiet or (isinstance(statement, ast.Expr) and is_text(statement.value)):
                return [statement]
            statements.append((file, statement.lineno))
            return [ast.parse(f"_at_({len(statements) - 1})").body[0], statement]

    tree = Insert().visit(ast.parse(source))
    at = 1 if tree.body and isinstance(tree.body[0], ast.Expr) else 0
    while at < len(tree.body) and getattr(tree.body[at], "module", "") == "__future__":
        at += 1
    tree.body[at:at] = ast.parse("from _recorder import at as _at_").body
    return ast.unparse(ast.fix_missing_locations(tree))


class Record:
    """A plugin: the seconds of each case that passes, while the recorder knows its name."""

    def __init__(self):
        self.seconds = {}

    def turn(self, case):
        os.environ["MUTANTS_CASE"] = sys.modules["_recorder"].case[0] = case

    def pytest_collectstart(self, collector):
        self.turn(collector.nodeid.partition("::")[0])

    def pytest_runtest_logstart(self, nodeid):
        self.turn(nodeid)
        self.started = cpu()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = 0.0

    def pytest_runtest_logfinish(self, nodeid):
        if nodeid in self.seconds:
            self.seconds[nodeid] = cpu() - self.started


def cpu():
    """Seconds of processors of this process and of those that it has waited for."""
    return sum(os.times()[:4])


# --- trials


class Only:
    """A plugin: of the cases of a file those of a set, and which of them failed."""

    def __init__(self, cases):
        self.cases, self.failed = cases, ""

    def pytest_collection_modifyitems(self, config, items):
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in self.cases])
        items[:] = [item for item in items if item.nodeid in self.cases]

    def pytest_exception_interact(self, node):
        self.failed = node.nodeid


class House:
    """The package and its tests at a commit, in a folder of their own."""

    def __init__(self, folder, commit):
        self.commit = git("rev-parse", "--short", commit).decode().strip()
        self.folder, self.tree = folder / self.commit, folder / self.commit / "tree"
        self.tree.mkdir(parents=True, exist_ok=True)  # a trial that was killed left its fault there
        subprocess.run(["tar", "x"], input=git("archive", commit), cwd=self.tree, check=True)
        self.known = {}

    def pytest(self, marked, *arguments, plugins):
        import pytest

        options = ["-q", "-n0", "-m", marked, "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        options += ["-o", "addopts=", "-o", f"cache_dir={self.folder.parent / 'cache'}"]
        return pytest.main([*options, *arguments], plugins=plugins)

    def apart(self, tree, work, limit=None):
        """The exit status of `work` in a fork, which has imported what the tests build on.

        A process that takes more than `limit` seconds of a processor, or waits for long, is killed
        with all that it has started, and its status is not 0.
        """
        pid = os.fork()
        if not pid:
            try:
                os.setsid()
                os.chdir(tree)
                log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(log, 1), os.dup2(log, 2)
                os.environ["PYTHONPATH"] = f"{tree}{os.pathsep}{tree / 'tests'}"
                sys.path[:0], sys.dont_write_bytecode = [str(tree), str(tree / "tests")], True
                if limit:
                    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))
                    signal.alarm(int(20 * limit))
                status = int(work())
            except BaseException:
                traceback.print_exc()
                status = 99
            sys.stdout.flush(), sys.stderr.flush(), os._exit(status)
        status = os.waitpid(pid, 0)[1]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return status

    def record(self, marked):
        """The seconds of each case, the statements that each executes, and all statements."""
        path = self.folder / f"{marked.replace(' ', '_')}.pickle"
        if not path.exists():
            path.write_bytes(pickle.dumps(self.recorded(marked)))
        if marked not in self.known:
            self.known[marked] = pickle.loads(path.read_bytes())
        return self.known[marked]

    def recorded(self, marked):
        """The record of each test file has a folder, which a run that is stopped leaves behind."""
        tree, statements = self.folder / "recorded", []
        notes = self.folder / f"notes_{marked.replace(' ', '_')}"
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(self.tree, tree), notes.mkdir(exist_ok=True)
        for source in sorted(tree.glob("unrolled/**/*.py")):
            name = str(source.relative_to(tree))
            source.write_text(recorded(source.read_bytes(), name, statements))
        (tree / "_recorder.py").write_text(RECORDER)
        for path in sorted(tree.glob("tests/**/test_*.py")):
            file = str(path.relative_to(tree))
            folder, begun = notes / file.replace("/", "+"), notes / "begun"
            if not folder.exists():
                shutil.rmtree(begun, ignore_errors=True)
                begun.mkdir()
                self.apart(tree, partial(self.record_file, marked, file, begun))
                begun.rename(folder)
        seconds, executed = {}, defaultdict(set)
        for path in notes.glob("*/*.pickle"):
            for case, values in pickle.loads(path.read_bytes()).items():
                (seconds if case == "seconds" else executed[case]).update(values)
        return seconds, dict(executed), statements

    def record_file(self, marked, file, folder):
        os.environ["MUTANTS_FOLDER"] = str(folder)
        import _recorder

        plugin = Record()
        self.pytest(marked, file, plugins=[plugin])
        _recorder.executed["seconds"] = plugin.seconds
        _recorder.save()
        return 0

    def steps(self, fault, marked):
        """[(file, cases, seconds)]: the cases that execute the fault, then their neighbours."""
        seconds, executed, statements = self.record(marked)
        ids = {i for i, place in enumerate(statements) if place == (fault.file, fault.line)}
        if not ids:  # executed by an import
            ids = {i for i, place in enumerate(statements) if place[0] == fault.file}
        reached = {case for case, those in executed.items() if not ids.isdisjoint(those)}
        neighbours = defaultdict(set)
        for case in seconds:
            neighbours[case.partition("::")[0]].add(case)
        files = {case.partition("::")[0] for case in reached} & set(neighbours)
        steps = []
        for stage in (
            lambda file: neighbours[file] & reached,
            lambda file: neighbours[file] - reached,
        ):
            costs = [(sum(map(seconds.get, stage(file))), file) for file in files if stage(file)]
            steps += [(file, stage(file), cost) for cost, file in sorted(costs)]
        return steps

    def trial(self, fault, marked, most):
        """The outcome, the case that failed, and the seconds of a processor that this took.

        Faults of which not all cases fit into `most` seconds stay open if no other case fails.
        """
        steps, started, failed = self.steps(fault, marked), cpu(), self.folder / "failed"
        sums = list(itertools.accumulate(cost for *_, cost in steps))
        if not steps:
            return "not reached", "", 0
        failed.write_text("time limit")

        def work():
            for (file, cases, _), total in zip(steps, sums):
                plugin = Only(cases)
                if total < most and self.pytest(marked, "-x", file, plugins=[plugin]):
                    failed.write_text(plugin.failed or file)
                    return 1
            return 0

        path = self.tree / fault.file
        source, times = path.read_bytes(), path.stat()
        path.write_bytes(source[: fault.start] + fault.text + source[fault.end :])
        try:
            noticed = self.apart(self.tree, work, 60 + 10 * min(most, sums[-1]))
        finally:
            path.write_bytes(source)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        outcome = "noticed" if noticed else "missed" if sums[-1] < most else "open"
        return outcome, failed.read_text() if noticed else "", round(cpu() - started)


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def import_what_tests_import():
    """Before the forks; no device is used, so no thread is lost in them."""
    variables = dict(os.environ)
    sys.path.insert(0, str(ROOT / "tests"))
    for name in ("conftest", "optax", "scipy.optimize", "flax.nnx"):
        importlib.import_module(name)
    del sys.modules["conftest"], sys.path[0]
    os.environ.clear(), os.environ.update(variables)
    warnings.filterwarnings("ignore", "os.fork")


def read():
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {tuple(row[c] for c in KEY): row for row in csv.DictReader(file)}


def write(rows):
    with TABLE.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader(), table.writerows(sorted(rows.values(), key=lambda row: row["file"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=300, help="of all rooms together")
    parser.add_argument("--room", nargs="*", help="the first level of unrolled/")
    parser.add_argument("--slow", action="store_true", help="what is missed, by the slow tests")
    parser.add_argument("--most", type=float, default=1e9, help="seconds of tests for one fault")
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "mutants"))
    options = parser.parse_args()
    import_what_tests_import()
    house, rows = House(options.folder, options.commit), read()
    for fault in draw(house.tree, options.seed, options.number):
        if options.room and room(fault.file) not in options.room:
            continue
        texts = {c: getattr(fault, c) for c in KEY}
        row = rows.setdefault(tuple(texts.values()), dict.fromkeys(COLUMNS, "") | texts)
        for column, marked in (("default", "not slow"), ("slow", "slow"))[: 1 + options.slow]:
            if row["default"] == "noticed" or row["remark"] or row[column] not in ("", "open"):
                continue
            row[column], row["case"], seconds = house.trial(fault, marked, options.most)
            row["commit"], row["seconds"] = house.commit, seconds + int(row["seconds"] or 0)
        write(rows)
        print(row["default"], row["slow"], *texts.values(), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
