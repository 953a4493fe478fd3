"""Sparse autoencoders against the formulas of the libraries that write them, in numpy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrolled as ur
from unrolled import sae

M, N, K = 6, 10, 3


def relu(v):
    return np.maximum(v, 0)


def keep(v, k):
    """The k largest entries of each row; no two entries are equal."""
    return np.where(v >= np.sort(v, axis=1)[:, -k][:, None], v, 0)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (M, N), "W_dec": (N, M), "b_enc": N, "b_dec": M}
    shapes |= {"b_gate": N, "b_mag": N, "r_mag": N}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return arrays | {"threshold": rng.uniform(-0.5, 1, N).astype(np.float32)}


@pytest.fixture(scope="module")
def A():
    return np.random.default_rng(1).normal(size=(20, M)).astype(np.float32)


def only(weights, *names):
    return {name: weights[name] for name in ("W_enc", "W_dec", "b_dec", *names)}


def formulas(w, y):
    """The codes of each kind, from what its encoder sees."""
    u, g = y @ w["W_enc"] + w["b_enc"], y @ w["W_enc"]
    jumped = relu(u) * (u > w["threshold"])
    magnitude = relu(g * np.exp(w["r_mag"]) + w["b_mag"])
    return {
        "relu": (("b_enc",), relu(u)),
        "topk": (("b_enc",), keep(relu(u), K)),
        "jumprelu": (("b_enc", "threshold"), jumped),
        "batchtopk": (("b_enc", "threshold"), jumped),
        "gated": (("b_gate", "b_mag", "r_mag"), (g + w["b_gate"] > 0) * magnitude),
    }


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", sae.KINDS)
def test_an_encoder_is_the_formula_of_its_kind(weights, A, kind, centered):
    names, expected = formulas(weights, A - weights["b_dec"] * centered)[kind]
    made = sae.load(only(weights, *names), kind=kind, k=K, centered=centered)
    # Sums of m + 2 products of numbers of order 1, in float32.
    np.testing.assert_allclose(made.encode(A), expected, atol=1e-5)
    decoded = expected @ weights["W_dec"] + weights["b_dec"]
    np.testing.assert_allclose(made.decode(made.encode(A)), decoded, atol=1e-4)


def test_weights_of_dictionary_learning_are_the_same_transposed(weights, A):
    theirs = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T,
    }
    centered = sae.load(theirs | {"bias": weights["b_dec"]}, kind="relu")
    new = sae.load(theirs | {"decoder.bias": weights["b_dec"]}, kind="relu")
    top = sae.load(theirs | {"b_dec": weights["b_dec"], "k": np.int32(K)}, kind="topk")
    for made, seen, name in (
        (centered, A - weights["b_dec"], "relu"),
        (new, A, "relu"),
        (top, A - weights["b_dec"], "topk"),
    ):
        np.testing.assert_allclose(made.encode(A), formulas(weights, seen)[name][1], atol=1e-5)


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_folder_of_saelens_is_read_with_its_configuration(weights, A, tmp_path, suffix):
    write(tmp_path / f"sae_weights{suffix}", only(weights, "b_enc"))
    write(tmp_path / "sparsity.safetensors", {"sparsity": np.zeros(N, np.float32)})
    config = {"architecture": "topk", "k": K, "apply_b_dec_to_input": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    expected = formulas(weights, A - weights["b_dec"])["topk"][1]
    for path in (tmp_path, str(tmp_path / f"sae_weights{suffix}")):
        made = sae.load(path)
        assert made.layer is ur.layers.sae(1, sparsity=K)
        np.testing.assert_allclose(made.encode(A), expected, atol=1e-5)


def test_a_configuration_of_dictionary_learning_is_nested(weights, A, tmp_path):
    theirs = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T,
        "b_dec": weights["b_dec"],
        "threshold": np.float32([0.3]),
    }
    write(tmp_path / "ae.safetensors", theirs)
    config = {"trainer": {"dict_class": "BatchTopKSAE", "k": K}, "buffer": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    u = (A - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    np.testing.assert_allclose(sae.load(tmp_path).encode(A), u * (u > 0.3), atol=1e-5)


SAELENS = [
    ({"architecture": "standard", "activation_fn": "relu"}, True, "relu"),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}, True, "topk"),
    (
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        True,
        "topk",
    ),
    ({"architecture": "jumprelu", "apply_b_dec_to_input": False}, False, "jumprelu"),
    ({"dict_class": "MatryoshkaBatchTopKSAE"}, True, "batchtopk"),
    ({"dict_class": "JumpReluAutoEncoder"}, False, "jumprelu"),
]


@pytest.mark.parametrize("config, centered, kind", SAELENS)
def test_a_configuration_says_the_kind_and_what_the_encoder_sees(
    weights, A, tmp_path, config, centered, kind
):
    """SAELens subtracts b_dec if the configuration does not speak of it."""
    names, expected = formulas(weights, A - weights["b_dec"] * centered)[kind]
    write(tmp_path / "w.safetensors", only(weights, *names))
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    np.testing.assert_allclose(sae.load(tmp_path).encode(A), expected, atol=1e-5)


def test_codes_may_be_chosen_by_what_they_add_to_the_signal(weights, A, tmp_path):
    """The rule of SAELens that keeps the largest entries of code times norm of atom."""
    write(tmp_path / "w.safetensors", only(weights, "b_enc"))
    config = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    made, norms = sae.load(tmp_path), np.linalg.norm(weights["W_dec"], axis=1)
    u = (A - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    expected = keep(relu(u * norms), K)
    np.testing.assert_allclose(made.encode(A), expected, atol=1e-4)
    decoded = expected / norms @ weights["W_dec"] + weights["b_dec"]
    np.testing.assert_allclose(made.decode(made.encode(A)), decoded, atol=1e-4)


def test_weights_in_half_precision_become_float32(weights, A):
    import ml_dtypes

    half = {name: a.astype(ml_dtypes.bfloat16) for name, a in only(weights, "b_enc").items()}
    made = sae.load(half, kind="relu")
    assert made.D.dtype == made.encode(A.astype(np.float16)).dtype == np.float32
    np.testing.assert_array_equal(made.D.T, half["W_dec"].astype(np.float32))


REFUSED = {
    "has neither a kind nor a configuration": ({}, {}, "kind is not known.* try kind="),
    "has k, which only some kinds have": (dict(k=3), {}, "kind is not known"),
    "is of an unknown kind": ({}, dict(kind="vanilla"), "unknown kind 'vanilla'"),
    "lacks its bias": (dict(b_enc=None), dict(kind="relu"), "a relu autoencoder needs b_enc"),
    "lacks its thresholds": ({}, dict(kind="jumprelu"), "needs threshold; source has W_dec, "),
    "lacks k": ({}, dict(kind="topk"), "needs k, the number of nonzeros"),
    "has k below 1": ({}, dict(kind="topk", k=0), f"k is 0; expected an integer from 1 to {N}"),
    "has k above d": ({}, dict(kind="topk", k=N + 1), f"k is {N + 1}; expected an integer"),
    "has a short bias": (dict(b_enc=np.zeros(3)), dict(kind="relu"), r"do not fit: .*b_enc \(3,\)"),
    "is not finite": (dict(b_enc=np.full(N, np.nan)), {}, "b_enc has NaN or infinite"),
    "overflows float32": (dict(b_dec=np.full(M, 1e300)), dict(kind="relu"), "exceeds the range"),
    "is text": (dict(b_enc="no"), {}, "b_enc has the dtype <U2; expected real numbers"),
    "is a transcoder": (dict(W_skip=np.eye(M)), {}, "no autoencoder .* has an array W_skip"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_autoencoder_is_refused_that(weights, case):
    changed, options, message = REFUSED[case]
    given = {k: v for k, v in (only(weights, "b_enc") | changed).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        sae.load(given, **options)


def test_folders_and_files_are_refused_in_words(weights, tmp_path):
    with pytest.raises(ValueError, match="has no file of weights"):
        sae.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone.npz"):
        sae.load(tmp_path / "gone.npz")
    np.savez(tmp_path / "pickle.npz", W_dec=np.array([{}]))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        sae.load(tmp_path / "pickle.npz")
    (tmp_path / "pickle.npz").unlink()
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"suffix '\.txt'; expected one of \.safetensors"):
        sae.load(tmp_path / "a.txt")
    write(tmp_path / "a.npz", only(weights, "b_enc"))
    write(tmp_path / "b.npz", only(weights, "b_enc"))
    with pytest.raises(ValueError, match=r"a\.npz, b\.npz; try the path of one file"):
        sae.load(tmp_path)


def test_activations_of_another_width_are_refused(weights):
    with pytest.raises(ValueError, match=r"A has shape \(2, 5\); expected \(n, 6\)"):
        sae.load(only(weights, "b_enc"), kind="relu").encode(np.zeros((2, 5)))


def test_with_unit_atoms_the_autoencoder_is_the_same(weights, A):
    made = sae.load(only(weights, "b_enc", "threshold"), kind="jumprelu")
    unit = made.unit()
    np.testing.assert_allclose(np.linalg.norm(unit.D, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(unit.encode(A), made.encode(A), atol=1e-5)
    exact = ur.pursuit.lasso_batch(unit.D, unit.signals(A), 0.1, nonnegative=True).x
    decoded = np.asarray(unit.codes(exact)) @ np.asarray(made.D).T + weights["b_dec"]
    np.testing.assert_allclose(unit.decode(unit.codes(exact)), decoded, atol=1e-5)
    np.testing.assert_allclose(np.asarray(exact @ unit.D.T) + weights["b_dec"], decoded, atol=1e-5)
    np.testing.assert_allclose(unit.decode(unit.encode(A)), made.decode(made.encode(A)), atol=1e-4)
    with pytest.raises(ValueError, match="unequal norms"):
        sae.load(only(weights, "b_enc"), kind="topk", k=K).unit()


@pytest.fixture(scope="module")
def planted():
    """A decoder, a TopK encoder of which it is the transpose, and sparse activations."""
    rng, D = np.random.default_rng(2), np.array(ur.gaussian(0, 16, 32))
    X = rng.uniform(0.5, 1.5, (300, 32)) * (rng.random((300, 32)).argsort(1) < 3)
    weights = {"W_enc": D, "b_enc": np.zeros(32), "W_dec": D.T, "b_dec": np.full(16, 0.1)}
    return sae.load(weights, kind="topk", k=3), X @ D.T + 0.1


def test_further_steps_keep_the_first_and_lower_the_residual(planted):
    one, A = planted
    deep = sae.unroll(one, A, 5)
    path = jax.vmap(deep.layer.iterates, (None, None, 0))(deep.params, deep.D, deep.signals(A))
    np.testing.assert_allclose(path[:, 0], one.encode(A), atol=1e-6)
    assert ((path != 0).sum(-1) <= 3).all() and (path >= 0).all()
    errors = [float(np.sum((A - one.decode(x)) ** 2)) for x in np.moveaxis(path, 1, 0)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.7 * errors[0]
    # Each chosen step size is at least as good as its neighbours, a factor sqrt(2) away.
    sizes = np.asarray(deep.params.steps.W[1:, 0, 0] / deep.D[0, 0])
    for factor in (2**-0.5, 2**0.5):
        W = deep.params.steps.W.at[1].multiply(factor)
        moved = deep.params._replace(steps=deep.params.steps._replace(W=W))
        x = jax.vmap(deep.layer.iterates, (None, None, 0))(moved, deep.D, deep.signals(A))[:, 1]
        if factor * sizes[0] <= 1.01:
            assert np.sum((A - one.decode(x)) ** 2) >= errors[1]


def test_unroll_refuses_what_has_no_bound_on_nonzeros(planted):
    one, A = planted
    relu_sae = one.replace(layer=ur.layers.sae(1))
    with pytest.raises(ValueError, match="has no sparsity; expected the number"):
        sae.unroll(relu_sae, A, 3)
    assert sae.unroll(relu_sae, A, 3, sparsity=2).layer is ur.layers.sae(3, sparsity=2)
    with pytest.raises(ValueError, match="has 3 steps; expected 1"):
        sae.unroll(sae.unroll(one, A, 3), A, 3)
    with pytest.raises(ValueError, match="there are no activations"):
        sae.unroll(one, A[:0], 3)


def test_the_report_compares_codes_with_equally_many_nonzeros(planted):
    one, A = planted
    found = sae.report(one, A, depth=3, steps=0)
    rows = {row.method: row for row in found.rows}
    assert list(rows) == [
        "encoder", "encoder, least squares", "unrolled, 3 steps", "bcd, 4 sweeps", "LASSO",
        "LASSO, least squares", "OMP, x >= 0", "OMP",
    ]  # fmt: skip
    Y, D = np.asarray(one.signals(A[-60:])), np.asarray(one.D)
    X = np.asarray(one.encode(A[-60:]))
    exact = np.asarray(ur.pursuit.lasso_batch(D, Y, found.lam, nonnegative=True).x)

    def objective(X):
        return ((Y - X @ D.T) ** 2).sum(1) / 2 + found.lam * np.abs(X).sum(1)

    ratio = np.mean(objective(X) / objective(exact)) - 1
    assert found.amortisation == pytest.approx(ratio, rel=1e-3) and ratio > 0
    variance = np.sum((A[-60:] - A[-60:].mean(0)) ** 2)
    expected = np.sum((A[-60:] - np.asarray(one.decode(X))) ** 2) / variance
    assert rows["encoder"].unexplained == pytest.approx(expected, rel=1e-4)
    assert rows["encoder, least squares"].unexplained <= rows["encoder"].unexplained
    assert rows["LASSO, least squares"].unexplained <= rows["LASSO"].unexplained
    assert rows["OMP, x >= 0"].unexplained < 0.5 * rows["encoder"].unexplained
    assert all(rows[name].nonzeros <= 3 for name in rows if not name.startswith("bcd"))
    assert all(row.microseconds > 0 for row in found.rows)
    assert 0.9 <= found.certified <= 1 and "above the optimum" in found.table()
    assert repr(found).startswith("Report: the encoder leaves 0.")
    assert len(found.plot().axes[0].lines) == len(rows)


@pytest.mark.slow
def test_the_report_trains_the_unrolled_encoder(planted):
    found = sae.report(*planted, depth=2, steps=200)
    rows = {row.method: row for row in found.rows}
    assert rows["trained, 2 steps"].unexplained < rows["unrolled, 2 steps"].unexplained


def test_the_report_counts_dead_atoms_and_twins(planted):
    one, A = planted
    W, bias, theta = one.params.steps
    D = np.array(one.D)
    D[:, 1] = D[:, 0]
    steps = ur.layers.Encoder(W, bias.at[0, 4:8].set(-100.0), theta)
    other = one.replace(D=jnp.asarray(D), params=one.params._replace(steps=steps))
    found = sae.report(other, A, depth=1, steps=0)
    assert found.dead == 4 / 32 and found.twins == 2 / 32
    assert found.coherence == pytest.approx(1, abs=1e-6)


def test_the_report_refuses_what_it_cannot_compare(planted):
    one, A = planted
    silent = one.params._replace(steps=one.params.steps._replace(bias=jnp.full((1, 32), -100.0)))
    for given, made, message in (
        (A[:10], one, r"A has shape \(10, 16\); expected \(n, 16\) with n at least 50"),
        (A, one.replace(params=silent), "gives only zeros"),
        (np.ones_like(A), one, "all equal"),
        (np.full_like(A, np.nan), one, "A"),
    ):
        with pytest.raises(ValueError, match=message):
            sae.report(made, given)


def test_the_surrogate_estimates_the_derivative_of_a_mean():
    """Over v in [0, 2), the mean of v 1[v > theta] has the derivative -theta / 2."""
    v, theta, h = (np.arange(200_000) + 0.5) / 100_000, 0.7, 0.05
    slope = jax.grad(lambda theta: jnp.mean(ur.activations.jump_relu(v, theta, h)))(theta)
    assert slope == pytest.approx(-theta / 2, rel=1e-4)
    with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
        ur.activations.jump_relu(v, theta, 0.0)


@pytest.mark.parametrize("of", ["entries", "biases"])
def test_the_gradient_of_top_k_is_a_finite_difference(of):
    """While the support stays; entries outside the support have the derivative zero."""
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        D, y, u = jnp.asarray(ur.gaussian(0, M, N), float), rng.normal(size=M), rng.normal(size=N)
        layer = ur.layers.sae(2, sparsity=K)
        start, v = layer.init(None, D), jnp.asarray(rng.normal(size=N))

        @jax.jit
        def codes(v):
            if of == "entries":
                return ur.layers.keep_largest(v, K)
            bias = start.steps.bias + 0.1 * v[None]
            return layer.iterates(start._replace(steps=start.steps._replace(bias=bias)), D, y)

        h, kept = 1e-5, codes(v) != 0
        ends = codes(v + h * u), codes(v - h * u)
        assert all(np.array_equal(end != 0, kept) for end in ends) and 0 < kept.sum() < kept.size
        # The error of the difference is of the order h^2, and its rounding of the order 1e-16 / h.
        difference = float((jnp.sin(ends[0]) - jnp.sin(ends[1])).sum()) / (2 * h)
        slope = jax.grad(lambda v: jnp.sin(codes(v)).sum())(v)
        assert slope @ u == pytest.approx(difference, abs=1e-8) and abs(difference) > 1e-2
        if of == "entries":
            np.testing.assert_allclose(slope, np.where(kept, np.cos(v), 0), rtol=1e-14)


def test_fit_trains_an_autoencoder_with_its_decoder(planted):
    import optax

    one, A = planted
    D = ur.gaussian(7, 16, 32)
    start = one.layer.init(None, D)
    trained = ur.fit(
        one.layer, start, D, np.asarray(one.signals(A)), loss=ur.training.reconstruction,
        learn_dictionary=True, optimizer=optax.adam(1e-2), steps=100, key=0, progress=False,
    )  # fmt: skip
    assert trained.judged["best"] < 0.8 * trained.judged["first"]
    np.testing.assert_allclose(np.linalg.norm(trained.D, axis=0), 1, rtol=1e-5)
    # A trained layer has one threshold for all atoms of a step.
    made = one.replace(params=trained.best, D=trained.D)
    deep = sae.unroll(made, A, 3)
    np.testing.assert_allclose(
        jax.vmap(deep.layer.iterates, (None, None, 0))(deep.params, deep.D, deep.signals(A))[:, 0],
        made.encode(A),
        atol=1e-6,
    )
    np.testing.assert_allclose(made.unit().encode(A), made.encode(A), atol=1e-4)
