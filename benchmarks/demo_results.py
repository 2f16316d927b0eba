"""Makes the demonstration results beside the real ones: python benchmarks/demo_results.py simulated|published

`simulated` (data/demo/simulated): models that do not exist, answered by the fake engine with a declared skill through
`evaluate`, on real items; for the analyses that need several models, repeats and a history. Nothing in it is a result
of anything; every run carries the mark `fake-engine`, every id begins with `simulated`, times and energy are declared
by the formulas below and stand in the manifest under `simulated`. Needs the items of gsm8k, arc_challenge and mmlu
(QWEN_EVAL_DATA). The same command makes the same bytes again (with the same version of pyarrow).

`published` (data/demo/published): real verdicts, item by item, of four systems on the 1,319 items of GSM8K, as their
authors published them (Cobbe et al. 2021; github.com/openai/grade-school-math, example_model_solutions.jsonl, MIT):
right or wrong, no texts. Needs --verdicts FILE (CSV, one column a system, rows in the order of the test file).
"""
import argparse
import csv
import hashlib
import json
import math
import shutil
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from statistics import NormalDist

from qwen_eval.datasets.all import benchmark
from qwen_eval.datasets.base import item_order, load
from qwen_eval.engines.base import FakeEngine
from qwen_eval.evaluation import evaluate
from qwen_eval.models import Model
from qwen_eval.prompts import letter_order
from qwen_eval.records import Completion, Score
from qwen_eval.runs import Run
from qwen_eval.scores import score_frame
from qwen_eval.sharing import publish
from qwen_eval.store import run_id

ROOT = Path(__file__).resolve().parent.parent
DAY_ZERO = datetime(2026, 1, 5, 6, tzinfo=timezone.utc)
SIZES = {"8b": 8_190_735_360, "14b": 14_768_307_200}
SKILL = {("gen1", "8b"): -0.5, ("gen1", "14b"): 0.1, ("gen2", "8b"): 0.6, ("gen2", "14b"): 1.1, ("gen3", "8b"): 1.2,
         ("gen3", "14b"): 1.5} # logits above an item of mean difficulty
EASE = {"gsm8k": 0.3, "arc_challenge": 0.9, "mmlu": 0.2} # of the benchmark, logits
LIMITS = {"gsm8k": 300, "arc_challenge": 300, "mmlu": 285}
FLIPS = {"performance": 0.006, "memory_optimized": 0.004, "twin": 0.005} # share of answers drawn anew
PACE = {"balanced": 1.0, "performance": 1.7, "memory_optimized": 0.6} # times the throughput of the balanced preset
KV_GIB = {"balanced": 96, "performance": 103, "memory_optimized": 24}
N_HISTORY, DROP_AT, DROP, HISTORY_ITEMS = 26, 22, 0.9, 100 # runs, first worse run, by how many logits, items


