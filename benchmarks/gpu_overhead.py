"""What the toolkit costs on top of the engine: the same token ids, sampling and engine, asked bare and by evaluate().

    python benchmarks/gpu_overhead.py MODEL_FOLDER --small SMALL_FOLDER --out DIR [--stages jobs process equal]

MODEL_FOLDER and SMALL_FOLDER hold config.json and a tokenizer (real shapes, of 8B and 0.6B); weights are made up
(load format "dummy"), so the speed is real and the answers mean nothing. QWEN_EVAL_DATA names the folder of the items.
Bare means: all requests to the LLMEngine object that evaluate() uses too, then its steps until all are finished, as
vLLM's LLM.generate does it, with detokenisation. Preset `performance` on both sides, the prefix cache emptied before
each job, sides alternating. `--tiny` runs the same with small numbers on weights that are there, to try the script.

Each stage is a process with a time limit; each row is on the disk when it is made, whatever happens later:
jobs      GSM8K-like, ARC-like by label positions, continuations on the kit's shapes
process   GSM8K-like and ARC-like through the engine process of a study
equal     continuations from the prefix cache against the plain way, float32, weights with real spread
hella     continuations of real HellaSwag items; equality in bfloat16
thinking  300 requests of log-normal length
budget    thinking ended at a budget against as many tokens in one go
inproc    GSM8K-like with the engine's core in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0)
"""
import argparse
import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from qwen_eval.datasets.all import benchmark as find_benchmark
from qwen_eval.datasets.base import load
from qwen_eval.engines.base import Engine
from qwen_eval.engines.process import EngineProcess
from qwen_eval.engines.vllm import VLLMEngine, continuation_score, sampling_args
from qwen_eval.engines.vllm_load import WorkerFacts
from qwen_eval.evaluation import evaluate
from qwen_eval.hardware import detect
from qwen_eval.models import model as find_model
from qwen_eval.plans import plan_run
from qwen_eval.presets import engine_args, preset
from qwen_eval.records import Request

LIMITS = {"jobs": 360, "process": 200, "equal": 110, "hella": 240, "thinking": 520, "budget": 420, "inproc": 130} # s
FULL = {"gsm": 660, "gsm_tok": 256, "gsm_shots": 8, "arc": 1172, "arc_shots": 6, "repeats": 3, "arc_repeats": 12,
        "shared": 504,
        "kit": 600, "kit_plain": 150, "hella": 500, "hella_plain": 250, "hella_shots": 10, "check": 100,
        "context": 17408, "think": 300, "median": 2048, "p95": 8192, "cap": 16384, "budget": 4096, "after": 256}
TINY = {"gsm": 24, "gsm_tok": 8, "gsm_shots": 2, "arc": 30, "arc_shots": 1, "repeats": 2, "arc_repeats": 2,
        "shared": 56,
        "kit": 4, "kit_plain": 1, "hella": 2, "hella_plain": 1, "hella_shots": 0, "check": 1, "context": 2048,
        "think": 10, "median": 32, "p95": 90, "cap": 128, "budget": 48, "after": 8}


class Spread(WorkerFacts):
    "A worker extension of vLLM: weights whose log-probabilities spread as those of a trained model do."
    def spread_weights(self):
        import torch
        for i, (name, p) in enumerate(self.get_model().named_parameters()):
            scale = (2.5 if "embed" in name or "lm_head" in name else 1.0) / p.shape[-1] ** 0.5
            if p.dim() < 2: p.data.fill_(0.0 if name.endswith("bias") else 1.0)
            else: p.data.normal_(0, scale, generator=torch.Generator(p.device).manual_seed(i))


class Watched(Engine):
    "An engine whose requests are changed on their way, and that notes when it was asked and when it was done."
    def __init__(self, engine, change=lambda r: r):
        self.engine, self.change, self.capabilities, self.info = engine, change, engine.capabilities, engine.info
        self.began = self.ended = None

    def run(self, requests):
        self.began, self.left = time.perf_counter(), []
        for c in self.engine.run(map(self.change, requests)):
            self.ended = time.perf_counter()
            self.left.append(self.ended - self.began)
            yield c


