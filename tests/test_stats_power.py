"""Plans: edge inputs, other implementations, and the budget."""
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from statsmodels.stats.power import TTestIndPower, TTestPower

from qwen_eval.errors import ConfigError
from qwen_eval.stats.budget import allocate, keep_items, plan_epochs
from qwen_eval.stats.power import (
    Clustered,
    PairedBinary,
    PairedReal,
    TwoSamples,
    from_pilot,
    plan_difference,
    plan_items,
    plan_power,
)

DESIGNS = [PairedBinary(discordance=0.3), PairedReal(item_variance=0.1, noise=(0.1, 0.2), n_epochs=(2, 3)),
           PairedReal(item_variance=0.2, test="z"), TwoSamples(sd=0.4), Clustered(sd=0.4, icc=0.3, cluster_size=4)]


def named(x): return type(x).__name__


def refused(call, *args, **more):
    with pytest.raises(ConfigError) as e: call(*args, **more)
    return str(e.value)


@pytest.mark.parametrize("design", DESIGNS, ids=named)
def test_three_questions_agree(design):
    plan = plan_items(design, 0.08)
    assert design.power(plan.n, 0.08, 0.05) == plan.power >= 0.8 > design.power(plan.n - 1, 0.08, 0.05)
    assert plan_power(design, plan.n, 0.08).power == plan.power
    assert abs(plan_difference(design, plan.n, plan.power).difference - 0.08) < 1e-6
    assert plan_items(design, -0.08).n == plan.n < plan_items(design, 0.08, power=0.9).n < plan_items(design, 0.04).n
    assert plan.n_items >= plan.n and f"{plan.n:,}" in plan.sentence and plan.rows()[0]["items"] == plan.n_items
    assert plan.latex_rows() and str(plan)


@pytest.mark.parametrize("design", DESIGNS, ids=named)
def test_power_is_a_chance_everywhere(design):
    for n in (design.least, 2, 3, 7, 50, 10_000):
        found = [design.power(max(n, design.least), x, 0.05) for x in (0.0, 0.001, 0.05, 0.29)]
        assert all(0 <= p <= 1 for p in found) and np.all(np.diff(found) >= -1e-9), (n, found)
        assert found[0] <= 0.0505 or (isinstance(design, PairedBinary) and found[0] < 0.06)


@pytest.mark.parametrize("design", DESIGNS, ids=named)
def test_what_cannot_be_planned_is_refused(design):
    assert "least" in refused(plan_power, design, 0, 0.1)
    assert "least" in refused(plan_power, design, 2.5, 0.1)
    assert "difference=0" in refused(plan_items, design, 0)
    assert "power=1" in refused(plan_items, design, 0.1, power=1)
    assert "alpha=5" in refused(plan_items, design, 0.1, alpha=5)
    assert "power=0.04" in refused(plan_difference, design, 50, power=0.04)
    assert "difference=nan" in refused(plan_items, design, math.nan)


@pytest.mark.parametrize("make", [
    lambda: PairedBinary(discordance=0), lambda: PairedBinary(discordance=1.1), lambda: PairedReal(item_variance=0),
    lambda: PairedBinary(discordance=math.nan), lambda: PairedReal(item_variance=math.nan),
    lambda: PairedReal(item_variance=-1), lambda: PairedReal(item_variance=1, noise=(-0.1, 0.2)),
    lambda: PairedReal(item_variance=1, n_epochs=(0, 1)), lambda: PairedReal(item_variance=1, test="F"),
    lambda: TwoSamples(sd=0), lambda: TwoSamples(sd=math.inf), lambda: Clustered(sd=1, icc=-0.1, cluster_size=3),
    lambda: Clustered(sd=1, icc=0.1, cluster_size=0.5), lambda: Clustered(sd=0, icc=0.1, cluster_size=5)])
def test_impossible_designs_are_refused(make): refused(make)


def test_t_tests_agree_with_statsmodels():
    for n, d, alpha in ((5, 1.2, 0.05), (30, 0.4, 0.01), (400, 0.1, 0.1)):
        assert np.isclose(PairedReal(item_variance=1.0).power(n, d, alpha), TTestPower().power(d, n, alpha))
        assert np.isclose(TwoSamples(sd=1.0).power(n, d, alpha), TTestIndPower().power(d, n, alpha))
        needed = TTestPower().solve_power(d, None, alpha, 0.8)
        assert plan_items(PairedReal(item_variance=1.0), d, alpha=alpha).n == math.ceil(needed)


