"""Intervals of clustered means hold the truth as often as they say, and naive ones do not."""
import os

import pytest
from simulations import kept
from simulations.clustered import rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(): return rows(full=os.environ.get("QWEN_EVAL_SIMULATIONS") == "full")


def test_coverage(found):
    assert not [r for r in found if not kept(r)]


def test_pooling_does_not_cover(found):
    "What the toolkit is for: answers of one cluster or item counted as independent are overconfident."
    naive = [r for r in found if r["naive_method"] == "Wilson over all answers"]
    assert naive and all(r["naive"] < r["measured"] - 0.05 for r in naive)