class Bench:
    "One stage: its options, its engine's arguments, and the file that its rows go to."
    def __init__(self, options):
        self.o, self.n = options, TINY if options.tiny else FULL
        self.runs = Path(tempfile.mkdtemp(prefix="gpu_overhead_"))

    def row(self, job, side, rep=0, **values):
        kept = {"stage": self.o.stage, "job": job, "side": side, "rep": rep, **values}
        kept = {k: round(v, 4) if isinstance(v, float) else v for k, v in kept.items()}
        print("ROW", json.dumps(kept, default=str), flush=True)
        with open(self.o.out / "rows.jsonl", "a") as f: f.write(json.dumps(kept, default=str) + "\n")

    def args(self, path, **more):
        device = detect()
        args = engine_args(preset("performance"), find_model(path), device, self.n["context"])
        if self.o.tiny: args |= {"max_num_seqs": 8, "dtype": "float32"}
        else: args |= {"dtype": "bfloat16", "load_format": "dummy"}
        return {**args, "worker_extension_cls": "gpu_overhead.Spread", **more}

    def engine(self, path=None, **more):
        begin, path = time.perf_counter(), path or self.o.model
        engine = VLLMEngine(path, self.args(path, **more))
        self.row("start", "engine", seconds=time.perf_counter() - begin, vllm=engine.info.version,
                 device=detect().name, args=engine.info.args, effective=engine.info.effective)
        return engine

    def job(self, work, *args):
        "One job, if it is wanted; what goes wrong is a row, and the next job goes on."
        if self.o.only and work.__name__ not in self.o.only: return
        begin = time.perf_counter()
        try: work(self, *args)
        except Exception as e:
            import traceback
            traceback.print_exc()
            self.row(work.__name__, "error", error=f"{type(e).__name__}: {e}"[:400])
        print(f"{work.__name__} took {time.perf_counter() - begin:.1f} s", flush=True)

    def asked(self, what, engine, **how):
        "Plan and requests of a benchmark, as evaluate() would make them."
        plan = plan_run(self.o.model, what, "performance", engine=engine, runs=self.runs, **how)
        return plan, list(plan.requests(plan.items[:plan.limit]))

    def ours(self, job, engine, what, rep, side="ours", change=lambda r: r, **how):
        watched = Watched(engine, change)
        with tempfile.TemporaryDirectory(dir=self.runs) as runs:
            begin = time.perf_counter()
            run = evaluate(self.o.model, what, "performance", engine=watched, progress=False, runs=runs, **how)
            seconds = time.perf_counter() - begin
            counts, done = run.counts, run.completions().values()
            self.row(job, side, rep, seconds=seconds, before_s=watched.began - begin,
                     after_s=begin + seconds - watched.ended, counts={k: v for k, v in counts.items() if v},
                     n=len(done), n_output_tok=sum(c.n_output_tok for c in done),
                     n_prompt_tok=sum(c.n_prompt_tok for c in done), n_cached_tok=sum(c.n_cached_tok for c in done),
                     **tail(watched.left))

    def bare(self, job, engine, requests, rep, side="bare"):
        empty_cache(engine)
        seconds, outputs, left = bare(engine, requests)
        self.row(job, side, rep, seconds=seconds, n=len(outputs),
                 n_output_tok=sum(len(o.outputs[0].token_ids) for o in outputs),
                 n_prompt_tok=sum(len(o.prompt_token_ids) for o in outputs),
                 n_cached_tok=sum(o.num_cached_tokens or 0 for o in outputs), **tail(left))


def empty_cache(engine): engine._engine.reset_prefix_cache()


def tail(left):
    "How much of the time few requests were at work: mean share of finished requests, seconds after 90 % were done."
    if not left: return {}
    left = sorted(left)
    return {"idle_share": 1 - statistics.mean(left) / left[-1], "tail_s": left[-1] - left[int(0.9 * (len(left) - 1))]}


