"""Clusters, epochs and repeats: which public function answers a case."""
import csv
import re
from fractions import Fraction

import numpy as np

from qwen_eval.stats.clustered import clustered_mean
from qwen_eval.stats.epochs import chance_of_any, epochs_gain
from qwen_eval.stats.regression import clustered_regression


def mean(values, clusters=None, variance="CR2"):
    "Mean and standard error of real values; 0 where they do not differ."
    x = np.asarray(values, float)
    e = clustered_mean(x, clusters, variance=variance, kind="bounded", range=(x.min(), x.max() + 1))
    return e.value, e.se or 0.0



def columns(path):
    "Columns of a CSV file as lists of text."
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    return {k: [row[k] for row in rows] for k in rows[0]}


def written(text):
    "Values that a case gives as a list, or as the text of a comprehension such as `[i%5 for i in range(200)]`."
    return text if not isinstance(text, str) else eval(text, {"__builtins__": {"range": range}})


def labels(given, n):
    "Clusters of n items: a list, or an expression of i such as `\"big\" if i<180 else \"small{i}\"`."
    if not isinstance(given, str): return given
    text = re.sub(r'"([^"]*\{i\}[^"]*)"', r'f"\1"', given)
    return [eval(text, {"__builtins__": {}, "i": i}) for i in range(n)]


def standard_error(case, find):
    values = written(case["inputs"]["values"])
    return mean(values, labels(case["inputs"]["cluster"], len(values)), "CR1")[1]


def regression(case, find):
    given = case["inputs"]
    table, formula = data_set(given["data"], find), given["formula"]
    fit = clustered_regression(table, formula, given["cluster"])
    return {f"se_{'const' if t == 'Intercept' else t}": se for t, se in zip(fit.terms, fit.se, strict=True)}


def data_set(said, find):
    "A data set of statsmodels or a file, without the rows of one group where the text says `without NAME`."
    import pandas as pd
    import statsmodels.api as sm
    name = re.match(r"statsmodels\.datasets\.(\w+)", said)
    table = getattr(sm.datasets, name[1]).load_pandas().data if name else pd.read_csv(find(said))
    left_out = re.search(r"without ([^(,;]+)", said)
    if not left_out: return table
    return table[~(table.astype(object) == left_out[1].strip()).any(axis=1)]


def repeats(case, find):
    "Of each model: mean, standard error as if all answers were independent, and that over questions."
    each = int(re.match(r"\d+", case["inputs"]["rows"])[0])
    found = {}
    for name, column in columns(find(case["inputs"]["file"])).items():
        try: x = np.array(column, float)
        except ValueError: continue
        value, by_question = mean(x, np.arange(len(x)) // each)
        found[name] = [value, mean(x)[1], by_question]
    return found


def pass_k(case, find):
    given = case["inputs"]
    if "cases" in given: return [float(chance_of_any(n, c, k)) for n, c, k in given["cases"]]
    return chance_of_any(given["n"], given["c"], given["k"]).tolist()


def reduction(case, find):
    "Var(x) and E[sigma^2] as the text gives them."
    text = case["inputs"]["x"].replace(" ", "")
    between, within = (float(Fraction(re.search(rf"{re.escape(k)}=([\d./]+)", text)[1])) # such as 1/12
                       for k in ("Var(x)", "E[sigma^2]"))
    return epochs_gain(between, within, [float(k) for k in case["inputs"]["K"]]).reduction


def win_rate(case, find):
    given = case["inputs"]
    value, se = mean(columns(find(given["file"]))[given["model"]])
    return {"win_rate": 100 * value, "standard_error": 100 * se}


ANSWERS = {
    "clustered SE (regression)": regression,
    "clustered SE (CR1 with C/(C-1))": standard_error,
    "clustered SE": standard_error,
    "K=4 samples x 15 questions: mean, naive SE, question-clustered SE": repeats,
    "pass@k": pass_k,
    "variance reduction by K samples": reduction,
    "win rate and SE of a pairwise judge": win_rate,
}
