"""Intervals cover as often as they say, and equal the values of other implementations."""
import json
import os
from pathlib import Path

import numpy as np
import pytest

from qwen_eval.stats.intervals import estimate, mean_t, wilson


def cases():
    data = os.environ.get("QWEN_EVAL_DATA")
    file = Path(data).parent / "statistics/cases.json" if data else Path("none")
    if not file.is_file(): return []
    return [c for c in json.loads(file.read_text())["cases"] if "wilson" in c["id"]]


@pytest.mark.parametrize("case", cases() or [None], ids=lambda c: c["id"] if c else "none")
def test_wilson_equals_known_values(case):
    if case is None: pytest.skip("needs QWEN_EVAL_DATA: statistics/cases.json beside it")
    given = case["inputs"]
    found = wilson(given["x"], given["n"], 1 - given["alpha"])
    assert np.allclose(found, case["expected"], atol=max(case["tolerance"], 1e-12))


@pytest.mark.slow
@pytest.mark.parametrize("n_epochs", [1, 4])
def test_estimates_of_binary_values_cover(n_epochs):
    rng = np.random.default_rng(11)
    chances = rng.beta(1.2, 0.8, size=(2000, 40, 1)) # items differ in difficulty; the truth is the mean of the Beta
    right = rng.random((2000, 40, n_epochs)) < chances
    covered = np.mean([e.low <= 0.6 <= e.high for e in map(estimate, right)])
    assert covered > 0.94 and (n_epochs > 1 or covered < 0.97)


@pytest.mark.slow
def test_t_intervals_of_bounded_values_cover():
    rng = np.random.default_rng(12)
    covered = np.mean([low <= 7 <= high for low, high, _ in
                       (mean_t(1 + 9 * x, (1, 10)) for x in rng.beta(4, 2, size=(4000, 30)))])
    assert 0.935 < covered < 0.965
