"""What the scripts of benchmarks/ count, on problems that take seconds."""

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrolled as ur

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A script as a module, by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        monkeypatch.setitem(sys.modules, spec.name, module := importlib.util.module_from_spec(spec))
        spec.loader.exec_module(module)
        return module

    return load


def test_every_function_of_dictionaries_is_measured_on_large_ones_or_says_that_it_is_d_x_d(script):
    measured = {name.partition(",")[0] for name in script("_large").CALLS}
    missing = []
    for module, prefix in ((ur.theory, ""), (ur.analytic, "analytic.")):
        for name in module.__all__:
            function = getattr(module, name)
            if isinstance(function, type) or not {"D", "Ds"} & set(_arguments(function)):
                continue
            known = {prefix + name, function.__name__} & measured
            if not known and "d x d" not in function.__doc__:
                missing.append(prefix + name)
    assert not missing and len(measured) > 40


def _arguments(function):
    return inspect.signature(function).parameters


def test_the_tables_of_tasks_are_those_of_its_rows():
    """What a page says next to what people use today was measured."""
    rows = json.loads((FOLDER / "tasks.json").read_text())["rows"]
    guide = FOLDER.parent / "notebooks" / "guide"
    for task, methods in rows.items():
        page = (guide / f"{task.partition(',')[0]}.md").read_text()
        for method, row in methods.items():
            dB = row["dB"]
            line = f"| {method} | {np.mean(dB):.1f} | {min(dB):.1f} to {max(dB):.1f} |"
            assert line in page, (task, line)
    short = (FOLDER.parent / "notebooks" / "measurements" / "tasks.md").read_text()
    told = re.findall(r"^\| (\w.*) \| (\w.*) \| (-?[\d.]+) \|$", short, re.M)
    assert {task for task, *_ in told} == set(rows)
    for task, method, dB in told:
        assert dB == f"{np.mean(rows[task][method]['dB']):.1f}", (task, method)


def test_the_tables_of_parts_are_those_of_its_rows():
    rows = json.loads((FOLDER / "parts.json").read_text())["rows"]
    for task, methods in rows.items():
        page = "complex_signals" if task.startswith("complex") else "many_measurements"
        text = (FOLDER.parent / "notebooks" / "guide" / f"{page}.md").read_text()
        for line in _lines(task, methods):
            assert line in text, (task, line)


def test_the_table_of_mri_is_that_of_its_rows(script, capsys):
    script("mri").table()
    lines = capsys.readouterr().out.splitlines()
    for page in ("guide", "measurements"):
        text = (FOLDER.parent / "notebooks" / page / "mri.md").read_text()
        assert len(lines) > 5 and all(line in text for line in lines), page


def test_a_support_is_found_where_all_of_its_rows_are(script):
    truth = np.stack([np.arange(9), np.arange(9)])
    X = np.zeros((2, 60, 2))
    X[0, :9] = X[1, 1:10] = 1
    assert script("parts").recovered(X, truth) == 0.5


def _lines(task, methods):
    """The lines of a table: a task and what stands under it, mean, least and largest."""
    for name, found in methods.items():
        if isinstance(found, dict):
            yield from _lines(name, found)
            continue
        mean, least, most = (
            f"{v:.{1 if 'complex' in task else 2}f}"
            for v in (np.mean(found), min(found), max(found))
        )
        yield f"| {task.removeprefix('complex, ')} | {name} | {mean} | {least} to {most} |"


def test_the_recipe_is_judged_by_kinds_of_signals_on_which_nothing_was_chosen(script, tmp_path):
    """Medians over the seeds of the test kinds count, at the depth of the table."""
    recipe = script("recipe")
    recipe.ROWS = tmp_path / "rows.jsonl"
    assert len(recipe.TEST) == 10 and not set(recipe.TEST) & set(recipe.CHOOSE)
    better, equal, *worse = recipe.TEST
    gaps = {better: (1, 1, 9), equal: (2, 2, 2), worse[0]: (1, 3, 3), recipe.CHOOSE[0]: (0, 0, 0)}
    for name, means in gaps.items():
        for seed, mean in enumerate(means):
            own, solver = ({"mean": m, "microseconds": 1, "above zero": 0} for m in (mean, 2))
            solvers = {f"fista {K}": {**solver, "not better": 0.5} for K in (16, 24, 32, 64)}
            solvers |= {"bcd 16": solver, "family": "bcd"}
            row = {"problem": name, "seed": seed, "depth": 16, "shape": (2, 3), "nonzeros": 1}
            row |= {"recipe": own, "seconds": 1, "exact microseconds": 1, **solvers}
            recipe.write(recipe.ROWS, row)
            for other in ({"depth": 8}, {"family": "lfista_cp"}):
                recipe.write(recipe.ROWS, row | other | {"recipe": {**own, "mean": 0}})
    *_, chosen, _, tested, sentence = recipe.tables(16).split("\n\n")
    assert sentence.startswith("On 2 of these 3 kinds")
    assert len(chosen.splitlines()) == 3 and len(tested.splitlines()) == 5


