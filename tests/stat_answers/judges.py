"""Judges: corrections by human labels, plans, agreement."""
import numpy as np

from qwen_eval.stats.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from qwen_eval.stats.intervals import from_standard_error
from qwen_eval.stats.judges import corrected_share, effective_labels, judge_plan, labels_needed


def agreement(case, find):
    given, want = case["inputs"], case["expected"]
    if "table" in given: return kappa(np.array(given["table"]), given, want)
    if "counts" in given:
        margins = want if isinstance(want, dict) else {given.get("margins", "fixed"): None}
        found = {k: fleiss_kappa(given["counts"], margins=k).value for k in margins}
        return found if isinstance(want, dict) else next(iter(found.values()))
    width = max(map(len, given["units"])) # units may have unequal numbers of ratings
    ratings = [[*unit, *[None] * (width - len(unit))] for unit in given["units"]]
    kinds = want if isinstance(want, dict) else {given.get("level", "nominal"): None}
    found = {k: krippendorff_alpha(ratings, kind=k).value for k in kinds}
    return found if isinstance(want, dict) else next(iter(found.values()))


def kappa(table, given, want):
    first, second = (np.repeat(i.ravel(), table.ravel().astype(int)) for i in np.indices(table.shape))
    found = cohen_kappa(first, second, weights=given.get("weights") or "none", level=1 - given.get("alpha", 0.05),
                        categories=list(range(len(table))))
    normal = from_standard_error(found.value, found.se, found.level, (-1, 1)) # `found` is wider for rare labels
    named = {"kappa": found.value, "ase": found.se, "ci": [normal.low, normal.high], "ase0": found.detail["se_null"],
             "z": found.detail["z"], "p": found.p_value, "agreement": found.detail["agreement"]}
    return named if isinstance(want, dict) else found.value


def corrected(case, find):
    g = case["inputs"]
    found = corrected_share(g["p"], g["n"], g["q0"], g["m0"], g["q1"], g["m1"], level=1 - g.get("alpha", 0.05))
    return {"theta": found.value, "ci": [found.low, found.high]}


def needed(case, find):
    g = case["inputs"]
    return labels_needed(g["d"], power=g["power"], level=1 - g["alpha"])


def pair(case, find):
    g = case["inputs"]
    if "n" in g: return {"effective_n": effective_labels(g["n"], g["N"], g["ppi_corr"])}
    found = plan(g)
    return {"effective_n": found.effective_n, "n": found.n_labels, "N": found.n_judged}


def plan(g):
    return judge_plan(g["ppi_corr"], g["cost_Y"], g["cost_Yhat"], budget=g["budget"], cost_item=g.get("cost_X", 0))


ANSWERS = {
    "judge agreement": agreement,
    "LLM-judge bias-corrected accuracy and CI": corrected,
    "PPI effective n for delta/sigma=.1, power .9, alpha .05": needed,
    "PPI power analysis (optimal pair)": pair,
    "PPI optimal n": lambda case, find: plan(case["inputs"]).n_labels,
}
