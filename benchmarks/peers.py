"""Side by side with lm-evaluation-harness and inspect_ai against the same server that costs nothing.

QWEN_EVAL_DATA=... python benchmarks/peers.py --lm-eval PYTHON --inspect PYTHON --n 1000 --repeats 3 --out result.json

PYTHON is an interpreter that holds the peer. Each side asks the same GSM8K questions as one chat turn and looks for the
number, in a fresh process, as it comes (`default`) and with 64 requests at a time and its own way to survive (`tuned`:
lm-eval's `use_cache`, inspect_ai's log and `eval_retry`, ours as it comes). The sides take turns. Reported: seconds per
1,000 items (imports excluded; `process_s` has them), the most memory, and the work done twice after a kill -9 at half.
The stub counts what it was asked.
"""
import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME, ASK = "HuggingFaceTB/SmolLM2-135M-Instruct", "Work through this step by step. End with the number.\n\n"


# ---------------------------------------------------------------- the sides; each runs in its own interpreter
def ours(a):
    from qwen_eval.evaluation import evaluate
    from qwen_eval.models import Model
    began = time.perf_counter()
    how = {"concurrency": 64} if a.mode == "tuned" else {}
    r = evaluate(Model(id="stub", api_id=NAME), "gsm8k", engine="openai", base_url=a.url, limit=a.n, answer_tok=256,
                 runs=a.folder / "runs", progress=False, server="other", **how)
    return time.perf_counter() - began, r.counts["scored"]


def lm_eval(a):
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    config = {"task": "gsm8k_here", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(a.items)}},
              "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{question}}",
              "doc_to_target": "{{answer}}",
              "generation_kwargs": {"until": [], "max_gen_toks": 256, "temperature": 0.0, "do_sample": False},
              "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
              "filter_list": [{"name": "flexible", "filter": [
                  {"function": "regex", "regex_pattern": r"(-?[0-9.,]{2,})|(-?[0-9]+)", "group_select": -1},
                  {"function": "take_first"}]}]}
    args = {"model": NAME, "base_url": f"{a.url}/chat/completions", "tokenizer_backend": None}
    if a.mode == "tuned": args |= {"num_concurrent": 64, "timeout": 900}
    cache = str(a.folder / "cache") if a.mode == "tuned" else None
    began = time.perf_counter()
    found = lm_eval.simple_evaluate(model="local-chat-completions", model_args=args,
                                    tasks=[ConfigurableTask(config=config)], apply_chat_template=True, limit=a.n,
                                    use_cache=cache, bootstrap_iters=0)
    return time.perf_counter() - began, len(found["samples"]["gsm8k_here"])


def inspect(a):
    os.environ.setdefault("STUB_API_KEY", "none")
    os.environ["STUB_BASE_URL"] = a.url
    from inspect_ai import Task, eval, eval_retry, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.log import list_eval_logs
    from inspect_ai.model import GenerateConfig
    from inspect_ai.scorer import match
    from inspect_ai.solver import generate
    rows = [json.loads(line) for line in a.items.read_text().splitlines()][:a.n]
    samples = [Sample(input=r["question"], target=r["answer"], id=i + 1) for i, r in enumerate(rows)]
    @task
    def gsm8k_here(): # by this name eval_retry finds it
        return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=match(numeric=True),
                    config=GenerateConfig(max_tokens=256, temperature=0))
    tuned = {"max_connections": 64, "max_samples": 64} if a.mode == "tuned" else {}
    how = {"display": "none", "log_dir": str(a.folder / "logs"), **tuned}
    began = time.perf_counter()
    logs = list_eval_logs(str(a.folder / "logs")) if (a.folder / "logs").exists() else []
    again = logs and a.mode == "tuned"
    found = eval_retry(logs[0], **how) if again else eval(gsm8k_here(), model=f"openai-api/stub/{NAME}", **how)
    return time.perf_counter() - began, found[0].results.completed_samples


SIDES = {"ours": ours, "lm_eval": lm_eval, "inspect": inspect}


# ---------------------------------------------------------------- what measures them
def count(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/count") as r: return json.load(r)["n"]


def start(side, mode, folder, url, given):
    python = {"ours": sys.executable, "lm_eval": given.lm_eval, "inspect": given.inspect}[side]
    command = [python, __file__, "--side", side, "--mode", mode, "--url", url, "--n", str(given.n), "--folder", folder,
               "--items", given.items]
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    return subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                            env=env)


def finished(process):
    began = time.perf_counter()
    said = process.stdout.read().strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    if status or not said: raise SystemExit(f"{process.args}: status {status}")
    return json.loads(said[-1]), usage.ru_maxrss / 1024, time.perf_counter() - began


def measure(side, mode, folder, url, given):
    said, rss_mib, process_s = finished(start(side, mode, folder, url, given))
    if said["n"] != given.n: raise SystemExit(f"{side} scored {said['n']} of {given.n}")
    return {"side": side, "mode": mode, "s_per_1000": round(1000 * said["seconds"] / given.n, 2),
            "process_s": round(process_s, 1), "rss_mib": round(rss_mib), "load": round(os.getloadavg()[0], 1)}


def killed(side, mode, folder, url, given):
    "Requests that are asked twice because a process was killed at half."
    before = count(url)
    process = start(side, mode, folder, url, given)
    while count(url) - before < given.n // 2: time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    at = count(url) - before
    said, *_ = finished(start(side, mode, folder, url, given))
    time.sleep(0.2)
    return {"side": side, "mode": mode, "answered_before": at, "asked_in_all": (n := count(url) - before),
            "done_twice": n - given.n, "share_of_half": round((n - given.n) / at, 3), "scored": said["n"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--lm-eval", "--inspect", "--url", "--side", "--mode"): parser.add_argument(name)
    for name in ("--folder", "--items", "--out"): parser.add_argument(name, type=Path)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency-ms", default="0,10")
    parser.add_argument("--sides", default="ours,lm_eval,inspect")
    given = parser.parse_args()
    if given.side:
        seconds, n = SIDES[given.side](given)
        return print(json.dumps({"seconds": seconds, "n": n}))
    from api_speed import Stub
    sides = [s for s in given.sides.split(",") if s == "ours" or getattr(given, s)]
    with tempfile.TemporaryDirectory() as folder:
        given.items = Path(folder) / "items.jsonl"
        with gzip.open(Path(os.environ["QWEN_EVAL_DATA"]) / "gsm8k.jsonl.gz", "rt") as f: lines = f.readlines()
        asked = [{"question": ASK + r["question"], "answer": r["answer"].split("####")[-1].strip()}
                 for r in map(json.loads, lines) if r.get("split", "test") == "test"]
        given.items.write_text("".join(json.dumps(r) + "\n" for r in asked[:given.n]))
        result, i = {"n": given.n, "speed": {}, "kill": []}, 0
        for ms in given.latency_ms.split(","):
            rows = result["speed"][f"{ms} ms"] = []
            with Stub(float(ms)) as stub:
                for _ in range(given.repeats):
                    for mode in ("default", "tuned"):
                        for side in sides:
                            rows.append(measure(side, mode, Path(folder) / f"{(i := i + 1)}", stub.url, given))
                            print(ms, rows[-1], flush=True)
        with Stub(20) as stub:
            for mode in ("default", "tuned"):
                for side in sides:
                    result["kill"].append(killed(side, mode, Path(folder) / f"{(i := i + 1)}", stub.url, given))
                    print("kill", result["kill"][-1], flush=True)
    if given.out: given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main()
