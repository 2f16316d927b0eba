"""Many comparisons, ranking and Bradley-Terry: which public function answers which topic."""
import csv
import re

import numpy as np

from qwen_eval.stats.ladder import bradley_terry
from qwen_eval.stats.multiple import METHODS, adjust
from qwen_eval.stats.ranking import friedman, nemenyi_q


def adjusted(case, find):
    given = case["inputs"]
    words = str(given.get("method", case["id"])).lower().split("_") # only the id says which adjustment is meant
    p = np.array(given["p"], float)
    return adjust(np.sort(p) if "ascending" in given.get("order", "") else p,
                  next((m for m in METHODS if m in words), "holm")).tolist()


def strengths(case, find):
    given = case["inputs"]
    names = given.get("players", [str(k) for k in range(len(given["wins"]))])
    reference = str(given.get("reference", names[0])).split("=")[0].strip()
    found = bradley_terry(given["wins"], names, reference=reference)
    others = [k for k, n in enumerate(names) if n != reference]
    return [found.strengths[k] for k in others], [found.se[k] for k in others]


def mean_ranks(case, find):
    with find(case["inputs"]["file"]).open() as f: names, *rows = csv.reader(f)
    found = friedman(np.array(rows, float).T, names, level=1 - case["inputs"].get("alpha", 0.05))
    return {"avg_ranks": list(found.mean_ranks), "chi2_uncorrected": found.chi2, "chi2": found.chi2_ties,
            "F_F": found.f, "CD_05": found.critical}


def critical_values(case, find):
    alpha = case["inputs"].get("alpha") or float(re.search(r"q_(0\.\d+)", case["topic"])[1])
    return [nemenyi_q(k, 1 - alpha) for k in np.atleast_1d(case["inputs"]["k"]).tolist()]


ANSWERS = {
    "multiple comparisons": adjusted,
    "Bradley-Terry MLE": lambda case, find: strengths(case, find)[0],
    "Bradley-Terry MLE with SE": lambda case, find: dict(zip(("coef", "se"), strengths(case, find), strict=True)),
    "k models x datasets: Friedman, Iman-Davenport, Nemenyi CD": mean_ranks,
    "Nemenyi critical values q_0.05": critical_values,
}
