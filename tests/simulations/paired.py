"""How often paired intervals hold the truth, and how often paired tests find a difference that is not there.

By exact enumeration where `repetitions` is 0, else by seeded simulation. Each row has the naive method beside it.
"""
import numpy as np
from scipy.stats import binom, chi2_contingency, multinomial

from qwen_eval.stats.bootstrap import paired_bootstrap
from qwen_eval.stats.discordant import bonett_price, mcnemar_p, tango_score
from qwen_eval.stats.independent import newcombe
from qwen_eval.stats.paired import paired_t
from qwen_eval.stats.paired_tests import cochran_q, sign_flip

from . import settled

Z = 1.959963984540054


def row(what, setting, method, measured, naive_method, naive, bound, repetitions=0, nominal=0.95):
    se = (nominal * (1 - nominal) / repetitions) ** 0.5 if repetitions else 0.0
    return {"what": what, "setting": setting, "method": method, "measured": float(measured),
            "naive_method": naive_method, "naive": float(naive), "nominal": nominal, "bound": bound, "errors": 0,
            "se": se, "repetitions": repetitions}


def mcnemar_size(n, discordant, method, alpha=0.05):
    "Exact chance to reject where neither is better, `discordant` being the chance of a discordant pair."
    ks = np.arange(n + 1)
    chance = binom.pmf(ks, n, discordant)
    size = 0.0
    for k in ks[chance > 1e-12]:
        b = np.arange(k + 1)
        size += chance[k] * binom.pmf(b, k, 0.5)[mcnemar_p(b, k - b, method) <= alpha].sum()
    return size


def mcnemar_sizes(full=False):
    settings = [(n, d) for n in (50, 100, 200, 500, 1000, 1319) for d in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
                if n * d >= 10]
    sizes = {m: np.array([mcnemar_size(n, d, m) for n, d in settings]) for m in ("mid-p", "chi2", "exact")}
    setting = "10 to 660 discordant pairs expected, n = 50..1319"
    mid, chi, exact = sizes["mid-p"], sizes["chi2"], sizes["exact"]
    name, most, least = "mcnemar mid-p", (0, 0.051), (0.039, 1)
    return [row("largest size", setting, name, mid.max(), "mcnemar chi2", chi.max(), most, 0, 0.05),
            row("smallest size", setting, name, mid.min(), "mcnemar exact", exact.min(), least, 0, 0.05)]


def cells(n, accuracy, discordant, difference, n_studies, rng):
    "Counts of both right, the first alone, the second alone, both wrong, shape (n_studies, 4)."
    p10, p01 = (discordant + difference) / 2, (discordant - difference) / 2
    p11 = accuracy - discordant / 2
    return rng.multinomial(n, [p11, p10, p01, 1 - p11 - p10 - p01], n_studies)


def unpaired_z(full=False):
    "The test that two separate runs would get, on runs over the same items."
    n_studies, rng, found = 100_000 if full else 20_000, np.random.default_rng(21), []
    for n, accuracy, discordant in ((200, 0.7, 0.1), (500, 0.6, 0.2)):
        both, first, second, _ = cells(n, accuracy, discordant, 0, n_studies, rng).T
        a, b = (both + first) / n, (both + second) / n
        pooled = (a + b) / 2
        z = (a - b) / np.sqrt(np.maximum(2 * pooled * (1 - pooled) / n, 1e-300))
        mine = np.mean(mcnemar_p(first, second) <= 0.05)
        found.append(row("size", f"n = {n}, {accuracy:.0%} right, {discordant:.0%} discordant", "mcnemar mid-p", mine,
                         "unpaired z test", np.mean(np.abs(z) > Z), (0.039 - 0.003, 0.051 + 0.003), n_studies, 0.05))
    return found


def bonett_price_holds(b, c, n, truth):
    "The same as `bonett_price` for many tables at once; a test compares them."
    p12, p21 = (b + 1) / (n + 2), (c + 1) / (n + 2)
    return np.abs(p12 - p21 - truth) <= Z * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))


def tango_holds(b, c, n, truth): return np.abs(tango_score(truth, b, c, n)) <= Z


def wald_holds(b, c, n, truth):
    d = (b - c) / n
    return np.abs(d - truth) <= Z * np.sqrt(((b + c) / n - d**2) / n)


HOLDS = {"tango": tango_holds, "bonett-price": bonett_price_holds, "wald": wald_holds}


def paired_coverage(n, discordant, difference):
    "Exact coverage of each method over all tables."
    b, c = np.indices((n + 1, n + 1)).reshape(2, -1)
    b, c = b[b + c <= n], c[b + c <= n] # (n_tables,)
    p = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    chance = multinomial.pmf(np.stack([b, c, n - b - c], axis=1), n, p)
    return [chance @ holds(b, c, n, difference) for holds in HOLDS.values()]