def bare(engine, requests, cached=True):
    "Seconds, outputs, and when each came: what LLM.generate does, on the LLMEngine object that ours holds."
    from vllm.sampling_params import RequestOutputKind
    core, outputs, left = engine._engine, [], []
    sent = []
    for r in requests:
        given = sampling_args(r, engine._known, cached=cached)
        parts = r.continuation_ids if r.mode == "continuations" else ((),)
        sent += [({"prompt_token_ids": [*r.prompt_ids, *p]}, given) for p in parts]
    params = [engine._params(**given, output_kind=RequestOutputKind.FINAL_ONLY) for _, given in sent]
    begin = time.perf_counter()
    for n, ((prompt, _), p) in enumerate(zip(sent, params, strict=True)): core.add_request(f"bare{n}", prompt, p)
    while core.has_unfinished_requests():
        finished = [o for o in core.step() if o.finished]
        outputs += finished
        left += [time.perf_counter() - begin] * len(finished)
    seconds = time.perf_counter() - begin
    return seconds, sorted(outputs, key=lambda o: int(o.request_id.removeprefix("bare"))), left


# ---------------------------------------------------------------- jobs
def gsm_how(n, rep): # another seed takes other examples, so that no repeat finds the prompts of an earlier one
    return {"variant": "cot", "n_shot": n["gsm_shots"], "answer_tok": n["gsm_tok"], "limit": n["gsm"], "seed": rep}


def arc_how(n, rep): return {"variant": "label", "n_shot": n["arc_shots"], "limit": n["arc"], "seed": rep}


def gsm8k_like(b, engine):
    for rep in range(b.n["repeats"]):
        how = gsm_how(b.n, rep)
        requests = b.asked("gsm8k", engine, **how)[1]
        b.bare("gsm8k-like", engine, requests, rep)
        empty_cache(engine)
        b.ours("gsm8k-like", engine, "gsm8k", rep, **how)
    without_stats(b, engine, requests)


def without_stats(b, engine, requests):
    "The same bare job while the engine counts nothing and takes no times, which is what LLM.generate's default is."
    core = engine._engine
    held = core.log_stats, core.output_processor.log_stats, core.logger_manager
    core.log_stats, core.output_processor.log_stats, core.logger_manager = False, False, None
    try: b.bare("gsm8k-like", engine, requests, side="bare, no statistics", rep=0)
    finally: core.log_stats, core.output_processor.log_stats, core.logger_manager = held


def arc_like(b, engine):
    for rep in range(b.n["arc_repeats"]):
        how = arc_how(b.n, rep)
        requests = b.asked("arc_challenge", engine, **how)[1]
        for side in ("bare", "ours") if rep % 2 == 0 else ("ours", "bare"):
            empty_cache(engine)
            if side == "bare": b.bare("arc-like", engine, requests, rep)
            else: b.ours("arc-like", engine, "arc_challenge", rep, **how)


def kit_questions(n, n_shared, n_own, seed):
    "The kit's shapes: 504 tokens that all share, 70 of one's own, four continuations of 8 random tokens."
    rng = random.Random(seed)
    def ids(k): return tuple(rng.randrange(1000, 150000) for _ in range(k))
    shared = ids(n_shared)
    return [Request(item_id=str(i), mode="continuations", prompt_ids=shared + ids(n_own),
                    continuation_ids=tuple(ids(8) for _ in range(4))) for i in range(n)]


def timed(b, job, engine, questions, rep, plain=False):
    empty_cache(engine)
    n_sent, begin = engine.n_requests, time.perf_counter()
    if plain: seconds, n_sent = bare(engine, questions, cached=False)[0], None
    else:
        done = list(engine.run(questions))
        seconds, n_sent = time.perf_counter() - begin, engine.n_requests - n_sent
        if any(c.finish_reason == "error" for c in done): raise RuntimeError("an item ended with an error")
    b.row(job, "plain" if plain else "ours", rep, seconds=seconds, n=len(questions), engine_requests=n_sent,
          questions_s=len(questions) / seconds)


def continuations(b, engine):
    for rep in range(b.n["repeats"]):
        questions = kit_questions(b.n["kit"], b.n["shared"], 70, rep)
        timed(b, "continuations, kit", engine, questions[:b.n["kit_plain"]], rep, plain=True)
        timed(b, "continuations, kit", engine, questions, rep)
    questions = kit_questions(b.n["kit"], b.n["shared"], 72, 7) # whole blocks: the first token is asked for by itself
    timed(b, "continuations, kit, whole blocks", engine, questions[:b.n["kit_plain"]], 0, plain=True)
    timed(b, "continuations, kit, whole blocks", engine, questions, 0)


