"""The committed demonstration results: complete, without texts or paths, and equal to README's table and figure."""
import json
import math
import os
import re
import runpy
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


# ---------------------------------------------------------------- simulated runs and published verdicts
SIMULATED, PUBLISHED = list_runs(DEMO / "simulated"), list_runs(DEMO / "published")
SCRIPT = runpy.run_path(str(ROOT / "benchmarks/demo_results.py"))


@pytest.mark.parametrize("run", SIMULATED, ids=lambda run: run.id)
def test_simulated_runs_cannot_be_mistaken_for_results(run):
    told = run.manifest["fingerprint"]
    assert "fake-engine" in run.manifest["marks"] and told["engine"]["name"] == "fake" and run.complete
    assert run.id.startswith("simulated_") and told["model"]["id"].startswith("simulated_")
    assert run.manifest["model"]["family"].startswith("simulated_") and run.manifest["simulated"]
    assert "not a result of the benchmark" in repr(run) and told["model"]["hub_id"] is None
    assert run.scores.answer.isna().all() and run.scores.detail.isna().all() and run_id(told) == run.id
    assert sorted(p.name for p in run.path.iterdir()) == ["manifest.json", "scores.parquet"]
    assert places(run.manifest) == []


def test_simulated_runs_are_on_real_items_and_few():
    real = {r.manifest["fingerprint"]["benchmark"]["id"]: r.manifest["items"]["item_set_hash"] for r in RUNS}
    for run in SIMULATED:
        name = run.manifest["fingerprint"]["benchmark"]["id"]
        assert run.manifest["items"]["verified"] == "verified"
        assert real.get(name) in (None, run.manifest["items"]["item_set_hash"])
    size = sum(p.stat().st_size for p in (DEMO / "simulated").rglob("*") if p.is_file())
    assert len(SIMULATED) == 50 and size < 500_000


def test_simulated_runs_are_made_again_byte_by_byte(tmp_path):
    if not os.environ.get("QWEN_EVAL_DATA"): pytest.skip("QWEN_EVAL_DATA names no folder with the items")
    import pyarrow.parquet as pq
    for words in ("simulated_gen3_8b gsm8k balanced twin", "simulated_nightly gsm8k balanced  2"):
        made = SCRIPT["simulate"](tmp_path / "a", words)
        again = SCRIPT["simulate"](tmp_path / "b", words)
        assert made and [p.name for p in made] == [p.name for p in again]
        for a, b in zip(made, again, strict=True):
            for name in ("manifest.json", "scores.parquet"): assert (a / name).read_bytes() == (b / name).read_bytes()
            kept = DEMO / "simulated" / a.name
            assert Run(a).scores.equals(Run(kept).scores)
            by = {pq.ParquetFile(p / "scores.parquet").metadata.created_by for p in (a, kept)}
            if len(by) == 1: assert (a / "scores.parquet").read_bytes() == (kept / "scores.parquet").read_bytes()


def test_published_verdicts_are_those_of_their_authors():
    right = {r.manifest["fingerprint"]["model"]["id"]: int(r.scores.value.sum()) for r in PUBLISHED}
    assert right == {"openai_6b_finetuning": 286, "openai_6b_verification": 515, "openai_175b_finetuning": 458,
                     "openai_175b_verification": 742} # of 1,319, from the published file
    for run in PUBLISHED:
        assert "MIT" in run.manifest["published"] and "published-verdicts" in run.manifest["marks"] and run.complete
        assert run.scores.answer.isna().all() and run_id(run.manifest["fingerprint"]) == run.id
        assert places(run.manifest) == [] and run.estimate().n_items == 1319
    by_item = {r.id: r.scores.set_index("item_id").value for r in PUBLISHED}
    a, b = (next(v for k, v in by_item.items() if f"175b_{way}" in k) for way in ("finetuning", "verification"))
    assert int(((a == 1) & (b == 0)).sum()) == 76 and int(((a == 0) & (b == 1)).sum()) == 360 # paired by item


def test_published_verdicts_belong_to_their_items():
    path = Path(os.environ.get("QWEN_EVAL_DATA") or "nowhere").parent / "published/gsm8k_openai/solutions.jsonl.gz"
    if not path.exists(): pytest.skip("the items (QWEN_EVAL_DATA) or, beside them, the published solutions are missing")
    import gzip

    from qwen_eval.datasets.all import benchmark
    from qwen_eval.datasets.base import load
    ids = {re.sub(r"\s+", " ", i.question).strip(): i.id for i in load(benchmark("gsm8k")).items}
    with gzip.open(path, "rt", encoding="utf-8") as lines: rows = [json.loads(line) for line in lines]
    for way in ("6b_finetuning", "175b_finetuning"):
        [run] = [r for r in PUBLISHED if f"openai_{way}" in r.id]
        kept = run.scores.set_index("item_id").value
        for r in rows: assert kept[ids[re.sub(r"\s+", " ", r["question"]).strip()]] == r[way]["is_correct"]