def test_few_items_find_nothing():
    assert PairedBinary(discordance=0.5).power(3, 0.5, 0.05) == 0
    assert "however large" in refused(plan_difference, PairedBinary(discordance=0.1), 20)


@pytest.mark.parametrize("a, b, clusters, says", [
    ([], [], None, "0 rows"), ([1], [0], None, "1 rows"), ([1, 1], [1, 1], None, "no discordant"),
    ([0, 0, 0], [0, 0, 0], None, "no discordant"), ([0.5, 0.25], [0.25, 0.0], None, "too small"),
    ([1, math.nan], [1, 0], None, "not finite"), ([1, 0, 1], [1, 0], None, "same ones"),
    ([1, 0, 1], [0, 0, 1], ["a"] * 3, "1 clusters"), ([1, 0, 1], [0, 0, 1], "abc", "3 clusters"),
    ([1, 0, 1], [0, 0, 1], "ab", "2 clusters for"), ([1, 0, 1, 1], [1, 0, 1, 1], "aabb", "too small"),
])
def test_what_is_no_pilot(a, b, clusters, says):
    assert says in refused(from_pilot, a, b, clusters if clusters is None else list(clusters))


def test_pilots_show_their_design():
    rng = np.random.default_rng(0)
    a = (rng.random(2000) < 0.6).astype(float)
    b = np.where(rng.random(2000) < 0.2, 1 - a, a)
    binary = from_pilot(a, b)
    assert isinstance(binary, PairedBinary) and binary.bounds[0] < 0.2 < binary.bounds[1]
    plan = plan_items(binary, 0.04)
    assert plan.between[0] < plan.n < plan.between[1] and "pilot" in plan.sentence
    wide = plan_items(from_pilot(a[:60], b[:60]), 0.04).between
    assert wide[1] - wide[0] > 2 * (plan.between[1] - plan.between[0])
    x = rng.normal(0.1, 0.3, (500, 1)) + rng.normal(0, 0.4, (500, 5))
    real = from_pilot(x, rng.normal(0, 0.5, (500, 3)))
    assert real.n_epochs == (5, 3) and np.allclose((real.item_variance, *real.noise), (0.09, 0.16, 0.25), rtol=0.25)
    once = from_pilot(x[:, 0], np.zeros(500))
    assert once.noise == (0, 0) and np.isclose(once.variance, x[:, 0].var(ddof=1))
    unequal = from_pilot(rng.random(7), np.zeros(7), list("aaabbcc"))
    assert unequal.size_cv > 0 and np.isclose(unequal.cluster_size, 7 / 3)


def test_pilot_bounds_cover():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        low, high = from_pilot(rng.normal(0, 0.5, 30), np.zeros(30)).bounds
        held += low < 0.25 < high
    assert held > 368 # 95 % less three errors


def test_epochs_and_their_limits():
    plan = plan_epochs(0.1, 0.2, 1000, max_items=100)
    assert plan.best == 10 and plan.n_items[plan.epochs.index(10)] == 100
    assert plan_epochs(0.1, 0.0, 100).best == 1 and plan_epochs(0.0, 0.1, 100).optimum == math.inf
    assert plan_epochs(0.1, 0.1, 2).n_items == (2,)
    for given in ((math.nan, 0.1, 10), (0.1, 0.1, 10, 1), (0.1, 0.1, 10, None, 0, 0)): refused(plan_epochs, *given)


def test_allocation_edges():
    sizes = {"a": 1, "b": 2, "c": 97}
    assert allocate(sizes, 100).kept == (1, 2, 97) and allocate(sizes, 5).kept == (1, 2, 2)
    assert allocate({"a": 10}, 3).kept == (3,)
    assert allocate(sizes, 10, {"a": 0, "b": 0, "c": 0.5}).kept == (1, 2, 7)
    for given in (({}, 1), (sizes, 4), (sizes, 101), (sizes, 10, {"a": 1}), (sizes, 10, {"a": -1, "b": 0, "c": 0}),
                  (sizes, 10, {"a": math.nan, "b": 0, "c": 0}), (sizes, 10, None, "optimal")): refused(allocate, *given)


