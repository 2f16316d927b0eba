"""Stopping early: mixtures, confidence sequences, e-values, group-sequential boundaries."""
import numpy as np
from scipy.stats import norm

from qwen_eval.stats.looks import boundaries, crossing
from qwen_eval.stats.sequential import (
    beta_bound,
    beta_log_mixture,
    mixture_strength,
    normal_bound,
    normal_log_mixture,
    normal_rho,
    paired_looks,
    share_ends,
)


def tuned(given): return given.get("alpha_opt", 0.05)


def sequence(case, find):
    given = case["inputs"]
    strength = mixture_strength(given["t_opt"], tuned(given))
    return [float(x) for x in share_ends(given["x"], given["n"], 1 - given["alpha"], strength)]


def discordant(case, find):
    b, c = case["inputs"]["b"], case["inputs"]["c"]
    return float(paired_looks([b], [c], order=0, trials=[b + c]).e_value[0])


def beta_boundary(case, find):
    given = case["inputs"]
    return beta_bound(given["v"], given["alpha"], given["g"], given["h"], given["v_opt"], tuned(given))


def beta_mixture(case, find):
    given = case["inputs"]
    return float(beta_log_mixture(given["s"], given["v"], given["g"], given["h"], given["v_opt"], tuned(given)))


def normal_mixture(case, find):
    given = case["inputs"]
    rho = normal_rho(given["v_opt"], tuned(given))
    return {"best_rho": rho, "log_mixture": float(normal_log_mixture(given["s"], given["v"], rho)),
            "bound": float(normal_bound(given["v"], given["alpha"], rho))}


def naive(case, find):
    given = case["inputs"]
    z = norm.isf(given.get("alpha", 0.05) / 2)
    return [float(crossing([z] * k, np.arange(1, k + 1) / k).sum()) for k in given["K"]]


def group(case, find):
    given = case["inputs"]
    kind = "pocock" if str(given.get("type", "OBF")).lower().startswith("p") else "obrien-fleming"
    return list(boundaries(given["K"], given.get("alpha", 0.05), kind).z)


ANSWERS = {"Bernoulli confidence sequence at time n": sequence, "boundary": beta_boundary,
           "anytime-valid paired test: e-value of Beta(1,1) mixture vs 1/2": discordant,
           "two-sided beta-binomial mixture": beta_mixture, "two-sided normal mixture boundary": normal_mixture,
           "type I of 5% z-test after K equal looks": naive,
           "group-sequential boundary alpha=.05 two-sided": group}
