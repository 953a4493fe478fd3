"""A first call of an exported numeric function compiles at most three programs.

Every operation outside of `jit` compiles a program of its own for each new shape. The table of
first_calls.py says how each function is called; a function without a line fails the test.
"""

import inspect
from functools import partial

import jax
import numpy as np
import pytest
import registry
from test_imports import exported as offered

import unrolled as ur
from unrolled._base import threads
from unrolled.app.cli import main

MOST = 3  # of a chain, for each of its dictionaries; of a study, for each of its functions
# Programs of `unrolled compare` without arguments, in one thread.
MOST_OF_COMPARE = 195
# Those of unrolled.pursuit are in test_pursuit_programs.py; learning is a loop over programs.
MODULES = (
    ur.activations,
    ur.dictionaries,
    ur.theory,
    ur.analytic,
    ur.metrics,
    ur.problems,
    ur.layers,
    ur.networks,
    ur.realize,
    ur.training,
    ur.comparison,
)

# Functions that make no array: of names, options, records and files.
NOT_NUMERIC = {
    *"activations.as_power activations.by_name activations.celu activations.check".split(),
    *"activations.compose activations.describe activations.elu".split(),
    *"activations.from_description activations.is_known activations.is_monotone".split(),
    *"activations.leaky_relu activations.scale activations.sigmoid_sum".split(),
    *"dictionaries.as_flat dictionaries.block_of dictionaries.flat_batch".split(),
    "dictionaries.refuse_parts",
    *"activations.tanh_sum dictionaries.pytree layers.as_activation".split(),
    *"layers.check_params layers.check_records layers.is_record layers.names_with_role".split(),
    *"layers.option layers.records_of training.merge training.restore".split(),
    *("comparison.products", "layers.along_atoms", "realize.cnn_size"),  # they count and name
    *"training.restore_tree training.save training.save_tree training.scale_steps".split(),
    *"training.split training.trainable training.digest training.versions".split(),
}
# Loops over programs of their own, compiled once per run.
LOOPS = set(
    "networks.learn_deconvolution training.by_recipe training.curriculum training.fit "
    "training.prepare training.recommend training.search training.unsupervised".split()
)


def exported():
    """The public functions of the modules, and the `init` of every family and network."""
    names = set()
    for module in MODULES:
        for name, value in offered(module.__name__).items():
            path = f"{module.__name__.split('.')[-1]}.{name}"
            if inspect.isclass(value) and issubclass(value, (ur.layers.Layer, ur.networks.Network)):
                registered = name in (*ur.layers.FAMILIES, *ur.networks.NETWORKS)
                names |= {f"{path}.init"} if registered else set()
            elif inspect.isfunction(value):
                names.add(path)
    return names


@pytest.fixture
def table():
    """The file of all calls, which makes what they need when the first test asks for it."""
    import first_calls

    return first_calls


def test_every_numeric_function_has_a_line(table):
    lines = {name.split(",")[0] for name in table.CALLS}
    assert exported() - NOT_NUMERIC - LOOPS - lines == set()


@pytest.fixture
def count(compiled):
    """The programs that a call compiles in a process that has compiled none."""

    def count(call):
        jax.clear_caches()
        compiled.clear()
        call()
        return len(compiled)

    return count


def module_of(name):
    """The first word: theory of "theory.babel, Conv"."""
    return name.split(",")[0].split(".")[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::unrolled.analytic.HypothesisWarning")
@pytest.mark.parametrize(
    "module", ["products", *(module.__name__.rpartition(".")[2] for module in MODULES)]
)
def test_a_first_call_compiles_at_most_three_programs_and_a_second_none(
    count, compiled, table, module
):
    calls = {name: call for name, call in table.CALLS.items() if module_of(name) == module}
    assert calls
    counts, again = {}, {}
    for name, call in calls.items():
        counts[name] = count(call)
        compiled.clear()
        call()
        again[name] = len(compiled)
    most = {name: table.MOST_OF.get(name, MOST * table.CHAINS.get(name, 1)) for name in counts}
    assert {name: n for name, n in counts.items() if n > most[name]} == {}
    # `unroll` scans a step of the user as it comes: it is for programs of one's own.
    assert {name: n for name, n in again.items() if n and name != "layers.unroll"} == {}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", registry.PURSUITS)
def test_a_second_call_of_a_pursuit_compiles_nothing(name, compiled):
    D = np.eye(4)
    for _ in range(2):
        compiled.clear()
        registry.PURSUITS[name](D, D[1])
    assert not compiled


@pytest.mark.filterwarnings("ignore::unrolled.analytic.HypothesisWarning")
def test_certificates_of_float32_compile_no_conversions(count):
    """Their numbers are measured in float64, and the thresholds are stored in float32."""
    D = np.random.default_rng(0).normal(size=(11, 19))
    narrow = jax.device_put(np.asarray(D / np.linalg.norm(D, axis=0), np.float32))
    with jax.enable_x64(False):
        call = partial(ur.analytic.lista_cp, narrow, depth=3, sparsity=1, bound=1.0)
        assert count(call) <= MOST


@pytest.mark.slow
def test_a_certified_chain_of_more_depths_compiles_no_more(count):
    """Its steps are one program for each shape, whatever their number."""
    of_one, of_three = (
        count(lambda depths=depths: ur.app.studies.certified_chain(0, depths=depths))
        for depths in ((3,), (3, 4, 5))
    )
    assert of_three == of_one


@pytest.mark.slow
@pytest.mark.usefixtures("float32_by_default")
def test_the_command_of_the_readme_compiles_few_programs(count, tmp_path, capsys, monkeypatch):
    """All standard sections, in smaller sizes: numbers of steps and signals add no program."""
    # Threads that need the same small program at the same moment would compile it twice.
    monkeypatch.setattr(threads, "_available", lambda: 1)
    small = ["--quick", "--steps", "3", "--depth", "3", "--output", str(tmp_path)]
    assert count(lambda: main(["compare", *small, "--no-cache"])) <= MOST_OF_COMPARE
    assert "Report:" in capsys.readouterr().out
