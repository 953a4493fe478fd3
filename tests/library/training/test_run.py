"""The options of a run: one record, the same names, defaults and messages in every function."""

import inspect
import typing

import jax
import numpy as np
import optax
import pytest
from faults import rows
from small_training import D, run, sample

import unrolled as ur
from unrolled.training import Run, by_recipe, curriculum, search, unsupervised
from unrolled.training._options import OptionsWithoutProgress, RunOptions

OPTIONS = (*Run.__signature__.parameters, "validation", "mask", "trainable", "learn_dictionary")
DOORS = {
    "fit": ur.fit,
    "unsupervised": unsupervised,
    "curriculum": curriculum,
    "by_recipe": by_recipe,
    "search": search,
    "unrolled": ur.dictionary_learning.unrolled,
    "online": ur.dictionary_learning.online,
}
OF_A_TRAINING = {*Run.__signature__.parameters, "validation", "trainable", "learn_dictionary"}
# Why a function lacks an option.
REASONS = {
    ("search", "it tries given values in one compiled call and trains nothing"): OF_A_TRAINING,
    ("online", "its steps are the batches of a stream, and it has no params"): OF_A_TRAINING
    - {"checkpoint", "progress", "callbacks", "log", "validation", "evaluate_every", "patience"},
    ("online", "a batch of the stream is a pair (Y, mask)"): {"mask"},
    ("unsupervised", "it chooses the family and the start of the params"): {"trainable"},
    ("unsupervised", "`dictionary_learning.unrolled` learns D without codes"): {"learn_dictionary"},
    ("by_recipe", "a recipe calibrates all params on one D"): {"mask"},
    ("unrolled", "it always learns D"): {"learn_dictionary"},
}


def taken(door):
    """The options that a function takes."""
    return inspect.signature(DOORS[door]).parameters


def test_every_function_takes_every_option_or_has_a_reason_not_to():
    lacks = {(door, name) for (door, _), names in REASONS.items() for name in names}
    cells = {(door, name) for door in DOORS for name in OPTIONS if name in taken(door)}
    assert lacks | cells == {(door, name) for door in DOORS for name in OPTIONS}
    assert not lacks & cells
    assert len(cells) >= 69


def test_type_checkers_see_the_names_and_types_of_the_record():
    fields = {name: field.type for name, field in Run.__dataclass_fields__.items()}
    assert typing.get_type_hints(RunOptions) == fields
    del fields["progress"]
    assert typing.get_type_hints(OptionsWithoutProgress) == fields


@pytest.mark.parametrize("door", ["fit", "unsupervised", "curriculum", "by_recipe", "unrolled"])
def test_signatures_show_the_defaults_of_the_record(door):
    for name, parameter in Run.__signature__.parameters.items():
        if name != "progress":
            assert taken(door)[name] == parameter


def test_a_run_keeps_the_given_callbacks_but_not_alive():
    class Equal:
        """All instances are equal, and have no hash."""

        def __eq__(self, other):
            return True

        def __call__(self, record, params):
            self.seen = record.step

    first, second = Equal(), Equal()
    for callback in (first, second):
        run(None, 1, callbacks=[callback])
    assert first.seen == second.seen == 1


def of_fit(**options):
    adam = optax.adam(0.1)
    layer = ur.alista(1)
    return ur.fit(layer, layer.init(None, D), D, sample, optimizer=adam, steps=1, key=0, **options)


Y, X = ur.problems.sampler(D, 64)(jax.random.key(0))
LAYER = ur.alista(1)
PARAMS = LAYER.init(None, D)


def of_recipe(**options):
    return by_recipe("lista_cp", D, (np.asarray(Y), np.asarray(X)), depth=1, steps=1, **options)


def of_curriculum(**options):
    return curriculum(LAYER, PARAMS, D, sample, key=0, steps_per_stage=1, **options)


def learned(**options):
    return ur.dictionary_learning.unrolled(LAYER, Y, 8, lam=0.1, **options)


test_wrong_options_are_refused_under_the_name_of_the_function = rows(
    (lambda: of_fit(patince=3), TypeError, "fit: unknown option 'patince', perhaps 'patience'"),
    (lambda: of_fit(masks=3), TypeError, "fit: unknown option 'masks', perhaps 'mask'"),
    (lambda: of_fit(zzz=3), TypeError, "fit: unknown option 'zzz'$"),
    (
        lambda: unsupervised(D, Y, 0.1, 1, key=0, mess=3),
        TypeError,
        "unsupervised: unknown option 'mess', perhaps 'mesh'",
    ),
    (
        lambda: of_curriculum(checkpoints="a"),
        TypeError,
        "curriculum: unknown option 'checkpoints', perhaps 'checkpoint'",
    ),
    (
        lambda: learned(callback=print),
        TypeError,
        "unrolled: unknown option 'callback', perhaps 'callbacks'",
    ),
    (
        lambda: of_recipe(patince=1),
        TypeError,
        "by_recipe: unknown option 'patince', perhaps 'patience'; .* those of lista_cp",
    ),
    (
        lambda: of_recipe(patience=0),
        ValueError,
        "by_recipe: patience must be at least 1, got 0",
    ),
    (
        lambda: by_recipe("step_lista", D, (Y, X), depth=1, steps=1, checkpoint="a"),
        ValueError,
        "step_lista trains 4 starts, and a checkpoint holds one run; try to set lam",
    ),
    (lambda: Run(patience=0), ValueError, "Run: patience must be at least 1, got 0"),
    (lambda: Run(callbacks=3), TypeError, "Run: callbacks must be an iterable of functions"),
    (lambda: Run(mesh=3), TypeError, "Run: mesh must be a jax.sharding.Mesh, got int"),
)
