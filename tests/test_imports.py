"""What an import costs and touches, which file may import which, and the names that are public."""

import ast
import functools
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from house import BOOKS, DRAWING, ROOT, arrows, floor, imports, rooms, svg, tree_of

import unrolled as ur
from unrolled._base.results import Result

PACKAGE = Path(ur.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)

# In a fresh process


@functools.lru_cache
def in_a_fresh_process(code):
    code = f"import json, sys\n{code}\nprint(json.dumps(answer))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ADDED = """
import jax, jax.numpy, numpy, optax
before, values = set(sys.modules), dict(jax.config.values)
import unrolled
answer = dict(
    new=sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    changed=sorted(k for k, v in jax.config.values.items() if v != values[k]),
)
"""


def test_importing_loads_nothing_but_jax_numpy_optax_and_the_standard_library():
    new = set(in_a_fresh_process(ADDED)["new"]) - {"unrolled"}
    assert {name for name in new if name not in sys.stdlib_module_names} == set()


def test_importing_changes_no_configuration_of_jax():
    assert in_a_fresh_process(ADDED)["changed"] == []


@pytest.mark.slow
def test_the_library_passes_its_tests_without_flax_matplotlib_scikit_learn_and_pillow():
    """The default cases of one file for each room, the first that names none of these."""
    names = re.compile(r"flax|orbax|matplotlib|plot\(|sklearn|PIL|\bapp\.|vision|nnx")
    alone = {}
    for path in sorted((TESTS / "library").rglob("test_*.py")):
        if not names.search(path.read_text()):
            alone.setdefault(path.parent.name, str(path))
    assert len(alone) > 8, listing(alone)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(TESTS)))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "without_extras", *alone.values()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]


# Which file may import which


def module_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("unrolled", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path): path for path in FILES}
PACKAGES = {module for module, path in MODULES.items() if path.name == "__init__.py"}
PUBLIC = sorted(
    name
    for name in MODULES
    if not any(part.startswith("_") for part in name.split(".")) and name != "unrolled"
)
BENCHMARKS = {f"benchmarks.{path.stem}": path for path in (ROOT / "benchmarks").glob("*.py")}


def listing(faults):
    """All of them, one per line: an assertion on a list would show the first."""
    return "\n".join(["", *map(str, faults)])


def modules_imported(path):
    """Those of our modules that a file imports."""
    names = {name for _, name in imports(path)}
    names = {name if name in MODULES else name.rpartition(".")[0] for name in names}
    return names & set(MODULES)


def test_a_reader_meets_at_most_27_entries_on_12_floors():
    """Were the imports of the rooms to go in a circle, the recursion would not end."""
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 27, listing(sorted(entries))
    assert max(map(floor, rooms())) <= 12


def test_the_library_stands_alone_and_no_book_imports_from_a_later_one():
    order = ("the library", "the paper's vision experiments", "adapters", "the application")
    rank = {room: order.index(BOOKS.get(room, "the library")) for room in rooms()}
    above = [f"{a} imports {b}" for a in rooms() for b in arrows()[a] if rank[b] > rank[a]]
    assert not above, listing(above)


def test_the_drawing_of_the_house_shows_these_imports():
    assert DRAWING.read_text() == svg(), "the imports have changed; try python tests/house.py"


def test_no_import_is_relative_or_goes_in_a_circle():
    relative = [m for m, path in MODULES.items() if any(n[0] == "." for _, n in imports(path))]
    assert not relative, listing(relative)
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in sorted(modules_imported(MODULES[name]) - {"unrolled"}):
                visit(other, (*trail, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def is_private(part):
    return part.startswith("_") and not part.startswith("__")


def owner_of(name):
    """The package whose own business a dotted name of ours is; None where every part is public."""
    parts = name.split(".")
    if parts[0] != "unrolled" or not any(map(is_private, parts)):
        return None
    above = parts[: next(i for i, part in enumerate(parts) if is_private(part))]
    while ".".join(above) not in PACKAGES:
        above = above[:-1]
    return ".".join(above)


def private_names(path):
    """(line, dotted name) of the private names of ours that a file imports, or reads as attributes
    of what it imports.
    """
    yield from imports(path)
    known = {}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            known |= {alias.asname or "": alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root, _, rest = ast.unparse(node.value).partition(".")
            if "(" in rest:  # what a function returned, as in `metrics.support_scores(...)._asdict`
                continue
            if known.get(root, root) in MODULES:
                yield node.lineno, ".".join(filter(None, (known.get(root, root), rest, node.attr)))


def test_a_package_keeps_its_private_names_to_itself():
    """`from unrolled.X._y import z` and `from unrolled.X import _y` stand inside of X alone."""
    outside = [
        f"{module}, line {line}: {name}"
        for module, path in sorted({**MODULES, **BENCHMARKS}.items())
        for line, name in private_names(path)
        if (owner := owner_of(name)) and not f"{module}.".startswith(f"{owner}.")
    ]
    assert not outside, listing(outside)


def test_private_names_are_found(tmp_path):
    """The check above sees what it is meant to see."""
    lines = [
        "import unrolled as ur",
        "from unrolled import theory",
        "from unrolled._base import checks",
        "from unrolled.theory import _weights",
        "from unrolled.theory._weights import _solve, frobenius_weights",
        "def f(x): return ur.layers._ista, theory._weights.x, x._replace(), checks._limit",
    ]
    (tmp_path / "guest.py").write_text("\n".join(lines))
    found = [owner_of(name) for _, name in private_names(tmp_path / "guest.py")]
    assert sorted(filter(None, found)) == sorted(
        ["unrolled"] * 2 + ["unrolled.theory"] * 4 + ["unrolled.layers"]
    )


ALLOWED = {"jax", "numpy", "optax", "unrolled"}  # at the top of a file
_NUMBA = ("_active_set", "_compiled", "_matching", "_working_sets")
COMPILED = {f"unrolled.pursuit.{name}" for name in _NUMBA}


def test_optional_packages_are_imported_inside_functions():
    above = []
    for module, path in MODULES.items():
        if module.startswith(
            ("unrolled.vision.experiments", "unrolled.vision.models", "unrolled.nnx")
        ):
            continue
        if module in COMPILED:  # functions import them
            continue
        for node in tree_of(path).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            above += [(module, root) for root in roots - ALLOWED - set(sys.stdlib_module_names)]
    assert not above, listing(above)


WITH_OTHERS = {"numpy": "jax", "scipy": "jax", "rich": "flax"}  # what depends on them
OPTIONAL = {
    "sklearn",
    "PIL",
    "flatbuffers",
    "threadpoolctl",
    "spams",
}  # each import has another way


def test_a_base_install_has_what_the_package_imports():
    """Only data sets, scikit-learn and export refuse without an extra; every command draws."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {re.match(r"[\w-]+", need)[0].replace("-", "_") for need in project["dependencies"]}
    roots = {name.split(".")[0] for path in FILES for _, name in imports(path)}
    roots = {WITH_OTHERS.get(root, root) for root in roots - set(sys.stdlib_module_names)}
    needed = roots - OPTIONAL - {"unrolled"}
    assert {root for root in needed if not any(name.startswith(root) for name in base)} == set()


