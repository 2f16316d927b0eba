"""Trends: which public function answers a case."""
from qwen_eval.stats.trends import run_length


def arl(case, find):
    "Average run lengths at every shift, for every decision interval; k is that of the topic unless it is given."
    given = case["inputs"]
    k = given.get("k", float(case["topic"].rpartition("k=")[2]))
    limits = given["h"] if isinstance(given["h"], list) else [given["h"]]
    return {f"h{h:g}": list(run_length(k, h, given["shift"]).arl) for h in limits}


ANSWERS = {"two-sided CUSUM ARL k=0.5": arl}
