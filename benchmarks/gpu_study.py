"""A study on a GPU: one model under three presets on four jobs, as `qwen-eval run` does it.

    python benchmarks/gpu_study.py MODEL_FOLDER --random-weights --out results.json

MODEL_FOLDER holds config.json and a tokenizer, and the weights unless --random-weights writes some there (random
numbers of the real shapes: the speed is real, the answers mean nothing). QWEN_EVAL_DATA names the folder of the real
items. Four jobs: gsm8k, arc_challenge (a letter, generated), humaneval with a large budget (long outputs) and prompts
of some 4,000 tokens made up here (long prompts). What is looked at: are three engines started for the twelve runs, is
the memory back at the base between them, and per preset and job throughput, latency, memory and preemptions.
Every stage is written as it ends, so a machine that goes away leaves what was measured. --tiny shrinks the model to
two layers, for a try on a CPU.
"""
import argparse
import contextlib
import json
import math
import os
import random
import re
import struct
import tempfile
import threading
import time
from pathlib import Path

PRESETS = ("balanced", "performance", "memory_optimized")
JOBS = ("gsm8k", "arc_challenge", "humaneval", "long_prompts")
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "max_window_layers": 2, "layer_types": None}


def random_weights(folder, scale=0.02, shard_bytes=2 << 30):
    "Weights of the shapes that config.json asks for, in safetensors shards; a block of random numbers, repeated."
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"): net = AutoModelForCausalLM.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    wanted = [(n, tuple(p.shape)) for n, p in net.named_parameters() if n not in tied]
    torch.manual_seed(0)
    block = (torch.randn(1 << 24) * scale).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    ones = torch.ones(1 << 16, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    shards, size = [[]], 0
    for name, shape in wanted:
        n = 2 * math.prod(shape)
        if size + n > shard_bytes and shards[-1]: shards, size = [*shards, []], 0
        shards[-1].append((name, shape, n))
        size += n
    where = {}
    for k, shard in enumerate(shards):
        file, at, head = f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors", 0, {}
        for name, shape, n in shard:
            head[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n]}
            at, where[name] = at + n, file
        text = json.dumps(head).encode()
        with open(folder / file, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for _, shape, n in shard:
                source = ones if len(shape) == 1 else block
                for _ in range(n // len(source)): f.write(source)
                f.write(source[:n % len(source)])
    total = sum(2 * math.prod(s) for _, s in wanted)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total},
                                                                     "weight_map": where}))
    return total


def made_up_prompts(file, n, n_words):
    "Questions with a code word somewhere in a long text of common words."
    rng, rows = random.Random(0), []
    words = ["river", "stone", "garden", "window", "paper", "letter", "morning", "winter", "market", "bridge", "candle",
             "doctor", "harbour", "kitchen", "ladder", "mountain", "needle", "orange", "pencil", "quarter", "railway"]
    for i in range(n):
        text = [rng.choice(words) for _ in range(n_words)]
        code = f"{rng.choice(words)}{rng.randrange(1000)}"
        text.insert(rng.randrange(n_words), f"(the code word is {code})")
        rows.append({"id": f"long/{i}", "question": " ".join(text) + "\n\nWhat is the code word?", "answer": code})
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))


def counted_engine(path, args, seed):
    "Runs in the engine's process: the engine, and a line in its log when it ends about what its scheduler saw."
    from qwen_eval.engines.vllm import VLLMEngine

    class Counted(VLLMEngine):
        def __init__(self, *a):
            super().__init__(*a)
            self._seen = {"kv_peak": 0.0, "running_peak": 0, "waiting_peak": 0, "preemptions": 0, "steps": 0}
            logs = getattr(self._engine, "logger_manager", None)
            if logs is None: return
            record, seen = logs.record, self._seen

            def watched(*a, **k):
                s, i = k.get("scheduler_stats"), k.get("iteration_stats")
                seen["steps"] += 1
                if s is not None:
                    seen["kv_peak"] = max(seen["kv_peak"], round(s.kv_cache_usage, 4))
                    seen["running_peak"] = max(seen["running_peak"], s.num_running_reqs)
                    seen["waiting_peak"] = max(seen["waiting_peak"], s.num_waiting_reqs)
                seen["preemptions"] += getattr(i, "num_preempted_reqs", 0) or 0
                return record(*a, **k)
            logs.record = watched

        def close(self):
            if self._engine is not None: print("SCHEDULER " + json.dumps(self._seen), flush=True)
            super().close()

    return Counted(path, args, seed)


def job_row(run):
    "What one run came to."
    frame, m = run.scores, run.manifest
    row = {"preset": m["preset"]["id"], "job": m["benchmark"]["id"], "counts": run.counts, **run.performance}
    for name in ("ttft_s", "latency_s"):
        known = frame[name].dropna()
        row[name] = {f"p{q}": round(float(known.quantile(q / 100)), 3) for q in (50, 95)} if len(known) else None
    row |= {"n_prompt_tok_mean": round(float(frame.n_prompt_tok.mean()), 1),
            "n_output_tok_mean": round(float(frame.n_output_tok.mean()), 1),
            "max_model_len": m["sessions"][-1]["engine"]["effective"].get("max_model_len"),
            "effective": m["sessions"][-1]["engine"]["effective"], "engine_memory": m.get("engine_memory")}
    return row


