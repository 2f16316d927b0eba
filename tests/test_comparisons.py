"""Stored runs against each other: the right method for what they are, no winner where something else differs."""
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen_eval.cli import app
from qwen_eval.common import common_values
from qwen_eval.comparisons import compare_all_runs, compare_runs, run_names
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, UnknownNameError
from qwen_eval.evaluation import evaluate
from qwen_eval.models import Model
from qwen_eval.planning import fits, make_design, n_items_of, pilot_design, plan_comparison, plan_unknown
from qwen_eval.records import Completion
from qwen_eval.runs import Run
from qwen_eval.scores import write_scores
from qwen_eval.stats.clustered import clustered_difference
from qwen_eval.stats.multiple import adjust
from qwen_eval.stats.paired import paired_difference
from qwen_eval.stats.power import Clustered, PairedBinary, PairedReal
from qwen_eval.store import update_manifest
from qwen_eval.terminal import json_text

ROOT = Path(__file__).resolve().parent.parent


def ran(root, benchmark="gsm8k", model="toy", answer="It is 1.", **how):
    "A run on specimens by an engine that pretends."
    how = {"source": "specimen", "answer_tok": 32, **how}
    engine = FakeEngine(answer if callable(answer) else lambda r: answer)
    return evaluate(Model(id=model, context_tok=8192), benchmark, engine=engine, runs=root, progress=False, **how)


def with_values(run, values, column="value", clusters=None, **columns):
    "The run with many items of given values, shape (n_items,) or (n_items, n_epochs), in place of its specimens."
    import pandas as pd
    values = np.asarray(values, float)
    values = values[:, None] if values.ndim == 1 else values
    n, k = values.shape
    row = run.scores.iloc[0].to_dict()
    frame = pd.DataFrame({**{c: [v] * (n * k) for c, v in row.items()}, "order": np.repeat(np.arange(n), k),
                          "item_id": np.repeat([f"q{i:05d}" for i in range(n)], k), "epoch": np.tile(np.arange(k), n),
                          "status": "scored", "finish_reason": "stop", column: values.ravel(),
                          "cluster": "" if clusters is None else np.repeat(clusters, k),
                          **{c: np.repeat(v, k) for c, v in columns.items()}})
    write_scores(run.path, frame)
    stages = {**run.manifest["stages"], "generate": {**run.manifest["stages"]["generate"], "n_items": n}}
    update_manifest(run.path, stages=stages, epochs=k, marks=[])
    return Run(run.path)


@pytest.fixture
def pair(tmp_path):
    return ran(tmp_path), ran(tmp_path, model="other")


def answers(seed, share, n=400, k=None):
    return (np.random.default_rng(seed).random((n, k) if k else n) < share).astype(float)


def test_right_and_wrong_answers(pair):
    x, y = answers(0, 0.7), answers(1, 0.5)
    a, b = with_values(pair[0], x), with_values(pair[1], y)
    c, ids = compare_runs(a, b), range(400)
    d = paired_difference(x, y, ids, ids)
    assert (c.difference.value, c.difference.low, c.difference.p_value) == (d.value, d.low, d.p_value)
    assert c.values == (x.mean(), y.mean()) and c.difference.method == "bonett-price" and c.names == ("toy", "other")
    assert c.winner == "A" and c.verdict == "A is better" and not c.objections
    back = compare_runs(b, a)
    assert back.winner == "B" and back.difference.value == -d.value
    assert all(x in c.sentence for x in ("On gsm8k, toy (A) scores", "points (95 % interval", "400 items"))


def test_no_difference_is_not_called_equality(pair):
    x = answers(0, 0.7)
    a, b = with_values(pair[0], x), with_values(pair[1], np.r_[x[1:], x[0]])
    c = compare_runs(a, b, margin=0.2)
    assert c.winner is None and "does not show that there is none" in c.verdict
    assert c.equivalence.verdict == "equivalent" and c.caution == ""
    assert compare_runs(a, b, margin=0.01).equivalence.verdict.startswith("not testable: needs")


