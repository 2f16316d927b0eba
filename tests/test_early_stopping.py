"""Early stopping: by the rule alone, at the same item whatever comes when, and not gone on with."""
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen_eval.datasets import all as catalogue
from qwen_eval.engines.base import FakeEngine
from qwen_eval.engines.process import EngineProcess
from qwen_eval.errors import ConfigError
from qwen_eval.evaluation import evaluate
from qwen_eval.metrics import metrics
from qwen_eval.records import Score
from qwen_eval.registry import Registry
from qwen_eval.stats.sequential import paired_sequence, share_ends
from qwen_eval.stopping import Lookout, Pair, Rule
from qwen_eval.store import read_completions, read_manifest
from qwen_eval.watching import stopped_at

ROOT = Path(__file__).resolve().parent.parent


def share(request, salt): return int(hashlib.sha256(f"{salt}{request.item_id}".encode()).hexdigest()[:8], 16) / 2**32


class Knows(FakeEngine):
    "Right at the first share of the items; `better` of the others it knows too. The same in any process."
    def __init__(self, right=0.5, better=0.0, window=16, delay_s=0.002):
        def answer(r):
            knows = share(r, "a") < right or share(r, "b") < better
            return "\\boxed{42}" if knows else "\\boxed{41}"
        super().__init__(answer, window, delay_s)
        self.info = FakeEngine().info

    def step(self): # the oldest first, as real engines do; the fake one's last answer is the first that was asked
        self._waiting = dict(reversed(self._waiting.items()))
        found = super().step()
        self._waiting = dict(reversed(self._waiting.items()))
        return found


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "600 sums whose answer is 42."
    data = tmp_path / "data"
    data.mkdir()
    rows = ({"question": f"What is {i} + {42 - i}?", "answer": 42} for i in range(600))
    (data / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nreports = reports\nspecimens = {ROOT / 'data/specimens'}\n"
        "[benchmark.sums]\nkind = number\npath = data/sums.jsonl\n")
    found = Registry(catalogue._catalogue.kind)
    for b in catalogue._catalogue: found.add(b.id, b)
    monkeypatch.setattr(catalogue, "_catalogue", found)
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"),
                                                     os.environ.get("PYTHONPATH", "")]))
    return tmp_path


HALF = {"order": 0, "half_width": 0.08}


def ask(engine, stopping=HALF, runs="runs", **how):
    return evaluate("smollm2_135m", "sums", engine=engine, stopping=stopping, runs=Path(os.environ["QWEN_EVAL_SETTINGS"]
                    ).parent / runs, progress=False, answer_tok=17, **how)


def pair(run, **more):
    return {"order": 0, "half_width": None, "level": 0.95, "pairs": [
        {"hypothesis": "H1", "reference": run.id, "kind": "superior", "sign": 1, "margin": None, "level": 0.95} | more]}


def in_order(run):
    "Values of all stored scores in the order of asking."
    import pandas as pd
    return pd.read_parquet(run.path / "scores.parquet").sort_values("order").value.to_numpy()


def first_short(values, half=0.08):
    "Items after which the interval is short enough, by hand."
    strength = Rule(**HALF).strength
    for n in range(1, len(values) + 1):
        low, high = share_ends(values[:n].sum(), n, 0.95, strength)
        if (high - low) / 2 <= half: return n
    return 0


def test_it_stops_where_the_interval_is_short_enough_and_drains(lab):
    full = ask(Knows(), None, "calm")
    n = first_short(in_order(full))
    engine = Knows()
    run = ask(engine)
    said = run.manifest["stopping"]
    assert 100 < n == said["n_items"] == run.estimate().n_items < 600 and said["stopped"] and run.complete
    assert said["sentence"].startswith(f"stopped early at {n} of 600 items: half-width 0.0")
    assert said["by"] == "half-width"
    stored = read_completions(run.path / "completions.jsonl")[0]
    assert n <= len(stored) == engine.n_requests == said["n_asked"] < 600 # all that was asked is kept
    e = run.estimate()
    assert e.method == "beta-binomial sequence" and "stopped early" in e.how and e.value == full.scores.value[:n].mean()
    low, high = share_ends(in_order(full)[:n].sum(), n, 0.95, Rule(**HALF).strength)
    assert (e.low, e.high) == (low, high) and (e.high - e.low) / 2 <= 0.08
    assert run.manifest["stages"]["generate"]["status"] == "complete" and "interim" not in run.manifest["sessions"][0]
    assert said["sentence"] in repr(run)


