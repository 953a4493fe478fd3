"""What the scripts of benchmarks/ count, on problems that take seconds."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrolled as ur

FOLDER = Path(__file__).parents[1] / "benchmarks"


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
        return certify(*arguments, **options)._replace(unique=np.ones(8, bool))

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
