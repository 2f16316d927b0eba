"""Peeking after every item: e-processes and confidence sequences keep their level, repeated z-tests do not."""
import math

import numpy as np
from scipy.stats import norm

from qwen_eval.stats.looks import boundaries, crossing, group_look
from qwen_eval.stats.sequential import paired_looks, share_looks

Z = norm.isf(0.025)
CHUNK = 1000 # paths at a time: 2,000 looks of them are 16 MB an array


def row(what, setting, method, hits, naive_method, naive, bound, nominal=0.05):
    n = len(hits)
    return {"what": what, "setting": setting, "method": method, "measured": float(np.mean(hits)),
            "naive_method": naive_method, "naive": float(np.mean(naive)), "nominal": nominal, "bound": bound,
            "errors": 2, "se": math.sqrt(nominal * (1 - nominal) / n), "repetitions": n}


def single(p, n_paths, n_looks, rng):
    "Rejections of the true share, and sequences that ever exclude it."
    rejected, excluded, naive = [], [], []
    for _ in range(n_paths // CHUNK):
        k = (rng.random((CHUNK, n_looks)) < p).cumsum(axis=1)
        looks = share_looks(k, order=650, share=p)
        rejected.append(looks.stops >= 0)
        excluded.append(((looks.low > p) | (looks.high < p)).any(axis=1))
        naive.append((np.abs(k - p * looks.n) >= Z * np.sqrt(p * (1 - p) * looks.n))[:, 9:].any(axis=1))
    setting, naive = f"share {p}, {n_looks} looks", np.concatenate(naive)
    return [row("ever rejected", setting, "beta-binomial e-process", np.concatenate(rejected),
                "z-test from 10 items on", naive, (0, 0.05)),
            row("truth always held", setting, "confidence sequence", ~np.concatenate(excluded),
                "Wilson intervals from 10 items on", ~naive, (0.95, 1), nominal=0.95)]


def paired(b, c, n_paths, n_looks, rng):
    "The same for two models, the first alone right on a share b of the items, the second on c."
    rejected, excluded, naive, fixed = [], [], [], []
    for _ in range(n_paths // CHUNK):
        u = rng.random((CHUNK, n_looks))
        wins, losses = (u < b).cumsum(axis=1), (u > 1 - c).cumsum(axis=1)
        looks = paired_looks(wins, losses, order=650)
        rejected.append(looks.stops >= 0)
        excluded.append(((looks.low > b - c) | (looks.high < b - c)).any(axis=1))
        z = np.abs(wins - losses) >= Z * np.sqrt(np.maximum(wins + losses, 1))
        naive.append((z & (wins + losses >= 10)).any(axis=1))
        fixed.append(fixed_intervals(wins, losses, looks.n, b - c))
    setting, naive = f"pairs, {100 * b:g} and {100 * c:g} % discordant, {n_looks} looks", np.concatenate(naive)
    held = row("truth always held", setting, "confidence sequence", ~np.concatenate(excluded), "Bonett-Price intervals",
               np.concatenate(fixed), (0.95, 1), nominal=0.95)
    if b != c: return [held]
    return [row("ever rejected", setting, "e-process on discordant pairs", np.concatenate(rejected),
                "McNemar z from 10 pairs on", naive, (0, 0.05)), held]


def fixed_intervals(wins, losses, n, truth):
    "Do all intervals of Bonett and Price from 30 items on hold the truth? Shape (n_paths,)."
    p, q = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    held = np.abs(p - q - truth) <= Z * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return held[:, 29:].all(axis=1)


def grouped(kind, n_looks, n_paths, rng):
    "Paired answers at a few planned looks."
    bounds, planned = boundaries(n_looks, kind=kind), 500
    diff = rng.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=(n_paths, planned))
    zero = np.zeros(planned)
    hits = [group_look(d, zero, 650, bounds, planned, range=(-1, 1)).detail["rejected_at"] > 0 for d in diff]
    naive = crossing([Z] * n_looks, np.arange(1, n_looks + 1) / n_looks).sum()
    return row("rejected at a look", f"pairs, 30 % discordant, {n_looks} looks at 500 items", kind, hits,
               "z-test at each look (exact)", [naive], (0, 0.055))


def rows(full=False):
    rng, n = np.random.default_rng(650), 4000 if full else 2000
    made = [r for p in (0.5, 0.8, 0.95) for r in single(p, n, 2000, rng)]
    for b, c in ((0.1, 0.1), (0.02, 0.02), (0.15, 0.05)): made += paired(b, c, n, 2000, rng)
    return [*made, *(grouped(kind, 5, 5 * n, rng) for kind in ("obrien-fleming", "pocock"))]