def paired_intervals(full=False):
    "Both models win now and then (at least a fifth as often as the other), 5 or more discordant pairs expected."
    sizes = (30, 50, 100, 200, 300) if full else (30, 50, 100, 200)
    settings = [(n, d, share * d) for n in sizes for d in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
                for share in (0, 0.1, 0.25, 0.4, 0.5, 0.67) if n * d >= 5]
    found = dict(zip(HOLDS, np.array([paired_coverage(*s) for s in settings]).T, strict=True))
    setting = f"n = 30..{sizes[-1]}, 5 to 40 % discordant, {len(settings)} settings"
    rows = []
    for method in ("tango", "bonett-price"):
        rows += [row("minimum coverage", setting, method, found[method].min(), "wald, paired", found["wald"].min(),
                     (0.935, 1)),
                 row("mean coverage", setting, method, found[method].mean(), "wald, paired", found["wald"].mean(),
                     (0.945, 0.97))]
    return rows


def unpaired_interval(full=False):
    "Newcombe's interval of two independent groups, on runs over the same items: far too wide."
    n_studies, rng, found = 20_000 if full else 5000, np.random.default_rng(22), []
    for n, accuracy, discordant, difference in ((200, 0.7, 0.15, 0.05), (100, 0.8, 0.1, 0.02)):
        table = cells(n, accuracy, discordant, difference, n_studies, rng)
        tables, times = np.unique(table[:, :3], axis=0, return_counts=True)
        both, first, second = tables.T
        mine = [bonett_price(int(b), int(c), n) for b, c in zip(first, second, strict=True)]
        naive = [newcombe(a, n, b, n) for a, b in zip(both + first, both + second, strict=True)]
        def held(es, times=times, truth=difference):
            return np.average([e.low <= truth <= e.high for e in es], weights=times)
        setting = f"n = {n}, {accuracy:.0%} right, {discordant:.0%} discordant"
        found.append(row("coverage", setting, "bonett-price", held(mine), "newcombe, unpaired", held(naive),
                         (0.935, 0.98), n_studies))
        width = [np.average([e.high - e.low for e in es], weights=times) for es in (mine, naive)]
        found.append(row("mean width, unpaired is 1", setting, "bonett-price", width[0] / width[1],
                         "newcombe, unpaired", 1, (0, 0.85), n_studies, 1.0))
    return found


def real_differences(full=False):
    n_studies, rng, n = 4000 if full else 1000, np.random.default_rng(23), 30
    skill = rng.beta(3, 2, (n_studies, n)) # what is common to both, so that they correlate
    a, b = (np.clip(skill + rng.normal(0, 0.1, skill.shape), 0, 1) for _ in range(2))
    z = (a.mean(1) - b.mean(1)) / np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / n)
    unpaired = np.mean(np.abs(z) > Z)
    pairs = list(zip(a, b, strict=True))
    t = [paired_t(x, y) for x, y in pairs]
    sign = [sign_flip(x, y, rng, n_resamples=999) for x, y in pairs]
    few = [sign_flip(x[:9], y[:9], rng) for x, y in pairs]
    drawn = [paired_bootstrap(x, y, rng, n_resamples=999) for x, y in pairs]
    noise = 3 * (0.05 * 0.95 / n_studies) ** 0.5
    def size(es): return np.mean([e.p_value <= 0.05 for e in es])
    def covers(es): return np.mean([e.low <= 0 <= e.high for e in es])
    setting, near, covering = f"{n} items, correlation 0.8", (0.05 - noise, 0.05 + noise), (0.95 - noise, 0.95 + noise)
    z, free = "unpaired z test", 1 - unpaired
    return [row("size", setting, "paired_t", size(t), z, unpaired, near, n_studies, 0.05),
            row("size", setting, "sign_flip", size(sign), z, unpaired, near, n_studies, 0.05),
            row("size", "9 items", "sign_flip, all patterns", size(few), z, unpaired, (0.02, near[1]), n_studies, 0.05),
            row("coverage", setting, "sign_flip", covers(sign), "unpaired", free, covering, n_studies),
            row("coverage", setting, "paired_bootstrap", covers(drawn), "unpaired", free, (0.935, 0.97), n_studies)]


def several_models(full=False):
    n_studies, rng, k, n = 10_000 if full else 2000, np.random.default_rng(24), 4, 100
    chance = rng.beta(0.6, 0.4, (n_studies, 1, n)) # items differ much in difficulty
    right = (rng.random((n_studies, k, n)) < chance).astype(float)
    mine = np.mean([cochran_q(x).p_value <= 0.05 for x in right])
    tables = np.stack([right.sum(axis=2), n - right.sum(axis=2)], axis=1) # (n_studies, 2, n_models)
    naive = np.mean([chi2_contingency(x, correction=False).pvalue <= 0.05 for x in tables])
    noise = 3 * (0.05 * 0.95 / n_studies) ** 0.5
    return [row("size", f"{k} models, {n} items", "cochran_q", mine, "chi-square of independent groups", naive,
                (0.05 - noise, 0.05 + noise), n_studies, 0.05)]


PARTS = (mcnemar_sizes, unpaired_z, paired_intervals, unpaired_interval, real_differences, several_models)


def rows(full=False): return settled([r for part in PARTS for r in part(full)], full)