def hellaswag_items():
    "Items and ten-shot pool from the one split that lies here; the rows of the pool are not asked."
    found = load(find_benchmark("hellaswag"))
    return found if found.pool else replace(found, items=found.items[:-1000], pool=found.items[-1000:])


def hellaswag(b, engine):
    how = {"variant": "cloze", "n_shot": b.n["hella_shots"], "limit": b.n["hella"], "item_set": hellaswag_items()}
    for rep in range(b.n["repeats"]):
        empty_cache(engine)
        b.ours("hellaswag", engine, "hellaswag", rep, **how)
    requests = b.asked("hellaswag", engine, **how)[1]
    timed(b, "hellaswag, engine alone", engine, requests, 0)
    timed(b, "hellaswag, engine alone", engine, requests[:b.n["hella_plain"]], 0, plain=True)


def equality(b, engine, dtype, n):
    "Sums from the prefix cache against the plain way, and the plain way against itself in another order."
    if detect().kind == "cuda": engine._engine.collective_rpc("spread_weights")
    how = {"variant": "cloze", "n_shot": b.n["hella_shots"], "limit": n, "item_set": hellaswag_items()}
    sets = {f"kit, {504 + own}": kit_questions(n, b.n["shared"], own, 3) for own in (70, 72)}
    sets["hellaswag"] = b.asked("hellaswag", engine, **how)[1]
    for name, questions in sets.items():
        sums = []
        for order in (questions, questions[::-1]):
            empty_cache(engine)
            scored = iter(bare(engine, order, cached=False)[1])
            found = {r.item_id: [continuation_score(next(scored), c).logprob for c in r.continuation_ids]
                     for r in order}
            sums.append([found[r.item_id] for r in questions])
        empty_cache(engine)
        ours = {c.item_id: [x.logprob for x in c.continuations] for c in engine.run(questions)}
        compare(b, name, dtype, questions, *sums, [ours[r.item_id] for r in questions])


def compare(b, name, dtype, questions, plain, again, ours):
    lengths = [len(c) for r in questions for c in r.continuation_ids]
    def flat(x): return [v for row in x for v in row]
    def most(a, c): return max(abs(x - y) for x, y in zip(flat(a), flat(c), strict=True))
    def each(a, c): return max(abs(x - y) / n for x, y, n in zip(flat(a), flat(c), lengths, strict=True))
    best = [[max(range(len(row)), key=row.__getitem__) for row in x] for x in (plain, again, ours)]
    per_tok = [v / n for v, n in zip(flat(plain), lengths, strict=True)]
    b.row(f"equality, {name}, {dtype}", "ours", n=len(lengths), largest_sum_nats=most(plain, ours),
          largest_per_token_nats=each(plain, ours), plain_again_sum_nats=most(plain, again),
          plain_again_per_token_nats=each(plain, again), spread_of_sums_nats=statistics.pstdev(flat(plain)),
          spread_per_token_nats=statistics.pstdev(per_tok), questions=len(questions),
          same_choice=sum(x == y for x, y in zip(best[0], best[2], strict=True)),
          same_choice_again=sum(x == y for x, y in zip(best[0], best[1], strict=True)))


# ---------------------------------------------------------------- thinking
def lengths(n):
    "Output lengths, log-normal: the same on both sides."
    rng = random.Random(1)
    sigma = math.log(n["p95"] / n["median"]) / statistics.NormalDist().inv_cdf(0.95)
    draws = [n["median"] * math.exp(sigma * rng.gauss(0, 1)) for _ in range(n["think"])]
    return [max(8, min(n["cap"], round(x))) for x in draws]


def think_how(n, cap):
    return {"variant": "cot", "protocol": "qwen3_thinking", "epochs": 1, "limit": n["think"],
            "thinking_tok": cap - n["after"], "answer_tok": n["after"]}


def by_item(plan, found): return {i.id: x for i, x in zip(plan.items, found, strict=False)}


