"""Time and memory of the two-parameter model on 30 models and 12,000 items, one core.

    OPENBLAS_NUM_THREADS=1 python benchmarks/items_speed.py
"""
import json
import os
import resource
import time

import numpy as np

from qwen_eval.stats.items import fit_items


def drawn(n_models=30, n_items=12_000, seed=0): # answers, 1 right and 0 wrong, shape (n_models, n_items)
    rng = np.random.default_rng(seed)
    theta, a, b = rng.normal(size=n_models), np.exp(rng.normal(0, 0.5, n_items)), rng.normal(-0.5, 1.5, n_items)
    return (rng.random((n_models, n_items)) < 1 / (1 + np.exp(-a * (theta[:, None] - b)))) * 1.0


def two_parameter_model():
    "Seconds of one core and the memory that the fit took on top, and how many steps it needed."
    x = drawn()
    fit_items(x[:, :50]) # scipy is imported at the first call
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    fit = fit_items(x)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss # KiB on Linux
    return {"what": "2PL, 30 models x 12,000 items", "wall_s": round(time.perf_counter() - wall, 2),
            "cpu_s": round(time.process_time() - cpu, 2), "limit_s": 60, "n_steps": fit.n_steps,
            "items_used": int(fit.used.sum()), "peak_mib": round(peak / 1024),
            "added_mib": round((peak - before) / 1024)}


if __name__ == "__main__":
    print(json.dumps(two_parameter_model() | {"threads": os.environ.get("OPENBLAS_NUM_THREADS", "default")}, indent=1))
