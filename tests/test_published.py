"""Published scores: checked line by line, compared only where they are of the same thing, replicated cell by cell."""
import csv
import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen_eval.cli import app
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, UnknownNameError
from qwen_eval.evaluation import evaluate
from qwen_eval.outputs import score_outputs
from qwen_eval.published import agreement, asked_as, beside, compared, published_rows, unlike
from qwen_eval.published_facts import ASKED, NOT_STATED, Published, fact_rows, published, read_published
from qwen_eval.records import Estimate
from qwen_eval.replication import replication, replication_text
from qwen_eval.runner import parameters, run_study
from qwen_eval.runs import Run, list_runs
from qwen_eval.store import update_manifest
from qwen_eval.studies import Study, plan, study

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("QWEN_EVAL_DATA", "nowhere")).parent / "published"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published outputs beside QWEN_EVAL_DATA")
HEAD = "hub_id,variant,benchmark,n_shot,prompt,thinking,data,metric,score,unit,source,date"
GOOD = "my-lab/model,base,gsm8k,8,cot,no,test,exact_match,61.5,%,our wiki,2026-10"
FACT = Published(hub_id="Qwen/Qwen2.5-7B", variant="base", benchmark="gsm8k", n_shot="4", prompt="cot", thinking="no",
                 data="test", metric="exact_match", score="85.4", source="a report", date="2024")
OURS = {"hub_id": "Qwen/Qwen2.5-7B", "variant": "base", "weights": "as published", "data": "test", "n_shot": "4",
        "prompt": "cot", "thinking": "no", "metric": "exact_match", "judge": ""}


def ask(*words, status=0):
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    assert done.exit_code == status, done.output
    return done


def as_if_real(run, **changes):
    "The run as an engine with weights would have left it: the same scores, no marks."
    update_manifest(run.path, marks=[], **changes)
    return Run(run.path)


def made(model="qwen2.5_8b_base", benchmark="gsm8k", **more):
    how = {"source": "specimen", "engine": FakeEngine("random"), "progress": False, **more}
    return as_if_real(evaluate(model, benchmark, **how))


def add(lab, text):
    with open(lab / "settings.ini", "a") as file: file.write(text)


def write(folder, *lines, head=HEAD):
    (folder / "own.csv").write_text("\n".join([head, *lines]) + "\n")
    return folder / "own.csv"


# what is known

@shared
def test_every_score_that_the_team_reported_for_a_benchmark_of_ours_is_there():
    known = {(f.hub_id, f.score, f.thinking) for f in published()}
    rows = list(csv.DictReader((SHARED / "qwen_reported.csv").read_text().splitlines()))
    assert len(rows) == 56
    for r in rows: assert (r["hub_id"], r["score"], "yes" if r["variant"] == "thinking" else "no") in known, r


def test_facts_say_who_and_when_and_what_is_only_assumed():
    for f in published():
        assert f.source and f.date and f.line.startswith(str(ROOT / "data/published.csv"))
        for k in f.assumed: assert getattr(f, k) != NOT_STATED, f.line
    assert sum(bool(f.assumed) for f in published()) > 40
    rows = fact_rows(published(model="qwen_8b", benchmark="alpaca_eval"))
    assert {r["score"] for r in rows} == {"13.20 %", "11.77 %", "14.75 %"} and len({r["source"] for r in rows}) == 2


@pytest.mark.parametrize("old, new, said", [
    ("gsm8k", "gsm8", "line 3: Unknown benchmark 'gsm8'. Did you mean 'gsm8k'"),
    ("my-lab/model", "model", "line 3: hub_id is 'model'; it is org/name"),
    (",8,", ",many,", "line 3: n_shot is 'many'"), (",8,", ",-1,", "line 3: n_shot"),
    ("cot", "letters", "line 3: Unknown prompt 'letters'"), ("base", "instruct", "line 3: Unknown variant"),
    (",no,", ",maybe,", "line 3: Unknown thinking"), ("61.5", "615", "line 3: score 615 is not within 0 and 100"),
    ("61.5", "61,5", "line 3: it has not as many cells"), ("61.5", "n/a", "line 3: score is 'n/a'"),
    ("%", "points", "line 3: unit is 'points'"), ("2026-10", "Oct 2026", "line 3: date is"),
    ("our wiki", "", "line 3: source is empty"), ("exact_match", "exact_mach", "line 3: Unknown metric 'exact_mach'"),
    ("61.5", "61.6", "line 3: our wiki says 61.6 of what it says 61.5 of in line 2")])