def thinking_like(b, engine, rep):
    how = think_how(b.n, b.n["cap"])
    plan, requests = b.asked("gsm8k", engine, **how)
    wanted = by_item(plan, lengths(b.n))
    def cut(r): return replace(r, max_tok=wanted[r.item_id])
    b.row("thinking-like", "lengths", median=statistics.median(wanted.values()), longest=max(wanted.values()),
          total=sum(wanted.values()), p95=sorted(wanted.values())[int(0.95 * len(wanted))])
    b.bare("thinking-like", engine, list(map(cut, requests)), rep)
    empty_cache(engine)
    b.ours("thinking-like", engine, "gsm8k", rep, change=cut, **how)


def forced_end(b, engine, rep):
    how = {**think_how(b.n, b.n["budget"] + b.n["after"]), "end_thinking": True}
    plan, requests = b.asked("gsm8k", engine, **how)
    wanted = by_item(plan, lengths(b.n))
    opened = tuple(plan.tokenizer("<think>\n", add_special_tokens=False)["input_ids"])
    def cut(r): # weights that are made up open no block; who would end before the budget ends there
        n, r = wanted[r.item_id], replace(r, prompt=r.prompt + "<think>\n", prompt_ids=r.prompt_ids + opened)
        return replace(r, max_tok=n, thinking_tok=0) if n <= b.n["budget"] else r
    def whole(r): # as many tokens produced, in one go
        r = cut(r)
        return replace(r, thinking_tok=0, max_tok=r.max_tok - len(r.thinking_end) * (r.thinking_tok > 0))
    b.bare("thinking ended at a budget", engine, list(map(whole, requests)), rep)
    empty_cache(engine)
    b.ours("thinking ended at a budget", engine, "gsm8k", rep, change=cut, **how)


# ---------------------------------------------------------------- stages
def jobs(b):
    with b.engine() as engine:
        warm(b, engine)
        for work in (gsm8k_like, arc_like, continuations): b.job(work, engine)
        b.row("statistics", "engine", stats=engine.stats())


