"""Items: difficulty by counting, Rasch and two-parameter models."""
import numpy as np

from qwen_eval.stats.items import fit_items, item_analysis


def responses(case):
    "One row a person, from the number of persons for each pattern of answers."
    patterns = {k: int(n) for k, n in case["inputs"]["patterns"].items()}
    rows = np.array([[int(x) for x in k] for k in patterns])
    return np.repeat(rows, list(patterns.values()), axis=0)


def rasch(case, find):
    found = fit_items(responses(case), model="rasch", prior=False)
    return {"loglik": found.loglik, "diff": found.difficulty, "slope": found.slope[0]}


def two_parameters(case, find):
    found, want = fit_items(responses(case), model="2pl", prior=False), case["expected"]
    if not isinstance(want, dict): return found.loglik
    return {"loglik": found.loglik, "diff": found.difficulty, "slope": found.slope, "intercept": found.intercept}


ANSWERS = {
    "IRT 2PL marginal ML": two_parameters,
    "IRT Rasch (common slope), difficulties = -b/a": rasch,
    "item p-values": lambda case, find: item_analysis(responses(case)).share,
}
