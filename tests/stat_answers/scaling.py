"""Two sizes and scaling laws: which public function answers a case."""
import csv

import numpy as np

from qwen_eval.stats.powerlaw import chinchilla
from qwen_eval.stats.scaling import error_elasticity


def elasticity(case, find):
    "Errors of each model and of both, in the order in which the sizes are named."
    given = case["inputs"]
    first, second = (v for k, v in given.items() if k.startswith("errors_") and k != "errors_both")
    both, n = given["errors_both"], given["n"]
    kind = np.repeat(np.arange(4), [both, first - both, second - both, n - first - second + both])
    found = error_elasticity(kind >= 2, np.isin(kind, (1, 3)), *map(float, given["params"]))
    return {"elasticity": found.value, "se": found.se, "low": found.low, "high": found.high}


def law(case, find):
    given = case["inputs"]
    rows = list(csv.DictReader(find(given["file"]).read_text(encoding="utf-8").splitlines()))[:given.get("n")]
    sizes, tokens, losses = (np.array([float(r[k]) for r in rows]) for k in ("Model Size", "D", "loss"))
    found = chinchilla(sizes, tokens, losses, np.random.default_rng(0), n_resamples=200).coefficients
    return {k: e.value for k, e in found.items()}


ANSWERS = {"d log(error)/d log(params), paired delta-method SE": elasticity,
           "scaling-law fit L=E+A/N^alpha+B/D^beta, Huber(1e-3) on log loss": law}