def test_epochs_are_no_items(pair):
    rng = np.random.default_rng(2)
    hard = rng.beta(1, 1, (60, 1))
    x, y = ((rng.random((60, 6)) < np.clip(hard + gain, 0, 1)).astype(float) for gain in (0.1, 0))
    c = compare_runs(with_values(pair[0], x), with_values(pair[1], y))
    d = clustered_difference(x, y)
    assert (c.difference.n_items, c.difference.n_epochs, c.difference.se) == (60, 6, d.se)
    naive = paired_difference(x.ravel(), y.ravel(), range(360), range(360))
    assert c.difference.df == d.df and c.difference.p_value != naive.p_value and "cluster-robust" in c.difference.how


def test_epochs_that_one_lacks_are_said(pair):
    a, b = with_values(pair[0], answers(0, 0.7, 50, 3)), with_values(pair[1], answers(1, 0.7, 40))
    c = compare_runs(a, b)
    assert c.difference.n_epochs == 1 and c.difference.n_items == 40
    assert c.left_out == "A has 50 items x 3 epochs, B 40 items; compared is what both have"
    assert "they were asked different items" in c.objections


def test_pass_at_k(pair):
    x, y = answers(0, 0.7, 80, 4), answers(1, 0.5, 80, 4)
    a, b = with_values(pair[0], x), with_values(pair[1], y)
    c = compare_runs(a, b, "pass@2")
    assert c.values == pytest.approx((a.estimate("pass@2").value, b.estimate("pass@2").value))
    assert compare_runs(a, b, "pass^2").values[0] == pytest.approx(a.estimate("pass^2").value)
    with pytest.raises(ConfigError, match="needs 5 answers"): compare_runs(a, b, "pass@5")


def test_clusters_widen_the_interval(pair):
    rng = np.random.default_rng(3)
    group = np.repeat([f"g{i}" for i in range(30)], 10)
    shared = np.repeat(rng.random(30), 10)
    x, y = ((rng.random(300) < p).astype(float) for p in (shared, 0.5 * np.ones(300)))
    a, b = (with_values(r, v, clusters=group) for r, v in zip(pair, (x, y), strict=True))
    c = compare_runs(a, b, margin=0.1)
    alone = compare_runs(*(with_values(r, v) for r, v in zip(pair, (x, y), strict=True)), margin=0.1)
    assert c.difference.n_clusters == 30 and c.difference.se == clustered_difference(x, y, group).se
    assert c.difference.high - c.difference.low > 1.3 * (alone.difference.high - alone.difference.low)
    assert c.equivalence.power < alone.equivalence.power and c.equivalence.needs > alone.equivalence.needs


def test_clusters_without_spread_are_no_certainty(pair):
    group = np.repeat([f"g{i}" for i in range(10)], 4)
    a, b = (with_values(r, np.tile([1.0, 0], 20), clusters=group) for r in pair)
    c = compare_runs(a, b, margin=0.05)
    assert c.difference.low < 0 < c.difference.high and c.winner is None
    assert c.equivalence.verdict.startswith("not testable")


def test_weights_of_items_stay_those_of_the_metric(tmp_path):
    rng = np.random.default_rng(4)
    a, b = (ran(tmp_path, "ifeval", model=m) for m in ("one", "two"))
    n, w = 200, np.random.default_rng(5).integers(1, 4, 200).astype(float)
    x, y = (rng.integers(0, w + 1) / w for _ in range(2))
    a, b = (with_values(r, v, column="inst_strict", n_instructions=w) for r, v in ((a, x), (b, y)))
    c = compare_runs(a, b, "inst_strict")
    assert c.values == pytest.approx(((w * x).sum() / w.sum(), (w * y).sum() / w.sum()))
    assert c.values[0] == pytest.approx(a.estimate("inst_strict").value) != pytest.approx(x.mean())
    draws = rng.integers(0, n, (4000, n)) # the ratio itself, items drawn again
    se = (((w * (x - y))[draws]).sum(1) / w[draws].sum(1)).std()
    assert c.difference.se == pytest.approx(se, rel=0.08) and c.difference.scale == "points"
    assert "Woodruff" in c.difference.how


def test_scores_are_those_of_the_runs_whatever_the_metric(tmp_path):
    seen = 0
    for benchmark in ("gsm8k", "arc_challenge", "truthfulqa", "mmlu", "toolllama", "ifeval", "bfcl"):
        a = ran(tmp_path, benchmark)
        b = ran(tmp_path, benchmark, model="other", answer="A")
        for metric, e in a.estimates().items():
            if not e.n_items or e.value != e.value: continue # nothing of it was measured
            c, seen = compare_runs(a, b, metric), seen + 1
            assert c.values == pytest.approx((e.value, b.estimate(metric, max_error_rate=1).value)), (benchmark, metric)
            assert c.difference.value == pytest.approx(c.values[0] - c.values[1])
    assert seen > 15


