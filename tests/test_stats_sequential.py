"""Looking early: edge inputs, known values, and data in no random order."""
import math

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import norm

from qwen_eval.errors import ConfigError
from qwen_eval.stats.looks import boundaries, crossing, group_look, inflation
from qwen_eval.stats.sequential import (
    check_order,
    mixture_strength,
    paired_looks,
    paired_sequence,
    share_ends,
    share_log_e,
    share_looks,
    share_sequence,
)

FIVE = boundaries(5)
ODD = np.arange(60) % 2.0
CALLS = {
    "share_sequence": lambda order: share_sequence(ODD, order), "check_order": check_order,
    "paired_sequence": lambda order: paired_sequence(ODD, ODD, order),
    "share_looks": lambda order: share_looks([1, 1], order, 0.5),
    "paired_looks": lambda order: paired_looks([1], [0], order),
    "group_look": lambda order: group_look(ODD, ODD, order, FIVE, 60)}


def refused(call, *args, **more):
    with pytest.raises(ConfigError) as e: call(*args, **more)
    return str(e.value)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("order", [None, "file order", "", True, -1, 1.5, math.nan])
def test_items_in_no_random_order_are_refused(name, order):
    assert "seeded random order" in refused(CALLS[name], order)


@pytest.mark.parametrize("name", CALLS)
def test_a_seed_is_accepted(name): CALLS[name](np.int64(3))


@pytest.mark.parametrize("values", [[1], [0], [1, 0], [1, 1], np.ones(500), np.zeros(500), [0.5, 0.25, 1.0]])
def test_edges_of_a_share(values):
    e = share_sequence(values, order=1, null=0.5)
    assert 0 <= e.low <= e.value <= e.high <= 1 and e.n_items == len(values) and 0 <= e.p_value <= 1 < e.e_value + 1
    assert (e.low == 0) if e.value == 0 else (e.high == 1) if e.value == 1 else True


@pytest.mark.parametrize("a, b", [([1], [1]), ([1], [0]), ([1, 0], [0, 1]), (ODD, ODD), (ODD, 1 - ODD),
                                  (np.ones(400), np.zeros(400)), (np.zeros(400), np.ones(400))])
def test_edges_of_a_pair(a, b):
    e = paired_sequence(a, b, order=1)
    assert -1 <= e.low <= e.value <= e.high <= 1 and e.counts["b"] - e.counts["c"] == round(e.value * e.n_items)
    back = paired_sequence(b, a, order=1)
    assert np.allclose((back.low, back.high), (-e.high, -e.low)) and np.isclose(back.e_value, e.e_value)


@pytest.mark.parametrize("call, args", [
    (share_sequence, ([], 1)), (share_sequence, ([math.nan], 1)), (share_sequence, ([2], 1)),
    (share_sequence, ([[1]], 1)), (share_looks, ([2], 1, 0.5)),
    (share_sequence, ([1], 1, 95)), (share_sequence, ([1], 1, 0.95, 1.0)), (share_sequence, ([1], 1, 0.95, None, 0)),
    (paired_sequence, ([], [], 1)), (paired_sequence, ([1], [1, 0], 1)), (paired_sequence, ([0.5], [1], 1)),
    (paired_sequence, ([1], [math.nan], 1)), (share_ends, (3, 2)), (share_ends, (-1, 2)), (share_ends, (1, 2, 2.0)),
    (share_looks, ([], 1, 0.5)), (share_looks, (1, 1, 0.5)), (share_looks, ([1, 0], 1, 0.5)),
    (share_looks, ([1, 3], 1, 0.5)), (share_looks, ([math.nan], 1, 0.5)), (share_looks, ([1], 1, 0.0)),
    (share_looks, ([1, 2], 1, 0.5, [1, 2, 3])), (share_looks, ([1, 2], 1, 0.5, [2, 1])), (paired_looks, ([1], [1], 1)),
    (paired_looks, ([2, 1], [0, 1], 1, [5, 9])), (paired_looks, ([1], [0, 0], 1)),
])
def test_what_is_refused(call, args): refused(call, *args)


def test_e_values_by_their_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(1, 300))
        k, p, m = int(rng.integers(0, n + 1)), rng.uniform(0.02, 0.98), rng.uniform(0.5, 50)
        a, b = m * p, m * (1 - p)
        assert np.isclose(share_log_e(k, n, p, m), betaln(a + k, b + n - k) - betaln(a, b) - k * np.log(p)
                          - (n - k) * np.log(1 - p))


def test_e_values_are_fair_bets():
    "Under the null hypothesis the expectation is 1 after any number of items."
    from scipy.stats import binom
    for n, p, m in ((1, 0.3, 2), (40, 0.5, 2), (200, 0.9, 10)):
        k = np.arange(n + 1)
        assert np.isclose(binom.pmf(k, n, p) @ np.exp(share_log_e(k, n, p, m)), 1)


@pytest.mark.parametrize("k, n", [(0, 30), (1, 50), (7, 20), (50, 50), (333, 400)])
def test_what_is_not_rejected_is_one_interval(k, n):
    p = np.linspace(1e-4, 1 - 1e-4, 20_001)
    for strength in (0.01, 2, 10, 200):
        kept = p[share_log_e(k, n, p, strength) < math.log(20)]
        low, high = share_ends(k, n, 0.95, strength)
        assert np.all(np.diff(kept) < 1.5e-4) and abs(kept[0] - low) < 2e-4 and abs(kept[-1] - high) < 2e-4


