"""How long the statistics take, and the memory they need.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/statistics_speed.py [STAGE ...] [--out results.json]

Each stage runs in a process of its own, so that peak memory is its own. `seconds` is the best of three by the clock
and `cpu_seconds` the best of processor time, the libraries loaded; `mib` is the highest resident memory and
`mib_before` that before the stage began; `limit_s` is what was promised of one core.
"""
import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time

import numpy as np

N_ITEMS = 10_000
SIZES = (164, 500, 1000, 1319, 1172, 9924, 12042, 817, 1560, 617, 805, 80) # items of twelve benchmarks, 30,000 in all


def all_pairs_holm(): # 18 configurations x 12 benchmarks: 153 pairs on each, one family
    from qwen_eval.stats.multiple import compare_all
    rng, n_models = np.random.default_rng(0), 18
    groups = np.repeat([f"b{k}" for k in range(len(SIZES))], SIZES)
    skill = np.linspace(0.3, 0.9, n_models)[:, None]
    values = (rng.normal(size=len(groups)) + rng.normal(size=(n_models, len(groups))) < skill).astype(float)
    names = [f"m{k}" for k in range(n_models)]
    compare_all(values[:, :300], names) # imports
    return lambda: compare_all(values, names, groups)


def _bootstrap(n_clusters, real):
    from qwen_eval.stats.clustered import cluster_bootstrap
    rng = np.random.default_rng(1)
    clusters = np.arange(N_ITEMS) % n_clusters
    a, b = (rng.uniform(size=(2, N_ITEMS)) if real else rng.random((2, N_ITEMS)) < [[0.7], [0.65]]).astype(float)
    def run(n_items=N_ITEMS, n_resamples=10_000):
        return cluster_bootstrap(a[:n_items], clusters[:n_items], rng=np.random.default_rng(2), reference=b[:n_items],
                                 n_resamples=n_resamples)
    run(50, 200) # imports
    return run


def paired_cluster_bootstrap(): # 10,000 items in 2,000 clusters, 10,000 replicates
    return _bootstrap(2_000, real=False)


def paired_item_bootstrap(): # the largest case: every item is its own cluster, and values are real
    return _bootstrap(N_ITEMS, real=True)


def clustered_estimate(): # CR2 and its degrees of freedom
    from qwen_eval.stats.clustered import clustered_mean
    x, clusters = (np.random.default_rng(1).random(N_ITEMS) < 0.7).astype(float), np.arange(N_ITEMS) % 2_000
    clustered_mean(x[:50], clusters[:50]) # imports
    return lambda: clustered_mean(x, clusters)


def two_parameter_model(): # 2PL on 30 models and 12,000 items
    from qwen_eval.stats.items import fit_items
    rng, n_models, n_items = np.random.default_rng(0), 30, 12_000
    theta, a = rng.normal(size=n_models), np.exp(rng.normal(0, 0.5, n_items))
    b = rng.normal(-0.5, 1.5, n_items)
    x = (rng.random((n_models, n_items)) < 1 / (1 + np.exp(-a * (theta[:, None] - b)))).astype(float)
    fit_items(x[:, :50]) # imports
    return lambda: fit_items(x)


LIMITS = {all_pairs_holm: 2, paired_cluster_bootstrap: 2, paired_item_bootstrap: 2, clustered_estimate: None,
          two_parameter_model: 60} # seconds that were promised, of one core
STAGES = {f.__name__: f for f in LIMITS}


def memory_mib(): # highest so far; kilobytes on Linux, bytes on a Mac
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def measure(name, out):
    run, took = STAGES[name](), []
    before = memory_mib()
    for _ in range(3):
        start = time.perf_counter(), time.process_time()
        run()
        took.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    seconds, cpu_seconds = (round(min(x), 4) for x in zip(*took, strict=True))
    out.put({"stage": name, "seconds": seconds, "cpu_seconds": cpu_seconds, "limit_s": LIMITS[STAGES[name]],
             "mib": round(memory_mib(), 1), "mib_before": round(before, 1)})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all by default")
    parser.add_argument("--out", help="a JSON file for the rows")
    args = parser.parse_args()
    if odd := [s for s in args.stages if s not in STAGES]: parser.error(f"{odd[0]} is unknown: {', '.join(STAGES)}")
    rows, spawn = [], multiprocessing.get_context("spawn")
    for name in args.stages or STAGES:
        queue = spawn.Queue()
        process = spawn.Process(target=measure, args=(name, queue))
        process.start()
        process.join()
        if process.exitcode: raise SystemExit(f"{name} ended with {process.exitcode}")
        rows.append({**queue.get(), "machine": platform.machine(), "python": platform.python_version(),
                     "numpy": np.__version__, "threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
                     "load": round(os.getloadavg()[0], 1)})
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file: json.dump(rows, file, indent=1)


if __name__ == "__main__": main()