class Card:
    "The memory of the first card, looked at four times a second."
    def __init__(self):
        self.levels, self._stop, self.begin = [], threading.Event(), time.monotonic()
        try:
            import pynvml
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            self._look = lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30
        except Exception: self._look = None
        if self._look: threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while not self._stop.wait(0.25): self.levels.append((round(time.monotonic() - self.begin, 2),
                                                             round(self._look(), 2)))

    def brief(self):
        "Changes of more than 0.3 GiB: seconds, GiB."
        kept = []
        for at, gib in self.levels:
            if not kept or abs(gib - kept[-1][1]) > 0.3: kept.append((at, gib))
        return kept[:: max(1, len(kept) // 200)]


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model", type=Path)
    ask.add_argument("--random-weights", action="store_true")
    ask.add_argument("--tiny", action="store_true")
    ask.add_argument("--limit", type=int, default=330)
    ask.add_argument("--answer-tok", type=int, default=256)
    ask.add_argument("--long-answer-tok", type=int, default=1024)
    ask.add_argument("--long-prompts", type=int, default=128)
    ask.add_argument("--words", type=int, default=3800)
    ask.add_argument("--presets", default=",".join(PRESETS))
    ask.add_argument("--out", type=Path, default=Path("gpu_study.json"))
    options = ask.parse_args()
    found = {"model": options.model.name, "options": {k: str(v) for k, v in vars(options).items()}, "engines": []}

    def keep(**more):
        found.update(more)
        options.out.write_text(json.dumps(found, indent=1, default=str) + "\n")

    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        made_up_prompts(home / "long_prompts.jsonl", options.long_prompts, options.words)
        (home / "settings.ini").write_text("[paths]\nruns = runs\ncache = cache\n[benchmark.long_prompts]\n"
                                           "kind = exact\npath = long_prompts.jsonl\nquestion = question\n"
                                           "answer = answer\n")
        os.environ |= {"QWEN_EVAL_SETTINGS": str(home / "settings.ini")}
        if options.tiny:
            config = json.loads((options.model / "config.json").read_text())
            (options.model / "config.json").write_text(json.dumps({**config, **TINY}, indent=1))
        begin = time.perf_counter()
        if options.random_weights:
            keep(weights_gib=round(random_weights(options.model) / 2**30, 2),
                 writing_s=round(time.perf_counter() - begin, 1))
        study(options, home, keep, found)


def study(options, home, keep, found):
    import qwen_eval.runner as runner
    from qwen_eval.hardware import detect
    from qwen_eval.runs import list_runs
    from qwen_eval.studies import Study
    plain, card = runner.EngineProcess, Card()
    (home / "kept").mkdir()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])

    def process(name, path, args, seed, log_dir, progress):
        at = round(time.monotonic() - card.begin, 1)
        made = plain("gpu_study:counted_engine", path, args, seed, log_dir=home / "kept", progress=progress)
        found["engines"].append({"asked_at_s": at, "start_s": round(made.start_s, 1), "log": made.log, "args": args})
        keep()
        return made

    runner.EngineProcess = process
    keep(device=str(detect()))
    asked = Study(id="gpu_study", models=(str(options.model),), benchmarks=JOBS, model_variant="chat",
                  presets=tuple(options.presets.split(",")), limit=options.limit, answer_tok=options.answer_tok,
                  code_answer_tok=options.long_answer_tok)
    begin = time.perf_counter()
    try: outcome = runner.run_study(asked, notebooks=False)
    finally:
        seconds = round(time.perf_counter() - begin, 1)
        for e in found["engines"]:
            said = re.findall(r"SCHEDULER (\{.*\})", log := Path(e.pop("log")).read_text(errors="replace"))
            e["scheduler"] = json.loads(said[-1]) if said else None
            e["log_end"] = None if said else log[-2000:]
        rows = []
        for run in list_runs():
            with contextlib.suppress(Exception): rows.append(job_row(run)) # a stage that died has no scores
        keep(study_s=seconds, n_engines=len(found["engines"]), rows=rows, card=card.brief())
    keep(failures=[str(f) for f in outcome.failures])
    for row in rows: print("ROW", json.dumps({k: v for k, v in row.items() if k not in ("effective", "engine_memory")}))
    print("ROW", json.dumps({k: found.get(k) for k in ("study_s", "n_engines", "failures", "writing_s")}))
    asked_for = len(options.presets.split(","))
    if len(found["engines"]) != asked_for: raise SystemExit(f"{len(found['engines'])} engines for {asked_for} presets")
    if outcome.failures: raise SystemExit(1)


if __name__ == "__main__":
    main()