TABLES = """
FileNames
1 "{file}"

FileLocations
1 {{file_name_id=1 function_name_id=1 line={line} end_line=4 column=2 end_column=52}}

"""


def _compiled(f, file="a.py", line=4):
    """The text of a compiled function with the tables that JAX writes before it from 0.10.2 on."""
    head, _, program = jax.jit(f).lower(jnp.ones(3)).compile().as_text().partition("\n%")
    head, line_end, _ = head.partition("\n")
    return head + line_end + TABLES.format(file=file, line=line) + "%" + program


def test_the_digest_of_a_program_tells_what_it_computes_and_not_where_it_is_written(script):
    digest = script("programs").digest
    two = _compiled(lambda x: jnp.sin(2 * x) @ x)
    assert "FileNames" in two and "ENTRY" in two
    assert digest(_compiled(lambda x: jnp.sin(2 * x) @ x, "b.py", 7)) == digest(two)
    assert digest(_compiled(lambda x: jnp.sin(3 * x) @ x)) != digest(two)
    with pytest.raises(ValueError, match="no program in the text"):
        digest("HloModule of another form")


@pytest.mark.slow
def test_the_programs_of_all_families_are_compared_and_no_two_have_one_digest(script, monkeypatch):
    ours = {n: f for n, f in ur.layers.FAMILIES.items() if f.__module__.startswith("unrolled.")}
    monkeypatch.setattr(ur.layers, "FAMILIES", ours)  # without those of other tests
    digests = script("programs").programs()
    layers = {name.partition(",")[0] for name in digests if not name.startswith("pursuit: ")}
    assert layers == set(ours)
    assert len(set(digests.values())) == len(digests)


@pytest.mark.slow
def test_certificates_are_judged_by_linear_programs(script, float32_by_default, monkeypatch):
    """None is refuted, and a certificate of any code at all would be."""
    certificates = script("certificates")
    D = np.asarray(ur.dictionaries.gaussian(0, 30, 60), float)
    truth = {}
    methods = {"truth": lambda Y: truth["X"], "zero": lambda Y: np.zeros((len(Y), 60))}
    for s, recovered in ((3, True), (14, False)):
        rng = np.random.default_rng(s)
        truth["X"] = X = np.zeros((8, 60))
        for x in X:
            x[rng.permutation(60)[:s]] = rng.normal(size=s)
        row = certificates.judged(D, X, methods, rng, every=4)
        assert row["signals"] == 8 and row["highs"] >= 2 and row["gap"] < 1e-8
        assert (row["recovered"] == 8) is recovered and (row["truth"]["unique"] == 8) is recovered
        for name in methods:
            assert row[name]["refuted"] == row[name]["unjudged"] == 0 and row[name]["apart"] < 1e-6
        assert all(row[fault] == {"codes": 8, "wrong": 0} for fault in certificates.FAULTS)
    # The same signals with certificates that are granted without a proof.
    certify = ur.theory.certify_code

    def granted(*arguments, **options):
        return certify(*arguments, **options).replace(unique=np.ones(8, bool))

    monkeypatch.setattr(ur.theory, "certify_code", granted)
    row = certificates.judged(D, X, methods, rng)
    assert row["truth"]["refuted"] > 4 and row["swapped"]["wrong"] == 8


