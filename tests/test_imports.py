"""What importing costs and touches, which file may import which, and which names the package
promises.
"""

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unrolled as ur

PACKAGE = Path(ur.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)

# The first part of a module's name under `unrolled`, by floor. A file imports from lower floors and
# from its own.
FLOORS = (
    ("_checks", "_numbers"),
    ("activations", "dictionaries", "plots"),
    ("problems", "metrics", "datasets", "linear_programs", "_interior_point"),
    ("theory", "pursuit"),
    ("layers",),
    ("analytic", "networks"),
    ("training", "realize"),
    ("compare", "nnx", "sklearn", "distributed", "export", "models"),
    ("cli", "commands", "__main__"),
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


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


# The walls of the house


def module_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("unrolled", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path): path for path in FILES}


def imported_names(path):
    """Dotted names that a file imports, also inside its functions; relative imports are not used."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import at line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def imports_of_ours(path):
    return {name for name in imported_names(path) if name.split(".")[0] == "unrolled"}


def floor_of(module):
    return FLOOR[module.split(".")[1]]


def test_every_file_has_its_floor():
    assert {name.split(".")[1] for name in MODULES if name != "unrolled"} <= set(FLOOR)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"unrolled"}))
def test_a_file_imports_from_no_floor_above(module):
    above = {name for name in imports_of_ours(MODULES[module]) if floor_of(name) > floor_of(module)}
    assert not above


def test_no_import_goes_in_a_circle():
    graph, done = (
        {name: imports_of_ours(path) & set(MODULES) for name, path in MODULES.items()},
        set(),
    )

    def visit(name, trail):
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in sorted(graph[name] - {"unrolled"}):
                visit(other, (*trail, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


ALLOWED = {"jax", "numpy", "optax", "unrolled"}  # at the top of a file


@pytest.mark.parametrize(
    "module", [name for name in sorted(MODULES) if not name.startswith("unrolled.models")]
)
def test_optional_packages_are_imported_inside_functions(module):
    tree = ast.parse(MODULES[module].read_text())
    for node in tree.body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        roots = {name.split(".")[0] for name in names}
        assert roots <= ALLOWED | set(sys.stdlib_module_names), f"line {node.lineno}"


# What the source may not hold


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_global_configuration_and_no_way_to_run_what_a_file_holds(path):
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not {name.split(".")[0] for name in imported_names(path)} & forbidden
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}, (
            node.lineno
        )
        assert not re.search(r"config\.update$|config\.jax_\w+\.set$", called), node.lineno
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert (
            options.get("allow_pickle", "False") == "False"
            and options.get("shell", "False") == "False"
        ), node.lineno
        if called in {"np.load", "numpy.load", "jnp.load"}:
            assert options.get("allow_pickle") == "False", node.lineno
    for node in ast.walk(ast.parse(path.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else []
        assert not any(
            re.match(r"(jax|os)\.(config\b|environ)", ast.unparse(t)) for t in targets
        ), node.lineno


# Public names

BOLD = "shrink soft_threshold mutual_coherence lista lista_cp alista dsc fit"
# Of the names pinned by the design, those that are there.
PINNED = {
    "activations": "Activation relu leaky_relu elu celu selu silu gelu mish softplus hard_swish scale compose shrink "
    "soft_threshold hard_threshold firm_threshold select_support",
    "dictionaries": "dense normalize gaussian dct identity_hadamard paley transversal ill_conditioned Conv Composed "
    "Concatenated Sparse",
    "theory": "mutual_coherence welch_bound coherence babel generalized_coherence stripe_norm recover_on_supports "
    "sparsity_bound max_sparsity schedule rounding_guard error_bar deep_schedule activation_schedule "
    "minimal_entry_weights is_feasible uniqueness stability",
    "pursuit": "threshold ista fista basis_pursuit layered_basis_pursuit",
    "layers": "Layer Unrolled stack unstack unroll ista fista lista lista_cp alista",
    "analytic": "frobenius_weights minimax_weights ista lista_cp alista hyperlista dsc calibrate HypothesisWarning",
    "realize": "cnn attention transformer_block",
    "networks": "dsc Network",
    "training": "fit Fit scale_steps curriculum",
    "compare": "compare Comparison",
    "metrics": "nmse psnr support_scores",
    "problems": "standard_benchmark",
}
FIELDS = {
    "layers.Layer": "init start step apply iterates",
    "layers.Unrolled": "shared steps",
    "theory.GeneralizedCoherence": "upper lower per_atom_upper per_atom_lower W holds",
    "theory.Schedule": "theta error contraction rate floor holds",
    "realize.Realization": "apply layers depth n_weights",
    "pursuit.Pursuit": "x gap residual steps converged",
    "networks.Network": "init apply",
    "training.Fit": "params best D history",
}


def test_pinned_names_are_reachable():
    missing = [
        f"{m}.{n}"
        for m, names in PINNED.items()
        for n in names.split()
        if not hasattr(getattr(ur, m), n)
    ]
    missing += [name for name in BOLD.split() if not hasattr(ur, name)]
    assert not missing
    assert ur.lista is ur.layers.lista and ur.fit is ur.training.fit and ur.dsc is ur.networks.dsc
    assert {f.name for f in ur.activations.Activation.__dataclass_fields__.values()} >= {
        "name", "tail_lipschitz", "tail_sup", "tail_oscillation", "relu_gap"
    }  # fmt: skip


@pytest.mark.parametrize("record", FIELDS)
def test_records_have_their_pinned_fields_first(record):
    module, name = record.split(".")
    expected = FIELDS[record].split()
    assert list(getattr(getattr(ur, module), name)._fields[: len(expected)]) == expected


def test_a_module_does_not_share_its_name_with_what_it_holds():
    """`ur.training.fit` is the function, never a file; `compare` is the one pinned exception."""
    for name in MODULES:
        package, _, last = name.rpartition(".")
        if (
            package
            and hasattr(importlib.import_module(package), last)
            and last not in ("__main__",)
        ):
            assert inspect.ismodule(getattr(importlib.import_module(package), last)), name


def public():
    """Names without an underscore that a public module of ours defines or re-exports, with their
    objects.
    """
    names = [
        m.name
        for m in pkgutil.iter_modules(ur.__path__, "unrolled.")
        if not m.name.split(".")[1].startswith("_")
    ]
    for name in names:
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            ours = getattr(value, "__module__", "").startswith("unrolled")
            # A package re-exports its files; elsewhere what a file imports is not its own.
            own = hasattr(module, "__path__") or getattr(value, "__module__", "") == name
            if not key.startswith("_") and callable(value) and ours and own:
                yield f"{name}.{key}", value


@pytest.mark.parametrize(
    "name, value", list(public()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_public_name_has_a_docstring(name, value):
    doc = inspect.getdoc(value) or ""
    # A NamedTuple or a dataclass without one would show its generated signature.
    assert len(doc) > 10 and not doc.startswith(f"{name.rsplit('.', 1)[1]}("), doc


def test_every_file_says_what_it_is():
    assert not [str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
