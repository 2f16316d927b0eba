"""Every public function of `qwen_eval.stats` under inputs that go wrong: a right answer or a `ConfigError` that helps.

`GOOD` holds a call that works for each function; a function without an entry fails. Each argument of that call is then
replaced in turn by what people really pass: nothing, one or two rows, all right, all wrong, ties, NaN, infinity, other
shapes, other lengths, text, huge and negative numbers. No answer may hold a NaN or an interval outside the range, no
warning and no exception of numpy or scipy may come through.
"""
import dataclasses
import functools
import importlib
import inspect
import math
import os
import pickle
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import qwen_eval.stats
from qwen_eval.errors import ConfigError

MODULES = sorted(m.name for m in pkgutil.iter_modules(qwen_eval.stats.__path__))
SEED = np.random.default_rng(17)
N = 40
X = (SEED.random((3, N)) < [[0.6], [0.7], [0.8]]).astype(float)
R = np.round(SEED.random((2, N)), 2)
GROUP, NAMES, THREE = [k // 4 for k in range(N)], [f"q{k}" for k in range(N)], ["a", "b", "c"]
SIZES, RUNS = np.array([1e7, 1e8, 1e9, 4e9, 8e9]), [400, 402, 398, 405, 401, 399]
DRAW = "a generator" # made anew for each call


def public():
    "module.function -> the function, for all that the modules name in `__all__`."
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"qwen_eval.stats.{name}")
        found |= {f"{name}.{k}": getattr(module, k) for k in module.__all__ if inspect.isfunction(getattr(module, k))}
    return found


def lazy(path, **arguments):
    "A result of another public function, made once, when it is needed."
    return functools.cache(lambda: public()[path](**arguments))


def design(): return importlib.import_module("qwen_eval.stats.power").PairedBinary(discordance=0.2)


def family(): return importlib.import_module("qwen_eval.stats.multiple").Family(names=("x", "y"))


ABOUT = {"responses": (SEED.random((12, 8)) < np.linspace(0.3, 0.9, 8)).astype(float)}
ITEMS = {"slope": [1.0, 0.8, 1.2, 1.0, 0.5, 1.0, 1.0, 1.0], "intercept": [0.1, -0.5, 1.0, 0.0, 0.3, 0.0, 0.0, 0.5]}
TWO = {"values": X[1], "reference": X[0]}
REAL = {"values": R[1], "reference": R[0]}
COUNTS2 = {"k1": 30, "n1": 40, "k2": 20, "n2": 41}
MANY = {"values": X, "names": THREE}
SHARE = {"low": 0.5, "high": 0.7}
TREND = {"counts": RUNS, "sizes": [500] * 6, "fingerprints": ["f"] * 6}
HUMAN = {"labels": [0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 0], "verdicts": [0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0],
         "others": X[0]}
