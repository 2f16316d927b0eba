"""Equivalence: edge inputs, agreement with other implementations, verdicts that do not say too much."""
import math

import numpy as np
import pytest
from scipy.stats import binom, ttest_rel
from statsmodels.stats.proportion import power_binom_tost, proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from qwen_eval.errors import ConfigError
from qwen_eval.stats.discordant import tango
from qwen_eval.stats.equivalence import Equivalence, equivalence, share_equivalence
from qwen_eval.stats.margins import (
    check_margin,
    equivalence_items,
    equivalence_power,
    paired_score,
    share_equivalence_items,
    share_equivalence_power,
    share_tost,
)

ONES, ZEROS = np.ones(80), np.zeros(80)
HALF = np.arange(80) % 2.0


def refused(call, *args, **more):
    with pytest.raises(ConfigError) as e: call(*args, **more)
    return str(e.value)


@pytest.mark.parametrize("a, b, more, says", [
    ([], [], {}, "0 rows"), ([1, 0], [1], {}, "shape"), ([1, math.nan], [1, 0], {}, "not finite"),
    ([0.3], [0.3], {}, "no spread"), ([2, 0], [1, 0], {}, "possible is 0 to 1"), (["a"], [1], {}, "no array"),
    ([1, 0], [1, 0], {"margin": 0}, "margin=0"), ([1, 0], [1, 0], {"margin": math.nan}, "margin"),
    ([1, 0], [1, 0], {"side": "above"}, "side='above'"), ([1, 0], [1, 0], {"alpha": 0.7}, "alpha=0.7"),
    ([1, 0], [1, 0], {"power": 1}, "power=1"), ([1, 0], [1, 0], {"chance": 1}, "chance=1"),
    ([0.5, 0], [1, 0], {"discordance": 0.2}, "planned by `sd`"), (np.ones((3, 0)), np.ones((3, 0)), {}, "no epochs"),
    ([1, 0], [1, 0], {"items": "ab"}, "of both sides"), (HALF, ZEROS, {"discordance": 1.5}, "discordance=1.5"),
    ([1, 0], [1, 0], {"items": "ab", "reference_items": "ac"}, "not asked the same items"),
    ([1, 0], [1, 0], {"items": "aa", "reference_items": "aa"}, "each item once"),
    ([1, 0], [1, 0], {"margin": 2}, "0.02 for two points"), ([1, 0], [1, 0], {"margin": (-1, 0.1)}, "differ by 1"),
])
def test_what_cannot_be_compared_is_refused(a, b, more, says):
    assert says in refused(equivalence, a, b, **{"margin": 0.05, **more})


@pytest.mark.parametrize("a, b, verdict", [
    ([1], [1], "not testable"), ([1], [0], "not testable"), ([1, 0], [1, 0], "not testable"),
    (ONES, ONES, "not testable"), (ZEROS, ZEROS, "not testable"), (ONES, ZEROS, "not equivalent"),
    (HALF, HALF, "equivalent"), (HALF, 1 - HALF, "not testable"), ([0.5, 0.5], [0.5, 0.5], "not testable"),
    (np.tile(HALF, (3, 1)).T, np.tile(HALF, (3, 1)).T, "equivalent"),
])
def test_edges_get_a_verdict(a, b, verdict):
    e = equivalence(a, b, margin=0.06)
    assert e.verdict.startswith(verdict), e.verdict
    x = e.estimate
    assert -1 <= x.low <= x.value <= x.high <= 1 and 0 <= x.p_value <= 1 and x.n_items == len(a)
    assert e.testable == ("testable" not in e.verdict) and 0 <= e.power <= 1
    if not e.testable: assert f"needs {e.needs:,} items" in e.verdict and (e.needs > len(a) or e.needs_margin < 0.06)
    assert e.verdict in str(e) and e.verdict[1:] in e.sentence and e.latex_rows() and len(e.table()) == 1


