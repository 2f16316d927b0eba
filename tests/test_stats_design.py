"""Designs, analysis of variance, mixed models, presets: right answers at the edges, and errors where there is none."""
import numpy as np
import pytest

from qwen_eval.errors import ConfigError
from qwen_eval.stats.design import anova, fractional_factorial, full_factorial, item_anova
from qwen_eval.stats.mixed import linear_mixed, logistic_mixed, model_columns
from qwen_eval.stats.presets import preset_matters

NAN = float("nan")


def rng(): return np.random.default_rng(5)


def test_designs_are_drawn_from_the_generator_alone():
    factors, before = {"a": (0, 1, 2), "b": "xy"}, np.random.get_state()[1].copy()
    first, second = (full_factorial(factors, rng(), 2, together=["b"]) for _ in range(2))
    assert (first.index == second.index).all() and (np.random.get_state()[1] == before).all()
    assert not (first.index == full_factorial(factors, np.random.default_rng(6), 2, together=["b"]).index).all()
    assert [sorted(map(tuple, first.index[first.block == b].tolist())) for b in (0, 1)] == \
        [[(a, b) for a in range(3) for b in range(2)]] * 2 # every block is complete
    one = full_factorial({"a": ("only",)}, rng())
    assert len(one.rows()) == 1 and one.resolution is None


