"""What learners refuse, as rows: which of them, the arguments that differ, words of the message."""

import jax
import numpy as np
import pytest
from oracles import normal

from unrolled import dictionary_learning, layers

M, N = 12, 40
Y, IMAGES = normal(0, N, M), np.ones((2, 3, 9, 9))
HOLES = np.where(normal(1, N, M) > 1, np.nan, Y)
ALONE = dict(Y=Y, d=18, sparsity=2)
SPARSE = dict(Y=Y, d=6, sparsity=2, atom_sparsity=2)
# The arguments of every learner, which those of a row replace.
GIVEN = {
    "ksvd": ALONE,
    "mod": ALONE,
    "sparse_ksvd": SPARSE | dict(base=np.eye(M)),
    "double_sparse": SPARSE,
    "multilayer": dict(Y=Y, shapes=[(M, 5)], sparsities=(2,)),
    "online": dict(batches=[Y], d=4, lam=0.1),
    "unrolled": dict(layer=layers.ista(2), Y=Y, d=6, lam=0.1),
    "convolutional": dict(images=IMAGES, filters=(4, 3, 3, 3), lam=0.1),
}

VALUES = [
    ("ksvd mod unrolled", dict(Y=Y[:5], d=6), "d is 6 but there are 5 signals"),
    ("sparse_ksvd double_sparse", dict(d=10**9), "d is 10{9} but there are 40 signals"),
    ("ksvd mod", dict(sparsity=0), "sparsity must be at least 1, got 0"),
    ("ksvd", dict(sparsity=M + 1), "sparsity is 13; expected at most 12"),
    ("ksvd", dict(d=3, sparsity=4), "sparsity is 4; expected at most 3"),
    ("ksvd mod", dict(Y=HOLES), "Y has NaN or infinite entries.*as `mask`"),
    ("ksvd", dict(Y=Y[0]), r"Y has shape \(12,\)"),
    ("ksvd", dict(start="svd"), "unknown start 'svd'"),
    ("ksvd", dict(start=np.eye(M)), r"start has shape \(12, 12\)"),
    ("ksvd", dict(weights=-np.ones(N)), "weights must be non-negative"),
    ("ksvd", dict(mask=np.ones((N, 11), bool)), r"mask has shape \(40, 11\)"),
    ("ksvd", dict(mask=np.zeros((N, M), bool)), "all weights are zero"),
    ("sparse_ksvd", dict(base=np.eye(5)), "base has shape .5, 5. but signals have length 12"),
    ("sparse_ksvd", dict(atom_sparsity=13), "atom_sparsity is 13; expected at most 12"),
    # Squares of its entries leave the range of float32: all atoms would be zero.
    *(
        ("sparse_ksvd", dict(base=c * np.eye(M)), "base has columns of norms up to .*near 1")
        for c in (0.0, 1e-23, 1e20, np.where(np.arange(M) < 1, 1e20, 1.0))
    ),
    ("double_sparse", dict(sparsity=7), "sparsity is 7; expected at most 6"),
    ("double_sparse", dict(rate=0), "rate must be in"),
    *(
        ("double_sparse", dict(base=c * np.eye(M)), ".*an orthonormal base, try sparse_ksvd")
        for c in (0.5, 2)
    ),
    ("multilayer", dict(shapes=[(M, 5), (6, 7)]), "D_2 has 6 rows but D_1 has 5 columns"),
    ("multilayer", dict(shapes=[(5, 5)]), "D_1 has 5 rows but signals have length"),
    ("multilayer", dict(shapes=[]), ".*at least one dictionary, got none"),
    ("multilayer", dict(sparsities=(2, 1)), ".*expected one of each of 1 layers"),
    ("multilayer", dict(sparsities=(0,)), "s_1 must be at least 1"),
    ("multilayer", dict(sparsities=(6,)), "s_1 is 6; expected at most 5"),
    (
        "multilayer",
        dict(shapes=[(M, 5), (5, 7)], sparsities=(1, 2)),
        "s_2 is 2 but s_1 is 1; expected sparsities that do not grow",
    ),
    ("online", dict(batches=[]), "the stream ended after 0 signals; expected at least 4"),
    ("online", dict(d=50), "the stream ended after 40 signals; expected at least 50"),
    ("online convolutional", dict(lam=0.0), "lam must be positive"),
    ("convolutional", dict(lam=np.nan), "lam must be positive"),
    ("online", dict(forgetting=-1), "forgetting must be non-negative"),
    ("online", dict(lam=None), "expected one of lam and sparsity, got lam=None, sparsity=None"),
    ("online", dict(sparsity=2), "expected one of lam and sparsity, got lam=0.1, sparsity=2"),
    ("online", dict(lam=None, sparsity=0), "sparsity must be at least 1, got 0"),
    ("online", dict(lam=None, sparsity=5), "sparsity is 5; expected at most 4"),
    ("online", dict(patience=3), "patience needs validation"),
    ("online", dict(validation=Y[:, 1:]), "validation has signals of length 11; expected 12"),
    ("online", dict(validation=(Y, np.zeros(N))), "all weights are zero"),
    ("online", dict(batches=[Y, Y[:, 1:]]), "batch 2 has signals of length 11"),
    ("online", dict(batches=[(Y, Y, Y)]), "a batch has 3 parts"),
    ("unrolled", dict(rate=-1.0), "rate must be positive"),
    ("convolutional", dict(filters=(4, 3, 10, 2)), r"filters of shape \(10, 2\) are longer than"),
    ("convolutional", dict(filters=(4, 2, 3, 3)), ".*have 3 channels but filters have 2"),
    ("convolutional", dict(images=IMAGES[:, 0]), ".*have 1 channels but filters have 3"),
    *(("convolutional", dict(filters=bad), "images have shape") for bad in ((4, 3), (4,), 4)),
    *(("convolutional", dict(images=v), "images have shape") for v in (IMAGES[0, 0], IMAGES[:0])),
    ("convolutional", dict(filters=(4, 3, 0, 3)), "filters must be at least 1"),
    ("convolutional", dict(filters=np.full((4, 3, 3, 3), np.nan)), "filters has NaN"),
    ("convolutional", dict(images=np.nan * IMAGES), "images has NaN or infinite entries"),
    ("convolutional", dict(boundary="same"), ".*unknown boundary 'same'"),
    ("convolutional", dict(stride=0), ".*stride must be at least 1"),
    ("convolutional", dict(mask=np.ones((2, 9), bool)), "mask has shape"),
    ("convolutional", dict(weights=-np.ones(2)), "weights must be non-negative"),
    ("convolutional ksvd double_sparse", dict(sweeps=-1), "sweeps must be at least 0"),
]
TYPES = [
    ("ksvd", dict(mask=Y), "mask has dtype float64; expected bool"),
    ("convolutional", dict(mask=IMAGES), "mask has dtype float64; expected bool"),
    ("convolutional", dict(filters=(4, 3.5, 3, 3)), "filters must be an integer"),
]