LABELS = {"stratum": [int(v) for v in X[1]], "label": X[0]}
GOOD = {
    "ability.abilities": {**ABOUT, **ITEMS}, "ability.information": ITEMS,
    "agreement.cohen_kappa": {"first": X[0], "second": X[1]},
    "agreement.fleiss_kappa": {"counts": [[3, 1], [0, 4], [2, 2], [4, 0], [1, 3]]},
    "agreement.krippendorff_alpha": {"ratings": [[1, 1, 2], [3, 3, 3], [2, 2, 1], [1, 1, 1]]},
    "bayes.bayes_proportion": {"k": 7, "n": 20}, "bayes.bayes_independent": COUNTS2,
    "bayes.bayes_paired": {"b": 7, "c": 12, "n": 60},
    "bootstrap.mean_bca": {"values": R[0], "rng": DRAW, "n_resamples": 200},
    "bootstrap.paired_bootstrap": {**REAL, "rng": DRAW, "n_resamples": 200},
    "bootstrap.bootstrap_corpus": {"parts": R.T, "figure": lambda s: float(s[0] / max(s[1], 1e-9)), "rng": DRAW,
                                   "n_resamples": 100},
    "budget.plan_epochs": {"item_variance": 0.1, "noise": 0.1, "budget": 500},
    "budget.allocate": {"sizes": {"a": 50, "b": 30}, "budget": 20},
    "budget.keep_items": {"strata": ["a"] * 20 + ["b"] * 10, "rng": DRAW,
                          "allocation": lazy("budget.allocate", sizes={"a": 20, "b": 10}, budget=9)},
    "calibration.top_label": {"probabilities": [[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], "targets": [1, 0, 0]},
    "calibration.reliability": {"confidence": R[0], "correct": X[0]},
    "calibration.calibration": {"confidence": R[0], "correct": X[0], "rng": DRAW, "n_simulations": 100},
    "calibration.brier": {"probabilities": R[0], "outcomes": X[0]},
    "clustered.clustered_mean": {"values": X[0], "clusters": GROUP},
    "clustered.stratified_clustered": {"values": X[0], "strata": [k % 2 for k in range(N)], "clusters": NAMES},
    "clustered.clustered_difference": {**TWO, "clusters": GROUP},
    "clustered.cluster_bootstrap": {"values": X[0], "clusters": GROUP, "rng": DRAW, "reference": X[1],
                                    "n_resamples": 200},
    "clustered.intraclass": {"values": R[0], "clusters": GROUP},
    "clustered.design_effect": {"values": R[0], "clusters": GROUP},
    "design.full_factorial": {"factors": {"model": ["a", "b"], "preset": ["x", "y"]}, "rng": DRAW},
    "design.fractional_factorial": {"factors": {"m": (0, 1), "p": (0, 1), "q": (0, 1)}, "generators": ["C=AB"],
                                    "rng": DRAW},
    "design.anova": {"values": R[0], "factors": {"model": ["a", "b"] * 20, "preset": (["x"] * 2 + ["y"] * 2) * 10}},
    "design.item_anova": {"values": X, "factors": ["model"]},
    "discordant.mcnemar": {"b": 7, "c": 15}, "discordant.mcnemar_p": {"b": [7, 0], "c": [15, 3]},
    "discordant.bonett_price": {"b": 7, "c": 15, "n": 100}, "discordant.tango": {"b": 7, "c": 15, "n": 100},
    "discordant.check_pairs": {"b": 7, "c": 15, "n": 100},
    "epochs.chance_of_any": {"n": [10, 10], "c": [3, 10], "k": 2},
    "epochs.chance_of_all": {"n": [10, 10], "c": [3, 10], "k": 2},
    "epochs.pass_from_counts": {"n": [10] * 6, "c": [3, 10, 0, 5, 6, 7], "k": 2},
    "epochs.pass_at_k": {"right": X.T, "k": 2}, "epochs.pass_hat_k": {"right": X.T, "k": 2},
    "epochs.variance_split": {"values": X.T},
    "epochs.epochs_gain": {"between": 0.1, "within": 0.2},
    "equivalence.equivalence": {**TWO, "margin": 0.3},
    "equivalence.estimated_equivalence": {"estimate": lazy("paired.paired_t", **REAL), "mean": 0.5,
                                          "margin": 0.3},
    "equivalence.share_equivalence": {"k": 120, "n": 200, **SHARE},
    "independent.newcombe": COUNTS2, "independent.miettinen_nurminen": COUNTS2, "independent.agresti_caffo": COUNTS2,
    "independent.check_independent": COUNTS2, "independent.cohen_h": {"p1": 0.5, "p2": 0.6, "n1": 50, "n2": 60},
    "intervals.wilson": {"k": 7, "n": 20}, "intervals.clopper_pearson": {"k": 7, "n": 20},
    "intervals.jeffreys": {"k": 7, "n": 20}, "intervals.agresti_coull": {"k": 7, "n": 20},
    "intervals.check_counts": {"k": 7, "n": 20}, "intervals.mean_t": {"values": R[0]},
    "intervals.from_standard_error": {"value": 0.3, "se": 0.1},
    "intervals.estimate": {"values": X[0]},
    "intervals.stratified": {"strata": [R[0], R[1]], "weights": [0.5, 0.5]},
    "intervals.ratio": {"values": R[0], "weights": [1, 2] * 20},
    "items.item_analysis": ABOUT, "items.fit_items": {**ABOUT, "max_steps": 500},
    "judges.ppi_mean": HUMAN, "judges.rogan_gladen": HUMAN,
    "judges.corrected_share": {"share": 0.6, "n_judged": 500, "specificity": 0.8, "n_wrong": 50, "sensitivity": 0.9,
                               "n_right": 60},
    "judges.effective_labels": {"n_labels": 100, "n_judged": 2000, "correlation": 0.7},
    "judges.labels_needed": {"effect": 0.2},
    "judges.judge_plan": {"correlation": 0.7, "cost_label": 1, "cost_judge": 0.05, "budget": 500},
    "judges.position_bias": {"shown_first": X[0], "shown_second": X[1]},
    "judges.length_controlled": {"preferences": X[0], "lengths": 100 + 50 * R[0], "reference_lengths": 100 + 50 * R[1]},
    "labels.share_from_labels": LABELS,
    "labels.error_rates": {"verdict": X[1], **LABELS},
    "ladder.bradley_terry": {"wins": [[0, 5, 3], [4, 0, 6], [2, 3, 0]], "names": THREE},
    "looks.crossing": {"bounds": [2.5, 2.0], "information": [0.5, 1.0]},
    "looks.check_information": {"information": [0.5, 1.0]}, "looks.boundaries": {"looks": 3},
    "looks.inflation": {"bounds": lazy("looks.boundaries", looks=3)},
    "looks.group_look": {**TWO, "order": 3, "bounds": lazy("looks.boundaries", looks=3), "planned": 3 * N},
    "margins.check_margin": {"margin": 0.02},
    "margins.equivalence_power": {"n": 400, "margin": 0.05, "discordance": 0.1},
    "margins.check_power": {"power": 0.8},
    "margins.equivalence_items": {"margin": 0.05, "discordance": 0.1},
    "margins.share_tost": {"k": 120, "n": 200, **SHARE},
    "margins.share_equivalence_power": {"n": 200, **SHARE, "share": 0.6},
    "margins.share_equivalence_items": {**SHARE, "share": 0.6},
    "mixed.model_columns": {"fixed": {"model": ["a", "b"] * 4}},
    "mixed.linear_mixed": {"values": R[0], "fixed": {"model": ["a", "b"] * 20}, "groups": GROUP},
    "mixed.logistic_mixed": {"right": X[0], "fixed": {"model": ["a", "b"] * 20}, "groups": GROUP},
    "multiple.adjust": {"p_values": [0.01, 0.2, 0.04]},
    "multiple.decide": {"family": family, "p_values": {"x": 0.01, "y": 0.2}},
    "multiple.compare_all": MANY, "multiple.pair_name": {"first": "a", "second": "b"},
    "paired.paired_t": REAL,
    "paired.paired_difference": {**TWO, "items": NAMES, "reference_items": NAMES},
    "paired_tests.sign_flip": {**REAL, "rng": DRAW, "n_resamples": 200},
    "paired_tests.cochran_q": {"values": X},
    "pairs.all_pairs": {"values": X}, "pairs.holm": {"p_values": np.array([0.01, 0.2])},
    "pairs.model_items": {"values": X},
    "power.plan_power": {"design": design, "n": 300, "difference": 0.05},
    "power.plan_items": {"design": design, "difference": 0.05},
    "power.plan_difference": {"design": design, "n": 300}, "power.from_pilot": TWO,
    "powerlaw.power_law": {"n_params": SIZES, "losses": 3 * SIZES ** -0.1, "rng": DRAW, "n_resamples": 20},
    "powerlaw.chinchilla": {"n_params": np.repeat(SIZES[:4], 4), "n_tokens": np.tile(SIZES[:4] * 20, 4),
                            "losses": (1.8 + 400 * np.repeat(SIZES[:4], 4) ** -0.34 + 2000 * np.tile(SIZES[:4] * 20, 4)
                                       ** -0.37), "rng": DRAW, "n_resamples": 20},
    "presets.preset_matters": {**TWO, "again": X[0], "margin": 0.2},
    "ranking.best_set": {**MANY, "rng": DRAW, "n_draws": 200}, "ranking.rank_intervals": MANY,
    "ranking.nemenyi_q": {"k": 4}, "ranking.friedman": {"values": SEED.random((3, 8)), "names": THREE},
    "rates.quantile": {"values": R[0], "q": 0.9}, "rates.event_rate": {"k": 7, "exposure": 20.0},
    "regression.clustered_regression": {"table": lambda: __import__("pandas").DataFrame({"y": R[0], "x": R[1]}),
                                        "formula": "y ~ x", "clusters": GROUP},
    "results.usable": {"values": X[0]}, "results.check_level": {"level": 0.95},
    "results.number": {"x": 0.02, "name": "margin"}, "results.whole": {"x": 20, "name": "n"},
    "results.together": {"k": X[0], "n": X[1]},
    "robust.iqm": {"values": R.T, "rng": DRAW, "n_resamples": 100},
    "robust.probability_of_improvement": {"values": R.T, "reference": R.T / 2, "rng": DRAW, "n_resamples": 100},
    "scaling.error_elasticity": {**TWO, "n_params": 14.8e9, "reference_n_params": 8.2e9},
    "scaling.two_sizes": {**TWO, "n_params": 14.8e9, "reference_n_params": 8.2e9},
    "sequential.check_order": {"order": 3}, "sequential.normal_rho": {"v_best": 100.0},
    "sequential.mixture_strength": {"n_best": 100},
    "sequential.normal_log_mixture": {"s": 3.0, "v": 10.0, "rho": 2.0},
    "sequential.normal_bound": {"v": 10.0, "alpha": 0.05, "rho": 2.0},
    "sequential.beta_log_mixture": {"s": 3.0, "v": 10.0, "g": 0.5, "h": 0.5, "v_best": 20.0},
    "sequential.beta_bound": {"v": 10.0, "alpha": 0.05, "g": 0.5, "h": 0.5, "v_best": 20.0},
    "sequential.share_log_e": {"k": 3, "n": 10, "share": 0.5, "strength": 10.0},
    "sequential.share_ends": {"k": 3, "n": 10},
    "sequential.share_looks": {"successes": np.cumsum(X[0]), "order": 3, "share": 0.5},
    "sequential.paired_looks": {"wins": np.cumsum(X[0] > X[1]), "losses": np.cumsum(X[0] < X[1]), "order": 3},
    "sequential.share_sequence": {"values": X[0], "order": 3}, "sequential.paired_sequence": {**TWO, "order": 3},
    "subsets.misfit": {**ABOUT, "fit": lazy("items.fit_items", **ABOUT)},
    "subsets.short_form": {**ABOUT, "n_kept": 4, "rng": DRAW},
    "trends.run_length": {"k": 0.5, "h": 4.0}, "trends.cusum": {**TREND, "target": 0.8},
    "trends.cusum_plan": {"n_items": 500, "target": 0.8}, "trends.run_chart": TREND,
}
# Helpers that other rooms call with what they have already checked, or to check it (`floats` lets NaN pass, where it
# means "not asked"): not for users, and named here one by one.
INNER = {"ability.answers", "ability.grouped", "ability.item_parts", "ability.posterior", "bootstrap.resampled_means",
         "clustered.numbered", "discordant.tango_score", "margins.first_whole", "margins.least_number",
         "margins.paired_score", "pairs.midp_mcnemar", "results.floats"}
# These say in the result that nothing could be estimated (value NaN, method "none"), as their documentation promises:
# a run in which nothing was judged is shown as such, and a scorer that calls nothing right has no rate of false ones.
NOT_ESTIMATED = {"intervals.estimate", "labels.error_rates", "labels.share_from_labels", "paired.paired_difference"}


def made(arguments):
    "The arguments with a fresh generator, and what is made late."
    late = {"rng": np.random.default_rng(5)} if arguments.get("rng") is DRAW else {}
    first = {k: v() if callable(v) and k != "figure" else v for k, v in arguments.items()}
    return first | late


def odd_arrays(x):
    "What may come in the place of an array of numbers or labels."
    yield from (("none", []), ("one", x[:1]), ("two", x[:2]), ("one more", [*x, x[-1]]),
                ("an empty text", [""] * len(x)))
    if np.asarray(x).dtype.kind not in "fiub": return
    a = np.array(x, float)
    yield from (("all wrong", a * 0), ("all right", a * 0 + 1), ("ties", a * 0 + 0.5), ("huge", a * 1e300 + 1e300),
                ("negative", -a - 1), ("an axis more", a[None]), ("an axis less", a.ravel()),
                ("of text", a.astype(str)))
    for name, value in (("NaN", math.nan), ("infinity", math.inf)):
        y = a.copy()
        y.flat[0] = value
        yield name, y
        yield f"all {name}", np.full(a.shape, value)


def odd_numbers(x):
    "What may come in the place of a number."
    yield from ((str(v), v) for v in (0, 1, 2, -1, 0.5, 1.5, math.nan, math.inf, -math.inf, 1e300, 10**6, None, "text"))


def changed(arguments):
    "One argument at a time replaced."
    for key, value in arguments.items():
        if key in ("rng", "figure", "n_resamples", "n_draws", "n_simulations", "max_steps") or callable(value): continue
        if isinstance(value, dict): odd = (("none", {}),)
        elif isinstance(value, str): odd = (("none", ""), ("another", "nonsense"))
        elif isinstance(value, (int, float)): odd = odd_numbers(value)
        else: odd = odd_arrays(value)
        for name, other in odd: yield f"{key}: {name}", {**arguments, key: other}
    arrays = [k for k, v in arguments.items() if isinstance(v, (list, np.ndarray)) and len(np.shape(v))]
    for n in (0, 1, 2): yield f"{n} rows", arguments | {k: arguments[k][:n] for k in arrays}
    numbers = [k for k in arrays if np.asarray(arguments[k]).dtype.kind in "fiub"]
    if numbers:
        for name, v in (("wrong", 0.0), ("right", 1.0)):
            yield f"all {name}", arguments | {k: np.asarray(arguments[k], float) * 0 + v for k in numbers}
    for key in ("clusters", "groups", "strata", "stratum"):
        if key in arguments: yield f"{key}: one only", {**arguments, key: [1] * len(arguments[key])}


def flaws(x, path="result"):
    "Where a result holds a NaN, an interval upside down, or a share outside 0 to 1."
    if hasattr(x, "low") and hasattr(x, "high") and hasattr(x, "scale"):
        low, high = {"share": (0, 1), "points": (-1, 1)}.get(x.scale, (-math.inf, math.inf))
        slack = 1e-9 * max(abs(x.value), 1) if math.isfinite(x.value) else 0
        if not low <= x.low <= x.high <= high: yield f"{path}: interval {x.low} to {x.high}"
        if not x.low - slack <= x.value <= x.high + slack and "bca" not in x.method.lower():
            yield f"{path}: {x.value} outside {x.low} to {x.high}"
        if not x.sentence or not x.latex_row(): yield f"{path}: no sentence"
        if x.p_value is not None and not 0 <= x.p_value <= 1: yield f"{path}: p = {x.p_value}"
    elif hasattr(x, "rows") and hasattr(x, "sentence"):
        x.table(), x.latex_rows(), str(x)
        if not x.sentence or "nan" in x.sentence.lower().split(): yield f"{path}: {x.sentence}"
        for k, row in enumerate(x.rows()): yield from flaws(row, f"{path}.rows()[{k}]")
        return
    if dataclasses.is_dataclass(x):
        for f in dataclasses.fields(x): yield from flaws(getattr(x, f.name), f"{path}.{f.name}")
    elif isinstance(x, dict):
        for k, v in x.items(): yield from flaws(v, f"{path}[{k!r}]")
    elif isinstance(x, (list, tuple)):
        for k, v in enumerate(x): yield from flaws(v, f"{path}[{k}]")
    elif isinstance(x, np.ndarray):
        if x.dtype.kind == "f" and np.isnan(x).any(): yield f"{path}: NaN"
    elif isinstance(x, (float, np.floating)) and math.isnan(x): yield f"{path}: NaN"


def nothing(x):
    "Is it an estimate that says, whole, that there is none?"
    return (getattr(x, "method", "") == "none" and "not estimated" in x.how and x.p_value is None
            and all(map(math.isnan, (x.value, x.low, x.high))))


def faults(function, arguments, none=False):
    "What is wrong with the answer to these arguments; empty where all is well. May there be `none`?"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = function(**made(arguments))
            if none: found = [x for x in (found.values() if isinstance(found, dict) else [found]) if not nothing(x)]
            return list(flaws(found))
    except ConfigError as e:
        return [] if len(str(e)) > 20 else [f"message {e}"]
    except Exception as e:
        return [f"{type(e).__name__}: {e}"[:160]]


def test_every_public_function_has_an_entry():
    assert set(GOOD) | INNER == set(public()), sorted((set(GOOD) | INNER) ^ set(public()))
    assert len(GOOD) > 100


@pytest.mark.parametrize("name", GOOD)
def test_a_good_call(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not list(flaws(public()[name](**made(GOOD[name]))))


@pytest.mark.parametrize("name", GOOD)
def test_edges(name):
    found = [(label, faults(public()[name], arguments, name in NOT_ESTIMATED))
             for label, arguments in changed(GOOD[name])]
    assert not [f"{label} -> {fault}" for label, fault in found if fault]
    assert len(found) > 2


def flat(x):
    "A result as text, every bit of its numbers."
    if isinstance(x, np.ndarray) and x.dtype != object: return [str(x.dtype), x.shape, x.tobytes().hex()]
    if dataclasses.is_dataclass(x): return [type(x).__name__, *(flat(getattr(x, k)) for k in x.__dataclass_fields__)]
    if isinstance(x, dict): return [[str(k), flat(v)] for k, v in x.items()]
    if isinstance(x, (list, tuple, np.ndarray)): return [flat(v) for v in x]
    return float(x).hex() if isinstance(x, (float, np.floating)) else repr(x)


def everything():
    "All good calls, as text."
    return repr({name: flat(public()[name](**made(GOOD[name]))) for name in GOOD})


def test_no_global_state_is_touched_and_the_same_seed_gives_the_same():
    import random
    before = pickle.dumps((np.random.get_state(legacy=False), random.getstate()))
    assert everything() == everything()
    assert pickle.dumps((np.random.get_state(legacy=False), random.getstate())) == before


@pytest.mark.slow
def test_threads_change_no_byte():
    code = "import hashlib, test_stats_edges as t; print(hashlib.sha256(t.everything().encode()).hexdigest())"
    found = set()
    for threads in ("1", "3"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        here = str(Path(__file__).parent)
        path = os.pathsep.join([here, str(Path(here).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, **dict.fromkeys(names, threads), "PYTHONPATH": path}
        ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        found.add(ended.stdout)
    assert len(found) == 1 and len(found.pop()) > 60


def test_the_checks_would_see_a_flaw():
    from qwen_eval.records import Estimate
    bad = Estimate(value=0.5, low=math.nan, high=1.2, method="x", scale="share")
    assert len(list(flaws(bad))) > 1 and list(flaws({"a": [np.array([math.nan])]}))
    assert faults(lambda: np.zeros(0).mean(), {}) and faults(lambda: 1 / 0, {}) and not faults(lambda: 1, {})


MIXED = [1, "1", 2, "b", None]
LABELLED = { # what takes labels or ids of items -> a call with the given ones
    "paired.paired_difference": lambda f, ids: f([1, 0, 1, 0, 1], [1, 1, 0, 0, 1], ids, ids[::-1]),
    "labels.share_from_labels": lambda f, ids: f(ids * 2, [1, 0] * 5),
    "labels.error_rates": lambda f, ids: f([1, 0] * 5, ids * 2, [1, 0] * 5),
    "multiple.compare_all": lambda f, ids: f(X[:, :10], THREE, groups=ids * 2),
    "design.anova": lambda f, ids: f(R[0][:15], {"preset": ids * 3}),
    "design.item_anova": lambda f, ids: f(X[:, :10], ["model"], ids * 2),
    "mixed.linear_mixed": lambda f, ids: f(R[0][:20], {"model": list("aabb") * 5}, ids * 4),
    "power.from_pilot": lambda f, ids: f(X[0][:10], X[1][:10], ids * 2),
    "clustered.clustered_mean": lambda f, ids: f(X[0][:10], ids * 2),
    "clustered.stratified_clustered": lambda f, ids: f(X[0][:10], ids * 2),
}


@pytest.mark.parametrize("path", LABELLED)
def test_labels_of_several_kinds_stay_apart_and_a_missing_one_is_named(path):
    "People label with what their tables hold: numbers, texts, and holes."
    function = public()[path]
    mixed, plain = (repr(LABELLED[path](function, ids)) for ids in ([1, "1", 2, "b", 3.5], list("vwxyz")))
    assert mixed == plain or path == "multiple.compare_all" # which names its groups
    if path == "paired.paired_difference": return # None is an id as good as another
    with pytest.raises(ConfigError, match=r"no (label|level|stratum)"): LABELLED[path](function, MIXED)


def test_items_that_one_model_lacks_are_named_whatever_their_ids_are():
    differ = importlib.import_module("qwen_eval.stats.paired").paired_difference
    with pytest.raises(ConfigError, match="2 belong to one only"): differ([1, 0], [1, 0], ["a", 1], ["a", "c"])
    with pytest.raises(ConfigError, match="items=None"): differ([1, 0], [1, 0], None, None)


def test_a_level_may_be_any_number():
    wilson = importlib.import_module("qwen_eval.stats.intervals").wilson
    assert wilson(7, 20, np.float32(0.9)).high == pytest.approx(wilson(7, 20, 0.9).high, abs=1e-6)
    for level in ("0.95", None, True, [0.95], np.nan):
        with pytest.raises(ConfigError, match="confidence level"): wilson(7, 20, level)
