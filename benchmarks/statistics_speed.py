"""How long the statistics take, and the memory they need.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/statistics_speed.py [STAGE ...] [--out results.json]

Each stage runs in a process of its own, so that peak memory is its own; `seconds` is the best of three by the clock,
with numpy and scipy loaded, `mib` the highest resident memory and `mib_before` that before the stage began.
"""
import argparse
import json
import multiprocessing
import platform
import resource
import sys
import time

import numpy as np

N_ITEMS = 10_000


def _bootstrap(n_clusters, real):
    from qwen_eval.stats.clustered import cluster_bootstrap
    rng = np.random.default_rng(1)
    clusters = np.arange(N_ITEMS) % n_clusters
    a, b = (rng.uniform(size=(2, N_ITEMS)) if real else rng.random((2, N_ITEMS)) < [[0.7], [0.65]]).astype(float)
    def run():
        return cluster_bootstrap(a, clusters, rng=np.random.default_rng(2), reference=b, n_resamples=10_000)
    return run


def paired_cluster_bootstrap(): # 10,000 items in 2,000 clusters
    return _bootstrap(2_000, real=False)


def paired_item_bootstrap(): # the largest case: every item is its own cluster, and values are real
    return _bootstrap(N_ITEMS, real=True)


def clustered_estimate(): # CR2 and its degrees of freedom
    from qwen_eval.stats.clustered import clustered_mean
    x = (np.random.default_rng(1).random(N_ITEMS) < 0.7).astype(float)
    return lambda: clustered_mean(x, np.arange(N_ITEMS) % 2_000)


STAGES = {f.__name__: f for f in (paired_cluster_bootstrap, paired_item_bootstrap, clustered_estimate)}


def memory_mib(): # highest so far; kilobytes on Linux, bytes on a Mac
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def measure(name, out):
    run, seconds = STAGES[name](), []
    before = memory_mib()
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    out.put({"stage": name, "seconds": round(min(seconds), 4), "mib": round(memory_mib(), 1),
             "mib_before": round(before, 1)})


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
                     "numpy": np.__version__})
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file: json.dump(rows, file, indent=1)


if __name__ == "__main__": main()