@pytest.mark.slow
def test_operands_of_products_are_rounded_to_their_format(script):
    """By at most half a unit of their last bit each, with sums in the dtype; 23 bits stay."""
    precision = script("precision")
    A, B = (np.random.default_rng(i).normal(size=(8, 8)).astype(np.float32) for i in (0, 1))
    exact, size = A.astype(float) @ B, np.abs(A).astype(float) @ np.abs(B)
    with precision.products_of(23):
        assert np.array_equal(jnp.asarray(A) @ B, jax.jit(jnp.matmul)(A, B))
    for bits in (10, 7):
        with precision.products_of(bits):
            found = np.asarray(jnp.asarray(A) @ B, float)
        unit = 2.0 ** -(bits + 1)
        sums = 8 * 2.0**-24
        off = np.abs(found - exact) / size
        assert unit / 8 < off.max() <= 2 * unit + unit**2 + sums
    assert np.abs(np.asarray(jnp.asarray(A) @ B, float) - exact).max() < 8 * 2.0**-24 * size.max()


@pytest.mark.slow
def test_a_pursuit_in_low_precision_claims_no_more_than_it_has(script, float32_by_default):
    """The gap is computed of the same products, and yet a code that converged is as good."""
    precision = script("precision")
    rows = precision.pursuits(8, 20, 40, 1e-4)
    assert rows["float32"]["converged"] == 1
    for row in rows.values():
        assert row["largest gap of these"] is None or row["largest gap of these"] < 2e-4
    assert rows["bfloat16 products"]["converged"] < 1


def test_the_design_of_cells_is_balanced(script):
    """Each level of a factor is in equally many of the 40 cells, up to one; no cell twice."""
    lista = script("lista")
    cells = list(lista.DESIGN.values())
    assert len(set(cells)) == len(cells) == 40
    for name, levels in lista.LEVELS.items():
        counts = [sum(getattr(cell, name) == level for cell in cells) for level in levels]
        assert max(counts) - min(counts) <= 1 and sum(counts) == 40


@pytest.mark.parametrize("kind", ["Gaussian", "DCT", "condition 15", "condition 50", "correlated"])
def test_dictionaries_of_the_benchmark(script, kind):
    """Unit atoms; the condition number is that of the name after the atoms were normalised."""
    lista = script("lista")
    D = lista.dictionary(lista.Cell(40, 80, dictionary=kind), 0)
    np.testing.assert_allclose(np.linalg.norm(D, axis=0), 1, rtol=1e-12)
    if kind.startswith("condition"):
        assert np.linalg.cond(D) == pytest.approx(float(kind.split()[1]), rel=0.02)
    if kind == "correlated":
        assert np.mean(np.sum(D[:, 1:] * D[:, :-1], 0)) == pytest.approx(0.8, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["Gaussian", "Laplacian", "constant"])
def test_signals_of_the_benchmark(script, codes, float32_by_default):
    """Nonzeros of variance 1 with the share p, and noise of the SNR, within four deviations."""
    lista = script("lista")
    cell = lista.Cell(40, 80, snr=20.0, codes=codes, probability=0.2)
    D = jnp.asarray(lista.dictionary(cell, 0), jnp.float32)
    Y, X = lista.sampler(cell, D, 4000)(jax.random.key(0))
    nonzeros = np.asarray(X)[np.asarray(X) != 0]
    assert len(nonzeros) / X.size == pytest.approx(0.2, abs=4 * 0.4 / np.sqrt(X.size))
    # The squares have a deviation of sqrt(2), sqrt(5) for Laplacian codes.
    assert np.mean(nonzeros**2) == pytest.approx(1, abs=4 * 2.3 / np.sqrt(len(nonzeros)))
    noise = np.asarray(Y - X @ D.T)
    assert 10 * np.log10(np.mean(noise**2) / np.mean(np.asarray(Y) ** 2)) == pytest.approx(
        -20, abs=1
    )


def test_scores_of_the_benchmark(script):
    """One signal in a hundred fails: it decides the ratio of sums, and the mean hardly sees it."""
    lista = script("lista")
    X = np.ones((1000, 4))
    errors = np.full(1000, 4e-6)
    errors[:10], errors[10] = 8.0, np.nan
    found = lista.scores(errors, X)
    assert found["nmse"] is None  # a code that is no number counts as infinitely far
    assert found["worse than zero"] == found["above -20 dB"] == 0.011
    found = lista.scores(np.delete(errors, 10), X[1:])
    ratio = (10 * 8 + 989 * 4e-6) / (999 * 4)
    assert found["nmse"] == pytest.approx(10 * np.log10(ratio), abs=0.01)
    assert found["interval"][0] < found["nmse"] < found["interval"][1]
    assert found["mean"] == pytest.approx((10 * 10 * np.log10(2) - 989 * 60) / 999, abs=0.01)


