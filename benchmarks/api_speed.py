"""How much the toolkit adds to a server that costs nothing: items a second, memory, and what is left of a latency.

QWEN_EVAL_DATA=... python benchmarks/api_speed.py --out result.json [--part zero,latency,memory,bare] [--repeats 3]

`evaluate("smollm2_135m", "gsm8k", engine="openai")` against `api_stub.py`: loading the items, prompts by the model's
own tokenizer and template, requests, answers on the disk, scores and their table are all in the time; imports are not
(a first small run warms up). The stub runs in a process of its own. Model and items must be here; no GPU, no network.
"""
import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Stub:
    def __init__(self, latency_ms=0):
        command = [sys.executable, HERE / "api_stub.py", "--latency-ms", str(latency_ms)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().split()[1]}/v1"

    def __enter__(self): return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def ask(url, runs, limit=None, epochs=1, concurrency=64):
    "Seconds, and seconds of the processor, for one run."
    from qwen_eval.evaluation import evaluate
    began, busy = time.perf_counter(), time.process_time()
    r = evaluate("smollm2_135m", "gsm8k", engine="openai", base_url=url, limit=limit, epochs=epochs, answer_tok=256,
                 concurrency=concurrency, runs=runs, progress=False)
    seconds = time.perf_counter() - began
    n = sum(r.counts.values())
    if r.counts["scored"] != n: raise SystemExit(f"not all were scored: {r.counts}")
    return seconds, time.process_time() - busy, n, r.manifest["sessions"][-1]["generate_s"]


def rss_mib(): return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def figures(found, ideal_s=None):
    rows = [{"seconds": round(s, 3), "cpu_s": round(c, 3), "asking_s": g, "items_s": round(n / s, 1), "n": n,
             "load": round(os.getloadavg()[0], 2), **({"of_ideal": round(ideal_s / s, 3),
                                                       "asking_of_ideal": round(ideal_s / g, 3)} if ideal_s else {})}
            for s, c, n, g in found]
    return {"runs": rows, "items_s_median": statistics.median(r["items_s"] for r in rows),
            "items_s_best": max(r["items_s"] for r in rows)}


def zero(folder, repeats):
    with Stub() as stub:
        ask(stub.url, folder / "warm", limit=64)
        return figures([ask(stub.url, folder / f"zero{i}") for i in range(repeats)])


def latency(folder, repeats, ms=50, concurrency=128, epochs=8):
    with Stub(ms) as stub:
        ask(stub.url, folder / "warm", limit=64)
        out = {}
        for e in (1, epochs):
            found = [ask(stub.url, folder / f"late{e}-{i}", epochs=e, concurrency=concurrency) for i in range(repeats)]
            ideal_s = -(-found[0][2] // concurrency) * ms / 1000
            out[f"epochs_{e}"] = {"ideal_s": ideal_s, **figures(found, ideal_s)}
        return out


def memory(folder, _, epochs=76, marks=(1_000, 10_000, 50_000, 100_000)):
    "Resident memory while 100,244 requests are asked, and the most that the whole run had."
    seen, over = {}, threading.Event()
    def watch(path):
        at = list(marks)
        while not over.wait(0.05):
            files = list(path.glob("*/completions.jsonl"))
            n = files[0].stat().st_size // size if files else 0
            while at and n >= at[0]: seen[str(at.pop(0))] = round(rss_mib(), 1)
    with Stub() as stub:
        ask(stub.url, folder / "warm", limit=64)
        file = next((folder / "warm").glob("*/completions.jsonl"))
        size = file.stat().st_size / 64
        before = rss_mib()
        threading.Thread(target=watch, args=(folder / "memory",), daemon=True).start()
        s, c, n, g = ask(stub.url, folder / "memory", epochs=epochs)
        over.set()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"n": n, "seconds": round(s, 1), "cpu_s": round(c, 1), "asking_s": g, "rss_mib_before": round(before, 1),
            "rss_mib": seen, "rss_mib_after": round(rss_mib(), 1),
            "rss_mib_peak": round(int(peak.split()[1]) / 1024, 1)}


def bare(_, repeats, n=5000):
    "The clients without anything around them: requests a second, and of the ideal where answers take their time."
    from qwen_eval.engines.http import _new_loop
    from qwen_eval.engines.lines import Lines
    body = json.dumps({"model": "m", "prompt": list(range(120)), "max_tokens": 256}).encode()
    async def by_aiohttp(url, work):
        import aiohttp
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            async def ask():
                async with session.post(f"{url}/completions", data=body) as r: await r.read()
            return await work(ask)
    async def by_lines(url, work):
        lines = Lines(url, {"Content-Type": "application/json"}, 60)
        return await work(lambda: lines.post("/completions", body))
    def rate(client, loop, url, concurrency):
        async def work(ask):
            left, began = iter(range(n)), time.perf_counter()
            async def worker():
                for _ in left: await ask()
            await asyncio.gather(*(worker() for _ in range(concurrency)))
            return round(n / (time.perf_counter() - began))
        loop = loop()
        try: return loop.run_until_complete(client(url, work))
        finally: loop.close()
    clients = {"aiohttp": (by_aiohttp, asyncio.new_event_loop), "aiohttp, our loop": (by_aiohttp, _new_loop),
               "lines, our loop": (by_lines, _new_loop)}
    found = {}
    for ms, concurrency in ((0, 64), (50, 128)):
        with Stub(ms) as stub:
            found[f"{ms} ms, {concurrency} in flight"] = {
                name: [rate(*how, stub.url, concurrency) for _ in range(repeats)] for name, how in clients.items()}
    return {"requests_s": found, "load": round(os.getloadavg()[0], 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", default="bare,zero,latency,memory")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    from qwen_eval.store import environment
    result = {"n_cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg(),
              **{k: environment()[k] for k in ("commit", "python", "platform")}}
    with tempfile.TemporaryDirectory() as folder:
        for part in given.part.split(","):
            result[part] = globals()[part](Path(folder), given.repeats)
            print(part, json.dumps(result[part]), flush=True)
    if given.out: given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main()
