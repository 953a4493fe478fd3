"""Layers and networks as records of their options: identity, text, errors and checks of params."""

import argparse
import collections
import copy
import dataclasses
import gc
import inspect
import pickle
import re
import sys
import threading
import weakref
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
from faults import rows

import unrolled as ur
from unrolled import layers
from unrolled.layers import Fixed, Unrolled, Weights, _layer, option, unstack
from unrolled.layers._records import fields_of

M, N, K = 4, 6, 2
EPS = np.finfo(float).eps
# K steps of sums of M + N products of numbers near 1, each rounded, twice.
CLOSE = 2 * (M + N) * K * EPS

FAMILIES = {n: f for n, f in layers.FAMILIES.items() if f.__module__.startswith("unrolled.")}
NETWORKS = dict(ur.networks.NETWORKS)
NAMESPACE = vars(ur.activations) | FAMILIES | NETWORKS
every_family = pytest.mark.parametrize("name", FAMILIES)
every_layer = pytest.mark.parametrize("name", registry.LAYERS)


@pytest.fixture(scope="module")
def problem():
    return np.array(registry._unit(0, M, N)), np.random.default_rng(0).normal(size=M)


@pytest.fixture
def families(monkeypatch):
    """A registry of its own, for tests that define families."""
    known = dict(layers.FAMILIES)
    monkeypatch.setattr(_layer, "FAMILIES", known)
    return known


def started(name, problem, depth=K):
    layer = registry.LAYERS[name](depth)
    return layer, layer.init(jax.random.key(1), problem[0])


# Identity.


EQUAL = {
    "a numpy integer": (lambda: ur.alista(np.int64(16)), lambda: ur.alista(16)),
    "a number of jax": (
        lambda: ur.alista(3, theta=jnp.asarray(0.5)),
        lambda: ur.alista(3, theta=0.5),
    ),
    "an integer for a float": (lambda: ur.alista(3, theta=1), lambda: ur.alista(3, theta=1.0)),
    "a default that is given": (lambda: ur.alista(3, lam=0.1), lambda: ur.alista(3)),
    "depth by name": (lambda: ur.alista(depth=3), lambda: ur.alista(3)),
    "a numpy bool": (lambda: ur.lista(3, tied=np.bool_(False)), lambda: ur.lista(3, tied=False)),
    "a list": (lambda: ur.alista(3, support=[0.1, 1]), lambda: ur.alista(3, support=(0.1, 1.0))),
    "an array": (
        lambda: ur.alista(3, support=np.array([0.1, 0.5])),
        lambda: ur.alista(3, support=(0.1, 0.5)),
    ),
    "the name of an activation": (
        lambda: ur.lista_cp(3, activation="silu"),
        lambda: ur.lista_cp(3, activation=ur.activations.silu),
    ),
    "a function of jax.nn": (
        lambda: ur.lista_cp(3, activation=jax.nn.relu),
        lambda: ur.lista_cp(3),
    ),
    "an activation made again": (
        lambda: ur.lista_cp(3, activation=ur.activations.elu(0.5)),
        lambda: ur.lista_cp(3, activation=ur.activations.elu(0.5)),
    ),
    "a chain from a list": (
        lambda: ur.dsc([ur.alista(2), ur.lista_cp(3)]),
        lambda: ur.dsc((ur.alista(2), ur.lista_cp(3))),
    ),
    "ML-LISTA": (
        lambda: ur.networks.ml_lista(3, lam=1),
        lambda: ur.networks.ml_lista(np.int32(3), lam=1.0),
    ),
}


@pytest.mark.parametrize("case", EQUAL)
def test_equal_options_give_the_same_object(case):
    one, other = EQUAL[case]
    assert one() is other() and one() == other() and hash(one()) == hash(other())
    assert one().apply is other().apply and one().iterates is other().iterates


def test_other_options_and_families_give_other_objects():
    made = [
        *(ur.alista(K), ur.alista(K + 1), ur.alista(K, theta=0.2), ur.alista(K, unroll=2)),
        *(ur.alista(K, remat=True), ur.alista(K, precision="high"), layers.robust_alista(K)),
        *(ur.lista_cp(K), layers.lista_cpss(K), ur.lista_cp(K, support=(0.012, 0.13))),
    ]
    assert len(set(made)) == len(made)