# What the source may not hold

RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
# The command line alone keeps compiled programs, and puts the configuration back.
ALLOWED_FAULTS = {"unrolled.app.commands._console": {"global configuration"}}


def faults_of(call):
    """What a call does that the library must not do."""
    called = ast.unparse(call.func)
    options = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if called in RUNS_TEXT:
        yield called
    if re.search(r"config\.update$|config\.jax_\w+\.set$", called):
        yield "global configuration"
    for option in ("allow_pickle", "shell"):
        if options.get(option, "False") != "False":
            yield option
    if called in {"np.load", "numpy.load", "jnp.load"} and "allow_pickle" not in options:
        yield f"{called} without allow_pickle=False"


def test_no_global_configuration_and_no_way_to_run_what_a_file_holds():
    faults = []
    for module, path in MODULES.items():
        roots = {name.split(".")[0] for _, name in imports(path)}
        faults += [(module, name) for name in roots & RUNS_WHAT_IT_READS]
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                found = set(faults_of(node)) - ALLOWED_FAULTS.get(module, set())
                faults += [(module, node.lineno, fault) for fault in found]
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if re.match(r"(jax|os)\.(config\b|environ)", ast.unparse(target)):
                    faults.append((module, node.lineno, ast.unparse(target)))
    assert not faults, listing(faults)


