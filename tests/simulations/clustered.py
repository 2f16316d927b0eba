"""Clusters and epochs: how often the intervals hold the truth, and how often the naive ones do.

The chance of a cluster (or item) is drawn from a beta or a logit-normal distribution with the mean and intraclass
correlation of the setting, its answers are then independent; the truth is the mean of that distribution.
"""
import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import f as f_distribution
from scipy.stats import norm

from qwen_eval.stats.clustered import (
    cluster_bootstrap,
    clustered_difference,
    clustered_mean,
    intraclass,
    stratified_clustered,
)
from qwen_eval.stats.epochs import pass_at_k
from qwen_eval.stats.intervals import wilson

from . import settled

LEVEL = 0.95
UNEVEN = {n: np.linspace(5, 20, n).astype(int) for n in (15, 30, 50)} # items of each cluster


def logit_normal(p, icc):
    "Mean and standard deviation on the logit scale that give mean p and variance icc p (1 - p)."
    x, w = np.polynomial.hermite_e.hermegauss(101)
    w = w / w.sum()
    def mean_at(s): return brentq(lambda mu: w @ expit(mu + s * x) - p, -30, 30)
    def excess(s):
        q = expit(mean_at(s) + s * x)
        return w @ (q * q) - p * p - icc * p * (1 - p)
    s = brentq(excess, 0.01, 10)
    return mean_at(s), s


def chances(kind, p, icc, shape, rng):
    "Chances of clusters, of the given shape."
    if kind == "beta-binomial": return rng.beta(p * (1 / icc - 1), (1 - p) * (1 / icc - 1), shape)
    mu, s = logit_normal(p, icc)
    return expit(mu + s * rng.standard_normal(shape))


def row(what, setting, method, hits, naive_method, naive, least, nominal=LEVEL):
    "Shares of repetitions; `hits` and `naive` are True where the truth was held."
    share, n = float(np.mean(hits)), len(hits)
    return {"what": what, "setting": setting, "method": method, "measured": share, "naive_method": naive_method,
            "naive": float(np.mean(naive)), "nominal": nominal, "bound": least and (least, 0.985), "errors": 0,
            "se": math.sqrt(share * (1 - share) / n), "repetitions": n}


def holds(e, truth): return e.low <= truth <= e.high


def pooled(x, truth): # as if all answers were independent
    low, high = wilson(x.sum(), x.size, LEVEL).ends
    return low <= truth <= high


def cr0_normal(x, clusters, truth):
    e = clustered_mean(x, clusters, variance="CR0", level=LEVEL)
    return abs(e.value - truth) <= norm.isf((1 - LEVEL) / 2) * (e.se or 0)


def clusters(kind, p, sizes, icc, least, n, rng):
    label = np.repeat(np.arange(len(sizes)), sizes)
    found = [[], [], []]
    for q in chances(kind, p, icc, (n, len(sizes)), rng):
        x = (rng.random(len(label)) < q[label]).astype(float)
        for k, hit in enumerate((holds(clustered_mean(x, label), p), pooled(x, p), cr0_normal(x, label, p))):
            found[k].append(hit)
    setting = f"{kind}, p = {p}, ICC {icc}, {len(sizes)} clusters of {min(sizes)} to {max(sizes)}"
    return [row("clustered mean", setting, "CR2, Bell-McCaffrey, logit", found[0], name, naive, least)
            for name, naive in (("Wilson over all answers", found[1]), ("CR0, normal", found[2]))]


def epochs(kind, p, shape, icc, least, n, rng):
    n_items, n_epochs = shape
    found = [[], [], []]
    for q in chances(kind, p, icc, (n, n_items), rng):
        x = (rng.random(shape) < q[:, None]).astype(float)
        label = np.repeat(np.arange(n_items), n_epochs)
        for k, hit in enumerate((holds(clustered_mean(x), p), pooled(x, p), cr0_normal(x.ravel(), label, p))):
            found[k].append(hit)
    setting = f"{kind}, p = {p}, ICC {icc}, {n_items} items x {n_epochs} epochs"
    return [row("mean over epochs", setting, "items as clusters, CR2, logit", found[0], name, naive, least)
            for name, naive in (("Wilson over all answers", found[1]), ("CR0, normal", found[2]))]


def paired(kind, ps, sizes, icc, least, n, rng):
    "Two models; in half of the clusters the second is as good as the first where both have one mean, else by itself."
    label, hits, naive = np.repeat(np.arange(len(sizes)), sizes), [], []
    first, second = (chances(kind, p, icc, (n, len(sizes)), rng) for p in ps)
    if ps[0] == ps[1]: second = np.where(rng.random(second.shape) < 0.5, first, second)
    for a, b in zip(first, second, strict=True):
        x, y = ((rng.random(len(label)) < q[label]).astype(float) for q in (a, b))
        d, truth = x - y, ps[0] - ps[1]
        hits.append(holds(clustered_difference(x, y, label), truth))
        naive.append(abs(d.mean() - truth) <= 1.96 * d.std() / math.sqrt(len(d)))
    return [row("clustered paired difference", f"{kind}, p = {ps[0]} and {ps[1]}, ICC {icc}, {len(sizes)} clusters",
                "CR2, Bell-McCaffrey, t", hits, "Wald, pairs independent", naive, least)]


