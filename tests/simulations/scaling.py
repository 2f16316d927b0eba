"""How often the intervals of elasticities and of power laws hold the truth.

Two models are right on the same items with correlated outcomes; the unpaired delta method, which takes them for two
separate samples, stands beside. The public functions are called on every simulated data set.
"""
import numpy as np
from scipy.special import ndtri

from qwen_eval.stats.powerlaw import power_law
from qwen_eval.stats.scaling import error_elasticity

Z = 1.959963984540054
# items, accuracy of the smaller and of the larger model, correlation of their errors
SETTINGS = ((500, 0.60, 0.66, 0.4), (500, 0.85, 0.90, 0.5), (1000, 0.75, 0.82, 0.3), (1000, 0.40, 0.45, 0.2),
            (2000, 0.70, 0.72, 0.6), (2000, 0.90, 0.93, 0.4))
SIZES = (8_190_735_360, 14_768_307_200) # Qwen3-8B and Qwen3-14B


def row(what, setting, method, measured, naive_method, naive, bound, n, nominal=0.95):
    return {"what": what, "setting": setting, "method": method, "measured": float(measured),
            "naive_method": naive_method, "naive": float(naive), "nominal": nominal, "bound": bound, "errors": 2,
            "se": (nominal * (1 - nominal) / n) ** 0.5, "repetitions": n}


def elasticity(setting, n, rng):
    "Coverage of the paired interval and of the unpaired one in one setting."
    n_items, small, large, correlation = setting
    a, b = 1 - small, 1 - large # errors
    both = a * b + correlation * (a * small * b * large) ** 0.5
    counts = rng.multinomial(n_items, [both, a - both, b - both, 1 - a - b + both], size=n) # (n, 4)
    growth = np.log(SIZES[1] / SIZES[0])
    truth, held, unpaired = np.log(b / a) / growth, 0, 0
    for k in counts:
        kind = np.repeat(np.arange(4), k)
        e = error_elasticity(np.isin(kind, (2, 3)), np.isin(kind, (1, 3)), *SIZES)
        held += e.low <= truth <= e.high
        wrong = k[0] + k[1], k[0] + k[2]
        se = (1 / wrong[0] + 1 / wrong[1] - 2 / n_items) ** 0.5 / growth
        unpaired += abs(e.value - truth) <= Z * se
    return held / n, unpaired / n


def exponents(n, rng):
    "Coverage of the exponent of a law through five sizes on the same items, and of a straight line's t interval."
    from scipy.stats import linregress, t
    sizes, held, plain = np.array([0.6e9, 1.7e9, 4e9, 8.2e9, 14.8e9]), 0, 0
    cut = ndtri(0.6 * (sizes / sizes[0]) ** -0.3)[:, None]
    for _ in range(n):
        wrong = 0.7 * rng.normal(size=1000) + 0.51 ** 0.5 * rng.normal(size=(5, 1000)) < cut
        found = power_law(sizes, wrong, rng, n_resamples=200).coefficients["alpha"]
        held += found.low <= 0.3 <= found.high
        line = linregress(np.log(sizes), np.log(wrong.mean(axis=1))) # five points, items forgotten
        plain += abs(-line.slope - 0.3) <= t.isf(0.025, 3) * line.stderr
    return held / n, plain / n


def rows(full=False):
    rng, n, made = np.random.default_rng(61), 20_000 if full else 1500, []
    for setting in SETTINGS:
        held, unpaired = elasticity(setting, n, rng)
        said = "n = {}, accuracies {} and {}, correlation {}".format(*setting)
        made.append(row("coverage of the elasticity", said, "error_elasticity", held, "unpaired delta method", unpaired,
                        (0.94, 0.965), n))
    held, unpaired = (np.mean([r[k] for r in made]) for k in ("measured", "naive"))
    made.append(row("coverage of the elasticity", "mean of these", "error_elasticity", held, "unpaired delta method",
                    unpaired, (0.94, 0.965), n * len(SETTINGS)))
    n = 2000 if full else 200
    held, plain = exponents(n, rng)
    made.append(row("coverage of the exponent", "five sizes, 1,000 items", "power_law", held, "t interval of a line",
                    plain, (0.93, 1.0), n))
    return made
