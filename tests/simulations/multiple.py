"""Many comparisons, ranking, Bradley-Terry, designs and presets: error rates and coverage by simulation."""
import math

import numpy as np

from qwen_eval.stats.design import item_anova
from qwen_eval.stats.ladder import bradley_terry
from qwen_eval.stats.mixed import logistic_mixed
from qwen_eval.stats.multiple import adjust
from qwen_eval.stats.pairs import all_pairs
from qwen_eval.stats.presets import preset_matters
from qwen_eval.stats.ranking import best_set, rank_intervals


def answers(rng, shares, n_items, shared=0.8):
    "Right answers of models with these shares, hard items hard for all, shape (n_models, n_items)."
    from scipy.stats import norm
    hard = shared * rng.normal(size=n_items)
    own = math.sqrt(1 - shared**2) * rng.normal(size=(len(shares), n_items))
    return (hard + own < norm.ppf(shares)[:, None]).astype(float)


def row(what, setting, method, hits, naive_method, naive, nominal, side):
    "A row of the table; `side` says on which side of the nominal value the measured one has to lie."
    measured, n = float(np.mean(hits)), len(hits)
    se = math.sqrt(max(nominal * (1 - nominal), measured * (1 - measured)) / n)
    return {"what": what, "setting": setting, "method": method, "measured": measured, "naive_method": naive_method,
            "naive": float(np.mean(naive)), "nominal": nominal,
            "bound": (0, nominal) if side == "at most" else (nominal, 1), "errors": 2.5, "se": se, "repetitions": n}


def holm(n):
    "Any false rejection among 45 pairs of ten equal models on the same items."
    rng, bare, adjusted = np.random.default_rng(631), [], []
    for _ in range(n):
        p = all_pairs(answers(rng, np.full(10, 0.7), 500)).p_value
        bare.append(p.min() <= 0.05)
        adjusted.append(adjust(p).min() <= 0.05)
    return row("familywise error", "10 equal models, 45 pairs, 500 items", "mid-p McNemar, Holm", adjusted,
               "unadjusted", bare, 0.05, "at most")


def false_discoveries(n, method):
    "Mean share of false ones among the rejected, half of the models three points better than the others."
    rng, bare, adjusted = np.random.default_rng(632), [], []
    shares = np.repeat([0.7, 0.73], 5)
    for _ in range(n):
        found = all_pairs(answers(rng, shares, 1000))
        false = shares[found.first] == shares[found.second]
        for p, out in ((found.p_value, bare), (adjust(found.p_value, method), adjusted)):
            out.append((false & (p <= 0.05)).sum() / max((p <= 0.05).sum(), 1))
    return row("false discovery rate", "5 models at 70 %, 5 at 73 %, 1,000 items", f"mid-p McNemar, {method.upper()}",
               adjusted, "unadjusted", bare, 0.05, "at most")


def the_best(n, setting, shares, n_items, method):
    "Is the best in the set? Where several are equally good, the last of them."
    rng, kept, first = np.random.default_rng(633), [], []
    names = [f"m{k}" for k in range(len(shares))]
    best = len(shares) - 1
    for _ in range(n):
        x = answers(rng, np.array(shares), n_items)
        kept.append(names[best] in best_set(x, names, rng, method=method, n_draws=1000).best)
        first.append(int(np.argmax(x.mean(axis=1))) == best)
    return row("set holds the best", setting, {"hsu": "Hsu's MCB", "bootstrap": "bootstrap MCB"}[method], kept,
               "the first only", first, 0.95, "at least")


def ranks(n):
    "Do the intervals hold all true ranks at once?"
    rng, held, naive = np.random.default_rng(634), [], []
    shares, truth = np.array([0.70, 0.71, 0.72, 0.73, 0.74, 0.75]), np.arange(6, 0, -1)
    for k in range(n):
        x = answers(rng, shares, 400)
        found = rank_intervals(x, "abcdef")
        held.append(bool(np.all((found.low <= truth) & (truth <= found.high))))
        if k % 4: continue # the naive method is the slow one
        means = rng.multinomial(400, np.full(400, 1 / 400), size=300) @ x.T # (n_draws, n_models)
        drawn = (-means).argsort(axis=1).argsort(axis=1) + 1
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        naive.append(bool(np.all((low <= truth) & (truth <= high))))
    return row("all ranks held", "6 models, a point apart, 400 items", "Holm over ordered pairs", held,
               "bootstrap ranks", naive, 0.95, "at least")


