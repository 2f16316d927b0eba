"""Designs, analysis of variance and mixed models: which public function answers which topic."""
import csv
import itertools
import re

import numpy as np

from qwen_eval.stats.design import anova, fractional_factorial
from qwen_eval.stats.mixed import linear_mixed, logistic_mixed


def table(path):
    with path.open() as f: rows = list(csv.DictReader(f))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def factorial(case, find):
    columns = table(find(case["inputs"]["file"]))
    response, right = (x.strip() for x in case["inputs"]["formula"].split("~"))
    parts = [[n.strip() for n in part.split("*")] for part in right.split("+")]
    terms = [":".join(some) for part in parts for k in range(1, len(part) + 1)
             for some in itertools.combinations(part, k)]
    terms.sort(key=lambda term: term.count(":"))
    factors = {n: columns[n] for part in parts for n in part}
    found = anova(columns[response].astype(float), factors, terms=terms)
    tested = [e for e in found.effects if e.f is not None]
    return {"SS": [e.ss for e in found.effects], **{f"F_{e.term}": e.f for e in tested},
            **{f"p_{e.term}": e.p_value for e in tested}}


def one_way(case, find):
    lines = find(case["inputs"]["file"]).read_text(encoding="utf-8").splitlines()
    start = max(k for k, line in enumerate(lines) if line.startswith("Data:")) + 1
    treatment, response = np.array([line.split() for line in lines[start:] if line.strip()], float).T
    return anova(response, {"treatment": treatment})["treatment"].f


def fraction(case, find):
    generators = [g.strip() for g in case["inputs"]["generator"].split(",")]
    last = max(x for g in generators for x in g if x.isalpha())
    letters = [chr(k) for k in range(ord("A"), ord(last) + 1)]
    design = fractional_factorial(dict.fromkeys(letters, (-1, 1)), generators, np.random.default_rng(0))
    x = np.array([design.column(letter) for letter in letters])
    pairs = ["".join(some) for some in itertools.combinations(letters, 2)]
    same = {f"{a}_equals_{b}": int((design.column(a) == design.column(b)).all()) for a in pairs for b in pairs}
    return {"gram": (x @ x.T).tolist(), **same}


def logistic(case, find):
    columns = table(find(case["inputs"]["file"]))
    cases = next(columns[n] for n in columns if n.startswith("inc")).astype(float)
    points = re.search(r"(\d+) pts", case["topic"])
    found = logistic_mixed(cases, {"period": columns["period"]}, columns["herd"], trials=columns["size"].astype(float),
                           n_points=int(points[1]) if points else 1)
    sd = found.sd["intercept"]
    return {"beta": list(found.effects), "sd": sd, "sd_herd": sd, "loglik": found.loglik}


def linear(case, find):
    columns = table(find(case["inputs"]["file"]))
    response, fixed, slope, group = re.fullmatch(r"(\w+) ~ (\w+) \+ \((\w+)\s*\|\s*(\w+)\)",
                                                 case["inputs"]["formula"].strip()).groups()
    found = linear_mixed(columns[response].astype(float), {fixed: columns[fixed].astype(float)}, columns[group],
                         slopes=[slope])
    return {"int": found.effects[0], fixed.lower(): found.effects[1], "sd_int": found.sd["intercept"],
            f"sd_{slope.lower()}": found.sd[slope], "resid": found.residual, "m2ll": -2 * found.loglik}


ANSWERS = {
    "2^3 factorial in 6 blocks (NPK confounded)": factorial,
    "one-way ANOVA F (NIST StRD certified)": one_way,
    "2^(4-1) half fraction, D=ABC, resolution IV": fraction,
    "binomial GLMM (Laplace)": logistic,
    "binomial GLMM (adaptive GH, 15 pts), own reference": logistic,
    "linear mixed model REML": linear,
}
