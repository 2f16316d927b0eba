"""Does the protocol `lm-eval` ask, score and judge as lm-evaluation-harness 0.4.13 does?

    python benchmarks/parity_lm_eval.py --python /path/to/env/bin/python --items 200 --score 200 --out parity.json

QWEN_EVAL_DATA names the folder of the real items. `--python` is an interpreter that holds lm-eval and, for
likelihoods, torch and transformers (or vLLM); lm_eval_side.py runs there. Both sides read the same rows, the same
examples among them: ARC's from the validation split, HellaSwag's from rows 9000 to 9999, which are then not asked.
`--texts` stops before anything is computed. `--replay NAME=FILE` replays completions (JSON lines: `id` or `question`,
and `completion` or `solution`) through both sides' scorers; NAME is `gsm8k`, `mbpp` or `humaneval`, and FILE may be
`gold`, for the reference answers of the items chosen.
The metric code_eval, which MBPP and HumanEval of the harness load from the hub, is looked for in DIR/code_eval first
where `--code-eval DIR` is given; that metric runs programs unconfined.
The results hold ids and numbers, no text of a benchmark.
"""
import argparse
import gzip
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import SPLITS, load, split_rules
from qwen_eval.hardware import detect
from qwen_eval.models import model
from qwen_eval.protocols import protocol
from qwen_eval.records import Completion
from qwen_eval.requests import ByteTokenizer, build_requests
from qwen_eval.scorers.text import ScoreOptions, score_items
from qwen_eval.settings import settings
from qwen_eval.sources import read_rows
from qwen_eval.store import environment
from qwen_eval.weights import locate, tokenizer

PARTS = {"gsm8k 5-shot": ("gsm8k", 5), "arc_challenge 0-shot": ("arc_challenge", 0),
         "arc_challenge 25-shot": ("arc_challenge", 25), "hellaswag 0-shot": ("hellaswag", 0),
         "hellaswag 10-shot": ("hellaswag", 10), "mmlu 5-shot": ("mmlu", 5), "truthfulqa": ("truthfulqa", None),
         "mbpp 3-shot": ("mbpp", 3), "humaneval": ("humaneval", None)} # None: as the variant has it
SIDE = Path(__file__).with_name("lm_eval_side.py")
HELLASWAG_POOL = range(9000, 10000) # local rows hold no train split
MAX_GEN_TOKS = 256 # of the harness's model classes, where a task says nothing
MC2 = 1e-3 # a share of probabilities, not a verdict: equal to this much


# -- rows, for both sides ----------------------------------------------------------------------------------------------

def split_of(b, n, row):
    "The split that a row plays here: examples are `train`, or MMLU's `dev`."
    rule = split_rules.get(b.split_rule) if b.split_rule else None
    split = SPLITS[str(row.get("split") or (rule(row) if rule else b.split))]
    if b.id == "arc_challenge" and split == "validation": return "train"
    return "train" if b.id == "hellaswag" and n in HELLASWAG_POOL else split