def share(*key):
    "A number in (0, 1) that belongs to a key, the same everywhere."
    return (int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big") + 0.5) / 2**56


def normal(*key): return NormalDist().inv_cdf(share(*key))


def right(model, item_id, skill, ease, draw):
    "Is the item answered right? Difficulty and discrimination belong to the item, chance to model, item and draw."
    slope = math.exp(0.3 * normal("slope", item_id))
    logit = slope * (skill + ease - 1.3 * normal("difficulty", item_id))
    return share("answer", model, item_id, draw) < 1 / (1 + math.exp(-logit))


def wrong_label(item, labels): return sorted(set(labels.values()) - {labels[item.target]})[0]


def answerer(model, items, skill, ease, preset, twin, history):
    "What the fake engine says to a request: a bare answer, with the tokens and times that the formulas give it."
    by_id, pace = {i.id: i for i in items}, PACE[preset]
    again = FLIPS.get("twin" if twin else preset, 0.0)
    tok_s = 4.8e12 * 0.5 / (2 * model.n_params) # half of an H200's memory bandwidth, 16-bit weights, one sequence

    def answer(request):
        item = by_id[request.item_id]
        anew = share("anew", model.id, item.id, preset, twin) < again
        draw = ("history", history) if history is not None else (preset, twin) if anew else "first"
        good = right(model.id, item.id, skill, ease, draw)
        if item.choices:
            labels = {i: chr(65 + k) for k, i in enumerate(letter_order(item))}
            text = labels[item.target] if good else wrong_label(item, labels)
        else: text = f"#### {item.target if good else '-1'}"
        n_tok = 1 + round(120 * math.exp(0.5 * normal("length", item.id))) if not item.choices else 6
        wait = 0.2 * share("wait", model.id, item.id, draw) / pace
        took = wait + n_tok / tok_s * (1 + 0.3 * (pace - 1))
        return Completion(item_id=item.id, text=text, finish_reason="stop", n_prompt_tok=40 + len(item.question) // 4,
                          n_output_tok=n_tok, queue_s=0.0, ttft_s=round(wait, 2), latency_s=round(took, 2))
    return answer


def declared(manifest, model, preset, scores, started):
    "The manifest with declared times, memory and energy in place of those of this machine."
    n_tok = int(scores.n_output_tok.sum())
    pace = 32 * 4.8e12 * 0.5 / (2 * model.n_params) * PACE[preset] # 32 sequences at a time
    noise = 1 + 0.03 * normal("pace", manifest["run_id"])
    seconds = round(max(n_tok, 10 * len(scores)) / pace / noise, 3)
    peak = round(2 * model.n_params / 2**30 + KV_GIB[preset], 2)
    power = round(450 + 60 * (PACE[preset] - 1), 1)
    end = (started + timedelta(seconds=seconds)).isoformat(timespec="seconds")
    begin = started.isoformat(timespec="seconds")
    card = {"name": "simulated card", "span_s": seconds, "energy_j": round(power * seconds, 1),
            "energy_by": "simulated", "power_w": power, "power_max_w": power, "utilisation": 0.9,
            "memory_start_gib": 0.0, "memory_peak_gib": peak, "n_readings": 2}
    session = {"started": begin, "finished": end, "limit": len(scores), "engine_start_s": 0.0,
               "engine": {k: manifest["sessions"][0]["engine"][k] for k in ("name", "version", "args")},
               "n_completions": len(scores), "n_errors": 0, "n_prompt_tok": int(scores.n_prompt_tok.sum()),
               "n_output_tok": n_tok, "generate_s": seconds, "performance": {"cards": [card]}}
    score = {"status": "complete", "n_scored": len(scores), "finished": end}
    kept = {k: v for k, v in manifest.items() if k not in ("environment", "hardware", "asked", "counts")}
    facts = {k: v for k, v in manifest["model"].items() if v not in (None, (), [], "")}
    bench = {k: v for k, v in manifest["benchmark"].items() if k in ("id", "version", "task_type", "range", "clusters")}
    return {**kept, "started": begin, "model": facts, "benchmark": bench, "sessions": [session],
            "stages": {**manifest["stages"], "score": score},
            "simulated": "by benchmarks/demo_results.py: answers, times, memory and energy are made up"}


def keep(folder, manifest, scores):
    "One run as it is committed: small, and the same bytes at every call."
    import pyarrow as pa
    import pyarrow.parquet as pq
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(scores, preserve_index=False).replace_schema_metadata(None)
    text = ("answer", "detail", "stratum", "cluster", "status", "finish_reason", "item_id")
    schema = pa.schema([(f.name, pa.string() if f.name in text else f.type) for f in table.schema])
    pq.write_table(table.cast(schema), folder / "scores.parquet", compression="zstd", compression_level=19,
                   write_statistics=False, store_schema=False)
    (folder / "manifest.json").write_text(json.dumps(manifest, separators=(",", ":"), ensure_ascii=False) + "\n")


def asked_for():
    "(generation, size, benchmark, preset, twin, number in the history) of every simulated run."
    for generation, size in SKILL:
        for b in LIMITS: yield generation, size, b, "balanced", False, None
    for b in ("gsm8k", "arc_challenge"):
        for preset, twin in (("performance", False), ("memory_optimized", False), ("balanced", True)):
            yield "gen3", "8b", b, preset, twin, None
    for n in range(N_HISTORY): yield "gen2", "8b", "gsm8k", "balanced", False, n


def simulate(to, only=""):
    "Make the simulated runs whose description holds a word; returns their folders."
    sets, made = {b: load(benchmark(b)) for b in LIMITS}, []
    for n, (generation, size, b, preset, twin, day) in enumerate(asked_for()):
        name = f"simulated_{generation}_{size}"
        if day is not None: name = "simulated_nightly"
        if only not in f"{name} {b} {preset} {'twin' if twin else ''} {'' if day is None else day}": continue
        model = Model(id=name, family=f"simulated_{generation}", n_params=SIZES[size], context_tok=32768,
                      variant="chat", notes="does not exist")
        skill = SKILL[generation, size] - (DROP if day is not None and day >= DROP_AT else 0)
        says = answerer(model, sets[b].items, skill, EASE[b], preset, twin, day)
        more = {"twin": True} if twin else {}
        with tempfile.TemporaryDirectory() as home:
            run = evaluate(model, b, preset, engine=FakeEngine(says), runs=home, progress=False, seed=day or 0,
                           limit=HISTORY_ITEMS if day is not None else LIMITS[b], answer_tok=1024, **more)
            [copy] = publish([run], Path(home) / "shared")
            shared = Run(copy)
            started = DAY_ZERO + (timedelta(days=7 * day) if day is not None else timedelta(hours=n))
            manifest = declared(shared.manifest, model, preset, shared.scores, started)
            keep(to / run.id, manifest, shared.scores)
        made.append(to / run.id)
    return made


SYSTEMS = {"6b_finetuning": (6_000_000_000, "finetuning"), "6b_verification": (6_000_000_000, "verification"),
           "175b_finetuning": (175_000_000_000, "finetuning"), "175b_verification": (175_000_000_000, "verification")}


def import_published(to, verdicts):
    "Make runs of the published verdicts; returns their folders."
    b, made = benchmark("gsm8k"), []
    found = load(b)
    rows = list(csv.DictReader(verdicts.open(encoding="utf-8")))
    source = "github.com/openai/grade-school-math, example_model_solutions.jsonl (MIT), is_correct"
    for column, (n_params, way) in SYSTEMS.items():
        if len(rows) != len(found.items): sys.exit(f"{len(rows)} verdicts, {len(found.items)} items")
        print_ = {"format": 1, "model": {"id": f"openai_{column}", "hub_id": None, "revision": None,
                                         "quantization": None, "template": ""},
                  "benchmark": {"id": b.id, "version": b.version, "variant": "published",
                                "declaration": {"score": "is_correct, as published", "metric": "exact_match"}},
                  "preset": {"id": "unknown"}, "protocol": {"n_shot": 0, "epochs": 1, "seed": None, "system": None},
                  "items": {"hash": found.item_set_hash, "marks": list(found.marks), "order_seed": 0},
                  "engine": {"name": "published", "version": "", "dtype": "", "args": {}},
                  "device": {"kind": "", "name": ""}}
        ordered = item_order(found.items, b.id, 0)
        by_id = {i.id: r for i, r in zip(found.items, rows, strict=True)}
        scores = [Score(item_id=i.id, value=float(by_id[i.id][column]), status="scored",
                        metrics={"exact_match": float(by_id[i.id][column])}) for i in ordered]
        frame = score_frame(scores, {}, ordered).assign(answer=None, detail=None)
        marks = [*found.marks, "published-verdicts"]
        manifest = {"format": 1, "run_id": run_id(print_), "started": "2021-10-27T00:00:00+00:00",
                    "fingerprint": print_, "sessions": [], "stages": {
                        "generate": {"status": "complete", "n_items": len(rows), "n_done": len(rows),
                                     "n_wanted": len(rows)}, "score": {"status": "complete", "n_scored": len(rows)}},
                    "effective": {}, "metric": "exact_match", "n_shot": 0, "epochs": 1, "marks": marks,
                    "model": {"id": f"openai_{column}", "family": f"openai_gsm8k_{way}", "n_params": n_params},
                    "preset": {"id": "unknown"}, "protocol": {"id": "unknown"}, "benchmark": {"id": b.id},
                    "items": {"n": len(rows), "pool": len(found.pool), "source": found.source, "data_file": None,
                              "marks": list(found.marks), "item_set_hash": found.item_set_hash,
                              "verified": found.verified},
                    "shared": "without prompts, completions, answers and details", "published": source}
        keep(to / manifest["run_id"], manifest, frame)
        made.append(to / manifest["run_id"])
    return made


def main():
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("what", choices=("simulated", "published"))
    p.add_argument("--to", type=Path, help="folder; that of the repository by default, which is emptied first")
    p.add_argument("--only", default="", help="simulated runs whose description holds this")
    p.add_argument("--verdicts", type=Path, help="CSV of published verdicts")
    a = p.parse_args()
    to = a.to or ROOT / "data/demo" / a.what
    if not a.to and not a.only: shutil.rmtree(to, ignore_errors=True)
    made = simulate(to, a.only) if a.what == "simulated" else import_published(to, a.verdicts)
    size = sum(f.stat().st_size for f in to.rglob("*") if f.is_file())
    print(f"{len(made)} runs in {to}, {size / 1e3:.0f} kB in all")


if __name__ == "__main__": main()
