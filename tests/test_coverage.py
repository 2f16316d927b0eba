"""Intervals hold the truth as often as they say, tests err as rarely, and what is often done instead does not.

Each room of tests/simulations is put to its bounds, with as many studies as two cores simulate in two minutes for all
rooms; QWEN_EVAL_SIMULATIONS=full takes as many as `benchmarks/coverage.py --full`, whose table the docs show.
"""
import importlib
import os
from pathlib import Path

import numpy as np
import pytest
from simulations import intervals, kept, paired
from simulations.trends import NEVER, first_alarms

from qwen_eval.stats.discordant import bonett_price, mcnemar, mcnemar_p, tango
from qwen_eval.stats.trends import cusum, cusum_plan

FULL = os.environ.get("QWEN_EVAL_SIMULATIONS") == "full"
ROOMS = sorted(p.stem for p in Path(__file__).with_name("simulations").glob("*.py") if p.stem != "__init__")


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_bounds_are_kept_and_the_naive_methods_do_not(room):
    rows = importlib.import_module(f"simulations.{room}").rows(FULL)
    shown = ("what", "setting", "method", "measured", "bound", "naive_method", "naive")
    for r in rows: print(" | ".join(str(r[k]) for k in shown))
    assert sum(r["bound"] is not None for r in rows) > 4
    assert not [r for r in rows if not kept(r)]
    NAIVE.get(room, lambda rows: None)(rows)


def calibration(rows):
    "Percentiles of resampled calibration errors lie above the truth."
    assert all(r["naive"] < r["measured"] - 0.05 for r in rows if r["what"].startswith("coverage"))


def clustered(rows):
    "What the toolkit is for: answers of one cluster or item counted as independent are overconfident."
    naive = [r for r in rows if r["naive_method"] == "Wilson over all answers"]
    assert naive and all(r["naive"] < r["measured"] - 0.05 for r in naive)


def multiple(rows):
    naive = {(r["what"], r["naive_method"]): r["naive"] for r in reversed(rows)} # the first setting of each
    assert naive["familywise error", "unadjusted"] > 0.5
    assert naive["all ranks held", "bootstrap ranks"] < 0.93
    assert naive["wrongly called equivalent", "no significant difference"] > 0.06
    assert naive["false effect of presets", "the same, not corrected"] > 0.05
    assert all(r["naive"] < 0.75 for r in rows if r["naive_method"] == "the first only")
    assert naive["interval of a strength", "log-odds of win rates"] < 0.93
    assert naive["interval of a log-odds", "logistic regression"] < 0.93


def power(rows):
    apart = [abs(r["naive"] - r["nominal"]) for r in rows if r["what"] == "planned power of 80 %"]
    assert sum(x > 0.02 for x in apart) >= 8, "the naive methods are to be worse, or the table shows nothing"


def scaling(rows):
    "Correlated errors counted as independent: the interval hardly ever misses, for it is wider than it has to be."
    assert all(r["naive"] > 0.965 for r in rows if r["naive_method"] == "unpaired delta method")


def sequential(rows):
    assert all(r["naive"] > 0.25 for r in rows if r["what"] == "ever rejected"), "repeated z-tests go wrong"


def trends(rows):
    "Tests from run to run cry wolf; limits at three standard deviations overlook the drop where noise is largest."
    assert all(r["naive"] > 0.5 for r in rows if r["what"].startswith("false"))
    assert min(r["naive"] for r in rows if r["what"].startswith("drop")) < 0.75


NAIVE = {f.__name__: f for f in (calibration, clustered, multiple, power, scaling, sequential, trends)}


def test_the_bounds_of_wilson_are_those_that_were_promised_and_wald_breaks_them():
    rows = [r for r in intervals.proportions() if r["method"] == "wilson"]
    found = {(r["what"], r["setting"]): r for r in rows}
    for n, least in ((20, 0.915), (100, 0.925), (500, 0.935)):
        assert found["mean coverage", f"n = {n}, p in 0.05..0.95"]["bound"] == (0.945, 0.965)
        lowest = found["minimum coverage", f"n = {n}, p in 0.05..0.95"]
        assert lowest["bound"] == (least, 1) and lowest["naive"] < least


@pytest.mark.parametrize("n", [1, 5, 24])
def test_what_is_enumerated_is_what_the_functions_give(n):
    "The simulations ask many tables at once; the public functions say the same of each."
    for b in range(n + 1):
        for c in range(n + 1 - b):
            for truth in (-0.3, 0.0, 0.11):
                for name, function in (("tango", tango), ("bonett-price", bonett_price)):
                    e = function(b, c, n)
                    if min(abs(e.low - truth), abs(e.high - truth)) < 1e-6: continue
                    assert bool(paired.HOLDS[name](b, c, n, truth)) == (e.low <= truth <= e.high), (name, b, c, n)
            for method in ("mid-p", "exact", "chi2"):
                assert float(mcnemar_p(b, c, method)) == mcnemar(b, c, method).p_value


def test_the_simulated_chart_is_the_public_one():
    "What was simulated for all paths at once is what `cusum` says of each path."
    counts = np.random.default_rng(5).binomial(500, np.r_[np.full(15, 0.8), np.full(15, 0.77)], (40, 30))
    plan = cusum_plan(500, 0.8)
    first = first_alarms(counts, 0.8, plan.k, plan.h)
    given = [cusum(c, [500] * 30, ["x"] * 30, target=0.8).alarm for c in counts]
    assert [NEVER if a is None else a + 1 for a in given] == first.tolist() and len({*given}) > 5
    target = (counts[0][:20].sum() + 0.5) / (20 * 500 + 1)
    based = cusum(counts[0], [500] * 30, ["x"] * 30, n_baseline=20)
    plan = cusum_plan(500, target, baseline_items=10_000)
    assert abs(based.plan.h - plan.h) < 1e-9 and based.plan.target == target