def test_functions_fit_on_a_screen():
    """At most 50 lines below the docstring."""
    faults = []
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[bool(ast.get_docstring(node)) :]
                if body and (lines := node.end_lineno - body[0].lineno + 1) > 50:
                    faults.append((module, node.name, lines))
    assert not faults, listing(faults)


# A local value is called what it is: a code, a schedule, a message.
EMPTY_NAMES = {"found", "told"}


def empty_names(tree):
    """(line, name) of every local value that is called something that anything may be called."""
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return [
        (node.lineno, node.id)
        for node in names
        if isinstance(node.ctx, ast.Store) and node.id in EMPTY_NAMES
    ]


def test_local_values_say_what_they_are():
    faults = [(module, *f) for module, path in MODULES.items() for f in empty_names(tree_of(path))]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if "outputs" in cell]
        trees = [ast.parse("".join(cell["source"])) for cell in cells]
        faults += [(path.stem, *fault) for tree in trees for fault in empty_names(tree)]
    assert not faults, listing(faults)


@pytest.mark.parametrize(
    "line",
    [
        "found = f()",
        "x, (told, *_) = f()",
        "for found in xs: pass",
        "ys = [found for found in xs]",
        "if found := f(): pass",
        "with f() as told: pass",
    ],
)
def test_empty_names_are_seen(line):
    assert empty_names(ast.parse(f"def g():\n    {line}"))
    assert not empty_names(ast.parse("def g(found):\n    f(found=found).found"))


def test_nothing_is_guessed_from_names_or_signatures_of_functions():
    """What a consumer needs to know of a layer, it asks the layer.

    `pursuit.register` says that it reads the signature: its options have no other place. `program`
    finds by it where its static arguments stand, and `checked` reads its annotations. The name of a
    compiled function is set, not read: numba finds its machine code by it.
    """
    names = "pursuit._by_name", "_base.programs", "_base.arguments"
    said = {f"unrolled.{name}: inspect.signature" for name in names}
    said.add("unrolled.pursuit._compiled: __qualname__")
    guesses = [
        f"{module}: {guess}"
        for module, path in MODULES.items()
        for guess in ("__qualname__", "inspect.signature")
        if guess in path.read_text()
    ]
    assert set(guesses) == said, listing(guesses)


# Public names

BOLD = (
    "alista lista lista_cp lfista_cp dsc lasso omp gaussian sampler synthesize calibrate fit "
    "recommend compare certify choose_lam save load mutual_coherence shrink soft_threshold"
)
# Of the names pinned by the design, those that are there.
PINNED = {
    "activations": "Activation relu leaky_relu elu celu selu silu gelu mish softplus hard_swish "
    "scale compose shrink soft_threshold hard_threshold firm_threshold select_support",
    "dictionaries": "dense normalize gaussian dct identity_hadamard paley transversal "
    "ill_conditioned Conv Composed Concatenated Sparse Masked from_functions Structured Dictionary "
    "KINDS",
    "theory": "mutual_coherence welch_bound coherence babel generalized_coherence stripe_norm "
    "recover_on_supports sparsity_bound max_sparsity schedule rounding_guard error_bar "
    "deep_schedule activation_schedule minimal_entry_weights is_feasible uniqueness stability "
    "state_evolution",
    "pursuit": "PURSUITS register threshold ista fista omp omp_batch basis_pursuit bpdn "
    "lasso lasso_batch lasso_path "
    "layered_thresholding layered_basis_pursuit project ml_ista ml_fista ml_basis_pursuit "
    "holistic local_error local_sparsity",
    "dictionary_learning": "Learned",
    "layers": "Layer FAMILIES Unrolled stack unstack unroll ista fista lista lista_cp alista "
    "alista_at vamp_bg",
    "analytic": "frobenius_weights minimax_weights ista lista_cp alista hyperlista dsc calibrate "
    "HypothesisWarning lamp alista_at",
    "realize": "cnn attention transformer_block",
    "networks": "dsc Network NETWORKS",
    "training": "fit Fit scale_steps curriculum save restore Restored sparse_feature_penalty "
    "unsupervised recommend",
    "comparison": "compare Comparison evolution",
    "metrics": "nmse psnr support_scores sparsity pixel_accuracy mean_class_precision "
    "mean_class_accuracy mean_iou",
    "vision.datasets": "cifar10 mnist digits masks crop_and_flip read_array photographs",
    "problems": "standard_benchmark",
    "records": "Interned Record option",
    "penalties": "Penalty",
    "nnx": "Module fit",
    "vision.models": "LeNet5 VGG11 UNet CSCNet tap",
}
FIELDS = {
    "layers.Unrolled": "shared steps",
    "theory.GeneralizedCoherence": "upper lower per_atom_upper per_atom_lower W holds",
    "theory.Schedule": "theta error contraction rate floor holds",
    "theory.StateEvolution": "nmse tau thresholds",
    "realize.Realization": "apply layers depth n_weights",
    "pursuit.Pursuit": "x gap residual steps converged",
    "pursuit.DeepPursuit": "xs gap residual steps converged",
    "metrics.Sparsity": "zeros below hoyer",
    "vision.datasets.Images": "name train test classes",
    "vision.datasets.Masks": "train test",
    "training.Fit": "params best D history",
    "dictionary_learning.Learned": "D X objective history",
    "training.Restored": "params D layer metadata",
}
LAYER = ur.layers.ista(2)
ATTRIBUTES = {
    LAYER: "init start step apply iterates family options forms depth schedule weights check",
    ur.networks.dsc([LAYER]): "layers init apply iterates family options forms depth check",
    ur.activations.relu: "name tail_lipschitz tail_sup tail_oscillation relu_gap",
}


