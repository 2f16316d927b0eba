"""The intervals of judges and items cover as often as they say, by simulation (QWEN_EVAL_SIMULATIONS=full: tenfold)."""
import importlib
import os

import pytest
from simulations import kept


@pytest.mark.slow
@pytest.mark.parametrize("room", ["judges", "items"])
def test_bounds_hold(room):
    rows = importlib.import_module(f"simulations.{room}").rows(os.environ.get("QWEN_EVAL_SIMULATIONS") == "full")
    assert sum(r["bound"] is not None for r in rows) > 5
    for r in rows:
        print(f"{r['what']} | {r['setting']} | {r['method']}: {r['measured']:.4f} (error {r['se']:.4f}) | "
              f"{r['naive_method']}: {r['naive']} | {r['bound']}")
    assert not [r for r in rows if not kept(r)]
