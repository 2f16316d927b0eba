"""The whole matrix on an engine without a model: time, memory, overhead, kills, and the same estimates at the end.

6 models x 12 benchmarks x 3 presets at full sizes; what has no local data is generated, and the result says so. The
engine answers at once, so that what is left is the toolkit's own: prompts, store, scores, kernels, reports.

    python benchmarks/study_scale.py --out DIR                       # 216 runs, undisturbed, then killed five times
    python benchmarks/study_scale.py --out DIR --models 2 --presets 1 --scale 0.05 --kills 2   # a short one
    python benchmarks/study_scale.py --out DIR --only-query          # a million stored items, filtered and aggregated
"""
import argparse
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("qwen_8b", "qwen_14b", "qwen2.5_8b", "qwen2.5_14b", "qwen3_8b", "qwen3_14b")
PRESETS = ("balanced", "performance", "memory_optimized")
SIZES = {"humaneval": 164, "mbpp": 500, "gsm8k": 1319, "arc_challenge": 1172, "hellaswag": 10042, "mmlu": 14042,
         "truthfulqa": 817, "bfcl": 3641, "toolllama": 765, "alpaca_eval": 805, "mt_bench": 80, "codet5": 14918}
VIEW = "scores" # of `tables.query`, one row an item and epoch
KERNEL = "import qwen_eval.evaluation, qwen_eval.datasets.all, pandas, pyarrow.parquet" # what every notebook needs

RUN = """
import json, sys
from pathlib import Path
from qwen_eval.runner import run_study
from qwen_eval.studies import Study
spec = json.loads(sys.argv[1])
how = spec.pop("how")
study = Study(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()})
outcome = run_study(study, **how)
for f in outcome.failures: print("FAILED", f, flush=True)
sys.exit(1 if outcome.failures else 0)
"""


def generated_codet5(n, seed=0):
    "Rows of code-to-text that nobody wrote: the true number of functions, of usual lengths."
    rng = random.Random(seed)
    verbs = ("return", "count", "merge", "parse", "read", "write", "find", "sort", "load", "store", "check", "build")
    nouns = ("items", "names", "values", "lines", "rows", "keys", "pairs", "files", "words", "numbers", "paths")
    for i in range(n):
        verb, noun, other = rng.choice(verbs), rng.choice(nouns), rng.choice(nouns)
        said = f"{verb.title()} the {noun} of the given {other} number {i} .".split()
        body = "\n".join(f"    {rng.choice(nouns)}_{k} = [x + {rng.randrange(99)} for x in {other}]"
                         for k in range(rng.randrange(3, 22)))
        code = f'def {verb}_{noun}_{i}({other}):\n    """{" ".join(said)}"""\n{body}\n    return {other}'
        yield {"id": i, "repo": "generated", "func_name": f"{verb}_{noun}_{i}", "language": "python", "code": code,
               "docstring_tokens": said}


def laboratory(root, data):
    "A folder of settings, with the local data and stand-ins for what is missing; what was generated."
    here, made = root / "data", []
    here.mkdir(parents=True, exist_ok=True)
    for f in Path(data).iterdir():
        if not (here / f.name).exists(): (here / f.name).symlink_to(f)
    if not (here / "codet5.jsonl.gz").exists():
        with gzip.open(here / "codet5.jsonl.gz", "wt") as f:
            for row in generated_codet5(SIZES["codet5"]): f.write(json.dumps(row) + "\n")
    if not (Path(data) / "codet5.jsonl.gz").exists(): made.append("codet5")
    missing = [b for b in SIZES if not (here / f"{b}.jsonl.gz").exists() and b != "bfcl"]
    if missing: sys.exit(f"{data} lacks {', '.join(missing)}; name a folder that holds them (--data).")
    (root / "settings.ini").write_text(
        f"[paths]\nruns = runs\ncache = cache\nreports = reports\nspecimens = {ROOT / 'data/specimens'}\n")
    return made


