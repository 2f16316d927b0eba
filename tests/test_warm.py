"""Warm studies: one engine per model and preset, memory given back between them, answers kept across runs."""
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import qwen_eval.memory as memory
import qwen_eval.runner as runner
import qwen_eval.warm as warm
from qwen_eval.engines.base import FakeEngine, SteppedEngine
from qwen_eval.engines.cache import AnswerCache, CachedEngine, cache_key, cache_rows, identity, prune_cache
from qwen_eval.engines.replicas import ReplicatedEngine, card_groups
from qwen_eval.errors import ConfigError, EngineError
from qwen_eval.evaluation import evaluate
from qwen_eval.hardware import Device, fit, n_replicas, require_fit, with_cards
from qwen_eval.models import model
from qwen_eval.ordering import execution_order
from qwen_eval.presets import GIB, engine_args, memory_plan, preset, presets
from qwen_eval.records import Completion, Request
from qwen_eval.runner import run_study
from qwen_eval.studies import Study, plan

ROOT = Path(__file__).resolve().parent.parent
FOUR = Study(id="four", models=("smollm2_135m",), benchmarks=("gsm8k", "arc_challenge", "humaneval", "truthfulqa"),
             presets=("balanced", "performance", "memory_optimized"), limit=3, answer_tok=17, engine="fake",
             allow_specimens=True)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nreports = reports\nspecimens = {ROOT / 'data/specimens'}\n")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(warm.Engines, "grace_s", 0.05)
    return tmp_path


class Counting:
    "Engine processes that are counted; when one starts, those that still live are noted."
    def __init__(self): self.real, self.made, self.beside = runner.EngineProcess, [], []

    def __call__(self, *a, **k):
        self.beside.append(sum(p.process.poll() is None for p in self.made))
        self.made.append(process := self.real(*a, **k))
        return process


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(runner, "EngineProcess", counting := Counting())
    return counting


def do(study): return run_study(study, notebooks=False, stream=io.StringIO())


def slow_scoring(monkeypatch, seconds, seen):
    "The scoring of the last run of each engine waits until something is so, or some seconds."
    import qwen_eval.evaluation as evaluation
    real, last = evaluation.score_run, {g[-1].path.name for g in execution_order(plan(FOUR).runs)}

    def wait(path, *a, **k):
        end = time.monotonic() + seconds
        while path.name in last and not seen(path) and time.monotonic() < end: time.sleep(0.05)
        return real(path, *a, **k)
    monkeypatch.setattr(evaluation, "score_run", wait)


# ---------------------------------------------------------------- one engine after the other
def test_one_model_three_presets_four_jobs_load_three_engines(lab, counting):
    outcome = do(FOUR)
    assert not outcome.failures and len(outcome.rows) == 12
    assert len(counting.made) == 3 and counting.beside == [0, 0, 0]
    assert not [p for p in counting.made if p.process.poll() is None]
    assert not do(FOUR).failures and len(counting.made) == 3


def test_the_next_engine_starts_while_the_last_run_is_scored(lab, counting, monkeypatch):
    started = {}

    def next_is_there(path):
        n = 1 + FOUR.presets.index(path.name.split("--")[2])
        started[n] = len(counting.made) > n
        return started[n] or n == 3
    slow_scoring(monkeypatch, 20, next_is_there)
    assert not do(FOUR).failures
    assert started == {1: True, 2: True, 3: False} and counting.beside == [0, 0, 0] and len(counting.made) == 3


def test_an_engine_killed_amid_a_group_is_started_again_and_nothing_is_lost_or_doubled(lab, counting):
    study, killed = replace(FOUR, presets=("balanced",)), []

    def kill():
        second = execution_order(plan(study).runs)[0][1]
        file = second.path / "completions.jsonl"
        while not (file.exists() and file.read_bytes().count(b"\n")): time.sleep(0.002)
        os.kill(counting.made[0].process.pid, signal.SIGKILL)
        killed.append(1)

    real = counting.real

    def slow(name, path, args, *a, **k): return real(name, path, {"answer": "constant", "delay_s": 0.15}, *a, **k)
    counting.real = slow
    threading.Thread(target=kill, daemon=True).start()
    outcome = do(study)
    assert killed and not outcome.failures and len(counting.made) == 2
    for r in plan(study).runs:
        lines = [json.loads(x) for x in (r.path / "completions.jsonl").read_text().splitlines()]
        good = Counter(x["item_id"] for x in lines if x["finish_reason"] != "error")
        assert r.state() == "complete" and set(good.values()) == {1} and len(good) == 3


