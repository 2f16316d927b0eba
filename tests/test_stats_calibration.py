"""Calibration: edge inputs, known parts, and randomness that stays where it was given."""
import math
import random

import numpy as np
import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.stats.calibration import brier, calibration, reliability, top_label


def rng(seed=0): return np.random.default_rng(seed)


BAD = [([], [], {}, "0 rows"), ([0.5], [], {}, "0 rows"), ([0.5, 0.5], [1], {}, "one of each"),
       ([1.5], [1], {}, "possible"), ([-0.1], [1], {}, "possible"), ([math.nan], [1], {}, "finite"),
       ([0.5], [math.nan], {}, "finite"),
       ([0.5], [0.5], {}, "neither"), ([0.5], [2], {}, "possible"), ([[0.5]], [1], {}, "shape"),
       ([0.5], [1], {"n_bins": 0}, "n_bins"),
       ([0.5], [1], {"n_bins": 2.5}, "n_bins"), ([0.5], [1], {"level": 1}, "level")]


@pytest.mark.parametrize(("c", "y", "given", "said"), BAD)
def test_what_is_refused(c, y, given, said):
    with pytest.raises(ConfigError, match=said): reliability(c, y, **given)
    with pytest.raises(ConfigError, match=said): calibration(c, y, rng(), **given)
    if np.ndim(c) == 1:
        with pytest.raises(ConfigError, match=said): brier(c, y, **given)


@pytest.mark.parametrize(("p", "y", "said"), [
    ([], [], "shape"), ([[0.5, 0.4]], [0], "sum to"), ([[0.5, 0.5]], [2], "numbered"),
    ([[0.5, 0.5]], [0.5], "numbered"),
    ([[0.5, 0.5]], [0, 1], "one for each"), ([[math.nan, 1]], [0], "finite"), ([[1.5, -0.5]], [0], "possible")])
def test_what_is_no_distribution(p, y, said):
    with pytest.raises(ConfigError, match=said): top_label(p, y)
    if np.ndim(p) == 2:
        with pytest.raises(ConfigError, match=said): brier(p, y)


@pytest.mark.parametrize(("c", "y"), [([0.7], [1]), ([0.0], [0]), ([1.0], [1]), ([1.0], [0]), ([0.5, 0.5], [0, 1]),
                                      ([0.9] * 30, [1] * 30), ([0.9] * 30, [0] * 30), ([0.5] * 30, [0, 1] * 15),
                                      (np.linspace(0, 1, 31), [0, 1, 1] * 10 + [1])])
def test_small_tied_and_extreme_inputs_stay_in_range(c, y):
    found = calibration(c, y, rng(), n_simulations=200)
    for e in (found.ece, found.rmsce, found.mce):
        assert 0 <= e.low <= e.value <= e.high <= 1 and 0 < e.p_value <= 1
        assert 0 <= e.detail["null_low"] <= e.detail["null_high"] <= 1
    assert found.ece.value <= found.rmsce.value + 1e-12 <= found.mce.value + 2e-12
    for e in reliability(c, y).correct: assert 0 <= e.low <= e.value <= e.high <= 1
    b = brier(c, y)
    assert 0 <= b.low <= b.value <= b.high <= 1
    d = b.detail
    parts = d["reliability"] - d["resolution"] + d["uncertainty"] + d["within_bins"]
    assert math.isclose(parts, b.value, abs_tol=1e-12)


def test_too_few_simulations():
    with pytest.raises(ConfigError, match="coarse"): calibration([0.5], [1], rng(), n_simulations=10)


def test_certainty_that_is_wrong_is_the_worst_there_is():
    found = calibration([1.0] * 50, [0] * 50, rng())
    assert found.ece.value == found.mce.value == 1 and found.overconfidence == 1 and found.ece.p_value < 0.01
    assert brier([1.0] * 50, [0] * 50).value == 1


def test_more_items_narrow_null_band_and_interval():
    def of(n):
        c = rng(1).uniform(0.3, 1, n)
        return calibration(c, rng(2).random(n) < c - 0.1, rng()).ece
    few, many = of(200), of(20_000)
    assert many.detail["null_high"] < few.detail["null_high"] / 5 and many.high - many.low < (few.high - few.low) / 5
    assert many.low < 0.1 < many.high and many.low > many.detail["null_high"]


def test_brier_of_classes_is_that_of_each_class_added_up():
    p, y = rng().dirichlet([2, 1, 1], 200), rng(1).integers(0, 3, 200)
    each = [brier(p[:, k], y == k) for k in range(3)]
    whole = brier(p, y)
    assert math.isclose(whole.value, sum(e.value for e in each)) and whole.high <= 2
    assert math.isclose(whole.detail["resolution"], sum(e.detail["resolution"] for e in each))


def test_same_seed_same_bytes_and_no_global_state():
    before = np.random.get_state()[1].tobytes(), random.getstate()
    c, y = np.linspace(0.2, 1, 80), np.arange(80) % 3 > 0
    one, two, three = (calibration(c, y, rng(s)) for s in (1, 1, 2))
    assert one == two and one != three
    assert before == (np.random.get_state()[1].tobytes(), random.getstate())