def write_rows(name, folder):
    "The rows of a benchmark as both sides read them, a file for each split (and subject) that the harness asks for."
    b = benchmark(name)
    path = next(p for p in settings().data.iterdir() if p.name.partition(".")[0] == name)
    parts = {}
    for n, row in enumerate(read_rows(path)):
        split = split_of(b, n, row)
        if split not in (b.split, "train", "dev") or (name == "mbpp" and split == "train"): continue
        parts.setdefault(f"{name}.{row['subject']}.{split}" if name == "mmlu" else f"{name}.{split}", []).append(row)
    for stem, rows in parts.items():
        (folder / f"{stem}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if name != "hellaswag": return load(b)
    both = [{**r, "split": s} for s in ("validation", "train") for r in parts[f"{name}.{s}"]]
    (folder / "ours.jsonl").write_text("".join(json.dumps(r) + "\n" for r in both))
    return load(b, data_file=folder / "ours.jsonl")


# -- our side ----------------------------------------------------------------------------------------------------------

def tasks_for(name, item):
    "The harness's tasks that ask an item: one for each subject of MMLU, two for TruthfulQA."
    return [item.stratum] if name == "mmlu" else ["mc1", "mc2"] if name == "truthfulqa" else [name]


def requests_of(name, n_shot, items, sets, tok, m):
    b = benchmark(name)
    p = protocol("lm-eval", **({} if n_shot is None else {"n_shot": n_shot}))
    variant = b.variant(p.variant)[1]
    return list(build_requests(items, sets[name].pool, b, variant, m, tok, p))


def some(values, item, task):
    "Of the options of MC2, those that MC1 has."
    return [values[i] for i in item.extra["mc1"]] if task == "mc1" else list(values)


def our_texts(name, n_shot, items, sets, m):
    "(item, task of the harness) and what is sent for it, prompt and endings, in the order of the items."
    byte = ByteTokenizer() # gives texts back as they were
    for item, r in zip(items, requests_of(name, n_shot, items, sets, byte, replace(m, context_tok=None)), strict=True):
        for task in tasks_for(name, item):
            yield item, task, [r.prompt, *some([byte.decode(c) for c in r.continuation_ids], item, task)]


def our_ids(r, item, task):
    "Hash of a request's token ids, as lm_eval_side.token_ids has it."
    pairs = [[list(r.prompt_ids), list(c)] for c in some(r.continuation_ids, item, task)] or [[list(r.prompt_ids)]]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def text_hash(texts):
    "SHA-256 of many lists of texts, in their order."
    return hashlib.sha256("\n".join(map(json.dumps, texts)).encode()).hexdigest()


def row_of(item, sets):
    "Its row in the file of the harness's task; MMLU has a file a subject."
    return [i for i in sets["mmlu"].items if i.stratum == item.stratum].index(item) if item.stratum else item.row


def rows_of(name, items, sets):
    "Task -> rows, for the job."
    rows = {}
    for item in items:
        for task in tasks_for(name, item): rows.setdefault(task, []).append(row_of(item, sets))
    return rows


# -- the other side ----------------------------------------------------------------------------------------------------

def side(options, job, folder):
    "Run lm_eval_side.py; (part, task, row) -> what it found."
    file, answers = folder / "job.json", folder / "answers.jsonl"
    file.write_text(json.dumps({"folder": str(folder), "code_eval": options.code_eval, **job}))
    env = os.environ | {"HF_ALLOW_CODE_EVAL": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
                        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run([options.python, SIDE, file, answers], env=env, stdout=subprocess.DEVNULL,
                          stderr=None if options.loud else subprocess.PIPE)
    if done.returncode: raise SystemExit(f"{SIDE.name} failed:\n{(done.stderr or b'').decode()[-2000:]}")
    found = map(json.loads, answers.read_text().splitlines())
    return {(a["part"], a["task"], a["row"]): a for a in found}


# -- comparisons -------------------------------------------------------------------------------------------------------

def compare_texts(part, name, n_shot, items, sets, theirs, tok, m):
    out = {"items": len(items), "texts": 0, "texts_equal": 0, "ids_equal": 0, "generation_equal": None, "different": []}
    asked = {r.item_id: r for r in requests_of(name, n_shot, items, sets, tok, m)}
    sent = []
    for item, task, mine in our_texts(name, n_shot, items, sets, m):
        their, r = theirs[part, task, row_of(item, sets)], asked[item.id]
        sent.append([their["prompt"], *their.get("endings", ())])
        same = (mine == sent[-1], their["ids"] == our_ids(r, item, task))
        out["texts"], out["texts_equal"], out["ids_equal"] = (
            out["texts"] + 1, out["texts_equal"] + same[0], out["ids_equal"] + same[1])
        if not all(same): out["different"].append(f"{item.id} {task}")
        if g := their.get("generation"):
            equal = (tuple(g["until"]) == r.stop and r.max_tok == g.get("max_gen_toks", MAX_GEN_TOKS)
                     and not g["do_sample"] and r.sampling.temperature == 0)
            out["generation_equal"] = equal and out["generation_equal"] is not False
    return out | {"lm_eval_sha256_first_20": text_hash(sent[:20 * len(tasks_for(name, items[0]))])}


def cause(mine, theirs, gap):
    "Why a choice differs."
    first, second = sorted(theirs)[-1], sorted(theirs)[-2]
    if first == second: return "tie: the harness takes the first, here credit is shared"
    return f"near-tie: margin {first - second:.2g}, sums differ by {gap:.2g}" if first - second <= 2 * gap else "other"


def compare_scores(part, name, items, sets, said, theirs):
    b = benchmark(name)
    variant = b.variants["lm-eval"]
    scores = {s.item_id: s for s in score_items([(i, said[i.id]) for i in items], variant.score, variant)}
    gaps, metrics, different = [], {}, []
    for item in items:
        for t in tasks_for(name, item):
            their = theirs[part, t, row_of(item, sets)]
            mine = some([c.logprob for c in said[item.id].continuations], item, t)
            gap = max(abs(x - y) for x, y in zip(mine, their["sums"], strict=True))
            gaps.append(gap)
            [found] = their["metrics"].values()
            for metric, value in found.items():
                ours = scores[item.id].metrics[t if t in ("mc1", "mc2") else metric]
                key = t if t in ("mc1", "mc2") else metric
                pairs = metrics.setdefault(key, [])
                pairs.append((ours, value))
                if abs(ours - value) > (MC2 if key == "mc2" else 0):
                    different.append({"item": item.id, "metric": key, "ours": ours, "lm_eval": value,
                                      "cause": cause(mine, their["sums"], gap)})
    return {"items": len(items), "sums": sum(len(said[i.id].continuations) for i in items),
            "largest_nats": max(gaps), "median_nats": statistics.median(gaps), "different": different,
            "metrics": {k: {"n": len(v), "equal": sum(abs(x - y) <= (MC2 if k == "mc2" else 0) for x, y in v),
                            "largest": max(abs(x - y) for x, y in v), "ours": statistics.fmean(x for x, _ in v),
                            "lm_eval": statistics.fmean(y for _, y in v)} for k, v in metrics.items()}}


def score_ours(options, requests, path):
    from qwen_eval.engines.all import start
    longest = max(len(r.prompt_ids) + max(map(len, r.continuation_ids)) for r in requests)
    args = {"dtype": options.dtype, "max_model_len": min(8192, 16 * -(-(longest + 16) // 16)), "max_num_seqs": 32,
            "kv_cache_memory_bytes": 2 << 30}
    kw = {"engine": "vllm"} if options.engine == "vllm" else {}
    with start("process" if kw else "transformers", path, args, **kw) as engine:
        found = {c.item_id: c for c in engine.run(requests)}
        info = {"name": engine.info.name, "version": engine.info.version, "dtype": engine.info.dtype,
                "device": str(engine.info.device)}
    wrong = [c.error for c in found.values() if c.finish_reason == "error"]
    if wrong: raise SystemExit(wrong[0])
    return found, info


# -- replayed completions ----------------------------------------------------------------------------------------------

def read_completions(name, spec, items):
    "Item id -> texts, out of a file; which models wrote them does not matter here."
    text = gzip.decompress(Path(spec).read_bytes()) if spec.endswith(".gz") else Path(spec).read_bytes()
    by_question = {i.question: i.id for i in items} # OpenAI's solutions carry no id
    known, said = {i.id for i in items}, {}
    for row in map(json.loads, text.splitlines()):
        key = str(row.get("id") or row.get("task_id") or "").replace("Mbpp/", "mbpp/")
        key = key if key in known else f"{name}/test/{key}" if f"{name}/test/{key}" in known else \
            by_question.get(row.get("question"))
        texts = ([row[k] for k in ("completion", "solution") if isinstance(row.get(k), str)]
                 + [v["solution"] for v in row.values() if isinstance(v, dict) and "solution" in v])
        texts += [t.replace("\nA: ", "\n#### ") for t in texts if "\nA: " in t] # OpenAI's own mark of the answer
        if key: said.setdefault(key, []).extend(texts)
    return said


def gold(item): return str(item.extra.get("solution", item.target))


def replay(options, name, said, sets, folder):
    "Both verdicts on every completion; a difference is named by what our scorer says of it."
    b = benchmark(name)
    variant, items = b.variants["lm-eval"], [i for i in sets[name].items if i.id in said]
    job = {"name": name, "benchmark": name, "shots": 0, "rows": {name: [i.row for i in items]},
           "completions": {str(i.row): said[i.id] for i in items}}
    theirs = side(options, {"parts": [job]}, folder)
    pairs = [(i, Completion(item_id=i.id, epoch=n, text=t)) for i in items for n, t in enumerate(said[i.id])]
    ours = {(s.item_id, s.epoch): s for s in score_items(pairs, variant.score, variant, ScoreOptions(n_workers=2))}
    names = {"strict-match": "exact_match_strict", "flexible-extract": "exact_match_flexible"}
    counts, different, bits = {}, [], {}
    for item in items:
        for n, verdict in enumerate(theirs[name, name, item.row]["verdicts"]):
            score = ours[item.id, n]
            for filter_name, [value] in ((f, v.values()) for f, v in verdict.items()):
                key = names.get(filter_name, "pass@1")
                mine = score.metrics.get(key, score.value)
                c = counts.setdefault(key, Counter())
                c.update(n=1, equal=int(mine == value), ours=mine, lm_eval=value)
                bits[key] = bits.get(key, "") + str(int(value))
                if mine != value:
                    different.append({"item": item.id, "n": n, "metric": key, "ours": mine, "lm_eval": value,
                                      "status": score.status, "detail": score.detail.partition(":")[0]})
    hashes = {k: hashlib.sha256(b.encode()).hexdigest() for k, b in bits.items()}
    return {"completions": len(pairs), "items": len(items), "different": different,
            "metrics": {k: dict(c) | {"lm_eval_sha256": hashes[k]} for k, c in counts.items()}}


# -- all of it ---------------------------------------------------------------------------------------------------------

def table(result):
    head = "part", "items", "texts equal", "ids equal", "scored", "largest nats", "equal"
    rows = [head, tuple("---" for _ in head)]
    for part, r in result["parts"].items():
        s = r.get("scores", {})
        equal = ", ".join(f"{k} {v['equal']}/{v['n']}" for k, v in s.get("metrics", {}).items())
        rows.append((part, r["items"], f"{r['texts_equal']}/{r['texts']}", f"{r['ids_equal']}/{r['texts']}",
                     s.get("items", ""), f"{s['largest_nats']:.2g}" if s else "", equal))
    for source, r in result["replayed"].items():
        equal = ", ".join(f"{k} {v['equal']}/{v['n']}" for k, v in r["metrics"].items())
        rows.append((f"replayed {source}", r["items"], "", "", r["completions"], "", equal))
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def pick(options, sets):
    "The items, at random; any head of the list is a sample too."
    return {name: random.Random(f"{options.seed} {name}").sample(s.items, min(options.items, len(s.items)))
            for name, s in sets.items()}


def measure(options, folder):
    names = {p: PARTS[p] for p in PARTS if not options.parts or any(p.startswith(w) for w in options.parts)}
    wanted = {b for b, _ in names.values()} | {s.partition("=")[0] for s in options.replay}
    sets = {name: write_rows(name, folder) for name in sorted(wanted)}
    located = locate(model(options.model))
    m, tok, path, chosen = located.model, tokenizer(located), located.path, pick(options, sets)
    hf = {"class": "hf", "path": str(path), "dtype": options.dtype, "device": options.device, "batch": options.batch}
    scorer = hf | {"class": "hf" if options.engine == "transformers" else "vllm", "max_model_len": 8192}
    result = {"harness": "lm-eval 0.4.13", "model": options.model, "seed": options.seed, "device": detect().name,
              "packages": environment()["packages"], "parts": {}, "replayed": {}}
    def job(part, items, **more):
        name, n_shot = names[part]
        return {"name": part, "benchmark": name, "shots": n_shot or 0, "rows": rows_of(name, items, sets)} | more
    jobs = [job(p, chosen[b]) for p, (b, _) in names.items()]
    theirs = side(options, {"model": hf, "parts": jobs}, folder) if jobs else {}
    for part, (name, n_shot) in names.items():
        result["parts"][part] = compare_texts(part, name, n_shot, chosen[name], sets, theirs, tok, m)
    for part in [p for p, (b, _) in names.items() if benchmark(b).task_type == "choice" and not options.texts]:
        name, n_shot = names[part]
        items, begin = chosen[name][:options.score], time.perf_counter()
        theirs = side(options, {"model": scorer, "parts": [job(part, items, score=True)]}, folder)
        between = time.perf_counter()
        said, info = score_ours(options, requests_of(name, n_shot, items, sets, tok, m), path)
        seconds = {"lm_eval": round(between - begin), "ours": round(time.perf_counter() - between)}
        result["parts"][part]["scores"] = (compare_scores(part, name, items, sets, said, theirs)
                                           | {"engine": info, "seconds": seconds})
        options.out.write_text(json.dumps(result, indent=1))
        print(part, seconds, file=sys.stderr, flush=True)
    for spec in options.replay:
        name, _, file = spec.partition("=")
        if file == "gold": said, label = {i.id: [gold(i)] for i in chosen[name]}, file
        else: said, label = read_completions(name, file, sets[name].items), "/".join(Path(file).parts[-3:-1])
        result["replayed"][f"{name}: {label}"] = replay(options, name, said, sets, folder)
    return result


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--python", required=True, help="an interpreter that holds lm-eval")
    ask.add_argument("--parts", nargs="*", default=[], help=f"beginnings of names; of {', '.join(PARTS)}")
    ask.add_argument("--model", default="smollm2_135m")
    ask.add_argument("--items", type=int, default=200, help="whose texts are compared")
    ask.add_argument("--score", type=int, default=200, help="of these, whose likelihoods are compared")
    ask.add_argument("--texts", action="store_true", help="compare texts only")
    ask.add_argument("--engine", choices=("transformers", "vllm"), default="transformers", help="on both sides")
    ask.add_argument("--device", default="cpu", help="of the harness's model class")
    ask.add_argument("--dtype", default="float32")
    ask.add_argument("--batch", type=int, default=8, help="of the harness's transformers class")
    ask.add_argument("--seed", type=int, default=0, help="of the choice of items")
    ask.add_argument("--replay", action="append", default=[], metavar="NAME=FILE")
    ask.add_argument("--code-eval", metavar="DIR", help="a folder that holds code_eval/code_eval.py")
    ask.add_argument("--loud", action="store_true", help="show what the other side prints")
    ask.add_argument("--out", type=Path, default=Path("parity_lm_eval.json"))
    options = ask.parse_args()
    with tempfile.TemporaryDirectory() as folder: result = measure(options, Path(folder))
    options.out.write_text(json.dumps(result, indent=1))
    print(table(result))
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