def test_a_scorer_that_fails_after_the_engine_went_is_no_death_of_the_engine(lab, counting, monkeypatch):
    import qwen_eval.evaluation as evaluation
    study = replace(FOUR, presets=("balanced",))
    real, last = evaluation.score_run, execution_order(plan(study).runs)[0][-1].path.name

    def fails(path, *a, **k):
        if path.name != last: return real(path, *a, **k)
        end = time.monotonic() + 20
        while counting.made[-1].process.poll() is None and time.monotonic() < end: time.sleep(0.05)
        raise ConfigError("this scorer is broken")
    monkeypatch.setattr(evaluation, "score_run", fails)
    outcome = do(study)
    assert [f.message for f in outcome.failures] == ["this scorer is broken"] and len(counting.made) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_engine_started_ahead_is_ended_when_the_study_is(lab, counting, monkeypatch, error):
    def ahead(path):
        if len(counting.made) > 1: raise error
    slow_scoring(monkeypatch, 20, ahead)
    with pytest.raises(error): do(FOUR)
    assert len(counting.made) == 2 and not [p for p in counting.made if p.process.poll() is None]


def test_an_engine_that_does_not_start_ahead_fails_its_own_runs(lab, counting, monkeypatch):
    real = counting.real

    def second_fails(*a, **k):
        if len(counting.made) == 1 and not failed: failed.append(1); raise EngineError("no memory")
        return real(*a, **k)
    failed, counting.real = [], second_fails
    outcome = do(FOUR)
    assert {(f.run.preset, f.message) for f in outcome.failures} == {("performance", "no memory")}
    assert len(outcome.failures) == 4 and len(outcome.rows) == 8


def test_groups_with_the_same_weights_follow_each_other(lab, tmp_path):
    from types import SimpleNamespace

    from qwen_eval.ordering import execution_order
    def run(name, folder):
        return SimpleNamespace(model=name, preset="p", plan=SimpleNamespace(located=SimpleNamespace(path=Path(folder))))
    runs = [run("a", "x"), run("b", "y"), run("a+adapter", "x"), run("c", "z"), run("b2", "y")]
    assert [g[0].model for g in execution_order(runs)] == ["a", "a+adapter", "b", "b2", "c"]


# ---------------------------------------------------------------- memory
class Card:
    "A card made up: engines take what they take, and give it back some looks after they ended."
    def __init__(self, counting, gib=100.0, late=3, keeps=0.0):
        self.counting, self.gib, self.late, self.keeps, self.looks = counting, gib, late, keeps, 0

    def used(self, device, pids=()):
        assert device.kind == "cuda"
        alive = any(p.process.poll() is None for p in self.counting.made)
        self.looks = 0 if alive else self.looks + 1
        held = self.gib if alive or (self.counting.made and self.looks <= self.late) else 0.0
        return 0.6 + held + (self.keeps if self.counting.made else 0)


@pytest.fixture
def card(counting, monkeypatch):
    "Fake engines that are taken for real ones on a card."
    device = Device(kind="cuda", name="a card", memory_gib=140.0, free_gib=139.0)
    made = Card(counting)
    monkeypatch.setattr(warm, "device_of", lambda run: device)
    for module in (warm, memory): monkeypatch.setattr(module, "used_gib", made.used)
    return made


def test_memory_is_seen_to_return_between_engines_and_stands_in_the_manifest(lab, card, counting):
    stream = io.StringIO()
    assert not run_study(FOUR, notebooks=False, stream=stream).failures and len(counting.made) == 3
    for r in plan(FOUR).runs:
        said = r.run().manifest["engine_memory"]
        assert said["before_gib"] == 0.6 and said["peak_gib"] == 100.6 and said["after_gib"] == 0.6
        assert said["estimate"]["weights_gib"] > 0.2 and said["estimate"]["budget_gib"] > 90 and said["start_s"] > 0
    assert stream.getvalue().count("0.6 GiB of the card are in use after the engine, 0.6 were before the first") == 3


