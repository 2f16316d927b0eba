"Measuring speed: loads, definitions, a server whose times are known, the command, the figure and the template."
import asyncio
import json
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny_qwen3
from typer.testing import CliRunner

from qwen_eval.bench.measure import BenchResult, read_bench, run_bench, summarise, times_of
from qwen_eval.bench.targets import EngineTarget, ServerTarget, Timing, started
from qwen_eval.bench.workloads import Workload, arrivals, random_requests
from qwen_eval.cli import app
from qwen_eval.engines.base import FakeEngine
from qwen_eval.errors import ConfigError, EngineError, IntegrityError
from qwen_eval.performance_figures import bench_figure, save_bench_figure

ROOT = Path(__file__).resolve().parent.parent
SMALL = Workload(n_requests=12, n_prompt_tok=8, n_output_tok=4)


# ---------------------------------------------------------------- a server whose times are known
class Server:
    "Streams `n` pieces, the first after `first_s`, then one every `gap_s`; notes what it was asked."
    def __init__(self, n=4, first_s=0.05, gap_s=0.02, fail=lambda k: False):
        self.n, self.first_s, self.gap_s, self.fail = n, first_s, gap_s, fail
        self.asked, self.headers, self.flying, self.most = [], [], 0, 0

    async def models(self, request):
        from aiohttp import web
        return web.json_response({"data": [{"id": "known"}]})

    async def answer(self, request):
        from aiohttp import web
        self.asked.append(await request.json())
        self.headers.append(dict(request.headers))
        if self.fail(len(self.asked)): return web.Response(status=503, text="busy")
        self.flying += 1
        self.most = max(self.most, self.flying)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        chat = "messages" in self.asked[-1]
        async def say(event): await stream.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if chat: await say({"choices": [{"delta": {"role": "assistant"}}]})
        for i in range(self.n):
            await asyncio.sleep(self.gap_s if i else self.first_s)
            await say({"choices": [{"delta": {"content": "x"}} if chat else {"text": "x"}]})
        await stream.write(b": ping\n\n")
        await say({"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": self.n}})
        await stream.write(b"data: [DONE]\n\n")
        self.flying -= 1
        return stream


@contextmanager
def serving(server):
    from aiohttp import web
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), []
    async def begin():
        site = web.Application()
        site.add_routes([web.get("/v1/models", server.models), web.post("/v1/completions", server.answer),
                         web.post("/v1/chat/completions", server.answer)])
        runner = web.AppRunner(site)
        await runner.setup()
        place = web.TCPSite(runner, "127.0.0.1", 0)
        await place.start()
        port.append(place._server.sockets[0].getsockname()[1])
        ready.set()
    def run():
        loop.run_until_complete(begin())
        loop.run_forever()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try: yield f"http://127.0.0.1:{port[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_times_are_those_of_the_server(endpoint):
    server = Server()
    with serving(server) as url:
        target = ServerTarget(url, endpoint=endpoint)
        timings, seconds = target.load(random_requests(SMALL, 0), concurrency=3)
    assert target.model == "known" and len(timings) == 12 and server.most == 3
    for t in timings:
        assert not t.error and (t.n_prompt_tok, t.n_output_tok, len(t.itl_s)) == (8, 4, 3)
        assert 0.05 <= t.ttft_s < 0.15 and 0.11 <= t.e2el_s < 0.3 and t.e2el_s == pytest.approx(t.ttft_s + sum(t.itl_s))
    assert np.median([t.tpot_s for t in timings]) == pytest.approx(0.02, abs=0.01)
    assert 4 * 0.11 <= seconds < 2 and all(a["temperature"] == 0 and a["ignore_eos"] for a in server.asked)
    prompts = [a.get("prompt") or a["messages"][0]["content"] for a in server.asked]
    assert all(isinstance(p, list if endpoint == "completions" else str) for p in prompts)


def test_an_open_loop_does_not_wait_for_answers():
    server = Server(n=2, first_s=0.3)
    due = np.linspace(0.0, 0.11, 12)
    with serving(server) as url: timings, _ = ServerTarget(url).load(random_requests(SMALL, 0), arrivals=due)
    assert server.most == 12 and np.allclose(sorted(t.start_s for t in timings), due, atol=1e-3)
    assert max(t.late_s for t in timings) < 0.1


def test_failures_are_counted_and_leave_the_times_alone():
    with serving(Server(fail=lambda k: k % 3 == 0)) as url:
        found = run_bench(ServerTarget(url), SMALL, concurrency=[2], repeats=1, warmup=0)
    [repeat] = found["points"][0]["repeats"]
    assert repeat["n"] == 12 and repeat["n_failed"] == 4 and repeat["errors"] == ["503 busy"]
    assert len(found["points"][0]["ecdf"]["ttft_s"]) == 8 and repeat["n_output_tok"] == 32