def test_a_judges_scores_are_no_percent(tmp_path):
    rng = np.random.default_rng(6)
    a, b = (ran(tmp_path, "mt_bench", model=m, judge="none") for m in ("one", "two"))
    a, b = (with_values(r, rng.integers(low, 11, 80)) for r, low in ((a, 4), (b, 1)))
    c = compare_runs(a, b, margin=0.5)
    assert c.winner == "A" and 1 < c.difference.value < 3 and "%" not in re.sub(r"\d+ % interval", "", c.sentence)
    assert "of 10 and two (B)" in c.sentence and "points" not in c.sentence
    assert "difference in mean judge score" in c.sentence
    assert " 7." in c.latex_rows() or " 6." in c.latex_rows()
    with pytest.raises(ConfigError, match="between 1 and 10"): compare_runs(a, b, margin=9)


@pytest.mark.parametrize("change, said", [
    (lambda r: update_manifest(r.path, marks=["specimen"]), "specimen: not a result"),
    (lambda r: update_manifest(r.path, epochs=2), "B is incomplete"),
    (lambda r: write_scores(r.path, cut_off(r, 9)), "9 of 400 answers of B"),
    (lambda r: write_scores(r.path, r.scores[1:]), "asked different items"),
    (lambda r: moved(r, "items", order_seed=9), "different orders"),
    (lambda r: moved(r, "benchmark", variant="fewshot"), "variant differs"),
    (lambda r: moved(r, "benchmark", declaration={}), "prompt or scorer differs"),
    (lambda r: moved(r, "protocol", system="Be brief."), "system differs"),
    (lambda r: moved(r, "protocol", n_shot=3), "n_shot differs"),
    (lambda r: moved(r, "model", id="toy", template="other"), "chat template of the model differs"),
], ids=["mark", "incomplete", "cut off", "items", "order", "variant", "scorer", "system", "shots", "template"])
def test_no_winner_where_something_else_differs(pair, change, said):
    a, b = with_values(pair[0], answers(0, 0.9)), with_values(pair[1], answers(1, 0.3))
    assert compare_runs(a, b).winner == "A"
    change(b)
    c = compare_runs(a, Run(b.path), margin=0.9)
    assert c.winner is None and said in c.verdict and c.difference.p_value < 0.001 and said in c.sentence


def cut_off(run, n): return run.scores.assign(status=["truncated"] * n + ["scored"] * (len(run.scores) - n))


def moved(run, part, **fields):
    f = run.manifest["fingerprint"]
    update_manifest(run.path, fingerprint={**f, part: {**f[part], **fields}})


def test_two_percent_cut_off_is_borne(pair):
    a, b = with_values(pair[0], answers(0, 0.9)), with_values(pair[1], answers(1, 0.3))
    write_scores(b.path, cut_off(b, 8))
    assert compare_runs(a, Run(b.path)).winner == "A"


def test_judged_on_other_days(tmp_path):
    a, b = (ran(tmp_path, "mt_bench", model=m, judge="none") for m in ("one", "two"))
    a, b = (with_values(r, np.random.default_rng(s).integers(1, 11, 80)) for s, r in enumerate((a, b)))
    for dated, n in ((True, 1), (False, 0)):
        for r, day in ((a, "2026-11-28"), (b, "2026-11-29")):
            update_manifest(r.path, judge={"model": "x", "date": day, "dated": dated})
        found = [o for o in compare_runs(Run(a.path), Run(b.path)).objections if "days" in o]
        assert len(found) == n and all("2026-11-28 and 2026-11-29" in o for o in found)


def test_engine_errors_take_their_item_out(tmp_path):
    died = Completion(item_id="", finish_reason="error", error="out of memory")
    a, b = ran(tmp_path), ran(tmp_path, model="other", answer=lambda r: died if r.item_id[-1] == "2" else "It is 1.")
    c = compare_runs(a, b)
    assert c.difference.n_items == 3 and "A has 4 items, B 3" in c.left_out
    assert any(o.startswith("B is incomplete") for o in c.objections)


