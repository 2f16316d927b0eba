"""Trends: edge inputs, known run lengths, limits that keep their promise, histories of stored runs."""
import json
import math

import numpy as np
import pytest

from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError
from qwen_eval.evaluation import evaluate
from qwen_eval.history import history
from qwen_eval.models import Model
from qwen_eval.runs import list_runs
from qwen_eval.stats.trends import cusum, cusum_plan, run_chart, run_length

X = ["x"] * 30


@pytest.mark.parametrize(("counts", "sizes", "marks", "said"), [
    ([], [], [], "0 rows"), ([5], [4], ["x"], "at most"), ([5, 5], [9], ["x"], "one of each"),
    ([5], [9], ["x", "x"], "one of each"),
    ([math.nan], [9], ["x"], "finite"), ([-1], [9], ["x"], "possible"), ([0], [0], ["x"], "possible"),
    ([5, 5], [9, 9], ["x", "y"], "unlike"), ([5, 5], [9, 9], "xx", "one of each"), ([[5]], [9], ["x"], "shape")])
def test_runs_that_are_refused(counts, sizes, marks, said):
    with pytest.raises(ConfigError, match=said): cusum(counts, sizes, marks, target=0.5)
    with pytest.raises(ConfigError, match=said): run_chart(counts, sizes, marks)


@pytest.mark.parametrize(("given", "said"), [
    ({}, "target="), ({"target": 0.5, "n_baseline": 3}, "target="), ({"target": 0}, "target=0"),
    ({"target": 1}, "target=1"), ({"target": math.nan}, "target"), ({"n_baseline": 0}, "n_baseline=0"),
    ({"n_baseline": 30}, "n_baseline=30"),
    ({"n_baseline": 2.5}, "n_baseline"), ({"target": 0.5, "drop": 3}, "drop=3"),
    ({"target": 0.5, "drop": 0.9}, "cannot move"),
    ({"target": 0.5, "horizon": 0}, "horizon"), ({"target": 0.5, "false_alarm": 0}, "false_alarm"),
    ({"target": 0.5, "dispersion": 0}, "dispersion")])
def test_charts_that_are_refused(given, said):
    with pytest.raises(ConfigError, match=said): cusum([250] * 30, [500] * 30, X, **given)


@pytest.mark.parametrize(("counts", "sizes"), [([1], [1]), ([0], [1]), ([0, 1], [1, 1]), ([500] * 30, [500] * 30),
                                               ([0] * 30, [500] * 30), ([250] * 30, [500] * 30), ([2.5, 3.25], [4, 4]),
                                               ([4, 400], [5, 500])])
def test_small_tied_and_extreme_runs(counts, sizes):
    marks = ["x"] * len(counts)
    found, chart = cusum(counts, sizes, marks, target=0.5, drop=0.1), run_chart(counts, sizes, marks)
    assert np.isfinite([found.z, found.up, found.down]).all() and len(found.rows()) == len(chart.rows()) == len(counts)
    assert found.sentence and chart.sentence and min(chart.lows) >= 0 and max(chart.highs) <= 1
    if len(counts) > 20: assert found.direction == {500: "rise", 0: "drop", 250: ""}[counts[0]]
    if len(counts) > 1:
        if sizes[0] == 5: # five items say nothing about a run of 500
            with pytest.raises(ConfigError, match="baseline is too short"): cusum(counts, sizes, marks, n_baseline=1)
            return
        based = cusum(counts, sizes, marks, n_baseline=1)
        assert 0 < based.plan.target < 1 and np.isfinite(based.z).all()


def test_constant_runs_give_no_alarm_however_high_the_score():
    for right in (0, 1, 250, 499, 500): assert cusum([right] * 30, [500] * 30, X, n_baseline=15).alarm is None


@pytest.mark.parametrize(("k", "h"), [(0, 3), (0.25, 8), (1, 2), (2, 0.5), (3, 1e-6)])
def test_run_lengths_against_simulation(k, h):
    rng, shift = np.random.default_rng(1), 0.5
    up, down, first = np.zeros(4000), np.zeros(4000), np.zeros(4000)
    for t in range(1, 3000):
        z = rng.normal(shift, 1, 4000)
        up, down = np.maximum(0, up + z - k), np.maximum(0, down - z - k)
        first[(first == 0) & ((up > h) | (down > h))] = t
        if first.all(): break
    assert first.all() and abs(run_length(k, h, [shift]).arl[0] - first.mean()) < 4 * first.std() / 4000 ** 0.5


