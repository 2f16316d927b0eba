"""Proportions, means, independent groups: which public function answers a case."""
import csv

import numpy as np

from qwen_eval.stats.bayes import bayes_independent, bayes_proportion
from qwen_eval.stats.independent import agresti_caffo, cohen_h, miettinen_nurminen, newcombe
from qwen_eval.stats.intervals import (
    agresti_coull,
    clopper_pearson,
    from_standard_error,
    jeffreys,
    mean_t,
    wilson,
)
from qwen_eval.stats.robust import iqm, probability_of_improvement


def wald(k, n, level): return from_standard_error(k / n, (k * (n - k) / n**3) ** 0.5, level, (0, 1))


PROPORTIONS = {"wilson": wilson, "clopper_pearson": clopper_pearson, "agresti_coull": agresti_coull,
               "jeffreys": jeffreys, "wald": wald}
DIFFERENCES = {"newcombe": newcombe, "agresti_caffo": agresti_caffo, "miettinen_nurminen": miettinen_nurminen}
ALIASES = {"beta": "clopper_pearson", "exact": "clopper_pearson", "cp": "clopper_pearson", "jeffrey": "jeffreys",
           "normal": "wald", "score": "wilson"}


def plain(text): return "".join(c if c.isalnum() else "_" for c in str(text).lower())


def named(case, known, default):
    "The method that the inputs name, else that which the id or the source names, else the usual one."
    if method := case["inputs"].get("method"): return known[ALIASES.get(plain(method), plain(method))]
    said = [plain(case[k]) for k in ("id", "source")]
    return next((known[name] for text in said for name in known if name in text), known[default])


def level(inputs): return 1 - inputs.get("alpha", 0.05)


def ends(e): return [e.low, e.high]


def table(path):
    "Column -> numbers, shape (n_items,)."
    with open(path, encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    columns = zip(*rows, strict=True)
    return {name: np.array(column, float) for name, column in zip(names, columns, strict=True)}


def column(of, name):
    "A column by its name, or by how the name begins where only one begins so."
    if name in of: return of[name]
    [full] = [k for k in of if k.startswith(name)]
    return of[full]


def proportion(default):
    def answer(case, find):
        i = case["inputs"]
        return ends(named(case, PROPORTIONS, default)(i["x"], i["n"], level(i)))
    return answer


def zero_failures(case, find):
    i = case["inputs"]
    return clopper_pearson(i["x"], i["n"], 1 - i["one_sided_alpha"], side="upper").high


def accuracy_error(case, find):
    i = case["inputs"]
    return wilson(i["acc"] * i["n"], i["n"]).se


def mean_error(case, find): return mean_t(case["inputs"]["values"], (-np.inf, np.inf)).se


def independent(case, find):
    i = case["inputs"]
    return ends(named(case, DIFFERENCES, "newcombe")(i["x1"], i["n1"], i["x2"], i["n2"], level(i)))


def better(case, find):
    of = table(find(case["inputs"]["file"]))
    both = [(column(of, a), column(of, b)) for a, b in case["inputs"]["pairs"]]
    return [bayes_independent(a.sum(), len(a), b.sum(), len(b)).detail["p_better"] for a, b in both]


def credible(case, find):
    n = case["inputs"]["n"]
    found = [bayes_proportion(x[:n].sum(), n) for x in table(find(case["inputs"]["file"])).values()]
    return {"lower": [e.low for e in found], "upper": [e.high for e in found]}


def effect(case, find): return cohen_h(case["inputs"]["p1"], case["inputs"]["p2"]).value


def over_tasks(case, find):
    x, y = (np.transpose(case["inputs"][k]) for k in ("x", "y")) # given as (n_epochs, n_items)
    rng = np.random.default_rng(0)
    return {"iqm_x": iqm(x, rng).value, "iqm_y": iqm(y, rng).value,
            "poi": probability_of_improvement(x, y, rng).value}


ANSWERS = {
    "binomial CI": proportion("wilson"),
    "binomial CI (edge)": proportion("clopper_pearson"),
    "binomial CI (0 failures)": zero_failures,
    "SE of accuracy as lm-eval reports (ddof=1)": accuracy_error,
    "SE of mean": mean_error,
    "difference of 2 indep proportions": independent,
    "Bayes P(A>B), independent": better,
    "Bayes Beta(1,1) credible interval, real data": credible,
    "effect size": effect,
    "IQM and probability of improvement": over_tasks,
}