def test_a_wrong_line_is_named(tmp_path, old, new, said):
    with pytest.raises(ConfigError) as e: read_published(write(tmp_path, GOOD, GOOD.replace(old, new)))
    assert said in str(e.value) and "own.csv" in str(e.value)


def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="line 1: the column 'metric' is missing"):
        read_published(write(tmp_path, head="hub_id,benchmark,score,source,date"))
    with pytest.raises(ConfigError, match=r"line 1: Unknown column 'n_shots'\. Did you mean 'n_shot'"):
        read_published(write(tmp_path, GOOD, head=HEAD.replace("n_shot", "n_shots")))
    with pytest.raises(ConfigError, match="cannot be read"): read_published(tmp_path / "missing.csv")
    (tmp_path / "own.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"): read_published(tmp_path / "own.csv")


def test_a_file_of_ones_own_stands_beside_ours(lab, monkeypatch):
    ours = len(published())
    file = write(lab, GOOD, GOOD) # the same line twice is one fact
    assert len(published(file)) == ours + 1
    add(lab, "published = own.csv\n")
    monkeypatch.setenv("QWEN_EVAL_X", "read again")
    [own] = published(model="my-lab/model")
    assert own.value == 0.615 and math.isclose(own.rounding, 0.0005) and own.line.endswith("own.csv, line 2")
    write(lab, GOOD.replace("gsm8k", "gsm8")) # a file that changes is read again
    os.utime(file, (1, 1))
    with pytest.raises(ConfigError, match="line 2: Unknown benchmark"): published()
    monkeypatch.setenv("QWEN_EVAL_PUBLISHED", str(lab / "nowhere.csv"))
    with pytest.raises(ConfigError, match=r"nowhere\.csv"): published()


# the same thing?

@pytest.mark.parametrize("field", ASKED)
def test_each_field_keeps_two_scores_apart_and_is_named(field):
    assert unlike(OURS, FACT) == {}
    theirs = getattr(FACT, field) or "none"
    assert unlike({**OURS, field: "something else"}, FACT) == {field: ("something else", theirs)}
    row = compared(Estimate(value=0.854, low=0.83, high=0.87, method="wilson", n_items=1319), FACT,
                   unlike({**OURS, field: "else"}, FACT))
    assert row["verdict"] == f"not comparable: {field} (ours else; theirs {theirs})"
    assert row["fields"] == (field,) and row["reach"] is None


def test_what_is_not_stated_agrees_with_nothing_and_what_is_assumed_only_unless_strict():
    assert unlike(OURS, replace(FACT, n_shot=NOT_STATED)) == {"n_shot": ("4", NOT_STATED)}
    fact = replace(FACT, assumed=("prompt",))
    assert unlike(OURS, fact) == {}
    assert unlike(OURS, fact, strict=True) == {"prompt": ("cot", "not stated, cot assumed")}
    quiet = replace(FACT, thinking=NOT_STATED)
    assert unlike(OURS, quiet, thinks=False) == {} and list(unlike(OURS, quiet)) == ["thinking"]
    assert unlike({**OURS, "metric": "exact_match_strict"}, FACT, ("exact_match",)) == {} # measured beside
    assert unlike(OURS, replace(FACT, n=8500), n=1319) == {"data": ("1319 items", "8500 items")}


@pytest.mark.parametrize("score, n, same", [
    ("85.4", None, True), ("82.0", None, True), ("81.9", None, False), ("88.0", None, True), ("88.1", None, False),
    ("88.4", None, False), ("88", None, True), ("89", None, False), ("79.5", 100, True), ("79.5", 1319, False)])
def test_agreement_is_interval_tolerance_and_rounding(score, n, same):
    ours = Estimate(value=0.85, low=0.83, high=0.87, method="wilson", n_items=1319)
    found, reach = agreement(ours, replace(FACT, score=score, n=n), n=1319)
    assert found is same
    if n != 100: assert math.isclose(reach, 0.02 + 0.01 + (0.005 if "." not in score else 0.0005))
    else: assert math.isclose(reach, math.hypot(0.02, 1.959964 * math.sqrt(0.795 * 0.205 / 100)) + 0.0105, rel_tol=1e-6)


