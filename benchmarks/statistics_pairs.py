"""All pairwise paired comparisons with Holm: 18 configurations x 12 benchmarks, 30,000 items in all, on one core.

`python benchmarks/statistics_pairs.py` prints one line of JSON; `stage()` is for a file that runs several stages.
Set OMP_NUM_THREADS=1 before, so that the product of matrices stays on one core.
"""
import json
import time
import tracemalloc

import numpy as np

from qwen_eval.stats.multiple import compare_all

SIZES = (164, 500, 1000, 1319, 1172, 9924, 12042, 817, 1560, 617, 805, 80) # items of twelve benchmarks, 30,000 in all


def stage(n_models=18, repeats=5):
    "Seconds of processor time of the fastest repeat, and the most memory taken beside the input."
    rng = np.random.default_rng(0)
    groups = np.repeat([f"b{k}" for k in range(len(SIZES))], SIZES)
    skill = np.linspace(0.3, 0.9, n_models)[:, None]
    values = (rng.normal(size=len(groups)) + rng.normal(size=(n_models, len(groups))) < skill).astype(float)
    names = [f"m{k}" for k in range(n_models)]
    compare_all(values[:, :300], names) # imports
    took = []
    for _ in range(repeats):
        start = time.process_time()
        found = compare_all(values, names, groups)
        took.append(time.process_time() - start)
    tracemalloc.start()
    compare_all(values, names, groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"what": "all pairs with Holm", "n_models": n_models, "n_items": len(groups), "n_benchmarks": len(SIZES),
            "n_hypotheses": len(found.decisions.names),
            "cpu_s": round(min(took), 3), "peak_mib": round(peak / 2**20, 1)}


if __name__ == "__main__": print(json.dumps(stage()))
