"""Planned power is met, equivalence keeps its size, and nothing is said where nothing could be told.

By seeded simulation, or by exact enumeration where `repetitions` is 0. `bound` is the lowest and the highest share
that is accepted, Monte-Carlo error apart; each row has the naive method beside it.
"""
import math

import numpy as np
from scipy.stats import binom, norm, t

from qwen_eval.stats.equivalence import equivalence
from qwen_eval.stats.margins import equivalence_items, equivalence_power, paired_score
from qwen_eval.stats.power import Clustered, PairedBinary, PairedReal, plan_items

NEAR = (0.78, 0.82) # of a planned power of 80 %


def row(what, setting, method, hits, naive_method, naive, bound, nominal=0.8):
    measured, n = float(np.mean(hits)), len(hits)
    return {"what": what, "setting": setting, "method": method, "measured": measured, "naive_method": naive_method,
            "naive": float(np.mean(naive)), "nominal": nominal, "bound": bound, "errors": 2,
            "se": math.sqrt(nominal * (1 - nominal) / n), "repetitions": n}


def mid_p(b, c):
    m, d = np.minimum(b, c), b + c
    return np.minimum(2 * binom.cdf(m, d, 0.5) - binom.pmf(m, d, 0.5), 1)


def binary(psi, difference, n_sims, rng, right=0.6):
    "McNemar's test with as many items as planned; beside it a test that forgets that the items are the same."
    n = plan_items(PairedBinary(discordance=psi), difference).n
    b, c = (psi + difference) / 2, (psi - difference) / 2
    counts = rng.multinomial(n, [b, c, right - c, 1 - b - right], n_sims) # (n_sims, 4); the second is right on `right`
    first, second = counts[:, 0] + counts[:, 2], counts[:, 1] + counts[:, 2]
    pooled = (first + second) / (2 * n)
    unpaired = np.abs(first - second) / np.sqrt(2 * n * pooled * (1 - pooled)) >= norm.isf(0.025)
    return row("planned power of 80 %", f"right or wrong, {100 * psi:g} % discordant, {100 * difference:g} points, "
               f"n = {n}", "mid-p McNemar", mid_p(counts[:, 0], counts[:, 1]) <= 0.05, "two-sample z-test of the same "
               "answers", unpaired, NEAR)


def rejects(x, df):
    "Two-sided t test at 5 % of each row, shape (n_sims,)."
    n = x.shape[1]
    return np.abs(x.mean(axis=1)) >= t.isf(0.025, df) * x.std(axis=1, ddof=1) / math.sqrt(n)


def real(item_variance, noise, k, difference, n_sims, rng):
    "The paired t test of means over epochs; beside it a plan that forgets the noise."
    def simulated(n):
        items = rng.normal(difference, math.sqrt(item_variance), (n_sims, n))
        return rejects(items + rng.normal(0, math.sqrt(sum(noise) / k), (n_sims, n)), n - 1)

    n = plan_items(PairedReal(item_variance=item_variance, noise=noise, n_epochs=(k, k)), difference).n
    fewer = plan_items(PairedReal(item_variance=item_variance), difference).n
    return row("planned power of 80 %", f"real values, {k} epochs, n = {n}", "paired t", simulated(n),
               f"planned without the noise, n = {fewer}", simulated(fewer), NEAR)


def clustered(sizes, icc, difference, n_sims, rng):
    "A cluster-robust t test with as many clusters as planned, of the given sizes in turn; beside it independence."
    sizes = np.array(sizes)
    design = Clustered(sd=0.5, icc=icc, cluster_size=sizes.mean(), size_cv=sizes.std() / sizes.mean())

    def simulated(g):
        m = np.resize(sizes, g) # (n_clusters,)
        shared = rng.normal(0, 0.5 * math.sqrt(icc), (n_sims, g))
        own = rng.normal(0, 0.5 * math.sqrt(1 - icc), (n_sims, g)) / np.sqrt(m)
        totals = m * (difference + shared + own)
        mean = totals.sum(axis=1) / m.sum()
        residuals = totals - m * mean[:, None]
        se = np.sqrt((residuals**2).sum(axis=1) * g / (g - 1)) / m.sum()
        return np.abs(mean) / se >= t.isf(0.025, g - 1)

    g = plan_items(design, difference).n
    fewer = max(2, round(plan_items(PairedReal(item_variance=0.25), difference).n / sizes.mean()))
    return row("planned power of 80 %", f"clusters of {', '.join(map(str, sizes))}, ICC {icc}, {g} clusters",
               "cluster-robust t", simulated(g), f"planned as independent, {fewer} clusters", simulated(fewer), NEAR)