def test_run_lengths_of_far_shifts_and_wide_limits():
    assert run_length(0.5, 5, [8, -8]).arl == pytest.approx((1, 1), abs=0.01)
    assert run_length(0.5, 90).arl == (math.inf,) or run_length(0.5, 90).arl[0] > 1e13
    assert run_length(0.5, 4, [0.7]).arl[0] == pytest.approx(run_length(0.5, 4, [-0.7]).arl[0])
    for k, h in ((math.nan, 1), (1, -1), (1, 1000), (-1, 1)):
        with pytest.raises(ConfigError): run_length(k, h)
    with pytest.raises(ConfigError): run_length(0.5, 4, [])


def test_plans_keep_their_chance():
    for given in ({}, {"false_alarm": 0.01}, {"horizon": 365}, {"baseline_items": 3000}, {"dispersion": 0.3}):
        plan = cusum_plan(500, 0.8, **given)
        assert plan.false_alarm == pytest.approx(given.get("false_alarm", 0.05), abs=1e-3) and 0 <= plan.caught <= 1
    known, based = cusum_plan(500, 0.8), cusum_plan(500, 0.8, baseline_items=5000)
    assert based.h > known.h and based.caught < known.caught and known.arl > known.arl_drop
    assert cusum_plan(500, 0.8, dispersion=0.25).caught >= known.caught and cusum_plan(10**6, 0.8).caught > 0.999
    assert "5.0 %" in known.sentence and "known" in known.sentence and "5,000 baseline items" in based.sentence
    with pytest.raises(ConfigError, match="n_items"): cusum_plan(0, 0.8)
    with pytest.raises(ConfigError, match="baseline_items"): cusum_plan(500, 0.8, baseline_items=0)


def test_unequal_sizes_have_scores_of_their_own_noise():
    z = cusum([80, 800, 8000], [100, 1000, 10_000], X[:3], target=0.79).z
    assert np.allclose(z, [0.01 / (0.79 * 0.21 / n) ** 0.5 for n in (100, 1000, 10_000)], atol=0.06)


def test_rules_of_the_run_chart_have_few_false_alarms():
    counts = np.random.default_rng(2).binomial(1000, 0.7, (120, 24))
    signals = [run_chart(c, [1000] * 24, ["x"] * 24).signal for c in counts]
    assert 0.005 < np.mean([s is True for s in signals]) < 0.16
    drift = [run_chart(c + np.arange(24) * 3, [1000] * 24, ["x"] * 24).signal for c in counts]
    assert np.mean([s is True for s in drift]) > 0.5


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    "Four runs that differ in the seed, dated out of order, and one of another preset."
    home = tmp_path_factory.mktemp("runs")
    asked = {"source": "specimen", "runs": home, "progress": False, "engine": FakeEngine("random")}
    runs = [evaluate(Model(id="m"), "arc_challenge", seed=s, **asked) for s in range(4)]
    for day, r in zip((13, 19, 11, 17), runs, strict=True):
        file = r.path / "manifest.json"
        manifest = json.loads(file.read_text()) | {"started": f"2026-01-{day}T00:00:00+00:00"}
        file.write_text(json.dumps(manifest))
    evaluate(Model(id="m"), "arc_challenge", preset="performance", **asked)
    return list_runs(home)


def of(runs, preset): return [r for r in runs if r.manifest["fingerprint"]["preset"]["id"] == preset]


def test_a_history_is_in_time_order(stored):
    found = history(of(stored, "balanced"))
    assert found.started == tuple(sorted(found.started)) and len({*found.run_ids}) == 4
    assert len({*found.fingerprints}) == 1
    by_id = {r.id: r for r in stored}
    assert found.counts == tuple(by_id[i].scores.acc.sum() for i in found.run_ids)
    assert [by_id[i].manifest["fingerprint"]["protocol"]["seed"] for i in found.run_ids] == [2, 0, 3, 1]
    assert len(cusum(found.counts, found.sizes, found.fingerprints, n_baseline=2).z) == 2


def test_a_history_refuses_what_was_made_differently(stored):
    with pytest.raises(ConfigError, match=r"preset\.chunked_prefill: None and True"): history(stored)
    with pytest.raises(ConfigError, match=r"protocol\.seed"): history(of(stored, "balanced"), may_change=())
    whole = {f"preset.{k}" for k in stored[0].manifest["fingerprint"]["preset"] if k != "id"}
    with pytest.raises(ConfigError, match=r"preset\.id"): history(stored, may_change={"protocol.seed", *whole})
    with pytest.raises(ConfigError, match="right or wrong"): history(of(stored, "balanced"), "acc_macro")
    with pytest.raises(ConfigError, match="right or wrong"): history(of(stored, "balanced"), "nothing")
    with pytest.raises(ConfigError, match="no runs"): history([])


def test_a_history_refuses_an_incomplete_run(stored):
    run = of(stored, "balanced")[0]
    run.manifest["stages"]["generate"]["n_items"] += 5
    with pytest.raises(ConfigError, match="incomplete"): history([run])