def test_agrees_with_statsmodels_on_real_values():
    rng = np.random.default_rng(0)
    a = rng.uniform(0.2, 0.8, 60)
    b = a + rng.normal(0, 0.05, 60)
    e = equivalence(a, b, margin=(-0.03, 0.05), sd=0.05)
    p, (_, p_low, _), (_, p_high, _) = ttost_paired(a, b, -0.03, 0.05)
    found = e.estimate.detail
    assert np.allclose((e.estimate.p_value, found["p_low"], found["p_high"]), (p, p_low, p_high))
    assert np.isclose(found["p_difference"], ttest_rel(a, b).pvalue)


def test_agrees_with_statsmodels_on_one_share():
    for method, name in (("exact", "beta"), ("score", "wilson"), ("wald", "normal")):
        e = share_equivalence(31, 200, 0.1, 0.25, method, alpha=0.025).estimate
        assert np.allclose((e.low, e.high), proportion_confint(31, 200, 0.05, name))
        inside, shown = e.low > 0.1 and e.high < 0.25, e.p_value <= 0.025
        assert inside == shown
    for n in (60, 133): # with 20, where nothing shows it, statsmodels 0.15 gives a negative power
        assert np.isclose(share_equivalence_power(n, 0.3, 0.6, 0.45), power_binom_tost(0.3, 0.6, n, 0.45))


@pytest.mark.parametrize("k, n, low, high", [(0, 1, 0.0, 0.5), (1, 1, 0.5, 1.0), (0, 50, 0.0, 0.1), (50, 50, 0.9, 1.0)])
@pytest.mark.parametrize("method", ["exact", "score", "wald"])
def test_edges_of_one_share(k, n, low, high, method):
    e = share_equivalence(k, n, low, high, method)
    x = e.estimate
    assert 0 <= x.low <= x.value <= x.high <= 1 and 0 <= x.p_value <= 1 and isinstance(e, Equivalence)


@pytest.mark.parametrize("args", [(3, 2, 0.1, 0.2), (0, 0, 0.1, 0.2), (1, 5, 0.2, 0.2), (-1, 5, 0.1, 0.2),
                                  (1, 5, 0.3, 1.2)])
def test_impossible_shares_are_refused(args):
    refused(share_equivalence, *args)
    refused(share_tost, *args)


def test_interval_and_test_say_the_same():
    for b in range(0, 30, 3):
        for c in range(0, 30, 3):
            low, high = tango(b, c, 150, 0.9).ends
            z_low, z_high = paired_score(b, c, 150, [-0.07, 0.07])
            if abs(low + 0.07) > 1e-6: assert (low > -0.07) == (z_low > 1.6448536)
            if abs(high - 0.07) > 1e-6: assert (high < 0.07) == (z_high < -1.6448536)


def test_score_statistic_by_its_definition():
    from scipy.optimize import minimize_scalar
    for b, c, n, d in ((7, 2, 40, 0.05), (0, 5, 30, 0.1), (12, 12, 50, -0.2)):
        def loss(q, b=b, c=c, n=n, d=d): # minus the log-likelihood with p21 = q, p12 = q + d
            return -(b * np.log(q + d) + c * np.log(q) + (n - b - c) * np.log(1 - 2 * q - d))
        q = minimize_scalar(loss, bounds=(max(0, -d) + 1e-12, (1 - d) / 2 - 1e-12), method="bounded",
                            options={"xatol": 1e-12}).x
        assert np.isclose(paired_score(b, c, n, d), (b - c - n * d) / (n * (2 * q + d - d * d)) ** 0.5, rtol=1e-5)


@pytest.mark.parametrize("args", [(5, 5, 0, 0), (5, 6, 10, 0), (-1, 0, 10, 0), (1, 0, 10, 1.5)])
def test_impossible_tables_are_refused(args): refused(paired_score, *args)