class Watched:
    "The sum of the memory of a process and of all that it started, looked at four times a second."
    def __init__(self, pid):
        self.peak_mib, self.peak_count, self._stop = 0.0, 0, threading.Event()
        self._root = psutil.Process(pid)
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self):
        while not self._stop.wait(0.25):
            total, n = 0, 0
            try: family = [self._root, *self._root.children(recursive=True)]
            except psutil.Error: return
            for p in family:
                try: total, n = total + p.memory_info().rss, n + 1
                except psutil.Error: continue
            if total / 2**20 > self.peak_mib: self.peak_mib, self.peak_count = total / 2**20, n

    def stop(self): self._stop.set()


def start(root, spec, log):
    env = {**os.environ, "QWEN_EVAL_SETTINGS": str(root / "settings.ini"), "QWEN_EVAL_DATA": str(root / "data"),
           "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-c", RUN, json.dumps(spec)], env=env, stdout=log, stderr=log,
                            start_new_session=True)


def undisturbed(root, spec):
    with open(root / "log.txt", "w") as log:
        begin, process = time.perf_counter(), start(root, spec, log)
        watch = Watched(process.pid)
        status = process.wait()
        watch.stop()
    return {"status": status, "wall_s": time.perf_counter() - begin, "peak_mib": watch.peak_mib,
            "peak_processes": watch.peak_count}


def killed(root, spec, n, about_s, seed=1):
    "The same with the runner killed n times at random moments of what an undisturbed study takes."
    rng, kills, lost = random.Random(seed), 0, 0
    with open(root / "log.txt", "w") as log:
        while True:
            process = start(root, spec, log)
            wait = rng.uniform(0.03, 0.5) * about_s if kills < n else None
            try: status = process.wait(timeout=wait)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL) # its engine and its kernels see that themselves
                process.wait()
                kills += 1
                continue
            if kills >= n or status: return {"status": status, "kills": kills, "ended_before": lost}
            lost += 1 # it ended before its kill: what is left of the kills finds nothing to do
            kills = n


def estimates(root):
    "Run id -> everything that its estimate says, from the files."
    from qwen_eval.runs import list_runs
    return {r.id: {k: repr(e) for k, e in r.estimates().items()} for r in list_runs(root / "runs")}


def overheads(root):
    "Seconds of each run that are neither asking nor scoring, from papermill's own clock and the manifest."
    from qwen_eval.runs import list_runs
    found, books = [], {p.stem: p for p in (root / "reports").rglob("notebooks/*.ipynb")}
    for r in list_runs(root / "runs"):
        m = r.manifest
        book = json.loads(books[r.id].read_text())
        asked = sum(s.get("generate_s", 0) for s in m["sessions"])
        first = next(c for c in book["cells"] if c["cell_type"] == "code" and "evaluate(" in "".join(c["source"]))
        cells = sum(c["metadata"]["papermill"].get("duration") or 0 for c in book["cells"] if c["cell_type"] == "code")
        found.append({"benchmark": m["fingerprint"]["benchmark"]["id"], "n": len(r.scores), "asked_s": asked,
                      "scored_s": m["stages"]["score"]["score_s"], "whole_s": book["metadata"]["papermill"]["duration"],
                      "evaluate_s": first["metadata"]["papermill"]["duration"], "cells_s": cells})
    return found


