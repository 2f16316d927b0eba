"""One engine against several replicas on the GPUs of one host, and what becomes of a replica that is killed.

    python benchmarks/gpu_replicas.py MODEL_FOLDER --load-format dummy --out results.json

MODEL_FOLDER holds config.json and a tokenizer, and the weights unless the load format is "dummy". Asked are prompts of
random token ids with a shared head, first of one engine on the first card, then of one engine on each card behind one
queue; then one replica is killed amid its answers, and the rest must come all the same. --fake tries it without a GPU.
"""
import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

from qwen_eval.engines.replicas import ReplicatedEngine
from qwen_eval.hardware import detect
from qwen_eval.records import Request


def wanted(n, n_shared, n_own, max_tok, seed):
    rng = random.Random(seed)
    def ids(k): return tuple(rng.randrange(1000, 50000) for _ in range(k))
    shared = ids(n_shared)
    return [Request(item_id=f"{seed}/{i}", prompt_ids=shared + ids(n_own), max_tok=max_tok) for i in range(n)]


def measure(engine, requests, kill_at=None):
    begin, answers, killed = time.perf_counter(), [], None
    for c in engine.run(requests):
        answers.append(c)
        if kill_at and len(answers) == kill_at:
            killed = engine._live[0].process.process.pid
            os.kill(killed, signal.SIGKILL)
    seconds = time.perf_counter() - begin
    tok = sum(c.n_output_tok for c in answers)
    return {"seconds": round(seconds, 2), "answers": len(answers), "items": len({c.item_id for c in answers}),
            "errors": sum(c.finish_reason == "error" for c in answers), "output_tok_s": round(tok / seconds),
            "requests_s": round(len(answers) / seconds, 1), "killed": killed is not None, "live_after": engine.n_live}


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model", nargs="?")
    ask.add_argument("--load-format", default="auto")
    ask.add_argument("--fake", action="store_true")
    ask.add_argument("--cards", type=int, default=2)
    ask.add_argument("--requests", type=int, default=600)
    ask.add_argument("--max-tok", type=int, default=256)
    ask.add_argument("--seqs", type=int, default=64)
    ask.add_argument("--out", type=Path, default=Path("gpu_replicas.json"))
    options = ask.parse_args()
    spec = {"name": "fake", "args": {"delay_s": 0.002}} if options.fake else {
        "name": "vllm", "path": options.model, "args": {"max_model_len": 2048, "max_num_seqs": options.seqs,
        "gpu_memory_utilization": 0.85, "load_format": options.load_format, "dtype": "bfloat16"}}
    rows = [{"device": str(detect()), "options": {k: str(v) for k, v in vars(options).items()}}]

    def keep(**row):
        rows.append(row)
        print("ROW", json.dumps(row), flush=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")

    for cards in ([["0"]], [[str(i)] for i in range(options.cards)]):
        begin = time.perf_counter()
        with ReplicatedEngine(cards, **spec) as engine:
            keep(n=len(cards), start_s=round(time.perf_counter() - begin, 1), window=engine.window,
                 effective=engine.info.effective)
            list(engine.run(wanted(8 * len(cards), 900, 100, 16, 99))) # warm
            for seed in range(2):
                asked = wanted(options.requests, 900, 100, options.max_tok, seed)
                keep(n=len(cards), seed=seed, **measure(engine, asked))
            if len(cards) > 1:
                kill = wanted(options.requests, 900, 100, options.max_tok, 7)
                keep(n=len(cards), seed=7, **measure(engine, kill, kill_at=options.requests // 4))
    best = {n: max(r["output_tok_s"] for r in rows if r.get("n") == n and "output_tok_s" in r and not r["killed"])
            for n in (1, options.cards)}
    keep(speedup=round(best[options.cards] / max(1, best[1]), 3))
    lost = [r for r in rows if r.get("answers", 0) != r.get("items", 0) or r.get("errors")]
    if lost: raise SystemExit(f"answers are missing, doubled or errors: {lost}")


if __name__ == "__main__":
    main()