def tost(counts, n, margin):
    z = norm.isf(0.05)
    b, c = counts[:, 0], counts[:, 1]
    return (paired_score(b, c, n, -margin) >= z) & (paired_score(b, c, n, margin) <= -z)


def equivalence_planned(psi, margin, n_sims, rng):
    n = equivalence_items(margin, discordance=psi)
    counts = rng.multinomial(n, [psi / 2, psi / 2, 1 - psi], n_sims)
    apart = rng.multinomial(n, [(psi - margin) / 2, (psi + margin) / 2, 1 - psi], n_sims)
    setting = f"{100 * psi:g} % discordant, n = {n}"
    return [row("planned power of 80 %", f"equivalence within {100 * margin:g} points, {setting}", "TOST, score",
                tost(counts, n, margin), "no significant difference", mid_p(*counts.T[:2]) > 0.05, NEAR),
            row("false equivalence", f"{100 * margin:g} points apart, the margin, {setting}", "TOST, score",
                tost(apart, n, margin), "no significant difference", mid_p(*apart.T[:2]) > 0.05, (0, 0.05),
                nominal=0.05)]


def equivalence_size():
    "The largest size over many tables, exactly; beside it the Wald test."
    settings = [(n, m, psi) for n in (50, 100, 200, 500, 1000, 2000) for m in (0.02, 0.03, 0.05, 0.1)
                for psi in (m + 0.005, 1.5 * m, 0.1, 0.2, 0.3, 0.5) if psi > m]
    sizes = [equivalence_power(n, m, psi, difference=-m) for n, m, psi in settings]
    b, c = (x.ravel() for x in np.meshgrid(np.arange(301.0), np.arange(301.0)))
    b, c = b[b + c <= 300], c[b + c <= 300]
    chance = binom.pmf(b + c, 300, 0.06) * binom.pmf(b, b + c, (1 - 0.05 / 0.06) / 2)
    reach = norm.isf(0.05) * np.sqrt(b + c - (b - c) ** 2 / 300)
    wald = chance @ ((b - c + 15 >= reach) & (b - c - 15 <= -reach))
    return {"what": "false equivalence", "setting": f"largest of {len(settings)} tables, n = 50..2000",
            "method": "TOST, score", "measured": max(sizes), "naive_method": "TOST, Wald, n = 300",
            "naive": float(wald), "nominal": 0.05, "bound": (0, 0.052), "errors": 0, "se": 0.0, "repetitions": 0}


def verdicts(n_sims, rng):
    "A corrupted engine, and a model at the floor whose answers are noise."
    def mcnemar(a, b): return float(mid_p((a > b).sum(), (a < b).sum()))

    corrupted, floor = [], []
    for _ in range(n_sims):
        good = (rng.random(500) < 0.7).astype(float)
        bad = np.where(rng.random(500) < 1 / 7, 0, good) # ten points less
        found = equivalence(bad, good, 0.03).verdict
        corrupted.append((found in ("not equivalent", "different"), mcnemar(bad, good) > 0.05))
        low, other = (rng.random((2, 500)) < 0.01).astype(float)
        floor.append((not equivalence(low, other, 0.03).testable, mcnemar(low, other) > 0.05))
    for what, setting, found in (("corruption found", "10 points lost, n = 500, margin of 3 points", corrupted),
                                 ("not testable", "both models at 1 %, n = 500, margin of 3 points", floor)):
        hits, naive = np.array(found).T
        yield row(what, setting, "equivalence()", hits, "called equal for want of significance", naive, (1, 1),
                  nominal=1.0)


def rows(full=False):
    rng, n = np.random.default_rng(640), 100_000 if full else 20_000
    m = n // 5
    made = [binary(psi, difference, n, rng) for psi, difference in ((0.05, 0.03), (0.1, 0.03), (0.2, 0.05), (0.4, 0.1))]
    made += [real(0.09, (0.1, 0.15), 1, 0.12, m, rng), real(0.09, (0.1, 0.15), 4, 0.08, m, rng)]
    made += [clustered(sizes, icc, 0.12, m, rng)
             for sizes, icc in (((5,), 0.3), ((10,), 0.1), ((2, 4, 6, 8), 0.3), ((1,), 0.0))]
    for psi, margin in ((0.1, 0.03), (0.3, 0.05), (0.04, 0.02)): made += equivalence_planned(psi, margin, n, rng)
    return [*made, equivalence_size(), *verdicts(1000 if full else 200, rng)]