def test_resume_does_not_go_on_and_another_rule_does(lab):
    first = ask(Knows())
    files = {f: f.read_bytes() for f in first.path.iterdir()}
    never = Knows()
    assert ask(never).estimate() == first.estimate() and never.n_requests == 0
    assert {f: f.read_bytes() for f in first.path.iterdir()} == files
    assert stopped_at(first.path, Rule(**HALF)) == first.estimate().n_items
    wider = ask(never, {**HALF, "half_width": 0.1}) # answered already
    assert never.n_requests == 0 and wider.estimate().n_items < first.estimate().n_items and wider.id == first.id
    more = Knows()
    narrow = ask(more, {**HALF, "half_width": 0.07})
    assert 0 < more.n_requests < 400 and narrow.estimate().n_items > first.estimate().n_items
    rest = Knows()
    whole = ask(rest, None)
    assert whole.estimate().n_items == 600 and not whole.stopping and whole.estimate().method == "wilson"
    assert len(read_completions(whole.path / "completions.jsonl")[0]) == 600
    assert ask(rest, None, limit=50).estimate().n_items == 50 and rest.n_requests < 600


@pytest.mark.parametrize("window", [1, 8, 512])
def test_the_place_depends_on_the_answers_alone(lab, window):
    engine = Knows(window=window)
    run = ask(engine)
    assert run.estimate().n_items == first_short(in_order(ask(Knows(), None, "calm")))
    assert window < 512 or engine.n_requests == 600 # all were on their way


def test_a_process_boundary_changes_nothing(lab):
    here = ask(Knows())
    with EngineProcess("test_early_stopping:Knows") as process:
        there = ask("fake", runs="there", engine_address=process.address)
    assert there.estimate() == here.estimate() and there.stopping["n_items"] == here.stopping["n_items"]
    assert there.scores.value.tolist() == here.scores.value.tolist()


def test_the_second_run_stops_when_the_pair_is_decided(lab):
    first = ask(Knows(), None, preset="balanced")
    second = ask(Knows(better=0.4), pair(first), preset="performance")
    said, n = second.stopping, second.stopping["n_items"]
    assert said["stopped"] and said["by"] == "pairs" and n < 600
    a, b = second.scores.value.to_numpy(), first.scores.value.to_numpy()[:n]
    e = paired_sequence(a, b, 0)
    assert e.e_value == pytest.approx(said["pairs"][0]["e_value"]) and e.e_value >= 20
    assert paired_sequence(a[:-1], b[:-1], 0).e_value < 20 # not one item later
    assert f"H1 decided, e-value {e.e_value:.3g}" in said["sentence"]
    again = Knows(better=0.4)
    ask(again, pair(first), preset="performance")
    assert again.n_requests == 0


def test_no_difference_is_asked_in_full(lab):
    first = ask(Knows(), None)
    same = ask(Knows(), pair(first), preset="performance")
    assert not same.stopping["stopped"] and same.estimate().n_items == 600 and not same.stopping["pairs"][0]["decided"]
    assert same.estimate().method == "beta-binomial sequence" # it was looked at
    near = ask(Knows(), pair(first, kind="equivalent", margin=0.05), preset="memory_optimized")
    assert near.stopping["stopped"] and near.stopping["pairs"][0]["high"] < 0.05


def test_a_first_run_that_stopped_lends_what_it_is_reported_on(lab):
    first = ask(Knows(window=128))
    n = first.stopping["n_items"]
    assert len(in_order(first)) > n
    rule = pair(first) | {"half_width": 0.07}
    second = ask(Knows(), rule, preset="performance") # no difference: the interval has the word after n items
    assert second.stopping["pairs"][0]["n_items"] == n < second.stopping["n_items"] < 600
    assert second.stopping["by"] == "half-width"
    alone = ask(Knows(), pair(first) | {"pairs": [{**pair(first)["pairs"][0], "reference": "not there"}],
                                        "half_width": 0.08}, preset="memory_optimized")
    assert alone.stopping["n_items"] == n


KILLED = """
import os, sys
from pathlib import Path
import qwen_eval.watching as watching, qwen_eval.evaluation as evaluation
from test_early_stopping import Knows
where, runs = sys.argv[1:]
def end(*_, **__): os.kill(os.getpid(), 9)
if where == "noted": evaluation.score_run = end # the rule is met and said, the scores are not written
elif where == "met": watching.Watch.note = end # met, and not said
else: watching.Watch.settle = end # scores are there
evaluation.evaluate("smollm2_135m", "sums", engine=Knows(), stopping={"order": 0, "half_width": 0.08}, runs=runs,
                    progress=False, answer_tok=17)
"""


