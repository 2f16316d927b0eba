"Engines behind an API against a server that misbehaves: nothing lost, nothing doubled, attempts kept, no key anywhere."
import asyncio
import itertools
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from qwen_eval.datasets.base import ItemSet
from qwen_eval.engines.all import start
from qwen_eval.engines.anthropic import AnthropicEngine
from qwen_eval.engines.cache import cache_key, identity
from qwen_eval.engines.openai_api import OpenAIEngine
from qwen_eval.errors import ConfigError, EngineError
from qwen_eval.evaluation import evaluate
from qwen_eval.judging import jury_for
from qwen_eval.models import Model
from qwen_eval.plans import plan_run
from qwen_eval.records import Item, Request
from qwen_eval.store import read_completions, read_manifest

SECRET = "sk-8fJq2-never-written-anywhere"
ITEMS = ItemSet(benchmark_id="gsm8k", source="made for a test", item_set_hash="made", verified="verified", items=tuple(
    Item(id=f"gsm8k/test/{i}", question=f"What is {i} + {i}?", target=str(2 * i), row=i) for i in range(60)))
MODEL = Model(id="mine", api_id="mine-1", tool_format="native_api", thinking="none")


class Server:
    "OpenAI's protocol by aiohttp, in a thread; `mood(number, how often that number was asked)` says what goes wrong."
    def __init__(self, mood=lambda i, n: "", port=0, owner="else"):
        self.mood, self.owner, self.heard, self.keys, self.bodies = mood, owner, Counter(), set(), []
        self.loop, self.port, ready = asyncio.new_event_loop(), port, threading.Event()
        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(self.serve(ready)), daemon=True)
        self.thread.start()
        assert ready.wait(10)

    async def serve(self, ready):
        from aiohttp import web
        self.over = asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/messages", self.chat)
        app.router.add_post("/v1/moved/chat/completions", self.chat)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        ready.set()
        await self.over.wait()
        for t in [*runner.server.connections]: t.force_close()
        await runner.cleanup()

    def stop(self):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(10)

    def __enter__(self): return self
    def __exit__(self, *_): self.stop()

    @property
    def url(self): return f"http://127.0.0.1:{self.port}/v1"

    names = ("mine-1",)

    def number(self, text): return int(text.split()[2])

    async def models(self, request):
        from aiohttp import web
        return web.json_response({"data": [{"id": n, "owned_by": self.owner} for n in self.names]})

    async def chat(self, request):
        from aiohttp import web
        body = await request.json()
        key = request.headers.get("Authorization") or request.headers.get("x-api-key")
        text = next(m["content"] for m in body["messages"] if m["role"] == "user")
        text = text if isinstance(text, str) else text[0]["text"]
        i = self.number(text)
        n = self.heard[i] = self.heard[i] + 1
        self.keys.add(key), self.bodies.append(body)
        mood = self.mood(i, n)
        if mood == "hang": await asyncio.sleep(30)
        if mood == "close": request.transport.close()
        if mood.isdecimal():
            after = {"429": "1", "503": formatdate(time.time() + 1, usegmt=True)}.get(mood)
            return web.json_response({"error": {"message": f"no, not with {key}"}}, status=int(mood),
                                     headers={"Retry-After": after} if after else {})
        answer = f"It is \\boxed{{{2 * i}}}."
        turn = {"role": "assistant", "content": answer}
        reply = {"choices": [{"index": 0, "message": turn, "finish_reason": "stop"}],
                 "usage": {"prompt_tokens": 20, "completion_tokens": 10}}
        if request.path == "/v1/messages":
            reply = {"content": [{"type": "text", "text": answer}], "stop_reason": "end_turn",
                     "usage": {"input_tokens": 20, "output_tokens": 10}}
        data = json.dumps(reply).encode()
        if mood == "nonsense": data = data[:-9]
        if mood == "shape": data = b'{"choices": []}'
        if mood == "empty": data = b""
        if mood == "moved": raise web.HTTPTemporaryRedirect("/v1/moved/chat/completions")
        whole = web.Response(body=data, content_type="application/json")
        if mood == "zipped": whole.enable_compression(web.ContentCoding.gzip)
        if mood == "chunked": whole.enable_chunked_encoding()
        if mood != "cut": return whole
        cut = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await cut.prepare(request)
        await cut.write(data[:40])
        request.transport.close()
        return cut


