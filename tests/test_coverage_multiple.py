"""Error rates and coverage of many comparisons, ranking, Bradley-Terry, designs and presets, by simulation."""
import os

import pytest
from simulations import kept, multiple

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows():
    return multiple.rows(full=os.environ.get("QWEN_EVAL_SIMULATIONS") == "full")


def test_error_rates_and_coverage(rows):
    "Every method keeps what it promises, two and a half Monte-Carlo errors apart."
    for r in rows: print(f"{r['what']}; {r['setting']}; {r['method']}: {r['measured']:.3f} ({r['naive']:.3f})")
    assert not [r for r in rows if not kept(r)]


def test_the_naive_methods_do_not(rows):
    naive = {(r["what"], r["naive_method"]): r["naive"] for r in reversed(rows)} # the first setting of each
    assert naive["familywise error", "unadjusted"] > 0.5
    assert naive["all ranks held", "bootstrap ranks"] < 0.93
    assert naive["wrongly called equivalent", "no significant difference"] > 0.06
    assert naive["false effect of presets", "the same, not corrected"] > 0.05
    assert all(r["naive"] < 0.75 for r in rows if r["naive_method"] == "the first only")
    assert naive["interval of a strength", "log-odds of win rates"] < 0.93
    assert naive["interval of a log-odds", "logistic regression"] < 0.93
