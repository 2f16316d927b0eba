"""A million stored items, filtered and counted: python benchmarks/table_speed.py [--out FILE]

Writes runs in the schema of the store (manifests of one real run of the demonstration results, scores drawn at random
and written by `write_scores`), then asks questions of `qwen_eval.tables.query`, each in a process of its own and
three times: the first includes opening every file, the later ones find the system's file cache warm. The bound of
1 s, for questions that filter and aggregate `items`, holds for the first as well.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUND_S = 1.0
QUESTIONS = {
    "items: filter and count": (
        "select model, count(*) as n, avg(value) as mean from items where stratum = ? group by all", ["part 3"]),
    "items: everything by model, preset and part": (
        "select model, preset, stratum, count(*), avg(value), sum(n_output_tok) from items group by all", []),
    "items: quantiles of latency": (
        "select model, quantile_cont(latency_s, 0.95) from items where status = ? group by all", ["scored"]),
    "items: hardest, over all runs": (
        "select item_id, avg(value) as share from items group by all order by share limit 20", []),
}
BESIDE = { # a join of all items with themselves, and what the statistics make
    "items: pairs of two models": (
        "select count(*) filter (a.value > b.value), count(*) filter (a.value < b.value) from items a join items b "
        "using (item_id, epoch, preset) where a.model = ? and b.model = ?", ["model 0", "model 1"]),
    "runs: primary estimates (made by the statistics)": ("select benchmark, model, value, low, high from runs", []),
    "estimates: every metric and part": ("select part, count(*) from estimates group by all", []),
}


def write(root, n_runs, n_items, seed=0):
    "Runs in the store's own form: folder, manifest, scores."
    import numpy as np
    import pandas as pd

    from qwen_eval.scores import write_scores
    [path] = (ROOT / "data/demo").glob("smollm2_135m--gsm8k--balanced--*")
    manifest, rng = json.loads((path / "manifest.json").read_text()), np.random.default_rng(seed)
    same = {"order": np.arange(n_items), "item_id": [f"made/test/{i}" for i in range(n_items)], "epoch": 0,
            "status": "scored", "answer": "18", "detail": "", "stratum": [f"part {i % 57}" for i in range(n_items)],
            "cluster": "", "finish_reason": "stop", "n_thinking_tok": 0, "n_cached_tok": 0}
    for i in range(n_runs):
        told = manifest["fingerprint"]
        told["model"]["id"], told["preset"]["id"] = f"model {i % 6}", ("balanced", "performance")[i // 6 % 2]
        told["protocol"]["seed"] = i
        manifest["run_id"] = f"made--{i:04d}"
        manifest["stages"]["generate"].update(n_items=n_items, n_done=n_items, n_wanted=n_items)
        value = (rng.random(n_items) < 0.5 + 0.05 * (i % 6)).astype(float)
        times = np.sort(rng.gamma(2, 1, (3, n_items)), axis=0)
        tok = rng.integers(20, 600, (2, n_items))
        frame = pd.DataFrame({**same, "value": value, "n_prompt_tok": tok[0], "n_output_tok": tok[1],
                              **dict(zip(("queue_s", "ttft_s", "latency_s"), times, strict=True)),
                              "exact_match": value, "exact_match_strict": value})
        (root / manifest["run_id"]).mkdir(parents=True)
        write_scores(root / manifest["run_id"], frame)
        (root / manifest["run_id"] / "manifest.json").write_text(json.dumps(manifest))


def ask(root, name):
    "Seconds of three calls, and the rows of the answer; in a process of its own."
    code = ("import json, sys, time; from qwen_eval.tables import query; import duckdb, pandas, pyarrow; seconds = []\n"
            "for _ in range(3):\n"
            "    begin = time.perf_counter(); answer = query(sys.argv[2], sys.argv[1], json.loads(sys.argv[3]))\n"
            "    seconds.append(time.perf_counter() - begin)\n"
            "print(json.dumps([seconds, len(answer)]))")
    sql, params = {**QUESTIONS, **BESIDE}[name]
    done = subprocess.run([sys.executable, "-c", code, str(root), sql, json.dumps(params)], capture_output=True,
                          text=True, check=True)
    return json.loads(done.stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--runs", type=int, default=100, help="runs in the store")
    p.add_argument("--items", type=int, default=10_000, help="items of each")
    p.add_argument("--only-items", action="store_true", help="leave out the views that the statistics make")
    p.add_argument("--out", type=Path, help="JSON file for the figures")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as home:
        begin = time.perf_counter()
        write(Path(home), a.runs, a.items)
        size = sum(f.stat().st_size for f in Path(home).rglob("*.parquet"))
        print(f"{a.runs} runs of {a.items:,} items, {a.runs * a.items:,} rows, {size / 2**20:.0f} MiB, written in "
              f"{time.perf_counter() - begin:.1f} s; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        rows = []
        for name in [*QUESTIONS, *(() if a.only_items else BESIDE)]:
            seconds, n = ask(home, name)
            rows.append({"question": name, "first_s": seconds[0], "again_s": statistics.median(seconds[1:]), "rows": n,
                         "bound_s": BOUND_S if name in QUESTIONS else None})
            kept = "" if name in BESIDE else "kept" if seconds[0] < BOUND_S else "MISSED"
            print(f"{name:<50} first {seconds[0]:7.3f} s, again {rows[-1]['again_s']:7.3f} s, {n:>6} rows {kept}")
    if a.out:
        made = {"n_rows": a.runs * a.items, "n_runs": a.runs, "n_cores": os.cpu_count(), "load": os.getloadavg()[0],
                "bytes": size, "rows": rows}
        a.out.write_text(json.dumps(made, indent=1) + "\n")
    return int(any(r["bound_s"] and r["first_s"] > r["bound_s"] for r in rows))


if __name__ == "__main__": sys.exit(main())