def test_memory_that_does_not_return_names_who_holds_it(lab, card, counting, monkeypatch):
    card.keeps = 30.0
    monkeypatch.setattr(memory, "holders", lambda: ["process 4711 on card 0 (python, 30.0 GiB)"])
    monkeypatch.setattr(warm, "wait_for_return", lambda *a: memory.wait_for_return(*a, patience_s=1))
    outcome = do(FOUR)
    assert len(counting.made) == 1 and len(outcome.rows) == 4
    assert {f.run.preset for f in outcome.failures} == {"performance", "memory_optimized"}
    assert all("process 4711 on card 0 (python, 30.0 GiB)" in f.message and "30.6 GiB" in f.message
               for f in outcome.failures)


# ---------------------------------------------------------------- cards
CARD = Device(kind="cuda", name="a card", n_devices=8, memory_gib=24.0, free_gib=24.0)
CPU = Device(kind="cpu", name="a laptop", memory_gib=16.0, free_gib=11.0, n_cores=8)


@pytest.mark.parametrize("name, cards, gib, wanted", [
    ("qwen3_8b", 8, 80, 1), ("qwen3_8b", 8, 24, 1), ("qwen3_14b", 8, 24, 2), ("qwen3_14b", 8, 12, 4),
    ("qwen2.5_8b", 8, 8, 4), ("qwen2.5_8b", 8, 4, 1), ("qwen3_14b", 1, 24, 1), ("qwen3_14b", 3, 12, 1)])
