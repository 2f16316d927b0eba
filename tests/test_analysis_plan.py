"""What a study says and writes before it is run: its runs, what they can show, what they take, and the A/A twin."""
import io
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import qwen_eval.evaluation as evaluation
import qwen_eval.opening as opening
import qwen_eval.runner as runner
from qwen_eval.analysis_plan import departures, plan_document, read_analysis_plan, write_analysis_plan
from qwen_eval.cli import app
from qwen_eval.comparisons import compare_runs
from qwen_eval.errors import AbsentError, ConfigError, IntegrityError
from qwen_eval.evaluation import evaluate
from qwen_eval.expected import measured_speeds
from qwen_eval.planning import n_items_of
from qwen_eval.runner import run_study
from qwen_eval.settings import read_settings
from qwen_eval.studies import Study, plan, study

ROOT = Path(__file__).resolve().parent.parent
SMALL = Study(id="small", models=("smollm2_135m",), benchmarks=("gsm8k", "arc_challenge"), limit=3, answer_tok=17,
              presets=("balanced", "performance"), engine="fake", allow_specimens=True)
FAKE = {"engine": "fake", "answer_tok": 17, "allow_specimens": True, "progress": False}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "A lab of its own, without data and without weights; the studies are those of the checkout."
    shipped = (ROOT / "settings.ini").read_text().partition("[study.demo]")
    (tmp_path / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nreports = reports\nspecimens = {ROOT / 'data/specimens'}\n"
        f"{''.join(shipped[1:])}")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return tmp_path


def test_the_whole_matrix_is_listed_without_weights_and_without_data(lab):
    begin = time.process_time() # of this process, whatever else the machine does
    done = CliRunner().invoke(app, ["study", "plan", "full", "--json"])
    assert done.exit_code == 0 and time.process_time() - begin < 5
    d = json.loads(done.stdout)
    assert len(d["runs"]) == 216 == len({(r["model"], r["preset"], r["benchmark"]) for r in d["runs"]})
    assert {r["n_items"] for r in d["runs"] if r["benchmark"] == "mmlu"} == {n_items_of("mmlu")} == {14042}
    assert d["study"]["aa"] is False and len(d["hypotheses"]) == 2 * 3 * 6
    assert {r["run_id"] for r in d["runs"]} == {None}
    assert {r["absent"] for r in d["runs"] if r["benchmark"] == "codet5"} == {"weights, items"}
    for model in d["study"]["models"]: assert any(w.startswith(f"{model}: the weights of") for w in d["warnings"])
    with pytest.raises(ConfigError, match="cannot run as it is planned"): plan("full")


def test_the_scaling_study_compares_sizes_within_a_generation(lab):
    d = plan_document(plan("scaling", outline=True))
    assert len(d["runs"]) == 6 * 5 * 2 and sum(r["twin"] for r in d["runs"]) == 30
    pairs = {(h["a"][0], h["b"][0]) for h in d["hypotheses"]}
    assert pairs == {(f"{g}_14b", f"{g}_8b") for g in ("qwen", "qwen2.5", "qwen3")}
    assert len(d["hypotheses"]) == 15 and all(h["enough"] for h in d["hypotheses"])


def test_an_outline_finds_out_what_contradicts_itself(lab):
    far = replace(SMALL, engine="", models=("qwen3_8b",), protocol="greedy")
    assert {r.absent for r in plan(far, outline=True).runs} == {("weights", "items")}
    with pytest.raises(ConfigError, match="temperature"):
        plan(replace(far, protocol="qwen3_thinking", temperature=0.0), outline=True)
    with pytest.raises(ConfigError, match="Unknown preset 'fast'"):
        plan(replace(far, presets=("balanced", "fast")), outline=True)
    with pytest.raises(ConfigError, match="Unknown benchmark 'gsm8'"):
        plan(replace(far, benchmarks=("gsm8",)), outline=True)
    with pytest.raises(ConfigError, match="judged by a model, and none is named"):
        plan(replace(far, benchmarks=("mt_bench",)), outline=True)
    with pytest.raises(AbsentError):
        from qwen_eval.datasets.all import benchmark
        from qwen_eval.datasets.base import load
        load(benchmark("codet5"))