def test_the_order_of_items_does_not_matter():
    rng = np.random.default_rng(1)
    a, b, ids = HALF, np.where(rng.random(80) < 0.1, 1 - HALF, HALF), [f"q{k}" for k in range(80)]
    mixed = rng.permutation(80)
    one = equivalence(a, b, 0.1, items=ids, reference_items=ids)
    other = equivalence(a, b[mixed], 0.1, items=ids, reference_items=[ids[k] for k in mixed])
    assert one == other and one.estimate.value == equivalence(a, b, 0.1).estimate.value
    back = equivalence(b, a, 0.1).estimate
    assert np.allclose((back.low, back.high), (-one.estimate.high, -one.estimate.low))


def test_floor_and_chance_and_ceiling():
    rng = np.random.default_rng(2)
    for p, chance, which in ((0.01, 0.0, "floor"), (0.25, 0.25, "floor"), (0.995, 0.0, "ceiling")):
        a, b = (rng.random((2, 400)) < p).astype(float)
        e = equivalence(a, b, 0.03, chance=chance)
        assert e.verdict.startswith("not testable: needs ") and which in e.reason, e.verdict
    off = (rng.random(4000) < 0.5).astype(float)
    assert equivalence(off, np.where(rng.random(4000) < 0.02, 1 - off, off), 0.03, chance=0.25).verdict == "equivalent"
    below = equivalence(ZEROS, np.r_[1, ZEROS[1:]], 0.03, chance=0.25) # worse than guessing: lost to no floor of 25 %
    assert below.needs_margin and below.needs_margin < 0.03


def test_a_plan_decides_before_the_data():
    b = HALF.copy()
    b[:2] = 1 - b[:2]
    assert equivalence(HALF, b, 0.08).verdict == "equivalent"
    e = equivalence(HALF, b, 0.08, discordance=0.3)
    assert not e.testable and e.needs == equivalence_items(0.08, discordance=0.3)
    n = equivalence_items(0.08, discordance=0.05)
    assert equivalence_power(n, 0.08, discordance=0.05) >= 0.8 > equivalence_power(n - 1, 0.08, discordance=0.05)


def test_one_sided_needs_less():
    assert check_margin((-0.01, 0.5), "not worse") == (-0.01, math.inf)
    both, one = (equivalence_items(0.04, discordance=0.1, side=s) for s in ("both", "not worse"))
    assert one < both
    b = np.where(np.arange(80) < 9, 1, HALF) # better
    assert equivalence(b, HALF, 0.05, side="not worse").verdict == "not worse"
    assert equivalence(ZEROS, HALF, 0.05, side="not worse").verdict == "worse"


@pytest.mark.parametrize("n, sd, difference", [(2, 0.1, 0.0), (10, 0.3, 0.05), (200, 0.4, 0.02)])
def test_power_of_real_values_by_simulation(n, sd, difference):
    rng = np.random.default_rng(3)
    x = rng.normal(difference, sd, (20_000, n))
    from scipy.stats import t
    reach = t.isf(0.05, n - 1) * x.std(axis=1, ddof=1) / n**0.5
    shown = ((x.mean(axis=1) - reach > -0.1) & (x.mean(axis=1) + reach < 0.1)).mean()
    assert abs(equivalence_power(n, 0.1, sd=sd, difference=difference) - shown) < 0.012


def test_items_of_one_share_stay_enough():
    n = share_equivalence_items(0.0, 0.03, 0.01)
    assert all(share_equivalence_power(m, 0.0, 0.03, 0.01) >= 0.8 for m in range(n, n + 200))
    assert binom.cdf(0, n, 0.03) < 0.05
    refused(share_equivalence_items, 0.1, 0.2, 0.3)


def test_nothing_touches_the_global_random_state():
    before = np.random.get_state()[1].copy()
    equivalence(HALF, 1 - HALF, 0.05)
    share_equivalence(1, 50, 0.0, 0.1)
    assert np.array_equal(before, np.random.get_state()[1])
