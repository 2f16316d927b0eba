"""Does `qwen-eval bench` say the same as vLLM's own benchmark, of the same server under the same load?

    python benchmarks/bench_against_vllm.py --out results.json
    python benchmarks/bench_against_vllm.py FOLDER --requests 64 --concurrency 16

One `vllm.entrypoints.openai.api_server` (without FOLDER: SmolLM2-135M-Instruct, on whatever vLLM runs on here) is
asked by `vllm bench serve` (its module, since the distribution for CPUs has no version under the name that the
command looks for) and by `qwen_eval.bench`, in turn, the other way round in every second pair: a closed loop, and an
open one at --rate. Lengths are fixed, prompts random, the prefix cache is off, nothing is drawn. In the open loop ours
sends at the very times at which vLLM's benchmark sent in the first pair (it draws the same for the same seed): two
samples of a Poisson process differ too much for a comparison of what is measured.
"""
import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from aiohttp import web

from qwen_eval.bench.measure import over_repeats, run_bench, summarise
from qwen_eval.bench.targets import ServerTarget
from qwen_eval.bench.workloads import Workload, random_requests
from qwen_eval.hardware import detect
from qwen_eval.models import model as find_model
from qwen_eval.store import environment, now
from qwen_eval.weights import locate

THEIRS = """
import sys
try: from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser
except ImportError: from vllm.utils import FlexibleArgumentParser as Parser
from vllm.benchmarks.serve import add_cli_args, main
parser = Parser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""
# ours -> theirs: rates as they are, times in milliseconds
RATES = {"requests_s": "request_throughput", "output_tok_s": "output_throughput",
         "total_tok_s": "total_token_throughput"}
TIMES = {f"{k}_s.{a}": f"{b}_{k}_ms" for k in ("ttft", "tpot", "itl", "e2el") for a, b in (("mean", "mean"),
         ("p50", "median"), ("p99", "p99"))}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    "vLLM's own server in a process group of its own, ended whatever happens."
    def __init__(self, folder, port, log, o):
        words = ["--model", str(folder), "--served-model-name", "asked", "--port", str(port), "--host", "127.0.0.1",
                 "--max-model-len", str(o.prompt_tok + o.output_tok + 64),
                 "--max-num-seqs", str(max(32, o.concurrency)),
                 "--generation-config", "vllm", "--no-enable-prefix-caching"]
        if o.load_format: words += ["--load-format", o.load_format]
        if detect().kind == "cpu": words += ["--enforce-eager", "--kv-cache-memory-bytes", str(1 << 30)]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "OMP_WAIT_POLICY": "PASSIVE",
               "VLLM_NO_USAGE_STATS": "1"}
        self.log = open(log, "w") # noqa: SIM115
        self.process = subprocess.Popen([sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words], env=env,
                                        stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)
        begin, self.url = time.monotonic(), f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() - begin > 600:
                    self.close()
                    sys.exit(f"The server did not start:\n{Path(log).read_text()[-3000:]}")
                time.sleep(0.5)
        self.start_s = time.monotonic() - begin

    def close(self):
        with contextlib.suppress(ProcessLookupError): os.killpg(self.process.pid, signal.SIGTERM)
        try: self.process.wait(20)
        except subprocess.TimeoutExpired: os.killpg(self.process.pid, signal.SIGKILL)
        self.log.close()


class Known:
    "A stand-in whose times are known: the first token after 100 ms, then one every 20 ms, whoever else asks."
    start_s, first_s, gap_s = 0.0, 0.1, 0.02

    def __init__(self, prompt_tok):
        self.prompt_tok, self.loop, ready = prompt_tok, asyncio.new_event_loop(), threading.Event()
        async def begin():
            site = web.Application()
            site.add_routes([web.post("/v1/completions", self.answer)])
            runner = web.AppRunner(site, access_log=None)
            await runner.setup()
            port = free_port()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.url = f"http://127.0.0.1:{port}"
            ready.set()
        def run():
            self.loop.run_until_complete(begin())
            self.loop.run_forever()
        threading.Thread(target=run, daemon=True).start()
        ready.wait()

    async def answer(self, request):
        asked, begin = await request.json(), time.perf_counter()
        stream, piece = web.StreamResponse(), json.dumps({"choices": [{"text": "x"}]}).encode()
        await stream.prepare(request)
        for i in range(n := asked["max_tokens"]):
            await asyncio.sleep(max(0.0, begin + self.first_s + i * self.gap_s - time.perf_counter()))
            await stream.write(b"data: " + piece + b"\n\n")
        usage = {"prompt_tokens": self.prompt_tok, "completion_tokens": n}
        await stream.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        return stream

    def close(self): self.loop.call_soon_threadsafe(self.loop.stop)


def theirs(url, folder, o, load, where):
    words = ["--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions", "--model", "asked",
             "--tokenizer", str(folder), "--dataset-name", "random", "--random-input-len", str(o.prompt_tok),
             "--random-output-len", str(o.output_tok), "--num-prompts", str(o.requests), "--ignore-eos",
             "--temperature", "0", "--seed", "100", "--num-warmups", str(o.warmup), "--disable-tqdm",
             "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99", "--save-result",
             "--save-detailed", "--result-dir", str(where), "--result-filename", "theirs.json"]
    words += ["--max-concurrency", str(load)] if isinstance(load, int) else ["--request-rate", str(load)]
    done = subprocess.run([sys.executable, "-c", THEIRS, *words], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"})
    if done.returncode: sys.exit(f"vllm bench serve failed:\n{(done.stdout + done.stderr)[-3000:]}")
    found = json.loads((Path(where) / "theirs.json").read_text())
    figures = {k: found[t] for k, t in RATES.items()} | {k: found[t] / 1000 for k, t in TIMES.items()}
    return figures | {"n": found["completed"], "n_failed": o.requests - found["completed"],
                      "n_prompt_tok": found["total_input_tokens"], "n_output_tok": found["total_output_tokens"],
                      "seconds": found["duration"],
                      "sent_s": [x - min(found["start_times"]) for x in found["start_times"]]}


def ours(url, vocab, o, load, seed, sent_s):
    w = Workload(n_requests=o.requests, n_prompt_tok=o.prompt_tok, n_output_tok=o.output_tok, vocab=vocab)
    target = ServerTarget(url, model="asked")
    if isinstance(load, int):
        found = run_bench(target, w, concurrency=[load], repeats=1, warmup=o.warmup, seed=seed)
        [repeat] = found["points"][0]["repeats"]
    else:
        target.load(random_requests(w, seed, -1, o.warmup), concurrency=o.warmup)
        repeat = summarise(*target.load(random_requests(w, seed), arrivals=sorted(sent_s)))
    m = over_repeats([repeat])
    return {k: m[k]["value"] for k in (*RATES, *TIMES)} | {
        k: repeat[k] for k in ("n", "n_failed", "n_prompt_tok", "n_output_tok", "seconds", "late_s")}


def compare(pairs):
    "Of each figure: means of both sides, their ratio, the ratios of the pairs, and each side's own spread."
    rows = {}
    for k in (*RATES, *TIMES):
        a, b = ([p[side][k] for p in pairs] for side in ("ours", "theirs"))
        def spread(x): return (max(x) - min(x)) / statistics.mean(x) if len(x) > 1 else None
        rows[k] = {"ours": statistics.mean(a), "theirs": statistics.mean(b),
                   "ratio": statistics.mean(a) / statistics.mean(b),
                   "ratios": [x / y for x, y in zip(a, b, strict=True)], "spread_ours": spread(a),
                   "spread_theirs": spread(b)}
    return rows


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("folder", nargs="?", help="of a checkpoint with its tokenizer")
    ask.add_argument("--requests", type=int, default=48)
    ask.add_argument("--prompt-tok", type=int, default=128)
    ask.add_argument("--output-tok", type=int, default=32)
    ask.add_argument("--concurrency", type=int, default=8, help="of the closed loop; 0: none")
    ask.add_argument("--rate", type=float, default=1.5, help="of the open loop; 0: none")
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--warmup", type=int, default=8)
    ask.add_argument("--known", action="store_true", help="ask a stand-in whose times are known instead of vLLM")
    ask.add_argument("--load-format", help="vLLM's; dummy needs no weights, but config and tokenizer")
    ask.add_argument("--out", type=Path, default=Path("bench_against_vllm.json"))
    o = ask.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) # the server must not outlive us
    if not find_spec("vllm"): sys.exit("vLLM is not installed.")
    model = find_model(o.folder or "smollm2_135m")
    folder, pairs = locate(model, weights=o.load_format != "dummy").path, {}
    loads = [x for x in (o.concurrency, o.rate) if x]
    with tempfile.TemporaryDirectory() as tmp:
        server = Known(o.prompt_tok) if o.known else Server(folder, free_port(), Path(tmp) / "server.log", o)
        found = {"started": now(), "device": str(detect()), "model": model.id, "environment": environment(),
                 "how": {k: v for k, v in vars(o).items() if k not in ("out", "folder")},
                 "server_start_s": server.start_s}
        try:
            for load in loads:
                kept, sent = pairs.setdefault("closed" if isinstance(load, int) else "open", []), {}
                for k in range(o.repeats):
                    order, pair = ("theirs", "ours") if k % 2 == 0 else ("ours", "theirs"), {}
                    for side in order:
                        if side == "ours": pair[side] = ours(server.url, model.vocab, o, load, 100 + k, sent["s"])
                        else:
                            pair[side] = theirs(server.url, folder, o, load, tmp)
                            sent["s"] = pair[side].pop("sent_s")
                    kept.append(pair)
                    print("PAIR", load, {s: round(kept[-1][s]["output_tok_s"], 1) for s in order}, flush=True)
                    found["loops"] = {loop: {"table": compare(p), "pairs": p} for loop, p in pairs.items()}
                    o.out.write_text(json.dumps(found, indent=1) + "\n")
        finally: server.close()
    for loop, x in found["loops"].items():
        print(f"{loop} loop\n{'figure':>14} {'ours':>10} {'vLLM':>10} {'ratio':>7}  ratios of pairs")
        for k, r in x["table"].items():
            print(f"{k:>14} {r['ours']:10.4g} {r['theirs']:10.4g} {r['ratio']:7.3f}  "
                  f"{', '.join(f'{q:.3f}' for q in r['ratios'])}")


if __name__ == "__main__":
    main()