def test_hypotheses_are_read_before_any_work_starts(lab):
    wrong = replace(SMALL, hypotheses="balanced = performance within 0.02 on all\nbalanced > performnce on gsm8k")
    with pytest.raises(ConfigError, match=r"hypothesis 2, .*Did you mean 'performance'"): plan(wrong)
    with pytest.raises(ConfigError, match=r"the margin 1\.5 is out of range: exact_match"):
        plan(replace(SMALL, hypotheses="balanced = performance within 1.5 on gsm8k"))
    with pytest.raises(ConfigError, match="different measurements"): # base models continue, chat models choose
        plan(replace(SMALL, models=("qwen3_8b", "qwen3_8b_base"),
                     hypotheses="qwen3_8b > qwen3_8b_base on arc_challenge"))
    (lab / "settings.ini").write_text("[study.a]\nhypotheses = m > n on x ; n > o on y\n")
    with pytest.raises(ConfigError, match="line 2: ';' after a space begins a comment"):
        read_settings(lab / "settings.ini")
    (lab / "settings.ini").write_text("[study.a]\nhypotheses = m > n on x; n > o on y\nlimit = 3 ; items on a desk\n")
    assert read_settings(lab / "settings.ini").declared["study"]["a"]["hypotheses"] == "m > n on x; n > o on y"


def test_what_is_too_small_is_said_and_written_before_the_first_item(lab, monkeypatch):
    s = replace(SMALL, half_width=0.02, hypotheses="balanced = performance within 0.02 on gsm8k; "
                "balanced != performance on arc_challenge")
    seen = []

    def stop(p, *_):
        seen.append(read_analysis_plan(lab / "reports/small-specimens"))
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(runner, "_do", stop)
        stream = io.StringIO()
        with pytest.raises(KeyboardInterrupt): run_study(s, stream=stream)
    [version] = seen[0]["versions"]
    assert version["n_answers"] == 0 and [h["enough"] for h in version["plan"]["hypotheses"]] == [False, False]
    said, page = stream.getvalue(), (lab / "reports/small-specimens/plan.md").read_text()
    needs = version["plan"]["hypotheses"][0]["needs"]
    assert needs > 3000
    for text in (f"80 % need {needs:,}", "3 items find no difference", "gsm8k: 3 items leave intervals"):
        assert text in said and text in page
    assert "before anything was asked" in page and str(lab) not in json.dumps(seen[0])


def test_versions_are_appended_and_departures_named(lab):
    folder = lab / "reports"
    first = plan(replace(SMALL, hypotheses="balanced = performance within 0.02 on gsm8k"))
    assert "No plan was written" in departures(folder, first)[0]
    write_analysis_plan(first, folder)
    before = (folder / "plan.json").read_bytes()
    write_analysis_plan(first, folder)
    assert (folder / "plan.json").read_bytes() == before and departures(folder, first) == []

    second = plan(replace(SMALL, limit=2)) # changed before anything was asked: still a plan
    write_analysis_plan(second, folder)
    assert departures(folder, second) == [] and len(read_analysis_plan(folder)["versions"]) == 2

    evaluate("smollm2_135m", "gsm8k", limit=2, **FAKE)
    third = plan(replace(SMALL, limit=2, alpha=0.1, benchmarks=("gsm8k", "hellaswag"), aa=True,
                         hypotheses="balanced > performance on gsm8k"))
    now = departures(folder, third)
    assert all(text.startswith("The study as it is now ") for text in now)
    write_analysis_plan(third, folder)
    then, page = departures(folder, third), (folder / "plan.md").read_text()
    assert len(then) == len(now) and all("with 2 answers stored" in text for text in then)
    for part in ("adds the run smollm2_135m, balanced, hellaswag", "adds the run smollm2_135m, balanced (A/A), gsm8k",
                 "drops the run smollm2_135m, performance, arc_challenge", "changes alpha from 0.05 to 0.1",
                 "adds the hypothesis smollm2_135m/balanced > smollm2_135m/performance on gsm8k"):
        assert sum(part in text for text in then) == 1, part
    assert page.count("## Version") == 3 and "when 2 answers were stored already" in page
    assert json.loads(before)["versions"][0] == read_analysis_plan(folder)["versions"][0]

    late = folder / "late"
    write_analysis_plan(third, late)
    assert departures(late, third) == ["The plan was written when 2 answers were stored already."]
    (late / "plan.json").write_text("{")
    with pytest.raises(IntegrityError, match="cannot be read"): departures(late, third)


