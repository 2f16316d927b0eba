"""Which wire for the engine process: ours (Unix socket, MessagePack) or vLLM's OpenAI server (HTTP, JSON, aiohttp)?

    python benchmarks/wire.py MODEL_FOLDER --out results.json

One small model, the same engine arguments and token ids, as many requests in flight on either side (the window of
ours), greedy. Three ways in turn, several rounds: `in process` (no wire), `ours` (EngineProcess and RemoteEngine),
`openai` (vllm.entrypoints.openai.api_server, /v1/completions with token ids). Beside seconds by the clock the CPU
seconds of client and server, which other work on the machine does not stretch as much. Then our wire alone, with an
engine that costs nothing, and a server of aiohttp that answers the same route at once.
"""
import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from qwen_eval.engines.process import EngineProcess
from qwen_eval.records import Request

STUB = """
import json, sys
from aiohttp import web
said = json.loads(sys.argv[2])
async def answer(request):
    await request.json()
    return web.json_response(said)
app = web.Application(client_max_size=1 << 26)
app.router.add_post("/v1/completions", answer)
app.router.add_get("/health", lambda request: web.Response())
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""


def cpu_s(pid):
    "CPU seconds of a process and of all that it has started and that is still there."
    try: family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess: return 0.0
    total = 0.0
    for p in family:
        with suppress(psutil.NoSuchProcess): total += sum(p.cpu_times()[:2])
    return total


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def http_server(command, port, log):
    "A server that answers /health; ended whatever happens."
    import urllib.request
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + 600
        while True:
            if server.poll() is not None or time.monotonic() > end: raise SystemExit(f"no server; see {log}")
            try:
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200: break
            except OSError: time.sleep(0.5)
        yield server
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired): server.wait(timeout=20)
        with suppress(ProcessLookupError): os.killpg(server.pid, 9)


async def post_all(port, bodies, in_flight):
    import aiohttp
    waiting, said = iter(bodies), []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async def work():
            for body in waiting:
                async with session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as r:
                    if r.status != 200: raise RuntimeError(await r.text())
                    said.append(await r.json())
        await asyncio.gather(*(work() for _ in range(in_flight)))
    return said


def body_of(r, model):
    told = {"model": model, "prompt": list(r.prompt_ids), "max_tokens": r.max_tok, "temperature": 0.0}
    if r.mode == "labels": told |= {"max_tokens": 1, "logprobs": 20}
    return told


def measured(name, job, n, work, server=None):
    before, client, begin = cpu_s(server) if server else 0, time.process_time(), time.perf_counter()
    work()
    seconds, client = time.perf_counter() - begin, time.process_time() - client
    row = {"way": name, "job": job, "n": n, "requests_s": round(n / seconds, 1),
           "client_cpu_ms": round(1e3 * client / n, 3)}
    if server: row["server_cpu_ms"] = round(1e3 * (cpu_s(server) - before) / n, 3)
    print(json.dumps(row), flush=True)
    return row


def jobs(n):
    rng = random.Random(0)
    def ids(k): return tuple(rng.randrange(5, 290) for _ in range(k))
    shared = ids(200)
    return {"16 tokens": [Request(item_id=str(i), prompt_ids=shared + ids(30), max_tok=16) for i in range(n)],
            "labels": [Request(item_id=str(i), mode="labels", prompt_ids=shared + ids(30), label_ids=(32, 33, 34, 35))
                       for i in range(2 * n)]}


def again(requests, round_): # nothing of it has been seen before, so no round finds more in the cache than another
    from dataclasses import replace
    return [replace(r, prompt_ids=(5 + round_, *r.prompt_ids)) for r in requests]


def through_our_process(options, args, rows):
    with EngineProcess("vllm", options.model, args) as process, process.connect() as engine:
        list(engine.run(jobs(64)["16 tokens"]))
        for round_ in range(options.rounds):
            for job, requests in jobs(options.n).items():
                asked = again(requests, round_)
                def work(asked=asked): list(engine.run(asked))
                rows.append(measured("ours", job, len(asked), work, process.process.pid))
        return engine.window


def through_openai(options, args, window, rows):
    port, flags = free_port(), []
    for k, v in args.items(): flags += [f"--{k.replace('_', '-')}", str(v)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", options.model,
               "--port", str(port), "--host", "127.0.0.1", "--enforce-eager", "--generation-config", "vllm",
               "--disable-uvicorn-access-log",
               *flags]
    with http_server(command, port, options.out.with_suffix(".openai.log")) as server:
        asyncio.run(post_all(port, [body_of(r, options.model) for r in jobs(64)["16 tokens"]], 64))
        for round_ in range(options.rounds):
            for job, requests in jobs(options.n).items():
                asked = again(requests, round_)
                def work(asked=asked): asyncio.run(post_all(port, (body_of(r, options.model) for r in asked), window))
                rows.append(measured("openai", job, len(asked), work, server.pid))


def in_process(options, args, rows):
    from qwen_eval.engines.vllm import VLLMEngine
    with VLLMEngine(options.model, args) as engine:
        list(engine.run(jobs(64)["16 tokens"]))
        for round_ in range(options.rounds):
            for job, requests in jobs(options.n).items():
                asked = again(requests, round_)
                rows.append(measured("in process", job, len(asked), lambda asked=asked: list(engine.run(asked))))


def wires_alone(options, rows):
    "Prompts of a thousand tokens, answers of a thousand characters, an engine that costs nothing."
    requests = [Request(item_id=str(i), prompt_ids=tuple(range(1000)), max_tok=256) for i in range(10 * options.n)]
    text = "so " * 333
    with EngineProcess("qwen_eval.engines.base:FakeEngine", args={"answer": "constant", "window": 256}) as process, \
            process.connect() as engine:
        for _ in range(options.rounds):
            rows.append(measured("ours", "nothing to compute", len(requests), lambda: list(engine.run(requests)),
                                 process.process.pid))
    port, answer = free_port(), {"choices": [{"text": text, "finish_reason": "stop"}], "usage": {"total_tokens": 1256}}
    command = [sys.executable, "-c", STUB, str(port), json.dumps(answer)]
    with http_server(command, port, options.out.with_suffix(".stub.log")) as server:
        for _ in range(options.rounds):
            def work(): asyncio.run(post_all(port, (body_of(r, "m") for r in requests), 256))
            rows.append(measured("aiohttp stub", "nothing to compute", len(requests), work, server.pid))


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model")
    ask.add_argument("--n", type=int, default=800)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--out", type=Path, default=Path("wire.json"))
    options = ask.parse_args()
    args = {"max_model_len": 512, "max_num_seqs": 32, "dtype": "float32", "kv_cache_memory_bytes": 256 << 20}
    rows = []
    wires_alone(options, rows)
    window = through_our_process(options, args, rows)
    through_openai(options, args, window, rows)
    in_process(options, args, rows)
    found = {}
    for r in rows: found.setdefault((r["job"], r["way"]), []).append(r)
    def medians(rs): return {k: statistics.median(r[k] for r in rs) for k in rs[0] if k.endswith(("_s", "_ms"))}
    table = [{"job": job, "way": way, **medians(rs)} for (job, way), rs in found.items()]
    for row in table: print("MEDIAN", json.dumps(row))
    whole = {"args": args, "in_flight": window, "median": table, "rows": rows}
    options.out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
