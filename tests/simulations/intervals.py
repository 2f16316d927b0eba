"""How often the intervals of one model, or of two groups without common items, hold the truth.

By exact enumeration where `repetitions` is 0, else by seeded simulation. Each row has the naive method beside it.
"""
from functools import cache
from types import SimpleNamespace

import numpy as np
from scipy.stats import binom, hypergeom, poisson

from qwen_eval.stats.bootstrap import bootstrap_corpus, mean_bca
from qwen_eval.stats.independent import agresti_caffo, miettinen_nurminen, newcombe
from qwen_eval.stats.intervals import (
    agresti_coull,
    clopper_pearson,
    estimate,
    jeffreys,
    mean_t,
    ratio,
    stratified,
    wilson,
)
from qwen_eval.stats.rates import event_rate, quantile

from . import settled

Z = 1.959963984540054


def row(what, setting, method, measured, naive_method, naive, bound, repetitions=0, nominal=0.95):
    se = (nominal * (1 - nominal) / repetitions) ** 0.5 if repetitions else 0.0
    return {"what": what, "setting": setting, "method": method, "measured": float(measured),
            "naive_method": naive_method, "naive": float(naive), "nominal": nominal, "bound": bound, "errors": 0,
            "se": se, "repetitions": repetitions}


def ends(e): return e.low, e.high


def held(found, truth):
    low, high = np.asarray(found).T
    return float(np.mean((low <= truth) & (truth <= high)))


def coverage(interval, n, ps):
    "Exact coverage at each p, shape (n_ps,)."
    low, high = np.array([interval(k, n) for k in range(n + 1)]).T # (n + 1,)
    chance = binom.pmf(np.arange(n + 1), n, ps[:, None]) # (n_ps, n + 1)
    return (chance * ((low <= ps[:, None]) & (ps[:, None] <= high))).sum(axis=1)


def wald(k, n):
    half = Z * (k * (n - k) / n**3) ** 0.5
    return k / n - half, k / n + half


def proportions(full=False):
    ps, found = np.linspace(0.05, 0.95, 9001 if full else 1801), []
    for n, least in ((20, 0.915), (100, 0.925), (500, 0.935)):
        plain = coverage(wald, n, ps)
        setting = f"n = {n}, p in 0.05..0.95"
        mine = coverage(lambda k, n: ends(wilson(k, n)), n, ps)
        found += [row("mean coverage", setting, "wilson", mine.mean(), "wald", plain.mean(), (0.945, 0.965)),
                  row("minimum coverage", setting, "wilson", mine.min(), "wald", plain.min(), (least, 1))]
        for name, interval, mean, low in (("jeffreys", jeffreys, (0.94, 0.965), 0.88),
                                          ("agresti-coull", agresti_coull, (0.945, 0.98), 0.925),
                                          ("clopper-pearson", clopper_pearson, (0.95, 0.99), 0.95)):
            mine = coverage(lambda k, n, f=interval: ends(f(k, n)), n, ps)
            found += [row("mean coverage", setting, name, mine.mean(), "wald", plain.mean(), mean),
                      row("minimum coverage", setting, name, mine.min(), "wald", plain.min(), (low, 1))]
    return found


def finite(full=False):
    "150 of the 200 items of a benchmark asked; the naive interval speaks of all items that there could be."
    size, n = 200, 150
    ks = np.arange(n + 1)
    mine, plain = (np.array([ends(wilson(k, n, population=p)) for k in ks]) for p in (size, None))
    totals = np.arange(10, size - 9, 1 if full else 2)
    def of(found):
        low, high = found.T
        chance = hypergeom.pmf(ks, size, totals[:, None], n) # (n_totals, n + 1)
        truth = totals[:, None] / size
        return (chance * ((low <= truth) & (truth <= high))).sum(axis=1).mean()
    return [row("mean coverage", "150 of 200 items, share in 0.05..0.95", "wilson, finite population", of(mine),
                "wilson", of(plain), (0.94, 0.97))]