def test_no_key_and_no_password_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    server = Server()
    with serving(server) as url:
        found = run_bench(ServerTarget(url), SMALL, concurrency=[4], repeats=1, warmup=1)
        kept = found.save(tmp_path / "b.json").read_text()
        assert server.headers[0]["Authorization"] == "Bearer sk-secret-1" and "sk-secret-1" not in kept + repr(found)
        secret = ServerTarget(url.replace("//", "//me:word@"), model="known")
    assert "word" not in json.dumps(secret.facts)


def test_a_server_that_is_not_there_is_an_error_with_a_reason():
    with pytest.raises(EngineError, match="names no model"): ServerTarget("http://127.0.0.1:9")


# ---------------------------------------------------------------- definitions
@pytest.mark.slow
def test_definitions_are_those_of_vllm():
    pytest.importorskip("vllm")
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
    from vllm.benchmarks.serve import calculate_metrics
    rng = np.random.default_rng(0)
    def made(i):
        gaps = tuple(rng.exponential(0.02, rng.integers(0, 9)))
        ttft = float(rng.exponential(0.1))
        error = "503" if i % 7 == 6 else ""
        return Timing(start_s=0.1 * i, ttft_s=ttft, e2el_s=ttft + sum(gaps), itl_s=gaps, n_prompt_tok=10 + i,
                      n_output_tok=len(gaps) + 1, error=error)
    timings, bounds = [made(i) for i in range(60)], {"ttft_s": 0.1, "tpot_s": 0.021, "e2el_s": 0.3}
    outputs = [RequestFuncOutput(success=not t.error, latency=t.e2el_s, output_tokens=t.n_output_tok, ttft=t.ttft_s,
                                 itl=list(t.itl_s), prompt_len=t.n_prompt_tok, start_time=t.start_s) for t in timings]
    theirs, _ = calculate_metrics([None] * 60, outputs, 7.5, None, [50, 90, 95, 99],
                                  {k[:-2]: 1000 * v for k, v in bounds.items()})
    ours = summarise(timings, 7.5, bounds)
    assert ours["requests_s"] == pytest.approx(theirs.request_throughput)
    assert ours["output_tok_s"] == pytest.approx(theirs.output_throughput)
    assert ours["total_tok_s"] == pytest.approx(theirs.total_token_throughput)
    assert ours["goodput_s"] == pytest.approx(theirs.request_goodput) and 0 < ours["goodput_s"] < ours["requests_s"]
    for k in ("ttft", "tpot", "itl", "e2el"):
        assert 1000 * ours[f"{k}_s"]["mean"] == pytest.approx(getattr(theirs, f"mean_{k}_ms"))
        for p, value in getattr(theirs, f"percentiles_{k}_ms"):
            assert 1000 * ours[f"{k}_s"][f"p{p}"] == pytest.approx(value), (k, p)


def test_arrivals_of_every_seed_offer_the_same_rate():
    rates = [20 / arrivals(4.0, 20, np.random.default_rng(s))[-1] for s in range(400)]
    assert np.mean(1 / np.array(rates)) == pytest.approx(20 / 21 / 4, rel=0.02) # the last of n uniform times
    gaps = np.diff(arrivals(4.0, 5000, np.random.default_rng(0)))
    from scipy.stats import expon, kstest
    assert kstest(gaps, expon(scale=0.25).cdf).pvalue > 0.01 # exponential, as of a Poisson process


def test_a_closed_loop_keeps_so_many_in_flight():
    class Watched(FakeEngine):
        most = 0
        def submit(self, request):
            ticket = super().submit(request)
            Watched.most = max(Watched.most, len(self._waiting))
            return ticket
    EngineTarget(Watched("random")).load(random_requests(SMALL, 0), concurrency=5)
    assert Watched.most == 5


def test_an_engine_that_only_runs_takes_a_closed_loop():
    class Plain: # any engine that keeps the contract and no more
        window, info = 64, FakeEngine().info
        def run(self, requests): yield from FakeEngine("random", window=self.window).run(requests)
    target = EngineTarget(Plain())
    timings, _ = target.load(random_requests(SMALL, 0), concurrency=2)
    assert len(timings) == 12 and target.engine.window == 64
    with pytest.raises(ConfigError, match="as fast as it answers"):
        target.load(random_requests(SMALL, 0), arrivals=[0.0] * 12)