def test_times_come_from_measured_runs_only(lab):
    assert plan_document(plan(SMALL))["expected"]["hours"] is None
    evaluate("smollm2_135m", "gsm8k", limit=2, **FAKE)
    [speed] = measured_speeds(lab / "runs")
    rows = {(r["preset"], r["benchmark"]): r for r in plan_document(plan(SMALL))["expected"]["runs"]}
    mine, other = rows["balanced", "gsm8k"], rows["balanced", "arc_challenge"]
    assert mine["n_left"] == 1 and mine["seconds"] == pytest.approx(speed["seconds"]) and mine["same_benchmark"]
    assert mine["output_tok"] == pytest.approx(speed["output_tok"]) and mine["prompt_tok"] > 0
    assert other["speed_of"] == speed["run_id"] and not other["same_benchmark"]
    assert rows["performance", "gsm8k"]["speed_of"] == "" and rows["performance", "gsm8k"]["seconds"] is None
    d = plan_document(plan(replace(SMALL, budget_h=1)))
    assert d["budget"]["fits"] is None and "2 runs have no measured speed" in d["warnings"][-1]
    d = plan_document(plan(replace(SMALL, presets=("balanced",), limit=5, budget_h=1e-9)))
    assert d["budget"]["fits"] is False and set(d["budget"]["limits"]) == set(SMALL.benchmarks)
    assert plan_document(plan(replace(SMALL, presets=("balanced",), budget_h=9)))["budget"]["fits"] is True


def test_a_pilot_tells_how_much_two_sides_disagree(lab):
    items = "".join(json.dumps({"question": f"{i} + {i}?", "answer": str(2 * i)}) + "\n" for i in range(40))
    (lab / "own.jsonl").write_text(items)
    with open(lab / "settings.ini", "a") as f:
        f.write("\n[benchmark.own]\nkind = math\npath = own.jsonl\nquestion = question\nanswer = answer\n")
    s = replace(SMALL, benchmarks=("own",), limit=None, hypotheses="balanced = performance within 0.1 on own")
    assert plan_document(plan(s))["hypotheses"][0]["pilot"] is None
    for preset in s.presets: evaluate("smollm2_135m", "own", preset, **FAKE)
    [h] = plan_document(plan(replace(s, limit=40)))["hypotheses"]
    assert h["pilot"] is None or len(h["pilot"]) == 2 # two runs that never disagree are no pilot


def test_the_twin_asks_the_same_items_in_another_order(lab, monkeypatch):
    [one, *_, twin] = [r for r in plan(replace(SMALL, limit=None, benchmarks=("gsm8k",), aa=True)).runs
                       if r.preset == "balanced"]
    assert (one.twin, twin.twin, twin.label) == (False, True, "balanced (A/A)") and one.path != twin.path
    assert one.wanted == twin.wanted and one.plan.items == twin.plan.items
    asked = [i.id for i in twin.plan.asking]
    assert sorted(asked) == sorted(i.id for i in one.plan.asking) and asked != [i.id for i in one.plan.asking]
    sent, real = [], evaluation._answers

    def watched(p, engine, requests):
        requests = list(requests)
        sent.append([q.item_id for q in requests])
        return real(p, engine, iter(requests))
    monkeypatch.setattr(evaluation, "_answers", watched)
    a = evaluate("smollm2_135m", "gsm8k", **FAKE)
    b = evaluate("smollm2_135m", "gsm8k", twin=True, **FAKE)
    assert (a.path, b.path) == (one.path, twin.path)
    assert sent == [[i.id for i in one.plan.asking], asked]
    assert "twin" not in a.manifest["fingerprint"] and b.manifest["fingerprint"]["twin"] is True
    assert b.manifest["fingerprint"]["items"] == a.manifest["fingerprint"]["items"]
    found = compare_runs(a, b)
    assert not any("order" in text for text in found.objections) and found.names[1].endswith("balanced (A/A)")
    assert found.values[0] == found.values[1]


def test_a_twin_is_not_answered_from_the_cache(lab, monkeypatch):
    asked = []
    monkeypatch.setattr(opening, "with_cache", lambda engine, who: asked.append(who["id"]) or engine)
    evaluate("smollm2_135m", "gsm8k", twin=True, **FAKE)
    assert asked == []
    evaluate("smollm2_135m", "gsm8k", **FAKE)
    assert asked == ["smollm2_135m"]


def test_a_study_with_twins_runs_them(lab):
    outcome = run_study(replace(SMALL, benchmarks=("gsm8k",), presets=("balanced",), aa=True), stream=io.StringIO())
    assert not outcome.failures and [r["preset"] for r in outcome.rows] == ["balanced", "balanced (A/A)"]
    assert len({r["value"] for r in outcome.rows}) == 1
    [version] = read_analysis_plan(lab / "reports/small-specimens")["versions"]
    assert version["n_answers"] == 0


def test_numbers_of_a_study_are_checked(lab):
    for wrong in ({"alpha": 0.6}, {"power": 1.0}, {"half_width": 0.0}, {"budget_h": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))): plan(replace(SMALL, **wrong))
    assert study("scaling").aa and "qwen3_14b > qwen3_8b on all" in study("scaling").hypotheses
