"""Results can grow: public functions answer with records that nobody can take apart by place."""

import copy
import dataclasses
import inspect
import pickle
import typing
from contextlib import suppress
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_imports import of_ours

import unrolled as ur
from unrolled._base.results import Result

RESULTS = {
    name.removeprefix("unrolled."): value
    for name, value in of_ours()
    if inspect.isclass(value) and issubclass(value, Result)
}
# What functions return for others to take: params, states and data are NamedTuples.
TUPLES = {
    *("app.studies.Pictures", "app.studies.Samples", "layers.Unrolled", "problems.Benchmark"),
    *("linear_programs.Whitened", "pursuit.Momentum", "training.Trained"),
}


def named(hint):
    """The records of ours that an annotation names."""
    if hasattr(hint, "_fields") and hint.__module__.startswith("unrolled."):
        yield hint
    for part in typing.get_args(hint):
        yield from named(part)


def filled(cls):
    """A result with an array of its own in each field."""
    return cls(**{name: np.full((2, 3), float(k)) for k, name in enumerate(cls._fields)})


def test_public_functions_answer_with_results():
    """And so do the methods of results."""
    functions = [value for _, value in of_ours() if not inspect.isclass(value)]
    functions += [f for of in RESULTS.values() for f in vars(of).values() if inspect.isfunction(f)]
    tuples = set()
    for function in map(inspect.unwrap, functions):
        with suppress(NameError):  # named for type checkers only
            hint = typing.get_type_hints(function).get("return")
            tuples |= {of for of in named(hint) if not issubclass(of, Result)}
    found = {f"{of.__module__.partition('._')[0]}.{of.__name__}" for of in tuples}
    assert {name.removeprefix("unrolled.") for name in found} == TUPLES
    assert len(RESULTS) > 60


@pytest.mark.parametrize("cls", RESULTS.values(), ids=RESULTS)
def test_a_result_is_taken_by_the_names_of_its_fields(cls):
    result, names = filled(cls), cls._fields
    for take in (iter, lambda of: of[0], lambda of: of[:1], lambda of: [*of]):
        with pytest.raises(TypeError, match=rf"^{cls.__name__}: a result is not .*\.{names[-1]}$"):
            take(result)
    for name in (names[0], names[-1]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, name, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(result, names[0])
    with pytest.raises(TypeError, match="there is no field 'unheard'; take its fields by name"):
        result.replace(unheard=0)
    assert tuple(result.asdict()) == names and cls(**result.asdict()) == result
    moved = result.replace(**{names[-1]: None})
    assert getattr(moved, names[-1]) is None and moved != result
    # A tree as the NamedTuple of the same fields would be one: in order, with names as keys.
    paths, form = jax.tree_util.tree_flatten_with_path(result)
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [f".{name}" for name in names]
    assert jax.tree.unflatten(form, [leaf for _, leaf in paths]) == result
    for other in (pickle.loads(pickle.dumps(result)), copy.copy(result), copy.deepcopy(result)):
        assert other == result and type(other) is cls


@pytest.mark.parametrize("cls", RESULTS.values(), ids=RESULTS)
def test_a_result_with_a_field_more_serves_code_that_takes_fields_by_name(cls):
    class Grown(cls):
        added: Any = 0.5

    result, names = filled(cls), cls._fields
    grown = Grown(**result.asdict())
    assert Grown._fields == (*names, "added") and cls._fields == names
    assert grown.asdict() == result.asdict() | {"added": 0.5} and grown != result
    assert grown.replace(**{names[0]: 1}).added == 0.5
    assert jax.tree.map(np.shape, grown).asdict() == dict.fromkeys(names, (2, 3)) | {"added": ()}


def test_results_pass_through_transformations():
    results = [filled(cls) for cls in RESULTS.values()]
    for function in (jax.jit(lambda tree: tree), jax.vmap(lambda tree: tree)):
        assert function(results) == results
    total = jax.grad(lambda tree: sum(map(jnp.sum, jax.tree.leaves(tree))))(results)
    assert total == jax.tree.map(np.ones_like, results)
    last, rows = jax.lax.scan(lambda tree, _: (tree, tree), results, None, length=2)
    assert last == results and rows == jax.tree.map(lambda leaf: np.stack([leaf] * 2), results)


def test_results_are_equal_by_their_numbers():
    one = ur.pursuit.Pursuit(np.ones(3), 0.0, 0.0, 1, True)
    assert one == one.replace(x=jnp.ones(3)) and one != one.replace(x=np.ones(2))
    assert one != one.replace(x=np.array([1.0, 1.0, np.nan])) and one != (1, 2)
    assert one == mock.ANY  # another type may answer
    unknown = one.replace(x=jnp.array([1.0, np.nan]), gap=np.nan)
    assert unknown == pickle.loads(pickle.dumps(unknown)) != unknown.replace(gap=0.0)
    assert one != ur.pursuit.DeepPursuit(*list(one.asdict().values())[:5])
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
    tried = ur.training.Tried("ista", "init", 1e-3, 10, 0.5)
    assert len({tried, tried.replace(steps=10), tried.replace(steps=20)}) == 2
    assert len({tried.replace(validation=nan) for nan in (np.nan, -np.float64(np.nan))}) == 1


def test_the_repr_of_a_result_is_short():
    large = ur.pursuit.DeepPursuit((np.ones((40, 50)), jnp.ones(7)), *[0.5] * 4)
    assert repr(large) == (
        "DeepPursuit(xs=(float64[40,50], Array([1., 1., 1., 1., 1., 1., 1.], dtype="
        f"{jnp.ones(1).dtype}" + ")), gap=0.5, residual=0.5, steps=0.5, converged=0.5)"
    )
    params = ur.layers.Unrolled(None, ur.layers.Step(np.ones((30, 2))))
    history = ur.training.History(np.ones(500), (ur.training.Record(0, 1.0, 2.0, 3.0),) * 100)
    whole = repr(ur.training.Restored(params, None, None, {"history": history}))
    assert "params=Unrolled(shared=None, steps=Step(gamma=float64[30,2]))" in whole
    assert "stage=0), ...), zero=inf" in whole and len(whole) < 900 and "\n" not in whole
