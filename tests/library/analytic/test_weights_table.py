"""The table of D, the closed form and the minimax weights: every number by its definition."""

import json

import numpy as np
import pytest
from oracles import unit

import unrolled as ur
from unrolled.analytic import weights_table

EPS = np.finfo(float).eps


def conv(seed, shape, N, **options):
    filters = np.random.default_rng(seed).normal(size=shape)
    return ur.dictionaries.normalize(ur.dictionaries.Conv(filters, N, **options))[0]


DICTIONARIES = {
    "gaussian": lambda: unit(np.random.default_rng(0).normal(size=(20, 40))),
    "paley": lambda: ur.dictionaries.paley(13),
    "circular": lambda: conv(1, (2, 1, 3), 8, boundary="circular"),
    "valid": lambda: conv(2, (2, 2, 3), 7),
    "orthonormal": lambda: np.eye(4),
    "one atom": lambda: np.ones((1, 1)),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", DICTIONARIES)
def test_every_number_is_that_of_the_weights_it_stands_for(name):
    D = DICTIONARIES[name]()
    table = weights_table(D, sparsity=1, noise=1e-3)
    A, d = np.asarray(ur.dictionaries.dense(D)), D.shape[1]
    assert list(table.rows) == list(table.weights) == ["W = D", "closed form", "minimax"]
    for kind, row in table.rows.items():
        W = np.asarray(ur.dictionaries.dense(table.weights[kind]))
        products = np.abs(W.T @ A - np.diag(np.sum(W * A, axis=0)))
        assert np.sum(W * A, axis=0) == pytest.approx(np.ones(d), abs=1e-12)
        # mu_W is rounded up by 1e-9, and an inner product of m terms by m eps.
        assert (
            products.max() <= row.mu_W + d * EPS
            and row.mu_W <= products.max() * (1 + 2e-9) + d * EPS
        )
        assert row.C_W == pytest.approx(np.abs(W).max(), rel=1e-12)
        assert row.omega == pytest.approx(np.linalg.norm(W, axis=0).max(), rel=1e-8)
        assert row.norm_W >= np.linalg.norm(W, 2) * (
            1 - 1e-12
        )  # structured ones have an upper bound
        assert (
            row.largest_sparsity == ur.theory.max_sparsity(row.mu_W, d)
            and row.sparsity == 1
            and row.holds
        )
        assert row.contraction == pytest.approx(row.mu_W, abs=1e-12)
        assert row.floor == pytest.approx(2e-3 * row.C_W / (1 - row.mu_W), rel=1e-6)
    assert (
        table.rows["minimax"].mu_W
        <= min(row.mu_W for row in table.rows.values()) * (1 + 2e-6) + d * EPS
    )


def test_least_entries_lower_the_floor_at_the_same_coherence():
    rows = weights_table(DICTIONARIES["gaussian"](), sparsity=1, noise=1e-3, entries=True).rows
    assert rows["least entries"].mu_W <= rows["minimax"].mu_W * (1 + 2e-6)
    assert rows["least entries"].C_W < 0.9 * rows["minimax"].C_W
    assert rows["least entries"].floor < rows["minimax"].floor


def test_text_and_json_say_what_does_not_hold():
    table = weights_table(DICTIONARIES["paley"](), sparsity=5)
    rows = json.loads(json.dumps(table.to_dict(), allow_nan=False))["weights"]
    assert all(
        row["holds"] is False and row["floor"] is None and row["steps"] is None
        for row in rows.values()
    )
    assert "False" in table.text() and "inf" in table.text() and "steps to 1e-06" in table.text()


def test_progress_is_told():
    told = []
    weights_table(
        DICTIONARIES["gaussian"](), progress=lambda settled, total: told.append((settled, total))
    )
    assert told and told[-1][1] == 40 and all(0 < settled <= total for settled, total in told)


def test_a_picture_has_a_row_for_every_dictionary():
    grams = [{"D'D": np.eye(3), "W'D": 0.1 + 0.9 * np.eye(3)}, {"D'D": np.ones((1, 1))}]
    fig = ur.plots.gram(grams)
    titles = [axes.get_title() for axes in fig.axes]
    assert "W'D: mu_W = 0.1000" in titles and titles.count("off the diagonal") == 2


def test_the_largest_sparsity_allows_for_atoms_off_unit_norm():
    """2 atoms at mu_W < 1/3, unit to 4e-5: mu_W alone admits s = 2, and 3 mu_W + eta >= 1."""
    mu = 1 / 3 - 4e-5
    D = np.array([[1, mu], [0, np.sqrt(1 - mu * mu)]]) * (1 + 4e-5)
    row = weights_table(D).rows["W = D"]
    assert row.mu_W < 1 / 3 and (row.largest_sparsity, row.sparsity, row.holds) == (1, 1, True)