def test_an_overloaded_engine_is_seen_to_be_full():
    target = EngineTarget(FakeEngine("random", delay_s=0.004)) # one answer at a time: at most 250 a second
    w = Workload(n_requests=60, n_prompt_tok=4, n_output_tok=1)
    found = run_bench(target, w, rates=(40, 600), repeats=1, warmup=0)
    slow, fast = found["points"]
    assert found["saturation"]["open"] == {"load": 40, "output_tok_s": slow["metrics"]["output_tok_s"]["value"],
                                           "reached": True}
    wait = {p["load"]: p["metrics"]["e2el_s.p99"]["value"] for p in found["points"]}
    assert wait[600] > 5 * wait[40] and fast["metrics"]["departures_s"]["value"] < 260 # waiting counts from arrival


# ---------------------------------------------------------------- the result
def test_a_result_can_be_read_again_and_another_file_not(tmp_path):
    found = run_bench(EngineTarget(FakeEngine("random", delay_s=0.001)), SMALL, concurrency=[2], repeats=2,
                      save=tmp_path / "b.json")
    again = read_bench(tmp_path / "b.json")
    assert again == found and isinstance(again, BenchResult) and repr(again) == repr(found) and again["complete"]
    (tmp_path / "b.json").write_text(json.dumps(again | {"format": 2}))
    with pytest.raises(IntegrityError, match="format 1"): read_bench(tmp_path / "b.json")


def test_what_was_measured_before_a_failure_is_kept(tmp_path):
    class Dies(FakeEngine):
        def step(self):
            if self.n_requests > 20: raise EngineError("gone")
            return super().step()
    with pytest.raises(EngineError):
        run_bench(EngineTarget(Dies("random")), SMALL, concurrency=(1, 2), repeats=1, warmup=0,
                  save=tmp_path / "b.json")
    kept = read_bench(tmp_path / "b.json")
    assert [p["load"] for p in kept["points"]] == [1] and not kept["complete"]


def test_the_figure_is_for_print_and_for_every_eye(tmp_path):
    timings = {c: [Timing(start_s=0, ttft_s=0.01 * c, e2el_s=0.1 * c + 0.01 * i, itl_s=(0.01, 0.02), n_output_tok=3)
                   for i in range(6)] for c in (1, 2, 4)}
    class Fixed:
        def __init__(self): self.facts = {"kind": "engine", "engine": "fixed"}
        def load(self, requests, concurrency): return timings[concurrency], 1.0 + 0.01 * len(requests[0].prompt_ids)
    found = run_bench(Fixed(), SMALL, concurrency=(1, 2, 4), repeats=2, warmup=0)
    fig = bench_figure(found)
    files = save_bench_figure(found, tmp_path / "f")
    pdf = files["pdf"].read_bytes()
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf
    for ax in fig.axes[1:]: # colour is never alone
        lines = [line for line in ax.lines if line.get_gid() == "ecdf"]
        assert len({line.get_linestyle() for line in lines} | {str(line._dash_pattern) for line in lines}) > 2
    dots = [line for line in fig.axes[0].lines if line.get_gid() == "load"]
    assert len({d.get_marker() for d in dots}) == len({d.get_markeredgecolor() for d in dots}) == 3
    assert set(times_of(timings[1])["itl_s"]) == {0.01, 0.02}