def test_no_allocation_has_less_error():
    rng = np.random.default_rng(2)
    for _ in range(30):
        sizes, sds = rng.integers(3, 12, 3), rng.uniform(0.05, 0.5, 3)
        budget = int(rng.integers(6, sizes.sum()))
        every = np.array([k for k in product(*(range(2, s + 1) for s in sizes)) if sum(k) == budget])
        errors = ((sizes * sds) ** 2 * (1 / every - 1 / sizes)).sum(axis=1)
        found = allocate(dict(zip("abc", sizes, strict=True)), budget, dict(zip("abc", sds, strict=True)))
        assert np.isclose(found.se, errors.min() ** 0.5 / sizes.sum())


def test_neyman_beats_proportional_where_strata_differ():
    sizes, sds = {"easy": 5000, "hard": 5000}, {"easy": 0.1, "hard": 0.5}
    even, best = (allocate(sizes, 600, sds, method) for method in ("proportional", "neyman"))
    assert even.kept == (300, 300) and best.kept == (100, 500) and best.se < 0.85 * even.se


def test_a_draw_is_the_same_for_the_same_seed():
    strata = np.repeat(["x", "y"], [40, 60])
    kept = allocate({"x": 40, "y": 60}, 20)
    before = np.random.get_state()[1].copy()
    one, same, other = (keep_items(strata, kept, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(before, np.random.get_state()[1])
    assert one.tobytes() == same.tobytes() != other.tobytes() and (strata[one] == "x").sum() == kept.kept[0]
    refused(keep_items, strata[:-1], kept, np.random.default_rng(5))


def test_more_epochs_help_only_where_answers_vary():
    noisy = PairedReal(item_variance=0.01, noise=(0.2, 0.2))
    few, many = (plan_items(replace(noisy, n_epochs=(k, k)), 0.05).n for k in (1, 8))
    assert many < few / 4
    steady = PairedReal(item_variance=0.2)
    assert plan_items(replace(steady, n_epochs=(8, 8)), 0.05).n == plan_items(steady, 0.05).n


@pytest.mark.parametrize("design", [PairedBinary(discordance=0.12, bounds=(0.08, 0.17)), *DESIGNS], ids=named)
def test_a_loss_is_planned_for_as_a_gain_is(design):
    "Also where a pilot's lower bound lets the models differ less than was asked."
    up, down = (plan_power(design, 300, gap) for gap in (0.1, -0.1))
    assert up.power == pytest.approx(down.power, rel=1e-9) and up.between == down.between
    assert "-10 points" in down.sentence or "-0.1" in down.sentence
    assert plan_items(design, -0.1).n == plan_items(design, 0.1).n


def test_labels_of_a_pilot_are_told_apart_as_elsewhere():
    a, b = [0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 0]
    for labels in ([None, "x", "x", "y", "y", "y"], [math.nan, 1, 1, 2, 2, 2]):
        assert "no label" in refused(from_pilot, a, b, labels)
    mixed, apart = (from_pilot(a, b, labels) for labels in ([1, 1, "1", "1", 2, 2], list("aabbcc")))
    assert mixed == apart and mixed.cluster_size == 2 and type(mixed.icc) is float
    assert "level=95" in refused(from_pilot, a, b, level=95)


@pytest.mark.parametrize("design, given, says", [
    (PairedBinary, {"discordance": "a tenth"}, "discordance='a tenth'"), (TwoSamples, {"sd": None}, "sd=None"),
    (PairedReal, {"item_variance": "0.1"}, "variance='0.1'"), (PairedReal, {"item_variance": math.inf}, "variance=inf"),
    (PairedReal, {"item_variance": 0.1, "noise": 0.2}, "two of each"),
    (PairedReal, {"item_variance": 0.1, "n_epochs": (1, 2, 3)}, "two of each"),
    (PairedReal, {"item_variance": 0.1, "n_epochs": (1, None)}, "epochs=None"),
    (Clustered, {"sd": 0.4, "icc": "high", "cluster_size": 4}, "icc='high'"),
    (Clustered, {"sd": 0.4, "icc": 0.1, "cluster_size": 0.5}, "cluster_size=0.5"),
    (Clustered, {"sd": 0.4, "icc": 0.1, "cluster_size": 4, "size_cv": math.nan}, "size_cv=nan"),
])
def test_an_assumption_that_is_none_is_named(design, given, says): assert says in refused(design, **given)
