"""Planned power is met within two points, and equivalence is not claimed by mistake."""
import os

import pytest
from simulations import kept
from simulations.power import rows


@pytest.mark.slow
def test_planned_power_and_equivalence():
    table = rows(full=os.environ.get("QWEN_EVAL_SIMULATIONS") == "full")
    for r in table:
        print("{what} | {setting} | {method} {measured:.4f} | {naive_method} {naive:.4f}".format(**r))
    assert not [r for r in table if not kept(r)]
    apart = [abs(r["naive"] - r["nominal"]) for r in table if r["what"] == "planned power of 80 %"]
    assert sum(x > 0.02 for x in apart) >= 8, "the naive methods are to be worse, or the table shows nothing"
