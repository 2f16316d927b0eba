"""Models on the same items: which public function answers a case."""
import numpy as np

from qwen_eval.stats.discordant import bonett_price, mcnemar, tango
from qwen_eval.stats.intervals import estimate, from_standard_error
from qwen_eval.stats.paired import paired_difference
from qwen_eval.stats.paired_tests import cochran_q

from .intervals import column, ends, level, plain, table


def binary_test(case, find):
    b, c = case["inputs"]["b"], case["inputs"]["c"]
    if isinstance(case["expected"], dict): # which figures are wanted
        found = {"with_cc": mcnemar(b, c, "chi2-corrected"), "without_cc": mcnemar(b, c, "chi2")}
        exact, mid = mcnemar(b, c, "exact").p_value, mcnemar(b, c).p_value
        return {k: [e.detail["statistic"], e.p_value] for k, e in found.items()} | {"exact": exact, "mid_p": mid}
    method = "mid-p" if "mid" in plain(case["inputs"].get("method", case["id"])) else "exact"
    return mcnemar(b, c, method).p_value


def interval(function):
    def answer(case, find):
        i = case["inputs"]
        return ends(function(i["b"], i["c"], i["n"], level(i)))
    return answer


def of_files(case, find):
    "The difference is that of B over A; 10 is an item that A alone has right."
    of = table(find(case["inputs"]["file"]))
    a, b = (column(of, case["inputs"][k]) for k in ("A", "B"))
    items = range(len(a))
    e = paired_difference(b, a, items, items)
    return {"b10": e.counts["c"], "c01": e.counts["b"], "diff": e.value, "se_paired": e.se,
            "se_unpaired": e.detail["se_unpaired"], "corr": e.detail["correlation"],
            "ci95": ends(from_standard_error(e.value, e.se, 0.95)),
            "mcnemar_exact_p": mcnemar(e.counts["b"], e.counts["c"], "exact").p_value}


def right_answers(case, find):
    found = {name: estimate(x) for name, x in table(find(case["inputs"]["file"])).items()}
    return {name: round(e.value * e.n_items) for name, e in found.items()}


def from_error(case, find):
    i = case["inputs"]
    return ends(from_standard_error(i["diff"], i["se"], level(i)))


def several(case, find): # the table has a row for each item
    return cochran_q(np.transpose(case["inputs"]["table"])).statistic


ANSWERS = {
    "paired binary test": binary_test,
    "paired difference CI (Bonett-Price adjusted Wald)": interval(bonett_price),
    "paired difference CI (Tango score)": interval(tango),
    "paired difference on real LLM data": of_files,
    "real paired data": right_answers,
    "paired difference CI": from_error,
    "k paired binary models": several,
}