def hella(b):
    with b.engine() as engine:
        warm(b, engine)
        b.job(hellaswag, engine)
        b.job(equality, engine, "float32" if b.o.tiny else "bfloat16", max(1, b.n["check"] // 3))


def warm(b, engine):
    "Nothing is measured that happens once a process: imports, tokenizer, the first call of each kind."
    for what, how in (("gsm8k", gsm_how(b.n, 9)), ("arc_challenge", arc_how(b.n, 9))):
        with tempfile.TemporaryDirectory(dir=b.runs) as runs:
            evaluate(b.o.model, what, "performance", engine=engine, progress=False, runs=runs, **{**how, "limit": 64})


def process(b):
    begin = time.perf_counter()
    with EngineProcess("vllm", b.o.model, b.args(b.o.model), log_dir=b.o.out) as served, served.connect() as engine:
        b.row("start", "process", seconds=time.perf_counter() - begin, effective=engine.info.effective)
        warm(b, engine)
        b.job(gsm8k_there, engine)
        b.job(arc_there, engine)


def gsm8k_there(b, engine):
    for rep in range(b.n["repeats"]):
        b.ours("gsm8k-like", engine, "gsm8k", rep, side="process", **gsm_how(b.n, rep))


def arc_there(b, engine):
    for rep in range(b.n["arc_repeats"]):
        b.ours("arc-like", engine, "arc_challenge", rep, side="process", **arc_how(b.n, rep))


def equal(b):
    own = {} if b.o.tiny else {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.5,
                               "max_model_len": 4096}
    b.o.model = b.o.small or b.o.model
    with b.engine(b.o.model, **own) as engine: b.job(equality, engine, "float32", b.n["check"])


def thinking(b):
    begin = time.perf_counter()
    with b.engine() as engine:
        warm(b, engine)
        while_time(b, begin, thinking_like, engine)


def budget(b):
    begin = time.perf_counter()
    with b.engine() as engine:
        warm(b, engine)
        while_time(b, begin, forced_end, engine)


def while_time(b, begin, work, engine):
    "Repeats, until another one would not end before the stage's limit."
    for rep in range(b.o.first_rep, b.o.first_rep + b.n["repeats"]):
        started = time.perf_counter()
        b.job(work, engine, rep)
        if time.perf_counter() + 1.1 * (time.perf_counter() - started) > begin + b.o.limit_s: break


def inproc(b):
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    with b.engine() as engine:
        warm(b, engine)
        how = gsm_how(b.n, 0)
        b.bare("gsm8k-like", engine, b.asked("gsm8k", engine, **how)[1], 0, side="bare, one process")
        empty_cache(engine)
        b.ours("gsm8k-like", engine, "gsm8k", 0, side="ours, one process", **how)


# ---------------------------------------------------------------- all together
AGAINST = {"ours": "bare", "process": "bare", "plain": "ours", "ours, one process": "bare, one process"}


def summary(rows):
    "Per job and side the median of the seconds; ratios repeat by repeat against the bare side."
    found = {}
    for r in rows:
        if "seconds" not in r or "n" not in r: continue
        found.setdefault(r["job"], {}).setdefault(r["side"], {})[r["rep"]] = r["seconds"] / r["n"]
    out = {}
    for job, sides in found.items():
        for side, by_rep in sides.items():
            other = sides.get(AGAINST.get(side), {})
            ratios = [round(x / other[rep], 4) for rep, x in by_rep.items() if rep in other]
            row = {"ms_per_item": round(1e3 * statistics.median(by_rep.values()), 3), "repeats": len(by_rep)}
            if ratios: row |= {"over": AGAINST[side], "ratios": ratios, "ratio": statistics.median(ratios)}
            out.setdefault(job, {})[side] = row
    return out


def conduct(options):
    options.out.mkdir(parents=True, exist_ok=True)
    ends, started = {}, time.monotonic()
    for name in options.stages:
        limit_s = min(LIMITS[name], options.total_s - (time.monotonic() - started))
        if limit_s < 30:
            ends[name] = "not begun, no time left"
            continue
        command = [sys.executable, __file__, options.model, "--stage", name, "--out", str(options.out),
                   "--limit-s", str(limit_s), "--first-rep", str(options.first_rep)]
        command += ["--small", options.small] if options.small else []
        command += ["--only", *options.only] if options.only else []
        command += ["--tiny"] if options.tiny else []
        begin = time.monotonic()
        with open(options.out / f"{name}.log", "w") as log:
            stage = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try: ends[name] = stage.wait(timeout=limit_s)
            except subprocess.TimeoutExpired: ends[name] = "out of time"
            with contextlib.suppress(ProcessLookupError): os.killpg(stage.pid, signal.SIGKILL) # what it left behind
            stage.wait()
        print(f"{name}: {ends[name]} after {time.monotonic() - begin:.0f} s", flush=True)
        lines = (options.out / "rows.jsonl").read_text().splitlines() if (options.out / "rows.jsonl").exists() else []
        rows = [json.loads(x) for x in lines]
        whole = {"summary": summary(rows), "stages": ends, "rows": rows}
        (options.out / "gpu_overhead.json").write_text(json.dumps(whole, indent=1) + "\n")
        for job, sides in whole["summary"].items(): print("SUMMARY", job, json.dumps(sides), flush=True)
        for r in rows:
            if r["stage"] == name and (r["side"] == "error" or r["job"].startswith("equality")): print(json.dumps(r))
    return 0 if all(x == 0 for x in ends.values()) else 1


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model")
    ask.add_argument("--small", help="folder of the small model, for the stage equal")
    ask.add_argument("--out", type=Path, default=Path("gpu_overhead"))
    ask.add_argument("--stages", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    ask.add_argument("--total-s", type=float, default=3600, help="seconds of all stages together")
    ask.add_argument("--first-rep", type=int, default=0, help="number of the first repeat of thinking and budget")
    ask.add_argument("--limit-s", type=float, help=argparse.SUPPRESS)
    ask.add_argument("--only", nargs="+", default=[], help="jobs of a stage, such as arc_like arc_there; default all")
    ask.add_argument("--tiny", action="store_true", help="small numbers, weights as they lie there")
    ask.add_argument("--stage", choices=list(LIMITS), help=argparse.SUPPRESS)
    options = ask.parse_args()
    if not options.stage: return conduct(options)
    os.environ.pop("TOKENIZERS_PARALLELISM", None) # as a user has it: tokenizers use all cores
    found = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")] # workers look for Spread
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, found))
    globals()[options.stage](Bench(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
