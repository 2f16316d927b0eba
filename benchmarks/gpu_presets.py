"""The three presets on a GPU: the study's engine process, prompts, store and scoring included.

    python benchmarks/gpu_presets.py MODEL_FOLDER --load-format dummy --out results.json

MODEL_FOLDER holds config.json and a tokenizer, and the weights unless the load format is "dummy": then the
speed is that of the real shapes and the answers mean nothing. QWEN_EVAL_DATA names the folder of the real items.
Per preset: one engine process, all GSM8K items asked for (--limit), then ARC by label positions.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

from qwen_eval.engines.process import EngineProcess
from qwen_eval.evaluation import evaluate
from qwen_eval.hardware import detect, fit
from qwen_eval.models import model as find_model
from qwen_eval.plans import required_context
from qwen_eval.presets import engine_args, preset


def used_gib():
    import pynvml
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / 2**30


def measure(name, model, options, runs):
    jobs = {"gsm8k": {"variant": "cot"}, "arc_challenge": {"variant": "label"}}
    wish = {"protocol": "greedy", "answer_tok": options.answer_tok, "limit": options.limit, "runs": runs}
    context = max(required_context(model, [b], engine="vllm", **wish, **how) for b, how in jobs.items())
    device, base = detect(), used_gib()
    planned = fit(model, preset(name), device, context)
    args = engine_args(preset(name), model, device, context) | {"load_format": options.load_format, "dtype": "bfloat16"}
    row = {"preset": name, "device": device.name, "args": args, "fit": planned.message, "gib_before": round(base, 2)}
    with EngineProcess("vllm", model.path, args, log_dir=runs) as process, process.connect() as engine:
        row |= {"start_s": round(process.start_s, 1), "vllm": engine.info.version, "effective": engine.info.effective}
        for b, how in jobs.items():
            begin = time.perf_counter()
            run = evaluate(model, b, name, engine=engine, progress=False, **wish, **how)
            row[b] = {"seconds": round(time.perf_counter() - begin, 2), "n": run.estimate().n_items,
                      "counts": run.counts, **run.performance}
        row["gib_loaded"] = round(used_gib(), 2)
    time.sleep(2)
    return row | {"gib_after": round(used_gib(), 2)}


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model")
    ask.add_argument("--load-format", default="auto")
    ask.add_argument("--limit", type=int, default=660)
    ask.add_argument("--answer-tok", type=int, default=256)
    ask.add_argument("--out", type=Path, default=Path("gpu_presets.json"))
    options = ask.parse_args()
    model, rows = find_model(options.model), []
    with tempfile.TemporaryDirectory() as runs:
        for name in ("balanced", "performance", "memory_optimized"):
            rows.append(measure(name, model, options, runs))
            print("ROW", json.dumps(rows[-1], default=str), flush=True)
            options.out.write_text(json.dumps(rows, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
