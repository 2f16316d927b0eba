"""Elasticities hold the truth as often as they say, where the unpaired method is far too wide."""
import os

import pytest
from simulations import kept
from simulations.scaling import rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(): return rows(full=os.environ.get("QWEN_EVAL_SIMULATIONS") == "full")


def test_bounds_are_kept(found):
    for r in found: print("{what} | {setting} | {measured:.4f} | {naive_method} {naive:.4f}".format(**r))
    assert not [r for r in found if not kept(r)]


def test_the_unpaired_method_is_too_wide(found):
    "Correlated errors counted as independent: the interval hardly ever misses, for it is wider than it has to be."
    assert all(r["naive"] > 0.965 for r in found if r["naive_method"] == "unpaired delta method")
