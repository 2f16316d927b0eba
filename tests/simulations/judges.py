"""How often the intervals of the judges' rooms hold the truth, beside what is usually done."""
import numpy as np
from scipy.stats import norm

from qwen_eval.stats.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from qwen_eval.stats.intervals import wilson
from qwen_eval.stats.judges import length_controlled, position_bias, ppi_mean, rogan_gladen

from . import settled

SETTINGS = ( # share right, sensitivity, specificity, labels, judged, lowest coverage
    (0.7, 0.92, 0.85, 100, 2000, 0.935), # the acceptance setting
    (0.95, 0.92, 0.85, 100, 2000, 0.925),
    (0.5, 0.99, 0.99, 100, 2000, 0.925),
    (0.9, 0.99, 0.99, 100, 20000, 0.925),
    (0.7, 0.92, 0.6, 50, 2000, 0.925),
    (0.7, 0.5, 0.5, 100, 2000, 0.925), # a judge that tosses a coin
)


def row(what, setting, method, hits, naive_method=None, naive=None, nominal=0.95, bound=None):
    hits = np.asarray(hits, float)
    return {"what": what, "setting": setting, "method": method, "measured": float(hits.mean()),
            "naive_method": naive_method, "naive": None if naive is None else float(np.mean(naive)), "nominal": nominal,
            "bound": bound, "errors": 0, "se": float(hits.std() / np.sqrt(len(hits))), "repetitions": len(hits)}


def marked(rng, n, share, sensitivity, specificity): # labels and verdicts, (n,)
    right = rng.random(n) < share
    return right * 1.0, np.where(right, rng.random(n) < sensitivity, rng.random(n) > specificity) * 1.0


def holds(e, truth): return e.low <= truth <= e.high