def test_a_score_of_judges_has_its_own_range():
    ours = Estimate(value=7.5, low=7.3, high=7.7, method="t", metric="judge_score", n_items=80)
    fact = replace(FACT, benchmark="mt_bench", metric="judge_score", unit="of 10", score="7.79")
    assert agreement(ours, fact)[0] and not agreement(ours, replace(fact, score="7.80"))[0] # 0.2 + 1 % of 9 + 0.005
    assert "0.29" in compared(ours, fact, {})["note"] or "0.30" in compared(ours, fact, {})["note"]


# a run beside them

def test_a_run_agrees_disagrees_or_says_why_not(lab):
    run = made(n_shot=2)
    fact, e = replace(FACT, n_shot="2"), run.estimate()
    near, far = f"{100 * e.value:.1f}", f"{100 * min(e.high + 0.012, 1):.1f}" if e.high < 0.98 else "0.0"
    both = [replace(fact, score=near), replace(fact, score=far, source="another")]
    rows = beside(run, both)
    assert [r["verdict"] for r in rows] == ["agree", "disagree"] and rows[0]["reach"] > 0.01
    assert "sources differ" in rows[0]["note"] and "another" in rows[0]["note"] and "a report" in rows[1]["note"]
    assert rows[0]["value"] == e.value and rows[0]["n_items"] == e.n_items and "would agree" in rows[0]["note"]
    [text] = published_rows([run], both[:1])
    assert text["here"].startswith(f"{near} % [") and text["published"] == f"{near} %"
    assert text["ours"] == e.value and math.isclose(text["theirs"], float(near) / 100)
    assert text["source"] == "a report (2024)"
    assert {"model", "benchmark", "ours", "theirs", "source", "verdict", "note"} <= text.keys()
    assert beside(run, [replace(fact, benchmark="mmlu", metric="acc")]) == []
    assert beside(run, [replace(fact, hub_id="my-lab/model")]) == []


def test_what_a_run_is_not(lab, monkeypatch):
    fact = replace(FACT, n_shot="2", score="50.0")
    def fields(run, **changes):
        fp = run.manifest["fingerprint"]
        model, preset = {**run.manifest["model"], **changes.pop("model", {})}, changes.pop("preset", {})
        update_manifest(run.path, model=model, fingerprint={**fp, "preset": {**fp["preset"], **preset}}, **changes)
        rows = beside(Run(run.path), [fact])
        update_manifest(run.path, **{k: run.manifest[k] for k in ("model", "fingerprint", "marks", *changes)})
        return {k: r for r in rows for k in r["fields"]}
    run = made(n_shot=2)
    assert not fields(run)
    for changes, field, said in (
            ({"model": {"quantization": "awq-4bit"}}, "weights", "awq-4bit"),
            ({"model": {"adapter": "lora"}}, "weights", "an adapter on top"),
            ({"preset": {"kv_cache_dtype": "fp8"}}, "weights", "KV cache fp8"),
            ({"marks": ["fake-engine"]}, "marks", "fake-engine"), ({"marks": ["prejoined"]}, "data", "pre-joined"),
            ({"model": {"variant": "chat"}}, "variant", "chat"), ({"n_shot": 5}, "n_shot", "5"),
            ({"epochs": 2}, "completeness", "incomplete")):
        found = fields(run, **changes)
        assert list(found) == [field], changes
        assert f"{field} (ours {said}" in found[field]["verdict"].replace("test, ", "")
    update_manifest(run.path, fingerprint={**run.manifest["fingerprint"], "twin": True})
    assert beside(Run(run.path), [fact]) == [] # the A/A twin is no second result


def test_cut_off_answers_stand_beside_nothing(lab):
    from qwen_eval.records import Completion
    run = made(n_shot=2, engine=FakeEngine(lambda r: Completion(item_id=r.item_id, text="7", finish_reason="length")))
    [row] = beside(run, [replace(FACT, n_shot="2")])
    assert row["fields"] == ("truncation",) and "answers cut off; theirs not stated" in row["verdict"]


def test_prompts_of_ones_own_and_weights_taken_over_are_named(lab):
    add(lab, "[model.tuned]\nlike = qwen3_8b\npath = there\n")
    run = made("qwen3_8b", "gsm8k", system="Be brief.")
    assert asked_as(run.manifest)["prompt"] == "chat-cot, own system text"
    tuned = {**run.manifest, "model": {**run.manifest["model"], "id": "tuned", "weights": {"source": "folder"}}}
    assert asked_as(tuned)["weights"] == "a folder of one's own" and asked_as(run.manifest)["weights"] == "as published"
    assert asked_as(made("qwen3_8b", "mmlu").manifest)["prompt"] == "chat-letter-generated"
    assert asked_as(made("qwen3_8b", "mmlu", variant="label").manifest)["prompt"] == "chat-letter"
    assert asked_as(made("qwen3_8b_base", "mmlu", variant="lm-eval").manifest)["prompt"] == "letter"
    assert asked_as(made("qwen3_8b", "bfcl").manifest) | {"data": ""} == {
        **asked_as(run.manifest), "prompt": "chat-tools", "data": "", "metric": "acc"}


