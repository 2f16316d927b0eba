"What runs cost: metering, quantiles, goodput, energy, and the manifest that keeps it."
import json
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from qwen_eval import metering
from qwen_eval.cli import app
from qwen_eval.closing import facts
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import EngineError
from qwen_eval.evaluation import evaluate
from qwen_eval.metering import Meter, Reading, Span, add_up, nvml_probe
from qwen_eval.models import model as find_model
from qwen_eval.performance import goodput, inter_token, item_performance, memory, run_performance
from qwen_eval.plans import plan_run
from qwen_eval.presets import GIB
from qwen_eval.records import Completion
from qwen_eval.runs import Run, describe, list_runs
from qwen_eval.stats.rates import quantile
from qwen_eval.store import update_manifest
from qwen_eval.tables import display_rows

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------- quantiles
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_interval_of_a_quantile_covers_it_and_is_the_shortest_that_does(level):
    from scipy.stats import binom
    for n, q in ((6, 0.5), (40, 0.5), (99, 0.9), (120, 0.9), (300, 0.95), (2000, 0.99)):
        e = quantile(np.arange(1.0, n + 1), q, level)
        low, high = e.low, e.high
        below, above = binom.cdf(low - 1, n, q), binom.sf(high - 1, n, q) # chances to miss on either side
        if math.isfinite(low): assert below <= (1 - level) / 2 + 1e-12 < binom.cdf(low, n, q), (n, q)
        if math.isfinite(high): assert above <= (1 - level) / 2 + 1e-12 < binom.sf(high - 2, n, q), (n, q)


def test_the_interval_of_a_quantile_covers_that_of_a_skewed_sample():
    rng, true = np.random.default_rng(7), -math.log(0.1)
    found = [quantile(rng.exponential(size=120), 0.9) for _ in range(1000)]
    assert 0.945 < np.mean([e.low <= true <= e.high for e in found]) < 0.985


# ---------------------------------------------------------------- energy
def trace(power, t):
    span = Span()
    for at in t: span.add(at, Reading(name="card", power_w=power(at)))
    return span.facts()


def test_energy_of_straight_lines_is_exact_however_coarse():
    corners = [0.0, 0.7, 3.0, 11.0]
    watts = dict(zip(corners, (50.0, 400.0, 400.0, 80.0), strict=True))
    closed_form = (50 + 400) / 2 * 0.7 + 400 * 2.3 + (400 + 80) / 2 * 8
    found = trace(lambda t: np.interp(t, corners, list(watts.values())), corners)
    assert found["energy_j"] == pytest.approx(closed_form) and found["power_max_w"] == 400
    assert found["power_w"] == pytest.approx(closed_form / 11)


def test_energy_of_a_wave_approaches_its_integral():
    t = np.arange(0, 10.0001, 0.1)
    found = trace(lambda x: 300 + 100 * math.sin(x), t)
    assert found["energy_j"] == pytest.approx(3000 + 100 * (1 - math.cos(10)), rel=1e-3)


def test_no_power_is_not_no_energy():
    facts = trace(lambda t: None, [0.0, 1.0])
    assert "energy_j" not in facts and "power_w" not in facts and add_up([{"cards": [facts]}])["energy_j"] is None
    assert add_up([None])["energy_j"] is None and add_up([{"engine": {"n_steps": 3}}])["power_w"] is None


class Nvml(SimpleNamespace):
    "NVIDIA's library with two cards; the second does not know its energy."
    class NVMLError(Exception): pass

    def __init__(self):
        def refuse(card):
            if card: raise self.NVMLError("not supported")
            return 5_000_000
        super().__init__(
            nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=lambda i: i,
            nvmlDeviceGetUUID=lambda c: f"GPU-{c}abc", nvmlDeviceGetName=lambda c: f"card {c}",
            nvmlDeviceGetPowerUsage=lambda c: 250_000, nvmlDeviceGetTotalEnergyConsumption=refuse,
            nvmlDeviceGetUtilizationRates=lambda c: SimpleNamespace(gpu=80),
            nvmlDeviceGetMemoryInfo=lambda c: SimpleNamespace(used=3 * GIB))