def corrected(rng, n_reps):
    "PPI++ and Rogan-Gladen; beside them the judge's plain mean with Wilson's interval."
    for share, sensitivity, specificity, n_labels, n_judged, least in SETTINGS:
        found = []
        main = (share, sensitivity, n_labels) == (0.7, 0.92, 100)
        for _ in range(n_reps if main else n_reps // 4):
            y, f = marked(rng, n_labels, share, sensitivity, specificity)
            g = marked(rng, n_judged, share, sensitivity, specificity)[1]
            e, (low, high) = ppi_mean(y, f, g), wilson(g.sum(), n_judged).ends
            try: other = holds(rogan_gladen(y, f, g), share)
            except ValueError: other = np.nan # no wrong answer labelled, or a judge that tells nothing
            width = (e.high - e.low) / (e.detail["human_high"] - e.detail["human_low"])
            human = e.detail["human_low"] <= share <= e.detail["human_high"]
            found.append((holds(e, share), low <= share <= high, width, other, human))
        ppi, plain, width, other, human = np.array(found, float).T
        setting = (f"p = {share}, sensitivity {sensitivity}, specificity {specificity}, {n_labels} labels, "
                   f"{n_judged} judged")
        yield row("coverage", setting, "PPI++ (ppi_mean)", ppi, "judge's mean, Wilson", plain, bound=(least, 1))
        yield row("width over that of labels alone", setting, "PPI++ (ppi_mean)", width, "labels alone, Wilson", [1.0],
                  nominal=None, bound=(0, 0.75) if main else None)
        yield row("coverage", setting, "labels alone, Wilson", human)
        answered = ~np.isnan(other)
        if answered.mean() > 0.9:
            yield row("coverage", setting, "Rogan-Gladen (rogan_gladen)", other[answered], "judge's mean, Wilson",
                      plain[answered], bound=(0.935, 1) if main else None)


def graded(rng, n_reps):
    "PPI++ for scores from 1 to 10 by a judge that is 0.8 too kind."
    big = np.clip(rng.normal(7, 1.5, 1_000_000), 1, 10)
    hits, plain = [], []
    for _ in range(n_reps):
        y = np.clip(rng.normal(7, 1.5, 1060), 1, 10)
        f = np.clip(y + 0.8 + rng.normal(0, 0.7, 1060), 1, 10)
        e = ppi_mean(y[:60], f[:60], f[60:], kind="bounded", range=(1, 10))
        half = 1.96 * f[60:].std(ddof=1) / np.sqrt(1000)
        hits.append(holds(e, big.mean()))
        plain.append(abs(f[60:].mean() - big.mean()) <= half)
    yield row("coverage", "scores 1-10, 60 labels, 1000 judged, judge 0.8 too kind", "PPI++ (ppi_mean, bounded)", hits,
              "judge's mean, t", plain, bound=(0.935, 1))


def kappas(rng, n_reps):
    "Cohen's kappa of two raters with the same margins and a known value; beside it the plain asymptotic interval."
    for n, share, kappa, least in ((100, 0.7, 0.6, 0.92), (100, 0.95, 0.0, 0.93), (100, 0.9, 0.6, 0.92)):
        both, hits, plain = (1 - share) ** 2 + kappa * share * (1 - share), [], []
        cells = np.array([both, 1 - share - both, 1 - share - both, 2 * share - 1 + both])
        while len(hits) < n_reps:
            counts = rng.multinomial(n, cells)
            if min(counts[:2].sum(), counts[::2].sum()) == 0: continue # a rater who uses one label only: not defined
            x, y = (np.repeat(v, counts) for v in ([0, 0, 1, 1], [0, 1, 0, 1]))
            e = cohen_kappa(x, y)
            hits.append(holds(e, kappa))
            plain.append(abs(e.value - kappa) <= norm.isf(0.025) * e.se)
        yield row("coverage", f"kappa {kappa}, labels {share:.0%} / {1 - share:.0%}, n = {n}", "cohen_kappa", hits,
                  "asymptotic interval", plain, bound=(least, 1))


def alphas(rng, n_reps):
    "Krippendorff's alpha and Fleiss' kappa of three raters; the true value is that of 200,000 items."
    def rated(n): # ratings 1 to 4, a fifth missing, (n, 3)
        x = np.clip(np.round(rng.normal(2.5, 1, (n, 1)) + rng.normal(0, 0.6, (n, 3))), 1, 4)
        return x, np.where(rng.random(x.shape) < 0.2, np.nan, x)

    def chosen(x): return (x[:, :, None] == np.arange(1, 5)).sum(axis=1)

    big, holes = rated(200_000)
    truth = {"fleiss": fleiss_kappa(chosen(big)).value}
    truth |= {kind: krippendorff_alpha(holes, kind).value for kind in ("nominal", "ordinal", "interval")}
    for n in (20, 100):
        hits = {k: [] for k in truth}
        for _ in range(n_reps):
            x, gaps = rated(n)
            hits["fleiss"].append(holds(fleiss_kappa(chosen(x)), truth["fleiss"]))
            for kind in list(truth)[1:]: hits[kind].append(holds(krippendorff_alpha(gaps, kind), truth[kind]))
        for k, found in hits.items():
            name = "fleiss_kappa" if k == "fleiss" else f"krippendorff_alpha, {k}"
            yield row("coverage", f"{n} items, 3 raters, true value {truth[k]:.2f}", name, found,
                      bound=(0.915 if n >= 100 else 0.9, 1))


def orders(rng, n_reps):
    "The effect of place in 150 pairs shown both ways round; beside it two independent samples."
    hits, plain = [], []
    for _ in range(n_reps):
        likes = rng.random(150)
        first, second = likes + 0.075 > rng.random(150), likes - 0.075 > rng.random(150)
        e = position_bias(first * 1.0, second * 1.0).effect
        half = 1.96 * np.sqrt((first.var() + second.var()) / 150)
        chance = np.clip(likes + 0.075, 0, 1).mean() - np.clip(likes - 0.075, 0, 1).mean()
        hits.append(holds(e, chance))
        plain.append(abs(e.value - chance) <= half)
    yield row("coverage", "effect of place near 0.14, 150 pairs", "position_bias", hits, "unpaired Wald", plain,
              bound=(0.935, 1))


def lengths(rng, n_reps):
    "The win rate at equal lengths where the judge likes long answers; beside it the plain win rate."
    hits, plain = [], []
    for _ in range(n_reps):
        base, own = rng.integers(500, 2500, 400), rng.integers(900, 3500, 400)
        gap = np.tanh((own - base) / np.std(own - base, ddof=1))
        liked = (rng.random(400) < 1 / (1 + np.exp(0.4 - 1.2 * gap))) * 1.0
        low, high = wilson(liked.sum(), 400).ends
        hits.append(holds(length_controlled(liked, own, base), 1 / (1 + np.exp(0.4))))
        plain.append(low <= 1 / (1 + np.exp(0.4)) <= high)
    yield row("coverage", "win rate at equal lengths 0.40, 400 items", "length_controlled", hits, "win rate, Wilson",
              plain, bound=(0.92, 1))


def rows(full=False): # list of dicts, one a row of the table
    "All of them; `full` takes ten times as many repetitions."
    rng, k = np.random.default_rng(66), 10 if full else 1
    parts = (corrected(rng, 4000 * k), graded(rng, 2000 * k), kappas(rng, 1000 * k), alphas(rng, 800 * k),
             orders(rng, 2000 * k), lengths(rng, 500 * k))
    return settled([r for part in parts for r in part], full)