def resolved(name):
    """The object of a dotted name below `unrolled`."""
    return functools.reduce(getattr, name.split("."), ur)


def test_pinned_names_are_reachable():
    names = [f"{module}.{name}" for module in PINNED for name in PINNED[module].split()]
    missing = []
    for name in (*names, *BOLD.split()):
        try:
            resolved(name)
        except AttributeError:
            missing.append(name)
    assert not missing, listing(missing)
    assert ur.lista is ur.layers.lista and ur.fit is ur.training.fit and ur.dsc is ur.networks.dsc
    assert ur.load is ur.training.restore and ur.certify is ur.theory.certify
    verbs = [name for name in ur.__all__ if not inspect.ismodule(getattr(ur, name))]
    assert sorted(verbs) == sorted(BOLD.split())


def test_compare_is_a_function_of_its_room():
    assert ur.compare is ur.comparison.compare and inspect.isfunction(ur.compare)
    assert inspect.ismodule(ur.comparison) and "compare" in dir(ur.comparison)


@pytest.mark.parametrize(
    ("room", "name", "end"),
    [
        ("", "lassso", "; perhaps lasso"),
        ("", "nmse", "; perhaps unrolled.metrics.nmse"),
        ("", "qqqq", "'qqqq'"),
        ("layers", "LISTA", "; perhaps lista"),
        ("comparison", "Comparson", "; perhaps Comparison"),
        ("problems", "smapler", "; perhaps sampler"),
        ("app", "studis", "; perhaps studies"),
        ("vision", "Models", "; perhaps models"),
        ("layers", "__wrapped__", "'__wrapped__'"),
    ],
)
def test_a_name_that_a_module_lacks_is_refused_with_a_similar_one(room, name, end):
    module = resolved(room) if room else ur
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'.*{end}$|{end}$"):
        getattr(module, name)


def test_records_have_their_pinned_fields_first():
    for record, fields in FIELDS.items():
        expected = fields.split()
        assert list(resolved(record)._fields[: len(expected)]) == expected, record
    for made, names in ATTRIBUTES.items():
        assert [name for name in names.split() if not hasattr(made, name)] == [], made


def test_a_module_does_not_share_its_name_with_what_it_holds():
    """`ur.training.fit` is the function, never a file."""
    shared = []
    for module in MODULES:
        package, _, last = module.rpartition(".")
        held = getattr(importlib.import_module(package), last, None) if package else None
        if held is not None and last != "__main__" and not inspect.ismodule(held):
            shared.append(module)
    assert not shared, listing(shared)


LISTS = "__all__", "__results__", "__own__"  # for everybody, and the two lists of `_base.offer`
FORMER = {"lasso"}  # names that files of users may have, in no list


def exported(module, lists=LISTS):
    """What a public module offers, by name: its lists, else all that is defined in it."""
    held = vars(importlib.import_module(module))
    own = {
        name
        for name, value in held.items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module
    }
    names = [name for some in lists for name in held.get(some, ())]
    return {name: held.get(name) for name in (names if "__all__" in held else own)}