def test_the_base_models_figure_beside_the_chat_model_is_refused(lab):
    [row] = beside(made("qwen2.5_8b", "hellaswag"))
    assert {"hub_id", "variant", "n_shot"} <= {*row["fields"]} and row["theirs"] == 0.802


# real ones

def test_the_demonstration_runs_say_why_they_are_not_the_authors_model():
    runs = [r for r in list_runs(ROOT / "data/demo") if "hellaswag" in r.id]
    for r in published_rows(runs):
        assert r["published"] == "40.9 %" and r["verdict"].startswith("not comparable: weights (ours Q4_1 GGUF")
        assert "data (ours validation, pre-joined; theirs validation)" in r["verdict"] and "lighteval" in r["note"]
    assert len(runs) == 3


@shared
def test_published_likelihoods_scored_again_agree_with_the_figure_that_came_with_them():
    scored = score_outputs(SHARED / "hellaswag/Qwen2.5-1.5B_loglik.csv.gz", "hellaswag")
    [fact] = published(model="Qwen/Qwen2.5-1.5B", benchmark="hellaswag")
    ours = Estimate(**scored["estimate"])
    assert f"{100 * ours.value:.2f}" == fact.score == "65.86"
    row = compared(ours, fact, {}, tolerance=0, n=scored["counts"]["n_items"])
    assert row["verdict"] == "agree" and row["reach"] < 0.0095
    assert compared(ours, replace(fact, score="64.90"), {}, tolerance=0)["verdict"] == "disagree"


@shared
def test_published_programs_run_again_agree_with_the_figure_that_came_with_them():
    from qwen_eval.sandbox import available
    if not available(): pytest.skip("needs a sandbox")
    scored = score_outputs(SHARED / "qwen2.5_coder_1.5b/humaneval/generated.jsonl.gz", "humaneval")
    [fact] = published(model="Qwen/Qwen2.5-Coder-1.5B", benchmark="humaneval")
    ours = Estimate(**scored["estimate"])
    assert f"{100 * ours.value:.1f}" == fact.score and compared(ours, fact, {}, n=164)["verdict"] == "agree"


# cells

CELLS = Study(id="cells", cells=("qwen2.5_8b_base gsm8k:2", "qwen3_8b_base arc_challenge:1", "qwen3_8b_base gsm8k"),
              engine="fake", limit=2, answer_tok=16, allow_specimens=True)


def test_a_study_of_cells_asks_these_and_no_others(lab):
    planned = plan(CELLS)
    assert [(r.model, r.benchmark, r.plan.n_shot) for r in planned.runs] == [
        ("qwen2.5_8b_base", "gsm8k", 2), ("qwen3_8b_base", "arc_challenge", 1), ("qwen3_8b_base", "gsm8k", 5)]
    assert planned.study.models == ("qwen2.5_8b_base", "qwen3_8b_base") and plan(planned.study).rows() == planned.rows()
    assert [parameters(r, planned.study)["n_shot"] for r in planned.runs] == [2, 1, None]
    assert [r.plan.n_shot for r in plan(replace(CELLS, n_shot=3)).runs] == [2, 1, 3]


@pytest.mark.parametrize("cells, more, said", [
    (("qwen3_8b_base",), {}, "'qwen3_8b_base' is no cell"), (("qwen3_8b_base gsm8k:four",), {}, "is no cell"),
    (("qwen3_8b_base gsm8k:",), {}, "is no cell"), (("a b", "a b:4"), {}, "names the cell a b twice"),
    (("qwen3_8b_base gsm8k",), {"models": ("qwen3_8b",)}, "models or benchmarks beside them"),
    (("qwen3_8b_base gsm8q",), {}, "Did you mean 'gsm8k'")])
def test_cells_that_cannot_be_are_refused(lab, cells, more, said):
    with pytest.raises((ConfigError, UnknownNameError)) as e: plan(replace(CELLS, cells=cells, **more))
    assert said in str(e.value)