def strata(kind, sizes, icc, least, n, rng):
    "Four strata of different difficulty; the naive interval leaves the strata out of account."
    ps, each = np.array([0.95, 0.8, 0.65, 0.5]), np.tile(sizes, 4)
    label = np.repeat(np.arange(len(each)), each)
    stratum, share = label // len(sizes), np.full(4, 0.25)
    q = np.concatenate([chances(kind, p, icc, (n, len(sizes)), rng) for p in ps], axis=1)
    hits, naive = [], []
    for chance in q:
        x = (rng.random(len(label)) < chance[label]).astype(float)
        hits.append(holds(stratified_clustered(x, stratum, label), share @ ps))
        naive.append(pooled(x, share @ ps))
    return [row("strata with clusters", f"{kind}, 4 strata of {len(sizes)} clusters, ICC {icc}",
                "variance within strata, CR2, logit", hits, "Wilson over all answers", naive, least)]


def bootstrap(kind, p, sizes, icc, least, n, rng):
    label, hits, naive = np.repeat(np.arange(len(sizes)), sizes), [], []
    for q in chances(kind, p, icc, (n, len(sizes)), rng):
        x = (rng.random(len(label)) < q[label]).astype(float)
        hits.append(holds(cluster_bootstrap(x, label, rng=rng, n_resamples=1000), p))
        naive.append(holds(cluster_bootstrap(x, rng=rng, n_resamples=1000), p)) # draws items
    return [row("cluster bootstrap", f"{kind}, p = {p}, ICC {icc}, {len(sizes)} clusters", "expanded percentile", hits,
                "bootstrap of items", naive, least)]


def correlation(kind, p, sizes, icc, least, n, rng):
    label, hits, naive = np.repeat(np.arange(len(sizes)), sizes), [], []
    between, within = len(sizes) - 1, len(label) - len(sizes)
    ends = (f_distribution.isf((1 - LEVEL) / 2, between, within), f_distribution.isf((1 + LEVEL) / 2, between, within))
    for q in chances(kind, p, icc, (n, len(sizes)), rng):
        e = intraclass((rng.random(len(label)) < q[label]).astype(float), label)
        m = e.detail["mean_size"]
        ratio = (1 + (m - 1) * e.value) / (1 - e.value) # MS_b / MS_w
        low, high = ((ratio / f - 1) / (ratio / f + m - 1) for f in ends)
        hits.append(holds(e, icc))
        naive.append(low <= icc <= high)
    return [row("intraclass correlation", f"{kind}, p = {p}, ICC {icc}, {len(sizes)} clusters",
                "jackknife on Fisher's scale", hits, "F interval of normal values", naive, least)]


def passes(kind, p, shape, icc, k, least, n, rng):
    n_items, n_epochs = shape
    truth = float(np.mean(1 - (1 - chances(kind, p, icc, 4_000_000, rng)) ** k))
    hits, naive = [], []
    for q in chances(kind, p, icc, (n, n_items), rng):
        x = (rng.random(shape) < q[:, None]).astype(float)
        hits.append(holds(pass_at_k(x, k), truth))
        low, high = (1 - (1 - end) ** k for end in wilson(x.sum(), x.size, LEVEL).ends) # of one pooled chance
        naive.append(low <= truth <= high)
    return [row(f"pass@{k}", f"{kind}, p = {p}, ICC {icc}, {n_items} items x {n_epochs} epochs",
                "unbiased by item, CR2, logit", hits, "1 - (1 - p)^k of the pooled p", naive, least)]


def rows(full=False): # list of dictionaries, one a line of the table
    "All settings; `full`: twenty times the repetitions."
    n, found = (20_000, []) if full else (1_000, [])
    few = n // 4 # of what costs more
    def rng(): return np.random.default_rng([6, len(found)])
    for kind in ("beta-binomial", "logit-normal"):
        for sizes in ([10] * 15, UNEVEN[15], [10] * 30, UNEVEN[50]):
            found += clusters(kind, 0.7, sizes, 0.3, 0.935, n, rng())
        found += clusters(kind, 0.9, UNEVEN[30], 0.3, 0.915, n, rng())
        for p, shape, icc in ((0.7, (30, 4), 0.5), (0.7, (100, 8), 0.3), (0.9, (100, 4), 0.5), (0.5, (50, 10), 0.3)):
            found += epochs(kind, p, shape, icc, 0.93, n, rng())
        found += paired(kind, (0.7, 0.6), UNEVEN[15], 0.3, 0.935, n, rng())
        found += paired(kind, (0.7, 0.7), UNEVEN[30], 0.3, 0.935, n, rng())
        found += strata(kind, [4, 6, 8, 10, 12, 14], 0.3, 0.93, n, rng())
        found += passes(kind, 0.5, (100, 8), 0.3, 4, 0.93, n, rng())
        found += bootstrap(kind, 0.7, UNEVEN[30], 0.3, 0.925, few, rng())
        found += correlation(kind, 0.7, UNEVEN[50], 0.3, 0.92, n, rng())
    for kind in ("beta-binomial", "logit-normal"): # few items near the top: as for 30 clusters at p = 0.9
        found += epochs(kind, 0.9, (30, 16), 0.3, 0.915, n, rng())
        found += passes(kind, 0.9, (40, 4), 0.3, 2, None, n, rng()) # nearly all pass: nothing is promised
    return settled(found, full)