def test_what_is_no_pair_is_refused_with_the_reason(tmp_path):
    a, b, c = ran(tmp_path), ran(tmp_path, "arc_challenge"), ran(tmp_path, model="other")
    for x, y in ((a, b), (b, a)):
        with pytest.raises(ConfigError, match=r"benchmark\.id is .*not compared unpaired either"): compare_runs(x, y)
    with pytest.raises(ConfigError, match="stands there twice"): compare_runs(a, a.id, root=tmp_path)
    with pytest.raises(ConfigError, match="'acc' was not measured"): compare_runs(a, c, "acc")
    with pytest.raises(UnknownNameError, match="accurracy"): compare_runs(a, c, "accurracy")
    for empty in ("", " "):
        with pytest.raises(UnknownNameError): compare_runs(a, c, empty)
    with pytest.raises(ConfigError, match="level"): compare_runs(a, c, level=95)
    for margin in (0, -0.1, 1, 2, float("nan")):
        with pytest.raises(ConfigError, match="margin"): compare_runs(a, c, margin=margin)
    write_scores(c.path, c.scores[:0])
    with pytest.raises(ConfigError, match="no judged item in common"): compare_runs(a, Run(c.path))
    moved(c, "items", hash="zzz")
    with pytest.raises(ConfigError, match=r"items\.hash is .*zzz in B.*unpaired"): compare_runs(a, Run(c.path))


def test_names_say_what_differs_and_no_more(tmp_path):
    a, b = ran(tmp_path), ran(tmp_path, preset="performance")
    other = ran(tmp_path, model="other")
    assert run_names([a, other]) == ("toy", "other") and run_names([a, b]) == ("toy/balanced", "toy/performance")
    told = ran(tmp_path, system="Be brief.")
    assert run_names([a, told]) == tuple(f"toy/{r.id[-8:]}" for r in (a, told))
    assert len({*run_names([a, b, other, told])}) == 4


@pytest.fixture
def three(tmp_path):
    rng = np.random.default_rng(7)
    hard = rng.random(500)
    runs = [ran(tmp_path, model=m) for m in ("best", "good", "bad")]
    luck = rng.random(500)
    return [with_values(r, (luck < np.clip(hard + g, 0, 1)).astype(float))
            for r, g in zip(runs, (0.12, 0.115, -0.15), strict=True)]


def test_several_runs_are_adjusted_together(three):
    found = compare_all_runs(three)
    single = [compare_runs(*(three[i] for i in ij)).difference.p_value for ij in ((0, 1), (0, 2), (1, 2))]
    assert [p.adjusted for p in found.pairs] == pytest.approx(list(adjust(single)))
    assert [p.winner for p in found.pairs] == [None, "A", "A"]
    assert found.best["gsm8k"].best == ("best", "good") and found.best["gsm8k"].n_items == 500
    assert "exploratory" in found.sentence and "best is better than bad on gsm8k" in found.sentence
    assert compare_all_runs(three, seed=1).best["gsm8k"].best == ("best", "good")
    assert compare_all_runs(three) == found # the same seed, the same draws


def test_the_adjusted_p_decides(pair, tmp_path):
    x = answers(0, 0.5)
    y = x.copy()
    y[np.flatnonzero(x)[:12]] = 0
    y[np.flatnonzero(x == 0)[:2]] = 1 # 12 against 2: p = 0.009
    a, b = with_values(pair[0], x), with_values(pair[1], y)
    more = [with_values(ran(tmp_path, model=f"m{i}"), x) for i in range(3)]
    assert compare_runs(a, b).winner == "A"
    first = compare_all_runs([a, b, *more]).pairs[0]
    assert first.adjusted > 0.05 > first.difference.p_value and first.winner is None


def test_the_best_of_clustered_runs_knows_the_clusters(three):
    group = np.repeat([f"g{i}" for i in range(10)], 50)
    rng = np.random.default_rng(8)
    shift = {0: np.repeat(rng.uniform(-0.4, 0.6, 10), 50), 1: 0, 2: 0}
    values = [(rng.random(500) < 0.45 + shift[i]).astype(float) for i in range(3)]
    alone = compare_all_runs([with_values(r, v) for r, v in zip(three, values, strict=True)]).best["gsm8k"]
    runs = [with_values(r, v, clusters=group) for r, v in zip(three, values, strict=True)]
    known = compare_all_runs(runs).best["gsm8k"]
    assert known.means == pytest.approx(alone.means) and known.n_items == 500
    assert len(known.best) > len(alone.best) == 1