def test_at_most_330_names_are_for_everybody():
    rooms = ["unrolled", *(name for name in PUBLIC if BOOKS.get(name.split(".")[1]) is None)]
    rooms += [name for name in PUBLIC if name.startswith("unrolled.vision.")]
    rooms += ["unrolled.app.studies", "unrolled.nnx"]
    names = {name for room in rooms for name in exported(room, ["__all__"])} - set(rooms)
    assert len(names) <= 330, len(names)


def test_types_of_results_and_params_are_listed_apart():
    kinds = tuple, BaseException, Result
    names = {f"{room}.{n}": v for room in PUBLIC for n, v in exported(room, ["__all__"]).items()}
    apart = [n for n, v in names.items() if inspect.isclass(v) and issubclass(v, kinds)]
    assert not apart, listing(["in `offer`, list these in `results` or `own`:", *apart])


def test_a_name_stands_in_one_list_of_its_room():
    faults = []
    for module in PUBLIC:
        held = vars(importlib.import_module(module))
        names = [name for some in LISTS for name in held.get(some, ())]
        faults += [f"{module} lists {name} twice" for name in names if names.count(name) > 1]
        faults += [f"{module} lacks {name}" for name in names if name not in held]
    assert not faults, listing(faults)


def used_elsewhere(module):
    """The names that files outside of a package import from it, or read as its attributes."""
    room, last = f"{module}.", module.rpartition(".")[2]
    outside = [path for m, path in MODULES.items() if not m.startswith(module)]
    names = {n for path in outside for _, n in imports(path)}
    read = (re.findall(rf"\b{last}\.(\w+)", path.read_text()) for path in outside)
    return {name.removeprefix(room) for name in names if name.startswith(room)}.union(*read)


def test_all_is_complete_and_sorted():
    """A package lists every name that it imports from its files, but those of other rooms alone."""
    faults = [
        f"the list of {module} is not sorted"
        for module, path in MODULES.items()
        for node in tree_of(path).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if (names := ast.literal_eval(node.value)) != sorted(set(names))
    ]
    for module in sorted(set(PUBLIC) & PACKAGES):
        held = vars(importlib.import_module(module))
        if "__all__" not in held:
            faults.append(f"{module} has none")
            continue
        listed = [name for some in LISTS for name in held.get(some, ())]
        offered = {
            name
            for name, value in held.items()
            if not (name.startswith("_") or inspect.ismodule(value))
        }
        unlisted = offered - set(listed) - used_elsewhere(module) - FORMER
        faults += [f"{module} misses {name}" for name in sorted(unlisted)]
        absent = [name for name in listed if not hasattr(sys.modules[module], name)]
        faults += [f"{module} lists {name} without it" for name in absent]
    assert not faults, listing(faults)


def of_ours():
    """(name, object) of the functions and classes that the public modules offer."""
    for module in PUBLIC:
        for name, value in exported(module).items():
            function = hasattr(value, "__wrapped__") or inspect.isfunction(value)
            if inspect.isclass(value) or function:
                yield f"{module}.{name}", value


def test_every_public_name_has_a_docstring():
    without = []
    for name, value in of_ours():
        last = name.rpartition(".")[2]
        doc = inspect.cleandoc(value.__doc__ or "")
        # A record without one would show its generated signature, a family its name.
        if len(doc) <= 10 or doc.startswith(f"{last}(") or doc.split("\n")[0] == last:
            without.append(name)
    assert not without, listing(without)


def test_public_functions_are_fully_annotated():
    without = []
    for name, value in of_ours():
        if inspect.isclass(value):
            continue
        signature = inspect.signature(value)
        bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
        bare += ["return"] if signature.return_annotation is signature.empty else []
        without += [f"{name}: {', '.join(bare)}"] if bare else []
    assert not without, listing(without)


def test_no_test_skips_where_a_package_of_the_test_extra_is_missing():
    """Such a test would never run, and nobody would see it: it imports the package and fails."""
    called = re.compile(r"importorskip\(\"(\w+)")
    skipped = {name for path in TESTS.rglob("*.py") for name in called.findall(path.read_text())}
    assert skipped <= {"mypy", "pyright"}  # of the extra `dev` alone


def test_every_file_says_what_it_is():
    without = [module for module, path in MODULES.items() if not ast.get_docstring(tree_of(path))]
    assert not without, listing(without)
