"""Paired intervals cover as often as they say, and paired tests err as rarely."""
import os

import pytest
from simulations import kept
from simulations import paired as simulations

from qwen_eval.stats.discordant import bonett_price, mcnemar, mcnemar_p, tango

FULL = os.environ.get("QWEN_EVAL_SIMULATIONS") == "full"


@pytest.mark.slow
@pytest.mark.parametrize("part", simulations.PARTS, ids=lambda part: part.__name__)
def test_what_was_measured_keeps_its_bound(part):
    found = part(FULL)
    assert found and not [r for r in found if not kept(r)]


@pytest.mark.parametrize("n", [1, 5, 24])
def test_what_is_enumerated_is_what_the_functions_give(n):
    "The simulations ask many tables at once; the public functions say the same of each."
    for b in range(n + 1):
        for c in range(n + 1 - b):
            for truth in (-0.3, 0.0, 0.11):
                for name, function in (("tango", tango), ("bonett-price", bonett_price)):
                    e = function(b, c, n)
                    if min(abs(e.low - truth), abs(e.high - truth)) < 1e-6: continue
                    assert bool(simulations.HOLDS[name](b, c, n, truth)) == (e.low <= truth <= e.high), (name, b, c, n)
            for method in ("mid-p", "exact", "chi2"):
                assert float(mcnemar_p(b, c, method)) == mcnemar(b, c, method).p_value
