"""Two sizes and power laws: edge inputs, invariances, and randomness that stays where it was given."""
import math
import random

import numpy as np
import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.stats.powerlaw import chinchilla, power_law
from qwen_eval.stats.scaling import error_elasticity, two_sizes

RIGHT, WRONG, HALF = np.ones(40), np.zeros(40), np.arange(40) % 2.0
SIZES, MANY = np.array([0.6e9, 1.7e9, 4e9, 8.2e9, 14.8e9]), np.geomspace(1e8, 1e10, 24)


def rng(seed=0): return np.random.default_rng(seed)


@pytest.mark.parametrize(("a", "b", "given", "said"), [
    ([], [], {}, "0 rows"), ([1], [0], {}, "no error"), (RIGHT, HALF, {}, "no error"), (HALF, RIGHT, {}, "no error"),
    (WRONG, HALF, {}, "chance"), (HALF, WRONG, {}, "chance"), (HALF, HALF, {"chance": 0.5}, "chance"),
    (HALF, HALF[:-1], {}, "same items"), (HALF, [*HALF[:-1], math.nan], {}, "finite"), (HALF, 2 * HALF, {}, "possible"),
    (HALF, HALF, {"chance": 1}, "chance=1"), (HALF, HALF, {"level": 95}, "level"), (HALF, ["x"] * 40, {}, "numbers"),
    (HALF[:, None, None], HALF, {}, "shape"), (HALF, HALF, {"items": range(40)}, "one model only"),
    (HALF, HALF, {"items": range(40), "reference_items": range(1, 41)}, "same items"),
    (HALF, HALF, {"items": [0] * 40, "reference_items": [0] * 40}, "twice"),
    (HALF, HALF, {"items": range(39), "reference_items": range(40)}, "one for each"),
    (0.5 * RIGHT, 0.5 * RIGHT, {}, "same credit"),
])
def test_what_has_no_elasticity(a, b, given, said):
    with pytest.raises(ConfigError, match=said): error_elasticity(a, b, 14e9, 8e9, **given)


@pytest.mark.parametrize("sizes", [(8e9, 8e9), (0, 8e9), (-1, 8e9), (math.nan, 8e9), (None, 8e9), ("8b", 14e9)])
def test_sizes_that_are_none(sizes):
    for f in (error_elasticity, two_sizes):
        with pytest.raises(ConfigError, match="parameters"): f(HALF, HALF, *sizes)


def test_small_and_tied_samples_have_wide_finite_intervals():
    for a, b in (([0, 1], [0, 1]), ([0, 1, 1], [1, 0, 1]), (HALF, HALF), (HALF, 1 - HALF), ([0.5, 0, 1], [0, 0.5, 1])):
        e = error_elasticity(a, b, 14e9, 8e9)
        assert e.low < e.value < e.high and np.isfinite([e.low, e.high, e.se]).all()
    assert error_elasticity([0, 1], [0, 1], 14e9, 8e9).value == 0


def test_items_are_matched_and_the_order_of_models_does_not_matter():
    a, b, ids = (rng().random(300) < 0.8), (rng(1).random(300) < 0.7), [f"q{i}" for i in range(300)]
    e, order = error_elasticity(a, b, 14e9, 8e9), rng(2).permutation(300)
    for other in (error_elasticity(b, a, 8e9, 14e9),
                  error_elasticity(a, b[order], 14e9, 8e9, ids, [ids[i] for i in order])):
        assert np.allclose((e.value, e.low, e.high, e.se), (other.value, other.low, other.high, other.se))
    wider = error_elasticity(a, b, 14e9, 8e9, level=0.99)
    assert wider.low < e.low and wider.high > e.high and e.counts["errors"] == int((~a).sum())


def test_epochs_count_as_items_and_narrow_the_interval():
    hard = rng().beta(2, 1, size=(200, 1))
    a, b = (rng(1).random((200, 8)) < hard), (rng(2).random((200, 8)) < hard ** 1.3)
    e, one = error_elasticity(a, b, 14e9, 8e9), error_elasticity(a[:, 0], b[:, 0], 14e9, 8e9)
    assert e.n_items == 200 and e.n_epochs == 8 and e.high - e.low < one.high - one.low and e.df == 199
    assert two_sizes(a, b, 14e9, 8e9).difference.n_items == 200


def test_both_or_the_reason_why_one_is_missing():
    found = two_sizes(HALF, RIGHT, 14e9, 8e9, metric="acc")
    assert found.elasticity is None and "no error" in found.refused and len(found.rows()) == 1
    assert found.difference.value == -0.5 and found.refused in found.sentence
    found = two_sizes(HALF, 1 - HALF, 14e9, 8e9)
    assert len(found.rows()) == 2 and not found.refused and len(found.latex_rows().splitlines()) == 2
    with pytest.raises(ConfigError, match="same items"): two_sizes(HALF, HALF[1:], 14e9, 8e9)


