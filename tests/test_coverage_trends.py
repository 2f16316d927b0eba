"""The CUSUM is quiet where nothing moves and finds a drop of three points, with limits solved for and not tuned."""
import os

import numpy as np
import pytest
from simulations import kept
from simulations.trends import NEVER, first_alarms, rows

from qwen_eval.stats.trends import cusum, cusum_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(): return rows(full=os.environ.get("QWEN_EVAL_SIMULATIONS") == "full")


def test_bounds_are_kept(found):
    for r in found: print("{what} | {setting} | {measured:.4f} | {naive_method} {naive:.4f}".format(**r))
    assert not [r for r in found if not kept(r)]


def test_the_naive_methods_do_not(found):
    "Tests from run to run cry wolf; limits at three standard deviations overlook the drop where noise is largest."
    assert all(r["naive"] > 0.5 for r in found if r["what"].startswith("false"))
    assert min(r["naive"] for r in found if r["what"].startswith("drop")) < 0.75


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