# ---------------------------------------------------------------- command and template
@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[paths]\nruns = runs\ncache = cache\nreports = reports\n"
                                           f"specimens = {ROOT / 'data/specimens'}\n[engine]\nengine = fake\n")
    monkeypatch.delenv("QWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("QWEN_EVAL_SETTINGS", str(tmp_path / "settings.ini"))
    return tmp_path


def ask(*words, status=0):
    done = CliRunner().invoke(app, ["bench", *words])
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    assert done.exit_code == status, done.output
    return done


def test_the_command_writes_json_figure_and_table(lab):
    load = ("--requests", "6", "--prompt-tok", "4", "--output-tok", "1", "--repeats", "2")
    how = ("smollm2_135m", "--engine", "fake", "--engine-args", '{"answer": "random", "delay_s": 0.001}', *load)
    said = ask(*how, "--concurrency", "1,2", "--rate", "200").stdout
    assert re.search(r"2 in flight +[\d,.]+ \[", said) and "Saturation (closed loop)" in said
    files = sorted(p.suffix for p in (lab / "reports/bench").iterdir())
    assert files == [".json", ".json", ".pdf", ".png", ".svg"]
    data = json.loads(ask(*how, "--concurrency", "2", "--json", "--ttft-ms", "500", "--out", str(lab / "x")).stdout)
    assert data["how"]["bounds"] == {"ttft_s": 0.5} and data["points"][0]["metrics"]["goodput_s"]["value"] > 0
    assert data["workload"]["vocab"] == 8192


def test_the_command_asks_a_server(lab):
    with serving(Server()) as url:
        said = json.loads(ask("--base-url", url, "--requests", "6", "--concurrency", "3", "--repeats", "1",
                              "--prompt-tok", "8", "--output-tok", "4", "--json").stdout)
    assert said["target"]["model"] == "known" and said["points"][0]["metrics"]["itl_s.p50"]["value"] >= 0.02
    with serving(Server(fail=lambda k: True)) as url:
        done = ask("--base-url", url, "--requests", "3", "--concurrency", "3", "--repeats", "1", status=2)
    assert "503 busy" in done.stderr


def test_a_server_that_dies_midway_gives_no_saturation_point(lab):
    how = ("--requests", "6", "--concurrency", "1,3", "--rate", "100", "--repeats", "1", "--warmup", "0")
    with serving(Server(fail=lambda k: k > 8)) as url:
        said = ask("--base-url", url, *how, status=1).stdout
        kept = json.loads(ask("--base-url", url, *how, "--json", status=2).stdout or "null")
    assert kept is None # by then it answers nothing
    assert "Saturation (closed loop): 1 requests in flight" in said and "No rate was sustained" in said
    assert "saturation point at 3 (4 of 6) requests in flight" in said and "at 100 (6 of 6) requests a second" in said


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_asked(lab):
    (lab / "file").write_text("")
    server = Server()
    with serving(server) as url:
        said = ask("--base-url", url, "--requests", "3", "--out", str(lab / "file" / "x"), status=2).stderr
    assert "cannot be kept in" in said and not server.asked


@pytest.mark.parametrize(("words", "reason"), [
    ((), "--base-url"), (("smollm2_135m", "--concurrency", "0"), "positive"), (("smollm2_135m", "--rate", "x"), "'x'"),
    (("smollm2_135m", "--engine-args", "[1]"), "JSON"), (("smollm_135m",), "smollm2_135m"),
    (("smollm2_135m", "--prefix-tok", "600"), "prefix"),
    (("smollm2_135m", "--engine", "fake", "--benchmark", "gsm9k"), "gsm8k")])
def test_a_mistake_is_said_before_anything_starts(lab, words, reason):
    assert reason in ask(*words, status=2).stderr


def test_prompts_of_a_benchmark(lab):
    data = json.loads(ask("smollm2_135m", "--engine", "fake", "--engine-args", '{"answer": "random"}', "--benchmark",
                          "gsm8k", "--requests", "4", "--output-tok", "8", "--concurrency", "2", "--repeats", "1",
                          "--allow-specimens", "--json").stdout)
    assert data["workload"]["benchmark"] == "gsm8k" and data["points"][0]["repeats"][0]["n_prompt_tok"] > 4 * 20


@pytest.mark.slow
def test_the_template_runs(lab):
    import papermill
    made = papermill.execute_notebook(
        ROOT / "nbs/templates/performance.ipynb", lab / "out.ipynb", cwd=str(ROOT / "nbs/templates"),
        parameters={"engine": "fake", "concurrency": [1, 3], "rates": [300], "n_requests": 6, "n_prompt_tok": 4,
                    "n_output_tok": 1, "repeats": 2, "output": str(lab / "bench")},
        kernel_name="python3", language="python", progress_bar=False)
    [file] = [f for f in (lab / "bench").glob("*.json") if "figure" not in f.name]
    found = read_bench(file)
    assert [p["load"] for p in found["points"]] == [1, 3, 300] and found["workload"]["n_requests"] == 6
    shown = [o for c in made.cells for o in c.get("outputs", []) if "image/svg+xml" in o.get("data", {})]
    assert len(shown) == 1


@pytest.mark.engine
def test_shapes_without_weights(tmp_path):
    pytest.importorskip("vllm")
    save_tiny_qwen3(tmp_path)
    for f in tmp_path.iterdir():
        if f.name != "config.json": f.unlink()
    begin = time.perf_counter()
    with started(tmp_path, engine="vllm", context_tok=64, load_format="dummy", dtype="float32") as target:
        assert 0 < target.start_s < time.perf_counter() - begin
        w = Workload(n_requests=8, n_prompt_tok=12, n_output_tok=10)
        found = run_bench(target, w, concurrency=[4], rates=[50], repeats=1, warmup=2)
    for p in found["points"]:
        [r] = p["repeats"]
        assert (r["n_failed"], r["n_prompt_tok"], r["n_output_tok"]) == (0, 96, 80)
        assert 0 < r["ttft_s"]["mean"] < r["e2el_s"]["mean"] and r["tpot_s"]["mean"] > 0