def test_nvml_speaks_milliwatts_millijoules_percent_and_bytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second = nvml_probe()()
    assert first == Reading(name="card 0", power_w=250, counter_j=5000, utilisation=0.8, memory_gib=3)
    assert second.counter_j is None and second.power_w == 250
    for visible, names in (("1", ["card 1"]), ("GPU-0a", ["card 0"]), ("1,0", ["card 0", "card 1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [r.name for r in nvml_probe()()] == names
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert nvml_probe() is None


# ---------------------------------------------------------------- what a run keeps
@pytest.fixture
def hundred_watts(monkeypatch):
    monkeypatch.setattr(metering, "nvml_probe", lambda: lambda: [Reading(name="card", power_w=100.0, memory_gib=7.0)])


class Counting(FakeEngine):
    "A fake that counts its requests and dies when it is told to."
    dies_after, since = None, 0

    def stats(self, restart=False):
        told = {"n_preemptions": self.n_requests - self.since, "n_kv_blocks": 100, "peak_kv_blocks": 40}
        if restart: self.since = self.n_requests
        return told

    def step(self):
        if self.dies_after is not None and self.n_requests > self.dies_after: raise EngineError("gone")
        return super().step()


GOLD = {i.id: i.target for i in plan_run("smollm2_135m", "gsm8k", engine="fake", source="specimen").items}


def right(request):
    return f"\\boxed{{{GOLD[request.item_id]}}}"


def asked(engine, runs, **how):
    return evaluate("smollm2_135m", "gsm8k", engine=engine, source="specimen", runs=runs, progress=False, **how)


def test_a_resumed_run_adds_up_what_its_sessions_used(tmp_path, hundred_watts):
    engine = Counting(right, window=1, delay_s=0.03)
    asked(engine, tmp_path, limit=2)
    run = asked(engine, tmp_path, limit=4)
    sessions = run.manifest["sessions"]
    spans = [s["performance"]["cards"][0]["span_s"] for s in sessions]
    assert len(sessions) == 2 and all(span >= 0.06 for span in spans)
    assert run.performance["energy_j"] == pytest.approx(100 * sum(spans), rel=1e-3)
    assert run.performance["power_w"] == pytest.approx(100, rel=1e-3) and run.performance["memory_peak_gib"] == 7
    assert [s["performance"]["engine"]["n_preemptions"] for s in sessions] == [2, 2]
    found = run_performance(run)
    assert found["memory"]["measured"] == {"n_preemptions": 4, "n_kv_blocks": 100, "peak_kv_blocks": 40,
                                           "card_peak_gib": 7}
    assert found["n_correct"] == 4 and found["j_per_correct"] == pytest.approx(100 * sum(spans) / 4, rel=1e-3)
    assert found["j_per_1000_output_tok"] == pytest.approx(1000 * 100 * sum(spans) / 4, rel=1e-3)
    assert "J per 1,000 output tokens" in describe(run)["energy"]
    assert facts(run.manifest)["used"]["energy_j"] == pytest.approx(100 * sum(spans), rel=1e-3)
    assert "J/1,000 tok" in display_rows([run])[0]


def test_a_session_that_died_keeps_what_it_used(tmp_path, hundred_watts):
    engine = Counting(lambda r: "18", window=1, delay_s=0.03)
    engine.dies_after = 2
    with pytest.raises(EngineError, match="2 of 4"): asked(engine, tmp_path, limit=4)
    [run] = list_runs(tmp_path)
    assert run.manifest["sessions"][0]["performance"]["cards"][0]["energy_j"] >= 100 * 0.06
    found = run_performance(run)
    assert found["n_answers"] == 2 and found["usage"]["energy_j"] >= 6


def test_what_nobody_measured_is_not_available(tmp_path, monkeypatch):
    monkeypatch.setattr(metering, "nvml_probe", lambda: None)
    run = asked(FakeEngine(lambda r: "18"), tmp_path, limit=2)
    assert "performance" not in run.manifest["sessions"][0] and "energy" not in describe(run)
    found = run_performance(run)
    rows = found.rows()
    for label in ("power", "energy", "utilisation", "memory, measured", "cost", "per correct answer"):
        assert rows[label] == "not available", label
    assert "load not available, compile not available" in rows["engine start"]
    assert found["usage"]["energy_j"] is None and "J/1,000 tok" not in display_rows([run])[0]
    json.dumps(found)


def test_half_measured_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(metering, "nvml_probe", lambda: lambda: [Reading(name="card", power_w=100.0)])
    engine = FakeEngine(lambda r: "18", delay_s=0.01)
    asked(engine, tmp_path, limit=2)
    monkeypatch.setattr(metering, "nvml_probe", lambda: None)
    assert asked(engine, tmp_path, limit=4).performance["energy_j"] is None


def test_the_command_line_shows_what_a_run_cost(monkeypatch):
    monkeypatch.setenv("QWEN_EVAL_RUNS", str(ROOT / "data/demo"))
    said = CliRunner().invoke(app, ["runs", "show", "63d47f40", "--performance"]).stdout
    assert re.search(r"first token  p50 [\d,]+ \[", said) and re.search(r"energy  not available", said)
    asked = ["runs", "show", "63d47f40", "--performance", "--json"]
    assert json.loads(CliRunner().invoke(app, asked).stdout)["performance"]["latency"]["ttft_s"]["n"] == 40


@pytest.mark.parametrize("run", list_runs(ROOT / "data/demo"), ids=lambda r: r.id)
def test_runs_from_before_can_be_read(run):
    found = run_performance(run, ttft_s=10)
    assert found["usage"]["energy_j"] is None and found["n_answers"] == 40 and found["seconds"] > 1
    assert found["memory"]["estimated"]["weights_gib"] == pytest.approx(134_515_008 * 2 / GIB, rel=0.3)
    assert found["latency"]["latency_s"]["n"] == 40 and "not available" in repr(found)
    frame = item_performance(run)
    long = frame[frame.n_output_tok > 1]
    expected = (long.latency_s - long.ttft_s) / (long.n_output_tok - 1)
    assert np.allclose(long.itl_s, expected) and frame.itl_s.isna().sum() == (frame.n_output_tok < 2).sum()


def test_an_unscored_run_has_its_times(tmp_path):
    run = asked(FakeEngine(lambda r: Completion(item_id="", text="18", n_output_tok=3, ttft_s=0.5, latency_s=0.9)),
                tmp_path, limit=3)
    (run.path / "scores.parquet").unlink()
    frame = item_performance(Run(run.path))
    assert set(frame.status) == {"not_scored"} and np.allclose(frame.itl_s, 0.2) and len(frame) == 3


def test_a_conversation_has_no_time_between_tokens(tmp_path):
    run = evaluate("smollm2_135m", "mt_bench", engine=FakeEngine(
        lambda r: Completion(item_id="", text="x", n_output_tok=9, ttft_s=0.1, latency_s=0.9)), source="specimen",
        judge="none", runs=tmp_path, progress=False)
    assert item_performance(run).itl_s.isna().all() and memory(run.manifest)["estimated"] is None


# ---------------------------------------------------------------- goodput
def test_goodput_counts_what_keeps_every_bound():
    frame = pd.DataFrame([("scored", 0.1, 1.1, 11), ("scored", 0.3, 1.3, 11), ("scored", 0.1, 3.1, 11),
                          ("truncated", 0.1, 0.1, 1), ("engine_error", None, None, 0)],
                         columns=["status", "ttft_s", "latency_s", "n_output_tok"])
    frame["itl_s"] = inter_token(frame.ttft_s, frame.latency_s, frame.n_output_tok)
    found = goodput(frame, 2.0, ttft_s=0.2, itl_s=0.1)
    assert found["n_good"] == 2 and found["n"] == 5 and found["requests_s"] == 1 and found["share"] == 0.4
    assert found["low"] < 0.4 < found["high"]
    assert goodput(frame, 2.0, latency_s=1.2)["n_good"] == 2
    assert goodput(frame.assign(ttft_s=np.nan), 2.0, ttft_s=1) is None


def test_tokens_cost_what_the_model_says(tmp_path):
    used = {"n_prompt_tok": 1000, "n_cached_tok": 400, "n_output_tok": 50}
    engine = FakeEngine(lambda r: Completion(item_id="", text="18", **used))
    run = asked(engine, tmp_path, limit=4)
    assert run_performance(run)["usd"] is None
    for prices, cached in (((3.0, 15.0, 0.3), 0.3), ((3.0, 15.0), 3.0)): # as `Model` declares them
        assert replace(find_model("smollm2_135m"), usd_per_mtok=prices).usd_per_mtok == prices
        update_manifest(run.path, model=run.manifest["model"] | {"usd_per_mtok": list(prices)})
        assert run_performance(Run(run.path))["usd"] == pytest.approx(4 * (600 * 3 + 400 * cached + 50 * 15) / 1e6)


def test_the_meter_stops():
    looks = []
    with Meter(probe=lambda: looks.append(1) or [Reading(name="card", power_w=1.0)], every_s=0.01): time.sleep(0.05)
    time.sleep(0.03)
    n = len(looks)
    time.sleep(0.05)
    assert len(looks) == n >= 3