def test_the_fewest_cards_that_hold_the_model_and_divide_its_heads(lab, name, cards, gib, wanted):
    device = replace(CARD, n_devices=cards, memory_gib=gib, free_gib=gib)
    found = with_cards(preset("balanced"), model(name), device, 4096)
    assert found.tensor_parallel_size == wanted and model(name).n_kv_heads % wanted == 0
    if fit(model(name), found, device, 4096).fits:
        fewer = preset("balanced", tensor_parallel_size=max(1, wanted // 2))
        assert wanted == 1 or not fit(model(name), fewer, device, 4096).fits
        assert engine_args(found, model(name), device, 4096).get("tensor_parallel_size", 1) == wanted
    else: # nothing that divides helps: refused with the numbers
        with pytest.raises(ConfigError, match="does not fit"): require_fit(model(name), found, device, 4096)


def test_what_the_settings_say_of_cards_is_obeyed_or_refused_with_the_numbers(lab, monkeypatch):
    def say(**engine):
        (lab / f"s{len(list(lab.iterdir()))}.ini").write_text(
            "[engine]\n" + "".join(f"{k} = {v}\n" for k, v in engine.items()))
        monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(max(lab.glob("s*.ini"), key=lambda f: f.stat().st_mtime_ns)))
    p, m = preset("balanced"), model("qwen3_8b")
    assert [n_replicas(replace(p, tensor_parallel_size=n), CARD) for n in (1, 2, 8)] == [8, 4, 1]
    assert n_replicas(p, CPU) == 1 and with_cards(p, m, CPU, 4096) is p
    say(tensor_parallel=4, replicas=2)
    assert with_cards(p, m, CARD, 4096).tensor_parallel_size == 4
    assert n_replicas(replace(p, tensor_parallel_size=4), CARD) == 2
    with pytest.raises(ConfigError, match=r"2, on 8 cards each; 8 cards are visible.* at most 1"):
        n_replicas(replace(p, tensor_parallel_size=8), CARD)
    with pytest.raises(ConfigError, match="one engine takes all cores"): n_replicas(p, CPU)
    say(tensor_parallel=3)
    with pytest.raises(ConfigError, match=r"3; qwen3_8b has 8 key/value heads and 8 cards.*: 1, 2, 4, 8, or auto"):
        with_cards(p, m, CARD, 4096)
    say(tensor_parallel="many")
    with pytest.raises(ConfigError, match="'many'"): with_cards(p, m, CARD, 4096)
    for wrong in (0, -1, "x", 3):
        say(tensor_parallel=wrong)
        with pytest.raises(ConfigError, match=f"tensor_parallel is '?{wrong}'?;"): with_cards(p, m, CPU, 4096)
    say(tensor_parallel=1)
    assert with_cards(p, m, CPU, 4096) is p
    three = fit(m, replace(p, tensor_parallel_size=3), CARD, 4096)
    assert three.fits is False and "3 does not go into its 8 key/value heads" in three.message


def test_cards_are_shared_out_without_overlap(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,GPU-ab,7")
    assert card_groups(2, 2) == [["2", "3"], ["GPU-ab", "7"]] and card_groups(4) == [["2"], ["3"], ["GPU-ab"], ["7"]]
    with pytest.raises(ConfigError, match="3 engines on 2 cards each need 6; 4 are visible"): card_groups(3, 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert card_groups(2, 1, 2) == [["0"], ["1"]]


def test_no_kernel_is_forced_for_quantised_weights():
    known = [m for name in ("qwen3_8b_awq", "qwen_14b_awq", "qwen2.5_8b_awq") if (m := model(name))]
    known += [replace(model("qwen3_8b"), id="fp8", quantization="fp8")]
    for m in known:
        for p in presets():
            if p.kv_cache_dtype != "auto": continue
            args = engine_args(p, m, replace(CARD, memory_gib=80.0, free_gib=80.0), 4096)
            assert not {"quantization", "load_format", "dtype"} & args.keys(), (m.id, p.id)


@pytest.mark.parametrize("free", [2.5, 4.0, 8.0, 30.0])
@pytest.mark.parametrize("name", ["balanced", "performance", "memory_optimized"])
def test_the_cache_on_a_cpu_fits_beside_the_weights(name, free):
    device = replace(CPU, memory_gib=free + 1, free_gib=free)
    for m in (model("smollm2_135m"), model("qwen3_0.6b")):
        if not fit(m, preset(name), device, 2048).fits: continue
        args, p = engine_args(preset(name), m, device, 2048), memory_plan(preset(name), m, device, 2048)
        assert args["kv_cache_memory_bytes"] / GIB + p.weights_gib + p.overhead_gib <= free
        assert args["max_num_seqs"] <= p.max_seqs


# ---------------------------------------------------------------- replicas
class Telling(SteppedEngine):
    "Answers with the cards that its process sees; dies at a prompt that says so."
    def __init__(self, delay_s=0.01):
        fake = FakeEngine(window=8)
        self.capabilities, self.info, self.window = fake.capabilities, fake.info, 8
        self._waiting, self._last, self._delay_s = {}, 0, delay_s

    def submit(self, request):
        self._last += 1
        self._waiting[self._last] = request
        return self._last

    def step(self):
        time.sleep(self._delay_s)
        if not self._waiting: return []
        ticket, r = next(iter(self._waiting.items()))
        del self._waiting[ticket]
        if r.prompt == "die": os._exit(3)
        if r.prompt == "slow": time.sleep(0.5)
        return [(ticket, Completion(item_id=r.item_id, epoch=r.epoch, text=os.environ.get("CUDA_VISIBLE_DEVICES", "")))]

    def abort(self, tickets):
        for t in tickets: self._waiting.pop(t, None)

    def close(self): pass


def asked(n, **k): return [Request(item_id=f"i{i}", prompt_ids=(i,), **k) for i in range(n)]


@pytest.fixture
def replicas(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
    made = []

    def make(n=2, **k):
        made.append(ReplicatedEngine([[str(2 * i), str(2 * i + 1)] for i in range(n)], "test_warm:Telling", **k))
        return made[-1]
    yield make
    for e in made: e.close()


def test_each_replica_sees_its_own_cards_and_all_work(replicas):
    engine = replicas(3)
    answers = list(engine.run(asked(90)))
    assert sorted(c.item_id for c in answers) == sorted(r.item_id for r in asked(90))
    share = Counter(c.text for c in answers)
    assert set(share) == {"0,1", "2,3", "4,5"} and min(share.values()) >= 20
    assert engine.info.effective["replicas"] == 3


def test_who_is_free_takes_the_next_request(replicas):
    slow = [replace(r, prompt="slow") for r in asked(3)]
    quick = [replace(r, item_id=f"q{r.item_id}") for r in asked(60)]
    engine = replicas(2)
    tickets = [engine.submit(r) for r in [slow[0], *quick]]
    done = []
    while len(done) < 50: done += engine.step()
    share = Counter(c.text for _, c in done)
    assert max(share.values()) > 40 and tickets # one of the two was busy with the slow one


def test_a_replica_that_dies_gives_its_requests_back_and_comes_again(replicas, capsys):
    engine, answers = replicas(2), []
    victim = engine._live[0].process
    for c in engine.run(asked(200)):
        answers.append(c)
        if len(answers) == 20: os.kill(victim.process.pid, signal.SIGKILL)
    assert len(answers) == 200 and len({c.item_id for c in answers}) == 200
    assert "is gone; " in capsys.readouterr().out
    end = time.monotonic() + 20
    while engine.n_live < 2 and time.monotonic() < end:
        list(engine.run(asked(4)))
    assert engine.n_live == 2 and victim.process.poll() is not None


def test_without_restarts_the_others_do_the_rest_and_the_last_death_is_an_error(replicas):
    engine, answers = replicas(2, n_restarts=0), []
    for c in engine.run(asked(60)):
        answers.append(c)
        if len(answers) == 10: os.kill(engine._live[0].process.process.pid, signal.SIGKILL)
    assert len({c.item_id for c in answers}) == 60 and engine.n_live == 1
    with pytest.raises(EngineError, match=r"No replica is left.*The last to go, on") as e:
        list(engine.run([replace(r, prompt="die") for r in asked(1)]))
    assert e.value.retryable


def test_replicas_leave_no_process(replicas):
    before = set(psutil.Process().children(recursive=True))
    engine = replicas(2)
    mine = set(psutil.Process().children(recursive=True)) - before
    assert len(mine) >= 2
    engine.close()
    assert not psutil.wait_procs(mine, timeout=5)[1]


def test_a_replica_that_cannot_start_ends_the_others(replicas):
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(Exception, match="delay"): replicas(2, args={"delay": 1})
    assert not psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=5)[1]


def test_a_study_on_several_cards_starts_one_engine_that_holds_them(lab, monkeypatch):
    [run, *_] = plan(FOUR).runs
    located = type("Located", (), {"path": lab, "adapter": None})()
    p = replace(run.plan, device=replace(CARD, n_devices=2), located=located,
                engine=replace(run.plan.engine, name="vllm"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    name, path, args, _ = warm.engine_spec(replace(run, plan=p), 2048)
    assert name == warm.REPLICATED and path is None and args["cards"] == [["0"], ["1"]]
    assert args["name"] == "vllm" and args["path"] == str(lab) and args["args"]["max_model_len"] == 2048
    json.dumps(args)
    one = replace(p, device=replace(CARD, n_devices=1))
    assert warm.engine_spec(replace(run, plan=one), 2048)[:2] == ("vllm", lab)
    fake = {**args, "name": "fake", "path": None, "args": {}}
    with runner.EngineProcess(name, None, fake) as process, process.connect() as engine:
        assert len(list(engine.run(asked(20)))) == 20


# ---------------------------------------------------------------- the cache of answers
WHO = {"hub_id": "tiny", "revision": "1"}


def test_a_second_run_asks_nothing_and_says_so(lab):
    inner, file = FakeEngine("first-label"), lab / "answers.sqlite"
    how = {"allow_specimens": True, "progress": False, "limit": 3, "answer_tok": 17}
    def run(runs, **more):
        with CachedEngine(inner, AnswerCache(file), WHO) as engine:
            return evaluate("smollm2_135m", "gsm8k", engine=engine, runs=lab / runs, **how, **more)
    first, n = run("a"), inner.n_requests
    again = run("b")
    assert inner.n_requests == n == 3
    assert [c.text for c in again.completions().values()] == [c.text for c in first.completions().values()]
    assert all(c.from_cache and c.latency_s is None for c in again.completions().values())
    [session] = again.manifest["sessions"]
    assert session["n_from_cache"] == 3 and session["n_completions"] == session["n_output_tok"] == 0
    assert again.performance["output_tok_s"] is None and first.performance["n_completions"] == 3
    assert again.id == first.id and again.estimate().value == first.estimate().value
    twice = run("c", epochs=2)
    assert inner.n_requests == n + 3 # the second draw of each item is another question
    assert twice.manifest["sessions"][0]["n_from_cache"] == 3


def test_the_settings_and_the_environment_turn_it_on(lab, monkeypatch):
    how = {"engine": "fake", "allow_specimens": True, "progress": False, "limit": 3}
    def from_cache(runs):
        run = evaluate("smollm2_135m", "gsm8k", runs=lab / runs, **how)
        return sum(c.from_cache for c in run.completions().values())
    assert from_cache("a") == 0 and not (lab / "cache/answers.sqlite").exists()
    with open(lab / "settings.ini", "a") as f: f.write("[engine]\ncache = yes\n")
    monkeypatch.setenv("QWEN_EVAL_ANSWER_CACHE", "no")
    assert from_cache("b") == 0 and not (lab / "cache/answers.sqlite").exists()
    monkeypatch.delenv("QWEN_EVAL_ANSWER_CACHE")
    import qwen_eval.settings as s
    s._settings.cache_clear()
    assert from_cache("c") == 0 and from_cache("d") == 3
    [row] = cache_rows(lab / "cache/answers.sqlite")
    assert (row["n"], row["engine"]) == (3, "fake 1")


def test_the_command_line_turns_it_on_shows_it_and_empties_it(lab, monkeypatch):
    with open(lab / "settings.ini", "a") as f: f.write("[engine]\nengine = fake\n")
    code = "from qwen_eval.cli import main; main()"

    def say(*words, runs="runs"):
        env = {**os.environ, "QWEN_EVAL_RUNS": str(lab / runs)}
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout
    run = ("run", "smollm2_135m", "--benchmarks", "gsm8k", "--limit", "2", "--allow-specimens")
    assert "off" in say("cache", "show") and "empty" in say("cache", "show")
    say(*run, "--cache", runs="a")
    say(*run, "--no-cache", runs="b")
    say(*run, "--cache", runs="c")
    shown = json.loads(say("cache", "show", "--json"))
    assert not shown["on"] and shown["bytes"] > 0 and [e["n"] for e in shown["entries"]] == [2]
    [name] = [p.name for p in (lab / "c").iterdir() if (p / "manifest.json").exists()]
    assert "from cache  2" in say("runs", "show", name, runs="c")
    assert "from cache" not in say("runs", "show", name, runs="b")
    assert "0 answers removed" in say("cache", "prune", "--days", "1")
    assert "MiB freed" in say("cache", "clear") and "empty" in say("cache", "show")


def test_a_study_through_an_engine_process_uses_it(lab, monkeypatch):
    monkeypatch.setenv("QWEN_EVAL_ANSWER_CACHE", "yes")
    one = replace(FOUR, presets=("balanced",))
    def hits(runs):
        assert not run_study(one, runs=lab / runs, notebooks=False, stream=io.StringIO()).failures
        return [r.run().manifest["sessions"][0]["n_from_cache"] for r in plan(one, lab / runs).runs]
    assert hits("a") == [0, 0, 0, 0] and hits("b") == [3, 3, 3, 3]


def test_errors_are_not_kept_and_damage_is_asked_again(tmp_path):
    file, fails = tmp_path / "answers.sqlite", {"i1"}
    def answer(r):
        return Completion(item_id=r.item_id, finish_reason="error" if r.item_id in fails else "stop", text="x")
    inner = FakeEngine(answer)
    with CachedEngine(inner, AnswerCache(file), WHO) as e: list(e.run(asked(10)))
    fails.clear()
    with CachedEngine(inner, AnswerCache(file), WHO) as e: assert all(c.text == "x" for c in e.run(asked(10)))
    assert inner.n_requests == 11
    with sqlite3.connect(file) as db:
        [(key, value)] = db.execute("SELECT key, value FROM answers LIMIT 1").fetchall()
        db.execute("UPDATE answers SET value = ? WHERE key = ?", (value[:-1] + bytes([value[-1] ^ 1]), key))
        [(other, swapped, digest)] = db.execute("SELECT key, value, digest FROM answers WHERE key != ? LIMIT 1",
                                                (key,)).fetchall()
        [(third,)] = db.execute("SELECT key FROM answers WHERE key NOT IN (?, ?) LIMIT 1", (key, other)).fetchall()
        db.execute("UPDATE answers SET value = ?, digest = ? WHERE key = ?", (swapped, digest, third))
    with (pytest.warns(UserWarning, match=r"is damaged .* and is asked again") as told,
          CachedEngine(inner, AnswerCache(file), WHO) as e):
        answers = list(e.run(asked(10)))
    assert len(told) == 2 and inner.n_requests == 13 and len({c.item_id for c in answers}) == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with CachedEngine(inner, AnswerCache(file), WHO) as e: assert len(list(e.run(asked(10)))) == 10
    assert inner.n_requests == 13


WRITER = """
import sys
from qwen_eval.engines.cache import AnswerCache
from qwen_eval.records import Completion
cache, me = AnswerCache(sys.argv[1]), sys.argv[2]
for i in range(int(sys.argv[3])):
    cache.put(f"{me}-{i}".encode().ljust(32), Completion(item_id=f"{me}-{i}", text="x" * 200), "m", "e")
    if i == 100: print("going", flush=True)
cache.close()
"""


def test_several_processes_write_at_once_and_a_kill_leaves_whole_entries(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file, n = tmp_path / "answers.sqlite", 400
    def start(name, n): return subprocess.Popen([sys.executable, "-c", WRITER, str(file), name, str(n)],
                                                stdout=subprocess.PIPE, text=True)
    writers, victim = [start(f"w{i}", n) for i in range(3)], start("victim", 10**6)
    victim.stdout.readline()
    time.sleep(0.2)
    victim.kill()
    assert [w.wait(60) for w in writers] == [0, 0, 0] and victim.wait() == -signal.SIGKILL
    with sqlite3.connect(file) as db:
        keys = [bytes(k).decode().strip() for (k,) in db.execute("SELECT key FROM answers")]
    count = Counter(k.split("-")[0] for k in keys)
    assert [count[f"w{i}"] for i in range(3)] == [n] * 3 and count["victim"] > 64
    cache = AnswerCache(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(cache.get(k.encode().ljust(32)).item_id == k for k in keys)
    cache.close()


def test_pruned_by_age_size_and_model_and_the_room_goes_back(tmp_path):
    file, now = tmp_path / "answers.sqlite", time.time()
    cache = AnswerCache(file)
    for i in range(300):
        cache.put(i.to_bytes(32, "big"), Completion(item_id=f"i{i}", text=os.urandom(3000).hex()), "ab"[i % 2], "e")
    cache.close()
    with sqlite3.connect(file) as db:
        db.execute("UPDATE answers SET used = ? WHERE model = 'a' AND key < ?",
                   (now - 86400 * 40, (100).to_bytes(32, "big")))
    size = file.stat().st_size
    assert prune_cache(file, days=50) == 0 and prune_cache(file, days=30) == 50 and prune_cache(file, model="a") == 100
    [row] = cache_rows(file)
    assert (row["model"], row["n"]) == ("b", 150) and file.stat().st_size < 0.6 * size
    assert prune_cache(file, gib=row["mib"] / 1024 / 2) in (75, 76)
    assert sum(r["mib"] for r in cache_rows(file)) <= row["mib"] / 2


def test_it_keeps_the_promises_of_the_engine_inside(tmp_path):
    file = tmp_path / "answers.sqlite"
    with CachedEngine(FakeEngine(window=8), AnswerCache(file), WHO) as e: list(e.run(asked(1000)[::2]))
    pulled = []
    def source():
        for r in asked(5000): pulled.append(r); yield r
    with CachedEngine(FakeEngine(window=8), AnswerCache(file), WHO) as e:
        run = e.run(source())
        first = [next(run) for _ in range(100)]
        assert len(pulled) < 100 + e.held + 3 * 8 # no more than wait, and what the engine takes
        run.close()
        assert not e.engine._waiting and len({c.key for c in first}) == 100
        answers = [c for pair in zip(e.run(asked(40)), e.run(asked(80)[40:]), strict=True) for c in pair]
        assert {c.item_id for c in answers} == {r.item_id for r in asked(80)}


def test_what_shapes_an_answer_and_what_does_not():
    info = replace(FakeEngine().info, name="vllm",
                   args={"max_num_seqs": 64, "max_model_len": 512, "load_format": "auto"},
                   effective={"max_num_seqs": 64, "n_blocks": 5, "checkpoint": "/a"})
    who = identity(WHO, info)
    same = [replace(info, args={**info.args, "max_model_len": 1024, "gpu_memory_utilization": 0.5}),
            replace(info, effective={**info.effective, "n_blocks": 9, "checkpoint": "/b", "start_s": 3.0})]
    other = [replace(info, args={**info.args, "load_format": "dummy"}), replace(info, dtype="float16"),
             replace(info, effective={**info.effective, "max_num_seqs": 32}), replace(info, version="2"),
             replace(info, device="cuda"), replace(info, name="transformers")]
    [ask] = asked(1)
    key = cache_key(ask, who)
    assert {cache_key(ask, identity(WHO, i)) for i in same} == {key}
    assert len({cache_key(ask, identity(WHO, i)) for i in other} | {key}) == len(other) + 1
    assert cache_key(ask, identity({**WHO, "revision": "2"}, info)) != key
    assert cache_key(ask, identity({**WHO, "adapter": "a"}, info)) != key
    odd = replace(ask, prompt="half a pair \ud83d")
    assert cache_key(odd, who) == cache_key(odd, who) != key


# ---------------------------------------------------------------- notebooks that do not let an engine wait
def test_a_notebook_starts_before_the_last_has_ended_and_waits_for_its_turn(lab, counting, monkeypatch):
    study, log = replace(FOUR, presets=("balanced",), benchmarks=("gsm8k", "arc_challenge", "humaneval")), []

    def notebook(run, study, folder, address, say): # a kernel's work, in this thread
        log.append(("starts", run.benchmark))
        before = plan(study).runs[:study.benchmarks.index(run.benchmark)]
        assert all(r.n_done() == r.n_answers for r in before)
        how = {"allow_specimens": True, "limit": 3, "answer_tok": 17, "progress": False}
        evaluate(run.model, run.benchmark, run.preset, engine="fake", engine_address=address, runs=run.plan.runs, **how)
        time.sleep(1.5) # tables, and the end of a kernel
        log.append(("ends", run.benchmark))
    monkeypatch.setattr(runner, "run_notebook", notebook)
    outcome = run_study(study, stream=io.StringIO())
    assert not outcome.failures and len(outcome.rows) == 3
    at = {what: i for i, what in enumerate(log)}
    for a, b in zip(study.benchmarks, study.benchmarks[1:], strict=False):
        assert at["starts", a] < at["starts", b] < at["ends", a]


def test_who_asks_a_shared_engine_waits_for_the_one_before(lab, monkeypatch):
    import qwen_eval.evaluation as evaluation
    real, spans = evaluation._ask, []

    def timed(*a, **k):
        begin = time.monotonic()
        real(*a, **k)
        spans.append((begin, time.monotonic()))
    monkeypatch.setattr(evaluation, "_ask", timed)
    how = {"allow_specimens": True, "limit": 3, "engine": "fake", "progress": False, "runs": lab / "runs"}
    with runner.EngineProcess("fake", None, {"delay_s": 0.2}, log_dir=lab) as process:
        turn, done = Path(f"{process.address}.turn"), []
        turn.touch()

        def ask(benchmark):
            run = evaluate("smollm2_135m", benchmark, engine_address=process.address, **how)
            done.append(run.manifest["sessions"][0])
        threads = [threading.Thread(target=ask, args=(b,)) for b in ("gsm8k", "arc_challenge")]
        for t in threads: t.start()
        for t in threads: t.join()
    (_, first_end), (second_begin, _) = sorted(spans)
    assert first_end <= second_begin + 0.05 # their speeds do not mix
    assert all(s["engine_start_s"] < 0.5 for s in done) # the wait is no start of an engine
