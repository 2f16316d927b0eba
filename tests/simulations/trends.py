"""False alarms of the CUSUM and how soon it finds a drop of three points in runs of 500 items.

The limits are those of the public plan; the sums are made here again, run by run for all paths at once, with the
binomial of scipy, and `test_coverage.py` checks that the public `cusum` gives the same alarms. Beside stand the
methods in use: fixed limits at three standard deviations, and a test of each run against the one before.
"""
import numpy as np
from scipy.stats import binom, norm

from qwen_eval.stats.trends import cusum_plan

N, NEVER = 500, 10**6


def first_alarms(counts, target, k, h, drops_only=False):
    "Runs until the alarm, counted from 1, for paths of right answers of 500 items, shape (n_paths, n_runs)."
    middle = binom.cdf(range(N + 1), N, target) - binom.pmf(range(N + 1), N, target) / 2
    score = norm.ppf(np.clip(middle, 1e-300, 1 - 1e-16))
    up, down, first = np.zeros(len(counts)), np.zeros(len(counts)), np.full(len(counts), NEVER)
    for t, z in enumerate(score[counts].T, 1):
        up, down = np.maximum(0, up + z - k), np.maximum(0, down - z - k)
        over = down > h if drops_only else (up > h) | (down > h)
        first = np.where((first == NEVER) & over, t, first)
    return first


def alarms(p, shift, n_runs, n_paths, n_baseline, rng, drops_only=False):
    "Runs until the alarm, the target known or from baseline runs."
    counts = rng.binomial(N, p + shift, (n_paths, n_runs))
    if not n_baseline:
        plan = cusum_plan(N, p)
        return first_alarms(counts, p, plan.k, plan.h, drops_only)
    first = [] # of a hundred paths after each of many baselines, which lie at even quantiles of what they may be
    for some in counts.reshape(-1, 100, n_runs):
        right = binom.ppf((len(first) + 0.5) / (n_paths // 100), N * n_baseline, p)
        target = (right + 0.5) / (N * n_baseline + 1)
        plan = cusum_plan(N, target, baseline_items=N * n_baseline)
        first.append(first_alarms(some, target, plan.k, plan.h, drops_only))
    return np.concatenate(first)


def naive(p, shift, n_runs, n_paths, rng):
    "Share of paths with an alarm at three standard deviations, and with one of tests against the run before."
    shares = rng.binomial(N, p + shift, (n_paths, n_runs)) / N
    fixed = np.abs(shares - p) > 3 * (p * (1 - p) / N) ** 0.5
    before = np.concatenate([rng.binomial(N, p, (n_paths, 1)) / N, shares[:, :-1]], axis=1)
    pooled = (shares + before) / 2
    tested = np.abs(shares - before) > 1.96 * (2 * pooled * (1 - pooled) / N) ** 0.5
    return fixed.any(axis=1).mean(), tested.any(axis=1).mean()


def row(what, setting, measured, naive_method, other, bound, nominal, n):
    return {"what": what, "setting": setting, "method": "cusum", "measured": float(measured),
            "naive_method": naive_method, "naive": float(other), "nominal": nominal, "bound": bound, "errors": 2,
            "se": (nominal * (1 - nominal) / n) ** 0.5, "repetitions": n}


def rows(full=False):
    rng, made = np.random.default_rng(62), []
    for p, n_baseline in ((0.5, 0), (0.8, 0), (0.9, 0), (0.95, 0), (0.5, 20), (0.8, 20), (0.9, 20)):
        n = (100_000 if full else 20_000) if not n_baseline else 20_000 if full else 4000
        setting = f"{N} items at {p}, target {f'from {n_baseline} runs' if n_baseline else 'known'}"
        false = np.mean(alarms(p, 0, 30, n, n_baseline, rng) <= 30)
        made.append(row("false alarm within 30 runs", setting, false, "each run tested against the one before",
                        naive(p, 0, 30, n, rng)[1], (0, 0.06), 0.05, n))
        caught = np.mean(alarms(p, -0.03, 20, n, n_baseline, rng, drops_only=True) <= 20)
        made.append(row("drop of 3 points caught within 20 runs", setting, caught, "limits at 3 standard deviations",
                        naive(p, -0.03, 20, n, rng)[0], (0.95, 1), 0.95, n))
    return made