def test_several_benchmarks(three, tmp_path):
    arc = [with_values(ran(tmp_path, "arc_challenge", model=m), answers(i, 0.5), column="acc")
           for i, m in enumerate(("best", "good"))]
    lonely = ran(tmp_path, "mmlu")
    found = compare_all_runs([*three, *arc, lonely])
    assert [p.benchmark for p in found.pairs] == ["gsm8k"] * 3 + ["arc_challenge"] and {*found.best} == {"gsm8k"}
    assert found.alone == (lonely.id,) and len(found.latex_rows().splitlines()) == 4
    with pytest.raises(ConfigError, match="no two of these runs"): compare_all_runs([lonely, arc[0]])
    with pytest.raises(ConfigError, match="twice"): compare_all_runs([*three, three[0]])
    other = ran(tmp_path, model="fourth")
    moved(other, "items", hash="zzz")
    with pytest.raises(ConfigError, match="unpaired"): compare_all_runs([*three, Run(other.path)])


def test_results_survive_json(three):
    for found in (compare_runs(*three[:2], margin=0.1), compare_all_runs(three, margin=0.1)):
        data = json.loads(json_text(found.data()))
        again = json.loads(json_text(data))
        assert again == data and data["sentence"] == found.sentence and data["latex"] == found.latex_rows()
    one = compare_runs(*three[:2], margin=0.1)
    data = json.loads(json_text(one.data()))
    for name in ("value", "low", "high", "p_value", "n_items", "method", "se"):
        assert data["difference"][name] == getattr(one.difference, name)
    assert data["winner"] is None and data["equivalence"]["verdict"] == one.equivalence.verdict
    table = compare_all_runs(three).table()
    assert len(table) == 3 and {"A", "B", "adjusted p", "verdict"} <= {*table.columns}


def test_the_global_state_is_left_alone(three):
    state = np.random.get_state()[1].copy()
    compare_all_runs(three, margin=0.1)
    assert (np.random.get_state()[1] == state).all()


# Planning

def test_a_pilot_tells_the_design(pair):
    x, y = answers(0, 0.7), answers(1, 0.5)
    design, metric = pilot_design(*(with_values(r, v) for r, v in zip(pair, (x, y), strict=True)))
    assert isinstance(design, PairedBinary) and design.discordance == (x != y).mean() and metric == "exact_match"
    assert design.bounds[0] < design.discordance < design.bounds[1]
    p = plan_comparison(design, difference=0.05)
    assert p.between[0] < p.n < p.between[1] and "At the ends of the pilot's interval the units" in p.sentence


def test_a_pilot_with_epochs_or_clusters(pair):
    rng = np.random.default_rng(1)
    hard = rng.random((200, 1))
    x, y = ((rng.random((200, 4)) < hard).astype(float) for _ in range(2))
    a, b = with_values(pair[0], x), with_values(pair[1], y)
    four, one = pilot_design(a, b)[0], pilot_design(a, b, epochs=1)[0]
    assert isinstance(four, PairedReal) and one.variance > 2 * four.variance
    assert one.bounds[0] < one.variance < one.bounds[1]
    assert plan_comparison(one, difference=0.1).n > plan_comparison(four, difference=0.1).n
    with pytest.raises(ConfigError, match="shows the noise"): pilot_design(a, b, epochs=2, noise=0.3)
    grouped = [with_values(r, v[:, 0], clusters=np.repeat(np.arange(40), 5).astype(str))
               for r, v in zip(pair, (x, y), strict=True)]
    design = pilot_design(*grouped)[0]
    assert isinstance(design, Clustered) and design.cluster_size == 5
    with pytest.raises(ConfigError, match="come in clusters"): pilot_design(*grouped, epochs=3)


def test_a_plan_keeps_its_promise():
    "Two right-or-wrong models with a discordance of 0.2 and a difference of 0.1, as many items as planned."
    plan = plan_comparison(make_design(discordance=0.2), difference=0.1)
    rng = np.random.default_rng(9)
    outcome = rng.choice([1.0, -1.0, 0.0], size=(1500, plan.n), p=[0.15, 0.05, 0.8])
    b, c = (outcome == 1).sum(1), (outcome == -1).sum(1)
    from qwen_eval.stats.pairs import midp_mcnemar
    assert (midp_mcnemar(b, c) <= 0.05).mean() == pytest.approx(0.8, abs=0.035)


