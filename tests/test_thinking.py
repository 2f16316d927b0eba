"Thinking ended at a budget: in the plan, in the requests, in the fingerprint, and only where the engine can."
from dataclasses import replace

import pytest

from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError
from qwen_eval.evaluation import evaluate
from qwen_eval.plans import fingerprint, plan_run
from qwen_eval.protocols import thinking_end

HOW = {"protocol": "qwen3_thinking", "epochs": 1, "thinking_tok": 400, "answer_tok": 64, "source": "specimen"}


def planned(tmp_path, **more):
    return plan_run("qwen3_8b", "gsm8k", engine=FakeEngine(), runs=tmp_path, **{**HOW, **more})


def test_a_request_says_where_thinking_ends_and_with_what(tmp_path):
    plan = planned(tmp_path, end_thinking=True)
    asked = list(plan.requests(plan.items))
    assert asked and all(r.thinking_tok == 400 and r.max_tok == 464 for r in asked)
    assert {plan.tokenizer.decode(r.thinking_end) for r in asked} == {thinking_end(plan.model)}
    free = list(planned(tmp_path).requests(plan.items))
    assert all(not r.thinking_tok and not r.thinking_end and r.max_tok == 464 for r in free)
    assert {r.prompt_hash for r in asked}.isdisjoint(r.prompt_hash for r in free)


def test_it_is_another_run(tmp_path):
    bound, free = planned(tmp_path, end_thinking=True), planned(tmp_path)
    assert bound.path != free.path and "end_thinking" not in fingerprint(free)["protocol"]
    told = fingerprint(bound)["protocol"]["end_thinking"]
    assert told == {"thinking_tok": 400, "text": thinking_end(bound.model)}
    other = planned(tmp_path, end_thinking=True, thinking_tok=350, answer_tok=114) # the same sum
    assert other.path != bound.path


def test_where_the_context_is_short_thinking_becomes_shorter(tmp_path):
    plan = planned(tmp_path, end_thinking=True)
    longest = max(len(r.prompt_ids) for r in plan.requests(plan.items))
    narrow = replace(plan, model=replace(plan.model, context_tok=longest + 300))
    asked = max(narrow.requests(plan.items), key=lambda r: len(r.prompt_ids))
    assert asked.max_tok == 300 and asked.thinking_tok == 300 - 64
    tight = replace(plan, model=replace(plan.model, context_tok=longest + 70))
    asked = max(tight.requests(plan.items), key=lambda r: len(r.prompt_ids))
    assert asked.max_tok == 70 and not asked.thinking_tok # no room for the words that would end it


def test_what_cannot_be_is_said_before_anything_is_asked(tmp_path):
    with pytest.raises(ConfigError, match="the words that end thinking take"):
        list(planned(tmp_path, end_thinking=True, thinking_tok=20).requests(planned(tmp_path).items))
    with pytest.raises(ConfigError, match="end_thinking is True; it must be false without thinking"):
        planned(tmp_path, protocol="greedy", thinking_tok=0, end_thinking=True)
    engine = FakeEngine()
    engine.capabilities = replace(engine.capabilities, thinking_budget=False)
    with pytest.raises(ConfigError, match="cannot end thinking"):
        evaluate("qwen3_8b", "gsm8k", engine=engine, runs=tmp_path, progress=False, end_thinking=True, **HOW)
    assert engine.n_requests == 0
    evaluate("qwen3_8b", "gsm8k", engine=engine, runs=tmp_path, progress=False, **HOW)
    assert engine.n_requests > 0


def test_an_answer_after_an_ended_thought_is_kept_with_its_mark(tmp_path):
    from qwen_eval.records import Completion
    def said(r): return Completion(item_id="", text="The answer is 4.", thinking="so", n_thinking_tok=9,
                                   thinking_forced=r.thinking_tok > 0)
    how = {**HOW, "end_thinking": True, "progress": False}
    run = evaluate("qwen3_8b", "gsm8k", engine=FakeEngine(said), runs=tmp_path, **how)
    assert all(c.thinking_forced for c in run.completions().values())
    assert '"thinking_forced":true' in (run.path / "completions.jsonl").read_text()
