"""The interval of the ECE holds the truth about as often as it says; the bootstrap hardly ever does."""
import os

import pytest
from simulations import kept
from simulations.calibration import rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(): return rows(full=os.environ.get("QWEN_EVAL_SIMULATIONS") == "full")


def test_bounds_are_kept(found):
    for r in found: print("{what} | {setting} | {measured:.4f} | {naive_method} {naive:.4f}".format(**r))
    assert not [r for r in found if not kept(r)]


def test_the_bootstrap_does_not(found):
    "Percentiles of resampled calibration errors lie above the truth."
    assert all(r["naive"] < r["measured"] - 0.05 for r in found if r["what"].startswith("coverage"))