@pytest.mark.parametrize("where", ["met", "noted", "scored"])
def test_a_kill_at_the_stop_changes_nothing(lab, where):
    calm = ask(Knows(), runs="calm")
    done = subprocess.run([sys.executable, "-c", KILLED, where, lab / "runs"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    [folder] = [p for p in (lab / "runs").iterdir() if p.is_dir()]
    n_stored = len(read_completions(folder / "completions.jsonl")[0])
    engine = Knows()
    run = ask(engine)
    assert engine.n_requests == 0 and len(read_completions(folder / "completions.jsonl")[0]) == n_stored
    assert run.estimate() == calm.estimate() and run.scores.equals(calm.scores)
    assert run.stopping["sentence"] == calm.stopping["sentence"] and run.complete


def test_an_interruption_before_it_goes_on_to_the_same_place(lab):
    calm = ask(Knows(), runs="calm")

    class Stops(Knows):
        def step(self):
            if self.n_requests > 90: raise KeyboardInterrupt
            return super().step()
    with pytest.raises(KeyboardInterrupt, match="run the same again"): ask(Stops(delay_s=0.01))
    [folder] = [p for p in (lab / "runs").iterdir() if p.is_dir()]
    so_far = read_manifest(folder)["sessions"][-1]["interim"]
    assert 0 < so_far["n_items"] < 100 and so_far["low"] < so_far["value"] < so_far["high"]
    assert ask(Knows()).estimate() == calm.estimate()


def test_where_it_cannot_be_it_is_asked_in_full_and_says_why(lab):
    data = lab / "data" / "parts.jsonl"
    rows = ({"question": f"What is {i} + {42 - i}?", "answer": 42, "group": str(i // 2)} for i in range(600))
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with open(lab / "settings.ini", "a") as f: f.write("[benchmark.parts]\nkind = number\npath = data/parts.jsonl\n"
                                                       "cluster = group\n")
    run = evaluate("smollm2_135m", "parts", engine=Knows(), stopping=HALF, progress=False, answer_tok=17)
    assert run.estimate().n_items == 600 and "its items come in clusters" in run.stopping["sentence"]
    assert run.estimate().method != "beta-binomial sequence" and run.estimate().n_clusters == 300
    never = Knows()
    evaluate("smollm2_135m", "parts", engine=never, stopping=HALF, progress=False, answer_tok=17)
    assert never.n_requests == 0


def test_an_engine_error_is_a_gap_that_is_not_looked_over(lab):
    class Fails(Knows):
        def step(self):
            found = super().step()
            return [(t, replace(c, finish_reason="error", error="no") if c.item_id == bad else c) for t, c in found]
    bad = ask(Knows(), None, "calm").scores.item_id[40]
    run = ask(Fails())
    assert len(in_order(run)) == 600 and not run.stopping["stopped"]
    assert ask(Knows()).stopping["n_items"] == first_short(in_order(ask(Knows(), None, "calm")))


def test_wrong_rules_are_refused_before_anything_is_asked(lab):
    for wrong in ({"order": 0}, {"order": 0, "half_width": 0.7}, {"order": -1, "half_width": 0.1}, {"half": 1}):
        with pytest.raises(ConfigError): ask(Knows(), wrong)
    assert not list((lab / "runs").glob("*/manifest.json"))


def test_one_look_at_a_time_and_all_at_once_agree():
    rng = np.random.default_rng(3)
    ids, x, y = [f"q{i}" for i in range(900)], rng.random(900) < 0.7, rng.random(900) < 0.55
    rule = Rule(order=0, half_width=0.05, pairs=tuple(
        Pair(hypothesis=f"H{k}", reference=f"r{k}", kind=kind, margin=m) for k, (kind, m) in enumerate(
            (("superior", None), ("noninferior", 0.05)))))
    others = {"r0": y * 1.0, "r1": np.roll(y, 7) * 1.0}
    met = set()
    for chunk in (1, 7, 32, 900):
        out = Lookout(metrics.get("accuracy"), ids, 1, rule, others)
        for i in range(0, 900, chunk):
            for k in range(i, min(i + chunk, 900)): out.seen.add(Score(item_id=ids[k], value=float(x[k])))
            out.look()
        met.add((out.met, json.dumps(out.record())))
    assert len(met) == 1 and 0 < next(iter(met))[0] < 900


def test_a_study_gives_its_runs_their_rules_and_a_stopped_one_is_complete(lab):
    import io

    from qwen_eval.runner import run_study, todo_rows
    from qwen_eval.studies import Study, plan, status_rows
    study = Study(id="early", models=("smollm2_135m",), benchmarks=("sums",), presets=("balanced", "performance"),
                  answer_tok=17, engine="fake", early=True, half_width=0.08,
                  hypotheses="balanced > performance on sums")
    first, second = plan(study, lab / "runs").runs
    assert first.plan.stopping.half_width == 0.08 and not first.plan.stopping.pairs
    [pair_] = second.plan.stopping.pairs
    assert (pair_.reference, pair_.sign, pair_.kind) == (first.path.name, -1, "superior")
    outcome = run_study(study, runs=lab / "runs", notebooks=False, stream=io.StringIO())
    assert not outcome.failures and [r["state"] for r in status_rows(plan(study, lab / "runs"))] == ["complete"] * 2
    assert all(r.stopped() and not r.n_left() for r in plan(study, lab / "runs").runs)
    assert not todo_rows(study, runs=lab / "runs")
    wants_all = replace(study, early=False)
    assert len(todo_rows(wants_all, runs=lab / "runs")) == 2
