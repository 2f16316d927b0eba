"""kill -9 of runners and engines on a GPU: is every item there once, is the card's memory free again?

    python benchmarks/gpu_kills.py MODEL_FOLDER --load-format dummy --kills 12 --out results.json

A runner is a process that starts vLLM in a process of its own and asks GSM8K items. One of the two is killed at a
random moment: up to 10 s after the engine began to fill the card, or when a random number of further answers is stored.
Then the card is watched until its memory is free, and the next runner resumes the same run. At the end one runner is
left alone, and what is stored is counted.
QWEN_EVAL_DATA names the folder of the real items; the results are where and when this ran.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RUNNER = """
import json, sys
from qwen_eval.engines.process import EngineProcess
from qwen_eval.evaluation import evaluate
spec = json.loads(sys.argv[1])
with EngineProcess("vllm", spec["model"], spec["args"]) as process, process.connect() as engine:
    print("asking", flush=True)
    evaluate(spec["model"], "gsm8k", "memory_optimized", engine=engine, progress=False, variant="cot",
             answer_tok=spec["answer_tok"], limit=spec["limit"], runs=spec["runs"])
print("done", flush=True)
"""


def used_gib():
    import pynvml
    pynvml.nvmlInit()
    return round(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / 2**30, 2)


def free_again(before, patience_s=60):
    "Seconds until the card holds what it held before; None where it never did."
    begin = time.monotonic()
    while time.monotonic() - begin < patience_s:
        if used_gib() <= before + 0.05: return round(time.monotonic() - begin, 1)
        time.sleep(0.2)


def lines(runs): return [json.loads(x) for f in runs.glob("*/completions.jsonl") for x in f.read_text().splitlines()
                         if x.endswith("}")]


def wait_for(what, runner, patience_s=150):
    "Until it is so; an error where the runner ends before."
    begin = time.monotonic()
    while not what():
        if runner.poll() is not None or time.monotonic() - begin > patience_s:
            raise SystemExit(f"the runner ended with status {runner.poll()}, or nothing happened for {patience_s} s")
        time.sleep(0.1)


def disturb(spec, victim, moment, rng, before):
    "Start a runner, kill it or its engine, and look at what is left."
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, json.dumps(spec)], text=True, stdout=subprocess.PIPE)
    had = len(lines(Path(spec["runs"])))
    if moment == "answering":
        wanted = had + rng.randint(30, 160)
        wait_for(lambda: len(lines(Path(spec["runs"]))) >= wanted, runner)
        time.sleep(rng.uniform(0, 0.5))
    else:
        wait_for(lambda: used_gib() > before + 1, runner)
        time.sleep(rng.uniform(0, 10))
    family = psutil.Process(runner.pid).children(recursive=True)
    engines = [p for p in family if "engines.process" in " ".join(p.cmdline())]
    loaded, target = used_gib(), runner.pid if victim == "runner" or not engines else engines[0].pid
    os.kill(target, signal.SIGKILL)
    status = runner.wait(timeout=120)
    seconds = free_again(before)
    left = psutil.wait_procs(family, timeout=20)[1]
    return {"victim": victim, "moment": moment, "status": status, "gib_at_kill": loaded, "free_after_s": seconds,
            "gib_after": used_gib(), "processes_left": len(left), "answers_before": had,
            "answers_stored": len(lines(Path(spec["runs"])))}


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model")
    ask.add_argument("--load-format", default="auto")
    ask.add_argument("--kills", type=int, default=12)
    ask.add_argument("--limit", type=int, default=1319)
    ask.add_argument("--answer-tok", type=int, default=64)
    ask.add_argument("--out", type=Path, default=Path("gpu_kills.json"))
    options = ask.parse_args()
    rng, before, rows = random.Random(0), used_gib(), []
    args = {"load_format": options.load_format, "dtype": "bfloat16", "max_model_len": 2048, "max_num_seqs": 32,
            "gpu_memory_utilization": 0.5, "enforce_eager": True}
    with tempfile.TemporaryDirectory() as runs:
        spec = {"model": options.model, "args": args, "answer_tok": options.answer_tok, "limit": options.limit,
                "runs": runs}
        for n in range(options.kills):
            moment = "loading" if n % 4 == 3 else "answering"
            rows.append(disturb(spec, ("runner", "engine")[n % 2], moment, rng, before))
            print("ROW", json.dumps(rows[-1]), flush=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
        subprocess.run([sys.executable, "-c", RUNNER, json.dumps(spec)], check=True)
        keys = [c["item_id"] for c in lines(Path(runs))]
        [folder] = [f for f in Path(runs).iterdir() if f.is_dir()]
        rows.append({"answers": len(keys), "items": len(set(keys)), "gib_before": before, "gib_end": used_gib(),
                     "stages": json.loads((folder / "manifest.json").read_text())["stages"]})
    print("ROW", json.dumps(rows[-1]), flush=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
