"""The committed demonstration results: complete, without texts or paths, and equal to the figure in the README."""
import json
import math
import re
from pathlib import Path

import pytest

from qwen_eval.runs import list_runs

DEMO = Path(__file__).resolve().parent.parent / "data/demo"
RUNS = list_runs(DEMO)


def test_twelve_runs_of_one_model_under_three_presets():
    asked = [run.manifest["effective"] for run in RUNS]
    assert len(RUNS) == 12 and {a["model"] for a in asked} == {"smollm2_135m"}
    assert {a["preset"] for a in asked} == {"balanced", "performance", "memory_optimized"}
    assert len({run.manifest["items"]["item_set_hash"] for run in RUNS}) == 4


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.id)
def test_no_texts_and_no_paths(run):
    assert run.scores.answer.isna().all() and run.scores.detail.isna().all()
    assert sorted(p.name for p in run.path.iterdir()) == ["manifest.json", "scores.parquet"]
    assert not re.search(r'": "/', (run.path / "manifest.json").read_text())


def test_the_figure_shows_these_numbers():
    plotted = {row["run_id"]: row for row in json.loads((DEMO / "forest.json").read_text())["data"]}
    assert plotted.keys() == {run.id for run in RUNS}
    for run in RUNS:
        estimate, row = run.estimate(), plotted[run.id]
        for key in ("value", "low", "high"): assert math.isclose(getattr(estimate, key), row[key], abs_tol=1e-12)
        assert estimate.n_items == row["n_items"] >= 40
