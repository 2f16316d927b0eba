"""What fits of items find of what was put in, and how often their errors are as large as they say."""
import numpy as np

from qwen_eval.stats.ability import abilities
from qwen_eval.stats.items import fit_items, item_analysis
from qwen_eval.stats.subsets import misfit, short_form

from . import settled


def row(what, setting, method, found, naive_method=None, naive=None, nominal=None, bound=None):
    found = np.asarray(found, float)
    return {"what": what, "setting": setting, "method": method, "measured": float(found.mean()),
            "naive_method": naive_method, "naive": None if naive is None else float(np.mean(naive)), "nominal": nominal,
            "bound": bound, "errors": 0, "se": float(found.std() / np.sqrt(len(found))), "repetitions": len(found)}


def drawn(rng, n_models, n_items, slope_sd=0.4): # abilities, slopes, intercepts, answers (n_models, n_items)
    theta, a, b = rng.normal(size=n_models), np.exp(rng.normal(0, slope_sd, n_items)), rng.normal(-0.5, 1.3, n_items)
    return theta, a, -a * b, (rng.random((n_models, n_items)) < 1 / (1 + np.exp(-a * (theta[:, None] - b)))) * 1.0


def many_models(rng, n_reps):
    "500 models, 30 items, no prior: errors of difficulties and slopes are as large as they say."
    held, slopes, close = [], [], []
    for _ in range(n_reps):
        _, a, d, x = drawn(rng, 500, 30)
        fit = fit_items(x, prior=False)
        held.append(np.mean(np.abs(fit.difficulty + d / a) <= 1.96 * fit.difficulty_se))
        slopes.append(np.mean(np.abs(fit.slope - a) <= 1.96 * fit.slope_se))
        close.append(np.corrcoef(fit.slope, a)[0, 1])
    setting = "500 models, 30 items, maximum likelihood"
    yield row("coverage of difficulties", setting, "fit_items, 2pl", held, nominal=0.95, bound=(0.925, 1))
    yield row("coverage of slopes", setting, "fit_items, 2pl", slopes, nominal=0.95, bound=(0.925, 1))
    yield row("correlation of slopes with the truth", setting, "fit_items, 2pl", close, bound=(0.85, 1))


def few_models(rng, n_reps):
    "30 models, 300 items, stated priors: what comes back, and beside it what counting finds."
    found, counted = [], []
    for _ in range(n_reps):
        theta, a, d, x = drawn(rng, 30, 300)
        theta = (theta - theta.mean()) / theta.std() # the fit's own scale
        fit = fit_items(x)
        u = fit.used
        truth = theta * np.sqrt(1 - np.mean(fit.ability_se ** 2))
        inside = np.mean(np.abs(fit.ability - truth) <= 1.96 * fit.ability_se)
        found.append((np.corrcoef(fit.intercept[u], d[u])[0, 1], np.corrcoef(fit.slope[u], a[u])[0, 1],
                      np.corrcoef(fit.ability, theta)[0, 1], inside))
        share = np.clip(x.mean(axis=0), 1 / 60, 1 - 1 / 60)
        counted.append((np.corrcoef(np.log(share / (1 - share))[u], d[u])[0, 1],
                        np.corrcoef(item_analysis(x).discrimination[u], a[u])[0, 1],
                        np.corrcoef(x.mean(axis=1), theta)[0, 1]))
    names = ("logit of items", "slopes", "abilities")
    for k, (name, least) in enumerate(zip(names, (0.9, 0.3, 0.98), strict=True)):
        yield row(f"correlation of {name} with the truth", "30 models, 300 items, priors", "fit_items, 2pl",
                  np.array(found)[:, k], "counting", np.array(counted)[:, k], bound=(least, 1))
    yield row("coverage of abilities", "30 models, 300 items, priors", "fit_items, 2pl", np.array(found)[:, 3],
              nominal=0.95, bound=(0.9, 1))


def known_items(rng, n_reps):
    "Abilities on 40 known items for models drawn from the prior."
    hits = []
    for _ in range(n_reps):
        theta, a, d, x = drawn(rng, 200, 40)
        e = abilities(x, a, d)
        hits.append(np.mean((e.low <= theta) & (theta <= e.high)))
    yield row("coverage of abilities", "40 known items", "abilities", hits, nominal=0.95, bound=(0.94, 1))


def reliabilities(rng, n_reps):
    "KR-20 of 30 models on 60 items; the true value is that of 20,000 models on the same items."
    hits = []
    for _ in range(n_reps):
        _, _, _, x = drawn(rng, 4030, 60)
        e, truth = item_analysis(x[:30]).reliability, item_analysis(x[30:]).reliability.value
        hits.append(e.low <= truth <= e.high)
    yield row("coverage of KR-20", "30 models, 60 items", "item_analysis", hits, nominal=0.95, bound=(0.92, 1))


def strays(rng, n_reps):
    "Rasch items, three of 200 marked wrongly: how often any good item is named, how many of the bad ones are."
    false, true, plain = [], [], []
    for _ in range(n_reps):
        _, _, _, x = drawn(rng, 60, 200, slope_sd=0.0)
        clean = misfit(x, fit_items(x, model="rasch"))
        false.append(len(clean.named) > 0)
        plain.append(np.nanmax(np.fmax(clean.infit_z, clean.outfit_z)) > 2)
        bad = np.argsort(np.abs(x.mean(axis=0) - 0.6))[:3]
        x[:, bad] = 1 - x[:, bad]
        true.append(np.isin(bad, misfit(x, fit_items(x, model="rasch")).named).mean())
    setting = "60 models, 200 items"
    yield row("any sound item named", setting, "misfit", false, "a common bound of 2", plain, nominal=0.05,
              bound=(0, 0.05 + 2 * (0.05 * 0.95 / n_reps) ** 0.5))
    yield row("wrongly marked items named", setting, "misfit", true, bound=(0.8, 1))


def subsets(rng, n_reps):
    "40 of 400 items chosen with 40 models: the error of 200 new models over the error that was promised."
    from scipy.special import expit
    told, plain = [], []
    for _ in range(n_reps):
        _, _, _, x = drawn(rng, 240, 400)
        form, fit = short_form(x[:40], 40, rng, "information"), fit_items(x[:40])
        a, d = np.nan_to_num(fit.slope), np.nan_to_num(fit.intercept)
        theta = abilities(x[40:, form.items], a[form.items], d[form.items]).ability
        new = np.where(fit.used, expit(np.multiply.outer(theta, a) + d), fit.share).mean(axis=1) - x[40:].mean(axis=1)
        told.append(np.abs(new).mean() / form.error.value)
        plain.append(np.abs(x[40:, form.items].mean(axis=1) - x[40:].mean(axis=1)).mean() / form.error.value)
    yield row("error of new models over the promised one", "40 of 400 items, 40 models", "short_form, information",
              told, "plain mean of these items", plain, nominal=1.0, bound=(0, 1.15))


def rows(full=False): # list of dicts, one a row of the table
    "All of them; `full` takes ten times as many repetitions."
    rng, k = np.random.default_rng(67), 10 if full else 1
    parts = (many_models(rng, 25 * k), few_models(rng, 40 * k), known_items(rng, 60 * k), reliabilities(rng, 300 * k),
             strays(rng, 60 * k), subsets(rng, 12 * k))
    return settled([r for part in parts for r in part], full)
