"""Two engines, one model, the same requests: do vLLM and transformers say the same?

    python benchmarks/engines_agree.py smollm2_135m --dtype float32 --out results.json

MODEL is a registered name or a checkpoint folder. QWEN_EVAL_DATA names the folder of the real items. Asked are
HellaSwag endings (0-shot), ARC letters as labels and again as one-token continuations, and greedy answers to GSM8K.
Where two answers part, both engines are asked for the log-probabilities of the two tokens at that place.
"""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from qwen_eval.engines.all import start
from qwen_eval.hardware import detect
from qwen_eval.plans import plan_run
from qwen_eval.records import Request
from qwen_eval.store import environment

ENGINES, GIB = ("transformers", "vllm"), 1 << 30
ARGS = {"max_model_len": 2048, "max_num_seqs": 32, "kv_cache_memory_bytes": 2 * GIB}


def asked(options):
    "Name of a part -> its requests, in order; and the tokenizer."
    cut = {"endings": options.hellaswag, "labels": options.arc, "answers": options.gsm8k}
    plans = {"endings": plan_run(options.model, "hellaswag", variant="cloze-0shot", engine="transformers"),
             "labels": plan_run(options.model, "arc_challenge", variant="label", engine="transformers"),
             "answers": plan_run(options.model, "gsm8k", variant="cot", engine="transformers",
                                 answer_tok=options.answer_tok)}
    parts = {k: list(p.requests(p.items[:cut[k]])) for k, p in plans.items()}
    def letters(r):
        return replace(r, mode="continuations", label_ids=(), continuation_ids=tuple((t,) for t in r.label_ids))
    parts["letters"] = list(map(letters, parts["labels"]))
    return parts, plans["labels"].tokenizer, plans["labels"].located.path


def answers_of(engine, requests):
    found = {c.key: c for c in engine.run(requests)}
    wrong = [c.error for c in found.values() if c.finish_reason == "error"]
    if wrong: raise SystemExit(f"{engine.info.name}: {wrong[0]}")
    return [found[r.key] for r in requests]


def scores(completion):
    "Log-probabilities of the choices, whichever way they were asked for."
    return completion.label_logprobs or tuple(c.logprob for c in completion.continuations)


def choice(completion):
    values = scores(completion)
    return max(range(len(values)), key=values.__getitem__)


def agreement(left, right):
    "Differences of log-probabilities and of the choice, over pairs of completions."
    pairs = list(zip(left, right, strict=True))
    gaps = sorted(abs(a - b) for x, y in pairs for a, b in zip(scores(x), scores(y), strict=True))
    apart = [(x, y) for x, y in pairs if choice(x) != choice(y)]
    margins = [sorted(scores(x))[-1] - sorted(scores(x))[-2] for x, _ in apart]
    return {"n_items": len(pairs), "n_values": len(gaps), "largest": gaps[-1], "median": gaps[len(gaps) // 2],
            "same_choice": len(pairs) - len(apart), "different": [x.item_id for x, _ in apart],
            "margin_where_different": margins}


def same_order(left, right):
    "Items whose choices stand in the same order, from likeliest to least likely."
    def order(c): return sorted(range(len(scores(c))), key=scores(c).__getitem__)
    return sum(order(x) == order(y) for x, y in zip(left, right, strict=True))


def parting(request, texts, ends, tokenizer):
    "The place where two answers part: a label request for the two tokens there."
    ids = [tuple(tokenizer(t, add_special_tokens=False).input_ids) + (ends,) * (c == "stop") for t, c in texts]
    n = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
    if any(len(x) <= n for x in ids): return n, None # one was cut off where the other went on
    return n, Request(item_id=request.item_id, mode="labels", prompt_ids=request.prompt_ids + ids[0][:n],
                      label_ids=(ids[0][n], ids[1][n]))


def explain(engines, requests, said, tokenizer):
    "One row for each pair of answers that differ."
    rows, wanted = [], []
    for r, x, y in zip(requests, *said, strict=True):
        if (x.text, x.finish_reason) == (y.text, y.finish_reason): continue
        texts = ((x.text, x.finish_reason), (y.text, y.finish_reason))
        n, request = parting(r, texts, tokenizer.eos_token_id, tokenizer)
        rows.append({"item": r.item_id, "first_differing_token": n, "n_output_tok": [x.n_output_tok, y.n_output_tok]})
        if request: wanted.append(request)
    for name, engine in engines.items():
        told = {c.item_id: c.label_logprobs for c in answers_of(engine, wanted)} if wanted else {}
        for row in rows:
            if row["item"] in told: row[f"{name}_gap"] = told[row["item"]][0] - told[row["item"]][1]
    return rows


def measure(options, dtype):
    parts, tokenizer, path = asked(options)
    engines, said, seconds = {}, {}, {}
    args = ARGS | {"dtype": dtype}
    with start("transformers", path, args) as one, start("process", path, args, engine="vllm") as two:
        engines = {"transformers": one, "vllm": two}
        for name, engine in engines.items():
            for part, requests in parts.items():
                begin = time.perf_counter()
                said[name, part] = answers_of(engine, requests)
                seconds[f"{name} {part}"] = round(time.perf_counter() - begin, 2)
                print(dtype, name, part, seconds[f"{name} {part}"], "s", flush=True)
        both = {part: [said[name, part] for name in ENGINES] for part in parts}
        apart = explain(engines, parts["answers"], both["answers"], tokenizer)
        info = {name: {"version": e.info.version, "dtype": e.info.dtype, "device": e.info.device,
                       "effective": {k: v for k, v in e.info.effective.items() if k != "checkpoint"}}
                for name, e in engines.items()}
    return {"dtype": dtype, "engines": info, "seconds": seconds,
            "hellaswag_endings": agreement(*both["endings"]) | {"same_order": same_order(*both["endings"])},
            "arc_labels": agreement(*both["labels"]),
            "label_against_cloze_letter": {e: agreement(said[e, "labels"], said[e, "letters"]) for e in ENGINES},
            "gsm8k_greedy": {"n_items": len(parts["answers"]), "same_text": len(parts["answers"]) - len(apart),
                             "parting": apart}}


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model")
    ask.add_argument("--dtype", action="append", help="bfloat16, float32; may be given twice")
    ask.add_argument("--hellaswag", type=int, default=100)
    ask.add_argument("--arc", type=int, default=100)
    ask.add_argument("--gsm8k", type=int, default=20)
    ask.add_argument("--answer-tok", type=int, default=256)
    ask.add_argument("--out", type=Path, default=Path("engines_agree.json"))
    options = ask.parse_args()
    seen = environment()
    result = {"model": options.model, "device": str(detect().name), "n_cores": detect().n_cores,
              "packages": seen["packages"], "platform": seen["platform"], "results": []}
    for dtype in options.dtype or ["float32", "bfloat16"]:
        result["results"].append(measure(options, dtype))
        options.out.write_text(json.dumps(result, indent=1))
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