LAW = 2 + 400 * SIZES ** -0.3


@pytest.mark.parametrize(("sizes", "losses", "given", "said"), [
    ([], [], {}, "0 rows"), ([1e9], [1], {}, "coefficients"), (SIZES[:2], LAW[:2], {}, "coefficients"),
    (SIZES[:3], LAW[:3], {}, "from four on"), (SIZES[[0, 0, 1, 1, 2]], LAW, {}, "from four on"),
    (SIZES[:3], rng().random((3, 50)), {}, "from four on"), (SIZES, LAW[:4], {}, "one for each"),
    (SIZES, [*LAW[:4], math.nan], {}, "finite"), (SIZES, [*LAW[:4], 0], {}, "logarithm"), (-SIZES, LAW, {}, "positive"),
    (SIZES, LAW, {"floor": 3}, "not above 3"), (SIZES, LAW, {"floor": -1}, "floor=-1"),
    (SIZES, LAW, {"huber": 0}, "huber"), (SIZES, LAW, {"n_resamples": 1}, "n_resamples"),
    (SIZES, LAW[:, None], {}, "one item"), (SIZES, LAW, {"level": 0}, "level"),
    (SIZES, [3.1, 2.9, 2.8, 2.6, 2.7], {"floor": None}, "do not determine"),
    (SIZES[:3], LAW[:3], {"floor": None}, "scatter"),
])
def test_what_is_not_fitted(sizes, losses, given, said):
    with pytest.raises(ConfigError, match=said): power_law(sizes, losses, rng(), **given)


@pytest.mark.parametrize(("tokens", "losses", "said"), [
    (20 * MANY, 2 + MANY ** -0.1, "in step"), (MANY[::-1], 2 + MANY[1:] ** -0.1, "one for each"),
    (np.resize([1e9, 2e9], 24), 2 + MANY ** -0.1, "n_tokens"), (MANY[::-1], np.ones((24, 3)), "shape"),
    (MANY[::-1], np.r_[0, np.ones(23)], "logarithm"),
])
def test_what_is_not_fitted_to_tokens(tokens, losses, said):
    with pytest.raises(ConfigError, match=said): chinchilla(MANY, tokens, losses, rng())


def test_laws_are_recovered_and_units_do_not_matter():
    n, d = MANY, rng(3).permutation(MANY) * 30
    losses = 1.7 + 400 * n ** -0.34 + 900 * d ** -0.37
    c = chinchilla(n, d, losses * np.exp(1e-4 * rng(4).normal(size=24)), rng(), n_resamples=50).coefficients
    assert np.allclose([c[k].value for k in ("E", "alpha", "beta")], (1.7, 0.34, 0.37), rtol=0.05)
    wrong = rng(5).random((5, 400)) < 0.6 * np.geomspace(1, 0.4, 5)[:, None]
    a, b = (power_law(s, wrong.astype(float), rng(), n_resamples=50).coefficients for s in (SIZES, SIZES / 1e9))
    assert np.isclose(a["alpha"].value, b["alpha"].value, rtol=1e-4) and a["alpha"].n_items == 400
    assert np.isclose(a["A"].value, b["A"].value * 1e9 ** a["alpha"].value, rtol=1e-2)
    rising = power_law(SIZES, 2 * SIZES ** 0.1, rng(), n_resamples=20).coefficients["alpha"]
    assert np.isclose(rising.value, -0.1) # worse with size, and said so


def test_an_outlier_moves_the_fit_little():
    losses = 30 * MANY ** -0.1
    losses[3] *= 2
    fit = power_law(MANY, losses, rng(), n_resamples=50)
    assert abs(fit.coefficients["alpha"].value - 0.1) < 1e-3 and fit.resampled == "points"
    assert abs(power_law(MANY, losses, rng(), huber=10, n_resamples=50).coefficients["alpha"].value - 0.1) > 0.01


@pytest.mark.parametrize("losses", [LAW, rng(1).random((5, 80)), LAW * np.exp(0.01 * rng(2).normal(size=5))])
def test_same_seed_same_bytes_and_no_global_state(losses):
    before = np.random.get_state()[1].tobytes(), random.getstate()
    one, two, three = (str(power_law(SIZES, losses, rng(s), n_resamples=30)) for s in (1, 1, 2))
    assert one == two and (one != three or losses is LAW)
    assert before == (np.random.get_state()[1].tobytes(), random.getstate())