def epochs(full=False):
    "Items differ in difficulty; four answers to each are not four items."
    found, rng, n_studies = [], np.random.default_rng(11), 10_000 if full else 2000
    for n_epochs in (1, 4):
        chances = rng.beta(1.2, 0.8, (n_studies, 40, 1))
        right = rng.random((n_studies, 40, n_epochs)) < chances
        mine = held([ends(estimate(x)) for x in right], 0.6)
        pooled = held([ends(wilson(x.sum(), x.size)) for x in right], 0.6)
        setting = f"40 items, {n_epochs} epochs"
        found.append(row("coverage", setting, "estimate", mine, "wilson, epochs as items", pooled,
                         (0.94, 1 if n_epochs > 1 else 0.97), n_studies))
    return found


def real_values(full=False):
    rng, found, n_studies = np.random.default_rng(12), [], 10_000 if full else 2000
    def normal(x):
        half = Z * x.std(ddof=1) / len(x) ** 0.5
        return x.mean() - half, x.mean() + half
    for n, a, b, least in ((30, 4, 2, 0.935), (30, 1, 6, 0.915), (100, 1, 6, 0.93)):
        values = rng.beta(a, b, (n_studies, n))
        naive = held([normal(x) for x in values], a / (a + b))
        setting = f"n = {n}, Beta({a}, {b})"
        mine = held([ends(mean_t(x)) for x in values], a / (a + b))
        found.append(row("coverage", setting, "mean_t", mine, "normal", naive, (least, 0.965), n_studies))
        few = values[: n_studies // 2]
        bca = held([ends(mean_bca(x, rng, n_resamples=999)) for x in few], a / (a + b))
        found.append(row("coverage", setting, "mean_bca", bca, "normal", naive, (least, 0.97), len(few)))
    return found


def weighted(full=False):
    rng, n_studies = np.random.default_rng(13), 10_000 if full else 2000
    easy, hard = (rng.random((n_studies, n)) < p for n, p in ((200, 0.9), (50, 0.3)))
    both = list(zip(easy, hard, strict=True))
    mine = held([ends(stratified(x, (0.5, 0.5))) for x in both], 0.6)
    pooled = held([ends(wilson(x.sum() + y.sum(), 250)) for x, y in both], 0.6)
    counts = rng.choice([1, 2, 3], size=(n_studies, 150), p=[0.56, 0.34, 0.1])
    skill = rng.beta(6, 2, counts.shape)
    share = rng.binomial(counts, skill) / counts
    of_items = held([ends(ratio(x, w)) for x, w in zip(share, counts, strict=True)], 0.75)
    of_units = held([ends(wilson((x * w).sum(), w.sum())) for x, w in zip(share, counts, strict=True)], 0.75)
    return [row("coverage", "two strata, 200 and 50 items, equal weights", "stratified", mine, "wilson, strata pooled",
                pooled, (0.93, 0.965), n_studies),
            row("coverage", "150 items of 1 to 3 instructions", "ratio", of_items, "wilson, instructions as items",
                of_units, (0.935, 0.965), n_studies)]


def seen(strata, w): # of strata of one item nothing is seen
    half = Z * sum(a * a * x.var() / len(x) for a, x in zip(w, strata, strict=True)) ** 0.5
    value = sum(a * x.mean() for a, x in zip(w, strata, strict=True))
    return value - half, value + half


def few_of_each(full=False):
    "Many strata of few items, as a limit leaves them."
    rng, n_studies, found = np.random.default_rng(16), 10_000 if full else 1000, []
    for sizes in (np.ones(40, int), np.tile([1, 2, 3, 4, 5], 8), np.full(57, 2)):
        chance, cut, w = rng.beta(3, 1.5, len(sizes)), np.cumsum(sizes)[:-1], np.full(len(sizes), 1 / len(sizes))
        right = rng.random((n_studies, sizes.sum())) < np.repeat(chance, sizes)
        split = [np.split(x, cut) for x in right]
        mine, plain = (held(x, chance.mean()) for x in ([ends(stratified(s, w)) for s in split],
                                                        [seen(s, w) for s in split]))
        found.append(row("coverage", f"{len(sizes)} strata of {sizes.min()} to {sizes.max()} items, equal weights",
                         "stratified", mine, "normal, variance seen within strata", plain, (0.935, 1), n_studies))
    return found


@cache
def difference_ends(function, n1, n2):
    return np.array([[ends(function(a, n1, b, n2)) for b in range(n2 + 1)] for a in range(n1 + 1)])


def plain_difference(k1, n1, k2, n2):
    half = Z * (k1 * (n1 - k1) / n1**3 + k2 * (n2 - k2) / n2**3) ** 0.5
    return SimpleNamespace(low=k1 / n1 - k2 / n2 - half, high=k1 / n1 - k2 / n2 + half)


def independent(full=False):
    "Two groups without common items; over all pairs of shares in 0.05..0.95."
    found, ps = [], np.linspace(0.05, 0.95, 91 if full else 37)
    def of(function, n1, n2):
        low, high = np.moveaxis(difference_ends(function, n1, n2), -1, 0) # (n1 + 1, n2 + 1)
        first, second = (binom.pmf(np.arange(n + 1), n, ps[:, None]) for n in (n1, n2))
        return np.array([[a @ ((low <= p - q) & (p - q <= high)) @ b for q, b in zip(ps, second, strict=True)]
                         for p, a in zip(ps, first, strict=True)])
    for n1, n2 in ((40, 40), (60, 25)):
        plain = of(plain_difference, n1, n2)
        for name, function, least in (("newcombe", newcombe, 0.915), ("miettinen-nurminen", miettinen_nurminen, 0.92),
                                      ("agresti-caffo", agresti_caffo, 0.92)):
            mine, setting = of(function, n1, n2), f"n = {n1} and {n2}, p in 0.05..0.95"
            found += [row("mean coverage", setting, name, mine.mean(), "wald", plain.mean(), (0.945, 0.97)),
                      row("minimum coverage", setting, name, mine.min(), "wald", plain.min(), (least, 1))]
    return found


def rates(full=False):
    means = np.linspace(0.5, 20, 391)
    ks = np.arange(80)
    exact = np.array([ends(event_rate(k, 1)) for k in ks])
    naive = np.stack([ks - Z * ks**0.5, ks + Z * ks**0.5], axis=1)
    def of(found):
        low, high = found.T
        return (poisson.pmf(ks, means[:, None]) * ((low <= means[:, None]) & (means[:, None] <= high))).sum(axis=1)
    rng, n_studies = np.random.default_rng(14), 10_000 if full else 2000
    times, truth = rng.lognormal(0, 0.8, (n_studies, 200)), np.exp(0.8 * 1.6448536269514722)
    order = held([ends(quantile(x, 0.95)) for x in times], truth)
    log = np.log(times)
    def shape(x): # mean and spread, as if latencies were normal
        return x.mean() + 1.6449 * x.std(), x.std() * (1 / 200 + 1.6449**2 / 400) ** 0.5
    normal = held([(m - Z * s, m + Z * s) for m, s in map(shape, times)], truth)
    assert held([(np.exp(m - Z * s), np.exp(m + Z * s)) for m, s in map(shape, log)], truth) > 0.9 # a known shape helps
    return [row("minimum coverage", "Poisson mean in 0.5..20", "event_rate", of(exact).min(), "normal", of(naive).min(),
                (0.95, 1)),
            row("coverage", "95th percentile of 200 latencies", "quantile", order, "normal shape", normal,
                (0.945, 0.985), n_studies)]


def corpus(full=False):
    "A ratio of sums over items; the naive interval takes words for items."
    rng, n_studies = np.random.default_rng(15), 2000 if full else 400
    sizes = rng.integers(4, 12, (n_studies, 60))
    right = rng.binomial(sizes, rng.beta(6, 4, sizes.shape))
    parts = np.stack([right, sizes], axis=2)
    mine = held([ends(bootstrap_corpus(x, lambda s: s[0] / s[1], rng, n_resamples=400)) for x in parts], 0.6)
    naive = held([ends(wilson(*x.sum(axis=0))) for x in parts], 0.6)
    return [row("coverage", "60 items of 4 to 11 words", "bootstrap_corpus", mine, "wilson, words as items", naive,
                (0.905, 0.975), n_studies)]


PARTS = (proportions, finite, epochs, real_values, weighted, few_of_each, independent, rates, corpus)


def rows(full=False): return settled([r for part in PARTS for r in part(full)], full)