def test_plans_say_what_is_too_few():
    small = fits(plan_comparison(make_design(discordance=0.2), difference=0.02), "humaneval")
    assert small.enough is False and small.has == 164 and "too few" in small.sentence
    assert plan_comparison(small.design, n=164, difference=small.finds).power == pytest.approx(small.power, abs=1e-6)
    enough = fits(plan_comparison(make_design(discordance=0.2), difference=0.05), "gsm8k")
    assert enough.enough and enough.finds is None and n_items_of("gsm8k") == 1319
    clusters = fits(plan_comparison(make_design(sd=0.5, icc=0.3, per_cluster=4), difference=0.05), "humaneval")
    again = plan_comparison(clusters.design, n=41, difference=clusters.finds)
    assert again.power == pytest.approx(clusters.power, abs=1e-6)
    assert plan_unknown(difference=0.03).assumed and "assumed" in plan_unknown(difference=0.03).sentence


# The command line

@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[paths]\nruns = runs\ncache = cache\nreports = reports\n"
                                           f"specimens = {ROOT / 'data/specimens'}\n[engine]\nengine = fake\n")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "runs"


@pytest.fixture
def stored(lab):
    runs = [ran(lab, model=m) for m in ("first_model_of_the_lab", "second_model_of_the_lab", "third")]
    return [with_values(r, answers(i, share)) for i, (r, share) in enumerate(zip(runs, (0.7, 0.5, 0.65), strict=True))]


def ask(*words, status=0):
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    assert done.exit_code == status, done.output
    return done


def on_a_terminal(*words, width=80):
    "What a terminal of that width shows."
    ours, theirs = pty.openpty()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "COLUMNS": str(width), "PYTHONPATH": path}
    code = "import sys; sys.argv[0] = 'qwen-eval'; from qwen_eval.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=theirs, stderr=theirs, env=env) as p:
        os.close(theirs)
        said = b""
        while True:
            try: part = os.read(ours, 65536)
            except OSError: break
            if not part: break
            said += part
        assert p.wait() == 0, said
    os.close(ours)
    return re.sub(r"\x1b\[\d*m", "", said.decode()).replace("\r\n", "\n")


def test_compare_two(stored):
    a, b = (r.id.rpartition("--")[2] for r in stored[:2])
    said = ask("compare", a, b, "--margin", "0.05", "--latex").stdout
    c = compare_runs(*stored[:2], margin=0.05)
    assert "A  first_model_of_the_lab" in said and stored[0].id in said and "verdict  A is better" in said
    assert c.sentence in said and said.endswith(c.latex_rows() + "\n") and "\x1b" not in said
    assert f"{100 * c.difference.value:.1f} points (95 % interval" in said and "mid-p McNemar" in said
    assert "\\\\" not in ask("compare", a, b).stdout
    data = json.loads(ask("compare", a, b, "--json").stdout)
    assert data["run_a"] == stored[0].id and data["winner"] == "A" and data["equivalence"] is None
    assert data["difference"]["value"] == c.difference.value and data["names"][1] == "second_model_of_the_lab"


def test_compare_several(stored):
    ids = [r.id for r in stored]
    said = ask("compare", *ids, "--margin", "0.05", "--latex").stdout
    assert all(x in said for x in ("1 - 2", "2 - 3", "adjusted p", "exploratory")) and "\x1b" not in said
    assert "not excluded as best of 3 models" in said and said.count("\\\\") == 3
    data = json.loads(ask("compare", *ids, "--json").stdout)
    assert len(data["pairs"]) == 3 and data["exploratory"] is True and data["best"]["gsm8k"]["best"]
    update_manifest(stored[2].path, marks=["specimen"])
    said = ask("compare", *ids).stdout
    assert re.search(r"1 - 3 .* no +a\n", said) and "a  specimen: not a result of the benchmark" in said
    assert said.count("specimen: not a result") == 1 # once, though two pairs have it


def test_what_cut_off_answers_is_named_by_the_run(stored):
    write_scores(stored[1].path, cut_off(stored[1], 20))
    said = ask("compare", *(r.id for r in stored)).stdout
    assert said.count("20 of 400 answers of 2 were cut off") == 1