@pytest.mark.parametrize("name", GIVEN)
def test_what_does_not_fit_is_refused_by_name(name):
    learn = getattr(dictionary_learning, name)
    for error, table in ((ValueError, VALUES), (TypeError, TYPES)):
        for names, arguments, words in table:
            if name in names.split():
                with pytest.raises(error, match=f"^({name}|Conv): {words}"):
                    learn(**GIVEN[name] | arguments)


def test_traced_arguments_are_refused():
    for name, argument, words in (
        ("ksvd", "Y", "traced"),
        ("online", "lam", "lam must be static"),
        ("convolutional", "images", "outside jit"),
    ):
        learn, given = getattr(dictionary_learning, name), GIVEN[name]
        rest = {k: v for k, v in given.items() if k != argument}
        with pytest.raises(TypeError, match=f"{name}: .*{words}"):
            jax.jit(lambda v, k=argument, f=learn, rest=rest: f(**rest, **{k: v}))(given[argument])


def test_a_result_of_another_learning_is_refused():
    """Of other atoms, of another function, and over another base."""
    other = dictionary_learning.ksvd(**ALONE, sweeps=1)
    for name, d, words in (
        ("mod", 4, "resume is not of 4 atoms"),
        ("online", 4, "resume is not a result of `online`"),
        ("sparse_ksvd", 18, "resume has atoms over another base, or over none"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: {words}"):
            getattr(dictionary_learning, name)(**GIVEN[name] | dict(resume=other, d=d))
