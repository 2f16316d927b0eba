"""How often the interval of the expected calibration error holds the truth, and the bootstrap's beside it."""
import numpy as np

from qwen_eval.stats.calibration import calibration

N_BINS = 15
TRUTHS = {"calibrated": lambda c: c, "5 points too sure": lambda c: c - 0.05 * (c > 0.05),
          "too extreme": lambda c: 0.5 + 0.6 * (c - 0.5),
          "above and below": lambda c: np.clip(c + 0.08 * np.sin(20 * c), 0, 1)}


def ece(c, y, weights):
    "Of each resample; weights (n_resamples, n_items)."
    at = np.eye(N_BINS)[np.minimum((c * N_BINS).astype(int), N_BINS - 1)] # (n_items, n_bins)
    return np.abs(weights @ (at * (c - y)[:, None])).sum(axis=1) / weights.sum(axis=1)


def coverage(chance, n_items, n, rng):
    many = rng.beta(5, 1.5, 2_000_000)
    at = np.minimum((many * N_BINS).astype(int), N_BINS - 1)
    truth = np.abs(np.bincount(at, many - chance(many), N_BINS)).sum() / len(many)
    held = plain = flagged = 0
    for _ in range(n):
        c = rng.beta(5, 1.5, n_items)
        y = (rng.random(n_items) < chance(c)).astype(float)
        e = calibration(c, y, rng, N_BINS, 300).ece
        resamples = rng.multinomial(n_items, np.full(n_items, 1 / n_items), 100).astype(float)
        low, high = np.quantile(ece(c, y, resamples), (0.025, 0.975))
        held, plain = held + (e.low <= truth <= e.high), plain + (low <= truth <= high)
        flagged += e.p_value < 0.05
    return held / n, plain / n, flagged / n


def rows(full=False):
    rng, n, made = np.random.default_rng(63), 4000 if full else 160, []
    for name, chance in TRUTHS.items():
        held, plain, flagged = coverage(chance, 1000, n, rng)
        shared = {"setting": f"1,000 items, {name}", "method": "calibration", "errors": 2, "repetitions": n}
        made.append({"what": "coverage of the ECE", **shared, "measured": held, "naive_method": "bootstrap percentiles",
                     "naive": plain, "nominal": 0.95, "bound": (0.9, 1), "se": (0.95 * 0.05 / n) ** 0.5})
        if name == "calibrated":
            made.append({"what": "calibrated model called miscalibrated", **shared, "measured": flagged,
                         "naive_method": "bootstrap interval above the truth", "naive": 1 - plain, "nominal": 0.05,
                         "bound": (0, 0.06), "se": (0.05 * 0.95 / n) ** 0.5})
    return made