@pytest.mark.parametrize("width", [80, 60])
def test_output_fits(stored, width, monkeypatch):
    for room in ("console", "compare_commands"): monkeypatch.setattr(f"qwen_eval.{room}.line_width", lambda: width)
    ids = [r.id for r in stored]
    update_manifest(stored[2].path, marks=["specimen"])
    for words in (("compare", *ids[:2], "--margin", "0.05"), ("compare", *ids, "--margin", "0.05"),
                  ("power", "--difference", "0.03", "--benchmark", "gsm8k"),
                  ("power", "--margin", "0.03", "--sd", "1")):
        said = ask(*words).stdout
        assert max(map(len, said.splitlines())) <= width and ("power" in said or ids[0][-8:] in said)


def test_output_fits_a_terminal(stored):
    said = on_a_terminal("compare", *(r.id for r in stored), "--margin", "0.05")
    assert max(map(len, said.splitlines())) <= 80 and "second_model_of_the_lab" in said and "1 - 2" in said


def test_refusals_have_their_reason_and_status_2(stored, lab):
    a, b = (r.id for r in stored[:2])
    other = ran(lab, "arc_challenge").id
    for words, why in (((a, other), "not compared unpaired"), ((a, a), "stands there twice"), ((a,), "Missing"),
                       ((a, "nobody"), "Unknown run"), ((a, b, "--level", "95"), "level=95"),
                       ((a, b, "--metric", "acc"), "was not measured"), ((a, b, "--margin", "0"), "--margin 0"),
                       ((a, b, "--metric", ""), "Unknown metric"), ((a, b, other, "--metric", "acc"), "not measured"),
                       ((a, other, "--json"), "not compared unpaired"), ((a, b, "--margin", "3"), "margin=3")):
        done = ask("compare", *words, status=2)
        assert why in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_power_answers_what_is_missing():
    def told(*words): return json.loads(ask("power", *words, "--json").stdout)
    n = told("--difference", "0.05", "--discordance", "0.2")
    assert n["asked"] == "units" and n["n_items"] == n["n"]
    assert n["n"] == plan_comparison(make_design(discordance=0.2), difference=0.05).n
    d = told("--items", str(n["n"]), "--discordance", "0.2")
    assert d["asked"] == "difference" and d["difference"] == pytest.approx(0.05, abs=1e-3)
    p = told("--items", str(n["n"]), "--difference", "0.05", "--discordance", "0.2")
    assert p["asked"] == "power" and p["power"] == pytest.approx(n["power"]) and p["latex"].endswith("\\\\")
    assert told("--difference", "0.05", "--power", "0.9", "--discordance", "0.2")["n"] > n["n"]
    assumed = told("--difference", "0.05")
    assert assumed["assumed"] and {o["discordance"] for o in assumed["others"]} == {0.1, 0.2, 0.3, 0.5}
    same = told("--margin", "0.05", "--discordance", "0.1")
    assert same["margin"] == 0.05 and same["difference"] == 0
    groups = told("--items", "200", "--clusters", "40", "--icc", "0.2", "--sd", "2")
    assert groups["unit"] == "clusters" and groups["n"] == 40 and groups["design"]["cluster_size"] == 5
    alone = told("--items", "200", "--sd", "2")
    assert groups["difference"] > 1.2 * alone["difference"] and groups["share"] is False
    assert told("--items", "203", "--per-cluster", "5", "--icc", "0.2", "--sd", "2")["n"] == 40
    epochs = told("--items", "200", "--sd", "2", "--epochs", "4", "--noise", "1.2")
    assert epochs["difference"] < alone["difference"]
    all_of_it = told("--benchmark", "gsm8k")
    assert all_of_it["n_items"] == all_of_it["has"] == 1319 and all_of_it["enough"] is True
    assert told("--difference", "0.01", "--benchmark", "gsm8k")["enough"] is False


def test_power_in_words():
    said = ask("power", "--difference", "0.02", "--discordance", "0.2", "--benchmark", "gsm8k", "--latex").stdout
    assert "3,920 for both models" in said and "too few, 2,601 are missing" in said and "\x1b" not in said
    assert said.rstrip().endswith(r"3920 & 2 & 80.0 & 0.05 \\") and "2 points" in said
    said = ask("power", "--difference", "0.4", "--sd", "2", "--icc", "0.2", "--per-cluster", "5").stdout
    assert "clusters  73" in said and "points" not in said
    assert "one alone is right on" in ask("power", "--items", "200").stdout


