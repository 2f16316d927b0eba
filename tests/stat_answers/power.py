"""Planning: items, power, detectable differences, equivalence."""
from fractions import Fraction

from scipy.stats import norm

from qwen_eval.stats.equivalence import share_equivalence
from qwen_eval.stats.margins import share_equivalence_power, share_tost
from qwen_eval.stats.power import PairedReal, TwoSamples, plan_difference, plan_items, plan_power


def number(x): return float(Fraction(str(x)))


def listed(x): return list(x) if isinstance(x, (list, tuple)) else [x]


def paired(given, k_a, k_b):
    "Miller's design: the variance over items, and that over epochs of either model."
    both = number(given.get("sigma2", 0))
    noise = tuple(number(given.get(f"sigma2_{model}", both)) for model in "AB")
    return PairedReal(item_variance=number(given["omega2"]), noise=noise, n_epochs=(k_a, k_b), test="z")


def levels(given): return {"power": number(given.get("power", 0.8)), "alpha": number(given.get("alpha", 0.05))}


def detectable(case, find):
    given = case["inputs"]
    k_a, k_b = (listed(given.get(f"K_{model}", given.get("K", 1))) for model in "AB")
    found = [plan_difference(paired(given, a, b), given["n"], **levels(given)).difference
             for a, b in zip(k_a, k_b, strict=True)]
    return found if isinstance(case["expected"], list) else found[0]


def items(case, find):
    given = case["inputs"]
    k_a, k_b = (given.get(f"K_{model}", given.get("K", 1)) for model in "AB")
    return plan_items(paired(given, k_a, k_b), number(given["delta"]), **levels(given)).n


def power(case, find):
    given = case["inputs"]
    alpha = given.get("alpha", 0.05)
    if "n_per_group" in given: return plan_power(TwoSamples(sd=1.0), given["n_per_group"], given["d"], alpha).power
    return plan_power(PairedReal(item_variance=1.0), given["n"], given["d"], alpha).power


def tost_power(case, find):
    given = case["inputs"]
    found = share_equivalence_power(given["n"], given["low"], given["upp"], given["p_alt"], given.get("alpha", 0.05))
    return found.tolist()


def tost_share(case, find):
    given, alpha = case["inputs"], case["inputs"].get("alpha", 0.05)
    e = share_equivalence(given["x"], given["n"], given["low"], given["upp"], "wald", alpha=alpha).estimate
    p_low, p_high = (float(p) for p in share_tost(given["x"], given["n"], given["low"], given["upp"], "wald"))
    return {f"ci{100 * e.level:.0f}": [e.low, e.high], "z_low": e.detail["z_low"], "z_upp": e.detail["z_high"],
            "p": max(p_low, p_high), "z": min(norm.isf(p_low), -norm.ppf(p_high))}


ANSWERS = {"minimum detectable effect": detectable, "sample size": items, "power": power,
           "TOST power (PASS manual)": tost_power, "TOST one proportion": tost_share}
