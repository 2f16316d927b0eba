"""The committed demonstration results: complete, without texts or paths, and equal to README's table and figure."""
import json
import math
import re
from pathlib import Path

import pytest

from qwen_eval.engines.base import FakeEngine
from qwen_eval.evaluation import evaluate
from qwen_eval.runs import Run, list_runs, summary
from qwen_eval.sharing import publish
from qwen_eval.store import run_id
from qwen_eval.tables import display_rows

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "data/demo"
RUNS = list_runs(DEMO)


def places(x):
    "All texts in plain data that name an absolute path, alone or inside a sentence; a URL is none."
    if isinstance(x, dict): return [found for v in x.values() for found in places(v)]
    if isinstance(x, list): return [found for v in x for found in places(v)]
    return [x] if isinstance(x, str) and re.search(r"(?:^|[\s:=('\"])(?<!https:)(?<!http:)/+\w", x) else []


def test_paths_are_noticed_wherever_they_stand():
    hidden = {"a": ["/x", {"b": "file:/home/me/x"}], "c": "Cannot read /home/me", "d": [["file:///x"]], "e": "in '/x'"}
    assert len(places(hidden)) == 5
    assert places({"a": ["Qwen/Qwen3-8B", "and/or", "a / b"], "b": "../x", "c": "see https://a.b/c"}) == []


def test_fifteen_runs_of_one_model_under_three_presets():
    asked = [run.manifest["effective"] for run in RUNS]
    assert len(RUNS) == 15 and {a["model"] for a in asked} == {"smollm2_135m"}
    assert {a["preset"] for a in asked} == {"balanced", "performance", "memory_optimized"}
    assert len({run.manifest["items"]["item_set_hash"] for run in RUNS}) == 5


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.id)
def test_no_texts_and_no_paths(run):
    assert run.scores.answer.isna().all() and run.scores.detail.isna().all()
    assert sorted(p.name for p in run.path.iterdir()) == ["manifest.json", "scores.parquet"]
    assert places(run.manifest) == [] and run_id(run.manifest["fingerprint"]) == run.id


@pytest.mark.parametrize("system", ["/no_think", "Read /a/b first."])
def test_a_shared_copy_keeps_its_identity_and_no_place(tmp_path, system):
    run = evaluate("smollm2_135m", "gsm8k", engine=FakeEngine(lambda r: "18"), source="specimen", system=system,
                   runs=tmp_path / "runs", progress=False)
    [copy] = publish([run], tmp_path / "shared")
    manifest = Run(copy).manifest
    assert manifest["fingerprint"] == run.manifest["fingerprint"] and run_id(manifest["fingerprint"]) == run.id
    assert str(tmp_path) in json.dumps(run.manifest) and str(tmp_path) not in json.dumps(manifest)


def test_a_shared_copy_says_why_nothing_was_judged(tmp_path, monkeypatch):
    from qwen_eval.errors import SandboxError

    def none(*_, **__): raise SandboxError("no kind works in /home/me/x")
    monkeypatch.setattr("qwen_eval.scorers.code.Sandbox", none)
    run = evaluate("smollm2_135m", "humaneval", engine=FakeEngine(lambda r: "```python\npass\n```"), source="specimen",
                   runs=tmp_path / "runs", progress=False)
    [copy] = publish([run], tmp_path / "shared")
    shared = Run(copy)
    assert summary(shared)["note"] == "no sandbox (no kind works in x)" and shared.scores.answer.isna().all()


def test_the_figure_shows_these_numbers():
    plotted = {row["run_id"]: row for row in json.loads((DEMO / "forest.json").read_text())["data"]}
    assert plotted.keys() == {run.id for run in RUNS}
    for run in RUNS:
        estimate, row = run.estimate(), plotted[run.id]
        for key in ("value", "low", "high"): assert math.isclose(getattr(estimate, key), row[key], abs_tol=1e-12)
        assert estimate.n_items == row["n_items"] >= 40


def test_the_table_in_the_readme_shows_these_numbers():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n| benchmark |")[2].partition("\n\n")[0]
    head, _, *body = [[c.strip() for c in line.strip("|").split("|")] for line in f"| benchmark |{lines}".splitlines()]
    printed = [dict(zip(head, cells, strict=True)) for cells in body]
    expected = [{k: r[k] + (" †" if k == "benchmark" and r["marks"] else "") for k in head} for r in display_rows(RUNS)]
    by_name = sorted(printed, key=lambda r: (r["benchmark"], r["preset"]))
    assert by_name == sorted(expected, key=lambda r: (r["benchmark"], r["preset"])) and len(by_name) == len(RUNS)