def test_arrays_and_single_looks_agree():
    rng = np.random.default_rng(1)
    runs = (rng.random((3, 4, 50)) < 0.7).cumsum(axis=-1)
    all_looks = share_looks(runs, 1, 0.6)
    assert all_looks.low.shape == (3, 4, 50) and all_looks.stops.shape == (3, 4)
    for i, j, t in ((0, 0, 0), (2, 3, 49), (1, 2, 17)):
        one = share_looks(runs[i, j, t:t + 1], 1, 0.6, [t + 1])
        assert np.allclose((one.e_value, one.low, one.high), np.c_[[x[i, j, t] for x in (
            all_looks.e_value, all_looks.low, all_looks.high)]])
    a, b = (rng.random((2, 90)) < 0.6).astype(float)
    looks = paired_looks((a > b).cumsum(), (a < b).cumsum(), 1)
    e = paired_sequence(a, b, 1)
    assert np.isclose(looks.e_value[-1], e.e_value) and np.isclose(looks.low[-1], e.low)
    assert looks.rows()[-1]["n"] == 90 and looks.sentence


def test_stops_are_the_first_look():
    looks = share_looks(np.arange(1, 31), 1, 0.5)
    first = int(looks.stops)
    assert looks.e_value[first] >= 20 > looks.e_value[first - 1] and looks.low[first] > 0.5 >= looks.low[first - 1]
    assert share_looks([1], 1, 0.5).stops == -1


def test_intervals_narrow_and_are_wider_than_wilson():
    from statsmodels.stats.proportion import proportion_confint
    n = np.array([20, 100, 500, 2500, 12_500])
    low, high = share_ends(0.7 * n, n, 0.95, mixture_strength(500))
    wilson = np.subtract(*proportion_confint(0.7 * n, n, method="wilson"))
    assert np.all(np.diff(high - low) < 0) and np.all(high - low > -wilson) and (high - low)[2] < -2 * wilson[2]


def test_four_thousand_paths_are_feasible():
    rng = np.random.default_rng(2)
    looks = share_looks((rng.random((400, 500)) < 0.8).cumsum(axis=1), 1, 0.8)
    assert np.isfinite(looks.e_value).all() and (looks.low <= looks.high).all() and (looks.stops >= 0).mean() < 0.08


def test_the_same_bytes_and_no_global_state():
    before = np.random.get_state()[1].copy()
    one, same = (repr(paired_sequence(ODD, 1 - ODD, 7)) for _ in range(2))
    boundaries(3)
    assert one == same and np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("kind, n_looks, alpha, constant", [ # Jennison and Turnbull 2000, tables 2.1 and 2.3
    ("pocock", 2, 0.05, 2.178), ("pocock", 10, 0.05, 2.555), ("pocock", 5, 0.01, 2.986),
    ("obrien-fleming", 2, 0.05, 1.977), ("obrien-fleming", 10, 0.05, 2.087), ("obrien-fleming", 5, 0.01, 2.621)])
def test_constants_of_the_tables(kind, n_looks, alpha, constant):
    assert abs(boundaries(n_looks, alpha, kind).z[-1] - constant) < 1.1e-3


def test_crossing_by_simulation():
    rng = np.random.default_rng(3)
    t = np.array([0.1, 0.5, 0.6, 1.0])
    s = (rng.normal(2.0 * np.diff(t, prepend=0), np.sqrt(np.diff(t, prepend=0)), (200_000, 4))).cumsum(axis=1)
    bounds = boundaries(t)
    over = np.abs(s / np.sqrt(t)) >= bounds.z
    first = np.where(over.any(axis=1), over.argmax(axis=1), -1)
    assert np.allclose(crossing(bounds.z, t, 2.0), [(first == k).mean() for k in range(4)], atol=4e-3)
    assert np.isclose(bounds.spent[-1], 0.05) and inflation(bounds)[0] > 1 > inflation(bounds)[1]


def test_many_looks_and_one():
    many = boundaries(50)
    assert np.isclose(crossing(many.z, many.information).sum(), 0.05, atol=1e-6) and len(many.rows()) == 50
    assert np.isclose(boundaries(1, 0.01).z[0], norm.isf(0.005)) and boundaries([1.0]).spent == boundaries(1).spent


@pytest.mark.parametrize("args", [(0,), (2.5,), ("five",), ([],), ([0.5],), ([0.5, 0.5, 1],), (3, 0),
                                  (3, 0.05, "peto")])
def test_impossible_looks_are_refused(args): refused(boundaries, *args)


def test_edges_of_a_planned_look():
    for a, b in ((ODD, ODD), (np.ones(60), np.zeros(60)), (np.full(60, 0.4), np.full(60, 0.1)), (ODD, 1 - ODD)):
        e = group_look(a, b, 1, FIVE, 60)
        assert -1 <= e.low < e.value < e.high <= 1 or (e.high == 1 and e.low < 1)
        assert e.detail["look"] == 5 and (e.detail["rejected_at"] > 0) == (abs(np.sum(a - b)) > 0)
    for a, b, planned in (([1], [1], 60), ([], [], 60), ([1, math.nan], [1, 1], 2), ([1, 0], [1], 2), (ODD, ODD, 59),
                          (ODD[:4], ODD[:4], 4)):
        refused(group_look, a, b, 1, FIVE, planned)
