"""Continuous peeking: 5 % stay 5 %, and intervals hold the truth at all looks."""
import os

import pytest
from simulations import kept
from simulations.sequential import rows


@pytest.mark.slow
def test_peeking():
    table = rows(full=os.environ.get("QWEN_EVAL_SIMULATIONS") == "full")
    for r in table:
        print("{what} | {setting} | {method} {measured:.4f} | {naive_method} {naive:.4f}".format(**r))
    assert not [r for r in table if not kept(r)]
    assert all(r["naive"] > 0.25 for r in table if r["what"] == "ever rejected"), "repeated z-tests go wrong"