def test_a_bound_is_one_of_other_signals(script):
    """Of signals that the bound has not seen at most .1 % are above it."""
    lista = script("lista")
    cell, layer = lista.Cell(m=8, d=12, depth=3), ur.layers.ista(3)
    with jax.enable_x64(False):
        D = jnp.asarray(lista.dictionary(cell, 0), jnp.float32)
        params = layer.init(None, D)
        level = lista.bound(cell, D, layer, params)
        Y, X = lista.drawn(cell, D, jax.random.key(0), 20_000)
        errors = lista.squares(layer, params, D, Y, X)[:, -1]
    sizes = np.sum(np.square(np.asarray(X)), 1)
    ratios = errors[sizes > 0] / sizes[sizes > 0]
    assert np.mean(ratios > 10 ** (level / 10)) <= 1e-3
    assert np.mean(ratios > 10 ** ((level - 1) / 10)) > 1e-3  # nor is it a loose one


def test_what_was_trained_is_carried_to_another_dictionary(script):
    """Its weights in closed form are made anew; matrices that were trained stay."""
    lista = script("lista")
    D, other = (ur.dictionaries.gaussian(jax.random.key(i), 6, 9) for i in range(2))
    layer = ur.layers.alista(3)
    params = ur.layers.unstack(layer.from_weights(None, D, D))
    steps = tuple(step._replace(gamma=step.gamma + k) for k, step in enumerate(params.steps))
    params = params._replace(steps=steps)
    moved = lista.carried(layer, params, D, other, None)
    chex.assert_trees_all_equal(moved.steps, params.steps)
    chex.assert_trees_all_equal(moved.shared, layer.from_weights(None, other, other).shared)
    chex.assert_trees_all_equal(lista.carried(layer, params, D, D, None), params)
    layer = ur.layers.lista_cp(2)
    params = layer.from_weights(None, D, D)
    chex.assert_trees_all_equal(lista.carried(layer, params, D, other, None), params)


def test_a_row_without_its_bound_is_made_again(script):
    lista = script("lista")
    older = {"test": {"nmse": -6.0}}
    newer = {"test": {"nmse": -6.0, "99.9 %": -4.0, "elsewhere": {lista.ANOTHER: [-6.0, -6.0]}}}
    row = lista.Row("noiseless", "ISTA")
    assert not lista.complete(row, {}) and not lista.complete(row, older)
    assert lista.complete(row, newer) and lista.complete(row, {"failed": "why"})
    for other in (row._replace(seed=1), row._replace(cell="DCT"), row._replace(family="oracle")):
        assert lista.complete(other, older)


def test_a_row_that_is_made_again_has_the_seconds_of_all_that_is_compiled(
    script, tmp_path, monkeypatch
):
    lista = script("lista")
    monkeypatch.setattr(lista, "ROWS", tmp_path / "lista.jsonl")
    row = lista.Row("noiseless", "ISTA")
    with lista.adding() as write:
        for seconds, start in ((3.5, -6.0), (None, -6.1)):
            write(row, choice={"seconds": seconds, "start": start})
    assert lista.read()[row]["choice"] == {"seconds": 3.5, "start": -6.1}


def test_one_process_adds_rows_at_a_time(script, tmp_path, monkeypatch):
    import fcntl

    lista = script("lista")
    monkeypatch.setattr(lista, "ROWS", tmp_path / "lista.jsonl")
    with lista.ROWS.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another process adds rows"):
            lista.run(["noiseless"], 1.0)


def test_at_equal_time_a_slow_family_has_fewer_steps(script):
    """Of four steps with eight products those of twice the time end at half of them."""
    lista = script("lista")
    report = script("lista_report")
    entry = {"choice": {"products": 8}, "test": {"per step": [-1.0, -2.0, -3.0, -4.0]}}
    there = {
        lista.Row("noiseless", name): entry | {"time": {"ms": ms, "products, ms": 8.0}}
        for name, ms in (("ISTA", 8.0), ("FISTA", 16.0))
    }
    columns = [line.split(" | ")[2:5] for line in report.at_equal_time(there).splitlines()[2:]]
    assert columns == [["-4.0", "-4.0", "-4.0"], ["-2.0", "-4.0", "-4.0"]]
