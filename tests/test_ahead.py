"Large new runs on an engine that runs: asked while their prompts are still built, and no less careful for it."
import threading
from dataclasses import replace

import pytest

import qwen_eval.opening
import qwen_eval.plans
from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import load
from qwen_eval.engines.base import EngineInfo, FakeEngine
from qwen_eval.errors import ConfigError
from qwen_eval.evaluation import evaluate

N = 600


@pytest.fixture(scope="module")
def many():
    found = load(benchmark("gsm8k"), source="specimen")
    items = [replace(found.items[i % len(found.items)], id=f"many/{i}") for i in range(N)]
    return replace(found, items=tuple(items))


def ask(engine, many, tmp_path, **how):
    return evaluate("qwen3_8b", "gsm8k", engine=engine, item_set=many, runs=tmp_path, progress=False,
                    **{"answer_tok": 16, **how})


@pytest.fixture
def watched(monkeypatch):
    "What happens to the n-th prompt that is built: a function of n and the request, that gives the request."
    held, build = {"change": lambda n, r: r, "threads": set()}, qwen_eval.plans.build_requests
    def stream(*args, **kw):
        for n, r in enumerate(build(*args, **kw)):
            held["threads"].add(threading.current_thread())
            yield held["change"](n, r)
    monkeypatch.setattr(qwen_eval.plans, "build_requests", stream)
    return held


def test_the_engine_is_asked_before_the_last_prompt_is_there(many, tmp_path, watched):
    asked = threading.Event()
    class Told(FakeEngine):
        def submit(self, request):
            asked.set()
            return super().submit(request)
    def wait(n, r):
        if n == 500: assert asked.wait(timeout=20), "every prompt was waited for"
        return r
    watched["change"] = wait
    run = ask(Told(), many, tmp_path)
    assert len(run.completions()) == N == sum(run.counts.values())


def test_it_makes_the_same_run(many, tmp_path, monkeypatch):
    def said(r): return f"It is {len(r.item_id)}."
    early = ask(FakeEngine(said), many, tmp_path / "a")
    monkeypatch.setattr(qwen_eval.opening, "HEAD", 10**9)
    late = ask(FakeEngine(said), many, tmp_path / "b")
    def kept(run): return {k: (c.text, c.prompt_hash) for k, c in run.completions().items()}
    assert kept(early) == kept(late) and early.id == late.id and early.counts == late.counts
    engine = FakeEngine(said)
    ask(engine, many, tmp_path / "a")
    assert engine.n_requests == 0 # nothing is missing


@pytest.mark.parametrize("what", ["wrong", "long"])
def test_what_cannot_be_asked_stops_the_run_and_keeps_the_answers(many, tmp_path, watched, what):
    def spoil(n, r):
        if n != 500: return r
        if what == "wrong": raise ConfigError("the choice of this item is empty")
        return replace(r, prompt_ids=r.prompt_ids * 90)
    watched["change"] = spoil
    engine = FakeEngine(window=64)
    engine.info = EngineInfo(name="fake", version="1", effective={"max_model_len": 2048})
    with pytest.raises(ConfigError, match="empty" if what == "wrong" else "holds 2048 tokens"):
        ask(engine, many, tmp_path)
    assert 0 < engine.n_requests < N and not engine._waiting
    stored = next(tmp_path.glob("*/completions.jsonl")).read_text().count("\n")
    for t in watched["threads"]: assert t is threading.main_thread() or (t.join(5), not t.is_alive())[1]
    watched["change"] = lambda n, r: r
    again = FakeEngine(window=64)
    again.info = engine.info
    assert len(ask(again, many, tmp_path).completions()) == N and again.n_requests == N - stored


def test_what_the_first_prompts_show_is_said_before_anything_is_asked(many, tmp_path):
    engine = FakeEngine()
    engine.info = EngineInfo(name="fake", version="1", effective={"max_model_len": 20})
    with pytest.raises(ConfigError, match="holds 20 tokens"): ask(engine, many, tmp_path)
    assert engine.n_requests == 0 and not list(tmp_path.glob("*/completions.jsonl"))


def test_who_stops_early_leaves_no_thread(many, tmp_path, watched):
    class Pressed(FakeEngine):
        def step(self):
            if self.n_requests > 20: raise KeyboardInterrupt
            return super().step()
    with pytest.raises(KeyboardInterrupt): ask(Pressed(), many, tmp_path)
    for t in watched["threads"]: assert t is threading.main_thread() or (t.join(5), not t.is_alive())[1]