MOODS = ("429", "500", "502", "503", "hang", "close", "cut", "nonsense", "shape", "empty")


@pytest.fixture(autouse=True)
def _key(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"): monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("QWEN_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("qwen_eval.engines.access.Access.limits", property(lambda a: {
        "concurrency": a.concurrency, "timeout_s": a.timeout_s, "attempts": a.attempts, "patience_s": a.patience_s,
        "stream": a.stream, "backoff_s": 0.02}))


def run(server, tmp_path, model=MODEL, engine="openai", **how):
    how = {"limit": 60, "answer_tok": 64, "concurrency": 8, "timeout_s": 1.5, "patience_s": 5, **how}
    return evaluate(model, "gsm8k", engine=engine, base_url=getattr(server, "url", server), item_set=ITEMS,
                    runs=tmp_path / "runs", progress=False, **how)


def lines(r): return read_completions(r.path / "completions.jsonl")[0]


def assert_no_key(folder):
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert files and not [f for f in files if SECRET.encode() in f.read_bytes()]


def test_a_server_that_misbehaves(tmp_path, capfd):
    def mood(i, n):
        if i % 3 == 0 and n == 1: return MOODS[i % 10]
        return MOODS[(i + n) % 10] if i % 7 == 0 and n < 4 else ""
    with Server(mood) as server:
        r = run(server, tmp_path)
        kept = lines(r)
        assert Counter(c.key for c in kept) == {(i.id, 0): 1 for i in ITEMS.items}
        assert r.counts["scored"] == 60 and r.scores.value.eq(1).all()
        said = {c.item_id: c.n_attempts for c in kept}
        assert said == {f"gsm8k/test/{i}": server.heard[i] for i in range(60)} # each call was counted
        assert max(said.values()) == 4 and server.keys == {f"Bearer {SECRET}"}
    assert_no_key(tmp_path)
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("mood, calls", [("", 1), ("chunked", 1), ("zipped", 2), ("moved", 3)])
def test_a_reply_beyond_plain_lines_is_left_to_a_general_client(mood, calls):
    ask = Request(item_id="1", messages=({"role": "user", "content": "What is 1 + 1?"},))
    before = sys.getswitchinterval()
    with Server(lambda i, n: mood if n < calls or calls == 1 else "") as server, \
            OpenAIEngine(server.url, "mine-1", backoff_s=0.02) as engine:
        found = [*engine.run([ask])]
        assert [(c.text, c.n_attempts) for c in found] == [("It is \\boxed{2}.", min(calls, 2))]
        assert server.heard[1] == calls and server.keys == {f"Bearer {SECRET}"}
        assert bool(engine._session) == (calls > 1) # lines are not tried again
        engine.close()
    assert sys.getswitchinterval() == before


def test_what_never_works_is_an_error_with_its_reason_and_is_asked_again(tmp_path):
    with Server(lambda i, n: {5: "400", 6: "500"}.get(i, "")) as server:
        r = run(server, tmp_path, attempts=3)
        bad = {c.item_id: c for c in lines(r) if c.finish_reason == "error"}
        assert r.counts["engine_error"] == 2 and server.heard[5] == 1 and server.heard[6] == 3
        assert "400" in bad["gsm8k/test/5"].error and "3 calls failed" in bad["gsm8k/test/6"].error
        assert bad["gsm8k/test/6"].n_attempts == 3 and "[OPENAI_API_KEY]" in bad["gsm8k/test/5"].error
        server.mood = lambda i, n: ""
        assert run(server, tmp_path).counts["scored"] == 60
        assert sum(server.heard.values()) == 58 + 1 + 3 + 2
    assert_no_key(tmp_path)


@pytest.mark.parametrize("status", ["401", "404"])
def test_what_would_be_the_same_for_all_stops_the_run(tmp_path, status):
    with Server(lambda i, n: status) as server, pytest.raises(EngineError, match=status) as said:
        run(server, tmp_path)
    assert SECRET not in str(said.value) and "0 of 60 answers" in str(said.value)
    assert_no_key(tmp_path)


def test_death_and_return_within_patience(tmp_path):
    servers = [Server(lambda i, n: "hang" if n == 1 and i in (1, 2, 3) else "")]
    def die():
        while sum(servers[0].heard.values()) < 20: time.sleep(0.005)
        servers[0].stop()
        time.sleep(1)
        servers.append(Server(port=servers[0].port))
    killer = threading.Thread(target=die)
    killer.start()
    r = run(servers[0], tmp_path)
    killer.join()
    servers[1].stop()
    assert Counter(c.item_id for c in lines(r)) == {i.id: 1 for i in ITEMS.items} and r.scores.value.eq(1).all()
    assert all(s.heard for s in servers)


def test_a_dead_server_stops_the_run_which_goes_on_when_it_is_back(tmp_path):
    first = Server()
    def die():
        while sum(first.heard.values()) < 20: time.sleep(0.005)
        first.stop()
    killer = threading.Thread(target=die)
    killer.start()
    with pytest.raises(EngineError, match=r"answers of run .* are stored") as said: run(first, tmp_path, patience_s=0.5)
    killer.join()
    assert said.value.retryable
    done = {c.key for f in (tmp_path / "runs").glob("*/completions.jsonl") for c in read_completions(f)[0]}
    assert 0 < len(done) < 60
    with Server(port=first.port) as again:
        r = run(again, tmp_path)
        assert sum(again.heard.values()) == 60 - len(done) # nothing is asked twice
        assert Counter(c.key for c in lines(r)).most_common(1)[0][1] == 1 and r.counts["scored"] == 60
    r = run(again, tmp_path) # all is there: the server is not needed
    assert r.counts["scored"] == 60


def test_a_budget_stops_cleanly_and_the_same_command_goes_on(tmp_path):
    priced = replace(MODEL, usd_per_mtok=(1.0, 10.0))
    with Server() as server:
        spent = 0
        for sitting in itertools.count(1):
            try: r = run(server, tmp_path, priced, budget_usd=0.004); break
            except EngineError as e: assert "budget" in str(e) and "stored" in str(e)
            now = sum(server.heard.values())
            assert 0 < (now - spent) * (20 * 1 + 10 * 10) / 1e6 <= 0.004 # never more than the budget
            spent = now
            assert sitting < 20
        assert sitting > 1 and sum(server.heard.values()) == 60 and r.counts["scored"] == 60
        with pytest.raises(ConfigError, match="prices"): run(server, tmp_path, budget_usd=1)


def test_every_field_is_sent_and_what_cannot_be_is_said(tmp_path):
    with Server() as server:
        r = run(server, tmp_path, limit=2)
        sent = server.bodies[0]
        assert {k: sent[k] for k in ("model", "temperature", "top_p", "max_tokens", "n", "presence_penalty")} == {
            "model": "mine-1", "temperature": 0, "top_p": 1, "max_tokens": 64, "n": 1, "presence_penalty": 0}
        m = read_manifest(r.path)
        assert "server-sampling" in m["marks"] and m["sessions"][0]["engine"]["effective"]["not_sent"] == [
            "top_k", "repetition_penalty"]
        assert m["fingerprint"]["engine"]["args"] == {"base_url": server.url, "model": "mine-1", "server": "other",
                                                      "route": "chat"}
        assert "not known" in m["sessions"][0]["engine"]["effective"]["batch_settings"]
        with pytest.raises(ConfigError, match="top_k=20"): run(server, tmp_path, top_k=20, temperature=0.7)
        heard = sum(server.heard.values())
        with pytest.raises(ConfigError, match="log-probabilities"):
            plan_run(MODEL, "hellaswag", engine="openai", base_url=server.url, allow_specimens=True, runs=tmp_path)
        p = plan_run(replace(MODEL, variant="base"), "arc_challenge", engine="openai", base_url=server.url,
                     allow_specimens=True, runs=tmp_path) # wants continuations by default
        assert p.variant.mode == "generate" and p.variant.chat and sum(server.heard.values()) == heard
        with pytest.raises(ConfigError, match="base_url"): plan_run(MODEL, "gsm8k", engine="fake", base_url=server.url)


def test_an_engine_that_runs_is_the_same_run(tmp_path):
    with Server() as server:
        r = run(server, tmp_path, limit=4)
        with OpenAIEngine(server.url, "mine-1") as engine:
            again = evaluate(MODEL, "gsm8k", engine=engine, item_set=ITEMS, limit=6, answer_tok=64, progress=False,
                             runs=tmp_path / "runs")
        assert again.path == r.path and sum(server.heard.values()) == 6


def test_anthropic(tmp_path):
    with Server(lambda i, n: "529" if i == 2 and n == 1 else "") as server:
        r = run(server, tmp_path, engine="anthropic")
        assert r.counts["scored"] == 60 and r.scores.value.eq(1).all() and server.keys == {SECRET}
        assert r.manifest["fingerprint"]["engine"]["name"] == "anthropic"
        assert "server-sampling" not in r.manifest["marks"]
        with AnthropicEngine("mine-1", server.url) as engine, pytest.raises(EngineError, match="turns"):
            for c in engine.run([Request(item_id="q")]): raise EngineError(c.error)
    assert_no_key(tmp_path)


def test_the_cache_tells_thinking_from_not_thinking(tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN_EVAL_ANSWER_CACHE", "yes")
    model = replace(MODEL, thinking="switch")
    thinks = {"protocol": "qwen3_thinking", "epochs": 1, "thinking_tok": 64}
    plain = {"protocol": "qwen3_nonthinking", "epochs": 1, "answer_tok": 128, "temperature": 0.6, "top_p": 0.95}
    with Server(owner="vllm") as server:
        found = [lines(run(server, tmp_path / str(n), model, limit=3, **{"answer_tok": 64, **way}))
                 for n, way in enumerate((thinks, plain, thinks, plain))]
        assert len({(b["temperature"], b["top_p"], b["top_k"], b["max_tokens"]) for b in server.bodies}) == 1
        assert [b["chat_template_kwargs"]["enable_thinking"] for b in server.bodies] == [True] * 3 + [False] * 3
        assert [[c.from_cache for c in said] for said in found] == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]


def test_the_cache_knows_the_budget_of_claudes_thinking():
    [ask] = [Request(item_id="q", messages=({"role": "user", "content": "What is 1?"},), max_tok=4096)]
    keys = []
    for tok in (0, 1024, 2048):
        with AnthropicEngine("mine-1", thinking_tok=tok) as engine:
            keys.append(cache_key(ask, identity({}, engine.info)))
    assert len(set(keys)) == 3


OTHER = Model(id="other", api_id="mine-2", tool_format="native_api", thinking="none")


@pytest.mark.parametrize("judge, judge_engine", [(MODEL, None), ("mine", "openai"), (OTHER, None), (OTHER, "openai")])
def test_what_a_call_says_of_an_api_holds_for_its_judge(tmp_path, judge, judge_engine):
    with Server() as server:
        server.number, server.names = lambda text: 1, ("mine-1", "mine-2")
        r = evaluate(MODEL, "mt_bench", engine="openai", base_url=server.url, judge=judge, judge_engine=judge_engine,
                     limit=2, answer_tok=32, source="specimen", runs=tmp_path, progress=False, concurrency=3,
                     budget_tok=10**6, served_model="mine-1")
        assert Counter(b["model"] for b in server.bodies) == (
            {"mine-1": 4, "mine-2": 4} if judge is OTHER else {"mine-1": 8})
        [session] = read_manifest(next((r.path / "judgments").iterdir()))["sessions"]
        assert session["engine"]["effective"]["concurrency"] == 3 and len(r.judgments()) == 4


def test_who_thinks_while_it_answers_does_not_think_while_it_judges(tmp_path):
    with Server(owner="vllm") as server:
        server.number = lambda text: 1
        r = evaluate(replace(MODEL, thinking="switch"), "mt_bench", engine="openai", base_url=server.url, judge="mine",
                     protocol="qwen3_thinking", thinking_tok=64, answer_tok=32, limit=2, source="specimen",
                     runs=tmp_path, progress=False)
        asked = Counter(b["chat_template_kwargs"]["enable_thinking"] for b in server.bodies)
        assert asked == {True: len(r.completions()) * 2, False: len(r.judgments())}
        assert "self-judged" in r.manifest["marks"]


def test_a_budget_bounds_the_judge_and_no_key_goes_to_another_address():
    def plan(model, judge, **said):
        p = plan_run(model, "mt_bench", engine="openai", source="specimen", limit=2, budget_tok=5000, **said)
        return jury_for(p, judge, "openai")[1].plan.server
    with Server() as one, Server() as two:
        one.names = two.names = ("mine-1", "mine-2")
        here = plan(MODEL, OTHER, base_url=one.url, key_env="ANTHROPIC_API_KEY", route="chat")
        assert (here["base_url"], here["key_env"], here["budget_tok"]) == (one.url, "ANTHROPIC_API_KEY", 5000)
        away = replace(OTHER, base_url=two.url)
        there = plan(MODEL, away, base_url=one.url, key_env="ANTHROPIC_API_KEY")
        assert (there["base_url"], there["key_env"], there["budget_tok"]) == (two.url, "OPENAI_API_KEY", 5000)


def test_password_of_an_address_is_used_and_never_written(tmp_path):
    with Server() as server:
        r = run(server.url.replace("//", f"//me:{SECRET}@"), tmp_path, limit=3)
        assert next(iter(server.keys)) == f"Bearer {SECRET}" and r.counts["scored"] == 3
    assert_no_key(tmp_path)


def test_who_leaves_early_leaves_nothing_under_way():
    def asked(n): return (Request(item_id=str(i), messages=({"role": "user", "content": f"What is {i} + {i}?"},))
                          for i in range(n))
    with Server(lambda i, n: "hang" if i else "") as server, \
            start("openai", None, {"base_url": server.url, "model": "m"}) as e:
        reader = e.run(asked(9))
        assert next(reader).item_id == "0"
        reader.close()
        assert not e._tasks and not e._fresh and not e._ready
        server.mood = lambda i, n: ""
        assert len(list(e.run(asked(100)))) == 100


def test_a_study_needs_no_engine_process(tmp_path, monkeypatch):
    from qwen_eval.runner import run_study
    from qwen_eval.studies import Study
    monkeypatch.setenv("QWEN_EVAL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("qwen_eval.runner.EngineProcess", None) # would be called
    monkeypatch.setattr(Server, "chat", _always)
    asked = Study(id="apis", models=("some-model-at-an-api",), benchmarks=("gsm8k",), engine="openai", limit=2,
                  served_model="mine-1", allow_specimens=True, answer_tok=64)
    with Server() as server: done = run_study(replace(asked, base_url=server.url), notebooks=False)
    assert not done.failures and done.rows[0]["model"] == "some-model-at-an-api"
    assert_no_key(tmp_path)
    with pytest.raises(ConfigError, match="password"):
        run_study(replace(asked, base_url="http://me:x@127.0.0.1:1/v1"), notebooks=False)


async def _always(self, request):
    from aiohttp import web
    await request.read()
    return web.json_response({"choices": [{"message": {"content": "\\boxed{1}"}, "finish_reason": "stop"}]})


def test_names_in_the_settings_reach_the_engine(tmp_path, monkeypatch):
    file = tmp_path / "settings.ini"
    with Server() as server:
        file.write_text(f"[engine]\nengine = openai\nbase_url = {server.url}\nconcurrency = 3\n\n"
                        "[model.other]\napi_id = mine-1\nkey_env = OTHER_KEY\nusd_per_mtok = 3, 15\n")
        monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(file))
        monkeypatch.setenv("OTHER_KEY", "other")
        r = evaluate("other", "gsm8k", item_set=ITEMS, limit=3, answer_tok=64, runs=tmp_path / "runs", progress=False)
        assert server.keys == {"Bearer other"} and r.manifest["sessions"][0]["engine"]["effective"]["concurrency"] == 3
    assert Path(tmp_path / "cache" / "servers.json").is_file()


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"timeout_s": -1}, {"timeout_s": float("nan")}, {"budget_usd": -3},
                                   {"patience_s": float("inf")}, {"concurrency": 0}])
def test_a_number_that_no_call_can_be_made_with_is_refused_before_one_is(tmp_path, wrong):
    with Server() as server, pytest.raises(ConfigError, match=next(iter(wrong))):
        run(server, tmp_path, **wrong)
    assert not server.heard and not (tmp_path / "runs").exists()


def test_an_address_without_its_v1_is_said_before_work_starts(tmp_path):
    with Server() as server, pytest.raises(ConfigError, match=r"/v1 does: base_url goes up to and including /v1"):
        run(server.url.removesuffix("/v1"), tmp_path)
    assert not server.heard and not (tmp_path / "runs").exists()