def test_power_from_stored_runs(stored):
    a, b = (r.id for r in stored[:2])
    found = json.loads(ask("power", "--pilot", a, b, "--difference", "0.05", "--json").stdout)
    x, y = (r.scores.value.to_numpy() for r in stored[:2])
    assert found["design"]["discordance"] == (x != y).mean() and found["between"][0] < found["n"] < found["between"][1]
    assert "at the ends of its interval" in ask("power", "--pilot", a, b, "--difference", "0.05").stdout
    same = json.loads(ask("power", "--pilot", a, b, "--margin", "0.05", "--json").stdout)
    assert same["between"][0] < same["n"] < same["between"][1]
    fewer = json.loads(ask("power", "--pilot", a, b, "--difference", "0.05", "--epochs", "4", "--noise", "0.4",
                           "--json").stdout)
    assert fewer["n"] < found["n"]


@pytest.mark.parametrize("words, why", [
    ((), "say what is known"), (("--power", "0.8"), "say what is known"),
    (("--difference", "0.03", "--items", "100", "--power", "0.8"), "two of them tell"),
    (("--items", "100", "--margin", "0.1", "--power", "0.8", "--discordance", "0.1"), "leave one out"),
    (("--difference", "0.03", "--discordance", "0.2", "--sd", "1"), "give one"),
    (("--difference", "0.03", "--pilot", "a", "b", "--discordance", "0.2"), "leave one of the two out"),
    (("--difference", "0.03", "--pilot", "a", "b"), "Unknown run 'a'"),
    (("--difference", "0.03", "--metric", "acc"), "of a pilot"),
    (("--difference", "0.03", "--icc", "0.2", "--sd", "1"), "size of a cluster"),
    (("--difference", "0.03", "--icc", "0.2", "--per-cluster", "4"), "give one of these too"),
    (("--difference", "0.03", "--per-cluster", "4", "--sd", "1"), "needs --icc"),
    (("--clusters", "30", "--sd", "1"), "--clusters needs --icc"),
    (("--items", "90", "--clusters", "30", "--per-cluster", "3", "--icc", "0.1", "--sd", "1"), "two of them tell"),
    (("--difference", "0.03", "--epochs", "4"), "--epochs needs"),
    (("--difference", "0.03", "--epochs", "4", "--discordance", "0.2"), "nothing here says so"),
    (("--difference", "0.03", "--noise", "0.1", "--discordance", "0.2"), "--epochs"),
    (("--difference", "0.3", "--discordance", "0.1"), "at most their share"),
    (("--difference", "3"), "less than 1"), (("--difference", "0"), "not 0"),
    (("--difference", "nan"), "difference=nan"),
    (("--difference", "0.03", "--alpha", "5"), "alpha=5"), (("--difference", "0.03", "--power", "80"), "power=80"),
    (("--items", "5"), "take more"), (("--margin", "2", "--discordance", "0.1"), "two points are 0.02"),
    (("--margin", "-1"), "margin=-1"), (("--difference", "0.03", "--discordance", "20"), "discordance=20"),
    (("--difference", "0.03", "--sd", "0"), "sd=0"), (("--benchmark", "gsm9k"), "Did you mean 'gsm8k'"),
    (("--benchmark", ""), "benchmark"),
    (("--difference", "0.5", "--sd", "1", "--icc", "0.2", "--per-cluster", "inf"), "per_cluster=inf"),
    (("--items", "3", "--sd", "1", "--icc", "0.2", "--per-cluster", "3"), "two are needed"),
])
def test_what_contradicts_itself_is_refused(lab, words, why):
    done = ask("power", *words, status=2)
    assert why in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_the_front_door_has_them():
    import qwen_eval
    assert qwen_eval.compare_runs is compare_runs and qwen_eval.compare_all_runs is compare_all_runs


def test_values_of_runs_stand_side_by_side(pair):
    x, y = answers(0, 0.7, 30), answers(1, 0.5, 20)
    found = common_values([with_values(pair[0], x), with_values(pair[1], y)])
    assert (found.values[:, :, 0] == [x[:20], y]).all() and found.sizes == ((30, 1), (20, 1)) and not found.weighted