def test_cells_run_with_and_without_notebooks(lab):
    shots = {"gsm8k": {2, 5}, "arc_challenge": {1}}
    for notebooks in (False, True):
        chosen = CELLS if not notebooks else replace(CELLS, cells=CELLS.cells[:1], seed=1)
        outcome = run_study(chosen, notebooks=notebooks, stream=io.StringIO())
        assert not outcome.failures and len(outcome.rows) == len(chosen.cells)
        for r in outcome.rows: assert r["n_shot"] in shots[r["benchmark"]]
    assert {r["n_shot"] for r in outcome.rows} == {2}


def test_the_twenty_cells_have_one_published_score_each_and_would_be_comparable(lab, monkeypatch):
    add(lab, _section())
    s = study("replicate")
    assert len(s.cells) == 20 and len({*s.cells}) == 20
    found = replication(replace(s, allow_specimens=True))
    assert len(found.rows) == 20 and found.counts == {"agree": 0, "disagree": 0, "not comparable": 0, "not run": 20}
    assert found.exit_code == 3 and len({(r["model"], r["benchmark"]) for r in found.rows}) == 20
    for r in found.rows:
        assert not [n for n in r["needs"] if n.startswith("to be comparable")], r
        assert any(n.startswith("the weights of Qwen/") for n in r["needs"]) and r["source"] and r["theirs"] > 0.3
    text = replication_text(found)
    assert "the weights of Qwen/Qwen3-14B-Base (27.5 GiB)" in text and "hand-written specimens stand in" in text


def _section():
    text = (ROOT / "settings.ini").read_text()
    return text[text.index("[study.replicate]"):].partition("\n[")[0] + "\n"


def test_a_replication_counts_what_agrees_and_its_status_tells(lab):
    outcome = run_study(CELLS, notebooks=False, stream=io.StringIO())
    runs = {(r["model"], r["benchmark"]): as_if_real(Run(lab / "runs" / r["run_id"])) for r in outcome.rows}
    facts = []
    for (_, benchmark), run in runs.items():
        told = {k: v for k, v in asked_as(run.manifest).items() if k != "weights"}
        score = f"{100 * run.estimate().value:.1f}"
        facts.append(Published(**told, benchmark=benchmark, score=score, source="w", date="2026"))
    s = replace(CELLS, limit=None)
    found = replication(s, facts=facts)
    assert found.exit_code == 0 and found.counts["agree"] == 3 and {r["run_id"] for r in found.rows} == {
        r.id for r in runs.values()}
    value = runs["qwen3_8b_base", "gsm8k"].estimate()
    wrong = f"{100 * (value.high + 0.02):.1f}" if value.high < 0.97 else f"{max(100 * (value.low - 0.02), 0):.1f}"
    found = replication(s, facts=[*facts[:2], replace(facts[2], score=wrong)])
    assert found.exit_code == 1 and found.counts["disagree"] == 1 and "qwen3_8b_base, gsm8k: disagree" in str(found)
    found = replication(s, facts=[*facts[:2], replace(facts[2], n_shot="8")])
    assert found.exit_code == 3 and "n_shot (ours 5; theirs 8)" in found.rows[2]["verdict"]
    found = replication(s, facts=facts[:2])
    assert found.exit_code == 3 and found.rows[2]["verdict"].startswith("not comparable: nothing published")
    # of two runs the one that can be compared counts
    made("qwen3_8b_base", "gsm8k", n_shot=1)
    assert replication(s, facts=facts).exit_code == 0


def test_the_commands_list_and_tell(lab):
    add(lab, _section())
    rows = json.loads(ask("published", "qwen2.5_8b_base", "--json").stdout)
    assert len(rows) == 7 and all(r["source"] and r["date"] for r in rows)
    assert "74.2 %" in ask("published", "qwen2.5_8b_base", "mmlu").stdout
    assert "Nothing published is known here" in ask("published", "qwen3_0.6b").stdout
    assert "Did you mean" in ask("published", "qwen3_8", status=2).stderr
    own = write(lab, GOOD)
    assert "61.5 %" in ask("published", "my-lab/model", "--facts", str(own)).stdout
    assert "line 2" in ask("published", "--facts", str(write(lab, GOOD.replace("cot", "x"))), status=2).stderr
    data = json.loads(ask("replicate", "--json", status=3).stdout)
    assert data["counts"]["not run"] == 20 and data["exit_code"] == 3
    assert {"published", "theirs", "source", "tolerance", "verdict", "needs"} <= data["rows"][0].keys()
    assert "tolerance is 2.0; it is a share" in ask("replicate", "--tolerance", "2", status=2).stderr