class _counted(layers.ista):
    """A test double: ISTA that counts its traces."""

    traces = []

    def step(self, shared, p, D, y, state):
        self.traces.append(self.depth)
        return super().step(shared, p, D, y, state)


@pytest.fixture
def traces():
    jax.clear_caches()  # what a layer has compiled outlives the test that called it
    _counted.traces.clear()
    return _counted.traces


def test_a_layer_is_a_node_without_leaves(problem, traces):
    D, y = problem
    layer = _counted(K)
    params = layer.init(None, D)
    assert jax.tree.leaves(layer) == [] and jax.tree.map(abs, {"at": layer})["at"] is layer

    @jax.jit
    def apply(pair, Y):
        layer, params = pair
        return jax.vmap(lambda pair, y: pair[0].apply(pair[1], D, y), (None, 0))((layer, params), Y)

    codes = apply((layer, params), np.stack([y, 2 * y]))
    apply((_counted(K), params), np.stack([3 * y, y]))
    assert traces == [K]
    np.testing.assert_allclose(codes[0], layer.apply(params, D, y), rtol=0, atol=CLOSE)
    # A batch of params may carry its layer along.
    together = jax.jit(jax.vmap(lambda pair: pair[0].apply(pair[1], D, y)))
    pair = (layer, jax.tree.map(lambda leaf: np.stack([leaf, leaf]), params))
    np.testing.assert_allclose(together(pair)[1], codes[0], rtol=0, atol=CLOSE)


def test_a_layer_is_an_attribute_of_an_nnx_module(problem):
    from flax import nnx

    class Holder(nnx.Module):
        def __init__(self, layer, params):
            self.layer = layer
            self.params = nnx.data(jax.tree.map(nnx.Param, params))

    D, y = problem
    layer = ur.lista_cp(K)
    params = layer.init(None, D)
    graph, state = nnx.split(Holder(layer, params))
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(params))
    assert nnx.merge(graph, state).layer is layer
    code = nnx.jit(lambda module, y: module.layer.apply(params, D, y))(Holder(layer, params), y)
    np.testing.assert_allclose(code, layer.apply(params, D, y), rtol=0, atol=CLOSE)


