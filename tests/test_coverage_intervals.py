"""Intervals of one model, and of two groups without common items, cover as often as they say."""
import os

import pytest
from simulations import intervals as simulations
from simulations import kept

FULL = os.environ.get("QWEN_EVAL_SIMULATIONS") == "full"


@pytest.mark.slow
@pytest.mark.parametrize("part", simulations.PARTS, ids=lambda part: part.__name__)
def test_what_was_measured_keeps_its_bound(part):
    found = part(FULL)
    assert found and not [r for r in found if not kept(r)]


def test_the_bounds_of_wilson_are_those_that_were_promised():
    bounds = {(r["what"], r["setting"]): r["bound"] for r in simulations.proportions() if r["method"] == "wilson"}
    for n, least in ((20, 0.915), (100, 0.925), (500, 0.935)):
        assert bounds["mean coverage", f"n = {n}, p in 0.05..0.95"] == (0.945, 0.965)
        assert bounds["minimum coverage", f"n = {n}, p in 0.05..0.95"] == (least, 1)


def test_the_naive_interval_would_be_found_out():
    "Wald's interval in the place of Wilson's breaks every bound."
    for r in simulations.proportions():
        if r["method"] == "wilson" and r["what"] == "minimum coverage": assert r["naive"] < r["bound"][0], r