def ladder(n, nu):
    "Do the intervals of the differences from the first hold the truth? A mean over the differences."
    rng, held, naive = np.random.default_rng(635), [], []
    truth, games = np.array([0.0, 0.5, 1.0, 1.5]), 60
    i, j = np.triu_indices(4, 1)
    weight = np.stack([np.exp(truth[i]), np.exp(truth[j]), nu * np.exp((truth[i] + truth[j]) / 2)], axis=1)
    for _ in range(n):
        wins, ties = np.zeros((2, 4, 4))
        first, second, tied = rng.multinomial(games, weight / weight.sum(axis=1, keepdims=True)).T
        wins[i, j], wins[j, i], ties[i, j], ties[j, i] = first, second, tied, tied
        good = bradley_terry(wins, "abcd", ties, tie_rule="davidson" if nu else "half", reference="a")
        held += _held(good, truth)
        share = np.clip((wins + ties / 2).sum(axis=1) / (3 * games), 0.01, 0.99)
        logit, se = np.log(share / (1 - share)), np.sqrt(1 / (3 * games * share * (1 - share)))
        naive += [abs(logit[k] - logit[0] - truth[k]) <= 1.96 * math.hypot(se[k], se[0]) for k in (1, 2, 3)]
    rule = "Davidson" if nu else "no ties"
    return row("interval of a strength", f"4 models, 60 games a pair, {rule}", f"Bradley-Terry, {rule}", held,
               "log-odds of win rates", naive, 0.95, "at least")


def _held(found, truth):
    low = {r["model"]: (r["low"], r["high"]) for r in found.rows()}
    return [low[m][0] <= t <= low[m][1] for m, t in zip("bcd", truth[1:], strict=True)]


def presets(n):
    "A preset that loses exactly the margin, wrongly called equivalent; naively: no significant difference."
    rng, called, naive = np.random.default_rng(636), [], []
    for _ in range(n):
        x = answers(rng, np.full(3, 0.7), 2000, shared=0.99)
        x[0] *= rng.uniform(size=2000) > 0.02 / 0.7
        found = preset_matters(x[0], x[1], x[2], margin=0.02)
        called.append(found.equivalent)
        naive.append(found.test.estimate.detail["p_difference"] > 0.05)
    return row("wrongly called equivalent", "loses the margin of 2 points, 2,000 items", "TOST after A/A", called,
               "no significant difference", naive, 0.05, "at most")


def anova_presets(n):
    "An effect of three presets found where there is none, with items as blocks of unlike noise."
    rng, found, naive = np.random.default_rng(637), [], []
    for _ in range(n):
        hard = rng.normal(size=(1, 1, 60)) * 0.3
        y = hard + rng.normal(size=(2, 3, 60)) * np.array([0.1, 0.1, 0.6])[:, None] + rng.normal(size=(2, 1, 60)) * 0.2
        effect = item_anova(y, ("model", "preset"))["preset"]
        found.append(effect.p_value <= 0.05)
        from scipy.stats import f
        naive.append(f.sf(effect.f, 2, 118) <= 0.05)
    return row("false effect of presets", "2 models x 3 presets x 60 items, noise unlike", "items as blocks, corrected",
               found, "the same, not corrected", naive, 0.05, "at most")


def logistic(n):
    "Does the interval of a model's log-odds for a given item hold the truth?"
    import statsmodels.api as sm
    rng, held, naive = np.random.default_rng(638), [], []
    item, model = np.repeat(np.arange(100), 4), np.tile([0.0, 0.0, 1.0, 1.0], 100)
    for _ in range(n):
        y = rng.uniform(size=400) < 1 / (1 + np.exp(-(0.5 + 0.8 * model + 1.5 * rng.normal(size=100)[item])))
        r = logistic_mixed(y, {"model": model}, item, n_points=9).rows()[1]
        held.append(r["low"] <= 0.8 <= r["high"])
        fit = sm.Logit(y, sm.add_constant(model)).fit(disp=0)
        naive.append(abs(fit.params[1] - 0.8) <= 1.96 * fit.bse[1])
    return row("interval of a log-odds", "2 models twice on 100 items", "logistic mixed, 9 points", held,
               "logistic regression", naive, 0.95, "at least")


def rows(full=False):
    "Every row; `full` takes ten times as many repetitions."
    k = 10 if full else 1
    flat, apart = [0.7] * 10, [0.70, 0.70, 0.70, 0.72, 0.72, 0.74]
    ties = [("10 equal models at 70 %, 500 items", flat, 500), ("10 equal models at 95 %, 100 items", [0.95] * 10, 100),
            ("10 equal models at 60 %, 15 items", [0.6] * 10, 15), ("the best 2 points ahead, 300 items", apart, 300)]
    return [holm(2000 * k), false_discoveries(1000 * k, "bh"), false_discoveries(1000 * k, "by"),
            *(the_best(500 * k, *s, "hsu") for s in ties), *(the_best(200 * k, *s, "bootstrap") for s in ties),
            ranks(600 * k), ladder(600 * k, 0.0), ladder(600 * k, 0.5), presets(300 * k), anova_presets(1000 * k),
            logistic(200 * k)]