COPIES = {
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": dataclasses.replace,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_record_are_the_record(way):
    parts = ur.alista(2), ur.lista(3, tied=False)
    for made in (*parts, ur.dsc(parts), ur.networks.ml_lista(3, lam=0.2)):
        assert COPIES[way](made) is made
        assert way == "replace" or COPIES[way]([made])[0] is made


def test_replace_makes_the_layer_of_the_new_options():
    layer = ur.alista(K, support=(0.1, 0.2))
    assert dataclasses.replace(layer, depth=9, unroll=3) is ur.alista(
        9, support=(0.1, 0.2), unroll=3
    )
    with pytest.raises(ValueError, match="theta must be at least 0"):
        dataclasses.replace(layer, theta=-1.0)


@pytest.mark.parametrize("name", ["depth", "theta", "schedule", "anything"])
def test_records_are_frozen(name):
    with pytest.raises(AttributeError):
        setattr(ur.alista(K), name, 1)


def test_threads_that_make_the_same_layer_get_one_object():
    count, interval = 50, sys.getswitchinterval()
    for depth in range(700, 705):
        barrier, made = threading.Barrier(count), [None] * count

        def make(i, depth=depth, barrier=barrier, made=made):
            barrier.wait()
            layer = ur.alista(depth, theta=0.123)
            made[i] = layer, layer.apply

        threads = [threading.Thread(target=make, args=(i,)) for i in range(count)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert {id(layer) for layer, _ in made} == {id(ur.alista(depth, theta=0.123))}
        assert {id(apply) for _, apply in made} == {id(ur.alista(depth, theta=0.123).apply)}


@pytest.mark.slow
def test_layers_that_nobody_holds_are_freed_beyond_the_latest():
    held = ur.alista(999)
    made = [weakref.ref(ur.alista(1000 + i)) for i in range(400)]
    gc.collect()
    alive = [ref() is not None for ref in made]
    assert alive == [False] * (400 - 256) + [True] * 256
    assert ur.alista(999) is held and ur.alista(1399) is made[-1]()


# Text.


@every_layer
def test_the_text_of_a_layer_makes_it(name):
    layer = registry.LAYERS[name](K)
    assert eval(repr(layer), dict(NAMESPACE)) is layer
    changed = dataclasses.replace(layer, unroll=2, remat=True, precision="high")
    assert eval(repr(changed), dict(NAMESPACE)) is changed
    assert str(layer) == repr(layer) and layer.family in repr(layer)


def test_the_text_of_a_network_makes_it():
    rho = ur.activations.compose(ur.activations.elu(0.5), 2)
    chain = ur.dsc([ur.lista_cp(8, activation=rho), ur.alista(4, support=(0.1, 0.2))])
    assert repr(chain) == (
        "dsc((lista_cp(8, activation=compose(elu(0.5), 2)), alista(4, support=(0.1, 0.2))))"
    )
    for network in (chain, ur.networks.ml_lista(8, activation="silu", unroll=4)):
        assert eval(repr(network), dict(NAMESPACE)) is network


def test_the_text_has_the_order_of_the_signature():
    layer = ur.lista_cp(3, remat=True, lam=0.5, activation="silu", tied=False)
    assert repr(layer) == "lista_cp(3, tied=False, lam=0.5, activation=silu, remat=True)"


@pytest.mark.parametrize("name", [*FAMILIES, *NETWORKS])
def test_the_signature_and_the_help_name_every_option(name):
    cls = (FAMILIES | NETWORKS)[name]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    parameters = inspect.signature(cls).parameters
    assert set(parameters) == set(fields)
    for field, parameter in ((fields[name], parameters[name]) for name in fields):
        missing = field.default is dataclasses.MISSING
        assert parameter.default == (inspect.Parameter.empty if missing else field.default)
        assert parameter.annotation == field.type
        by_name = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert by_name is field.kw_only
        assert re.search(rf"^    {field.name}: \S", cls.__doc__, flags=re.MULTILINE)
    first = "layers" if cls is ur.networks.dsc else "depth"
    assert list(parameters)[0] == first and not fields[first].kw_only
    assert max(map(len, cls.__doc__.splitlines())) <= 100
    summary, gap, *_ = cls.__doc__.splitlines()
    assert summary.endswith(".") and gap == ""
    for method in ("init", "step", "start", "apply", "iterates", "check"):
        if hasattr(cls, method):
            assert inspect.getdoc(getattr(cls, method))


def test_the_options_of_the_help_stand_before_the_reference():
    sections = re.findall(r"^(\w+):", ur.alista.__doc__, flags=re.MULTILINE)
    assert sections == ["Params", "Args", "Reference", "Example"]


# Errors.


class _limited(layers.ista):
    """A test double with a limited whole number."""

    taps: int = option(default=2, above=1, below=9)


class _plain(layers.ista):
    """A test double with an option as dataclasses write it."""

    relaxation: float = 1.5
    start_at: int | None = dataclasses.field(default=None, metadata={"unit": "step"})


class _taking(layers.ista):
    """A test double with an option of any type."""

    taps: tuple = option(default=())


class _worded(ur.records.Record):
    """A test double with words, and numbers that may be missing or infinite."""

    word: str = option(default="one", choices=("one", "two"))
    share: float = option(default=0.5, above=0, most=1)
    clip: float = option(default=np.inf, above=0, most=np.inf)
    size: int | None = option(default=None, least=1)
    added: float = option(default=1.0, absent=0.0)


# Call, error, the essential words of the message.
test_bad_options_are_refused = rows(
    (
        lambda: ur.alista(K, thresh=1),
        TypeError,
        "^alista: unknown option 'thresh'; the options are depth, lam, theta, ridge, support",
    ),
    (
        lambda: ur.alista(K, thetta=1),
        TypeError,
        "^alista: unknown option 'thetta', perhaps 'theta'; the options are",
    ),
    (
        lambda: layers.liht(K),
        TypeError,
        "^liht: sparsity is missing .number s of entries that a step keeps.*; the options are",
    ),
    (lambda: ur.alista(), TypeError, "^alista: depth is missing .K, the number of st"),
    (
        lambda: ur.alista(K, 0.1),
        TypeError,
        r"^alista: 2 options given by position, expected 1 \(depth\); the options are",
    ),
    (lambda: ur.alista(K, depth=K), TypeError, "depth given by position and by name"),
    (lambda: ur.alista("3"), TypeError, "depth must be an integer, got '3'"),
    (lambda: ur.alista(2.5), TypeError, "depth must be an integer"),
    (lambda: ur.alista(np.nan), TypeError, "depth must be an integer, got nan"),
    (lambda: ur.alista(True), TypeError, "depth must be an integer"),
    (lambda: ur.alista(-1), "depth must be at least 0, got -1"),
    (lambda: ur.alista(K, theta="0.1"), TypeError, "theta must be a number, got '0.1'"),
    (lambda: ur.alista(K, theta=True), TypeError, "theta must be a number"),
    (lambda: ur.alista(K, lam=None), TypeError, "lam must be a number"),
    (lambda: ur.alista(K, theta=[0.1]), TypeError, "theta must be a number"),
    (lambda: ur.alista(K, theta=np.full(K, 0.1)), TypeError, "theta must be a number"),
    (lambda: ur.alista(K, theta=np.nan), "theta must be .*finite, got nan"),
    (lambda: ur.alista(K, theta=np.inf), "theta must be .*finite, got inf"),
    (lambda: ur.alista(K, theta=-0.1), "theta must be at least 0"),
    (lambda: ur.lista(K, tied=1), TypeError, "tied must be True or False, got 1"),
    (lambda: _taking(K, taps=[1]), TypeError, "option taps must be .*hashable.*list"),
    (lambda: _taking(K, taps=np.ones(2)), TypeError, "option taps .*ndarray"),
    (lambda: _taking(K, taps=jnp.ones(2)), TypeError, "option taps .*Array"),
    (lambda: _taking(K, taps=(np.ones(2),)), TypeError, "option taps"),
    (lambda: ur.lista_cp(K, activation=jnp.sum), "activation .*expected the same shape and dtype"),
    (
        lambda: ur.lista_cp(K, activation=np.tanh),
        "activation .*tanh.* fails on a traced float32 array",
    ),
    (
        lambda: ur.lista_cp(K, activation=lambda v: v if v > 0 else 0),
        "fails on a traced float32 array",
    ),
    (
        lambda: ur.lista_cp(K, activation=lambda v, theta: v),
        "fails on a traced float32 array .*missing 1 required",
    ),
    (lambda: ur.lista_cp(K, activation=3), TypeError, "activation"),
    (lambda: ur.alista(K, support=("0.1", "0.5")), "support must"),
    (lambda: ur.alista(K, support="01"), "support must"),
    (lambda: _limited(K, taps=9), "_limited: taps must be above 1 and below 9 and finite, got 9"),
    (lambda: _limited(K, taps=1), "taps must be above 1"),
    (
        lambda: _worded(word="tow"),
        "_worded: unknown word 'tow'; expected one of one, two; did you mean 'two'[?]",
    ),
    (lambda: _worded(word=1), TypeError, "word must be a string, got 1"),
    (lambda: _worded(share=1.5), "_worded: share must be above 0 and at most 1, got 1.5"),
    (lambda: _worded(share=0), "share must be above 0, got 0.0"),
    (lambda: _worded(clip=np.nan), "above 0, got nan"),
    (lambda: _worded(size=0), "size must be at least 1, got 0"),
    (lambda: ur.alista(K, theta="0" * 99), TypeError, "a number, got '0{56}[.]{3}$"),
    (lambda: ur.alista(K, theta=10**400), TypeError, "must be a number, got 1"),
    (lambda: ur.dsc([]), "at least one layer"),
    (
        lambda: ur.dsc(ur.alista(K)),
        TypeError,
        r"networks.dsc: expected a sequence of layers, got alista; try \[layer\]",
    ),
    (lambda: ur.dsc([ur.alista]), TypeError, "expected layers"),
)


TRACED = {
    "a float": lambda v: ur.alista(K, theta=v),
    "an int": lambda v: ur.alista(v),
    "a bool": lambda v: ur.lista(K, tied=v),
    "part of a tuple": lambda v: ur.alista(K, support=(v, 0.5)),
    "an activation": lambda v: ur.lista_cp(K, activation=v),
    "an option of any type": lambda v: _taking(K, taps=(v,)),
}


@pytest.mark.parametrize("case", TRACED)
def test_traced_options_are_refused(case):
    with pytest.raises(TypeError, match="must be static, got a traced value"):
        jax.eval_shape(lambda v: TRACED[case](v).init(None, np.eye(2)), 1)


def test_a_record_shows_the_values_that_it_was_given():
    """1, 1.0 and True are equal, and -0.0 is 0.0: none of them stands for another."""
    made = [_taking(K, taps=(value,)) for value in (1, 1.0, True)]
    assert [type(record.taps[0]) for record in made] == [int, float, bool]
    assert repr(ur.alista(K, lam=-0.0)) == "alista(2, lam=0.0)"
    assert _worded(size=np.int64(3), clip=np.inf) is _worded(size=3)


def test_files_and_flags_are_read_off_a_record():
    """What `to_plain` gives makes the record again, also with an option that older files lack."""
    record = _worded(word="two", share=0.25, size=3)
    told = ur.records.to_plain(record)
    assert _worded(**{n: ur.records.from_plain(v, n, "test") for n, v in told.items()}) is record
    assert _worded(**_worded.absent() | {"word": "two"}) is _worded(word="two", added=0.0)
    fields = {field.name: field for field in dataclasses.fields(_worded)}
    text = dict(word="two", share="0.25", size="3", clip="inf", added="1")
    read = {name: ur.records.from_text(fields[name], value) for name, value in text.items()}
    assert _worded(**read) is record
    assert ur.records.from_text(fields["size"], "3.5") == "3.5"  # which the check refuses
    assert ur.records.changed(record) == dict(word="two", share=0.25, size=3)


def test_a_plain_annotated_field_is_an_option(tmp_path, monkeypatch):
    """`name: type = default` is checked, saved, restored, and has a flag, as `option` has."""
    monkeypatch.setitem(layers.FAMILIES, "_plain", _plain)
    layer, D = _plain(K, relaxation=1), np.eye(3)
    assert repr(layer) == "_plain(2, relaxation=1.0)"
    path = ur.training.save(tmp_path / "weights.npz", layer.init(None, D), D, layer)
    assert ur.training.restore(path).layer is layer
    assert _plain(K, **_plain.absent()) is _plain(K)
    fields = {field.name: field for field in dataclasses.fields(_plain)}
    parser = argparse.ArgumentParser()
    for name in ("relaxation", "start_at"):
        ur.records.add_flag(parser, fields[name])
    assert parser.parse_args(["--relaxation", "2"]).relaxation == "2"
    assert fields["start_at"].metadata["unit"] == "step"


def test_an_option_is_overridden_with_its_type():
    class _tuned(layers.ista):
        lam: float = option(default=0.5, least=0.25)

    assert _tuned(K).lam == 0.5 and layers.ista(K).lam == 0.1
    with pytest.raises(ValueError, match="_tuned: lam must be at least 0.25"):
        _tuned(K, lam=0.1)
    with pytest.raises(TypeError, match="_forgetful: lam is an option; repeat its type"):

        class _forgetful(layers.ista):
            lam = 0.5

    with pytest.raises(TypeError, match="unroll is an option; repeat its type"):

        class _shadowing(layers.ista):
            def unroll(self):
                return 1


@pytest.mark.parametrize("name", ["apply", "step", "init", "weights", "forms", "options", "family"])
def test_an_option_cannot_hide_what_a_layer_has(name):
    body = {"__annotations__": {name: int}, name: option(default=1)}
    with pytest.raises(TypeError, match=f"the option {name} would hide"):
        type(layers.ista)("_hiding", (layers.ista,), body)


def test_an_option_cannot_hide_what_the_class_before_has():
    class _before(layers.ista):
        def slope(self):
            return 1

    body = {"__annotations__": {"slope": int}, "slope": option(default=1)}
    with pytest.raises(TypeError, match="the option slope would hide"):
        type(layers.ista)("_hiding", (_before,), body)


# The registry.


@every_family
def test_a_family_is_known_by_its_name(name):
    family = FAMILIES[name]
    assert family.__name__ == name and getattr(layers, name) is family


def test_abstract_bases_and_names_with_an_underscore_are_not_registered(families):
    bases = ["Layer", "Looped", "Interned", "Shrinking", "Selecting", "Coupled", "FromISTA"]
    assert not {*bases, "Estimating", "_counted", "_taking"} & set(families)

    class _hidden(layers.ista):
        """A test double."""

    class Half(layers.Layer):
        """Without `init`."""

        def step(self, shared, p, D, y, state):
            return state

    class OtherHalf(layers.Layer):
        """Without `step`."""

        def init(self, key, D):
            return Unrolled(None, None)

    class whole(Half):
        """A family."""

        forms = (Unrolled(None, None),)

        def init(self, key, D):
            return Unrolled(None, None)

    assert families.keys() - layers.FAMILIES.keys() == {"whole"} and families["whole"] is whole
    with pytest.raises(NotImplementedError):
        Half(K).init(None, np.eye(2))


BAD_FORMS = {
    "none": (),
    "no tuple": Unrolled(None, layers.Step),
    "pairs": ((None, layers.Step),),
    "values": (Unrolled(None, layers.Step(1.0)),),
    "no records": (Unrolled(None, int),),
    "nothing": None,
}


@pytest.mark.parametrize("fault", BAD_FORMS)
@pytest.mark.parametrize("name", ["formless", "_formless"])
def test_a_family_without_forms_is_refused_as_a_class(families, name, fault):
    """Hidden ones too; nothing is registered."""
    methods = dict(init=lambda self, key, D: None, step=lambda self, shared, p, D, y, state: state)
    forms = {} if fault == "none" else {"forms": BAD_FORMS[fault]}
    before = dict(families)
    with pytest.raises(TypeError, match=f"{name}: forms must say .*, try forms = ") as refused:
        type(layers.Layer)(name, (layers.Layer,), methods | forms)
    assert families == before
    example = str(refused.value).rpartition("try forms = ")[2]
    right = eval(example, {**vars(layers)})  # what the message shows is taken
    assert type(layers.Layer)("_right", (layers.Layer,), methods | {"forms": right})(K).forms


def test_two_modules_cannot_define_the_same_family(families):
    with pytest.raises(TypeError, match="already defines a family of this name"):
        type(layers.ista)("alista", (layers.ista,), {"__module__": "elsewhere"})
    assert families["alista"] is layers.alista
    first = type(layers.ista)("again", (layers.ista,), {"__module__": "elsewhere"})
    second = type(layers.ista)("again", (layers.ista,), {"__module__": "elsewhere"})
    assert families["again"] is second is not first  # a cell or a module that runs again
    assert first(K) is not second(K)


def test_two_modules_cannot_define_the_same_network(monkeypatch):
    networks = dict(ur.networks.NETWORKS)
    monkeypatch.setattr("unrolled.networks._network.NETWORKS", networks)
    dsc, Network = ur.networks.dsc, ur.networks.Network
    with pytest.raises(TypeError, match="already defines a network of this name"):
        type(dsc)("dsc", (dsc,), {"__module__": "elsewhere"})
    type(dsc)("without_a_run", (Network,), {"init": dsc.init})
    type(dsc)("_example", (dsc,), {})
    assert networks == NETWORKS
    mine = type(dsc)("mine", (dsc,), {})
    assert networks == {**NETWORKS, "mine": mine}


# Records of params.


class Unresolved(NamedTuple):
    """As of `from __future__ import annotations` inside a function."""

    theta: "ThetaOfAFunction"  # noqa: F821


def test_records_with_annotations_that_cannot_be_read_say_so(problem):
    class _local(layers.ista):
        forms = (Unrolled(None, Unresolved),)

    params = Unrolled(None, Unresolved(np.ones(K)))
    message = "Unresolved: the annotations cannot be read .*ThetaOfAFunction.*top level of a module"
    with pytest.raises(TypeError, match=message):
        _local(K).check(params, problem[0])
    with pytest.raises(TypeError, match=message):
        _local(K).apply(params, *problem)


def test_a_record_may_be_local_if_its_annotations_can_be_read(problem):
    class local(NamedTuple):
        gamma: layers.Gamma
        theta: layers.Theta

    class _relaxed(layers.ista):
        forms = (Unrolled(None, local),)

    params = Unrolled(None, local(np.ones(K), np.ones(K)))
    _relaxed(K).check(params, problem[0])
    with pytest.raises(ValueError, match="theta must be non-negative"):
        _relaxed(K).check(params._replace(steps=local(np.ones(K), -np.ones(K))), problem[0])
    assert list(_relaxed(K).records) == ["local"]


def test_a_record_may_have_no_annotations(problem):
    Plain = collections.namedtuple("Plain", "gamma theta")

    class _plain(layers.ista):
        forms = (Unrolled(None, Plain),)

    params = Unrolled(None, Plain(np.full(K, 0.1), np.zeros(K)))
    expected = Unrolled(None, layers.StepAndThreshold(*params.steps))
    np.testing.assert_array_equal(
        _plain(K).apply(params, *problem), layers.ista(K).apply(expected, *problem)
    )


def test_check_takes_a_dictionary_as_lists(problem):
    layer = ur.alista(K)
    params = layer.init(None, problem[0])
    layer.check(params, np.asarray(problem[0]).tolist())
    with pytest.raises(ValueError, match=r"alista: W has shape .* expected one of \[\(1, 2\)\]"):
        layer.check(params, [[1, 2]])


def loose(params):
    """The params with a tuple of steps, as by `unstack`, in numpy."""
    steps = jax.tree.map(np.asarray, params.steps)
    at = [jax.tree.map(lambda leaf, k=k: leaf[k], steps) for k in range(len(steps[0]))]
    return Unrolled(params.shared, tuple(at))


@every_layer
def test_check_refuses_none_for_an_array(name, problem):
    layer, params = started(name, problem)
    leaves, form = jax.tree.flatten(params)
    for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        missing = form.unflatten([*leaves[:i], None, *leaves[i + 1 :]])
        if path[-1].name in fields_with_a_shape(layer):
            with pytest.raises(TypeError, match=f"{path[-1].name} is None; expected an array"):
                layer.check(missing, problem[0])


def fields_with_a_shape(layer):
    kinds = layer.records.values()
    fields = {name: field for kind in kinds for name, field in fields_of(kind).items()}
    return {name for name, field in fields.items() if field.shape is not None}


def test_an_init_that_draws_needs_a_key(problem):
    with pytest.raises(TypeError, match=r"na_alista: init draws .* try jax.random.key\(0\)"):
        layers.na_alista(K).init(None, problem[0])


@every_layer
def test_check_refuses_another_depth(name, problem):
    layer, params = started(name, problem)
    deeper = registry.LAYERS[name](K + 1)
    if params.steps is None:  # the steps share everything: any depth will do
        deeper.check(params, problem[0])
        return
    for form in (params, loose(params)):
        with pytest.raises(ValueError, match=rf"params have \[{K}\] steps .* depth {K + 1}"):
            deeper.check(form, problem[0])
    *others, last = params.steps._fields
    uneven = params.steps._replace(**{last: np.ones(K + 1)})
    found = f"{K}, {K + 1}" if others else K + 1
    with pytest.raises(ValueError, match=rf"params have \[{found}\] steps"):
        layer.check(params._replace(steps=uneven), problem[0])


@pytest.mark.few(12)
@every_layer
def test_check_refuses_another_shape_of_every_array(name, problem):
    D, _ = problem
    layer, params = started(name, problem)
    leaves, form = jax.tree.flatten(params)
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        stacked = path[0].name == "steps"
        if leaf.ndim <= stacked:
            continue
        wrong = form.unflatten([*leaves[:i], np.repeat(leaf, 2, axis=-1), *leaves[i + 1 :]])
        with pytest.raises(ValueError, match=f"{path[-1].name} has shape"):
            layer.check(wrong, D)
        with pytest.raises(ValueError, match=f"{path[-1].name} has shape"):
            jax.eval_shape(layer.apply, wrong, D, np.ones(M))


@every_layer
def test_check_refuses_a_known_negative_threshold(name, problem):
    D, y = problem
    layer, params = started(name, problem)
    names = layers.names_with_role(params.steps, "threshold")
    for field in names:
        negative = params._replace(steps=params.steps._replace(**{field: -np.ones(K)}))
        for form in (negative, loose(negative)):
            for call in (lambda p: layer.check(p, D), lambda p: layer.apply(p, D, y)):
                with pytest.raises(ValueError, match=f"{field} must be non-negative"):
                    call(form)
        # Where the value is not known, only shapes are checked.
        assert jax.eval_shape(layer.apply, negative, D, y).shape == (N,)
    without = {"step_lista", "hyperlista", "lamp", "lamp_bg", "tista", "liht", "na_alista"}
    without |= {"alista_at", "alista_rt", "vamp_bg"}  # thresholds of the one are relative
    assert bool(names) is (layer.family not in without)


@pytest.mark.parametrize("family", ["alista", "tista"])
def test_trained_weights_are_not_fixed_ones(family, problem):
    """Training would move them otherwise, and could not in the other direction."""
    layer = getattr(layers, family)(K)
    params = layer.init(None, problem[0])
    with pytest.raises(TypeError, match=r"Weights\(W\).*expected \(Fixed\(W\).*another family"):
        layer.check(params._replace(shared=Weights(params.shared.W)), problem[0])


def test_fixed_weights_are_not_trained_ones(problem):
    layer = layers.tilista(K)
    params = layer.init(None, problem[0])
    with pytest.raises(TypeError, match=r"Fixed\(W\).*expected \(Weights\(W\)"):
        layer.check(params._replace(shared=Fixed(params.shared.W)), problem[0])


@pytest.mark.parametrize("params", [None, (), (None, None), {}, np.ones(2)], ids=str)
def test_check_refuses_what_are_no_params(params, problem):
    with pytest.raises(TypeError, match=r"params must be Unrolled\(shared, steps\), got"):
        ur.alista(K).check(params, problem[0])


# Networks.


@pytest.fixture(scope="module")
def two():
    return np.array(registry._unit(0, M, N)), np.array(registry._unit(1, N, 5))


CHAINS = {
    "dsc": lambda **options: ur.dsc(
        [ur.lista_cp(2, lam=0.02, **options), ur.alista(3, theta=0.01, **options)]
    ),
    "dsc with support": lambda **options: ur.dsc(
        [ur.lista(2, lam=0.02, support=(0.2, 0.5), **options), layers.fista(3, lam=0.01, **options)]
    ),
    "ml_lista": lambda **options: ur.networks.ml_lista(3, lam=0.01, **options),
}
every_network = pytest.mark.parametrize("name", CHAINS)


def test_networks_know_their_layers_and_depth():
    parts = ur.lista_cp(2), ur.alista(3)
    chain = ur.dsc(parts)
    assert chain.layers == parts and chain.depth == 5 and chain.family == "dsc"
    assert chain.forms(0) is parts[0].forms and chain.forms(1) is parts[1].forms
    whole = ur.networks.ml_lista(4)
    assert whole.layers == () and whole.depth == 4 and whole.family == "ml_lista"


@pytest.mark.few(1)
@every_network
def test_other_ways_to_run_a_network_change_nothing(name, two, problem):
    network = CHAINS[name]()
    params = network.init(None, two)
    codes = network.apply(params, two, problem[1])
    found = [
        CHAINS[name](unroll=2, remat=True).apply(params, two, problem[1]),
        network.apply((params[0], loose(params[1])), two, problem[1]),
    ]
    for other in found:
        chex.assert_trees_all_close(other, codes, rtol=0, atol=10 * CLOSE)


@every_network
def test_check_of_a_network_is_that_of_every_block(name, two):
    network = CHAINS[name]()
    params = network.init(None, two)
    network.check(params, two)
    network.check(list(params), list(two))
    for j, p in enumerate(params):
        negative = p._replace(steps=p.steps._replace(theta=-np.asarray(p.steps.theta)))
        with pytest.raises(ValueError, match="theta must be non-negative"):
            network.check((*params[:j], negative, *params[j + 1 :]), two)
        with pytest.raises(TypeError, match="another family"):
            network.check((*params[:j], p._replace(shared=3), *params[j + 1 :]), two)
    with pytest.raises(ValueError, match="expected a tuple of 2 params, one per layer, got 1"):
        network.check(params[:1], two)
    with pytest.raises(ValueError, match="D_1 has shape"):
        network.check(params, two[::-1])
    with pytest.raises(ValueError, match="Ds is one dictionary"):
        network.check(params, two[0])


@pytest.mark.parametrize("form", [lambda params: params, unstack], ids=["stacked", "unstacked"])
def test_a_schedule_has_one_entry_for_each_step(form):
    params = form(Unrolled(None, layers.Step(np.ones(3))))
    with pytest.raises(ValueError, match="^unroll: schedule has 2 entries; expected 3, one per"):
        layers.unroll(abs, params, np.eye(2), np.ones(2), layers.State(np.zeros(2)), (0.1, 0.2))