def kernel_start(n=3):
    "Seconds until a notebook that imports what every run needs has ended: the kernel's start, and papermill's own."
    import tempfile

    import nbformat
    import papermill
    with tempfile.TemporaryDirectory() as d:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(KERNEL)])
        nbformat.write(book, Path(d) / "a.ipynb")
        took = []
        for _ in range(n):
            begin = time.perf_counter()
            papermill.execute_notebook(Path(d) / "a.ipynb", Path(d) / "b.ipynb", kernel_name="python3",
                                       progress_bar=False)
            took.append(time.perf_counter() - begin)
    return sorted(took)[n // 2]


def million(root, n_runs=100, n_items=10_000):
    "A million scored items in a store, filtered and aggregated."
    import numpy as np
    import pandas as pd

    from qwen_eval.scores import write_scores
    from qwen_eval.store import update_manifest
    from qwen_eval.tables import query
    runs, rng = root / "million", np.random.default_rng(0)
    source = next(p for p in (root / "runs").iterdir() if (p / "scores.parquet").exists())
    manifest, frame = json.loads((source / "manifest.json").read_text()), pd.read_parquet(source / "scores.parquet")
    for k in range(n_runs if not runs.exists() else 0):
        name = f"toy{k % 10}--made_up--balanced--{k:08x}"
        rows = frame.iloc[rng.integers(len(frame), size=n_items)].assign(
            order=np.arange(n_items), item_id=[f"q{i}" for i in range(n_items)],
            value=(rng.random(n_items) < 0.5) * 1.0, stratum=[f"s{i % 57}" for i in range(n_items)])
        update_manifest(runs / name, **{**manifest, "run_id": name})
        write_scores(runs / name, rows.reset_index(drop=True))
    took = []
    for _ in range(4):
        begin = time.perf_counter()
        found = query(f"select stratum, count(*) n, avg(value) share from {VIEW} where n_output_tok >= 0 "
                      "group by stratum order by stratum", runs)
        took.append(time.perf_counter() - begin)
    return {"n_items": int(found.n.sum()), "n_groups": len(found), "first_s": took[0], "median_s": sorted(took[1:])[1]}


def main():
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("--out", type=Path, required=True)
    o.add_argument("--data", type=Path, default=os.environ.get("QWEN_EVAL_DATA"))
    o.add_argument("--models", type=int, default=6)
    o.add_argument("--presets", type=int, default=3)
    o.add_argument("--benchmarks", default=",".join(SIZES))
    o.add_argument("--scale", type=float, default=1.0, help="Share of each benchmark's items.")
    o.add_argument("--kills", type=int, default=5)
    o.add_argument("--by", default="threads")
    o.add_argument("--only-query", action="store_true")
    a = o.parse_args()
    root = a.out.resolve()
    root.mkdir(parents=True, exist_ok=True)
    os.environ["QWEN_EVAL_SETTINGS"] = str(root / "calm" / "settings.ini")
    result = {"date": time.strftime("%Y-%m-%d %H:%M"), "cores": os.cpu_count(), "load": os.getloadavg()}
    if not a.only_query:
        names, most = a.benchmarks.split(","), max(SIZES.values())
        limit = None if a.scale == 1 else max(8, round(most * a.scale))
        spec = {"id": "scale", "models": MODELS[:a.models], "presets": PRESETS[:a.presets], "benchmarks": names,
                "limit": limit, "engine": "fake", "judge": "none" if {"alpaca_eval", "mt_bench"} & {*names} else None,
                "how": {"by": a.by}}
        result["generated"] = laboratory(root / "calm", a.data)
        result["kernel_start_s"] = kernel_start()
        result["study"] = undisturbed(root / "calm", spec)
        calm, runs = estimates(root / "calm"), overheads(root / "calm")
        n = len(runs)
        per_run = result["study"]["wall_s"] / n
        work = sum(r["asked_s"] + r["scored_s"] for r in runs) / n
        result |= {"n_runs": n, "n_answers": sum(r["n"] for r in runs), "wall_per_run_s": per_run,
                   "asking_and_scoring_per_run_s": work,
                   "overhead_per_run_s": per_run - work - result["kernel_start_s"], "runs": runs}
        print(json.dumps({k: x for k, x in result.items() if k != "runs"}, indent=1), flush=True)
        if a.kills:
            laboratory(root / "killed", a.data)
            result["killed"] = killed(root / "killed", spec, a.kills, result["study"]["wall_s"])
            result["same_estimates"] = estimates(root / "killed") == calm
    result["query"] = million(root / "calm")
    (root / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({k: x for k, x in result.items() if k != "runs"}, indent=1))
    if not result.get("same_estimates", True): sys.exit("The estimates differ.")


if __name__ == "__main__": main()