def test_the_order_of_runs_is_uniform():
    from scipy.stats import chisquare
    seen = [tuple(full_factorial({"a": (0, 1), "b": (0, 1)}, g).index @ [2, 1]) for g in [rng()] for _ in range(4800)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 24 and chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("generators, n, resolution", [(["C=AB"], 3, 3), (["E=ABCD"], 5, 5), (["D=AB", "E=AC"], 5, 3),
                                                       (["E=ABC", "F=BCD"], 6, 4), (["G=ABCD", "H=ABEF"], 8, 5)])
def test_fractions_have_the_published_resolution(generators, n, resolution):
    letters = "ABCDEFGH"[:n]
    design = fractional_factorial(dict.fromkeys(letters, (0, 1)), generators, rng())
    assert design.resolution == resolution and len(design.index) == 2 ** (n - len(generators))
    assert len(design.words) == 2 ** len(generators) - 1
    for a in letters:
        for alias in design.aliases(a):
            sign = -1 if alias[0] == "-" else 1
            assert (design.column(a) == sign * design.column(alias.lstrip("-"))).all()
    x = np.array([design.column(a) for a in letters])
    assert (x @ x.T == len(design.index) * np.eye(n)).all()
    for wrong in ("", "Z", "a"):
        with pytest.raises(ConfigError): design.column(wrong)


def test_anova_of_noise_is_uniform():
    from scipy.stats import kstest
    g, p = rng(), []
    for _ in range(300):
        y = g.normal(size=24) + np.repeat(g.normal(size=6), 4) * 3
        p.append(anova(y, {"a": np.tile([0, 0, 1, 1], 6)}, block=np.repeat(np.arange(6), 4))["a"].p_value)
    assert kstest(p, "uniform").pvalue > 1e-3


def test_anova_drops_what_is_confounded():
    block = [0, 0, 1, 1, 0, 0, 1, 1]
    found = anova([1.0, 2, 3, 5, 1, 2, 4, 4], {"a": block, "b": [0, 1] * 4}, block=block)
    assert [e.term for e in found.effects] == ["block", "b", "a:b", "residual"]
    with pytest.raises(ConfigError, match="no term"): found["a"]


BAD_ANOVA = {
    "nothing": ([], {"a": []}), "two": ([1, 2], {"a": [0, 1]}), "NaN": ([1, NAN, 2], {"a": [0, 1, 1]}),
    "all equal": ([1, 1, 1, 1], {"a": [0, 0, 1, 1]}), "nothing left": ([1, 2, 3], {"a": [0, 1, 2]}),
    "shapes": ([1, 2, 3], {"a": [0, 1]}),
}


@pytest.mark.parametrize("values, factors", BAD_ANOVA.values(), ids=BAD_ANOVA)
def test_anova_refuses(values, factors):
    with pytest.raises(ConfigError): anova(values, factors)


def test_anova_refuses_unknown_terms_and_too_many_levels():
    with pytest.raises(ConfigError, match="terms name"): anova([1, 2, 4], {"a": [0, 1, 1]}, terms=["b"])
    with pytest.raises(ConfigError, match="item_anova"): anova(np.arange(2e4), {"a": np.arange(20000) // 1.5})


BAD_ITEMS = {
    "no items": (np.empty((2, 0)), ["a"], None), "one item": ([[1], [0]], ["a"], None),
    "NaN": ([[1, NAN], [0, 1]], ["a"], None), "one level": ([[1, 0, 1]], ["a"], None),
    "axes": ([[1, 0], [0, 1]], ["a", "b"], None),
    "a group an item": ([[1, 0], [0, 1]], ["a"], ["x", "y"]), "groups short": ([[1, 0], [0, 1]], ["a"], ["x"]),
    "no spread": ([[0, 0, 0], [1, 1, 1]], ["a"], None), "reserved": ([[1, 0, 1], [0, 1, 1]], ["item"], None),
}


@pytest.mark.parametrize("values, factors, groups", BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_item_anova_refuses(values, factors, groups):
    with pytest.raises(ConfigError): item_anova(values, factors, groups)


@pytest.mark.parametrize("values", [np.ones((2, 3, 5)), np.zeros((2, 3, 2)), np.arange(12.0).reshape(2, 3, 2) ** 0.5])
def test_item_anova_answers(values):
    for e in item_anova(values, ["a", "b"]).effects:
        assert np.isfinite(e.ss) and (e.f is None) == (e.p_value is None)
        assert e.p_value is None or 0 <= e.p_value <= 1
        assert e.component is None or e.component >= 0


def test_item_anova_agrees_with_statsmodels():
    import pandas as pd
    from statsmodels.stats.anova import AnovaRM
    y = rng().normal(size=(2, 3, 20))
    i, j, k = np.indices(y.shape)
    frame = pd.DataFrame({"y": y.ravel(), "a": i.ravel(), "b": j.ravel(), "item": k.ravel()})
    theirs, mine = AnovaRM(frame, "y", "item", within=["a", "b"]).fit().anova_table, item_anova(y, ["a", "b"])
    for term in ("a", "b", "a:b"): assert np.isclose(theirs.loc[term, "F Value"], mine[term].f)
    assert np.isclose(theirs.loc["a", "Pr > F"], mine["a"].p_value) # two levels: nothing to correct
    assert mine["b"].p_value >= theirs.loc["b", "Pr > F"] - 0.2 and 0.5 <= mine["b"].epsilon <= 1


def test_linear_mixed_is_the_paired_comparison_where_data_are_balanced():
    from scipy.stats import ttest_rel
    g = rng()
    item, model = np.repeat(np.arange(40), 2), np.tile(["a", "b"], 40)
    y = g.normal(size=80) + 2 * g.normal(size=40)[item]
    fit, t = linear_mixed(y, {"model": model}, item), ttest_rel(y[1::2], y[::2])
    assert np.isclose(fit.effects[1] / fit.se[1], t.statistic, rtol=1e-4)
    assert np.isclose(fit.rows()[1]["p"], t.pvalue, rtol=1e-3)


def test_items_that_do_not_differ_have_variance_zero():
    item, y = np.repeat(np.arange(30), 2), np.tile([1.0, 0.0], 30)
    fit = logistic_mixed(y, {}, item) # within every item one right, one wrong: less spread than chance gives
    assert fit.sd["intercept"] < 1e-2 and abs(fit.effects[0]) < 1e-6 and np.isfinite(fit.se[0])


BAD_MIXED = {
    "nothing": ([], [], []), "two": ([0, 1], ["a", "b"], [0, 0]), "one group": ([0, 1, 1, 0], list("abab"), [0] * 4),
    "a group each": ([0, 1, 1, 0], list("abab"), [0, 1, 2, 3]), "NaN": ([0, NAN, 1, 0], list("abab"), [0, 0, 1, 1]),
    "one level": ([0, 1, 1, 0], list("aaaa"), [0, 0, 1, 1]), "groups short": ([0, 1, 1, 0], list("abab"), [0, 0, 1]),
    "all right": ([1] * 8, list("abababab"), [0, 0, 1, 1, 2, 2, 3, 3]),
    "all wrong": ([0] * 8, list("abababab"), [0, 0, 1, 1, 2, 2, 3, 3]),
}


@pytest.mark.parametrize("y, model, groups", BAD_MIXED.values(), ids=BAD_MIXED)
def test_mixed_models_refuse(y, model, groups):
    for fit in (linear_mixed, logistic_mixed):
        with pytest.raises(ConfigError): fit(y, {"model": model}, groups)


def test_logistic_mixed_refuses_what_cannot_be():
    good = ([0, 1, 1, 0, 1], {"x": [0.1, 0.2, 0.5, 0.1, 0.9]}, [0, 0, 1, 1, 1])
    for more in ({"trials": [1, 1, 1, 1]}, {"trials": [0.5] * 5}, {"n_points": 0}, {"n_points": 2.5}, {"level": 95},
                 {"interactions": ["x:y"]}):
        with pytest.raises(ConfigError): logistic_mixed(*good, **more)
    with pytest.raises(ConfigError, match="cannot be told apart"): model_columns({"a": list("xyxy"), "b": list("uvuv")})


def test_trials_are_the_same_as_single_answers():
    g = rng()
    right, item, model = g.integers(0, 6, size=60), np.repeat(np.arange(20), 3), np.tile(["a", "b", "c"], 20)
    together = logistic_mixed(right, {"model": model}, item, trials=np.full(60, 5))
    single = np.concatenate([np.arange(5) < k for k in right])
    apart = logistic_mixed(single, {"model": np.repeat(model, 5)}, np.repeat(item, 5))
    assert np.allclose(together.effects, apart.effects, atol=1e-4) and np.allclose(together.se, apart.se, atol=1e-3)
    assert np.isclose(together.sd["intercept"], apart.sd["intercept"], atol=1e-4)


def engine(share, n, g, flip=0.01):
    "Answers of an engine that mostly repeats itself, shape (3, n): of a preset, the reference, and once more."
    base = g.uniform(size=n) < share
    return np.where(g.uniform(size=(3, n)) < flip, g.uniform(size=(3, n)) < share, base).astype(float)


def test_a_preset_that_does_nothing_is_equivalent():
    found = preset_matters(*engine(0.7, 2000, rng()), margin=0.02)
    assert found.equivalent and found.noise.verdict == "equivalent" and found.needs <= 2000
    assert found.sentence.startswith("Equivalent") and len(found.rows()) == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0])
def test_floor_and_ceiling_are_not_testable(share):
    found = preset_matters(*engine(share, 300, rng()), margin=0.02)
    assert found.verdict.startswith("not testable: needs ") and found.needs > 300
    assert f"{found.needs:,}" in found.verdict


def test_guessing_is_a_floor():
    g = rng()
    x = (g.uniform(size=(3, 500)) < 0.25).astype(float)
    assert preset_matters(*x, margin=0.02, chance=0.25).verdict.startswith("not testable: needs")


def test_a_corrupted_engine_is_not_equivalent():
    g = rng()
    logits = 1.5 * g.normal(size=(800, 4)) + np.array([2.0, 0, 0, 0])
    drawn = logits / 1.5 + g.gumbel(size=logits.shape) # temperature 1.5 where 0 was asked for
    reference, again, bad = ((x.argmax(axis=1) == 0).astype(float) for x in
                             (logits, logits + 0.01 * g.normal(size=logits.shape), drawn))
    found = preset_matters(bad, reference, again, margin=0.02, chance=0.25)
    assert found.verdict == "different" and found.flips > 0.1 > found.noise_flips and found.p_flips < 1e-6


def test_few_items_are_not_testable_and_the_number_said_is_enough():
    g = rng()
    found = preset_matters(*engine(0.7, 60, g), margin=0.03)
    assert found.verdict.startswith("not testable: needs") and found.needs > 60
    shown = [preset_matters(*engine(0.7, found.needs, g), margin=0.03).equivalent for _ in range(40)]
    assert np.mean(shown) > 0.6 # the plan was for 80 % at the noise that 60 items showed


def test_a_reference_that_does_not_repeat_itself_judges_nothing():
    a, b, _ = engine(0.7, 1000, rng())
    found = preset_matters(a, b, np.where(rng().uniform(size=1000) < 0.2, 0, b), margin=0.02)
    assert found.verdict == "not testable" and "two runs" in found.reason


BAD_PRESETS = {
    "no items": (([], [], []), 0.02), "NaN": (([1, 0], [1, NAN], [1, 0]), 0.02),
    "unlike items": (([1, 0], [1, 0], [1]), 0.02),
    "no margin": (([1, 0],) * 3, 0), "a pair": (([1, 0],) * 3, (-0.1, 0.1)), "out of range": (([1, 2],) * 3, 0.02),
}


@pytest.mark.parametrize("runs, margin", BAD_PRESETS.values(), ids=BAD_PRESETS)
def test_preset_matters_refuses(runs, margin):
    with pytest.raises(ConfigError): preset_matters(*runs, margin=margin)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_items_decide_nothing(n):
    for x in (np.ones(n), np.zeros(n)):
        assert preset_matters(x, x, x).verdict.startswith("not testable")
